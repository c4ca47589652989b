/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xsave.c - saving and loading the whole floating-point state
 *
 * Only components 0 to 2 (x87, SSE, AVX) exist, and AVX is at byte 576 in
 * the standard and in the compacted format, so both share one layout.
 */
#include <errno.h>
#include <string.h>

#include "hv/soft/x86/fpu.h"

enum { XC_X87 = 1, XC_SSE = 2, XC_AVX = 4, XC_ALL = 7 };
#define XCOMP_COMPACT BIT(63)

static void init_x87(uint8_t *f)
{
	memset(f, 0, FX_MXCSR);
	memset(f + FX_ST, 0, FX_XMM - FX_ST);
	fx_put16(f, FX_FCW, 0x37f);
}

/* ES and B follow from the flags and masks; the processor does the same. */
static void fix_fsw(uint8_t *f)
{
	uint16_t fsw = fx16(f, FX_FSW) & ~(FSW_ES | FSW_B);

	if (fsw & ~fx16(f, FX_FCW) & 0x3f)
		fsw |= FSW_ES | FSW_B;
	fx_put16(f, FX_FSW, fsw);
}

static void load_x87(uint8_t *f, const uint8_t *from)
{
	memcpy(f, from, FX_MXCSR);
	f[FX_FTW + 1] = 0;
	for (unsigned i = 0; i < 8; i++)
		memcpy(f + FX_ST + 16 * i, from + FX_ST + 16 * i, 10);
	fix_fsw(f);
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n--)
		if (*p++)
			return false;
	return true;
}

static unsigned in_use(const uint8_t *f)
{
	unsigned bv = 0;

	if (fx16(f, FX_FCW) != 0x37f || !all_zero(f + 2, FX_MXCSR - 2) ||
	    !all_zero(f + FX_ST, FX_XMM - FX_ST))
		bv |= XC_X87;
	if (fx32(f, FX_MXCSR) != MXCSR_INIT || !all_zero(f + FX_XMM, 256))
		bv |= XC_SSE;
	if (!all_zero(f + FX_YMM, 256))
		bv |= XC_AVX;
	return bv;
}

void fpu_reset(struct cpu *c)
{
	memset(c->fpu, 0, sizeof(c->fpu));
	init_x87(c->fpu);
	fx_put32(c->fpu, FX_MXCSR, MXCSR_INIT);
	fx_put32(c->fpu, FX_MXCSR_MASK, MXCSR_VALID);
}

void fpu_get(struct cpu *c, uint8_t *xsave)
{
	memset(xsave, 0, HV_FPU_SIZE);
	memcpy(xsave, c->fpu, 512);
	memcpy(xsave + FX_YMM, c->fpu + FX_YMM, 256);
	fx_put32(xsave, FX_MXCSR_MASK, MXCSR_VALID);
	fx_put64(xsave, FX_XSTATE_BV, in_use(c->fpu));
}

int fpu_set(struct cpu *c, const uint8_t *xsave)
{
	uint64_t bv = fx64(xsave, FX_XSTATE_BV);
	uint32_t mxcsr = fx32(xsave, FX_MXCSR);

	if (bv & ~(uint64_t)XC_ALL || fx64(xsave, FX_XCOMP_BV) ||
	    mxcsr & ~MXCSR_VALID)
		return -EINVAL;
	/* A zeroed area means the initial state, not MXCSR 0. */
	if (!(bv & (XC_SSE | XC_AVX)) && !mxcsr)
		mxcsr = MXCSR_INIT;
	fpu_reset(c);
	if (bv & XC_X87)
		load_x87(c->fpu, xsave);
	fx_put32(c->fpu, FX_MXCSR, mxcsr);
	if (bv & XC_SSE)
		memcpy(c->fpu + FX_XMM, xsave + FX_XMM, 256);
	if (bv & XC_AVX)
		memcpy(c->fpu + FX_YMM, xsave + FX_YMM, 256);
	return 0;
}

bool fpu_set_xcr0(struct cpu *c, uint64_t v)
{
	if (!(v & XC_X87) || v & ~(uint64_t)XC_ALL)
		return false;
	if (v & XC_AVX && !(v & XC_SSE))
		return false;
	/* AVX instructions are run by the host's. */
	if (v & XC_AVX && !__builtin_cpu_supports("avx"))
		return false;
	c->xcr0 = v;
	return true;
}

/* -- FXSAVE, FXRSTOR ------------------------------------------------------ */

