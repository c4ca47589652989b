/* SPDX-License-Identifier: Apache-2.0 */
/*
 * soft.c - the soft engine: life of VMs and vCPUs, and the run loop
 *
 * soft_run() is a loop over decoded blocks.  Between two blocks the vCPU looks
 * at what others asked for (c->request), delivers events and, every
 * POLL_BLOCKS blocks, compares the TSC with the APIC timer.  Faults and exits
 * leave the middle of an instruction by longjmp to the setjmp in soft_run();
 * c->rip is then the instruction that did not finish.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <asm/prctl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/error.h"
#include "base/loop.h"
#include "hv/soft/mem.h"
#include "hv/soft/route.h"
#include "hv/soft/state.h"
#include "hv/soft/timer.h"
#include "hv/soft/trans/trans.h"
#include "hv/soft/x86/decode.h"
#include "hv/soft/x86/lapic.h"

enum {
	POLL_BLOCKS = 64,	/* a block is ~6 instructions, ~50 ns */
	HWCAP2_FSGSBASE_BIT = 2 /* of AT_HWCAP2 */
};

int x86_combine(unsigned first, unsigned second);

/* -- leaving an instruction ----------------------------------------------- */

static _Noreturn void raise(struct cpu *c, unsigned vector, bool has_error,
			    uint32_t error)
{
	c->fault.pending = true;
	c->fault.kind = EVENT_FAULT;
	c->fault.vector = (uint8_t)vector;
	c->fault.has_error = has_error;
	c->fault.error = error;
	longjmp(c->env, LEAVE_FAULT);
}

_Noreturn void x86_fault(struct cpu *c, unsigned vector, uint32_t error)
{
	raise(c, vector, true, error);
}

_Noreturn void x86_fault_noerr(struct cpu *c, unsigned vector)
{
	raise(c, vector, false, 0);
}

_Noreturn void x86_page_fault(struct cpu *c, uint64_t va, uint32_t error)
{
	c->cr2 = va;
	raise(c, VEC_PF, true, error);
}

_Noreturn void cpu_leave(struct cpu *c)
{
	longjmp(c->env, LEAVE_EXIT);
}

_Noreturn void cpu_error(struct cpu *c, const char *fmt, ...)
{
	va_list ap;

	c->exit->reason = HV_EXIT_ERROR;
	va_start(ap, fmt);
	vsnprintf(c->exit->error.text, sizeof(c->exit->error.text), fmt, ap);
	va_end(ap);
	longjmp(c->env, LEAVE_EXIT);
}

/* -- requests and sleep --------------------------------------------------- */

void cpu_request(struct cpu *c, uint32_t bits)
{
	atomic_fetch_or(&c->request, bits);
	if (atomic_exchange(&c->asleep, 0))
		syscall(SYS_futex, &c->asleep, FUTEX_WAKE_PRIVATE, 1, NULL,
			NULL, 0);
}

/* Until a request, or the APIC timer. */
static void cpu_sleep(struct cpu *c, bool timer)
{
	uint64_t until = timer ? lapic_deadline(c) : UINT64_MAX;
	struct timespec ts = { (time_t)(until / 1000000000),
			       (long)(until % 1000000000) };

	cpu_park(c);
	atomic_store(&c->asleep, 1);
	if (!atomic_load(&c->request))
		syscall(SYS_futex, &c->asleep, FUTEX_WAIT_BITSET_PRIVATE, 1,
			until == UINT64_MAX ? NULL : &ts, NULL,
			FUTEX_BITSET_MATCH_ANY);
	atomic_store(&c->asleep, 0);
	cpu_unpark(c);
}

static void do_sipi(struct cpu *c)
{
	struct segreg *cs = &c->seg[SEG_CS];

	if (c->mp != HV_MP_WAIT_SIPI && c->mp != HV_MP_INIT_RECEIVED)
		return;
	cs->sel = (uint16_t)(c->sipi_vector << 8);
	cs->base = (uint64_t)c->sipi_vector << 12;
	c->rip = 0;
	c->mp = HV_MP_RUNNABLE;
	cpu_update_mode(c);
}

/* Generated code of vector instructions, and all that leads to it. */
static void forget_fpu(struct cpu *c)
{
	c->fpu_full = false;
	fpu_finish(c);
	pthread_mutex_lock(&c->vm->code);
	cache_forget(c);
	atomic_store(&c->nstale, MAX_STALE);
	pthread_mutex_unlock(&c->vm->code);
}

