/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_saved_bad.c - no damaged or hostile file of a machine does anything but
 * be refused with a sentence, or run
 *
 * With the argument "all" every byte is changed, else some.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include "base/crc32c.h"
#include "mock/counter.h"
#include "mock/seal.h"

static bool all;

static size_t meta_len;

static int try_it(struct husk_error *err)
{
	struct vm_saved *saved;
	int ret;

	memset(err, 0, sizeof(*err));
	ret = vm_saved_open(other, &saved, err);
	if (!ret)
		vm_saved_close(saved);
	else
		assert_true(*err->text);
	return ret;
}

static void change(size_t at, const void *data, size_t len)
{
	int fd = open(other, O_WRONLY);

	assert_int_equal(pwrite(fd, data, len, (off_t)at), len);
	close(fd);
}

static void load_image(void)
{
	struct husk_error err = { 0 };
	struct vm *vm = start(false);

	assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, NULL, &err), 0);
	vm_destroy(vm);
	load_file(file);
	meta_len = ((struct saved_header *)(void *)image)->ram_at;
}

static void test_flipped(void **state)
{
	struct husk_error err;

	load_image();
	put_file(image, image_len);
	assert_int_equal(try_it(&err), 0);
	/* All of the header and the table, and some of each field. */
	for (size_t i = 0; i < meta_len; i += all || i < 2048 ? 1 : 5) {
		uint8_t b = image[i] ^ (uint8_t)(1u << i % 8);

		change(i, &b, 1);
		if (!try_it(&err))
			fail_msg("byte %zu of %zu does not matter", i,
				 meta_len);
		change(i, &image[i], 1);
	}
	assert_int_equal(try_it(&err), 0);
	free(image);
}

static void test_cut(void **state)
{
	struct husk_error err;

	load_image();
	put_file(image, image_len);
	for (size_t len = image_len; len > 4096; len -= image_len / 64) {
		assert_int_equal(truncate(other, (off_t)len - 1), 0);
		assert_int_equal(try_it(&err), -EBADMSG);
	}
	for (size_t len = 0; len < 4096; len += 63) {
		put_file(image, len);
		assert_int_equal(try_it(&err), -EBADMSG);
	}
	put_file(image, image_len);
	assert_int_equal(truncate(other, (off_t)image_len + 4096), 0);
	assert_int_equal(try_it(&err), -EBADMSG);
	free(image);
}

/* Changes of the table and header with checksums that fit. */
static void test_hostile(void **state)
{
	struct husk_error err;
	struct saved_header *h;
	struct saved_entry *e, swap;
	struct saved_unit *u = NULL;
	uint8_t *copy;
	int ret;

	load_image();
	copy = malloc(image_len);
	h = (void *)copy;
	e = (void *)(copy + sizeof(*h));
	for (unsigned n = 0; n < 14; n++) {
		memcpy(copy, image, image_len);
		for (unsigned i = 0; i < h->nsections; i++)
			if (!strcmp(e[i].name, "ram"))
				u = (void *)(copy + e[i].at);
		assert_non_null(u);
		switch (n) {
		case 0: h->version = 2; break;
		case 1: e[3].version = 77; break; /* the first CPUID */
		case 2: memcpy(e[5].name, e[6].name, 32); break;
		case 3:
			swap = e[7];
			e[7] = e[8];
			e[8] = swap;
			break;
		case 4: e[2].size = UINT64_MAX; break;
		case 5: e[2].at = UINT64_MAX - 7; break;
		case 6: h->nsections = 100000; break;
		case 7: h->ram_at = UINT64_MAX & ~4095ull; break;
		case 8: h->ram_size = 1ull << 60; break;
		case 9: u[0].size = UINT32_MAX; break;
		case 10: u[0].at += 4096; break;
		case 11: h->flags = SAVED_COMPRESSED; break;
		case 12: h->nsections--; break;
		case 13: h->file_size += 1ull << 40; break;
		}
		seal(copy, meta_len);
		put_file(copy, image_len);
		ret = try_it(&err);
		assert_int_equal(ret, n < 2 ? -ENOTSUP : -EBADMSG);
	}
	free(copy);
	free(image);
}

/* -- what the parsers see ------------------------------------------------- */

static struct vm_config *good;

static struct saved_header *header(uint8_t *p)
{
	return (void *)p;
}

static struct saved_entry *table(uint8_t *p)
{
	return (void *)(p + sizeof(struct saved_header));
}

static void load_all(bool compress)
{
	const struct vm_save_options o = { .stop = true, .compress = compress };
	struct husk_error err = { 0 };
	struct vm *vm;

	good = configure_all();
	vm = start_config(good);
	if (vm_save(vm, file, &o, NULL, NULL, NULL, &err))
		fail_msg("%s", err.text);
	vm_destroy(vm);
	load_file(file);
	meta_len = header(image)->ram_at;
}

static void drop_all(void)
{
	vm_config_destroy(good);
	free(image);
}

