/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.c - virtio network device: frames between the driver and a link
 *
 * The driver may leave checksums and TCP segments to us whatever the link can
 * do: a tap gets them as they are, for others they are made here, which costs
 * a guest far more.  A frame is copied out of guest memory once and looked at
 * only in the copy.  When the link is full the driver's frame stays in its
 * queue; when no receive buffer is left the link's frame stays with us.
 */
#include "vm/virtio/net.h"

#include <errno.h>
#include <string.h>

#include "husk/vm.h"
#include "vm/virtio/virtq.h"

enum { TURN = 256 }; /* frames, before others get the device's lock */

static uint64_t rx_queue(unsigned pair)
{
	return 2ull * pair;
}

/* The control queue is behind the pairs that the driver may use. */
static unsigned ctl_queue(const struct net *n)
{
	return n->v.accepted & NET_F_MQ ? 2 * n->pairs : 2;
}

static unsigned pairs_of(const struct net *n)
{
	return n->v.accepted & NET_F_MQ ? n->pairs : 1;
}

/* -- flows ---------------------------------------------------------------- */

/* Addresses and ports, the same in both directions; 0: none. */
static unsigned flow_of(const uint8_t *f, size_t len)
{
	uint32_t a, b, ports = 0, sum;
	uint16_t p, q;

	if (len < 38 || f[12] != 0x08 || f[13] != 0x00)
		return 0;
	memcpy(&a, f + 26, 4);
	memcpy(&b, f + 30, 4);
	if ((f[14] & 15) == 5 && (f[23] == 6 || f[23] == 17)) {
		memcpy(&p, f + 34, 2);
		memcpy(&q, f + 36, 2);
		ports = (uint32_t)p + q;
	}
	sum = (a + b + ports) * 2654435761u;
	return sum >> 24;
}

/* -- from the guest ------------------------------------------------------- */

/* Negotiated GSO types, as offload_valid() wants them. */
static uint32_t gso_types(const struct net *n)
{
	return (n->v.accepted & NET_F_HOST_TSO4 ? BIT(GSO_TCPV4) : 0) |
	       (n->v.accepted & NET_F_HOST_TSO6 ? BIT(GSO_TCPV6) : 0);
}

struct burst {
	struct net *n;
	int ret;
	unsigned sent;
};

static void send_one(void *opaque, uint8_t *frame, size_t len)
{
	struct burst *b = opaque;
	struct iovec iov = { frame, len };
	int ret;

	/* The rest of a burst that got stuck in its middle is lost. */
	if (b->ret)
		return;
	ret = b->n->link->ops->send(b->n->link, &iov, 1);
	if (ret == -EAGAIN && b->sent)
		ret = -ENOBUFS;
	b->ret = ret;
	b->sent++;
}

/* -EAGAIN: the link is full. */
static int send_frame(struct net *n, struct net_hdr *h, size_t len)
{
	struct burst b = { .n = n };
	struct iovec iov[2] = { { h, LINK_HDR }, { n->tx, len } };

	if (n->hdr_len) {
		h->num_buffers = 0;
		return n->link->ops->send(n->link, iov, 2);
	}
	if (h->gso_type & ~GSO_ECN) {
		offload_segment(h, n->tx, len, send_one, &b);
	} else {
		offload_csum(h, n->tx, len);
		send_one(&b, n->tx, len);
	}
	return b.ret == -EAGAIN ? -EAGAIN : 0;
}

/* The rest of iov behind its first off bytes, flat. */
static size_t copy_rest(uint8_t *to, const struct virtq_chain *c, size_t off,
			size_t room)
{
	size_t done = 0;

	for (unsigned i = 0; i < c->nreadable && done < room; i++) {
		size_t len = c->readable[i].iov_len, skip = MIN(off, len);
		size_t part = MIN(len - skip, room - done);

		memcpy(to + done, (uint8_t *)c->readable[i].iov_base + skip,
		       part);
		off -= skip;
		done += part;
	}
	return done;
}

