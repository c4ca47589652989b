/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft.h - a new file in place of an old one, or of none
 *
 * The old one stays until the new one is complete.  A draft has no name where
 * the file system can do that, so a process that is killed leaves nothing;
 * elsewhere the next draft of the same file takes away what was left.
 */
#ifndef VM_DRAFT_H
#define VM_DRAFT_H

#include <stdbool.h>

#include "husk/error.h"

struct draft {
	const char *path; /* that it will have; the caller's */
	const char *name; /* by which it can be opened until then */
	int fd;		  /* to read and write; locked, as images are */
	char *temp, self[40];
	bool named, replace;
};

/* A failed one needs no end, but may have it. */
int draft_begin(struct draft *d, const char *path, bool replace,
		struct husk_error *err);
/* ret: what became of the work.  0: the file is there; else all is as it was. */
int draft_end(struct draft *d, int ret, struct husk_error *err);
/* The folder that path is in: 0 or -errno. */
int draft_sync_folder(const char *path);

#endif /* VM_DRAFT_H */
