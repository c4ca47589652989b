/* SPDX-License-Identifier: Apache-2.0 */
/*
 * payload.c - bare guest code on the public API of libhusk-hv
 *
 * payload --engine kvm|soft prints a TAP line per expectation.  The payloads
 * keep to instructions that /dev/kvm also has where it emulates CPL 0.
 * Exit status 77: no usable /dev/kvm.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bare.h"

enum {
	CODE = BARE_CODE,
	DATA = BARE_DATA,
	VECTOR = BARE_VECTOR,
};

static const uint64_t hole = BARE_HOLE; /* mapped, no memory there */

/* -- guest code ----------------------------------------------------------- */

PAYLOAD(code_real, 16,
	"xor %ax, %ax\n mov $100, %cx\n"
	"1: add %cx, %ax\n loop 1b\n mov $0x510, %dx\n out %ax, %dx\n"
	"2: jmp 2b\n");
PAYLOAD(code_protected, 32,
	"xor %eax, %eax\n mov $1000, %ecx\n"
	"1: add %ecx, %eax\n dec %ecx\n jnz 1b\n"
	"mov $0x511, %dx\n out %eax, %dx\n in %dx, %al\n"
	"movzx %al, %eax\n out %eax, %dx\n 2: jmp 2b\n");
PAYLOAD(code_long, 64,
	"mov $0x123456789abcdef0, %r8\n mov %r8, %r9\n shr $32, %r9\n"
	"mov %r9d, %eax\n mov $0x512, %dx\n out %eax, %dx\n 2: jmp 2b\n");
PAYLOAD(code_mmio, 64,
	"mov $0x40000000, %ebx\n"
	"movb $0x11, (%rbx)\n movw $0x2222, 8(%rbx)\n"
	"movl $0x33333333, 16(%rbx)\n"
	"mov $0x4444444444444444, %rax\n mov %rax, 24(%rbx)\n"
	"mov 32(%rbx), %al\n mov %al, 0x10000\n"
	"mov 40(%rbx), %ax\n mov %ax, 0x10008\n"
	"mov 48(%rbx), %eax\n mov %eax, 0x10010\n"
	"mov 56(%rbx), %rax\n mov %rax, 0x10018\n"
	"mov $0x513, %dx\n out %al, %dx\n 2: jmp 2b\n");
PAYLOAD(code_wait, 64,
	"1: sti\n hlt\n cli\n mov 0x10000, %eax\n test %eax, %eax\n jz 1b\n"
	"mov $0x514, %dx\n out %eax, %dx\n 2: jmp 2b\n");
PAYLOAD(code_spin, 64, "2: jmp 2b\n");
PAYLOAD(code_dirty, 64,
	"mov %al, 0x12000\n mov %al, 0x15008\n"
	"mov $0x515, %dx\n out %al, %dx\n 2: jmp 2b\n");
PAYLOAD(code_bell, 64,
	"mov $0x600, %dx\n mov $5, %eax\n out %eax, %dx\n"
	"mov $0x40000100, %ebx\n movl $7, (%rbx)\n"
	"mov $6, %eax\n out %eax, %dx\n 2: jmp 2b\n");
PAYLOAD(code_string, 64,
	"cld\n mov $0x10000, %esi\n mov $5, %ecx\n mov $0x516, %dx\n"
	"rep outsb\n mov $0x10100, %edi\n mov $3, %ecx\n rep insw\n"
	"out %al, %dx\n 2: jmp 2b\n");
PAYLOAD(code_nops, 64,
	"nop\n nop\n mov $0x518, %dx\n out %al, %dx\n 2: jmp 2b\n");
PAYLOAD(code_msr, 64,
	"mov $0x12345678, %ecx\n rdmsr\n mov $0x519, %edi\n"
	"xchg %edi, %edx\n out %eax, %dx\n mov %edi, %eax\n"
	"out %eax, %dx\n mov $7, %edx\n wrmsr\n rdmsr\n 2: jmp 2b\n");

