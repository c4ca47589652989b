/* SPDX-License-Identifier: Apache-2.0 */
/*
 * programs.c - bare programs for comparing one engine with another
 *
 * Each ends by a write to BARE_END or by a fault, and keeps to instructions
 * that /dev/kvm has where it emulates CPL 0.
 */
#include <string.h>

#include "bare.h"

#define END "mov $0x5ff, %dx\n out %al, %dx\n 2: jmp 2b\n"

PAYLOAD(prog_real, 16,
	"xor %ax, %ax\n mov %ax, %ds\n mov $20, %cx\n"
	"1: add %cx, %ax\n mov $0x510, %dx\n out %ax, %dx\n"
	"in %dx, %al\n xor %al, %ah\n mov %ax, 0x6f00\n rol $3, %ax\n"
	"push %ax\n pop %bx\n sub %bx, 0x6f00\n loop 1b\n" END);
PAYLOAD(prog_protected, 32,
	"mov $0x10000, %edi\n mov $12, %ecx\n mov $0x511, %dx\n"
	"1: in %dx, %eax\n stosl\n mul %ecx\n adc %edx, %eax\n"
	"mov $0x511, %dx\n out %eax, %dx\n bswap %eax\n push %eax\n"
	"call 3f\n pop %ebx\n loop 1b\n jmp 4f\n"
	"3: mov 4(%esp), %esi\n add %esi, 0x10100\n ret\n"
	"4: mov 0x10100, %eax\n out %eax, %dx\n" END);
/* The addition gives flags that IMUL leaves undefined a value. */
PAYLOAD(prog_long, 64,
	"mov $0x123456789abcdef0, %r8\n mov $16, %r9d\n"
	"mov $0x512, %edx\n mov $0x40000000, %ebx\n"
	"1: imul $0x3779, %r8, %r8\n rol $13, %r8\n add %r9, %r8\n"
	"mov %r8, (%rbx,%r9,8)\n"
	"mov %r8d, %eax\n out %eax, %dx\n in %dx, %ax\n xor %rax, %r8\n"
	"add 0x200(%rbx), %r8b\n xor %r8w, 0x208(%rbx)\n"
	"mov %r8, 0x10000(,%r9,8)\n dec %r9d\n jnz 1b\n" END);
PAYLOAD(prog_string, 64,
	"cld\n mov $0x10000, %edi\n mov $6, %ecx\n mov $0x516, %edx\n"
	"rep insb\n mov $0x10000, %esi\n mov $3, %ecx\n rep outsw\n"
	"mov $0x10000, %esi\n mov $0x40000040, %edi\n mov $3, %ecx\n"
	"rep movsw\n"
	"std\n mov $0x40000080, %esi\n mov $0x10020, %edi\n mov $2, %ecx\n"
	"rep movsl\n cld\n mov 0x1001c, %rax\n shr $9, %rax\n"
	"out %eax, %dx\n" END);
/* A fault in the middle: the handler, at CPL 0, tells the vector. */
PAYLOAD(prog_fault, 64,
	"mov $0x517, %edx\n mov $7, %eax\n out %al, %dx\n"
	"xor %ecx, %ecx\n div %ecx\n");
/* #DE with a handler of the program's own, which skips the division. */
PAYLOAD(prog_handler, 64,
	"lea 5f(%rip), %eax\n mov %ax, 0x5000\n xor %r12d, %r12d\n"
	"xor %ecx, %ecx\n 1: mov $5, %edx\n stc\n div %ecx\n"
	"mov 0x10000, %eax\n mov $0x514, %edx\n"
	"out %eax, %dx\n in %dx, %al\n add %al, %r12b\n"
	"pushfq\n popq %rax\n mov %rax, 0x10010\n"
	"cmpl $4, 0x10000\n jne 1b\n mov %r12d, %eax\n out %eax, %dx\n"
	"jmp 6f\n"
	"5: incl 0x10000\n mov (%rsp), %rax\n add $2, %rax\n"
	"mov %rax, (%rsp)\n mov $0x514, %edx\n out %al, %dx\n iretq\n"
	"6:\n" END);
