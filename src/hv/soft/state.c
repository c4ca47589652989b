/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - architectural state of a soft vCPU, out and in
 *
 * A state may come from a file: everything is checked before anything is
 * changed.
 */
#include <errno.h>

#include "hv/soft/x86/lapic.h"

#define RFLAGS_KNOWN 0x3f7fd7ull
#define CR4_KNOWN \
	(CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | \
	 CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | \
	 CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP)
#define CR0_KNOWN \
	(CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | \
	 CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define EFER_KNOWN   (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AIBRS)
#define ACCESS_KNOWN 0x1f0ffu

enum { MSR_TSC = 0x10, MSR_TSC_ADJUST = 0x3b, MSR_TSC_DEADLINE = 0x6e0 };

/*
 * The MSRs that get gives, in the order in which set wants them: the TSC
 * before what is counted from it.
 */
static const uint32_t kept[] = {
	MSR_TSC,    MSR_TSC_ADJUST, 0xc0000081, 0xc0000082,
	0xc0000083, 0xc0000084,	    0xc0000102, 0xc0000103,
	0x174,	    0x175,	    0x176,	0x277,
	0x1a0,	    0x48,	    0x17a,	MTRR_MSRS,
	0x400,	    0x402,	    0x403,	0x404,
	0x406,	    0x407,	    0x408,	0x40a,
	0x40b,	    0x40c,	    0x40e,	0x40f,
	0x410,	    0x412,	    0x413,	0x414,
	0x416,	    0x417,	    0x418,	0x41a,
	0x41b,	    0x41c,	    0x41e,	0x41f,
	0x420,	    0x422,	    0x423,	0x424,
	0x426,	    0x427,	    0x4b564d00, 0x4b564d01,
	0x4b564d03, 0x4b564d04,	    0x4b564d05, MSR_TSC_DEADLINE,
};

_Static_assert(ARRAY_SIZE(kept) <= HV_MAX_MSRS, "state.msr is too small");

/* -- get ------------------------------------------------------------------ */

static void get_system(struct cpu *c, struct hv_state *s)
{
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct hv_segment){
			.selector = c->seg[i].sel,
			.limit = c->seg[i].limit,
			.access = c->seg[i].access,
			.base = c->seg[i].base,
		};
	s->gdtr.base = c->gdtr.base;
	s->gdtr.limit = c->gdtr.limit;
	s->idtr.base = c->idtr.base;
	s->idtr.limit = c->idtr.limit;
	s->cr0 = c->cr0;
	s->cr2 = c->cr2;
	s->cr3 = c->cr3;
	s->cr4 = c->cr4;
	s->cr8 = lapic_cr8_get(c);
	s->efer = c->efer;
	s->xcr0 = c->xcr0;
	s->apic_base = c->apic_base;
}

static void get_msrs(struct cpu *c, struct hv_state *s)
{
	s->nmsrs = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
		struct hv_msr_value *m = &s->msr[s->nmsrs];

		m->index = kept[i];
		if (msr_read(c, kept[i], &m->value))
			s->nmsrs++;
	}
}

static void get_event(struct cpu *c, struct hv_state *s)
{
	memset(&s->event, 0, sizeof(s->event));
	s->event.mp = c->mp;
	if (c->fault.pending && c->fault.kind == EVENT_FAULT) {
		s->event.exception = true;
		s->event.vector = c->fault.vector;
		s->event.has_error = c->fault.has_error;
		s->event.error = c->fault.error;
	}
	s->event.interrupt = c->extint;
	s->event.interrupt_vector = c->extint_vector;
	s->event.nmi_pending = atomic_load(&c->nmi_pending) != 0;
	s->event.nmi_masked = c->nmi_masked;
	s->event.movss_shadow = c->inhibit_ss;
	s->event.sti_shadow = c->inhibit && !c->inhibit_ss;
	s->event.sipi_vector = c->sipi_vector;
	for (unsigned i = 0; i < 8; i++)
		s->event.eoi_pending[i / 2] |= (uint64_t)c->lapic->eoi[i]
					       << (i % 2 * 32);
	/* A kick ends HLT: see HC_KICK_CPU. */
	if (s->event.mp == HV_MP_HALTED && atomic_load(&c->pv_kicked))
		s->event.mp = HV_MP_RUNNABLE;
}

