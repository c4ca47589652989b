/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.h - one vCPU for guest code that may do anything
 *
 * 1 MiB of RAM at 0, nothing of this process beside it, and a thread that
 * ends what does not end: it kicks a vCPU that runs the same input for 2 ms.
 */
#ifndef FUZZ_GUEST_H
#define FUZZ_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "husk/hv.h"

enum { GUEST_MEM = 1 << 20, GUEST_END_PORT = 0xff };

extern uint8_t *mem;
extern struct hv_vm *vm;
extern struct hv_vcpu *cpu;
extern struct hv_state fresh; /* of a new vCPU */

/* Once. */
void guest_create(const char *engine);
void guest_put(unsigned at, uint64_t v);
/*
 * At most max exits; between them between(arg, n), if there is one.  The vCPU
 * can then be read and set; one whose last instruction does not come to its
 * end is replaced by a new one: false.
 */
bool guest_run(unsigned max, void (*between)(unsigned arg, unsigned n),
	       unsigned arg);

#endif /* FUZZ_GUEST_H */
