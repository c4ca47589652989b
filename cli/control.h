/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.h - the socket by which other programs reach a machine that runs
 *
 * A line is a request, a JSON object with "command"; it is answered by a line,
 * with "ok".  docs/control.md lists the commands; control_commands.c has their
 * table.  All of this runs on the loop of the session.
 */
#ifndef CLI_CONTROL_H
#define CLI_CONTROL_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "console.h"
#include "husk/saved.h"
#include "place.h"

struct json_object;
struct session;

enum { CONTROL_CLIENTS = 16, CONTROL_POLLS = CONTROL_CLIENTS + 2 };

struct control_client {
	int fd; /* -1: none */
	char *in;
	size_t in_len;
	char *out;
	size_t out_len;
	bool console; /* no requests any more: bytes of the serial port */
	bool given;   /* somebody else answers, on a copy of fd */
	bool closing; /* when out is empty */
	bool eof;     /* it says nothing more */
	uint64_t at;  /* in the console's output */
};

struct control {
	struct session *session;
	struct console console;
	char path[108];
	int listener;
	struct control_client client[CONTROL_CLIENTS];
	struct control_save *save;     /* under way or done; NULL: none */
	struct control_clones *clones; /* the same; a list */
};

/* 0 or an exit status. */
int control_open(struct control *c, struct session *s, const char *dir,
		 const char *console_log);
void control_close(struct control *c);

/* What to wait for: up to CONTROL_POLLS entries; how many. */
unsigned control_polls(struct control *c, struct pollfd *f);
/* After poll(). */
void control_handle(struct control *c, const struct pollfd *f, unsigned n,
		    struct vm *vm);
/* At the end, before control_close(): lets readers have the last output. */
void control_flush(struct control *c);

/* -- control_commands.c --------------------------------------------------- */

struct control_call {
	struct control *control;
	struct control_client *client;
	struct vm *vm;
	struct json_object *request;
	struct json_object *reply; /* to be added to; has "ok" already */
	struct husk_error err;	   /* when it fails */
};

/*
 * 0, or a negative errno with a sentence in call->err.  Must not block: the
 * machine's loop waits.
 */
typedef int control_command(struct control_call *call);

control_command *control_find(const char *name);

/* -- control_save.c ------------------------------------------------------- */

int control_pause(struct control_call *call);
int control_resume(struct control_call *call);
int control_save(struct control_call *call);
int control_save_status(struct control_call *call);
int control_save_cancel(struct control_call *call);
/* The machine is about to be destroyed: what works on it ends. */
void control_end(struct control *c);
/* Of vm_save_options, with the session. */
int control_disk_moved(void *opaque, unsigned disk, const char *path);
/* A save is under way. */
bool control_saves(const struct control *c);

/* -- control_clone.c ------------------------------------------------------ */

enum { CONTROL_CLONES = 1000 }; /* at once */

int control_clone(struct control_call *call);
/* Until the clones that were asked for are processes of their own. */
void control_clones_end(struct control *c);
/* In a process of its own: the same of a saved machine. */
_Noreturn void clones_of_file(int fd, char (*name)[NAME_SIZE], unsigned count,
			      bool paused, const struct vm_saved *saved);

/* -- client.c ------------------------------------------------------------- */

/* The other side.  A socket, or -1: nobody answers there. */
int control_connect(const char *dir);
/* To the machine of this name; -1: it has complained. */
int control_reach(const char *name);
/*
 * Sends {"command": command} with the members of more (may be NULL, is
 * given away).  The reply, to be put; NULL: err says why.
 */
struct json_object *control_request(int fd, const char *command,
				    struct json_object *more, int timeout_ms,
				    struct husk_error *err);
/* One more reply, to be put; NULL: err says why, -ECONNRESET: there is none. */
struct json_object *control_read(int fd, int timeout_ms,
				 struct husk_error *err);

#endif /* CLI_CONTROL_H */
