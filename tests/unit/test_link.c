/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_link.c - sockets as cables, and a network without privilege
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/loop.h"
#include "husk/vmnet.h"
#include "net/link.h"

static struct loop *loop;

struct nic {
	struct link *l;
	int event;
};

static void on_ready(void *nic)
{
	uint64_t one = 1;

	assert_int_equal(write(((struct nic *)nic)->event, &one, 8), 8);
}

static int plug(struct nic *n, struct link_config *cfg)
{
	struct husk_error err = { 0 };
	int ret;

	cfg->loop = loop;
	ret = link_open(cfg, &n->l, &err);
	if (ret)
		return ret;
	n->event = eventfd(0, EFD_CLOEXEC);
	n->l->ready = on_ready;
	n->l->nic = n;
	return n->l->ops->listen(n->l, true);
}

static void unplug(struct nic *n)
{
	n->l->ops->listen(n->l, false);
	link_close(n->l);
	close(n->event);
}

static bool wait_ready(struct nic *n)
{
	struct pollfd p = { n->event, POLLIN, 0 };
	uint64_t count;

	return poll(&p, 1, 3000) == 1 && read(n->event, &count, 8) == 8;
}

static ssize_t receive(struct nic *n, void *buf, size_t room)
{
	struct iovec iov = { buf, room };
	ssize_t got;

	while (!(got = n->l->ops->recv(n->l, &iov, 1)))
		if (!wait_ready(n))
			return 0;
	return got;
}

static int send_one(struct nic *n, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return n->l->ops->send(n->l, &iov, 1);
}

static bool wait_carrier(struct nic *n, bool want)
{
	uint8_t buf[100];
	struct iovec iov = { buf, sizeof(buf) };

	for (unsigned i = 0; i < 3000; i++) {
		n->l->ops->recv(n->l, &iov, 1);
		if (link_carrier(n->l) == want)
			return true;
		usleep(1000);
	}
	return false;
}

static int pair[2];

static void stream_frames(void **state)
{
	struct link_config cfg = { .kind = "fd" };
	static uint8_t big[LINK_FRAME_MAX], got[LINK_FRAME_MAX + 4];
	uint8_t buf[100];
	struct nic n;
	uint32_t len;
	size_t at = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	cfg.fd = pair[0];
	assert_int_equal(plug(&n, &cfg), 0);
	close(pair[0]);
	/* In pieces, and two at once. */
	assert_int_equal(write(pair[1], "\0\0", 2), 2);
	assert_true(wait_ready(&n));
	assert_int_equal(write(pair[1], "\0\3ab", 4), 4);
	usleep(1000);
	assert_int_equal(write(pair[1], "c\0\0\0\2de", 7), 7);
	assert_int_equal(receive(&n, buf, sizeof(buf)), 3);
	assert_memory_equal(buf, "abc", 3);
	assert_int_equal(receive(&n, buf, sizeof(buf)), 2);
	assert_memory_equal(buf, "de", 2);
	/* A reader who does not read fills it; nothing is torn. */
	for (unsigned i = 0; i < sizeof(big); i++)
		big[i] = (uint8_t)(i * 5);
	while (!send_one(&n, big, sizeof(big)))
		at++;
	assert_true(at > 2);
	for (size_t k = 0; k < at; k++) {
		assert_int_equal(recv(pair[1], got, 4, MSG_WAITALL), 4);
		memcpy(&len, got, 4);
		assert_int_equal(ntohl(len), sizeof(big));
		assert_int_equal(recv(pair[1], got, sizeof(big), MSG_WAITALL),
				 sizeof(big));
		assert_memory_equal(got, big, sizeof(big));
	}
	assert_int_equal(send_one(&n, "x", 1), 0);
	/* A length that cannot be is the end of it. */
	assert_int_equal(write(pair[1], "\377\0\0\0abcd", 8), 8);
	assert_true(wait_carrier(&n, false));
	assert_int_equal(send_one(&n, "x", 1), 0);
	unplug(&n);
	close(pair[1]);
}

