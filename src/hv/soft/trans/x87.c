/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x87.c - translation of x87 and of what only looks like a vector move
 *
 * The guest's x87 state is in the host's registers while c->tr.x87_loaded:
 * the head of a block that has such instructions sees to it, as for vectors.
 * It is loaded only when no exception can be raised (all are masked and none
 * is pending), so nothing here ever faults; FLDCW and FLDENV with other masks
 * and all that moves the whole state are the interpreter's.
 *
 * FOP, FIP and FDP stay in c->fpu: without an unmasked exception nothing but
 * FNINIT changes the guest's.
 */
#include "hv/soft/trans/trans.h"
#include "hv/soft/x86/fpu.h"

enum { ENV_SIZE = 28, ENV_FSW = 4, ENV_IP = 12, ENV_DP = 20 };

static bool is_mmx_register(const struct operand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
	       class_of(op->reg.value) == ZYDIS_REGCLASS_MMX;
}

/* CVTPI2PS and the like name no MMX register when they read memory. */
static bool is_mmx(const struct decoded *d)
{
	if (d->i.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_EMMS:
	case ZYDIS_MNEMONIC_CVTPI2PS:
	case ZYDIS_MNEMONIC_CVTPI2PD: return true;
	default: break;
	}
	for (unsigned n = 0; n < d->i.operand_count; n++)
		if (is_mmx_register(&d->op[n]))
			return true;
	return false;
}

static const struct operand *memory_operand(const struct decoded *d)
{
	for (unsigned n = 0; n < d->i.operand_count; n++)
		if (d->op[n].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return &d->op[n];
	return NULL;
}

static bool is_x87(const struct decoded *d)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_FISTTP: return true;
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR: return false;
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
		return memory_operand(d)->size == ENV_SIZE * 8;
	default: return d->i.meta.isa_ext == ZYDIS_ISA_EXT_X87;
	}
}

bool x87_wanted(const struct cpu *c, const struct decoded *d)
{
	if (d->i.plain || c->cr0 & (CR0_EM | CR0_TS) || !fpu_host_has(d))
		return false;
	return is_x87(d) || is_mmx(d);
}

/* -- x87 ------------------------------------------------------------------ */

/* Where the operand is; T0 and T1 are taken. */
static struct spot reach(struct tctx *x, struct tinsn *ti,
			 const struct operand *op)
{
	if (group_serves(x, ti))
		return (struct spot){ T1, -1, group_reach(x, ti, op, 0) };
	flags_spill(x, ti);
	emit_address(x, ti, op);
	emit_lookup(x, ti, op->size / 8,
		    op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, false);
	return (struct spot){ T0, T1, 0 };
}

/* op reg, operand */
static void put_mem(struct emit *e, uint8_t map, uint8_t op, unsigned reg,
		    struct spot at)
{
	e1(e, rex(0, (int)reg, at.index, at.base));
	if (map)
		e1(e, map);
	e1(e, op);
	e_mem(e, reg, at.base, at.index, 0, at.disp);
}

/* [prefix 0f] op reg, gs:[off] */
static void put_gs(struct emit *e, uint8_t map, uint8_t op, unsigned reg,
		   uint32_t off)
{
	e1(e, 0x65);
	if (map)
		e1(e, map);
	e1(e, op);
	e_mem(e, reg, -1, -1, 0, (int32_t)off);
}

/* Control words are loaded from a copy: what was looked at is what counts. */
static bool emit_fldcw(struct tctx *x, struct tinsn *ti,
		       const struct operand *op)
{
	struct emit *e = &x->e;

	flags_spill(x, ti);
	put_mem(e, 0x0f, 0xb7, T0, reach(x, ti, op)); /* movzx eax, word */
	e_gs(e, 0, 0x89, T0, GS(tr.temp));
	E(e, 0x83, 0xe0, 0x3f, 0x83, 0xf8, 0x3f); /* and; cmp eax, 0x3f */
	cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
	put_gs(e, 0, 0xd9, 5, GS(tr.temp));
	return true;
}

static void zero_pointers(struct emit *e)
{
	E(e, 0x66, 0x65, 0xc7, 0x04, 0x25);
	e4(e, GS(fpu) + FX_FOP);
	E(e, 0x00, 0x00);
	for (unsigned off = FX_FIP; off < FX_MXCSR; off += 4)
		e_gs_imm(e, GS(fpu) + off, 0);
}

