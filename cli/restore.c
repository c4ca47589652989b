/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore.c - husk restore and husk inspect: machines in files
 */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "options.h"
#include "start.h"

static const char help_restore[] =
	"usage: husk restore FILE [OPTION...]\n"
	"\n"
	"  --name NAME           run it in the background as the machine NAME,\n"
	"                        which is made when there is none\n"
	"  --paused              do not let it go on yet\n"
	"  --preload             read all of its memory now\n"
	"  --engine ENGINE       auto, kvm or soft\n"
	"  --force               even when its disks have changed since\n"
	"  --serial WHERE        stdio, a file, pty or none (default stdio)\n"
	"  --stats               count what the vCPUs did, on standard error\n"
	"  --timeout SECONDS     end the machine after this time\n"
	"  --help                print the options\n";

static const char help_inspect[] =
	"usage: husk inspect FILE [OPTION...]\n"
	"\n"
	"  --check               read the memory and check it, too\n"
	"  --json                for programs\n"
	"  --help                print the options\n";

static int failed(const struct husk_error *err)
{
	complain("%s", err->text);
	return EXIT_FAULT;
}

/* -- restore -------------------------------------------------------------- */

struct restore {
	const char *file, *name, *engine;
	struct session s;
	struct place place; /* with a name */
};

/* The machine of this name, or one made for it; its sockets are its own. */
static int take_place(const struct restore *r, struct place *p,
		      struct vm_config *cfg, bool *is_new)
{
	*is_new = !place_exists(r->name);
	return *is_new ? place_make(p, r->name, cfg) : place_find(p, r->name);
}

/* The place of before is perhaps the saved machine's, or gone. */
static int move_vsock(struct vm_config *cfg)
{
	char dir[PATH_SIZE], path[PATH_SIZE + 32];
	int ret;

	if (!vm_config_vsock_path(cfg))
		return 0;
	ret = run_dir(dir, sizeof(dir));
	if (ret)
		return ret;
	/* Not a name that a machine could have. */
	snprintf(path, sizeof(path), "%s/.restored-%ld", dir, (long)getpid());
	return vm_config_set_vsock_path(cfg, path) ? EXIT_FAULT : 0;
}

static int run(struct restore *r, struct vm_config *cfg)
{
	bool is_new;
	int ret;

	if (r->engine && vm_config_set_engine(cfg, r->engine))
		return EXIT_FAULT;
	if (!r->name) {
		ret = move_vsock(cfg);
		r->s.cfg = cfg;
		return ret ? ret : session_run(&r->s);
	}
	ret = take_place(r, &r->place, cfg, &is_new);
	if (ret)
		return ret;
	r->s.restore.disks = r->place.dir;
	ret = start_background(&r->place, cfg, &r->s);
	/* It has never run. */
	if (ret && is_new && !place_lock(&r->place)) {
		place_delete(&r->place);
		place_release(&r->place);
	}
	return ret;
}

static int restore(struct restore *r)
{
	struct husk_error err = { 0 };
	struct vm_saved *saved;
	struct vm_config *cfg;
	int ret;

	if (vm_saved_open(r->file, &saved, &err))
		return failed(&err);
	if (vm_saved_config(saved, &cfg, &err)) {
		vm_saved_close(saved);
		return failed(&err);
	}
	r->s.saved = saved;
	ret = run(r, cfg);
	vm_config_destroy(cfg);
	vm_saved_close(saved);
	return ret;
}

int cmd_restore(int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", 1, NULL, 'n' },    { "paused", 0, NULL, 'p' },
		{ "preload", 0, NULL, 'l' }, { "engine", 1, NULL, 'e' },
		{ "force", 0, NULL, 'f' },   { "serial", 1, NULL, 's' },
		{ "stats", 0, NULL, 'S' },   { "timeout", 1, NULL, 't' },
		{ "help", 0, NULL, 'h' },    { 0 },
	};
	struct restore r = { 0 };
	int c;

	session_init(&r.s);
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'n': r.name = optarg; break;
		case 'p': r.s.paused = true; break;
		case 'l': r.s.restore.preload = true; break;
		case 'e': r.engine = optarg; break;
		case 'f': r.s.restore.force = true; break;
		case 's': r.s.where = optarg; break;
		case 'S': r.s.stats = true; break;
		case 't':
			if (session_set_timeout(&r.s, optarg))
				return EXIT_USAGE;
			break;
		case 'h': fputs(help_restore, stdout); return 0;
		default: return bad_option("restore", c, argv);
		}
	}
	if (argc - optind != 1) {
		complain("restore: one file is needed");
		return EXIT_USAGE;
	}
	r.file = argv[optind];
	return restore(&r);
}

/* -- inspect -------------------------------------------------------------- */

static void when(char *to, size_t room, uint64_t ns)
{
	time_t t = (time_t)(ns / 1000000000);
	struct tm tm;

	if (!localtime_r(&t, &tm) || !strftime(to, room, "%F %T %z", &tm))
		snprintf(to, room, "%llu", (unsigned long long)ns);
}

