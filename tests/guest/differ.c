/* SPDX-License-Identifier: Apache-2.0 */
/*
 * differ.c - random instructions on the soft engine and on the processor
 *
 * differ [--seed S] [--first N] [--count N] [--engine E] [--mode 64|32]
 *
 * Each case is one user-level instruction with random registers, x87, SSE and
 * AVX state and two pages of data.  The processor runs it inside this process,
 * entered and left by signals, at the linear addresses that the guest sees;
 * the engine runs it at CPL 3.  Both end at an int3 or at a fault, and then
 * everything that the architecture defines must be equal.  A case depends on
 * seed and number only: --first N --count 1 repeats it.
 *
 * With --mode 32 the code segment is one of 32 bits on both sides, and the
 * upper halves of the registers, which then say nothing, hold anything.
 */
#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "user.h"

enum {
	/* Linear, in the guest and here: code, hole, two of data, hole. */
	CODE = USER_CODE,
	DATA = USER_DATA,
	DATA_SIZE = 0x2000,
	AT = 0x800, /* the instruction, inside the code page */
	XSAVE_SIZE = NATIVE_XSAVE,
	SHOW = 3, /* differences per mnemonic in full */
};

#define ARITH 0x8d5u

/* What a case starts with and what it ends with. */
struct state {
	uint64_t gpr[16], rip, rflags, cr2;
	uint8_t fpu[XSAVE_SIZE] __attribute__((aligned(64)));
	uint8_t data[DATA_SIZE];
	uint32_t vector, error;
};

struct insn {
	ZydisDecodedInstruction i;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	uint8_t bytes[16];
};

static ZydisDecoder decoder;
static uint64_t seed = 1, first, number;
static uint64_t rng;
static bool mode32;

static uint64_t rnd(void)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static bool one_in(unsigned n)
{
	return rnd() % n == 0;
}

/* -- which instructions --------------------------------------------------- */

static bool host_has(ZydisISASet set)
{
	uint32_t a, b = 0, c = 0, d = 0;

	__cpuid_count(7, 0, a, b, c, d);
	switch (set) {
	case ZYDIS_ISA_SET_I86:
	case ZYDIS_ISA_SET_I186:
	case ZYDIS_ISA_SET_I386:
	case ZYDIS_ISA_SET_I486:
	case ZYDIS_ISA_SET_I486REAL:
	case ZYDIS_ISA_SET_PENTIUMREAL:
	case ZYDIS_ISA_SET_PENTIUMMMX:
	case ZYDIS_ISA_SET_PPRO:
	case ZYDIS_ISA_SET_CMOV:
	case ZYDIS_ISA_SET_FCMOV:
	case ZYDIS_ISA_SET_LAHF:
	case ZYDIS_ISA_SET_LONGMODE:
	case ZYDIS_ISA_SET_FAT_NOP:
	case ZYDIS_ISA_SET_PREFETCH_NOP:
	case ZYDIS_ISA_SET_PAUSE:
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE2MMX:
	case ZYDIS_ISA_SET_SSEMXCSR:
	case ZYDIS_ISA_SET_SSE_PREFETCH: return true;
	case ZYDIS_ISA_SET_SSE3:
	case ZYDIS_ISA_SET_SSE3X87: return __builtin_cpu_supports("sse3");
	case ZYDIS_ISA_SET_SSSE3:
	case ZYDIS_ISA_SET_SSSE3MMX: return __builtin_cpu_supports("ssse3");
	case ZYDIS_ISA_SET_SSE4: return __builtin_cpu_supports("sse4.1");
	case ZYDIS_ISA_SET_SSE42: return __builtin_cpu_supports("sse4.2");
	case ZYDIS_ISA_SET_POPCNT: return __builtin_cpu_supports("popcnt");
	case ZYDIS_ISA_SET_CMPXCHG16B: return __builtin_cpu_supports("sse3");
	case ZYDIS_ISA_SET_AVX: return __builtin_cpu_supports("avx");
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVX2GATHER: return __builtin_cpu_supports("avx2");
	case ZYDIS_ISA_SET_BMI1: return __builtin_cpu_supports("bmi");
	case ZYDIS_ISA_SET_BMI2:
	case ZYDIS_ISA_SET_MOVBE: /* every one with BMI2 has these */
	case ZYDIS_ISA_SET_LZCNT: return __builtin_cpu_supports("bmi2");
	case ZYDIS_ISA_SET_F16C:
	case ZYDIS_ISA_SET_FMA: return __builtin_cpu_supports("fma");
	case ZYDIS_ISA_SET_AES: return __builtin_cpu_supports("aes");
	case ZYDIS_ISA_SET_PCLMULQDQ: return __builtin_cpu_supports("pclmul");
	case ZYDIS_ISA_SET_AVXAES:
		return __builtin_cpu_supports("aes") &&
		       __builtin_cpu_supports("avx");
	case ZYDIS_ISA_SET_ADOX_ADCX: return b >> 19 & 1;
	case ZYDIS_ISA_SET_SHA: return b >> 29 & 1;
	default: return false;
	}
}

