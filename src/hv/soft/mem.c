/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c - guest memory of the soft engine: slots, software TLB, slow paths
 *
 * The fast path.  An entry of the TLB serves one virtual page in one MMU mode
 * (user; kernel; kernel with AC).  t = va ^ tag is the offset in the page when
 * the page matches, and huge when it does not, so "t <= 0x1000 - size" checks
 * the page and that the access does not cross it in one comparison.
 *
 * Writes and code.  A page that holds decoded code has PAGE_CODE set, and no
 * TLB holds it writable: every store to it comes to store_ram(), which after
 * the store looks whether the 64-byte granules written hold code, and if so
 * counts page->gen up: all blocks of the page, on every vCPU, are stale.
 *   - A decoder sets PAGE_CODE, stops the world if a TLB may hold the page
 *     writable (PAGE_WMAP) and takes that away, then decodes under vm->code.
 *   - A filler of a writable entry sets PAGE_WMAP first and looks at PAGE_CODE
 *     afterwards; one of the two sees the other.
 *   - Forgetting takes vm->code, so that no decoder is half done.
 * Devices and the caller write through phys_written(), which does the same.
 *
 * Stopping the world.  A vCPU is parked when it is outside the interpreter or
 * waits for vm->world; it leaves that state only while it holds vm->world.
 */
#include "hv/soft/soft.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "hv/soft/mem.h"

/* Accesses to guest RAM are single accesses of the guest's size and unaligned
 * wherever the guest says so; volatile keeps the compiler from splitting. */
typedef uint8_t u8g;
typedef uint16_t __attribute__((aligned(1))) u16g;
typedef uint32_t __attribute__((aligned(1))) u32g;
typedef uint64_t __attribute__((aligned(1))) u64g;

/* -- slots ---------------------------------------------------------------- */

static void mark_dirty(struct soft_slot *s, uint64_t gpa)
{
	uint64_t n = (gpa - s->gpa) >> 12;

	if (s->dirty)
		atomic_fetch_or(&s->dirty[n / 64], BIT(n % 64));
}

static uint64_t granule_mask(uint64_t gpa, size_t n)
{
	unsigned first = (gpa & 0xfff) >> 6;
	unsigned last = (unsigned)(((gpa & 0xfff) + n - 1) >> 6);

	return (~0ull << first) & (~0ull >> (63 - last));
}

/* Changes of code that make it a habit; stores after which it is data. */
enum { OFTEN = 16, IDLE = 256 };

/* Translations of the page's code must go; under vm->code. */
static void code_stale(struct cpu *c, struct soft_page *page, uint64_t mask)
{
	unsigned n = atomic_load(&c->nstale);

	if (!c->trans)
		return;
	if (n < MAX_STALE) {
		c->stale[n].page = page;
		c->stale[n].granules = mask;
		atomic_store(&c->nstale, n + 1);
	}
	cpu_request(c, REQ_CODE);
}

/* A page that is watched for code but has none is written to. */
static void code_unused(struct soft_vm *vm, struct soft_page *page)
{
	if (atomic_fetch_add(&page->state, PAGE_STORE) / PAGE_STORE < IDLE)
		return;
	pthread_mutex_lock(&vm->code);
	atomic_fetch_and(&page->state, atomic_load(&page->granules)
					       ? PAGE_CODE | PAGE_WMAP
					       : PAGE_WMAP);
	pthread_mutex_unlock(&vm->code);
}

/* [gpa, gpa + n), inside one page, has been written. */
static void code_written(struct soft_vm *vm, struct cpu *self,
			 struct soft_slot *s, uint64_t gpa, size_t n)
{
	struct soft_page *page = page_of(s, gpa);
	uint64_t mask = granule_mask(gpa, n);
	uint32_t gen;

	/* Pairs with the decoder: it sets granules, then reads the bytes. */
	atomic_thread_fence(memory_order_seq_cst);
	if (!(atomic_load(&page->state) & PAGE_CODE))
		return;
	if (!(atomic_load(&page->granules) & mask)) {
		if (!atomic_load(&page->granules))
			code_unused(vm, page);
		return;
	}
	pthread_mutex_lock(&vm->code);
	gen = atomic_fetch_add(&page->gen, 1);
	atomic_fetch_and(&page->state, PAGE_CODE | PAGE_WMAP);
	/* Code that is patched all the time comes back: to let everybody
	 * write here and to take that away again costs more than stores that
	 * go the slow way. */
	if (!(atomic_fetch_and(&page->granules, ~mask) & ~mask) && gen < OFTEN)
		atomic_fetch_and(&page->state, ~(uint32_t)PAGE_CODE);
	for (unsigned i = 0; i < vm->vm.max_vcpus; i++)
		if (vm->cpu[i])
			code_stale(vm->cpu[i], page, mask);
	pthread_mutex_unlock(&vm->code);
	if (self) {
		self->leave_block = true;
		self->stats.code_writes++;
	}
}