static int transmit_one(struct net *n, unsigned pair,
			const struct virtq_chain *chain)
{
	size_t total = link_iov_len(chain->readable, (int)chain->nreadable);
	struct net_hdr h;
	size_t len;

	if (total < LINK_HDR)
		return virtio_broken(&n->v, "a frame of %zu bytes", total);
	/* What no cable carries is lost, not our trouble. */
	if (total > LINK_HDR + LINK_FRAME_MAX || !n->up ||
	    !link_carrier(n->link))
		return 0;
	link_copy_out(&h, chain->readable, (int)chain->nreadable, LINK_HDR);
	len = copy_rest(n->tx, chain, LINK_HDR, sizeof(n->tx));
	if (!(n->v.accepted & NET_F_CSUM))
		h.flags &= (uint8_t)~HDR_NEEDS_CSUM;
	h.flags &= HDR_NEEDS_CSUM;
	if (!(n->v.accepted & NET_F_HOST_ECN))
		h.gso_type &= (uint8_t)~GSO_ECN;
	if (!offload_valid(&h, n->tx, len, len, gso_types(n)))
		return 0;
	if (pairs_of(n) > 1)
		n->flow[flow_of(n->tx, len)] = (uint8_t)pair;
	return send_frame(n, &h, len);
}

static void transmit(struct net *n, unsigned pair)
{
	struct virtq *q = n->v.queue[rx_queue(pair) + 1];
	struct virtq_chain chain;
	unsigned frames = 0;

	while (virtq_pop(q, &chain) > 0) {
		int ret = transmit_one(n, pair, &chain);

		if (ret == -EAGAIN) {
			virtq_unpop(q, 1);
			n->busy = true;
			break;
		}
		if (ret)
			break;
		virtq_push(q, &chain, 0);
		if (++frames == TURN) {
			virtq_ring(q);
			break;
		}
	}
	virtq_flush(q);
}

/* -- to the guest --------------------------------------------------------- */

static unsigned pair_for(const struct net *n, const uint8_t *frame, size_t len)
{
	unsigned pair = n->flow[flow_of(frame, len)];

	return pair < n->in_use ? pair : 0;
}

/* The driver may split a header as it likes.  off is inside. */
static uint8_t *byte_of(const struct virtq_chain *c, size_t off)
{
	unsigned i = 0;

	while (off >= c->writable[i].iov_len)
		off -= c->writable[i++].iov_len;
	return (uint8_t *)c->writable[i].iov_base + off;
}

/*
 * The frame with its header, len bytes, into as many buffers as it needs.
 * 1: done or lost; 0: not enough buffers; < 0: broken.
 */
static int fill_buffers(struct net *n, struct virtq *q, uint32_t len)
{
	bool mergeable = n->v.accepted & NET_F_MRG_RXBUF;
	uint8_t *count[2] = { NULL, NULL }; /* num_buffers, in the guest */
	uint32_t done = 0;
	uint16_t used = 0;
	struct virtq_chain c;
	int ret;

	while (done < len) {
		uint32_t room, part;

		ret = virtq_pop(q, &c);
		if (ret < 0)
			return ret;
		if (!ret || used == q->size) {
			virtq_unpop(q, used + (ret ? 1u : 0));
			return 0;
		}
		room = (uint32_t)MIN(link_iov_len(c.writable, (int)c.nwritable),
				     (size_t)UINT32_MAX);
		if (room < (used ? 1 : LINK_HDR))
			return virtio_broken(
				&n->v, "a receive buffer of %u bytes", room);
		if (!mergeable && room < len) {
			virtq_unpop(q, 1);
			return 1; /* longer than the driver can take */
		}
		part = MIN(room, len - done);
		link_copy_in(c.writable, (int)c.nwritable, n->rx + done, part);
		if (!used) {
			count[0] = byte_of(&c, offsetof(struct net_hdr,
							num_buffers));
			count[1] = byte_of(&c, LINK_HDR - 1);
		}
		virtq_fill(q, &c, part, used++);
		done += part;
	}
	*count[0] = (uint8_t)used;
	*count[1] = (uint8_t)(used >> 8);
	virtq_publish(q, used);
	return 1;
}

/* What the link gave, in the driver's terms.  false: not for the driver. */
static bool dress(struct net *n, size_t got)
{
	uint8_t *frame = n->rx + LINK_HDR;
	struct net_hdr h = { 0 };

	if (!n->up || got < LINK_HDR || got > sizeof(n->rx) ||
	    !net_ctl_passes(n, frame, got - LINK_HDR))
		return false;
	if (n->hdr_len)
		memcpy(&h, n->rx, LINK_HDR);
	else if (n->link->trusted && n->offloads & NET_F_GUEST_CSUM)
		h.flags = HDR_DATA_VALID;
	h.num_buffers = 1;
	memcpy(n->rx, &h, LINK_HDR);
	return true;
}

/* 0: there is none. */
static size_t next_frame(struct net *n)
{
	struct iovec iov = { n->rx, sizeof(n->rx) };
	ssize_t got;

	if (!n->hdr_len) {
		iov.iov_base = n->rx + LINK_HDR;
		iov.iov_len -= LINK_HDR;
	}
	got = n->link->ops->recv(n->link, &iov, 1);
	if (got <= 0)
		return 0;
	return (size_t)got + (n->hdr_len ? 0 : LINK_HDR);
}

