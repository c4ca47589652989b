/* SPDX-License-Identifier: Apache-2.0 */
/*
 * insn.c - single instructions: the engine beside the bare processor
 *
 * A "same" case is a function of one argument, a buffer.  It is called here,
 * on the processor this test runs on, and run in a guest in 64-bit mode with
 * a copy of the buffer; the two buffers must then be equal.  A "fault" case
 * runs in the guest only, with bits of CR0, CR4 and XCR0 changed, and must
 * end with the given exception, or with none.
 */
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "husk/hv.h"

enum {
	PML4 = 0x1000,
	PDPT = 0x2000,
	PD = 0x3000,
	TSS = 0x4000,
	IDT = 0x5000,
	GDT = 0x6000,
	TRAPS = 0x6800, /* 4 bytes per vector */
	STACK = 0x7ff0,
	CODE = 0x8000,
	DATA = 0x10000,
	DATA_SIZE = 0x2000,
	MEMORY = 0x200000,
	DONE = 0xf0, /* port at the end of a case */
	NONE = -1,
};

#define CODE64(name, text) \
	extern const uint8_t name[], name##_end[]; \
	__asm__(".pushsection .text\n.global " #name ", " #name "_end\n" #name \
		":\n" text "\nret\n" #name "_end:\n.popsection\n")

static unsigned tests, failures;

static void check(bool ok, const char *name, const char *note)
{
	printf("%sok %u - %s%s%s\n", ok ? "" : "not ", ++tests, name,
	       note[0] ? ": " : "", note);
	failures += !ok;
}

static void die(const char *what, const char *why)
{
	printf("Bail out! %s: %s\n", what, why);
	exit(1);
}

/* -- a guest -------------------------------------------------------------- */

struct guest {
	struct hv_vm *vm;
	struct hv_vcpu *cpu;
	uint8_t *mem;
	struct hv_state s;
};

static void put64(struct guest *g, uint64_t at, uint64_t value)
{
	memcpy(g->mem + at, &value, 8);
}

/* Every exception writes to the port of its number. */
static void fill(struct guest *g)
{
	put64(g, PML4, PDPT | 3);
	put64(g, PDPT, PD | 3);
	put64(g, PD, 0x83);
	put64(g, GDT + 8, 0x00af9b000000ffff);
	put64(g, GDT + 16, 0x00cf93000000ffff);
	for (unsigned v = 0; v < 32; v++) {
		uint64_t at = TRAPS + v * 4;
		uint8_t trap[4] = { 0xe6, (uint8_t)v, 0xeb, 0xfe };

		put64(g, IDT + v * 16, at | 8 << 16 | 0x8e00ull << 32);
		memcpy(g->mem + at, trap, 4);
	}
	memcpy(g->mem + TRAPS + 128, "\xe6\xf0\xeb\xfe", 4);
	put64(g, STACK, TRAPS + 128);
}

static void set_long_mode(struct guest *g)
{
	struct hv_state *s = &g->s;

	for (int i = HV_ES; i <= HV_GS; i++) {
		s->seg[i].selector = i == HV_CS ? 8 : 16;
		s->seg[i].base = 0;
		s->seg[i].limit = 0xffffffff;
		s->seg[i].access = i == HV_CS ? 0xa09b : 0xc093;
	}
	s->seg[HV_TR].access = 0x8b;
	s->seg[HV_TR].limit = 0x67;
	s->gdtr.base = GDT;
	s->gdtr.limit = 23;
	s->idtr.base = IDT;
	s->idtr.limit = 32 * 16 - 1;
	s->cr0 = 0x80010033;
	s->cr3 = PML4;
	s->cr4 = 0x40620; /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
	s->efer = 0x500;
	s->xcr0 = 7;
	s->rip = CODE;
	s->rflags = 2;
	s->gpr[HV_RSP] = STACK;
	s->gpr[HV_RDI] = DATA;
}

static const char *engine = "soft";

static void start(struct guest *g, const uint8_t *code, const uint8_t *end)
{
	struct hv_config cfg = { .engine = engine, .max_vcpus = 1 };
	struct husk_error err = { 0 };
	int r;

	g->mem = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->mem == MAP_FAILED)
		die("mmap", "no memory");
	r = hv_vm_create(&cfg, &g->vm, &err);
	if (!r)
		r = hv_mem_map(g->vm, 0, MEMORY, g->mem,
			       HV_MEM_READ | HV_MEM_WRITE);
	if (!r)
		r = hv_vcpu_create(g->vm, 0, &g->cpu, &err);
	if (!r)
		r = hv_vcpu_get(g->cpu, HV_STATE_ALL, &g->s);
	if (r)
		die("set up", err.text[0] ? err.text : strerror(-r));
	fill(g);
	memcpy(g->mem + CODE, code, (size_t)(end - code));
	set_long_mode(g);
}

