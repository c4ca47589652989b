/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_net.c - the network device, its filters, offloads and saved state
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "mock/virtq_driver.h"
#include "vm/virtio/net.h"

/* -- a link that remembers ------------------------------------------------ */

enum { KEEP = 64 };

static struct {
	struct link l;
	pthread_mutex_t lock;
	uint8_t frame[KEEP][2048];
	size_t len[KEEP];
	unsigned sent;
	uint8_t in[65536];
	size_t in_len;
	bool full, listening;
	unsigned restored;
} end = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int end_send(struct link *l, const struct iovec *iov, int n)
{
	int ret = -EAGAIN;

	pthread_mutex_lock(&end.lock);
	if (!end.full) {
		end.len[end.sent % KEEP] = link_iov_len(iov, n);
		link_copy_out(end.frame[end.sent % KEEP], iov, n, 2048);
		end.sent++;
		ret = 0;
	}
	pthread_mutex_unlock(&end.lock);
	return ret;
}

static ssize_t end_recv(struct link *l, const struct iovec *iov, int n)
{
	size_t len;

	pthread_mutex_lock(&end.lock);
	len = end.in_len;
	link_copy_in(iov, n, end.in, len);
	end.in_len = 0;
	pthread_mutex_unlock(&end.lock);
	return (ssize_t)len;
}

static int end_listen(struct link *l, bool on)
{
	end.listening = on;
	return 0;
}

static void end_restored(struct link *l)
{
	end.restored++;
}

static const struct link_ops end_ops = {
	.name = "end",
	.send = end_send,
	.recv = end_recv,
	.listen = end_listen,
	.restored = end_restored,
};

static struct mock m;
static const uint8_t mac[6] = { 2, 0, 0, 0, 0, 1 };

static void plug(unsigned pairs)
{
	struct virtio_net_arg arg = { .link = &end.l, .pairs = pairs };

	end.l = (struct link){ .ops = &end_ops, .mtu = 1500, .carrier = true };
	end.sent = end.restored = 0;
	end.in_len = 0;
	end.full = false;
	memcpy(arg.mac, mac, 6);
	assert_true(mock_create(&m, &virtio_net_class, &arg));
}

static unsigned sent(void)
{
	unsigned n;

	pthread_mutex_lock(&end.lock);
	n = end.sent;
	pthread_mutex_unlock(&end.lock);
	return n;
}

static void inject(const void *frame, size_t len)
{
	pthread_mutex_lock(&end.lock);
	memcpy(end.in, frame, len);
	end.in_len = len;
	pthread_mutex_unlock(&end.lock);
	link_ready(&end.l);
}

/* Until the device's thread has looked at everything there is. */
static void settle(void)
{
	for (unsigned i = 0; i < 1000; i++) {
		pthread_mutex_lock(&end.lock);
		if (!end.in_len) {
			pthread_mutex_unlock(&end.lock);
			break;
		}
		pthread_mutex_unlock(&end.lock);
		usleep(1000);
	}
	pthread_mutex_lock(&m.dev->lock);
	pthread_mutex_unlock(&m.dev->lock);
}

static void post_frame(unsigned q, const struct net_hdr *h, const void *frame,
		       uint32_t len)
{
	memcpy(m.mem.bytes + MOCK_DATA, h, LINK_HDR);
	memcpy(m.mem.bytes + MOCK_DATA + LINK_HDR, frame, len);
	mock_desc(&m, q, 0, MOCK_DATA, LINK_HDR + len, 0, 0);
	mock_post(&m, q, 0);
}

static bool send_from_guest(const struct net_hdr *h, const void *frame,
			    uint32_t len)
{
	uint16_t before = mock_used(&m, 1);

	post_frame(1, h, frame, len);
	return mock_wait(&m, 1, before + 1);
}

/* -- checksums by the letter of RFC 1071 ---------------------------------- */

static uint32_t add_words(const uint8_t *p, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
	return sum;
}

