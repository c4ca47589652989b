/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create.h - making a named machine from an image
 */
#ifndef CLI_CREATE_H
#define CLI_CREATE_H

#include "options.h"
#include "place.h"

struct create {
	struct machine_options machine;
	const char *from;	/* "debian", or a file */
	uint64_t disk_size;	/* 0: the image's own */
	const char *user;	/* NULL: the default */
	const char *ssh_key;	/* a file, or NULL */
	const char *cloud_init; /* a folder, or NULL */
	bool overlay;		/* stand on the file in place of a copy */
};

/* The machine is complete or is not there.  An exit status. */
int create_machine(const char *name, const struct create *c);

#endif /* CLI_CREATE_H */
