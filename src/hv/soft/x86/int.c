/* SPDX-License-Identifier: Apache-2.0 */
/*
 * int.c - integer instructions
 *
 * Arithmetic runs as the host's own instruction, so that flags (the undefined
 * ones too) are what the host would give.  The frequent instructions have a
 * handler for each operand size and form; the rest look at struct insn.
 */
#include <sched.h>
#include <sys/random.h>

#include "hv/soft/x86/int.h"

/* PAUSEs before the host thread gives its CPU away. */
enum { PAUSES = 32 };

/* -- operands ------------------------------------------------------------- */

static inline uint64_t size_mask(unsigned size)
{
	return size == 8 ? UINT64_MAX : (1ull << size * 8) - 1;
}

static inline uint64_t sign_extend(uint64_t v, unsigned size)
{
	unsigned shift = 64 - size * 8;

	return (uint64_t)((int64_t)(v << shift) >> shift);
}

static inline uint64_t load(struct cpu *c, const struct insn *in, unsigned size)
{
	return ld_size(c, in->seg, ea_linear(c, in, size, false), size);
}

static inline void store(struct cpu *c, const struct insn *in, unsigned size,
			 uint64_t v)
{
	st_size(c, in->seg, ea_linear(c, in, size, true), size, v);
}

/* The only operand of INC, NOT, MUL, JMP...: memory or reg. */
static inline uint64_t get_first(struct cpu *c, const struct insn *in,
				 unsigned size)
{
	if (in->flags & IN_MEM)
		return load(c, in, size);
	return get_reg(c, in->reg, size);
}

/* The source of a two-operand instruction that writes a register. */
static inline uint64_t get_second(struct cpu *c, const struct insn *in,
				  unsigned size)
{
	if (in->flags & IN_MEM)
		return load(c, in, size);
	return get_reg(c, in->rm, size);
}

static inline uint64_t peek(const void *p, unsigned size)
{
	switch (size) {
	case 1: return *(const u1 *)p;
	case 2: return *(const u2 *)p;
	case 4: return *(const u4 *)p;
	default: return *(const u8 *)p;
	}
}

static inline void poke(void *p, unsigned size, uint64_t v)
{
	switch (size) {
	case 1: *(u1 *)p = (uint8_t)v; break;
	case 2: *(u2 *)p = (uint16_t)v; break;
	case 4: *(u4 *)p = (uint32_t)v; break;
	default: *(u8 *)p = v;
	}
}

static inline bool poke_if(void *p, unsigned size, uint64_t *old, uint64_t v)
{
	bool ok;

#define CMPXCHG(T, S) \
	do { \
		T a = (T)*old; \
		__asm__ volatile("lock cmpxchg" S " %[v], %[m]" \
				 : [m] "+m"(*(T *)p), "+a"(a), "=@ccz"(ok) \
				 : [v] "r"((T)v) \
				 : "memory"); \
		*old = a; \
	} while (0)
	switch (size) {
	case 1: CMPXCHG(u1, "b"); break;
	case 2: CMPXCHG(u2, "w"); break;
	case 4: CMPXCHG(u4, "l"); break;
	default: CMPXCHG(u8, "q");
	}
#undef CMPXCHG
	return ok;
}

/*
 * Memory that is read, changed and written, for the less frequent.  begin()
 * gives the old value; commit() stores the new one and returns false when
 * another vCPU was faster: begin again.
 */
struct rmw {
	uint64_t lin, old;
	void *p;
	unsigned size;
	bool lock, stopped;
};

static void rmw_begin(struct cpu *c, const struct insn *in, struct rmw *m,
		      uint64_t lin, unsigned size, bool lock)
{
	m->lin = lin;
	m->size = size;
	m->lock = lock;
	m->stopped = false;
	m->p = mem_rmw(c, in->seg, lin, size);
	if (m->p) {
		m->old = peek(m->p, size);
		return;
	}
	if (lock) {
		mem_check(c, in->seg, lin, size, true);
		world_stop(c->vm, c);
		m->stopped = true;
	}
	m->old = ld_size(c, in->seg, lin, size);
}

static bool rmw_commit(struct cpu *c, const struct insn *in, struct rmw *m,
		       uint64_t v)
{
	if (m->p && m->lock)
		return poke_if(m->p, m->size, &m->old, v);
	if (m->p) {
		poke(m->p, m->size, v);
		return true;
	}
	st_size(c, in->seg, m->lin, m->size, v);
	if (m->stopped)
		world_start(c->vm, c);
	return true;
}

/* -- ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT ----------------- */

#define SETS_CF "btq $0, %[fl]\n\t"

#define KERNEL(name, pre, insn, SZ) \
	static inline u##SZ name##SZ(uint64_t *fl, u##SZ a, u##SZ b) \
	{ \
		uint16_t f; \
\
		__asm__(pre insn "\n\tlahf\n\tseto %%al" \
			: [a] "+r"(a), "=a"(f) \
			: [b] "r"(b), [fl] "r"(*fl) \
			: "cc"); \
		*fl = merge_flags(*fl, f); \
		return a; \
	}

#define LOCKED(name, pre, insn, SZ) \
	static inline void name##_lock##SZ(uint64_t *fl, u##SZ *p, u##SZ b) \
	{ \
		uint16_t f; \
\
		__asm__ volatile(pre "lock " insn "\n\tlahf\n\tseto %%al" \
				 : [a] "+m"(*p), "=a"(f) \
				 : [b] "r"(b), [fl] "r"(*fl) \
				 : "cc", "memory"); \
		*fl = merge_flags(*fl, f); \
	}

#define READING_FORMS(name, SZ, SET) \
	static void name##_rr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v; \
\
		v = name##SZ(&fl, (u##SZ)get_reg(c, in->reg, SZ), \
			     (u##SZ)get_reg(c, in->rm, SZ)); \
		SET; \
		c->rflags = fl; \
	} \
	static void name##_ri##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v; \
\
		v = name##SZ(&fl, (u##SZ)get_reg(c, in->reg, SZ), \
			     (u##SZ)in->imm); \
		SET; \
		c->rflags = fl; \
	} \
	static void name##_rm##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v = load(c, in, SZ); \
\
		v = name##SZ(&fl, (u##SZ)get_reg(c, in->reg, SZ), (u##SZ)v); \
		SET; \
		c->rflags = fl; \
	}

#define WRITING_FORMS(name, SZ) \
	static void name##_rmw##SZ(struct cpu *c, const struct insn *in, \
				   u##SZ b) \
	{ \
		uint64_t fl = c->rflags, lin = ea_linear(c, in, SZ, true); \
		u##SZ *p = mem_rmw(c, in->seg, lin, SZ), v; \
\
		if (likely(p)) { \
			*p = name##SZ(&fl, *p, b); \
		} else { \
			v = (u##SZ)ld_size(c, in->seg, lin, SZ); \
			v = name##SZ(&fl, v, b); \
			st_size(c, in->seg, lin, SZ, v); \
		} \
		c->rflags = fl; \
	} \
	static void name##_lrmw##SZ(struct cpu *c, const struct insn *in, \
				    u##SZ b) \
	{ \
		uint64_t fl = c->rflags, lin = ea_linear(c, in, SZ, true); \
		u##SZ *p = mem_rmw(c, in->seg, lin, SZ), v; \
\
		if (likely(p)) { \
			name##_lock##SZ(&fl, p, b); \
		} else { \
			mem_check(c, in->seg, lin, SZ, true); \
			world_stop(c->vm, c); \
			v = (u##SZ)ld_size(c, in->seg, lin, SZ); \
			v = name##SZ(&fl, v, b); \
			st_size(c, in->seg, lin, SZ, v); \
			world_start(c->vm, c); \
		} \
		c->rflags = fl; \
	} \
	static void name##_mr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_rmw##SZ(c, in, (u##SZ)get_reg(c, in->reg, SZ)); \
	} \
	static void name##_mi##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_rmw##SZ(c, in, (u##SZ)in->imm); \
	} \
	static void name##_lmr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_lrmw##SZ(c, in, (u##SZ)get_reg(c, in->reg, SZ)); \
	} \
	static void name##_lmi##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_lrmw##SZ(c, in, (u##SZ)in->imm); \
	}

#define COMPARING_FORMS(name, SZ) \
	static void name##_mr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v = load(c, in, SZ); \
\
		name##SZ(&fl, (u##SZ)v, (u##SZ)get_reg(c, in->reg, SZ)); \
		c->rflags = fl; \
	} \
	static void name##_mi##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v = load(c, in, SZ); \
\
		name##SZ(&fl, (u##SZ)v, (u##SZ)in->imm); \
		c->rflags = fl; \
	}

enum form { RR, RI, RM, MR, MI, LMR, LMI, FORMS, NO_FORM = FORMS };

struct forms {
	insn_fn *fn[FORMS][4];
};

