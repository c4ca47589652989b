/* SPDX-License-Identifier: Apache-2.0 */
/*
 * start.h - running a named machine, in this process or in the background
 */
#ifndef CLI_START_H
#define CLI_START_H

#include "cli.h"
#include "place.h"

/*
 * Runs cfg as the machine at p, with the session's terminal and limits.  An
 * exit status.
 */
int start_foreground(struct place *p, struct vm_config *cfg, struct session *s);
/* Returns when it runs, or an exit status when it does not. */
int start_background(struct place *p, struct vm_config *cfg, struct session *s);
/*
 * The same in this process, without a terminal: ready() is called once it runs,
 * and until then standard error is what it was.  Returns when it has ended.
 */
int start_detached(struct place *p, struct vm_config *cfg, struct session *s,
		   void (*ready)(void *opaque), void *opaque);
/*
 * A disk of the machine at p is another image from now on, for the next start,
 * too.  0 or an exit status.
 */
int start_keep_disks(const struct session *s); /* all, after a restore */
int start_move_disk(const struct place *p, unsigned disk, const char *path);
/* Lends the terminal to a machine that runs, until it ends or Ctrl-A d. */
int attach_console(struct place *p);

#endif /* CLI_START_H */
