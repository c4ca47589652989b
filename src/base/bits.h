/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bits.h - the few macros that C lacks
 */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stddef.h>
#include <stdint.h>

#define BIT(n)		 (1ull << (n))
#define ARRAY_SIZE(a)	 (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(v, a)	 (((v) + ((a)-1)) & ~(uint64_t)((a)-1))
#define ALIGN_DOWN(v, a) ((v) & ~(uint64_t)((a)-1))

#define MIN(a, b)	 ((a) < (b) ? (a) : (b))
#define MAX(a, b)	 ((a) > (b) ? (a) : (b))

#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#endif /* BASE_BITS_H */
