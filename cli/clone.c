/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clone.c - husk clone: asks a machine that runs for more of it, or makes more
 * of a saved one
 */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"
#include "options.h"
#include "place.h"

static const char help[] =
	"usage: husk clone NAME|FILE [OPTION...]\n"
	"\n"
	"Makes machines NAME-1 and so on that go on from where NAME, which runs, is\n"
	"now, or was when it was saved to FILE, each with its own disks; what they do\n"
	"not change of its memory they share.\n"
	"\n"
	"  --count N             so many (default 1)\n"
	"  --name PREFIX         PREFIX-1 and so on\n"
	"  --paused              do not let them go on yet\n"
	"  --help                print the options\n";

enum { REPLY_MS = 60000 };

/* The next name that is free. */
static int name_clone(char *to, const char *prefix, unsigned *number)
{
	do {
		if ((size_t)snprintf(to, NAME_SIZE, "%s-%u", prefix,
				     ++*number) >= NAME_SIZE) {
			complain("%s-%u: the name is too long", prefix,
				 *number);
			return EXIT_USAGE;
		}
	} while (place_exists(to));
	return 0;
}

static json_object *name_all(const char *prefix, unsigned count)
{
	json_object *names = json_object_new_array();
	unsigned number = 0;
	char name[NAME_SIZE];

	for (unsigned i = 0; i < count; i++) {
		if (name_clone(name, prefix, &number)) {
			json_object_put(names);
			return NULL;
		}
		json_object_array_add(names, json_object_new_string(name));
	}
	return names;
}

static const char *text(json_object *o, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_string(v)
						     : NULL;
}

/* They speak in any order. */
static int wait_clones(int fd, const char *name, unsigned count)
{
	struct husk_error err = { 0 };
	json_object *reply;
	int ret = 0;

	for (unsigned i = 0; i < count; i++) {
		reply = control_read(fd, REPLY_MS, &err);
		if (!reply && err.code == -ECONNRESET) {
			complain("%s: %u clones have not said that they run; "
				 "their logs may tell why",
				 name, count - i);
			return EXIT_FAULT;
		}
		if (!reply) {
			complain("%s", err.text);
			ret = EXIT_FAULT;
			continue;
		}
		if (text(reply, "note"))
			complain("%s", text(reply, "note"));
		printf("%s\n", text(reply, "clone"));
		json_object_put(reply);
	}
	/* Its end: nothing that was only for making them is left. */
	json_object_put(control_read(fd, REPLY_MS, &err));
	return ret;
}

static int make_clones(const char *name, const char *prefix, unsigned count,
		       bool paused)
{
	struct husk_error err = { 0 };
	json_object *more, *names, *reply;
	int fd = control_reach(name), ret = EXIT_FAULT;

	if (fd < 0)
		return EXIT_FAULT;
	names = name_all(prefix, count);
	if (!names) {
		close(fd);
		return EXIT_USAGE;
	}
	more = json_object_new_object();
	json_object_object_add(more, "names", names);
	json_object_object_add(more, "paused", json_object_new_boolean(paused));
	reply = control_request(fd, "clone", more, REPLY_MS, &err);
	if (reply)
		ret = wait_clones(fd, name, count);
	else
		complain("%s: %s", name, err.text);
	json_object_put(reply);
	close(fd);
	return ret;
}

/* -- of a file ------------------------------------------------------------ */

_Noreturn static void be_file(int fd, const struct vm_saved *saved,
			      const char *prefix, unsigned count, bool paused)
{
	char(*name)[NAME_SIZE] = calloc(count, sizeof(*name));
	unsigned number = 0;

	for (unsigned i = 0; name && i < count; i++)
		if (name_clone(name[i], prefix, &number))
			_exit(EXIT_USAGE);
	if (name)
		clones_of_file(fd, name, count, paused, saved);
	_exit(EXIT_FAULT);
}

static int clone_file(const char *file, const char *prefix, unsigned count,
		      bool paused)
{
	struct husk_error err = { 0 };
	struct vm_saved *saved;
	json_object *reply;
	int fds[2], ret = EXIT_FAULT;
	pid_t pid = -1;

	if (vm_saved_open(file, &saved, &err)) {
		complain("%s", err.text);
		return EXIT_FAULT;
	}
	fflush(NULL);
	if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		pid = fork();
	if (!pid) {
		close(fds[0]);
		be_file(fds[1], saved, prefix, count, paused);
	}
	vm_saved_close(saved);
	if (pid < 0) {
		complain("%s: %s", file, strerror(errno));
		return EXIT_FAULT;
	}
	close(fds[1]);
	reply = control_read(fds[0], REPLY_MS, &err);
	if (reply)
		ret = wait_clones(fds[0], file, count);
	else
		waitpid(pid, NULL, 0); /* it has complained */
	json_object_put(reply);
	close(fds[0]);
	return ret;
}

int cmd_clone(int argc, char **argv)
{
	static const struct option options[] = {
		{ "count", 1, NULL, 'c' },
		{ "name", 1, NULL, 'n' },
		{ "paused", 0, NULL, 'p' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	const char *prefix = NULL;
	unsigned long count = 1;
	bool paused = false;
	char *end;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'c':
			count = strtoul(optarg, &end, 10);
			if (!*end && count && count <= CONTROL_CLONES)
				break;
			complain("--count %s: a number from 1 to %d", optarg,
				 CONTROL_CLONES);
			return EXIT_USAGE;
		case 'n': prefix = optarg; break;
		case 'p': paused = true; break;
		case 'h': fputs(help, stdout); return 0;
		default: return bad_option("clone", c, argv);
		}
	}
	if (argc - optind != 1) {
		complain("clone: one machine or file is needed");
		return EXIT_USAGE;
	}
	if (strchr(argv[optind], '/') ||
	    (!place_exists(argv[optind]) && !access(argv[optind], F_OK))) {
		if (prefix)
			return clone_file(argv[optind], prefix, (unsigned)count,
					  paused);
		complain("clone: a saved machine's clones need --name");
		return EXIT_USAGE;
	}
	return make_clones(argv[optind], prefix ? prefix : argv[optind],
			   (unsigned)count, paused);
}
