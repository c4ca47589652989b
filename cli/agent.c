/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent.c - asking the agent in a guest
 *
 * What comes from the guest is not trusted: frames are bounded and every
 * wait ends.
 */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../agent/frame.h"

/* Of a request that needs no time of its own. */
enum { ANSWER_MS = 30000, RETRY_MS = 200, SOCKET_MS = 3000 };

static int fail(struct husk_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int fail(struct husk_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	return code;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* -- the socket ----------------------------------------------------------- */

int agent_path(const char *name, char *buf, size_t size, struct husk_error *err)
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct stat st;
	char *slash;
	int n;

	if (!*name || *name == '.' || strchr(name, '/'))
		return fail(err, -EINVAL, "%.80s: not the name of a machine",
			    name);
	if (run && *run == '/')
		n = snprintf(buf, size, "%s/husk/%s/vsock", run, name);
	else
		n = snprintf(buf, size, "/tmp/husk-%u/%s/vsock",
			     (unsigned)getuid(), name);
	if (n < 0 || (size_t)n >= size)
		return fail(err, -ENAMETOOLONG, "%.80s: too long a name", name);
	/* Anybody can make a folder in /tmp that looks like ours. */
	slash = strrchr(buf, '/');
	*slash = 0;
	if (lstat(buf, &st) || !S_ISDIR(st.st_mode))
		return fail(err, -ENOENT, "%.80s: no machine of this name runs",
			    name);
	if (st.st_uid != getuid() && st.st_uid != 0)
		return fail(err, -EPERM, "%.180s: belongs to another user",
			    buf);
	*slash = '/';
	return 0;
}

static int dial(const char *path, struct husk_error *err)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(to.sun_path))
		return fail(err, -ENAMETOOLONG,
			    "socket %.100s...: the path is too long", path);
	memcpy(to.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(err, -errno, "socket: %s", strerror(errno));
	if (!connect(fd, (void *)&to, sizeof(to)))
		return fd;
	ret = -errno;
	close(fd);
	return fail(err, ret,
		    ret == -ECONNREFUSED || ret == -ENOENT
			    ? "socket %s: no machine runs there"
			    : "socket %s: no connection",
		    path);
}

/* "OK PORT": the agent has the connection.  -ECONNREFUSED: it is not there. */
static int ask_for_port(int fd, int64_t end)
{
	static const char line[] = "CONNECT 1023\n";
	char got[32];
	size_t n = 0;

	if (send(fd, line, sizeof(line) - 1, MSG_NOSIGNAL) != sizeof(line) - 1)
		return -ECONNREFUSED;
	do {
		struct pollfd p = { fd, POLLIN, 0 };
		int64_t left = end - now_ms();

		if (left < 0)
			left = 0;
		if (poll(&p, 1, (int)left) == 0)
			return -ETIMEDOUT;
		if (recv(fd, got + n, 1, 0) != 1)
			return -ECONNREFUSED;
	} while (got[n] != '\n' && ++n < sizeof(got));
	return strncmp(got, "OK ", 3) != 0 ? -EPROTO : 0;
}

static int say_hello(int fd, int64_t end, struct husk_error *err)
{
	uint32_t version = AGENT_VERSION;
	struct frame *f = malloc(sizeof(*f));
	int64_t left = end - now_ms();
	int ret = f ? 0 : -ENOMEM;

	if (!ret)
		ret = frame_send(fd, AGENT_HELLO, &version, sizeof(version));
	if (!ret)
		ret = frame_recv(fd, f, left > 1000 ? (int)left : 1000);
	if (!ret && (f->head.type != AGENT_HELLO || f->head.len < 4))
		ret = -EPROTO;
	if (!ret && frame_u32(f->data) < AGENT_VERSION)
		ret = fail(err, -EPROTO, "the guest's agent is too old");
	else if (ret)
		fail(err, ret, "the guest's agent does not answer: %s",
		     strerror(-ret));
	free(f);
	return ret;
}

int agent_open(const char *path, int timeout_ms, struct husk_error *err)
{
	/* Even who asks once waits for an answer that is under way. */
	int64_t now = now_ms(), end = now + timeout_ms,
		patience = now + (timeout_ms > 5000 ? timeout_ms : 5000);
	int fd, ret;

	for (;;) {
		fd = dial(path, err);
		/* A machine that was started just now makes its socket soon. */
		if (fd < 0 && (fd == -ENOENT || fd == -ECONNREFUSED) &&
		    now_ms() + RETRY_MS < end && now_ms() < now + SOCKET_MS) {
			poll(NULL, 0, RETRY_MS);
			continue;
		}
		if (fd < 0)
			return fd;
		ret = ask_for_port(fd, patience);
		if (!ret)
			ret = say_hello(fd, patience, err);
		else if (ret == -ETIMEDOUT)
			fail(err, ret,
			     "the guest has no sockets: it is still starting, "
			     "or has no vsock driver");
		else if (ret == -EPROTO)
			fail(err, ret, "socket %s: not a machine's", path);
		else
			ret = fail(err, -EHOSTDOWN,
				   "no agent runs in the guest");
		if (!ret)
			return fd;
		close(fd);
		if (ret == -EPROTO || now_ms() + RETRY_MS > end)
			return ret;
		poll(NULL, 0, RETRY_MS);
	}
}

