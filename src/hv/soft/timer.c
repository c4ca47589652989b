/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timer.c - one thread per VM that waits for the earliest APIC timer
 *
 * Translated code does not look at the clock; it looks at c->request.  The
 * interpreter polls the clock itself, and a halted vCPU sleeps until its own
 * deadline, so a VM that is idle or interpreted never wakes this thread.
 */
#include "hv/soft/timer.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/loop.h"
#include "base/thread.h"

struct timer {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	uint64_t until; /* when the thread wakes up by itself */
	uint64_t due[HV_MAX_VCPUS];
	bool stop;
};

/* Tell who is due; the earliest of the others.  Under the lock. */
static uint64_t serve(struct soft_vm *vm, struct timer *t)
{
	uint64_t now = loop_now(), first = UINT64_MAX;

	for (unsigned i = 0; i < vm->vm.max_vcpus; i++) {
		struct cpu *c = vm->cpu[i];

		if (t->due[i] > now) {
			first = MIN(first, t->due[i]);
			continue;
		}
		t->due[i] = UINT64_MAX;
		if (!c)
			continue;
		atomic_store(&c->timer_due, UINT64_MAX);
		cpu_request(c, REQ_TIMER);
	}
	return first;
}

static void *timer_main(void *arg)
{
	struct soft_vm *vm = arg;
	struct timer *t = vm->timer;

	pthread_mutex_lock(&t->lock);
	while (!t->stop) {
		struct timespec ts;

		t->until = serve(vm, t);
		if (t->until == UINT64_MAX) {
			pthread_cond_wait(&t->wake, &t->lock);
			continue;
		}
		ts.tv_sec = (time_t)(t->until / 1000000000);
		ts.tv_nsec = (long)(t->until % 1000000000);
		pthread_cond_timedwait(&t->wake, &t->lock, &ts);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

static struct timer *timer_start(struct soft_vm *vm)
{
	struct timer *t = calloc(1, sizeof(*t));
	pthread_condattr_t attr;

	if (!t)
		return NULL;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++)
		t->due[i] = UINT64_MAX;
	t->until = UINT64_MAX;
	pthread_mutex_init(&t->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->wake, &attr);
	vm->timer = t;
	if (thread_start(&t->thread, "husk-timer", timer_main, vm)) {
		vm->timer = NULL;
		pthread_cond_destroy(&t->wake);
		pthread_mutex_destroy(&t->lock);
		free(t);
		return NULL;
	}
	return t;
}

void timer_arm(struct cpu *c, uint64_t ns)
{
	struct soft_vm *vm = c->vm;
	struct timer *t;

	if (atomic_load(&c->timer_due) == ns)
		return;
	atomic_store(&c->timer_due, ns);
	pthread_mutex_lock(&vm->lock);
	t = vm->timer;
	if (!t && ns != UINT64_MAX)
		t = timer_start(vm);
	pthread_mutex_unlock(&vm->lock);
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->due[c->vcpu.id] = ns;
	if (ns < t->until)
		pthread_cond_signal(&t->wake);
	pthread_mutex_unlock(&t->lock);
}

void timer_stop(struct soft_vm *vm)
{
	struct timer *t = vm->timer;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->stop = true;
	pthread_cond_signal(&t->wake);
	pthread_mutex_unlock(&t->lock);
	pthread_join(t->thread, NULL);
	pthread_cond_destroy(&t->wake);
	pthread_mutex_destroy(&t->lock);
	free(t);
	vm->timer = NULL;
}
