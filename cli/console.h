/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.h - the serial console of a machine that runs without a terminal
 *
 * What the guest writes goes to a file, which never grows beyond a limit, and
 * to a ring that any number of readers follow, each at its own pace; who is too
 * slow loses the middle.
 */
#ifndef CLI_CONSOLE_H
#define CLI_CONSOLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	CONSOLE_RING = 256 << 10,
	CONSOLE_REPLAY = 8 << 10, /* what a new reader sees of the past */
	CONSOLE_FILE = 4 << 20,	  /* then a new file begins */
};

/* (l) under lock */
struct console {
	pthread_mutex_t lock;
	char *ring;
	uint64_t end;	/* (l) bytes written so far */
	int wake;	/* readable: there is more */
	int fd;		/* (l) of the file, or -1 */
	size_t in_file; /* (l) */
	char path[1024];
};

/* path NULL: no file.  0 or an exit status. */
int console_open(struct console *c, const char *path);
void console_close(struct console *c);
/* Any thread; does not wait for readers. */
void console_output(struct console *c, const void *data, size_t len);

/* Where a new reader begins. */
uint64_t console_begin(struct console *c);
bool console_has_more(struct console *c, uint64_t at);
/* Copies from *at on, and moves it. */
size_t console_read(struct console *c, uint64_t *at, char *to, size_t room);

#endif /* CLI_CONSOLE_H */
