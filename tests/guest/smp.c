/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smp.c - two vCPUs: INIT, SIPI, locked instructions and IPIs
 *
 * smp --engine kvm|soft.  vCPU 0 starts vCPU 1, both count in one word, then
 * each interrupts the other.  Exit status 77: no usable /dev/kvm.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bare.h"

enum {
	AP_CODE = 0xb000, /* SIPI vector 0x0b */
	AP_HANDLER = 0xb100,
	AP_VECTOR = 0x50,
	EACH = 20000,
	PORT = 0x520,
};

#define APIC_ON \
	"mov $0x1b, %ecx\n rdmsr\n or $0xc00, %eax\n wrmsr\n" \
	"mov $0x80f, %ecx\n mov $0x1ff, %eax\n xor %edx, %edx\n wrmsr\n"

/* Words: 0x10000 interrupts of vCPU 0, 0x10010 the count, 0x10014 vCPU 1 is
 * done with it, 0x10018 interrupts of vCPU 1. */
PAYLOAD(code_boot, 64,
	APIC_ON
	"mov $0x830, %ecx\n mov $1, %edx\n mov $0x4500, %eax\n wrmsr\n"
	"mov $0x460b, %eax\n wrmsr\n wrmsr\n"
	"mov $20000, %r9d\n"
	"1: lock incl 0x10010\n dec %r9d\n jnz 1b\n"
	"2: pause\n cmpl $1, 0x10014\n jne 2b\n"
	"mov 0x10010, %eax\n mov $0x520, %dx\n out %eax, %dx\n"
	"mov $0x830, %ecx\n mov $1, %edx\n mov $0x4050, %eax\n wrmsr\n"
	"3: sti\n hlt\n cli\n mov 0x10000, %eax\n test %eax, %eax\n jz 3b\n"
	"mov $0x80b, %ecx\n xor %eax, %eax\n xor %edx, %edx\n wrmsr\n"
	"mov 0x10018, %eax\n mov $0x520, %dx\n out %eax, %dx\n"
	"4: jmp 4b\n");
PAYLOAD(code_ap, 16,
	"mov $0x1000, %ax\n mov %ax, %ds\n xor %ax, %ax\n mov %ax, %ss\n"
	"mov $0xfff0, %sp\n mov $20000, %cx\n"
	"1: lock incl 0x10\n loop 1b\n" APIC_ON
	"movl $1, 0x14\n sti\n 2: hlt\n jmp 2b\n");
PAYLOAD(code_ap_handler, 16,
	"lock incl 0x18\n"
	"mov $0x80b, %ecx\n xor %eax, %eax\n xor %edx, %edx\n wrmsr\n"
	"mov $0x830, %ecx\n mov $0x4041, %eax\n wrmsr\n iret\n");

struct ap {
	struct hv_vcpu *cpu;
	atomic_bool stop;
	unsigned kicks, others; /* exits */
};

static unsigned tests, failures;

static void check(bool ok, const char *name)
{
	printf("%sok %u - %s\n", ok ? "" : "not ", ++tests, name);
	failures += !ok;
}

static void *run_ap(void *arg)
{
	struct ap *ap = arg;
	struct hv_exit exit;

	while (!atomic_load(&ap->stop)) {
		if (hv_vcpu_run(ap->cpu, &exit)) {
			ap->others++;
			break;
		}
		if (exit.reason == HV_EXIT_KICKED) {
			ap->kicks++;
			continue;
		}
		printf("# vCPU 1: exit %d %s\n", exit.reason,
		       exit.reason == HV_EXIT_ERROR ? exit.error.text : "");
		ap->others++;
		break;
	}
	return NULL;
}

static uint32_t word(struct bare *g, uint64_t at)
{
	uint32_t v;

	memcpy(&v, g->mem + at, 4);
	return v;
}

static void set_word(struct bare *g, uint64_t at, uint32_t v)
{
	memcpy(g->mem + at, &v, 4);
}

static bool runs_to_out(struct bare *g, uint32_t value)
{
	enum hv_exit_reason r = bare_run(g);

	if (r == HV_EXIT_PIO && g->exit.pio.port == PORT &&
	    g->exit.pio.value == value)
		return true;
	printf("# exit %d port %#x value %u\n", r, g->exit.pio.port,
	       g->exit.pio.value);
	return false;
}

int main(int argc, char **argv)
{
	const char *engine = argc > 2 ? argv[2] : "soft";
	static struct hv_state s;
	struct ap ap = { 0 };
	struct husk_error err = { 0 };
	struct bare g;
	pthread_t t;
	int r;

	if (!bare_has_engine(engine)) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(100); /* a vCPU that never starts would be waited for */
	bare_start(&g, engine, BARE_LONG, code_boot, code_boot_end);
	memcpy(g.mem + AP_CODE, code_ap, code_ap_end - code_ap);
	memcpy(g.mem + AP_HANDLER, code_ap_handler,
	       code_ap_handler_end - code_ap_handler);
	set_word(&g, AP_VECTOR * 4, AP_CODE >> 4 << 16 | 0x100);

	r = hv_vcpu_create(g.vm, 1, &ap.cpu, &err);
	if (r)
		bare_die(err.text, r);
	r = hv_vcpu_get(ap.cpu, HV_STATE_EVENT, &s);
	check(!r && s.event.mp == HV_MP_WAIT_SIPI, "second_waits_for_sipi");
	pthread_create(&t, NULL, run_ap, &ap);
	hv_vcpu_kick(ap.cpu);

	check(runs_to_out(&g, 2 * EACH), "locked_counts_add_up");
	check(runs_to_out(&g, 1), "ipi_there_and_back");
	check(word(&g, BARE_DATA) == 1, "one_interrupt_each");

	/* INIT of a processor that runs. */
	set_word(&g, BARE_DATA, 0);
	set_word(&g, BARE_DATA + 0x14, 0);
	bare_set_mode(&g, BARE_LONG);
	check(runs_to_out(&g, 4 * EACH), "started_again");
	check(runs_to_out(&g, 2), "ipi_there_and_back_again");

	atomic_store(&ap.stop, true);
	hv_vcpu_kick(ap.cpu);
	pthread_join(t, NULL);
	check(ap.kicks >= 1 && !ap.others, "second_has_no_exits_but_kicks");
	r = hv_vcpu_get(ap.cpu, HV_STATE_ALL, &s);
	check(!r && s.seg[HV_CS].selector == AP_CODE >> 4 && !(s.cr0 & 1) &&
		      s.seg[HV_DS].base == BARE_DATA,
	      "second_is_where_sipi_sent_it");
	bare_stop(&g);
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
