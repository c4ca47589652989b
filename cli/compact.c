/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compact.c - husk disk compact: an image, or the disks of a machine
 *
 * Of a machine that runs the guest itself says what it does not use: its agent
 * trims all file systems, and the disks give that back to the host at once.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "cli.h"
#include "place.h"

enum { AGENT_MS = 3000, SHOW_MS = 100, MAX_DISKS = 64 };

static int failed(const struct husk_error *err)
{
	complain("%s", err->text);
	return EXIT_FAULT;
}

static void say(const char *path, uint64_t before, uint64_t after)
{
	char a[32], b[32];

	show_size(a, sizeof(a), before);
	show_size(b, sizeof(b), after);
	printf("%s: used %s, now %s\n", path, a, b);
}

static int compact_file(const char *path, const char *format,
			bool (*go_on)(void))
{
	struct bar bar = { .what = "compacting", .go_on = go_on };
	struct vm_disk_info before, after;
	struct husk_error err = { 0 };
	int ret;

	ret = vm_disk_info(path, format, &before, &err);
	if (!ret)
		ret = vm_disk_compact(path, format, bar_progress, &bar, &err);
	bar_end(&bar);
	if (!ret)
		ret = vm_disk_info(path, format, &after, &err);
	if (ret)
		return failed(&err);
	say(path, before.used, after.used);
	return 0;
}

/* -- a machine that runs -------------------------------------------------- */

struct trim {
	int fd;
	int ret;
	struct husk_error err;
	atomic_bool ended;
};

static void *trim_main(void *arg)
{
	struct trim *t = arg;

	t->ret = agent_fstrim(t->fd, NULL, &t->err);
	/* A flush of the guest is what gives clusters of qcow2 back. */
	if (!t->ret)
		t->ret = agent_sync(t->fd, &t->err);
	atomic_store(&t->ended, true);
	return NULL;
}

/* Bytes on the host by disk; their sum. */
static uint64_t measure(const struct vm_config *cfg, uint64_t *used)
{
	unsigned n = vm_config_disk_count(cfg);
	struct husk_error ignored = { 0 };
	uint64_t sum = 0;

	for (unsigned i = 0; i < n && i < MAX_DISKS; i++) {
		struct vm_disk_info info;

		used[i] = 0;
		if (!vm_disk_info(vm_config_disk_path(cfg, i),
				  vm_config_disk_format(cfg, i), &info,
				  &ignored))
			used[i] = info.used;
		sum += used[i];
	}
	return sum;
}

static void show(const struct vm_config *cfg, uint64_t before)
{
	uint64_t used[MAX_DISKS], now = measure(cfg, used);
	char text[32];

	show_size(text, sizeof(text), before > now ? before - now : 0);
	fprintf(stderr, "\rcompacting: %s given back \033[K", text);
}

static int wait_trim(struct trim *t, const struct vm_config *cfg,
		     uint64_t before, bool (*go_on)(void))
{
	const struct timespec pause = { 0, SHOW_MS * 1000000l };
	bool tty = isatty(2);

	while (!atomic_load(&t->ended)) {
		if (!go_on())
			return EXIT_FAULT;
		if (tty)
			show(cfg, before);
		nanosleep(&pause, NULL);
	}
	if (tty)
		fputs("\r\033[K", stderr);
	return 0;
}

static int trim(const char *name, const struct vm_config *cfg,
		bool (*go_on)(void))
{
	/* Its thread may outlive us when we are interrupted. */
	static struct trim t;
	uint64_t before[MAX_DISKS] = { 0 }, after[MAX_DISKS] = { 0 }, sum;
	pthread_t thread;
	char path[256];

	if (agent_path(name, path, sizeof(path), &t.err) ||
	    (t.fd = agent_open(path, AGENT_MS, &t.err)) < 0) {
		complain("%s: runs, and no agent answers in it: run fstrim -a "
			 "in the guest, or stop it first",
			 name);
		return EXIT_FAULT;
	}
	sum = measure(cfg, before);
	if (pthread_create(&thread, NULL, trim_main, &t)) {
		complain("out of threads");
		return EXIT_FAULT;
	}
	if (wait_trim(&t, cfg, sum, go_on)) {
		complain("%s: interrupted; the guest may go on with it", name);
		return EXIT_FAULT;
	}
	pthread_join(thread, NULL);
	close(t.fd);
	if (t.ret) {
		complain("%s: %s", name, t.err.text);
		return EXIT_FAULT;
	}
	measure(cfg, after);
	for (unsigned i = 0; i < vm_config_disk_count(cfg); i++)
		if (i < MAX_DISKS && !vm_config_disk_readonly(cfg, i))
			say(vm_config_disk_path(cfg, i), before[i], after[i]);
	return 0;
}

/* -- both ----------------------------------------------------------------- */

static int compact_machine(const char *name, bool (*go_on)(void))
{
	struct vm_config *cfg = NULL;
	struct place p;
	int ret = place_find(&p, name);

	if (!ret)
		ret = place_load(&p, &cfg);
	if (!ret && place_owner(&p)) {
		ret = trim(name, cfg, go_on);
		vm_config_destroy(cfg);
		return ret;
	}
	for (unsigned i = 0; !ret && i < vm_config_disk_count(cfg); i++)
		if (!vm_config_disk_readonly(cfg, i))
			ret = compact_file(vm_config_disk_path(cfg, i),
					   vm_config_disk_format(cfg, i),
					   go_on);
	vm_config_destroy(cfg);
	return ret;
}

int compact(const char *what, const char *format, bool (*go_on)(void))
{
	/* A file that is there is a file. */
	if (!format && access(what, F_OK) && place_exists(what))
		return compact_machine(what, go_on);
	return compact_file(what, format, go_on);
}
