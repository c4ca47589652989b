/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agree.c - the engines agree with each other, and with the processor
 *
 * agree --from ENGINE --to ENGINE runs each program on both: the exit logs
 * must be the same.  Then, after each exit of the run on the first engine,
 * the whole state goes to a new VM of the second, which must give the rest
 * of the log and the same end.  agree --bare ENGINE compares user-level code
 * on the engine with the bare processor.  Exit status 77: an engine is not
 * there.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
PAYLOAD(prog_long, 64,
	"mov $0x123456789abcdef0, %r8\n mov $16, %r9d\n"
	"mov $0x512, %edx\n mov $0x40000000, %ebx\n"
	"1: imul $0x3779, %r8, %r8\n rol $13, %r8\n mov %r8, (%rbx,%r9,8)\n"
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

static const struct program {
	const char *name;
	enum bare_mode mode;
	const uint8_t *code, *end;
} programs[] = {
	{ "real", BARE_REAL, prog_real, prog_real_end },
	{ "protected", BARE_PROTECTED, prog_protected, prog_protected_end },
	{ "long", BARE_LONG, prog_long, prog_long_end },
	{ "string", BARE_LONG, prog_string, prog_string_end },
	{ "fault", BARE_LONG, prog_fault, prog_fault_end },
	{ "handler", BARE_LONG, prog_handler, prog_handler_end },
	{ "system", BARE_LONG, prog_system, prog_system_end },
};

static const struct {
	const char *name;
	const uint8_t *code, *end;
} users[] = {
	{ "int", user_int, user_int_end },
	{ "sse", user_sse, user_sse_end },
	{ "x87", user_x87, user_x87_end },
};

static unsigned tests, failures;

static void check(bool ok, const char *what, const char *name)
{
	printf("%sok %u - %s: %s\n", ok ? "" : "not ", ++tests, name, what);
	failures += !ok;
}

static void show(const struct bare_log *a, const struct bare_log *b)
{
	int i = bare_log_diff(a, b);

	printf("# %u and %u exits; first difference: %d\n", a->n, b->n, i);
	if (i >= 0 && (unsigned)i < a->n)
		bare_log_print("first", &a->e[i]);
	if (i >= 0 && (unsigned)i < b->n)
		bare_log_print("second", &b->e[i]);
}

/* -- whole programs ------------------------------------------------------- */

/* Nothing half done, so that the state can be read. */
static bool settle(struct bare *g)
{
	int r = hv_vcpu_complete(g->cpu, &g->exit);

	return r == 0; /* 1: the instruction has a further access */
}

static void start(struct bare *g, const char *engine, const struct program *p)
{
	bare_start(g, engine, p->mode, p->code, p->end);
}

/* Registers of the end that every engine keeps alike. */
static bool same_end(struct bare *a, struct bare *b)
{
	static struct hv_state s, t;
	const unsigned groups = HV_STATE_GENERAL | HV_STATE_SYSTEM;

	if (hv_vcpu_complete(a->cpu, &a->exit) ||
	    hv_vcpu_complete(b->cpu, &b->exit))
		return false;
	bare_get(a, groups, &s);
	bare_get(b, groups, &t);
	for (int i = 0; i < 16; i++)
		if (s.gpr[i] != t.gpr[i]) {
			printf("# register %d: %#" PRIx64 " and %#" PRIx64 "\n",
			       i, s.gpr[i], t.gpr[i]);
			return false;
		}
	/* Arithmetic flags, DF; the last instruction moves no flag. */
	if (s.rip != t.rip || (s.rflags ^ t.rflags) & 0xfd5) {
		printf("# rip %#" PRIx64 " flags %#" PRIx64 ", %#" PRIx64
		       " %#" PRIx64 "\n",
		       s.rip, s.rflags, t.rip, t.rflags);
		return false;
	}
	if (s.cr2 != t.cr2 || s.cr0 != t.cr0 || s.cr4 != t.cr4 ||
	    s.cr3 != t.cr3 || s.efer != t.efer) {
		printf("# control registers differ\n");
		return false;
	}
	for (unsigned i = 0; i < BARE_MEMORY; i++)
		/* Page tables: an engine may set accessed bits late. */
		if (a->mem[i] != b->mem[i] && i >= BARE_IDT) {
			printf("# memory at %#x: %02x and %02x\n", i, a->mem[i],
			       b->mem[i]);
			return false;
		}
	return true;
}

/* Everything but what is another host's or another time's. */
static int move(struct bare *from, struct bare *to, bool same_engine)
{
	static struct hv_state s;
	unsigned groups = HV_STATE_ALL;

	bare_get(from, groups, &s);
	memcpy(to->mem, from->mem, BARE_MEMORY);
	hv_mem_written(to->vm, 0, BARE_MEMORY);
	if (!same_engine) {
		static const uint32_t keep[] = {
			0x174,	    0x175,	0x176,	    0xc0000081,
			0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102,
		};
		uint32_t n = 0;

		/* MSRs that both engines have by definition. */
		for (uint32_t i = 0; i < s.nmsrs; i++)
			for (unsigned k = 0; k < sizeof(keep) / 4; k++)
				if (s.msr[i].index == keep[k])
					s.msr[n++] = s.msr[i];
		s.nmsrs = n;
	}
	return hv_vcpu_set(to->cpu, groups, &s);
}

/* Moves after exit number at; false when that is not possible there. */
static bool run_moved(const struct program *p, const char *from, const char *to,
		      unsigned at, struct bare_log *log, struct bare *end)
{
	struct bare g;
	int r;

	log->n = 0;
	start(&g, from, p);
	while (log->n < at && bare_log_step(&g, log))
		;
	if (!settle(&g)) {
		bare_stop(&g);
		return false;
	}
	start(end, to, p);
	r = move(&g, end, !strcmp(from, to));
	if (r)
		bare_die("hv_vcpu_set of a moved state", r);
	bare_stop(&g);
	while (bare_log_step(end, log))
		;
	return true;
}

static void run_program(const struct program *p, const char *from,
			const char *to)
{
	static struct bare_log a, b;
	unsigned moved = 0, stuck = 0, bad = 0;
	struct bare g, h;

	start(&g, from, p);
	for (a.n = 0; bare_log_step(&g, &a);)
		;
	start(&h, to, p);
	for (b.n = 0; bare_log_step(&h, &b);)
		;
	if (bare_log_diff(&a, &b) >= 0)
		show(&a, &b);
	check(bare_log_diff(&a, &b) < 0 && a.n > 1, "same exit log", p->name);
	check(same_end(&g, &h), "same end", p->name);
	bare_stop(&h);

	for (unsigned at = 1; at < a.n; at++) {
		if (!run_moved(p, from, to, at, &b, &h)) {
			stuck++;
			continue;
		}
		moved++;
		if (bare_log_diff(&a, &b) >= 0 || !same_end(&g, &h)) {
			printf("# moved after exit %u\n", at);
			show(&a, &b);
			bad++;
		}
		bare_stop(&h);
	}
	printf("# %s: moved at %u exits, %u inside an instruction\n", p->name,
	       moved, stuck);
	check(moved && !bad, "goes on after a move", p->name);
	bare_stop(&g);
}

/* -- user-level code and the bare processor ------------------------------- */

enum { USER_OUT = 0x800 };

static void fill_input(uint8_t *p, unsigned n)
{
	uint64_t x = 88172645463325252ull;

	for (unsigned i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = (uint8_t)(x >> 32);
	}
}

/* The processor, with the data at the guest's address. */
static bool run_native(const uint8_t *code, const uint8_t *end, uint8_t *out)
{
	size_t len = end - code;
	uint8_t *text = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *data =
		mmap((void *)(uintptr_t)BARE_DATA, 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	uintptr_t si = BARE_DATA, di = BARE_DATA + USER_OUT;

	if (text == MAP_FAILED || data == MAP_FAILED)
		return false;
	memcpy(text, code, len);
	text[len] = 0xc3;
	if (mprotect(text, 4096, PROT_READ | PROT_EXEC))
		return false;
	fill_input(data, USER_OUT);
	__asm__ volatile("sub $256, %%rsp\n\tcall *%[text]\n\t"
			 "add $256, %%rsp\n\tfninit\n\tcld"
			 : "+S"(si), "+D"(di)
			 : [text] "b"(text)
			 : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11",
			   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
			   "xmm6", "xmm7", "xmm8", "memory", "cc");
	memcpy(out, data, 4096);
	munmap(text, 4096);
	munmap(data, 4096);
	return true;
}

static void run_users(const char *engine)
{
	static const uint8_t tail[] = { 0x0f, 0x0b }; /* ud2 */
	static uint8_t expected[4096];
	static struct hv_state s;
	static struct bare_log log;
	struct bare g;

	for (unsigned i = 0; i < sizeof(users) / sizeof(users[0]); i++) {
		size_t len = users[i].end - users[i].code;

		if (!run_native(users[i].code, users[i].end, expected)) {
			printf("ok %u - %s # SKIP cannot map address %#x\n",
			       ++tests, users[i].name, BARE_DATA);
			continue;
		}
		bare_start(&g, engine, BARE_USER, users[i].code, users[i].end);
		memcpy(g.mem + BARE_CODE + len, tail, sizeof(tail));
		fill_input(g.mem + BARE_DATA, USER_OUT);
		bare_get(&g, HV_STATE_GENERAL, &s);
		s.gpr[HV_RSI] = BARE_DATA;
		s.gpr[HV_RDI] = BARE_DATA + USER_OUT;
		if (hv_vcpu_set(g.cpu, HV_STATE_GENERAL, &s))
			bare_die("hv_vcpu_set", EINVAL);
		for (log.n = 0; bare_log_step(&g, &log);)
			;
		check(log.n == 1 && log.e[0].addr == BARE_FAULT_PORT + 6,
		      "ends", users[i].name);
		if (log.n != 1 || log.e[0].addr != BARE_FAULT_PORT + 6)
			bare_log_print("last", &log.e[log.n - 1]);
		check(!memcmp(expected, g.mem + BARE_DATA, 4096),
		      "same memory as on the processor", users[i].name);
		bare_stop(&g);
	}
}

int main(int argc, char **argv)
{
	const char *from = NULL, *to = NULL, *user = NULL;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--from"))
			from = argv[i + 1];
		else if (!strcmp(argv[i], "--to"))
			to = argv[i + 1];
		else if (!strcmp(argv[i], "--bare"))
			user = argv[i + 1];
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!user && (!from || !to)) {
		fprintf(stderr, "use: agree --from ENGINE --to ENGINE, or "
				"agree --bare ENGINE\n");
		return 2;
	}
	if ((user && !bare_has_engine(user)) ||
	    (from && !bare_has_engine(from)) || (to && !bare_has_engine(to))) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	if (user)
		run_users(user);
	if (from && to)
		for (unsigned i = 0; i < sizeof(programs) / sizeof(programs[0]);
		     i++)
			run_program(&programs[i], from, to);
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
