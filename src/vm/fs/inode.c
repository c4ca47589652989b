/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inode.c - the files that the guest knows, and their file descriptors
 *
 * A guest may know more files than we may open.  So the descriptor of an
 * inode that nobody uses is given up when there are too many, and found again
 * by the names that led to it; who then does not have the same device, inode
 * number and time of birth is somebody else, and the inode is stale.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_DEPTH = 2048, RECLAIM = 64 };
#define NOT_LISTED (UINT32_MAX - 1)

/* -- numbers -------------------------------------------------------------- */

int slots_init(struct slots *s, uint32_t max)
{
	memset(s, 0, sizeof(*s));
	s->max = max;
	s->free = UINT32_MAX;
	return 0;
}

void slots_finish(struct slots *s)
{
	free(s->at);
	free(s->generation);
	free(s->next_free);
	slots_init(s, s->max);
}

/* At least n of them. */
static int slots_grow(struct slots *s, uint32_t n)
{
	uint32_t to = s->n ? s->n : 64;
	void *p;

	while (to < n)
		to *= 2;
	if (to > s->max)
		to = s->max;
	if (n > to)
		return -ENFILE;
	p = realloc(s->at, to * sizeof(*s->at));
	if (!p)
		return -ENOMEM;
	s->at = p;
	p = realloc(s->generation, to * sizeof(*s->generation));
	if (!p)
		return -ENOMEM;
	s->generation = p;
	p = realloc(s->next_free, to * sizeof(*s->next_free));
	if (!p)
		return -ENOMEM;
	s->next_free = p;
	for (uint32_t i = to; i-- > s->n;) {
		s->at[i] = NULL; /* free, and in the list */
		s->generation[i] = 0;
		s->next_free[i] = s->free;
		s->free = i;
	}
	s->n = to;
	return 0;
}

uint64_t slots_add(struct slots *s, void *p)
{
	uint32_t i;

	do {
		if (s->free == UINT32_MAX && slots_grow(s, s->n + 1))
			return 0;
		i = s->free;
		s->free = s->next_free[i];
		s->next_free[i] = NOT_LISTED;
	} while (s->at[i]); /* slots_put() left it there */
	s->at[i] = p;
	s->used++;
	return (uint64_t)s->generation[i] << 32 | (i + 1);
}

int slots_put(struct slots *s, uint64_t id, void *p)
{
	uint32_t i = (uint32_t)id - 1;
	int ret;

	if (!(uint32_t)id || i >= s->max)
		return -EINVAL;
	if (i >= s->n) {
		ret = slots_grow(s, i + 1);
		if (ret)
			return ret;
	}
	if (s->at[i])
		return -EINVAL;
	s->at[i] = p;
	s->generation[i] = (uint32_t)(id >> 32);
	s->used++;
	return 0;
}

void *slots_get(const struct slots *s, uint64_t id)
{
	uint32_t i = (uint32_t)id - 1;

	return (uint32_t)id && i < s->n && s->generation[i] == id >> 32
		       ? s->at[i]
		       : NULL;
}

void slots_del(struct slots *s, uint64_t id)
{
	uint32_t i = (uint32_t)id - 1;

	if (!slots_get(s, id))
		return;
	s->at[i] = NULL;
	s->generation[i]++;
	if (s->next_free[i] == NOT_LISTED) {
		s->next_free[i] = s->free;
		s->free = i;
	}
	s->used--;
}

/* -- opening -------------------------------------------------------------- */

int open_beneath(struct fs *fs, int dir, const char *name, int flags,
		 mode_t mode)
{
	struct open_how how = {
		.flags = (uint64_t)(unsigned)(flags | O_NOFOLLOW | O_CLOEXEC),
		.mode = mode,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS |
			   RESOLVE_NO_SYMLINKS,
	};
	int fd = (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));

	if (fd < 0 && errno == ELOOP && flags & O_PATH) {
		/* A link in the last place is what we want to hold. */
		how.resolve &= ~(uint64_t)RESOLVE_NO_SYMLINKS;
		fd = (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));
	}
	/*
	 * An old kernel, or a filter: a single name that is not "..", and
	 * O_NOFOLLOW, do not lead anywhere else either.
	 */
	if (fd < 0 && (errno == ENOSYS || errno == EPERM) &&
	    !strchr(name, '/') && strcmp(name, ".."))
		fd = openat(dir, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd < 0 && fds_short(fs, errno))
		fd = openat(dir, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
	return fd < 0 ? -errno : fd;
}

