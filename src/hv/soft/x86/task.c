/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task.c - hardware task switches with 16- and 32-bit TSS
 *
 * SDM 3A 8.3.  Everything up to the saving of the old task faults in the old
 * task; the loading of LDT and segments faults in the new one (#TS), whose
 * registers are in place by then.
 */
#include "hv/soft/x86/sys.h"

/* Where the fields are; from ip on they follow each other. */
struct tss_layout {
	unsigned size, ip, ldt, min_limit, nsegs;
};

static const struct tss_layout tss16 = { 2, 0x0e, 0x2a, 0x2b, 4 };
static const struct tss_layout tss32 = { 4, 0x20, 0x60, 0x67, 6 };

static const struct tss_layout *layout(const struct segreg *tr)
{
	return tr->access & 8 ? &tss32 : &tss16;
}

static void save_task(struct cpu *c, uint32_t flags)
{
	const struct tss_layout *l = layout(&c->seg[SEG_TR]);
	uint64_t at = c->seg[SEG_TR].base + l->ip;
	uint64_t base = at;

	mem_check(c, SEG_SYS, base, (10 + l->nsegs) * l->size, true);
	st_size(c, SEG_SYS, at, l->size, c->gpr[R_NEXT]);
	st_size(c, SEG_SYS, at += l->size, l->size, flags);
	for (unsigned i = 0; i < 8; i++)
		st_size(c, SEG_SYS, at += l->size, l->size, c->gpr[i]);
	for (unsigned i = 0; i < l->nsegs; i++)
		st16(c, SEG_SYS, at += l->size, c->seg[i].sel);
}

static void load_ldt(struct cpu *c, uint16_t sel)
{
	struct segreg s;
	uint64_t lin;

	if (null_sel(sel))
		return;
	if (sel & 4)
		x86_fault(c, VEC_TS, sel & ~3u);
	s = desc_seg(sel, desc_need(c, sel, VEC_TS, 0, &lin));
	if ((s.access & 0x1f) != 2 || !(s.access & SEG_A_P))
		x86_fault(c, VEC_TS, sel & ~3u);
	c->seg[SEG_LDT] = s;
}

static void load_code(struct cpu *c, uint16_t sel)
{
	unsigned rpl = sel & 3;
	struct segreg s;
	uint64_t lin;

	if (null_sel(sel))
		x86_fault(c, VEC_TS, 0);
	s = desc_seg(sel, desc_need(c, sel, VEC_TS, 0, &lin));
	if ((s.access & 0x18) != 0x18 ||
	    (s.access & 4 ? seg_dpl(&s) > rpl : seg_dpl(&s) != rpl))
		x86_fault(c, VEC_TS, sel & ~3u);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	desc_accessed(c, lin, &s);
	c->seg[SEG_CS] = s;
}

/* As load_data() checks, with #TS for all but "not present". */
static void load_task_data(struct cpu *c, unsigned seg, uint16_t sel)
{
	struct segreg s;
	uint64_t lin;

	if (null_sel(sel))
		return;
	s = desc_seg(sel, desc_need(c, sel, VEC_TS, 0, &lin));
	if (!(s.access & SEG_A_S) || (s.access & 0xa) == 8 ||
	    ((s.access & 0xc) != 0xc &&
	     (seg_dpl(&s) < (sel & 3u) || seg_dpl(&s) < c->cpl)))
		x86_fault(c, VEC_TS, sel & ~3u);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	desc_accessed(c, lin, &s);
	c->seg[seg] = s;
}

static void load_segments(struct cpu *c, const uint16_t *sel, unsigned cpl)
{
	if (c->rflags & FL_VM) {
		cpu_update_mode(c);
		for (unsigned i = 0; i <= SEG_GS; i++)
			load_seg_real(c, i, sel[i]);
		cpu_update_mode(c);
		return;
	}
	/* SS first: it carries the CPL that the others are checked with. */
	c->seg[SEG_SS] = load_ss(c, sel[SEG_SS], cpl, VEC_TS, 0);
	load_code(c, sel[SEG_CS]);
	cpu_update_mode(c);
	load_task_data(c, SEG_ES, sel[SEG_ES]);
	load_task_data(c, SEG_DS, sel[SEG_DS]);
	load_task_data(c, SEG_FS, sel[SEG_FS]);
	load_task_data(c, SEG_GS, sel[SEG_GS]);
	cpu_update_mode(c);
}

/* The registers of the new task, read before anything is changed. */
struct task {
	uint32_t cr3, eip, flags, gpr[8];
	uint16_t sel[SEG_COUNT], ldt;
	bool trap;
};

static void read_task(struct cpu *c, const struct segreg *tr, struct task *t)
{
	const struct tss_layout *l = layout(tr);
	uint64_t at = tr->base + l->ip;

	memset(t, 0, sizeof(*t));
	t->eip = (uint32_t)ld_size(c, SEG_SYS, at, l->size);
	t->flags = (uint32_t)ld_size(c, SEG_SYS, at += l->size, l->size);
	for (unsigned i = 0; i < 8; i++) {
		t->gpr[i] =
			(uint32_t)ld_size(c, SEG_SYS, at += l->size, l->size);
		if (l->size == 2)
			t->gpr[i] |= 0xffff0000;
	}
	for (unsigned i = 0; i < l->nsegs; i++)
		t->sel[i] = ld16(c, SEG_SYS, at += l->size);
	t->ldt = ld16(c, SEG_SYS, tr->base + l->ldt);
	if (l->size == 4) {
		t->cr3 = ld32(c, SEG_SYS, tr->base + 0x1c);
		t->trap = ld16(c, SEG_SYS, tr->base + 0x64) & 1;
	}
}

static void push_error(struct cpu *c, unsigned size, uint32_t error)
{
	struct stk s;

	stk_current(c, &s);
	if (c->cpl < 3)
		s.acc = SEG_SYS;
	stk_push(c, &s, size, error);
	stk_commit_sp(c, &s);
}

void x86_task_switch(struct cpu *c, uint16_t sel, int reason, bool has_error,
		     uint32_t error)
{
	bool back = reason == TASK_IRET;
	bool nest = reason == TASK_CALL || reason == TASK_GATE;
	unsigned bad = back ? VEC_TS : VEC_GP, ext = c->delivering;
	uint32_t err = (sel & ~3u) | ext, flags;
	struct segreg *old = &c->seg[SEG_TR];
	uint16_t old_sel = old->sel;
	uint64_t lin, old_lin;
	struct segreg tr;
	struct task t;

	if ((sel & 4) || null_sel(sel))
		x86_fault(c, bad, err);
	tr = desc_seg(sel, desc_need(c, sel, bad, ext, &lin));
	if ((tr.access & 0x17) != (back ? 3 : 1))
		x86_fault(c, bad, err);
	if (!(tr.access & SEG_A_P))
		x86_fault(c, VEC_NP, err);
	if (tr.limit < layout(&tr)->min_limit ||
	    old->limit < layout(old)->min_limit)
		x86_fault(c, VEC_TS, err);

	old_lin = c->gdtr.base + (old_sel & ~7u);
	mem_check(c, SEG_SYS, lin + 5, 1, true);
	mem_check(c, SEG_SYS, old_lin + 5, 1, true);
	if (nest)
		mem_check(c, SEG_SYS, tr.base, 2, true);
	read_task(c, &tr, &t);

	flags = (uint32_t)c->rflags;
	if (back)
		flags &= ~(uint32_t)FL_NT;
	save_task(c, flags);
	if (nest) {
		st16(c, SEG_SYS, tr.base, old_sel);
		t.flags |= FL_NT;
	} else {
		desc_mark(c, old_lin, 0, 2);
	}
	if (!back)
		desc_mark(c, lin, 2, 0);
	tr.access |= 2;

	/* From here on it is the new task. */
	*old = tr;
	c->cr0 |= CR0_TS;
	if ((c->cr0 & CR0_PG) && (tr.access & 8) && t.cr3 != c->cr3) {
		if ((c->cr4 & CR4_PAE) && !pdpte_load(c, t.cr3))
			x86_fault(c, VEC_TS, err);
		c->cr3 = t.cr3;
		tlb_flush(c, false);
	}
	for (unsigned i = 0; i < 8; i++)
		c->gpr[i] = t.gpr[i];
	c->rflags = (t.flags & 0x3f7fd5) | 2;
	c->rip = t.eip;
	set_rip(c, t.eip);
	c->dr7 &= ~0x155ull; /* local breakpoints */
	for (unsigned i = 0; i <= SEG_GS; i++)
		c->seg[i] = seg_null(t.sel[i], t.sel[SEG_CS] & 3);
	c->seg[SEG_LDT] = seg_null(t.ldt, 0);
	c->leave_block = true;
	cpu_update_mode(c);

	load_ldt(c, t.ldt);
	load_segments(c, t.sel, t.sel[SEG_CS] & 3);
	if (has_error)
		push_error(c, tr.access & 8 ? 4 : 2, error);
	if (t.eip > c->seg[SEG_CS].limit)
		x86_gp(c, ext);
	if (t.trap) {
		c->dr6 |= BIT(15);
		x86_fault_noerr(c, VEC_DB);
	}
}
