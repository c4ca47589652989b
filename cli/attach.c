/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach.c - husk console: the terminal as the console of a machine that runs
 */
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control.h"
#include "start.h"

static const char help[] =
	"usage: husk console NAME\n"
	"\n"
	"Lends the terminal to the serial port of a machine in the background.\n"
	"Ctrl-A d (or Ctrl-A x) gives it back; the machine goes on.\n";

static int put(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

struct attached {
	int fd;
	bool terminal, input; /* there is more to read from standard input */
	struct escape escape;
};

/* 1: detach. */
static int typed(struct attached *a)
{
	char buf[4096];
	ssize_t n = read(0, buf, sizeof(buf));
	size_t len;

	if (n < 0 && errno == EINTR)
		return 0;
	if (n <= 0) {
		a->input = false;
		/* A terminal that hung up; a file is only at its end. */
		return a->terminal;
	}
	len = (size_t)n;
	if (a->terminal)
		len = terminal_filter(&a->escape, buf, len);
	return put(a->fd, buf, len) || a->escape.quit || a->escape.detach;
}

static int relay(struct attached *a)
{
	char buf[4096];

	for (;;) {
		struct pollfd f[] = {
			{ .fd = a->fd, .events = POLLIN },
			{ .fd = a->input ? 0 : -1, .events = POLLIN },
		};
		ssize_t n;

		if (poll(f, 2, -1) < 0 && errno != EINTR)
			return EXIT_FAULT;
		if (f[1].revents && typed(a)) {
			terminal_restore();
			if (a->terminal)
				fputs("\nhusk: detached\n", stderr);
			return 0;
		}
		if (!f[0].revents)
			continue;
		n = read(a->fd, buf, sizeof(buf));
		if (n <= 0)
			return 0; /* the machine has ended */
		if (put(1, buf, (size_t)n))
			return EXIT_FAULT;
	}
}

int attach_console(struct place *p)
{
	struct attached a = { .input = true, .escape = { .detachable = true } };
	struct husk_error err;
	json_object *reply;
	int ret;

	if (!place_owner(p)) {
		complain("%s: is not running", p->name);
		return EXIT_FAULT;
	}
	a.fd = control_connect(p->run);
	if (a.fd < 0) {
		complain("%s: its control socket does not answer", p->name);
		return EXIT_FAULT;
	}
	reply = control_request(a.fd, "console", NULL, 10000, &err);
	if (!reply) {
		complain("%s: %s", p->name, err.text);
		close(a.fd);
		return EXIT_FAULT;
	}
	json_object_put(reply);
	a.terminal = isatty(0);
	if (a.terminal) {
		fputs("husk: Ctrl-A d detaches\n", stderr);
		terminal_raw();
	}
	ret = relay(&a);
	terminal_restore();
	close(a.fd);
	return ret;
}

int cmd_console(int argc, char **argv)
{
	struct place p;
	int ret;

	if (argc == 2 && !strcmp(argv[1], "--help")) {
		fputs(help, stdout);
		return 0;
	}
	if (argc != 2 || argv[1][0] == '-') {
		complain("console: the name of one machine is needed; husk "
			 "console --help");
		return EXIT_USAGE;
	}
	ret = place_find(&p, argv[1]);
	return ret ? ret : attach_console(&p);
}
