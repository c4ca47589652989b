/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.c - the socket by which other programs reach a machine that runs
 */
#include "control.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"

enum {
	LINE_ROOM = 64 << 10,
	REPLY_ROOM = 256 << 10, /* who does not read replies is cut off */
	CONSOLE_PIECE = 4096,
};

/* -- opening -------------------------------------------------------------- */

static int listen_at(struct control *c, const char *dir)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/control",
			 dir);

	if (n < 0 || (size_t)n >= sizeof(addr.sun_path)) {
		complain("%s: too long for a socket; give a shorter name, or "
			 "set XDG_RUNTIME_DIR",
			 dir);
		return EXIT_USAGE;
	}
	memcpy(c->path, addr.sun_path, sizeof(c->path));
	c->listener =
		socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* One of before, whose machine is gone: we have the lock. */
	unlink(c->path);
	if (c->listener >= 0 &&
	    !bind(c->listener, (struct sockaddr *)&addr, sizeof(addr)) &&
	    !chmod(c->path, 0600) && !listen(c->listener, 8))
		return 0;
	complain("%s: %s", c->path, strerror(errno));
	return EXIT_FAULT;
}

int control_open(struct control *c, struct session *s, const char *dir,
		 const char *console_log)
{
	int ret;

	*c = (struct control){ .session = s, .listener = -1 };
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
		c->client[i].fd = -1;
	ret = console_open(&c->console, console_log);
	return ret ? ret : listen_at(c, dir);
}

static void drop(struct control_client *k)
{
	if (k->fd >= 0)
		close(k->fd);
	free(k->in);
	free(k->out);
	*k = (struct control_client){ .fd = -1 };
}

void control_close(struct control *c)
{
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
		drop(&c->client[i]);
	if (c->listener >= 0) {
		close(c->listener);
		unlink(c->path);
	}
	c->listener = -1;
	console_close(&c->console);
}

static void take_client(struct control *c)
{
	int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
		struct control_client *k = &c->client[i];

		if (k->fd >= 0)
			continue;
		k->in = malloc(LINE_ROOM);
		k->out = malloc(REPLY_ROOM);
		k->fd = fd;
		if (!k->in || !k->out)
			drop(k);
		return;
	}
	close(fd); /* too many */
}

/* -- requests ------------------------------------------------------------- */

static void queue(struct control_client *k, const char *data, size_t len)
{
	if (len > REPLY_ROOM - k->out_len) {
		k->closing = true;
		return;
	}
	memcpy(k->out + k->out_len, data, len);
	k->out_len += len;
}

static void queue_reply(struct control_client *k, json_object *reply)
{
	const char *text =
		json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN);

	if (!text) {
		k->closing = true;
		return;
	}
	queue(k, text, strlen(text));
	queue(k, "\n", 1);
}

static int run_command(struct control_call *call)
{
	json_object *name;
	control_command *f;

	if (!json_object_is_type(call->request, json_type_object) ||
	    !json_object_object_get_ex(call->request, "command", &name) ||
	    !json_object_is_type(name, json_type_string)) {
		snprintf(call->err.text, sizeof(call->err.text),
			 "a request is a JSON object with \"command\"");
		return -EINVAL;
	}
	f = control_find(json_object_get_string(name));
	if (f)
		return f(call);
	snprintf(call->err.text, sizeof(call->err.text),
		 "there is no command \"%.60s\"; \"help\" lists them",
		 json_object_get_string(name));
	return -ENOENT;
}

/* One line, without its end. */
static void request(struct control *c, struct control_client *k, char *line,
		    struct vm *vm)
{
	struct control_call call = {
		.control = c,
		.client = k,
		.vm = vm,
		.request = json_tokener_parse(line),
		.reply = json_object_new_object(),
	};
	int ret;

	json_object_object_add(call.reply, "ok", json_object_new_boolean(true));
	ret = run_command(&call);
	if (ret) {
		json_object_put(call.reply);
		call.reply = json_object_new_object();
		json_object_object_add(call.reply, "ok",
				       json_object_new_boolean(false));
		json_object_object_add(
			call.reply, "error",
			json_object_new_string(*call.err.text
						       ? call.err.text
						       : strerror(-ret)));
	}
	if (!k->given)
		queue_reply(k, call.reply);
	json_object_put(call.request);
	json_object_put(call.reply);
}

