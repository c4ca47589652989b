/* SPDX-License-Identifier: Apache-2.0 */
/*
 * name.c - requests about names in directories
 *
 * A name is one component, checked by server.c, below a directory that is
 * held by a descriptor: whatever the host does to the tree meanwhile, there
 * is nothing on the way that could lead elsewhere.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Takes fd. */
int entry_fill(struct fs *fs, struct inode *dir, const char *name, int fd,
	       struct fuse_entry_out *out)
{
	struct statx sx;
	struct inode *i;
	int ret = fd_stat(fd, &sx);

	memset(out, 0, sizeof(*out));
	if (ret) {
		close(fd);
		return ret;
	}
	ret = inode_learn(fs, dir, name, fd, &sx, &i);
	if (ret)
		return ret;
	attr_view(fs, i->fd, &sx);
	out->nodeid = i->id;
	out->generation = i->born;
	entry_timeout(fs, &out->entry_valid);
	entry_timeout(fs, &out->attr_valid);
	attr_fill(fs, &sx, &out->attr);
	if (fs->flags & FUSE_SUBMOUNTS && i->type == S_IFDIR &&
	    i->dev != dir->dev)
		out->attr.flags = FUSE_ATTR_SUBMOUNT;
	inode_put(fs, i);
	return 0;
}

int entry_answer(struct req *r, struct inode *dir, const char *name, int fd)
{
	struct fuse_entry_out out;
	int ret;

	if (r->room < sizeof(out)) {
		close(fd);
		return -ERANGE;
	}
	ret = entry_fill(r->fs, dir, name, fd, &out);
	return ret ? ret : answer(r, &out, sizeof(out));
}

static int lookup_in(struct req *r, struct inode *dir, const char *name)
{
	int fd = open_beneath(r->fs, dir->fd, name, O_PATH, 0);

	if (fd < 0)
		return fd;
	return entry_answer(r, dir, name, fd);
}

int op_lookup(struct req *r)
{
	struct inode *dir;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	ret = lookup_in(r, dir, r->name);
	inode_put(r->fs, dir);
	return ret;
}

int op_forget(struct req *r)
{
	const struct fuse_forget_in *a = r->args;

	inode_forget(r->fs, r->h.nodeid, a->nlookup);
	return 0;
}

int op_batch_forget(struct req *r)
{
	const struct fuse_batch_forget_in *a = r->args;
	size_t n = r->nrest / sizeof(struct fuse_forget_one);
	struct fuse_forget_one one;

	for (size_t k = 0; k < MIN(n, a->count); k++) {
		memcpy(&one, (const char *)r->rest + k * sizeof(one),
		       sizeof(one));
		inode_forget(r->fs, one.nodeid, one.nlookup);
	}
	return 0;
}

int op_readlink(struct req *r)
{
	char target[4096];
	struct inode *i;
	ssize_t n;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	n = readlinkat(i->fd, "", target, sizeof(target));
	ret = n < 0 ? (errno == ENOENT ? -EINVAL : -errno)
		    : answer(r, target, (size_t)n);
	inode_put(r->fs, i);
	return ret;
}

/* -- making --------------------------------------------------------------- */

/*
 * An O_PATH descriptor of what an open one leads to, whoever has taken its
 * name meanwhile.
 */
static int path_of(struct fs *fs, int fd)
{
	struct fd_path p = fd_path(fd);
	int path = openat(fs->proc, p.text, O_PATH | O_CLOEXEC);

	if (path < 0 && fds_short(fs, errno))
		path = openat(fs->proc, p.text, O_PATH | O_CLOEXEC);
	return path < 0 ? -errno : path;
}

static mode_t made_mode(const struct fs *fs, mode_t mode)
{
	/* What is missing follows by attr_new(). */
	return fs->mapped ? (mode & 0777) | 0600 : mode & 07777;
}

/* A new regular file, open as flags say. */
static int make_file(struct req *r, struct inode *dir, const char *name,
		     int flags, mode_t mode, uint32_t rdev)
{
	bool node = !S_ISREG(mode);
	int fd, ret;

	if (!node)
		creds_set(r);
	fd = open_beneath(r->fs, dir->fd, name,
			  (flags & ~O_TRUNC) | O_CREAT | O_EXCL | O_NONBLOCK,
			  node ? 0600 : made_mode(r->fs, mode));
	if (!node)
		creds_reset(r);
	if (fd < 0)
		return fd;
	ret = attr_new(r, dir, fd, mode, rdev);
	if (ret) {
		unlinkat(dir->fd, name, 0);
		close(fd);
		return ret;
	}
	return fd;
}

