/* SPDX-License-Identifier: Apache-2.0 */
/*
 * string.c - translation of string instructions
 *
 * One element is a load and a store.  REP MOVS and REP STOS run as themselves
 * on the host's addresses when all that they touch is in one page here and in
 * one there; longer ones, backward ones (DF) and the other repetitions are the
 * interpreter's, which goes on page by page.
 */
#include "hv/soft/trans/trans.h"

/* op on [base + index] and reg, of size bytes; op is the one for bytes */
static void sized(struct emit *e, unsigned size, uint8_t op, unsigned reg,
		  int base, int index)
{
	uint8_t r = rex(size == 8, (int)reg, index, base);

	if (size == 2)
		e1(e, 0x66);
	if (r != 0x40)
		e1(e, r);
	e1(e, (uint8_t)(op | (size > 1)));
	e_mem(e, reg, base, index, 0, 0);
}

static void pointer(struct tctx *x, unsigned reg)
{
	if (x->wide)
		e_mov(&x->e, T0, reg);
	else
		e_mov32(&x->e, T0, reg);
}

static void step(struct tctx *x, unsigned reg, unsigned size)
{
	e_opw_mem(&x->e, x->wide, 0x8d, reg, (int)reg, -1, 0, (int32_t)size);
}

static void slow_unless_forward(struct tctx *x, struct tinsn *ti)
{
	E(&x->e, 0x65, 0xf7, 0x04, 0x25); /* test dword gs:[rflags], DF */
	e4(&x->e, GS(rflags));
	e4(&x->e, FL_DF);
	cold_add(x, e_jcc(&x->e, CC_NE), insn_site(x, ti));
}

/* -- one element ---------------------------------------------------------- */

/* tr.temp = what rsi points to */
static void load_source(struct tctx *x, struct tinsn *ti, unsigned size)
{
	pointer(x, H_RSI);
	emit_lookup(x, ti, size, false, false);
	sized(&x->e, size, 0x8a, T0, T0, T1);
	e_gs_store(&x->e, T0, GS(tr.temp));
}

/* T0 = host address of what rdi points to, T1 = tr.temp */
static void reach_both(struct tctx *x, struct tinsn *ti, unsigned size,
		       bool write)
{
	pointer(x, H_RDI);
	emit_lookup(x, ti, size, write, false);
	e_op_mem(&x->e, 0x8d, T0, T0, T1, 0, 0);
	e_gs_load(&x->e, T1, GS(tr.temp));
}

static void compared(struct tctx *x, const struct tinsn *ti)
{
	if (!ti->writes)
		return;
	x->fl_host = true;
	x->fl_mem = false;
}

static bool emit_one(struct tctx *x, struct tinsn *ti, char what, unsigned size)
{
	struct emit *e = &x->e;

	switch (what) {
	case 'm':
		load_source(x, ti, size);
		reach_both(x, ti, size, true);
		sized(e, size, 0x88, T1, T0, -1);
		break;
	case 'c':
		load_source(x, ti, size);
		reach_both(x, ti, size, false);
		sized(e, size, 0x3a, T1, T0, -1);
		compared(x, ti);
		break;
	case 's':
		pointer(x, H_RDI);
		emit_lookup(x, ti, size, true, false);
		sized(e, size, 0x88, G_RAX, T0, T1);
		break;
	case 'a':
		pointer(x, H_RDI);
		emit_lookup(x, ti, size, false, false);
		sized(e, size, 0x3a, G_RAX, T0, T1);
		compared(x, ti);
		break;
	default:
		pointer(x, H_RSI);
		emit_lookup(x, ti, size, false, false);
		sized(e, size, 0x8a, G_RAX, T0, T1);
	}
	if (what == 'm' || what == 'c' || what == 'l')
		step(x, H_RSI, size);
	if (what != 'l')
		step(x, H_RDI, size);
	return true;
}

/* -- repetitions ---------------------------------------------------------- */