/* false: leave the run loop, exit is filled. */
static bool serve_requests(struct cpu *c)
{
	uint32_t r = atomic_exchange(&c->request, 0);

	if (r & REQ_STOP) {
		cpu_park(c);
		cpu_unpark(c);
	}
	if (r & REQ_TLB)
		tlb_flush(c, true);
	if (c->fpu_full)
		forget_fpu(c);
	if (r & REQ_INIT) {
		cpu_reset(c, true);
		c->mp = c->vcpu.id ? HV_MP_WAIT_SIPI : HV_MP_RUNNABLE;
	}
	if (r & REQ_SIPI)
		do_sipi(c);
	if (r & (REQ_IRQ | REQ_TIMER | REQ_WINDOW))
		c->irq_check = true;
	if (r & REQ_TIMER) {
		lapic_poll(c);
		c->armed.valid = false;
	}
	if (r & REQ_KICK) {
		c->exit->reason = HV_EXIT_KICKED;
		return false;
	}
	return true;
}

/* -- events --------------------------------------------------------------- */

static void deliver_pending(struct cpu *c)
{
	if (c->delivering) {
		int v = x86_combine(c->deliver_vec, c->fault.vector);

		if (v == -2) {
			c->delivering = false;
			c->fault.pending = false;
			x86_shutdown(c);
		}
		if (v >= 0) {
			c->fault.vector = (uint8_t)v;
			c->fault.has_error = true;
			c->fault.error = 0;
		}
	}
	c->delivering = true;
	c->deliver_vec = c->fault.vector;
	c->inhibit = c->inhibit_ss = false;
	c->gpr[R_NEXT] = c->rip;
	x86_deliver(c, c->fault.kind, c->fault.vector, c->fault.has_error,
		    c->fault.error);
	c->delivering = false;
	c->fault.pending = false;
	c->replay.done = c->replay.at = 0;
}

static void set_event(struct cpu *c, enum event_kind kind, uint8_t vector)
{
	c->fault.pending = true;
	c->fault.kind = (uint8_t)kind;
	c->fault.vector = vector;
	c->fault.has_error = false;
	c->mp = HV_MP_RUNNABLE;
	c->stats.interrupts++;
	deliver_pending(c);
}

static bool window_open(struct cpu *c)
{
	return (c->rflags & FL_IF) && !c->inhibit && !c->inhibit_ss &&
	       !c->extint && !c->fault.pending;
}

static bool wants_window(struct cpu *c)
{
	return atomic_load_explicit(&c->extint_msi, memory_order_relaxed) ||
	       (atomic_load_explicit(&c->want_window, memory_order_relaxed) &&
		lapic_accepts_extint(c));
}

/*
 * One NMI is latched while another is served; when none is, the first of two
 * is as good as served.  true: one is to be delivered.
 */
static bool nmi_due(struct cpu *c)
{
	uint32_t keep = c->nmi_masked ? 1 : 2, n = atomic_load(&c->nmi_pending);

	if (n > keep)
		atomic_fetch_sub(&c->nmi_pending, n - keep);
	return n && !c->nmi_masked && !c->inhibit && !c->inhibit_ss;
}

/* Interrupts at an instruction boundary.  false: exit to the caller. */
static bool take_events(struct cpu *c)
{
	if (unlikely(c->trap_now))
		return true;
	if (atomic_load_explicit(&c->nmi_pending, memory_order_relaxed) &&
	    nmi_due(c)) {
		atomic_fetch_sub(&c->nmi_pending, 1);
		c->nmi_masked = true;
		set_event(c, EVENT_NMI, VEC_NMI);
		return true;
	}
	if (!(c->rflags & FL_IF) || c->inhibit || c->inhibit_ss)
		return true;
	if (c->extint) {
		c->extint = false;
		set_event(c, EVENT_INT, c->extint_vector);
		return true;
	}
	if (unlikely(wants_window(c))) {
		atomic_store(&c->extint_msi, false);
		c->exit->reason = HV_EXIT_IRQ_WINDOW;
		return false;
	}
	if (c->irq_check) {
		int v = lapic_has_irq(c) ? lapic_ack(c) : -1;

		if (v < 0)
			c->irq_check = false;
		else
			set_event(c, EVENT_INT, (uint8_t)v);
	}
	return true;
}

