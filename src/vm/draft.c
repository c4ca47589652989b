/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft.c - a new file in place of an old one, or of none
 *
 * A name is needed at the end at least, when an old file is replaced: link()
 * does not do that.  Such names are ".FILE.husk-XXXXXXXX"; a draft holds the
 * lock of its file, so one that nobody holds was left by a process that was
 * killed.
 */
#include "vm/draft.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/loop.h"

enum { DIGITS = 8, TRIES = 16 };

/* The folder's length, without the slash unless it is the root. */
static int folder(const char *path)
{
	const char *slash = strrchr(path, '/');

	return !slash ? 0 : slash == path ? 1 : (int)(slash - path);
}

static const char *last(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static int open_folder(const char *path)
{
	char *name = strndup(path, (size_t)folder(path));
	int fd = name ? open(*name ? name : ".",
			     O_RDONLY | O_DIRECTORY | O_CLOEXEC)
		      : -1;

	free(name);
	return fd;
}

/* A name that is nobody's yet; false: no memory. */
static bool invent(struct draft *d)
{
	uint64_t chance = loop_now() ^ (uint64_t)getpid() << 20;
	const char *file = last(d->path);

	free(d->temp);
	/* The longest name has room for no more. */
	if (asprintf(&d->temp, "%.*s.%.200s.husk-%08x", (int)(file - d->path),
		     d->path, file,
		     (unsigned)(chance ^ chance >> 32) & UINT32_MAX) < 0)
		d->temp = NULL;
	return d->temp;
}

/* 0: this open file has it. */
static int lock_file(int fd)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (!fcntl(fd, F_OFD_SETLK, &lock))
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static bool is_draft(const char *name, const char *pattern, size_t n)
{
	if (strncmp(name, pattern, n) || strlen(name) != n + DIGITS)
		return false;
	for (unsigned i = 0; i < DIGITS; i++)
		if (!isxdigit((unsigned char)name[n + i]))
			return false;
	return true;
}

/* Takes away what was left. */
static void sweep(const struct draft *d)
{
	const char *pattern = last(d->temp);
	size_t n = strlen(pattern) - DIGITS;
	int at = open_folder(d->path);
	DIR *dir = at < 0 ? NULL : fdopendir(at);
	struct dirent *e;

	if (!dir && at >= 0)
		close(at);
	while (dir && (e = readdir(dir))) {
		struct stat st;
		int fd;

		if (!is_draft(e->d_name, pattern, n))
			continue;
		fd = openat(at, e->d_name,
			    O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !lock_file(fd))
			unlinkat(at, e->d_name, 0);
		close(fd);
	}
	if (dir)
		closedir(dir);
}

static int open_nameless(struct draft *d)
{
	char *name = strndup(d->path, (size_t)folder(d->path));

	d->fd = name ? open(*name ? name : ".", O_TMPFILE | O_RDWR | O_CLOEXEC,
			    0600)
		     : -1;
	free(name);
	if (d->fd < 0)
		return -errno;
	snprintf(d->self, sizeof(d->self), "/proc/self/fd/%d", d->fd);
	d->name = d->self;
	/* Without /proc it could neither be opened nor named. */
	if (!access(d->self, R_OK | W_OK)) {
		lock_file(d->fd);
		return 0;
	}
	close(d->fd);
	return -ENOENT;
}

static int open_named(struct draft *d)
{
	struct stat st;

	for (unsigned i = 0; i < TRIES; i++) {
		if (!invent(d))
			return -ENOMEM;
		d->fd = open(d->temp, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC,
			     0600);
		if (d->fd < 0 && errno == EEXIST)
			continue;
		if (d->fd < 0)
			return -errno;
		/* Another's sweep may have come before the lock. */
		if (lock_file(d->fd) != -EBUSY && !fstat(d->fd, &st) &&
		    st.st_nlink) {
			d->name = d->temp;
			d->named = true;
			return 0;
		}
		close(d->fd);
	}
	return -EEXIST;
}

static int refuse(const struct draft *d, struct husk_error *err)
{
	return error_set(err, -EEXIST,
			 "%s: exists already; say --force to replace it",
			 d->path);
}

int draft_begin(struct draft *d, const char *path, bool replace,
		struct husk_error *err)
{
	mode_t mask = umask(0);
	struct stat st;
	int ret;

	umask(mask);
	*d = (struct draft){ .path = path, .replace = replace, .fd = -1 };
	if (!lstat(path, &st)) {
		if (!replace)
			return refuse(d, err);
		if (!S_ISREG(st.st_mode))
			return error_set(err, -EINVAL,
					 "%s: is not a regular file", path);
	} else {
		st.st_mode = 0666 & ~mask;
	}
	ret = invent(d) ? 0 : -ENOMEM;
	if (!ret) {
		sweep(d);
		ret = open_nameless(d);
	}
	if (ret)
		ret = open_named(d);
	if (ret) {
		d->fd = -1;
		free(d->temp);
		return error_errno(err, ret, "%s", path);
	}
	(void)!fchmod(d->fd, st.st_mode & 07777);
	return 0;
}

static int give_name(struct draft *d)
{
	int ret = -EEXIST;

	if (!d->named && !d->replace)
		return linkat(AT_FDCWD, d->self, AT_FDCWD, d->path,
			      AT_SYMLINK_FOLLOW)
			       ? -errno
			       : 0;
	for (unsigned i = 0; !d->named && ret == -EEXIST && i < TRIES; i++) {
		if (!invent(d))
			return -ENOMEM;
		d->named = !linkat(AT_FDCWD, d->self, AT_FDCWD, d->temp,
				   AT_SYMLINK_FOLLOW);
		ret = d->named ? 0 : -errno;
	}
	if (!d->named)
		return ret;
	if (renameat2(AT_FDCWD, d->temp, AT_FDCWD, d->path,
		      d->replace ? 0 : RENAME_NOREPLACE))
		ret = -errno;
	else
		ret = 0;
	/* Not every file system knows how to keep what is there. */
	if (ret == -EINVAL && !d->replace)
		ret = rename(d->temp, d->path) ? -errno : 0;
	d->named = ret;
	return ret;
}

int draft_sync_folder(const char *path)
{
	int at = open_folder(path), ret;

	if (at < 0)
		return -errno;
	ret = fsync(at) ? -errno : 0;
	close(at);
	return ret;
}

int draft_end(struct draft *d, int ret, struct husk_error *err)
{
	if (d->fd < 0)
		return ret;
	if (!ret) {
		ret = give_name(d);
		if (ret == -EEXIST)
			refuse(d, err);
		else if (ret)
			error_errno(err, ret, "%s", d->path);
	}
	if (d->named && d->temp)
		unlink(d->temp);
	close(d->fd);
	free(d->temp);
	d->fd = -1;
	if (!ret)
		draft_sync_folder(d->path);
	return ret;
}
