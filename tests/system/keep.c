/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep.c - stops and moves a guest that runs keeper, again and again
 *
 *   keep [OPTION...] KERNEL INITRD STEP...
 *
 * Options: --cpus N, --memory MIB, --disk SPEC, --net SPEC, --engine E,
 * --file FILE of the saved machine, --gap S, --device SPEC, --vsock SPEC, --share SPEC,
 * --echo UNIX: what comes to this socket, or to a port of the loopback that the
 * guest finds on its command line as keep.tcp=PORT, goes back; to UNIX_net
 * as well.
 * Steps, in order:
 *   beat:N     until the guest has said N more beats
 *   jobs:rest  all but the clocks do nothing; jobs:run: they go on
 *   pause:N    pause and resume N times; nothing may have to begin again
 *   idle:MS    pause, and see that it takes no time of a CPU
 *   live:N     save N times while it runs; nothing may have to begin again
 *   move:E     save with stop, end it, restore on engine E; 20:E does it 20
 *              times with a beat between
 *   packed:E   the same with zstd
 *   back:E     save while it runs, let it go on, end it and restore what was
 *              saved on engine E
 *   clone:E    save while it runs, and restore it beside itself on engine E
 *   fork:E     the same by vm_fork(), in a process of its own
 *   balloon:M  the guest gives M MiB away by its balloon and takes them again,
 *              and what it frees by itself comes back as before
 *   drift:MS   the guest's wall clock is behind by no more than MS, but for
 *              stops of more than --gap SECONDS
 * After each of them every job of the guest has to get on.  Exits 1 when the
 * guest says BAD or nothing more.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "husk/saved.h"

/* Any number, or the end of one and then any. */
enum { HVC_ANY = -1, HVC_PART = -2 };

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

enum { MAX_JOBS = 12 };

struct job {
	char name[12];
	unsigned long done, breaks;
};

/* ns: somewhere from least to most */
struct span {
	long long least, most;
};

struct guest {
	const char *name;
	pthread_mutex_t lock;
	pthread_cond_t change;
	char line[512];
	size_t len;
	unsigned long beats;
	unsigned long times;	  /* that it has said */
	long long time, heard_at; /* ns, the last one, by its clock and ours */
	struct job job[MAX_JOBS];
	unsigned njobs;
	long hvc; /* the next number that the console says, or HVC_* */
	char hvc_line[64];
	size_t hvc_len;
	long long still, still_saved; /* ns that it stood still; when saved */
	long long unsure;	      /* ns, that it may have, too */
	struct span at_boot;	      /* that its clock was behind then */
	struct vm *vm;
	struct vm_config *config;
};

static struct guest one = { .name = "guest",
			    .lock = PTHREAD_MUTEX_INITIALIZER,
			    .change = PTHREAD_COND_INITIALIZER,
			    .hvc = HVC_ANY };
static const char *file = "saved.husk";
static bool resting;
static long long gap; /* ns */

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

/* "mem 12/0 tcp 4711/2" */
static void take_jobs(struct guest *g, char *text)
{
	g->njobs = 0;
	for (char *w = strtok(text, " "); w && g->njobs < MAX_JOBS;
	     w = strtok(NULL, " ")) {
		struct job *j = &g->job[g->njobs];

		snprintf(j->name, sizeof(j->name), "%s", w);
		w = strtok(NULL, " ");
		if (!w)
			break;
		j->done = strtoul(w, &w, 10);
		j->breaks = *w ? strtoul(w + 1, NULL, 10) : 0;
		g->njobs++;
	}
}

static long long ns_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static void line(struct guest *g, char *text)
{
	char *end;

	printf("%s: %s\n", g->name, text);
	if (!strncmp(text, "BAD", 3) || strstr(text, "rcu: INFO") ||
	    strstr(text, "BUG:") || strstr(text, "Kernel panic") ||
	    strstr(text, "Clocksource tsc skewed") || strstr(text, "I/O error"))
		_exit(1);
	if (!strncmp(text, "beat ", 5)) {
		strtoul(text + 5, &end, 10); /* its number */
		strtoll(end, &end, 10);	     /* its clocks */
		strtoll(end, &end, 10);
		take_jobs(g, end);
		g->beats++;
		pthread_cond_broadcast(&g->change);
	}
	/* Not the echo of what was asked. */
	if (!strncmp(text, "time ", 5)) {
		g->heard_at = ns_now();
		g->time = strtoll(text + 5, NULL, 10);
		g->times++;
		pthread_cond_broadcast(&g->change);
	}
}

