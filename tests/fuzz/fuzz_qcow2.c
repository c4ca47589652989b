/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_qcow2.c - opens, reads, changes and checks hostile qcow2 images
 *
 * Byte 0: bit 0 writes, bit 1 checks, bit 2 repairs first, bit 3 resizes; the
 * rest is the image.  A base is never opened: it would be a file of the host.
 */
#include <stdlib.h>
#include <string.h>

#include "mock/memory_store.h"
#include "vm/block/qcow2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PIECE = 8192, PLACES = 24 };

/* The ends, the middle, and where tables change. */
static uint64_t place(const struct block *b, unsigned i)
{
	uint64_t step = b->size / PLACES;

	if (i % 3 == 2)
		step = 1 << 14;
	return (uint64_t)i * step < b->size ? i * step / 512 * 512 : 0;
}

static void use(struct block *b, bool change)
{
	static uint8_t buf[PIECE];

	for (unsigned i = 0; i < PLACES; i++) {
		uint64_t at = place(b, i), left = b->size - at, len = left;
		struct block_req req = {
			.op = i & 1 ? BLOCK_DISCARD : BLOCK_ZERO,
			.offset = at,
			.len = left < 4 * PIECE ? left : 4 * PIECE,
		};
		enum block_kind kind;

		block_map(b, at, &len, &kind);
		block_read(b, at, buf, left < PIECE ? left : PIECE);
		if (!change)
			continue;
		memset(buf, (int)i, sizeof(buf));
		block_write(b, at, buf, left < PIECE ? left : PIECE);
		if (i % 4 == 3)
			block_perform(b, &req);
		if (i % 8 == 7)
			block_flush(b);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct block_config cfg = {
		.path = "image",
		.format = "qcow2",
		.no_base = true,
	};
	struct q2_check check = { 0 };
	struct husk_error err;
	struct block *b;

	if (size < 2)
		return 0;
	cfg.readonly = !(data[0] & 1);
	cfg.repair = data[0] & 4 && !cfg.readonly;
	cfg.store = memory_store(data + 1, size - 1);
	if (!cfg.store)
		abort();
	b = block_open_config(&cfg, &err);
	if (!b) {
		if (!err.text[0])
			abort(); /* a refusal says why */
		return 0;
	}
	if (data[0] & 2)
		q2_check(to_qcow2(b), cfg.repair, &check);
	use(b, !cfg.readonly);
	if (data[0] & 8 && !cfg.readonly)
		block_resize(b,
			     b->size < 1 << 20 ? b->size + (1 << 20)
					       : b->size / 2 / 512 * 512,
			     &err);
	block_close(b);
	return 0;
}