/* Refused with a sentence, or what it is now runs for a moment. */
static int restore_it(bool with_its_config)
{
	const struct vm_restore_options force = { .force = true };
	struct husk_error err = { 0 };
	struct vm_config *cfg = NULL;
	struct vm_saved *saved;
	struct vm *vm = NULL;
	int ret = vm_saved_open(other, &saved, &err);

	if (ret) {
		assert_true(*err.text);
		return ret;
	}
	/* Its configuration is only read: it may name any file. */
	ret = vm_saved_config(saved, &cfg, &err);
	vm_config_destroy(cfg);
	if (!ret || !with_its_config)
		ret = vm_restore(saved, good, &force, &vm, &err);
	if (ret) {
		assert_null(vm);
		assert_true(*err.text);
	} else {
		assert_int_equal(vm_start(vm, &err), 0);
		usleep(300);
		vm_destroy(vm);
	}
	vm_saved_close(saved);
	return ret;
}

static unsigned refused, run;

static void try_byte(uint8_t *copy, size_t at, uint8_t value)
{
	/* What a wrong number of sections makes seal() write is not for others. */
	memcpy(copy, image, meta_len);
	copy[at] = value;
	seal(copy, meta_len);
	change(0, copy, meta_len);
	if (restore_it(false))
		refused++;
	else
		run++;
}

/* Every nth byte from the first one on; n 0: some of all. */
static void try_bytes(size_t first, size_t n)
{
	uint8_t *copy;

	load_all(false);
	copy = malloc(meta_len);
	put_file(image, image_len);
	refused = run = 0;
	/* Another phase in each section, so that all fields have their turn. */
	for (size_t i = 8 + first; i < meta_len;
	     i += n ? n : 1 + meta_len / 700 + i % 7)
		try_byte(copy, i,
			 image[i] ^ (uint8_t)(i % 3 ? 1u << i % 8 : 0xff));
	print_message("%zu bytes of sections and header: %u refused, %u run\n",
		      meta_len, refused, run);
	assert_true(refused > 0 && run > 0);
	free(copy);
	drop_all();
}

static pid_t try_bytes_apart(size_t first, size_t n)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	make_folder(NULL);
	try_bytes(first, n);
	remove_folder(NULL);
	_exit(0);
}

/* The header's and table's own checks, and those of each section's reader. */
static void test_sealed(void **state)
{
	/* They wait for threads more than they work. */
	long n = 4 * sysconf(_SC_NPROCESSORS_ONLN);
	bool failed = false;
	int status;

	if (!all) {
		try_bytes(0, 0);
		return;
	}
	for (long i = 0; i < n; i++)
		assert_true(try_bytes_apart((size_t)i, (size_t)n) > 0);
	while (wait(&status) > 0)
		failed |= status;
	assert_false(failed);
}

/* -- sections in another shape -------------------------------------------- */

struct piece {
	struct saved_entry e;
	const uint8_t *data;
};

/* The file of these sections, sealed, as a writer of them would have it. */
static void put_pieces(struct piece *piece, unsigned n)
{
	struct saved_header h = *header(image);
	uint64_t at = sizeof(h) + n * sizeof(struct saved_entry), ram_at = at;
	uint64_t was = h.ram_at, size = image_len - h.ram_at;
	uint8_t *p;

	for (unsigned i = 0; i < n; i++)
		ram_at = ALIGN_UP(ram_at, 8) + piece[i].e.size;
	ram_at = ALIGN_UP(ram_at, SAVED_PAGE);
	p = calloc(1, ram_at + size);
	h.nsections = n;
	h.ram_at = ram_at;
	h.file_size = ram_at + size;
	memcpy(p, &h, sizeof(h));
	for (unsigned i = 0; i < n; i++) {
		struct saved_entry *e = &table(p)[i];
		struct saved_unit *u;

		*e = piece[i].e;
		e->at = at = ALIGN_UP(at, 8);
		memcpy(p + at, piece[i].data, e->size);
		u = (void *)(p + at);
		for (uint64_t k = 0;
		     !strcmp(e->kind, "ram") && k < e->size / sizeof(*u); k++)
			if (u[k].size)
				u[k].at += ram_at - was;
		at += e->size;
	}
	memcpy(p + ram_at, image + was, size);
	was = meta_len;
	meta_len = ram_at;
	seal(p, meta_len);
	meta_len = was;
	put_file(p, ram_at + size);
	free(p);
}

static unsigned take_pieces(struct piece *piece)
{
	unsigned n = header(image)->nsections;

	for (unsigned i = 0; i < n; i++) {
		piece[i].e = table(image)[i];
		piece[i].data = image + piece[i].e.at;
	}
	return n;
}

