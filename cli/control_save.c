/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_save.c - requests that stop the machine's time or write it to a file
 *
 * Saving takes long, and requests must not wait: a thread does it, and who
 * asked for it asks again how far it is.
 */
#include <errno.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "control.h"
#include "start.h"

struct control_save {
	struct vm *vm;
	char *path;
	const struct session *session;
	struct vm_save_options options;
	pthread_t thread;
	atomic_bool cancel, ended;
	_Atomic uint64_t done, total;
	int ret; /* and below: when it has ended */
	struct vm_save_result result;
	struct husk_error err;
};

static int fail(struct control_call *call, int ret, const char *text)
{
	snprintf(call->err.text, sizeof(call->err.text), "%s", text);
	return ret;
}

static bool flag(struct control_call *call, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(call->request, key, &v) &&
	       json_object_get_boolean(v);
}

bool control_saves(const struct control *c)
{
	return c->save && !atomic_load(&c->save->ended);
}

int control_pause(struct control_call *call)
{
	if (control_saves(call->control))
		return fail(call, -EBUSY, "the machine is being saved");
	return vm_pause(call->vm, &call->err);
}

int control_resume(struct control_call *call)
{
	int ret;

	if (control_saves(call->control))
		return fail(call, -EBUSY, "the machine is being saved");
	ret = vm_resume(call->vm, &call->err);
	if (!ret)
		session_step_clock(call->control->session);
	return ret;
}

static bool progress(void *opaque, uint64_t done, uint64_t total)
{
	struct control_save *s = opaque;

	atomic_store(&s->done, done);
	atomic_store(&s->total, total);
	return !atomic_load(&s->cancel);
}

/* Before the guest can write to it: a start of later takes the right one. */
int control_disk_moved(void *opaque, unsigned disk, const char *path)
{
	struct session *session = opaque;

	if (vm_config_set_disk_path(session->cfg, disk, path, "qcow2"))
		return -ENOMEM;
	return session->place && start_move_disk(session->place, disk, path)
		       ? -EIO
		       : 0;
}

static void *save_main(void *arg)
{
	struct control_save *s = arg;

	s->ret = vm_save(s->vm, s->path, &s->options, progress, s, &s->result,
			 &s->err);
	/* The file is whole: that husk delete would not know it is no fault. */
	if (!s->ret && s->session->place)
		saves_note(s->session->place, s->path);
	atomic_store(&s->ended, true);
	return NULL;
}

static void forget(struct control *c)
{
	if (!c->save)
		return;
	atomic_store(&c->save->cancel, true);
	pthread_join(c->save->thread, NULL);
	free(c->save->path);
	free(c->save);
	c->save = NULL;
}

int control_save(struct control_call *call)
{
	struct control *c = call->control;
	struct control_save *s;
	json_object *file;

	if (control_saves(c))
		return fail(call, -EBUSY, "the machine is being saved");
	if (!json_object_object_get_ex(call->request, "file", &file) ||
	    !json_object_is_type(file, json_type_string) ||
	    *json_object_get_string(file) != '/')
		return fail(call, -EINVAL, "\"file\" is an absolute path");
	forget(c);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->vm = call->vm;
	s->session = c->session;
	s->path = strdup(json_object_get_string(file));
	s->options = (struct vm_save_options){
		.stop = flag(call, "stop"),
		.compress = flag(call, "compress"),
		.scratch = flag(call, "scratch"),
		.disk_moved = control_disk_moved,
		.opaque = c->session,
	};
	s->total = 1;
	if (!s->path || pthread_create(&s->thread, NULL, save_main, s)) {
		free(s->path);
		free(s);
		return -ENOMEM;
	}
	c->save = s;
	return 0;
}

static void number(struct control_call *call, const char *key, uint64_t n)
{
	json_object_object_add(call->reply, key,
			       json_object_new_int64((int64_t)n));
}

static void state(struct control_call *call, const char *text)
{
	json_object_object_add(call->reply, "state",
			       json_object_new_string(text));
}

int control_save_status(struct control_call *call)
{
	struct control *c = call->control;
	struct control_save *s = c->save;

	if (!s)
		return fail(call, -ENOENT, "nobody has asked for a save");
	if (!atomic_load(&s->ended)) {
		state(call, "saving");
		number(call, "done", atomic_load(&s->done));
		number(call, "total", atomic_load(&s->total));
		return 0;
	}
	if (s->ret)
		return fail(call, s->ret, s->err.text);
	state(call, "saved");
	number(call, "bytes", s->result.bytes);
	number(call, "stop_us", s->result.stop_ns / 1000);
	/* Who asked for it knows that the file is there. */
	if (s->options.stop)
		c->session->killed = true;
	return 0;
}

int control_save_cancel(struct control_call *call)
{
	if (call->control->save)
		atomic_store(&call->control->save->cancel, true);
	return 0;
}

void control_end(struct control *c)
{
	control_clones_end(c);
	forget(c);
}
