/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trans.h - the translator: guest blocks to host code
 *
 * Host registers while translated code runs:
 *   GS base   struct cpu (everything is at gs:[offsetof(struct cpu, ...)])
 *   rsp       the host's stack, never the guest's
 *   rax, r15  temporaries T0 and T1
 *   r13, r14  the guest's rax and rsp
 *   r13-r15 of the guest live in memory; the other ten are themselves, but
 *   for a block that has changed some of them (assign.c)
 *
 * Flags.  Inside a block the guest's arithmetic flags are in the host's
 * (fl_host), in c->tr.flags (fl_mem), in both, or dead.  Between blocks they
 * are in c->tr.flags or dead.  Everything else of rflags is in c->rflags.
 *
 * Vector registers and MXCSR are in the host's while c->tr.vec_loaded, x87
 * and MMX registers while c->tr.x87_loaded, else in c->fpu.
 *
 * A site is a place where translated code turns to C: site.type says why.
 * All of them go through one thunk, which stores the registers, calls
 * trans_site() and goes on where that says.  C code may longjmp out of it.
 * Before that a miss of the TLB calls tlb_refill(), and looks again when there
 * is an entry then; for this hardly anything has to be stored.
 *
 * All of this belongs to one vCPU; nothing is shared but the soft_page.
 */
#ifndef SOFT_TRANS_H
#define SOFT_TRANS_H

#include "hv/soft/mem.h"
#include "hv/soft/trans/emit.h"
#include "hv/soft/x86/decode.h"

enum { T0 = H_RAX, T1 = H_R15, G_RAX = H_R13, G_RSP = H_R14 };

/* Host register of a guest register, -1: in memory; see also assign.c. */
static inline int host_reg(unsigned guest)
{
	static const int8_t map[16] = { H_R13, H_RCX, H_RDX, H_RBX,
					H_R14, H_RBP, H_RSI, H_RDI,
					H_R8,  H_R9,  H_R10, H_R11,
					H_R12, -1,    -1,    -1 };

	return map[guest & 15];
}

enum site_type {
	SITE_INSN,     /* run in->fn, go on at resume (or leave) */
	SITE_CHAIN,    /* go to rip; patch may be aimed there */
	SITE_HERE,     /* go to rip, through the loop if it has to look */
	SITE_INDIRECT, /* go to c->tr.target; in is the branch, at rip */
	SITE_ALONE,    /* go to rip's code without groups; patch as above */
	SITE_VEC,      /* the block at rip wants the vector registers */
	SITE_X87       /* ... or those of the x87 */
};

struct site {
	int64_t rip : 55; /* canonical, or just behind what is */
	uint64_t type : 3;
	uint64_t known : 1;   /* SITE_INSN: of is in t->insn */
	uint64_t punt : 1;    /* SITE_INSN: it never has host code */
	uint64_t checked : 1; /* other page: only the checked entry will do */
	uint64_t ahead : 1;   /* SITE_CHAIN: to higher addresses */
	/* SITE_INSN: its block needs these; SITE_CHAIN: it has them */
	uint64_t vec : 1, x87 : 1;
	/* Places in code memory: see trans_place(), 0: none. */
	uint32_t resume; /* SITE_CHAIN, SITE_ALONE: its stub */
	union {
		uint32_t patch; /* SITE_CHAIN, SITE_ALONE: rel32 */
		/* SITE_INSN: in t->bytes, or in t->insn once it has been here;
		 * SITE_HERE: its block in t->block */
		uint32_t of;
		/* SITE_INDIRECT: added to rsp if the branch must fault */
		int32_t undo;
	};
};

/*
 * What in a block's code depends on where the block and its code are, so that
 * a copy can serve the same page at another address (copy.c).
 */
enum reloc_kind {
	RELOC_ADDRESS, /* imm64: a linear address */
	RELOC_RETURN,  /* imm32: one of 32-bit code */
	RELOC_ID,      /* imm64: of xtab_id() */
	RELOC_SLOT,    /* disp32: of the page's entry in xtab */
	RELOC_SLOT_2,  /* of the second page's */
	RELOC_STUB,    /* of stub_site(): number of the site, way to a thunk */
	RELOC_SITE,    /* of stub_site(): only the number */
	RELOC_THUNK,   /* rel32 to a thunk */
	RELOC_CROSS    /* rel32 into the other area */
};

