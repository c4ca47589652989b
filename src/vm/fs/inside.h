/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inside.h - the inside of a share: inodes, handles, requests
 */
#ifndef VM_FS_INSIDE_H
#define VM_FS_INSIDE_H

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "vm/fs/fs.h"

enum {
	MAX_INODES = 1 << 20,
	MAX_HANDLES = 1 << 16,
	MAX_OWNERS = 4096,    /* of POSIX locks */
	MAX_XATTR = 64 << 10, /* a value, or all names */
	MAX_WRITE = 1 << 20,  /* and read */
	MAX_ARGS = 72 << 10,  /* of a request that is not a write */
	MAX_READDIR = 256 << 10,
	BUCKETS = 1 << 14,
	NAME_LEN = 255,
	UNKNOWN_ID = 65534, /* what the guest calls other users of the host */
};

/*
 * One file that the guest knows.  Its fd (O_PATH) may be taken away at any
 * time that nobody uses it, and comes back by parent and name.
 *
 * (i) constant   all else under fs->lock
 */
struct inode {
	uint64_t id; /* (i) for the guest */
	uint64_t nlookup;
	unsigned use;  /* by requests: the fd stays */
	unsigned refs; /* by children, handles and owners of locks */
	int fd;	       /* -1: taken away */
	bool stale, root;
	bool no_caps;		 /* certainly without file capabilities */
	mode_t type;		 /* (i) S_IFMT of the host's file */
	uint64_t dev, ino, born; /* (i) who it is */
	struct inode *parent;	 /* where it was last seen; NULL: nowhere */
	char *name;
	struct inode *key_next, *name_next; /* in the hash tables */
	struct inode *newer, *older;	    /* with an fd, by last use */
};

/* (i) constant   (d) under lock   all else under fs->lock */
struct handle {
	uint64_t id;	     /* (i) */
	int fd;		     /* (i) -1: stale, it was not found again */
	struct inode *inode; /* (i) */
	bool dir;	     /* (i) */
	unsigned flags;	     /* (i) of open() */
	unsigned use;
	bool closed;
	pthread_mutex_t lock; /* one reader of a directory at a time */
	uint64_t pos;	      /* (d) */
};

/* The locks of one owner on one file: an open file of its own. */
struct owner {
	struct owner *next;
	struct inode *inode;
	uint64_t id;
	int fd;
	bool write;
};

/* Numbers to pointers; a number is not given again soon. */
struct slots {
	void **at;
	uint32_t *generation;
	uint32_t n, free, *next_free, used, max;
};

struct fs {
	struct fs_config cfg;	     /* (i) without path */
	bool mapped;		     /* (i) FS_OWNER_HOST */
	uint32_t host_uid, host_gid; /* (i) */
	int proc;		     /* (i) /proc/self/fd */
	atomic_bool no_xattr, told;
	atomic_bool remote;	    /* some of it is not on this machine */
	_Atomic uint64_t known_dev; /* one that is not remote */
	atomic_uint unlocks;

	pthread_rwlock_t session; /* requests read, swap writes */
	char *path;		  /* NULL: no directory */
	bool ready;		  /* INIT was seen */
	uint32_t minor, max_write;
	uint64_t flags; /* that both sides have */

	pthread_mutex_t lock;
	struct inode *root;
	struct slots inodes, handles;
	struct inode *by_key[BUCKETS], *by_name[BUCKETS];
	struct inode *newest, *oldest;
	unsigned nfds, max_fds;
	pthread_mutex_t posix; /* around all POSIX and flock() calls */
	struct owner *owners;
	unsigned nowners;
	uint64_t interrupted[16];
	unsigned ninterrupted;
};

struct req {
	struct fs *fs;
	struct fuse_in_header h;
	const struct fs_message *m;
	const void *args;	  /* copied, at least as many as asked for */
	const char *name, *name2; /* checked */
	const void *rest;	  /* after the struct and the names */
	size_t nrest;
	size_t data;	 /* of a write: where in m->in */
	size_t room;	 /* for the body of the answer */
	size_t answered; /* bytes of body */
};

