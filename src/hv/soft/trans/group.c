/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group.c - one TLB check for the accesses of a block that lie together
 *
 * Accesses of a block through the same registers, or to the same page by
 * absolute address, differ by constants.  They form a group: the first one
 * that runs checks that all of them, from the lowest to the highest byte, lie
 * in one page that may be read, or written if one of them writes, and keeps
 * the host's address in c->tr.group[]; the others need a load of that and no
 * check, and leave the flags alone.
 *
 * The check never faults or sets a bit in a page table.  When it fails, the
 * rest runs in another block, in which every access is checked alone and which
 * is translated when that happens often enough.  After anything on the way
 * that went to the interpreter, the rest is looked up, too.
 */
#include "hv/soft/trans/trans.h"

enum { SPAN = 512, NONE = 16 };

/* What an address is made of; equal keys differ by a constant. */
struct key {
	uint8_t base, index, scale, seg;
	uint16_t base_is, index_is, seg_is; /* which value of them */
	uint64_t page;			    /* without registers */
};

/* The registers as the plan has followed them so far. */
struct plan {
	uint16_t is[17], seg_is; /* +1 when changed beyond following */
	int32_t moved[17];	 /* by additions of constants */
	struct key key[MAX_GROUPS];
};

static bool same_key(const struct key *a, const struct key *b)
{
	return a->base == b->base && a->index == b->index &&
	       a->scale == b->scale && a->seg == b->seg &&
	       a->base_is == b->base_is && a->index_is == b->index_is &&
	       a->seg_is == b->seg_is && a->page == b->page;
}

/* Add the access [key + off, + size) to a group; which one, or -1. */
static int join(struct tctx *x, struct plan *p, const struct key *k,
		int64_t off, unsigned size, unsigned align, bool write)
{
	for (unsigned n = x->ngroups; n--;) {
		struct group *g = &x->group[n];
		int64_t lo = MIN(off, (int64_t)g->lo);
		int64_t hi = MAX(off + size, (int64_t)g->hi);

		if (!same_key(&p->key[n], k) || hi - lo > SPAN)
			continue;
		if (align && g->align && ((off - g->aligned) & 15))
			continue;
		g->lo = (int32_t)lo;
		g->hi = (int32_t)hi;
		g->write |= write;
		g->n++;
		if (align) {
			g->align = true;
			g->aligned = (int32_t)off;
		}
		return (int)n;
	}
	if (x->ngroups == MAX_GROUPS || off != (int32_t)off)
		return -1;
	p->key[x->ngroups] = *k;
	x->group[x->ngroups] = (struct group){
		.lo = (int32_t)off,
		.hi = (int32_t)off + (int32_t)size,
		.write = write,
		.align = align != 0,
		.aligned = (int32_t)off,
		.n = 1,
	};
	return (int)x->ngroups++;
}

static void plan_operand(struct tctx *x, struct plan *p, struct tinsn *ti,
			 const struct operand *op)
{
	unsigned align = operand_alignment(ti, op), size = op->size / 8;
	struct key k = { .base = NONE, .index = NONE };
	int64_t off = op->mem.disp;
	bool segment;

	if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || !size || size > 32 ||
	    align > 16 || ti->d.i.address_width != x->word * 8)
		return;
	segment = op->mem.segment == ZYDIS_REGISTER_FS ||
		  op->mem.segment == ZYDIS_REGISTER_GS;
	/* The limit is checked of one access, not of a group. */
	if (segment && !x->wide)
		return;
	if (op->mem.base == ZYDIS_REGISTER_RIP ||
	    (!x->wide && op->mem.base == ZYDIS_REGISTER_NONE &&
	     op->mem.index == ZYDIS_REGISTER_NONE)) {
		uint64_t a = x->wide ? ti->rip + ti->d.i.length + (uint64_t)off
				     : (uint32_t)off;

		if ((a & 0xfff) + size > 0x1000)
			return;
		k.page = a >> 12 | BIT(63);
		off = a & 0xfff;
	} else if (op->mem.base != ZYDIS_REGISTER_NONE) {
		k.base = reg_number(op->mem.base);
	}
	if (op->mem.index != ZYDIS_REGISTER_NONE) {
		k.index = reg_number(op->mem.index);
		k.scale = op->mem.scale;
	}
	if (segment) {
		k.seg = op->mem.segment == ZYDIS_REGISTER_FS ? 1 : 2;
		k.seg_is = p->seg_is;
		if (k.page)
			return;
	}
	k.base_is = p->is[k.base];
	/* What was added to an index counts scale times: start anew. */
	k.index_is = p->is[k.index];
	off += p->moved[k.base];
	if (k.index != NONE)
		off += (int64_t)p->moved[k.index] * k.scale;
	ti->off = (int32_t)off;
	ti->group = (int8_t)join(x, p, &k, off, size, align,
				 op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
}