struct reloc {
	uint32_t at : 27; /* from the beginning of the block's code there */
	uint32_t kind : 4;
	uint32_t far : 1;
};

struct tblock {
	/* What looking for one reads: a line of the cache. */
	uint64_t lin, gpa;
	uint32_t key;
	bool dead : 1;
	bool fixed : 1; /* cannot be copied */
	bool vec : 1, x87 : 1;
	/* From entry to behind what a jump from near by need not check. */
	uint8_t inner;
	uint8_t *checked; /* entry from another page; its code begins here */
	uint8_t *entry;	  /* NULL: not translatable */
	uint8_t *miss;	  /* stub that looks it up anew; its far code begins */
	uint32_t near_size : 20, nsites : 12;
	uint32_t far_size : 20, nrelocs : 12;
	unsigned site, reloc;
	/* By page: the second, when its one instruction crosses into it. */
	struct tlink {
		struct tblock *block;
		struct soft_page *page;
		uint64_t granules; /* that its translation has looked at */
		struct tlink *next;
	} link[2];
} __attribute__((aligned(64)));

enum {
	/* What runs often and what does not (struct area), of both a part for
	 * what is translated and the rest for copies. */
	NEAR_ORIGINALS = 44 << 20,
	NEAR_SIZE = 56 << 20,
	FAR_ORIGINALS = 28 << 20,
	CODE_SIZE = NEAR_SIZE + (40 << 20),
	CODE_ROOM = 128 << 10, /* more than one block can take */
	MAX_SITES = 5 << 18,
	ALL_SITES = 7 << 18,  /* with those of copies, behind */
	MAX_BYTES = 1 << 22,  /* of instructions that have sites */
	MAX_TINSNS = 1 << 18, /* those of them that were interpreted */
	MAX_TBLOCKS = 3 << 16,
	ALL_TBLOCKS = 1 << 18,
	MAX_RELOCS = 1 << 22,
	PAGE_HASH_BITS = 14,
	PAGE_HASH = 1 << PAGE_HASH_BITS,
	ITAB_GROUP = 256, /* entries: a page of the host's */
	ITAB_GROUPS = ITAB_SIZE / ITAB_GROUP,
	TRANS_INSNS = 64, /* guest instructions in a block */
	HOT = 4,	  /* runs in the interpreter before translation */
	CHANGED = 6,	  /* times as many of code that was changed */
	/* And of the first blocks of a guest that goes on: what it does when
	 * it wakes up it does a few times. */
	WAKING = 8,
	WAKING_BLOCKS = 1000
};

/*
 * Code is written in two places: the first versions of blocks lie close
 * together, what seldom runs (second versions, stubs) elsewhere.
 */
struct area {
	uint8_t *start, *used, *end; /* start: behind what a flush keeps */
	uint8_t *large; /* up to there pages are large, or cannot */
};

/*
 * Blocks are found in lines of the cache, whose number grows with theirs.
 * Each entry has the place of a block in trans.block, + 1, 0: none, and above
 * that a part of the hash, so that no other block is read to see that it is
 * not the one.
 */
enum {
	LINE_WAYS = 16,
	LINE_BITS_MIN = 8,
	LINE_BITS = 15,
	LINES = 1 << LINE_BITS
};

struct lines {
	uint32_t (*line)[LINE_WAYS];
	unsigned bits, n;
};

/* The tables that translated code has filled when they lack an entry. */
enum { MISS_EXEC = MMU_COUNT * 2, MISS_TABLES };

static inline unsigned miss_table(unsigned mmu, bool write)
{
	return mmu * 2 + write;
}