struct fd_path fd_path(int fd)
{
	struct fd_path p;

	snprintf(p.text, sizeof(p.text), "%d", fd);
	return p;
}

int inode_open(struct fs *fs, struct inode *i, int flags)
{
	struct fd_path p = fd_path(i->fd);
	int fd;

	/* What a device or a pipe does when it is opened is not for guests. */
	if (i->type == S_IFLNK)
		return -ELOOP;
	if (i->type != S_IFREG && i->type != S_IFDIR)
		return -ENXIO;
	/* Now nothing can be there that O_NOFOLLOW would help against. */
	flags = (flags & ~(O_NOFOLLOW | O_CREAT)) | O_CLOEXEC | O_NONBLOCK;
	fd = openat(fs->proc, p.text, flags);
	if (fd < 0 && fds_short(fs, errno))
		fd = openat(fs->proc, p.text, flags);
	return fd < 0 ? -errno : fd;
}

int fd_stat(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT,
		     STATX_BASIC_STATS | STATX_BTIME, sx)
		       ? -errno
		       : 0;
}

static uint64_t dev_of(const struct statx *sx)
{
	return (uint64_t)sx->stx_dev_major << 32 | sx->stx_dev_minor;
}

static uint64_t born_of(const struct statx *sx)
{
	return sx->stx_mask & STATX_BTIME
		       ? (uint64_t)sx->stx_btime.tv_sec * 1000000000u +
				 sx->stx_btime.tv_nsec
		       : 0;
}

static bool is_same(const struct inode *i, const struct statx *sx)
{
	return i->dev == dev_of(sx) && i->ino == sx->stx_ino &&
	       i->born == born_of(sx) && i->type == (sx->stx_mode & S_IFMT);
}

/* -- lists, with fs->lock held -------------------------------------------- */

static unsigned key_bucket(uint64_t dev, uint64_t ino)
{
	return (unsigned)((ino * 0x9e3779b97f4a7c15u ^ dev * 31) >> 40) %
	       BUCKETS;
}

static unsigned name_bucket(const struct inode *dir, const char *name)
{
	uint64_t h = dir->id * 0x9e3779b97f4a7c15u;

	while (*name)
		h = (h ^ (uint8_t)*name++) * 0x100000001b3u;
	return (unsigned)(h >> 40) % BUCKETS;
}

static struct inode *find_key(struct fs *fs, const struct statx *sx)
{
	struct inode *i = fs->by_key[key_bucket(dev_of(sx), sx->stx_ino)];

	while (i && !is_same(i, sx))
		i = i->key_next;
	return i;
}

void inode_hash_locked(struct fs *fs, struct inode *i)
{
	struct inode **p = &fs->by_key[key_bucket(i->dev, i->ino)];

	i->key_next = *p;
	*p = i;
}

static void unhash(struct fs *fs, struct inode *i)
{
	struct inode **p = &fs->by_key[key_bucket(i->dev, i->ino)];

	while (*p && *p != i)
		p = &(*p)->key_next;
	if (*p)
		*p = i->key_next;
}

static struct inode *find_name(struct fs *fs, const struct inode *dir,
			       const char *name)
{
	struct inode *i = fs->by_name[name_bucket(dir, name)];

	while (i && (i->parent != dir || strcmp(i->name, name)))
		i = i->name_next;
	return i;
}

static void lru_del(struct fs *fs, struct inode *i)
{
	if (i->newer)
		i->newer->older = i->older;
	else if (fs->newest == i)
		fs->newest = i->older;
	if (i->older)
		i->older->newer = i->newer;
	else if (fs->oldest == i)
		fs->oldest = i->newer;
	i->newer = i->older = NULL;
}

static void lru_add(struct fs *fs, struct inode *i)
{
	i->older = fs->newest;
	i->newer = NULL;
	if (fs->newest)
		fs->newest->newer = i;
	fs->newest = i;
	if (!fs->oldest)
		fs->oldest = i;
}

static void set_fd(struct fs *fs, struct inode *i, int fd)
{
	i->fd = fd;
	fs->nfds++;
	lru_add(fs, i);
}

static void unname(struct fs *fs, struct inode *i)
{
	struct inode *dir = i->parent, **p;

	if (!dir)
		return;
	p = &fs->by_name[name_bucket(dir, i->name)];
	while (*p && *p != i)
		p = &(*p)->name_next;
	if (*p)
		*p = i->name_next;
	free(i->name);
	i->name = NULL;
	i->parent = NULL;
	inode_unref_locked(fs, dir);
}

