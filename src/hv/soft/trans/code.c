/* SPDX-License-Identifier: Apache-2.0 */
/*
 * code.c - translated code of one vCPU: memory, thunks, finding, forgetting
 *
 * Code memory is one memfd mapped twice, writable and executable, never both
 * at one address.  Code is only added; when it is full everything is dropped.
 *
 * A block whose page changed is killed: its entry becomes a jump to the stub
 * that looks the address up anew, so that jumps aimed at it stay valid.  The
 * pages to look at come from code_written(), on any thread, through c->stale.
 */
#include "hv/soft/trans/trans.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hv/soft/x86/fpu.h"
#include "hv/soft/x86/lapic.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { HOST_MXCSR = 0x1f80, MXCSR_MASKS = 0x1f80 };
/* A large page; as much as is always in small ones; from when tables are not. */
enum { LARGE = 2 << 20, SMALL = 4 << 20, MUCH = 8 << 20 };
enum { AHEAD = 4 }; /* large pages that are empty: one for so many full ones */

static void *trans_site(struct cpu *c);

/* -- memory --------------------------------------------------------------- */

static void *reserve(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, n, MADV_DONTFORK);
	return p;
}

/*
 * What is filled from p on, up to end: much of it takes less of the host's
 * time in large pages, and we wait less for its page tables.  Who needs little
 * does not pay for what is empty in them.
 */
static void prefer_large(void *p, void *end)
{
	uintptr_t from = ALIGN_UP((uintptr_t)p + SMALL, LARGE);
	uintptr_t to = (uintptr_t)end & ~(uintptr_t)(LARGE - 1);

	if (from < to)
		madvise((void *)from, to - from, MADV_HUGEPAGE);
}

/* The lists of blocks, and those of copies behind them. */
static void prefer_large_lists(struct trans *t)
{
	prefer_large(t->site, t->site + MAX_SITES);
	prefer_large(t->site + MAX_SITES, t->site + ALL_SITES);
	prefer_large(t->block, t->block + MAX_TBLOCKS);
	prefer_large(t->block + MAX_TBLOCKS, t->block + ALL_TBLOCKS);
	prefer_large(t->reloc, t->reloc + MAX_RELOCS);
}

/* A mapping of the whole of fd that large pages fit. */
static void *map_code(int fd, int prot)
{
	uint8_t *p = mmap(NULL, CODE_SIZE + LARGE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *at;

	if (p == MAP_FAILED)
		return p;
	at = (uint8_t *)ALIGN_UP((uintptr_t)p, LARGE);
	if (mmap(at, CODE_SIZE, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
		 fd, 0) == MAP_FAILED) {
		munmap(p, CODE_SIZE + LARGE);
		return MAP_FAILED;
	}
	if (at > p)
		munmap(p, (size_t)(at - p));
	munmap(at + CODE_SIZE, LARGE - (size_t)(at - p));
	return at;
}

static int code_memory(struct trans *t)
{
	int fd = memfd_create("husk-code", MFD_CLOEXEC), ret = 0;
	void *rw, *rx;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, CODE_SIZE)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	rw = map_code(fd, PROT_READ | PROT_WRITE);
	rx = map_code(fd, PROT_READ | PROT_EXEC);
	ret = -errno;
	close(fd);
	if (rw == MAP_FAILED || rx == MAP_FAILED) {
		if (rw != MAP_FAILED)
			munmap(rw, CODE_SIZE);
		if (rx != MAP_FAILED)
			munmap(rx, CODE_SIZE);
		return ret;
	}
	/* A process that is split off has no hand in this one's code. */
	madvise(rw, CODE_SIZE, MADV_DONTFORK);
	madvise(rx, CODE_SIZE, MADV_DONTFORK);
	t->rw = rw;
	t->to_rx = (uint8_t *)rx - t->rw;
	return 0;
}

/*
 * Much code runs in any order: with small pages it waits for the host's page
 * tables.  What is full, and so takes no more memory, becomes large pages, if
 * the host can do that.  Where much is full already the next pages do before
 * they are written: that spares their faults, and copying them.
 */
static void enlarge(struct trans *t, struct area *a)
{
	size_t full, ahead, n;

	if (a->used < a->large)
		return;
	full = (size_t)(a->used - a->large) & -(size_t)LARGE;
	ahead = (size_t)(a->used - a->start) / AHEAD & -(size_t)LARGE;
	n = MIN(full + ahead, (size_t)(a->end - a->large) & -(size_t)LARGE);
	/* The host does nothing where it has no page at all. */
	for (size_t at = full; at < n; at += LARGE) {
		*(volatile uint8_t *)(a->large + at);
		*(volatile uint8_t *)(a->large + at + t->to_rx);
	}
	if (n && madvise(a->large + t->to_rx, n, MADV_COLLAPSE) == 0)
		madvise(a->large, n, MADV_COLLAPSE);
	a->large += n;
}

/* The large pages that p lies in; whose else they are does not matter. */
static void collapse_all(void *p, size_t n)
{
	uintptr_t at = (uintptr_t)p & ~(uintptr_t)(LARGE - 1);

	for (; at < (uintptr_t)p + n; at += LARGE)
		madvise((void *)at, LARGE, MADV_COLLAPSE);
}

/* Where much code is looked for, what finds it is read in no order, either. */
static void enlarge_tables(struct trans *t)
{
	struct cpu *c = t->c;

	t->large_tables = true;
	collapse_all(c, sizeof(*c));
	collapse_all(t, sizeof(*t));
	collapse_all(t->here.line, sizeof(t->here.line[0]) << t->here.bits);
	collapse_all(t->twins.line, sizeof(t->twins.line[0]) << t->twins.bits);
	collapse_all(c->cache, cache_size());
	if (c->forms)
		collapse_all(c->forms, forms_size());
}

/* -- thunks --------------------------------------------------------------- */

static void load_registers(struct emit *e)
{
	for (unsigned n = 0; n < 16; n++)
		if (host_reg(n) >= 0)
			e_gs_load(e, (unsigned)host_reg(n), GS_GPR(n));
}

static void store_registers(struct emit *e)
{
	for (unsigned n = 0; n < 16; n++)
		if (host_reg(n) >= 0)
			e_gs_store(e, (unsigned)host_reg(n), GS_GPR(n));
}