#define BY_SIZE(name, form) \
	{ \
		name##_##form##1, name##_##form##2, name##_##form##4, \
			name##_##form##8 \
	}

#define ALU1(name, pre, insn, SZ) \
	KERNEL(name, pre, insn, SZ) \
	LOCKED(name, pre, insn, SZ) \
	READING_FORMS(name, SZ, set_reg(c, in->reg, SZ, v)) \
	WRITING_FORMS(name, SZ)
#define ALU(name, pre, op, src) \
	ALU1(name, pre, op "b " src "%[a]", 1) \
	ALU1(name, pre, op "w " src "%[a]", 2) \
	ALU1(name, pre, op "l " src "%[a]", 4) \
	ALU1(name, pre, op "q " src "%[a]", 8) \
	static const struct forms name##_forms = { \
		{ [RR] = BY_SIZE(name, rr), \
		  [RI] = BY_SIZE(name, ri), \
		  [RM] = BY_SIZE(name, rm), \
		  [MR] = BY_SIZE(name, mr), \
		  [MI] = BY_SIZE(name, mi), \
		  [LMR] = BY_SIZE(name, lmr), \
		  [LMI] = BY_SIZE(name, lmi) } \
	};
#define COMPARE1(name, insn, SZ) \
	KERNEL(name, "", insn, SZ) \
	READING_FORMS(name, SZ, (void)v) \
	COMPARING_FORMS(name, SZ)
#define COMPARE(name, op) \
	COMPARE1(name, op "b %[b], %[a]", 1) \
	COMPARE1(name, op "w %[b], %[a]", 2) \
	COMPARE1(name, op "l %[b], %[a]", 4) \
	COMPARE1(name, op "q %[b], %[a]", 8) \
	static const struct forms name##_forms = { { [RR] = BY_SIZE(name, rr), \
						     [RI] = BY_SIZE(name, ri), \
						     [RM] = BY_SIZE(name, rm), \
						     [MR] = BY_SIZE(name, mr), \
						     [MI] = BY_SIZE(name, \
								    mi) } };

ALU(add, "", "add", "%[b], ")
ALU(or, "", "or", "%[b], ")
ALU(adc, SETS_CF, "adc", "%[b], ")
ALU(sbb, SETS_CF, "sbb", "%[b], ")
ALU(and, "", "and", "%[b], ")
ALU(sub, "", "sub", "%[b], ")
ALU(xor, "", "xor", "%[b], ")
COMPARE(cmp, "cmp")
COMPARE(test, "test")
/* One operand: the forms RI and MI, whose b is not looked at. */
ALU(inc, SETS_CF, "inc", "")
ALU(dec, SETS_CF, "dec", "")
ALU(neg, "", "neg", "")

static void op_not(struct cpu *c, const struct insn *in)
{
	struct rmw m;

	if (!(in->flags & IN_MEM)) {
		set_reg(c, in->reg, in->opsize,
			~get_reg(c, in->reg, in->opsize));
		return;
	}
	rmw_begin(c, in, &m, ea_linear(c, in, in->opsize, true), in->opsize,
		  in->flags & IN_LOCK);
	while (!rmw_commit(c, in, &m, ~m.old))
		;
}

/* -- MOV, MOVZX, MOVSX, LEA ----------------------------------------------- */

#define MOV(SZ) \
	static void mov_rr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, SZ, get_reg(c, in->rm, SZ)); \
	} \
	static void mov_ri##SZ(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, SZ, in->imm); \
	} \
	static void mov_rm##SZ(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, SZ, load(c, in, SZ)); \
	} \
	static void mov_mr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		store(c, in, SZ, get_reg(c, in->reg, SZ)); \
	} \
	static void mov_mi##SZ(struct cpu *c, const struct insn *in) \
	{ \
		store(c, in, SZ, in->imm); \
	} \
	static void lea_rm##SZ(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, SZ, ea_offset(c, in)); \
	}
MOV(1)
MOV(2)
MOV(4)
MOV(8)

static const struct forms mov_forms = { { [RR] = BY_SIZE(mov, rr),
					  [RI] = BY_SIZE(mov, ri),
					  [RM] = BY_SIZE(mov, rm),
					  [MR] = BY_SIZE(mov, mr),
					  [MI] = BY_SIZE(mov, mi) } };
static const struct forms lea_forms = { { [RM] = BY_SIZE(lea, rm) } };

#define EXTEND(SRC, DST) \
	static void movzx_rr##SRC##DST(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, DST, get_reg(c, in->rm, SRC)); \
	} \
	static void movzx_rm##SRC##DST(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, DST, load(c, in, SRC)); \
	} \
	static void movsx_rr##SRC##DST(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, DST, \
			sign_extend(get_reg(c, in->rm, SRC), SRC)); \
	} \
	static void movsx_rm##SRC##DST(struct cpu *c, const struct insn *in) \
	{ \
		set_reg(c, in->reg, DST, sign_extend(load(c, in, SRC), SRC)); \
	}
EXTEND(1, 2)
EXTEND(1, 4)
EXTEND(1, 8)
EXTEND(2, 2)
EXTEND(2, 4)
EXTEND(2, 8)
EXTEND(4, 2)
EXTEND(4, 4)
EXTEND(4, 8)

/* [signed][memory][source 1 2 4][destination 2 4 8] */
#define EXTENDS(kind) \
	{ \
		{ kind##12, kind##14, kind##18 }, \
			{ kind##22, kind##24, kind##28 }, \
		{ \
			kind##42, kind##44, kind##48 \
		} \
	}
static insn_fn *const extend_fn[2][2][3][3] = {
	{ EXTENDS(movzx_rr), EXTENDS(movzx_rm) },
	{ EXTENDS(movsx_rr), EXTENDS(movsx_rm) },
};

static void op_bswap(struct cpu *c, const struct insn *in)
{
	uint64_t v = c->gpr[in->reg];

	if (in->opsize == 8)
		c->gpr[in->reg] = __builtin_bswap64(v);
	else if (in->opsize == 4)
		c->gpr[in->reg] = __builtin_bswap32((uint32_t)v);
	else /* undefined; this is what processors do */
		set_reg(c, in->reg, 2, 0);
}

static uint64_t swap_bytes(uint64_t v, unsigned size)
{
	return __builtin_bswap64(v) >> (64 - size * 8);
}

static void op_movbe_load(struct cpu *c, const struct insn *in)
{
	set_reg(c, in->reg, in->opsize,
		swap_bytes(load(c, in, in->opsize), in->opsize));
}

static void op_movbe_store(struct cpu *c, const struct insn *in)
{
	store(c, in, in->opsize,
	      swap_bytes(get_reg(c, in->reg, in->opsize), in->opsize));
}

/* -- conditions ----------------------------------------------------------- */

/* Where a near branch ends up; #GP when it may not. */
static inline uint64_t branch_target(struct cpu *c, unsigned opsize, uint64_t t)
{
	if (likely(c->mode == MODE_64)) {
		if (unlikely(!canonical(t)))
			x86_gp(c, 0);
		return t;
	}
	t &= opsize == 2 ? 0xffff : 0xffffffff;
	if (t > c->seg[SEG_CS].limit)
		x86_gp(c, 0);
	return t;
}

static inline void jump_rel(struct cpu *c, const struct insn *in)
{
	c->gpr[R_NEXT] = branch_target(c, in->opsize, c->gpr[R_NEXT] + in->imm);
}

#define CC_CMOV(cc, SZ, test) \
	static void cmov##cc##_rr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
		uint64_t v = get_reg(c, test ? in->rm : in->reg, SZ); \
\
		set_reg(c, in->reg, SZ, v); \
	} \
	static void cmov##cc##_rm##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags, v = load(c, in, SZ); \
\
		set_reg(c, in->reg, SZ, test ? v : get_reg(c, in->reg, SZ)); \
	}
#define CC(cc, test) \
	static void jump_##cc(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
\
		if (test) \
			jump_rel(c, in); \
	} \
	static void set##cc##_r(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
\
		*r8(c, in->reg) = !!(test); \
	} \
	static void set##cc##_m(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
\
		store(c, in, 1, !!(test)); \
	} \
	CC_CMOV(cc, 2, (test)) \
	CC_CMOV(cc, 4, (test)) \
	CC_CMOV(cc, 8, (test))

CC(o, fl &FL_OF)
CC(no, !(fl & FL_OF))
CC(b, fl &FL_CF)
CC(nb, !(fl & FL_CF))
CC(z, fl &FL_ZF)
CC(nz, !(fl & FL_ZF))
CC(be, fl &(FL_CF | FL_ZF))
CC(nbe, !(fl & (FL_CF | FL_ZF)))
CC(s, fl &FL_SF)
CC(ns, !(fl & FL_SF))
CC(p, fl &FL_PF)
CC(np, !(fl & FL_PF))
CC(l, (fl >> 7 ^ fl >> 11) & 1)
CC(nl, !((fl >> 7 ^ fl >> 11) & 1))
CC(le, (fl & FL_ZF) || ((fl >> 7 ^ fl >> 11) & 1))
CC(nle, !(fl & FL_ZF) && !((fl >> 7 ^ fl >> 11) & 1))

