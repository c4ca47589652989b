/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_disk.c - disks of a configuration, and their options in words
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "vm/machine.h"

void disk_config_finish(struct disk_config *d)
{
	free(d->path);
	free(d->serial);
	free(d->format);
	free(d->base);
	free(d->snapshot);
	free(d->fault);
	memset(d, 0, sizeof(*d));
}

static char *copy(const char *text, int *ret)
{
	char *c = text ? strdup(text) : NULL;

	if (text && !c)
		*ret = -ENOMEM;
	return c;
}

int disk_config_copy(struct disk_config *to, const struct disk_config *from)
{
	int ret = 0;

	*to = *from;
	to->path = copy(from->path, &ret);
	to->serial = copy(from->serial, &ret);
	to->format = copy(from->format, &ret);
	to->base = copy(from->base, &ret);
	to->snapshot = copy(from->snapshot, &ret);
	to->fault = copy(from->fault, &ret);
	if (ret)
		disk_config_finish(to);
	return ret;
}

struct block_config disk_block_config(const struct disk_config *d)
{
	return (struct block_config){
		.path = d->path,
		.format = d->format,
		.base = d->base,
		.snapshot = d->snapshot,
		.fault = d->fault,
		.readonly = d->readonly || d->snapshot,
		.cache = d->cache,
		.sync = d->sync,
		.aio = d->aio,
		.sector = d->sector,
	};
}

static int set(char **to, const char *value)
{
	free(*to);
	*to = strdup(value);
	return *to ? 0 : -ENOMEM;
}

static int set_number(unsigned *to, const char *value)
{
	char *end;
	unsigned long v = strtoul(value, &end, 10);

	if (end == value || *end || v > 65535)
		return -EINVAL;
	*to = (unsigned)v;
	return 0;
}

int disk_config_set(struct disk_config *d, const char *key, const char *value)
{
	int ret;

	if (!strcmp(key, "path"))
		return set(&d->path, value);
	if (!strcmp(key, "readonly") && (!*value || !strcmp(value, "on"))) {
		d->readonly = true;
		return 0;
	}
	/* deviceId is vfkit's and krunkit's word for it. */
	if (!strcmp(key, "serial") || !strcmp(key, "deviceId"))
		return set(&d->serial, value);
	if (!strcmp(key, "format")) {
		if (strcmp(value, "raw") && strcmp(value, "qcow2"))
			return -EINVAL;
		return set(&d->format, value);
	}
	if (!strcmp(key, "base"))
		return set(&d->base, value);
	if (!strcmp(key, "snapshot"))
		return set(&d->snapshot, value);
	if (!strcmp(key, "fault"))
		return set(&d->fault, value);
	if (!strcmp(key, "cache"))
		return block_parse_cache(value, &d->cache);
	if (!strcmp(key, "sync"))
		return block_parse_sync(value, &d->sync);
	if (!strcmp(key, "aio"))
		return block_parse_aio(value, &d->aio);
	if (!strcmp(key, "on-enospc")) {
		d->pause_if_full = !strcmp(value, "pause");
		return d->pause_if_full || !strcmp(value, "error") ? 0
								   : -EINVAL;
	}
	if (!strcmp(key, "sector")) {
		ret = set_number(&d->sector, value);
		return ret || (d->sector != 512 && d->sector != 4096) ? -EINVAL
								      : 0;
	}
	if (!strcmp(key, "queues")) {
		ret = set_number(&d->queues, value);
		return ret || d->queues < 1 || d->queues > 8 ? -EINVAL : 0;
	}
	return -ENOENT;
}

static int parse_option(struct disk_config *d, char *word, const char *spec,
			struct husk_error *err)
{
	char *value = strchr(word, '=');
	int ret;

	if (value)
		*value++ = 0;
	ret = disk_config_set(d, word, value ? value : "");
	if (ret == -ENOENT)
		return error_set(err, -EINVAL, "disk %s: no option \"%s%s%s\"",
				 spec, word, value ? "=" : "",
				 value ? value : "");
	if (ret == -EINVAL)
		return error_set(err, ret, "disk %s: %s cannot be \"%s\"", spec,
				 word, value ? value : "");
	return ret ? error_errno(err, ret, "disk %s", spec) : 0;
}

