/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decoded.c - what is decoded by a form seen before is what Zydis says
 *
 * decoded [SEED]
 *
 * Each offset of this program's own file, and made-up bytes with every opcode,
 * are decoded by a vCPU that keeps forms, by turns with other values behind
 * the same head, and by one that keeps none.
 */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv/soft/x86/decode.h"

enum { COUNT = 400000, BYTES = 15 };

static struct cpu *with, *without;
static unsigned long hits, bad;
static uint64_t seed;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static void show(const char *what, const uint8_t *code)
{
	if (bad++ > 10)
		return;
	printf("%s differs:", what);
	for (unsigned n = 0; n < BYTES; n++)
		printf(" %02x", code[n]);
	printf("\n");
}

static void look(const uint8_t *code)
{
	const struct instruction *i = form_look(with, code, BYTES);
	ZydisDecodedInstruction full;
	ZydisDecoderContext ctx;
	struct instruction is;
	ZydisDecoder z;

	if (!i)
		return;
	decode_init(&z, MODE_64);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&z, &ctx, code, BYTES,
							&full))) {
		show("a look", code);
		return;
	}
	view_instruction(&is, &full);
	/* Nothing of the operands. */
	is.operand_count = i->operand_count;
	is.plain = i->plain;
	is.upper = i->upper;
	/* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison) */
	if (memcmp(&is, i, sizeof(is)))
		show("a look", code);
}

/* Bytes between members are zeroes, or the decoder's on both sides. */
/* NOLINTBEGIN(bugprone-suspicious-memory-comparison) */
static void compare(const uint8_t *code)
{
	static struct decoded a, b;
	static struct insn in_a, in_b;
	int ret_a, ret_b;
	size_t ops;

	memset(&a, 0x55, sizeof(a));
	hits += form_insn(with, code, BYTES, &in_a);
	ret_a = decode_full(with, code, BYTES, &in_a, &a);
	ret_b = decode_full(without, code, BYTES, &in_b, &b);
	ops = b.i.operand_count > DECODED_OPS ? b.i.operand_count : DECODED_OPS;
	if (ret_a != ret_b || memcmp(&in_a, &in_b, sizeof(in_a)))
		show("a result", code);
	else if (!ret_a && (memcmp(&a.i, &b.i, sizeof(a.i)) ||
			    memcmp(a.op, b.op, ops * sizeof(a.op[0])) ||
			    a.mode != b.mode))
		show("an operand", code);
	memset(&in_a, 0, sizeof(in_a));
	if (!decode_insn(with, code, BYTES, &in_a) &&
	    memcmp(&in_a, &in_b, sizeof(in_a)))
		show("an instruction", code);
	look(code);
}
/* NOLINTEND(bugprone-suspicious-memory-comparison) */

static void both(uint8_t *code)
{
	uint8_t head = (uint8_t)(1 + next_random() % 8);

	compare(code);
	compare(code);
	for (unsigned n = head; n < BYTES; n++)
		code[n] = (uint8_t)next_random();
	compare(code);
}

static void made_up(void)
{
	static const uint8_t first[] = { 0x66, 0xf2, 0xf3, 0xf0, 0x64, 0x65,
					 0x67, 0x2e, 0x48, 0x41, 0x44, 0x4c };
	uint8_t code[BYTES];
	unsigned n = 0;

	for (unsigned k = 0; k < BYTES; k++)
		code[k] = (uint8_t)next_random();
	while (n < 4 && next_random() % 2)
		code[n++] = first[next_random() % sizeof(first)];
	switch (next_random() % 8) {
	case 0:
	case 1:
	case 2: code[n++] = 0x0f; break;
	case 3:
		code[n++] = 0x0f;
		code[n++] = next_random() % 2 ? 0x38 : 0x3a;
		break;
	case 4: code[n++] = next_random() % 2 ? 0xc4 : 0xc5; break;
	default: break;
	}
	both(code);
}

static void own_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t code[BYTES];

	while (f && fread(code, 1, BYTES, f) == BYTES) {
		both(code);
		fseek(f, -(long)(next_random() % BYTES), SEEK_CUR);
	}
	if (f)
		fclose(f);
}

int main(int argc, char **argv)
{
	seed = argc > 1 ? strtoull(argv[1], NULL, 0) | 1 : 0x9e3779b97f4a7c15;
	with = calloc(1, sizeof(*with));
	without = calloc(1, sizeof(*without));
	if (!with || !without || !(with->forms = forms_new()))
		return 1;
	with->mode = without->mode = MODE_64;
	for (unsigned n = 0; n < COUNT; n++)
		made_up();
	own_file(argv[0]);
	printf("%lu by a form, %lu differ\n", hits, bad);
	forms_free(with->forms);
	free(with);
	free(without);
	return bad || hits < COUNT;
}
