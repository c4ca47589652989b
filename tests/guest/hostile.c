/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hostile.c - guest code that a translator finds hard
 *
 * hostile [--only NAME] [--engine E] [--kicks N]
 *
 * Each program runs interpreted, mixed and translated.  Its port writes, its
 * end, every register and all memory must be the same, and be what the table
 * says.  Then come programs with a second thread: another vCPU, a device, a
 * change of memory, kicks.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"

enum {
	PT0 = 0x20000,	  /* 4 KiB pages of the first 2 MiB */
	PT8 = 0x21000,	  /* of ALIAS on */
	PML4_2 = 0x22000, /* another address space, with PT8_2 */
	PDPT_2 = 0x23000,
	PD_2 = 0x24000,
	PT8_2 = 0x25000,
	PTOP = 0x26000, /* to 0x29000: the last canonical page */
	P1 = 0x30000,	/* pages of code */
	P2 = 0x31000,
	P3 = 0x32000,
	P4 = 0x33000,
	ALIAS = 0x1000000,
	TOP_PAGE = 0x34000,
	OUT = 0x510,
	KICKS = 3000,
};

#define END_OF "mov $0x5ff, %dx\n out %al, %dx\n 99: jmp 99b\n"
/* A payload whose .balign counts from BARE_CODE. */
#define ALIGNED(name, bits, text) \
	__asm__(".pushsection .rodata\n.balign 64\n.popsection\n"); \
	PAYLOAD(name, bits, text)
/* Shows eax. */
#define SHOW "mov $0x510, %dx\n out %eax, %dx\n"

struct program {
	const char *name;
	const uint8_t *code, *end;
	void (*setup)(struct bare *g);
	/* At a write to OUT, the n-th: the caller does something. */
	void (*at_out)(struct bare *g, unsigned n);
	unsigned n;	   /* writes to OUT */
	bool user;	   /* at CPL 3 */
	uint32_t value[8]; /* what they write, when all must */
	uint16_t last;	   /* port of the last write, or 0x8000 | exit */
};

enum { END = BARE_END, FAULT = BARE_FAULT_PORT, EXIT = 0x8000 };

/* -- code that changes ---------------------------------------------------- */

