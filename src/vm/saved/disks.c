/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disks.c - the disks of a saved machine keep what they were at that moment
 *
 * A machine that goes on after its save leaves its images as they are: it gets
 * a new image on top of each, and the old one belongs to the saved machine. A
 * restored machine does the same, so it can be restored again.  Where the image
 * holds little, one of the two gets a copy of it instead: see layer.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/draft.h"
#include "vm/saved/saved.h"
#include "vm/virtio.h"

/* "disk.qcow2" and "disk.12345678.qcow2" are both "disk". */
static int stem(const char *path)
{
	size_t n = strlen(path);

	if (n > 6 && !strcmp(path + n - 6, ".qcow2"))
		n -= 6;
	if (n > 9 && path[n - 9] == '.' &&
	    strspn(path + n - 8, "0123456789abcdef") >= 8)
		n -= 9;
	return (int)n;
}

char *overlay_path(const char *path, const char *folder)
{
	const char *name = strrchr(path, '/');
	char *to = NULL;
	uint32_t random;

	name = name ? name + 1 : path;
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return NULL;
	if (!folder)
		return asprintf(&to, "%.*s.%08x.qcow2", stem(path), path,
				random) < 0
			       ? NULL
			       : to;
	return asprintf(&to, "%s/%.*s.%08x.qcow2", folder, stem(name), name,
			random) < 0
		       ? NULL
		       : to;
}

/* -- at a save ------------------------------------------------------------ */

void disks_discard(struct disk_overlays *o)
{
	for (unsigned i = 0; i < MAX_DISKS; i++) {
		if (!o->path[i])
			continue;
		unlink(o->path[i]);
		free(o->path[i]);
		o->path[i] = NULL;
	}
	layer_links_undo(&o->links);
}

int disks_settle(const struct disk_overlays *o)
{
	for (unsigned i = 0; i < MAX_DISKS; i++) {
		int fd, ret;

		if (!o->path[i])
			continue;
		fd = open(o->path[i], O_WRONLY | O_CLOEXEC);
		ret = fd < 0 || fsync(fd) ? -errno : 0;
		if (fd >= 0)
			close(fd);
		if (!ret)
			ret = draft_sync_folder(o->path[i]);
		if (ret)
			return ret;
	}
	return 0;
}

void disks_keep(struct disk_overlays *o)
{
	for (unsigned i = 0; i < MAX_DISKS; i++) {
		free(o->path[i]);
		o->path[i] = NULL;
	}
	layer_links_keep(&o->links);
}

static int stack(const struct vm *vm, unsigned i, const char *path,
		 struct husk_error *err)
{
	const struct block *b = vm->block[i];

	return disk_create_overlay(path, vm->disk[i].path, b->ops->name,
				   b->size, err);
}

static int copy(const char *from, const char *to)
{
	int fd = open(to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666), ret;

	if (fd < 0)
		return -errno;
	ret = layer_copy(from, fd);
	close(fd);
	if (ret)
		unlink(to);
	return ret;
}

int disks_prepare(struct vm *vm, struct disk_overlays *o,
		  struct husk_error *err)
{
	for (unsigned i = 0; i < vm->nblocks; i++) {
		const struct block *b = vm->block[i];
		int ret = 0;

		if (b->readonly)
			continue;
		o->path[i] = overlay_path(vm->disk[i].path, NULL);
		if (!o->path[i])
			return error_errno(err, -ENOMEM, "disk %u", i);
		o->copy[i] = layer_is_small(vm->disk[i].path, b->ops->name);
		if (!o->copy[i])
			ret = stack(vm, i, o->path[i], err);
		if (ret)
			return ret;
	}
	return 0;
}

/* The configuration, for the next save, says where the disk is now. */
static int note_path(struct vm *vm, unsigned i)
{
	struct husk_error ignored = { 0 };
	struct vm_config *cfg;
	char *json = NULL;
	int ret = vm_config_from_json(vm->json, strlen(vm->json), NULL, &cfg,
				      &ignored);

	if (ret)
		return ret;
	ret = vm_config_set_disk_path(cfg, i, vm->disk[i].path, "qcow2");
	if (!ret)
		json = vm_config_to_json(cfg, NULL);
	vm_config_destroy(cfg);
	if (!json)
		return -ENOMEM;
	free(vm->json);
	vm->json = json;
	return 0;
}

int disks_flush(struct vm *vm)
{
	int ret = 0;

	for (unsigned i = 0; !ret && i < vm->nblocks; i++)
		if (!vm->block[i]->readonly)
			ret = block_flush(vm->block[i]);
	return ret;
}

static struct dev *disk_device(struct vm *vm, unsigned i)
{
	char id[16];

	snprintf(id, sizeof(id), "disk%u", i);
	for (struct dev *d = vm->devs; d; d = d->next)
		if (!strcmp(d->id, id))
			return d;
	return NULL;
}

/*
 * The old image is closed before the new one opens it to read, so there is a
 * moment without a disk: when neither can be opened the machine cannot go on.
 */
