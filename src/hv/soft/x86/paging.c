/* SPDX-License-Identifier: Apache-2.0 */
/*
 * paging.c - the page walk: 2-level, PAE and 4-level (SDM 3A chapter 4)
 */
#include "hv/soft/soft.h"

#define PTE_P	BIT(0)
#define PTE_W	BIT(1)
#define PTE_U	BIT(2)
#define PTE_A	BIT(5)
#define PTE_D	BIT(6)
#define PTE_PS	BIT(7)
#define PTE_G	BIT(8)
#define PTE_NX	BIT(63)

#define PF_P	1u
#define PF_W	2u
#define PF_U	4u
#define PF_RSVD 8u
#define PF_I	16u

/* What the entries on the way have allowed so far. */
struct rights {
	bool w, u, x;
};

static _Noreturn void deny(struct cpu *c, uint64_t va, int acc, unsigned mmu,
			   uint32_t bits)
{
	uint32_t error = bits;

	if (acc == ACC_WRITE)
		error |= PF_W;
	if (mmu == MMU_USER)
		error |= PF_U;
	if (acc == ACC_EXEC &&
	    ((c->efer & EFER_NXE && c->cr4 & CR4_PAE) || c->cr4 & CR4_SMEP))
		error |= PF_I;
	x86_page_fault(c, va, error);
}

static uint64_t entry_read(void *p, bool wide)
{
	return wide ? atomic_load((_Atomic uint64_t *)p)
		    : atomic_load((_Atomic uint32_t *)p);
}

static bool entry_cas(void *p, bool wide, uint64_t old, uint64_t new)
{
	uint32_t old32 = (uint32_t)old;

	if (wide)
		return atomic_compare_exchange_strong((_Atomic uint64_t *)p,
						      &old, new);
	return atomic_compare_exchange_strong((_Atomic uint32_t *)p, &old32,
					      (uint32_t) new);
}

static bool may(struct cpu *c, const struct rights *r, int acc, unsigned mmu)
{
	bool user = mmu == MMU_USER;

	if (user && !r->u)
		return false;
	if (acc == ACC_EXEC)
		return r->x && !(!user && r->u && c->cr4 & CR4_SMEP);
	if (!user && r->u && mmu == MMU_KERNEL && c->cr4 & CR4_SMAP)
		return false;
	if (acc == ACC_WRITE)
		return r->w || (!user && !(c->cr0 & CR0_WP));
	return true;
}

/* Bits that must be zero in an entry at this level. */
static uint64_t reserved(struct cpu *c, bool wide, unsigned level, bool large)
{
	uint64_t bits;

	if (!wide)
		return large ? BIT(21) : 0;
	bits = (BIT(52) - 1) & ~(BIT(c->vcpu.vm->caps.phys_bits) - 1);
	if (!(c->efer & EFER_NXE))
		bits |= PTE_NX;
	if (!(c->efer & EFER_LMA))
		bits |= 0x7ff0000000000000ull;
	if (level == 3)
		bits |= PTE_PS;
	if (large)
		bits |= level == 2 ? 0x3fffe000ull : 0x1fe000ull;
	return bits;
}

/* One attempt; false: an entry changed under us, walk again. */
static bool walk_once(struct cpu *c, uint64_t va, int acc, unsigned mmu,
		      struct walk *out)
{
	bool wide = c->cr4 & CR4_PAE, lma = c->efer & EFER_LMA;
	unsigned bits = wide ? 9 : 10;
	int level = lma ? 3 : 1;
	struct rights r = { true, true, true };
	uint64_t table, e, want;
	void *p;

