/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.c - a file or block device of the host as a store
 *
 * With cache=direct the page cache is passed by.  What is not aligned for
 * that goes through a buffer, and the last, partial page of a file through a
 * second descriptor that uses the page cache: the file's size stays exact.
 *
 * With the page cache most requests only copy memory.  Those are done at once
 * by who submits them, which saves two changes of threads: reads when all is
 * in memory, and writes as long as the host takes them quickly.
 */
#include "vm/block/store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

enum {
	IOVS = 256,	     /* pieces given to the kernel at once */
	PAGE = 4096,	     /* alignment of direct access */
	MEM = 512,	     /* and of its buffers */
	BOUNCE = 256 * 1024, /* a multiple of PAGE */
	QUICK = 1 << 20,     /* bytes that are copied at once */
	LARGE = 256 << 10,   /* bytes that another thread should copy */
	MAX_OVERLAP = 16,
	ASK_AGAIN = 64,
	SLOW_NS = 2000000,  /* a write that the host made wait */
	REST_NS = 20000000, /* and how long none is tried then: at first, */
	MAX_REST = 8,	    /* and doubled so often while it goes on */
};

/* (i) constant after open */
struct file {
	struct store store;
	int fd;			/* (i) direct or cached */
	int cached;		/* (i) the same, cached; -1 unless direct */
	bool regular;		/* (i) */
	enum block_sync sync;	/* (i) */
	struct uring *uring;	/* (i) may be NULL */
	atomic_bool reads_wait; /* the file system knows no other way */
	_Atomic uint64_t rest;	/* no quick writes until then */
	atomic_uint slow;	/* how many in a row were not */
	atomic_uint submitted;
	atomic_uint copies; /* large requests that the pool has */
	atomic_int overlap; /* 0: a guest waits for each large request */
	struct pool pool;
	pthread_mutex_t rmw; /* read, change, write */
};

static struct file *to_file(struct store *s)
{
	return container_of(s, struct file, store);
}

/* -- bytes ---------------------------------------------------------------- */

static void grown(struct file *f, uint64_t end)
{
	uint64_t size = atomic_load(&f->store.size);

	while (size < end &&
	       !atomic_compare_exchange_weak(&f->store.size, &size, end)) {
	}
}

/* Bytes moved until the list, the length or the file ends; or -errno. */
static int64_t move(int fd, bool read, const struct iovec *iov, int count,
		    uint64_t pos, uint64_t len)
{
	struct iovec part[IOVS];
	uint64_t done = 0;

	while (done < len) {
		uint64_t now = len - done;
		int n = iov_part(part, IOVS, iov, count, done, &now);
		ssize_t got;

		if (!n)
			return -EINVAL;
		got = read ? preadv(fd, part, n, pos + done)
			   : pwritev(fd, part, n, pos + done);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			break;
		done += got;
	}
	return done;
}

static bool aligned(const struct block_req *req)
{
	if (req->offset % PAGE || req->len % PAGE)
		return false;
	for (int i = 0; i < req->iovcnt; i++)
		if ((uintptr_t)req->iov[i].iov_base % MEM ||
		    req->iov[i].iov_len % MEM)
			return false;
	return true;
}

/* One piece through an aligned buffer. */
static int bounce_piece(struct file *f, const struct block_req *req, char *buf,
			uint64_t at, uint64_t len)
{
	uint64_t pos = req->offset + at, lo = ALIGN_DOWN(pos, PAGE);
	uint64_t hi = ALIGN_UP(pos + len, PAGE);
	struct iovec iov = { buf, hi - lo };
	bool whole = pos == lo && pos + len == hi;
	int64_t n = 0;

	if (req->op == BLOCK_READ || !whole) {
		n = move(f->fd, true, &iov, 1, lo, hi - lo);
		if (n < 0)
			return (int)n;
		memset(buf + n, 0, hi - lo - n);
	}
	if (req->op == BLOCK_READ) {
		iov_from(req->iov, req->iovcnt, at, buf + (pos - lo), len);
		return 0;
	}
	iov_to(req->iov, req->iovcnt, at, buf + (pos - lo), len);
	n = move(f->fd, false, &iov, 1, lo, hi - lo);
	return n < 0 ? (int)n : (uint64_t)n < hi - lo ? -EIO : 0;
}

