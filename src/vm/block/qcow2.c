/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2.c - qcow2 images: opening with distrust, and requests
 *
 * A request that needs no table from the file and no new cluster goes from
 * the submitter's thread straight to the store; all others are performed by
 * the image's own threads.
 */
#include "vm/block/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "base/error.h"

/* -- the header ----------------------------------------------------------- */

static int bad(const struct qcow2 *q, struct husk_error *err, const char *what)
{
	return error_set(err, -EINVAL, "%s: damaged qcow2 image: %s", q->path,
			 what);
}

/* Whether [offset, offset + len) is in the file and begins with a cluster. */
static bool in_file(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
	uint64_t end = ALIGN_UP(atomic_load(&q->store->size), q->cluster);

	return offset >= q->cluster && !(offset % q->cluster) && offset < end &&
	       len <= end - offset;
}

static int check_features(struct qcow2 *q, const struct q2_header *h,
			  struct husk_error *err)
{
	uint64_t incompat = be64toh(h->incompat);

	if (be32toh(h->version) == 2 && !q->block.readonly)
		return error_set(err, -EINVAL,
				 "%s: is qcow2 version 2: attach it readonly, "
				 "or make a new one with husk disk convert",
				 q->path);
	if (be32toh(h->version) < 2 || be32toh(h->version) > 3)
		return error_set(err, -EINVAL,
				 "%s: is qcow2 version %u; 3 is known", q->path,
				 be32toh(h->version));
	if (h->crypt)
		return error_set(err, -EINVAL,
				 "%s: encrypted images are not known", q->path);
	if (be32toh(h->version) == 2)
		return 0;
	if (incompat & BIT(2))
		return error_set(err, -EINVAL,
				 "%s: its data is in another file, which is "
				 "not known; convert it with qemu-img",
				 q->path);
	if (incompat & BIT(4))
		return error_set(err, -EINVAL,
				 "%s: has subclusters, which are not known; "
				 "convert it with qemu-img -o extended_l2=off",
				 q->path);
	if (incompat & ~(Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT |
			 Q2_INCOMPAT_COMPRESSION))
		return error_set(err, -EINVAL,
				 "%s: needs features that are not known "
				 "(0x%llx)",
				 q->path, (unsigned long long)incompat);
	if (incompat & Q2_INCOMPAT_CORRUPT && !q->block.readonly && !q->repair)
		return error_set(err, -EINVAL,
				 "%s: is marked as corrupt: attach it "
				 "readonly and save what can be read, or try "
				 "husk disk check --repair",
				 q->path);
	return 0;
}

static int check_header(struct qcow2 *q, struct husk_error *err)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	unsigned version = be32toh(h->version);
	uint64_t per_l1, need;
	int ret;

	if (be32toh(h->magic) != Q2_MAGIC)
		return error_set(err, -EINVAL, "%s: is not a qcow2 image",
				 q->path);
	ret = check_features(q, h, err);
	if (ret)
		return ret;
	q->bits = be32toh(h->cluster_bits);
	if (q->bits < Q2_MIN_BITS || q->bits > Q2_MAX_BITS)
		return bad(q, err, "size of clusters");
	q->cluster = BIT(q->bits);
	q->l2_bits = q->bits - 3;
	q->ref_order = version == 2 ? 4 : be32toh(h->refcount_order);
	if (q->ref_order > 6)
		return bad(q, err, "width of refcounts");
	q->ref_bits = q->bits + 3 - q->ref_order;
	if (version == 3 &&
	    (be32toh(h->header_len) < Q2_HEADER || be32toh(h->header_len) % 8 ||
	     be32toh(h->header_len) > MIN(q->cluster, 4096)))
		return bad(q, err, "length of the header");
	if (version == 3 && be64toh(h->incompat) & Q2_INCOMPAT_COMPRESSION) {
		q->compression = h->compression;
		if (be32toh(h->header_len) <= Q2_HEADER || h->compression > 1)
			return bad(q, err, "kind of compression");
	}
	q->lazy = version == 3 && be64toh(h->compat) & Q2_COMPAT_LAZY;
	q->block.size = be64toh(h->size);
	if (!q->block.size || q->block.size % 512 || q->block.size > INT64_MAX)
		return bad(q, err, "size of the disk");
	per_l1 = q->cluster << q->l2_bits;
	need = (q->block.size - 1) / per_l1 + 1;
	q->l1_size = be32toh(h->l1_size);
	q->l1_offset = be64toh(h->l1_offset);
	if (q->l1_size < need || q->l1_size * 8ull > Q2_MAX_L1 ||
	    !in_file(q, q->l1_offset, q->l1_size * 8ull))
		return bad(q, err, "L1 table");
	q->reftable_offset = be64toh(h->reftable_offset);
	q->reftable_clusters = be32toh(h->reftable_clusters);
	if (!q->reftable_clusters ||
	    (uint64_t)q->reftable_clusters << q->bits > Q2_MAX_REFTABLE ||
	    !in_file(q, q->reftable_offset,
		     (uint64_t)q->reftable_clusters << q->bits))
		return bad(q, err, "refcount table");
	return 0;
}