/* v(insert|extract)f128 of ymm n and gs:[off] */
static void ymm_high(struct emit *e, unsigned n, uint32_t off, bool store)
{
	e1(e, 0x65);
	e1(e, 0xc4);
	e1(e, (uint8_t)((n > 7 ? 0 : 0x80) | 0x60 | 3));
	e1(e, store ? 0x7d : (uint8_t)(0x05 | (~n & 15) << 3));
	e1(e, store ? 0x19 : 0x18);
	e_mem(e, n, -1, -1, 0, (int32_t)off);
	e1(e, 1);
}

static void xmm_low(struct emit *e, unsigned n, uint32_t off, bool store)
{
	e1(e, 0x65);
	if (n > 7)
		e1(e, 0x44);
	e1(e, 0x0f);
	e1(e, store ? 0x11 : 0x10);
	e_mem(e, n, -1, -1, 0, (int32_t)off);
}

/* ldmxcsr (2) or stmxcsr (3) gs:[off] */
static void mxcsr(struct emit *e, unsigned op, uint32_t off)
{
	E(e, 0x65, 0x0f, 0xae);
	e_mem(e, op, -1, -1, 0, (int32_t)off);
}

static void set_byte(struct emit *e, uint32_t off, uint8_t v)
{
	E(e, 0x65, 0xc6, 0x04, 0x25);
	e4(e, off);
	e1(e, v);
}

static void emit_vec_load(struct emit *e)
{
	for (unsigned n = 0; n < 16; n++) {
		xmm_low(e, n, GS(fpu) + FX_XMM + 16 * n, false);
		ymm_high(e, n, GS(fpu) + FX_YMM + 16 * n, false);
	}
	mxcsr(e, 2, GS(fpu) + FX_MXCSR);
	set_byte(e, GS(tr.vec_loaded), 1);
}

static void emit_vec_store(struct emit *e)
{
	for (unsigned n = 0; n < 16; n++) {
		xmm_low(e, n, GS(fpu) + FX_XMM + 16 * n, true);
		ymm_high(e, n, GS(fpu) + FX_YMM + 16 * n, true);
	}
	mxcsr(e, 3, GS(fpu) + FX_MXCSR);
	E(e, 0xc5, 0xf8, 0x77); /* vzeroupper */
	mxcsr(e, 2, GS(tr.host_mxcsr));
	set_byte(e, GS(tr.vec_loaded), 0);
}

/* cmp byte gs:[off], 0; je: where to aim */
static uint8_t *unless(struct emit *e, uint32_t off)
{
	E(e, 0x65, 0x80, 0x3c, 0x25);
	e4(e, off);
	e1(e, 0);
	return e_jcc(e, CC_E);
}

/* cmp word gs:[off], 0; je: where to aim */
static uint8_t *unless_both(struct emit *e, uint32_t off)
{
	E(e, 0x65, 0x66, 0x83, 0x3c, 0x25);
	e4(e, off);
	e1(e, 0);
	return e_jcc(e, CC_E);
}

/* What is loaded is wanted again, unless trans_site() says otherwise. */
static void emit_fpu_store(struct emit *e)
{
	uint8_t *none, *skip;

	E(e, 0x65, 0x0f, 0xb7, 0x04, 0x25); /* movzx eax, word gs:[] */
	e4(e, GS(tr.vec_loaded));
	E(e, 0x65, 0x66, 0x89, 0x04, 0x25); /* mov gs:[], ax */
	e4(e, GS(tr.vec_want));
	none = unless_both(e, GS(tr.vec_loaded));
	skip = unless(e, GS(tr.vec_loaded));
	emit_vec_store(e);
	e_aim(skip, e->p);
	skip = unless(e, GS(tr.x87_loaded));
	emit_x87_store(e);
	set_byte(e, GS(tr.x87_loaded), 0);
	e_aim(skip, e->p);
	e_aim(none, e->p);
}

static void emit_fpu_load(struct emit *e)
{
	uint8_t *none, *skip;

	none = unless_both(e, GS(tr.vec_want));
	skip = unless(e, GS(tr.vec_want));
	emit_vec_load(e);
	e_aim(skip, e->p);
	skip = unless(e, GS(tr.x87_want));
	emit_x87_load(e);
	set_byte(e, GS(tr.x87_loaded), 1);
	e_aim(skip, e->p);
	e_aim(none, e->p);
}

static void drop_copies(struct trans *t)
{
	t->copies.near.used = t->copies.near.start;
	t->copies.far.used = t->copies.far.start;
	t->copies.nsites = MAX_SITES;
	t->copies.nblocks = MAX_TBLOCKS;
}

/* A stub has pushed the number of its site. */
static void emit_pop_site(struct emit *e)
{
	E(e, 0x65, 0x8f, 0x04, 0x25); /* pop qword gs:[site] */
	e4(e, GS(tr.site));
}

/* Where all sites come together: falls through to what turns to C. */
static void emit_thunk_site(struct trans *t, struct emit *e)
{
	uint8_t *over = e_jmp(e);

	t->thunk_site = e->p;
	emit_pop_site(e);
	e_aim(over, e->p);
}

/* T0 is a target that is not in entry T1 >> ITAB_SHIFT: try its neighbour. */
static void emit_indirect_thunk(struct trans *t, struct emit *e)
{
	uint8_t *miss;

	t->thunk_indirect = e->p;
	emit_pop_site(e);
	e_gs_store(e, T0, GS(tr.target));
	E(e, 0x41, 0xc1, 0xe7, 4 - ITAB_SHIFT); /* shl r15d, */
	/* movzx eax, byte gs:[mmu]; imul eax, eax, size of a table */
	E(e, 0x65, 0x0f, 0xb6, 0x04, 0x25);
	e4(e, GS(mmu));
	E(e, 0x69, 0xc0);
	e4(e, sizeof(((struct cpu *)0)->itab[0]));
	E(e, 0x49, 0x83, 0xf7, sizeof(struct itab_entry)); /* xor r15, */
	e_rr(e, 0x01, T1, T0);				   /* add r15, rax */
	e_gs_load(e, T0, GS(tr.target));
	e_gs_base(e, 0x3b, T0, T1, GS(itab[0][0].rip));
	miss = e_jcc(e, CC_NE);
	E(e, 0x65, 0x41, 0xff, 0xa7); /* jmp gs:[r15 + ...] */
	e4(e, GS(itab[0][0].code));
	e_aim(miss, e->p);
	emit_thunk_site(t, e);
}

