/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_x86.c - random guest code on the soft engine
 *
 * Byte 0: mode (real, 16-bit and 32-bit protected, long, long user) and bit 7
 * for single steps; bytes 1 to 16 seed the registers; the rest is code.  The
 * IDT has a handler that returns, so that code goes on after a fault.
 */
#include <stdlib.h>
#include <string.h>

#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
	GDT = 0x1000,
	IDT = 0x2000,
	HANDLER = 0x3000,
	PML4 = 0x4000,
	CODE = 0x8000,
	STACK = 0x20000,
	RUNS = 64,
	STEPS = 300
};

static void tables(unsigned mode)
{
	static const uint64_t gdt[] = {
		0,
		0x00009b000000ffff, /* 08 16-bit code */
		0x00cf9b000000ffff, /* 10 32-bit code */
		0x00af9b000000ffff, /* 18 64-bit code */
		0x00cf93000000ffff, /* 20 data */
		0x00affb000000ffff, /* 28 64-bit user code */
		0x00cff3000000ffff, /* 30 user data */
		0x00008b0000000067 | (uint64_t)0x500 << 16, /* 38 TSS */
		0,
	};
	/* Each skips a byte where no error code lies on the stack. */
	static const uint8_t iret16[] = { 0x55, 0x8b, 0xec, 0xff,
					  0x46, 0x02, 0x5d, 0xcf };
	static const uint8_t iret64[] = { 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf };
	static const uint8_t iret32[] = { 0xff, 0x04, 0x24, 0xcf };

	memset(mem, 0, 0x10000);
	memcpy(mem + GDT, gdt, sizeof(gdt));
	for (unsigned i = 0; i < 256; i++) {
		unsigned sel = mode >= 3 ? 0x18 : 0x10;

		if (mode >= 3) {
			guest_put(IDT + 16 * i,
				  HANDLER | sel << 16 | (uint64_t)0xee00 << 32);
		} else if (mode >= 1) {
			guest_put(IDT + 8 * i,
				  HANDLER | sel << 16 | (uint64_t)0xee00 << 32);
		} else {
			mem[4 * i] = HANDLER & 0xff;
			mem[4 * i + 1] = HANDLER >> 8;
		}
	}
	if (mode >= 3)
		memcpy(mem + HANDLER, iret64, sizeof(iret64));
	else if (mode)
		memcpy(mem + HANDLER, iret32, sizeof(iret32));
	else
		memcpy(mem + HANDLER, iret16, sizeof(iret16));
	guest_put(PML4, (PML4 + 0x1000) | 7);
	guest_put(PML4 + 0x1000, (PML4 + 0x2000) | 7);
	for (unsigned i = 0; i < 4; i++) /* the first 2 MiB four times over */
		guest_put(PML4 + 0x2000 + 8 * i, 0x87);
	guest_put(0x504, STACK + 0x8000); /* rsp0, esp0 is at the same place */
}

static void seg(struct hv_state *s, int i, uint16_t sel, uint32_t access,
		uint32_t limit)
{
	s->seg[i].selector = sel;
	s->seg[i].access = access;
	s->seg[i].limit = limit;
	s->seg[i].base = 0;
}

static void enter(struct hv_state *s, unsigned mode)
{
	static const uint16_t cs[] = { 0, 0x08, 0x10, 0x18, 0x2b };
	static const uint32_t cs_access[] = { 0x9b, 0x9b, 0xc09b, 0xa09b,
					      0xa0fb };
	bool user = mode == 4;
	uint32_t top = mode >= 2 ? 0xffffffff : 0xffff;

	seg(s, HV_CS, cs[mode], cs_access[mode], top);
	for (int i = 0; i < 6; i++)
		if (i != HV_CS)
			seg(s, i,
			    user   ? 0x33
			    : mode ? 0x20
				   : 0,
			    user	? 0xc0f3
			    : mode >= 2 ? 0xc093
					: 0x93,
			    top);
	s->cr0 = mode ? 0x31 : 0x30;
	if (mode) {
		seg(s, HV_TR, 0x38, 0x8b, 0x67);
		s->seg[HV_TR].base = 0x500;
		s->gdtr.base = GDT;
		s->gdtr.limit = 9 * 8 - 1;
		s->idtr.base = IDT;
	}
	s->idtr.limit = mode ? 0xfff : 0x3ff;
	if (mode >= 3) {
		s->cr0 = 0x80000033;
		s->cr3 = PML4;
		s->cr4 = 0x40620; /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
		s->efer = 0xd01;  /* SCE, LME, LMA, NXE */
		s->xcr0 = 7;
	} else {
		s->cr4 = 0x600;
	}
	s->rip = CODE;
	s->gpr[HV_RSP] = STACK;
	s->rflags = 2;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct hv_state s;
	unsigned mode;

	if (size < 18)
		return 0;
	guest_create("soft");
	mode = (data[0] & 0x7f) % 5;
	tables(mode);
	s = fresh;
	for (int i = 0; i < 16; i++) {
		/* Small, negative, and near the code or the top of memory. */
		uint64_t v = data[1 + i];

		s.gpr[i] = v & 0x80 ? v & 0x40 ? ~v << 3 : CODE + v
				    : v << (v & 7) * 2;
	}
	enter(&s, mode);
	size -= 17;
	size = size < 0x4000 ? size : 0x4000;
	memcpy(mem + CODE, data + 17, size);
	mem[CODE + size] = 0xe6; /* out %al, $GUEST_END_PORT */
	mem[CODE + size + 1] = GUEST_END_PORT;
	hv_mem_written(vm, 0, GUEST_MEM);
	if (hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	hv_vcpu_debug(cpu, data[0] & 0x80 ? HV_DEBUG_STEP : 0);
	if (!guest_run(data[0] & 0x80 ? STEPS : RUNS, NULL, 0))
		return 0;
	if (hv_vcpu_get(cpu, HV_STATE_ALL, &s))
		abort();
	/* What the engine gives it takes back. */
	if (hv_vcpu_set(cpu, HV_STATE_ALL, &s))
		abort();
	return 0;
}