/* Reads a table of big-endian words. */
static int read_words(struct qcow2 *q, uint64_t offset, uint64_t n,
		      uint64_t room, uint64_t **out, struct husk_error *err)
{
	int ret;

	*out = calloc(MAX(n, room), 8);
	ret = *out ? store_read(q->store, offset, *out, n * 8) : -ENOMEM;
	if (ret)
		return error_errno(err, ret, "%s", q->path);
	for (uint64_t i = 0; i < n; i++)
		(*out)[i] = be64toh((*out)[i]);
	return 0;
}

static int read_tables(struct qcow2 *q, struct husk_error *err)
{
	uint64_t nref = ((uint64_t)q->reftable_clusters << q->bits) / 8;
	uint64_t size = atomic_load(&q->store->size);
	int ret;

	ret = read_words(q, q->l1_offset, q->l1_size,
			 ALIGN_UP(q->l1_size * 8ull, q->cluster) / 8, &q->l1,
			 err);
	if (!ret)
		ret = read_words(q, q->reftable_offset, nref, nref,
				 &q->reftable, err);
	for (uint32_t i = 0; !ret && i < q->l1_size; i++)
		if ((q->l1[i] & ~(Q2_OFFSET | Q2_COPIED)) ||
		    (q->l1[i] & Q2_OFFSET &&
		     !in_file(q, q->l1[i] & Q2_OFFSET, 1)))
			ret = bad(q, err, "entry of the L1 table");
	for (uint64_t i = 0; !ret && i < nref; i++)
		if (q->reftable[i] &&
		    (!in_file(q, q->reftable[i], 1) || q->reftable[i] >= size))
			ret = bad(q, err, "entry of the refcount table");
	return ret;
}

/* -- the base ------------------------------------------------------------- */

static int read_string(struct qcow2 *q, uint64_t offset, size_t len, char **out)
{
	int ret;

	*out = calloc(1, len + 1);
	ret = *out ? store_read(q->store, offset, *out, len) : -ENOMEM;
	return !ret && memchr(*out, 0, len) ? -EINVAL : ret;
}

static int read_extensions(struct qcow2 *q, uint64_t end,
			   struct husk_error *err)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t at = be32toh(h->version) == 2 ? 72 : be32toh(h->header_len);

	while (at + 8 <= end) {
		uint32_t ext[2];
		uint64_t len;

		if (store_read(q->store, at, ext, 8))
			return bad(q, err, "header");
		at += 8;
		len = be32toh(ext[1]);
		if (be32toh(ext[0]) == Q2_EXT_END)
			return 0;
		if (len > end - at)
			return bad(q, err, "header extension");
		if (be32toh(ext[0]) == (uint32_t)Q2_EXT_FORMAT &&
		    (len > 32 || q->base_format ||
		     read_string(q, at, len, &q->base_format)))
			return bad(q, err, "name of the base's format");
		at += ALIGN_UP(len, 8);
	}
	return 0;
}

static int read_base_name(struct qcow2 *q, struct husk_error *err)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t offset = be64toh(h->base_offset), len = be32toh(h->base_len);
	int ret;

	if (offset && (len > Q2_MAX_NAME || offset > q->cluster ||
		       len > q->cluster - offset || offset < 72))
		return bad(q, err, "name of the base");
	ret = read_extensions(q, offset ? offset : q->cluster, err);
	if (!ret && offset && len && read_string(q, offset, len, &q->base_name))
		ret = bad(q, err, "name of the base");
	return ret;
}

