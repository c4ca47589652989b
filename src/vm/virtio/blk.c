/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.c - virtio block device over any struct block
 *
 * A request is taken from the queue, lent to the block, and comes back on any
 * thread by done(), which puts it on a list.  Whoever is in a turn of the
 * device takes it from there and answers the driver; when nobody is, that
 * thread has one itself, or the device's is woken if another has the device.
 * So what the block does at once costs no wake-up.
 *
 * When the host has no space left and the machine is to pause then, a request
 * is held: only its place in the queue is remembered.  It is taken again by
 * the next start, be it after resume or after a restore.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "husk/vm.h"
#include "vm/block.h"
#include "vm/virtio/virtq.h"

#define F_SEG_MAX      BIT(2)
#define F_RO	       BIT(5)
#define F_BLK_SIZE     BIT(6)
#define F_FLUSH	       BIT(9)
#define F_TOPOLOGY     BIT(10)
#define F_MQ	       BIT(12)
#define F_DISCARD      BIT(13)
#define F_WRITE_ZEROES BIT(14)

enum {
	T_IN = 0,
	T_OUT = 1,
	T_FLUSH = 4,
	T_GET_ID = 8,
	T_DISCARD = 11,
	T_WRITE_ZEROES = 13
};
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };

enum {
	QUEUES = 8,    /* at most; the argument says how many are offered */
	SEG_MAX = 126, /* + header and status: half a queue */
	PIECES = SEG_MAX + 2,
	REQUESTS = 128,	     /* in flight; the rest waits in the queue */
	ID_SIZE = 20,	     /* bytes of serial, not terminated */
	MAX_RANGE = 1 << 21, /* sectors of one discard: 1 GiB */
	LARGE = 128 << 10,   /* bytes that take a while to copy */
};

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};
struct range {
	uint64_t sector;
	uint32_t count, flags;
};

struct blk;

struct blk_req {
	struct block_req req;
	struct blk *blk;
	struct virtq *q; /* that it came from */
	struct blk_req *next;
	int err;
	uint32_t written; /* bytes of data, on success */
	uint8_t *status;
	struct virtq_chain chain; /* its arrays are these: */
	struct iovec writable[PIECES];
	uint64_t gpa[PIECES];
	struct iovec data[PIECES];
};

/* (v) under dev->lock   (d) under done_lock */
struct blk {
	struct virtio v;
	struct block *block;	     /* (v) changed while paused */
	unsigned queues;	     /* (i) offered to the driver */
	char serial[ID_SIZE];	     /* (i) */
	struct blk_req *reqs, *free; /* (i), (v) */
	unsigned fresh;		     /* (v) of reqs, that were ever free */
	unsigned inflight;	     /* (v) */
	bool holds;		     /* (i) requests without space wait */
	bool starved;		     /* (v) a queue may have more */
	struct blk_req *held;	     /* (v) */
	pthread_mutex_t done_lock;
	struct blk_req *done; /* (d) */
	bool in_turn;	      /* (d) somebody will look at done */
};

static struct blk *to_blk(struct virtio *v)
{
	return container_of(v, struct blk, v);
}

/* -- answers -------------------------------------------------------------- */

static void answer(struct blk_req *r, uint8_t status)
{
	struct blk *blk = r->blk;

	*r->status = status;
	virtq_push(r->q, &r->chain, status == S_OK ? r->written + 1 : 1);
	r->next = blk->free;
	blk->free = r;
}

/*
 * The block's thread, or ours inside block_submit().  The first is in a turn
 * itself when nobody else has the device: that saves a change of threads.
 */
static void blk_done(struct block_req *req, int err)
{
	struct blk_req *r = container_of(req, struct blk_req, req);
	struct blk *blk = r->blk;
	bool alone;

	r->err = err;
	pthread_mutex_lock(&blk->done_lock);
	alone = !blk->done && !blk->in_turn;
	r->next = blk->done;
	blk->done = r;
	pthread_mutex_unlock(&blk->done_lock);
	/* r may be gone; blk waits for us in drain_locked(). */
	if (!alone)
		return;
	if (pthread_mutex_trylock(&blk->v.dev.lock)) {
		virtio_wake(&blk->v);
		return;
	}
	virtio_turn_locked(&blk->v, true, 0);
	pthread_mutex_unlock(&blk->v.dev.lock);
}

