/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.h - what a NIC does for its driver: checksums and segments
 */
#ifndef NET_OFFLOAD_H
#define NET_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In front of each frame of a virtio NIC (virtio 1.2, 5.1.6). */
struct net_hdr {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

enum { HDR_NEEDS_CSUM = 1, HDR_DATA_VALID = 2 };
enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_ECN = 0x80 };

/*
 * Whether the header fits the frame of len bytes, of which the first n are at
 * frame.  gso: bit of each GSO_* type that was negotiated.
 */
bool offload_valid(const struct net_hdr *h, const uint8_t *frame, size_t n,
		   size_t len, uint32_t gso);

/* Fill in the checksum that a valid header asks for. */
void offload_csum(const struct net_hdr *h, uint8_t *frame, size_t len);

/* The internet checksum, not yet inverted, of bytes after sum. */
uint32_t offload_sum(const void *data, size_t len, uint32_t sum);

/*
 * A valid frame with a GSO type, in segments: out(opaque, frame, len) for
 * each, in order.  They are made in the frame's memory, one over the other.
 */
void offload_segment(const struct net_hdr *h, uint8_t *frame, size_t len,
		     void (*out)(void *opaque, uint8_t *frame, size_t len),
		     void *opaque);

#endif /* NET_OFFLOAD_H */
