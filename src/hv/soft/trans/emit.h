/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emit.h - writing host instructions
 *
 * Code is written through one mapping (p) and runs in another; both are laid
 * out alike, so relative distances are the same and only host addresses of
 * data and functions are absolute.  Running out of room sets full and writes
 * no more: the caller looks once, at the end.
 */
#ifndef SOFT_TRANS_EMIT_H
#define SOFT_TRANS_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct emit {
	uint8_t *p, *end;
	bool full;
};

/* Host registers by their number in encodings. */
enum {
	H_RAX,
	H_RCX,
	H_RDX,
	H_RBX,
	H_RSP,
	H_RBP,
	H_RSI,
	H_RDI,
	H_R8,
	H_R9,
	H_R10,
	H_R11,
	H_R12,
	H_R13,
	H_R14,
	H_R15
};

static inline void e1(struct emit *e, uint8_t b)
{
	if (e->p < e->end)
		*e->p++ = b;
	else
		e->full = true;
}

static inline void e_bytes(struct emit *e, const void *b, unsigned n)
{
	if ((size_t)(e->end - e->p) < n) {
		e->full = true;
		return;
	}
	memcpy(e->p, b, n);
	e->p += n;
}

static inline void e4(struct emit *e, uint32_t v)
{
	e_bytes(e, &v, 4);
}

static inline void e8(struct emit *e, uint64_t v)
{
	e_bytes(e, &v, 8);
}

#define E(e, ...) \
	do { \
		static const uint8_t b_[] = { __VA_ARGS__ }; \
		e_bytes(e, b_, sizeof(b_)); \
	} while (0)

/* ModRM and what follows for [base + index * 2^scale + disp]; base or index
 * may be -1 (none). */
static inline void e_mem(struct emit *e, unsigned reg, int base, int index,
			 unsigned scale, int32_t disp)
{
	uint8_t r = (uint8_t)((reg & 7) << 3);

	if (base < 0) {
		e1(e, r | 4);
		e1(e, (uint8_t)(scale << 6 | (index < 0 ? 4 : index & 7) << 3 |
				5));
		e4(e, (uint32_t)disp);
		return;
	}
	if (index < 0 && (base & 7) != 4) {
		if (!disp && (base & 7) != 5) {
			e1(e, r | (uint8_t)(base & 7));
		} else if (disp == (int8_t)disp) {
			e1(e, 0x40 | r | (uint8_t)(base & 7));
			e1(e, (uint8_t)disp);
		} else {
			e1(e, 0x80 | r | (uint8_t)(base & 7));
			e4(e, (uint32_t)disp);
		}
		return;
	}
	if (!disp && (base & 7) != 5)
		e1(e, r | 4);
	else
		e1(e, (disp == (int8_t)disp ? 0x40 : 0x80) | r | 4);
	e1(e, (uint8_t)(scale << 6 | (index < 0 ? 4 : index & 7) << 3 |
			(base & 7)));
	if (disp || (base & 7) == 5) {
		if (disp == (int8_t)disp)
			e1(e, (uint8_t)disp);
		else
			e4(e, (uint32_t)disp);
	}
}

static inline uint8_t rex(unsigned w, int reg, int index, int base)
{
	return (uint8_t)(0x40 | w << 3 | (reg > 7) << 2 | (index > 7) << 1 |
			 (base > 7));
}

/* op reg, [base + index << scale + disp]; w: 64-bit operands, else 32-bit */
static inline void e_opw_mem(struct emit *e, unsigned w, uint8_t op,
			     unsigned reg, int base, int index, unsigned scale,
			     int32_t disp)
{
	uint8_t r = rex(w, (int)reg, index, base);

	if (r != 0x40)
		e1(e, r);
	e1(e, op);
	e_mem(e, reg, base, index, scale, disp);
}

/* The same with 64-bit operands. */
static inline void e_op_mem(struct emit *e, uint8_t op, unsigned reg, int base,
			    int index, unsigned scale, int32_t disp)
{
	e_opw_mem(e, 1, op, reg, base, index, scale, disp);
}

