/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nat.c - a network's thread and its user-mode TCP/IP stack, libslirp
 *
 * The stack knows no threads: everything it does happens under net->lock,
 * on the thread here or on the one that sends a frame.  The thread sleeps in
 * poll() without the lock; who may have changed what it should wait for
 * wakes it, once per sleep.
 */
#include "vmnet/vmnet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"
#include "base/thread.h"

/* -- what the stack asks of us -------------------------------------------- */

static ssize_t to_guests(const void *frame, size_t len, void *opaque)
{
	struct vmnet *net = opaque;

	for (struct vmnet_port *p = net->ports; p; p = p->next)
		port_deliver(p, frame, len);
	return (ssize_t)len;
}

static void guest_error(const char *text, void *opaque)
{
	struct vmnet *net = opaque;

	if (net->cfg.log)
		net->cfg.log(net->cfg.log_opaque, text);
}

static int64_t clock_ns(void *opaque)
{
	return (int64_t)loop_now();
}

static void *timer_new(SlirpTimerId id, void *timer_opaque, void *opaque)
{
	struct vmnet *net = opaque;
	struct vmnet_timer *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->id = id;
	t->opaque = timer_opaque;
	t->next = net->timers;
	net->timers = t;
	return t;
}

static void timer_free(void *timer, void *opaque)
{
	struct vmnet *net = opaque;
	struct vmnet_timer **at;

	for (at = &net->timers; *at && *at != timer; at = &(*at)->next)
		;
	if (*at)
		*at = (*at)->next;
	free(timer);
}

static void timer_mod(void *timer, int64_t when_ms, void *opaque)
{
	struct vmnet_timer *t = timer;

	if (!t)
		return;
	t->when_ms = MAX(when_ms, 1);
	nat_wake_locked(opaque);
}

static void nothing(int fd, void *opaque)
{
}

static void notify(void *opaque)
{
	nat_wake_locked(opaque);
}

static const SlirpCb callbacks = {
	.send_packet = to_guests,
	.guest_error = guest_error,
	.clock_get_ns = clock_ns,
	.timer_new_opaque = timer_new,
	.timer_free = timer_free,
	.timer_mod = timer_mod,
	.register_poll_fd = nothing,
	.unregister_poll_fd = nothing,
	.notify = notify,
};

static int add_poll(int fd, int events, void *opaque)
{
	struct vmnet *net = opaque;
	short want = 0;

	if (net->nfds == net->room) {
		unsigned room = net->room ? 2 * net->room : 64;
		struct pollfd *fds = reallocarray(net->fds, room, sizeof(*fds));

		if (!fds)
			return -1;
		net->fds = fds;
		net->room = room;
	}
	want |= events & SLIRP_POLL_IN ? POLLIN : 0;
	want |= events & SLIRP_POLL_OUT ? POLLOUT : 0;
	want |= events & SLIRP_POLL_PRI ? POLLPRI : 0;
	net->fds[net->nfds] = (struct pollfd){ fd, want, 0 };
	return (int)net->nfds++;
}

static int get_revents(int index, void *opaque)
{
	struct vmnet *net = opaque;
	int got, events = 0;

	if (index < 0 || (unsigned)index >= net->nfds)
		return 0;
	got = net->fds[index].revents;
	events |= got & POLLIN ? SLIRP_POLL_IN : 0;
	events |= got & POLLOUT ? SLIRP_POLL_OUT : 0;
	events |= got & POLLPRI ? SLIRP_POLL_PRI : 0;
	events |= got & POLLERR ? SLIRP_POLL_ERR : 0;
	events |= got & POLLHUP ? SLIRP_POLL_HUP : 0;
	return events;
}

/* -- the thread ----------------------------------------------------------- */

void nat_wake_locked(struct vmnet *net)
{
	uint64_t one = 1;

	if (!net->polling)
		return;
	net->polling = false;
	if (write(net->wake_fd, &one, sizeof(one)) < 0)
		net->polling = true;
}

void nat_hold_locked(struct vmnet *net)
{
	net->holds++;
	nat_wake_locked(net);
	while (net->in_poll)
		pthread_cond_wait(&net->changed, &net->lock);
}

void nat_release_locked(struct vmnet *net)
{
	net->holds--;
	pthread_cond_broadcast(&net->changed);
}

static void run_timers(struct vmnet *net)
{
	int64_t now = (int64_t)loop_now() / 1000000;
	struct vmnet_timer *t, *next;

	for (t = net->timers; t; t = next) {
		next = t->next;
		if (t->when_ms && t->when_ms <= now) {
			t->when_ms = 0;
			net->lib.handle_timer(net->slirp, t->id, t->opaque);
		}
	}
}

static uint32_t until_timer(struct vmnet *net, uint32_t timeout)
{
	int64_t now = (int64_t)loop_now() / 1000000;

	for (struct vmnet_timer *t = net->timers; t; t = t->next)
		if (t->when_ms && t->when_ms - now < timeout)
			timeout = (uint32_t)MAX(t->when_ms - now, 0);
	return timeout;
}

