/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.c - translation of one block
 *
 * A block is straight-line guest code inside one page: it goes on after a
 * conditional jump that is not taken and ends at the first instruction that
 * always leaves, at one that runs into the next page, or at a full block.
 *
 * Which flags are live is found backwards from the exits.  An exit inside the
 * page looks ahead at its target: a change of that code also forgets this
 * block, so what was seen there stays true.  Everywhere else all are live.
 */
#include "hv/soft/trans/trans.h"

enum { LOOK_AHEAD = 20 };
/* Of loops: instructions in a turn, turns, instructions in all turns. */
enum { MAX_BODY = 24, MAX_TURNS = 4, ALL_TURNS = 48 };

/* -- flags ---------------------------------------------------------------- */

void flags_save(struct tctx *x)
{
	/* lahf; seto al; mov gs:[flags], ax */
	E(&x->e, 0x9f, 0x0f, 0x90, 0xc0, 0x65, 0x66, 0x89, 0x04, 0x25);
	e4(&x->e, GS(tr.flags));
	x->fl_mem = true;
}

void flags_restore(struct tctx *x)
{
	/* movzx eax, word gs:[flags]; add al, 0x7f (sets OF); sahf */
	E(&x->e, 0x65, 0x0f, 0xb7, 0x04, 0x25);
	e4(&x->e, GS(tr.flags));
	E(&x->e, 0x04, 0x7f, 0x9e);
	x->fl_host = true;
}

/* A shift or rotation by CL changes no flag when the count is zero. */
static bool counts_by_cl(const struct instruction *i)
{
	return i->opcode_map == ZYDIS_OPCODE_MAP_0F
		       ? i->opcode == 0xa5 || i->opcode == 0xad
		       : i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
				 (i->opcode == 0xd2 || i->opcode == 0xd3);
}

static bool may_skip(const struct instruction *i)
{
	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	if (counts_by_cl(i))
		return true;
	if (i->meta.category == ZYDIS_CATEGORY_SHIFT ||
	    i->meta.category == ZYDIS_CATEGORY_ROTATE)
		return i->raw.imm[0].size &&
		       !(i->raw.imm[0].value.u &
			 (i->operand_width == 64 ? 63 : 31));
	return i->meta.category == ZYDIS_CATEGORY_STRINGOP &&
	       i->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
				ZYDIS_ATTRIB_HAS_REPNE);
}

/* Near branches; of the other enders nothing is known about flags. */
static bool plain_branch(const struct instruction *i)
{
	if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return false;
	/* The target has 16 bits only. */
	if (i->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 &&
	    i->operand_width == 16)
		return false;
	return i->meta.category == ZYDIS_CATEGORY_COND_BR ||
	       i->mnemonic == ZYDIS_MNEMONIC_JMP ||
	       i->mnemonic == ZYDIS_MNEMONIC_CALL ||
	       i->mnemonic == ZYDIS_MNEMONIC_RET;
}

/*
 * Instructions that are expected to raise or to leave for the caller show
 * their flags.  Of an access that faults, or reaches a device, flags that
 * nobody reads afterwards may be old.
 */
static bool shows_flags(const struct instruction *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ: return true;
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP: return false;
	default:
		return i->meta.category == ZYDIS_CATEGORY_IO ||
		       i->meta.category == ZYDIS_CATEGORY_IOSTRINGOP ||
		       i->meta.category == ZYDIS_CATEGORY_SYSTEM;
	}
}

static void flag_effects(const struct instruction *i, uint16_t *reads,
			 uint16_t *writes, uint16_t *kills)
{
	*reads = shows_flags(i) ? FL_ARITH : i->flags_tested;
	*writes = i->flags_changed;
	*kills = may_skip(i) ? 0 : *writes;
}

/* The translation depends on these bytes. */
static void mark(struct tctx *x, unsigned which, unsigned off, unsigned n)
{
	struct code_page *p = which ? x->second : x->first;

	code_mark(p, off, n);
	x->tb->link[which].granules |=
		(~0ull << (off >> 6)) & (~0ull >> (63 - ((off + n - 1) >> 6)));
}

