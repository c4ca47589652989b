/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2_create.c - a new qcow2 image
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

/* Text in an image has a length and no end. */
static size_t put_text(uint8_t *p, const char *text)
{
	size_t n = 0;

	for (; text[n]; n++)
		p[n] = (uint8_t)text[n];
	return n;
}

static size_t add_ext(uint8_t *p, uint32_t type, const char *text)
{
	size_t len = put_text(p + 8, text);
	uint32_t head[2] = { htobe32(type), htobe32((uint32_t)len) };

	memcpy(p, head, 8);
	return 8 + ALIGN_UP(len, 8);
}

/* Header, refcount table, refcount blocks, L1 table, in this order. */
int q2_create(struct store *s, const struct q2_create *c)
{
	unsigned bits = c->cluster_bits ? c->cluster_bits : 16;
	uint64_t cluster = BIT(bits), per = cluster / 2, l1, nl1, ref = 1;
	uint64_t blocks = 1, n, table, at;
	struct q2_header *h;
	uint8_t *image;
	int ret;

	if (bits < Q2_MIN_BITS || bits > Q2_MAX_BITS || !c->size ||
	    c->size % 512 || c->size > INT64_MAX)
		return -EINVAL;
	l1 = (c->size - 1) / (cluster << (bits - 3)) + 1;
	if (l1 * 8 > Q2_MAX_L1)
		return -EFBIG;
	if (c->base && strlen(c->base) > Q2_MAX_NAME)
		return -ENAMETOOLONG;
	nl1 = ALIGN_UP(l1 * 8, cluster) >> bits;
	/* A table for the whole disk, so that it seldom has to grow. */
	n = (c->size >> bits) / per * 5 / 4 + 2;
	ref = MIN(ALIGN_UP(n * 8, cluster), Q2_MAX_REFTABLE) >> bits;
	while (blocks * per < 1 + ref + blocks + nl1)
		blocks++;
	n = 1 + ref + blocks + nl1;
	image = calloc(n, cluster);
	if (!image)
		return -ENOMEM;
	h = (struct q2_header *)(void *)image;
	*h = (struct q2_header){
		.magic = htobe32(Q2_MAGIC),
		.version = htobe32(3),
		.cluster_bits = htobe32(bits),
		.size = htobe64(c->size),
		.l1_size = htobe32((uint32_t)l1),
		.l1_offset = htobe64((1 + ref + blocks) << bits),
		.reftable_offset = htobe64(cluster),
		.reftable_clusters = htobe32((uint32_t)ref),
		.compat = htobe64(c->lazy ? Q2_COMPAT_LAZY : 0),
		.refcount_order = htobe32(4),
		.header_len = htobe32(sizeof(*h)),
	};
	at = sizeof(*h);
	if (c->base && c->base_format)
		at += add_ext(image + at, (uint32_t)Q2_EXT_FORMAT,
			      c->base_format);
	at += 8; /* the end of the extensions */
	ret = c->base && at + strlen(c->base) > cluster ? -ENAMETOOLONG : 0;
	if (!ret && c->base) {
		h->base_offset = htobe64(at);
		h->base_len = htobe32((uint32_t)put_text(image + at, c->base));
	}
	for (uint64_t b = 0; b < blocks; b++) {
		table = htobe64((1 + ref + b) << bits);
		memcpy(image + cluster + b * 8, &table, 8);
	}
	for (uint64_t i = 0; i < n; i++)
		image[((1 + ref) << bits) + 2 * i + 1] = 1;
	if (!ret)
		ret = store_set_size(s, n << bits);
	if (!ret)
		ret = store_write(s, 0, image, n << bits);
	if (!ret)
		ret = store_flush(s);
	free(image);
	return ret;
}
