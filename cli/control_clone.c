/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_clone.c - a machine that runs is asked for clones of it
 *
 * The machine is split off once, and that process once more for each clone, so
 * all of them have the memory copy-on-write.  It has the connection from then
 * on: each clone says on it that it runs, or why not, and its end is that of
 * the last one.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "control.h"
#include "start.h"

enum { MAX_TEXT = 4096, MAX_CHAIN = 65 };

struct control_clones {
	struct control_clones *next;
	struct vm *vm;
	struct session *session; /* the original's; NULL: it is in a file */
	char (*name)[NAME_SIZE];
	unsigned count;
	bool paused;
	int fd;
	pthread_t thread;
	atomic_bool ended;
};

/* -- a clone -------------------------------------------------------------- */

struct clone {
	const struct control_clones *of;
	const struct vm_saved *image;
	const char *name;
	bool tells; /* what a clone lacks */
	bool told;  /* that it runs */
	int text;   /* what was complained of */
	int pipe;   /* open until it has told */
	struct session s;
	struct place place;
};

static void send_line(int fd, json_object *o)
{
	char line[2 * MAX_TEXT];
	int n = snprintf(
		line, sizeof(line), "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));

	/* It may be gone, and the clones are made nevertheless. */
	if (n > 0 && (size_t)n < sizeof(line) &&
	    send(fd, line, (size_t)n, MSG_NOSIGNAL) < 0)
		errno = 0;
	json_object_put(o);
}

static void say(int fd, const char *name, bool ok, const char *text)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "ok", json_object_new_boolean(ok));
	if (name)
		json_object_object_add(o, "clone",
				       json_object_new_string(name));
	if (*text)
		json_object_object_add(o, ok ? "note" : "error",
				       json_object_new_string(text));
	send_line(fd, o);
}

/* What it has complained of until now, without the name of the program. */
static void tell(struct clone *c, bool ok)
{
	char text[MAX_TEXT];
	ssize_t n = pread(c->text, text, sizeof(text) - 1, 0);
	size_t from = 0;

	text[n > 0 ? n : 0] = 0;
	n = (ssize_t)strlen(text);
	if (n && text[n - 1] == '\n')
		text[n - 1] = 0;
	if (!strncmp(text, "husk: ", 6))
		from = 6;
	say(c->of->fd, c->name, ok, text + from);
	close(c->of->fd);
	close(c->pipe);
	close(c->text);
	c->told = true;
}

static void runs(void *opaque)
{
	tell(opaque, true);
}

/*
 * The guest has the old addresses and name until its agent takes the new ones;
 * ports of the host lead to the original alone.
 */
static void be_another(struct clone *c, struct vm_config *cfg)
{
	struct identity *id = &c->s.identity;
	int forwards;

	snprintf(id->name, sizeof(id->name), "%s", c->name);
	while (id->nmacs < MAX_MACS &&
	       !vm_config_net_mac(cfg, id->nmacs, id->mac[id->nmacs].from))
		id->nmacs++;
	forwards = vm_config_make_distinct(cfg);
	for (unsigned i = 0; i < id->nmacs; i++)
		vm_config_net_mac(cfg, i, id->mac[i].to);
	if (forwards > 0 && c->tells)
		complain("clones are not reached by the %d port%s of the host "
			 "that lead%s to the original",
			 forwards, forwards > 1 ? "s" : "",
			 forwards > 1 ? "" : "s");
}

/* Nobody has to look again for what the original runs on. */
static int keep_engine(struct clone *c, struct vm_config *cfg)
{
	struct vm_saved_info info;

	if (strcmp(vm_config_engine(cfg), "auto") != 0)
		return 0;
	vm_saved_info(c->image, &info);
	return vm_config_set_engine(cfg, info.engine) ? EXIT_FAULT : 0;
}