/* The port it ended at, or -1. */
static int run(struct guest *g)
{
	struct hv_exit x;
	int r = hv_vcpu_set(g->cpu, HV_STATE_GENERAL | HV_STATE_SYSTEM, &g->s);

	if (r)
		die("hv_vcpu_set", strerror(-r));
	r = hv_vcpu_run(g->cpu, &x);
	if (r)
		die("hv_vcpu_run", strerror(-r));
	r = x.reason == HV_EXIT_PIO ? x.pio.port : -1;
	hv_vcpu_complete(g->cpu, &x);
	return r;
}

static void stop(struct guest *g)
{
	hv_vm_destroy(g->vm);
	munmap(g->mem, MEMORY);
}

/* -- the same as the processor -------------------------------------------- */

/* clang-format off */
/* FISTTP has an SSE3 feature bit, but is an x87 instruction. */
CODE64(c_fisttp, "fninit\n"
		 "fldl (%rdi)\n fisttps 64(%rdi)\n"
		 "fldl 8(%rdi)\n fisttpl 68(%rdi)\n"
		 "fldl 16(%rdi)\n fisttpll 72(%rdi)\n"
		 "fldl 24(%rdi)\n fisttps 80(%rdi)\n"
		 "fnstsw 88(%rdi)\n fninit");
/* A REX prefix before another prefix does nothing. */
CODE64(c_rex_ignored,
       "movdqu (%rdi), %xmm0\n mov $-1, %rax\n mov $-1, %r8\n mov $-1, %rcx\n"
       ".byte 0x4f, 0x66, 0x0f, 0x3a, 0x16, 0xc0, 0x00\n" /* pextrd eax */
       ".byte 0x47, 0x66, 0x48, 0x0f, 0x3a, 0x16, 0xc1, 0x00\n"
       "mov %rax, 64(%rdi)\n mov %r8, 72(%rdi)\n mov %rcx, 80(%rdi)\n"
       ".byte 0x44, 0x66, 0x0f, 0x7e, 0xc2\n" /* movd xmm0, edx */
       "mov %rdx, 88(%rdi)");
CODE64(c_sse4a,
       "movdqu (%rdi), %xmm0\n movdqu 16(%rdi), %xmm1\n"
       "movdqa %xmm0, %xmm2\n extrq $7, $13, %xmm2\n movq %xmm2, 64(%rdi)\n"
       "movdqa %xmm0, %xmm2\n insertq $3, $21, %xmm1, %xmm2\n"
       "movq %xmm2, 72(%rdi)\n"
       "mov $0x0512, %eax\n movd %eax, %xmm3\n movdqa %xmm0, %xmm2\n"
       "extrq %xmm3, %xmm2\n movq %xmm2, 80(%rdi)\n"
       "movntss %xmm0, 88(%rdi)\n movntsd %xmm1, 96(%rdi)");
/* lea r11, [ecx + 0x1000] with the extension bit of a base it has not. */
CODE64(c_no_base, "mov $0x30, %ecx\n"
		  ".byte 0x67, 0x4d, 0x8d, 0x1c, 0x0d, 0, 0x10, 0, 0\n"
		  "mov %r11, (%rdi)");
/* 0x90 with REX.B is an exchange, also behind F3. */
CODE64(c_xchg_r8, "mov (%rdi), %rax\n mov 8(%rdi), %r8\n"
		  ".byte 0xf3, 0x49, 0x90\n"
		  "mov %rax, 16(%rdi)\n mov %r8, 24(%rdi)\n"
		  ".byte 0xf3, 0x41, 0x90\n"
		  "mov %rax, 32(%rdi)\n mov %r8, 40(%rdi)");
CODE64(c_clzero, "lea 0x155(%rdi), %rax\n clzero");
/* What a 64-bit offset of a far pointer is differs by vendor. */
CODE64(c_lgs,
       "movl $0x91223344, 64(%rdi)\n movl $0x55660000, 68(%rdi)\n"
       "movl $0, 72(%rdi)\n mov $-1, %rax\n"
       ".byte 0x48, 0x0f, 0xb5, 0x47, 0x40\n" /* lgs 64(rdi), rax */
       "mov %rax, 80(%rdi)");

/* Saved and loaded environments; the pointers are kept by few processors. */
#define NO_POINTERS_32(at) \
	"movq $0, " #at "+12(%rdi)\n movq $0, " #at "+20(%rdi)\n"
#define NO_POINTERS_16(at) "movq $0, " #at "+6(%rdi)\n"
/* Registers that translated code keeps in memory, and those it does not. */
CODE64(c_bit_scan_zero,
       "push %r13\n push %r15\n"
       "xor %r8d, %r8d\n mov $-5, %r15\n mov %r15, %r9\n bsf %r8, %r15\n"
       "bsr %r8, %r9\n mov %r15, (%rdi)\n mov %r9, 8(%rdi)\n"
       "mov $-6, %r13\n bsr %r8, %r13\n mov %r13, 16(%rdi)\n"
       "pop %r15\n pop %r13");
/* With an unmasked exception pending: FNENI, FNDISI, FNSETPM do not wait. */
CODE64(c_no_wait, "fninit\n movw $0x37e, (%rdi)\n fldcw (%rdi)\n fsqrt\n"
		  ".byte 0xdb, 0xe0, 0xdb, 0xe1, 0xdb, 0xe4\n"
		  "fnstsw (%rdi)\n fninit");
