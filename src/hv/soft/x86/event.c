/* SPDX-License-Identifier: Apache-2.0 */
/*
 * event.c - delivery of exceptions and interrupts through the IDT
 *
 * Every check and every push comes before the first change of a register: a
 * fault inside leaves the CPU as it was before the event, with c->delivering
 * set so that the run loop can tell a nested fault.
 */
#include "hv/soft/x86/sys.h"

struct event {
	enum event_kind kind;
	uint8_t vector;
	bool has_error;
	uint32_t error;
	unsigned ext;
	uint64_t rip, flags; /* what is pushed */
};

static bool contributory(unsigned v)
{
	return v == VEC_DE || v == VEC_TS || v == VEC_NP || v == VEC_SS ||
	       v == VEC_GP;
}

/* SDM 3A table 6-5: 8 for #DF, -1: deliver second, -2: shut down. */
int x86_combine(unsigned first, unsigned second)
{
	bool bad = contributory(second) || second == VEC_PF;

	if (first == VEC_DF)
		return bad ? -2 : -1;
	if (contributory(first) && contributory(second))
		return VEC_DF;
	if (first == VEC_PF && bad)
		return VEC_DF;
	return -1;
}

void x86_shutdown(struct cpu *c)
{
	c->delivering = false;
	c->exit->reason = HV_EXIT_SHUTDOWN;
	cpu_leave(c);
}

static void finish(struct cpu *c, const struct event *e, uint64_t rip)
{
	c->rip = rip;
	set_rip(c, rip);
	if (e->kind == EVENT_NMI)
		c->nmi_masked = true;
	if (e->vector == VEC_DB && e->kind != EVENT_SOFT_INT)
		c->dr7 &= ~BIT(13);
	c->delivering = false;
	cpu_update_mode(c);
}

static void deliver_real(struct cpu *c, const struct event *e)
{
	struct segreg cs;
	struct stk s;
	uint32_t vec;

	if (e->vector * 4u + 3 > c->idtr.limit)
		x86_gp(c, e->vector * 8u + 2);
	vec = ld32(c, SEG_SYS, c->idtr.base + e->vector * 4u);
	stk_current(c, &s);
	stk_push(c, &s, 2, e->flags & 0xffff);
	stk_push(c, &s, 2, c->seg[SEG_CS].sel);
	stk_push(c, &s, 2, e->rip);
	cs = seg_real(c, SEG_CS, (uint16_t)(vec >> 16));
	stk_commit_sp(c, &s);
	c->seg[SEG_CS] = cs;
	c->rflags &= ~(uint64_t)(FL_IF | FL_TF | FL_RF | FL_AC);
	finish(c, e, (uint16_t)vec);
}

/* Checks of the code segment a gate points to; new CPL to *cpl. */
static struct segreg gate_cs(struct cpu *c, const struct event *e, uint16_t sel,
			     unsigned *cpl)
{
	uint32_t err = (sel & ~3u) | e->ext;
	struct segreg cs;
	uint64_t lin;
	bool conforming;

	if (null_sel(sel))
		x86_gp(c, e->ext);
	cs = desc_seg(sel, desc_need(c, sel, VEC_GP, e->ext, &lin));
	if ((cs.access & 0x18) != 0x18 || seg_dpl(&cs) > c->cpl)
		x86_gp(c, err);
	if (!(cs.access & SEG_A_P))
		x86_fault(c, VEC_NP, err);
	if ((c->efer & EFER_LMA) &&
	    (cs.access & (SEG_A_L | SEG_A_DB)) != SEG_A_L)
		x86_gp(c, err);
	conforming = cs.access & 4;
	*cpl = conforming ? c->cpl : seg_dpl(&cs);
	if ((c->rflags & FL_VM) && *cpl != 0)
		x86_gp(c, err);
	desc_accessed(c, lin, &cs);
	cs.sel = (uint16_t)((sel & ~3u) | *cpl);
	return cs;
}

static void gate_flags(struct cpu *c, bool interrupt)
{
	c->rflags &= ~(uint64_t)(FL_TF | FL_NT | FL_RF | FL_VM);
	if (interrupt)
		c->rflags &= ~(uint64_t)FL_IF;
}

static void deliver_long(struct cpu *c, const struct event *e)
{
	uint32_t err = e->vector * 8u + 2 + e->ext;
	uint64_t lo, hi, rip, at;
	struct segreg cs;
	struct stk s;
	unsigned cpl, ist, type;

	if (e->vector * 16u + 15 > c->idtr.limit)
		x86_gp(c, err);
	at = c->idtr.base + e->vector * 16u;
	lo = ld64(c, SEG_SYS, at);
	hi = ld64(c, SEG_SYS, at + 8);
	type = lo >> 40 & 0x1f;
	if (type != 0xe && type != 0xf)
		x86_gp(c, err);
	if (e->kind == EVENT_SOFT_INT && (lo >> 45 & 3) < c->cpl)
		x86_gp(c, err);
	if (!(lo >> 47 & 1))
		x86_fault(c, VEC_NP, err);
	cs = gate_cs(c, e, (uint16_t)(lo >> 16), &cpl);
	rip = (lo & 0xffff) | (lo >> 32 & 0xffff0000) | hi << 32;
	ist = lo >> 32 & 7;
	if (cpl != c->cpl || ist) {
		tss_stack(c, cpl, ist, e->ext, &s);
		if (cpl == c->cpl)
			s.ss = c->seg[SEG_SS];
	} else {
		stk_current(c, &s);
		s.sp = c->gpr[R_RSP];
		s.mask = ~0ull;
		s.wide = true;
		s.err = e->ext;
	}
	s.acc = cpl < 3 ? SEG_SYS : SEG_SS;
	s.sp &= ~15ull;
	if (!canonical(rip))
		x86_gp(c, e->ext);
	stk_push(c, &s, 8, c->seg[SEG_SS].sel);
	stk_push(c, &s, 8, c->gpr[R_RSP]);
	stk_push(c, &s, 8, e->flags);
	stk_push(c, &s, 8, c->seg[SEG_CS].sel);
	stk_push(c, &s, 8, e->rip);
	if (e->has_error)
		stk_push(c, &s, 8, e->error);

	c->gpr[R_RSP] = s.sp;
	c->seg[SEG_SS] = s.ss;
	c->seg[SEG_CS] = cs;
	gate_flags(c, type == 0xe);
	finish(c, e, rip);
}

