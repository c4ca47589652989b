/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_saved.c - machines in files: what is saved comes back
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <dirent.h>
#include <unistd.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <zstd.h>

#include "base/crc32c.h"
#include "mock/counter.h"
#include "vm/block/qcow2.h"

/* -- pause ---------------------------------------------------------------- */

static void test_pause(void **state)
{
	struct husk_error err = { 0 };
	struct vm *vm = start(false);
	uint64_t now, clock, later;
	uint32_t n;

	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(vm_pause(vm, &err), 0);
		assert_int_equal(vm_pause(vm, &err), 0);
		assert_true(vm_is_paused(vm));
		assert_int_equal(vm_resume(vm, &err), 0);
		assert_false(vm_is_paused(vm));
	}
	assert_int_equal(vm_pause(vm, &err), 0);
	n = count(vm);
	now = machine_now(vm);
	assert_int_equal(hv_clock_get(vm->hv, &clock), 0);
	usleep(30000);
	assert_int_equal(count(vm), n);
	assert_int_equal(machine_now(vm), now);
	assert_int_equal(hv_clock_get(vm->hv, &later), 0);
	assert_int_equal(clock, later);
	assert_int_equal(vm_resume(vm, &err), 0);
	ends_well(vm);
	/* One that is stopped while it is paused. */
	vm = start(false);
	assert_int_equal(vm_pause(vm, &err), 0);
	vm_stop(vm);
	assert_int_equal(vm_resume(vm, &err), -ESRCH);
	assert_int_equal(vm_pause(vm, &err), -ESRCH);
	vm_destroy(vm);
}

/* The clocks of one that was stopped for 50 ms and, by gap, may know it. */
static void pass(unsigned gap, bool by_file)
{
	struct vm_config *cfg = configure(false);
	struct husk_error err = { 0 };
	uint64_t now, clock, later, real;
	struct vm *vm;

	assert_int_equal(vm_config_set_gap(cfg, gap), 0);
	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	vm_config_destroy(cfg);
	*(uint32_t *)mem_at(&vm->mem, 0x400000, 4) = 21;
	assert_int_equal(vm_start(vm, &err), 0);
	real = loop_now();
	assert_int_equal(vm_pause(vm, &err), 0);
	now = machine_now(vm);
	assert_int_equal(hv_clock_get(vm->hv, &clock), 0);
	if (by_file) {
		assert_int_equal(
			vm_save(vm, file, NULL, NULL, NULL, NULL, &err), 0);
		vm_destroy(vm);
		vm = restore(file, &err);
		assert_non_null(vm);
		assert_int_equal(machine_now(vm), now);
	}
	usleep(50000);
	assert_int_equal(by_file ? vm_start(vm, &err) : vm_resume(vm, &err), 0);
	/* Stopped again, so that all are of one moment. */
	assert_int_equal(vm_pause(vm, &err), 0);
	real = loop_now() - real;
	assert_int_equal(hv_clock_get(vm->hv, &later), 0);
	if (gap) {
		/* A file says when by another clock. */
		assert_in_range(machine_now(vm) - now, 49000000,
				real + 1000000);
		assert_in_range(later - clock, 49000000, real + 1000000);
	} else {
		assert_in_range(machine_now(vm) - now, 0, real - 50000000);
		assert_in_range(later - clock, 0, real - 49000000);
	}
	assert_int_equal(vm_resume(vm, &err), 0);
	ends_well(vm);
}

static void test_gap(void **state)
{
	struct vm_config *cfg = configure(false);

	assert_int_equal(vm_config_gap(cfg), 10);
	assert_int_equal(vm_config_set_gap(cfg, VM_MAX_GAP + 1), -ERANGE);
	vm_config_destroy(cfg);
	pass(10, false);
	pass(0, false);
	pass(10, true);
	pass(0, true);
}

