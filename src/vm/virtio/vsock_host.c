/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock_host.c - the host's side of a socket device: Unix sockets
 *
 * As Firecracker maps them: who connects to PATH says "CONNECT PORT\n" and
 * reads "OK HOSTPORT\n"; the guest's connection to a port goes to PATH_PORT.
 * Descriptors are watched for edges, so what is known to be readable stays so
 * until a read says otherwise.
 */
#include "vm/virtio/vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

enum {
	LINE = 32,     /* "CONNECT 4294967295\r\n" and some */
	PIECES = 16,   /* of guest memory in a system call */
	ACCEPTS = 64,  /* before others get their turn */
	RESERVE = 256, /* descriptors left to the rest of the process */
};

/* -- bytes from the guest ------------------------------------------------- */

static int rewatch(struct vsock *s, struct conn *c, int op)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLRDHUP | EPOLLET |
			  (c->wants_out ? EPOLLOUT : 0u),
		.data.ptr = c,
	};

	return epoll_ctl(s->epoll, op, c->fd, &ev) < 0 ? -errno : 0;
}

int host_watch(struct vsock *s, struct conn *c)
{
	return rewatch(s, c, EPOLL_CTL_ADD);
}

void host_drop(struct vsock *s, struct conn *c)
{
	if (c->fd < 0)
		return;
	/* A child of the process may keep it open, and epoll tell of it. */
	epoll_ctl(s->epoll, EPOLL_CTL_DEL, c->fd, NULL);
	close(c->fd);
	c->fd = -1;
}

static void want_out(struct vsock *s, struct conn *c, bool on)
{
	if (c->wants_out == on)
		return;
	c->wants_out = on;
	rewatch(s, c, EPOLL_CTL_MOD);
}

/* The guest learns what the host will not do any more. */
static void tell_end(struct vsock *s, struct conn *c)
{
	uint8_t flags =
		(c->eof ? VSOCK_NO_SEND : 0) | (c->deaf ? VSOCK_NO_RECV : 0);

	if (c->state == CONN_OPEN && flags & ~c->said)
		conn_want(s, c, WANT_SHUTDOWN);
}

/* Nobody reads: what the guest sends is thrown away. */
static void host_is_deaf(struct vsock *s, struct conn *c)
{
	if (c->state == CONN_DRAIN) {
		conn_free(s, c);
		return;
	}
	c->deaf = true;
	c->fwd_cnt += c->len;
	c->len = 0;
	want_out(s, c, false);
	tell_end(s, c);
}

static void finish_sending(struct vsock *s, struct conn *c)
{
	if (c->len)
		return;
	if (c->state == CONN_DRAIN) {
		conn_free(s, c);
		return;
	}
	if (c->heard & VSOCK_NO_SEND && !c->flushed && c->fd >= 0) {
		c->flushed = true;
		shutdown(c->fd, SHUT_WR);
		if (c->eof)
			host_is_deaf(s, c);
	}
}

/* As send(), from several pieces; -EAGAIN, -EPIPE... */
static ssize_t send_pieces(int fd, const struct iovec *iov, unsigned n)
{
	struct msghdr msg = {
		.msg_iov = (struct iovec *)iov,
		.msg_iovlen = n,
	};
	ssize_t ret;

	do
		ret = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : ret;
}

/* The driver has to know before it believes that there is no room. */
static void forwarded(struct vsock *s, struct conn *c, uint32_t n)
{
	c->fwd_cnt += n;
	if (c->state == CONN_OPEN &&
	    c->fwd_cnt - c->told_fwd >= c->buf_alloc / 2)
		conn_want(s, c, WANT_UPDATE);
}

