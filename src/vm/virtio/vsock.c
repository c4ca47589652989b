/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock.c - virtio socket device: packets from and to the driver
 *
 * A header is copied out of guest memory once; payload goes between guest
 * memory and a Unix socket directly.  The guest may send as much ahead as it
 * was told (buf_alloc), so what the host does not read is bounded; we read
 * from the host only what the guest has room for.
 */
#include "vm/virtio/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"

#define TIMEOUT_NS 30000000000ull
#define GATE_NS	   5000000000ull

/* The part of in behind its first skip bytes, at most len; how many pieces. */
static unsigned slice(struct iovec *out, const struct iovec *in, unsigned n,
		      size_t skip, size_t len)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n && len; i++) {
		size_t hop = MIN(skip, in[i].iov_len);
		size_t part = MIN(in[i].iov_len - hop, len);

		skip -= hop;
		len -= part;
		if (part)
			out[k++] =
				(struct iovec){ (uint8_t *)in[i].iov_base + hop,
						part };
	}
	return k;
}

static size_t length(const struct iovec *iov, unsigned n)
{
	size_t len = 0;

	for (unsigned i = 0; i < n; i++)
		len += iov[i].iov_len;
	return len;
}

/* -- from the guest ------------------------------------------------------- */

/* RST for what is no connection.  The caller has seen that there is room. */
static void refuse(struct vsock *s, const struct vsock_hdr *h)
{
	unsigned i = (s->unknown_at + s->unknown_len++) % VSOCK_UNKNOWN;

	s->unknown[i] = (struct vsock_hdr){
		.src_cid = h->dst_cid,
		.dst_cid = s->cid,
		.src_port = h->dst_port,
		.dst_port = h->src_port,
		.type = h->type,
		.op = VSOCK_OP_RST,
	};
}

static void got_request(struct vsock *s, struct conn *old,
			const struct vsock_hdr *h)
{
	struct conn *c;

	/* Both ends of an open connection disagree: it is over. */
	if (old && (old->state == CONN_OPEN || old->state == CONN_CONNECTING ||
		    old->state == CONN_REQUESTED)) {
		conn_reset(s, old);
		return;
	}
	if (old)
		conn_free(s, old);
	c = host_connect(s, h->dst_port, h->src_port);
	if (!c) {
		refuse(s, h);
		return;
	}
	c->peer_alloc = h->buf_alloc;
	c->peer_fwd = h->fwd_cnt;
}

static void got_bytes(struct vsock *s, struct conn *c,
		      const struct virtq_chain *chain, uint32_t len)
{
	unsigned n;

	if (c->state == CONN_CLOSING) {
		c->rx_cnt += len;
		c->fwd_cnt += len;
		return;
	}
	/* More than it was told it may, or after it said it would not. */
	if (c->state != CONN_OPEN || c->heard & VSOCK_NO_SEND ||
	    len > c->buf_alloc - (c->rx_cnt - c->fwd_cnt)) {
		conn_reset(s, c);
		return;
	}
	c->rx_cnt += len;
	n = slice(s->iov, chain->readable, chain->nreadable, VSOCK_HDR, len);
	if (n && host_send(s, c, s->iov, n, len))
		conn_reset(s, c);
}

static void got_shutdown(struct vsock *s, struct conn *c, uint32_t flags)
{
	if (c->state != CONN_OPEN) {
		conn_reset(s, c);
		return;
	}
	c->heard |= flags & VSOCK_NO_MORE;
	if (c->heard == VSOCK_NO_MORE) {
		struct vsock_hdr h = { .dst_cid = VSOCK_HOST_CID,
				       .dst_port = c->host_port,
				       .src_port = c->guest_port,
				       .type = VSOCK_TYPE_STREAM };

		/* For the guest it ends here; the host gets what is left. */
		refuse(s, &h);
		c->want = 0;
		c->state = CONN_DRAIN;
		conn_leave(s, c);
		conn_check(s, c);
	}
	host_shutdown(s, c);
}

