/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bare.c - guests without an operating system
 */
#include "bare.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

PAYLOAD(bare_handler, 64, "incl 0x10000\n iretq\n");
/* To 0x8000 at CPL 3, stack 0xfff0. */
PAYLOAD(bare_enter, 64,
	"pushq $0x23\n pushq $0xfff0\n pushq $2\n pushq $0x1b\n"
	"pushq $0x8000\n iretq\n");

void bare_die(const char *what, int code)
{
	printf("Bail out! %s: %s\n", what, strerror(-code));
	exit(1);
}

bool bare_has_engine(const char *engine)
{
	return strcmp(engine, "kvm") || !access("/dev/kvm", R_OK | W_OK);
}

static void put64(struct bare *g, uint64_t at, uint64_t value)
{
	memcpy(g->mem + at, &value, 8);
}

static void put_gate(struct bare *g, unsigned vector, uint64_t handler)
{
	/* DPL 3, so that int3 of user code comes through. */
	put64(g, BARE_IDT + vector * 16, handler | 8 << 16 | 0xee00ull << 32);
}

static void fill_tables(struct bare *g)
{
	put64(g, BARE_PML4, BARE_PDPT | 7);
	put64(g, BARE_PDPT, BARE_PD0 | 7);
	put64(g, BARE_PDPT + 8, BARE_PD1 | 7);
	put64(g, BARE_PD0, 0x87);
	put64(g, BARE_PD1, BARE_HOLE | 0x87);
	put64(g, BARE_GDT + 8, 0x00af9b000000ffff);
	put64(g, BARE_GDT + 16, 0x00cf93000000ffff);
	put64(g, BARE_GDT + 24, 0x00affb000000ffff);
	put64(g, BARE_GDT + 32, 0x00cff3000000ffff);
	put64(g, BARE_GDT + 40, 0x00008b0000000067 | BARE_TSS << 16);
	put64(g, BARE_TSS + 4, BARE_STACK);
	for (unsigned v = 0; v < 32; v++) {
		uint8_t *p = g->mem + BARE_FAULTS + v * 4;

		/* out %al, $port changes no register; jmp . */
		p[0] = 0xe6;
		p[1] = (uint8_t)(BARE_FAULT_PORT + v);
		p[2] = 0xeb;
		p[3] = 0xfe;
		put_gate(g, v, BARE_FAULTS + v * 4);
	}
	put_gate(g, BARE_VECTOR, BARE_HANDLER);
	memcpy(g->mem + BARE_HANDLER, bare_handler,
	       bare_bytes(bare_handler, bare_handler_end));
	memcpy(g->mem + BARE_ENTER, bare_enter,
	       bare_bytes(bare_enter, bare_enter_end));
}

void bare_get(struct bare *g, unsigned groups, struct hv_state *s)
{
	int r = hv_vcpu_get(g->cpu, groups, s);

	if (r)
		bare_die("hv_vcpu_get", r);
}

void bare_set_mode(struct bare *g, enum bare_mode mode)
{
	static struct hv_state s;
	bool wide = mode == BARE_LONG || mode == BARE_USER;
	uint32_t code = wide ? 0xa09b : mode == BARE_PROTECTED ? 0xc09b : 0x9b;
	uint32_t data = mode == BARE_REAL ? 0x93 : 0xc093;
	uint32_t limit = mode == BARE_REAL ? 0xffff : 0xffffffff;
	int r;

	bare_get(g, HV_STATE_SYSTEM | HV_STATE_GENERAL, &s);
	for (int i = HV_ES; i <= HV_GS; i++) {
		s.seg[i].selector = mode == BARE_REAL ? 0 : i == HV_CS ? 8 : 16;
		s.seg[i].base = 0;
		s.seg[i].limit = limit;
		s.seg[i].access = i == HV_CS ? code : data;
	}
	s.gdtr.base = BARE_GDT;
	s.gdtr.limit = 55;
	if (mode != BARE_REAL)
		s.cr0 |= 1;
	if (wide) {
		s.idtr.base = BARE_IDT;
		s.idtr.limit = (BARE_VECTOR + 1) * 16 - 1;
		s.cr0 = 0x80010033;
		s.cr3 = BARE_PML4;
		s.cr4 = 0x620;
		s.efer = 0x500;
		s.seg[HV_TR].selector = 40;
		s.seg[HV_TR].base = BARE_TSS;
		s.seg[HV_TR].access = 0x8b;
		s.seg[HV_TR].limit = 0x67;
	}
	s.rip = mode == BARE_USER ? BARE_ENTER : BARE_CODE;
	s.rflags = 2;
	s.gpr[HV_RSP] = BARE_STACK;
	r = hv_vcpu_set(g->cpu, HV_STATE_SYSTEM | HV_STATE_GENERAL, &s);
	if (r)
		bare_die("hv_vcpu_set", r);
}

