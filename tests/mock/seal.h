/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seal.h - a saved machine that was changed gets checksums that are right
 */
#ifndef MOCK_SEAL_H
#define MOCK_SEAL_H

#include "base/crc32c.h"
#include "vm/saved/saved.h"

/* p: len bytes, all in front of the memory.  What remains is the reader's. */
static inline void seal(uint8_t *p, size_t len)
{
	struct saved_header *h = (void *)p;
	struct saved_entry *e = (void *)(p + sizeof(*h));
	size_t n = h->nsections;

	if (n > (len - sizeof(*h)) / sizeof(*e))
		n = 0;
	for (unsigned i = 0; i < n; i++)
		if (e[i].at < len && e[i].size <= len - e[i].at)
			e[i].crc = crc32c(0, p + e[i].at, e[i].size);
	h->table_crc = crc32c(0, e, n * sizeof(*e));
	h->crc = 0;
	h->crc = crc32c(0, h, sizeof(*h));
}

#endif /* MOCK_SEAL_H */
