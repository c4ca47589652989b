/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blocks.c - random programs on each way to run them, and on the processor
 *
 * blocks [--seed S] [--first N] [--count N] [--blocks N] [--kick 0|1]
 *        [--native 0|1]
 *
 * A program is a few blocks with jumps in both directions, loops that end,
 * calls and jumps through tables.  What it does most is make flags and use
 * them late: a translator drops flags that it finds dead, and a wrong "dead"
 * is silent.  Its data are pages that are there, come when they are touched,
 * become writable when they are written, are a device, or are not there.  Some
 * programs write bytes of their own instructions.
 *
 * It runs translated, mixed and interpreted, once more translated while
 * another thread kicks the vCPU and the whole state is taken out and put back
 * at each kick, and in this process when it needs neither devices nor segment
 * bases.  What is compared: each fault and exit with the registers there, and
 * the state and the memory at the end.  The one thing left out is CF to OF in
 * the flags that a fault in the middle pushes: a translator may have dropped
 * what nobody reads before it is overwritten, and programs go on behind their
 * faults to show that it did not drop more.
 *
 * A program depends on seed and number only.  One that differs is made
 * smaller while it still differs, and printed.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bare.h"
#include "native.h"

enum {
	/* Linear, in the guest and here. */
	BASE = 0x10000000,
	CODE = BASE,
	CODE_SIZE = 0x4000,
	DATA = BASE + 0x6000,
	DATA_SIZE = 0x5000, /* three pages, LAZY, COW */
	LAZY = DATA + 0x3000,
	COW = DATA + 0x4000,
	DEVICE = DATA + 0x6000,
	STACK = DATA + 0x8000,
	STACK_SIZE = 0x2000,
	TABLE = DATA + 0xb000, /* of jump targets: read only */
	/* Guest-physical. */
	PT = 0x20000,
	CODE_GPA = 0x30000,
	DATA_GPA = 0x40000,
	STACK_GPA = 0x50000,
	TABLE_GPA = 0x54000,
	XSAVE_SIZE = NATIVE_XSAVE,
	MAX_ITEMS = 200,
	MAX_LABELS = 32,
	MAX_EVENTS = 48,
};

#define ARITH 0x8d5u

/* -- random --------------------------------------------------------------- */

static uint64_t seed = 1, number, rng;

static uint64_t rnd(void)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static unsigned below(unsigned n)
{
	return (unsigned)(rnd() % n);
}

static bool one_in(unsigned n)
{
	return !below(n);
}

/* -- programs ------------------------------------------------------------- */

/* An instruction, or a label (n is 0). */
struct item {
	uint8_t bytes[16];
	uint8_t n;
	uint8_t rel; /* offset of rel32 to a label, or of abs64 */
	uint8_t rip; /* offset of a displacement from rip */
	bool abs64;
	bool keep; /* not for reduce() */
	bool dropped;
	bool patches; /* writes a byte of the item called patched */
	uint8_t patched, patched_off;
	uint32_t at; /* where assemble() put it */
	int8_t label;
	uint32_t target; /* of rip */
};

struct program {
	struct item item[MAX_ITEMS];
	unsigned n;
	uint64_t label[MAX_LABELS]; /* where assemble() put them */
	uint32_t start;
	unsigned blocks;
	bool devices, segments; /* not for the processor */
	bool patches;		/* its code is writable, and written */
	/* Registers with a meaning: never written but by us. */
	unsigned base[2], index, fuel;
	bool fuel_jrcxz;
	uint8_t table[256]; /* labels */
};

struct state {
	uint64_t gpr[16], rip, rflags;
	uint8_t fpu[XSAVE_SIZE] __attribute__((aligned(64)));
};

struct event {
	uint32_t kind; /* vector, or 100 + exit reason */
	uint32_t error;
	uint64_t addr, value, rip;
	uint64_t gpr[16], rflags, fpu;
};

struct result {
	struct event ev[MAX_EVENTS];
	unsigned n;
	struct state end;
	uint8_t data[DATA_SIZE], stack[STACK_SIZE];
	uint64_t kicks;
};

static struct program prog;
static struct state start;
static uint8_t data_in[DATA_SIZE], stack_in[STACK_SIZE];
static uint64_t table_in[512];
static uint8_t code_in[CODE_SIZE];
static ZydisDecoder decoder;

static struct item *add(struct program *p)
{
	struct item *it = &p->item[p->n < MAX_ITEMS - 1 ? p->n++ : p->n];

	memset(it, 0, sizeof(*it));
	it->label = -1;
	return it;
}

static struct item *add_bytes(struct program *p, const void *bytes, unsigned n)
{
	struct item *it = add(p);

	memcpy(it->bytes, bytes, n);
	it->n = (uint8_t)n;
	return it;
}

#define ADD(p, ...) \
	add_bytes(p, (const uint8_t[]){ __VA_ARGS__ }, \
		  sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void add_label(struct program *p, int label)
{
	add(p)->label = (int8_t)label;
}

/* jmp, or jcc of cc, to a label */
static void add_jump(struct program *p, int cc, int label)
{
	struct item *it =
		cc < 0 ? ADD(p, 0xe9, 0, 0, 0, 0)
		       : ADD(p, 0x0f, (uint8_t)(0x80 | cc), 0, 0, 0, 0);

	it->rel = cc < 0 ? 1 : 2;
	it->label = (int8_t)label;
}

/* A loop ends: out of fuel is out of the program.  Label 0 is the end. */
static void add_fuel_check(struct program *p)
{
	unsigned f = p->fuel;

	if (p->fuel_jrcxz) {
		/* No flag is touched: lea -1(%rcx), %rcx; jrcxz; jmp; jmp */
		ADD(p, 0x48, 0x8d, 0x49, 0xff);
		ADD(p, 0xe3, 0x02, 0xeb, 0x05);
		add_jump(p, -1, 0);
		return;
	}
	ADD(p, (uint8_t)(0x48 | (f > 7)), 0xff, (uint8_t)(0xc8 | (f & 7)));
	add_jump(p, one_in(2) ? 4 : 8, 0); /* jz, js */
	if (one_in(2))			   /* js alone would leave 0 */
		ADD(p, (uint8_t)(0x48 | (f > 7)), 0x85,
		    (uint8_t)(0xc0 | (f & 7) | (f & 7) << 3));
}

/* False: it does not fit. */
static bool assemble(struct program *p)
{
	uint32_t at = p->start;

	for (unsigned pass = 0; pass < 2; pass++) {
		at = p->start;
		for (unsigned k = 0; k < p->n; k++) {
			struct item *it = &p->item[k];

			it->at = CODE + at;
			if (!it->n) {
				p->label[it->label] = CODE + at;
				continue;
			}
			if (it->dropped)
				continue;
			if (at + it->n > CODE_SIZE - 16)
				return false;
			if (pass) {
				uint64_t end = CODE + at + it->n, v;

				if (it->label >= 0) {
					v = p->label[it->label] -
					    (it->abs64 ? 0 : end);
					memcpy(it->bytes + it->rel, &v,
					       it->abs64 ? 8 : 4);
				}
				if (it->patches)
					it->target = p->item[it->patched].at +
						     it->patched_off;
				if (it->rip) {
					v = it->target - end;
					memcpy(it->bytes + it->rip, &v, 4);
				}
				memcpy(code_in + at, it->bytes, it->n);
			}
			at += it->n;
		}
	}
	code_in[at] = 0xcc;
	for (unsigned k = 0; k < 256; k++)
		table_in[k] = p->label[p->table[k]];
	return true;
}

/* -- instructions --------------------------------------------------------- */

static bool isa_fits(ZydisISASet set)
{
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
	case ZYDIS_ISA_SET_LAHF:
	case ZYDIS_ISA_SET_LONGMODE:
	case ZYDIS_ISA_SET_FAT_NOP:
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE2MMX:
	case ZYDIS_ISA_SET_SSE_PREFETCH:
	case ZYDIS_ISA_SET_SSE3:
	case ZYDIS_ISA_SET_SSSE3:
	case ZYDIS_ISA_SET_SSSE3MMX:
	case ZYDIS_ISA_SET_SSE4:
	case ZYDIS_ISA_SET_SSE42:
	case ZYDIS_ISA_SET_POPCNT:
	case ZYDIS_ISA_SET_CMPXCHG16B:
	case ZYDIS_ISA_SET_AVX:
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_BMI1:
	case ZYDIS_ISA_SET_BMI2:
	case ZYDIS_ISA_SET_MOVBE:
	case ZYDIS_ISA_SET_LZCNT:
	case ZYDIS_ISA_SET_F16C:
	case ZYDIS_ISA_SET_FMA: return true;
	case ZYDIS_ISA_SET_ADOX_ADCX:
		return __builtin_cpu_supports("avx512f"); /* all have it */
	case ZYDIS_ISA_SET_AES: return __builtin_cpu_supports("aes");
	case ZYDIS_ISA_SET_PCLMULQDQ: return __builtin_cpu_supports("pclmul");
	default: return false;
	}
}

