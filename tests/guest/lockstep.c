/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lockstep.c - one program on two engines, compared on the way
 *
 * lockstep [--a ENGINE] [--b ENGINE] [--step N] [--program NAME]
 *          [--plant reg|xmm|mem|code]
 *
 * Both run freely from exit to exit: that is how a translator must be tested.
 * After each the whole state and every page that either of them wrote must be
 * equal.  Where they are not, both go back to the last exit at which they
 * agreed and run in single steps, and the first instruction that leaves a
 * difference is reported.  An instruction that goes wrong only inside a longer
 * block does not show then: the way to the difference is printed instead.
 * --step N compares after every N single steps from the start.
 *
 * --plant is the comparator's own test: B is altered after some steps, or is
 * given a program in which one ADD is a SUB; the right place must be found.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bare.h"
#include "same.h"

enum {
	PAGES = BARE_MEMORY / 4096,
	PLANT_AFTER = 9, /* steps */
	WAY_MAX = 24,	 /* instructions that are shown */
};

struct side {
	struct bare g;
	struct hv_state s;
	struct bare_log log;
	bool over;
	uint64_t dirty[PAGES / 64];
	uint8_t *snapshot; /* memory at the last exit that agreed */
};

static struct side a, b;
static struct hv_state agreed;
static unsigned agreed_log;
static const char *engine_a = "soft", *engine_b = "soft,interp";
static const char *plant;
/* Byte of the program that differs on purpose, or 0. */
static unsigned planted_code;

/* Same addresses as prog_long's kin: 0x8000 on; END is the last write. */
PAYLOAD(prog_planted, 64,
	"mov $3, %ecx\n xor %eax, %eax\n mov $0x510, %edx\n"
	"1: lea 7(%rax,%rcx,4), %rax\n out %al, %dx\n"
	".global planted\n planted: add %rcx, %rax\n"
	"mov %rax, 0x10000\n ror $5, %rax\n xor %rcx, %rax\n"
	"movq %rax, %xmm1\n paddq %xmm1, %xmm0\n movdqu %xmm0, 0x10100\n"
	"out %eax, %dx\n dec %ecx\n jnz 1b\n"
	"mov $0x5ff, %dx\n out %al, %dx\n 2: jmp 2b\n");
extern const uint8_t planted[];

static const struct bare_program planted_program = { "planted", BARE_LONG,
						     prog_planted,
						     prog_planted_end };

/* -- one side ------------------------------------------------------------- */

static void side_start(struct side *s, const char *engine,
		       const struct bare_program *p)
{
	const unsigned flags = HV_MEM_READ | HV_MEM_WRITE | HV_MEM_LOG;
	int r;

	bare_start_program(&s->g, engine, p);
	r = hv_mem_protect(s->g.vm, 0, BARE_MEMORY, flags);
	if (r)
		bare_die("hv_mem_protect", r);
	s->log.n = 0;
	s->over = false;
	s->snapshot = malloc(BARE_MEMORY);
	if (!s->snapshot)
		bare_die("memory", -ENOMEM);
}

static void side_stop(struct side *s)
{
	bare_stop(&s->g);
	free(s->snapshot);
}

static void side_debug(struct side *s, unsigned flags)
{
	int r = hv_vcpu_debug(s->g.cpu, flags);

	if (r)
		bare_die("hv_vcpu_debug", r);
}

/* To the next exit, whose instruction is then complete. */
static void side_run(struct side *s)
{
	int r;

	if (!bare_log_step(&s->g, &s->log))
		s->over = s->g.exit.reason != HV_EXIT_DEBUG;
	while ((r = hv_vcpu_complete(s->g.cpu, &s->g.exit)) == 1)
		if (!bare_log_exit(&s->g, &s->log))
			s->over = true;
	if (r < 0)
		bare_die("hv_vcpu_complete", r);
	bare_get(&s->g, HV_STATE_ALL, &s->s);
	r = hv_mem_fetch_dirty(s->g.vm, 0, BARE_MEMORY, s->dirty);
	if (r)
		bare_die("hv_mem_fetch_dirty", r);
}

/* A debug exit is not part of what the guest does. */
static void forget_steps(struct side *s)
{
	while (s->log.n && s->log.e[s->log.n - 1].reason == HV_EXIT_DEBUG)
		s->log.n--;
}

/* -- comparing ------------------------------------------------------------ */

static bool at_device(const struct side *s)
{
	return s->log.n && s->log.e[s->log.n - 1].reason == HV_EXIT_MMIO;
}

/* Translated code keeps no flags that nothing reads behind an access. */
static uint64_t shown_flags(void)
{
	return at_device(&a) && at_device(&b) ? ~0x8d5ull : ~0ull;
}

