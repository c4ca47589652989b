/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hv.c - the public functions: argument checks, mappings, choice of an engine
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"
#include "hv/engine.h"

enum { PAGE = 4096, MAX_GSI = 1024, ALIGN = 64 };

static const struct hv_engine *const engines[] = {
	&hv_engine_kvm,
	&hv_engine_soft,
};

/* Sorted by gpa, never overlapping. */
struct hv_map {
	struct hv_map *next;
	uint64_t gpa, size;
	uint8_t *host;
	unsigned flags;
};

static void lock(struct hv_vm *vm)
{
	pthread_mutex_lock(vm->lock);
}

static void unlock(struct hv_vm *vm)
{
	pthread_mutex_unlock(vm->lock);
}

void hv_log(struct hv_vm *vm, enum hv_log_level level, const char *fmt, ...)
{
	int saved = errno;
	char text[256];
	va_list ap;

	if (vm->log) {
		va_start(ap, fmt);
		vsnprintf(text, sizeof(text), fmt, ap);
		va_end(ap);
		vm->log(vm->log_opaque, level, text);
	}
	errno = saved;
}

/* -- engines -------------------------------------------------------------- */

static const struct hv_engine *find_engine(const char *name, size_t len)
{
	for (unsigned i = 0; i < ARRAY_SIZE(engines); i++)
		if (strlen(engines[i]->name) == len &&
		    !memcmp(engines[i]->name, name, len))
			return engines[i];
	return NULL;
}

int hv_probe(const char *name, struct hv_caps *caps, struct husk_error *err)
{
	const struct hv_engine *e;
	struct hv_caps ignored;

	if (!name)
		return error_set(err, -EINVAL, "no engine named");
	e = find_engine(name, strlen(name));
	if (!e)
		return error_set(err, -ENOENT, "no engine \"%s\"", name);
	if (!caps)
		caps = &ignored;
	memset(caps, 0, sizeof(*caps));
	return e->probe(caps, err);
}

struct choice {
	const struct hv_engine *engine;
	struct hv_caps caps;
	char options[32], reason[160];
};

static int choose_auto(struct choice *ch, struct husk_error *err)
{
	struct husk_error why = { 0 };

	ch->engine = &hv_engine_kvm;
	if (!hv_probe("kvm", &ch->caps, &why)) {
		snprintf(ch->reason, sizeof(ch->reason), "/dev/kvm works");
		return 0;
	}
	snprintf(ch->reason, sizeof(ch->reason), "%.159s",
		 why.text[0] ? why.text : "kvm cannot be used");
	ch->engine = &hv_engine_soft;
	return hv_probe("soft", &ch->caps, err);
}

static int choose(struct choice *ch, const char *spec, struct husk_error *err)
{
	size_t len = strcspn(spec, ","), size;

	if (spec[len]) {
		size = strlen(spec + len + 1) + 1;
		if (size > sizeof(ch->options))
			return error_set(err, -EINVAL,
					 "engine options \"%s\" are too long",
					 spec + len + 1);
		memcpy(ch->options, spec + len + 1, size);
	}
	if (len == 4 && !memcmp(spec, "auto", 4)) {
		if (ch->options[0])
			return error_set(err, -EINVAL,
					 "engine auto takes no options");
		return choose_auto(ch, err);
	}
	ch->engine = find_engine(spec, len);
	if (!ch->engine)
		return error_set(err, -ENOENT, "no engine \"%.*s\"", (int)len,
				 spec);
	if (ch->options[0] &&
	    (ch->engine != &hv_engine_soft ||
	     (strcmp(ch->options, "interp") && strcmp(ch->options, "eager"))))
		return error_set(err, -EINVAL, "engine %s has no option \"%s\"",
				 ch->engine->name, ch->options);
	int ret = ch->engine->probe(&ch->caps, err);
	/* Asked for by name: it may not run a stock kernel, but it is there. */
	return ret == -ENOTSUP && ch->caps.needs_dev_kvm ? 0 : ret;
}

/* -- VMs ------------------------------------------------------------------ */

static bool known_model(const char *name)
{
	for (const char *const *m = hv_cpu_models(); *m; m++)
		if (!strcmp(*m, name))
			return true;
	return false;
}

/*
 * Engines keep vector state in their structs: more than calloc() aligns.  They
 * are megabytes that are zero without being touched, which memset() would do.
 */
