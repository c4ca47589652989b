/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs.c - virtio file system device: FUSE requests from queues to a share
 *
 * The device's thread takes requests off the queues; workers, more of them as
 * long as all are busy, have the share answer them.  A worker gives its answer
 * to the driver itself when the device is not in use at that moment, else the
 * device's thread does.  Where a doorbell costs less than to wake a thread, the
 * vCPU that rings it is the worker of what the host has in memory, as long as
 * the host takes no longer than that.
 *
 * What has not begun when the device stops, and who waits for a lock, is
 * remembered by its place in the queue and begins anew afterwards, also in a
 * machine that was restored.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/thread.h"
#include "vm/fs/fs.h"
#include "vm/virtio/virtq.h"

enum {
	QUEUES = 1 + VIRTIO_FS_QUEUES, /* the first is for what cannot wait */
	TAG_LEN = 36,
	CONFIG_LEN = TAG_LEN + 4,
	WORKERS = 16,
	REQUESTS = 512, /* taken; the rest waits in the queues */
	HELD = QUEUES * VIRTQ_MAX_SIZE,
	RETRY_MS = 20,	      /* for a lock that the host holds */
	LOCK_WAIT_MS = 30000, /* then the driver may look for signals */
	QUICK_MOST = 16,      /* by one doorbell */
	/*
	 * Two that take longer, with few between, send all to the workers for so
	 * many times as long.  One may be the host's scheduler.
	 */
	QUICK_NS = 1000000,
	QUICK_FEW = 16,
	SLOW_TIMES = 20,
};

struct request {
	struct request *next;
	struct virtq *q;
	ssize_t len;	/* of the answer */
	uint64_t since; /* it waits for a lock; ms */
	unsigned unlocks;
	struct virtq_chain chain; /* its arrays are here: */
	struct iovec iov[];
};

/* Where a request that was taken back stands. */
struct held {
	uint16_t queue, head;
};

/* (i) constant   (v) under dev->lock   (p) under lock */
struct fs_dev {
	struct virtio v;
	struct fs *fs;	     /* (i) */
	struct held *held;   /* (v) */
	unsigned nheld;	     /* (v) */
	uint64_t slow_until; /* (v) */
	unsigned nquick;     /* (v) since one was slow */

	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	pthread_t worker[WORKERS];	   /* (p) */
	unsigned nworkers, nidle, nactive; /* (p) */
	unsigned nrequests, ntodo;	   /* (p) */
	struct request *todo, **todo_end;  /* (p) */
	struct request *waiting, *done;	   /* (p) */
	bool stopping, quit;		   /* (p) */
};

static struct fs_dev *to_fs(struct virtio *v)
{
	return container_of(v, struct fs_dev, v);
}

static uint64_t now_ms(void)
{
	return loop_now() / 1000000;
}

/* -- answers -------------------------------------------------------------- */

/* Both with dev->lock held. */
static void answer(struct fs_dev *d, struct virtq *q,
		   const struct virtq_chain *chain, ssize_t len)
{
	if (len < 0)
		virtio_broken(&d->v, "queue %u: not a FUSE request", q->index);
	else
		virtq_push(q, chain, (uint32_t)len);
}

static void finish_done(struct fs_dev *d)
{
	struct request *r, *next;
	uint32_t queues = 0;

	pthread_mutex_lock(&d->lock);
	r = d->done;
	d->done = NULL;
	for (struct request *k = r; k; k = k->next)
		d->nrequests--;
	pthread_mutex_unlock(&d->lock);
	for (; r; r = next) {
		next = r->next;
		answer(d, r->q, &r->chain, r->len);
		queues |= (uint32_t)BIT(r->q->index);
		free(r);
	}
	for (unsigned i = 0; i < QUEUES; i++)
		if (queues & BIT(i))
			virtq_flush(d->v.queue[i]);
}

/* -- workers -------------------------------------------------------------- */

static void put_todo(struct fs_dev *d, struct request *r)
{
	r->next = NULL;
	*d->todo_end = r;
	d->todo_end = &r->next;
	d->ntodo++;
}