void phys_written(struct soft_vm *vm, struct cpu *self, uint64_t gpa, size_t n)
{
	while (n) {
		struct soft_slot *s = phys_slot(vm, gpa);
		size_t part = MIN(n, 0x1000 - (gpa & 0xfff));

		if (s) {
			mark_dirty(s, gpa);
			code_written(vm, self, s, gpa, part);
		}
		gpa += part;
		n -= part;
	}
}

/* -- world ---------------------------------------------------------------- */

void world_stop(struct soft_vm *vm, struct cpu *self)
{
	if (self)
		atomic_store(&self->parked, 1);
	pthread_mutex_lock(&vm->world);
	if (self) {
		atomic_store(&self->parked, 0);
		self->world_held = true;
	}
	for (unsigned i = 0; i < vm->vm.max_vcpus; i++) {
		struct cpu *c = vm->cpu[i];

		if (!c || c == self || atomic_load(&c->parked))
			continue;
		cpu_request(c, REQ_STOP);
		while (!atomic_load(&c->parked))
			sched_yield();
	}
}

void world_start(struct soft_vm *vm, struct cpu *self)
{
	if (self)
		self->world_held = false;
	pthread_mutex_unlock(&vm->world);
}

void cpu_park(struct cpu *c)
{
	atomic_store(&c->parked, 1);
}

void cpu_unpark(struct cpu *c)
{
	pthread_mutex_lock(&c->vm->world);
	atomic_store(&c->parked, 0);
	pthread_mutex_unlock(&c->vm->world);
}

/* -- TLB ------------------------------------------------------------------ */

static void slot_clear(struct cpu *c, unsigned mmu, unsigned table, unsigned i)
{
	if (table == TLB_EXEC)
		c->xtab[mmu][i] = 0;
	else
		c->tlb[mmu].e[table][i].tag = tag_none(i);
}

static void clear_word(struct cpu *c, unsigned mmu, unsigned table, unsigned w,
		       uint64_t bits)
{
	struct tlb_marks *k = &c->marks[mmu][table];

	k->used[w] &= ~bits;
	k->local[w] &= ~bits;
	for (; bits; bits &= bits - 1)
		slot_clear(c, mmu, table,
			   w * 64 + (unsigned)__builtin_ctzll(bits));
}

/* All is zero, which is a tag that only entry 0 could be reached with. */
void tlb_init(struct cpu *c)
{
	for (unsigned m = 0; m < MMU_COUNT; m++)
		for (unsigned t = 0; t < 3; t++)
			slot_clear(c, m, t, 0);
	c->ready = true;
	c->tlb_gen++;
}

/* The first of the words that tops has bits of; takes its bit away. */
static bool next_word(uint64_t tops[MARK_TOPS], unsigned *w)
{
	for (unsigned t = 0; t < MARK_TOPS; t++)
		if (tops[t]) {
			*w = t * 64 + (unsigned)__builtin_ctzll(tops[t]);
			tops[t] &= tops[t] - 1;
			return true;
		}
	return false;
}

static void flush_local(struct cpu *c)
{
	for (unsigned n = 0; n < MMU_COUNT * 3; n++) {
		struct tlb_marks *k = &c->marks[n / 3][n % 3];
		unsigned w;

		while (next_word(k->local_words, &w))
			clear_word(c, n / 3, n % 3, w, k->local[w]);
	}
	for (unsigned half = 0; half < 2; half++)
		c->large[half][1] = (struct large_range){ 0 };
	c->tlb_gen++;
}

void tlb_flush(struct cpu *c, bool all)
{
	if (!all) {
		flush_local(c);
		return;
	}
	for (unsigned n = 0; n < MMU_COUNT * 3; n++) {
		struct tlb_marks *k = &c->marks[n / 3][n % 3];
		unsigned w;

		while (next_word(k->words, &w))
			clear_word(c, n / 3, n % 3, w, k->used[w]);
		memset(k->local_words, 0, sizeof(k->local_words));
	}
	memset(c->large, 0, sizeof(c->large));
	for (unsigned i = 0; i < PARKS; i++)
		c->park[i].valid = false;
	c->tlb_gen++;
}

/* -- PCIDs ---------------------------------------------------------------- */

static struct park *park_of(struct cpu *c, unsigned pcid)
{
	for (unsigned i = 0; i < PARKS; i++)
		if (c->park[i].valid && c->park[i].pcid == pcid)
			return &c->park[i];
	return NULL;
}

void tlb_flush_pcid(struct cpu *c, unsigned pcid)
{
	struct park *p = park_of(c, pcid);

	if (p)
		p->valid = false;
	if (!(c->cr4 & CR4_PCIDE) || pcid == (c->cr3 & 0xfff))
		flush_local(c);
}

void tlb_flush_pcids(struct cpu *c)
{
	for (unsigned i = 0; i < PARKS; i++)
		c->park[i].valid = false;
	flush_local(c);
}

/* An entry that is not saved is only slow. */
static void park_word(struct cpu *c, struct park *p, unsigned mmu,
		      unsigned table, unsigned w)
{
	uint64_t bits = c->marks[mmu][table].local[w];

	for (; bits && p->n < PARK_MAX; bits &= bits - 1) {
		unsigned i = w * 64 + (unsigned)__builtin_ctzll(bits);

		p->saved[p->n].slot = (uint16_t)i;
		p->saved[p->n].mmu = (uint8_t)mmu;
		p->saved[p->n].table = (uint8_t)table;
		if (table == TLB_EXEC)
			p->saved[p->n].e.tag = c->xtab[mmu][i];
		else
			p->saved[p->n].e = c->tlb[mmu].e[table][i];
		p->n++;
	}
}