struct cc_ops {
	ZydisMnemonic j, set, cmov;
	insn_fn *jump, *set_r, *set_m, *cmov_r[3], *cmov_m[3];
};

#define CC_OPS(up, cc) \
	{ \
		ZYDIS_MNEMONIC_J##up, ZYDIS_MNEMONIC_SET##up, \
			ZYDIS_MNEMONIC_CMOV##up, jump_##cc, set##cc##_r, \
			set##cc##_m, \
			{ cmov##cc##_rr2, cmov##cc##_rr4, cmov##cc##_rr8 }, \
		{ \
			cmov##cc##_rm2, cmov##cc##_rm4, cmov##cc##_rm8 \
		} \
	}
static const struct cc_ops cc_ops[] = {
	CC_OPS(O, o), CC_OPS(NO, no), CC_OPS(B, b),   CC_OPS(NB, nb),
	CC_OPS(Z, z), CC_OPS(NZ, nz), CC_OPS(BE, be), CC_OPS(NBE, nbe),
	CC_OPS(S, s), CC_OPS(NS, ns), CC_OPS(P, p),   CC_OPS(NP, np),
	CC_OPS(L, l), CC_OPS(NL, nl), CC_OPS(LE, le), CC_OPS(NLE, nle),
};

/* -- stack ---------------------------------------------------------------- */

static inline uint64_t stack_mask(unsigned width)
{
	return width == 8 ? UINT64_MAX : width == 4 ? UINT32_MAX : UINT16_MAX;
}

static inline void set_sp(struct cpu *c, unsigned width, uint64_t sp)
{
	set_reg(c, R_RSP, width, sp);
}

static inline void push(struct cpu *c, unsigned size, uint64_t v)
{
	unsigned width = stack_size(c);
	uint64_t sp = (c->gpr[R_RSP] - size) & stack_mask(width);

	st_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size, v);
	set_sp(c, width, sp);
}

/* What is at the top; the pointer stays. */
static inline uint64_t top(struct cpu *c, unsigned size)
{
	uint64_t sp = c->gpr[R_RSP] & stack_mask(stack_size(c));

	return ld_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, false), size);
}

static inline void drop(struct cpu *c, uint64_t n)
{
	set_sp(c, stack_size(c), c->gpr[R_RSP] + n);
}

#define STACK(SZ) \
	static void push_r##SZ(struct cpu *c, const struct insn *in) \
	{ \
		push(c, SZ, get_reg(c, in->reg, SZ)); \
	} \
	static void push_i##SZ(struct cpu *c, const struct insn *in) \
	{ \
		push(c, SZ, in->imm); \
	} \
	static void push_m##SZ(struct cpu *c, const struct insn *in) \
	{ \
		push(c, SZ, load(c, in, SZ)); \
	} \
	static void pop_r##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t v = top(c, SZ); \
\
		drop(c, SZ); \
		set_reg(c, in->reg, SZ, v); \
	} \
	static void pop_m##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t v = top(c, SZ), old = c->gpr[R_RSP], off; \
\
		/* The address is computed with the pointer after the pop. */ \
		drop(c, SZ); \
		off = ea_offset(c, in); \
		c->gpr[R_RSP] = old; \
		st_size(c, in->seg, seg_linear(c, in->seg, off, SZ, true), SZ, \
			v); \
		drop(c, SZ); \
	}
STACK(2)
STACK(4)
STACK(8)

static void op_pusha(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize, width = stack_size(c);
	uint64_t sp = c->gpr[R_RSP];

	for (unsigned i = 0; i < 8; i++) {
		sp = (sp - size) & stack_mask(width);
		st_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size,
			c->gpr[i]);
	}
	set_sp(c, width, sp);
}

static void op_popa(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize, width = stack_size(c);
	uint64_t sp = c->gpr[R_RSP], v[8];

	for (unsigned i = 0; i < 8; i++) {
		sp &= stack_mask(width);
		v[i] = ld_size(c, SEG_SS,
			       seg_linear(c, SEG_SS, sp, size, false), size);
		sp += size;
	}
	for (unsigned i = 0; i < 8; i++)
		if (7 - i != R_RSP)
			set_reg(c, 7 - i, size, v[i]);
	set_sp(c, width, sp);
}

static void op_enter(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize, width = stack_size(c);
	unsigned level = in->imm2 & 31;
	uint64_t mask = stack_mask(width), sp = (c->gpr[R_RSP] - size) & mask;
	uint64_t frame = sp, bp = c->gpr[R_RBP], v;

	st_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size, bp);
	for (unsigned i = 1; i < level; i++) {
		bp = (bp - size) & mask;
		v = ld_size(c, SEG_SS, seg_linear(c, SEG_SS, bp, size, false),
			    size);
		sp = (sp - size) & mask;
		st_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size,
			v);
	}
	if (level) {
		sp = (sp - size) & mask;
		st_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size,
			frame);
	}
	sp = (sp - (uint16_t)in->imm) & mask;
	mem_check(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, true), size, true);
	set_reg(c, R_RBP, size, frame);
	set_sp(c, width, sp);
}

static void op_leave(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize, width = stack_size(c);
	uint64_t sp = c->gpr[R_RBP] & stack_mask(width), v;

	v = ld_size(c, SEG_SS, seg_linear(c, SEG_SS, sp, size, false), size);
	set_sp(c, width, sp + size);
	set_reg(c, R_RBP, size, v);
}

/* -- near branches -------------------------------------------------------- */

static void op_jmp_rel(struct cpu *c, const struct insn *in)
{
	jump_rel(c, in);
}

static void op_jmp(struct cpu *c, const struct insn *in)
{
	c->gpr[R_NEXT] =
		branch_target(c, in->opsize, get_first(c, in, in->opsize));
}

static void op_call_rel(struct cpu *c, const struct insn *in)
{
	uint64_t next = c->gpr[R_NEXT];
	uint64_t t = branch_target(c, in->opsize, next + in->imm);

	push(c, in->opsize, next);
	c->gpr[R_NEXT] = t;
}

static void op_call(struct cpu *c, const struct insn *in)
{
	uint64_t next = c->gpr[R_NEXT];
	uint64_t t = branch_target(c, in->opsize, get_first(c, in, in->opsize));

	push(c, in->opsize, next);
	c->gpr[R_NEXT] = t;
}

static void op_ret(struct cpu *c, const struct insn *in)
{
	uint64_t t = branch_target(c, in->opsize, top(c, in->opsize));

	/* imm is 0 without an operand */
	drop(c, in->opsize + (uint16_t)in->imm);
	c->gpr[R_NEXT] = t;
}

static void op_jcxz(struct cpu *c, const struct insn *in)
{
	if (!get_reg(c, R_RCX, in->adsize))
		jump_rel(c, in);
}

static void op_loop(struct cpu *c, const struct insn *in)
{
	uint64_t n = get_reg(c, R_RCX, in->adsize) - 1;
	bool go = n & size_mask(in->adsize);

	if (in->mnemonic == ZYDIS_MNEMONIC_LOOPE)
		go = go && c->rflags & FL_ZF;
	if (in->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
		go = go && !(c->rflags & FL_ZF);
	if (go)
		jump_rel(c, in);
	set_reg(c, R_RCX, in->adsize, n);
}

/* -- shifts --------------------------------------------------------------- */

#define SHIFT1(name, pre, op, SZ, SFX, FLAGS) \
	static inline u##SZ name##SZ(uint64_t *fl, u##SZ a, uint8_t n) \
	{ \
		uint16_t f; \
\
		if (!n) \
			return a; \
		__asm__(pre op SFX " %%cl, %[a]\n\tlahf\n\tseto %%al" \
			: [a] "+r"(a), "=&a"(f) \
			: "c"(n), [fl] "r"(*fl) \
			: "cc"); \
		*fl = (*fl & ~(uint64_t)(FLAGS)) | \
		      (merge_flags(0, f) & (FLAGS)); \
		return a; \
	} \
	static inline void name##_m##SZ(struct cpu *c, const struct insn *in, \
					uint8_t n) \
	{ \
		uint64_t fl = c->rflags, lin = ea_linear(c, in, SZ, true); \
		u##SZ *p = mem_rmw(c, in->seg, lin, SZ), v; \
\
		if (likely(p)) { \
			*p = name##SZ(&fl, *p, n); \
		} else { \
			v = (u##SZ)ld_size(c, in->seg, lin, SZ); \
			st_size(c, in->seg, lin, SZ, name##SZ(&fl, v, n)); \
		} \
		c->rflags = fl; \
	} \
	static void name##_ri##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
\
		set_reg(c, in->reg, SZ, \
			name##SZ(&fl, (u##SZ)get_reg(c, in->reg, SZ), \
				 in->imm &(SZ == 8 ? 63 : 31))); \
		c->rflags = fl; \
	} \
	static void name##_rr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t fl = c->rflags; \
