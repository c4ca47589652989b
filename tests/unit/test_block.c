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
#include "mock/disk_model.h"
#include "mock/memory_store.h"
#include "vm/block/qcow2.h"

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
				assert_int_equal(model_step(&model, b), 0);
			model_verify(&model, b, true);
			assert_int_equal(block_flush(b), 0);
			assert_int_equal(block_flush(b), 0);
			copy = copy_of(to_qcow2(b)->store);
			if (kinds[k].lazy) {
				/* Marked: counted anew when it is opened. */
				block_close(b);
				b = open_memory(copy_of(copy), "qcow2", NULL,
						false);
			}
			model_verify(&model, b, true);
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
	model_verify(&model, b, true);
	for (unsigned i = 0; i < 400; i++)
		assert_int_equal(model_step(&model, b), 0);
	model_verify(&model, b, true);
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
				ret = model_step(&model, b);
			over = !ret;
			/* What the cut left, before close can see it. */
			if (!over) {
				inner = copy_of(inner);
			}
			block_close(b);
			if (over)
				break;
			b = open_memory(inner, format, NULL, false);
			model_verify(&model, b, false);
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
	for (unsigned seed = 1; seed <= 2; seed++) {
		cut_everywhere("raw", 0, false, 40, seed);
		cut_everywhere("qcow2", 12, false, 60, seed);
		cut_everywhere("qcow2", 16, false, 60, seed);
		cut_everywhere("qcow2", 9, false, 30, seed);
		cut_everywhere("qcow2", 12, true, 60, seed);
	}
	print_message("%u cuts, 4 outcomes of each\n", cuts);
}

/* -- many at a time ------------------------------------------------------- */

/* A part of a disk as a disk of its own: its requests meet the others'. */
struct slice {
	struct block block;
	struct block *whole;
	uint64_t offset;
	struct model model;
	pthread_t thread;
	int err;
};

struct waiter {
	struct block_req req;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool over;
	int err;
};

static void wake(struct block_req *req, int err)
{
	struct waiter *w = container_of(req, struct waiter, req);

	pthread_mutex_lock(&w->lock);
	w->err = err;
	w->over = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static int slice_perform(struct block *b, const struct block_req *req)
{
	struct slice *s = container_of(b, struct slice, block);
	struct waiter w = { .req = *req };

	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.cond, NULL);
	w.req.offset += s->offset;
	w.req.done = wake;
	block_submit(s->whole, &w.req);
	pthread_mutex_lock(&w.lock);
	while (!w.over)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.lock);
	return w.err;
}

static void slice_submit(struct block *b, struct block_req *req)
{
	req->done(req, slice_perform(b, req));
}

static void slice_drain(struct block *b)
{
}

static const struct block_ops slice_ops = {
	.name = "slice",
	.submit = slice_submit,
	.perform = slice_perform,
	.drain = slice_drain,
};

static void *slice_thread(void *arg)
{
	struct slice *s = arg;

	for (unsigned i = 0; i < 250 && !s->err; i++)
		s->err = model_step(&s->model, &s->block);
	return NULL;
}

/* Slices end inside of clusters, which they share. */
static void many_at_a_time(void **state)
{
	enum { SLICES = 8, SIZE = 37 * 5 * SECTOR };
	static struct slice slice[SLICES];
	static const unsigned bits[] = { 9, 12, 16 };

	for (unsigned k = 0; k < ARRAY_SIZE(bits) * 2; k++) {
		struct store *s = new_image(SLICES * SIZE, bits[k / 2], k == 5);
		struct husk_error err;
		struct block *b;

		s = store_fault(s, k & 1 ? "delay=300" : "delay=0", &err);
		b = open_memory(s, "qcow2", NULL, false);
		memset(slice, 0, sizeof(slice));
		for (unsigned i = 0; i < SLICES; i++) {
			slice[i].block.ops = &slice_ops;
			slice[i].block.size = SIZE;
			slice[i].block.sector = SECTOR;
			slice[i].whole = b;
			slice[i].offset = (uint64_t)i * SIZE;
			model_init(&slice[i].model, SIZE, k * 100 + i);
			assert_int_equal(pthread_create(&slice[i].thread, NULL,
							slice_thread,
							&slice[i]),
					 0);
		}
		for (unsigned i = 0; i < SLICES; i++) {
			pthread_join(slice[i].thread, NULL);
			assert_int_equal(slice[i].err, 0);
		}
		for (unsigned i = 0; i < SLICES; i++)
			model_verify(&slice[i].model, &slice[i].block, true);
		assert_int_equal(block_flush(b), 0);
		assert_int_equal(block_flush(b), 0);
		if (k != 5)
			assert_int_equal(expect_sound(b), 0);
		block_close(b);
	}
}

/* No room: what there is stays, and can be written; so it is when it is
 * opened again. */
