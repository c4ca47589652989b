/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ext4.c - reading a file out of a guest's ext4, as a boot loader does
 *
 * Layouts are those of Linux's Documentation/filesystems/ext4.  What a file
 * system of today may have and this does not know is refused by its feature
 * bits.
 */
#include "vm/ext4.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"

enum {
	SUPER_AT = 1024,
	SUPER_SIZE = 1024,
	SUPER_MAGIC = 0xef53,
	ROOT_INODE = 2,
	INODE_CORE = 128,
	EXTENT_MAGIC = 0xf30a,
	MAX_DEPTH = 5,
	MAX_LINKS = 16,
	MAX_PATH = 4096,
	MAX_DIR = 64 << 20, /* bytes that are looked through */
	FAST_LINK = 60,

	INCOMPAT_RECOVER = 0x4,
	/* Types in entries, extents, 64 bits, flex groups, seeds of sums,
	 * large folders: they change nothing for us, or are handled. */
	INCOMPAT_KNOWN = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000,
	INCOMPAT_64BIT = 0x80,

	INODE_EXTENTS = 0x80000,
	MODE_MASK = 0170000,
	MODE_DIR = 0040000,
	MODE_FILE = 0100000,
	MODE_LINK = 0120000,
};

struct fs {
	const struct ext4_disk *disk;
	uint64_t start, size; /* of the file system on the disk */
	uint32_t block_size, inodes, inodes_per_group;
	uint32_t first_block, desc_size, inode_size;
	uint64_t blocks;
	uint32_t incompat;
	struct husk_error *err;
};

struct inode {
	uint16_t mode;
	uint32_t flags;
	uint64_t size;
	uint8_t block[FAST_LINK]; /* the extents' root, or a short link */
};

static uint16_t get16(const void *p)
{
	const uint8_t *b = p;

	return (uint16_t)(b[0] | b[1] << 8);
}

static uint32_t get32(const void *p)
{
	return get16(p) | (uint32_t)get16((const uint8_t *)p + 2) << 16;
}

static uint64_t get64(const void *p)
{
	return get32(p) | (uint64_t)get32((const uint8_t *)p + 4) << 32;
}

static int damaged(struct fs *fs, const char *what)
{
	return error_set(fs->err, -EINVAL, "the file system: %s", what);
}

static int read_at(struct fs *fs, uint64_t offset, void *buf, size_t len)
{
	int ret;

	if (offset > fs->size || len > fs->size - offset)
		return damaged(fs, "something lies beyond its end");
	ret = fs->disk->read(fs->disk->opaque, fs->start + offset, buf, len);
	return ret ? error_errno(fs->err, ret, "reading the disk") : 0;
}

/* -- the super block ------------------------------------------------------ */

static int check_super(struct fs *fs)
{
	if (fs->incompat & ~(uint32_t)INCOMPAT_KNOWN)
		return error_set(fs->err, -EINVAL,
				 "the file system has features (%x) that this "
				 "reader does not know",
				 fs->incompat & ~(uint32_t)INCOMPAT_KNOWN);
	if (!fs->inodes_per_group || fs->inode_size < INODE_CORE ||
	    fs->inode_size > fs->block_size || fs->desc_size < 32 ||
	    fs->desc_size > 1024 || fs->first_block > 1 ||
	    fs->blocks > fs->size / fs->block_size)
		return damaged(fs, "its super block contradicts itself");
	if (fs->incompat & INCOMPAT_RECOVER)
		return error_set(fs->err, -EUCLEAN,
				 "the file system was not unmounted");
	return 0;
}

/* -ENOENT without a word: no ext4 is there. */
static int open_fs(struct fs *fs, const struct ext4_disk *disk, uint64_t start,
		   uint64_t size, struct husk_error *err)
{
	uint8_t s[SUPER_SIZE] = { 0 };
	uint32_t shift;

	*fs = (struct fs){
		.disk = disk, .start = start, .size = size, .err = err
	};
	if (size < SUPER_AT + SUPER_SIZE)
		return -ENOENT;
	if (read_at(fs, SUPER_AT, s, sizeof(s)))
		return -EIO;
	shift = get32(s + 24);
	if (get16(s + 56) != SUPER_MAGIC || shift > 6)
		return -ENOENT;
	fs->block_size = 1024u << shift;
	fs->inodes = get32(s + 0);
	fs->blocks = get32(s + 4);
	fs->first_block = get32(s + 20);
	fs->inodes_per_group = get32(s + 40);
	fs->inode_size = get32(s + 76) ? get16(s + 88) : INODE_CORE;
	fs->incompat = get32(s + 96);
	fs->desc_size = 32;
	if (fs->incompat & INCOMPAT_64BIT) {
		fs->blocks |= (uint64_t)get32(s + 336) << 32;
		fs->desc_size = get16(s + 254);
	}
	return check_super(fs);
}