/* The last ",word" of text when it is an option: names may have commas. */
static char *last_option(char *text)
{
	char *comma = strrchr(text, ',');

	if (!comma || (!strchr(comma, '=') && strcmp(comma, ",readonly")))
		return NULL;
	*comma = 0;
	return comma + 1;
}

static int parse(struct disk_config *d, char *text, const char *spec,
		 struct husk_error *err)
{
	char *word;

	while ((word = last_option(text))) {
		int ret = parse_option(d, word, spec, err);

		if (ret)
			return ret;
	}
	if (!strncmp(text, "file=", 5) || !strncmp(text, "path=", 5))
		text += 5;
	if (!*text)
		return error_set(err, -EINVAL, "disk %s: no file is named",
				 spec);
	return set(&d->path, text) ? error_errno(err, -ENOMEM, "disk %s", spec)
				   : 0;
}

unsigned vm_config_disk_count(const struct vm_config *cfg)
{
	return cfg->ndisks;
}

const char *vm_config_disk_path(const struct vm_config *cfg, unsigned i)
{
	return i < cfg->ndisks ? cfg->disk[i].path : NULL;
}

const char *vm_config_disk_format(const struct vm_config *cfg, unsigned i)
{
	return i < cfg->ndisks ? cfg->disk[i].format : NULL;
}

bool vm_config_disk_readonly(const struct vm_config *cfg, unsigned i)
{
	return i < cfg->ndisks &&
	       (cfg->disk[i].readonly || cfg->disk[i].snapshot);
}

int vm_config_set_disk_path(struct vm_config *cfg, unsigned i, const char *path,
			    const char *format)
{
	struct disk_config *d;
	char *p, *f;

	if (i >= cfg->ndisks)
		return -ENOENT;
	d = &cfg->disk[i];
	p = strdup(path);
	f = strdup(format);
	if (!p || !f) {
		free(p);
		free(f);
		return -ENOMEM;
	}
	free(d->path);
	free(d->format);
	free(d->base);
	d->path = p;
	d->format = f;
	d->base = NULL;
	return 0;
}

int config_take_disk(struct vm_config *cfg, struct disk_config *d,
		     struct husk_error *err)
{
	if (cfg->ndisks == MAX_DISKS)
		return error_set(err, -E2BIG,
				 "disk %s: too many disks, %d are possible",
				 d->path, MAX_DISKS);
	cfg->disk[cfg->ndisks++] = *d;
	memset(d, 0, sizeof(*d));
	return 0;
}

int vm_config_add_disk_spec(struct vm_config *cfg, const char *spec,
			    struct husk_error *err)
{
	struct disk_config d = { 0 };
	char *copy;
	int ret;

	copy = strdup(spec);
	ret = copy ? parse(&d, copy, spec, err)
		   : error_errno(err, -ENOMEM, "disk %s", spec);
	free(copy);
	if (!ret)
		ret = config_take_disk(cfg, &d, err);
	disk_config_finish(&d);
	return ret;
}

int vm_config_add_disk(struct vm_config *cfg, const char *path, bool readonly)
{
	struct disk_config d = { .readonly = readonly };

	if (cfg->ndisks == MAX_DISKS)
		return -E2BIG;
	if (set(&d.path, path))
		return -ENOMEM;
	cfg->disk[cfg->ndisks++] = d;
	return 0;
}

/*
 * The options of virtio-blk, where the file may stand anywhere: it is moved
 * to the front.
 */
int config_add_virtio_blk(struct vm_config *cfg, char *options,
			  const char *spec, struct husk_error *err)
{
	struct disk_config d = { 0 };
	char *copy = strdup(options), *save, *o;
	int ret = copy ? 0 : error_errno(err, -ENOMEM, "device %s", spec);

	for (o = copy ? strtok_r(copy, ",", &save) : NULL; o && !ret;
	     o = strtok_r(NULL, ",", &save)) {
		if (!strncmp(o, "file=", 5) || !strncmp(o, "path=", 5))
			ret = set(&d.path, o + 5)
				      ? error_errno(err, -ENOMEM, "%s", spec)
				      : 0;
		else
			ret = parse_option(&d, o, spec, err);
	}
	free(copy);
	if (!ret && (!d.path || !*d.path))
		ret = error_set(err, -EINVAL, "device %s: file=PATH is missing",
				spec);
	if (!ret)
		ret = config_take_disk(cfg, &d, err);
	disk_config_finish(&d);
	return ret;
}
