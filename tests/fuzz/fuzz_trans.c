/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_trans.c - random guest code, all of it translated
 *
 * Byte 0: bit 0 user, bit 1 32-bit, bits 2 to 4 what the caller does between
 * runs; bytes 1 to 16 seed the registers; the rest is code.  Code lies at two
 * addresses, one of them writable, next to pages that are read only, a
 * device, or not there.  Each fault's handler goes on a byte further.  What
 * is looked for is a crash of this process: guest memory has nothing beside
 * it, and translated code that runs off or stores wild ends in a signal.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "husk/hv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
	MEM = 1 << 20,
	GDT = 0x1000,
	IDT = 0x2000,
	PLAIN = 0x3000,	 /* handler without an error code */
	CODED = 0x3010,	 /* and with one */
	PML4 = 0x4000,	 /* PDPT, PD, PT behind it */
	PD32 = 0xc000,	 /* and PT32 behind it */
	CODE = 0x10000,	 /* four pages */
	ALIAS = 0x18000, /* the same, not writable */
	DATA = 0x20000,
	ROM = 0x28000,
	HOLE = 0x2c000,	  /* not there */
	DEVICE = 0x30000, /* beyond memory */
	STACK = 0x40000,
	CODE_MAX = 0x4000,
	END_PORT = 0xff,
	RUNS = 48,
};

static uint8_t *mem;
static struct hv_vm *vm;
static struct hv_vcpu *cpu; /* replaced with the lock held */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct hv_state fresh;
static _Atomic uint32_t turn; /* odd: guest code runs */
static bool protected;	      /* meddle() has */

/* Ends what does not end: kicks a vCPU that runs the same input for 2 ms. */
static void *watchdog(void *arg)
{
	struct timespec ms = { 0, 1000000 };
	uint32_t last = 0;

	for (;;) {
		uint32_t now = atomic_load(&turn);

		pthread_mutex_lock(&lock);
		if ((now & 1) && now == last && now == atomic_load(&turn))
			hv_vcpu_kick(cpu);
		pthread_mutex_unlock(&lock);
		last = now;
		nanosleep(&ms, NULL);
	}
	return NULL;
}