static void plan_stack(struct tctx *x, struct plan *p, struct tinsn *ti,
		       int disp, bool write)
{
	struct key k = { .base = R_RSP, .index = NONE };

	k.base_is = p->is[R_RSP];
	k.index_is = p->is[NONE];
	ti->off = p->moved[R_RSP] + disp;
	ti->group = (int8_t)join(x, p, &k, ti->off, x->word, 0, write);
}

/* The constant that a whole register gets added; false: something else. */
static bool constant_step(const struct tctx *x, const struct tinsn *ti,
			  unsigned *reg, int64_t *by)
{
	const struct operand *a = &ti->d.op[0], *b = &ti->d.op[1];

	if (a->type != ZYDIS_OPERAND_TYPE_REGISTER ||
	    class_of(a->reg.value) !=
		    (x->wide ? ZYDIS_REGCLASS_GPR64 : ZYDIS_REGCLASS_GPR32))
		return false;
	*reg = reg_number(a->reg.value);
	switch (ti->d.i.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		if (b->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		*by = ti->d.i.mnemonic == ZYDIS_MNEMONIC_ADD ? b->imm.value.s
							     : -b->imm.value.s;
		return true;
	case ZYDIS_MNEMONIC_INC: *by = 1; return true;
	case ZYDIS_MNEMONIC_DEC: *by = -1; return true;
	case ZYDIS_MNEMONIC_LEA:
		*by = b->mem.disp;
		return ti->d.i.address_width == x->word * 8 &&
		       b->mem.index == ZYDIS_REGISTER_NONE &&
		       b->mem.base == a->reg.value;
	default: return false;
	}
}

static void move(struct plan *p, unsigned reg, int64_t by)
{
	int64_t to = p->moved[reg] + by;

	if (to > 4096 || to < -4096) {
		p->is[reg]++;
		to = 0;
	}
	p->moved[reg] = (int32_t)to;
}

static void forget(struct plan *p, unsigned reg)
{
	p->is[reg]++;
	p->moved[reg] = 0;
}

static void plan_writes(const struct tctx *x, struct plan *p,
			const struct tinsn *ti)
{
	const struct decoded *d = &ti->d;
	int64_t by;
	unsigned r;

	if (constant_step(x, ti, &r, &by)) {
		move(p, r, by);
		return;
	}
	for (unsigned n = 0; n < d->i.operand_count; n++) {
		const struct operand *op = &d->op[n];

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) ||
		    !is_gpr(op->reg.value))
			continue;
		r = reg_number(op->reg.value) & 15;
		/* POP RSP names it. */
		if (r != R_RSP ||
		    op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			forget(p, r);
		else if (d->i.mnemonic == ZYDIS_MNEMONIC_PUSH)
			move(p, r, -x->word);
		else if (d->i.mnemonic == ZYDIS_MNEMONIC_POP)
			move(p, r, x->word);
		else
			forget(p, r);
	}
}

/* From rsp to what PUSH, POP, CALL or RET accesses. */
static int stack_off(const struct tctx *x, const struct tinsn *ti)
{
	return ti->d.i.mnemonic == ZYDIS_MNEMONIC_PUSH ||
			       ti->d.i.mnemonic == ZYDIS_MNEMONIC_CALL
		       ? -x->word
		       : 0;
}

static bool may_change_segments(const struct tinsn *ti)
{
	switch (ti->d.i.meta.category) {
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_RDWRFSGS:
	case ZYDIS_CATEGORY_SEGOP: return true;
	default: return ti->d.i.mnemonic == ZYDIS_MNEMONIC_SWAPGS;
	}
}

