/* SPDX-License-Identifier: Apache-2.0 */
/*
 * access.c - guest memory from translated code: addresses and the TLB
 *
 * An access is six instructions: T1 = index of the TLB entry, T0 ^= its tag,
 * and when T0 is an offset that leaves room for the operand in the page, T1 =
 * the host's page.  When the TLB only lacks the page it is filled, and the
 * lookup begins again.  Everything else (a device, a page with code, a fault,
 * a crossing, a misaligned SSE operand) goes to the interpreter.
 */
#include "hv/soft/trans/trans.h"

static bool is_rip(const struct operand *op)
{
	return op->mem.base == ZYDIS_REGISTER_RIP ||
	       op->mem.base == ZYDIS_REGISTER_EIP;
}

static int64_t disp_of(const struct operand *op)
{
	return op->mem.disp;
}

/* Host register that holds guest register reg now; loads into temp. */
static int have(struct tctx *x, ZydisRegister reg, unsigned temp)
{
	unsigned g = reg_number(reg);
	int h = x->host[g];

	if (h >= 0)
		return h;
	if (temp == T1)
		x->held = -1;
	e_gs_load(&x->e, temp, GS_GPR(g));
	return (int)temp;
}

/*
 * The segments of 32-bit code that count are those that are not flat; of
 * writing through CS the interpreter raises #GP.
 */
bool address_fits(const struct tctx *x, const struct tinsn *ti)
{
	if (!(ti->in.flags & IN_MEM) || x->wide)
		return true;
	if (ti->in.adsize != 4)
		return false;
	switch (ti->in.seg) {
	case SEG_CS: return false;
	case SEG_FS:
	case SEG_GS: return seg_unlimited(&x->c->seg[ti->in.seg]);
	default: return true;
	}
}

void emit_lea(struct tctx *x, const struct tinsn *ti, const struct operand *op,
	      unsigned to, bool wide)
{
	struct emit *e = &x->e;
	int base = -1, index = -1;
	unsigned scale = 0;
	int32_t disp = (int32_t)disp_of(op) + x->lower;

	if (is_rip(op)) {
		uint64_t a = ti->rip + ti->d.i.length +
			     (uint64_t)(disp_of(op) + x->lower);

		emit_place(x, to,
			   wide && op->mem.base == ZYDIS_REGISTER_RIP
				   ? a
				   : (uint32_t)a,
			   RELOC_ADDRESS);
		return;
	}
	if (op->mem.base != ZYDIS_REGISTER_NONE)
		base = have(x, op->mem.base, T0);
	if (op->mem.index != ZYDIS_REGISTER_NONE) {
		index = have(x, op->mem.index, T1);
		while ((1u << scale) < op->mem.scale)
			scale++;
	}
	/* rsp cannot be an index, but ours is r14: no special case. */
	if (wide && index < 0 && base >= 0 && !disp) {
		e_mov(e, to, (unsigned)base);
		return;
	}
	e1(e, rex(wide, (int)to, index, base));
	e1(e, 0x8d);
	e_mem(e, to, base, index, scale, disp);
}

/* The offset's last byte is within 4 GiB, else the interpreter faults. */
static void check_limit(struct tctx *x, struct tinsn *ti, unsigned size)
{
	if (size < 2)
		return;
	e1(&x->e, 0x3d); /* cmp eax, */
	e4(&x->e, -size);
	cold_add(x, e_jcc(&x->e, CC_A), insn_site(x, ti));
}

void emit_address(struct tctx *x, struct tinsn *ti, const struct operand *op)
{
	emit_lea(x, ti, op, T0, ti->d.i.address_width == 64);
	/* Of flat segments the page's end is the limit too. */
	if (!x->wide && (op->mem.segment == ZYDIS_REGISTER_FS ||
			 op->mem.segment == ZYDIS_REGISTER_GS))
		check_limit(x, ti, op->size / 8);
	if (op->mem.segment == ZYDIS_REGISTER_FS)
		e_gs(&x->e, x->wide, 0x03, T0, GS(seg[SEG_FS].base));
	else if (op->mem.segment == ZYDIS_REGISTER_GS)
		e_gs(&x->e, x->wide, 0x03, T0, GS(seg[SEG_GS].base));
}