static int bounce(struct file *f, const struct block_req *req, uint64_t len)
{
	uint64_t at = 0;
	void *buf;
	int ret = 0;

	if (posix_memalign(&buf, PAGE, BOUNCE))
		return -ENOMEM;
	if (req->op == BLOCK_WRITE)
		pthread_mutex_lock(&f->rmw);
	while (!ret && at < len) {
		uint64_t room = BOUNCE - (req->offset + at) % PAGE;
		uint64_t n = MIN(len - at, room);

		ret = bounce_piece(f, req, buf, at, n);
		at += n;
	}
	if (req->op == BLOCK_WRITE)
		pthread_mutex_unlock(&f->rmw);
	free(buf);
	return ret;
}

/* The part at and after the last partial page, through the page cache. */
static int tail(struct file *f, const struct block_req *req, uint64_t from)
{
	uint64_t len = req->len - from;
	struct iovec part[IOVS];
	int64_t n = 0;

	while (len) {
		uint64_t now = len;
		int cnt =
			iov_part(part, IOVS, req->iov, req->iovcnt, from, &now);

		if (!cnt)
			return -EINVAL;
		n = move(f->cached, req->op == BLOCK_READ, part, cnt,
			 req->offset + from, now);
		if (n < 0)
			return (int)n;
		if (req->op == BLOCK_READ)
			iov_zero(part, cnt, n, now - n);
		else if ((uint64_t)n < now)
			return -EIO;
		from += now;
		len -= now;
	}
	return 0;
}

static int transfer_direct(struct file *f, const struct block_req *req)
{
	uint64_t edge = ALIGN_DOWN(atomic_load(&f->store.size), PAGE);
	uint64_t len =
		req->offset >= edge ? 0 : MIN(req->len, edge - req->offset);
	int64_t n = 0;
	int ret;

	if (len == req->len && aligned(req)) {
		n = move(f->fd, req->op == BLOCK_READ, req->iov, req->iovcnt,
			 req->offset, len);
		if (n == (int64_t)len)
			return 0;
		if (n < 0 && n != -EINVAL)
			return (int)n;
	}
	ret = len ? bounce(f, req, len) : 0;
	return ret || len == req->len ? ret : tail(f, req, len);
}

static int transfer(struct file *f, const struct block_req *req)
{
	int64_t n;
	int ret;

	if (f->cached >= 0) {
		ret = transfer_direct(f, req);
		if (!ret && req->op == BLOCK_WRITE)
			grown(f, req->offset + req->len);
		return ret;
	}
	n = move(f->fd, req->op == BLOCK_READ, req->iov, req->iovcnt,
		 req->offset, req->len);
	if (n < 0)
		return (int)n;
	if (req->op == BLOCK_READ) {
		/* What qcow2 keeps at the end of a file may be cut short. */
		iov_zero(req->iov, req->iovcnt, n, req->len - n);
		return 0;
	}
	grown(f, req->offset + req->len);
	return (uint64_t)n < req->len ? -EIO : 0;
}

static int write_zeros(struct file *f, uint64_t pos, uint64_t len)
{
	static const char zeros[65536];
	int ret = 0;

	while (len && !ret) {
		struct iovec iov = { (void *)zeros,
				     MIN(len, (uint64_t)sizeof(zeros)) };
		struct block_req req = {
			.op = BLOCK_WRITE,
			.offset = pos,
			.len = iov.iov_len,
			.iov = &iov,
			.iovcnt = 1,
		};

		ret = transfer(f, &req);
		pos += iov.iov_len;
		len -= iov.iov_len;
	}
	return ret;
}

