/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_vsock.c - the socket device between a mock driver and Unix sockets
 *
 * (pN): pattern N of the vulnerabilities that others had, see docs/hacking.md.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "mock/virtq_driver.h"
#include "vm/virtio/vsock.h"

/* PATIENCE: ms on a busy machine, for what has to come */
enum { PATIENCE = 30000, CID = 7, BUFFER = 4096 + VSOCK_HDR, ROOM = 0x2000 };
enum {
	TX_AT = MOCK_DATA,	     /* 64 KiB and a header */
	RX_AT = MOCK_DATA + 0x20000, /* ROOM for each descriptor */
	EVENT_AT = MOCK_DATA + 0x40000,
};

static struct mock m;
static char dir[] = "/tmp/husk-vsock-XXXXXX", path[64];
static uint16_t rx_seen, tx_posted;

/* -- the driver ----------------------------------------------------------- */

static void give_buffer(unsigned i, uint32_t size)
{
	mock_desc(&m, VSOCK_RX, i, RX_AT + i * ROOM, size, DESC_WRITE, 0);
	mock_post(&m, VSOCK_RX, (uint16_t)i);
}

static void give_buffers(void)
{
	for (unsigned i = 0; i < MOCK_QSIZE; i++)
		give_buffer(i, BUFFER);
}

static void start(void)
{
	mock_start(&m, VSOCK_F_STREAM);
	rx_seen = tx_posted = 0;
}

static void plug_with(struct virtio_vsock_arg *arg)
{
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	arg->cid = CID;
	arg->path = path;
	assert_true(mock_create(&m, &virtio_vsock_class, arg));
	start();
}

static void plug(void)
{
	struct virtio_vsock_arg arg = { 0 };

	plug_with(&arg);
	give_buffers();
}

static void unplug(void)
{
	char other[80];

	mock_destroy(&m);
	assert_int_equal(access(path, F_OK), -1);
	snprintf(other, sizeof(other), "%s_80", path);
	unlink(other);
	assert_int_equal(rmdir(dir), 0);
	memcpy(dir + strlen(dir) - 6, "XXXXXX", 6);
}

/* What the guest's end of a connection knows. */
struct end {
	uint32_t host_port, guest_port;
	uint32_t alloc, fwd; /* of ours */
	uint32_t peer_alloc, peer_fwd, sent;
};

static void post_packet(const struct vsock_hdr *h, const void *data,
			uint32_t len)
{
	memcpy(m.mem.bytes + TX_AT, h, VSOCK_HDR);
	if (len)
		memcpy(m.mem.bytes + TX_AT + VSOCK_HDR, data, len);
	mock_desc(&m, VSOCK_TX, 0, TX_AT, VSOCK_HDR + len, 0, 0);
	mock_post(&m, VSOCK_TX, 0);
	tx_posted++;
}

static struct vsock_hdr head(const struct end *e, enum vsock_op op)
{
	return (struct vsock_hdr){
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = e->guest_port,
		.dst_port = e->host_port,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = e->alloc,
		.fwd_cnt = e->fwd,
	};
}

static void say(struct end *e, enum vsock_op op, const void *data, uint32_t len)
{
	struct vsock_hdr h = head(e, op);

	h.len = op == VSOCK_OP_RW ? len : 0;
	if (op == VSOCK_OP_SHUTDOWN)
		h.flags = len, len = 0;
	post_packet(&h, data, len);
	if (op == VSOCK_OP_RW)
		e->sent += len;
	assert_true(mock_wait(&m, VSOCK_TX, tx_posted));
}

/* The next packet for the guest; false: none in time. */
static bool hear_in(struct vsock_hdr *h, uint8_t *data, unsigned ms)
{
	struct virtq_used_elem u;
	uint16_t mask = MOCK_QSIZE - 1;

	for (; mock_used(&m, VSOCK_RX) == rx_seen; ms--) {
		if (!ms)
			return false;
		usleep(1000);
	}
	memcpy(&u,
	       m.mem.bytes + MOCK_USED + VSOCK_RX * MOCK_STEP + 4 +
		       8 * (rx_seen & mask),
	       8);
	rx_seen++;
	memcpy(h, m.mem.bytes + RX_AT + u.id * ROOM, VSOCK_HDR);
	assert_int_equal(u.len, VSOCK_HDR + h->len);
	assert_int_equal(h->dst_cid, CID);
	if (data)
		memcpy(data, m.mem.bytes + RX_AT + u.id * ROOM + VSOCK_HDR,
		       h->len);
	mock_post(&m, VSOCK_RX, (uint16_t)u.id);
	return true;
}

static void hear(struct end *e, enum vsock_op op, struct vsock_hdr *h,
		 uint8_t *data)
{
	struct vsock_hdr own;

	if (!h)
		h = &own;
	assert_true(hear_in(h, data, PATIENCE));
	assert_int_equal(h->op, op);
	assert_int_equal(h->src_cid, VSOCK_HOST_CID);
	assert_int_equal(h->src_port, e->host_port);
	assert_int_equal(h->dst_port, e->guest_port);
	if (op == VSOCK_OP_RST)
		return;
	assert_int_equal(h->type, VSOCK_TYPE_STREAM);
	e->peer_alloc = h->buf_alloc;
	e->peer_fwd = h->fwd_cnt;
}

static void hear_nothing(void)
{
	struct vsock_hdr h;

	assert_false(hear_in(&h, NULL, 60));
}

/* -- the host ------------------------------------------------------------- */

static struct sockaddr_un address(const char *p)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", p);
	return a;
}

