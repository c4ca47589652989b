/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timer.h - tells a running vCPU that its APIC timer is due
 */
#ifndef SOFT_TIMER_H
#define SOFT_TIMER_H

#include "hv/soft/soft.h"

/* REQ_TIMER at CLOCK_MONOTONIC ns (UINT64_MAX: never).  The vCPU's thread. */
void timer_arm(struct cpu *c, uint64_t ns);
void timer_stop(struct soft_vm *vm);

#endif /* SOFT_TIMER_H */
