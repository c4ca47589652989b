/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_saved_io.c - a machine is saved while the host's disk fails
 *
 * Linked with --wrap: each call of a save that changes a file fails in turn.
 * The machine goes on, what was saved before stays, nothing else is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mock/counter.h"

enum way { FAIL, SHORT_WRITES, INTERRUPTED };

/* Shared: the memory is written by a process of its own. */
static struct plan {
	atomic_bool on;
	enum way way;
	bool no_tmpfile;
	int error;
	unsigned at; /* the call that fails, from 1; 0: none */
	atomic_uint calls, folder_syncs;
} * plan;

/* Whether this one is to fail; errno says how. */
static bool fails(void)
{
	if (!plan || !atomic_load(&plan->on) || plan->way != FAIL)
		return false;
	if (atomic_fetch_add(&plan->calls, 1) + 1 != plan->at)
		return false;
	errno = plan->error;
	return true;
}

/* The names are the linker's.  NOLINTBEGIN(bugprone-reserved-identifier) */
ssize_t __real_pwrite64(int fd, const void *p, size_t len, off_t at);
ssize_t __wrap_pwrite64(int fd, const void *p, size_t len, off_t at);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len);
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __real_linkat(int d, const char *from, int e, const char *to, int flags);
int __wrap_linkat(int d, const char *from, int e, const char *to, int flags);
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
/* NOLINTEND(bugprone-reserved-identifier) */

ssize_t __wrap_pwrite64(int fd, const void *p, size_t len, off_t at)
{
	if (fails())
		return -1;
	if (plan && atomic_load(&plan->on) && plan->way != FAIL && len > 1) {
		if (plan->way == SHORT_WRITES)
			len = len / 2 + 1;
		else if (atomic_fetch_add(&plan->calls, 1) % 2) {
			errno = EINTR;
			return -1;
		}
	}
	return __real_pwrite64(fd, p, len, at);
}

int __wrap_fsync(int fd)
{
	struct stat st;

	if (!fails())
		return __real_fsync(fd);
	if (!fstat(fd, &st) && S_ISDIR(st.st_mode))
		atomic_fetch_add(&plan->folder_syncs, 1);
	return -1;
}

int __wrap_ftruncate64(int fd, off_t len)
{
	return fails() ? -1 : __real_ftruncate64(fd, len);
}

int __wrap_rename(const char *from, const char *to)
{
	return fails() ? -1 : __real_rename(from, to);
}

int __wrap_linkat(int d, const char *from, int e, const char *to, int flags)
{
	return fails() ? -1 : __real_linkat(d, from, e, to, flags);
}

int __wrap_open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	if (__OPEN_NEEDS_MODE(flags)) {
		va_start(ap, flags);
		mode = va_arg(ap, mode_t);
		va_end(ap);
	}
	if (plan && atomic_load(&plan->on) && plan->no_tmpfile &&
	    (flags & O_TMPFILE) == O_TMPFILE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return __real_open64(path, flags, mode);
}

/* -- tests ---------------------------------------------------------------- */

static void check_whole(const char *path)
{
	struct husk_error err = { 0 };
	struct vm_saved *saved;

	if (vm_saved_open(path, &saved, &err) ||
	    vm_saved_check(saved, NULL, NULL, &err))
		fail_msg("%s: %s", path, err.text);
	vm_saved_close(saved);
}

static int save_to(struct vm *vm, const struct vm_save_options *o,
		   struct husk_error *err)
{
	int ret;

	memset(err, 0, sizeof(*err));
	atomic_store(&plan->calls, 0);
	atomic_store(&plan->on, true);
	ret = vm_save(vm, file, o, NULL, NULL, NULL, err);
	atomic_store(&plan->on, false);
	return ret;
}

static void expect_running(struct vm *vm)
{
	uint32_t n = count(vm);

	assert_false(vm_is_paused(vm));
	for (unsigned i = 0; count(vm) == n; i++) {
		assert_true(i < 10000);
		usleep(1000);
	}
}

