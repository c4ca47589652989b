/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate.c - translation of SYSCALL and SYSRET
 *
 * Of 64-bit code, to 64-bit code: flags and segments are written as the
 * interpreter writes them, and the target is looked up in the other mode's
 * table of indirect branches, when that is for code as it would be keyed now.
 * Whatever is out of the ordinary is the interpreter's.
 */
#include "hv/soft/trans/trans.h"

enum {
	CODE64 = 0xa09b, /* access of what both load */
	DATA = 0xc093,
	USER = 0x60,
	/* Of rflags: what the other side may do anything with but run on. */
	ODD_FLAGS = FL_TF | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP,
	SYSRET_FLAGS = 0x3c7fd7
};

static void store_byte(struct emit *e, uint32_t off, uint8_t v)
{
	E(e, 0x65, 0xc6, 0x04, 0x25);
	e4(e, off);
	e1(e, v);
}

/* A flat segment, all but the selector. */
static void store_seg(struct emit *e, unsigned n, uint32_t access)
{
	e_gs_imm(e, GS_SEG(n, limit), 0xffffffff);
	e_gs_imm(e, GS_SEG(n, access), access);
	E(e, 0x65, 0x48, 0xc7, 0x04, 0x25);
	e4(e, GS_SEG(n, base));
	e4(e, 0);
}

/* The mode key of the same mode in ring 0 or 3. */
static uint32_t key_in(const struct cpu *c, unsigned cpl)
{
	return (c->mode_key & ~MODE_KEY_CPL) | (cpl ? MODE_KEY_CPL : 0);
}

/* Is the table of the mode that is to come for such code? */
static void check_mode(struct tctx *x, struct tinsn *ti, unsigned cpl,
		       unsigned mmu)
{
	struct emit *e = &x->e;

	e_gs_test(e, GS(efer), EFER_SCE);
	slow_if(x, ti, CC_E);
	E(e, 0x65, 0x81, 0x3c, 0x25); /* cmp dword gs:[], */
	e4(e, GS(tr.itab_key) + 4 * mmu);
	e4(e, key_in(x->c, cpl) | mmu << 24);
	slow_if(x, ti, CC_NE);
}

/* All flags are those of T0; both temporaries are clobbered. */
static void put_flags(struct tctx *x)
{
	e_gs_store(&x->e, T0, GS(rflags));
	emit_flags_arith(x);
}

/* To T0 in ring cpl. */
static void leave(struct tctx *x, struct tinsn *ti, unsigned cpl, unsigned mmu)
{
	struct emit *e = &x->e;

	store_byte(e, GS(cpl), (uint8_t)cpl);
	store_byte(e, GS(mmu), (uint8_t)mmu);
	e_gs_imm(e, GS(mode_key), key_in(x->c, cpl));
	ctx_mmu(x, mmu);
	emit_indirect(x, ti, 0);
}

static bool emit_syscall(struct tctx *x, struct tinsn *ti)
{
	/* Without SMAP the kernel's is as with AC. */
	unsigned mmu = x->c->cr4 & CR4_SMAP ? MMU_KERNEL : MMU_KERNEL_AC;
	struct emit *e = &x->e;

	if (x->c->cpl != 3 || x->mmu != MMU_USER)
		return false;
	flags_spill(x, ti);
	check_mode(x, ti, 0, mmu);
	e_gs_test(e, GS(rflags), ODD_FLAGS);
	slow_if(x, ti, CC_NE);
	emit_flags_read(e, 0);
	e_mov(e, H_R11, T0);
	e_gs(e, 0, 0x8b, T1, GS(msr.sfmask));
	E(e, 0x41, 0xf7, 0xd7); /* not r15d */
	E(e, 0x44, 0x21, 0xf8); /* and eax, r15d */
	e_r_imm(e, 1, T0, 2);
	put_flags(x);
	e_gs_load(e, T0, GS(msr.star));
	e_r_shift(e, 5, T0, 32);
	e_r_imm(e, 4, T0, 0xfffc);
	e_gs_store_ax(e, GS_SEG(SEG_CS, sel));
	E(e, 0x83, 0xc0, 0x08); /* add eax, 8 */
	e_gs_store_ax(e, GS_SEG(SEG_SS, sel));
	store_seg(e, SEG_CS, CODE64);
	store_seg(e, SEG_SS, DATA);
	emit_place(x, H_RCX, ti->rip + ti->d.i.length, RELOC_ADDRESS);
	e_gs_load(e, T0, GS(msr.lstar));
	leave(x, ti, 0, mmu);
	return true;
}

static bool emit_sysret(struct tctx *x, struct tinsn *ti)
{
	struct emit *e = &x->e;

	if (x->c->cpl || ti->d.i.operand_width != 64)
		return false;
	flags_spill(x, ti);
	check_mode(x, ti, 3, MMU_USER);
	slow_if_irq(x, ti);
	slow_unless_canonical(x, ti, H_RCX);
	e_mov(e, T0, H_R11);
	E(e, 0xa9); /* test eax, */
	e4(e, ODD_FLAGS);
	slow_if(x, ti, CC_NE);
	e_r_imm(e, 4, T0, SYSRET_FLAGS);
	e_r_imm(e, 1, T0, 2);
	put_flags(x);
	e_gs_load(e, T0, GS(msr.star));
	e_r_shift(e, 5, T0, 48);
	E(e, 0x83, 0xc0, 0x08); /* add eax, 8 */
	e_r_imm(e, 1, T0, 3);
	e_gs_store_ax(e, GS_SEG(SEG_SS, sel));
	e_gs_load(e, T0, GS(msr.star));
	e_r_shift(e, 5, T0, 48);
	E(e, 0x83, 0xc0, 0x10); /* add eax, 16 */
	e_r_imm(e, 1, T0, 3);
	e_gs_store_ax(e, GS_SEG(SEG_CS, sel));
	store_seg(e, SEG_CS, CODE64 | USER);
	store_seg(e, SEG_SS, DATA | USER);
	e_mov(e, T0, H_RCX);
	leave(x, ti, 3, MMU_USER);
	return true;
}

bool emit_gate(struct tctx *x, struct tinsn *ti)
{
	if (!x->wide || ti->in.fn == op_undefined)
		return false;
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL: return emit_syscall(x, ti);
	case ZYDIS_MNEMONIC_SYSRET: return emit_sysret(x, ti);
	default: return false;
	}
}