static void output(void *opaque, const void *data, size_t len)
{
	struct guest *g = opaque;
	const char *p = data;

	pthread_mutex_lock(&g->lock);
	for (; len; len--, p++) {
		if (*p == '\n' || g->len == sizeof(g->line) - 1) {
			g->line[g->len] = 0;
			g->len = 0;
			line(g, g->line);
		} else if (*p != '\r') {
			g->line[g->len++] = *p;
		}
	}
	pthread_mutex_unlock(&g->lock);
}

/* Numbers, none of which may be missing. */
static void hvc_output(void *opaque, const void *data, size_t len)
{
	struct guest *g = opaque;
	const char *p = data;

	pthread_mutex_lock(&g->lock);
	for (; len; len--, p++) {
		if (*p != '\n') {
			if (*p != '\r' && g->hvc_len < sizeof(g->hvc_line) - 1)
				g->hvc_line[g->hvc_len++] = *p;
			continue;
		}
		g->hvc_line[g->hvc_len] = 0;
		g->hvc_len = 0;
		if (g->hvc >= 0 && strtol(g->hvc_line, NULL, 10) != g->hvc) {
			printf("keep: the console says %s, not %ld\n",
			       g->hvc_line, g->hvc);
			_exit(1);
		}
		g->hvc = g->hvc == HVC_PART ? HVC_ANY
					    : strtol(g->hvc_line, NULL, 10) + 1;
	}
	pthread_mutex_unlock(&g->lock);
}

static void log_line(void *opaque, const char *text)
{
	printf("log: %s\n", text);
}

static void listen_to(struct guest *g)
{
	vm_config_set_output(g->config, VM_SERIAL, output, g);
	vm_config_set_output(g->config, VM_CONSOLE, hvc_output, g);
	vm_config_set_log(g->config, log_line, NULL);
}

/* -- what is sent comes back ---------------------------------------------- */

static const char *echo_path;
static char cmdline[1024];

static void *echo(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char buf[16384];
	ssize_t n;

	while ((n = read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t k = 0, m; k < n; k += m) {
			m = send(fd, buf + k, (size_t)(n - k), MSG_NOSIGNAL);
			if (m <= 0)
				goto out;
		}
out:
	close(fd);
	return NULL;
}

static void *accept_all(void *arg)
{
	int listener = (int)(intptr_t)arg, fd;
	pthread_t t;

	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		pthread_create(&t, NULL, echo, (void *)(intptr_t)fd);
		pthread_detach(t);
	}
	return NULL;
}

static void serve(int family, const void *addr, socklen_t len)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in in = { 0 };
	socklen_t size = sizeof(in);
	pthread_t t;

	if (fd < 0 || bind(fd, addr, len) || listen(fd, 64))
		die("cannot listen", NULL);
	if (family == AF_INET && !getsockname(fd, (void *)&in, &size))
		snprintf(cmdline + strlen(cmdline),
			 sizeof(cmdline) - strlen(cmdline), " keep.tcp=%d",
			 ntohs(in.sin_port));
	pthread_create(&t, NULL, accept_all, (void *)(intptr_t)fd);
	pthread_detach(t);
}

/* PATH is that of the guest's vsock device; the guest calls port 1. */
static void serve_all(const char *path)
{
	const struct sockaddr_in in = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	struct sockaddr_un un = { .sun_family = AF_UNIX };

	serve(AF_INET, &in, sizeof(in));
	snprintf(un.sun_path, sizeof(un.sun_path), "%s_1", path);
	serve(AF_UNIX, &un, sizeof(un));
	/* The other end of a cable. */
	snprintf(un.sun_path, sizeof(un.sun_path), "%s_net", path);
	serve(AF_UNIX, &un, sizeof(un));
	/* A clone's device has another path, and the same server. */
	snprintf(un.sun_path, sizeof(un.sun_path), "%s.clone_1", path);
	serve(AF_UNIX, &un, sizeof(un));
}

/* -- waiting -------------------------------------------------------------- */

static void check_alive(struct guest *g)
{
	struct vm_stopped st;

	if (!vm_next_event(g->vm, &st))
		return;
	printf("keep: %s has ended: %s\n", g->name, st.text);
	exit(1);
}

static bool has_got_on(const struct guest *g, const struct job *before,
		       const char **laggard)
{
	for (unsigned i = 0; i < g->njobs; i++)
		if (g->job[i].done <= before[i].done &&
		    (!resting || !strcmp(g->job[i].name, "timer"))) {
			*laggard = g->job[i].name;
			return false;
		}
	return true;
}

