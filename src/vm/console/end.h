/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.h - the host's end of a port of characters: a program, a file, a
 * pseudo-terminal or a Unix socket
 *
 * Nothing here blocks its caller: who does not read makes end_write() take
 * less, and the device stops its guest's writer.
 */
#ifndef VM_CONSOLE_END_H
#define VM_CONSOLE_END_H

#include <stdbool.h>
#include <stddef.h>

#include "base/loop.h"
#include "husk/error.h"

enum end_kind {
	END_NULL,
	END_CALL, /* a function of the program, on a thread of its own */
	END_FILE, /* written from its start */
	END_PTY,
	END_LISTEN, /* a Unix socket; one peer at a time */
	END_CONNECT,
};

struct end_config {
	enum end_kind kind;
	const char *path; /* of a file or socket */
	/* END_CALL; may block as long as it likes. */
	void (*output)(void *opaque, const void *data, size_t len);
	void *opaque;
	struct loop *loop;
	/* What a person has to know, such as the name of a terminal. */
	void (*log)(void *sink, const char *text);
	void *sink;
};

/* The device.  All are called with no lock held, on any thread. */
struct end_user {
	/* Bytes for the guest; how many were taken, see end_more(). */
	size_t (*input)(void *sink, const void *data, size_t len);
	/* end_write() takes more again. */
	void (*room)(void *sink);
	/* Somebody is there, or no longer. */
	void (*connected)(void *sink, bool on);
	void *sink;
};

struct end;

/* Strings last until it returns. */
struct end *end_open(const struct end_config *cfg, struct husk_error *err);
void end_close(struct end *e); /* NULL is fine */
/* NULL: none; then no call runs and none will.  Not from a call of a user. */
void end_attach(struct end *e, const struct end_user *user);
bool end_connected(struct end *e);
/* How many bytes were taken; less than len: room() will be called. */
size_t end_write(struct end *e, const void *data, size_t len);
/*
 * Of a function: more than it should, for who cannot wait; what fits nowhere is
 * lost.  false: better wait for room().
 */
bool end_force(struct end *e, const void *data, size_t len);
/* Input was taken in part, and now there is room. */
void end_more(struct end *e);
/*
 * Nothing would be lost by end_close(): a terminal forgets what nobody has
 * read, all others keep it.
 */
bool end_is_read(struct end *e);
/* Returns when the program has all output, or end_cut() was called. */
void end_drain(struct end *e);
void end_cut(struct end *e);

#endif /* VM_CONSOLE_END_H */
