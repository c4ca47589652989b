/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c.h - the Castagnoli checksum
 */
#ifndef BASE_CRC32C_H
#define BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* crc: 0, or what was before.  Safe after fork(). */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

#endif /* BASE_CRC32C_H */
