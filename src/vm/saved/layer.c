/* SPDX-License-Identifier: Apache-2.0 */
/* layer.c - image files of a chain */
#include "vm/saved/layer.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "husk/vm.h"

enum {
	MAX_CHAIN = 64,	   /* images: qcow2.c refuses more */
	SMALL = 1 << 20,   /* bytes that are always copied rather than left */
	DOUBLED_AFTER = 4, /* images below: so many for twice as many bytes */
	PIECE = 1 << 20,
};

/* Of the file itself, nothing below it is opened. */
static bool look(const char *path, const char *format,
		 struct vm_disk_info *info)
{
	struct husk_error ignored = { 0 };

	return !vm_disk_info(path, format && *format ? format : NULL, info,
			     &ignored);
}

/* From the image at path to the one below; what info says is its. */
static bool step_down(char *path, size_t room, struct vm_disk_info *info)
{
	char base[sizeof(info->base)], format[sizeof(info->base_format)];
	char *slash = strrchr(path, '/');
	size_t n = *info->base != '/' && slash ? (size_t)(slash - path) + 1 : 0;

	if (!*info->base)
		return false;
	memcpy(base, info->base, sizeof(base));
	memcpy(format, info->base_format, sizeof(format));
	return (size_t)snprintf(path + n, room - n, "%s", base) < room - n &&
	       look(path, format, info);
}

/* -- copies --------------------------------------------------------------- */

bool layer_is_small(const char *path, const char *format)
{
	struct vm_disk_info info;
	char at[4096];
	uint64_t used;
	unsigned below = 0;

	if (!format || strcmp(format, "qcow2") || !look(path, format, &info) ||
	    info.lazy_refcounts ||
	    (size_t)snprintf(at, sizeof(at), "%s", path) >= sizeof(at))
		return false;
	used = info.used;
	while (below < MAX_CHAIN && step_down(at, sizeof(at), &info))
		below++;
	return used <= (uint64_t)SMALL << below / DOUBLED_AFTER;
}

static int copy_range(int in, int out, off_t at, off_t end)
{
	char *piece = malloc(PIECE);
	int ret = piece ? 0 : -ENOMEM;

	while (!ret && at < end) {
		size_t len = (size_t)MIN(end - at, PIECE);
		ssize_t n = pread(in, piece, len, at);

		if (n > 0)
			n = pwrite(out, piece, (size_t)n, at);
		if (n > 0)
			at += n;
		else if (!n || errno != EINTR)
			ret = n ? -errno : -EIO;
	}
	free(piece);
	return ret;
}

static int copy_data(int in, int out, off_t size)
{
	off_t at = 0, end;
	int ret = ftruncate(out, size) ? -errno : 0;

	while (!ret && at < size) {
		at = lseek(in, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		end = lseek(in, at, SEEK_HOLE);
		if (end < 0)
			return -errno;
		ret = copy_range(in, out, at, MIN(end, size));
		at = end;
	}
	return ret;
}

/* The last word on refcounts is not in it: nobody could write to the copy. */
static int check_settled(int fd)
{
	uint64_t incompat;

	if (pread(fd, &incompat, sizeof(incompat), 72) != sizeof(incompat))
		return -EIO;
	return be64toh(incompat) & 1 ? -EBUSY : 0;
}

int layer_copy(const char *from, int fd)
{
	int in = open(from, O_RDONLY | O_CLOEXEC), ret = 0;
	struct stat st;

	if (in < 0)
		return -errno;
	if (fstat(in, &st))
		ret = -errno;
	else if (ioctl(fd, FICLONE, in))
		ret = copy_data(in, fd, st.st_size);
	close(in);
	return ret ? ret : check_settled(fd);
}

/* -- links ---------------------------------------------------------------- */

static bool note(struct layer_links *made, char *path)
{
	char **list = reallocarray(made->path, made->n + 1, sizeof(*list));

	if (!list)
		return false;
	made->path = list;
	list[made->n++] = path;
	return true;
}

/* The same file under the same name in folder. */
static bool link_one(const char *path, const char *folder,
		     struct layer_links *made)
{
	const char *slash = strrchr(path, '/');
	struct stat a, b;
	char *to;
	bool ok;

	if (asprintf(&to, "%s/%s", folder, slash ? slash + 1 : path) < 0)
		return false;
	if (!link(path, to)) {
		if (note(made, to))
			return true;
		unlink(to);
		ok = false;
	} else {
		ok = errno == EEXIST && !stat(path, &a) && !stat(to, &b) &&
		     a.st_dev == b.st_dev && a.st_ino == b.st_ino;
	}
	free(to);
	return ok;
}

bool layer_link(const char *path, const char *format, const char *folder,
		bool image, struct layer_links *made)
{
	struct vm_disk_info info;
	char at[4096];

	if (!look(path, format, &info) ||
	    (size_t)snprintf(at, sizeof(at), "%s", path) >= sizeof(at) ||
	    (image && !link_one(at, folder, made)))
		return false;
	/* What is named by a path is found from everywhere. */
	for (unsigned i = 0; *info.base && !strchr(info.base, '/'); i++)
		if (i == MAX_CHAIN || !step_down(at, sizeof(at), &info) ||
		    !link_one(at, folder, made))
			return false;
	return true;
}

void layer_links_keep(struct layer_links *made)
{
	while (made->n)
		free(made->path[--made->n]);
	free(made->path);
	made->path = NULL;
}

void layer_links_undo(struct layer_links *made)
{
	for (unsigned i = 0; i < made->n; i++)
		unlink(made->path[i]);
	layer_links_keep(made);
}