\
		set_reg(c, in->reg, SZ, \
			name##SZ(&fl, (u##SZ)get_reg(c, in->reg, SZ), \
				 c->gpr[R_RCX] & (SZ == 8 ? 63 : 31))); \
		c->rflags = fl; \
	} \
	static void name##_mi##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_m##SZ(c, in, in->imm &(SZ == 8 ? 63 : 31)); \
	} \
	static void name##_mr##SZ(struct cpu *c, const struct insn *in) \
	{ \
		name##_m##SZ(c, in, c->gpr[R_RCX] & (SZ == 8 ? 63 : 31)); \
	}
#define SHIFT(name, pre, FLAGS) \
	SHIFT1(name, pre, #name, 1, "b", FLAGS) \
	SHIFT1(name, pre, #name, 2, "w", FLAGS) \
	SHIFT1(name, pre, #name, 4, "l", FLAGS) \
	SHIFT1(name, pre, #name, 8, "q", FLAGS) \
	static const struct forms name##_forms = { { [RR] = BY_SIZE(name, rr), \
						     [RI] = BY_SIZE(name, ri), \
						     [MR] = BY_SIZE(name, mr), \
						     [MI] = BY_SIZE(name, \
								    mi) } };

SHIFT(shl, "", FL_ARITH)
SHIFT(shr, "", FL_ARITH)
SHIFT(sar, "", FL_ARITH)
SHIFT(rol, "", FL_CF | FL_OF)
SHIFT(ror, "", FL_CF | FL_OF)
SHIFT(rcl, SETS_CF, FL_CF | FL_OF)
SHIFT(rcr, SETS_CF, FL_CF | FL_OF)

#define DOUBLE_SHIFT1(name, SZ, SFX) \
	static uint64_t name##SZ(uint64_t *fl, uint64_t d, uint64_t s, \
				 uint8_t n) \
	{ \
		u##SZ a = (u##SZ)d; \
		uint16_t f; \
\
		__asm__(#name SFX " %%cl, %[b], %[a]\n\tlahf\n\tseto %%al" \
			: [a] "+r"(a), "=&a"(f) \
			: [b] "r"((u##SZ)s), "c"(n) \
			: "cc"); \
		*fl = merge_flags(*fl, f); \
		return a; \
	}
#define DOUBLE_SHIFT(name) \
	DOUBLE_SHIFT1(name, 2, "w") \
	DOUBLE_SHIFT1(name, 4, "l") \
	DOUBLE_SHIFT1(name, 8, "q") \
	static uint64_t name(uint64_t *fl, unsigned size, uint64_t a, \
			     uint64_t b, uint8_t n) \
	{ \
		if (!n) \
			return a; \
		if (size == 2) \
			return name##2(fl, a, b, n); \
		return size == 4 ? name##4(fl, a, b, n) \
				 : name##8(fl, a, b, n); \
	}
DOUBLE_SHIFT(shld)
DOUBLE_SHIFT(shrd)

/* Operands: destination, source, count. aux: the count is an immediate. */
static void double_shift(struct cpu *c, const struct insn *in,
			 uint64_t (*fn)(uint64_t *, unsigned, uint64_t,
					uint64_t, uint8_t))
{
	unsigned size = in->opsize;
	uint64_t n = in->aux ? in->imm : c->gpr[R_RCX], fl = c->rflags;
	uint8_t count = n & (size == 8 ? 63 : 31);
	struct rmw m;

	if (in->flags & IN_MEM) {
		rmw_begin(c, in, &m, ea_linear(c, in, size, true), size, false);
		rmw_commit(c, in, &m,
			   fn(&fl, size, m.old, get_reg(c, in->reg, size),
			      count));
	} else {
		set_reg(c, in->reg, size,
			fn(&fl, size, get_reg(c, in->reg, size),
			   get_reg(c, in->rm, size), count));
	}
	c->rflags = fl;
}

static void op_shld(struct cpu *c, const struct insn *in)
{
	double_shift(c, in, shld);
}

static void op_shrd(struct cpu *c, const struct insn *in)
{
	double_shift(c, in, shrd);
}

/* -- bits ----------------------------------------------------------------- */

static inline void set_flag(struct cpu *c, uint64_t flag, bool on)
{
	c->rflags = on ? c->rflags | flag : c->rflags & ~flag;
}

static uint64_t change_bit(uint16_t mnemonic, uint64_t v, uint64_t bit)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_BTS: return v | bit;
	case ZYDIS_MNEMONIC_BTR: return v & ~bit;
	case ZYDIS_MNEMONIC_BTC: return v ^ bit;
	default: return v;
	}
}

/* aux: the bit number is an immediate. */
static void op_bit_reg(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	uint64_t n = in->aux ? in->imm : c->gpr[in->rm];
	uint64_t bit = 1ull << (n & (size * 8 - 1));
	uint64_t v = get_reg(c, in->reg, size);

	if (in->mnemonic != ZYDIS_MNEMONIC_BT)
		set_reg(c, in->reg, size, change_bit(in->mnemonic, v, bit));
	set_flag(c, FL_CF, v & bit);
}

static void op_bit_mem(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	bool write = in->mnemonic != ZYDIS_MNEMONIC_BT, was;
	uint64_t off = ea_offset(c, in), bit, lin;
	struct rmw m;
	int64_t n;

	if (in->aux) {
		bit = in->imm;
	} else {
		/* A register may point beyond the operand, both ways. */
		n = (int64_t)sign_extend(c->gpr[in->reg], size);
		bit = (uint64_t)n;
		off += (uint64_t)(n >> (size == 8   ? 6
					: size == 4 ? 5
						    : 4)) *
		       size;
		off &= size_mask(in->adsize);
	}
	bit = 1ull << (bit & (size * 8 - 1));
	lin = seg_linear(c, in->seg, off, size, write);
	if (!write) {
		was = ld_size(c, in->seg, lin, size) & bit;
	} else {
		rmw_begin(c, in, &m, lin, size, in->flags & IN_LOCK);
		do
			was = m.old & bit;
		while (!rmw_commit(c, in, &m,
				   change_bit(in->mnemonic, m.old, bit)));
	}
	set_flag(c, FL_CF, was);
}

#define BIT_SCAN(name) \
	static void op_##name(struct cpu *c, const struct insn *in) \
	{ \
		uint64_t v = get_second(c, in, in->opsize), r = 0; \
		uint64_t f; \
\
		__asm__("sahf\n\t" #name "q %[v], %[r]\n\tlahf\n\tseto %%al" \
			: [r] "+r"(r), "=&a"(f) \
			: [v] "r"(v), "1"(c->rflags << 8) \
			: "cc"); \
		c->rflags = merge_flags(c->rflags, f & 0xffff); \
		if (v) /* else the destination stays as it is */ \
			set_reg(c, in->reg, in->opsize, r); \
	}
BIT_SCAN(bsf)
BIT_SCAN(bsr)

static void set_zc(struct cpu *c, bool z, bool cf)
{
	set_flag(c, FL_ZF, z);
	set_flag(c, FL_CF, cf);
}

static void op_tzcnt(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize);
	unsigned r = v ? (unsigned)__builtin_ctzll(v) : in->opsize * 8u;

	set_reg(c, in->reg, in->opsize, r);
	set_zc(c, !r, !v);
}

static void op_lzcnt(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize);
	unsigned bits = in->opsize * 8u, r = bits;

	if (v)
		r = (unsigned)__builtin_clzll(v) - (64 - bits);
	set_reg(c, in->reg, in->opsize, r);
	set_zc(c, !r, !v);
}

static void op_popcnt(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize);

	set_reg(c, in->reg, in->opsize, (uint64_t)__builtin_popcountll(v));
	c->rflags = (c->rflags & ~(uint64_t)FL_ARITH) | (v ? 0 : FL_ZF);
}

/* memsize: of the source, for registers too. */
static void op_crc32(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->memsize);
	uint64_t crc = (uint32_t)c->gpr[in->reg];
	uint32_t crc4 = (uint32_t)crc;

	switch (in->memsize) {
	case 1: __asm__("crc32b %1, %0" : "+r"(crc4) : "r"((uint8_t)v)); break;
	case 2: __asm__("crc32w %1, %0" : "+r"(crc4) : "r"((uint16_t)v)); break;
	case 4: __asm__("crc32l %1, %0" : "+r"(crc4) : "r"((uint32_t)v)); break;
	default:
		__asm__("crc32q %1, %0" : "+r"(crc) : "r"(v));
		crc4 = (uint32_t)crc;
	}
	c->gpr[in->reg] = crc4;
}

/* -- BMI1, BMI2, ADX ------------------------------------------------------ */

