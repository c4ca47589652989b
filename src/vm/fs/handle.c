/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handle.c - the files and directories that the guest has open
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Takes fd, also when it fails. */
int handle_add(struct fs *fs, struct inode *i, int fd, unsigned flags, bool dir,
	       uint64_t *id)
{
	struct handle *h = calloc(1, sizeof(*h));
	int ret = 0;

	if (!h) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	*h = (struct handle){
		.fd = fd,
		.inode = i,
		.dir = dir,
		.flags = flags,
	};
	pthread_mutex_init(&h->lock, NULL);
	pthread_mutex_lock(&fs->lock);
	if (*id) {
		ret = slots_put(&fs->handles, *id, h);
	} else {
		*id = slots_add(&fs->handles, h);
		ret = *id ? 0 : -ENFILE;
	}
	h->id = *id;
	if (!ret)
		inode_ref_locked(i);
	pthread_mutex_unlock(&fs->lock);
	if (ret) {
		if (fd >= 0)
			close(fd);
		pthread_mutex_destroy(&h->lock);
		free(h);
	}
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): handle_close() */
	return ret;
}

int handle_get(struct fs *fs, uint64_t id, bool dir, struct handle **out)
{
	struct handle *h;
	int ret = 0;

	pthread_mutex_lock(&fs->lock);
	h = slots_get(&fs->handles, id);
	if (!h || h->dir != dir)
		ret = -EBADF;
	else if (h->fd < 0)
		ret = -ESTALE;
	else
		h->use++;
	pthread_mutex_unlock(&fs->lock);
	*out = ret ? NULL : h;
	return ret;
}

static void destroy(struct handle *h)
{
	if (h->fd >= 0)
		close(h->fd);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

/* Who finds it unused and closed has it alone. */
static bool last_user(struct fs *fs, struct handle *h)
{
	if (h->use || !h->closed)
		return false;
	inode_unref_locked(fs, h->inode);
	return true;
}

void handle_put(struct fs *fs, struct handle *h)
{
	bool last;

	pthread_mutex_lock(&fs->lock);
	h->use--;
	last = last_user(fs, h);
	pthread_mutex_unlock(&fs->lock);
	if (last)
		destroy(h);
}

void handle_close(struct fs *fs, uint64_t id)
{
	struct handle *h;
	bool last = false;

	pthread_mutex_lock(&fs->lock);
	h = slots_get(&fs->handles, id);
	if (h) {
		slots_del(&fs->handles, id);
		h->closed = true;
		last = last_user(fs, h);
	}
	pthread_mutex_unlock(&fs->lock);
	if (last)
		destroy(h);
}

void handles_drop(struct fs *fs)
{
	for (uint32_t n = 0; n < fs->handles.n; n++) {
		struct handle *h = fs->handles.at[n];

		if (h)
			handle_close(fs, h->id);
	}
}
