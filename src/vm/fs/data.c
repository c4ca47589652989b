/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data.c - requests about the bytes of open files
 *
 * Bytes go between the file and the guest's memory at once: the lists of the
 * message are what preadv() and pwritev() get.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { MAX_COPY = 64 << 20 }; /* of one copy_file_range(): others wait */

static int open_it(struct req *r, unsigned flags, bool dir, bool kill)
{
	struct fuse_open_out out = { 0 };
	int fd, how = O_RDONLY | O_DIRECTORY;
	struct inode *i;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	if (!dir)
		how = (int)(flags & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC));
	if (r->room < sizeof(out))
		fd = -ERANGE;
	else if (!dir && i->type == S_IFDIR)
		fd = -EISDIR;
	else
		fd = inode_open(r->fs, i, how);
	ret = fd < 0 ? fd
		     : handle_add(r->fs, i, fd, dir ? O_RDONLY : flags, dir,
				  &out.fh);
	if (!ret && how & O_TRUNC)
		attr_kill(r->fs, i, fd, kill);
	inode_put(r->fs, i);
	if (ret)
		return ret;
	if (r->fs->cfg.cache == FS_CACHE_ALWAYS)
		out.open_flags = dir ? FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR
				     : FOPEN_KEEP_CACHE;
	return answer(r, &out, sizeof(out));
}

int op_open(struct req *r)
{
	const struct fuse_open_in *a = r->args;

	if (r->fs->cfg.readonly &&
	    ((a->flags & O_ACCMODE) != O_RDONLY || a->flags & O_TRUNC))
		return -EROFS;
	return open_it(r, a->flags, false,
		       a->open_flags & FUSE_OPEN_KILL_SUIDGID);
}

int op_opendir(struct req *r)
{
	return open_it(r, 0, true, false);
}

static ssize_t read_all(int fd, const struct iovec *iov, unsigned n, off_t at)
{
	ssize_t got = preadv(fd, iov, (int)n, at);

	return got < 0 ? -errno : got;
}

/*
 * All that is in memory, or -EAGAIN.  Less than was asked for is the end of the
 * file if there is nothing behind it.
 */
static ssize_t read_quick(int fd, const struct iovec *iov, unsigned n,
			  size_t size, off_t at)
{
	ssize_t got = preadv2(fd, iov, (int)n, at, RWF_NOWAIT);
	char more;

	if (got < 0)
		return errno == EOPNOTSUPP ? read_all(fd, iov, n, at) : -errno;
	if ((size_t)got < size &&
	    preadv2(fd, &(struct iovec){ &more, 1 }, 1, at + got, RWF_NOWAIT))
		return -EAGAIN;
	return got;
}

int op_read(struct req *r)
{
	const struct fuse_read_in *a = r->args;
	struct iovec iov[IOV_MAX];
	size_t size = MIN(a->size, r->room);
	struct handle *h;
	unsigned n;
	ssize_t got;
	int ret;

	if (a->offset > INT64_MAX)
		return -EINVAL;
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	n = pieces(r->m->out, r->m->nout, sizeof(struct fuse_out_header),
		   MIN(size, MAX_WRITE), iov);
	if (r->m->quick)
		got = read_quick(h->fd, iov, n, MIN(size, MAX_WRITE),
				 (off_t)a->offset);
	else
		got = read_all(h->fd, iov, n, (off_t)a->offset);
	handle_put(r->fs, h);
	if (got >= 0)
		r->answered = (size_t)got;
	return (int)MIN(got, 0);
}

static ssize_t write_out(struct handle *h, const struct fuse_write_in *a,
			 const struct iovec *iov, unsigned n)
{
	bool append =
		h->flags & O_APPEND && !(a->write_flags & FUSE_WRITE_CACHE);

	/* The guest's idea of the end may be old; a page knows its place. */
	if (append) {
		ssize_t done = pwritev2(h->fd, iov, (int)n, 0, RWF_APPEND);

		if (done >= 0 || errno != EOPNOTSUPP)
			return done;
	}
	return pwritev(h->fd, iov, (int)n, (off_t)a->offset);
}

int op_write(struct req *r)
{
	const struct fuse_write_in *a = r->args;
	struct fuse_write_out out = { 0 };
	struct iovec iov[IOV_MAX];
	struct handle *h;
	ssize_t done;
	unsigned n;
	int ret;

	if (a->offset > INT64_MAX || a->size > r->nrest || a->size > MAX_WRITE)
		return -EINVAL;
	if (r->room < sizeof(out))
		return -ERANGE;
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	n = pieces(r->m->in, r->m->nin, r->data, a->size, iov);
	done = write_out(h, a, iov, n);
	ret = done < 0 ? -errno : 0;
	if (!ret)
		attr_kill(r->fs, h->inode, h->fd,
			  a->write_flags & FUSE_WRITE_KILL_SUIDGID);
	handle_put(r->fs, h);
	out.size = (uint32_t)done;
	return ret ? ret : answer(r, &out, sizeof(out));
}

