/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - architectural state of a KVM vCPU, and guest debugging
 */
#include "hv/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MSR_TSC = 0x10, MSR_TSC_DEADLINE = 0x6e0 };

/* All that a Linux guest's life depends on; what KVM lacks is left out. */
static const uint32_t wanted_msrs[] = {
	0x10, /* TSC */
	0x3b,
	0x3a,
	0x48,
	0xe1, /* TSC_ADJUST, FEAT_CTL, SPEC_CTRL, */
	0x174,
	0x175,
	0x176, /* UMWAIT; SYSENTER */
	0x17a,
	0x17b,
	0x1a0,
	0x277,
	0x1d9, /* MCG, MISC_ENABLE, PAT */
	0xc0000081,
	0xc0000082,
	0xc0000083,
	0xc0000084, /* STAR.. */
	0xc0000102,
	0xc0000103, /* KERNEL_GS_BASE, TSC_AUX */
	0xda0,
	0x1c4,
	0x1c5, /* XSS, XFD */
	MTRR_MSRS,
	0x11,
	0x12, /* kvm-clock, old numbers */
	0x4b564d00,
	0x4b564d01,
	0x4b564d02,
	0x4b564d03,
	0x4b564d04,
	0x4b564d05,
	0x4b564d06,
	0x4b564d07,
	MSR_TSC_DEADLINE, /* last: needs the local APIC */
};

struct msr_block {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[HV_MAX_MSRS];
};

static bool kept(const struct kvm_msr_list *list, uint32_t index)
{
	/* Old kernels have the MTRRs and do not list them. */
	if (index == 0x277 || (index >= 0x200 && index <= 0x2ff))
		return true;
	for (uint32_t i = 0; i < list->nmsrs; i++)
		if (list->indices[i] == index)
			return true;
	return false;
}

int kvm_state_init(struct kvm_vcpu *cpu)
{
	enum { ROOM = 1024 };
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	struct kvm_msr_list *list;
	struct msr_block b;
	uint32_t n = 0;
	int r;

	list = calloc(1, sizeof(*list) + ROOM * sizeof(list->indices[0]));
	if (!list)
		return -ENOMEM;
	list->nmsrs = ROOM;
	r = kvm_ioctl(vm->dev, KVM_GET_MSR_INDEX_LIST, list);
	if (r < 0) {
		free(list);
		return r;
	}
	for (unsigned i = 0; i < sizeof(wanted_msrs) / 4; i++)
		if (kept(list, wanted_msrs[i]))
			cpu->msr[n++] = wanted_msrs[i];
	free(list);

	/* KVM stops at the first that this vCPU does not have. */
	for (;;) {
		memset(&b, 0, sizeof(b));
		b.head.nmsrs = n;
		for (uint32_t i = 0; i < n; i++)
			b.entry[i].index = cpu->msr[i];
		r = n ? kvm_ioctl(cpu->fd, KVM_GET_MSRS, &b) : 0;
		if (r < 0)
			return r;
		if ((uint32_t)r >= n)
			break;
		memmove(&cpu->msr[r], &cpu->msr[r + 1],
			(n - r - 1) * sizeof(cpu->msr[0]));
		n--;
	}
	cpu->nmsrs = n;
	return 0;
}

/* -- general -------------------------------------------------------------- */

static int get_general(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_regs r;
	int e = kvm_ioctl(cpu->fd, KVM_GET_REGS, &r);

	if (e < 0)
		return e;
	s->gpr[HV_RAX] = r.rax;
	s->gpr[HV_RCX] = r.rcx;
	s->gpr[HV_RDX] = r.rdx;
	s->gpr[HV_RBX] = r.rbx;
	s->gpr[HV_RSP] = r.rsp;
	s->gpr[HV_RBP] = r.rbp;
	s->gpr[HV_RSI] = r.rsi;
	s->gpr[HV_RDI] = r.rdi;
	s->gpr[HV_R8] = r.r8;
	s->gpr[HV_R9] = r.r9;
	s->gpr[HV_R10] = r.r10;
	s->gpr[HV_R11] = r.r11;
	s->gpr[HV_R12] = r.r12;
	s->gpr[HV_R13] = r.r13;
	s->gpr[HV_R14] = r.r14;
	s->gpr[HV_R15] = r.r15;
	s->rip = r.rip;
	s->rflags = r.rflags;
	return 0;
}

