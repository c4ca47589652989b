/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - a share in a saved machine
 *
 * Inodes are saved with the names that led to them and who they are, handles
 * with how they were opened, locks with their ranges.  The guest's session
 * goes on: what is found again has its old number, what is not is stale.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_RANGES = 256 };

/* -- inodes --------------------------------------------------------------- */

static void inode_fields(struct state *s, struct inode *i, uint64_t *parent,
			 char *name, uint8_t *len)
{
	uint32_t type = i->type;

	state_u64(s, "inode.id", &i->id);
	state_u64(s, "inode.lookups", &i->nlookup);
	state_u64(s, "inode.dev", &i->dev);
	state_u64(s, "inode.ino", &i->ino);
	state_u64(s, "inode.born", &i->born);
	state_u32(s, "inode.type", &type);
	state_bool(s, "inode.stale", &i->stale);
	state_u64(s, "inode.parent", parent);
	state_u8(s, "inode.length", len);
	state_bytes(s, "inode.name", name, *len);
	i->type = type;
}

static void save_inodes(struct fs *fs, struct state *s)
{
	uint32_t n = fs->inodes.used;

	state_u32(s, "inodes", &n);
	for (uint32_t k = 0; k < fs->inodes.n; k++) {
		struct inode *i = fs->inodes.at[k];
		uint64_t parent;
		uint8_t len;

		if (!i)
			continue;
		parent = i->parent ? i->parent->id : 0;
		len = i->name ? (uint8_t)strlen(i->name) : 0;
		inode_fields(s, i, &parent, i->name, &len);
	}
}

static bool good_name(const char *name, size_t len)
{
	return len && !memchr(name, '/', len) && strlen(name) == len &&
	       strcmp(name, ".") && strcmp(name, "..");
}

/* Names are put in when all are there. */
struct link {
	uint64_t id, parent;
	char name[NAME_LEN + 1];
};

/* dev: what the share's file system was called; it may have a new number. */
static int load_inode(struct fs *fs, struct state *s, struct link *link,
		      uint64_t *dev)
{
	struct inode from = { 0 }, *i;
	uint8_t len = 0;

	*link = (struct link){ 0 };
	inode_fields(s, &from, &link->parent, link->name, &len);
	link->id = from.id;
	if (from.id == FUSE_ROOT_ID) {
		*dev = from.dev;
		return 0;
	}
	if (!from.id)
		return -EINVAL;
	i = inode_new_locked(fs, from.id, -1);
	if (!i)
		return -EINVAL;
	i->nlookup = from.nlookup;
	i->dev = from.dev == *dev ? fs->root->dev : from.dev;
	i->ino = from.ino;
	i->born = from.born;
	i->type = from.type & S_IFMT;
	i->stale = from.stale;
	if (!i->stale)
		inode_hash_locked(fs, i);
	if (!good_name(link->name, len))
		link->parent = 0;
	return 0;
}

static void load_inodes(struct fs *fs, struct state *s)
{
	struct link *links;
	uint64_t dev = 0;
	uint32_t n = 0;

	state_u32(s, "inodes", &n);
	/* Each takes 100 bytes of the state at the least. */
	if (n > MAX_INODES) {
		state_reject(s, "too many inodes");
		return;
	}
	links = calloc(n + 1, sizeof(*links));
	if (!links) {
		state_reject(s, "no memory");
		return;
	}
	pthread_mutex_lock(&fs->lock);
	for (uint32_t k = 0; k < n; k++) {
		if (!load_inode(fs, s, &links[k], &dev))
			continue;
		state_reject(s, "an inode's number");
		n = k;
	}
	for (uint32_t k = 0; k < n; k++) {
		struct inode *i = slots_get(&fs->inodes, links[k].id);
		struct inode *dir = slots_get(&fs->inodes, links[k].parent);

		if (i && dir)
			inode_name_locked(fs, i, dir, links[k].name);
	}
	pthread_mutex_unlock(&fs->lock);
	free(links);
}

