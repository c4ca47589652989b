/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmnet.h - the inside of a network: its NAT, its ports, its forwards
 */
#ifndef VMNET_VMNET_H
#define VMNET_VMNET_H

#include <netinet/in.h>
#include <pthread.h>

#include "husk/vmnet.h"
#include "vmnet/slirp.h"

/* -- ports (port.c) ------------------------------------------------------- */

/*
 * Frames to a guest wait in a ring of bytes, each behind its length.  What
 * does not fit is lost, as on any cable.
 */
enum { PORT_RING = 2 << 20, FRAME_MAX = 65600 };

struct vmnet_port {
	struct vmnet *net;
	void (*ready)(void *opaque);
	void *opaque;
	struct vmnet_port *next; /* under net->lock */

	pthread_mutex_t lock;
	bool quiet;	     /* recv said 0: ready() is due */
	uint32_t head, tail; /* grow for ever; modulo PORT_RING */
	uint8_t *ring;
};

/* With net->lock held. */
void port_deliver(struct vmnet_port *port, const void *frame, size_t len);

/* -- forwards (forward.c) ------------------------------------------------- */

struct forward {
	struct sockaddr_storage host, guest;
	bool udp;
	struct forward *next;
};

int forward_parse(const char *spec, struct forward *f, struct husk_error *err);
/* With net->lock held. */
int forward_open_locked(struct vmnet *net, const struct forward *f);
void forward_close_locked(struct vmnet *net, const struct forward *f);

/* -- the NAT (nat.c) ------------------------------------------------------ */

struct vmnet_timer {
	int id;
	void *opaque;
	int64_t when_ms; /* 0: not armed */
	struct vmnet_timer *next;
};

/* (i) constant after creation   (l) under lock */
struct vmnet {
	struct vmnet_config cfg;  /* (i) */
	pthread_t thread;	  /* (i) */
	int wake_fd;		  /* (i) */
	struct slirp_library lib; /* (i) */

	pthread_mutex_t lock;
	Slirp *slirp;		    /* (l) */
	struct vmnet_port *ports;   /* (l) */
	struct forward *forwards;   /* (l) */
	struct vmnet_timer *timers; /* (l) */
	struct pollfd *fds;	    /* (l) the thread's, grown by add_poll */
	unsigned nfds, room;	    /* (l) */
	bool polling, quit;	    /* (l) */
	pthread_cond_t changed;	    /* of the next two */
	bool in_poll;		    /* (l) the thread is not to be disturbed */
	unsigned holds;		    /* (l) it stays out of poll() */
};

/* With net->lock held: the poll set may have changed. */
void nat_wake_locked(struct vmnet *net);
/*
 * Around closing what the thread may poll: a socket lives, and listens, for as
 * long as somebody polls it.  Gives the lock away for a moment.
 */
void nat_hold_locked(struct vmnet *net);
void nat_release_locked(struct vmnet *net);

#endif /* VMNET_VMNET_H */
