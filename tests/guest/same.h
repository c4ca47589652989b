/* SPDX-License-Identifier: Apache-2.0 */
/*
 * same.h - two states of a vCPU, compared
 */
#ifndef GUEST_SAME_H
#define GUEST_SAME_H

#include <stdbool.h>
#include <stdint.h>

#include "husk/hv.h"

/*
 * Of RFLAGS only these bits; not what counts time, and what x87 and SSE keep
 * of the last instruction.  show: prints what differs.
 */
bool same_state(const struct hv_state *x, const struct hv_state *y,
		uint64_t flags, bool show);

#endif /* GUEST_SAME_H */
