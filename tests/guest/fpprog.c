/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fpprog.c - floating-point programs on the soft engine and on the processor
 *
 * fpprog [--seed S] [--rounds N] [--engine E] [NAME]
 *
 * Where differ has single instructions, these are loops that mix x87, MMX,
 * SSE and AVX, change control words on the way and fault in the middle.  Each
 * runs in this process and at CPL 3 of a guest, on the same random data at
 * the same addresses.  At a fault both sides note their whole state and go on
 * at the address in r12; an int3 ends the program.  What was noted must be
 * equal.  TS, EM and MP are CR0's: those programs run at CPL 0 on two engines.
 */
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
	HOLE = DATA + DATA_SIZE,
	XSAVE_SIZE = NATIVE_XSAVE,
	MAX_STOPS = 64,
};

#define ARITH 0x8d5u

struct run {
	unsigned n;
	struct native stop[MAX_STOPS]; /* faults, and the int3 at the end */
	uint8_t data[DATA_SIZE];
};

static uint64_t seed = 1, rng;
static unsigned tests, failures;

static uint64_t rnd(void)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void check(bool ok, const char *what, const char *name)
{
	printf("%sok %u - %s: %s\n", ok ? "" : "not ", ++tests, name, what);
	failures += !ok;
}

/* -- programs ------------------------------------------------------------- */

/*
 * rsi: DATA, rdi: its second page, r12: 0.  0(rsi): any bytes; 0x400(rsi):
 * doubles of moderate size; 0x800(rsi): doubles of all kinds; 0xc00(rsi): x87
 * registers of all kinds, 16 bytes each.
 */
/* clang-format off */

PAYLOAD(p_x87, 64,
	"fninit\n mov $60, %ecx\n"
	"1: fldl 0x400(%rsi,%rcx,8)\n fldl 0x800(%rsi,%rcx,8)\n"
	"fadd %st(1), %st\n fmul %st, %st(1)\n fcomi %st(1), %st\n"
	"fcmovb %st(1), %st\n jp 2f\n fld %st(1)\n fsubrp %st, %st(1)\n"
	"fdivr %st(1), %st\n jmp 3f\n"
	"2: fabs\n fchs\n 3: fucomip %st(1), %st\n setb %al\n adc $0, %r8\n"
	"mov %al, 0x700(%rdi,%rcx)\n fnstsw %ax\n"
	"mov %ax, 0x600(%rdi,%rcx,2)\n fstpl (%rdi,%rcx,8)\n"
	"fildl (%rsi,%rcx,4)\n fiaddl 4(%rsi)\n fimuls (%rsi,%rcx,2)\n"
	"fisubrl 0x400(%rsi,%rcx,4)\n fsts 0x300(%rdi,%rcx,4)\n"
	"fstpt 0x400(%rdi,%rcx,8)\n dec %ecx\n jnz 1b\n fstcw 2(%rdi)\n");

/* Every rounding and the precisions that are not reserved. */
PAYLOAD(p_rounding, 64,
	"fninit\n xor %r8d, %r8d\n lea 0x100(%rdi), %r9\n"
	"1: mov %r8d, %eax\n and $7, %eax\n shl $9, %eax\n or $0x7f, %eax\n"
	"mov %ax, (%rdi)\n fldcw (%rdi)\n"
	"fldl 0x400(%rsi,%r8,8)\n fdivl 0x440(%rsi,%r8,8)\n"
	"fld %st(0)\n fistl (%r9)\n fistps 4(%r9)\n"
	"fld %st(0)\n fistpll 8(%r9)\n fld %st(0)\n frndint\n"
	"fstps 16(%r9)\n fld %st(0)\n fsqrt\n fstpl 20(%r9)\n"
	"fld %st(0)\n fbstp 28(%r9)\n fbld 28(%r9)\n fsubr %st(1), %st\n"
	"fstpt 38(%r9)\n fmuls 0x800(%rsi,%r8,4)\n fstpt 48(%r9)\n"
	"fnstcw 58(%r9)\n fnstsw 60(%r9)\n"
	"add $64, %r9\n inc %r8d\n cmp $24, %r8d\n jb 1b\n");

