/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lapic.c - the local APIC: xAPIC, x2APIC, timer, messages between vCPUs
 *
 * A sender on any thread sets TMR and then IRR of the target with atomic
 * operations and calls cpu_request(); everything else of an APIC is touched
 * only by the thread that runs its vCPU.  SDM 3A chapter 11.
 */
#include "hv/soft/x86/lapic.h"

#include <errno.h>
#include <stdlib.h>

#include "base/loop.h"

enum {
	REG_ID = 0x02,
	REG_VERSION = 0x03,
	REG_TPR = 0x08,
	REG_APR = 0x09,
	REG_PPR = 0x0a,
	REG_EOI = 0x0b,
	REG_LDR = 0x0d,
	REG_DFR = 0x0e,
	REG_SVR = 0x0f,
	REG_ISR = 0x10,
	REG_TMR = 0x18,
	REG_IRR = 0x20,
	REG_ESR = 0x28,
	REG_ICR = 0x30,
	REG_ICR2 = 0x31,
	REG_LVT = 0x32,
	REG_INITIAL = 0x38,
	REG_CURRENT = 0x39,
	REG_DIVIDE = 0x3e,
	REG_SELF = 0x3f,
};

enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_NMI = 4, DM_INIT, DM_SIPI, DM_EXTINT };

enum { ESR_SEND_VECTOR = 0x20, ESR_RECV_VECTOR = 0x40, ESR_REGISTER = 0x80 };

enum { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_DEADLINE };

#define LVT_MASKED   BIT(16)
#define SVR_ENABLED  BIT(8)
#define APIC_VERSION (0x14u | (LVT_COUNT - 1) << 16)