/* -- the loop ------------------------------------------------------------- */

static uint64_t ip_mask(const struct cpu *c)
{
	switch (c->mode) {
	case MODE_64: return ~0ull;
	case MODE_REAL:
	case MODE_VM86: return 0xffff;
	default: return 0xffffffff;
	}
}

static inline void step_over(struct cpu *c, const struct insn *in)
{
	c->gpr[R_NEXT] = c->mode == MODE_64 ? c->rip + in->len
					    : (c->rip + in->len) & ip_mask(c);
	in->fn(c, in);
	c->rip = c->gpr[R_NEXT];
	if (unlikely(c->replay.done))
		c->replay.done = c->replay.at = 0;
}

static void run_block(struct cpu *c, const struct block *b)
{
	unsigned n = b->n, i = 0;

	c->leave_block = false;
	do {
		step_over(c, &b->in[i]);
	} while (++i < n && !c->leave_block);
	c->stats.instructions += i;
}

static uint64_t linear_rip(struct cpu *c)
{
	if (c->mode == MODE_64)
		return c->rip;
	return (uint32_t)(c->rip + c->seg[SEG_CS].base);
}

/* Instruction breakpoints of DR7 that match rip; their bits in DR6. */
static uint64_t breakpoints(struct cpu *c)
{
	uint64_t hit = 0, lin = linear_rip(c);

	for (unsigned i = 0; i < 4; i++)
		if ((c->dr7 >> (2 * i)) & 3 &&
		    !((c->dr7 >> (16 + 4 * i)) & 3) && c->dr[i] == lin)
			hit |= BIT(i);
	return hit;
}

/* #DB, or the exit of a debugger.  false: exit. */
static bool debug_trap(struct cpu *c, uint64_t dr6, bool debugger)
{
	if (debugger || c->debug & HV_DEBUG_DB) {
		c->exit->reason = HV_EXIT_DEBUG;
		c->exit->debug.rip = linear_rip(c);
		c->exit->debug.dr6 = dr6;
		c->exit->debug.vector = VEC_DB;
		return false;
	}
	c->dr6 = (c->dr6 & ~0xfull) | dr6 | 0xffff0ff0;
	if (c->mp == HV_MP_HALTED)
		c->mp = HV_MP_RUNNABLE;
	c->fault.pending = true;
	c->fault.kind = EVENT_FAULT;
	c->fault.vector = VEC_DB;
	c->fault.has_error = false;
	deliver_pending(c);
	return true;
}

/*
 * DR6 bits of the trap behind an instruction that has run.  TF counts as it
 * was before; INT n and its like have cleared it.
 */
static uint64_t traps(struct cpu *c, uint16_t mnemonic, bool tf)
{
	uint64_t hit = c->db_hit | c->db_held;

	if (mnemonic == ZYDIS_MNEMONIC_SYSCALL ||
	    mnemonic == ZYDIS_MNEMONIC_SYSRET)
		tf = false; /* see trap_now */
	c->db_held = 0;
	if (c->inhibit_ss) {
		c->db_held = c->db_hit;
		return 0;
	}
	if (mnemonic == ZYDIS_MNEMONIC_INT1)
		return 0; /* has raised the one #DB */
	return hit | (tf && !c->soft_event ? BIT(14) : 0);
}

