/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attr.c - owners, modes and times: the host's and what the guest sees
 *
 * When the share's files belong to one user of the host (mapped), that user
 * is the guest's root, or who the configuration says.  What the guest sets
 * beyond that is kept beside the file in the attribute user.husk.stat as
 * "UID:GID:MODE:MAJOR:MINOR", the mode in octal with its type.  The host's
 * mode then keeps read and write for the user, because root in the guest has
 * it, and never has set-user-ID.
 *
 * Device nodes are never made on the host: they are empty files of our user
 * with that attribute and the mode 01600, which nothing else has.  So are
 * pipes and sockets of a mapped share, which could not have the attribute.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { NODE_MODE = 01600, STAT_LEN = 64 };

struct view {
	uint32_t uid, gid, mode; /* with type */
	uint32_t rdev_major, rdev_minor;
};

static void proc_path(int fd, char *path, size_t len)
{
	snprintf(path, len, "/proc/self/fd/%d", fd);
}

/* -- the attribute -------------------------------------------------------- */

/* A number and what ends it; false: neither. */
static bool take_number(char **p, int base, char end, uint32_t *out)
{
	char *after;
	unsigned long v;

	if (**p < '0' || **p > '9')
		return false;
	v = strtoul(*p, &after, base);
	*out = (uint32_t)v;
	*p = after + 1;
	return *after == end && v <= UINT32_MAX;
}

static bool load_view(int fd, struct view *v)
{
	char path[40], text[STAT_LEN + 1], *p = text;
	ssize_t n;

	proc_path(fd, path, sizeof(path));
	n = getxattr(path, XATTR_STAT, text, STAT_LEN);
	if (n <= 0)
		return false;
	text[n] = 0;
	/* Users of the host may have written it. */
	return take_number(&p, 10, ':', &v->uid) &&
	       take_number(&p, 10, ':', &v->gid) &&
	       take_number(&p, 8, ':', &v->mode) &&
	       take_number(&p, 10, ':', &v->rdev_major) &&
	       take_number(&p, 10, 0, &v->rdev_minor);
}

static int save_view(struct fs *fs, int fd, const struct view *v)
{
	char path[40], text[STAT_LEN];
	int n = snprintf(text, sizeof(text), "%u:%u:%o:%u:%u", v->uid, v->gid,
			 v->mode, v->rdev_major, v->rdev_minor);

	proc_path(fd, path, sizeof(path));
	if (!setxattr(path, XATTR_STAT, text, (size_t)n, 0))
		return 0;
	if (errno == EOPNOTSUPP && !atomic_exchange(&fs->no_xattr, true))
		fs_log(fs, "the host's file system keeps no attributes, so "
			   "owners cannot be changed");
	return -errno;
}

static bool can_keep(mode_t type)
{
	return type == S_IFREG || type == S_IFDIR;
}

static bool is_node(const struct statx *sx)
{
	return sx->stx_mode == (S_IFREG | NODE_MODE) && !sx->stx_size;
}

static bool is_special(mode_t mode)
{
	return S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) ||
	       S_ISSOCK(mode);
}

/* What the host's values mean without the attribute. */
static void plain_view(struct fs *fs, struct statx *sx)
{
	if (!fs->mapped)
		return;
	sx->stx_uid = sx->stx_uid == fs->host_uid ? fs->cfg.uid : UNKNOWN_ID;
	sx->stx_gid = sx->stx_gid == fs->host_gid ? fs->cfg.gid : UNKNOWN_ID;
}

void attr_view(struct fs *fs, int fd, struct statx *sx)
{
	mode_t type = sx->stx_mode & S_IFMT, seen;
	bool node = is_node(sx), mine = sx->stx_uid == fs->host_uid;
	struct view v;

	plain_view(fs, sx);
	if (!mine || (!node && (!fs->mapped || !can_keep(type))))
		return;
	if (!load_view(fd, &v))
		return;
	seen = v.mode & S_IFMT;
	if (seen != type && !(node && is_special(seen)))
		return;
	if (node) {
		sx->stx_rdev_major = v.rdev_major;
		sx->stx_rdev_minor = v.rdev_minor;
	}
	sx->stx_mode = (uint16_t)v.mode;
	sx->stx_uid = v.uid;
	sx->stx_gid = v.gid;
}

int attr_get(struct fs *fs, int fd, struct statx *sx)
{
	int ret = fd_stat(fd, sx);

	if (!ret)
		attr_view(fs, fd, sx);
	return ret;
}

/* Of what lasts on the host when the guest sees this mode. */
static mode_t host_mode(mode_t mode)
{
	return S_ISDIR(mode) ? (mode & 01777) | 0700 : (mode & 0777) | 0600;
}

