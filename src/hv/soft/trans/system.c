/* SPDX-License-Identifier: Apache-2.0 */
/*
 * system.c - system instructions that translated code does itself
 *
 * Those that a kernel runs all the time and that nearly always just change a
 * word of struct cpu.  What is not the usual case goes to the interpreter by
 * the instruction's site.  CPL and mode are in the key of a block; CR4 and
 * rflags are not, so they are looked at.
 */
#include "hv/soft/trans/trans.h"

#define SLOW_FLAGS (FL_TF | FL_DF | FL_IOPL | FL_NT | FL_AC | FL_ID)

static bool at_cpl0(const struct cpu *c)
{
	return c->cpl == 0 && c->mode != MODE_REAL && c->mode != MODE_VM86;
}

static bool kernel64(const struct cpu *c)
{
	return c->cpl == 0 && c->mode == MODE_64;
}

/* Of code that is translated at all. */
static unsigned word_bits(const struct cpu *c)
{
	return c->mode == MODE_64 ? 64 : 32;
}

/* op dword gs:[off], imm: 0 ADD, 1 OR, 4 AND, 7 CMP */
static void gs_imm(struct emit *e, unsigned op, uint32_t off, uint32_t imm)
{
	E(e, 0x65, 0x81);
	e1(e, (uint8_t)(op << 3 | 4));
	e1(e, 0x25);
	e4(e, off);
	e4(e, imm);
}

void slow_if_irq(struct tctx *x, struct tinsn *ti)
{
	E(&x->e, 0x65, 0x80, 0x3c, 0x25); /* cmp byte gs:[irq_check], 0 */
	e4(&x->e, GS(irq_check));
	e1(&x->e, 0);
	slow_if(x, ti, CC_NE);
}

void slow_unless_canonical(struct tctx *x, struct tinsn *ti, unsigned reg)
{
	struct emit *e = &x->e;

	e_mov(e, T1, reg);
	e_r_shift(e, 4, T1, 16);
	e_r_shift(e, 7, T1, 16);
	e_rr(e, 0x39, T1, reg);
	slow_if(x, ti, CC_NE);
}

void emit_flags_read(struct emit *e, uint32_t without)
{
	e_gs_movzx(e, false, T0, GS(tr.flags) + 1);
	e_gs_movzx(e, false, T1, GS(tr.flags));
	e_r_shift(e, 4, T1, 11);
	e_r_imm(e, 4, T0, FL_ARITH & ~FL_OF);
	e_rr(e, 0x09, T0, T1);
	e_gs(e, 0, 0x8b, T1, GS(rflags));
	e_r_imm(e, 4, T1, ~(uint32_t)(FL_ARITH | without));
	e_rr(e, 0x09, T0, T1);
}

void emit_flags_arith(struct tctx *x)
{
	struct emit *e = &x->e;

	e_mov(e, T1, T0);
	e_r_shift(e, 5, T1, 11);
	e_r_imm(e, 4, T1, 1);
	e_r_shift(e, 4, T0, 8);
	e_r_imm(e, 4, T0, 0xd500);
	e_r_imm(e, 1, T0, 0x200);
	e_rr(e, 0x09, T0, T1);
	e_gs_store_ax(e, GS(tr.flags));
	x->fl_mem = true;
}

static bool emit_sti(struct tctx *x, struct tinsn *ti)
{
	flags_spill(x, ti);
	slow_if_irq(x, ti);
	gs_imm(&x->e, 1, GS(rflags), FL_IF);
	return true;
}

static bool emit_pushf(struct tctx *x, struct tinsn *ti)
{
	struct emit *e = &x->e;

	flags_spill(x, ti);
	emit_flags_read(e, FL_RF | FL_VM);
	e_gs_store(e, T0, GS(tr.temp));
	emit_reg_disp(x, R_RSP, -x->word);
	emit_lookup(x, ti, x->word, true, false);
	e_op_mem(e, 0x8d, T0, T0, T1, 0, 0);
	e_gs_load(e, T1, GS(tr.temp));
	e_opw_mem(e, x->wide, 0x89, T1, T0, -1, 0, 0);
	e_opw_mem(e, x->wide, 0x8d, G_RSP, G_RSP, -1, 0, -x->word);
	x->fl_mem = true;
	return true;
}