/* ZF and SF of r, and CF; OF is cleared. */
static void set_bmi(struct cpu *c, unsigned size, uint64_t r, bool cf)
{
	r &= size_mask(size);
	c->rflags &= ~(uint64_t)(FL_OF | FL_SF | FL_ZF | FL_CF);
	c->rflags |= (r ? 0 : FL_ZF) | (r >> (size * 8 - 1) ? FL_SF : 0) |
		     (cf ? FL_CF : 0);
}

/* r, r/m, r: the control of BEXTR, BZHI and shifts comes last. */
static void source_control(struct cpu *c, const struct insn *in, uint64_t *v,
			   uint64_t *control)
{
	if (in->flags & IN_MEM) {
		*v = load(c, in, in->opsize);
		*control = get_reg(c, in->rm, in->opsize);
	} else {
		*v = get_reg(c, in->rm, in->opsize);
		*control = get_reg(c, in->imm2, in->opsize);
	}
}

/* r, r, r/m */
static void two_sources(struct cpu *c, const struct insn *in, uint64_t *a,
			uint64_t *b)
{
	*b = in->flags & IN_MEM ? load(c, in, in->opsize)
				: get_reg(c, in->imm2, in->opsize);
	*a = get_reg(c, in->rm, in->opsize);
}

static void op_andn(struct cpu *c, const struct insn *in)
{
	uint64_t a, b;

	two_sources(c, in, &a, &b);
	b &= ~a;
	set_reg(c, in->reg, in->opsize, b);
	set_bmi(c, in->opsize, b, false);
}

static void op_bls(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize), r;
	bool cf = !v;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_BLSI:
		r = v & -v;
		cf = v;
		break;
	case ZYDIS_MNEMONIC_BLSMSK: r = v ^ (v - 1); break;
	default: r = v & (v - 1);
	}
	set_reg(c, in->reg, in->opsize, r);
	set_bmi(c, in->opsize, r, cf);
}

static void op_bextr(struct cpu *c, const struct insn *in)
{
	uint64_t v, control;
	unsigned start, len;

	source_control(c, in, &v, &control);
	start = control & 0xff;
	len = control >> 8 & 0xff;
	v = start < 64 ? v >> start : 0;
	if (len < 64)
		v &= (1ull << len) - 1;
	set_reg(c, in->reg, in->opsize, v);
	set_bmi(c, in->opsize, v, false);
	set_flag(c, FL_SF, false);
}

static void op_bzhi(struct cpu *c, const struct insn *in)
{
	unsigned bits = in->opsize * 8u, n;
	uint64_t v, control;

	source_control(c, in, &v, &control);
	n = control & 0xff;
	if (n < bits)
		v &= (1ull << n) - 1;
	set_reg(c, in->reg, in->opsize, v);
	set_bmi(c, in->opsize, v, n >= bits);
}

static void op_shiftx(struct cpu *c, const struct insn *in)
{
	uint64_t v, n;

	source_control(c, in, &v, &n);
	n &= in->opsize * 8u - 1;
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_SHLX: v <<= n; break;
	case ZYDIS_MNEMONIC_SHRX: v >>= n; break;
	default: v = (uint64_t)((int64_t)sign_extend(v, in->opsize) >> n);
	}
	set_reg(c, in->reg, in->opsize, v);
}

static void op_rorx(struct cpu *c, const struct insn *in)
{
	unsigned bits = in->opsize * 8u, n = in->imm & (bits - 1);
	uint64_t v = get_second(c, in, in->opsize);

	if (n)
		v = v >> n | v << (bits - n);
	set_reg(c, in->reg, in->opsize, v);
}

static void op_mulx(struct cpu *c, const struct insn *in)
{
	uint64_t v = in->flags & IN_MEM ? load(c, in, in->opsize)
					: get_reg(c, in->imm2, in->opsize);
	unsigned __int128 r =
		(unsigned __int128)v * get_reg(c, R_RDX, in->opsize);

	/* The same register twice holds the high half. */
	set_reg(c, in->rm, in->opsize, (uint64_t)r);
	set_reg(c, in->reg, in->opsize, (uint64_t)(r >> in->opsize * 8));
}

static void op_pdep(struct cpu *c, const struct insn *in)
{
	uint64_t v, mask, r = 0;

	two_sources(c, in, &v, &mask);
	for (; mask; mask &= mask - 1, v >>= 1)
		if (v & 1)
			r |= mask & -mask;
	set_reg(c, in->reg, in->opsize, r);
}

static void op_pext(struct cpu *c, const struct insn *in)
{
	uint64_t v, mask, r = 0, bit = 1;

	two_sources(c, in, &v, &mask);
	for (; mask; mask &= mask - 1, bit <<= 1)
		if (v & mask & -mask)
			r |= bit;
	set_reg(c, in->reg, in->opsize, r);
}

static void op_adx(struct cpu *c, const struct insn *in)
{
	uint64_t flag = in->mnemonic == ZYDIS_MNEMONIC_ADCX ? FL_CF : FL_OF;
	unsigned __int128 r = get_second(c, in, in->opsize);

	r += get_reg(c, in->reg, in->opsize);
	r += !!(c->rflags & flag);
	set_reg(c, in->reg, in->opsize, (uint64_t)r);
	set_flag(c, flag, r >> in->opsize * 8);
}

/* -- multiplication and division ------------------------------------------ */

struct product {
	uint64_t lo, hi;
	unsigned f;
};

#define MULTIPLY(name, SZ, SFX) \
	static struct product name##_wide##SZ(uint64_t fl, uint64_t x, \
					      uint64_t y) { \
		u##SZ lo, hi; \
		uint64_t f; \
\
		/* Flags live in AH, where an operand is too: one at a time. */ \
		__asm__("sahf\n\tmovq %[x], %%rax\n\t" #name SFX " %[y]\n\t" \
			"movq %%rax, %%rcx\n\tlahf\n\tseto %%al" \
			: "=&a"(f), "=&d"(hi), "=&c"(lo) \
			: "0"(fl << 8), [x] "r"(x), [y] "r"((u##SZ)y) \
			: "cc"); \
		return (struct product){ lo, hi, f & 0xffff }; \
	}
MULTIPLY(mul, 2, "w")
MULTIPLY(mul, 4, "l")
MULTIPLY(mul, 8, "q")
MULTIPLY(imul, 2, "w")
MULTIPLY(imul, 4, "l")
MULTIPLY(imul, 8, "q")

#define MULTIPLY1(name) \
	static struct product name##_wide1(uint64_t fl, uint64_t x, \
					   uint64_t y) \
	{ \
		uint64_t f, r; \
\
		__asm__("sahf\n\tmovq %[x], %%rax\n\t" #name "b %[y]\n\t" \
			"movq %%rax, %%rcx\n\tlahf\n\tseto %%al" \
			: "=&a"(f), "=&c"(r) \
			: "0"(fl << 8), [x] "r"(x), [y] "r"((uint8_t)y) \
			: "cc"); \
		return (struct product){ r & 0xff, r >> 8 & 0xff, \
					 f & 0xffff }; \
	} \
	static struct product name##_wide(unsigned size, uint64_t fl, \
					  uint64_t x, uint64_t y) \
	{ \
		switch (size) { \
		case 1: return name##_wide1(fl, x, y); \
		case 2: return name##_wide2(fl, x, y); \
		case 4: return name##_wide4(fl, x, y); \
		default: return name##_wide8(fl, x, y); \
		} \
	}
MULTIPLY1(mul)
MULTIPLY1(imul)

static void multiply(struct cpu *c, const struct insn *in,
		     struct product (*fn)(unsigned, uint64_t, uint64_t,
					  uint64_t))
{
	uint64_t v = get_first(c, in, in->opsize);
	struct product r = fn(in->opsize, c->rflags, c->gpr[R_RAX], v);

	if (in->opsize == 1) {
		set_reg(c, R_RAX, 2, r.hi << 8 | r.lo);
	} else {
		set_reg(c, R_RAX, in->opsize, r.lo);
		set_reg(c, R_RDX, in->opsize, r.hi);
	}
	c->rflags = merge_flags(c->rflags, r.f);
}

static void op_mul(struct cpu *c, const struct insn *in)
{
	multiply(c, in, mul_wide);
}

static void op_imul(struct cpu *c, const struct insn *in)
{
	multiply(c, in, imul_wide);
}

static void op_imul2(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize);
	struct product r = imul_wide(in->opsize, c->rflags,
				     get_reg(c, in->reg, in->opsize), v);

	set_reg(c, in->reg, in->opsize, r.lo);
	c->rflags = merge_flags(c->rflags, r.f);
}

static void op_imul3(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_second(c, in, in->opsize);
	struct product r = imul_wide(in->opsize, c->rflags, v, in->imm);

	set_reg(c, in->reg, in->opsize, r.lo);
	c->rflags = merge_flags(c->rflags, r.f);
}