static void flush(struct vsock *s, struct conn *c)
{
	while (c->len) {
		uint32_t first = MIN(c->len, c->buf_alloc - c->at);
		struct iovec iov[2] = {
			{ c->buf + c->at, first },
			{ c->buf, c->len - first },
		};
		ssize_t n = send_pieces(c->fd, iov, c->len > first ? 2 : 1);

		if (n == -EAGAIN)
			return;
		if (n <= 0) {
			host_is_deaf(s, c);
			return;
		}
		c->at = (c->at + (uint32_t)n) % c->buf_alloc;
		c->len -= (uint32_t)n;
		forwarded(s, c, (uint32_t)n);
	}
	/* Few wait at a time: the others need no memory for it. */
	free(c->buf);
	c->buf = NULL;
	want_out(s, c, false);
	finish_sending(s, c);
}

/* Behind what is there; there is room. */
static int keep(struct vsock *s, struct conn *c, const struct iovec *iov,
		unsigned n, size_t skip, uint32_t len)
{
	if (!c->buf)
		c->buf = malloc(c->buf_alloc);
	if (!c->buf)
		return -ENOMEM;
	for (unsigned i = 0; i < n && len; i++) {
		size_t hop = MIN(skip, iov[i].iov_len);
		const uint8_t *p = (uint8_t *)iov[i].iov_base + hop;
		uint32_t part = (uint32_t)MIN(iov[i].iov_len - hop, len);

		skip -= hop;
		len -= part;
		while (part) {
			uint32_t to = (c->at + c->len) % c->buf_alloc;
			uint32_t m = MIN(part, c->buf_alloc - to);

			memcpy(c->buf + to, p, m);
			c->len += m;
			p += m;
			part -= m;
		}
	}
	want_out(s, c, true);
	return 0;
}

int host_send(struct vsock *s, struct conn *c, const struct iovec *iov,
	      unsigned n, uint32_t len)
{
	ssize_t done = 0;

	if (c->fd < 0 || c->deaf) {
		forwarded(s, c, len);
		return 0;
	}
	if (!c->len && n <= PIECES) {
		done = send_pieces(c->fd, iov, n);
		if (done == -EAGAIN)
			done = 0;
		if (done < 0) {
			forwarded(s, c, len);
			host_is_deaf(s, c);
			return 0;
		}
		forwarded(s, c, (uint32_t)done);
	}
	if ((uint32_t)done == len)
		return 0;
	return keep(s, c, iov, n, (size_t)done, len - (uint32_t)done);
}

void host_accepted(struct vsock *s, struct conn *c)
{
	char line[LINE];
	struct iovec iov = { line, 0 };

	conn_no_deadline(s, c);
	c->state = CONN_OPEN;
	if (c->hello) {
		iov.iov_len = (size_t)snprintf(line, sizeof(line), "OK %u\n",
					       c->host_port);
		/* Not the guest's bytes; the first, so there is room. */
		if (send_pieces(c->fd, &iov, 1) < 0)
			c->hup = true;
	}
	/* Who has gone meanwhile may have left something to read. */
	if (c->hup)
		host_is_deaf(s, c);
	conn_check(s, c);
}

void host_shutdown(struct vsock *s, struct conn *c)
{
	if (c->heard & VSOCK_NO_RECV && !c->eof) {
		c->eof = true;
		if (c->fd >= 0)
			shutdown(c->fd, SHUT_RD);
		tell_end(s, c);
	}
	finish_sending(s, c);
	conn_check(s, c);
}

/* -- connections of the guest --------------------------------------------- */

/* Nonblocking; -EAGAIN: its backlog is full. */
static int connect_path(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return -errno;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (!connect(fd, (const void *)&addr, sizeof(addr)))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

static int connect_function(const struct vsock_to *to, uint32_t guest_port)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		return -errno;
	to->accept(to->opaque, fd[1], guest_port);
	return fd[0];
}

static int try_connect(struct vsock *s, uint32_t port, uint32_t guest_port)
{
	char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 16];

	for (const struct vsock_to *to = s->to; to; to = to->next) {
		if (to->port != port)
			continue;
		return to->accept ? connect_function(to, guest_port)
				  : connect_path(to->path);
	}
	if (!s->path)
		return -ECONNREFUSED;
	snprintf(path, sizeof(path), "%s_%u", s->path, port);
	return connect_path(path);
}

