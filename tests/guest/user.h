/* SPDX-License-Identifier: Apache-2.0 */
/*
 * user.h - one stretch of user code on an engine, run from fault to fault
 *
 * For comparisons with the bare processor (native.h), at the linear addresses
 * that it has there: a page of code at USER_BASE, a hole, two pages of data.
 * Every fault comes to a handler of bare.c, which ends the run.
 */
#ifndef GUEST_USER_H
#define GUEST_USER_H

#include "bare.h"
#include "native.h"

enum {
	USER_BASE = 0x10000000,
	USER_CODE = USER_BASE,
	USER_DATA = USER_BASE + 0x2000,
	/* Where both lie in the guest's memory. */
	USER_CODE_GPA = 0x30000,
	USER_DATA_GPA = 0x32000,
};

struct user {
	struct bare g;
	struct hv_state start, now;
};

/* mode32: in a code segment of 32 bits.  Ends the program on failure. */
void user_start(struct user *u, const char *engine, bool mode32);
/* Code comes to USER_CODE + at, with int3 around it. */
void user_put_code(struct user *u, unsigned at, const void *code, unsigned n);
/*
 * Registers of the next run; with fpu also the floating-point state, which
 * else stays where the engine has it.
 */
void user_set(struct user *u, const struct native *s, bool fpu);
/* To the next fault; false: the vCPU came out elsewhere (u->g.exit). */
bool user_run(struct user *u, struct native *s);

#endif /* GUEST_USER_H */
