/* SPDX-License-Identifier: Apache-2.0 */
/*
 * code.c - code that changes, code that is new, and more code than fits
 */
#include "bench.h"

#include <string.h>
#include <sys/mman.h>

typedef uint32_t (*function)(uint32_t);

/* A function x -> ((x + a) ^ b) * c as a just-in-time compiler emits it. */
enum { EMITTED = 16 };

static void emit(uint8_t *at, uint32_t a, uint32_t b, uint8_t c)
{
	static const uint8_t form[EMITTED] = {
		0x8d, 0x87, 0, 0, 0, 0, /* lea a(%rdi), %eax */
		0x35, 0,    0, 0, 0,	/* xor $b, %eax */
		0x6b, 0xc0, 0,		/* imul $c, %eax, %eax */
		0xc3, 0xcc,
	};

	memcpy(at, form, sizeof(form));
	memcpy(at + 2, &a, 4);
	memcpy(at + 7, &b, 4);
	at[13] = c;
}

static uint8_t *get_code(size_t size)
{
	uint8_t *p = get_memory(size);

	if (mprotect(p, size, PROT_READ | PROT_WRITE | PROT_EXEC))
		fail("no memory that is writable and executable");
	return p;
}

static uint32_t call(const uint8_t *at, uint32_t x)
{
	return ((function)(uintptr_t)at)(x);
}

/* One constant of one function is patched before each call. */
static uint64_t smc(uint64_t n)
{
	uint8_t *p = get_code(4096);
	uint32_t x = 1;

	emit(p, 0, 0x1234, 3);
	for (uint64_t i = 0; i < n; i++) {
		uint32_t a = (uint32_t)i;

		memcpy(p + 2, &a, 4);
		x = call(p, x);
	}
	return x;
}

/* New functions all the time, each called a few times, in a ring of 1 MiB. */
static uint64_t jit(uint64_t n)
{
	enum { RING = 1 << 20 };
	uint8_t *p = get_code(RING);
	size_t at = 0;
	uint32_t x = 1;

	for (uint64_t i = 0; i < n; i++) {
		emit(p + at, (uint32_t)i, x | 1, 5);
		for (int k = 0; k < 10; k++)
			x = call(p + at, x);
		at = (at + EMITTED) % RING;
	}
	return x;
}

/* A function whose data lie beside it: written often, never executed. */
static uint64_t code_data(uint64_t n)
{
	uint8_t *p = get_code(4096);
	volatile uint64_t *counter = (uint64_t *)(p + 2048);
	uint32_t x = 1;

	emit(p, 77, 0x777, 7);
	while (n--) {
		x = call(p, x);
		*counter += x;
	}
	return *counter;
}

/* Every function of a fresh mapping once: nothing is ever hot. */
static uint64_t cold(uint64_t n)
{
	enum { FUNCTIONS = 4096, SIZE = FUNCTIONS * EMITTED };
	uint32_t x = 1;

	while (n--) {
		uint8_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			fail("mmap failed");
		for (uint32_t i = 0; i < FUNCTIONS; i++)
			emit(p + i * EMITTED, i, (uint32_t)n, 9);
		if (mprotect(p, SIZE, PROT_READ | PROT_EXEC))
			fail("no executable memory");
		for (uint32_t i = 0; i < FUNCTIONS; i++)
			x = call(p + i * EMITTED, x);
		munmap(p, SIZE);
	}
	return x;
}

/* -- 1024 compiled functions, called in no order ------------------------- */

/* clang-format off */
#define F(i) \
	__attribute__((noinline)) static uint32_t f##i(uint32_t x) \
	{ \
		for (uint32_t k = (x & 3) + 1; k; k--) \
			x = (x << (1 + k % 7) | x >> (0x##i % 5 + 3)) + \
			    0x9e3779b9u * (0x##i + 1); \
		return x & 64 ? x ^ 0x##i##u : x + 0x##i##u * 3; \
	}
#define F16(i) \
	F(i##0) \
	F(i##1) \
	F(i##2) F(i##3) F(i##4) F(i##5) F(i##6) F(i##7) F(i##8) F(i##9) \
		F(i##a) F(i##b) F(i##c) F(i##d) F(i##e) F(i##f)
#define F256(i) \
	F16(i##0) \
	F16(i##1) \
	F16(i##2) F16(i##3) F16(i##4) F16(i##5) F16(i##6) F16(i##7) F16(i##8) \
		F16(i##9) F16(i##a) F16(i##b) F16(i##c) F16(i##d) F16(i##e) \
			F16(i##f)
#define A(i) f##i,
#define A16(i) \
	A(i##0) \
	A(i##1) \
	A(i##2) A(i##3) A(i##4) A(i##5) A(i##6) A(i##7) A(i##8) A(i##9) \
		A(i##a) A(i##b) A(i##c) A(i##d) A(i##e) A(i##f)
#define A256(i) \
	A16(i##0) \
	A16(i##1) \
	A16(i##2) A16(i##3) A16(i##4) A16(i##5) A16(i##6) A16(i##7) A16(i##8) \
		A16(i##9) A16(i##a) A16(i##b) A16(i##c) A16(i##d) A16(i##e) \
			A16(i##f)
F256(0) F256(1) F256(2) F256(3)

static const function compiled[] = { A256(0) A256(1) A256(2) A256(3) };
/* clang-format on */

static uint64_t many(uint64_t n)
{
	uint64_t seed = 3;
	uint32_t x = 1;

	while (n--)
		x = compiled[next_random(&seed) %
			     (sizeof(compiled) / sizeof(compiled[0]))](x);
	return x;
}

const struct workload code_group[] = {
	{ "code.smc", 60000, NULL, smc },
	{ "code.jit", 150000, NULL, jit },
	{ "code.codedata", 2000000, NULL, code_data },
	{ "code.cold", 40, NULL, cold },
	{ "code.many", 5000000, NULL, many },
	{ 0 },
};