/* The host has taken the connection at fd. */
static void connected(struct vsock *s, struct conn *c, int fd)
{
	if (c->state == CONN_CONNECTING)
		s->nwaiting--;
	c->state = CONN_OPEN;
	c->fd = fd;
	conn_no_deadline(s, c);
	if (host_watch(s, c)) {
		conn_reset(s, c);
		return;
	}
	conn_want(s, c, WANT_RESPONSE);
}

struct conn *host_connect(struct vsock *s, uint32_t port, uint32_t guest_port)
{
	struct conn *c;
	int fd;

	c = conn_create(s, -1, CONN_OPEN);
	if (!c)
		return NULL;
	conn_enter(s, c, port, guest_port);
	fd = try_connect(s, port, guest_port);
	if (fd >= 0) {
		connected(s, c, fd);
	} else if (fd == -EAGAIN) {
		/* Its backlog is full: it is busy, not absent. */
		c->state = CONN_CONNECTING;
		s->nwaiting++;
		conn_set_deadline(s, c);
	} else {
		if (fd == -EMFILE || fd == -ENFILE)
			dev_log(&s->v.dev,
				"a connection of the guest is refused: %s",
				strerror(-fd));
		conn_reset(s, c);
	}
	return c;
}

static void retry_connects(struct vsock *s)
{
	struct conn *c, *next;

	for (c = TAILQ_FIRST(&s->timed); c && s->nwaiting; c = next) {
		int fd;

		next = TAILQ_NEXT(c, timed_link);
		if (c->state != CONN_CONNECTING)
			continue;
		fd = try_connect(s, c->host_port, c->guest_port);
		if (fd >= 0)
			connected(s, c, fd);
		else if (fd != -EAGAIN)
			conn_reset(s, c);
	}
}

/* -- connections of the host ---------------------------------------------- */

void host_request(struct vsock *s, struct conn *c, uint32_t port)
{
	c->state = CONN_REQUESTED;
	conn_enter(s, c, conn_new_port(s, port), port);
	conn_set_deadline(s, c);
	conn_want(s, c, WANT_REQUEST);
}

/* "CONNECT 52\n" */
static bool parse_line(const char *line, uint32_t *port)
{
	uint64_t v = 0;

	if (strncmp(line, "CONNECT ", 8))
		return false;
	line += 8;
	if (*line < '0' || *line > '9')
		return false;
	for (; *line >= '0' && *line <= '9' && v <= UINT32_MAX; line++)
		v = v * 10 + (uint64_t)(*line - '0');
	if (*line == '\r')
		line++;
	*port = (uint32_t)v;
	return v < UINT32_MAX && *line == '\n';
}

/* What follows the line is for the guest and stays in the socket. */
static void read_hello(struct vsock *s, struct conn *c, bool ended)
{
	char line[LINE + 1], *end;
	uint32_t port;
	ssize_t n;

	n = recv(c->fd, line, LINE, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_free(s, c);
		return;
	}
	line[n] = 0;
	end = strchr(line, '\n');
	if (!end && n < LINE && !ended && strlen(line) == (size_t)n)
		return;
	if (!end || !parse_line(line, &port) ||
	    recv(c->fd, line, (size_t)(end + 1 - line), MSG_DONTWAIT) !=
		    end + 1 - line) {
		conn_free(s, c);
		return;
	}
	host_request(s, c, port);
}

static void accept_one(struct vsock *s, const struct door *d, int fd)
{
	struct conn *c = conn_create(s, fd, CONN_HELLO);

	if (!c) {
		close(fd);
		return;
	}
	c->hello = !d->port;
	if (host_watch(s, c)) {
		conn_free(s, c);
		return;
	}
	c->readable = true;
	if (d->port)
		host_request(s, c, d->port);
	else
		read_hello(s, c, false);
}

static void open_doors(struct vsock *s, bool on)
{
	for (struct door *d = s->doors; d; d = d->next) {
		struct epoll_event ev = { EPOLLIN, { .ptr = d } };

		if (d->watched != on &&
		    !epoll_ctl(s->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL,
			       d->fd, &ev))
			d->watched = on;
	}
	s->doors_open = on;
}

