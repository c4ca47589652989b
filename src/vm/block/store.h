/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.h - bytes that can grow: what an image format is kept in
 *
 * A store is a file or device of the host (file.c), memory (tests), or
 * another store with faults added (fault.c).  A store takes any offset and
 * length; bytes beyond its end read as zeros.
 */
#ifndef VM_BLOCK_STORE_H
#define VM_BLOCK_STORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "vm/block.h"

struct store;

struct store_ops {
	void (*close)(struct store *s); /* nothing is in flight */
	/* One request, blocking; any thread, many at a time. */
	int (*perform)(struct store *s, const struct block_req *req);
	void (*submit)(struct store *s, struct block_req *req);
	void (*drain)(struct store *s);
	int (*set_size)(struct store *s, uint64_t size);
	/* *len: of the stretch of data or hole at offset.  NULL: all data. */
	int (*map)(struct store *s, uint64_t offset, uint64_t *len, bool *hole);
	uint64_t (*used)(struct store *s); /* bytes on the host; may be NULL */
};

struct store {
	const struct store_ops *ops;
	_Atomic uint64_t size;
	bool readonly, fixed; /* (i) fixed: cannot grow */
};

/* Opens and locks cfg->path; with cfg->fault it has them. */
struct store *store_open(const struct block_config *cfg,
			 struct husk_error *err);
void store_close(struct store *s); /* drains; NULL is fine */
int store_read(struct store *s, uint64_t offset, void *buf, size_t len);
int store_write(struct store *s, uint64_t offset, const void *buf, size_t len);
int store_flush(struct store *s);
int store_discard(struct store *s, uint64_t offset, uint64_t len);
int store_zero(struct store *s, uint64_t offset, uint64_t len);
int store_set_size(struct store *s, uint64_t size);
int store_map(struct store *s, uint64_t offset, uint64_t *len, bool *hole);
uint64_t store_used(struct store *s);

/* -- fault.c -------------------------------------------------------------- */

/* Takes inner over.  spec: see fault.c. */
struct store *store_fault(struct store *inner, const char *spec,
			  struct husk_error *err);
/* Writes, discards, sizes and flushes seen so far. */
uint64_t store_fault_count(struct store *s);
/* After a cut: the bytes as the power cut left them; s is closed. */
struct store *store_fault_inner(struct store *s);

/* -- iov.c ---------------------------------------------------------------- */

/* Skip the first n bytes of a list of which *off bytes are gone already. */
void iov_skip(const struct iovec **iov, int *count, size_t *off, size_t n);
/* A part of src; how many entries, at most max; *len what they hold. */
int iov_part(struct iovec *dst, int max, const struct iovec *src, int count,
	     uint64_t offset, uint64_t *len);
void iov_from(const struct iovec *iov, int count, uint64_t offset,
	      const void *buf, size_t len);
void iov_to(const struct iovec *iov, int count, uint64_t offset, void *buf,
	    size_t len);
void iov_zero(const struct iovec *iov, int count, uint64_t offset, size_t len);

/* -- pool.c --------------------------------------------------------------- */

enum { POOL_THREADS = 4 }; /* enough to keep an SSD's queue filled a bit */

/* Threads that perform requests.  (i) constant after start   (l) lock */
struct pool {
	int (*perform)(void *arg, const struct block_req *req); /* (i) */
	void *arg;						/* (i) */
	pthread_t thread[POOL_THREADS];				/* (i) */
	unsigned nthreads;					/* (i) */
	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	struct block_req *first, **last; /* (l) linked by ->back */
	unsigned inflight;		 /* (l) queued and running */
	bool quit;			 /* (l) */
};

void pool_start(struct pool *p,
		int (*perform)(void *arg, const struct block_req *req),
		void *arg);
void pool_stop(struct pool *p);
void pool_submit(struct pool *p, struct block_req *req);
/* To the threads that are there; false: they have more than so many. */
bool pool_offer(struct pool *p, struct block_req *req, unsigned most);
void pool_drain(struct pool *p);

/* -- uring.c -------------------------------------------------------------- */

struct uring;

/* Nothing is started yet.  NULL: no memory. */
struct uring *uring_open(int fd, struct store *s);
void uring_close(struct uring *u);
/* false: the kernel or a filter forbids io_uring. */
bool uring_start(struct uring *u);
/* false: not this one, perform() it. */
bool uring_submit(struct uring *u, struct block_req *req);
void uring_drain(struct uring *u);

#endif /* VM_BLOCK_STORE_H */