static bool has_rep(const struct insn *in)
{
	for (unsigned k = 0; k < in->i.raw.prefix_count; k++)
		if ((in->i.raw.prefixes[k].value & 0xfe) == 0xf2)
			return true;
	return false;
}

/* What depends on more than the state compared here, or would leave it. */
static bool refused(const struct insn *in)
{
	switch (in->i.mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_SYSENTER:
	case ZYDIS_MNEMONIC_SYSEXIT:
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDPMC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	/* Ports: by the host's permissions. */
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD:
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	/* Writes the last instruction's address: not kept alike. */
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV:
	/* Loads selectors of this host. */
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS: return true;
	default: break;
	}
	if (in->i.meta.category == ZYDIS_CATEGORY_INTERRUPT ||
	    in->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
	    in->i.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED ||
	    in->i.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS ||
	    in->i.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
		return true;
	/* Zydis 4.0 takes the wrong length here (see soft/x86/decode.c). */
	if (in->i.address_width == 32 && in->i.raw.sib.base == 5 &&
	    in->i.raw.modrm.mod == 0 &&
	    in->i.attributes & ZYDIS_ATTRIB_HAS_SIB &&
	    in->i.attributes & (ZYDIS_ATTRIB_HAS_REX | ZYDIS_ATTRIB_HAS_VEX))
		return true;
	/* REP before LOOPcc turns its condition on AMD; nobody defines it. */
	if (in->i.meta.category == ZYDIS_CATEGORY_COND_BR &&
	    in->i.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	    in->i.opcode >= 0xe0 && in->i.opcode <= 0xe3 && has_rep(in))
		return true;
	/* 0x66 cuts the target to 16 bits on AMD, is ignored on Intel. */
	if (in->i.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE &&
	    in->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
		return true;
	/* The register form of PREFETCHW is a NOP on Intel, #UD on AMD. */
	if (in->i.opcode_map == ZYDIS_OPCODE_MAP_0F && in->i.opcode == 0x0d &&
	    in->i.raw.modrm.mod == 3)
		return true;
	/* VPINSRQ and VPEXTRQ in 32-bit code: #UD on AMD, not on Intel. */
	if (mode32 && in->i.raw.vex.W &&
	    (in->i.mnemonic == ZYDIS_MNEMONIC_VPINSRD ||
	     in->i.mnemonic == ZYDIS_MNEMONIC_VPEXTRD))
		return true;
	for (unsigned k = 0; k < in->i.operand_count; k++) {
		const ZydisDecodedOperand *op = &in->op[k];
		ZydisRegisterClass cl;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		cl = ZydisRegisterGetClass(op->reg.value);
		if (cl == ZYDIS_REGCLASS_SEGMENT ||
		    cl == ZYDIS_REGCLASS_CONTROL || cl == ZYDIS_REGCLASS_DEBUG)
			return true;
	}
	return false;
}

static void random_bytes(uint8_t *p)
{
	unsigned kind = rnd() % 100, n = 0;
	uint8_t tail[16];
	uint64_t r;

	for (unsigned k = 0; k < 16; k += 8) {
		r = rnd();
		memcpy(tail + k, &r, 8);
	}
	if (kind >= 70 && kind < 90) { /* VEX */
		if (one_in(3)) {
			p[n++] = 0xc5;
			p[n++] = tail[15] | (mode32 ? 0xc0 : 0);
		} else {
			p[n++] = 0xc4;
			p[n++] = (tail[15] & 0xe0) | (1 + tail[14] % 3) |
				 (mode32 ? 0xc0 : 0);
			p[n++] = tail[13];
		}
		if (one_in(2)) /* no vvvv */
			p[n - 1] |= 0x78;
		memcpy(p + n, tail, 15 - n);
		return;
	}
	if (one_in(16))
		p[n++] = 0xf0;
	if (one_in(24))
		p[n++] = 0x67;
	if (one_in(5))
		p[n++] = 0x66;
	if (one_in(7))
		p[n++] = 0xf2 + (tail[15] & 1);
	if (one_in(2) && !mode32)
		p[n++] = 0x40 + (tail[14] & 15);
	if (kind < 30) {
		;
	} else if (kind < 60 || kind >= 98) {
		p[n++] = 0x0f;
	} else if (kind < 66) {
		p[n++] = 0x0f;
		p[n++] = 0x38;
	} else if (kind < 70) {
		p[n++] = 0x0f;
		p[n++] = 0x3a;
	} else {
		p[n++] = 0xd8 + (tail[13] & 7);
	}
	memcpy(p + n, tail, 15 - n);
}

static bool decode(struct insn *in)
{
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, in->bytes, 15,
						   &in->i, in->op));
}