static void test_begin_paused(void **state)
{
	struct vm_config *cfg = configure(false);
	struct husk_error err = { 0 };
	struct vm *vm;

	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	*(uint32_t *)mem_at(&vm->mem, 0x400000, 4) = 21;
	assert_int_equal(vm_pause(vm, &err), 0);
	assert_int_equal(vm_start(vm, &err), 0);
	usleep(20000);
	assert_int_equal(count(vm), 0);
	assert_int_equal(vm_resume(vm, &err), 0);
	ends_well(vm);
	vm_config_destroy(cfg);
}

/* -- save and restore ----------------------------------------------------- */

static void test_round(void **state)
{
	static const struct vm_save_options packed = { .compress = true };
	struct vm_save_result r;
	struct husk_error err = { 0 };
	struct vm *vm = start(false), *again[3];
	uint32_t n;

	assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, &r, &err), 0);
	assert_true(r.bytes > 0 && r.bytes < 8 << 20);
	n = count(vm);
	assert_int_equal(vm_save(vm, other, &packed, NULL, NULL, &r, &err), 0);
	usleep(20000);
	assert_true(count(vm) > n);
	ends_well(vm);
	/* Several of one file, each by itself; and one of a restored one. */
	for (unsigned i = 0; i < 3; i++) {
		again[i] = restore(i < 2 ? file : other, &err);
		assert_non_null(again[i]);
		assert_true(count(again[i]) > 0);
	}
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(vm_start(again[i], &err), 0);
	*(uint32_t *)mem_at(&again[0]->mem, 0x400000, 4) = 99;
	ends_well(again[1]);
	ends_well(again[2]);
	*(uint32_t *)mem_at(&again[0]->mem, 0x400000, 4) = 21;
	assert_int_equal(vm_save(again[0], other, NULL, NULL, NULL, &r, &err),
			 0);
	ends_well(again[0]);
	vm = restore(other, &err);
	assert_non_null(vm);
	assert_int_equal(vm_start(vm, &err), 0);
	ends_well(vm);
}

static void test_look(void **state)
{
	struct husk_error err = { 0 };
	struct vm *vm = start(false);
	struct vm_saved_section section;
	struct vm_saved_info info;
	struct vm_saved *saved;
	unsigned n = 0;

	assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, NULL, &err), 0);
	vm_destroy(vm);
	assert_int_equal(vm_saved_open(file, &saved, &err), 0);
	vm_saved_info(saved, &info);
	assert_string_equal(info.engine, "soft");
	assert_int_equal(info.cpus, 2);
	assert_int_equal(info.memory, 16 << 20);
	assert_true(info.memory_used < info.memory);
	while (!vm_saved_section(saved, n, &section))
		n++;
	assert_int_equal(n, info.sections);
	assert_int_equal(vm_saved_check(saved, NULL, NULL, &err), 0);
	vm_saved_close(saved);
}

/* A disk in use: saved with stop, and only restored when it is the same. */
static void test_disk(void **state)
{
	const struct vm_save_options stop = { .stop = true };
	struct vm_restore_options force = { .force = true };
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	struct vm_saved *saved;
	struct vm *vm = start(true);
	int fd;

	assert_int_equal(vm_save(vm, file, &stop, NULL, NULL, NULL, &err), 0);
	assert_true(vm_is_paused(vm));
	vm_destroy(vm);
	vm = restore(file, &err);
	assert_non_null(vm);
	vm_destroy(vm);
	fd = open(disk, O_WRONLY);
	assert_int_equal(pwrite(fd, "changed", 7, 4096), 7);
	close(fd);
	assert_null(restore(file, &err));
	assert_non_null(strstr(err.text, "has changed since"));
	assert_int_equal(vm_saved_open(file, &saved, &err), 0);
	assert_int_equal(vm_saved_config(saved, &cfg, &err), 0);
	assert_int_equal(vm_restore(saved, cfg, &force, &vm, &err), 0);
	vm_destroy(vm);
	/* Another machine than the saved one. */
	vm_config_set_memory(cfg, 32 << 20);
	assert_int_equal(vm_restore(saved, cfg, &force, &vm, &err), -EINVAL);
	assert_null(vm);
	vm_config_set_memory(cfg, 16 << 20);
	assert_int_equal(vm_config_add_device(cfg, "virtio-rng", &err), 0);
	assert_int_equal(vm_restore(saved, cfg, &force, &vm, &err), -EINVAL);
	assert_non_null(strstr(err.text, "device rng1"));
	vm_config_destroy(cfg);
	vm_saved_close(saved);
}