static void park(struct cpu *c, unsigned pcid)
{
	struct park *p = park_of(c, pcid);

	if (!p)
		p = &c->park[c->next_park++ % PARKS];
	p->valid = true;
	p->pcid = (uint16_t)pcid;
	p->n = 0;
	p->large[0] = c->large[0][1];
	p->large[1] = c->large[1][1];
	for (unsigned n = 0; n < MMU_COUNT * 3; n++) {
		uint64_t words[MARK_TOPS];
		unsigned w;

		memcpy(words, c->marks[n / 3][n % 3].local_words,
		       sizeof(words));
		while (next_word(words, &w))
			park_word(c, p, n / 3, n % 3, w);
	}
}

/* Behind a flush of what is local. */
static void unpark(struct cpu *c, const struct park *p)
{
	c->large[0][1] = p->large[0];
	c->large[1][1] = p->large[1];
	for (unsigned k = 0; k < p->n; k++) {
		unsigned i = p->saved[k].slot, m = p->saved[k].mmu;
		unsigned t = p->saved[k].table;

		if (t == TLB_EXEC)
			c->xtab[m][i] = p->saved[k].e.tag;
		else
			c->tlb[m].e[t][i] = p->saved[k].e;
		tlb_mark(&c->marks[m][t], i, false);
	}
}

void tlb_switch(struct cpu *c, unsigned from, unsigned to, bool keep)
{
	struct park *p;

	if (from == to) {
		if (!keep)
			flush_local(c);
		return;
	}
	park(c, from);
	flush_local(c);
	p = park_of(c, to);
	if (!p)
		return;
	if (keep)
		unpark(c, p);
	p->valid = false;
}

/* -- single pages --------------------------------------------------------- */

static bool in_range(const struct large_range *r, uint64_t va)
{
	return r->hi && va >= r->lo && va <= r->hi;
}

/* The slots of one large page are 512 that lie together, in both tables. */
static void flush_2m(struct cpu *c, uint64_t va)
{
	unsigned first[3];

	first[TLB_READ] = first[TLB_WRITE] = (va >> 12) & (TLB_SIZE - 1);
	first[TLB_EXEC] = xtab_slot(va);
	for (unsigned n = 0; n < MMU_COUNT * 3; n++) {
		struct tlb_marks *k = &c->marks[n / 3][n % 3];
		unsigned w = first[n % 3] / 512 * 8;

		for (unsigned at = w; at < w + 8; at++)
			clear_word(c, n / 3, n % 3, at, k->used[at]);
		k->words[w / 64] &= ~(0xffull << w % 64);
		k->local_words[w / 64] &= ~(0xffull << w % 64);
	}
	c->tlb_gen++;
}

void tlb_flush_page(struct cpu *c, uint64_t va)
{
	const struct large_range *r = c->large[va >> 63];
	unsigned i = (va >> 12) & (TLB_SIZE - 1);

	if (in_range(&r[0], va) || in_range(&r[1], va)) {
		if (r[0].giant || r[1].giant)
			tlb_flush(c, true);
		else
			flush_2m(c, va);
		return;
	}
	for (unsigned m = 0; m < MMU_COUNT; m++) {
		slot_clear(c, m, TLB_READ, i);
		slot_clear(c, m, TLB_WRITE, i);
		slot_clear(c, m, TLB_EXEC, xtab_slot(va));
	}
	c->tlb_gen++;
}

static void protect_word(struct tlb_entry *e, unsigned first, uint64_t bits,
			 const uint8_t *host)
{
	for (; bits; bits &= bits - 1) {
		unsigned i = first + (unsigned)__builtin_ctzll(bits);

		if (e[i].host == (uintptr_t)host)
			e[i].tag = tag_none(i);
	}
}

static void protect_park(struct park *p, const uint8_t *host)
{
	for (unsigned k = 0; p->valid && k < p->n; k++)
		if (p->saved[k].table == TLB_WRITE &&
		    p->saved[k].e.host == (uintptr_t)host)
			p->saved[k].e.tag = tag_none(p->saved[k].slot);
}

static void protect_everywhere(struct cpu *c, unsigned m, const uint8_t *host)
{
	struct tlb_marks *k = &c->marks[m][TLB_WRITE];
	uint64_t words[MARK_TOPS];
	unsigned w;

	memcpy(words, k->words, sizeof(words));
	while (next_word(words, &w))
		protect_word(c->tlb[m].e[TLB_WRITE], w * 64, k->used[w], host);
}

