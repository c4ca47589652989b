/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow.c - translation of jumps, calls and returns
 *
 * A direct exit is a jump that is aimed at the target's block once that is
 * known.  An indirect one finds the target in a table by its address.
 */
#include "hv/soft/trans/trans.h"

void emit_indirect(struct tctx *x, struct tinsn *ti, int16_t undo)
{
	struct emit *e = &x->e;
	uint32_t table = GS(itab) + x->mmu * (uint32_t)sizeof(x->c->itab[0]);
	unsigned site = trans_new_site(x->t, SITE_INDIRECT, ti->rip);

	x->t->site[site].undo = undo;
	assign_leave(x);
	e_rorx(e, T1, T0, ITAB_BITS);
	e_rr(e, 0x31, T1, T0);	/* xor r15, rax */
	E(e, 0x41, 0x81, 0xe7); /* and r15d, */
	e4(e, (ITAB_SIZE - 1) << ITAB_SHIFT);
	/* cmp rax, gs:[r15 * 4 + table.rip] */
	E(e, 0x65, 0x4a, 0x3b, 0x04, 0xbd);
	e4(e, table + (uint32_t)offsetof(struct itab_entry, rip));
	cold_add(x, e_jcc(e, CC_NE), site);
	/* jmp gs:[r15 * 4 + table.code] */
	E(e, 0x65, 0x42, 0xff, 0x24, 0xbd);
	e4(e, table + (uint32_t)offsetof(struct itab_entry, code));
}

/* Load the operand of a near indirect branch into T0; flags are spilled. */
static bool load_target(struct tctx *x, struct tinsn *ti)
{
	const struct operand *op = &ti->d.op[0];
	unsigned g;

	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		emit_address(x, ti, op);
		emit_lookup(x, ti, x->word, false, false);
		e_opw_mem(&x->e, x->wide, 0x8b, T0, T0, T1, 0, 0);
		return true;
	}
	g = reg_number(op->reg.value);
	if (x->host[g] < 0)
		e_gs_load(&x->e, T0, GS_GPR(g));
	else if (x->wide)
		e_mov(&x->e, T0, (unsigned)x->host[g]);
	else
		e_mov32(&x->e, T0, (unsigned)x->host[g]);
	return true;
}

/* A call to T0 must not have pushed when it faults; T1 is clobbered. */
static void check_target(struct tctx *x, struct tinsn *ti)
{
	struct emit *e = &x->e;

	if (!x->wide)
		return;
	x->held = -1;
	e_mov(e, T1, T0);
	E(e, 0x49, 0xc1, 0xe7, 0x10); /* shl r15, 16 */
	E(e, 0x49, 0xc1, 0xff, 0x10); /* sar r15, 16 */
	e_rr(e, 0x39, T1, T0);	      /* cmp r15, rax */
	cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
}

/* Push the address behind the call. */
static void push_return(struct tctx *x, struct tinsn *ti)
{
	uint64_t ret = ti->rip + ti->d.i.length;
	struct emit *e = &x->e;
	struct spot s;

	s = stack_spot(x, ti, -x->word, true);
	if (!x->wide || ret == (uint64_t)(int64_t)(int32_t)ret) {
		e_opw_mem(e, x->wide, 0xc7, 0, s.base, s.index, 0, s.disp);
		e4(e, (uint32_t)ret);
		if (x->wide)
			x->tb->fixed = true;
		else
			reloc_add(x, RELOC_RETURN, e->p - 4);
	} else {
		if (s.index >= 0)
			e_op_mem(e, 0x8d, T1, T0, T1, 0, 0);
		emit_place(x, T0, ret, RELOC_ADDRESS);
		e_op_mem(e, 0x89, T0, T1, -1, 0, s.disp);
	}
	stack_move(x, -x->word);
}

