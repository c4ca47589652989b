/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2_ref.c - which clusters of a qcow2 image are free
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

/* -- counts of all widths ------------------------------------------------- */

static uint64_t get(const struct qcow2 *q, const uint8_t *block, uint64_t i)
{
	unsigned bits = 1u << q->ref_order;
	uint64_t v = 0;

	if (bits < 8)
		return block[i * bits / 8] >> i * bits % 8 & ((1u << bits) - 1);
	for (unsigned n = 0; n < bits / 8; n++)
		v = v << 8 | block[i * (bits / 8) + n];
	return v;
}

static void put(const struct qcow2 *q, uint8_t *block, uint64_t i, uint64_t v)
{
	unsigned bits = 1u << q->ref_order, bytes = bits / 8;
	unsigned shift = i * bits % 8;

	if (bits < 8) {
		uint8_t *p = block + i * bits / 8, mask = (1u << bits) - 1;

		*p = (uint8_t)((*p & ~(mask << shift)) | (v & mask) << shift);
		return;
	}
	for (unsigned n = bytes; n--; v >>= 8)
		block[i * bytes + n] = (uint8_t)v;
}

/* -- blocks --------------------------------------------------------------- */

static uint64_t table_entries(const struct qcow2 *q)
{
	return ((uint64_t)q->reftable_clusters << q->bits) / 8;
}

/* *t is NULL where no block exists: all of its clusters are free. */
static int find_block(struct qcow2 *q, uint64_t cluster, struct q2_table **t)
{
	uint64_t i = cluster >> q->ref_bits;

	*t = NULL;
	if (i >= table_entries(q) || !q->reftable[i])
		return 0;
	return q2_load(q, &q->ref, q->reftable[i], t);
}

int q2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
	struct q2_table *t;
	int ret = find_block(q, cluster, &t);

	*count = 0;
	if (!ret && t)
		*count = get(q, t->data, cluster & (BIT(q->ref_bits) - 1));
	return ret;
}

static int find_free(struct qcow2 *q, uint64_t want, uint64_t *first,
		     uint64_t *got)
{
	uint64_t c = MAX(q->hint, 1), n = 0, count;
	int ret;

	for (;; c++) {
		if (c >> (56 - q->bits))
			return -EFBIG;
		ret = q2_refcount(q, c, &count);
		if (ret)
			return ret;
		if (!count)
			break;
	}
	q->hint = c;
	/* Of one block, so that at most one has to be made. */
	do {
		n++;
		ret = q2_refcount(q, c + n, &count);
	} while (!ret && n < want && !count &&
		 (c + n) >> q->ref_bits == c >> q->ref_bits);
	*first = c;
	*got = n;
	return ret;
}

/*
 * A block is on disk before the table names it.  Its own count is in itself
 * or in a block that the caller has changed.
 */
static int add_block(struct qcow2 *q, uint64_t index, uint64_t cluster,
		     struct q2_table **out)
{
	uint64_t offset = cluster << q->bits, entry = htobe64(offset);
	int ret = q2_fresh(q, &q->ref, offset, out);

	if (ret)
		return ret;
	if (cluster >> q->ref_bits == index)
		put(q, (*out)->data, cluster & (BIT(q->ref_bits) - 1), 1);
	ret = store_write(q->store, offset, (*out)->data, q->cluster);
	if (!ret && !q->lazy)
		ret = q2_write_cache(q, &q->ref);
	if (!ret)
		ret = store_flush(q->store);
	if (!ret)
		ret = store_write(q->store, q->reftable_offset + index * 8,
				  &entry, 8);
	if (ret)
		q2_drop(&q->ref, offset);
	else
		q->reftable[index] = offset;
	return ret;
}

/*
 * A larger table of blocks, behind everything: the new table's clusters and
 * those of the blocks for them describe themselves.
 */