static bool sums_to_ones(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* -- frames --------------------------------------------------------------- */

enum { V4_TCP = 34, V6_TCP = 54 };

/* An Ethernet frame with a TCP segment of n bytes, without checksums. */
static size_t tcp_frame(uint8_t *f, bool v6, size_t n)
{
	size_t tcp = v6 ? V6_TCP : V4_TCP, len = tcp + 20 + n;

	memset(f, 0, len);
	memcpy(f, mac, 6);
	f[12] = v6 ? 0x86 : 0x08;
	f[13] = v6 ? 0xdd : 0x00;
	f[14] = v6 ? 0x60 : 0x45;
	f[v6 ? 20 : 23] = 6;
	for (size_t i = v6 ? 22 : 26; i < tcp; i++)
		f[i] = (uint8_t)(i * 7);
	if (!v6)
		f[18] = 0xff, f[19] = 0xff; /* the next id wraps */
	memset(f + tcp + 4, 0xff, 3);
	f[tcp + 7] = 0xf0;
	f[tcp + 12] = 0x50;
	f[tcp + 13] = 0x80 | 0x10 | 0x08 | 0x01; /* CWR ACK PSH FIN */
	for (size_t i = 0; i < n; i++)
		f[tcp + 20 + i] = (uint8_t)(i * 13 + i / 256);
	return len;
}

static struct net_hdr tso(bool v6, uint16_t size)
{
	return (struct net_hdr){
		.flags = HDR_NEEDS_CSUM,
		.gso_type = v6 ? GSO_TCPV6 : GSO_TCPV4,
		.gso_size = size,
		.csum_start = v6 ? V6_TCP : V4_TCP,
		.csum_offset = 16,
	};
}

static void check_segment(const uint8_t *f, size_t len, bool v6, uint32_t at,
			  size_t n, bool last, unsigned index)
{
	size_t tcp = v6 ? V6_TCP : V4_TCP;
	uint32_t seq = 0xfffffff0u + at;

	assert_int_equal(len, tcp + 20 + n);
	if (v6) {
		assert_int_equal(f[18] << 8 | f[19], 20 + n);
		assert_true(sums_to_ones(add_words(f + 22, 32) + 6 + 20 +
					 (uint32_t)n +
					 add_words(f + tcp, 20 + n)));
	} else {
		assert_int_equal(f[16] << 8 | f[17], 40 + n);
		assert_int_equal(f[18] << 8 | f[19], (0xffff + index) & 0xffff);
		assert_true(sums_to_ones(add_words(f + 14, 20)));
		assert_true(sums_to_ones(add_words(f + 26, 8) + 6 + 20 +
					 (uint32_t)n +
					 add_words(f + tcp, 20 + n)));
	}
	assert_int_equal((uint32_t)f[tcp + 4] << 24 | f[tcp + 5] << 16 |
				 f[tcp + 6] << 8 | f[tcp + 7],
			 seq);
	assert_int_equal(f[tcp + 13],
			 0x10 | (index ? 0 : 0x80) | (last ? 0x09 : 0));
	for (size_t i = 0; i < n; i++)
		assert_int_equal(f[tcp + 20 + i],
				 (uint8_t)((at + i) * 13 + (at + i) / 256));
}

/* -- from the guest ------------------------------------------------------- */

static void sends_frames(void **state)
{
	uint8_t f[200];
	struct net_hdr h = { 0 };

	plug(1);
	mock_start(&m, 0);
	tcp_frame(f, false, 100);
	assert_true(send_from_guest(&h, f, 154));
	assert_int_equal(sent(), 1);
	assert_int_equal(end.len[0], 154);
	assert_memory_equal(end.frame[0], f, 154);
	/* Nothing was negotiated: a request for a checksum is not obeyed. */
	h = tso(false, 50);
	h.gso_type = GSO_NONE;
	assert_true(send_from_guest(&h, f, 154));
	assert_memory_equal(end.frame[1], f, 154);
	mock_destroy(&m);
}

static void fills_checksums(void **state)
{
	struct net_hdr h = tso(false, 0);
	uint8_t f[200], *tcp = end.frame[0] + V4_TCP;
	size_t len = tcp_frame(f, false, 101);

	plug(1);
	mock_start(&m, NET_F_CSUM);
	h.gso_type = GSO_NONE;
	/* What the driver leaves in the field: the pseudo header's sum. */
	f[V4_TCP + 16] = 0x12;
	assert_true(send_from_guest(&h, f, (uint32_t)len));
	assert_true(sums_to_ones(add_words(tcp, 121) + 0x1200));
	h.csum_start = (uint16_t)(len - 1); /* one byte beyond */
	h.csum_offset = 0;
	assert_true(send_from_guest(&h, f, (uint32_t)len));
	assert_int_equal(sent(), 1);
	mock_destroy(&m);
}

static void segments_tcp(void **state)
{
	static uint8_t f[65600];

	for (int v6 = 0; v6 < 2; v6++) {
		struct net_hdr h = tso(v6, 1000);
		size_t len = tcp_frame(f, v6, 4500);

		plug(1);
		mock_start(&m, NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6);
		assert_true(send_from_guest(&h, f, (uint32_t)len));
		assert_int_equal(sent(), 5);
		for (unsigned i = 0; i < 5; i++)
			check_segment(end.frame[i], end.len[i], v6, i * 1000,
				      i == 4 ? 500 : 1000, i == 4, i);
		mock_destroy(&m);
	}
}

static void refuses_bad_offloads(void **state)
{
	static uint8_t f[65600];
	size_t len = tcp_frame(f, false, 3000);
	struct net_hdr good = tso(false, 1000), h;

	plug(1);
	mock_start(&m, NET_F_CSUM | NET_F_HOST_TSO4);
#define DROPPED(change) \
	do { \
		h = good; \
		change; \
		assert_true(send_from_guest(&h, f, (uint32_t)len)); \
		assert_int_equal(sent(), 0); \
	} while (0)
	DROPPED(h.gso_size = 0);
	DROPPED(h.gso_size = 1);	 /* 3000 frames for one */
	DROPPED(h.gso_type = GSO_TCPV6); /* not negotiated */
	DROPPED(h.gso_type = 3);
	DROPPED(h.gso_type = 0x7f);
	DROPPED(h.flags = 0);
	DROPPED(h.csum_start = 0);
	DROPPED(h.csum_start = 35);
	DROPPED(h.csum_start = 65535);
	DROPPED(h.csum_offset = 6);
	DROPPED(h.csum_offset = 65535);
	DROPPED(f[12] = 0x86); /* not IPv4 */
	f[12] = 0x08;
	DROPPED(f[14] = 0x4f); /* a longer header than TCP's place says */
	f[14] = 0x45;
	DROPPED(f[V4_TCP + 12] = 0x40);
	DROPPED(f[V4_TCP + 12] = 0xf0; len = V4_TCP + 60);
#undef DROPPED
	/* Longer than a frame can be; shorter than its header. */
	mock_desc(&m, 1, 0, MOCK_DATA, LINK_HDR + LINK_FRAME_MAX + 1, 0, 0);
	mock_post(&m, 1, 0);
	assert_true(mock_wait(&m, 1, 16));
	assert_int_equal(sent(), 0);
	mock_desc(&m, 1, 0, MOCK_DATA, LINK_HDR - 1, 0, 0);
	mock_post(&m, 1, 0);
	assert_false(mock_wait(&m, 1, 17));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	mock_destroy(&m);
}

static void waits_for_a_full_link(void **state)
{
	struct net_hdr h = { 0 };
	uint8_t f[60] = { 0 };

	plug(1);
	mock_start(&m, 0);
	end.full = true;
	post_frame(1, &h, f, 60);
	usleep(20000);
	assert_int_equal(mock_used(&m, 1), 0);
	pthread_mutex_lock(&end.lock);
	end.full = false;
	pthread_mutex_unlock(&end.lock);
	link_ready(&end.l);
	assert_true(mock_wait(&m, 1, 1));
	assert_int_equal(sent(), 1);
	mock_destroy(&m);
}

/* -- to the guest --------------------------------------------------------- */

static void merges_buffers(void **state)
{
	uint8_t f[3000], *data = m.mem.bytes + MOCK_DATA;
	struct net_hdr h;

	for (size_t i = 0; i < sizeof(f); i++)
		f[i] = (uint8_t)(i * 3);
	memcpy(f, mac, 6);
	plug(1);
	mock_start(&m, NET_F_MRG_RXBUF);
	/* The first one splits its header between two pieces. */
	mock_desc(&m, 0, 0, MOCK_DATA, 11, DESC_WRITE | DESC_NEXT, 1);
	mock_desc(&m, 0, 1, MOCK_DATA + 11, 1013, DESC_WRITE, 0);
	mock_desc(&m, 0, 2, MOCK_DATA + 1024, 1024, DESC_WRITE, 0);
	mock_desc(&m, 0, 3, MOCK_DATA + 2048, 1024, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	mock_post(&m, 0, 2);
	/* Not enough: nothing is seen until there is. */
	inject(f, sizeof(f));
	settle();
	usleep(10000);
	assert_int_equal(mock_used(&m, 0), 0);
	mock_post(&m, 0, 3);
	assert_true(mock_wait(&m, 0, 3));
	assert_int_equal(mock_used_len(&m, 0, 0), 1024);
	assert_int_equal(mock_used_len(&m, 0, 1), 1024);
	assert_int_equal(mock_used_len(&m, 0, 2), 3012 - 2048);
	memcpy(&h, data, sizeof(h));
	assert_int_equal(h.num_buffers, 3);
	assert_int_equal(h.flags | h.gso_type, 0);
	assert_memory_equal(data + LINK_HDR, f, sizeof(f));
	mock_destroy(&m);
}

static void without_merging(void **state)
{
	uint8_t f[1000] = { 2, 0, 0, 0, 0, 1 };

	plug(1);
	mock_start(&m, 0);
	mock_desc(&m, 0, 0, MOCK_DATA, 600, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	inject(f, 1000); /* lost */
	settle();
	inject(f, 588);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(mock_used_len(&m, 0, 0), 600);
	mock_desc(&m, 0, 0, MOCK_DATA, 11, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	inject(f, 60);
	assert_false(mock_wait(&m, 0, 2));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	mock_destroy(&m);
}

/* -- control -------------------------------------------------------------- */

static uint8_t command(unsigned q, uint8_t class, uint8_t cmd, const void *data,
		       uint32_t len)
{
	uint8_t *p = m.mem.bytes + MOCK_DATA + 0x8000;
	uint16_t before = mock_used(&m, q);

	p[0] = class;
	p[1] = cmd;
	memcpy(p + 2, data, len);
	p[512] = 0xee;
	mock_desc(&m, q, 0, MOCK_DATA + 0x8000, 2 + len, DESC_NEXT, 1);
	mock_desc(&m, q, 1, MOCK_DATA + 0x8000 + 512, 1, DESC_WRITE, 0);
	mock_post(&m, q, 0);
	assert_true(mock_wait(&m, q, before + 1));
	return p[512];
}

static bool passes(const uint8_t *f, size_t len)
{
	bool yes;

	pthread_mutex_lock(&m.dev->lock);
	yes = net_ctl_passes(to_net(m.dev), f, len);
	pthread_mutex_unlock(&m.dev->lock);
	return yes;
}

#define CTL \
	(NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_RX_EXTRA | \
	 NET_F_CTRL_VLAN | NET_F_CTRL_MAC_ADDR | NET_F_GUEST_ANNOUNCE)

static void filters(void **state)
{
	uint8_t own[60] = { 2, 0, 0, 0, 0, 1 };
	uint8_t other[60] = { 2, 0, 0, 0, 0, 9 };
	uint8_t group[60] = { 0x33, 0x33, 0, 0, 0, 1 };
	uint8_t all[60] = { 255, 255, 255, 255, 255, 255 };
	uint8_t tagged[60] = { 2, 0, 0, 0, 0, 1 };
	uint8_t table[] = { 1, 0, 0, 0, 2,    0,    0, 0, 0, 9,
			    1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1 };
	uint8_t many[4 + 6 * 80 + 4] = { 80 };

	tagged[12] = 0x81;
	tagged[15] = 100;
	plug(1);
	mock_start(&m, CTL);
	assert_true(passes(other, 60)); /* nobody filters yet */
	assert_int_equal(command(2, 0, 0, "\0", 1), 0);
	assert_true(passes(own, 60) && passes(all, 60));
	assert_false(passes(other, 60) || passes(group, 60));
	assert_false(passes(own, 13));
	assert_int_equal(command(2, 0, 1, "\1", 1), 0); /* allmulti */
	assert_true(passes(group, 60));
	assert_int_equal(command(2, 0, 1, "\0", 1), 0);
	assert_int_equal(command(2, 1, 0, table, sizeof(table)), 0);
	assert_true(passes(other, 60) && passes(group, 60));
	assert_int_equal(command(2, 0, 5, "\1", 1), 0); /* no broadcast */
	assert_false(passes(all, 60));
	assert_int_equal(command(2, 1, 0, "\0\0\0\0\0\0\0", 8), 0);
	assert_false(passes(other, 60) || passes(group, 60));
	assert_int_equal(command(2, 1, 0, many, sizeof(many)), 0);
	assert_true(passes(other, 60)); /* more than we keep */
	/* VLAN: none until added. */
	assert_false(passes(tagged, 60));
	assert_int_equal(command(2, 2, 0, "\144\0", 2), 0);
	assert_true(passes(tagged, 60));
	assert_int_equal(command(2, 2, 1, "\144\0", 2), 0);
	assert_false(passes(tagged, 60));
	assert_int_equal(command(2, 1, 1, "\2\0\0\0\0\7", 6), 0);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 5, 1), 7);
	/* What is wrong is refused, and nothing half done. */
	assert_int_equal(command(2, 1, 0, "\377\377\377\377", 4), 1);
	assert_int_equal(command(2, 1, 0, table, 14), 1);
	assert_true(passes(other, 60));
	assert_int_equal(command(2, 2, 0, "\0\20", 2), 1);
	assert_int_equal(command(2, 0, 9, "\1", 1), 1);
	assert_int_equal(command(2, 0, 0, "", 0), 1);
	assert_int_equal(command(2, 4, 0, "\1\0", 2), 1); /* MQ is not there */
	assert_int_equal(command(2, 99, 0, "\1", 1), 1);
	mock_start(&m, CTL); /* a new driver begins anew */
	assert_true(passes(other, 60));
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 5, 1), 1);
	mock_destroy(&m);
}

