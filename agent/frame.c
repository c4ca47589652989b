/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.c - frames of husk/agent.h over a socket, for both of its ends
 */
#include "frame.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int wait_for(int fd, short events, int timeout_ms)
{
	struct pollfd p = { fd, events, 0 };
	int n;

	do
		n = poll(&p, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n ? 0 : -ETIMEDOUT;
}

int frame_send(int fd, enum agent_type type, const void *data, size_t len)
{
	struct agent_frame head = { .len = (uint32_t)len,
				    .type = (uint8_t)type };
	struct iovec iov[2] = { { &head, sizeof(head) },
				{ (void *)data, len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	while (iov[0].iov_len + iov[1].iov_len) {
		ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN) {
			int ret = wait_for(fd, POLLOUT, -1);

			if (ret)
				return ret;
			continue;
		}
		if (n < 0 && errno != EINTR)
			return -errno;
		for (unsigned i = 0; n > 0 && i < 2; i++) {
			size_t part = (size_t)n < iov[i].iov_len
					      ? (size_t)n
					      : iov[i].iov_len;

			iov[i].iov_base = (char *)iov[i].iov_base + part;
			iov[i].iov_len -= part;
			n -= (ssize_t)part;
		}
	}
	return 0;
}

int frame_read(struct frame_reader *r, int fd)
{
	size_t head = sizeof(r->f.head), want;
	uint8_t *to;
	ssize_t n;

	if (r->have < head) {
		to = (uint8_t *)&r->f.head + r->have;
		want = head - r->have;
	} else {
		to = r->f.data + (r->have - head);
		want = r->f.head.len - (r->have - head);
	}
	n = recv(fd, to, want, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!n)
		return -ECONNRESET;
	r->have += (size_t)n;
	if (r->have < head)
		return 0;
	if (r->f.head.len > AGENT_PAYLOAD || r->f.head.zero[0] ||
	    r->f.head.zero[1] || r->f.head.zero[2])
		return -EPROTO;
	if (r->have < head + r->f.head.len)
		return 0;
	r->f.data[r->f.head.len] = 0;
	r->have = 0;
	return 1;
}

int frame_recv(int fd, struct frame *f, int timeout_ms)
{
	static const size_t head = sizeof(f->head);
	size_t have = 0;

	while (have < head || have < head + f->head.len) {
		uint8_t *to = have < head ? (uint8_t *)&f->head + have
					  : f->data + (have - head);
		size_t want =
			have < head ? head - have : head + f->head.len - have;
		int ret = wait_for(fd, POLLIN, timeout_ms);
		ssize_t n;

		if (ret)
			return ret;
		n = recv(fd, to, want, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return n ? -errno : -ECONNRESET;
		have += (size_t)n;
		if (have == head &&
		    (f->head.len > AGENT_PAYLOAD || f->head.zero[0] ||
		     f->head.zero[1] || f->head.zero[2]))
			return -EPROTO;
	}
	f->data[f->head.len] = 0;
	return 0;
}
