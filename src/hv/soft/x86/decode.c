/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.c - instruction bytes to struct insn, with Zydis
 */
#include "hv/soft/x86/decode.h"
#include "hv/soft/x86/int.h"

enum { MAX_INSN = 15 };

void op_undefined(struct cpu *c, const struct insn *in)
{
	x86_ud(c);
}

/* More than 15 bytes, all of them meaningful so far. */
static void op_too_long(struct cpu *c, const struct insn *in)
{
	x86_gp(c, 0);
}

uint8_t reg_number_other(ZydisRegister reg)
{
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
		return (uint8_t)(reg - ZYDIS_REGISTER_AL);
	if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
		return (uint8_t)(16 + reg - ZYDIS_REGISTER_AH);
	if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
		return (uint8_t)(4 + reg - ZYDIS_REGISTER_SPL);
	if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS)
		return (uint8_t)(reg - ZYDIS_REGISTER_ES);
	return (uint8_t)ZydisRegisterGetId(reg);
}

static bool is_class(const struct operand *op, ZydisRegisterClass cl)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
	       ZydisRegisterGetClass(op->reg.value) == cl;
}

/* What may change the mode, the mapping of code or the interrupt state. */
static bool ends_block(const struct decoded *d)
{
	switch (d->i.meta.category) {
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_VTX: return true;
	default: break;
	}
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_SYSENTER:
	case ZYDIS_MNEMONIC_SYSEXIT:
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_LMSW:
	case ZYDIS_MNEMONIC_CLTS:
	case ZYDIS_MNEMONIC_INVLPG:
	case ZYDIS_MNEMONIC_INVPCID:
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD:
	case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT:
	case ZYDIS_MNEMONIC_LLDT:
	case ZYDIS_MNEMONIC_LTR:
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_XSETBV:
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RSM:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2: return true;
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_POP:
		return is_class(&d->op[0], ZYDIS_REGCLASS_SEGMENT) ||
		       is_class(&d->op[0], ZYDIS_REGCLASS_CONTROL) ||
		       is_class(&d->op[0], ZYDIS_REGCLASS_DEBUG);
	default: return false;
	}
}

static void fill_mem(const struct operand *op, struct insn *in)
{
	ZydisRegister b = op->mem.base, x = op->mem.index;

	in->flags |= IN_MEM;
	if (b == ZYDIS_REGISTER_RIP || b == ZYDIS_REGISTER_EIP)
		in->base = R_NEXT;
	else if (b != ZYDIS_REGISTER_NONE)
		in->base = reg_number(b);
	/* An index of a VSIB operand is a vector register's number. */
	if (x != ZYDIS_REGISTER_NONE) {
		in->index = reg_number(x);
		if (op->mem.scale > 1)
			in->scale = (uint8_t)__builtin_ctz(op->mem.scale);
	}
	in->disp = op->mem.disp;
	in->seg = SEG_DS;
	if (op->mem.segment != ZYDIS_REGISTER_NONE)
		in->seg = reg_number(op->mem.segment);
	in->memsize = op->size / 8 > 255 ? 0 : (uint8_t)(op->size / 8);
}