static void stream_comes_back(void **state)
{
	char path[64];
	struct link_config cfg = { .kind = "unix", .where = path };
	struct link_config door = { .kind = "unix",
				    .where = path,
				    .listen = true };
	struct husk_error err = { 0 };
	struct nic a, b;
	uint8_t buf[10];

	snprintf(path, sizeof(path), "/tmp/test_link.%d", getpid());
	assert_true(plug(&b, &cfg) < 0); /* nobody listens */
	assert_int_equal(plug(&a, &door), 0);
	assert_false(link_carrier(a.l));
	assert_int_equal(plug(&b, &cfg), 0);
	assert_true(wait_carrier(&a, true));
	assert_int_equal(send_one(&b, "hello", 5), 0);
	assert_int_equal(receive(&a, buf, 10), 5);
	assert_int_equal(send_one(&a, "you", 3), 0);
	assert_int_equal(receive(&b, buf, 10), 3);
	/* One end goes: no carrier; a new one: carrier again. */
	unplug(&a);
	assert_true(wait_carrier(&b, false));
	assert_int_equal(plug(&a, &door), 0);
	assert_true(wait_carrier(&b, true));
	assert_true(wait_carrier(&a, true));
	assert_int_equal(send_one(&b, "again", 5), 0);
	assert_int_equal(receive(&a, buf, 10), 5);
	unplug(&b);
	unplug(&a);
	assert_int_not_equal(access(path, F_OK), 0);
	cfg.where = "/tmp";
	assert_true(link_open(&cfg, &b.l, &err) < 0);
	assert_non_null(strstr(err.text, "/tmp"));
}

static void packets(void **state)
{
	struct link_config cfg = { .kind = "fd" };
	struct husk_error err = { 0 };
	uint8_t buf[100];
	struct nic n;
	int full = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
	cfg.fd = pair[0];
	assert_int_equal(plug(&n, &cfg), 0);
	assert_int_equal(send(pair[1], "frame", 5, 0), 5);
	assert_int_equal(receive(&n, buf, 100), 5);
	while (!send_one(&n, buf, 100) && full < 100000)
		full++;
	assert_true(full < 100000); /* -EAGAIN */
	assert_int_equal(recv(pair[1], buf, 100, 0), 100);
	assert_true(wait_ready(&n));
	unplug(&n);
	close(pair[0]);
	close(pair[1]);
	cfg.fd = eventfd(0, 0);
	assert_true(link_open(&cfg, &n.l, &err) < 0);
	close(cfg.fd);
}

/* As vfkit to gvproxy: a word first, and an address to answer to. */
static void packets_by_path(void **state)
{
	char path[64];
	struct link_config cfg = { .kind = "unixgram",
				   .where = path,
				   .vfkit = true };
	struct sockaddr_un at = { .sun_family = AF_UNIX }, from;
	socklen_t len = sizeof(from);
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	uint8_t buf[100];
	struct nic n;

	snprintf(path, sizeof(path), "/tmp/test_link.%d", getpid());
	memcpy(at.sun_path, path, strlen(path) + 1);
	assert_true(plug(&n, &cfg) < 0);
	assert_int_equal(bind(fd, (void *)&at, sizeof(at)), 0);
	assert_int_equal(plug(&n, &cfg), 0);
	assert_int_equal(recvfrom(fd, buf, 100, 0, (void *)&from, &len), 4);
	assert_memory_equal(buf, "VFKT", 4);
	assert_int_equal(connect(fd, (void *)&from, len), 0);
	assert_int_equal(send(fd, "answer", 6, 0), 6);
	assert_int_equal(receive(&n, buf, 100), 6);
	assert_int_equal(send_one(&n, "frame", 5), 0);
	assert_int_equal(recv(fd, buf, 100, 0), 5);
	unplug(&n);
	close(fd);
	unlink(path);
}

/* -- the NAT -------------------------------------------------------------- */

struct guest {
	struct vmnet *net;
	struct vmnet_port *port;
	int event;
};

static void guest_ready(void *opaque)
{
	uint64_t one = 1;

	assert_int_equal(write(((struct guest *)opaque)->event, &one, 8), 8);
}

static void guest_open(struct guest *g)
{
	struct husk_error err = { 0 };

	g->event = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(vmnet_create(NULL, &g->net, &err), 0);
	assert_int_equal(vmnet_port_open(g->net, guest_ready, g, &g->port), 0);
}

