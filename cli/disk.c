/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.c - husk disk: makes, measures, resizes, copies and checks images
 */
#include "cli.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
	"usage: husk disk create FILE [SIZE] [--format F] [--base FILE]\n"
	"                        [--base-format F] [--cluster SIZE]\n"
	"                        [--lazy-refcounts] [--force]\n"
	"       husk disk info FILE [--format F] [--json]\n"
	"       husk disk resize FILE [+|-]SIZE [--format F] [--shrink]\n"
	"       husk disk convert FROM TO [--format F] [--from-format F]\n"
	"                        [--snapshot NAME] [--cluster SIZE] [--force]\n"
	"       husk disk compact FILE|NAME [--format F]\n"
	"       husk disk extract FILE PATH TO [--format F]\n"
	"       husk disk check FILE [--format F] [--repair] [--json]\n"
	"\n"
	"Formats are raw and qcow2.  Without --format the suffix .qcow2 says so, and\n"
	"everything else is raw.  Sizes are numbers with K, M, G or T.\n"
	"\n"
	"  --base FILE        the new qcow2 image holds what differs from FILE\n"
	"  --base-format F    format of the base\n"
	"  --cluster SIZE     clusters of a qcow2 image, 512 to 2M (default 64K)\n"
	"  --lazy-refcounts   count after a power cut, not before\n"
	"  --force            replace FILE\n"
	"  --shrink           cut off the end\n"
	"  --from-format F    format of FROM\n"
	"  --snapshot NAME    FROM as it was in an internal snapshot\n"
	"  --repair           put right what can be\n"
	"  --json             one JSON object\n"
	"  --help             print the options\n"
	"\n"
	"Exit status: 0, 1 a fault or a damaged image, 2 usage, 3 only lost space.\n";

struct options {
	const char *format, *base, *base_format, *from_format, *snapshot;
	uint64_t cluster;
	bool lazy, force, shrink, repair, json;
	int argc;
	char **argv; /* what is not an option */
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static bool go_on(void)
{
	return !interrupted;
}

static void json_text(const char *text)
{
	putchar('"');
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			printf("\\%c", *p);
		else if (*p < 0x20)
			printf("\\u%04x", *p);
		else
			putchar(*p);
	}
	putchar('"');
}

static int failed(const struct husk_error *err)
{
	complain("%s", err->text);
	return EXIT_FAULT;
}

/* -- the commands --------------------------------------------------------- */

static int create(const struct options *o)
{
	struct vm_disk_create c = {
		.format = o->format,
		.base = o->base,
		.base_format = o->base_format,
		.cluster = (uint32_t)o->cluster,
		.lazy_refcounts = o->lazy,
		.replace = o->force,
	};
	struct husk_error err = { 0 };

	if (o->argc > 1 && parse_size(o->argv[1], &c.size)) {
		complain("%s: not a size such as 20G", o->argv[1]);
		return EXIT_USAGE;
	}
	return vm_disk_create(o->argv[0], &c, &err) ? failed(&err) : 0;
}

static void info_json(const char *path, const struct vm_disk_info *i)
{
	fputs("{\"file\": ", stdout);
	json_text(path);
	printf(", \"format\": \"%s\", \"size\": %" PRIu64 ", \"used\": %" PRIu64
	       ", \"length\": %" PRIu64,
	       i->format, i->size, i->used, i->file);
	if (i->cluster)
		printf(", \"cluster\": %" PRIu32 ", \"snapshots\": %u, "
		       "\"lazy_refcounts\": %s, \"dirty\": %s, "
		       "\"corrupt\": %s",
		       i->cluster, i->snapshots,
		       i->lazy_refcounts ? "true" : "false",
		       i->dirty ? "true" : "false",
		       i->corrupt ? "true" : "false");
	if (*i->base) {
		fputs(", \"base\": ", stdout);
		json_text(i->base);
		fputs(", \"base_format\": ", stdout);
		json_text(i->base_format);
	}
	puts("}");
}

static int info(const struct options *o)
{
	struct husk_error err = { 0 };
	struct vm_disk_info i;
	char a[32], b[32];

	if (vm_disk_info(o->argv[0], o->format, &i, &err))
		return failed(&err);
	if (o->json) {
		info_json(o->argv[0], &i);
		return 0;
	}
	show_size(a, sizeof(a), i.size);
	show_size(b, sizeof(b), i.used);
	printf("file      %s\nformat    %s\nsize      %s (%" PRIu64
	       " bytes)\nused      %s (%" PRIu64 " bytes)\n",
	       o->argv[0], i.format, a, i.size, b, i.used);
	if (!i.cluster)
		return 0;
	show_size(a, sizeof(a), i.cluster);
	printf("clusters  %s\n", a);
	if (*i.base)
		printf("base      %s%s%s\n", i.base, *i.base_format ? ", " : "",
		       i.base_format);
	if (i.snapshots)
		printf("snapshots %u\n", i.snapshots);
	if (i.lazy_refcounts)
		puts("refcounts lazy");
	if (i.dirty)
		puts("state     not closed: refcounts are counted at its next use");
	if (i.corrupt)
		puts("state     marked as corrupt");
	return 0;
}

static int resize(const struct options *o)
{
	const char *text = o->argv[1];
	struct husk_error err = { 0 };
	struct vm_disk_info i;
	uint64_t size;

	if (parse_size(text + (*text == '+' || *text == '-'), &size)) {
		complain("%s: not a size such as 20G or +5G", text);
		return EXIT_USAGE;
	}
	if (*text == '+' || *text == '-') {
		if (vm_disk_info(o->argv[0], o->format, &i, &err))
			return failed(&err);
		if (*text == '-' && size >= i.size) {
			complain("%s: has no more than that", o->argv[0]);
			return EXIT_USAGE;
		}
		size = *text == '+' ? i.size + size : i.size - size;
	}
	return vm_disk_resize(o->argv[0], o->format, size, o->shrink, &err)
		       ? failed(&err)
		       : 0;
}

