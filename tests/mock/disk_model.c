/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_model.c - what a disk may hold, and random requests to compare with it
 */
#include "mock/disk_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"

/* -- what each sector may hold -------------------------------------------- */

static uint32_t draw(struct model *m, uint32_t below)
{
	m->random = m->random * 1664525 + 1013904223;
	return (m->random >> 8) % below;
}

void model_init(struct model *m, uint64_t size, uint32_t seed)
{
	memset(m, 0, sizeof(*m));
	m->size = size;
	m->random = seed * 2654435761u + 1;
	for (uint64_t s = 0; s < size / SECTOR; s++)
		m->sector[s].n = 1;
}

static void add(struct sector *s, uint64_t stamp)
{
	if (s->n == HISTORY) { /* the oldest but the flushed one */
		memmove(s->may + 1, s->may + 2, (HISTORY - 2) * 8);
		s->n--;
	}
	s->may[s->n++] = stamp;
}

static void model_flush(struct model *m)
{
	for (uint64_t s = 0; s < m->size / SECTOR; s++) {
		m->sector[s].may[0] = m->sector[s].may[m->sector[s].n - 1];
		m->sector[s].n = 1;
	}
}

static bool may(const struct sector *s, uint64_t stamp)
{
	for (unsigned i = 0; i < s->n; i++)
		if (s->may[i] == stamp)
			return true;
	return false;
}

/* One stamp fills all of a sector, or it is damaged. */
static uint64_t stamp_of(const uint64_t *p)
{
	for (unsigned i = 1; i < SECTOR / 8; i++)
		if (p[i] != p[0])
			return UINT64_MAX;
	return p[0];
}

void model_verify(struct model *m, struct block *b, bool newest)
{
	static _Thread_local uint64_t buf[MAX_SECTORS * SECTOR / 8];

	assert_int_equal(block_read(b, 0, buf, m->size), 0);
	for (uint64_t s = 0; s < m->size / SECTOR; s++) {
		struct sector *k = &m->sector[s];
		uint64_t is = stamp_of(buf + s * SECTOR / 8);

		if (newest ? is != k->may[k->n - 1] : !may(k, is))
			fail_msg("sector %llu is %llu, not %llu (of %u)",
				 (unsigned long long)s, (unsigned long long)is,
				 (unsigned long long)k->may[k->n - 1], k->n);
	}
}

/* -- random operations ---------------------------------------------------- */

struct asked {
	struct block_req req;
	int err, count;
};

static void on_done(struct block_req *req, int err)
{
	struct asked *a = (struct asked *)(void *)req;

	__atomic_store_n(&a->err, err, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&a->count, 1, __ATOMIC_SEQ_CST);
}

/* Half of them by submit(): the short way. */
static int perform(struct block *b, const struct block_req *req, bool submit)
{
	struct asked a = { .req = *req };

	if (!submit)
		return block_perform(b, req);
	a.req.done = on_done;
	block_submit(b, &a.req);
	block_drain(b);
	assert_int_equal(a.count, 1);
	return a.err;
}

static int read_some(struct model *m, struct block *b, struct block_req *req)
{
	uint64_t buf[256 * SECTOR / 8];
	struct iovec iov[2] = { { buf, SECTOR },
				{ buf + SECTOR / 8, req->len - SECTOR } };
	int ret;

	req->op = BLOCK_READ;
	req->iov = iov;
	req->iovcnt = 2;
	ret = perform(b, req, draw(m, 2));
	req->iov = NULL;
	for (uint64_t i = 0; !ret && i < req->len / SECTOR; i++) {
		struct sector *s = &m->sector[req->offset / SECTOR + i];

		if (stamp_of(buf + i * SECTOR / 8) != s->may[s->n - 1])
			fail_msg(
				"read of sector %llu",
				(unsigned long long)(req->offset / SECTOR + i));
	}
	return ret;
}

static int write_some(struct model *m, struct block *b, struct block_req *req)
{
	uint64_t buf[256 * SECTOR / 8];
	struct iovec iov = { buf, req->len };
	int ret;

	m->stamp++;
	for (uint64_t i = 0; i < req->len / 8; i++)
		buf[i] = m->stamp;
	req->op = BLOCK_WRITE;
	req->iov = &iov;
	req->iovcnt = 1;
	for (uint64_t i = 0; i < req->len / SECTOR; i++)
		add(&m->sector[req->offset / SECTOR + i], m->stamp);
	ret = perform(b, req, draw(m, 2));
	req->iov = NULL;
	return ret;
}

/* A discarded sector is zeros or what it was: the model takes what is. */
static int discard_some(struct model *m, struct block *b, struct block_req *req)
{
	uint64_t buf[256 * SECTOR / 8];
	int ret;

	for (uint64_t i = 0; i < req->len / SECTOR; i++)
		add(&m->sector[req->offset / SECTOR + i], 0);
	req->op = BLOCK_DISCARD;
	ret = perform(b, req, draw(m, 2));
	if (!ret)
		ret = block_read(b, req->offset, buf, req->len);
	for (uint64_t i = 0; !ret && i < req->len / SECTOR; i++) {
		struct sector *s = &m->sector[req->offset / SECTOR + i];
		uint64_t is = stamp_of(buf + i * SECTOR / 8);

		assert_true(is == 0 || is == s->may[s->n - 2]);
		if (is)
			add(s, is);
	}
	return ret;
}

int model_step(struct model *m, struct block *b)
{
	uint64_t sectors = m->size / SECTOR;
	struct block_req req = { 0 };
	int ret;

	req.len = (2 + draw(m, draw(m, 4) ? 20 : 250)) * SECTOR;
	req.len = MIN(req.len, m->size);
	req.offset = draw(m, sectors - req.len / SECTOR + 1) * (uint64_t)SECTOR;
	switch (draw(m, 12)) {
	case 0:
	case 1:
		req.op = BLOCK_FLUSH;
		ret = perform(b, &req, draw(m, 2));
		if (!ret)
			model_flush(m);
		return ret;
	case 2: return discard_some(m, b, &req);
	case 3:
		req.op = BLOCK_ZERO;
		req.keep = draw(m, 2);
		for (uint64_t i = 0; i < req.len / SECTOR; i++)
			add(&m->sector[req.offset / SECTOR + i], 0);
		return perform(b, &req, draw(m, 2));
	case 4:
	case 5:
	case 6: return read_some(m, b, &req);
	default: return write_some(m, b, &req);
	}
}
