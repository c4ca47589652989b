/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - runs workloads: as /init of a guest, or on the bare host
 *
 *   runner SCALE NAME...     on a host; the directory is for scratch files
 *   runner --list            names of all workloads
 *
 * As process 1 it takes the same words from the kernel's command line, as
 * bench.scale=S and bench.run=NAME,..., and powers off at the end (or waits,
 * with bench.stay=1).  What it says to the driver outside:
 *
 *   @init UPTIME             user space lives
 *   @begin NAME
 *   @end NAME CPU WALL CHECK nanoseconds by its own clocks, and the value
 *   @fail NAME REASON
 *   @done
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const struct workload *const groups[] = {
	integer_group, float_group,  app_group,
	memory_group,  system_group, code_group,
};

static const char *running = "";
static unsigned cpus = 1; /* each workload so many times at once */

/* The driver reads its clocks when a line arrives: it must not linger. */
static void flush(void)
{
	fflush(stdout);
	if (isatty(1))
		tcdrain(1);
}

void fail(const char *reason)
{
	printf("@fail %s %s\n", running, reason);
	flush();
	_exit(1);
}

void *get_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fail("not enough memory");
	return p;
}

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 2685821657736338717u >> 8;
}

uint64_t hash(uint64_t h, const void *data, size_t len)
{
	const uint8_t *p = data;

	h ^= 14695981039346656037u;
	while (len--)
		h = (h ^ *p++) * 1099511628211u;
	return h;
}

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint64_t cpu_ns(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 2; i++) {
		struct rusage u;

		getrusage(i ? RUSAGE_CHILDREN : RUSAGE_SELF, &u);
		sum += (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) *
		       1000000000;
		sum += (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) *
		       1000;
	}
	return sum;
}

static const struct workload *find(const char *name)
{
	for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
		for (const struct workload *w = groups[g]; w->name; w++)
			if (!strcmp(w->name, name))
				return w;
	return NULL;
}

static uint64_t work_of(const struct workload *w, double scale)
{
	uint64_t n = (uint64_t)((double)w->n * scale);

	return n ? n : 1;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* In a process of its own: its faults and its memory end with it. */
static void run_one(const struct workload *w, double scale)
{
	uint64_t n = work_of(w, scale), cpu, wall, check;

	/* A guest has one vCPU; the host's part of the race gets one CPU. */
	stay_on(sched_getcpu());
	if (w->setup)
		w->setup(n);
	printf("@begin %s\n", w->name);
	flush();
	cpu = cpu_ns();
	wall = wall_ns();
	check = w->run(n);
	wall = wall_ns() - wall;
	cpu = cpu_ns() - cpu;
	printf("@end %s %llu %llu %016llx\n", w->name, (unsigned long long)cpu,
	       (unsigned long long)wall, (unsigned long long)check);
	flush();
	_exit(0);
}

/* One of several: says that it is ready, and does the work when all are. */
static void take_part(const struct workload *w, double scale, int cpu, int said,
		      int go)
{
	uint64_t n = work_of(w, scale), check = 0;
	char dir[32];

	stay_on(cpu);
	snprintf(dir, sizeof(dir), "cpu%d", cpu);
	if ((mkdir(dir, 0755) && errno != EEXIST) || chdir(dir))
		fail("no scratch directory");
	if (w->setup)
		w->setup(n);
	if (write(said, &check, sizeof(check)) < 0 ||
	    read(go, &check, sizeof(check)) < 0)
		fail("no way to start");
	check = w->run(n);
	_exit(write(said, &check, sizeof(check)) < 0);
}

static bool hear(int said, uint64_t *check)
{
	return read(said, check, sizeof(*check)) == sizeof(*check);
}

static void run_all(const struct workload *w, double scale)
{
	uint64_t cpu, wall, check = 0, other;
	int said[2], go[2];
	bool ok = !pipe(said) && !pipe(go);

	for (unsigned i = 0; ok && i < cpus; i++) {
		if (!fork()) {
			close(said[0]);
			close(go[1]);
			take_part(w, scale, (int)i, said[1], go[0]);
		}
	}
	close(said[1]);
	for (unsigned i = 0; ok && i < cpus; i++)
		ok = hear(said[0], &check);
	printf("@begin %s\n", w->name);
	flush();
	cpu = cpu_ns();
	wall = wall_ns();
	close(go[1]);
	for (unsigned i = 0; ok && i < cpus; i++) {
		ok = hear(said[0], &other) && (!i || other == check);
		check = other;
	}
	wall = wall_ns() - wall;
	while (wait(NULL) > 0)
		;
	cpu = cpu_ns() - cpu;
	if (!ok)
		fail("one of them failed or has another value");
	printf("@end %s %llu %llu %016llx\n", w->name, (unsigned long long)cpu,
	       (unsigned long long)wall, (unsigned long long)check);
	flush();
	_exit(0);
}

static void run(const char *name, double scale)
{
	const struct workload *w = find(name);
	int status;
	pid_t pid;

	running = name;
	if (!w) {
		printf("@fail %s no such workload\n", name);
		return;
	}
	fflush(stdout);
	pid = fork();
	if (!pid && cpus > 1)
		run_all(w, scale);
	if (!pid)
		run_one(w, scale);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		printf("@fail %s fork failed\n", name);
	else if (WIFSIGNALED(status))
		printf("@fail %s died by signal %d\n", name, WTERMSIG(status));
	flush();
}

/* -- process 1 ------------------------------------------------------------ */

static char *word_of(char *cmdline, const char *key)
{
	char *at = strstr(cmdline, key);

	if (!at)
		return NULL;
	at += strlen(key);
	at[strcspn(at, " \n")] = 0;
	return at;
}

/* By the kernel's console, which polls: some machines' serial port has no
 * interrupt that reaches Linux. */
static void announce(const char *what, const char *value)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || dprintf(fd, "<1>@%s %s\n", what, value) < 0) {
		printf("@%s %s\n", what, value);
		flush();
	}
	if (fd >= 0)
		close(fd);
}