/* What is at code, without its operands; NULL: nothing.  any: room. */
static const struct instruction *decode_ahead(const struct tctx *x,
					      const uint8_t *code,
					      unsigned avail,
					      struct instruction *any)
{
	const struct instruction *i = form_look(x->c, code, avail);
	ZydisDecodedInstruction full;
	ZydisDecoderContext ctx;
	ZydisDecoder z;

	if (i)
		return i;
	decode_init(&z, x->c->mode);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&z, &ctx, code, avail,
							&full)))
		return NULL;
	view_instruction(any, &full);
	return any;
}

/* Where looking ahead has begun. */
struct seen {
	uint64_t lin;
	const struct seen *before;
};

/* A way back there needs nothing that is not found from there. */
static bool seen(const struct seen *s, uint64_t lin)
{
	while (s && s->lin != lin)
		s = s->before;
	return s;
}

/* Flags that the code at lin needs. */
static uint16_t look(struct tctx *x, uint64_t lin, unsigned depth,
		     const struct seen *before)
{
	const struct seen from = { .lin = lin, .before = before };
	const struct tblock *tb = x->tb;
	const uint8_t *page = x->first->host - (x->first->gpa & 0xfff);
	uint16_t live = 0, open = FL_ARITH;

	for (unsigned n = 0; n < LOOK_AHEAD && open; n++) {
		unsigned off = lin & 0xfff;
		const struct instruction *i;
		struct instruction any;
		uint16_t r, w, k;
		unsigned length;

		if ((lin ^ tb->lin) & ~0xfffull)
			return live | open;
		/* First: what is read is what must be watched. */
		mark(x, 0, off, MIN(15u, 0x1000 - off));
		i = decode_ahead(x, page + off, 0x1000 - off, &any);
		if (!i)
			return live | open;
		flag_effects(i, &r, &w, &k);
		length = i->length;
		live |= r & open;
		if (i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE ||
		    i->meta.category == ZYDIS_CATEGORY_RET ||
		    i->meta.category == ZYDIS_CATEGORY_SYSCALL ||
		    i->meta.category == ZYDIS_CATEGORY_SYSRET ||
		    i->meta.category == ZYDIS_CATEGORY_INTERRUPT ||
		    i->meta.category == ZYDIS_CATEGORY_SYSTEM ||
		    i->mnemonic == ZYDIS_MNEMONIC_PUSHFQ ||
		    i->mnemonic == ZYDIS_MNEMONIC_PUSHF ||
		    i->mnemonic == ZYDIS_MNEMONIC_PUSHFD ||
		    i->mnemonic == ZYDIS_MNEMONIC_UD2 ||
		    i->mnemonic == ZYDIS_MNEMONIC_LAHF) {
			uint64_t to = lin + i->length +
				      (uint64_t)i->raw.imm[0].value.s;

			bool known = seen(&from, to);

			if ((!depth && !known) || !plain_branch(i) ||
			    !i->raw.imm[0].is_relative ||
			    i->meta.category == ZYDIS_CATEGORY_CALL)
				return live | open;
			if (i->meta.category == ZYDIS_CATEGORY_UNCOND_BR) {
				if (known)
					return live;
				lin = to;
				depth--;
				continue;
			}
			/* It may put another in the place of this form. */
			if (!known)
				live |= look(x, to, depth - 1, &from) & open;
		}
		open &= (uint16_t)~k;
		lin += length;
	}
	return live | open;
}

static uint16_t live_at(struct tctx *x, uint64_t target)
{
	if ((target ^ x->tb->lin) & ~0xfffull)
		return FL_ARITH;
	return look(x, target, 2, NULL);
}

/* A linear address: 32-bit code wraps. */
static uint64_t wrap(const struct tctx *x, uint64_t lin)
{
	return x->wide ? lin : (uint32_t)lin;
}

uint64_t branch_target(const struct tctx *x, const struct tinsn *ti)
{
	if (ti->turned)
		return wrap(x, ti->rip + ti->d.i.length);
	return wrap(x, ti->rip + ti->d.i.length +
			       (uint64_t)ti->d.i.raw.imm[0].value.s);
}

static bool direct(const struct instruction *i)
{
	return plain_branch(i) && i->raw.imm[0].is_relative;
}

