/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_balloon.c - a memory balloon and a hostile driver
 *
 * Byte 0: features; then records of a kind, two numbers and bytes: requests
 * on the queues, config writes, targets, questions, pauses.
 */
#include <stdlib.h>
#include <string.h>

#include "husk/vm.h"
#include "mock/virtq_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct mock m;

static void post(unsigned q)
{
	mock_offer(&m, q, 0);
	if (m.v->class->inline_queues & BIT(q))
		virtio_pci_write(m.v, VPCI_NOTIFY + 4 * q, q, 2);
	mock_turn(&m, true, (uint32_t)BIT(q));
}

static void play(const struct mock_record *r)
{
	unsigned q = r->kind % 5;
	struct vm_balloon_stats s;
	uint32_t word = 0;

	memcpy(&word, r->bytes, r->len < 4 ? r->len : 4);
	switch (r->kind / 5 % 6) {
	case 0: /* bytes for the device, in two pieces */
		memcpy(m.mem.bytes + MOCK_DATA, r->bytes, r->len);
		mock_desc(&m, q, 0, MOCK_DATA, r->a, DESC_NEXT, 1);
		mock_desc(&m, q, 1, MOCK_DATA + r->a, r->b, 0, 0);
		post(q);
		break;
	case 1: /* pages, above the rings so that there are some */
		mock_desc(&m, q, 0, MOCK_DATA + word % 0x100000, r->a * 1024u,
			  DESC_WRITE | DESC_NEXT, 1);
		mock_desc(&m, q, 1, MOCK_DATA + r->b * 4096u, 0x10000,
			  DESC_WRITE, 0);
		for (unsigned i = 0; i < r->len; i++)
			post(q);
		break;
	case 2: /* the current command */
		memcpy(m.mem.bytes + MOCK_DATA, m.v->config + 8, 4);
		mock_desc(&m, q, 0, MOCK_DATA, 4, 0, 0);
		post(q);
		break;
	case 3: virtio_pci_write(m.v, VPCI_DEVICE + r->a % 20, word, 4); break;
	case 4:
		virtio_balloon_set_target(m.dev, word);
		virtio_balloon_stats(m.dev, 0, &s);
		break;
	case 5:
		virtio_pause(m.dev);
		virtio_resume(m.dev);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_balloon_arg arg = {
		.memory = MOCK_MEM,
		.target = MOCK_MEM,
		.reporting = true,
		.hinting = true,
		.oom = true,
	};

	if (size < 2)
		return 0;
	if (!mock_create(&m, &virtio_balloon_class, &arg))
		abort();
	/* The thread would race with this one for what it posts. */
	mock_start(&m,
		   m.v->offered & (data[0] | ~0xffull) & ~VIRTIO_F_EVENT_IDX);
	mock_play(data + 1, size - 1, play);
	mock_destroy(&m);
	return 0;
}
