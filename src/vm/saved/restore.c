/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore.c - a machine is made of a file
 *
 * The file has been checked by open.c.  The machine is built of the same parts
 * as a new one, but for the firmware; then its devices and vCPUs get their
 * state and say whether they can go on with it, and only a machine that has
 * taken everything is handed out.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vm/chips.h"
#include "vm/saved/saved.h"

struct restorer {
	const struct vm_saved *saved;
	struct vm *vm;
	const struct vm_restore_options *options;
	struct husk_error *err;
};

/* -- devices -------------------------------------------------------------- */

static bool of_a_device(const struct saved_entry *e)
{
	static const char *const others[] = { "json",  "machine", "cpuid",
					      "disks", "cpu",	  "ram" };

	for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
		if (!strcmp(e->kind, others[i]))
			return false;
	return true;
}

static struct dev *find_device(struct vm *vm, const char *id)
{
	for (struct dev *d = vm->devs; d; d = d->next)
		if (!strcmp(d->id, id))
			return d;
	return NULL;
}

/* Neither side has a device that the other one lacks. */
static int match_devices(struct restorer *r)
{
	for (unsigned i = 0; i < r->saved->h.nsections; i++) {
		const struct saved_entry *e = &r->saved->entry[i];
		struct dev *d = find_device(r->vm, e->name);

		if (!of_a_device(e))
			continue;
		if (!d)
			return error_set(r->err, -EINVAL,
					 "the saved machine has a device %s, "
					 "and this configuration has none",
					 e->name);
		if (strcmp(d->class->name, e->kind))
			return saved_bad(r->err, e->name, "another device's");
		if (!e->version || e->version > d->class->version)
			return error_set(r->err, -ENOTSUP,
					 "device %s is in format %u, of a "
					 "newer Husk",
					 e->name, e->version);
	}
	for (struct dev *d = r->vm->devs; d; d = d->next) {
		const struct saved_entry *e = saved_find(r->saved, d->id);

		if (d->class->state && (!e || !of_a_device(e)))
			return error_set(r->err, -EINVAL,
					 "the configuration has a device %s, "
					 "which the saved machine lacks",
					 d->id);
	}
	return 0;
}

static int load_device(struct restorer *r, struct dev *d)
{
	const struct saved_entry *e = saved_find(r->saved, d->id);
	struct state *s;
	int ret;

	if (!d->class->state)
		return 0;
	s = state_reader(saved_data(r->saved, e), e->size, e->version);
	if (!s)
		return error_errno(r->err, -ENOMEM, "device %s", d->id);
	pthread_mutex_lock(&d->lock);
	d->class->state(d, s);
	ret = state_finish(s);
	if (ret)
		saved_bad(r->err, d->id, state_why(s));
	else if (d->class->check && d->class->check(d))
		ret = saved_bad(r->err, d->id,
				"its device cannot go on with this");
	pthread_mutex_unlock(&d->lock);
	state_free(s);
	return ret;
}

/* In the order of their creation. */
static int load_devices(struct restorer *r, struct dev *d)
{
	int ret = d ? load_devices(r, d->next) : 0;

	return ret || !d ? ret : load_device(r, d);
}

/* -- vCPUs ---------------------------------------------------------------- */

/* Which part of the state it is that the engine does not take. */
static int refused(struct restorer *r, unsigned i, struct hv_state *h)
{
	static const char *const groups[] = {
		"registers", "segments", "debug registers", "FPU",
		"MSRs",	     "APIC",	 "events"
	};
	struct hv_vcpu *cpu = r->vm->cpu[i].hv;
	const char *engine = hv_vm_engine(r->vm->hv);
	struct hv_msr_value all[HV_MAX_MSRS];
	uint32_t n = h->nmsrs;

	memcpy(all, h->msr, sizeof(all));
	h->nmsrs = 1;
	for (uint32_t k = 0; k < n; k++) {
		h->msr[0] = all[k];
		if (hv_vcpu_set(cpu, HV_STATE_MSR, h))
			return error_set(r->err, -EINVAL,
					 "engine %s cannot go on with MSR %x "
					 "of CPU %u, which is %llx",
					 engine, all[k].index, i,
					 (unsigned long long)all[k].value);
	}
	for (unsigned g = 0; g < ARRAY_SIZE(groups); g++)
		if (BIT(g) != HV_STATE_MSR && hv_vcpu_set(cpu, BIT(g), h))
			return error_set(r->err, -EINVAL,
					 "engine %s cannot go on with the %s "
					 "of CPU %u",
					 engine, groups[g], i);
	return error_set(r->err, -EINVAL,
			 "engine %s cannot go on with the state of CPU %u",
			 engine, i);
}

