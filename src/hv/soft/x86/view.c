/* SPDX-License-Identifier: Apache-2.0 */
/*
 * view.c - what of Zydis' view of an instruction is kept
 */
#include "hv/soft/x86/decode.h"

static void take_operand(struct operand *to, const ZydisDecodedOperand *op)
{
	to->type = (uint8_t)op->type;
	to->encoding = (uint8_t)op->encoding;
	to->visibility = (uint8_t)op->visibility;
	to->actions = op->actions;
	to->size = op->size;
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		to->reg.value = (uint16_t)op->reg.value;
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		to->mem.type = (uint8_t)op->mem.type;
		to->mem.scale = op->mem.scale;
		to->mem.segment = (uint16_t)op->mem.segment;
		to->mem.base = (uint16_t)op->mem.base;
		to->mem.index = (uint16_t)op->mem.index;
		to->has_disp = op->mem.disp.has_displacement;
		if (to->has_disp)
			to->mem.disp = op->mem.disp.value;
		break;
	case ZYDIS_OPERAND_TYPE_POINTER:
		to->ptr.segment = op->ptr.segment;
		to->ptr.offset = op->ptr.offset;
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		to->imm.value.u = op->imm.value.u;
		break;
	default: break;
	}
}

static void take_prefixes(struct instruction *to,
			  const ZydisDecodedInstruction *i)
{
	for (unsigned n = 0; n < i->raw.prefix_count; n++)
		switch (i->raw.prefixes[n].value) {
		case 0x66: to->osize = true; break;
		case 0xf0: to->lock = true; break;
		case 0xf2:
		case 0xf3: to->rep = i->raw.prefixes[n].value; break;
		default: break;
		}
}

static void take_raw(struct instruction *to, const ZydisDecodedInstruction *i)
{
	if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		to->raw.vex.W = i->raw.vex.W & 1;
		to->raw.vex.L = i->raw.vex.L & 1;
		to->raw.vex.pp = i->raw.vex.pp & 3;
		to->raw.vex.m_mmmm = i->raw.vex.m_mmmm;
		to->raw.vex.offset = i->raw.vex.offset;
	} else if (i->attributes & ZYDIS_ATTRIB_HAS_REX) {
		to->raw.rex.W = i->raw.rex.W & 1;
		to->raw.rex.B = i->raw.rex.B & 1;
	}
	to->raw.modrm.reg = i->raw.modrm.reg;
	to->raw.modrm.rm = i->raw.modrm.rm;
	to->raw.modrm.offset = i->raw.modrm.offset;
	to->raw.sib.scale = i->raw.sib.scale;
	to->raw.disp.size = i->raw.disp.size;
	to->raw.disp.offset = i->raw.disp.offset;
	for (unsigned n = 0; n < 2; n++) {
		to->raw.imm[n].is_signed = i->raw.imm[n].is_signed;
		to->raw.imm[n].is_relative = i->raw.imm[n].is_relative;
		to->raw.imm[n].size = i->raw.imm[n].size;
		to->raw.imm[n].offset = i->raw.imm[n].offset;
		to->raw.imm[n].value.u = i->raw.imm[n].value.u;
	}
}

void view_instruction(struct instruction *to, const ZydisDecodedInstruction *i)
{
	const ZydisAccessedFlags *f = i->cpu_flags;

	memset(to, 0, sizeof(*to));
	to->attributes = i->attributes;
	to->mnemonic = (uint16_t)i->mnemonic;
	to->length = i->length;
	to->encoding = (uint8_t)i->encoding;
	to->opcode_map = (uint8_t)i->opcode_map;
	to->opcode = i->opcode;
	to->machine_mode = (uint8_t)i->machine_mode;
	to->operand_width = i->operand_width;
	to->address_width = i->address_width;
	to->operand_count = i->operand_count;
	to->operand_count_visible = i->operand_count_visible;
	to->meta.category = (uint8_t)i->meta.category;
	to->meta.isa_ext = (uint8_t)i->meta.isa_ext;
	to->meta.branch_type = (uint8_t)i->meta.branch_type;
	to->meta.exception_class = (uint8_t)i->meta.exception_class;
	to->meta.isa_set = (uint16_t)i->meta.isa_set;
	if (f) {
		to->flags_tested = (uint16_t)(f->tested & FL_ARITH);
		to->flags_changed = (uint16_t)((f->modified | f->set_0 |
						f->set_1 | f->undefined) &
					       FL_ARITH);
	}
	take_prefixes(to, i);
	take_raw(to, i);
}

/* Of the base set, what every processor has and no mode forbids. */
static bool is_plain(const struct decoded *d)
{
	if (d->i.meta.isa_ext != ZYDIS_ISA_EXT_BASE ||
	    d->i.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	switch (d->i.meta.category) {
	case ZYDIS_CATEGORY_BINARY:
	case ZYDIS_CATEGORY_CMOV:
	case ZYDIS_CATEGORY_DATAXFER:
	case ZYDIS_CATEGORY_LOGICAL:
	case ZYDIS_CATEGORY_ROTATE:
	case ZYDIS_CATEGORY_SETCC:
	case ZYDIS_CATEGORY_SHIFT: break;
	default: return false;
	}
	for (unsigned n = 0; n < d->i.operand_count; n++)
		if (d->op[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    !is_gpr(d->op[n].reg.value) &&
		    class_of(d->op[n].reg.value) != ZYDIS_REGCLASS_FLAGS)
			return false;
	return true;
}

static bool is_upper(ZydisRegister r)
{
	return is_gpr(r) && (reg_number(r) & 15) >= 13;
}

static bool names_upper(const struct operand *op)
{
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER: return is_upper(op->reg.value);
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return is_upper(op->mem.base) || is_upper(op->mem.index);
	default: return false;
	}
}

void view_operands(struct decoded *d, const ZydisDecodedOperand *op)
{
	memset(d->op, 0, sizeof(d->op));
	for (unsigned n = 0; n < d->i.operand_count; n++)
		take_operand(&d->op[n], &op[n]);
	d->i.plain = is_plain(d);
	for (unsigned n = 0; n < d->i.operand_count; n++)
		d->i.upper |= names_upper(&d->op[n]);
}

_Static_assert(ZYDIS_CATEGORY_MAX_VALUE < 256 &&
		       ZYDIS_ISA_EXT_MAX_VALUE < 256 &&
		       ZYDIS_EXCEPTION_CLASS_MAX_VALUE < 256,
	       "struct instruction has a byte for each");