/* Overflow and underflow of the stack, odd formats, the long functions. */
/* Environments: moved, changed, with everything pending but masked. */
PAYLOAD(p_env, 64,
	"fninit\n xor %r8d, %r8d\n"
	"1: fldt 0xc00(%rsi,%r8)\n fldt 0xc10(%rsi,%r8)\n fmulp\n"
	"fnstenv (%rdi)\n mov 4(%rdi), %eax\n mov %eax, 0x100(%rdi,%r8)\n"
	"mov 8(%rdi), %eax\n mov %eax, 0x104(%rdi,%r8)\n"
	"movw $0xf7f, (%rdi)\n movw $0xb8bf, 4(%rdi)\n"
	"movl $0x12345678, 12(%rdi)\n movl $0xfedc0023, 16(%rdi)\n"
	"movl $0x9abcdef0, 20(%rdi)\n fldenv (%rdi)\n fldpi\n"
	"fstps 0x108(%rdi,%r8)\n fnstenv 0x20(%rdi)\n fnclex\n"
	"fldenv 0x20(%rdi)\n fstpt 0x200(%rdi,%r8)\n fnstsw 0x10c(%rdi,%r8)\n"
	"mov %r8d, %eax\n rorw $8, 4(%rdi)\n andw $0x7f7f, 4(%rdi)\n"
	"fldenv (%rdi)\n data16 fnstenv 0x40(%rdi)\n data16 fldenv 0x40(%rdi)\n"
	"add $16, %r8d\n cmp $240, %r8d\n jb 1b\n fnclex\n"
	"movw $0xf7e, 0x20(%rdi)\n lea 2f(%rip), %r12\n fldenv 0x20(%rdi)\n"
	"fldpi\n 2: fninit\n"
	/* The pointers are the processor's. */
	"xor %eax, %eax\n mov %rax, 12(%rdi)\n mov %rax, 20(%rdi)\n"
	"mov %rax, 0x2c(%rdi)\n mov %rax, 0x34(%rdi)\n"
	"mov %rax, 0x46(%rdi)\n");

PAYLOAD(p_stack, 64,
	"fninit\n mov $48, %ecx\n mov %rdi, %r9\n"
	"1: mov %ecx, %eax\n and $31, %eax\n shl $4, %eax\n"
	"fldt 0xc00(%rsi,%rax)\n fxam\n fnstsw (%r9)\n"
	"test $3, %cl\n jz 2f\n fxch %st(3)\n fxtract\n fscale\n fprem\n"
	"fnstsw %ax\n fpatan\n fsin\n jmp 3f\n"
	"2: ffree %st(2)\n fincstp\n f2xm1\n fyl2x\n fptan\n fprem1\n"
	"fdecstp\n fdecstp\n fsincos\n fyl2xp1\n"
	"3: fstpt 16(%r9)\n fnstsw 2(%r9)\n"
	"test $7, %cl\n jnz 4f\n fnclex\n"
	"4: cmp $20, %ecx\n jne 5f\n fninit\n"
	"5: .byte 0xdf, 0xc1\n fucompp\n ftst\n fnop\n fwait\n"
	"add $32, %r9\n dec %ecx\n jnz 1b\n");

PAYLOAD(p_mmx, 64,
	"fninit\n fld1\n fldpi\n mov $100, %ecx\n"
	"1: movq (%rsi,%rcx,8), %mm0\n movq %mm0, %mm7\n"
	"paddsb 8(%rsi), %mm0\n psadbw %mm7, %mm0\n pshufw $0x1b, %mm7, %mm3\n"
	"pmaddwd %mm3, %mm7\n pmovmskb %mm7, %r13d\n pinsrw $2, %r13d, %mm3\n"
	"pextrw $1, %mm3, %r15d\n add %r15, %r13\n movd %r13d, %mm5\n"
	"packuswb %mm3, %mm5\n psrlq $3, %mm5\n movd %mm5, %eax\n"
	"movq2dq %mm5, %xmm1\n paddq %xmm1, %xmm2\n movdq2q %xmm2, %mm6\n"
	"cvtpi2ps (%rsi,%rcx,8), %xmm3\n cvttps2pi %xmm3, %mm4\n"
	"cvtpi2pd %mm4, %xmm4\n cvtpd2pi %xmm4, %mm1\n"
	"movq %mm5, (%rdi,%rcx,8)\n movntq %mm6, 8(%rdi)\n"
	"pxor %mm1, %mm0\n movq %mm0, %rax\n add %rax, %r8\n"
	"test $7, %cl\n jnz 2f\n emms\n fldl 0x400(%rsi,%rcx,8)\n"
	"fstpt 0x400(%rdi,%rcx,8)\n"
	"2: dec %ecx\n jnz 1b\n emms\n fninit\n fldpi\n");