static void check_fx(struct cpu *c)
{
	if (c->cr0 & CR0_EM)
		x86_ud(c);
	if (c->cr0 & CR0_TS)
		x86_nm(c);
}

/* Bytes of the area in use: XMM8-15 exist in 64-bit mode only. */
static unsigned fx_size(struct cpu *c)
{
	if (c->mode != MODE_64)
		return FX_XMM + 8 * 16;
	return c->efer & EFER_FFXSR && !c->cpl ? FX_XMM : FX_XMM + 16 * 16;
}

static uint64_t area(struct cpu *c, const struct insn *in, unsigned size,
		     bool write)
{
	uint64_t lin = ea_linear(c, in, size, write);

	if (lin & (size == 512 ? 15 : 63))
		x86_gp(c, 0);
	return lin;
}

/* Without REX.W the pointers are 32 bits wide, with a selector above. */
static void cut_pointers(struct cpu *c, const struct insn *in, uint8_t *f)
{
	if (c->mode != MODE_64 || in->imm2)
		return;
	fx_put32(f, FX_FIP + 4, 0);
	fx_put32(f, FX_FDP + 4, 0);
}

static void op_fxsave(struct cpu *c, const struct insn *in)
{
	uint8_t buf[512];
	uint64_t lin;

	check_fx(c);
	lin = area(c, in, 512, true);
	memcpy(buf, c->fpu, sizeof(buf));
	fx_put32(buf, FX_MXCSR_MASK, MXCSR_VALID);
	cut_pointers(c, in, buf);
	mem_write(c, in->seg, lin, buf, fx_size(c));
}

static void op_fxrstor(struct cpu *c, const struct insn *in)
{
	uint8_t buf[512];
	unsigned size = fx_size(c);
	uint64_t lin;

	check_fx(c);
	lin = area(c, in, 512, false);
	mem_read(c, in->seg, lin, buf, size);
	if (fx32(buf, FX_MXCSR) & ~MXCSR_VALID)
		x86_gp(c, 0);
	cut_pointers(c, in, buf);
	load_x87(c->fpu, buf);
	fx_put32(c->fpu, FX_MXCSR, fx32(buf, FX_MXCSR));
	memcpy(c->fpu + FX_XMM, buf + FX_XMM, size - FX_XMM);
}

/* -- XSAVE family --------------------------------------------------------- */

static uint64_t check_x(struct cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		x86_ud(c);
	if (c->cr0 & CR0_TS)
		x86_nm(c);
	return c->xcr0 & (c->gpr[R_RDX] << 32 | (uint32_t)c->gpr[R_RAX]);
}

static unsigned nvec(struct cpu *c)
{
	return c->mode == MODE_64 ? 16 * 16 : 8 * 16;
}

/* put: the components to be written. */
static void store(struct cpu *c, const struct insn *in, uint64_t lin,
		  uint64_t put, bool mxcsr)
{
	if (put & XC_X87) {
		uint8_t head[FX_MXCSR];

		memcpy(head, c->fpu, sizeof(head));
		cut_pointers(c, in, head);
		mem_write(c, in->seg, lin, head, sizeof(head));
		mem_write(c, in->seg, lin + FX_ST, c->fpu + FX_ST,
			  FX_XMM - FX_ST);
	}
	if (mxcsr) {
		fx_put32(c->fpu, FX_MXCSR_MASK, MXCSR_VALID);
		mem_write(c, in->seg, lin + FX_MXCSR, c->fpu + FX_MXCSR, 8);
	}
	if (put & XC_SSE)
		mem_write(c, in->seg, lin + FX_XMM, c->fpu + FX_XMM, nvec(c));
	if (put & XC_AVX)
		mem_write(c, in->seg, lin + FX_YMM, c->fpu + FX_YMM, nvec(c));
}

static void xsave_standard(struct cpu *c, const struct insn *in, bool opt)
{
	uint64_t rfbm = check_x(c), use = in_use(c->fpu), bv, lin;
	unsigned size = rfbm & XC_AVX ? FX_END : FX_YMM;

	lin = area(c, in, size, true);
	mem_check(c, in->seg, lin, size, true);
	bv = ld64(c, in->seg, lin + FX_XSTATE_BV);
	store(c, in, lin, opt ? rfbm & use : rfbm, rfbm & (XC_SSE | XC_AVX));
	st64(c, in->seg, lin + FX_XSTATE_BV, (bv & ~rfbm) | (use & rfbm));
}

static void op_xsave(struct cpu *c, const struct insn *in)
{
	xsave_standard(c, in, false);
}

