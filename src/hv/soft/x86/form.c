/* SPDX-License-Identifier: Apache-2.0 */
/*
 * form.c - forms of instructions that were decoded before
 *
 * Programs use few forms: the bytes up to ModRM and SIB, which decide all but
 * the values of the displacement and the immediate.  What Zydis and the
 * binders made of a form is kept, with where those two are, and an instruction
 * of a form that is known is a copy with its own values.
 *
 * Only 64-bit code, and only what is plain: no EVEX, no register in an
 * immediate, one immediate at most.  How long the head of an instruction is,
 * is found here; where that disagrees with what Zydis says of the lengths,
 * the form is not kept.
 */
#include <stdlib.h>

#include "hv/soft/mem.h"
#include "hv/soft/x86/decode.h"

enum { SLOT_BITS = 11, SLOTS = 1 << SLOT_BITS, WAYS = 4, FORMS = SLOTS * WAYS };
enum { MAX_HEAD = 8, MAX_OPS = DECODED_OPS, FEW_OPS = 3 };

struct form {
	uint64_t head;	/* the bytes, the first lowest */
	uint8_t length; /* of the whole instruction, 0: none here */
	uint8_t size;	/* of the head */
	uint8_t disp_size, imm_size;
	bool imm_signed;
	uint8_t disp_ops, imm_ops; /* bits: operands that have the value */
	struct insn in;
	/* Zydis' view, which translation needs. */
	struct instruction i;
	struct operand op[MAX_OPS];
};

/*
 * Dense, as most guests need a part of them.  A slot's entries each have the
 * place of a form, + 1, 0: none, and above that a part of the hash.  What is
 * found goes one up, what is new takes the last: many forms are seen once.
 */
struct forms {
	uint32_t slot[SLOTS][WAYS];
	unsigned used;
	struct form form[FORMS];
};

struct forms *forms_new(void)
{
	return calloc(1, sizeof(struct forms));
}

size_t forms_size(void)
{
	return sizeof(struct forms);
}

void forms_free(struct forms *f)
{
	free(f);
}

static bool is_prefix(uint8_t b)
{
	switch (b) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x66:
	case 0x67:
	case 0xf0:
	case 0xf2:
	case 0xf3: return true;
	default: return false;
	}
}

/* Opcodes of the one-byte map, and of map 0F, with a ModRM byte. */
static bool has_modrm(uint8_t op)
{
	static const uint64_t map[4] = { 0x0f0f0f0f0f0f0f0full,
					 0x00000a0800000000ull,
					 0x000000000000ffffull,
					 0xc0c00000ff0f00c3ull };

	return map[op >> 6] >> (op & 63) & 1;
}

static bool has_modrm_0f(uint8_t op)
{
	static const uint64_t map[4] = { 0xff00ffffffffa00full,
					 0xff7fffffffffffffull,
					 0xfffff8f8ffff0000ull,
					 0xffffffffffff00ffull };

	return map[op >> 6] >> (op & 63) & 1;
}

/* Bytes up to ModRM and SIB; those of b that are looked at are 15. */
static unsigned head_size(const uint8_t *b)
{
	unsigned n = 0;
	bool modrm;

	while (n < MAX_HEAD && is_prefix(b[n]))
		n++;
	if ((b[n] & 0xf0) == 0x40)
		n++;
	if (n > MAX_HEAD - 2)
		return 0;
	switch (b[n]) {
	case 0xc5:
		n += 3;
		modrm = b[n - 1] != 0x77;
		break;
	case 0xc4:
		n += 4;
		modrm = b[n - 1] != 0x77 || (b[n - 3] & 31) != 1;
		break;
	case 0x0f:
		n += 2;
		modrm = has_modrm_0f(b[n - 1]);
		if (b[n - 1] == 0x38 || b[n - 1] == 0x3a)
			n++;
		break;
	default: modrm = has_modrm(b[n++]);
	}
	if (modrm)
		n += 1 + (b[n] < 0xc0 && (b[n] & 7) == 4);
	return n > MAX_HEAD ? 0 : n;
}

static uint64_t read_le(const uint8_t *p, unsigned n)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return n == 8 ? v : v & (BIT(8 * n) - 1);
}

static uint64_t sign_extend(uint64_t v, unsigned bytes)
{
	unsigned shift = 64 - 8 * bytes;

	return (uint64_t)((int64_t)(v << shift) >> shift);
}

static uint64_t disp_of(const struct form *f, const uint8_t *b)
{
	return sign_extend(read_le(b + f->size, f->disp_size), f->disp_size);
}

static uint64_t imm_of(const struct form *f, const uint8_t *b)
{
	uint64_t v = read_le(b + f->size + f->disp_size, f->imm_size);

	return f->imm_signed ? sign_extend(v, f->imm_size) : v;
}

/* The form in slot with that head, or NULL. */
static struct form *lookup(struct forms *k, uint32_t *slot, uint64_t head,
			   unsigned size, uint32_t tag)
{
	for (unsigned n = 0; n < WAYS && slot[n]; n++) {
		uint32_t entry = slot[n];
		struct form *f = &k->form[(uint16_t)entry - 1];

		if (entry >> 16 != tag || f->head != head || f->size != size)
			continue;
		if (n) {
			slot[n] = slot[n - 1];
			slot[n - 1] = entry;
		}
		return f;
	}
	return NULL;
}

