/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_vsock.c - the socket device of a configuration and its text form
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

void vsock_config_finish(struct vsock_config *v)
{
	free(v->path);
	for (unsigned i = 0; i < v->nports; i++)
		free(v->port[i].path);
	memset(v, 0, sizeof(*v));
}

/* A 32-bit number that is not "any". */
static int parse_number(const char *text, uint32_t min, uint32_t *out)
{
	unsigned long long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (*end || errno || v < min || v >= UINT32_MAX)
		return -EINVAL;
	*out = (uint32_t)v;
	return 0;
}

static int set_vsock(struct vm_config *cfg, char *text, const char *spec,
		     struct husk_error *err)
{
	char *save, *path = NULL;
	uint32_t cid = 0;

	for (char *o = strtok_r(text, ",", &save); o;
	     o = strtok_r(NULL, ",", &save)) {
		/* 0 to 2 are the hypervisor's, the loopback and the host. */
		if (!strncmp(o, "cid=", 4)) {
			if (parse_number(o + 4, 3, &cid))
				return error_set(err, -EINVAL,
						 "vsock %s: cid is a number "
						 "from 3 to 4294967294",
						 spec);
		} else if (!path && o == text) {
			path = o;
		} else {
			return error_set(err, -EINVAL,
					 "vsock %s: there is no option \"%s\"",
					 spec, o);
		}
	}
	if (!path && !cid)
		return error_set(err, -EINVAL, "vsock %s: PATH is missing",
				 spec);
	if (path && cfg->vsock.path)
		return error_set(err, -EINVAL,
				 "vsock %s: there is one already, at %s", spec,
				 cfg->vsock.path);
	if (path) {
		cfg->vsock.path = strdup(path);
		if (!cfg->vsock.path)
			return error_errno(err, -ENOMEM, "vsock %s", spec);
	}
	if (cid)
		cfg->vsock.cid = cid;
	cfg->vsock.on = true;
	return config_remember(cfg, "vsock", spec)
		       ? error_errno(err, -ENOMEM, "vsock %s", spec)
		       : 0;
}

int vm_config_add_vsock(struct vm_config *cfg, const char *spec,
			struct husk_error *err)
{
	char *text = strdup(spec);
	int ret = text ? set_vsock(cfg, text, spec, err)
		       : error_errno(err, -ENOMEM, "vsock %s", spec);

	free(text);
	return ret;
}

int vm_config_set_vsock_path(struct vm_config *cfg, const char *path)
{
	struct vsock_config *v = &cfg->vsock;
	char *copy = strdup(path), *text = NULL;

	if (!copy)
		return -ENOMEM;
	for (unsigned i = 0; i < cfg->nwords; i++) {
		struct config_word *w = &cfg->word[i];

		if (strcmp(w->list, "vsock") != 0)
			continue;
		if (asprintf(&text, v->cid ? "%s,cid=%u" : "%s", path, v->cid) <
		    0) {
			free(copy);
			return -ENOMEM;
		}
		free(w->text);
		w->text = text;
	}
	free(v->path);
	v->path = copy;
	v->on = true;
	return 0;
}

const char *vm_config_vsock_path(const struct vm_config *cfg)
{
	return cfg->vsock.path;
}

/* -- the form that vfkit and krunkit share -------------------------------- */

/* "port=N,socketURL=PATH[,listen|connect]", or nothing: no port. */
int config_add_virtio_vsock(struct vm_config *cfg, char *options,
			    const char *spec, struct husk_error *err)
{
	struct vsock_config *v = &cfg->vsock;
	const char *path = NULL;
	bool to_guest = false, has_port = false;
	uint32_t port = 0;
	char *save;

	for (char *o = strtok_r(options, ",", &save); o;
	     o = strtok_r(NULL, ",", &save)) {
		if (!strncmp(o, "port=", 5) && !parse_number(o + 5, 1, &port)) {
			has_port = true;
		} else if (!strncmp(o, "socketURL=", 10) && o[10]) {
			path = o + 10;
			if (!strncmp(path, "unix://", 7))
				path += 7;
		} else if (!strcmp(o, "connect")) {
			to_guest = true;
		} else if (!strcmp(o, "listen")) {
			to_guest = false;
		} else {
			return error_set(err, -EINVAL,
					 "device %s: \"%s\" is not possible",
					 spec, o);
		}
	}
	v->on = true;
	if (!path && !has_port)
		return 0;
	if (!path || !has_port)
		return error_set(err, -EINVAL,
				 "device %s: port=N and socketURL=PATH go "
				 "together",
				 spec);
	for (unsigned i = 0; i < v->nports; i++)
		if (v->port[i].port == port && v->port[i].to_guest == to_guest)
			return error_set(err, -EINVAL,
					 "device %s: port %u is in use by %s",
					 spec, port, v->port[i].path);
	if (v->nports == MAX_VSOCK_PORTS)
		return error_set(err, -E2BIG, "device %s: at most %d", spec,
				 MAX_VSOCK_PORTS);
	v->port[v->nports].path = strdup(path);
	if (!v->port[v->nports].path)
		return error_errno(err, -ENOMEM, "device %s", spec);
	v->port[v->nports].port = port;
	v->port[v->nports++].to_guest = to_guest;
	return 0;
}
