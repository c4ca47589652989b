/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_vsock.c - a socket device between a hostile driver and a moody host
 *
 * Records of a kind, two numbers and bytes: packets and buffers of the driver,
 * what programs of the host do with their ends, pauses and restores.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mock/virtq_driver.h"
#include "vm/virtio/vsock.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ENDS = 8, CID = 3, LISTENED = 80 };

static struct mock m;
/* Also by the device's thread, which works when it is woken. */
static pthread_mutex_t end_lock = PTHREAD_MUTEX_INITIALIZER;
static int end[ENDS];
static unsigned nends;

static void add_end(int fd)
{
	pthread_mutex_lock(&end_lock);
	if (nends < ENDS) {
		end[nends++] = fd;
		fd = -1;
	}
	pthread_mutex_unlock(&end_lock);
	if (fd >= 0)
		close(fd);
}

static void on_accept(void *opaque, int fd, uint32_t guest_port)
{
	add_end(fd);
}

/* In two pieces, the first of cut bytes. */
static void post_packet(uint32_t len, uint32_t cut)
{
	cut = MIN(cut, len);
	mock_desc(&m, VSOCK_TX, 0, MOCK_DATA, cut, DESC_NEXT, 1);
	mock_desc(&m, VSOCK_TX, 1, MOCK_DATA + cut, len - cut, 0, 0);
	mock_offer(&m, VSOCK_TX, 0);
}

static void from_driver(const struct mock_record *r)
{
	struct vsock_hdr h = {
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = r->b & 3,
		.dst_port = r->b & 4 ? LISTENED : (1u << 30) + (r->b >> 5),
		.len = r->len,
		.type = VSOCK_TYPE_STREAM,
		.op = r->a & 7,
		.flags = r->a >> 3,
		.buf_alloc = r->b * 32u,
	};

	/* Long ones: what follows in memory. */
	if (r->a & 0x80)
		h.len = r->len * 256u;
	memcpy(m.mem.bytes + MOCK_DATA, &h, VSOCK_HDR);
	memcpy(m.mem.bytes + MOCK_DATA + VSOCK_HDR, r->bytes, r->len);
	post_packet(VSOCK_HDR + h.len, VSOCK_HDR);
}

static void raw_from_driver(const struct mock_record *r)
{
	memcpy(m.mem.bytes + MOCK_DATA, r->bytes, r->len);
	post_packet(r->len + r->b * 16u, r->a);
}

static void give_buffers(const struct mock_record *r, unsigned q)
{
	mock_desc(&m, q, 0, MOCK_DATA + 0x30000, r->a, DESC_WRITE | DESC_NEXT,
		  1);
	mock_desc(&m, q, 1, MOCK_DATA + 0x31000, r->b * 16u, DESC_WRITE, 0);
	for (unsigned i = 0; i < r->len % MOCK_QSIZE; i++)
		mock_offer(&m, q, 0);
}

/* A host that still has to say where it wants to go. */
static void dial(void)
{
	struct vsock *s = to_vsock(m.v);
	struct conn *c;
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		abort();
	pthread_mutex_lock(&m.dev->lock);
	c = conn_create(s, fd[0], CONN_HELLO);
	if (c && host_watch(s, c))
		abort();
	if (c)
		c->hello = true;
	else
		close(fd[0]);
	pthread_mutex_unlock(&m.dev->lock);
	add_end(fd[1]);
}

static void use_end(const struct mock_record *r)
{
	unsigned i = nends ? r->b % nends : 0;
	uint8_t buf[8192];

	if (!nends)
		return;
	switch (r->a % 6) {
	case 1:
	case 2:
		send(end[i], r->bytes, r->len, MSG_NOSIGNAL | MSG_DONTWAIT);
		break;
	case 3:
		while (recv(end[i], buf, sizeof(buf), MSG_DONTWAIT) > 0)
			;
		break;
	case 4: shutdown(end[i], r->a / 6 % 3); break;
	case 5: close(end[i]); end[i] = end[--nends];
	}
}

static void move_end(const struct mock_record *r)
{
	int fd = -1;

	if (r->a % 6) {
		pthread_mutex_lock(&end_lock);
		use_end(r);
		pthread_mutex_unlock(&end_lock);
	} else if (r->b & 1) {
		dial();
	} else if (!virtio_vsock_connect(m.dev, r->b % 5, &fd)) {
		add_end(fd);
	}
}

static void restore(const struct mock_record *r)
{
	struct state *w = state_writer(1), *s;
	const void *data;
	size_t len;

	virtio_pause(m.dev);
	m.dev->class->state(m.dev, w);
	data = state_data(w, &len);
	if (state_finish(w))
		abort();
	if (r->a & 1) {
		s = state_reader(data, len, 1);
		m.dev->class->state(m.dev, s);
		if (state_finish(s) || m.dev->class->check(m.dev))
			m.dev->class->reset(m.dev);
		state_free(s);
	}
	state_free(w);
	virtio_resume(m.dev);
}

static void expire(void)
{
	struct vsock *s = to_vsock(m.v);
	struct conn *c;

	pthread_mutex_lock(&m.dev->lock);
	TAILQ_FOREACH(c, &s->timed, timed_link)
	c->deadline = 1;
	s->gate_end = 0;
	s->timer_at = 0;
	vsock_program(s);
	pthread_mutex_unlock(&m.dev->lock);
}

static void play(const struct mock_record *r)
{
	switch (r->kind % 9) {
	case 0:
	case 1: from_driver(r); break;
	case 2: raw_from_driver(r); break;
	case 3: give_buffers(r, VSOCK_RX); break;
	case 4: give_buffers(r, VSOCK_EVENT); break;
	case 5:
	case 6: move_end(r); break;
	case 7: restore(r); break;
	case 8: expire(); break;
	}
	mock_turn(&m, true, 7);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_vsock_arg arg = { .timeout_ms = 1000, .max = 6 };

	if (size < 2)
		return 0;
	if (!mock_create(&m, &virtio_vsock_class, &arg) ||
	    virtio_vsock_listen(m.dev, LISTENED, on_accept, NULL))
		abort();
	/* The thread would race with this one for what it posts. */
	mock_start(&m, m.v->offered & ~VIRTIO_F_EVENT_IDX);
	mock_play(data, size, play);
	mock_destroy(&m);
	while (nends)
		close(end[--nends]);
	return 0;
}