static void many_queues(void **state)
{
	struct net_hdr h = { 0 };
	uint8_t f[200];
	size_t len = tcp_frame(f, false, 100);

	plug(4);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 8, 2), 4);
	mock_start(&m, CTL | NET_F_MQ);
	assert_int_equal(command(8, 4, 0, "\0\0", 2), 1);
	assert_int_equal(command(8, 4, 0, "\5\0", 2), 1);
	assert_int_equal(command(8, 4, 0, "\4\0", 2), 0);
	/* An answer comes back where its flow was sent. */
	post_frame(5, &h, f, (uint32_t)len);
	assert_true(mock_wait(&m, 5, 1));
	for (unsigned q = 0; q < 8; q += 2) {
		mock_desc(&m, q, 0, MOCK_DATA + 0x1000 * q, 2000, DESC_WRITE,
			  0);
		mock_post(&m, q, 0);
	}
	inject(f, len);
	assert_true(mock_wait(&m, 4, 1));
	assert_int_equal(mock_used(&m, 0) + mock_used(&m, 2) + mock_used(&m, 6),
			 0);
	assert_int_equal(command(8, 4, 0, "\1\0", 2), 0);
	inject(f, len);
	assert_true(mock_wait(&m, 0, 1));
	mock_destroy(&m);
}

