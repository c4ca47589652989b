/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options.h - the options that say what a machine is, for all who make one
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>

#include "husk/vm.h"

/* Rows of struct option, kept until it is known what they are put on. */
/* clang-format off */
#define MACHINE_OPTIONS \
	{ "kernel", 1, NULL, 'k' }, \
	{ "initrd", 1, NULL, 'i' }, \
	{ "cmdline", 1, NULL, 'c' }, \
	{ "cpus", 1, NULL, 'n' }, \
	{ "memory", 1, NULL, 'm' }, \
	{ "engine", 1, NULL, 'e' }, \
	{ "disk", 1, NULL, 'd' }, \
	{ "device", 1, NULL, 'D' }, \
	{ "net", 1, NULL, 'N' }, \
	{ "forward", 1, NULL, 'F' }, \
	{ "share", 1, NULL, 'H' }, \
	{ "vsock", 1, NULL, 'V' }, \
	{ "reboot", 1, NULL, 'r' }, \
	{ "panic", 1, NULL, 'P' }, \
	{ "gap", 1, NULL, 'G' }, \
	{ "on-enospc", 1, NULL, 'E' }, \
	{ "console", 1, NULL, 'O' }
/* clang-format on */

/* Their part of a --help. */
extern const char machine_help[];

enum { MAX_MACHINE_OPTIONS = 256 };

struct machine_options {
	struct {
		int c;
		const char *arg;
	} list[MAX_MACHINE_OPTIONS];
	unsigned n;
};

/* Takes one that getopt_long() found; false: it is not of the above. */
bool machine_option(struct machine_options *m, int c, const char *arg);
/* Whether this one was given. */
bool machine_option_given(const struct machine_options *m, int c);
/*
 * Puts them on cfg, with a shared network when default_net and none of them
 * speaks of networks.  0 or EXIT_USAGE, when it has complained.
 */
int machine_options_apply(const struct machine_options *m,
			  struct vm_config *cfg, bool default_net);

/* What getopt_long() did not like; returns EXIT_USAGE. */
int bad_option(const char *command, int c, char **argv);

#endif /* CLI_OPTIONS_H */