static bool same_memory(bool all, bool show)
{
	bool same = true;

	for (unsigned p = 0; p < PAGES; p++) {
		if (!all &&
		    !((a.dirty[p / 64] | b.dirty[p / 64]) >> p % 64 & 1))
			continue;
		if (!memcmp(a.g.mem + p * 4096, b.g.mem + p * 4096, 4096))
			continue;
		for (unsigned k = p * 4096; k < p * 4096 + 4096; k++) {
			if (a.g.mem[k] == b.g.mem[k] ||
			    (planted_code && k == planted_code))
				continue;
			same = false;
			if (!show)
				return false;
			printf("#   memory at %#x: %02x  %02x\n", k, a.g.mem[k],
			       b.g.mem[k]);
			break;
		}
	}
	return same;
}

static bool same(bool all, bool show)
{
	int at = bare_log_diff(&a.log, &b.log);
	bool ok = at < 0 && a.over == b.over;

	if (!ok && show) {
		printf("#   exit %d differs\n", at);
		if (at >= 0 && (unsigned)at < a.log.n)
			bare_log_print(engine_a, &a.log.e[at]);
		if (at >= 0 && (unsigned)at < b.log.n)
			bare_log_print(engine_b, &b.log.e[at]);
	}
	if (!same_state(&a.s, &b.s, shown_flags(), show))
		ok = false;
	if (!same_memory(all, show))
		ok = false;
	return ok;
}

/* -- going back ----------------------------------------------------------- */

static void snapshot(void)
{
	agreed = a.s;
	agreed_log = a.log.n;
	memcpy(a.snapshot, a.g.mem, BARE_MEMORY);
	memcpy(b.snapshot, b.g.mem, BARE_MEMORY);
}

static void go_back(struct side *s)
{
	int r;

	memcpy(s->g.mem, s->snapshot, BARE_MEMORY);
	hv_mem_written(s->g.vm, 0, BARE_MEMORY);
	r = hv_vcpu_set(s->g.cpu, HV_STATE_ALL, &agreed);
	if (r)
		bare_die("hv_vcpu_set", r);
	s->log.n = agreed_log;
	s->over = false;
	s->s = agreed;
}

/* The instruction at CS:RIP of that state, as A's memory has it. */
static void show_insn(const struct hv_state *s)
{
	const struct hv_segment *cs = &s->seg[HV_CS];
	ZydisMachineMode mode = ZYDIS_MACHINE_MODE_LEGACY_16;
	ZydisStackWidth width = ZYDIS_STACK_WIDTH_16;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	uint64_t at = cs->base + s->rip;
	ZydisDecodedInstruction i;
	ZydisFormatter f;
	ZydisDecoder d;
	char text[128];

	if (s->efer & 0x400 && cs->access & 1 << 13) {
		mode = ZYDIS_MACHINE_MODE_LONG_64;
		width = ZYDIS_STACK_WIDTH_64;
	} else if (cs->access & 1 << 14) {
		mode = ZYDIS_MACHINE_MODE_LEGACY_32;
		width = ZYDIS_STACK_WIDTH_32;
	}
	ZydisDecoderInit(&d, mode, width);
	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	if (at > BARE_MEMORY - 16 ||
	    !ZYAN_SUCCESS(
		    ZydisDecoderDecodeFull(&d, a.g.mem + at, 15, &i, op)) ||
	    !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(
		    &f, &i, op, i.operand_count_visible, text, sizeof(text), at,
		    NULL)))
		snprintf(text, sizeof(text), "?");
	printf("#   %#" PRIx64 ": %s\n", at, text);
}

/* Alters B as a wrong engine would have. */
static void alter(void)
{
	struct hv_state *s = &b.s;

	if (!strcmp(plant, "reg"))
		s->gpr[HV_RBX] ^= 1ull << 40;
	else if (!strcmp(plant, "xmm"))
		s->fpu[160 + 5 * 16 + 3] ^= 8;
	else if (!strcmp(plant, "mem"))
		b.g.mem[0x1f000] ^= 1;
	if (!strcmp(plant, "mem"))
		hv_mem_written(b.g.vm, 0x1f000, 1);
	else if (hv_vcpu_set(b.g.cpu, HV_STATE_GENERAL | HV_STATE_FPU, s))
		bare_die("hv_vcpu_set", EINVAL);
	b.dirty[0x1f / 64] |= 1ull << 0x1f;
}

/*
 * Single steps; compares after every n.  True: no difference before the end
 * or, unless limit is 0, in limit exits.  *found: where the last step began.
 */