/* Those whose lock may be free, or whose time has come. */
static void retry_waiting(struct fs_dev *d, bool all)
{
	struct request **p = &d->waiting, *r;
	unsigned unlocks = fs_unlocks(d->fs);

	while ((r = *p)) {
		if (!all && r->unlocks == unlocks) {
			p = &r->next;
			continue;
		}
		*p = r->next;
		put_todo(d, r);
	}
}

/* With lock held, which is left for a while.  false: the end. */
static bool next_request(struct fs_dev *d, struct request **out)
{
	struct timespec ts;

	for (;;) {
		if (d->quit)
			return false;
		if (!d->stopping && d->waiting)
			retry_waiting(d, false);
		if (!d->stopping && d->todo)
			break;
		d->nidle++;
		if (d->stopping || !d->waiting) {
			pthread_cond_wait(&d->work, &d->lock);
		} else {
			clock_gettime(CLOCK_MONOTONIC, &ts);
			ts.tv_nsec += RETRY_MS * 1000000l;
			if (ts.tv_nsec >= 1000000000) {
				ts.tv_nsec -= 1000000000;
				ts.tv_sec++;
			}
			if (pthread_cond_timedwait(&d->work, &d->lock, &ts) ==
				    ETIMEDOUT &&
			    !d->stopping)
				retry_waiting(d, true);
		}
		d->nidle--;
	}
	*out = d->todo;
	d->ntodo--;
	d->todo = (*out)->next;
	if (!d->todo)
		d->todo_end = &d->todo;
	return true;
}

static void serve(struct fs_dev *d, struct request *r)
{
	struct fs_message m = {
		.in = r->chain.readable,
		.nin = r->chain.nreadable,
		.out = r->chain.writable,
		.nout = r->chain.nwritable,
		.last = r->since && now_ms() - r->since > LOCK_WAIT_MS,
	};

	r->unlocks = fs_unlocks(d->fs);
	r->len = fs_serve(d->fs, &m);
	if (r->len == FS_WAIT && !r->since)
		r->since = now_ms();
}

