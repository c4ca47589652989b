/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shared.c - a link into a network of our own (libhusk-vmnet)
 */
#include "net/link.h"

#include <pthread.h>

#include "base/bits.h"
#include "base/error.h"
#include "husk/vmnet.h"

/*
 * The port is there from the first listen() on.  What comes while nobody
 * listens waits in its ring, as on any other link in the host's queue, so that
 * a pause loses nothing.
 */
struct shared {
	struct link l;
	struct vmnet *net;
	struct vmnet_port *port; /* or NULL */
	pthread_mutex_t lock;	 /* around ready() */
	bool listening;		 /* under lock */
};

static struct shared *to_shared(struct link *l)
{
	return container_of(l, struct shared, l);
}

static int shared_open(struct link *l, const struct link_config *cfg,
		       struct husk_error *err)
{
	struct shared *s = to_shared(l);
	struct vmnet_config c = {
		.mtu = cfg->mtu,
		.isolated = cfg->isolated,
		.no_loopback = cfg->no_loopback,
		.log = cfg->log,
		.log_opaque = cfg->sink,
	};
	int ret = vmnet_create(&c, &s->net, err);

	for (unsigned i = 0; !ret && i < cfg->nforwards; i++)
		ret = vmnet_forward_add(s->net, cfg->forwards[i], err);
	if (ret) {
		vmnet_destroy(s->net);
		return ret;
	}
	pthread_mutex_init(&s->lock, NULL);
	l->mtu = vmnet_mtu(s->net);
	l->trusted = true;
	l->carrier = true;
	return 0;
}

static void shared_close(struct link *l)
{
	struct shared *s = to_shared(l);

	vmnet_port_close(s->port);
	vmnet_destroy(s->net);
	pthread_mutex_destroy(&s->lock);
}

static int shared_send(struct link *l, const struct iovec *iov, int n)
{
	struct shared *s = to_shared(l);

	if (s->port)
		vmnet_port_send(s->port, iov, n);
	return 0;
}

static ssize_t shared_recv(struct link *l, const struct iovec *iov, int n)
{
	struct shared *s = to_shared(l);

	return s->port ? vmnet_port_recv(s->port, iov, n) : 0;
}

static void port_ready(void *opaque)
{
	struct shared *s = opaque;

	pthread_mutex_lock(&s->lock);
	if (s->listening)
		link_ready(&s->l);
	pthread_mutex_unlock(&s->lock);
}

static int shared_listen(struct link *l, bool on)
{
	struct shared *s = to_shared(l);
	int ret = 0;

	if (on && !s->port)
		ret = vmnet_port_open(s->net, port_ready, l, &s->port);
	if (ret)
		return ret;
	pthread_mutex_lock(&s->lock);
	/* What has come meanwhile was announced to nobody. */
	if (on && !s->listening)
		link_ready(l);
	s->listening = on;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static void shared_restored(struct link *l)
{
	vmnet_reset(to_shared(l)->net);
}

const struct link_ops link_shared = {
	.name = "shared",
	.size = sizeof(struct shared),
	.open = shared_open,
	.close = shared_close,
	.send = shared_send,
	.recv = shared_recv,
	.listen = shared_listen,
	.restored = shared_restored,
};
