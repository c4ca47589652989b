/* SPDX-License-Identifier: Apache-2.0 */
/*
 * system.c - system calls, processes, signals, page faults and files
 */
#include "bench.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t getppid_(uint64_t n)
{
	uint64_t calls = 0;

	while (n--)
		calls += syscall(SYS_getppid) >= 0;
	return calls;
}

static uint64_t clock_(uint64_t n)
{
	struct timespec ts, last = { 0 };
	uint64_t back = 0;

	while (n--) {
		clock_gettime(CLOCK_MONOTONIC, &ts);
		back += ts.tv_sec < last.tv_sec ||
			(ts.tv_sec == last.tv_sec && ts.tv_nsec < last.tv_nsec);
		last = ts;
	}
	return back;
}

static uint64_t children(uint64_t n, bool exec)
{
	uint64_t sum = 0;

	while (n--) {
		pid_t pid = fork();
		int status;

		if (pid < 0)
			fail("fork failed");
		if (!pid && exec) {
			execl("/proc/self/exe", "true", "--true", NULL);
			_exit(99);
		}
		if (!pid)
			_exit((int)(n & 63));
		if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
			fail("a child process did not end as it should");
		sum += (uint64_t)WEXITSTATUS(status);
	}
	return sum;
}

static uint64_t fork_(uint64_t n)
{
	return children(n, false);
}

static uint64_t fork_exec(uint64_t n)
{
	return children(n, true);
}

static uint64_t pipe_(uint64_t n)
{
	int there[2], back[2];
	uint64_t v = 0;
	pid_t pid;

	if (pipe(there) || pipe(back))
		fail("pipe failed");
	pid = fork();
	if (pid < 0)
		fail("fork failed");
	if (!pid) {
		close(there[1]);
		while (read(there[0], &v, sizeof(v)) == sizeof(v)) {
			v++;
			if (write(back[1], &v, sizeof(v)) != sizeof(v))
				break;
		}
		_exit(0);
	}
	while (n--)
		if (write(there[1], &v, sizeof(v)) != sizeof(v) ||
		    read(back[0], &v, sizeof(v)) != sizeof(v))
			fail("the pipe broke");
	close(there[1]);
	waitpid(pid, NULL, 0);
	return v;
}

/* -- two threads and a futex ---------------------------------------------- */

static _Atomic uint32_t turn;

static void futex(int op, uint32_t value)
{
	syscall(SYS_futex, &turn, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL,
		0);
}

static void take_turns(uint64_t n, uint32_t mine)
{
	while (n--) {
		uint32_t now;

		while (((now = turn) & 1) != mine)
			futex(FUTEX_WAIT, now);
		turn = now + 1;
		futex(FUTEX_WAKE, 1);
	}
}

static void *other_thread(void *n)
{
	take_turns((uint64_t)n, 1);
	return NULL;
}

static uint64_t futex_(uint64_t n)
{
	pthread_t t;

	if (pthread_create(&t, NULL, other_thread, (void *)n))
		fail("no thread");
	take_turns(n, 0);
	pthread_join(t, NULL);
	return turn;
}

static void *nothing(void *arg)
{
	return arg;
}

static uint64_t thread(uint64_t n)
{
	uint64_t sum = 0;

	while (n--) {
		pthread_t t;
		void *ret;

		if (pthread_create(&t, NULL, nothing, (void *)n))
			fail("no thread");
		pthread_join(t, &ret);
		sum += (uint64_t)ret;
	}
	return sum;
}

/* -- pages and signals ---------------------------------------------------- */

static uint64_t touch(uint64_t n)
{
	enum { SIZE = 4 << 20 };
	uint64_t sum = 0;

	while (n--) {
		uint8_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			fail("mmap failed");
		/* Small pages, whatever the host's policy is. */
		madvise(p, SIZE, MADV_NOHUGEPAGE);
		for (int i = 0; i < SIZE; i += 4096)
			sum += ++p[i];
		munmap(p, SIZE);
	}
	return sum;
}

static sigjmp_buf escape;

static void on_fault(int sig)
{
	siglongjmp(escape, 1);
}

static uint64_t segv(uint64_t n)
{
	volatile uint64_t caught = 0;
	volatile uint8_t *p =
		mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	signal(SIGSEGV, on_fault);
	for (volatile uint64_t i = 0; i < n; i++) {
		if (sigsetjmp(escape, 1))
			caught++;
		else
			*p = 1;
	}
	return caught;
}

/* -- files ---------------------------------------------------------------- */

static uint64_t create(uint64_t n)
{
	uint64_t sum = 0;
	char name[32], data[1000];

	memset(data, 'x', sizeof(data));
	while (n--) {
		int fd;

		snprintf(name, sizeof(name), "file%u", (unsigned)(n % 100));
		fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
		if (fd < 0)
			fail("cannot create a file");
		sum += (uint64_t)write(fd, data, sizeof(data));
		sum += (uint64_t)lseek(fd, 0, SEEK_END);
		close(fd);
		unlink(name);
	}
	return sum;
}

enum { FILE_SIZE = 8 << 20 };

static void setup_read(uint64_t n)
{
	int fd = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *block = get_memory(FILE_SIZE);

	memset(block, 'y', FILE_SIZE);
	if (fd < 0 || write(fd, block, FILE_SIZE) != FILE_SIZE)
		fail("cannot write a file of 8 MiB");
	close(fd);
}

static uint64_t read_(uint64_t n)
{
	int fd = open("data", O_RDONLY);
	char block[4096];
	uint64_t sum = 0;

	while (n--) {
		off_t at = (off_t)(n * sizeof(block) % FILE_SIZE);

		sum += (uint64_t)pread(fd, block, sizeof(block), at);
		sum += (uint64_t)block[n % sizeof(block)];
	}
	close(fd);
	return sum;
}

const struct workload system_group[] = {
	{ "sys.getppid", 1000000, NULL, getppid_ },
	{ "sys.clock", 3000000, NULL, clock_ },
	{ "sys.fork", 1000, NULL, fork_ },
	{ "sys.forkexec", 400, NULL, fork_exec },
	{ "sys.pipe", 40000, NULL, pipe_ },
	{ "sys.futex", 40000, NULL, futex_ },
	{ "sys.thread", 5000, NULL, thread },
	{ "sys.touch", 100, NULL, touch },
	{ "sys.segv", 100000, NULL, segv },
	{ "sys.create", 30000, NULL, create },
	{ "sys.read", 200000, setup_read, read_ },
	{ 0 },
};