/* hi:lo of the dividend. */
static void dividend(struct cpu *c, unsigned size, uint64_t *hi, uint64_t *lo)
{
	if (size == 1) {
		*hi = c->gpr[R_RAX] >> 8 & 0xff;
		*lo = c->gpr[R_RAX] & 0xff;
	} else {
		*hi = get_reg(c, R_RDX, size);
		*lo = get_reg(c, R_RAX, size);
	}
}

static void set_quotient(struct cpu *c, unsigned size, uint64_t q, uint64_t r)
{
	if (size == 1) {
		set_reg(c, R_RAX, 2, (r & 0xff) << 8 | (q & 0xff));
	} else {
		set_reg(c, R_RAX, size, q);
		set_reg(c, R_RDX, size, r);
	}
}

static void op_div(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	uint64_t b = get_first(c, in, size), hi, lo, q, r, n;

	dividend(c, size, &hi, &lo);
	/* Also true for b = 0: the quotient would not fit. */
	if (hi >= b)
		x86_fault_noerr(c, VEC_DE);
	if (size == 8) {
		__asm__("divq %[b]"
			: "=a"(q), "=d"(r)
			: "a"(lo), "d"(hi), [b] "r"(b)
			: "cc");
	} else {
		n = hi << size * 8 | lo;
		q = n / b;
		r = n % b;
	}
	set_quotient(c, size, q, r);
}

static void op_idiv(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	int64_t b = (int64_t)sign_extend(get_first(c, in, size), size);
	uint64_t hi, lo;
	__int128 n, q;

	dividend(c, size, &hi, &lo);
	if (!b)
		x86_fault_noerr(c, VEC_DE);
	if (size == 8) {
		n = (__int128)((unsigned __int128)hi << 64 | lo);
	} else if (size == 4) {
		n = (int64_t)(hi << 32 | lo);
	} else {
		n = (int64_t)sign_extend(hi << size * 8 | lo, size * 2);
	}
	/* The one that overflows __int128 itself. */
	if (b == -1 && n <= INT64_MIN)
		x86_fault_noerr(c, VEC_DE);
	if (n == (int64_t)n)
		q = (int64_t)n / b;
	else
		q = n / b;
	if (q != (__int128)(int64_t)sign_extend((uint64_t)q, size))
		x86_fault_noerr(c, VEC_DE);
	set_quotient(c, size, (uint64_t)q, (uint64_t)(n - q * b));
}

static void op_convert(struct cpu *c, const struct insn *in)
{
	uint64_t a = c->gpr[R_RAX];

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_CBW: set_reg(c, R_RAX, 2, sign_extend(a, 1)); break;
	case ZYDIS_MNEMONIC_CWDE:
		set_reg(c, R_RAX, 4, sign_extend(a, 2));
		break;
	case ZYDIS_MNEMONIC_CDQE: c->gpr[R_RAX] = sign_extend(a, 4); break;
	case ZYDIS_MNEMONIC_CWD:
		set_reg(c, R_RDX, 2, (uint64_t)((int16_t)a >> 15));
		break;
	case ZYDIS_MNEMONIC_CDQ:
		set_reg(c, R_RDX, 4, (uint64_t)((int32_t)a >> 31));
		break;
	default: c->gpr[R_RDX] = (uint64_t)((int64_t)a >> 63);
	}
}

/* -- decimal arithmetic --------------------------------------------------- */

/* ZF, SF and PF of an 8-bit result. */
static void set_szp(struct cpu *c, uint8_t v)
{
	set_flag(c, FL_ZF, !v);
	set_flag(c, FL_SF, v & 0x80);
	set_flag(c, FL_PF, !__builtin_parity(v));
}

static void op_daa_das(struct cpu *c, const struct insn *in)
{
	bool sub = in->mnemonic == ZYDIS_MNEMONIC_DAS;
	uint8_t al = (uint8_t)c->gpr[R_RAX], r = al;
	bool cf = c->rflags & FL_CF, af = false, out = false;

	if ((al & 15) > 9 || c->rflags & FL_AF) {
		r = (uint8_t)(sub ? r - 6 : r + 6);
		out = cf || (sub ? al < 6 : al > 0xf9);
		af = true;
	}
	if (al > 0x99 || cf) {
		r = (uint8_t)(sub ? r - 0x60 : r + 0x60);
		out = true;
	}
	set_reg(c, R_RAX, 1, r);
	set_szp(c, r);
	set_flag(c, FL_AF, af);
	set_flag(c, FL_CF, out);
}

static void op_aaa_aas(struct cpu *c, const struct insn *in)
{
	uint16_t ax = (uint16_t)c->gpr[R_RAX];
	bool adjust = (ax & 15) > 9 || c->rflags & FL_AF;

	if (adjust && in->mnemonic == ZYDIS_MNEMONIC_AAA)
		ax = (uint16_t)(ax + 0x106);
	else if (adjust)
		ax = (uint16_t)(ax - 0x106);
	set_reg(c, R_RAX, 2, ax & 0xff0f);
	set_szp(c, ax & 15);
	set_flag(c, FL_AF, adjust);
	set_flag(c, FL_CF, adjust);
}

static void op_aam(struct cpu *c, const struct insn *in)
{
	uint8_t al = (uint8_t)c->gpr[R_RAX], base = (uint8_t)in->imm;

	if (!base)
		x86_fault_noerr(c, VEC_DE);
	set_reg(c, R_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
	set_szp(c, al % base);
}

static void op_aad(struct cpu *c, const struct insn *in)
{
	uint64_t ax = c->gpr[R_RAX];
	uint8_t al = (uint8_t)(ax + (ax >> 8 & 0xff) * (uint8_t)in->imm);

	set_reg(c, R_RAX, 2, al);
	set_szp(c, al);
}

/* -- exchange ------------------------------------------------------------- */

static void op_xchg_rr(struct cpu *c, const struct insn *in)
{
	uint64_t a = get_reg(c, in->reg, in->opsize);
	uint64_t b = get_reg(c, in->rm, in->opsize);

	set_reg(c, in->reg, in->opsize, b);
	set_reg(c, in->rm, in->opsize, a);
}

/* Locked, whether it says so or not. */
static void op_xchg_m(struct cpu *c, const struct insn *in)
{
	uint64_t v = get_reg(c, in->reg, in->opsize);
	struct rmw m;

	rmw_begin(c, in, &m, ea_linear(c, in, in->opsize, true), in->opsize,
		  true);
	while (!rmw_commit(c, in, &m, v))
		;
	set_reg(c, in->reg, in->opsize, m.old);
}

static uint64_t add_any(uint64_t *fl, unsigned size, uint64_t a, uint64_t b)
{
	switch (size) {
	case 1: return add1(fl, (u1)a, (u1)b);
	case 2: return add2(fl, (u2)a, (u2)b);
	case 4: return add4(fl, (u4)a, (u4)b);
	default: return add8(fl, a, b);
	}
}

static void op_xadd(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	uint64_t fl = c->rflags, b, sum;
	struct rmw m;

	if (!(in->flags & IN_MEM)) {
		m.old = get_reg(c, in->reg, size);
		b = get_reg(c, in->rm, size);
		sum = add_any(&fl, size, m.old, b);
		set_reg(c, in->rm, size, m.old);
		set_reg(c, in->reg, size, sum);
		c->rflags = fl;
		return;
	}
	b = get_reg(c, in->reg, size);
	rmw_begin(c, in, &m, ea_linear(c, in, size, true), size,
		  in->flags & IN_LOCK);
	do
		sum = add_any(&fl, size, m.old, b);
	while (!rmw_commit(c, in, &m, sum));
	set_reg(c, in->reg, size, m.old);
	c->rflags = fl;
}

static void op_cmpxchg(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	uint64_t want = get_reg(c, R_RAX, size), v;
	struct rmw m;

	if (!(in->flags & IN_MEM)) {
		m.old = get_reg(c, in->reg, size);
		v = get_reg(c, in->rm, size);
		if (m.old == want)
			set_reg(c, in->reg, size, v);
	} else {
		v = get_reg(c, in->reg, size);
		rmw_begin(c, in, &m, ea_linear(c, in, size, true), size,
			  in->flags & IN_LOCK);
		/* A failed comparison writes what it has read. */
		if (m.p && m.lock) {
			m.old = want;
			poke_if(m.p, size, &m.old, v);
		} else {
			rmw_commit(c, in, &m, m.old == want ? v : m.old);
		}
	}
	c->rflags = cmp_flags(c->rflags, size, want, m.old);
	if (m.old != want)
		set_reg(c, R_RAX, size, m.old);
}

static void op_cmpxchg8b(struct cpu *c, const struct insn *in)
{
	uint64_t want = (uint32_t)c->gpr[R_RAX] | c->gpr[R_RDX] << 32;
	uint64_t v = (uint32_t)c->gpr[R_RBX] | c->gpr[R_RCX] << 32;
	struct rmw m;
	bool same;

	rmw_begin(c, in, &m, ea_linear(c, in, 8, true), 8, in->flags & IN_LOCK);
	if (m.p && m.lock) {
		m.old = want;
		poke_if(m.p, 8, &m.old, v);
	} else {
		rmw_commit(c, in, &m, m.old == want ? v : m.old);
	}
	same = m.old == want;
	set_flag(c, FL_ZF, same);
	if (!same) {
		c->gpr[R_RAX] = (uint32_t)m.old;
		c->gpr[R_RDX] = m.old >> 32;
	}
}

static void op_cmpxchg16b(struct cpu *c, const struct insn *in)
{
	uint64_t lin = ea_linear(c, in, 16, true), old[2];
	uint64_t want[2] = { c->gpr[R_RAX], c->gpr[R_RDX] };
	uint64_t v[2] = { c->gpr[R_RBX], c->gpr[R_RCX] };
	bool lock = in->flags & IN_LOCK, same;
	void *p;

	if (lin & 15)
		x86_gp(c, 0);
	p = mem_rmw(c, in->seg, lin, 16);
	if (p) {
		old[0] = want[0];
		old[1] = want[1];
		__asm__ volatile("lock cmpxchg16b %[m]"
				 : [m] "+m"(*(__int128 *)p), "+a"(old[0]),
				   "+d"(old[1]), "=@ccz"(same)
				 : "b"(v[0]), "c"(v[1])
				 : "memory");
	} else {
		if (lock) {
			mem_check(c, in->seg, lin, 16, true);
			world_stop(c->vm, c);
		}
		mem_read(c, in->seg, lin, old, 16);
		same = old[0] == want[0] && old[1] == want[1];
		mem_write(c, in->seg, lin, same ? v : old, 16);
		if (lock)
			world_start(c->vm, c);
	}
	set_flag(c, FL_ZF, same);
	if (!same) {
		c->gpr[R_RAX] = old[0];
		c->gpr[R_RDX] = old[1];
	}
}

/* -- the rest ------------------------------------------------------------- */

static void op_lahf(struct cpu *c, const struct insn *in)
{
	*r8(c, 16) = (uint8_t)((c->rflags & 0xd5) | 2);
}

static void op_sahf(struct cpu *c, const struct insn *in)
{
	c->rflags = (c->rflags & ~0xd5ull) | (*r8(c, 16) & 0xd5);
}

static void op_flag(struct cpu *c, const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_CLC: set_flag(c, FL_CF, false); break;
	case ZYDIS_MNEMONIC_STC: set_flag(c, FL_CF, true); break;
	case ZYDIS_MNEMONIC_CMC: c->rflags ^= FL_CF; break;
	case ZYDIS_MNEMONIC_CLD: set_flag(c, FL_DF, false); break;
	default: set_flag(c, FL_DF, true);
	}
}

