/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lock.c - locks that the host and other machines respect
 *
 * The owner of POSIX locks becomes an open file of its own with OFD locks, so
 * owners exclude each other and everybody else; flock() is of the handle.
 * Nobody sleeps for a lock here: FS_WAIT sends the request back to be tried
 * again.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

unsigned fs_unlocks(struct fs *fs)
{
	return atomic_load(&fs->unlocks);
}

static struct owner *find_locked(struct fs *fs, const struct inode *i,
				 uint64_t id)
{
	struct owner *o = fs->owners;

	while (o && (o->inode != i || o->id != id))
		o = o->next;
	return o;
}

/* i is in use.  NULL: *err says why. */
struct owner *owner_find(struct fs *fs, struct inode *i, uint64_t id,
			 bool write, int *err)
{
	struct owner *o;
	int fd;

	pthread_mutex_lock(&fs->lock);
	o = find_locked(fs, i, id);
	*err = !o && fs->nowners >= MAX_OWNERS ? -ENOLCK : 0;
	pthread_mutex_unlock(&fs->lock);
	if (o || *err)
		return o;
	fd = fs->cfg.readonly ? -EROFS : inode_open(fs, i, O_RDWR);
	if (fd < 0 && !write)
		fd = inode_open(fs, i, O_RDONLY);
	o = fd < 0 ? NULL : calloc(1, sizeof(*o));
	if (!o) {
		if (fd >= 0)
			close(fd);
		*err = fd < 0 ? fd : -ENOMEM;
		return NULL;
	}
	*o = (struct owner){ .inode = i, .id = id, .fd = fd };
	pthread_mutex_lock(&fs->lock);
	inode_ref_locked(i);
	o->next = fs->owners;
	fs->owners = o;
	fs->nowners++;
	pthread_mutex_unlock(&fs->lock);
	return o;
}

static void free_owner(struct fs *fs, struct owner *o)
{
	close(o->fd);
	pthread_mutex_lock(&fs->lock);
	inode_unref_locked(fs, o->inode);
	pthread_mutex_unlock(&fs->lock);
	free(o);
}

static struct owner *take_owner(struct fs *fs, const struct inode *i,
				uint64_t id)
{
	struct owner **p, *o;

	pthread_mutex_lock(&fs->lock);
	for (p = &fs->owners; *p; p = &(*p)->next)
		if (!i || ((*p)->inode == i && (*p)->id == id))
			break;
	o = *p;
	if (o) {
		*p = o->next;
		fs->nowners--;
	}
	pthread_mutex_unlock(&fs->lock);
	return o;
}

void locks_release(struct fs *fs, struct inode *i, uint64_t id)
{
	struct owner *o;

	pthread_mutex_lock(&fs->posix);
	o = take_owner(fs, i, id);
	if (o)
		free_owner(fs, o);
	pthread_mutex_unlock(&fs->posix);
	if (o)
		atomic_fetch_add(&fs->unlocks, 1);
}

void locks_drop(struct fs *fs)
{
	struct owner *o;

	while ((o = take_owner(fs, NULL, 0)))
		free_owner(fs, o);
}

/* -- requests ------------------------------------------------------------- */

static int to_host(const struct fuse_file_lock *lk, struct flock *fl)
{
	if (lk->type != F_RDLCK && lk->type != F_WRLCK && lk->type != F_UNLCK)
		return -EINVAL;
	if (lk->start > INT64_MAX || lk->end < lk->start)
		return -EINVAL;
	*fl = (struct flock){
		.l_type = (short)lk->type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)lk->start,
	};
	/* To the end of everything is 0. */
	if (lk->end < INT64_MAX)
		fl->l_len = (off_t)(lk->end - lk->start + 1);
	return 0;
}

static int getlk(struct req *r, struct handle *h)
{
	const struct fuse_lk_in *a = r->args;
	struct fuse_lk_out out = { 0 };
	struct flock fl;
	struct owner *o;
	int fd = -1, ret = to_host(&a->lk, &fl);

	if (ret)
		return ret;
	if (fl.l_type == F_UNLCK)
		return -EINVAL;
	o = owner_find(r->fs, h->inode, a->owner, false, &ret);
	fd = o ? o->fd : h->fd;
	if (fcntl(fd, F_OFD_GETLK, &fl))
		return -errno;
	out.lk.type = (uint32_t)fl.l_type;
	if (fl.l_type != F_UNLCK) {
		out.lk.start = (uint64_t)fl.l_start;
		out.lk.end = fl.l_len ? (uint64_t)(fl.l_start + fl.l_len - 1)
				      : INT64_MAX;
	}
	return answer(r, &out, sizeof(out));
}

static int posix_lock(struct req *r, struct handle *h)
{
	const struct fuse_lk_in *a = r->args;
	struct flock fl;
	struct owner *o;
	int ret = to_host(&a->lk, &fl);

	if (ret)
		return ret;
	o = owner_find(r->fs, h->inode, a->owner, fl.l_type == F_WRLCK, &ret);
	if (!o)
		return fl.l_type == F_UNLCK ? 0 : ret;
	if (fcntl(o->fd, F_OFD_SETLK, &fl))
		return errno == EACCES ? -EAGAIN : -errno;
	if (fl.l_type != F_WRLCK)
		atomic_fetch_add(&r->fs->unlocks, 1);
	return 0;
}

static int flock_lock(struct req *r, struct handle *h)
{
	const struct fuse_lk_in *a = r->args;
	int op = a->lk.type == F_RDLCK	 ? LOCK_SH
		 : a->lk.type == F_WRLCK ? LOCK_EX
					 : LOCK_UN;

	if (flock(h->fd, op | LOCK_NB))
		return -errno;
	if (op != LOCK_EX)
		atomic_fetch_add(&r->fs->unlocks, 1);
	return 0;
}

static int with_handle(struct req *r, int (*f)(struct req *, struct handle *))
{
	const struct fuse_lk_in *a = r->args;
	struct inode *i;
	struct handle *h;
	int ret;

	if (r->fs->cfg.guest_locks)
		return -ENOSYS;
	ret = handle_get(r->fs, a->fh, false, &h);
	if (ret)
		return ret;
	ret = inode_get(r->fs, h->inode->id, &i);
	if (!ret) {
		pthread_mutex_lock(&r->fs->posix);
		ret = f(r, h);
		pthread_mutex_unlock(&r->fs->posix);
		inode_put(r->fs, i);
	}
	handle_put(r->fs, h);
	return ret;
}

static int set_lock(struct req *r)
{
	const struct fuse_lk_in *a = r->args;

	return with_handle(r, a->lk_flags & FUSE_LK_FLOCK ? flock_lock
							  : posix_lock);
}

int op_getlk(struct req *r)
{
	return with_handle(r, getlk);
}

int op_setlk(struct req *r)
{
	return set_lock(r);
}

static bool is_interrupted(struct fs *fs, uint64_t unique)
{
	bool found = false;

	pthread_mutex_lock(&fs->lock);
	for (unsigned k = 0; k < ARRAY_SIZE(fs->interrupted); k++)
		found |= unique && fs->interrupted[k] == unique;
	pthread_mutex_unlock(&fs->lock);
	return found;
}

int op_setlkw(struct req *r)
{
	int ret = set_lock(r);

	if (ret != -EAGAIN)
		return ret;
	return r->m->last || is_interrupted(r->fs, r->h.unique) ? -EINTR
								: FS_WAIT;
}
