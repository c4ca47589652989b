/* SPDX-License-Identifier: Apache-2.0 */
/*
 * image.h - systems that are made once and kept for all machines
 */
#ifndef CLI_IMAGE_H
#define CLI_IMAGE_H

#include <stdbool.h>
#include <stddef.h>

/* "debian" */
bool image_is_known(const char *name);
/*
 * The folder with disk.raw, vmlinuz and initrd, read-only; they are made when
 * they are missing, which takes minutes.  cloud_init: with that package.
 * stop() says that we are to end.  An exit status, or 0.
 */
int image_get(const char *name, bool cloud_init, bool (*stop)(void), char *dir,
	      size_t room);

#endif /* CLI_IMAGE_H */
