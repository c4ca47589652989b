/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.c - disk images as files: making, measuring, copying, checking them
 *
 * What takes time is done in a draft (draft.h), which replaces the old file at
 * the end: whoever interrupts it finds the old one whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "husk/vm.h"
#include "vm/block/qcow2.h"
#include "vm/draft.h"
#include "vm/ext4.h"

enum { CHUNK = 2 << 20, GRAIN = 64 << 10 };

/* -- create --------------------------------------------------------------- */

static int write_new(const struct draft *d, const struct block_ops *ops,
		     const struct vm_disk_create *c, struct husk_error *err)
{
	struct block_config cfg = { .path = d->name, .no_lock = true };
	struct q2_create q = {
		.size = c->size,
		.base = c->base,
		.base_format = c->base_format,
		.lazy = c->lazy_refcounts,
	};
	struct store *s = store_open(&cfg, err);
	int ret;

	if (!s)
		return -EIO;
	while (c->cluster && q.cluster_bits < 31 &&
	       BIT(q.cluster_bits) < c->cluster)
		q.cluster_bits++;
	if (c->cluster && BIT(q.cluster_bits) != c->cluster)
		q.cluster_bits = 31;
	ret = ops == &block_qcow2 ? q2_create(s, &q)
				  : store_set_size(s, c->size);
	store_close(s);
	if (ret == -EINVAL && c->cluster)
		return error_set(err, ret,
				 "%s: clusters of %u bytes are not possible; "
				 "512 to 2M, a power of two",
				 d->path, c->cluster);
	if (ret == -EFBIG)
		return error_set(err, ret,
				 "%s: too large for its clusters; take larger "
				 "ones",
				 d->path);
	return ret ? error_errno(err, ret, "%s", d->path) : 0;
}

/* Where the image will look for it, and what it is. */
static int find_base(const char *path, struct vm_disk_create *c, char **name,
		     struct husk_error *err)
{
	struct block_config cfg = { .format = c->base_format,
				    .readonly = true };
	const char *slash = strrchr(path, '/');
	const struct block_ops *ops;
	struct block *b;

	*name = NULL;
	if (*c->base == '/' || !slash)
		*name = strdup(c->base);
	else if (asprintf(name, "%.*s/%s", (int)(slash - path), path, c->base) <
		 0)
		*name = NULL;
	if (!*name)
		return error_errno(err, -ENOMEM, "%s", path);
	cfg.path = *name;
	ops = block_format(&cfg, err);
	b = ops ? block_open_config(&cfg, err) : NULL;
	if (!b)
		return -EINVAL;
	c->base_format = ops->name;
	if (!c->size)
		c->size = b->size;
	block_close(b);
	return 0;
}

/* What lies beside it is named so, and may be called anything. */
static const char *short_name(const char *path, const char *base)
{
	const char *slash = strrchr(path, '/');
	size_t n = slash ? (size_t)(slash - path) + 1 : 0;

	return n && !strncmp(path, base, n) && !strchr(base + n, '/') ? base + n
								      : base;
}

/* Of an image by itself: what it stands on is opened by who uses it. */
static int find_size(const char *path, const char *format, uint64_t *size,
		     struct husk_error *err)
{
	struct block_config cfg = { .path = path,
				    .format = format,
				    .readonly = true,
				    .no_base = true };
	struct block *b = block_open_config(&cfg, err);

	if (!b)
		return err && err->code ? err->code : -EIO;
	*size = b->size;
	block_close(b);
	return 0;
}

int disk_create_overlay(const char *path, const char *base,
			const char *base_format, uint64_t size,
			struct husk_error *err)
{
	struct vm_disk_create c = {
		.format = "qcow2",
		.size = size,
		.base = short_name(path, base),
		.base_format = base_format,
	};
	struct draft d;
	int ret = 0;

	/* Else without a look at the base, which its machine has locked. */
	if (!size)
		ret = find_size(base, base_format, &c.size, err);
	if (ret)
		return ret;
	ret = draft_begin(&d, path, false, err);
	if (!ret)
		ret = write_new(&d, &block_qcow2, &c, err);
	return draft_end(&d, ret, err);
}

int vm_disk_create(const char *path, const struct vm_disk_create *what,
		   struct husk_error *err)
{
	struct block_config cfg = { .path = path, .format = what->format };
	const struct block_ops *ops = block_format(&cfg, err);
	struct vm_disk_create c = *what;
	char *base = NULL;
	struct draft d;
	int ret = ops ? 0 : -EINVAL;