	if (wide && !lma) {
		e = c->pdpte[(va >> 30) & 3];
		if (!(e & PTE_P))
			deny(c, va, acc, mmu, 0);
		table = e & 0x000ffffffffff000ull;
	} else {
		table = c->cr3 & (lma ? 0x000ffffffffff000ull : 0xfffff000ull);
	}
	for (;; level--) {
		unsigned shift = 12 + bits * (unsigned)level;
		uint64_t idx = (va >> shift) & ((1u << bits) - 1);
		uint64_t at = table + idx * (wide ? 8 : 4);
		bool large, leaf;

		p = phys_ptr(c->vm, at, wide ? 8 : 4);
		e = p ? entry_read(p, wide) : 0;
		if (!(e & PTE_P))
			deny(c, va, acc, mmu, 0);
		large = level > 0 && level < 3 && e & PTE_PS &&
			(wide || c->cr4 & CR4_PSE);
		if (e & reserved(c, wide, (unsigned)level, large))
			deny(c, va, acc, mmu, PF_P | PF_RSVD);
		r.w &= !!(e & PTE_W);
		r.u &= !!(e & PTE_U);
		if (wide && e & PTE_NX)
			r.x = false;
		leaf = large || level == 0;
		if (leaf && !may(c, &r, acc, mmu))
			deny(c, va, acc, mmu, PF_P);
		want = e | PTE_A;
		if (leaf && acc == ACC_WRITE)
			want |= PTE_D;
		if (want != e) {
			if (!entry_cas(p, wide, e, want))
				return false;
			phys_written(c->vm, c, at, wide ? 8 : 4);
			e = want;
		}
		if (!leaf) {
			table = e &
				(wide ? 0x000ffffffffff000ull : 0xfffff000ull);
			continue;
		}
		out->page_shift = (uint8_t)shift;
		out->gpa = e & (wide ? 0x000ffffffffff000ull : 0xfffff000ull);
		if (large) {
			out->gpa &= ~(BIT(shift) - 1);
			/* PSE-36: bits 20:13 are address bits 39:32. */
			if (!wide)
				out->gpa |= (e & 0x1fe000) << 19;
		}
		out->gpa |= va & (BIT(shift) - 1);
		break;
	}
	out->readable = may(c, &r, ACC_READ, mmu);
	out->writable = (e & PTE_D) && may(c, &r, ACC_WRITE, mmu);
	out->executable = may(c, &r, ACC_EXEC, mmu);
	out->global = e & PTE_G && c->cr4 & CR4_PGE;
	return true;
}

void page_walk(struct cpu *c, uint64_t va, int acc, unsigned mmu,
	       struct walk *out)
{
	if (!(c->cr0 & CR0_PG)) {
		*out = (struct walk){ .gpa = va,
				      .readable = true,
				      .writable = true,
				      .executable = true,
				      .page_shift = 12 };
		return;
	}
	while (!walk_once(c, va, acc, mmu, out))
		;
}

bool page_probe(struct cpu *c, uint64_t va, int acc, unsigned mmu,
		struct walk *out)
{
	uint64_t want = PTE_P | PTE_A, table = c->cr3 & 0x000ffffffffff000ull;
	struct rights r = { true, true, true };
	unsigned level = 3;
	uint64_t e;

	if (!(c->efer & EFER_LMA) || mmu == MMU_USER_AC || !canonical(va))
		return false;
	for (;; level--) {
		unsigned shift = 12 + 9 * level;
		void *p = phys_ptr(c->vm, table + (va >> shift & 511) * 8, 8);
		bool large;

		e = p ? entry_read(p, true) : 0;
		large = (level == 1 || level == 2) && e & PTE_PS;
		if ((e & want) != want || e & reserved(c, true, level, large))
			return false;
		r.w &= !!(e & PTE_W);
		r.u &= !!(e & PTE_U);
		r.x &= !(e & PTE_NX);
		table = e & 0x000ffffffffff000ull;
		if (!large && level)
			continue;
		out->page_shift = (uint8_t)shift;
		out->gpa =
			(table & ~(BIT(shift) - 1)) | (va & (BIT(shift) - 1));
		break;
	}
	if (!may(c, &r, acc, mmu) || (acc == ACC_WRITE && !(e & PTE_D)))
		return false;
	out->readable = may(c, &r, ACC_READ, mmu);
	out->writable = e & PTE_D && may(c, &r, ACC_WRITE, mmu);
	out->executable = may(c, &r, ACC_EXEC, mmu);
	out->global = e & PTE_G && c->cr4 & CR4_PGE;
	return true;
}