static int punch(struct file *f, uint64_t pos, uint64_t len, int mode)
{
	int ret;

	do {
		ret = fallocate(f->fd, mode | FALLOC_FL_KEEP_SIZE, pos, len);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int zero(struct file *f, const struct block_req *req)
{
	uint64_t size = atomic_load(&f->store.size), len = req->len;
	int ret = -EOPNOTSUPP;

	if (req->offset + len > size) {
		ret = store_set_size(&f->store, req->offset + len);
		if (ret || req->offset >= size)
			return ret;
		len = size - req->offset;
		ret = -EOPNOTSUPP;
	}
	if (!req->keep)
		ret = punch(f, req->offset, len, FALLOC_FL_PUNCH_HOLE);
	if (ret == -EOPNOTSUPP)
		ret = punch(f, req->offset, len, FALLOC_FL_ZERO_RANGE);
	return ret == -EOPNOTSUPP || ret == -EINVAL
		       ? write_zeros(f, req->offset, len)
		       : ret;
}

static int flush(struct file *f)
{
	if (f->sync == BLOCK_SYNC_NONE || f->store.readonly)
		return 0;
	if (f->sync == BLOCK_SYNC_DATA &&
	    !sync_file_range(f->fd, 0, 0,
			     SYNC_FILE_RANGE_WAIT_BEFORE |
				     SYNC_FILE_RANGE_WRITE |
				     SYNC_FILE_RANGE_WAIT_AFTER))
		return 0;
	if (!fdatasync(f->fd))
		return 0;
	/*
	 * What the host could not write it has forgotten: asked again it would
	 * say that all is well.  So this is never a lack of space to wait for.
	 */
	return errno == ENOSPC || errno == EDQUOT ? -EIO : -errno;
}

static int file_perform(struct store *s, const struct block_req *req)
{
	struct file *f = to_file(s);
	int ret;

	switch (req->op) {
	case BLOCK_READ:
	case BLOCK_WRITE: return transfer(f, req);
	case BLOCK_FLUSH: return flush(f);
	case BLOCK_DISCARD:
		/* A hint: a file system that cannot is no error. */
		ret = punch(f, req->offset, req->len, FALLOC_FL_PUNCH_HOLE);
		return ret == -EOPNOTSUPP || ret == -EINVAL ? 0 : ret;
	case BLOCK_ZERO: return zero(f, req);
	}
	return -EINVAL;
}

/*
 * A large copy takes as long as what a guest does between two of them.  So it
 * is lent to a thread, if the guest uses that time: it does when another
 * request comes before the copy has ended.  A guest that waits for each is
 * better served at once; now and then it is asked again.
 */
static void learn(struct file *f, bool overlapped)
{
	int score = atomic_load(&f->overlap);

	if (!overlapped)
		score = MAX(score - 1, 0);
	else
		score = MIN(MAX(score + 1, MAX_OVERLAP / 4), MAX_OVERLAP);
	atomic_store(&f->overlap, score);
}

static bool is_large(const struct block_req *req)
{
	return req->len >= LARGE &&
	       (req->op == BLOCK_READ || req->op == BLOCK_WRITE);
}

static int pool_perform(void *arg, const struct block_req *req)
{
	struct file *f = to_file(arg);
	unsigned before = atomic_load(&f->submitted);
	int ret = file_perform(arg, req);

	if (is_large(req)) {
		learn(f, atomic_load(&f->submitted) != before);
		atomic_fetch_sub(&f->copies, 1);
	}
	return ret;
}

/*
 * To an idle thread; and of writes, of which a file takes one at a time, also
 * to one that has nothing but copies.
 */
static bool lend(struct file *f, struct block_req *req)
{
	unsigned n = atomic_fetch_add(&f->submitted, 1), busy;

	if (f->cached >= 0 || !is_large(req) ||
	    (!atomic_load(&f->overlap) && n % ASK_AGAIN))
		return false;
	busy = atomic_fetch_add(&f->copies, 1);
	if (pool_offer(&f->pool, req, req->op == BLOCK_WRITE ? busy : 0))
		return true;
	atomic_fetch_sub(&f->copies, 1);
	return false;
}

static bool quick_write(struct file *f, const struct block_req *req)
{
	uint64_t start = loop_now(), end;
	unsigned slow;
	ssize_t n;

	if (start < atomic_load(&f->rest))
		return false;
	n = pwritev(f->fd, req->iov, req->iovcnt, (off_t)req->offset);
	end = loop_now();
	if (end - start < SLOW_NS) {
		atomic_store(&f->slow, 0);
	} else {
		slow = MIN(atomic_fetch_add(&f->slow, 1), MAX_REST);
		atomic_store(&f->rest, end + ((uint64_t)REST_NS << slow));
	}
	return n >= 0 && (uint64_t)n == req->len;
}

/* false: not done, or not all of it. */
static bool quick(struct file *f, const struct block_req *req)
{
	ssize_t n;

	if (f->cached >= 0 || req->len > QUICK || req->iovcnt > IOVS)
		return false;
	if (req->op == BLOCK_WRITE) {
		if (!quick_write(f, req))
			return false;
		grown(f, req->offset + req->len);
		return true;
	}
	if (req->op != BLOCK_READ)
		return false;
	if (atomic_load(&f->reads_wait))
		return false;
	n = preadv2(f->fd, req->iov, req->iovcnt, (off_t)req->offset,
		    RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP)
		atomic_store(&f->reads_wait, true);
	return n >= 0 && (uint64_t)n == req->len;
}

static void file_submit(struct store *s, struct block_req *req)
{
	struct file *f = to_file(s);
	bool direct = f->cached < 0 ||
		      (aligned(req) &&
		       req->offset + req->len <=
			       ALIGN_DOWN(atomic_load(&s->size), PAGE));

	if (lend(f, req))
		return;
	if (quick(f, req)) {
		req->done(req, 0);
		return;
	}
	if (f->uring && direct && uring_submit(f->uring, req))
		return;
	if (is_large(req))
		atomic_fetch_add(&f->copies, 1);
	pool_submit(&f->pool, req);
}

static void file_drain(struct store *s)
{
	struct file *f = to_file(s);

	if (f->uring)
		uring_drain(f->uring);
	pool_drain(&f->pool);
}

static int file_set_size(struct store *s, uint64_t size)
{
	struct file *f = to_file(s);

	if (!f->regular)
		return size > atomic_load(&s->size) ? -ENOSPC : 0;
	if (size > INT64_MAX)
		return -EFBIG;
	if (ftruncate(f->fd, (off_t)size))
		return -errno;
	atomic_store(&s->size, size);
	return 0;
}

static int file_map(struct store *s, uint64_t offset, uint64_t *len, bool *hole)
{
	struct file *f = to_file(s);
	off_t data, end;

	*hole = false;
	if (!f->regular)
		return 0;
	data = lseek(f->fd, (off_t)offset, SEEK_DATA);
	if (data < 0 && errno == ENXIO) {
		*hole = true; /* to the end */
		return 0;
	}
	if (data < 0)
		return 0;
	if ((uint64_t)data > offset) {
		*hole = true;
		*len = MIN(*len, (uint64_t)data - offset);
		return 0;
	}
	end = lseek(f->fd, (off_t)offset, SEEK_HOLE);
	if (end > 0 && (uint64_t)end > offset)
		*len = MIN(*len, (uint64_t)end - offset);
	return 0;
}

static uint64_t file_used(struct store *s)
{
	struct stat st;

	if (fstat(to_file(s)->fd, &st) || !S_ISREG(st.st_mode))
		return atomic_load(&s->size);
	return (uint64_t)st.st_blocks * 512;
}

static void file_close(struct store *s)
{
	struct file *f = to_file(s);

	if (f->uring)
		uring_close(f->uring);
	pool_stop(&f->pool);
	pthread_mutex_destroy(&f->rmw);
	if (f->cached >= 0)
		close(f->cached);
	close(f->fd);
	free(f);
}

static const struct store_ops file_ops = {
	.close = file_close,
	.perform = file_perform,
	.submit = file_submit,
	.drain = file_drain,
	.set_size = file_set_size,
	.map = file_map,
	.used = file_used,
};

/* -- opening -------------------------------------------------------------- */

static int find_size(struct file *f, const char *path, struct husk_error *err)
{
	uint64_t size = 0;
	struct stat st;

	if (fstat(f->fd, &st))
		return error_errno(err, -errno, "%s", path);
	if (S_ISDIR(st.st_mode))
		return error_set(err, -EISDIR, "%s: is a directory", path);
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(f->fd, BLKGETSIZE64, &size))
			return error_errno(err, -errno, "%s: size", path);
		f->store.fixed = true;
	} else if (S_ISREG(st.st_mode)) {
		size = st.st_size;
		f->regular = true;
	} else {
		return error_set(err, -EINVAL,
				 "%s: is neither a file nor a block device",
				 path);
	}
	atomic_store(&f->store.size, size);
	return 0;
}