static bool suffixed(const char *name)
{
	static const char *const known[] = { ".qcow2", ".raw", ".img" };
	size_t n = strlen(name);

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (n > strlen(known[i]) &&
		    !strcasecmp(name + n - strlen(known[i]), known[i]))
			return true;
	return false;
}

/*
 * An image from elsewhere must not make the host's own files readable in a
 * guest: the base is an image by its name, or lies beside the image.
 */
static int trust_base(struct qcow2 *q, const char *path, struct husk_error *err)
{
	struct stat st;

	if (strchr(q->base_name, ':') &&
	    strcspn(q->base_name, ":") < strcspn(q->base_name, "/"))
		return error_set(err, -EINVAL, "%s: its base %s is not a file",
				 q->path, q->base_name);
	if (stat(path, &st))
		return error_set(err, -errno,
				 "%s: its base %s: %s; say where "
				 "it is with base=FILE",
				 q->path, path, strerror(errno));
	if (S_ISREG(st.st_mode) &&
	    (suffixed(path) || !strchr(q->base_name, '/')))
		return 0;
	return error_set(err, -EACCES,
			 "%s: its base %s does not look like an image; if it "
			 "is meant, name it with base=%s",
			 q->path, path, path);
}

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

enum { MAX_DEPTH = 64 };

static int open_base(struct qcow2 *q, const struct block_config *cfg,
		     struct husk_error *err)
{
	struct block_config base = {
		.format = q->base_format,
		.readonly = true,
		.cache = cfg->cache,
		.aio = cfg->aio,
		.depth = cfg->depth + 1,
		.above = cfg,
	};
	const char *slash = strrchr(cfg->path, '/');
	char *path = NULL;
	int ret;

	q->has_base = cfg->base || q->base_name;
	if (!q->has_base || cfg->no_base)
		return 0;
	if (cfg->base)
		path = strdup(cfg->base);
	else if (*q->base_name == '/' || !slash)
		path = strdup(q->base_name);
	else if (asprintf(&path, "%.*s/%s", (int)(slash - cfg->path), cfg->path,
			  q->base_name) < 0)
		path = NULL;
	if (!path)
		return error_errno(err, -ENOMEM, "%s", cfg->path);
	base.path = path;
	ret = cfg->base ? 0 : trust_base(q, path, err);
	if (!ret && base.depth > MAX_DEPTH)
		ret = error_set(err, -ELOOP, "%s: more than %d bases",
				cfg->path, MAX_DEPTH);
	for (const struct block_config *c = cfg; !ret && c; c = c->above)
		if (same_file(c->path, path))
			ret = error_set(err, -ELOOP,
					"%s: its base %s is the image itself "
					"or stands on it",
					cfg->path, path);
	if (!ret && !base.format && !cfg->base && !suffixed(path))
		ret = error_set(err, -EINVAL,
				"%s: does not say which format its base %s "
				"has; give it the suffix .raw or .qcow2",
				cfg->path, path);
	if (!ret) {
		q->base = block_open_config(&base, err);
		ret = q->base ? 0 : -EIO;
	}
	free(path);
	return ret;
}

/* -- snapshots ------------------------------------------------------------ */

/* On disk; extra data, id and name follow, padded to 8. */
struct snapshot_entry {
	uint64_t l1_offset;
	uint32_t l1_size;
	uint16_t id_len, name_len;
	uint32_t sec, nsec;
	uint64_t vm_ns;
	uint32_t vm_state, extra;
};

static int read_snapshot(struct qcow2 *q, struct q2_snapshot *s, uint64_t *at,
			 struct husk_error *err)
{
	struct snapshot_entry e;
	uint64_t extra[2] = { 0, htobe64(q->block.size) };
	uint64_t len;

