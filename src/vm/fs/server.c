/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.c - FUSE requests: taken apart, checked, answered
 *
 * The guest may change its memory at any moment.  So all but the bytes of
 * files is copied once and checked in the copy.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

enum {
	OLDEST_MINOR = 27,    /* Linux 4.20 */
	WRITES = 1,	      /* refused when the share is read-only */
	SILENT = 2,	      /* has no answer */
	REST = 4,	      /* something follows: checked by the function */
	TARGET = 8,	      /* the second name is the text of a link */
	LOOSEN = 16,	      /* root in the guest is never denied this */
	SLOW = 32,	      /* often waits for a disk or somebody else */
	MAX_QUICK = 64 << 10, /* bytes */
};

struct op {
	int (*f)(struct req *r);
	uint16_t size; /* of the struct after the header */
	uint8_t names, flags;
};

static int op_nothing(struct req *r)
{
	return 0;
}

static int op_interrupt(struct req *r);

#define SIZE(t) sizeof(struct fuse_##t##_in)
static const struct op ops[] = {
	[FUSE_LOOKUP] = { op_lookup, 0, 1, LOOSEN },
	[FUSE_FORGET] = { op_forget, SIZE(forget), 0, SILENT },
	[FUSE_GETATTR] = { op_getattr, SIZE(getattr), 0, 0 },
	[FUSE_SETATTR] = { op_setattr, SIZE(setattr), 0, WRITES | LOOSEN },
	[FUSE_READLINK] = { op_readlink, 0, 0, 0 },
	[FUSE_SYMLINK] = { op_symlink, 0, 2, WRITES | TARGET | LOOSEN },
	[FUSE_MKNOD] = { op_mknod, SIZE(mknod), 1, WRITES | LOOSEN },
	[FUSE_MKDIR] = { op_mkdir, SIZE(mkdir), 1, WRITES | LOOSEN },
	[FUSE_UNLINK] = { op_unlink, 0, 1, WRITES | LOOSEN },
	[FUSE_RMDIR] = { op_rmdir, 0, 1, WRITES | LOOSEN },
	[FUSE_RENAME] = { op_rename, SIZE(rename), 2, WRITES | LOOSEN },
	[FUSE_RENAME2] = { op_rename2, SIZE(rename2), 2, WRITES | LOOSEN },
	[FUSE_LINK] = { op_link, SIZE(link), 1, WRITES | LOOSEN },
	[FUSE_OPEN] = { op_open, SIZE(open), 0, LOOSEN },
	[FUSE_READ] = { op_read, SIZE(read), 0, 0 },
	[FUSE_WRITE] = { op_write, SIZE(write), 0, WRITES | REST },
	[FUSE_STATFS] = { op_statfs, 0, 0, 0 },
	[FUSE_RELEASE] = { op_release, SIZE(release), 0, 0 },
	[FUSE_FSYNC] = { op_fsync, SIZE(fsync), 0, SLOW },
	[FUSE_SETXATTR] = { op_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, 1,
			    WRITES | REST | LOOSEN },
	[FUSE_GETXATTR] = { op_getxattr, SIZE(getxattr), 1, LOOSEN },
	[FUSE_LISTXATTR] = { op_listxattr, SIZE(getxattr), 0, LOOSEN },
	[FUSE_REMOVEXATTR] = { op_removexattr, 0, 1, WRITES | LOOSEN },
	[FUSE_FLUSH] = { op_flush, SIZE(flush), 0, 0 },
	[FUSE_OPENDIR] = { op_opendir, SIZE(open), 0, LOOSEN },
	[FUSE_READDIR] = { op_readdir, SIZE(read), 0, 0 },
	[FUSE_READDIRPLUS] = { op_readdirplus, SIZE(read), 0, LOOSEN },
	[FUSE_RELEASEDIR] = { op_releasedir, SIZE(release), 0, 0 },
	[FUSE_FSYNCDIR] = { op_fsyncdir, SIZE(fsync), 0, SLOW },
	[FUSE_GETLK] = { op_getlk, SIZE(lk), 0, SLOW },
	[FUSE_SETLK] = { op_setlk, SIZE(lk), 0, SLOW },
	[FUSE_SETLKW] = { op_setlkw, SIZE(lk), 0, SLOW },
	[FUSE_ACCESS] = { op_access, SIZE(access), 0, 0 },
	[FUSE_CREATE] = { op_create, SIZE(create), 1, WRITES | LOOSEN },
	[FUSE_TMPFILE] = { op_tmpfile, SIZE(create), 0,
			   WRITES | REST | LOOSEN | SLOW },
	[FUSE_INTERRUPT] = { op_interrupt, SIZE(interrupt), 0, SILENT },
	[FUSE_DESTROY] = { op_nothing, 0, 0, 0 },
	[FUSE_BATCH_FORGET] = { op_batch_forget, SIZE(batch_forget), 0,
				SILENT | REST },
	[FUSE_FALLOCATE] = { op_fallocate, SIZE(fallocate), 0, WRITES | SLOW },
	[FUSE_LSEEK] = { op_lseek, SIZE(lseek), 0, SLOW },
	[FUSE_COPY_FILE_RANGE] = { op_copy_file_range, SIZE(copy_file_range), 0,
				   WRITES | SLOW },
	[FUSE_SYNCFS] = { op_syncfs, SIZE(syncfs), 0, SLOW },
	[OP_STATX] = { op_statx, 24, 0, 0 },
};

