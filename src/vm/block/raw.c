/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw.c - a disk image or block device, byte for byte
 */
#include "vm/block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"

enum {
	THREADS = 4, /* enough to keep an SSD's queue filled a bit */
	IOVS = 256,  /* pieces given to the kernel at once */
};

/* (i) constant after open   (l) under lock */
struct raw {
	struct block block;
	int fd;			   /* (i) */
	pthread_t thread[THREADS]; /* (i) */
	unsigned nthreads;	   /* (i) */
	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	struct block_req *first, **last; /* (l) linked by ->back */
	unsigned inflight;		 /* (l) queued and running */
	bool quit;			 /* (l) */
};

static struct raw *to_raw(struct block *b)
{
	return container_of(b, struct raw, block);
}

/* -- one request, blocking ------------------------------------------------ */

/* Skip the first n bytes of the list. */
static void skip(const struct iovec **iov, int *count, size_t *off, size_t n)
{
	*off += n;
	while (*count && *off >= (*iov)->iov_len) {
		*off -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
}

static int transfer(struct raw *r, const struct block_req *req)
{
	const struct iovec *iov = req->iov;
	uint64_t pos = req->offset, left = req->len;
	struct iovec part[IOVS];
	int count = req->iovcnt;
	size_t off = 0;

	skip(&iov, &count, &off, 0);
	while (left && count) {
		int n = MIN(count, (int)IOVS);
		ssize_t done;

		memcpy(part, iov, n * sizeof(part[0]));
		part[0].iov_base = (char *)part[0].iov_base + off;
		part[0].iov_len -= off;
		done = req->op == BLOCK_READ ? preadv(r->fd, part, n, pos)
					     : pwritev(r->fd, part, n, pos);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		if (!done) /* the file was cut behind our back */
			return -EIO;
		pos += done;
		left -= MIN(left, (uint64_t)done);
		skip(&iov, &count, &off, done);
	}
	return left ? -EINVAL : 0;
}

static int write_zeros(struct raw *r, uint64_t pos, uint64_t len)
{
	static const char zeros[65536];

	while (len) {
		ssize_t n = pwrite(r->fd, zeros,
				   MIN(len, (uint64_t)sizeof(zeros)), pos);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		pos += n;
		len -= n;
	}
	return 0;
}

static int punch(struct raw *r, const struct block_req *req, int mode)
{
	int ret;

	do {
		ret = fallocate(r->fd, mode | FALLOC_FL_KEEP_SIZE, req->offset,
				req->len);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int perform(struct raw *r, const struct block_req *req)
{
	int ret;

	switch (req->op) {
	case BLOCK_READ:
	case BLOCK_WRITE: return transfer(r, req);
	case BLOCK_FLUSH: return fdatasync(r->fd) ? -errno : 0;
	case BLOCK_DISCARD:
		/* A hint: a file system that cannot is no error. */
		ret = punch(r, req, FALLOC_FL_PUNCH_HOLE);
		return ret == -EOPNOTSUPP ? 0 : ret;
	case BLOCK_ZERO:
		ret = punch(r, req, FALLOC_FL_ZERO_RANGE);
		if (ret == -EOPNOTSUPP)
			ret = punch(r, req, FALLOC_FL_PUNCH_HOLE);
		return ret == -EOPNOTSUPP
			       ? write_zeros(r, req->offset, req->len)
			       : ret;
	}
	return -EINVAL;
}

/* -- the threads ---------------------------------------------------------- */

static void *raw_thread(void *arg)
{
	struct raw *r = arg;

	pthread_mutex_lock(&r->lock);
	for (;;) {
		struct block_req *req = r->first;

		if (!req) {
			if (r->quit)
				break;
			pthread_cond_wait(&r->work, &r->lock);
			continue;
		}
		r->first = req->back;
		if (!r->first)
			r->last = &r->first;
		pthread_mutex_unlock(&r->lock);
		req->done(req, perform(r, req));
		pthread_mutex_lock(&r->lock);
		if (!--r->inflight)
			pthread_cond_broadcast(&r->idle);
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

static void stop_threads(struct raw *r)
{
	pthread_mutex_lock(&r->lock);
	r->quit = true;
	pthread_cond_broadcast(&r->work);
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0; i < r->nthreads; i++)
		pthread_join(r->thread[i], NULL);
	pthread_cond_destroy(&r->idle);
	pthread_cond_destroy(&r->work);
	pthread_mutex_destroy(&r->lock);
}

static int start_threads(struct raw *r)
{
	sigset_t all, old;
	int ret = 0;

	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->work, NULL);
	pthread_cond_init(&r->idle, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (!ret && r->nthreads < THREADS) {
		ret = pthread_create(&r->thread[r->nthreads], NULL, raw_thread,
				     r);
		r->nthreads += !ret;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret && !r->nthreads) {
		stop_threads(r);
		return -ret;
	}
	return 0;
}

/* -- ops ------------------------------------------------------------------ */

static int find_size(struct raw *r, const char *path, struct husk_error *err)
{
	struct stat st;

	if (fstat(r->fd, &st))
		return error_errno(err, -errno, "%s", path);
	if (S_ISDIR(st.st_mode))
		return error_set(err, -EISDIR, "%s: is a directory", path);
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(r->fd, BLKGETSIZE64, &r->block.size))
			return error_errno(err, -errno, "%s: size", path);
	} else if (S_ISREG(st.st_mode)) {
		r->block.size = st.st_size;
	} else {
		return error_set(err, -EINVAL,
				 "%s: is neither a file nor a block device",
				 path);
	}
	if (!r->block.size)
		return error_set(err, -EINVAL,
				 "%s: is empty; give it a size "
				 "with truncate -s 20G",
				 path);
	if (r->block.size % 512)
		return error_set(err, -EINVAL,
				 "%s: its size of %llu bytes is "
				 "not a multiple of 512; if it is a raw image,"
				 " round it up with truncate -s %%512",
				 path, (unsigned long long)r->block.size);
	return 0;
}

/* The lock belongs to the open file: gone when the last fd closes. */
static int lock_file(struct raw *r, const char *path, struct husk_error *err)
{
	struct flock lock = {
		.l_type = r->block.readonly ? F_RDLCK : F_WRLCK,
		.l_whence = SEEK_SET,
	};

	if (!fcntl(r->fd, F_OFD_SETLK, &lock))
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

static int raw_open(struct block *b, const struct block_config *cfg,
		    struct husk_error *err)
{
	struct raw *r = to_raw(b);
	int ret;

	r->last = &r->first;
	/* NONBLOCK: a FIFO must not keep us waiting before we can refuse it. */
	r->fd = open(cfg->path, (cfg->readonly ? O_RDONLY : O_RDWR) |
					O_CLOEXEC | O_NONBLOCK);
	if (r->fd < 0 && errno == EISDIR)
		return error_set(err, -EISDIR, "%s: is a directory", cfg->path);
	if (r->fd < 0 && !cfg->readonly &&
	    (errno == EACCES || errno == EROFS || errno == EPERM))
		return error_set(err, -errno,
				 "%s: %s; attach it readonly or "
				 "make it writable",
				 cfg->path, strerror(errno));
	if (r->fd < 0)
		return error_errno(err, -errno, "%s", cfg->path);
	ret = find_size(r, cfg->path, err);
	if (ret)
		goto err_fd;
	ret = lock_file(r, cfg->path, err);
	if (ret)
		goto err_fd;
	b->can_discard = !cfg->readonly;
	ret = start_threads(r);
	if (ret) {
		error_errno(err, ret, "%s: no thread", cfg->path);
		goto err_fd;
	}
	return 0;
err_fd:
	close(r->fd);
	return ret;
}

static void raw_close(struct block *b)
{
	struct raw *r = to_raw(b);

	stop_threads(r);
	close(r->fd);
}

static void raw_submit(struct block *b, struct block_req *req)
{
	struct raw *r = to_raw(b);

	pthread_mutex_lock(&r->lock);
	req->back = NULL;
	/* ->back is the link: a list of void pointers to requests. */
	*r->last = req;
	r->last = (struct block_req **)&req->back;
	r->inflight++;
	pthread_cond_signal(&r->work);
	pthread_mutex_unlock(&r->lock);
}

static void raw_drain(struct block *b)
{
	struct raw *r = to_raw(b);

	pthread_mutex_lock(&r->lock);
	while (r->inflight)
		pthread_cond_wait(&r->idle, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

const struct block_ops block_raw = {
	.name = "raw",
	.size = sizeof(struct raw),
	.open = raw_open,
	.close = raw_close,
	.submit = raw_submit,
	.drain = raw_drain,
};
