/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2.h - the inside of a qcow2 image
 *
 * A guest's offset leads through the L1 table (in memory) and an L2 table
 * (cached) to a cluster of the file; refcounts (cached) say which clusters
 * are free.  Changed tables are written at a flush, in an order that leaves
 * the image whole wherever the power is cut:
 *
 *   refcounts of what was allocated, and the data: flush
 *   L2 tables: flush when the L1 changed    L1 table: flush
 *   only then what the old tables held is freed, punched out and used again
 *
 * So after a cut clusters may be lost until "husk disk check --repair", but
 * never is one used twice.  With lazy refcounts the first step is left out:
 * the header says so, and they are counted anew when the image is opened.
 */
#ifndef VM_BLOCK_QCOW2_H
#define VM_BLOCK_QCOW2_H

#include <endian.h>

#include "vm/block/store.h"

#define Q2_MAGIC		0x514649fbu
#define Q2_OFFSET		0x00fffffffffffe00ull /* of tables and clusters */
#define Q2_COPIED		(1ull << 63)
#define Q2_COMPRESSED		(1ull << 62)
#define Q2_ZERO			1ull
#define Q2_L2_RESERVED		0x3f000000000001feull

#define Q2_INCOMPAT_DIRTY	(1ull << 0)
#define Q2_INCOMPAT_CORRUPT	(1ull << 1)
#define Q2_INCOMPAT_COMPRESSION (1ull << 3)
#define Q2_COMPAT_LAZY		(1ull << 0)

enum {
	Q2_EXT_END = 0,
	Q2_EXT_FORMAT = (int)0xe2792aca, /* of the base */
	Q2_EXT_FEATURES = 0x6803f857,
};

enum {
	Q2_HEADER = 104,
	Q2_MIN_BITS = 9,
	Q2_MAX_BITS = 21,
	Q2_MAX_L1 = 32 << 20, /* bytes of the L1 table */
	Q2_MAX_REFTABLE = 8 << 20,
	Q2_MAX_NAME = 1023, /* of the base */
	Q2_MAX_SNAPSHOTS = 65536,
	Q2_MAX_SNAPSHOT_TABLE = 64 << 20,
	Q2_CACHE = 32 << 20, /* bytes of L2 tables, and of refcounts */
	Q2_CHILDREN = 128,   /* requests on the short way */
};

/* On disk, big endian. */
struct q2_header {
	uint32_t magic, version;
	uint64_t base_offset;
	uint32_t base_len, cluster_bits;
	uint64_t size;
	uint32_t crypt, l1_size;
	uint64_t l1_offset, reftable_offset;
	uint32_t reftable_clusters, nsnapshots;
	uint64_t snapshots_offset;
	uint64_t incompat, compat, autoclear;
	uint32_t refcount_order, header_len;
	uint8_t compression, pad[7];
};

struct q2_table {
	uint64_t offset;
	void *data; /* a cluster */
	bool dirty;
	struct q2_table *chain; /* of the same bucket */
	struct q2_table *newer, *older;
};

struct q2_cache {
	struct q2_table **bucket;
	unsigned nbuckets, count, max, dirty;
	struct q2_table *newest, *oldest;
};

struct q2_snapshot {
	char *id, *name;
	uint64_t l1_offset, size;
	uint32_t l1_size;
};

struct qcow2;

/* A request on its way to the store. */
struct q2_child {
	struct block_req req;
	struct block_req *parent;
	struct qcow2 *q;
	struct q2_child *next;
};

/* (i) constant after open   (l) under lock   (o) under io_lock */
struct qcow2 {
	struct block block;
	struct store *store;	       /* (i) */
	struct block *base;	       /* (i) may be NULL */
	char *base_name, *base_format; /* (i) may be NULL */
	const char *path;	       /* during open */
	unsigned bits, l2_bits; /* (i) of a cluster, of a table's index */
	uint64_t cluster;	/* (i) bytes */
	unsigned ref_order;	/* (i) */
	unsigned ref_bits;   /* (i) log2 of the entries of a refcount block */
	uint8_t compression; /* (i) */
	_Alignas(8) uint8_t head[512]; /* (l) the header as it is on disk */
	bool corrupt;		       /* (l) no more writes */
	bool repair, has_base;	       /* (i) */

	pthread_mutex_t lock;
	uint64_t *l1; /* (l) of the host's byte order, so is reftable */
	uint32_t l1_size;
	uint64_t l1_offset;
	bool l1_dirty;
	uint64_t *reftable; /* (l) */
	uint64_t reftable_offset;
	uint32_t reftable_clusters;
	struct q2_cache l2, ref; /* (l) */
	uint64_t hint;		 /* (l) no free cluster below */
	uint64_t *freed;	 /* (l) clusters to be freed by the next sync */
	size_t nfreed, freed_room;
	bool lazy, marked; /* (l) */

