/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_qcow2.c - damaged images, and images of another maker
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "mock/disk_model.h"
#include "mock/memory_store.h"
#include "vm/block/qcow2.h"

static struct model model;

/* A small image with some data; *len bytes. */
static uint8_t *make_image(size_t *len)
{
	struct q2_create c = { .size = 1 << 20, .cluster_bits = 12 };
	struct block_config cfg = { .path = "memory", .format = "qcow2" };
	struct store *s = memory_store(NULL, 0);
	uint8_t data[8192], *copy;
	struct husk_error err;
	struct block *b;
	const void *bytes;

	assert_int_equal(q2_create(s, &c), 0);
	cfg.store = s;
	b = block_open_config(&cfg, &err);
	assert_non_null(b);
	memset(data, 0x11, sizeof(data));
	assert_int_equal(block_write(b, 4096, data, sizeof(data)), 0);
	assert_int_equal(block_flush(b), 0);
	bytes = memory_store_data(s, len);
	copy = malloc(*len);
	memcpy(copy, bytes, *len);
	block_close(b);
	return copy;
}

static struct block *open_bytes(const uint8_t *image, size_t len, bool readonly,
				struct husk_error *err)
{
	struct block_config cfg = {
		.path = "image",
		.format = "qcow2",
		.readonly = readonly,
		.no_base = true,
		.store = memory_store(image, len),
	};

	return block_open_config(&cfg, err);
}

static uint64_t get(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | *p++;
	return v;
}

static void put(uint8_t *p, unsigned n, uint64_t v)
{
	for (; n--; v >>= 8)
		p[n] = (uint8_t)v;
}

static void header_is_distrusted(void **state)
{
	static const struct {
		unsigned at, n;
		uint64_t value;
		const char *says;
	} lies[] = {
		{ 0, 4, 0x514649fc, "not a qcow2 image" },
		{ 4, 4, 2, "version 2" },
		{ 4, 4, 4, "version 4" },
		{ 8, 8, 1ull << 40, "name of the base" },
		{ 8, 8, 4000, NULL }, /* a base of no length */
		{ 20, 4, 8, "size of clusters" },
		{ 20, 4, 22, "size of clusters" },
		{ 20, 4, 0xffffffff, "size of clusters" },
		{ 24, 8, 0, "size of the disk" },
		{ 24, 8, 1000, "size of the disk" },
		{ 24, 8, 1ull << 63, "size of the disk" },
		{ 24, 8, 1ull << 40, "L1 table" },
		{ 32, 4, 1, "encrypted" },
		{ 36, 4, 0, "L1 table" },
		{ 36, 4, 0x80000000, "L1 table" },
		{ 40, 8, 4097, "L1 table" },
		{ 40, 8, 0, "L1 table" },
		{ 40, 8, ~4095ull, "L1 table" },
		{ 48, 8, 100, "refcount table" },
		{ 48, 8, 1ull << 50, "refcount table" },
		{ 56, 4, 0, "refcount table" },
		{ 56, 4, 0xffffffff, "refcount table" },
		{ 60, 4, 1, "snapshot table" },
		{ 60, 4, 0xffffffff, "snapshot table" },
		{ 72, 8, 2, "marked as corrupt" },
		{ 72, 8, 4, "another file" },
		{ 72, 8, 16, "subclusters" },
		{ 72, 8, 1ull << 63, "features that are not known" },
		{ 96, 4, 7, "width of refcounts" },
		{ 100, 4, 96, "length of the header" },
		{ 100, 4, 0xfffffff8, "length of the header" },
		{ 104, 1, 7, NULL }, /* no bit says that it counts */
	};
	size_t len;
	uint8_t *image = make_image(&len), *copy = malloc(len);

	for (unsigned i = 0; i < ARRAY_SIZE(lies); i++) {
		struct husk_error err = { 0 };
		struct block *b;

		memcpy(copy, image, len);
		put(copy + lies[i].at, lies[i].n, lies[i].value);
		b = open_bytes(copy, len, false, &err);
		if (!lies[i].says != !!b ||
		    (!b && !strstr(err.text, lies[i].says)))
			fail_msg("lie %u: \"%s\"", i, b ? "opened" : err.text);
		block_close(b);
	}
	free(copy);
	free(image);
}