static int set_general(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct kvm_regs r = {
		.rax = s->gpr[HV_RAX],
		.rcx = s->gpr[HV_RCX],
		.rdx = s->gpr[HV_RDX],
		.rbx = s->gpr[HV_RBX],
		.rsp = s->gpr[HV_RSP],
		.rbp = s->gpr[HV_RBP],
		.rsi = s->gpr[HV_RSI],
		.rdi = s->gpr[HV_RDI],
		.r8 = s->gpr[HV_R8],
		.r9 = s->gpr[HV_R9],
		.r10 = s->gpr[HV_R10],
		.r11 = s->gpr[HV_R11],
		.r12 = s->gpr[HV_R12],
		.r13 = s->gpr[HV_R13],
		.r14 = s->gpr[HV_R14],
		.r15 = s->gpr[HV_R15],
		.rip = s->rip,
		.rflags = s->rflags | 2,
	};

	return kvm_ioctl(cpu->fd, KVM_SET_REGS, &r);
}

/* -- system --------------------------------------------------------------- */

static void seg_from_kvm(const struct kvm_segment *k, struct hv_segment *s)
{
	s->selector = k->selector;
	s->base = k->base;
	s->limit = k->limit;
	s->access = k->type | k->s << 4 | k->dpl << 5 | k->present << 7 |
		    k->avl << 12 | k->l << 13 | k->db << 14 | k->g << 15 |
		    (uint32_t)k->unusable << 16;
}

static void seg_to_kvm(const struct hv_segment *s, struct kvm_segment *k)
{
	memset(k, 0, sizeof(*k));
	k->selector = s->selector;
	k->base = s->base;
	k->limit = s->limit;
	k->type = s->access & 15;
	k->s = s->access >> 4 & 1;
	k->dpl = s->access >> 5 & 3;
	k->present = s->access >> 7 & 1;
	k->avl = s->access >> 12 & 1;
	k->l = s->access >> 13 & 1;
	k->db = s->access >> 14 & 1;
	k->g = s->access >> 15 & 1;
	k->unusable = s->access >> 16 & 1;
}

static struct kvm_segment *kvm_seg(struct kvm_sregs *r, enum hv_seg seg)
{
	switch (seg) {
	case HV_ES: return &r->es;
	case HV_CS: return &r->cs;
	case HV_SS: return &r->ss;
	case HV_DS: return &r->ds;
	case HV_FS: return &r->fs;
	case HV_GS: return &r->gs;
	case HV_LDTR: return &r->ldt;
	default: return &r->tr;
	}
}

static int get_system(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_sregs r;
	struct kvm_xcrs x;
	int e = kvm_ioctl(cpu->fd, KVM_GET_SREGS, &r);

	if (e < 0)
		return e;
	for (int i = 0; i < 8; i++)
		seg_from_kvm(kvm_seg(&r, i), &s->seg[i]);
	s->gdtr.base = r.gdt.base;
	s->gdtr.limit = r.gdt.limit;
	s->idtr.base = r.idt.base;
	s->idtr.limit = r.idt.limit;
	s->cr0 = r.cr0;
	s->cr2 = r.cr2;
	s->cr3 = r.cr3;
	s->cr4 = r.cr4;
	s->cr8 = r.cr8;
	s->efer = r.efer;
	s->apic_base = r.apic_base;
	s->xcr0 = 1;
	if (!to_kvm_vm(cpu->hv.vm)->has_xcrs)
		return 0;
	e = kvm_ioctl(cpu->fd, KVM_GET_XCRS, &x);
	for (uint32_t i = 0; e >= 0 && i < x.nr_xcrs; i++)
		if (x.xcrs[i].xcr == 0)
			s->xcr0 = x.xcrs[i].value;
	return e;
}

