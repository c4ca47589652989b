/* SPDX-License-Identifier: Apache-2.0 */
/*
 * balloon.c - virtio memory balloon: what the guest does not use goes back
 *
 * Three ways lead to mem_discard().  The guest inflates when the target asks
 * for it.  It reports free blocks of 2 MiB and more by itself, which is what
 * brings memory back with no command, but Linux takes 30 seconds to get
 * through them.  So reports that give much start a round of hints: the driver
 * takes all free blocks, names them one by one, and keeps them until the
 * round is done.
 *
 * A hinted block may only be discarded while it is certainly the driver's.
 * Under pressure Linux gives hinted blocks away before the round is done, and
 * a discard that comes late would empty a page in use.  But it does that only
 * with blocks whose doorbell has been rung; so that queue is served while the
 * vCPU is still in its doorbell (virtio_class.inline_queues).
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "husk/vm.h"
#include "vm/virtio/virtq.h"

enum { INFLATE, DEFLATE, STATS, HINT, REPORT, QUEUES };

#define F_STATS	 BIT(1)
#define F_OOM	 BIT(2) /* the guest may take memory back when it has none */
#define F_HINT	 BIT(3)
#define F_POISON BIT(4)
#define F_REPORT BIT(5)

enum { /* config space, 32 bits each */
       C_PAGES = 0,
       C_ACTUAL = 4,
       C_HINT_ID = 8,
       C_POISON = 12,
       C_SIZE = 16,
};

enum { ID_STOP = 0, ID_DONE = 1, ID_FIRST = 2 };

enum {
	PAGE = 4096,		/* the balloon's, whatever the guest's is */
	PFNS_MAX = 1 << 18,	/* in one request; drivers send 256 to 1024 */
	STATS_MAX = 64,		/* entries that are looked at */
	STAT_SIZE = 10,		/* u16 tag, u64 value */
	ROUND_AFTER = 64 << 20, /* bytes by reports that start a round */
};

#define ROUND_PAUSE_NS 3000000000ull /* between two rounds */

/* (i) set in init   all else under dev->lock */
struct balloon {
	struct virtio v;
	uint64_t memory; /* (i) bytes */
	bool hints;	 /* (i) rounds are started */
	/* What config shall say; the driver could write there, too. */
	uint32_t pages, hint_id;
	uint32_t next_id;
	bool hinting; /* the driver has begun with the current id */

	uint64_t reported;    /* bytes since the last round */
	uint64_t round_ended; /* when */

	bool has_request; /* of the driver's, to be answered for new numbers */
	struct virtq_chain request;
	bool wanted; /* as soon as there is a request */
	uint64_t answers;
	pthread_cond_t answered;

	struct vm_balloon_stats stats; /* but for target and actual */
};

static struct balloon *to_balloon(struct dev *dev)
{
	return container_of(dev, struct balloon, v.dev);
}

static uint32_t config_get(const struct balloon *b, unsigned off)
{
	uint32_t value;

	memcpy(&value, b->v.config + off, 4);
	return value;
}

static void config_set(struct balloon *b, unsigned off, uint32_t value)
{
	memcpy(b->v.config + off, &value, 4);
}

/* Does a free page of the guest have to keep what is in it? */
static bool keeps_poison(const struct balloon *b)
{
	return b->v.accepted & F_POISON && config_get(b, C_POISON);
}

/* -- inflating ------------------------------------------------------------ */

/* A run of pages that is not yet discarded. */
struct run {
	struct balloon *b;
	uint64_t gpa, len;
};

static int run_end(struct run *r)
{
	struct guest_mem *mem = r->b->v.dev.env->mem;
	uint64_t len = r->len, freed;

	r->len = 0;
	if (!len)
		return 0;
	if (mem_discard(mem, r->gpa, len, &freed))
		return virtio_broken(&r->b->v, "page %llx+%llx is not memory",
				     (unsigned long long)r->gpa,
				     (unsigned long long)len);
	r->b->stats.inflated += freed;
	return 0;
}

