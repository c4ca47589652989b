/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ext4.h - reading a file out of a guest's ext4, as a boot loader does
 *
 * Nothing of the disk is trusted: whatever is on it, reading ends, stays
 * within its bounds and needs memory of a few blocks.
 */
#ifndef VM_EXT4_H
#define VM_EXT4_H

#include <stddef.h>
#include <stdint.h>

#include "husk/error.h"

struct ext4_disk {
	/* 0 or -errno; the whole range or nothing. */
	int (*read)(void *opaque, uint64_t offset, void *buf, size_t len);
	void *opaque;
	uint64_t size;
};

/*
 * Gives the bytes of a regular file to put() in order; symbolic links are
 * followed within the disk.  The file system fills the disk or is in a
 * partition of a GPT for Linux: *partition (may be NULL) is its number, 0 for
 * the disk.  -ENOENT: no such file; -EUCLEAN: the file system was not
 * unmounted, so what is there may be old; -EINVAL: something else is there.
 */
int ext4_read_file(const struct ext4_disk *disk, const char *path,
		   uint64_t max_size,
		   int (*put)(void *opaque, const void *data, size_t len),
		   void *opaque, unsigned *partition, struct husk_error *err);

#endif /* VM_EXT4_H */