static int set_system(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	struct kvm_sregs r;
	int e = kvm_ioctl(cpu->fd, KVM_GET_SREGS, &r);

	if (e < 0)
		return e;
	for (int i = 0; i < 8; i++)
		seg_to_kvm(&s->seg[i], kvm_seg(&r, i));
	r.gdt.base = s->gdtr.base;
	r.gdt.limit = s->gdtr.limit;
	r.idt.base = s->idtr.base;
	r.idt.limit = s->idtr.limit;
	r.cr0 = s->cr0;
	r.cr2 = s->cr2;
	r.cr3 = s->cr3;
	r.cr4 = s->cr4;
	r.cr8 = s->cr8;
	r.efer = s->efer;
	r.apic_base = s->apic_base;
	e = kvm_ioctl(cpu->fd, KVM_SET_SREGS, &r);
	if (e < 0 || !to_kvm_vm(cpu->hv.vm)->has_xcrs)
		return e;
	x.xcrs[0].value = s->xcr0;
	return kvm_ioctl(cpu->fd, KVM_SET_XCRS, &x);
}

/* -- debug, FPU, MSRs, APIC ----------------------------------------------- */

static int get_debug(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_debugregs d;
	int e = kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &d);

	if (e < 0)
		return e;
	for (int i = 0; i < 4; i++)
		s->dr[i] = d.db[i];
	s->dr6 = d.dr6;
	s->dr7 = d.dr7;
	return 0;
}

static int set_debug(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct kvm_debugregs d = { .dr6 = s->dr6, .dr7 = s->dr7 };
	int e;

	for (int i = 0; i < 4; i++)
		d.db[i] = s->dr[i];
	e = kvm_ioctl(cpu->fd, KVM_SET_DEBUGREGS, &d);
	if (e >= 0 && (cpu->debug & HV_DEBUG_DB))
		e = kvm_state_debug(&cpu->hv, cpu->debug);
	return e;
}

static size_t xsave_room(struct kvm_vm *vm)
{
	size_t least = sizeof(struct kvm_xsave);

	return vm->xsave_size > least ? vm->xsave_size : least;
}

static int get_fpu(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	void *area = calloc(1, xsave_room(vm));
	int e;

	if (!area)
		return -ENOMEM;
	e = kvm_ioctl(cpu->fd, vm->xsave_size ? KVM_GET_XSAVE2 : KVM_GET_XSAVE,
		      area);
	if (e >= 0)
		memcpy(s->fpu, area, HV_FPU_SIZE);
	free(area);
	return e;
}

static int set_fpu(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	void *area = calloc(1, xsave_room(vm));
	int e;

	if (!area)
		return -ENOMEM;
	memcpy(area, s->fpu, HV_FPU_SIZE);
	e = kvm_ioctl(cpu->fd, KVM_SET_XSAVE, area);
	free(area);
	return e;
}

static int get_msrs(struct kvm_vcpu *cpu, struct hv_state *s)
{
	const struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	struct msr_block b;
	int e;

	memset(&b, 0, sizeof(b));
	b.head.nmsrs = cpu->nmsrs;
	for (uint32_t i = 0; i < cpu->nmsrs; i++)
		b.entry[i].index = cpu->msr[i];
	e = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &b);
	if (e < 0)
		return e;
	s->nmsrs = e;
	for (int i = 0; i < e; i++) {
		s->msr[i].index = b.entry[i].index;
		s->msr[i].value = b.entry[i].data;
		if (vm->stopped.on && s->msr[i].index == MSR_TSC_DEADLINE)
			s->msr[i].value = cpu->deadline;
		if (vm->stopped.on && cpu->has_offset &&
		    s->msr[i].index == MSR_TSC)
			s->msr[i].value = vm->stopped.tsc + cpu->offset;
	}
	return 0;
}

/* While time stands still: the two that are of no use before it goes on. */
static bool put_off(struct kvm_vcpu *cpu, const struct hv_msr_value *m)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);

	if (vm->stopped.on && m->index == MSR_TSC_DEADLINE) {
		cpu->deadline = m->value;
		return true;
	}
	if (vm->stopped.on && cpu->has_offset && m->index == MSR_TSC) {
		cpu->offset = m->value - vm->stopped.tsc;
		return true;
	}
	return false;
}

