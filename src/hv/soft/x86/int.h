/* SPDX-License-Identifier: Apache-2.0 */
/*
 * int.h - what the integer and the string instructions share
 */
#ifndef SOFT_INT_H
#define SOFT_INT_H

#include "hv/soft/x86/decode.h"

/* Operands in guest memory have any alignment. */
typedef uint8_t u1 __attribute__((may_alias));
typedef uint16_t u2 __attribute__((may_alias, aligned(1)));
typedef uint32_t u4 __attribute__((may_alias, aligned(1)));
typedef uint64_t u8 __attribute__((may_alias, aligned(1)));

/* f is AX after LAHF and SETO AL. */
static inline uint64_t merge_flags(uint64_t fl, unsigned f)
{
	return (fl & ~(uint64_t)FL_ARITH) | (f >> 8 & 0xd5) | (f & 1) << 11;
}

#define CMP_KERNEL(SZ, SFX) \
	static inline uint64_t cmp_flags##SZ(uint64_t fl, uint64_t a, \
					     uint64_t b) \
	{ \
		uint16_t f; \
\
		__asm__("cmp" SFX " %[b], %[a]\n\tlahf\n\tseto %%al" \
			: "=a"(f) \
			: [a] "r"((u##SZ)a), [b] "r"((u##SZ)b) \
			: "cc"); \
		return merge_flags(fl, f); \
	}
CMP_KERNEL(1, "b")
CMP_KERNEL(2, "w")
CMP_KERNEL(4, "l")
CMP_KERNEL(8, "q")

/* Flags after comparing a with b. */
static inline uint64_t cmp_flags(uint64_t fl, unsigned size, uint64_t a,
				 uint64_t b)
{
	switch (size) {
	case 1: return cmp_flags1(fl, a, b);
	case 2: return cmp_flags2(fl, a, b);
	case 4: return cmp_flags4(fl, a, b);
	default: return cmp_flags8(fl, a, b);
	}
}

/* sys.c: raises #GP when the I/O permission denies the port. */
void io_check(struct cpu *c, uint16_t port, unsigned size);

/* string.c */
insn_fn *bind_string(const struct decoded *d, struct insn *in);

#endif /* SOFT_INT_H */
