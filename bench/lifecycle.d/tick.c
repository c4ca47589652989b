/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tick.c - the guest's only program: some memory in use, and signs of life
 *
 * As /init, with tick.fill=MIB (of memory that does not compress) and
 * tick.idle on the kernel's command line.  Lines go straight to the UART, so
 * that the first one after a restore is a matter of microseconds: every
 * 100 us or, idle, three times a second.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

static void say(const char *text)
{
	for (; *text; text++) {
		while (!(inb(0x3fd) & 0x20)) {
		}
		outb((unsigned char)*text, 0x3f8);
	}
}

static uint64_t fill(size_t bytes)
{
	uint64_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t x = 88172645463325252ull;

	if (p == MAP_FAILED)
		return 0;
	for (size_t i = 0; i < bytes / 8; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = x;
	}
	return x;
}

static void wait_a_little(int idle)
{
	struct timespec a, b;

	if (idle) {
		usleep(333000);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &a);
	do
		clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000000000l + b.tv_nsec - a.tv_nsec <
	       100000);
}

int main(void)
{
	char words[4096] = "", *p;
	int fd, idle;

	mount("proc", "/proc", "proc", 0, NULL);
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, words, sizeof(words) - 1) < 0 || iopl(3))
		return 1;
	idle = !!strstr(words, "tick.idle");
	p = strstr(words, "tick.fill=");
	if (p && !fill(strtoul(p + 10, NULL, 10) << 20))
		say("no memory\n");
	for (unsigned long n = 0;; n++) {
		char line[32];

		snprintf(line, sizeof(line), "T%lu\n", n);
		say(line);
		wait_a_little(idle);
	}
}