/* What C code may change of the registers that hold the guest's. */
static const uint8_t clobbered[] = { H_RCX, H_RDX, H_RSI, H_RDI,
				     H_R8,  H_R9,  H_R10, H_R11 };

static void push(struct emit *e, unsigned reg)
{
	if (reg > 7)
		e1(e, 0x41);
	e1(e, (uint8_t)(0x50 | (reg & 7)));
}

static void pop(struct emit *e, unsigned reg)
{
	if (reg > 7)
		e1(e, 0x41);
	e1(e, (uint8_t)(0x58 | (reg & 7)));
}

/*
 * Behind the call in a stub_miss(): T0 and T1 are what fn gets.  The registers
 * are what they are, not always the guest's that they mostly hold.
 */
static void emit_refill(struct trans *t, struct emit *e, uintptr_t fn,
			bool back)
{
	unsigned n = ARRAY_SIZE(clobbered);
	uint8_t *none;

	for (unsigned i = 0; i < n; i++)
		push(e, clobbered[i]);
	push(e, T0);
	push(e, T0); /* now the stack is aligned */
	e_gs_load(e, H_RDI, GS(tr.self));
	e_mov(e, H_RSI, T0);
	E(e, 0x44, 0x89, 0xfa); /* mov edx, r15d */
	e_imm(e, H_RAX, fn);
	E(e, 0xff, 0xd0);	      /* call rax */
	E(e, 0x44, 0x0f, 0xb6, 0xf8); /* movzx r15d, al */
	pop(e, T0);
	pop(e, T0);
	while (n--)
		pop(e, clobbered[n]);
	E(e, 0x45, 0x85, 0xff); /* test r15d, r15d */
	pop(e, T1);
	none = e_jcc(e, CC_E);
	E(e, 0x48, 0x89, 0x04, 0x24); /* mov [rsp], rax: over the site */
	E(e, 0x49, 0x63, 0x07);	      /* movsxd rax, dword [r15] */
	e_op_mem(e, 0x8d, T1, T1, T0, 0, 4);
	pop(e, T0);
	E(e, 0x41, 0xff, 0xe7); /* jmp r15 */
	if (!back) {
		e_aim(none, t->thunk_site);
		return;
	}
	e_aim(none, e->p);
	e_op_mem(e, 0x8d, T1, T1, -1, 0, 4);
	E(e, 0x41, 0xff, 0xe7); /* jmp r15 */
}

static void emit_miss_thunks(struct trans *t, struct emit *e, uint8_t *thunk[],
			     bool back)
{
	uint8_t *refill = e->p;

	emit_refill(t, e, (uintptr_t)tlb_refill, back);
	thunk[MISS_EXEC] = e->p;
	emit_refill(t, e, (uintptr_t)xtab_refill, back);
	for (unsigned m = 0; m < MMU_COUNT; m++)
		for (unsigned w = 0; w < 2; w++) {
			thunk[miss_table(m, w)] = e->p;
			/* The lookup has left the index of the entry. */
			e_gs_base(e, 0x33, T0, T1,
				  GS(tlb) + m * (uint32_t)sizeof(struct tlb) +
					  w * (uint32_t)sizeof(
						      struct tlb_entry
							      [TLB_SIZE]) +
					  TLB_TAG);
			e_imm(e, T1, miss_table(m, w));
			e_jmp_to(e, refill);
		}
}

static void emit_thunks(struct trans *t)
{
	struct emit em = { t->rw, t->rw + CODE_SIZE, false }, *e = &em;
	uint8_t *enter, *out;

	enter = e->p;
	E(e, 0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57);
	E(e, 0x48, 0x83, 0xec, 0x08); /* sub rsp, 8: calls see it aligned */
	e_gs_store(e, H_RSI, GS(tr.resume));
	load_registers(e);
	E(e, 0x65, 0xff, 0x24, 0x25); /* jmp gs:[resume] */
	e4(e, GS(tr.resume));

	emit_indirect_thunk(t, e);
	store_registers(e);
	emit_fpu_store(e);
	e_gs_load(e, H_RDI, GS(tr.self));
	e_imm(e, H_RAX, (uintptr_t)trans_site);
	E(e, 0xff, 0xd0);	/* call rax */
	E(e, 0x48, 0x85, 0xc0); /* test rax, rax */
	out = e_jcc(e, CC_E);
	e_gs_store(e, H_RAX, GS(tr.resume));
	emit_fpu_load(e);
	load_registers(e);
	/* movzx eax, word gs:[flags]; add al, 0x7f; sahf */
	E(e, 0x65, 0x0f, 0xb7, 0x04, 0x25);
	e4(e, GS(tr.flags));
	E(e, 0x04, 0x7f, 0x9e);
	E(e, 0x65, 0xff, 0x24, 0x25);
	e4(e, GS(tr.resume));

	e_aim(out, e->p);
	E(e, 0x48, 0x83, 0xc4, 0x08);
	E(e, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3);
	emit_miss_thunks(t, e, t->thunk_miss, false);
	emit_miss_thunks(t, e, t->thunk_miss_back, true);
	t->near.start = t->near.used =
		t->rw + ALIGN_UP((size_t)(e->p - t->rw), 64);
	t->copies.near.start = t->rw + NEAR_ORIGINALS;
	t->far.start = t->far.used = t->rw + NEAR_SIZE;
	t->copies.far.start = t->far.start + FAR_ORIGINALS;
	t->near.large = t->rw;
	t->far.large = t->far.start;
	t->copies.near.large = t->copies.near.start;
	t->copies.far.large = t->copies.far.start;
	t->near.end = t->copies.near.start;
	t->copies.near.end = t->far.start;
	t->far.end = t->copies.far.start;
	t->copies.far.end = t->rw + CODE_SIZE;
	drop_copies(t);
	t->enter = (void (*)(struct cpu *, const uint8_t *))(
		uintptr_t)(enter + t->to_rx);
}

