/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.h - the inside of a network device: net.c moves frames, netctl.c obeys
 */
#ifndef VM_VIRTIO_NET_H
#define VM_VIRTIO_NET_H

#include "net/link.h"
#include "net/offload.h"
#include "vm/virtio.h"

/* Feature bits: virtio 1.2, 5.1.3. */
#define NET_F_CSUM		  BIT(0)
#define NET_F_GUEST_CSUM	  BIT(1)
#define NET_F_CTRL_GUEST_OFFLOADS BIT(2)
#define NET_F_MTU		  BIT(3)
#define NET_F_MAC		  BIT(5)
#define NET_F_GUEST_TSO4	  BIT(7)
#define NET_F_GUEST_TSO6	  BIT(8)
#define NET_F_GUEST_ECN		  BIT(9)
#define NET_F_HOST_TSO4		  BIT(11)
#define NET_F_HOST_TSO6		  BIT(12)
#define NET_F_HOST_ECN		  BIT(13)
#define NET_F_MRG_RXBUF		  BIT(15)
#define NET_F_STATUS		  BIT(16)
#define NET_F_CTRL_VQ		  BIT(17)
#define NET_F_CTRL_RX		  BIT(18)
#define NET_F_CTRL_VLAN		  BIT(19)
#define NET_F_CTRL_RX_EXTRA	  BIT(20)
#define NET_F_GUEST_ANNOUNCE	  BIT(21)
#define NET_F_MQ		  BIT(22)
#define NET_F_CTRL_MAC_ADDR	  BIT(23)

#define NET_GUEST_OFFLOADS \
	(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | \
	 NET_F_GUEST_ECN)

enum { /* the device's configuration */
       NET_C_MAC = 0,
       NET_C_STATUS = 6,
       NET_C_PAIRS = 8,
       NET_C_MTU = 10,
       NET_C_SIZE = 12,
};
enum { NET_S_UP = 1, NET_S_ANNOUNCE = 2 };

enum { NET_MACS = 64, NET_FLOWS = 256 };

struct net_macs {
	uint8_t n;
	bool overflow; /* the driver wanted more: all of that kind pass */
	uint8_t mac[NET_MACS][6];
};

/* (i) set in init   (v) under dev->lock, all that is saved */
struct net {
	struct virtio v;
	struct link *link; /* (i) */
	unsigned pairs;	   /* (i) */
	uint8_t mac[6];	   /* (i) that it was given */

	bool up;	   /* (v) the cable is in */
	uint16_t in_use;   /* (v) pairs */
	uint64_t offloads; /* (v) NET_F_GUEST_* that are on */
	bool promisc, allmulti, alluni, nomulti, nouni, nobcast; /* (v) */
	struct net_macs uni, multi;				 /* (v) */
	uint8_t vlan[4096 / 8];					 /* (v) */

	uint8_t flow[NET_FLOWS]; /* (v) the pair that sends it; not saved */
	unsigned hdr_len;	 /* (v) that the link wants; not saved */
	bool busy;		 /* (v) the link said -EAGAIN; not saved */
	bool fresh;		 /* (v) no driver has started it; not saved */
	bool restored;		 /* (v) since the last start; not saved */
	uint32_t held;		 /* (v) bytes in frame that no queue took */
	/* A frame from the link behind its header; one from the guest. */
	uint8_t rx[LINK_HDR + LINK_FRAME_MAX], tx[LINK_FRAME_MAX];
};

static inline struct net *to_net(struct dev *dev)
{
	return container_of(dev, struct net, v.dev);
}

/* netctl.c; all with dev->lock held */
void net_ctl_kick(struct net *n, struct virtq *q);
void net_ctl_reset(struct net *n);
bool net_ctl_passes(const struct net *n, const uint8_t *frame, size_t len);
void net_apply_offloads(struct net *n);

#endif /* VM_VIRTIO_NET_H */