static void test_shapes(void **state)
{
	static uint8_t ones[70000];
	struct piece was[SAVED_MAX_SECTIONS], p[SAVED_MAX_SECTIONS];
	unsigned n;

	load_all(false);
	n = take_pieces(was);
	memset(ones, 0xff, sizeof(ones));
	memcpy(p, was, sizeof(p));
	put_pieces(p, n);
	assert_int_equal(restore_it(true), 0);
	/* The other way round is as good. */
	for (unsigned i = 0; i < n; i++)
		p[i] = was[n - 1 - i];
	put_pieces(p, n);
	assert_int_equal(restore_it(true), 0);
	for (unsigned i = 0; i < n; i++) {
		bool json = !strcmp(was[i].e.kind, "json");
		bool empty = !was[i].e.size;
		uint8_t *longer = calloc(1, was[i].e.size + 1);

		memcpy(p, was, sizeof(p));
		p[n] = p[i]; /* twice */
		put_pieces(p, n + 1);
		assert_int_equal(restore_it(true), -EBADMSG);
		memcpy(p[n].e.name, "other", 6); /* one that nobody has */
		put_pieces(p, n + 1);
		restore_it(true);
		memmove(p + i, was + i + 1, (n - 1 - i) * sizeof(*p));
		put_pieces(p, n - 1);
		assert_int_not_equal(restore_it(true), 0);
		memcpy(p, was, sizeof(p));
		p[i].e.version++;
		put_pieces(p, n);
		assert_int_equal(restore_it(true), -ENOTSUP);
		p[i].e.version = 0;
		put_pieces(p, n);
		assert_int_not_equal(restore_it(true), 0);
		p[i] = was[i];
		if (!empty) {
			p[i].e.size--;
			put_pieces(p, n);
			assert_true(json || restore_it(true));
			p[i].e.size = 0;
			put_pieces(p, n);
			assert_int_not_equal(restore_it(true), 0);
		}
		memcpy(longer, was[i].data, was[i].e.size);
		p[i].e.size = was[i].e.size + 1;
		p[i].data = longer;
		put_pieces(p, n);
		assert_int_not_equal(restore_it(true), 0);
		p[i].e.size = sizeof(ones);
		p[i].data = ones;
		put_pieces(p, n);
		assert_int_not_equal(restore_it(true), 0);
		/* The contents of its neighbour under its name. */
		p[i] = was[(i + 1) % n];
		memcpy(p[i].e.name, was[i].e.name, sizeof(p[i].e.name));
		memcpy(p[i].e.kind, was[i].e.kind, sizeof(p[i].e.kind));
		put_pieces(p, n);
		restore_it(true);
		free(longer);
	}
	drop_all();
}

/* -- compressed memory ---------------------------------------------------- */

/* The first unit that holds something becomes this frame. */
static void put_frame(const void *frame, size_t len, uint32_t crc)
{
	struct saved_header *h;
	struct saved_entry *e;
	uint8_t *p = malloc(image_len + len);
	struct saved_unit *u = NULL;
	size_t at, rest;
	uint64_t n, i;

	memcpy(p, image, image_len);
	h = header(p);
	e = table(p);
	for (i = 0; i < h->nsections; i++)
		if (!strcmp(e[i].kind, "ram"))
			break;
	u = (void *)(p + e[i].at);
	n = e[i].size / sizeof(*u);
	for (i = 0; !u[i].size; i++)
		;
	at = u[i].at;
	rest = image_len - at - u[i].size;
	memcpy(p + at, frame, len);
	memcpy(p + at + len, image + at + u[i].size, rest);
	for (uint64_t k = i + 1; k < n; k++)
		if (u[k].size)
			u[k].at += len - u[i].size;
	u[i].size = (uint32_t)len;
	u[i].crc = crc;
	h->file_size = at + len + rest;
	seal(p, meta_len);
	put_file(p, h->file_size);
	free(p);
}

static void test_bombs(void **state)
{
	static const size_t sizes[] = { 0, 4096, (2 << 20) - 1, (2 << 20) + 1,
					256 << 20 };
	uint8_t *big = calloc(1, 256 << 20), *frame;
	size_t room = ZSTD_compressBound(256 << 20);

	load_all(true);
	put_file(image, image_len);
	assert_int_equal(restore_it(true), 0);
	frame = malloc(room);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		size_t len = ZSTD_compress(frame, room, big, sizes[i], 1);

		put_frame(frame, len, crc32c(0, big, MIN(sizes[i], 2u << 20)));
		assert_int_equal(restore_it(true), -EBADMSG);
	}
	/* One of the right size with other contents, and no frame at all. */
	put_frame(frame, ZSTD_compress(frame, room, big, 2 << 20, 1), 1);
	assert_int_equal(restore_it(true), -EBADMSG);
	memset(frame, 0x28, 5000);
	put_frame(frame, 5000, 0);
	assert_int_equal(restore_it(true), -EBADMSG);
	free(big);
	free(frame);
	drop_all();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flipped), cmocka_unit_test(test_cut),
		cmocka_unit_test(test_hostile), cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_bombs),	cmocka_unit_test(test_sealed),
	};

	all = argc > 1 && !strcmp(argv[1], "all");
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