static int host_dial(void)
{
	struct sockaddr_un a = address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(connect(fd, (void *)&a, sizeof(a)), 0);
	return fd;
}

static int host_listen(unsigned port, int backlog)
{
	struct sockaddr_un a;
	char p[80];
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(p, sizeof(p), "%s_%u", path, port);
	a = address(p);
	assert_int_equal(bind(fd, (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, backlog), 0);
	return fd;
}

static void get(int fd, const char *text)
{
	char buf[64] = "";
	size_t n = 0;

	while (n < strlen(text)) {
		struct pollfd p = { fd, POLLIN, 0 };
		ssize_t got;

		assert_int_equal(poll(&p, 1, PATIENCE), 1);
		got = recv(fd, buf + n, strlen(text) - n, 0);
		assert_true(got > 0);
		n += (size_t)got;
	}
	assert_string_equal(buf, text);
}

static void put(int fd, const void *data, size_t len)
{
	assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), len);
}

static void put_text(int fd, const char *text)
{
	put(fd, text, strlen(text));
}

/* The other end is closed (whatever it says last). */
static void is_closed(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };
	char c;

	assert_int_equal(poll(&p, 1, PATIENCE), 1);
	assert_true(recv(fd, &c, 1, 0) <= 0);
	close(fd);
}

/* A connection from the host, accepted by the guest. */
static int from_host(struct end *e, uint32_t port)
{
	struct vsock_hdr h;
	char line[32];
	int fd = host_dial();

	snprintf(line, sizeof(line), "CONNECT %u\n", port);
	put_text(fd, line);
	assert_true(hear_in(&h, NULL, PATIENCE));
	assert_int_equal(h.op, VSOCK_OP_REQUEST);
	assert_int_equal(h.dst_port, port);
	*e = (struct end){ .host_port = h.src_port,
			   .guest_port = port,
			   .alloc = 65536,
			   .peer_alloc = h.buf_alloc };
	say(e, VSOCK_OP_RESPONSE, NULL, 0);
	snprintf(line, sizeof(line), "OK %u\n", h.src_port);
	get(fd, line);
	return fd;
}

/* -- tests ---------------------------------------------------------------- */

static void has_its_address(void **state)
{
	plug();
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE, 4), CID);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 4, 4), 0);
	unplug();
}

static void guest_connects(void **state)
{
	struct end e = { .host_port = 80, .guest_port = 1025, .alloc = 65536 };
	uint8_t data[4096];
	struct vsock_hdr h;
	int door, fd;

	plug();
	door = host_listen(80, 4);
	say(&e, VSOCK_OP_REQUEST, NULL, 0);
	fd = accept(door, NULL, NULL);
	assert_true(fd >= 0);
	hear(&e, VSOCK_OP_RESPONSE, &h, NULL);
	assert_int_equal(h.buf_alloc, VSOCK_BUF_FEW);
	say(&e, VSOCK_OP_RW, "hello", 5);
	get(fd, "hello");
	put_text(fd, "world");
	hear(&e, VSOCK_OP_RW, &h, data);
	assert_int_equal(h.len, 5);
	assert_int_equal(h.fwd_cnt, 5);
	assert_memory_equal(data, "world", 5);
	close(fd);
	close(door);
	hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	say(&e, VSOCK_OP_RST, NULL, 0);
	unplug();
}

static void host_connects(void **state)
{
	uint8_t data[4096];
	struct vsock_hdr h;
	struct stat st;
	struct end e;
	int fd, other;

	plug();
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 077, 0);
	fd = from_host(&e, 52);
	assert_int_equal(e.host_port, 1 << 30);
	put_text(fd, "ping");
	hear(&e, VSOCK_OP_RW, &h, data);
	assert_memory_equal(data, "ping", 4);
	say(&e, VSOCK_OP_RW, "pong", 4);
	get(fd, "pong");
	/* What follows the line is for the guest. */
	other = host_dial();
	put_text(other, "CONNECT 9\r\nearly");
	e = (struct end){ (1 << 30) + 1, 9, 100, 0, 0, 0, 0 };
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	say(&e, VSOCK_OP_RESPONSE, NULL, 0);
	hear(&e, VSOCK_OP_RW, &h, data);
	assert_int_equal(h.len, 5);
	assert_memory_equal(data, "early", 5);
	close(other);
	close(fd);
	unplug();
}

static void wants_a_proper_line(void **state)
{
	static const char *const bad[] = {
		"CONNECT\n",
		"CONNECT x\n",
		"CONNECT -1\n",
		"CONNECT 5 5\n",
		"connect 5\n",
		"CONNECT 4294967295\n",
		"\n",
		"CONNECT 5",
		"CONNECT 99999999999999999999",
		"CONNECT 5555555555555555555555555555555\n",
	};

	plug();
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = host_dial();

		put_text(fd, bad[i]);
		shutdown(fd, SHUT_WR);
		is_closed(fd);
	}
	hear_nothing();
	unplug();
}

