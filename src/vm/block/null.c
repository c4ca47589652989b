/* SPDX-License-Identifier: Apache-2.0 */
/*
 * null.c - a disk of zeros that forgets what is written
 */
#include "vm/block.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

static int null_open(struct block *b, const struct block_config *cfg,
		     struct husk_error *err)
{
	if (cfg->size % 512)
		return error_set(err, -EINVAL,
				 "null: size is not a multiple of 512");
	b->size = cfg->size;
	b->can_discard = true;
	return 0;
}

static void null_close(struct block *b)
{
}

static int null_perform(struct block *b, const struct block_req *req)
{
	for (int i = 0; req->op == BLOCK_READ && i < req->iovcnt; i++)
		memset(req->iov[i].iov_base, 0, req->iov[i].iov_len);
	return 0;
}

static void null_submit(struct block *b, struct block_req *req)
{
	req->done(req, null_perform(b, req));
}

static int null_resize(struct block *b, uint64_t size, struct husk_error *err)
{
	b->size = size;
	return 0;
}

static void null_drain(struct block *b)
{
}

const struct block_ops block_null = {
	.name = "null",
	.size = sizeof(struct block),
	.open = null_open,
	.close = null_close,
	.submit = null_submit,
	.perform = null_perform,
	.drain = null_drain,
	.resize = null_resize,
};