static void drop_inode(struct fs *fs, struct inode *i)
{
	if (i->fd >= 0) {
		lru_del(fs, i);
		close(i->fd);
		fs->nfds--;
	}
	unhash(fs, i);
	slots_del(&fs->inodes, i->id);
	free(i->name);
	free(i);
}

/* Ends when nothing holds it; so may then its parents, one after the other. */
static void release(struct fs *fs, struct inode *i)
{
	while (i && !i->root && !i->nlookup && !i->use && !i->refs) {
		struct inode *dir = i->parent, **p;

		if (dir) {
			p = &fs->by_name[name_bucket(dir, i->name)];
			while (*p && *p != i)
				p = &(*p)->name_next;
			if (*p)
				*p = i->name_next;
			dir->refs--;
		}
		drop_inode(fs, i);
		i = dir;
	}
}

void inode_ref_locked(struct inode *i)
{
	i->refs++;
}

void inode_unref_locked(struct fs *fs, struct inode *i)
{
	i->refs--;
	release(fs, i);
}

static bool is_below(const struct inode *i, const struct inode *top)
{
	for (; i; i = i->parent)
		if (i == top)
			return true;
	return false;
}

void inode_name_locked(struct fs *fs, struct inode *i, struct inode *dir,
		       const char *name)
{
	struct inode *old = find_name(fs, dir, name), **p;
	char *copy;

	if (old == i || i->root)
		return;
	if (old)
		unname(fs, old);
	/* The host may turn things around: never make a circle. */
	copy = is_below(dir, i) ? NULL : strdup(name);
	if (!copy)
		return;
	dir->refs++;
	unname(fs, i);
	i->parent = dir;
	i->name = copy;
	p = &fs->by_name[name_bucket(dir, name)];
	i->name_next = *p;
	*p = i;
}

struct inode *inode_new_locked(struct fs *fs, uint64_t id, int fd)
{
	struct inode *i = calloc(1, sizeof(*i));

	if (!i)
		return NULL;
	i->fd = -1;
	if (id ? slots_put(&fs->inodes, id, i)
	       : !(id = slots_add(&fs->inodes, i))) {
		free(i);
		return NULL;
	}
	i->id = id;
	if (fd >= 0)
		set_fd(fs, i, fd);
	return i;
}

/* -- file descriptors ----------------------------------------------------- */

/* Would it be found again? */
static bool has_path(const struct inode *i)
{
	unsigned depth = 0;

	for (; !i->root; i = i->parent)
		if (!i->parent || ++depth > MAX_DEPTH)
			return false;
	return true;
}

bool fds_reclaim(struct fs *fs, unsigned want)
{
	int closing[RECLAIM];
	unsigned n = 0, seen = 0;

	want = MIN(want, RECLAIM);
	pthread_mutex_lock(&fs->lock);
	for (struct inode *i = fs->oldest, *next;
	     i && n < want && seen < 16 * RECLAIM; i = next, seen++) {
		next = i->newer;
		if (i->use || i->root || !has_path(i)) {
			/* Not again at every turn. */
			lru_del(fs, i);
			lru_add(fs, i);
			continue;
		}
		lru_del(fs, i);
		closing[n++] = i->fd;
		i->fd = -1;
		fs->nfds--;
	}
	pthread_mutex_unlock(&fs->lock);
	for (unsigned k = 0; k < n; k++)
		close(closing[k]);
	return n;
}

bool fds_short(struct fs *fs, int err)
{
	bool made;

	if (err != EMFILE && err != ENFILE)
		return false;
	made = fds_reclaim(fs, RECLAIM);
	errno = err;
	return made;
}

static void fds_limit(struct fs *fs)
{
	if (fs->nfds > fs->max_fds) /* a hint needs no lock */
		fds_reclaim(fs, 16);
}

/* The names from an ancestor that is open to i, nearest to i first. */
struct trail {
	struct inode *from; /* in use */
	char *names;
	unsigned n;
	size_t len;
};

static int find_trail(struct fs *fs, struct inode *i, struct trail *t)
{
	struct inode *up = i;
	size_t len = 0;
	char *p;

	*t = (struct trail){ 0 };
	while (up == i || up->fd < 0) {
		if (!up->parent || ++t->n > MAX_DEPTH)
			return -ESTALE;
		len += strlen(up->name) + 1;
		up = up->parent;
	}
	p = t->names = malloc(len);
	if (!p)
		return -ENOMEM;
	t->len = len;
	for (struct inode *at = i; at != up; at = at->parent)
		p = stpcpy(p, at->name) + 1;
	t->from = up;
	up->use++;
	return 0;
}

