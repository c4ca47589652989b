/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.c - a store that fails as real ones do, for tests
 *
 * Words joined by "+":
 *   cut=N     the power fails at the Nth change (write, zeroes, discard,
 *             size, flush): what was flushed is there, of the rest each
 *             write is kept, lost or torn, as seed says; then all is EIO
 *   seed=N    0 (the default): all unflushed is lost, 1: all is kept,
 *             else a random choice per write
 *   error=N   every Nth change fails with EIO
 *   full=N    every change that grows the store beyond N bytes is ENOSPC
 *   delay=US  each request takes up to so long, so that they overtake
 *             each other
 *   log=FILE  the last word: each change is also appended to FILE, a struct
 *             fault_record and the bytes of a write, so that every moment
 *             can be made again
 */
#include "vm/block/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

enum { SECTOR = 512, MAX_CHANGE = 64 << 20 };

/* A change since the last flush: what was there and what is. */
struct change {
	struct change *next, *prev;
	uint64_t offset, len;	     /* len 0: of the size */
	uint64_t old_size, new_size; /* of the store */
	char *old, *new;
};

enum { RECORD_WRITE = 1, RECORD_ZERO, RECORD_SIZE, RECORD_FLUSH };

/* In a log; the bytes of a write follow. */
struct fault_record {
	uint64_t time_ns; /* CLOCK_MONOTONIC, before it was done */
	uint64_t offset, len;
	uint64_t kind;
};

/* (i) set at creation   (l) under lock */
struct fault {
	struct store store;
	struct store *inner;		     /* (i) */
	uint64_t cut, error, full, delay_us; /* (i) 0: never */
	uint64_t seed;			     /* (i) */
	int log;			     /* (i) -1: none */
	struct pool pool;
	pthread_mutex_t lock;
	uint64_t random, count;	     /* (l) */
	bool dead;		     /* (l) the power is out */
	struct change *first, *last; /* (l) since the last flush */
};

static struct fault *to_fault(struct store *s)
{
	return container_of(s, struct fault, store);
}

/* xorshift64*: the same seed, the same faults. */
static uint64_t draw(struct fault *f)
{
	f->random ^= f->random >> 12;
	f->random ^= f->random << 25;
	f->random ^= f->random >> 27;
	return f->random * 0x2545f4914f6cdd1dull;
}

/* -- what was changed ----------------------------------------------------- */

static void forget(struct fault *f)
{
	struct change *c, *next;

	for (c = f->first; c; c = next) {
		next = c->next;
		free(c->old);
		free(c->new);
		free(c);
	}
	f->first = f->last = NULL;
}

static int note(struct fault *f, const struct block_req *req, uint64_t size)
{
	struct change *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->old_size = atomic_load(&f->inner->size);
	c->new_size = size;
	if (req) {
		c->offset = req->offset;
		c->len = req->len;
		c->old = malloc(c->len);
		c->new = calloc(1, c->len);
		if (!c->old || !c->new ||
		    store_read(f->inner, c->offset, c->old, c->len)) {
			free(c->old);
			free(c->new);
			free(c);
			return -EIO;
		}
		if (req->op == BLOCK_WRITE)
			iov_to(req->iov, req->iovcnt, 0, c->new, c->len);
	}
	c->prev = f->last;
	if (f->last)
		f->last->next = c;
	else
		f->first = c;
	f->last = c;
	return 0;
}

static void keep_some(struct fault *f, const struct change *c)
{
	uint64_t what = f->seed == 0 ? 0 : f->seed == 1 ? 2 : draw(f) % 4;
	uint64_t len = c->len;

	if (what == 0)
		return;
	if (!len) {
		f->inner->ops->set_size(f->inner, c->new_size);
		return;
	}
	if (what == 1) /* torn */
		len = MIN(len, draw(f) % (len / SECTOR + 1) * SECTOR);
	if (len)
		store_write(f->inner, c->offset, c->new, len);
}

static int power_off(struct fault *f)
{
	f->dead = true;
	for (struct change *c = f->last; c; c = c->prev) {
		if (c->len)
			store_write(f->inner, c->offset, c->old, c->len);
		f->inner->ops->set_size(f->inner, c->old_size);
	}
	for (struct change *c = f->first; c; c = c->next)
		keep_some(f, c);
	forget(f);
	store_flush(f->inner);
	return -EIO;
}

/* -- the log -------------------------------------------------------------- */