static int make_special(struct req *r, struct inode *dir, mode_t mode)
{
	int ret, fd;

	creds_set(r);
	ret = mknodat(dir->fd, r->name,
		      (mode & S_IFMT) | made_mode(r->fs, mode), 0)
		      ? -errno
		      : 0;
	creds_reset(r);
	if (ret)
		return ret;
	fd = open_beneath(r->fs, dir->fd, r->name, O_PATH, 0);
	if (fd >= 0)
		attr_new(r, dir, fd, mode, 0);
	return fd;
}

static int make_empty(struct req *r, struct inode *dir, mode_t mode,
		      uint32_t rdev)
{
	int fd = make_file(r, dir, r->name, O_RDWR, mode, rdev);
	int path = fd < 0 ? fd : path_of(r->fs, fd);

	if (fd >= 0)
		close(fd);
	return path;
}

int op_mknod(struct req *r)
{
	const struct fuse_mknod_in *a = r->args;
	mode_t mode = a->mode;
	struct inode *dir;
	int path, ret = inode_get(r->fs, r->h.nodeid, &dir);
	bool pipe;

	if (ret)
		return ret;
	if (!(mode & S_IFMT))
		mode |= S_IFREG;
	pipe = S_ISFIFO(mode) || S_ISSOCK(mode);
	if (!pipe && !S_ISREG(mode) && !S_ISCHR(mode) && !S_ISBLK(mode))
		path = -EINVAL;
	else if (pipe && !r->fs->mapped)
		path = make_special(r, dir, mode);
	else
		path = make_empty(r, dir, mode, a->rdev);
	if (path == -EOPNOTSUPP && pipe)
		path = make_special(r, dir, mode);
	ret = path < 0 ? path : entry_answer(r, dir, r->name, path);
	inode_put(r->fs, dir);
	return ret;
}

int op_mkdir(struct req *r)
{
	const struct fuse_mkdir_in *a = r->args;
	mode_t mode = S_IFDIR | (a->mode & 07777);
	struct inode *dir;
	int fd, ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	creds_set(r);
	ret = mkdirat(dir->fd, r->name,
		      r->fs->mapped ? (mode & 01777) | 0700 : mode & 07777)
		      ? -errno
		      : 0;
	creds_reset(r);
	if (!ret) {
		fd = open_beneath(r->fs, dir->fd, r->name, O_PATH | O_DIRECTORY,
				  0);
		ret = fd < 0 ? fd : attr_new(r, dir, fd, mode, 0);
		if (ret && fd >= 0) {
			close(fd);
			unlinkat(dir->fd, r->name, AT_REMOVEDIR);
		} else if (!ret) {
			ret = entry_answer(r, dir, r->name, fd);
		}
	}
	inode_put(r->fs, dir);
	return ret;
}

int op_symlink(struct req *r)
{
	struct inode *dir;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	creds_set(r);
	ret = symlinkat(r->name2, dir->fd, r->name) ? -errno : 0;
	creds_reset(r);
	if (!ret)
		ret = lookup_in(r, dir, r->name);
	inode_put(r->fs, dir);
	return ret;
}

int op_link(struct req *r)
{
	const struct fuse_link_in *a = r->args;
	struct inode *dir, *i;
	struct fd_path p;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	ret = inode_get(r->fs, a->oldnodeid, &i);
	if (!ret) {
		p = fd_path(i->fd);
		ret = linkat(r->fs->proc, p.text, dir->fd, r->name,
			     AT_SYMLINK_FOLLOW)
			      ? -errno
			      : 0;
		inode_put(r->fs, i);
	}
	if (!ret)
		ret = lookup_in(r, dir, r->name);
	inode_put(r->fs, dir);
	return ret;
}

/* -- taking away, moving -------------------------------------------------- */

static int unlink_in(struct req *r, int flags)
{
	struct inode *dir;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	ret = unlinkat(dir->fd, r->name, flags) ? -errno : 0;
	if (!ret)
		inode_gone(r->fs, dir, r->name);
	inode_put(r->fs, dir);
	return ret;
}

int op_unlink(struct req *r)
{
	return unlink_in(r, 0);
}

int op_rmdir(struct req *r)
{
	return unlink_in(r, AT_REMOVEDIR);
}