CODE64(c_env, "fninit\n fldl (%rdi)\n fldl 8(%rdi)\n fldpi\n fincstp\n"
	      "ffree %st(5)\n fnstenv 0x100(%rdi)\n"
	      "fldcw 0x100(%rdi)\n data16 fnstenv 0x140(%rdi)\n"
	      "fldcw 0x140(%rdi)\n fnsave 0x180(%rdi)\n frstor 0x180(%rdi)\n"
	      "fld1\n data16 fnsave 0x200(%rdi)\n fnstenv 0x280(%rdi)\n"
	      "data16 frstor 0x200(%rdi)\n fnstsw 0x2c0(%rdi)\n"
	      "data16 fldenv 0x140(%rdi)\n fnstsw 0x2c2(%rdi)\n"
	      "fldenv 0x100(%rdi)\n fxam\n fnstsw 0x2c4(%rdi)\n"
	      "fstpt 0x2d0(%rdi)\n fninit\n" NO_POINTERS_32(0x100)
		      NO_POINTERS_16(0x140) NO_POINTERS_32(0x180)
			      NO_POINTERS_16(0x200) NO_POINTERS_32(0x280));
/* Stores that raise an unmasked exception: only #P stores anything. */
CODE64(c_fst_unmasked,
       "fninit\n movw $0x340, 0x100(%rdi)\n fldcw 0x100(%rdi)\n"
       "fldl 32(%rdi)\n fsts 0x110(%rdi)\n fnstsw 0x120(%rdi)\n fnclex\n"
       "fistpl 0x114(%rdi)\n fnstsw 0x122(%rdi)\n fnclex\n"
       "fistpll 0x128(%rdi)\n fnstsw 0x124(%rdi)\n fnclex\n"
       "fbstp 0x130(%rdi)\n fnstsw 0x126(%rdi)\n fnclex\n"
       "fldl 40(%rdi)\n fstps 0x118(%rdi)\n fnstsw 0x13c(%rdi)\n fnclex\n"
       "fldl (%rdi)\n fistps 0x11c(%rdi)\n fnstsw 0x13e(%rdi)\n fnclex\n"
       "fldl (%rdi)\n fstps 0x140(%rdi)\n fnstsw 0x144(%rdi)\n fnclex\n"
       "fstps 0x148(%rdi)\n"
       "fnstsw 0x150(%rdi)\n fnclex\n fninit");
#define CLEAR_X87 "fninit\n .rept 8\n fldz\n .endr\n fninit\n"
#define CLEAR_POINTERS(at) \
	"movq $0, " #at "+8(%rdi)\n movq $0, " #at "+16(%rdi)\n" \
	"movw $0, " #at "+6(%rdi)\n"
#define CLEAR_MXCSR_MASK(at) "movl $0, " #at "+28(%rdi)\n"
CODE64(c_fxsave,
       CLEAR_X87
       ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
       "pxor %xmm\\n, %xmm\\n\n .endr\n"
       "fldl (%rdi)\n fldl 8(%rdi)\n movdqu (%rdi), %xmm7\n"
       "movdqu 16(%rdi), %xmm15\n fxsave 0x400(%rdi)\n"
       "fxsave64 0x600(%rdi)\n fninit\n pxor %xmm7, %xmm7\n"
       "pxor %xmm15, %xmm15\n fxrstor 0x400(%rdi)\n fstpt 0x800(%rdi)\n"
       "movdqu %xmm7, 0x820(%rdi)\n movdqu %xmm15, 0x830(%rdi)\n fninit\n"
       CLEAR_POINTERS(0x400) CLEAR_POINTERS(0x600)
       CLEAR_MXCSR_MASK(0x400) CLEAR_MXCSR_MASK(0x600));
