/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fw_cfg.c - named blobs for firmware and guests, by port and by DMA
 */
#include "vm/chips.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum {
	KEY_SIGNATURE = 0,
	KEY_ID = 1,
	KEY_DIR = 0x19,
	KEY_FILES = 0x20,
	MAX_FILES = 64,
	DMA_ERROR = 1,
	DMA_READ = 2,
	DMA_SKIP = 4,
	DMA_SELECT = 8,
	DMA_WRITE = 16,
};

struct item {
	struct item *next;
	uint16_t key;
	size_t len;
	uint8_t data[];
};

/* One line of the directory; big endian. */
struct dir_entry {
	uint32_t size;
	uint16_t key, reserved;
	char name[56];
};

struct fw_cfg {
	struct dev dev;
	struct region region;
	struct item *items;
	struct dir_entry dir[MAX_FILES];
	uint32_t files;
	uint16_t key;
	uint32_t pos;
	uint32_t dma_high;
};

static struct item *find(struct fw_cfg *fw, uint16_t key)
{
	struct item *i;

	for (i = fw->items; i && i->key != key; i = i->next)
		;
	return i;
}

int fw_cfg_add(struct dev *dev, uint16_t key, const void *data, size_t len)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
	struct item *new, **p;

	if (len > UINT32_MAX)
		return -EFBIG;
	new = malloc(sizeof(*new) + len);
	if (!new)
		return -ENOMEM;
	new->key = key;
	new->len = len;
	if (len)
		memcpy(new->data, data, len);
	pthread_mutex_lock(&dev->lock);
	for (p = &fw->items; *p && (*p)->key != key; p = &(*p)->next)
		;
	new->next = NULL;
	if (*p) {
		new->next = (*p)->next;
		free(*p);
	}
	*p = new;
	pthread_mutex_unlock(&dev->lock);
	return 0;
}

static int publish_dir(struct dev *dev, struct fw_cfg *fw)
{
	uint8_t buf[4 + sizeof(fw->dir)];
	uint32_t count = htobe32(fw->files);

	memcpy(buf, &count, 4);
	memcpy(buf + 4, fw->dir, sizeof(fw->dir));
	return fw_cfg_add(dev, KEY_DIR, buf,
			  4 + fw->files * sizeof(fw->dir[0]));
}

int fw_cfg_add_file(struct dev *dev, const char *name, const void *data,
		    size_t len)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
	struct dir_entry *e;
	int ret;

	if (strlen(name) >= sizeof(e->name))
		return -ENAMETOOLONG;
	pthread_mutex_lock(&dev->lock);
	ret = -ENOSPC;
	if (fw->files < MAX_FILES)
		ret = fw_cfg_add(dev, KEY_FILES + fw->files, data, len);
	if (!ret) {
		e = &fw->dir[fw->files];
		memset(e, 0, sizeof(*e));
		e->size = htobe32(len);
		e->key = htobe16(KEY_FILES + fw->files);
		memcpy(e->name, name, strlen(name));
		fw->files++;
		ret = publish_dir(dev, fw);
	}
	pthread_mutex_unlock(&dev->lock);
	return ret;
}

static uint8_t next_byte(struct fw_cfg *fw)
{
	struct item *i = find(fw, fw->key);

	if (!i || fw->pos >= i->len)
		return 0;
	return i->data[fw->pos++];
}

/* Bytes behind the end are zeros. */
static int dma_read(struct fw_cfg *fw, uint64_t gpa, uint32_t len)
{
	static const uint8_t zeros[4096];
	struct item *i = find(fw, fw->key);
	size_t have = i && fw->pos < i->len ? i->len - fw->pos : 0;
	uint32_t n = MIN(have, len);

	if (gpa + len < gpa)
		return -EFAULT;
	if (n && mem_copy_in(fw->dev.env->mem, gpa, i->data + fw->pos, n))
		return -EFAULT;
	fw->pos += n;
	for (gpa += n, len -= n; len; gpa += n, len -= n) {
		n = MIN(len, sizeof(zeros));
		if (mem_copy_in(fw->dev.env->mem, gpa, zeros, n))
			return -EFAULT;
	}
	return 0;
}

