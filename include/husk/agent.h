/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent.h - the wire format of the guest agent (docs/agent.md)
 *
 * A connection carries frames in both directions: a header and its payload.
 * All numbers are little endian.  Both sides begin with AGENT_HELLO.
 */
#ifndef HUSK_AGENT_H
#define HUSK_AGENT_H

#include <stdint.h>

enum {
	AGENT_PORT = 1023, /* of vsock; only root in the guest can bind it */
	AGENT_VERSION = 1,
	AGENT_PAYLOAD = 65536, /* at most */
	AGENT_WINDOW = 65536,  /* of standard input ahead of AGENT_CREDIT */
	AGENT_SESSIONS = 128,  /* at a time */
};

struct agent_frame {
	uint32_t len; /* of the payload */
	uint8_t type; /* enum agent_type */
	uint8_t zero[3];
};

enum agent_type {
	AGENT_HELLO = 1, /* u32 version; of the agent also text: its build */

	/* Requests, one at a time.  The answer is AGENT_OK or AGENT_ERROR. */
	AGENT_INFO = 2,	    /* answer: lines "key=value" */
	AGENT_EXEC = 3,	    /* struct agent_exec, strings; see below */
	AGENT_SHUTDOWN = 4, /* u32 enum agent_shutdown */
	AGENT_TIME = 5,	    /* struct agent_time; answer: s64 ns it was off */
	AGENT_HOSTNAME = 6, /* the name */
	AGENT_FREEZE = 7,   /* u32 seconds until it thaws; answer: u32 count */
	AGENT_THAW = 8,	    /* answer: u32 count of file systems */
	AGENT_FSTRIM = 9,   /* answer: u64 bytes */
	AGENT_SYNC = 10,
	AGENT_MAC = 11, /* struct agent_mac */

	/* To the agent, after AGENT_EXEC was answered by AGENT_OK. */
	AGENT_STDIN = 16,   /* bytes; none: the end */
	AGENT_WINSIZE = 17, /* u16 rows, u16 columns */
	AGENT_SIGNAL = 18,  /* u32 of Linux, to the process group */

	/* From the agent. */
	AGENT_STDOUT = 32,
	AGENT_STDERR = 33,
	AGENT_CREDIT = 34, /* u32 more bytes of AGENT_STDIN may come */
	AGENT_EXIT = 35,   /* u32 status, u32 signal or 0; the last frame */

	AGENT_OK = 64,
	AGENT_ERROR = 65, /* u32 errno of Linux, text */
};

enum { AGENT_EXEC_TTY = 1, AGENT_EXEC_NO_STDIN = 2 };

/*
 * Behind it argc + envc + 2 strings, each ended by 0: the user ("": that of
 * the agent), the folder ("": the user's home), the arguments, the
 * environment as NAME=VALUE.
 */
struct agent_exec {
	uint32_t flags; /* AGENT_EXEC_* */
	uint32_t argc, envc;
	uint16_t rows, columns; /* of a terminal */
};

enum agent_shutdown {
	AGENT_POWEROFF,
	AGENT_REBOOT,
	AGENT_HALT,
};

/* The network interface of this address gets the other one. */
struct agent_mac {
	uint8_t from[6], to[6];
};

struct agent_time {
	int64_t seconds; /* since 1970, UTC */
	uint32_t ns;
	uint32_t step; /* 1: set it; 0: slew what is less than a second off */
};

#endif /* HUSK_AGENT_H */