CODE64(c_xsave,
       "push %rdi\n add $0x400, %rdi\n xor %eax, %eax\n mov $0x1800, %ecx\n"
       "rep stosb\n pop %rdi\n" CLEAR_X87
       "vzeroall\n fldl (%rdi)\n fldl 8(%rdi)\n"
       "vmovdqu (%rdi), %ymm1\n vmovdqu 32(%rdi), %ymm9\n"
       "xor %edx, %edx\n mov $7, %eax\n xsave64 0x400(%rdi)\n"
       /* A bit that is not asked for stays. */
       "movb $0x80, 0x1000+519(%rdi)\n"
       "mov $3, %eax\n xsaveopt64 0x800(%rdi)\n"
       "mov $6, %eax\n xsavec64 0xc00(%rdi)\n"
       "mov $4, %eax\n xsave64 0x1000(%rdi)\n"
       /* Standard format: SSE only, the upper halves stay. */
       "vpcmpeqd %ymm1, %ymm1, %ymm1\n vpcmpeqd %ymm9, %ymm9, %ymm9\n"
       "mov $2, %eax\n xrstor64 0x400(%rdi)\n"
       "vmovdqu %ymm1, 0x1400(%rdi)\n vmovdqu %ymm9, 0x1420(%rdi)\n"
       /* The other way about. */
       "vpcmpeqd %ymm1, %ymm1, %ymm1\n"
       "mov $4, %eax\n xrstor64 0x400(%rdi)\n"
       "vmovdqu %ymm1, 0x1440(%rdi)\n"
       /* Compacted; x87 is not asked for and stays. */
       "fldpi\n vpcmpeqd %ymm9, %ymm9, %ymm9\n"
       "mov $6, %eax\n xrstor64 0xc00(%rdi)\n"
       "vmovdqu %ymm1, 0x1460(%rdi)\n vmovdqu %ymm9, 0x1480(%rdi)\n"
       /* This area has no AVX: it becomes initial. */
       "mov $7, %eax\n xrstor64 0x800(%rdi)\n"
       "vmovdqu %ymm1, 0x14a0(%rdi)\n fnstsw 0x14c0(%rdi)\n"
       "fstpt 0x14d0(%rdi)\n"
       /* All initial: MXCSR comes from the area only if not compacted. */
       "movl $0x3f80, 0x1600+24(%rdi)\n xrstor64 0x1600(%rdi)\n"
       "stmxcsr 0x14e0(%rdi)\n vmovdqu %ymm1, 0x1500(%rdi)\n"
       "movb $0x80, 0x1600+527(%rdi)\n movb $7, 0x1600+520(%rdi)\n"
       "xrstor64 0x1600(%rdi)\n stmxcsr 0x14e4(%rdi)\n"
       "fninit\n vzeroall\n"
       CLEAR_POINTERS(0x400) CLEAR_POINTERS(0x800)
       CLEAR_MXCSR_MASK(0x400) CLEAR_MXCSR_MASK(0x800)
       CLEAR_MXCSR_MASK(0xc00) CLEAR_MXCSR_MASK(0x1000));

/* clang-format on */

static const struct same {
	const char *name;
	const uint8_t *code, *end;
	const char *feature;
} same[] = {
	{ "fisttp", c_fisttp, c_fisttp_end, "sse3" },
	{ "rex_before_66", c_rex_ignored, c_rex_ignored_end, "sse4.1" },
	{ "sse4a", c_sse4a, c_sse4a_end, "sse4a" },
	{ "address_without_base", c_no_base, c_no_base_end, "" },
	{ "exchange_behind_f3", c_xchg_r8, c_xchg_r8_end, "" },
	{ "clzero", c_clzero, c_clzero_end, "clzero" },
	{ "far_pointer_rex_w", c_lgs, c_lgs_end, "" },
	{ "bit_scan_of_zero", c_bit_scan_zero, c_bit_scan_zero_end, "" },
	{ "x87_no_wait", c_no_wait, c_no_wait_end, "" },
	{ "x87_environment", c_env, c_env_end, "" },
	{ "x87_unmasked_stores", c_fst_unmasked, c_fst_unmasked_end, "" },
	{ "fxsave", c_fxsave, c_fxsave_end, "" },
	{ "xsave", c_xsave, c_xsave_end, "xsavec" },
};

static bool host_has(const char *f)
{
	if (!strcmp(f, "sse3"))
		return __builtin_cpu_supports("sse3");
	if (!strcmp(f, "sse4.1"))
		return __builtin_cpu_supports("sse4.1");
	if (!strcmp(f, "xsavec")) {
		unsigned a = 0, b, c, d;

		return __get_cpuid_count(0xd, 1, &a, &b, &c, &d) &&
		       (a & 3) == 3 && __builtin_cpu_supports("avx2");
	}
	/* No Intel processor has either. */
	if (!strcmp(f, "sse4a") || !strcmp(f, "clzero"))
		return __builtin_cpu_supports("sse4a") &&
		       __builtin_cpu_supports("avx2");
	return true;
}

static void fill_data(uint8_t *b)
{
	static const double d[6] = {
		3.99, -123456.7, 9.5e17, 1e9, 1e300, 1e-300
	};
	uint32_t x = 0x12345678;

	for (unsigned i = 0; i < DATA_SIZE; i++) {
		x = x * 1664525 + 1013904223;
		b[i] = (uint8_t)(x >> 24);
	}
	memcpy(b, d, sizeof(d));
}

static void run_same(const struct same *t)
{
	static uint8_t native[DATA_SIZE] __attribute__((aligned(4096)));
	static struct guest g;
	char note[80] = "";
	unsigned i = 0;
	int port;

	if (!host_has(t->feature)) {
		printf("ok %u - %s # SKIP no %s here\n", ++tests, t->name,
		       t->feature);
		return;
	}
	fill_data(native);
	((void (*)(void *))(uintptr_t)t->code)(native);
	start(&g, t->code, t->end);
	fill_data(g.mem + DATA);
	port = run(&g);
	if (port != DONE) {
		snprintf(note, sizeof(note), "vector %d", port);
	} else {
		while (i < DATA_SIZE && native[i] == g.mem[DATA + i])
			i++;
		if (i < DATA_SIZE)
			snprintf(note, sizeof(note),
				 "byte %u is %02x, natively %02x", i,
				 g.mem[DATA + i], native[i]);
	}
	check(!note[0], t->name, note);
	stop(&g);
}