static bool is_iret(uint16_t mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_IRET ||
	       mnemonic == ZYDIS_MNEMONIC_IRETD ||
	       mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

static bool needs_care(const struct cpu *c)
{
	return c->inhibit | c->inhibit_ss | c->trap_now | !!c->debug |
	       !!(c->rflags & (FL_TF | FL_RF)) | !!(c->dr7 & 0xff);
}

/*
 * One instruction, with everything that debugging may ask.  false: exit.
 * resumed: it was half done, what comes before it has been seen to.
 */
static bool run_one(struct cpu *c, bool resumed)
{
	bool tf = c->rflags & FL_TF;
	uint64_t hit, at = c->rip;
	struct block *b;
	uint16_t mnemonic;
	uint8_t flags;

	if (c->trap_now) {
		c->trap_now = false;
		return debug_trap(c, BIT(14), false);
	}
	/* Intel's MOV SS holds instruction breakpoints off, AMD's does not. */
	if (c->dr7 & 0xff && !(c->rflags & FL_RF) && !resumed &&
	    (c->amd || !c->inhibit_ss)) {
		hit = breakpoints(c);
		if (hit)
			return debug_trap(c, hit, false);
	}
	b = cache_find(c);
	mnemonic = b->in[0].mnemonic;
	flags = b->in[0].flags;
	if (c->debug & HV_DEBUG_BP && b->in[0].bytes[0] == 0xcc) {
		c->exit->reason = HV_EXIT_DEBUG;
		c->exit->debug.rip = linear_rip(c);
		c->exit->debug.dr6 = 0;
		c->exit->debug.vector = VEC_BP;
		return false;
	}
	c->inhibit = c->inhibit_ss = c->soft_event = false;
	c->db_hit = 0;
	step_over(c, &b->in[0]);
	/* A REP that goes on is still the same instruction. */
	if (!is_iret(mnemonic) && (c->rip != at || !(flags & IN_REP)))
		c->rflags &= ~(uint64_t)FL_RF;
	c->stats.instructions++;
	hit = traps(c, mnemonic, tf);
	if (hit && !debug_trap(c, hit, false))
		return false;
	if (c->debug & HV_DEBUG_STEP)
		return debug_trap(c, BIT(14), true);
	return true;
}

/* false: exit. */
static bool wait_runnable(struct cpu *c)
{
	while (c->mp != HV_MP_RUNNABLE) {
		bool halted = c->mp == HV_MP_HALTED;
		uint8_t vector;

		if (lapic_take_eoi(c, &vector)) {
			c->exit->reason = HV_EXIT_EOI;
			c->exit->eoi.vector = vector;
			return false;
		}
		if (halted) {
			lapic_poll(c);
			if ((atomic_load(&c->nmi_pending) && !c->nmi_masked) ||
			    (c->rflags & FL_IF &&
			     (lapic_has_irq(c) || c->extint ||
			      wants_window(c))) ||
			    atomic_load(&c->pv_kicked)) {
				atomic_store(&c->pv_kicked, false);
				c->mp = HV_MP_RUNNABLE;
				c->irq_check = true;
				break;
			}
		}
		if (!atomic_load(&c->request)) {
			c->stats.exec_ns += loop_now();
			if (halted)
				kvmpv_sleep(c);
			cpu_sleep(c, halted);
			if (halted)
				kvmpv_wake(c);
			c->stats.exec_ns -= loop_now();
		}
		if (atomic_load(&c->request) && !serve_requests(c))
			return false;
	}
	return true;
}

/* Have somebody interrupt translated code when the APIC timer is due. */
static void arm(struct cpu *c)
{
	const struct lapic *l = c->lapic;

	if (likely(c->armed.valid && c->armed.expiry_ns == l->expiry_ns &&
		   c->armed.tsc_deadline == l->tsc_deadline &&
		   c->armed.tsc_offset == c->tsc_offset &&
		   c->armed.lvt == l->lvt[LVT_TIMER] &&
		   c->armed.apic_base == c->apic_base))
		return;
	c->armed.valid = true;
	c->armed.expiry_ns = l->expiry_ns;
	c->armed.tsc_deadline = l->tsc_deadline;
	c->armed.tsc_offset = c->tsc_offset;
	c->armed.lvt = l->lvt[LVT_TIMER];
	c->armed.apic_base = c->apic_base;
	timer_arm(c, lapic_deadline(c));
}

static void loop(struct cpu *c)
{
	struct block *cold;
	unsigned poll = 0;
	uint8_t vector;

	for (;;) {
		if (unlikely(atomic_load_explicit(&c->request,
						  memory_order_relaxed)) &&
		    !serve_requests(c))
			return;
		if (unlikely(c->mp != HV_MP_RUNNABLE) && !wait_runnable(c))
			return;
		if (!poll--) {
			poll = POLL_BLOCKS;
			lapic_poll(c);
			c->irq_check = true;
		}
		/* An EOI of a level interrupt does not wait for the poll. */
		if (unlikely(c->lapic->pending_eoi) &&
		    lapic_take_eoi(c, &vector)) {
			c->exit->reason = HV_EXIT_EOI;
			c->exit->eoi.vector = vector;
			return;
		}
		if (!take_events(c))
			return;
		if (unlikely(needs_care(c))) {
			if (!run_one(c, false))
				return;
			continue;
		}
		if (c->trans) {
			arm(c);
			cold = NULL;
			if (trans_run(c, &cold))
				continue;
			if (cold) {
				run_block(c, cold);
				continue;
			}
		}
		run_block(c, cache_find(c));
	}
}

/* GS is free for such use in 64-bit programs; the caller's is put back. */
static uint64_t gs_set(uint64_t base)
{
	unsigned long old = 0;

	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT) {
		__asm__ volatile("rdgsbase %0" : "=r"(old));
		__asm__ volatile("wrgsbase %0" : : "r"(base));
	} else {
		syscall(SYS_arch_prctl, ARCH_GET_GS, &old);
		syscall(SYS_arch_prctl, ARCH_SET_GS, base);
	}
	return old;
}