struct trans {
	struct cpu *c;
	uint8_t *rw;	 /* code where it is written */
	ptrdiff_t to_rx; /* + this: where it runs */
	struct area near, far;
	struct site *site;
	struct insn *insn;
	uint8_t *bytes; /* length, instruction */
	struct tblock *block;
	struct reloc *reloc;
	unsigned nsites, ninsns, nbytes, nblocks, nrelocs;
	struct {
		struct area near, far;
		unsigned nsites, nblocks; /* of all: where the next goes */
	} copies;
	struct lines here;  /* all, by block_hash() */
	struct lines twins; /* originals that have copies, by twin_hash() */
	struct tlink *by_page[PAGE_HASH];
	/* Groups of the table that hold something; others are not touched. */
	bool itab_used[MMU_COUNT][ITAB_GROUPS];
	bool large_tables; /* are large pages, as far as the host has them */
	unsigned hot;
	struct tblock *found; /* by the last find() */
	struct block *cold;   /* what it found not to be hot yet */
	void (*enter)(struct cpu *c, const uint8_t *code);
	uint8_t *thunk_site, *thunk_indirect;
	uint8_t *thunk_miss[MISS_TABLES];
	/* These go on behind the way to the lookup, not to C. */
	uint8_t *thunk_miss_back[MISS_TABLES];
	struct tinsn *scratch;
	uint32_t punts[ZYDIS_MNEMONIC_MAX_VALUE + 1];
};

/* -- code.c --------------------------------------------------------------- */

int trans_init(struct cpu *c);
void trans_finish(struct cpu *c);
/* Fill in what only the translator knows. */
void trans_stats(const struct cpu *c, struct hv_stats *stats);
/*
 * Run translated code at c->rip; false: there is none, interpret; *cold is
 * the decoded block when it has come by that.
 */
bool trans_run(struct cpu *c, struct block **cold);
/* For block.c: */
unsigned trans_new_site(struct trans *t, enum site_type type, uint64_t rip);
/* What that site interprets. */
void trans_keep_insn(struct trans *t, struct site *s, const struct insn *in);

/* A place in code memory, where it is written, as sites have it. */
static inline uint32_t trans_place(const struct trans *t, const uint8_t *p)
{
	return p ? (uint32_t)(p - t->rw) : 0;
}

static inline uint8_t *trans_at(const struct trans *t, uint32_t place)
{
	return place ? t->rw + place : NULL;
}

/* -- copy.c --------------------------------------------------------------- */

enum { STUB_SITE = 1, STUB_JUMP = 6 }; /* in what stub_site() writes */

/* Code at lin is where copies are made. */
bool trans_may_copy(uint64_t lin);
/* Can a block from there serve lin too? */
bool trans_copies(const struct tblock *from, uint64_t lin);
/* A copy for lin, where the same pages are.  There must be room. */
struct tblock *trans_copy(struct trans *t, const struct tblock *from,
			  uint64_t lin);

/* -- block.c -------------------------------------------------------------- */

/*
 * Translate the block at lin for trans_key(), or with KEY_ALONE.  NULL: its first instruction runs into the next
 * page, which is needed then.  Its entry is NULL when it has no host code.
 */
struct tblock *trans_block(struct trans *t, uint64_t lin, uint32_t key,
			   struct code_page *p, struct code_page *second);

/* -- shared by the emitters of one block ---------------------------------- */

struct tinsn {
	struct decoded d;
	struct insn in;
	uint64_t rip;
	uint16_t reads, kills, writes; /* arithmetic flags */
	uint16_t live_in, live_out;
	uint16_t live_to; /* where a direct branch goes */
	bool vec, x87;
	bool turned;  /* a jump to the block's start that goes on there */
	int site;     /* -1: none yet */
	int8_t group; /* group.c: its access belongs to, -1: none */
	int32_t off;  /* from what the group's addresses have in common */
};

/* Accesses that one check of the TLB serves (group.c). */
struct group {
	int32_t lo, hi, aligned; /* bytes, as tinsn.off */
	unsigned n;
	bool write, align, open;
};

enum { MAX_GROUPS = 16 };

struct cold {
	uint8_t *at; /* rel32 to aim at the stub */
	unsigned site;
	/* A lookup that missed: miss_table(), where it begins, else NULL. */
	uint8_t *retry;
	uint8_t table;
	bool assigned;
};

