/* SPDX-License-Identifier: Apache-2.0 */
/*
 * insn.c - translation of instructions that do not branch
 *
 * Nearly all of them become themselves: the same opcode with register
 * numbers mapped and the memory operand replaced.  struct enc is an
 * instruction taken apart so far that it can be put together again; forms
 * with the register in the opcode or an implied accumulator are first turned
 * into their ModRM twins.
 */
#include "hv/soft/trans/trans.h"
#include "hv/soft/x86/fpu.h"

/* One register field. */
struct field {
	bool used;   /* a register (else an opcode extension) */
	bool gpr;    /* to be mapped */
	bool byte;   /* 8-bit */
	bool high;   /* AH CH DH BH */
	bool rd, wr; /* wr with rd also when only a part is written */
	uint8_t n;   /* guest's number, or the extension */
};

struct enc {
	uint8_t prefix[4], nprefix;
	bool w, vex;
	uint8_t map, pp, l; /* VEX */
	uint8_t op[3], nop;
	struct field reg, rm, v;
	bool mem;
	const struct operand *mop;
	uint8_t imm[8], nimm;
	bool rax_in, rax_out; /* implied accumulator */
};

/* -- taking apart --------------------------------------------------------- */

static bool set_field(struct field *f, const struct operand *op)
{
	ZydisRegisterClass cl = class_of(op->reg.value);
	unsigned size = op->size;

	f->used = true;
	f->rd = op->actions & (ZYDIS_OPERAND_ACTION_MASK_READ);
	f->wr = op->actions & (ZYDIS_OPERAND_ACTION_MASK_WRITE);
	switch (cl) {
	case ZYDIS_REGCLASS_GPR8:
		f->n = reg_number(op->reg.value);
		f->byte = f->gpr = true;
		f->high = f->n >= 16;
		f->n &= 15;
		break;
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		f->n = reg_number(op->reg.value);
		f->gpr = true;
		break;
	case ZYDIS_REGCLASS_XMM:
	case ZYDIS_REGCLASS_YMM:
		f->n = (uint8_t)ZydisRegisterGetId(op->reg.value);
		return f->n < 16;
	case ZYDIS_REGCLASS_MMX:
		f->n = (uint8_t)ZydisRegisterGetId(op->reg.value);
		return true;
	default: return false;
	}
	/* Conditional and partial writes keep something. */
	if (f->wr &&
	    (size < 32 || op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE))
		f->rd = true;
	return true;
}

/* BSF and BSR of zero write nothing, which Zydis does not say. */
static void mend_field(struct enc *k, const struct instruction *i)
{
	if (i->mnemonic == ZYDIS_MNEMONIC_BSF ||
	    i->mnemonic == ZYDIS_MNEMONIC_BSR)
		k->reg.rd = true;
}

static bool implied(struct enc *k, const struct decoded *d,
		    const struct operand *op)
{
	unsigned n;

	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_IMMEDIATE: return true;
	case ZYDIS_OPERAND_TYPE_REGISTER: break;
	default: return false;
	}
	switch (class_of(op->reg.value)) {
	case ZYDIS_REGCLASS_FLAGS: return true;
	case ZYDIS_REGCLASS_XMM: return true;
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64: break;
	default: return op->reg.value == ZYDIS_REGISTER_MXCSR;
	}
	n = reg_number(op->reg.value);
	if ((n & 15) == R_RAX) {
		k->rax_in = true;
		k->rax_out |= !!(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
		return true;
	}
	return n == R_RCX || n == R_RDX || n == R_RBX;
}

static bool take_operands(struct enc *k, const struct decoded *d)
{
	for (unsigned n = 0; n < d->i.operand_count; n++) {
		const struct operand *op = &d->op[n];
		bool reg = op->type == ZYDIS_OPERAND_TYPE_REGISTER;

		switch (op->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG:
			if (!reg || !set_field(&k->reg, op))
				return false;
			break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM:
			if (reg) {
				if (!set_field(&k->rm, op))
					return false;
				break;
			}
			if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
				return false;
			k->mem = true;
			k->mop = op;
			break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD:
			if (!reg || !set_field(&k->v, op))
				return false;
			break;
		case ZYDIS_OPERAND_ENCODING_UIMM8:
		case ZYDIS_OPERAND_ENCODING_UIMM16:
		case ZYDIS_OPERAND_ENCODING_UIMM32:
		case ZYDIS_OPERAND_ENCODING_UIMM64:
		case ZYDIS_OPERAND_ENCODING_SIMM8:
		case ZYDIS_OPERAND_ENCODING_SIMM16:
		case ZYDIS_OPERAND_ENCODING_SIMM32:
		case ZYDIS_OPERAND_ENCODING_SIMM64:
		case ZYDIS_OPERAND_ENCODING_UIMM16_32_32:
		case ZYDIS_OPERAND_ENCODING_UIMM32_32_64:
		case ZYDIS_OPERAND_ENCODING_SIMM16_32_32:
		case ZYDIS_OPERAND_ENCODING_SIMM32_32_64:
		case ZYDIS_OPERAND_ENCODING_UIMM16_32_64:
		case ZYDIS_OPERAND_ENCODING_SIMM16_32_64: break;
		case ZYDIS_OPERAND_ENCODING_IS4:
			/* Bit 7 is a register's only in 64-bit code. */
			if (d->mode != MODE_64)
				k->imm[k->nimm - 1] &= 0x7f;
			break;
		case ZYDIS_OPERAND_ENCODING_NONE:
			if (!implied(k, d, op))
				return false;
			break;
		default: return false;
		}
	}
	return true;
}