static void *worker_thread(void *arg)
{
	struct fs_dev *d = arg;
	struct request *r;

	fs_thread_init(d->fs);
	pthread_mutex_lock(&d->lock);
	while (next_request(d, &r)) {
		bool waits;

		d->nactive++;
		pthread_mutex_unlock(&d->lock);
		serve(d, r);
		pthread_mutex_lock(&d->lock);
		waits = r->len == FS_WAIT;
		if (waits) {
			r->next = d->waiting;
			d->waiting = r;
		} else {
			r->next = d->done;
			d->done = r;
		}
		if (!--d->nactive)
			pthread_cond_broadcast(&d->idle);
		if (waits)
			continue;
		pthread_mutex_unlock(&d->lock);
		if (!pthread_mutex_trylock(&d->v.dev.lock)) {
			finish_done(d);
			pthread_mutex_unlock(&d->v.dev.lock);
		} else {
			virtio_wake(&d->v);
		}
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

static void add_worker(struct fs_dev *d)
{
	if (d->nworkers < WORKERS &&
	    !thread_start(&d->worker[d->nworkers], "husk-fs", worker_thread, d))
		d->nworkers++;
}

/* -- requests ------------------------------------------------------------- */

static struct request *make_request(struct virtq *q,
				    const struct virtq_chain *chain)
{
	unsigned nr = chain->nreadable, nw = chain->nwritable;
	struct request *r = malloc(sizeof(*r) + (nr + nw) * sizeof(r->iov[0]) +
				   nw * sizeof(uint64_t));
	uint64_t *gpa;

	if (!r)
		return NULL;
	gpa = (uint64_t *)(void *)(r->iov + nr + nw);
	*r = (struct request){ .q = q };
	if (nr)
		memcpy(r->iov, chain->readable, nr * sizeof(r->iov[0]));
	if (nw) {
		memcpy(r->iov + nr, chain->writable, nw * sizeof(r->iov[0]));
		memcpy(gpa, chain->writable_gpa, nw * sizeof(*gpa));
	}
	r->chain = (struct virtq_chain){
		.readable = r->iov,
		.writable = r->iov + nr,
		.writable_gpa = gpa,
		.nreadable = nr,
		.nwritable = nw,
		.head = chain->head,
	};
	return r;
}

static int begin(struct fs_dev *d, struct virtq *q,
		 const struct virtq_chain *chain)
{
	struct request *r = make_request(q, chain);

	if (!r)
		return virtio_broken(&d->v, "no memory for a request");
	pthread_mutex_lock(&d->lock);
	put_todo(d, r);
	d->nrequests++;
	if (d->ntodo > d->nidle)
		add_worker(d);
	pthread_cond_signal(&d->work);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

/*
 * With dev->lock held, so by no more than one vCPU at a time.  false: it is for
 * the workers.
 */
static bool serve_here(struct fs_dev *d, struct virtq *q,
		       const struct virtq_chain *chain)
{
	struct fs_message m = {
		.in = chain->readable,
		.nin = chain->nreadable,
		.out = chain->writable,
		.nout = chain->nwritable,
		.quick = true,
	};
	uint64_t began = loop_now(), took;
	ssize_t len;

	if (began < d->slow_until)
		return false;
	fs_thread_init(d->fs);
	len = fs_serve(d->fs, &m);
	took = loop_now() - began;
	if (took <= QUICK_NS) {
		d->nquick++;
	} else {
		if (d->nquick < QUICK_FEW)
			d->slow_until = began + took * SLOW_TIMES;
		d->nquick = 0;
	}
	if (len != FS_WAIT)
		answer(d, q, chain, len);
	return len != FS_WAIT;
}

static bool has_room(struct fs_dev *d)
{
	bool room;

	pthread_mutex_lock(&d->lock);
	room = d->nrequests < REQUESTS;
	pthread_mutex_unlock(&d->lock);
	return room;
}

static void fs_kick(struct virtio *v, struct virtq *q)
{
	struct fs_dev *d = to_fs(v);
	bool on_vcpu = !pthread_equal(pthread_self(), v->thread);
	struct virtq_chain chain;
	unsigned n = 0;

	while (has_room(d) && virtq_pop(q, &chain) > 0) {
		if (on_vcpu && n++ < QUICK_MOST && serve_here(d, q, &chain))
			continue;
		if (begin(d, q, &chain))
			break;
	}
	virtq_flush(q);
}

static void fs_work(struct virtio *v)
{
	finish_done(to_fs(v));
	/* There is room again for what kick may have left in the queues. */
	for (unsigned i = 0; i < QUEUES; i++)
		fs_kick(v, v->queue[i]);
}

/* -- stopping and starting ------------------------------------------------ */

static void hold(struct fs_dev *d, struct request **list)
{
	struct request *r, *next;

	for (r = *list; r; r = next) {
		next = r->next;
		d->held[d->nheld++] =
			(struct held){ r->q->index, r->chain.head };
		d->nrequests--;
		free(r);
	}
	*list = NULL;
}

static void fs_stop(struct virtio *v)
{
	struct fs_dev *d = to_fs(v);

	pthread_mutex_lock(&d->lock);
	d->stopping = true;
	while (d->nactive)
		pthread_cond_wait(&d->idle, &d->lock);
	hold(d, &d->todo);
	d->todo_end = &d->todo;
	d->ntodo = 0;
	hold(d, &d->waiting);
	pthread_mutex_unlock(&d->lock);
	finish_done(d);
}

static int fs_start(struct virtio *v)
{
	struct fs_dev *d = to_fs(v);
	unsigned n = d->nheld;

	d->nheld = 0;
	pthread_mutex_lock(&d->lock);
	d->stopping = false;
	pthread_mutex_unlock(&d->lock);
	for (unsigned i = 0; i < n; i++) {
		struct virtq *q = v->queue[d->held[i].queue];
		struct virtq_chain chain;

		if (virtq_again(q, d->held[i].head, &chain) ||
		    begin(d, q, &chain))
			return -EPROTO;
	}
	return 0;
}

static void fs_forget(struct virtio *v)
{
	struct fs_dev *d = to_fs(v);

	d->nheld = 0;
	fs_reset(d->fs);
}

/* -- birth and death ------------------------------------------------------ */

static void free_parts(struct fs_dev *d)
{
	fs_close(d->fs);
	free(d->held);
	pthread_cond_destroy(&d->idle);
	pthread_cond_destroy(&d->work);
	pthread_mutex_destroy(&d->lock);
}

static void share_log(void *sink, const char *text)
{
	dev_log(sink, "%s", text);
}

static int fs_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	const struct virtio_fs_arg *a = arg;
	struct fs_dev *d = to_fs(to_virtio(dev));
	size_t tag = a && a->tag ? strlen(a->tag) : 0;
	struct fs_config cfg;
	pthread_condattr_t attr;
	uint32_t queues;
	int ret;

	if (!tag || tag > TAG_LEN)
		return error_set(err, -EINVAL,
				 "%s: a tag of 1 to %d bytes is needed",
				 dev->id, TAG_LEN);
	cfg = *a->config;
	cfg.log = share_log;
	cfg.sink = dev;
	pthread_mutex_init(&d->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->work, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&d->idle, NULL);
	d->todo_end = &d->todo;
	d->stopping = true;
	d->held = calloc(HELD, sizeof(*d->held));
	ret = d->held ? fs_open(&cfg, &d->fs, err)
		      : error_errno(err, -ENOMEM, "%s", dev->id);
	if (!ret)
		ret = virtio_init(&d->v, err);
	if (ret) {
		free_parts(d);
		return ret;
	}
	queues = a->queues ? MIN(a->queues, VIRTIO_FS_QUEUES) : 1;
	memcpy(d->v.config, a->tag, tag);
	memcpy(d->v.config + TAG_LEN, &queues, 4);
	return 0;
}

static void fs_finish(struct dev *dev)
{
	struct fs_dev *d = to_fs(to_virtio(dev));

	virtio_finish(&d->v);
	pthread_mutex_lock(&d->lock);
	d->quit = true;
	pthread_cond_broadcast(&d->work);
	pthread_mutex_unlock(&d->lock);
	for (unsigned i = 0; i < d->nworkers; i++)
		pthread_join(d->worker[i], NULL);
	free_parts(d);
}

int virtio_fs_swap(struct dev *dev, const char *path, struct husk_error *err)
{
	return fs_swap(to_fs(to_virtio(dev))->fs, path, err);
}

/* -- saved state ---------------------------------------------------------- */

static void fs_dev_state(struct dev *dev, struct state *s)
{
	struct fs_dev *d = to_fs(to_virtio(dev));
	uint16_t n = (uint16_t)d->nheld;

	virtio_state(dev, s);
	state_u16(s, "held", &n);
	if (n > HELD) {
		state_reject(s, "more requests than places");
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		state_u16(s, "held.queue", &d->held[i].queue);
		state_u16(s, "held.head", &d->held[i].head);
	}
	d->nheld = n;
	fs_state(d->fs, s);
}

static int fs_check(struct dev *dev)
{
	struct fs_dev *d = to_fs(to_virtio(dev));

	for (unsigned i = 0; i < d->nheld; i++)
		if (d->held[i].queue >= QUEUES)
			return -EINVAL;
	return virtio_check(dev);
}

const struct virtio_class virtio_fs_class = {
	.dev = {
		.name	= "virtio-fs",
		.size	= sizeof(struct fs_dev),
		.version = 1,
		.init	= fs_init,
		.finish	= fs_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= fs_dev_state,
		.check	= fs_check,
	},
	.id	= VIRTIO_ID_FS,
	.nqueues = QUEUES,
	.queue_size = VIRTQ_MAX_SIZE,
	.quick_queues = (1 << QUEUES) - 1,
	.config_size = CONFIG_LEN,
	.pci_class = 0x018000,
	.start	= fs_start,
	.stop	= fs_stop,
	.forget	= fs_forget,
	.kick	= fs_kick,
	.work	= fs_work,
};
