/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h - what a group of workloads offers the runner
 *
 * A workload is a function of n, its amount of work, that returns a value
 * which depends on all of it and is the same on every machine.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

struct workload {
	const char *name;
	uint64_t n;		   /* at scale 1: 0.05 to 0.5 s natively */
	void (*setup)(uint64_t n); /* not timed; may be NULL */
	uint64_t (*run)(uint64_t n);
};

/* Each ends with an entry without a name. */
extern const struct workload integer_group[], float_group[], app_group[],
	memory_group[], system_group[], code_group[];

/* Ends this workload: the runner reports the reason. */
_Noreturn void fail(const char *reason);

void *get_memory(size_t size);	       /* zeroed, page aligned; or fail() */
uint64_t next_random(uint64_t *state); /* xorshift64*; *state is never 0 */
uint64_t hash(uint64_t h, const void *data, size_t len); /* FNV-1a */

/* Keeps a value and everything it depends on. */
static inline void keep(uint64_t v)
{
	__asm__ volatile("" : : "r"(v) : "memory");
}

#endif
