/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native.h - guest code on the bare processor, inside this process
 *
 * Code is entered and left by signals: an instruction of ours traps, the
 * handler changes the registers, and comes back at the code's own fault.  It
 * must not find a way into the kernel, and lies at the linear addresses that
 * the guest sees.
 */
#ifndef GUEST_NATIVE_H
#define GUEST_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	NATIVE_XSAVE = 832, /* with the upper halves of YMM */
	NATIVE_TIMEOUT = 200,
};

struct native {
	uint64_t gpr[16], rip, rflags, cr2;
	uint32_t vector, error; /* NATIVE_TIMEOUT: it does not end */
	uint8_t fpu[NATIVE_XSAVE] __attribute__((aligned(64)));
};

/*
 * At a fault, in a signal handler: true: go on at s->rip with the registers
 * that the code had.
 */
typedef bool native_stop(struct native *s);
/* At a signal of our own code, before the program ends by it. */
typedef void native_lost(int sig, uint64_t rip, const void *address);

/* lost may be NULL.  mode32: in a code segment of 32 bits. */
void native_start(native_stop *stop, native_lost *lost, bool mode32);
/* Zeroed memory at a linear address, readable and writable. */
void *native_map(uint32_t linear, size_t size);
/* The same for code, which is executable there; writable where it returns. */
void *native_map_code(uint32_t linear, size_t size);
/* Until stop() has said false; seconds 0: without a limit. */
void native_run(const struct native *start, unsigned seconds);
/*
 * For comparisons: components that an XSAVE area leaves out, as they are in
 * their initial state, are written there; what is not state, or not kept alike
 * by all processors (FOP, FIP, FDP), becomes 0.
 */
void native_complete_fpu(uint8_t *xsave);

#endif /* GUEST_NATIVE_H */
