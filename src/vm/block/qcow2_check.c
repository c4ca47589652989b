/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2_check.c - counts who uses which cluster, and compares
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

enum { MAX_REPORTS = 100 };

struct walk {
	struct qcow2 *q;
	struct q2_check *c;
	uint32_t *count; /* as found */
	uint64_t n;	 /* clusters in the file */
};

static void found(struct walk *w, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void found(struct walk *w, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	if (w->c->errors++ >= MAX_REPORTS || !w->c->report)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	w->c->report(w->c->opaque, text);
}

static bool use(struct walk *w, const char *what, uint64_t offset, uint64_t len)
{
	uint64_t c = offset >> w->q->bits;
	uint64_t end = (offset + len + w->q->cluster - 1) >> w->q->bits;

	if (end > w->n || end < c) {
		found(w, "%s at %#llx is not in the file", what,
		      (unsigned long long)offset);
		return false;
	}
	for (; c < end; c++)
		w->count[c]++;
	return true;
}

static void walk_l2(struct walk *w, const uint64_t *table, bool active)
{
	struct qcow2 *q = w->q;

	for (uint64_t i = 0; i < BIT(q->l2_bits); i++) {
		uint64_t e = be64toh(table[i]), offset, len;

		if (e & Q2_COMPRESSED) {
			q2_packed(q, e, &offset, &len);
			offset = ALIGN_DOWN(offset, 512);
			/* Its length is rounded to sectors, the file's end
			 * is not. */
			if (offset >> q->bits < w->n)
				len = MIN(len, (w->n << q->bits) - offset);
			use(w, "compressed cluster", offset, len);
			w->c->packed += active;
			continue;
		}
		if (e & Q2_L2_RESERVED)
			found(w, "entry %#llx has unknown bits",
			      (unsigned long long)e);
		offset = e & Q2_OFFSET;
		if (!offset)
			continue;
		if (offset % q->cluster)
			found(w, "cluster at %#llx begins inside another",
			      (unsigned long long)offset);
		else
			use(w, "cluster", offset, q->cluster);
		w->c->clusters += active;
	}
}

static int walk_l1(struct walk *w, const uint64_t *l1, uint64_t n, bool active)
{
	struct qcow2 *q = w->q;
	uint64_t *table = malloc(q->cluster);
	int ret = table ? 0 : -ENOMEM;

	for (uint64_t i = 0; !ret && i < n; i++) {
		uint64_t offset = l1[i] & Q2_OFFSET;

		if (!offset)
			continue;
		if (offset % q->cluster) {
			found(w, "L2 table at %#llx begins inside a cluster",
			      (unsigned long long)offset);
			continue;
		}
		if (!use(w, "L2 table", offset, q->cluster))
			continue;
		ret = store_read(q->store, offset, table, q->cluster);
		if (!ret)
			walk_l2(w, table, active);
	}
	free(table);
	return ret;
}

static int walk_snapshots(struct walk *w)
{
	struct qcow2 *q = w->q;
	int ret = 0;

	if (q->snapshots_len)
		use(w, "snapshot table", q->snapshots_offset, q->snapshots_len);
	for (unsigned i = 0; !ret && i < q->nsnapshots; i++) {
		struct q2_snapshot *s = &q->snapshot[i];
		uint64_t *l1 = calloc(s->l1_size + 1ull, 8);

		use(w, "L1 table", s->l1_offset, s->l1_size * 8ull);
		ret = l1 ? store_read(q->store, s->l1_offset, l1,
				      s->l1_size * 8ull)
			 : -ENOMEM;
		for (uint32_t k = 0; !ret && k < s->l1_size; k++)
			l1[k] = be64toh(l1[k]);
		if (!ret)
			ret = walk_l1(w, l1, s->l1_size, false);
		free(l1);
	}
	return ret;
}

static int walk_image(struct walk *w)
{
	struct qcow2 *q = w->q;
	uint64_t nref = ((uint64_t)q->reftable_clusters << q->bits) / 8;
	int ret;

	use(w, "header", 0, q->cluster);
	use(w, "L1 table", q->l1_offset, q->l1_size * 8ull);
	use(w, "refcount table", q->reftable_offset, nref * 8);
	for (uint64_t i = 0; i < nref; i++)
		if (q->reftable[i])
			use(w, "refcount block", q->reftable[i], q->cluster);
	ret = walk_l1(w, q->l1, q->l1_size, true);
	return ret ? ret : walk_snapshots(w);
}

/* One more or less than it is: what was lost comes back, or is protected. */
static int compare(struct walk *w, bool repair)
{
	struct qcow2 *q = w->q;
	int ret = 0;

	/* New refcount blocks go where nothing is. */
	q->hint = MAX(q->hint, w->n);
	for (uint64_t c = 0; !ret && c < w->n; c++) {
		uint64_t is;

		ret = q2_refcount(q, c, &is);
		if (ret || is == w->count[c])
			continue;
		if (repair) {
			ret = q2_set_refcount(q, c, w->count[c]);
			q->hint = MAX(q->hint, w->n);
			continue;
		}
		if (is > w->count[c])
			w->c->leaks++;
		else
			found(w,
			      "cluster at %#llx is used %u times and counted "
			      "%llu",
			      (unsigned long long)c << q->bits, w->count[c],
			      (unsigned long long)is);
	}
	return ret;
}

/* "May be written in place" must be said of what is used once, and only so. */
static int check_copied(struct walk *w, bool repair)
{
	struct qcow2 *q = w->q;
	struct q2_table *t;
	int ret = 0;

	for (uint32_t i = 0; !ret && i < q->l1_size; i++) {
		uint64_t offset = q->l1[i] & Q2_OFFSET;
		bool once;

		if (!offset || offset % q->cluster || offset >> q->bits >= w->n)
			continue;
		once = w->count[offset >> q->bits] == 1;
		if (once != !!(q->l1[i] & Q2_COPIED)) {
			if (repair) {
				q->l1[i] ^= Q2_COPIED;
				q->l1_dirty = true;
			} else {
				found(w, "L2 table at %#llx: wrong flag",
				      (unsigned long long)offset);
			}
		}
		ret = q2_load(q, &q->l2, offset, &t);
		for (uint64_t k = 0; !ret && k < BIT(q->l2_bits); k++) {
			uint64_t *p = (uint64_t *)t->data + k;
			uint64_t e = be64toh(*p), host = e & Q2_OFFSET;

			if (e & Q2_COMPRESSED || !host ||
			    host >> q->bits >= w->n)
				continue;
			once = w->count[host >> q->bits] == 1;
			if (once == !!(e & Q2_COPIED))
				continue;
			if (!repair) {
				found(w, "cluster at %#llx: wrong flag",
				      (unsigned long long)host);
				continue;
			}
			*p = htobe64(e ^ Q2_COPIED);
			q2_touch(&q->l2, t);
		}
	}
	return ret;
}

/*
 * With repair, refcounts and flags are made to fit; errors that are left,
 * such as clusters outside of the file, are counted.
 */
int q2_check(struct qcow2 *q, bool repair, struct q2_check *c)
{
	struct walk w = { .q = q, .c = c };
	bool lazy = q->lazy;
	int ret;

	w.n = ALIGN_UP(atomic_load(&q->store->size), q->cluster) >> q->bits;
	if (w.n > BIT(28))
		return -EFBIG;
	w.count = calloc(w.n, sizeof(*w.count));
	if (!w.count)
		return -ENOMEM;
	ret = walk_image(&w);
	/* Tables in wrong places: refcounts cannot put that right. */
	if (!ret && repair && c->errors)
		repair = false;
	if (!ret)
		ret = compare(&w, repair);
	if (!ret)
		ret = check_copied(&w, repair);
	free(w.count);
	if (!ret && repair) {
		q->lazy = false;
		q->corrupt = false;
		ret = q2_sync(q);
		q->lazy = lazy;
		if (!ret)
			ret = q2_set_incompat(
				q, Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT,
				false);
		if (!ret)
			ret = store_flush(q->store);
	}
	q->hint = 1;
	return ret;
}