/* The caller has answered what we asked. */
static void absorb(struct cpu *c, struct hv_exit *exit)
{
	struct replay *r = &c->replay;
	uint64_t v = 0;

	if (!r->waiting)
		return;
	switch (exit->reason) {
	case HV_EXIT_MMIO:
		v = exit->mmio.value;
		if (exit->mmio.size < 8)
			v &= BIT(8 * exit->mmio.size) - 1;
		break;
	case HV_EXIT_PIO: v = exit->pio.value; break;
	case HV_EXIT_MSR:
		v = exit->msr.value;
		r->fault = exit->msr.fault;
		break;
	default: break;
	}
	r->value[r->done++] = v;
	r->waiting = false;
}

static int run(struct cpu *c, struct hv_exit *exit, bool one)
{
	volatile uint64_t host_gs;

	if (!atomic_load(&c->vm->has_run))
		atomic_store(&c->vm->has_run, true);
	absorb(c, exit);
	c->exit = exit;
	c->replay.at = 0;
	exit->reason = HV_EXIT_NONE;
	cpu_unpark(c);
	c->stats.exec_ns -= loop_now();
	if (!one)
		kvmpv_enter(c);
	host_gs = gs_set((uintptr_t)c);
	switch (setjmp(c->env)) {
	case LEAVE_FAULT:
		if (c->world_held)
			world_start(c->vm, c);
		c->replay.done = c->replay.at = 0;
		c->db_held = 0;
		break;
	case LEAVE_EXIT:
		if (c->world_held)
			world_start(c->vm, c);
		goto out;
	default: break;
	}
	if (c->fault.pending)
		deliver_pending(c);
	/* A half-done instruction ends before anything else. */
	if (c->replay.done) {
		if (!needs_care(c))
			step_over(c, &cache_find(c)->in[0]);
		else if (!run_one(c, true))
			goto out;
	}
	if (!one)
		loop(c);
out:
	gs_set(host_gs);
	c->stats.exec_ns += loop_now();
	c->stats.exits[exit->reason]++;
	cpu_park(c);
	return 0;
}

static int soft_run(struct hv_vcpu *v, struct hv_exit *exit)
{
	return run(to_cpu(v), exit, false);
}

static int soft_complete(struct hv_vcpu *v, struct hv_exit *exit)
{
	struct cpu *c = to_cpu(v);
	int ret;

	if (!c->replay.waiting)
		return 0;
	ret = run(c, exit, true);
	return ret ? ret : c->replay.waiting;
}

void cpu_settle(struct cpu *c)
{
	struct hv_exit exit = { .reason = HV_EXIT_NONE };

	if (c->replay.waiting && c->replay.write)
		run(c, &exit, true);
}

static void soft_kick(struct hv_vcpu *v)
{
	cpu_request(to_cpu(v), REQ_KICK);
}

/* -- interrupts ----------------------------------------------------------- */

static int soft_msi(struct hv_vm *hv, uint64_t addr, uint32_t data)
{
	return lapic_msi(to_soft(hv), addr, data);
}

static int soft_inject(struct hv_vcpu *v, uint8_t vector)
{
	struct cpu *c = to_cpu(v);

	if (!window_open(c))
		return -EBUSY;
	c->extint = true;
	c->extint_vector = vector;
	return 0;
}

static bool soft_ready(struct hv_vcpu *v)
{
	return window_open(to_cpu(v)) && lapic_accepts_extint(to_cpu(v));
}

