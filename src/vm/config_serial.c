/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_serial.c - ports of the virtio console in a configuration
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

void serial_config_finish(struct serial_config *s)
{
	free(s->path);
	free(s->name);
	*s = (struct serial_config){ 0 };
}

static int set(char **to, const char *value)
{
	free(*to);
	*to = *value ? strdup(value) : NULL;
	if (!*value)
		return -EINVAL;
	return *to ? 0 : -ENOMEM;
}

/* Names are shown in /sys and become links in /dev/virtio-ports. */
static int set_name(struct serial_config *s, const char *name)
{
	if (strlen(name) > 31 || strchr(name, '/') || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		return -EINVAL;
	return set(&s->name, name);
}

static int set_kind(struct serial_config *s, enum end_kind kind)
{
	if (s->has_kind)
		return -EINVAL;
	s->has_kind = true;
	s->kind = kind;
	return 0;
}

static int set_path(struct serial_config *s, enum end_kind kind,
		    const char *path)
{
	int ret = set_kind(s, kind);

	return ret ? ret : set(&s->path, path);
}

static int parse_option(struct serial_config *s, const char *o)
{
	if (!strcmp(o, "stdio"))
		return set_kind(s, END_CALL);
	if (!strcmp(o, "pty"))
		return set_kind(s, END_PTY);
	if (!strcmp(o, "null"))
		return set_kind(s, END_NULL);
	if (!strncmp(o, "logFilePath=", 12))
		return set_path(s, END_FILE, o + 12);
	if (!strncmp(o, "socket=", 7))
		return set_path(s, END_CONNECT, o + 7);
	if (!strncmp(o, "name=", 5))
		return set_name(s, o + 5);
	if (!strcmp(o, "listen"))
		s->listen = true;
	else
		return -ENOENT;
	return 0;
}

static int parse(struct serial_config *s, char *options, const char *spec,
		 struct husk_error *err)
{
	char *save, *o;

	for (o = strtok_r(options, ",", &save); o;
	     o = strtok_r(NULL, ",", &save)) {
		int ret = parse_option(s, o);

		if (ret == -ENOMEM)
			return error_errno(err, ret, "device %s", spec);
		if (ret)
			return error_set(
				err, -EINVAL,
				"device %s: \"%s\" is not possible; "
				"there are stdio, pty, null, "
				"logFilePath=PATH, socket=PATH "
				"with or without listen, and name=NAME",
				spec, o);
	}
	if (!s->has_kind || (s->listen && s->kind != END_CONNECT) ||
	    (s->name && s->kind == END_CALL))
		return error_set(err, -EINVAL,
				 "device %s: needs one of stdio (without a "
				 "name), pty, null, logFilePath=PATH and "
				 "socket=PATH[,listen]",
				 spec);
	if (s->listen)
		s->kind = END_LISTEN;
	return 0;
}

int config_add_virtio_serial(struct vm_config *cfg, char *options,
			     const char *spec, struct husk_error *err)
{
	struct serial_config s = { 0 };
	int ret = parse(&s, options, spec, err);

	for (unsigned i = 0; !ret && i < cfg->nserials; i++) {
		const struct serial_config *o = &cfg->serial[i];

		if (s.kind == END_CALL && o->kind == END_CALL)
			ret = error_set(err, -EEXIST,
					"device %s: there is one stdio", spec);
		else if (s.name && o->name && !strcmp(s.name, o->name))
			ret = error_set(err, -EEXIST,
					"device %s: the name is taken", spec);
	}
	if (!ret && cfg->nserials == MAX_SERIALS)
		ret = error_set(err, -E2BIG, "device %s: at most %d ports",
				spec, MAX_SERIALS);
	if (ret)
		serial_config_finish(&s);
	else
		cfg->serial[cfg->nserials++] = s;
	return ret;
}

bool vm_config_console_is_stdio(const struct vm_config *cfg)
{
	for (unsigned i = 0; i < cfg->nserials; i++)
		if (cfg->serial[i].kind == END_CALL)
			return true;
	return false;
}
