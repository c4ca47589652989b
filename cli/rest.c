/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rest.c - a machine over HTTP, in the words of vfkit and krunkit
 *
 * Programs that drive those (Podman, Minikube, CRC) need three requests, so
 * this reads no more of HTTP than they are made of.  A page in a browser must
 * not reach a machine by the port: what has an Origin is refused, and what asks
 * for a host by a name that somebody could have given our address.
 */
#include "rest.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"

enum { ROOM = 16 << 10, MAX_BODY = 4096 };

struct client {
	int fd; /* -1: none */
	char in[ROOM + 1];
	size_t in_len;
	char *out; /* NULL: the request is not complete */
	size_t out_len, sent;
	unsigned long turn; /* when it came */
};

struct rest {
	struct session *session;
	int listener;
	char path[108]; /* of a Unix socket, or "" */
	char host[256]; /* as it was given, or "" */
	unsigned long turn;
	struct client client[REST_CLIENTS];
};

struct request {
	char *method, *path, *body;
	size_t body_len;
	bool foreign; /* a page of a browser asks */
};

/* -- opening -------------------------------------------------------------- */

static int listen_on(struct rest *r, const struct sockaddr *addr, socklen_t len)
{
	int one = 1;

	r->listener = socket(addr->sa_family,
			     SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->listener < 0)
		return -errno;
	if (addr->sa_family != AF_UNIX)
		setsockopt(r->listener, SOL_SOCKET, SO_REUSEADDR, &one,
			   sizeof(one));
	if (bind(r->listener, addr, len) || listen(r->listener, REST_CLIENTS))
		return -errno;
	return 0;
}

/* A socket that nobody serves any more is in nobody's way. */
static void remove_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	int fd;

	if (lstat(addr->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) &&
	    errno == ECONNREFUSED)
		unlink(addr->sun_path);
	close(fd);
}

static int open_unix(struct rest *r, const char *uri, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	mode_t mask;
	int ret;

	if (*path != '/' || strlen(path) >= sizeof(addr.sun_path)) {
		complain("--restful-uri %s: an absolute path of at most %d "
			 "bytes is needed, as in unix:///run/me/vm.sock",
			 uri, (int)sizeof(addr.sun_path) - 1);
		return EXIT_USAGE;
	}
	memcpy(addr.sun_path, path, strlen(path) + 1);
	remove_stale(&addr);
	/* Only for this user. */
	mask = umask(0177);
	ret = listen_on(r, (struct sockaddr *)&addr, sizeof(addr));
	umask(mask);
	if (!ret) {
		memcpy(r->path, path, strlen(path) + 1);
		return 0;
	}
	complain("--restful-uri %s: %s", uri, strerror(-ret));
	return EXIT_FAULT;
}

static int open_tcp(struct rest *r, const char *uri, const char *where)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	const char *colon = strrchr(where, ':');
	char *host = r->host;
	size_t n = colon ? (size_t)(colon - where) : 0;
	int ret;

	if (n > 2 && *where == '[' && where[n - 1] == ']') {
		where++;
		n -= 2;
	}
	if (!n || n >= sizeof(r->host) || !colon[1] ||
	    strspn(colon + 1, "0123456789") != strlen(colon + 1)) {
		complain("--restful-uri %s: a host and a port are needed, as "
			 "in tcp://localhost:8081",
			 uri);
		return EXIT_USAGE;
	}
	memcpy(host, where, n);
	host[n] = 0;
	ret = getaddrinfo(host, colon + 1, &hints, &found);
	if (ret) {
		complain("--restful-uri %s: %s", uri, gai_strerror(ret));
		return EXIT_USAGE;
	}
	ret = listen_on(r, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	if (!ret)
		return 0;
	complain("--restful-uri %s: %s", uri, strerror(-ret));
	return EXIT_FAULT;
}

int rest_open(struct rest **out, struct session *s, const char *uri)
{
	struct rest *r;
	int ret;

	*out = NULL;
	if (!strcmp(uri, "none://") || !strcmp(uri, "none"))
		return 0;
	r = calloc(1, sizeof(*r));
	if (!r) {
		complain("out of memory");
		return EXIT_FAULT;
	}
	r->session = s;
	r->listener = -1;
	for (unsigned i = 0; i < REST_CLIENTS; i++)
		r->client[i].fd = -1;
	if (!strncmp(uri, "tcp://", 6)) {
		ret = open_tcp(r, uri, uri + 6);
	} else if (!strncmp(uri, "unix://", 7)) {
		ret = open_unix(r, uri, uri + 7);
	} else {
		complain("--restful-uri %s: begins with tcp://, unix:// or "
			 "none://",
			 uri);
		ret = EXIT_USAGE;
	}
	if (ret)
		rest_close(r);
	else
		*out = r;
	return ret;
}