/* Control and model-specific registers, and the task's own stack. */
PAYLOAD(prog_system, 64,
	"mov $0xc0000082, %ecx\n mov $0x1234, %eax\n mov $-1, %edx\n wrmsr\n"
	"mov $0x518, %dx\n out %al, %dx\n rdmsr\n"
	"xchg %eax, %edx\n mov %edx, %ebx\n mov $0x518, %dx\n"
	"out %eax, %dx\n mov %ebx, %eax\n out %eax, %dx\n"
	"mov $0x5678, %eax\n mov %rax, %cr2\n out %al, %dx\n"
	"mov %cr2, %rax\n out %eax, %dx\n mov %cr0, %rax\n out %eax, %dx\n"
	"mov $0x1000, %eax\n mov %rax, %dr1\n out %al, %dx\n"
	"mov %dr1, %rax\n out %eax, %dx\n"
	"mov $3, %ecx\n mov %ecx, %fs\n out %al, %dx\n mov %fs, %eax\n"
	"out %eax, %dx\n" END);
/* The stack moves to where a POP says. */
PAYLOAD(prog_stack, 64,
	"mov $0x51c, %edx\n mov $9, %ecx\n mov $0x10100, %ebx\n"
	"1: mov %rcx, (%rbx)\n mov %rsp, %rsi\n push %rcx\n push $5\n"
	"push %rbx\n pop %rsp\n pop %rax\n add $3, %rax\n push %rax\n"
	"mov %rsi, %rsp\n add -8(%rsp), %rax\n out %eax, %dx\n"
	"push %rsp\n pushw $7\n popw %ax\n pop %rsp\n sub %rsp, %rsi\n"
	"add (%rbx), %rax\n lea 8(%rsi,%rax), %rax\n out %eax, %dx\n"
	"dec %ecx\n jnz 1b\n" END);
PAYLOAD(prog_stack32, 32,
	"mov $0x51d, %edx\n mov $9, %ecx\n mov $0x10100, %ebx\n"
	"1: mov %ecx, (%ebx)\n mov %esp, %esi\n push %ecx\n push $5\n"
	"push %ebx\n pop %esp\n pop %eax\n add $3, %eax\n push %eax\n"
	"mov %esi, %esp\n add -4(%esp), %eax\n out %eax, %dx\n"
	"push %esp\n pushw $7\n popw %ax\n pop %esp\n sub %esp, %esi\n"
	"incl 0x10ff0\n add 0x10ff4, %eax\n add 0x11000, %eax\n"
	"add 0x10ffe, %eax\n mov %al, 0x11008\n xor %eax, 0x10ffd\n"
	"add (%ebx), %eax\n lea 8(%esi,%eax), %eax\n out %eax, %dx\n"
	"add $4, %ebx\n lea -4(%ebx), %ebx\n inc %ebx\n add %ecx, (%ebx)\n"
	"add -1(%ebx), %eax\n dec %bl\n adc (%ebx), %eax\n out %eax, %dx\n"
	"dec %ecx\n jnz 1b\n" END);
/* Strings: single, repeated, over the end of pages, backwards. */
PAYLOAD(prog_strings, 64,
	"mov $0x51e, %edx\n cld\n mov $0x20000, %edi\n mov $100000, %ecx\n"
	"mov $0x9a, %al\n rep stosb\n mov %edi, %eax\n out %eax, %dx\n"
	"mov %ecx, %eax\n out %eax, %dx\n mov $3, %ebx\n"
	"1: mov $0x20ff8, %edi\n mov $0x20003, %esi\n mov %ebx, %ecx\n"
	"movl $0x12345678, (%rsi)\n add %ebx, 3(%rsi)\n movsb\n movsl\n"
	"add -4(%rdi), %ecx\n movsw\n lodsb\n stosb\n lodsl\n scasb\n"
	"adc %eax, %ecx\n cmpsl\n sbb %ebp, %ebp\n stosl\n lodsw\n stosw\n"
	"xchg %eax, %ecx\n out %eax, %dx\n mov %edi, %eax\n sub %esi, %eax\n"
	"add %ebp, %eax\n out %eax, %dx\n"
	"mov $0x20ff0, %esi\n mov %ebx, %ecx\n mov $0x20fe0, %edi\n"
	"rep movsb\n mov %esi, %eax\n out %eax, %dx\n mov %ebx, %ecx\n"
	"shr $1, %ecx\n sub %ebx, %edi\n rep stosl\n mov %ebx, %ecx\n"
	"and $3, %ecx\n mov $0x20fff, %esi\n rep movsw\n repne movsb\n"
	"mov %ebx, %ecx\n mov $0x20000, %edi\n repe scasb\n mov %ecx, %eax\n"
	"out %eax, %dx\n std\n movsb\n stosl\n mov $2, %ecx\n rep stosw\n"
	"cld\n mov -2(%rdi), %eax\n out %eax, %dx\n mov %edi, %eax\n"
	"out %eax, %dx\n lea 5(%rbx,%rbx), %ebx\n cmp $3000, %ebx\n jb 1b\n" END);
