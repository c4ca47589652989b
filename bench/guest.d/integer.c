/* SPDX-License-Identifier: Apache-2.0 */
/*
 * integer.c - integer workloads: loops, branches, calls and pointers
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

/* -- a mix as in small embedded programs ---------------------------------- */

struct item {
	struct item *next;
	int16_t key, value;
};

static uint16_t crc16(uint16_t crc, unsigned byte)
{
	for (int i = 0; i < 8; i++, byte >>= 1)
		crc = (uint16_t)((crc >> 1) ^
				 (((crc ^ byte) & 1) ? 0xa001 : 0));
	return crc;
}

static struct item *reverse(struct item *l)
{
	struct item *r = NULL;

	while (l) {
		struct item *next = l->next;

		l->next = r;
		r = l;
		l = next;
	}
	return r;
}

static struct item *merge_sort(struct item *l, unsigned n)
{
	struct item *a = l, *b, head, *tail = &head;
	unsigned half = n / 2, i;

	if (n < 2)
		return l;
	for (i = 1; i < half; i++)
		l = l->next;
	b = l->next;
	l->next = NULL;
	a = merge_sort(a, half);
	b = merge_sort(b, n - half);
	while (a && b) {
		struct item **p = a->key <= b->key ? &a : &b;

		tail->next = *p;
		tail = *p;
		*p = (*p)->next;
	}
	tail->next = a ? a : b;
	return head.next;
}

/* What kind of number starts at *p: none, integer, decimal or scientific. */
static unsigned scan(const char **p)
{
	enum { START, INT, FRAC, EXP } s = START;
	const char *c = *p;

	for (; *c && *c != ','; c++) {
		switch (s) {
		case START:
			if (*c >= '0' && *c <= '9')
				s = INT;
			else if (*c == '.')
				s = FRAC;
			break;
		case INT:
			if (*c == '.')
				s = FRAC;
			else if (*c == 'e')
				s = EXP;
			break;
		case FRAC:
			if (*c == 'e')
				s = EXP;
			break;
		case EXP: break;
		}
	}
	*p = *c ? c + 1 : c;
	return s;
}

static uint64_t coremix(uint64_t n)
{
	static const char text[] =
		"5012,1234,-874,+122,35.54400,.1234500,"
		"-110.700,+0.64400,5.500e+3,-.123e-2,"
		"-87e+832,+0.6e-12,T0.3e-1F,-T.T++Tq,1T3.4e4z";
	enum { ITEMS = 200, DIM = 16 };
	static struct item items[ITEMS];
	static int16_t a[DIM][DIM], b[DIM][DIM];
	uint64_t seed = 88172645463325252u;
	uint16_t crc = 0xffff;

	while (n--) {
		struct item *l = NULL;
		unsigned counts[4] = { 0 };
		const char *p = text;

		for (int i = 0; i < ITEMS; i++) {
			items[i].key = (int16_t)next_random(&seed);
			items[i].next = l;
			l = &items[i];
		}
		l = reverse(merge_sort(l, ITEMS));
		for (; l; l = l->next)
			crc = crc16(crc, (unsigned)l->key & 255);
		for (int i = 0; i < DIM * DIM; i++) {
			a[i / DIM][i % DIM] = (int16_t)(i + crc);
			b[i / DIM][i % DIM] = (int16_t)(i ^ crc);
		}
		for (int i = 0; i < DIM; i++) {
			for (int j = 0; j < DIM; j++) {
				int32_t sum = 0;

				for (int k = 0; k < DIM; k++)
					sum += a[i][k] * b[k][j];
				crc = crc16(crc, (unsigned)(sum >> 4) & 255);
			}
		}
		while (*p)
			counts[scan(&p)]++;
		for (int i = 0; i < 4; i++)
			crc = crc16(crc, counts[i]);
	}
	return crc;
}

/* -- an interpreter loop -------------------------------------------------- */

enum op { PUSH, ADD, SUB, MUL, AND, SHR, LOAD, STORE, JUMP, JZ, HALT };

