/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.c - one vCPU for guest code that may do anything
 */
#include "guest.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { BESIDE = 1 << 30, ATTEMPTS = 1000 };

uint8_t *mem;
struct hv_vm *vm;
struct hv_vcpu *cpu; /* replaced with the lock held */
struct hv_state fresh;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t turn; /* odd: guest code runs */

static void *watchdog(void *arg)
{
	struct timespec ms = { 0, 1000000 };
	uint32_t last = 0;

	for (;;) {
		uint32_t now = atomic_load(&turn);

		pthread_mutex_lock(&lock);
		if ((now & 1) && now == last && now == atomic_load(&turn))
			hv_vcpu_kick(cpu);
		pthread_mutex_unlock(&lock);
		last = now;
		nanosleep(&ms, NULL);
	}
	return NULL;
}

void guest_create(const char *engine)
{
	struct hv_config cfg = { .engine = engine };
	pthread_t t;

	if (vm)
		return;
	mem = mmap(NULL, GUEST_MEM + 2ul * BESIDE, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		abort();
	mem += BESIDE;
	if (mprotect(mem, GUEST_MEM, PROT_READ | PROT_WRITE) ||
	    hv_vm_create(&cfg, &vm, NULL) ||
	    hv_mem_map(vm, 0, GUEST_MEM, mem, HV_MEM_READ | HV_MEM_WRITE) ||
	    hv_vcpu_create(vm, 0, &cpu, NULL) ||
	    hv_vcpu_get(cpu, HV_STATE_ALL, &fresh) ||
	    pthread_create(&t, NULL, watchdog, NULL))
		abort();
	pthread_detach(t);
}

void guest_put(unsigned at, uint64_t v)
{
	memcpy(mem + at, &v, 8);
}

static void replace(void)
{
	pthread_mutex_lock(&lock);
	hv_vcpu_destroy(cpu);
	if (hv_vcpu_create(vm, 0, &cpu, NULL))
		abort();
	pthread_mutex_unlock(&lock);
}

/* false: nobody has an answer. */
static bool answer(struct hv_exit *e, unsigned n)
{
	switch (e->reason) {
	case HV_EXIT_KICKED:
	case HV_EXIT_SHUTDOWN:
	case HV_EXIT_ERROR: return false;
	case HV_EXIT_PIO:
		if (e->pio.port == GUEST_END_PORT)
			return false;
		if (!e->pio.write)
			e->pio.value = n;
		return true;
	case HV_EXIT_MMIO:
		if (!e->mmio.write)
			e->mmio.value = 0x1122334455667788 * (uint64_t)n;
		return true;
	case HV_EXIT_MSR: e->msr.fault = n & 1; return true;
	default: return true;
	}
}

bool guest_run(unsigned max, void (*between)(unsigned arg, unsigned n),
	       unsigned arg)
{
	static struct hv_exit exit;

	memset(&exit, 0, sizeof(exit));
	atomic_fetch_add(&turn, 1);
	for (unsigned n = 0; n < max; n++) {
		if (hv_vcpu_run(cpu, &exit) || !answer(&exit, n))
			break;
		if (between)
			between(arg, n);
	}
	atomic_fetch_add(&turn, 1);
	hv_vcpu_debug(cpu, 0);
	for (unsigned n = 0; hv_vcpu_complete(cpu, &exit) == 1; n++)
		if (n == ATTEMPTS) { /* REP OUTS of gigabytes */
			replace();
			return false;
		}
	return true;
}