static void take_prefixes(struct enc *k, const struct instruction *i)
{
	if (i->osize)
		k->prefix[k->nprefix++] = 0x66;
	if (i->lock)
		k->prefix[k->nprefix++] = 0xf0;
	if (i->rep)
		k->prefix[k->nprefix++] = i->rep;
}

static void take_imm(struct enc *k, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;

	if (!i->raw.imm[0].size)
		return;
	k->nimm = (uint8_t)(i->length - i->raw.imm[0].offset);
	memcpy(k->imm, ti->in.bytes + i->raw.imm[0].offset, k->nimm);
}

/* The general form: [prefixes] [REX] opcode ModRM [imm], or VEX. */
static bool take_modrm(struct enc *k, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;

	if (!(i->attributes & ZYDIS_ATTRIB_HAS_MODRM))
		return false;
	k->reg.n = i->raw.modrm.reg;
	k->rm.n = i->raw.modrm.rm;
	take_imm(k, ti);
	if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		k->vex = true;
		k->w = i->raw.vex.W;
		k->map = i->raw.vex.m_mmmm;
		k->pp = i->raw.vex.pp;
		k->l = i->raw.vex.L;
		k->op[k->nop++] = i->opcode;
		return take_operands(k, &ti->d);
	}
	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	take_prefixes(k, i);
	k->w = i->raw.rex.W;
	switch (i->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT: break;
	case ZYDIS_OPCODE_MAP_0F: k->op[k->nop++] = 0x0f; break;
	case ZYDIS_OPCODE_MAP_0F38:
		k->op[k->nop++] = 0x0f;
		k->op[k->nop++] = 0x38;
		break;
	case ZYDIS_OPCODE_MAP_0F3A:
		k->op[k->nop++] = 0x0f;
		k->op[k->nop++] = 0x3a;
		break;
	default: return false;
	}
	k->op[k->nop++] = i->opcode;
	if (i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && i->opcode == 0x82)
		k->op[0] = 0x80; /* its twin: 64-bit code has no 82 */
	if (!take_operands(k, &ti->d))
		return false;
	mend_field(k, i);
	return true;
}

static void acc_field(struct field *f, bool byte, bool wr)
{
	*f = (struct field){ .used = true,
			     .gpr = true,
			     .byte = byte,
			     .rd = true,
			     .wr = wr,
			     .n = R_RAX };
}

/* Opcodes without ModRM that have a twin with one. */
static bool take_short(struct enc *k, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;
	uint8_t op = i->opcode;

	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
	    i->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
	    i->attributes & ZYDIS_ATTRIB_HAS_MODRM)
		return false;
	take_prefixes(k, i);
	k->w = i->raw.rex.W;
	take_imm(k, ti);
	k->nop = 1;
	if (op < 0x40 && (op & 6) == 4) { /* ALU al/eax, imm */
		k->op[0] = op & 1 ? 0x81 : 0x80;
		k->reg.n = op >> 3;
		acc_field(&k->rm, !(op & 1), (op >> 3) != 7);
		return true;
	}
	if (op == 0xa8 || op == 0xa9) { /* TEST */
		k->op[0] = op == 0xa8 ? 0xf6 : 0xf7;
		acc_field(&k->rm, op == 0xa8, false);
		return true;
	}
	if (op >= 0x91 && op <= 0x97) { /* XCHG eax, r */
		k->op[0] = 0x87;
		acc_field(&k->rm, false, true);
		k->reg = k->rm;
		k->reg.n = (uint8_t)((op & 7) | i->raw.rex.B << 3);
		return true;
	}
	if (op >= 0xb0 && op <= 0xbf && !(op >= 0xb8 && k->w)) {
		k->op[0] = op < 0xb8 ? 0xc6 : 0xc7;
		return set_field(&k->rm, &ti->d.op[0]);
	}
	if (op >= 0x40 && op <= 0x4f) { /* INC DEC r */
		k->op[0] = 0xff;
		k->reg.n = op >> 3 & 1;
		return set_field(&k->rm, &ti->d.op[0]);
	}
	if (op >= 0xa0 && op <= 0xa3 && ti->in.adsize == 4 &&
	    i->machine_mode != ZYDIS_MACHINE_MODE_LONG_64) {
		/* MOV of the accumulator and [disp32] */
		k->op[0] = (uint8_t)(0x88 | (op & 1) | (op < 0xa2) << 1);
		acc_field(&k->reg, !(op & 1), op < 0xa2);
		k->mem = true;
		k->mop = &ti->d.op[op >= 0xa2 ? 0 : 1];
		return true;
	}
	if (op == 0x98) { /* CBW CWDE CDQE */
		acc_field(&k->rm, false, false);
		acc_field(&k->reg, false, true);
		if (k->w) {
			k->op[0] = 0x63;
		} else {
			k->op[0] = 0x0f;
			k->op[1] = i->operand_width == 16 ? 0xbe : 0xbf;
			k->nop = 2;
			k->rm.byte = i->operand_width == 16;
		}
		return true;
	}
	return false;
}