static bool mnemonic_fits(ZydisMnemonic m)
{
	switch (m) {
	/* Not the same twice, not the same everywhere, or another's state. */
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_CLFLUSH:
	/* Whether one that faults has left x87 mode is not defined. */
	case ZYDIS_MNEMONIC_CVTPS2PI:
	case ZYDIS_MNEMONIC_CVTTPS2PI:
	case ZYDIS_MNEMONIC_CVTPI2PS:
	case ZYDIS_MNEMONIC_CVTPD2PI:
	case ZYDIS_MNEMONIC_CVTTPD2PI:
	case ZYDIS_MNEMONIC_CVTPI2PD: return false;
	default: return true;
	}
}

static bool category_fits(const ZydisDecodedInstruction *i)
{
	switch (i->meta.category) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_STRINGOP: /* these have a maker of their own */
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
	case ZYDIS_CATEGORY_RDWRFSGS: return false;
	default: return true;
	}
}

struct insn {
	ZydisDecodedInstruction i;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

static bool decode(const uint8_t *bytes, unsigned n, struct insn *in)
{
	return ZYAN_SUCCESS(
		ZydisDecoderDecodeFull(&decoder, bytes, n, &in->i, in->op));
}

static int gpr_of(ZydisRegister r)
{
	ZydisRegister full =
		ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);

	if (ZydisRegisterGetClass(full) != ZYDIS_REGCLASS_GPR64)
		return -1;
	return ZydisRegisterGetId(full);
}

/* Would it spoil a register that has a meaning, or use an odd one? */
static bool operands_fit(const struct program *p, const struct insn *in)
{
	for (unsigned k = 0; k < in->i.operand_count; k++) {
		const ZydisDecodedOperand *op = &in->op[k];
		ZydisRegisterClass cl;
		int g;

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB ||
			    op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
				return false;
			continue;
		}
		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		cl = ZydisRegisterGetClass(op->reg.value);
		if (cl == ZYDIS_REGCLASS_SEGMENT ||
		    cl == ZYDIS_REGCLASS_CONTROL || cl == ZYDIS_REGCLASS_DEBUG)
			return false;
		g = gpr_of(op->reg.value);
		if (g < 0 || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		if (g == HV_RSP || g == (int)p->base[0] ||
		    g == (int)p->base[1] || g == (int)p->index ||
		    g == (int)p->fuel)
			return false;
	}
	return true;
}

static uint32_t data_address(struct program *p)
{
	switch (below(48)) {
	case 0: return LAZY + below(4096 - 32);
	case 1: return COW + below(4096 - 32);
	case 2:
		if (p->devices)
			return DEVICE + below(4000);
		return LAZY - below(40);
	case 3: return COW + 0x1000 - below(40); /* into nothing */
	case 4: return COW - below(40);
	case 5:
		if (one_in(3))
			return DATA - below(40);
		return TABLE + below(2000);
	case 6:
	case 7:
	case 8: return DATA + 0x1000 * (1 + below(2)) - below(36);
	default: return DATA + (below(0x3000 - 64) & (one_in(2) ? ~31u : ~0u));
	}
}

/*
 * The instruction again with its memory operand where data are.  Bits of REX
 * or VEX that name base and index are rewritten when there are any.
 */
static bool aim(struct program *p, struct item *it, const struct insn *in)
{
	const ZydisDecodedInstruction *i = &in->i;
	unsigned mod = i->raw.modrm.offset, n, base = p->base[below(2)];
	bool index = one_in(3), rip = one_in(5), stack = one_in(10);
	uint32_t at = data_address(p), disp;
	uint8_t tail[8], ntail = 0, *b = it->bytes;
	uint8_t rex_at = 0;

	if (i->raw.imm[0].size) {
		ntail = (uint8_t)(i->length - i->raw.imm[0].offset);
		memcpy(tail, b + i->raw.imm[0].offset, ntail);
	}
	if (i->attributes & ZYDIS_ATTRIB_HAS_REX)
		rex_at = i->raw.rex.offset;
	else if (i->attributes & ZYDIS_ATTRIB_HAS_VEX &&
		 b[i->raw.vex.offset] == 0xc4)
		rex_at = i->raw.vex.offset;
	else if (base > 7 || (index && p->index > 7))
		rip = true;
	if (stack) {
		base = HV_RSP;
		at = STACK + 0x1000 + (below(0x100) & ~7u);
	}
	if (i->attributes & ZYDIS_ATTRIB_HAS_REX) {
		b[rex_at] &= 0xfc;
		if (!rip)
			b[rex_at] |=
				(base > 7) | (index && p->index > 7 ? 2 : 0);
	} else if (rex_at || i->attributes & ZYDIS_ATTRIB_HAS_VEX) {
		uint8_t vex = i->raw.vex.offset;

		if (b[vex] == 0xc4) {
			b[vex + 1] |= 0x60;
			if (!rip && base > 7)
				b[vex + 1] &= ~0x20;
			if (!rip && index && p->index > 7)
				b[vex + 1] &= ~0x40;
		}
	}
	n = mod;
	b[n] &= 0x38;
	if (rip) {
		b[n++] |= 5;
		it->rip = (uint8_t)n;
		it->target = stack ? DATA + 8 : at;
		disp = 0;
	} else {
		/* Bases hold DATA and DATA + 0x2800; rsp is near here. */
		disp = at - (base == p->base[0]	  ? DATA
			     : base == p->base[1] ? DATA + 0x2800
						  : STACK + 0x1000);
		if (index || (base & 7) == 4) {
			b[n++] |= 0x84;
			b[n++] = (uint8_t)((index ? (p->index & 7) << 3 |
							    below(3) << 6
						  : 4 << 3) |
					   (base & 7));
			/* rsp's number is "no index" without the bit */
			if (index && p->index == 4)
				return false;
		} else {
			b[n++] |= (uint8_t)(0x80 | (base & 7));
		}
	}
	memcpy(b + n, &disp, 4);
	n += 4;
	memcpy(b + n, tail, ntail);
	n += ntail;
	if (n > 15)
		return false;
	it->n = (uint8_t)n;
	return true;
}

