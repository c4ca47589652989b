/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keeper.c - runs in a guest that is stopped and moved, and checks that it
 * cannot tell: memory, disk, timers and clocks
 *
 *   keeper MIB [DISK [DISK-MIB]]
 *
 * Prints "beat N MONOTONIC REALTIME" (ms) about five times a second, and
 * "BAD why" when something is not as it has to be.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong rounds, blocks, ticks;
static _Atomic uint64_t latest;

static void bad(const char *what, uint64_t a, uint64_t b)
{
	printf("BAD %s: %llx %llx\n", what, (unsigned long long)a,
	       (unsigned long long)b);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 29;
	return x * 0xc4ceb9fe1a85ec53ull;
}

/* Each word says where it is and in which round it was written. */
static void *memory(void *arg)
{
	size_t n = (size_t)(uintptr_t)arg << 17;
	uint64_t *p = mmap(NULL, n * 8, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < n; i++)
		p[i] = mix(i);
	for (uint64_t r = 0;; r++) {
		for (size_t i = 0; i < n; i++) {
			if (p[i] != mix(i + (r << 40)))
				bad("memory", i, p[i]);
			p[i] = mix(i + ((r + 1) << 40));
		}
		rounds++;
	}
}

static void *disk(void *arg)
{
	const char *const *words = arg;
	uint64_t n = (words[1] ? strtoull(words[1], NULL, 10) : 8) << 4;
	int fd = open(words[0], O_RDWR | O_DIRECT);
	uint64_t *buf, *last = calloc(n, 8);

	if (fd < 0 || posix_memalign((void **)&buf, 4096, 65536) || !last) {
		bad("no disk", (uint64_t)errno, 0);
		free(last);
		return NULL;
	}
	for (uint64_t turn = 1;; turn++) {
		uint64_t at = mix(turn) % n, other = mix(turn + 77) % n;

		for (unsigned i = 0; i < 8192; i++)
			buf[i] = mix(turn * 8192 + i);
		if (pwrite(fd, buf, 65536, (off_t)(at << 16)) != 65536)
			bad("write", at, (uint64_t)errno);
		last[at] = turn;
		if (turn % 16 == 0 && fdatasync(fd))
			bad("sync", turn, (uint64_t)errno);
		if (!last[other])
			continue;
		if (pread(fd, buf, 65536, (off_t)(other << 16)) != 65536)
			bad("read", other, (uint64_t)errno);
		for (unsigned i = 0; i < 8192; i++)
			if (buf[i] != mix(last[other] * 8192 + i)) {
				bad("disk", other, i);
				break;
			}
		blocks++;
	}
}

/* What one CPU has read another one must not read as earlier. */
static void *clocks(void *arg)
{
	uint64_t seen, now;

	for (;;) {
		for (unsigned i = 0; i < 2000; i++) {
			seen = latest;
			now = clock_ns(CLOCK_MONOTONIC);
			if (now < seen)
				bad("clock went back", seen, now);
			while (seen < now && !atomic_compare_exchange_weak(
						     &latest, &seen, now)) {
			}
		}
		usleep(2000);
	}
	return NULL;
}

/* All expirations of a timer are counted: none is lost, none comes early. */
static void *timers(void *arg)
{
	enum { PERIOD = 5000000 };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t start = clock_ns(CLOCK_MONOTONIC) + PERIOD, n, sum = 0;
	struct itimerspec its = { .it_interval.tv_nsec = PERIOD };

	its.it_value.tv_sec = (time_t)(start / 1000000000);
	its.it_value.tv_nsec = (long)(start % 1000000000);
	timerfd_settime(fd, TFD_TIMER_ABSTIME, &its, NULL);
	for (;;) {
		uint64_t now, due;

		if (read(fd, &n, sizeof(n)) != sizeof(n))
			continue;
		sum += n;
		now = clock_ns(CLOCK_MONOTONIC);
		due = start + (sum - 1) * PERIOD;
		if (now < due)
			bad("timer came early", due, now);
		ticks = sum;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_create(&t, NULL, memory,
		       (void *)(uintptr_t)strtoul(argv[1], NULL, 10));
	if (argc > 2)
		pthread_create(&t, NULL, disk, argv + 2);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t, NULL, clocks, NULL);
	pthread_create(&t, NULL, timers, NULL);
	for (unsigned long beat = 0;; beat++) {
		printf("beat %lu %llu %llu mem %lu disk %lu timer %lu\n", beat,
		       (unsigned long long)clock_ns(CLOCK_MONOTONIC) / 1000000,
		       (unsigned long long)clock_ns(CLOCK_REALTIME) / 1000000,
		       rounds, blocks, ticks);
		usleep(200000);
	}
}
