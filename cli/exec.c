/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec.c - husk exec: runs a command in a guest as if it were here
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "../agent/frame.h"
#include "agent.h"

static const char help[] =
	"usage: husk exec [OPTION...] NAME [--] [COMMAND [ARG...]]\n"
	"       husk exec [OPTION...] --vsock PATH [--] [COMMAND [ARG...]]\n"
	"\n"
	"Runs COMMAND in the machine NAME, by its agent; without COMMAND the\n"
	"user's shell.\n"
	"\n"
	"  -t, --tty             give it a terminal (so it is for a shell)\n"
	"  -e, --env NAME[=VAL]  set a variable; without a value, as it is here\n"
	"  -w, --workdir DIR     where it runs (default: the user's home)\n"
	"  -u, --user USER       who it runs as (default: root)\n"
	"  -n, --no-stdin        it has no input\n"
	"  --vsock PATH          the machine of husk run --vsock PATH\n"
	"  --wait SECONDS        for a guest that is starting (default 30)\n"
	"  --help                this text\n"
	"\n"
	"Exit status: that of COMMAND, 128 and the signal that ended it, 127 when\n"
	"there is no such command, 126 when it cannot be run, 125 when the guest\n"
	"cannot be asked.\n";

enum { EXIT_NO_GUEST = 125, EXIT_NOT_RUN = 126, EXIT_NO_COMMAND = 127 };
enum { MAX_ENV = 256 };

struct exec {
	const char *vsock, *user, *dir, *env[MAX_ENV + 1];
	unsigned nenv;
	bool tty, no_stdin;
	long wait_s;
	char **argv; /* ended by NULL */
	int fd, sigs;
	unsigned ends; /* signals that should have ended it */
	uint32_t credit;
	struct frame_reader reader;
};

/* -- the request ---------------------------------------------------------- */

struct words {
	uint8_t data[AGENT_PAYLOAD];
	size_t len;
	bool full;
};

static void add(struct words *w, const char *a, const char *b)
{
	size_t na = strlen(a), nb = strlen(b);

	if (na + nb + 1 > sizeof(w->data) - w->len) {
		w->full = true;
		return;
	}
	memcpy(w->data + w->len, a, na);
	memcpy(w->data + w->len + na, b, nb);
	w->data[w->len + na + nb] = 0;
	w->len += na + nb + 1;
}

/* One variable; those that are not set here are left out. */
static unsigned add_env(struct words *w, const char *name)
{
	const char *value;

	if (strchr(name, '=')) {
		add(w, name, "");
		return 1;
	}
	value = getenv(name);
	if (!value)
		return 0;
	add(w, name, "=");
	w->len--;
	add(w, "", value);
	return 1;
}

static void build(struct words *w, const struct exec *e)
{
	struct agent_exec x = { 0 };
	struct winsize size = { .ws_row = 24, .ws_col = 80 };
	bool has_term = false;

	if (e->tty)
		ioctl(0, TIOCGWINSZ, &size);
	x.flags = (e->tty ? AGENT_EXEC_TTY : 0) |
		  (e->no_stdin ? AGENT_EXEC_NO_STDIN : 0);
	x.rows = size.ws_row;
	x.columns = size.ws_col;
	w->len = sizeof(x);
	add(w, e->user, "");
	add(w, e->dir, "");
	for (char **a = e->argv; *a; a++, x.argc++)
		add(w, *a, "");
	for (unsigned i = 0; i < e->nenv; i++) {
		has_term |= !strncmp(e->env[i], "TERM", 4);
		x.envc += add_env(w, e->env[i]);
	}
	if (e->tty && !has_term)
		x.envc += add_env(w, "TERM");
	memcpy(w->data, &x, sizeof(x));
}

/* -- carrying streams ----------------------------------------------------- */

static int lost(int ret)
{
	terminal_restore();
	complain("the guest is gone: %s",
		 ret == -ECONNRESET ? "the connection ended" : strerror(-ret));
	return EXIT_NO_GUEST;
}

static void send_size(struct exec *e)
{
	struct winsize size;
	uint16_t now[2];

	if (!e->tty || ioctl(0, TIOCGWINSZ, &size))
		return;
	now[0] = size.ws_row;
	now[1] = size.ws_col;
	frame_send(e->fd, AGENT_WINSIZE, now, sizeof(now));
}

/* 0: it goes on. */
static int take_signal(struct exec *e)
{
	struct signalfd_siginfo info;
	uint32_t sig;

	if (read(e->sigs, &info, sizeof(info)) != sizeof(info))
		return 0;
	sig = info.ssi_signo;
	if (sig == SIGWINCH) {
		send_size(e);
		return 0;
	}
	if (sig == SIGCONT) {
		if (e->tty)
			terminal_raw();
		return 0;
	}
	/* Who does not listen in the guest must not hold us for ever. */
	if (++e->ends > 2 || e->tty)
		return 128 + (int)sig;
	frame_send(e->fd, AGENT_SIGNAL, &sig, sizeof(sig));
	return 0;
}

static void send_input(struct exec *e)
{
	char buf[32768];
	size_t room = e->credit < sizeof(buf) ? e->credit : sizeof(buf);
	ssize_t n = read(0, buf, room);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		e->no_stdin = true;
		n = 0;
	}
	e->credit -= (uint32_t)n;
	frame_send(e->fd, AGENT_STDIN, buf, (size_t)n);
}

/* 0 or an exit status. */
static int write_all(int to, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = write(to, data, len);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd p = { to, POLLOUT, 0 };

			poll(&p, 1, -1);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int error = errno;

			terminal_restore();
			if (error != EPIPE)
				complain("standard %s: %s",
					 to == 1 ? "output" : "error",
					 strerror(error));
			return error == EPIPE ? 128 + SIGPIPE : EXIT_NO_GUEST;
		}
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