/* n beats more, and every job has done something since now. */
static void wait_beats(struct guest *g, unsigned long n)
{
	long long end = ms(CLOCK_MONOTONIC) + 600000; /* busy test hosts */
	struct job before[MAX_JOBS];
	const char *laggard = "beat";
	unsigned long until;

	pthread_mutex_lock(&g->lock);
	until = g->beats + n;
	memcpy(before, g->job, sizeof(before));
	while (g->beats < until || !has_got_on(g, before, &laggard)) {
		struct timespec ts;

		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_sec++;
		pthread_cond_timedwait(&g->change, &g->lock, &ts);
		check_alive(g);
		if (ms(CLOCK_MONOTONIC) > end) {
			printf("keep: %s is silent: %s\n", g->name, laggard);
			exit(1);
		}
	}
	pthread_mutex_unlock(&g->lock);
}

static void note_jobs(struct guest *g, struct job *to)
{
	pthread_mutex_lock(&g->lock);
	memcpy(to, g->job, sizeof(g->job));
	pthread_mutex_unlock(&g->lock);
}

/* what: of which job nothing had to begin again; NULL: of all. */
static void expect_whole(struct guest *g, const struct job *before,
			 const char *what, const char *when)
{
	pthread_mutex_lock(&g->lock);
	for (unsigned i = 0; i < g->njobs; i++)
		if ((!what || !strcmp(what, g->job[i].name)) &&
		    g->job[i].breaks != before[i].breaks) {
			printf("keep: %s: %s had to begin again\n", when,
			       g->job[i].name);
			exit(1);
		}
	pthread_mutex_unlock(&g->lock);
}

static void start(struct guest *g)
{
	struct husk_error err = { 0 };

	if (vm_start(g->vm, &err))
		die("start", &err);
}

static void type(struct guest *g, const char *word)
{
	size_t n = 0, len = strlen(word);

	for (;;) {
		n += vm_console_write(g->vm, VM_SERIAL, word + n, len - n);
		if (n == len)
			return;
		usleep(1000);
	}
}

static void tell_jobs(struct guest *g, const char *word)
{
	resting = !strcmp(word, "rest\n");
	type(g, word);
	wait_beats(g, 3);
}

/* It did for this long, or perhaps for so much more. */
static void stood(struct guest *g, long long ns, long long more)
{
	if (ns > gap)
		g->still += ns;
	if (ns + more > gap)
		g->unsure += ns > gap ? more : ns + more;
}

static void pauses(struct guest *g, unsigned long n)
{
	struct husk_error err = { 0 };
	struct job before[MAX_JOBS];

	note_jobs(g, before);

	for (unsigned long i = 0; i < n; i++) {
		long long before_it = ns_now(), from, to;

		if (vm_pause(g->vm, &err))
			die("pause", &err);
		from = ns_now();
		to = ns_now();
		if (vm_resume(g->vm, &err))
			die("resume", &err);
		stood(g, to - from, ns_now() - before_it - (to - from));
		usleep((useconds_t)(i % 7) * 700);
	}
	printf("keep: paused %lu times\n", n);
	wait_beats(g, 1);
	expect_whole(g, before, NULL, "pause");
}

static void idle(struct guest *g, unsigned long n)
{
	struct husk_error err = { 0 };
	struct rusage a, b;
	long long before = ns_now(), from, to;
	double used;

	if (vm_pause(g->vm, &err))
		die("pause", &err);
	from = ns_now();
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
	to = ns_now();
	if (vm_resume(g->vm, &err))
		die("resume", &err);
	stood(g, to - from, ns_now() - before - (to - from));
}

static void lives(struct guest *g, unsigned long n)
{
	struct job before[MAX_JOBS];
	struct vm_save_result r;
	struct husk_error err = { 0 };

	note_jobs(g, before);
	for (unsigned long i = 0; i < n; i++) {
		if (vm_save(g->vm, file, NULL, NULL, NULL, &r, &err))
			die("save", &err);
		stood(g, 0, (long long)r.stop_ns);
		printf("keep: saved %llu KiB, stopped for %llu us\n",
		       (unsigned long long)r.bytes >> 10,
		       (unsigned long long)r.stop_ns / 1000);
	}
	wait_beats(g, 1);
	expect_whole(g, before, NULL, "live save");
}

/*
 * sockets: where those of its vsock are now; NULL: where they were.  saved is
 * gone then.
 */