static int run(struct clone *c)
{
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	int ret;

	if (vm_saved_config(c->image, &cfg, &err)) {
		complain("%s", err.text);
		return EXIT_FAULT;
	}
	be_another(c, cfg);
	ret = place_make(&c->place, c->name, cfg);
	if (ret)
		return ret;
	c->s.restore.disks = c->place.dir;
	ret = keep_engine(c, cfg);
	if (!ret)
		ret = start_detached(&c->place, cfg, &c->s, runs, c);
	/* It has never run. */
	if (!c->told && !place_lock(&c->place)) {
		place_delete(&c->place);
		place_release(&c->place);
	}
	return ret;
}

/* Without what exit() has to do for the original. */
static _Noreturn void be_clone(const struct control_clones *of,
			       const struct vm_saved *image, unsigned i,
			       int pipe)
{
	struct clone c = { .of = of,
			   .image = image,
			   .name = of->name[i],
			   .tells = !i,
			   .pipe = pipe };
	int ret;

	session_init(&c.s);
	c.s.saved = image;
	c.s.paused = of->paused;
	c.text = memfd_create("husk-clone", MFD_CLOEXEC);
	dup2(c.text, 2);
	ret = run(&c);
	if (!c.told)
		tell(&c, false);
	_exit(ret);
}

/* -- the process between -------------------------------------------------- */

/* A clone's link to a file is another file here. */
static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino && (x.st_nlink == 1 || !strcmp(a, b));
}

/* Is the image file, or has it somewhere below. */
static bool disk_stands_on(const char *path, const char *format,
			   const char *file)
{
	char at[PATH_SIZE], type[sizeof(((struct vm_disk_info *)0)->format)];
	struct husk_error ignored = { 0 };
	struct vm_disk_info info;

	snprintf(at, sizeof(at), "%s", path);
	snprintf(type, sizeof(type), "%s", format ? format : "");
	for (unsigned n = 0; n < MAX_CHAIN; n++) {
		char *slash = strrchr(at, '/');
		size_t keep;

		if (same_file(at, file))
			return true;
		if (vm_disk_info(at, *type ? type : NULL, &info, &ignored) ||
		    !*info.base)
			return false;
		keep = *info.base == '/' || !slash ? 0
						   : (size_t)(slash - at) + 1;
		if ((size_t)snprintf(at + keep, sizeof(at) - keep, "%s",
				     info.base) >= sizeof(at) - keep)
			return true;
		snprintf(type, sizeof(type), "%.15s", info.base_format);
	}
	return true;
}

static bool stands_on(const char *name, const char *file)
{
	struct vm_config *cfg;
	struct place p;
	bool yes = false;

	/* It may be gone, which is nobody's mistake. */
	if (!place_exists(name) || place_find(&p, name) || place_load(&p, &cfg))
		return false;
	for (unsigned i = 0; !yes && i < vm_config_disk_count(cfg); i++)
		yes = disk_stands_on(vm_config_disk_path(cfg, i),
				     vm_config_disk_format(cfg, i), file);
	vm_config_destroy(cfg);
	return yes;
}

/* What the original's disks were at that moment: the clones have their own. */
static void drop_copies(const struct control_clones *c,
			const struct vm_saved *image)
{
	struct vm_saved_disk *d = malloc(sizeof(*d));

	for (unsigned n = 0; d && !vm_saved_disk(image, n, d); n++) {
		bool used = d->readonly || !d->frozen ||
			    stands_on(c->session->name, d->path);

		for (unsigned i = 0; !used && i < c->count; i++)
			used = stands_on(c->name[i], d->path);
		if (!used)
			unlink(d->path);
	}
	free(d);
}

/* Each has its end of the pipe until it has said what became of it. */
static void make_all(const struct control_clones *c,
		     const struct vm_saved *image)
{
	int pipe[2];
	char none;

	if (pipe2(pipe, O_CLOEXEC))
		return;
	for (unsigned i = 0; i < c->count; i++) {
		pid_t pid = fork();

		if (!pid) {
			close(pipe[0]);
			be_clone(c, image, i, pipe[1]);
		}
		if (pid < 0)
			say(c->fd, c->name[i], false, strerror(errno));
	}
	close(pipe[1]);
	/* The connection is open until nothing is left to do. */
	while (read(pipe[0], &none, 1) < 0 && errno == EINTR)
		;
	close(pipe[0]);
}

