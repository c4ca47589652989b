/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio.h - what a virtio device adds to a device
 *
 * virtio.c owns negotiation, queues, config space, the device's thread and
 * its saved state; pci.c is the transport.  A device holds only its own work.
 */
#ifndef VM_VIRTIO_H
#define VM_VIRTIO_H

#include <sys/types.h>
#include <sys/uio.h>

#include "vm/device.h"
#include "vm/pci.h"

enum { VIRTQ_MAX_SIZE = 1024, VIRTIO_MAX_QUEUES = 16 };

enum {
	VIRTIO_ID_NET = 1,
	VIRTIO_ID_BLK = 2,
	VIRTIO_ID_CONSOLE = 3,
	VIRTIO_ID_RNG = 4,
	VIRTIO_ID_BALLOON = 5,
	VIRTIO_ID_VSOCK = 19,
	VIRTIO_ID_FS = 26
};

/* Offered by virtio_init() for every device. */
#define VIRTIO_F_INDIRECT_DESC BIT(28)
#define VIRTIO_F_EVENT_IDX     BIT(29)
#define VIRTIO_F_VERSION_1     BIT(32)

struct virtio;
struct virtq;

/*
 * One request, already checked: every byte lies in guest memory.  The arrays
 * are the queue's and last until the next virtq_pop() of the same queue; who
 * keeps a request longer copies them.
 */
struct virtq_chain {
	const struct iovec *readable, *writable; /* by the device */
	const uint64_t *writable_gpa;
	unsigned nreadable, nwritable;
	uint16_t head;
};

/* All three with dev->lock held: in kick, work, start and stop. */
/* 1: got one; 0: queue empty; < 0: driver broke the rules, device stopped. */
int virtq_pop(struct virtq *q, struct virtq_chain *chain);
/* len: bytes written.  Tells the machine that chain->writable has changed. */
void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t len);
/*
 * For what spans requests: fill each, the first with ahead 0, then publish
 * all at once.
 */
void virtq_fill(struct virtq *q, const struct virtq_chain *chain, uint32_t len,
		unsigned ahead);
void virtq_publish(struct virtq *q, unsigned n);
/* Take back the last n virtq_pop() that were neither pushed nor published. */
void virtq_unpop(struct virtq *q, unsigned n);
/* As virtq_pop(), of a request that was taken before and never pushed. */
int virtq_again(struct virtq *q, uint16_t head, struct virtq_chain *chain);
/* Interrupt the driver if it wants that.  Once per batch. */
void virtq_flush(struct virtq *q);

/* All members but id, nqueues and kick may be NULL or 0. */
struct virtio_class {
	struct dev_class dev;
	uint16_t id; /* VIRTIO_ID_* */
	uint8_t nqueues;
	uint16_t queue_size; /* largest; 0: 256 */
	uint16_t config_size;
	uint32_t pci_class; /* 24 bits */
	/*
	 * Queues that are served on the vCPU that rings them, before its write
	 * to the doorbell is over: a bit each.
	 */
	uint32_t inline_queues;
	/* The same where that costs less than to wake the device's thread. */
	uint32_t quick_queues;

	/* All with dev->lock held. */
	/* DRIVER_OK or resumed: features are fixed, the queues are valid. */
	int (*start)(struct virtio *v);
	/* On return the device has no request left in flight. */
	void (*stop)(struct virtio *v);
	/* Reset, whoever asked for it: what the driver wanted is over. */
	void (*forget)(struct virtio *v);
	/* The driver rang queue q.  Runs on the device's thread. */
	void (*kick)(struct virtio *v, struct virtq *q);
	/* virtio_wake() was called.  Runs on the device's thread. */
	void (*work)(struct virtio *v);
	/* While started, work() is also called as long as poll_fd is readable. */
	bool polls;
	/* The driver wrote config bytes [off, off + len).  NULL: read-only. */
	void (*config_written)(struct virtio *v, unsigned off, unsigned len);
};

/* (i) set by the end of init, then constant   (v) under dev.lock */
struct virtio {
	struct dev dev;
	const struct virtio_class *class; /* (i) */
	uint64_t offered;  /* (i) feature bits; set before init */
	uint64_t accepted; /* (v) valid from start to stop */
	uint8_t *config;   /* (v) config_size bytes, little endian */
	struct virtq *queue[VIRTIO_MAX_QUEUES]; /* (i) */

	pthread_t thread;	    /* (i) */
	int wake_fd;		    /* (i) */
	int poll_fd;		    /* (i) if the class polls; the device's */
	bool quit, paused, started; /* (v) */

	uint8_t status, generation, isr;       /* (v) */
	uint32_t device_select, driver_select; /* (v) */
	uint16_t queue_select, config_vector;  /* (v) */

	struct pci_func pci;
	uint8_t window_cap;	/* (i) offset of the cfg window */
	uint64_t doorbell_base; /* where doorbells were set; 0: none */
};

