/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_block.c - disks against a plain memory model, and with the power cut
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "mock/memory_store.h"
#include "vm/block/qcow2.h"

enum { SECTOR = 512, MAX_SECTORS = 8192, HISTORY = 24 };

/* -- a model: what each sector may hold ----------------------------------- */

/* The stamp at its start stands for a sector; 0 is zeros. */
struct sector {
	uint64_t may[HISTORY]; /* the last is the newest */
	unsigned n;
};

struct model {
	struct sector sector[MAX_SECTORS];
	uint64_t size, stamp;
	uint32_t random;
};

static uint32_t draw(struct model *m, uint32_t below)
{
	m->random = m->random * 1664525 + 1013904223;
	return (m->random >> 8) % below;
}

static void model_init(struct model *m, uint64_t size, uint32_t seed)
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

/* newest: not only what may be after a cut. */
static void verify(struct model *m, struct block *b, bool newest)
{
	static uint64_t buf[MAX_SECTORS * SECTOR / 8];

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

static int done_err, done_count;

static void on_done(struct block_req *req, int err)
{
	__atomic_store_n(&done_err, err, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&done_count, 1, __ATOMIC_SEQ_CST);
}

/* Half of them by submit(): the short way. */
static int perform(struct block *b, struct block_req *req, bool submit)
{
	if (!submit)
		return block_perform(b, req);
	done_count = 0;
	req->done = on_done;
	block_submit(b, req);
	block_drain(b);
	assert_int_equal(done_count, 1);
	return done_err;
}

static int read_some(struct model *m, struct block *b, struct block_req *req)
{
	static uint64_t buf[256 * SECTOR / 8];
	struct iovec iov[2] = { { buf, SECTOR },
				{ buf + SECTOR / 8, req->len - SECTOR } };
	int ret;

	req->op = BLOCK_READ;
	req->iov = iov;
	req->iovcnt = 2;
	ret = perform(b, req, draw(m, 2));
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
	static uint64_t buf[256 * SECTOR / 8];
	struct iovec iov = { buf, req->len };

	m->stamp++;
	for (uint64_t i = 0; i < req->len / 8; i++)
		buf[i] = m->stamp;
	req->op = BLOCK_WRITE;
	req->iov = &iov;
	req->iovcnt = 1;
	for (uint64_t i = 0; i < req->len / SECTOR; i++)
		add(&m->sector[req->offset / SECTOR + i], m->stamp);
	return perform(b, req, draw(m, 2));
}

/* A discarded sector is zeros or what it was: the model takes what is. */
static int discard_some(struct model *m, struct block *b, struct block_req *req)
{
	static uint64_t buf[256 * SECTOR / 8];
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

/* 0, or the error of the first that failed. */
static int step(struct model *m, struct block *b)
{
	uint64_t sectors = m->size / SECTOR;
	struct block_req req = { 0 };
	int ret;

	req.len = (2 + draw(m, draw(m, 4) ? 20 : 250)) * SECTOR;
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

/* -- images in memory ----------------------------------------------------- */

static struct block *open_memory(struct store *s, const char *format,
				 const char *base, bool readonly)
{
	struct husk_error err = { 0 };
	struct block_config cfg = {
		.path = "memory",
		.format = format,
		.store = s,
		.base = base,
		.readonly = readonly,
	};
	struct block *b = block_open_config(&cfg, &err);

	if (!b)
		fail_msg("open: %s", err.text);
	return b;
}

static void on_report(void *opaque, const char *text)
{
	print_message("check: %s\n", text);
}

/* How many clusters are lost; nothing worse may be. */
static uint64_t expect_sound(struct block *b)
{
	struct q2_check c = { .report = on_report };

	assert_int_equal(q2_check(to_qcow2(b), false, &c), 0);
	assert_int_equal(c.errors, 0);
	return c.leaks;
}

static struct store *copy_of(struct store *s)
{
	size_t len;
	const void *data = memory_store_data(s, &len);

	return memory_store(data, len);
}

static struct store *new_image(uint64_t size, unsigned bits, bool lazy)
{
	struct q2_create c = { .size = size, .cluster_bits = bits };
	struct store *s = memory_store(NULL, 0);

	c.lazy = lazy;
	assert_int_equal(q2_create(s, &c), 0);
	return s;
}

/* -- tests ---------------------------------------------------------------- */

static struct model model;

static void qcow2_is_like_memory(void **state)
{
	static const struct {
		unsigned bits;
		uint64_t size;
		bool lazy;
	} kinds[] = {
		{ 9, 300 * 512, false },  { 9, 4 << 20, false },
		{ 12, 2 << 20, false },	  { 12, (1 << 20) + 512, true },
		{ 16, 4 << 20, false },	  { 16, 4 << 20, true },
		{ 21, (4 << 20), false },
	};

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct store *s =
			new_image(kinds[k].size, kinds[k].bits, kinds[k].lazy);

		model_init(&model, kinds[k].size, k);
		for (unsigned round = 0; round < 4; round++) {
			struct store *copy;
			struct block *b = open_memory(s, "qcow2", NULL, false);

			for (unsigned i = 0; i < 150; i++)
				assert_int_equal(step(&model, b), 0);
			verify(&model, b, true);
			assert_int_equal(block_flush(b), 0);
			assert_int_equal(block_flush(b), 0);
			copy = copy_of(to_qcow2(b)->store);
			if (kinds[k].lazy) {
				/* Marked: counted anew when it is opened. */
				block_close(b);
				b = open_memory(copy_of(copy), "qcow2", NULL,
						false);
			}
			verify(&model, b, true);
			assert_int_equal(expect_sound(b), 0);
			block_close(b);
			s = copy;
		}
		store_close(s);
	}
}

static char dir[] = "/tmp/test_block.XXXXXX";
static char path_buf[4][128];

static const char *file(unsigned n, const char *name)
{
	snprintf(path_buf[n], sizeof(path_buf[n]), "%s/%s", dir, name);
	return path_buf[n];
}

/* On a base that is shorter, cut at half a cluster. */
static void overlay_is_like_memory(void **state)
{
	const char *base = file(0, "base.raw");
	uint64_t sectors = 1001, stamp[SECTOR / 8];
	struct store *s = new_image(2 << 20, 16, false);
	struct block *b;
	FILE *f = fopen(base, "w");

	assert_non_null(f);
	model_init(&model, 2 << 20, 5);
	for (uint64_t i = 0; i < sectors; i++) {
		for (unsigned k = 0; k < SECTOR / 8; k++)
			stamp[k] = i + 1000000;
		assert_int_equal(fwrite(stamp, SECTOR, 1, f), 1);
		model.sector[i].may[0] = i + 1000000;
	}
	fclose(f);
	b = open_memory(s, "qcow2", base, false);
	verify(&model, b, true);
	for (unsigned i = 0; i < 400; i++)
		assert_int_equal(step(&model, b), 0);
	verify(&model, b, true);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(expect_sound(b), 0);
	block_close(b);
}

/* Cut at every change of a sequence, with all outcomes of what was not
 * flushed: the image is sound and holds what was. */
static unsigned cuts;

static void cut_everywhere(const char *format, unsigned bits, bool lazy,
			   unsigned steps, uint32_t seed)
{
	uint64_t size = 1 << 20;
	struct store *image = *format == 'q' ? new_image(size, bits, lazy)
					     : memory_store(NULL, 0);
	struct husk_error err = { 0 };

	if (*format != 'q')
		store_set_size(image, size);
	for (unsigned cut = 1;; cut++) {
		bool over = false;

		for (unsigned kind = 0; kind < 4; kind++) {
			struct store *s, *inner;
			struct block *b;
			char spec[64];
			int ret = 0;

			snprintf(spec, sizeof(spec), "cut=%u+seed=%u", cut,
				 kind < 2 ? kind : kind + cut * 7);
			inner = copy_of(image);
			s = store_fault(inner, spec, &err);
			assert_non_null(s);
			model_init(&model, size, seed);
			b = open_memory(s, format, NULL, false);
			for (unsigned i = 0; i < steps && !ret; i++)
				ret = step(&model, b);
			over = !ret;
			/* What the cut left, before close can see it. */
			if (!over) {
				inner = copy_of(inner);
			}
			block_close(b);
			if (over)
				break;
			b = open_memory(inner, format, NULL, false);
			verify(&model, b, false);
			if (*format == 'q')
				expect_sound(b);
			block_close(b);
		}
		if (over)
			break;
		cuts++;
	}
	store_close(image);
}

static void power_cut_leaves_it_whole(void **state)
{
	for (unsigned seed = 1; seed <= 4; seed++) {
		cut_everywhere("raw", 0, false, 40, seed);
		cut_everywhere("qcow2", 12, false, 60, seed);
		cut_everywhere("qcow2", 16, false, 60, seed);
		cut_everywhere("qcow2", 9, false, 30, seed);
		cut_everywhere("qcow2", 12, true, 60, seed);
	}
	print_message("%u cuts, 4 outcomes of each\n", cuts);
}

static void files_in_all_modes(void **state)
{
	const char *path = file(0, "modes.raw");
	struct husk_error err = { 0 };

	for (unsigned i = 0; i < 16; i++) {
		bool qcow2 = i & 4;
		struct block_config cfg = {
			.path = path,
			.format = qcow2 ? "qcow2" : "raw",
			.cache = i & 1 ? BLOCK_DIRECT : BLOCK_CACHED,
			.aio = i & 2 ? BLOCK_AIO_THREADS : BLOCK_AIO_AUTO,
			.sync = i & 8 ? BLOCK_SYNC_DATA : BLOCK_SYNC_FULL,
		};
		/* The last page of the raw file is a part of one. */
		uint64_t size = (2 << 20) + (qcow2 ? 0 : 5 * SECTOR);
		struct q2_create c = { .size = size };
		struct store *s;
		struct block *b;

		unlink(path);
		close(open(path, O_CREAT | O_RDWR, 0600));
		cfg.cache = BLOCK_CACHED;
		s = store_open(&cfg, &err);
		assert_non_null(s);
		assert_int_equal(
			qcow2 ? q2_create(s, &c) : store_set_size(s, size), 0);
		store_close(s);
		cfg.cache = i & 1 ? BLOCK_DIRECT : BLOCK_CACHED;
		b = block_open_config(&cfg, &err);
		if (!b && strstr(err.text, "cache=direct")) {
			print_message("SKIP: %s\n", err.text);
			continue;
		}
		if (!b)
			fail_msg("%s", err.text);
		model_init(&model, size, i);
		for (unsigned k = 0; k < 150; k++)
			assert_int_equal(step(&model, b), 0);
		verify(&model, b, true);
		block_close(b);
		b = block_open_config(&cfg, &err);
		assert_non_null(b);
		verify(&model, b, true);
		if (qcow2)
			assert_int_equal(expect_sound(b), 0);
		block_close(b);
	}
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qcow2_is_like_memory),
		cmocka_unit_test(overlay_is_like_memory),
		cmocka_unit_test(power_cut_leaves_it_whole),
		cmocka_unit_test(files_in_all_modes),
	};
	char cmd[64];
	int ret;

	if (!mkdtemp(dir))
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd) ? 1 : ret;
}