/*
 * An empty entry holds an address that is not looked up there, nor in its
 * neighbour: 0, or that of the third in the first two.
 */
static void itab_clear(struct cpu *c, unsigned mmu)
{
	bool *used = c->trans->itab_used[mmu];

	for (unsigned g = 0; g < ITAB_GROUPS; g++) {
		if (used[g])
			memset(&c->itab[mmu][g * ITAB_GROUP], 0,
			       ITAB_GROUP * sizeof(struct itab_entry));
		used[g] = false;
	}
	c->itab[mmu][0].rip = c->itab[mmu][1].rip = itab_address(2);
}

/* -- life ----------------------------------------------------------------- */

int trans_init(struct cpu *c)
{
	struct trans *t = calloc(1, sizeof(*t));
	int ret;

	if (!t)
		return -ENOMEM;
	c->trans = t;
	t->c = c;
	t->hot = HOT;
	t->here.bits = t->twins.bits = LINE_BITS_MIN;
	t->here.line = reserve(LINES * sizeof(*t->here.line));
	t->twins.line = reserve(LINES * sizeof(*t->twins.line));
	t->site = reserve(ALL_SITES * sizeof(*t->site));
	t->insn = reserve(MAX_TINSNS * sizeof(*t->insn));
	t->bytes = reserve(MAX_BYTES);
	t->block = reserve(ALL_TBLOCKS * sizeof(*t->block));
	t->reloc = reserve(MAX_RELOCS * sizeof(*t->reloc));
	t->scratch = reserve(TRANS_INSNS * sizeof(*t->scratch));
	ret = -ENOMEM;
	if (t->here.line && t->twins.line && t->site && t->insn && t->bytes &&
	    t->block && t->reloc && t->scratch)
		ret = code_memory(t);
	if (ret) {
		trans_finish(c);
		return ret;
	}
	prefer_large_lists(t);
	emit_thunks(t);
	for (unsigned m = 0; m < MMU_COUNT; m++)
		itab_clear(c, m);
	c->tr.self = c;
	c->tr.host_mxcsr = HOST_MXCSR;
	return 0;
}

static void release(void *p, size_t n)
{
	if (p)
		munmap(p, n);
}

void trans_finish(struct cpu *c)
{
	struct trans *t = c->trans;

	if (!t)
		return;
	release(t->here.line, LINES * sizeof(*t->here.line));
	release(t->twins.line, LINES * sizeof(*t->twins.line));
	release(t->site, ALL_SITES * sizeof(*t->site));
	release(t->insn, MAX_TINSNS * sizeof(*t->insn));
	release(t->bytes, MAX_BYTES);
	release(t->block, ALL_TBLOCKS * sizeof(*t->block));
	release(t->reloc, MAX_RELOCS * sizeof(*t->reloc));
	release(t->scratch, TRANS_INSNS * sizeof(*t->scratch));
	if (t->rw) {
		munmap(t->rw + t->to_rx, CODE_SIZE);
		munmap(t->rw, CODE_SIZE);
	}
	free(t);
	c->trans = NULL;
}

unsigned trans_new_site(struct trans *t, enum site_type type, uint64_t rip)
{
	struct site *s = &t->site[t->nsites];

	*s = (struct site){ .type = type, .rip = rip };
	return t->nsites++;
}

/* For those that are kept whole, with what one block may need. */
static bool insn_room(const struct trans *t)
{
	return t->ninsns + TRANS_INSNS < MAX_TINSNS;
}

static void keep_whole(struct trans *t, struct site *s, const struct insn *in)
{
	t->insn[t->ninsns] = *in;
	s->known = true;
	s->of = t->ninsns++;
}

void trans_keep_insn(struct trans *t, struct site *s, const struct insn *in)
{
	/* Of what raises the bytes are not known. */
	if (!in->mnemonic) {
		keep_whole(t, s, in);
		return;
	}
	s->of = t->nbytes;
	t->bytes[t->nbytes] = in->len;
	memcpy(t->bytes + t->nbytes + 1, in->bytes, in->len);
	t->nbytes += 1 + in->len;
}

/*
 * The instruction of a site.  Most sites never come to C, so it is decoded
 * when one does.  room: for it, if it must.
 */
static const struct insn *insn_of(struct trans *t, struct site *s,
				  struct insn *room)
{
	const uint8_t *from = t->bytes + s->of;
	uint8_t code[15] = { 0 };

	if (s->known)
		return &t->insn[s->of];
	memcpy(code, from + 1, from[0]);
	decode_insn(t->c, code, sizeof(code), room);
	if (!insn_room(t))
		return room;
	keep_whole(t, s, room);
	return &t->insn[s->of];
}

/* -- forgetting ----------------------------------------------------------- */

static uint64_t hash_of(uint64_t a, uint64_t b)
{
	return (a ^ (b << 13)) * 0x9e3779b97f4a7c15ull;
}

/* Every process may have its libraries elsewhere. */
static uint64_t block_hash(uint64_t lin, uint64_t gpa, uint32_t key)
{
	return hash_of(gpa ^ lin << 16, key);
}

/* The same code at any address. */
static uint64_t twin_hash(uint64_t gpa, uint32_t key)
{
	return hash_of(gpa, key);
}

static unsigned page_hash(const struct soft_page *p)
{
	return (unsigned)(hash_of((uintptr_t)p / sizeof(*p), 0) >>
			  (64 - PAGE_HASH_BITS));
}

/* -- lines of blocks */

enum { PLACE_BITS = 19, LINE_FULL = LINE_WAYS / 2 };
enum { LINE_ALIVE = LINE_FULL * 3 / 4 };
_Static_assert(ALL_TBLOCKS < 1 << PLACE_BITS, "all have a place");

static uint32_t *line_at(const struct lines *k, uint64_t hash)
{
	return k->line[hash >> (64 - k->bits)];
}

/* What an entry of that hash has above the place. */
static uint32_t line_tag(uint64_t hash)
{
	return (uint32_t)(hash >> 16) & ~0u << PLACE_BITS;
}

/* The next block in a line with that tag, from *n on, which is where it is. */
static struct tblock *line_next(const struct trans *t, const uint32_t *line,
				uint32_t tag, unsigned *n)
{
	for (; *n < LINE_WAYS; ++*n)
		if ((line[*n] ^ tag) - 1 < (1u << PLACE_BITS) - 1)
			return &t->block[(line[*n] ^ tag) - 1];
	return NULL;
}

