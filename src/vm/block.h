/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.h - where the bytes of a disk come from
 *
 * Front ends (virtio-blk) call block_*(); formats (raw, qcow2, null) provide
 * struct block_ops.  Neither sees the other.  Formats keep their bytes in a
 * struct store (block/store.h).
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
	bool keep; /* ZERO: the space stays allocated */
	uint64_t offset, len;
	const struct iovec *iov; /* for READ and WRITE */
	int iovcnt;
	void (*done)(struct block_req *req, int err); /* err: 0 or -errno */
	void *back; /* the back end's; untouched by the front */
};

enum block_cache { BLOCK_CACHED, BLOCK_DIRECT };

/* What a flush waits for. */
enum block_sync {
	BLOCK_SYNC_FULL, /* everything is on the medium */
	BLOCK_SYNC_DATA, /* the bytes are with the drive, which may cache */
	BLOCK_SYNC_NONE, /* nothing */
};

enum block_aio { BLOCK_AIO_AUTO, BLOCK_AIO_URING, BLOCK_AIO_THREADS };

struct store;

struct block_config {
	const char *path;
	const char *format;   /* "raw", "qcow2"; NULL: by the suffix */
	const char *base;     /* in place of what the image names */
	const char *snapshot; /* of qcow2, by id or name; only to read */
	const char *fault;    /* see block/fault.c; NULL: no faults */
	bool readonly;
	enum block_cache cache;
	enum block_sync sync;
	enum block_aio aio;
	unsigned sector; /* 512, 4096; 0: 512 */
	uint64_t size;	 /* of null, which has no file */
	bool no_base;	 /* do not open what the image stands on */
	bool no_lock;	 /* only to look at it */
	bool repair;	 /* of qcow2: open what is marked as corrupt */
	/* Tests: the bytes, in place of path; the block closes it. */
	struct store *store;

	unsigned depth; /* of a chain; block/image.c's */
	const struct block_config *above;
};

/* A stretch of a disk, as map() finds it. */
enum block_kind {
	BLOCK_DATA,
	BLOCK_ZEROS, /* known to read as zeros */
	BLOCK_BASE,  /* what the base has there */
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
	/* The same, at once and on this thread; req->done is not called. */
	int (*perform)(struct block *b, const struct block_req *req);
	/* Returns when every request submitted before has been done(). */
	void (*drain)(struct block *b);
	/* Nothing is in flight.  NULL: the size is fixed. */
	int (*resize)(struct block *b, uint64_t size, struct husk_error *err);
	/*
	 * What is at offset: *len bytes or fewer of one kind.  NULL: data.
	 */
	int (*map)(struct block *b, uint64_t offset, uint64_t *len,
		   enum block_kind *kind);
};

struct block {
	const struct block_ops *ops;
	uint64_t size;		    /* bytes, a multiple of sector; resize() */
	uint32_t sector;	    /* (i) 512 or 4096 */
	bool readonly, can_discard; /* (i) */
};

struct block *block_open_config(const struct block_config *cfg,
				struct husk_error *err);
/* As block_open_config() with the defaults.  NULL and a sentence on failure. */
struct block *block_open(const char *path, bool readonly,
			 struct husk_error *err);
/* Zeros to read, writes forgotten. */
struct block *block_open_null(uint64_t size, struct husk_error *err);
void block_close(struct block *b); /* drains; NULL is fine */
/* Out of range: -EINVAL, write to read-only: -EROFS, both by done(). */
void block_submit(struct block *b, struct block_req *req);
/* The same at once; 0 or -errno. */
int block_perform(struct block *b, const struct block_req *req);
int block_read(struct block *b, uint64_t offset, void *buf, size_t len);
int block_write(struct block *b, uint64_t offset, const void *buf, size_t len);
int block_flush(struct block *b);
void block_drain(struct block *b);
/* Nothing may be in flight: the front end has stopped taking requests. */
int block_resize(struct block *b, uint64_t size, struct husk_error *err);
int block_map(struct block *b, uint64_t offset, uint64_t *len,
	      enum block_kind *kind);

/* "cached", "full", "uring"...: 0 or -EINVAL. */
int block_parse_cache(const char *text, enum block_cache *out);
int block_parse_sync(const char *text, enum block_sync *out);
int block_parse_aio(const char *text, enum block_aio *out);

/*
 * The format that cfg names, or that the suffix of its path says.  Never
 * what the file holds: a guest writes that.  NULL and a sentence.
 */
const struct block_ops *block_format(const struct block_config *cfg,
				     struct husk_error *err);

extern const struct block_ops block_raw, block_null, block_qcow2;

#endif /* VM_BLOCK_H */