/* -- exceptions ----------------------------------------------------------- */

#define FX_FIP	 8
#define FX_MXCSR 24

CODE64(f_fld1, "fld1");
CODE64(f_fwait, "fwait");
CODE64(f_mmx, "paddb %mm0, %mm1");
CODE64(f_emms, "emms");
CODE64(f_mmx_sse, "pshufw $1, %mm0, %mm1");
CODE64(f_sse, "movaps %xmm0, %xmm1");
CODE64(f_avx, "vaddps %ymm0, %ymm1, %ymm2");
CODE64(f_fxsave, "fxsave (%rdi)");
CODE64(f_fxsave_odd, "fxsave 8(%rdi)");
CODE64(f_xsave, "xsave (%rdi)");
CODE64(f_xsave_odd, "xsave 16(%rdi)");
CODE64(f_xgetbv, "xor %ecx, %ecx\n xgetbv");
CODE64(f_ldmxcsr, "ldmxcsr (%rdi)");
CODE64(f_ldmxcsr_bad, "movl $0x10000, (%rdi)\n ldmxcsr (%rdi)");
CODE64(f_no_vector, "movnti %eax, (%rdi)\n popcnt %eax, %ecx\n"
		    "crc32b %al, %ecx\n pause\n sfence\n clflush (%rdi)\n"
		    "prefetcht0 (%rdi)");
/* Opcodes of features that are not there (WBNOINVD, CET, BNDMK). */
CODE64(f_not_there,
       ".byte 0xf3\n wbinvd\n endbr64\n rdsspq %rax\n"
       ".byte 0xf3, 0x0f, 0x1b, 0x07\n .byte 0x3e\n call 1f\n jmp 2f\n"
       "1: ret\n 2:");
/* The area at 0x400 is cleared but for one thing. */
#define CLEAR \
	"push %rdi\n add $0x400, %rdi\n xor %eax, %eax\n mov $0x400, %ecx\n" \
	"rep stosb\n pop %rdi\n mov $7, %eax\n xor %edx, %edx\n"
CODE64(f_xrstor, CLEAR "xrstor 0x400(%rdi)");
CODE64(f_xrstor_bv, CLEAR "movb $8, 0x600(%rdi)\n xrstor 0x400(%rdi)");
CODE64(f_xrstor_head, CLEAR "movb $1, 0x610(%rdi)\n xrstor 0x400(%rdi)");
CODE64(f_xrstor_comp, CLEAR "movb $1, 0x608(%rdi)\n xrstor 0x400(%rdi)");
CODE64(f_xrstor_mxcsr, CLEAR "movb $1, 0x41a(%rdi)\n xrstor 0x400(%rdi)");
CODE64(f_xrstor_notin, CLEAR "movb $0x80, 0x60f(%rdi)\n movb $2, 0x608(%rdi)\n"
			     "movb $6, 0x600(%rdi)\n xrstor 0x400(%rdi)");
CODE64(f_fxrstor_mxcsr, CLEAR "movb $1, 0x41a(%rdi)\n fxrstor 0x400(%rdi)");
CODE64(f_misaligned, "movaps 8(%rdi), %xmm0");
CODE64(f_vmisaligned, "vaddps 8(%rdi), %ymm0, %ymm0");

/* Divide, multiply or add the floats at 0 and 16 under the MXCSR in eax. */
#define FLOATS(mxcsr, a0, a1, b0, b1, op) \
	"movl $" #mxcsr ", (%rdi)\n ldmxcsr (%rdi)\n" \
	"movl $" #a0 ", (%rdi)\n movl $" #a1 ", 4(%rdi)\n movq $0, 8(%rdi)\n" \
	"movl $" #b0 ", 16(%rdi)\n movl $" #b1 ", 20(%rdi)\n" \
	"movl $0x3f800000, 24(%rdi)\n movl $0x3f800000, 28(%rdi)\n" \
	"movaps (%rdi), %xmm0\n" #op " 16(%rdi), %xmm0\n"
/* 1/0 and the inexact 1/3: what is computed after does not show. */
CODE64(f_div, FLOATS(0x1d80, 0x3f800000, 0x3f800000, 0, 0x40400000, divps));
CODE64(f_div_pe, FLOATS(0xf80, 0x3f800000, 0x3f800000, 0, 0x40400000, divps));
/* The smallest normal number halved: exact, tiny. */
CODE64(f_tiny, FLOATS(0x1780, 0x800000, 0, 0x3f000000, 0, mulps));
CODE64(f_tiny_fz, FLOATS(0x9780, 0x800000, 0, 0x3f000000, 0, mulps));
CODE64(f_tiny_masked, FLOATS(0x1f80, 0x800000, 0, 0x3f000000, 0, mulps));
CODE64(f_tiny_inexact, FLOATS(0x1780, 0x800001, 0, 0x3f000000, 0, mulps));
CODE64(f_normal_um, FLOATS(0x1780, 0x40400000, 0, 0x3f000000, 0, mulps));
CODE64(f_denormal, FLOATS(0x1e80, 1, 0, 0x3f000000, 0, addps));
CODE64(f_denormal_daz, FLOATS(0x1ec0, 1, 0, 0x3f000000, 0, addps));
CODE64(f_overflow, FLOATS(0x1b80, 0x7f000000, 0, 0x40400000, 0, mulps));