static void take(struct guest *g, struct vm_saved *saved, const char *engine,
		 const char *sockets)
{
	struct husk_error err = { 0 };
	struct vm_saved_info info;
	struct vm_config *cfg;
	long long t = ms(CLOCK_MONOTONIC), from;

	if (vm_saved_config(saved, &cfg, &err))
		die("configuration", &err);
	vm_config_destroy(g->config);
	g->config = cfg;
	vm_config_set_engine(cfg, engine);
	listen_to(g);
	if (sockets && vm_config_vsock_path(cfg))
		vm_config_set_vsock_path(cfg, sockets);
	if (vm_restore(saved, cfg, NULL, &g->vm, &err))
		die("restore", &err);
	vm_saved_info(saved, &info);
	vm_saved_close(saved);
	/* Its time goes on somewhere between these two. */
	from = ns_now();
	start(g);
	g->still = g->still_saved;
	stood(g, from - (long long)info.saved_at, ns_now() - from);
	printf("keep: restored on %s in %lld ms\n", engine,
	       ms(CLOCK_MONOTONIC) - t);
}

static void restore(struct guest *g, const char *engine, const char *sockets)
{
	struct husk_error err = { 0 };
	struct vm_saved *saved;

	if (vm_saved_open(file, &saved, &err))
		die("open", &err);
	take(g, saved, engine, sockets);
}

static void move(struct guest *g, const char *engine, unsigned long n,
		 bool stop, bool compress)
{
	const struct vm_save_options o = { .stop = stop, .compress = compress };
	struct vm_save_result r;
	struct husk_error err = { 0 };
	struct job before[MAX_JOBS];

	for (unsigned long i = 0; i < n; i++) {
		long long t = ms(CLOCK_MONOTONIC);

		note_jobs(g, before);
		g->still_saved = g->still;
		if (vm_save(g->vm, file, &o, NULL, NULL, &r, &err))
			die("save", &err);
		if (!stop)
			stood(g, 0, (long long)r.stop_ns);
		printf("keep: saved %llu KiB in %lld ms\n",
		       (unsigned long long)r.bytes >> 10,
		       ms(CLOCK_MONOTONIC) - t);
		if (!stop)
			wait_beats(g, 2);
		vm_destroy(g->vm);
		/* Counted from an earlier moment. */
		if (!stop) {
			g->hvc = HVC_PART;
			memset(g->job, 0, sizeof(g->job));
			g->len = g->hvc_len = 0;
		}
		restore(g, engine, NULL);
		/* The first beat says how far it had been. */
		if (!stop)
			wait_beats(g, 1);
		wait_beats(g, i + 1 < n ? 1 : 2);
		if (stop)
			expect_whole(g, before, "fs", "save and restore");
	}
}

static void clone_it(struct guest *g, const char *engine)
{
	struct guest two = { .name = "clone",
			     .lock = PTHREAD_MUTEX_INITIALIZER,
			     .change = PTHREAD_COND_INITIALIZER,
			     .hvc = HVC_PART };
	struct vm_save_result r;
	struct husk_error err = { 0 };
	struct job before[MAX_JOBS];
	char sockets[200];

	note_jobs(g, before);
	if (vm_save(g->vm, file, NULL, NULL, NULL, &r, &err))
		die("save", &err);
	two.still_saved = g->still;
	stood(g, 0, (long long)r.stop_ns);
	/* The sockets of its host are beside those of the first. */
	snprintf(sockets, sizeof(sockets), "%s.clone",
		 echo_path ? echo_path : file);
	restore(&two, engine, sockets);
	wait_beats(&two, 2);
	wait_beats(g, 2);
	wait_beats(&two, 2);
	for (unsigned i = 0; i < g->njobs; i++)
		if (!strcmp(g->job[i].name, "tcp") ||
		    !strcmp(g->job[i].name, "vsock"))
			expect_whole(g, before, g->job[i].name, "clone");
	vm_destroy(two.vm);
	vm_config_destroy(two.config);
}

/* In a process of its own, whose threads are its machine's alone. */
static void go_on(struct guest *g, struct vm_saved *image, const char *engine)
{
	struct guest two = { .name = "fork",
			     .lock = PTHREAD_MUTEX_INITIALIZER,
			     .change = PTHREAD_COND_INITIALIZER,
			     .still_saved = g->still,
			     .hvc = HVC_PART };
	char sockets[200];

	snprintf(sockets, sizeof(sockets), "%s.clone",
		 echo_path ? echo_path : file);
	take(&two, image, engine, sockets);
	wait_beats(&two, 4);
	vm_destroy(two.vm);
	fflush(stdout);
	_exit(0);
}