	if (!ret && c.base && ops != &block_qcow2)
		ret = error_set(err, -EINVAL,
				"%s: only a qcow2 image can have a base", path);
	if (!ret && c.base)
		ret = find_base(path, &c, &base, err);
	free(base);
	if (!ret && (!c.size || c.size % 512 || c.size > INT64_MAX))
		ret = error_set(err, -EINVAL,
				"%s: a size is needed, a multiple of 512",
				path);
	if (ret)
		return ret;
	ret = draft_begin(&d, path, c.replace, err);
	if (!ret)
		ret = write_new(&d, ops, &c, err);
	return draft_end(&d, ret, err);
}

/* -- info and check ------------------------------------------------------- */

static void copy_text(char *to, size_t room, const char *from)
{
	snprintf(to, room, "%s", from ? from : "");
}

static void qcow2_info(struct qcow2 *q, struct vm_disk_info *info)
{
	const struct q2_header *h = (const struct q2_header *)(void *)q->head;
	bool v3 = be32toh(h->version) == 3;

	info->used = store_used(q->store);
	info->file = atomic_load(&q->store->size);
	info->cluster = (uint32_t)q->cluster;
	info->snapshots = q->nsnapshots;
	info->lazy_refcounts = q->lazy;
	info->dirty = v3 && be64toh(h->incompat) & Q2_INCOMPAT_DIRTY;
	info->corrupt = v3 && be64toh(h->incompat) & Q2_INCOMPAT_CORRUPT;
	copy_text(info->base, sizeof(info->base), q->base_name);
	copy_text(info->base_format, sizeof(info->base_format), q->base_format);
}

int vm_disk_info(const char *path, const char *format,
		 struct vm_disk_info *info, struct husk_error *err)
{
	struct block_config cfg = {
		.path = path,
		.format = format,
		.readonly = true,
		.no_base = true,
		.no_lock = true,
	};
	const struct block_ops *ops = block_format(&cfg, err);
	struct block *b = ops ? block_open_config(&cfg, err) : NULL;
	struct stat st;

	memset(info, 0, sizeof(*info));
	if (!b)
		return -EINVAL;
	copy_text(info->format, sizeof(info->format), ops->name);
	info->size = b->size;
	if (ops == &block_qcow2) {
		qcow2_info(to_qcow2(b), info);
	} else {
		info->used = info->file = b->size;
		if (!stat(path, &st) && S_ISREG(st.st_mode))
			info->used = (uint64_t)st.st_blocks * 512;
	}
	block_close(b);
	return 0;
}

int vm_disk_check(const char *path, const char *format, bool repair,
		  struct vm_disk_check *result,
		  void (*report)(void *opaque, const char *text), void *opaque,
		  struct husk_error *err)
{
	struct block_config cfg = {
		.path = path,
		.format = format,
		.readonly = !repair,
		.no_base = true,
		.repair = repair,
	};
	const struct block_ops *ops = block_format(&cfg, err);
	struct block *b = ops ? block_open_config(&cfg, err) : NULL;
	struct q2_check before = { .report = report, .opaque = opaque };
	struct q2_check after = { 0 };
	struct qcow2 *q;
	int ret = 0;

	memset(result, 0, sizeof(*result));
	if (!b)
		return -EINVAL;
	if (ops == &block_qcow2) {
		q = to_qcow2(b);
		ret = q2_check(q, false, &before);
		result->errors = before.errors;
		result->leaks = before.leaks;
		result->clusters = before.clusters + before.packed;
		if (!ret && repair) {
			ret = q2_check(q, true, &after);
			if (!ret)
				ret = q2_check(q, false, &after);
			result->repaired = before.errors + before.leaks -
					   MIN(after.errors + after.leaks,
					       before.errors + before.leaks);
			result->errors = after.errors;
			result->leaks = after.leaks;
		}
	}
	block_close(b);
	return ret ? error_errno(err, ret, "%s", path) : 0;
}

/* -- resize --------------------------------------------------------------- */

int vm_disk_resize(const char *path, const char *format, uint64_t size,
		   bool shrink, struct husk_error *err)
{
	struct block_config cfg = { .path = path, .format = format };
	struct husk_error why = { 0 };
	struct block *b = block_open_config(&cfg, err);
	int ret = 0;

	if (!b)
		return -EINVAL;
	if (size < b->size && !shrink)
		ret = error_set(err, -EINVAL,
				"%s: is larger, and its end would be lost; "
				"say --shrink after the file system has been "
				"made smaller",
				path);
	if (!ret && block_resize(b, size, &why))
		ret = error_set(err, why.code, "%s: %s", path, why.text);
	block_close(b);
	return ret;
}