static void *alloc_zeroed(size_t size)
{
	void *whole = calloc(1, size + ALIGN + sizeof(void *));
	uintptr_t at;

	if (!whole)
		return NULL;
	at = ALIGN_UP((uintptr_t)whole + sizeof(void *), (uintptr_t)ALIGN);
	((void **)at)[-1] = whole;
	return (void *)at;
}

static void free_zeroed(void *p)
{
	if (p)
		free(((void **)p)[-1]);
}

static void free_vm(struct hv_vm *vm)
{
	while (vm->maps) {
		struct hv_map *m = vm->maps;

		vm->maps = m->next;
		free(m);
	}
	if (vm->lock)
		pthread_mutex_destroy(vm->lock);
	free(vm->lock);
	free_zeroed(vm);
}

int hv_vm_create(const struct hv_config *cfg, struct hv_vm **out,
		 struct husk_error *err)
{
	static const struct hv_config defaults;
	struct choice ch = { .engine = &hv_engine_soft };
	const char *model;
	struct hv_vm *vm;
	uint32_t n;
	int rc;

	if (!out)
		return error_set(err, -EINVAL, "no place for the VM");
	*out = NULL;
	if (!cfg)
		cfg = &defaults;
	model = cfg->cpu ? cfg->cpu : "x86-64-v3";
	if (!known_model(model))
		return error_set(err, -EINVAL, "no CPU model \"%s\"", model);
	rc = choose(&ch, cfg->engine ? cfg->engine : "auto", err);
	if (rc)
		return rc;
	n = cfg->max_vcpus ? cfg->max_vcpus : 1;
	if (n > HV_MAX_VCPUS || n > ch.caps.max_vcpus)
		return error_set(
			err, -EINVAL, "%u vCPUs: engine %s has at most %u", n,
			ch.engine->name,
			MIN((uint32_t)HV_MAX_VCPUS, ch.caps.max_vcpus));

