/* SPDX-License-Identifier: Apache-2.0 */
/*
 * assign.c - which of the guest's registers live in the host's, in one block
 *
 * Three of the guest's registers live in memory.  A block that uses one of
 * them much more than one that does not changes their places: on its way in
 * it stores the one and loads the other, on its way out it does the reverse.
 * That costs four instructions for each pair, and none on a loop's way back.
 *
 * Whatever leaves the block, also for C, puts the registers back; the rest of
 * it is looked up then, as any code is.
 */
#include "hv/soft/trans/trans.h"

enum { ENTER_COST = 8, EAGER_COST = 2, PINNED = 1 << 16 };

static bool is_high(const struct operand *op)
{
	return is_gpr_op(op) && reg_number(op->reg.value) >= 16;
}

static void count_one(unsigned uses[16], ZydisRegister r, unsigned by)
{
	if (r != ZYDIS_REGISTER_NONE && r != ZYDIS_REGISTER_RIP &&
	    r != ZYDIS_REGISTER_EIP)
		uses[reg_number(r) & 15] += by;
}

/* What names a register by implication finds it only where it always is. */
static void count(unsigned uses[16], const struct decoded *d)
{
	bool high = false;

	for (unsigned n = 0; n < d->i.operand_count; n++)
		high |= is_high(&d->op[n]);
	for (unsigned n = 0; n < d->i.operand_count; n++) {
		const struct operand *op = &d->op[n];
		unsigned by =
			op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT
				? PINNED
				: 1;

		if (is_gpr_op(op)) {
			bool both =
				op->actions & ZYDIS_OPERAND_ACTION_MASK_READ &&
				op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

			count_one(uses, op->reg.value,
				  high ? PINNED : by << both);
		} else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
			   op->mem.index != ZYDIS_REGISTER_NONE &&
			   class_of(op->mem.index) != ZYDIS_REGCLASS_GPR64) {
			/* A vector of indices. */
			count_one(uses, op->mem.base, PINNED);
		} else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			count_one(uses, op->mem.base, by);
			count_one(uses, op->mem.index, by);
		}
	}
}

bool assign_loops(const struct tctx *x)
{
	for (unsigned n = 0; n < x->n; n++) {
		const struct instruction *i = &x->ti[n].d.i;

		if ((i->meta.category == ZYDIS_CATEGORY_COND_BR ||
		     i->meta.category == ZYDIS_CATEGORY_UNCOND_BR) &&
		    i->raw.imm[0].is_relative &&
		    branch_target(x, &x->ti[n]) == x->tb->lin)
			return true;
	}
	return false;
}

/* Of those that may live in memory, the one that is used least. */
static unsigned least(const unsigned uses[16])
{
	static const uint8_t may[] = { 12, 11, 10, 9, 8, 3, 5, 6, 7 };
	unsigned best = may[0];

	for (unsigned n = 1; n < ARRAY_SIZE(may); n++)
		if (uses[may[n]] < uses[best])
			best = may[n];
	return best;
}

/* Does anything name what lives in memory? */
static bool names_upper(const struct tctx *x)
{
	for (unsigned n = 0; n < x->n; n++)
		if (x->ti[n].d.i.upper)
			return true;
	return false;
}

void assign_plan(struct tctx *x)
{
	unsigned uses[16] = { 0 }, cost;

	x->npairs = 0;
	assign_use(x, false);
	if (!x->wide || x->second || x->alone || !names_upper(x))
		return;
	for (unsigned n = 0; n < x->n; n++) {
		const struct decoded *d = &x->ti[n].d;

		/* Its exit must have the length that it has. */
		if (d->i.mnemonic == ZYDIS_MNEMONIC_JRCXZ ||
		    d->i.mnemonic == ZYDIS_MNEMONIC_JECXZ)
			return;
		if (d->i.length)
			count(uses, d);
	}
	cost = assign_loops(x) ? 1 : ENTER_COST;
	/* All is translated at first sight to see it work: so shall this. */
	if (!x->t->hot)
		cost = MIN(cost, EAGER_COST);
	for (unsigned in = 13; in < 16; in++) {
		unsigned out = least(uses);

		if (uses[in] >= PINNED || uses[in] <= uses[out] + cost)
			continue;
		x->pair[x->npairs].in = (uint8_t)in;
		x->pair[x->npairs++].out = (uint8_t)out;
		uses[out] = PINNED;
	}
}

void assign_use(struct tctx *x, bool on)
{
	x->assigned = on;
	for (unsigned n = 0; n < 16; n++)
		x->host[n] = (int8_t)host_reg(n);
	for (unsigned n = 0; on && n < x->npairs; n++) {
		x->host[x->pair[n].in] = (int8_t)host_reg(x->pair[n].out);
		x->host[x->pair[n].out] = -1;
	}
}

void assign_enter(struct tctx *x)
{
	for (unsigned n = 0; n < x->npairs; n++) {
		unsigned h = (unsigned)host_reg(x->pair[n].out);

		e_gs_store(&x->e, h, GS_GPR(x->pair[n].out));
		e_gs_load(&x->e, h, GS_GPR(x->pair[n].in));
	}
	assign_use(x, x->npairs);
}

void emit_unassign(struct tctx *x)
{
	for (unsigned n = 0; n < x->npairs; n++) {
		unsigned h = (unsigned)host_reg(x->pair[n].out);

		e_gs_store(&x->e, h, GS_GPR(x->pair[n].in));
		e_gs_load(&x->e, h, GS_GPR(x->pair[n].out));
	}
}

void assign_leave(struct tctx *x)
{
	if (!x->assigned)
		return;
	emit_unassign(x);
	assign_use(x, false);
}
