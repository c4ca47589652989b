/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_draft.c - files that replace others, with and without O_TMPFILE
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "vm/draft.h"

static char dir[] = "/tmp/test_draft.XXXXXX";
static bool named_only; /* as on a file system that has no nameless files */

int __wrap_open(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);

int __wrap_open(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	if (named_only && (flags & O_TMPFILE) == O_TMPFILE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	va_start(ap, flags);
	if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return openat(AT_FDCWD, path, flags, mode);
}

int __wrap_open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return __wrap_open(path, flags, mode);
}

static void put(const char *path, const char *text, mode_t mode)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(path, mode), 0);
}

static void expect(const char *path, const char *text)
{
	char is[64] = "";
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	is[fread(is, 1, sizeof(is) - 1, f)] = 0;
	fclose(f);
	assert_string_equal(is, text);
}

static unsigned entries(void)
{
	DIR *d = opendir(dir);
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

static mode_t mode_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_mode & 07777;
}

/* By the name that the draft goes by, as an image is. */
static void fill(const struct draft *d, const char *text)
{
	int fd = open(d->name, O_WRONLY);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void replaces(const char *path)
{
	struct husk_error err;
	struct draft d;

	umask(022);
	assert_int_equal(draft_begin(&d, path, false, &err), 0);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(entries(), named_only);
	fill(&d, "one");
	assert_int_equal(draft_end(&d, 0, &err), 0);
	assert_int_equal(entries(), 1);
	assert_int_equal(mode_of(path), 0644);
	expect(path, "one");
	/* It is there now, and stays while the work fails. */
	assert_int_equal(draft_begin(&d, path, false, &err), -EEXIST);
	if (strlen(path) < 100)
		assert_non_null(strstr(err.text, "--force"));
	chmod(path, 0600);
	assert_int_equal(draft_begin(&d, path, true, &err), 0);
	fill(&d, "two");
	expect(path, "one");
	assert_int_equal(draft_end(&d, -EIO, &err), -EIO);
	expect(path, "one");
	assert_int_equal(entries(), 1);
	assert_int_equal(draft_begin(&d, path, true, &err), 0);
	fill(&d, "three");
	assert_int_equal(draft_end(&d, 0, &err), 0);
	expect(path, "three");
	assert_int_equal(mode_of(path), 0600);
	assert_int_equal(entries(), 1);
	unlink(path);
	/* Another was faster. */
	assert_int_equal(draft_begin(&d, path, false, &err), 0);
	put(path, "other", 0600);
	assert_int_equal(draft_end(&d, 0, &err), -EEXIST);
	expect(path, "other");
	assert_int_equal(entries(), 1);
	unlink(path);
}

static void in_its_place(void **state)
{
	char path[80], name[256];

	for (int i = 0; i < 2; i++) {
		named_only = i;
		snprintf(path, sizeof(path), "%s/x.qcow2", dir);
		replaces(path);
		/* By a path without a folder, and as long as one can be. */
		assert_int_equal(chdir(dir), 0);
		replaces("x");
		memset(name, 'n', 255);
		name[255] = 0;
		replaces(name);
	}
}

static void refuses_what_is_no_file(void **state)
{
	struct husk_error err;
	struct draft d;
	char path[80];

	snprintf(path, sizeof(path), "%s/link", dir);
	assert_int_equal(symlink("nowhere", path), 0);
	assert_int_equal(draft_begin(&d, path, true, &err), -EINVAL);
	assert_int_equal(draft_end(&d, -EINVAL, &err), -EINVAL);
	unlink(path);
	assert_int_equal(draft_begin(&d, "/nowhere/x", true, &err), -ENOENT);
	assert_int_equal(entries(), 0);
}

/* Of killed ones; never another draft's, nor what only looks alike. */
static void takes_away_what_was_left(void **state)
{
	static const char *const left[] = { ".x.husk-0123abcd",
					    ".x.husk-ffffffff" };
	static const char *const mine[] = { ".x.husk-0123abcg", ".x.husk-0",
					    ".y.husk-0123abcd", "x.backup",
					    ".x.husk-0123abcd0" };
	struct draft a, b;
	struct husk_error err;
	char path[80];

	assert_int_equal(chdir(dir), 0);
	for (unsigned i = 0; i < 2; i++)
		put(left[i], "", 0600);
	for (unsigned i = 0; i < 5; i++)
		put(mine[i], "", 0600);
	mkdir(".x.husk-00000000", 0700);
	named_only = true;
	assert_int_equal(draft_begin(&a, "x", true, &err), 0);
	assert_int_equal(entries(), 7);
	fill(&a, "a");
	snprintf(path, sizeof(path), "%s/x", dir);
	assert_int_equal(draft_begin(&b, path, true, &err), 0);
	assert_int_equal(entries(), 8);
	fill(&b, "b");
	assert_int_equal(draft_end(&b, 0, &err), 0);
	assert_int_equal(draft_end(&a, 0, &err), 0);
	expect("x", "a");
	assert_int_equal(entries(), 7);
	unlink("x");
	rmdir(".x.husk-00000000");
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(unlink(mine[i]), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_its_place),
		cmocka_unit_test(refuses_what_is_no_file),
		cmocka_unit_test(takes_away_what_was_left),
	};
	int ret;

	if (!mkdtemp(dir))
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	return rmdir(dir) ? 1 : ret;
}
