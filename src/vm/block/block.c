/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.c - opening disks, and the checks that all back ends rely on
 */
#include "vm/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"

/* -- which format --------------------------------------------------------- */

static bool has_suffix(const char *path, const char *suffix)
{
	size_t n = strlen(path), k = strlen(suffix);

	return n > k && !strcasecmp(path + n - k, suffix);
}

const struct block_ops *block_format(const struct block_config *cfg,
				     struct husk_error *err)
{
	static const char *const foreign[] = { ".vmdk", ".vdi",	 ".vhd",
					       ".vhdx", ".qcow", ".qed" };

	if (cfg->format && !strcmp(cfg->format, "raw"))
		return &block_raw;
	if (cfg->format && !strcmp(cfg->format, "qcow2"))
		return &block_qcow2;
	if (cfg->format) {
		error_set(err, -EINVAL,
			  "%s: format %s: there are raw and qcow2", cfg->path,
			  cfg->format);
		return NULL;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(foreign); i++) {
		if (!has_suffix(cfg->path, foreign[i]))
			continue;
		error_set(err, -EINVAL,
			  "%s: %s images are not known; make it a qcow2 with "
			  "qemu-img convert -O qcow2, or say format=raw",
			  cfg->path, foreign[i]);
		return NULL;
	}
	return has_suffix(cfg->path, ".qcow2") ? &block_qcow2 : &block_raw;
}

static int parse(const char *text, const char *const *names, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (!strcmp(text, names[i]))
			return (int)i;
	return -EINVAL;
}

int block_parse_cache(const char *text, enum block_cache *out)
{
	static const char *const names[] = { "cached", "direct" };
	int i = parse(text, names, ARRAY_SIZE(names));

	if (i >= 0)
		*out = (enum block_cache)i;
	return MIN(i, 0);
}

int block_parse_sync(const char *text, enum block_sync *out)
{
	static const char *const names[] = { "full", "data", "none" };
	int i = parse(text, names, ARRAY_SIZE(names));

	if (i >= 0)
		*out = (enum block_sync)i;
	return MIN(i, 0);
}

int block_parse_aio(const char *text, enum block_aio *out)
{
	static const char *const names[] = { "auto", "uring", "threads" };
	int i = parse(text, names, ARRAY_SIZE(names));

	if (i >= 0)
		*out = (enum block_aio)i;
	return MIN(i, 0);
}

/* -- open and close ------------------------------------------------------- */

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
	if (cfg->sector)
		b->sector = cfg->sector;
	if (b->size % b->sector) {
		error_set(err, -EINVAL,
			  "%s: its size is not a multiple of %u bytes",
			  cfg->path, b->sector);
		block_close(b);
		return NULL;
	}
	return b;
}

struct block *block_open_config(const struct block_config *cfg,
				struct husk_error *err)
{
	const struct block_ops *ops = block_format(cfg, err);

	return ops ? open_with(ops, cfg, err) : NULL;
}

struct block *block_open(const char *path, bool readonly,
			 struct husk_error *err)
{
	struct block_config cfg = { .path = path, .readonly = readonly };

	return block_open_config(&cfg, err);
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

/* -- requests ------------------------------------------------------------- */

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

int block_perform(struct block *b, const struct block_req *req)
{
	int ret = check(b, req);

	if (ret || (!req->len && req->op != BLOCK_FLUSH))
		return ret;
	return b->ops->perform(b, req);
}

static int simple(struct block *b, enum block_op op, uint64_t offset, void *buf,
		  size_t len)
{
	struct iovec iov = { buf, len };
	struct block_req req = {
		.op = op,
		.offset = offset,
		.len = len,
		.iov = &iov,
		.iovcnt = 1,
	};

	return block_perform(b, &req);
}

int block_read(struct block *b, uint64_t offset, void *buf, size_t len)
{
	return simple(b, BLOCK_READ, offset, buf, len);
}

int block_write(struct block *b, uint64_t offset, const void *buf, size_t len)
{
	return simple(b, BLOCK_WRITE, offset, (void *)buf, len);
}

int block_flush(struct block *b)
{
	return simple(b, BLOCK_FLUSH, 0, NULL, 0);
}

void block_drain(struct block *b)
{
	b->ops->drain(b);
}

int block_resize(struct block *b, uint64_t size, struct husk_error *err)
{
	if (b->readonly)
		return error_set(err, -EROFS, "the disk is read-only");
	if (!b->ops->resize)
		return error_set(err, -EOPNOTSUPP, "%s disks keep their size",
				 b->ops->name);
	if (!size || size % 512 || size > INT64_MAX)
		return error_set(err, -EINVAL,
				 "%llu is no size: a multiple of 512 is",
				 (unsigned long long)size);
	return b->ops->resize(b, size, err);
}

int block_map(struct block *b, uint64_t offset, uint64_t *len,
	      enum block_kind *kind)
{
	*kind = BLOCK_DATA;
	if (offset >= b->size)
		return -EINVAL;
	*len = MIN(*len, b->size - offset);
	return b->ops->map ? b->ops->map(b, offset, len, kind) : 0;
}
