/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse_client.c - asks a share as a guest's kernel would
 */
#include "mock/fuse_client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { QUICK_ROOM = 60000 };

/* What a vCPU may do by itself, and nothing that would be cut short then. */
static bool can_be_quick(const struct client *c, uint32_t opcode,
			 const void *in)
{
	const struct fuse_read_in *a = in;

	return !c->room && ((opcode != FUSE_READ && opcode != FUSE_READDIR &&
			     opcode != FUSE_READDIRPLUS) ||
			    a->size < QUICK_ROOM);
}

/* Every other request is asked for as a vCPU does. */
int ask(struct client *c, uint32_t opcode, uint64_t node, const void *in,
	size_t len)
{
	struct fuse_in_header h = {
		.len = (uint32_t)(sizeof(h) + len),
		.opcode = opcode,
		.unique = ++c->unique,
		.nodeid = node,
		.uid = c->uid,
		.gid = c->gid,
	};
	struct fuse_out_header o = { 0 };
	struct iovec give[] = { { &h, sizeof(h) }, { (void *)in, len } };
	struct iovec take[] = { { &o, sizeof(o) },
				{ &c->out, sizeof(c->out) } };
	struct fs_message m = {
		.in = give,
		.nin = len ? 2 : 1,
		.out = take,
		.nout = 2,
		.last = c->last,
	};
	ssize_t n = FS_WAIT;

	if (c->unique % 2 && can_be_quick(c, opcode, in)) {
		m.quick = true;
		take[1].iov_len = QUICK_ROOM;
		n = fs_serve(c->fs, &m);
		m.quick = false;
	}
	take[1].iov_len = c->room ? c->room : sizeof(c->out);
	if (n == FS_WAIT)
		n = fs_serve(c->fs, &m);
	c->len = 0;
	if (n <= 0)
		return (int)n;
	if ((size_t)n != o.len || o.unique != h.unique || o.len < sizeof(o) ||
	    (o.error && o.len != sizeof(o)))
		abort();
	c->len = o.len - sizeof(o);
	return o.error;
}

int ask_names(struct client *c, uint32_t opcode, uint64_t node, const void *in,
	      size_t len, const char *a, const char *b)
{
	size_t la = a ? strlen(a) + 1 : 0, lb = b ? strlen(b) + 1 : 0;
	char *all = malloc(len + la + lb + 1);
	int ret;

	if (!all)
		abort();
	if (len)
		memcpy(all, in, len);
	if (a)
		memcpy(all + len, a, la);
	if (b)
		memcpy(all + len + la, b, lb);
	ret = ask(c, opcode, node, all, len + la + lb);
	free(all);
	return ret;
}

int ask_init(struct client *c)
{
	struct fuse_init_in in = {
		.major = 7,
		.minor = 37,
		.max_readahead = 1 << 17,
		.flags = ~0u,
		.flags2 = ~0u,
	};

	return ask(c, FUSE_INIT, 0, &in, sizeof(in));
}

uint64_t ask_lookup(struct client *c, uint64_t dir, const char *name, int *err)
{
	int ret = ask_names(c, FUSE_LOOKUP, dir, NULL, 0, name, NULL);

	if (err)
		*err = ret;
	return ret ? 0 : c->out.entry.nodeid;
}

uint64_t ask_open(struct client *c, uint64_t node, uint32_t flags, int *err)
{
	struct fuse_open_in in = { .flags = flags };
	int ret = ask(c, flags & 0200000 ? FUSE_OPENDIR : FUSE_OPEN, node, &in,
		      sizeof(in));

	if (err)
		*err = ret;
	return ret ? 0 : c->out.open.fh;
}

uint64_t ask_create(struct client *c, uint64_t dir, const char *name,
		    uint32_t flags, uint32_t mode, uint64_t *node, int *err)
{
	struct fuse_create_in in = { .flags = flags, .mode = mode };
	int ret = ask_names(c, FUSE_CREATE, dir, &in, sizeof(in), name, NULL);

	if (err)
		*err = ret;
	if (ret)
		return 0;
	*node = c->out.created.entry.nodeid;
	return c->out.created.open.fh;
}

int ask_write(struct client *c, uint64_t fh, const void *data, uint32_t len,
	      uint64_t offset, uint32_t flags)
{
	struct fuse_write_in in = {
		.fh = fh,
		.offset = offset,
		.size = len,
		.write_flags = flags,
	};
	char *all = malloc(sizeof(in) + len);
	int ret;

	if (!all)
		abort();
	memcpy(all, &in, sizeof(in));
	memcpy(all + sizeof(in), data, len);
	ret = ask(c, FUSE_WRITE, 0, all, sizeof(in) + len);
	free(all);
	return ret ? ret : (int)c->out.write.size;
}

int ask_read(struct client *c, uint64_t fh, uint32_t len, uint64_t offset)
{
	struct fuse_read_in in = { .fh = fh, .offset = offset, .size = len };
	int ret = ask(c, FUSE_READ, 0, &in, sizeof(in));

	return ret ? ret : (int)c->len;
}

int ask_release(struct client *c, uint64_t fh, bool dir)
{
	struct fuse_release_in in = { .fh = fh };

	return ask(c, dir ? FUSE_RELEASEDIR : FUSE_RELEASE, 0, &in, sizeof(in));
}

int ask_lock(struct client *c, uint32_t opcode, uint64_t fh, uint64_t owner,
	     uint32_t type, uint64_t start, uint64_t end, uint32_t flags)
{
	struct fuse_lk_in in = {
		.fh = fh,
		.owner = owner,
		.lk = { .start = start, .end = end, .type = type },
		.lk_flags = flags,
	};

	return ask(c, opcode, 0, &in, sizeof(in));
}
