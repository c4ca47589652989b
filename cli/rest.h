/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rest.h - a machine over HTTP, in the words of vfkit and krunkit
 *
 * GET and POST /vm/state, GET /vm/inspect; one request for each connection.
 * All of this runs on the loop of the session.
 */
#ifndef CLI_REST_H
#define CLI_REST_H

#include <poll.h>

struct session;
struct vm;

enum { REST_CLIENTS = 8, REST_POLLS = REST_CLIENTS + 1 };

struct rest;

/*
 * uri: tcp://HOST:PORT, unix:///PATH or none://.  0 with *out, which is NULL
 * for none, or an exit status when it has complained.
 */
int rest_open(struct rest **out, struct session *s, const char *uri);
void rest_close(struct rest *r); /* NULL is fine */

/* What to wait for: REST_POLLS entries. */
void rest_polls(const struct rest *r, struct pollfd *f);
/* After poll(). */
void rest_handle(struct rest *r, const struct pollfd *f, struct vm *vm);

#endif /* CLI_REST_H */