/* MXCSR: all roundings, FZ and DAZ, all masked; memory CVT with no vector. */
PAYLOAD(p_mxcsr, 64,
	"xor %r8d, %r8d\n"
	"1: mov %r8d, %eax\n and $7, %eax\n shl $13, %eax\n"
	"test $1, %r8b\n jz 2f\n or $0x40, %eax\n"
	"2: or $0x1f80, %eax\n mov %eax, (%rdi)\n ldmxcsr (%rdi)\n"
	"cvtsd2si 0x400(%rsi,%r8,8), %r9\n cvtss2si 0x800(%rsi,%r8,8), %eax\n"
	"cvttsd2si 0x800(%rsi,%r8,8), %r13\n xor %r13, %r9\n"
	"add %r9, %r10\n add %rax, %r10\n"
	"movupd 0x400(%rsi,%r8,8), %xmm0\n movupd 0x800(%rsi,%r8,8), %xmm1\n"
	"mulpd %xmm1, %xmm0\n sqrtpd %xmm0, %xmm2\n divsd %xmm2, %xmm1\n"
	"cvtpd2ps %xmm1, %xmm3\n cvtps2dq 0x800(%rsi), %xmm4\n"
	"addps 0x810(%rsi), %xmm3\n ucomisd %xmm0, %xmm2\n adc $0, %r10\n"
	"movupd %xmm0, 0x10(%rdi,%r8,8)\n movups %xmm3, 0x810(%rdi,%r8,8)\n"
	"stmxcsr (%rdi)\n mov (%rdi), %eax\n mov %eax, 0x600(%rdi,%r8,4)\n"
	"inc %r8d\n cmp $100, %r8d\n jb 1b\n"
	"movl $0x1f80, (%rdi)\n ldmxcsr (%rdi)\n");

/* #PF, #GP and #SS (a non-canonical stack) between operations. */
PAYLOAD(p_faults, 64,
	"fninit\n fldpi\n fld1\n xor %r8d, %r8d\n mov $0x10004000, %r9\n"
	"mov $0x8000000000000000, %r10\n"
	"1: fadd %st, %st(1)\n movupd 0x400(%rsi,%r8,8), %xmm0\n"
	"addpd %xmm0, %xmm1\n"
	"lea 2f(%rip), %r12\n faddl (%r9)\n mulpd %xmm1, %xmm1\n"
	"2: lea 3f(%rip), %r12\n fmul %st, %st(1)\n fstpt -4(%r9)\n"
	"3: lea 4f(%rip), %r12\n addpd 8(%rsi), %xmm1\n"
	"4: lea 5f(%rip), %r12\n fsubrs (%r10)\n"
	"5: lea 6f(%rip), %r12\n movupd %xmm1, -8(%r9)\n"
	"6: lea 7f(%rip), %r12\n fldl 0x400(%rsi)\n fistl (%r9)\n"
	"7: fstpl 0x10(%rdi,%r8,8)\n movq %xmm1, 0x100(%rdi,%r8,8)\n"
	"lea 8f(%rip), %r12\n fldt -2(%r9)\n fnstsw %ax\n"
	"8: inc %r8d\n cmp $6, %r8d\n jb 1b\n");

/* Unmasked and back: pending at loads, at waits and at MMX. */
PAYLOAD(p_mf, 64,
	"movw $0x37f, (%rdi)\n movw $0x37b, 2(%rdi)\n movw $0x362, 4(%rdi)\n"
	"fninit\n xor %r8d, %r8d\n"
	"1: mov $20, %ecx\n 2: fldl 0x400(%rsi,%rcx,8)\n fsqrt\n"
	"fstpl 0x20(%rdi,%rcx,8)\n loop 2b\n"
	"lea 3f(%rip), %r12\n fldz\n fld1\n fldcw 2(%rdi)\n"
	"fdiv %st(1), %st\n inc %r9\n fld1\n inc %r9\n"
	"3: lea 4f(%rip), %r12\n inc %r10\n fwait\n inc %r10\n"
	"4: lea 5f(%rip), %r12\n movq (%rsi), %mm0\n inc %r10\n"
	"5: fnstsw %ax\n mov %ax, 8(%rdi,%r8,2)\n lea 6f(%rip), %r12\n"
	"fldcw (%rdi)\n fnop\n"
	"6: fnclex\n fldcw 4(%rdi)\n lea 7f(%rip), %r12\n"
	"fldt 0xc00(%rsi)\n fmull 0x800(%rsi,%r8,8)\n faddl 0x808(%rsi)\n"
	"fstps 0x200(%rdi)\n fwait\n"
	"7: fninit\n fldcw (%rdi)\n inc %r8d\n cmp $4, %r8d\n jb 1b\n");