static void *nat_thread(void *arg)
{
	struct vmnet *net = arg;
	uint64_t count;

	pthread_mutex_lock(&net->lock);
	while (!net->quit) {
		/* A minute at most: poll() takes no more than INT_MAX. */
		uint32_t timeout = 60000;
		struct pollfd *fds;
		unsigned nfds;
		int got;

		if (net->holds) {
			pthread_cond_wait(&net->changed, &net->lock);
			continue;
		}
		net->nfds = 0;
		add_poll(net->wake_fd, SLIRP_POLL_IN, net);
		net->lib.pollfds_fill(net->slirp, &timeout, add_poll, net);
		timeout = until_timer(net, timeout);
		net->polling = net->in_poll = true;
		fds = net->fds;
		nfds = net->nfds;
		pthread_mutex_unlock(&net->lock);
		got = poll(fds, nfds, (int)timeout);
		pthread_mutex_lock(&net->lock);
		net->polling = net->in_poll = false;
		if (net->holds) { /* those sockets may be gone now */
			pthread_cond_broadcast(&net->changed);
			continue;
		}
		if (got > 0 && fds[0].revents &&
		    read(net->wake_fd, &count, sizeof(count)) < 0)
			continue;
		net->lib.pollfds_poll(net->slirp, got < 0, get_revents, net);
		run_timers(net);
	}
	pthread_mutex_unlock(&net->lock);
	return NULL;
}

/* -- birth and death ------------------------------------------------------ */

static Slirp *make_stack(struct vmnet *net)
{
	SlirpConfig c = {
		.version = 4,
		.restricted = net->cfg.isolated,
		.in_enabled = true,
		.vnetwork.s_addr = htonl(0x0a000200),
		.vnetmask.s_addr = htonl(0xffffff00),
		.vhost.s_addr = htonl(0x0a000202),
		.vdhcp_start.s_addr = htonl(0x0a00020f),
		.vnameserver.s_addr = htonl(0x0a000203),
		.in6_enabled = true,
		.vprefix_len = 64,
		.if_mtu = net->cfg.mtu,
		.if_mru = net->cfg.mtu,
		.disable_host_loopback = net->cfg.no_loopback,
	};

	inet_pton(AF_INET6, "fec0::", &c.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &c.vhost6);
	inet_pton(AF_INET6, "fec0::3", &c.vnameserver6);
	return net->lib.new(&c, &callbacks, net);
}

/* The stack would leave sockets that listen open. */
static void end_stack(struct vmnet *net)
{
	for (struct forward *f = net->forwards; f; f = f->next)
		forward_close_locked(net, f);
	net->lib.cleanup(net->slirp);
}

static void free_network(struct vmnet *net)
{
	if (net->slirp)
		end_stack(net);
	slirp_unload(&net->lib);
	while (net->forwards) {
		struct forward *f = net->forwards;

		net->forwards = f->next;
		free(f);
	}
	if (net->wake_fd >= 0)
		close(net->wake_fd);
	pthread_cond_destroy(&net->changed);
	pthread_mutex_destroy(&net->lock);
	free(net->fds);
	free(net);
}

int vmnet_create(const struct vmnet_config *cfg, struct vmnet **out,
		 struct husk_error *err)
{
	struct vmnet *net = calloc(1, sizeof(*net));
	int ret;

	*out = NULL;
	if (!net)
		return error_set(err, -ENOMEM, "network: out of memory");
	if (cfg)
		net->cfg = *cfg;
	if (!net->cfg.mtu)
		net->cfg.mtu = VMNET_MTU_DEFAULT;
	pthread_mutex_init(&net->lock, NULL);
	pthread_cond_init(&net->changed, NULL);
	net->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (net->cfg.mtu < VMNET_MTU_MIN || net->cfg.mtu > VMNET_MTU_MAX) {
		ret = error_set(err, -EINVAL,
				"network: an MTU of %u is not "
				"from %d to %d",
				net->cfg.mtu, VMNET_MTU_MIN, VMNET_MTU_MAX);
		goto err_net;
	}
	ret = slirp_load(&net->lib, err);
	if (ret)
		goto err_net;
	ret = net->wake_fd < 0 ? -errno : 0;
	if (!ret) {
		net->slirp = make_stack(net);
		ret = net->slirp ? thread_start(&net->thread, "vmnet",
						nat_thread, net)
				 : -ENOMEM;
	}
	if (ret) {
		error_errno(err, ret, "network");
		goto err_net;
	}
	*out = net;
	return 0;
err_net:
	free_network(net);
	return ret;
}

void vmnet_destroy(struct vmnet *net)
{
	uint64_t one = 1;

	if (!net)
		return;
	pthread_mutex_lock(&net->lock);
	net->quit = true;
	pthread_mutex_unlock(&net->lock);
	while (write(net->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_join(net->thread, NULL);
	free_network(net);
}

unsigned vmnet_mtu(const struct vmnet *net)
{
	return net->cfg.mtu;
}

int vmnet_reset(struct vmnet *net)
{
	int ret = 0, failed;
	Slirp *fresh;

	pthread_mutex_lock(&net->lock);
	fresh = make_stack(net);
	if (!fresh) {
		pthread_mutex_unlock(&net->lock);
		return -ENOMEM;
	}
	nat_hold_locked(net);
	end_stack(net);
	net->slirp = fresh;
	for (struct forward *f = net->forwards; f; f = f->next) {
		failed = forward_open_locked(net, f);
		if (failed)
			ret = failed;
	}
	nat_release_locked(net);
	pthread_mutex_unlock(&net->lock);
	return ret;
}
