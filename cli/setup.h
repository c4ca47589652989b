/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setup.h - what a guest is told at its first boot: user, keys, host name
 */
#ifndef CLI_SETUP_H
#define CLI_SETUP_H

#include <stddef.h>

struct setup {
	const char *hostname;
	const char *user;	/* NULL: none */
	const char *ssh_key;	/* a file of public keys, or NULL */
	const char *cloud_init; /* a folder of cloud-init's NoCloud, or NULL */
};

/* The user of this process where that is a name for a guest, else "debian". */
void setup_default_user(char *to, size_t room);
/*
 * Writes the seed disk: for cloud-init, and as lines for our own first boot
 * (docs/images.md).  An exit status, or 0.
 */
int setup_write(const struct setup *u, const char *path);

#endif /* CLI_SETUP_H */
