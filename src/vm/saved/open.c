/* SPDX-License-Identifier: Apache-2.0 */
/*
 * open.c - a saved machine is read and checked, all but its memory
 *
 * The file is distrusted.  There is one way to write a given set of sections:
 * one behind the other in the order of the table, zeros between them.  So what
 * is damaged, doubled, out of order or out of range is found before any of it
 * means something.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/saved/saved.h"

enum { MAX_CONFIG = 16 << 20 };

int saved_bad(struct husk_error *err, const char *section, const char *why)
{
	return error_set(err, -EBADMSG,
			 "the saved machine is damaged: section %s: %s",
			 section, why);
}

static int bad(struct husk_error *err, const char *why)
{
	return error_set(err, -EBADMSG, "the saved machine is damaged: %s",
			 why);
}

const struct saved_entry *saved_find(const struct vm_saved *saved,
				     const char *name)
{
	for (unsigned i = 0; i < saved->h.nsections; i++)
		if (!strcmp(saved->entry[i].name, name))
			return &saved->entry[i];
	return NULL;
}

/* 0 when all was read. */
static int read_at(int fd, void *buf, uint64_t len, uint64_t at)
{
	uint64_t done = 0;

	while (done < len) {
		ssize_t n = pread(fd, (char *)buf + done, len - done,
				  (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EBADMSG;
		done += (uint64_t)n;
	}
	return 0;
}

/* -- header and table ----------------------------------------------------- */

static int check_header(struct vm_saved *saved, const char *path,
			struct husk_error *err)
{
	struct saved_header h = saved->h;
	struct stat st;

	if (memcmp(h.magic, SAVED_MAGIC, 8))
		return error_set(err, -EBADMSG, "%s: not a saved machine",
				 path);
	if (h.version > SAVED_VERSION)
		return error_set(err, -ENOTSUP,
				 "%s: saved in format %u by a newer Husk; this "
				 "one reads up to %u",
				 path, h.version, SAVED_VERSION);
	h.crc = 0;
	if (crc32c(0, &h, sizeof(h)) != saved->h.crc)
		return bad(err, "its header");
	if (fstat(saved->fd, &st))
		return error_errno(err, -errno, "%s", path);
	if ((uint64_t)st.st_size != h.file_size)
		return bad(err, (uint64_t)st.st_size < h.file_size
					? "it is cut short"
					: "it is longer than it was");
	if (!h.version || h.flags & ~(uint32_t)SAVED_COMPRESSED ||
	    h.reserved[0] || h.reserved[1] || h.reserved[2] || !h.nsections ||
	    h.nsections > SAVED_MAX_SECTIONS || h.ram_at % SAVED_PAGE ||
	    h.ram_at > SAVED_MAX_META || h.ram_at > h.file_size ||
	    !h.ram_size || h.ram_size % SAVED_PAGE || h.ram_size >> 46 ||
	    h.ram_at < sizeof(h) + h.nsections * sizeof(struct saved_entry))
		return bad(err, "its header");
	if (!(h.flags & SAVED_COMPRESSED) &&
	    h.file_size != h.ram_at + h.ram_size)
		return bad(err, "its length");
	return 0;
}

static bool word_valid(const char *word, size_t room)
{
	size_t n = strnlen(word, room);

	if (!n || n == room)
		return false;
	for (size_t i = 0; i < n; i++)
		if (word[i] <= ' ' || word[i] > '~')
			return false;
	for (size_t i = n; i < room; i++)
		if (word[i])
			return false;
	return true;
}

static bool zeros(const uint8_t *p, uint64_t len)
{
	for (; len; len--)
		if (*p++)
			return false;
	return true;
}

/* Each where it has to be, unique, and undamaged. */
static int check_entry(struct vm_saved *saved, unsigned i, uint64_t *end,
		       struct husk_error *err)
{
	const struct saved_entry *e = &saved->entry[i];
	uint64_t at = ALIGN_UP(*end, 8);

	if (!word_valid(e->name, sizeof(e->name)) ||
	    !word_valid(e->kind, sizeof(e->kind)))
		return bad(err, "the name of a section");
	for (unsigned k = 0; k < i; k++)
		if (!strcmp(saved->entry[k].name, e->name))
			return saved_bad(err, e->name, "it is there twice");
	if (e->at != at || e->at > saved->h.ram_at ||
	    e->size > saved->h.ram_at - e->at ||
	    !zeros(saved->meta + *end, at - *end))
		return saved_bad(err, e->name, "out of place");
	if (crc32c(0, saved_data(saved, e), e->size) != e->crc)
		return saved_bad(err, e->name, "its checksum is wrong");
	*end = e->at + e->size;
	return 0;
}

static int check_table(struct vm_saved *saved, struct husk_error *err)
{
	uint64_t size = saved->h.nsections * sizeof(struct saved_entry);
	uint64_t end = sizeof(struct saved_header) + size;

	if (crc32c(0, saved->meta + sizeof(struct saved_header), size) !=
	    saved->h.table_crc)
		return bad(err, "its table of sections");
	saved->entry = malloc(size);
	if (!saved->entry)
		return error_errno(err, -ENOMEM, "saved machine");
	memcpy(saved->entry, saved->meta + sizeof(struct saved_header), size);
	for (unsigned i = 0; i < saved->h.nsections; i++) {
		int ret = check_entry(saved, i, &end, err);

		if (ret)
			return ret;
	}
	if (ALIGN_UP(end, SAVED_PAGE) != saved->h.ram_at ||
	    !zeros(saved->meta + end, saved->h.ram_at - end))
		return bad(err, "there is something behind its sections");
	return 0;
}

/* -- sections ------------------------------------------------------------- */

static int need(const struct vm_saved *saved, const char *name,
		const char *kind, unsigned version,
		const struct saved_entry **out, struct husk_error *err)
{
	const struct saved_entry *e = saved_find(saved, name);

	*out = e;
	if (!e || strcmp(e->kind, kind))
		return saved_bad(err, name, "missing");
	if (!e->version || e->version > version)
		return error_set(err, -ENOTSUP,
				 "section %s is in format %u, of a newer Husk",
				 name, e->version);
	return 0;
}

static int check_units(struct vm_saved *saved, const struct saved_entry *e,
		       struct husk_error *err)
{
	bool packed = saved->h.flags & SAVED_COMPRESSED;
	uint64_t end = saved->h.ram_at, size = saved->h.ram_size;

	saved->nunits = ram_units(size);
	if (e->size != saved->nunits * sizeof(*saved->unit))
		return saved_bad(err, "ram", "its length");
	saved->unit = malloc(e->size);
	if (!saved->unit)
		return error_errno(err, -ENOMEM, "saved machine");
	memcpy(saved->unit, saved_data(saved, e), e->size);
	for (uint64_t i = 0; i < saved->nunits; i++) {
		const struct saved_unit *u = &saved->unit[i];
		uint64_t full = ram_unit_size(size, i);
		uint64_t at = packed ? end : saved->h.ram_at + i * SAVED_UNIT;

		if (!u->size && !u->at && !u->crc)
			continue;
		if (u->at != at || !u->size || u->size > full + 1024 ||
		    (!packed && u->size != full) ||
		    u->size > saved->h.file_size ||
		    u->at > saved->h.file_size - u->size)
			return saved_bad(err, "ram", "out of place");
		end = u->at + u->size;
	}
	if (packed && end != saved->h.file_size)
		return saved_bad(err, "ram", "the length of the file");
	return 0;
}

static int read_disks(struct vm_saved *saved, struct state *s)
{
	uint32_t n = 0;

	state_u32(s, "disks", &n);
	if (n > MAX_DISKS) {
		state_reject(s, "too many disks");
		n = 0;
	}
	saved->disk = calloc(n + 1, sizeof(*saved->disk));
	if (!saved->disk)
		return -ENOMEM;
	saved->ndisks = n;
	for (unsigned i = 0; i < n; i++)
		disk_fields(s, &saved->disk[i]);
	return state_finish(s);
}

static int read_machine(struct vm_saved *saved, struct state *s)
{
	machine_fields(s, &saved->machine);
	return state_finish(s);
}

static int read_cpuid(struct vm_saved *saved, struct state *s)
{
	cpuid_fields(s, &saved->cpuid);
	return state_finish(s);
}

static int read_section(struct vm_saved *saved, const char *name,
			int (*read)(struct vm_saved *saved, struct state *s),
			struct husk_error *err)
{
	const struct saved_entry *e;
	struct state *s;
	int ret = need(saved, name, name, 1, &e, err);

	if (ret)
		return ret;
	s = state_reader(saved_data(saved, e), e->size, e->version);
	if (!s)
		return error_errno(err, -ENOMEM, "saved machine");
	ret = read(saved, s);
	if (ret)
		saved_bad(err, name, state_why(s));
	state_free(s);
	return ret;
}

static int check_sections(struct vm_saved *saved, struct husk_error *err)
{
	const struct saved_entry *e;
	char name[16];
	int ret = need(saved, "config", "json", 1, &e, err);

	if (!ret && e->size > MAX_CONFIG)
		ret = saved_bad(err, "config", "too long");
	if (!ret)
		ret = read_section(saved, "machine", read_machine, err);
	if (!ret && saved->machine.memory != saved->h.ram_size)
		ret = saved_bad(err, "machine", "size of memory");
	if (!ret)
		ret = read_section(saved, "cpuid", read_cpuid, err);
	if (!ret)
		ret = read_section(saved, "disks", read_disks, err);
	for (unsigned i = 0; !ret && i < saved->machine.cpus; i++) {
		snprintf(name, sizeof(name), "cpu%u", i);
		ret = need(saved, name, "cpu", 1, &e, err);
	}
	if (!ret)
		ret = need(saved, "ram", "ram", 1, &e, err);
	return ret ? ret : check_units(saved, e, err);
}

int saved_check(struct vm_saved *saved, struct husk_error *err)
{
	int ret = check_table(saved, err);

	return ret ? ret : check_sections(saved, err);
}

/* -- life ----------------------------------------------------------------- */

static int read_all(struct vm_saved *saved, const char *path,
		    struct husk_error *err)
{
	int ret = read_at(saved->fd, &saved->h, sizeof(saved->h), 0);

	if (ret == -EBADMSG)
		return error_set(err, ret, "%s: not a saved machine", path);
	if (ret)
		return error_errno(err, ret, "%s", path);
	ret = check_header(saved, path, err);
	if (ret)
		return ret;
	saved->meta = malloc(saved->h.ram_at);
	if (!saved->meta)
		return error_errno(err, -ENOMEM, "%s", path);
	ret = read_at(saved->fd, saved->meta, saved->h.ram_at, 0);
	if (ret)
		return error_errno(err, ret, "%s", path);
	return saved_check(saved, err);
}

int vm_saved_open(const char *path, struct vm_saved **out,
		  struct husk_error *err)
{
	struct vm_saved *saved = calloc(1, sizeof(*saved));
	struct stat st;
	int ret;

	*out = NULL;
	if (!saved)
		return error_errno(err, -ENOMEM, "%s", path);
	/* Not blocked by a pipe that somebody names. */
	saved->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (saved->fd < 0)
		ret = error_errno(err, -errno, "%s", path);
	else if (fstat(saved->fd, &st))
		ret = error_errno(err, -errno, "%s", path);
	else if (!S_ISREG(st.st_mode))
		ret = error_set(err, -EINVAL, "%s: not a regular file", path);
	else
		ret = read_all(saved, path, err);
	if (ret) {
		vm_saved_close(saved);
		return ret;
	}
	*out = saved;
	return 0;
}

void vm_saved_close(struct vm_saved *saved)
{
	if (!saved)
		return;
	if (saved->fd >= 0)
		close(saved->fd);
	if (saved->ram && saved->ram->own && saved->ram->host) {
		munmap(saved->ram->host, saved->ram->size);
		free(saved->ram->from_file);
	}
	free(saved->ram);
	free(saved->meta);
	free(saved->entry);
	free(saved->disk);
	free(saved->unit);
	free(saved);
}

/* -- look ----------------------------------------------------------------- */

void vm_saved_info(const struct vm_saved *saved, struct vm_saved_info *info)
{
	const struct saved_machine *m = &saved->machine;

	*info = (struct vm_saved_info){
		.version = saved->h.version,
		.cpus = m->cpus,
		.tsc_khz = m->tsc_khz,
		.memory = m->memory,
		.file = saved->h.file_size,
		.saved_at = m->saved_at,
		.uptime = m->clock,
		.compressed = saved->h.flags & SAVED_COMPRESSED,
		.sections = saved->h.nsections,
		.disks = saved->ndisks,
	};
	memcpy(info->engine, m->engine, sizeof(info->engine));
	memcpy(info->cpu_model, m->cpu_model, sizeof(info->cpu_model));
	for (unsigned i = 0; i < sizeof(m->id); i++)
		snprintf(info->id + (size_t)i * 2, 3, "%02x", m->id[i]);
	for (uint64_t i = 0; i < saved->nunits; i++)
		if (saved->unit[i].size)
			info->memory_used += ram_unit_size(m->memory, i);
}

int vm_saved_section(const struct vm_saved *saved, unsigned number,
		     struct vm_saved_section *section)
{
	const struct saved_entry *e;

	if (number >= saved->h.nsections)
		return -ENOENT;
	e = &saved->entry[number];
	*section = (struct vm_saved_section){ .version = e->version,
					      .size = e->size };
	memcpy(section->name, e->name, sizeof(section->name));
	memcpy(section->kind, e->kind, sizeof(section->kind));
	return 0;
}

int vm_saved_disk(const struct vm_saved *saved, unsigned number,
		  struct vm_saved_disk *disk)
{
	struct saved_disk_fields now = { 0 };
	const struct saved_disk_fields *d;

	if (number >= saved->ndisks)
		return -ENOENT;
	d = &saved->disk[number];
	*disk = (struct vm_saved_disk){ .frozen = d->frozen,
					.readonly = d->readonly };
	memcpy(disk->name, d->name, sizeof(disk->name));
	memcpy(disk->path, d->path, sizeof(disk->path));
	memcpy(disk->format, d->format, sizeof(disk->format));
	disk->as_it_was =
		!disk_look(d->path, &now) && now.file_size == d->file_size &&
		now.mtime_ns == d->mtime_ns && now.head_crc == d->head_crc;
	return 0;
}

int vm_saved_config(const struct vm_saved *saved, struct vm_config **cfg,
		    struct husk_error *err)
{
	const struct saved_entry *e = saved_find(saved, "config");
	int ret = vm_config_from_json(saved_data(saved, e), e->size, NULL, cfg,
				      err);

	if (ret)
		return ret;
	/* Which image a disk is may have changed since the start. */
	for (unsigned i = 0; !ret && i < saved->ndisks; i++)
		ret = vm_config_set_disk_path(*cfg, i, saved->disk[i].path,
					      saved->disk[i].format);
	if (!ret && (*cfg)->ndisks == saved->ndisks &&
	    (*cfg)->cpus == saved->machine.cpus &&
	    (*cfg)->memory == saved->machine.memory)
		return 0;
	vm_config_destroy(*cfg);
	*cfg = NULL;
	return saved_bad(err, "config", "another machine's");
}

int vm_saved_check(const struct vm_saved *saved, vm_save_progress *progress,
		   void *opaque, struct husk_error *err)
{
	uint8_t *buf;
	uint64_t done = 0;
	int ret = 0;

	if (saved->ram)
		return 0;
	buf = malloc(SAVED_UNIT);
	if (!buf)
		return error_errno(err, -ENOMEM, "saved machine");
	for (uint64_t i = 0; !ret && i < saved->nunits; i++) {
		if (saved->unit[i].size)
			ret = ram_read_unit(saved, i, buf);
		done += ram_unit_size(saved->h.ram_size, i);
		if (ret)
			saved_bad(err, "ram", "its memory has changed");
		else if (progress && !progress(opaque, done, saved->h.ram_size))
			ret = error_errno(err, -ECANCELED, "check");
	}
	free(buf);
	return ret;
}