static void dma(struct fw_cfg *fw, uint64_t gpa)
{
	struct guest_mem *mem = fw->dev.env->mem;
	struct {
		uint32_t control, len;
		uint64_t addr;
	} cmd;
	uint32_t control, len;
	struct item *i;
	int ret = 0;

	if (mem_copy_out(mem, gpa, &cmd, sizeof(cmd)))
		return;
	control = be32toh(cmd.control);
	len = be32toh(cmd.len);
	if (control & DMA_SELECT) {
		fw->key = control >> 16;
		fw->pos = 0;
	}
	if (control & DMA_READ) {
		ret = dma_read(fw, be64toh(cmd.addr), len);
	} else if (control & DMA_WRITE) {
		ret = -EROFS;
	} else if (control & DMA_SKIP) {
		i = find(fw, fw->key);
		if (i && fw->pos < i->len)
			fw->pos += MIN(len, i->len - fw->pos);
	}
	cmd.control = htobe32(ret ? DMA_ERROR : 0);
	if (mem_copy_in(mem, gpa, &cmd.control, 4))
		dev_log(&fw->dev, "DMA command in read-only memory");
}

static uint64_t fw_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
	static const char magic[8] = "QEMU CFG";
	uint32_t v = 0;

	if (off == 1 && size == 1)
		return next_byte(fw);
	if (off >= 4)
		for (unsigned i = 0; i < size && off - 4 + i < 8; i++)
			v |= (uint32_t)(uint8_t)magic[off - 4 + i] << (8 * i);
	return v;
}

static void fw_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

	if (off == 0 && size == 2) {
		fw->key = v;
		fw->pos = 0;
	} else if (off == 4 && size == 4) {
		fw->dma_high = be32toh(v);
	} else if (off == 8 && size == 4) {
		uint64_t gpa =
			(uint64_t)fw->dma_high << 32 | be32toh((uint32_t)v);

		fw->dma_high = 0;
		dma(fw, gpa);
	}
}

static const struct region_ops fw_ops = { fw_read, fw_write, 1, 4 };

static void fw_reset(struct dev *dev)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

	fw->key = 0;
	fw->pos = fw->dma_high = 0;
}

static void fw_finish(struct dev *dev)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
	struct item *i;

	bus_del(dev->env->pio, &fw->region);
	while ((i = fw->items)) {
		fw->items = i->next;
		free(i);
	}
}

static int fw_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
	/* Bit 0: by port, bit 1: by DMA. */
	uint32_t id = htole32(dev->env->mem ? 3 : 1);

	if (chip_region(dev, &fw->region, &fw_ops, dev->env->pio, 0x510, 12))
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	if (fw_cfg_add(dev, KEY_SIGNATURE, "QEMU", 4) ||
	    fw_cfg_add(dev, KEY_ID, &id, 4) || publish_dir(dev, fw)) {
		fw_finish(dev);
		return error_set(err, -ENOMEM, "%s: out of memory", dev->id);
	}
	return 0;
}

static void fw_state(struct dev *dev, struct state *s)
{
	struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

	state_u16(s, "key", &fw->key);
	state_u32(s, "pos", &fw->pos);
	state_u32(s, "dma_high", &fw->dma_high);
}

/* Every position is safe: reading checks it. */
static int fw_check(struct dev *dev)
{
	return 0;
}

const struct dev_class fw_cfg_class = {
	.name = "fw-cfg",
	.size = sizeof(struct fw_cfg),
	.version = 1,
	.init = fw_init,
	.finish = fw_finish,
	.reset = fw_reset,
	.state = fw_state,
	.check = fw_check,
};