static int moved(void *opaque, unsigned i, const char *path)
{
	snprintf(opaque, 128, "%u %s", i, path);
	return 0;
}

static void write_disk(struct vm *vm, const char *text)
{
	char sector[512] = "";

	snprintf(sector, sizeof(sector), "%s", text);
	assert_int_equal(block_write(vm->block[0], 0, sector, 512), 0);
}

static void disk_says(struct vm *vm, const char *text)
{
	char sector[512];

	assert_int_equal(block_read(vm->block[0], 0, sector, 512), 0);
	assert_string_equal(sector, text);
}

/* Those that saves and restores have made. */
static void drop_images(const char *folder)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	char name[600];

	while ((e = readdir(d))) {
		snprintf(name, sizeof(name), "%s/%s", folder, e->d_name);
		if (strstr(e->d_name, ".qcow2"))
			unlink(name);
	}
	closedir(d);
}

/* Each of a live save's machines has its own disk from that moment on. */
static void test_frozen(void **state)
{
	char where[128] = "";
	const struct vm_save_options o = { .disk_moved = moved,
					   .opaque = where };
	struct husk_error err = { 0 };
	struct vm *vm, *a, *b;
	unsigned n = files_in(dir);

	vm = start(true);
	write_disk(vm, "before");
	if (vm_save(vm, file, &o, NULL, NULL, NULL, &err))
		fail_msg("%s", err.text);
	assert_memory_equal(where, "0 /tmp/husk-saved-", 18);
	write_disk(vm, "after");
	a = restore(file, &err);
	assert_non_null(a);
	b = restore(file, &err);
	assert_non_null(b);
	disk_says(a, "before");
	write_disk(a, "of a");
	disk_says(b, "before");
	disk_says(vm, "after");
	/* And once more from there, with the first image two steps below. */
	assert_int_equal(vm_save(vm, other, NULL, NULL, NULL, NULL, &err), 0);
	write_disk(vm, "later");
	vm_destroy(b);
	b = restore(other, &err);
	assert_non_null(b);
	disk_says(b, "after");
	vm_destroy(a);
	vm_destroy(b);
	vm_destroy(vm);
	/* A save that fails early leaves no images, nor does a restore. */
	assert_true(files_in(dir) > n);
	drop_images(dir);
	n = files_in(dir);
	assert_null(restore(other, &err));
	vm = start(true);
	assert_int_equal(vm_save(vm, "/nowhere/x", NULL, NULL, NULL, NULL,
				 &err),
			 -ENOENT);
	vm_destroy(vm);
	assert_int_equal(files_in(dir), n);
}

/* Images below the machine's own. */
static unsigned depth(const struct vm *vm)
{
	const struct block *b = vm->block[0];
	unsigned n = 0;

	for (; b->ops == &block_qcow2; n++)
		b = to_qcow2((struct block *)b)->base;
	return n;
}

/* A chain has an end: it must not grow by each save or restore. */
static void test_often(void **state)
{
	const struct vm_save_options scratch = { .scratch = true };
	struct vm *vm = start(true);
	struct husk_error err = { 0 };
	char text[16];

	for (unsigned i = 0; i < 150; i++) {
		snprintf(text, sizeof(text), "save %u", i);
		write_disk(vm, text);
		if (vm_save(vm, file, &scratch, NULL, NULL, NULL, &err))
			fail_msg("save %u: %s", i, err.text);
		write_disk(vm, "later");
		if (i % 2)
			continue;
		vm_destroy(vm);
		vm = restore(file, &err);
		if (!vm)
			fail_msg("restore %u: %s", i, err.text);
		disk_says(vm, text);
		assert_in_range(depth(vm), 1, 2);
	}
	vm_destroy(vm);
}

static char *in_dir(const char *name)
{
	static char path[4][300];
	static unsigned next;

	snprintf(path[++next % 4], sizeof(path[0]), "%s/%s", dir, name);
	return path[next % 4];
}