/* Take write permission for a host page out of every TLB; world stopped. */
static void tlb_protect(struct soft_vm *vm, struct soft_page *page,
			const uint8_t *host)
{
	uint64_t slots = atomic_load(&page->slots);

	for (unsigned n = 0; n < vm->vm.max_vcpus; n++) {
		struct cpu *c = vm->cpu[n];

		for (unsigned m = 0; c && m < MMU_COUNT; m++) {
			if (slots == SLOTS_MANY) {
				protect_everywhere(c, m, host);
				continue;
			}
			for (uint64_t s = slots; s; s >>= 16)
				protect_word(c->tlb[m].e[TLB_WRITE],
					     (unsigned)(s & 0xffff) - 1, 1,
					     host);
		}
		for (unsigned i = 0; c && i < PARKS; i++)
			protect_park(&c->park[i], host);
	}
	atomic_store(&page->slots, 0);
}

static void tlb_flush_all(struct soft_vm *vm)
{
	for (unsigned n = 0; n < vm->vm.max_vcpus; n++)
		if (vm->cpu[n])
			tlb_flush(vm->cpu[n], true);
}

/* -- translation ---------------------------------------------------------- */

static unsigned mmu_of(const struct cpu *c, unsigned seg)
{
	return seg == SEG_SYS ? MMU_KERNEL : c->mmu;
}

static uint64_t wrap(const struct cpu *c, uint64_t lin)
{
	return c->mode == MODE_64 || c->efer & EFER_LMA ? lin : (uint32_t)lin;
}