/* The same of MXCSR. */
PAYLOAD(p_xm, 64,
	"movl $0x1f80, (%rdi)\n movl $0x1d80, 4(%rdi)\n movl $0, 8(%rdi)\n"
	"movl $0x10000, 12(%rdi)\n xor %r8d, %r8d\n xorps %xmm7, %xmm7\n"
	"1: ldmxcsr (%rdi)\n mov $20, %ecx\n"
	"2: movsd 0x400(%rsi,%rcx,8), %xmm0\n sqrtsd %xmm0, %xmm0\n"
	"addsd %xmm0, %xmm1\n loop 2b\n"
	"lea 3f(%rip), %r12\n ldmxcsr 4(%rdi)\n movaps %xmm1, %xmm2\n"
	"divpd %xmm7, %xmm2\n inc %r9\n"
	"3: lea 4f(%rip), %r12\n ldmxcsr 8(%rdi)\n inc %r9\n"
	"mulsd 0x800(%rsi,%r8,8), %xmm1\n inc %r9\n"
	"4: lea 5f(%rip), %r12\n ldmxcsr 12(%rdi)\n inc %r9\n"
	"5: lea 6f(%rip), %r12\n ldmxcsr 0x10002000\n inc %r9\n"
	"6: stmxcsr 0x10(%rdi,%r8,4)\n movl $0x1f80, (%rdi)\n ldmxcsr (%rdi)\n"
	"lea 7f(%rip), %r12\n stmxcsr 0x10003ffe\n"
	"7: inc %r8d\n cmp $4, %r8d\n jb 1b\n");

/* Halves of registers, with x87 and MMX between them. */
PAYLOAD(p_avx, 64,
	"fninit\n mov $40, %ecx\n"
	"1: vmovdqu (%rsi,%rcx,8), %ymm0\n vpaddd 0x20(%rsi), %ymm0, %ymm9\n"
	"paddd %xmm9, %xmm0\n vextracti128 $1, %ymm9, %xmm10\n"
	"fildl (%rsi,%rcx,8)\n fsqrt\n fstpl (%rdi,%rcx,8)\n"
	"vfmadd231pd 0x400(%rsi,%rcx,8), %ymm9, %ymm11\n"
	"vpermq $0x1b, %ymm0, %ymm12\n vpxor %ymm12, %ymm13, %ymm13\n"
	"test $3, %cl\n jnz 2f\n vzeroupper\n movq (%rsi), %mm3\n"
	"paddb %mm3, %mm3\n movq %mm3, 0x400(%rdi)\n emms\n"
	"2: vbroadcastsd 0x400(%rsi,%rcx,8), %ymm14\n"
	"vcvtps2dq 0x800(%rsi), %ymm15\n vtestps %ymm15, %ymm0\n adc $0, %r8\n"
	"vmovntps %ymm13, 0x600(%rdi)\n vmovupd %ymm11, 0x500(%rdi)\n"
	"vpmovmskb %ymm0, %r15d\n add %r15, %r8\n vpinsrd $1, %r13d, %xmm0, %xmm1\n"
	"vmovq %xmm13, %r13\n dec %ecx\n jnz 1b\n");

PAYLOAD(p_masked, 64,
	"xor %r8d, %r8d\n mov $0x10004000, %r9\n vpxor %xmm8, %xmm8, %xmm8\n"
	"1: vmovdqu (%rsi,%r8,8), %ymm0\n vmovdqu 0x80(%rsi,%r8,8), %ymm1\n"
	"vmaskmovps 0x100(%rsi,%r8,4), %ymm0, %ymm2\n"
	"vmaskmovpd %ymm2, %ymm1, 0x10(%rdi,%r8,8)\n"
	"vpmaskmovq 0x200(%rsi,%r8,4), %xmm1, %xmm3\n"
	"vpmaskmovd %ymm3, %ymm0, 0x400(%rdi,%r8,8)\n"
	"lea 2f(%rip), %r12\n vmaskmovps -16(%r9), %ymm0, %ymm4\n"
	"2: vmaskmovps -16(%r9), %ymm8, %ymm4\n vpmaskmovq %xmm4, %xmm8, (%r9)\n"
	"lea 3f(%rip), %r12\n vpmaskmovd %ymm1, %ymm0, -12(%r9)\n"
	"3: lea 0x700(%rdi,%r8), %rax\n xchg %rax, %rdi\n"
	"maskmovdqu %xmm1, %xmm0\n movdq2q %xmm0, %mm0\n movq2dq %mm0, %xmm5\n"
	"lea 0x20(%rdi), %rdi\n movdq2q %xmm1, %mm1\n maskmovq %mm1, %mm0\n"
	"xchg %rax, %rdi\n emms\n inc %r8d\n cmp $8, %r8d\n jb 1b\n");

