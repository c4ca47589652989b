/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rng.c - virtio entropy device: answers every request with random bytes
 */
#include <sys/random.h>

#include "vm/virtio/virtq.h"

enum { AT_ONCE = 64 }; /* requests, of up to 64 KiB each */

static void rng_kick(struct virtio *v, struct virtq *q)
{
	struct virtq_chain chain;
	unsigned n = 0;

	while (n++ < AT_ONCE && virtq_pop(q, &chain) > 0) {
		uint32_t done = 0;

		for (unsigned i = 0; i < chain.nwritable; i++) {
			const struct iovec *iov = &chain.writable[i];
			/* Nobody needs more at once; pause waits for us. */
			size_t len = MIN(iov->iov_len, (size_t)65536);
			ssize_t got = getrandom(iov->iov_base, len, 0);

			if (got > 0)
				done += (uint32_t)got;
			/* A short answer is legal, a hole in it is not. */
			if (got != (ssize_t)iov->iov_len || done >= 65536)
				break;
		}
		virtq_push(q, &chain, done);
	}
	virtq_flush(q);
	/* A driver that never ends does not keep the lock. */
	if (n > AT_ONCE)
		virtq_ring(q);
}

static int rng_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	return virtio_init(to_virtio(dev), err);
}

static void rng_finish(struct dev *dev)
{
	virtio_finish(to_virtio(dev));
}

const struct virtio_class virtio_rng_class = {
	.dev = {
		.name	= "virtio-rng",
		.size	= sizeof(struct virtio),
		.version = 1,
		.init	= rng_init,
		.finish	= rng_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= virtio_state,
		.check	= virtio_check,
	},
	.id	 = VIRTIO_ID_RNG,
	.nqueues = 1,
	.pci_class = 0x00ff00,
	.kick	 = rng_kick,
};