int soft_get(struct hv_vcpu *cpu, unsigned groups, struct hv_state *s)
{
	struct cpu *c = to_cpu(cpu);

	cpu_settle(c);
	if (c->replay.waiting || c->replay.done)
		return -EBUSY;
	if (groups & HV_STATE_GENERAL) {
		memcpy(s->gpr, c->gpr, sizeof(s->gpr));
		s->rip = c->rip;
		s->rflags = c->rflags | 2;
	}
	if (groups & HV_STATE_SYSTEM)
		get_system(c, s);
	if (groups & HV_STATE_DEBUG) {
		memcpy(s->dr, c->dr, sizeof(s->dr));
		s->dr6 = c->dr6;
		s->dr7 = c->dr7;
	}
	if (groups & HV_STATE_FPU) {
		memset(s->fpu, 0, sizeof(s->fpu));
		fpu_get(c, s->fpu);
	}
	if (groups & HV_STATE_MSR)
		get_msrs(c, s);
	if (groups & HV_STATE_APIC)
		lapic_get(c, s->apic);
	if (groups & HV_STATE_EVENT)
		get_event(c, s);
	return 0;
}

/* -- checks --------------------------------------------------------------- */

static bool system_valid(const struct cpu *c, const struct hv_state *s)
{
	uint64_t phys = BIT(c->vm->vm.caps.phys_bits) - 1;
	bool pg = s->cr0 & CR0_PG, lma = s->efer & EFER_LMA;

	if (s->cr0 & ~CR0_KNOWN || s->cr4 & ~CR4_KNOWN || s->efer & ~EFER_KNOWN)
		return false;
	if (pg && !(s->cr0 & CR0_PE))
		return false;
	if ((s->cr0 & CR0_NW) && !(s->cr0 & CR0_CD))
		return false;
	if (lma != (pg && (s->efer & EFER_LME)))
		return false;
	if (lma && !(s->cr4 & CR4_PAE))
		return false;
	if ((s->cr4 & CR4_PCIDE) && !lma)
		return false;
	if (s->cr3 & ~phys || s->cr8 > 15)
		return false;
	if (!(s->xcr0 & 1) || s->xcr0 & ~7ull || (s->xcr0 & 6) == 4)
		return false;
	if (!lapic_base_valid(c, s->apic_base))
		return false;
	if (!canonical(s->gdtr.base) || !canonical(s->idtr.base))
		return false;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (s->seg[i].access & ~ACCESS_KNOWN ||
		    !canonical(s->seg[i].base))
			return false;
	return true;
}

static bool event_valid(const struct hv_state *s)
{
	if ((unsigned)s->event.mp > HV_MP_INIT_RECEIVED)
		return false;
	if (s->event.exception &&
	    (s->event.vector > 31 || s->event.vector == VEC_NMI))
		return false;
	return s->event.sipi_vector <= 0xff;
}

static bool general_valid(const struct cpu *c, const struct hv_state *s,
			  unsigned groups)
{
	uint64_t efer = groups & HV_STATE_SYSTEM ? s->efer : c->efer;

	if (s->rflags & ~RFLAGS_KNOWN)
		return false;
	return !(efer & EFER_LMA) || canonical(s->rip);
}

/* -- set ------------------------------------------------------------------ */

/* Without long mode PAE paging reads four entries when CR3 is loaded. */
static void load_pdptes(struct cpu *c)
{
	uint64_t gpa = c->cr3 & 0xffffffe0;
	void *p;

	if (!(c->cr0 & CR0_PG) || !(c->cr4 & CR4_PAE) || (c->efer & EFER_LMA))
		return;
	p = phys_ptr(c->vm, gpa, sizeof(c->pdpte));
	if (p)
		memcpy(c->pdpte, p, sizeof(c->pdpte));
	else
		memset(c->pdpte, 0, sizeof(c->pdpte));
}