void emit_reg_disp(struct tctx *x, unsigned guest, int32_t disp)
{
	int h = x->host[guest];

	if (disp)
		e_opw_mem(&x->e, x->wide, 0x8d, T0, h, -1, 0, disp);
	else if (x->wide)
		e_mov(&x->e, T0, (unsigned)h);
	else
		e_mov32(&x->e, T0, (unsigned)h);
}

uint32_t emit_probe(struct tctx *x, bool write)
{
	struct emit *e = &x->e;
	uint32_t table =
		x->tlb + (write ? sizeof(struct tlb_entry[TLB_SIZE]) : 0);

	x->held = -1;
	e_rorx(e, T1, T0, 8);
	E(e, 0x41, 0x81, 0xe7); /* and r15d, */
	e4(e, (TLB_SIZE - 1) * (uint32_t)sizeof(struct tlb_entry));
	e_gs_base(e, 0x33, T0, T1, table + TLB_TAG);
	return table + TLB_HOST;
}

uint8_t *emit_unless_room(struct tctx *x, unsigned size)
{
	E(&x->e, 0x48, 0x3d); /* cmp rax, */
	e4(&x->e, 0x1000 - size);
	return e_jcc(&x->e, CC_A);
}

void emit_lookup(struct tctx *x, struct tinsn *ti, unsigned size, bool write,
		 bool aligned)
{
	struct emit *e = &x->e;
	struct cold miss = { .retry = e->p,
			     .table = (uint8_t)miss_table(x->mmu, write),
			     .assigned = x->assigned };
	uint32_t host = emit_probe(x, write);

	miss.site = insn_site(x, ti);
	if (aligned) {
		E(e, 0x48, 0xa9); /* test rax, */
		e4(e, ~(0xfffu & ~(size - 1)));
		miss.at = e_jcc(e, CC_NE);
	} else {
		miss.at = emit_unless_room(x, size);
	}
	x->cold[x->ncold++] = miss;
	e_gs_base(e, 0x8b, T1, T1, host);
}

struct spot stack_spot(struct tctx *x, struct tinsn *ti, int disp, bool write)
{
	if (group_serves(x, ti)) {
		x->keeps = true;
		return (struct spot){ T1, -1, group_reach(x, ti, NULL, disp) };
	}
	flags_spill(x, ti);
	emit_reg_disp(x, R_RSP, disp);
	emit_lookup(x, ti, x->word, write, false);
	return (struct spot){ T0, T1, 0 };
}

/* Operands of PUSH and POP that emit_push() and emit_pop() take. */
static bool word_but_rsp(const struct tctx *x, const struct operand *op)
{
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return true;
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
	       class_of(op->reg.value) == (x->wide ? ZYDIS_REGCLASS_GPR64
						   : ZYDIS_REGCLASS_GPR32) &&
	       reg_number(op->reg.value) != R_RSP;
}

/* Nothing of ti but its access, which is checked, needs rsp. */
static bool may_wait(const struct tctx *x, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;

	if (!group_serves(x, ti) || !x->group[ti->group].open)
		return false;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP: return word_but_rsp(x, &ti->d.op[0]);
	case ZYDIS_MNEMONIC_RET:
		return i->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR &&
		       !i->raw.imm[0].size &&
		       !(i->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
	default: return false;
	}
}

void stack_settle(struct tctx *x, const struct tinsn *ti)
{
	if (!x->moved || (ti && may_wait(x, ti)))
		return;
	stack_move(x, x->moved);
	x->moved = 0;
}

void stack_move(struct tctx *x, int n)
{
	e_opw_mem(&x->e, x->wide, 0x8d, G_RSP, G_RSP, -1, 0, n);
}

void stack_step(struct tctx *x, const struct tinsn *ti, int n)
{
	if (may_wait(x, ti))
		x->moved += n;
	else
		stack_move(x, n);
}