/* -- inodes and their blocks ---------------------------------------------- */

static int read_inode(struct fs *fs, uint32_t number, struct inode *inode)
{
	uint8_t desc[64] = { 0 }, i[INODE_CORE] = { 0 };
	uint32_t group, index;
	uint64_t table;

	if (!number || number > fs->inodes)
		return damaged(fs, "an inode has no place");
	group = (number - 1) / fs->inodes_per_group;
	index = (number - 1) % fs->inodes_per_group;
	if (read_at(fs,
		    (uint64_t)(fs->first_block + 1) * fs->block_size +
			    (uint64_t)group * fs->desc_size,
		    desc, MIN(fs->desc_size, sizeof(desc))))
		return -EINVAL;
	table = get32(desc + 8);
	if (fs->desc_size >= 64)
		table |= (uint64_t)get32(desc + 40) << 32;
	if (table >= fs->blocks)
		return damaged(fs, "a table of inodes lies beyond its end");
	if (read_at(fs,
		    table * fs->block_size + (uint64_t)index * fs->inode_size,
		    i, sizeof(i)))
		return -EINVAL;
	inode->mode = get16(i + 0);
	inode->flags = get32(i + 32);
	inode->size = get32(i + 4) | (uint64_t)get32(i + 108) << 32;
	memcpy(inode->block, i + 40, sizeof(inode->block));
	return 0;
}

/* Where a block of a file is: count blocks from at on; at 0: a hole. */
struct run {
	uint64_t at;
	uint32_t count;
};

/*
 * One node of the tree: the entry that has block, which is the last that
 * begins at or before it.  1: a leaf's, in run; 0: go on at *next.
 */
static int search_node(struct fs *fs, const uint8_t *node, size_t room,
		       uint32_t block, unsigned *depth, uint64_t *next,
		       struct run *run)
{
	unsigned entries = get16(node + 2), d = get16(node + 6);
	const uint8_t *found = NULL, *after = NULL;
	uint32_t begin, len;

	if (get16(node) != EXTENT_MAGIC || d > MAX_DEPTH || d >= *depth ||
	    12 + 12 * (size_t)entries > room)
		return damaged(fs, "a tree of extents is damaged");
	*depth = d;
	for (unsigned i = 0; i < entries && !after; i++) {
		const uint8_t *e = node + 12 + 12 * i;

		if (get32(e) <= block)
			found = e;
		else
			after = e;
	}
	/* A hole ends where the next entry of any level begins. */
	if (after)
		run->count = MIN(run->count, get32(after) - block);
	if (!found)
		return 1;
	if (d) {
		*next = get32(found + 4) | (uint64_t)get16(found + 8) << 32;
		return 0;
	}
	begin = get32(found);
	len = get16(found + 4);
	if (block - begin < (len > 32768 ? len - 32768 : len)) {
		run->count =
			(len > 32768 ? len - 32768 : len) - (block - begin);
		/* Not written yet: zeros. */
		if (len <= 32768)
			run->at = (get32(found + 8) | (uint64_t)get16(found + 6)
							      << 32) +
				  (block - begin);
	}
	return 1;
}

static int find_block(struct fs *fs, const struct inode *inode, uint8_t *node,
		      uint32_t block, struct run *run)
{
	unsigned depth = MAX_DEPTH + 1;
	uint64_t next = 0;
	int ret;

	*run = (struct run){ 0, UINT32_MAX };
	if (!(inode->flags & INODE_EXTENTS))
		return damaged(fs, "a file has no extents");
	ret = search_node(fs, inode->block, sizeof(inode->block), block, &depth,
			  &next, run);
	while (!ret) {
		if (next >= fs->blocks)
			return damaged(fs, "a tree lies beyond its end");
		ret = read_at(fs, next * fs->block_size, node, fs->block_size);
		if (!ret)
			ret = search_node(fs, node, fs->block_size, block,
					  &depth, &next, run);
		else
			return ret;
	}
	return MIN(ret, 0);
}

/* -- contents ------------------------------------------------------------- */

struct sink {
	/* 0: go on, else the end, which read_content() returns. */
	int (*put)(void *opaque, const void *data, size_t len);
	void *opaque;
};