/* movzx reg, word gs:[off] */
static void load_word(struct emit *e, unsigned reg, uint32_t off)
{
	e1(e, 0x65);
	e1(e, rex(0, (int)reg, -1, -1));
	E(e, 0x0f, 0xb7);
	e_mem(e, reg, -1, -1, 0, (int32_t)off);
}

/* mov [T0 + off], T1 of 32 bits */
static void store_t1(struct emit *e, int32_t off)
{
	e1(e, rex(0, T1, -1, T0));
	e1(e, 0x89);
	e_mem(e, T1, T0, -1, 0, off);
}

/* The host's own, then the guest's pointers over those of the host. */
static bool emit_fnstenv(struct tctx *x, struct tinsn *ti,
			 const struct operand *op)
{
	static const struct {
		uint8_t to, from;
	} part[] = { { ENV_IP, FX_FIP }, { ENV_DP, FX_FDP } };
	struct emit *e = &x->e;
	struct spot at;

	at = reach(x, ti, op);
	e_op_mem(e, 0x8d, T0, at.base, at.index, 0, at.disp);
	e1(e, 0xd9);
	e_mem(e, 6, T0, -1, 0, 0);
	for (unsigned n = 0; n < 2; n++) {
		e_gs(e, 0, 0x8b, T1, GS(fpu) + part[n].from);
		store_t1(e, part[n].to);
		load_word(e, T1, GS(fpu) + part[n].from + 4);
		store_t1(e, part[n].to + 4);
	}
	load_word(e, T1, GS(fpu) + FX_FOP);
	E(e, 0x41, 0x81, 0xe7, 0xff, 0x07, 0x00, 0x00); /* and */
	e1(e, 0x66);
	store_t1(e, ENV_IP + 6);
	return true;
}

/* From a copy, as control words are. */
static bool emit_fldenv(struct tctx *x, struct tinsn *ti,
			const struct operand *op)
{
	static const struct {
		uint8_t to, from;
	} part[] = { { FX_FIP, ENV_IP }, { FX_FDP, ENV_DP } };
	uint32_t env = GS(tr.vector);
	struct emit *e = &x->e;
	struct spot at;

	flags_spill(x, ti);
	at = reach(x, ti, op);
	e_op_mem(e, 0x8d, T0, at.base, at.index, 0, at.disp);
	for (unsigned off = 0; off < ENV_SIZE; off += 4) {
		e1(e, rex(0, T1, -1, T0));
		e1(e, 0x8b);
		e_mem(e, T1, T0, -1, 0, (int32_t)off);
		e_gs(e, 0, 0x89, T1, env + off);
	}
	load_word(e, T0, env);
	E(e, 0x83, 0xe0, 0x3f, 0x83, 0xf8, 0x3f); /* and; cmp eax, 0x3f */
	cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
	/* and dword: ES and B follow from what is masked: none is pending */
	E(e, 0x65, 0x81, 0x24, 0x25);
	e4(e, env + ENV_FSW);
	e4(e, ~(uint32_t)(FSW_ES | FSW_B));
	put_gs(e, 0, 0xd9, 4, env);
	for (unsigned n = 0; n < 2; n++) {
		e_gs(e, 0, 0x8b, T1, env + part[n].from);
		e_gs(e, 0, 0x89, T1, GS(fpu) + part[n].to);
		load_word(e, T1, env + part[n].from + 4);
		e_gs(e, 0, 0x89, T1, GS(fpu) + part[n].to + 4);
	}
	load_word(e, T1, env + ENV_IP + 6);
	E(e, 0x41, 0x81, 0xe7, 0xff, 0x07, 0x00, 0x00); /* and */
	E(e, 0x66);
	e_gs(e, 0, 0x89, T1, GS(fpu) + FX_FOP);
	return true;
}

static bool emit_memory(struct tctx *x, struct tinsn *ti,
			const struct operand *op)
{
	const struct instruction *i = &ti->d.i;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FLDCW: return emit_fldcw(x, ti, op);
	case ZYDIS_MNEMONIC_FLDENV: return emit_fldenv(x, ti, op);
	case ZYDIS_MNEMONIC_FNSTENV: return emit_fnstenv(x, ti, op);
	default: break;
	}
	if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || !op->size || op->size > 80)
		return false;
	put_mem(&x->e, 0, i->opcode, i->raw.modrm.reg, reach(x, ti, op));
	return true;
}

static void emit_fnstsw_ax(struct tctx *x)
{
	e_mov(&x->e, T0, G_RAX);
	E(&x->e, 0xdf, 0xe0);
	e_mov(&x->e, G_RAX, T0);
}

