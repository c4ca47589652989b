/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fpu.h - shared by fpu.c (instructions) and xsave.c (whole-state moves)
 *
 * c->fpu is always in the standard XSAVE layout and always complete: a
 * component in its initial state is stored as its initial values, so nothing
 * here ever looks at XSTATE_BV of c->fpu, and the rest of the header is zero
 * (translated code does XSAVE and XRSTOR there).  MXCSR in it is always valid: it is
 * loaded into the host's register.
 */
#ifndef SOFT_X86_FPU_H
#define SOFT_X86_FPU_H

#include "hv/soft/x86/decode.h"

enum {
	FX_FCW = 0,
	FX_FSW = 2,
	FX_FTW = 4,
	FX_FOP = 6,
	FX_FIP = 8,
	FX_FDP = 16,
	FX_MXCSR = 24,
	FX_MXCSR_MASK = 28,
	FX_ST = 32,
	FX_XMM = 160,
	FX_XSTATE_BV = 512,
	FX_XCOMP_BV = 520,
	FX_YMM = 576,
	FX_END = 832
};

enum {
	MXCSR_VALID = 0xffff,
	MXCSR_INIT = 0x1f80,
	MXCSR_FZ = 0x8000,
	XM_PRE = 7, /* IE DE ZE: found before anything is computed */
	XM_UE = 0x10,
	XM_ALL = 0x3f,
	FSW_ES = 0x80,
	FSW_B = 0x8000
};

static inline uint16_t fx16(const uint8_t *p, unsigned off)
{
	uint16_t v;

	memcpy(&v, p + off, 2);
	return v;
}

static inline uint32_t fx32(const uint8_t *p, unsigned off)
{
	uint32_t v;

	memcpy(&v, p + off, 4);
	return v;
}

static inline uint64_t fx64(const uint8_t *p, unsigned off)
{
	uint64_t v;

	memcpy(&v, p + off, 8);
	return v;
}

static inline void fx_put16(uint8_t *p, unsigned off, uint16_t v)
{
	memcpy(p + off, &v, 2);
}

static inline void fx_put32(uint8_t *p, unsigned off, uint32_t v)
{
	memcpy(p + off, &v, 4);
}

static inline void fx_put64(uint8_t *p, unsigned off, uint64_t v)
{
	memcpy(p + off, &v, 8);
}

/* Can this host run it?  Only what not every host of this engine has. */
bool fpu_host_has(const struct decoded *d);

/* FXSAVE and XSAVE families; NULL: not one of them. */
insn_fn *bind_xsave(const struct decoded *d, struct insn *in);

#endif /* SOFT_X86_FPU_H */