static void drop(struct client *k)
{
	close(k->fd);
	free(k->out);
	k->out = NULL;
	k->fd = -1;
}

void rest_close(struct rest *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i < REST_CLIENTS; i++)
		if (r->client[i].fd >= 0)
			drop(&r->client[i]);
	if (r->listener >= 0)
		close(r->listener);
	if (*r->path)
		unlink(r->path);
	free(r);
}

/* -- answers -------------------------------------------------------------- */

static const char *reason(int status)
{
	switch (status) {
	case 200: return "OK";
	case 202: return "Accepted";
	case 400: return "Bad Request";
	case 403: return "Forbidden";
	case 404: return "Not Found";
	case 405: return "Method Not Allowed";
	case 413: return "Content Too Large";
	default: return "Internal Server Error";
	}
}

/* body is given away; NULL: none */
static void answer(struct client *k, int status, json_object *body)
{
	const char *text =
		body ? json_object_to_json_string_ext(
			       body, JSON_C_TO_STRING_PLAIN |
					     JSON_C_TO_STRING_NOSLASHESCAPE)
		     : NULL;
	int n = asprintf(&k->out,
			 "HTTP/1.1 %d %s\r\n"
			 "%s"
			 "Content-Length: %zu\r\n"
			 "Connection: close\r\n"
			 "\r\n%s",
			 status, reason(status),
			 text ? "Content-Type: application/json\r\n" : "",
			 text ? strlen(text) : 0, text ? text : "");

	if (n < 0)
		drop(k);
	else
		k->out_len = (size_t)n;
	json_object_put(body);
}

static void refuse(struct client *k, int status, const char *why)
{
	json_object *body = json_object_new_object();

	json_object_object_add(body, "error", json_object_new_string(why));
	answer(k, status, body);
}

/* -- /vm/state ------------------------------------------------------------ */

static void add_flag(json_object *o, const char *key, bool value)
{
	json_object_object_add(o, key, json_object_new_boolean(value));
}

static void add_text(json_object *o, const char *key, const char *value)
{
	if (value)
		json_object_object_add(o, key, json_object_new_string(value));
}

static void get_state(struct client *k, struct vm *vm)
{
	json_object *o = json_object_new_object();
	bool paused = vm_is_paused(vm);

	add_text(o, "state",
		 paused ? "VirtualMachineStatePaused"
			: "VirtualMachineStateRunning");
	add_flag(o, "canStart", false);
	add_flag(o, "canPause", !paused);
	add_flag(o, "canResume", paused);
	add_flag(o, "canStop", !paused);
	add_flag(o, "canHardStop", true);
	answer(k, 200, o);
}

static int pause_or_resume(struct rest *r, struct vm *vm, bool pause,
			   struct husk_error *err)
{
	struct control_call call = {
		.control = r->session->control,
		.vm = vm,
	};
	int ret;

	/* A named machine may be about to be saved. */
	if (call.control) {
		ret = pause ? control_pause(&call) : control_resume(&call);
		*err = call.err;
		return ret;
	}
	ret = pause ? vm_pause(vm, err) : vm_resume(vm, err);
	if (!ret && !pause)
		session_step_clock(r->session);
	return ret;
}

static void set_state(struct rest *r, struct client *k, const struct request *q,
		      struct vm *vm)
{
	struct husk_error err = { 0 };
	json_object *o = json_tokener_parse(q->body), *v = NULL;
	const char *to = NULL;
	int ret = 0;

	if (json_object_is_type(o, json_type_object) &&
	    json_object_object_get_ex(o, "state", &v) &&
	    json_object_is_type(v, json_type_string))
		to = json_object_get_string(v);
	if (!to) {
		refuse(k, 400, "a JSON object with \"state\" is needed");
	} else if (!strcmp(to, "Pause") || !strcmp(to, "Resume")) {
		ret = pause_or_resume(r, vm, *to == 'P', &err);
		if (ret)
			refuse(k, 500, err.text);
		else
			answer(k, 202, NULL);
	} else if (!strcmp(to, "Stop")) {
		vm_power_button(vm);
		answer(k, 202, NULL);
	} else if (!strcmp(to, "HardStop")) {
		r->session->killed = true;
		answer(k, 202, NULL);
	} else {
		refuse(k, 500, "\"state\" is Pause, Resume, Stop or HardStop");
	}
	json_object_put(o);
}

/* -- /vm/inspect ---------------------------------------------------------- */

static const char *text_of(json_object *o, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(o, key, &v) &&
			       json_object_is_type(v, json_type_string)
		       ? json_object_get_string(v)
		       : NULL;
}

static bool flag_of(json_object *o, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(o, key, &v) &&
	       json_object_get_boolean(v);
}

static json_object *new_device(const char *kind)
{
	json_object *o = json_object_new_object();

	add_text(o, "kind", kind);
	return o;
}

