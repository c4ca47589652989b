/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sys.c - segments, far transfers, control registers, privileged instructions
 *
 * Operands of system instructions are too irregular for the decoder's general
 * fields, so bind_sys() stores what its handlers need: reg is the general
 * register of the instruction, imm2 the segment, control or debug register.
 */
#include "hv/soft/x86/sys.h"

/* -- segments ------------------------------------------------------------- */

bool seg_limit_ok(const struct segreg *s, uint64_t off, unsigned size)
{
	uint64_t last = off + size - 1;

	if ((s->access & 0x1c) == 0x14) /* expand-down data */
		return off > s->limit &&
		       last <= (s->access & SEG_A_DB ? 0xffffffff : 0xffff);
	return last <= s->limit;
}

uint64_t seg_linear_slow(struct cpu *c, unsigned seg, uint64_t off,
			 unsigned size, bool write)
{
	const struct segreg *s = &c->seg[seg < SEG_COUNT ? seg : SEG_DS];
	unsigned vec = seg == SEG_SS ? VEC_SS : VEC_GP;
	uint32_t a = s->access;

	if (seg >= SEG_COUNT)
		return off;
	if (c->mode == MODE_64)
		return seg == SEG_FS || seg == SEG_GS ? s->base + off : off;
	if (c->flat && (seg == SEG_DS || seg == SEG_ES || seg == SEG_SS)) {
		if (unlikely(size && (uint32_t)off > -size))
			x86_fault(c, vec, 0);
		return (uint32_t)off;
	}
	if (is_protected(c)) {
		if ((a & SEG_A_UNUSABLE) || !(a & SEG_A_P))
			x86_fault(c, vec, 0);
		if (write ? (a & 0xa) != 2 : (a & 0xa) == 8)
			x86_fault(c, vec, 0);
	}
	if (unlikely(!seg_limit_ok(s, off, size ? size : 1)))
		x86_fault(c, vec, 0);
	return (uint32_t)(s->base + off);
}

static bool seg_is_flat(const struct segreg *s)
{
	return s->base == 0 && s->limit == 0xffffffff &&
	       (s->access & (SEG_A_UNUSABLE | SEG_A_P | 0x1e)) ==
		       (SEG_A_P | 0x12);
}

static void update_mmu(struct cpu *c)
{
	if (c->cpl == 3)
		c->mmu = c->cr0 & CR0_AM && c->rflags & FL_AC ? MMU_USER_AC
							      : MMU_USER;
	else if ((c->cr4 & CR4_SMAP) && !(c->rflags & FL_AC))
		c->mmu = MMU_KERNEL;
	else
		c->mmu = MMU_KERNEL_AC;
}

void cpu_update_mode(struct cpu *c)
{
	const struct segreg *cs = &c->seg[SEG_CS];
	bool big = cs->access & SEG_A_DB;
	uint32_t key;

	if (!(c->cr0 & CR0_PE)) {
		c->mode = MODE_REAL;
		c->cpl = 0;
	} else if ((c->rflags & FL_VM) && !(c->efer & EFER_LMA)) {
		c->mode = MODE_VM86;
		c->cpl = 3;
	} else {
		c->cpl = seg_dpl(&c->seg[SEG_SS]);
		if (!(c->efer & EFER_LMA))
			c->mode = big ? MODE_P32 : MODE_P16;
		else if (cs->access & SEG_A_L)
			c->mode = MODE_64;
		else
			c->mode = big ? MODE_C32 : MODE_C16;
	}
	update_mmu(c);
	c->flat =
		c->mode == MODE_64 ||
		(is_protected(c) && seg_is_flat(&c->seg[SEG_DS]) &&
		 seg_is_flat(&c->seg[SEG_ES]) && seg_is_flat(&c->seg[SEG_SS]));

	key = (uint32_t)c->mode | (c->cpl == 3) << 3;
	key |= (uint32_t)(c->cr0 & (CR0_MP | CR0_EM | CR0_TS)) << 3;
	key |= (c->cr4 & CR4_OSFXSR ? 1u : 0) << 7;
	key |= (c->cr4 & CR4_OSXSAVE ? 1u : 0) << 8;
	key |= (uint32_t)(c->xcr0 & 7) << 9;
	key |= (c->cr4 & CR4_SMAP ? 1u : 0) << 12;
	key |= (uint32_t)c->cpl << 13;
	if (key != c->mode_key) {
		c->mode_key = key;
		c->leave_block = true;
	}
}

struct segreg seg_real(struct cpu *c, unsigned seg, uint16_t sel)
{
	struct segreg s = c->seg[seg];

	/* In real mode limit and size stay as they are ("unreal" mode). */
	s.sel = sel;
	s.base = (uint64_t)sel << 4;
	if (c->mode == MODE_VM86) {
		s.limit = 0xffff;
		s.access = 0xf3;
		return s;
	}
	if (s.access & SEG_A_UNUSABLE) {
		s.limit = 0xffff;
		s.access = 0;
	}
	s.access = (s.access & (SEG_A_DB | BIT(15))) | 0x93;
	return s;
}

void load_seg_real(struct cpu *c, unsigned seg, uint16_t sel)
{
	c->seg[seg] = seg_real(c, seg, sel);
}

struct segreg seg_null(uint16_t sel, unsigned dpl)
{
	return (struct segreg){
		.sel = sel,
		.access = SEG_A_UNUSABLE | dpl << 5,
	};
}

bool desc_read(struct cpu *c, uint16_t sel, uint64_t *d, uint64_t *lin)
{
	uint64_t base = c->gdtr.base;
	uint32_t limit = c->gdtr.limit, at = sel & ~7u;

	if (sel & 4) {
		if (c->seg[SEG_LDT].access & SEG_A_UNUSABLE)
			return false;
		base = c->seg[SEG_LDT].base;
		limit = c->seg[SEG_LDT].limit;
	}
	if (at + 7 > limit)
		return false;
	*lin = base + at;
	*d = ld64(c, SEG_SYS, *lin);
	return true;
}

uint64_t desc_need(struct cpu *c, uint16_t sel, unsigned vec, unsigned ext,
		   uint64_t *lin)
{
	uint64_t d;

	if (!desc_read(c, sel, &d, lin))
		x86_fault(c, vec, (sel & ~3u) | ext);
	return d;
}

struct segreg desc_seg(uint16_t sel, uint64_t d)
{
	struct segreg s = {
		.sel = sel,
		.limit = (d & 0xffff) | (d >> 32 & 0xf0000),
		.access = (uint32_t)(d >> 40) & 0xf0ff,
		.base = (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000),
	};

	if (s.access & BIT(15))
		s.limit = s.limit << 12 | 0xfff;
	return s;
}

void desc_mark(struct cpu *c, uint64_t lin, uint8_t set, uint8_t clear)
{
	_Atomic uint8_t *p = mem_rmw(c, SEG_SYS, lin + 5, 1);

	if (p) {
		if (set)
			atomic_fetch_or(p, set);
		if (clear)
			atomic_fetch_and(p, (uint8_t)~clear);
		return;
	}
	st8(c, SEG_SYS, lin + 5,
	    (uint8_t)((ld8(c, SEG_SYS, lin + 5) | set) & ~clear));
}

void desc_accessed(struct cpu *c, uint64_t lin, struct segreg *s)
{
	if (!(s->access & 1)) {
		desc_mark(c, lin, 1, 0);
		s->access |= 1;
	}
}

struct segreg load_ss(struct cpu *c, uint16_t sel, unsigned cpl, unsigned vec,
		      unsigned ext)
{
	uint32_t err = (sel & ~3u) | ext;
	struct segreg s;
	uint64_t lin;

	if (null_sel(sel))
		x86_fault(c, vec, ext);
	s = desc_seg(sel, desc_need(c, sel, vec, ext, &lin));
	if ((sel & 3u) != cpl || seg_dpl(&s) != cpl ||
	    (s.access & 0x1a) != 0x12)
		x86_fault(c, vec, err);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_SS, err);
	desc_accessed(c, lin, &s);
	return s;
}

/* What a load of sel into a data segment register gives; checks only. */
struct segreg load_data(struct cpu *c, unsigned seg, uint16_t sel)
{
	struct segreg s;
	uint64_t lin;

	if (!is_protected(c))
		return seg_real(c, seg, sel);
	if (seg == SEG_SS) {
		if (null_sel(sel) && c->mode == MODE_64 && c->cpl != 3 &&
		    (sel & 3) == c->cpl)
			return seg_null(sel, c->cpl);
		return load_ss(c, sel, c->cpl, VEC_GP, 0);
	}
	if (null_sel(sel))
		return seg_null(sel, 0);
	s = desc_seg(sel, desc_need(c, sel, VEC_GP, 0, &lin));
	if (!(s.access & SEG_A_S) || (s.access & 0xa) == 8)
		x86_gp(c, sel & ~3u);
	if ((s.access & 0xc) != 0xc &&
	    (seg_dpl(&s) < (sel & 3u) || seg_dpl(&s) < c->cpl))
		x86_gp(c, sel & ~3u);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	desc_accessed(c, lin, &s);
	return s;
}

/* -- stacks --------------------------------------------------------------- */

void stk_current(struct cpu *c, struct stk *s)
{
	s->ss = c->seg[SEG_SS];
	s->sp = c->gpr[R_RSP];
	s->wide = c->mode == MODE_64;
	s->mask = s->wide		    ? ~0ull
		  : s->ss.access & SEG_A_DB ? 0xffffffff
					    : 0xffff;
	s->acc = SEG_SS;
	s->err = 0;
}

