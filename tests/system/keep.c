/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep.c - stops and moves a guest that runs keeper, again and again
 *
 *   keep [OPTION...] KERNEL INITRD STEP...
 *
 * Options: --cpus N, --memory MIB, --disk SPEC, --net SPEC, --engine E,
 * --file FILE of the saved machine, --device SPEC, --vsock SPEC.
 * Steps, in order:
 *   beat:N     until the guest has said N more beats
 *   pause:N    pause and resume N times
 *   idle:MS    pause, and see that it takes no time of a CPU
 *   live:N     save N times while it runs
 *   move:E     save with stop, end it, restore on engine E; 20:E does it 20
 *              times with a beat between
 *   packed:E   the same with zstd
 *   back:E     save while it runs, let it go on, end it and restore what was
 *              saved on engine E
 * Exits 1 when the guest says BAD or nothing more.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "husk/saved.h"

static struct {
	pthread_mutex_t lock;
	pthread_cond_t change;
	char line[512];
	size_t len;
	unsigned long beats;
	long long mono, real, at; /* ms, of the last beat; at by our clock */
} out = { .lock = PTHREAD_MUTEX_INITIALIZER,
	  .change = PTHREAD_COND_INITIALIZER };

static struct vm *vm;
static struct vm_config *config;
static const char *file = "saved.husk";

static void die(const char *what, const struct husk_error *err)
{
	printf("keep: %s: %s\n", what, err ? err->text : "");
	exit(1);
}

