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
	/* Each has a line of the cache for itself. */
	struct insn in[] __attribute__((aligned(64)));
};

int cache_init(struct cpu *c);
void cache_finish(struct cpu *c);
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