static void got_packet(struct vsock *s, const struct vsock_hdr *h,
		       const struct virtq_chain *chain)
{
	struct conn *c;

	if (h->src_cid != s->cid)
		return;
	c = h->dst_cid == VSOCK_HOST_CID && h->type == VSOCK_TYPE_STREAM
		    ? conn_find(s, h->dst_port, h->src_port)
		    : NULL;
	if (h->op == VSOCK_OP_REQUEST && h->dst_cid == VSOCK_HOST_CID &&
	    h->type == VSOCK_TYPE_STREAM) {
		got_request(s, c, h);
		return;
	}
	if (!c) {
		if (h->op != VSOCK_OP_RST)
			refuse(s, h);
		return;
	}
	if (h->op == VSOCK_OP_RST) {
		conn_free(s, c);
		return;
	}
	if (c->state == CONN_RESET)
		return;
	c->peer_alloc = h->buf_alloc;
	c->peer_fwd = h->fwd_cnt;
	if (conn_credit(c))
		c->asked = false;
	switch (h->op) {
	case VSOCK_OP_RESPONSE:
		if (c->state == CONN_REQUESTED && !(c->want & WANT_REQUEST))
			host_accepted(s, c);
		else
			conn_reset(s, c);
		break;
	case VSOCK_OP_RW: got_bytes(s, c, chain, h->len); break;
	case VSOCK_OP_SHUTDOWN: got_shutdown(s, c, h->flags); break;
	case VSOCK_OP_CREDIT_UPDATE: break;
	case VSOCK_OP_CREDIT_REQUEST: conn_want(s, c, WANT_UPDATE); break;
	default: conn_reset(s, c);
	}
	if (c->state == CONN_OPEN)
		conn_check(s, c);
}

/* Copied once; its length is checked in the copy. */
static int take_packet(struct vsock *s, const struct virtq_chain *chain)
{
	size_t total = length(chain->readable, chain->nreadable);
	struct vsock_hdr h = { 0 };
	uint8_t *to = (void *)&h;
	unsigned n;

	if (total < VSOCK_HDR)
		return virtio_broken(&s->v, "a packet of %zu bytes", total);
	n = slice(s->iov, chain->readable, chain->nreadable, 0, VSOCK_HDR);
	for (unsigned i = 0; i < n; i++) {
		memcpy(to, s->iov[i].iov_base, s->iov[i].iov_len);
		to += s->iov[i].iov_len;
	}
	if (h.len > total - VSOCK_HDR)
		return virtio_broken(&s->v, "a packet of %zu bytes with %u",
				     total - VSOCK_HDR, h.len);
	got_packet(s, &h, chain);
	return 0;
}

static void transmit(struct vsock *s)
{
	struct virtq *q = s->v.queue[VSOCK_TX];
	struct virtq_chain chain;
	unsigned n;

	if (s->gated)
		return;
	for (n = 0; n < VSOCK_TURN; n++) {
		/* A driver that takes no answers gets no more in. */
		if (s->unknown_len == VSOCK_UNKNOWN ||
		    virtq_pop(q, &chain) <= 0)
			break;
		if (take_packet(s, &chain))
			return;
		virtq_push(q, &chain, 0);
	}
	if (n == VSOCK_TURN)
		virtq_ring(q);
	virtq_flush(q);
}

/* -- to the guest --------------------------------------------------------- */

static void put_header(struct vsock *s, const struct virtq_chain *chain,
		       const struct vsock_hdr *h)
{
	const uint8_t *from = (const void *)h;
	unsigned n =
		slice(s->iov, chain->writable, chain->nwritable, 0, VSOCK_HDR);

	for (unsigned i = 0; i < n; i++) {
		memcpy(s->iov[i].iov_base, from, s->iov[i].iov_len);
		from += s->iov[i].iov_len;
	}
}

static struct vsock_hdr header(const struct vsock *s, struct conn *c,
			       enum vsock_op op)
{
	c->told_fwd = c->fwd_cnt;
	return (struct vsock_hdr){
		.src_cid = VSOCK_HOST_CID,
		.dst_cid = s->cid,
		.src_port = c->host_port,
		.dst_port = c->guest_port,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = c->buf_alloc,
		.fwd_cnt = c->fwd_cnt,
	};
}

