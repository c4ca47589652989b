/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_restore.c - saved machines that are damaged or made to hurt
 *
 * The input changes what a real machine has saved, four bytes each: where (two
 * of them, times 3, from the start of the file), how much further, and the
 * value.  Bit 0 of the first byte: checksums are put right again, so that the
 * changes are looked at and not only found.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz/pc.h"
#include "mock/seal.h"
#include "vm/saved/saved.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *meta;
static size_t meta_len;
static int file;
static char path[64];
static struct vm_config *config;

static void make_file(void)
{
	const struct vm_save_options stop = { .stop = true };
	char name[] = "/tmp/husk-fuzz-XXXXXX";
	struct husk_error err = { 0 };
	struct saved_header h;
	struct vm_saved *saved;
	struct vm *vm = pc_create();
	int fd = mkstemp(name);

	if (fd < 0 || vm_save(vm, name, &stop, NULL, NULL, NULL, &err)) {
		fprintf(stderr, "save: %s\n", err.text);
		abort();
	}
	close(fd);
	vm_destroy(vm);
	file = open(name, O_RDWR | O_CLOEXEC);
	unlink(name);
	if (file < 0 || pread(file, &h, sizeof(h), 0) != sizeof(h))
		abort();
	meta_len = h.ram_at;
	meta = malloc(meta_len);
	if (!meta || pread(file, meta, meta_len, 0) != (ssize_t)meta_len)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	if (vm_saved_open(path, &saved, &err) ||
	    vm_saved_config(saved, &config, &err)) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	vm_saved_close(saved);
}

static void change(struct input *in)
{
	bool right = take(in, 1) & 1;
	uint8_t *copy = malloc(meta_len);

	if (!copy)
		abort();
	memcpy(copy, meta, meta_len);
	for (unsigned n = 0; in->left >= 4 && n < 64; n++) {
		size_t at = (size_t)take(in, 2) * 3 + (size_t)take(in, 1);

		copy[at % meta_len] = (uint8_t)take(in, 1);
	}
	if (right)
		seal(copy, meta_len);
	if (pwrite(file, copy, meta_len, 0) != (ssize_t)meta_len)
		abort();
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct vm_restore_options force = { .force = true };
	struct input in = { data, size };
	struct vm_config *cfg = NULL;
	struct husk_error err = { 0 };
	struct vm_saved *saved;
	struct vm *vm;

	if (!meta)
		make_file();
	change(&in);
	if (vm_saved_open(path, &saved, &err)) {
		if (!*err.text)
			abort();
		return 0;
	}
	/* Only read: it may name any file. */
	vm_saved_config(saved, &cfg, &err);
	vm_config_destroy(cfg);
	/* The guest's first steps are with garbage, and it may end at once. */
	if (!vm_restore(saved, config, &force, &vm, &err)) {
		if (!vm_start(vm, &err))
			usleep(1000);
		vm_destroy(vm);
	}
	vm_saved_close(saved);
	return 0;
}
