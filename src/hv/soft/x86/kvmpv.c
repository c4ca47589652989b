/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvmpv.c - the paravirtual interface of KVM that Linux guests use
 *
 * Clock page, wall clock, steal time (always none), PV EOI and hypercalls, as
 * Linux describes them in Documentation/virt/kvm/x86/{msr,hypercalls}.rst.
 */
#include "hv/soft/x86/lapic.h"

#include <sched.h>
#include <time.h>

enum {
	MSR_WALL_OLD = 0x11,
	MSR_SYSTEM_OLD = 0x12,
	MSR_WALL = 0x4b564d00,
	MSR_SYSTEM = 0x4b564d01,
	MSR_STEAL = 0x4b564d03,
	MSR_EOI = 0x4b564d04,
	MSR_POLL = 0x4b564d05,
};

enum { TSC_STABLE = 1, GUEST_STOPPED = 2 }; /* flags of the clock page */

enum { HC_KICK_CPU = 5, HC_SEND_IPI = 10, HC_SCHED_YIELD = 11 };

#define HC_ENOSYS ((uint64_t)-1000)
#define HC_EPERM  ((uint64_t)-1)

struct clock_page {
	uint32_t version, pad;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};

struct wall_clock {
	uint32_t version, sec, nsec;
};

struct steal_time {
	uint64_t steal;
	uint32_t version, flags;
	uint8_t preempted, pad[47];
};

/* -- clock ---------------------------------------------------------------- */

/* ns = (tsc << shift) * mul >> 32 with mul as large as fits. */
static void tsc_scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
	unsigned __int128 ns = 1000000000;
	int s = 0;

	/* After the shift one tick is worth at least 1/2 and less than 1 ns. */
	while (s < 31 && hz << s <= ns)
		s++;
	while (s <= 0 && s > -31 && hz > (ns << (1 - s)))
		s--;
	*mul = (uint32_t)((ns << (32 - s)) / hz);
	*shift = (int8_t)s;
}

/*
 * All vCPUs count from the same moment, the VM's start, so that their pages
 * are equal and the guest needs no correction between them.
 */
static void write_clock(struct cpu *c, uint64_t gpa)
{
	struct soft_vm *vm = c->vm;
	struct clock_page *g = phys_ptr(vm, gpa, sizeof(*g));
	uint64_t khz = vm->vm.tsc_khz ? vm->vm.tsc_khz : 1000000;
	int64_t offset = __atomic_load_n(&vm->clock_offset, __ATOMIC_RELAXED);
	uint32_t version;

	if (!g)
		return;
	version = g->version | 1;
	__atomic_store_n(&g->version, version, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	g->tsc_timestamp = soft_tsc0(vm) + c->tsc_offset;
	g->system_time = vm->ns0 + (uint64_t)offset;
	tsc_scale(khz * 1000, &g->mul, &g->shift);
	/* What the guest was told stays until it has taken it away. */
	g->flags = TSC_STABLE | (g->flags & GUEST_STOPPED) |
		   (c->lapic->pv_tell_stop ? GUEST_STOPPED : 0);
	__atomic_store_n(&g->version, version + 1, __ATOMIC_SEQ_CST);
	phys_written(vm, c, gpa, sizeof(*g));
}

void kvmpv_enter(struct cpu *c)
{
	struct lapic *l = c->lapic;
	uint64_t page = c->msr.kvm_system;
	int64_t offset =
		__atomic_load_n(&c->vm->clock_offset, __ATOMIC_RELAXED);

	if (likely(!l->pv_tell_stop && page == l->pv_page &&
		   offset == l->pv_clock_offset &&
		   c->tsc_offset == l->pv_tsc_offset))
		return;
	l->pv_page = page;
	l->pv_clock_offset = offset;
	l->pv_tsc_offset = c->tsc_offset;
	if (page & 1)
		write_clock(c, page & ~1ull);
	l->pv_tell_stop = false;
}

static void write_wall(struct cpu *c, uint64_t gpa)
{
	struct wall_clock *g = phys_ptr(c->vm, gpa, sizeof(*g));
	struct timespec ts;
	int64_t boot;
	uint32_t version;

	if (!g)
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	boot = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec -
	       ((int64_t)soft_clock_ns(c->vm) + c->vm->clock_offset);
	version = g->version | 1;
	__atomic_store_n(&g->version, version, __ATOMIC_SEQ_CST);
	g->sec = (uint32_t)(boot / 1000000000);
	g->nsec = (uint32_t)(boot % 1000000000);
	__atomic_store_n(&g->version, version + 1, __ATOMIC_SEQ_CST);
	phys_written(c->vm, c, gpa, sizeof(*g));
}

static bool write_steal(struct cpu *c, uint64_t value)
{
	struct steal_time *g;

	if (value & 0x3e)
		return false;
	c->msr.kvm_steal = value;
	if (!(value & 1))
		return true;
	g = phys_ptr(c->vm, value & ~0x3full, sizeof(*g));
	if (g) {
		g->steal = 0;
		g->flags = 0;
		g->preempted = 0;
		g->version = (g->version + 2) & ~1u;
		phys_written(c->vm, c, value & ~0x3full, sizeof(*g));
	}
	return true;
}

static uint8_t *preempted(struct cpu *c)
{
	struct steal_time *g;

	if (!(c->msr.kvm_steal & 1))
		return NULL;
	g = phys_ptr(c->vm, c->msr.kvm_steal & ~0x3full, sizeof(*g));
	return g ? &g->preempted : NULL;
}

enum { PREEMPTED = 1, FLUSH_TLB = 2 };

void kvmpv_sleep(struct cpu *c)
{
	uint8_t *p = preempted(c);

	if (!p)
		return;
	__atomic_store_n(p, PREEMPTED, __ATOMIC_SEQ_CST);
	phys_written(c->vm, c, c->msr.kvm_steal & ~0x3full, 64);
}

void kvmpv_wake(struct cpu *c)
{
	uint8_t *p = preempted(c);

	if (!p)
		return;
	if (__atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST) & FLUSH_TLB)
		tlb_flush(c, true);
	phys_written(c->vm, c, c->msr.kvm_steal & ~0x3full, 64);
}