/* Backwards; exits of conditional jumps add what their targets need. */
static void backwards(struct tctx *x, uint16_t live)
{
	for (unsigned n = x->n; n--;) {
		struct tinsn *ti = &x->ti[n];
		const struct instruction *i = &ti->d.i;

		if (direct(i) && i->meta.category == ZYDIS_CATEGORY_COND_BR)
			live |= ti->live_to;
		else if (direct(i))
			live = ti->live_to;
		ti->live_out = live;
		live = (uint16_t)((live & ~ti->kills) | ti->reads);
		ti->live_in = live;
	}
}

/* What jumps to the block itself need is what it needs. */
static bool own_jumps(struct tctx *x)
{
	bool changed = false;

	for (unsigned n = 0; n < x->n; n++) {
		struct tinsn *ti = &x->ti[n];

		if (!direct(&ti->d.i) || branch_target(x, ti) != x->tb->lin ||
		    ti->live_to == x->ti[0].live_in)
			continue;
		ti->live_to = x->ti[0].live_in;
		changed = true;
	}
	return changed;
}

static void liveness(struct tctx *x, uint16_t live)
{
	for (unsigned n = 0; n < x->n; n++) {
		struct tinsn *ti = &x->ti[n];
		uint64_t to;

		if (!direct(&ti->d.i))
			continue;
		to = branch_target(x, ti);
		if (to == x->tb->lin)
			ti->live_to = 0;
		else if (x->body && n >= x->body)
			ti->live_to = x->ti[n % x->body].live_to;
		else
			ti->live_to = live_at(x, to);
	}
	do
		backwards(x, live);
	while (own_jumps(x));
}

/* -- exits ---------------------------------------------------------------- */

static void stub_site(struct tctx *x, unsigned site)
{
	assign_leave(x);
	reloc_add(x, RELOC_STUB, x->e.p);
	e_push(&x->e, site);
	e_jmp_to(&x->e, x->t->site[site].type == SITE_INDIRECT
				? x->t->thunk_indirect
				: x->t->thunk_site);
}

/* at may be in the other area than to. */
static void aim(struct tctx *x, uint8_t *at, const uint8_t *to)
{
	const uint8_t *far = x->t->far.start;

	e_aim(at, to);
	if ((at >= far) != (to >= far))
		reloc_add(x, RELOC_CROSS, at);
}

/* The jump at at may be aimed at target's block. */
static void chain(struct tctx *x, uint8_t *at, uint64_t target, bool ahead)
{
	unsigned site = trans_new_site(x->t, SITE_CHAIN, target);
	struct site *s = &x->t->site[site];

	s->patch = trans_place(x->t, at);
	s->checked = ((target ^ x->tb->lin) & ~0xfffull) != 0;
	s->ahead = ahead;
	s->vec = x->vec;
	s->x87 = x->x87;
	cold_add(x, at, site);
}

/* Go to target, when cc >= 0 on that condition. */
void emit_exit(struct tctx *x, uint64_t target, uint16_t live, int cc)
{
	bool again = target == x->tb->lin && !x->alone &&
		     x->mmu == key_mmu(x->tb->key);
	bool save = live && x->fl_host && !x->fl_mem;
	bool ahead = target > x->rip;
	uint8_t *at;

	/* Who goes on here mostly does not need that: do it on the way. */
	if ((save || x->assigned) && cc >= 0 && !again) {
		x->leave[x->nleave++] =
			(struct leave){ .at = e_jcc(&x->e, (unsigned)cc),
					.target = target,
					.save = save,
					.assigned = x->assigned,
					.ahead = ahead };
		return;
	}
	if (save)
		flags_save(x);
	if (!again)
		assign_leave(x);
	at = cc < 0 ? e_jmp(&x->e) : e_jcc(&x->e, (unsigned)cc);
	if (again && !x->e.full)
		aim(x, at, x->loop);
	else
		chain(x, at, target, ahead);
}

static void emit_leaves(struct tctx *x)
{
	for (unsigned n = 0; n < x->nleave; n++) {
		aim(x, x->leave[n].at, x->e.p);
		if (x->leave[n].save)
			flags_save(x);
		if (x->leave[n].assigned)
			emit_unassign(x);
		chain(x, e_jmp(&x->e), x->leave[n].target, x->leave[n].ahead);
	}
}

