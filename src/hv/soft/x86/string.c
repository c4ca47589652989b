/* SPDX-License-Identifier: Apache-2.0 */
/*
 * string.c - MOVS STOS LODS SCAS CMPS INS OUTS
 *
 * Each element (or chunk of elements) commits its registers, so that a fault
 * or an exit in the next one finds the state between two iterations.
 */
#include "hv/soft/x86/int.h"

/* Elements done before the loop gets a look at interrupts and timers. */
enum { BUDGET = 1 << 16, POLL = 1 << 12 };

static uint64_t ad_mask(const struct insn *in)
{
	if (in->adsize == 8)
		return UINT64_MAX;
	return in->adsize == 4 ? UINT32_MAX : UINT16_MAX;
}

static void advance(struct cpu *c, const struct insn *in, unsigned reg,
		    uint64_t n)
{
	uint64_t by = n * in->opsize;

	if (c->rflags & FL_DF)
		by = -by;
	set_reg(c, reg, in->adsize, c->gpr[reg] + by);
}

/* Accesses of a finished iteration must not be replayed to the next. */
static void committed(struct cpu *c)
{
	c->replay.done = c->replay.at = 0;
}

static uint64_t lin_src(struct cpu *c, const struct insn *in)
{
	return seg_linear(c, in->seg, c->gpr[R_RSI] & ad_mask(in), in->opsize,
			  false);
}

static uint64_t lin_dst(struct cpu *c, const struct insn *in, bool write)
{
	return seg_linear(c, SEG_ES, c->gpr[R_RDI] & ad_mask(in), in->opsize,
			  write);
}

/* -- one element ---------------------------------------------------------- */

/* Returns false when a REPE or REPNE ends here. */
typedef bool element_fn(struct cpu *c, const struct insn *in);
/* As many as there may be at once, at most max; 0: go by element. */
typedef uint64_t chunk_fn(struct cpu *c, const struct insn *in, uint64_t max);

static bool movs_one(struct cpu *c, const struct insn *in)
{
	uint64_t v = ld_size(c, in->seg, lin_src(c, in), in->opsize);

	st_size(c, SEG_ES, lin_dst(c, in, true), in->opsize, v);
	advance(c, in, R_RSI, 1);
	advance(c, in, R_RDI, 1);
	return true;
}

static bool stos_one(struct cpu *c, const struct insn *in)
{
	st_size(c, SEG_ES, lin_dst(c, in, true), in->opsize, c->gpr[R_RAX]);
	advance(c, in, R_RDI, 1);
	return true;
}

static bool lods_one(struct cpu *c, const struct insn *in)
{
	uint64_t v = ld_size(c, in->seg, lin_src(c, in), in->opsize);

	set_reg(c, R_RAX, in->opsize, v);
	advance(c, in, R_RSI, 1);
	return true;
}

static bool goes_on(struct cpu *c, const struct insn *in)
{
	return !!(c->rflags & FL_ZF) == !(in->flags & IN_REPNE);
}

static bool scas_one(struct cpu *c, const struct insn *in)
{
	uint64_t v = ld_size(c, SEG_ES, lin_dst(c, in, false), in->opsize);

	c->rflags = cmp_flags(c->rflags, in->opsize, c->gpr[R_RAX], v);
	advance(c, in, R_RDI, 1);
	return goes_on(c, in);
}

static bool cmps_one(struct cpu *c, const struct insn *in)
{
	uint64_t a = ld_size(c, in->seg, lin_src(c, in), in->opsize);
	uint64_t b = ld_size(c, SEG_ES, lin_dst(c, in, false), in->opsize);

	c->rflags = cmp_flags(c->rflags, in->opsize, a, b);
	advance(c, in, R_RSI, 1);
	advance(c, in, R_RDI, 1);
	return goes_on(c, in);
}

static bool ins_one(struct cpu *c, const struct insn *in)
{
	uint16_t port = (uint16_t)c->gpr[R_RDX];
	uint64_t lin;

	io_check(c, port, in->opsize);
	lin = lin_dst(c, in, true);
	/* What has been read from a port cannot be put back. */
	mem_check(c, SEG_ES, lin, in->opsize, true);
	st_size(c, SEG_ES, lin, in->opsize, pio_in(c, port, in->opsize));
	advance(c, in, R_RDI, 1);
	return true;
}

