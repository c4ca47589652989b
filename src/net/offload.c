/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.c - checksums and TCP segments for ends that do neither
 *
 * Everything in a frame is the guest's, so offload_valid() looks at each field
 * that the rest of this file relies on; nothing is read from guest memory.
 */
#include "net/offload.h"

#include <arpa/inet.h>
#include <string.h>

#include "base/bits.h"

enum {
	ETH = 14,
	TCP_MIN = 20,
	/* ETH, VLAN tags, IPv6 with options and TCP's longest header. */
	HEAD_MAX = 256,
	/* 64 KiB in the smallest segments that Linux sends (48 bytes). */
	SEGMENTS_MAX = 1400,
};

enum { FIN = 0x01, PSH = 0x08, CWR = 0x80 };

uint32_t offload_sum(const void *data, size_t len, uint32_t sum)
{
	const uint8_t *p = data;
	uint64_t total = sum;
	uint32_t word;
	uint16_t half;

	for (; len >= 4; len -= 4, p += 4) {
		memcpy(&word, p, 4);
		total += word;
	}
	if (len >= 2) {
		memcpy(&half, p, 2);
		total += half;
		p += 2;
		len -= 2;
	}
	if (len)
		total += *p;
	total = (total & UINT32_MAX) + (total >> 32);
	total = (total & UINT32_MAX) + (total >> 32);
	total = (total & 0xffff) + (total >> 16);
	return (uint32_t)((total & 0xffff) + (total >> 16));
}

static uint16_t fold(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, size_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

/* Where the IP header begins; 0: not IP of this version. */
static size_t find_ip(const uint8_t *f, size_t n, bool v6)
{
	size_t at = 12;

	for (unsigned tags = 0; at + 2 <= n && tags < 3; tags++, at += 4) {
		uint16_t type = get16(f + at);

		if (type == (v6 ? 0x86dd : 0x0800))
			return at + 2;
		if (type != 0x8100 && type != 0x88a8)
			return 0;
	}
	return 0;
}

/* csum_start is where IP says that TCP begins, as far as we must know. */
static bool tcp_valid(const struct net_hdr *h, const uint8_t *f, size_t n,
		      size_t len)
{
	bool v6 = (h->gso_type & ~GSO_ECN) == GSO_TCPV6;
	size_t ip = find_ip(f, n, v6), tcp = h->csum_start, head;

	if (!ip || tcp < ip + (v6 ? 40 : 20) || tcp + TCP_MIN > n)
		return false;
	if (!v6 && tcp != ip + 4u * (f[ip] & 15))
		return false;
	head = tcp + 4u * (f[tcp + 12] >> 4);
	return head >= tcp + TCP_MIN && head <= HEAD_MAX && head <= n &&
	       head < len && h->gso_size &&
	       (len - head - 1) / h->gso_size < SEGMENTS_MAX;
}

bool offload_valid(const struct net_hdr *h, const uint8_t *frame, size_t n,
		   size_t len, uint32_t gso)
{
	unsigned type = h->gso_type & ~GSO_ECN;

	if (len < ETH)
		return false;
	if (h->flags & HDR_NEEDS_CSUM &&
	    (size_t)h->csum_start + h->csum_offset + 2 > len)
		return false;
	if (type == GSO_NONE)
		return !(h->gso_type & GSO_ECN);
	return type < 32 && gso & BIT(type) && h->flags & HDR_NEEDS_CSUM &&
	       h->csum_offset == 16 && tcp_valid(h, frame, n, len);
}

void offload_csum(const struct net_hdr *h, uint8_t *frame, size_t len)
{
	uint8_t *field = frame + h->csum_start + h->csum_offset;
	uint16_t sum;

	if (!(h->flags & HDR_NEEDS_CSUM))
		return;
	sum = fold(offload_sum(frame + h->csum_start, len - h->csum_start, 0));
	/* For UDP, zero means that there is none; elsewhere it is the same. */
	if (!sum)
		sum = 0xffff;
	memcpy(field, &sum, 2);
}

/* -- segments ------------------------------------------------------------- */

static void fix_ip(uint8_t *f, size_t ip, size_t tcp, size_t len, bool v6,
		   unsigned n)
{
	uint16_t sum = 0;

	if (v6) {
		put16(f + ip + 4, len - ip - 40);
		return;
	}
	put16(f + ip + 2, len - ip);
	put16(f + ip + 4, get16(f + ip + 4) + (n ? 1u : 0));
	memcpy(f + ip + 10, &sum, 2);
	sum = fold(offload_sum(f + ip, tcp - ip, 0));
	memcpy(f + ip + 10, &sum, 2);
}

static void tcp_csum(uint8_t *f, size_t ip, size_t tcp, size_t len, bool v6)
{
	uint32_t sum = htons(6) + htons((uint16_t)(len - tcp));
	uint16_t zero = 0;

	sum = v6 ? offload_sum(f + ip + 8, 32, sum)
		 : offload_sum(f + ip + 12, 8, sum);
	memcpy(f + tcp + 16, &zero, 2);
	zero = fold(offload_sum(f + tcp, len - tcp, sum));
	memcpy(f + tcp + 16, &zero, 2);
}

void offload_segment(const struct net_hdr *h, uint8_t *frame, size_t len,
		     void (*out)(void *opaque, uint8_t *frame, size_t len),
		     void *opaque)
{
	bool v6 = (h->gso_type & ~GSO_ECN) == GSO_TCPV6;
	size_t tcp = h->csum_start;
	size_t head = tcp + 4u * (frame[tcp + 12] >> 4);
	size_t ip = find_ip(frame, head, v6), at;
	uint8_t header[HEAD_MAX], flags = frame[tcp + 13];
	uint32_t seq;
	unsigned n = 0;

	memcpy(header, frame, head);
	memcpy(&seq, header + tcp + 4, 4);
	seq = ntohl(seq);
	for (at = head; at < len; at += h->gso_size, n++) {
		size_t part = MIN((size_t)h->gso_size, len - at);
		uint32_t be = htonl(seq + (uint32_t)(at - head));
		uint8_t *f = frame + at - head;

		/* Over the payload that has gone out already. */
		fix_ip(header, ip, tcp, head + part, v6, n);
		memcpy(header + tcp + 4, &be, 4);
		header[tcp + 13] = flags;
		if (at + part < len)
			header[tcp + 13] &= (uint8_t) ~(FIN | PSH);
		if (n)
			header[tcp + 13] &= (uint8_t)~CWR;
		memcpy(f, header, head);
		tcp_csum(f, ip, tcp, head + part, v6);
		out(opaque, f, head + part);
	}
}
