/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list.c - husk list and info: what machines there are and what they do
 */
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"
#include "options.h"
#include "place.h"

static const char help_list[] =
	"usage: husk list [--json]\n"
	"\n"
	"The machines of this user, and which of them run.\n"
	"\n"
	"  --json                an array of objects\n"
	"  --help                print the options\n";

static const char help_info[] = "usage: husk info NAME [--json]\n"
				"\n"
				"What a machine is, and what it does.\n"
				"\n"
				"  --json                one object\n"
				"  --help                print the options\n";

enum { REPLY_MS = 2000 };

struct machine {
	struct place *place;
	struct vm_config *cfg;
	pid_t pid;
	json_object *status; /* of a running one that answers, or NULL */
	const char *state;
	uint64_t disk_size, disk_used;
};

static json_object *ask_status(struct place *p)
{
	int fd = control_connect(p->run);
	struct husk_error err;
	json_object *reply;

	if (fd < 0)
		return NULL;
	/* It may be about to end. */
	reply = control_request(fd, "status", NULL, REPLY_MS, &err);
	close(fd);
	return reply;
}

/* The first one makes the guest say what the second one tells. */
static json_object *ask_balloon(struct place *p)
{
	const struct timespec moment = { .tv_nsec = 50000000 };
	int fd = control_connect(p->run);
	json_object *reply = NULL;
	struct husk_error err;

	for (int i = 0; fd >= 0 && i < 2; i++) {
		if (i)
			nanosleep(&moment, NULL);
		json_object_put(reply);
		reply = control_request(fd, "balloon", NULL, REPLY_MS, &err);
		if (!reply)
			break;
	}
	if (fd >= 0)
		close(fd);
	if (reply)
		json_object_object_del(reply, "ok");
	return reply;
}

static const char *state_of(struct machine *m)
{
	json_object *state;

	if (!m->pid)
		return "stopped";
	if (m->status &&
	    json_object_object_get_ex(m->status, "state", &state) &&
	    json_object_is_type(state, json_type_string))
		return json_object_get_string(state);
	return m->pid < 0 ? "starting" : "running";
}

static int look(struct machine *m, struct place *p)
{
	struct vm_disk_info info;
	int ret;

	*m = (struct machine){ .place = p };
	ret = place_load(p, &m->cfg);
	if (ret)
		return ret;
	m->pid = place_owner(p);
	if (m->pid > 0)
		m->status = ask_status(p);
	m->state = state_of(m);
	for (unsigned i = 0; i < vm_config_disk_count(m->cfg); i++) {
		if (vm_disk_info(vm_config_disk_path(m->cfg, i),
				 vm_config_disk_format(m->cfg, i), &info, NULL))
			continue;
		m->disk_size += info.size;
		m->disk_used += info.used;
	}
	return 0;
}

static void look_away(struct machine *m)
{
	vm_config_destroy(m->cfg);
	json_object_put(m->status);
}

static void add(json_object *o, const char *key, json_object *v)
{
	json_object_object_add(o, key, v);
}

static json_object *describe(const struct machine *m)
{
	json_object *o = json_object_new_object();

	add(o, "name", json_object_new_string(m->place->name));
	add(o, "state", json_object_new_string(m->state));
	if (m->pid > 0)
		add(o, "pid", json_object_new_int64(m->pid));
	add(o, "cpus", json_object_new_int64(vm_config_cpus(m->cfg)));
	add(o, "memory",
	    json_object_new_int64((int64_t)vm_config_memory(m->cfg)));
	add(o, "disk_size", json_object_new_int64((int64_t)m->disk_size));
	add(o, "disk_used", json_object_new_int64((int64_t)m->disk_used));
	add(o, "folder", json_object_new_string(m->place->dir));
	return o;
}