static json_object *inspect_disk(json_object *d)
{
	json_object *o = new_device("virtioblk");

	add_text(o, "devName", "virtio-blk");
	add_text(o, "imagePath", text_of(d, "path"));
	add_text(o, "deviceIdentifier", text_of(d, "serial"));
	if (flag_of(d, "readonly"))
		add_flag(o, "readOnly", true);
	return o;
}

static json_object *inspect_net(json_object *d)
{
	const char *kind = text_of(d, "kind");
	json_object *o = new_device("virtionet");

	add_flag(o, "nat", kind && !strcmp(kind, "shared"));
	add_text(o, "macAddress", text_of(d, "mac"));
	add_text(o, "unixSocketPath", text_of(d, "path"));
	if (flag_of(d, "vfkit"))
		add_flag(o, "vfkitMagic", true);
	return o;
}

/* As after --share: DIR[:TAG][,...] */
static json_object *inspect_share(json_object *d)
{
	const char *text = json_object_get_string(d);
	char *dir = strndup(text ? text : "", strcspn(text ? text : "", ","));
	char *tag = dir ? strrchr(dir, ':') : NULL;
	json_object *o = new_device("virtiofs");

	if (tag)
		*tag++ = 0;
	add_text(o, "mountTag", tag ? tag : "share");
	add_text(o, "sharedDir", dir);
	free(dir);
	return o;
}

static json_object *inspect_vsock(json_object *d)
{
	const char *text = json_object_get_string(d);
	char *path = strndup(text ? text : "", strcspn(text ? text : "", ","));
	json_object *o = new_device("virtiosock");

	add_text(o, "socketURL", path);
	free(path);
	return o;
}

static json_object *inspect_other(json_object *d)
{
	static const char *const kinds[][2] = {
		{ "virtio-rng", "virtiorng" },
		{ "virtio-balloon", "virtioballoon" },
		{ "virtio-serial", "virtioserial" },
	};
	const char *text = json_object_get_string(d);

	for (unsigned i = 0; text && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strncmp(text, kinds[i][0], strlen(kinds[i][0])))
			return new_device(kinds[i][1]);
	return NULL;
}

static void add_devices(json_object *list, json_object *from, const char *key,
			json_object *(*inspect)(json_object *d))
{
	json_object *v;

	if (!json_object_object_get_ex(from, key, &v) ||
	    !json_object_is_type(v, json_type_array))
		return;
	for (size_t i = 0; i < json_object_array_length(v); i++) {
		json_object *o = inspect(json_object_array_get_idx(v, i));

		if (o)
			json_object_array_add(list, o);
	}
}

static void inspect(struct rest *r, struct client *k)
{
	const struct vm_config *cfg = r->session->cfg;
	char *text = vm_config_to_json(cfg, NULL);
	json_object *from = text ? json_tokener_parse(text) : NULL;
	json_object *o = json_object_new_object();
	json_object *boot = json_object_new_object();
	json_object *list = json_object_new_array();

	free(text);
	add_text(boot, "kind", "linuxBootloader");
	add_text(boot, "vmlinuzPath", vm_config_kernel(cfg));
	add_text(boot, "kernelCmdLine", vm_config_cmdline(cfg));
	add_text(boot, "initrdPath", text_of(from, "initrd"));
	json_object_object_add(o, "vcpus",
			       json_object_new_int64(vm_config_cpus(cfg)));
	json_object_object_add(
		o, "memoryBytes",
		json_object_new_int64((int64_t)vm_config_memory(cfg)));
	json_object_object_add(o, "bootloader", boot);
	add_devices(list, from, "disks", inspect_disk);
	add_devices(list, from, "networks", inspect_net);
	add_devices(list, from, "shares", inspect_share);
	add_devices(list, from, "vsock", inspect_vsock);
	add_devices(list, from, "devices", inspect_other);
	json_object_object_add(o, "devices", list);
	json_object_put(from);
	answer(k, 200, o);
}

/* -- requests ------------------------------------------------------------- */

static void serve(struct rest *r, struct client *k, const struct request *q,
		  struct vm *vm)
{
	bool get = !strcmp(q->method, "GET"), post = !strcmp(q->method, "POST");
	bool state = !strcmp(q->path, "/vm/state");

	if (q->foreign)
		refuse(k, 403, "not for pages of a browser");
	else if (!state && strcmp(q->path, "/vm/inspect") != 0)
		refuse(k, 404, "there are /vm/state and /vm/inspect");
	else if (get && state)
		get_state(k, vm);
	else if (get)
		inspect(r, k);
	else if (post && state)
		set_state(r, k, q, vm);
	else
		refuse(k, 405, "not with this method");
}