#define X87_DIV0 \
	"fninit\n movw $0x37b, (%rdi)\n fldcw (%rdi)\n fld1\n fldz\n" \
	".global x87_divides\n x87_divides: fdivrp\n"
CODE64(f_mf, X87_DIV0 "fnstsw 8(%rdi)\n fnclex\n fwait\n");
CODE64(f_mf_wait, "fninit\n movw $0x37b, (%rdi)\n fldcw (%rdi)\n fld1\n fldz\n"
		  "fdivrp\n nop\n fwait");
CODE64(f_mf_mmx, "fninit\n movw $0x37b, (%rdi)\n fldcw (%rdi)\n fld1\n fldz\n"
		 "fdivrp\n paddb %mm0, %mm1");
CODE64(f_mf_sse, "fninit\n movw $0x37b, (%rdi)\n fldcw (%rdi)\n fld1\n fldz\n"
		 "fdivrp\n addps %xmm0, %xmm1\n fxsave (%rdi)");

enum {
	MP = 2,
	EM = 4,
	TS = 8,
	NE = 0x20,
	OSFXSR = 0x200,
	OSXMMEXCPT = 0x400,
	OSXSAVE = 0x40000,
	UD = 6,
	NM = 7,
	GP = 13,
	MF = 16,
	XM = 19,
};

static const struct fault {
	const char *name;
	const uint8_t *code, *end;
	int port; /* vector, or DONE */
	uint32_t cr0_set, cr0_clear, cr4_clear, xcr0, mxcsr;
} faults[] = {
#define F(f) #f, f, f##_end
	{ F(f_fld1), DONE, 0, 0, 0, 0, 0 },
	{ F(f_fld1), NM, TS, 0, 0, 0, 0 },
	{ F(f_fld1), NM, EM, 0, 0, 0, 0 },
	{ F(f_fwait), DONE, TS, MP, 0, 0, 0 },
	{ F(f_fwait), DONE, EM | MP, 0, 0, 0, 0 },
	{ F(f_fwait), NM, TS | MP, 0, 0, 0, 0 },
	{ F(f_mmx), NM, TS, 0, 0, 0, 0 },
	{ F(f_mmx), UD, EM | TS, 0, 0, 0, 0 },
	{ F(f_mmx), DONE, 0, 0, OSFXSR, 0, 0 },
	{ F(f_emms), NM, TS, 0, 0, 0, 0 },
	{ F(f_mmx_sse), DONE, 0, 0, 0, 0, 0 },
	{ F(f_sse), NM, TS, 0, 0, 0, 0 },
	{ F(f_sse), UD, EM, 0, 0, 0, 0 },
	{ F(f_sse), UD, TS, 0, OSFXSR, 0, 0 },
	{ F(f_avx), DONE, EM, 0, 0, 0, 0 },
	{ F(f_avx), NM, TS, 0, 0, 0, 0 },
	{ F(f_avx), UD, TS, 0, OSXSAVE, 0, 0 },
	{ F(f_avx), UD, 0, 0, 0, 3, 0 },
	{ F(f_fxsave), NM, TS, 0, 0, 0, 0 },
	{ F(f_fxsave_odd), GP, 0, 0, 0, 0, 0 },
	{ F(f_xsave), NM, TS, 0, 0, 0, 0 },
	{ F(f_xsave), UD, TS, 0, OSXSAVE, 0, 0 },
	{ F(f_xsave_odd), GP, 0, 0, 0, 0, 0 },
	{ F(f_xgetbv), UD, 0, 0, OSXSAVE, 0, 0 },
	{ F(f_xgetbv), DONE, TS, 0, 0, 0, 0 },
	{ F(f_ldmxcsr), NM, TS, 0, 0, 0, 0 },
	{ F(f_ldmxcsr_bad), GP, 0, 0, 0, 0, 0 },
	{ F(f_no_vector), DONE, EM | TS, 0, OSFXSR, 0, 0 },
	{ F(f_not_there), DONE, 0, 0, 0, 0, 0 },
	{ F(f_xrstor), DONE, 0, 0, 0, 0, 0x0 },
	{ F(f_xrstor_bv), GP, 0, 0, 0, 0, 0 },
	{ F(f_xrstor_head), GP, 0, 0, 0, 0, 0 },
	{ F(f_xrstor_comp), GP, 0, 0, 0, 0, 0 },
	{ F(f_xrstor_mxcsr), GP, 0, 0, 0, 0, 0 },
	{ F(f_xrstor_notin), GP, 0, 0, 0, 0, 0 },
	{ F(f_fxrstor_mxcsr), GP, 0, 0, 0, 0, 0 },
	{ F(f_misaligned), GP, 0, 0, 0, 0, 0 },
	{ F(f_vmisaligned), DONE, 0, 0, 0, 0, 0 },
	{ F(f_div), XM, 0, 0, 0, 0, 0x1d84 },
	{ F(f_div), UD, 0, 0, OSXMMEXCPT, 0, 0x1d84 },
	{ F(f_div_pe), XM, 0, 0, 0, 0, 0xfa4 },
	{ F(f_tiny), XM, 0, 0, 0, 0, 0x1790 },
	{ F(f_tiny_fz), XM, 0, 0, 0, 0, 0x9790 },
	{ F(f_tiny_masked), DONE, 0, 0, 0, 0, 0x1f80 },
	{ F(f_tiny_inexact), XM, 0, 0, 0, 0, 0x17b0 },
	{ F(f_normal_um), DONE, 0, 0, 0, 0, 0x1780 },
	{ F(f_denormal), XM, 0, 0, 0, 0, 0x1e82 },
	{ F(f_denormal_daz), DONE, 0, 0, 0, 0, 0x1ec0 },
	{ F(f_overflow), XM, 0, 0, 0, 0, 0x1ba8 },
	{ F(f_mf), DONE, 0, 0, 0, 0, 0 },
	{ F(f_mf_wait), MF, 0, 0, 0, 0, 0 },
	{ F(f_mf_wait), DONE, 0, NE, 0, 0, 0 },
	{ F(f_mf_mmx), MF, 0, 0, 0, 0, 0 },
	{ F(f_mf_sse), DONE, 0, 0, 0, 0, 0 },
};

