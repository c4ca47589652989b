/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ext4.c - a file out of whatever is on a disk
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vm/ext4.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct image {
	const uint8_t *data;
	size_t size;
};

static int read_image(void *opaque, uint64_t offset, void *buf, size_t len)
{
	const struct image *i = opaque;

	if (offset > i->size || len > i->size - offset)
		abort(); /* the reader knows the size */
	memcpy(buf, i->data + offset, len);
	return 0;
}

static int count(void *opaque, const void *data, size_t len)
{
	uint64_t *left = opaque;

	if (len > *left)
		abort(); /* more than was asked for */
	*left -= len;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const paths[] = { "/vmlinuz", "/a/b", "link" };
	struct image image = { data, size };
	struct ext4_disk disk = { read_image, &image, size };

	for (unsigned i = 0; i < 3; i++) {
		struct husk_error err = { 0 };
		uint64_t left = 1 << 20;
		unsigned partition;

		if (ext4_read_file(&disk, paths[i], left, count, &left,
				   &partition, &err) &&
		    !*err.text)
			abort(); /* an error without a sentence */
	}
	return 0;
}
