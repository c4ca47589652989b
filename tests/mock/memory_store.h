/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory_store.h - a disk image in memory
 */
#ifndef MOCK_MEMORY_STORE_H
#define MOCK_MEMORY_STORE_H

#include "vm/block/store.h"

/* A copy of data.  NULL: no memory. */
struct store *memory_store(const void *data, size_t len);
/* The bytes; valid until the next write. */
const void *memory_store_data(struct store *s, size_t *len);

#endif /* MOCK_MEMORY_STORE_H */