static const char *engine = "soft";
static unsigned tests, failures;

static void expect(bool ok, const char *name, const char *note)
{
	printf("%sok %u - %s%s%s\n", ok ? "" : "not ", ++tests, name,
	       note[0] ? ": " : "", note);
	failures += !ok;
}

static void check(bool ok, const char *name)
{
	expect(ok, name, "");
}

/* -- a machine ------------------------------------------------------------ */

#define START(g, mode, name) \
	bare_start(g, engine, BARE_##mode, name, name##_end)

static bool same_segment(const struct hv_segment *a, const struct hv_segment *b)
{
	return a->selector == b->selector && a->limit == b->limit &&
	       a->access == b->access && a->base == b->base;
}

static bool runs_to_out(struct bare *g, uint16_t port, uint32_t value)
{
	return bare_run(g) == HV_EXIT_PIO && g->exit.pio.write &&
	       g->exit.pio.port == port && g->exit.pio.value == value;
}

static bool runs_to_mmio(struct bare *g, uint64_t gpa, unsigned size,
			 bool write)
{
	return bare_run(g) == HV_EXIT_MMIO && g->exit.mmio.gpa == gpa &&
	       g->exit.mmio.size == size && g->exit.mmio.write == write;
}

/* -- expectations --------------------------------------------------------- */

static void test_modes(void)
{
	struct bare g;

	START(&g, REAL, code_real);
	check(runs_to_out(&g, 0x510, 5050) && g.exit.pio.size == 2,
	      "real_mode_adds");
	bare_stop(&g);

	START(&g, PROTECTED, code_protected);
	check(runs_to_out(&g, 0x511, 500500) && g.exit.pio.size == 4,
	      "protected_mode_adds");
	check(bare_run(&g) == HV_EXIT_PIO && !g.exit.pio.write &&
		      g.exit.pio.size == 1,
	      "in_exits");
	g.exit.pio.value = 0x5a;
	check(runs_to_out(&g, 0x511, 0x5a), "in_takes_value");
	bare_stop(&g);

	START(&g, LONG, code_long);
	check(runs_to_out(&g, 0x512, 0x12345678), "long_mode_shifts");
	bare_stop(&g);
}

static void test_mmio(void)
{
	static const uint64_t values[] = {
		0x11,
		0x2222,
		0x33333333,
		0x4444444444444444,
	};
	static struct hv_state s;
	struct bare g;
	bool ok = true;
	uint64_t v;

	START(&g, LONG, code_mmio);
	for (unsigned i = 0; i < 4; i++)
		ok = ok && runs_to_mmio(&g, hole + i * 8, 1u << i, true) &&
		     g.exit.mmio.value == values[i];
	check(ok, "mmio_writes_of_1_2_4_8");
	for (unsigned i = 0; i < 4; i++) {
		ok = ok && runs_to_mmio(&g, hole + 32 + i * 8, 1u << i, false);
		if (i == 3)
			check(hv_vcpu_get(g.cpu, HV_STATE_GENERAL, &s) ==
				      -EBUSY,
			      "get_is_busy_in_half_done_read");
		g.exit.mmio.value = values[3 - i] | values[3];
	}
	check(hv_vcpu_complete(g.cpu, &g.exit) == 0, "complete_ends_it");
	check(hv_vcpu_get(g.cpu, HV_STATE_GENERAL, &s) == 0 &&
		      s.gpr[HV_RAX] == (values[0] | values[3]),
	      "completed_read_is_in_register");
	ok = ok && bare_run(&g) == HV_EXIT_PIO;
	memcpy(&v, g.mem + DATA + 0x10, 8);
	check(ok && v == (uint32_t)(values[1] | values[3]),
	      "mmio_reads_of_1_2_4_8");
	bare_stop(&g);
}

static void test_string(void)
{
	struct bare g;
	bool ok = true;

	START(&g, LONG, code_string);
	memcpy(g.mem + DATA, "hello", 5);
	for (int i = 0; i < 5; i++)
		ok = ok && runs_to_out(&g, 0x516, "hello"[i]) &&
		     g.exit.pio.size == 1;
	check(ok, "rep_outs_exits_per_element");
	for (int i = 0; i < 3; i++) {
		ok = ok && bare_run(&g) == HV_EXIT_PIO && !g.exit.pio.write &&
		     g.exit.pio.size == 2;
		g.exit.pio.value = 0x6160 + i;
	}
	ok = ok && bare_run(&g) == HV_EXIT_PIO && g.exit.pio.write;
	check(ok && !memcmp(g.mem + DATA + 0x100, "\x60\x61\x61\x61\x62\x61",
			    6),
	      "rep_ins_takes_each_element");
	bare_stop(&g);
}

static void *send_msi(void *arg)
{
	struct bare *g = arg;

	usleep(20000);
	hv_msi(g->vm, 0xfee00000, VECTOR);
	return NULL;
}

static void *send_kick(void *arg)
{
	struct bare *g = arg;

	usleep(20000);
	hv_vcpu_kick(g->cpu);
	return NULL;
}

static void enable_apic(struct bare *g)
{
	static struct hv_state s;
	uint32_t spurious = 0x1ff;

	if (hv_vcpu_get(g->cpu, HV_STATE_APIC, &s))
		return;
	memcpy(s.apic + 0xf0, &spurious, 4);
	hv_vcpu_set(g->cpu, HV_STATE_APIC, &s);
}

static unsigned descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static void test_interrupts(void)
{
	unsigned before = descriptors();
	struct bare g;
	pthread_t t;
	int fd;

	START(&g, LONG, code_wait);
	enable_apic(&g);
	pthread_create(&t, NULL, send_msi, &g);
	check(runs_to_out(&g, 0x514, 1), "msi_wakes_and_reaches_handler");
	pthread_join(t, NULL);
	bare_stop(&g);

	START(&g, LONG, code_wait);
	enable_apic(&g);
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	check(hv_route(g.vm, 5, 0xfee00000, VECTOR) == 0 &&
		      hv_irqfd(g.vm, 5, fd) == 0 && eventfd_write(fd, 1) == 0 &&
		      runs_to_out(&g, 0x514, 1),
	      "irqfd_reaches_handler");
	check(hv_irqfd(g.vm, 5, -1) == 0, "irqfd_goes");
	close(fd);
	bare_stop(&g);
	check(descriptors() == before, "irqfd_leaves_no_descriptor");

	START(&g, LONG, code_wait);
	hv_vcpu_want_window(g.cpu, true);
	check(bare_run(&g) == HV_EXIT_IRQ_WINDOW && hv_vcpu_ready(g.cpu),
	      "window_opens");
	hv_vcpu_want_window(g.cpu, false);
	check(hv_vcpu_inject(g.cpu, VECTOR) == 0 && runs_to_out(&g, 0x514, 1),
	      "injected_vector_reaches_handler");
	bare_stop(&g);
}

static void test_kick(void)
{
	struct bare g;
	pthread_t t;

	START(&g, LONG, code_spin);
	hv_vcpu_kick(g.cpu);
	check(bare_run(&g) == HV_EXIT_KICKED, "kick_is_sticky");
	pthread_create(&t, NULL, send_kick, &g);
	check(bare_run(&g) == HV_EXIT_KICKED, "kick_ends_a_spinning_guest");
	pthread_join(t, NULL);
	bare_stop(&g);

	START(&g, LONG, code_wait);
	pthread_create(&t, NULL, send_kick, &g);
	check(bare_run(&g) == HV_EXIT_KICKED, "kick_ends_a_halted_guest");
	pthread_join(t, NULL);
	bare_stop(&g);
}

static void test_memory(void)
{
	const unsigned rw = HV_MEM_READ | HV_MEM_WRITE;
	uint64_t bits[1];
	struct bare g;

	START(&g, LONG, code_dirty);
	check(hv_mem_protect(g.vm, DATA, 0x10000, rw | HV_MEM_LOG) == 0,
	      "part_gets_dirty_log");
	check(bare_run(&g) == HV_EXIT_PIO &&
		      hv_mem_fetch_dirty(g.vm, DATA, 0x10000, bits) == 0 &&
		      bits[0] == (1 << 2 | 1 << 5),
	      "guest_writes_are_logged");
	hv_mem_written(g.vm, DATA + 0x1fff, 2);
	check(hv_mem_fetch_dirty(g.vm, DATA, 0x10000, bits) == 0 &&
		      bits[0] == (1 << 1 | 1 << 2),
	      "own_writes_are_logged");
	check(hv_mem_fetch_dirty(g.vm, DATA, 0x10000, bits) == 0 &&
		      bits[0] == 0,
	      "fetching_clears");
	bare_stop(&g);

	START(&g, LONG, code_dirty);
	check(hv_mem_protect(g.vm, 0x15000, 0x1000, HV_MEM_READ) == 0 &&
		      runs_to_mmio(&g, 0x15008, 1, true),
	      "write_to_read_only_memory_exits");
	check(runs_to_out(&g, 0x515, g.exit.mmio.value),
	      "and_goes_on_after_it");
	check(hv_mem_unmap(g.vm, 0x12000, 0x1000) == 0, "unmapping_works");
	check(hv_mem_unmap(g.vm, 0x12000, 0x1000) == -ENOENT,
	      "unmapped_is_gone");
	bare_set_mode(&g, BARE_LONG);
	check(runs_to_mmio(&g, 0x12000, 1, true), "write_to_hole_exits");
	bare_stop(&g);
}

static void test_state(void)
{
	static struct hv_state a, b;
	const unsigned groups = HV_STATE_GENERAL | HV_STATE_SYSTEM |
				HV_STATE_FPU | HV_STATE_MSR | HV_STATE_DEBUG;
	struct bare g;
	bool found = false;

	START(&g, LONG, code_spin);
	check(hv_vcpu_get(g.cpu, HV_STATE_ALL, &a) == 0, "all_state_is_read");
	for (int i = 0; i < 16; i++)
		a.gpr[i] = 0x0101010101010101 * i + 3;
	a.dr[0] = 0x1234;
	a.cr2 = 0x5678;
	memset(a.fpu + 160, 0xa5, 256); /* XMM0 to 15 */
	a.fpu[512] |= 3;		/* x87 and SSE are in use */
	for (uint32_t i = 0; i < a.nmsrs; i++)
		if (a.msr[i].index == 0xc0000082)
			a.msr[i].value = 0xffffffff81000000;
	check(hv_vcpu_set(g.cpu, groups, &a) == 0, "state_is_set");
	check(hv_vcpu_get(g.cpu, HV_STATE_ALL, &b) == 0 &&
		      !memcmp(a.gpr, b.gpr, sizeof(a.gpr)) && a.rip == b.rip,
	      "general_comes_back");
	for (unsigned i = 0; i < 8; i++)
		check(same_segment(&a.seg[i], &b.seg[i]), "segment_comes_back");
	check(a.cr0 == b.cr0 && a.cr2 == b.cr2 && a.cr3 == b.cr3 &&
		      a.cr4 == b.cr4 && a.efer == b.efer && a.xcr0 == b.xcr0,
	      "system_comes_back");
	check(a.dr[0] == b.dr[0], "debug_comes_back");
	check(!memcmp(a.fpu + 160, b.fpu + 160, 256), "fpu_comes_back");
	for (uint32_t i = 0; i < b.nmsrs; i++)
		found |= b.msr[i].index == 0xc0000082 &&
			 b.msr[i].value == 0xffffffff81000000;
	check(found, "msrs_come_back");
	bare_stop(&g);
}

static void test_doorbell(void)
{
	struct hv_doorbell pio = {
		.space = HV_SPACE_PIO,
		.addr = 0x600,
		.size = 4,
		.match = true,
		.value = 5,
	};
	struct hv_doorbell mmio = {
		.space = HV_SPACE_MMIO,
		.addr = hole + 0x100,
		.size = 4,
	};
	int a = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int b = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	eventfd_t v = 0, w = 0;
	struct bare g;

	START(&g, LONG, code_bell);
	check(hv_doorbell_add(g.vm, &pio, a) == 0 &&
		      hv_doorbell_add(g.vm, &mmio, b) == 0,
	      "doorbells_are_added");
	check(hv_doorbell_add(g.vm, &pio, b) == -EEXIST,
	      "doorbell_twice_is_refused");
	check(runs_to_out(&g, 0x600, 6), "other_value_exits");
	check(eventfd_read(a, &v) == 0 && v == 1 && eventfd_read(b, &w) == 0 &&
		      w == 1,
	      "doorbells_ring_once");
	hv_doorbell_del(g.vm, &pio, a);
	bare_set_mode(&g, BARE_LONG);
	check(runs_to_out(&g, 0x600, 5), "deleted_doorbell_exits");
	bare_stop(&g);
	close(a);
	close(b);
}

static bool runs_to_msr(struct bare *g, bool write)
{
	return bare_run(g) == HV_EXIT_MSR && g->exit.msr.index == 0x12345678 &&
	       g->exit.msr.write == write;
}

static void test_msr(void)
{
	static struct hv_state s;
	struct bare g;

	START(&g, LONG, code_msr);
	check(runs_to_msr(&g, false), "unknown_msr_exits");
	check(hv_vcpu_get(g.cpu, HV_STATE_GENERAL, &s) == -EBUSY,
	      "get_is_busy_in_half_done_rdmsr");
	g.exit.msr.value = 0x1122334455667788;
	check(runs_to_out(&g, 0x519, 0x55667788) &&
		      runs_to_out(&g, 0x519, 0x11223344),
	      "rdmsr_takes_value");
	check(runs_to_msr(&g, true) && g.exit.msr.value == 0x711223344,
	      "wrmsr_gives_value");
	check(runs_to_msr(&g, false), "msr_write_is_done");
	g.exit.msr.fault = true;
	check(runs_to_out(&g, BARE_FAULT_PORT + 13, 0x44),
	      "msr_faults_if_told");
	bare_stop(&g);
}

static void test_step(void)
{
	static struct hv_state s;
	struct bare g;

	START(&g, LONG, code_nops);
	check(hv_vcpu_debug(g.cpu, HV_DEBUG_STEP) == 0 &&
		      bare_run(&g) == HV_EXIT_DEBUG &&
		      g.exit.debug.vector == 1 && g.exit.debug.rip == CODE + 1,
	      "step_stops_after_one");
	check(bare_run(&g) == HV_EXIT_DEBUG && g.exit.debug.rip == CODE + 2,
	      "step_stops_again");
	check(hv_vcpu_debug(g.cpu, 0) == 0 && bare_run(&g) == HV_EXIT_PIO,
	      "step_ends");
	check(hv_vcpu_get(g.cpu, HV_STATE_ALL, &s) == 0 &&
		      hv_vcpu_set(g.cpu, HV_STATE_ALL, &s) == 0,
	      "all_state_goes_back");
	bare_stop(&g);
}

static void test_two(void)
{
	struct bare g, h;

	START(&g, LONG, code_long);
	START(&h, REAL, code_real);
	check(runs_to_out(&h, 0x510, 5050) &&
		      runs_to_out(&g, 0x512, 0x12345678),
	      "two_vms_in_a_process");
	bare_stop(&g);
	bare_stop(&h);
}

int main(int argc, char **argv)
{
	for (int i = 1; i + 1 < argc; i += 2)
		if (!strcmp(argv[i], "--engine"))
			engine = argv[i + 1];
	if (!bare_has_engine(engine)) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_modes();
	test_mmio();
	test_string();
	test_interrupts();
	test_kick();
	test_memory();
	test_state();
	test_doorbell();
	test_msr();
	test_step();
	test_two();
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
