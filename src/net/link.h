/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.h - one end of an Ethernet cable
 *
 * A guest's NIC holds a struct link and does not know what is behind it: a
 * tap device, a network of our own, or a socket to another program.
 */
#ifndef NET_LINK_H
#define NET_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "husk/error.h"

struct link;
struct loop;

enum link_offload {
	LINK_CSUM = 1 << 0,
	LINK_TSO4 = 1 << 1,
	LINK_TSO6 = 1 << 2,
};

/* A frame of 64 KiB with its header, VLAN tag and 12 bytes in front. */
enum { LINK_FRAME_MAX = 65536 + 18, LINK_HDR = 12 };

/* Strings and arrays last until link_open() returns. */
struct link_config {
	const char
		*kind; /* "null", "shared", "tap", "unix", "unixgram", "fd" */
	const char *where; /* tap: a name or NULL; unix*: a path */
	int fd;		   /* fd, and tap without a name; stays the caller's */
	bool listen;	   /* unix: others connect to us */
	bool vfkit;	   /* unixgram: begin with vfkit's magic */
	bool isolated, no_loopback;  /* shared */
	unsigned mtu;		     /* 0: what the kind does best */
	const char *const *forwards; /* shared */
	unsigned nforwards;
	struct loop *loop; /* where its file descriptors are watched */
	void (*log)(void *sink, const char *text); /* any thread */
	void *sink;
};

/*
 * send, recv and set_offload by one thread; listen while that one is not in
 * them; open and close while it does not listen.
 */
struct link_ops {
	const char *name;
	size_t size; /* of the struct that begins with struct link */

	int (*open)(struct link *l, const struct link_config *cfg,
		    struct husk_error *err);
	void (*close)(struct link *l);

	/*
	 * A whole frame, behind a virtio-net header when hdr_len is not 0.
	 * 0: taken or lost; -EAGAIN: not now, ready() tells when.
	 */
	int (*send)(struct link *l, const struct iovec *iov, int iovcnt);
	/* Bytes received; 0: no frame now, ready() tells when. */
	ssize_t (*recv)(struct link *l, const struct iovec *iov, int iovcnt);

	/* After listen(false) returns, ready() is not running and will not. */
	int (*listen)(struct link *l, bool on);
	/* Choose among l->offers; 0, 0: no offloads, no header.  May be NULL.*/
	int (*set_offload)(struct link *l, uint32_t offload, unsigned hdr_len);
	/* The guest was restored: its sessions end.  May be NULL. */
	void (*restored)(struct link *l);
};

/* (i) set by the end of open, then constant */
struct link {
	const struct link_ops *ops;
	uint32_t offers;	  /* (i) LINK_* the other end can do */
	unsigned mtu;		  /* (i) 0: any, the guest decides */
	bool trusted;		  /* (i) its checksums need no check */
	bool carrier;		  /* atomic: somebody is at the other end */
	void (*ready)(void *nic); /* (i) set by the NIC: look again */
	void *nic;		  /* (i) */
	void (*log)(void *sink, const char *text); /* (i) may be NULL */
	void *sink;				   /* (i) */
};

int link_open(const struct link_config *cfg, struct link **l,
	      struct husk_error *err);
void link_close(struct link *l); /* NULL is fine */

static inline bool link_carrier(const struct link *l)
{
	return __atomic_load_n(&l->carrier, __ATOMIC_ACQUIRE);
}

/* For the kinds. */
void link_set_carrier(struct link *l, bool on, const char *why);
void link_ready(struct link *l);
size_t link_iov_len(const struct iovec *iov, int n);
/* At most len bytes between iov and flat memory; how many. */
size_t link_copy_out(void *to, const struct iovec *iov, int n, size_t len);
size_t link_copy_in(const struct iovec *iov, int n, const void *from,
		    size_t len);

extern const struct link_ops link_null, link_shared, link_tap, link_stream,
	link_dgram;

#endif /* NET_LINK_H */
