/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_virtq.c - random rings and requests for rng, console and disk
 */
#include <stdlib.h>
#include <string.h>

#include "mock/virtq_driver.h"
#include "vm/block.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Byte 0: device and features.  Then the rings, the rest is their memory. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct virtio_class *const classes[] = {
		&virtio_rng_class,
		&virtio_console_class,
		&virtio_blk_class,
	};
	static struct mock m;
	struct virtio_blk_arg blk = { 0 };
	struct virtio_console_arg console = {
		.port = { { .console = true }, { .name = "one" }, { 0 } },
		.nports = 3,
	};
	unsigned which;

	if (size < 2)
		return 0;
	which = data[0] % 3;
	blk.block = block_open_null(1 << 20, NULL);
	if (!blk.block ||
	    !mock_create(&m, classes[which],
			 which == 2 ? (void *)&blk : (void *)&console))
		abort();
	/* Bit 6: of a console, its ports. */
	mock_start(&m,
		   (data[0] & 0x80 ? VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
				   : 0) |
			   (data[0] & 0x40 && which == 1 ? BIT(1) : 0));
	for (unsigned q = 0; q < m.v->class->nqueues; q++) {
		size_t n = size - 1;
		size_t desc = n < 128 ? n : 128;

		memcpy(m.mem.bytes + MOCK_DESC + q * MOCK_STEP, data + 1, desc);
		n -= desc;
		memcpy(m.mem.bytes + MOCK_AVAIL + q * MOCK_STEP,
		       data + 1 + desc, n < 22 ? n : 22);
		n = n < 0x1000 ? n : 0x1000;
		memcpy(m.mem.bytes, data + 1 + desc, n);
	}
	if (which == 1)
		virtio_console_input(m.dev, data, size);
	pthread_mutex_lock(&m.dev->lock);
	virtio_turn_locked(m.v, true, UINT32_MAX);
	virtio_turn_locked(m.v, true, UINT32_MAX);
	pthread_mutex_unlock(&m.dev->lock);
	mock_destroy(&m);
	block_close(blk.block);
	return 0;
}