	if (store_read(q->store, *at, &e, sizeof(e)))
		return bad(q, err, "snapshot table");
	len = be32toh(e.extra);
	if (len > 1024)
		return bad(q, err, "snapshot");
	*at += sizeof(e);
	if (store_read(q->store, *at, extra, MIN(len, 16) & ~7ull))
		return bad(q, err, "snapshot table");
	*at += len;
	s->l1_offset = be64toh(e.l1_offset);
	s->l1_size = be32toh(e.l1_size);
	s->size = be64toh(extra[1]);
	if (s->l1_size * 8ull > Q2_MAX_L1 ||
	    (s->l1_size && !in_file(q, s->l1_offset, s->l1_size * 8ull)) ||
	    !s->size || s->size % 512 || s->size > INT64_MAX)
		return bad(q, err, "snapshot");
	if (read_string(q, *at, be16toh(e.id_len), &s->id) ||
	    read_string(q, *at + be16toh(e.id_len), be16toh(e.name_len),
			&s->name))
		return bad(q, err, "name of a snapshot");
	*at = ALIGN_UP(*at + be16toh(e.id_len) + be16toh(e.name_len), 8);
	return 0;
}

static int read_snapshots(struct qcow2 *q, struct husk_error *err)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t at = be64toh(h->snapshots_offset);
	uint64_t n = be32toh(h->nsnapshots);
	int ret = 0;

	if (!n)
		return 0;
	if (n > Q2_MAX_SNAPSHOTS || !in_file(q, at, n * 40))
		return bad(q, err, "snapshot table");
	q->snapshots_offset = at;
	q->snapshot = calloc(n, sizeof(*q->snapshot));
	if (!q->snapshot)
		return error_errno(err, -ENOMEM, "%s", q->path);
	while (!ret && q->nsnapshots < n) {
		ret = read_snapshot(q, &q->snapshot[q->nsnapshots++], &at, err);
		if (!ret && (at - q->snapshots_offset > Q2_MAX_SNAPSHOT_TABLE ||
			     !in_file(q, q->snapshots_offset,
				      at - q->snapshots_offset)))
			ret = bad(q, err, "snapshot table");
	}
	q->snapshots_len = at - q->snapshots_offset;
	return ret;
}

/* The disk as it was: only to read. */
static int use_snapshot(struct qcow2 *q, const char *name,
			struct husk_error *err)
{
	uint64_t per_l1 = q->cluster << q->l2_bits;
	uint64_t need;

	if (!q->block.readonly)
		return error_set(err, -EROFS,
				 "%s: a snapshot can only be attached readonly",
				 q->path);
	for (unsigned i = 0; i < q->nsnapshots; i++) {
		struct q2_snapshot *s = &q->snapshot[i];

		if (strcmp(s->id, name) && strcmp(s->name, name))
			continue;
		need = (s->size - 1) / per_l1 + 1;
		if (s->l1_size < need)
			return bad(q, err, "L1 table of the snapshot");
		free(q->l1);
		q->l1 = NULL;
		q->l1_size = s->l1_size;
		q->l1_offset = s->l1_offset;
		q->block.size = s->size;
		return read_words(q, s->l1_offset, s->l1_size, s->l1_size,
				  &q->l1, err);
	}
	return error_set(err, -ENOENT, "%s: has no snapshot %s", q->path, name);
}

/* -- open and close ------------------------------------------------------- */

static void release(struct qcow2 *q)
{
	for (unsigned i = 0; i < q->nsnapshots; i++) {
		free(q->snapshot[i].id);
		free(q->snapshot[i].name);
	}
	free(q->snapshot);
	q2_cache_finish(&q->l2);
	q2_cache_finish(&q->ref);
	free(q->l1);
	free(q->reftable);
	free(q->freed);
	free(q->unpack);
	free(q->packed);
	free(q->base_name);
	free(q->base_format);
	block_close(q->base);
	store_close(q->store);
	pthread_cond_destroy(&q->io_idle);
	pthread_mutex_destroy(&q->io_lock);
	pthread_mutex_destroy(&q->unpack_lock);
	pthread_mutex_destroy(&q->lock);
}

static int read_head(struct qcow2 *q, struct husk_error *err)
{
	int ret = store_read(q->store, 0, q->head, sizeof(q->head));

	if (ret)
		return error_errno(err, ret, "%s", q->path);
	ret = check_header(q, err);
	if (!ret)
		ret = read_base_name(q, err);
	if (!ret)
		ret = read_snapshots(q, err);
	return ret ? ret : read_tables(q, err);
}

/* What a program that knows more has written would no longer be true; and
 * after a cut with lazy refcounts they are counted. */
