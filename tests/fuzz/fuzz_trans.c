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
#include <stdlib.h>
#include <string.h>

#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
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
	RUNS = 48,
};

static bool protected; /* meddle() has */

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
		return (k - DEVICE + GUEST_MEM) | 7;
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

	memset(mem, 0, GUEST_MEM);
	memcpy(mem + GDT, gdt, sizeof(gdt));
	for (unsigned v = 0; v < 256; v++) {
		uint64_t at = coded(v) ? CODED : PLAIN;

		guest_put(IDT + (wide ? 16 : 8) * v,
			  at | (wide ? 0x10 : 8) << 16 |
				  (uint64_t)0xee00 << 32);
	}
	memcpy(mem + PLAIN, wide ? plain64 : plain32,
	       wide ? sizeof(plain64) : sizeof(plain32));
	memcpy(mem + CODED, wide ? coded64 : coded32,
	       wide ? sizeof(coded64) : sizeof(coded32));
	for (unsigned k = 0; k < 3; k++)
		guest_put(PML4 + 0x1000 * k, (PML4 + 0x1000 * (k + 1)) | 7);
	guest_put(PD32, (PD32 + 0x1000) | 7);
	for (unsigned k = 0; k < 256; k++) {
		uint32_t e = entry(k << 12);

		guest_put(PML4 + 0x3000 + 8 * k, e);
		memcpy(mem + PD32 + 0x1000 + 4 * k, &e, 4);
	}
	/* Small tables so that code finds them: rsp0, esp0 and ss0. */
	guest_put(0x504, STACK + 0x8000);
	if (!wide)
		guest_put(0x508, 0x18);
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned near[] = { CODE,	   ALIAS,	 DATA,
					 ROM,	   HOLE,	 DEVICE,
					 DATA - 8, CODE + 0xff0, STACK };
	static struct hv_state s;
	bool wide;

	if (size < 18)
		return 0;
	guest_create("soft,eager");
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
	mem[CODE + size] = 0xe6; /* out %al, $GUEST_END_PORT */
	mem[CODE + size + 1] = GUEST_END_PORT;
	hv_mem_written(vm, 0, GUEST_MEM);
	if (protected)
		hv_mem_protect(vm, 0, GUEST_MEM, HV_MEM_READ | HV_MEM_WRITE);
	protected = false;
	if (hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	if (!guest_run(RUNS, meddle, data[0] >> 2 & 7))
		return 0;
	/* What the engine gives it takes back. */
	if (hv_vcpu_get(cpu, HV_STATE_ALL, &s) ||
	    hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	return 0;
}