static int load_cpu(struct restorer *r, unsigned i, struct hv_state *h)
{
	const struct saved_entry *e;
	struct state *s;
	char name[16];
	int ret;

	snprintf(name, sizeof(name), "cpu%u", i);
	e = saved_find(r->saved, name);
	s = state_reader(saved_data(r->saved, e), e->size, e->version);
	if (!s)
		return error_errno(r->err, -ENOMEM, "CPU %u", i);
	memset(h, 0, sizeof(*h));
	cpu_fields(s, h);
	ret = state_finish(s);
	if (ret)
		saved_bad(r->err, name, state_why(s));
	state_free(s);
	if (ret)
		return ret;
	ret = hv_vcpu_set(r->vm->cpu[i].hv, HV_STATE_ALL, h);
	return ret ? refused(r, i, h) : 0;
}

static int load_cpus(struct restorer *r)
{
	struct hv_state *h = aligned_alloc(64, ALIGN_UP(sizeof(*h), 64));
	int ret = 0;

	if (!h)
		return error_errno(r->err, -ENOMEM, "CPUs");
	for (unsigned i = 0; !ret && i < r->vm->ncpus; i++)
		ret = load_cpu(r, i, h);
	free(h);
	return ret;
}

/* -- together ------------------------------------------------------------- */

static int check_disks(struct restorer *r)
{
	struct vm_saved_disk *d = malloc(sizeof(*d));
	int ret = 0;

	if (!d)
		return error_errno(r->err, -ENOMEM, "disks");
	for (unsigned i = 0; !ret && !vm_saved_disk(r->saved, i, d); i++)
		if (!d->as_it_was && !r->options->force)
			ret = error_set(r->err, -ESTALE,
					"%s has changed since the machine was "
					"saved: its memory and its disk do not "
					"agree",
					d->path);
	free(d);
	return ret;
}

static int check_processor(struct restorer *r)
{
	struct saved_cpuid now;

	cpuid_take(r->vm->cpu[0].hv, &now);
	return cpuid_compare(&r->saved->cpuid, &now, r->err);
}

static int load(struct restorer *r)
{
	struct vm *vm = r->vm;
	int ret = check_processor(r);

	if (!ret)
		ret = match_devices(r);
	if (!ret && !r->saved->ram)
		ret = ram_map(r->saved, &vm->mem, r->options->preload, r->err);
	if (!ret)
		ret = pause_locked(vm, r->err);
	if (ret)
		return ret;
	time_set(vm, r->saved->machine.now, r->saved->machine.saved_at);
	ret = hv_clock_set(vm->hv, r->saved->machine.clock);
	if (ret)
		return error_errno(r->err, ret, "clock of the machine");
	ret = load_devices(r, vm->devs);
	if (!ret)
		ret = load_cpus(r);
	if (ret)
		return ret;
	/* An engine that has more is not what the guest has seen. */
	vm->cpuid = malloc(sizeof(*vm->cpuid));
	if (!vm->cpuid)
		return error_errno(r->err, -ENOMEM, "saved machine");
	*vm->cpuid = r->saved->cpuid;
	hv_vcpu_want_window(vm->cpu[0].hv, pic_output(vm->pic));
	/* It may not be the only one of this file. */
	ret = vm_generation_id_new(vm);
	if (ret)
		return error_errno(r->err, ret, "generation ID");
	vm->resume_at_start = true;
	return 0;
}

int vm_restore(const struct vm_saved *saved, struct vm_config *cfg,
	       const struct vm_restore_options *options, struct vm **vm,
	       struct husk_error *err)
{
	static const struct vm_restore_options defaults;
	struct restorer r = {
		.saved = saved,
		.options = options ? options : &defaults,
		.err = err,
	};
	struct disk_overlays overlays = { 0 };
	int ret;

	*vm = NULL;
	if (cfg->cpus != saved->machine.cpus ||
	    cfg->memory != saved->machine.memory)
		return error_set(err, -EINVAL,
				 "the saved machine has %u CPUs and %llu MiB, "
				 "which cannot change",
				 saved->machine.cpus,
				 (unsigned long long)(saved->machine.memory >>
						      20));
	ret = check_disks(&r);
	if (!ret)
		ret = disks_restore(saved, cfg, r.options->disks, &overlays,
				    err);
	if (!ret)
		ret = machine_create(cfg, saved->machine.tsc_khz, saved->ram,
				     &r.vm, err);
	if (!ret)
		ret = load(&r);
	if (ret) {
		vm_destroy(r.vm);
		disks_unrestore(saved, cfg, &overlays);
		return ret;
	}
	disks_keep(&overlays);
	*vm = r.vm;
	return 0;
}