/* server.c */
void fs_log(struct fs *fs, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
bool thread_has_umask(void); /* of its own: none */
/* The body of the answer; -ERANGE: no room. */
int answer(struct req *r, const void *data, size_t len);
/* The part [off, off + len) of a list; out has room for all of it. */
unsigned pieces(const struct iovec *iov, unsigned n, size_t off, size_t len,
		struct iovec *out);
/* "/proc/self/fd" says where; a path from there. */
struct fd_path {
	char text[16];
};
struct fd_path fd_path(int fd);

/* inode.c */
int slots_init(struct slots *s, uint32_t max);
void slots_finish(struct slots *s);
uint64_t slots_add(struct slots *s, void *p); /* 0: full */
int slots_put(struct slots *s, uint64_t id, void *p);
void *slots_get(const struct slots *s, uint64_t id);
void slots_del(struct slots *s, uint64_t id);

/* One name below dir, not followed; 0 to INT_MAX or -errno. */
int open_beneath(struct fs *fs, int dir, const char *name, int flags,
		 mode_t mode);
/* Opens an inode for real: only regular files and directories. */
int inode_open(struct fs *fs, struct inode *i, int flags);
int fd_stat(int fd, struct statx *sx);
/* Makes room for file descriptors; false: there is nothing to give up. */
bool fds_reclaim(struct fs *fs, unsigned want);
bool fds_short(struct fs *fs, int err); /* EMFILE or ENFILE, and made room */

int inode_init_root(struct fs *fs, int fd);
/* The fd is there and stays until inode_put(). */
int inode_get(struct fs *fs, uint64_t id, struct inode **out);
void inode_put(struct fs *fs, struct inode *i);
void inode_ref_locked(struct inode *i);
void inode_unref_locked(struct fs *fs, struct inode *i);
/* The guest has learnt of name in dir once more.  Takes fd. */
int inode_learn(struct fs *fs, struct inode *dir, const char *name, int fd,
		const struct statx *sx, struct inode **out);
void inode_forget(struct fs *fs, uint64_t id, uint64_t n);
void inode_moved(struct fs *fs, struct inode *from, const char *name,
		 struct inode *to, const char *name2, bool exchange);
void inode_gone(struct fs *fs, struct inode *dir, const char *name);
void inodes_drop(struct fs *fs, bool keep_ids);
/* For state.c. */
struct inode *inode_new_locked(struct fs *fs, uint64_t id, int fd);
void inode_hash_locked(struct fs *fs, struct inode *i);
void inode_name_locked(struct fs *fs, struct inode *i, struct inode *dir,
		       const char *name);
int inode_reopen(struct fs *fs, struct inode *i);

/* handle.c */
int handle_add(struct fs *fs, struct inode *i, int fd, unsigned flags, bool dir,
	       uint64_t *id);
int handle_get(struct fs *fs, uint64_t id, bool dir, struct handle **out);
void handle_put(struct fs *fs, struct handle *h);
void handle_close(struct fs *fs, uint64_t id);
void handles_drop(struct fs *fs);

/* attr.c */
/* How the guest sees what sx says of fd. */
void attr_view(struct fs *fs, int fd, struct statx *sx);
int attr_get(struct fs *fs, int fd, struct statx *sx);
void attr_fill(struct fs *fs, const struct statx *sx, struct fuse_attr *out);
/* Remembers the guest's owner and mode of a file that is new. */
int attr_new(struct req *r, struct inode *dir, int fd, mode_t mode,
	     uint32_t rdev);
/* suid, sgid and file capabilities go when a file changes. */
void attr_kill(struct fs *fs, struct inode *i, int fd, bool suid);
/* Our user may from now on do what root in the guest may. */
bool attr_loosen(struct fs *fs, uint64_t id);
void creds_set(struct req *r);
void creds_reset(struct req *r);
void entry_timeout(struct fs *fs, uint64_t *sec);

#define XATTR_STAT   "user.husk.stat"
#define XATTR_PREFIX "user.husk.x."
#define XATTR_CAPS   XATTR_PREFIX "security.capability"

/* lock.c */
void locks_drop(struct fs *fs);
void locks_release(struct fs *fs, struct inode *i, uint64_t owner);
struct owner *owner_find(struct fs *fs, struct inode *i, uint64_t id,
			 bool write, int *err);

/* What a request may do; 0 or -errno. */
int op_lookup(struct req *r);
int op_forget(struct req *r);
int op_batch_forget(struct req *r);
int op_getattr(struct req *r);
int op_statx(struct req *r);
int op_setattr(struct req *r);
int op_readlink(struct req *r);
int op_symlink(struct req *r);
int op_mknod(struct req *r);
int op_mkdir(struct req *r);
int op_unlink(struct req *r);
int op_rmdir(struct req *r);
int op_rename(struct req *r);
int op_rename2(struct req *r);
int op_link(struct req *r);
int op_open(struct req *r);
int op_create(struct req *r);
int op_tmpfile(struct req *r);
int op_read(struct req *r);
int op_write(struct req *r);
int op_statfs(struct req *r);
int op_release(struct req *r);
int op_fsync(struct req *r);
int op_flush(struct req *r);
int op_opendir(struct req *r);
int op_readdir(struct req *r);
int op_readdirplus(struct req *r);
int op_releasedir(struct req *r);
int op_fsyncdir(struct req *r);
int op_syncfs(struct req *r);
int op_setxattr(struct req *r);
int op_getxattr(struct req *r);
int op_listxattr(struct req *r);
int op_removexattr(struct req *r);
int op_access(struct req *r);
int op_fallocate(struct req *r);
int op_lseek(struct req *r);
int op_copy_file_range(struct req *r);
int op_getlk(struct req *r);
int op_setlk(struct req *r);
int op_setlkw(struct req *r);

/* The answer of a lookup and its kin; takes fd. */
int entry_answer(struct req *r, struct inode *dir, const char *name, int fd);
int entry_fill(struct fs *fs, struct inode *dir, const char *name, int fd,
	       struct fuse_entry_out *out);

/* Kernels from 6.6 ask for it; older headers do not have it. */
enum { OP_STATX = 52 };

#endif /* VM_FS_INSIDE_H */
