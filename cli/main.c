/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - the husk command: finds the subcommand
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *name, *what;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "run", "run a machine, or boot a kernel in a new one", cmd_run },
	{ "create", "make a named machine from an image", cmd_create },
	{ "start", "run a named machine in the background", cmd_start },
	{ "stop", "ask a machine to shut down", cmd_stop },
	{ "kill", "end a machine as if its power was cut", cmd_kill },
	{ "delete", "take a machine and its disks away", cmd_delete },
	{ "list", "the machines, and which of them run", cmd_list },
	{ "info", "what a machine is and does", cmd_info },
	{ "pause", "let a machine stand still", cmd_pause },
	{ "resume", "let it go on", cmd_resume },
	{ "save", "write a machine that runs to a file", cmd_save },
	{ "restore", "go on with a machine from a file", cmd_restore },
	{ "clone", "copies of a machine that go on beside it", cmd_clone },
	{ "inspect", "what is in such a file", cmd_inspect },
	{ "console", "attach the terminal to a machine", cmd_console },
	{ "exec", "run a command in a machine", cmd_exec },
	{ "disk", "make, measure and check disk images", cmd_disk },
	{ "doctor", "what this host can run, and why", cmd_doctor },
};

enum { NCOMMANDS = sizeof(commands) / sizeof(commands[0]) };

int parse_size(const char *text, uint64_t *out)
{
	unsigned shift = 0;
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || end == text || *text < '0' || *text > '9')
		return -EINVAL;
	switch (*end) {
	case 'T':
	case 't': shift += 10; /* fall through */
	case 'G':
	case 'g': shift += 10; /* fall through */
	case 'M':
	case 'm': shift += 10; /* fall through */
	case 'K':
	case 'k': shift += 10; end++;
	}
	if ((*end && strcmp(end, "iB")) || v > UINT64_MAX >> shift)
		return -EINVAL;
	*out = v << shift;
	return 0;
}

void complain(const char *fmt, ...)
{
	va_list ap;

	fputs("husk: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs(terminal_is_raw() ? "\r\n" : "\n", stderr);
}

static void usage(FILE *to)
{
	fputs("usage: husk COMMAND [OPTION...]\n\n", to);
	for (int i = 0; i < NCOMMANDS; i++)
		fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].what);
	fputs("\nhusk COMMAND --help explains a command.\n", to);
}

/* Success includes that what was said could be written. */
static int flushed(int status)
{
	if (!fflush(stdout) && !ferror(stdout))
		return status;
	complain("standard output: %s", strerror(errno));
	return status ? status : EXIT_FAULT;
}

/* What we open must not become a standard stream that the caller closed. */
static void fill_standard_streams(void)
{
	int fd = open("/dev/null", O_RDONLY); /* writes fail, as before */

	while (fd >= 0 && fd <= 2)
		fd = dup(fd);
	if (fd > 2)
		close(fd);
}

int main(int argc, char **argv)
{
	fill_standard_streams();
	if (argc < 2) {
		usage(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
		usage(stdout);
		return flushed(0);
	}
	if (!strcmp(argv[1], "--version")) {
		puts("husk 0.1.0");
		return flushed(0);
	}
	for (int i = 0; i < NCOMMANDS; i++)
		if (!strcmp(argv[1], commands[i].name))
			return flushed(commands[i].run(argc - 1, argv + 1));
	complain("%s: no such command; husk --help lists them", argv[1]);
	return EXIT_USAGE;
}
