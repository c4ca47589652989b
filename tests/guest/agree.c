/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agree.c - the engines agree with each other, and with the processor
 *
 * agree --from ENGINE --to ENGINE runs each program on both: the exit logs
 * must be the same.  Then, after some exits of the run on the first engine
 * (--moves all: after each), the whole state goes to a new VM of the second,
 * which must give the rest of the log and the same end.  agree --bare ENGINE
 * compares user-level code on the engine with the bare processor.  Exit
 * status 77: an engine is not there.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bare.h"

enum { MOVES = 12 }; /* of each program, about */

static unsigned tests, failures;
static bool every;

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

/*
 * RF in the frame of a fault at CPL 0.  Processors set it; QEMU's TCG, which
 * is the processor of the test host (tests/kvmhost), does not.
 */
static bool is_rf(unsigned at)
{
	enum { FRAME = BARE_STACK - 40, RFLAGS = 16, RF_BYTE = 2 };

	return at == FRAME + RFLAGS + RF_BYTE && getenv("KVMHOST");
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
	/* Page tables come first: an engine may set accessed bits late. */
	if (!memcmp(a->mem + BARE_IDT, b->mem + BARE_IDT,
		    BARE_MEMORY - BARE_IDT))
		return true;
	for (unsigned i = BARE_IDT; i < BARE_MEMORY; i++)
		if (a->mem[i] != b->mem[i] && !is_rf(i)) {
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
	for (unsigned i = 0; i < BARE_MEMORY; i += 4096)
		if (memcmp(to->mem + i, from->mem + i, 4096))
			memcpy(to->mem + i, from->mem + i, 4096);
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
static bool run_moved(const struct bare_program *p, const char *from,
		      const char *to, unsigned at, struct bare_log *log,
		      struct bare *end)
{
	struct bare g;
	int r;

	log->n = 0;
	bare_start_program(&g, from, p);
	while (log->n < at && bare_log_step(&g, log))
		;
	if (!settle(&g)) {
		bare_stop(&g);
		return false;
	}
	bare_start_program(end, to, p);
	r = move(&g, end, !strcmp(from, to));
	if (r)
		bare_die("hv_vcpu_set of a moved state", r);
	bare_stop(&g);
	while (bare_log_step(end, log))
		;
	return true;
}

static void run_program(const struct bare_program *p, const char *from,
			const char *to)
{
	static struct bare_log a, b;
	unsigned moved = 0, stuck = 0, bad = 0, step;
	struct bare g, h;

	bare_start_program(&g, from, p);
	for (a.n = 0; bare_log_step(&g, &a);)
		;
	bare_start_program(&h, to, p);
	for (b.n = 0; bare_log_step(&h, &b);)
		;
	if (bare_log_diff(&a, &b) >= 0)
		show(&a, &b);
	check(bare_log_diff(&a, &b) < 0 && a.n > 1, "same exit log", p->name);
	check(same_end(&g, &h), "same end", p->name);
	bare_stop(&h);

	for (unsigned at = 1; at < a.n; at += step) {
		step = 1;
		if (!run_moved(p, from, to, at, &b, &h)) {
			stuck++;
			continue;
		}
		moved++;
		if (!every)
			step += a.n / MOVES;
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

static bool same_bytes(const uint8_t *a, const uint8_t *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (a[i] != b[i]) {
			printf("# byte %#x: %02x and %02x\n", i, a[i], b[i]);
			return false;
		}
	return true;
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
	uintptr_t si = BARE_DATA, di = BARE_DATA + BARE_OUTPUT;

	if (text == MAP_FAILED || data == MAP_FAILED)
		return false;
	memcpy(text, code, len);
	text[len] = 0xc3;
	if (mprotect(text, 4096, PROT_READ | PROT_EXEC))
		return false;
	bare_fill_input(data);
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

static void run_user(const struct bare_program *p, const char *engine)
{
	static uint8_t expected[4096];
	static struct bare_log log;
	struct bare g;

	if (!run_native(p->code, p->end, expected)) {
		printf("ok %u - %s # SKIP cannot map address %#x\n", ++tests,
		       p->name, BARE_DATA);
		return;
	}
	bare_start_program(&g, engine, p);
	for (log.n = 0; bare_log_step(&g, &log);)
		;
	check(log.n == 1 && log.e[0].addr == BARE_FAULT_PORT + 6, "ends",
	      p->name);
	if (log.n != 1 || log.e[0].addr != BARE_FAULT_PORT + 6)
		bare_log_print("last", &log.e[log.n - 1]);
	check(same_bytes(expected, g.mem + BARE_DATA, 4096),
	      "same memory as on the processor", p->name);
	bare_stop(&g);
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
		else if (!strcmp(argv[i], "--moves"))
			every = !strcmp(argv[i + 1], "all");
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
	for (const struct bare_program *p = bare_programs; p->name; p++) {
		if (user && p->mode == BARE_USER)
			run_user(p, user);
		else if (!user && p->mode != BARE_USER)
			run_program(p, from, to);
	}
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