static bool run_steps(unsigned n, unsigned limit, struct hv_state *found,
		      unsigned *steps)
{
	unsigned exits = a.log.n + limit;

	side_debug(&a, HV_DEBUG_STEP);
	side_debug(&b, HV_DEBUG_STEP);
	for (*steps = 0; !a.over && !b.over;) {
		*found = a.s;
		for (unsigned k = 0; k < n && !a.over && !b.over; k++) {
			side_run(&a);
			side_run(&b);
			forget_steps(&a);
			forget_steps(&b);
			++*steps;
			if (plant && *steps == PLANT_AFTER && !planted_code)
				alter();
		}
		if (!same(false, false))
			return false;
		if (limit && a.log.n >= exits && b.log.n >= exits)
			break;
	}
	side_debug(&a, 0);
	side_debug(&b, 0);
	return true;
}

static void show_way(unsigned limit)
{
	unsigned exits;

	go_back(&a);
	exits = a.log.n + limit;
	side_debug(&a, HV_DEBUG_STEP);
	for (unsigned k = 0; k < WAY_MAX && !a.over && a.log.n < exits; k++) {
		show_insn(&a.s);
		side_run(&a);
		forget_steps(&a);
	}
}

/* -- programs ------------------------------------------------------------- */

static void report(const struct hv_state *found, unsigned steps)
{
	printf("# first difference after step %u:\n", steps);
	show_insn(found);
	printf("#   %-10s %-16s  %s\n", "", engine_a, engine_b);
	same(false, true);
}

static bool run_program(const struct bare_program *p, unsigned n,
			uint64_t *where)
{
	static struct hv_state found;
	unsigned steps = 0, exits = 0;
	bool ok = true;

	*where = 0;
	side_start(&a, engine_a, p);
	side_start(&b, engine_b, p);
	if (planted_code)
		b.g.mem[planted_code] ^= 0x28; /* ADD becomes SUB */
	bare_get(&a.g, HV_STATE_ALL, &a.s);
	bare_get(&b.g, HV_STATE_ALL, &b.s);
	if (!same(true, true)) {
		printf("# %s differs at its start\n", p->name);
		ok = false;
	}
	if (ok && n) {
		ok = run_steps(n, 0, &found, &steps);
		if (!ok) {
			report(&found, steps);
			*where = found.rip;
		}
	}
	while (ok && !n && !a.over && !b.over) {
		snapshot();
		side_run(&a);
		side_run(&b);
		exits++;
		if (same(false, false))
			continue;
		printf("# %s: exit %u differs\n", p->name, exits);
		same(false, true);
		ok = false;
		go_back(&a);
		go_back(&b);
		if (run_steps(1, 1, &found, &steps)) {
			printf("# not in single steps; the way there:\n");
			show_way(1);
		} else {
			report(&found, steps);
			*where = found.rip;
		}
	}
	if (ok && !same(true, true))
		ok = false;
	printf("# %s: %u exits, %u steps\n", p->name, a.log.n, steps);
	side_stop(&a);
	side_stop(&b);
	return ok;
}

/* The comparator must find what was planted, in the right place. */
static bool run_planted(unsigned n)
{
	const unsigned at = BARE_CODE + bare_bytes(prog_planted, planted);
	uint64_t where;
	bool ok;

	if (!strcmp(plant, "code"))
		planted_code = at + 1; /* its opcode; 0x48 comes first */
	ok = run_program(&planted_program, planted_code ? n : 1, &where);
	if (ok)
		printf("# nothing was found\n");
	if (planted_code && where != at)
		return false;
	return !ok && where;
}

int main(int argc, char **argv)
{
	const char *only = NULL;
	unsigned n = 0, tests = 0, failures = 0;
	uint64_t where;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i += 2) {
		const char *v = i + 1 < argc ? argv[i + 1] : NULL;

		if (v && !strcmp(argv[i], "--a"))
			engine_a = v;
		else if (v && !strcmp(argv[i], "--b"))
			engine_b = v;
		else if (v && !strcmp(argv[i], "--step"))
			n = (unsigned)strtoul(v, NULL, 0);
		else if (v && !strcmp(argv[i], "--program"))
			only = v;
		else if (v && !strcmp(argv[i], "--plant"))
			plant = v;
		else {
			fprintf(stderr, "lockstep: what is %s?\n", argv[i]);
			return 2;
		}
	}
	if (!bare_has_engine(engine_a) || !bare_has_engine(engine_b)) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	if (plant) {
		bool ok = run_planted(n);

		printf("%sok 1 - planted %s is found\n1..1\n", ok ? "" : "not ",
		       plant);
		return !ok;
	}
	for (const struct bare_program *p = bare_programs; p->name; p++) {
		bool ok;

		if (only && strcmp(only, p->name))
			continue;
		ok = run_program(p, n, &where);
		printf("%sok %u - %s\n", ok ? "" : "not ", ++tests, p->name);
		failures += !ok;
	}
	printf("1..%u\n", tests);
	return failures || !tests;
}