static bool emit_fpu(struct tctx *x, struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;
	bool need = ti->reads || (ti->writes && ti->live_out & ~ti->kills);
	const struct operand *op = memory_operand(&ti->d);

	if (op)
		return emit_memory(x, ti, op);
	if (i->mnemonic == ZYDIS_MNEMONIC_FWAIT)
		return true; /* nothing is pending */
	if (!(i->attributes & ZYDIS_ATTRIB_HAS_MODRM))
		return false;
	if (need && !x->fl_host)
		flags_restore(x);
	if (i->mnemonic == ZYDIS_MNEMONIC_FNSTSW) {
		emit_fnstsw_ax(x);
	} else {
		e1(&x->e, i->opcode);
		e1(&x->e, ti->in.bytes[i->raw.modrm.offset]);
	}
	if (i->mnemonic == ZYDIS_MNEMONIC_FNINIT)
		zero_pointers(&x->e);
	if (ti->writes) {
		x->fl_host = true;
		x->fl_mem = false;
	}
	return true;
}

/* -- MXCSR and byte masks ------------------------------------------------- */

/* Loaded from a copy, and only with all exceptions masked. */
static bool emit_ldmxcsr(struct tctx *x, struct tinsn *ti)
{
	struct emit *e = &x->e;

	flags_spill(x, ti);
	put_mem(e, 0, 0x8b, T0, reach(x, ti, &ti->d.op[0]));
	e_gs(e, 0, 0x89, T0, GS(tr.temp));
	e1(e, 0x25); /* and eax, */
	e4(e, ~(uint32_t)MXCSR_VALID | MXCSR_INIT);
	e1(e, 0x3d); /* cmp eax, */
	e4(e, MXCSR_INIT);
	cold_add(x, e_jcc(e, CC_NE), insn_site(x, ti));
	put_gs(e, 0x0f, 0xae, 2, GS(tr.temp));
	return true;
}

static bool emit_stmxcsr(struct tctx *x, struct tinsn *ti)
{
	put_mem(&x->e, 0x0f, 0xae, 3, reach(x, ti, &ti->d.op[0]));
	return true;
}

bool emit_x87(struct tctx *x, struct tinsn *ti, bool *done)
{
	*done = true;
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR: return emit_ldmxcsr(x, ti);
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR: return emit_stmxcsr(x, ti);
	case ZYDIS_MNEMONIC_EMMS:
		if (ti->x87)
			E(&x->e, 0x0f, 0x77);
		return ti->x87;
	default: break;
	}
	if (!ti->x87 && is_mmx(&ti->d))
		return false;
	if (ti->d.i.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
	    ti->d.i.mnemonic == ZYDIS_MNEMONIC_FISTTP)
		return ti->x87 && emit_fpu(x, ti);
	*done = false;
	return false;
}

/* -- moving the state ----------------------------------------------------- */

/* x(save|rstor)64 gs:[fpu] of the x87 part alone */
static void move_state(struct emit *e, unsigned op)
{
	E(e, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x31, 0xd2); /* eax 1, edx 0 */
	E(e, 0x65, 0x48, 0x0f, 0xae);
	e_mem(e, op, -1, -1, 0, (int32_t)GS(fpu));
}

/* Clobbers rax, rdx. */
void emit_x87_load(struct emit *e)
{
	/* The rest of the header is zero: see x86/fpu.h. */
	e_gs_imm(e, GS(fpu) + FX_XSTATE_BV, 1);
	move_state(e, 5);
}

/* Clobbers rax, rdx, rcx, rsi, rdi. */
void emit_x87_store(struct emit *e)
{
	e_gs(e, 0, 0x8b, H_RCX, GS(fpu) + FX_FTW);
	e_gs_load(e, H_RSI, GS(fpu) + FX_FIP);
	e_gs_load(e, H_RDI, GS(fpu) + FX_FDP);
	move_state(e, 4);
	/* FOP is the upper half of what starts at FTW. */
	E(e, 0xc1, 0xe9, 0x10, 0x66); /* shr ecx, 16; mov word */
	e_gs(e, 0, 0x89, H_RCX, GS(fpu) + FX_FOP);
	e_gs_store(e, H_RSI, GS(fpu) + FX_FIP);
	e_gs_store(e, H_RDI, GS(fpu) + FX_FDP);
	E(e, 0xdb, 0xe3); /* fninit */
}

bool x87_ready(const struct cpu *c)
{
	return (fx16(c->fpu, FX_FCW) & 0x3f) == 0x3f &&
	       !(fx16(c->fpu, FX_FSW) & FSW_ES);
}
