/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - every group of a vCPU's state is read as it was set
 *
 * state --engine kvm|soft fills the groups with values that differ from each
 * other, sets them, reads them back, and moves all of it to a second VM.
 * Exit status 77: no usable /dev/kvm.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bare.h"

PAYLOAD(code_spin, 64, "2: jmp 2b\n");

static unsigned tests, failures;

static void check(bool ok, const char *name)
{
	printf("%sok %u - %s\n", ok ? "" : "not ", ++tests, name);
	failures += !ok;
}

static void put_apic(struct hv_state *s, unsigned at, uint32_t v)
{
	memcpy(s->apic + at, &v, 4);
}

static void set_msr(struct hv_state *s, uint32_t index, uint64_t value)
{
	for (uint32_t i = 0; i < s->nmsrs; i++)
		if (s->msr[i].index == index)
			s->msr[i].value = value;
}

static void fill(struct hv_state *s)
{
	static const uint32_t addresses[] = {
		0xc0000082, 0xc0000083, /* LSTAR, CSTAR */
		0xc0000102,		/* KERNEL_GS_BASE */
	};

	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = 0x1111111111111111u * i + 7;
	s->rflags = 0xcd7; /* CF to OF, DF; IF stays clear */
	s->cr2 = 0xffff800012345678;
	s->cr8 = 2;
	s->seg[HV_FS].base = 0x7f0012340000;
	s->seg[HV_GS].base = 0xffff888000000000;
	for (unsigned i = 0; i < 4; i++)
		s->dr[i] = 0x1000 * i + 0x123;
	s->dr6 = 0xffff0ff0 | 5;
	s->dr7 = 0x00050402; /* global 0: execution; kept, not reached */
	for (unsigned i = 0; i < 256; i++)
		s->fpu[160 + i] = i * 7 + 1; /* XMM0 to 15 */
	s->fpu[0] = 0x7f;		     /* FCW: double precision */
	s->fpu[1] = 2;
	s->fpu[512] |= 3; /* both parts are in use */
	for (unsigned i = 0; i < sizeof(addresses) / 4; i++)
		set_msr(s, addresses[i], 0xffffffff81000000 + i * 0x1000);
	/* AMD processors keep 32 bits of the next two. */
	set_msr(s, 0x175, 0x81000000);
	set_msr(s, 0x176, 0x82000000);
	set_msr(s, 0x174, 0x10);		    /* SYSENTER_CS */
	set_msr(s, 0x277, 0x0007010600070106);	    /* PAT: WC, as Linux */
	set_msr(s, 0xc0000081, 0x0023001000000000); /* STAR */
	set_msr(s, 0xc0000084, 0x47700);	    /* SFMASK */
	set_msr(s, 0xc0000103, 3);		    /* TSC_AUX */
	put_apic(s, 0x80, 0x20);		    /* TPR, as CR8 */
	put_apic(s, 0xd0, 0x02000000);		    /* LDR */
	put_apic(s, 0xf0, 0x1ff);		    /* on */
	put_apic(s, 0x130, 1 << 1);		    /* vector 61 in service */
	put_apic(s, 0x220, 1 << 21);		    /* vector 55 requested */
	put_apic(s, 0x320, 0x10030);		    /* timer: masked */
	put_apic(s, 0x350, 0x700);		    /* LINT0: ExtINT */
	put_apic(s, 0x3e0, 0xb);		    /* divide by 1 */
	memset(&s->event, 0, sizeof(s->event));
	s->event.mp = HV_MP_HALTED;
	s->event.nmi_pending = s->event.nmi_masked = true;
	s->event.sti_shadow = true;
}

static bool same_apic(const struct hv_state *a, const struct hv_state *b)
{
	for (unsigned at = 0; at < HV_APIC_SIZE; at += 16) {
		uint32_t x, y;

		memcpy(&x, a->apic + at, 4);
		memcpy(&y, b->apic + at, 4);
		/* The processor's priority and the count follow from others. */
		if (x != y && at != 0xa0 && at != 0x390) {
			printf("# APIC %#x: %#x and %#x\n", at, x, y);
			return false;
		}
	}
	return true;
}

/* TSC, the TSC deadline and clocks go on. */
static bool runs_on(uint32_t index)
{
	return index == 0x10 || index == 0x6e0 || index == 0x11 ||
	       index == 0x12 || index >> 8 == 0x4b564d;
}

static bool same_msrs(const struct hv_state *a, const struct hv_state *b)
{
	if (a->nmsrs != b->nmsrs)
		return false;
	for (uint32_t i = 0; i < a->nmsrs; i++)
		if (a->msr[i].index != b->msr[i].index ||
		    (a->msr[i].value != b->msr[i].value &&
		     !runs_on(a->msr[i].index))) {
			printf("# MSR %#x: %#" PRIx64 " and %#" PRIx64 "\n",
			       a->msr[i].index, a->msr[i].value,
			       b->msr[i].value);
			return false;
		}
	return true;
}

static bool same_segments(const struct hv_state *a, const struct hv_state *b)
{
	for (unsigned i = 0; i < 8; i++) {
		const struct hv_segment *s = &a->seg[i], *t = &b->seg[i];

		if (s->selector != t->selector || s->limit != t->limit ||
		    s->access != t->access || s->base != t->base) {
			printf("# segment %u\n", i);
			return false;
		}
	}
	return a->gdtr.base == b->gdtr.base && a->gdtr.limit == b->gdtr.limit &&
	       a->idtr.base == b->idtr.base && a->idtr.limit == b->idtr.limit;
}

