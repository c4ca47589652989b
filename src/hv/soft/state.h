/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.h - architectural state of a soft vCPU, in and out (state.c)
 */
#ifndef SOFT_STATE_H
#define SOFT_STATE_H

#include "hv/engine.h"

int soft_get(struct hv_vcpu *v, unsigned groups, struct hv_state *s);
int soft_set(struct hv_vcpu *v, unsigned groups, const struct hv_state *s);
int soft_cpuid(struct hv_vcpu *v, uint32_t leaf, uint32_t subleaf,
	       struct hv_cpuid *out);
int soft_clock_get(struct hv_vm *vm, uint64_t *ns);
int soft_clock_set(struct hv_vm *vm, uint64_t ns);

#endif /* SOFT_STATE_H */