static void cable_is_pulled(void **state)
{
	uint8_t f[60] = { 2, 0, 0, 0, 0, 1 };
	struct net_hdr h = { 0 };

	plug(1);
	mock_start(&m, NET_F_STATUS);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 1);
	virtio_net_set_link(m.dev, false);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 0);
	assert_true(send_from_guest(&h, f, 60));
	assert_int_equal(sent(), 0);
	virtio_net_set_link(m.dev, true);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 1);
	/* The other end goes away. */
	link_set_carrier(&end.l, false, NULL);
	for (unsigned i = 0; i < 1000; i++) {
		if (!virtio_pci_read(m.v, VPCI_DEVICE + 6, 2))
			break;
		usleep(1000);
	}
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 0);
	mock_destroy(&m);
	assert_false(end.listening);
}

/* -- saved state ---------------------------------------------------------- */

static const void *save(struct state **w, size_t *len)
{
	virtio_pause(m.dev);
	assert_false(end.listening);
	*w = state_writer(1);
	virtio_net_class.dev.state(m.dev, *w);
	assert_int_equal(state_finish(*w), 0);
	return state_data(*w, len);
}

static int load(const void *data, size_t len)
{
	struct state *r = state_reader(data, len, 1);
	int ret;

	virtio_net_class.dev.state(m.dev, r);
	ret = state_finish(r);
	if (!ret)
		ret = virtio_net_class.dev.check(m.dev);
	state_free(r);
	return ret;
}