static void take_lines(struct control *c, struct control_client *k,
		       struct vm *vm)
{
	char *end;

	while (!k->console && !k->closing && !k->given &&
	       (end = memchr(k->in, '\n', k->in_len))) {
		size_t used = (size_t)(end - k->in) + 1;

		*end = 0;
		if (strlen(k->in) + 1 != used)
			*k->in = 0; /* a zero byte: no JSON */
		request(c, k, k->in, vm);
		k->in_len -= used;
		memmove(k->in, k->in + used, k->in_len);
	}
	if (k->in_len == LINE_ROOM && !k->console)
		k->closing = true;
}

/* What was typed goes to the guest as far as it has room. */
static void type(struct control *c, struct control_client *k)
{
	size_t n = serial_type(&c->session->serial, k->in, k->in_len);

	k->in_len -= n;
	memmove(k->in, k->in + n, k->in_len);
}

static void receive(struct control *c, struct control_client *k, struct vm *vm)
{
	ssize_t n = read(k->fd, k->in + k->in_len, LINE_ROOM - k->in_len);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		drop(k);
		return;
	}
	/* A client may close its half and still read what is to come. */
	if (n == 0) {
		k->eof = true;
		k->closing |= !k->console;
		return;
	}
	k->in_len += (size_t)n;
	take_lines(c, k, vm);
	if (k->given) {
		drop(k);
		return;
	}
	if (k->console)
		type(c, k);
}

/* -- replies and output --------------------------------------------------- */

static void fill(struct control *c, struct control_client *k)
{
	if (k->console && k->out_len < CONSOLE_PIECE)
		k->out_len +=
			console_read(&c->console, &k->at, k->out + k->out_len,
				     CONSOLE_PIECE - k->out_len);
}

static bool has_output(struct control *c, struct control_client *k)
{
	return k->out_len ||
	       (k->console && console_has_more(&c->console, k->at));
}

static void transmit(struct control *c, struct control_client *k)
{
	ssize_t n;

	fill(c, k);
	if (k->out_len) {
		n = send(k->fd, k->out, k->out_len, MSG_NOSIGNAL);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			drop(k);
			return;
		}
		k->out_len -= (size_t)n;
		memmove(k->out, k->out + n, k->out_len);
	}
	if (k->closing && !k->out_len)
		drop(k);
}

/* -- the loop's side ------------------------------------------------------ */

static bool wants_input(struct control *c, const struct control_client *k)
{
	return !k->eof && !k->closing && k->in_len < LINE_ROOM;
}

unsigned control_polls(struct control *c, struct pollfd *f)
{
	unsigned n = 0;

	f[n++] = (struct pollfd){ .fd = c->listener, .events = POLLIN };
	f[n++] = (struct pollfd){ .fd = c->console.wake, .events = POLLIN };
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
		struct control_client *k = &c->client[i];
		short events = 0;

		if (k->fd >= 0 && wants_input(c, k))
			events |= POLLIN;
		if (k->fd >= 0 && (has_output(c, k) || k->closing))
			events |= POLLOUT;
		/* Who is at his end is only waited for to hang up. */
		f[n++] = (struct pollfd){ .fd = events || k->eof ? k->fd : -1,
					  .events = events };
	}
	return n;
}

void control_handle(struct control *c, const struct pollfd *f, unsigned n,
		    struct vm *vm)
{
	uint64_t count;

	if (f[1].revents && read(c->console.wake, &count, sizeof(count)) < 0)
		errno = 0;
	for (unsigned i = 0; i < CONTROL_CLIENTS && i + 2 < n; i++) {
		struct control_client *k = &c->client[i];
		short r = f[i + 2].revents;

		if (k->fd < 0 || k->fd != f[i + 2].fd)
			continue;
		if (r & (POLLIN | POLLHUP | POLLERR) && wants_input(c, k))
			receive(c, k, vm);
		else if (r & (POLLHUP | POLLERR))
			drop(k);
		if (k->fd >= 0 && k->console && k->in_len)
			type(c, k);
		if (k->fd >= 0 && (has_output(c, k) || k->closing))
			transmit(c, k);
	}
	if (f[0].revents)
		take_client(c);
}

void control_flush(struct control *c)
{
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
		for (unsigned turn = 0; turn < 64; turn++) {
			struct control_client *k = &c->client[i];

			if (k->fd < 0 || !has_output(c, k))
				break;
			transmit(c, k);
		}
}