static void fill(const struct decoded *d, struct insn *in)
{
	const struct operand *first = &d->op[0];
	unsigned nreg = 0, nimm = 0, width = d->i.operand_width;
	unsigned n = d->i.operand_count_visible;

	in->mnemonic = (uint16_t)d->i.mnemonic;
	in->len = d->i.length;
	in->adsize = d->i.address_width / 8;
	in->nops = (uint8_t)n;
	if (d->i.attributes & ZYDIS_ATTRIB_HAS_LOCK)
		in->flags |= IN_LOCK;
	if (d->i.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
		in->flags |= IN_REP;
	if (d->i.attributes & ZYDIS_ATTRIB_HAS_REPNE)
		in->flags |= IN_REPNE;

	/* The port, not the datum, comes first in OUT. */
	if (d->i.mnemonic == ZYDIS_MNEMONIC_OUT)
		first = &d->op[1];
	/* Of a pushed segment register or a far pointer the slot counts. */
	if (n && first->type != ZYDIS_OPERAND_TYPE_POINTER &&
	    d->i.mnemonic != ZYDIS_MNEMONIC_PUSH &&
	    d->i.mnemonic != ZYDIS_MNEMONIC_POP &&
	    first->type != ZYDIS_OPERAND_TYPE_IMMEDIATE &&
	    !(first->type == ZYDIS_OPERAND_TYPE_MEMORY &&
	      d->i.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE))
		width = first->size;
	in->opsize = (uint8_t)(width / 8);

	for (unsigned i = 0; i < n; i++) {
		const struct operand *op = &d->op[i];

		switch (op->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			if (nreg == 0)
				in->reg = reg_number(op->reg.value);
			else if (nreg == 1)
				in->rm = reg_number(op->reg.value);
			else if (nreg == 2)
				in->imm2 = reg_number(op->reg.value);
			nreg++;
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			if (!(in->flags & IN_MEM))
				fill_mem(op, in);
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			if (nimm == 0)
				in->imm = op->imm.value.u;
			else if (nreg < 3)
				in->imm2 = (uint8_t)op->imm.value.u;
			nimm++;
			break;
		case ZYDIS_OPERAND_TYPE_POINTER:
			in->imm = op->ptr.offset;
			break;
		default: break;
		}
	}
	if (ends_block(d))
		in->flags |= IN_ENDS;
}

void decode_init(ZydisDecoder *z, enum cpu_mode mode)
{
	ZydisMachineMode m = ZYDIS_MACHINE_MODE_REAL_16;
	ZydisStackWidth w = ZYDIS_STACK_WIDTH_16;

	switch (mode) {
	case MODE_64:
		m = ZYDIS_MACHINE_MODE_LONG_64;
		w = ZYDIS_STACK_WIDTH_64;
		break;
	case MODE_C32:
		m = ZYDIS_MACHINE_MODE_LONG_COMPAT_32;
		w = ZYDIS_STACK_WIDTH_32;
		break;
	case MODE_P32:
		m = ZYDIS_MACHINE_MODE_LEGACY_32;
		w = ZYDIS_STACK_WIDTH_32;
		break;
	case MODE_C16: m = ZYDIS_MACHINE_MODE_LONG_COMPAT_16; break;
	case MODE_P16: m = ZYDIS_MACHINE_MODE_LEGACY_16; break;
	case MODE_REAL:
	case MODE_VM86: break;
	}
	ZydisDecoderInit(z, m, w);
	/* Without MPX and CET their opcodes are NOPs with an operand, and 3E
	 * before an indirect branch is DS, not NOTRACK. */
	ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	/* And WBNOINVD is WBINVD. */
	ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
}

static int undecodable(struct insn *in, insn_fn *fn)
{
	in->fn = fn;
	in->len = 1;
	in->flags = IN_ENDS;
	return -1;
}

/*
 * Zydis 4.0 takes [disp32 + index] for [r13d + index], without the rest of the
 * instruction, when the address is of 32 bits and the extension bit of the
 * base is set.  The bit means nothing there: code gets it cleared.
 */
static bool drop_base_bit(const ZydisDecodedInstruction *i, enum cpu_mode mode,
			  uint8_t *code)
{
	if (mode != MODE_64 || i->address_width != 32 ||
	    !(i->attributes & ZYDIS_ATTRIB_HAS_SIB) || i->raw.modrm.mod ||
	    i->raw.sib.base != 5)
		return false;
	if (i->attributes & ZYDIS_ATTRIB_HAS_REX && i->raw.rex.B) {
		code[i->raw.rex.offset] &= 0xfe;
		return true;
	}
	if (i->attributes & ZYDIS_ATTRIB_HAS_VEX &&
	    code[i->raw.vex.offset] == 0xc4 &&
	    !(code[i->raw.vex.offset + 1] & 0x20)) {
		code[i->raw.vex.offset + 1] |= 0x20;
		return true;
	}
	return false;
}

int decode_insn(struct cpu *c, const uint8_t *code, unsigned avail,
		struct insn *in)
{
	struct decoded d;

	if (form_insn(c, code, avail, in))
		return 0;
	return decode_full(c, code, avail, in, &d);
}

/* 0, -1: raises when run, -2: needs more than the avail bytes. */
int decode_full(struct cpu *c, const uint8_t *code, unsigned avail,
		struct insn *in, struct decoded *d)
{
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction i;
	uint8_t plain[MAX_INSN];
	ZydisDecoder z;
	ZyanStatus s;

	if (form_full(c, code, avail, in, d))
		return 0;
	memset(in, 0, sizeof(*in));
	memset(&d->i, 0, sizeof(d->i));
	in->base = in->index = R_ZERO;
	in->seg = SEG_DS;
	in->cpu_mode = (uint8_t)c->mode;
	in->fn = op_undefined;
	decode_init(&z, c->mode);
	if (avail > MAX_INSN)
		avail = MAX_INSN;
	s = ZydisDecoderDecodeFull(&z, code, avail, &i, op);
	d->mode = c->mode;
	if (ZYAN_SUCCESS(s)) {
		memcpy(plain, code, avail);
		if (drop_base_bit(&i, c->mode, plain)) {
			code = plain;
			s = ZydisDecoderDecodeFull(&z, code, avail, &i, op);
		}
	}
	if (s == ZYDIS_STATUS_NO_MORE_DATA && avail < MAX_INSN)
		return -2;
	if (s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ||
	    s == ZYDIS_STATUS_NO_MORE_DATA)
		return undecodable(in, op_too_long);
	if (!ZYAN_SUCCESS(s))
		return undecodable(in, op_undefined);

	view_instruction(&d->i, &i);
	view_operands(d, op);
	memcpy(in->bytes, code, d->i.length);
	fill(d, in);
	in->fn = bind_int(d, in);
	if (!in->fn)
		in->fn = bind_sys(d, in);
	if (!in->fn)
		in->fn = bind_fpu(d, in);
	if (!in->fn) {
		in->fn = op_undefined;
		in->flags |= IN_ENDS;
	}
	form_keep(c, code, avail, in, d);
	return 0;
}