static int set_msrs(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct msr_block b;
	int e;

	if (s->nmsrs > HV_MAX_MSRS)
		return -EINVAL;
	memset(&b, 0, sizeof(b));
	for (uint32_t i = 0; i < s->nmsrs; i++) {
		if (put_off(cpu, &s->msr[i]))
			continue;
		b.entry[b.head.nmsrs].index = s->msr[i].index;
		b.entry[b.head.nmsrs++].data = s->msr[i].value;
	}
	if (!b.head.nmsrs)
		return 0;
	e = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &b);
	if (e < 0)
		return e;
	return (uint32_t)e == b.head.nmsrs ? 0 : -EINVAL;
}

static int get_apic(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_lapic_state a;
	int e = kvm_ioctl(cpu->fd, KVM_GET_LAPIC, &a);

	if (e >= 0)
		memcpy(s->apic, a.regs, sizeof(a.regs));
	return e;
}

static int set_apic(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	struct kvm_lapic_state a;

	memcpy(a.regs, s->apic, sizeof(a.regs));
	return kvm_ioctl(cpu->fd, KVM_SET_LAPIC, &a);
}

/* -- events --------------------------------------------------------------- */

static int get_event(struct kvm_vcpu *cpu, struct hv_state *s)
{
	struct kvm_vcpu_events v;
	struct kvm_mp_state mp;
	int e = kvm_flush_nmi(cpu);

	if (e >= 0)
		e = kvm_ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &v);
	if (e >= 0)
		e = kvm_ioctl(cpu->fd, KVM_GET_MP_STATE, &mp);
	if (e < 0)
		return e;
	memset(&s->event, 0, sizeof(s->event));
	s->event.mp = mp.mp_state == KVM_MP_STATE_HALTED ? HV_MP_HALTED
		      : mp.mp_state == KVM_MP_STATE_UNINITIALIZED
			      ? HV_MP_WAIT_SIPI
		      : mp.mp_state == KVM_MP_STATE_INIT_RECEIVED ||
				      mp.mp_state == KVM_MP_STATE_SIPI_RECEIVED
			      ? HV_MP_INIT_RECEIVED
			      : HV_MP_RUNNABLE;
	s->event.exception = v.exception.injected;
	s->event.vector = v.exception.nr;
	s->event.has_error = v.exception.has_error_code;
	s->event.error = v.exception.error_code;
	s->event.interrupt = v.interrupt.injected || cpu->ext_vector >= 0;
	s->event.interrupt_vector = v.interrupt.injected   ? v.interrupt.nr
				    : cpu->ext_vector >= 0 ? cpu->ext_vector
							   : 0;
	/* One on its way counts as not yet begun, so nor is it masking. */
	s->event.nmi_pending = v.nmi.pending || v.nmi.injected;
	s->event.nmi_masked = v.nmi.masked && !v.nmi.injected;
	s->event.sti_shadow = v.interrupt.shadow & KVM_X86_SHADOW_INT_STI;
	s->event.movss_shadow = v.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS;
	s->event.sipi_vector = v.sipi_vector;
	return 0;
}

static int set_event(struct kvm_vcpu *cpu, const struct hv_state *s)
{
	static const uint32_t mp_states[] = {
		[HV_MP_RUNNABLE] = KVM_MP_STATE_RUNNABLE,
		[HV_MP_HALTED] = KVM_MP_STATE_HALTED,
		[HV_MP_WAIT_SIPI] = KVM_MP_STATE_UNINITIALIZED,
		[HV_MP_INIT_RECEIVED] = KVM_MP_STATE_INIT_RECEIVED,
	};
	struct kvm_vcpu_events v;
	struct kvm_mp_state mp;
	int e;

	if ((unsigned)s->event.mp > HV_MP_INIT_RECEIVED ||
	    (s->event.exception && s->event.vector > 31))
		return -EINVAL;
	e = kvm_ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &v);
	if (e < 0)
		return e;
	v.exception.injected = s->event.exception;
	v.exception.nr = s->event.vector;
	v.exception.has_error_code = s->event.has_error;
	v.exception.error_code = s->event.error;
	v.interrupt.injected = s->event.interrupt;
	v.interrupt.nr = s->event.interrupt_vector;
	v.interrupt.soft = 0;
	v.interrupt.shadow =
		(s->event.sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
		(s->event.movss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0);
	v.nmi.injected = 0;
	v.nmi.pending = s->event.nmi_pending;
	v.nmi.masked = s->event.nmi_masked;
	v.sipi_vector = s->event.sipi_vector;
	v.flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
		  KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
	e = kvm_ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &v);
	if (e < 0)
		return e;
	cpu->ext_vector = -1;
	mp.mp_state = mp_states[s->event.mp];
	return kvm_ioctl(cpu->fd, KVM_SET_MP_STATE, &mp);
}