/* An address, which nobody else can have named, localhost, or our own name. */
static bool is_ours(const struct rest *r, char *host)
{
	struct in6_addr a;
	char *end = *host == '[' ? strchr(host, ']') : strrchr(host, ':');

	if (*r->path)
		return true;
	if (end)
		*end = 0;
	if (*host == '[')
		return inet_pton(AF_INET6, host + 1, &a) == 1;
	return inet_pton(AF_INET, host, &a) == 1 ||
	       !strcasecmp(host, "localhost") || !strcasecmp(host, r->host);
}

/* 0, or the status of the refusal. */
static int take_header(const struct rest *r, struct request *q, char *line)
{
	char *value = strchr(line, ':'), *end;

	if (!value)
		return 400;
	*value++ = 0;
	value += strspn(value, " \t");
	if (!strcasecmp(line, "Origin"))
		q->foreign = true;
	if (!strcasecmp(line, "Host") && !is_ours(r, value))
		q->foreign = true;
	/* A body in pieces: nobody sends one so small that way. */
	if (!strcasecmp(line, "Transfer-Encoding"))
		return 400;
	if (strcasecmp(line, "Content-Length") != 0)
		return 0;
	if (!isdigit((unsigned char)*value))
		return 400;
	errno = 0;
	q->body_len = strtoul(value, &end, 10);
	if (*end && *end != ' ')
		return 400;
	return errno || q->body_len > MAX_BODY ? 413 : 0;
}

/* The head up to end, which is cut up.  0, or the status of the refusal. */
static int take_head(const struct rest *r, struct request *q, char *head)
{
	char *rest, *line = strtok_r(head, "\r\n", &rest), *word;
	int ret = 0;

	q->method = line ? strtok_r(line, " ", &word) : NULL;
	q->path = q->method ? strtok_r(NULL, " ", &word) : NULL;
	line = q->path ? strtok_r(NULL, " ", &word) : NULL;
	if (!line || strncmp(line, "HTTP/1.", 7) != 0)
		return 400;
	while (!ret && (line = strtok_r(NULL, "\r\n", &rest)))
		ret = take_header(r, q, line);
	return ret;
}

static void take_request(struct rest *r, struct client *k, struct vm *vm)
{
	struct request q = { 0 };
	char *end, head[ROOM + 1];
	size_t n;
	int ret;

	k->in[k->in_len] = 0;
	end = strstr(k->in, "\r\n\r\n");
	if (!end) {
		if (k->in_len == ROOM || strlen(k->in) < k->in_len)
			refuse(k, 400, "not a request");
		return;
	}
	n = (size_t)(end - k->in);
	memcpy(head, k->in, n);
	head[n] = 0;
	ret = take_head(r, &q, head);
	n += 4;
	if (ret) {
		refuse(k, ret, "not a request that is understood");
		return;
	}
	if (k->in_len - n < q.body_len)
		return;
	q.body = k->in + n;
	q.body[q.body_len] = 0;
	serve(r, k, &q, vm);
}

/* -- the loop's side ------------------------------------------------------ */

static void receive(struct rest *r, struct client *k, struct vm *vm)
{
	ssize_t n = read(k->fd, k->in + k->in_len, ROOM - k->in_len);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(k);
		return;
	}
	k->in_len += (size_t)n;
	take_request(r, k, vm);
}

static void transmit(struct client *k)
{
	ssize_t n = send(k->fd, k->out + k->sent, k->out_len - k->sent,
			 MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		k->sent += (size_t)n;
	if (n < 0 || k->sent == k->out_len)
		drop(k);
}

/* With too many, the one that came first has had its time. */
static void take_client(struct rest *r)
{
	int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *k = &r->client[0];

	if (fd < 0)
		return;
	for (unsigned i = 0; i < REST_CLIENTS && k->fd >= 0; i++)
		if (r->client[i].fd < 0 || r->client[i].turn < k->turn)
			k = &r->client[i];
	if (k->fd >= 0)
		drop(k);
	k->fd = fd;
	k->in_len = k->out_len = k->sent = 0;
	k->turn = r->turn++;
}

void rest_polls(const struct rest *r, struct pollfd *f)
{
	f[0] = (struct pollfd){ .fd = r->listener, .events = POLLIN };
	for (unsigned i = 0; i < REST_CLIENTS; i++)
		f[1 + i] = (struct pollfd){
			.fd = r->client[i].fd,
			.events = r->client[i].out ? POLLOUT : POLLIN,
		};
}

void rest_handle(struct rest *r, const struct pollfd *f, struct vm *vm)
{
	for (unsigned i = 0; i < REST_CLIENTS; i++) {
		struct client *k = &r->client[i];

		if (k->fd < 0 || k->fd != f[1 + i].fd || !f[1 + i].revents)
			continue;
		if (!k->out)
			receive(r, k, vm);
		/* At once: the machine may be about to end. */
		if (k->fd >= 0 && k->out)
			transmit(k);
	}
	if (f[0].revents)
		take_client(r);
}