void fs_log(struct fs *fs, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (!fs->cfg.log)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fs->cfg.log(fs->cfg.sink, text);
}

/* -- bytes ---------------------------------------------------------------- */

static size_t total(const struct iovec *iov, unsigned n)
{
	size_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

/* Not more than IOV_MAX pieces: the rest is left out, as a short answer. */
unsigned pieces(const struct iovec *iov, unsigned n, size_t off, size_t len,
		struct iovec *out)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n && len && k < IOV_MAX; i++) {
		size_t part;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		part = MIN(iov[i].iov_len - off, len);
		out[k++] =
			(struct iovec){ (char *)iov[i].iov_base + off, part };
		off = 0;
		len -= part;
	}
	return k;
}

static void copy_from(const struct iovec *iov, unsigned n, void *to, size_t len)
{
	uint8_t *p = to;

	for (unsigned i = 0; i < n && len; i++) {
		size_t part = MIN(iov[i].iov_len, len);

		memcpy(p, iov[i].iov_base, part);
		p += part;
		len -= part;
	}
}

static void copy_to(const struct iovec *iov, unsigned n, size_t off,
		    const void *from, size_t len)
{
	const uint8_t *p = from;

	for (unsigned i = 0; i < n && len; i++) {
		size_t part;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		part = MIN(iov[i].iov_len - off, len);
		memcpy((char *)iov[i].iov_base + off, p, part);
		p += part;
		len -= part;
		off = 0;
	}
}

int answer(struct req *r, const void *data, size_t len)
{
	if (len > r->room)
		return -ERANGE;
	copy_to(r->m->out, r->m->nout, sizeof(struct fuse_out_header), data,
		len);
	r->answered = len;
	return 0;
}

/* -- names ---------------------------------------------------------------- */

static int check_name(const char *name, size_t len)
{
	if (!len || !strcmp(name, ".") || !strcmp(name, "..") ||
	    memchr(name, '/', len))
		return -EINVAL;
	return len > NAME_LEN ? -ENAMETOOLONG : 0;
}

/* The name at *p, which ends before end. */
static int take_name(const char **p, const char *end, bool link,
		     const char **name)
{
	size_t len = strnlen(*p, (size_t)(end - *p));

	if (len == (size_t)(end - *p))
		return -EINVAL;
	*name = *p;
	*p += len + 1;
	if (link)
		return !len ? -EINVAL : len >= 4096 ? -ENAMETOOLONG : 0;
	return check_name(*name, len);
}