/* Each call in turn; returns how many there are. */
static unsigned fail_each(struct vm *vm, const struct vm_save_options *o)
{
	static const int errors[] = { EIO, ENOSPC, EDQUOT };
	struct stat before, after;
	struct husk_error err;
	unsigned n, files;

	plan->at = 0;
	if (save_to(vm, o, &err))
		fail_msg("%s", err.text);
	if (o->stop)
		assert_int_equal(vm_resume(vm, &err), 0);
	n = plan->calls;
	assert_true(n > 5);
	files = files_in(dir);
	for (unsigned i = 1; i <= n; i++) {
		assert_int_equal(stat(file, &before), 0);
		plan->at = i;
		plan->error = errors[i % ARRAY_SIZE(errors)];
		atomic_store(&plan->folder_syncs, 0);
		assert_int_equal(save_to(vm, o, &err), -plan->error);
		assert_non_null(strstr(err.text, strerror(plan->error)));
		assert_int_equal(files_in(dir), files);
		assert_int_equal(stat(file, &after), 0);
		/* Nobody knows whether the new name will last; both are whole. */
		if (!plan->folder_syncs)
			assert_int_equal(before.st_ino, after.st_ino);
		check_whole(file);
		expect_running(vm);
	}
	return n;
}

static void each_way(bool no_tmpfile)
{
	static const struct vm_save_options ways[] = {
		{ .stop = false },
		{ .stop = true },
		{ .compress = true },
		{ .scratch = true },
	};
	struct vm *vm = start(false);

	plan->way = FAIL;
	plan->no_tmpfile = no_tmpfile;
	for (unsigned i = 0; i < ARRAY_SIZE(ways); i++)
		fail_each(vm, &ways[i]);
	ends_well(vm);
}

static void test_errors(void **state)
{
	each_way(false);
}

/* Where files cannot be without a name. */
static void test_errors_named(void **state)
{
	each_way(true);
}

static void test_slow_writes(void **state)
{
	struct husk_error err = { 0 };

	for (plan->way = SHORT_WRITES; plan->way <= INTERRUPTED; plan->way++) {
		struct vm *vm = start(false);

		assert_int_equal(save_to(vm, NULL, &err), 0);
		vm_destroy(vm);
		check_whole(file);
		vm = restore(file, &err);
		assert_non_null(vm);
		assert_int_equal(vm_start(vm, &err), 0);
		ends_well(vm);
	}
}

/* What the guest wrote cannot be written to its disk. */
static void test_disk_error(void **state)
{
	const struct vm_save_options stop = { .stop = true };
	struct vm_config *cfg = configure(false);
	struct husk_error err = { 0 };
	char sector[512] = "x", spec[128];
	struct stat before, after;
	struct vm *vm = start(false);

	plan->way = FAIL;
	plan->at = 0;
	assert_int_equal(save_to(vm, NULL, &err), 0);
	vm_destroy(vm);
	assert_int_equal(stat(file, &before), 0);
	snprintf(spec, sizeof(spec), "%s,fault=error=2", disk);
	assert_int_equal(vm_config_add_disk_spec(cfg, spec, &err), 0);
	vm = start_config(cfg);
	vm_config_destroy(cfg);
	assert_int_equal(block_write(vm->block[0], 0, sector, 512), 0);
	assert_int_equal(save_to(vm, &stop, &err), -EIO);
	assert_true(*err.text);
	assert_int_equal(stat(file, &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	expect_running(vm);
	ends_well(vm);
}

static int prepare(void **state)
{
	plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return plan == MAP_FAILED ? -1 : make_folder(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_errors_named),
		cmocka_unit_test(test_slow_writes),
		cmocka_unit_test(test_disk_error),
	};

	return cmocka_run_group_tests(tests, prepare, remove_folder);
}