static void soft_want_window(struct hv_vcpu *v, bool want)
{
	struct cpu *c = to_cpu(v);

	atomic_store(&c->want_window, want);
	if (want)
		cpu_request(c, REQ_WINDOW);
}

static int soft_nmi(struct hv_vcpu *v)
{
	atomic_fetch_add(&to_cpu(v)->nmi_pending, 1);
	cpu_request(to_cpu(v), REQ_NMI);
	return 0;
}

/* -- life ----------------------------------------------------------------- */

struct instant {
	uint64_t tsc, ns;
};

/* Both clocks at one moment: the closest of a few attempts. */
static struct instant take_instant(void)
{
	uint64_t best = UINT64_MAX;
	struct instant at = { 0, 0 };

	for (unsigned i = 0; i < 16; i++) {
		uint64_t c0 = __rdtsc(), ns = loop_now(), c1 = __rdtsc();

		if (c1 - c0 < best) {
			best = c1 - c0;
			at = (struct instant){ c0 + (c1 - c0) / 2, ns };
		}
	}
	return at;
}

/* The TSC against the monotonic clock: 10 ms give a few in 10^6. */
static uint32_t measure_tsc_khz(long ns)
{
	struct timespec ts = { 0, ns };
	struct instant a = take_instant(), b;

	nanosleep(&ts, NULL);
	b = take_instant();
	return (uint32_t)(((b.tsc - a.tsc) * 1000000 + (b.ns - a.ns) / 2) /
			  (b.ns - a.ns));
}

/* Does the host's TSC count evenly, and the same on every processor? */
static bool host_tsc_good(void)
{
	uint32_t a, b, c, d;
	char text[16] = "";
	ssize_t n;
	int fd;

	if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & BIT(8)))
		return false;
	/* A kernel that has found it wanting keeps time by something else. */
	fd = open("/sys/devices/system/clocksource/clocksource0/"
		  "current_clocksource",
		  O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	return n <= 0 ||
	       (strncmp(text, "hpet", 4) && strncmp(text, "acpi_pm", 7) &&
		strncmp(text, "jiffies", 7));
}

static void init_clock(struct soft_vm *vm)
{
	struct instant at;
	uint32_t khz;

	vm->goes_on = vm->vm.tsc_khz;
	/* Less is enough to see that it is what a saved guest knows. */
	khz = measure_tsc_khz(vm->vm.tsc_khz ? 500000 : 10000000);
	if (vm->vm.tsc_khz && !tsc_khz_same(vm->vm.tsc_khz, khz))
		khz = measure_tsc_khz(10000000);
	at = take_instant();
	vm->host_tsc = host_tsc_good();
	/* A guest from elsewhere: its TSC is made from the other clock. */
	if (vm->vm.tsc_khz && !tsc_khz_same(vm->vm.tsc_khz, khz))
		vm->host_tsc = false;
	if (!vm->vm.tsc_khz)
		vm->vm.tsc_khz = khz;
	vm->host_tsc0 = at.tsc;
	vm->ns0 = at.ns;
	vm->clock_offset = -(int64_t)at.ns;
}

static int soft_probe(struct hv_caps *caps, struct husk_error *err)
{
	if (!__builtin_cpu_supports("avx2") ||
	    !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("fma"))
		return error_set(err, -ENOTSUP,
				 "engine soft: this processor "
				 "lacks AVX2, BMI2 or FMA (x86-64-v3)");
	*caps = (struct hv_caps){
		.max_vcpus = HV_MAX_VCPUS,
		.phys_bits = 46,
		.linear_bits = 48,
		.dirty_log = true,
		.doorbell = true,
		.irqfd = true,
		.debug = true,
	};
	return 0;
}

static int soft_vm_init(struct hv_vm *hv, struct husk_error *err)
{
	struct soft_vm *vm = to_soft(hv);

	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->world, NULL);
	pthread_mutex_init(&vm->code, NULL);
	pthread_rwlock_init(&vm->slots, NULL);
	init_clock(vm);
	return 0;
}

static void soft_vm_finish(struct hv_vm *hv)
{
	struct soft_vm *vm = to_soft(hv);

	route_finish(vm);
	timer_stop(vm);
	soft_mem_finish(vm);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->world);
	pthread_mutex_destroy(&vm->code);
	pthread_rwlock_destroy(&vm->slots);
}

