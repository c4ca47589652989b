/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent.h - asking the agent in a guest
 *
 * Each function returns 0 or a negative errno value with a sentence in err
 * (may be NULL).  A connection is a file descriptor: close() it.  It serves
 * one request at a time; several connections at once are fine.
 */
#ifndef CLI_AGENT_H
#define CLI_AGENT_H

#include <stddef.h>
#include <stdint.h>

#include "husk/agent.h"
#include "husk/error.h"

/*
 * The Unix socket of the guest NAME's sockets, in buf.  -ENOENT: no machine
 * of that name runs; -ENAMETOOLONG.
 */
int agent_path(const char *name, char *buf, size_t size,
	       struct husk_error *err);

/*
 * A connection to the agent of the guest behind the Unix socket (of husk run
 * --vsock), or a negative errno value.  Waits up to timeout_ms for a guest
 * that is still starting (0: asks once).  -ENOENT, -ECONNREFUSED: no machine;
 * -ETIMEDOUT, -EHOSTDOWN: no agent answers in it; -EPROTO: not an agent.
 */
int agent_open(const char *vsock_path, int timeout_ms, struct husk_error *err);

/* The guest has begun to go down; the machine's end shows when it has. */
int agent_shutdown(int fd, enum agent_shutdown how, struct husk_error *err);

/*
 * Set the guest's clock to ours.  step: at once (after a restore or resume),
 * else only what is a second off or more is stepped.  off_ns (may be NULL):
 * how far it was ahead.
 */
int agent_sync_time(int fd, int step, int64_t *off_ns, struct husk_error *err);

/* Unused blocks of all file systems go back; bytes (may be NULL). */
int agent_fstrim(int fd, uint64_t *bytes, struct husk_error *err);
int agent_sync(int fd, struct husk_error *err);
/*
 * No file system changes until agent_thaw(), close() or seconds have passed.
 * n (may be NULL): file systems.
 */
int agent_freeze(int fd, unsigned seconds, unsigned *n, struct husk_error *err);
int agent_thaw(int fd, unsigned *n, struct husk_error *err);

/* Until it is set again; also in /etc/hostname. */
int agent_set_hostname(int fd, const char *name, struct husk_error *err);

/* The guest's interface with the address from gets the address to. */
int agent_set_mac(int fd, const uint8_t from[6], const uint8_t to[6],
		  struct husk_error *err);

/*
 * An AGENT_EXEC payload: when it returns 0 the command runs, and the
 * connection carries its streams until AGENT_EXIT.  -ENOENT, -EACCES...: it
 * could not be run.
 */
int agent_exec(int fd, const void *command, size_t len, struct husk_error *err);

/* Lines "key=value": agent, hostname, uptime, kernel, os, boot_id, addresses. */
int agent_info(int fd, char *text, size_t size, struct husk_error *err);

#endif /* CLI_AGENT_H */