static int take_apart(struct req *r, const struct op *op, size_t size,
		      size_t len)
{
	const char *p = r->args, *end = p + len;
	int ret = 0;

	if (len < size)
		return -EINVAL;
	p += size;
	if (op->names > 0)
		ret = take_name(&p, end, false, &r->name);
	if (!ret && op->names > 1)
		ret = take_name(&p, end, op->flags & TARGET, &r->name2);
	r->rest = p;
	r->nrest = (size_t)(end - p);
	return ret;
}

/* -- the session ---------------------------------------------------------- */

static void end_session(struct fs *fs)
{
	locks_drop(fs);
	handles_drop(fs);
	inodes_drop(fs, false);
	fs->ready = false;
	fs->flags = 0;
	memset(fs->interrupted, 0, sizeof(fs->interrupted));
}

static int op_init(struct req *r, size_t len)
{
	struct fs *fs = r->fs;
	uint64_t offer = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC |
			 FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
			 FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
			 FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
			 FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_SUBMOUNTS |
			 FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT;
	struct fuse_init_in in = { 0 };
	struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION };

	memcpy(&in, r->args, MIN(len, sizeof(in)));
	if (len < 16)
		return -EINVAL;
	end_session(fs);
	if (in.major < FUSE_KERNEL_VERSION ||
	    (in.major == FUSE_KERNEL_VERSION && in.minor < OLDEST_MINOR))
		return -EPROTO;
	out.minor = FUSE_KERNEL_MINOR_VERSION;
	if (in.major > FUSE_KERNEL_VERSION)
		return answer(r, &out, sizeof(out)); /* it asks again */
	if (!fs->cfg.guest_locks)
		offer |= FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
	fs->minor = in.minor;
	fs->flags = offer & (in.flags | (uint64_t)in.flags2 << 32);
	fs->max_write = MAX_WRITE;
	fs->ready = true;
	out.max_readahead = in.max_readahead;
	out.flags = (uint32_t)fs->flags;
	out.flags2 = (uint32_t)(fs->flags >> 32);
	out.max_background = 64;
	out.congestion_threshold = 48;
	out.max_write = MAX_WRITE;
	out.time_gran = 1;
	out.max_pages = MAX_WRITE / 4096;
	return answer(r, &out, sizeof(out));
}

static int op_interrupt(struct req *r)
{
	const struct fuse_interrupt_in *a = r->args;
	struct fs *fs = r->fs;

	pthread_mutex_lock(&fs->lock);
	fs->interrupted[fs->ninterrupted++ % ARRAY_SIZE(fs->interrupted)] =
		a->unique;
	pthread_mutex_unlock(&fs->lock);
	/* So that the one who waits for a lock looks again. */
	atomic_fetch_add(&fs->unlocks, 1);
	return 0;
}

/* -- one request ---------------------------------------------------------- */

static bool made_way(struct req *r, const struct op *op)
{
	const struct fuse_rename_in *a = r->args;
	bool done;

	if (!(op->flags & LOOSEN))
		return false;
	done = attr_loosen(r->fs, r->h.nodeid);
	if (r->h.opcode == FUSE_RENAME || r->h.opcode == FUSE_RENAME2)
		done |= attr_loosen(r->fs, a->newdir);
	return done;
}

static int perform(struct req *r, size_t len)
{
	const struct op *op;
	size_t size;
	int ret;

	if (r->h.opcode == FUSE_INIT)
		return op_init(r, len);
	op = r->h.opcode < ARRAY_SIZE(ops) ? &ops[r->h.opcode] : NULL;
	if (!op || !op->f)
		return -ENOSYS;
	if (!r->fs->ready)
		return -EIO;
	if (op->flags & WRITES && r->fs->cfg.readonly)
		return -EROFS;
	if (r->h.opcode == FUSE_DESTROY) {
		end_session(r->fs);
		return 0;
	}
	size = op->size;
	ret = take_apart(r, op, size, len);
	if (r->h.opcode == FUSE_WRITE) {
		r->data = sizeof(r->h) + size;
		r->nrest = r->h.len - MIN(r->data, r->h.len);
	}
	if (ret)
		return ret;
	ret = op->f(r);
	if (ret == -EACCES && made_way(r, op))
		ret = op->f(r);
	return ret;
}