static void guest_close(struct guest *g)
{
	vmnet_port_close(g->port);
	vmnet_destroy(g->net);
	close(g->event);
}

/* The next frame that f says yes to; 0 after 3 s without. */
static ssize_t guest_wait(struct guest *g, uint8_t *buf, size_t room,
			  bool (*f)(const uint8_t *frame, size_t len))
{
	struct pollfd p = { g->event, POLLIN, 0 };
	struct iovec iov = { buf, room };
	uint64_t count;
	ssize_t n;

	for (;;) {
		n = vmnet_port_recv(g->port, &iov, 1);
		if (n && f(buf, (size_t)n))
			return n;
		if (!n &&
		    (poll(&p, 1, 3000) != 1 || read(g->event, &count, 8) != 8))
			return 0;
	}
}

static bool is_offer(const uint8_t *f, size_t len)
{
	/* IPv4, UDP, from port 67, a reply. */
	return len > 282 && f[12] == 8 && !f[13] && f[23] == 17 &&
	       f[35] == 67 && f[42] == 2;
}

static void discover(struct guest *g)
{
	uint8_t f[342] = { 255, 255, 255, 255, 255,  255, 2, 0,	 0, 0,
			   0,	1,   8,	  0,   0x45, 0,	  1, 72, 0, 0,
			   0,	0,   64,  17,  0,    0,	  0, 0,	 0, 0,
			   255, 255, 255, 255, 0,    68,  0, 67, 1, 52,
			   0,	0,   1,	  1,   6,    0 };
	static const uint8_t options[] = { 0x63, 0x82, 0x53, 0x63,
					   0x35, 1,    1,    0xff };
	struct iovec iov = { f, sizeof(f) };
	uint32_t sum = 0;

	memcpy(f + 70, "\2\0\0\0\0\1", 6);
	memcpy(f + 278, options, sizeof(options));
	f[24] = f[25] = 0;
	for (unsigned i = 14; i < 34; i += 2)
		sum += (uint32_t)f[i] << 8 | f[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	f[24] = (uint8_t)(~sum >> 8);
	f[25] = (uint8_t)~sum;
	assert_int_equal(vmnet_port_send(g->port, &iov, 1), 0);
}

static void gives_addresses(void **state)
{
	uint8_t f[2000];
	struct guest g[3];

	/* Several at once; each has its first address free. */
	for (unsigned i = 0; i < 3; i++)
		guest_open(&g[i]);
	for (unsigned i = 0; i < 3; i++) {
		discover(&g[i]);
		assert_true(guest_wait(&g[i], f, sizeof(f), is_offer) > 0);
		assert_memory_equal(f + 58, "\12\0\2\17", 4);
	}
	assert_int_equal(vmnet_reset(g[1].net), 0);
	discover(&g[1]);
	assert_true(guest_wait(&g[1], f, sizeof(f), is_offer) > 0);
	for (unsigned i = 0; i < 3; i++)
		guest_close(&g[i]);
}

/* A NIC that is paused for a moment misses nothing. */
static void keeps_frames(void **state)
{
	struct link_config cfg = { .kind = "shared" };
	uint8_t ask[42] = { 255, 255, 255, 255, 255, 255, 2,  0, 0, 0,	0,
			    1,	 8,   6,   0,	1,   8,	  0,  6, 4, 0,	1,
			    2,	 0,   0,   0,	0,   1,	  10, 0, 2, 15, 0,
			    0,	 0,   0,   0,	0,   10,  0,  2, 2 };
	struct pollfd p = { .events = POLLIN };
	uint8_t buf[2000];
	struct nic n;

	assert_int_equal(plug(&n, &cfg), 0);
	p.fd = n.event;
	assert_int_equal(send_one(&n, ask, sizeof(ask)), 0);
	assert_int_equal(n.l->ops->listen(n.l, false), 0);
	/* It was told at first. */
	if (poll(&p, 1, 0) == 1)
		assert_true(wait_ready(&n));
	assert_int_equal(n.l->ops->listen(n.l, true), 0);
	assert_true(wait_ready(&n));
	assert_true(receive(&n, buf, sizeof(buf)) >= 42);
	assert_int_equal(buf[21], 2); /* an answer */
	unplug(&n);
}

static bool is_syn(const uint8_t *f, size_t len)
{
	return len >= 54 && f[12] == 8 && !f[13] && f[23] == 6 && f[36] == 0 &&
	       f[37] == 80 && f[47] == 2;
}

static bool is_arp(const uint8_t *f, size_t len)
{
	return len >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 1;
}

static void answer_arp(struct guest *g, const uint8_t *asked)
{
	uint8_t f[42] = { 0 };
	struct iovec iov = { f, sizeof(f) };

	memcpy(f, asked + 6, 6);
	memcpy(f + 6, "\2\0\0\0\0\1\10\6\0\1\10\0\6\4\0\2\2\0\0\0\0\1", 22);
	memcpy(f + 28, asked + 38, 4);
	memcpy(f + 32, asked + 22, 10);
	assert_int_equal(vmnet_port_send(g->port, &iov, 1), 0);
}

static int connect_local(unsigned port)
{
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (!connect(fd, (void *)&in, sizeof(in)))
		return fd;
	close(fd);
	return -1;
}

static void forwards_ports(void **state)
{
	struct husk_error err = { 0 };
	char spec[32], taken[32];
	unsigned port;
	uint8_t f[2000];
	struct guest g;
	int fd;

	guest_open(&g);
	for (port = 20000 + (unsigned)getpid() % 20000;; port++) {
		snprintf(spec, sizeof(spec), "%u:80", port);
		if (!vmnet_forward_add(g.net, spec, &err))
			break;
	}
	snprintf(taken, sizeof(taken), "%u:81", port);
	assert_int_equal(vmnet_forward_add(g.net, taken, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, taken));
	for (unsigned i = 0; i < 2; i++) {
		fd = connect_local(port);
		/* A network namespace begins with a loopback that is down. */
		if (fd < 0 && errno == ENETUNREACH) {
			guest_close(&g);
			skip();
		}
		assert_true(fd >= 0);
		assert_true(guest_wait(&g, f, sizeof(f), is_arp) > 0);
		answer_arp(&g, f);
		assert_true(guest_wait(&g, f, sizeof(f), is_syn) > 0);
		close(fd);
		/* A reset network forgets addresses, not forwards. */
		assert_int_equal(vmnet_reset(g.net), 0);
	}
	assert_int_equal(vmnet_forward_del(g.net, spec, &err), 0);
	assert_int_equal(vmnet_forward_del(g.net, spec, &err), -ENOENT);
	assert_int_equal(connect_local(port), -1);
	assert_int_equal(vmnet_forward_add(g.net, spec, &err), 0);
	guest_close(&g);
	assert_int_equal(connect_local(port), -1);
}

static void reads_forwards(void **state)
{
	static const char *const good[] = {
		"2222:22",
		"0.0.0.0:80:80",
		"[::1]:5353:53/udp",
		"127.0.0.1:1:65535/tcp",
	};
	static const char *const bad[] = {
		"",
		":",
		"80",
		"0:80",
		"80:0",
		"80:65536",
		"x:80",
		"80:80/sctp",
		"1.2.3:80:80",
		"::1:80:80",
		"80:-1",
		" 80:80",
		"80:80 ",
		"[::1:80:80",
		"[]:80:80",
		"80:80/udp/udp",
	};
	char lots[300];
	struct husk_error err;

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_int_equal(vmnet_forward_check(good[i], &err), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(vmnet_forward_check(bad[i], &err), -EINVAL);
	memset(lots, '1', sizeof(lots) - 1);
	lots[sizeof(lots) - 1] = 0;
	assert_int_equal(vmnet_forward_check(lots, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stream_frames),
		cmocka_unit_test(stream_comes_back),
		cmocka_unit_test(packets),
		cmocka_unit_test(packets_by_path),
		cmocka_unit_test(keeps_frames),
		cmocka_unit_test(gives_addresses),
		cmocka_unit_test(forwards_ports),
		cmocka_unit_test(reads_forwards),
	};
	int ret;

	if (loop_create(&loop) || loop_start(loop))
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	loop_destroy(loop);
	return ret;
}