/* Entries that lead to the wrong place: an error, and no more writes. */
static void tables_are_distrusted(void **state)
{
	static const uint64_t lies[] = {
		1ull << 63 | 0,		   /* fine: nothing there */
		1ull << 63 | 0x1000000000, /* behind the end */
		1ull << 63 | 0x1200,	   /* inside a cluster */
		1ull << 63 | 0x100000 | 4, /* unknown bits */
		1ull << 62 | ~0ull >> 2,   /* compressed, nowhere */
	};
	size_t len;
	uint8_t *image = make_image(&len), *copy = malloc(len);
	uint64_t l1 = get(image + 40, 8), ref = get(image + 48, 8);
	uint64_t l2 = get(image + l1, 8) & Q2_OFFSET;
	uint64_t where[] = { 0, l1, ref, l2 };
	uint8_t data[4096] = { 0 };
	struct husk_error err;
	struct block *b;

	for (unsigned i = 1; i < ARRAY_SIZE(lies) + ARRAY_SIZE(where); i++) {
		uint64_t lie = i < ARRAY_SIZE(lies)
				       ? lies[i]
				       : BIT(63) | where[i - ARRAY_SIZE(lies)];

		if (lie == BIT(63) || lie == (BIT(63) | l2))
			continue;
		memcpy(copy, image, len);
		put(copy + l2 + 8, 8, lie);
		b = open_bytes(copy, len, false, &err);
		assert_non_null(b);
		assert_int_not_equal(block_read(b, 4096, data, 4096), 0);
		assert_int_not_equal(block_write(b, 0, data, 4096), 0);
		assert_int_equal(block_read(b, 8192, data, 4096), 0);
		block_close(b);
		/* An L1 entry that lies is found when it is opened. */
		if (i >= ARRAY_SIZE(lies) || lie & BIT(62) || lie & 4)
			continue;
		memcpy(copy, image, len);
		put(copy + l1, 8, lie);
		assert_null(open_bytes(copy, len, true, &err));
	}
	/* A refcount block where the L2 table is. */
	memcpy(copy, image, len);
	put(copy + ref, 8, l2);
	b = open_bytes(copy, len, false, &err);
	assert_non_null(b);
	block_read(b, 4096, data, 4096);
	for (unsigned i = 0; i < 64; i++)
		block_write(b, i * 16384, data, 4096);
	block_close(b);
	/* Free as it says, but in use: tables are not overwritten. */
	memcpy(copy, image, len);
	memset(copy + get(image + ref, 8), 0, 4096);
	b = open_bytes(copy, len, false, &err);
	assert_non_null(b);
	assert_int_not_equal(block_write(b, 65536, data, 4096), 0);
	block_close(b);
	free(copy);
	free(image);
}

/* -- beside qemu-img ------------------------------------------------------ */

static char dir[] = "/tmp/test_qcow2.XXXXXX";

static int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;
	int n = snprintf(cmd, sizeof(cmd), "cd %s && ", dir);

	va_start(ap, fmt);
	vsnprintf(cmd + n, sizeof(cmd) - n, fmt, ap);
	va_end(ap);
	return system(cmd);
}

/* Random requests on its images leave what it finds sound, and the same. */
static void changes_what_qemu_made(void **state)
{
	static const char *const kinds[] = {
		"cluster_size=512",
		"cluster_size=64k",
		"cluster_size=2M",
		"cluster_size=4k,refcount_bits=1",
		"cluster_size=512,refcount_bits=2",
		"cluster_size=512,refcount_bits=64",
		"cluster_size=4k,refcount_bits=8,lazy_refcounts=on",
		"preallocation=metadata",
		"compression_type=zstd",
	};
	char path[64];

	if (run("qemu-img --version >/dev/null 2>&1")) {
		print_message("SKIP: no qemu-img\n");
		skip();
	}
	snprintf(path, sizeof(path), "%s/a.qcow2", dir);
	for (unsigned i = 0; i < ARRAY_SIZE(kinds) * 2; i++) {
		const char *kind = kinds[i / 2];
		struct husk_error err = { 0 };
		struct block *b;

		/* With a snapshot or compressed data, every other time. */
		model_init(&model, 3 << 20, i);
		assert_int_equal(run("rm -f *; truncate -s 3M zero.raw"), 0);
		assert_int_equal(run("qemu-img %s -f raw -O qcow2 -o %s "
				     "zero.raw a.qcow2",
				     "convert", kind),
				 0);
		b = block_open(path, false, &err);
		if (!b)
			fail_msg("%s: %s", kind, err.text);
		for (unsigned k = 0; k < 100; k++)
			assert_int_equal(model_step(&model, b), 0);
		model_verify(&model, b, true);
		block_close(b);
		assert_int_equal(run("qemu-img check -q -f qcow2 a.qcow2"), 0);
		if (i & 1 && !strstr(kind, "refcount_bits=1"))
			assert_int_equal(
				run("qemu-img snapshot -c one a.qcow2"), 0);
		else if (i & 1)
			assert_int_equal(run("qemu-img convert -q -c -f qcow2 "
					     "-O qcow2 -o %s a.qcow2 b.qcow2 "
					     "&& mv b.qcow2 a.qcow2",
					     kind),
					 0);
		b = block_open(path, false, &err);
		if (!b)
			fail_msg("%s: %s", kind, err.text);
		model_verify(&model, b, true);
		for (unsigned k = 0; k < 150; k++)
			assert_int_equal(model_step(&model, b), 0);
		model_verify(&model, b, true);
		block_close(b);
		if (run("qemu-img check -q -f qcow2 a.qcow2"))
			fail_msg("%s: qemu-img check", kind);
		assert_int_equal(run("qemu-img convert -f qcow2 -O raw a.qcow2 "
				     "a.raw"),
				 0);
		snprintf(path, sizeof(path), "%s/a.raw", dir);
		b = block_open(path, true, &err);
		assert_non_null(b);
		model_verify(&model, b, true);
		block_close(b);
		snprintf(path, sizeof(path), "%s/a.qcow2", dir);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header_is_distrusted),
		cmocka_unit_test(tables_are_distrusted),
		cmocka_unit_test(changes_what_qemu_made),
	};
	int ret;

	if (!mkdtemp(dir))
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	return run("rm -rf %s", dir) ? 1 : ret;
}