/* Steps of the Collatz sequences of 1 to n: v0 starts, v1 counts, v2 runs. */
static uint64_t interp(uint64_t n)
{
	enum { LOOP = 4, EVEN = 37, END = 44 };
	static const uint8_t code[] = {
		LOAD,
		0,
		STORE,
		2,
		/* LOOP */
		LOAD,
		2,
		PUSH,
		1,
		SUB,
		JZ,
		END,
		LOAD,
		1,
		PUSH,
		1,
		ADD,
		STORE,
		1,
		LOAD,
		2,
		PUSH,
		1,
		AND,
		JZ,
		EVEN,
		LOAD,
		2,
		PUSH,
		3,
		MUL,
		PUSH,
		1,
		ADD,
		STORE,
		2,
		JUMP,
		LOOP,
		/* EVEN */
		LOAD,
		2,
		SHR,
		STORE,
		2,
		JUMP,
		LOOP,
		/* END */
		HALT,
	};
	static const void *const jump[] = {
		&&push, &&add,	 &&sub,	 &&mul, &&and,	&&shr,
		&&load, &&store, &&jump, &&jz,	&&halt,
	};
	uint64_t stack[16], var[4] = { 0 }, *sp;
	const uint8_t *pc;

	_Static_assert(sizeof(code) == END + 1, "the labels are wrong");
#define NEXT goto *jump[*pc++]
	for (var[0] = 1; var[0] <= n; var[0]++) {
		sp = stack;
		pc = code;
		NEXT;
	push:
		*sp++ = *pc++;
		NEXT;
	add:
		sp--;
		sp[-1] += *sp;
		NEXT;
	sub:
		sp--;
		sp[-1] -= *sp;
		NEXT;
	mul:
		sp--;
		sp[-1] *= *sp;
		NEXT;
		and : sp--;
		sp[-1] &= *sp;
		NEXT;
	shr:
		sp[-1] >>= 1;
		NEXT;
	load:
		*sp++ = var[*pc++];
		NEXT;
	store:
		var[*pc++] = *--sp;
		NEXT;
	jump:
		pc = code + *pc;
		NEXT;
	jz:
		pc = *--sp ? pc + 1 : code + *pc;
		NEXT;
	halt:;
	}
#undef NEXT
	return var[1];
}

/* -- pointers, calls, division -------------------------------------------- */

enum { RING = 1 << 18 }; /* cells of 8 bytes: 2 MiB */
static uint64_t *ring;

static void setup_chase(uint64_t n)
{
	uint64_t seed = 1234567;

	ring = get_memory(RING * sizeof(*ring));
	for (uint64_t i = 0; i < RING; i++)
		ring[i] = i;
	/* Sattolo: one cycle through all cells. */
	for (uint64_t i = RING - 1; i; i--) {
		uint64_t j = next_random(&seed) % i, t = ring[i];

		ring[i] = ring[j];
		ring[j] = t;
	}
}

static uint64_t chase(uint64_t n)
{
	uint64_t at = 0;

	while (n--)
		at = ring[at];
	return at;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t sort(uint64_t n)
{
	uint32_t *v = get_memory(n * sizeof(*v));
	uint64_t seed = 42;

	for (uint64_t i = 0; i < n; i++)
		v[i] = (uint32_t)next_random(&seed);
	qsort(v, n, sizeof(*v), by_value);
	return hash(0, v, n * sizeof(*v));
}

static uint64_t division(uint64_t n)
{
	uint64_t seed = 99, sum = 0;

	while (n--) {
		uint64_t a = next_random(&seed), b = (a >> 40) | 1;

		sum += a / b + a % (b + 2);
		sum += (uint64_t)((int32_t)a / (int32_t)b);
	}
	return sum;
}

__attribute__((noinline)) static uint64_t fib(uint64_t n)
{
	if (n < 2)
		return n;
	/* Keep the compiler from turning the recursion into a loop. */
	keep(n);
	return fib(n - 1) + fib(n - 2);
}

static uint64_t fibs(uint64_t n)
{
	uint64_t sum = 0;

	while (n--)
		sum += fib(20 + n % 4);
	return sum;
}

/* -- SHA-256 in plain C --------------------------------------------------- */

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t ror(uint32_t v, unsigned by)
{
	return v >> by | v << (32 - by);
}

static void sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++, p += 4)
		w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
		       (uint32_t)p[2] << 8 | p[3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		       (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^
			w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, h, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t t1 =
			s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) +
			((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_k[i] + w[i];
		uint32_t t2 = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) +
			      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

		memmove(s + 1, s, 7 * sizeof(*s));
		s[4] += t1;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

static uint64_t sha256(uint64_t n)
{
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
			  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	uint8_t block[64];

	for (unsigned i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i * 7);
	while (n--) {
		sha_block(h, block);
		block[n & 63] ^= (uint8_t)h[0];
	}
	return hash(0, h, sizeof(h));
}

const struct workload integer_group[] = {
	{ "int.coremix", 8000, NULL, coremix },
	{ "int.interp", 100000, NULL, interp },
	{ "int.chase", 20000000, setup_chase, chase },
	{ "int.qsort", 800000, NULL, sort },
	{ "int.div", 15000000, NULL, division },
	{ "int.fib", 2500, NULL, fibs },
	{ "int.sha256", 300000, NULL, sha256 },
	{ 0 },
};