/* -- copying -------------------------------------------------------------- */

struct copy {
	struct block *from, *to;
	bool overlay; /* what the base has is left to it */
	vm_disk_progress *progress;
	void *opaque;
	char *buf;
};

static bool all_zero(const char *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

/* What holds only zeros takes no space. */
static int copy_data(struct copy *c, uint64_t offset, uint64_t len)
{
	int ret = block_read(c->from, offset, c->buf, len);

	for (uint64_t at = 0; !ret && at < len;) {
		uint64_t n = MIN(len - at, GRAIN), end = at + n;
		bool zero = all_zero(c->buf + at, n);
		struct block_req req = {
			.op = BLOCK_ZERO,
			.offset = offset + at,
		};

		while (end < len &&
		       zero == all_zero(c->buf + end, MIN(len - end, GRAIN)))
			end += MIN(len - end, GRAIN);
		req.len = end - at;
		if (!zero)
			ret = block_write(c->to, offset + at, c->buf + at,
					  end - at);
		else if (c->overlay)
			ret = block_perform(c->to, &req);
		at = end;
	}
	return ret;
}

static int copy_all(struct copy *c)
{
	uint64_t size = c->from->size;
	int ret = 0;

	c->buf = malloc(CHUNK);
	if (!c->buf)
		return -ENOMEM;
	for (uint64_t at = 0; !ret && at < size;) {
		uint64_t len = MIN(size - at, CHUNK);
		struct block_req zero = { .op = BLOCK_ZERO, .offset = at };
		enum block_kind kind;

		ret = block_map(c->from, at, &len, &kind);
		zero.len = len;
		if (!ret && kind == BLOCK_ZEROS && c->overlay)
			ret = block_perform(c->to, &zero);
		else if (!ret && (kind == BLOCK_DATA ||
				  (kind == BLOCK_BASE && !c->overlay)))
			ret = copy_data(c, at, len);
		at += len;
		if (!ret && c->progress && !c->progress(c->opaque, at, size))
			ret = -ECANCELED;
	}
	free(c->buf);
	return ret ? ret : block_flush(c->to);
}

static int copy_into(struct draft *d, struct copy *c,
		     const struct vm_disk_create *make,
		     const struct block_ops *ops, struct husk_error *err)
{
	struct block_config cfg = {
		.path = d->name,
		.format = ops->name,
		/* Only what differs from it is copied. */
		.no_base = true,
		.no_lock = true,
	};
	int ret;

	ret = write_new(d, ops, make, err);
	if (ret)
		return ret;
	c->to = block_open_config(&cfg, err);
	if (!c->to)
		return -EIO;
	ret = copy_all(c);
	if (ret == -ECANCELED)
		error_set(err, ret, "%s: interrupted; nothing has changed",
			  d->path);
	else if (ret)
		error_errno(err, ret, "%s", d->path);
	block_close(c->to);
	return ret;
}

int vm_disk_convert(const char *from, const char *to,
		    const struct vm_disk_convert *how,
		    vm_disk_progress *progress, void *opaque,
		    struct husk_error *err)
{
	struct block_config source = {
		.path = from,
		.format = how->from_format,
		.snapshot = how->snapshot,
		.readonly = true,
	};
	struct block_config target = { .path = to, .format = how->format };
	const struct block_ops *ops = block_format(&target, err);
	struct vm_disk_create make = { .cluster = how->cluster };
	struct copy c = { .progress = progress, .opaque = opaque };
	struct draft d;
	int ret;

	if (!ops)
		return -EINVAL;
	c.from = block_open_config(&source, err);
	if (!c.from)
		return -EINVAL;
	make.size = c.from->size;
	ret = draft_begin(&d, to, how->replace, err);
	if (!ret)
		ret = copy_into(&d, &c, &make, ops, err);
	ret = draft_end(&d, ret, err);
	block_close(c.from);
	return ret;
}

/* -- compact -------------------------------------------------------------- */

static int compact_raw(struct block *b, vm_disk_progress *progress,
		       void *opaque)
{
	char *buf = malloc(CHUNK);
	int ret = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; !ret && at < b->size;) {
		uint64_t len = MIN(b->size - at, CHUNK - at % CHUNK);
		enum block_kind kind;

		ret = block_map(b, at, &len, &kind);
		if (!ret && kind == BLOCK_DATA)
			ret = block_read(b, at, buf, len);
		for (uint64_t i = 0; !ret && kind == BLOCK_DATA && i < len;
		     i += GRAIN) {
			struct block_req req = {
				.op = BLOCK_DISCARD,
				.offset = at + i,
				.len = MIN(len - i, GRAIN),
			};

			if (all_zero(buf + i, req.len))
				ret = block_perform(b, &req);
		}
		at += len;
		if (!ret && progress && !progress(opaque, at, b->size))
			ret = -ECANCELED;
	}
	free(buf);
	return ret ? ret : block_flush(b);
}