enum { MAX_COLD = TRANS_INSNS * 10 };
enum { MAX_BLOCK_RELOCS = 4 * MAX_COLD };
_Static_assert(CODE_ROOM < 1 << 20 && MAX_BLOCK_RELOCS < 1 << 12,
	       "struct tblock has room for these");

/* A conditional exit that has something to do when it is taken. */
struct leave {
	uint8_t *at;
	uint64_t target;
	bool save, assigned, ahead;
};

enum { MAX_LEAVE = TRANS_INSNS };

struct tctx {
	struct trans *t;
	struct cpu *c;
	struct emit e, other; /* one writes near, the other far */
	struct tblock *tb;
	struct code_page *first, *second;
	unsigned n, body; /* body: instructions of a turn, if there are more */
	struct tinsn *ti;
	bool fl_host, fl_mem;
	bool vec, x87;
	uint8_t *loop; /* where the block goes on from its end to itself */
	unsigned ncold;
	unsigned nleave;
	uint32_t tlb; /* offset of the TLB of this mode in struct cpu */
	unsigned mmu;
	bool wide;    /* 64-bit code, else 32-bit: flat segments */
	uint8_t word; /* bytes of an address on the stack */
	/* assign.c */
	struct {
		uint8_t in, out; /* guest registers that change places */
	} pair[3];
	unsigned npairs;
	bool assigned;	 /* they have, here */
	int8_t host[16]; /* host_reg() here */
	uint8_t *out;	 /* stub: they have not any more, then to C */
	/* group.c */
	unsigned ngroups;
	bool alone;    /* without groups */
	bool grouped;  /* a group has been opened */
	int held;      /* the group whose address T1 holds, or -1 */
	bool keeps;    /* ... as the instruction has left it */
	int32_t lower; /* for emit_lea(): added to the displacement */
	uint64_t rip;  /* of the instruction that is translated */
	int moved;     /* what is still to be added to rsp */
	/* From here on nothing counts until it is written. */
	struct cold cold[MAX_COLD];
	struct leave leave[MAX_LEAVE];
	struct group group[MAX_GROUPS];
};

#define GS(field) ((uint32_t)offsetof(struct cpu, field))
#define GS_GPR(n) (GS(gpr) + 8 * (uint32_t)(n))
#define GS_SEG(n, field) \
	(GS(seg) + (n) * (uint32_t)sizeof(struct segreg) + \
	 (uint32_t)offsetof(struct segreg, field))
#define TLB_TAG	 ((uint32_t)offsetof(struct tlb_entry, tag))
#define TLB_HOST ((uint32_t)offsetof(struct tlb_entry, host))

static inline void ctx_mmu(struct tctx *x, unsigned mmu)
{
	x->mmu = mmu;
	x->tlb = GS(tlb) + mmu * (uint32_t)sizeof(struct tlb);
}

static inline void cold_add(struct tctx *x, uint8_t *at, unsigned site)
{
	x->cold[x->ncold++] = (struct cold){ .at = at,
					     .site = site,
					     .assigned = x->assigned };
}

/* at: in the code that was just written */
static inline void reloc_add(struct tctx *x, enum reloc_kind kind,
			     const uint8_t *at)
{
	struct trans *t = x->t;
	bool far = at >= t->far.start;

	if (x->tb->fixed)
		return;
	if (x->e.full || t->nrelocs == MAX_RELOCS) {
		x->tb->fixed = true;
		return;
	}
	t->reloc[t->nrelocs++] = (struct reloc){
		.at = (uint32_t)(at - (far ? x->tb->miss : x->tb->checked)),
		.kind = kind,
		.far = far
	};
}

/* mov reg, v, which depends on where the block lies */
static inline void emit_place(struct tctx *x, unsigned reg, uint64_t v,
			      enum reloc_kind kind)
{
	const uint8_t *from = x->e.p;

	e_imm(&x->e, reg, v);
	if (x->e.p - from == 10)
		reloc_add(x, kind, x->e.p - 8);
	else
		x->tb->fixed = true;
}