PAYLOAD(p_gather, 64,
	"xor %r8d, %r8d\n vpcmpeqd %ymm15, %ymm15, %ymm15\n"
	"vpsrld $24, %ymm15, %ymm14\n mov $0x10004000, %r9\n"
	"1: vmovdqu (%rsi,%r8,8), %ymm0\n vpand %ymm14, %ymm0, %ymm1\n"
	"vmovdqa %ymm15, %ymm2\n vgatherdps %ymm2, (%rsi,%ymm1,4), %ymm3\n"
	"vmovdqu 0x100(%rsi,%r8,8), %ymm2\n"
	"vpgatherdd %ymm2, (%rsi,%ymm1,8), %ymm4\n vmovdqa %ymm15, %ymm2\n"
	"vpmovzxdq %xmm1, %ymm5\n vpgatherqq %ymm2, (%rsi,%ymm5,8), %ymm6\n"
	"vmovdqa %ymm15, %ymm2\n vgatherqps %xmm2, (%rsi,%ymm5,4), %xmm7\n"
	"lea 2f(%rip), %r12\n vmovdqa %ymm15, %ymm2\n"
	"vgatherdpd %ymm2, -0x400(%r9,%xmm1,8), %ymm8\n inc %r10\n"
	"2: vaddps %ymm3, %ymm4, %ymm4\n vmovdqu %ymm4, 0x10(%rdi,%r8,8)\n"
	"vpxor %ymm6, %ymm9, %ymm9\n vpxor %ymm8, %ymm9, %ymm9\n"
	"inc %r8d\n cmp $10, %r8d\n jb 1b\n");

PAYLOAD(p_strings, 64,
	"mov $50, %r8d\n movdqu 0x10(%rsi), %xmm1\n"
	"1: movdqu (%rsi,%r8,8), %xmm0\n pcmpistri $0x0c, %xmm1, %xmm0\n"
	"adc %rcx, %r9\n mov $9, %eax\n mov %r8d, %edx\n"
	"pcmpestri $0x45, 0x20(%rsi,%r8), %xmm1\n sets %r10b\n add %rcx, %r9\n"
	"pcmpestrm $0x40, %xmm0, %xmm1\n pxor %xmm0, %xmm3\n"
	"pcmpistrm $0x3a, 1(%rsi,%r8), %xmm1\n pxor %xmm0, %xmm3\n"
	"pshufb %xmm3, %xmm1\n crc32q (%rsi,%r8,8), %r9\n"
	"dec %r8d\n jnz 1b\n");

/* clang-format on */

static const struct program {
	const char *name;
	const uint8_t *code, *end;
	bool avx;
} programs[] = {
#define P(name, code, avx) \
	{ \
		name, code, code##_end, avx \
	}
	P("x87", p_x87, false),		P("rounding", p_rounding, false),
	P("environment", p_env, false), P("stack", p_stack, false),
	P("mmx", p_mmx, false),		P("mxcsr", p_mxcsr, false),
	P("faults", p_faults, false),	P("x87-unmasked", p_mf, false),
	P("sse-unmasked", p_xm, false), P("avx", p_avx, true),
	P("masked", p_masked, true),	P("gather", p_gather, true),
	P("strings", p_strings, true),
};

/* -- data ----------------------------------------------------------------- */

static uint64_t odd_double(void)
{
	uint64_t s = rnd() & 1ull << 63, m = rnd() >> 12;

	switch (rnd() % 8) {
	case 0: return s;
	case 1: return s | m; /* denormal */
	case 2: return s | 0x7ffull << 52;
	case 3: return s | 0x7ffull << 52 | m;
	case 4: return s | (rnd() % 2047) << 52 | m;
	default: return s | (1000 + rnd() % 60) << 52 | m;
	}
}