/* -- putting together ----------------------------------------------------- */

enum { MAX_LENT = 2 };

/* Where the operands are now: host numbers, or the address. */
struct place {
	unsigned reg, rm, v;
	int base, index; /* of the memory operand */
	int32_t disp;
	bool plain; /* no REX may be written */
};

static bool byte_needs_rex(const struct field *f, unsigned host)
{
	return f->used && f->byte && !f->high && host >= 4 && host <= 7;
}

static void put_vex(struct emit *e, const struct enc *k, const struct place *p)
{
	unsigned b = k->mem ? (unsigned)p->base : p->rm;
	unsigned x = k->mem && p->index >= 0 ? (unsigned)p->index : 0;
	unsigned v = k->v.used ? p->v : 0;

	e1(e, 0xc4);
	e1(e, (uint8_t)((p->reg > 7 ? 0 : 0x80) | (x > 7 ? 0 : 0x40) |
			(b > 7 ? 0 : 0x20) | k->map));
	e1(e, (uint8_t)(k->w << 7 | (~v & 15) << 3 | k->l << 2 | k->pp));
	e1(e, k->op[0]);
}

static void put_rex(struct emit *e, const struct enc *k, const struct place *p)
{
	unsigned b = k->mem ? (unsigned)p->base : p->rm;
	uint8_t r = rex(k->w, (int)p->reg, k->mem ? p->index : -1, (int)b);

	if (p->plain)
		return;
	if (r != 0x40 || byte_needs_rex(&k->reg, p->reg) ||
	    (!k->mem && byte_needs_rex(&k->rm, p->rm)))
		e1(e, r);
}

static void put(struct emit *e, const struct enc *k, const struct place *p)
{
	if (k->vex) {
		put_vex(e, k, p);
	} else {
		e_bytes(e, k->prefix, k->nprefix);
		put_rex(e, k, p);
		e_bytes(e, k->op, k->nop);
	}
	if (k->mem)
		e_mem(e, p->reg, p->base, p->index, 0, p->disp);
	else
		e1(e, (uint8_t)(0xc0 | (p->reg & 7) << 3 | (p->rm & 7)));
	e_bytes(e, k->imm, k->nimm);
}

static bool resident(const struct tctx *x, const struct field *f)
{
	return f->used && f->gpr && x->host[f->n] < 0;
}

static unsigned high_number(unsigned guest)
{
	return guest + 4;
}

static void flags_after(struct tctx *x, const struct tinsn *ti)
{
	if (!ti->writes)
		return;
	x->fl_host = true;
	x->fl_mem = false;
}

/* High byte registers: CH DH BH are where they were; AH comes to T0. */
static bool put_high(struct tctx *x, struct tinsn *ti, struct enc *k, bool need)
{
	struct field *f[2] = { &k->reg, &k->rm };
	struct place p = { .base = -1, .index = -1, .plain = true };
	bool acc = false, wr = false;
	unsigned n[2];

	if (k->vex || k->w || k->rax_in)
		return false;
	for (unsigned m = 0; m < 2; m++) {
		if (!f[m]->used) {
			n[m] = f[m]->n;
			continue;
		}
		if (!f[m]->gpr || f[m]->n >= 8 ||
		    (f[m]->n >= 4 && (f[m]->byte || f[m]->n == R_RSP)))
			return false;
		n[m] = f[m]->high ? high_number(f[m]->n) : f[m]->n;
		if (f[m]->n == R_RAX) {
			acc = true;
			wr |= f[m]->wr;
		}
	}
	p.reg = n[0];
	p.rm = n[1];
	x->keeps = true;
	if (need && !x->fl_host)
		flags_restore(x);
	if (acc)
		e_mov(&x->e, T0, G_RAX);
	put(&x->e, k, &p);
	if (wr)
		e_mov(&x->e, G_RAX, T0);
	flags_after(x, ti);
	return true;
}

