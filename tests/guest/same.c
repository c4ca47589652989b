/* SPDX-License-Identifier: Apache-2.0 */
/*
 * same.c - two states of a vCPU, compared
 */
#include "same.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The time differs, and what counts it. */
static bool is_time(uint32_t msr)
{
	return msr == 0x10 || msr == 0x6e0 || msr == 0xe7 || msr == 0xe8 ||
	       (msr >= 0x4b564d00 && msr <= 0x4b564dff);
}

static void show64(const char *name, uint64_t x, uint64_t y)
{
	printf("#   %-10s %016" PRIx64 "  %016" PRIx64 "\n", name, x, y);
}

static bool same_fpu(const uint8_t *x, const uint8_t *y, bool show)
{
	bool same = true;

	for (unsigned k = 0; k < 832; k += 8) {
		char name[32];
		uint64_t v, w;

		/* FOP, FIP, FDP; MXCSR's mask; reserved; XSTATE_BV. */
		if (k == 8 || k == 16 || (k >= 416 && k < 576))
			continue;
		memcpy(&v, x + k, 8);
		memcpy(&w, y + k, 8);
		if (k == 0)
			v &= 0xffffffffff, w &= 0xffffffffff;
		if (k == 24)
			v = (uint32_t)v, w = (uint32_t)w;
		if (v == w)
			continue;
		same = false;
		snprintf(name, sizeof(name), "xsave+%u", k);
		if (k >= 160 && k < 416)
			snprintf(name, sizeof(name), "xmm%u%s", (k - 160) / 16,
				 k & 8 ? " high" : "");
		if (show)
			show64(name, v, w);
	}
	return same;
}

bool same_state(const struct hv_state *x, const struct hv_state *y,
		uint64_t flags, bool show)
{
	static const char *const names[16] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
	};
	bool same = true;

#define SAME(name, v, w) \
	do { \
		if ((v) != (w)) { \
			same = false; \
			if (show) \
				show64(name, v, w); \
		} \
	} while (0)

	for (int k = 0; k < 16; k++)
		SAME(names[k], x->gpr[k], y->gpr[k]);
	SAME("rip", x->rip, y->rip);
	SAME("rflags", x->rflags & flags, y->rflags & flags);
	for (int k = 0; k < 8; k++) {
		SAME("selector", x->seg[k].selector, y->seg[k].selector);
		SAME("base", x->seg[k].base, y->seg[k].base);
		SAME("limit", x->seg[k].limit, y->seg[k].limit);
		SAME("access", x->seg[k].access, y->seg[k].access);
	}
	SAME("gdt", x->gdtr.base, y->gdtr.base);
	SAME("idt", x->idtr.base, y->idtr.base);
	SAME("cr0", x->cr0, y->cr0);
	SAME("cr2", x->cr2, y->cr2);
	SAME("cr3", x->cr3, y->cr3);
	SAME("cr4", x->cr4, y->cr4);
	SAME("cr8", x->cr8, y->cr8);
	SAME("efer", x->efer, y->efer);
	SAME("xcr0", x->xcr0, y->xcr0);
	SAME("apic base", x->apic_base, y->apic_base);
	for (int k = 0; k < 4; k++)
		SAME("dr", x->dr[k], y->dr[k]);
	SAME("dr6", x->dr6, y->dr6);
	SAME("dr7", x->dr7, y->dr7);
	SAME("msrs", x->nmsrs, y->nmsrs);
	for (uint32_t k = 0; k < x->nmsrs && k < y->nmsrs; k++) {
		SAME("msr", x->msr[k].index, y->msr[k].index);
		if (!is_time(x->msr[k].index))
			SAME("msr", x->msr[k].value, y->msr[k].value);
	}
	SAME("mp state", x->event.mp, y->event.mp);
	SAME("exception", x->event.exception, y->event.exception);
	SAME("interrupt", x->event.interrupt, y->event.interrupt);
	SAME("shadow", x->event.sti_shadow, y->event.sti_shadow);
	SAME("shadow", x->event.movss_shadow, y->event.movss_shadow);
	if (!same_fpu(x->fpu, y->fpu, show))
		same = false;
	/* All registers but the timer's current count. */
	for (unsigned k = 0; k < HV_APIC_SIZE; k += 16)
		if (k != 0x390 && memcmp(x->apic + k, y->apic + k, 4)) {
			same = false;
			if (show)
				printf("#   local APIC register %#x\n", k);
		}
	return same;
}