/* -1: it goes on, else the exit status. */
static int take_frame(struct exec *e)
{
	const struct frame *f = &e->reader.f;
	uint32_t signal, more;
	int ret;

	switch (f->head.type) {
	case AGENT_STDOUT:
	case AGENT_STDERR:
		ret = write_all(f->head.type == AGENT_STDOUT ? 1 : 2, f->data,
				f->head.len);
		return ret ? ret : -1;
	case AGENT_CREDIT:
		more = f->head.len == 4 ? frame_u32(f->data) : 0;
		if (more <= AGENT_WINDOW && e->credit + more <= AGENT_WINDOW)
			e->credit += more;
		return -1;
	case AGENT_EXIT:
		if (f->head.len != 8)
			return lost(-EPROTO);
		signal = frame_u32(f->data + 4);
		return signal ? 128 + (int)(signal & 127)
			      : (int)(frame_u32(f->data) & 255);
	default: return lost(-EPROTO);
	}
}

static int carry(struct exec *e)
{
	int ret;

	for (;;) {
		struct pollfd p[3] = {
			{ e->fd, POLLIN, 0 },
			{ e->sigs, POLLIN, 0 },
			{ e->no_stdin || !e->credit ? -1 : 0, POLLIN, 0 },
		};

		if (poll(p, 3, -1) < 0)
			continue;
		if (p[0].revents) {
			ret = frame_read(&e->reader, e->fd);
			if (ret < 0)
				return lost(ret);
			ret = ret ? take_frame(e) : -1;
			if (ret >= 0)
				return ret;
		}
		if (p[1].revents) {
			ret = take_signal(e);
			if (ret)
				return ret;
		}
		if (p[2].revents)
			send_input(e);
	}
}

static int watch_signals(void)
{
	static const int all[] = { SIGINT,  SIGTERM, SIGHUP,  SIGQUIT,
				   SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		sigaddset(&set, all[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

static int run(struct exec *e)
{
	static struct words w;
	struct husk_error err = { 0 };
	int ret;

	build(&w, e);
	if (w.full) {
		complain("the command is too long: at most %d bytes",
			 AGENT_PAYLOAD);
		return EXIT_NO_GUEST;
	}
	e->fd = agent_open(e->vsock, (int)e->wait_s * 1000, &err);
	if (e->fd < 0) {
		complain("%s", err.text);
		return EXIT_NO_GUEST;
	}
	ret = agent_exec(e->fd, w.data, w.len, &err);
	if (ret) {
		complain("%s", err.text);
		close(e->fd);
		return ret == -ENOENT || ret == -ENOTDIR ? EXIT_NO_COMMAND
		       : ret == -EACCES || ret == -ENOEXEC || ret == -EPERM
			       ? EXIT_NOT_RUN
			       : EXIT_NO_GUEST;
	}
	e->sigs = watch_signals();
	e->credit = AGENT_WINDOW;
	if (e->tty)
		terminal_raw();
	ret = carry(e);
	terminal_restore();
	close(e->fd);
	close(e->sigs);
	return ret;
}

/* -- options -------------------------------------------------------------- */

/* -1: all is done; 0; or an exit status. */
static int parse(struct exec *e, int argc, char **argv)
{
	static const struct option options[] = {
		{ "tty", 0, NULL, 't' },
		{ "env", 1, NULL, 'e' },
		{ "workdir", 1, NULL, 'w' },
		{ "user", 1, NULL, 'u' },
		{ "no-stdin", 0, NULL, 'n' },
		{ "vsock", 1, NULL, 'V' },
		{ "wait", 1, NULL, 'W' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	static char path[4096];
	struct husk_error err = { 0 };
	char *end;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "+:te:w:u:nih", options, NULL)) !=
	       -1) {
		switch (c) {
		case 't': e->tty = true; break;
		case 'i': break; /* as it is anyway; others ask for it */
		case 'n': e->no_stdin = true; break;
		case 'w': e->dir = optarg; break;
		case 'u': e->user = optarg; break;
		case 'V': e->vsock = optarg; break;
		case 'e':
			if (e->nenv == MAX_ENV) {
				complain("--env %s: too many", optarg);
				return EXIT_NO_GUEST;
			}
			e->env[e->nenv++] = optarg;
			break;
		case 'W':
			e->wait_s = strtol(optarg, &end, 10);
			if (*end || end == optarg || e->wait_s < 0 ||
			    e->wait_s > 86400) {
				complain("--wait %s: not a number of seconds",
					 optarg);
				return EXIT_NO_GUEST;
			}
			break;
		case 'h': fputs(help, stdout); return -1;
		case ':':
			complain("%s: a value is missing; husk exec --help "
				 "lists the options",
				 argv[optind - 1]);
			return EXIT_NO_GUEST;
		default:
			complain("%s: no such option; husk exec --help lists "
				 "them",
				 argv[optind - 1]);
			return EXIT_NO_GUEST;
		}
	}
	if (!e->vsock) {
		if (optind >= argc) {
			complain("exec: the name of a machine is missing");
			return EXIT_NO_GUEST;
		}
		if (agent_path(argv[optind++], path, sizeof(path), &err)) {
			complain("%s", err.text);
			return EXIT_NO_GUEST;
		}
		e->vsock = path;
		if (optind < argc && !strcmp(argv[optind], "--"))
			optind++;
	}
	e->argv = argv + optind;
	if (optind >= argc && isatty(0))
		e->tty = true;
	return 0;
}

int cmd_exec(int argc, char **argv)
{
	static struct exec e = { .user = "", .dir = "", .wait_s = 30 };
	int ret = parse(&e, argc, argv);

	if (ret)
		return ret < 0 ? 0 : ret;
	return run(&e);
}