static bool emit_popf(struct tctx *x, struct tinsn *ti)
{
	struct emit *e = &x->e;
	uint8_t *off;

	flags_spill(x, ti);
	emit_reg_disp(x, R_RSP, 0);
	emit_lookup(x, ti, x->word, false, false);
	e_opw_mem(e, x->wide, 0x8b, T0, T0, T1, 0, 0);
	e_gs(e, 0, 0x8b, T1, GS(rflags));
	e_rr(e, 0x31, T1, T0);
	E(e, 0x41, 0xf7, 0xc7); /* test r15d, */
	e4(e, SLOW_FLAGS);
	slow_if(x, ti, CC_NE);
	E(e, 0xa9); /* test eax, */
	e4(e, FL_IF);
	off = e_jcc(e, CC_E);
	slow_if_irq(x, ti);
	if (!e->full)
		e_aim(off, e->p);
	e_mov(e, T1, T0);
	e_r_imm(e, 4, T1, FL_IF);
	gs_imm(e, 4, GS(rflags), ~(uint32_t)FL_IF);
	e_gs(e, 0, 0x09, T1, GS(rflags));
	emit_flags_arith(x);
	e_opw_mem(e, x->wide, 0x8d, G_RSP, G_RSP, -1, 0, x->word);
	x->fl_host = false;
	return true;
}

static bool emit_swapgs(struct tctx *x)
{
	struct emit *e = &x->e;

	e_gs_load(e, T0, GS(seg[SEG_GS].base));
	e_gs_load(e, T1, GS(msr.kernel_gs));
	e_gs_store(e, T0, GS(msr.kernel_gs));
	e_gs_store(e, T1, GS(seg[SEG_GS].base));
	return true;
}

static bool emit_rdtsc(struct tctx *x, struct tinsn *ti, bool aux)
{
	struct emit *e = &x->e;

	if (!x->c->vm->host_tsc)
		return false;
	flags_spill(x, ti);
	if (x->c->cpl) {
		e_gs_test(e, GS(cr4), CR4_TSD);
		slow_if(x, ti, CC_NE);
	}
	if (aux) { /* it waits for what is before it: LFENCE */
		E(e, 0x0f, 0xae, 0xe8);
		e_gs(e, 0, 0x8b, H_RCX, GS(msr.tsc_aux));
	}
	E(e, 0x0f, 0x31);
	e_r_shift(e, 4, H_RDX, 32);
	e_rr(e, 0x09, H_RDX, H_RAX);
	e_gs(e, 1, 0x03, H_RDX, GS(tsc_offset));
	E(e, 0x41, 0x89, 0xd5); /* mov r13d, edx */
	e_r_shift(e, 5, H_RDX, 32);
	return true;
}

static bool emit_base(struct tctx *x, struct tinsn *ti, unsigned seg, bool wr)
{
	bool wide = ti->d.op[0].size == 64;
	unsigned g = reg_number(ti->d.op[0].reg.value);
	struct emit *e = &x->e;
	int h = x->host[g];

	flags_spill(x, ti);
	e_gs_test(e, GS(cr4), CR4_FSGSBASE);
	slow_if(x, ti, CC_E);
	if (!wr) {
		e_gs(e, wide, 0x8b, h < 0 ? T0 : (unsigned)h,
		     GS_SEG(seg, base));
		if (h < 0)
			e_gs_store(e, T0, GS_GPR(g));
		return true;
	}
	if (h < 0) {
		e_gs(e, wide, 0x8b, T0, GS_GPR(g));
	} else {
		e1(e, rex(wide, h, -1, T0));
		e1(e, 0x89);
		e1(e, (uint8_t)(0xc0 | (h & 7) << 3));
	}
	slow_unless_canonical(x, ti, T0);
	e_gs_store(e, T0, GS_SEG(seg, base));
	return true;
}