static int convert(const struct options *o)
{
	struct vm_disk_convert how = {
		.format = o->format,
		.from_format = o->from_format,
		.snapshot = o->snapshot,
		.cluster = (uint32_t)o->cluster,
		.replace = o->force,
	};
	struct bar bar = { .what = "converting", .go_on = go_on };
	struct husk_error err = { 0 };
	int ret = vm_disk_convert(o->argv[0], o->argv[1], &how, bar_progress,
				  &bar, &err);

	bar_end(&bar);
	return ret ? failed(&err) : 0;
}

static int extract(const struct options *o)
{
	struct husk_error err = { 0 };

	return vm_disk_extract(o->argv[0], o->format, o->argv[1], o->argv[2],
			       NULL, &err)
		       ? failed(&err)
		       : 0;
}

static int compact_it(const struct options *o)
{
	return compact(o->argv[0], o->format, go_on);
}

static void on_report(void *opaque, const char *text)
{
	complain("%s", text);
}

static int check(const struct options *o)
{
	struct husk_error err = { 0 };
	struct vm_disk_check c;

	if (vm_disk_check(o->argv[0], o->format, o->repair, &c, on_report, NULL,
			  &err))
		return failed(&err);
	if (o->json) {
		fputs("{\"file\": ", stdout);
		json_text(o->argv[0]);
		printf(", \"errors\": %" PRIu64 ", \"leaks\": %" PRIu64
		       ", \"clusters\": %" PRIu64 ", \"repaired\": %" PRIu64
		       "}\n",
		       c.errors, c.leaks, c.clusters, c.repaired);
	} else {
		if (c.repaired)
			printf("%" PRIu64 " repaired\n", c.repaired);
		if (c.errors)
			printf("%" PRIu64 " errors\n", c.errors);
		if (c.leaks)
			printf("%" PRIu64 " clusters are lost space; "
			       "husk disk check --repair gives them back\n",
			       c.leaks);
		if (!c.errors && !c.leaks)
			puts("no errors");
	}
	return c.errors ? EXIT_FAULT : c.leaks ? 3 : 0;
}

static const struct {
	const char *name;
	int (*run)(const struct options *o);
	int min, max; /* arguments */
} commands[] = {
	{ "create", create, 1, 2 },   { "info", info, 1, 1 },
	{ "resize", resize, 2, 2 },   { "convert", convert, 2, 2 },
	{ "extract", extract, 3, 3 }, { "compact", compact_it, 1, 1 },
	{ "check", check, 1, 1 },
};

static int parse(struct options *o, int argc, char **argv)
{
	static const struct option options[] = {
		{ "format", 1, NULL, 'f' },
		{ "base", 1, NULL, 'b' },
		{ "base-format", 1, NULL, 'B' },
		{ "cluster", 1, NULL, 'c' },
		{ "lazy-refcounts", 0, NULL, 'l' },
		{ "force", 0, NULL, 'F' },
		{ "shrink", 0, NULL, 's' },
		{ "from-format", 1, NULL, 'r' },
		{ "snapshot", 1, NULL, 'n' },
		{ "repair", 0, NULL, 'R' },
		{ "json", 0, NULL, 'j' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'f': o->format = optarg; break;
		case 'b': o->base = optarg; break;
		case 'B': o->base_format = optarg; break;
		case 'c':
			if (parse_size(optarg, &o->cluster) || !o->cluster ||
			    o->cluster > UINT32_MAX) {
				complain("--cluster %s: not a size such as 64K",
					 optarg);
				return EXIT_USAGE;
			}
			break;
		case 'l': o->lazy = true; break;
		case 'F': o->force = true; break;
		case 's': o->shrink = true; break;
		case 'r': o->from_format = optarg; break;
		case 'n': o->snapshot = optarg; break;
		case 'R': o->repair = true; break;
		case 'j': o->json = true; break;
		case 'h': fputs(help, stdout); return -1;
		default:
			/* "-5G" of resize is no option. */
			complain("%s: %s; husk disk --help lists the options",
				 argv[optind - 1],
				 c == ':' ? "a value is missing"
					  : "no such option");
			return EXIT_USAGE;
		}
	}
	o->argc = argc - optind;
	o->argv = argv + optind;
	return 0;
}

/* A change of the image is not left half done. */
static void catch_signals(void)
{
	static const int sigs[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal };

	for (unsigned i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		sigaction(sigs[i], &sa, NULL);
}

int cmd_disk(int argc, char **argv)
{
	struct options o = { 0 };
	int ret;

	if (argc > 1 && !strcmp(argv[1], "--help")) {
		fputs(help, stdout);
		return 0;
	}
	if (argc < 2) {
		fputs(help, stderr);
		return EXIT_USAGE;
	}
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(argv[1], commands[i].name))
			continue;
		ret = parse(&o, argc - 1, argv + 1);
		if (ret)
			return ret < 0 ? 0 : ret;
		if (o.argc < commands[i].min || o.argc > commands[i].max) {
			complain("disk %s: %s; husk disk --help says which",
				 argv[1],
				 o.argc < commands[i].min
					 ? "an argument is missing"
					 : "too many arguments");
			return EXIT_USAGE;
		}
		catch_signals();
		return commands[i].run(&o);
	}
	complain("disk %s: no such command; husk disk --help lists them",
		 argv[1]);
	return EXIT_USAGE;
}