static int move_disk(struct vm *vm, unsigned i, const char *overlay,
		     struct husk_error *err)
{
	struct disk_config old = vm->disk[i], new = old;
	struct block_config cfg;
	int ret = 0;

	new.path = (char *)overlay;
	new.format = (char *)"qcow2";
	block_close(vm->block[i]);
	cfg = disk_block_config(&new);
	vm->block[i] = block_open_config(&cfg, err);
	if (!vm->block[i]) {
		struct husk_error ignored = { 0 };

		cfg = disk_block_config(&old);
		vm->block[i] = block_open_config(&cfg, &ignored);
		ret = err && err->code ? err->code : -EIO;
		if (!vm->block[i])
			run_end(vm, VM_STOP_ERROR, 0, "a disk is lost");
		if (!vm->block[i])
			vm->block[i] = block_open_null(512, &ignored);
	}
	virtio_blk_replace(disk_device(vm, i), vm->block[i]);
	return ret;
}

/* What goes wrong with a copy may go well with an image on top. */
static int copy_disk(struct vm *vm, unsigned i, struct disk_overlays *o,
		     struct husk_error *err)
{
	if (!copy(vm->disk[i].path, o->path[i]))
		return 0;
	o->copy[i] = false;
	return stack(vm, i, o->path[i], err);
}

int disks_freeze(struct vm *vm, struct disk_overlays *o,
		 struct saved_disk_fields *disk,
		 const struct vm_save_options *options, struct husk_error *err)
{
	for (unsigned i = 0; i < vm->nblocks; i++) {
		int ret = 0;

		if (!o->path[i])
			continue;
		if (o->copy[i])
			ret = copy_disk(vm, i, o, err);
		if (!ret && o->copy[i]) {
			snprintf(disk[i].path, sizeof(disk[i].path), "%s",
				 o->path[i]);
			continue;
		}
		if (!ret)
			ret = move_disk(vm, i, o->path[i], err);
		if (ret)
			return ret;
		free(vm->disk[i].path);
		free(vm->disk[i].format);
		vm->disk[i].path = o->path[i];
		vm->disk[i].format = strdup("qcow2");
		o->path[i] = NULL;
		ret = vm->disk[i].format ? note_path(vm, i) : -ENOMEM;
		if (!ret && options->disk_moved)
			ret = options->disk_moved(options->opaque, i,
						  vm->disk[i].path);
		if (ret)
			return error_errno(err, ret, "%s", vm->disk[i].path);
	}
	return 0;
}

/* -- at a restore --------------------------------------------------------- */

/* Only what is called an image is taken for one from another folder. */
static bool has_suffix(const char *path)
{
	const char *dot = strrchr(path, '.');

	return dot && (!strcmp(dot, ".qcow2") || !strcmp(dot, ".img") ||
		       !strcmp(dot, ".raw"));
}

/* One of its own, which needs nothing of other folders where that can be. */
static int new_image(const struct saved_disk_fields *d, const char *folder,
		     const char *path, struct layer_links *links,
		     struct husk_error *err)
{
	const char *slash = strrchr(d->path, '/');
	bool small = layer_is_small(d->path, d->format);
	bool linked =
		folder && layer_link(d->path, d->format, folder, !small, links);
	char *base;
	int ret;

	if (small && (linked || !folder) && !copy(d->path, path))
		return 0;
	if (!linked || small)
		return disk_create_overlay(path, d->path, d->format, 0, err);
	if (asprintf(&base, "%s/%s", folder, slash ? slash + 1 : d->path) < 0)
		return error_errno(err, -ENOMEM, "%s", path);
	ret = disk_create_overlay(path, base, d->format, 0, err);
	free(base);
	return ret;
}

int disks_restore(const struct vm_saved *saved, struct vm_config *cfg,
		  const char *folder, struct disk_overlays *o,
		  struct husk_error *err)
{
	for (unsigned i = 0; i < saved->ndisks && i < cfg->ndisks; i++) {
		const struct saved_disk_fields *d = &saved->disk[i];
		int ret;

		if (!d->frozen || d->readonly)
			continue;
		o->path[i] = overlay_path(d->path,
					  has_suffix(d->path) ? folder : NULL);
		if (!o->path[i])
			return error_errno(err, -ENOMEM, "disk %u", i);
		ret = new_image(d, has_suffix(d->path) ? folder : NULL,
				o->path[i], &o->links, err);
		if (!ret)
			ret = vm_config_set_disk_path(cfg, i, o->path[i],
						      "qcow2");
		if (ret)
			return ret;
	}
	return 0;
}

/* The configuration is again what it was. */
void disks_unrestore(const struct vm_saved *saved, struct vm_config *cfg,
		     struct disk_overlays *o)
{
	for (unsigned i = 0; i < saved->ndisks && i < cfg->ndisks; i++)
		if (o->path[i])
			vm_config_set_disk_path(cfg, i, saved->disk[i].path,
						saved->disk[i].format);
	disks_discard(o);
}
