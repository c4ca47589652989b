/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream.c - frames over a stream socket, as QEMU, passt and gvproxy frame
 *
 * In front of each frame is its length, 4 bytes big endian.  The NIC's thread
 * reads and writes; connecting, accepting and closing happen on the loop's
 * thread alone, so that no file descriptor changes under a system call.  A
 * peer that goes away takes the carrier along; who listens waits for the next
 * one, who connected tries again each second.
 */
#include "net/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

#define RETRY_NS 1000000000ull

enum {
	IN_SIZE = 4 + LINK_FRAME_MAX,
	OUT_FULL = 128 << 10,		   /* then the NIC waits */
	OUT_SIZE = OUT_FULL + (128 << 10), /* a segmented frame still fits */
	PIECES = 1026,			   /* a chain of a queue and ours */
};

/* (i) set in open   (m) under lock   (n) the NIC's thread */
struct stream {
	struct link l;
	struct loop *loop;	 /* (i) */
	struct sockaddr_un addr; /* (i) of who listens; sun_path may be empty */
	struct loop_fd door;	 /* (i) fd >= 0: we listen */
	struct loop_fd conn;	 /* fd: (m), written by the loop's thread */
	struct loop_timer retry;
	pthread_mutex_t lock;
	bool listening, watched; /* (m) */
	bool broken;		 /* (m) until the loop's thread has closed it */
	uint32_t in_len, in_at;	 /* (m) */
	uint32_t out_len;	 /* (m) */
	uint8_t in[IN_SIZE];	 /* (m) */
	uint8_t out[OUT_SIZE];	 /* (m) */
};

static struct stream *to_stream(struct link *l)
{
	return container_of(l, struct stream, l);
}

/* -- connections ---------------------------------------------------------- */

static int watch_locked(struct stream *s)
{
	int ret = loop_add(s->loop, &s->conn, EPOLLIN | EPOLLOUT | EPOLLET);

	s->watched = !ret;
	return ret;
}

static void use_locked(struct stream *s, int fd)
{
	s->conn.fd = fd;
	s->in_len = s->in_at = s->out_len = 0;
	s->broken = false;
	if (s->listening && watch_locked(s)) {
		close(fd);
		s->conn.fd = -1;
	}
}

/* On the loop's thread, or while nothing listens. */
static void drop(struct stream *s)
{
	bool watched;

	pthread_mutex_lock(&s->lock);
	watched = s->watched;
	s->watched = false;
	pthread_mutex_unlock(&s->lock);
	if (watched)
		loop_del(s->loop, &s->conn);
	pthread_mutex_lock(&s->lock);
	if (s->conn.fd >= 0)
		close(s->conn.fd);
	s->conn.fd = -1;
	s->broken = false;
	pthread_mutex_unlock(&s->lock);
	link_set_carrier(&s->l, false, "the other end of the socket closed");
}

/* The loop's thread learns of it by EPOLLHUP. */
static void break_locked(struct stream *s)
{
	s->broken = true;
	shutdown(s->conn.fd, SHUT_RDWR);
}