static void survives_restore(void **state)
{
	uint8_t own[60] = { 2, 0, 0, 0, 0, 1 };
	uint8_t other[60] = { 2, 0, 0, 0, 0, 9 };
	struct net_hdr h = { 0 };
	struct state *w;
	const void *data;
	size_t len;

	plug(4);
	mock_start(&m, CTL | NET_F_MQ);
	assert_int_equal(command(8, 0, 0, "\0", 1), 0);
	assert_int_equal(command(8, 4, 0, "\3\0", 2), 0);
	assert_true(send_from_guest(&h, own, 60));
	data = save(&w, &len);
	virtio_resume(m.dev); /* just a pause: no announcement */
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 1);
	assert_int_equal(end.restored, 0);
	virtio_pause(m.dev);
	virtio_reset(m.dev);
	assert_true(passes(other, 60));
	assert_int_equal(load(data, len), 0);
	virtio_resume(m.dev);
	assert_int_equal(end.restored, 1);
	assert_int_equal(to_net(m.dev)->in_use, 3);
	assert_true(passes(own, 60) && !passes(other, 60));
	/* Tell the neighbours, until the driver says that it did. */
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 3);
	assert_int_equal(command(8, 3, 0, "", 0), 0);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 6, 2), 1);
	assert_true(send_from_guest(&h, own, 60));
	assert_int_equal(sent(), 2);
	state_free(w);
	mock_destroy(&m);
}

