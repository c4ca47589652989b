/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq.h - the inside of a virtqueue, for virtq.c, virtio.c and pci.c
 */
#ifndef VM_VIRTIO_VIRTQ_H
#define VM_VIRTIO_VIRTQ_H

#include "vm/virtio.h"

enum { VIRTIO_NO_VECTOR = 0xffff };

enum {
	STATUS_ACKNOWLEDGE = 0x01,
	STATUS_DRIVER = 0x02,
	STATUS_DRIVER_OK = 0x04,
	STATUS_FEATURES_OK = 0x08,
	STATUS_NEEDS_RESET = 0x40,
	STATUS_FAILED = 0x80,
};

/* Layout of the rings: virtio 1.2, 2.7; little endian like the host. */
struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
struct virtq_used_elem {
	uint32_t id, len;
};

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

/* (i) set in init   all else under dev->lock */
struct virtq {
	struct virtio *v;	  /* (i) */
	uint16_t index, max_size; /* (i) */
	int kick_fd;		  /* (i) the doorbell */

	uint16_t size, vector;
	bool enabled;
	uint64_t desc, avail, used; /* guest-physical */
	uint16_t last_avail, used_idx;
	uint16_t signalled; /* used_idx at the last flush */
	bool signalled_valid;

	/* Host view of the rings; valid while v->started. */
	const struct virtq_desc *desc_host;
	uint16_t *avail_host; /* flags, idx, ring[size], used_event */
	uint8_t *used_host;   /* flags, idx, elem[size], avail_event */

	/* Of the last chain; not cleared, as most queues need little of it. */
	struct iovec iov[VIRTQ_MAX_SIZE];
	uint64_t gpa[VIRTQ_MAX_SIZE];
};

void virtq_reset(struct virtq *q);
/* Find the rings in guest memory: 0 or -EFAULT. */
int virtq_map(struct virtq *q);

/* virtio.c, for the transport; with dev->lock held */
void virtio_set_status_locked(struct virtio *v, uint8_t status);
void virtio_set_features_locked(struct virtio *v, uint32_t value);
/* One turn of the device's thread over everything; for the fuzzer too. */
void virtio_turn_locked(struct virtio *v, bool work, uint32_t queues);
void virtq_ring(struct virtq *q); /* what a doorbell does */

/* pci.c */
int virtio_pci_init(struct virtio *v, struct husk_error *err);
void virtio_pci_finish(struct virtio *v);
void virtio_pci_notify_locked(struct virtio *v, uint16_t vector, uint8_t isr);
uint64_t virtio_pci_read(struct virtio *v, uint64_t off, unsigned size);
void virtio_pci_write(struct virtio *v, uint64_t off, uint64_t value,
		      unsigned size);

/* Where things are in BAR 0; a page each, so that doorbells stand alone. */
enum {
	VPCI_COMMON = 0x0000,
	VPCI_ISR = 0x1000,
	VPCI_DEVICE = 0x2000,
	VPCI_NOTIFY = 0x3000,
	VPCI_MSIX = 0x4000,
	VPCI_PBA = 0x5000,
	VPCI_SIZE = 0x8000,
	VPCI_NOTIFY_STEP = 4,
};

#endif /* VM_VIRTIO_VIRTQ_H */
