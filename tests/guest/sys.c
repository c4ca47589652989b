/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sys.c - traps, NMIs, MSRs, time and paravirtual calls of engine soft
 *
 * Each payload leads to a port write; the default handlers of bare.c write to
 * BARE_FAULT_PORT + vector.  TAP on standard output.
 */
#include <stdio.h>
#include <string.h>

#include "bare.h"

enum {
	CODE = BARE_CODE,
	DATA = BARE_DATA,
	DB_PORT = BARE_FAULT_PORT + 1,
	GP_PORT = BARE_FAULT_PORT + 13,
};

/* -- guest code ----------------------------------------------------------- */

#define SPIN   "99: jmp 99b\n"
#define SET_TF "pushf\n orl $0x100, (%rsp)\n popf\n"

/* DR0: four bytes at DATA, trap on writes. */
PAYLOAD(code_watch, 64,
	"mov $0x10000, %eax\n mov %rax, %dr0\n"
	"mov $0xd0401, %eax\n mov %rax, %dr7\n"
	"mov 0x10000, %eax\n"
	"movb $7, 0x10004\n"
	"movb $5, 0x10003\n"
	"watch_next: nop\n" SPIN);
/* The same with the read that MOV SS makes: the trap waits for the nop. */
PAYLOAD(code_watch_ss, 64,
	"movw $16, 0x10000\n mov $0x10000, %eax\n mov %rax, %dr0\n"
	"mov $0x70401, %eax\n mov %rax, %dr7\n"
	"mov 0x10000, %ss\n nop\n"
	"watch_ss_next: nop\n" SPIN);
PAYLOAD(code_port, 64,
	"mov %cr4, %rax\n or $8, %eax\n mov %rax, %cr4\n"
	"mov $0x510, %edx\n mov %rdx, %dr0\n"
	"mov $0x20401, %eax\n mov %rax, %dr7\n"
	"out %al, %dx\n"
	"port_next: nop\n" SPIN);
PAYLOAD(code_step_in, 64,
	"mov $0x511, %edx\n" SET_TF "in %dx, %al\n"
	"step_in_next: nop\n" SPIN);
/* SYSRET to user code with TF in r11. */
PAYLOAD(code_sysret, 64,
	"mov $0xc0000080, %ecx\n rdmsr\n or $1, %eax\n wrmsr\n"
	"mov $0xc0000081, %ecx\n xor %eax, %eax\n mov $0x80008, %edx\n wrmsr\n"
	"lea sysret_next(%rip), %rcx\n mov $0x102, %r11d\n sysretq\n"
	"sysret_next: nop\n nop\n" SPIN);
PAYLOAD(code_nmi, 64,
	"nop\n jmp 1f\n 1: nop\n jmp 2f\n 2: nop\n jmp 3f\n"
	"3: mov 0x10000, %eax\n mov $0x512, %dx\n out %eax, %dx\n" SPIN);
PAYLOAD(code_msr, 64,
	"mov $0x12345, %ecx\n rdmsr\n add %edx, %eax\n"
	"mov $0x513, %dx\n out %eax, %dx\n"
	"mov $1, %eax\n xor %edx, %edx\n wrmsr\n"
	"mov $0x514, %dx\n out %eax, %dx\n"
	"wrmsr\n" SPIN);
PAYLOAD(code_clock, 64,
	"mov $0x4b564d01, %ecx\n mov $0x11001, %eax\n xor %edx, %edx\n wrmsr\n"
	"mov $0x515, %edx\n out %eax, %dx\n"
	"rdtsc\n mov %eax, 0x10000\n mov %edx, 0x10004\n"
	"mov $0x515, %edx\n out %eax, %dx\n" SPIN);
PAYLOAD(code_v86, 16, "int $0x21\n" SPIN);
PAYLOAD(code_v86_handler, 16,
	"mov $0x77, %al\n mov $0x516, %dx\n out %al, %dx\n" SPIN);