static int grow_table(struct qcow2 *q, uint64_t index)
{
	uint64_t per = BIT(q->ref_bits), old = table_entries(q);
	uint64_t size = ALIGN_UP(atomic_load(&q->store->size), q->cluster);
	uint64_t first = MAX(old * per, size >> q->bits), n = 1, blocks, at;
	uint64_t old_offset = q->reftable_offset;
	uint32_t old_clusters = q->reftable_clusters;
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t *table, *disk;
	int ret = 0;

	first = ALIGN_UP(MAX(first, index * per), per);
	do { /* until the table covers itself and its blocks, and half more */
		n++;
		blocks = (n + n / 8 + 2) / per + 2;
	} while (n * (q->cluster / 8) * 2 / 3 < (first + n + blocks) / per + 2);
	if (n << q->bits > Q2_MAX_REFTABLE)
		return -EFBIG;
	blocks = (n + blocks + per - 1) / per;
	if (first + n + blocks > 1ull << (56 - q->bits))
		return -EFBIG;
	table = calloc(n, q->cluster);
	disk = calloc(n, q->cluster);
	if (!table || !disk)
		ret = -ENOMEM;
	if (!ret)
		memcpy(table, q->reftable, old * 8);
	at = first + n; /* the blocks */
	for (uint64_t b = 0; !ret && b < blocks; b++) {
		struct q2_table *t;

		ret = q2_fresh(q, &q->ref, (at + b) << q->bits, &t);
		for (uint64_t i = 0; !ret && i < per; i++)
			if (b * per + i < n + blocks)
				put(q, t->data, i, 1);
		if (!ret)
			ret = store_write(q->store, t->offset, t->data,
					  q->cluster);
		if (!ret)
			table[(first >> q->ref_bits) + b] = (at + b) << q->bits;
	}
	for (uint64_t i = 0; !ret && i < n * q->cluster / 8; i++)
		disk[i] = htobe64(table[i]);
	if (!ret)
		ret = store_write(q->store, first << q->bits, disk,
				  n << q->bits);
	if (!ret)
		ret = store_flush(q->store);
	free(disk);
	if (ret) {
		free(table);
		return ret;
	}
	h->reftable_offset = htobe64(first << q->bits);
	h->reftable_clusters = htobe32((uint32_t)n);
	ret = q2_write_header(q);
	if (!ret)
		ret = store_flush(q->store);
	/* Whatever the disk has now, the new one is right. */
	free(q->reftable);
	q->reftable = table;
	q->reftable_offset = first << q->bits;
	q->reftable_clusters = (uint32_t)n;
	for (uint32_t i = 0; !ret && i < old_clusters; i++)
		q2_free_later(q, old_offset + ((uint64_t)i << q->bits));
	return ret;
}

static int need_block(struct qcow2 *q, uint64_t cluster, struct q2_table **t)
{
	uint64_t index = cluster >> q->ref_bits, c, n;
	int ret;

	for (;;) {
		ret = find_block(q, cluster, t);
		if (ret || *t)
			return ret;
		if (index >= table_entries(q)) {
			ret = grow_table(q, index);
			if (ret)
				return ret;
			continue;
		}
		ret = find_free(q, 1, &c, &n);
		if (ret)
			return ret;
		if (q2_is_metadata(q, c << q->bits, q->cluster, true))
			return q2_corrupt(q);
		ret = find_block(q, c, t);
		if (ret)
			return ret;
		if (*t) {
			put(q, (*t)->data, c & (BIT(q->ref_bits) - 1), 1);
			q2_touch(&q->ref, *t);
			return add_block(q, index, c, t);
		}
		if (c >> q->ref_bits >= table_entries(q)) {
			ret = grow_table(q, c >> q->ref_bits);
			if (ret)
				return ret;
			continue;
		}
		ret = add_block(q, c >> q->ref_bits, c, t);
		if (ret)
			return ret;
	}
}

int q2_set_refcount(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
	struct q2_table *t;
	int ret = need_block(q, cluster, &t);

	if (ret || !t)
		return ret ? ret : -EIO;
	if (q->ref_order < 6 && count >> (1u << q->ref_order))
		return -ERANGE;
	put(q, t->data, cluster & (BIT(q->ref_bits) - 1), count);
	q2_touch(&q->ref, t);
	if (!count && cluster < q->hint)
		q->hint = cluster;
	return 0;
}

/* -- clusters ------------------------------------------------------------- */

static bool overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return a < b + blen && b < a + alen;
}

bool q2_is_metadata(struct qcow2 *q, uint64_t offset, uint64_t len, bool all)
{
	if (offset < q->cluster ||
	    overlap(offset, len, q->l1_offset, q->l1_size * 8ull) ||
	    overlap(offset, len, q->reftable_offset,
		    (uint64_t)q->reftable_clusters << q->bits) ||
	    overlap(offset, len, q->snapshots_offset, q->snapshots_len))
		return true;
	for (unsigned i = 0; i < q->nsnapshots; i++)
		if (overlap(offset, len, q->snapshot[i].l1_offset,
			    q->snapshot[i].l1_size * 8ull))
			return true;
	if (!all)
		return false;
	for (uint32_t i = 0; i < q->l1_size; i++)
		if (q->l1[i] & Q2_OFFSET &&
		    overlap(offset, len, q->l1[i] & Q2_OFFSET, q->cluster))
			return true;
	for (uint64_t i = 0; i < table_entries(q); i++)
		if (q->reftable[i] &&
		    overlap(offset, len, q->reftable[i], q->cluster))
			return true;
	return false;
}