unsigned operand_alignment(const struct tinsn *ti, const struct operand *op)
{
	bool vex = ti->d.i.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;

	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA: return op->size / 8;
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU: return 0;
	case ZYDIS_MNEMONIC_CMPXCHG16B: return 16;
	default: return ti->vec && !vex && op->size == 128 ? 16 : 0;
	}
}

/* Bring the operand in memory within reach: p->base, p->index. */
static void reach(struct tctx *x, struct tinsn *ti, const struct enc *k,
		  struct place *p, bool one_register)
{
	unsigned size = k->mop->size / 8;
	unsigned align = operand_alignment(ti, k->mop);
	bool wr = k->mop->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (group_serves(x, ti)) {
		p->disp = group_reach(x, ti, k->mop, 0);
		p->base = T1;
		return;
	}
	x->keeps = false;
	flags_spill(x, ti);
	emit_address(x, ti, k->mop);
	emit_lookup(x, ti, size, wr, align != 0);
	p->base = T0;
	p->index = T1;
	if (one_register) {
		e_op_mem(&x->e, 0x8d, T1, T0, T1, 0, 0);
		p->base = T1;
		p->index = -1;
	}
}

/*
 * The address must be in a register that needs no REX, and the byte too: AH
 * is BH while the instruction runs.
 */
static bool put_high_mem(struct tctx *x, struct tinsn *ti, struct enc *k,
			 bool need)
{
	struct place p = { .base = -1, .index = -1, .plain = true };
	bool acc = k->reg.n == R_RAX;

	if (k->vex || k->w || k->rax_in)
		return false;
	reach(x, ti, k, &p, true);
	if (need && !x->fl_host)
		flags_restore(x);
	e_mov(&x->e, T0, (unsigned)p.base);
	p.base = T0;
	p.reg = acc ? high_number(H_RBX) : high_number(k->reg.n);
	if (acc)
		e_rr(&x->e, 0x87, G_RAX, H_RBX);
	put(&x->e, k, &p);
	if (acc)
		e_rr(&x->e, 0x87, G_RAX, H_RBX);
	flags_after(x, ti);
	return true;
}

/* One that no operand is, not even by implication; lent until it is done. */
static unsigned borrow(struct emit *e, const unsigned host[3],
		       uint8_t lent[MAX_LENT], unsigned n)
{
	unsigned r = H_R8;

	while (r == host[0] || r == host[1] || r == host[2] ||
	       (n && r == lent[0]))
		r++;
	e_gs_store(e, r, GS(tr.lent) + 8 * n);
	lent[n] = (uint8_t)r;
	return r;
}

/*
 * Bring the guest's registers that live in memory into others.  T1 is free
 * without a memory operand, T0 without an implied accumulator; more are
 * borrowed: how many.
 */
static unsigned load_residents(struct tctx *x, const struct enc *k,
			       const struct field *const all[3],
			       unsigned host[3], uint8_t lent[MAX_LENT])
{
	unsigned nlent = 0, nfree = 0, free[2];

	if (!k->mem)
		free[nfree++] = T1;
	if (!k->rax_in)
		free[nfree++] = T0;
	for (unsigned n = 0; n < 3; n++) {
		bool rd = false;
		unsigned m = 0;

		if ((n == 1 && k->mem) || !resident(x, all[n]))
			continue;
		/* The same register named twice is in one place. */
		while ((m == 1 && k->mem) || !resident(x, all[m]) ||
		       all[m]->n != all[n]->n)
			m++;
		if (m < n) {
			host[n] = host[m];
			continue;
		}
		for (; m < 3; m++)
			if (!(m == 1 && k->mem) && resident(x, all[m]) &&
			    all[m]->n == all[n]->n)
				rd |= all[m]->rd;
		if (nfree) {
			host[n] = free[--nfree];
		} else {
			host[n] = borrow(&x->e, host, lent, nlent);
			nlent++;
		}
		if (rd)
			e_gs_load(&x->e, host[n], GS_GPR(all[n]->n));
	}
	return nlent;
}

