/* SPDX-License-Identifier: Apache-2.0 */
/*
 * terminal.c - the user's terminal while it is a guest's console
 */
#include "cli.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

/* The ways our own faults end us. */
static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };

enum { NFAULTS = sizeof(faults) / sizeof(faults[0]) };

static struct sigaction before[NFAULTS];
static struct termios saved;
static volatile sig_atomic_t raw;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	terminal_restore();
	for (int i = 0; i < NFAULTS; i++)
		if (faults[i] == sig)
			sigaction(sig, &before[i], NULL);
	/* A fault of an instruction happens again when we return. */
	if (info->si_code <= 0)
		raise(sig);
}

void terminal_raw(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault,
				.sa_flags = SA_SIGINFO };
	struct termios t;

	if (!isatty(0))
		return;
	if (!raw) {
		if (tcgetattr(0, &saved))
			return;
		for (int i = 0; i < NFAULTS; i++)
			sigaction(faults[i], &sa, &before[i]);
	}
	raw = 1;
	t = saved;
	cfmakeraw(&t);
	/* The guest's line ends carry their own carriage returns. */
	tcsetattr(0, TCSANOW, &t);
}

void terminal_restore(void)
{
	if (raw)
		tcsetattr(0, TCSANOW, &saved);
	raw = 0;
}

bool terminal_is_raw(void)
{
	return raw;
}

size_t terminal_filter(struct escape *e, char *data, size_t len)
{
	size_t out = 0;

	for (size_t i = 0; i < len; i++) {
		char c = data[i];

		if (!e->seen && c == 1) {
			e->seen = true;
			continue;
		}
		if (e->seen && (c == 'x' || c == 'X'))
			e->quit = true;
		else if (e->seen && e->detachable && (c == 'd' || c == 'D'))
			e->detach = true;
		else
			data[out++] = c;
		e->seen = false;
	}
	return out;
}
