/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.h - where the bytes of a disk come from
 *
 * Front ends (virtio-blk) call block_*(); formats and transports (raw, null)
 * provide struct block_ops.  Neither sees the other.
 */
#ifndef VM_BLOCK_H
#define VM_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "husk/error.h"

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,
	BLOCK_DISCARD,
	BLOCK_ZERO
};

/*
 * Owned by the front end, lent to the back end from submit() until done().
 * done() is called exactly once, on any thread, also from inside submit().
 */
struct block_req {
	enum block_op op;
	uint64_t offset, len;
	const struct iovec *iov; /* for READ and WRITE */
	int iovcnt;
	void (*done)(struct block_req *req, int err); /* err: 0 or -errno */
	void *back; /* the back end's; untouched by the front */
};

struct block_config {
	const char *path;
	bool readonly;
	uint64_t size; /* of null, which has no file */
};

struct block;

struct block_ops {
	const char *name;
	size_t size; /* of the struct that begins with block */

	/* Sets the geometry fields of b.  A failed open leaves nothing. */
	int (*open)(struct block *b, const struct block_config *cfg,
		    struct husk_error *err);
	void (*close)(struct block *b); /* nothing is in flight */
	void (*submit)(struct block *b, struct block_req *req);
	/* Returns when every request submitted before has been done(). */
	void (*drain)(struct block *b);
};

struct block {
	const struct block_ops *ops;
	uint64_t size;		    /* (i) bytes, a multiple of sector */
	uint32_t sector;	    /* (i) 512 or 4096 */
	bool readonly, can_discard; /* (i) */
};

/* A raw image or block device.  NULL and a sentence on failure. */
struct block *block_open(const char *path, bool readonly,
			 struct husk_error *err);
/* Zeros to read, writes forgotten. */
struct block *block_open_null(uint64_t size, struct husk_error *err);
void block_close(struct block *b); /* drains; NULL is fine */
/* Out of range: -EINVAL, write to read-only: -EROFS, both by done(). */
void block_submit(struct block *b, struct block_req *req);
void block_drain(struct block *b);

extern const struct block_ops block_raw, block_null;

#endif /* VM_BLOCK_H */