static void op_nop(struct cpu *c, const struct insn *in)
{
}

static void op_pause(struct cpu *c, const struct insn *in)
{
	static _Thread_local unsigned n;

	if (++n % PAUSES == 0)
		sched_yield();
}

static void op_fence(struct cpu *c, const struct insn *in)
{
	atomic_thread_fence(memory_order_seq_cst);
}

/* Nothing to flush, but the address must be readable. */
static void op_clflush(struct cpu *c, const struct insn *in)
{
	mem_check(c, in->seg, ea_linear(c, in, 1, false), 1, false);
}

/* The whole cache line around [rAX]. */
static void op_clzero(struct cpu *c, const struct insn *in)
{
	static const uint8_t zero[64];
	uint64_t off = c->gpr[R_RAX] & size_mask(in->adsize) & ~63ull;

	mem_write(c, in->seg, seg_linear(c, in->seg, off, 64, true), zero, 64);
}

static void op_xlat(struct cpu *c, const struct insn *in)
{
	uint64_t off = (c->gpr[R_RBX] + (uint8_t)c->gpr[R_RAX]) &
		       size_mask(in->adsize);
	uint64_t lin = seg_linear(c, in->seg, off, 1, false);

	set_reg(c, R_RAX, 1, ld8(c, in->seg, lin));
}

static void op_salc(struct cpu *c, const struct insn *in)
{
	set_reg(c, R_RAX, 1, c->rflags & FL_CF ? 0xff : 0);
}

static void op_bound(struct cpu *c, const struct insn *in)
{
	unsigned size = in->opsize;
	uint64_t lin = ea_linear(c, in, size * 2, false);
	int64_t v = (int64_t)sign_extend(c->gpr[in->reg], size);
	int64_t low, high;

	low = (int64_t)sign_extend(ld_size(c, in->seg, lin, size), size);
	high = (int64_t)sign_extend(ld_size(c, in->seg, lin + size, size),
				    size);
	if (v < low || v > high)
		x86_fault_noerr(c, VEC_BR);
}

static void op_rdrand(struct cpu *c, const struct insn *in)
{
	uint64_t v = 0;
	bool ok = getrandom(&v, sizeof(v), GRND_NONBLOCK) == sizeof(v);

	set_reg(c, in->reg, in->opsize, ok ? v : 0);
	c->rflags = (c->rflags & ~(uint64_t)FL_ARITH) | (ok ? FL_CF : 0);
}

/* -- binding -------------------------------------------------------------- */