static void random_insn(struct insn *in)
{
	do
		random_bytes(in->bytes);
	while (!decode(in) || !host_has(in->i.meta.isa_set) || refused(in));
}

/* -- its inputs ----------------------------------------------------------- */

static uint64_t random_word(void)
{
	static const uint64_t special[] = {
		0,
		1,
		~0ull,
		0x7f,
		0x80,
		0xff,
		0x7fff,
		0x8000,
		0xffff,
		0x7fffffff,
		0x80000000,
		0xffffffff,
		0x7fffffffffffffff,
		0x8000000000000000,
		0x3f8000003f800000,
		0x3ff0000000000000,
		0x7ff0000000000000,
		0xfff8000000000000,
		0x7ff0000000000001,
		0x0000000000000007,
		0x000fffffffffffff,
		0x7f800000ff800000,
		0x7fc000007f800001,
		0x0000000180000001,
		0x7fefffffffffffff,
		0x7f7fffff00800000,
		0x41e0000000000000,
		0x43e0000000000000,
		0x4f0000005f000000,
		0xbff0000000000000,
	};
	uint64_t r = rnd();

	switch (r & 7) {
	case 0:
	case 1: return special[rnd() % (sizeof(special) / 8)];
	case 2: return rnd() % 256;
	case 3: return 0x3ff0000000000000 + (rnd() >> 14) - (rnd() >> 14);
	case 4: return (rnd() & 0x83ffffff83ffffff) + 0x3e0000003e000000;
	default: return rnd();
	}
}

static void put(uint8_t *p, unsigned at, const void *v, size_t n)
{
	memcpy(p + at, v, n);
}

static void random_x87(uint8_t *f)
{
	uint16_t cw = 0x37f, sw;
	uint8_t tw = 0;

	if (one_in(3))
		cw = 0x40 | (rnd() & 0xc00) | (one_in(2) ? 0x300 : 0x200) |
		     (one_in(4) ? rnd() & 0x3f : 0x3f);
	sw = rnd() & 0x7f00;
	if (one_in(3))
		sw |= rnd() & 0x7f;
	if (!one_in(4))
		sw &= cw | ~0x3f;
	if (sw & ~cw & 0x3f)
		sw |= 0x8080;
	if (!one_in(4))
		tw = one_in(2) ? 0xff : (uint8_t)rnd();
	put(f, 0, &cw, 2);
	put(f, 2, &sw, 2);
	f[4] = tw;
	for (unsigned k = 0; k < 8; k++) {
		uint64_t m = rnd() | 1ull << 63;
		uint16_t e = rnd() & 0xffff;

		switch (rnd() & 7) {
		case 0: m = random_word(); break; /* often not normal */
		case 1: e &= 0x8000; break;
		case 2: e |= 0x7fff; break;
		case 3:
			e |= 0x7fff;
			m = 1ull << 63;
			break;
		case 4: m = e = 0; break;
		default: e = 0x3ff0 + rnd() % 32 + (e & 0x8000); break;
		}
		put(f, 32 + k * 16, &m, 8);
		put(f, 40 + k * 16, &e, 2);
	}
}

static void random_state(struct state *s)
{
	uint32_t mxcsr = 0x1f80, mask = 0xffff;
	uint64_t bv = 7, w;

	memset(s->fpu, 0, sizeof(s->fpu));
	for (unsigned k = 0; k < 16; k++)
		s->gpr[k] = random_word();
	s->gpr[HV_RSP] = DATA + 0x1000 + (rnd() & 0xff8);
	if (one_in(2))
		s->gpr[HV_RBP] = DATA + 0x800 + (rnd() & 0x7f8);
	s->rip = CODE + AT;
	s->rflags = 0x202 | (rnd() & ARITH) | (one_in(4) ? 0x400 : 0);
	s->cr2 = 0;
	s->vector = s->error = 0;
	if (one_in(3))
		mxcsr = (rnd() & 0xe03f) | 0x1f80;
	if (one_in(12))
		mxcsr ^= rnd() & 0x1f80;
	random_x87(s->fpu);
	put(s->fpu, 24, &mxcsr, 4);
	put(s->fpu, 28, &mask, 4);
	put(s->fpu, 512, &bv, 8);
	for (unsigned k = 0; k < 32; k++) {
		w = random_word();
		put(s->fpu, 160 + k * 8, &w, 8);
		w = random_word();
		put(s->fpu, 576 + k * 8, &w, 8);
	}
	/* Equal operands now and then. */
	if (one_in(3))
		memcpy(s->fpu + 160 + (rnd() & 15) * 16,
		       s->fpu + 160 + (rnd() & 15) * 16, 16);
	for (unsigned k = 0; k < DATA_SIZE; k += 8) {
		w = k & 64 ? random_word() : rnd();
		put(s->data, k, &w, 8);
	}
}