/* -- requests ------------------------------------------------------------- */

/* The answer's payload goes to out; short ones are an error unless min is 0. */
static int ask(int fd, enum agent_type what, const void *data, size_t len,
	       void *out, size_t min, size_t max, int timeout_ms,
	       struct husk_error *err)
{
	struct frame *f = malloc(sizeof(*f));
	int ret = f ? frame_send(fd, what, data, len) : -ENOMEM;
	size_t n;

	if (!ret)
		ret = frame_recv(fd, f, timeout_ms);
	if (ret) {
		fail(err, ret, "the guest's agent: %s", strerror(-ret));
	} else if (f->head.type == AGENT_ERROR && f->head.len >= 4) {
		uint32_t e = frame_u32(f->data);

		ret = fail(err, e && e < 4096 ? -(int)e : -EIO,
			   "the guest: %.200s", (char *)f->data + 4);
	} else if (f->head.type != AGENT_OK || f->head.len < min) {
		ret = fail(err, -EPROTO,
			   "the guest's agent says what it should not");
	} else if (max) {
		n = f->head.len < max ? f->head.len : max;
		memcpy(out, f->data, n);
		if (!min)
			((char *)out)[n] = 0;
	}
	free(f);
	return ret;
}

int agent_shutdown(int fd, enum agent_shutdown how, struct husk_error *err)
{
	uint32_t what = how;

	return ask(fd, AGENT_SHUTDOWN, &what, sizeof(what), NULL, 0, 0,
		   ANSWER_MS, err);
}

int agent_sync_time(int fd, int step, int64_t *off_ns, struct husk_error *err)
{
	struct agent_time t = { .step = step != 0 };
	struct timespec now;
	int64_t off = 0;
	int ret;

	clock_gettime(CLOCK_REALTIME, &now);
	t.seconds = now.tv_sec;
	t.ns = (uint32_t)now.tv_nsec;
	ret = ask(fd, AGENT_TIME, &t, sizeof(t), &off, 8, 8, ANSWER_MS, err);
	if (!ret && off_ns)
		*off_ns = off;
	return ret;
}

int agent_fstrim(int fd, uint64_t *bytes, struct husk_error *err)
{
	uint64_t n = 0;
	/* A large disk takes its time. */
	int ret = ask(fd, AGENT_FSTRIM, NULL, 0, &n, 8, 8, 3600 * 1000, err);

	if (!ret && bytes)
		*bytes = n;
	return ret;
}

int agent_sync(int fd, struct husk_error *err)
{
	return ask(fd, AGENT_SYNC, NULL, 0, NULL, 0, 0, 600 * 1000, err);
}

int agent_freeze(int fd, unsigned seconds, unsigned *n, struct husk_error *err)
{
	uint32_t s = seconds, count = 0;
	int ret = ask(fd, AGENT_FREEZE, &s, sizeof(s), &count, 4, 4, 600 * 1000,
		      err);

	if (!ret && n)
		*n = count;
	return ret;
}

int agent_thaw(int fd, unsigned *n, struct husk_error *err)
{
	uint32_t count = 0;
	int ret = ask(fd, AGENT_THAW, NULL, 0, &count, 4, 4, 600 * 1000, err);

	if (!ret && n)
		*n = count;
	return ret;
}

int agent_set_hostname(int fd, const char *name, struct husk_error *err)
{
	return ask(fd, AGENT_HOSTNAME, name, strlen(name), NULL, 0, 0,
		   ANSWER_MS, err);
}

int agent_set_mac(int fd, const uint8_t from[6], const uint8_t to[6],
		  struct husk_error *err)
{
	struct agent_mac mac;

	memcpy(mac.from, from, 6);
	memcpy(mac.to, to, 6);
	return ask(fd, AGENT_MAC, &mac, sizeof(mac), NULL, 0, 0, ANSWER_MS,
		   err);
}

int agent_info(int fd, char *text, size_t size, struct husk_error *err)
{
	return ask(fd, AGENT_INFO, NULL, 0, text, 0, size - 1, ANSWER_MS, err);
}

int agent_exec(int fd, const void *command, size_t len, struct husk_error *err)
{
	return ask(fd, AGENT_EXEC, command, len, NULL, 0, 0, ANSWER_MS, err);
}
