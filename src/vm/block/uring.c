/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.c - requests of a file through io_uring
 *
 * Any thread submits, under the ring's lock; one thread of ours takes what
 * has completed; both are there from the first request on, since most of
 * what is asked for is in the page cache.  What came back short is finished by perform(), which also
 * knows the end of the file.
 */
#include "vm/block/store.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/thread.h"

enum { ENTRIES = 128, MAX_IOVS = 512 };

/* (i) constant after start   (l) under lock */
struct uring {
	struct io_uring ring;
	struct store *store;  /* (i) */
	int fd;		      /* (i) */
	pthread_t thread;     /* (i) */
	pthread_mutex_t lock; /* of the submission side */
	pthread_cond_t room;
	unsigned inflight; /* (l) */
	bool runs, dead;   /* (l) it has been started; it cannot be */
};

static void complete(struct uring *u, struct block_req *req, int res)
{
	bool transfer = req->op == BLOCK_READ || req->op == BLOCK_WRITE;

	/* Short, interrupted, refused: the slow way says what is true. */
	if (transfer && res >= 0 && (uint64_t)res == req->len) {
		uint64_t end = req->offset + req->len;
		uint64_t size = atomic_load(&u->store->size);

		while (req->op == BLOCK_WRITE && size < end &&
		       !atomic_compare_exchange_weak(&u->store->size, &size,
						     end)) {
		}
		res = 0;
	} else if (transfer || res) {
		res = u->store->ops->perform(u->store, req);
	}
	req->done(req, res);
	pthread_mutex_lock(&u->lock);
	u->inflight--;
	pthread_cond_broadcast(&u->room);
	pthread_mutex_unlock(&u->lock);
}

static void *uring_thread(void *arg)
{
	struct uring *u = arg;
	struct io_uring_cqe *cqe;

	for (;;) {
		struct block_req *req;
		int res = io_uring_wait_cqe(&u->ring, &cqe);

		if (res)
			continue;
		req = io_uring_cqe_get_data(cqe);
		res = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
		if (!req)
			return NULL;
		complete(u, req, res);
	}
}

/* Under lock. */
static bool run(struct uring *u)
{
	struct io_uring_probe *probe;
	bool able;

	if (u->runs || u->dead)
		return u->runs;
	u->dead = true;
	if (io_uring_queue_init(ENTRIES, &u->ring, 0))
		return false;
	/* Who has it mapped in another process would keep it. */
	io_uring_ring_dontfork(&u->ring);
	probe = io_uring_get_probe_ring(&u->ring);
	able = probe && io_uring_opcode_supported(probe, IORING_OP_READV) &&
	       io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
	io_uring_free_probe(probe);
	if (able && !thread_start(&u->thread, "husk-uring", uring_thread, u))
		u->runs = true;
	else
		io_uring_queue_exit(&u->ring);
	return u->runs;
}

struct uring *uring_open(int fd, struct store *s)
{
	struct uring *u = calloc(1, sizeof(*u));

	if (!u)
		return NULL;
	u->fd = fd;
	u->store = s;
	pthread_mutex_init(&u->lock, NULL);
	pthread_cond_init(&u->room, NULL);
	return u;
}

bool uring_start(struct uring *u)
{
	bool runs;

	pthread_mutex_lock(&u->lock);
	runs = run(u);
	pthread_mutex_unlock(&u->lock);
	return runs;
}

void uring_drain(struct uring *u)
{
	pthread_mutex_lock(&u->lock);
	while (u->inflight)
		pthread_cond_wait(&u->room, &u->lock);
	pthread_mutex_unlock(&u->lock);
}

/* An empty request is the sign for the thread to end. */
static void stop(struct uring *u)
{
	struct io_uring_sqe *sqe;

	pthread_mutex_lock(&u->lock);
	sqe = io_uring_get_sqe(&u->ring);
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	while (io_uring_submit(&u->ring) < 0) {
	}
	pthread_mutex_unlock(&u->lock);
	pthread_join(u->thread, NULL);
	io_uring_queue_exit(&u->ring);
}

void uring_close(struct uring *u)
{
	uring_drain(u);
	if (u->runs)
		stop(u);
	pthread_cond_destroy(&u->room);
	pthread_mutex_destroy(&u->lock);
	free(u);
}

bool uring_submit(struct uring *u, struct block_req *req)
{
	struct io_uring_sqe *sqe;
	int ret;

	if ((req->op != BLOCK_READ && req->op != BLOCK_WRITE) ||
	    req->iovcnt > MAX_IOVS)
		return false;
	pthread_mutex_lock(&u->lock);
	/* Full: the pool takes what is too much, so nobody waits here. */
	sqe = run(u) && u->inflight < ENTRIES ? io_uring_get_sqe(&u->ring)
					      : NULL;
	if (!sqe) {
		pthread_mutex_unlock(&u->lock);
		return false;
	}
	if (req->op == BLOCK_READ)
		io_uring_prep_readv(sqe, u->fd, req->iov, req->iovcnt,
				    req->offset);
	else
		io_uring_prep_writev(sqe, u->fd, req->iov, req->iovcnt,
				     req->offset);
	io_uring_sqe_set_data(sqe, req);
	u->inflight++;
	do {
		ret = io_uring_submit(&u->ring);
	} while (ret == -EINTR || ret == -EAGAIN || ret == -EBUSY);
	pthread_mutex_unlock(&u->lock);
	return true;
}