/* Before: offered.  After: fill config.  A failed init leaves nothing. */
int virtio_init(struct virtio *v, struct husk_error *err);
void virtio_finish(struct virtio *v);
/* Raise the generation and tell the driver, if there is one. */
void virtio_config_changed(struct virtio *v);
void virtio_config_changed_locked(struct virtio *v);
/* Have work() called soon.  Any thread, never blocks. */
void virtio_wake(struct virtio *v);
/* The driver broke a rule: NEEDS_RESET, logged once.  Returns -EPROTO. */
int virtio_broken(struct virtio *v, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* For the dev_class of every virtio device. */
void virtio_reset(struct dev *dev);
void virtio_pause(struct dev *dev);
void virtio_resume(struct dev *dev);
void virtio_state(struct dev *dev, struct state *s);
int virtio_check(struct dev *dev);

static inline struct virtio *to_virtio(struct dev *dev)
{
	return container_of(dev, struct virtio, dev);
}

/* -- the devices ---------------------------------------------------------- */

extern const struct virtio_class virtio_rng_class; /* arg NULL */

struct block;
/* The block stays the caller's and must outlive the device. */
struct virtio_blk_arg {
	struct block *block;
	const char *serial; /* at most 20 bytes count; NULL: none */
	unsigned queues;    /* 1 to 8; 0: 1 */
	/*
	 * What finds no space waits for the next start, and the machine is
	 * asked to pause; else the driver gets an error.
	 */
	bool hold_full;
};
extern const struct virtio_class virtio_blk_class;
/* Whether requests wait for space.  Any thread. */
bool virtio_blk_holds(struct dev *dev);
/* Paused: another image with the same content; the old one is closed. */
void virtio_blk_replace(struct dev *dev, struct block *block);
/* The disk grows, and the driver is told.  Any thread but the device's. */
int virtio_blk_resize(struct dev *dev, uint64_t size, struct husk_error *err);

struct end;
enum { VIRTIO_CONSOLE_PORTS = 7 };
/* Ends stay the caller's and must outlive the device. */
struct virtio_console_port {
	struct end *end;  /* NULL: none */
	const char *name; /* NULL: none */
	bool console;	  /* hvcN, else only a port */
};
struct virtio_console_arg {
	struct virtio_console_port port[VIRTIO_CONSOLE_PORTS];
	unsigned nports;
};
extern const struct virtio_class virtio_console_class;
/* Bytes from the outside for port 0; how many were taken. */
size_t virtio_console_input(struct dev *dev, const void *data, size_t len);
/* Told, on the device's thread, when more fit after a short input. */
void virtio_console_on_room(struct dev *dev, void (*f)(void *sink), void *sink);
void virtio_console_resize(struct dev *dev, uint16_t cols, uint16_t rows);
/*
 * The guest has ended: what it has written goes to readers that take it, but
 * none is waited for longer than that.
 */
void virtio_console_drain(struct dev *dev, uint64_t limit_ns);

struct link;
enum { VIRTIO_NET_PAIRS = 4 };
/* The link stays the caller's and must outlive the device. */
struct virtio_net_arg {
	struct link *link;
	uint8_t mac[6];
	unsigned pairs; /* of queues, 1 to VIRTIO_NET_PAIRS; 0: 1 */
};
extern const struct virtio_class virtio_net_class;
/* Pull the cable or put it in.  Any thread. */
void virtio_net_set_link(struct dev *dev, bool up);

/* A connection from the guest; fd is the callee's.  On the device's thread. */
typedef void virtio_vsock_accept(void *opaque, int fd, uint32_t guest_port);

struct virtio_vsock_port {
	uint32_t port;
	const char *path;
	bool to_guest; /* who connects to path reaches port of the guest */
};
/* Strings and arrays last until the device is created. */
struct virtio_vsock_arg {
	uint32_t cid;	  /* of the guest; 0: 3 */
	const char *path; /* where the host connects; NULL: nowhere */
	const struct virtio_vsock_port *ports;
	unsigned nports;
	unsigned timeout_ms; /* of what is half open; 0: 30 s */
	unsigned max;	     /* connections; 0: what RLIMIT_NOFILE allows */
};
extern const struct virtio_class virtio_vsock_class;
/*
 * *fd: a new connection to a port of the guest, which says "OK PORT\n" when
 * the guest has accepted it and ends when not.  Any thread.
 */
int virtio_vsock_connect(struct dev *dev, uint32_t port, int *fd);
/* Connections of the guest to port go to accept; NULL: no longer. */
int virtio_vsock_listen(struct dev *dev, uint32_t port,
			virtio_vsock_accept *accept, void *opaque);

struct fs_config;
enum { VIRTIO_FS_QUEUES = 4 };
struct virtio_fs_arg {
	const char *tag; /* what the guest mounts, 1 to 36 bytes */
	const struct fs_config *config; /* its log is the device's */
	unsigned queues;		/* 1 to VIRTIO_FS_QUEUES; 0: 1 */
};
extern const struct virtio_class virtio_fs_class;
/* Another directory, or none (NULL); as fs_swap().  Any thread. */
int virtio_fs_swap(struct dev *dev, const char *path, struct husk_error *err);

struct vm_balloon_stats;
struct virtio_balloon_arg {
	uint64_t memory; /* of the machine, bytes */
	uint64_t target; /* how much of it the guest shall have */
	bool reporting;	 /* what the guest frees is given back */
	bool hinting;	 /* and is asked for, so that it comes soon */
	bool oom;	 /* the guest may deflate before it kills */
};
extern const struct virtio_class virtio_balloon_class;
/* As vm_balloon_set_target() and vm_balloon_stats().  Any thread. */
int virtio_balloon_set_target(struct dev *dev, uint64_t bytes);
int virtio_balloon_stats(struct dev *dev, int timeout_ms,
			 struct vm_balloon_stats *stats);

#endif /* VM_VIRTIO_H */
