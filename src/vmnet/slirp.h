/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp.h - libslirp, which is loaded when a network is made
 *
 * It brings GLib with it: more than all else that a machine without a network
 * needs of the host's libraries.
 */
#ifndef VMNET_SLIRP_H
#define VMNET_SLIRP_H

#include <slirp/libslirp.h>

#include "husk/error.h"

struct slirp_library {
	void *handle;
	typeof(slirp_new) *new;
	typeof(slirp_cleanup) *cleanup;
	typeof(slirp_handle_timer) *handle_timer;
	typeof(slirp_pollfds_fill) *pollfds_fill;
	typeof(slirp_pollfds_poll) *pollfds_poll;
	typeof(slirp_input) *input;
	typeof(slirp_add_hostxfwd) *add_hostxfwd;
	typeof(slirp_remove_hostxfwd) *remove_hostxfwd;
};

int slirp_load(struct slirp_library *s, struct husk_error *err);
void slirp_unload(struct slirp_library *s); /* zeroes are fine */

#endif /* VMNET_SLIRP_H */
