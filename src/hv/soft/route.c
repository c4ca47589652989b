/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route.c - eventfds into the guest (irqfd) and out of it (doorbells)
 */
#include "hv/soft/route.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/loop.h"

/* -- into the guest ------------------------------------------------------- */

enum { ROUTES = 1024 };

struct route {
	uint64_t addr; /* 0: none */
	uint32_t data;
	struct loop_fd in; /* .fd -1: none */
	struct soft_routes *all;
};

/* Lock order: the VM's, then this one's: ready() waits for no caller. */
struct soft_routes {
	pthread_mutex_t lock; /* addr and data */
	struct soft_vm *vm;
	struct loop *loop; /* its thread comes with the first irqfd */
	struct route route[ROUTES];
};

static void ready(struct loop_fd *f, uint32_t events)
{
	struct route *r = container_of(f, struct route, in);
	uint64_t count, addr;
	uint32_t data;

	if (read(f->fd, &count, sizeof(count)) != sizeof(count))
		return;
	pthread_mutex_lock(&r->all->lock);
	addr = r->addr;
	data = r->data;
	pthread_mutex_unlock(&r->all->lock);
	if (addr)
		lapic_msi(r->all->vm, addr, data);
}

static struct soft_routes *routes_create(struct soft_vm *vm)
{
	struct soft_routes *all = calloc(1, sizeof(*all));

	if (!all)
		return NULL;
	pthread_mutex_init(&all->lock, NULL);
	all->vm = vm;
	for (unsigned i = 0; i < ROUTES; i++)
		all->route[i] =
			(struct route){ .in = { .fd = -1, .ready = ready },
					.all = all };
	return all;
}

static struct route *route_locked(struct soft_vm *vm, uint32_t gsi)
{
	if (!vm->routes)
		vm->routes = routes_create(vm);
	return vm->routes ? &vm->routes->route[gsi] : NULL;
}

int route_set(struct hv_vm *hv, uint32_t gsi, uint64_t addr, uint32_t data)
{
	struct soft_vm *vm = to_soft(hv);
	struct route *r;

	if (gsi >= ROUTES)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	r = route_locked(vm, gsi);
	if (r) {
		pthread_mutex_lock(&r->all->lock);
		r->addr = addr;
		r->data = data;
		pthread_mutex_unlock(&r->all->lock);
	}
	pthread_mutex_unlock(&vm->lock);
	return r ? 0 : -ENOMEM;
}

static int change_fd(struct route *r, int fd)
{
	struct soft_routes *all = r->all;
	int ret = 0;

	if (!all->loop)
		ret = loop_create(&all->loop);
	if (ret)
		return ret;
	if (r->in.fd >= 0)
		loop_del(all->loop, &r->in);
	r->in.fd = fd;
	if (fd < 0)
		return 0;
	ret = loop_add(all->loop, &r->in, EPOLLIN);
	if (!ret)
		ret = loop_start(all->loop);
	if (ret) {
		loop_del(all->loop, &r->in);
		r->in.fd = -1;
	}
	return ret;
}

int route_irqfd(struct hv_vm *hv, uint32_t gsi, int fd)
{
	struct soft_vm *vm = to_soft(hv);
	struct route *r;
	int ret;

	if (gsi >= ROUTES)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	r = route_locked(vm, gsi);
	ret = r ? change_fd(r, fd) : -ENOMEM;
	pthread_mutex_unlock(&vm->lock);
	return ret;
}

/* -- out of the guest ----------------------------------------------------- */

static bool same_doorbell(const struct hv_doorbell *a,
			  const struct hv_doorbell *b)
{
	return a->space == b->space && a->addr == b->addr &&
	       a->size == b->size && a->match == b->match &&
	       (!a->match || a->value == b->value);
}

static int doorbell_add(struct soft_vm *vm, const struct hv_doorbell *db,
			int fd)
{
	unsigned n = vm->ndoorbells + 1;
	struct hv_doorbell *d = realloc(vm->doorbells, n * sizeof(*d));
	int *fds;

	if (!d)
		return -ENOMEM;
	vm->doorbells = d;
	fds = realloc(vm->doorbell_fds, n * sizeof(*fds));
	if (!fds)
		return -ENOMEM;
	vm->doorbell_fds = fds;
	d[n - 1] = *db;
	fds[n - 1] = fd;
	vm->ndoorbells = n;
	return 0;
}

int route_doorbell(struct hv_vm *hv, const struct hv_doorbell *db, int fd,
		   bool add)
{
	struct soft_vm *vm = to_soft(hv);
	int ret = -ENOENT;

	pthread_rwlock_wrlock(&vm->slots);
	for (unsigned i = 0; i < vm->ndoorbells; i++) {
		if (!same_doorbell(&vm->doorbells[i], db))
			continue;
		ret = -EEXIST;
		if (add)
			break;
		ret = 0;
		vm->ndoorbells--;
		vm->doorbells[i] = vm->doorbells[vm->ndoorbells];
		vm->doorbell_fds[i] = vm->doorbell_fds[vm->ndoorbells];
		break;
	}
	if (add && ret == -ENOENT)
		ret = doorbell_add(vm, db, fd);
	pthread_rwlock_unlock(&vm->slots);
	return ret;
}

/* -- the end -------------------------------------------------------------- */

void route_finish(struct soft_vm *vm)
{
	if (vm->routes) {
		loop_destroy(vm->routes->loop);
		pthread_mutex_destroy(&vm->routes->lock);
		free(vm->routes);
	}
	free(vm->doorbells);
	free(vm->doorbell_fds);
}
