/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dgram.c - a socket that somebody opened for us, a frame per message
 */
#include "net/link.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

/* A datagram socket does not reliably say when its peer has room again. */
enum { RETRY_NS = 1000000 };

struct dgram {
	struct link l;
	struct loop *loop;
	struct loop_fd watch;
	struct loop_timer retry;
	bool listening;
};

static struct dgram *to_dgram(struct link *l)
{
	return container_of(l, struct dgram, l);
}

static void dgram_watch(struct loop_fd *f, uint32_t events)
{
	struct link *l = &container_of(f, struct dgram, watch)->l;

	if (events & EPOLLHUP)
		link_set_carrier(l, false,
				 "the other end of the socket closed");
	link_ready(l);
}

static void dgram_retry(struct loop_timer *t)
{
	link_ready(&container_of(t, struct dgram, retry)->l);
}

static int dgram_open(struct link *l, const struct link_config *cfg,
		      struct husk_error *err)
{
	struct dgram *d = to_dgram(l);
	socklen_t len = sizeof(int);
	int type;

	if (getsockopt(cfg->fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return error_errno(err, -errno, "fd %d", cfg->fd);
	if (type != SOCK_DGRAM && type != SOCK_SEQPACKET)
		return error_set(err, -EINVAL,
				 "fd %d: not a socket of packets or a stream",
				 cfg->fd);
	d->watch.fd = fcntl(cfg->fd, F_DUPFD_CLOEXEC, 3);
	if (d->watch.fd < 0)
		return error_errno(err, -errno, "fd %d", cfg->fd);
	d->watch.ready = dgram_watch;
	d->loop = cfg->loop;
	loop_timer_init(d->loop, &d->retry, dgram_retry);
	l->carrier = true;
	return 0;
}

static void dgram_close(struct link *l)
{
	close(to_dgram(l)->watch.fd);
}

static int dgram_send(struct link *l, const struct iovec *iov, int n)
{
	struct msghdr msg = { .msg_iov = (struct iovec *)iov,
			      .msg_iovlen = (size_t)n };
	struct dgram *d = to_dgram(l);
	ssize_t done;

	do {
		done = sendmsg(d->watch.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (done < 0 && errno == EINTR);
	if (done < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
		loop_timer_set(&d->retry, loop_now() + RETRY_NS);
		return -EAGAIN;
	}
	return 0;
}

static ssize_t dgram_recv(struct link *l, const struct iovec *iov, int n)
{
	struct msghdr msg = { .msg_iov = (struct iovec *)iov,
			      .msg_iovlen = (size_t)n };
	struct dgram *d = to_dgram(l);
	ssize_t got;

	do {
		got = recvmsg(d->watch.fd, &msg, MSG_DONTWAIT);
	} while (got < 0 && errno == EINTR);
	return got < 0 ? 0 : got;
}

static int dgram_listen(struct link *l, bool on)
{
	struct dgram *d = to_dgram(l);
	int ret = 0;

	if (on == d->listening)
		return 0;
	if (on) {
		ret = loop_add(d->loop, &d->watch,
			       EPOLLIN | EPOLLOUT | EPOLLET);
	} else {
		loop_del(d->loop, &d->watch);
		loop_timer_cancel(&d->retry);
	}
	if (!ret)
		d->listening = on;
	return ret;
}

const struct link_ops link_dgram = {
	.name = "fd",
	.size = sizeof(struct dgram),
	.open = dgram_open,
	.close = dgram_close,
	.send = dgram_send,
	.recv = dgram_recv,
	.listen = dgram_listen,
};
