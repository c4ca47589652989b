/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.c - the serial console of a machine that runs without a terminal
 */
#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cli.h"

/* The file of before keeps the name of this one and ".old". */
static int open_file(struct console *c)
{
	char old[sizeof(c->path) + 8];

	snprintf(old, sizeof(old), "%s.old", c->path);
	if (rename(c->path, old) && errno != ENOENT)
		return -errno;
	c->in_file = 0;
	c->fd = open(c->path,
		     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		     0600);
	return c->fd < 0 ? -errno : 0;
}

int console_open(struct console *c, const char *path)
{
	int ret = 0;

	*c = (struct console){ .fd = -1 };
	pthread_mutex_init(&c->lock, NULL);
	c->ring = malloc(CONSOLE_RING);
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!c->ring || c->wake < 0)
		ret = -errno;
	if (!ret && path) {
		snprintf(c->path, sizeof(c->path), "%s", path);
		ret = open_file(c);
	}
	if (!ret)
		return 0;
	complain("%s: %s", path ? path : "console", strerror(-ret));
	return EXIT_FAULT;
}

void console_close(struct console *c)
{
	if (!c->ring)
		return;
	free(c->ring);
	close(c->wake);
	if (c->fd >= 0)
		close(c->fd);
	pthread_mutex_destroy(&c->lock);
	c->ring = NULL;
}

static void write_file(struct console *c, const char *data, size_t len)
{
	if (c->fd >= 0 && c->in_file + len > CONSOLE_FILE) {
		close(c->fd);
		c->fd = -1;
		if (open_file(c))
			return;
	}
	if (c->fd >= 0) {
		/* A full disk of the host must not end the machine. */
		if (write(c->fd, data, len) < 0)
			errno = 0;
		c->in_file += len;
	}
}

void console_output(struct console *c, const void *data, size_t len)
{
	const char *p = data;
	uint64_t one = 1;

	pthread_mutex_lock(&c->lock);
	write_file(c, data, len);
	for (size_t i = 0; i < len; i++)
		c->ring[c->end++ % CONSOLE_RING] = p[i];
	pthread_mutex_unlock(&c->lock);
	if (write(c->wake, &one, sizeof(one)) < 0)
		errno = 0;
}

uint64_t console_begin(struct console *c)
{
	uint64_t end;

	pthread_mutex_lock(&c->lock);
	end = c->end;
	pthread_mutex_unlock(&c->lock);
	return end > CONSOLE_REPLAY ? end - CONSOLE_REPLAY : 0;
}

bool console_has_more(struct console *c, uint64_t at)
{
	bool more;

	pthread_mutex_lock(&c->lock);
	more = at < c->end;
	pthread_mutex_unlock(&c->lock);
	return more;
}

size_t console_read(struct console *c, uint64_t *at, char *to, size_t room)
{
	size_t n = 0;

	pthread_mutex_lock(&c->lock);
	if (c->end - *at > CONSOLE_RING)
		*at = c->end - CONSOLE_RING;
	while (n < room && *at < c->end)
		to[n++] = c->ring[(*at)++ % CONSOLE_RING];
	pthread_mutex_unlock(&c->lock);
	return n;
}