/* A line that is full forgets one, which is translated anew then. */
static void line_add(struct trans *t, struct lines *k, uint64_t hash,
		     const struct tblock *b)
{
	uint32_t *line = line_at(k, hash);
	unsigned n = 0;

	while (n < LINE_WAYS && line[n])
		n++;
	if (n == LINE_WAYS)
		n = k->n % LINE_WAYS;
	line[n] = (uint32_t)(b - t->block + 1) | line_tag(hash);
	k->n++;
}

/* Time for more lines, with so many added to each? */
static bool lines_full(const struct lines *k, unsigned each)
{
	return k->n >> k->bits >= each && k->bits < LINE_BITS;
}

static void lines_clear(struct lines *k, unsigned bits)
{
	memset(k->line, 0, sizeof(k->line[0]) << k->bits);
	k->bits = bits;
	k->n = 0;
}

static void list_here(struct trans *t, const struct tblock *b)
{
	line_add(t, &t->here, block_hash(b->lin, b->gpa, b->key), b);
}

/* Others may be made from it. */
static bool has_twins(const struct tblock *b)
{
	return !b->fixed && b->entry;
}

static void list_twin(struct trans *t, const struct tblock *b)
{
	if (has_twins(b))
		line_add(t, &t->twins, twin_hash(b->gpa, b->key), b);
}

/* All blocks that are alive, in so many lines. */
static void list_again(struct trans *t, unsigned bits)
{
	lines_clear(&t->here, bits);
	for (unsigned n = 0; n < t->nblocks; n++)
		if (!t->block[n].dead)
			list_here(t, &t->block[n]);
	for (unsigned n = MAX_TBLOCKS; n < t->copies.nblocks; n++)
		if (!t->block[n].dead)
			list_here(t, &t->block[n]);
}

static void list_twins_again(struct trans *t, unsigned bits)
{
	lines_clear(&t->twins, bits);
	for (unsigned n = 0; n < t->nblocks; n++)
		if (!t->block[n].dead)
			list_twin(t, &t->block[n]);
}

static void forget_all(struct trans *t)
{
	lines_clear(&t->here, LINE_BITS_MIN);
	lines_clear(&t->twins, LINE_BITS_MIN);
	memset(t->by_page, 0, sizeof(t->by_page));
	for (unsigned m = 0; m < MMU_COUNT; m++)
		itab_clear(t->c, m);
	t->nsites = t->ninsns = t->nbytes = t->nblocks = t->nrelocs = 0;
	t->near.used = t->near.start;
	t->far.used = t->far.start;
	drop_copies(t);
	t->c->stats.code_flushes++;
}

/* Where those go on who still come to a block that was killed. */
static void aim_dead(struct tblock *b, const uint8_t *to)
{
	e_aim(b->entry + 1, to);
	if (b->inner)
		e_aim(b->entry + b->inner + 1, to);
}

static bool is_copy(const struct trans *t, const struct tblock *b)
{
	return b >= t->block + MAX_TBLOCKS;
}

/* A jump that is aimed at a copy is aimed back. */
static void aim_back(const struct trans *t, uint8_t *at, const uint8_t *to)
{
	const struct area *copies = &t->copies.near;
	const uint8_t *now;
	int32_t rel;

	memcpy(&rel, at, 4);
	now = at + 4 + rel;
	if (now >= copies->start && now < copies->end)
		e_aim(at, to);
}

/* Drop what was copied; originals stay. */
static void forget_copies(struct trans *t)
{
	for (unsigned n = 0; n < t->nsites; n++)
		if (t->site[n].type == SITE_CHAIN ||
		    t->site[n].type == SITE_ALONE)
			aim_back(t, trans_at(t, t->site[n].patch),
				 trans_at(t, t->site[n].resume));
	for (unsigned n = 0; n < t->nblocks; n++)
		/* What its only jump was may have been aimed just now. */
		if (t->block[n].dead && t->block[n].entry)
			aim_dead(&t->block[n], t->block[n].miss);
	for (unsigned h = 0; h < PAGE_HASH; h++) {
		struct tlink **l = &t->by_page[h];

		while (*l)
			if (is_copy(t, (*l)->block))
				*l = (*l)->next;
			else
				l = &(*l)->next;
	}
	for (unsigned m = 0; m < MMU_COUNT; m++)
		itab_clear(t->c, m);
	drop_copies(t);
	list_again(t, t->here.bits);
	t->c->stats.code_flushes++;
}

static void kill(struct trans *t, struct soft_page *page, uint64_t granules)
{
	struct tlink **at = &t->by_page[page_hash(page)], *l;

	while ((l = *at)) {
		struct tblock *b = l->block;

		if (l->page != page || !(l->granules & granules)) {
			at = &l->next;
			continue;
		}
		*at = l->next;
		b->dead = true;
		if (!b->entry)
			continue;
		b->entry[0] = b->entry[b->inner] = 0xe9;
		aim_dead(b, b->miss);
	}
}

/* What code_written() and cache_forget() asked for. */
static void catch_up(struct trans *t)
{
	struct cpu *c = t->c;
	typeof(c->stale) stale;
	unsigned n;

	pthread_mutex_lock(&c->vm->code);
	n = c->nstale;
	memcpy(stale, c->stale, n * sizeof(stale[0]));
	atomic_store(&c->nstale, 0);
	pthread_mutex_unlock(&c->vm->code);
	if (n == MAX_STALE) {
		forget_all(t);
		return;
	}
	while (n--)
		kill(t, stale[n].page, stale[n].granules);
}

/* -- finding -------------------------------------------------------------- */

static struct itab_entry *itab_at(struct cpu *c, uint64_t rip)
{
	return &c->itab[c->mmu][itab_slot(rip)];
}

static struct itab_entry *neighbour(struct cpu *c, const struct itab_entry *it)
{
	struct itab_entry *table = c->itab[c->mmu];

	return &table[(it - table) ^ 1];
}