static int read_run(struct fs *fs, const struct run *run, uint8_t *buf,
		    uint64_t *left, uint32_t *done, const struct sink *sink)
{
	int ret = 0;

	for (*done = 0; *done < run->count && *left && !ret; ++*done) {
		size_t n = (size_t)MIN(*left, fs->block_size);

		if (run->at && run->at + *done >= fs->blocks)
			return damaged(fs, "a file lies beyond its end");
		if (run->at)
			ret = read_at(fs, (run->at + *done) * fs->block_size,
				      buf, n);
		else
			memset(buf, 0, n);
		if (!ret)
			ret = sink->put(sink->opaque, buf, n);
		*left -= n;
	}
	return ret;
}

static int read_content(struct fs *fs, const struct inode *inode,
			const struct sink *sink)
{
	uint8_t *buf = malloc(2 * (size_t)fs->block_size);
	uint64_t left = inode->size;
	uint32_t block = 0, done;
	struct run run;
	int ret = 0;

	if (!buf)
		return error_set(fs->err, -ENOMEM, "out of memory");
	while (left && !ret) {
		ret = find_block(fs, inode, buf + fs->block_size, block, &run);
		if (ret)
			break;
		ret = read_run(fs, &run, buf, &left, &done, sink);
		if (done > UINT32_MAX - block)
			break;
		block += done;
	}
	free(buf);
	return ret;
}

/* -- names ---------------------------------------------------------------- */

struct lookup {
	const char *name;
	size_t len;
	uint32_t inode; /* 0: not found yet */
};

/* A block of a folder. */
static int scan_entries(void *opaque, const void *data, size_t len)
{
	struct lookup *l = opaque;
	const uint8_t *p = data;

	for (size_t at = 0; at + 8 <= len;) {
		const uint8_t *e = p + at;
		size_t size = get16(e + 4);

		/* Of a block of 64 KiB. */
		if (!size || size == 65535)
			size = 65536;
		if (size < 8 || size > len - at || 8u + e[6] > size)
			return -EINVAL;
		if (get32(e) && e[6] == l->len &&
		    !memcmp(e + 8, l->name, l->len)) {
			l->inode = get32(e);
			return 1;
		}
		at += size;
	}
	return 0;
}

static int find_name(struct fs *fs, const struct inode *dir, const char *name,
		     size_t len, uint32_t *number)
{
	struct lookup l = { name, len, 0 };
	struct sink sink = { scan_entries, &l };
	int ret;

	if ((dir->mode & MODE_MASK) != MODE_DIR)
		return error_set(fs->err, -ENOENT, "there is no such file");
	if (dir->size > MAX_DIR)
		return damaged(fs, "a folder is too large");
	ret = read_content(fs, dir, &sink);
	if (ret < 0)
		return ret == -EINVAL ? damaged(fs, "a folder is damaged")
				      : ret;
	if (!l.inode)
		return error_set(fs->err, -ENOENT, "there is no such file");
	*number = l.inode;
	return 0;
}

struct text {
	char *to;
	size_t len;
};

static int take_text(void *opaque, const void *data, size_t len)
{
	struct text *t = opaque;

	memcpy(t->to + t->len, data, len);
	t->len += len;
	return 0;
}

static int read_link(struct fs *fs, const struct inode *inode, char *to)
{
	struct text t = { to, 0 };
	struct sink sink = { take_text, &t };
	int ret = 0;

	if (inode->size >= MAX_PATH)
		return damaged(fs, "a link is too long");
	if (inode->size < FAST_LINK && !(inode->flags & INODE_EXTENTS))
		take_text(&t, inode->block, (size_t)inode->size);
	else
		ret = read_content(fs, inode, &sink);
	to[t.len] = 0;
	return ret;
}

/*
 * path, from the folder of the number dir on.  Links are put in front of what
 * is left of the path.
 */
