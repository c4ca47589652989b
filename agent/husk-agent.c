/* SPDX-License-Identifier: Apache-2.0 */
/*
 * husk-agent.c - the guest agent: accepts connections of the host
 *
 * husk-agent [--unix PATH]
 *
 * It listens on a vsock port that only root can bind, takes connections from
 * the host alone, and gives each a process of its own: one that hangs or
 * breaks harms no other.  --unix is for tests: a Unix socket that behaves like
 * the one of husk run --vsock.
 */
#include "husk-agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <linux/vm_sockets.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char build[] = "husk-agent 0.1.0";

/* -- answers -------------------------------------------------------------- */

int answer_ok(int fd, const void *data, size_t len)
{
	return frame_send(fd, AGENT_OK, data, len);
}

int answer_error(int fd, int error, const char *fmt, ...)
{
	struct __attribute__((packed)) {
		uint32_t error;
		char text[300];
	} a = { .error = (uint32_t)error };
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a.text, sizeof(a.text), fmt, ap);
	va_end(ap);
	return frame_send(fd, AGENT_ERROR, &a, 4 + strlen(a.text));
}

/* -- a session ------------------------------------------------------------ */

/* Seconds of CLOCK_MONOTONIC when frozen file systems thaw; 0: none are. */
static time_t thaw_at;

static time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

static void thaw(void)
{
	if (thaw_at)
		freeze_all(false);
	thaw_at = 0;
}

static int do_freeze(int fd, const struct frame *f)
{
	uint32_t seconds = f->head.len == 4 ? frame_u32(f->data) : 0, n;

	if (!seconds || seconds > 3600)
		return answer_error(fd, EINVAL, "1 to 3600 seconds");
	/* Before: whoever freezes may be stopped in the middle of it. */
	thaw_at = now() + seconds;
	n = freeze_all(true);
	return answer_ok(fd, &n, sizeof(n));
}

static int do_thaw(int fd)
{
	uint32_t n = freeze_all(false);

	thaw_at = 0;
	return answer_ok(fd, &n, sizeof(n));
}

static int request(int fd, const struct frame *f)
{
	switch (f->head.type) {
	case AGENT_INFO: return do_info(fd);
	case AGENT_SHUTDOWN: return do_shutdown(fd, f);
	case AGENT_TIME: return do_time(fd, f);
	case AGENT_HOSTNAME: return do_hostname(fd, f);
	case AGENT_MAC: return do_mac(fd, f);
	case AGENT_FREEZE: return do_freeze(fd, f);
	case AGENT_THAW: return do_thaw(fd);
	case AGENT_FSTRIM: return do_fstrim(fd);
	case AGENT_SYNC: sync(); return answer_ok(fd, NULL, 0);
	case AGENT_EXEC: exec_session(fd, f); return -ESHUTDOWN;
	default:
		return answer_error(fd, ENOSYS, "request %u is not known",
				    f->head.type);
	}
}

static int hello(int fd, struct frame *f)
{
	struct __attribute__((packed)) {
		uint32_t version;
		char text[sizeof(build)];
	} h = { .version = AGENT_VERSION };
	int ret = frame_recv(fd, f, 10000);

	if (ret)
		return ret;
	if (f->head.type != AGENT_HELLO || f->head.len < 4)
		return -EPROTO;
	/* Both say what they speak; the lower one counts, and so far it is 1. */
	memcpy(h.text, build, sizeof(build));
	return frame_send(fd, AGENT_HELLO, &h, 4 + strlen(build));
}

static void session(int fd)
{
	static struct frame f;
	int ret = hello(fd, &f);

	while (!ret) {
		int wait = -1;

		if (thaw_at)
			wait = (int)(thaw_at > now() ? thaw_at - now() : 0) *
			       1000;
		ret = frame_recv(fd, &f, wait);
		if (ret == -ETIMEDOUT && thaw_at) {
			thaw();
			ret = 0;
			continue;
		}
		if (!ret)
			ret = request(fd, &f);
	}
	thaw();
}

/* -- the socket ----------------------------------------------------------- */

/* 0 or -errno, and nothing to be undone. */
static int open_vsock(void)
{
	struct sockaddr_vm at = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = AGENT_PORT,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), ret;

	if (fd < 0)
		return -errno;
	if (!bind(fd, (void *)&at, sizeof(at)) && !listen(fd, 64))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

static int open_unix(const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(at.sun_path))
		return -ENAMETOOLONG;
	memcpy(at.sun_path, path, strlen(path) + 1);
	unlink(path);
	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)) || listen(fd, 64))
		return -errno;
	return fd;
}

/* What husk does with the line in front of a connection. */
static bool take_line(int fd)
{
	char line[64];
	size_t n = 0;

	do
		if (read(fd, line + n, 1) != 1)
			return false;
	while (line[n] != '\n' && ++n < sizeof(line));
	return !strncmp(line, "CONNECT 1023\n", 13) &&
	       write(fd, "OK 1\n", 5) == 5;
}

/* A user of the guest must not reach us by the loopback: root would follow. */
static bool from_host(int fd)
{
	struct sockaddr_vm who = { 0 };
	socklen_t len = sizeof(who);

	return !getpeername(fd, (void *)&who, &len) &&
	       who.svm_family == AF_VSOCK && who.svm_cid == VMADDR_CID_HOST;
}

static unsigned sessions;

static void reap(void)
{
	while (sessions && waitpid(-1, NULL, WNOHANG) > 0)
		sessions--;
}

static void on_child(int sig)
{
}

static void serve(int door, bool is_unix)
{
	struct sigaction sa = { .sa_handler = on_child };
	sigset_t child, none;

	/* Only taken while we wait, so that none is missed. */
	sigemptyset(&none);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	sigaction(SIGCHLD, &sa, NULL);
	for (;;) {
		struct pollfd p = { door, POLLIN, 0 };
		int fd;

		reap();
		if (sessions >= AGENT_SESSIONS)
			p.fd = -1;
		if (ppoll(&p, 1, NULL, &none) <= 0 || p.fd < 0)
			continue;
		fd = accept4(door, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		if (!is_unix && !from_host(fd)) {
			close(fd);
			continue;
		}
		switch (fork()) {
		case 0:
			close(door);
			sigprocmask(SIG_SETMASK, &none, NULL);
			signal(SIGCHLD, SIG_DFL);
			if (!is_unix || take_line(fd))
				session(fd);
			_exit(0);
		case -1: break;
		default: sessions++;
		}
		close(fd);
	}
}

/* What we open must not become a standard stream that nobody gave us. */
static void fill_standard_streams(void)
{
	int fd = open("/dev/null", O_RDWR);

	while (fd >= 0 && fd <= 2)
		fd = dup(fd);
	if (fd > 2)
		close(fd);
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	int door;

	fill_standard_streams();
	if (argc == 3 && !strcmp(argv[1], "--unix")) {
		path = argv[2];
	} else if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts(build);
		return 0;
	} else if (argc != 1) {
		fprintf(stderr, "usage: %s [--unix PATH | --version]\n",
			argv[0]);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	if (path) {
		door = open_unix(path);
	} else {
		/* The driver may be loaded later than we are started. */
		while ((door = open_vsock()) == -EAFNOSUPPORT ||
		       door == -ENODEV || door == -EADDRNOTAVAIL)
			sleep(1);
	}
	if (door < 0) {
		fprintf(stderr, "husk-agent: %s%s: %s\n",
			path ? "" : "vsock port 1023", path ? path : "",
			strerror(-door));
		return 1;
	}
	serve(door, path != NULL);
}