static int run_add(struct run *r, uint32_t pfn)
{
	uint64_t gpa = (uint64_t)pfn * PAGE;
	int ret;

	/* Linux inflates downwards as often as upwards. */
	if (r->len && gpa == r->gpa + r->len) {
		r->len += PAGE;
	} else if (r->len && gpa + PAGE == r->gpa) {
		r->gpa = gpa;
		r->len += PAGE;
	} else {
		ret = run_end(r);
		if (ret)
			return ret;
		r->gpa = gpa;
		r->len = PAGE;
	}
	return 0;
}

static int inflate(struct balloon *b, const struct virtq_chain *chain)
{
	struct run run = { .b = b };
	uint64_t bytes = 0;
	unsigned have = 0;
	uint8_t pfn[4];

	for (unsigned i = 0; i < chain->nreadable; i++) {
		const uint8_t *p = chain->readable[i].iov_base;

		bytes += chain->readable[i].iov_len;
		if (bytes > 4ull * PFNS_MAX)
			return virtio_broken(&b->v, "too many pages at once");
		for (size_t k = 0; k < chain->readable[i].iov_len; k++) {
			uint32_t value;
			int ret;

			pfn[have++] = p[k];
			if (have < 4)
				continue;
			have = 0;
			memcpy(&value, pfn, 4);
			ret = run_add(&run, value);
			if (ret)
				return ret;
		}
	}
	return run_end(&run);
}

/* -- free pages ----------------------------------------------------------- */

/* Everything the chain could write to; pages that it covers only in part
 * stay.  How much the host got back. */
static uint64_t discard_chain(struct balloon *b,
			      const struct virtq_chain *chain)
{
	uint64_t sum = 0, freed;

	if (keeps_poison(b))
		return 0;
	for (unsigned i = 0; i < chain->nwritable; i++) {
		uint64_t from = ALIGN_UP(chain->writable_gpa[i], PAGE);
		uint64_t to =
			chain->writable_gpa[i] + chain->writable[i].iov_len;

		to = ALIGN_DOWN(to, PAGE);
		if (to > from &&
		    !mem_discard(b->v.dev.env->mem, from, to - from, &freed))
			sum += freed;
	}
	return sum;
}

static void hint_id(struct balloon *b, uint32_t id)
{
	b->hint_id = id;
	config_set(b, C_HINT_ID, id);
	virtio_config_changed_locked(&b->v);
}

static void maybe_start_round(struct balloon *b)
{
	uint64_t now = loop_now();

	if (!b->hints || !(b->v.accepted & F_HINT) || keeps_poison(b) ||
	    b->reported < ROUND_AFTER || b->hint_id >= ID_FIRST ||
	    now - b->round_ended < ROUND_PAUSE_NS)
		return;
	b->reported = 0;
	hint_id(b, b->next_id);
	b->next_id = b->next_id == UINT32_MAX ? ID_FIRST : b->next_id + 1;
}

static void report(struct balloon *b, const struct virtq_chain *chain)
{
	uint64_t freed = discard_chain(b, chain);

	b->stats.reported += freed;
	b->reported += freed;
	maybe_start_round(b);
}

static void hint_command(struct balloon *b, const struct virtq_chain *chain)
{
	uint32_t id;

	if (chain->nreadable != 1 || chain->readable->iov_len != sizeof(id)) {
		virtio_broken(&b->v, "a hint's command has %u pieces",
			      chain->nreadable);
		return;
	}
	memcpy(&id, chain->readable->iov_base, sizeof(id));
	if (id >= ID_FIRST) {
		b->hinting = id == b->hint_id;
		return;
	}
	/* That was all.  From now on the driver may use the pages. */
	b->hinting = false;
	if (b->hint_id >= ID_FIRST) {
		b->round_ended = loop_now();
		b->stats.rounds++;
		hint_id(b, ID_DONE);
	}
}

static void hint(struct balloon *b, const struct virtq_chain *chain)
{
	if (chain->nreadable)
		hint_command(b, chain);
	else if (b->hinting)
		b->stats.hinted += discard_chain(b, chain);
}

/* -- statistics ----------------------------------------------------------- */

static void take_stat(struct vm_balloon_stats *s, unsigned tag, uint64_t value)
{
	uint64_t *const field[] = {
		&s->swap_in,	      &s->swap_out, &s->major_faults,
		&s->minor_faults,     &s->free,	    &s->total,
		&s->available,	      &s->caches,   &s->hugetlb_allocations,
		&s->hugetlb_failures,
	};

	if (tag < ARRAY_SIZE(field))
		*field[tag] = value;
}