int op_release(struct req *r)
{
	const struct fuse_release_in *a = r->args;
	struct handle *h;
	int ret = handle_get(r->fs, a->fh, false, &h);

	if (ret == -ESTALE)
		handle_close(r->fs, a->fh);
	if (ret)
		return ret == -ESTALE ? 0 : ret;
	if (a->release_flags & FUSE_RELEASE_FLUSH)
		locks_release(r->fs, h->inode, a->lock_owner);
	handle_close(r->fs, a->fh);
	handle_put(r->fs, h);
	/* Its flock() locks went with it. */
	atomic_fetch_add(&r->fs->unlocks, 1);
	return 0;
}

int op_releasedir(struct req *r)
{
	const struct fuse_release_in *a = r->args;

	handle_close(r->fs, a->fh);
	return 0;
}

int op_flush(struct req *r)
{
	const struct fuse_flush_in *a = r->args;
	struct handle *h;
	int ret, fd;

	/* Only who has locks, or errors that come late, wants to know. */
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	locks_release(r->fs, h->inode, a->lock_owner);
	if ((h->flags & O_ACCMODE) != O_RDONLY && atomic_load(&r->fs->remote)) {
		fd = dup(h->fd);
		if (fd >= 0 && close(fd))
			ret = -errno;
	}
	handle_put(r->fs, h);
	return ret;
}

static int sync_it(struct req *r, bool dir)
{
	const struct fuse_fsync_in *a = r->args;
	struct handle *h;
	int ret = handle_get(r->fs, a->fh, dir, &h);

	if (ret)
		return ret;
	if (a->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd)
						  : fsync(h->fd))
		ret = -errno;
	handle_put(r->fs, h);
	return ret;
}

int op_fsync(struct req *r)
{
	return sync_it(r, false);
}

int op_fsyncdir(struct req *r)
{
	return sync_it(r, true);
}

int op_syncfs(struct req *r)
{
	struct inode *i;
	int fd, ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	fd = inode_open(r->fs, i, O_RDONLY);
	inode_put(r->fs, i);
	if (fd < 0)
		return fd;
	ret = syncfs(fd) ? -errno : 0;
	close(fd);
	return ret;
}

int op_statfs(struct req *r)
{
	struct fuse_statfs_out out = { 0 };
	struct inode *i;
	struct statfs st;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	ret = fstatfs(i->fd, &st) ? -errno : 0;
	inode_put(r->fs, i);
	if (ret)
		return ret;
	out.st = (struct fuse_kstatfs){
		.blocks = st.f_blocks,
		.bfree = st.f_bfree,
		.bavail = st.f_bavail,
		.files = st.f_files,
		.ffree = st.f_ffree,
		.bsize = (uint32_t)st.f_bsize,
		.namelen = (uint32_t)st.f_namelen,
		.frsize = (uint32_t)(st.f_frsize ? st.f_frsize : st.f_bsize),
	};
	return answer(r, &out, sizeof(out));
}

int op_access(struct req *r)
{
	const struct fuse_access_in *a = r->args;
	struct inode *i;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	inode_put(r->fs, i);
	return a->mask & W_OK && r->fs->cfg.readonly ? -EROFS : 0;
}

int op_fallocate(struct req *r)
{
	const struct fuse_fallocate_in *a = r->args;
	const uint32_t known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_ZERO_RANGE;
	struct handle *h;
	int ret;

	if (a->mode & ~known)
		return -EOPNOTSUPP;
	if (a->offset > INT64_MAX || a->length > INT64_MAX)
		return -EINVAL;
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	if (fallocate(h->fd, (int)a->mode, (off_t)a->offset, (off_t)a->length))
		ret = -errno;
	if (!ret)
		attr_kill(r->fs, h->inode, h->fd, false);
	handle_put(r->fs, h);
	return ret;
}

int op_lseek(struct req *r)
{
	const struct fuse_lseek_in *a = r->args;
	struct fuse_lseek_out out;
	struct handle *h;
	off_t off;
	int ret;

	if (a->whence != SEEK_DATA && a->whence != SEEK_HOLE)
		return -EINVAL;
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	off = lseek(h->fd, (off_t)a->offset, (int)a->whence);
	ret = off < 0 ? -errno : 0;
	handle_put(r->fs, h);
	out.offset = (uint64_t)off;
	return ret ? ret : answer(r, &out, sizeof(out));
}

int op_copy_file_range(struct req *r)
{
	const struct fuse_copy_file_range_in *a = r->args;
	struct fuse_write_out out = { 0 };
	off_t from = (off_t)a->off_in, to = (off_t)a->off_out;
	struct handle *in, *h;
	ssize_t done;
	int ret;

	if (a->flags || a->off_in > INT64_MAX || a->off_out > INT64_MAX)
		return -EINVAL;
	ret = handle_get(r->fs, a->fh_in, false, &in);
	if (ret)
		return ret;
	ret = handle_get(r->fs, a->fh_out, false, &h);
	if (!ret) {
		done = copy_file_range(in->fd, &from, h->fd, &to,
				       MIN(a->len, MAX_COPY), 0);
		ret = done < 0 ? -errno : 0;
		if (!ret) {
			attr_kill(r->fs, h->inode, h->fd, false);
			out.size = (uint32_t)done;
		}
		handle_put(r->fs, h);
	}
	handle_put(r->fs, in);
	return ret ? ret : answer(r, &out, sizeof(out));
}
