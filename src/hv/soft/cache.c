/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache.c - decoded blocks of one vCPU
 *
 * A block is straight-line code inside one guest page (its last instruction
 * may run into the next), decoded once.  Blocks are found by guest-physical
 * address and mode, with a table by linear address in front, whose entries
 * count while the TLB says that the page is the same.  Nothing is freed singly:
 * a block whose page changed fails block_valid() and is decoded anew; when the
 * arena is full all blocks are dropped.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "hv/soft/mem.h"
#include "hv/soft/x86/decode.h"

enum {
	ARENA_SIZE = 8 << 20, /* bytes per vCPU */
	ARENA_COLD = 2 << 20, /* enough for what is not translated yet */
	ARENA_START = 64,     /* no block is at 0 */
	/*
	 * What the tables grow to with the number of blocks: a guest that
	 * does little, as a clone that waits, touches little of ours.
	 */
	HASH_BITS_MIN = 10,
	HASH_BITS = 15,
	HASH_SIZE = 1 << HASH_BITS,
	FRONT_BITS = 15,
	FRONT_SIZE = 1 << FRONT_BITS,
	HEAT_BITS = 16,
	HEAT_SIZE = 1 << HEAT_BITS,
};

/* Half of a line's address is enough: the rest is seen by the block's. */
struct front {
	uint32_t tag;
	uint32_t block; /* where it is in the arena, 0: empty */
};

struct block_cache {
	uint8_t *arena;
	size_t used;
	unsigned nblocks, hash_bits;
	uint64_t front_mask;
	/* How hot blocks were that were dropped. */
	uint8_t heat[HEAT_SIZE];
	struct block *hash[HASH_SIZE];
	struct front front[FRONT_SIZE];
};

static void set_sizes(struct block_cache *k, unsigned bits)
{
	k->hash_bits = bits;
	k->front_mask = (1ull << MIN(bits + 1, (unsigned)FRONT_BITS)) - 1;
}

int cache_init(struct cpu *c)
{
	struct block_cache *k = calloc(1, sizeof(*k));

	if (!k)
		return -ENOMEM;
	k->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (k->arena == MAP_FAILED) {
		free(k);
		return -ENOMEM;
	}
	madvise(k->arena, ARENA_SIZE, MADV_DONTFORK);
	set_sizes(k, HASH_BITS_MIN);
	k->used = ARENA_START;
	c->cache = k;
	return 0;
}

size_t cache_size(void)
{
	return sizeof(struct block_cache);
}

void cache_finish(struct cpu *c)
{
	if (!c->cache)
		return;
	munmap(c->cache->arena, ARENA_SIZE);
	free(c->cache);
	c->cache = NULL;
}

/* What was written anew starts cold: its page has another gen. */
static uint8_t *heat_of(struct block_cache *k, const struct block *b)
{
	uint64_t h =
		(b->gpa ^ (uint64_t)b->key << 40 ^ (uint64_t)b->gen[0] << 20) *
		0x9e3779b97f4a7c15ull;

	return &k->heat[h >> (64 - HEAT_BITS)];
}

/* So that code which does not run often enough for the arena gets hot, too. */
static void keep_heat(struct block_cache *k)
{
	const struct block *b;

	for (unsigned i = 0; i < 1u << k->hash_bits; i++)
		for (b = k->hash[i]; b; b = b->next)
			*heat_of(k, b) = (uint8_t)MIN(b->heat, 255u);
}

void cache_forget(struct cpu *c)
{
	struct block_cache *k = c->cache;

	c->leave_block = true;
	/* Tables that were never used are not touched. */
	if (k->used == ARENA_START)
		return;
	keep_heat(k);
	memset(k->hash, 0, sizeof(k->hash[0]) << k->hash_bits);
	memset(k->front, 0, sizeof(k->front[0]) * (k->front_mask + 1));
	k->used = ARENA_START;
	k->nblocks = 0;
}

static unsigned hash_of(const struct block_cache *k, uint64_t gpa, uint32_t key)
{
	uint64_t h = (gpa ^ ((uint64_t)key << 40)) * 0x9e3779b97f4a7c15ull;

	return (unsigned)(h >> (64 - k->hash_bits));
}