static void say_shutdown(struct vsock *s, struct conn *c, struct vsock_hdr *h)
{
	*h = header(s, c, VSOCK_OP_SHUTDOWN);
	c->said = (c->eof ? VSOCK_NO_SEND : 0) | (c->deaf ? VSOCK_NO_RECV : 0);
	h->flags = c->said;
	if (c->said != VSOCK_NO_MORE)
		return;
	/* The guest may read on as long as it likes, but not for ever. */
	c->state = CONN_CLOSING;
	host_drop(s, c);
	free(c->buf);
	c->buf = NULL;
	conn_set_deadline(s, c);
}

/* Bytes of the host, as many as there are and the guest and chain take. */
static bool next_bytes(struct vsock *s, struct conn *c,
		       const struct virtq_chain *chain, size_t room,
		       struct vsock_hdr *h)
{
	uint32_t len = (uint32_t)MIN(room, (size_t)conn_credit(c));
	unsigned n = slice(s->iov, chain->writable, chain->nwritable, VSOCK_HDR,
			   len);
	ssize_t got = host_recv(s, c, s->iov, MIN(n, 16u));

	if (got <= 0)
		return false;
	c->tx_cnt += (uint32_t)got;
	*h = header(s, c, VSOCK_OP_RW);
	h->len = (uint32_t)got;
	if (!conn_credit(c) && !c->asked) {
		c->asked = true;
		c->want |= WANT_CREDIT;
	}
	return true;
}

/* The most urgent of what c wants to say.  false: nothing after all. */
static bool next_packet(struct vsock *s, struct conn *c,
			const struct virtq_chain *chain, size_t room,
			struct vsock_hdr *h)
{
	static const struct {
		uint8_t want;
		enum vsock_op op;
	} plain[] = {
		{ WANT_REQUEST, VSOCK_OP_REQUEST },
		{ WANT_RESPONSE, VSOCK_OP_RESPONSE },
		{ WANT_UPDATE, VSOCK_OP_CREDIT_UPDATE },
		{ WANT_CREDIT, VSOCK_OP_CREDIT_REQUEST },
	};

	if (c->state == CONN_RESET) {
		*h = header(s, c, VSOCK_OP_RST);
		h->buf_alloc = h->fwd_cnt = 0;
		conn_free(s, c);
		return true;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(plain); i++) {
		if (!(c->want & plain[i].want))
			continue;
		c->want &= (uint8_t)~plain[i].want;
		*h = header(s, c, plain[i].op);
		return true;
	}
	/* The end of the stream comes behind the stream; being deaf not. */
	if (conn_may_read(c) && next_bytes(s, c, chain, room, h))
		return true;
	if (c->want & WANT_SHUTDOWN) {
		c->want &= (uint8_t)~WANT_SHUTDOWN;
		say_shutdown(s, c, h);
		return true;
	}
	return false;
}

static bool send_unknown(struct vsock *s, const struct virtq_chain *chain)
{
	if (!s->unknown_len)
		return false;
	put_header(s, chain, &s->unknown[s->unknown_at]);
	s->unknown_at = (s->unknown_at + 1) % VSOCK_UNKNOWN;
	/* It was full: there may be packets that waited for that. */
	if (s->unknown_len-- == VSOCK_UNKNOWN)
		virtq_ring(s->v.queue[VSOCK_TX]);
	return true;
}

/* One packet of the connection whose turn it is; its length or 0. */
static uint32_t send_next(struct vsock *s, const struct virtq_chain *chain,
			  size_t room)
{
	struct vsock_hdr h = { 0 };
	struct conn *c;

	if (send_unknown(s, chain))
		return VSOCK_HDR;
	while ((c = TAILQ_FIRST(&s->ready))) {
		bool told;

		TAILQ_REMOVE(&s->ready, c, ready_link);
		c->ready = false;
		told = next_packet(s, c, chain, room, &h);
		if (c->state != CONN_FREE)
			conn_check(s, c);
		if (!told)
			continue;
		put_header(s, chain, &h);
		return VSOCK_HDR + h.len;
	}
	return 0;
}

