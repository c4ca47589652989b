/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - what all stores share
 */
#include "vm/block/store.h"

#include <errno.h>

#include "base/bits.h"

void store_close(struct store *s)
{
	if (!s)
		return;
	s->ops->drain(s);
	s->ops->close(s);
}

static int simple(struct store *s, enum block_op op, uint64_t offset, void *buf,
		  uint64_t len)
{
	struct iovec iov = { buf, len };
	struct block_req req = {
		.op = op,
		.offset = offset,
		.len = len,
		.iov = &iov,
		.iovcnt = 1,
	};

	return s->ops->perform(s, &req);
}

int store_read(struct store *s, uint64_t offset, void *buf, size_t len)
{
	return simple(s, BLOCK_READ, offset, buf, len);
}

int store_write(struct store *s, uint64_t offset, const void *buf, size_t len)
{
	return simple(s, BLOCK_WRITE, offset, (void *)buf, len);
}

int store_flush(struct store *s)
{
	return simple(s, BLOCK_FLUSH, 0, NULL, 0);
}

int store_discard(struct store *s, uint64_t offset, uint64_t len)
{
	return simple(s, BLOCK_DISCARD, offset, NULL, len);
}

int store_zero(struct store *s, uint64_t offset, uint64_t len)
{
	return simple(s, BLOCK_ZERO, offset, NULL, len);
}

int store_set_size(struct store *s, uint64_t size)
{
	return s->readonly ? -EROFS : s->ops->set_size(s, size);
}

int store_map(struct store *s, uint64_t offset, uint64_t *len, bool *hole)
{
	uint64_t size = atomic_load(&s->size);

	*hole = offset >= size;
	if (*hole)
		return 0;
	*len = MIN(*len, size - offset);
	return s->ops->map ? s->ops->map(s, offset, len, hole) : 0;
}

uint64_t store_used(struct store *s)
{
	return s->ops->used ? s->ops->used(s) : atomic_load(&s->size);
}