/* The last name in the buffer before end. */
static const char *last_name(const struct trail *t, const char *end)
{
	end--;
	while (end > t->names && end[-1])
		end--;
	return end;
}

static int follow_trail(struct fs *fs, const struct trail *t)
{
	const char *name = t->names + t->len;
	int dir = t->from->fd, fd = -1;

	for (unsigned k = 0; k < t->n; k++) {
		name = last_name(t, name);
		fd = open_beneath(fs, dir, name, O_PATH, 0);
		if (dir != t->from->fd)
			close(dir);
		if (fd < 0)
			return fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM
				       ? fd
				       : -ESTALE;
		dir = fd;
	}
	return fd;
}

/* i is in use, fs->lock is not held. */
int inode_reopen(struct fs *fs, struct inode *i)
{
	struct statx sx;
	struct trail t;
	int fd;

	pthread_mutex_lock(&fs->lock);
	fd = find_trail(fs, i, &t);
	pthread_mutex_unlock(&fs->lock);
	if (fd)
		return fd;
	fd = follow_trail(fs, &t);
	free(t.names);
	inode_put(fs, t.from);
	if (fd < 0)
		return fd;
	if (fd_stat(fd, &sx) || !is_same(i, &sx)) {
		close(fd);
		return -ESTALE;
	}
	pthread_mutex_lock(&fs->lock);
	if (i->fd < 0) {
		set_fd(fs, i, fd);
		fd = -1;
	}
	pthread_mutex_unlock(&fs->lock);
	if (fd >= 0)
		close(fd);
	return 0;
}

int inode_get(struct fs *fs, uint64_t id, struct inode **out)
{
	struct inode *i;
	int ret = 0;

	pthread_mutex_lock(&fs->lock);
	i = slots_get(&fs->inodes, id);
	if (!i || i->stale) {
		pthread_mutex_unlock(&fs->lock);
		return -ESTALE;
	}
	i->use++;
	if (i->fd < 0) {
		pthread_mutex_unlock(&fs->lock);
		ret = inode_reopen(fs, i);
		if (ret)
			inode_put(fs, i);
		else
			fds_limit(fs);
		*out = i;
		return ret;
	}
	if (fs->newest != i) {
		lru_del(fs, i);
		lru_add(fs, i);
	}
	pthread_mutex_unlock(&fs->lock);
	*out = i;
	return 0;
}

void inode_put(struct fs *fs, struct inode *i)
{
	pthread_mutex_lock(&fs->lock);
	i->use--;
	release(fs, i);
	pthread_mutex_unlock(&fs->lock);
}

/* -- what the guest knows ------------------------------------------------- */

static void identify(struct inode *i, const struct statx *sx)
{
	i->dev = dev_of(sx);
	i->ino = sx->stx_ino;
	i->born = born_of(sx);
	i->type = sx->stx_mode & S_IFMT;
}

/* A server or a process of the host that is gone answers never. */
static bool is_local(int fd)
{
	static const uint32_t magic[] = {
		EXT4_SUPER_MAGIC,     XFS_SUPER_MAGIC,
		BTRFS_SUPER_MAGIC,    TMPFS_MAGIC,
		RAMFS_MAGIC,	      OVERLAYFS_SUPER_MAGIC,
		F2FS_SUPER_MAGIC,     0xca451a4e /* bcachefs */,
		0x2fc12fc1 /* zfs */, SQUASHFS_MAGIC,
		EROFS_SUPER_MAGIC_V1, MSDOS_SUPER_MAGIC,
		ISOFS_SUPER_MAGIC,
	};
	struct statfs st;

	if (fstatfs(fd, &st))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(magic); i++)
		if ((uint32_t)st.f_type == magic[i])
			return true;
	return false;
}

static void look_at_device(struct fs *fs, int fd, const struct statx *sx)
{
	if (dev_of(sx) == atomic_load(&fs->known_dev))
		return;
	if (is_local(fd))
		atomic_store(&fs->known_dev, dev_of(sx));
	else
		atomic_store(&fs->remote, true);
}

