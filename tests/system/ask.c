/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ask.c - asks a guest's agent, for tests
 *
 * ask PATH WORD...   one connection; words: info, time, slew, hostname=NAME,
 * trim, sync, freeze=SECONDS, thaw, sleep=SECONDS, poweroff, reboot, and raw=HEX
 * (bytes that are sent as they are; what comes back is said)
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../cli/agent.h"

static int raw(int fd, const char *hex)
{
	struct pollfd p = { fd, POLLIN, 0 };
	unsigned char buf[4096];
	size_t len = 0;
	ssize_t n;

	for (; hex[0] && hex[1]; hex += 2) {
		char two[3] = { hex[0], hex[1] };

		buf[len++] = (unsigned char)strtoul(two, NULL, 16);
	}
	if (send(fd, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
		return -errno;
	if (poll(&p, 1, 10000) != 1)
		return -ETIMEDOUT;
	n = recv(fd, buf, sizeof(buf), 0);
	if (n > 4)
		printf("raw: type %u\n", buf[4]);
	else
		printf("raw: end\n");
	return n > 4 ? 0 : -ECONNRESET;
}

static int one(int fd, const char *word, struct husk_error *err)
{
	const char *value = strchr(word, '=');
	unsigned n = value ? (unsigned)strtoul(value + 1, NULL, 10) : 0;
	char text[4096];
	uint64_t bytes;
	int64_t off;
	int ret;

	if (!strcmp(word, "info")) {
		ret = agent_info(fd, text, sizeof(text), err);
		if (!ret)
			fputs(text, stdout);
		return ret;
	}
	if (!strcmp(word, "time") || !strcmp(word, "slew")) {
		ret = agent_sync_time(fd, *word == 't', &off, err);
		if (!ret)
			printf("time %lld s off\n",
			       (long long)(off / 1000000000));
		return ret;
	}
	if (!strcmp(word, "trim")) {
		ret = agent_fstrim(fd, &bytes, err);
		if (!ret)
			printf("trim %llu MiB\n",
			       (unsigned long long)(bytes >> 20));
		return ret;
	}
	if (!strncmp(word, "freeze=", 7)) {
		ret = agent_freeze(fd, n, &n, err);
		if (!ret)
			printf("freeze %u\n", n);
		return ret;
	}
	if (!strcmp(word, "thaw")) {
		ret = agent_thaw(fd, &n, err);
		if (!ret)
			printf("thaw %u\n", n);
		return ret;
	}
	if (!strncmp(word, "sleep=", 6))
		return sleep(n) ? -EINTR : 0;
	if (!strncmp(word, "hostname=", 9))
		return agent_set_hostname(fd, value + 1, err);
	if (!strcmp(word, "sync"))
		return agent_sync(fd, err);
	if (!strcmp(word, "poweroff"))
		return agent_shutdown(fd, AGENT_POWEROFF, err);
	if (!strcmp(word, "reboot"))
		return agent_shutdown(fd, AGENT_REBOOT, err);
	if (!strncmp(word, "raw=", 4))
		return raw(fd, word + 4);
	return -EINVAL;
}

int main(int argc, char **argv)
{
	struct husk_error err = { 0 };
	int fd, ret = 0;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = agent_open(argv[1], 60000, &err);
	if (fd < 0) {
		printf("ask: %s\n", err.text);
		return 1;
	}
	for (int i = 2; i < argc && !ret; i++) {
		ret = one(fd, argv[i], &err);
		if (ret)
			printf("ask %s: %s\n", argv[i],
			       err.code ? err.text : strerror(-ret));
	}
	close(fd);
	return ret != 0;
}
