/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory_store.c - a disk image in memory
 */
#include "mock/memory_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

enum { MAX_SIZE = 64 << 20 };

struct memory {
	struct store store;
	pthread_mutex_t lock;
	char *data;
	size_t room;
};

static struct memory *to_memory(struct store *s)
{
	return container_of(s, struct memory, store);
}

static int grow(struct memory *m, uint64_t size)
{
	size_t old = atomic_load(&m->store.size);

	if (size > MAX_SIZE)
		return -ENOSPC;
	if (size > m->room) {
		size_t room = size * 2;
		char *p = realloc(m->data, room);

		if (!p)
			return -ENOMEM;
		m->data = p;
		m->room = room;
	}
	if (size > old) {
		memset(m->data + old, 0, size - old);
		atomic_store(&m->store.size, size);
	}
	return 0;
}

static int perform_locked(struct memory *m, const struct block_req *req)
{
	uint64_t size = atomic_load(&m->store.size), have = 0;
	int ret;

	if (req->offset < size)
		have = MIN(req->len, size - req->offset);
	switch (req->op) {
	case BLOCK_READ:
		iov_zero(req->iov, req->iovcnt, have, req->len - have);
		if (have)
			iov_from(req->iov, req->iovcnt, 0,
				 m->data + req->offset, have);
		return 0;
	case BLOCK_WRITE:
		if (req->offset > MAX_SIZE)
			return -ENOSPC;
		ret = grow(m, req->offset + req->len);
		if (!ret)
			iov_to(req->iov, req->iovcnt, 0, m->data + req->offset,
			       req->len);
		return ret;
	case BLOCK_FLUSH: return 0;
	case BLOCK_DISCARD:
	case BLOCK_ZERO:
		if (have)
			memset(m->data + req->offset, 0, have);
		return 0;
	}
	return -EINVAL;
}

static int memory_perform(struct store *s, const struct block_req *req)
{
	struct memory *m = to_memory(s);
	int ret;

	pthread_mutex_lock(&m->lock);
	ret = perform_locked(m, req);
	pthread_mutex_unlock(&m->lock);
	return ret;
}

static void memory_submit(struct store *s, struct block_req *req)
{
	req->done(req, memory_perform(s, req));
}

static void memory_drain(struct store *s)
{
}

static int memory_set_size(struct store *s, uint64_t size)
{
	struct memory *m = to_memory(s);
	int ret;

	pthread_mutex_lock(&m->lock);
	ret = grow(m, size);
	if (!ret)
		atomic_store(&s->size, size);
	pthread_mutex_unlock(&m->lock);
	return ret;
}

static void memory_close(struct store *s)
{
	struct memory *m = to_memory(s);

	pthread_mutex_destroy(&m->lock);
	free(m->data);
	free(m);
}

static const struct store_ops memory_ops = {
	.close = memory_close,
	.perform = memory_perform,
	.submit = memory_submit,
	.drain = memory_drain,
	.set_size = memory_set_size,
};

struct store *memory_store(const void *data, size_t len)
{
	struct memory *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->store.ops = &memory_ops;
	pthread_mutex_init(&m->lock, NULL);
	if (grow(m, len)) {
		memory_close(&m->store);
		return NULL;
	}
	if (len)
		memcpy(m->data, data, len);
	return &m->store;
}

const void *memory_store_data(struct store *s, size_t *len)
{
	*len = atomic_load(&s->size);
	return to_memory(s)->data;
}
