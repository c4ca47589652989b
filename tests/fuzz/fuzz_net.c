/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_net.c - a network device between a hostile driver and a hostile peer
 *
 * Byte 0: features; then records of a kind, two numbers and bytes: frames and
 * headers from the driver, commands, buffers, frames from the other end.
 */
#include <stdlib.h>
#include <string.h>

#include "mock/virtq_driver.h"
#include "vm/virtio/net.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *incoming;
static size_t incoming_len;
static unsigned refuse; /* this many frames are not taken at once */

static int end_send(struct link *l, const struct iovec *iov, int n)
{
	static uint8_t copy[LINK_HDR + LINK_FRAME_MAX];

	if (refuse && refuse--)
		return -11; /* EAGAIN */
	/* Every byte is there to be read. */
	link_copy_out(copy, iov, n, sizeof(copy));
	return 0;
}

static ssize_t end_recv(struct link *l, const struct iovec *iov, int n)
{
	size_t len = incoming_len;

	incoming_len = 0;
	return (ssize_t)link_copy_in(iov, n, incoming, len);
}

static int end_listen(struct link *l, bool on)
{
	return 0;
}

static int end_offload(struct link *l, uint32_t offload, unsigned hdr_len)
{
	return 0;
}

static const struct link_ops ops = {
	.name = "end",
	.send = end_send,
	.recv = end_recv,
	.listen = end_listen,
	.set_offload = end_offload,
};

static struct mock m;

/* A frame or a command in up to three pieces. */
static void from_driver(const struct mock_record *r, unsigned q, uint32_t extra)
{
	uint32_t len = r->len + extra, first = r->a < len ? r->a : len;

	memcpy(m.mem.bytes + MOCK_DATA, r->bytes, r->len);
	mock_desc(&m, q, 0, MOCK_DATA, first, DESC_NEXT, 1);
	mock_desc(&m, q, 1, MOCK_DATA + first, len - first, DESC_NEXT, 2);
	mock_desc(&m, q, 2, MOCK_DATA + 0x20000, 1, DESC_WRITE, 0);
	mock_offer(&m, q, 0);
}

static void play(const struct mock_record *r)
{
	unsigned pairs = m.v->accepted & NET_F_MQ ? VIRTIO_NET_PAIRS : 1;
	unsigned q = 2 * (r->b % pairs), n = m.v->class->nqueues;

	switch (r->kind % 7) {
	case 0: from_driver(r, q + 1, 0); break;
	case 1: /* a long frame; what follows is memory */
		from_driver(r, q + 1, r->b * 300u);
		break;
	case 2: from_driver(r, 2 * pairs, 0); break;
	case 3: /* buffers to receive in */
		mock_desc(&m, q, 0, MOCK_DATA + 0x30000, r->a,
			  DESC_WRITE | DESC_NEXT, 1);
		mock_desc(&m, q, 1, MOCK_DATA + 0x31000, r->b * 16u, DESC_WRITE,
			  0);
		for (unsigned i = 0; i < r->len % MOCK_QSIZE; i++)
			mock_offer(&m, q, 0);
		break;
	case 4: /* from the other end */
		pthread_mutex_lock(&m.dev->lock);
		incoming = r->bytes;
		incoming_len = r->len;
		pthread_mutex_unlock(&m.dev->lock);
		break;
	case 5: refuse = r->a; break;
	case 6: virtio_net_set_link(m.dev, r->a & 1); break;
	}
	mock_turn(&m, true, (uint32_t)BIT(n) - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct link l;
	struct virtio_net_arg arg = { .link = &l, .pairs = VIRTIO_NET_PAIRS };
	uint64_t features;

	if (size < 2)
		return 0;
	l = (struct link){ .ops = &ops, .mtu = 1500, .carrier = true };
	if (data[0] & 1)
		l.offers = LINK_CSUM | LINK_TSO4 | LINK_TSO6;
	incoming_len = refuse = 0;
	if (!mock_create(&m, &virtio_net_class, &arg))
		abort();
	features = m.v->offered;
	features &= data[0] & 2 ? ~(uint64_t)0 : ~NET_F_MQ;
	features &= data[0] & 4 ? ~(uint64_t)0 : ~NET_F_MRG_RXBUF;
	features &= data[0] & 8 ? ~(uint64_t)0 : ~NET_F_HOST_TSO4;
	/* The thread would race with this one for what it posts. */
	mock_start(&m, features & ~VIRTIO_F_EVENT_IDX);
	mock_play(data + 1, size - 1, play);
	mock_destroy(&m);
	return 0;
}