static uint32_t mxcsr_of(struct guest *g)
{
	uint32_t v;

	memcpy(&v, g->s.fpu + FX_MXCSR, 4);
	return v;
}

static void run_fault(const struct fault *t)
{
	static struct guest g;
	char note[80] = "", name[80];
	int port;

	start(&g, t->code, t->end);
	memset(g.mem + DATA, 0, DATA_SIZE);
	g.s.cr0 = (g.s.cr0 | t->cr0_set) & ~(uint64_t)t->cr0_clear;
	g.s.cr4 &= ~(uint64_t)t->cr4_clear;
	if (t->xcr0)
		g.s.xcr0 = t->xcr0;
	port = run(&g);
	snprintf(name, sizeof(name), "%s_cr0_%x_cr4_%x_gives_%d", t->name,
		 t->cr0_set, t->cr4_clear, t->port);
	if (port != t->port)
		snprintf(note, sizeof(note), "ended with %d", port);
	else if (t->mxcsr && hv_vcpu_get(g.cpu, HV_STATE_FPU, &g.s) == 0 &&
		 mxcsr_of(&g) != t->mxcsr)
		snprintf(note, sizeof(note), "MXCSR is %x, not %x",
			 mxcsr_of(&g), t->mxcsr);
	check(!note[0], name, note);
	stop(&g);
}

extern const uint8_t x87_divides[];

/* The pointers are those of the instruction that raised the exception. */
static void test_pointers(void)
{
	static struct guest g;
	uint64_t fip = 0;
	uint16_t fsw;

	start(&g, f_mf, f_mf_end);
	check(run(&g) == DONE && hv_vcpu_get(g.cpu, HV_STATE_FPU, &g.s) == 0,
	      "x87_exception_cleared", "");
	memcpy(&fip, g.s.fpu + FX_FIP, 8);
	memcpy(&fsw, g.mem + DATA + 8, 2);
	check(fip == CODE + (uint64_t)(x87_divides - f_mf),
	      "x87_instruction_pointer", "");
	check((fsw & 0x80ff) == 0x8084, "x87_error_summary", "");
	stop(&g);
}

/* -- alignment checks ----------------------------------------------------- */

CODE64(u_load, "mov 2(%rdi), %eax\n out %al, $0xf0");
CODE64(u_store, "mov %rax, 4(%rdi)\n out %al, $0xf0");
CODE64(u_rmw, "lock incw 1(%rdi)\n out %al, $0xf0");
CODE64(u_across, "mov %eax, 0xffe(%rdi)\n out %al, $0xf0");
/* Both pages are known by then. */
CODE64(u_again, "mov %eax, (%rdi)\n mov %eax, 0x1000(%rdi)\n"
		"mov %eax, 0xffe(%rdi)\n out %al, $0xf0");
CODE64(u_reread, "mov (%rdi), %eax\n mov 0x1000(%rdi), %eax\n"
		 "mov 0xffd(%rdi), %eax\n out %al, $0xf0");
CODE64(u_popf, "pushf\n orl $0x40000, (%rsp)\n popf\n"
	       "mov 2(%rdi), %eax\n out %al, $0xf0");
CODE64(u_aligned, "mov 2(%rdi), %ax\n incl 4(%rdi)\n mov 3(%rdi), %al\n"
		  "movups 1(%rdi), %xmm0\n out %al, $0xf0");

