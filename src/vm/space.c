/* SPDX-License-Identifier: Apache-2.0 */
/*
 * space.c - a machine pauses when the host has no space for its disks
 *
 * A disk that holds requests asks for that on its own thread, which a pause
 * waits for; so a thread of the machine's does it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/thread.h"
#include "vm/machine.h"
#include "vm/virtio.h"

static struct dev *find_disk(const struct vm *vm, unsigned disk)
{
	char id[16];

	snprintf(id, sizeof(id), "disk%u", disk);
	for (struct dev *d = vm->devs; d; d = d->next)
		if (!strcmp(d->id, id))
			return d;
	return NULL;
}

bool vm_disk_waits(const struct vm *vm, unsigned disk)
{
	struct dev *d = find_disk(vm, disk);

	return d && virtio_blk_holds(d);
}

static unsigned full_disks(const struct vm *vm)
{
	unsigned disks = 0;

	for (unsigned i = 0; i < vm->nblocks; i++)
		if (vm_disk_waits(vm, i))
			disks |= 1u << i;
	return disks;
}

static void pause_for_space(struct vm *vm)
{
	struct husk_error ignored = { 0 };
	unsigned disks;
	bool paused;

	pthread_mutex_lock(&vm->life);
	/* A reset or a resume may have been faster. */
	paused = full_disks(vm) && !pause_locked(vm, &ignored);
	disks = full_disks(vm);
	pthread_mutex_lock(&vm->lock);
	vm->space_asked = false;
	pthread_mutex_unlock(&vm->lock);
	pthread_mutex_unlock(&vm->life);
	for (unsigned i = 0; paused && vm->no_space && i < vm->nblocks; i++)
		if (disks & 1u << i)
			vm->no_space(vm->no_space_opaque, i, vm->disk[i].path);
}

static void *space_main(void *arg)
{
	struct vm *vm = arg;

	pthread_mutex_lock(&vm->lock);
	while (!vm->space_quit) {
		if (!vm->space_asked) {
			pthread_cond_wait(&vm->space, &vm->lock);
			continue;
		}
		pthread_mutex_unlock(&vm->lock);
		pause_for_space(vm);
		pthread_mutex_lock(&vm->lock);
	}
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

int space_init(struct vm *vm, struct husk_error *err)
{
	bool wanted = false;
	int ret;

	for (unsigned i = 0; i < MAX_DISKS; i++)
		wanted |= vm->disk[i].pause_if_full;
	if (!wanted)
		return 0;
	ret = thread_start(&vm->space_thread, "husk-space", space_main, vm);
	vm->has_space_thread = !ret;
	return ret ? error_errno(err, ret, "thread") : 0;
}

void space_finish(struct vm *vm)
{
	if (!vm->has_space_thread)
		return;
	pthread_mutex_lock(&vm->lock);
	vm->space_quit = true;
	pthread_cond_signal(&vm->space);
	pthread_mutex_unlock(&vm->lock);
	pthread_join(vm->space_thread, NULL);
	vm->has_space_thread = false;
}

void space_ask(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->space_asked = true;
	pthread_cond_signal(&vm->space);
	pthread_mutex_unlock(&vm->lock);
}