/* Opcodes that make or use flags, and moves; ModRM follows. */
static const struct {
	uint8_t map, op, mask, reg, nreg, imm; /* op | random & mask */
} common[] = {
	{ 0, 0x00, 0x3b, 0, 8, 0 }, /* ALU r/m, r both ways */
	{ 0, 0x00, 0x3b, 0, 8, 0 },
	{ 0, 0x10, 0x0b, 0, 8, 0 }, /* ADC SBB */
	{ 0, 0x80, 0x01, 0, 8, 9 }, /* ALU r/m, imm */
	{ 0, 0x83, 0x00, 0, 8, 1 },
	{ 0, 0x84, 0x01, 0, 8, 0 }, /* TEST */
	{ 0, 0x86, 0x01, 0, 8, 0 }, /* XCHG */
	{ 0, 0x88, 0x03, 0, 8, 0 }, /* MOV */
	{ 0, 0x8d, 0x00, 0, 8, 0 }, /* LEA */
	{ 0, 0xfe, 0x01, 0, 2, 0 }, /* INC DEC */
	{ 0, 0xfe, 0x01, 0, 2, 0 },
	{ 0, 0xf6, 0x01, 2, 2, 0 }, /* NOT NEG */
	{ 0, 0xf6, 0x01, 4, 4, 0 }, /* MUL IMUL DIV IDIV */
	{ 0, 0xd0, 0x03, 0, 8, 0 }, /* shifts by 1 and by CL */
	{ 0, 0xd2, 0x01, 0, 8, 0 },
	{ 0, 0xc0, 0x01, 0, 8, 1 },
	{ 0, 0x69, 0x02, 0, 8, 9 }, /* IMUL */
	{ 0, 0xc6, 0x01, 0, 1, 9 },
	{ 1, 0x40, 0x0f, 0, 8, 0 }, /* CMOVcc */
	{ 1, 0x90, 0x0f, 0, 8, 0 }, /* SETcc */
	{ 1, 0x90, 0x0f, 0, 8, 0 },
	{ 1, 0xa3, 0x18, 0, 8, 0 }, /* BT BTS BTR BTC */
	{ 1, 0xba, 0x00, 4, 4, 1 },
	{ 1, 0xa4, 0x09, 0, 8, 1 }, /* SHLD SHRD */
	{ 1, 0xa5, 0x08, 0, 8, 0 },
	{ 1, 0xaf, 0x00, 0, 8, 0 },
	{ 1, 0xb0, 0x01, 0, 8, 0 }, /* CMPXCHG */
	{ 1, 0xb6, 0x09, 0, 8, 0 }, /* MOVZX MOVSX */
	{ 1, 0xbc, 0x01, 0, 8, 0 }, /* BSF BSR TZCNT LZCNT */
	{ 1, 0xb8, 0x00, 0, 8, 0 }, /* POPCNT (with F3) */
	{ 1, 0xc0, 0x01, 0, 8, 0 }, /* XADD */
	{ 1, 0xc7, 0x00, 1, 1, 0 }, /* CMPXCHG8B/16B */
	{ 2, 0xf6, 0x00, 0, 8, 0 }, /* ADCX ADOX (with 66, F3) */
	{ 2, 0xf0, 0x01, 0, 8, 0 }, /* MOVBE CRC32 */
};

static unsigned common_bytes(uint8_t *b)
{
	unsigned k = below(sizeof(common) / sizeof(common[0])), n = 0;
	uint64_t r = rnd();
	uint8_t op = common[k].op | (rnd() & common[k].mask);

	if (one_in(10))
		b[n++] = 0xf0;
	if (one_in(common[k].map == 2 ? 2 : 6))
		b[n++] = 0x66;
	if (one_in(common[k].map ? 4 : 60))
		b[n++] = 0xf2 + (rnd() & 1);
	if (!one_in(3))
		b[n++] = 0x40 | (rnd() & 15);
	if (common[k].map)
		b[n++] = 0x0f;
	if (common[k].map == 2)
		b[n++] = 0x38;
	b[n++] = op;
	b[n] = (uint8_t)r;
	if (one_in(2))
		b[n] |= 0xc0;
	if (common[k].nreg < 8)
		b[n] = (b[n] & 0xc7) |
		       (uint8_t)((common[k].reg + below(common[k].nreg)) << 3);
	n++;
	for (unsigned m = 0; m < 8; m++)
		b[n++] = (uint8_t)(r >> 8 >> (m * 5));
	/* Shifts by nothing are what a count must not be taken for. */
	if (common[k].imm == 1 && one_in(4))
		b[n - 8] = one_in(2) ? 0 : 0x20;
	return n;
}

static unsigned wild_bytes(uint8_t *p)
{
	unsigned kind = below(100), n = 0;
	uint8_t tail[16];
	uint64_t r;

	for (unsigned k = 0; k < 16; k += 8) {
		r = rnd();
		memcpy(tail + k, &r, 8);
	}
	if (kind < 40) { /* VEX */
		if (one_in(3)) {
			p[n++] = 0xc5;
			p[n++] = tail[15];
		} else {
			p[n++] = 0xc4;
			p[n++] = (tail[15] & 0xe0) | (1 + tail[14] % 3);
			p[n++] = tail[13];
		}
		if (one_in(2))
			p[n - 1] |= 0x78;
		memcpy(p + n, tail, 15 - n);
		return 15;
	}
	if (one_in(4))
		p[n++] = 0x66;
	if (one_in(5))
		p[n++] = 0xf2 + (tail[15] & 1);
	if (one_in(2))
		p[n++] = 0x40 + (tail[14] & 15);
	if (kind < 50) {
		;
	} else if (kind < 85) {
		p[n++] = 0x0f;
	} else if (kind < 90) {
		p[n++] = 0x0f;
		p[n++] = 0x38;
	} else if (kind < 94) {
		p[n++] = 0x0f;
		p[n++] = 0x3a;
	} else {
		p[n++] = 0xd8 + (tail[13] & 7);
	}
	memcpy(p + n, tail, 15 - n);
	return 15;
}

static bool reserved(const struct program *p, unsigned r)
{
	return r == HV_RSP || r == p->base[0] || r == p->base[1] ||
	       r == p->index || r == p->fuel;
}

static unsigned free_register(const struct program *p)
{
	unsigned r;

	do
		r = below(16);
	while (reserved(p, r));
	return r;
}

/*
 * Behind an instruction that leaves flags undefined (some processors keep
 * them, which no translator has to know): those it defines are used now or
 * never, cc being conditions on them, then all are made anew.
 */
static void settle_flags(struct program *p, ZydisMnemonic m)
{
	unsigned r = free_register(p), cc;

	switch (m) {
	case ZYDIS_MNEMONIC_MUL:
	case ZYDIS_MNEMONIC_IMUL: cc = one_in(2) ? 0 : 2; break;
	case ZYDIS_MNEMONIC_BSF:
	case ZYDIS_MNEMONIC_BSR:
	case ZYDIS_MNEMONIC_ANDN:
	case ZYDIS_MNEMONIC_BLSI:
	case ZYDIS_MNEMONIC_BLSR:
	case ZYDIS_MNEMONIC_BLSMSK:
	case ZYDIS_MNEMONIC_BZHI:
	case ZYDIS_MNEMONIC_BEXTR: cc = 4; break;
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT: cc = one_in(2) ? 2 : 4; break;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC: cc = 2; break;
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV: cc = 16; break;
	default: return;
	}
	if (cc < 16 && one_in(2)) /* setcc, of a low byte */
		ADD(p, (uint8_t)(0x40 | (r > 7)), 0x0f,
		    (uint8_t)(0x90 | cc | below(2)), (uint8_t)(0xc0 | (r & 7)));
	r = below(16);
	ADD(p, (uint8_t)(0x48 | (r > 7)), 0x83, (uint8_t)(0xf8 | (r & 7)),
	    (uint8_t)rnd())
		->keep = true;
}