static bool is_reg(const struct operand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static bool is_mem(const struct operand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static bool is_imm(const struct operand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/* Vector, segment, control registers and masks belong to other binders. */
static bool only_general(const struct decoded *d)
{
	for (unsigned i = 0; i < d->i.operand_count_visible; i++)
		if (is_reg(&d->op[i]) && !is_gpr_op(&d->op[i]))
			return false;
	return true;
}

static enum form form_of(const struct decoded *d)
{
	const struct operand *a = &d->op[0], *b = &d->op[1];
	bool lock = d->i.attributes & ZYDIS_ATTRIB_HAS_LOCK;

	if (d->i.operand_count_visible == 1) /* INC DEC NEG: see there */
		return is_reg(a) ? RI : lock ? LMI : MI;
	if (is_reg(a))
		return is_reg(b) ? RR : is_mem(b) ? RM : RI;
	if (is_mem(a) && is_reg(b))
		return lock ? LMR : MR;
	if (is_mem(a) && is_imm(b))
		return lock ? LMI : MI;
	return NO_FORM;
}

static unsigned size_index(unsigned size)
{
	return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

static insn_fn *bind_forms(const struct decoded *d, const struct insn *in,
			   const struct forms *f)
{
	enum form form = form_of(d);

	return form == NO_FORM ? NULL : f->fn[form][size_index(in->opsize)];
}

/* SHL r/m by 1, imm or CL, the count's register being known. */
static insn_fn *bind_shift(const struct decoded *d, const struct insn *in,
			   const struct forms *f)
{
	bool cl = is_reg(&d->op[1]);
	enum form form = is_reg(&d->op[0]) ? (cl ? RR : RI) : (cl ? MR : MI);

	return f->fn[form][size_index(in->opsize)];
}

static insn_fn *bind_extend(const struct decoded *d, const struct insn *in,
			    bool sign)
{
	unsigned src = size_index(d->op[1].size / 8);
	unsigned dst = size_index(in->opsize);

	if (src > 2 || !dst)
		return NULL;
	return extend_fn[sign][is_mem(&d->op[1])][src][dst - 1];
}

static insn_fn *bind_stack(const struct decoded *d, struct insn *in)
{
	static insn_fn *const fn[5][3] = {
		{ push_r2, push_r4, push_r8 }, { push_i2, push_i4, push_i8 },
		{ push_m2, push_m4, push_m8 }, { pop_r2, pop_r4, pop_r8 },
		{ pop_m2, pop_m4, pop_m8 },
	};
	bool pop = d->i.mnemonic == ZYDIS_MNEMONIC_POP;
	unsigned kind = is_reg(&d->op[0]) ? 0 : is_imm(&d->op[0]) ? 1 : 2;

	if (pop)
		kind = kind ? 4 : 3;
	in->opsize = d->i.operand_width / 8;
	if (in->opsize < 2)
		return NULL;
	return fn[kind][size_index(in->opsize) - 1];
}

static insn_fn *bind_cc(const struct decoded *d, const struct insn *in)
{
	bool mem = in->flags & IN_MEM;
	unsigned size = size_index(in->opsize);

	for (unsigned i = 0; i < ARRAY_SIZE(cc_ops); i++) {
		const struct cc_ops *o = &cc_ops[i];

		if (d->i.mnemonic == o->j)
			return o->jump;
		if (d->i.mnemonic == o->set)
			return mem ? o->set_m : o->set_r;
		if (d->i.mnemonic == o->cmov && size)
			return mem ? o->cmov_m[size - 1] : o->cmov_r[size - 1];
	}
	return NULL;
}

static insn_fn *bind_branch(const struct decoded *d, struct insn *in)
{
	if (d->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return NULL;
	in->opsize = d->i.operand_width / 8;
	if (d->mode == MODE_64)
		in->opsize = 8;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_JMP: return is_imm(&d->op[0]) ? op_jmp_rel : op_jmp;
	case ZYDIS_MNEMONIC_CALL:
		return is_imm(&d->op[0]) ? op_call_rel : op_call;
	default: return op_ret;
	}
}

static insn_fn *bind_misc(const struct decoded *d, struct insn *in)
{
	bool mem = in->flags & IN_MEM;

	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_NOT: return op_not;
	case ZYDIS_MNEMONIC_BSWAP: return op_bswap;
	case ZYDIS_MNEMONIC_MOVBE:
		return is_mem(&d->op[0]) ? op_movbe_store : op_movbe_load;
	case ZYDIS_MNEMONIC_MOVNTI: return bind_forms(d, in, &mov_forms);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		in->opsize = d->i.mnemonic == ZYDIS_MNEMONIC_PUSHA ? 2 : 4;
		return op_pusha;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		in->opsize = d->i.mnemonic == ZYDIS_MNEMONIC_POPA ? 2 : 4;
		return op_popa;
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
		in->opsize = d->i.operand_width / 8;
		return d->i.mnemonic == ZYDIS_MNEMONIC_ENTER ? op_enter
							     : op_leave;
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		in->opsize = d->i.operand_width / 8;
		return op_jcxz;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
		in->opsize = d->i.operand_width / 8;
		return op_loop;
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		in->aux = is_imm(&d->op[2]) ? "imm" : NULL;
		return d->i.mnemonic == ZYDIS_MNEMONIC_SHLD ? op_shld : op_shrd;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		in->aux = is_imm(&d->op[1]) ? "imm" : NULL;
		return mem ? op_bit_mem : op_bit_reg;
	case ZYDIS_MNEMONIC_BSF: return op_bsf;
	case ZYDIS_MNEMONIC_BSR: return op_bsr;
	case ZYDIS_MNEMONIC_TZCNT: return op_tzcnt;
	case ZYDIS_MNEMONIC_LZCNT: return op_lzcnt;
	case ZYDIS_MNEMONIC_POPCNT: return op_popcnt;
	case ZYDIS_MNEMONIC_CRC32:
		in->memsize = (uint8_t)(d->op[1].size / 8);
		return op_crc32;
	case ZYDIS_MNEMONIC_ANDN: return op_andn;
	case ZYDIS_MNEMONIC_BLSI:
	case ZYDIS_MNEMONIC_BLSMSK:
	case ZYDIS_MNEMONIC_BLSR: return op_bls;
	case ZYDIS_MNEMONIC_BEXTR: return op_bextr;
	case ZYDIS_MNEMONIC_BZHI: return op_bzhi;
	case ZYDIS_MNEMONIC_SARX:
	case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_SHRX: return op_shiftx;
	case ZYDIS_MNEMONIC_RORX: return op_rorx;
	case ZYDIS_MNEMONIC_MULX: return op_mulx;
	case ZYDIS_MNEMONIC_PDEP: return op_pdep;
	case ZYDIS_MNEMONIC_PEXT: return op_pext;
	case ZYDIS_MNEMONIC_ADCX:
	case ZYDIS_MNEMONIC_ADOX: return op_adx;
	case ZYDIS_MNEMONIC_MUL: return op_mul;
	case ZYDIS_MNEMONIC_IMUL:
		if (is_imm(&d->op[2]) && d->i.operand_count_visible == 3)
			return op_imul3;
		return d->i.operand_count_visible == 2 ? op_imul2 : op_imul;
	case ZYDIS_MNEMONIC_DIV: return op_div;
	case ZYDIS_MNEMONIC_IDIV: return op_idiv;
	case ZYDIS_MNEMONIC_CBW:
	case ZYDIS_MNEMONIC_CWDE:
	case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD:
	case ZYDIS_MNEMONIC_CDQ:
	case ZYDIS_MNEMONIC_CQO: return op_convert;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS: return op_daa_das;
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS: return op_aaa_aas;
	case ZYDIS_MNEMONIC_AAM: return op_aam;
	case ZYDIS_MNEMONIC_AAD: return op_aad;
	case ZYDIS_MNEMONIC_XCHG: return mem ? op_xchg_m : op_xchg_rr;
	case ZYDIS_MNEMONIC_XADD: return op_xadd;
	case ZYDIS_MNEMONIC_CMPXCHG: return op_cmpxchg;
	case ZYDIS_MNEMONIC_CMPXCHG8B: return op_cmpxchg8b;
	case ZYDIS_MNEMONIC_CMPXCHG16B: return op_cmpxchg16b;
	case ZYDIS_MNEMONIC_LAHF: return op_lahf;
	case ZYDIS_MNEMONIC_SAHF: return op_sahf;
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC:
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD: return op_flag;
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_CLDEMOTE:
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
	/* Without shadow stacks these read nothing. */
	case ZYDIS_MNEMONIC_RDSSPD:
	case ZYDIS_MNEMONIC_RDSSPQ: return op_nop;
	case ZYDIS_MNEMONIC_PAUSE:
		if (!(d->i.attributes & ZYDIS_ATTRIB_HAS_REX) ||
		    !d->i.raw.rex.B)
			return op_pause;
		/* With R8 it is the exchange that 0x90 stands for. */
		in->reg = R_RAX;
		in->rm = 8;
		in->opsize = d->i.raw.rex.W ? 8
			     : d->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE
				     ? 2
				     : 4;
		return op_xchg_rr;
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE: return op_fence;
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB: return op_clflush;
	case ZYDIS_MNEMONIC_CLZERO:
	case ZYDIS_MNEMONIC_XLAT:
		for (unsigned i = 0; i < d->i.operand_count; i++)
			if (is_mem(&d->op[i]))
				in->seg = reg_number(d->op[i].mem.segment);
		return d->i.mnemonic == ZYDIS_MNEMONIC_XLAT ? op_xlat
							    : op_clzero;
	case ZYDIS_MNEMONIC_SALC: return op_salc;
	case ZYDIS_MNEMONIC_BOUND: return op_bound;
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED: return op_rdrand;
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2: return op_undefined;
	default: return NULL;
	}
}

insn_fn *bind_int(const struct decoded *d, struct insn *in)
{
	insn_fn *fn = bind_string(d, in);

	if (fn)
		return fn;
	if (!only_general(d))
		return NULL;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_ADD: return bind_forms(d, in, &add_forms);
	case ZYDIS_MNEMONIC_OR: return bind_forms(d, in, &or_forms);
	case ZYDIS_MNEMONIC_ADC: return bind_forms(d, in, &adc_forms);
	case ZYDIS_MNEMONIC_SBB: return bind_forms(d, in, &sbb_forms);
	case ZYDIS_MNEMONIC_AND: return bind_forms(d, in, &and_forms);
	case ZYDIS_MNEMONIC_SUB: return bind_forms(d, in, &sub_forms);
	case ZYDIS_MNEMONIC_XOR: return bind_forms(d, in, &xor_forms);
	case ZYDIS_MNEMONIC_CMP: return bind_forms(d, in, &cmp_forms);
	case ZYDIS_MNEMONIC_TEST: return bind_forms(d, in, &test_forms);
	case ZYDIS_MNEMONIC_INC: return bind_forms(d, in, &inc_forms);
	case ZYDIS_MNEMONIC_DEC: return bind_forms(d, in, &dec_forms);
	case ZYDIS_MNEMONIC_NEG: return bind_forms(d, in, &neg_forms);
	case ZYDIS_MNEMONIC_MOV: return bind_forms(d, in, &mov_forms);
	case ZYDIS_MNEMONIC_LEA:
		in->opsize = (uint8_t)(d->op[0].size / 8);
		return bind_forms(d, in, &lea_forms);
	case ZYDIS_MNEMONIC_MOVZX: return bind_extend(d, in, false);
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD: return bind_extend(d, in, true);
	case ZYDIS_MNEMONIC_SHL: return bind_shift(d, in, &shl_forms);
	case ZYDIS_MNEMONIC_SHR: return bind_shift(d, in, &shr_forms);
	case ZYDIS_MNEMONIC_SAR: return bind_shift(d, in, &sar_forms);
	case ZYDIS_MNEMONIC_ROL: return bind_shift(d, in, &rol_forms);
	case ZYDIS_MNEMONIC_ROR: return bind_shift(d, in, &ror_forms);
	case ZYDIS_MNEMONIC_RCL: return bind_shift(d, in, &rcl_forms);
	case ZYDIS_MNEMONIC_RCR: return bind_shift(d, in, &rcr_forms);
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP: return bind_stack(d, in);
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_RET: return bind_branch(d, in);
	default: break;
	}
	fn = bind_cc(d, in);
	return fn ? fn : bind_misc(d, in);
}
