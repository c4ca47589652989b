/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.c - a block's code for another linear address of its page
 *
 * Libraries lie elsewhere in each process.  The code of a block holds its
 * address in few places, which translation has listed: a copy with those
 * changed costs a tenth of a translation.  What was chosen by the address is
 * the same anywhere in the lower half, away from its ends.
 *
 * A copy is watched, killed and dropped like any block.  Its original is
 * alive, so what it was made from is watched already and has not changed; if
 * it just did, whoever wrote it has told so in c->stale, which kills both.
 */
#include "hv/soft/trans/trans.h"

/* No target of a direct branch leaves what is canonical there. */
#define LOW_END ((1ull << 47) - (1ull << 32))

bool trans_may_copy(uint64_t lin)
{
	return lin < LOW_END;
}

bool trans_copies(const struct tblock *from, uint64_t lin)
{
	return !from->fixed && trans_may_copy(lin) &&
	       !((from->lin ^ lin) & 0xfff);
}

static void add64(uint8_t *at, uint64_t by)
{
	uint64_t v;

	memcpy(&v, at, 8);
	v += by;
	memcpy(at, &v, 8);
}

static void add32(uint8_t *at, uint32_t by)
{
	uint32_t v;

	memcpy(&v, at, 4);
	v += by;
	memcpy(at, &v, 4);
}

/* How far things have come. */
struct moves {
	uint64_t lin;
	ptrdiff_t near, far;
	uint32_t site, slot, slot2;
};

static void relocate(uint8_t *p, const struct reloc *r, const struct moves *m)
{
	ptrdiff_t here = r->far ? m->far : m->near;

	switch (r->kind) {
	case RELOC_ADDRESS: add64(p, m->lin); break;
	case RELOC_RETURN: add32(p, (uint32_t)m->lin); break;
	case RELOC_ID: add64(p, m->lin >> 12 << 28); break;
	case RELOC_SLOT: add32(p, m->slot); break;
	case RELOC_SLOT_2: add32(p, m->slot2); break;
	case RELOC_STUB:
		add32(p + STUB_SITE, m->site);
		add32(p + STUB_JUMP, (uint32_t)-here);
		break;
	case RELOC_SITE: add32(p + STUB_SITE, m->site); break;
	case RELOC_THUNK: add32(p, (uint32_t)-here); break;
	case RELOC_CROSS:
		add32(p, (uint32_t)((r->far ? m->near : m->far) - here));
		break;
	default: break;
	}
}

static uint8_t *moved(const struct trans *t, uint8_t *p, const struct moves *m)
{
	return p ? p + (p >= t->far.start ? m->far : m->near) : NULL;
}

static void copy_site(struct trans *t, struct tblock *b,
		      const struct site *from, const struct moves *m)
{
	struct site *s = &t->site[t->copies.nsites++];

	*s = *from;
	s->rip += m->lin;
	if (t->c->mode != MODE_64)
		s->rip = (uint32_t)s->rip;
	if (s->type == SITE_HERE)
		s->of = (uint32_t)(b - t->block);
	s->resume = trans_place(t, moved(t, trans_at(t, s->resume), m));
	if (s->type != SITE_CHAIN && s->type != SITE_ALONE)
		return;
	s->patch = trans_place(t, moved(t, trans_at(t, s->patch), m));
	/* The original's may be aimed at a block by now. */
	e_aim(trans_at(t, s->patch), trans_at(t, s->resume));
}

static uint32_t slot_move(uint64_t from, uint64_t to)
{
	return (xtab_slot(to) - xtab_slot(from)) * 8;
}

struct tblock *trans_copy(struct trans *t, const struct tblock *from,
			  uint64_t lin)
{
	struct tblock *b = &t->block[t->copies.nblocks++];
	struct moves m;

	*b = *from;
	b->lin = lin;
	b->checked = (uint8_t *)ALIGN_UP((uintptr_t)t->copies.near.used, 16);
	b->miss = t->copies.far.used;
	b->site = t->copies.nsites;
	b->fixed = true;
	for (unsigned n = 0; n < 2; n++)
		b->link[n].block = b;
	m = (struct moves){ .lin = lin - from->lin,
			    .near = b->checked - from->checked,
			    .far = b->miss - from->miss,
			    .site = b->site - from->site,
			    .slot = slot_move(from->lin, lin),
			    .slot2 = slot_move((from->lin | 0xfff) + 1,
					       (lin | 0xfff) + 1) };
	b->entry = moved(t, b->entry, &m);
	memcpy(b->checked, from->checked, b->near_size);
	memcpy(b->miss, from->miss, b->far_size);
	for (unsigned n = 0; n < b->nrelocs; n++) {
		const struct reloc *r = &t->reloc[b->reloc + n];

		relocate((r->far ? b->miss : b->checked) + r->at, r, &m);
	}
	for (unsigned n = 0; n < b->nsites; n++)
		copy_site(t, b, &t->site[from->site + n], &m);
	t->copies.near.used = b->checked + b->near_size;
	t->copies.far.used = b->miss + b->far_size;
	return b;
}
