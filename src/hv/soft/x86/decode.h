/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.h - what the binders see of an instruction, and operand helpers
 */
#ifndef SOFT_DECODE_H
#define SOFT_DECODE_H

#include <Zydis/Zydis.h>

#include "hv/soft/soft.h"

/*
 * What of Zydis' structures is used, under the same names, in a quarter of
 * the room: tables of them are looked at for each instruction.
 */
struct operand {
	uint8_t type, encoding, visibility, actions;
	uint16_t size; /* in bits */
	bool has_disp; /* it is 0 without */
	union {
		struct {
			uint16_t value;
		} reg;
		struct {
			uint8_t type, scale;
			uint16_t segment, base, index;
			int64_t disp;
		} mem;
		struct {
			uint16_t segment;
			uint32_t offset;
		} ptr;
		struct {
			union {
				uint64_t u;
				int64_t s;
			} value;
		} imm;
	};
};

struct instruction {
	uint64_t attributes;
	uint16_t mnemonic;
	uint16_t flags_tested, flags_changed; /* of FL_ARITH; or undefined */
	uint8_t length, encoding, opcode_map, opcode;
	uint8_t machine_mode, operand_width, address_width;
	uint8_t operand_count, operand_count_visible;
	uint8_t rep; /* the last of F2 and F3 */
	bool osize, lock;
	bool plain; /* general registers, memory and flags, no more */
	bool upper; /* it names one of r13 to r15 */
	struct {
		uint8_t category, isa_ext, branch_type, exception_class;
		uint16_t isa_set;
	} meta;
	struct {
		struct {
			uint8_t W : 1, B : 1;
		} rex;
		struct {
			uint8_t W : 1, L : 1, pp : 2;
			uint8_t m_mmmm, offset;
		} vex;
		struct {
			uint8_t reg, rm, offset;
		} modrm;
		struct {
			uint8_t scale;
		} sib;
		struct {
			uint8_t size, offset;
		} disp;
		struct {
			bool is_signed, is_relative;
			uint8_t size, offset;
			union {
				uint64_t u;
				int64_t s;
			} value;
		} imm[2];
	} raw;
};

/*
 * So many operands are zeroes when the instruction has less; of those behind
 * only what it has counts.
 */
enum { DECODED_OPS = 5 };

struct decoded {
	struct instruction i;
	struct operand op[ZYDIS_MAX_OPERAND_COUNT];
	enum cpu_mode mode;
};

/* view.c: take over what Zydis has found; operands when the rest has been. */
void view_instruction(struct instruction *to, const ZydisDecodedInstruction *i);
void view_operands(struct decoded *d, const ZydisDecodedOperand *op);

uint8_t reg_number_other(ZydisRegister reg);

/* Number (as in struct insn.reg) of a general register of any size. */
static inline uint8_t reg_number(ZydisRegister reg)
{
	/* Those of 64 and 32 bits, with which most is done. */
	if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
		return (uint8_t)(reg - ZYDIS_REGISTER_RAX);
	if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
		return (uint8_t)(reg - ZYDIS_REGISTER_EAX);
	return reg_number_other(reg);
}

/* Zydis counts those of 8, 16, 32 and 64 bits in this order. */
static inline bool is_gpr(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_R15;
}

/* Zydis' class of a register: the frequent ones need no call. */
static inline ZydisRegisterClass class_of(ZydisRegister r)
{
	if (r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15)
		return ZYDIS_REGCLASS_GPR64;
	if (r >= ZYDIS_REGISTER_EAX && r <= ZYDIS_REGISTER_R15D)
		return ZYDIS_REGCLASS_GPR32;
	if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_R15B)
		return ZYDIS_REGCLASS_GPR8;
	if (r >= ZYDIS_REGISTER_FLAGS && r <= ZYDIS_REGISTER_RFLAGS)
		return ZYDIS_REGCLASS_FLAGS;
	if (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM31)
		return ZYDIS_REGCLASS_XMM;
	return ZydisRegisterGetClass(r);
}

static inline bool is_gpr_op(const struct operand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && is_gpr(op->reg.value);
}

/* -- used by handlers ----------------------------------------------------- */

static inline uint8_t *r8(struct cpu *c, unsigned n)
{
	uint8_t *p = (uint8_t *)&c->gpr[n & 15];

	return n < 16 ? p : (uint8_t *)&c->gpr[n - 16] + 1;
}