static bool outs_one(struct cpu *c, const struct insn *in)
{
	uint16_t port = (uint16_t)c->gpr[R_RDX];
	uint64_t v;

	io_check(c, port, in->opsize);
	v = ld_size(c, in->seg, lin_src(c, in), in->opsize);
	pio_out(c, port, in->opsize, (uint32_t)v);
	advance(c, in, R_RSI, 1);
	return true;
}

/* -- chunks --------------------------------------------------------------- */

/* Segment limits are checked by element, so chunks are for flat segments. */
static bool chunkable(struct cpu *c, const struct insn *in, unsigned seg)
{
	if (c->mode == MODE_64)
		return true;
	return c->flat && in->adsize == 4 &&
	       (seg == SEG_DS || seg == SEG_ES || seg == SEG_SS);
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* An offset that wraps at adsize does so at a page boundary: no cut needed. */
static void *chunk_at(struct cpu *c, const struct insn *in, unsigned seg,
		      unsigned reg, size_t *n, bool write, uint64_t *tell)
{
	uint64_t off = c->gpr[reg] & ad_mask(in);
	uint64_t lin = seg_linear(c, seg, off, in->opsize, write);
	/* FS and GS need not begin at a page. */
	uint64_t room = in->adsize == 8 ? UINT64_MAX : ad_mask(in) - off + 1;

	if (*n > room)
		*n = (size_t)room;
	return mem_chunk(c, seg, lin, n, write, tell);
}

static void chunk_done(struct cpu *c, uint64_t tell, size_t n)
{
	if (unlikely(tell != CHUNK_PLAIN))
		phys_written(c->vm, c, tell, n);
}

static void copy_elements(uint8_t *d, const uint8_t *s, uint64_t n,
			  unsigned size)
{
	/* Forward over itself: what was just written is read again. */
	for (uint64_t i = 0; i < n; i++, d += size, s += size) {
		switch (size) {
		case 1: *d = *s; break;
		case 2: *(u2 *)d = *(const u2 *)s; break;
		case 4: *(u4 *)d = *(const u4 *)s; break;
		default: *(u8 *)d = *(const u8 *)s;
		}
		/* The compiler must not make a memmove() of this. */
		__asm__ volatile("" ::: "memory");
	}
}

static uint64_t movs_chunk(struct cpu *c, const struct insn *in, uint64_t max)
{
	size_t n = min64(max, 4096) * in->opsize, m;
	uint64_t count, tell, ignored;
	uint8_t *s, *d;

	if (!chunkable(c, in, in->seg) || !chunkable(c, in, SEG_ES))
		return 0;
	s = chunk_at(c, in, in->seg, R_RSI, &n, false, &ignored);
	if (!s || n < in->opsize)
		return 0;
	m = n;
	d = chunk_at(c, in, SEG_ES, R_RDI, &m, true, &tell);
	if (!d || m < in->opsize)
		return 0;
	count = min64(n, m) / in->opsize;
	n = count * in->opsize;
	if (d > s && d < s + n)
		copy_elements(d, s, count, in->opsize);
	else
		memmove(d, s, n);
	chunk_done(c, tell, n);
	advance(c, in, R_RSI, count);
	advance(c, in, R_RDI, count);
	return count;
}

static uint64_t stos_chunk(struct cpu *c, const struct insn *in, uint64_t max)
{
	size_t n = min64(max, 4096) * in->opsize;
	uint64_t v = c->gpr[R_RAX], count, tell;
	uint8_t *d;

	if (!chunkable(c, in, SEG_ES))
		return 0;
	d = chunk_at(c, in, SEG_ES, R_RDI, &n, true, &tell);
	if (!d || n < in->opsize)
		return 0;
	count = n / in->opsize;
	switch (in->opsize) {
	case 1: memset(d, (uint8_t)v, count); break;
	case 2:
		for (uint64_t i = 0; i < count; i++)
			((u2 *)d)[i] = (uint16_t)v;
		break;
	case 4:
		for (uint64_t i = 0; i < count; i++)
			((u4 *)d)[i] = (uint32_t)v;
		break;
	default:
		for (uint64_t i = 0; i < count; i++)
			((u8 *)d)[i] = v;
	}
	chunk_done(c, tell, count * in->opsize);
	advance(c, in, R_RDI, count);
	return count;
}

/* -- repetition ----------------------------------------------------------- */

static void repeat(struct cpu *c, const struct insn *in, element_fn *one,
		   chunk_fn *chunk)
{
	uint64_t left = c->gpr[R_RCX] & ad_mask(in), done = 0, poll = POLL, n;
	bool more;

	/* A single step is one iteration. */
	uint64_t budget = c->rflags & FL_TF ? 1 : BUDGET;

	if (c->rflags & FL_DF || budget == 1)
		chunk = NULL;
	while (left) {
		n = chunk && left > 1 ? chunk(c, in, left) : 0;
		more = true;
		if (!n) {
			more = one(c, in);
			n = 1;
		}
		left -= n;
		set_reg(c, R_RCX, in->adsize, left);
		committed(c);
		done += n;
		if (!more || !left)
			return;
		if (done >= budget)
			break;
		if (done >= poll) {
			poll = done + POLL;
			if (atomic_load_explicit(&c->request,
						 memory_order_relaxed))
				break;
		}
	}
	if (left)
		c->gpr[R_NEXT] = c->rip;
}

#define STRING_OP(name, chunk) \
	static void op_##name(struct cpu *c, const struct insn *in) \
	{ \
		name##_one(c, in); \
	} \
	static void op_rep_##name(struct cpu *c, const struct insn *in) \
	{ \
		repeat(c, in, name##_one, chunk); \
	}
STRING_OP(movs, movs_chunk)
STRING_OP(stos, stos_chunk)
STRING_OP(lods, NULL)
STRING_OP(scas, NULL)
STRING_OP(cmps, NULL)
STRING_OP(ins, NULL)
STRING_OP(outs, NULL)

/* F2 repeats MOVS as F3 does, and Zydis does not say so: look at the bytes. */
static void find_rep(const struct decoded *d, struct insn *in)
{
	in->flags &= (uint8_t) ~(IN_REP | IN_REPNE);
	if (d->i.rep)
		in->flags |= d->i.rep == 0xf2 ? IN_REPNE : IN_REP;
}

static void find_source_segment(const struct decoded *d, struct insn *in)
{
	in->seg = SEG_DS;
	for (unsigned i = 0; i < d->i.operand_count; i++) {
		const struct operand *op = &d->op[i];

		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY ||
		    op->mem.segment == ZYDIS_REGISTER_NONE)
			continue;
		if (op->mem.base == ZYDIS_REGISTER_SI ||
		    op->mem.base == ZYDIS_REGISTER_ESI ||
		    op->mem.base == ZYDIS_REGISTER_RSI)
			in->seg = reg_number(op->mem.segment);
	}
}

insn_fn *bind_string(const struct decoded *d, struct insn *in)
{
	insn_fn *fn, *rep;

	if (d->i.meta.category != ZYDIS_CATEGORY_STRINGOP &&
	    d->i.meta.category != ZYDIS_CATEGORY_IOSTRINGOP)
		return NULL;
	in->opsize = 1;
	switch (d->i.mnemonic) {
#define CASE(up, low, wide) \
	case ZYDIS_MNEMONIC_##up##wide: \
		in->opsize = *#wide == 'B'   ? 1 \
			     : *#wide == 'W' ? 2 \
			     : *#wide == 'D' ? 4 \
					     : 8; \
		fn = op_##low; \
		rep = op_rep_##low; \
		break;
#define CASES(up, low) CASE(up, low, B) CASE(up, low, W) CASE(up, low, D)
		CASES(MOVS, movs)
		CASES(STOS, stos)
		CASES(LODS, lods)
		CASES(SCAS, scas)
		CASES(CMPS, cmps)
		CASES(INS, ins)
		CASES(OUTS, outs)
		CASE(MOVS, movs, Q)
		CASE(STOS, stos, Q)
		CASE(LODS, lods, Q)
		CASE(SCAS, scas, Q)
		CASE(CMPS, cmps, Q)
#undef CASE
#undef CASES
	default: return NULL;
	}
	find_rep(d, in);
	find_source_segment(d, in);
	in->adsize = d->i.address_width / 8;
	if (!(in->flags & (IN_REP | IN_REPNE)))
		return fn;
	in->flags |= IN_ENDS;
	return rep;
}