/* All blocks find their new chains; those in front are found again. */
static void grow(struct block_cache *k)
{
	struct block *all = NULL;

	for (unsigned i = 0; i < 1u << k->hash_bits; i++)
		while (k->hash[i]) {
			struct block *b = k->hash[i];

			k->hash[i] = b->next;
			b->next = all;
			all = b;
		}
	memset(k->front, 0, sizeof(k->front[0]) * (k->front_mask + 1));
	set_sizes(k, MIN(k->hash_bits + 2, (unsigned)HASH_BITS));
	while (all) {
		struct block *b = all;
		unsigned h = hash_of(k, b->gpa, b->key);

		all = b->next;
		b->next = k->hash[h];
		k->hash[h] = b;
	}
}

/* An instruction that runs over the end of its page: its bytes, collected. */
static unsigned fetch_across(struct cpu *c, uint64_t lin, struct code_page *p,
			     struct code_page *next, uint8_t *buf)
{
	unsigned first = 0x1000 - (lin & 0xfff);

	memcpy(buf, p->host, first);
	memcpy(buf + first, next->host, 15 - first);
	return 15;
}

/*
 * Decode under vm->code.  need_next: the first instruction crosses into a
 * page that has not been translated and claimed yet; nothing was added.
 */
static struct block *decode_block(struct cpu *c, uint64_t lin,
				  struct code_page *p, struct code_page *next,
				  bool *need_next)
{
	struct block_cache *k = c->cache;
	size_t room =
		sizeof(struct block) + BLOCK_MAX_INSNS * sizeof(struct insn);
	unsigned off = p->gpa & 0xfff;
	struct block *b;
	uint8_t buf[16];

	if (k->used + room > (c->trans ? ARENA_COLD : ARENA_SIZE))
		cache_forget(c);
	b = (struct block *)(void *)(k->arena + k->used);
	b->gpa = p->gpa;
	b->key = c->mode_key;
	b->page[0] = p->page;
	b->page[1] = NULL;
	b->gen[0] = atomic_load(&p->page->gen);
	b->n = 0;
	b->heat = *heat_of(k, b);
	b->changed = false;
	while (b->n < BLOCK_MAX_INSNS && off < 0x1000) {
		struct insn *in = &b->in[b->n];
		unsigned avail = MIN(15u, 0x1000 - off);
		const uint8_t *code = p->host + (off - (p->gpa & 0xfff));
		int ret;

		/* What is decoded is what will be watched: mark first. */
		code_mark(p, (p->gpa & ~0xfffull) + off, avail);
		memset(in, 0, sizeof(*in));
		ret = decode_insn(c, code, avail, in);
		if (ret == -2 && avail < 15) {
			struct code_page at = *p;

			if (b->n)
				break;
			if (!next) {
				*need_next = true;
				return NULL;
			}
			at.host = p->host;
			fetch_across(c, lin, &at, next, buf);
			code_mark(next, next->gpa, 15 - avail);
			b->page[1] = next->page;
			b->gen[1] = atomic_load(&next->page->gen);
			memset(in, 0, sizeof(*in));
			ret = decode_insn(c, buf, 15, in);
		}
		b->n++;
		off += in->len;
		if (ret || in->flags & IN_ENDS)
			break;
	}
	k->used += ALIGN_UP(sizeof(*b) + b->n * sizeof(struct insn), 64);
	return b;
}

static bool claimed(const struct code_page *p)
{
	return atomic_load(&p->page->state) & PAGE_CODE;
}

static struct block *make_block(struct cpu *c, uint64_t lin,
				struct code_page *p)
{
	struct code_page next, *second = NULL;
	struct block *b = NULL;

	while (!b) {
		bool need_next = false;

		code_claim(c, p);
		if (second)
			code_claim(c, second);
		pthread_mutex_lock(&c->vm->code);
		if (claimed(p) && (!second || claimed(second)))
			b = decode_block(c, lin, p, second, &need_next);
		pthread_mutex_unlock(&c->vm->code);
		if (need_next) {
			if (!code_at(c, (lin & ~0xfffull) + 0x1000, &next))
				cpu_error(c,
					  "instruction fetch outside memory");
			second = &next;
		}
	}
	c->stats.blocks_decoded++;
	return b;
}

/*
 * A block of a page that has changed: when its own bytes have not, it is good
 * again.  True then.
 */
