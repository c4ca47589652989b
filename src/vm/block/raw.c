/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw.c - a disk image or block device, byte for byte
 */
#include "vm/block/store.h"

#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"

struct raw {
	struct block block;
	struct store *store; /* (i) */
};

static struct raw *to_raw(struct block *b)
{
	return container_of(b, struct raw, block);
}

static int check_size(const char *path, uint64_t size, struct husk_error *err)
{
	if (!size)
		return error_set(err, -EINVAL,
				 "%s: is empty; give it a size "
				 "with truncate -s 20G",
				 path);
	if (size % 512)
		return error_set(err, -EINVAL,
				 "%s: its size of %llu bytes is "
				 "not a multiple of 512; if it is a raw image,"
				 " round it up with truncate -s %%512",
				 path, (unsigned long long)size);
	return 0;
}

static int raw_open(struct block *b, const struct block_config *cfg,
		    struct husk_error *err)
{
	struct raw *r = to_raw(b);
	uint64_t size;
	int ret;

	r->store = store_open(cfg, err);
	if (!r->store)
		return -EIO;
	size = atomic_load(&r->store->size);
	ret = check_size(cfg->path, size, err);
	if (ret) {
		store_close(r->store);
		return ret;
	}
	b->size = size;
	b->can_discard = !cfg->readonly;
	return 0;
}

static void raw_close(struct block *b)
{
	store_close(to_raw(b)->store);
}

static void raw_submit(struct block *b, struct block_req *req)
{
	struct store *s = to_raw(b)->store;

	s->ops->submit(s, req);
}

static int raw_perform(struct block *b, const struct block_req *req)
{
	struct store *s = to_raw(b)->store;

	return s->ops->perform(s, req);
}

static void raw_drain(struct block *b)
{
	struct store *s = to_raw(b)->store;

	s->ops->drain(s);
}

static int raw_resize(struct block *b, uint64_t size, struct husk_error *err)
{
	struct store *s = to_raw(b)->store;
	int ret;

	if (s->fixed)
		return error_set(err, -EOPNOTSUPP,
				 "a device of the host has the size it has");
	ret = store_set_size(s, size);
	if (ret)
		return error_errno(err, ret, "cannot be resized");
	b->size = size;
	return 0;
}

static int raw_map(struct block *b, uint64_t offset, uint64_t *len,
		   enum block_kind *kind)
{
	bool hole;
	int ret = store_map(to_raw(b)->store, offset, len, &hole);

	*kind = hole ? BLOCK_ZEROS : BLOCK_DATA;
	return ret;
}

const struct block_ops block_raw = {
	.name = "raw",
	.size = sizeof(struct raw),
	.open = raw_open,
	.close = raw_close,
	.submit = raw_submit,
	.perform = raw_perform,
	.drain = raw_drain,
	.resize = raw_resize,
	.map = raw_map,
};
