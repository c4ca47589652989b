/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tap.c - a tap or macvtap device of the host, with the kernel's offloads
 */
#include "net/link.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

struct tap {
	struct link l;
	struct loop *loop;
	struct loop_fd watch;
	bool listening;
};

static struct tap *to_tap(struct link *l)
{
	return container_of(l, struct tap, l);
}

static int open_name(const char *name, struct husk_error *err)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd, ret;

	if (!*name || strlen(name) >= sizeof(ifr.ifr_name))
		return error_set(err, -EINVAL,
				 "tap %s: not the name of an interface", name);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "tap %s: /dev/net/tun", name);
	memcpy(ifr.ifr_name, name, strlen(name) + 1);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		ret = -errno;
		close(fd);
		if (ret == -EPERM)
			return error_set(err, ret,
					 "tap %s: not permitted; as root: ip "
					 "tuntap add %s mode tap user YOU",
					 name, name);
		return error_errno(err, ret, "tap %s", name);
	}
	return fd;
}

static int open_fd(int given, struct husk_error *err)
{
	int fd = fcntl(given, F_DUPFD_CLOEXEC, 3), flags, ret;
	struct ifreq ifr = { 0 };

	if (fd < 0)
		return error_errno(err, -errno, "tap fd:%d", given);
	if (ioctl(fd, TUNGETIFF, &ifr) < 0) {
		ret = -errno;
		close(fd);
		return error_errno(err, ret, "tap fd:%d: not a tap device",
				   given);
	}
	flags = fcntl(fd, F_GETFL);
	if ((ifr.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) !=
		    (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) ||
	    fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		close(fd);
		return error_set(err, -EINVAL,
				 "tap fd:%d: must be opened with IFF_TAP, "
				 "IFF_NO_PI and IFF_VNET_HDR",
				 given);
	}
	return fd;
}

static int set_offload(struct link *l, uint32_t offload, unsigned hdr_len)
{
	struct tap *t = to_tap(l);
	int size = LINK_HDR;
	unsigned flags = 0;

	if (offload & LINK_CSUM) {
		flags |= TUN_F_CSUM;
		flags |= offload & LINK_TSO4 ? TUN_F_TSO4 | TUN_F_TSO_ECN : 0;
		flags |= offload & LINK_TSO6 ? TUN_F_TSO6 | TUN_F_TSO_ECN : 0;
	}
	if (ioctl(t->watch.fd, TUNSETVNETHDRSZ, &size) < 0 ||
	    ioctl(t->watch.fd, TUNSETOFFLOAD, flags) < 0)
		return -errno;
	return 0;
}

static void tap_watch(struct loop_fd *f, uint32_t events)
{
	link_ready(&container_of(f, struct tap, watch)->l);
}

static int tap_open(struct link *l, const struct link_config *cfg,
		    struct husk_error *err)
{
	struct tap *t = to_tap(l);
	int ret;

	t->loop = cfg->loop;
	t->watch.ready = tap_watch;
	t->watch.fd =
		cfg->where ? open_name(cfg->where, err) : open_fd(cfg->fd, err);
	if (t->watch.fd < 0)
		return t->watch.fd;
	ret = set_offload(l, 0, LINK_HDR);
	if (ret) {
		close(t->watch.fd);
		return error_errno(err, ret, "tap: no offload headers");
	}
	l->offers = LINK_CSUM | LINK_TSO4 | LINK_TSO6;
	l->carrier = true;
	return 0;
}

static void tap_close(struct link *l)
{
	close(to_tap(l)->watch.fd);
}

/* An interface that is down or a frame it refuses: lost, as on a cable. */
static int tap_send(struct link *l, const struct iovec *iov, int n)
{
	ssize_t done;

	do {
		done = writev(to_tap(l)->watch.fd, iov, n);
	} while (done < 0 && errno == EINTR);
	return done < 0 && errno == EAGAIN ? -EAGAIN : 0;
}

static ssize_t tap_recv(struct link *l, const struct iovec *iov, int n)
{
	ssize_t got;

	do {
		got = readv(to_tap(l)->watch.fd, iov, n);
	} while (got < 0 && errno == EINTR);
	return got < 0 ? 0 : got;
}

static int tap_listen(struct link *l, bool on)
{
	struct tap *t = to_tap(l);
	int ret = 0;

	if (on == t->listening)
		return 0;
	if (on)
		ret = loop_add(t->loop, &t->watch,
			       EPOLLIN | EPOLLOUT | EPOLLET);
	else
		loop_del(t->loop, &t->watch);
	if (!ret)
		t->listening = on;
	return ret;
}

const struct link_ops link_tap = {
	.name = "tap",
	.size = sizeof(struct tap),
	.open = tap_open,
	.close = tap_close,
	.send = tap_send,
	.recv = tap_recv,
	.listen = tap_listen,
	.set_offload = set_offload,
};