static void parse_stats(struct balloon *b, const struct virtq_chain *chain)
{
	uint8_t buf[STATS_MAX * STAT_SIZE];
	size_t len = 0;

	for (unsigned i = 0; i < chain->nreadable && len < sizeof(buf); i++) {
		size_t n = MIN(chain->readable[i].iov_len, sizeof(buf) - len);

		memcpy(buf + len, chain->readable[i].iov_base, n);
		len += n;
	}
	for (size_t at = 0; at + STAT_SIZE <= len; at += STAT_SIZE) {
		uint16_t tag;
		uint64_t value;

		memcpy(&tag, buf + at, 2);
		memcpy(&value, buf + at + 2, 8);
		take_stat(&b->stats, tag, value);
	}
	b->stats.has_guest = true;
	b->answers++;
	pthread_cond_broadcast(&b->answered);
}

static void ask_stats(struct balloon *b)
{
	b->wanted = !b->has_request;
	if (!b->has_request)
		return;
	b->has_request = false;
	virtq_push(b->v.queue[STATS], &b->request, 0);
	virtq_flush(b->v.queue[STATS]);
}

/* The driver's first request has numbers already; it is kept to ask again. */
static void take_stats(struct balloon *b, const struct virtq_chain *chain)
{
	if (b->has_request)
		virtq_push(b->v.queue[STATS], &b->request, 0);
	parse_stats(b, chain);
	b->request = (struct virtq_chain){ .head = chain->head };
	b->has_request = true;
	if (b->wanted)
		ask_stats(b);
}

/* -- the device ----------------------------------------------------------- */

static void balloon_kick(struct virtio *v, struct virtq *q)
{
	struct balloon *b = to_balloon(&v->dev);
	struct virtq_chain chain;
	unsigned n = 0;

	/* A driver that never ends must not keep the lock. */
	while (n++ < VIRTQ_MAX_SIZE && virtq_pop(q, &chain) > 0) {
		if (q == v->queue[INFLATE])
			inflate(b, &chain);
		else if (q == v->queue[HINT])
			hint(b, &chain);
		else if (q == v->queue[REPORT])
			report(b, &chain);
		else if (q == v->queue[STATS])
			take_stats(b, &chain);
		if (q != v->queue[STATS])
			virtq_push(q, &chain, 0);
	}
	virtq_flush(q);
	if (n <= VIRTQ_MAX_SIZE)
		return;
	/* The rest comes without its vCPU waiting for it. */
	if (q == v->queue[HINT])
		b->hinting = false;
	virtq_ring(q);
}

static int balloon_start(struct virtio *v)
{
	/* What was hinted before may be in use by now. */
	to_balloon(&v->dev)->hinting = false;
	return 0;
}

static void balloon_stop(struct virtio *v)
{
	struct balloon *b = to_balloon(&v->dev);

	/* The request is in the queue again, for whoever goes on. */
	if (b->has_request)
		virtq_unpop(v->queue[STATS], 1);
	b->has_request = false;
}

static void balloon_forget(struct virtio *v)
{
	struct balloon *b = to_balloon(&v->dev);

	b->hinting = b->wanted = b->stats.has_guest = false;
	b->reported = 0;
	config_set(b, C_ACTUAL, 0);
	b->hint_id = ID_STOP;
	config_set(b, C_HINT_ID, ID_STOP);
	config_set(b, C_POISON, 0);
	pthread_cond_broadcast(&b->answered);
}

static void balloon_config_written(struct virtio *v, unsigned off, unsigned len)
{
	struct balloon *b = to_balloon(&v->dev);

	/* The other two fields are the driver's. */
	config_set(b, C_PAGES, b->pages);
	config_set(b, C_HINT_ID, b->hint_id);
}

static void fill_stats(const struct balloon *b, struct vm_balloon_stats *s)
{
	*s = b->stats;
	s->target = b->memory - (uint64_t)b->pages * PAGE;
	s->actual = b->memory;
	/* The driver's word. */
	s->actual -= MIN((uint64_t)config_get(b, C_ACTUAL) * PAGE, b->memory);
}