static void test_alignment(void)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
		uint64_t cr0, rflags;
		int port;
	} t[] = {
		{ F(u_load), 0x40000, 0x40000, 17 },
		{ F(u_store), 0x40000, 0x40000, 17 },
		{ F(u_rmw), 0x40000, 0x40000, 17 },
		{ F(u_across), 0x40000, 0x40000, 17 },
		{ F(u_again), 0x40000, 0x40000, 17 },
		{ F(u_reread), 0x40000, 0x40000, 17 },
		{ F(u_aligned), 0x40000, 0x40000, DONE },
		{ F(u_popf), 0x40000, 0, 17 },
		{ F(u_load), 0x40000, 0, DONE },
		{ F(u_load), 0, 0x40000, DONE },
	};
	static struct guest g;

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		char note[80];
		int port;

		start(&g, t[i].code, t[i].end);
		put64(&g, PML4, PDPT | 7);
		put64(&g, PDPT, PD | 7);
		put64(&g, PD, 0x87);
		put64(&g, TSS + 4, STACK);
		for (int k = HV_ES; k <= HV_GS; k++) {
			g.s.seg[k].selector = k == HV_CS ? 0x1b : 0x23;
			g.s.seg[k].access = k == HV_CS ? 0xa0fb : 0xc0f3;
		}
		g.s.seg[HV_TR].base = TSS;
		g.s.cr0 |= t[i].cr0;
		g.s.rflags |= 0x3000 | t[i].rflags; /* IOPL 3 */
		port = run(&g);
		snprintf(note, sizeof(note), "%llx %llx ended with %d",
			 (unsigned long long)t[i].cr0,
			 (unsigned long long)t[i].rflags, port);
		check(port == t[i].port, t[i].name, note);
		stop(&g);
	}
}

/* -- real mode ------------------------------------------------------------ */

/* 3E before an indirect branch is DS, not NOTRACK: SS is at 0x10000 here. */
CODE64(r_ds_jump,
       ".code16\n mov $0x1000, %ax\n mov %ax, %ss\n mov $0x100, %sp\n"
       "mov $0x9000, %bp\n call 1f\n 1: pop %bx\n lea 2f-1b(%bx), %ax\n"
       "mov %ax, %ds:(%bp)\n lea 3f-1b(%bx), %ax\n mov %ax, (%bp)\n"
       ".byte 0x3e\n jmp *(%bp)\n 3: out %al, $0x40\n"
       "2: out %al, $0xf0\n .code64\n");

/* The pointers of a 16-bit and of a 32-bit environment in real mode. */
CODE64(r_pointers, ".code16\n fninit\n movw $0x37b, 0x9000\n fldcw 0x9000\n"
		   "fld1\n"
		   ".global real_divides\n real_divides: fdivs 0x9010\n"
		   "fnstenv 0x9100\n .byte 0x66\n fnstenv 0x9200\n"
		   "out %al, $0xf0\n .code64\n");

extern const uint8_t real_divides[];

static void set_real_mode(struct guest *g)
{
	struct hv_state *s = &g->s;

	for (int i = HV_ES; i <= HV_GS; i++) {
		s->seg[i].selector = 0;
		s->seg[i].limit = 0xffff;
		s->seg[i].access = i == HV_CS ? 0x9b : 0x93;
	}
	s->cr0 = 0x60000010;
	s->cr4 = 0;
	s->efer = 0;
}

static uint16_t get16(struct guest *g, uint64_t at)
{
	uint16_t v;

	memcpy(&v, g->mem + at, 2);
	return v;
}

static void test_real(void)
{
	static struct guest g;
	uint32_t at;
	bool ok;

	start(&g, r_ds_jump, r_ds_jump_end);
	set_real_mode(&g);
	check(run(&g) == DONE, "segment_of_indirect_branch", "");
	stop(&g);

	/* CS is not 0, so the address is not the offset. */
	start(&g, r_pointers, r_pointers_end);
	set_real_mode(&g);
	g.s.seg[HV_CS].selector = CODE >> 4;
	g.s.seg[HV_CS].base = CODE;
	g.s.seg[HV_DS].selector = 0x1000;
	g.s.seg[HV_DS].base = 0x10000;
	g.s.rip = 0;
	memset(g.mem + 0x19000, 0, 0x300);
	at = CODE + (uint32_t)(real_divides - r_pointers);
	ok = run(&g) == DONE;
	check(ok && get16(&g, 0x19106) == (uint16_t)at &&
		      get16(&g, 0x19108) == (at >> 16 << 12 | 0x36) &&
		      get16(&g, 0x1910a) == 0x9010 &&
		      get16(&g, 0x1910c) == 0x1000,
	      "real_mode_pointers_16", "");
	check(ok && get16(&g, 0x1920c) == (uint16_t)at &&
		      get16(&g, 0x19210) == 0x36 &&
		      get16(&g, 0x19214) == 0x9010 &&
		      get16(&g, 0x19218) == 0x1000,
	      "real_mode_pointers_32", "");
	stop(&g);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--engine"))
		engine = argv[2];
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
		run_same(&same[i]);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		run_fault(&faults[i]);
	test_pointers();
	test_alignment();
	test_real();
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