static bool emit_enc(struct tctx *x, struct tinsn *ti, struct enc *k)
{
	bool need = ti->reads || (ti->writes && ti->live_out & ~ti->kills);
	unsigned nres = 0, host[3] = { 0, 0, 0 }, nlent;
	const struct field *all[3] = { &k->reg, &k->rm, &k->v };
	struct place p = { .base = -1, .index = -1 };
	uint8_t lent[MAX_LENT];

	if (k->mem && (!k->mop->size || k->mop->size > 256 ||
		       k->mop->mem.type != ZYDIS_MEMOP_TYPE_MEM))
		return false;
	/* The accumulator is in T0 then, and cannot be elsewhere too. */
	for (unsigned n = 0; n < 3; n++)
		if (k->rax_in && all[n]->used && all[n]->gpr && all[n]->wr &&
		    !(n == 1 && k->mem) && all[n]->n == R_RAX)
			return false;
	if (k->reg.high || (!k->mem && k->rm.high))
		return k->mem ? put_high_mem(x, ti, k, need)
			      : put_high(x, ti, k, need);
	for (unsigned n = 0; n < 3; n++) {
		if (n == 1 && k->mem)
			continue;
		if (resident(x, all[n]))
			nres++;
		else if (all[n]->used && all[n]->gpr)
			host[n] = (unsigned)x->host[all[n]->n];
		else
			host[n] = all[n]->n;
	}
	x->keeps = true;
	if (k->mem)
		reach(x, ti, k, &p, need || nres || k->rax_in);
	if (need && !x->fl_host)
		flags_restore(x);
	nlent = nres ? load_residents(x, k, all, host, lent) : 0;
	for (unsigned n = 0; n < 3; n++)
		if (!(n == 1 && k->mem) && resident(x, all[n]) && host[n] == T1)
			x->keeps = false;
	if (k->rax_in)
		e_mov(&x->e, T0, G_RAX);
	p.reg = host[0];
	p.rm = host[1];
	p.v = host[2];
	put(&x->e, k, &p);
	if (k->rax_out)
		e_mov(&x->e, G_RAX, T0);
	for (unsigned n = 0; n < 3; n++)
		if (!(n == 1 && k->mem) && resident(x, all[n]) && all[n]->wr)
			e_gs_store(&x->e, host[n], GS_GPR(all[n]->n));
	while (nlent--)
		e_gs_load(&x->e, lent[nlent], GS(tr.lent) + 8 * nlent);
	flags_after(x, ti);
	return true;
}

/* -- instructions with rules of their own --------------------------------- */

static bool emit_lea_insn(struct tctx *x, struct tinsn *ti)
{
	const struct decoded *d = &ti->d;
	unsigned g = reg_number(d->op[0].reg.value);
	int h = x->host[g];
	bool wide = d->op[0].size == 64 && d->i.address_width == 64;

	if (d->op[0].size < 32)
		return false;
	x->keeps = d->op[1].mem.index == ZYDIS_REGISTER_NONE ||
		   x->host[reg_number(d->op[1].mem.index)] >= 0;
	emit_lea(x, ti, &d->op[1], h < 0 ? T0 : (unsigned)h, wide);
	if (h < 0)
		e_gs_store(&x->e, T0, GS_GPR(g));
	return true;
}

static bool emit_mov_imm64(struct tctx *x, struct tinsn *ti)
{
	unsigned g = reg_number(ti->d.op[0].reg.value);
	int h = x->host[g];

	x->keeps = true;
	e_imm(&x->e, h < 0 ? T0 : (unsigned)h, ti->d.op[1].imm.value.u);
	if (h < 0)
		e_gs_store(&x->e, T0, GS_GPR(g));
	return true;
}

static bool emit_bswap(struct tctx *x, struct tinsn *ti)
{
	unsigned g = reg_number(ti->d.op[0].reg.value);
	int h = x->host[g];
	unsigned r = h < 0 ? T0 : (unsigned)h;

	if (ti->d.op[0].size < 32)
		return false;
	if (h < 0)
		e_gs_load(&x->e, r, GS_GPR(g));
	e1(&x->e, rex(ti->d.op[0].size == 64, -1, -1, (int)r));
	e1(&x->e, 0x0f);
	e1(&x->e, (uint8_t)(0xc8 | (r & 7)));
	if (h < 0)
		e_gs_store(&x->e, r, GS_GPR(g));
	return true;
}

/* CWD CDQ CQO: the twin has no ModRM, but rdx is itself. */
static bool emit_cdq(struct tctx *x, struct tinsn *ti)
{
	x->keeps = true;
	e_mov(&x->e, T0, G_RAX);
	if (ti->d.i.operand_width == 16)
		e1(&x->e, 0x66);
	else if (ti->d.i.operand_width == 64)
		e1(&x->e, 0x48);
	e1(&x->e, 0x99);
	return true;
}