static int gpr_id(ZydisRegister r)
{
	ZydisRegisterClass cl = ZydisRegisterGetClass(r);

	if (cl != ZYDIS_REGCLASS_GPR64 && cl != ZYDIS_REGCLASS_GPR32)
		return -1;
	return ZydisRegisterGetId(r);
}

/* Elements of a gather's index: near the base. */
static void small_indices(struct state *s, ZydisRegister r, bool wide)
{
	unsigned n = (unsigned)ZydisRegisterGetId(r) & 15;

	for (unsigned k = 0; k < 8; k++) {
		uint8_t *p = s->fpu + (k < 4 ? 160 : 576 - 16) + n * 16 + k * 4;
		int32_t v = (int32_t)(rnd() % 256) - 128;

		if (wide && k & 1)
			v = s->fpu[p - s->fpu - 1] & 0x80 ? -1 : 0;
		memcpy(p, &v, 4);
	}
}

/* Makes a memory operand meet the data pages, and returns its address. */
static uint64_t aim(struct insn *in, const ZydisDecodedOperand *op,
		    struct state *s)
{
	uint64_t disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
	uint64_t at = DATA + 0x100 + rnd() % (DATA_SIZE - 0x200);
	int base = gpr_id(op->mem.base), index = gpr_id(op->mem.index);
	unsigned scale = op->mem.scale ? op->mem.scale : 1;

	if (one_in(24)) /* over an edge of the data */
		at = one_in(2) ? DATA - rnd() % 40
			       : DATA + DATA_SIZE - rnd() % 40;
	else if (!one_in(4))
		at &= ~63ull;
	else if (one_in(4)) /* over the edge of a page */
		at = DATA + 0x1000 - rnd() % 32;
	if (one_in(300))
		return 0;

	if (op->mem.base == ZYDIS_REGISTER_RIP ||
	    op->mem.base == ZYDIS_REGISTER_EIP ||
	    (base < 0 && op->mem.index == ZYDIS_REGISTER_NONE)) {
		int32_t d = (int32_t)at;

		if (in->i.raw.disp.size != 32)
			return 0;
		if (op->mem.base != ZYDIS_REGISTER_NONE)
			d = (int32_t)(at - (CODE + AT + in->i.length));
		memcpy(in->bytes + in->i.raw.disp.offset, &d, 4);
		decode(in);
		return at;
	}
	if (index < 0 && op->mem.index != ZYDIS_REGISTER_NONE) {
		small_indices(
			s, op->mem.index,
			in->i.mnemonic == ZYDIS_MNEMONIC_VPGATHERQQ ||
				in->i.mnemonic == ZYDIS_MNEMONIC_VPGATHERQD ||
				in->i.mnemonic == ZYDIS_MNEMONIC_VGATHERQPD ||
				in->i.mnemonic == ZYDIS_MNEMONIC_VGATHERQPS);
		at = DATA + DATA_SIZE / 2;
	}
	if (index >= 0 && base >= 0 && index != base) {
		s->gpr[index] = rnd() % 512;
		s->gpr[base] = at - disp - s->gpr[index] * scale;
	} else if (index >= 0) {
		scale += base >= 0;
		s->gpr[index] = at - disp;
		if (mode32)
			s->gpr[index] = (uint32_t)s->gpr[index];
		s->gpr[index] /= scale;
		at = s->gpr[index] * scale + disp;
		if (mode32)
			at = (uint32_t)at;
	} else if (base >= 0) {
		s->gpr[base] = at - disp;
	}
	return at;
}

static void patch_branch(struct insn *in)
{
	int64_t d = in->i.raw.imm[0].size == 8 ? (int64_t)(rnd() % 100)
					       : (int64_t)(rnd() % 0x700);

	if (in->i.raw.imm[0].size > 8 && one_in(8))
		d = 0x1000; /* into the hole */
	memcpy(in->bytes + in->i.raw.imm[0].offset, &d,
	       in->i.raw.imm[0].size / 8);
	decode(in);
}

static void keep_flags_tame(struct state *s)
{
	uint64_t v, at = s->gpr[HV_RSP] - DATA;

	if (at > DATA_SIZE - 8)
		return;
	memcpy(&v, s->data + at, 8);
	v = (v & 0xcd5) | 0x202;
	memcpy(s->data + at, &v, 8);
}

