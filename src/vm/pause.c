/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pause.c - a machine that stands still, and its time
 *
 * vCPUs park first, so that nobody rings a doorbell; then the clocks stop, the
 * devices finish what is in flight (the last created first: those that use
 * other parts), and the loop ends its thread, for the timers of the chips.
 */
#include "vm/machine.h"

#include <errno.h>
#include <time.h>

#include "base/error.h"

/* -- machine time --------------------------------------------------------- */

uint64_t machine_now(void *sink)
{
	struct vm *vm = sink;
	uint64_t frozen = atomic_load(&vm->frozen);

	return frozen ? frozen : loop_now() + atomic_load(&vm->time_offset);
}

static uint64_t real_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void time_freeze(struct vm *vm)
{
	uint64_t now;

	vm->since = loop_now();
	vm->set_back = false;
	now = vm->since + atomic_load(&vm->time_offset);
	atomic_store(&vm->frozen, now ? now : 1);
	hv_time_stop(vm->hv);
}

void time_set(struct vm *vm, uint64_t now, uint64_t since)
{
	uint64_t real = real_now();

	/* Another host's clock may be ahead of ours. */
	vm->since = loop_now() - (real > since ? real - since : 0);
	vm->set_back = true;
	atomic_store(&vm->frozen, now ? now : 1);
}

uint64_t time_stood_since(const struct vm *vm)
{
	return real_now() - (loop_now() - vm->since);
}

/*
 * A short stop is time like any other in which the vCPUs did not get to run:
 * so that many of them do not add up to a clock that is slow.  Before a longer
 * one the guest's time goes on from where it was: else all that it waits for,
 * and nothing of what it waits on, would be over at once.
 */
static void time_thaw(struct vm *vm)
{
	uint64_t frozen = atomic_load(&vm->frozen);
	uint64_t stood = loop_now() - vm->since;

	if (stood > vm->gap_ns || hv_time_skip(vm->hv, stood)) {
		atomic_store(&vm->time_offset, frozen - loop_now());
	} else {
		atomic_store(&vm->time_offset, frozen - vm->since);
		/* Those of one from a file wait for what was left then. */
		if (vm->set_back)
			loop_timers_hasten(vm->loop, stood);
	}
	vm->set_back = false;
	atomic_store(&vm->frozen, 0);
	hv_time_start(vm->hv);
}

/* -- pause and resume ----------------------------------------------------- */

static int has_ended(struct vm *vm, struct husk_error *err)
{
	bool ended;

	pthread_mutex_lock(&vm->lock);
	ended = vm->has_stopped || atomic_load(&vm->stopping);
	pthread_mutex_unlock(&vm->lock);
	return ended ? error_set(err, -ESRCH, "the machine has ended") : 0;
}

static void resume_devices(struct dev *first)
{
	unsigned n = 0;

	for (struct dev *d = first; d; d = d->next)
		n++;
	/* In the order of creation, which is that of the list from its end. */
	for (; n; n--) {
		struct dev *d = first;

		for (unsigned i = 1; i < n; i++)
			d = d->next;
		if (d->class->resume)
			d->class->resume(d);
	}
}

int pause_locked(struct vm *vm, struct husk_error *err)
{
	vm->resume_at_start = false;
	if (atomic_load(&vm->paused))
		return has_ended(vm, err);
	run_park(vm);
	if (has_ended(vm, err)) {
		run_go(vm);
		return -ESRCH;
	}
	time_freeze(vm);
	for (struct dev *d = vm->devs; d; d = d->next)
		if (d->class->pause)
			d->class->pause(d);
	loop_stop(vm->loop);
	atomic_store(&vm->paused, true);
	machine_news(vm, NULL, VM_NEWS_PAUSED, 0);
	return 0;
}

int resume_locked(struct vm *vm, struct husk_error *err)
{
	int ret = has_ended(vm, err);

	if (ret || !atomic_load(&vm->paused))
		return ret;
	/* A paused machine that was never started only forgets about it. */
	ret = vm->has_started ? loop_start(vm->loop) : 0;
	if (ret)
		return error_errno(err, ret, "event loop");
	resume_devices(vm->devs);
	time_thaw(vm);
	mem_goes_on(&vm->mem);
	atomic_store(&vm->paused, false);
	machine_news(vm, NULL, VM_NEWS_RESUMED, 0);
	run_go(vm);
	return 0;
}

int vm_pause(struct vm *vm, struct husk_error *err)
{
	int ret;

	pthread_mutex_lock(&vm->life);
	ret = pause_locked(vm, err);
	pthread_mutex_unlock(&vm->life);
	return ret;
}

int vm_resume(struct vm *vm, struct husk_error *err)
{
	int ret;

	pthread_mutex_lock(&vm->life);
	ret = resume_locked(vm, err);
	pthread_mutex_unlock(&vm->life);
	return ret;
}

bool vm_is_paused(const struct vm *vm)
{
	return atomic_load(&vm->paused);
}
