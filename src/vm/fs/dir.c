/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dir.c - reading directories, with or without what is behind the names
 */
#include "vm/fs/inside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CHUNK = 32 << 10 }; /* of the host's names at once */

struct host_dirent {
	uint64_t ino;
	int64_t off;
	uint16_t len;
	uint8_t type;
	char name[];
};

struct listing {
	struct req *r;
	struct inode *dir;
	bool plus;
	uint8_t *buf;
	size_t used, size;
	uint64_t pos; /* after what is in buf */
};

static bool is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* What readdirplus tells of a name; nodeid 0: nothing. */
static void fill_entry(struct listing *l, const struct host_dirent *d,
		       struct fuse_entry_out *out)
{
	struct fs *fs = l->r->fs;
	int fd;

	memset(out, 0, sizeof(*out));
	if (!is_dots(d->name)) {
		fd = open_beneath(fs, l->dir->fd, d->name, O_PATH, 0);
		if (fd >= 0 && !entry_fill(fs, l->dir, d->name, fd, out))
			return;
		memset(out, 0, sizeof(*out));
	}
	out->attr.ino = d->ino;
	out->attr.mode = (uint32_t)d->type << 12;
}

/* false: full. */
static bool add_name(struct listing *l, const struct host_dirent *d)
{
	size_t len = strlen(d->name), head, size;
	struct fuse_dirent e = {
		.ino = d->ino,
		.off = (uint64_t)d->off,
		.namelen = (uint32_t)len,
		.type = d->type,
	};
	struct fuse_entry_out entry;
	uint8_t *p = l->buf + l->used;

	head = l->plus ? sizeof(entry) : 0;
	size = head + FUSE_REC_ALIGN(FUSE_NAME_OFFSET + len);
	if (size > l->size - l->used)
		return false;
	/* What is above the share is none of the guest's business. */
	if (l->dir->root && !strcmp(d->name, ".."))
		e.ino = l->dir->ino;
	memset(p, 0, size);
	if (l->plus) {
		fill_entry(l, d, &entry);
		e.type = entry.attr.mode >> 12 & 15;
		memcpy(p, &entry, sizeof(entry));
	}
	memcpy(p + head, &e, FUSE_NAME_OFFSET);
	memcpy(p + head + FUSE_NAME_OFFSET, d->name, len);
	l->used += size;
	l->pos = e.off;
	return true;
}

/* One chunk: 1 when there may be more, 0 at the end or when full. */
static int read_chunk(struct listing *l, struct handle *h, char *chunk)
{
	long n = syscall(SYS_getdents64, h->fd, chunk, CHUNK);

	if (n < 0)
		return l->used ? 0 : -errno;
	for (long at = 0; at < n;) {
		struct host_dirent *d = (void *)(chunk + at);

		if (!add_name(l, d)) {
			h->pos = UINT64_MAX; /* the host's is further on */
			return l->used ? 0 : -EINVAL;
		}
		at += d->len;
	}
	h->pos = l->pos;
	return n > 0;
}

static int read_names(struct listing *l, struct handle *h, uint64_t offset)
{
	char chunk[CHUNK] __attribute__((aligned(8)));
	int ret = 1;

	pthread_mutex_lock(&h->lock);
	if (h->pos != offset &&
	    lseek(h->fd, (off_t)offset, SEEK_SET) == (off_t)-1) {
		h->pos = UINT64_MAX;
		pthread_mutex_unlock(&h->lock);
		return -errno;
	}
	h->pos = l->pos = offset;
	/* Small answers do not need another chunk to be found full. */
	while (ret > 0 && (!l->used || l->size - l->used > 1024))
		ret = read_chunk(l, h, chunk);
	pthread_mutex_unlock(&h->lock);
	return MIN(ret, 0);
}

static int list(struct req *r, bool plus)
{
	const struct fuse_read_in *a = r->args;
	struct listing l = { .r = r, .plus = plus };
	struct handle *h;
	int ret;

	l.size = MIN(MIN(a->size, r->room), MAX_READDIR);
	ret = handle_get(r->fs, a->fh, true, &h);
	if (ret)
		return ret;
	ret = inode_get(r->fs, h->inode->id, &l.dir);
	if (ret) {
		handle_put(r->fs, h);
		return ret;
	}
	l.buf = malloc(l.size + 1);
	ret = l.buf ? read_names(&l, h, a->offset) : -ENOMEM;
	if (!ret)
		ret = answer(r, l.buf, l.used);
	free(l.buf);
	inode_put(r->fs, l.dir);
	handle_put(r->fs, h);
	return ret;
}

int op_readdir(struct req *r)
{
	return list(r, false);
}

int op_readdirplus(struct req *r)
{
	return list(r, true);
}