static void random_case(struct insn *in, struct state *s)
{
	uint64_t at = 0;

	random_insn(in);
	random_state(s);
	if (in->i.raw.imm[0].is_relative)
		patch_branch(in);
	if (in->i.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
				ZYDIS_ATTRIB_HAS_REPNE))
		s->gpr[HV_RCX] = rnd() % 24;
	for (unsigned k = 0; k < in->i.operand_count; k++) {
		const ZydisDecodedOperand *op = &in->op[k];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    gpr_id(op->mem.base) != HV_RSP &&
		    op->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
			at = aim(in, op, s);
	}
	/* Bit offsets reach beyond the operand. */
	switch (in->i.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		if (in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    in->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
			ZydisRegister r = ZydisRegisterGetLargestEnclosing(
				ZYDIS_MACHINE_MODE_LONG_64,
				in->op[1].reg.value);
			int id = gpr_id(r);

			if (id >= 0 && id != gpr_id(in->op[0].mem.base) &&
			    id != gpr_id(in->op[0].mem.index))
				s->gpr[id] = rnd() % 2048 - 1024;
		}
		break;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ: keep_flags_tame(s); break;
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
		s->gpr[HV_RBP] = DATA + 0x800 + (rnd() & 0x7f8);
		break;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		if (at >= DATA && at <= DATA + DATA_SIZE - 4 && !one_in(8))
			memset(s->data + (at - DATA) + 2, 0, 2);
		break;
	default: break;
	}
	/* A division that does not always fault. */
	if ((in->i.mnemonic == ZYDIS_MNEMONIC_DIV ||
	     in->i.mnemonic == ZYDIS_MNEMONIC_IDIV) &&
	    !one_in(3))
		s->gpr[HV_RDX] = one_in(2) ? 0 : rnd() % 128;
	for (unsigned k = 0; k < 8 && mode32; k++)
		s->gpr[k] = (uint32_t)s->gpr[k] | rnd() << 32;
}

/* -- on the processor ----------------------------------------------------- */

static struct state *output;
static uint8_t *text, *data;

static void from_native(struct state *s, const struct native *n)
{
	memcpy(s->gpr, n->gpr, sizeof(s->gpr));
	memcpy(s->fpu, n->fpu, XSAVE_SIZE);
	s->rip = n->rip;
	s->rflags = n->rflags;
	s->vector = n->vector;
	s->error = n->error;
	s->cr2 = n->cr2;
}

static void to_native(struct native *n, const struct state *s)
{
	memcpy(n->gpr, s->gpr, sizeof(n->gpr));
	memcpy(n->fpu, s->fpu, XSAVE_SIZE);
	n->rip = s->rip;
	n->rflags = s->rflags;
}

static bool on_stop(struct native *s)
{
	from_native(output, s);
	return false;
}

static void processor_start(void)
{
	text = native_map_code(CODE, 4096);
	data = native_map(DATA, DATA_SIZE);
	native_start(on_stop, NULL, mode32);
}

static void processor_run(const struct insn *in, const struct state *s,
			  struct state *out)
{
	static struct native n;

	memset(text, 0xcc, 4096);
	memcpy(text + AT, in->bytes, in->i.length);
	memcpy(data, s->data, DATA_SIZE);
	to_native(&n, s);
	output = out;
	native_run(&n, 0);
	memcpy(out->data, data, DATA_SIZE);
}

static void show_insn(const struct insn *in)
{
	ZydisFormatter f;
	char buf[128] = "";

	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&f, &in->i, in->op,
					in->i.operand_count_visible, buf,
					sizeof(buf), CODE + AT, NULL);
	printf("# --seed %" PRIu64 " --first %" PRIu64 " --count 1: %s  [",
	       seed, number, buf);
	for (unsigned k = 0; k < in->i.length; k++)
		printf("%02x%s", in->bytes[k],
		       k + 1 < in->i.length ? " " : "]\n");
}

/* -- on the engine -------------------------------------------------------- */

static struct user guest;

static void guest_run(const struct insn *in, const struct state *s,
		      struct state *out)
{
	static struct native n;

	user_put_code(&guest, AT, in->bytes, in->i.length);
	memcpy(guest.g.mem + USER_DATA_GPA, s->data, DATA_SIZE);
	to_native(&n, s);
	user_set(&guest, &n, true);
	if (!user_run(&guest, &n)) {
		show_insn(in);
		printf("# exit %d\n", guest.g.exit.reason);
		bare_die("the guest did not come to a handler", EIO);
	}
	from_native(out, &n);
	memcpy(out->data, guest.g.mem + USER_DATA_GPA, DATA_SIZE);
}