int q2_alloc(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got)
{
	struct q2_table *t;
	uint64_t c, n, count;
	int ret;

	for (;;) {
		ret = find_free(q, want, &c, &n);
		if (!ret)
			ret = need_block(q, c, &t);
		if (ret)
			return ret;
		/* Was it taken for the block? */
		ret = q2_refcount(q, c, &count);
		if (ret)
			return ret;
		if (!count)
			break;
	}
	for (uint64_t i = 1; i < n; i++) {
		ret = q2_refcount(q, c + i, &count);
		if (ret)
			return ret;
		if (count)
			n = i;
	}
	if (q->store->fixed &&
	    (c + n) << q->bits > atomic_load(&q->store->size))
		return -ENOSPC;
	if (q2_is_metadata(q, c << q->bits, n << q->bits, true))
		return q2_corrupt(q);
	for (uint64_t i = 0; i < n; i++)
		put(q, t->data, (c + i) & (BIT(q->ref_bits) - 1), 1);
	q2_touch(&q->ref, t);
	q->hint = c + n;
	*offset = c << q->bits;
	*got = n;
	return 0;
}

void q2_unalloc(struct qcow2 *q, uint64_t offset, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		q2_set_refcount(q, (offset >> q->bits) + i, 0);
}

void q2_free_later(struct qcow2 *q, uint64_t offset)
{
	if (q->nfreed == q->freed_room) {
		size_t room = q->freed_room * 2 + 64;
		uint64_t *p = realloc(q->freed, room * sizeof(*p));

		if (!p)
			return; /* lost until the image is checked */
		q->freed = p;
		q->freed_room = room;
	}
	q->freed[q->nfreed++] = offset >> q->bits;
}

void q2_packed(const struct qcow2 *q, uint64_t entry, uint64_t *offset,
	       uint64_t *len)
{
	unsigned x = 62 - (q->bits - 8);
	uint64_t sectors = (entry >> x & (BIT(q->bits - 8) - 1)) + 1;

	*offset = entry & (BIT(x) - 1);
	*len = sectors * 512 - (*offset & 511);
}

void q2_free_entry(struct qcow2 *q, uint64_t entry)
{
	uint64_t offset, len;

	if (entry & Q2_COMPRESSED) {
		q2_packed(q, entry, &offset, &len);
		for (uint64_t c = ALIGN_DOWN(offset, q->cluster);
		     c < offset + len; c += q->cluster)
			q2_free_later(q, c);
	} else if (entry & Q2_OFFSET) {
		q2_free_later(q, entry & Q2_OFFSET);
	}
}

static int by_number(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* After the tables that held them are gone from disk. */
int q2_free_now(struct qcow2 *q)
{
	uint64_t start = 0, n = 0, count;
	int ret = 0;

	if (!q->nfreed)
		return 0;
	/* No access that was mapped before is still under way. */
	pthread_mutex_lock(&q->io_lock);
	while (q->io)
		pthread_cond_wait(&q->io_idle, &q->io_lock);
	pthread_mutex_unlock(&q->io_lock);
	pthread_mutex_lock(&q->unpack_lock);
	q->unpacked = 0;
	pthread_mutex_unlock(&q->unpack_lock);
	qsort(q->freed, q->nfreed, sizeof(*q->freed), by_number);
	for (size_t i = 0; i < q->nfreed; i++) {
		uint64_t c = q->freed[i];

		ret = q2_refcount(q, c, &count);
		if (ret)
			break;
		if (!count || c << q->bits >= atomic_load(&q->store->size)) {
			ret = q2_corrupt(q);
			break;
		}
		ret = q2_set_refcount(q, c, count - 1);
		if (ret)
			break;
		if (count > 1)
			continue;
		q2_drop(&q->l2, c << q->bits);
		q2_drop(&q->ref, c << q->bits);
		if (n && start + n == c) {
			n++;
			continue;
		}
		if (n)
			store_discard(q->store, start << q->bits, n << q->bits);
		start = c;
		n = 1;
	}
	if (n)
		store_discard(q->store, start << q->bits, n << q->bits);
	q->nfreed = 0;
	return ret;
}