static int make_writable(struct qcow2 *q, struct husk_error *err)
{
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	struct q2_check c = { 0 };
	int ret = 0;

	if (q->block.readonly)
		return 0;
	if (h->autoclear) {
		h->autoclear = 0;
		ret = q2_write_header(q);
	}
	if (!ret && !q->repair && be64toh(h->incompat) & Q2_INCOMPAT_DIRTY) {
		ret = q2_check(q, true, &c);
		if (!ret && c.errors)
			return bad(q, err, "tables; husk disk check says more");
	}
	return ret ? error_errno(err, ret, "%s", q->path) : 0;
}

static int perform(void *arg, const struct block_req *req)
{
	return q2_perform(arg, req);
}

static int qcow2_open(struct block *b, const struct block_config *cfg,
		      struct husk_error *err)
{
	struct qcow2 *q = to_qcow2(b);
	int ret;

	q->path = cfg->path;
	q->repair = cfg->repair;
	q->hint = 1;
	q->store = store_open(cfg, err);
	if (!q->store)
		return -EIO;
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->io_lock, NULL);
	pthread_mutex_init(&q->unpack_lock, NULL);
	pthread_cond_init(&q->io_idle, NULL);
	ret = read_head(q, err);
	if (!ret && (q2_cache_init(q, &q->l2) || q2_cache_init(q, &q->ref)))
		ret = error_errno(err, -ENOMEM, "%s", q->path);
	if (!ret && cfg->snapshot)
		ret = use_snapshot(q, cfg->snapshot, err);
	if (!ret)
		ret = open_base(q, cfg, err);
	if (!ret)
		ret = make_writable(q, err);
	for (unsigned i = 0; i < Q2_CHILDREN; i++) {
		q->child[i].q = q;
		q->child[i].next = q->children;
		q->children = &q->child[i];
	}
	b->can_discard = !b->readonly;
	q->path = NULL;
	if (ret)
		release(q);
	else
		pool_start(&q->pool, perform, q);
	return ret;
}

static void qcow2_close(struct block *b)
{
	struct qcow2 *q = to_qcow2(b);
	int ret = 0;

	pool_stop(&q->pool);
	if (!b->readonly) {
		/* Twice: what the first frees, the second writes. */
		while (!ret && !q->corrupt && q2_dirty(q))
			ret = q2_sync(q);
		if (!ret && !q->corrupt && q->marked) {
			ret = q2_write_cache(q, &q->ref);
			if (!ret)
				ret = store_flush(q->store);
			if (!ret)
				q2_set_incompat(q, Q2_INCOMPAT_DIRTY, false);
		}
	}
	release(q);
}

/* -- requests ------------------------------------------------------------- */

static void child_done(struct block_req *req, int err)
{
	struct q2_child *c = container_of(req, struct q2_child, req);
	struct block_req *parent = c->parent;
	struct qcow2 *q = c->q;

	parent->done(parent, err);
	pthread_mutex_lock(&q->io_lock);
	c->next = q->children;
	q->children = c;
	if (!--q->io)
		pthread_cond_broadcast(&q->io_idle);
	pthread_mutex_unlock(&q->io_lock);
}

static struct q2_child *get_child(struct qcow2 *q)
{
	struct q2_child *c;

	pthread_mutex_lock(&q->io_lock);
	c = q->children;
	if (c) {
		q->children = c->next;
		q->io++;
	}
	pthread_mutex_unlock(&q->io_lock);
	return c;
}

/* 1: zeros; 0 and *out: a child to submit; -1: not so simple. */
static int try_short(struct qcow2 *q, struct block_req *req,
		     struct q2_child **out)
{
	struct q2_run run;
	int ret = -1;

	if (pthread_mutex_trylock(&q->lock))
		return -1;
	if (!q2_map(q, req->offset, req->len, true, &run) &&
	    run.len == req->len && !q->corrupt) {
		bool read = req->op == BLOCK_READ;

		if (read && (run.kind == Q2_ZEROS ||
			     (run.kind == Q2_UNALLOCATED && !q->base)))
			ret = 1;
		else if (run.kind == Q2_DATA && (read || run.copied) &&
			 (*out = get_child(q)))
			ret = 0;
	}
	pthread_mutex_unlock(&q->lock);
	if (ret)
		return ret;
	(*out)->parent = req;
	(*out)->req = *req;
	(*out)->req.offset = run.host;
	(*out)->req.done = child_done;
	return 0;
}

