/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp.c - libslirp, which is loaded when a network is made
 */
#include "vmnet/slirp.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"

int slirp_load(struct slirp_library *s, struct husk_error *err)
{
	const struct {
		const char *name;
		void *to;
	} symbols[] = {
		{ "slirp_new", &s->new },
		{ "slirp_cleanup", &s->cleanup },
		{ "slirp_handle_timer", &s->handle_timer },
		{ "slirp_pollfds_fill", &s->pollfds_fill },
		{ "slirp_pollfds_poll", &s->pollfds_poll },
		{ "slirp_input", &s->input },
		{ "slirp_add_hostxfwd", &s->add_hostxfwd },
		{ "slirp_remove_hostxfwd", &s->remove_hostxfwd },
	};

	unsigned n = 0;

	s->handle = dlopen("libslirp.so.0", RTLD_NOW | RTLD_LOCAL);
	for (; s->handle && n < ARRAY_SIZE(symbols); n++) {
		void *at = dlsym(s->handle, symbols[n].name);

		if (!at)
			break;
		memcpy(symbols[n].to, &at, sizeof(at));
	}
	if (n == ARRAY_SIZE(symbols))
		return 0;
	error_set(err, -ENOENT, "network: libslirp is needed: %s", dlerror());
	slirp_unload(s);
	return -ENOENT;
}

void slirp_unload(struct slirp_library *s)
{
	if (s->handle)
		dlclose(s->handle);
	s->handle = NULL;
}
