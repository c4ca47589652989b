/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bits.c - BT BTS BTR BTC of a bit string in memory
 *
 * The bit number in a register reaches far from the operand's address, so it
 * is split: the word that holds the bit is what is accessed, at the number of
 * the bit in there.
 */
#include "hv/soft/trans/trans.h"

static unsigned opcode(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_BT: return 0xa3;
	case ZYDIS_MNEMONIC_BTS: return 0xab;
	case ZYDIS_MNEMONIC_BTR: return 0xb3;
	case ZYDIS_MNEMONIC_BTC: return 0xbb;
	default: return 0;
	}
}

bool emit_bits(struct tctx *x, struct tinsn *ti)
{
	const struct operand *op = &ti->d.op[0];
	bool need = ti->reads || (ti->writes && ti->live_out & ~ti->kills);
	bool wide = ti->d.i.operand_width == 64;
	unsigned code = opcode(ti->d.i.mnemonic), g;
	struct emit *e = &x->e;
	int h;

	if (!code || !x->wide || ti->d.i.operand_width < 32 ||
	    ti->d.i.address_width != 64 ||
	    op->type != ZYDIS_OPERAND_TYPE_MEMORY ||
	    ti->d.op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	g = reg_number(ti->d.op[1].reg.value);
	h = x->host[g];
	flags_spill(x, ti);
	emit_address(x, ti, op);
	if (h < 0) {
		e_gs_load(e, T1, GS_GPR(g));
		h = T1;
	}
	/* mov or movsxd r15, number; sar r15; lea rax, [rax + r15 * size] */
	e1(e, rex(1, T1, -1, h));
	e1(e, wide ? 0x8b : 0x63);
	e1(e, (uint8_t)(0xc0 | (T1 & 7) << 3 | (h & 7)));
	E(e, 0x49, 0xc1, 0xff);
	e1(e, wide ? 6 : 5);
	e_op_mem(e, 0x8d, T0, T0, T1, wide ? 3 : 2, 0);
	if (x->host[g] < 0)
		e_gs_load(e, T1, GS_GPR(g));
	else
		e_mov(e, T1, (unsigned)x->host[g]);
	E(e, 0x41, 0x83, 0xe7); /* and r15d, */
	e1(e, wide ? 63 : 31);
	e_gs_store(e, T1, GS(tr.temp));
	emit_lookup(x, ti, wide ? 8 : 4, code != 0xa3, false);
	e_op_mem(e, 0x8d, T1, T0, T1, 0, 0);
	if (need && !x->fl_host)
		flags_restore(x);
	e_gs_load(e, T0, GS(tr.temp));
	if (ti->d.i.attributes & ZYDIS_ATTRIB_HAS_LOCK)
		e1(e, 0xf0);
	e1(e, rex(wide, T0, -1, T1));
	e1(e, 0x0f);
	e1(e, (uint8_t)code);
	e_mem(e, T0, T1, -1, 0, 0);
	x->fl_host = true;
	x->fl_mem = false;
	return true;
}
