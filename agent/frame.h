/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.h - frames of husk/agent.h over a socket, for both of its ends
 */
#ifndef AGENT_FRAME_H
#define AGENT_FRAME_H

#include <stddef.h>

#include "husk/agent.h"

struct frame {
	struct agent_frame head;
	uint8_t data[AGENT_PAYLOAD + 1]; /* and a 0 behind what came */
};

/* Waits until all is sent.  0 or -errno. */
int frame_send(int fd, enum agent_type type, const void *data, size_t len);
/*
 * Waits up to timeout_ms (-1: for ever) for each part.  0, -ECONNRESET at the
 * end of the stream, -ETIMEDOUT, -EPROTO: not a frame, or -errno.
 */
int frame_recv(int fd, struct frame *f, int timeout_ms);

/* What came so far of a frame; starts as zeroes. */
struct frame_reader {
	struct frame f;
	size_t have; /* bytes, with the header */
};
/* One read from fd: 1: a frame is there, 0: not yet, or as frame_recv(). */
int frame_read(struct frame_reader *r, int fd);

static inline uint32_t frame_u32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

#endif /* AGENT_FRAME_H */