static uint64_t stk_linear(struct cpu *c, struct stk *s, uint64_t sp,
			   unsigned size)
{
	if (s->wide) {
		if (!canonical(sp) || !canonical(sp + size - 1))
			x86_fault(c, VEC_SS, s->err);
		return sp;
	}
	if (!seg_limit_ok(&s->ss, sp, size))
		x86_fault(c, VEC_SS, s->err);
	return (uint32_t)(s->ss.base + sp);
}

void stk_push(struct cpu *c, struct stk *s, unsigned size, uint64_t v)
{
	uint64_t sp = (s->sp - size) & s->mask;

	st_size(c, s->acc, stk_linear(c, s, sp, size), size, v);
	s->sp = (s->sp & ~s->mask) | sp;
}

uint64_t stk_pop(struct cpu *c, struct stk *s, unsigned size)
{
	uint64_t sp = s->sp & s->mask;
	uint64_t v = ld_size(c, s->acc, stk_linear(c, s, sp, size), size);

	s->sp = (s->sp & ~s->mask) | ((sp + size) & s->mask);
	return v;
}

void stk_commit_sp(struct cpu *c, const struct stk *s)
{
	if (s->mask == 0xffff)
		set_reg(c, R_RSP, 2, s->sp);
	else
		c->gpr[R_RSP] = s->sp & s->mask;
}

void tss_stack(struct cpu *c, unsigned dpl, unsigned ist, unsigned ext,
	       struct stk *s)
{
	const struct segreg *tr = &c->seg[SEG_TR];
	uint32_t err = (tr->sel & ~3u) | ext;
	unsigned at, size;
	uint16_t sel;

	s->acc = dpl < 3 ? SEG_SYS : SEG_SS;
	s->wide = c->efer & EFER_LMA;
	if (s->wide) {
		at = ist ? 0x24 + (ist - 1) * 8 : 4 + dpl * 8;
		if (at + 7 > tr->limit)
			x86_fault(c, VEC_TS, err);
		s->sp = ld64(c, SEG_SYS, tr->base + at);
		s->mask = ~0ull;
		s->ss = seg_null((uint16_t)dpl, dpl);
		s->err = ext;
		return;
	}
	size = tr->access & 8 ? 4 : 2;
	at = size + dpl * size * 2;
	if (at + size + 1 > tr->limit)
		x86_fault(c, VEC_TS, err);
	s->sp = ld_size(c, SEG_SYS, tr->base + at, size);
	sel = ld16(c, SEG_SYS, tr->base + at + size);
	s->ss = load_ss(c, sel, dpl, VEC_TS, ext);
	s->mask = s->ss.access & SEG_A_DB ? 0xffffffff : 0xffff;
	s->err = (sel & ~3u) | ext;
}

/* -- mov, push, pop of segment registers ---------------------------------- */

static void commit_seg(struct cpu *c, unsigned seg, struct segreg s)
{
	c->seg[seg] = s;
	if (seg == SEG_SS) {
		c->inhibit = true;
		c->inhibit_ss = true;
	}
	cpu_update_mode(c);
}

static void op_mov_from_seg(struct cpu *c, const struct insn *in)
{
	uint16_t sel = c->seg[in->imm2].sel;

	if (in->flags & IN_MEM)
		st16(c, in->seg, ea_linear(c, in, 2, true), sel);
	else
		set_reg(c, in->reg, in->opsize, sel);
}

static uint16_t rm16(struct cpu *c, const struct insn *in)
{
	if (in->flags & IN_MEM)
		return ld16(c, in->seg, ea_linear(c, in, 2, false));
	return (uint16_t)c->gpr[in->reg];
}

static void op_mov_to_seg(struct cpu *c, const struct insn *in)
{
	uint16_t sel = rm16(c, in);

	commit_seg(c, in->imm2, load_data(c, in->imm2, sel));
}

static void op_push_seg(struct cpu *c, const struct insn *in)
{
	struct stk s;

	stk_current(c, &s);
	stk_push(c, &s, in->opsize, c->seg[in->imm2].sel);
	stk_commit_sp(c, &s);
}

static void op_pop_seg(struct cpu *c, const struct insn *in)
{
	struct segreg seg;
	struct stk s;

	stk_current(c, &s);
	seg = load_data(c, in->imm2, (uint16_t)stk_pop(c, &s, in->opsize));
	stk_commit_sp(c, &s);
	commit_seg(c, in->imm2, seg);
}

/* Far pointer in memory.  AMD's have no 64-bit offset. */
static uint64_t ld_far(struct cpu *c, const struct insn *in, uint16_t *sel)
{
	unsigned size = in->opsize == 8 && c->amd ? 4 : in->opsize;
	uint64_t lin = ea_linear(c, in, size + 2, false);
	uint64_t off = ld_size(c, in->seg, lin, size);

	*sel = ld16(c, in->seg, lin + size);
	return off;
}

static void op_lseg(struct cpu *c, const struct insn *in)
{
	struct segreg s;
	uint64_t off;
	uint16_t sel;

	off = ld_far(c, in, &sel);
	s = load_data(c, in->imm2, sel);
	set_reg(c, in->reg, in->opsize, off);
	c->seg[in->imm2] = s;
	if (in->imm2 == SEG_SS) {
		c->inhibit = true;
		c->inhibit_ss = true;
	}
	cpu_update_mode(c);
}

/* -- far transfers -------------------------------------------------------- */

static void check_target(struct cpu *c, const struct segreg *cs, uint64_t rip)
{
	if (is_code64(c, cs) ? !canonical(rip) : rip > cs->limit)
		x86_gp(c, 0);
}

static void check_code_bits(struct cpu *c, const struct segreg *cs)
{
	if ((c->efer & EFER_LMA) && (cs->access & SEG_A_L) &&
	    (cs->access & SEG_A_DB))
		x86_gp(c, cs->sel & ~3u);
}

static void commit_cs(struct cpu *c, struct segreg cs, uint64_t rip)
{
	c->seg[SEG_CS] = cs;
	set_rip(c, rip);
	cpu_update_mode(c);
}

/* Direct transfer to a code segment at the same privilege; pushes for call. */
static void far_code(struct cpu *c, struct segreg cs, uint64_t lin,
		     uint64_t off, unsigned opsize, bool call)
{
	uint32_t err = cs.sel & ~3u;
	struct stk s;

	if (cs.access & 4) {
		if (seg_dpl(&cs) > c->cpl)
			x86_gp(c, err);
	} else if ((cs.sel & 3u) > c->cpl || seg_dpl(&cs) != c->cpl) {
		x86_gp(c, err);
	}
	if (!(cs.access & SEG_A_P))
		x86_fault(c, VEC_NP, err);
	check_code_bits(c, &cs);
	check_target(c, &cs, off);
	desc_accessed(c, lin, &cs);
	cs.sel = (uint16_t)(err | c->cpl);
	if (call) {
		stk_current(c, &s);
		stk_push(c, &s, opsize, c->seg[SEG_CS].sel);
		stk_push(c, &s, opsize, c->gpr[R_NEXT]);
		stk_commit_sp(c, &s);
	}
	commit_cs(c, cs, off);
}

/* Through a call gate, with its descriptor in gate. */
static void far_gate(struct cpu *c, uint16_t gsel, uint64_t gate, uint64_t glin,
		     bool call)
{
	bool lma = c->efer & EFER_LMA;
	unsigned size = lma ? 8 : gate >> 43 & 1 ? 4 : 2;
	unsigned count = gate >> 32 & 31;
	uint16_t sel = (uint16_t)(gate >> 16);
	uint64_t off = gate & 0xffff, lin, hi, params[32];
	uint32_t err = sel & ~3u;
	struct segreg cs;
	struct stk s, old;
	unsigned cpl;

	if ((gate >> 45 & 3) < c->cpl || (gate >> 45 & 3) < (gsel & 3u))
		x86_gp(c, gsel & ~3u);
	if (!(gate >> 47 & 1))
		x86_fault(c, VEC_NP, gsel & ~3u);
	if (size != 2)
		off |= gate >> 32 & 0xffff0000;
	if (lma) {
		if ((gsel & ~7u) + 15 >
		    (gsel & 4 ? c->seg[SEG_LDT].limit : c->gdtr.limit))
			x86_gp(c, gsel & ~3u);
		hi = ld64(c, SEG_SYS, glin + 8);
		if (hi >> 40 & 0x1f)
			x86_gp(c, gsel & ~3u);
		off |= hi << 32;
	}
	if (null_sel(sel))
		x86_gp(c, 0);
	cs = desc_seg(sel, desc_need(c, sel, VEC_GP, 0, &lin));
	if ((cs.access & 0x18) != 0x18 || seg_dpl(&cs) > c->cpl)
		x86_gp(c, err);
	if (lma && (cs.access & (SEG_A_L | SEG_A_DB)) != SEG_A_L)
		x86_gp(c, err);
	if (!call && !(cs.access & 4) && seg_dpl(&cs) != c->cpl)
		x86_gp(c, err);
	if (!(cs.access & SEG_A_P))
		x86_fault(c, VEC_NP, err);
	check_target(c, &cs, off);
	desc_accessed(c, lin, &cs);
	cpl = cs.access & 4 ? c->cpl : seg_dpl(&cs);
	cs.sel = (uint16_t)(err | cpl);
	if (!call) {
		commit_cs(c, cs, off);
		return;
	}

	stk_current(c, &old);
	if (cpl < c->cpl) {
		tss_stack(c, cpl, 0, 0, &s);
		stk_push(c, &s, size, c->seg[SEG_SS].sel);
		stk_push(c, &s, size, c->gpr[R_RSP]);
		if (!lma) {
			for (unsigned i = 0; i < count; i++)
				params[i] = stk_pop(c, &old, size);
			while (count)
				stk_push(c, &s, size, params[--count]);
		}
	} else {
		s = old;
	}
	stk_push(c, &s, size, c->seg[SEG_CS].sel);
	stk_push(c, &s, size, c->gpr[R_NEXT]);
	c->seg[SEG_SS] = s.ss;
	stk_commit_sp(c, &s);
	commit_cs(c, cs, off);
}