int virtio_balloon_set_target(struct dev *dev, uint64_t bytes)
{
	struct balloon *b = to_balloon(dev);

	if (bytes > b->memory)
		return -EINVAL;
	pthread_mutex_lock(&dev->lock);
	b->pages = (uint32_t)((b->memory - bytes) / PAGE);
	config_set(b, C_PAGES, b->pages);
	virtio_config_changed_locked(&b->v);
	pthread_mutex_unlock(&dev->lock);
	return 0;
}

static struct timespec deadline(int timeout_ms)
{
	uint64_t at = loop_now() + (uint64_t)timeout_ms * 1000000;

	return (struct timespec){ (time_t)(at / 1000000000),
				  (long)(at % 1000000000) };
}

int virtio_balloon_stats(struct dev *dev, int timeout_ms,
			 struct vm_balloon_stats *stats)
{
	struct timespec until = deadline(MAX(timeout_ms, 0));
	struct balloon *b = to_balloon(dev);
	uint64_t before;
	int ret = 0;

	pthread_mutex_lock(&dev->lock);
	before = b->answers;
	if (timeout_ms && b->v.started && b->v.accepted & F_STATS)
		ask_stats(b);
	else if (timeout_ms > 0)
		ret = ETIMEDOUT;
	while (timeout_ms > 0 && !ret && b->answers == before && b->v.started)
		ret = pthread_cond_clockwait(&b->answered, &dev->lock,
					     CLOCK_MONOTONIC, &until);
	fill_stats(b, stats);
	pthread_mutex_unlock(&dev->lock);
	return -ret;
}

static int balloon_init(struct dev *dev, const void *arg,
			struct husk_error *err)
{
	const struct virtio_balloon_arg *a = arg;
	struct balloon *b = to_balloon(dev);
	int ret;

	b->memory = a->memory;
	b->hints = a->hinting && a->reporting;
	b->next_id = ID_FIRST;
	b->v.offered = F_STATS | F_POISON;
	/* The queues have fixed numbers, so these are offered as well when
	 * they are not used: what comes is not discarded, or nothing comes. */
	b->v.offered |= F_HINT;
	b->v.offered |= a->reporting ? F_REPORT : 0;
	b->v.offered |= a->oom ? F_OOM : 0;
	pthread_cond_init(&b->answered, NULL);
	ret = virtio_init(&b->v, err);
	if (ret) {
		pthread_cond_destroy(&b->answered);
		return ret;
	}
	b->pages = (uint32_t)((b->memory - MIN(a->target, b->memory)) / PAGE);
	config_set(b, C_PAGES, b->pages);
	return 0;
}

static void balloon_finish(struct dev *dev)
{
	struct balloon *b = to_balloon(dev);

	virtio_finish(&b->v);
	pthread_cond_destroy(&b->answered);
}

static void balloon_state(struct dev *dev, struct state *s)
{
	struct balloon *b = to_balloon(dev);

	virtio_state(dev, s);
	state_u32(s, "next_id", &b->next_id);
}

static int balloon_check(struct dev *dev)
{
	struct balloon *b = to_balloon(dev);
	uint32_t pages = config_get(b, C_PAGES);
	uint32_t id = config_get(b, C_HINT_ID);

	b->hinting = b->wanted = b->has_request = false;
	if (pages > b->memory / PAGE || b->next_id < ID_FIRST) {
		config_set(b, C_PAGES, b->pages);
		config_set(b, C_HINT_ID, b->hint_id);
		b->next_id = ID_FIRST;
		return -EINVAL;
	}
	b->pages = pages;
	b->hint_id = id;
	return virtio_check(dev);
}

const struct virtio_class virtio_balloon_class = {
	.dev = {
		.name	= "virtio-balloon",
		.size	= sizeof(struct balloon),
		.version = 1,
		.init	= balloon_init,
		.finish	= balloon_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= balloon_state,
		.check	= balloon_check,
	},
	.id	= VIRTIO_ID_BALLOON,
	.nqueues = QUEUES,
	.inline_queues = BIT(HINT),
	.config_size = C_SIZE,
	.pci_class = 0x00ff00,
	.start	= balloon_start,
	.stop	= balloon_stop,
	.forget	= balloon_forget,
	.kick	= balloon_kick,
	.config_written = balloon_config_written,
};