	vm = alloc_zeroed(ch.engine->vm_size);
	if (!vm)
		return error_errno(err, -ENOMEM, "VM");
	vm->lock = malloc(sizeof(pthread_mutex_t));
	if (!vm->lock) {
		free_vm(vm);
		return error_errno(err, -ENOMEM, "VM");
	}
	pthread_mutex_init(vm->lock, NULL);
	vm->engine = ch.engine;
	vm->caps = ch.caps;
	memcpy(vm->options, ch.options, sizeof(vm->options));
	memcpy(vm->reason, ch.reason, sizeof(vm->reason));
	snprintf(vm->cpu_model, sizeof(vm->cpu_model), "%s", model);
	vm->max_vcpus = n;
	vm->tsc_khz = cfg->tsc_khz;
	vm->log = cfg->log;
	vm->log_opaque = cfg->log_opaque;
	rc = vm->engine->vm_init(vm, err);
	if (rc) {
		free_vm(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

void hv_vm_destroy(struct hv_vm *vm)
{
	if (!vm)
		return;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++)
		hv_vcpu_destroy(vm->vcpu[i]);
	vm->engine->vm_finish(vm);
	free_vm(vm);
}

const char *hv_vm_engine(const struct hv_vm *vm)
{
	return vm->engine->name;
}

const char *hv_vm_reason(const struct hv_vm *vm)
{
	return vm->reason;
}

const struct hv_caps *hv_vm_caps(const struct hv_vm *vm)
{
	return &vm->caps;
}

uint32_t hv_vm_tsc_khz(const struct hv_vm *vm)
{
	return vm->tsc_khz;
}

/* -- memory --------------------------------------------------------------- */

static int check_range(struct hv_vm *vm, uint64_t gpa, uint64_t size)
{
	uint64_t end = BIT(vm->caps.phys_bits);

	if (!size || gpa % PAGE || size % PAGE)
		return -EINVAL;
	return size > end || gpa > end - size ? -ERANGE : 0;
}

static struct hv_map *new_map(uint64_t gpa, uint64_t size, uint8_t *host,
			      unsigned flags)
{
	struct hv_map *m = malloc(sizeof(*m));

	if (m)
		*m = (struct hv_map){ NULL, gpa, size, host, flags };
	return m;
}

/* All of the range is mapped, and with these flags at least. */
static bool is_mapped_locked(struct hv_vm *vm, uint64_t gpa, uint64_t size,
			     unsigned flags)
{
	for (struct hv_map *m = vm->maps; m && size; m = m->next) {
		uint64_t n;

		if (m->gpa + m->size <= gpa)
			continue;
		if (m->gpa > gpa || (m->flags & flags) != flags)
			return false;
		n = MIN(size, m->gpa + m->size - gpa);
		gpa += n;
		size -= n;
	}
	return !size;
}

/* Make at an edge between two mappings, if it lies inside one. */
static int split_locked(struct hv_vm *vm, uint64_t at)
{
	for (struct hv_map *m = vm->maps; m; m = m->next) {
		struct hv_map *rest;

		if (at <= m->gpa || at >= m->gpa + m->size)
			continue;
		rest = new_map(at, m->gpa + m->size - at,
			       m->host + (at - m->gpa), m->flags);
		if (!rest)
			return -ENOMEM;
		rest->next = m->next;
		m->next = rest;
		m->size = at - m->gpa;
		return 0;
	}
	return 0;
}

int hv_mem_map(struct hv_vm *vm, uint64_t gpa, uint64_t size, void *host,
	       unsigned flags)
{
	struct hv_map **at, *m;
	int rc = check_range(vm, gpa, size);

	if (rc)
		return rc;
	if (!host || (uintptr_t)host % PAGE ||
	    flags & ~(unsigned)(HV_MEM_READ | HV_MEM_WRITE | HV_MEM_LOG))
		return -EINVAL;
	m = new_map(gpa, size, host, flags | HV_MEM_READ);
	if (!m)
		return -ENOMEM;
	lock(vm);
	for (at = &vm->maps; *at; at = &(*at)->next)
		if ((*at)->gpa + (*at)->size > gpa)
			break;
	if (*at && (*at)->gpa < gpa + size)
		rc = -EEXIST;
	else
		rc = vm->engine->mem_map(vm, gpa, size, host, m->flags);
	if (!rc) {
		m->next = *at;
		*at = m;
		m = NULL;
	}
	unlock(vm);
	free(m);
	return rc;
}

int hv_mem_unmap(struct hv_vm *vm, uint64_t gpa, uint64_t size)
{
	int rc = check_range(vm, gpa, size);
	struct hv_map **at;

	if (rc)
		return rc;
	lock(vm);
	if (!is_mapped_locked(vm, gpa, size, 0))
		rc = -ENOENT;
	if (!rc)
		rc = split_locked(vm, gpa);
	if (!rc)
		rc = split_locked(vm, gpa + size);
	for (at = &vm->maps; *at && !rc;) {
		struct hv_map *m = *at;

		if (m->gpa < gpa || m->gpa >= gpa + size) {
			at = &m->next;
			continue;
		}
		rc = vm->engine->mem_unmap(vm, m->gpa, m->size);
		if (rc)
			break;
		*at = m->next;
		free(m);
	}
	unlock(vm);
	return rc;
}

int hv_mem_protect(struct hv_vm *vm, uint64_t gpa, uint64_t size,
		   unsigned flags)
{
	int rc = check_range(vm, gpa, size);

	if (rc)
		return rc;
	if (flags & ~(unsigned)(HV_MEM_READ | HV_MEM_WRITE | HV_MEM_LOG))
		return -EINVAL;
	flags |= HV_MEM_READ;
	lock(vm);
	if (!is_mapped_locked(vm, gpa, size, 0))
		rc = -ENOENT;
	if (!rc)
		rc = split_locked(vm, gpa);
	if (!rc)
		rc = split_locked(vm, gpa + size);
	for (struct hv_map *m = vm->maps; m && !rc; m = m->next) {
		if (m->gpa < gpa || m->gpa >= gpa + size || m->flags == flags)
			continue;
		rc = vm->engine->mem_protect(vm, m->gpa, m->size, flags);
		if (!rc)
			m->flags = flags;
	}
	unlock(vm);
	return rc;
}

/* The pages of m inside the range, whose first page is bit 0 of bits. */
static int fetch_piece_locked(struct hv_vm *vm, const struct hv_map *m,
			      uint64_t gpa, uint64_t size, uint64_t *bits)
{
	uint64_t from = MAX(m->gpa, gpa);
	uint64_t to = MIN(m->gpa + m->size, gpa + size);
	uint64_t first = (from - gpa) / PAGE, n = (to - from) / PAGE;
	uint64_t *piece = calloc((n + 63) / 64, sizeof(*piece));
	int rc;

	if (!piece)
		return -ENOMEM;
	rc = vm->engine->mem_fetch_dirty(vm, from, to - from, piece);
	for (uint64_t i = 0; i < n && !rc; i++)
		if (piece[i / 64] >> (i % 64) & 1)
			bits[(first + i) / 64] |= BIT((first + i) % 64);
	free(piece);
	return rc;
}

int hv_mem_fetch_dirty(struct hv_vm *vm, uint64_t gpa, uint64_t size,
		       uint64_t *bits)
{
	int rc = check_range(vm, gpa, size);

	if (rc)
		return rc;
	if (!bits)
		return -EINVAL;
	lock(vm);
	if (!is_mapped_locked(vm, gpa, size, 0))
		rc = -ENOENT;
	else if (!is_mapped_locked(vm, gpa, size, HV_MEM_LOG))
		rc = -EINVAL;
	if (!rc)
		memset(bits, 0, (size / PAGE + 63) / 64 * sizeof(*bits));
	for (struct hv_map *m = vm->maps; m && !rc; m = m->next) {
		if (m->gpa + m->size <= gpa || m->gpa >= gpa + size)
			continue;
		if (m->gpa <= gpa && m->gpa + m->size >= gpa + size)
			rc = vm->engine->mem_fetch_dirty(vm, gpa, size, bits);
		else
			rc = fetch_piece_locked(vm, m, gpa, size, bits);
	}
	unlock(vm);
	return rc;
}

void hv_mem_written(struct hv_vm *vm, uint64_t gpa, uint64_t size)
{
	if (size)
		vm->engine->mem_written(vm, gpa, size);
}

/* -- vCPUs ---------------------------------------------------------------- */

int hv_vcpu_create(struct hv_vm *vm, uint32_t id, struct hv_vcpu **out,
		   struct husk_error *err)
{
	struct hv_vcpu *cpu;
	int rc;

	*out = NULL;
	if (id >= vm->max_vcpus)
		return error_set(err, -EINVAL, "vCPU %u: the VM has %u", id,
				 vm->max_vcpus);
	cpu = alloc_zeroed(vm->engine->vcpu_size);
	if (!cpu)
		return error_errno(err, -ENOMEM, "vCPU %u", id);
	cpu->vm = vm;
	cpu->id = id;
	lock(vm);
	if (vm->vcpu[id])
		rc = error_set(err, -EEXIST, "vCPU %u exists", id);
	else
		rc = vm->engine->vcpu_init(cpu, err);
	if (!rc)
		vm->vcpu[id] = cpu;
	unlock(vm);
	if (rc) {
		free_zeroed(cpu);
		return rc;
	}
	*out = cpu;
	return 0;
}

void hv_vcpu_destroy(struct hv_vcpu *cpu)
{
	struct hv_vm *vm;

	if (!cpu)
		return;
	vm = cpu->vm;
	lock(vm);
	vm->vcpu[cpu->id] = NULL;
	vm->engine->vcpu_finish(cpu);
	unlock(vm);
	free_zeroed(cpu);
}

uint32_t hv_vcpu_id(const struct hv_vcpu *cpu)
{
	return cpu->id;
}

int hv_vcpu_run(struct hv_vcpu *cpu, struct hv_exit *exit)
{
	if (!cpu->first_ns)
		atomic_store(&cpu->first_ns, loop_now());
	return cpu->vm->engine->run(cpu, exit);
}

void hv_vcpu_kick(struct hv_vcpu *cpu)
{
	cpu->vm->engine->kick(cpu);
}

int hv_vcpu_complete(struct hv_vcpu *cpu, struct hv_exit *exit)
{
	return cpu->vm->engine->complete(cpu, exit);
}

int hv_vcpu_get(struct hv_vcpu *cpu, unsigned groups, struct hv_state *state)
{
	if (!state || groups & ~(unsigned)HV_STATE_ALL)
		return -EINVAL;
	return cpu->vm->engine->get(cpu, groups, state);
}

int hv_vcpu_set(struct hv_vcpu *cpu, unsigned groups,
		const struct hv_state *state)
{
	if (!state || groups & ~(unsigned)HV_STATE_ALL)
		return -EINVAL;
	if ((groups & HV_STATE_MSR) && state->nmsrs > HV_MAX_MSRS)
		return -EINVAL;
	return cpu->vm->engine->set(cpu, groups, state);
}

int hv_vcpu_cpuid(struct hv_vcpu *cpu, uint32_t leaf, uint32_t subleaf,
		  struct hv_cpuid *out)
{
	return out ? cpu->vm->engine->cpuid(cpu, leaf, subleaf, out) : -EINVAL;
}

int hv_vcpu_debug(struct hv_vcpu *cpu, unsigned flags)
{
	if (flags & ~(unsigned)(HV_DEBUG_STEP | HV_DEBUG_BP | HV_DEBUG_DB))
		return -EINVAL;
	if (flags && !cpu->vm->caps.debug)
		return -ENOTSUP;
	return cpu->vm->engine->debug(cpu, flags);
}

int hv_vcpu_stats(struct hv_vcpu *cpu, struct hv_stats *stats)
{
	int ret;

	if (!stats)
		return -EINVAL;
	memset(stats, 0, sizeof(*stats));
	ret = cpu->vm->engine->stats(cpu, stats);
	stats->first_ns = atomic_load(&cpu->first_ns);
	return ret;
}

/* -- interrupts, doorbells, clock ----------------------------------------- */

int hv_msi(struct hv_vm *vm, uint64_t addr, uint32_t data)
{
	if ((uint32_t)addr >> 20 != 0xfee)
		return -EINVAL;
	return vm->engine->msi(vm, addr, data);
}

int hv_route(struct hv_vm *vm, uint32_t gsi, uint64_t addr, uint32_t data)
{
	if (gsi >= MAX_GSI || (addr && (uint32_t)addr >> 20 != 0xfee))
		return -EINVAL;
	return vm->engine->route(vm, gsi, addr, data);
}

int hv_irqfd(struct hv_vm *vm, uint32_t gsi, int fd)
{
	if (gsi >= MAX_GSI || fd < -1)
		return -EINVAL;
	if (!vm->caps.irqfd)
		return -ENOTSUP;
	return vm->engine->irqfd(vm, gsi, fd);
}

int hv_vcpu_inject(struct hv_vcpu *cpu, uint8_t vector)
{
	return cpu->vm->engine->inject(cpu, vector);
}

bool hv_vcpu_ready(struct hv_vcpu *cpu)
{
	return cpu->vm->engine->ready(cpu);
}

void hv_vcpu_want_window(struct hv_vcpu *cpu, bool want)
{
	cpu->vm->engine->want_window(cpu, want);
}

int hv_vcpu_nmi(struct hv_vcpu *cpu)
{
	return cpu->vm->engine->nmi(cpu);
}

static int check_doorbell(struct hv_vm *vm, const struct hv_doorbell *db,
			  int fd)
{
	if (!vm->caps.doorbell)
		return -ENOTSUP;
	if (!db || fd < 0 || (db->size & (db->size - 1)) || db->size > 8)
		return -EINVAL;
	if (db->space == HV_SPACE_PIO)
		return db->size > 4 || db->addr > 0xffff ? -EINVAL : 0;
	return db->space == HV_SPACE_MMIO ? 0 : -EINVAL;
}

int hv_doorbell_add(struct hv_vm *vm, const struct hv_doorbell *db, int fd)
{
	int rc = check_doorbell(vm, db, fd);

	return rc ? rc : vm->engine->doorbell(vm, db, fd, true);
}

int hv_doorbell_del(struct hv_vm *vm, const struct hv_doorbell *db, int fd)
{
	int rc = check_doorbell(vm, db, fd);

	return rc ? rc : vm->engine->doorbell(vm, db, fd, false);
}

int hv_clock_get(struct hv_vm *vm, uint64_t *ns)
{
	return ns ? vm->engine->clock_get(vm, ns) : -EINVAL;
}

int hv_clock_set(struct hv_vm *vm, uint64_t ns)
{
	return vm->engine->clock_set(vm, ns);
}

int hv_time_stop(struct hv_vm *vm)
{
	return vm->engine->time_stop(vm);
}

int hv_time_start(struct hv_vm *vm)
{
	return vm->engine->time_start(vm);
}

int hv_time_skip(struct hv_vm *vm, uint64_t ns)
{
	return vm->engine->time_skip(vm, ns);
}