/* The lock belongs to the open file: gone when the last fd closes. */
static int lock_file(struct file *f, const char *path, struct husk_error *err)
{
	struct flock lock = {
		.l_type = f->store.readonly ? F_RDLCK : F_WRLCK,
		.l_whence = SEEK_SET,
	};

	if (!fcntl(f->fd, F_OFD_SETLK, &lock))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return error_set(err, -EBUSY,
				 "%s: is in use by another "
				 "machine; stop that one or attach the disk "
				 "read-only to both",
				 path);
	/* File systems without locks exist; the disk works all the same. */
	if (errno == ENOLCK || errno == EINVAL || errno == EOPNOTSUPP)
		return 0;
	return error_errno(err, -errno, "%s: lock", path);
}

static int open_fd(struct file *f, const struct block_config *cfg,
		   struct husk_error *err)
{
	/* NONBLOCK: a FIFO must not keep us waiting before we can refuse it. */
	f->fd = open(cfg->path, (cfg->readonly ? O_RDONLY : O_RDWR) |
					O_CLOEXEC | O_NONBLOCK);
	if (f->fd >= 0)
		return 0;
	if (errno == EISDIR)
		return error_set(err, -EISDIR, "%s: is a directory", cfg->path);
	if (!cfg->readonly &&
	    (errno == EACCES || errno == EROFS || errno == EPERM))
		return error_set(err, -errno,
				 "%s: %s; attach it readonly or "
				 "make it writable",
				 cfg->path, strerror(errno));
	return error_errno(err, -errno, "%s", cfg->path);
}