/* -- the block ------------------------------------------------------------ */

/* Anything with XMM or YMM registers, or that MXCSR rules. */
static bool is_vec(const struct decoded *d)
{
	if (d->i.plain)
		return false;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_VZEROUPPER:
	case ZYDIS_MNEMONIC_VZEROALL:
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR: return true;
	/* Conversions too, of extensions such as "long mode". */
	case ZYDIS_MNEMONIC_CBW:
	case ZYDIS_MNEMONIC_CWDE:
	case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD:
	case ZYDIS_MNEMONIC_CDQ:
	case ZYDIS_MNEMONIC_CQO: return false;
	default: break;
	}
	/* CVTSD2SI from memory names no vector register. */
	if (d->i.meta.category == ZYDIS_CATEGORY_CONVERT &&
	    d->i.meta.isa_ext != ZYDIS_ISA_EXT_BASE)
		return true;
	for (unsigned n = 0; n < d->i.operand_count; n++) {
		const struct operand *op = &d->op[n];
		ZydisRegisterClass cl;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		cl = class_of(op->reg.value);
		/* Memory to a general register depends on MXCSR alone. */
		if (cl == ZYDIS_REGCLASS_XMM || cl == ZYDIS_REGCLASS_YMM ||
		    op->reg.value == ZYDIS_REGISTER_MXCSR)
			return true;
	}
	return false;
}

/* The instruction at the end of the page, with its rest from the second. */
static int crossing(struct tctx *x, struct tinsn *ti, unsigned off)
{
	unsigned part = 0x1000 - off;
	uint8_t bytes[15];
	int ret;

	memcpy(bytes, x->first->host, part);
	memcpy(bytes + part, x->second->host, 15 - part);
	mark(x, 1, 0, 15 - part);
	ret = decode_full(x->c, bytes, 15, &ti->in, &ti->d);
	/* Not any more: it was changed meanwhile. */
	return ti->in.len <= part ? -2 : ret;
}

/* The block ends with this instruction, or may leave there. */
static bool is_ender(const struct tctx *x, const struct tinsn *ti)
{
	return ti->in.flags & IN_ENDS && !system_goes_on(x->c, &ti->d) &&
	       !string_goes_on(x, ti);
}

/* A plain Jcc to where the block begins. */
static bool closes_loop(const struct tctx *x, const struct tinsn *ti)
{
	const struct instruction *i = &ti->d.i;
	bool jcc = i->opcode_map == ZYDIS_OPCODE_MAP_0F
			   ? (i->opcode & 0xf0) == 0x80
			   : (i->opcode & 0xf0) == 0x70;

	return jcc && direct(i) && branch_target(x, ti) == x->tb->lin;
}

static bool worth_turns(const struct tctx *x)
{
	bool memory = false;

	if (x->alone || x->second || x->n > MAX_BODY)
		return false;
	for (unsigned n = 0; n < x->n; n++) {
		const struct tinsn *ti = &x->ti[n];

		/* These change the mode, which goes with the block. */
		if (ti->d.i.mnemonic == ZYDIS_MNEMONIC_STAC ||
		    ti->d.i.mnemonic == ZYDIS_MNEMONIC_CLAC)
			return false;
		memory |= ti->in.flags & IN_MEM;
	}
	return memory;
}

/*
 * The block is a loop: translate a few turns of it, so that one look at
 * c->request and, in loops that go through memory by constant steps, one check
 * of a group serve all of them.
 */
static void add_turns(struct tctx *x)
{
	unsigned body = x->n, turns = MIN(MAX_TURNS, ALL_TURNS / body);

	x->body = body;
	for (unsigned n = 1; n < turns; n++) {
		x->ti[x->n - 1].turned = true;
		memcpy(&x->ti[x->n], x->ti, body * sizeof(*x->ti));
		x->n += body;
		x->ti[x->n - 1].turned = false;
	}
}