static void soft_vcpu_finish(struct hv_vcpu *v)
{
	struct cpu *c = to_cpu(v);

	world_stop(c->vm, NULL);
	pthread_mutex_lock(&c->vm->code);
	c->vm->cpu[v->id] = NULL;
	pthread_mutex_unlock(&c->vm->code);
	world_start(c->vm, NULL);
	timer_arm(c, UINT64_MAX);
	lapic_finish(c);
	fpu_finish(c);
	cache_finish(c);
	forms_free(c->forms);
	trans_finish(c);
}

static int translator_init(struct cpu *c, struct husk_error *err)
{
	int ret = trans_init(c);

	/* The interpreter runs what calculates with SSE and x87 from there. */
	if (ret == -EACCES || ret == -EPERM)
		return error_set(err, ret,
				 "engine soft: this process may not have "
				 "executable memory (SELinux, PR_SET_MDWE or "
				 "a seccomp filter forbids it)");
	if (ret)
		return error_errno(err, ret, "engine soft: code memory");
	if (!strcmp(c->vcpu.vm->options, "eager"))
		c->trans->hot = 0;
	return 0;
}

static int soft_vcpu_init(struct hv_vcpu *v, struct husk_error *err)
{
	struct cpu *c = to_cpu(v);
	struct soft_vm *vm = to_soft(v->vm);
	int ret;

	c->vm = vm;
	c->parked = 1;
	c->tsc_offset = -soft_tsc0(vm); /* all start at 0, with the VM */
	c->interp_only = !strcmp(v->vm->options, "interp");
	tlb_init(c);
	c->forms = forms_new();
	ret = c->forms ? cache_init(c) : -ENOMEM;
	if (!ret)
		ret = lapic_init(c);
	if (ret)
		error_errno(err, ret, "vCPU %u", v->id);
	if (!ret && !c->interp_only)
		ret = translator_init(c, err);
	if (!ret)
		ret = cpuid_model(v->vm->cpu_model, v->id, v->vm->max_vcpus,
				  v->vm->tsc_khz, v->vm->caps.phys_bits,
				  c->cpuid, ARRAY_SIZE(c->cpuid), err);
	if (ret < 0) {
		soft_vcpu_finish(v);
		return ret;
	}
	c->ncpuid = (unsigned)ret;
	c->amd = c->cpuid[0].ecx == 0x444d4163; /* "cAMD" */
	cpu_reset(c, false);
	world_stop(vm, NULL);
	vm->cpu[v->id] = c;
	world_start(vm, NULL);
	return 0;
}

static int soft_debug(struct hv_vcpu *v, unsigned flags)
{
	to_cpu(v)->debug = flags;
	return 0;
}

static int soft_stats(struct hv_vcpu *v, struct hv_stats *stats)
{
	*stats = to_cpu(v)->stats;
	trans_stats(to_cpu(v), stats);
	return 0;
}

const struct hv_engine hv_engine_soft = {
	.name = "soft",
	.vm_size = sizeof(struct soft_vm),
	.vcpu_size = sizeof(struct cpu),
	.probe = soft_probe,
	.vm_init = soft_vm_init,
	.vm_finish = soft_vm_finish,
	.vcpu_init = soft_vcpu_init,
	.vcpu_finish = soft_vcpu_finish,
	.mem_map = soft_mem_map,
	.mem_unmap = soft_mem_unmap,
	.mem_protect = soft_mem_protect,
	.mem_fetch_dirty = soft_mem_fetch_dirty,
	.mem_written = soft_mem_written,
	.run = soft_run,
	.complete = soft_complete,
	.kick = soft_kick,
	.get = soft_get,
	.set = soft_set,
	.msi = soft_msi,
	.route = route_set,
	.irqfd = route_irqfd,
	.inject = soft_inject,
	.ready = soft_ready,
	.want_window = soft_want_window,
	.nmi = soft_nmi,
	.doorbell = route_doorbell,
	.cpuid = soft_cpuid,
	.clock_get = soft_clock_get,
	.clock_set = soft_clock_set,
	.time_stop = soft_time_stop,
	.time_start = soft_time_start,
	.time_skip = soft_time_skip,
	.debug = soft_debug,
	.stats = soft_stats,
};