static void submit(struct blk_req *r)
{
	r->blk->inflight++;
	r->req.done = blk_done;
	block_submit(r->blk->block, &r->req);
}

/* false: it has to be answered. */
static bool hold(struct blk_req *r)
{
	struct blk *blk = r->blk;
	const struct dev_env *env = blk->v.dev.env;

	if (!blk->holds || (r->err != -ENOSPC && r->err != -EDQUOT))
		return false;
	r->next = blk->held;
	blk->held = r;
	dev_news(&blk->v.dev, VM_NEWS_NO_SPACE, -r->err);
	if (env->request)
		env->request(env->sink, REQUEST_NO_SPACE, 0);
	return true;
}

static void finish_done(struct blk *blk)
{
	struct blk_req *r, *next;

	pthread_mutex_lock(&blk->done_lock);
	r = blk->done;
	blk->done = NULL;
	pthread_mutex_unlock(&blk->done_lock);
	for (; r; r = next) {
		next = r->next;
		blk->inflight--;
		/* Without FLUSH the driver takes a write for durable. */
		if (!r->err && r->req.op == BLOCK_WRITE &&
		    !(blk->v.accepted & F_FLUSH)) {
			r->req.op = BLOCK_FLUSH;
			submit(r);
			continue;
		}
		if (r->err && hold(r))
			continue;
		if (r->err && r->err != -EOPNOTSUPP)
			dev_news(&blk->v.dev, VM_NEWS_DISK_ERROR, -r->err);
		answer(r, !r->err		  ? S_OK
			  : r->err == -EOPNOTSUPP ? S_UNSUPP
						  : S_IOERR);
	}
}

/* -- requests ------------------------------------------------------------- */

/* Copy len bytes off the front of the list.  false: too short. */
static bool take_front(struct iovec *iov, unsigned n, void *dst, size_t len)
{
	uint8_t *p = dst;

	for (unsigned i = 0; i < n && len; i++) {
		size_t part = MIN(len, iov[i].iov_len);

		memcpy(p, iov[i].iov_base, part);
		iov[i].iov_base = (char *)iov[i].iov_base + part;
		iov[i].iov_len -= part;
		p += part;
		len -= part;
	}
	return !len;
}