/* -- PV EOI --------------------------------------------------------------- */

static uint8_t *eoi_byte(struct cpu *c)
{
	if (!(c->msr.kvm_eoi & 1))
		return NULL;
	return phys_ptr(c->vm, c->msr.kvm_eoi & ~3ull, 1);
}

bool kvmpv_eoi_set(struct cpu *c, bool set)
{
	uint8_t *p = eoi_byte(c);

	if (!p)
		return false;
	if (set)
		__atomic_fetch_or(p, 1, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(p, (uint8_t)~1, __ATOMIC_SEQ_CST);
	phys_written(c->vm, c, c->msr.kvm_eoi & ~3ull, 1);
	return true;
}

bool kvmpv_eoi_get(struct cpu *c, bool *set)
{
	uint8_t *p = eoi_byte(c);

	if (!p)
		return false;
	*set = __atomic_load_n(p, __ATOMIC_SEQ_CST) & 1;
	return true;
}

/* -- MSRs ----------------------------------------------------------------- */

bool kvmpv_msr_read(struct cpu *c, uint32_t index, uint64_t *value)
{
	switch (index) {
	case MSR_WALL_OLD:
	case MSR_WALL: *value = c->msr.kvm_wall; return true;
	case MSR_SYSTEM_OLD:
	case MSR_SYSTEM: *value = c->msr.kvm_system; return true;
	case MSR_STEAL: *value = c->msr.kvm_steal; return true;
	case MSR_EOI: *value = c->msr.kvm_eoi; return true;
	case MSR_POLL: *value = c->msr.kvm_poll; return true;
	default: return false;
	}
}

bool kvmpv_msr_write(struct cpu *c, uint32_t index, uint64_t value)
{
	bool ignored;

	switch (index) {
	case MSR_WALL_OLD:
	case MSR_WALL:
		c->msr.kvm_wall = value;
		write_wall(c, value);
		return true;
	case MSR_SYSTEM_OLD:
	case MSR_SYSTEM:
		c->msr.kvm_system = value;
		c->lapic->pv_page = 0;
		kvmpv_enter(c);
		return true;
	case MSR_STEAL: return write_steal(c, value);
	case MSR_EOI:
		if (value & 2)
			return false;
		/* An EOI that the old page holds must not be lost. */
		lapic_sync_pv_eoi(c);
		c->msr.kvm_eoi = value;
		return !(value & 1) || kvmpv_eoi_get(c, &ignored);
	case MSR_POLL:
		if (value & ~1ull)
			return false;
		c->msr.kvm_poll = value;
		return true;
	default: return false;
	}
}

/* -- hypercalls ----------------------------------------------------------- */

static uint64_t send_ipi(struct cpu *c, uint64_t low, uint64_t high,
			 uint32_t min, uint32_t icr)
{
	unsigned width = c->mode == MODE_64 ? 64 : 32;
	uint64_t sent = 0;

	if ((icr & 0xc0000) || (icr >> 8 & 7) == 5 || (icr >> 8 & 7) == 6)
		return (uint64_t)-22;
	for (unsigned i = 0; i < 2 * width; i++) {
		uint64_t word = i < width ? low : high, id = (uint64_t)min + i;

		/* Ids, never a broadcast. */
		if ((word >> (i % width) & 1) && id < HV_MAX_VCPUS)
			sent += lapic_send(c->vm, c, icr & 0x7ff, (uint32_t)id,
					   true);
	}
	return sent;
}

uint64_t kvmpv_hypercall(struct cpu *c)
{
	uint64_t nr = c->gpr[R_RAX], a0 = c->gpr[R_RBX], a1 = c->gpr[R_RCX];
	uint64_t a2 = c->gpr[R_RDX], a3 = c->gpr[R_RSI];

	if (c->mode != MODE_64) {
		nr = (uint32_t)nr;
		a0 = (uint32_t)a0;
		a1 = (uint32_t)a1;
	}
	if (c->cpl)
		return HC_EPERM;
	switch (nr) {
	case HC_KICK_CPU:
		if (a1 < HV_MAX_VCPUS && c->vm->cpu[a1]) {
			atomic_store(&c->vm->cpu[a1]->pv_kicked, true);
			cpu_request(c->vm->cpu[a1], REQ_IRQ);
		}
		return 0;
	case HC_SEND_IPI:
		return send_ipi(c, a0, a1, (uint32_t)a2, (uint32_t)a3);
	case HC_SCHED_YIELD: sched_yield(); return 0;
	default: return HC_ENOSYS;
	}
}