static int real_chmod(int fd, mode_t mode)
{
	char path[40];

	proc_path(fd, path, sizeof(path));
	return chmod(path, mode & 07777) ? -errno : 0;
}

static int store_node(struct fs *fs, int fd, const struct view *v)
{
	int ret = save_view(fs, fd, v);

	return ret ? ret : real_chmod(fd, NODE_MODE);
}

/* Mapped: the guest is to see v; sx is the host's own view. */
static int store_view(struct fs *fs, int fd, const struct statx *sx,
		      const struct view *v)
{
	mode_t type = sx->stx_mode & S_IFMT, mode = host_mode(v->mode);
	struct statx plain = *sx;
	char path[40];
	int ret;

	if (sx->stx_uid != fs->host_uid)
		return -EPERM;
	if (is_node(sx))
		return store_node(fs, fd, v);
	if (type == S_IFLNK)
		return 0;    /* a link's owner means nothing */
	if (!can_keep(type)) /* a pipe or socket: as much as there is */
		return real_chmod(fd, v->mode & 0777);
	if ((sx->stx_mode & 07777) != mode) {
		ret = real_chmod(fd, mode);
		if (ret)
			return ret;
	}
	proc_path(fd, path, sizeof(path));
	plain_view(fs, &plain);
	if (plain.stx_uid == v->uid && plain.stx_gid == v->gid &&
	    mode == (v->mode & 07777)) {
		if (removexattr(path, XATTR_STAT) && errno != ENODATA &&
		    errno != EOPNOTSUPP)
			return -errno;
		return 0;
	}
	ret = save_view(fs, fd, v);
	if (ret != -EOPNOTSUPP)
		return ret;
	if (plain.stx_uid != v->uid || plain.stx_gid != v->gid)
		return -EPERM;
	return real_chmod(fd, v->mode & 01777);
}

/* -- answers -------------------------------------------------------------- */

void attr_fill(struct fs *fs, const struct statx *sx, struct fuse_attr *out)
{
	uint32_t major = sx->stx_rdev_major, minor = sx->stx_rdev_minor;

	*out = (struct fuse_attr){
		.ino = sx->stx_ino,
		.size = sx->stx_size,
		.blocks = sx->stx_blocks,
		.atime = (uint64_t)sx->stx_atime.tv_sec,
		.mtime = (uint64_t)sx->stx_mtime.tv_sec,
		.ctime = (uint64_t)sx->stx_ctime.tv_sec,
		.atimensec = sx->stx_atime.tv_nsec,
		.mtimensec = sx->stx_mtime.tv_nsec,
		.ctimensec = sx->stx_ctime.tv_nsec,
		.mode = sx->stx_mode,
		.nlink = sx->stx_nlink,
		.uid = sx->stx_uid,
		.gid = sx->stx_gid,
		/* As the kernel packs a device number for others. */
		.rdev = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12,
		.blksize = sx->stx_blksize,
	};
}

void entry_timeout(struct fs *fs, uint64_t *sec)
{
	*sec = fs->cfg.cache == FS_CACHE_ALWAYS ? 86400
	       : fs->cfg.cache == FS_CACHE_NONE ? 0
						: 1;
}

static int answer_attr(struct req *r, int fd)
{
	struct fuse_attr_out out = { 0 };
	struct statx sx;
	int ret = attr_get(r->fs, fd, &sx);

	if (ret)
		return ret;
	attr_fill(r->fs, &sx, &out.attr);
	entry_timeout(r->fs, &out.attr_valid);
	return answer(r, &out, sizeof(out));
}

int op_getattr(struct req *r)
{
	struct inode *i;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	ret = answer_attr(r, i->fd);
	inode_put(r->fs, i);
	return ret;
}

/* The rest of struct statx is the same for both. */
struct statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t spare[2];
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, spare0;
	uint64_t ino, size, blocks, attributes_mask;
	struct {
		int64_t sec;
		uint32_t nsec;
		int32_t reserved;
	} atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare2[14];
};

#define SX_TIME(to, from) \
	out.to.sec = sx.from.tv_sec, out.to.nsec = sx.from.tv_nsec

int op_statx(struct req *r)
{
	struct statx_out out = { 0 };
	struct inode *i;
	struct statx sx;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	ret = attr_get(r->fs, i->fd, &sx);
	inode_put(r->fs, i);
	if (ret)
		return ret;
	entry_timeout(r->fs, &out.attr_valid);
	out.mask = sx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
	out.blksize = sx.stx_blksize;
	out.nlink = sx.stx_nlink;
	out.uid = sx.stx_uid;
	out.gid = sx.stx_gid;
	out.mode = sx.stx_mode;
	out.ino = sx.stx_ino;
	out.size = sx.stx_size;
	out.blocks = sx.stx_blocks;
	SX_TIME(atime, stx_atime);
	SX_TIME(btime, stx_btime);
	SX_TIME(ctime, stx_ctime);
	SX_TIME(mtime, stx_mtime);
	out.rdev_major = sx.stx_rdev_major;
	out.rdev_minor = sx.stx_rdev_minor;
	return answer(r, &out, sizeof(out));
}