/* T0 = address -> host's; the next rcx elements are in its page. */
static void reach_all(struct tctx *x, struct tinsn *ti, unsigned scale,
		      bool write)
{
	struct emit *e = &x->e;

	emit_lookup(x, ti, 1, write, false);
	/* The offset is below 4096 now, and RCX at most that. */
	e_gs_store(e, T1, GS(tr.target));
	e_op_mem(e, 0x8d, T1, T0, H_RCX, scale, 0);
	E(e, 0x49, 0x81, 0xff); /* cmp r15, */
	e4(e, 0x1000);
	cold_add(x, e_jcc(e, CC_A), insn_site(x, ti));
	e_gs_load(e, T1, GS(tr.target));
	e_op_mem(e, 0x8d, T0, T0, T1, 0, 0);
}

/* T1 = where the guest's reg points afterwards */
static void behind(struct tctx *x, unsigned reg, unsigned scale)
{
	e_opw_mem(&x->e, x->wide, 0x8d, T1, (int)reg, H_RCX, scale, 0);
}

static bool emit_rep(struct tctx *x, struct tinsn *ti, bool movs, unsigned size)
{
	unsigned scale = (unsigned)__builtin_ctz(size);
	struct emit *e = &x->e;

	if (!x->wide)
		e_mov32(e, H_RCX, H_RCX);
	E(e, 0x48, 0x81, 0xf9); /* cmp rcx, */
	e4(e, 0x1000u >> scale);
	cold_add(x, e_jcc(e, CC_A), insn_site(x, ti));
	if (movs) {
		pointer(x, H_RSI);
		reach_all(x, ti, scale, false);
		e_gs_store(e, T0, GS(tr.temp));
	}
	pointer(x, H_RDI);
	reach_all(x, ti, scale, true);
	if (movs) {
		behind(x, H_RSI, scale);
		e_gs_load(e, H_RSI, GS(tr.temp));
		e_gs_store(e, T1, GS(tr.temp));
	}
	behind(x, H_RDI, scale);
	e_mov(e, H_RDI, T0);
	if (!movs)
		e_mov(e, T0, G_RAX);
	if (size == 2)
		e1(e, 0x66);
	e1(e, 0xf3);
	if (size == 8)
		e1(e, 0x48);
	e1(e, (uint8_t)((movs ? 0xa4 : 0xaa) | (size > 1)));
	e_mov(e, H_RDI, T1);
	if (movs)
		e_gs_load(e, H_RSI, GS(tr.temp));
	return true;
}

/* m c s a l: MOVS CMPS STOS SCAS LODS; 0: something else */
static char kind(const struct instruction *i)
{
	if (i->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
	    i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return 0;
	switch (i->opcode & 0xfe) {
	case 0xa4: return 'm';
	case 0xa6: return 'c';
	case 0xaa: return 's';
	case 0xac: return 'l';
	case 0xae: return 'a';
	default: return 0;
	}
}

static bool is_rep(const struct tinsn *ti)
{
	return ti->in.flags & (IN_REP | IN_REPNE);
}

static bool fits(const struct tctx *x, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;
	char what = i->length ? kind(i) : 0;

	if (!what || ti->in.fn == op_undefined || ti->in.adsize != x->word ||
	    i->attributes &
		    (ZYDIS_ATTRIB_HAS_SEGMENT_CS | ZYDIS_ATTRIB_HAS_SEGMENT_FS |
		     ZYDIS_ATTRIB_HAS_SEGMENT_GS))
		return false;
	return !is_rep(ti) || what == 'm' || what == 's';
}

bool string_goes_on(const struct tctx *x, const struct tinsn *ti)
{
	return is_rep(ti) && fits(x, ti);
}

bool emit_string(struct tctx *x, struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;
	unsigned size = i->opcode & 1 ? i->operand_width / 8 : 1;
	char what = kind(i);
	bool ok;

	if (!fits(x, ti))
		return false;
	flags_spill(x, ti);
	slow_unless_forward(x, ti);
	ok = is_rep(ti) ? emit_rep(x, ti, what == 'm', size)
			: emit_one(x, ti, what, size);
	/* Its steps of the registers are not among the operands. */
	group_close(x);
	return ok;
}
