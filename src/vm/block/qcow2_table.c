/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2_table.c - tables of a qcow2 image in memory, and writing them back
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

enum { BUCKETS = 1024 };

/* -- the cache ------------------------------------------------------------ */

int q2_cache_init(struct qcow2 *q, struct q2_cache *c)
{
	c->nbuckets = BUCKETS;
	c->max = MAX(Q2_CACHE >> q->bits, 16);
	c->bucket = calloc(c->nbuckets, sizeof(*c->bucket));
	return c->bucket ? 0 : -ENOMEM;
}

static struct q2_table **bucket(struct q2_cache *c, uint64_t offset)
{
	/* A multiple of a power of two: the upper bits make the difference. */
	return &c->bucket[offset * 0x9e3779b97f4a7c15ull >> 54];
}

static void lru_del(struct q2_cache *c, struct q2_table *t)
{
	*(t->newer ? &t->newer->older : &c->newest) = t->older;
	*(t->older ? &t->older->newer : &c->oldest) = t->newer;
}

static void lru_add(struct q2_cache *c, struct q2_table *t)
{
	t->newer = NULL;
	t->older = c->newest;
	*(c->newest ? &c->newest->newer : &c->oldest) = t;
	c->newest = t;
}

static void forget(struct q2_cache *c, struct q2_table *t)
{
	struct q2_table **p = bucket(c, t->offset);

	while (*p != t)
		p = &(*p)->chain;
	*p = t->chain;
	lru_del(c, t);
	c->count--;
	c->dirty -= t->dirty;
	free(t->data);
	free(t);
}

void q2_cache_finish(struct q2_cache *c)
{
	while (c->newest)
		forget(c, c->newest);
	free(c->bucket);
	c->bucket = NULL;
}

struct q2_table *q2_cached(struct q2_cache *c, uint64_t offset)
{
	struct q2_table *t = *bucket(c, offset);

	while (t && t->offset != offset)
		t = t->chain;
	if (t && t != c->newest) {
		lru_del(c, t);
		lru_add(c, t);
	}
	return t;
}

void q2_drop(struct q2_cache *c, uint64_t offset)
{
	struct q2_table *t = q2_cached(c, offset);

	if (t)
		forget(c, t);
}

/*
 * Dirty tables stay: to write one at any time would break the order.  q2_sync()
 * is called before there are many.
 */
static void make_room(struct q2_cache *c)
{
	struct q2_table *t = c->oldest, *newer;

	for (; t && c->count >= c->max; t = newer) {
		newer = t->newer;
		/* The newest ones are in the hands of callers. */
		if (!t->dirty && newer && newer->newer)
			forget(c, t);
	}
}

static int add(struct qcow2 *q, struct q2_cache *c, uint64_t offset,
	       struct q2_table **out)
{
	struct q2_table *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->data = calloc(1, q->cluster);
	if (!t->data) {
		free(t);
		return -ENOMEM;
	}
	make_room(c);
	t->offset = offset;
	t->chain = *bucket(c, offset);
	*bucket(c, offset) = t;
	lru_add(c, t);
	c->count++;
	*out = t;
	return 0;
}

int q2_load(struct qcow2 *q, struct q2_cache *c, uint64_t offset,
	    struct q2_table **out)
{
	int ret;

	*out = q2_cached(c, offset);
	if (*out)
		return 0;
	if (offset % q->cluster || offset < q->cluster ||
	    offset >= atomic_load(&q->store->size))
		return q2_corrupt(q);
	/* The same cluster cannot be of both kinds. */
	if (q2_cached(c == &q->l2 ? &q->ref : &q->l2, offset))
		return q2_corrupt(q);
	ret = add(q, c, offset, out);
	if (ret)
		return ret;
	ret = store_read(q->store, offset, (*out)->data, q->cluster);
	if (ret)
		forget(c, *out);
	return ret;
}

int q2_fresh(struct qcow2 *q, struct q2_cache *c, uint64_t offset,
	     struct q2_table **out)
{
	int ret;

	q2_drop(c, offset);
	ret = add(q, c, offset, out);
	if (!ret)
		q2_touch(c, *out);
	return ret;
}

void q2_touch(struct q2_cache *c, struct q2_table *t)
{
	c->dirty += !t->dirty;
	t->dirty = true;
}

int q2_write_cache(struct qcow2 *q, struct q2_cache *c)
{
	for (struct q2_table *t = c->oldest; t && c->dirty; t = t->newer) {
		int ret;

		if (!t->dirty)
			continue;
		ret = store_write(q->store, t->offset, t->data, q->cluster);
		if (ret)
			return ret;
		t->dirty = false;
		c->dirty--;
	}
	return 0;
}

/* -- the header ----------------------------------------------------------- */

int q2_write_header(struct qcow2 *q)
{
	return store_write(q->store, 0, q->head, sizeof(q->head));
}

int q2_set_incompat(struct qcow2 *q, uint64_t bit, bool on)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t bits = be64toh(h->incompat);

	h->incompat = htobe64(on ? bits | bit : bits & ~bit);
	return q2_write_header(q);
}

int q2_corrupt(struct qcow2 *q)
{
	bool first = !q->corrupt;

	q->corrupt = true;
	if (first && !q->block.readonly && !q->store->readonly)
		q2_set_incompat(q, Q2_INCOMPAT_CORRUPT, true);
	return -EIO;
}

/* -- the order of writing ------------------------------------------------- */

bool q2_dirty(const struct qcow2 *q)
{
	return q->l1_dirty || q->l2.dirty || q->nfreed ||
	       (q->ref.dirty && !q->lazy);
}

static int write_l1(struct qcow2 *q)
{
	size_t n = q->l1_size;
	uint64_t *disk = malloc(n * 8 + 1);
	int ret;

	if (!disk)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		disk[i] = htobe64(q->l1[i]);
	ret = store_write(q->store, q->l1_offset, disk, n * 8);
	free(disk);
	if (!ret)
		q->l1_dirty = false;
	return ret;
}

static int write_refcounts(struct qcow2 *q)
{
	int ret;

	if (!q->lazy)
		return q2_write_cache(q, &q->ref);
	if (q->marked || !q->ref.dirty)
		return 0;
	ret = q2_set_incompat(q, Q2_INCOMPAT_DIRTY, true);
	q->marked = !ret;
	return ret;
}

int q2_sync(struct qcow2 *q)
{
	bool mapped = q->l2.dirty || q->l1_dirty;
	int ret;

	if (q->corrupt)
		return -EIO;
	ret = write_refcounts(q);
	if (!ret && mapped)
		ret = store_flush(q->store);
	if (!ret && q->l2.dirty) {
		ret = q2_write_cache(q, &q->l2);
		if (!ret && q->l1_dirty)
			ret = store_flush(q->store);
	}
	if (!ret && q->l1_dirty)
		ret = write_l1(q);
	if (!ret)
		ret = store_flush(q->store);
	return ret ? ret : q2_free_now(q);
}