void host_doors(struct vsock *s)
{
	bool on = !s->gated && !s->full && s->nconns < s->max;

	if (on != s->doors_open)
		open_doors(s, on);
}

static void accept_some(struct vsock *s, const struct door *d)
{
	for (unsigned i = 0; i < ACCEPTS && s->nconns < s->max; i++) {
		int fd = accept4(d->fd, NULL, NULL,
				 SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			accept_one(s, d, fd);
			continue;
		}
		/* It would be told again and again: wait a little. */
		s->full = errno == EMFILE || errno == ENFILE ||
			  errno == ENOMEM || errno == ENOBUFS;
		return;
	}
}

/* -- events --------------------------------------------------------------- */

static void conn_event(struct vsock *s, struct conn *c, uint32_t events)
{
	if (c->state == CONN_FREE || c->fd < 0)
		return;
	if (events & (EPOLLHUP | EPOLLERR))
		c->hup = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->readable = true;
	if (c->state == CONN_HELLO) {
		read_hello(s, c, events & (EPOLLRDHUP | EPOLLHUP));
		return;
	}
	if (c->hup && !c->deaf && c->state != CONN_REQUESTED) {
		host_is_deaf(s, c);
		if (c->state == CONN_FREE)
			return;
	}
	if (events & EPOLLOUT && c->len)
		flush(s, c);
	conn_check(s, c);
}

static void expire(struct vsock *s)
{
	uint64_t now = loop_now();
	struct conn *c;

	while ((c = TAILQ_FIRST(&s->timed)) && c->deadline <= now)
		conn_reset(s, c);
}

static void timer_event(struct vsock *s)
{
	uint64_t count;

	if (read(s->timer, &count, sizeof(count)) < 0)
		return;
	s->timer_at = 0;
	s->full = false;
	expire(s);
	retry_connects(s);
}

void host_events(struct vsock *s)
{
	struct epoll_event ev[64];
	int n = epoll_wait(s->epoll, ev, ARRAY_SIZE(ev), 0);

	for (int i = 0; i < n; i++) {
		enum vsock_watch *what = ev[i].data.ptr;

		switch (*what) {
		case WATCH_CONN:
			conn_event(s, ev[i].data.ptr, ev[i].events);
			break;
		case WATCH_DOOR: accept_some(s, ev[i].data.ptr); break;
		case WATCH_TIMER: timer_event(s); break;
		}
	}
}

/* -- bytes for the guest -------------------------------------------------- */

ssize_t host_recv(struct vsock *s, struct conn *c, const struct iovec *iov,
		  unsigned n)
{
	struct msghdr msg = {
		.msg_iov = (struct iovec *)iov,
		.msg_iovlen = n,
	};
	ssize_t got = recvmsg(c->fd, &msg, MSG_DONTWAIT);

	if (got > 0)
		return got;
	if (got < 0 && errno == EINTR)
		return 0;
	if (got < 0 && errno == EAGAIN) {
		c->readable = false;
	} else if (got < 0) {
		/* It closed without reading all that the guest has sent. */
		conn_reset(s, c);
		return 0;
	} else {
		c->eof = true;
		if (c->flushed)
			host_is_deaf(s, c);
		tell_end(s, c);
	}
	conn_check(s, c);
	return 0;
}

/* -- open and close ------------------------------------------------------- */

static int in_use(const char *path)
{
	int fd = connect_path(path);

	if (fd >= 0)
		close(fd);
	return fd >= 0 || fd == -EAGAIN;
}

