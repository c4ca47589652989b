/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.c - the end of a cable in a network
 */
#include "vmnet/vmnet.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

static void ring_put(struct vmnet_port *p, const void *data, uint32_t len)
{
	uint32_t at = p->tail % PORT_RING, n = MIN(len, PORT_RING - at);

	memcpy(p->ring + at, data, n);
	memcpy(p->ring, (const uint8_t *)data + n, len - n);
	p->tail += len;
}

static void ring_get(struct vmnet_port *p, void *data, uint32_t len)
{
	uint32_t at = p->head % PORT_RING, n = MIN(len, PORT_RING - at);

	memcpy(data, p->ring + at, n);
	memcpy((uint8_t *)data + n, p->ring, len - n);
	p->head += len;
}

void port_deliver(struct vmnet_port *p, const void *frame, size_t len)
{
	uint32_t n = (uint32_t)len;
	bool tell = false;

	if (!len || len > FRAME_MAX)
		return;
	pthread_mutex_lock(&p->lock);
	if (PORT_RING - (p->tail - p->head) >= n + sizeof(n)) {
		ring_put(p, &n, sizeof(n));
		ring_put(p, frame, n);
		tell = p->quiet;
		p->quiet = false;
	}
	pthread_mutex_unlock(&p->lock);
	if (tell)
		p->ready(p->opaque);
}

ssize_t vmnet_port_recv(struct vmnet_port *p, const struct iovec *iov, int n)
{
	uint32_t len = 0, left, part;

	pthread_mutex_lock(&p->lock);
	if (p->head == p->tail) {
		p->quiet = true;
	} else {
		ring_get(p, &len, sizeof(len));
		left = len;
		for (int i = 0; i < n && left; i++) {
			part = (uint32_t)MIN(iov[i].iov_len, (size_t)left);
			ring_get(p, iov[i].iov_base, part);
			left -= part;
		}
		p->head += left;
	}
	pthread_mutex_unlock(&p->lock);
	return len;
}

/* Between ports; whether the frame is for the NAT, too. */
static bool switch_frame(struct vmnet_port *from, const uint8_t *frame,
			 size_t len)
{
	/* 52:55 and the IPv4 address, or 52:56 for IPv6: those of the NAT. */
	bool to_nat =
		frame[0] == 0x52 && (frame[1] == 0x55 || frame[1] == 0x56);

	if (!from->net->ports->next || to_nat)
		return true;
	for (struct vmnet_port *p = from->net->ports; p; p = p->next)
		if (p != from)
			port_deliver(p, frame, len);
	return frame[0] & 1;
}

int vmnet_port_send(struct vmnet_port *p, const struct iovec *iov, int n)
{
	struct vmnet *net = p->net;
	uint8_t flat[FRAME_MAX];
	const uint8_t *frame = flat;
	size_t len = 0;

	if (n == 1) {
		frame = iov->iov_base;
		len = iov->iov_len;
	}
	for (int i = 0; n != 1 && i < n; i++) {
		if (iov[i].iov_len > sizeof(flat) - len)
			return -EMSGSIZE;
		memcpy(flat + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	if (len < 14 || len > FRAME_MAX)
		return -EMSGSIZE;
	pthread_mutex_lock(&net->lock);
	if (switch_frame(p, frame, len))
		net->lib.input(net->slirp, frame, (int)len);
	nat_wake_locked(net);
	pthread_mutex_unlock(&net->lock);
	return 0;
}

int vmnet_port_open(struct vmnet *net, void (*ready)(void *opaque),
		    void *opaque, struct vmnet_port **port)
{
	struct vmnet_port *p = calloc(1, sizeof(*p));

	if (p)
		p->ring = malloc(PORT_RING);
	if (!p || !p->ring) {
		free(p);
		return -ENOMEM;
	}
	p->net = net;
	p->ready = ready;
	p->opaque = opaque;
	p->quiet = true;
	pthread_mutex_init(&p->lock, NULL);
	pthread_mutex_lock(&net->lock);
	p->next = net->ports;
	net->ports = p;
	pthread_mutex_unlock(&net->lock);
	*port = p;
	return 0;
}

void vmnet_port_close(struct vmnet_port *p)
{
	struct vmnet_port **at;

	if (!p)
		return;
	/* ready() is only called with the network's lock held. */
	pthread_mutex_lock(&p->net->lock);
	for (at = &p->net->ports; *at && *at != p; at = &(*at)->next)
		;
	if (*at)
		*at = p->next;
	pthread_mutex_unlock(&p->net->lock);
	pthread_mutex_destroy(&p->lock);
	free(p->ring);
	free(p);
}