static long long ms(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

static void line(const char *text)
{
	char *end;

	printf("guest: %s\n", text);
	if (!strncmp(text, "BAD", 3) || strstr(text, "rcu: INFO") ||
	    strstr(text, "BUG:") || strstr(text, "Kernel panic") ||
	    strstr(text, "Clocksource tsc skewed") || strstr(text, "I/O error"))
		_exit(1);
	if (!strncmp(text, "beat ", 5)) {
		strtoul(text + 5, &end, 10); /* its number */
		out.mono = strtoll(end, &end, 10);
		out.real = strtoll(end, NULL, 10);
		out.at = ms(CLOCK_REALTIME);
		out.beats++;
		pthread_cond_broadcast(&out.change);
	}
}

static void output(void *opaque, const void *data, size_t len)
{
	const char *p = data;

	pthread_mutex_lock(&out.lock);
	for (; len; len--, p++) {
		if (*p == '\n' || out.len == sizeof(out.line) - 1) {
			out.line[out.len] = 0;
			out.len = 0;
			line(out.line);
		} else if (*p != '\r') {
			out.line[out.len++] = *p;
		}
	}
	pthread_mutex_unlock(&out.lock);
}

static void log_line(void *opaque, const char *text)
{
	printf("log: %s\n", text);
}

static void wait_beats(unsigned long n)
{
	struct timespec ts;
	unsigned long until;

	pthread_mutex_lock(&out.lock);
	until = out.beats + n;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 600; /* a test host on a busy machine */
	while (out.beats < until)
		if (pthread_cond_timedwait(&out.change, &out.lock, &ts)) {
			printf("keep: the guest is silent\n");
			exit(1);
		}
	pthread_mutex_unlock(&out.lock);
}

static void start(void)
{
	struct husk_error err = { 0 };

	if (vm_start(vm, &err))
		die("start", &err);
}

static void pauses(unsigned long n)
{
	struct husk_error err = { 0 };

	for (unsigned long i = 0; i < n; i++) {
		if (vm_pause(vm, &err))
			die("pause", &err);
		if (vm_resume(vm, &err))
			die("resume", &err);
		usleep((useconds_t)(i % 7) * 700);
	}
	printf("keep: paused %lu times\n", n);
}

static void idle(unsigned long n)
{
	struct husk_error err = { 0 };
	struct rusage a, b;
	double used;

	if (vm_pause(vm, &err))
		die("pause", &err);
	getrusage(RUSAGE_SELF, &a);
	usleep((useconds_t)n * 1000);
	getrusage(RUSAGE_SELF, &b);
	used = (double)(b.ru_utime.tv_sec - a.ru_utime.tv_sec) +
	       (double)(b.ru_utime.tv_usec - a.ru_utime.tv_usec) / 1e6 +
	       (double)(b.ru_stime.tv_sec - a.ru_stime.tv_sec) +
	       (double)(b.ru_stime.tv_usec - a.ru_stime.tv_usec) / 1e6;
	printf("keep: %lu ms paused took %.0f us of CPU\n", n, used * 1e6);
	/* Of a machine that runs it would be as much as has passed. */
	if (used > (double)n / 1e3 / 10)
		die("a paused machine runs", NULL);
	if (vm_resume(vm, &err))
		die("resume", &err);
}

static void lives(unsigned long n)
{
	struct vm_save_result r;
	struct husk_error err = { 0 };

	for (unsigned long i = 0; i < n; i++) {
		if (vm_save(vm, file, NULL, NULL, NULL, &r, &err))
			die("save", &err);
		printf("keep: saved %llu KiB, stopped for %llu us\n",
		       (unsigned long long)r.bytes >> 10,
		       (unsigned long long)r.stop_ns / 1000);
	}
}

static void restore(const char *engine)
{
	struct husk_error err = { 0 };
	struct vm_saved *saved;
	struct vm_config *cfg;
	long long t = ms(CLOCK_MONOTONIC);

	if (vm_saved_open(file, &saved, &err))
		die("open", &err);
	if (vm_saved_config(saved, &cfg, &err))
		die("configuration", &err);
	vm_config_destroy(config);
	config = cfg;
	vm_config_set_engine(cfg, engine);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	vm_config_set_log(cfg, log_line, NULL);
	if (vm_restore(saved, cfg, NULL, &vm, &err))
		die("restore", &err);
	vm_saved_close(saved);
	start();
	printf("keep: restored on %s in %lld ms\n", engine,
	       ms(CLOCK_MONOTONIC) - t);
}

static void move(const char *engine, unsigned long n, bool stop, bool compress)
{
	const struct vm_save_options o = { .stop = stop, .compress = compress };
	struct vm_save_result r;
	struct husk_error err = { 0 };

	for (unsigned long i = 0; i < n; i++) {
		long long t = ms(CLOCK_MONOTONIC);

		if (vm_save(vm, file, &o, NULL, NULL, &r, &err))
			die("save", &err);
		printf("keep: saved %llu KiB in %lld ms\n",
		       (unsigned long long)r.bytes >> 10,
		       ms(CLOCK_MONOTONIC) - t);
		if (!stop)
			wait_beats(2);
		vm_destroy(vm);
		restore(engine);
		wait_beats(i + 1 < n ? 1 : 2);
	}
}

static void step(const char *s)
{
	const char *colon = s ? strchr(s, ':') : NULL;
	unsigned long n = colon ? strtoul(colon + 1, NULL, 10) : 0;

	printf("keep: %s\n", s ? s : "");
	if (!colon)
		die("step", NULL);
	if (!strncmp(s, "beat:", 5))
		wait_beats(n);
	else if (!strncmp(s, "pause:", 6))
		pauses(n);
	else if (!strncmp(s, "idle:", 5))
		idle(n);
	else if (!strncmp(s, "live:", 5))
		lives(n);
	else if (!strncmp(s, "move:", 5))
		move(colon + 1, 1, true, false);
	else if (!strncmp(s, "packed:", 7))
		move(colon + 1, 1, true, true);
	else if (!strncmp(s, "back:", 5))
		move(colon + 1, 1, false, false);
	else
		move(colon + 1, strtoul(s, NULL, 10), true, false);
}

static void option(int c, struct husk_error *err)
{
	int ret = 0;

	switch (c) {
	case 'c':
		vm_config_set_cpus(config, (unsigned)strtoul(optarg, NULL, 10));
		break;
	case 'm':
		vm_config_set_memory(config, strtoull(optarg, NULL, 10) << 20);
		break;
	case 'd': ret = vm_config_add_disk_spec(config, optarg, err); break;
	case 'n': ret = vm_config_add_net(config, optarg, err); break;
	case 'D': ret = vm_config_add_device(config, optarg, err); break;
	case 'v': ret = vm_config_add_vsock(config, optarg, err); break;
	case 'e': vm_config_set_engine(config, optarg); break;
	case 'a': vm_config_set_cmdline(config, optarg); break;
	case 'f': file = optarg; break;
	default: exit(2);
	}
	if (ret)
		die(optarg, err);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "cpus", 1, NULL, 'c' },   { "memory", 1, NULL, 'm' },
		{ "disk", 1, NULL, 'd' },   { "net", 1, NULL, 'n' },
		{ "device", 1, NULL, 'D' }, { "vsock", 1, NULL, 'v' },
		{ "engine", 1, NULL, 'e' }, { "cmdline", 1, NULL, 'a' },
		{ "file", 1, NULL, 'f' },   { 0 },
	};
	struct husk_error err = { 0 };
	int c;

	setvbuf(stdout, NULL, _IOLBF, 0);
	config = vm_config_create();
	vm_config_set_engine(config, "soft");
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1)
		option(c, &err);
	if (argc - optind < 2)
		return 2;
	vm_config_set_kernel(config, argv[optind++]);
	vm_config_set_initrd(config, argv[optind++]);
	vm_config_set_output(config, VM_SERIAL, output, NULL);
	vm_config_set_log(config, log_line, NULL);
	if (vm_create(config, &vm, &err))
		die("create", &err);
	start();
	wait_beats(2);
	for (; optind < argc; optind++)
		step(argv[optind]);
	printf("keep: wall clock behind by %lld ms\n", out.at - out.real);
	vm_destroy(vm);
	vm_config_destroy(config);
	printf("keep: well\n");
	return 0;
}