static void create(void)
{
	struct hv_config cfg = { .engine = "soft,eager" };
	pthread_t t;

	/* A gigabyte of nothing on both sides. */
	mem = mmap(NULL, MEM + (2ul << 30), PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		abort();
	mem += 1ul << 30;
	if (mprotect(mem, MEM, PROT_READ | PROT_WRITE) ||
	    hv_vm_create(&cfg, &vm, NULL) ||
	    hv_mem_map(vm, 0, MEM, mem, HV_MEM_READ | HV_MEM_WRITE) ||
	    hv_vcpu_create(vm, 0, &cpu, NULL) ||
	    hv_vcpu_get(cpu, HV_STATE_ALL, &fresh) ||
	    pthread_create(&t, NULL, watchdog, NULL))
		abort();
	pthread_detach(t);
}

static void put(unsigned at, uint64_t v)
{
	memcpy(mem + at, &v, 8);
}

static bool coded(unsigned v)
{
	return v == 8 || (v >= 10 && v <= 14) || v == 17;
}

/* Of the page at linear k, as the tables' lowest 32 bits. */
static uint32_t entry(unsigned k)
{
	if (k >= ALIAS && k < ALIAS + CODE_MAX)
		return (k - ALIAS + CODE) | 5;
	if (k >= ROM && k < ROM + 0x4000)
		return k | 5;
	if (k >= HOLE && k < HOLE + 0x4000)
		return 0;
	if (k >= DEVICE && k < DEVICE + 0x4000)
		return (k - DEVICE + MEM) | 7;
	return k | (k < PLAIN ? 3 : 7);
}

static void tables(bool wide)
{
	static const uint64_t gdt[] = {
		0,
		0x00cf9b000000ffff, /* 08 32-bit code */
		0x00af9b000000ffff, /* 10 64-bit code */
		0x00cf93000000ffff, /* 18 data */
		0x00cffb000000ffff, /* 20 32-bit user code */
		0x00cff3000000ffff, /* 28 user data */
		0x00affb000000ffff, /* 30 64-bit user code */
		0x00008b0000000067 | (uint64_t)0x500 << 16, /* 38 TSS */
		0,
	};
	static const uint8_t plain64[] = { 0x48, 0xff, 4, 0x24, 0x48, 0xcf };
	static const uint8_t coded64[] = { 0x48, 0x83, 0xc4, 8,	   0x48,
					   0xff, 4,    0x24, 0x48, 0xcf };
	static const uint8_t plain32[] = { 0xff, 4, 0x24, 0xcf };
	static const uint8_t coded32[] = { 0x83, 0xc4, 4, 0xff, 4, 0x24, 0xcf };

	memset(mem, 0, MEM);
	memcpy(mem + GDT, gdt, sizeof(gdt));
	for (unsigned v = 0; v < 256; v++) {
		uint64_t at = coded(v) ? CODED : PLAIN;

		put(IDT + (wide ? 16 : 8) * v,
		    at | (wide ? 0x10 : 8) << 16 | (uint64_t)0xee00 << 32);
	}
	memcpy(mem + PLAIN, wide ? plain64 : plain32,
	       wide ? sizeof(plain64) : sizeof(plain32));
	memcpy(mem + CODED, wide ? coded64 : coded32,
	       wide ? sizeof(coded64) : sizeof(coded32));
	for (unsigned k = 0; k < 3; k++)
		put(PML4 + 0x1000 * k, (PML4 + 0x1000 * (k + 1)) | 7);
	put(PD32, (PD32 + 0x1000) | 7);
	for (unsigned k = 0; k < 256; k++) {
		uint32_t e = entry(k << 12);

		put(PML4 + 0x3000 + 8 * k, e);
		memcpy(mem + PD32 + 0x1000 + 4 * k, &e, 4);
	}
	/* Small tables so that code finds them: rsp0, esp0 and ss0. */
	put(0x504, STACK + 0x8000);
	if (!wide)
		put(0x508, 0x18);
}

static void seg(struct hv_state *s, int i, uint16_t sel, uint32_t access)
{
	s->seg[i].selector = sel;
	s->seg[i].access = access;
	s->seg[i].limit = 0xffffffff;
	s->seg[i].base = 0;
}

static void enter(struct hv_state *s, bool wide, bool user)
{
	unsigned dpl = user ? 0x60 : 0;

	seg(s, HV_CS,
	    wide   ? user ? 0x33 : 0x10
	    : user ? 0x23
		   : 8,
	    (wide ? 0xa09b : 0xc09b) | dpl);
	for (int i = HV_ES; i <= HV_GS; i++)
		if (i != HV_CS)
			seg(s, i, user ? 0x2b : 0x18, 0xc093 | dpl);
	seg(s, HV_TR, 0x38, 0x8b);
	s->seg[HV_TR].base = 0x500;
	s->seg[HV_TR].limit = 0x67;
	s->gdtr.base = GDT;
	s->gdtr.limit = 9 * 8 - 1;
	s->idtr.base = IDT;
	s->idtr.limit = 0xfff;
	s->cr0 = 0x80010033;
	s->cr3 = wide ? PML4 : PD32;
	s->cr4 = wide ? 0x40620 : 0x40600; /* OSFXSR, OSXMMEXCPT, OSXSAVE */
	s->efer = wide ? 0xd01 : 0;
	s->xcr0 = 7;
	s->rip = CODE;
	s->gpr[HV_RSP] = STACK;
	s->rflags = 2;
}

/* What a device, a debugger and a caller with memory slots may do. */
static void meddle(unsigned what, unsigned n)
{
	unsigned at = CODE + (n * 37 + what * 5) % 256;

	if (what & 1) {
		mem[at] ^= (uint8_t)(1 << n % 8);
		hv_mem_written(vm, at, 1);
	}
	if (what & 2 && n % 8 == 3) {
		hv_mem_protect(vm, CODE, 0x1000,
			       n & 8 ? HV_MEM_READ
				     : HV_MEM_READ | HV_MEM_WRITE);
		protected = true;
	}
	if (what & 4)
		hv_vcpu_debug(cpu, n % 4 == 2 ? HV_DEBUG_STEP : 0);
}

/* false: the last instruction is still half done. */
static bool run(unsigned what)
{
	static struct hv_exit exit;

	memset(&exit, 0, sizeof(exit));
	atomic_fetch_add(&turn, 1);
	for (unsigned n = 0; n < RUNS; n++) {
		if (hv_vcpu_run(cpu, &exit) || exit.reason == HV_EXIT_KICKED ||
		    exit.reason == HV_EXIT_SHUTDOWN ||
		    exit.reason == HV_EXIT_ERROR ||
		    (exit.reason == HV_EXIT_PIO && exit.pio.port == END_PORT))
			break;
		if (exit.reason == HV_EXIT_MMIO && !exit.mmio.write)
			exit.mmio.value = 0x1122334455667788 * (uint64_t)n;
		if (exit.reason == HV_EXIT_PIO && !exit.pio.write)
			exit.pio.value = n;
		if (exit.reason == HV_EXIT_MSR)
			exit.msr.fault = n & 1;
		meddle(what, n);
	}
	atomic_fetch_add(&turn, 1);
	hv_vcpu_debug(cpu, 0);
	for (unsigned n = 0; hv_vcpu_complete(cpu, &exit) == 1; n++)
		if (n == 1000)
			return false; /* REP OUTS of gigabytes */
	return true;
}

static void replace(void)
{
	pthread_mutex_lock(&lock);
	hv_vcpu_destroy(cpu);
	if (hv_vcpu_create(vm, 0, &cpu, NULL))
		abort();
	pthread_mutex_unlock(&lock);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned near[] = { CODE,	   ALIAS,	 DATA,
					 ROM,	   HOLE,	 DEVICE,
					 DATA - 8, CODE + 0xff0, STACK };
	static struct hv_state s;
	bool wide;

	if (size < 18)
		return 0;
	if (!vm)
		create();
	wide = !(data[0] & 2);
	tables(wide);
	s = fresh;
	for (unsigned i = 0; i < 16; i++) {
		uint64_t v = data[1 + i];

		if (v & 0x80)
			s.gpr[i] = near[(v & 0x7f) % 9] + (v >> 3 & 15) * 8;
		else
			s.gpr[i] = v & 0x40 ? ~v << 3 : v << (v & 7) * 2;
	}
	enter(&s, wide, data[0] & 1);
	size -= 17;
	size = size < CODE_MAX - 2 ? size : CODE_MAX - 2;
	memcpy(mem + CODE, data + 17, size);
	mem[CODE + size] = 0xe6; /* out %al, $END_PORT */
	mem[CODE + size + 1] = END_PORT;
	hv_mem_written(vm, 0, MEM);
	if (protected)
		hv_mem_protect(vm, 0, MEM, HV_MEM_READ | HV_MEM_WRITE);
	protected = false;
	if (hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	if (!run(data[0] >> 2 & 7)) {
		replace();
		return 0;
	}
	/* What the engine gives it takes back. */
	if (hv_vcpu_get(cpu, HV_STATE_ALL, &s) ||
	    hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	return 0;
}