static void receive(struct net *n)
{
	uint32_t used = 0;
	unsigned frames;

	for (frames = 0; frames < TURN; frames++) {
		size_t len = n->held;
		unsigned pair;
		int ret;

		if (!len) {
			len = next_frame(n);
			if (!len)
				break;
			if (!dress(n, len))
				continue;
		}
		pair = pair_for(n, n->rx + LINK_HDR, len - LINK_HDR);
		n->held = (uint32_t)len;
		ret = fill_buffers(n, n->v.queue[rx_queue(pair)],
				   (uint32_t)len);
		if (ret <= 0)
			break;
		n->held = 0;
		used |= 1u << pair;
	}
	if (frames == TURN)
		virtio_wake(&n->v);
	for (unsigned i = 0; i < pairs_of(n); i++)
		if (used & 1u << i)
			virtq_flush(n->v.queue[rx_queue(i)]);
}

/* -- the link ------------------------------------------------------------- */

static void show_status(struct net *n)
{
	uint8_t *status = n->v.config + NET_C_STATUS;
	bool up = n->up && link_carrier(n->link);

	if (up == !!(*status & NET_S_UP))
		return;
	*status ^= NET_S_UP;
	dev_news(&n->v.dev, VM_NEWS_LINK, up);
	virtio_config_changed(&n->v);
}

void virtio_net_set_link(struct dev *dev, bool up)
{
	struct net *n = to_net(dev);

	pthread_mutex_lock(&dev->lock);
	n->up = up;
	show_status(n);
	pthread_mutex_unlock(&dev->lock);
}

static void link_is_ready(void *nic)
{
	virtio_wake(nic);
}

static void net_work(struct virtio *v)
{
	struct net *n = to_net(&v->dev);

	show_status(n);
	if (n->busy) {
		n->busy = false;
		for (unsigned i = 0; i < pairs_of(n); i++)
			transmit(n, i);
	}
	receive(n);
}

static void net_kick(struct virtio *v, struct virtq *q)
{
	struct net *n = to_net(&v->dev);

	if (q->index == ctl_queue(n)) {
		if (v->accepted & NET_F_CTRL_VQ)
			net_ctl_kick(n, q);
	} else if (q->index >= 2 * pairs_of(n)) {
		return;
	} else if (q->index & 1) {
		transmit(n, q->index / 2);
	} else {
		receive(n);
	}
}

/* -- life ----------------------------------------------------------------- */

void net_apply_offloads(struct net *n)
{
	uint32_t on = 0;

	if (!n->link->ops->set_offload)
		return;
	on |= n->offloads & NET_F_GUEST_CSUM ? LINK_CSUM : 0;
	on |= n->offloads & NET_F_GUEST_TSO4 ? LINK_TSO4 : 0;
	on |= n->offloads & NET_F_GUEST_TSO6 ? LINK_TSO6 : 0;
	n->link->ops->set_offload(n->link, on & n->link->offers, LINK_HDR);
}

static int net_start(struct virtio *v)
{
	struct net *n = to_net(&v->dev);
	uint8_t *status = v->config + NET_C_STATUS;

	if (n->fresh)
		n->offloads = v->accepted & NET_GUEST_OFFLOADS;
	n->fresh = false;
	n->hdr_len = n->link->offers ? LINK_HDR : 0;
	net_apply_offloads(n);
	n->busy = false;
	if (n->restored && n->link->ops->restored)
		n->link->ops->restored(n->link);
	if (n->restored && v->accepted & NET_F_GUEST_ANNOUNCE) {
		*status |= NET_S_ANNOUNCE;
		virtio_config_changed(v);
	}
	n->restored = false;
	show_status(n);
	return n->link->ops->listen(n->link, true);
}

static void net_stop(struct virtio *v)
{
	struct net *n = to_net(&v->dev);

	n->link->ops->listen(n->link, false);
}

/* What a driver asked for ends with it. */
static void net_forget(struct virtio *v)
{
	struct net *n = to_net(&v->dev);

	net_ctl_reset(n);
	n->fresh = true;
	n->restored = false;
	n->offloads = 0;
	n->held = 0;
	memset(n->flow, 0, sizeof(n->flow));
	memcpy(v->config + NET_C_MAC, n->mac, 6);
	v->config[NET_C_STATUS] &= (uint8_t)~NET_S_ANNOUNCE;
}

