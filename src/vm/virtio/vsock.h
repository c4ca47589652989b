/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock.h - the inside of the socket device
 *
 * vsock.c speaks with the driver, vsock_conn.c keeps the connections,
 * vsock_host.c speaks with Unix sockets.  Everything runs with dev->lock
 * held, nearly always on the device's thread.
 */
#ifndef VM_VIRTIO_VSOCK_H
#define VM_VIRTIO_VSOCK_H

#include <sys/queue.h>

#include "vm/virtio/virtq.h"

/* virtio 1.2, 5.10 */
#define VSOCK_F_STREAM BIT(0)

enum { VSOCK_RX, VSOCK_TX, VSOCK_EVENT };
enum { VSOCK_HOST_CID = 2, VSOCK_TYPE_STREAM = 1, VSOCK_TRANSPORT_RESET = 0 };

enum vsock_op {
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE,
	VSOCK_OP_RST,
	VSOCK_OP_SHUTDOWN,
	VSOCK_OP_RW,
	VSOCK_OP_CREDIT_UPDATE,
	VSOCK_OP_CREDIT_REQUEST,
};

/* Of VSOCK_OP_SHUTDOWN: what its sender will not do any more. */
enum { VSOCK_NO_RECV = 1, VSOCK_NO_SEND = 2, VSOCK_NO_MORE = 3 };

/* Little endian like the host. */
struct __attribute__((packed)) vsock_hdr {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint32_t len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
};

enum { VSOCK_HDR = 44, VSOCK_CONFIG = 8 };
_Static_assert(sizeof(struct vsock_hdr) == VSOCK_HDR, "virtio 1.2, 5.10.6");

enum {
	VSOCK_BUCKETS = 4096, /* of the table of connections */
	VSOCK_TURN = 256,     /* packets, before others get the lock */
	VSOCK_UNKNOWN = 256,  /* resets of no connection that may wait */
	/* What a guest may send ahead; the few get much, the many little. */
	VSOCK_BUF_FEW = 256 << 10,
	VSOCK_BUF_MANY = 32 << 10,
	VSOCK_FEW = 256,      /* connections */
	VSOCK_MOST = 1 << 16, /* connections */
};

struct vsock;

/* What an event of the epoll set belongs to; first member of its owner. */
enum vsock_watch { WATCH_CONN, WATCH_DOOR, WATCH_TIMER };

enum conn_state {
	CONN_HELLO,	 /* the host has not said which port */
	CONN_CONNECTING, /* the guest waits for the host's listener */
	CONN_REQUESTED,	 /* the host waits for the guest's listener */
	CONN_OPEN,
	CONN_CLOSING, /* all is said; the guest's RST is missing */
	CONN_RESET,   /* our RST is to be sent */
	CONN_DRAIN,   /* over for the guest; the host gets the rest */
	CONN_FREE,
};

/* Packets that wait for a buffer of the driver. */
enum {
	WANT_REQUEST = 1,
	WANT_RESPONSE = 2,
	WANT_UPDATE = 4,
	WANT_CREDIT = 8,
	WANT_SHUTDOWN = 16,
};

struct conn {
	enum vsock_watch watch;
	enum conn_state state;
	int fd; /* -1: closed */
	uint32_t host_port, guest_port;
	uint8_t want;	     /* WANT_* */
	uint8_t said;	     /* flags of the SHUTDOWN we sent */
	uint8_t heard;	     /* flags of those we got */
	bool in_table;	     /* known by its ports */
	bool hello;	     /* the host is told "OK PORT" */
	bool readable;	     /* as far as we know */
	bool eof, hup;	     /* the host sends no more; is gone */
	bool deaf;	     /* the host reads no more */
	bool flushed;	     /* the host has our end of file */
	bool wants_out;	     /* EPOLLOUT is watched */
	bool asked;	     /* for credit, since there was some */
	bool ready, timed;   /* in these lists */
	uint64_t deadline;   /* ns */
	struct vsock_to *to; /* CONN_CONNECTING */

	/* Bytes from the guest: buf_alloc bounds rx_cnt - fwd_cnt. */
	uint32_t buf_alloc, rx_cnt, fwd_cnt, told_fwd;
	/* Bytes to the guest: peer_alloc bounds tx_cnt - peer_fwd. */
	uint32_t peer_alloc, peer_fwd, tx_cnt;
	uint8_t *buf; /* a ring of buf_alloc bytes, or NULL */
	uint32_t at, len;

	LIST_ENTRY(conn) bucket;
	LIST_ENTRY(conn) all;
	TAILQ_ENTRY(conn) ready_link, timed_link;
};
LIST_HEAD(conn_list, conn);
TAILQ_HEAD(conn_queue, conn);

