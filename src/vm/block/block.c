/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.c - opening disks, and the checks that all back ends rely on
 */
#include "vm/block.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"

static struct block *open_with(const struct block_ops *ops,
			       const struct block_config *cfg,
			       struct husk_error *err)
{
	struct block *b = calloc(1, ops->size);

	if (!b) {
		error_errno(err, -ENOMEM, "%s", cfg->path);
		return NULL;
	}
	b->ops = ops;
	b->readonly = cfg->readonly;
	b->sector = 512;
	if (ops->open(b, cfg, err)) {
		free(b);
		return NULL;
	}
	return b;
}

struct block *block_open(const char *path, bool readonly,
			 struct husk_error *err)
{
	struct block_config cfg = { .path = path, .readonly = readonly };

	return open_with(&block_raw, &cfg, err);
}

struct block *block_open_null(uint64_t size, struct husk_error *err)
{
	struct block_config cfg = { .path = "null", .size = size };

	return open_with(&block_null, &cfg, err);
}

void block_close(struct block *b)
{
	if (!b)
		return;
	b->ops->drain(b);
	b->ops->close(b);
	free(b);
}

static int check(const struct block *b, const struct block_req *req)
{
	if (req->op == BLOCK_FLUSH)
		return 0;
	if (req->op != BLOCK_READ && b->readonly)
		return -EROFS;
	if (req->offset % b->sector || req->len % b->sector ||
	    req->offset > b->size || req->len > b->size - req->offset)
		return -EINVAL;
	return 0;
}

void block_submit(struct block *b, struct block_req *req)
{
	int ret = check(b, req);

	if (ret || (!req->len && req->op != BLOCK_FLUSH))
		req->done(req, ret);
	else
		b->ops->submit(b, req);
}

void block_drain(struct block *b)
{
	b->ops->drain(b);
}