/* -- handles -------------------------------------------------------------- */

static void save_handles(struct fs *fs, struct state *s)
{
	uint32_t n = fs->handles.used;

	state_u32(s, "handles", &n);
	for (uint32_t k = 0; k < fs->handles.n; k++) {
		struct handle *h = fs->handles.at[k];
		uint32_t flags;

		if (!h)
			continue;
		flags = h->flags;
		state_u64(s, "handle.id", &h->id);
		state_u64(s, "handle.inode", &h->inode->id);
		state_u32(s, "handle.flags", &flags);
		state_bool(s, "handle.dir", &h->dir);
	}
}

/* The guest has it until it closes it. */
static void add_stale(struct fs *fs, uint64_t id, uint64_t inode,
		      uint32_t flags, bool dir)
{
	struct inode *i;

	pthread_mutex_lock(&fs->lock);
	i = slots_get(&fs->inodes, inode);
	pthread_mutex_unlock(&fs->lock);
	/* Nobody else is there: nothing is served before the state is read. */
	if (i)
		handle_add(fs, i, -1, flags, dir, &id);
}

static void reopen(struct fs *fs, uint64_t id, uint64_t inode, uint32_t flags,
		   bool dir)
{
	int fd, how = O_RDONLY | O_DIRECTORY;
	struct inode *i;

	if (inode_get(fs, inode, &i)) {
		add_stale(fs, id, inode, flags, dir);
		return;
	}
	if (!dir)
		how = (int)(flags & (O_ACCMODE | O_SYNC | O_DSYNC));
	if (!dir && fs->cfg.readonly)
		how = O_RDONLY;
	fd = !dir && i->type == S_IFDIR ? -EISDIR : inode_open(fs, i, how);
	handle_add(fs, i, fd >= 0 ? fd : -1, flags, dir, &id);
	inode_put(fs, i);
}

/* How many; those that are not found again are stale. */
static uint32_t load_handles(struct fs *fs, struct state *s)
{
	uint32_t n = 0;

	state_u32(s, "handles", &n);
	if (n > MAX_HANDLES) {
		state_reject(s, "too many handles");
		return 0;
	}
	for (uint32_t k = 0; k < n; k++) {
		uint64_t id = 0, inode = 0;
		uint32_t flags = 0;
		bool dir = false;

		state_u64(s, "handle.id", &id);
		state_u64(s, "handle.inode", &inode);
		state_u32(s, "handle.flags", &flags);
		state_bool(s, "handle.dir", &dir);
		if (id)
			reopen(fs, id, inode, flags, dir);
	}
	return n;
}

/* -- locks ---------------------------------------------------------------- */

struct range {
	uint64_t start, len; /* len 0: to the end */
	bool write;
};

/* "lock: 1: OFDLCK ADVISORY WRITE 123 fe:00:7 START END" */
static bool parse_range(char *line, const char *kind, struct range *g)
{
	char *word[10], *save, *end;
	unsigned n = 0;

	for (char *p = strtok_r(line, " \t\n", &save); p && n < 10;
	     p = strtok_r(NULL, " \t\n", &save))
		word[n++] = p;
	if (n != 9 || strcmp(word[0], "lock:") || strcmp(word[2], kind))
		return false;
	g->start = strtoull(word[7], NULL, 10);
	g->len = strtoull(word[8], &end, 10) - g->start + 1;
	if (end == word[8]) /* "EOF" */
		g->len = 0;
	g->write = !strcmp(word[4], "WRITE");
	return true;
}

/* The kernel knows best what fd holds. */
static uint32_t ranges_of(int fd, const char *kind, struct range *ranges)
{
	char path[48], line[256];
	uint32_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (n < MAX_RANGES && fgets(line, sizeof(line), f))
		n += parse_range(line, kind, &ranges[n]);
	fclose(f);
	return n;
}