void bare_start(struct bare *g, const char *engine, enum bare_mode mode,
		const uint8_t *code, const uint8_t *end)
{
	struct hv_config cfg = { .engine = engine, .max_vcpus = 2 };
	struct husk_error err = { 0 };
	int r;

	memset(g, 0, sizeof(*g));
	g->mem = mmap(NULL, BARE_MEMORY, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->mem == MAP_FAILED)
		bare_die("mmap", -errno);
	r = hv_vm_create(&cfg, &g->vm, &err);
	if (!r)
		r = hv_mem_map(g->vm, 0, BARE_MEMORY, g->mem,
			       HV_MEM_READ | HV_MEM_WRITE);
	if (!r)
		r = hv_vcpu_create(g->vm, 0, &g->cpu, &err);
	if (r)
		bare_die(err.text[0] ? err.text : "set up", r);
	fill_tables(g);
	memcpy(g->mem + BARE_CODE, code, end - code);
	bare_set_mode(g, mode);
}

void bare_stop(struct bare *g)
{
	hv_vm_destroy(g->vm);
	munmap(g->mem, BARE_MEMORY);
}

enum hv_exit_reason bare_run(struct bare *g)
{
	int r = hv_vcpu_run(g->cpu, &g->exit);

	if (r)
		bare_die("hv_vcpu_run", r);
	if (g->exit.reason == HV_EXIT_ERROR)
		printf("# %s\n", g->exit.error.text);
	return g->exit.reason;
}

/* -- exit logs ------------------------------------------------------------ */

struct bare_entry bare_entry(const struct hv_exit *e)
{
	struct bare_entry r;

	memset(&r, 0, sizeof(r));
	r.reason = e->reason;
	switch (e->reason) {
	case HV_EXIT_MMIO:
		r.addr = e->mmio.gpa;
		r.size = e->mmio.size;
		r.write = e->mmio.write;
		r.value = e->mmio.value;
		if (r.size < 8)
			r.value &= (1ull << r.size * 8) - 1;
		break;
	case HV_EXIT_PIO:
		r.addr = e->pio.port;
		r.size = e->pio.size;
		r.write = e->pio.write;
		r.value = e->pio.value;
		if (r.size < 8)
			r.value &= (1ull << r.size * 8) - 1;
		break;
	case HV_EXIT_MSR:
		r.addr = e->msr.index;
		r.size = 8;
		r.write = e->msr.write;
		r.value = e->msr.value;
		break;
	case HV_EXIT_EOI: r.addr = e->eoi.vector; break;
	case HV_EXIT_DEBUG:
		r.addr = e->debug.rip;
		r.value = e->debug.vector;
		break;
	default: break;
	}
	if (!r.write && r.reason != HV_EXIT_DEBUG)
		r.value = 0;
	return r;
}

static uint64_t answer(const struct bare_entry *e, unsigned n)
{
	uint64_t v = (e->addr + n + 1) * 0x9e3779b97f4a7c15;

	return e->size < 8 ? v & ((1ull << e->size * 8) - 1) : v;
}

bool bare_log_step(struct bare *g, struct bare_log *log)
{
	bare_run(g);
	return bare_log_exit(g, log);
}

bool bare_log_exit(struct bare *g, struct bare_log *log)
{
	struct bare_entry *e = &log->e[log->n];

	if (log->n == BARE_LOG_MAX)
		return false;
	*e = bare_entry(&g->exit);
	switch (e->reason) {
	case HV_EXIT_PIO:
	case HV_EXIT_MMIO:
	case HV_EXIT_MSR: break;
	default: log->n++; return false;
	}
	if (!e->write) {
		e->answered = 1;
		e->value = answer(e, log->n);
		if (e->reason == HV_EXIT_PIO)
			g->exit.pio.value = (uint32_t)e->value;
		else if (e->reason == HV_EXIT_MMIO)
			g->exit.mmio.value = e->value;
		else
			g->exit.msr.value = e->value;
	}
	log->n++;
	return e->reason != HV_EXIT_PIO ||
	       (e->addr != BARE_END &&
		(e->addr < BARE_FAULT_PORT || e->addr >= BARE_FAULT_PORT + 32));
}

int bare_log_diff(const struct bare_log *a, const struct bare_log *b)
{
	unsigned n = a->n < b->n ? a->n : b->n;

	for (unsigned i = 0; i < n; i++)
		if (memcmp(&a->e[i], &b->e[i], sizeof(a->e[i])))
			return (int)i;
	return a->n == b->n ? -1 : (int)n;
}

void bare_log_print(const char *name, const struct bare_entry *e)
{
	static const char *const reason[HV_EXIT_COUNT] = {
		"none",	  "mmio",  "pio",      "msr",	 "eoi",
		"window", "debug", "shutdown", "kicked", "error",
	};

	printf("# %-12s %s %s %#" PRIx64 " size %u value %#" PRIx64 "\n", name,
	       e->reason < HV_EXIT_COUNT ? reason[e->reason] : "?",
	       e->write ? "write" : "read", e->addr, e->size, e->value);
}