/* Decode the block's instructions; true: it goes on behind the last. */
static bool collect(struct tctx *x, struct code_page *p)
{
	struct cpu *c = x->c;
	unsigned off = p->gpa & 0xfff;
	const uint8_t *page = p->host - off;
	uint64_t rip = x->tb->lin;

	while (x->n < TRANS_INSNS && off < 0x1000) {
		struct tinsn *ti = &x->ti[x->n];
		unsigned avail = MIN(15u, 0x1000 - off);

		mark(x, 0, off, avail);
		if (decode_full(c, page + off, avail, &ti->in, &ti->d) == -2 &&
		    (x->n || !x->second || crossing(x, ti, off) == -2))
			break;
		ti->rip = rip;
		ti->site = -1;
		ti->vec = ti->x87 = ti->turned = false;
		ti->reads = ti->writes = ti->kills = 0;
		x->n++;
		if (!ti->d.i.length) { /* raises when run */
			ti->d.i.meta.category = ZYDIS_CATEGORY_SYSTEM;
			ti->reads = FL_ARITH;
			return false;
		}
		flag_effects(&ti->d.i, &ti->reads, &ti->writes, &ti->kills);
		ti->vec = is_vec(&ti->d);
		ti->x87 = x87_wanted(c, &ti->d);
		off += ti->in.len;
		rip += ti->in.len;
		/* In the middle of a repetition interrupts see them. */
		if (string_goes_on(x, ti))
			ti->reads = FL_ARITH;
		if (is_ender(x, ti)) {
			if (!plain_branch(&ti->d.i))
				ti->reads = FL_ARITH;
			if (ti->d.i.meta.category != ZYDIS_CATEGORY_COND_BR)
				return false;
			if (closes_loop(x, ti) && worth_turns(x)) {
				add_turns(x);
				return true;
			}
		}
	}
	return true;
}

static void emit_interp(struct tctx *x, struct tinsn *ti, bool ends)
{
	unsigned s;

	flags_spill(x, ti);
	s = insn_site(x, ti);
	x->t->site[s].punt = true;
	stub_site(x, s);
	if (ends)
		return;
	x->fl_host = x->fl_mem = true;
}

static bool is_punt(const struct tctx *x, const struct tinsn *ti)
{
	return x->t->site[ti->site].punt;
}

/*
 * Where an instruction goes on that went to C.  Once a group is open its rest
 * is looked up: the host's address may not be used any more.
 */
static void set_resume(struct tctx *x, const struct tinsn *ti)
{
	if (!x->npairs && (is_punt(x, ti) || !x->grouped))
		x->t->site[ti->site].resume = trans_place(x->t, x->e.p);
}

static void emit_body(struct tctx *x, bool goes_on)
{
	const struct tinsn *last = &x->ti[x->n - 1];
	bool ends = false;

	for (unsigned n = 0; n < x->n && !ends; n++) {
		struct tinsn *ti = &x->ti[n];
		bool ender = is_ender(x, ti);

		x->keeps = false;
		x->rip = ti->rip;
		stack_settle(x, ti);
		group_ahead(x, ti);
		if (ender && !plain_branch(&ti->d.i))
			assign_leave(x);
		if (ender && plain_branch(&ti->d.i) &&
		    emit_flow(x, ti, &ends)) {
			/* done */
		} else if (ender && emit_gate(x, ti)) {
			ends = true;
		} else if (ender) {
			emit_interp(x, ti, true);
			ends = true;
			ti->site = -1; /* never resumes */
		} else if (!emit_insn(x, ti)) {
			emit_interp(x, ti, false);
			group_close(x);
		}
		if (!x->keeps)
			x->held = -1;
		if (ti->site >= 0 && !ends)
			set_resume(x, ti);
		/* What C has done goes on elsewhere. */
		if (x->npairs && !x->assigned)
			return;
	}
	stack_settle(x, NULL);
	if (!ends)
		emit_exit(x, wrap(x, last->rip + last->in.len),
			  goes_on ? last->live_out : FL_ARITH, -1);
}

/* Write on in the other area. */
static void change_area(struct tctx *x)
{
	struct emit e = x->e;

	x->e = x->other;
	x->other = e;
}