/* The site that interprets this instruction. */
static inline unsigned insn_site(struct tctx *x, struct tinsn *ti)
{
	struct site *s;

	if (ti->site < 0) {
		ti->site = (int)trans_new_site(x->t, SITE_INSN, ti->rip);
		s = &x->t->site[ti->site];
		trans_keep_insn(x->t, s, &ti->in);
		s->vec = x->vec;
		s->x87 = x->x87;
	}
	return (unsigned)ti->site;
}

/* The unusual case goes to the interpreter. */
static inline void slow_if(struct tctx *x, struct tinsn *ti, unsigned cc)
{
	cold_add(x, e_jcc(&x->e, cc), insn_site(x, ti));
}

/* False: the instruction raises, which the interpreter does. */
static inline bool vec_allowed(const struct cpu *c, const struct tinsn *ti)
{
	if (!ti->vec)
		return true;
	if (c->cr0 & (CR0_EM | CR0_TS) || !(c->cr4 & CR4_OSFXSR))
		return false;
	return ti->d.i.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX ||
	       (c->cr4 & CR4_OSXSAVE && (c->xcr0 & 6) == 6);
}

/* A data segment with any base, whose offsets all are within the limit. */
static inline bool seg_unlimited(const struct segreg *s)
{
	return s->limit == 0xffffffff &&
	       (s->access & (SEG_A_UNUSABLE | SEG_A_P | 0x1e)) ==
		       (SEG_A_P | 0x12);
}

/*
 * 64-bit code, and 32-bit code with all but FS and GS at 0 to 4 GiB.  What
 * loads a segment ends its block, so this holds for a whole block.
 */
static inline bool trans_mode(const struct cpu *c)
{
	const struct segreg *cs = &c->seg[SEG_CS];

	if (likely(c->mode == MODE_64))
		return true;
	return (c->mode == MODE_C32 || c->mode == MODE_P32) && c->flat &&
	       c->seg[SEG_SS].access & SEG_A_DB && !cs->base &&
	       cs->limit == 0xffffffff;
}

/* In a block's key: every access checks the TLB for itself (group.c). */
#define KEY_ALONE 0x80000000u

static inline unsigned key_mmu(uint32_t key)
{
	return key >> 24 & 3;
}

/* All that translation depends on. */
static inline uint32_t trans_key(const struct cpu *c)
{
	uint32_t key = c->mode_key | (uint32_t)c->mmu << 24;

	if (unlikely(c->mode != MODE_64)) {
		key |= (uint32_t)seg_unlimited(&c->seg[SEG_FS]) << 22;
		key |= (uint32_t)seg_unlimited(&c->seg[SEG_GS]) << 23;
	}
	return key;
}

/* block.c */
void flags_save(struct tctx *x);
void flags_restore(struct tctx *x);
/* Before something that clobbers the host's flags. */
static inline void flags_spill(struct tctx *x, const struct tinsn *ti)
{
	if (x->fl_host && !x->fl_mem && ti->live_in)
		flags_save(x);
	x->fl_host = false;
}

/* assign.c */
void assign_plan(struct tctx *x);
/* It may go on from its end, or on a condition, to its beginning. */
bool assign_loops(const struct tctx *x);
/* The registers are as the plan says (on) or where they always are. */
void assign_use(struct tctx *x, bool on);
/* Emit what makes them so, and say that they are; flags are kept. */
void assign_enter(struct tctx *x);
void assign_leave(struct tctx *x);
/* The same on a way out that is not the block's only one. */
void emit_unassign(struct tctx *x);

/* access.c: false: its address takes the interpreter */
bool address_fits(const struct tctx *x, const struct tinsn *ti);
/* T0 = address of the memory operand (flags are lost) */
void emit_address(struct tctx *x, struct tinsn *ti, const struct operand *op);
/* T0 = address -> T0 = offset if the page is the entry's, T1 = the entry; the
 * offset of its host page from T1 */
uint32_t emit_probe(struct tctx *x, bool write);
/* The jump taken unless size bytes at T0 lie in the page */
uint8_t *emit_unless_room(struct tctx *x, unsigned size);
/* T0 = address, T1 = clobbered -> T0 = offset in page, T1 = host page */
void emit_lookup(struct tctx *x, struct tinsn *ti, unsigned size, bool write,
		 bool aligned);