/* What the host has in memory most of the time. */
static bool is_quick(struct fs *fs, const struct fuse_in_header *h, size_t room)
{
	return h->opcode < ARRAY_SIZE(ops) && ops[h->opcode].f &&
	       !(ops[h->opcode].flags & SLOW) && h->len <= MAX_QUICK &&
	       room <= MAX_QUICK &&
	       !atomic_load_explicit(&fs->remote, memory_order_relaxed);
}

static bool is_silent(uint32_t opcode)
{
	return opcode < ARRAY_SIZE(ops) && ops[opcode].flags & SILENT;
}

static ssize_t respond(struct req *r, int ret)
{
	struct fuse_out_header out = { .unique = r->h.unique };

	if (ret == FS_WAIT && (r->h.opcode == FUSE_SETLKW ||
			       (r->m->quick && r->h.opcode == FUSE_READ)))
		return FS_WAIT;
	if (is_silent(r->h.opcode))
		return 0;
	if (ret)
		r->answered = 0;
	out.error = ret;
	out.len = (uint32_t)(sizeof(out) + r->answered);
	copy_to(r->m->out, r->m->nout, 0, &out, sizeof(out));
	return out.len;
}

ssize_t fs_serve(struct fs *fs, const struct fs_message *m)
{
	uint64_t args[MAX_ARGS / 8];
	struct req r = { .fs = fs, .m = m, .args = args };
	size_t in = total(m->in, m->nin), out = total(m->out, m->nout), len;
	struct iovec *part, few[64];
	unsigned n;
	int ret;

	if (in < sizeof(r.h))
		return -EPROTO;
	copy_from(m->in, m->nin, &r.h, sizeof(r.h));
	if (r.h.len < sizeof(r.h) || r.h.len > in)
		return -EPROTO;
	if (out < sizeof(struct fuse_out_header)) {
		if (!is_silent(r.h.opcode))
			return -EPROTO;
		r.room = 0;
	} else {
		r.room = out - sizeof(struct fuse_out_header);
	}
	if (m->quick && !is_quick(fs, &r.h, r.room))
		return FS_WAIT;
	len = r.h.len - sizeof(r.h);
	if (r.h.opcode == FUSE_WRITE)
		len = MIN(len, sizeof(struct fuse_write_in));
	if (len > sizeof(args) - 8)
		return respond(&r, -E2BIG);
	part = m->nin > ARRAY_SIZE(few) ? calloc(IOV_MAX, sizeof(*part)) : few;
	if (!part)
		return respond(&r, -ENOMEM);
	n = pieces(m->in, m->nin, sizeof(r.h), len, part);
	copy_from(part, n, args, len);
	((char *)args)[len] = 0;
	if (part != few)
		free(part);

	if (r.h.opcode == FUSE_INIT || r.h.opcode == FUSE_DESTROY)
		pthread_rwlock_wrlock(&fs->session);
	else
		pthread_rwlock_rdlock(&fs->session);
	ret = perform(&r, len);
	pthread_rwlock_unlock(&fs->session);
	return respond(&r, ret);
}

/* -- birth and death ------------------------------------------------------ */

static bool is_privileged(void)
{
	struct {
		uint32_t version;
		int pid;
	} h = { 0x20080522, 0 };
	uint32_t d[6] = { 0 };
	/* CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID */
	const uint32_t need = 1u << 0 | 1u << 1 | 1u << 3 | 1u << 6 | 1u << 7;

	return !geteuid() && !syscall(SYS_capget, &h, d) &&
	       (d[0] & need) == need;
}

/* What the kernel knows of this thread alone. */
static __thread struct {
	bool asked, has_umask, no_groups;
} thread;

bool thread_has_umask(void)
{
	return thread.has_umask;
}