static void set_system(struct cpu *c, const struct hv_state *s)
{
	for (unsigned i = 0; i < SEG_COUNT; i++)
		c->seg[i] = (struct segreg){
			.sel = s->seg[i].selector,
			.limit = s->seg[i].limit,
			.access = s->seg[i].access,
			.base = s->seg[i].base,
		};
	c->gdtr.base = s->gdtr.base;
	c->gdtr.limit = s->gdtr.limit;
	c->idtr.base = s->idtr.base;
	c->idtr.limit = s->idtr.limit;
	c->cr0 = s->cr0 | CR0_ET;
	c->cr2 = s->cr2;
	c->cr3 = s->cr3;
	c->cr4 = s->cr4;
	c->efer = s->efer;
	fpu_set_xcr0(c, s->xcr0);
	lapic_force_base(c, s->apic_base);
	lapic_cr8_set(c, (uint8_t)s->cr8);
	load_pdptes(c);
}

static bool set_msr(struct cpu *c, const struct hv_msr_value *m)
{
	uint64_t now;

	switch (m->index) {
	case MSR_TSC: soft_set_tsc(c, m->value); return true;
	case MSR_TSC_ADJUST: c->msr.tsc_adjust = m->value; return true;
	case MSR_TSC_DEADLINE: lapic_force_deadline(c, m->value); return true;
	case 0x11:
	case 0x4b564d00: /* the guest's memory has it already */
		c->msr.kvm_wall = m->value;
		return true;
	case 0x4b564d03: c->msr.kvm_steal = m->value; return true;
	case 0x4b564d04: c->msr.kvm_eoi = m->value & ~2ull; return true;
	}
	if (msr_write(c, m->index, m->value))
		return true;
	/*
	 * Another engine keeps MSRs that this one lacks, or that it only lets
	 * be read: fine when unused.
	 */
	return !m->value || (msr_read(c, m->index, &now) && now == m->value);
}

/* All or, when one value is refused, nothing. */
static int set_msrs(struct cpu *c, const struct hv_state *s)
{
	uint64_t offset = c->tsc_offset, efer = c->efer;
	uint64_t deadline = c->lapic->tsc_deadline;
	uint64_t fs = c->seg[SEG_FS].base, gs = c->seg[SEG_GS].base;
	__typeof__(c->msr) saved = c->msr;

	for (unsigned i = 0; i < s->nmsrs; i++) {
		/* A field of its own, or not state: never through here. */
		if (s->msr[i].index == 0x1b ||
		    (s->msr[i].index >= 0x800 && s->msr[i].index < 0x900) ||
		    !set_msr(c, &s->msr[i])) {
			c->msr = saved;
			c->tsc_offset = offset;
			c->efer = efer;
			c->lapic->tsc_deadline = deadline;
			c->seg[SEG_FS].base = fs;
			c->seg[SEG_GS].base = gs;
			cpu_update_mode(c);
			return -EINVAL;
		}
	}
	kvmpv_enter(c);
	return 0;
}

static void set_event(struct cpu *c, const struct hv_state *s)
{
	c->mp = s->event.mp;
	memset(&c->fault, 0, sizeof(c->fault));
	if (s->event.exception) {
		c->fault.pending = true;
		c->fault.vector = s->event.vector;
		c->fault.has_error = s->event.has_error;
		c->fault.error = s->event.error;
		c->fault.cr2 = c->cr2;
	}
	c->extint = s->event.interrupt;
	c->extint_vector = s->event.interrupt_vector;
	atomic_store(&c->nmi_pending, s->event.nmi_pending);
	c->nmi_masked = s->event.nmi_masked;
	c->inhibit = s->event.sti_shadow || s->event.movss_shadow;
	c->inhibit_ss = s->event.movss_shadow;
	c->sipi_vector = s->event.sipi_vector;
	c->lapic->pending_eoi = false;
	for (unsigned i = 0; i < 8; i++) {
		c->lapic->eoi[i] =
			(uint32_t)(s->event.eoi_pending[i / 2] >> (i % 2 * 32));
		if (c->lapic->eoi[i])
			c->lapic->pending_eoi = true;
	}
	atomic_store(&c->pv_kicked, false);
	if (s->event.nmi_pending)
		cpu_request(c, REQ_NMI);
}