PAYLOAD(prog_strings32, 32,
	"mov $0x51e, %edx\n cld\n mov $0x20000, %edi\n mov $100000, %ecx\n"
	"mov $0x9a, %al\n rep stosb\n mov %edi, %eax\n out %eax, %dx\n"
	"mov %ecx, %eax\n out %eax, %dx\n mov $3, %ebx\n"
	"1: mov $0x20ff8, %edi\n mov $0x20003, %esi\n mov %ebx, %ecx\n"
	"movl $0x12345678, (%esi)\n add %ebx, 3(%esi)\n movsb\n movsl\n"
	"add -4(%edi), %ecx\n movsw\n lodsb\n stosb\n lodsl\n scasb\n"
	"adc %eax, %ecx\n cmpsl\n sbb %ebp, %ebp\n stosl\n lodsw\n stosw\n"
	"xchg %eax, %ecx\n out %eax, %dx\n mov %edi, %eax\n sub %esi, %eax\n"
	"add %ebp, %eax\n out %eax, %dx\n"
	"mov $0x20ff0, %esi\n mov %ebx, %ecx\n mov $0x20fe0, %edi\n"
	"rep movsb\n mov %esi, %eax\n out %eax, %dx\n mov %ebx, %ecx\n"
	"shr $1, %ecx\n sub %ebx, %edi\n rep stosl\n mov %ebx, %ecx\n"
	"and $3, %ecx\n mov $0x20fff, %esi\n rep movsw\n repne movsb\n"
	"mov %ebx, %ecx\n mov $0x20000, %edi\n repe scasb\n mov %ecx, %eax\n"
	"out %eax, %dx\n std\n movsb\n stosl\n mov $2, %ecx\n rep stosw\n"
	"cld\n mov -2(%edi), %eax\n out %eax, %dx\n mov %edi, %eax\n"
	"out %eax, %dx\n lea 5(%ebx,%ebx), %ebx\n cmp $3000, %ebx\n jb 1b\n" END);
/* What only 32-bit code has, in a loop that also changes its own code. */
PAYLOAD(prog_flat, 32,
	"mov $0x519, %edx\n mov $24, %ecx\n mov $0x12345678, %eax\n"
	"mov $-1, %ebx\n lea 0x11000, %edi\n"
	"1: push %ecx\n pushl 4(%edi)\n call 3f\n pop 4(%edi)\n pop %ecx\n"
	"out %eax, %dx\n call 4f\n 4: pop %esi\n incb 5f-4b+1(%esi)\n"
	"5: mov $7, %bh\n lea 6f-4b(%esi), %esi\n call *%esi\n"
	"dec %ecx\n jecxz 2f\n jmp 1b\n"
	"2: mov %ebx, %eax\n out %eax, %dx\n mov %esp, %eax\n out %eax, %dx\n"
	"jmp 9f\n"
	"3: push %ebp\n mov %esp, %ebp\n sub $16, %esp\n mov 12(%ebp), %esi\n"
	"mov %eax, 0x10000\n imul $0x343fd, %eax, %eax\n add %esi, %eax\n"
	"mov %ah, %bl\n xor %bh, %ah\n add 0x10001, %ah\n sub %ch, 0x10003\n"
	"mov %al, 0x10010\n mov 0x10012, %ax\n inc %ebx\n dec %si\n"
	"inc %esi\n xchg %eax, %ebx\n adc 0x10000, %eax\n das\n"
	"pusha\n popl -4(%ebp)\n sub $4, %esp\n popa\n .byte 0xd6\n"
	"lahf\n mov %esi, -8(%ebp)\n pushl -8(%ebp)\n popl 8(%ebp)\n"
	"leave\n ret\n"
	"6: rol $5, %ebx\n push $9f-6b-1\n pop %esi\n enter $8, $0\n"
	"movb $3, (%esp)\n leave\n bt $3, %ebx\n rcl $1, %bh\n"
	"cmp $0x80, %bh\n setb (%edi,%ecx)\n movzbl %bh, %esi\n"
	"cmovb %esi, %eax\n mul %bh\n xlat\n add %esi, 8(%edi)\n"
	"loop 7f\n 7: inc %ecx\n shld %cl, %ebx, %eax\n ret\n"
	"9:\n" END);