/* base + disp of a guest register: T0 = it (flags are kept) */
void emit_reg_disp(struct tctx *x, unsigned guest, int32_t disp);
/* lea without a segment into host register to (flags are kept) */
void emit_lea(struct tctx *x, const struct tinsn *ti, const struct operand *op,
	      unsigned to, bool wide);

/* x87.c: is this one for host code that needs the x87's state? */
bool x87_wanted(const struct cpu *c, const struct decoded *d);
/* Instructions of this file (*done); false: nothing emitted, interpret it. */
bool emit_x87(struct tctx *x, struct tinsn *ti, bool *done);
void emit_x87_load(struct emit *e);
void emit_x87_store(struct emit *e);
/* No exception can be raised or is pending. */
bool x87_ready(const struct cpu *c);

/* system.c, for gate.c too */
/* An interrupt waits for IF: the interpreter knows what STI's shadow is. */
void slow_if_irq(struct tctx *x, struct tinsn *ti);
/* reg is not T1, which is clobbered */
void slow_unless_canonical(struct tctx *x, struct tinsn *ti, unsigned reg);
/* T0 = rflags but these, from where they are spilled; T1 = clobbered */
void emit_flags_read(struct emit *e, uint32_t without);
/* The guest's arithmetic flags are those of T0; T0, T1 = clobbered */
void emit_flags_arith(struct tctx *x);

/* flow.c: go to T0; undo: what to add to rsp if the branch must fault */
void emit_indirect(struct tctx *x, struct tinsn *ti, int16_t undo);
/* gate.c: a system call or its return; false: interpret it */
bool emit_gate(struct tctx *x, struct tinsn *ti);

/* group.c */
void group_plan(struct tctx *x);
void group_close(struct tctx *x);
bool group_serves(const struct tctx *x, const struct tinsn *ti);
int32_t group_reach(struct tctx *x, struct tinsn *ti, const struct operand *op,
		    int stack);
/* Before ti: check now what would be in the way of the flags it makes. */
void group_ahead(struct tctx *x, struct tinsn *ti);
/* Bytes that an operand must be aligned to, 0: none */
unsigned operand_alignment(const struct tinsn *ti, const struct operand *op);

/* Where an operand can be reached: [base + index + disp]. */
struct spot {
	int base, index;
	int32_t disp;
};
/* The word at rsp + disp; flags are spilled. */
struct spot stack_spot(struct tctx *x, struct tinsn *ti, int disp, bool write);

/*
 * Add n to rsp.  A run of pushes and pops in a group that is open changes it
 * once, as nothing between them leaves the block: stack_step() of ti lets it
 * wait, in moved, and stack_settle() before ti does it, unless ti is another
 * (NULL: do it).
 */
void stack_move(struct tctx *x, int n);
void stack_step(struct tctx *x, const struct tinsn *ti, int n);
void stack_settle(struct tctx *x, const struct tinsn *ti);

/* vec.c: the same */
bool emit_vec(struct tctx *x, struct tinsn *ti, bool *done);

/* insn.c: false: nothing emitted, interpret it */
bool emit_insn(struct tctx *x, struct tinsn *ti);
/* bits.c: the same for bit strings */
bool emit_bits(struct tctx *x, struct tinsn *ti);
/* string.c: the same for string instructions */
bool emit_string(struct tctx *x, struct tinsn *ti);
/* A repetition that emit_string() takes. */
bool string_goes_on(const struct tctx *x, const struct tinsn *ti);
/* system.c: the same for system instructions */
bool emit_system(struct tctx *x, struct tinsn *ti);
/* It is one of those, and the block goes on behind it although it ends one. */
bool system_goes_on(const struct cpu *c, const struct decoded *d);
/* flow.c: ends the block or leaves it on a condition; false as above */
bool emit_flow(struct tctx *x, struct tinsn *ti, bool *ends);
/* block.c */
void emit_exit(struct tctx *x, uint64_t target, uint16_t live, int cc);
uint64_t branch_target(const struct tctx *x, const struct tinsn *ti);

#endif /* SOFT_TRANS_H */