	struct q2_snapshot *snapshot; /* (i) */
	unsigned nsnapshots;
	uint64_t snapshots_offset, snapshots_len;

	struct pool pool;
	struct q2_child child[Q2_CHILDREN];
	pthread_mutex_t io_lock;
	pthread_cond_t io_idle;
	unsigned io;		   /* (o) accesses to mapped clusters */
	struct q2_child *children; /* (o) free ones */

	pthread_mutex_t unpack_lock;
	uint64_t unpacked; /* entry whose cluster is in unpack */
	uint8_t *unpack, *packed;
};

enum q2_kind { Q2_UNALLOCATED, Q2_ZEROS, Q2_DATA, Q2_PACKED };

struct q2_run {
	enum q2_kind kind;
	bool copied;	/* may be written in place */
	uint64_t entry; /* of its first cluster */
	uint64_t host;	/* DATA: of its first byte */
	uint64_t len;
};

static inline struct qcow2 *to_qcow2(struct block *b)
{
	return (struct qcow2 *)(void *)b;
}

/* -- qcow2_table.c: all with lock held ------------------------------------ */

int q2_cache_init(struct qcow2 *q, struct q2_cache *c);
void q2_cache_finish(struct q2_cache *c);
/* The table at offset, or NULL when it is not in memory. */
struct q2_table *q2_cached(struct q2_cache *c, uint64_t offset);
int q2_load(struct qcow2 *q, struct q2_cache *c, uint64_t offset,
	    struct q2_table **out);
/* A table of zeros for a new cluster, dirty. */
int q2_fresh(struct qcow2 *q, struct q2_cache *c, uint64_t offset,
	     struct q2_table **out);
void q2_drop(struct q2_cache *c, uint64_t offset);
void q2_touch(struct q2_cache *c, struct q2_table *t);
int q2_write_cache(struct qcow2 *q, struct q2_cache *c);
/* The image contradicts itself: no more writes.  -EIO. */
int q2_corrupt(struct qcow2 *q);
int q2_write_header(struct qcow2 *q);
int q2_set_incompat(struct qcow2 *q, uint64_t bit, bool on);
bool q2_dirty(const struct qcow2 *q);
/* Everything changed so far is in the file, for good. */
int q2_sync(struct qcow2 *q);

/* -- qcow2_ref.c ---------------------------------------------------------- */

int q2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count);
int q2_set_refcount(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* Up to want clusters in a row, at least one. */
int q2_alloc(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got);
/* Never was in a table that is on disk: free now. */
void q2_unalloc(struct qcow2 *q, uint64_t offset, uint64_t count);
/* One reference less, once the tables that had it are gone from disk. */
void q2_free_later(struct qcow2 *q, uint64_t offset);
void q2_free_entry(struct qcow2 *q, uint64_t entry);
int q2_free_now(struct qcow2 *q);
/* Offset and length of a compressed cluster. */
void q2_packed(const struct qcow2 *q, uint64_t entry, uint64_t *offset,
	       uint64_t *len);
/* Whether [offset, +len) holds header, tables or refcounts. */
bool q2_is_metadata(struct qcow2 *q, uint64_t offset, uint64_t len, bool all);

/* -- qcow2_map.c ---------------------------------------------------------- */

/* -EAGAIN when cached_only and the table is not. */
int q2_map(struct qcow2 *q, uint64_t offset, uint64_t len, bool cached_only,
	   struct q2_run *run);
int q2_read_run(struct qcow2 *q, const struct q2_run *run, uint64_t offset,
		const struct iovec *iov, int count, uint64_t at, uint64_t *len);
/* Without lock held. */
int q2_perform(struct qcow2 *q, const struct block_req *req);
int q2_grow_l1(struct qcow2 *q, uint32_t size);

/* -- qcow2_check.c -------------------------------------------------------- */

struct q2_check {
	uint64_t errors, leaks, clusters, packed;
	void (*report)(void *opaque, const char *text);
	void *opaque;
};
int q2_check(struct qcow2 *q, bool repair, struct q2_check *c);

/* -- qcow2_create.c ------------------------------------------------------- */

struct q2_create {
	uint64_t size;
	unsigned cluster_bits; /* 0: 16 */
	const char *base, *base_format;
	bool lazy;
};
int q2_create(struct store *s, const struct q2_create *c);

#endif /* VM_BLOCK_QCOW2_H */