static void refuses(void **state)
{
	struct end e = { .host_port = 81, .guest_port = 5 };
	struct vsock_hdr h;
	int fd;

	plug();
	/* Nobody listens; there is no such connection. */
	say(&e, VSOCK_OP_REQUEST, NULL, 0);
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	say(&e, VSOCK_OP_RW, "x", 1);
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	say(&e, VSOCK_OP_RST, NULL, 0);
	hear_nothing();
	/* Another type of socket, another host. */
	h = head(&e, VSOCK_OP_REQUEST);
	h.type = 2;
	post_packet(&h, NULL, 0);
	hear(&e, VSOCK_OP_RST, &h, NULL);
	assert_int_equal(h.type, 2);
	h = head(&e, VSOCK_OP_REQUEST);
	h.dst_cid = 99;
	post_packet(&h, NULL, 0);
	assert_true(hear_in(&h, NULL, PATIENCE));
	assert_int_equal(h.op, VSOCK_OP_RST);
	assert_int_equal(h.src_cid, 99);
	h = head(&e, VSOCK_OP_REQUEST);
	h.src_cid = CID + 1;
	post_packet(&h, NULL, 0);
	hear_nothing();
	/* The guest refuses. */
	fd = host_dial();
	put_text(fd, "CONNECT 5\n");
	e.host_port = 1 << 30;
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	say(&e, VSOCK_OP_RST, NULL, 0);
	is_closed(fd);
	/* An operation that does not exist, one at the wrong time. */
	for (unsigned i = 0; i < 3; i++) {
		fd = from_host(&e, 6 + i);
		say(&e,
		    i == 0   ? 77
		    : i == 1 ? VSOCK_OP_RESPONSE
			     : VSOCK_OP_REQUEST,
		    NULL, 0);
		hear(&e, VSOCK_OP_RST, NULL, NULL);
		is_closed(fd);
	}
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	unplug();
}

static void keeps_to_the_guests_credit(void **state)
{
	static uint8_t data[10000], got[4096];
	struct vsock_hdr h;
	struct end e;
	uint32_t sum = 0;
	int fd;

	plug();
	fd = from_host(&e, 5);
	e.alloc = 5000;
	say(&e, VSOCK_OP_CREDIT_UPDATE, NULL, 0);
	put(fd, data, sizeof(data));
	while (sum < 5000) {
		hear(&e, VSOCK_OP_RW, &h, got);
		sum += h.len;
	}
	assert_int_equal(sum, 5000);
	hear(&e, VSOCK_OP_CREDIT_REQUEST, NULL, NULL);
	hear_nothing();
	/* Less than it has promised; then more. */
	e.alloc = 10;
	say(&e, VSOCK_OP_CREDIT_UPDATE, NULL, 0);
	hear_nothing();
	e.alloc = 5000;
	e.fwd = 4000;
	say(&e, VSOCK_OP_CREDIT_UPDATE, NULL, 0);
	hear(&e, VSOCK_OP_RW, &h, got);
	assert_int_equal(h.len, 4000);
	close(fd);
	unplug();
}

/* From the guest until the host's socket and our buffer are full. */
static void stuff(struct end *e)
{
	static uint8_t data[16384];
	struct vsock_hdr h;

	for (;;) {
		uint32_t free;

		while (hear_in(&h, NULL, 2)) {
			assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
			e->peer_fwd = h.fwd_cnt;
		}
		free = e->peer_alloc - (e->sent - e->peer_fwd);
		if (!free) {
			say(e, VSOCK_OP_CREDIT_REQUEST, NULL, 0);
			hear(e, VSOCK_OP_CREDIT_UPDATE, NULL, NULL);
			free = e->peer_alloc - (e->sent - e->peer_fwd);
		}
		if (!free)
			return;
		memset(data, 'a' + (int)(e->sent / 16384 % 26), sizeof(data));
		/* Each piece is of one letter. */
		free = MIN(free, 16384 - e->sent % 16384);
		say(e, VSOCK_OP_RW, data, free);
	}
}

static void bounds_what_the_host_does_not_read(void **state)
{
	static uint8_t buf[16384];
	struct vsock_hdr h;
	uint64_t sum = 0;
	struct end e;
	int fd;

	plug();
	fd = from_host(&e, 5);
	stuff(&e);
	/* The host reads: every byte is right, and the guest is told. */
	while (sum < e.sent) {
		ssize_t n = recv(fd, buf, sizeof(buf), 0);

		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++, sum++)
			assert_int_equal(buf[i], 'a' + (int)(sum / 16384 % 26));
	}
	while (e.peer_fwd < e.sent - e.peer_alloc / 2)
		hear(&e, VSOCK_OP_CREDIT_UPDATE, NULL, NULL);
	/* One byte more than it may. */
	stuff(&e);
	say(&e, VSOCK_OP_RW, "x", 1);
	do
		assert_true(hear_in(&h, NULL, PATIENCE));
	while (h.op == VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(h.op, VSOCK_OP_RST);
	close(fd);
	unplug();
}

static void ends_one_direction_at_a_time(void **state)
{
	uint8_t data[4096];
	struct vsock_hdr h;
	struct end e;
	int fd;

	plug();
	/* The host is done first. */
	fd = from_host(&e, 5);
	put_text(fd, "last");
	shutdown(fd, SHUT_WR);
	hear(&e, VSOCK_OP_RW, &h, data);
	hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	assert_int_equal(h.flags, VSOCK_NO_SEND);
	say(&e, VSOCK_OP_RW, "answer", 6);
	get(fd, "answer");
	say(&e, VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_SEND);
	is_closed(fd);
	hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	assert_int_equal(h.flags, VSOCK_NO_MORE);
	say(&e, VSOCK_OP_RST, NULL, 0);
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	/* The guest is. */
	fd = from_host(&e, 6);
	say(&e, VSOCK_OP_RW, "last", 4);
	say(&e, VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_SEND);
	get(fd, "last");
	assert_int_equal(recv(fd, data, 1, 0), 0);
	put_text(fd, "answer");
	hear(&e, VSOCK_OP_RW, &h, data);
	assert_memory_equal(data, "answer", 6);
	close(fd);
	hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	if (h.flags == VSOCK_NO_RECV)
		hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	assert_int_equal(h.flags, VSOCK_NO_MORE);
	/* It reads no more: who writes is told. */
	fd = from_host(&e, 7);
	say(&e, VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_RECV);
	hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	assert_int_equal(h.flags, VSOCK_NO_SEND);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	say(&e, VSOCK_OP_RW, "still", 5);
	get(fd, "still");
	close(fd);
	unplug();
}