static void fork_it(struct guest *g, const char *engine)
{
	struct vm_save_result r = { 0 };
	struct husk_error err = { 0 };
	struct job before[MAX_JOBS];
	struct vm_saved *image;
	int status;
	pid_t pid;

	note_jobs(g, before);
	fflush(stdout);
	pid = vm_fork(g->vm, NULL, -1, &image, &r, &err);
	if (!pid)
		go_on(g, image, engine);
	if (pid < 0)
		die("fork", &err);
	stood(g, (long long)r.stop_ns, 0);
	printf("keep: split, stopped for %llu us\n",
	       (unsigned long long)r.stop_ns / 1000);
	wait_beats(g, 2);
	if (waitpid(pid, &status, 0) != pid || status)
		die("the other process", NULL);
	wait_beats(g, 2);
	for (unsigned i = 0; i < g->njobs; i++)
		if (!strcmp(g->job[i].name, "tcp") ||
		    !strcmp(g->job[i].name, "vsock"))
			expect_whole(g, before, g->job[i].name, "fork");
}

/* -- the balloon ---------------------------------------------------------- */

static struct vm_balloon_stats balloon_stats(struct guest *g)
{
	struct vm_balloon_stats s = { 0 };
	int ret = vm_balloon_stats(g->vm, 60000, &s);

	if (ret || !s.has_guest)
		die("the balloon gives no statistics", NULL);
	return s;
}

static void balloon_to(struct guest *g, uint64_t bytes)
{
	if (vm_balloon_set_target(g->vm, bytes))
		die("balloon", NULL);
	while (balloon_stats(g).actual != bytes) {
		check_alive(g);
		usleep(20000);
	}
}

static uint64_t resident(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%*u %lu", &pages) != 1)
		die("/proc/self/statm", NULL);
	fclose(f);
	return pages * 4096ull;
}

static void balloon(struct guest *g, uint64_t bytes)
{
	uint64_t all = vm_config_memory(g->config);
	struct vm_balloon_stats s = balloon_stats(g), now;
	uint64_t without;

	if (s.actual != all)
		die("the balloon has memory", NULL);
	balloon_to(g, all - bytes);
	now = balloon_stats(g);
	if (now.inflated - s.inflated < bytes)
		die("the balloon has not given all to the host", NULL);
	without = resident();
	balloon_to(g, all);
	/*
	 * What it took back it will not use: it never comes, or reports say so
	 * before long.
	 */
	for (now = s; now.reported == s.reported && now.hinted == s.hinted &&
		      resident() > without + bytes / 4;
	     now = balloon_stats(g)) {
		check_alive(g);
		usleep(100000);
	}
	printf("keep: %llu MiB went and came\n",
	       (unsigned long long)bytes >> 20);
}

/*
 * The guest's clock was looked at after the question and before the answer was
 * heard, so each exchange says a span; all of them are true.  On a busy host it
 * takes some until one was quick.
 */
static struct span behind(struct guest *g)
{
	struct span s = { LLONG_MIN, LLONG_MAX };

	long long end = ms(CLOCK_MONOTONIC) + 60000;

	for (unsigned i = 0; ms(CLOCK_MONOTONIC) < end; i++) {
		unsigned long times = g->times;
		long long asked = ns_now();

		if (i >= 5 && s.most - s.least < 20000000)
			break;
		type(g, "time\n");
		pthread_mutex_lock(&g->lock);
		while (g->times == times) {
			struct timespec ts;

			clock_gettime(CLOCK_REALTIME, &ts);
			ts.tv_sec++;
			pthread_cond_timedwait(&g->change, &g->lock, &ts);
			check_alive(g);
		}
		s.least = MAX(s.least, asked - g->time);
		s.most = MIN(s.most, g->heard_at - g->time);
		pthread_mutex_unlock(&g->lock);
		usleep(5000);
	}
	return s;
}

static void drift(struct guest *g, long long limit)
{
	struct span now = behind(g);
	long long least = (now.least - g->at_boot.most - g->still) / 1000000;
	long long most = (now.most - g->at_boot.least - g->still) / 1000000;
	long long unsure = g->unsure / 1000000;

	printf("keep: stood still for %lld ms and up to %lld more, and the "
	       "clock is behind by %lld to %lld ms more\n",
	       g->still / 1000000, unsure, least, most);
	/* Where every exchange is slow less is known, and that is no fault. */
	if (least > limit + unsure || most < -limit ||
	    (most - least < 45 && (most > limit + unsure || least < -limit)))
		die("the guest's wall clock", NULL);
}

