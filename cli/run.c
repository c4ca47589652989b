/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c - husk run: boots a kernel and lends it the terminal
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "create.h"
#include "image.h"
#include "options.h"
#include "start.h"

static const char help[] = "usage: husk run [NAME] [OPTION...]\n\n";

static const char more_help[] =
	"  --config FILE         begin with this configuration, a JSON document\n"
	"  --serial WHERE        stdio, a file, pty or none (default stdio)\n"
	"  --restful-uri URI     serve /vm/state and /vm/inspect, as vfkit does, at\n"
	"                        tcp://HOST:PORT or unix:///PATH\n"
	"  --stats               count what the vCPUs did, on standard error\n"
	"  --timeout SECONDS     end the machine after this time\n"
	"\n"
	"NAME is a machine of husk create, which runs with its console here; debian\n"
	"is made when it does not exist.\n"
	"Without it and --kernel the demo guest is booted, where it was built.\n"
	"Ctrl-A x ends the machine.  Exit status: 0 powered off, 1 a fault of Husk,\n"
	"2 usage, 3 the guest died, 124 timeout, else what a debug-exit device said.\n";

/* The demo guest beside the build's command. */
static int use_demo(struct vm_config *cfg)
{
	char self[4096], path[4200], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	static const char *const dirs[] = { "demo", "../demo",
					    "../share/husk/demo" };

	if (n < 0)
		return -errno;
	self[n] = 0;
	slash = strrchr(self, '/');
	if (slash)
		*slash = 0;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s/vmlinuz", self, dirs[i]);
		if (access(path, R_OK))
			continue;
		vm_config_set_kernel(cfg, path);
		snprintf(path, sizeof(path), "%s/%s/initrd", self, dirs[i]);
		return vm_config_set_initrd(cfg, path);
	}
	return -ENOENT;
}

struct options {
	struct machine_options machine;
	const char *config;
	const char *name; /* of a machine that there is, or NULL */
};

/* -1: all is done. */
static int parse(struct session *s, struct options *o, int argc, char **argv)
{
	static const struct option options[] = {
		MACHINE_OPTIONS,
		{ "config", 1, NULL, 'C' },
		{ "serial", 1, NULL, 's' },
		{ "restful-uri", 1, NULL, 'R' },
		{ "stats", 0, NULL, 'S' },
		{ "timeout", 1, NULL, 't' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (machine_option(&o->machine, c, optarg))
			continue;
		switch (c) {
		case 'C': o->config = optarg; break;
		case 's': s->where = optarg; break;
		case 'R': s->restful_uri = optarg; break;
		case 'S': s->stats = true; break;
		case 't':
			if (session_set_timeout(s, optarg))
				return EXIT_USAGE;
			break;
		case 'h':
			printf("%s%s%s", help, machine_help, more_help);
			return -1;
		default: return bad_option("run", c, argv);
		}
	}
	if (argc - optind > 1 || (optind < argc && o->config)) {
		complain("%s: one machine at a time; husk run --help lists the "
			 "options",
			 argv[optind]);
		return EXIT_USAGE;
	}
	o->name = argv[optind];
	return 0;
}

/* The options come on top of a file's configuration. */
static int load(struct session *s, const struct options *o)
{
	struct husk_error err = { 0 };

	if (vm_config_load(o->config, &s->cfg, &err)) {
		complain("%s", err.text);
		return EXIT_USAGE;
	}
	return machine_options_apply(&o->machine, s->cfg, false);
}

static int configure(struct session *s, const struct options *o)
{
	const char *cmdline = "console=ttyS0";

	if (o->config)
		return load(s, o);
	s->cfg = vm_config_create();
	if (!s->cfg) {
		complain("out of memory");
		return EXIT_FAULT;
	}
	vm_config_set_memory(s->cfg, 512u << 20);
	if (machine_options_apply(&o->machine, s->cfg, true))
		return EXIT_USAGE;
	if (!vm_config_kernel(s->cfg)) {
		if (use_demo(s->cfg)) {
			complain("no --kernel, and no demo guest: "
				 "./dev run makes one");
			return EXIT_USAGE;
		}
		cmdline = "console=ttyS0 quiet";
	}
	if (vm_config_console_is_stdio(s->cfg))
		cmdline = "console=hvc0";
	if (!vm_config_cmdline(s->cfg))
		vm_config_set_cmdline(s->cfg, cmdline);
	return 0;
}

/* A named machine, with these options for this time. */
static int run_named(struct session *s, const struct options *o)
{
	struct vm_config *cfg = NULL;
	struct place p;
	int ret = 0;

	if (!place_exists(o->name) && image_is_known(o->name)) {
		struct create c = { .from = o->name };

		ret = create_machine(o->name, &c);
	}
	if (!ret)
		ret = place_find(&p, o->name);
	if (!ret)
		ret = place_load(&p, &cfg);
	if (!ret)
		ret = machine_options_apply(&o->machine, cfg, false);
	if (!ret)
		ret = start_foreground(&p, cfg, s);
	vm_config_destroy(cfg);
	return ret;
}

int cmd_run(int argc, char **argv)
{
	struct options o = { 0 };
	struct session s;
	int ret;

	session_init(&s);
	ret = parse(&s, &o, argc, argv);
	if (ret)
		return ret < 0 ? 0 : ret;
	if (o.name)
		return run_named(&s, &o);
	ret = configure(&s, &o);
	if (!ret)
		ret = session_run(&s);
	vm_config_destroy(s.cfg);
	return ret;
}