static uint64_t total(const struct iovec *iov, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

static bool in_disk(const struct blk *blk, uint64_t sector, uint64_t len)
{
	uint64_t size = blk->block->size;

	return sector <= size / 512 && len <= size - sector * 512 &&
	       !(sector * 512 % blk->block->sector) &&
	       !(len % blk->block->sector);
}

static int start_transfer(struct blk_req *r, uint64_t sector, unsigned n)
{
	uint64_t len = total(r->data, n);

	if (!in_disk(r->blk, sector, len))
		return S_IOERR;
	if (r->req.op == BLOCK_READ)
		r->written = len;
	else if (r->blk->block->readonly)
		return S_IOERR;
	r->req.offset = sector * 512;
	r->req.len = len;
	r->req.iov = r->data;
	r->req.iovcnt = n;
	submit(r);
	return -1;
}

static int get_id(struct blk_req *r, unsigned n)
{
	/* Linux sends GET_ID without negotiation (5.2.6): answer it. */
	for (unsigned i = 0; i < n && r->written < ID_SIZE; i++) {
		size_t part =
			MIN((size_t)(ID_SIZE - r->written), r->data[i].iov_len);

		memcpy(r->data[i].iov_base, r->blk->serial + r->written, part);
		r->written += part;
	}
	return S_OK;
}

static int start_range(struct blk_req *r, unsigned n)
{
	uint64_t allowed =
		r->req.op == BLOCK_DISCARD ? F_DISCARD : F_WRITE_ZEROES;
	struct range range;

	if (!(r->blk->v.accepted & allowed))
		return S_UNSUPP;
	/* One range: that is what the config space says. */
	if (total(r->data, n) != sizeof(range) ||
	    !take_front(r->data, n, &range, sizeof(range)))
		return S_UNSUPP;
	/* Bit 0, unmap: a permission for zeroes, an error for discard. */
	if (range.flags & ~(r->req.op == BLOCK_ZERO ? 1u : 0u))
		return S_UNSUPP;
	if (range.count > MAX_RANGE ||
	    !in_disk(r->blk, range.sector, range.count * 512ull))
		return S_IOERR;
	r->req.offset = range.sector * 512;
	r->req.len = range.count * 512ull;
	submit(r);
	return -1;
}

/* -1: submitted; else the status to answer at once */
static int begin(struct blk_req *r, const struct header *h, unsigned nout,
		 unsigned nin)
{
	switch (h->type) {
	case T_IN:
		r->req.op = BLOCK_READ;
		return start_transfer(r, h->sector, nin);
	case T_OUT:
		r->req.op = BLOCK_WRITE;
		return start_transfer(r, h->sector, nout);
	case T_FLUSH:
		r->req.op = BLOCK_FLUSH;
		submit(r);
		return -1;
	case T_GET_ID: return get_id(r, nin);
	case T_DISCARD: r->req.op = BLOCK_DISCARD; return start_range(r, nout);
	case T_WRITE_ZEROES:
		r->req.op = BLOCK_ZERO;
		return start_range(r, nout);
	}
	return S_UNSUPP;
}

/* data: what the device reads or, for IN and GET_ID, what it writes. */
static int handle(struct blk *blk, struct virtq *q, struct blk_req *r,
		  const struct virtq_chain *chain)
{
	unsigned nw = chain->nwritable, nr = chain->nreadable;
	struct header h;
	bool in;
	int status;

	if (!nw || nw > PIECES || nr > PIECES)
		return virtio_broken(&blk->v, "request of %u and %u pieces", nr,
				     nw);
	memset(&r->req, 0, sizeof(r->req));
	r->blk = blk;
	r->q = q;
	r->written = 0;
	memcpy(r->writable, chain->writable, nw * sizeof(r->writable[0]));
	memcpy(r->gpa, chain->writable_gpa, nw * sizeof(r->gpa[0]));
	r->chain = (struct virtq_chain){
		.writable = r->writable,
		.writable_gpa = r->gpa,
		.nwritable = nw,
		.head = chain->head,
	};
	r->status = (uint8_t *)r->writable[nw - 1].iov_base +
		    r->writable[nw - 1].iov_len - 1;
	memcpy(r->data, chain->readable, nr * sizeof(r->data[0]));
	if (!take_front(r->data, nr, &h, sizeof(h)))
		return virtio_broken(&blk->v, "request without header");
	in = h.type == T_IN || h.type == T_GET_ID;
	if (in) {
		memcpy(r->data, r->writable, nw * sizeof(r->data[0]));
		r->data[nw - 1].iov_len--; /* the status */
	}
	status = begin(r, &h, nr, nw);
	if (status >= 0)
		answer(r, status);
	return 0;
}

/* There is one. */
static struct blk_req *take(struct blk *blk)
{
	struct blk_req *r = blk->free;

	blk->free = r->next;
	/* They are large: memory that no guest needs is not touched. */
	if (!blk->free && blk->fresh < REQUESTS)
		blk->free = &blk->reqs[blk->fresh++];
	return r;
}

static void serve(struct blk *blk, struct virtq *q)
{
	struct virtq_chain chain;

	while (blk->free && virtq_pop(q, &chain) > 0) {
		struct blk_req *r = take(blk);

		if (handle(blk, q, r, &chain)) {
			r->next = blk->free;
			blk->free = r;
			return;
		}
		finish_done(blk);
		/* Its reader need not wait for those after it. */
		if (r->req.len >= LARGE)
			virtq_flush(q);
	}
	blk->starved |= !blk->free;
}

static void begin_turn(struct blk *blk)
{
	pthread_mutex_lock(&blk->done_lock);
	blk->in_turn = true;
	pthread_mutex_unlock(&blk->done_lock);
}

/* false: something has come back since. */
static bool end_turn(struct blk *blk)
{
	pthread_mutex_lock(&blk->done_lock);
	blk->in_turn = blk->done;
	pthread_mutex_unlock(&blk->done_lock);
	return !blk->in_turn;
}

static void turn(struct blk *blk, uint32_t queues)
{
	begin_turn(blk);
	do {
		finish_done(blk);
		/* There is room again for what was left in any queue. */
		if (blk->starved && blk->free) {
			blk->starved = false;
			queues = UINT32_MAX;
		}
		for (unsigned i = 0; i < QUEUES; i++)
			if (queues & BIT(i))
				serve(blk, blk->v.queue[i]);
	} while (!end_turn(blk));
	for (unsigned i = 0; i < QUEUES; i++)
		virtq_flush(blk->v.queue[i]);
}

static void blk_kick(struct virtio *v, struct virtq *q)
{
	turn(to_blk(v), (uint32_t)BIT(q->index));
}

static void blk_work(struct virtio *v)
{
	turn(to_blk(v), 0);
}

static void drain_locked(struct blk *blk)
{
	/*
	 * Twice when a write without FLUSH becomes a flush; once at least, as
	 * who answered the last one may still be on its way out of here.
	 */
	do {
		block_drain(blk->block);
		finish_done(blk);
	} while (blk->inflight);
	for (unsigned i = 0; i < QUEUES; i++)
		virtq_flush(blk->v.queue[i]);
}

static void blk_stop(struct virtio *v)
{
	drain_locked(to_blk(v));
}

static int blk_start(struct virtio *v)
{
	struct blk *blk = to_blk(v);
	struct blk_req *r, *list = blk->held;

	blk->held = NULL;
	while ((r = list)) {
		struct virtq_chain chain;

		list = r->next;
		if (virtq_again(r->q, r->chain.head, &chain) ||
		    handle(blk, r->q, r, &chain)) {
			/* Broken: the others wait for the reset. */
			r->next = list;
			blk->held = r;
			return -EPROTO;
		}
	}
	return 0;
}

static void blk_forget(struct virtio *v)
{
	struct blk *blk = to_blk(v);
	struct blk_req *r;

	while ((r = blk->held)) {
		blk->held = r->next;
		r->next = blk->free;
		blk->free = r;
	}
}

/* -- birth and death ------------------------------------------------------ */

static void put32(uint8_t *config, unsigned off, uint32_t value)
{
	memcpy(config + off, &value, 4);
}

static void fill_config(const struct blk *blk, uint8_t *config)
{
	uint16_t optimal = (uint16_t)(4096 / blk->block->sector);
	uint64_t capacity = blk->block->size / 512;
	uint16_t queues = (uint16_t)blk->queues;

	memcpy(config, &capacity, 8);
	put32(config, 12, SEG_MAX);
	put32(config, 20, blk->block->sector);
	/* Topology: partitions and file systems are to be aligned to 4 KiB. */
	config[24] = blk->block->sector == 512 ? 3 : 0;
	memcpy(config + 26, &optimal, 2);
	memcpy(config + 34, &queues, 2);
	if (blk->block->readonly)
		return;
	put32(config, 36, MAX_RANGE); /* discard */
	put32(config, 40, 1);
	put32(config, 44, blk->block->sector / 512);
	put32(config, 48, MAX_RANGE); /* write zeroes */
	put32(config, 52, 1);
	config[56] = 1; /* may unmap */
}

static int blk_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	const struct virtio_blk_arg *a = arg;
	struct blk *blk = to_blk(to_virtio(dev));
	int ret;

	if (!a || !a->block)
		return error_set(err, -EINVAL, "%s: no disk", dev->id);
	blk->block = a->block;
	if (a->serial)
		memcpy(blk->serial, a->serial, strnlen(a->serial, ID_SIZE));
	blk->holds = a->hold_full;
	blk->queues = a->queues ? MIN(a->queues, QUEUES) : 1;
	blk->v.offered = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY |
			 (blk->queues > 1 ? F_MQ : 0);
	if (blk->block->readonly)
		blk->v.offered |= F_RO;
	else
		blk->v.offered |= F_WRITE_ZEROES |
				  (blk->block->can_discard ? F_DISCARD : 0);
	blk->reqs = calloc(REQUESTS, sizeof(*blk->reqs));
	if (!blk->reqs)
		return error_errno(err, -ENOMEM, "%s", dev->id);
	blk->free = &blk->reqs[blk->fresh++];
	pthread_mutex_init(&blk->done_lock, NULL);
	ret = virtio_init(&blk->v, err);
	if (ret) {
		pthread_mutex_destroy(&blk->done_lock);
		free(blk->reqs);
		return ret;
	}
	fill_config(blk, blk->v.config);
	return 0;
}

