/* SPDX-License-Identifier: Apache-2.0 */
/*
 * insn.c - single instructions: the engine beside the bare processor
 *
 * A "same" case is a function of one argument, a buffer.  It is called here,
 * on the processor this test runs on, and run in a guest in 64-bit mode with
 * a copy of the buffer; the two buffers must then be equal.  A "fault" case
 * runs in the guest only, with bits of CR0, CR4 and XCR0 changed, and must
 * end with the given exception at the label it gives (or with none).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "husk/hv.h"

enum {
	PML4 = 0x1000,
	PDPT = 0x2000,
	PD = 0x3000,
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

static void start(struct guest *g, const uint8_t *code, const uint8_t *end)
{
	struct hv_config cfg = { .engine = "soft", .max_vcpus = 1 };
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
CODE64(c_clzero, "lea 0x155(%rdi), %rax\n clzero");
/* What a 64-bit offset of a far pointer is differs by vendor. */
CODE64(c_lgs,
       "movl $0x91223344, 64(%rdi)\n movl $0x55660000, 68(%rdi)\n"
       "movl $0, 72(%rdi)\n mov $-1, %rax\n \n.byte 0x48, 0x0f, 0xb5, 0x47, 0x40\n"
       "mov %rax, 80(%rdi)");

static const struct same {
	const char *name;
	const uint8_t *code, *end;
	const char *feature;
} same[] = {
	{ "fisttp", c_fisttp, c_fisttp_end, "sse3" },
	{ "rex_before_66", c_rex_ignored, c_rex_ignored_end, "sse4.1" },
	{ "sse4a", c_sse4a, c_sse4a_end, "sse4a" },
	{ "clzero", c_clzero, c_clzero_end, "clzero" },
	{ "far_pointer_rex_w", c_lgs, c_lgs_end, "" },
};

static bool host_has(const char *f)
{
	if (!strcmp(f, "sse3"))
		return __builtin_cpu_supports("sse3");
	if (!strcmp(f, "sse4.1"))
		return __builtin_cpu_supports("sse4.1");
	/* No Intel processor has either. */
	if (!strcmp(f, "sse4a") || !strcmp(f, "clzero"))
		return __builtin_cpu_supports("sse4a") &&
		       __builtin_cpu_supports("avx2");
	return true;
}

static void fill_data(uint8_t *b)
{
	static const double d[4] = { 3.99, -123456.7, 9.5e17, 1e9 };
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

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
		run_same(&same[i]);
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