static void far_transfer(struct cpu *c, uint16_t sel, uint64_t off,
			 unsigned opsize, bool call)
{
	uint64_t d, lin;
	struct segreg cs;
	struct stk s;
	unsigned type;

	if (!is_protected(c)) {
		if (off >
		    (c->mode == MODE_VM86 ? 0xffff : c->seg[SEG_CS].limit))
			x86_gp(c, 0);
		if (call) {
			stk_current(c, &s);
			stk_push(c, &s, opsize, c->seg[SEG_CS].sel);
			stk_push(c, &s, opsize, c->gpr[R_NEXT]);
			stk_commit_sp(c, &s);
		}
		commit_cs(c, seg_real(c, SEG_CS, sel), off);
		return;
	}
	if (null_sel(sel))
		x86_gp(c, 0);
	d = desc_need(c, sel, VEC_GP, 0, &lin);
	cs = desc_seg(sel, d);
	if (cs.access & SEG_A_S) {
		if (!(cs.access & 8))
			x86_gp(c, sel & ~3u);
		far_code(c, cs, lin, off, opsize, call);
		return;
	}
	type = cs.access & 15;
	if (type == 12 || (type == 4 && !(c->efer & EFER_LMA))) {
		far_gate(c, sel, d, lin, call);
		return;
	}
	if ((c->efer & EFER_LMA) || (type != 1 && type != 9 && type != 5) ||
	    seg_dpl(&cs) < c->cpl || seg_dpl(&cs) < (sel & 3u))
		x86_gp(c, sel & ~3u);
	if (!(cs.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	x86_task_switch(c, type == 5 ? (uint16_t)(d >> 16) : sel,
			call ? TASK_CALL : TASK_JMP, false, 0);
}

static void op_far_direct(struct cpu *c, const struct insn *in)
{
	far_transfer(c, (uint16_t)(in->imm >> 32), (uint32_t)in->imm,
		     in->opsize, in->imm2);
}

static void op_far_mem(struct cpu *c, const struct insn *in)
{
	uint16_t sel;
	uint64_t off = ld_far(c, in, &sel);

	far_transfer(c, sel, off, in->opsize, in->imm2);
}

/* After a return to an outer ring: segments it may not keep become null. */
static void drop_segs(struct cpu *c, unsigned cpl)
{
	static const uint8_t segs[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < sizeof(segs); i++) {
		struct segreg *s = &c->seg[segs[i]];

		if ((s->access & SEG_A_UNUSABLE) || (s->access & 0xc) == 0xc ||
		    seg_dpl(s) >= cpl)
			continue;
		/* Only the selector is cleared: the base can come back. */
		s->sel = 0;
		s->access |= SEG_A_UNUSABLE;
	}
}

/* CS of a far return or IRET, to ring sel & 3. */
static struct segreg return_cs(struct cpu *c, uint16_t sel, uint64_t *lin)
{
	uint32_t err = sel & ~3u;
	unsigned rpl = sel & 3;
	struct segreg cs;

	if (null_sel(sel))
		x86_gp(c, 0);
	cs = desc_seg(sel, desc_need(c, sel, VEC_GP, 0, lin));
	if ((cs.access & 0x18) != 0x18 || rpl < c->cpl)
		x86_gp(c, err);
	if (cs.access & 4 ? seg_dpl(&cs) > rpl : seg_dpl(&cs) != rpl)
		x86_gp(c, err);
	if (!(cs.access & SEG_A_P))
		x86_fault(c, VEC_NP, err);
	check_code_bits(c, &cs);
	return cs;
}

static struct segreg return_ss(struct cpu *c, uint16_t sel,
			       const struct segreg *cs)
{
	unsigned rpl = cs->sel & 3;

	if (null_sel(sel) && is_code64(c, cs) && rpl != 3 && (sel & 3u) == rpl)
		return seg_null(sel, rpl);
	return load_ss(c, sel, rpl, VEC_GP, 0);
}

static void set_outer_sp(struct cpu *c, const struct segreg *cs,
			 const struct segreg *ss, uint64_t sp)
{
	if (is_code64(c, cs))
		c->gpr[R_RSP] = sp;
	else
		set_reg(c, R_RSP, ss->access & SEG_A_DB ? 4 : 2, sp);
}

static void op_retf(struct cpu *c, const struct insn *in)
{
	struct segreg cs, ss = { 0 };
	uint64_t rip, sp = 0, lin;
	unsigned size = in->opsize;
	bool outer;
	struct stk s;
	uint16_t sel;

	stk_current(c, &s);
	rip = stk_pop(c, &s, size);
	sel = (uint16_t)stk_pop(c, &s, size);
	s.sp = (s.sp & ~s.mask) | ((s.sp + in->imm) & s.mask);
	if (!is_protected(c)) {
		if (rip > 0xffff && rip > c->seg[SEG_CS].limit)
			x86_gp(c, 0);
		stk_commit_sp(c, &s);
		commit_cs(c, seg_real(c, SEG_CS, sel), rip);
		return;
	}
	cs = return_cs(c, sel, &lin);
	outer = (sel & 3) > c->cpl;
	if (outer) {
		sp = stk_pop(c, &s, size);
		ss = return_ss(c, (uint16_t)stk_pop(c, &s, size), &cs);
	}
	check_target(c, &cs, rip);
	desc_accessed(c, lin, &cs);
	if (!outer) {
		stk_commit_sp(c, &s);
		commit_cs(c, cs, rip);
		return;
	}
	c->seg[SEG_SS] = ss;
	set_outer_sp(c, &cs, &ss, sp);
	/* The released parameters exist on both stacks. */
	set_reg(c, R_RSP,
		is_code64(c, &cs)      ? 8
		: ss.access & SEG_A_DB ? 4
				       : 2,
		c->gpr[R_RSP] + in->imm);
	drop_segs(c, sel & 3);
	commit_cs(c, cs, rip);
}

static unsigned iopl(struct cpu *c)
{
	return c->rflags >> 12 & 3;
}

/* The flags that POPF and IRET of this size may change at this privilege. */
static uint64_t flags_mask(struct cpu *c, unsigned size)
{
	uint64_t m = FL_ARITH | FL_TF | FL_DF | FL_NT;

	if (size > 2)
		m |= FL_RF | FL_AC | FL_ID;
	if (c->cpl == 0)
		m |= FL_IOPL;
	if (c->cpl <= iopl(c))
		m |= FL_IF;
	return m;
}

static void put_flags(struct cpu *c, uint64_t v, uint64_t mask)
{
	c->rflags = (c->rflags & ~mask) | (v & mask) | 2;
}

static void iret_vm86(struct cpu *c, struct stk *s, uint64_t ip, uint16_t cs,
		      uint64_t flags)
{
	static const uint8_t order[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	uint32_t sp = (uint32_t)stk_pop(c, s, 4);
	uint16_t sel[SEG_COUNT];

	sel[SEG_CS] = cs;
	sel[SEG_SS] = (uint16_t)stk_pop(c, s, 4);
	for (unsigned i = 0; i < sizeof(order); i++)
		sel[order[i]] = (uint16_t)stk_pop(c, s, 4);
	if (ip > 0xffff)
		x86_gp(c, 0);
	put_flags(c, flags,
		  FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF |
			  FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID);
	c->mode = MODE_VM86;
	for (unsigned i = 0; i <= SEG_GS; i++)
		load_seg_real(c, i, sel[i]);
	c->gpr[R_RSP] = sp;
	set_rip(c, ip);
	cpu_update_mode(c);
}

static void op_iret(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	struct segreg cs, ss = { 0 };
	uint64_t rip, flags, mask, lin, sp = 0;
	bool outer, full, virt;
	struct stk s;
	uint16_t sel;

	virt = c->mode == MODE_VM86 && iopl(c) < 3;
	if (virt && (!(c->cr4 & CR4_VME) || size != 2))
		x86_gp(c, 0);
	if (is_protected(c) && (c->rflags & FL_NT)) {
		if (c->efer & EFER_LMA)
			x86_gp(c, 0);
		sel = ld16(c, SEG_SYS, c->seg[SEG_TR].base);
		x86_task_switch(c, sel, TASK_IRET, false, 0);
		c->nmi_masked = false;
		return;
	}
	stk_current(c, &s);
	rip = stk_pop(c, &s, size);
	sel = (uint16_t)stk_pop(c, &s, size);
	flags = stk_pop(c, &s, size);
	mask = flags_mask(c, size);
	if (!is_protected(c)) {
		if (c->mode == MODE_VM86)
			mask &= ~(uint64_t)FL_IOPL;
		if (rip > 0xffff && rip > c->seg[SEG_CS].limit)
			x86_gp(c, 0);
		if (virt && ((flags & FL_TF) ||
			     ((flags & FL_IF) && (c->rflags & FL_VIP))))
			x86_gp(c, 0);
		if (virt) {
			mask |= FL_VIF;
			flags = (flags & ~(uint64_t)FL_VIF) |
				(flags & FL_IF ? FL_VIF : 0);
		}
		stk_commit_sp(c, &s);
		c->nmi_masked = false;
		put_flags(c, flags, mask);
		commit_cs(c, seg_real(c, SEG_CS, sel), rip);
		return;
	}
	if ((flags & FL_VM) && size == 4 && c->cpl == 0 &&
	    !(c->efer & EFER_LMA)) {
		iret_vm86(c, &s, rip, sel, flags);
		c->nmi_masked = false;
		return;
	}
	cs = return_cs(c, sel, &lin);
	outer = (sel & 3) > c->cpl;
	full = outer || c->mode == MODE_64;
	if (full) {
		sp = stk_pop(c, &s, size);
		ss = return_ss(c, (uint16_t)stk_pop(c, &s, size), &cs);
	}
	check_target(c, &cs, rip);
	desc_accessed(c, lin, &cs);

	if (c->cpl == 0 && size > 2)
		mask |= FL_VIF | FL_VIP;
	put_flags(c, flags, mask);
	if (full) {
		c->seg[SEG_SS] = ss;
		set_outer_sp(c, &cs, &ss, sp);
	} else {
		stk_commit_sp(c, &s);
	}
	if (outer)
		drop_segs(c, sel & 3);
	c->nmi_masked = false;
	commit_cs(c, cs, rip);
}

/* -- software interrupts -------------------------------------------------- */

static void debug_exit(struct cpu *c, uint8_t vector)
{
	c->exit->reason = HV_EXIT_DEBUG;
	c->exit->debug.rip = c->seg[SEG_CS].base + c->rip;
	c->exit->debug.dr6 = c->dr6;
	c->exit->debug.vector = vector;
	cpu_leave(c);
}

/* Does the TSS leave INT n to the 8086 program (CR4.VME, SDM 3B 21.3.3)? */
static bool redirected(struct cpu *c, uint8_t n)
{
	const struct segreg *tr = &c->seg[SEG_TR];
	unsigned at;

	if (c->mode != MODE_VM86 || !(c->cr4 & CR4_VME))
		return false;
	if ((tr->access & SEG_A_UNUSABLE) || !(tr->access & 8) ||
	    tr->limit < 0x67)
		x86_gp(c, 0);
	at = ld16(c, SEG_SYS, tr->base + 0x66) + n / 8u - 32;
	if (at > tr->limit)
		x86_gp(c, 0);
	return !(ld8(c, SEG_SYS, tr->base + at) >> (n & 7) & 1);
}

/* As in real mode, with VIF for IF below IOPL 3. */
static void int_8086(struct cpu *c, uint8_t n)
{
	uint32_t vec = ld32(c, SEG_SYS, n * 4u);
	uint64_t flags = c->rflags & ~(uint64_t)FL_NT, clear = FL_TF | FL_IF;
	struct stk s;

	if (iopl(c) < 3) {
		flags = (flags & ~(uint64_t)FL_IF) | FL_IOPL;
		if (flags & FL_VIF)
			flags |= FL_IF;
		clear = FL_TF | FL_VIF;
	}
	stk_current(c, &s);
	stk_push(c, &s, 2, flags);
	stk_push(c, &s, 2, c->seg[SEG_CS].sel);
	stk_push(c, &s, 2, c->gpr[R_NEXT]);
	stk_commit_sp(c, &s);
	c->rflags &= ~(clear | FL_NT | FL_RF);
	c->soft_event = true;
	commit_cs(c, seg_real(c, SEG_CS, (uint16_t)(vec >> 16)), (uint16_t)vec);
}

static void op_int(struct cpu *c, const struct insn *in)
{
	if (redirected(c, (uint8_t)in->imm)) {
		int_8086(c, (uint8_t)in->imm);
		return;
	}
	if (c->mode == MODE_VM86 && iopl(c) < 3)
		x86_gp(c, 0);
	x86_deliver(c, EVENT_SOFT_INT, (uint8_t)in->imm, false, 0);
}

static void op_int3(struct cpu *c, const struct insn *in)
{
	if (c->debug & HV_DEBUG_BP)
		debug_exit(c, VEC_BP);
	x86_deliver(c, EVENT_SOFT_INT, VEC_BP, false, 0);
}

static void op_into(struct cpu *c, const struct insn *in)
{
	if (c->rflags & FL_OF)
		x86_deliver(c, EVENT_SOFT_INT, VEC_OF, false, 0);
}

static void op_int1(struct cpu *c, const struct insn *in)
{
	if (c->debug & HV_DEBUG_DB)
		debug_exit(c, VEC_DB);
	x86_deliver(c, EVENT_ICEBP, VEC_DB, false, 0);
}

/* -- system calls --------------------------------------------------------- */

static struct segreg flat_seg(uint16_t sel, uint32_t access)
{
	return (struct segreg){
		.sel = sel,
		.limit = 0xffffffff,
		.access = access,
	};
}

enum {
	FLAT_CODE64 = 0xa09b,
	FLAT_CODE32 = 0xc09b,
	FLAT_DATA = 0xc093,
	FLAT_USER = 0x60
};

static void op_syscall(struct cpu *c, const struct insn *in)
{
	uint16_t sel = (uint16_t)(c->msr.star >> 32) & 0xfffc;
	uint64_t next = c->gpr[R_NEXT];

	if (!(c->efer & EFER_SCE) || !(c->efer & EFER_LMA))
		x86_ud(c);
	c->gpr[R_RCX] = c->mode == MODE_64 ? next : (uint32_t)next;
	c->gpr[11] = c->rflags & ~(uint64_t)FL_RF;
	set_rip(c, c->mode == MODE_64 ? c->msr.lstar : c->msr.cstar);
	c->rflags &= ~(c->msr.sfmask | FL_RF);
	c->rflags |= 2;
	c->seg[SEG_CS] = flat_seg(sel, FLAT_CODE64);
	c->seg[SEG_SS] = flat_seg((uint16_t)(sel + 8), FLAT_DATA);
	c->trap_now = c->rflags & FL_TF;
	cpu_update_mode(c);
}

static void op_sysret(struct cpu *c, const struct insn *in)
{
	uint16_t sel = (uint16_t)(c->msr.star >> 48);
	bool wide = in->opsize == 8;

	if (!(c->efer & EFER_SCE) || c->mode != MODE_64)
		x86_ud(c);
	if (c->cpl != 0 || (wide && !canonical(c->gpr[R_RCX])))
		x86_gp(c, 0);
	set_rip(c, wide ? c->gpr[R_RCX] : (uint32_t)c->gpr[R_RCX]);
	c->rflags = (c->gpr[11] & 0x3c7fd7) | 2;
	c->seg[SEG_CS] =
		flat_seg((uint16_t)((sel + (wide ? 16 : 0)) | 3),
			 (wide ? FLAT_CODE64 : FLAT_CODE32) | FLAT_USER);
	c->seg[SEG_SS] =
		flat_seg((uint16_t)((sel + 8) | 3), FLAT_DATA | FLAT_USER);
	c->trap_now = c->rflags & FL_TF;
	cpu_update_mode(c);
}

static void op_sysenter(struct cpu *c, const struct insn *in)
{
	uint16_t sel = (uint16_t)c->msr.sysenter_cs & 0xfffc;
	bool lma = c->efer & EFER_LMA;

	if (c->mode == MODE_REAL || !sel)
		x86_gp(c, 0);
	c->gpr[R_RSP] =
		lma ? c->msr.sysenter_esp : (uint32_t)c->msr.sysenter_esp;
	set_rip(c, lma ? c->msr.sysenter_eip : (uint32_t)c->msr.sysenter_eip);
	c->rflags &= ~(uint64_t)(FL_VM | FL_IF | FL_RF);
	c->seg[SEG_CS] = flat_seg(sel, lma ? FLAT_CODE64 : FLAT_CODE32);
	c->seg[SEG_SS] = flat_seg((uint16_t)(sel + 8), FLAT_DATA);
	cpu_update_mode(c);
}

static void op_sysexit(struct cpu *c, const struct insn *in)
{
	uint16_t sel = (uint16_t)c->msr.sysenter_cs & 0xfffc;
	bool wide = in->opsize == 8;

	if (!is_protected(c) || c->cpl != 0 || !sel)
		x86_gp(c, 0);
	if (wide && (!canonical(c->gpr[R_RCX]) || !canonical(c->gpr[R_RDX])))
		x86_gp(c, 0);
	c->gpr[R_RSP] = wide ? c->gpr[R_RCX] : (uint32_t)c->gpr[R_RCX];
	set_rip(c, wide ? c->gpr[R_RDX] : (uint32_t)c->gpr[R_RDX]);
	c->seg[SEG_CS] =
		flat_seg((uint16_t)((sel + (wide ? 32 : 16)) | 3),
			 (wide ? FLAT_CODE64 : FLAT_CODE32) | FLAT_USER);
	c->seg[SEG_SS] = flat_seg((uint16_t)((sel + (wide ? 40 : 24)) | 3),
				  FLAT_DATA | FLAT_USER);
	cpu_update_mode(c);
}

static void need_cpl0(struct cpu *c)
{
	if (c->cpl != 0)
		x86_gp(c, 0);
}

static void op_swapgs(struct cpu *c, const struct insn *in)
{
	uint64_t base = c->seg[SEG_GS].base;

	if (c->mode != MODE_64)
		x86_ud(c);
	need_cpl0(c);
	c->seg[SEG_GS].base = c->msr.kernel_gs;
	c->msr.kernel_gs = base;
}

/* -- flags ---------------------------------------------------------------- */

/* CLI and STI act on VIF, under VME and PVI. */
static bool virtual_if(struct cpu *c)
{
	if (c->cpl <= iopl(c))
		return false;
	if (c->mode == MODE_VM86 ? c->cr4 & CR4_VME
				 : c->cpl == 3 && (c->cr4 & CR4_PVI))
		return true;
	x86_gp(c, 0);
}

static void op_cli(struct cpu *c, const struct insn *in)
{
	c->rflags &= virtual_if(c) ? ~(uint64_t)FL_VIF : ~(uint64_t)FL_IF;
}

static void op_sti(struct cpu *c, const struct insn *in)
{
	if (virtual_if(c)) {
		if (c->rflags & FL_VIP)
			x86_gp(c, 0);
		c->rflags |= FL_VIF;
		return;
	}
	if (!(c->rflags & FL_IF))
		c->inhibit = c->leave_block = true;
	c->rflags |= FL_IF;
}

static void op_pushf(struct cpu *c, const struct insn *in)
{
	uint64_t v = c->rflags & ~(uint64_t)(FL_RF | FL_VM);
	struct stk s;

	if (c->mode == MODE_VM86 && iopl(c) < 3) {
		if (!(c->cr4 & CR4_VME) || in->opsize != 2)
			x86_gp(c, 0);
		v = (v & ~(uint64_t)FL_IF) | FL_IOPL;
		if (v & FL_VIF)
			v |= FL_IF;
	}
	stk_current(c, &s);
	stk_push(c, &s, in->opsize, v);
	stk_commit_sp(c, &s);
}

static void op_popf(struct cpu *c, const struct insn *in)
{
	uint64_t mask = flags_mask(c, in->opsize), v;
	bool virt = false;
	struct stk s;

	if (c->mode == MODE_VM86) {
		mask &= ~(uint64_t)FL_IOPL;
		if (iopl(c) < 3) {
			if (!(c->cr4 & CR4_VME) || in->opsize != 2)
				x86_gp(c, 0);
			virt = true;
		}
	}
	stk_current(c, &s);
	v = stk_pop(c, &s, in->opsize);
	if (virt && ((v & FL_TF) || ((v & FL_IF) && (c->rflags & FL_VIP))))
		x86_gp(c, 0);
	stk_commit_sp(c, &s);
	if (virt) {
		mask |= FL_VIF;
		v &= ~(uint64_t)FL_VIF;
		if (v & FL_IF)
			v |= FL_VIF;
	}
	put_flags(c, v & ~(uint64_t)FL_RF, mask);
	update_mmu(c);
	c->leave_block = true;
}

static void op_stac(struct cpu *c, const struct insn *in)
{
	if (c->cpl != 0 || c->mode == MODE_VM86)
		x86_ud(c);
	if (in->imm2)
		c->rflags |= FL_AC;
	else
		c->rflags &= ~(uint64_t)FL_AC;
	update_mmu(c);
}

static void op_hlt(struct cpu *c, const struct insn *in)
{
	need_cpl0(c);
	c->mp = HV_MP_HALTED;
	c->leave_block = true;
}

/* -- ports ---------------------------------------------------------------- */

void io_check(struct cpu *c, uint16_t port, unsigned size)
{
	const struct segreg *tr = &c->seg[SEG_TR];
	unsigned at, bits;

	if (c->mode == MODE_REAL)
		return;
	if (c->mode != MODE_VM86 && c->cpl <= iopl(c))
		return;
	if ((tr->access & SEG_A_UNUSABLE) || !(tr->access & 8) ||
	    tr->limit < 0x67)
		x86_gp(c, 0);
	at = ld16(c, SEG_SYS, tr->base + 0x66) + port / 8u;
	if (at + 1 > tr->limit)
		x86_gp(c, 0);
	bits = ld16(c, SEG_SYS, tr->base + at) >> (port & 7);
	if (bits & ((1u << size) - 1))
		x86_gp(c, 0);
}

static uint16_t port_of(struct cpu *c, const struct insn *in)
{
	return in->imm2 ? (uint16_t)c->gpr[R_RDX] : (uint8_t)in->imm;
}

static void op_in(struct cpu *c, const struct insn *in)
{
	uint16_t port = port_of(c, in);

	io_check(c, port, in->opsize);
	set_reg(c, R_RAX, in->opsize, pio_in(c, port, in->opsize));
}

static void op_out(struct cpu *c, const struct insn *in)
{
	uint16_t port = port_of(c, in);

	io_check(c, port, in->opsize);
	pio_out(c, port, in->opsize, (uint32_t)get_reg(c, R_RAX, in->opsize));
}

/* -- control and debug registers ------------------------------------------ */

static uint64_t phys_mask(struct cpu *c)
{
	unsigned bits = c->vm->vm.caps.phys_bits;

	return (1ull << (bits ? bits : 40)) - 1;
}

/* Load the four PDPTEs that cr3 points to; false: reserved bits. */
bool pdpte_load(struct cpu *c, uint64_t cr3)
{
	uint64_t gpa = cr3 & 0xffffffe0, e[4] = { 0 };
	void *p = phys_ptr(c->vm, gpa, sizeof(e));

	if (p)
		memcpy(e, p, sizeof(e));
	for (unsigned i = 0; i < 4; i++)
		if ((e[i] & 1) && ((e[i] & 0x1e6) || (e[i] & ~phys_mask(c))))
			return false;
	memcpy(c->pdpte, e, sizeof(e));
	return true;
}

static bool pae_legacy(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

static void write_cr0(struct cpu *c, uint64_t v)
{
	const uint64_t known = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE |
			       CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;
	uint64_t efer = c->efer, diff;

	if (v >> 32)
		x86_gp(c, 0);
	v = (v & known) | CR0_ET;
	if ((v & CR0_PG) && !(v & CR0_PE))
		x86_gp(c, 0);
	if ((v & CR0_NW) && !(v & CR0_CD))
		x86_gp(c, 0);
	diff = v ^ c->cr0;
	if (diff & CR0_PG) {
		if (!(v & CR0_PG)) {
			if (c->mode == MODE_64 || (c->cr4 & CR4_PCIDE))
				x86_gp(c, 0);
			efer &= ~(uint64_t)EFER_LMA;
		} else if (efer & EFER_LME) {
			if (!(c->cr4 & CR4_PAE) ||
			    (c->seg[SEG_CS].access & SEG_A_L))
				x86_gp(c, 0);
			efer |= EFER_LMA;
		}
	}
	if ((diff & (CR0_PG | CR0_CD | CR0_NW)) &&
	    pae_legacy(v, c->cr4, efer) && !pdpte_load(c, c->cr3))
		x86_gp(c, 0);
	c->cr0 = v;
	c->efer = efer;
	if (diff & (CR0_PG | CR0_WP | CR0_PE)) {
		tlb_flush(c, true);
		c->leave_block = true;
	}
	cpu_update_mode(c);
}

static void write_cr3(struct cpu *c, uint64_t v)
{
	uint64_t was = c->cr3;
	bool keep = false;

	if (c->cr4 & CR4_PCIDE) {
		keep = v >> 63;
		v &= ~BIT(63);
	}
	if ((c->efer & EFER_LMA) && (v & ~phys_mask(c)))
		x86_gp(c, 0);
	if (pae_legacy(c->cr0, c->cr4, c->efer) && !pdpte_load(c, v))
		x86_gp(c, 0);
	c->cr3 = v;
	if (c->cr4 & CR4_PCIDE)
		tlb_switch(c, was & 0xfff, v & 0xfff, keep);
	else
		tlb_flush(c, false);
	c->leave_block = true;
}

static void write_cr4(struct cpu *c, uint64_t v)
{
	const uint64_t known = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE |
			       CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE |
			       CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP |
			       CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE |
			       CR4_SMEP | CR4_SMAP;
	uint64_t diff = v ^ c->cr4;
	bool lma = c->efer & EFER_LMA;

	if ((v & ~known) || (lma && !(v & CR4_PAE)))
		x86_gp(c, 0);
	if ((diff & v & CR4_PCIDE) && (!lma || (c->cr3 & 0xfff)))
		x86_gp(c, 0);
	if ((diff & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)) &&
	    pae_legacy(c->cr0, v, c->efer) && !pdpte_load(c, c->cr3))
		x86_gp(c, 0);
	c->cr4 = v;
	if (diff &
	    (CR4_PGE | CR4_PAE | CR4_PSE | CR4_PCIDE | CR4_SMEP | CR4_SMAP)) {
		tlb_flush(c, true);
		c->leave_block = true;
	}
	cpu_update_mode(c);
}

static void op_mov_to_cr(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_reg(c, in->reg, in->opsize);

	need_cpl0(c);
	switch (in->imm2) {
	case 0: write_cr0(c, v); break;
	case 2: c->cr2 = v; break;
	case 3: write_cr3(c, v); break;
	case 4: write_cr4(c, v); break;
	case 8:
		if (v & ~0xfull)
			x86_gp(c, 0);
		lapic_cr8_set(c, (uint8_t)v);
		break;
	default: x86_ud(c);
	}
}

static void op_mov_from_cr(struct cpu *c, const struct insn *in)
{
	uint64_t v = 0;

	need_cpl0(c);
	switch (in->imm2) {
	case 0: v = c->cr0; break;
	case 2: v = c->cr2; break;
	case 3: v = c->cr3; break;
	case 4: v = c->cr4; break;
	case 8: v = lapic_cr8_get(c); break;
	default: x86_ud(c);
	}
	set_reg(c, in->reg, in->opsize, v);
}

/* Number of the debug register, 4 and 5 being 6 and 7 without CR4.DE. */
static unsigned check_dr(struct cpu *c, const struct insn *in)
{
	unsigned n = in->imm2;

	if (n == 4 || n == 5) {
		if (c->cr4 & CR4_DE)
			x86_ud(c);
		n += 2;
	}
	if (n > 7)
		x86_ud(c);
	need_cpl0(c);
	if (c->dr7 & BIT(13)) {
		c->dr6 |= BIT(13);
		x86_fault_noerr(c, VEC_DB);
	}
	return n;
}

static void op_mov_to_dr(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_reg(c, in->reg, in->opsize);
	unsigned n = check_dr(c, in);

	if (n >= 6 && v >> 32)
		x86_gp(c, 0);
	if (n < 4)
		c->dr[n] = v;
	else if (n == 6)
		c->dr6 = (v & 0xe00f) | 0xffff0ff0;
	else
		c->dr7 = (v & 0xffff23ff) | 0x400;
	if (n != 6)
		watch_update(c);
	c->leave_block = true;
}

static void op_mov_from_dr(struct cpu *c, const struct insn *in)
{
	unsigned n = check_dr(c, in);

	set_reg(c, in->reg, in->opsize,
		n < 4	 ? c->dr[n]
		: n == 6 ? c->dr6
			 : c->dr7);
}

static void op_clts(struct cpu *c, const struct insn *in)
{
	need_cpl0(c);
	c->cr0 &= ~(uint64_t)CR0_TS;
	cpu_update_mode(c);
}

static void op_lmsw(struct cpu *c, const struct insn *in)
{
	uint64_t v;

	need_cpl0(c);
	v = rm16(c, in) & 0xf;
	write_cr0(c, (c->cr0 & ~0xeull) | v); /* PE can only be set */
}

static void check_umip(struct cpu *c)
{
	if ((c->cr4 & CR4_UMIP) && c->cpl != 0)
		x86_gp(c, 0);
}

/* A register gets its whole operand size, memory always 16 bits. */
static void put_rm(struct cpu *c, const struct insn *in, uint64_t v)
{
	if (in->flags & IN_MEM)
		st16(c, in->seg, ea_linear(c, in, 2, true), (uint16_t)v);
	else
		set_reg(c, in->reg, in->opsize, v);
}

static void op_smsw(struct cpu *c, const struct insn *in)
{
	check_umip(c);
	put_rm(c, in, c->cr0);
}

/* imm2: 1 the IDT, 0 the GDT */
static void op_sgdt(struct cpu *c, const struct insn *in)
{
	unsigned size = c->mode == MODE_64 ? 8 : 4;
	uint64_t base, lin;
	uint8_t buf[10];
	uint16_t limit;

	check_umip(c);
	base = in->imm2 ? c->idtr.base : c->gdtr.base;
	limit = in->imm2 ? c->idtr.limit : c->gdtr.limit;
	lin = ea_linear(c, in, size + 2, true);
	memcpy(buf, &limit, 2);
	memcpy(buf + 2, &base, 8);
	mem_write(c, in->seg, lin, buf, size + 2);
}

static void op_lgdt(struct cpu *c, const struct insn *in)
{
	unsigned size = c->mode == MODE_64 ? 8 : 4;
	uint64_t base = 0, lin;
	uint8_t buf[10] = { 0 };
	uint16_t limit;

	need_cpl0(c);
	lin = ea_linear(c, in, size + 2, false);
	mem_read(c, in->seg, lin, buf, size + 2);
	memcpy(&limit, buf, 2);
	memcpy(&base, buf + 2, size);
	if (size == 4 && in->opsize == 2)
		base &= 0xffffff;
	if (!canonical(base))
		x86_gp(c, 0);
	if (in->imm2) {
		c->idtr.base = base;
		c->idtr.limit = limit;
	} else {
		c->gdtr.base = base;
		c->gdtr.limit = limit;
	}
}

static void op_sldt(struct cpu *c, const struct insn *in)
{
	if (!is_protected(c))
		x86_ud(c);
	check_umip(c);
	put_rm(c, in, c->seg[in->imm2].sel);
}

/* Descriptor of an LDT or TSS, 16 bytes in long mode. */
static struct segreg system_desc(struct cpu *c, uint16_t sel, uint64_t *lin)
{
	struct segreg s;
	uint64_t hi;

	if (sel & 4)
		x86_gp(c, sel & ~3u);
	s = desc_seg(sel, desc_need(c, sel, VEC_GP, 0, lin));
	if (c->efer & EFER_LMA) {
		if ((sel & ~7u) + 15 > c->gdtr.limit)
			x86_gp(c, sel & ~3u);
		hi = ld64(c, SEG_SYS, *lin + 8);
		s.base |= hi << 32;
		if ((hi >> 40 & 0x1f) || !canonical(s.base))
			x86_gp(c, sel & ~3u);
	}
	return s;
}

static void op_lldt(struct cpu *c, const struct insn *in)
{
	struct segreg s;
	uint64_t lin;
	uint16_t sel;

	if (!is_protected(c))
		x86_ud(c);
	need_cpl0(c);
	sel = rm16(c, in);
	if (null_sel(sel)) {
		c->seg[SEG_LDT] = seg_null(sel, 0);
		return;
	}
	s = system_desc(c, sel, &lin);
	if ((s.access & 0x1f) != 2)
		x86_gp(c, sel & ~3u);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	c->seg[SEG_LDT] = s;
}

static void op_ltr(struct cpu *c, const struct insn *in)
{
	struct segreg s;
	uint64_t lin;
	uint16_t sel;

	if (!is_protected(c))
		x86_ud(c);
	need_cpl0(c);
	sel = rm16(c, in);
	if (null_sel(sel))
		x86_gp(c, 0);
	s = system_desc(c, sel, &lin);
	if ((s.access & 0x1f) != 9 &&
	    ((s.access & 0x1f) != 1 || (c->efer & EFER_LMA)))
		x86_gp(c, sel & ~3u);
	if (!(s.access & SEG_A_P))
		x86_fault(c, VEC_NP, sel & ~3u);
	desc_mark(c, lin, 2, 0);
	s.access |= 2;
	c->seg[SEG_TR] = s;
}

static void set_zf(struct cpu *c, bool on)
{
	c->rflags = (c->rflags & ~(uint64_t)FL_ZF) | (on ? FL_ZF : 0);
}

/* Common part of LAR, LSL, VERR, VERW: may CPL see this descriptor? */
static bool visible(struct cpu *c, uint16_t sel, uint64_t *d)
{
	uint32_t a;
	uint64_t lin;

	if (!is_protected(c))
		x86_ud(c);
	if (null_sel(sel) || !desc_read(c, sel, d, &lin))
		return false;
	a = (uint32_t)(*d >> 40);
	if ((a & 0x1c) == 0x1c)
		return true; /* conforming code */
	return (a >> 5 & 3) >= c->cpl && (a >> 5 & 3) >= (sel & 3u);
}

/* imm2: 0 LAR, 1 LSL; reg2 of the destination in rm */
static void op_lar(struct cpu *c, const struct insn *in)
{
	bool lma = c->efer & EFER_LMA, lsl = in->imm2;
	unsigned types = lma ? 1 << 2 | 1 << 9 | 1 << 11 | 1 << 12
			     : 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 |
					 1 << 9 | 1 << 11 | 1 << 12;
	uint64_t d = 0;
	uint16_t sel;
	bool ok;

	if (!is_protected(c))
		x86_ud(c);
	sel = rm16(c, in);
	ok = visible(c, sel, &d);
	if (lsl)
		types &= ~(1u << 4 | 1u << 5 | 1u << 12);
	if (ok && !(d >> 44 & 1))
		ok = types >> (d >> 40 & 15) & 1;
	set_zf(c, ok);
	if (ok)
		set_reg(c, in->rm, in->opsize,
			lsl ? desc_seg(sel, d).limit : d >> 32 & 0xf0ff00);
}

/* imm2: 0 VERR, 1 VERW */
static void op_verr(struct cpu *c, const struct insn *in)
{
	uint64_t d = 0;
	bool ok;

	if (!is_protected(c))
		x86_ud(c);
	ok = visible(c, rm16(c, in), &d) && (d >> 44 & 1);
	if (ok)
		ok = in->imm2 ? (d >> 40 & 0xa) == 2 : (d >> 40 & 0xa) != 8;
	set_zf(c, ok);
}

static void op_arpl(struct cpu *c, const struct insn *in)
{
	uint16_t src = (uint16_t)c->gpr[in->rm], dst;
	uint64_t lin = 0;
	bool up;

	if (!is_protected(c))
		x86_ud(c);
	if (in->flags & IN_MEM) {
		lin = ea_linear(c, in, 2, true);
		dst = ld16(c, in->seg, lin);
	} else {
		dst = (uint16_t)c->gpr[in->reg];
	}
	up = (dst & 3) < (src & 3);
	if (up) {
		dst = (uint16_t)((dst & ~3u) | (src & 3u));
		if (in->flags & IN_MEM)
			st16(c, in->seg, lin, dst);
		else
			set_reg(c, in->reg, 2, dst);
	}
	set_zf(c, up);
}

/* -- TLB and caches ------------------------------------------------------- */

static void op_invlpg(struct cpu *c, const struct insn *in)
{
	uint64_t va = ea_offset(c, in);

	need_cpl0(c);
	if (c->mode != MODE_64)
		va = (uint32_t)(va + c->seg[in->seg].base);
	else if (in->seg == SEG_FS || in->seg == SEG_GS)
		va += c->seg[in->seg].base;
	if (canonical(va))
		tlb_flush_page(c, va);
	c->leave_block = true;
}

static void op_invpcid(struct cpu *c, const struct insn *in)
{
	uint64_t type = get_reg(c, in->reg, c->mode == MODE_64 ? 8 : 4);
	uint64_t d[2], pcid = c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0;

	need_cpl0(c);
	mem_read(c, in->seg, ea_linear(c, in, 16, false), d, 16);
	if (type > 3 || (type < 2 && d[0] >> 12))
		x86_gp(c, 0);
	if (type < 2 && d[0] && !(c->cr4 & CR4_PCIDE))
		x86_gp(c, 0);
	if (type == 0 && !canonical(d[1]))
		x86_gp(c, 0);
	if (type == 0 && d[0] == pcid)
		tlb_flush_page(c, d[1]);
	else if (type < 2)
		tlb_flush_pcid(c, (unsigned)d[0]);
	else if (type == 3)
		tlb_flush_pcids(c);
	else
		tlb_flush(c, true);
	c->leave_block = true;
}

static void op_wbinvd(struct cpu *c, const struct insn *in)
{
	need_cpl0(c);
}

/* -- CPUID, MSRs, counters ------------------------------------------------ */

static void op_cpuid(struct cpu *c, const struct insn *in)
{
	uint32_t out[4];

	cpuid_read(c, (uint32_t)c->gpr[R_RAX], (uint32_t)c->gpr[R_RCX], out);
	c->gpr[R_RAX] = out[0];
	c->gpr[R_RBX] = out[1];
	c->gpr[R_RCX] = out[2];
	c->gpr[R_RDX] = out[3];
}

static void set_edx_eax(struct cpu *c, uint64_t v)
{
	c->gpr[R_RAX] = (uint32_t)v;
	c->gpr[R_RDX] = v >> 32;
}

static uint64_t get_edx_eax(struct cpu *c)
{
	return c->gpr[R_RDX] << 32 | (uint32_t)c->gpr[R_RAX];
}

static void op_rdmsr(struct cpu *c, const struct insn *in)
{
	uint64_t v = 0;

	need_cpl0(c);
	c->msr_unknown = false;
	if (!msr_read(c, (uint32_t)c->gpr[R_RCX], &v)) {
		if (!c->msr_unknown)
			x86_gp(c, 0);
		v = msr_ask(c, (uint32_t)c->gpr[R_RCX], false, 0);
	}
	set_edx_eax(c, v);
}

static void op_wrmsr(struct cpu *c, const struct insn *in)
{
	uint32_t index = (uint32_t)c->gpr[R_RCX];

	need_cpl0(c);
	c->msr_unknown = false;
	if (!msr_write(c, index, get_edx_eax(c))) {
		if (!c->msr_unknown)
			x86_gp(c, 0);
		msr_ask(c, index, true, get_edx_eax(c));
	}
	if (index == 0xc0000080)
		cpu_update_mode(c);
}

static void check_tsd(struct cpu *c)
{
	if ((c->cr4 & CR4_TSD) && c->cpl != 0)
		x86_gp(c, 0);
}

static void op_rdtsc(struct cpu *c, const struct insn *in)
{
	check_tsd(c);
	set_edx_eax(c, cpu_tsc(c));
}

static void op_rdtscp(struct cpu *c, const struct insn *in)
{
	check_tsd(c);
	set_edx_eax(c, cpu_tsc(c));
	c->gpr[R_RCX] = (uint32_t)c->msr.tsc_aux;
}

static void op_rdpid(struct cpu *c, const struct insn *in)
{
	set_reg(c, in->reg, c->mode == MODE_64 ? 8 : 4,
		(uint32_t)c->msr.tsc_aux);
}

static void op_rdpmc(struct cpu *c, const struct insn *in)
{
	x86_gp(c, 0);
}

static void check_fsgsbase(struct cpu *c)
{
	if (c->mode != MODE_64 || !(c->cr4 & CR4_FSGSBASE))
		x86_ud(c);
}

static void op_rdbase(struct cpu *c, const struct insn *in)
{
	check_fsgsbase(c);
	set_reg(c, in->reg, in->opsize, c->seg[in->imm2].base);
}

static void op_wrbase(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_reg(c, in->reg, in->opsize);

	check_fsgsbase(c);
	if (!canonical(v))
		x86_gp(c, 0);
	c->seg[in->imm2].base = v;
}

static void op_xgetbv(struct cpu *c, const struct insn *in)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		x86_ud(c);
	if ((uint32_t)c->gpr[R_RCX] != 0)
		x86_gp(c, 0);
	set_edx_eax(c, c->xcr0);
}

static void op_xsetbv(struct cpu *c, const struct insn *in)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		x86_ud(c);
	need_cpl0(c);
	if ((uint32_t)c->gpr[R_RCX] != 0 || !fpu_set_xcr0(c, get_edx_eax(c)))
		x86_gp(c, 0);
	cpu_update_mode(c);
}

static void op_hypercall(struct cpu *c, const struct insn *in)
{
	const uint64_t eperm = -1ull;

	c->gpr[R_RAX] = c->cpl ? eperm : kvmpv_hypercall(c);
	if (c->mode != MODE_64)
		c->gpr[R_RAX] = (uint32_t)c->gpr[R_RAX];
}

/* -- reset ---------------------------------------------------------------- */

/* SDM 3A table 10-1.  INIT keeps MSRs, FPU, TSC and the cache bits of CR0. */
void cpu_reset(struct cpu *c, bool init_only)
{
	uint64_t cache =
		init_only ? c->cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW;
	uint32_t id[4] = { 0 };
	bool bsp;

	cpuid_read(c, 1, 0, id);
	memset(c->gpr, 0, sizeof(c->gpr));
	c->gpr[R_RDX] = id[0];
	c->rip = 0xfff0;
	c->gpr[R_NEXT] = c->rip;
	c->rflags = 2;
	c->cr0 = CR0_ET | cache;
	c->cr2 = c->cr3 = c->cr4 = c->efer = 0;
	memset(c->pdpte, 0, sizeof(c->pdpte));
	for (unsigned i = 0; i <= SEG_GS; i++)
		c->seg[i] = (struct segreg){ .limit = 0xffff, .access = 0x93 };
	c->seg[SEG_CS] = (struct segreg){
		.sel = 0xf000,
		.limit = 0xffff,
		.access = 0x9b,
		.base = 0xffff0000,
	};
	c->seg[SEG_LDT] = (struct segreg){ .limit = 0xffff, .access = 0x82 };
	c->seg[SEG_TR] = (struct segreg){ .limit = 0xffff, .access = 0x8b };
	c->gdtr.base = c->idtr.base = 0;
	c->gdtr.limit = c->idtr.limit = 0xffff;
	memset(c->dr, 0, sizeof(c->dr));
	c->dr6 = 0xffff0ff0;
	c->dr7 = 0x400;
	c->watch = c->trap_now = false;
	atomic_store(&c->extint_msi, false);
	atomic_store(&c->pv_kicked, false);
	c->db_hit = c->db_held = 0;

	memset(&c->fault, 0, sizeof(c->fault));
	c->delivering = c->inhibit = c->inhibit_ss = c->nmi_masked = false;
	c->extint = false;
	atomic_store(&c->nmi_pending, 0);
	c->replay.done = c->replay.at = 0;
	c->replay.waiting = false;

	if (!init_only) {
		memset(&c->msr, 0, sizeof(c->msr));
		c->msr.pat = 0x0007040600070406;
		c->msr.misc_enable = 0x1801; /* no BTS, no PEBS */
		c->xcr0 = 1;
		c->apic_base = 0xfee00000 | BIT(11);
		if (c->vcpu.id == 0)
			c->apic_base |= BIT(8);
		fpu_reset(c);
	}
	if (c->lapic)
		lapic_reset(c, init_only);
	bsp = c->apic_base & BIT(8);
	c->mp = bsp ? HV_MP_RUNNABLE : HV_MP_WAIT_SIPI;
	if (!init_only)
		c->sipi_vector = 0;
	if (c->ready)
		tlb_flush(c, true);
	cpu_update_mode(c);
	c->leave_block = true;
}

/* -- binding -------------------------------------------------------------- */

static bool is_reg(const struct operand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static ZydisRegisterClass reg_class(const struct operand *o)
{
	return is_reg(o) ? ZydisRegisterGetClass(o->reg.value)
			 : ZYDIS_REGCLASS_INVALID;
}

static uint8_t reg_id(const struct operand *o)
{
	return (uint8_t)ZydisRegisterGetId(o->reg.value);
}

/* General register operand into *to, when it is one. */
static void take_reg(const struct operand *o, uint8_t *to)
{
	ZydisRegisterClass k = reg_class(o);

	if (k == ZYDIS_REGCLASS_GPR16 || k == ZYDIS_REGCLASS_GPR32 ||
	    k == ZYDIS_REGCLASS_GPR64)
		*to = reg_id(o);
}

static insn_fn *bind_mov(const struct decoded *d, struct insn *in)
{
	const struct operand *a = &d->op[0], *b = &d->op[1];
	ZydisRegisterClass ka = reg_class(a), kb = reg_class(b);

	if (ka == ZYDIS_REGCLASS_SEGMENT) {
		in->imm2 = reg_id(a);
		take_reg(b, &in->reg);
		in->flags |= IN_ENDS;
		if (in->imm2 == SEG_SS)
			in->flags |= IN_STI;
		return in->imm2 == SEG_CS ? op_undefined : op_mov_to_seg;
	}
	if (kb == ZYDIS_REGCLASS_SEGMENT) {
		in->imm2 = reg_id(b);
		take_reg(a, &in->reg);
		if (is_reg(a))
			in->opsize = (uint8_t)(a->size / 8);
		return op_mov_from_seg;
	}
	if (ka == ZYDIS_REGCLASS_CONTROL || ka == ZYDIS_REGCLASS_DEBUG) {
		in->imm2 = reg_id(a);
		take_reg(b, &in->reg);
		in->opsize = (uint8_t)(b->size / 8);
		in->flags |= IN_ENDS;
		return ka == ZYDIS_REGCLASS_CONTROL ? op_mov_to_cr
						    : op_mov_to_dr;
	}
	if (kb == ZYDIS_REGCLASS_CONTROL || kb == ZYDIS_REGCLASS_DEBUG) {
		in->imm2 = reg_id(b);
		take_reg(a, &in->reg);
		in->opsize = (uint8_t)(a->size / 8);
		return kb == ZYDIS_REGCLASS_CONTROL ? op_mov_from_cr
						    : op_mov_from_dr;
	}
	return NULL;
}

static insn_fn *bind_far(const struct decoded *d, struct insn *in)
{
	const struct operand *a = &d->op[0];

	if (d->i.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
		return NULL;
	in->opsize = (uint8_t)(d->i.operand_width / 8);
	in->flags |= IN_ENDS;
	if (d->i.mnemonic == ZYDIS_MNEMONIC_RET) {
		in->imm = 0;
		if (d->i.operand_count_visible &&
		    a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			in->imm = a->imm.value.u & 0xffff;
		return op_retf;
	}
	in->imm2 = d->i.mnemonic == ZYDIS_MNEMONIC_CALL;
	if (a->type == ZYDIS_OPERAND_TYPE_POINTER) {
		in->imm = (uint64_t)a->ptr.segment << 32 | a->ptr.offset;
		if (in->opsize == 2)
			in->imm &= ~0xffff0000ull;
		return op_far_direct;
	}
	return op_far_mem;
}

static insn_fn *bind_push(const struct decoded *d, struct insn *in)
{
	if (reg_class(&d->op[0]) != ZYDIS_REGCLASS_SEGMENT)
		return NULL;
	in->imm2 = reg_id(&d->op[0]);
	in->opsize = d->i.operand_width == 16 ? 2 : d->mode == MODE_64 ? 8 : 4;
	if (d->i.mnemonic == ZYDIS_MNEMONIC_PUSH)
		return op_push_seg;
	in->flags |= IN_ENDS;
	if (in->imm2 == SEG_SS)
		in->flags |= IN_STI;
	return op_pop_seg;
}

static insn_fn *bind_io(const struct decoded *d, struct insn *in)
{
	bool input = d->i.mnemonic == ZYDIS_MNEMONIC_IN;
	const struct operand *port = &d->op[input ? 1 : 0];
	const struct operand *data = &d->op[input ? 0 : 1];
	unsigned size = data->size / 8;

	in->opsize = (uint8_t)(size > 4 ? 4 : size);
	in->imm2 = is_reg(port);
	if (!in->imm2)
		in->imm = port->imm.value.u & 0xff;
	return input ? op_in : op_out;
}

static insn_fn *ends(struct insn *in, insn_fn *fn)
{
	in->flags |= IN_ENDS;
	return fn;
}

/* One r/m operand, with a fixed imm2. */
static insn_fn *bind_rm(const struct decoded *d, struct insn *in, uint8_t imm2,
			insn_fn *fn)
{
	take_reg(&d->op[0], &in->reg);
	in->imm2 = imm2;
	in->opsize = (uint8_t)(d->i.operand_width / 8);
	if (is_reg(&d->op[0]))
		in->opsize = (uint8_t)(d->op[0].size / 8);
	return fn;
}

static insn_fn *bind_lseg(const struct decoded *d, struct insn *in, uint8_t seg)
{
	take_reg(&d->op[0], &in->reg);
	in->imm2 = seg;
	in->opsize = (uint8_t)(d->i.operand_width / 8);
	in->flags |= IN_ENDS;
	if (seg == SEG_SS)
		in->flags |= IN_STI;
	return op_lseg;
}

static insn_fn *bind_two(const struct decoded *d, struct insn *in, uint8_t imm2,
			 insn_fn *fn)
{
	/* The register operand of these is in rm, the r/m one in reg. */
	bool arpl = fn == op_arpl;

	take_reg(&d->op[arpl ? 1 : 0], &in->rm);
	take_reg(&d->op[arpl ? 0 : 1], &in->reg);
	in->imm2 = imm2;
	in->opsize = (uint8_t)(d->i.operand_width / 8);
	return fn;
}

static insn_fn *bind_plain(const struct decoded *d, struct insn *in)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_INT:
		in->imm = d->op[0].imm.value.u & 0xff;
		return ends(in, op_int);
	case ZYDIS_MNEMONIC_INT3: return ends(in, op_int3);
	case ZYDIS_MNEMONIC_INTO: return ends(in, op_into);
	case ZYDIS_MNEMONIC_INT1: return ends(in, op_int1);
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		in->opsize = (uint8_t)(d->i.operand_width / 8);
		return ends(in, op_iret);
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		in->opsize = (uint8_t)(d->i.operand_width / 8);
		return op_pushf;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		in->opsize = (uint8_t)(d->i.operand_width / 8);
		return ends(in, op_popf);
	case ZYDIS_MNEMONIC_SYSCALL: return ends(in, op_syscall);
	case ZYDIS_MNEMONIC_SYSRET:
		in->opsize = (uint8_t)(d->i.operand_width / 8);
		return ends(in, op_sysret);
	case ZYDIS_MNEMONIC_SYSENTER: return ends(in, op_sysenter);
	case ZYDIS_MNEMONIC_SYSEXIT:
		in->opsize = (uint8_t)(d->i.operand_width / 8);
		return ends(in, op_sysexit);
	case ZYDIS_MNEMONIC_SWAPGS: return op_swapgs;
	case ZYDIS_MNEMONIC_CLI: return op_cli;
	case ZYDIS_MNEMONIC_STI: in->flags |= IN_STI; return ends(in, op_sti);
	case ZYDIS_MNEMONIC_STAC: in->imm2 = 1; return op_stac;
	case ZYDIS_MNEMONIC_CLAC: in->imm2 = 0; return op_stac;
	case ZYDIS_MNEMONIC_HLT: return ends(in, op_hlt);
	case ZYDIS_MNEMONIC_CLTS: return ends(in, op_clts);
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD: return op_wbinvd;
	case ZYDIS_MNEMONIC_CPUID: return op_cpuid;
	case ZYDIS_MNEMONIC_RDMSR: return op_rdmsr;
	case ZYDIS_MNEMONIC_WRMSR: return ends(in, op_wrmsr);
	case ZYDIS_MNEMONIC_RDTSC: return op_rdtsc;
	case ZYDIS_MNEMONIC_RDTSCP: return op_rdtscp;
	case ZYDIS_MNEMONIC_RDPMC: return op_rdpmc;
	case ZYDIS_MNEMONIC_XGETBV: return op_xgetbv;
	case ZYDIS_MNEMONIC_XSETBV: return ends(in, op_xsetbv);
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL: return ends(in, op_hypercall);
	default: return NULL;
	}
}

insn_fn *bind_sys(const struct decoded *d, struct insn *in)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return bind_mov(d, in);
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP: return bind_push(d, in);
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_RET: return bind_far(d, in);
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT: return bind_io(d, in);
	case ZYDIS_MNEMONIC_LDS: return bind_lseg(d, in, SEG_DS);
	case ZYDIS_MNEMONIC_LES: return bind_lseg(d, in, SEG_ES);
	case ZYDIS_MNEMONIC_LSS: return bind_lseg(d, in, SEG_SS);
	case ZYDIS_MNEMONIC_LFS: return bind_lseg(d, in, SEG_FS);
	case ZYDIS_MNEMONIC_LGS: return bind_lseg(d, in, SEG_GS);
	case ZYDIS_MNEMONIC_LMSW: return ends(in, bind_rm(d, in, 0, op_lmsw));
	case ZYDIS_MNEMONIC_SMSW: return bind_rm(d, in, 0, op_smsw);
	case ZYDIS_MNEMONIC_SGDT: return bind_rm(d, in, 0, op_sgdt);
	case ZYDIS_MNEMONIC_SIDT: return bind_rm(d, in, 1, op_sgdt);
	case ZYDIS_MNEMONIC_LGDT: return bind_rm(d, in, 0, op_lgdt);
	case ZYDIS_MNEMONIC_LIDT: return bind_rm(d, in, 1, op_lgdt);
	case ZYDIS_MNEMONIC_SLDT: return bind_rm(d, in, SEG_LDT, op_sldt);
	case ZYDIS_MNEMONIC_STR: return bind_rm(d, in, SEG_TR, op_sldt);
	case ZYDIS_MNEMONIC_LLDT: return bind_rm(d, in, 0, op_lldt);
	case ZYDIS_MNEMONIC_LTR: return bind_rm(d, in, 0, op_ltr);
	case ZYDIS_MNEMONIC_VERR: return bind_rm(d, in, 0, op_verr);
	case ZYDIS_MNEMONIC_VERW: return bind_rm(d, in, 1, op_verr);
	case ZYDIS_MNEMONIC_LAR: return bind_two(d, in, 0, op_lar);
	case ZYDIS_MNEMONIC_LSL: return bind_two(d, in, 1, op_lar);
	case ZYDIS_MNEMONIC_ARPL: return bind_two(d, in, 0, op_arpl);
	case ZYDIS_MNEMONIC_INVLPG: return bind_rm(d, in, 0, op_invlpg);
	case ZYDIS_MNEMONIC_INVPCID: return bind_rm(d, in, 0, op_invpcid);
	case ZYDIS_MNEMONIC_RDPID: return bind_rm(d, in, 0, op_rdpid);
	case ZYDIS_MNEMONIC_RDFSBASE: return bind_rm(d, in, SEG_FS, op_rdbase);
	case ZYDIS_MNEMONIC_RDGSBASE: return bind_rm(d, in, SEG_GS, op_rdbase);
	case ZYDIS_MNEMONIC_WRFSBASE: return bind_rm(d, in, SEG_FS, op_wrbase);
	case ZYDIS_MNEMONIC_WRGSBASE: return bind_rm(d, in, SEG_GS, op_wrbase);
	default: return bind_plain(d, in);
	}
}