static int walk(struct fs *fs, const char *path, struct inode *inode)
{
	char rest[2 * MAX_PATH], link[MAX_PATH + 1] = "";
	uint32_t number = ROOT_INODE, next = 0;
	unsigned links = 0;
	int ret;

	if (strlen(path) >= MAX_PATH)
		return error_set(fs->err, -ENAMETOOLONG,
				 "the path is too long");
	memcpy(rest, path, strlen(path) + 1);
	for (;;) {
		char *p = rest + strspn(rest, "/");
		size_t n = strcspn(p, "/"), left = strlen(p + n);

		ret = read_inode(fs, number, inode);
		if (ret || !*p)
			return ret;
		ret = find_name(fs, inode, p, n, &next);
		if (!ret)
			ret = read_inode(fs, next, inode);
		if (ret)
			return ret;
		if ((inode->mode & MODE_MASK) != MODE_LINK) {
			number = next;
			memmove(rest, p + n, left + 1);
			continue;
		}
		ret = read_link(fs, inode, link);
		if (ret)
			return ret;
		if (++links > MAX_LINKS || strlen(link) + left >= MAX_PATH)
			return error_set(fs->err, -ELOOP, "too many links");
		if (*link == '/')
			number = ROOT_INODE;
		memmove(rest + strlen(link), p + n, left + 1);
		memcpy(rest, link, strlen(link));
	}
}

/* -- partitions ----------------------------------------------------------- */

static const uint8_t linux_types[][16] = {
	/* 0FC63DAF-8483-4772-8E79-3D69D8477DE4: a file system of Linux */
	{ 0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d,
	  0x69, 0xd8, 0x47, 0x7d, 0xe4 },
	/* 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709: its root, of x86-64 */
	{ 0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb,
	  0xca, 0xf9, 0x84, 0xb7, 0x09 },
	/* BC13C2FF-59E6-4262-A352-B275FD6F7172: /boot */
	{ 0xff, 0xc2, 0x13, 0xbc, 0xe6, 0x59, 0x62, 0x42, 0xa3, 0x52, 0xb2,
	  0x75, 0xfd, 0x6f, 0x71, 0x72 },
};

static bool is_linux(const uint8_t *type)
{
	for (unsigned i = 0; i < ARRAY_SIZE(linux_types); i++)
		if (!memcmp(type, linux_types[i], 16))
			return true;
	return false;
}

/* 0: the next one of Linux after *number; -ENOENT: there is none. */
static int next_partition(const struct ext4_disk *disk, unsigned *number,
			  uint64_t *start, uint64_t *size)
{
	uint8_t head[92], e[128];
	uint32_t count, room;
	uint64_t table;

	if (disk->size < 4096 || disk->read(disk->opaque, 512, head, 92) ||
	    memcmp(head, "EFI PART", 8) != 0)
		return -ENOENT;
	table = get64(head + 72);
	count = MIN(get32(head + 80), 128u);
	room = get32(head + 84);
	if (room < 128 || room > 4096 || table > disk->size / 512)
		return -ENOENT;
	while (*number < count) {
		uint64_t at = table * 512 + (uint64_t)*number * room, last;

		if (at > disk->size - sizeof(e) ||
		    disk->read(disk->opaque, at, e, sizeof(e)))
			return -ENOENT;
		++*number;
		*start = get64(e + 32);
		last = get64(e + 40);
		if (!is_linux(e) || *start > last || last >= disk->size / 512)
			continue;
		*size = (last - *start + 1) * 512;
		*start *= 512;
		return 0;
	}
	return -ENOENT;
}

/* -- all of it ------------------------------------------------------------ */

static int read_from(struct fs *fs, const char *path, uint64_t max_size,
		     const struct sink *sink)
{
	struct inode inode = { 0 };
	int ret = walk(fs, path, &inode);

	if (ret)
		return ret;
	if ((inode.mode & MODE_MASK) != MODE_FILE)
		return error_set(fs->err, -EINVAL, "it is not a file");
	if (inode.size > max_size)
		return error_set(fs->err, -EFBIG, "it is too large");
	return read_content(fs, &inode, sink);
}

int ext4_read_file(const struct ext4_disk *disk, const char *path,
		   uint64_t max_size,
		   int (*put)(void *opaque, const void *data, size_t len),
		   void *opaque, unsigned *partition, struct husk_error *err)
{
	struct sink sink = { put, opaque };
	uint64_t start = 0, size = disk->size;
	unsigned number = 0;
	bool any = false;
	struct fs fs;
	int ret;

	ret = open_fs(&fs, disk, 0, disk->size, err);
	if (!ret)
		ret = read_from(&fs, path, max_size, &sink);
	any = ret != -ENOENT || fs.inodes;
	while (ret == -ENOENT &&
	       !next_partition(disk, &number, &start, &size)) {
		ret = open_fs(&fs, disk, start, size, err);
		any |= ret != -ENOENT;
		if (!ret)
			ret = read_from(&fs, path, max_size, &sink);
	}
	if (partition)
		*partition = number;
	if (ret == -ENOENT && !any)
		return error_set(err, -EINVAL, "there is no ext4 on the disk");
	return ret;
}