static void receive(struct vsock *s)
{
	struct virtq *q = s->v.queue[VSOCK_RX];
	struct virtq_chain chain;
	unsigned n = 0;

	while (!s->gated && (s->unknown_len || !TAILQ_EMPTY(&s->ready))) {
		size_t room;
		uint32_t len;

		if (n++ == VSOCK_TURN) {
			virtio_wake(&s->v);
			break;
		}
		if (virtq_pop(q, &chain) <= 0)
			break;
		room = length(chain.writable, chain.nwritable);
		if (room <= VSOCK_HDR) {
			virtio_broken(&s->v, "a receive buffer of %zu bytes",
				      room);
			return;
		}
		len = send_next(s, &chain, room - VSOCK_HDR);
		if (!len) {
			virtq_unpop(q, 1);
			break;
		}
		virtq_push(q, &chain, len);
	}
	virtq_flush(q);
}

/* -- the reset after a restore -------------------------------------------- */

static uint16_t avail_idx(const struct virtq *q)
{
	return q->avail_host
		       ? __atomic_load_n(&q->avail_host[1], __ATOMIC_ACQUIRE)
		       : 0;
}

/*
 * The driver ends all its connections when it has read the event, also those
 * that are made meanwhile.  That it gives the buffer back shows that it has.
 */
static void send_event(struct vsock *s)
{
	struct virtq *q = s->v.queue[VSOCK_EVENT];
	uint32_t id = VSOCK_TRANSPORT_RESET;
	struct virtq_chain chain;
	unsigned more = 0;

	if (virtq_pop(q, &chain) <= 0)
		return;
	if (length(chain.writable, chain.nwritable) < sizeof(id)) {
		virtio_broken(&s->v, "a buffer too small for an event");
		return;
	}
	memset(chain.writable[0].iov_base, 0,
	       MIN(chain.writable[0].iov_len, sizeof(id)));
	for (unsigned i = 1; i < chain.nwritable && i < sizeof(id); i++)
		memset(chain.writable[i].iov_base, 0, 1);
	virtq_fill(q, &chain, sizeof(id), 0);
	s->restored = false;
	/* Only who finds the queue empty is told of the next buffer. */
	while (virtq_pop(q, &chain) > 0)
		more++;
	virtq_unpop(q, more);
	s->gate_idx = avail_idx(q);
	virtq_publish(q, 1);
	virtq_flush(q);
}

static void gate(struct vsock *s)
{
	if (!s->gated)
		return;
	if (s->restored)
		send_event(s);
	else if (avail_idx(s->v.queue[VSOCK_EVENT]) != s->gate_idx)
		s->gated = false;
	if (loop_now() >= s->gate_end)
		s->gated = s->restored = false;
	/* What waited in the driver's queue, too. */
	if (!s->gated)
		virtq_ring(s->v.queue[VSOCK_TX]);
}

/* -- life ----------------------------------------------------------------- */

static void settle(struct vsock *s)
{
	gate(s);
	receive(s);
	conn_bury(s);
	host_doors(s);
	vsock_program(s);
}

static void vsock_work(struct virtio *v)
{
	struct vsock *s = to_vsock(v);

	host_events(s);
	settle(s);
}

static void vsock_kick(struct virtio *v, struct virtq *q)
{
	struct vsock *s = to_vsock(v);

	if (q->index == VSOCK_TX)
		transmit(s);
	settle(s);
}

static int vsock_start(struct virtio *v)
{
	struct vsock *s = to_vsock(v);
	struct conn *c;

	if (s->restored) {
		s->gated = true;
		s->gate_end = loop_now() + GATE_NS;
	}
	/* The time of a pause is nobody's fault. */
	TAILQ_FOREACH(c, &s->timed, timed_link)
	c->deadline = loop_now() + s->timeout;
	return 0;
}

static void vsock_forget(struct virtio *v)
{
	struct vsock *s = to_vsock(v);

	conn_free_all(s);
	s->unknown_at = s->unknown_len = 0;
	s->restored = s->gated = false;
}