static void qcow2_submit(struct block *b, struct block_req *req)
{
	struct qcow2 *q = to_qcow2(b);
	struct q2_child *c;
	int ret = -1;

	if (req->op == BLOCK_READ || (req->op == BLOCK_WRITE && !b->readonly))
		ret = try_short(q, req, &c);
	if (ret > 0) {
		iov_zero(req->iov, req->iovcnt, 0, req->len);
		req->done(req, 0);
	} else if (!ret) {
		q->store->ops->submit(q->store, &c->req);
	} else {
		pool_submit(&q->pool, req);
	}
}

static int qcow2_perform(struct block *b, const struct block_req *req)
{
	return q2_perform(to_qcow2(b), req);
}

static void qcow2_drain(struct block *b)
{
	struct qcow2 *q = to_qcow2(b);

	pool_drain(&q->pool);
	pthread_mutex_lock(&q->io_lock);
	while (q->io)
		pthread_cond_wait(&q->io_idle, &q->io_lock);
	pthread_mutex_unlock(&q->io_lock);
}

/* -- size and contents ---------------------------------------------------- */

static int qcow2_resize(struct block *b, uint64_t size, struct husk_error *err)
{
	struct qcow2 *q = to_qcow2(b);
	struct q2_header *h = (struct q2_header *)(void *)q->head;
	uint64_t per_l1 = q->cluster << q->l2_bits, old = b->size;
	uint64_t need = (size - 1) / per_l1 + 1;
	int ret = 0;

	if (need * 8 > Q2_MAX_L1)
		return error_set(err, -EFBIG,
				 "at most %llu GiB with clusters of %llu bytes",
				 (unsigned long long)(Q2_MAX_L1 / 8 * per_l1 >>
						      30),
				 (unsigned long long)q->cluster);
	if (size < old && q->nsnapshots)
		return error_set(err, -EOPNOTSUPP,
				 "an image with snapshots cannot be shrunk");
	if (size < old) {
		struct block_req req = {
			.op = BLOCK_DISCARD,
			.offset = size,
			.len = old - size,
		};

		ret = q2_perform(q, &req);
	} else if (old % q->cluster) {
		/* The rest of the last cluster is now to be seen. */
		struct block_req req = {
			.op = BLOCK_ZERO,
			.offset = old,
			.len = MIN(q->cluster - old % q->cluster, size - old),
		};

		b->size = size;
		ret = q2_perform(q, &req);
		b->size = old;
	}
	pthread_mutex_lock(&q->lock);
	if (!ret)
		ret = q2_grow_l1(q, (uint32_t)need);
	if (!ret)
		ret = q2_sync(q);
	if (!ret) {
		h->size = htobe64(size);
		ret = q2_write_header(q);
	}
	if (!ret)
		ret = store_flush(q->store);
	if (!ret)
		b->size = size;
	pthread_mutex_unlock(&q->lock);
	return ret ? error_errno(err, ret, "cannot be resized") : 0;
}

static int qcow2_map(struct block *b, uint64_t offset, uint64_t *len,
		     enum block_kind *kind)
{
	static const enum block_kind kinds[] = {
		[Q2_UNALLOCATED] = BLOCK_BASE,
		[Q2_ZEROS] = BLOCK_ZEROS,
		[Q2_DATA] = BLOCK_DATA,
		[Q2_PACKED] = BLOCK_DATA,
	};
	struct qcow2 *q = to_qcow2(b);
	struct q2_run run;
	int ret;

	pthread_mutex_lock(&q->lock);
	ret = q2_map(q, offset, *len, false, &run);
	pthread_mutex_unlock(&q->lock);
	if (ret)
		return ret;
	*len = run.len;
	*kind = kinds[run.kind];
	if (*kind == BLOCK_BASE && !q->has_base)
		*kind = BLOCK_ZEROS;
	return 0;
}

const struct block_ops block_qcow2 = {
	.name = "qcow2",
	.size = sizeof(struct qcow2),
	.open = qcow2_open,
	.close = qcow2_close,
	.submit = qcow2_submit,
	.perform = qcow2_perform,
	.drain = qcow2_drain,
	.resize = qcow2_resize,
	.map = qcow2_map,
};
