/* SPDX-License-Identifier: Apache-2.0 */
/*
 * husk-agent.h - the parts of the guest agent
 */
#ifndef HUSK_AGENT_INNER_H
#define HUSK_AGENT_INNER_H

#include <stdbool.h>
#include <stdint.h>

#include "frame.h"

/* The answers to a request. */
int answer_ok(int fd, const void *data, size_t len);
/* error: of errno, positive. */
int answer_error(int fd, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* -- exec.c --------------------------------------------------------------- */

/* Runs the command of an AGENT_EXEC frame; returns when the session is over. */
void exec_session(int fd, const struct frame *f);

/* -- system.c ------------------------------------------------------------- */

/* Each answers its request. */
int do_info(int fd);
int do_time(int fd, const struct frame *f);
int do_hostname(int fd, const struct frame *f);
int do_mac(int fd, const struct frame *f);
int do_fstrim(int fd);
/* Does not come back when it has answered AGENT_OK. */
int do_shutdown(int fd, const struct frame *f);
/* How many file systems. */
unsigned freeze_all(bool on);

#endif /* HUSK_AGENT_INNER_H */
