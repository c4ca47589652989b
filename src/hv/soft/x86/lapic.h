/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lapic.h - what the local APIC, the MSRs and the paravirtual parts share
 */
#ifndef SOFT_LAPIC_H
#define SOFT_LAPIC_H

#include "hv/soft/soft.h"

/* The APIC timer counts nanoseconds: CPUID 0x40000010 says the same. */
enum { APIC_BUS_KHZ = 1000000 };

enum {
	LVT_TIMER,
	LVT_THERMAL,
	LVT_PERF,
	LVT_LINT0,
	LVT_LINT1,
	LVT_ERROR,
	LVT_COUNT
};

#define APIC_BASE_BSP  BIT(8)
#define APIC_BASE_EXTD BIT(10)
#define APIC_BASE_EN   BIT(11)

/*
 * Atomic fields are read or written by senders on other threads; the rest
 * belongs to the vCPU's own thread.
 */
struct lapic {
	_Atomic uint32_t irr[8], tmr[8];
	uint32_t isr[8];
	_Atomic uint32_t id; /* xAPIC format: 31:24 */
	_Atomic uint32_t ldr, dfr, svr;
	uint32_t tpr, esr, esr_pending;
	uint32_t icr_low, icr_high;
	uint32_t lvt[LVT_COUNT];
	uint32_t divide, initial;
	uint64_t expiry_ns;    /* one-shot, periodic; UINT64_MAX none */
	uint64_t tsc_deadline; /* 0: none */
	uint64_t stopped_ns;   /* when time was stopped; 0: it goes on */

	bool pending_eoi; /* some bit of eoi, see take_eoi */
	uint32_t eoi[8];  /* level vectors ended, not told yet */
	bool pv_eoi_set;  /* the guest's PV EOI bit is set */

	/* kvmpv.c: what the guest's clock page was made from. */
	uint64_t pv_page, pv_tsc_offset;
	int64_t pv_clock_offset;
	bool pv_tell_stop; /* the page is to say GUEST_STOPPED */
};

/*
 * The instruction just run has ended a level-triggered interrupt: the loop
 * gives HV_EXIT_EOI for *vector.
 */
bool lapic_take_eoi(struct cpu *c, uint8_t *vector);
/* See to an EOI in the guest's PV page, and stop using it until next time. */
void lapic_sync_pv_eoi(struct cpu *c);
/* An interrupt message from this vCPU; icr as in SDM 3A 11.6.1. */
unsigned lapic_send(struct soft_vm *vm, struct cpu *from, uint32_t icr,
		    uint32_t dest, bool wide);
bool lapic_base_valid(const struct cpu *c, uint64_t value);
void lapic_force_base(struct cpu *c, uint64_t value);
/* The deadline MSR as a state file holds it, whatever the timer's mode. */
void lapic_force_deadline(struct cpu *c, uint64_t tsc);
/* What is left of its timer stays from one CLOCK_MONOTONIC to the other. */
void lapic_stop_time(struct cpu *c, uint64_t ns);
void lapic_start_time(struct cpu *c, uint64_t ns);
/* Stopped: this much of what is left is over. */
void lapic_skip_time(struct cpu *c, uint64_t ns);

/* msr.c: CLOCK_MONOTONIC as counted by the TSC since the VM was made. */
uint64_t soft_clock_ns(struct soft_vm *vm);
/* The TSC of a vCPU without offset when soft_clock_ns() was vm->ns0. */
uint64_t soft_tsc0(struct soft_vm *vm);
/* When the guest's TSC will be there, or a time in the past. */
uint64_t soft_tsc_to_ns(struct cpu *c, uint64_t tsc);
/* Where TSC value is put by the VM's owner: vCPUs that agree stay in step. */
void soft_set_tsc(struct cpu *c, uint64_t value);
/* hv_time_stop(), _start() and _skip(); no vCPU runs. */
int soft_time_stop(struct hv_vm *vm);
int soft_time_start(struct hv_vm *vm);
int soft_time_skip(struct hv_vm *vm, uint64_t ns);

/* kvmpv.c: set or look at the guest's PV EOI bit; false: not in use. */
bool kvmpv_eoi_set(struct cpu *c, bool set);
bool kvmpv_eoi_get(struct cpu *c, bool *set);

#endif /* SOFT_LAPIC_H */