static void add_random(struct program *p)
{
	for (;;) {
		struct item it = { .label = -1 };
		const ZydisDecodedOperand *m = NULL;
		unsigned n, seg = 0;
		struct insn in;

		if (p->segments && one_in(8))
			it.bytes[seg++] = 0x64 + (rnd() & 1);
		n = one_in(4) ? wild_bytes(it.bytes + seg)
			      : common_bytes(it.bytes + seg);
		if (!decode(it.bytes, n + seg < 16 ? n + seg : 15, &in) ||
		    !isa_fits(in.i.meta.isa_set) ||
		    !mnemonic_fits(in.i.mnemonic) || !category_fits(&in.i) ||
		    !operands_fit(p, &in) ||
		    in.i.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED ||
		    in.i.attributes & ZYDIS_ATTRIB_HAS_ADDRESSSIZE ||
		    (!p->segments &&
		     in.i.attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS |
					ZYDIS_ATTRIB_HAS_SEGMENT_GS)))
			continue;
		it.n = in.i.length;
		for (unsigned k = 0; k < in.i.operand_count; k++)
			if (in.op[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
				m = &in.op[k];
		if (m && in.i.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
			if (!aim(p, &it, &in))
				continue;
		} else if (m) {
			continue;
		}
		/* A bit number in a register would reach anywhere. */
		if (m &&
		    (in.i.mnemonic == ZYDIS_MNEMONIC_BT ||
		     in.i.mnemonic == ZYDIS_MNEMONIC_BTS ||
		     in.i.mnemonic == ZYDIS_MNEMONIC_BTR ||
		     in.i.mnemonic == ZYDIS_MNEMONIC_BTC) &&
		    in.op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && !one_in(20))
			continue;
		/* Nearly all divisions would end the program. */
		if ((in.i.mnemonic == ZYDIS_MNEMONIC_DIV ||
		     in.i.mnemonic == ZYDIS_MNEMONIC_IDIV) &&
		    !one_in(8))
			continue;
		*add(p) = it;
		settle_flags(p, in.i.mnemonic);
		return;
	}
}

/* A division that works: rdx = 0, or its sign. */
static void add_division(struct program *p)
{
	unsigned r = free_register(p);
	uint8_t w = one_in(2) ? 0x48 : 0x40;

	if (reserved(p, HV_RAX) || reserved(p, HV_RDX) || r == HV_RDX)
		return;
	if (one_in(2)) {
		ADD(p, 0xba, 0, 0, 0, 0); /* no flags */
		ADD(p, w | (r > 7), 0xf7, (uint8_t)(0xf0 | (r & 7)));
	} else {
		ADD(p, w, 0x99);
		ADD(p, w | (r > 7), 0xf7, (uint8_t)(0xf8 | (r & 7)));
	}
	settle_flags(p, ZYDIS_MNEMONIC_DIV);
}

static void add_string(struct program *p)
{
	static const uint8_t ops[] = { 0xa4, 0xa6, 0xaa, 0xac, 0xae };
	uint8_t op = ops[below(5)] | (rnd() & 1);
	struct item *it;

	if (reserved(p, HV_RSI) || reserved(p, HV_RDI) || reserved(p, HV_RCX) ||
	    reserved(p, HV_RAX))
		return;
	it = ADD(p, 0x48, 0x8d, 0x35, 0, 0, 0, 0); /* lea rsi, [rip] */
	it->rip = 3;
	it->target = data_address(p);
	it = ADD(p, 0x48, 0x8d, 0x3d, 0, 0, 0, 0);
	it->rip = 3;
	/* Which of two faults of CMPS comes first is the processor's choice. */
	it->target = (op | 1) == 0xa7 ? DATA + below(0x2f00) : data_address(p);
	ADD(p, 0xb9, (uint8_t)below(20), 0, 0, 0);
	ADD(p, (uint8_t)(0xf2 + (rnd() & 1)), op);
}

static void add_stack(struct program *p)
{
	unsigned a = below(16), b = free_register(p);

	switch (below(5)) {
	case 0:
	case 1:
		ADD(p, (uint8_t)(0x40 | (a > 7)), (uint8_t)(0x50 | (a & 7)));
		for (unsigned n = below(3); n; n--)
			add_random(p);
		ADD(p, (uint8_t)(0x40 | (b > 7)), (uint8_t)(0x58 | (b & 7)));
		break;
	case 2: /* flags through the stack */
		ADD(p, 0x9c);
		for (unsigned n = below(3); n; n--)
			add_random(p);
		if (one_in(2))
			ADD(p, 0x9d);
		else
			ADD(p, (uint8_t)(0x40 | (b > 7)),
			    (uint8_t)(0x58 | (b & 7)));
		break;
	case 3:
		ADD(p, 0x9f); /* lahf: rax may be reserved, its 15:8 too */
		if (reserved(p, HV_RAX))
			p->n--;
		break;
	default:
		if (reserved(p, HV_RBP))
			return;
		ADD(p, 0x55);
		ADD(p, 0x48, 0x89, 0xe5);
		ADD(p, 0x48, 0x83, 0xec, 0x20);
		add_random(p);
		ADD(p, 0xc9);
	}
}

/* movb $imm, a byte of code: of what is chosen when all is there. */
static void add_patch(struct program *p)
{
	struct item *it;

	if (!p->patches)
		return;
	it = ADD(p, 0xc6, 0x05, 0, 0, 0, 0, 0);
	it->rip = 2;
	it->patches = true;
}

/* The byte of an item that may become another: of an immediate, or an ALU
 * operation's opcode.  Flags that are dead before do not become alive by that:
 * a translator has not kept them.  0: none. */
static unsigned patchable(const struct program *p, const struct item *it,
			  uint8_t *value)
{
	struct insn in;

	if (!it->n || it->rel || it->patches ||
	    !decode(it->bytes, it->n, &in) || !operands_fit(p, &in) ||
	    in.i.raw.imm[0].is_relative)
		return 0;
	do
		*value = (uint8_t)rnd();
	while (strchr("\x01\x05\x0f\x34\x80\xcd", *value));
	/* A shift by nothing keeps what flags were. */
	if (in.i.raw.imm[0].size)
		return in.i.meta.category == ZYDIS_CATEGORY_SHIFT ||
				       in.i.meta.category ==
					       ZYDIS_CATEGORY_ROTATE
			       ? 0
			       : in.i.raw.imm[0].offset;
	if (in.i.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
	    in.i.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
	    in.i.opcode >= 0x40 || (in.i.opcode & 7) > 3)
		return 0;
	*value = (uint8_t)((*value & 0x38) | (in.i.opcode & 7));
	if ((*value & 0x30) == 0x10) /* ADC, SBB */
		*value ^= 0x30;
	return in.i.raw.modrm.offset - 1u;
}

static void choose_patches(struct program *p)
{
	for (unsigned k = 0; k < p->n; k++) {
		struct item *it = &p->item[k];

		for (unsigned tries = 0; it->patches && tries < 200; tries++) {
			unsigned to = below(p->n), off;

			/* Mostly what runs next. */
			if (one_in(2))
				to = k + 1 + below(4);
			off = to < p->n ? patchable(p, &p->item[to],
						    &it->bytes[6])
					: 0;
			if (!off)
				continue;
			it->patched = (uint8_t)to;
			it->patched_off = (uint8_t)off;
			p->item[to].keep = true;
			break;
		}
		if (it->patches && !it->patched_off) {
			it->patches = false;
			it->target = DATA;
		}
	}
}

static void add_body(struct program *p, unsigned n)
{
	while (n--)
		switch (below(24)) {
		case 4: add_patch(p); break;
		case 0: add_stack(p); break;
		case 1: add_string(p); break;
		case 2: add_division(p); break;
		case 3:
			ADD(p, 0xf5 + 3 * (uint8_t)below(2));
			break; /* cmc clc */
		default: add_random(p);
		}
}

/* How block b of n ends.  Functions have the labels from first on. */
static void add_end(struct program *p, unsigned b, unsigned n, unsigned first,
		    unsigned functions)
{
	int to = 1 + (int)below(n);
	unsigned r = free_register(p);
	struct item *it;

	if (one_in(5)) /* forward, out */
		to = 0;
	switch (below(12)) {
	case 0: return;
	case 1:
		if (to && to <= (int)b + 1)
			add_fuel_check(p);
		add_jump(p, -1, to);
		return;
	case 2:
	case 3:
		if (!functions)
			return;
		it = ADD(p, 0xe8, 0, 0, 0, 0);
		it->rel = 1;
		it->label = (int8_t)(first + below(functions));
		return;
	case 4: /* through a register */
		add_fuel_check(p);
		it = ADD(p, (uint8_t)(0x48 | (r > 7)),
			 (uint8_t)(0xb8 | (r & 7)), 0, 0, 0, 0, 0, 0, 0, 0);
		it->rel = 2;
		it->abs64 = true;
		it->label = (int8_t)to;
		if (r > 7)
			ADD(p, 0x41, 0xff, (uint8_t)(0xe0 | (r & 7)));
		else
			ADD(p, 0xff, (uint8_t)(0xe0 | r));
		return;
	case 5: { /* movzx r, r8; jmp [TABLE + r * 8] */
		uint32_t at = TABLE;
		unsigned s = below(16);
		uint8_t b8[8] = { (uint8_t)(0x40 | (r > 7 ? 2 : 0)), 0xff, 0x24,
				  (uint8_t)(0xc5 | (r & 7) << 3) };

		add_fuel_check(p);
		ADD(p, (uint8_t)(0x40 | (r > 7 ? 4 : 0) | (s > 7)), 0x0f, 0xb6,
		    (uint8_t)(0xc0 | (r & 7) << 3 | (s & 7)));
		memcpy(b8 + 4, &at, 4);
		add_bytes(p, b8, 8);
		return;
	}
	case 6: /* loop, loope, loopne: over a jump */
		if (p->fuel != HV_RCX)
			return;
		ADD(p, (uint8_t)(0xe0 + below(3)), 0x05);
		add_jump(p, -1, 0);
		return;
	default:
		if (to && to <= (int)b + 1)
			add_fuel_check(p);
		add_jump(p, (int)below(16), to);
	}
}

static void make_program(struct program *p)
{
	unsigned blocks = 2 + below(6), functions = below(3);

	memset(p, 0, sizeof(*p));
	p->devices = one_in(3);
	p->segments = one_in(4);
	p->patches = one_in(3);
	p->blocks = blocks + functions;
	p->fuel_jrcxz = one_in(2);
	p->base[0] = p->base[1] = p->index = p->fuel = HV_RSP;
	p->fuel = p->fuel_jrcxz ? HV_RCX : free_register(p);
	do
		p->base[0] = free_register(p);
	while ((p->base[0] & 7) == 4);
	p->base[1] = free_register(p);
	p->index = free_register(p);
	p->start = below(4) ? 0xf00 + below(0x100) : below(0x2000);
	for (unsigned b = 0; b < blocks && p->n < 110; b++) {
		add_label(p, 1 + (int)b);
		add_body(p, 1 + below(8));
		add_end(p, b, blocks, 1 + blocks, functions);
	}
	/* What a full program has lost. */
	for (unsigned k = 0; k <= blocks; k++) {
		bool there = false;

		for (unsigned m = 0; m < p->n; m++)
			there |= !p->item[m].n && p->item[m].label == (int)k;
		if (!there)
			add_label(p, (int)k);
	}
	ADD(p, 0xcc);
	for (unsigned f = 0; f < functions; f++) {
		add_label(p, (int)(1 + blocks + f));
		add_body(p, 1 + below(5));
		ADD(p, 0xc3);
	}
	for (unsigned k = 0; k < 256; k++)
		p->table[k] = (uint8_t)below(blocks + 1);
	choose_patches(p);
}

/* -- state ---------------------------------------------------------------- */

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
		0x7fffffff,
		0x80000000,
		0xffffffff,
		0x7fffffffffffffff,
		0x8000000000000000,
		0x3f8000003f800000,
		0x3ff0000000000000,
		0x7ff0000000000000,
	};

	switch (below(4)) {
	case 0: return special[below(16)];
	case 1: return below(256);
	case 2: return 0x3ff0000000000000 + (rnd() >> 14);
	default: return rnd();
	}
}