/* FS with another base, limited and not; GS before its base. */
PAYLOAD(prog_segments, 32,
	"mov $0x51a, %edx\n mov $6, %ecx\n mov $0x6000, %ebp\n"
	"movl $0x00cf9301, 0x34(%ebp)\n"
	"1: movl $0x2000ffff, 0x30(%ebp)\n xorl $0x008f0000, 0x34(%ebp)\n"
	"mov $0x30, %eax\n mov %eax, %fs\n mov %eax, %gs\n mov $8, %ebx\n"
	"2: mov %ecx, %fs:(%ebx)\n addl $0x1234567, %fs:8(,%ebx,2)\n"
	"mov %fs:0x10, %eax\n rol $3, %eax\n mov %eax, %fs:0x18\n"
	"mov %eax, %ss:0x12100(,%ebx,4)\n"
	"cmpl $0x00cf9301, 0x34(%ebp)\n jne 3f\n"
	"mov %eax, %gs:0xfffffff0\n lea -0x1000(%ebx), %esi\n"
	"add %bh, %gs:(%esi)\n pushl %gs:-16\n popl %gs:-32\n"
	"3: mov %cs:0x8000, %al\n out %eax, %dx\n dec %ebx\n jnz 2b\n"
	"mov 0x12010, %eax\n out %eax, %dx\n dec %ecx\n jnz 1b\n" END);
/* The same bytes by turns as 64-bit code and in compatibility mode. */
PAYLOAD(prog_compat, 64,
	"mov $0x00cf9b000000ffff, %rax\n mov %rax, 0x6030\n"
	"mov $0x51b, %edx\n mov $8, %ecx\n xor %ebx, %ebx\n"
	"mov $0x1122334455667788, %r8\n mov $0x8877665544332211, %r14\n"
	"1: lea 4f(%rip), %edi\n lea 5f(%rip), %esi\n"
	"mov $0xffffffff, %eax\n call 5f\n mov %rax, (0x10000)(,%rcx,8)\n"
	"lea 3f(%rip), %ebp\n push $0x30\n push %rbp\n lretq\n"
	".code32\n"
	"3: mov $0xffffffff, %eax\n call *%esi\n out %eax, %dx\n"
	"add %eax, %ebx\n push $8\n push %edi\n lret\n"
	".code64\n"
	"4: mov %ebx, %eax\n out %eax, %dx\n xor %r14, %r8\n"
	"rol $9, %r14\n mov %r8d, %eax\n out %eax, %dx\n loop 1b\n"
	"jmp 6f\n"
	"5: .byte 0x48, 0xff, 0xc0\n" /* inc %rax; dec %eax, inc %eax */
	".byte 0x49, 0x83, 0xc0, 0x11\n"
	".byte 0x8d, 0x05, 0x10, 0, 0, 0\n" /* lea disp32 */
	".byte 0x48, 0x01, 0xc8\n ret\n"
	"6:\n" END);

/*
 * User-level code: reads 1 KiB at RSI, writes at RDI, keeps RSP and RBX.  On
 * the engines it runs at CPL 3 and ud2 follows it.
 */
PAYLOAD(user_int, 64,
	"mov $64, %ecx\n xor %r8d, %r8d\n mov $7, %r9\n"
	"1: mov (%rsi,%rcx,8), %rax\n mov %rax, %r10\n mul %r9\n"
	"add %rax, %r8\n adc %rdx, %r9\n rcl $5, %r8\n bsf %r10, %r11\n"
	"btc %rcx, %r8\n bswap %r9\n shld $7, %r9, %r8\n"
	"cmp %r10, %r8\n cmovb %r10, %r11\n seto %dl\n movzbl %dl, %edx\n"
	"sbb %rdx, %r11\n mov %r8, (%rdi,%rcx,8)\n"
	"xor %r11, 512(%rdi,%rcx,4)\n xor %edx, %edx\n or $1, %r10\n"
	"mov %r9, %rax\n div %r10\n mov %rdx, %r9\n not %r9\n"
	"lock xadd %r9, (%rdi)\n loop 1b\n"
	"mov $96, %ecx\n lea 0x400(%rdi), %r10\n xchg %r10, %rdi\n"
	"rep movsb\n mov %r10, %rdi\n mov %rsi, 8(%rdi)\n"
	"mov %r8, %rax\n xor %edx, %edx\n mov %edx, %ecx\n");