static void low_halves(struct state *s)
{
	for (unsigned k = 0; k < 8; k++)
		s->gpr[k] = (uint32_t)s->gpr[k];
}

/* -- what must be equal --------------------------------------------------- */

enum { CF = 1, PF = 4, AF = 0x10, ZF = 0x40, SF = 0x80, OF = 0x800 };

/* Flags that an instruction leaves undefined (SDM 2, AMD APM 3). */
static const struct {
	ZydisMnemonic mnemonic;
	unsigned mask;
} undefined[] = {
	/* Logic: no carry out of bit 3 exists. */
	{ ZYDIS_MNEMONIC_AND, AF },
	{ ZYDIS_MNEMONIC_OR, AF },
	{ ZYDIS_MNEMONIC_XOR, AF },
	{ ZYDIS_MNEMONIC_TEST, AF },
	{ ZYDIS_MNEMONIC_ANDN, AF | PF },
	{ ZYDIS_MNEMONIC_BLSI, AF | PF },
	{ ZYDIS_MNEMONIC_BLSR, AF | PF },
	{ ZYDIS_MNEMONIC_BLSMSK, AF | PF },
	{ ZYDIS_MNEMONIC_BZHI, AF | PF },
	{ ZYDIS_MNEMONIC_BEXTR, AF | PF | SF },
	/* Multiplication says in CF and OF whether the high half counts. */
	{ ZYDIS_MNEMONIC_MUL, AF | PF | ZF | SF },
	{ ZYDIS_MNEMONIC_IMUL, AF | PF | ZF | SF },
	{ ZYDIS_MNEMONIC_DIV, ARITH },
	{ ZYDIS_MNEMONIC_IDIV, ARITH },
	/* Bit tests define CF, bit scans ZF. */
	{ ZYDIS_MNEMONIC_BT, OF | SF | AF | PF },
	{ ZYDIS_MNEMONIC_BTS, OF | SF | AF | PF },
	{ ZYDIS_MNEMONIC_BTR, OF | SF | AF | PF },
	{ ZYDIS_MNEMONIC_BTC, OF | SF | AF | PF },
	{ ZYDIS_MNEMONIC_BSF, OF | SF | AF | PF | CF },
	{ ZYDIS_MNEMONIC_BSR, OF | SF | AF | PF | CF },
	/* Decimals define what the sum of two digits does. */
	{ ZYDIS_MNEMONIC_AAA, OF | SF | ZF | PF },
	{ ZYDIS_MNEMONIC_AAS, OF | SF | ZF | PF },
	{ ZYDIS_MNEMONIC_AAD, OF | AF | CF },
	{ ZYDIS_MNEMONIC_AAM, OF | AF | CF },
	{ ZYDIS_MNEMONIC_DAA, OF },
	{ ZYDIS_MNEMONIC_DAS, OF },
	{ ZYDIS_MNEMONIC_LZCNT, OF | SF | AF | PF },
	{ ZYDIS_MNEMONIC_TZCNT, OF | SF | AF | PF },
};

static uint8_t count_of(const struct insn *in, const struct state *s,
			unsigned k)
{
	uint8_t n = in->op[k].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
			    ? (uint8_t)in->op[k].imm.value.u
			    : (uint8_t)s->gpr[HV_RCX];

	return n & (in->op[0].size == 64 ? 63 : 31);
}

static unsigned undefined_flags(const struct insn *in, const struct state *s)
{
	unsigned n;

	switch (in->i.mnemonic) {
	/* Shifts by more than one leave OF, by more than the width CF. */
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
		n = count_of(in, s, 1);
		return (n ? AF : 0) | (n > 1 ? OF : 0) |
		       (n >= in->op[0].size ? CF : 0);
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		n = count_of(in, s, 2);
		if (n > in->op[0].size)
			return ARITH;
		return (n ? AF : 0) | (n > 1 ? OF : 0);
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_RCL:
	case ZYDIS_MNEMONIC_RCR: return count_of(in, s, 1) != 1 ? OF : 0;
	default: break;
	}
	for (unsigned k = 0; k < sizeof(undefined) / sizeof(undefined[0]); k++)
		if (undefined[k].mnemonic == in->i.mnemonic)
			return undefined[k].mask;
	return 0;
}

static void print_bytes(const char *name, const uint8_t *p, unsigned n)
{
	printf("#   %-8s", name);
	while (n--)
		printf("%02x", p[n]);
	printf("\n");
}

static void print_part(const char *name, const uint8_t *in, const uint8_t *a,
		       const uint8_t *b, unsigned n)
{
	printf("# %s\n", name);
	print_bytes("before", in, n);
	print_bytes("cpu", a, n);
	print_bytes("engine", b, n);
}

