/* SPDX-License-Identifier: Apache-2.0 */
/*
 * balloon.c - does memory that a guest frees come back to the host?
 *
 * balloon DEMO [MEMORY USED LEFT]   (MiB; default 512 256 100)
 *
 * The demo guest writes USED MiB and frees them.  Without a command, this
 * process is to be within LEFT MiB of what it was before.  Then the guest is
 * asked for memory by the balloon, and for its statistics; and it takes back
 * what it needs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "api.h"

/* MiB of this process, which is little but the guest. */
static long rss(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	char text[128], *end;
	long pages;

	if (!f || !fgets(text, sizeof(text), f))
		fail("no /proc/self/statm");
	fclose(f);
	strtol(text, &end, 10); /* all that is mapped */
	pages = strtol(end, NULL, 10);
	return pages * sysconf(_SC_PAGESIZE) >> 20;
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
	if (has_said("OLD"))
		skip("an old demo guest: tools/make-demo");
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

/* The balloon has what the guest is about to need. */
static void gives_way(struct vm *vm, uint64_t memory, long used)
{
	uint64_t target = memory - ((uint64_t)used << 20);
	double end = now() + TIMEOUT;
	struct vm_balloon_stats s;

	vm_balloon_set_target(vm, target);
	for (s = ask(vm); s.actual != target; s = ask(vm)) {
		if (now() > end)
			fail("the balloon does not inflate");
		usleep(50000);
	}
	type(vm, "more\n");
	wait_for("FULL");
	s = ask(vm);
	if (has_said("Out of memory") || has_said("NO SPACE"))
		fail("the guest has killed for what the balloon has");
	if (s.actual <= target)
		fail("the balloon has not given way");
	printf("asked for %llu MiB, and full of %ld it has %llu\n",
	       (unsigned long long)target >> 20, used,
	       (unsigned long long)s.actual >> 20);
	vm_balloon_set_target(vm, memory);
}

static void run(const struct vm_config *cfg, long used, long left)
{
	struct vm *vm = start(cfg);

	comes_back(vm, used, left);
	deflates(vm, vm_config_memory(cfg));
	gives_way(vm, vm_config_memory(cfg), used);
	/* All of it works after that, and what was code is not run again. */
	type(vm, "end\n");
	if (wait_end(vm) != VM_STOP_POWEROFF || !has_said("SAME"))
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
	setup(cfg, argv[1]);
	snprintf(text, sizeof(text),
		 "console=ttyS0 quiet husk.run=\""
		 "mkdir /t; mount -t tmpfs -o size=95%% t /t;"
		 "fill() { dd if=/dev/zero of=/t/f bs=1M count=%ld; };"
		 "sum() { cat /bin/busybox /m/* | md5sum | cut -c1-32; };"
		 "sum=$(sum);"
		 "[ -e /m/virtio_balloon.ko ] || echo OLD; echo READY; read a;"
		 "fill; sync; echo USED; sleep 1; rm /t/f; echo FREED; read a;"
		 "fill || echo NO SPACE; echo FULL; rm /t/f; read a;"
		 "[ $sum != $(sum) ] || echo SAME;"
		 "poweroff -f\"",
		 used);
	vm_config_set_cmdline(cfg, text);
	vm_config_set_memory(cfg, (uint64_t)memory << 20);
	run(cfg, used, left);
	vm_config_destroy(cfg);
	puts("ok");
	return 0;
}