static void deliver_legacy(struct cpu *c, const struct event *e)
{
	static const uint8_t v86_segs[] = { SEG_GS, SEG_FS, SEG_DS, SEG_ES };
	uint32_t err = e->vector * 8u + 2 + e->ext;
	bool vm86 = c->rflags & FL_VM;
	struct segreg cs;
	struct stk s;
	uint64_t gate;
	unsigned cpl, type, size;
	uint32_t eip;

	if (e->vector * 8u + 7 > c->idtr.limit)
		x86_gp(c, err);
	gate = ld64(c, SEG_SYS, c->idtr.base + e->vector * 8u);
	type = gate >> 40 & 0x1f;
	if (type != 5 && type != 6 && type != 7 && type != 0xe && type != 0xf)
		x86_gp(c, err);
	if (e->kind == EVENT_SOFT_INT && (gate >> 45 & 3) < c->cpl)
		x86_gp(c, err);
	if (!(gate >> 47 & 1))
		x86_fault(c, VEC_NP, err);
	if (type == 5) {
		set_rip(c, e->rip);
		x86_task_switch(c, (uint16_t)(gate >> 16), TASK_GATE,
				e->has_error, e->error);
		finish(c, e, c->gpr[R_NEXT]);
		return;
	}
	cs = gate_cs(c, e, (uint16_t)(gate >> 16), &cpl);
	eip = gate & 0xffff;
	size = 2;
	if (type & 8) {
		eip |= (uint32_t)(gate >> 32) & 0xffff0000;
		size = 4;
	}
	if (cpl != c->cpl || vm86) {
		tss_stack(c, cpl, 0, e->ext, &s);
	} else {
		stk_current(c, &s);
		s.err = e->ext;
	}
	s.acc = cpl < 3 ? SEG_SYS : SEG_SS;
	if (eip > cs.limit)
		x86_gp(c, e->ext);
	if (vm86)
		for (unsigned i = 0; i < 4; i++)
			stk_push(c, &s, size, c->seg[v86_segs[i]].sel);
	if (cpl != c->cpl || vm86) {
		stk_push(c, &s, size, c->seg[SEG_SS].sel);
		stk_push(c, &s, size, c->gpr[R_RSP]);
	}
	stk_push(c, &s, size, e->flags);
	stk_push(c, &s, size, c->seg[SEG_CS].sel);
	stk_push(c, &s, size, e->rip);
	if (e->has_error)
		stk_push(c, &s, size, e->error);

	if (vm86)
		for (unsigned i = 0; i < 4; i++)
			c->seg[v86_segs[i]] = seg_null(0, 0);
	stk_commit_sp(c, &s);
	c->seg[SEG_SS] = s.ss;
	c->seg[SEG_CS] = cs;
	gate_flags(c, !(type & 1));
	finish(c, e, eip);
}

/*
 * The return address is c->rip, except for INT n, INT3, INTO and INT1, which
 * come from their handlers and return behind the instruction.
 */
void x86_deliver(struct cpu *c, enum event_kind kind, uint8_t vector,
		 bool has_error, uint32_t error)
{
	bool inst = kind == EVENT_SOFT_INT || kind == EVENT_ICEBP;
	struct event e = {
		.kind = kind,
		.vector = vector,
		.has_error = has_error,
		.error = error,
		.ext = kind != EVENT_SOFT_INT,
		.rip = inst ? c->gpr[R_NEXT] : c->rip,
		.flags = c->rflags,
	};

	/*
	 * INT n counts as a benign first event and its faults are the
	 * instruction's own, so nothing is being "delivered" for the loop.
	 */
	c->soft_event = inst;
	c->delivering = !inst;
	c->deliver_vec = kind == EVENT_FAULT ? vector : VEC_NMI;
	if (kind == EVENT_FAULT && vector != VEC_DB && vector != VEC_BP &&
	    vector != VEC_OF)
		e.flags |= FL_RF;
	else if (inst)
		e.flags &= ~(uint64_t)FL_RF;

	if (!(c->cr0 & CR0_PE))
		deliver_real(c, &e);
	else if (c->efer & EFER_LMA)
		deliver_long(c, &e);
	else
		deliver_legacy(c, &e);
}