/*
 * A division that would fault on the host is left to the interpreter: DIV
 * when the high half is not below the divisor, IDIV unless the dividend is
 * the sign extension of its low half and the divisor not 0 or -1.
 */
static bool emit_div(struct tctx *x, struct tinsn *ti)
{
	const struct operand *op = &ti->d.op[0];
	struct emit *e = &x->e;
	bool wide = op->size == 64,
	     sign = ti->d.i.mnemonic == ZYDIS_MNEMONIC_IDIV;
	unsigned by = T1;

	if (op->size < 32 || (op->type != ZYDIS_OPERAND_TYPE_MEMORY &&
			      op->type != ZYDIS_OPERAND_TYPE_REGISTER))
		return false;
	flags_spill(x, ti);
	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		emit_address(x, ti, op);
		emit_lookup(x, ti, op->size / 8, false, false);
		e1(e, rex(wide, T1, T1, T0));
		e1(e, 0x8b);
		e_mem(e, T1, T0, T1, 0, 0);
	} else {
		unsigned g = reg_number(op->reg.value);

		if (x->host[g] < 0)
			e_gs_load(e, T1, GS_GPR(g));
		else
			by = (unsigned)x->host[g];
	}
	if (!sign) {
		/* cmp edx, by; jae */
		e1(e, rex(wide, (int)by, -1, H_RDX));
		e1(e, 0x39);
		e1(e, (uint8_t)(0xc0 | (by & 7) << 3 | H_RDX));
		cold_add(x, e_jcc(e, CC_AE), insn_site(x, ti));
	} else {
		e_mov(e, T0, G_RAX);
		/* sar eax, 31 or 63; cmp eax, edx; jne */
		e1(e, rex(wide, -1, -1, T0));
		E(e, 0xc1, 0xf8);
		e1(e, wide ? 63 : 31);
		e1(e, rex(wide, H_RDX, -1, T0));
		E(e, 0x39, 0xd0);
		cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
		/* lea eax, [by + 1]; cmp eax, 1; jbe */
		e1(e, rex(wide, T0, -1, (int)by));
		e1(e, 0x8d);
		e_mem(e, T0, (int)by, -1, 0, 1);
		e1(e, rex(wide, -1, -1, T0));
		E(e, 0x83, 0xf8, 0x01);
		cold_add(x, e_jcc(e, CC_BE), insn_site(x, ti));
	}
	e_mov(e, T0, G_RAX);
	e1(e, rex(wide, -1, -1, (int)by));
	e1(e, 0xf7);
	e1(e, (uint8_t)(0xc0 | (sign ? 7 : 6) << 3 | (by & 7)));
	e_mov(e, G_RAX, T0);
	flags_after(x, ti);
	return true;
}

/* -- stack ---------------------------------------------------------------- */

static bool is_word(const struct tctx *x, const struct operand *op)
{
	return class_of(op->reg.value) ==
	       (x->wide ? ZYDIS_REGCLASS_GPR64 : ZYDIS_REGCLASS_GPR32);
}

static bool emit_push(struct tctx *x, struct tinsn *ti)
{
	const struct operand *op = &ti->d.op[0];
	struct emit *e = &x->e;
	struct spot s;
	int h = -1;

	if (ti->d.i.operand_width != x->word * 8)
		return false;
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		if (!is_word(x, op))
			return false;
		s = stack_spot(x, ti, -x->word, true);
		h = x->host[reg_number(op->reg.value)];
		if (h >= 0) {
			e_opw_mem(e, x->wide, 0x89, (unsigned)h, s.base,
				  s.index, 0, s.disp);
			break;
		}
		if (s.index >= 0) {
			e_op_mem(e, 0x8d, T1, T0, T1, 0, 0);
			s.disp = 0;
		}
		e_gs_load(e, T0, GS_GPR(reg_number(op->reg.value)));
		e_op_mem(e, 0x89, T0, T1, -1, 0, s.disp);
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		s = stack_spot(x, ti, -x->word, true);
		e_opw_mem(e, x->wide, 0xc7, 0, s.base, s.index, 0, s.disp);
		e4(e, (uint32_t)op->imm.value.u);
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		flags_spill(x, ti);
		emit_address(x, ti, op);
		emit_lookup(x, ti, x->word, false, false);
		e_opw_mem(e, x->wide, 0x8b, T0, T0, T1, 0, 0);
		e_gs_store(e, T0, GS(tr.temp));
		emit_reg_disp(x, R_RSP, -x->word);
		emit_lookup(x, ti, x->word, true, false);
		e_op_mem(e, 0x8d, T0, T0, T1, 0, 0);
		e_gs_load(e, T1, GS(tr.temp));
		e_opw_mem(e, x->wide, 0x89, T1, T0, -1, 0, 0);
		break;
	default: return false;
	}
	stack_step(x, ti, -x->word);
	return true;
}

