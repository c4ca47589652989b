/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_model.h - what a disk may hold, and random requests to compare with it
 */
#ifndef MOCK_DISK_MODEL_H
#define MOCK_DISK_MODEL_H

#include "vm/block.h"

enum { SECTOR = 512, MAX_SECTORS = 8192, HISTORY = 24 };

/* The stamp at its start stands for a sector; 0 is zeros. */
struct sector {
	uint64_t may[HISTORY]; /* the last is the newest */
	unsigned n;
};

struct model {
	struct sector sector[MAX_SECTORS];
	uint64_t size, stamp;
	uint32_t random;
};

void model_init(struct model *m, uint64_t size, uint32_t seed);
/* newest: not only what may be after a power cut. */
void model_verify(struct model *m, struct block *b, bool newest);
/* One request, half of them by submit(); its error. */
int model_step(struct model *m, struct block *b);

#endif /* MOCK_DISK_MODEL_H */