static int net_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	const struct virtio_net_arg *a = arg;
	struct net *n = to_net(dev);
	uint16_t pairs, mtu;
	int ret;

	n->link = a->link;
	n->pairs = MIN(MAX(a->pairs, 1u), (unsigned)VIRTIO_NET_PAIRS);
	n->up = true;
	n->v.offered = NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_MAC |
		       NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN |
		       NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ |
		       NET_F_CTRL_RX | NET_F_CTRL_VLAN | NET_F_CTRL_RX_EXTRA |
		       NET_F_GUEST_ANNOUNCE | NET_F_CTRL_MAC_ADDR |
		       NET_F_CTRL_GUEST_OFFLOADS;
	if (n->link->offers & LINK_TSO4)
		n->v.offered |= NET_F_GUEST_TSO4 | NET_F_GUEST_ECN;
	if (n->link->offers & LINK_TSO6)
		n->v.offered |= NET_F_GUEST_TSO6 | NET_F_GUEST_ECN;
	if (n->pairs > 1)
		n->v.offered |= NET_F_MQ;
	/* A driver takes it for the most there can be, so not a guess. */
	if (n->link->mtu)
		n->v.offered |= NET_F_MTU;
	ret = virtio_init(&n->v, err);
	if (ret)
		return ret;
	pairs = (uint16_t)n->pairs;
	mtu = (uint16_t)n->link->mtu;
	memcpy(n->mac, a->mac, 6);
	memcpy(n->v.config + NET_C_PAIRS, &pairs, 2);
	memcpy(n->v.config + NET_C_MTU, &mtu, 2);
	n->v.config[NET_C_STATUS] = link_carrier(n->link) ? NET_S_UP : 0;
	net_forget(&n->v);
	n->link->ready = link_is_ready;
	n->link->nic = &n->v;
	return 0;
}

static void net_finish(struct dev *dev)
{
	virtio_finish(to_virtio(dev));
}

/* -- saved state ---------------------------------------------------------- */

static void macs_state(struct state *s, const char *n, const char *over,
		       const char *macs, struct net_macs *t)
{
	state_u8(s, n, &t->n);
	state_bool(s, over, &t->overflow);
	state_bytes(s, macs, t->mac, sizeof(t->mac));
}

static void net_state(struct dev *dev, struct state *s)
{
	struct net *n = to_net(dev);

	virtio_state(dev, s);
	state_bool(s, "up", &n->up);
	state_u16(s, "in_use", &n->in_use);
	state_u64(s, "offloads", &n->offloads);
	state_bool(s, "promisc", &n->promisc);
	state_bool(s, "allmulti", &n->allmulti);
	state_bool(s, "alluni", &n->alluni);
	state_bool(s, "nomulti", &n->nomulti);
	state_bool(s, "nouni", &n->nouni);
	state_bool(s, "nobcast", &n->nobcast);
	macs_state(s, "uni.n", "uni.overflow", "uni.mac", &n->uni);
	macs_state(s, "multi.n", "multi.overflow", "multi.mac", &n->multi);
	state_bytes(s, "vlan", n->vlan, sizeof(n->vlan));
}

static int net_check(struct dev *dev)
{
	struct net *n = to_net(dev);
	uint16_t pairs;

	memcpy(&pairs, n->v.config + NET_C_PAIRS, 2);
	n->held = 0;
	memset(n->flow, 0, sizeof(n->flow));
	if (pairs != n->pairs || !n->in_use || n->in_use > n->pairs ||
	    n->uni.n > NET_MACS || n->multi.n > NET_MACS ||
	    n->offloads & ~(n->v.accepted & NET_GUEST_OFFLOADS)) {
		net_forget(&n->v);
		return -EINVAL;
	}
	/* Frames that were under way are lost, and so are sessions. */
	n->restored = true;
	n->fresh = !(n->v.status & STATUS_DRIVER_OK);
	return virtio_check(dev);
}

const struct virtio_class virtio_net_class = {
	.dev = {
		.name	= "virtio-net",
		.size	= sizeof(struct net),
		.version = 1,
		.init	= net_init,
		.finish	= net_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= net_state,
		.check	= net_check,
	},
	.id	= VIRTIO_ID_NET,
	.nqueues = 2 * VIRTIO_NET_PAIRS + 1,
	.config_size = NET_C_SIZE,
	.pci_class = 0x020000,
	.start	= net_start,
	.stop	= net_stop,
	.kick	= net_kick,
	.work	= net_work,
	.forget	= net_forget,
};
