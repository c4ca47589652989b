/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c - copies, fills and strides
 */
#include "bench.h"

#include <string.h>

enum { SMALL = 16 << 10, LARGE = 48 << 20 };
static uint8_t *from, *to;

static void setup_small(uint64_t n)
{
	from = get_memory(SMALL);
	to = get_memory(SMALL);
	memset(from, 0x5a, SMALL);
}

static void setup_large(uint64_t n)
{
	from = get_memory(LARGE);
	to = get_memory(LARGE);
	memset(from, 0x5a, LARGE);
	memset(to, 1, LARGE);
}

static uint64_t ends(size_t size)
{
	return hash(hash(0, to, 64), to + size - 64, 64);
}

static uint64_t copy(uint64_t n, size_t size)
{
	for (uint64_t i = 0; i < n; i++) {
		from[i % 64] = (uint8_t)i;
		memcpy(to, from, size);
		keep((uint64_t)to);
	}
	return ends(size);
}

static uint64_t copy16k(uint64_t n)
{
	return copy(n, SMALL);
}

static uint64_t copy48m(uint64_t n)
{
	return copy(n, LARGE);
}

static uint64_t rep_movsb(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		void *d = to, *s = from;
		size_t len = SMALL;

		from[i % 64] = (uint8_t)i;
		__asm__ volatile("rep movsb"
				 : "+D"(d), "+S"(s), "+c"(len)
				 :
				 : "memory");
	}
	return ends(SMALL);
}

static uint64_t fill16k(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		memset(to, (int)i, SMALL);
		keep((uint64_t)to);
	}
	return ends(SMALL);
}

/* Lines of the cache 65 lines apart: every access meets another page. */
static uint64_t strided(uint64_t n)
{
	uint64_t at = 0, sum = 0;

	while (n--) {
		uint64_t *p = (uint64_t *)(to + at);

		sum += ++*p;
		at += 65 * 64;
		if (at >= LARGE)
			at -= LARGE - 64;
	}
	return sum;
}

static uint64_t random_update(uint64_t n)
{
	uint64_t seed = 5, sum = 0;

	while (n--) {
		uint64_t r = next_random(&seed);
		uint32_t *p = (uint32_t *)(to + (r % (LARGE / 4)) * 4);

		*p ^= (uint32_t)r;
		sum += *p;
	}
	return sum;
}

const struct workload memory_group[] = {
	{ "mem.copy16k", 400000, setup_small, copy16k },
	{ "mem.copy48m", 16, setup_large, copy48m },
	{ "mem.repmovsb", 400000, setup_small, rep_movsb },
	{ "mem.fill16k", 400000, setup_small, fill16k },
	{ "mem.strided", 10000000, setup_large, strided },
	{ "mem.random", 8000000, setup_large, random_update },
	{ 0 },
};