static bool uses_mmx(const struct insn *in)
{
	for (unsigned k = 0; k < in->i.operand_count; k++)
		if (in->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(in->op[k].reg.value) ==
			    ZYDIS_REGCLASS_MMX)
			return true;
	return false;
}

static bool is_pusha(const struct insn *in)
{
	return in->i.mnemonic == ZYDIS_MNEMONIC_PUSHA ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_PUSHAD ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_POPA ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_POPAD;
}

static bool is_maskmov(const struct insn *in)
{
	return in->i.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
}

static bool is_dot_product(const struct insn *in)
{
	return in->i.mnemonic == ZYDIS_MNEMONIC_DPPS ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_DPPD ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_VDPPS ||
	       in->i.mnemonic == ZYDIS_MNEMONIC_VDPPD;
}

static bool is_cmps(const struct insn *in)
{
	return in->i.meta.category == ZYDIS_CATEGORY_STRINGOP &&
	       (in->i.opcode | 1) == 0xa7;
}

/* AddressSanitizer's own memory, which only the bare processor finds. */
static bool is_sanitizers(uint64_t address)
{
#ifdef __SANITIZE_ADDRESS__
	const uint64_t start = 0x7fff8000, end = 0x10007fff8000, slack = 4096;

	return address >= start - slack && address < end;
#else
	(void)address;
	return false;
#endif
}

static bool compare(const struct insn *in, const struct state *s,
		    struct state *a, struct state *b, bool show)
{
	static const char *const names[16] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
	};
	uint64_t flags = 0xc00 | ARITH;
	bool same = true;
	uint32_t mx;

#define DIFF(name, field, size) \
	do { \
		same = false; \
		if (show) \
			print_part(name, (const uint8_t *)&s->field, \
				   (const uint8_t *)&a->field, \
				   (const uint8_t *)&b->field, size); \
	} while (0)

	/* SHA's operands may be unaligned on AMD, not on Intel. */
	if (in->i.meta.isa_set == ZYDIS_ISA_SET_SHA && b->vector == 13)
		return true;
	/* How far PUSHA and POPA get before their fault is not defined. */
	if (a->vector == 14 && b->vector == 14 && is_pusha(in))
		return true;
	/* Whether bytes that the mask leaves out may fault is not defined. */
	if ((a->vector == 14 || a->vector == 13) && is_maskmov(in) &&
	    b->vector == 3)
		return true;
	/* Which of CMPS's two operands faults first is its choice. */
	if (a->vector != 3 && b->vector != 3 && is_cmps(in))
		return true;
	flags &= ~(uint64_t)undefined_flags(in, s);
	if (a->vector != b->vector) {
		DIFF("vector", vector, 4);
		if (show)
			printf("# error %#x and %#x, cr2 %#" PRIx64
			       " and %#" PRIx64 "\n",
			       a->error, b->error, a->cr2, b->cr2);
		return false;
	}
	/*
	 * For addresses of its own the kernel hides what is mapped there; the
	 * first 2 MiB are mapped in the guest only.  Which byte of a large
	 * operand, or which of CMPS's two, faults first is the processor's
	 * choice.
	 */
	if (a->vector == 14 && !(a->cr2 >> 47)) {
		bool loose = in->i.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
			     uses_mmx(in) || is_maskmov(in);
		uint64_t m = loose ? ~4095ull : ~0ull;

		if (in->i.meta.category == ZYDIS_CATEGORY_STRINGOP)
			m = 0;
		if ((a->cr2 ^ b->cr2) & m)
			DIFF("cr2", cr2, 8);
		if (a->error != b->error && a->cr2 >= BARE_MEMORY)
			DIFF("error", error, 4);
	} else if (a->vector != 14 && a->vector != 3 && a->error != b->error) {
		DIFF("error", error, 4);
	}
	if (a->rip != b->rip)
		DIFF("rip", rip, 8);
	for (unsigned k = 0; k < 16; k++)
		if (a->gpr[k] != b->gpr[k])
			DIFF(names[k], gpr[k], 8);
	if ((a->rflags ^ b->rflags) & flags)
		DIFF("rflags", rflags, 4);
	native_complete_fpu(a->fpu);
	native_complete_fpu(b->fpu);
	/*
	 * PE of an unmasked underflow or overflow is that of a result with
	 * an exponent of any size; the engine has PE of the masked result.
	 */
	memcpy(&mx, a->fpu + 24, 4);
	if (a->vector == 19 && mx & ~(mx >> 7) & 0x18) {
		a->fpu[24] |= 0x20;
		b->fpu[24] |= 0x20;
	}
	/* DPPS and DPPD raise between their steps, whose flags add up here. */
	if (a->vector == 19 && is_dot_product(in))
		b->fpu[24] = a->fpu[24];
	/* Whether an MMX instruction that faults has left x87 mode. */
	if (a->vector != 3 && uses_mmx(in))
		memcpy(b->fpu, a->fpu, 24);
	if (a->vector != 3 && uses_mmx(in))
		memcpy(b->fpu + 32, a->fpu + 32, 128);
	if (memcmp(a->fpu, b->fpu, 5))
		DIFF("fcw fsw ftw", fpu, 5);
	if (memcmp(a->fpu + 24, b->fpu + 24, 4))
		DIFF("mxcsr", fpu[24], 4);
	for (unsigned k = 32; k < XSAVE_SIZE; k += 16)
		if ((k < 416 || k >= 576) &&
		    memcmp(a->fpu + k, b->fpu + k, 16)) {
			char name[24];

			snprintf(name, sizeof(name), "%s%u",
				 k < 160   ? "st"
				 : k < 416 ? "xmm"
					   : "ymmh",
				 (k < 160   ? k - 32
				  : k < 416 ? k - 160
					    : k - 576) /
					 16);
			DIFF(name, fpu[k], 16);
		}
	for (unsigned k = 0; k < DATA_SIZE; k += 16)
		if (memcmp(a->data + k, b->data + k, 16)) {
			char name[24];

			snprintf(name, sizeof(name), "memory at %#x", DATA + k);
			DIFF(name, data[k], 16);
		}
	return same;
}