static void odd_x87(uint8_t *p)
{
	uint16_t e = rnd() & 0xffff;
	uint64_t m = rnd() | 1ull << 63;

	switch (rnd() % 8) {
	case 0: m &= ~(1ull << 63); break; /* unnormal, denormal … */
	case 1: e &= 0x8000; break;
	case 2: e |= 0x7fff; break;
	case 3:
		e |= 0x7fff;
		m = 1ull << 63;
		break;
	case 4: m = e = 0; break;
	default: e = (uint16_t)(0x3ff0 + rnd() % 32 + (e & 0x8000)); break;
	}
	memcpy(p, &m, 8);
	memcpy(p + 8, &e, 2);
}

static void fill(uint8_t *p)
{
	for (unsigned k = 0; k < DATA_SIZE; k += 8) {
		uint64_t w = rnd();

		if (k >= 0x400 && k < 0x800)
			w = w >> 12 | (1020 + rnd() % 8) << 52;
		else if (k >= 0x800 && k < 0xc00)
			w = odd_double();
		else if (k >= 0x1000)
			w = 0;
		memcpy(p + k, &w, 8);
	}
	for (unsigned k = 0xc00; k < 0x1000; k += 16)
		odd_x87(p + k);
}

static void first_state(uint64_t gpr[16], uint8_t *fpu)
{
	const uint32_t mxcsr = 0x1f80, mask = 0xffff;
	const uint16_t cw = 0x37f;
	const uint64_t bv = 7;

	memset(gpr, 0, 16 * sizeof(gpr[0]));
	gpr[HV_RSI] = DATA;
	gpr[HV_RDI] = DATA + 0x1000;
	gpr[HV_RSP] = DATA + 0x1ff0;
	gpr[HV_R13] = 0x1313131313131313;
	memset(fpu, 0, XSAVE_SIZE);
	memcpy(fpu, &cw, 2);
	memcpy(fpu + 24, &mxcsr, 4);
	memcpy(fpu + 28, &mask, 4);
	memcpy(fpu + 512, &bv, 8);
	for (unsigned k = 0; k < 256; k += 8) {
		uint64_t w = rnd(), v = rnd();

		memcpy(fpu + 160 + k, &w, 8);
		memcpy(fpu + 576 + k, &v, 8);
	}
}

/* -- on the processor ----------------------------------------------------- */

static struct run *into;
static uint8_t *text, *data;

static bool over(const struct run *r)
{
	const struct native *s = &r->stop[r->n - 1];

	return s->vector == 3 || !s->gpr[HV_R12] || r->n == MAX_STOPS;
}

static bool on_stop(struct native *from)
{
	into->stop[into->n++] = *from;
	from->rip = from->gpr[HV_R12];
	return !over(into);
}

static void processor_start(void)
{
	text = native_map_code(CODE, 4096);
	data = native_map(DATA, DATA_SIZE);
	native_start(on_stop, NULL, false);
}

static void processor_run(const struct program *p, const uint8_t *bytes,
			  const uint64_t *gpr, const uint8_t *fpu,
			  struct run *r)
{
	static struct native n = { .rip = CODE, .rflags = 0x202 };

	memset(text, 0xcc, 4096);
	memcpy(text, p->code, bare_bytes(p->code, p->end));
	memcpy(data, bytes, DATA_SIZE);
	memcpy(n.gpr, gpr, sizeof(n.gpr));
	memcpy(n.fpu, fpu, XSAVE_SIZE);
	into = r;
	r->n = 0;
	native_run(&n, 0);
	memcpy(r->data, data, DATA_SIZE);
}

/* -- on the engine -------------------------------------------------------- */

static struct user guest;

static void guest_run(const struct program *p, const uint8_t *bytes,
		      const uint64_t *gpr, const uint8_t *fpu, struct run *r)
{
	static struct native n;

	user_put_code(&guest, 0, p->code, bare_bytes(p->code, p->end));
	memcpy(guest.g.mem + USER_DATA_GPA, bytes, DATA_SIZE);
	memcpy(n.gpr, gpr, sizeof(n.gpr));
	memcpy(n.fpu, fpu, XSAVE_SIZE);
	n.rip = CODE;
	n.rflags = 0x202;
	r->n = 0;
	user_set(&guest, &n, true);
	for (;;) {
		if (!user_run(&guest, &n))
			bare_die("the guest did not come to a handler", EIO);
		r->stop[r->n++] = n;
		if (over(r))
			break;
		n.rip = n.gpr[HV_R12];
		user_set(&guest, &n, false);
	}
	memcpy(r->data, guest.g.mem + USER_DATA_GPA, DATA_SIZE);
}