/* -- all ------------------------------------------------------------------ */

static const struct {
	unsigned group;
	int (*get)(struct kvm_vcpu *cpu, struct hv_state *s);
	int (*set)(struct kvm_vcpu *cpu, const struct hv_state *s);
} groups_of[] = {
	/* XCR0 before FPU, APIC base before APIC before TSC deadline; a halted
	 * state last, as setting others may wake. */
	{ HV_STATE_SYSTEM, get_system, set_system },
	{ HV_STATE_APIC, get_apic, set_apic },
	{ HV_STATE_FPU, get_fpu, set_fpu },
	{ HV_STATE_MSR, get_msrs, set_msrs },
	{ HV_STATE_DEBUG, get_debug, set_debug },
	{ HV_STATE_GENERAL, get_general, set_general },
	{ HV_STATE_EVENT, get_event, set_event },
};

enum { NGROUPS = sizeof(groups_of) / sizeof(groups_of[0]) };

int kvm_state_get(struct hv_vcpu *hv, unsigned groups, struct hv_state *s)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	int e = kvm_settle(cpu);

	/* KVM_GET_MP_STATE takes a pending INIT or SIPI, which changes what
	 * else is read: it has to come first. */
	if (e >= 0 && (groups & HV_STATE_EVENT))
		e = get_event(cpu, s);
	for (int i = 0; i < NGROUPS && e >= 0; i++)
		if ((groups & groups_of[i].group) &&
		    groups_of[i].group != HV_STATE_EVENT)
			e = groups_of[i].get(cpu, s);
	return e < 0 ? e : 0;
}

static int apply(struct kvm_vcpu *cpu, unsigned groups,
		 const struct hv_state *s)
{
	int e = 0;

	for (int i = 0; i < NGROUPS && e >= 0; i++)
		if (groups & groups_of[i].group)
			e = groups_of[i].set(cpu, s);
	return e < 0 ? e : 0;
}

/* KVM checks while it sets, so the old state is kept to go back to. */
int kvm_state_set(struct hv_vcpu *hv, unsigned groups, const struct hv_state *s)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	struct hv_state *old = NULL;
	int e = kvm_settle(cpu);

	if (e < 0)
		return e;
	if (groups == HV_STATE_GENERAL)
		return apply(cpu, groups, s);
	old = aligned_alloc(64, (sizeof(*old) + 63) & ~(size_t)63);
	if (!old)
		return -ENOMEM;
	e = kvm_state_get(hv, groups, old);
	if (!e) {
		e = apply(cpu, groups, s);
		if (e < 0)
			apply(cpu, groups, old);
	}
	free(old);
	return e;
}

int kvm_state_debug(struct hv_vcpu *hv, unsigned flags)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	struct kvm_guest_debug d = { 0 };
	struct kvm_debugregs regs;
	int e;

	if (flags)
		d.control = KVM_GUESTDBG_ENABLE;
	if (flags & HV_DEBUG_STEP)
		d.control |= KVM_GUESTDBG_SINGLESTEP;
	if (flags & HV_DEBUG_BP)
		d.control |= KVM_GUESTDBG_USE_SW_BP;
	if (flags & HV_DEBUG_DB) {
		/* KVM then uses these in place of the guest's. */
		e = kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &regs);
		if (e < 0)
			return e;
		d.control |= KVM_GUESTDBG_USE_HW_BP;
		for (int i = 0; i < 4; i++)
			d.arch.debugreg[i] = regs.db[i];
		d.arch.debugreg[7] = regs.dr7;
	}
	e = kvm_ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &d);
	if (e >= 0)
		cpu->debug = flags;
	return e < 0 ? e : 0;
}
