/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_commands.c - what a machine that runs can be asked for
 *
 * docs/control.md describes each.  A new one is a function and a row.
 */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli.h"
#include "control.h"

static int __attribute__((format(printf, 3, 4)))
fail(struct control_call *call, int ret, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(call->err.text, sizeof(call->err.text), fmt, ap);
	va_end(ap);
	return ret;
}

static void reply_text(struct control_call *call, const char *key,
		       const char *text)
{
	json_object_object_add(call->reply, key, json_object_new_string(text));
}

static void reply_number(struct control_call *call, const char *key, int64_t n)
{
	json_object_object_add(call->reply, key, json_object_new_int64(n));
}

/* -ENOENT: it is not there. */
static int want_number(struct control_call *call, const char *key, int64_t max,
		       int64_t *out)
{
	json_object *v;

	if (!json_object_object_get_ex(call->request, key, &v))
		return fail(call, -ENOENT, "\"%s\" is missing", key);
	*out = json_object_get_int64(v);
	if (!json_object_is_type(v, json_type_int) || *out < 0 || *out > max)
		return fail(call, -EINVAL,
			    "\"%s\" is a number from 0 to %" PRId64, key, max);
	return 0;
}

static int want_size(struct control_call *call, const char *key, uint64_t *out)
{
	json_object *v;
	int64_t n = 0;
	int ret;

	if (json_object_object_get_ex(call->request, key, &v) &&
	    json_object_is_type(v, json_type_string)) {
		if (parse_size(json_object_get_string(v), out))
			return fail(call, -EINVAL,
				    "\"%s\" is not a size such as 20G", key);
		return 0;
	}
	ret = want_number(call, key, INT64_MAX, &n);
	*out = ret ? 0 : (uint64_t)n;
	return ret;
}

/* -- the commands --------------------------------------------------------- */

static int do_status(struct control_call *call)
{
	struct session *s = call->control->session;

	reply_text(call, "state",
		   vm_is_paused(call->vm) ? "paused" : "running");
	for (unsigned i = 0; i < vm_config_disk_count(s->cfg); i++)
		if (vm_disk_waits(call->vm, i))
			reply_text(call, "no_space",
				   vm_config_disk_path(s->cfg, i));
	reply_text(call, "name", s->name ? s->name : "");
	reply_text(call, "engine", vm_engine(call->vm));
	reply_number(call, "cpus", vm_config_cpus(s->cfg));
	reply_number(call, "memory", (int64_t)vm_config_memory(s->cfg));
	reply_number(call, "uptime_ms", now_ms() - s->started_ms);
	reply_number(call, "resets", s->resets);
	return 0;
}

static int do_stop(struct control_call *call)
{
	vm_power_button(call->vm);
	reply_text(call, "by", "power button");
	return 0;
}

static int do_kill(struct control_call *call)
{
	call->control->session->killed = true;
	return 0;
}

static int do_console(struct control_call *call)
{
	call->client->console = true;
	call->client->at = console_begin(&call->control->console);
	return 0;
}

static int do_resize_disk(struct control_call *call)
{
	uint64_t size = 0;
	int64_t disk = 0;
	int ret = want_number(call, "disk", 1000, &disk);

	if (!ret)
		ret = want_size(call, "size", &size);
	return ret ? ret
		   : vm_disk_grow(call->vm, (unsigned)disk, size, &call->err);
}

static int do_link(struct control_call *call)
{
	json_object *up;
	int64_t net = 0;
	int ret = want_number(call, "network", 1000, &net);

	if (ret)
		return ret;
	if (!json_object_object_get_ex(call->request, "up", &up) ||
	    !json_object_is_type(up, json_type_boolean))
		return fail(call, -EINVAL, "\"up\" is true or false");
	ret = vm_net_set_link(call->vm, (unsigned)net,
			      json_object_get_boolean(up));
	return ret ? fail(call, ret, "there is no network device %" PRId64, net)
		   : 0;
}

