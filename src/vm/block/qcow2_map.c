/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2_map.c - from a guest's offset to the bytes, and changing them
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bits.h"

enum { IOVS = 256, MANY_DIRTY = 64, MANY_FREED = 4096 };

/* -- tables --------------------------------------------------------------- */

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
	return offset >> q->bits & (BIT(q->l2_bits) - 1);
}

static uint64_t *entries(struct q2_table *t)
{
	return t->data;
}

/* *t NULL: nothing is mapped there. */
static int find_l2(struct qcow2 *q, uint64_t offset, bool cached_only,
		   struct q2_table **t)
{
	uint64_t i = offset >> (q->bits + q->l2_bits), where;

	*t = NULL;
	if (i >= q->l1_size || !(q->l1[i] & Q2_OFFSET))
		return 0;
	where = q->l1[i] & Q2_OFFSET;
	if (cached_only) {
		*t = q2_cached(&q->l2, where);
		return *t ? 0 : -EAGAIN;
	}
	return q2_load(q, &q->l2, where, t);
}

/* The table to change: made, or copied when a snapshot has it, too. */
static int own_l2(struct qcow2 *q, uint64_t offset, struct q2_table **t)
{
	uint64_t i = offset >> (q->bits + q->l2_bits), old, fresh, got, count;
	struct q2_table *from;
	int ret;

	if (i >= q->l1_size)
		return q2_corrupt(q);
	old = q->l1[i] & Q2_OFFSET;
	if (old && q->l1[i] & Q2_COPIED)
		return q2_load(q, &q->l2, old, t);
	if (old) {
		ret = q2_refcount(q, old >> q->bits, &count);
		if (ret)
			return ret;
		if (!count)
			return q2_corrupt(q);
	}
	ret = q2_alloc(q, 1, &fresh, &got);
	if (ret)
		return ret;
	ret = q2_fresh(q, &q->l2, fresh, t);
	if (!ret && old)
		ret = q2_load(q, &q->l2, old, &from);
	if (ret) {
		q2_drop(&q->l2, fresh);
		q2_unalloc(q, fresh, 1);
		return ret;
	}
	if (old) {
		memcpy((*t)->data, from->data, q->cluster);
		q2_free_later(q, old);
	}
	q->l1[i] = fresh | Q2_COPIED;
	q->l1_dirty = true;
	return 0;
}

static int classify(struct qcow2 *q, uint64_t entry, struct q2_run *run)
{
	uint64_t size = atomic_load(&q->store->size), len;

	run->entry = entry;
	run->copied = entry & Q2_COPIED;
	if (entry & Q2_COMPRESSED) {
		run->kind = Q2_PACKED;
		run->copied = false;
		q2_packed(q, entry, &run->host, &len);
		return run->host < q->cluster || run->host >= size
			       ? q2_corrupt(q)
			       : 0;
	}
	run->host = entry & Q2_OFFSET;
	if (entry & Q2_L2_RESERVED || run->host % q->cluster)
		return q2_corrupt(q);
	if (entry & Q2_ZERO) {
		run->kind = Q2_ZEROS;
		run->copied = false;
		return 0;
	}
	run->kind = run->host ? Q2_DATA : Q2_UNALLOCATED;
	if (run->kind == Q2_DATA &&
	    (run->host >= size || q2_is_metadata(q, run->host, 1, false)))
		return q2_corrupt(q);
	return 0;
}

/* What is at offset, at most len bytes of one kind and in a row. */
int q2_map(struct qcow2 *q, uint64_t offset, uint64_t len, bool cached_only,
	   struct q2_run *run)
{
	uint64_t skip = offset & (q->cluster - 1), i = l2_index(q, offset);
	uint64_t room = ((BIT(q->l2_bits) - i) << q->bits) - skip;
	struct q2_table *t;
	int ret;

	ret = find_l2(q, offset, cached_only, &t);
	if (ret)
		return ret;
	*run = (struct q2_run){ .len = MIN(len, room) };
	if (!t)
		return 0;
	len = run->len;
	ret = classify(q, be64toh(entries(t)[i]), run);
	if (ret)
		return ret;
	run->host += run->kind == Q2_DATA ? skip : 0;
	run->len = MIN(len, q->cluster - skip);
	while (run->len < len && run->kind != Q2_PACKED) {
		struct q2_run next = { 0 };

		ret = classify(q, be64toh(entries(t)[++i]), &next);
		if (ret)
			return ret;
		if (next.kind != run->kind || next.copied != run->copied ||
		    (run->kind == Q2_DATA && next.host != run->host + run->len))
			break;
		run->len += MIN(q->cluster, len - run->len);
	}
	return 0;
}