static void step(struct guest *g, const char *s)
{
	const char *colon = s ? strchr(s, ':') : NULL;
	unsigned long n = colon ? strtoul(colon + 1, NULL, 10) : 0;

	printf("keep: %s\n", s ? s : "");
	if (!colon)
		die("step", NULL);
	if (!strncmp(s, "beat:", 5))
		wait_beats(g, n);
	else if (!strncmp(s, "jobs:", 5))
		tell_jobs(g, !strcmp(colon, ":rest") ? "rest\n" : "run\n");
	else if (!strncmp(s, "pause:", 6))
		pauses(g, n);
	else if (!strncmp(s, "idle:", 5))
		idle(g, n);
	else if (!strncmp(s, "live:", 5))
		lives(g, n);
	else if (!strncmp(s, "move:", 5))
		move(g, colon + 1, 1, true, false);
	else if (!strncmp(s, "packed:", 7))
		move(g, colon + 1, 1, true, true);
	else if (!strncmp(s, "back:", 5))
		move(g, colon + 1, 1, false, false);
	else if (!strncmp(s, "clone:", 6))
		clone_it(g, colon + 1);
	else if (!strncmp(s, "fork:", 5))
		fork_it(g, colon + 1);
	else if (!strncmp(s, "balloon:", 8))
		balloon(g, (uint64_t)n << 20);
	else if (!strncmp(s, "drift:", 6))
		drift(g, (long long)n);
	else
		move(g, colon + 1, strtoul(s, NULL, 10), true, false);
}

static void option(int c, struct husk_error *err)
{
	int ret = 0;

	switch (c) {
	case 'g':
		ret = vm_config_set_gap(one.config,
					(unsigned)strtoul(optarg, NULL, 10));
		break;
	case 'c':
		vm_config_set_cpus(one.config,
				   (unsigned)strtoul(optarg, NULL, 10));
		break;
	case 'm':
		vm_config_set_memory(one.config, strtoull(optarg, NULL, 10)
							 << 20);
		break;
	case 'd': ret = vm_config_add_disk_spec(one.config, optarg, err); break;
	case 'n': ret = vm_config_add_net(one.config, optarg, err); break;
	case 'D': ret = vm_config_add_device(one.config, optarg, err); break;
	case 'v': ret = vm_config_add_vsock(one.config, optarg, err); break;
	case 's': ret = vm_config_add_share(one.config, optarg, err); break;
	case 'E': echo_path = optarg; break;
	case 'e': vm_config_set_engine(one.config, optarg); break;
	case 'a': snprintf(cmdline, sizeof(cmdline), "%s", optarg); break;
	case 'f': file = optarg; break;
	default: exit(2);
	}
	if (ret)
		die(optarg, err);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "cpus", 1, NULL, 'c' },
		{ "memory", 1, NULL, 'm' },
		{ "disk", 1, NULL, 'd' },
		{ "net", 1, NULL, 'n' },
		{ "device", 1, NULL, 'D' },
		{ "vsock", 1, NULL, 'v' },
		{ "engine", 1, NULL, 'e' },
		{ "cmdline", 1, NULL, 'a' },
		{ "file", 1, NULL, 'f' },
		{ "share", 1, NULL, 's' },
		{ "echo", 1, NULL, 'E' },
		{ "gap", 1, NULL, 'g' },
		{ 0 },
	};
	struct husk_error err = { 0 };
	int c;

	setvbuf(stdout, NULL, _IOLBF, 0);
	one.config = vm_config_create();
	vm_config_set_engine(one.config, "soft");
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1)
		option(c, &err);
	if (argc - optind < 2)
		return 2;
	vm_config_set_kernel(one.config, argv[optind++]);
	vm_config_set_initrd(one.config, argv[optind++]);
	gap = vm_config_gap(one.config) * 1000000000ll;
	if (echo_path)
		serve_all(echo_path);
	vm_config_set_cmdline(one.config, cmdline);
	listen_to(&one);
	if (vm_create(one.config, &one.vm, &err))
		die("create", &err);
	start(&one);
	wait_beats(&one, 2);
	one.at_boot = behind(&one);
	for (; optind < argc; optind++)
		step(&one, argv[optind]);
	vm_destroy(one.vm);
	vm_config_destroy(one.config);
	printf("keep: well\n");
	return 0;
}