static int compact_qcow2(const char *path, struct block *b,
			 vm_disk_progress *progress, void *opaque,
			 struct husk_error *err)
{
	struct qcow2 *q = to_qcow2(b);
	struct vm_disk_create make = {
		.size = b->size,
		.base = q->base_name,
		.base_format = q->base_format,
		.cluster = (uint32_t)q->cluster,
		.lazy_refcounts = q->lazy,
	};
	struct copy c = {
		.from = b,
		.overlay = q->base_name,
		.progress = progress,
		.opaque = opaque,
	};
	struct draft d;
	int ret;

	if (q->nsnapshots)
		return error_set(err, -EOPNOTSUPP,
				 "%s: has internal snapshots, which would be "
				 "lost; convert it to another file",
				 path);
	ret = draft_begin(&d, path, true, err);
	if (!ret)
		ret = copy_into(&d, &c, &make, &block_qcow2, err);
	return draft_end(&d, ret, err);
}

int vm_disk_compact(const char *path, const char *format,
		    vm_disk_progress *progress, void *opaque,
		    struct husk_error *err)
{
	struct block_config cfg = {
		.path = path,
		.format = format,
		.no_base = true,
	};
	const struct block_ops *ops = block_format(&cfg, err);
	struct block *b = ops ? block_open_config(&cfg, err) : NULL;
	int ret;

	if (!b)
		return -EINVAL;
	if (ops == &block_qcow2) {
		ret = compact_qcow2(path, b, progress, opaque, err);
	} else {
		ret = compact_raw(b, progress, opaque);
		if (ret == -ECANCELED)
			error_set(err, ret, "%s: interrupted; it is whole",
				  path);
		else if (ret)
			error_errno(err, ret, "%s", path);
	}
	block_close(b);
	return ret;
}

/* -- files in a file system ----------------------------------------------- */

enum { MAX_EXTRACT = 256 << 20 };

static int read_disk(void *opaque, uint64_t offset, void *buf, size_t len)
{
	struct block *b = opaque;
	uint64_t skip = offset % b->sector, left = len;
	uint8_t *bounce = malloc(b->sector);
	uint8_t *to = buf;
	int ret = bounce ? 0 : -ENOMEM;

	/* Whole sectors at once, the ends of others by way of a buffer. */
	while (!ret && left) {
		uint64_t n = left - left % b->sector;

		if (skip || !n) {
			n = MIN(left, b->sector - skip);
			ret = block_read(b, offset - skip, bounce, b->sector);
			if (!ret)
				memcpy(to, bounce + skip, n);
			skip = 0;
		} else {
			ret = block_read(b, offset, to, n);
		}
		to += n;
		offset += n;
		left -= n;
	}
	free(bounce);
	return ret;
}

static int put_file(void *opaque, const void *data, size_t len)
{
	return fwrite(data, 1, len, opaque) == len ? 0 : -errno;
}

static int extract(struct block *b, const char *file, const char *to,
		   unsigned *partition, struct husk_error *err)
{
	struct ext4_disk disk = { read_disk, b, b->size };
	struct draft d;
	FILE *f = NULL;
	int fd, ret = draft_begin(&d, to, true, err);

	if (ret)
		return ret;
	fd = fcntl(d.fd, F_DUPFD_CLOEXEC, 0);
	if (fd >= 0)
		f = fdopen(fd, "w");
	ret = f ? ext4_read_file(&disk, file, MAX_EXTRACT, put_file, f,
				 partition, err)
		: error_errno(err, -errno, "%s", to);
	if (f ? fclose(f) && !ret : fd >= 0 && close(fd))
		ret = error_errno(err, -errno, "%s", to);
	return draft_end(&d, ret, err);
}

int vm_disk_extract(const char *path, const char *format, const char *file,
		    const char *to, unsigned *partition, struct husk_error *err)
{
	struct block_config cfg = { .path = path,
				    .format = format,
				    .readonly = true };
	struct block *b = block_open_config(&cfg, err);
	struct husk_error why = { 0 };
	int ret;

	if (!b)
		return err && err->code ? err->code : -EIO;
	ret = extract(b, file, to, partition, &why);
	block_close(b);
	return ret ? error_set(err, ret, "%s in %s: %s", file, path, why.text)
		   : 0;
}