static void write_image(const char *path, uint64_t at, size_t len)
{
	struct block_config cfg = { .path = path };
	struct husk_error err = { 0 };
	struct block *b = block_open_config(&cfg, &err);
	char *data = malloc(len);

	assert_non_null(b);
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(at + i * 7 + i / 512);
	assert_int_equal(block_write(b, at, data, len), 0);
	assert_int_equal(block_flush(b), 0);
	block_close(b);
	free(data);
}

static void test_small(void **state)
{
	struct husk_error err = { 0 };
	int fd = open(in_dir("l.raw"), O_RDWR | O_CREAT, 0600), copy;
	char name[16], a[4096], b[4096];
	struct stat sa, sb;

	assert_int_equal(ftruncate(fd, 64 << 20), 0);
	close(fd);
	assert_int_equal(disk_create_overlay(in_dir("l0.qcow2"),
					     in_dir("l.raw"), "raw", 0, &err),
			 0);
	/* What is not qcow2 has no place for a copy of its own kind. */
	assert_false(layer_is_small(in_dir("l.raw"), "raw"));
	assert_false(layer_is_small(in_dir("none.qcow2"), "qcow2"));
	assert_true(layer_is_small(in_dir("l0.qcow2"), "qcow2"));
	write_image(in_dir("l0.qcow2"), 5 << 20, 300 << 10);
	assert_true(layer_is_small(in_dir("l0.qcow2"), "qcow2"));
	fd = open(in_dir("copy.qcow2"), O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_int_equal(layer_copy(in_dir("l0.qcow2"), fd), 0);
	copy = open(in_dir("l0.qcow2"), O_RDONLY);
	assert_int_equal(fstat(fd, &sa), 0);
	assert_int_equal(fstat(copy, &sb), 0);
	assert_int_equal(sa.st_size, sb.st_size);
	for (off_t at = 0; at < sa.st_size; at += sizeof(a)) {
		ssize_t n = pread(fd, a, sizeof(a), at);

		assert_int_equal(pread(copy, b, sizeof(b), at), n);
		assert_memory_equal(a, b, n);
	}
	close(copy);
	close(fd);
	write_image(in_dir("l0.qcow2"), 20 << 20, 2 << 20);
	assert_false(layer_is_small(in_dir("l0.qcow2"), "qcow2"));
	/* The same on top of many is worth a copy. */
	for (unsigned i = 1; i <= 12; i++) {
		char *below = in_dir(i > 1 ? name : "l0.qcow2");

		snprintf(name, sizeof(name), "l%u.qcow2", i);
		assert_int_equal(disk_create_overlay(in_dir(name), below,
						     "qcow2", 0, &err),
				 0);
	}
	write_image(in_dir(name), 20 << 20, 2 << 20);
	assert_true(layer_is_small(in_dir(name), "qcow2"));
	drop_images(dir);
	unlink(in_dir("l.raw"));
}

static void image_says(const char *path, const char *text)
{
	struct block_config cfg = { .path = path, .format = "qcow2" };
	struct husk_error err = { 0 };
	struct block *b = block_open_config(&cfg, &err);
	char sector[512];

	if (!b)
		fail_msg("%s", err.text);
	assert_int_equal(block_read(b, 0, sector, 512), 0);
	assert_string_equal(sector, text);
	block_close(b);
}

/* A machine's folder has all that its disk stands on, whatever goes away. */
static void test_links(void **state)
{
	const struct vm_save_options scratch = { .scratch = true };
	char folder[300], path[300];
	struct vm_restore_options o = { .disks = folder };
	struct husk_error err = { 0 };
	struct vm *vm = start(true), *a;
	struct vm_saved *saved;
	struct vm_config *cfg;
	unsigned n;

	snprintf(folder, sizeof(folder), "%s/own", dir);
	assert_int_equal(mkdir(folder, 0700), 0);
	n = files_in(folder);
	/* The first is on top of the disk itself, the next a copy of that. */
	write_disk(vm, "first");
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(
			vm_save(vm, file, &scratch, NULL, NULL, NULL, &err), 0);
	assert_int_equal(vm_saved_open(file, &saved, &err), 0);
	assert_int_equal(vm_saved_config(saved, &cfg, &err), 0);
	/* Memory that is not there: nothing may be left. */
	vm_config_set_memory(cfg, 32 << 20);
	assert_int_equal(vm_restore(saved, cfg, &o, &a, &err), -EINVAL);
	vm_config_set_memory(cfg, 16 << 20);
	assert_int_equal(files_in(folder), n);
	assert_int_equal(vm_config_add_device(cfg, "virtio-rng", &err), 0);
	assert_int_equal(vm_restore(saved, cfg, &o, &a, &err), -EINVAL);
	assert_int_equal(files_in(folder), n);
	vm_config_destroy(cfg);
	assert_int_equal(vm_saved_config(saved, &cfg, &err), 0);
	assert_int_equal(vm_restore(saved, cfg, &o, &a, &err), 0);
	disk_says(a, "first");
	snprintf(path, sizeof(path), "%s", vm_config_disk_path(cfg, 0));
	assert_memory_equal(path, folder, strlen(folder));
	vm_destroy(a);
	vm_config_destroy(cfg);
	vm_saved_close(saved);
	vm_destroy(vm);
	drop_images(dir);
	image_says(path, "first");
	drop_images(folder);
	snprintf(path, sizeof(path), "%s%s", folder, strrchr(disk, '/'));
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(folder), 0);
}