/* Every other time into the middle of the MOV: inc %ebx; add $16, %ebx. */
PAYLOAD(middle, 64,
	"xor %ebx, %ebx\n mov $60, %ecx\n"
	"1: test $1, %cl\n jz 3f\n jmp 3f + 2\n"
	"3: .byte 0x48, 0xb8, 0xff, 0xc3, 0x83, 0xc3, 0x10, 0xeb, 0x01, 0x90\n"
	"nop\n dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);

/* The same bytes as one long and as two short instructions, by a count. */
PAYLOAD(overlap, 64,
	"xor %ebx, %ebx\n mov $90, %ecx\n"
	"1: lea 2f(%rip), %rdx\n mov %ecx, %eax\n and $1, %eax\n"
	"add %rax, %rdx\n mov $0x10100, %eax\n jmp *%rdx\n"
	"2: .byte 0x66, 0x05, 0x01, 0x00\n" /* add $1, ax / add $1, eax… */
	".byte 0x00, 0x00\n"		    /* …or add %al, (%rax) */
	"inc %ebx\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF);

PAYLOAD(own_next, 64,
	"xor %ebx, %ebx\n mov $50, %ecx\n"
	"1: mov %cl, 2f + 1(%rip)\n"
	"2: mov $0x11, %al\n"
	"movzbl %al, %eax\n add %eax, %ebx\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF);

/* Each turn changes an instruction before and one behind the store. */
PAYLOAD(own_block, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $1, %eax\n add %eax, %ebx\n"
	"mov %ecx, 1b + 1(%rip)\n mov %ecx, 2f + 2(%rip)\n nop\n nop\n"
	"2: add $0x10000, %ebx\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF);

/* 80000 different SHUFPS and CMPPS: more than the engine keeps code for. */
PAYLOAD(vectors, 64,
	"xor %ecx, %ecx\n"
	"1: mov %ecx, %eax\n shr $12, %eax\n and $4, %eax\n"
	"mov %ecx, %edx\n shr $15, %edx\n and $1, %edx\n"
	"lea 0x40(%rax,%rdx), %eax\n mov %al, 2f(%rip)\n"
	"mov %ecx, %eax\n shr $8, %eax\n or $0xc0, %al\n"
	"mov %al, 2f + 3(%rip)\n"
	"mov %ecx, %eax\n shr $14, %eax\n and $4, %eax\n xor $0xc6, %al\n"
	"mov %al, 2f + 2(%rip)\n mov %cl, 2f + 4(%rip)\n"
	"2: .byte 0x40, 0x0f, 0xc6, 0xc0, 0\n"
	"inc %ecx\n cmp $80000, %ecx\n jne 1b\n"
	"movups %xmm0, 0x10000\n movups %xmm9, 0x10010\n"
	"mov %ecx, %eax\n" SHOW END_OF);

/* A function changes its caller's sibling, which is chained on one page. */
ALIGNED(chained, 64,
	"xor %ebx, %ebx\n mov $60, %r13d\n"
	"1: call 3f\n call 4f\n jmp 2f\n .balign 64\n"
	"2: dec %r13d\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF
	".balign 64\n 3: mov %r13d, 5f + 2(%rip)\n ret\n"
	".balign 64\n 4: jmp 5f\n"
	".balign 64\n 5: add $0x1000, %ebx\n ret\n");

/*
 * What an addition left in CF is dead at first: XOR kills it.  Then SETC is
 * there, in a granule that the addition's block does not touch.
 */
ALIGNED(look_ahead, 64,
	"xor %ebx, %ebx\n xor %ebp, %ebp\n mov $40, %ecx\n jmp 1f\n"
	".balign 64\n 1: add $0x70, %bl\n push %rbx\n pop %rbx\n jmp 2f\n"
	".balign 64\n 2: xor %eax, %eax\n nop\n"
	"movzbl %al, %eax\n add %eax, %ebp\n"
	"cmp $20, %ecx\n je 4f\n 3: dec %ecx\n jnz 1b\n"
	"mov %ebp, %eax\n" SHOW END_OF
	".balign 64\n 4: movl $0xc0920f, %eax\n mov 2b(%rip), %edx\n"
	"and $0xff000000, %edx\n or %edx, %eax\n mov %eax, 2b(%rip)\n"
	"jmp 3b\n");

/* Flags through a call and a return, both sides changed on the way. */
ALIGNED(flags_call, 64,
	"xor %ebp, %ebp\n mov $40, %ecx\n jmp 1f\n"
	".balign 64\n 1: cmp $20, %ecx\n call 5f\n 2: adc $0, %ebp\n"
	"dec %ecx\n jnz 1b\n mov %ebp, %eax\n" SHOW END_OF
	".balign 64\n 5: mov %rsp, 0x10100\n mov 0x10100, %rax\n ret\n");

/* 100 functions are written, run and overwritten, on a page of data. */
PAYLOAD(writer, 64,
	"xor %ebx, %ebx\n mov $100, %ecx\n"
	"1: movw $0xc081, 0x12000\n mov %ecx, 0x12002\n movb $0xc3, 0x12006\n"
	"mov %ecx, 0x12100\n" /* false sharing: data behind it */
	"xor %eax, %eax\n mov $0x12000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"add 0x12100, %ebx\n dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);

/* REP MOVS and REP STOS over code that runs next. */
PAYLOAD(string_code, 64,
	"xor %ebx, %ebx\n mov $30, %r8d\n"
	"1: lea 6f(%rip), %rsi\n mov $0x12000, %edi\n mov $7f - 6f, %ecx\n"
	"rep movsb\n mov %r8d, 0x12001\n mov $0x12000, %edx\n call *%rdx\n"
	"mov $0x12000, %edi\n mov $0xc3, %al\n mov $16, %ecx\n rep stosb\n"
	"call *%rdx\n dec %r8d\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF
	"6: mov $0, %eax\n add %eax, %ebx\n ret\n 7:\n");

/* -- lengths and prefixes ------------------------------------------------- */

PAYLOAD(prefix15, 64,
	"mov $30, %ecx\n xor %eax, %eax\n"
	"1: .fill 13, 1, 0x66\n inc %eax\n dec %ecx\n jnz 1b\n" SHOW END_OF);
PAYLOAD(prefix16, 64,
	"mov $30, %ecx\n xor %eax, %eax\n"
	"1: dec %ecx\n jnz 1b\n .fill 14, 1, 0x66\n inc %eax\n" END_OF);
/* The last of F2 and F3 counts: ADDSS with 1.0f each time. */
PAYLOAD(prefix_order, 64,
	"mov $30, %ecx\n mov $0x3f800000, %eax\n movd %eax, %xmm1\n"
	"pxor %xmm0, %xmm0\n"
	"1: .byte 0xf3, 0xf2, 0xf3, 0x0f, 0x58, 0xc1\n"
	".byte 0xf2, 0x66, 0xf3, 0x0f, 0x58, 0xc1\n"
	"dec %ecx\n jnz 1b\n cvtss2si %xmm0, %eax\n" SHOW END_OF);
/* A REX that a prefix follows says nothing. */
PAYLOAD(prefix_rex, 64,
	"mov $30, %ecx\n mov $-1, %rax\n"
	"1: .byte 0x48, 0x66, 0x83, 0xc0, 0x01\n dec %ecx\n jnz 1b\n" SHOW
	"shr $32, %rax\n" SHOW END_OF);
/* Nothing is written by BSF and BSR of zero. */
PAYLOAD(bit_scan, 64,
	"mov $30, %ecx\n xor %r8d, %r8d\n mov $0x1234, %r13d\n"
	"mov $0x5678, %r14d\n 1: bsr %r8, %r13\n bsf %r8, %r14\n"
	"dec %ecx\n jnz 1b\n mov %r13d, %eax\n" SHOW
	"mov %r14d, %eax\n" SHOW END_OF);
/* 1.5 from memory, rounded up as MXCSR says. */
PAYLOAD(rounding, 64,
	"mov $0x3ff4000000000000, %rax\n mov %rax, 0x10100\n"
	"movl $0x5f80, 0x10108\n ldmxcsr 0x10108\n mov $30, %ecx\n"
	"1: cvtsd2si 0x10100, %eax\n dec %ecx\n jnz 1b\n" SHOW
	"stmxcsr 0x10108\n mov 0x10108, %eax\n" SHOW END_OF);

/* -- where code lies ------------------------------------------------------ */

PAYLOAD(in_device, 64,
	"mov $30, %ecx\n 1: dec %ecx\n jnz 1b\n mov $0x40000000, %eax\n"
	"jmp *%rax\n");
/* The last instruction of RAM runs into what is no memory. */
PAYLOAD(ram_end, 64,
	"mov $0x1ffff0, %edi\n lea 6f(%rip), %rsi\n mov $16, %ecx\n"
	"rep movsb\n mov $0x1ffff0, %eax\n jmp *%rax\n"
	"6: .fill 14, 1, 0x90\n .byte 0x48, 0xb8\n");
PAYLOAD(page_end, 64,
	"mov $0x1ffff0, %edi\n lea 6f(%rip), %rsi\n mov $16, %ecx\n"
	"rep movsb\n mov $30, %ecx\n mov $0x1ffff0, %eax\n jmp *%rax\n"
	"6: dec %ecx\n jnz 6b\n .fill 10, 1, 0x90\n .byte 0x48, 0xb8\n");

static void put64(struct bare *g, uint64_t at, uint64_t v)
{
	memcpy(g->mem + at, &v, 8);
}

static void fine_pages(struct bare *g)
{
	for (unsigned k = 0; k < 512; k++)
		put64(g, PT0 + k * 8, (uint64_t)k << 12 | 7);
	put64(g, BARE_PD0, PT0 | 7);
	put64(g, BARE_PD0 + 8 * (ALIAS >> 21), PT8 | 7);
	memcpy(g->mem + PDPT_2, g->mem + BARE_PDPT, 4096);
	memcpy(g->mem + PD_2, g->mem + BARE_PD0, 4096);
	put64(g, PML4_2, PDPT_2 | 7);
	put64(g, PDPT_2, PD_2 | 7);
	put64(g, PD_2 + 8 * (ALIAS >> 21), PT8_2 | 7);
	for (unsigned k = 0; k < 8; k++)
		put64(g, PT8 + k * 8, (P1 + k * 0x1000) | 7);
	put64(g, PT8_2, P2 | 7);
}

static void beyond(struct bare *g)
{
	fine_pages(g);
	put64(g, BARE_PD0 + 8, 0x200087);
}

/* A function in each of four pages: mov $k, %eax; ret. */
static void functions(struct bare *g)
{
	fine_pages(g);
	for (unsigned k = 0; k < 4; k++) {
		uint8_t f[6] = { 0xb8, (uint8_t)(k + 1), 0, 0, 0, 0xc3 };

		memcpy(g->mem + P1 + k * 0x1000, f, 6);
	}
}

/* Two views of a page, and a third for writing. */
PAYLOAD(aliases, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"movq $0x30007, 0x21008\n invlpg 0x1001000\n"
	"1: mov $0x1000000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"mov $0x1001000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"mov $0x30000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"mov %ecx, 0x1001001\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF);

/*
 * A function runs at eight addresses in turn, each knows where it is, and a
 * store through a ninth changes it half way.
 */
ALIGNED(moved, 64,
	"xor %ebx, %ebx\n mov $800, %ecx\n"
	"1: mov %ecx, %esi\n and $7, %esi\n add $16, %esi\n shl $30, %rsi\n"
	"lea 5f(%rip), %rdi\n add %rdi, %rsi\n call *%rsi\n"
	"add %eax, %ebx\n cmp $400, %ecx\n jne 2f\n movl $5, 9f + 1(%rip)\n"
	"2: dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF ".balign 64\n"
	"5: lea 5b(%rip), %rax\n sub %rsi, %rax\n jnz 7f\n call 6f\n"
	"8: lea 7f(%rip), %rdx\n sub $7f - 5b, %rdx\n cmp %rdx, %rsi\n"
	"jne 7f\n 9: mov $3, %edx\n add %edx, %eax\n ret\n"
	"6: mov (%rsp), %rax\n sub %rsi, %rax\n sub $8b - 5b, %rax\n ret\n"
	"7: mov $0x100000, %eax\n ret\n");

static void gigabytes(struct bare *g)
{
	for (unsigned n = 16; n < 24; n++)
		put64(g, BARE_PDPT + 8 * n, BARE_PD0 | 7);
}

/* The page of a function changes in the tables, told by INVLPG or CR3. */
PAYLOAD(remap, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $0x1000000, %edx\n call *%rdx\n lea (%rbx,%rax), %ebx\n"
	"mov %ecx, %eax\n and $3, %eax\n shl $12, %eax\n add $0x30007, %eax\n"
	"mov %rax, 0x21000\n test $4, %cl\n jz 2f\n invlpg 0x1000000\n"
	"jmp 3f\n 2: mov %cr3, %rax\n mov %rax, %cr3\n"
	"3: dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);

/* Two address spaces, without and with PCID and the bit not to flush. */
PAYLOAD(spaces, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $0x1000000, %edx\n call *%rdx\n lea (%rbx,%rax), %ebx\n"
	"mov $0x22000, %eax\n mov %rax, %cr3\n call *%rdx\n"
	"shl $8, %eax\n lea (%rbx,%rax), %ebx\n mov $0x1000, %eax\n"
	"mov %rax, %cr3\n dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);
PAYLOAD(pcids, 64,
	"mov %cr4, %rax\n bts $17, %rax\n mov %rax, %cr4\n"
	"xor %ebx, %ebx\n mov $40, %ecx\n mov $0x1000000, %edx\n"
	"mov $0x8000000000022001, %r8\n mov $0x8000000000001000, %r9\n"
	"1: call *%rdx\n lea (%rbx,%rax), %ebx\n"
	"mov %r8, %cr3\n call *%rdx\n shl $8, %eax\n lea (%rbx,%rax), %ebx\n"
	"mov %r9, %cr3\n cmp $20, %ecx\n jne 2f\n"
	/* The other space's page changes; a write without the bit tells. */
	"movq $0x32007, 0x25000\n mov $0x22001, %eax\n mov %rax, %cr3\n"
	"call *%rdx\n shl $16, %eax\n add %eax, %ebx\n mov %r9, %cr3\n"
	"2: dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);
/* A function moves its own page under itself: the next one goes on there. */
PAYLOAD(own_page, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $0x1000000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);

static void own_pages(struct bare *g)
{
	/* xorq $0x1000, 0x21000; invlpg 0x1000000; mov $1 or 2, %eax; ret */
	static const uint8_t f[] = {
		0x48, 0x81, 0x34, 0x25, 0, 0x10, 2, 0,	  0, 0x10, 0, 0, 0x0f,
		0x01, 0x3c, 0x25, 0,	0, 0,	 1, 0xb8, 1, 0,	   0, 0, 0xc3,
	};

	fine_pages(g);
	memcpy(g->mem + P1, f, sizeof(f));
	memcpy(g->mem + P2, f, sizeof(f));
	g->mem[P1 + 5] = g->mem[P2 + 5] = 0x10;
	g->mem[P2 + 21] = 2;
}

/* Page 0 at address 0 goes; who jumps there must hear of it. */
PAYLOAD(page_zero, 64,
	"movl $0x2ab8, 0\n movw $0xc300, 4\n mov $30, %ecx\n xor %edx, %edx\n"
	"1: call *%rdx\n dec %ecx\n jnz 1b\n" SHOW "xor %edx, %edx\n"
	"movq $0, 0x20000\n invlpg 0\n call *%rdx\n" SHOW END_OF);

/* An instruction of two pages, the second one there, away, another. */
PAYLOAD(crossing, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $0x1000ffd, %edx\n call *%rdx\n add %eax, %ebx\n"
	"mov %ecx, %eax\n and $1, %eax\n shl $12, %eax\n add $0x31007, %eax\n"
	"mov %rax, 0x21008\n invlpg 0x1001000\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW "movq $0, 0x21008\n invlpg 0x1001000\n"
	"mov $0x1000ffd, %edx\n call *%rdx\n" SHOW END_OF);
/* And its second half is written. */
PAYLOAD(crossing_write, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: mov $0x1000ffd, %edx\n call *%rdx\n add %eax, %ebx\n"
	"mov %cx, 0x1001000\n dec %ecx\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF);

static void crossings(struct bare *g)
{
	static const uint8_t first[] = { 0xb8, 1, 0 };
	static const uint8_t second[2][3] = { { 0, 0, 0xc3 }, { 1, 0, 0xc3 } };

	fine_pages(g);
	memcpy(g->mem + P1 + 0xffd, first, 3);
	memcpy(g->mem + P2, second[0], 3);
	memcpy(g->mem + P3, second[1], 3);
}

/* Tables are changed through themselves; A and D are what they must be. */
PAYLOAD(own_tables, 64,
	"xor %ebx, %ebx\n mov $40, %ecx\n"
	"1: movq $0x33007, 0x21010\n invlpg 0x1002000\n"
	"mov 0x1002000, %eax\n mov 0x21010, %eax\n add %eax, %ebx\n"
	"mov %ecx, 0x1002ff8\n mov 0x21010, %eax\n add %eax, %ebx\n"
	/* The table itself at 0x1003000. */
	"movq $0x21007, 0x21018\n invlpg 0x1003000\n"
	"mov $0x30007, %eax\n mov %rax, 0x1003010\n invlpg 0x1002000\n"
	"mov $0x1002000, %edx\n call *%rdx\n add %eax, %ebx\n"
	"dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);

/* -- branches ------------------------------------------------------------- */

PAYLOAD(deep, 64,
	"xor %ebx, %ebx\n mov $20, %r8d\n mov $0x1f000, %esp\n"
	"1: mov $900, %ecx\n call 2f\n dec %r8d\n jnz 1b\n"
	"mov %ebx, %eax\n" SHOW END_OF
	"2: dec %ecx\n jz 3f\n call 2b\n inc %ebx\n 3: ret\n");
/* Returns that no call made, calls that nothing returns from. */
PAYLOAD(mismatch, 64,
	"xor %ebx, %ebx\n mov $60, %ecx\n"
	"1: lea 2f(%rip), %rax\n push %rax\n lea 3f(%rip), %rax\n push %rax\n"
	"call 4f\n ud2\n 4: pop %rax\n add $2, %rax\n push %rax\n inc %ebx\n"
	"pop %rax\n ret\n 3: add $16, %ebx\n ret $0\n"
	"2: dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF);
PAYLOAD(stacks, 64,
	"xor %ebx, %ebx\n mov $60, %ecx\n"
	"1: mov %ecx, %eax\n and $3, %eax\n shl $12, %eax\n"
	"lea 0x18008(%rax), %rsp\n push %rcx\n call 2f\n add (%rsp), %ebx\n"
	"pop %rax\n add %eax, %ebx\n xchg %rsp, %rbp\n mov %rbp, %rsp\n"
	"dec %ecx\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF
	"2: push %rbp\n mov %rsp, %rbp\n sub $0x30, %rsp\n leave\n ret\n");

/* A good target 30 times, then one that is not canonical. */
#define BAD_TARGET(name, prepare, branch) \
	PAYLOAD(name, 64, \
		"mov $31, %ecx\n mov $0x800000000000, %rbx\n" \
		"1: lea 2f(%rip), %rax\n dec %ecx\n cmovz %rbx, %rax\n" \
		"mov %rax, 0x10100\n" prepare branch "2: test %ecx, %ecx\n" \
		"jnz 1b\n" END_OF)
BAD_TARGET(bad_jmp, "", "jmp *%rax\n");
BAD_TARGET(bad_jmp_mem, "", "jmp *0x10100\n");
BAD_TARGET(bad_call, "lea 0x17100(,%rcx,8), %esp\n", "call *%rax\n");
BAD_TARGET(bad_call_mem, "lea 0x17100(,%rcx,8), %esp\n", "call *0x10100\n");
BAD_TARGET(bad_call_r13, "mov %rax, %r13\n lea 0x17100(,%rcx,8), %esp\n",
	   "call *%r13\n");
BAD_TARGET(bad_ret, "push %rax\n", "ret\n");
BAD_TARGET(bad_ret_imm, "push $0\n push %rax\n", "ret $8\n");
BAD_TARGET(bad_iret,
	   "push $16\n push $0x7000\n push $2\n push $8\n push %rax\n",
	   "iretq\n");

/* Direct ones near the end of the canonical addresses. */
PAYLOAD(bad_rel, 64, "mov $0x7fffffffff80, %rax\n mov $30, %ecx\n jmp *%rax\n");
PAYLOAD(run_off, 64, "mov $0x7fffffffffc0, %rax\n mov $30, %ecx\n jmp *%rax\n");

static void top_page(struct bare *g)
{
	/* dec %ecx; jnz .-2; jmp .+0x100 */
	static const uint8_t f[] = { 0xff, 0xc9, 0x75, 0xfc, 0xe9, 0, 1, 0, 0 };

	fine_pages(g);
	put64(g, BARE_PML4 + 255 * 8, PTOP | 7);
	put64(g, PTOP + 511 * 8, (PTOP + 0x1000) | 7);
	put64(g, PTOP + 0x1000 + 511 * 8, (PTOP + 0x2000) | 7);
	put64(g, PTOP + 0x2000 + 511 * 8, TOP_PAGE | 7);
	memset(g->mem + TOP_PAGE, 0x90, 4096);
	memcpy(g->mem + TOP_PAGE + 0xf80, f, sizeof(f));
	memcpy(g->mem + TOP_PAGE + 0xfc0, f, 4);
}

/* -- faults and traps in hot code ----------------------------------------- */

static void gate(struct bare *g, unsigned vector, uint64_t handler)
{
	put64(g, BARE_IDT + vector * 16, handler | 8 << 16 | 0xee00ull << 32);
}

/* Memory goes away under a hot loop; the handler puts it back. */
ALIGNED(fault_loop, 64,
	"jmp 1f\n .balign 64\n" /* the handler is at BARE_CODE + 64 */
	"inc %r15d\n movq $0x33007, 0x21010\n add $8, %rsp\n iretq\n"
	"1: xor %ebx, %ebx\n xor %r15d, %r15d\n mov $60, %ecx\n"
	"2: mov %ecx, %eax\n and $7, %eax\n jnz 3f\n"
	"movq $0, 0x21010\n invlpg 0x1002000\n"
	"3: cmp $30, %ecx\n mov 0x1002010, %rax\n adc $0, %ebx\n"
	"add %rcx, 0x1002010\n push 0x1002010\n pop %rax\n"
	"dec %ecx\n jnz 2b\n add %r15d, %ebx\n mov %ebx, %eax\n" SHOW END_OF);

static void fault_gate(struct bare *g)
{
	fine_pages(g);
	gate(g, 14, BARE_CODE + 64);
}

/* MASKMOVDQU into a page that is not there has written nothing before it. */
ALIGNED(mask_crossing, 64,
	"jmp 1f\n .balign 64\n mov 0x1002ff8, %eax\n" SHOW END_OF
	"1: movq $0, 0x21018\n invlpg 0x1003000\n movl $0x55, 0x1002ff8\n"
	"mov $0x1002ff8, %edi\n pcmpeqd %xmm0, %xmm0\n"
	"maskmovdqu %xmm0, %xmm0\n" END_OF);

/* TF over a hot loop: each step counts. */
ALIGNED(trap_flag, 64,
	"jmp 1f\n .balign 64\n inc %r15d\n iretq\n"
	"1: xor %r15d, %r15d\n mov $3, %r8d\n"
	"4: mov $30, %ecx\n 2: lea 1(%rbx), %rbx\n dec %ecx\n jnz 2b\n"
	"pushfq\n orl $0x100, (%rsp)\n popfq\n"
	"mov $30, %ecx\n 3: lea 1(%rbx), %rbx\n dec %ecx\n jnz 3b\n"
	"pushfq\n andl $~0x100, (%rsp)\n popfq\n dec %r8d\n jnz 4b\n"
	"mov %r15d, %eax\n" SHOW END_OF);
/* A breakpoint on code and one on data, set when both are hot. */
ALIGNED(breakpoints, 64,
	"jmp 1f\n .balign 64\n mov %dr6, %rax\n and $15, %eax\n"
	"add %eax, %r15d\n xor %eax, %eax\n mov %rax, %dr6\n"
	"orl $0x10000, 16(%rsp)\n iretq\n"
	"1: xor %r15d, %r15d\n mov $60, %ecx\n"
	"2: mov %rcx, 0x10200\n 3: lea 1(%rbx), %rbx\n"
	"cmp $30, %ecx\n jne 4f\n lea 3b(%rip), %rax\n mov %rax, %dr0\n"
	"mov $0x10200, %eax\n mov %rax, %dr1\n mov $0x900405, %eax\n"
	"mov %rax, %dr7\n 4: cmp $10, %ecx\n jne 5f\n xor %eax, %eax\n"
	"mov %rax, %dr7\n 5: dec %ecx\n jnz 2b\n"
	"mov %r15d, %eax\n" SHOW END_OF);

static void debug_gate(struct bare *g)
{
	gate(g, 1, BARE_CODE + 64);
}

/* The caller steps through a hot loop, and puts int3 into it. */
PAYLOAD(debugged, 64,
	"xor %ebx, %ebx\n 1: mov $200, %ecx\n 2: lea 3(%rbx), %rbx\n"
	"dec %ecx\n jnz 2b\n mov %ebx, %eax\n" SHOW
	"cmp $2400, %ebx\n jb 1b\n" END_OF);

static void step_some(struct bare *g, unsigned n)
{
	static struct hv_state s;
	uint64_t sum = 0;

	if (n != 1)
		return;
	while (hv_vcpu_complete(g->cpu, &g->exit) == 1)
		;
	hv_vcpu_debug(g->cpu, HV_DEBUG_STEP);
	for (unsigned k = 0; k < 50; k++) {
		if (bare_run(g) != HV_EXIT_DEBUG)
			bare_die("a step is no debug exit", EIO);
		bare_get(g, HV_STATE_GENERAL, &s);
		sum = sum * 31 + s.rip;
	}
	hv_vcpu_debug(g->cpu, 0);
	put64(g, 0x1f000, sum);
}

/* A device writes the immediate of a hot instruction, at each OUT. */
PAYLOAD(device_writes, 64,
	"xor %ebx, %ebx\n 1: mov $50, %ecx\n 2: add $1, %ebx\n"
	"dec %ecx\n jnz 2b\n mov %ebx, %eax\n" SHOW
	"cmp $1000, %ebx\n jb 1b\n" END_OF);

static void write_code(struct bare *g, unsigned n)
{
	g->mem[BARE_CODE + 9] = (uint8_t)(n + 2);
	hv_mem_written(g->vm, BARE_CODE + 9, 1);
}

/* Interrupts come in through POPF: no STI is there to look at. */
PAYLOAD(window, 64,
	"mov $30, %ecx\n 1: dec %ecx\n jnz 1b\n" SHOW
	"push $0x202\n popfq\n 2: jmp 2b\n");
PAYLOAD(window_iret, 64,
	"mov $30, %ecx\n 1: dec %ecx\n jnz 1b\n" SHOW
	"push $16\n push $0x7000\n push $0x202\n push $8\n lea 2f(%rip), %rax\n"
	"push %rax\n iretq\n 2: jmp 2b\n");

static void want_window(struct bare *g, unsigned n)
{
	hv_vcpu_want_window(g->cpu, true);
}

/* Hot system calls, with flags, whose MSRs change on the way. */
#define WRMSR(index, low, high) \
	"mov $" #index ", %ecx\n mov $" #low ", %eax\n" \
	"mov $" #high ", %edx\n wrmsr\n"
PAYLOAD(gates, 64,
	"mov $0xc0000080, %ecx\n rdmsr\n or $1, %eax\n wrmsr\n" WRMSR(
		0xc0000081, 0, 0x180008)
		WRMSR(0xc0000084, 0x257fd5,
		      0) "mov $0xc0000082, %ecx\n xor %edx, %edx\n lea 5f(%rip), %rax\n"
			 "wrmsr\n xor %ebx, %ebx\n mov $90, %ebp\n"
			 "1: mov %ebp, %r11d\n and $0x8d5, %r11d\n or $2, %r11d\n"
			 "cmp $15, %ebp\n jne 2f\n or $0x44000, %r11d\n" /* NT, AC */
			 "2: lea 4f(%rip), %rcx\n cmp $3, %ebp\n sysretq\n"
			 "4: adc $1, %ebx\n cmp $30, %ebp\n mov %cs, %r8d\n mov %ss, %r9d\n"
			 "syscall\n"
			 "6: add $7, %ebx\n"
			 "5: pushfq\n pop %rax\n and $~0x4000, %eax\n push %rax\n popfq\n"
			 "adc %r11d, %ebx\n rol $3, %ebx\n adc %eax, %ebx\n add %ecx, %ebx\n"
			 "mov %cs, %eax\n add %eax, %ebx\n mov %ss, %eax\n add %eax, %ebx\n"
			 "add %r8d, %ebx\n rol $5, %ebx\n add %r9d, %ebx\n"
			 "cmp $25, %ebp\n jne 7f\n" /* another entry */
			 "mov $0xc0000082, %ecx\n xor %edx, %edx\n lea 6b(%rip), %rax\n"
			 "wrmsr\n"
			 "7: cmp $20, %ebp\n jne 7f\n" /* flags stay, other selectors */
	WRMSR(0xc0000084, 0, 0) WRMSR(
		0xc0000081, 0,
		0x280008) "7: dec %ebp\n jnz 1b\n mov %ebx, %eax\n" SHOW
			  "mov $1, %rcx\n ror $1, %rcx\n mov $2, %r11d\n sysretq\n");
/* SYSRET, when there is none any more. */
PAYLOAD(gate_closed, 64,
	"mov $0xc0000080, %ecx\n rdmsr\n or $1, %eax\n wrmsr\n" WRMSR(
		0xc0000081, 0,
		0x180008) "mov $0xc0000082, %ecx\n xor %edx, %edx\n lea 5f(%rip), %rax\n"
			  "wrmsr\n mov $60, %ebp\n"
			  "1: mov $2, %r11d\n lea 4f(%rip), %rcx\n sysretq\n"
			  "4: syscall\n"
			  "5: dec %ebp\n cmp $10, %ebp\n jne 1b\n"
			  "mov $0xc0000080, %ecx\n rdmsr\n and $~1, %eax\n wrmsr\n"
			  "mov %ebp, %eax\n" SHOW "jmp 1b\n");
/* Without FPU from now on, also behind a STAC that is hot. */
PAYLOAD(access_no_fpu, 64,
	"mov %cr4, %rax\n or $0x200000, %eax\n mov %rax, %cr4\n"
	"xor %ebx, %ebx\n mov $60, %ebp\n lea 9f(%rip), %rsi\n"
	"1: stac\n call *%rsi\n clac\n cmp $20, %ebp\n jne 2f\n"
	"mov %ebx, %eax\n" SHOW
	"mov %cr0, %rax\n or $8, %eax\n mov %rax, %cr0\n"
	"2: dec %ebp\n jnz 1b\n mov %ebx, %eax\n" SHOW END_OF
	"9: inc %ebx\n pxor %xmm0, %xmm0\n ret\n");

static void system_pages(struct bare *g)
{
	fine_pages(g);
	for (unsigned k = 0; k < 512; k++)
		put64(g, PT0 + k * 8, (uint64_t)k << 12 | 3);
}

#define P(name) #name, name, name##_end
static const struct program programs[] = {
	{ P(middle), .n = 1, .value = { 30 * 17 }, .last = END },
	{ P(overlap), .n = 1, .value = { 90 }, .last = END },
	{ P(own_next), .n = 1, .value = { 1275 }, .last = END },
	{ P(own_block), .n = 1, .value = { 1640 }, .last = END },
	{ P(vectors), .n = 1, .value = { 80000 }, .last = END },
	{ P(chained), .n = 1, .value = { 1830 }, .last = END },
	{ P(look_ahead), .n = 1, .value = { 8 }, .last = END },
	{ P(flags_call), .n = 1, .value = { 19 }, .last = END },
	{ P(writer), .n = 1, .value = { 10100 }, .last = END },
	{ P(string_code), .n = 1, .value = { 465 }, .last = END },
	{ P(prefix15), .n = 1, .value = { 30 }, .last = END },
	{ P(prefix16), .last = FAULT + 13 },
	{ P(prefix_order), .n = 1, .value = { 60 }, .last = END },
	{ P(prefix_rex), .n = 2, .value = { 0xffff001d, 0xffffffff },
	  .last = END },
	{ P(bit_scan), .n = 2, .value = { 0x1234, 0x5678 }, .last = END },
	{ P(rounding), .n = 2, .value = { 2, 0x5fa0 }, .last = END },
	{ P(in_device), .last = EXIT | HV_EXIT_ERROR },
	{ P(ram_end), .setup = beyond, .last = EXIT | HV_EXIT_ERROR },
	{ P(page_end), .last = FAULT + 14 },
	{ P(aliases), functions, .n = 1, .value = { 3 * (1 + 819) },
	  .last = END },
	{ P(moved), gigabytes, .n = 1, .value = { 401 * 3 + 399 * 5 },
	  .last = END },
	{ P(remap), functions, .n = 1, .value = { 99 }, .last = END },
	{ P(spaces), functions, .n = 1, .value = { 40 * 0x201 }, .last = END },
	{ P(pcids), functions, .n = 1,
	  .value = { 40 + 21 * 0x200 + 19 * 0x300 + 0x30000 }, .last = END },
	{ P(own_page), own_pages, .n = 1, .value = { 60 }, .last = END },
	{ P(page_zero), fine_pages, .n = 1, .value = { 42 },
	  .last = FAULT + 14 },
	{ P(crossing), crossings, .n = 1, .value = { 40 + 0x10000 * 19 },
	  .last = FAULT + 14 },
	{ P(crossing_write), crossings, .n = 1, .last = END },
	{ P(own_tables), functions, .n = 1, .last = END },
	{ P(deep), .n = 1, .value = { 20 * 899 }, .last = END },
	{ P(mismatch), .n = 1, .value = { 60 * 17 }, .last = END },
	{ P(stacks), .n = 1, .value = { 3660 }, .last = END },
	{ P(bad_jmp), .last = FAULT + 13 },
	{ P(bad_jmp_mem), .last = FAULT + 13 },
	{ P(bad_call), .last = FAULT + 13 },
	{ P(bad_call_mem), .last = FAULT + 13 },
	{ P(bad_call_r13), .last = FAULT + 13 },
	/* With a stack of its own the handler does not hide a push. */
	{ P(bad_call), .user = true, .last = FAULT + 13 },
	{ P(bad_call_mem), .user = true, .last = FAULT + 13 },
	{ P(bad_call_r13), .user = true, .last = FAULT + 13 },
	{ P(bad_ret), .user = true, .last = FAULT + 13 },
	{ P(bad_ret), .last = FAULT + 13 },
	{ P(bad_ret_imm), .last = FAULT + 13 },
	{ P(bad_iret), .last = FAULT + 13 },
	{ P(bad_rel), top_page, .last = FAULT + 13 },
	{ P(run_off), top_page, .last = FAULT + 13 },
	{ P(fault_loop), fault_gate, .n = 1, .value = { 36 }, .last = END },
	{ P(mask_crossing), fault_gate, .n = 1, .value = { 0x55 },
	  .last = END },
	{ P(trap_flag), debug_gate, .n = 1, .value = { 3 * 94 }, .last = END },
	{ P(breakpoints), debug_gate, .n = 1, .value = { 40 }, .last = END },
	{ P(debugged), .at_out = step_some, .n = 4,
	  .value = { 600, 1200, 1800, 2400 }, .last = END },
	{ P(device_writes), .at_out = write_code, .n = 6,
	  .value = { 50, 150, 300, 500, 750, 1050 }, .last = END },
	{ P(gates), .n = 1, .last = FAULT + 13 },
	{ P(gate_closed), .n = 1, .value = { 10 }, .last = FAULT + 6 },
	{ P(access_no_fpu), system_pages, .n = 1, .value = { 41 },
	  .last = FAULT + 7 },
	{ P(window), .at_out = want_window, .n = 1,
	  .last = EXIT | HV_EXIT_IRQ_WINDOW },
	{ P(window_iret), .at_out = want_window, .n = 1,
	  .last = EXIT | HV_EXIT_IRQ_WINDOW },
};

/* -- running and comparing ------------------------------------------------ */

struct outcome {
	uint32_t value[32];
	unsigned n;
	uint16_t last;
	struct hv_state s;
	uint8_t mem[BARE_MEMORY];
};

static unsigned tests, failures;
static const char *only, *only_engine;

static void result(bool ok, const char *name, const char *engine)
{
	printf("%sok %u - %s on %s\n", ok ? "" : "not ", ++tests, name, engine);
	failures += !ok;
}

/* Flags that a fault pushed may lack what nobody would have read. */
static void mask_frame(struct bare *g, struct hv_state *s, unsigned vector)
{
	uint64_t at = s->gpr[HV_RSP] + 16;

	if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
		at += 8;
	if (at < BARE_MEMORY - 8) {
		g->mem[at] &= (uint8_t)~0xd5;
		g->mem[at + 1] &= (uint8_t)~0x08;
	}
	s->rflags &= ~0x8d5ull;
}

static void run_program(const struct program *p, const char *engine,
			struct outcome *o)
{
	static struct bare g;
	bool on = true;

	bare_start(&g, engine, p->user ? BARE_USER : BARE_LONG, p->code,
		   p->end);
	if (p->setup)
		p->setup(&g);
	o->n = 0;
	while (on) {
		const struct hv_exit *e = &g.exit;

		o->last = EXIT | bare_run(&g);
		if (e->reason != HV_EXIT_PIO || !e->pio.write)
			break;
		o->last = e->pio.port;
		on = e->pio.port == OUT && o->n < 32;
		if (!on)
			break;
		o->value[o->n++] = e->pio.value;
		if (p->at_out)
			p->at_out(&g, o->n - 1);
	}
	while (hv_vcpu_complete(g.cpu, &g.exit) == 1)
		;
	bare_get(&g, HV_STATE_GENERAL | HV_STATE_SYSTEM | HV_STATE_FPU, &o->s);
	if (o->last >= FAULT && o->last < FAULT + 32)
		mask_frame(&g, &o->s, o->last - FAULT);
	memcpy(o->mem, g.mem, BARE_MEMORY);
	bare_stop(&g);
}

static bool expected(const struct program *p, const struct outcome *o)
{
	bool ok = o->n == p->n && o->last == p->last;

	for (unsigned k = 0; k < o->n && k < p->n && k < 8; k++)
		if (p->value[0] && o->value[k] != p->value[k])
			ok = false;
	if (ok)
		return true;
	printf("# last %#x:", o->last);
	for (unsigned k = 0; k < o->n; k++)
		printf(" %" PRIu32, o->value[k]);
	printf("\n");
	return false;
}

static bool alike(const struct outcome *a, const struct outcome *b)
{
	bool ok = a->n == b->n && a->last == b->last &&
		  !memcmp(a->value, b->value, a->n * sizeof(a->value[0]));

	for (unsigned k = 0; k < 16; k++)
		if (a->s.gpr[k] != b->s.gpr[k]) {
			printf("# register %u: %#" PRIx64 " %#" PRIx64 "\n", k,
			       a->s.gpr[k], b->s.gpr[k]);
			ok = false;
		}
	if (a->s.rip != b->s.rip || a->s.rflags != b->s.rflags ||
	    a->s.cr2 != b->s.cr2) {
		printf("# rip %#" PRIx64 " %#" PRIx64 ", rflags %#" PRIx64
		       " %#" PRIx64 ", cr2 %#" PRIx64 " %#" PRIx64 "\n",
		       a->s.rip, b->s.rip, a->s.rflags, b->s.rflags, a->s.cr2,
		       b->s.cr2);
		ok = false;
	}
	for (unsigned k = 0; k < BARE_MEMORY; k += 8)
		if (memcmp(a->mem + k, b->mem + k, 8)) {
			uint64_t v, w;

			memcpy(&v, a->mem + k, 8);
			memcpy(&w, b->mem + k, 8);
			printf("# memory %#x: %#" PRIx64 " %#" PRIx64 "\n", k,
			       v, w);
			return false;
		}
	return ok;
}

static void run_all(const struct program *p)
{
	static const char *const engines[] = { "soft,interp", "soft",
					       "soft,eager" };
	static struct outcome a, b;

	run_program(p, "soft,interp", &a);
	for (unsigned k = 0; k < 3; k++) {
		bool ok;

		if (only_engine && strcmp(only_engine, engines[k]))
			continue;
		if (k)
			run_program(p, engines[k], &b);
		ok = expected(p, k ? &b : &a);
		if (k && !alike(&a, &b))
			ok = false;
		result(ok, p->name, engines[k]);
	}
}

/* -- with a second thread ------------------------------------------------- */

/*
 * vCPU 0 changes a function and asks vCPU 1, which serializes by CPUID, to
 * run it: it must be the new one.  Words: 0x10000 the request, 0x10008 the
 * answer, 0x1000c its number.
 */
PAYLOAD(cross_writer, 64,
	"mov $1, %ebx\n xor %r9d, %r9d\n"
	"1: mov %ebx, 0x12001\n mfence\n mov %ebx, 0x10000\n"
	"2: pause\n cmp %ebx, 0x1000c\n jne 2b\n"
	"cmp %ebx, 0x10008\n je 3f\n inc %r9d\n 3: inc %ebx\n"
	"cmp $600, %ebx\n jb 1b\n mov %r9d, %eax\n" SHOW END_OF);
PAYLOAD(cross_runner, 64,
	"mov $0x12000, %edi\n xor %esi, %esi\n"
	"1: mov 0x10000, %r8d\n cmp %r8d, %esi\n je 1b\n mov %r8d, %esi\n"
	"xor %eax, %eax\n cpuid\n call *%rdi\n mov %eax, 0x10008\n"
	"mov %esi, 0x1000c\n jmp 1b\n");
/* Without a word: a loop is changed that never looks up. */
PAYLOAD(cross_silent, 64,
	"mov $1, %ebx\n 1: mov %ebx, 0x12001\n"
	"2: pause\n cmp %ebx, 0x10008\n jne 2b\n inc %ebx\n"
	"cmp $150, %ebx\n jb 1b\n xor %eax, %eax\n" SHOW END_OF);

struct second {
	struct hv_vcpu *cpu;
	atomic_bool stop;
	unsigned others;
};

static void *run_second(void *arg)
{
	struct second *s = arg;
	struct hv_exit e;

	while (!atomic_load(&s->stop))
		if (hv_vcpu_run(s->cpu, &e) || e.reason != HV_EXIT_KICKED) {
			s->others++;
			break;
		}
	return NULL;
}

static bool run_cross(const char *engine, const uint8_t *code,
		      const uint8_t *end, bool silent)
{
	static const uint8_t f[] = { 0xb8, 0, 0, 0, 0, 0xc3 };
	/* mov $0, %eax; mov %eax, 0x10008; jmp .-12 */
	static const uint8_t loop[] = { 0xb8, 0, 0, 0, 0,    0x89, 0x04,
					0x25, 8, 0, 1, 0x00, 0xeb, 0xf2 };
	struct second s = { .others = 0 };
	struct husk_error err = { 0 };
	static struct hv_state st;
	static struct bare g;
	pthread_t t;
	bool ok;

	bare_start(&g, engine, BARE_LONG, code, end);
	memcpy(g.mem + 0x13000, cross_runner,
	       bare_bytes(cross_runner, cross_runner_end));
	memcpy(g.mem + 0x12000, silent ? loop : f,
	       silent ? sizeof(loop) : sizeof(f));
	if (hv_vcpu_create(g.vm, 1, &s.cpu, &err))
		bare_die(err.text, EIO);
	bare_get(&g, HV_STATE_GENERAL | HV_STATE_SYSTEM, &st);
	st.apic_base &= ~0x100ull; /* not the first */
	st.rip = silent ? 0x12000 : 0x13000;
	st.gpr[HV_RSP] = 0x1e000;
	st.event.mp = HV_MP_RUNNABLE;
	if (hv_vcpu_set(s.cpu,
			HV_STATE_GENERAL | HV_STATE_SYSTEM | HV_STATE_EVENT,
			&st) ||
	    pthread_create(&t, NULL, run_second, &s))
		bare_die("the second vCPU", EIO);
	ok = bare_run(&g) == HV_EXIT_PIO && g.exit.pio.port == OUT &&
	     !g.exit.pio.value;
	if (!ok)
		printf("# exit %d, %u wrong answers\n", g.exit.reason,
		       g.exit.pio.value);
	atomic_store(&s.stop, true);
	hv_vcpu_kick(s.cpu);
	pthread_join(t, NULL);
	ok &= !s.others;
	bare_stop(&g);
	return ok;
}

/* A loop that shows a constant of its own code in memory. */
PAYLOAD(shower, 64,
	"1: mov $0, %eax\n mov %eax, 0x10008\n incl 0x1000c\n jmp 1b\n");
/* One that reads and writes a page which comes and goes. */
PAYLOAD(toucher, 64,
	"1: mov 0x33000, %eax\n mov %ebx, 0x33008\n inc %ebx\n"
	"incl 0x1000c\n jmp 1b\n");
PAYLOAD(spin_jmp, 64, "1: jmp 1b\n");
PAYLOAD(spin_dec, 64, "1: lea 1(%rax), %rax\n dec %rcx\n jmp 1b\n");
PAYLOAD(spin_call, 64, "1: call 2f\n jmp 1b\n .fill 3000, 1, 0x90\n 2: ret\n");
PAYLOAD(spin_ind, 64,
	"lea 2f(%rip), %rbx\n lea 1f(%rip), %rdx\n"
	"1: jmp *%rbx\n .fill 5000, 1, 0x90\n 2: jmp *%rdx\n");
PAYLOAD(spin_rep, 64,
	"1: mov $0x100000, %ecx\n mov $0x100000, %edi\n"
	"mov $0x80000, %esi\n shr $1, %ecx\n rep movsb\n jmp 1b\n");
PAYLOAD(spin_vec, 64,
	"1: paddd %xmm1, %xmm0\n mulps %xmm0, %xmm2\n"
	"movdqu %xmm0, 0x10000\n dec %rcx\n jnz 1b\n jmp 1b\n");
PAYLOAD(spin_smc, 64, "1: incl 2f + 1(%rip)\n 2: mov $0, %eax\n jmp 1b\n");
ALIGNED(spin_fault, 64,
	"jmp 1f\n .balign 64\n add $8, %rsp\n iretq\n"
	"1: mov 0x800000000, %eax\n jmp 1b\n");

struct runner {
	struct bare g;
	atomic_bool stop;
	atomic_uint mmio, others, kicked;
	_Atomic uint64_t returned; /* ns, of the last kick */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void *run_loop(void *arg)
{
	struct runner *r = arg;

	while (!atomic_load(&r->stop)) {
		switch (bare_run(&r->g)) {
		case HV_EXIT_MMIO:
			r->g.exit.mmio.value = 0x77;
			atomic_fetch_add(&r->mmio, 1);
			break;
		case HV_EXIT_KICKED:
			atomic_store(&r->returned, now_ns());
			atomic_fetch_add(&r->kicked, 1);
			break;
		default: atomic_fetch_add(&r->others, 1); return NULL;
		}
	}
	return NULL;
}

static void loop_start(struct runner *r, pthread_t *t, const char *engine,
		       const uint8_t *code, const uint8_t *end)
{
	memset(r, 0, sizeof(*r));
	bare_start(&r->g, engine, BARE_LONG, code, end);
	fine_pages(&r->g);
	gate(&r->g, 14, BARE_CODE + 64);
	if (pthread_create(t, NULL, run_loop, r))
		bare_die("a thread", EAGAIN);
}

static void loop_stop(struct runner *r, pthread_t t)
{
	atomic_store(&r->stop, true);
	hv_vcpu_kick(r->g.cpu);
	pthread_join(t, NULL);
	hv_vcpu_complete(r->g.cpu, &r->g.exit);
	bare_stop(&r->g);
}

static uint32_t guest_word(struct bare *g, unsigned at)
{
	return *(volatile uint32_t *)(void *)(g->mem + at);
}

static bool reaches(struct bare *g, unsigned at, uint32_t v)
{
	for (unsigned k = 0; k < 20000; k++) {
		if (guest_word(g, at) == v)
			return true;
		usleep(k < 100 ? 10 : 1000);
	}
	printf("# memory %#x is %u, not %u\n", at, guest_word(g, at), v);
	return false;
}

static bool moves(struct bare *g)
{
	uint32_t was = guest_word(g, 0x1000c);

	for (unsigned k = 0; k < 20000; k++) {
		if (guest_word(g, 0x1000c) != was)
			return true;
		usleep(k < 100 ? 10 : 1000);
	}
	printf("# the loop stands still\n");
	return false;
}

/* A device writes hot code; the loop must see each write. */
static bool run_device(const char *engine)
{
	static struct runner r;
	bool ok = true;
	pthread_t t;

	loop_start(&r, &t, engine, shower, shower_end);
	for (uint32_t n = 1; n < 60 && ok; n++) {
		memcpy(r.g.mem + BARE_CODE + 1, &n, 4);
		hv_mem_written(r.g.vm, BARE_CODE, 8);
		ok = reaches(&r.g, 0x10008, n);
	}
	loop_stop(&r, t);
	return ok && !atomic_load(&r.others);
}

/*
 * Memory is taken away, made read-only and given back while it is used.  As
 * soon as a call returns, no access may take the old way.
 */
static bool run_slots(const char *engine)
{
	static struct runner r;
	unsigned rw = HV_MEM_READ | HV_MEM_WRITE;
	bool ok = true;
	pthread_t t;

	loop_start(&r, &t, engine, toucher, toucher_end);
	for (unsigned n = 0; n < 24 && ok; n++) {
		unsigned was;

		ok = moves(&r.g) && !hv_mem_unmap(r.g.vm, 0x33000, 0x1000);
		memset(r.g.mem + 0x33008, 0xee, 4);
		was = atomic_load(&r.mmio);
		ok &= moves(&r.g);
		ok &= moves(&r.g);
		ok &= atomic_load(&r.mmio) > was;
		ok &= guest_word(&r.g, 0x33008) == 0xeeeeeeee;
		ok &= !hv_mem_map(r.g.vm, 0x33000, 0x1000, r.g.mem + 0x33000,
				  n & 1 ? rw : HV_MEM_READ);
		if (!(n & 1)) {
			ok &= moves(&r.g);
			ok &= moves(&r.g);
			ok &= guest_word(&r.g, 0x33008) == 0xeeeeeeee;
			ok &= !hv_mem_protect(r.g.vm, 0x33000, 0x1000, rw);
		}
		/* The code itself goes to other memory of the same content. */
		ok &= !hv_mem_protect(r.g.vm, 0x8000, 0x1000,
				      n & 2 ? rw : HV_MEM_READ);
	}
	loop_stop(&r, t);
	return ok && !atomic_load(&r.others);
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static unsigned kicks = 40;

/* Every kick ends the run; how soon is shown. */
static bool run_kicks(const char *engine, const char *name, const uint8_t *code,
		      const uint8_t *end)
{
	static uint64_t late[KICKS];
	static struct runner r;
	unsigned half, at90, at99;
	bool ok = true;
	pthread_t t;

	loop_start(&r, &t, engine, code, end);
	for (unsigned n = 0; n < kicks && ok; n++) {
		uint64_t at, ns = 0;

		usleep(200);
		at = now_ns();
		hv_vcpu_kick(r.g.cpu);
		for (unsigned k = 0; atomic_load(&r.kicked) == n; k++) {
			if (atomic_load(&r.others) || k > 100000) {
				ok = false;
				break;
			}
			usleep(k < 1000 ? 20 : 1000);
		}
		ns = atomic_load(&r.returned);
		late[n] = ns > at ? ns - at : 0;
	}
	loop_stop(&r, t);
	qsort(late, kicks, sizeof(late[0]), by_value);
	half = kicks / 2;
	at90 = kicks * 9 / 10;
	at99 = kicks * 99 / 100;
	printf("# kick of %s on %s: median %.1f us, 90%% %.1f us, 99%% %.1f "
	       "us, most %.1f us\n",
	       name, engine, (double)late[half] / 1e3, (double)late[at90] / 1e3,
	       (double)late[at99] / 1e3, (double)late[kicks - 1] / 1e3);
	return ok;
}

static bool wanted(const char *name)
{
	return !only || !strcmp(only, name);
}

static void run_threads(const char *engine)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
	} spin[] = {
		{ P(spin_jmp) }, { P(spin_dec) },   { P(spin_call) },
		{ P(spin_ind) }, { P(spin_rep) },   { P(spin_vec) },
		{ P(spin_smc) }, { P(spin_fault) },
	};

	if (wanted("cross"))
		result(run_cross(engine, cross_writer, cross_writer_end, false),
		       "cross", engine);
	if (wanted("cross_silent"))
		result(run_cross(engine, cross_silent, cross_silent_end, true),
		       "cross_silent", engine);
	if (wanted("device"))
		result(run_device(engine), "device", engine);
	if (wanted("slots"))
		result(run_slots(engine), "slots", engine);
	for (unsigned k = 0; k < sizeof(spin) / sizeof(spin[0]); k++)
		if (wanted(spin[k].name))
			result(run_kicks(engine, spin[k].name, spin[k].code,
					 spin[k].end),
			       spin[k].name, engine);
}

int main(int argc, char **argv)
{
	static const char *const engines[] = { "soft,interp", "soft",
					       "soft,eager" };

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--only")) {
			only = argv[i + 1];
		} else if (!strcmp(argv[i], "--engine")) {
			only_engine = argv[i + 1];
		} else if (!strcmp(argv[i], "--kicks")) {
			kicks = (unsigned)strtoul(argv[i + 1], NULL, 0);
			if (!kicks || kicks > KICKS)
				kicks = KICKS;
		} else {
			fprintf(stderr, "hostile: what is %s?\n", argv[i]);
			return 2;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(280);
	for (unsigned k = 0; k < sizeof(programs) / sizeof(programs[0]); k++)
		if (wanted(programs[k].name))
			run_all(&programs[k]);
	for (unsigned k = 0; k < 3; k++)
		if (!only_engine || !strcmp(only_engine, engines[k]))
			run_threads(engines[k]);
	printf("1..%u\n", tests);
	return failures || !tests;
}
