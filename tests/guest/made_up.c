/* SPDX-License-Identifier: Apache-2.0 */
/*
 * made_up.c - time and chance of engine soft, the same in every run
 *
 * The linker's --wrap leads calls of these functions here, among them some of
 * the engine's own.
 */
#include "made_up.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hv/engine.h"
#include "hv/soft/soft.h"

enum { STEP_NS = 2000, TSC_KHZ = 1000000 };

static struct made_up *current; /* NULL: real time */

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
int __real_clock_gettime(clockid_t id, struct timespec *ts);
long __real_syscall(long n, ...);
void __real_lapic_poll(struct cpu *c);
uint64_t __real_cpu_tsc(struct cpu *c);
int __real_cpuid_model(const char *model, uint32_t id, uint32_t n,
		       uint32_t tsc_khz, uint8_t phys_bits,
		       struct hv_cpuid *out, unsigned max,
		       struct husk_error *err);

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr,
			  void *(*start)(void *), void *arg);
int __wrap_pthread_join(pthread_t t, void **result);
int __wrap_pthread_setname_np(pthread_t t, const char *name);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
long __wrap_syscall(long n, ...);
ssize_t __wrap_getrandom(void *buf, size_t n, unsigned flags);
void __wrap_lapic_poll(struct cpu *c);
void __wrap_timer_arm(struct cpu *c, uint64_t ns);
uint64_t __wrap_cpu_tsc(struct cpu *c);
int __wrap_cpuid_model(const char *model, uint32_t id, uint32_t n,
		       uint32_t tsc_khz, uint8_t phys_bits,
		       struct hv_cpuid *out, unsigned max,
		       struct husk_error *err);

/* Who has a thread is served by its program, or never answers. */
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr,
			  void *(*start)(void *), void *arg)
{
	memset(t, 0, sizeof(*t));
	return 0;
}

int __wrap_pthread_join(pthread_t t, void **result)
{
	return 0;
}

int __wrap_pthread_setname_np(pthread_t t, const char *name)
{
	return 0;
}

int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
	if (!current)
		return __real_clock_gettime(id, ts);
	ts->tv_sec = (time_t)(current->now / 1000000000);
	ts->tv_nsec = (long)(current->now % 1000000000);
	if (id == CLOCK_REALTIME)
		ts->tv_sec += 1700000000;
	return 0;
}

/* A halted vCPU sleeps: until its timer, as nobody else will wake it. */
static void sleep_until(const struct timespec *ts)
{
	uint64_t ns;

	current->may_fire = true;
	if (!ts) {
		current->idle = true;
		hv_vcpu_kick(current->cpu);
		return;
	}
	ns = (uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec;
	if (ns > current->now)
		current->now = ns;
}

long __wrap_syscall(long n, ...)
{
	long v[6];
	va_list ap;

	va_start(ap, n);
	for (unsigned k = 0; k < 6; k++)
		v[k] = va_arg(ap, long); /* NOLINT(*-valist.*) */
	va_end(ap);
	if (current && n == SYS_futex && v[1] == FUTEX_WAIT_BITSET_PRIVATE) {
		sleep_until((const struct timespec *)v[3]);
		return 0;
	}
	return __real_syscall(n, v[0], v[1], v[2], v[3], v[4], v[5]);
}

ssize_t __wrap_getrandom(void *buf, size_t n, unsigned flags)
{
	uint64_t nobodys = 1; /* alike for what is made before a start */
	uint64_t *chance = current ? &current->chance : &nobodys;
	uint8_t *p = buf;

	for (size_t k = 0; k < n; k++) {
		*chance = *chance * 6364136223846793005 + 1442695040888963407;
		p[k] = (uint8_t)(*chance >> 56);
	}
	return (ssize_t)n;
}

void __wrap_lapic_poll(struct cpu *c)
{
	if (!current->may_fire)
		return;
	current->may_fire = false;
	__real_lapic_poll(c);
}

/* There is no thread that waits for timers. */
void __wrap_timer_arm(struct cpu *c, uint64_t ns)
{
}

uint64_t __wrap_cpu_tsc(struct cpu *c)
{
	if (current)
		made_up_step(current);
	return __real_cpu_tsc(c);
}

/* The host's rate is measured anew for each VM. */
int __wrap_cpuid_model(const char *model, uint32_t id, uint32_t n,
		       uint32_t tsc_khz, uint8_t phys_bits,
		       struct hv_cpuid *out, unsigned max,
		       struct husk_error *err)
{
	return __real_cpuid_model(model, id, n, TSC_KHZ, phys_bits, out, max,
				  err);
}
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

void made_up_start(struct made_up *m, struct hv_vm *hv, struct hv_vcpu *cpu)
{
	struct soft_vm *vm = to_soft(hv);

	*m = (struct made_up){ .cpu = cpu, .now = 1000000000, .chance = 1 };
	vm->vm.tsc_khz = TSC_KHZ;
	vm->host_tsc = false;
	vm->ns0 = m->now;
	vm->clock_offset = -(int64_t)vm->ns0;
	to_cpu(cpu)->tsc_offset = -(uint64_t)m->now;
}

void made_up_enter(struct made_up *m)
{
	current = m;
	m->may_fire = true;
}

void made_up_leave(void)
{
	current = NULL;
}

void made_up_step(struct made_up *m)
{
	m->now += STEP_NS;
}
