/* SPDX-License-Identifier: Apache-2.0 */
/*
 * user.c - one stretch of user code on an engine, run from fault to fault
 */
#include "user.h"

#include <string.h>

enum { PT = 0x20000 };

static void put64(struct user *u, uint64_t at, uint64_t v)
{
	memcpy(u->g.mem + at, &v, 8);
}

void user_start(struct user *u, const char *engine, bool mode32)
{
	static const uint8_t none[1];
	const uint64_t nx = 1ull << 63;
	struct hv_state *s = &u->start;

	bare_start(&u->g, engine, BARE_LONG, none, none);
	put64(u, BARE_PD0, 0x83); /* the handlers' own */
	put64(u, BARE_PDPT + 8, 0);
	put64(u, BARE_PD0 + (USER_BASE >> 21) * 8, PT | 7);
	put64(u, PT, USER_CODE_GPA | 5);
	put64(u, PT + 2 * 8, USER_DATA_GPA | 7 | nx);
	put64(u, PT + 3 * 8, (USER_DATA_GPA + 0x1000) | 7 | nx);
	bare_get(&u->g, HV_STATE_ALL, s);
	for (int i = HV_ES; i <= HV_GS; i++) {
		s->seg[i].selector = i == HV_CS ? 0x1b : 0x23;
		s->seg[i].access |= 0x60;
		if (!mode32)
			continue;
		s->seg[i].base = 0;
		s->seg[i].limit = 0xffffffff;
		s->seg[i].access = i == HV_CS ? 0xc0fb : 0xc0f3;
	}
	s->efer |= 0x800;
	s->cr4 |= 0x40000;
	s->xcr0 = 7;
}

void user_put_code(struct user *u, unsigned at, const void *code, unsigned n)
{
	memset(u->g.mem + USER_CODE_GPA, 0xcc, 4096);
	memcpy(u->g.mem + USER_CODE_GPA + at, code, n);
	hv_mem_written(u->g.vm, USER_CODE_GPA, 4096);
}

void user_set(struct user *u, const struct native *s, bool fpu)
{
	unsigned groups = HV_STATE_GENERAL | HV_STATE_SYSTEM;
	int ret;

	memcpy(u->start.gpr, s->gpr, sizeof(s->gpr));
	u->start.rip = s->rip;
	u->start.rflags = s->rflags;
	if (fpu) {
		memcpy(u->start.fpu, s->fpu, sizeof(s->fpu));
		groups |= HV_STATE_FPU;
	}
	ret = hv_vcpu_set(u->g.cpu, groups, &u->start);
	if (ret)
		bare_die("hv_vcpu_set", ret);
}

static bool has_error(uint32_t vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

bool user_run(struct user *u, struct native *s)
{
	uint64_t frame[6], *p = frame;

	if (bare_run(&u->g) != HV_EXIT_PIO || !u->g.exit.pio.write)
		return false;
	hv_vcpu_complete(u->g.cpu, &u->g.exit);
	bare_get(&u->g, HV_STATE_GENERAL | HV_STATE_SYSTEM | HV_STATE_FPU,
		 &u->now);
	s->vector = u->g.exit.pio.port - BARE_FAULT_PORT;
	memcpy(s->gpr, u->now.gpr, sizeof(s->gpr));
	memcpy(s->fpu, u->now.fpu, sizeof(s->fpu));
	s->cr2 = u->now.cr2;
	/* The handler's frame is that of its own fault. */
	memcpy(frame, u->g.mem + (s->gpr[HV_RSP] & (BARE_MEMORY - 1)),
	       sizeof(frame));
	s->error = has_error(s->vector) ? (uint32_t)*p++ : 0;
	s->rip = p[0];
	s->rflags = p[2];
	s->gpr[HV_RSP] = p[3];
	return true;
}