/* A Unix socket where the host connects. */
struct door {
	enum vsock_watch watch;
	int fd;
	uint32_t port; /* of the guest; 0: the caller says it */
	bool watched;
	char *path;
	struct door *next;
};

/* Where the guest's connections to a port go: a path or a function. */
struct vsock_to {
	uint32_t port;
	char *path;
	virtio_vsock_accept *accept;
	void *opaque;
	struct vsock_to *next;
};

/* (i) set in init   all else under dev->lock */
struct vsock {
	struct virtio v;
	enum vsock_watch timer_watch; /* (i) WATCH_TIMER */
	uint64_t cid;		      /* (i) */
	int epoll, timer;	      /* (i) */
	uint64_t timer_at;	      /* ns; 0: not set */
	char *path;		      /* (i) or NULL */
	uint64_t timeout;	      /* (i) ns */
	uint64_t seed;		      /* (i) of the table */
	unsigned max;		      /* (i) connections */
	struct door *doors;	      /* (i) */
	struct vsock_to *to;

	struct conn_list table[VSOCK_BUCKETS], conns, dead;
	struct conn_queue ready;   /* have something for the guest */
	struct conn_queue timed;   /* ordered by deadline */
	unsigned nconns, nwaiting; /* nwaiting: CONN_CONNECTING */
	bool doors_open, full;	   /* full: accept() had no descriptor */
	uint32_t next_port;

	/* Resets for what is no connection. */
	struct vsock_hdr unknown[VSOCK_UNKNOWN];
	unsigned unknown_at, unknown_len;

	/*
	 * After a restore nothing goes on until the driver has taken note
	 * of the reset: it would end new connections with the old ones.
	 */
	bool restored;	   /* the event is to be sent */
	bool gated;	   /* the driver has not taken note */
	uint16_t gate_idx; /* where its event queue was, if sent */
	uint64_t gate_end; /* ns; it never will */

	struct iovec iov[VIRTQ_MAX_SIZE]; /* of the packet at hand */
};

static inline struct vsock *to_vsock(struct virtio *v)
{
	return container_of(v, struct vsock, v);
}

/* -- vsock_conn.c --------------------------------------------------------- */

/* NULL: as many as can be, or no memory; fd stays the caller's then. */
struct conn *conn_create(struct vsock *s, int fd, enum conn_state state);
/* Closes it without a word; it is freed by conn_bury(). */
void conn_free(struct vsock *s, struct conn *c);
void conn_bury(struct vsock *s);
void conn_free_all(struct vsock *s);
struct conn *conn_find(struct vsock *s, uint32_t host_port,
		       uint32_t guest_port);
void conn_enter(struct vsock *s, struct conn *c, uint32_t host_port,
		uint32_t guest_port);
void conn_leave(struct vsock *s, struct conn *c);
uint32_t conn_new_port(struct vsock *s, uint32_t guest_port);
/* Put it into the ready list if it has something for the guest. */
void conn_check(struct vsock *s, struct conn *c);
void conn_want(struct vsock *s, struct conn *c, uint8_t want);
/* The guest gets RST, the host a closed socket. */
void conn_reset(struct vsock *s, struct conn *c);
/* May the host's bytes go to the guest now? */
bool conn_may_read(const struct conn *c);
uint32_t conn_credit(const struct conn *c);
void conn_set_deadline(struct vsock *s, struct conn *c);
void conn_no_deadline(struct vsock *s, struct conn *c);
/* Program the timer for what comes next. */
void vsock_program(struct vsock *s);

/* -- vsock_host.c --------------------------------------------------------- */

int host_open(struct vsock *s, const struct virtio_vsock_arg *arg,
	      struct husk_error *err);
void host_close(struct vsock *s);
/* Take what epoll has. */
void host_events(struct vsock *s);
void host_doors(struct vsock *s);
/* The guest asks for a port: a conn that will answer; NULL: too many. */
struct conn *host_connect(struct vsock *s, uint32_t port, uint32_t guest_port);
/* The host at c asks for a port of the guest. */
void host_request(struct vsock *s, struct conn *c, uint32_t port);
/* The guest has taken it. */
void host_accepted(struct vsock *s, struct conn *c);
/* Bytes of the guest for the host: sent, kept or of no use; or -ENOMEM. */
int host_send(struct vsock *s, struct conn *c, const struct iovec *iov,
	      unsigned n, uint32_t len);
/* 0: none now, and c knows why. */
ssize_t host_recv(struct vsock *s, struct conn *c, const struct iovec *iov,
		  unsigned n);
/* The guest has shut something down: see c->heard. */
void host_shutdown(struct vsock *s, struct conn *c);
int host_watch(struct vsock *s, struct conn *c);
/* Closes its descriptor, if it has one. */
void host_drop(struct vsock *s, struct conn *c);

#endif /* VM_VIRTIO_VSOCK_H */