/* -- cases ---------------------------------------------------------------- */

static void on_alarm(int sig)
{
	static const char msg[] = "Bail out! a case does not end\n";

	if (write(1, msg, sizeof(msg) - 1) < 0)
		_exit(2);
	_exit(1);
}

static uint64_t number_arg(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	if (*end || !*s) {
		fprintf(stderr, "differ: %s is not a number\n", s);
		exit(2);
	}
	return v;
}

int main(int argc, char **argv)
{
	static unsigned seen[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	static struct state s, a, b;
	const char *engine = "soft";
	uint64_t count = 20000, differences = 0, faults = 0;
	unsigned mnemonics = 0;
	struct insn in;

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc) {
			fprintf(stderr, "differ: %s needs a value\n", argv[i]);
			return 2;
		}
		if (!strcmp(argv[i], "--seed"))
			seed = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--first"))
			first = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--count"))
			count = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--engine"))
			engine = argv[i + 1];
		else if (!strcmp(argv[i], "--mode"))
			mode32 = number_arg(argv[i + 1]) == 32;
		else {
			fprintf(stderr, "differ: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	if (!__builtin_cpu_supports("avx2")) {
		printf("1..0 # SKIP this processor has no AVX2\n");
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("# seed %" PRIu64 ", %" PRIu64 " cases from %" PRIu64 "\n", seed,
	       count, first);
	ZydisDecoderInit(&decoder,
			 mode32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32
				: ZYDIS_MACHINE_MODE_LONG_64,
			 mode32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_64);
	processor_start();
	signal(SIGALRM, on_alarm); /* for the engine, too */
	user_start(&guest, engine, mode32);
	for (number = first; number < first + count; number++) {
		rng = seed * 0xd1342543de82ef95 + number * 0xbf58476d1ce4e5b9;
		rnd();
		memset(&in, 0, sizeof(in));
		random_case(&in, &s);
		if (number % 256 == 0 || count == 1)
			alarm(60);
		if (count == 1)
			show_insn(&in);
		guest_run(&in, &s, &b);
		if (b.vector == 14 && is_sanitizers(b.cr2))
			continue;
		processor_run(&in, &s, &a);
		if (mode32) {
			low_halves(&a);
			low_halves(&b);
		}
		faults += a.vector != 3;
		mnemonics += !(seen[in.i.mnemonic] & 0xffff);
		seen[in.i.mnemonic] |= 1;
		if (compare(&in, &s, &a, &b, false))
			continue;
		differences++;
		seen[in.i.mnemonic] += 0x10000;
		if (seen[in.i.mnemonic] >> 16 > SHOW)
			continue;
		show_insn(&in);
		compare(&in, &s, &a, &b, true);
	}
	bare_stop(&guest.g);
	for (unsigned k = 0; k <= ZYDIS_MNEMONIC_MAX_VALUE; k++)
		if (seen[k] >> 16)
			printf("# %s: %u\n", ZydisMnemonicGetString(k),
			       seen[k] >> 16);
	printf("%sok 1 - %" PRIu64 " instructions, %u mnemonics, %" PRIu64
	       " faults, %" PRIu64 " differences\n1..1\n",
	       differences ? "not " : "", count, mnemonics, faults,
	       differences);
	return differences ? 1 : 0;
}