/* Is there anything in this part of the table? */
static bool *itab_group(struct cpu *c, const struct itab_entry *it)
{
	return &c->trans->itab_used[c->mmu]
				   [(it - c->itab[c->mmu]) / ITAB_GROUP];
}

static bool itab_has(struct cpu *c, const struct itab_entry *it, uint64_t rip)
{
	return *itab_group(c, it) && it->rip == rip;
}

/* What was there goes to the neighbour, which the thunk tries next. */
static void itab_put(struct cpu *c, struct itab_entry *it, uint64_t rip,
		     const uint8_t *code)
{
	bool *used = itab_group(c, it);

	if (*used && it->rip != rip && it->code)
		*neighbour(c, it) = *it;
	it->rip = rip;
	it->code = (uintptr_t)code;
	*used = true;
}

static void itab_drop(struct cpu *c, struct itab_entry *it, uint64_t rip)
{
	struct itab_entry *table = c->itab[c->mmu];
	struct itab_entry *both[] = { it, neighbour(c, it) };

	if (!*itab_group(c, it))
		return;
	for (unsigned n = 0; n < 2; n++)
		if (both[n]->rip == rip) {
			both[n]->rip =
				itab_address((unsigned)(both[n] - table) ^ 2);
			both[n]->code = 0;
		}
}

static bool area_room(const struct area *a)
{
	return a->end - a->used >= CODE_ROOM;
}

static bool room(const struct trans *t)
{
	return area_room(&t->near) && area_room(&t->far) &&
	       t->nsites + MAX_COLD + 2 <= MAX_SITES &&
	       t->nbytes + 2 * TRANS_INSNS * 16 <= MAX_BYTES && insn_room(t) &&
	       t->nrelocs + MAX_BLOCK_RELOCS <= MAX_RELOCS &&
	       t->nblocks < MAX_TBLOCKS;
}

static bool copy_room(const struct trans *t, const struct tblock *b)
{
	const struct area *near = &t->copies.near, *far = &t->copies.far;

	return (size_t)(near->end - near->used) >= b->near_size + 16u &&
	       (size_t)(far->end - far->used) >= b->far_size &&
	       t->copies.nsites + b->nsites <= ALL_SITES &&
	       t->copies.nblocks < ALL_TBLOCKS;
}

static void enlist(struct trans *t, struct tblock *b)
{
	list_here(t, b);
	if (lines_full(&t->here, LINE_FULL)) {
		list_again(t, t->here.bits);
		/* Unless many were dead. */
		if (lines_full(&t->here, LINE_ALIVE))
			list_again(t, t->here.bits + 1);
	}
	for (unsigned n = 0; n < 2 && b->link[n].page; n++) {
		unsigned h = page_hash(b->link[n].page);

		b->link[n].next = t->by_page[h];
		t->by_page[h] = &b->link[n];
	}
}

/* One that was translated, not copied. */
static void enlist_original(struct trans *t, struct tblock *b)
{
	list_twin(t, b);
	if (lines_full(&t->twins, LINE_FULL)) {
		list_twins_again(t, t->twins.bits);
		if (lines_full(&t->twins, LINE_ALIVE))
			list_twins_again(t, t->twins.bits + 1);
	}
}

static bool claimed(const struct code_page *p)
{
	return !p || atomic_load(&p->page->state) & PAGE_CODE;
}

/* NULL: there is no memory behind the page.  Faults. */
static struct tblock *translate(struct trans *t, uint64_t lin, uint32_t key,
				struct code_page *p)
{
	struct code_page next, *second = NULL;
	struct cpu *c = t->c;
	struct tblock *b = NULL;

	if (!room(t))
		forget_all(t);
	enlarge(t, &t->near);
	enlarge(t, &t->far);
	if (!t->large_tables && t->near.used - t->near.start > MUCH)
		enlarge_tables(t);
	for (;;) {
		bool ready;

		code_claim(c, p);
		if (second)
			code_claim(c, second);
		pthread_mutex_lock(&c->vm->code);
		ready = claimed(p) && claimed(second);
		if (ready)
			b = trans_block(t, lin, key, p, second);
		if (b) {
			enlist(t, b);
			enlist_original(t, b);
		}
		pthread_mutex_unlock(&c->vm->code);
		if (b)
			break;
		if (!ready)
			continue;
		if (!code_at(c, (lin | 0xfff) + 1, &next) || next.gpa >> 40)
			return NULL;
		second = &next;
	}
	c->stats.translations++;
	return b;
}

/* Where its instruction goes on from lin is the page it was. */
static bool second_same(struct cpu *c, const struct tblock *b, uint64_t lin)
{
	struct code_page p;

	return !b->link[1].page ||
	       (code_at(c, (lin | 0xfff) + 1, &p) && p.page == b->link[1].page);
}

/* The same code translated for another address, as ASLR makes them. */
static struct tblock *find_twin(struct trans *t, uint64_t lin, uint64_t gpa,
				uint32_t key)
{
	uint64_t hash = twin_hash(gpa, key);
	uint32_t *line = line_at(&t->twins, hash);
	struct tblock *b;

	for (unsigned n = 0; (b = line_next(t, line, line_tag(hash), &n)); n++)
		if (b->dead)
			line[n] = 0;
		else if (b->gpa == gpa && b->key == key &&
			 trans_copies(b, lin) && second_same(t->c, b, lin))
			return b;
	return NULL;
}

static bool is_block(const struct trans *t, const struct tblock *b,
		     uint64_t lin, uint64_t gpa, uint32_t key)
{
	return b->lin == lin && b->gpa == gpa && b->key == key &&
	       second_same(t->c, b, lin);
}

/* The block for that address; dead ones go: code that changes leaves many. */
static struct tblock *find_here(struct trans *t, uint64_t lin, uint64_t gpa,
				uint32_t key)
{
	uint64_t hash = block_hash(lin, gpa, key);
	uint32_t *line = line_at(&t->here, hash);
	struct tblock *b;

	for (unsigned n = 0; (b = line_next(t, line, line_tag(hash), &n)); n++)
		if (b->dead)
			line[n] = 0;
		else if (is_block(t, b, lin, gpa, key))
			return b;
	return NULL;
}

