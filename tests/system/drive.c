/* SPDX-License-Identifier: Apache-2.0 */
/*
 * drive.c - what a shell script cannot do: be a terminal, take times
 *
 *   drive pty STEP... -- COMMAND [ARG...]
 *       runs COMMAND on a terminal of its own.  Steps, in order:
 *         +TEXT   wait until the command has written TEXT
 *         =BYTES  type BYTES (^x is Ctrl-X)
 *         KILL:n  send signal n
 *         HANGUP  close our side of the terminal
 *       Then waits for its end.  Its output goes to ours; the last line is
 *       "drive: exit N" or "drive: signal N", and "terminal changed" when
 *       its modes differ from those before.  Exits 0, or 1 after 240 s.
 *   drive stamp
 *       copies lines from input to output, each behind its time of arrival
 *       in nanoseconds
 *   drive clock N [SECONDS]
 *       prints CLOCK_REALTIME in nanoseconds N times, that long apart
 */
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <utmp.h>

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static int stamp(void)
{
	char line[4096];

	while (fgets(line, sizeof(line), stdin)) {
		printf("%lld %s", now_ns(), line);
		fflush(stdout);
	}
	return 0;
}

static unsigned number(const char *s)
{
	return (unsigned)strtoul(s, NULL, 10);
}

static int ticks(unsigned n, unsigned seconds)
{
	for (; n; n--) {
		printf("clock %lld\n", now_ns());
		fflush(stdout);
		if (n > 1 && seconds)
			sleep(seconds);
		else if (n > 1)
			usleep(100000);
	}
	return 0;
}

/* -- the terminal --------------------------------------------------------- */

static char seen[1 << 20]; /* of the output, what no step has used up */
static size_t len;

/* More output, for at most ms. */
static bool pump(int fd, int ms)
{
	struct pollfd f = { .fd = fd, .events = POLLIN };
	ssize_t n;

	if (fd < 0 || poll(&f, 1, ms) <= 0)
		return false;
	if (len > sizeof(seen) / 2) {
		memmove(seen, seen + len / 2, len - len / 2);
		len -= len / 2;
	}
	n = read(fd, seen + len, sizeof(seen) - len);
	if (n <= 0)
		return false;
	if (write(1, seen + len, (size_t)n) < 0)
		return false;
	len += (size_t)n;
	return true;
}

static bool expect(int fd, const char *text, time_t end)
{
	size_t n = strlen(text);
	char *at;

	for (;;) {
		at = memmem(seen, len, text, n);
		if (at) {
			at += n;
			len -= (size_t)(at - seen);
			memmove(seen, at, len);
			return true;
		}
		if (time(NULL) > end || (!pump(fd, 1000) && errno == EIO))
			return false;
	}
}

static void type(int fd, const char *p)
{
	for (; *p; p++) {
		char c = *p;

		if (c == '^' && p[1])
			c = *++p & 0x1f;
		if (write(fd, &c, 1) != 1)
			return;
	}
}

static bool step(int *fd, pid_t pid, const char *s, time_t end)
{
	if (*s == '+')
		return expect(*fd, s + 1, end);
	if (*s == '=') {
		type(*fd, s + 1);
		return true;
	}
	if (!strncmp(s, "KILL:", 5)) {
		kill(pid, (int)number(s + 5));
		return true;
	}
	close(*fd);
	*fd = -1;
	return true;
}

static int on_pty(char **argv)
{
	struct termios before, after;
	time_t end = time(NULL) + 240;
	int fd, slave, status, i = 0;
	pid_t pid;

	if (openpty(&fd, &slave, NULL, NULL, NULL) || tcgetattr(slave, &before))
		return 1;
	while (argv[i] && strcmp(argv[i], "--"))
		i++;
	if (!argv[i])
		return 2;
	pid = fork();
	if (pid < 0)
		return 1;
	if (!pid) {
		close(fd);
		login_tty(slave);
		execvp(argv[i + 1], argv + i + 1);
		_exit(127);
	}
	for (i = 0; strcmp(argv[i], "--"); i++) {
		if (step(&fd, pid, argv[i], end))
			continue;
		printf("\ndrive: failed at %s\n", argv[i]);
		break;
	}
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (time(NULL) > end) {
			printf("\ndrive: still there\n");
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return 1;
		}
		if (!pump(fd, 100))
			usleep(50000);
	}
	while (pump(fd, 0))
		;
	if (!tcgetattr(slave, &after) && (after.c_lflag != before.c_lflag ||
					  after.c_iflag != before.c_iflag ||
					  after.c_oflag != before.c_oflag))
		printf("\ndrive: terminal changed\n");
	if (WIFEXITED(status))
		printf("\ndrive: exit %d\n", WEXITSTATUS(status));
	else
		printf("\ndrive: signal %d\n", WTERMSIG(status));
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc > 3 && !strcmp(argv[1], "pty"))
		return on_pty(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "stamp"))
		return stamp();
	if (argc > 2 && !strcmp(argv[1], "clock"))
		return ticks(number(argv[2]), argc > 3 ? number(argv[3]) : 0);
	return 2;
}