static int connect_to(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return -errno;
	if (!connect(fd, (const void *)addr, sizeof(*addr)))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

static void stream_retry(struct loop_timer *t)
{
	struct stream *s = container_of(t, struct stream, retry);
	int fd = connect_to(&s->addr);

	if (fd < 0) {
		loop_timer_set(t, loop_now() + RETRY_NS);
		return;
	}
	pthread_mutex_lock(&s->lock);
	use_locked(s, fd);
	pthread_mutex_unlock(&s->lock);
	link_set_carrier(&s->l, true, "connected again");
}

static void stream_accept(struct loop_fd *f, uint32_t events)
{
	struct stream *s = container_of(f, struct stream, door);
	int fd = accept4(f->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	bool taken;

	if (fd < 0)
		return;
	pthread_mutex_lock(&s->lock);
	taken = s->conn.fd < 0;
	if (taken)
		use_locked(s, fd);
	pthread_mutex_unlock(&s->lock);
	if (taken)
		link_set_carrier(&s->l, true, NULL);
	else
		close(fd); /* a cable has two ends */
}

/* With the lock held.  -EAGAIN: something is left. */
static int flush_locked(struct stream *s)
{
	ssize_t n;

	while (s->out_len && !s->broken) {
		n = send(s->conn.fd, s->out, s->out_len,
			 MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return -EAGAIN;
		if (n <= 0) {
			break_locked(s);
			return 0;
		}
		s->out_len -= (uint32_t)n;
		memmove(s->out, s->out + n, s->out_len);
	}
	return 0;
}

static void stream_watch(struct loop_fd *f, uint32_t events)
{
	struct stream *s = container_of(f, struct stream, conn);
	bool gone, client;

	pthread_mutex_lock(&s->lock);
	flush_locked(s);
	/* What it sent before it left is read by the NIC first. */
	gone = s->broken;
	client = s->addr.sun_path[0] && s->door.fd < 0;
	pthread_mutex_unlock(&s->lock);
	if (gone) {
		drop(s);
		if (client)
			loop_timer_set(&s->retry, loop_now() + RETRY_NS);
	}
	link_ready(&s->l);
}

/* -- frames --------------------------------------------------------------- */

static void keep_locked(struct stream *s, const struct iovec *iov, int n,
			size_t skip)
{
	for (int i = 0; i < n; i++) {
		size_t off = MIN(skip, iov[i].iov_len);
		size_t len = iov[i].iov_len - off;

		skip -= off;
		memcpy(s->out + s->out_len, (char *)iov[i].iov_base + off, len);
		s->out_len += (uint32_t)len;
	}
}

static int send_locked(struct stream *s, const struct iovec *iov, int n)
{
	size_t len = link_iov_len(iov, n);
	uint32_t prefix = htonl((uint32_t)len);
	struct iovec all[PIECES];
	struct msghdr msg = { .msg_iov = all, .msg_iovlen = (size_t)n + 1 };
	ssize_t done = 0;

	if (s->conn.fd < 0 || s->broken || !s->listening)
		return 0;
	if (!len || len > LINK_FRAME_MAX || n >= PIECES)
		return 0;
	flush_locked(s);
	if (s->out_len > OUT_FULL)
		return -EAGAIN;
	if (s->out_len + len + 4 > OUT_SIZE)
		return 0;
	all[0] = (struct iovec){ &prefix, 4 };
	memcpy(all + 1, iov, (size_t)n * sizeof(*iov));
	if (!s->out_len)
		done = sendmsg(s->conn.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (done < 0 && errno != EAGAIN && errno != EINTR) {
		break_locked(s);
		return 0;
	}
	keep_locked(s, all, n + 1, done < 0 ? 0 : (size_t)done);
	return 0;
}

static int stream_send(struct link *l, const struct iovec *iov, int n)
{
	struct stream *s = to_stream(l);
	int ret;

	pthread_mutex_lock(&s->lock);
	ret = send_locked(s, iov, n);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/* Until in[] begins with a frame: its length, or 0. */
static uint32_t fill_locked(struct stream *s)
{
	uint32_t have = s->in_len - s->in_at, len;
	ssize_t n;

	for (;;) {
		if (have >= 4) {
			memcpy(&len, s->in + s->in_at, 4);
			len = ntohl(len);
			if (!len || len > LINK_FRAME_MAX) {
				if (s->l.log)
					s->l.log(s->l.sink,
						 "the other end of the socket "
						 "sent a bad length");
				break_locked(s);
				return 0;
			}
			if (have - 4 >= len)
				return len;
		}
		memmove(s->in, s->in + s->in_at, have);
		s->in_at = 0;
		s->in_len = have;
		n = recv(s->conn.fd, s->in + have, IN_SIZE - have,
			 MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0) {
			break_locked(s);
			return 0;
		}
		have = s->in_len += (uint32_t)n;
	}
}

static ssize_t stream_recv(struct link *l, const struct iovec *iov, int n)
{
	struct stream *s = to_stream(l);
	uint32_t len = 0;

	pthread_mutex_lock(&s->lock);
	if (s->conn.fd >= 0 && !s->broken && s->listening)
		len = fill_locked(s);
	if (len) {
		link_copy_in(iov, n, s->in + s->in_at + 4, len);
		s->in_at += 4 + len;
	}
	pthread_mutex_unlock(&s->lock);
	return len;
}

/* -- opening -------------------------------------------------------------- */

static int set_path(struct stream *s, const char *path, struct husk_error *err)
{
	s->addr.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(s->addr.sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "%s: too long for the name of a socket", path);
	memcpy(s->addr.sun_path, path, strlen(path) + 1);
	return 0;
}

/* A socket that nobody serves any more is in the way, and taken away. */
static void remove_dead(const struct sockaddr_un *addr)
{
	struct stat st;
	int fd;

	if (stat(addr->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return;
	fd = connect_to(addr);
	if (fd == -ECONNREFUSED)
		unlink(addr->sun_path);
	else if (fd >= 0)
		close(fd);
}

static int open_door(struct stream *s, struct husk_error *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return error_errno(err, -errno, "%s", s->addr.sun_path);
	remove_dead(&s->addr);
	if (bind(fd, (const void *)&s->addr, sizeof(s->addr)) < 0 ||
	    listen(fd, 1) < 0) {
		ret = -errno;
		close(fd);
		return error_errno(err, ret, "%s: listening", s->addr.sun_path);
	}
	s->door.fd = fd;
	return 0;
}

static int stream_open(struct link *l, const struct link_config *cfg,
		       struct husk_error *err)
{
	struct stream *s = to_stream(l);
	int ret = 0, fd = -1;

	s->loop = cfg->loop;
	s->conn.fd = s->door.fd = -1;
	s->conn.ready = stream_watch;
	s->door.ready = stream_accept;
	loop_timer_init(s->loop, &s->retry, stream_retry);
	if (cfg->where)
		ret = set_path(s, cfg->where, err);
	if (ret)
		return ret;
	if (!cfg->where) {
		fd = fcntl(cfg->fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return error_errno(err, -errno, "fd %d", cfg->fd);
	} else if (cfg->listen) {
		ret = open_door(s, err);
		if (ret)
			return ret;
	} else {
		fd = connect_to(&s->addr);
		if (fd == -ECONNREFUSED)
			return error_set(err, fd, "%s: nobody listens there",
					 cfg->where);
		if (fd < 0)
			return error_errno(err, fd, "%s", cfg->where);
	}
	pthread_mutex_init(&s->lock, NULL);
	s->conn.fd = fd;
	l->carrier = fd >= 0;
	return 0;
}

static void stream_close(struct link *l)
{
	struct stream *s = to_stream(l);

	if (s->conn.fd >= 0)
		close(s->conn.fd);
	if (s->door.fd >= 0) {
		close(s->door.fd);
		unlink(s->addr.sun_path);
	}
	pthread_mutex_destroy(&s->lock);
}

static int start_listening(struct stream *s)
{
	int ret = 0;

	pthread_mutex_lock(&s->lock);
	s->listening = true;
	if (s->conn.fd >= 0)
		ret = watch_locked(s);
	else if (s->door.fd < 0 && s->addr.sun_path[0])
		loop_timer_set(&s->retry, loop_now());
	pthread_mutex_unlock(&s->lock);
	if (!ret && s->door.fd >= 0)
		ret = loop_add(s->loop, &s->door, EPOLLIN);
	return ret;
}

static int stream_listen(struct link *l, bool on)
{
	struct stream *s = to_stream(l);
	bool watched;

	if (on == s->listening)
		return 0;
	if (on)
		return start_listening(s);
	pthread_mutex_lock(&s->lock);
	s->listening = false;
	pthread_mutex_unlock(&s->lock);
	if (s->door.fd >= 0)
		loop_del(s->loop, &s->door);
	loop_timer_cancel(&s->retry);
	pthread_mutex_lock(&s->lock);
	watched = s->watched;
	s->watched = false;
	pthread_mutex_unlock(&s->lock);
	if (watched)
		loop_del(s->loop, &s->conn);
	/* stream_watch() may have set it before it ended. */
	loop_timer_cancel(&s->retry);
	return 0;
}

const struct link_ops link_stream = {
	.name = "unix",
	.size = sizeof(struct stream),
	.open = stream_open,
	.close = stream_close,
	.send = stream_send,
	.recv = stream_recv,
	.listen = stream_listen,
};
