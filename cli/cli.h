/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cli.h - the subcommands of husk and what they share
 */
#ifndef CLI_H
#define CLI_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "husk/saved.h"
#include "husk/vm.h"

enum { EXIT_FAULT = 1, EXIT_USAGE = 2, EXIT_DIED = 3, EXIT_TIMEOUT = 124 };

int cmd_create(int argc, char **argv);
int cmd_start(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_kill(int argc, char **argv);
int cmd_delete(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_console(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_pause(int argc, char **argv);
int cmd_resume(int argc, char **argv);
int cmd_save(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_clone(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_disk(int argc, char **argv);
int cmd_exec(int argc, char **argv);

/* "512M", "20G"...: 0 or -EINVAL. */
int parse_size(const char *text, uint64_t *out);

/* "husk: " and the sentence, on standard error. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* -- terminal.c ----------------------------------------------------------- */

/*
 * Raw mode when standard input is a terminal; undone by terminal_restore(),
 * and when a signal of a fault kills us.
 */
void terminal_raw(void);
void terminal_restore(void);
bool terminal_is_raw(void);

/*
 * Filter typed bytes in place: Ctrl-A x asks to quit, Ctrl-A Ctrl-A is one
 * Ctrl-A.  Returns how many bytes are for the guest.
 */
struct escape {
	bool seen, quit;
	bool detachable, detach; /* Ctrl-A d asks for that */
};
size_t terminal_filter(struct escape *e, char *data, size_t len);

/* -- serial.c ------------------------------------------------------------- */

/* (o) also by the threads that bring output */
struct serial {
	const char *where;
	int in, out;   /* -1: none */
	int other;     /* the far side of our pty, or -1 */
	int wake;      /* readable: call serial_push(), look at error */
	int cut;       /* readable: output is thrown away */
	bool terminal; /* in is one: escapes, hang-up */
	bool may_lose; /* nobody has to read */
	enum vm_port port;
	struct escape escape;
	char *input; /* for the guest */
	size_t len;
	atomic_bool ended;    /* (o) input is at its end */
	atomic_bool spoke;    /* (o) output since the end of file was typed */
	atomic_long spoke_ms; /* (o) the last of it */
	atomic_int error;     /* (o) errno of the failed write, or 0 */
};

/* 0, or an exit status when it has complained.  Close in either case. */
int serial_open(struct serial *s, const char *where);
void serial_close(struct serial *s);
/* For vm_config_set_output() and vm_config_set_room(). */
void serial_output(void *opaque, const void *data, size_t len);
void serial_room(void *opaque);
/* Before the machine is stopped: do not wait for who reads the output. */
void serial_cut(struct serial *s);
/* The descriptor to wait for, or -1. */
int serial_in(const struct serial *s);
/* 0, or -EIO: the terminal is gone. */
int serial_read(struct serial *s);
/* As if read; how much of it there was room for. */
size_t serial_type(struct serial *s, const char *data, size_t len);
/* Give the guest what it takes. */
void serial_push(struct serial *s, struct vm *vm);
/*
 * The end of input is an end of file for a guest's shell, too: Ctrl-D is
 * typed when the guest has said something and then is quiet.  Milliseconds
 * until serial_push() does it, -1: not now.
 */
long serial_wait(const struct serial *s);

/* -- session.c ------------------------------------------------------------ */

/* One machine, or the same one again and again when the guest resets it. */
enum { MAX_MACS = 8 };

/* What tells a clone's guest from the original's, by its agent. */
struct identity {
	char name[64]; /* "": it stays who it was */
	struct {
		uint8_t from[6], to[6];
	} mac[MAX_MACS];
	unsigned nmacs;
};

struct session {
	struct vm_config *cfg;
	const char *where; /* --serial */
	struct serial serial;
	bool stats;
	const char *restful_uri; /* NULL: none */
	struct rest *rest;
	long timeout_ms; /* -1: none */
	int signal;	 /* that ended us, or 0 */

	/* Of a named machine; else NULL. */
	const char *name;
	struct place *place;
	struct control *control;
	/* Called once when the machine runs. */
	void (*ready)(struct session *s);
	void *opaque;

	/* Its first start is a restore; else NULL. */
	const struct vm_saved *saved;
	struct vm_restore_options restore;
	bool paused; /* begins so */
	struct identity identity;

	bool asked;	 /* to shut down, by a signal */
	bool killed;	 /* by a request */
	long started_ms; /* of now_ms() */
	unsigned resets;
};

void session_init(struct session *s);
/* What --timeout says; 0 or an exit status. */
int session_set_timeout(struct session *s, const char *arg);
/*
 * The machine's time has stood still: an agent in the guest, if there is one,
 * sets its clock, and makes a clone another machine.  Returns at once.
 */
void session_step_clock(struct session *s);
/* Until the machine ends; an exit status. */
int session_run(struct session *s);

/* -- progress.c ----------------------------------------------------------- */

/* "1.5 GiB" */
void show_size(char *to, size_t room, uint64_t bytes);
long now_ms(void);

/* A bar on standard error, on a terminal only. */
struct bar {
	const char *what;
	long next_ms;
	bool shown;
	bool (*go_on)(void); /* NULL: always */
};
bool bar_progress(void *opaque, uint64_t done, uint64_t total);
void bar_end(const struct bar *bar);

/* -- compact.c ------------------------------------------------------------ */

/* An image, or all disks of the machine of this name.  An exit status. */
int compact(const char *what, const char *format, bool (*go_on)(void));

#endif /* CLI_H */
