/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serial.c - the guest's first serial port and the world outside
 *
 * Input waits in a buffer of ours until the guest takes it.  Output never
 * blocks in write(): it waits in poll() beside an eventfd that cuts it off,
 * so that a reader who does not read cannot keep a machine from ending.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <unistd.h>

enum {
	INPUT_SIZE = 256 << 10, /* a large paste */
	PIECE = 256,		/* a terminal that is writable takes it */
	QUIET_MS = 300,		/* without output: the guest waits for input */
};

/* -- opening -------------------------------------------------------------- */

static int open_pty(struct serial *s)
{
	struct termios t;
	char name[128];

	/* The other side stays open here too: its users come and go. */
	if (openpty(&s->in, &s->other, name, NULL, NULL)) {
		complain("--serial pty: %s", strerror(errno));
		return EXIT_FAULT;
	}
	/* An echo would type the guest's own output. */
	if (!tcgetattr(s->other, &t)) {
		cfmakeraw(&t);
		tcsetattr(s->other, TCSANOW, &t);
	}
	s->out = s->in;
	s->may_lose = true;
	complain("serial port on %s", name);
	return 0;
}

int serial_open(struct serial *s, const char *where)
{
	*s = (struct serial){
		.where = where,
		.in = -1,
		.out = -1,
		.other = -1,
		.port = s->port,
	};
	s->cut = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->input = malloc(INPUT_SIZE);
	if (s->cut < 0 || s->wake < 0 || !s->input) {
		complain("--serial %s: %s", where, strerror(errno));
		return EXIT_FAULT;
	}
	if (!strcmp(where, "none"))
		return 0;
	if (!strcmp(where, "pty"))
		return open_pty(s);
	if (!strcmp(where, "stdio")) {
		s->in = 0;
		s->out = 1;
		s->terminal = isatty(0);
		return 0;
	}
	s->out =
		open(where, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY,
		     0644);
	if (s->out < 0) {
		complain("--serial %s: %s", where, strerror(errno));
		return EXIT_USAGE;
	}
	return 0;
}

void serial_close(struct serial *s)
{
	if (s->out > 1)
		close(s->out);
	if (s->other >= 0)
		close(s->other);
	if (s->cut >= 0)
		close(s->cut);
	if (s->wake >= 0)
		close(s->wake);
	free(s->input);
}

/* -- output --------------------------------------------------------------- */

static void tell(int fd)
{
	uint64_t one = 1;

	/* Full means told already. */
	if (write(fd, &one, sizeof(one)) < 0)
		errno = 0;
}

void serial_cut(struct serial *s)
{
	tell(s->cut);
}

/* false: no more can be written. */
static bool put(struct serial *s, const char **p, size_t *len)
{
	struct pollfd f[] = {
		{ .fd = s->out, .events = POLLOUT },
		{ .fd = s->cut, .events = POLLIN },
	};
	ssize_t n;

	if (poll(f, 2, s->may_lose ? 0 : -1) < 0)
		return errno == EINTR;
	if (f[1].revents)
		return false;
	if (!f[0].revents)
		return !s->may_lose;
	n = write(s->out, *p, *len < PIECE ? *len : PIECE);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return true;
	if (n < 0) {
		atomic_store(&s->error, errno);
		tell(s->wake);
		return false;
	}
	*p += n;
	*len -= (size_t)n;
	return true;
}

void serial_output(void *opaque, const void *data, size_t len)
{
	struct serial *s = opaque;
	const char *p = data;

	if (s->out < 0 || atomic_load(&s->error))
		return;
	while (len && put(s, &p, &len))
		;
	if (atomic_load(&s->ended)) {
		atomic_store(&s->spoke, true);
		atomic_store(&s->spoke_ms, now_ms());
		tell(s->wake);
	}
}

/* -- input ---------------------------------------------------------------- */

void serial_room(void *opaque)
{
	struct serial *s = opaque;

	tell(s->wake);
}

/*
 * A terminal is read even when nothing fits, and what does not fit is lost:
 * Ctrl-A x has to come through.  A pipe waits.
 */
int serial_in(const struct serial *s)
{
	if (atomic_load(&s->ended) || (!s->terminal && s->len == INPUT_SIZE))
		return -1;
	return s->in;
}

static void append(struct serial *s, const char *data, size_t len)
{
	if (len > INPUT_SIZE - s->len)
		len = INPUT_SIZE - s->len;
	memcpy(s->input + s->len, data, len);
	s->len += len;
}

size_t serial_type(struct serial *s, const char *data, size_t len)
{
	size_t before = s->len;

	append(s, data, len);
	return s->len - before;
}

int serial_read(struct serial *s)
{
	size_t room = INPUT_SIZE - s->len, len;
	char buf[4096];
	ssize_t n;

	if (s->terminal || room > sizeof(buf))
		room = sizeof(buf);
	n = read(s->in, buf, room);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0 && s->terminal)
		return -EIO; /* hung up: a raw one has no other end */
	if (n <= 0) {
		atomic_store(&s->spoke_ms, now_ms());
		atomic_store(&s->spoke, true);
		atomic_store(&s->ended, true);
		return 0;
	}
	len = (size_t)n;
	if (s->terminal)
		len = terminal_filter(&s->escape, buf, len);
	append(s, buf, len);
	return 0;
}

long serial_wait(const struct serial *s)
{
	long left;

	if (!atomic_load(&s->ended) || !atomic_load(&s->spoke) || s->len)
		return -1;
	left = atomic_load(&s->spoke_ms) + QUIET_MS - now_ms();
	return left > 0 ? left : 0;
}

void serial_push(struct serial *s, struct vm *vm)
{
	uint64_t count;
	size_t n;

	if (read(s->wake, &count, sizeof(count)) < 0)
		errno = 0;
	if (serial_wait(s) == 0) {
		atomic_store(&s->spoke, false);
		append(s, "\004", 1);
	}
	if (!s->len)
		return;
	n = vm_console_write(vm, s->port, s->input, s->len);
	s->len -= n;
	memmove(s->input, s->input + n, s->len);
}