/* -- compressed clusters -------------------------------------------------- */

static int inflate_cluster(struct qcow2 *q, size_t len)
{
	z_stream z = {
		.next_in = q->packed,
		.avail_in = (uInt)len,
		.next_out = q->unpack,
		.avail_out = (uInt)q->cluster,
	};
	int ret;

	if (inflateInit2(&z, -15) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return !z.avail_out && (ret == Z_STREAM_END || ret == Z_BUF_ERROR)
		       ? 0
		       : -EIO;
}

static int unzstd_cluster(struct qcow2 *q, size_t len)
{
	ZSTD_inBuffer in = { q->packed, len, 0 };
	ZSTD_outBuffer out = { q->unpack, q->cluster, 0 };
	ZSTD_DStream *z = ZSTD_createDStream();
	size_t ret = 1;

	if (!z)
		return -ENOMEM;
	/* The sectors may hold more than the frame. */
	while (out.pos < out.size && ret && !ZSTD_isError(ret)) {
		size_t before = in.pos + out.pos;

		ret = ZSTD_decompressStream(z, &out, &in);
		if (in.pos + out.pos == before)
			break;
	}
	ZSTD_freeDStream(z);
	return out.pos == out.size && !ZSTD_isError(ret) ? 0 : -EIO;
}

static int read_packed(struct qcow2 *q, uint64_t entry, uint64_t skip,
		       const struct iovec *iov, int count, uint64_t at,
		       uint64_t len)
{
	uint64_t offset, size;
	int ret = 0;

	q2_packed(q, entry, &offset, &size);
	pthread_mutex_lock(&q->unpack_lock);
	if (!q->unpack)
		q->unpack = malloc(q->cluster);
	/* Sectors are counted in so many bits, so it can be a bit more. */
	if (!q->packed)
		q->packed = malloc(2 * q->cluster + 1024);
	if (!q->unpack || !q->packed)
		ret = -ENOMEM;
	if (!ret && q->unpacked != entry) {
		q->unpacked = 0;
		ret = store_read(q->store, offset, q->packed, size);
		if (!ret)
			ret = q->compression ? unzstd_cluster(q, size)
					     : inflate_cluster(q, size);
		if (!ret)
			q->unpacked = entry;
	}
	if (!ret)
		iov_from(iov, count, at, q->unpack + skip, len);
	pthread_mutex_unlock(&q->unpack_lock);
	return ret;
}

/* -- reading -------------------------------------------------------------- */

static int read_base(struct qcow2 *q, uint64_t offset, const struct iovec *iov,
		     int count, uint64_t at, uint64_t len)
{
	struct iovec part[IOVS];
	uint64_t have = 0;

	if (q->base && offset < q->base->size)
		have = MIN(len, q->base->size - offset);
	iov_zero(iov, count, at + have, len - have);
	while (have) {
		uint64_t now = have;
		struct block_req req = { .op = BLOCK_READ, .offset = offset };
		int ret;

		req.iovcnt = iov_part(part, IOVS, iov, count, at, &now);
		if (!req.iovcnt)
			return -EINVAL;
		req.iov = part;
		req.len = now;
		/* Not block_perform(): a piece may be less than a sector. */
		ret = q->base->ops->perform(q->base, &req);
		if (ret)
			return ret;
		offset += now;
		at += now;
		have -= now;
	}
	return 0;
}

/* *len bytes of the run that begins at offset into iov from at on; less when
 * the list has too many pieces. */
int q2_read_run(struct qcow2 *q, const struct q2_run *run, uint64_t offset,
		const struct iovec *iov, int count, uint64_t at, uint64_t *len)
{
	struct iovec part[IOVS];
	struct block_req req = { .op = BLOCK_READ, .iov = part };

	switch (run->kind) {
	case Q2_ZEROS: iov_zero(iov, count, at, *len); return 0;
	case Q2_UNALLOCATED: return read_base(q, offset, iov, count, at, *len);
	case Q2_PACKED:
		return read_packed(q, run->entry, offset & (q->cluster - 1),
				   iov, count, at, *len);
	case Q2_DATA: break;
	}
	req.iovcnt = iov_part(part, IOVS, iov, count, at, len);
	if (!req.iovcnt)
		return -EINVAL;
	req.offset = run->host;
	req.len = *len;
	return q->store->ops->perform(q->store, &req);
}

static void io_get(struct qcow2 *q)
{
	pthread_mutex_lock(&q->io_lock);
	q->io++;
	pthread_mutex_unlock(&q->io_lock);
}

static void io_put(struct qcow2 *q)
{
	pthread_mutex_lock(&q->io_lock);
	if (!--q->io)
		pthread_cond_broadcast(&q->io_idle);
	pthread_mutex_unlock(&q->io_lock);
}

static int read_all(struct qcow2 *q, const struct block_req *req)
{
	uint64_t at = 0;
	int ret = 0;

	while (!ret && at < req->len) {
		struct q2_run run;
		uint64_t pos = req->offset + at, len;

		pthread_mutex_lock(&q->lock);
		ret = q2_map(q, pos, req->len - at, false, &run);
		if (!ret)
			io_get(q);
		pthread_mutex_unlock(&q->lock);
		if (ret)
			break;
		len = run.len;
		ret = q2_read_run(q, &run, pos, req->iov, req->iovcnt, at,
				  &len);
		io_put(q);
		at += len;
	}
	return ret;
}

/* -- writing -------------------------------------------------------------- */

/* What the new cluster at host has before or after the bytes written. */
static int fill(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t len,
		bool fresh)
{
	struct q2_run run;
	struct iovec iov;
	int ret;

	if (!len)
		return 0;
	ret = q2_map(q, offset, len, false, &run);
	if (ret)
		return ret;
	if (run.kind == Q2_ZEROS || (run.kind == Q2_UNALLOCATED &&
				     (!q->base || offset >= q->base->size)))
		return fresh ? 0 : store_zero(q->store, host, len);
	iov.iov_len = len;
	iov.iov_base = malloc(len);
	if (!iov.iov_base)
		return -ENOMEM;
	ret = q2_read_run(q, &run, offset, &iov, 1, 0, &len);
	if (!ret)
		ret = store_write(q->store, host, iov.iov_base, len);
	free(iov.iov_base);
	return ret;
}

static int write_data(struct qcow2 *q, const struct block_req *from,
		      uint64_t at, uint64_t host, uint64_t len)
{
	struct iovec part[IOVS];

	while (len) {
		uint64_t now = len;
		struct block_req req = { .op = BLOCK_WRITE, .offset = host };
		int ret;

		req.iovcnt =
			iov_part(part, IOVS, from->iov, from->iovcnt, at, &now);
		if (!req.iovcnt)
			return -EINVAL;
		req.iov = part;
		req.len = now;
		ret = q->store->ops->perform(q->store, &req);
		if (ret)
			return ret;
		at += now;
		host += now;
		len -= now;
	}
	return 0;
}

/* How many clusters from offset on have to be new, of those in the table. */
static int count_new(struct qcow2 *q, uint64_t offset, uint64_t len,
		     uint64_t *n)
{
	uint64_t end = offset + len;
	struct q2_run run;
	int ret;

	offset = ALIGN_DOWN(offset, q->cluster);
	end = MIN(end, ALIGN_DOWN(offset, q->cluster << q->l2_bits) +
			       (q->cluster << q->l2_bits));
	*n = 0;
	while (offset < end) {
		ret = q2_map(q, offset, end - offset, false, &run);
		if (ret)
			return ret;
		if (run.kind == Q2_DATA && run.copied)
			break;
		offset = ALIGN_UP(offset + run.len, q->cluster);
		*n += (run.len + q->cluster - 1) >> q->bits;
	}
	return 0;
}

/* Before own_l2() and alloc: not in the middle of a change. */
static int make_way(struct qcow2 *q)
{
	if (q->corrupt)
		return -EIO;
	if (q->l2.dirty >= MIN(MANY_DIRTY, q->l2.max / 2) ||
	    q->ref.dirty >= MAX(q->ref.max / 2, 4) || q->nfreed >= MANY_FREED)
		return q2_sync(q);
	return 0;
}

/* New clusters for some of [at, ...) of the request; *len: how many bytes. */
static int write_new(struct qcow2 *q, const struct block_req *req, uint64_t at,
		     uint64_t *len)
{
	uint64_t offset = req->offset + at, want, host, n, skip, end, i;
	struct q2_table *t;
	bool fresh;
	int ret;

	ret = make_way(q);
	if (!ret)
		ret = count_new(q, offset, *len, &want);
	if (!ret)
		ret = own_l2(q, offset, &t);
	if (!ret)
		ret = q2_alloc(q, want, &host, &n);
	if (ret)
		return ret;
	skip = offset & (q->cluster - 1);
	*len = MIN(*len, (n << q->bits) - skip);
	end = skip + *len;
	fresh = host >= atomic_load(&q->store->size);
	if (host + (n << q->bits) > atomic_load(&q->store->size))
		ret = store_set_size(q->store, host + (n << q->bits));
	if (!ret)
		ret = fill(q, offset - skip, host, skip, fresh);
	if (!ret)
		ret = fill(q, offset + *len, host + end, (n << q->bits) - end,
			   fresh);
	if (!ret)
		ret = write_data(q, req, at, host + skip, *len);
	/* Loading what was there may have evicted it. */
	if (!ret)
		ret = own_l2(q, offset, &t);
	if (ret) {
		q2_unalloc(q, host, n);
		return ret;
	}
	i = l2_index(q, offset);
	for (uint64_t k = 0; k < n; k++) {
		q2_free_entry(q, be64toh(entries(t)[i + k]));
		entries(t)[i + k] =
			htobe64((host + (k << q->bits)) | Q2_COPIED);
	}
	q2_touch(&q->l2, t);
	return 0;
}

static int write_all(struct qcow2 *q, const struct block_req *req)
{
	uint64_t at = 0;
	int ret = 0;

	while (!ret && at < req->len) {
		struct q2_run run;
		uint64_t pos = req->offset + at, len = req->len - at;

		pthread_mutex_lock(&q->lock);
		ret = q->corrupt ? -EIO : q2_map(q, pos, len, false, &run);
		if (!ret && run.kind == Q2_DATA && run.copied) {
			io_get(q);
			pthread_mutex_unlock(&q->lock);
			len = run.len;
			ret = write_data(q, req, at, run.host, len);
			io_put(q);
		} else {
			if (!ret)
				ret = write_new(q, req, at, &len);
			pthread_mutex_unlock(&q->lock);
		}
		at += len;
	}
	return ret;
}

/* -- discard and zeroes --------------------------------------------------- */

/* What an entry becomes when its cluster is given up. */
static uint64_t gone(const struct qcow2 *q, uint64_t entry, enum block_op op)
{
	bool mapped = entry & (Q2_OFFSET | Q2_COMPRESSED | Q2_ZERO);

	if (!q->has_base)
		return 0;
	/* A discard need not hide what the base has; it must not show it
	 * again where something else was. */
	return mapped || op == BLOCK_ZERO ? Q2_ZERO : 0;
}

static int give_up(struct qcow2 *q, uint64_t offset, uint64_t n,
		   enum block_op op)
{
	struct q2_table *t;
	uint64_t i = l2_index(q, offset);
	bool change = false;
	int ret;

	ret = make_way(q);
	if (!ret)
		ret = find_l2(q, offset, false, &t);
	if (ret)
		return ret;
	for (uint64_t k = 0; k < n && !change; k++) {
		uint64_t entry = t ? be64toh(entries(t)[i + k]) : 0;

		change = gone(q, entry, op) != entry;
	}
	if (!change)
		return 0;
	ret = own_l2(q, offset, &t);
	if (ret)
		return ret;
	for (uint64_t k = 0; k < n; k++) {
		uint64_t entry = be64toh(entries(t)[i + k]);
		struct q2_run run;

		ret = classify(q, entry, &run);
		if (ret)
			return ret;
		entries(t)[i + k] = htobe64(gone(q, entry, op));
		q2_free_entry(q, entry);
	}
	q2_touch(&q->l2, t);
	return 0;
}

/* Less than a cluster: zeros are written, unless there are already. */
static int zero_part(struct qcow2 *q, uint64_t offset, uint64_t len)
{
	struct iovec iov = { .iov_len = len };
	struct block_req req = {
		.op = BLOCK_WRITE,
		.offset = offset,
		.len = len,
		.iov = &iov,
		.iovcnt = 1,
	};
	struct q2_run run;
	int ret;

	if (!len)
		return 0;
	pthread_mutex_lock(&q->lock);
	ret = q2_map(q, offset, len, false, &run);
	pthread_mutex_unlock(&q->lock);
	if (ret || run.kind == Q2_ZEROS ||
	    (run.kind == Q2_UNALLOCATED && !q->base))
		return ret;
	iov.iov_base = calloc(1, len);
	if (!iov.iov_base)
		return -ENOMEM;
	ret = write_all(q, &req);
	free(iov.iov_base);
	return ret;
}

static int vacate(struct qcow2 *q, const struct block_req *req)
{
	uint64_t offset = req->offset, end = offset + req->len;
	uint64_t lo = ALIGN_UP(offset, q->cluster);
	uint64_t hi = end == q->block.size ? ALIGN_UP(end, q->cluster)
					   : ALIGN_DOWN(end, q->cluster);
	int ret = 0;

	if (req->op == BLOCK_ZERO)
		ret = zero_part(q, offset, MIN(lo, end) - offset);
	if (!ret && req->op == BLOCK_ZERO && hi < end && hi >= lo)
		ret = zero_part(q, hi, end - hi);
	while (!ret && lo < hi) {
		uint64_t n = MIN((hi - lo) >> q->bits,
				 BIT(q->l2_bits) - l2_index(q, lo));

		pthread_mutex_lock(&q->lock);
		ret = give_up(q, lo, n, req->op);
		pthread_mutex_unlock(&q->lock);
		lo += n << q->bits;
	}
	return ret;
}

static int flush(struct qcow2 *q)
{
	bool dirty;
	int ret = 0;

	pthread_mutex_lock(&q->lock);
	dirty = q2_dirty(q);
	if (dirty || q->corrupt)
		ret = q2_sync(q);
	pthread_mutex_unlock(&q->lock);
	return ret || dirty ? ret : store_flush(q->store);
}

int q2_perform(struct qcow2 *q, const struct block_req *req)
{
	if (req->op != BLOCK_READ && q->block.readonly)
		return req->op == BLOCK_FLUSH ? 0 : -EROFS;
	switch (req->op) {
	case BLOCK_READ: return read_all(q, req);
	case BLOCK_WRITE: return write_all(q, req);
	case BLOCK_FLUSH: return flush(q);
	case BLOCK_DISCARD:
	case BLOCK_ZERO: return vacate(q, req);
	}
	return -EINVAL;
}

/* -- size ----------------------------------------------------------------- */

int q2_grow_l1(struct qcow2 *q, uint32_t size)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t need = ALIGN_UP(size * 8ull, q->cluster) >> q->bits;
	uint64_t old = q->l1_offset, first, count, have = q->l1_size;
	uint64_t *l1, *disk;
	int ret = 0;

	if (size <= q->l1_size)
		return 0;
	if (size * 8ull > Q2_MAX_L1)
		return -EFBIG;
	ret = q2_sync(q);
	if (ret)
		return ret;
	/* Behind everything: nowhere else need there be so many in a row. */
	first = ALIGN_UP(atomic_load(&q->store->size), q->cluster) >> q->bits;
	for (uint64_t n = 0; n < need; n++) {
		ret = q2_refcount(q, first + n, &count);
		if (ret)
			return ret;
		if (count) {
			first += n + 1;
			n = UINT64_MAX;
		}
	}
	q->hint = MAX(q->hint, first + need);
	for (uint64_t n = 0; !ret && n < need; n++)
		ret = q2_set_refcount(q, first + n, 1);
	if (ret)
		return ret;
	first <<= q->bits;
	l1 = calloc(need + 1, q->cluster);
	disk = calloc(need + 1, q->cluster);
	if (!l1 || !disk)
		ret = -ENOMEM;
	for (uint64_t i = 0; !ret && i < have; i++) {
		l1[i] = q->l1[i];
		disk[i] = htobe64(l1[i]);
	}
	if (!ret)
		ret = store_write(q->store, first, disk, need << q->bits);
	if (!ret)
		ret = q2_write_cache(q, &q->ref);
	if (!ret)
		ret = store_flush(q->store);
	free(disk);
	if (ret) {
		free(l1);
		return ret;
	}
	h->l1_offset = htobe64(first);
	h->l1_size = htobe32(size);
	ret = q2_write_header(q);
	if (!ret)
		ret = store_flush(q->store);
	free(q->l1);
	q->l1 = l1;
	q->l1_size = size;
	q->l1_offset = first;
	for (uint64_t i = 0; !ret && i < have * 8; i += q->cluster)
		q2_free_later(q, old + i);
	return ret;
}