void group_plan(struct tctx *x)
{
	struct plan p;

	memset(&p, 0, offsetof(struct plan, key));
	x->ngroups = 0;
	for (unsigned n = 0; n < x->n; n++) {
		struct tinsn *ti = &x->ti[n];
		const struct decoded *d = &ti->d;
		bool word = d->i.operand_width == x->word * 8;

		ti->group = -1;
		if (!d->i.length)
			continue;
		switch (d->i.mnemonic) {
		case ZYDIS_MNEMONIC_PUSH:
			if (word && d->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
				plan_stack(x, &p, ti, -x->word, true);
			break;
		case ZYDIS_MNEMONIC_POP:
		case ZYDIS_MNEMONIC_RET:
			if (word)
				plan_stack(x, &p, ti, 0, false);
			break;
		case ZYDIS_MNEMONIC_CALL:
			if (word && d->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
				plan_stack(x, &p, ti, -x->word, true);
			break;
		case ZYDIS_MNEMONIC_LEA: break;
		default:
			for (unsigned m = 0; m < d->i.operand_count_visible;
			     m++)
				if (d->op[m].type ==
					    ZYDIS_OPERAND_TYPE_MEMORY &&
				    d->op[m].encoding ==
					    ZYDIS_OPERAND_ENCODING_MODRM_RM)
					plan_operand(x, &p, ti, &d->op[m]);
		}
		plan_writes(x, &p, ti);
		if (may_change_segments(ti))
			p.seg_is++;
	}
	for (unsigned n = 0; n < x->ngroups; n++) {
		struct group *g = &x->group[n];

		/* The check starts where an aligned operand could. */
		if (g->align)
			g->lo -= (g->lo - g->aligned) & 15;
	}
}

/* What went to C may have changed the TLB: check again. */
void group_close(struct tctx *x)
{
	x->held = -1;
	for (unsigned n = 0; n < x->ngroups; n++)
		x->group[n].open = false;
}

bool group_serves(const struct tctx *x, const struct tinsn *ti)
{
	return !x->alone && ti->group >= 0 &&
	       (x->group[ti->group].n > 1 || x->group[ti->group].open);
}

/* Go on without groups; retry: when the TLB still lacks the page. */
static void leave(struct tctx *x, const struct tinsn *ti, uint8_t *at,
		  uint8_t *retry, bool write)
{
	unsigned site = trans_new_site(x->t, SITE_ALONE, ti->rip);

	x->t->site[site].patch = trans_place(x->t, at);
	x->cold[x->ncold++] =
		(struct cold){ .at = at,
			       .site = site,
			       .retry = retry,
			       .table = (uint8_t)miss_table(x->mmu, write),
			       .assigned = x->assigned };
}

/* T0 = the group's lowest address -> T1 = the host's, kept. */
static void open_group(struct tctx *x, struct tinsn *ti, struct group *g)
{
	unsigned span = (unsigned)(g->hi - g->lo);
	struct emit *e = &x->e;
	uint8_t *from = e->p;
	uint32_t host = emit_probe(x, g->write);

	leave(x, ti, emit_unless_room(x, span), from, g->write);
	if (g->align) {
		E(e, 0xa8, 0x0f); /* test al, 15 */
		leave(x, ti, e_jcc(e, CC_NE), NULL, false);
	}
	e_gs_base(e, 0x8b, T1, T1, host);
	e_op_mem(e, 0x8d, T1, T0, T1, 0, 0);
	e_gs_store(e, T1, GS(tr.group) + 8 * (uint32_t)(g - x->group));
	g->open = x->grouped = true;
	x->held = (int)(g - x->group);
}

/* The operand is at [T1 + result]; T0 is free. */
int32_t group_reach(struct tctx *x, struct tinsn *ti, const struct operand *op,
		    int stack)
{
	struct group *g = &x->group[ti->group];

	if (g->open) {
		if (x->held != ti->group)
			e_gs_load(&x->e, T1,
				  GS(tr.group) + 8 * (uint32_t)ti->group);
		x->held = ti->group;
		return ti->off - g->lo;
	}
	flags_spill(x, ti);
	x->lower = g->lo - ti->off;
	if (op)
		emit_address(x, ti, op);
	else
		emit_reg_disp(x, R_RSP, stack + x->lower);
	x->lower = 0;
	open_group(x, ti, g);
	return ti->off - g->lo;
}

/* -- ahead of its time ---------------------------------------------------- */

/* Does ti change reg by nothing but a constant, which *by is added? */
static bool follows(const struct tctx *x, const struct tinsn *ti, unsigned reg,
		    int64_t *by)
{
	const struct decoded *d = &ti->d;
	int64_t step;
	unsigned r;

	if (constant_step(x, ti, &r, &step)) {
		*by += r == reg ? step : 0;
		return true;
	}
	for (unsigned n = 0; n < d->i.operand_count; n++) {
		const struct operand *op = &d->op[n];

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) ||
		    !is_gpr(op->reg.value) ||
		    (reg_number(op->reg.value) & 15) != reg)
			continue;
		if (reg != R_RSP ||
		    op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			return false;
		if (d->i.mnemonic == ZYDIS_MNEMONIC_PUSH)
			*by -= x->word;
		else if (d->i.mnemonic == ZYDIS_MNEMONIC_POP)
			*by += x->word;
		else
			return false;
	}
	return true;
}

/* How far reg comes from before ti to before to. */
static bool way(const struct tctx *x, const struct tinsn *ti,
		const struct tinsn *to, ZydisRegister reg, int64_t *by)
{
	*by = 0;
	if (reg == ZYDIS_REGISTER_NONE || reg == ZYDIS_REGISTER_RIP)
		return true;
	for (; ti < to; ti++)
		if (!follows(x, ti, reg_number(reg), by))
			return false;
	return true;
}

static const struct operand *group_operand(const struct tinsn *ti)
{
	for (unsigned m = 0; m < ti->d.i.operand_count_visible; m++)
		if (ti->d.op[m].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    ti->d.op[m].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			return &ti->d.op[m];
	return NULL;
}

/* Check before ti the group of an access in to, if its address is known. */
static void open_ahead(struct tctx *x, struct tinsn *ti, struct tinsn *to)
{
	const struct operand *op = group_operand(to);
	struct group *g = &x->group[to->group];
	int64_t by, more = 0;

	for (const struct tinsn *at = ti; at < to; at++)
		if (may_change_segments(at))
			return;
	if (op) {
		if (!way(x, ti, to, op->mem.base, &by) ||
		    !way(x, ti, to, op->mem.index, &more))
			return;
		by += more * op->mem.scale;
	} else if (!way(x, ti, to, ZYDIS_REGISTER_RSP, &by)) {
		return;
	}
	if (by != (int16_t)by)
		return;
	flags_spill(x, ti);
	x->lower = g->lo - to->off + (int32_t)by;
	if (op)
		emit_address(x, to, op);
	else
		emit_reg_disp(x, R_RSP, x->lower + stack_off(x, to));
	x->lower = 0;
	open_group(x, ti, g);
}

/* It wants flags in the host's, whoever made them. */
static bool wants_flags(const struct tinsn *ti)
{
	return (ti->reads && ti->reads != FL_ARITH) ||
	       (ti->writes && ti->live_out & ~ti->kills);
}

/*
 * A check between the instruction that makes flags and one that reads them
 * would have to save and restore them, which costs more than it does.
 */
void group_ahead(struct tctx *x, struct tinsn *ti)
{
	struct tinsn *end = x->ti + x->n, *last = ti;

	if (x->alone || !ti->writes || !ti->live_out ||
	    (ti->live_in && x->fl_host && !x->fl_mem))
		return;
	for (struct tinsn *to = ti + 1; to < end && to->live_in; to++)
		if (wants_flags(to))
			last = to;
	for (struct tinsn *to = ti + 1; to <= last; to++)
		if (to->group >= 0 && !x->group[to->group].open &&
		    x->ncold + 2 + 9 * (unsigned)(end - ti) < MAX_COLD)
			open_ahead(x, ti, to);
}
