/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs.h - a shared directory, served as FUSE requests in memory
 *
 * The server knows nothing of queues: a request is bytes in, bytes out.  Any
 * number of threads may serve requests of one share at the same time.
 * Nothing that a request says leads out of the directory; symbolic links are
 * told, never followed.
 */
#ifndef VM_FS_FS_H
#define VM_FS_FS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/state.h"
#include "husk/error.h"

struct fs;

enum fs_owner {
	FS_OWNER_AUTO,	/* guest when we may change owners, else host */
	FS_OWNER_GUEST, /* files belong to who made them in the guest */
	FS_OWNER_HOST,	/* to our user; the guest's view is in an attribute */
};
enum fs_cache { FS_CACHE_AUTO, FS_CACHE_NONE, FS_CACHE_ALWAYS };

struct fs_config {
	const char *path; /* NULL: nothing yet, every request fails */
	bool readonly;
	enum fs_owner owner;
	uint32_t uid, gid; /* FS_OWNER_HOST: what our user is in the guest */
	enum fs_cache cache;
	bool guest_locks; /* locks stay inside the guest */
	unsigned max_fds; /* held for the guest's cache; 0: by the limit */
	void (*log)(void *sink, const char *text);
	void *sink;
};

/* Strings are copied. */
int fs_open(const struct fs_config *cfg, struct fs **fs,
	    struct husk_error *err);
void fs_close(struct fs *fs); /* NULL is fine; nobody serves any more */

/*
 * On each thread that serves, before it does: its own umask, no groups of ours.
 * Costs nothing from the second time on.
 */
void fs_thread_init(struct fs *fs);

struct fs_message {
	const struct iovec *in, *out;
	unsigned nin, nout;
	bool last;  /* do not say FS_WAIT again */
	bool quick; /* say FS_WAIT to what may have to wait for the host */
};
enum { FS_WAIT = -11 };
/*
 * Bytes of the answer in out, 0 for none; FS_WAIT: a lock that others hold,
 * serve it again later; -EPROTO: not a request.  A quick one is only looked at
 * before FS_WAIT.
 */
ssize_t fs_serve(struct fs *fs, const struct fs_message *m);
/* Changes whenever a lock that somebody waits for may be free. */
unsigned fs_unlocks(struct fs *fs);

/* The driver is gone: the session with all it holds ends.  Nobody serves. */
void fs_reset(struct fs *fs);
/*
 * Another directory, or none (NULL): what the guest has found in the old one
 * is stale from now on.  Any thread.
 */
int fs_swap(struct fs *fs, const char *path, struct husk_error *err);

/* Nobody serves.  What cannot be found again is stale, not an error. */
void fs_state(struct fs *fs, struct state *s);

#endif /* VM_FS_FS_H */