/* The guest closes with bytes that the host has not read: none is lost. */
static void gives_the_rest(void **state)
{
	static uint8_t buf[16384];
	struct vsock_hdr h;
	uint64_t sum = 0;
	struct end e, f;
	ssize_t n;
	int fd;

	plug();
	fd = from_host(&e, 5);
	stuff(&e);
	say(&e, VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_MORE);
	hear(&e, VSOCK_OP_RST, &h, NULL);
	/* Its ports are free for the next one. */
	f = e;
	say(&f, VSOCK_OP_RW, "x", 1);
	hear(&f, VSOCK_OP_RST, &h, NULL);
	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		sum += (uint64_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(sum, e.sent);
	close(fd);
	/* A host that goes before it has all. */
	fd = from_host(&e, 5);
	stuff(&e);
	say(&e, VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_MORE);
	hear(&e, VSOCK_OP_RST, &h, NULL);
	close(fd);
	for (unsigned i = 0; i < PATIENCE && to_vsock(m.v)->nconns; i++)
		usleep(1000);
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	unplug();
}

/* The host closed while the guest still sends. */
static void tells_of_a_gone_host(void **state)
{
	struct vsock_hdr h;
	struct end e;
	int fd;

	plug();
	fd = from_host(&e, 5);
	stuff(&e);
	close(fd);
	/* It had not read all, which is a reset of Unix sockets, too. */
	do
		assert_true(hear_in(&h, NULL, PATIENCE));
	while (h.op == VSOCK_OP_CREDIT_UPDATE ||
	       (h.op == VSOCK_OP_SHUTDOWN && h.flags != VSOCK_NO_MORE));
	assert_true(h.op == VSOCK_OP_RST || h.op == VSOCK_OP_SHUTDOWN);
	say(&e, VSOCK_OP_RST, NULL, 0);
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	unplug();
}

/* As if all that may wait had waited too long. */
static void expire(void)
{
	struct vsock *s = to_vsock(m.v);
	struct conn *c;

	pthread_mutex_lock(&m.dev->lock);
	TAILQ_FOREACH(c, &s->timed, timed_link)
	c->deadline = 1;
	s->timer_at = 0;
	vsock_program(s);
	pthread_mutex_unlock(&m.dev->lock);
}

static void gives_up_half_open_ones(void **state)
{
	struct end e = { .host_port = 1 << 30, .guest_port = 5 };
	struct vsock_hdr h;
	int silent, asking, fd;

	plug();
	silent = host_dial();
	put_text(silent, "CONN");
	for (unsigned i = 0; i < PATIENCE && !to_vsock(m.v)->nconns; i++)
		usleep(1000);
	expire();
	is_closed(silent);
	asking = host_dial();
	put_text(asking, "CONNECT 5\n");
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	expire();
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	is_closed(asking);
	/* One that is open waits as long as it likes. */
	fd = from_host(&e, 6);
	expire();
	say(&e, VSOCK_OP_RW, "here", 4);
	get(fd, "here");
	/* Not so the guest's last word. */
	close(fd);
	do
		hear(&e, VSOCK_OP_SHUTDOWN, &h, NULL);
	while (h.flags != VSOCK_NO_MORE);
	expire();
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	unplug();
}

/* A listener that is busy gets its connections later. */
static void waits_for_a_full_backlog(void **state)
{
	struct end e = { .host_port = 80, .alloc = 100 };
	struct vsock_hdr h;
	int door, fd[6];

	plug();
	door = host_listen(80, 0);
	for (unsigned i = 0; i < 6; i++) {
		e.guest_port = 2000 + i;
		say(&e, VSOCK_OP_REQUEST, NULL, 0);
	}
	for (unsigned i = 0; i < 6; i++) {
		fd[i] = accept(door, NULL, NULL);
		assert_true(fd[i] >= 0);
		assert_true(hear_in(&h, NULL, PATIENCE));
		assert_int_equal(h.op, VSOCK_OP_RESPONSE);
	}
	for (unsigned i = 0; i < 6; i++)
		close(fd[i]);
	close(door);
	unplug();
}

static void serves_all_in_turn(void **state)
{
	static uint8_t data[60000];
	unsigned count[3] = { 0 };
	struct vsock_hdr h;
	struct end e[3];
	int fd[3];

	plug();
	for (unsigned i = 0; i < 3; i++)
		fd[i] = from_host(&e[i], 5 + i);
	virtio_pause(m.dev);
	for (unsigned i = 0; i < 3; i++)
		put(fd[i], data, sizeof(data));
	virtio_resume(m.dev);
	for (unsigned i = 0; i < 30; i++) {
		assert_true(hear_in(&h, NULL, PATIENCE));
		count[h.dst_port - 5]++;
	}
	for (unsigned i = 0; i < 3; i++) {
		assert_in_range(count[i], 8, 12);
		close(fd[i]);
	}
	unplug();
}

static void many(void **state)
{
	enum { MANY = 1500 };
	static int fd[MANY];
	static struct end e[MANY];

	plug();
	for (unsigned i = 0; i < MANY; i++) {
		fd[i] = from_host(&e[i], 5);
		/* The few may send much ahead, the many little. */
		assert_int_equal(e[i].peer_alloc, i < VSOCK_FEW
							  ? VSOCK_BUF_FEW
							  : VSOCK_BUF_MANY);
	}
	for (unsigned i = 0; i < MANY; i += 7) {
		say(&e[i], VSOCK_OP_RW, &i, sizeof(i));
	}
	for (unsigned i = 0, got; i < MANY; i += 7) {
		assert_int_equal(recv(fd[i], &got, 4, MSG_WAITALL), 4);
		assert_int_equal(got, i);
	}
	for (unsigned i = 0; i < MANY; i++) {
		say(&e[i], VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_MORE);
		hear(&e[i], VSOCK_OP_RST, NULL, NULL);
		is_closed(fd[i]);
	}
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	unplug();
}

static void as_many_as_can_be(void **state)
{
	struct virtio_vsock_arg arg = { .max = 3 };
	struct end e[4], f = { .host_port = 80, .guest_port = 9 };
	int fd[4], door;

	plug_with(&arg);
	give_buffers();
	door = host_listen(80, 4);
	for (unsigned i = 0; i < 3; i++)
		fd[i] = from_host(&e[i], 5 + i);
	say(&f, VSOCK_OP_REQUEST, NULL, 0);
	hear(&f, VSOCK_OP_RST, NULL, NULL);
	fd[3] = host_dial();
	put_text(fd[3], "CONNECT 8\n");
	hear_nothing();
	/* It waits until there is room. */
	say(&e[0], VSOCK_OP_RST, NULL, 0);
	e[3] = (struct end){ .host_port = e[2].host_port + 1, .guest_port = 8 };
	hear(&e[3], VSOCK_OP_REQUEST, NULL, NULL);
	for (unsigned i = 0; i < 4; i++)
		close(fd[i]);
	close(door);
	unplug();
}

/* -- the embedding program ------------------------------------------------ */

static int accepted = -1;

static void on_accept(void *opaque, int fd, uint32_t guest_port)
{
	assert_int_equal(guest_port, 99);
	__atomic_store_n((int *)opaque, fd, __ATOMIC_SEQ_CST);
}

static void serves_functions(void **state)
{
	struct end e = { .host_port = 300, .guest_port = 99, .alloc = 100 };
	int fd = -1;

	plug();
	assert_int_equal(virtio_vsock_listen(m.dev, 300, on_accept, &accepted),
			 0);
	assert_int_equal(virtio_vsock_listen(m.dev, 300, on_accept, &accepted),
			 -EADDRINUSE);
	say(&e, VSOCK_OP_REQUEST, NULL, 0);
	hear(&e, VSOCK_OP_RESPONSE, NULL, NULL);
	assert_true(accepted >= 0);
	say(&e, VSOCK_OP_RW, "hi", 2);
	get(accepted, "hi");
	close(accepted);
	assert_int_equal(virtio_vsock_listen(m.dev, 300, NULL, NULL), 0);
	hear(&e, VSOCK_OP_SHUTDOWN, NULL, NULL);
	say(&e, VSOCK_OP_RST, NULL, 0);
	say(&e, VSOCK_OP_REQUEST, NULL, 0);
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	assert_int_equal(virtio_vsock_connect(m.dev, 1023, &fd), 0);
	e = (struct end){ .host_port = 1 << 30, .guest_port = 1023 };
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	say(&e, VSOCK_OP_RESPONSE, NULL, 0);
	get(fd, "OK 1073741824\n");
	close(fd);
	virtio_reset(m.dev);
	assert_int_equal(virtio_vsock_connect(m.dev, 1023, &fd), -ENOTCONN);
	unplug();
}

static void maps_single_ports(void **state)
{
	char in[80], out[80];
	struct virtio_vsock_port ports[] = {
		{ 6, in, true },
		{ 7, out, false },
	};
	struct virtio_vsock_arg arg = { .ports = ports, .nports = 2 };
	struct end e = { .host_port = 1 << 30, .guest_port = 6, .alloc = 100 };
	struct sockaddr_un a;
	uint8_t data[4096];
	int door, fd;

	snprintf(in, sizeof(in), "%s-in-%d", "/tmp/husk-vsock", getpid());
	snprintf(out, sizeof(out), "%s-out-%d", "/tmp/husk-vsock", getpid());
	plug_with(&arg);
	give_buffers();
	/* Without a line, and without an answer. */
	a = address(in);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(fd, (void *)&a, sizeof(a)), 0);
	put_text(fd, "raw");
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	say(&e, VSOCK_OP_RESPONSE, NULL, 0);
	hear(&e, VSOCK_OP_RW, NULL, data);
	assert_memory_equal(data, "raw", 3);
	say(&e, VSOCK_OP_RW, "yes", 3);
	get(fd, "yes");
	close(fd);
	door = socket(AF_UNIX, SOCK_STREAM, 0);
	a = address(out);
	assert_int_equal(bind(door, (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(door, 1), 0);
	e = (struct end){ .host_port = 7, .guest_port = 70, .alloc = 100 };
	say(&e, VSOCK_OP_REQUEST, NULL, 0);
	fd = accept(door, NULL, NULL);
	assert_true(fd >= 0);
	close(fd);
	close(door);
	unlink(out);
	unplug();
	assert_int_equal(access(in, F_OK), -1);
}

static void does_not_take_a_used_path(void **state)
{
	struct virtio_vsock_arg arg = { .path = path };
	struct husk_error err = { 0 };
	struct sockaddr_un a;
	int fd;

	plug();
	assert_null(
		dev_create(&virtio_vsock_class.dev, "two", &m.env, &arg, &err));
	assert_int_equal(err.code, -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	unplug();
	/* What a killed process left is another matter. */
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	a = address(path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (void *)&a, sizeof(a)), 0);
	close(fd);
	assert_true(mock_create(&m, &virtio_vsock_class, &arg));
	unplug();
}

/* -- a driver that breaks rules ------------------------------------------- */

static unsigned open_files(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void expect_broken(void)
{
	for (unsigned i = 0; i < PATIENCE; i++) {
		if (mock_status(&m) & STATUS_NEEDS_RESET)
			return;
		usleep(1000);
	}
	fail();
}

/* (p2) headers and payload that end outside, or before their length */
static void rejects_bad_packets(void **state)
{
	struct end e = { .host_port = 80, .guest_port = 1 };
	struct vsock_hdr h = head(&e, VSOCK_OP_RW);
	struct virtio_vsock_arg arg = { 0 };

	for (unsigned i = 0; i < 8; i++) {
		plug_with(&arg);
		memcpy(m.mem.bytes + TX_AT, &h, VSOCK_HDR);
		switch (i) {
		case 0: /* shorter than a header */
			mock_desc(&m, VSOCK_TX, 0, TX_AT, 43, 0, 0);
			break;
		case 1: /* nothing */
			mock_desc(&m, VSOCK_TX, 0, TX_AT, 0, 0, 0);
			break;
		case 2: /* a length that nobody gave */
			h.len = 1;
			memcpy(m.mem.bytes + TX_AT, &h, VSOCK_HDR);
			mock_desc(&m, VSOCK_TX, 0, TX_AT, VSOCK_HDR, 0, 0);
			break;
		case 3:
			h.len = UINT32_MAX;
			memcpy(m.mem.bytes + TX_AT, &h, VSOCK_HDR);
			mock_desc(&m, VSOCK_TX, 0, TX_AT, VSOCK_HDR + 9, 0, 0);
			break;
		case 4: /* over the end of memory */
			mock_desc(&m, VSOCK_TX, 0, MOCK_MEM - 40, VSOCK_HDR, 0,
				  0);
			break;
		case 5: /* its payload does */
			h.len = 16;
			memcpy(m.mem.bytes + TX_AT, &h, VSOCK_HDR);
			mock_desc(&m, VSOCK_TX, 0, TX_AT, VSOCK_HDR, DESC_NEXT,
				  1);
			mock_desc(&m, VSOCK_TX, 1, MOCK_MEM - 8, 16, 0, 0);
			break;
		case 6: /* the address wraps */
			mock_desc(&m, VSOCK_TX, 0, UINT64_MAX - 8, VSOCK_HDR, 0,
				  0);
			break;
		case 7: /* only writable */
			mock_desc(&m, VSOCK_TX, 0, TX_AT, VSOCK_HDR, DESC_WRITE,
				  0);
			break;
		}
		mock_post(&m, VSOCK_TX, 0);
		expect_broken();
		assert_int_equal(m.logs, 1);
		unplug();
		h.len = 0;
	}
	/* No room for a header and a byte. */
	for (uint32_t size = 0; size <= VSOCK_HDR; size += 11) {
		int fd;

		plug_with(&arg);
		give_buffer(0, size);
		fd = host_dial();
		put_text(fd, "CONNECT 5\n");
		expect_broken();
		close(fd);
		unplug();
	}
}

/* A header and a payload in many small pieces. */
static void takes_any_pieces(void **state)
{
	static const uint8_t cut[] = { 1, 7, 30, 6, 3 };
	struct virtio_vsock_arg arg = { 0 };
	struct vsock_hdr h;
	struct end e;
	uint32_t at = 0;
	int fd;

	plug();
	fd = from_host(&e, 5);
	h = head(&e, VSOCK_OP_RW);
	h.len = 3;
	memcpy(m.mem.bytes + TX_AT, &h, VSOCK_HDR);
	memcpy(m.mem.bytes + TX_AT + VSOCK_HDR, "abc", 3);
	for (unsigned i = 0; i < 5; at += cut[i++])
		mock_desc(&m, VSOCK_TX, i, TX_AT + at, cut[i],
			  i < 4 ? DESC_NEXT : 0, (uint16_t)(i + 1));
	mock_post(&m, VSOCK_TX, 0);
	get(fd, "abc");
	close(fd);
	unplug();

	plug_with(&arg);
	for (unsigned i = 0; i < 5; i++)
		mock_desc(&m, VSOCK_RX, i, RX_AT + 100 * i, 10,
			  DESC_WRITE | (i < 4 ? DESC_NEXT : 0),
			  (uint16_t)(i + 1));
	mock_post(&m, VSOCK_RX, 0);
	fd = host_dial();
	put_text(fd, "CONNECT 5\n");
	assert_true(mock_wait(&m, VSOCK_RX, 1));
	for (unsigned i = 0; i < VSOCK_HDR; i++)
		((uint8_t *)&h)[i] =
			m.mem.bytes[RX_AT + 100 * (i / 10) + i % 10];
	assert_int_equal(h.op, VSOCK_OP_REQUEST);
	assert_int_equal(h.dst_port, 5);
	close(fd);
	unplug();
}

/* (p4) a driver that takes no answer: what waits for it is bounded */
static void stops_when_answers_wait(void **state)
{
	struct virtio_vsock_arg arg = { 0 };
	struct end e = { .host_port = 80, .guest_port = 1 };
	struct vsock_hdr h = head(&e, VSOCK_OP_RW);
	unsigned n;

	plug_with(&arg);
	for (n = 0; n < 2 * VSOCK_UNKNOWN; n++) {
		h.src_port = n;
		post_packet(&h, NULL, 0);
		if (!mock_wait(&m, VSOCK_TX, tx_posted))
			break;
	}
	assert_int_equal(n, VSOCK_UNKNOWN);
	assert_int_equal(mock_status(&m) & STATUS_NEEDS_RESET, 0);
	/* It comes to its senses. */
	give_buffers();
	for (unsigned i = 0; i <= VSOCK_UNKNOWN; i++) {
		assert_true(hear_in(&h, NULL, PATIENCE));
		assert_int_equal(h.op, VSOCK_OP_RST);
		assert_int_equal(h.dst_port, i);
	}
	assert_true(mock_wait(&m, VSOCK_TX, tx_posted));
	unplug();
}

/* Who had not been accepted before a reset comes after it, the last one last. */
static void refuse_those_that_wait(void)
{
	int fd = host_dial();
	struct vsock_hdr h;
	struct end f;

	put_text(fd, "CONNECT 78\n");
	do {
		assert_true(hear_in(&h, NULL, PATIENCE));
		f = (struct end){ .host_port = h.src_port,
				  .guest_port = h.dst_port };
		say(&f, VSOCK_OP_RST, NULL, 0);
	} while (h.dst_port != 78);
	close(fd);
}

static void expect_open_files(unsigned n)
{
	for (unsigned i = 0; i < PATIENCE && open_files() != n; i++)
		usleep(1000);
	assert_int_equal(open_files(), n);
}

/* (p5, p7) resets with everything under way: nothing stays behind */
static void leaves_nothing(void **state)
{
	unsigned before;

	plug();
	before = open_files();
	for (unsigned round = 0; round < 6; round++) {
		struct end e[4], f = { .host_port = 80, .guest_port = 9 };
		struct vsock_hdr h;
		int fd[6];

		for (unsigned i = 0; i < 4; i++)
			fd[i] = from_host(&e[i], 5 + i);
		stuff(&e[0]);
		put_text(fd[1], "unread");
		say(&e[2], VSOCK_OP_SHUTDOWN, NULL, VSOCK_NO_SEND);
		fd[4] = host_dial();
		put_text(fd[4], "CONN");
		fd[5] = host_dial();
		put_text(fd[5], "CONNECT 77\n");
		h = head(&f, VSOCK_OP_REQUEST);
		post_packet(&h, NULL, 0);
		if (round & 1) { /* and a broken one in between */
			mock_desc(&m, VSOCK_TX, 1, TX_AT, 1, 0, 0);
			mock_post(&m, VSOCK_TX, 1);
			expect_broken();
		}
		mock_common(&m, 20, 0, 1);
		assert_int_equal(to_vsock(m.v)->nconns, 0);
		start();
		for (unsigned i = 0; i < 6; i++)
			close(fd[i]);
		give_buffers();
		refuse_those_that_wait();
		expect_open_files(before);
	}
	unplug();
}

/* (p13) a length that changes while it is read */
static void *flip(void *arg)
{
	struct vsock_hdr *h = (void *)(m.mem.bytes + TX_AT);

	while (!__atomic_load_n((bool *)arg, __ATOMIC_SEQ_CST)) {
		__atomic_store_n((uint32_t *)((uint8_t *)h + 24), 3000,
				 __ATOMIC_SEQ_CST);
		__atomic_store_n((uint32_t *)((uint8_t *)h + 24), 100,
				 __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void reads_a_header_once(void **state)
{
	static uint8_t buf[4096];
	bool stop = false;
	pthread_t thread;
	struct end e;
	int fd;

	plug();
	fd = from_host(&e, 5);
	pthread_create(&thread, NULL, flip, &stop);
	for (unsigned i = 0; i < 2000; i++) {
		struct vsock_hdr h = head(&e, VSOCK_OP_RW);
		ssize_t n;

		h.len = 100;
		post_packet(&h, buf, 3000);
		assert_true(mock_wait(&m, VSOCK_TX, tx_posted));
		n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
		assert_true(n == 100 || n == 3000);
	}
	__atomic_store_n(&stop, true, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	close(fd);
	unplug();
}

/* -- saved state ---------------------------------------------------------- */

static const void *save(struct state **w, size_t *len)
{
	virtio_pause(m.dev);
	*w = state_writer(1);
	virtio_vsock_class.dev.state(m.dev, *w);
	assert_int_equal(state_finish(*w), 0);
	return state_data(*w, len);
}

static int load(const void *data, size_t len)
{
	struct state *r = state_reader(data, len, 1);
	int ret;

	virtio_vsock_class.dev.state(m.dev, r);
	ret = state_finish(r);
	if (!ret)
		ret = virtio_vsock_class.dev.check(m.dev);
	state_free(r);
	return ret;
}

static void give_event_buffers(void)
{
	for (unsigned i = 0; i < 4; i++) {
		mock_desc(&m, VSOCK_EVENT, i, EVENT_AT + 8 * i, 4, DESC_WRITE,
			  0);
		mock_post(&m, VSOCK_EVENT, (uint16_t)i);
	}
	memset(m.mem.bytes + EVENT_AT, 0xff, 64);
}

static void pauses(void **state)
{
	uint8_t data[4096];
	struct state *w;
	struct end e;
	size_t len;
	int fd;

	plug();
	fd = from_host(&e, 5);
	save(&w, &len);
	put_text(fd, "later");
	hear_nothing();
	virtio_resume(m.dev);
	hear(&e, VSOCK_OP_RW, NULL, data);
	assert_memory_equal(data, "later", 5);
	say(&e, VSOCK_OP_RW, "yes", 3);
	get(fd, "yes");
	assert_int_equal(mock_used(&m, VSOCK_EVENT), 0);
	state_free(w);
	close(fd);
	unplug();
}

/*
 * The driver is told that its connections are gone, and nothing else happens
 * before it has taken note; a packet that waited in its queue is not lost.
 */
static void resets_after_restore(void **state)
{
	struct end e, f = { .host_port = 90, .guest_port = 3 };
	uint32_t event = 1;
	const void *data;
	struct vsock_hdr h;
	struct state *w;
	size_t len;
	int fd, later;

	plug();
	give_event_buffers();
	fd = from_host(&e, 5);
	data = save(&w, &len);
	/* Under way at that moment: written, but not looked at. */
	h = head(&f, VSOCK_OP_REQUEST);
	post_packet(&h, NULL, 0);
	assert_int_equal(load(data, len), 0);
	is_closed(fd);
	later = host_dial();
	put_text(later, "CONNECT 5\n");
	virtio_resume(m.dev);
	assert_true(mock_wait(&m, VSOCK_EVENT, 1));
	assert_int_equal(mock_used_len(&m, VSOCK_EVENT, 0), 4);
	memcpy(&event, m.mem.bytes + EVENT_AT, 4);
	assert_int_equal(event, VSOCK_TRANSPORT_RESET);
	hear_nothing();
	mock_post(&m, VSOCK_EVENT, 0);
	/* Both go on now, the new one by a port that is not the old one's. */
	for (unsigned i = 0; i < 2; i++) {
		assert_true(hear_in(&h, NULL, PATIENCE));
		if (h.op == VSOCK_OP_RST)
			assert_int_equal(h.dst_port, 3);
		else
			assert_int_equal(h.src_port, e.host_port + 1);
	}
	assert_int_equal(mock_used(&m, VSOCK_EVENT), 1);
	state_free(w);
	close(later);
	unplug();
}

/* Who asked and was not yet answered is told, and a late answer is nothing. */
static void half_open_ones_end_with_a_restore(void **state)
{
	struct end e = { .host_port = 1 << 30, .guest_port = 5 }, f;
	int silent, asking, fd;
	const void *data;
	struct state *w;
	size_t len;

	plug();
	give_event_buffers();
	silent = host_dial();
	put_text(silent, "CONN");
	asking = host_dial();
	put_text(asking, "CONNECT 5\n");
	hear(&e, VSOCK_OP_REQUEST, NULL, NULL);
	data = save(&w, &len);
	assert_int_equal(load(data, len), 0);
	is_closed(silent);
	is_closed(asking);
	virtio_resume(m.dev);
	assert_true(mock_wait(&m, VSOCK_EVENT, 1));
	mock_post(&m, VSOCK_EVENT, 0);
	say(&e, VSOCK_OP_RESPONSE, NULL, 0);
	hear(&e, VSOCK_OP_RST, NULL, NULL);
	assert_int_equal(to_vsock(m.v)->nconns, 0);
	fd = from_host(&f, 6);
	assert_int_not_equal(f.host_port, e.host_port);
	say(&f, VSOCK_OP_RW, "here", 4);
	get(fd, "here");
	assert_int_equal(mock_status(&m) & STATUS_NEEDS_RESET, 0);
	state_free(w);
	close(fd);
	unplug();
}

/* A driver that never answers is not waited for without end. */
static void goes_on_without_an_answer(void **state)
{
	const void *data;
	struct state *w;
	struct end e;
	size_t len;
	int fd;

	plug();
	data = save(&w, &len);
	assert_int_equal(load(data, len), 0);
	virtio_resume(m.dev);
	pthread_mutex_lock(&m.dev->lock);
	assert_true(to_vsock(m.v)->gated);
	to_vsock(m.v)->gate_end = loop_now();
	pthread_mutex_unlock(&m.dev->lock);
	fd = from_host(&e, 5);
	close(fd);
	state_free(w);
	unplug();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(has_its_address),
		cmocka_unit_test(guest_connects),
		cmocka_unit_test(host_connects),
		cmocka_unit_test(wants_a_proper_line),
		cmocka_unit_test(refuses),
		cmocka_unit_test(keeps_to_the_guests_credit),
		cmocka_unit_test(bounds_what_the_host_does_not_read),
		cmocka_unit_test(ends_one_direction_at_a_time),
		cmocka_unit_test(gives_the_rest),
		cmocka_unit_test(tells_of_a_gone_host),
		cmocka_unit_test(gives_up_half_open_ones),
		cmocka_unit_test(waits_for_a_full_backlog),
		cmocka_unit_test(serves_all_in_turn),
		cmocka_unit_test(many),
		cmocka_unit_test(as_many_as_can_be),
		cmocka_unit_test(serves_functions),
		cmocka_unit_test(maps_single_ports),
		cmocka_unit_test(does_not_take_a_used_path),
		cmocka_unit_test(rejects_bad_packets),
		cmocka_unit_test(takes_any_pieces),
		cmocka_unit_test(stops_when_answers_wait),
		cmocka_unit_test(leaves_nothing),
		cmocka_unit_test(reads_a_header_once),
		cmocka_unit_test(pauses),
		cmocka_unit_test(resets_after_restore),
		cmocka_unit_test(half_open_ones_end_with_a_restore),
		cmocka_unit_test(goes_on_without_an_answer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
