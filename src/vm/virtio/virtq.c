/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq.c - split virtqueues, device side
 *
 * The driver may change every byte of the rings at any moment.  Therefore
 * each descriptor is copied once and checked in the copy; nothing is read
 * twice.  What is refused breaks the device (NEEDS_RESET), not the process.
 */
#include "vm/virtio/virtq.h"

#include <errno.h>
#include <string.h>

static uint16_t load16(const uint16_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store16(uint16_t *p, uint16_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static struct guest_mem *mem_of(const struct virtq *q)
{
	return q->v->dev.env->mem;
}

static bool event_idx(const struct virtq *q)
{
	return q->v->accepted & VIRTIO_F_EVENT_IDX;
}

void virtq_reset(struct virtq *q)
{
	q->size = q->max_size;
	q->vector = VIRTIO_NO_VECTOR;
	q->enabled = false;
	q->desc = q->avail = q->used = 0;
	q->last_avail = q->used_idx = 0;
	q->signalled = 0;
	q->signalled_valid = false;
	q->desc_host = NULL;
	q->avail_host = NULL;
	q->used_host = NULL;
}

int virtq_map(struct virtq *q)
{
	struct guest_mem *mem = mem_of(q);

	if (q->desc & 15 || q->avail & 1 || q->used & 3)
		return -EFAULT;
	/* + 6: flags, idx and the event field, which is always reserved. */
	q->desc_host = mem_at(mem, q->desc, 16ull * q->size);
	q->avail_host = mem_at(mem, q->avail, 6 + 2ull * q->size);
	q->used_host = mem_at(mem, q->used, 6 + 8ull * q->size);
	return q->desc_host && q->avail_host && q->used_host ? 0 : -EFAULT;
}

/* -- taking --------------------------------------------------------------- */

/* How many are waiting; asks for a doorbell before it says 0. */
static uint16_t waiting(struct virtq *q)
{
	uint16_t n = load16(&q->avail_host[1]) - q->last_avail;
	uint64_t off = 4 + 8ull * q->size;

	if (n || !event_idx(q))
		return n;
	store16((uint16_t *)(void *)(q->used_host + off), q->last_avail);
	mem_written(mem_of(q), q->used + off, 2);
	/* Partner: the driver's barrier between idx and avail_event. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load16(&q->avail_host[1]) - q->last_avail;
}

struct walk {
	const struct virtq_desc *table;
	uint32_t entries, index;
	unsigned seen, n; /* descriptors, pieces */
	uint64_t bytes;
	bool indirect, writing;
};

static int add_piece(struct virtq *q, struct walk *w,
		     const struct virtq_desc *d, struct virtq_chain *chain)
{
	void *p;

	if (d->flags & DESC_WRITE)
		w->writing = true;
	else if (w->writing)
		return virtio_broken(q->v,
				     "queue %u: readable after writable "
				     "descriptor",
				     q->index);
	if (!d->len)
		return 0;
	w->bytes += d->len;
	if (w->bytes > UINT32_MAX) /* virtio 1.2, 2.7.5: at most 2^32 */
		return virtio_broken(q->v, "queue %u: request too long",
				     q->index);
	p = mem_at(mem_of(q), d->addr, d->len);
	if (!p)
		return virtio_broken(q->v,
				     "queue %u: buffer %llx+%x is not in "
				     "memory",
				     q->index, (unsigned long long)d->addr,
				     d->len);
	q->iov[w->n] = (struct iovec){ p, d->len };
	q->gpa[w->n++] = d->addr;
	if (w->writing)
		chain->nwritable++;
	else
		chain->nreadable++;
	return 0;
}

static int enter_table(struct virtq *q, struct walk *w,
		       const struct virtq_desc *d)
{
	if (!(q->v->accepted & VIRTIO_F_INDIRECT_DESC) || w->indirect ||
	    d->flags & DESC_NEXT || !d->len || d->len % 16)
		return virtio_broken(q->v, "queue %u: bad indirect descriptor",
				     q->index);
	w->table = mem_at(mem_of(q), d->addr, d->len);
	if (!w->table)
		return virtio_broken(q->v,
				     "queue %u: indirect table %llx+%x "
				     "is not in memory",
				     q->index, (unsigned long long)d->addr,
				     d->len);
	w->entries = d->len / 16;
	w->index = 0;
	w->indirect = true;
	return 0;
}

static int walk(struct virtq *q, struct virtq_chain *chain)
{
	struct walk w = {
		.table = q->desc_host,
		.entries = q->size,
		.index = chain->head,
	};
	struct virtq_desc d;
	int ret;

	for (;;) {
		if (w.index >= w.entries)
			return virtio_broken(q->v,
					     "queue %u: descriptor %u of "
					     "%u",
					     q->index, w.index, w.entries);
		memcpy(&d, &w.table[w.index], sizeof(d));
		if (d.flags & DESC_INDIRECT) {
			ret = enter_table(q, &w, &d);
			if (ret)
				return ret;
			continue;
		}
		/* A loop is a chain longer than the queue. */
		if (++w.seen > q->size)
			return virtio_broken(q->v, "queue %u: descriptor loop",
					     q->index);
		ret = add_piece(q, &w, &d, chain);
		if (ret)
			return ret;
		if (!(d.flags & DESC_NEXT))
			break;
		w.index = d.next;
	}
	chain->readable = q->iov;
	chain->writable = q->iov + chain->nreadable;
	chain->writable_gpa = q->gpa + chain->nreadable;
	return 0;
}

int virtq_pop(struct virtq *q, struct virtq_chain *chain)
{
	uint16_t n;
	int ret;

	if (q->v->status & STATUS_NEEDS_RESET)
		return -EPROTO;
	if (!q->enabled || !q->avail_host)
		return 0;
	n = waiting(q);
	if (!n)
		return 0;
	if (n > q->size)
		return virtio_broken(q->v, "queue %u: %u requests in %u places",
				     q->index, n, q->size);
	memset(chain, 0, sizeof(*chain));
	chain->head = load16(&q->avail_host[2 + q->last_avail % q->size]);
	ret = walk(q, chain);
	if (ret)
		return ret;
	q->last_avail++;
	return 1;
}

int virtq_again(struct virtq *q, uint16_t head, struct virtq_chain *chain)
{
	if (q->v->status & STATUS_NEEDS_RESET)
		return -EPROTO;
	if (!q->enabled || !q->avail_host)
		return virtio_broken(q->v, "queue %u: is off", q->index);
	memset(chain, 0, sizeof(*chain));
	chain->head = head;
	return walk(q, chain);
}

void virtq_unpop(struct virtq *q, unsigned n)
{
	q->last_avail -= (uint16_t)n;
}

/* -- giving back ---------------------------------------------------------- */

void virtq_fill(struct virtq *q, const struct virtq_chain *chain, uint32_t len,
		unsigned ahead)
{
	struct virtq_used_elem elem = { chain->head, len };
	struct guest_mem *mem = mem_of(q);
	uint64_t off;

	/* The writable bytes did change, whatever becomes of the ring. */
	for (unsigned i = 0; len && i < chain->nwritable; i++)
		mem_written(mem, chain->writable_gpa[i],
			    chain->writable[i].iov_len);
	if (q->v->status & STATUS_NEEDS_RESET || !q->used_host)
		return;
	off = 4 + 8ull * ((uint16_t)(q->used_idx + ahead) % q->size);
	memcpy(q->used_host + off, &elem, sizeof(elem));
	mem_written(mem, q->used + off, sizeof(elem));
}

void virtq_publish(struct virtq *q, unsigned n)
{
	if (q->v->status & STATUS_NEEDS_RESET || !q->used_host)
		return;
	q->used_idx += (uint16_t)n;
	store16((uint16_t *)(void *)(q->used_host + 2), q->used_idx);
	mem_written(mem_of(q), q->used + 2, 2);
}

void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len)
{
	virtq_fill(q, chain, len, 0);
	virtq_publish(q, 1);
}

static bool wants_interrupt(const struct virtq *q)
{
	uint16_t event;

	if (!event_idx(q))
		return !(load16(&q->avail_host[0]) & 1);
	if (!q->signalled_valid)
		return true;
	/* Did used_idx step over the event since the last flush? */
	event = load16(&q->avail_host[2 + q->size]);
	return (uint16_t)(q->used_idx - event - 1) <
	       (uint16_t)(q->used_idx - q->signalled);
}

void virtq_flush(struct virtq *q)
{
	bool wanted;

	if (q->v->status & STATUS_NEEDS_RESET || !q->avail_host ||
	    (q->signalled_valid && q->used_idx == q->signalled) ||
	    (!q->signalled_valid && !q->used_idx))
		return;
	/* Partner: the driver's barrier between used_event and used idx. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	wanted = wants_interrupt(q);
	q->signalled = q->used_idx;
	q->signalled_valid = true;
	if (wanted)
		virtio_pci_notify_locked(q->v, q->vector, 1);
}
