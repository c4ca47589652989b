/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c.c - the Castagnoli checksum, by the processor's instruction
 *
 * The instruction takes three cycles and one can begin in each, so long data
 * is done in three stretches at a time; a checksum is moved over the stretches
 * behind it by a product in GF(2) (the polynomials of RFC 3720, appendix B.4).
 */
#include "base/crc32c.h"

#include <stdbool.h>
#include <string.h>

#define POLY 0x82f63b78u /* bits reversed */

enum { STRETCH = 8192 };

static uint32_t slow(uint32_t crc, const uint8_t *p, size_t len)
{
	for (; len; len--) {
		crc ^= *p++;
		for (unsigned i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? POLY : 0);
	}
	return crc;
}

/* a times b, bit 31 being the constant term. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
	uint32_t p = 0;

	for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
		if (a & bit)
			p ^= b;
		b = b >> 1 ^ (b & 1 ? POLY : 0);
	}
	return p;
}

/* x to the power of 8 times this many bytes. */
static uint32_t power(size_t bytes)
{
	uint32_t result = 1u << 31, x = 1u << 23; /* 1, x^8 */

	for (; bytes; bytes >>= 1) {
		if (bytes & 1)
			result = multiply(result, x);
		x = multiply(x, x);
	}
	return result;
}

__attribute__((target("sse4.2"))) static uint64_t word(uint64_t crc,
						       const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return __builtin_ia32_crc32di(crc, v);
}

__attribute__((target("sse4.2"))) static uint32_t
fast(uint32_t crc, const uint8_t *p, size_t len)
{
	uint32_t over1 = 0, over2 = 0;

	if (len >= (size_t)3 * STRETCH) {
		over1 = power(STRETCH);
		over2 = power(2ul * STRETCH);
	}
	for (; over1 && len >= 3ul * STRETCH; len -= 3ul * STRETCH) {
		uint64_t a = crc, b = 0, c = 0;

		for (unsigned i = 0; i < STRETCH; i += 8) {
			a = word(a, p + i);
			b = word(b, p + STRETCH + i);
			c = word(c, p + (size_t)2 * STRETCH + i);
		}
		crc = multiply((uint32_t)a, over2) ^
		      multiply((uint32_t)b, over1) ^ (uint32_t)c;
		p += 3ul * STRETCH;
	}
	for (; len >= 8; len -= 8, p += 8)
		crc = (uint32_t)word(crc, p);
	for (; len; len--)
		crc = __builtin_ia32_crc32qi(crc, *p++);
	return crc;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	crc = ~crc;
	crc = __builtin_cpu_supports("sse4.2") ? fast(crc, data, len)
					       : slow(crc, data, len);
	return ~crc;
}