static void blk_finish(struct dev *dev)
{
	struct blk *blk = to_blk(to_virtio(dev));

	virtio_finish(&blk->v);
	pthread_mutex_destroy(&blk->done_lock);
	free(blk->reqs);
}

int virtio_blk_resize(struct dev *dev, uint64_t size, struct husk_error *err)
{
	struct blk *blk = to_blk(to_virtio(dev));
	int ret = 0;

	pthread_mutex_lock(&dev->lock);
	if (size < blk->block->size)
		ret = error_set(err, -EINVAL, "%s: a disk in use can only grow",
				dev->id);
	else if (size % blk->block->sector)
		ret = error_set(err, -EINVAL,
				"%s: the size has to be a multiple of %u",
				dev->id, blk->block->sector);
	if (!ret) {
		drain_locked(blk);
		ret = block_resize(blk->block, size, err);
	}
	if (!ret)
		fill_config(blk, blk->v.config);
	/* There is room again. */
	virtio_wake(&blk->v);
	pthread_mutex_unlock(&dev->lock);
	if (!ret)
		virtio_config_changed(&blk->v);
	return ret;
}

void virtio_blk_replace(struct dev *dev, struct block *block)
{
	struct blk *blk = to_blk(to_virtio(dev));

	pthread_mutex_lock(&dev->lock);
	blk->block = block;
	pthread_mutex_unlock(&dev->lock);
}

