/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manage.c - husk stop, kill and delete: named machines come to their end
 */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "agent.h"
#include "cli.h"
#include "control.h"
#include "options.h"
#include "place.h"

static const char help_stop[] =
	"usage: husk stop NAME... [OPTION...]\n"
	"\n"
	"Asks the guest to shut down and waits until it has.\n"
	"\n"
	"  --timeout SECONDS     wait so long (default 60)\n"
	"  --force               then end it, as if the power was cut\n"
	"  --help                print the options\n";

static const char help_kill[] = "usage: husk kill NAME...\n"
				"\n"
				"Ends the machine as if its power was cut.\n";

static const char help_delete[] =
	"usage: husk delete NAME... [--force]\n"
	"\n"
	"Takes the machine away: its definition and the disks in its folder.\n"
	"\n"
	"  --force               end it first when it runs; also when a saved machine\n"
	"                        goes on from its disks\n"
	"  --help                print the options\n";

enum { AGENT_MS = 1000, KILL_MS = 5000, REPLY_MS = 3000, LOOK_MS = 20 };

static void sleep_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000,
			       .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

static bool wait_gone(struct place *p, long timeout_ms)
{
	long end = now_ms() + timeout_ms;

	while (place_owner(p)) {
		if (now_ms() >= end)
			return false;
		sleep_ms(LOOK_MS);
	}
	return true;
}

/* 0: it has been asked. */
static int ask(struct place *p, const char *command)
{
	int fd = control_connect(p->run);
	struct husk_error err;
	json_object *reply;

	if (fd < 0)
		return EXIT_FAULT;
	reply = control_request(fd, command, NULL, REPLY_MS, &err);
	close(fd);
	json_object_put(reply);
	return reply ? 0 : EXIT_FAULT;
}

/* Its process, and not one that has got its number meanwhile. */
static int kill_owner(struct place *p)
{
	pid_t pid = place_owner(p);
	int fd = pid > 0 ? pidfd_open(pid, 0) : -1;
	int ret = EXIT_FAULT;

	if (fd >= 0 && place_owner(p) == pid &&
	    !pidfd_send_signal(fd, SIGKILL, NULL, 0))
		ret = 0;
	if (fd >= 0)
		close(fd);
	return ret;
}

static int do_kill(struct place *p)
{
	if (!place_owner(p)) {
		complain("%s: is not running", p->name);
		return 0;
	}
	if (!ask(p, "kill") && wait_gone(p, KILL_MS))
		return 0;
	kill_owner(p);
	if (wait_gone(p, KILL_MS))
		return 0;
	complain("%s: its process does not end", p->name);
	return EXIT_FAULT;
}

struct options {
	long timeout_ms;
	bool force;
};

/* By the agent where there is one: a power button may lead to nothing. */
static bool ask_agent(struct place *p)
{
	char path[PATH_SIZE + 8];
	int fd, ret;

	snprintf(path, sizeof(path), "%s/vsock", p->run);
	fd = agent_open(path, AGENT_MS, NULL);
	if (fd < 0)
		return false;
	ret = agent_shutdown(fd, AGENT_POWEROFF, NULL);
	close(fd);
	return !ret;
}

static int do_stop(struct place *p, const struct options *o)
{
	if (!place_owner(p)) {
		complain("%s: is not running", p->name);
		return 0;
	}
	if (!ask_agent(p) && ask(p, "stop")) {
		complain("%s: its control socket does not answer", p->name);
		return o->force ? do_kill(p) : EXIT_FAULT;
	}
	if (wait_gone(p, o->timeout_ms))
		return 0;
	if (o->force)
		return do_kill(p);
	complain("%s: the guest has not shut down in %ld s; husk stop --force "
		 "or husk kill ends it",
		 p->name, o->timeout_ms / 1000);
	return EXIT_TIMEOUT;
}

static int do_delete(struct place *p, const struct options *o)
{
	int ret;

	if (place_owner(p) && o->force) {
		ret = do_kill(p);
		if (ret)
			return ret;
	}
	ret = place_lock(p);
	if (ret)
		return ret;
	ret = !o->force && saves_need(p) ? EXIT_FAULT : place_delete(p);
	place_release(p);
	return ret;
}

/* -- the commands --------------------------------------------------------- */

/* Each of the names; the first failure is the status. */
static int each_name(char **names, const struct options *o,
		     int (*f)(struct place *p, const struct options *o))
{
	int first = 0;

	for (; *names; names++) {
		struct place p;
		int ret = place_find(&p, *names);

		if (!ret)
			ret = f(&p, o);
		first = first ? first : ret;
	}
	return first;
}

static int kill_one(struct place *p, const struct options *o)
{
	return do_kill(p);
}

static int command(int argc, char **argv, const struct option *options,
		   const char *help,
		   int (*f)(struct place *p, const struct options *o))
{
	struct options o = { .timeout_ms = 60000 };
	char *end;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'f': o.force = true; break;
		case 't':
			o.timeout_ms = strtol(optarg, &end, 10) * 1000;
			if (*end || end == optarg || o.timeout_ms < 0 ||
			    o.timeout_ms > 1000000000) {
				complain("--timeout %s: not a number of "
					 "seconds",
					 optarg);
				return EXIT_USAGE;
			}
			break;
		case 'h': fputs(help, stdout); return 0;
		default: return bad_option(argv[0], c, argv);
		}
	}
	if (optind == argc) {
		complain("%s: the name of a machine is needed", argv[0]);
		return EXIT_USAGE;
	}
	return each_name(argv + optind, &o, f);
}

int cmd_stop(int argc, char **argv)
{
	static const struct option options[] = {
		{ "timeout", 1, NULL, 't' },
		{ "force", 0, NULL, 'f' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};

	return command(argc, argv, options, help_stop, do_stop);
}

int cmd_kill(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};

	return command(argc, argv, options, help_kill, kill_one);
}

int cmd_delete(int argc, char **argv)
{
	static const struct option options[] = {
		{ "force", 0, NULL, 'f' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};

	return command(argc, argv, options, help_delete, do_delete);
}