/* op rm, reg (64-bit; the form with r/m first, 89 for MOV) */
static inline void e_rr(struct emit *e, uint8_t op, unsigned rm, unsigned reg)
{
	e1(e, rex(1, (int)reg, -1, (int)rm));
	e1(e, op);
	e1(e, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

static inline void e_mov(struct emit *e, unsigned to, unsigned from)
{
	if (to != from)
		e_rr(e, 0x89, to, from);
}

/* MOV of 32 bits: the upper half becomes 0. */
static inline void e_mov32(struct emit *e, unsigned to, unsigned from)
{
	uint8_t r = rex(0, (int)from, -1, (int)to);

	if (r != 0x40)
		e1(e, r);
	e1(e, 0x89);
	e1(e, (uint8_t)(0xc0 | (from & 7) << 3 | (to & 7)));
}

/* op reg, gs:[off]; w: 64-bit */
static inline void e_gs(struct emit *e, unsigned w, uint8_t op, unsigned reg,
			uint32_t off)
{
	e1(e, 0x65);
	if (w || reg > 7)
		e1(e, rex(w, (int)reg, -1, -1));
	e1(e, op);
	e_mem(e, reg, -1, -1, 0, (int32_t)off);
}

static inline void e_gs_load(struct emit *e, unsigned reg, uint32_t off)
{
	e_gs(e, 1, 0x8b, reg, off);
}

static inline void e_gs_store(struct emit *e, unsigned reg, uint32_t off)
{
	e_gs(e, 1, 0x89, reg, off);
}

/* op reg, gs:[base + off] (64-bit), off of 32 bits */
static inline void e_gs_base(struct emit *e, uint8_t op, unsigned reg,
			     unsigned base, uint32_t off)
{
	e1(e, 0x65);
	e1(e, rex(1, (int)reg, -1, (int)base));
	e1(e, op);
	e1(e, (uint8_t)(0x80 | (reg & 7) << 3 | (base & 7)));
	if ((base & 7) == 4)
		e1(e, 0x24);
	e4(e, off);
}

/* mov dword gs:[off], imm */
static inline void e_gs_imm(struct emit *e, uint32_t off, uint32_t imm)
{
	E(e, 0x65, 0xc7, 0x04, 0x25);
	e4(e, off);
	e4(e, imm);
}

/* mov gs:[off], ax */
static inline void e_gs_store_ax(struct emit *e, uint32_t off)
{
	E(e, 0x65, 0x66, 0x89, 0x04, 0x25);
	e4(e, off);
}

/* test dword gs:[off], imm */
static inline void e_gs_test(struct emit *e, uint32_t off, uint32_t imm)
{
	E(e, 0x65, 0xf7, 0x04, 0x25);
	e4(e, off);
	e4(e, imm);
}

/* movzx reg32, byte or word gs:[off] */
static inline void e_gs_movzx(struct emit *e, bool word, unsigned reg,
			      uint32_t off)
{
	e1(e, 0x65);
	if (reg > 7)
		e1(e, 0x44);
	e1(e, 0x0f);
	e1(e, word ? 0xb7 : 0xb6);
	e_mem(e, reg, -1, -1, 0, (int32_t)off);
}

/* op reg32, imm: 1 OR, 4 AND */
static inline void e_r_imm(struct emit *e, unsigned op, unsigned reg,
			   uint32_t imm)
{
	if (reg > 7)
		e1(e, 0x41);
	e1(e, 0x81);
	e1(e, (uint8_t)(0xc0 | op << 3 | (reg & 7)));
	e4(e, imm);
}

/* shl (4), shr (5) or sar (7) reg, n (64-bit) */
static inline void e_r_shift(struct emit *e, unsigned op, unsigned reg,
			     uint8_t n)
{
	e1(e, rex(1, 0, -1, (int)reg));
	e1(e, 0xc1);
	e1(e, (uint8_t)(0xc0 | op << 3 | (reg & 7)));
	e1(e, n);
}

/* rorx to, from, n (64-bit): of the lower bits, a shift that moves too */
static inline void e_rorx(struct emit *e, unsigned to, unsigned from, uint8_t n)
{
	e1(e, 0xc4);
	e1(e,
	   (uint8_t)((to > 7 ? 0 : 0x80) | 0x40 | (from > 7 ? 0 : 0x20) | 3));
	E(e, 0xfb, 0xf0);
	e1(e, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
	e1(e, n);
}

static inline void e_imm(struct emit *e, unsigned reg, uint64_t v)
{
	if (v == (uint32_t)v) {
		if (reg > 7)
			e1(e, 0x41);
		e1(e, (uint8_t)(0xb8 | (reg & 7)));
		e4(e, (uint32_t)v);
	} else if (v == (uint64_t)(int64_t)(int32_t)v) {
		e1(e, rex(1, 0, -1, (int)reg));
		e1(e, 0xc7);
		e1(e, (uint8_t)(0xc0 | (reg & 7)));
		e4(e, (uint32_t)v);
	} else {
		e1(e, rex(1, 0, -1, (int)reg));
		e1(e, (uint8_t)(0xb8 | (reg & 7)));
		e8(e, v);
	}
}

static inline void e_push(struct emit *e, uint32_t imm)
{
	e1(e, 0x68);
	e4(e, imm);
}

/* jmp/call/jcc rel32: where the distance is written is the result */
static inline uint8_t *e_jmp(struct emit *e)
{
	e1(e, 0xe9);
	e4(e, 0);
	return e->p - 4;
}

static inline uint8_t *e_call(struct emit *e)
{
	e1(e, 0xe8);
	e4(e, 0);
	return e->p - 4;
}

static inline uint8_t *e_jcc(struct emit *e, unsigned cc)
{
	e1(e, 0x0f);
	e1(e, (uint8_t)(0x80 | cc));
	e4(e, 0);
	return e->p - 4;
}

/* Aim the distance at at (written by e_jmp) at to. */
static inline void e_aim(uint8_t *at, const uint8_t *to)
{
	int32_t rel = (int32_t)(to - (at + 4));

	memcpy(at, &rel, 4);
}

static inline void e_jmp_to(struct emit *e, const uint8_t *to)
{
	uint8_t *at = e_jmp(e);

	if (!e->full)
		e_aim(at, to);
}

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS };

#endif /* SOFT_TRANS_EMIT_H */