static bool revive(struct cpu *c, struct block *b, struct code_page *p)
{
	const uint8_t *code = p->host;
	bool same;

	code_claim(c, p);
	pthread_mutex_lock(&c->vm->code);
	same = claimed(p);
	for (unsigned n = 0; same && n < b->n; n++) {
		const struct insn *in = &b->in[n];
		unsigned off = (unsigned)(code - p->host);

		/* Marked as when it was decoded, and before it is read. */
		code_mark(p, p->gpa + off,
			  MIN(15u, 0x1000 - ((p->gpa & 0xfff) + off)));
		same = !memcmp(in->bytes, code, in->len);
		code += in->len;
	}
	if (same)
		b->gen[0] = atomic_load(&p->page->gen);
	pthread_mutex_unlock(&c->vm->code);
	return same;
}

/* Put a block that was just decoded in the place of one that is stale. */
static struct block *replace(struct block_cache *k, struct block *old,
			     struct block *b)
{
	size_t size = sizeof(*b) + b->n * sizeof(struct insn);

	if (!old || b->page[1] || b->n > old->n ||
	    (uint8_t *)b + ALIGN_UP(size, 64) != k->arena + k->used)
		return b;
	memcpy(old, b, size);
	k->used = (size_t)((uint8_t *)b - k->arena);
	return old;
}

/* Where a crossing block goes on depends on the mapping. */
static bool goes_on(struct cpu *c, uint64_t lin, const struct block *b)
{
	struct code_page next;

	return !b->page[1] || (code_at(c, (lin & ~0xfffull) + 0x1000, &next) &&
			       next.page == b->page[1]);
}

static struct front *front_of(const struct cpu *c, uint64_t lin)
{
	return &c->cache->front[(lin ^ (lin >> 16)) & c->cache->front_mask];
}

static uint32_t front_tag(uint64_t lin)
{
	return (uint32_t)(lin ^ lin >> 32);
}

/* Of a block that crosses, more has to be looked at. */
static struct block *front_find(const struct cpu *c, uint64_t lin)
{
	const struct front *f = front_of(c, lin);
	struct block *b;

	if (f->tag != front_tag(lin) || !f->block)
		return NULL;
	b = (struct block *)(void *)(c->cache->arena + f->block);
	if ((b->gpa ^ lin) & 0xfff || b->key != c->mode_key || b->page[1] ||
	    b->gpa >> XTAB_GPA_BITS)
		return NULL;
	if (c->xtab[c->mmu][xtab_slot(lin)] != xtab_id(lin, b->gpa))
		return NULL;
	return block_valid(b) ? b : NULL;
}

struct block *cache_known(struct cpu *c)
{
	return c->mode == MODE_64 ? front_find(c, c->rip) : NULL;
}

void cache_prefetch(const struct cpu *c, uint64_t lin)
{
	__builtin_prefetch(front_of(c, lin));
}

struct block *cache_find(struct cpu *c)
{
	uint64_t lin = c->rip;
	struct block_cache *k = c->cache;
	struct code_page p;
	struct front *f;
	struct block *b, *old, **at;
	unsigned h;

	if (c->mode != MODE_64) {
		if (c->rip > c->seg[SEG_CS].limit)
			x86_gp(c, 0);
		lin = (uint32_t)(lin + c->seg[SEG_CS].base);
	}
	b = front_find(c, lin);
	if (b)
		return b;
	if (!code_at(c, lin, &p))
		cpu_error(c, "instruction fetch outside memory at %#llx",
			  (unsigned long long)lin);
	if (k->nblocks >> k->hash_bits && k->hash_bits < HASH_BITS)
		grow(k);
	h = hash_of(k, p.gpa, c->mode_key);
	for (at = &k->hash[h]; (b = *at); at = &b->next)
		if (b->gpa == p.gpa && b->key == c->mode_key &&
		    goes_on(c, lin, b))
			break;
	if (b && !block_valid(b)) {
		*at = b->next;
		old = b->page[1] ? NULL : b;
		b = old && revive(c, old, &p) ? old : NULL;
		if (!b) {
			size_t used = k->used;

			b = make_block(c, lin, &p);
			b->changed = old;
			/* Unless all was dropped on the way. */
			b = replace(k, k->used > used ? old : NULL, b);
		}
		b->next = k->hash[h];
		k->hash[h] = b;
	} else if (!b) {
		b = make_block(c, lin, &p);
		b->next = k->hash[h];
		k->hash[h] = b;
		k->nblocks++;
	}
	f = front_of(c, lin);
	f->tag = front_tag(lin);
	f->block = (uint32_t)((uint8_t *)b - k->arena);
	return b;
}