static bool plain_width(const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;

	return i->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR &&
	       !(i->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}

static bool emit_call(struct tctx *x, struct tinsn *ti)
{
	flags_spill(x, ti);
	if (ti->d.i.raw.imm[0].is_relative) {
		push_return(x, ti);
		emit_exit(x, branch_target(x, ti), 0, -1);
		return true;
	}
	if (ti->d.op[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
		load_target(x, ti);
		check_target(x, ti);
		e_gs_store(&x->e, T0, GS(tr.temp));
		push_return(x, ti);
		e_gs_load(&x->e, T0, GS(tr.temp));
	} else if (reg_number(ti->d.op[0].reg.value) == R_RSP) {
		return false;
	} else {
		load_target(x, ti);
		check_target(x, ti);
		push_return(x, ti);
		load_target(x, ti);
	}
	emit_indirect(x, ti, x->word);
	return true;
}

static bool emit_ret(struct tctx *x, struct tinsn *ti)
{
	uint32_t drop = ti->d.i.raw.imm[0].size
				? (uint32_t)ti->d.i.raw.imm[0].value.u
				: 0;
	struct spot s;

	if (drop > 0x7ff0)
		return false;
	flags_spill(x, ti);
	drop += x->word;
	s = stack_spot(x, ti, 0, false);
	e_opw_mem(&x->e, x->wide, 0x8b, T0, s.base, s.index, 0, s.disp);
	stack_move(x, (int)drop + x->moved);
	x->moved = 0;
	emit_indirect(x, ti, (int16_t) - (int)drop);
	return true;
}

/* JECXZ JRCXZ: no flags, and the host's jump is short. */
static bool emit_jrcxz(struct tctx *x, struct tinsn *ti, uint16_t live)
{
	struct emit *e = &x->e;
	uint8_t *over;

	if (live && x->fl_host && !x->fl_mem)
		flags_save(x);
	if (ti->d.i.mnemonic == ZYDIS_MNEMONIC_JECXZ)
		e1(e, 0x67);
	E(e, 0xe3, 0x02, 0xeb, 0x05); /* jrcxz +2; jmp +5 */
	over = e->p;
	emit_exit(x, branch_target(x, ti), 0, -1);
	return e->p == over + 5 || e->full;
}

bool emit_flow(struct tctx *x, struct tinsn *ti, bool *ends)
{
	const struct instruction *i = &ti->d.i;

	if (ti->in.fn == op_undefined || !plain_width(ti) ||
	    !address_fits(x, ti))
		return false;
	/* To a non-canonical address: #GP, the interpreter's. */
	if (i->raw.imm[0].is_relative && !canonical(branch_target(x, ti)))
		return false;
	switch (i->meta.category) {
	case ZYDIS_CATEGORY_COND_BR: {
		uint64_t to = branch_target(x, ti);
		unsigned cc = (i->opcode & 15u) ^ ti->turned;

		if (i->mnemonic == ZYDIS_MNEMONIC_JRCXZ ||
		    i->mnemonic == ZYDIS_MNEMONIC_JECXZ)
			return emit_jrcxz(x, ti, ti->live_to);
		if (i->mnemonic == ZYDIS_MNEMONIC_JCXZ ||
		    i->mnemonic == ZYDIS_MNEMONIC_LOOP ||
		    i->mnemonic == ZYDIS_MNEMONIC_LOOPE ||
		    i->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
			return false;
		if (!x->fl_host)
			flags_restore(x);
		emit_exit(x, to, ti->live_to, (int)cc);
		x->keeps = true;
		return true;
	}
	case ZYDIS_CATEGORY_UNCOND_BR:
		if (i->raw.imm[0].is_relative) {
			emit_exit(x, branch_target(x, ti), ti->live_out, -1);
		} else {
			flags_spill(x, ti);
			load_target(x, ti);
			emit_indirect(x, ti, 0);
		}
		*ends = true;
		return true;
	case ZYDIS_CATEGORY_CALL:
		if (ti->d.op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    reg_number(ti->d.op[0].reg.value) == R_RSP)
			return false;
		*ends = true;
		return emit_call(x, ti);
	case ZYDIS_CATEGORY_RET:
		if (i->raw.imm[0].size && i->raw.imm[0].value.u > 0x7ff0)
			return false;
		*ends = true;
		return emit_ret(x, ti);
	default: return false;
	}
}