PAYLOAD(code_kick, 64,
	"cli\n mov $5, %eax\n xor %ebx, %ebx\n xor %ecx, %ecx\n vmcall\n"
	"hlt\n mov $0x517, %dx\n out %al, %dx\n" SPIN);
PAYLOAD(code_sti, 64, "sti\n" SPIN);
PAYLOAD(code_clac, 64, "clac\n mov $0x518, %dx\n out %al, %dx\n" SPIN);

/*
 * Two address spaces, PCIDs 1 and 2, with a page of their own and one that
 * both have.  Each READ tells what is there; what a test needs not flush may
 * be old or new, so it is not read.
 */
#define SPACE(cr3)  "movabs $" cr3 ", %rax\n mov %rax, %cr3\n"
#define FIRST	    SPACE("0x1001")
#define KEEP_FIRST  SPACE("0x8000000000001001")
#define SECOND	    SPACE("0x22002")
#define KEEP_SECOND SPACE("0x8000000000022002")
#define OWN(pte)    "movq $" pte ", 0x20000\n"
#define SHARED(pte) "movq $" pte ", 0x20008\n movq $" pte ", 0x25008\n"
#define READ	    "mov 0x40200000, %eax\n out %eax, %dx\n"
#define READ_SHARED "mov 0x40201000, %eax\n out %eax, %dx\n"
#define INVPCID(type) \
	"movq $1, 0x26000\n movq $0x40200000, 0x26008\n mov $" type \
	", %ecx\n invpcid 0x26000, %rcx\n"
#define CR4(op) "mov %cr4, %rax\n" op ", %eax\n mov %rax, %cr4\n"
PAYLOAD(code_pcid, 64,
	"mov $0x519, %edx\n" CR4("or $0x20080") FIRST READ SECOND READ KEEP_FIRST READ KEEP_SECOND READ OWN(
		"0x31003") FIRST READ KEEP_SECOND OWN("0x30003") INVPCID("0")
		KEEP_FIRST READ KEEP_SECOND OWN("0x31003") INVPCID(
			"1") KEEP_FIRST READ KEEP_SECOND OWN("0x30003") INVPCID("3") KEEP_FIRST
			READ OWN("0x31003") "invlpg 0x40200000\n" READ READ_SHARED KEEP_SECOND SHARED(
				"0x31103") "invlpg 0x40201000\n" READ_SHARED
				KEEP_FIRST READ_SHARED SHARED("0x30103") INVPCID(
					"2") READ_SHARED KEEP_SECOND READ_SHARED
					SHARED("0x31103") CR4("xor $0x80") CR4(
						"xor $0x80") READ_SHARED SPACE("0x1000") READ
						SHARED("0x30103") OWN("0x30003") CR4(
							"xor $0x20000") READ READ_SHARED
							OWN("0x31003") SPACE(
								"0x1000") READ
								SHARED("0x31103") CR4(
									"xor $0x80") READ_SHARED
									SPIN);
/* A page written in one space holds code that runs in the other. */
PAYLOAD(code_pcid_code, 64,
	"mov $0x519, %edx\n" CR4("or $0x20080") FIRST
	"movl $0xc3000000, 0x40200001\n movb $0xb8, 0x40200000\n"
	"movb $0xc3, 0x40200005\n movl $1, 0x40200001\n" KEEP_SECOND
	"mov $0x30000, %ebx\n call *%rbx\n out %eax, %dx\n" KEEP_FIRST
	"movl $2, 0x40200001\n" KEEP_SECOND
	"call *%rbx\n out %eax, %dx\n" SPIN);
/* To and fro, with a page of each and one of both read every time. */
PAYLOAD(code_pcid_often, 64,
	"mov $0x519, %edx\n" CR4("or $0x20080") FIRST
	"mov $1000, %ecx\n"
	"1: mov 0x40200000, %eax\n mov 0x40201000, %eax\n" KEEP_SECOND
	"mov 0x40200000, %eax\n mov 0x40201000, %eax\n" KEEP_FIRST
	"dec %ecx\n jnz 1b\n" READ SPIN);