/* -- comparison ----------------------------------------------------------- */

static bool same_bytes(const char *what, const uint8_t *a, const uint8_t *b,
		       unsigned n, unsigned piece)
{
	for (unsigned k = 0; k < n; k += piece) {
		if (!memcmp(a + k, b + k, piece))
			continue;
		printf("# %s at %#x: ", what, k);
		for (unsigned m = 0; m < piece; m++)
			printf("%02x", a[k + m]);
		printf(" on the processor, ");
		for (unsigned m = 0; m < piece; m++)
			printf("%02x", b[k + m]);
		printf("\n");
		return false;
	}
	return true;
}

static bool same_stop(struct native *a, struct native *b)
{
	bool page = a->vector == 14 && !(a->cr2 >> 47);
	bool same = true;

	if (a->vector != b->vector || a->rip != b->rip) {
		printf("# vector %u at %#" PRIx64 " on the processor, %u at "
		       "%#" PRIx64 "\n",
		       a->vector, a->rip, b->vector, b->rip);
		return false;
	}
	for (unsigned k = 0; k < 16; k++)
		if (a->gpr[k] != b->gpr[k]) {
			printf("# register %u: %#" PRIx64
			       " on the processor, %#" PRIx64 "\n",
			       k, a->gpr[k], b->gpr[k]);
			same = false;
		}
	/* Which byte of an operand that crosses faults first varies. */
	if (page && ((a->cr2 ^ b->cr2) & ~0xfffull || a->error != b->error)) {
		printf("# cr2 %#" PRIx64
		       " error %#x on the processor, %#" PRIx64 " %#x\n",
		       a->cr2, a->error, b->cr2, b->error);
		same = false;
	}
	/* Translated code keeps no flags that nothing reads behind a fault. */
	if (a->vector == 3 && (a->rflags ^ b->rflags) & ARITH) {
		printf("# rflags %#" PRIx64 " on the processor, %#" PRIx64 "\n",
		       a->rflags, b->rflags);
		same = false;
	}
	native_complete_fpu(a->fpu);
	native_complete_fpu(b->fpu);
	same &= same_bytes("control", a->fpu, b->fpu, 32, 4);
	same &= same_bytes("st", a->fpu + 32, b->fpu + 32, 128, 16);
	same &= same_bytes("xmm", a->fpu + 160, b->fpu + 160, 256, 16);
	same &= same_bytes("ymm", a->fpu + 576, b->fpu + 576, 256, 16);
	if (!same)
		printf("# ... at vector %u, rip %#" PRIx64 "\n", a->vector,
		       a->rip);
	return same;
}

static bool same_run(struct run *a, struct run *b)
{
	bool same = true;

	for (unsigned n = 0; n < a->n && n < b->n && same; n++)
		same = same_stop(&a->stop[n], &b->stop[n]);
	if (same && a->n != b->n) {
		printf("# %u stops on the processor, %u\n", a->n, b->n);
		return false;
	}
	return same_bytes("data", a->data, b->data, DATA_SIZE, 16) && same;
}

static void run_program(const struct program *p, unsigned rounds)
{
	static struct run a, b;
	static uint8_t bytes[DATA_SIZE];
	static uint8_t fpu[XSAVE_SIZE];
	uint64_t gpr[16];
	unsigned good = 0;

	for (unsigned n = 0; n < rounds; n++) {
		rng = seed * 1000003 + n;
		fill(bytes);
		first_state(gpr, fpu);
		processor_run(p, bytes, gpr, fpu, &a);
		guest_run(p, bytes, gpr, fpu, &b);
		if (!same_run(&a, &b)) {
			printf("# round %u\n", n);
			break;
		}
		good++;
	}
	check(good == rounds && a.stop[a.n - 1].vector == 3,
	      "as on the processor", p->name);
}

/* -- CR0 ------------------------------------------------------------------ */

/*
 * At CPL 0: 0x10000 counts what handlers of #UD and #NM have cleared.  Each
 * pass runs an instruction of a kind with TS or EM set, and then again.
 */