/* The form of the 15 bytes at code, or NULL; b is for 24: them and slack. */
static struct form *find(struct cpu *c, const uint8_t *code, unsigned avail,
			 uint8_t *b, bool *known)
{
	struct forms *k = c->forms;
	uint64_t head, hash;
	struct form *f;
	uint32_t *slot;
	unsigned size, n = 0;

	if (c->mode != MODE_64 || avail < 15 || !k)
		return NULL;
	/* Another vCPU may be changing them. */
	memcpy(b, code, 15);
	memset(b + 15, 0, 9);
	size = head_size(b);
	if (!size)
		return NULL;
	head = read_le(b, size);
	hash = head * 0x9e3779b97f4a7c15ull;
	slot = k->slot[hash >> (64 - SLOT_BITS)];
	f = lookup(k, slot, head, size, (uint16_t)(hash >> 32));
	*known = f && f->length;
	if (f)
		return f;
	while (n < WAYS - 1 && slot[n])
		n++;
	if (!slot[n])
		slot[n] = ++k->used;
	slot[n] = (uint16_t)slot[n] | (uint32_t)(uint16_t)(hash >> 32) << 16;
	f = &k->form[(uint16_t)slot[n] - 1];
	f->head = head;
	f->size = (uint8_t)size;
	f->length = 0;
	return f;
}

static void fill_in(const struct form *f, const uint8_t *b, struct insn *in)
{
	*in = f->in;
	if (f->disp_size)
		in->disp = (int64_t)disp_of(f, b);
	if (f->imm_size)
		in->imm = imm_of(f, b);
	memcpy(in->bytes, b, 15);
	memset(in->bytes + f->length, 0, 15u - f->length);
}

static void fill_raw(const struct form *f, const uint8_t *b,
		     struct instruction *i)
{
	if (f->imm_size)
		i->raw.imm[0].value.u = imm_of(f, b);
}

/* What decoding has just made of it: is it plain, and what is where? */
static bool learn(struct form *f, const uint8_t *b, const struct insn *in,
		  const struct decoded *d)
{
	const struct instruction *i = &d->i;

	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	    i->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	if (i->opcode_map > ZYDIS_OPCODE_MAP_0F3A || i->address_width != 64 ||
	    i->operand_count > MAX_OPS || i->raw.imm[1].size)
		return false;
	f->disp_size = i->raw.disp.size / 8;
	f->imm_size = i->raw.imm[0].size / 8;
	f->imm_signed = i->raw.imm[0].is_signed;
	if (f->size + f->disp_size + f->imm_size != i->length ||
	    (f->disp_size && i->raw.disp.offset != f->size) ||
	    (f->imm_size && i->raw.imm[0].offset != f->size + f->disp_size))
		return false;
	f->disp_ops = f->imm_ops = 0;
	for (unsigned n = 0; n < i->operand_count; n++) {
		const struct operand *op = &d->op[n];

		switch (op->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			if (op->encoding == ZYDIS_OPERAND_ENCODING_IS4)
				return false;
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			if (op->has_disp)
				f->disp_ops |= (uint8_t)BIT(n);
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			if (op->encoding != ZYDIS_OPERAND_ENCODING_NONE)
				f->imm_ops |= (uint8_t)BIT(n);
			break;
		default: return false;
		}
	}
	/* One of each at most, with just the value that the bytes say. */
	if (!f->disp_size != !f->disp_ops || f->disp_ops & (f->disp_ops - 1) ||
	    !f->imm_size != !f->imm_ops || f->imm_ops & (f->imm_ops - 1))
		return false;
	if (f->disp_size &&
	    (in->disp != (int64_t)disp_of(f, b) ||
	     in->disp != d->op[__builtin_ctz(f->disp_ops)].mem.disp))
		return false;
	return !f->imm_size ||
	       (in->imm == imm_of(f, b) &&
		in->imm == d->op[__builtin_ctz(f->imm_ops)].imm.value.u);
}

bool form_insn(struct cpu *c, const uint8_t *code, unsigned avail,
	       struct insn *in)
{
	uint8_t b[24];
	bool known;
	struct form *f = find(c, code, avail, b, &known);

	if (!f || !known)
		return false;
	fill_in(f, b, in);
	return true;
}

bool form_full(struct cpu *c, const uint8_t *code, unsigned avail,
	       struct insn *in, struct decoded *d)
{
	uint8_t b[24];
	bool known;
	struct form *f = find(c, code, avail, b, &known);
	size_t few = FEW_OPS * sizeof(d->op[0]);

	if (!f || !known)
		return false;
	fill_in(f, b, in);
	d->i = f->i;
	fill_raw(f, b, &d->i);
	d->mode = MODE_64;
	memcpy(d->op, f->op, few);
	if (d->i.operand_count > FEW_OPS)
		memcpy(d->op + FEW_OPS, f->op + FEW_OPS, sizeof(f->op) - few);
	else
		memset(d->op + FEW_OPS, 0, sizeof(f->op) - few);
	if (f->disp_size)
		d->op[__builtin_ctz(f->disp_ops)].mem.disp = in->disp;
	if (f->imm_size)
		d->op[__builtin_ctz(f->imm_ops)].imm.value.u = in->imm;
	return true;
}

const struct instruction *form_look(struct cpu *c, const uint8_t *code,
				    unsigned avail)
{
	struct decoded d;
	struct insn in;
	uint8_t b[24];
	bool known;
	struct form *f = find(c, code, avail, b, &known);

	if (!f)
		return NULL;
	if (!known && (decode_full(c, code, avail, &in, &d) || !f->length))
		return NULL;
	fill_raw(f, b, &f->i);
	return &f->i;
}

void form_keep(struct cpu *c, const uint8_t *code, unsigned avail,
	       const struct insn *in, const struct decoded *d)
{
	uint8_t b[24];
	bool known;
	struct form *f = find(c, code, avail, b, &known);

	/* Of these bytes, not of what came there meanwhile. */
	if (!f || known || memcmp(b, in->bytes, in->len) || !learn(f, b, in, d))
		return;
	f->in = *in;
	f->length = in->len;
	f->i = d->i;
	memcpy(f->op, d->op, sizeof(f->op));
}