static int write_all(int fd, const void *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			data = (const char *)data + n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* req NULL: of the size. */
static int record(struct fault *f, const struct block_req *req, uint64_t size)
{
	struct fault_record r = { .kind = RECORD_SIZE,
				  .time_ns = loop_now(),
				  .offset = size };
	int ret;

	if (req) {
		r.kind = req->op == BLOCK_WRITE	  ? RECORD_WRITE
			 : req->op == BLOCK_FLUSH ? RECORD_FLUSH
						  : RECORD_ZERO;
		r.offset = req->offset;
		r.len = req->len;
	}
	ret = write_all(f->log, &r, sizeof(r));
	for (unsigned i = 0;
	     r.kind == RECORD_WRITE && !ret && i < (unsigned)req->iovcnt; i++)
		ret = write_all(f->log, req->iov[i].iov_base,
				req->iov[i].iov_len);
	return ret;
}

/* -- requests ------------------------------------------------------------- */

static int change_locked(struct fault *f, const struct block_req *req,
			 uint64_t size)
{
	int ret;

	if (f->dead)
		return -EIO;
	f->count++;
	if (f->cut && f->count >= f->cut)
		return power_off(f);
	if (f->error && f->count % f->error == 0)
		return -EIO;
	ret = f->log >= 0 ? record(f, req, size) : 0;
	if (ret)
		return ret;
	if (req && req->op == BLOCK_FLUSH) {
		ret = store_flush(f->inner);
		if (!ret)
			forget(f);
		return ret;
	}
	if (f->full && size > f->full && size > atomic_load(&f->inner->size))
		return -ENOSPC;
	ret = f->cut && (!req || req->len <= MAX_CHANGE) ? note(f, req, size)
							 : 0;
	if (ret)
		return ret;
	ret = req ? f->inner->ops->perform(f->inner, req)
		  : f->inner->ops->set_size(f->inner, size);
	atomic_store(&f->store.size, atomic_load(&f->inner->size));
	return ret;
}

static int fault_perform(struct store *s, const struct block_req *req)
{
	struct fault *f = to_fault(s);
	uint64_t wait = 0;
	int ret;

	pthread_mutex_lock(&f->lock);
	if (req->op == BLOCK_READ)
		ret = f->dead ? -EIO : f->inner->ops->perform(f->inner, req);
	else
		ret = change_locked(f, req, req->offset + req->len);
	if (f->delay_us)
		wait = draw(f) % f->delay_us;
	pthread_mutex_unlock(&f->lock);
	if (wait)
		usleep((useconds_t)wait);
	return ret;
}

static int pool_perform(void *arg, const struct block_req *req)
{
	return fault_perform(arg, req);
}

static void fault_submit(struct store *s, struct block_req *req)
{
	pool_submit(&to_fault(s)->pool, req);
}

static void fault_drain(struct store *s)
{
	pool_drain(&to_fault(s)->pool);
}

static int fault_set_size(struct store *s, uint64_t size)
{
	struct fault *f = to_fault(s);
	int ret;

	pthread_mutex_lock(&f->lock);
	ret = change_locked(f, NULL, size);
	pthread_mutex_unlock(&f->lock);
	return ret;
}

static int fault_map(struct store *s, uint64_t offset, uint64_t *len,
		     bool *hole)
{
	return store_map(to_fault(s)->inner, offset, len, hole);
}

static uint64_t fault_used(struct store *s)
{
	return store_used(to_fault(s)->inner);
}

static void finish(struct fault *f)
{
	pool_stop(&f->pool);
	forget(f);
	if (f->log >= 0)
		close(f->log);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static void fault_close(struct store *s)
{
	store_close(to_fault(s)->inner);
	finish(to_fault(s));
}

struct store *store_fault_inner(struct store *s)
{
	struct store *inner = to_fault(s)->inner;

	finish(to_fault(s));
	return inner;
}

uint64_t store_fault_count(struct store *s)
{
	struct fault *f = to_fault(s);
	uint64_t n;

	pthread_mutex_lock(&f->lock);
	n = f->count;
	pthread_mutex_unlock(&f->lock);
	return n;
}

static const struct store_ops fault_ops = {
	.close = fault_close,
	.perform = fault_perform,
	.submit = fault_submit,
	.drain = fault_drain,
	.set_size = fault_set_size,
	.map = fault_map,
	.used = fault_used,
};

static int parse(struct fault *f, const char *spec)
{
	const struct {
		const char *name;
		uint64_t *value;
	} words[] = {
		{ "cut=", &f->cut },	    { "seed=", &f->seed },
		{ "error=", &f->error },    { "full=", &f->full },
		{ "delay=", &f->delay_us },
	};

	while (*spec) {
		unsigned i = 0;
		char *end;

		if (!strncmp(spec, "log=", 4)) {
			f->log = open(spec + 4,
				      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
				      0600);
			return f->log < 0 ? -errno : 0;
		}

		while (i < ARRAY_SIZE(words) &&
		       strncmp(spec, words[i].name, strlen(words[i].name)))
			i++;
		if (i == ARRAY_SIZE(words))
			return -EINVAL;
		spec += strlen(words[i].name);
		*words[i].value = strtoull(spec, &end, 10);
		if (end == spec || (*end && *end != '+'))
			return -EINVAL;
		spec = *end ? end + 1 : end;
	}
	return 0;
}

struct store *store_fault(struct store *inner, const char *spec,
			  struct husk_error *err)
{
	struct fault *f = calloc(1, sizeof(*f));
	int ret;

	if (!f) {
		error_errno(err, -ENOMEM, "fault=%s", spec);
		goto err_inner;
	}
	f->log = -1;
	ret = parse(f, spec);
	if (ret) {
		if (ret == -EINVAL)
			error_set(err, ret,
				  "fault=%s: there are cut=N, seed=N, error=N, "
				  "full=N, delay=US and log=FILE, joined by +",
				  spec);
		else
			error_errno(err, ret, "fault=%s", spec);
		goto err_free;
	}
	f->store.ops = &fault_ops;
	f->store.readonly = inner->readonly;
	f->store.fixed = inner->fixed;
	atomic_store(&f->store.size, atomic_load(&inner->size));
	f->inner = inner;
	f->random = f->seed * 0x9e3779b97f4a7c15ull + 1;
	pthread_mutex_init(&f->lock, NULL);
	pool_start(&f->pool, pool_perform, &f->store);
	return &f->store;
err_free:
	free(f);
err_inner:
	store_close(inner);
	return NULL;
}