int virtio_vsock_connect(struct dev *dev, uint32_t port, int *out)
{
	struct vsock *s = to_vsock(to_virtio(dev));
	int fd[2], ret = 0;
	struct conn *c;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		return -errno;
	pthread_mutex_lock(&dev->lock);
	c = s->v.started ? conn_create(s, fd[0], CONN_REQUESTED) : NULL;
	if (!c) {
		ret = s->v.started ? -EMFILE : -ENOTCONN;
		close(fd[0]);
		close(fd[1]);
	} else {
		c->hello = c->readable = true;
		ret = host_watch(s, c);
		if (ret) {
			conn_free(s, c);
			close(fd[1]);
		} else {
			host_request(s, c, port);
			*out = fd[1];
		}
	}
	pthread_mutex_unlock(&dev->lock);
	virtio_wake(&s->v);
	return ret;
}

int virtio_vsock_listen(struct dev *dev, uint32_t port,
			virtio_vsock_accept *accept, void *opaque)
{
	struct vsock *s = to_vsock(to_virtio(dev));
	struct vsock_to **p, *to;
	int ret = 0;

	pthread_mutex_lock(&dev->lock);
	for (p = &s->to; *p && (*p)->port != port; p = &(*p)->next)
		;
	to = *p;
	if (to && !accept) {
		*p = to->next;
		free(to->path);
		free(to);
	} else if (to) {
		ret = -EADDRINUSE;
	} else if (accept) {
		to = calloc(1, sizeof(*to));
		if (to) {
			to->port = port;
			to->accept = accept;
			to->opaque = opaque;
			to->next = s->to;
			s->to = to;
		} else {
			ret = -ENOMEM;
		}
	}
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

static int vsock_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	static const struct virtio_vsock_arg plain;
	const struct virtio_vsock_arg *a = arg ? arg : &plain;
	struct vsock *s = to_vsock(to_virtio(dev));
	int ret;

	LIST_INIT(&s->conns);
	LIST_INIT(&s->dead);
	TAILQ_INIT(&s->ready);
	TAILQ_INIT(&s->timed);
	s->cid = a->cid ? a->cid : 3;
	s->timeout = a->timeout_ms ? a->timeout_ms * 1000000ull : TIMEOUT_NS;
	s->v.offered = VSOCK_F_STREAM;
	ret = host_open(s, a, err);
	if (!ret) {
		s->v.poll_fd = s->epoll;
		ret = virtio_init(&s->v, err);
	}
	if (ret) {
		host_close(s);
		return ret;
	}
	memcpy(s->v.config, &s->cid, VSOCK_CONFIG);
	return 0;
}

static void vsock_finish(struct dev *dev)
{
	struct vsock *s = to_vsock(to_virtio(dev));

	virtio_finish(&s->v);
	conn_free_all(s);
	host_close(s);
}

static void vsock_state(struct dev *dev, struct state *s)
{
	struct vsock *vs = to_vsock(to_virtio(dev));

	virtio_state(dev, s);
	/* So that no port means a connection that the guest still has. */
	state_u32(s, "next_port", &vs->next_port);
}

static int vsock_check(struct dev *dev)
{
	struct vsock *s = to_vsock(to_virtio(dev));

	/* Another guest now: its connections have no other end. */
	vsock_forget(&s->v);
	s->restored = s->v.status & STATUS_DRIVER_OK;
	/* It learns its new address by the same event. */
	memcpy(s->v.config, &s->cid, VSOCK_CONFIG);
	return virtio_check(dev);
}

const struct virtio_class virtio_vsock_class = {
	.dev = {
		.name	= "virtio-vsock",
		.size	= sizeof(struct vsock),
		.version = 1,
		.init	= vsock_init,
		.finish	= vsock_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= vsock_state,
		.check	= vsock_check,
	},
	.id	= VIRTIO_ID_VSOCK,
	.nqueues = 3,
	.queue_size = 256,
	.config_size = VSOCK_CONFIG,
	.pci_class = 0x028000,
	.polls	= true,
	.start	= vsock_start,
	.kick	= vsock_kick,
	.work	= vsock_work,
	.forget	= vsock_forget,
};