void fs_thread_init(struct fs *fs)
{
	/* A new file gets the mode that the guest says. */
	if (!thread.asked && !unshare(CLONE_FS)) {
		umask(0);
		thread.has_umask = true;
	}
	thread.asked = true;
	/* Nobody is in a group only because we are; this thread alone. */
	if (!fs->mapped && !thread.no_groups) {
		syscall(SYS_setgroups, 0, NULL);
		thread.no_groups = true;
	}
}

static int open_share(const char *path, struct husk_error *err)
{
	int fd;

	if (!path)
		return -1;
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, errno ? -errno : -EIO, "share %s",
				   path);
	return fd;
}

static unsigned fd_limit(unsigned wanted)
{
	struct rlimit rl;
	unsigned limit = 1 << 16;

	if (wanted)
		return wanted;
	if (!getrlimit(RLIMIT_NOFILE, &rl) && rl.rlim_cur / 2 < limit)
		limit = (unsigned)(rl.rlim_cur / 2);
	return limit;
}

int fs_open(const struct fs_config *cfg, struct fs **out,
	    struct husk_error *err)
{
	pthread_rwlockattr_t attr;
	struct fs *fs;
	int fd = open_share(cfg->path, err), ret;

	*out = NULL;
	if (fd < 0 && cfg->path)
		return fd;
	fs = calloc(1, sizeof(*fs));
	if (!fs) {
		if (fd >= 0)
			close(fd);
		return error_errno(err, -ENOMEM, "share");
	}
	fs->cfg = *cfg;
	fs->cfg.path = NULL;
	fs->path = cfg->path ? realpath(cfg->path, NULL) : NULL;
	fs->mapped = cfg->owner == FS_OWNER_HOST ||
		     (cfg->owner == FS_OWNER_AUTO && !is_privileged());
	fs->host_uid = geteuid();
	fs->host_gid = getegid();
	fs->max_fds = fd_limit(cfg->max_fds);
	slots_init(&fs->inodes, MAX_INODES);
	slots_init(&fs->handles, MAX_HANDLES);
	pthread_mutex_init(&fs->lock, NULL);
	pthread_mutex_init(&fs->posix, NULL);
	pthread_rwlockattr_init(&attr);
	/* Else a busy guest would never let a swap happen. */
	pthread_rwlockattr_setkind_np(
		&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&fs->session, &attr);
	pthread_rwlockattr_destroy(&attr);
	fs->proc = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret = fs->proc < 0 ? error_errno(err, -errno, "share: /proc/self/fd")
			   : inode_init_root(fs, fd);
	if (ret) {
		if (fd >= 0)
			close(fd);
		fs_close(fs);
		return ret;
	}
	*out = fs;
	return 0;
}

void fs_close(struct fs *fs)
{
	if (!fs)
		return;
	end_session(fs);
	if (fs->root) {
		if (fs->root->fd >= 0)
			close(fs->root->fd);
		free(fs->root);
	}
	slots_finish(&fs->inodes);
	slots_finish(&fs->handles);
	if (fs->proc >= 0)
		close(fs->proc);
	pthread_rwlock_destroy(&fs->session);
	pthread_mutex_destroy(&fs->posix);
	pthread_mutex_destroy(&fs->lock);
	free(fs->path);
	free(fs);
}

void fs_reset(struct fs *fs)
{
	pthread_rwlock_wrlock(&fs->session);
	end_session(fs);
	pthread_rwlock_unlock(&fs->session);
}

int fs_swap(struct fs *fs, const char *path, struct husk_error *err)
{
	int fd = open_share(path, err), ret;

	if (fd < 0 && path)
		return fd;
	pthread_rwlock_wrlock(&fs->session);
	locks_drop(fs);
	handles_drop(fs);
	inodes_drop(fs, true);
	ret = inode_init_root(fs, fd);
	free(fs->path);
	fs->path = path ? realpath(path, NULL) : NULL;
	pthread_rwlock_unlock(&fs->session);
	if (ret) {
		close(fd);
		return error_errno(err, ret, "share %s", path);
	}
	return 0;
}