static void range_fields(struct state *s, struct range *g)
{
	state_u64(s, "range.start", &g->start);
	state_u64(s, "range.length", &g->len);
	state_bool(s, "range.write", &g->write);
}

static void save_locks(struct fs *fs, struct state *s)
{
	struct range ranges[MAX_RANGES];
	uint32_t n = fs->nowners;

	state_u32(s, "owners", &n);
	for (struct owner *o = fs->owners; o; o = o->next) {
		state_u64(s, "owner.inode", &o->inode->id);
		state_u64(s, "owner.id", &o->id);
		n = ranges_of(o->fd, "OFDLCK", ranges);
		state_u32(s, "owner.ranges", &n);
		for (uint32_t k = 0; k < n; k++)
			range_fields(s, &ranges[k]);
	}
	for (uint32_t k = 0; k < fs->handles.n; k++) {
		struct handle *h = fs->handles.at[k];

		if (!h)
			continue;
		n = ranges_of(h->fd, "FLOCK", ranges);
		n = !n ? 0 : ranges[0].write ? LOCK_EX : LOCK_SH;
		state_u64(s, "flock.handle", &h->id);
		state_u32(s, "flock", &n);
	}
}

/* What somebody else has taken meanwhile cannot be had: say so. */
static void lock_again(struct fs *fs, int fd, const struct range *g)
{
	struct flock fl = {
		.l_type = g->write ? F_WRLCK : F_RDLCK,
		.l_whence = SEEK_SET,
		.l_start = (off_t)g->start,
		.l_len = (off_t)g->len,
	};

	if (fcntl(fd, F_OFD_SETLK, &fl))
		fs_log(fs, "a lock could not be taken again: %s",
		       strerror(errno));
}

static void load_owner(struct fs *fs, struct state *s)
{
	uint64_t inode = 0, id = 0;
	uint32_t n = 0;
	struct owner *o = NULL;
	struct inode *i = NULL;
	struct range g = { 0 };
	int err;

	state_u64(s, "owner.inode", &inode);
	state_u64(s, "owner.id", &id);
	state_u32(s, "owner.ranges", &n);
	if (n > MAX_RANGES) {
		state_reject(s, "too many locks");
		return;
	}
	if (!inode_get(fs, inode, &i))
		o = owner_find(fs, i, id, false, &err);
	else
		i = NULL;
	for (uint32_t k = 0; k < n; k++) {
		range_fields(s, &g);
		if (o)
			lock_again(fs, o->fd, &g);
	}
	if (i)
		inode_put(fs, i);
}

static void load_locks(struct fs *fs, struct state *s, uint32_t nhandles)
{
	uint32_t n = 0;

	state_u32(s, "owners", &n);
	if (n > MAX_OWNERS) {
		state_reject(s, "too many owners of locks");
		return;
	}
	for (uint32_t k = 0; k < n; k++)
		load_owner(fs, s);
	for (uint32_t k = 0; k < nhandles; k++) {
		uint64_t id = 0;
		uint32_t op = 0;
		struct handle *h;

		state_u64(s, "flock.handle", &id);
		state_u32(s, "flock", &op);
		if ((op != LOCK_EX && op != LOCK_SH) ||
		    handle_get(fs, id, false, &h))
			continue;
		if (flock(h->fd, (int)op | LOCK_NB))
			fs_log(fs, "a lock could not be taken again: %s",
			       strerror(errno));
		handle_put(fs, h);
	}
}

/* -- all ------------------------------------------------------------------ */

void fs_state(struct fs *fs, struct state *s)
{
	if (state_loading(s))
		fs_reset(fs);
	state_bool(s, "ready", &fs->ready);
	state_u32(s, "minor", &fs->minor);
	state_u64(s, "flags", &fs->flags);
	if (state_loading(s)) {
		load_inodes(fs, s);
		load_locks(fs, s, load_handles(fs, s));
	} else {
		save_inodes(fs, s);
		save_handles(fs, s);
		save_locks(fs, s);
	}
}