/* The same file once more: fd becomes the direct one. */
static int open_direct(struct file *f, const struct block_config *cfg,
		       struct husk_error *err)
{
	char self[64];
	int fd;

	snprintf(self, sizeof(self), "/proc/self/fd/%d", f->fd);
	fd = open(self,
		  (cfg->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_DIRECT);
	if (fd < 0)
		return error_set(err, -errno,
				 "%s: cache=direct: %s; "
				 "use cache=cached here",
				 cfg->path, strerror(errno));
	f->cached = f->fd;
	f->fd = fd;
	return 0;
}

static struct store *file_open(const struct block_config *cfg,
			       struct husk_error *err)
{
	struct file *f = calloc(1, sizeof(*f));

	if (!f) {
		error_errno(err, -ENOMEM, "%s", cfg->path);
		return NULL;
	}
	f->store.ops = &file_ops;
	f->store.readonly = cfg->readonly;
	f->sync = cfg->sync;
	f->cached = -1;
	atomic_store(&f->overlap, MAX_OVERLAP / 2);
	if (open_fd(f, cfg, err))
		goto err_free;
	if (find_size(f, cfg->path, err) ||
	    (!cfg->no_lock && lock_file(f, cfg->path, err)) ||
	    (cfg->cache == BLOCK_DIRECT && open_direct(f, cfg, err)))
		goto err_fd;
	if (cfg->aio != BLOCK_AIO_THREADS)
		f->uring = uring_open(f->fd, &f->store);
	if (cfg->aio == BLOCK_AIO_URING &&
	    (!f->uring || !uring_start(f->uring))) {
		if (f->uring)
			uring_close(f->uring);
		error_set(err, -ENOSYS,
			  "%s: aio=uring: the kernel does not allow io_uring",
			  cfg->path);
		goto err_fd;
	}
	pthread_mutex_init(&f->rmw, NULL);
	pool_start(&f->pool, pool_perform, &f->store);
	return &f->store;
err_fd:
	if (f->cached >= 0)
		close(f->cached);
	close(f->fd);
err_free:
	free(f);
	return NULL;
}

struct store *store_open(const struct block_config *cfg, struct husk_error *err)
{
	struct store *s = cfg->store ? cfg->store : file_open(cfg, err);

	return s && cfg->fault ? store_fault(s, cfg->fault, err) : s;
}
