/* SPDX-License-Identifier: Apache-2.0 */
/*
 * save.c - husk pause, resume and save, for named machines that run
 */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"
#include "options.h"
#include "place.h"

static const char help_pause[] =
	"usage: husk pause NAME...\n"
	"\n"
	"The machine stands still and takes no CPU time; its memory stays.\n";

static const char help_resume[] = "usage: husk resume NAME...\n"
				  "\n"
				  "A machine that was paused goes on.\n";

static const char help_save[] =
	"usage: husk save NAME FILE [OPTION...]\n"
	"\n"
	"Writes the machine to FILE, from which husk restore goes on.\n"
	"\n"
	"  --stop                end the machine when it is saved\n"
	"  --compress zstd       a smaller file that takes longer to restore\n"
	"  --help                print the options\n";

enum { REPLY_MS = 60000, POLL_MS = 50 };

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static json_object *ask(int fd, const char *name, const char *command,
			json_object *more)
{
	struct husk_error err = { 0 };
	json_object *reply = control_request(fd, command, more, REPLY_MS, &err);

	if (!reply)
		complain("%s: %s", name, err.text);
	return reply;
}

/* -- pause and resume ----------------------------------------------------- */

static int one(const char *name, const char *command)
{
	json_object *reply;
	int fd = control_reach(name);

	if (fd < 0)
		return EXIT_FAULT;
	reply = ask(fd, name, command, NULL);
	close(fd);
	json_object_put(reply);
	return reply ? 0 : EXIT_FAULT;
}

static int each(int argc, char **argv, const char *help)
{
	static const struct option options[] = { { "help", 0, NULL, 'h' },
						 { 0 } };
	int c, first = 0;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (c != 'h')
			return bad_option(argv[0], c, argv);
		fputs(help, stdout);
		return 0;
	}
	if (optind == argc) {
		complain("%s: the name of a machine is needed", argv[0]);
		return EXIT_USAGE;
	}
	for (; optind < argc; optind++) {
		int ret = one(argv[optind], argv[0]);

		first = first ? first : ret;
	}
	return first;
}

int cmd_pause(int argc, char **argv)
{
	return each(argc, argv, help_pause);
}

int cmd_resume(int argc, char **argv)
{
	return each(argc, argv, help_resume);
}

/* -- save ----------------------------------------------------------------- */

struct save {
	const char *name, *file;
	bool stop, compress;
};

static uint64_t number(json_object *reply, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(reply, key, &v)
		       ? (uint64_t)json_object_get_int64(v)
		       : 0;
}

static bool is_saved(json_object *reply)
{
	json_object *v;

	return json_object_object_get_ex(reply, "state", &v) &&
	       !strcmp(json_object_get_string(v), "saved");
}

static void report(const struct save *s, json_object *reply)
{
	char size[32];

	if (!isatty(2))
		return;
	show_size(size, sizeof(size), number(reply, "bytes"));
	if (s->stop)
		fprintf(stderr, "%s: saved and ended, %s of memory\n", s->name,
			size);
	else
		fprintf(stderr,
			"%s: saved, %s of memory; it stood still for %.1f ms\n",
			s->name, size, (double)number(reply, "stop_us") / 1000);
}

static int wait_saved(int fd, const struct save *s)
{
	const struct timespec pause = { 0, POLL_MS * 1000000l };
	struct bar bar = { .what = s->name };
	bool cancelled = false;
	json_object *reply;

	for (;;) {
		if (interrupted && !cancelled) {
			cancelled = true;
			json_object_put(ask(fd, s->name, "save-cancel", NULL));
		}
		reply = ask(fd, s->name, "save-status", NULL);
		if (!reply || is_saved(reply))
			break;
		bar_progress(&bar, number(reply, "done"),
			     number(reply, "total"));
		json_object_put(reply);
		nanosleep(&pause, NULL);
	}
	bar_end(&bar);
	if (reply)
		report(s, reply);
	json_object_put(reply);
	return reply ? 0 : EXIT_FAULT;
}

static json_object *request(const struct save *s)
{
	json_object *more = json_object_new_object();
	char dir[PATH_SIZE] = "", path[2 * PATH_SIZE];

	/* The machine's process has another working directory. */
	if (*s->file != '/' && !getcwd(dir, sizeof(dir))) {
		complain("%s: %s", s->file, strerror(errno));
		json_object_put(more);
		return NULL;
	}
	snprintf(path, sizeof(path), "%s%s%s", dir, *dir ? "/" : "", s->file);
	json_object_object_add(more, "file", json_object_new_string(path));
	json_object_object_add(more, "stop", json_object_new_boolean(s->stop));
	json_object_object_add(more, "compress",
			       json_object_new_boolean(s->compress));
	return more;
}

static int save(const struct save *s)
{
	struct sigaction sa = { .sa_handler = on_signal };
	json_object *more = request(s), *reply;
	int fd = more ? control_reach(s->name) : -1, ret;

	if (fd < 0) {
		json_object_put(more);
		return EXIT_FAULT;
	}
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	reply = ask(fd, s->name, "save", more);
	json_object_put(reply);
	ret = reply ? wait_saved(fd, s) : EXIT_FAULT;
	close(fd);
	return ret;
}

int cmd_save(int argc, char **argv)
{
	static const struct option options[] = {
		{ "stop", 0, NULL, 's' },
		{ "compress", 1, NULL, 'c' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	struct save s = { 0 };
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 's': s.stop = true; break;
		case 'c':
			s.compress = !strcmp(optarg, "zstd");
			if (s.compress || !strcmp(optarg, "none"))
				break;
			complain("--compress %s: there is zstd", optarg);
			return EXIT_USAGE;
		case 'h': fputs(help_save, stdout); return 0;
		default: return bad_option("save", c, argv);
		}
	}
	if (argc - optind != 2) {
		complain("save: a machine and a file are needed");
		return EXIT_USAGE;
	}
	s.name = argv[optind];
	s.file = argv[optind + 1];
	return save(&s);
}