static void put(uint8_t *p, unsigned at, const void *v, size_t n)
{
	memcpy(p + at, v, n);
}

static void random_state(const struct program *p, struct state *s)
{
	uint32_t mxcsr = 0x1f80, mask = 0xffff;
	const uint16_t cw = 0x37f;
	uint64_t bv = 7, w;

	memset(s, 0, sizeof(*s));
	for (unsigned k = 0; k < 16; k++)
		s->gpr[k] = random_word();
	s->gpr[HV_RSP] = STACK + 0x1000;
	s->gpr[p->base[0]] = DATA;
	s->gpr[p->base[1]] = DATA + 0x2800;
	s->gpr[p->index] = below(3) * 8;
	s->gpr[p->fuel] = 1 + below(60);
	s->rip = CODE + p->start;
	s->rflags = 0x202 | (rnd() & ARITH);
	if (one_in(3))
		mxcsr |= rnd() & 0xe03f;
	if (one_in(20))
		mxcsr ^= rnd() & 0x1380; /* but those of UE and OE */
	put(s->fpu, 0, &cw, 2);
	put(s->fpu, 24, &mxcsr, 4);
	put(s->fpu, 28, &mask, 4);
	put(s->fpu, 512, &bv, 8);
	for (unsigned k = 0; k < 32; k++) {
		w = random_word();
		put(s->fpu, 160 + k * 8, &w, 8);
		w = random_word();
		put(s->fpu, 576 + k * 8, &w, 8);
	}
	for (unsigned k = 0; k < DATA_SIZE; k += 8) {
		w = random_word();
		put(data_in, k, &w, 8);
	}
	for (unsigned k = 0; k < STACK_SIZE; k += 8) {
		w = k * 0x0101;
		put(stack_in, k, &w, 8);
	}
}

static void make_case(void)
{
	rng = seed * 0xd1342543de82ef95 + number * 0xbf58476d1ce4e5b9;
	rnd();
	do {
		make_program(&prog);
		memset(code_in, 0xcc, sizeof(code_in));
	} while (!assemble(&prog));
	random_state(&prog, &start);
}

/* -- what happened -------------------------------------------------------- */

static uint64_t hash(const uint8_t *p, size_t n)
{
	uint64_t h = 1469598103934665603, v;

	for (size_t k = 0; k < n; k += 8) {
		memcpy(&v, p + k, 8);
		h = (h ^ v) * 0x9e3779b97f4a7c15;
		h ^= h >> 29;
	}
	return h;
}