static int rename_to(struct req *r, uint64_t newdir, unsigned flags)
{
	struct inode *from, *to;
	int ret = inode_get(r->fs, r->h.nodeid, &from);

	if (ret)
		return ret;
	ret = inode_get(r->fs, newdir, &to);
	if (!ret) {
		ret = renameat2(from->fd, r->name, to->fd, r->name2, flags)
			      ? -errno
			      : 0;
		if (!ret)
			inode_moved(r->fs, from, r->name, to, r->name2,
				    flags & RENAME_EXCHANGE);
		inode_put(r->fs, to);
	}
	inode_put(r->fs, from);
	return ret;
}

int op_rename(struct req *r)
{
	const struct fuse_rename_in *a = r->args;

	return rename_to(r, a->newdir, 0);
}

int op_rename2(struct req *r)
{
	const struct fuse_rename2_in *a = r->args;

	/* A whiteout would be a device node. */
	if (a->flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	return rename_to(r, a->newdir, a->flags);
}

/* -- making and opening at once ------------------------------------------- */

static int open_flags(unsigned flags)
{
	/* Appending is up to each write; the rest is the guest's business. */
	return (int)(flags & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC));
}

/* Takes both descriptors.  made: it is new. */
static int answer_created(struct req *r, struct inode *dir, const char *name,
			  int fd, int path, unsigned flags, bool made)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out = { 0 };
	struct inode *i;
	int ret;

	if (path < 0 || r->room < sizeof(out)) {
		close(fd);
		if (path >= 0)
			close(path);
		return path < 0 ? path : -ERANGE;
	}
	ret = entry_fill(r->fs, dir, name, path, &out.entry);
	if (ret) {
		close(fd);
		return ret;
	}
	ret = inode_get(r->fs, out.entry.nodeid, &i);
	if (ret) {
		close(fd);
	} else {
		if (made)
			i->no_caps = true;
		ret = handle_add(r->fs, i, fd, flags, false, &out.open.fh);
		inode_put(r->fs, i);
	}
	if (r->fs->cfg.cache == FS_CACHE_ALWAYS)
		out.open.open_flags = FOPEN_KEEP_CACHE;
	if (ret) {
		inode_forget(r->fs, out.entry.nodeid, 1);
		return ret;
	}
	return answer(r, &out, sizeof(out));
}

/* It was there already. */
static int open_existing(struct req *r, struct inode *dir, int flags, int *path)
{
	struct inode i = { 0 };
	struct statx sx;
	int fd;

	*path = open_beneath(r->fs, dir->fd, r->name, O_PATH, 0);
	if (*path < 0)
		return *path;
	fd = fd_stat(*path, &sx);
	if (!fd) {
		i.fd = *path;
		i.type = sx.stx_mode & S_IFMT;
		fd = inode_open(r->fs, &i, flags);
	}
	if (fd < 0)
		close(*path);
	return fd;
}

int op_create(struct req *r)
{
	const struct fuse_create_in *a = r->args;
	mode_t mode = S_IFREG | (a->mode & 07777);
	int flags = open_flags(a->flags), fd, path = -1;
	struct inode *dir;
	bool made;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	fd = make_file(r, dir, r->name, flags, mode, 0);
	made = fd >= 0;
	if (made)
		path = path_of(r->fs, fd);
	else if (fd == -EEXIST && !(a->flags & O_EXCL))
		fd = open_existing(r, dir, flags, &path);
	ret = fd < 0 ? fd
		     : answer_created(r, dir, r->name, fd, path, a->flags,
				      made);
	inode_put(r->fs, dir);
	return ret;
}

int op_tmpfile(struct req *r)
{
	const struct fuse_create_in *a = r->args;
	mode_t mode = S_IFREG | (a->mode & 07777);
	int fd, flags = open_flags(a->flags) & ~O_TRUNC;
	struct inode *dir;
	int ret = inode_get(r->fs, r->h.nodeid, &dir);

	if (ret)
		return ret;
	creds_set(r);
	fd = open_beneath(r->fs, dir->fd, ".",
			  flags | O_TMPFILE | (int)(a->flags & O_EXCL),
			  made_mode(r->fs, mode));
	creds_reset(r);
	ret = fd < 0 ? fd : attr_new(r, dir, fd, mode, 0);
	if (!ret)
		ret = answer_created(r, dir, NULL, fd, path_of(r->fs, fd),
				     a->flags, true);
	else if (fd >= 0)
		close(fd);
	inode_put(r->fs, dir);
	return ret;
}