static void check_canonical(struct cpu *c, unsigned seg, uint64_t lin)
{
	if (canonical(lin))
		return;
	x86_fault(c, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

/* -- data and port breakpoints -------------------------------------------- */

void watch_update(struct cpu *c)
{
	unsigned type, len;
	bool was = c->watch;

	c->watch = false;
	for (unsigned i = 0; i < 4; i++)
		if (break_type(c, i, &type, &len) && type & 1)
			c->watch = true;
	if (was || c->watch)
		tlb_flush(c, true);
}

/* types: bit t for breakpoints of type t */
static void break_note(struct cpu *c, unsigned types, uint64_t at, size_t n)
{
	unsigned type, len;

	for (unsigned i = 0; i < 4; i++) {
		uint64_t base;

		if (!break_type(c, i, &type, &len) || !(types >> type & 1))
			continue;
		base = c->dr[i] & ~(uint64_t)(len - 1);
		if (at < base + len && base < at + n)
			c->db_hit |= BIT(i);
	}
}

static inline void watch_note(struct cpu *c, uint64_t lin, size_t n, bool write)
{
	if (unlikely(c->watch))
		break_note(c, write ? 1 << 1 | 1 << 3 : 1 << 3, lin, n);
}

static inline void port_note(struct cpu *c, uint16_t port, unsigned n)
{
	if (unlikely(c->dr7 & 0xff) && c->cr4 & CR4_DE)
		break_note(c, 1 << 2, port, n);
}

/* Where an access inside one page goes; faults. */
static struct where translate(struct cpu *c, unsigned seg, uint64_t lin,
			      int acc)
{
	unsigned mmu = mmu_of(c, seg);
	struct where at;
	struct walk w;

	if (c->efer & EFER_LMA)
		check_canonical(c, seg, lin);
	page_walk(c, lin, acc, mmu == MMU_USER_AC ? MMU_USER : mmu, &w);
	at.gpa = w.gpa;
	at.host = NULL;
	at.global = w.global;
	at.slot = is_apic(c, w.gpa) ? NULL : phys_slot(c->vm, w.gpa);
	if (at.slot) {
		at.host = at.slot->host + (w.gpa - at.slot->gpa);
		if (acc == ACC_WRITE && at.slot->flags & HV_MEM_WRITE)
			mark_dirty(at.slot, w.gpa);
		tlb_fill(c, mmu, lin, acc, &w, &at);
	}
	return at;
}

/* -- MMIO and ports ------------------------------------------------------- */

static uint64_t cut(uint64_t v, unsigned n)
{
	return n == 8 ? v : v & (BIT(8 * n) - 1);
}

static bool replayed(struct cpu *c, uint64_t *value)
{
	struct replay *r = &c->replay;

	if (r->at >= r->done)
		return false;
	*value = r->value[r->at++];
	return true;
}

static void record(struct cpu *c, uint64_t value)
{
	struct replay *r = &c->replay;

	if (r->done >= REPLAY_MAX)
		cpu_error(c, "too many device accesses in one instruction");
	r->value[r->done++] = value;
	r->at = r->done;
}

static _Noreturn void ask(struct cpu *c)
{
	if (c->replay.done >= REPLAY_MAX)
		cpu_error(c, "too many device accesses in one instruction");
	c->replay.waiting = true;
	switch (c->exit->reason) {
	case HV_EXIT_MMIO: c->replay.write = c->exit->mmio.write; break;
	case HV_EXIT_PIO: c->replay.write = c->exit->pio.write; break;
	default: c->replay.write = false; /* WRMSR may be answered with #GP */
	}
	cpu_leave(c);
}

static bool doorbell_rings(struct soft_vm *vm, enum hv_space space,
			   uint64_t addr, unsigned size, uint64_t value)
{
	uint64_t one = 1;
	bool hit = false;

	pthread_rwlock_rdlock(&vm->slots);
	for (unsigned i = 0; i < vm->ndoorbells && !hit; i++) {
		const struct hv_doorbell *d = &vm->doorbells[i];

		hit = d->space == space && d->addr == addr &&
		      (!d->size || d->size == size) &&
		      (!d->match || d->value == value);
		if (hit && write(vm->doorbell_fds[i], &one, 8) < 0)
			hit = errno == EAGAIN; /* full counter: it has rung */
	}
	pthread_rwlock_unlock(&vm->slots);
	return hit;
}

static uint64_t mmio_ld(struct cpu *c, uint64_t gpa, unsigned n)
{
	uint64_t v;

	if (replayed(c, &v))
		return v;
	if (is_apic(c, gpa)) {
		v = cut(lapic_mmio_read(c, gpa & 0xfff), n);
		c->irq_check = true;
		record(c, v);
		return v;
	}
	c->exit->reason = HV_EXIT_MMIO;
	c->exit->mmio.gpa = gpa;
	c->exit->mmio.size = (uint8_t)n;
	c->exit->mmio.write = false;
	c->exit->mmio.value = 0;
	ask(c);
}

static void mmio_st(struct cpu *c, uint64_t gpa, unsigned n, uint64_t v)
{
	uint64_t ignored;

	if (replayed(c, &ignored))
		return;
	if (is_apic(c, gpa)) {
		lapic_mmio_write(c, gpa & 0xfff, (uint32_t)v);
		c->irq_check = c->leave_block = true;
		record(c, 0);
		return;
	}
	if (doorbell_rings(c->vm, HV_SPACE_MMIO, gpa, n, v)) {
		record(c, 0);
		return;
	}
	c->exit->reason = HV_EXIT_MMIO;
	c->exit->mmio.gpa = gpa;
	c->exit->mmio.size = (uint8_t)n;
	c->exit->mmio.write = true;
	c->exit->mmio.value = v;
	ask(c);
}

uint32_t pio_in(struct cpu *c, uint16_t port, unsigned size)
{
	uint64_t v;

	port_note(c, port, size);
	if (replayed(c, &v))
		return (uint32_t)cut(v, size);
	c->exit->reason = HV_EXIT_PIO;
	c->exit->pio.port = port;
	c->exit->pio.size = (uint8_t)size;
	c->exit->pio.write = false;
	c->exit->pio.value = 0;
	ask(c);
}

void pio_out(struct cpu *c, uint16_t port, unsigned size, uint32_t value)
{
	uint64_t ignored;

	port_note(c, port, size);
	if (replayed(c, &ignored))
		return;
	value = (uint32_t)cut(value, size);
	if (doorbell_rings(c->vm, HV_SPACE_PIO, port, size, value)) {
		record(c, 0);
		return;
	}
	c->exit->reason = HV_EXIT_PIO;
	c->exit->pio.port = port;
	c->exit->pio.size = (uint8_t)size;
	c->exit->pio.write = true;
	c->exit->pio.value = value;
	ask(c);
}

uint64_t msr_ask(struct cpu *c, uint32_t index, bool write, uint64_t value)
{
	if (replayed(c, &value)) {
		if (c->replay.fault)
			x86_gp(c, 0);
		return value;
	}
	c->exit->reason = HV_EXIT_MSR;
	c->exit->msr.index = index;
	c->exit->msr.write = write;
	c->exit->msr.fault = false;
	c->exit->msr.value = value;
	ask(c);
}

/* -- slow paths ----------------------------------------------------------- */

/* Bytes inside one page, already translated. */
static void load_at(struct cpu *c, const struct where *at, void *buf, size_t n)
{
	uint8_t *to = buf;
	uint64_t gpa = at->gpa;

	if (at->host) {
		switch (n) {
		case 1: *to = *(volatile u8g *)at->host; return;
		case 2: *(u16g *)to = *(volatile u16g *)at->host; return;
		case 4: *(u32g *)to = *(volatile u32g *)at->host; return;
		case 8: *(u64g *)to = *(volatile u64g *)at->host; return;
		default: memcpy(to, at->host, n); return;
		}
	}
	while (n) {
		unsigned part = (unsigned)MIN(n, 8);
		uint64_t v = mmio_ld(c, gpa, part);

		memcpy(to, &v, part);
		to += part;
		gpa += part;
		n -= part;
	}
}

static void store_at(struct cpu *c, const struct where *at, const void *buf,
		     size_t n)
{
	const uint8_t *from = buf;
	uint64_t gpa = at->gpa;

	if (at->host && at->slot->flags & HV_MEM_WRITE) {
		switch (n) {
		case 1: *(volatile u8g *)at->host = *from; break;
		case 2: *(volatile u16g *)at->host = *(const u16g *)from; break;
		case 4: *(volatile u32g *)at->host = *(const u32g *)from; break;
		case 8: *(volatile u64g *)at->host = *(const u64g *)from; break;
		default: memcpy(at->host, from, n);
		}
		code_written(c->vm, c, at->slot, gpa, n);
		return;
	}
	while (n) {
		unsigned part = (unsigned)MIN(n, 8);
		uint64_t v = 0;

		memcpy(&v, from, part);
		mmio_st(c, gpa, part, v);
		from += part;
		gpa += part;
		n -= part;
	}
}

/* After #PF.  What is longer than 8 bytes has its own rules, or none. */
static void check_aligned(struct cpu *c, unsigned seg, uint64_t lin, size_t n)
{
	if (likely(mmu_of(c, seg) != MMU_USER_AC))
		return;
	if (n == 10)
		n = 8;
	if ((n == 2 || n == 4 || n == 8) && lin & (n - 1))
		x86_fault(c, VEC_AC, 0);
}

static inline struct tlb_entry *entry(struct cpu *c, unsigned seg, uint64_t lin,
				      bool write)
{
	return &c->tlb[mmu_of(c, seg)].e[write][(lin >> 12) & (TLB_SIZE - 1)];
}

static inline void *host_at(const struct tlb_entry *e, uint64_t lin)
{
	return (void *)(uintptr_t)(e->host + (lin & 0xfff));
}

/* The host's byte at lin, if the TLB holds its page, else NULL. */
static uint8_t *held(struct cpu *c, unsigned seg, uint64_t lin, bool write)
{
	const struct tlb_entry *e = entry(c, seg, lin, write);

	return (lin ^ e->tag) < 0x1000 ? (uint8_t *)host_at(e, lin) : NULL;
}

/*
 * What crosses into another page comes here each time it is accessed: two
 * pages of ordinary memory that the TLB holds need no walk.  It holds none where
 * accesses have to be aligned, or are watched.
 */
static bool both_held(struct cpu *c, unsigned seg, uint64_t lin, size_t first,
		      bool write, uint8_t *part[2])
{
	part[0] = held(c, seg, lin, write);
	part[1] = held(c, seg, wrap(c, lin + first), write);
	return part[0] && part[1];
}

void mem_read(struct cpu *c, unsigned seg, uint64_t lin, void *buf, size_t n)
{
	size_t first = MIN(n, 0x1000 - (lin & 0xfff));
	struct where at, next;
	uint8_t *part[2];

	if (first < n && both_held(c, seg, lin, first, false, part)) {
		memcpy(buf, part[0], first);
		memcpy((uint8_t *)buf + first, part[1], n - first);
		return;
	}
	at = translate(c, seg, lin, ACC_READ);
	watch_note(c, lin, n, false);
	if (first == n) {
		check_aligned(c, seg, lin, n);
		load_at(c, &at, buf, n);
		return;
	}
	/* Both pages are checked before a device sees anything. */
	next = translate(c, seg, wrap(c, lin + first), ACC_READ);
	check_aligned(c, seg, lin, n);
	load_at(c, &at, buf, first);
	load_at(c, &next, (uint8_t *)buf + first, n - first);
}

void mem_write(struct cpu *c, unsigned seg, uint64_t lin, const void *buf,
	       size_t n)
{
	size_t first = MIN(n, 0x1000 - (lin & 0xfff));
	struct where at, next;
	uint8_t *part[2];

	if (first < n && both_held(c, seg, lin, first, true, part)) {
		memcpy(part[0], buf, first);
		memcpy(part[1], (const uint8_t *)buf + first, n - first);
		return;
	}
	at = translate(c, seg, lin, ACC_WRITE);
	watch_note(c, lin, n, true);
	if (first == n) {
		check_aligned(c, seg, lin, n);
		store_at(c, &at, buf, n);
		return;
	}
	next = translate(c, seg, wrap(c, lin + first), ACC_WRITE);
	check_aligned(c, seg, lin, n);
	store_at(c, &at, buf, first);
	store_at(c, &next, (const uint8_t *)buf + first, n - first);
}

void mem_check(struct cpu *c, unsigned seg, uint64_t lin, size_t n, bool write)
{
	int acc = write ? ACC_WRITE : ACC_READ;

	translate(c, seg, lin, acc);
	if ((lin & 0xfff) + n > 0x1000)
		translate(c, seg, wrap(c, (lin & ~0xfffull) + 0x1000), acc);
	check_aligned(c, seg, lin, n);
}

/* -- the fast paths ------------------------------------------------------- */

#define ACCESSORS(bits) \
	uint##bits##_t ld##bits(struct cpu *c, unsigned seg, uint64_t lin) \
	{ \
		struct tlb_entry *e = entry(c, seg, lin, false); \
		uint##bits##_t v; \
\
		if (likely((lin ^ e->tag) <= 0x1000 - sizeof(v))) \
			return *(volatile u##bits##g *)host_at(e, lin); \
		mem_read(c, seg, lin, &v, sizeof(v)); \
		return v; \
	} \
\
	void st##bits(struct cpu *c, unsigned seg, uint64_t lin, \
		      uint##bits##_t v) \
	{ \
		struct tlb_entry *e = entry(c, seg, lin, true); \
\
		if (likely((lin ^ e->tag) <= 0x1000 - sizeof(v))) \
			*(volatile u##bits##g *)host_at(e, lin) = v; \
		else \
			mem_write(c, seg, lin, &v, sizeof(v)); \
	}

ACCESSORS(8)
ACCESSORS(16)
ACCESSORS(32)
ACCESSORS(64)
#undef ACCESSORS

void *mem_rmw(struct cpu *c, unsigned seg, uint64_t lin, unsigned size)
{
	struct tlb_entry *e = entry(c, seg, lin, true);

	if (likely((lin ^ e->tag) <= 0x1000u - size))
		return host_at(e, lin);
	mem_check(c, seg, lin, size, true);
	if ((lin ^ e->tag) <= 0x1000u - size)
		return host_at(e, lin);
	return NULL;
}

/* May something write there without being asked about each byte? */
static bool chunk_allowed(struct cpu *c, unsigned seg, uint64_t lin,
			  const struct where *at)
{
	uint64_t n;

	if (!at->host || !(at->slot->flags & HV_MEM_WRITE) ||
	    mmu_of(c, seg) == MMU_USER_AC || (c->watch && page_watched(c, lin)))
		return false;
	n = (at->gpa - at->slot->gpa) >> 12;
	return !at->slot->dirty ||
	       atomic_load(&at->slot->dirty[n / 64]) & BIT(n % 64);
}

void *mem_chunk(struct cpu *c, unsigned seg, uint64_t lin, size_t *n,
		bool write, uint64_t *tell)
{
	struct tlb_entry *e = entry(c, seg, lin, write);
	size_t room = 0x1000 - (lin & 0xfff);
	struct where at;

	*tell = CHUNK_PLAIN;
	*n = MIN(*n, room);
	if (!((lin ^ e->tag) & ~0xfffull))
		return host_at(e, lin);
	at = translate(c, seg, lin, write ? ACC_WRITE : ACC_READ);
	if (!((lin ^ e->tag) & ~0xfffull))
		return host_at(e, lin);
	if (!write || !chunk_allowed(c, seg, lin, &at))
		return NULL;
	/* It has code, or had: all granules are looked at once, not a few
	 * with each element. */
	*tell = at.gpa;
	return at.host;
}

/* -- code ----------------------------------------------------------------- */

static void xtab_fill(struct cpu *c, uint64_t lin, const struct where *at)
{
	unsigned n = xtab_slot(lin);

	if (!at->slot || at->gpa >> XTAB_GPA_BITS)
		return;
	c->xtab[c->mmu][n] = xtab_id(lin, at->gpa);
	tlb_mark(&c->marks[c->mmu][TLB_EXEC], n, at->global);
}

bool code_at(struct cpu *c, uint64_t lin, struct code_page *out)
{
	uint64_t known = c->xtab[c->mmu][xtab_slot(lin)];
	struct where at;

	/* It was translated, and nothing has been flushed since. */
	if (xtab_same_lin(known, lin)) {
		at.gpa = xtab_gpa(known) | (lin & 0xfff);
		at.slot = phys_slot(c->vm, at.gpa);
		if (at.slot)
			at.host = at.slot->host + (at.gpa - at.slot->gpa);
	} else {
		at = translate(c, SEG_CS, lin, ACC_EXEC);
		xtab_fill(c, lin, &at);
	}
	if (!at.slot)
		return false;
	out->host = at.host;
	out->gpa = at.gpa;
	out->page = page_of(at.slot, at.gpa);
	return true;
}

void code_claim(struct cpu *c, struct code_page *p)
{
	struct soft_vm *vm = c->vm;

	if ((atomic_load(&p->page->state) & (PAGE_CODE | PAGE_WMAP)) ==
	    PAGE_CODE)
		return;
	if (!(atomic_fetch_or(&p->page->state, PAGE_CODE) & PAGE_WMAP))
		return;
	world_stop(vm, c);
	tlb_protect(vm, p->page, p->host - (p->gpa & 0xfff));
	atomic_fetch_and(&p->page->state, ~(uint32_t)PAGE_WMAP);
	world_start(vm, c);
}

void code_mark(struct code_page *p, uint64_t gpa, size_t n)
{
	uint64_t mask = granule_mask(gpa, n);

	/* Bits are cleared under vm->code, which the caller holds. */
	if (mask & ~atomic_load(&p->page->granules))
		atomic_fetch_or(&p->page->granules, mask);
}

/* -- slots: entry points of the engine ------------------------------------ */

static void slot_free(struct soft_slot *s)
{
	free(s->pages);
	free((void *)s->dirty);
}

static int slot_add(struct soft_vm *vm, uint64_t gpa, uint64_t size, void *host,
		    unsigned flags)
{
	struct soft_slot *s = &vm->slot[vm->nslots];

	if (vm->nslots == SOFT_MAX_SLOTS)
		return -ENOSPC;
	*s = (struct soft_slot){
		.gpa = gpa, .size = size, .host = host, .flags = flags
	};
	s->pages = calloc(size >> 12, sizeof(*s->pages));
	if (flags & HV_MEM_LOG)
		s->dirty = calloc(((size >> 12) + 63) / 64, sizeof(*s->dirty));
	if (!s->pages || (flags & HV_MEM_LOG && !s->dirty)) {
		slot_free(s);
		return -ENOMEM;
	}
	vm->nslots++;
	return 0;
}

static void change_begin(struct soft_vm *vm)
{
	world_stop(vm, NULL);
	pthread_rwlock_wrlock(&vm->slots);
}

/* Every block may lie in what changed: new generations by new page structs
 * are not enough, so the caches are told to start again. */
static void change_end(struct soft_vm *vm)
{
	tlb_flush_all(vm);
	for (unsigned i = 0; i < vm->vm.max_vcpus; i++)
		if (vm->cpu[i]) {
			cache_forget(vm->cpu[i]);
			atomic_store(&vm->cpu[i]->nstale, MAX_STALE);
			cpu_request(vm->cpu[i], REQ_CODE);
		}
	/*
	 * Nothing is decoded any more, so nothing needs protection.  While a
	 * machine is built nothing was: its size must not cost time.
	 */
	for (unsigned i = 0; atomic_load(&vm->has_run) && i < vm->nslots; i++) {
		uint64_t n = vm->slot[i].size >> 12;

		for (uint64_t k = 0; k < n; k++)
			if (atomic_load(&vm->slot[i].pages[k].state)) {
				atomic_store(&vm->slot[i].pages[k].state, 0);
				atomic_store(&vm->slot[i].pages[k].granules, 0);
			}
	}
	pthread_rwlock_unlock(&vm->slots);
	world_start(vm, NULL);
}

int soft_mem_map(struct hv_vm *hv, uint64_t gpa, uint64_t size, void *host,
		 unsigned flags)
{
	struct soft_vm *vm = to_soft(hv);
	int ret;

	change_begin(vm);
	ret = slot_add(vm, gpa, size, host, flags);
	change_end(vm);
	return ret;
}

/* Cut [gpa, gpa + size) out of the slots; what is left of a slot stays. */
static int cut_out(struct soft_vm *vm, uint64_t gpa, uint64_t size,
		   struct soft_slot *old)
{
	uint64_t end = gpa + size;
	int ret = 0;

	for (unsigned i = 0; i < vm->nslots && !ret;) {
		struct soft_slot s = vm->slot[i];
		uint64_t send = s.gpa + s.size;

		if (send <= gpa || s.gpa >= end) {
			i++;
			continue;
		}
		*old = s;
		vm->slot[i] = vm->slot[--vm->nslots];
		if (s.gpa < gpa)
			ret = slot_add(vm, s.gpa, gpa - s.gpa, s.host, s.flags);
		if (!ret && send > end)
			ret = slot_add(vm, end, send - end,
				       s.host + (end - s.gpa), s.flags);
		slot_free(&s);
	}
	return ret;
}

int soft_mem_unmap(struct hv_vm *hv, uint64_t gpa, uint64_t size)
{
	struct soft_vm *vm = to_soft(hv);
	struct soft_slot old;
	int ret;

	change_begin(vm);
	ret = cut_out(vm, gpa, size, &old);
	change_end(vm);
	return ret;
}

int soft_mem_protect(struct hv_vm *hv, uint64_t gpa, uint64_t size,
		     unsigned flags)
{
	struct soft_vm *vm = to_soft(hv);
	uint64_t at = gpa, end = gpa + size;
	int ret = 0;

	change_begin(vm);
	while (at < end && !ret) {
		struct soft_slot *s = phys_slot(vm, at), old;
		uint64_t part;
		uint8_t *host;

		if (!s) {
			ret = -ENOENT;
			break;
		}
		part = MIN(end, s->gpa + s->size) - at;
		host = s->host + (at - s->gpa);
		ret = cut_out(vm, at, part, &old);
		if (!ret)
			ret = slot_add(vm, at, part, host, flags);
		at += part;
	}
	change_end(vm);
	return ret;
}

int soft_mem_fetch_dirty(struct hv_vm *hv, uint64_t gpa, uint64_t size,
			 uint64_t *bits)
{
	struct soft_vm *vm = to_soft(hv);
	uint64_t pages = size >> 12;
	int ret = 0;

	memset(bits, 0, (pages + 63) / 64 * 8);
	world_stop(vm, NULL);
	for (uint64_t n = 0; n < pages && !ret; n++) {
		uint64_t at = gpa + (n << 12), k;
		struct soft_slot *s = phys_slot(vm, at);

		if (!s || !s->dirty) {
			ret = -ENOENT;
			break;
		}
		k = (at - s->gpa) >> 12;
		if (atomic_fetch_and(&s->dirty[k / 64], ~BIT(k % 64)) &
		    BIT(k % 64))
			bits[n / 64] |= BIT(n % 64);
	}
	tlb_flush_all(vm);
	world_start(vm, NULL);
	return ret;
}

void soft_mem_written(struct hv_vm *hv, uint64_t gpa, uint64_t size)
{
	struct soft_vm *vm = to_soft(hv);

	pthread_rwlock_rdlock(&vm->slots);
	phys_written(vm, NULL, gpa, size);
	pthread_rwlock_unlock(&vm->slots);
}

void soft_mem_finish(struct soft_vm *vm)
{
	for (unsigned i = 0; i < vm->nslots; i++)
		slot_free(&vm->slot[i]);
	vm->nslots = 0;
}