/* Unless the byte at loaded says that they are there. */
static void emit_want(struct tctx *x, uint32_t loaded, enum site_type type)
{
	unsigned site = trans_new_site(x->t, type, x->tb->lin);
	struct emit *e = &x->e;

	E(e, 0x65, 0x80, 0x3c, 0x25); /* cmp byte gs:[loaded], 0 */
	e4(e, loaded);
	e1(e, 0);
	cold_add(x, e_jcc(e, CC_E), site);
	x->t->site[site].resume = trans_place(x->t, e->p);
}

/* Compare the page's identity with what may be executed there now. */
static void emit_page_check(struct tctx *x, uint64_t lin, uint64_t gpa,
			    enum reloc_kind slot, unsigned here)
{
	struct emit *e = &x->e;
	struct cold miss = { .site = here, .retry = e->p, .table = MISS_EXEC };

	emit_place(x, T0, xtab_id(lin, gpa), RELOC_ID);
	e_gs(e, 1, 0x39, T0,
	     GS(xtab) + (x->mmu * XTAB_SIZE + xtab_slot(lin)) * 8);
	reloc_add(x, slot, e->p - 4);
	miss.at = e_jcc(e, CC_NE);
	x->cold[x->ncold++] = miss;
}

/* To C, if another thread wants something. */
static void emit_look(struct tctx *x, unsigned here)
{
	struct emit *e = &x->e;

	E(e, 0x65, 0x83, 0x3c, 0x25); /* cmp dword gs:[request], 0 */
	e4(e, GS(request));
	e1(e, 0);
	cold_add(x, e_jcc(e, CC_NE), here);
}

/*
 * All who come from elsewhere look for requests, and whether the registers
 * they want are loaded.  A jump from a block of the page to a higher address,
 * which does not close a loop, need not look; nor for registers that the block
 * had: it comes in at inner.
 */
static void emit_head(struct tctx *x)
{
	struct tblock *tb = x->tb;
	unsigned here = trans_new_site(x->t, SITE_HERE, tb->lin);
	struct emit *e = &x->e;

	x->t->site[here].of = (uint32_t)(tb - x->t->block);
	change_area(x);
	stub_site(x, here);
	change_area(x);
	emit_page_check(x, tb->lin, tb->gpa, RELOC_SLOT, here);
	tb->entry = e->p;
	if (x->second) {
		uint64_t lin = (tb->lin | 0xfff) + 1;

		emit_page_check(x, lin, x->second->gpa, RELOC_SLOT_2, here);
	}
	tb->vec = x->vec;
	tb->x87 = x->x87;
	if (!assign_loops(x))
		emit_look(x, here);
	if (x->vec)
		emit_want(x, GS(tr.vec_loaded), SITE_VEC);
	if (x->x87)
		emit_want(x, GS(tr.x87_loaded), SITE_X87);
	if (!x->second)
		tb->inner = (uint8_t)(e->p - tb->entry);
	/* A kill is a request too, so a loop need not pass the entry. */
	assign_enter(x);
	x->loop = x->second ? tb->entry : e->p;
	if (assign_loops(x))
		emit_look(x, here);
}

/* Where stubs go to put the registers back before they go to C. */
static void stub_out(struct tctx *x)
{
	if (!x->npairs)
		return;
	x->out = x->e.p;
	emit_unassign(x);
	e_jmp_to(&x->e, x->t->thunk_site);
	reloc_add(x, RELOC_THUNK, x->e.p - 4);
}

/* A check of a group that failed: put them back, then as any jump. */
static void stub_alone(struct tctx *x, unsigned site)
{
	struct site *s = &x->t->site[site];
	uint8_t *at;

	emit_unassign(x);
	at = e_jmp(&x->e);
	s->patch = trans_place(x->t, at);
	s->resume = trans_place(x->t, x->e.p);
	aim(x, at, x->e.p);
	stub_site(x, site);
}

