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
 * A disk of the machine at p is another image from now on, for the next start,
 * too.  0 or an exit status.
 */
int start_keep_disks(const struct session *s); /* all, after a restore */
int start_move_disk(const struct place *p, unsigned disk, const char *path);
/* Lends the terminal to a machine that runs, until it ends or Ctrl-A d. */
int attach_console(struct place *p);

#endif /* CLI_START_H */
