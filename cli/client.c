/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.c - requests to a machine that runs in another process
 */
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"
#include "place.h"

enum { MAX_REPLY = 1 << 20 };

int control_connect(const char *dir)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/control",
			 dir);
	int fd;

	if (!*dir || n < 0 || (size_t)n >= sizeof(addr.sun_path))
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

int control_reach(const char *name)
{
	struct place p;
	int fd;

	if (place_find(&p, name))
		return -1;
	if (!place_owner(&p)) {
		complain("%s: is not running", name);
		return -1;
	}
	fd = control_connect(p.run);
	if (fd < 0)
		complain("%s: its control socket does not answer", name);
	return fd;
}

static int send_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* One byte at a time: what follows the line may be the console's. */
static int read_line(int fd, char **line, int timeout_ms)
{
	long end = now_ms() + timeout_ms;
	size_t len = 0, room = 0;

	*line = NULL;
	for (;;) {
		struct pollfd f = { .fd = fd, .events = POLLIN };
		long left = end - now_ms();
		ssize_t n;

		if (len + 1 >= room) {
			char *more = realloc(*line, room += 4096);

			if (!more || room > MAX_REPLY)
				return -ENOMEM;
			*line = more;
		}
		if (left <= 0 || poll(&f, 1, (int)left) == 0)
			return -ETIMEDOUT;
		n = read(fd, *line + len, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ECONNRESET;
		if ((*line)[len] == '\n') {
			(*line)[len] = 0;
			return 0;
		}
		len++;
	}
}

static void set_error(struct husk_error *err, int ret, const char *text)
{
	err->code = ret;
	snprintf(err->text, sizeof(err->text), "%s", text);
}

static void no_answer(struct husk_error *err, int ret)
{
	err->code = ret;
	snprintf(err->text, sizeof(err->text),
		 "the machine does not answer: %s", strerror(-ret));
}

json_object *control_read(int fd, int timeout_ms, struct husk_error *err)
{
	json_object *reply, *ok, *error;
	char *line;
	int ret = read_line(fd, &line, timeout_ms);

	reply = ret ? NULL : json_tokener_parse(line);
	free(line);
	if (!reply) {
		no_answer(err, ret ? ret : -EPROTO);
		return NULL;
	}
	if (json_object_object_get_ex(reply, "ok", &ok) &&
	    json_object_get_boolean(ok))
		return reply;
	if (json_object_object_get_ex(reply, "error", &error))
		set_error(err, -EINVAL, json_object_get_string(error));
	else
		set_error(err, -EPROTO, "the machine answers something else");
	json_object_put(reply);
	return NULL;
}

json_object *control_request(int fd, const char *command, json_object *more,
			     int timeout_ms, struct husk_error *err)
{
	json_object *request = more ? more : json_object_new_object();
	const char *text;
	int ret;

	json_object_object_add(request, "command",
			       json_object_new_string(command));
	text = json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN);
	ret = text ? send_all(fd, text, strlen(text)) : -ENOMEM;
	if (!ret)
		ret = send_all(fd, "\n", 1);
	json_object_put(request);
	if (!ret)
		return control_read(fd, timeout_ms, err);
	no_answer(err, ret);
	return NULL;
}