/* -- changes -------------------------------------------------------------- */

/* Owner and mode: what is not to change is as in sx, the guest's view. */
static int change_owner(struct fs *fs, struct inode *i, struct statx *seen,
			const struct fuse_setattr_in *a)
{
	bool chown = a->valid & (FATTR_UID | FATTR_GID);
	struct view v = {
		.uid = a->valid & FATTR_UID ? a->uid : seen->stx_uid,
		.gid = a->valid & FATTR_GID ? a->gid : seen->stx_gid,
		.mode = seen->stx_mode,
		.rdev_major = seen->stx_rdev_major,
		.rdev_minor = seen->stx_rdev_minor,
	};
	struct statx sx;
	int ret;

	/* As the kernel does for whoever changes the owner. */
	if (chown && !S_ISDIR(v.mode)) {
		v.mode &= ~(uint32_t)S_ISUID;
		if (v.mode & S_IXGRP)
			v.mode &= ~(uint32_t)S_ISGID;
	}
	if (a->valid & FATTR_MODE)
		v.mode = (v.mode & S_IFMT) | (a->mode & 07777);
	if (i->type == S_IFLNK && a->valid & FATTR_MODE)
		return -EOPNOTSUPP;
	ret = fd_stat(i->fd, &sx);
	if (ret)
		return ret;
	if (fs->mapped)
		return store_view(fs, i->fd, &sx, &v);
	if (is_node(&sx))
		return store_node(fs, i->fd, &v);
	if (chown &&
	    fchownat(i->fd, "", a->valid & FATTR_UID ? a->uid : (uid_t)-1,
		     a->valid & FATTR_GID ? a->gid : (gid_t)-1, AT_EMPTY_PATH))
		return -errno;
	return a->valid & FATTR_MODE ? real_chmod(i->fd, v.mode) : 0;
}

static int change_times(struct fs *fs, struct inode *i,
			const struct fuse_setattr_in *a)
{
	struct timespec t[2] = { { 0, UTIME_OMIT }, { 0, UTIME_OMIT } };
	struct fd_path p = fd_path(i->fd);

	if (a->valid & FATTR_ATIME_NOW)
		t[0].tv_nsec = UTIME_NOW;
	else if (a->valid & FATTR_ATIME)
		t[0] = (struct timespec){ (time_t)a->atime, a->atimensec };
	if (a->valid & FATTR_MTIME_NOW)
		t[1].tv_nsec = UTIME_NOW;
	else if (a->valid & FATTR_MTIME)
		t[1] = (struct timespec){ (time_t)a->mtime, a->mtimensec };
	/* The entry in /proc leads to the file itself, also to a link. */
	return utimensat(fs->proc, p.text, t, 0) ? -errno : 0;
}

static int change_size(struct req *r, struct inode *i,
		       const struct fuse_setattr_in *a)
{
	struct handle *h;
	int fd, ret;

	if (a->size > INT64_MAX)
		return -EINVAL;
	if (a->valid & FATTR_FH && !handle_get(r->fs, a->fh, false, &h)) {
		ret = h->inode == i && (h->flags & O_ACCMODE) != O_RDONLY ? 1
									  : 0;
		if (ret)
			ret = ftruncate(h->fd, (off_t)a->size) ? -errno : 1;
		handle_put(r->fs, h);
		if (ret)
			return MIN(ret, 0);
	}
	fd = inode_open(r->fs, i, O_WRONLY);
	if (fd < 0)
		return fd;
	ret = ftruncate(fd, (off_t)a->size) ? -errno : 0;
	close(fd);
	return ret;
}

int op_setattr(struct req *r)
{
	const struct fuse_setattr_in *a = r->args;
	struct fs *fs = r->fs;
	struct statx sx;
	struct inode *i;
	int ret = inode_get(fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	ret = attr_get(fs, i->fd, &sx);
	if (!ret && a->valid & FATTR_SIZE) {
		ret = change_size(r, i, a);
		if (!ret)
			attr_kill(fs, i, i->fd, a->valid & FATTR_KILL_SUIDGID);
		if (!ret && a->valid & FATTR_KILL_SUIDGID)
			ret = attr_get(fs, i->fd, &sx);
	}
	if (!ret && a->valid & (FATTR_MODE | FATTR_UID | FATTR_GID)) {
		if (a->valid & (FATTR_UID | FATTR_GID))
			attr_kill(fs, i, i->fd, false);
		ret = change_owner(fs, i, &sx, a);
	}
	if (!ret && a->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW |
				FATTR_MTIME_NOW))
		ret = change_times(fs, i, a);
	if (!ret)
		ret = answer_attr(r, i->fd);
	inode_put(fs, i);
	return ret;
}

