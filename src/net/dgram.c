/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dgram.c - packet sockets, a frame per message: open ones and vfkit's
 */
#include "net/link.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
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

static int open_fd(int given, struct husk_error *err)
{
	socklen_t len = sizeof(int);
	int type, fd;

	if (getsockopt(given, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return error_errno(err, -errno, "fd %d", given);
	if (type != SOCK_DGRAM && type != SOCK_SEQPACKET)
		return error_set(err, -EINVAL,
				 "fd %d: not a socket of packets or a stream",
				 given);
	fd = fcntl(given, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? error_errno(err, -errno, "fd %d", given) : fd;
}

/* The peer answers to an address, so we have one: any in the abstract. */
static int open_path(const char *path, bool magic, struct husk_error *err)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(to.sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "%s: too long for the name of a socket", path);
	memcpy(to.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !bind(fd, (void *)&to, sizeof(to.sun_family)) &&
	    !connect(fd, (void *)&to, sizeof(to)) &&
	    (!magic || send(fd, "VFKT", 4, MSG_NOSIGNAL) == 4))
		return fd;
	ret = -errno;
	if (fd >= 0)
		close(fd);
	if (ret == -ECONNREFUSED)
		return error_set(err, ret, "%s: nobody listens there", path);
	return error_errno(err, ret, "%s", path);
}

static int dgram_open(struct link *l, const struct link_config *cfg,
		      struct husk_error *err)
{
	struct dgram *d = to_dgram(l);

	d->watch.fd = cfg->where ? open_path(cfg->where, cfg->vfkit, err)
				 : open_fd(cfg->fd, err);
	if (d->watch.fd < 0)
		return d->watch.fd;
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