extern const uint8_t watch_next[], watch_ss_next[], port_next[], step_in_next[],
	sysret_next[];

static unsigned tests, failures;

static void check(bool ok, const char *name)
{
	printf("%sok %u - %s\n", ok ? "" : "not ", ++tests, name);
	failures += !ok;
}

#define START(g, mode, name) \
	bare_start(g, "soft", BARE_##mode, name, name##_end)

static bool runs_to_out(struct bare *g, uint16_t port)
{
	return bare_run(g) == HV_EXIT_PIO && g->exit.pio.write &&
	       g->exit.pio.port == port;
}

/* Runs to the handler of #DB; where it interrupted, and DR6's low bits. */
static bool runs_to_trap(struct bare *g, uint64_t rip, uint64_t dr6)
{
	static struct hv_state s;
	uint64_t pushed;

	if (!runs_to_out(g, DB_PORT))
		return false;
	bare_get(g, HV_STATE_GENERAL | HV_STATE_DEBUG, &s);
	memcpy(&pushed, g->mem + s.gpr[HV_RSP], 8);
	if (pushed == rip && (s.dr6 & 0xe00f) == dr6)
		return true;
	printf("# #DB at %#llx, not %#llx; DR6 %#llx\n",
	       (unsigned long long)pushed, (unsigned long long)rip,
	       (unsigned long long)s.dr6);
	return false;
}

#define AT(label, name) (CODE + (uint64_t)((label) - (name)))

/* -- expectations --------------------------------------------------------- */

static void test_traps(void)
{
	struct bare g;

	START(&g, LONG, code_watch);
	check(runs_to_trap(&g, AT(watch_next, code_watch), 1) &&
		      g.mem[DATA + 3] == 5,
	      "data_breakpoint_traps_behind_the_write");
	bare_stop(&g);

	START(&g, LONG, code_watch_ss);
	check(runs_to_trap(&g, AT(watch_ss_next, code_watch_ss), 1),
	      "mov_ss_holds_a_data_breakpoint_back");
	bare_stop(&g);

	START(&g, LONG, code_port);
	check(runs_to_out(&g, 0x510) &&
		      runs_to_trap(&g, AT(port_next, code_port), 1),
	      "port_breakpoint_traps_behind_the_out");
	bare_stop(&g);

	START(&g, LONG, code_step_in);
	check(bare_run(&g) == HV_EXIT_PIO && !g.exit.pio.write &&
		      runs_to_trap(&g, AT(step_in_next, code_step_in), 0x4000),
	      "step_trap_waits_for_a_half_done_instruction");
	bare_stop(&g);

	START(&g, LONG, code_sysret);
	check(runs_to_trap(&g, AT(sysret_next, code_sysret), 0x4000),
	      "sysret_into_tf_traps_at_once");
	bare_stop(&g);

	START(&g, LONG, code_clac);
	check(runs_to_out(&g, 0x518), "clac_needs_no_cr4_smap");
	bare_stop(&g);
}

static void test_nmi(void)
{
	struct bare g;

	START(&g, LONG, code_nmi);
	/* The gate of a handler that counts and returns. */
	memcpy(g.mem + BARE_IDT + 2 * 16, g.mem + BARE_IDT + BARE_VECTOR * 16,
	       16);
	for (unsigned i = 0; i < 3; i++)
		hv_vcpu_nmi(g.cpu);
	check(runs_to_out(&g, 0x512) && g.exit.pio.value == 2,
	      "one_nmi_runs_and_one_is_latched");
	bare_stop(&g);
}

static void test_msr(void)
{
	struct bare g;

	START(&g, LONG, code_msr);
	check(bare_run(&g) == HV_EXIT_MSR && !g.exit.msr.write &&
		      g.exit.msr.index == 0x12345,
	      "unknown_rdmsr_exits");
	g.exit.msr.value = 0x0000000300000004;
	check(runs_to_out(&g, 0x513) && g.exit.pio.value == 7,
	      "rdmsr_takes_value");
	check(bare_run(&g) == HV_EXIT_MSR && g.exit.msr.write &&
		      g.exit.msr.value == 1,
	      "unknown_wrmsr_exits");
	check(runs_to_out(&g, 0x514), "wrmsr_goes_on");
	check(bare_run(&g) == HV_EXIT_MSR, "unknown_wrmsr_exits_again");
	g.exit.msr.fault = true;
	check(runs_to_out(&g, GP_PORT), "wrmsr_faults_when_asked");
	bare_stop(&g);
}

struct clock_page {
	uint32_t version, pad;
	uint64_t tsc, ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};

/* What the guest reads lies between two readings outside it. */
static void test_clock(void)
{
	uint64_t before = 0, after = 0, tsc, t;
	struct clock_page p;
	struct bare g;

	START(&g, LONG, code_clock);
	check(runs_to_out(&g, 0x515), "clock_page_is_set");
	hv_clock_get(g.vm, &before);
	check(runs_to_out(&g, 0x515), "guest_reads_tsc");
	hv_clock_get(g.vm, &after);
	memcpy(&p, g.mem + 0x11000, sizeof(p));
	memcpy(&tsc, g.mem + DATA, 8);
	t = tsc - p.tsc;
	t = p.shift < 0 ? t >> -p.shift : t << p.shift;
	t = p.ns + (uint64_t)((unsigned __int128)t * p.mul >> 32);
	/* mul is rounded down: a microsecond covers many minutes. */
	check(t + 1000 >= before && t <= after + 1000,
	      "kvm_clock_agrees_with_hv_clock_get");
	printf("# %llu <= %llu <= %llu\n", (unsigned long long)before,
	       (unsigned long long)t, (unsigned long long)after);
	bare_stop(&g);
}

/* Virtual-8086 mode with CR4.VME and IOPL 0, the TSS at 0x14000. */
static void test_vme(void)
{
	static struct hv_state s;
	struct bare g;
	int r;

	START(&g, PROTECTED, code_v86);
	memcpy(g.mem + 0x9000, code_v86_handler,
	       code_v86_handler_end - code_v86_handler);
	g.mem[0x21 * 4 + 1] = 0x90;   /* 0000:9000 */
	g.mem[0x14000 + 0x66] = 0x88; /* I/O map behind the redirection map */
	bare_get(&g, HV_STATE_SYSTEM | HV_STATE_GENERAL, &s);
	for (int i = HV_ES; i <= HV_GS; i++)
		s.seg[i] = (struct hv_segment){ 0, 0xffff, 0xf3, 0 };
	s.seg[HV_TR] = (struct hv_segment){ 40, 0x208f, 0x8b, 0x14000 };
	s.cr4 |= 1;
	s.rflags |= 0x20000;
	r = hv_vcpu_set(g.cpu, HV_STATE_SYSTEM | HV_STATE_GENERAL, &s);
	check(!r && runs_to_out(&g, 0x516) && g.exit.pio.value == 0x77,
	      "vme_redirects_int_to_the_8086_handler");
	bare_stop(&g);
}

static void test_events(void)
{
	static struct hv_state s;
	struct bare g;
	int r;

	START(&g, LONG, code_kick);
	check(runs_to_out(&g, 0x517), "kick_hypercall_ends_hlt");
	bare_stop(&g);

	START(&g, LONG, code_sti);
	hv_msi(g.vm, 0xfee00000, 7 << 8);
	check(bare_run(&g) == HV_EXIT_IRQ_WINDOW, "extint_message_asks_owner");
	bare_stop(&g);

	START(&g, LONG, code_sti);
	bare_get(&g, HV_STATE_EVENT, &s);
	s.event.eoi_pending[1] = 2; /* vector 41h */
	r = hv_vcpu_set(g.cpu, HV_STATE_EVENT, &s);
	memset(&s.event, 0, sizeof(s.event));
	bare_get(&g, HV_STATE_EVENT, &s);
	check(!r && s.event.eoi_pending[1] == 2, "pending_eoi_is_state");
	check(bare_run(&g) == HV_EXIT_EOI && g.exit.eoi.vector == 0x41,
	      "pending_eoi_is_told");
	bare_stop(&g);
}

static void put64(struct bare *g, unsigned at, uint64_t v)
{
	memcpy(g->mem + at, &v, 8);
}

/* Page tables for PCIDs; pages at 0x30000 and 0x31000 that hold 1 and 2. */
static void two_spaces(struct bare *g)
{
	put64(g, BARE_PD1 + 8, 0x20000 | 3);
	put64(g, 0x20000, 0x30000 | 3);
	put64(g, 0x20008, 0x30000 | 0x103);
	put64(g, 0x22000, 0x23000 | 3);
	put64(g, 0x23000, BARE_PD0 | 3);
	put64(g, 0x23008, 0x24000 | 3);
	put64(g, 0x24008, 0x25000 | 3);
	put64(g, 0x25000, 0x31000 | 3);
	put64(g, 0x25008, 0x30000 | 0x103);
	put64(g, 0x30000, 1);
	put64(g, 0x31000, 2);
}

static bool says(struct bare *g, uint32_t value)
{
	if (runs_to_out(g, 0x519) && g->exit.pio.value == value)
		return true;
	printf("# port %#x: %u, not %u\n", g->exit.pio.port,
	       (unsigned)g->exit.pio.value, value);
	return false;
}

static void test_pcid(const char *engine)
{
	static const struct {
		uint8_t value;
		const char *name;
	} steps[] = {
		{ 1, "first_space" },
		{ 2, "second_space" },
		{ 1, "first_space_kept" },
		{ 2, "second_space_kept" },
		{ 2, "cr3_load_flushes_other_pcid" },
		{ 1, "invpcid_address_of_other_pcid" },
		{ 2, "invpcid_other_pcid" },
		{ 1, "invpcid_all_but_global" },
		{ 2, "invlpg" },
		{ 1, "global_page" },
		{ 2, "invlpg_of_global_page" },
		{ 2, "invlpg_of_global_page_for_all" },
		{ 1, "invpcid_all" },
		{ 1, "invpcid_all_in_other_pcid" },
		{ 2, "pge_toggle" },
		{ 2, "pcid_0" },
		{ 1, "pcide_toggle" },
		{ 1, "pcide_toggle_global" },
		{ 2, "cr3_load_without_pcids" },
		{ 2, "pge_off" },
	};
	struct hv_stats before, after;
	struct bare g;

	printf("# engine %s\n", engine);
	bare_start(&g, engine, BARE_LONG, code_pcid, code_pcid_end);
	two_spaces(&g);
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		check(says(&g, steps[i].value), steps[i].name);
	bare_stop(&g);

	bare_start(&g, engine, BARE_LONG, code_pcid_code, code_pcid_code_end);
	two_spaces(&g);
	check(says(&g, 1), "code_written_in_other_space");
	check(says(&g, 2), "code_changed_in_other_space");
	bare_stop(&g);

	bare_start(&g, engine, BARE_LONG, code_pcid_often, code_pcid_often_end);
	two_spaces(&g);
	hv_vcpu_stats(g.cpu, &before);
	check(says(&g, 1), "many_switches");
	hv_vcpu_stats(g.cpu, &after);
	check(after.tlb_misses - before.tlb_misses < 100,
	      "switch_keeps_translations");
	bare_stop(&g);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_traps();
	test_nmi();
	test_msr();
	test_clock();
	test_vme();
	test_events();
	test_pcid("soft,interp");
	test_pcid("soft,eager");
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