static bool emit_pop(struct tctx *x, struct tinsn *ti)
{
	const struct operand *op = &ti->d.op[0];
	struct spot s;
	unsigned g;
	int h;

	if (ti->d.i.operand_width != x->word * 8 ||
	    op->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_word(x, op))
		return false;
	g = reg_number(op->reg.value);
	h = x->host[g];
	s = stack_spot(x, ti, 0, false);
	e_opw_mem(&x->e, x->wide, 0x8b, h < 0 ? T0 : (unsigned)h, s.base,
		  s.index, 0, s.disp);
	if (h < 0)
		e_gs_store(&x->e, T0, GS_GPR(g));
	if (g != R_RSP)
		stack_step(x, ti, x->word);
	return true;
}

static bool emit_leave(struct tctx *x, struct tinsn *ti)
{
	if (ti->d.i.operand_width != x->word * 8)
		return false;
	flags_spill(x, ti);
	emit_reg_disp(x, R_RBP, 0);
	emit_lookup(x, ti, x->word, false, false);
	e_opw_mem(&x->e, x->wide, 0x8b, T0, T0, T1, 0, 0);
	e_opw_mem(&x->e, x->wide, 0x8d, G_RSP, H_RBP, -1, 0, x->word);
	e_mov(&x->e, H_RBP, T0);
	return true;
}

/*
 * STAC CLAC switch the TLB that the rest of the block uses.  What AC is now
 * follows from the mode, so a constant can be added.
 */
static bool emit_ac(struct tctx *x, struct tinsn *ti, bool set)
{
	struct emit *e = &x->e;
	unsigned to = set ? MMU_KERNEL_AC : MMU_KERNEL;

	if (!(x->c->cr4 & CR4_SMAP) || x->c->cpl)
		return false;
	if (x->mmu == to)
		return true;
	e_gs(e, 0, 0x8b, T0, GS(rflags));
	e_op_mem(e, 0x8d, T0, T0, -1, 0, set ? FL_AC : -FL_AC);
	e_gs(e, 0, 0x89, T0, GS(rflags));
	E(e, 0x65, 0xc6, 0x04, 0x25); /* mov byte gs:[mmu], */
	e4(e, GS(mmu));
	e1(e, (uint8_t)to);
	ctx_mmu(x, to);
	group_close(x);
	return true;
}

/* -- which way ------------------------------------------------------------ */

static bool category_fits(const struct tinsn *ti)
{
	switch (ti->d.i.meta.category) {
	case ZYDIS_CATEGORY_ADOX_ADCX:
	case ZYDIS_CATEGORY_AES:
	case ZYDIS_CATEGORY_AVX:
	case ZYDIS_CATEGORY_AVX2:
	case ZYDIS_CATEGORY_BINARY:
	case ZYDIS_CATEGORY_BITBYTE:
	case ZYDIS_CATEGORY_BMI1:
	case ZYDIS_CATEGORY_BMI2:
	case ZYDIS_CATEGORY_BROADCAST:
	case ZYDIS_CATEGORY_CMOV:
	case ZYDIS_CATEGORY_CONVERT:
	case ZYDIS_CATEGORY_DATAXFER:
	case ZYDIS_CATEGORY_FCMOV:
	case ZYDIS_CATEGORY_LOGICAL:
	case ZYDIS_CATEGORY_LOGICAL_FP:
	case ZYDIS_CATEGORY_LZCNT:
	case ZYDIS_CATEGORY_MMX:
	case ZYDIS_CATEGORY_PCLMULQDQ:
	case ZYDIS_CATEGORY_ROTATE:
	case ZYDIS_CATEGORY_SEMAPHORE:
	case ZYDIS_CATEGORY_SETCC:
	case ZYDIS_CATEGORY_SHA:
	case ZYDIS_CATEGORY_SHIFT:
	case ZYDIS_CATEGORY_SSE:
	case ZYDIS_CATEGORY_TBM:
	case ZYDIS_CATEGORY_VFMA: return true;
	default: return false;
	}
}

static bool excluded(const struct tinsn *ti)
{
	const struct decoded *d = &ti->d;

	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
	case ZYDIS_MNEMONIC_RDPID: return true;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTS:
		/* A bit number in a register reaches far from the address. */
		return d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		       d->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	default: return false;
	}
}

/*
 * VEX.W of 32-bit code does not make general registers, named or implied, and
 * what is moved between them and vectors wider, as it would here.
 */