/* clang-format off */
PAYLOAD(p_cr0, 64,
	"lea 6f(%rip), %eax\n mov %ax, 0x5060\n mov %ax, 0x5070\n"
	"fninit\n fldpi\n pxor %xmm0, %xmm0\n mov $40, %r12d\n"
	"1: fld %st(0)\n faddp %st, %st(1)\n addpd 0x10100, %xmm0\n"
	"mov %cr0, %rax\n mov $8, %ebx\n test $1, %r12b\n jz 2f\n"
	"mov $4, %ebx\n"
	"2: or %rbx, %rax\n mov %rax, %cr0\n"
	"mov %r12d, %ecx\n shr %ecx\n and $7, %ecx\n"
	"lea 3f(%rip), %rbx\n lea (%rbx,%rcx,8), %rbx\n jmp *%rbx\n"
	".balign 8\n 3: fadd %st, %st(0)\n jmp 4f\n"
	".balign 8\n paddd %mm1, %mm0\n jmp 4f\n"
	".balign 8\n addpd %xmm0, %xmm0\n jmp 4f\n"
	".balign 8\n fwait\n jmp 4f\n"
	".balign 8\n emms\n jmp 4f\n"
	".balign 8\n fldpi\n jmp 4f\n"
	".balign 8\n stmxcsr (%rsp)\n jmp 4f\n"
	".balign 8\n fnclex\n jmp 4f\n"
	"4: mov $0x517, %edx\n mov 0x10000, %eax\n out %eax, %dx\n"
	"mov %cr0, %rax\n and $0xc, %eax\n out %eax, %dx\n"
	"mov %cr0, %rax\n and $-13, %rax\n mov %rax, %cr0\n"
	"fnstsw %ax\n out %ax, %dx\n fstl 0x10010\n mov 0x10010, %eax\n"
	"out %eax, %dx\n movq %xmm0, %rax\n out %eax, %dx\n"
	"dec %r12d\n jnz 1b\n jmp 7f\n"
	"6: push %rax\n mov %cr0, %rax\n and $-13, %rax\n mov %rax, %cr0\n"
	"pop %rax\n incl 0x10000\n iretq\n"
	"7: mov $0x5ff, %edx\n out %al, %dx\n hlt\n");
/* clang-format on */

static void run_cr0(const char *engine)
{
	static struct bare_log a, b;
	const char *const engines[] = { "soft,interp", engine };
	struct bare_log *log[] = { &a, &b };

	for (unsigned n = 0; n < 2; n++) {
		struct bare g;

		bare_start(&g, engines[n], BARE_LONG, p_cr0, p_cr0_end);
		memcpy(g.mem + 0x10100,
		       "\0\0\0\0\0\0\xf0\x3f\0\0\0\0\0\0\0\x40", 16);
		for (log[n]->n = 0; bare_log_step(&g, log[n]);)
			;
		bare_stop(&g);
	}
	if (bare_log_diff(&a, &b) >= 0) {
		int i = bare_log_diff(&a, &b);

		bare_log_print("interpreted", &a.e[i]);
		bare_log_print("translated", &b.e[i]);
	}
	check(a.n == 201 && bare_log_diff(&a, &b) < 0,
	      "as the interpreter does", "cr0");
	/* FNCLEX and FWAIT do not all raise; the count is the same each run. */
	check(b.n == 201 && b.e[195].value > 30, "#NM and #UD were raised",
	      "cr0");
}

static uint64_t number_arg(const char *s)
{
	return s ? strtoull(s, NULL, 0) : 0;
}

int main(int argc, char **argv)
{
	const char *engine = "soft,eager", *only = NULL;
	unsigned rounds = 20;

	for (int i = 1; i < argc; i++) {
		const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;

		if (!a)
			break;
		if (v && !strcmp(a, "--seed")) {
			seed = number_arg(v);
			i++;
		} else if (v && !strcmp(a, "--rounds")) {
			rounds = (unsigned)number_arg(v);
			i++;
		} else if (!strcmp(a, "--engine") && v) {
			engine = v;
			i++;
		} else {
			only = a;
		}
	}
	printf("# seed %" PRIu64 "\n", seed);
	processor_start();
	user_start(&guest, engine, false);
	for (unsigned n = 0; n < sizeof(programs) / sizeof(programs[0]); n++) {
		const struct program *p = &programs[n];

		if (only && strcmp(only, p->name))
			continue;
		if (p->avx && !__builtin_cpu_supports("avx2")) {
			printf("ok %u - %s # SKIP no AVX2\n", ++tests, p->name);
			continue;
		}
		run_program(p, rounds);
	}
	bare_stop(&guest.g);
	if (!only || !strcmp(only, "cr0"))
		run_cr0(engine);
	printf("1..%u\n", tests);
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