static struct event *event(struct result *r, const struct state *s)
{
	static struct state c;
	struct event *e = &r->ev[r->n < MAX_EVENTS - 1 ? r->n++ : r->n];

	memset(e, 0, sizeof(*e));
	c = *s;
	native_complete_fpu(c.fpu);
	e->rip = s->rip;
	e->rflags = s->rflags & 0x400;
	memcpy(e->gpr, s->gpr, sizeof(e->gpr));
	e->fpu = hash(c.fpu, sizeof(c.fpu));
	return e;
}

/* A page fault that is repaired, as a kernel would. */
static bool repairs(uint64_t cr2, bool write, bool present)
{
	uint64_t page = cr2 & ~0xfffull;

	return (page == LAZY && !present) || (page == COW && present && write);
}

/* -- on the processor ----------------------------------------------------- */

static struct result *output;
static uint8_t *text;

static void *at(uint32_t linear)
{
	return (void *)(uintptr_t)linear;
}

/* It may not find a way into the kernel. */
static bool may_call(void)
{
	for (unsigned k = 0; k + 2 < CODE_SIZE; k++) {
		const uint8_t *p = code_in + k;

		if ((p[0] == 0x0f && (p[1] == 5 || p[1] == 0x34)) ||
		    (p[0] == 0xcd && p[1] == 0x80) ||
		    (p[0] == 0x0f && p[1] == 1 && (p[2] & 0xc0) == 0xc0))
			return true;
	}
	return false;
}

static bool on_stop(struct native *from)
{
	static struct state s;
	struct event *e;

	memcpy(s.gpr, from->gpr, sizeof(s.gpr));
	memcpy(s.fpu, from->fpu, XSAVE_SIZE);
	s.rip = from->rip;
	s.rflags = from->rflags;
	e = event(output, &s);
	e->kind = from->vector;
	e->addr = from->vector == 14 ? from->cr2 : 0;
	if (from->vector == 14 &&
	    repairs(from->cr2, from->error & 2, from->error & 1) &&
	    output->n < MAX_EVENTS - 1) {
		mprotect(at((uint32_t)from->cr2 & ~0xfffu), 4096,
			 PROT_READ | PROT_WRITE);
		return true;
	}
	output->end = s;
	return false;
}

static void on_lost(int sig, uint64_t rip, const void *address)
{
	printf("# --seed %" PRIu64 " --first %" PRIu64
	       ": signal %d at %#" PRIx64 ", address %p\n",
	       seed, number, sig, rip, address);
}

static void processor_start(void)
{
	text = native_map_code(CODE, CODE_SIZE);
	native_map(DATA, DATA_SIZE);
	native_map(STACK, STACK_SIZE);
	native_map(TABLE, 4096);
	native_start(on_stop, on_lost, false);
}

static void processor_run(struct result *r)
{
	static struct native n;

	r->n = 0;
	r->kicks = 0;
	memcpy(text, code_in, CODE_SIZE);
	mprotect(at(CODE), CODE_SIZE,
		 PROT_READ | PROT_EXEC | (prog.patches ? PROT_WRITE : 0));
	mprotect(at(DATA), DATA_SIZE, PROT_READ | PROT_WRITE);
	mprotect(at(TABLE), 4096, PROT_READ | PROT_WRITE);
	memcpy(at(DATA), data_in, DATA_SIZE);
	memcpy(at(STACK), stack_in, STACK_SIZE);
	memcpy(at(TABLE), table_in, 4096);
	mprotect(at(LAZY), 4096, PROT_NONE);
	mprotect(at(COW), 4096, PROT_READ);
	mprotect(at(TABLE), 4096, PROT_READ);
	memcpy(n.gpr, start.gpr, sizeof(n.gpr));
	memcpy(n.fpu, start.fpu, XSAVE_SIZE);
	n.rip = start.rip;
	n.rflags = start.rflags;
	output = r;
	native_run(&n, 10);
	mprotect(at(DATA), DATA_SIZE, PROT_READ | PROT_WRITE);
	memcpy(r->data, at(DATA), DATA_SIZE);
	memcpy(r->stack, at(STACK), STACK_SIZE);
}

/* -- on an engine --------------------------------------------------------- */

struct side {
	const char *name, *engine;
	bool kicked;
	_Atomic bool endless;
	struct bare g;
	struct hv_state first, st;
	struct result r;
};

static struct side sides[] = {
	{ .name = "interp", .engine = "soft,interp" },
	{ .name = "eager", .engine = "soft,eager" },
	{ .name = "soft", .engine = "soft" },
	{ .name = "kicked", .engine = "soft,eager", .kicked = true },
};

static struct side *_Atomic running; /* the one to be kicked */
static struct side *_Atomic watched; /* and the one that may not end */
static _Atomic uint32_t runs;
static _Atomic bool done;

static void *kicker(void *arg)
{
	struct timespec ts = { 0, 20000 };
	uint32_t seen = 0;
	time_t since = 0;

	while (!atomic_load(&done)) {
		struct side *s = atomic_load(&running);
		uint32_t now = atomic_load(&runs);

		if (s)
			hv_vcpu_kick(s->g.cpu);
		s = atomic_load(&watched);
		if (now != seen || !s) {
			seen = now;
			since = time(NULL);
		} else if (time(NULL) - since > (s == sides ? 1 : 20)) {
			atomic_store(&s->endless, true);
			hv_vcpu_kick(s->g.cpu);
		}
		nanosleep(&ts, NULL);
	}
	return NULL;
}

static void put64(struct side *s, uint64_t where, uint64_t v)
{
	memcpy(s->g.mem + where, &v, 8);
}

static void map(struct side *s, uint32_t linear, uint64_t entry)
{
	put64(s, PT + ((linear >> 12) & 511) * 8, entry);
}

static void side_start(struct side *s)
{
	static const uint8_t none[1];

	bare_start(&s->g, s->engine, BARE_LONG, none, none);
	put64(s, BARE_PD0, 0x83); /* the handlers' own */
	put64(s, BARE_PDPT + 8, 0);
	put64(s, BARE_TSS + 0x60, 0xffffull << 48); /* no ports */
	put64(s, BARE_PD0 + (BASE >> 21) * 8, PT | 7);
	bare_get(&s->g, HV_STATE_ALL, &s->first);
	for (int i = HV_ES; i <= HV_GS; i++) {
		s->first.seg[i].selector = i == HV_CS ? 0x1b : 0x23;
		s->first.seg[i].access |= 0x60;
	}
	s->first.seg[HV_FS].base = 0x18;
	s->first.seg[HV_GS].base = (uint64_t)-8;
	s->first.efer |= 0x800;
	s->first.cr0 |= 0x40000; /* AM: POPF may set AC */
	s->first.cr4 |= 0x40000;
	s->first.xcr0 = 7;
}

static void tables(struct side *s)
{
	const uint64_t nx = 1ull << 63;

	memset(s->g.mem + PT, 0, 4096);
	for (unsigned k = 0; k < CODE_SIZE; k += 4096)
		map(s, CODE + k, (CODE_GPA + k) | (prog.patches ? 7 : 5));
	for (unsigned k = 0; k < 3 * 4096; k += 4096)
		map(s, DATA + k, (DATA_GPA + k) | 7 | nx);
	map(s, COW, (DATA_GPA + COW - DATA) | 5 | nx);
	if (prog.devices)
		map(s, DEVICE, BARE_HOLE | 7 | nx);
	for (unsigned k = 0; k < STACK_SIZE; k += 4096)
		map(s, STACK + k, (STACK_GPA + k) | 7 | nx);
	map(s, TABLE, TABLE_GPA | 5 | nx);
}