/* Code that has been changed may be changed again. */
static unsigned hot(const struct trans *t, const struct block *b)
{
	const struct cpu *c = t->c;
	unsigned n = t->hot;

	if (c->vm->goes_on && c->stats.translations < WAKING_BLOCKS)
		n *= WAKING;
	return b->changed ? n * CHANGED : n;
}

/*
 * Has the code run often enough?  What was hot once, under another mode or
 * before it changed, may not be so again.
 */
static bool is_hot(struct trans *t, struct block *cold)
{
	unsigned enough = hot(t, cold);

	if (++cold->heat != enough && cold->heat < enough * 3 / 2)
		return false;
	cold->heat = (uint16_t)enough;
	return true;
}

/* The block at rip, translated when it is hot; NULL: interpret.  Faults. */
static struct tblock *find(struct trans *t, uint64_t lin, uint32_t key)
{
	struct cpu *c = t->c;
	struct block *cold = NULL;
	struct code_page p;
	struct tblock *b;

	t->cold = NULL;
	if (!code_at(c, lin, &p) || p.gpa >> XTAB_GPA_BITS)
		return NULL;
	/* Three tables, mostly in no cache: fetch them at once. */
	__builtin_prefetch(line_at(&t->here, block_hash(lin, p.gpa, key)));
	__builtin_prefetch(line_at(&t->twins, twin_hash(p.gpa, key)));
	cache_prefetch(c, lin);
	b = find_here(t, lin, p.gpa, key);
	if (b)
		return b->entry ? b : NULL;
	if (t->hot) {
		cold = cache_find(c);
		/* Decoded anew, it may have been translated before. */
		if (cold->heat && cold->heat < hot(t, cold) - 1) {
			cold->heat++;
			t->cold = cold;
			return NULL;
		}
	}
	b = find_twin(t, lin, p.gpa, key);
	if (b) {
		if (!copy_room(t, b))
			forget_copies(t);
		enlarge(t, &t->copies.near);
		enlarge(t, &t->copies.far);
		b = trans_copy(t, b, lin);
		enlist(t, b);
		return b;
	}
	if (cold && !is_hot(t, cold)) {
		t->cold = cold;
		return NULL;
	}
	b = translate(t, lin, key, &p);
	return b && b->entry ? b : NULL;
}

/* Code that is known not to be hot, which is most of what is not found. */
static struct block *known_cold(const struct trans *t)
{
	struct block *b = t->hot ? cache_known(t->c) : NULL;

	return b && b->heat && b->heat < hot(t, b) - 1 ? b : NULL;
}

static void flags_in(struct cpu *c)
{
	uint64_t f = c->rflags;

	c->tr.flags = (uint16_t)((f & 0xd5) << 8 | 2 << 8 | ((f >> 11) & 1));
}

static void flags_out(struct cpu *c)
{
	uint16_t f = c->tr.flags;

	c->rflags = (c->rflags & ~(uint64_t)FL_ARITH) | ((f >> 8) & 0xd5) |
		    (uint64_t)(f & 1) << 11;
}

/*
 * Something for the loop: it must look before the next block runs.  What may
 * not be delivered now is no reason: irq_check stays set until it may.
 */
static bool loop_wanted(const struct cpu *c)
{
	if (c->inhibit | c->inhibit_ss | c->trap_now |
	    (c->irq_check && c->rflags & FL_IF) | !!c->debug |
	    (c->mp != HV_MP_RUNNABLE) | !!(c->rflags & (FL_TF | FL_RF)) |
	    !!(c->dr7 & 0xff) | c->lapic->pending_eoi)
		return true;
	return atomic_load_explicit(&c->request, memory_order_relaxed) ||
	       (!c->nmi_masked &&
		atomic_load_explicit(&c->nmi_pending, memory_order_relaxed));
}

static void itab_rekey(struct cpu *c, unsigned mmu, uint32_t key)
{
	key = (key & 0xffffff) | mmu << 24;
	if (likely(c->tr.itab_key[mmu] == key))
		return;
	itab_clear(c, mmu);
	c->tr.itab_key[mmu] = key;
}

/*
 * The tables hold what may run now.  STAC and CLAC change between two of them
 * in translated code, where nobody looks.
 */
static void itab_for(struct cpu *c, uint32_t key)
{
	itab_rekey(c, c->mmu, key);
	if (c->mmu == MMU_KERNEL || c->mmu == MMU_KERNEL_AC)
		itab_rekey(c, MMU_KERNEL + MMU_KERNEL_AC - c->mmu, key);
}

/* Where a jump in the page comes to the block. */
static uint8_t *come_in(const struct site *from, const struct tblock *b)
{
	if (b->vec > from->vec || b->x87 > from->x87 || !from->ahead)
		return b->entry;
	return b->entry + b->inner;
}

/*
 * Where to go on at c->rip, NULL: back to the loop.  chain: a jump that may
 * be aimed at what is found.  look: the table cannot know (its block sent us).
 */
static uint8_t *next(struct trans *t, const struct site *chain, bool look)
{
	struct cpu *c = t->c;
	uint64_t lin = c->rip;
	struct itab_entry *it;
	struct tblock *b;
	uint8_t *patch = chain ? trans_at(t, chain->patch) : NULL;
	bool checked = !chain || chain->checked;
	uint32_t key;
	uint64_t flushes;

	if (loop_wanted(c) || !trans_mode(c) ||
	    atomic_load_explicit(&c->nstale, memory_order_relaxed))
		return NULL;
	if (chain && known_cold(t))
		return NULL;
	key = trans_key(c);
	itab_for(c, key);
	it = itab_at(c, lin);
	if (!chain && !look && itab_has(c, it, lin)) {
		flags_in(c);
		return (uint8_t *)(uintptr_t)it->code - t->to_rx;
	}
	flushes = c->stats.code_flushes;
	b = find(t, lin, key);
	t->found = b;
	if (!b) {
		/* Or a dead block there would be come back to for ever. */
		itab_drop(c, it, lin);
		return NULL;
	}
	/* Everything was dropped: the jump is no more. */
	if (flushes != c->stats.code_flushes)
		patch = NULL;
	/* Who comes by a jump of his own does so from now on. */
	if (!chain)
		itab_put(c, it, lin, b->checked + t->to_rx);
	if (patch)
		e_aim(patch, checked ? b->checked : come_in(chain, b));
	flags_in(c);
	return b->entry;
}