/* To a general register of size bits: where the source is. */
static bool emit_load(struct tctx *x, struct tinsn *ti, uint32_t from,
		      unsigned size)
{
	unsigned g = reg_number(ti->d.op[0].reg.value);
	struct emit *e = &x->e;
	int h = x->host[g];
	unsigned to = h < 0 ? T0 : (unsigned)h;

	if (size == 16) { /* the rest of the register stays */
		if (h < 0)
			return false;
		E(e, 0x65, 0x66);
		if (to > 7)
			e1(e, 0x44);
		e1(e, 0x8b);
		e_mem(e, to, -1, -1, 0, (int32_t)from);
		return true;
	}
	if (size == 32)
		e_gs_movzx(e, true, to, from);
	else
		e_gs_load(e, to, from);
	if (h < 0)
		e_gs_store(e, to, GS_GPR(g));
	return true;
}

/* MOV from control and segment registers. */
static bool emit_mov_from(struct tctx *x, struct tinsn *ti)
{
	const struct operand *from = &ti->d.op[1];
	unsigned n;

	if (x->c->mode != MODE_64 ||
	    from->type != ZYDIS_OPERAND_TYPE_REGISTER ||
	    ti->d.op[0].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	n = (unsigned)ZydisRegisterGetId(from->reg.value);
	switch (class_of(from->reg.value)) {
	case ZYDIS_REGCLASS_SEGMENT:
		return n <= SEG_GS &&
		       emit_load(x, ti, GS_SEG(n, sel),
				 ti->d.op[0].size == 16 ? 16 : 32);
	case ZYDIS_REGCLASS_CONTROL: break;
	default: return false;
	}
	if (x->c->cpl)
		return false;
	switch (n) {
	case 0: return emit_load(x, ti, GS(cr0), 64);
	case 2: return emit_load(x, ti, GS(cr2), 64);
	case 3: return emit_load(x, ti, GS(cr3), 64);
	case 4: return emit_load(x, ti, GS(cr4), 64);
	default: return false;
	}
}

bool system_goes_on(const struct cpu *c, const struct decoded *d)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI: return at_cpl0(c);
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		return at_cpl0(c) && d->i.operand_width == word_bits(c);
	default: return false;
	}
}

bool emit_system(struct tctx *x, struct tinsn *ti)
{
	const struct cpu *c = x->c;

	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_STI: return at_cpl0(c) && emit_sti(x, ti);
	case ZYDIS_MNEMONIC_CLI:
		if (!at_cpl0(c))
			return false;
		flags_spill(x, ti);
		gs_imm(&x->e, 4, GS(rflags), ~(uint32_t)FL_IF);
		return true;
	case ZYDIS_MNEMONIC_CLD:
		flags_spill(x, ti);
		gs_imm(&x->e, 4, GS(rflags), ~(uint32_t)FL_DF);
		return true;
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return ti->d.i.operand_width == word_bits(c) &&
		       emit_pushf(x, ti);
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		return system_goes_on(c, &ti->d) && emit_popf(x, ti);
	case ZYDIS_MNEMONIC_SWAPGS: return kernel64(c) && emit_swapgs(x);
	case ZYDIS_MNEMONIC_MOV: return emit_mov_from(x, ti);
	case ZYDIS_MNEMONIC_RDTSC: return emit_rdtsc(x, ti, false);
	case ZYDIS_MNEMONIC_RDTSCP: return emit_rdtsc(x, ti, true);
	case ZYDIS_MNEMONIC_RDFSBASE: return emit_base(x, ti, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE: return emit_base(x, ti, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE: return emit_base(x, ti, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE: return emit_base(x, ti, SEG_GS, true);
	default: return false;
	}
}
