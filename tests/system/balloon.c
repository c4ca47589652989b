/* SPDX-License-Identifier: Apache-2.0 */
/*
 * balloon.c - does memory that a guest frees come back to the host?
 *
 * balloon DEMO [MEMORY USED LEFT]   (MiB; default 512 256 100)
 *
 * The demo guest writes USED MiB and frees them.  Without a command, this
 * process is to be within LEFT MiB of what it was before.  Then the guest is
 * asked for memory by the balloon, and for its statistics.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "husk/vm.h"

enum { TIMEOUT = 300 }; /* seconds that nothing here takes */

static char said[1 << 16];
static size_t said_len;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void output(void *opaque, const void *data, size_t len)
{
	pthread_mutex_lock(&lock);
	if (len > sizeof(said) - 1 - said_len)
		len = sizeof(said) - 1 - said_len;
	memcpy(said + said_len, data, len);
	said_len += len;
	pthread_mutex_unlock(&lock);
}

static void complain(void *opaque, const char *text)
{
}

static bool has_said(const char *text)
{
	bool found;

	pthread_mutex_lock(&lock);
	found = strstr(said, text);
	pthread_mutex_unlock(&lock);
	return found;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	printf("FAIL: %s\n%s\n", what, said);
	fflush(stdout);
	_exit(1);
}

static void wait_for(const char *text)
{
	double end = now() + TIMEOUT;

	while (!has_said(text)) {
		if (now() > end)
			fail(text);
		usleep(20000);
	}
}

/* MiB of this process, which is little but the guest. */
static long rss(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long size, pages;

	if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2)
		fail("no /proc/self/statm");
	fclose(f);
	return pages * sysconf(_SC_PAGESIZE) >> 20;
}

static void type(struct vm *vm, const char *text)
{
	for (size_t n = strlen(text); n; usleep(10000)) {
		size_t done = vm_console_write(vm, VM_SERIAL, text, n);

		text += done;
		n -= done;
	}
}

static struct vm_balloon_stats ask(struct vm *vm)
{
	struct vm_balloon_stats s;

	if (vm_balloon_stats(vm, TIMEOUT * 1000, &s))
		fail("the guest gives no statistics");
	return s;
}

static void comes_back(struct vm *vm, long used, long left)
{
	struct vm_balloon_stats s;
	long before, top;
	double start;

	wait_for("READY");
	if (has_said("OLD")) {
		puts("SKIP: an old demo guest: tools/make-demo");
		fflush(stdout);
		_exit(77);
	}
	sleep(1);
	before = rss();
	type(vm, "go\n");
	wait_for("USED");
	top = rss();
	if (top < before + used * 3 / 4)
		printf("%ld then %ld MiB\n", before, top),
			fail("the guest has not used what it should");
	wait_for("FREED");
	start = now();
	while (rss() > before + left) {
		if (now() > start + TIMEOUT)
			fail("the memory does not come back");
		usleep(100000);
	}
	printf("%ld MiB, with %ld MiB in use %ld, within %ld after %.1f s\n",
	       before, used, top, left, now() - start);
	s = ask(vm);
	printf("reported %llu, hinted %llu MiB in %llu rounds\n",
	       (unsigned long long)s.reported >> 20,
	       (unsigned long long)s.hinted >> 20,
	       (unsigned long long)s.rounds);
	if (!s.reported || !s.rounds)
		fail("neither reports nor hints");
}

static void deflates(struct vm *vm, uint64_t memory)
{
	uint64_t target = memory - (96 << 20);
	struct vm_balloon_stats s = ask(vm), with;
	double end = now() + TIMEOUT;

	if (s.total > memory || s.free > s.total || s.total < memory / 2)
		fail("strange statistics");
	if (vm_balloon_set_target(vm, memory + 1) == 0)
		fail("more memory than there is");
	vm_balloon_set_target(vm, target);
	while (s.actual != target) {
		if (now() > end)
			fail("the balloon does not inflate");
		usleep(50000);
		s = ask(vm);
	}
	with = ask(vm);
	vm_balloon_set_target(vm, memory);
	/* A round of hints takes all free memory for a moment; a part of what
	 * is freed waits in lists of the CPU. */
	while (s.actual != memory || s.free < with.free + (32 << 20)) {
		if (now() > end)
			fail("the balloon does not deflate");
		usleep(50000);
		s = ask(vm);
	}
	printf("balloon of 96 MiB: free %llu, then %llu MiB\n",
	       (unsigned long long)with.free >> 20,
	       (unsigned long long)s.free >> 20);
}

static void run(const struct vm_config *cfg, long used, long left)
{
	struct husk_error err = { 0 };
	struct vm_stopped st;
	struct vm *vm;

	if (vm_create(cfg, &vm, &err) || vm_start(vm, &err))
		fail(err.text);
	comes_back(vm, used, left);
	deflates(vm, vm_config_memory(cfg));
	/* All of it works after that, and what was code is not run again. */
	type(vm, "end\n");
	if (vm_wait(vm, TIMEOUT * 1000, &st) || st.reason != VM_STOP_POWEROFF ||
	    !has_said("SAME"))
		fail("the guest does not end well");
	vm_destroy(vm);
}

int main(int argc, char **argv)
{
	long memory = argc > 2 ? strtol(argv[2], NULL, 10) : 512;
	long used = argc > 3 ? strtol(argv[3], NULL, 10) : 256;
	long left = argc > 4 ? strtol(argv[4], NULL, 10) : 100;
	struct vm_config *cfg = vm_config_create();
	char text[512];

	if (!cfg || argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(text, sizeof(text), "%s/vmlinuz", argv[1]);
	vm_config_set_kernel(cfg, text);
	if (access(text, R_OK)) {
		puts("SKIP: no demo guest: ./dev run makes one");
		return 77;
	}
	snprintf(text, sizeof(text), "%s/initrd", argv[1]);
	vm_config_set_initrd(cfg, text);
	vm_config_set_engine(cfg, "soft");
	snprintf(text, sizeof(text),
		 "console=ttyS0 quiet husk.run=\""
		 "mkdir /t; mount -t tmpfs -o size=95%% t /t;"
		 "fill() { dd if=/dev/zero of=/t/f bs=1M count=%ld; };"
		 "sum() { cat /bin/busybox /m/* | md5sum | cut -c1-32; };"
		 "sum=$(sum);"
		 "[ -e /m/virtio_balloon.ko ] || echo OLD; echo READY; read a;"
		 "fill; sync; echo USED; sleep 1; rm /t/f; echo FREED; read a;"
		 "fill; rm /t/f;"
		 "[ $sum != $(sum) ] || echo SAME;"
		 "poweroff -f\"",
		 used);
	vm_config_set_cmdline(cfg, text);
	vm_config_set_memory(cfg, (uint64_t)memory << 20);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	vm_config_set_log(cfg, complain, NULL);
	if (vm_config_validate(cfg, complain, NULL))
		return 2;
	run(cfg, used, left);
	vm_config_destroy(cfg);
	puts("ok");
	return 0;
}