/* As next(), for the block without groups; never in the table. */
static uint8_t *alone(struct trans *t, uint8_t *patch)
{
	uint64_t flushes = t->c->stats.code_flushes;
	struct cpu *c = t->c;
	uint32_t key = trans_key(c);
	struct tblock *b;

	if (loop_wanted(c) || !trans_mode(c) ||
	    atomic_load_explicit(&c->nstale, memory_order_relaxed))
		return NULL;
	itab_for(c, key);
	b = find(t, c->rip, key | KEY_ALONE);
	if (!b) {
		/* The block with groups would come here again. */
		c->tr.interpret = true;
		return NULL;
	}
	if (patch && flushes == c->stats.code_flushes)
		e_aim(patch, b->entry);
	flags_in(c);
	return b->entry;
}

/*
 * A block sends us to look its address up.  When it was killed, the jumps to
 * it are still aimed there: send them on to what took its place.
 */
static uint8_t *again(struct trans *t, const struct site *s)
{
	uint64_t flushes = t->c->stats.code_flushes;
	struct tblock *old = &t->block[s->of], *b;
	uint8_t *to;

	if (old->key & KEY_ALONE)
		return alone(t, old->dead ? old->entry + 1 : NULL);
	t->found = NULL;
	to = next(t, NULL, true);
	b = t->found;
	if (to && b && flushes == t->c->stats.code_flushes && old->dead &&
	    old->gpa == b->gpa && old->key == b->key)
		aim_dead(old, b->entry);
	return to;
}

static bool vec_ready(const struct cpu *c)
{
	return (fx32(c->fpu, FX_MXCSR) & MXCSR_MASKS) == MXCSR_MASKS;
}

/* May the next instruction run with the state that was loaded? */
static bool fpu_ready(const struct cpu *c)
{
	return (!c->tr.vec_want || vec_ready(c)) &&
	       (!c->tr.x87_want || x87_ready(c));
}

static void want_nothing(struct cpu *c)
{
	c->tr.vec_want = c->tr.x87_want = 0;
}

/*
 * What was loaded, which the thunk has noted, is mostly wanted again by user
 * code.  A kernel only still has what its user left there.
 */
static void want_again(struct cpu *c, const struct site *s)
{
	if (c->cpl == 3)
		return;
	c->tr.vec_want &= s->vec;
	c->tr.x87_want &= s->x87;
}

static uint8_t *at_insn(struct trans *t, struct site *s)
{
	struct cpu *c = t->c;
	struct insn room;
	const struct insn *in = insn_of(t, s, &room);
	uint64_t behind;

	c->gpr[R_NEXT] = s->rip + in->len;
	if (in->cpu_mode != MODE_64)
		c->gpr[R_NEXT] = (uint32_t)c->gpr[R_NEXT];
	c->leave_block = false;
	behind = c->gpr[R_NEXT];
	in->fn(c, in);
	c->rip = c->gpr[R_NEXT];
	c->replay.done = c->replay.at = 0;
	if (s->punt) {
		c->stats.interpreted++;
		t->punts[in->mnemonic]++;
	} else {
		c->stats.slow_accesses++;
	}
	/* A repetition may have more to do. */
	if (!s->resume || c->leave_block || c->rip != behind || !fpu_ready(c)) {
		want_nothing(c);
		return next(t, NULL, false);
	}
	want_again(c, s);
	flags_in(c);
	return trans_at(t, s->resume);
}

/* Called by the thunk with the guest's registers in c; where to go on. */
static void *trans_site(struct cpu *c)
{
	struct trans *t = c->trans;
	struct site *s = &t->site[c->tr.site];
	uint8_t *to = NULL;

	flags_out(c);
	c->rip = s->rip;
	if (s->type < SITE_VEC && s->type != SITE_INSN)
		want_again(c, s);
	switch (s->type) {
	case SITE_INSN: to = at_insn(t, s); break;
	case SITE_CHAIN: to = next(t, s, false); break;
	case SITE_HERE: to = again(t, s); break;
	case SITE_INDIRECT:
		if (!canonical(c->tr.target)) {
			c->gpr[R_RSP] += (uint64_t)(int64_t)s->undo;
			x86_gp(c, 0);
		}
		c->rip = c->tr.target;
		to = next(t, NULL, false);
		break;
	case SITE_ALONE: to = alone(t, trans_at(t, s->patch)); break;
	case SITE_VEC:
	case SITE_X87:
		if (s->type == SITE_VEC)
			c->tr.vec_want = 1;
		else
			c->tr.x87_want = 1;
		if (!fpu_ready(c)) {
			c->tr.interpret = true;
			break;
		}
		flags_in(c);
		to = trans_at(t, s->resume);
		break;
	}
	return to ? to + t->to_rx : NULL;
}

void trans_stats(const struct cpu *c, struct hv_stats *stats)
{
	const struct trans *t = c->trans;
	unsigned max = ARRAY_SIZE(stats->punts);

	for (unsigned m = 0; t && m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
		unsigned n = max;

		if (!t->punts[m])
			continue;
		while (n && stats->punts[n - 1].count < t->punts[m])
			n--;
		if (n == max)
			continue;
		memmove(&stats->punts[n + 1], &stats->punts[n],
			(max - 1 - n) * sizeof(stats->punts[0]));
		stats->punts[n].count = t->punts[m];
		snprintf(stats->punts[n].name, sizeof(stats->punts[n].name),
			 "%s", ZydisMnemonicGetString((ZydisMnemonic)m));
	}
}

bool trans_run(struct cpu *c, struct block **cold)
{
	struct trans *t = c->trans;
	uint8_t *to;

	if (!trans_mode(c))
		return false;
	if (atomic_load_explicit(&c->nstale, memory_order_acquire))
		catch_up(t);
	if (c->tr.interpret) {
		c->tr.interpret = false;
		return false;
	}
	*cold = known_cold(t);
	if (*cold) {
		(*cold)->heat++;
		return false;
	}
	t->cold = NULL;
	to = next(t, NULL, false);
	*cold = t->cold;
	if (!to)
		return false;
	c->tr.vec_loaded = c->tr.x87_loaded = 0;
	t->enter(c, to + t->to_rx);
	return true;
}