bool virtio_blk_holds(struct dev *dev)
{
	struct blk *blk = to_blk(to_virtio(dev));
	bool holds;

	pthread_mutex_lock(&dev->lock);
	holds = blk->held;
	pthread_mutex_unlock(&dev->lock);
	return holds;
}

/* -- saved state ---------------------------------------------------------- */

static void held_state(struct blk *blk, struct state *s)
{
	struct blk_req **at = &blk->held;
	uint16_t n = 0, queue, head;

	for (struct blk_req *r = blk->held; r; r = r->next)
		n++;
	state_u16(s, "held", &n);
	for (; n; n--) {
		queue = *at ? (uint16_t)(*at)->q->index : 0;
		head = *at ? (*at)->chain.head : 0;
		state_u16(s, "held.queue", &queue);
		state_u16(s, "held.head", &head);
		if (!*at) {
			if (queue >= QUEUES || !blk->free) {
				state_reject(s, "a request of no queue");
				return;
			}
			*at = take(blk);
			(*at)->next = NULL;
			(*at)->q = blk->v.queue[queue];
			(*at)->chain.head = head;
		}
		at = &(*at)->next;
	}
}

static void blk_state(struct dev *dev, struct state *s)
{
	virtio_state(dev, s);
	if (state_version(s) >= 3)
		held_state(to_blk(to_virtio(dev)), s);
}

/* The driver knows the saved size: another disk would be a surprise. */
static int blk_check(struct dev *dev)
{
	struct blk *blk = to_blk(to_virtio(dev));
	uint8_t config[60] = { 0 };

	fill_config(blk, config);
	if (memcmp(config, blk->v.config, sizeof(config))) {
		memcpy(blk->v.config, config, sizeof(config));
		return -EINVAL;
	}
	return virtio_check(dev);
}

const struct virtio_class virtio_blk_class = {
	.dev = {
		.name	= "virtio-blk",
		.size	= sizeof(struct blk),
		.version = 3,
		.init	= blk_init,
		.finish	= blk_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= blk_state,
		.check	= blk_check,
	},
	.id	= VIRTIO_ID_BLK,
	.nqueues = QUEUES,
	.quick_queues = (1 << QUEUES) - 1,
	.config_size = 60,
	.pci_class = 0x010000,
	.start	= blk_start,
	.stop	= blk_stop,
	.forget	= blk_forget,
	.kick	= blk_kick,
	.work	= blk_work,
};