static void repair(struct side *s, uint64_t cr2)
{
	uint32_t page = (uint32_t)cr2 & ~0xfffu;

	map(s, page, (DATA_GPA + page - DATA) | 7 | 1ull << 63);
}

static void take(const struct hv_state *st, struct state *s)
{
	memcpy(s->gpr, st->gpr, sizeof(s->gpr));
	memcpy(s->fpu, st->fpu, XSAVE_SIZE);
	s->rip = st->rip;
	s->rflags = st->rflags;
}

static void set(struct side *s, unsigned groups, const struct hv_state *st)
{
	int r = hv_vcpu_set(s->g.cpu, groups, st);

	if (r)
		bare_die("hv_vcpu_set", r);
}

/* A fault's handler has been reached.  False: the program is over. */
static bool on_fault(struct side *s)
{
	static struct state at_fault;
	uint32_t vector = s->g.exit.pio.port - BARE_FAULT_PORT, error = 0;
	uint64_t frame[6], *p = frame;
	struct event *e;

	bare_get(&s->g, HV_STATE_ALL, &s->st);
	memcpy(frame, s->g.mem + (s->st.gpr[HV_RSP] & (BARE_MEMORY - 1)), 48);
	if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
		error = (uint32_t)*p++;
	take(&s->st, &at_fault);
	at_fault.rip = p[0];
	at_fault.rflags = p[2];
	at_fault.gpr[HV_RSP] = p[3];
	e = event(&s->r, &at_fault);
	e->kind = vector;
	e->error = error;
	e->addr = vector == 14 ? s->st.cr2 : 0;
	if (vector != 14 || !repairs(s->st.cr2, error & 2, error & 1) ||
	    s->r.n == MAX_EVENTS - 1) {
		s->r.end = at_fault;
		return false;
	}
	repair(s, s->st.cr2);
	s->st.rip = p[0];
	s->st.rflags = p[2];
	s->st.gpr[HV_RSP] = p[3];
	s->st.seg[HV_CS] = s->first.seg[HV_CS];
	s->st.seg[HV_SS] = s->first.seg[HV_SS];
	set(s, HV_STATE_GENERAL | HV_STATE_SYSTEM, &s->st);
	return true;
}

static bool on_mmio(struct side *s)
{
	static struct state state;
	struct hv_exit *x = &s->g.exit;
	struct event *e;

	memset(&state, 0, sizeof(state));
	e = event(&s->r, &state);
	e->kind = 100;
	e->addr = x->mmio.gpa;
	e->error = x->mmio.size | x->mmio.write << 8;
	if (x->mmio.write)
		e->value = x->mmio.value;
	else
		x->mmio.value = (x->mmio.gpa + s->r.n) * 0x9e3779b97f4a7c15;
	return s->r.n < MAX_EVENTS - 1;
}

static void side_run(struct side *s)
{
	bool on = true;

	s->r.n = 0;
	s->r.kicks = 0;
	memcpy(s->g.mem + CODE_GPA, code_in, CODE_SIZE);
	memcpy(s->g.mem + DATA_GPA, data_in, DATA_SIZE);
	memcpy(s->g.mem + STACK_GPA, stack_in, STACK_SIZE);
	memcpy(s->g.mem + TABLE_GPA, table_in, 4096);
	tables(s);
	hv_mem_written(s->g.vm, CODE_GPA, CODE_SIZE);
	s->st = s->first;
	memcpy(s->st.gpr, start.gpr, sizeof(start.gpr));
	memcpy(s->st.fpu, start.fpu, XSAVE_SIZE);
	s->st.rip = start.rip;
	s->st.rflags = start.rflags;
	set(s, HV_STATE_ALL, &s->st);
	atomic_store(&s->endless, false);
	atomic_fetch_add(&runs, 1);
	atomic_store(&watched, s);
	if (s->kicked)
		atomic_store(&running, s);
	while (on) {
		switch (bare_run(&s->g)) {
		case HV_EXIT_KICKED:
			if (atomic_load(&s->endless)) {
				on = false;
				break;
			}
			s->r.kicks++;
			atomic_store(&running, NULL);
			bare_get(&s->g, HV_STATE_ALL, &s->st);
			set(s, HV_STATE_ALL, &s->st);
			atomic_store(&running, s);
			break;
		case HV_EXIT_MMIO: on = on_mmio(s); break;
		case HV_EXIT_PIO:
			hv_vcpu_complete(s->g.cpu, &s->g.exit);
			on = on_fault(s);
			break;
		default:
			printf("# %s: exit %d\n", s->name, s->g.exit.reason);
			bare_die("a program left by an unknown exit", EIO);
		}
	}
	atomic_store(&running, NULL);
	atomic_store(&watched, NULL);
	while (hv_vcpu_complete(s->g.cpu, &s->g.exit) == 1)
		;
	if (s->g.exit.reason == HV_EXIT_MMIO) {
		bare_get(&s->g, HV_STATE_ALL, &s->st);
		take(&s->st, &s->r.end);
	}
	memcpy(s->r.data, s->g.mem + DATA_GPA, DATA_SIZE);
	memcpy(s->r.stack, s->g.mem + STACK_GPA, STACK_SIZE);
}

/* -- comparing ------------------------------------------------------------ */

static const char *const reg_names[16] = {
	"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
};

static bool same(const char *what, uint64_t x, uint64_t y, bool show)
{
	if (x != y && show)
		printf("#   %-12s %016" PRIx64 "  %016" PRIx64 "\n", what, x,
		       y);
	return x == y;
}

/*
 * A program may come into the middle of an instruction, and so to CMPS: which
 * of its two operands faults first is the processor's choice.
 */
static bool at_cmps(uint64_t rip)
{
	const uint8_t *p = code_in + (rip - CODE);
	struct insn in;

	return rip >= CODE && rip < CODE + CODE_SIZE - 16 &&
	       decode(p, 15, &in) &&
	       in.i.meta.category == ZYDIS_CATEGORY_STRINGOP &&
	       (in.i.opcode | 1) == 0xa7;
}

/* loose: which of two pages faults first is the processor's choice. */
static bool same_event(const struct event *x, const struct event *y,
		       bool native, bool show)
{
	bool ok = same("kind", x->kind, y->kind, show);

	if (native && at_cmps(x->rip) && x->kind < 32 && y->kind < 32)
		return same("rip", x->rip, y->rip, show);
	if (!native || (x->kind == 14 && x->addr >> 47 == 0))
		ok &= same("address", x->addr, y->addr, show);
	if (!native)
		ok &= same("error", x->error, y->error, show);
	ok &= same("value", x->value, y->value, show);
	ok &= same("rip", x->rip, y->rip, show);
	ok &= same("flags", x->rflags, y->rflags, show);
	for (unsigned k = 0; k < 16; k++)
		ok &= same(reg_names[k], x->gpr[k], y->gpr[k], show);
	ok &= same("fpu hash", x->fpu, y->fpu, show);
	return ok;
}

static bool same_bytes(const char *what, uint32_t where, const uint8_t *x,
		       const uint8_t *y, size_t n, bool show)
{
	bool ok = true;

	for (size_t k = 0; k < n; k += 8)
		if (memcmp(x + k, y + k, 8)) {
			uint64_t v, w;
			char name[32];

			ok = false;
			memcpy(&v, x + k, 8);
			memcpy(&w, y + k, 8);
			snprintf(name, sizeof(name), "%s %zx", what, where + k);
			same(name, v, w, show);
		}
	return ok;
}

