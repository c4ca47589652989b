/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer.h - image files of a chain, each on top of its base
 */
#ifndef VM_SAVED_LAYER_H
#define VM_SAVED_LAYER_H

#include <stdbool.h>

#include "husk/error.h"

/*
 * A save needs the image as it is now, and the machine goes on writing: one of
 * the two gets a new file.  An empty one on top costs least, but each read goes
 * through all of a chain, and a chain has an end.  So what holds little is
 * copied instead; how little grows with what it stands on.
 *
 * Whether the image at path is such a one.
 */
bool layer_is_small(const char *path, const char *format);

/*
 * Copies from to the new file to, with its holes, by reference where the file
 * system can.  fd: that file, empty, made before; it stays open.  0, -errno,
 * or -EBUSY: as it is now, it cannot be copied.
 */
int layer_copy(const char *from, int fd);

/* Names that were made, to be undone or, by layer_links_keep(), kept. */
struct layer_links {
	char **path;
	unsigned n;
};

/*
 * Gives what lies in the folder of path and is below it the same names in
 * folder, so that it lasts as long as what is there.  image: path itself, too.
 * False: it cannot be done for all of it.
 */
bool layer_link(const char *path, const char *format, const char *folder,
		bool image, struct layer_links *made);
void layer_links_undo(struct layer_links *made);
void layer_links_keep(struct layer_links *made);

#endif /* VM_SAVED_LAYER_H */