static inline uint64_t get_reg(struct cpu *c, unsigned n, unsigned size)
{
	switch (size) {
	case 1: return *r8(c, n);
	case 2: return (uint16_t)c->gpr[n];
	case 4: return (uint32_t)c->gpr[n];
	default: return c->gpr[n];
	}
}

static inline void set_reg(struct cpu *c, unsigned n, unsigned size, uint64_t v)
{
	switch (size) {
	case 1: *r8(c, n) = (uint8_t)v; break;
	case 2: c->gpr[n] = (c->gpr[n] & ~0xffffull) | (uint16_t)v; break;
	case 4: c->gpr[n] = (uint32_t)v; break;
	default: c->gpr[n] = v;
	}
}

/* Offset of the memory operand inside its segment. */
static inline uint64_t ea_offset(struct cpu *c, const struct insn *in)
{
	uint64_t a = c->gpr[in->base] + (c->gpr[in->index] << in->scale) +
		     (uint64_t)in->disp;

	if (in->adsize == 8)
		return a;
	return in->adsize == 4 ? (uint32_t)a : (uint16_t)a;
}

/* sys.c: limit and type checks outside flat segments; faults. */
uint64_t seg_linear_slow(struct cpu *c, unsigned seg, uint64_t off,
			 unsigned size, bool write);

/* Linear address of [off, off + size) in seg. */
static inline uint64_t seg_linear(struct cpu *c, unsigned seg, uint64_t off,
				  unsigned size, bool write)
{
	if (likely(c->mode == MODE_64)) {
		if (seg == SEG_FS || seg == SEG_GS)
			off += c->seg[seg].base;
		return off;
	}
	return seg_linear_slow(c, seg, off, size, write);
}

static inline uint64_t ea_linear(struct cpu *c, const struct insn *in,
				 unsigned size, bool write)
{
	return seg_linear(c, in->seg, ea_offset(c, in), size, write);
}

static inline uint64_t ld_size(struct cpu *c, unsigned seg, uint64_t lin,
			       unsigned size)
{
	switch (size) {
	case 1: return ld8(c, seg, lin);
	case 2: return ld16(c, seg, lin);
	case 4: return ld32(c, seg, lin);
	default: return ld64(c, seg, lin);
	}
}

static inline void st_size(struct cpu *c, unsigned seg, uint64_t lin,
			   unsigned size, uint64_t v)
{
	switch (size) {
	case 1: st8(c, seg, lin, (uint8_t)v); break;
	case 2: st16(c, seg, lin, (uint16_t)v); break;
	case 4: st32(c, seg, lin, (uint32_t)v); break;
	default: st64(c, seg, lin, v);
	}
}

/* Stack width in bytes: 8 in long mode, else SS.B. */
static inline unsigned stack_size(struct cpu *c)
{
	if (c->mode == MODE_64)
		return 8;
	return c->seg[SEG_SS].access & SEG_A_DB ? 4 : 2;
}

/* Zydis as every decoder of guest code has it. */
void decode_init(ZydisDecoder *z, enum cpu_mode mode);

/* decode_insn(), and Zydis' view of it; d->i.length is 0 when undecodable. */
int decode_full(struct cpu *c, const uint8_t *code, unsigned avail,
		struct insn *in, struct decoded *d);

/*
 * form.c: as those two, when an instruction of the same form was decoded
 * before; false: it was not.  form_keep() keeps what decode_full() has found.
 */
struct forms *forms_new(void);
void forms_free(struct forms *f);
size_t forms_size(void); /* of what forms_new() gives */
bool form_insn(struct cpu *c, const uint8_t *code, unsigned avail,
	       struct insn *in);
bool form_full(struct cpu *c, const uint8_t *code, unsigned avail,
	       struct insn *in, struct decoded *d);
void form_keep(struct cpu *c, const uint8_t *code, unsigned avail,
	       const struct insn *in, const struct decoded *d);
/* The instruction without its operands, until the next call; NULL: unknown. */
const struct instruction *form_look(struct cpu *c, const uint8_t *code,
				    unsigned avail);

/* Handlers of the decoder's own. */
void op_undefined(struct cpu *c, const struct insn *in);

#endif /* SOFT_DECODE_H */