static int open_door(struct vsock *s, const char *path, uint32_t port,
		     struct husk_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct door *d;
	struct stat st;
	int ret;

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "socket %s: the path is longer than %zu "
				 "characters",
				 path, sizeof(addr.sun_path) - 1);
	d = calloc(1, sizeof(*d));
	if (!d)
		return error_errno(err, -ENOMEM, "socket %s", path);
	d->watch = WATCH_DOOR;
	d->port = port;
	d->next = s->doors;
	s->doors = d;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	d->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (d->fd < 0)
		return error_errno(err, -errno, "socket %s", path);
	/* One that a killed machine has left is in nobody's way. */
	if (!lstat(path, &st) && S_ISSOCK(st.st_mode)) {
		if (in_use(path))
			return error_set(err, -EADDRINUSE,
					 "socket %s: another process listens "
					 "there",
					 path);
		unlink(path);
	}
	/* Who connects may well be root in the guest: the owner only. */
	fchmod(d->fd, 0600);
	if (bind(d->fd, (const void *)&addr, sizeof(addr)) ||
	    listen(d->fd, SOMAXCONN)) {
		ret = -errno;
		return error_errno(err, ret, "socket %s", path);
	}
	d->path = strdup(path);
	return d->path ? 0 : error_errno(err, -ENOMEM, "socket %s", path);
}

static int add_to(struct vsock *s, const struct virtio_vsock_port *p,
		  struct husk_error *err)
{
	struct sockaddr_un addr;
	struct vsock_to *to;

	if (strlen(p->path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "socket %s: the path is longer than %zu "
				 "characters",
				 p->path, sizeof(addr.sun_path) - 1);
	to = calloc(1, sizeof(*to));
	if (!to)
		return error_errno(err, -ENOMEM, "socket %s", p->path);
	to->port = p->port;
	to->next = s->to;
	s->to = to;
	to->path = strdup(p->path);
	return to->path ? 0 : error_errno(err, -ENOMEM, "socket %s", p->path);
}

static int open_paths(struct vsock *s, const struct virtio_vsock_arg *arg,
		      struct husk_error *err)
{
	int ret = 0;

	if (arg->path) {
		/* PATH_PORT has to fit, too. */
		if (strlen(arg->path) + 11 >=
		    sizeof(((struct sockaddr_un *)0)->sun_path))
			return error_set(err, -ENAMETOOLONG,
					 "socket %s: the path is too long; 96 "
					 "characters are possible",
					 arg->path);
		s->path = strdup(arg->path);
		if (!s->path)
			return error_errno(err, -ENOMEM, "socket %s",
					   arg->path);
		ret = open_door(s, arg->path, 0, err);
	}
	for (unsigned i = 0; !ret && i < arg->nports; i++) {
		const struct virtio_vsock_port *p = &arg->ports[i];

		ret = p->to_guest ? open_door(s, p->path, p->port, err)
				  : add_to(s, p, err);
	}
	return ret;
}

static unsigned most_conns(unsigned wanted)
{
	struct rlimit lim = { 1024, 1024 };
	rlim_t n;

	getrlimit(RLIMIT_NOFILE, &lim);
	n = lim.rlim_cur > 2 * RESERVE ? lim.rlim_cur - RESERVE
				       : lim.rlim_cur / 2;
	n = MIN(n, (rlim_t)VSOCK_MOST);
	return wanted ? MIN(wanted, VSOCK_MOST) : (unsigned)n;
}

int host_open(struct vsock *s, const struct virtio_vsock_arg *arg,
	      struct husk_error *err)
{
	struct epoll_event ev = { EPOLLIN, { .ptr = &s->timer_watch } };

	s->max = most_conns(arg->max);
	s->timer_watch = WATCH_TIMER;
	if (getrandom(&s->seed, sizeof(s->seed), 0) != sizeof(s->seed))
		s->seed = loop_now();
	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->epoll < 0 || s->timer < 0 ||
	    epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->timer, &ev))
		return error_errno(err, -errno, "%s", s->v.dev.id);
	return open_paths(s, arg, err);
}

void host_close(struct vsock *s)
{
	while (s->doors) {
		struct door *d = s->doors;

		s->doors = d->next;
		if (d->fd >= 0)
			close(d->fd);
		if (d->path)
			unlink(d->path);
		free(d->path);
		free(d);
	}
	while (s->to) {
		struct vsock_to *to = s->to;

		s->to = to->next;
		free(to->path);
		free(to);
	}
	free(s->path);
	if (s->epoll >= 0)
		close(s->epoll);
	if (s->timer >= 0)
		close(s->timer);
}
