/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vec.c - vector instructions whose memory is no ordinary operand
 *
 * A gather that wants all elements looks each up and loads it into a buffer;
 * registers change after the last, so that a miss can be interpreted from the
 * start.  MASKMOVDQU and MASKMOVQ borrow rdi.  With gaps in the mask of a
 * gather, the interpreter does it.
 */
#include "hv/soft/trans/trans.h"

enum { MAP_0F = 1, PP_66 = 1, PP_F3 = 2, MAX_LANES = 8 };

/* VEX.3 for reg, rm below 16; l: 256 bits */
static void put_vex(struct emit *e, unsigned reg, unsigned rm, unsigned v,
		    bool l, unsigned pp, uint8_t op)
{
	e1(e, 0xc4);
	e1(e, (uint8_t)((reg > 7 ? 0 : 0x80) | 0x40 | (rm > 7 ? 0 : 0x20) |
			MAP_0F));
	e1(e, (uint8_t)((~v & 15) << 3 | l << 2 | pp));
	e1(e, op);
}

static void vex_gs(struct emit *e, unsigned reg, bool l, unsigned pp,
		   uint8_t op, uint32_t off)
{
	e1(e, 0x65);
	put_vex(e, reg, 0, 0, l, pp, op);
	e_mem(e, reg, -1, -1, 0, (int32_t)off);
}

static unsigned vec_number(ZydisRegister reg)
{
	return (unsigned)ZydisRegisterGetId(reg) & 15;
}

struct gather {
	const struct operand *op;
	unsigned dst, index, mask, lanes;
	unsigned es, is; /* bytes of an element, of an index */
};

static bool take_gather(struct gather *g, const struct decoded *d)
{
	unsigned vl = d->i.raw.vex.L ? 32 : 16;

	g->op = &d->op[1];
	if (d->i.address_width != 64 ||
	    g->op->type != ZYDIS_OPERAND_TYPE_MEMORY ||
	    g->op->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		return false;
	g->dst = vec_number(d->op[0].reg.value);
	g->mask = vec_number(d->op[2].reg.value);
	g->index = vec_number(g->op->mem.index);
	g->es = d->i.raw.vex.W ? 8 : 4;
	g->is = d->i.opcode & 1 ? 8 : 4;
	g->lanes = vl / (g->es > g->is ? g->es : g->is);
	/* The same register twice is #UD. */
	return g->dst != g->mask && g->dst != g->index && g->mask != g->index;
}

/* T0 = address of an element */
static void lane_address(struct tctx *x, const struct gather *g, unsigned n)
{
	const struct operand *op = g->op;
	uint32_t at = GS(tr.vector) + n * g->is;
	struct emit *e = &x->e;
	unsigned scale = 0;
	int base = -1;

	e_gs(e, 1, g->is == 8 ? 0x8b : 0x63, T0, at); /* mov or movsxd */
	if (op->mem.base != ZYDIS_REGISTER_NONE) {
		unsigned r = reg_number(op->mem.base);

		base = x->host[r];
		if (base < 0) {
			e_gs_load(e, T1, GS_GPR(r));
			base = T1;
		}
	}
	while ((1u << scale) < op->mem.scale)
		scale++;
	e_op_mem(e, 0x8d, T0, base, T0, scale, (int32_t)op->mem.disp);
	if (op->mem.segment == ZYDIS_REGISTER_FS)
		e_gs(e, 1, 0x03, T0, GS(seg[SEG_FS].base));
	else if (op->mem.segment == ZYDIS_REGISTER_GS)
		e_gs(e, 1, 0x03, T0, GS(seg[SEG_GS].base));
}

static bool emit_gather(struct tctx *x, struct tinsn *ti)
{
	/* Places for what follows. */
	unsigned left = x->n - (unsigned)(ti - x->ti);
	struct emit *e = &x->e;
	struct gather g;
	unsigned size;

	if (!x->wide || !take_gather(&g, &ti->d) ||
	    x->ncold + MAX_LANES + 1 + left * 4 > MAX_COLD)
		return false;
	size = g.lanes * g.es;
	flags_spill(x, ti);
	/* vmovmskps or pd eax, mask; all lanes? */
	put_vex(e, T0, g.mask, 0, size > 16, g.es == 8 ? PP_66 : 0, 0x50);
	e1(e, (uint8_t)(0xc0 | T0 << 3 | (g.mask & 7)));
	e1(e, 0x25); /* and eax, */
	e4(e, (1u << g.lanes) - 1);
	e1(e, 0x3d); /* cmp eax, */
	e4(e, (1u << g.lanes) - 1);
	cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
	vex_gs(e, g.index, g.lanes * g.is > 16, PP_F3, 0x7f, GS(tr.vector));
	for (unsigned n = 0; n < g.lanes; n++) {
		lane_address(x, &g, n);
		emit_lookup(x, ti, g.es, false, false);
		e1(e, rex(g.es == 8, T0, T1, T0));
		e1(e, 0x8b);
		e_mem(e, T0, T0, T1, 0, 0);
		e_gs(e, g.es == 8, 0x89, T0, GS(tr.vector) + 32 + n * g.es);
	}
	/* vmovdqu, or vmovq of the only two floats */
	vex_gs(e, g.dst, size > 16, PP_F3, size > 8 ? 0x6f : 0x7e,
	       GS(tr.vector) + 32);
	put_vex(e, g.mask, g.mask, g.mask, false, PP_66, 0xef); /* vpxor */
	e1(e, (uint8_t)(0xc0 | (g.mask & 7) << 3 | (g.mask & 7)));
	return true;
}

static bool emit_maskmov(struct tctx *x, struct tinsn *ti, bool mmx)
{
	const struct operand *op = ti->d.op;
	unsigned a = vec_number(op[0].reg.value);
	unsigned b = vec_number(op[1].reg.value);
	struct emit *e = &x->e;

	if (op[2].type != ZYDIS_OPERAND_TYPE_MEMORY || (mmx && !ti->x87))
		return false;
	flags_spill(x, ti);
	emit_address(x, ti, &op[2]);
	emit_lookup(x, ti, mmx ? 8 : 16, true, false);
	e_op_mem(e, 0x8d, T1, T0, T1, 0, 0);
	e_mov(e, T0, H_RDI);
	e_mov(e, H_RDI, T1);
	if (!mmx)
		e1(e, 0x66);
	e1(e, rex(0, (int)a, -1, (int)b));
	E(e, 0x0f, 0xf7);
	e1(e, (uint8_t)(0xc0 | (a & 7) << 3 | (b & 7)));
	e_mov(e, H_RDI, T0);
	return true;
}

bool emit_vec(struct tctx *x, struct tinsn *ti, bool *done)
{
	*done = true;
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU: return emit_maskmov(x, ti, false);
	case ZYDIS_MNEMONIC_MASKMOVQ: return emit_maskmov(x, ti, true);
	default: break;
	}
	if (ti->d.i.meta.isa_ext == ZYDIS_ISA_EXT_AVX2GATHER)
		return emit_gather(x, ti);
	*done = false;
	return false;
}
