/* SPDX-License-Identifier: Apache-2.0 */
/*
 * made_up.h - time and chance of engine soft, the same in every run
 *
 * For programs of one thread (nobody gets another) that are linked with --wrap for the functions of
 * made_up.c.  The time of a VM goes on by a step at each RDTSC and where its
 * owner says so, to the timer's moment when the vCPU halts, and else stands
 * still.  An APIC timer fires on the way into a run and in HLT only.
 */
#ifndef GUEST_MADE_UP_H
#define GUEST_MADE_UP_H

#include <stdbool.h>
#include <stdint.h>

#include "husk/hv.h"

struct made_up {
	struct hv_vcpu *cpu;
	uint64_t now; /* ns */
	uint64_t chance;
	bool may_fire; /* the APIC timer */
	bool idle;     /* the vCPU halted for ever, and was kicked */
};

/* Before the first run. */
void made_up_start(struct made_up *m, struct hv_vm *vm, struct hv_vcpu *cpu);
/* Around all that belongs to it; outside, time is real. */
void made_up_enter(struct made_up *m);
void made_up_leave(void);
void made_up_step(struct made_up *m);

#endif /* GUEST_MADE_UP_H */