static _Noreturn void split(const struct control_clones *c,
			    const struct vm_saved *image)
{
	say(c->fd, NULL, true, "");
	make_all(c, image);
	if (c->session)
		drop_copies(c, image);
	_exit(0);
}

void clones_of_file(int fd, char (*name)[NAME_SIZE], unsigned count,
		    bool paused, const struct vm_saved *saved)
{
	const struct control_clones c = {
		.fd = fd, .name = name, .count = count, .paused = paused
	};

	split(&c, saved);
}

/* -- the machine ---------------------------------------------------------- */

static void *clone_main(void *arg)
{
	struct control_clones *c = arg;
	const struct vm_save_options options = {
		.disk_moved = control_disk_moved,
		.opaque = c->session,
	};
	struct husk_error err = { 0 };
	struct vm_saved *image;
	pid_t pid = vm_fork(c->vm, &options, c->fd, &image, NULL, &err);

	if (!pid)
		split(c, image);
	if (pid < 0)
		say(c->fd, NULL, false, err.text);
	close(c->fd);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	atomic_store(&c->ended, true);
	return NULL;
}

static void forget(struct control *k, bool all)
{
	struct control_clones **p = &k->clones, *c;

	while ((c = *p)) {
		if (!all && !atomic_load(&c->ended)) {
			p = &c->next;
			continue;
		}
		pthread_join(c->thread, NULL);
		*p = c->next;
		free(c->name);
		free(c);
	}
}

void control_clones_end(struct control *c)
{
	forget(c, true);
}

static int fail(struct control_call *call, int ret, const char *text)
{
	snprintf(call->err.text, sizeof(call->err.text), "%s", text);
	return ret;
}

static bool take_names(struct control_clones *c, json_object *names)
{
	c->count = (unsigned)json_object_array_length(names);
	c->name = calloc(c->count, sizeof(*c->name));
	for (unsigned i = 0; c->name && i < c->count; i++) {
		const char *name = json_object_get_string(
			json_object_array_get_idx(names, i));

		if (!name || strlen(name) >= sizeof(*c->name))
			return false;
		snprintf(c->name[i], sizeof(*c->name), "%s", name);
	}
	return c->name;
}

/* A connection of its own, which waits. */
static int take_connection(const struct control_client *client)
{
	int fd = fcntl(client->fd, F_DUPFD_CLOEXEC, 3);

	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return fd;
}

int control_clone(struct control_call *call)
{
	struct control *k = call->control;
	struct control_clones *c;
	json_object *names, *paused;

	if (control_saves(k))
		return fail(call, -EBUSY, "the machine is being saved");
	if (!json_object_object_get_ex(call->request, "names", &names) ||
	    !json_object_is_type(names, json_type_array) ||
	    !json_object_array_length(names) ||
	    json_object_array_length(names) > CONTROL_CLONES)
		return fail(call, -EINVAL,
			    "\"names\" is an array of 1 to 1000 names");
	forget(k, false);
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->vm = call->vm;
	c->session = k->session;
	c->paused =
		json_object_object_get_ex(call->request, "paused", &paused) &&
		json_object_get_boolean(paused);
	c->fd = -1;
	if (take_names(c, names))
		c->fd = take_connection(call->client);
	if (c->fd < 0 || pthread_create(&c->thread, NULL, clone_main, c)) {
		if (c->fd >= 0)
			close(c->fd);
		free(c->name);
		free(c);
		return fail(call, -EINVAL, "the clones have no names");
	}
	c->next = k->clones;
	k->clones = c;
	call->client->given = true;
	return 0;
}
