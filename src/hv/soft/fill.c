/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fill.c - the TLB is filled
 *
 * Translated code that misses calls tlb_refill() with the guest's vector
 * registers still in the host's: nothing here, nor in paging.c, may use them,
 * and both are compiled so that the compiler does not.
 */
#include "hv/soft/mem.h"

struct soft_slot *phys_slot(struct soft_vm *vm, uint64_t gpa)
{
	for (unsigned i = 0; i < vm->nslots; i++)
		if (gpa - vm->slot[i].gpa < vm->slot[i].size)
			return &vm->slot[i];
	return NULL;
}

void *phys_ptr(struct soft_vm *vm, uint64_t gpa, size_t n)
{
	struct soft_slot *s = phys_slot(vm, gpa);

	if (!s || n > s->size - (gpa - s->gpa))
		return NULL;
	return s->host + (gpa - s->gpa);
}

void tlb_mark(struct tlb_marks *k, unsigned i, bool global)
{
	unsigned w = i / 64;

	k->words[w / 64] |= BIT(w % 64);
	k->used[w] |= BIT(i % 64);
	if (global) {
		k->local[w] &= ~BIT(i % 64);
	} else {
		k->local_words[w / 64] |= BIT(w % 64);
		k->local[w] |= BIT(i % 64);
	}
}

static void large_note(struct cpu *c, uint64_t va, unsigned shift, bool global)
{
	uint64_t lo = va & ~(BIT(shift) - 1), hi = lo | (BIT(shift) - 1);
	struct large_range *r = &c->large[va >> 63][!global];

	if (!r->hi)
		*r = (struct large_range){ .lo = lo, .hi = hi };
	r->lo = MIN(r->lo, lo);
	r->hi = MAX(r->hi, hi);
	r->giant |= shift > 21;
}

/* Before a TLB holds the page writable in this slot. */
static void slot_note(struct soft_page *p, unsigned i)
{
	uint64_t old = atomic_load(&p->slots), new;

	do {
		for (unsigned n = 0; n < 64; n += 16)
			if ((uint16_t)(old >> n) == i + 1)
				return;
		if (old == SLOTS_MANY)
			return;
		new = old >> 48 ? SLOTS_MANY : old << 16 | (i + 1);
	} while (!atomic_compare_exchange_weak(&p->slots, &old, new));
}

bool page_watched(const struct cpu *c, uint64_t lin)
{
	unsigned type, len;

	/* A breakpoint is aligned to its length. */
	for (unsigned i = 0; i < 4; i++)
		if (break_type(c, i, &type, &len) && type & 1 &&
		    !((c->dr[i] ^ lin) & ~0xfffull))
			return true;
	return false;
}

/*
 * Whether the page may be held writable.  It is noted before it is asked: who
 * finds code there later stops the world, and this vCPU in it.
 */
static bool claim_writable(struct soft_page *p, unsigned i)
{
	slot_note(p, i);
	if ((atomic_load(&p->state) & (PAGE_WMAP | PAGE_CODE)) == PAGE_WMAP)
		return true;
	return !(atomic_fetch_or(&p->state, PAGE_WMAP) & PAGE_CODE);
}

void tlb_fill(struct cpu *c, unsigned mmu, uint64_t lin, int acc,
	      const struct walk *w, struct where *at)
{
	unsigned i = (lin >> 12) & (TLB_SIZE - 1);
	struct tlb_entry *r = &c->tlb[mmu].e[TLB_READ][i];
	struct tlb_entry *wr = &c->tlb[mmu].e[TLB_WRITE][i];
	uint64_t page = lin & ~0xfffull, none = tag_none(i);
	uint64_t host = (uintptr_t)at->host - (lin & 0xfff);

	c->stats.tlb_misses++;
	if (w->page_shift > 12)
		large_note(c, lin, w->page_shift, w->global);
	/* What is known of the page may have changed. */
	if (r->tag == page)
		r->tag = none;
	if (wr->tag == page)
		wr->tag = none;
	if (unlikely(mmu == MMU_USER_AC || (c->watch && page_watched(c, lin))))
		return;
	/* The other table only where nothing is lost. */
	if (w->readable && (acc == ACC_READ || r->tag == none)) {
		*r = (struct tlb_entry){ page, host };
		tlb_mark(&c->marks[mmu][TLB_READ], i, w->global);
	}
	if (w->writable && at->slot->flags & HV_MEM_WRITE &&
	    (acc == ACC_WRITE || wr->tag == none)) {
		struct soft_page *p = page_of(at->slot, at->gpa);
		uint64_t n = (at->gpa - at->slot->gpa) >> 12;

		if (at->slot->dirty &&
		    !(atomic_load(&at->slot->dirty[n / 64]) & BIT(n % 64)))
			return;
		if (claim_writable(p, i)) {
			*wr = (struct tlb_entry){ page, host };
			tlb_mark(&c->marks[mmu][TLB_WRITE], i, w->global);
		}
	}
}

bool tlb_refill(struct cpu *c, uint64_t lin, unsigned table)
{
	unsigned i = (lin >> 12) & (TLB_SIZE - 1), mmu = table / 2;
	bool write = table & 1;
	const uint64_t *tag = &c->tlb[mmu].e[write][i].tag;
	int acc = write ? ACC_WRITE : ACC_READ;
	struct where at;
	struct walk w;

	/* It is there: the access crosses into the next, or is misaligned. */
	if (!((lin ^ *tag) & ~0xfffull))
		return false;
	if (!page_probe(c, lin, acc, mmu, &w) || is_apic(c, w.gpa))
		return false;
	at.slot = phys_slot(c->vm, w.gpa);
	if (!at.slot)
		return false;
	at.gpa = w.gpa;
	at.host = at.slot->host + (w.gpa - at.slot->gpa);
	at.global = w.global;
	tlb_fill(c, mmu, lin, acc, &w, &at);
	return !((lin ^ *tag) & ~0xfffull);
}

bool xtab_refill(struct cpu *c, uint64_t id)
{
	uint64_t lin = (uint64_t)((int64_t)id >> 28) << 12;
	unsigned n = xtab_slot(lin);
	struct walk w;

	if (!page_probe(c, lin, ACC_EXEC, c->mmu, &w) ||
	    w.gpa >> XTAB_GPA_BITS || xtab_id(lin, w.gpa) != id ||
	    is_apic(c, w.gpa) || !phys_slot(c->vm, w.gpa))
		return false;
	c->stats.tlb_misses++;
	if (w.page_shift > 12)
		large_note(c, lin, w.page_shift, w.global);
	c->xtab[c->mmu][n] = id;
	tlb_mark(&c->marks[c->mmu][TLB_EXEC], n, w.global);
	return true;
}