/* Behind byte 416 is what the processor leaves alone. */
static bool same_fpu(const struct hv_state *a, const struct hv_state *b)
{
	for (unsigned at = 0; at < 520; at++)
		if ((at < 416 || at >= 512) && a->fpu[at] != b->fpu[at]) {
			printf("# FPU byte %u: %#x and %#x\n", at, a->fpu[at],
			       b->fpu[at]);
			return false;
		}
	return true;
}

static bool same_event(const struct hv_state *a, const struct hv_state *b)
{
	return a->event.mp == b->event.mp &&
	       a->event.exception == b->event.exception &&
	       (!a->event.exception ||
		(a->event.vector == b->event.vector &&
		 a->event.has_error == b->event.has_error &&
		 a->event.error == b->event.error)) &&
	       a->event.interrupt == b->event.interrupt &&
	       (!a->event.interrupt ||
		a->event.interrupt_vector == b->event.interrupt_vector) &&
	       a->event.nmi_pending == b->event.nmi_pending &&
	       a->event.nmi_masked == b->event.nmi_masked &&
	       /* SVM has one shadow for both. */
	       (a->event.sti_shadow || a->event.movss_shadow) ==
		       (b->event.sti_shadow || b->event.movss_shadow);
}

static void check_same(const struct hv_state *a, const struct hv_state *b)
{
	check(!memcmp(a->gpr, b->gpr, sizeof(a->gpr)) && a->rip == b->rip &&
		      a->rflags == b->rflags,
	      "general");
	check(same_segments(a, b), "segments");
	check(a->cr0 == b->cr0 && a->cr2 == b->cr2 && a->cr3 == b->cr3 &&
		      a->cr4 == b->cr4 && a->cr8 == b->cr8 &&
		      a->efer == b->efer && a->xcr0 == b->xcr0 &&
		      a->apic_base == b->apic_base,
	      "control_registers");
	check(!memcmp(a->dr, b->dr, sizeof(a->dr)) && a->dr6 == b->dr6 &&
		      a->dr7 == b->dr7,
	      "debug");
	check(same_fpu(a, b), "fpu");
	check(same_msrs(a, b), "msrs");
	check(same_apic(a, b), "apic");
	check(same_event(a, b), "events");
}

static void set(struct bare *g, unsigned groups, const struct hv_state *s)
{
	int r = hv_vcpu_set(g->cpu, groups, s);

	if (r)
		bare_die("hv_vcpu_set", r);
}

static void check_events(struct bare *g, struct hv_state *s)
{
	static struct hv_state t;

	memset(&s->event, 0, sizeof(s->event));
	s->event.exception = s->event.has_error = true;
	s->event.vector = 13;
	s->event.error = 0x18;
	set(g, HV_STATE_EVENT, s);
	bare_get(g, HV_STATE_EVENT, &t);
	check(same_event(s, &t), "exception_that_waits");

	memset(&s->event, 0, sizeof(s->event));
	s->event.interrupt = true;
	s->event.interrupt_vector = 0x77;
	set(g, HV_STATE_EVENT, s);
	bare_get(g, HV_STATE_EVENT, &t);
	check(same_event(s, &t), "interrupt_that_waits");

	for (int mp = HV_MP_RUNNABLE; mp <= HV_MP_WAIT_SIPI; mp++) {
		memset(&s->event, 0, sizeof(s->event));
		s->event.mp = mp;
		s->event.movss_shadow = mp == HV_MP_RUNNABLE;
		set(g, HV_STATE_EVENT, s);
		bare_get(g, HV_STATE_EVENT, &t);
		check(same_event(s, &t), "mp_state");
	}
}

int main(int argc, char **argv)
{
	const char *engine = argc > 2 ? argv[2] : "soft";
	static struct hv_state a, b;
	struct bare g, h;

	if (!bare_has_engine(engine)) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	bare_start(&g, engine, BARE_LONG, code_spin, code_spin_end);
	bare_get(&g, HV_STATE_ALL, &a);
	fill(&a);
	set(&g, HV_STATE_ALL, &a);
	bare_get(&g, HV_STATE_ALL, &b);
	check_same(&a, &b);

	bare_start(&h, engine, BARE_LONG, code_spin, code_spin_end);
	set(&h, HV_STATE_ALL, &b);
	bare_get(&h, HV_STATE_ALL, &a);
	check_same(&b, &a);

	/* What cannot be is refused and changes nothing. */
	a.event.mp = 77;
	check(hv_vcpu_set(h.cpu, HV_STATE_EVENT, &a) == -EINVAL, "mp_state_77");
	a.cr0 = 0x80000000; /* paging without protection */
	a.cr2 = 1;
	check(hv_vcpu_set(h.cpu, HV_STATE_SYSTEM, &a) == -EINVAL, "cr0");
	bare_get(&h, HV_STATE_ALL, &a);
	check(a.cr2 == b.cr2 && a.cr0 == b.cr0 && same_event(&a, &b),
	      "nothing_changed");
	check_events(&g, &b);
	bare_stop(&g);
	bare_stop(&h);
	printf("1..%u\n", tests);
	return failures ? 1 : 0;
}