static void rejects_bad_state(void **state)
{
	struct net *n;
	struct state *w;
	const void *data;
	size_t len;

	for (unsigned i = 0; i < 5; i++) {
		plug(4);
		mock_start(&m, CTL | NET_F_MQ);
		virtio_pause(m.dev);
		n = to_net(m.dev);
		switch (i) {
		case 0: n->in_use = 0; break;
		case 1: n->in_use = 5; break;
		case 2: n->uni.n = NET_MACS + 1; break;
		case 3: n->offloads = NET_F_GUEST_TSO4; break;
		case 4: n->v.config[NET_C_PAIRS] = 2; break;
		}
		data = save(&w, &len);
		virtio_reset(m.dev);
		assert_int_not_equal(load(data, len), 0);
		state_free(w);
		mock_destroy(&m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sends_frames),
		cmocka_unit_test(fills_checksums),
		cmocka_unit_test(segments_tcp),
		cmocka_unit_test(refuses_bad_offloads),
		cmocka_unit_test(waits_for_a_full_link),
		cmocka_unit_test(merges_buffers),
		cmocka_unit_test(without_merging),
		cmocka_unit_test(filters),
		cmocka_unit_test(many_queues),
		cmocka_unit_test(cable_is_pulled),
		cmocka_unit_test(survives_restore),
		cmocka_unit_test(rejects_bad_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