_Noreturn static void be_init(void)
{
	static char cmdline[4096], copy[4096];
	char up[32] = "0", *names, *scale, *count;
	FILE *f;

	mount("d", "/dev", "devtmpfs", 0, NULL);
	mount("p", "/proc", "proc", 0, NULL);
	f = fopen("/proc/uptime", "r");
	if (!f || fscanf(f, "%31s", up) != 1)
		up[0] = 0;
	announce("init", up);
	mount("s", "/sys", "sysfs", 0, NULL);
	mount("t", "/tmp", "tmpfs", 0, NULL);
	if (chdir("/tmp"))
		perror("/tmp");
	setenv("PATH", "/usr/bin", 1);
	setenv("BENCH", "/bench", 1);
	f = fopen("/proc/cmdline", "r");
	if (f && !fgets(cmdline, sizeof(cmdline), f))
		cmdline[0] = 0;
	count = strstr(cmdline, "bench.cpus=");
	if (count)
		cpus = (unsigned)strtoul(count + strlen("bench.cpus="), NULL,
					 10);
	memcpy(copy, cmdline, sizeof(copy));
	names = word_of(cmdline, "bench.run=");
	scale = word_of(copy, "bench.scale=");
	for (char *n = names ? strtok(names, ",") : NULL; n;
	     n = strtok(NULL, ","))
		run(n, scale ? strtod(scale, NULL) : 1);
	announce("done", "");
	if (strstr(copy, "bench.stay="))
		pause();
	reboot(strstr(copy, "reboot=t") ? RB_AUTOBOOT : RB_POWER_OFF);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--true"))
		return 5;
	if (getenv("CPUS"))
		cpus = (unsigned)strtoul(getenv("CPUS"), NULL, 10);
	setenv("LC_ALL", "C", 1);
	setenv("OPENSSL_CONF", "/dev/null", 1);
	if (getpid() == 1)
		be_init();
	if (argc > 1 && !strcmp(argv[1], "--list")) {
		for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
			for (const struct workload *w = groups[g]; w->name; w++)
				puts(w->name);
		return 0;
	}
	if (argc < 3) {
		fputs("usage: runner SCALE NAME... | runner --list\n", stderr);
		return 2;
	}
	for (int i = 2; i < argc; i++)
		run(argv[i], strtod(argv[1], NULL));
	puts("@done");
	return 0;
}