static bool same_result(const struct result *x, const struct result *y,
			bool native, bool show)
{
	static struct state a, b;
	uint64_t flags = 0x400;
	bool ok = true;

	for (unsigned k = 0; k < x->n && k < y->n && ok; k++) {
		ok = same_event(&x->ev[k], &y->ev[k], native, false);
		if (!ok && show) {
			printf("# event %u:\n", k);
			same_event(&x->ev[k], &y->ev[k], native, true);
		}
	}
	ok &= same("events", x->n, y->n, show);
	a = x->end;
	b = y->end;
	native_complete_fpu(a.fpu);
	native_complete_fpu(b.fpu);
	/* Only int3 says that the program came to its end. */
	if (x->n && x->ev[x->n - 1].kind == 3)
		flags |= ARITH;
	ok &= same("rip", a.rip, b.rip, show);
	ok &= same("rflags", a.rflags & flags, b.rflags & flags, show);
	for (unsigned k = 0; k < 16; k++)
		ok &= same(reg_names[k], a.gpr[k], b.gpr[k], show);
	ok &= same_bytes("xsave", 0, a.fpu, b.fpu, XSAVE_SIZE, show);
	ok &= same_bytes("data", DATA, x->data, y->data, DATA_SIZE, show);
	ok &= same_bytes("stack", STACK, x->stack, y->stack, STACK_SIZE, show);
	return ok;
}

/* -- cases ---------------------------------------------------------------- */

static bool with_kicks = true, with_native = true;
static struct result native;

/* Runs it everywhere; true: all the same.  show: print what is not. */
static bool run_case(bool show)
{
	bool ok = true;

	for (unsigned k = 0; k < sizeof(sides) / sizeof(sides[0]); k++) {
		struct side *s = &sides[k];

		if (s->kicked && !with_kicks)
			continue;
		side_run(s);
		if (!k && atomic_load(&s->endless))
			return true;
		if (!k || (!atomic_load(&s->endless) &&
			   same_result(&sides[0].r, &s->r, false, false)))
			continue;
		ok = false;
		if (show) {
			printf("#   %-12s %-16s  %s\n", "", sides[0].name,
			       s->name);
			if (atomic_load(&s->endless))
				printf("# does not end\n");
			same_result(&sides[0].r, &s->r, false, true);
		}
	}
	if (!with_native || prog.devices || prog.segments || may_call())
		return ok;
	processor_run(&native);
	if (!same_result(&native, &sides[0].r, true, false)) {
		ok = false;
		if (show) {
			printf("#   %-12s %-16s  %s\n", "", "processor",
			       sides[0].name);
			same_result(&native, &sides[0].r, true, true);
		}
	}
	return ok;
}

static void show_program(void)
{
	ZydisFormatter f;
	uint32_t where = prog.start;

	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	printf("# fuel %s, bases %s %s, index %s\n", reg_names[prog.fuel],
	       reg_names[prog.base[0]], reg_names[prog.base[1]],
	       reg_names[prog.index]);
	for (unsigned k = 0; k < prog.n; k++) {
		const struct item *it = &prog.item[k];

		if (!it->n) {
			printf("# %d:\n", it->label);
			continue;
		}
		for (unsigned o = 0; o < it->n && !it->dropped;) {
			struct insn in;
			char text_of[128] = "?";

			if (!decode(it->bytes + o, it->n - o, &in))
				break;
			ZydisFormatterFormatInstruction(
				&f, &in.i, in.op, in.i.operand_count_visible,
				text_of, sizeof(text_of), CODE + where + o,
				NULL);
			printf("#   %x: %-40s [", CODE + where + o, text_of);
			for (unsigned m = 0; m < in.i.length; m++)
				printf("%02x", it->bytes[o + m]);
			printf("]\n");
			o += in.i.length;
		}
		if (!it->dropped)
			where += it->n;
	}
	for (unsigned k = 0; k < 16; k++)
		printf("#   %-4s %016" PRIx64 "%s", reg_names[k], start.gpr[k],
		       k % 4 == 3 ? "\n" : "");
	printf("#   rflags %" PRIx64 "\n", start.rflags);
}

/* Drops what is not needed for the difference. */
static void reduce(void)
{
	bool smaller = true;

	while (smaller) {
		smaller = false;
		for (unsigned k = 0; k < prog.n; k++) {
			struct item *it = &prog.item[k];

			/* A loop without its check would not end. */
			if (!it->n || it->dropped || it->rel || it->keep ||
			    it->bytes[0] == 0xe3 ||
			    (it->n == 4 && it->bytes[1] == 0x8d &&
			     it->bytes[2] == 0x49) ||
			    (it->n == 3 && it->bytes[1] == 0xff &&
			     (it->bytes[2] & 0xf8) == 0xc8))
				continue;
			it->dropped = true;
			memset(code_in, 0xcc, sizeof(code_in));
			assemble(&prog);
			if (run_case(false))
				it->dropped = false;
			else
				smaller = true;
		}
	}
	memset(code_in, 0xcc, sizeof(code_in));
	assemble(&prog);
}

static uint64_t number_arg(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	if (*end || !*s) {
		fprintf(stderr, "blocks: %s is not a number\n", s);
		exit(2);
	}
	return v;
}

int main(int argc, char **argv)
{
	uint64_t first = 0, count = 3000, differ = 0, events = 0, kicks = 0;
	uint64_t ends = 0, blocks = 0, max_blocks = 0;
	pthread_t t;

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc) {
			fprintf(stderr, "blocks: %s needs a value\n", argv[i]);
			return 2;
		}
		if (!strcmp(argv[i], "--seed"))
			seed = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--first"))
			first = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--count"))
			count = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--blocks"))
			max_blocks = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--kick"))
			with_kicks = number_arg(argv[i + 1]);
		else if (!strcmp(argv[i], "--native"))
			with_native = number_arg(argv[i + 1]);
		else {
			fprintf(stderr, "blocks: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	if (!__builtin_cpu_supports("avx2")) {
		printf("1..0 # SKIP this processor has no AVX2\n");
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("# seed %" PRIu64 ", from program %" PRIu64 "\n", seed, first);
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64,
			 ZYDIS_STACK_WIDTH_64);
	for (unsigned k = 0; k < sizeof(sides) / sizeof(sides[0]); k++)
		side_start(&sides[k]);
	if (with_native)
		processor_start();
	if (pthread_create(&t, NULL, kicker, NULL))
		bare_die("a thread", EAGAIN);
	if (max_blocks)
		count = UINT64_MAX - first;
	for (number = first; number < first + count; number++) {
		if (max_blocks && blocks >= max_blocks)
			break;
		make_case();
		blocks += prog.blocks;
		if (run_case(true)) {
			const struct result *r = &sides[0].r;

			events += r->n;
			kicks += sides[3].r.kicks;
			ends += r->n && r->ev[r->n - 1].kind == 3;
			continue;
		}
		printf("# --seed %" PRIu64 " --first %" PRIu64
		       " --count 1 differs:\n",
		       seed, number);
		if (++differ > 8)
			continue;
		reduce();
		show_program();
		if (run_case(true))
			printf("# not always\n");
	}
	atomic_store(&done, true);
	pthread_join(t, NULL);
	for (unsigned k = 0; k < sizeof(sides) / sizeof(sides[0]); k++)
		bare_stop(&sides[k].g);
	printf("# %" PRIu64 " came to their end, %" PRIu64
	       " faults and exits, %" PRIu64 " kicks\n",
	       ends, events, kicks);
	printf("%sok 1 - %" PRIu64 " programs, %" PRIu64 " blocks, %" PRIu64
	       " differ\n1..1\n",
	       differ ? "not " : "", number - first, blocks, differ);
	return differ ? 1 : 0;
}