/* Laid out as stub_site() does.  Behind the call: the way to the lookup. */
static void stub_miss(struct tctx *x, const struct cold *miss)
{
	struct emit *e = &x->e;
	uint8_t *at;

	reloc_add(x, RELOC_STUB, e->p);
	e_push(e, miss->site);
	at = e_call(e);
	e4(e, 0);
	if (e->full)
		return;
	e_aim(at, miss->assigned ? x->t->thunk_miss_back[miss->table]
				 : x->t->thunk_miss[miss->table]);
	aim(x, e->p - 4, miss->retry);
	if (!miss->assigned)
		return;
	if (x->t->site[miss->site].type == SITE_ALONE) {
		/* lea rsp, [rsp + 8]: nobody wants the site's number */
		E(e, 0x48, 0x8d, 0x64, 0x24, 0x08);
		stub_alone(x, miss->site);
	} else {
		e_jmp_to(e, x->out);
	}
}

static void stub_assigned(struct tctx *x, unsigned site)
{
	reloc_add(x, RELOC_SITE, x->e.p);
	e_push(&x->e, site);
	e_jmp_to(&x->e, x->out);
}

static void emit_stubs(struct tctx *x)
{
	stub_out(x);
	for (unsigned n = 0; n < x->ncold; n++) {
		const struct cold *cold = &x->cold[n];
		struct site *s = &x->t->site[cold->site];

		if (s->type == SITE_CHAIN || s->type == SITE_ALONE)
			s->resume = trans_place(x->t, x->e.p);
		aim(x, cold->at, x->e.p);
		if (cold->retry)
			stub_miss(x, cold);
		else if (cold->assigned && s->type == SITE_ALONE)
			stub_alone(x, cold->site);
		else if (cold->assigned)
			stub_assigned(x, cold->site);
		else
			stub_site(x, cold->site);
	}
}

struct tblock *trans_block(struct trans *t, uint64_t lin, uint32_t key,
			   struct code_page *p, struct code_page *second)
{
	struct tctx x;
	struct tblock *tb = &t->block[t->nblocks];
	uint16_t live;
	bool goes_on;

	memset(&x, 0, offsetof(struct tctx, cold));
	x.t = t;
	x.c = t->c;
	x.ti = t->scratch;
	*tb = (struct tblock){ .lin = lin, .gpa = p->gpa, .key = key };
	tb->link[0] = (struct tlink){ .block = tb, .page = p->page };
	if (second)
		tb->link[1] =
			(struct tlink){ .block = tb, .page = second->page };
	x.tb = tb;
	x.wide = t->c->mode == MODE_64;
	x.word = x.wide ? 8 : 4;
	x.first = p;
	x.second = second;
	x.alone = key & KEY_ALONE;
	ctx_mmu(&x, t->c->mmu);
	x.e = (struct emit){ .p = (uint8_t *)ALIGN_UP((uintptr_t)t->near.used,
						      16),
			     .end = t->near.end };
	x.other = (struct emit){ .p = t->far.used, .end = t->far.end };
	tb->checked = x.e.p;
	tb->miss = x.other.p;
	tb->fixed = !trans_may_copy(lin);
	tb->site = t->nsites;
	tb->reloc = t->nrelocs;
	goes_on = collect(&x, p);
	if (!x.n && !second)
		return NULL;
	t->nblocks++;
	if (!x.n)
		return tb;
	for (unsigned n = 0; n < x.n; n++) {
		x.vec |= x.ti[n].vec;
		x.x87 |= x.ti[n].x87;
	}
	live = goes_on ? live_at(&x, x.ti[x.n - 1].rip + x.ti[x.n - 1].in.len)
		       : FL_ARITH;
	liveness(&x, live);
	x.fl_mem = true;
	assign_plan(&x);
	emit_head(&x);
	x.held = -1;
	if (!x.alone)
		group_plan(&x);
	emit_body(&x, goes_on);
	assign_use(&x, false);
	change_area(&x);
	emit_leaves(&x);
	emit_stubs(&x);
	if (x.e.full || x.other.full) {
		tb->entry = NULL;
		return tb;
	}
	if (tb->fixed)
		t->nrelocs = tb->reloc;
	tb->near_size = (uint32_t)(x.other.p - tb->checked) & 0xfffff;
	tb->far_size = (uint32_t)(x.e.p - tb->miss) & 0xfffff;
	tb->nsites = (t->nsites - tb->site) & 0xfff;
	tb->nrelocs = (t->nrelocs - tb->reloc) & 0xfff;
	t->near.used = x.other.p;
	t->far.used = x.e.p;
	return tb;
}
