/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.c - opening a link by its kind, and what the kinds share
 */
#include "net/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bits.h"
#include "base/error.h"

size_t link_iov_len(const struct iovec *iov, int n)
{
	size_t len = 0;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	return len;
}

size_t link_copy_out(void *to, const struct iovec *iov, int n, size_t len)
{
	size_t done = 0;

	for (int i = 0; i < n && done < len; i++) {
		size_t part = MIN(iov[i].iov_len, len - done);

		memcpy((uint8_t *)to + done, iov[i].iov_base, part);
		done += part;
	}
	return done;
}

size_t link_copy_in(const struct iovec *iov, int n, const void *from,
		    size_t len)
{
	size_t done = 0;

	for (int i = 0; i < n && done < len; i++) {
		size_t part = MIN(iov[i].iov_len, len - done);

		memcpy(iov[i].iov_base, (const uint8_t *)from + done, part);
		done += part;
	}
	return done;
}

void link_ready(struct link *l)
{
	if (l->ready)
		l->ready(l->nic);
}

void link_set_carrier(struct link *l, bool on, const char *why)
{
	if (__atomic_exchange_n(&l->carrier, on, __ATOMIC_ACQ_REL) == on)
		return;
	if (l->log && why)
		l->log(l->sink, why);
	link_ready(l);
}

/* -- null: nobody is there ------------------------------------------------ */

static int null_open(struct link *l, const struct link_config *cfg,
		     struct husk_error *err)
{
	l->carrier = true;
	return 0;
}

static void null_close(struct link *l)
{
}

static int null_send(struct link *l, const struct iovec *iov, int n)
{
	return 0;
}

static ssize_t null_recv(struct link *l, const struct iovec *iov, int n)
{
	return 0;
}

static int null_listen(struct link *l, bool on)
{
	return 0;
}

const struct link_ops link_null = {
	.name = "null",
	.size = sizeof(struct link),
	.open = null_open,
	.close = null_close,
	.send = null_send,
	.recv = null_recv,
	.listen = null_listen,
};

/* -- by name -------------------------------------------------------------- */

static const struct link_ops *ops_of(const struct link_config *cfg)
{
	socklen_t len = sizeof(int);
	int type = 0;

	if (!strcmp(cfg->kind, "null"))
		return &link_null;
	if (!strcmp(cfg->kind, "shared"))
		return &link_shared;
	if (!strcmp(cfg->kind, "tap"))
		return &link_tap;
	if (!strcmp(cfg->kind, "unix"))
		return &link_stream;
	if (!strcmp(cfg->kind, "unixgram"))
		return &link_dgram;
	if (strcmp(cfg->kind, "fd"))
		return NULL;
	/* What a stream carries needs lengths between the frames. */
	getsockopt(cfg->fd, SOL_SOCKET, SO_TYPE, &type, &len);
	return type == SOCK_STREAM ? &link_stream : &link_dgram;
}

int link_open(const struct link_config *cfg, struct link **out,
	      struct husk_error *err)
{
	const struct link_ops *ops = ops_of(cfg);
	struct link *l;
	int ret;

	*out = NULL;
	if (!ops)
		return error_set(err, -EINVAL, "network %s: no such kind",
				 cfg->kind);
	l = calloc(1, ops->size);
	if (!l)
		return error_set(err, -ENOMEM, "network: out of memory");
	l->ops = ops;
	l->mtu = cfg->mtu;
	l->log = cfg->log;
	l->sink = cfg->sink;
	ret = ops->open(l, cfg, err);
	if (ret) {
		free(l);
		return ret;
	}
	*out = l;
	return 0;
}

void link_close(struct link *l)
{
	if (!l)
		return;
	l->ops->close(l);
	free(l);
}
