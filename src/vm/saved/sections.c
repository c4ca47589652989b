/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sections.c - what a machine is but for its memory
 *
 * Of a machine that is paused; for a file (save.c) or another process (fork.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/crc32c.h"
#include "vm/saved/saved.h"

static int add(struct sections *s, const char *name, const char *kind,
	       unsigned version, const void *data, size_t len)
{
	struct section *c = &s->section[s->n];

	if (s->n == SAVED_MAX_SECTIONS)
		return -E2BIG;
	c->data = malloc(len + 1);
	if (!c->data)
		return -ENOMEM;
	if (len)
		memcpy(c->data, data, len);
	snprintf(c->e.name, sizeof(c->e.name), "%s", name);
	snprintf(c->e.kind, sizeof(c->e.kind), "%s", kind);
	c->e.version = version;
	c->e.size = len;
	s->n++;
	return 0;
}

/* Takes w away. */
static int add_state(struct sections *s, const char *name, const char *kind,
		     unsigned version, struct state *w)
{
	const void *data;
	size_t len;
	int ret;

	if (!w)
		return -ENOMEM;
	ret = state_finish(w);
	data = state_data(w, &len);
	if (!ret)
		ret = add(s, name, kind, version, data, len);
	state_free(w);
	return ret;
}

static int add_machine(struct sections *s)
{
	struct vm *vm = s->vm;
	struct saved_machine m = {
		.cpus = vm->ncpus,
		.tsc_khz = hv_vm_tsc_khz(vm->hv),
		.memory = vm->mem.size,
		.now = machine_now(vm),
	};
	struct state *w = state_writer(1);
	int ret = hv_clock_get(vm->hv, &m.clock);

	m.saved_at = time_stood_since(vm);
	snprintf(m.engine, sizeof(m.engine), "%s", hv_vm_engine(vm->hv));
	snprintf(m.cpu_model, sizeof(m.cpu_model), "x86-64-v3");
	if (!ret && getrandom(m.id, sizeof(m.id), 0) != sizeof(m.id))
		ret = -EIO;
	if (!ret && w)
		machine_fields(w, &m);
	if (!ret)
		return add_state(s, "machine", "machine", 1, w);
	state_free(w);
	return ret;
}

static int add_cpus(struct sections *s)
{
	struct hv_state *h = aligned_alloc(64, ALIGN_UP(sizeof(*h), 64));
	struct saved_cpuid id;
	struct state *w = state_writer(1);
	int ret = h && w ? 0 : -ENOMEM;

	if (!ret) {
		if (s->vm->cpuid)
			id = *s->vm->cpuid;
		else
			cpuid_take(s->vm->cpu[0].hv, &id);
		cpuid_fields(w, &id);
		ret = add_state(s, "cpuid", "cpuid", 1, w);
	} else {
		state_free(w);
	}
	for (unsigned i = 0; !ret && i < s->vm->ncpus; i++) {
		char name[16];

		memset(h, 0, sizeof(*h));
		ret = hv_vcpu_get(s->vm->cpu[i].hv, HV_STATE_ALL, h);
		if (ret)
			break;
		snprintf(name, sizeof(name), "cpu%u", i);
		w = state_writer(1);
		if (w)
			cpu_fields(w, h);
		ret = add_state(s, name, "cpu", 1, w);
	}
	free(h);
	return ret;
}

/* In the order of their creation: the list has the last one first. */
static int add_devices(struct sections *s, struct dev *d)
{
	struct state *w;
	int ret;

	if (!d)
		return 0;
	ret = add_devices(s, d->next);
	if (ret || !d->class->state)
		return ret;
	w = state_writer(d->class->version);
	if (w) {
		pthread_mutex_lock(&d->lock);
		d->class->state(d, w);
		pthread_mutex_unlock(&d->lock);
	}
	return add_state(s, d->id, d->class->name, d->class->version, w);
}

/* What the images are called now; what is in them is said later. */
void sections_name_disks(struct sections *s, bool frozen)
{
	struct vm *vm = s->vm;

	for (unsigned i = 0; i < vm->nblocks; i++) {
		struct saved_disk_fields *d = &s->disk[i];

		snprintf(d->name, sizeof(d->name), "disk%u", i);
		snprintf(d->path, sizeof(d->path), "%s", vm->disk[i].path);
		snprintf(d->format, sizeof(d->format), "%s",
			 vm->block[i]->ops->name);
		d->readonly = vm->block[i]->readonly;
		d->frozen = frozen || d->readonly;
	}
}

static int add_disks(struct sections *s)
{
	struct state *w = state_writer(1);
	uint32_t n = s->vm->nblocks;
	int ret = w ? 0 : -ENOMEM;

	if (!ret)
		state_u32(w, "disks", &n);
	for (unsigned i = 0; !ret && i < n; i++) {
		ret = disk_look(s->disk[i].path, &s->disk[i]);
		disk_fields(w, &s->disk[i]);
	}
	if (!ret)
		return add_state(s, "disks", "disks", 1, w);
	state_free(w);
	return ret;
}

/* -- together ------------------------------------------------------------- */

uint64_t sections_end(const struct sections *s)
{
	uint64_t at =
		sizeof(struct saved_header) + s->n * sizeof(struct saved_entry);

	for (unsigned i = 0; i < s->n; i++)
		at = ALIGN_UP(at, 8) + s->section[i].e.size;
	return ALIGN_UP(at, SAVED_PAGE);
}

uint8_t *sections_join(struct sections *s, struct saved_header *h)
{
	uint64_t at = sizeof(*h) + s->n * sizeof(struct saved_entry);
	uint8_t *meta = calloc(1, sections_end(s)), *table;

	if (!meta)
		return NULL;
	table = meta + sizeof(*h);
	for (unsigned i = 0; i < s->n; i++) {
		struct section *c = &s->section[i];

		at = ALIGN_UP(at, 8);
		c->e.at = at;
		c->e.crc = crc32c(0, c->data, c->e.size);
		memcpy(meta + at, c->data, c->e.size);
		memcpy(table + i * sizeof(c->e), &c->e, sizeof(c->e));
		at += c->e.size;
	}
	memcpy(h->magic, SAVED_MAGIC, sizeof(h->magic));
	h->version = SAVED_VERSION;
	h->nsections = s->n;
	h->ram_at = sections_end(s);
	h->ram_size = s->vm->mem.size;
	h->table_crc = crc32c(0, table, s->n * sizeof(struct saved_entry));
	h->crc = 0;
	h->crc = crc32c(0, h, sizeof(*h));
	memcpy(meta, h, sizeof(*h));
	return meta;
}

/* The table of the memory, empty: its size is known. */
static int add_memory(struct sections *s)
{
	uint64_t size = ram_units(s->vm->mem.size) * sizeof(struct saved_unit);
	uint8_t *none = calloc(1, size);
	int ret = none ? add(s, "ram", "ram", 1, none, size) : -ENOMEM;

	free(none);
	return ret;
}

int sections_collect(struct sections *s)
{
	int ret = add(s, "config", "json", 1, s->vm->json, strlen(s->vm->json));

	if (!ret)
		ret = add_machine(s);
	if (!ret)
		ret = add_disks(s);
	if (!ret)
		ret = add_cpus(s);
	if (!ret)
		ret = add_devices(s, s->vm->devs);
	if (!ret)
		ret = add_memory(s);
	return ret || sections_end(s) <= SAVED_MAX_META ? ret : -E2BIG;
}

void sections_finish(struct sections *s)
{
	for (unsigned i = 0; i < s->n; i++)
		free(s->section[i].data);
}