static const uint32_t lvt_bits[LVT_COUNT] = {
	[LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
	[LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,	[LVT_ERROR] = 0x100ff,
};

static bool is_on(const struct cpu *c)
{
	return c->apic_base & APIC_BASE_EN;
}

static bool is_x2(const struct cpu *c)
{
	return (c->apic_base & (APIC_BASE_EN | APIC_BASE_EXTD)) ==
	       (APIC_BASE_EN | APIC_BASE_EXTD);
}

static uint32_t x2_ldr(uint32_t id)
{
	return (id >> 4) << 16 | 1u << (id & 15);
}

static int highest_isr(const struct lapic *l)
{
	for (int i = 7; i >= 0; i--)
		if (l->isr[i])
			return i * 32 + 31 - __builtin_clz(l->isr[i]);
	return -1;
}

static int highest_irr(struct lapic *l)
{
	for (int i = 7; i >= 0; i--) {
		uint32_t v = atomic_load(&l->irr[i]);

		if (v)
			return i * 32 + 31 - __builtin_clz(v);
	}
	return -1;
}

static uint32_t get_ppr(const struct lapic *l)
{
	int isr = highest_isr(l);
	uint32_t served = isr < 0 ? 0 : (uint32_t)isr & 0xf0;

	return (l->tpr & 0xf0) >= served ? l->tpr : served;
}

/* Tell the loop to look again when something has become deliverable. */
static void look_again(struct cpu *c)
{
	struct lapic *l = c->lapic;
	int irr = highest_irr(l);

	if (irr >= 0 && ((uint32_t)irr & 0xf0) > (get_ppr(l) & 0xf0))
		cpu_request(c, REQ_IRQ);
}

/* -- accepting ------------------------------------------------------------ */

static void accept(struct cpu *t, uint8_t vector, bool level)
{
	struct lapic *l = t->lapic;
	uint32_t bit = 1u << (vector & 31);

	if (level)
		atomic_fetch_or(&l->tmr[vector / 32], bit);
	else
		atomic_fetch_and(&l->tmr[vector / 32], ~bit);
	atomic_fetch_or(&l->irr[vector / 32], bit);
	cpu_request(t, REQ_IRQ);
}

static void set_error(struct cpu *c, uint32_t bits)
{
	struct lapic *l = c->lapic;
	uint32_t lvt = l->lvt[LVT_ERROR];

	l->esr_pending |= bits;
	if (!(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
		accept(c, (uint8_t)lvt, false);
}

static void fire_lvt(struct cpu *c, unsigned which)
{
	uint32_t lvt = c->lapic->lvt[which];

	if (lvt & LVT_MASKED)
		return;
	if ((lvt & 0xff) < 16)
		set_error(c, ESR_RECV_VECTOR);
	else
		accept(c, (uint8_t)lvt, false);
}

static bool matches(struct cpu *t, uint32_t dest, bool logical)
{
	struct lapic *l = t->lapic;
	uint32_t ldr;

	if (is_x2(t)) {
		if (!logical)
			return dest == t->vcpu.id;
		ldr = x2_ldr(t->vcpu.id);
		return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
	}
	if (!logical)
		return dest == l->id >> 24;
	ldr = l->ldr >> 24;
	if (l->dfr >> 28 == 0xf)
		return dest & ldr & 0xff;
	return (dest >> 4 & 15) == ldr >> 4 && (dest & ldr & 15);
}

static bool deliver(struct cpu *t, unsigned mode, uint8_t vector, bool level)
{
	switch (mode) {
	case DM_FIXED:
	case DM_LOWEST:
		if (!(t->lapic->svr & SVR_ENABLED))
			return false;
		if (vector < 16)
			return false;
		accept(t, vector, level);
		return true;
	case DM_NMI:
		atomic_fetch_add(&t->nmi_pending, 1);
		cpu_request(t, REQ_NMI);
		return true;
	case DM_INIT: cpu_request(t, REQ_INIT); return true;
	case DM_SIPI:
		__atomic_store_n(&t->sipi_vector, vector, __ATOMIC_SEQ_CST);
		cpu_request(t, REQ_SIPI);
		return true;
	case DM_EXTINT: /* the owner of the PIC has the vector */
		atomic_store(&t->extint_msi, true);
		cpu_request(t, REQ_WINDOW);
		return true;
	default: /* SMI: there is no SMM */ return true;
	}
}

/* wide: dest is an x2APIC destination of 32 bits, else one of 8 bits. */
unsigned lapic_send(struct soft_vm *vm, struct cpu *from, uint32_t icr,
		    uint32_t dest, bool wide)
{
	unsigned mode = icr >> 8 & 7, shorthand = icr >> 18 & 3, n = 0;
	bool logical = icr & BIT(11), level = icr & BIT(15);
	bool all = dest == (wide ? 0xffffffff : 0xff);
	struct cpu *target[HV_MAX_VCPUS];
	uint8_t vector = (uint8_t)icr;

	if (mode == DM_INIT && level && !(icr & BIT(14)))
		return 0; /* INIT level de-assert: nothing on x86-64 */
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct cpu *t = __atomic_load_n(&vm->cpu[i], __ATOMIC_ACQUIRE);
		bool hit;

		if (!t || !t->lapic)
			continue;
		switch (shorthand) {
		case 1: hit = t == from; break;
		case 2: hit = true; break;
		case 3: hit = t != from; break;
		default: hit = all || matches(t, dest, logical);
		}
		if (!hit || !is_on(t))
			continue;
		if (mode == DM_LOWEST && !(t->lapic->svr & SVR_ENABLED))
			continue;
		target[n++] = t;
	}
	/* Any choice is allowed; the same vector stays on the same vCPU. */
	if (mode == DM_LOWEST && n > 1) {
		target[0] = target[vector % n];
		n = 1;
	}
	for (unsigned i = 0; i < n; i++)
		deliver(target[i], mode, vector, level);
	return n;
}

int lapic_msi(struct soft_vm *vm, uint64_t addr, uint32_t data)
{
	uint32_t icr = (data & 0x7ff) | (data & BIT(14)) | (data & BIT(15));

	if (addr & BIT(2))
		icr |= BIT(11);
	/* Redirection hint: as lowest priority (SDM 3A 11.11.1). */
	if ((addr & BIT(3)) && (data >> 8 & 7) == DM_FIXED)
		icr |= DM_LOWEST << 8;
	if ((data >> 8 & 7) == DM_SIPI)
		return -EINVAL;
	lapic_send(vm, NULL, icr, (uint32_t)(addr >> 12) & 0xff, false);
	return 0;
}

static void write_icr(struct cpu *c, uint32_t icr, uint32_t dest, bool wide)
{
	unsigned mode = icr >> 8 & 7;

	if ((mode == DM_FIXED || mode == DM_LOWEST) && (icr & 0xff) < 16) {
		set_error(c, ESR_SEND_VECTOR);
		return;
	}
	/* Only INIT de-assert has a meaning for level-triggered IPIs. */
	if (mode != DM_INIT)
		icr &= ~(uint32_t)BIT(15);
	lapic_send(c->vm, c, icr, dest, wide);
}

/* -- end of interrupt ----------------------------------------------------- */

static void end_interrupt(struct cpu *c)
{
	struct lapic *l = c->lapic;
	int v = highest_isr(l);

	if (v < 0)
		return;
	l->isr[v / 32] &= ~(1u << (v & 31));
	if (atomic_load(&l->tmr[v / 32]) >> (v & 31) & 1) {
		l->pending_eoi = true;
		l->eoi[v / 32] |= 1u << (v & 31);
		c->irq_check = true; /* the loop takes it at block end */
	}
	look_again(c);
}

/*
 * The guest may end the newest interrupt by clearing a bit in memory.  Learn
 * of that; with take_back the bit is cleared so that it uses the APIC.
 */
static void sync_pv_eoi(struct cpu *c, bool take_back)
{
	struct lapic *l = c->lapic;
	bool set;

	if (likely(!l->pv_eoi_set))
		return;
	if (!kvmpv_eoi_get(c, &set)) {
		l->pv_eoi_set = false;
		return;
	}
	if (!set) {
		l->pv_eoi_set = false;
		end_interrupt(c);
	} else if (take_back) {
		l->pv_eoi_set = false;
		kvmpv_eoi_set(c, false);
	}
}

void lapic_sync_pv_eoi(struct cpu *c)
{
	sync_pv_eoi(c, true);
}

static void write_eoi(struct cpu *c)
{
	sync_pv_eoi(c, true);
	end_interrupt(c);
}

bool lapic_take_eoi(struct cpu *c, uint8_t *vector)
{
	struct lapic *l = c->lapic;

	if (likely(!l->pending_eoi))
		return false;
	for (unsigned i = 0; i < 8; i++) {
		unsigned bit;

		if (!l->eoi[i])
			continue;
		bit = (unsigned)__builtin_ctz(l->eoi[i]);
		l->eoi[i] &= l->eoi[i] - 1;
		*vector = (uint8_t)(i * 32 + bit);
		return true;
	}
	l->pending_eoi = false;
	return false;
}

/* -- to the CPU ----------------------------------------------------------- */

bool lapic_has_irq(struct cpu *c)
{
	struct lapic *l = c->lapic;
	int irr = highest_irr(l);

	if (irr < 0 || !is_on(c))
		return false;
	sync_pv_eoi(c, true);
	return ((uint32_t)irr & 0xf0) > (get_ppr(l) & 0xf0);
}

int lapic_ack(struct cpu *c)
{
	struct lapic *l = c->lapic;
	bool first, level;
	int v;

	if (!lapic_has_irq(c))
		return -1;
	v = highest_irr(l);
	first = highest_isr(l) < 0;
	level = atomic_load(&l->tmr[v / 32]) >> (v & 31) & 1;
	atomic_fetch_and(&l->irr[v / 32], ~(1u << (v & 31)));
	l->isr[v / 32] |= 1u << (v & 31);
	if ((c->msr.kvm_eoi & 1) && first && !level && highest_irr(l) < 0)
		l->pv_eoi_set = kvmpv_eoi_set(c, true);
	return v;
}

bool lapic_accepts_extint(struct cpu *c)
{
	uint32_t lvt = c->lapic->lvt[LVT_LINT0];

	if (!is_on(c))
		return true;
	return !(lvt & LVT_MASKED) && (lvt >> 8 & 7) == DM_EXTINT;
}

uint8_t lapic_cr8_get(struct cpu *c)
{
	return (uint8_t)(c->lapic->tpr >> 4);
}

static void set_tpr(struct cpu *c, uint32_t v)
{
	c->lapic->tpr = v & 0xff;
	look_again(c);
}

void lapic_cr8_set(struct cpu *c, uint8_t v)
{
	set_tpr(c, (uint32_t)(v & 15) << 4);
}

/* -- timer ---------------------------------------------------------------- */

static unsigned timer_mode(const struct lapic *l)
{
	return l->lvt[LVT_TIMER] >> 17 & 3;
}

static uint64_t divisor(const struct lapic *l)
{
	unsigned v = (l->divide & 3) | (l->divide >> 1 & 4);

	return 1ull << ((v + 1) & 7);
}

static uint64_t period_ns(const struct lapic *l)
{
	return l->initial * divisor(l);
}

static uint64_t now_ns(const struct lapic *l)
{
	return l->stopped_ns ? l->stopped_ns : loop_now();
}

static void start_timer(struct lapic *l, uint64_t remaining_ns)
{
	l->expiry_ns = remaining_ns && timer_mode(l) != TIMER_DEADLINE
			       ? now_ns(l) + remaining_ns
			       : UINT64_MAX;
}

static uint32_t current_count(const struct lapic *l)
{
	uint64_t now;

	if (l->expiry_ns == UINT64_MAX || timer_mode(l) == TIMER_DEADLINE)
		return 0;
	now = now_ns(l);
	if (now >= l->expiry_ns) {
		if (timer_mode(l) != TIMER_PERIODIC || !l->initial)
			return 0;
		now = period_ns(l) - (now - l->expiry_ns) % period_ns(l);
		return (uint32_t)(now / divisor(l));
	}
	return (uint32_t)((l->expiry_ns - now) / divisor(l));
}

uint64_t lapic_deadline(struct cpu *c)
{
	struct lapic *l = c->lapic;

	if (!is_on(c))
		return UINT64_MAX;
	if (timer_mode(l) != TIMER_DEADLINE)
		return l->expiry_ns;
	return l->tsc_deadline ? soft_tsc_to_ns(c, l->tsc_deadline)
			       : UINT64_MAX;
}

void lapic_poll(struct cpu *c)
{
	struct lapic *l = c->lapic;
	uint64_t due = l->expiry_ns, now;

	if (!is_on(c))
		return;
	/* In its own units: the two clocks drift apart. */
	if (timer_mode(l) == TIMER_DEADLINE) {
		if (!l->tsc_deadline || cpu_tsc(c) < l->tsc_deadline)
			return;
		l->tsc_deadline = 0;
		fire_lvt(c, LVT_TIMER);
		return;
	}
	if (due == UINT64_MAX)
		return;
	now = now_ns(l);
	if (now < due)
		return;
	switch (timer_mode(l)) {
	case TIMER_PERIODIC:
		if (l->initial) {
			/* Ticks that nobody could take are not made up. */
			uint64_t p = period_ns(l);

			l->expiry_ns += p * ((now - due) / p + 1);
			break;
		}
		/* fall through */
	default: l->expiry_ns = UINT64_MAX;
	}
	fire_lvt(c, LVT_TIMER);
}

static void write_lvt(struct cpu *c, unsigned i, uint32_t v)
{
	struct lapic *l = c->lapic;
	unsigned was = timer_mode(l);
	uint64_t left;

	v &= lvt_bits[i];
	if (!(l->svr & SVR_ENABLED))
		v |= LVT_MASKED;
	left = i == LVT_TIMER ? current_count(l) * divisor(l) : 0;
	l->lvt[i] = v;
	if (i != LVT_TIMER || timer_mode(l) == was)
		return;
	/* A change to or from deadline mode disarms (SDM 3A 11.5.4.1). */
	if (was == TIMER_DEADLINE || timer_mode(l) == TIMER_DEADLINE) {
		l->tsc_deadline = 0;
		l->expiry_ns = UINT64_MAX;
		l->initial = 0;
	} else {
		start_timer(l, left);
	}
}

void lapic_stop_time(struct cpu *c, uint64_t ns)
{
	c->lapic->stopped_ns = ns;
}

void lapic_start_time(struct cpu *c, uint64_t ns)
{
	struct lapic *l = c->lapic;

	if (l->stopped_ns && l->expiry_ns != UINT64_MAX)
		l->expiry_ns += ns - l->stopped_ns;
	l->stopped_ns = 0;
	look_again(c);
}

void lapic_skip_time(struct cpu *c, uint64_t ns)
{
	struct lapic *l = c->lapic;

	/* A periodic one may go on from long ago, but not from before 0. */
	if (l->expiry_ns != UINT64_MAX)
		l->expiry_ns = l->expiry_ns > ns ? l->expiry_ns - ns : 1;
}

void lapic_force_deadline(struct cpu *c, uint64_t tsc)
{
	c->lapic->tsc_deadline = tsc;
}

/* -- registers ------------------------------------------------------------ */

static uint32_t read_reg(struct cpu *c, unsigned reg)
{
	struct lapic *l = c->lapic;

	switch (reg) {
	case REG_ID: return is_x2(c) ? c->vcpu.id : l->id;
	case REG_VERSION: return APIC_VERSION;
	case REG_TPR: return l->tpr;
	case REG_PPR: return get_ppr(l);
	case REG_LDR: return is_x2(c) ? x2_ldr(c->vcpu.id) : l->ldr;
	case REG_DFR: return l->dfr;
	case REG_SVR: return l->svr;
	case REG_ISR ... REG_ISR + 7:
		sync_pv_eoi(c, true);
		return l->isr[reg - REG_ISR];
	case REG_TMR ... REG_TMR + 7: return l->tmr[reg - REG_TMR];
	case REG_IRR ... REG_IRR + 7: return l->irr[reg - REG_IRR];
	case REG_ESR: return l->esr;
	case REG_ICR: return l->icr_low;
	case REG_ICR2: return l->icr_high;
	case REG_LVT ... REG_LVT + LVT_COUNT - 1: return l->lvt[reg - REG_LVT];
	case REG_INITIAL: return l->initial;
	case REG_CURRENT: return current_count(l);
	case REG_DIVIDE: return l->divide;
	default: return 0;
	}
}

static void write_svr(struct lapic *l, uint32_t v)
{
	l->svr = v & 0x1ff;
	if (v & SVR_ENABLED)
		return;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] |= LVT_MASKED;
}

static void write_reg(struct cpu *c, unsigned reg, uint32_t v)
{
	struct lapic *l = c->lapic;
	uint64_t left;

	switch (reg) {
	case REG_TPR:
		sync_pv_eoi(c, true);
		set_tpr(c, v);
		break;
	case REG_EOI: write_eoi(c); break;
	case REG_SVR: write_svr(l, v); break;
	case REG_ESR:
		l->esr = l->esr_pending;
		l->esr_pending = 0;
		break;
	case REG_LVT ... REG_LVT + LVT_COUNT - 1:
		write_lvt(c, reg - REG_LVT, v);
		break;
	case REG_INITIAL:
		if (timer_mode(l) == TIMER_DEADLINE)
			break;
		l->initial = v;
		start_timer(l, period_ns(l));
		break;
	case REG_DIVIDE:
		left = current_count(l);
		l->divide = v & 0xb;
		start_timer(l, left * divisor(l));
		break;
	}
}

uint32_t lapic_mmio_read(struct cpu *c, uint32_t off)
{
	if (is_x2(c) || (off & 15) > 12 || off >= 0x400)
		return 0;
	return off & 15 ? 0 : read_reg(c, off >> 4);
}

void lapic_mmio_write(struct cpu *c, uint32_t off, uint32_t value)
{
	struct lapic *l = c->lapic;

	if (is_x2(c) || (off & 15) || off >= 0x400)
		return;
	switch (off >> 4) {
	case REG_ID: l->id = value & 0xff000000; break;
	case REG_LDR: l->ldr = value & 0xff000000; break;
	case REG_DFR: l->dfr = value | 0x0fffffff; break;
	case REG_ICR:
		l->icr_low = value & 0xcdfff;
		l->icr_low &= ~(uint32_t)BIT(12);
		write_icr(c, l->icr_low, l->icr_high >> 24, false);
		break;
	case REG_ICR2: l->icr_high = value & 0xff000000; break;
	default: write_reg(c, off >> 4, value);
	}
}

bool lapic_msr_read(struct cpu *c, uint32_t index, uint64_t *value)
{
	unsigned reg = index - 0x800;

	if (index == 0x6e0) {
		*value = timer_mode(c->lapic) == TIMER_DEADLINE
				 ? c->lapic->tsc_deadline
				 : 0;
		return true;
	}
	if (!is_x2(c))
		return false;
	switch (reg) {
	case REG_ID:
	case REG_VERSION:
	case REG_TPR:
	case REG_PPR:
	case REG_LDR:
	case REG_SVR:
	case REG_ISR ... REG_IRR + 7:
	case REG_ESR:
	case REG_LVT ... REG_LVT + LVT_COUNT - 1:
	case REG_INITIAL:
	case REG_CURRENT:
	case REG_DIVIDE: *value = read_reg(c, reg); return true;
	case REG_ICR:
		*value = (uint64_t)c->lapic->icr_high << 32 | c->lapic->icr_low;
		return true;
	default: return false;
	}
}

bool lapic_msr_write(struct cpu *c, uint32_t index, uint64_t value)
{
	struct lapic *l = c->lapic;
	unsigned reg = index - 0x800;

	/* Something to deliver, or another time to wake up at. */
	c->irq_check = true;
	if (index == 0x6e0) {
		if (timer_mode(l) == TIMER_DEADLINE)
			l->tsc_deadline = value;
		lapic_poll(c);
		return true;
	}
	if (!is_x2(c))
		return false;
	if (reg == REG_ICR) {
		if (value & 0xfff32000)
			return false;
		l->icr_low = (uint32_t)value & 0xcdfff;
		l->icr_high = value >> 32;
		write_icr(c, l->icr_low, l->icr_high, true);
		return true;
	}
	if (value >> 32)
		return false;
	switch (reg) {
	case REG_TPR:
	case REG_SELF:
		if (value & ~0xffull)
			return false;
		break;
	case REG_EOI:
	case REG_ESR:
		if (value)
			return false;
		break;
	case REG_SVR:
		if (value & ~0x13ffull)
			return false;
		break;
	case REG_LVT ... REG_LVT + LVT_COUNT - 1:
		if (value & ~(uint64_t)(lvt_bits[reg - REG_LVT] | 0x15000))
			return false;
		break;
	case REG_INITIAL: break;
	case REG_DIVIDE:
		if (value & ~0xbull)
			return false;
		break;
	default: return false;
	}
	if (reg == REG_SELF)
		write_icr(c, (uint32_t)value | 1u << 18, 0, true);
	else
		write_reg(c, reg, (uint32_t)value);
	return true;
}

/* -- base ----------------------------------------------------------------- */

bool lapic_base_valid(const struct cpu *c, uint64_t v)
{
	uint64_t fixed = BIT(c->vm->vm.caps.phys_bits) - 0x1000;

	if (v & ~(fixed | APIC_BASE_BSP | APIC_BASE_EXTD | APIC_BASE_EN))
		return false;
	return (v & APIC_BASE_EN) || !(v & APIC_BASE_EXTD);
}

void lapic_force_base(struct cpu *c, uint64_t v)
{
	struct lapic *l = c->lapic;
	bool was_on = is_on(c), moved = (v ^ c->apic_base) & ~0xfffull;

	c->apic_base = v;
	if (!was_on && is_on(c))
		l->id = c->vcpu.id << 24;
	if (!is_on(c))
		l->expiry_ns = UINT64_MAX;
	/* A page that was the APIC's may be RAM now, and the reverse. */
	if (moved || was_on != is_on(c))
		tlb_flush(c, true);
}

bool lapic_set_base(struct cpu *c, uint64_t v)
{
	if (!lapic_base_valid(c, v))
		return false;
	/* SDM 3A figure 11-27: x2APIC only from xAPIC, and off only fully. */
	if (is_x2(c) && (v & APIC_BASE_EN) && !(v & APIC_BASE_EXTD))
		return false;
	if (!is_on(c) && (v & APIC_BASE_EXTD))
		return false;
	lapic_force_base(c, v);
	return true;
}

/* -- state ---------------------------------------------------------------- */

static void put(uint8_t *regs, unsigned reg, uint32_t v)
{
	memcpy(regs + reg * 16, &v, 4);
}

static uint32_t take(const uint8_t *regs, unsigned reg)
{
	uint32_t v;

	memcpy(&v, regs + reg * 16, 4);
	return v;
}

void lapic_get(struct cpu *c, uint8_t *regs)
{
	memset(regs, 0, HV_APIC_SIZE);
	sync_pv_eoi(c, true);
	for (unsigned reg = 0; reg < HV_APIC_SIZE / 16; reg++)
		put(regs, reg, read_reg(c, reg));
}

/* Needs c->apic_base as it belongs to regs. */
int lapic_set(struct cpu *c, const uint8_t *regs)
{
	struct lapic *l = c->lapic;
	uint32_t id = take(regs, REG_ID), count;
	uint64_t left;

	if (is_x2(c) && id != c->vcpu.id)
		return -EINVAL;
	if (take(regs, REG_TPR) > 0xff || take(regs, REG_DIVIDE) & ~0xbu ||
	    (take(regs, REG_ISR) | take(regs, REG_IRR)) & 0xffff)
		return -EINVAL;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		if (take(regs, REG_LVT + i) & ~(lvt_bits[i] | 0x15000))
			return -EINVAL;
	if ((take(regs, REG_LVT) >> 17 & 3) == 3)
		return -EINVAL;

	if (!is_x2(c)) {
		l->id = id & 0xff000000;
		l->ldr = take(regs, REG_LDR) & 0xff000000;
		l->dfr = take(regs, REG_DFR) | 0x0fffffff;
	}
	l->tpr = take(regs, REG_TPR);
	l->svr = take(regs, REG_SVR) & 0x1ff;
	for (unsigned i = 0; i < 8; i++) {
		l->isr[i] = take(regs, REG_ISR + i);
		atomic_store(&l->tmr[i], take(regs, REG_TMR + i));
		atomic_store(&l->irr[i], take(regs, REG_IRR + i));
	}
	l->esr = take(regs, REG_ESR);
	l->esr_pending = 0;
	l->icr_low = take(regs, REG_ICR) & 0xcdfff;
	l->icr_high = take(regs, REG_ICR2);
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = take(regs, REG_LVT + i) & lvt_bits[i];
	l->divide = take(regs, REG_DIVIDE);
	l->initial = take(regs, REG_INITIAL);
	count = take(regs, REG_CURRENT);
	if (count > l->initial)
		count = l->initial;
	left = count * divisor(l);
	if (!left && timer_mode(l) == TIMER_PERIODIC)
		left = period_ns(l);
	start_timer(l, left);
	l->pv_eoi_set = false;
	l->pending_eoi = false;
	memset(l->eoi, 0, sizeof(l->eoi));
	look_again(c);
	return 0;
}

/* -- life ----------------------------------------------------------------- */

void lapic_reset(struct cpu *c, bool init_only)
{
	struct lapic *l = c->lapic;

	if (!init_only) {
		c->apic_base = 0xfee00000 | APIC_BASE_EN |
			       (c->vcpu.id ? 0 : APIC_BASE_BSP);
		l->id = c->vcpu.id << 24;
	}
	for (unsigned i = 0; i < 8; i++) {
		atomic_store(&l->irr[i], 0);
		atomic_store(&l->tmr[i], 0);
		l->isr[i] = 0;
	}
	l->ldr = 0;
	l->dfr = 0xffffffff;
	l->svr = 0xff;
	l->tpr = l->esr = l->esr_pending = l->icr_low = l->icr_high = 0;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = LVT_MASKED;
	/* Virtual wire mode, as firmware leaves it: the PIC works at once. */
	if (!c->vcpu.id)
		l->lvt[LVT_LINT0] = DM_EXTINT << 8;
	l->divide = l->initial = 0;
	l->expiry_ns = UINT64_MAX;
	l->tsc_deadline = 0;
	l->pending_eoi = l->pv_eoi_set = false;
	memset(l->eoi, 0, sizeof(l->eoi));
}

int lapic_init(struct cpu *c)
{
	c->lapic = calloc(1, sizeof(*c->lapic));
	if (!c->lapic)
		return -ENOMEM;
	lapic_reset(c, false);
	return 0;
}

void lapic_finish(struct cpu *c)
{
	free(c->lapic);
	c->lapic = NULL;
}