PAYLOAD(user_sse, 64,
	"mov $62, %ecx\n pxor %xmm0, %xmm0\n pxor %xmm3, %xmm3\n"
	"pxor %xmm6, %xmm6\n pxor %xmm8, %xmm8\n"
	"movl $0x1f80, 0x440(%rdi)\n ldmxcsr 0x440(%rdi)\n"
	"1: movdqu (%rsi,%rcx,8), %xmm1\n movdqa %xmm1, %xmm2\n"
	"paddq %xmm1, %xmm0\n pshufd $0x4e, %xmm1, %xmm4\n"
	"pmuludq %xmm4, %xmm2\n pxor %xmm2, %xmm3\n"
	"psrlq $40, %xmm1\n cvtdq2pd %xmm1, %xmm5\n"
	"sqrtpd %xmm5, %xmm5\n addpd %xmm5, %xmm6\n"
	"cvtpd2ps %xmm6, %xmm7\n divps %xmm7, %xmm7\n"
	"punpcklbw %xmm7, %xmm2\n pmaxub %xmm2, %xmm8\n"
	"movdqu %xmm0, (%rdi,%rcx,8)\n dec %ecx\n jnz 1b\n"
	"movdqu %xmm3, 0x400(%rdi)\n movdqu %xmm5, 0x410(%rdi)\n"
	"movdqu %xmm6, 0x420(%rdi)\n movdqu %xmm8, 0x430(%rdi)\n"
	"stmxcsr 0x440(%rdi)\n xor %eax, %eax\n");
PAYLOAD(user_x87, 64,
	"fninit\n mov $40, %ecx\n fldz\n"
	"1: fildl (%rsi,%rcx,8)\n fldpi\n fmul %st(1), %st\n fsin\n"
	"faddp\n fabs\n fsqrt\n faddp\n fld %st(0)\n"
	"fstpt 0x10(%rdi)\n mov 0x10(%rdi), %rax\n xor %rax, (%rdi)\n"
	"loop 1b\n fistpll 0x20(%rdi)\n fnstsw %ax\n mov %ax, 0x30(%rdi)\n"
	"fnstcw 0x32(%rdi)\n");

#define PROGRAM(name, mode, code) \
	{ \
		name, mode, code, code##_end \
	}

const struct bare_program bare_programs[] = {
	PROGRAM("real", BARE_REAL, prog_real),
	PROGRAM("protected", BARE_PROTECTED, prog_protected),
	PROGRAM("stack", BARE_LONG, prog_stack),
	PROGRAM("stack32", BARE_PROTECTED, prog_stack32),
	PROGRAM("strings", BARE_LONG, prog_strings),
	PROGRAM("strings32", BARE_PROTECTED, prog_strings32),
	PROGRAM("flat", BARE_PROTECTED, prog_flat),
	PROGRAM("segments", BARE_PROTECTED, prog_segments),
	PROGRAM("compat", BARE_LONG, prog_compat),
	PROGRAM("long", BARE_LONG, prog_long),
	PROGRAM("string", BARE_LONG, prog_string),
	PROGRAM("fault", BARE_LONG, prog_fault),
	PROGRAM("handler", BARE_LONG, prog_handler),
	PROGRAM("system", BARE_LONG, prog_system),
	PROGRAM("int", BARE_USER, user_int),
	PROGRAM("sse", BARE_USER, user_sse),
	PROGRAM("x87", BARE_USER, user_x87),
	{ 0 },
};

void bare_fill_input(uint8_t *p)
{
	uint64_t x = 88172645463325252ull;

	for (unsigned i = 0; i < BARE_OUTPUT; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = (uint8_t)(x >> 32);
	}
}

void bare_start_program(struct bare *g, const char *engine,
			const struct bare_program *p)
{
	static const uint8_t ud2[] = { 0x0f, 0x0b };
	static struct hv_state s;
	int r;

	bare_start(g, engine, p->mode, p->code, p->end);
	if (p->mode != BARE_USER)
		return;
	memcpy(g->mem + BARE_CODE + (p->end - p->code), ud2, sizeof(ud2));
	bare_fill_input(g->mem + BARE_DATA);
	bare_get(g, HV_STATE_GENERAL, &s);
	s.gpr[HV_RSI] = BARE_DATA;
	s.gpr[HV_RDI] = BARE_DATA + BARE_OUTPUT;
	r = hv_vcpu_set(g->cpu, HV_STATE_GENERAL, &s);
	if (r)
		bare_die("hv_vcpu_set", r);
}