/* -- what goes wrong while saving ----------------------------------------- */

static bool stop_it(void *opaque, uint64_t done, uint64_t total)
{
	return false;
}

static void test_save_fails(void **state)
{
	const struct vm_save_options stop = { .stop = true };
	struct rlimit old, small = { 200000, RLIM_INFINITY };
	struct husk_error err = { 0 };
	struct vm *vm = start(false);
	struct stat before, after;
	unsigned n;

	assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, NULL, &err), 0);
	assert_int_equal(stat(file, &before), 0);
	n = files_in(dir);
	assert_int_equal(vm_save(vm, file, &stop, stop_it, NULL, NULL, &err),
			 -ECANCELED);
	assert_false(vm_is_paused(vm));
	assert_int_equal(vm_save(vm, "/nowhere/x", NULL, NULL, NULL, NULL,
				 &err),
			 -ENOENT);
	/* A full disk, as the writer sees it. */
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	for (; small.rlim_cur < 3000000; small.rlim_cur += 140000) {
		setrlimit(RLIMIT_FSIZE, &small);
		assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, NULL,
					 &err),
				 -EFBIG);
		assert_int_equal(vm_save(vm, file, &stop, NULL, NULL, NULL,
					 &err),
				 -EFBIG);
		assert_false(vm_is_paused(vm));
	}
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(files_in(dir), n);
	assert_int_equal(stat(file, &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	ends_well(vm);
}

/* Memory that takes its time to be written. */
static void fill(struct vm *vm)
{
	uint32_t *p = mem_at(&vm->mem, 0x500000, 10 << 20);

	for (uint32_t i = 0, x = 1; i < (10 << 20) / 4; i++)
		p[i] = x = x * 1664525 + 1013904223;
}

/* The disk is really full, and a save is tried again when it is not. */
static int on_a_small_disk(void)
{
	struct husk_error err = { 0 };
	struct vm *vm;
	char path[64];
	int fd;

	if (unshare(CLONE_NEWNS | (geteuid() ? CLONE_NEWUSER : 0)) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", dir, "tmpfs", 0, "size=14m"))
		return 77;
	write_kernel();
	vm = start(false);
	fill(vm);
	snprintf(path, sizeof(path), "%s/ballast", dir);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	for (off_t size = 12 << 20; size >= 0; size -= 1 << 20) {
		unsigned n = files_in(dir);
		int ret;

		if (ftruncate(fd, 0) || (size && posix_fallocate(fd, 0, size)))
			return 1;
		ret = vm_save(vm, file, NULL, NULL, NULL, NULL, &err);
		if (!ret && size < 4 << 20) {
			ret = vm_console_write(vm, VM_SERIAL, "x", 1) != 1;
			vm_destroy(vm);
			return ret;
		}
		if (ret != -ENOSPC || files_in(dir) != n ||
		    !strstr(err.text, strerror(ENOSPC)) || vm_is_paused(vm))
			return 2;
	}
	return 3;
}

static void test_full_disk(void **state)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(on_a_small_disk());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Whoever saves is killed at any moment: the old file stays, or a new one. */
static void test_killed(void **state)
{
	struct husk_error err = { 0 };
	struct vm *vm = start(false);
	struct vm_saved *saved;
	unsigned n;

	assert_int_equal(vm_save(vm, file, NULL, NULL, NULL, NULL, &err), 0);
	vm_destroy(vm);
	n = files_in(dir);
	for (useconds_t us = 1000; us < 60000; us += 3700) {
		struct vm_save_options o = { .stop = us / 3700 % 2 };
		int fds[2], status;
		pid_t pid;
		char c;

		assert_int_equal(pipe(fds), 0);
		pid = fork();
		if (!pid) {
			close(fds[0]);
			vm = start(false);
			fill(vm);
			if (write(fds[1], "", 1) != 1)
				_exit(1);
			for (;;)
				vm_save(vm, file, &o, NULL, NULL, NULL, NULL);
		}
		close(fds[1]);
		assert_int_equal(read(fds[0], &c, 1), 1);
		usleep(us);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		/* Until its copier is gone, too, which has the pipe. */
		assert_int_equal(read(fds[0], &c, 1), 0);
		close(fds[0]);
		assert_int_equal(vm_saved_open(file, &saved, &err), 0);
		assert_int_equal(vm_saved_check(saved, NULL, NULL, &err), 0);
		vm_saved_close(saved);
	}
	/* But for the moment between its name and its place. */
	assert_in_range(files_in(dir), n, n + 1);
	vm = restore(file, &err);
	assert_non_null(vm);
	vm_destroy(vm);
}

/* -- files of released versions ------------------------------------------- */

static const char *golden_dir;

/* A file for the collection, of this version; docs/saved-state.md. */
static int write_golden(const char *to)
{
	const struct vm_save_options packed = { .compress = true,
						.stop = true };
	struct husk_error err = { 0 };
	struct vm_config *cfg = configure_all();
	size_t room;
	struct vm *vm;
	void *out;
	int fd;

	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	*(uint32_t *)mem_at(&vm->mem, 0x400000, 4) = 21;
	assert_int_equal(vm_start(vm, &err), 0);
	usleep(20000);
	assert_int_equal(vm_save(vm, file, &packed, NULL, NULL, NULL, &err), 0);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	load_file(file);
	room = ZSTD_compressBound(image_len);
	out = malloc(room);
	room = ZSTD_compress(out, room, image, image_len, 19);
	assert_false(ZSTD_isError(room));
	fd = open(to, O_CREAT | O_EXCL | O_WRONLY, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, out, room), room);
	close(fd);
	free(out);
	free(image);
	return 0;
}

static void goes_on(const char *path)
{
	const struct vm_restore_options force = { .force = true };
	struct husk_error err = { 0 };
	struct vm_config *cfg = NULL;
	struct vm_saved *saved;
	uint64_t size;
	uint8_t *whole;
	struct vm *vm;

	load_file(path);
	size = ZSTD_getFrameContentSize(image, image_len);
	assert_in_range(size, 4096, 64 << 20);
	whole = malloc(size);
	assert_int_equal(ZSTD_decompress(whole, size, image, image_len), size);
	put_file(whole, size);
	free(whole);
	free(image);
	if (vm_saved_open(other, &saved, &err) ||
	    vm_saved_check(saved, NULL, NULL, &err) ||
	    vm_saved_config(saved, &cfg, &err))
		fail_msg("%s: %s", path, err.text);
	vm_config_set_disk_path(cfg, 0, disk, "raw");
	vm_config_set_vsock_path(cfg, file);
	unlink(file);
	if (vm_restore(saved, cfg, &force, &vm, &err))
		fail_msg("%s: %s", path, err.text);
	vm_saved_close(saved);
	vm_config_destroy(cfg);
	assert_int_equal(vm_start(vm, &err), 0);
	ends_well(vm);
}

static void test_golden(void **state)
{
	DIR *d = golden_dir ? opendir(golden_dir) : NULL;
	char path[512];
	struct dirent *e;
	unsigned n = 0;

	if (!golden_dir) {
		skip();
		return;
	}
	assert_non_null(d);
	while ((e = readdir(d))) {
		if (!strstr(e->d_name, ".husk.zst"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", golden_dir, e->d_name);
		goes_on(path);
		n++;
	}
	closedir(d);
	assert_true(n > 0);
}

/* -- two processes -------------------------------------------------------- */

/* In the new process, without cmocka's jumps: what is wrong, or 0. */
static int go_on(struct vm_saved *split)
{
	struct husk_error err = { 0 };
	struct vm_saved_info info;
	struct vm_stopped st;
	struct vm_config *cfg;
	struct vm *vm, *second;
	uint32_t n;

	vm_saved_info(split, &info);
	if (info.cpus != 2 || vm_saved_check(split, NULL, NULL, &err))
		return 1;
	if (vm_saved_config(split, &cfg, &err) ||
	    vm_restore(split, cfg, NULL, &vm, &err))
		return 2;
	if (vm_restore(split, cfg, NULL, &second, &err) != -EBUSY)
		return 3;
	vm_config_destroy(cfg);
	vm_saved_close(split);
	n = count(vm);
	if (!n || vm_start(vm, &err))
		return 4;
	while (count(vm) == n)
		usleep(1000);
	/* Not what the original sees. */
	*(uint32_t *)mem_at(&vm->mem, 0x400000, 4) = 99;
	while (!vm_console_write(vm, VM_SERIAL, "x", 1))
		usleep(1000);
	if (vm_wait(vm, 20000, &st) || st.reason != VM_STOP_EXIT ||
	    st.code != (99 << 1 | 1))
		return 5;
	vm_destroy(vm);
	return 0;
}

static void test_fork(void **state)
{
	struct husk_error err = { 0 };
	struct vm_save_result result = { 0 };
	struct vm *vm = start(false);
	struct vm_saved *split;
	pid_t pid[3];
	uint32_t n;

	for (unsigned i = 0; i < 3; i++) {
		/* Also of one that stands still, which it goes on to do. */
		if (i == 2)
			assert_int_equal(vm_pause(vm, &err), 0);
		pid[i] = vm_fork(vm, NULL, -1, &split, &result, &err);
		if (!pid[i])
			_exit(go_on(split));
		assert_true(pid[i] > 0);
		assert_null(split);
		assert_true(result.stop_ns > 0);
	}
	n = count(vm);
	for (unsigned i = 0; i < 3; i++) {
		int status;

		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
	}
	assert_true(vm_is_paused(vm));
	assert_int_equal(count(vm), n);
	assert_int_equal(vm_resume(vm, &err), 0);
	ends_well(vm);
	/* One that has ended is not there twice. */
	vm = start(false);
	vm_stop(vm);
	assert_int_equal(vm_fork(vm, NULL, -1, &split, NULL, &err), -ESRCH);
	vm_destroy(vm);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_gap),
		cmocka_unit_test(test_begin_paused),
		cmocka_unit_test(test_round),
		cmocka_unit_test(test_look),
		cmocka_unit_test(test_disk),
		cmocka_unit_test(test_frozen),
		cmocka_unit_test(test_often),
		cmocka_unit_test(test_small),
		cmocka_unit_test(test_links),
		cmocka_unit_test(test_save_fails),
		cmocka_unit_test(test_full_disk),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_golden),
	};

	if (argc > 2 && !strcmp(argv[1], "--write"))
		return make_folder(NULL) || write_golden(argv[2]) ||
		       remove_folder(NULL);
	golden_dir = argc > 1 ? argv[1] : NULL;
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