static bool vex_fits(const struct tinsn *ti)
{
	const struct decoded *d = &ti->d;

	if (d->i.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX || !d->i.raw.vex.W)
		return true;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VMOVQ:
	case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VPINSRQ:
	case ZYDIS_MNEMONIC_VPEXTRD:
	case ZYDIS_MNEMONIC_VPEXTRQ:
	case ZYDIS_MNEMONIC_VPCMPESTRI:
	case ZYDIS_MNEMONIC_VPCMPESTRM:
	case ZYDIS_MNEMONIC_VCVTSI2SD:
	case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VCVTSD2SI:
	case ZYDIS_MNEMONIC_VCVTSS2SI:
	case ZYDIS_MNEMONIC_VCVTTSD2SI:
	case ZYDIS_MNEMONIC_VCVTTSS2SI: return false;
	default: break;
	}
	for (unsigned n = 0; n < d->i.operand_count; n++)
		if (d->op[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    class_of(d->op[n].reg.value) == ZYDIS_REGCLASS_GPR32)
			return false;
	return true;
}

/* Copied as they are: no operand but flags or vector registers. */
static bool verbatim(struct tctx *x, struct tinsn *ti)
{
	bool need = ti->reads || (ti->writes && ti->live_out & ~ti->kills);

	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC:
		if (need && !x->fl_host)
			flags_restore(x);
		break;
	case ZYDIS_MNEMONIC_VZEROUPPER:
		if (x->wide)
			break;
		/* Of the eight that there are: vmovaps xmm, xmm */
		for (unsigned n = 0; n < 8; n++) {
			E(&x->e, 0xc5, 0xf8, 0x28);
			e1(&x->e, (uint8_t)(0xc0 | n << 3 | n));
		}
		return true;
	case ZYDIS_MNEMONIC_VZEROALL:
		if (x->wide)
			break;
		return false;
	default: return false;
	}
	e_bytes(&x->e, ti->in.bytes, ti->in.len);
	flags_after(x, ti);
	return true;
}

static bool is_nothing(const struct tinsn *ti)
{
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCH: return true;
	default: return false;
	}
}

/* True: it is not for what puts most together, *ok: it has been emitted. */
static bool emit_special(struct tctx *x, struct tinsn *ti, bool *ok)
{
	bool done;

	*ok = emit_system(x, ti) || emit_bits(x, ti) || emit_string(x, ti);
	if (*ok)
		return true;
	*ok = emit_x87(x, ti, &done);
	if (done)
		return true;
	*ok = verbatim(x, ti);
	if (*ok || !fpu_host_has(&ti->d))
		return true;
	*ok = emit_vec(x, ti, &done);
	return done || !category_fits(ti) || excluded(ti);
}

bool emit_insn(struct tctx *x, struct tinsn *ti)
{
	struct enc k = { .nprefix = 0 };
	bool ok;

	if (ti->in.fn == op_undefined || !vec_allowed(x->c, ti))
		return false;
	if (is_nothing(ti)) {
		x->keeps = true;
		return true;
	}
	if (!address_fits(x, ti))
		return false;
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_LEA: return emit_lea_insn(x, ti);
	case ZYDIS_MNEMONIC_PUSH: return emit_push(x, ti);
	case ZYDIS_MNEMONIC_POP: return emit_pop(x, ti);
	case ZYDIS_MNEMONIC_LEAVE: return emit_leave(x, ti);
	case ZYDIS_MNEMONIC_BSWAP: return emit_bswap(x, ti);
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV: return emit_div(x, ti);
	case ZYDIS_MNEMONIC_CWD:
	case ZYDIS_MNEMONIC_CDQ:
	case ZYDIS_MNEMONIC_CQO: return emit_cdq(x, ti);
	case ZYDIS_MNEMONIC_STAC: return emit_ac(x, ti, true);
	case ZYDIS_MNEMONIC_CLAC: return emit_ac(x, ti, false);
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
		e_bytes(&x->e, ti->in.bytes, ti->in.len);
		return true;
	default: break;
	}
	if (!ti->d.i.plain && emit_special(x, ti, &ok))
		return ok;
	if (ti->d.i.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	    ti->d.i.opcode >= 0xb8 && ti->d.i.opcode <= 0xbf &&
	    ti->d.i.raw.rex.W)
		return emit_mov_imm64(x, ti);
	if (!x->wide && !vex_fits(ti))
		return false;
	if (!take_modrm(&k, ti)) {
		k = (struct enc){ .nprefix = 0 };
		if (!take_short(&k, ti))
			return false;
	}
	/* Of zero, they leave the destination as it was. */
	if (ti->d.i.mnemonic == ZYDIS_MNEMONIC_BSF ||
	    ti->d.i.mnemonic == ZYDIS_MNEMONIC_BSR)
		k.reg.rd = true;
	return emit_enc(x, ti, &k);
}
