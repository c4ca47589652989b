/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cli.h - the subcommands of husk and what they share
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stddef.h>

enum { EXIT_FAULT = 1, EXIT_USAGE = 2, EXIT_DIED = 3, EXIT_TIMEOUT = 124 };

int cmd_run(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

/* "husk: " and the sentence, on standard error. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* -- terminal.c ----------------------------------------------------------- */

/* Raw mode when standard input is a terminal; undone by terminal_restore(). */
void terminal_raw(void);
void terminal_restore(void);

/*
 * Filter typed bytes in place: Ctrl-A x asks to quit, Ctrl-A Ctrl-A is one
 * Ctrl-A.  Returns how many bytes are for the guest.
 */
struct escape {
	bool seen, quit;
};
size_t terminal_filter(struct escape *e, char *data, size_t len);

#endif /* CLI_H */