/* The groups that can still refuse come first, each changing all or nothing. */
static int set_fallible(struct cpu *c, unsigned groups,
			const struct hv_state *s)
{
	uint64_t base = c->apic_base;
	uint8_t was[HV_APIC_SIZE];
	int rc = 0;

	if (groups & HV_STATE_SYSTEM)
		lapic_force_base(c, s->apic_base);
	if (groups & HV_STATE_APIC) {
		lapic_get(c, was);
		rc = lapic_set(c, s->apic);
		if (rc)
			goto undo_base;
	}
	if (groups & HV_STATE_MSR) {
		rc = set_msrs(c, s);
		if (rc)
			goto undo_apic;
	}
	if (groups & HV_STATE_FPU) {
		rc = fpu_set(c, s->fpu);
		if (rc)
			goto undo_apic;
	}
	return 0;

undo_apic:
	if (groups & HV_STATE_APIC)
		lapic_set(c, was);
undo_base:
	lapic_force_base(c, base);
	return rc;
}

int soft_set(struct hv_vcpu *cpu, unsigned groups, const struct hv_state *s)
{
	struct cpu *c = to_cpu(cpu);
	int rc;

	cpu_settle(c);
	if (c->replay.waiting || c->replay.done)
		return -EBUSY;
	if ((groups & HV_STATE_GENERAL) && !general_valid(c, s, groups))
		return -EINVAL;
	if ((groups & HV_STATE_SYSTEM) && !system_valid(c, s))
		return -EINVAL;
	if ((groups & HV_STATE_DEBUG) && (s->dr6 >> 32 || s->dr7 >> 32))
		return -EINVAL;
	if ((groups & HV_STATE_MSR) && s->nmsrs > HV_MAX_MSRS)
		return -EINVAL;
	if ((groups & HV_STATE_EVENT) && !event_valid(s))
		return -EINVAL;
	rc = set_fallible(c, groups, s);
	if (rc)
		return rc;

	if (groups & HV_STATE_SYSTEM)
		set_system(c, s);
	if (groups & HV_STATE_GENERAL) {
		memcpy(c->gpr, s->gpr, sizeof(s->gpr));
		c->gpr[R_ZERO] = 0;
		c->rip = s->rip;
		c->gpr[R_NEXT] = s->rip;
		c->rflags = s->rflags | 2;
	}
	if (groups & HV_STATE_DEBUG) {
		memcpy(c->dr, s->dr, sizeof(c->dr));
		c->dr6 = s->dr6;
		c->dr7 = s->dr7 | 0x400;
		watch_update(c);
	}
	if (groups & HV_STATE_EVENT)
		set_event(c, s);
	cpu_update_mode(c);
	tlb_flush(c, true);
	/* Whatever became deliverable is found by looking. */
	cpu_request(c, REQ_IRQ);
	return 0;
}

/* -- clock, CPUID --------------------------------------------------------- */

int soft_clock_get(struct hv_vm *vm, uint64_t *ns)
{
	*ns = soft_clock_ns(to_soft(vm)) + (uint64_t)to_soft(vm)->clock_offset;
	return 0;
}

int soft_clock_set(struct hv_vm *vm, uint64_t ns)
{
	int64_t offset = (int64_t)(ns - soft_clock_ns(to_soft(vm)));

	__atomic_store_n(&to_soft(vm)->clock_offset, offset, __ATOMIC_RELAXED);
	return 0;
}

int soft_cpuid(struct hv_vcpu *cpu, uint32_t leaf, uint32_t subleaf,
	       struct hv_cpuid *out)
{
	uint32_t r[4];

	cpuid_read(to_cpu(cpu), leaf, subleaf, r);
	*out = (struct hv_cpuid){ leaf, subleaf, r[0], r[1], r[2], r[3] };
	return 0;
}