static void op_xsaveopt(struct cpu *c, const struct insn *in)
{
	xsave_standard(c, in, true);
}

static void op_xsavec(struct cpu *c, const struct insn *in)
{
	uint64_t rfbm = check_x(c), put = rfbm & in_use(c->fpu), lin;
	unsigned size = rfbm & XC_AVX ? FX_END : FX_YMM;
	uint64_t head[8] = { put, rfbm | XCOMP_COMPACT };

	lin = area(c, in, size, true);
	mem_check(c, in->seg, lin, size, true);
	store(c, in, lin, put, put & XC_SSE);
	mem_write(c, in->seg, lin + FX_XSTATE_BV, head, 16);
}

static void op_xsaves(struct cpu *c, const struct insn *in)
{
	check_x(c);
	if (c->cpl)
		x86_gp(c, 0);
	op_xsavec(c, in); /* IA32_XSS is 0 */
}

static bool header_ok(struct cpu *c, const uint8_t *head, bool supervisor)
{
	uint64_t bv = fx64(head, 0), comp = fx64(head, 8);

	if (!(comp & XCOMP_COMPACT))
		return !supervisor && !comp && !fx64(head, 16) &&
		       !(bv & ~c->xcr0);
	comp &= ~XCOMP_COMPACT;
	return !(comp & ~c->xcr0) && !(bv & ~comp) && all_zero(head + 16, 48);
}

static void restore(struct cpu *c, const struct insn *in, bool supervisor)
{
	uint64_t rfbm = check_x(c), lin, bv;
	uint8_t buf[FX_END] __attribute__((aligned(16)));
	uint32_t mxcsr;
	bool compact;

	if (supervisor && c->cpl)
		x86_gp(c, 0);
	lin = area(c, in, FX_YMM, false);
	mem_read(c, in->seg, lin, buf, FX_YMM);
	if (!header_ok(c, buf + FX_XSTATE_BV, supervisor))
		x86_gp(c, 0);
	bv = fx64(buf, FX_XSTATE_BV);
	compact = fx64(buf, FX_XCOMP_BV) & XCOMP_COMPACT;

	mxcsr = fx32(c->fpu, FX_MXCSR);
	if (compact && rfbm & XC_SSE)
		mxcsr = bv & XC_SSE ? fx32(buf, FX_MXCSR) : MXCSR_INIT;
	else if (!compact && rfbm & (XC_SSE | XC_AVX))
		mxcsr = fx32(buf, FX_MXCSR);
	if (mxcsr & ~MXCSR_VALID)
		x86_gp(c, 0);
	if (rfbm & bv & XC_AVX)
		mem_read(c, in->seg, lin + FX_YMM, buf + FX_YMM, nvec(c));

	cut_pointers(c, in, buf);
	if (rfbm & bv & XC_X87)
		load_x87(c->fpu, buf);
	else if (rfbm & XC_X87)
		init_x87(c->fpu);
	fx_put32(c->fpu, FX_MXCSR, mxcsr);
	if (rfbm & bv & XC_SSE)
		memcpy(c->fpu + FX_XMM, buf + FX_XMM, nvec(c));
	else if (rfbm & XC_SSE)
		memset(c->fpu + FX_XMM, 0, nvec(c));
	if (rfbm & bv & XC_AVX)
		memcpy(c->fpu + FX_YMM, buf + FX_YMM, nvec(c));
	else if (rfbm & XC_AVX)
		memset(c->fpu + FX_YMM, 0, nvec(c));
}

static void op_xrstor(struct cpu *c, const struct insn *in)
{
	restore(c, in, false);
}

static void op_xrstors(struct cpu *c, const struct insn *in)
{
	restore(c, in, true);
}

static insn_fn *handler(const struct decoded *d)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64: return op_fxsave;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: return op_fxrstor;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64: return op_xsave;
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64: return op_xsaveopt;
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64: return op_xsavec;
	case ZYDIS_MNEMONIC_XSAVES:
	case ZYDIS_MNEMONIC_XSAVES64: return op_xsaves;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64: return op_xrstor;
	case ZYDIS_MNEMONIC_XRSTORS:
	case ZYDIS_MNEMONIC_XRSTORS64: return op_xrstors;
	default: return NULL;
	}
}

insn_fn *bind_xsave(const struct decoded *d, struct insn *in)
{
	insn_fn *fn = handler(d);

	if (fn)
		in->imm2 = d->mode == MODE_64 && d->i.raw.rex.W;
	return fn;
}
