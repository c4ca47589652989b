/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq_driver.h - the driver side of a virtio device, over plain memory
 */
#ifndef MOCK_VIRTQ_DRIVER_H
#define MOCK_VIRTQ_DRIVER_H

#include "vm/virtio/virtq.h"

enum { MOCK_MEM = 1 << 20, MOCK_QSIZE = 8 };
enum {
	MOCK_DESC = 0x1000,
	MOCK_AVAIL = 0x2000,
	MOCK_USED = 0x3000,
	MOCK_STEP = 0x4000,
	MOCK_DATA = 0x40000
};

struct guest_mem {
	uint8_t bytes[MOCK_MEM];
};

struct mock {
	struct guest_mem mem;
	struct bus *mmio, *pio;
	struct dev *host, *dev;
	struct virtio *v;
	struct dev_env env;
	unsigned messages, logs;
	char said[160]; /* the last log line */
	unsigned nnews;
	int news, news_code; /* the last, enum vm_news_kind */
};

/* What mem_discard() was asked for, in any machine. */
struct mock_discard {
	uint64_t gpa, len;
};
extern struct mock_discard mock_discards[64];
extern unsigned mock_ndiscards;

bool mock_create(struct mock *m, const struct virtio_class *class,
		 const void *arg);
void mock_destroy(struct mock *m);
void mock_common(struct mock *m, unsigned off, uint64_t value, unsigned size);
uint8_t mock_status(struct mock *m);
/* Reset, accept features and VERSION_1, set up the queues, DRIVER_OK. */
void mock_start(struct mock *m, uint64_t features);
void mock_desc(struct mock *m, unsigned q, unsigned i, uint64_t addr,
	       uint32_t len, uint16_t flags, uint16_t next);
/* A chain for the device; mock_post() also rings the doorbell. */
void mock_offer(struct mock *m, unsigned q, uint16_t head);
void mock_post(struct mock *m, unsigned q, uint16_t head);
/* What the device's thread does, on this one: without a doorbell it sleeps. */
void mock_turn(struct mock *m, bool work, uint32_t queues);
uint16_t mock_used(struct mock *m, unsigned q);
uint32_t mock_used_len(struct mock *m, unsigned q, unsigned i);
/* Until the used index is n or the device broke; false after 2 s. */
bool mock_wait(struct mock *m, unsigned q, uint16_t n);

/* A fuzzer's input: kind, a, b, length, bytes; up to 64 of them. */
struct mock_record {
	uint8_t kind, a, b, len;
	const uint8_t *bytes;
};
void mock_play(const uint8_t *data, size_t size,
	       void (*play)(const struct mock_record *r));

#endif /* MOCK_VIRTQ_DRIVER_H */
