/* SPDX-License-Identifier: Apache-2.0 */
/*
 * terminal.c - the user's terminal while it is a guest's console
 */
#include "cli.h"

#include <termios.h>
#include <unistd.h>

static struct termios saved;
static bool raw;

void terminal_raw(void)
{
	struct termios t;

	if (!isatty(0) || tcgetattr(0, &saved))
		return;
	t = saved;
	cfmakeraw(&t);
	/* The guest's line ends carry their own carriage returns. */
	raw = !tcsetattr(0, TCSANOW, &t);
}

void terminal_restore(void)
{
	if (raw)
		tcsetattr(0, TCSANOW, &saved);
	raw = false;
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
		else
			data[out++] = c;
		e->seen = false;
	}
	return out;
}
