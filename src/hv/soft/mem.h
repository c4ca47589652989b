/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h - memory of the soft engine as its run loop and block cache see it
 */
#ifndef SOFT_MEM_H
#define SOFT_MEM_H

#include "hv/soft/soft.h"

/* Where an instruction lies. */
struct code_page {
	uint8_t *host; /* the byte itself, not its page */
	uint64_t gpa;
	struct soft_page *page;
};

/* Where an access inside one page goes. */
struct where {
	uint64_t gpa;
	uint8_t *host; /* NULL: no memory there */
	struct soft_slot *slot;
	bool global;
};

static inline struct soft_page *page_of(struct soft_slot *s, uint64_t gpa)
{
	return &s->pages[(gpa - s->gpa) >> 12];
}

/*
 * A tag that no address reaches through its own entry: entry i is only looked
 * up by addresses with i in bits 12 and up, and this has not.  Where it can
 * be it is 0, as in entries that were never used.
 */
static inline uint64_t tag_none(unsigned i)
{
	return i ? 0 : 0x1000;
}

static inline bool is_apic(const struct cpu *c, uint64_t gpa)
{
	return (gpa & ~0xfffull) == (c->apic_base & 0xfffffffff000ull) &&
	       (c->apic_base & 0xc00) == 0x800;
}

static inline bool break_type(const struct cpu *c, unsigned i, unsigned *type,
			      unsigned *len)
{
	static const uint8_t lens[] = { 1, 2, 8, 4 };

	*type = (unsigned)(c->dr7 >> (16 + 4 * i)) & 3;
	*len = lens[c->dr7 >> (18 + 4 * i) & 3];
	return c->dr7 >> (2 * i) & 3;
}

/* A data breakpoint is on the page. */
bool page_watched(const struct cpu *c, uint64_t lin);

/* -- fill.c --------------------------------------------------------------- */

/* Of struct soft_page.slots: they are not known one by one. */
#define SLOTS_MANY (~0ull)

void tlb_mark(struct tlb_marks *k, unsigned i, bool global);
void tlb_fill(struct cpu *c, unsigned mmu, uint64_t lin, int acc,
	      const struct walk *w, struct where *at);
/*
 * For translated code, of an access in MMU mode table / 2, a write when table
 * is odd: an entry for lin, when that is all that lacks.  False when the access
 * would fault, or change the page tables, or is none of ordinary memory.
 */
bool tlb_refill(struct cpu *c, uint64_t lin, unsigned table);
/* The same of c->xtab: true when what id stands for may be executed there. */
bool xtab_refill(struct cpu *c, uint64_t id);

/* -- mem.c ---------------------------------------------------------------- */

/* Translate for execution; faults.  false: no memory there. */
bool code_at(struct cpu *c, uint64_t lin, struct code_page *out);
/* No TLB holds the page writable any more.  May stop the world. */
void code_claim(struct cpu *c, struct code_page *p);
/* Under vm->code: decoded code lies in these bytes of the page. */
void code_mark(struct code_page *p, uint64_t gpa, size_t n);

void tlb_init(struct cpu *c);
void cpu_park(struct cpu *c);
void cpu_unpark(struct cpu *c);

int soft_mem_map(struct hv_vm *hv, uint64_t gpa, uint64_t size, void *host,
		 unsigned flags);
int soft_mem_unmap(struct hv_vm *hv, uint64_t gpa, uint64_t size);
int soft_mem_protect(struct hv_vm *hv, uint64_t gpa, uint64_t size,
		     unsigned flags);
int soft_mem_fetch_dirty(struct hv_vm *hv, uint64_t gpa, uint64_t size,
			 uint64_t *bits);
void soft_mem_written(struct hv_vm *hv, uint64_t gpa, uint64_t size);
void soft_mem_finish(struct soft_vm *vm);

/* -- cache.c: decoded blocks ---------------------------------------------- */

enum { BLOCK_MAX_INSNS = 32 };

struct block {
	uint64_t gpa;
	uint32_t key;
	uint32_t gen[2];
	struct soft_page *page[2]; /* second: the last insn crosses */
	struct block *next;
	uint16_t n;
	uint16_t heat; /* how often the translator has passed it by */
	bool changed;  /* there was other code before */
	/* Each has a line of the cache for itself. */
	struct insn in[] __attribute__((aligned(64)));
};

int cache_init(struct cpu *c);
void cache_finish(struct cpu *c);
/* Of what c->cache points to. */
size_t cache_size(void);
void cache_forget(struct cpu *c);
/* The block at rip; decodes it.  Faults (fetch). */
struct block *cache_find(struct cpu *c);
/* The same of 64-bit code when it was found lately, else NULL. */
struct block *cache_known(struct cpu *c);
/* One of them will be called for code at lin. */
void cache_prefetch(const struct cpu *c, uint64_t lin);

static inline bool block_valid(const struct block *b)
{
	return atomic_load_explicit(&b->page[0]->gen, memory_order_acquire) ==
		       b->gen[0] &&
	       (!b->page[1] ||
		atomic_load_explicit(&b->page[1]->gen, memory_order_acquire) ==
			b->gen[1]);
}

#endif /* SOFT_MEM_H */