static void print_text(const struct vm_saved *saved,
		       const struct vm_saved_info *i)
{
	struct vm_saved_section section;
	struct vm_saved_disk *disk = malloc(sizeof(*disk));
	char size[32], used[32], file[32], at[64];

	show_size(size, sizeof(size), i->memory);
	show_size(used, sizeof(used), i->memory_used);
	show_size(file, sizeof(file), i->file);
	when(at, sizeof(at), i->saved_at);
	printf("saved      %s, format %u, %s%s\n", at, i->version, file,
	       i->compressed ? ", compressed" : " with its holes");
	printf("id         %s\n", i->id);
	printf("engine     %s, CPU model %s, TSC %u kHz\n", i->engine,
	       i->cpu_model, i->tsc_khz);
	printf("machine    %u CPUs, %s of memory, %s of it used\n", i->cpus,
	       size, used);
	printf("uptime     %.3f s\n", (double)i->uptime / 1e9);
	for (unsigned n = 0; disk && !vm_saved_disk(saved, n, disk); n++)
		printf("%-10s %s, %s%s%s%s\n", disk->name, disk->path,
		       disk->format, disk->readonly ? ", read-only" : "",
		       disk->frozen ? ", frozen" : "",
		       disk->as_it_was ? "" : ", CHANGED since");
	free(disk);
	for (unsigned n = 0; !vm_saved_section(saved, n, &section); n++)
		printf("section    %-12s %-14s version %u, %llu bytes\n",
		       section.name, section.kind, section.version,
		       (unsigned long long)section.size);
}

static void put_text(json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

static void put_number(json_object *o, const char *key, uint64_t n)
{
	json_object_object_add(o, key, json_object_new_int64((int64_t)n));
}

static void put_bool(json_object *o, const char *key, bool b)
{
	json_object_object_add(o, key, json_object_new_boolean(b));
}

static json_object *json_disks(const struct vm_saved *saved)
{
	struct vm_saved_disk *d = malloc(sizeof(*d));
	json_object *list = json_object_new_array();

	for (unsigned n = 0; d && !vm_saved_disk(saved, n, d); n++) {
		json_object *o = json_object_new_object();

		put_text(o, "name", d->name);
		put_text(o, "path", d->path);
		put_text(o, "format", d->format);
		put_bool(o, "readonly", d->readonly);
		put_bool(o, "frozen", d->frozen);
		put_bool(o, "as_it_was", d->as_it_was);
		json_object_array_add(list, o);
	}
	free(d);
	return list;
}

static json_object *json_sections(const struct vm_saved *saved)
{
	json_object *list = json_object_new_array();
	struct vm_saved_section s;

	for (unsigned n = 0; !vm_saved_section(saved, n, &s); n++) {
		json_object *o = json_object_new_object();

		put_text(o, "name", s.name);
		put_text(o, "kind", s.kind);
		put_number(o, "version", s.version);
		put_number(o, "size", s.size);
		json_object_array_add(list, o);
	}
	return list;
}

static void print_json(const struct vm_saved *saved,
		       const struct vm_saved_info *i)
{
	json_object *o = json_object_new_object();
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	char *text;

	put_number(o, "format", i->version);
	put_text(o, "id", i->id);
	put_text(o, "engine", i->engine);
	put_text(o, "cpu_model", i->cpu_model);
	put_number(o, "cpus", i->cpus);
	put_number(o, "tsc_khz", i->tsc_khz);
	put_number(o, "memory", i->memory);
	put_number(o, "memory_used", i->memory_used);
	put_number(o, "file", i->file);
	put_bool(o, "compressed", i->compressed);
	put_number(o, "saved_at_ns", i->saved_at);
	put_number(o, "uptime_ns", i->uptime);
	json_object_object_add(o, "disks", json_disks(saved));
	json_object_object_add(o, "sections", json_sections(saved));
	if (!vm_saved_config(saved, &cfg, &err)) {
		text = vm_config_to_json(cfg, NULL);
		json_object_object_add(o, "config",
				       text ? json_tokener_parse(text) : NULL);
		free(text);
		vm_config_destroy(cfg);
	}
	puts(json_object_to_json_string_ext(
		o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
			   JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

static int inspect(const char *file, bool check, bool json)
{
	struct bar bar = { .what = file };
	struct husk_error err = { 0 };
	struct vm_saved_info info;
	struct vm_saved *saved;
	int ret = vm_saved_open(file, &saved, &err);

	if (ret)
		return failed(&err);
	if (check) {
		ret = vm_saved_check(saved, bar_progress, &bar, &err);
		bar_end(&bar);
	}
	vm_saved_info(saved, &info);
	if (!ret && json)
		print_json(saved, &info);
	else if (!ret)
		print_text(saved, &info);
	vm_saved_close(saved);
	return ret ? failed(&err) : 0;
}

int cmd_inspect(int argc, char **argv)
{
	static const struct option options[] = {
		{ "check", 0, NULL, 'c' },
		{ "json", 0, NULL, 'j' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	bool check = false, json = false;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'c': check = true; break;
		case 'j': json = true; break;
		case 'h': fputs(help_inspect, stdout); return 0;
		default: return bad_option("inspect", c, argv);
		}
	}
	if (argc - optind != 1) {
		complain("inspect: one file is needed");
		return EXIT_USAGE;
	}
	return inspect(argv[optind], check, json);
}
