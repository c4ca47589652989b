/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmnet.h - a network of virtual machines in a program, without privilege
 *
 * libhusk-vmnet is a user-mode NAT: frames of a guest go in at a port, and
 * what it sends leaves the host as ordinary sockets of this process.  The
 * network has a gateway (10.0.2.2, which is also the host's loopback), a DNS
 * forwarder (10.0.2.3), DHCP, and an IPv6 prefix with router advertisements.
 *
 * Each network has a thread of its own; any number of them may be in a
 * process.  Functions return 0 or a negative errno value and may be called
 * from any thread, except as said.
 */
#ifndef HUSK_VMNET_H
#define HUSK_VMNET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "husk/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vmnet;
struct vmnet_port;

/*
 * The default is what is fastest: with a larger MTU too few segments fit the
 * 64 KiB that a connection may have under way.
 */
enum { VMNET_MTU_MIN = 1280, VMNET_MTU_DEFAULT = 9000, VMNET_MTU_MAX = 65520 };

struct vmnet_config {
	/* Largest IP packet; 0: VMNET_MTU_DEFAULT. */
	unsigned mtu;
	/* Guests may not reach the host's loopback at the gateway. */
	bool no_loopback;
	/* Guests reach nothing but the gateway's DHCP and forwards. */
	bool isolated;
	/* Of lines about what guests do wrong; may be NULL.  Any thread. */
	void (*log)(void *opaque, const char *text);
	void *log_opaque;
};

/* cfg NULL: all of it zero. */
int vmnet_create(const struct vmnet_config *cfg, struct vmnet **net,
		 struct husk_error *err);
/* Its ports are closed before.  Sessions end.  NULL is fine. */
void vmnet_destroy(struct vmnet *net);
unsigned vmnet_mtu(const struct vmnet *net);

/*
 * Connections to a port of the host go to one of the guest:
 * "[ADDRESS:]HOST:GUEST[/udp]".  ADDRESS is one of the host's; without it the
 * loopback.  "2222:22", "0.0.0.0:8080:80", "[::1]:5353:53/udp".
 */
int vmnet_forward_add(struct vmnet *net, const char *spec,
		      struct husk_error *err);
int vmnet_forward_del(struct vmnet *net, const char *spec,
		      struct husk_error *err);
/* Whether a forward could be understood; opens nothing. */
int vmnet_forward_check(const char *spec, struct husk_error *err);
/* Every session ends, forwards stay: a guest was restored from elsewhere. */
int vmnet_reset(struct vmnet *net);

/* One cable.  ready() is told when frames wait; any thread, must not block. */
int vmnet_port_open(struct vmnet *net, void (*ready)(void *opaque),
		    void *opaque, struct vmnet_port **port);
/* Afterwards ready() does not run and will not.  NULL is fine. */
void vmnet_port_close(struct vmnet_port *port);
/* A whole Ethernet frame without FCS and with all checksums. */
int vmnet_port_send(struct vmnet_port *port, const struct iovec *iov, int n);
/*
 * The length of the next frame, which is cut when iov is too short; 0 when
 * none waits: then ready() will be called for the next.
 */
ssize_t vmnet_port_recv(struct vmnet_port *port, const struct iovec *iov,
			int n);

#ifdef __cplusplus
}
#endif

#endif /* HUSK_VMNET_H */
