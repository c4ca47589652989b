/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pc.h - a whole machine that never runs, for fuzz targets to poke
 */
#ifndef FUZZ_PC_H
#define FUZZ_PC_H

#include "vm/machine.h"

/* The fuzzer's bytes; zeroes after their end. */
struct input {
	const uint8_t *p;
	size_t left;
};

static inline uint64_t take(struct input *in, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < n && in->left; i++, in->left--)
		v |= (uint64_t)*in->p++ << (8 * i);
	return v;
}

/* Every device there is, 4 MiB of RAM, engine soft. */
struct vm *pc_create(void);
/* One access that the input chooses: mostly at a device's registers. */
void pc_access(struct vm *vm, struct input *in);

#endif /* FUZZ_PC_H */