static void full_storage_hurts_nobody(void **state)
{
	uint8_t buf[4096], is[4096];
	struct husk_error err;
	struct store *inner = new_image(4 << 20, 12, false);
	struct store *s = store_fault(inner, "full=200000", &err);
	struct block *b = open_memory(s, "qcow2", NULL, false);
	unsigned n = 0, failed = 0;
	int ret;

	for (unsigned i = 0; i < 100; i++) {
		memset(buf, i + 1, sizeof(buf));
		ret = block_write(b, i * 8192ull, buf, sizeof(buf));
		if (!ret && !failed)
			n++;
		assert_true(!ret || ret == -ENOSPC);
		failed += !!ret;
		if (i == 20)
			assert_int_equal(block_flush(b), 0);
	}
	assert_in_range(n, 21, 60);
	assert_true(failed > 20);
	for (unsigned i = 0; i < n; i++) {
		memset(buf, i + 2, sizeof(buf));
		assert_int_equal(block_write(b, i * 8192ull, buf, 4096), 0);
	}
	/* A discard makes room. */
	assert_int_equal(block_perform(b,
				       &(struct block_req){ .op = BLOCK_DISCARD,
							    .len = 8192 }),
			 0);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_write(b, 90 * 8192, buf, 512), 0);
	assert_int_equal(block_flush(b), 0);
	inner = copy_of(inner);
	block_close(b);
	b = open_memory(inner, "qcow2", NULL, false);
	assert_int_equal(expect_sound(b), 0);
	for (unsigned i = 1; i < n; i++) {
		memset(buf, i + 2, sizeof(buf));
		assert_int_equal(block_read(b, i * 8192ull, is, 4096), 0);
		assert_memory_equal(is, buf, sizeof(buf));
	}
	block_close(b);
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
			assert_int_equal(model_step(&model, b), 0);
		model_verify(&model, b, true);
		block_close(b);
		b = block_open_config(&cfg, &err);
		assert_non_null(b);
		model_verify(&model, b, true);
		if (qcow2)
			assert_int_equal(expect_sound(b), 0);
		block_close(b);
	}
	unlink(path);
}

/* -- large ones, which threads copy --------------------------------------- */

enum { LARGE = 1 << 20, LARGES = 12 };

struct large {
	struct block_req req;
	struct iovec iov;
	uint8_t *buf;
	atomic_int *left;
	int err;
};

static void large_done(struct block_req *req, int err)
{
	struct large *l = container_of(req, struct large, req);

	l->err = err;
	atomic_fetch_sub(l->left, 1);
}

/* Depth at a time; every request is done once, and without an error. */
static void large_turn(struct block *b, struct large *l, enum block_op op,
		       int depth)
{
	atomic_int left = 0;

	for (unsigned i = 0; i < LARGES; i++) {
		while (atomic_load(&left) >= depth)
			sched_yield();
		l[i].iov = (struct iovec){ l[i].buf, LARGE };
		l[i].left = &left;
		l[i].err = 1;
		l[i].req = (struct block_req){
			.op = op,
			.offset = (uint64_t)i * LARGE,
			.len = LARGE,
			.iov = &l[i].iov,
			.iovcnt = 1,
			.done = large_done,
		};
		atomic_fetch_add(&left, 1);
		block_submit(b, &l[i].req);
	}
	while (atomic_load(&left))
		sched_yield();
	for (unsigned i = 0; i < LARGES; i++)
		assert_int_equal(l[i].err, 0);
	block_drain(b);
}

/* Whoever copies them: those that wait for each, and those that do not. */
static void large_at_a_time(void **state)
{
	static const int depth[] = { LARGES, 1, 4, 1, 1, 1, LARGES, 4 };
	char path[64];
	struct block_config cfg = { .path = path, .format = "raw" };
	struct large l[LARGES] = { 0 };
	struct husk_error err;
	struct block *b;

	snprintf(path, sizeof(path), "%s/large.img", dir);
	close(open(path, O_CREAT | O_RDWR, 0600));
	assert_int_equal(truncate(path, (off_t)LARGES * LARGE), 0);
	b = block_open_config(&cfg, &err);
	assert_non_null(b);
	for (unsigned i = 0; i < LARGES; i++)
		assert_non_null(l[i].buf = malloc(LARGE));
	for (unsigned k = 0; k < ARRAY_SIZE(depth); k++) {
		for (unsigned i = 0; i < LARGES; i++)
			memset(l[i].buf, (int)(k * LARGES + i), LARGE);
		large_turn(b, l, BLOCK_WRITE, depth[k]);
		for (unsigned i = 0; i < LARGES; i++)
			memset(l[i].buf, 0xff, LARGE);
		large_turn(b, l, BLOCK_READ, depth[k]);
		for (unsigned i = 0; i < LARGES; i++) {
			uint8_t is = (uint8_t)(k * LARGES + i);

			assert_int_equal(l[i].buf[0], is);
			assert_memory_equal(l[i].buf, l[i].buf + 1, LARGE - 1);
		}
	}
	for (unsigned i = 0; i < LARGES; i++)
		free(l[i].buf);
	block_close(b);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qcow2_is_like_memory),
		cmocka_unit_test(overlay_is_like_memory),
		cmocka_unit_test(power_cut_leaves_it_whole),
		cmocka_unit_test(many_at_a_time),
		cmocka_unit_test(full_storage_hurts_nobody),
		cmocka_unit_test(files_in_all_modes),
		cmocka_unit_test(large_at_a_time),
	};
	char cmd[64];
	int ret;

	if (!mkdtemp(dir))
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd) ? 1 : ret;
}
