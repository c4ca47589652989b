/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xattr.c - extended attributes
 *
 * user.* goes to the host as it is, but for user.husk.*, which is ours.  What
 * has a meaning to the host's kernel (file capabilities, security labels,
 * trusted.*) is kept as user.husk.x.NAME: it has its meaning in the guest, and
 * none outside.
 */
#include "vm/fs/inside.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

struct names {
	char path[40], host[NAME_LEN + 1];
};

static bool begins(const char *s, const char *with)
{
	return !strncmp(s, with, strlen(with));
}

static int map_name(struct req *r, struct names *n, struct inode **i)
{
	const char *prefix = "";
	int ret;

	if (begins(r->name, "user.husk."))
		return -EPERM;
	if (begins(r->name, "security.") || begins(r->name, "trusted."))
		prefix = XATTR_PREFIX;
	else if (!begins(r->name, "user.") || !r->name[5])
		return -EOPNOTSUPP;
	ret = snprintf(n->host, sizeof(n->host), "%s%s", prefix, r->name);
	if (ret >= (int)sizeof(n->host))
		return -ERANGE;
	ret = inode_get(r->fs, r->h.nodeid, i);
	if (ret)
		return ret;
	if (*prefix && (*i)->type != S_IFREG && (*i)->type != S_IFDIR)
		ret = -EOPNOTSUPP;
	if (ret)
		inode_put(r->fs, *i);
	snprintf(n->path, sizeof(n->path), "/proc/self/fd/%d", (*i)->fd);
	return ret;
}

int op_setxattr(struct req *r)
{
	const struct fuse_setxattr_in *a = r->args;
	struct names n;
	struct inode *i;
	int ret;

	if (a->size > MAX_XATTR)
		return -E2BIG;
	if (a->size > r->nrest ||
	    a->flags & ~(unsigned)(XATTR_CREATE | XATTR_REPLACE))
		return -EINVAL;
	ret = map_name(r, &n, &i);
	if (ret)
		return ret;
	i->no_caps = false;
	if (setxattr(n.path, n.host, r->rest, a->size, (int)a->flags))
		ret = -errno;
	inode_put(r->fs, i);
	return ret;
}

static int answer_xattr(struct req *r, uint32_t size, const void *value,
			ssize_t len)
{
	struct fuse_getxattr_out out = { .size = (uint32_t)len };

	if (!size)
		return answer(r, &out, sizeof(out));
	return (size_t)len > size ? -ERANGE : answer(r, value, (size_t)len);
}

int op_getxattr(struct req *r)
{
	const struct fuse_getxattr_in *a = r->args;
	size_t size = MIN(a->size, MAX_XATTR);
	struct names n;
	struct inode *i;
	char *value;
	ssize_t len;
	int ret = map_name(r, &n, &i);

	if (ret)
		return ret == -EPERM ? -ENODATA : ret;
	value = malloc(size + 1);
	if (!value) {
		inode_put(r->fs, i);
		return -ENOMEM;
	}
	len = getxattr(n.path, n.host, value, size);
	ret = len < 0 ? -errno : answer_xattr(r, a->size, value, len);
	inode_put(r->fs, i);
	free(value);
	return ret;
}

int op_removexattr(struct req *r)
{
	struct names n;
	struct inode *i;
	int ret = map_name(r, &n, &i);

	if (ret)
		return ret;
	if (removexattr(n.path, n.host))
		ret = -errno;
	inode_put(r->fs, i);
	return ret;
}

/* As the guest calls them, in place; the new length. */
static ssize_t guest_names(char *list, ssize_t len)
{
	char *to = list, *end = list + len;

	for (char *from = list, *next; from < end; from = next) {
		size_t n = strlen(from) + 1;

		next = from + n;
		if (begins(from, XATTR_PREFIX)) {
			from += strlen(XATTR_PREFIX);
			n -= strlen(XATTR_PREFIX);
		} else if (!begins(from, "user.") ||
			   begins(from, "user.husk.")) {
			continue;
		}
		memmove(to, from, n);
		to += n;
	}
	return to - list;
}

int op_listxattr(struct req *r)
{
	const struct fuse_getxattr_in *a = r->args;
	struct inode *i;
	char path[40], *names;
	ssize_t len;
	int ret = inode_get(r->fs, r->h.nodeid, &i);

	if (ret)
		return ret;
	names = malloc(MAX_XATTR + 1);
	if (!names) {
		inode_put(r->fs, i);
		return -ENOMEM;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", i->fd);
	len = listxattr(path, names, MAX_XATTR);
	if (len < 0) {
		ret = -errno;
	} else {
		names[len] = 0;
		ret = answer_xattr(r, a->size, names, guest_names(names, len));
	}
	inode_put(r->fs, i);
	free(names);
	return ret;
}