void attr_kill(struct fs *fs, struct inode *i, int fd, bool suid)
{
	struct fuse_setattr_in a = { .valid = FATTR_MODE };
	struct statx sx;
	char path[40];

	/* Races only with a guest that sets them at the same time. */
	if (!i->no_caps && i->type == S_IFREG) {
		proc_path(fd, path, sizeof(path));
		removexattr(path, XATTR_CAPS);
		i->no_caps = true;
	}
	if (!suid || attr_get(fs, fd, &sx))
		return;
	a.mode = sx.stx_mode & ~(uint32_t)S_ISUID;
	if (a.mode & S_IXGRP)
		a.mode &= ~(uint32_t)S_ISGID;
	if (a.mode != sx.stx_mode)
		change_owner(fs, i, &sx, &a);
}

bool attr_loosen(struct fs *fs, uint64_t id)
{
	struct statx sx, seen;
	struct inode *i;
	mode_t want;
	bool done = false;

	if (!fs->mapped || fs->cfg.readonly || inode_get(fs, id, &i))
		return false;
	if (can_keep(i->type) && !fd_stat(i->fd, &sx) &&
	    sx.stx_uid == fs->host_uid && !is_node(&sx)) {
		want = host_mode(sx.stx_mode);
		seen = sx;
		attr_view(fs, i->fd, &seen);
		if ((sx.stx_mode & 01777) != want) {
			struct view v = { .uid = seen.stx_uid,
					  .gid = seen.stx_gid,
					  .mode = seen.stx_mode };

			done = !store_view(fs, i->fd, &sx, &v);
		}
	}
	inode_put(fs, i);
	return done;
}

/* -- who makes files ------------------------------------------------------ */

static void raise_override(void)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];

	/*
	 * The guest's kernel has checked already, and knows all groups of its
	 * user; we only have one.  CAP_FSETID stays away, so that set-group-ID
	 * is for members only.
	 */
	if (syscall(SYS_capget, &h, d))
		return;
	d[0].effective |= d[0].permitted &
			  (1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH);
	syscall(SYS_capset, &h, d);
}

/* Both are of this thread alone. */
void creds_set(struct req *r)
{
	if (r->fs->mapped || (!r->h.uid && !r->h.gid))
		return;
	setfsgid(r->h.gid);
	setfsuid(r->h.uid);
	if (r->h.uid)
		raise_override();
}

void creds_reset(struct req *r)
{
	if (r->fs->mapped || (!r->h.uid && !r->h.gid))
		return;
	setfsuid(r->fs->host_uid);
	setfsgid(r->fs->host_gid);
}

int attr_new(struct req *r, struct inode *dir, int fd, mode_t mode,
	     uint32_t rdev)
{
	struct view v = {
		.uid = r->h.uid,
		.gid = r->h.gid,
		.mode = mode,
		.rdev_major = (rdev >> 8) & 0xfff,
		.rdev_minor = (rdev & 0xff) | (rdev >> 12 & 0xfff00),
	};
	struct fs *fs = r->fs;
	struct statx sx, up;
	int ret;

	if (!fs->mapped && !is_special(mode) && thread_has_umask())
		return 0; /* it is all as asked for */
	ret = fd_stat(fd, &sx);
	if (ret)
		return ret;
	if (is_special(mode) && S_ISREG(sx.stx_mode)) {
		sx.stx_mode = S_IFREG | NODE_MODE;
		if (!fs->mapped)
			return store_node(fs, fd, &v);
	}
	if (!fs->mapped) {
		/* The umask of the process was in the way. */
		if (!thread_has_umask() && !S_ISLNK(mode) &&
		    (sx.stx_mode & 0777) != (mode & 0777))
			return real_chmod(fd, (sx.stx_mode & 07000) |
						      (mode & 0777));
		return 0;
	}
	if (S_ISLNK(mode))
		return 0;
	ret = attr_get(fs, dir->fd, &up);
	if (ret)
		return ret;
	if (up.stx_mode & S_ISGID) {
		/* CVE-2022-0358: who is not in the group does not get it. */
		if (!S_ISDIR(mode) && v.gid != up.stx_gid && v.uid &&
		    mode & S_IXGRP)
			v.mode &= ~(uint32_t)S_ISGID;
		if (S_ISDIR(mode))
			v.mode |= S_ISGID;
		v.gid = up.stx_gid;
	}
	return store_view(fs, fd, &sx, &v);
}