static int do_devices(struct control_call *call)
{
	json_object *list = json_object_new_object();
	struct vm_device d;

	for (unsigned i = 0; !vm_get_device(call->vm, i, &d); i++)
		json_object_object_add(list, d.id,
				       json_object_new_string(d.kind));
	json_object_object_add(call->reply, "devices", list);
	return 0;
}

static int do_balloon(struct control_call *call)
{
	struct vm_balloon_stats st;
	uint64_t target = 0;
	int ret = 0;

	if (json_object_object_get_ex(call->request, "target", NULL)) {
		ret = want_size(call, "target", &target);
		if (ret)
			return ret;
		ret = vm_balloon_set_target(call->vm, target);
	}
	if (!ret)
		ret = vm_balloon_stats(call->vm, -1, &st);
	if (ret)
		return fail(call, ret,
			    ret == -ENODEV
				    ? "there is no balloon"
				    : "\"target\" is more than the memory");
	reply_number(call, "target", (int64_t)st.target);
	reply_number(call, "actual", (int64_t)st.actual);
	reply_number(call, "inflated", (int64_t)st.inflated);
	reply_number(call, "reported", (int64_t)st.reported);
	reply_number(call, "hinted", (int64_t)st.hinted);
	if (!st.has_guest)
		return 0;
	reply_number(call, "guest_free", (int64_t)st.free);
	reply_number(call, "guest_available", (int64_t)st.available);
	reply_number(call, "guest_caches", (int64_t)st.caches);
	reply_number(call, "guest_total", (int64_t)st.total);
	reply_number(call, "guest_swap_in", (int64_t)st.swap_in);
	reply_number(call, "guest_swap_out", (int64_t)st.swap_out);
	reply_number(call, "guest_major_faults", (int64_t)st.major_faults);
	reply_number(call, "guest_minor_faults", (int64_t)st.minor_faults);
	return 0;
}

static int do_share(struct control_call *call)
{
	json_object *tag, *dir;

	if (!json_object_object_get_ex(call->request, "tag", &tag) ||
	    !json_object_is_type(tag, json_type_string) ||
	    !json_object_object_get_ex(call->request, "directory", &dir) ||
	    (dir && !json_object_is_type(dir, json_type_string)))
		return fail(call, -EINVAL,
			    "\"tag\" is a string, and \"directory\" is one or "
			    "null");
	return vm_share_set(call->vm, json_object_get_string(tag),
			    json_object_get_string(dir), &call->err);
}

static int do_help(struct control_call *call);

/* -- their table ---------------------------------------------------------- */

static const struct {
	const char *name, *what;
	control_command *run;
} commands[] = {
	{ "help", "these lines", do_help },
	{ "status", "what it is and since when", do_status },
	{ "stop", "ask the guest to shut down", do_stop },
	{ "kill", "end it, as if the power was cut", do_kill },
	{ "console", "the connection becomes the serial port", do_console },
	{ "pause", "stop the machine's time", control_pause },
	{ "resume", "let it go on", control_resume },
	{ "save", "begin to write it to a file: file, stop, compress",
	  control_save },
	{ "save-status", "how far that is", control_save_status },
	{ "save-cancel", "give it up", control_save_cancel },
	{ "clone", "machines that go on from here: names, paused",
	  control_clone },
	{ "resize-disk", "grow a disk: disk, size", do_resize_disk },
	{ "devices", "its devices and their kinds", do_devices },
	{ "balloon", "what the guest has of its memory: target", do_balloon },
	{ "share", "lead a share elsewhere: tag, directory", do_share },
	{ "link", "pull a network's cable or put it in: network, up", do_link },
};

enum { NCOMMANDS = sizeof(commands) / sizeof(commands[0]) };

static int do_help(struct control_call *call)
{
	json_object *list = json_object_new_object();

	for (unsigned i = 0; i < NCOMMANDS; i++)
		json_object_object_add(
			list, commands[i].name,
			json_object_new_string(commands[i].what));
	json_object_object_add(call->reply, "commands", list);
	return 0;
}

control_command *control_find(const char *name)
{
	for (unsigned i = 0; i < NCOMMANDS; i++)
		if (!strcmp(name, commands[i].name))
			return commands[i].run;
	return NULL;
}
