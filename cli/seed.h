/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seed.h - a small disk of texts that a guest reads at its first boot
 *
 * An ISO 9660 image with the label CIDATA, as cloud-init's source NoCloud
 * wants it; the first boot of our own images reads it, too.
 */
#ifndef CLI_SEED_H
#define CLI_SEED_H

#include <stddef.h>

enum { SEED_FILES = 16 };

struct seed {
	struct {
		char name[32]; /* lower case, at most 30 letters */
		char *data;
		size_t len;
	} file[SEED_FILES];
	unsigned n;
};

/* A copy of data; 0, -ENOMEM, -E2BIG: too many. */
int seed_add(struct seed *s, const char *name, const void *data, size_t len);
/* Writes a new file.  0 or a negative errno value. */
int seed_write(const struct seed *s, const char *path);
void seed_finish(struct seed *s);

#endif /* CLI_SEED_H */