static void print_json(json_object *o)
{
	puts(json_object_to_json_string_ext(
		o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
			   JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* -- list ----------------------------------------------------------------- */

struct listing {
	json_object *json; /* or NULL: a table */
	bool any;
};

static int list_one(void *opaque, struct place *p)
{
	struct listing *l = opaque;
	char memory[32], size[32], used[32];
	struct machine m;

	/* One that cannot be read must not hide the others. */
	if (look(&m, p))
		return 0;
	if (l->json) {
		json_object_array_add(l->json, describe(&m));
		look_away(&m);
		return 0;
	}
	if (!l->any)
		printf("%-20s %-9s %4s %9s %9s %9s\n", "NAME", "STATE", "CPUS",
		       "MEMORY", "DISK", "USED");
	l->any = true;
	show_size(memory, sizeof(memory), vm_config_memory(m.cfg));
	show_size(size, sizeof(size), m.disk_size);
	show_size(used, sizeof(used), m.disk_used);
	printf("%-20s %-9s %4u %9s %9s %9s\n", p->name, m.state,
	       vm_config_cpus(m.cfg), memory, size, used);
	look_away(&m);
	return 0;
}

static int parse(int argc, char **argv, const char *help, bool *json)
{
	static const struct option options[] = {
		{ "json", 0, NULL, 'j' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	int c;

	*json = false;
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'j': *json = true; break;
		case 'h': fputs(help, stdout); return -1;
		default: return bad_option(argv[0], c, argv);
		}
	}
	return 0;
}

int cmd_list(int argc, char **argv)
{
	struct listing l = { 0 };
	bool json;
	int ret = parse(argc, argv, help_list, &json);

	if (ret)
		return ret < 0 ? 0 : ret;
	if (optind < argc) {
		complain("list: takes no name; husk info shows one machine");
		return EXIT_USAGE;
	}
	if (json)
		l.json = json_object_new_array();
	ret = place_each(list_one, &l);
	if (l.json)
		print_json(l.json);
	else if (!ret && !l.any)
		complain("there are no machines; husk create makes one");
	json_object_put(l.json);
	return ret;
}

/* -- info ----------------------------------------------------------------- */

static int64_t status_number(const struct machine *m, const char *key)
{
	json_object *v;

	if (!m->status || !json_object_object_get_ex(m->status, key, &v))
		return -1;
	return json_object_get_int64(v);
}

static void info_disks(const struct machine *m)
{
	for (unsigned i = 0; i < vm_config_disk_count(m->cfg); i++) {
		const char *path = vm_config_disk_path(m->cfg, i);
		struct husk_error err = { 0 };
		struct vm_disk_info info;
		char size[32], used[32];

		if (vm_disk_info(path, vm_config_disk_format(m->cfg, i), &info,
				 &err)) {
			printf("disk      %s\n", err.text);
			continue;
		}
		show_size(size, sizeof(size), info.size);
		show_size(used, sizeof(used), info.used);
		printf("disk      %s, %s, %s, %s used\n", path, info.format,
		       size, used);
	}
}

static void info_text(const struct machine *m)
{
	int64_t up = status_number(m, "uptime_ms");
	const char *image = vm_config_note(m->cfg, "image");
	char memory[32];

	show_size(memory, sizeof(memory), vm_config_memory(m->cfg));
	printf("name      %s\nstate     %s\n", m->place->name, m->state);
	if (m->pid > 0)
		printf("process   %ld\n", (long)m->pid);
	if (up >= 0)
		printf("up        %" PRId64 " s\n", up / 1000);
	printf("CPUs      %u\nmemory    %s\n", vm_config_cpus(m->cfg), memory);
	if (image)
		printf("image     %s\n", image);
	info_disks(m);
	printf("folder    %s\n", m->place->dir);
	if (m->pid > 0)
		printf("sockets   %s\n", m->place->run);
}

static void info_json(const struct machine *m)
{
	json_object *balloon = m->status ? ask_balloon(m->place) : NULL;
	json_object *o = describe(m);
	char *text = vm_config_to_json(m->cfg, NULL);

	if (m->pid > 0)
		add(o, "sockets", json_object_new_string(m->place->run));
	if (m->status)
		add(o, "status", json_object_get(m->status));
	if (balloon)
		add(o, "balloon", balloon);
	if (text)
		add(o, "config", json_tokener_parse(text));
	free(text);
	print_json(o);
	json_object_put(o);
}

int cmd_info(int argc, char **argv)
{
	struct machine m;
	struct place p;
	bool json;
	int ret = parse(argc, argv, help_info, &json);

	if (ret)
		return ret < 0 ? 0 : ret;
	if (argc - optind != 1) {
		complain("info: the name of one machine is needed");
		return EXIT_USAGE;
	}
	ret = place_find(&p, argv[optind]);
	if (!ret)
		ret = look(&m, &p);
	if (ret)
		return ret;
	if (json)
		info_json(&m);
	else
		info_text(&m);
	look_away(&m);
	return 0;
}