/* Takes fd unless it fails; -1: there is no directory. */
int inode_init_root(struct fs *fs, int fd)
{
	struct inode *i = fs->root;
	struct statx sx = { 0 };
	int ret = fd < 0 ? 0 : fd_stat(fd, &sx);

	if (ret)
		return ret;
	atomic_store(&fs->remote, false);
	if (fd >= 0)
		look_at_device(fs, fd, &sx);
	pthread_mutex_lock(&fs->lock);
	if (!i) {
		i = inode_new_locked(fs, FUSE_ROOT_ID, fd);
		ret = i ? 0 : -ENOMEM;
	} else {
		unhash(fs, i);
		if (i->fd >= 0)
			close(i->fd);
		i->fd = fd;
	}
	if (i) {
		i->root = true;
		i->stale = fd < 0;
		identify(i, &sx);
		inode_hash_locked(fs, i);
		fs->root = i;
	}
	pthread_mutex_unlock(&fs->lock);
	return ret;
}

int inode_learn(struct fs *fs, struct inode *dir, const char *name, int fd,
		const struct statx *sx, struct inode **out)
{
	struct inode *i;

	look_at_device(fs, fd, sx);
	pthread_mutex_lock(&fs->lock);
	i = find_key(fs, sx);
	if (i && i->fd < 0) {
		set_fd(fs, i, fd);
		fd = -1;
	} else if (!i) {
		i = inode_new_locked(fs, 0, fd);
		if (i) {
			identify(i, sx);
			inode_hash_locked(fs, i);
			fd = -1;
		}
	}
	if (i) {
		i->nlookup++;
		i->use++;
		if (name)
			inode_name_locked(fs, i, dir, name);
	}
	pthread_mutex_unlock(&fs->lock);
	if (fd >= 0)
		close(fd);
	if (!i)
		return -ENFILE;
	fds_limit(fs);
	*out = i;
	return 0;
}

void inode_forget(struct fs *fs, uint64_t id, uint64_t n)
{
	struct inode *i;

	pthread_mutex_lock(&fs->lock);
	i = slots_get(&fs->inodes, id);
	if (i && !i->root) {
		i->nlookup -= MIN(n, i->nlookup);
		release(fs, i);
	}
	pthread_mutex_unlock(&fs->lock);
}

void inode_moved(struct fs *fs, struct inode *from, const char *name,
		 struct inode *to, const char *name2, bool exchange)
{
	struct inode *a, *b;

	pthread_mutex_lock(&fs->lock);
	a = find_name(fs, from, name);
	b = find_name(fs, to, name2);
	if (a)
		a->use++;
	if (b && b != a)
		b->use++;
	if (b && b != a)
		unname(fs, b);
	if (a && a != b)
		unname(fs, a);
	if (a && a != b)
		inode_name_locked(fs, a, to, name2);
	if (b && b != a && exchange)
		inode_name_locked(fs, b, from, name);
	if (b && b != a) {
		b->use--;
		release(fs, b);
	}
	if (a) {
		a->use--;
		release(fs, a);
	}
	pthread_mutex_unlock(&fs->lock);
}

void inode_gone(struct fs *fs, struct inode *dir, const char *name)
{
	struct inode *i;

	pthread_mutex_lock(&fs->lock);
	i = find_name(fs, dir, name);
	if (i)
		unname(fs, i);
	pthread_mutex_unlock(&fs->lock);
}

/*
 * Nobody serves.  keep_ids: the guest still counts its lookups, so numbers
 * stay, and all but the root are stale.
 */
void inodes_drop(struct fs *fs, bool keep_ids)
{
	pthread_mutex_lock(&fs->lock);
	for (uint32_t n = 0; n < fs->inodes.n; n++) {
		struct inode *i = fs->inodes.at[n];

		if (!i)
			continue;
		free(i->name);
		i->name = NULL;
		i->parent = NULL;
		i->name_next = i->key_next = NULL;
		i->refs = i->use = 0;
		i->stale = true;
		if (i->fd >= 0 && !i->root) {
			lru_del(fs, i);
			close(i->fd);
			i->fd = -1;
			fs->nfds--;
		}
	}
	memset(fs->by_key, 0, sizeof(fs->by_key));
	memset(fs->by_name, 0, sizeof(fs->by_name));
	for (uint32_t n = 0; n < fs->inodes.n; n++) {
		struct inode *i = fs->inodes.at[n];

		if (i && !i->root && (!keep_ids || !i->nlookup)) {
			slots_del(&fs->inodes, i->id);
			free(i);
		}
	}
	if (fs->root && !keep_ids) {
		fs->root->stale = fs->root->fd < 0;
		inode_hash_locked(fs, fs->root);
	}
	pthread_mutex_unlock(&fs->lock);
}
