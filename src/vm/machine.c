/* SPDX-License-Identifier: Apache-2.0 */
/*
 * machine.c - a machine from its configuration to its end
 */
#include "vm/machine.h"

#include <string.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/board/board.h"
#include "vm/chips.h"
#include "vm/firmware/firmware.h"
#include "vm/virtio.h"

/* -- the environment of the devices --------------------------------------- */

static void send_msi(void *sink, uint64_t addr, uint32_t data)
{
	struct vm *vm = sink;

	hv_msi(vm->hv, addr, data);
}

static int set_doorbell(void *sink, uint64_t gpa, unsigned size, int fd,
			bool on)
{
	struct hv_doorbell db = { .space = HV_SPACE_MMIO,
				  .addr = gpa,
				  .size = (uint8_t)size };
	struct vm *vm = sink;

	return on ? hv_doorbell_add(vm->hv, &db, fd)
		  : hv_doorbell_del(vm->hv, &db, fd);
}

static void panicked(struct vm *vm, int arg)
{
	bool loaded = arg == GUEST_CRASH_LOADED;

	machine_news(vm, NULL, VM_NEWS_GUEST,
		     loaded ? VM_GUEST_CRASH_LOADED : VM_GUEST_PANICKED);
	if (vm->guest_event)
		vm->guest_event(vm->guest_opaque, loaded ? VM_GUEST_CRASH_LOADED
							 : VM_GUEST_PANICKED);
	if (!loaded && vm->panic == VM_PANIC_STOP)
		run_end(vm, VM_STOP_PANICKED, 0, "its kernel has panicked");
}

static void request(void *sink, enum machine_request what, int arg)
{
	struct vm *vm = sink;

	switch (what) {
	case REQUEST_POWEROFF: run_end(vm, VM_STOP_POWEROFF, 0, NULL); break;
	case REQUEST_RESET: run_end(vm, VM_STOP_RESET, 0, NULL); break;
	case REQUEST_EXIT: run_end(vm, VM_STOP_EXIT, arg, NULL); break;
	case REQUEST_PANIC: panicked(vm, arg); break;
	case REQUEST_NO_SPACE: space_ask(vm); break;
	}
}

static void device_log(void *sink, const char *id, const char *text)
{
	struct vm *vm = sink;
	char line[300];

	if (!vm->log)
		return;
	snprintf(line, sizeof(line), "%s: %s", id, text);
	vm->log(vm->log_opaque, line);
}

static void engine_log(void *opaque, enum hv_log_level level, const char *text)
{
	struct vm *vm = opaque;

	if (vm->log && level <= HV_LOG_WARN)
		vm->log(vm->log_opaque, text);
}

static int env_init(struct vm *vm)
{
	int ret = loop_create(&vm->loop);

	if (ret)
		return ret;
	vm->mmio = bus_create("mmio");
	vm->pio = bus_create("ports");
	if (!vm->mmio || !vm->pio)
		return -ENOMEM;
	vm->env = (struct dev_env){
		.mmio = vm->mmio,
		.pio = vm->pio,
		.loop = vm->loop,
		.mem = &vm->mem,
		.msi = { send_msi, vm },
		.doorbell = { set_doorbell, vm },
		.request = request,
		.log = device_log,
		.news = machine_news,
		.now = machine_now,
		/* There it is a return from a function. */
		.cheap_exits = !strcmp(hv_vm_engine(vm->hv), "soft"),
		.sink = vm,
	};
	return 0;
}

/* -- create and destroy --------------------------------------------------- */

static int add_vcpus(struct vm *vm, unsigned n, struct husk_error *err)
{
	for (unsigned i = 0; i < n; i++) {
		int ret = hv_vcpu_create(vm->hv, i, &vm->cpu[i].hv, err);

		if (ret)
			return ret;
		vm->cpu[i].vm = vm;
		vm->ncpus++;
	}
	return 0;
}

/* tsc_khz: that of a saved machine, whose memory has its firmware; else 0. */
static int build(struct vm *vm, const struct vm_config *cfg, uint32_t tsc_khz,
		 struct saved_ram *ram, struct husk_error *err)
{
	struct hv_config hv = {
		.engine = cfg->engine,
		.max_vcpus = cfg->cpus,
		.tsc_khz = tsc_khz,
		.log = engine_log,
		.log_opaque = vm,
	};
	uint64_t rsdp;
	int ret;

	ret = hv_vm_create(&hv, &vm->hv, err);
	if (ret)
		return ret;
	ret = mem_init(&vm->mem, vm->hv, cfg->memory, ram, err);
	if (ret)
		return ret;
	ret = env_init(vm);
	if (ret)
		return error_errno(err, ret, "machine");
	if (tsc_khz)
		mem_start_small(&vm->mem, vm->loop);
	else
		mem_use_large(&vm->mem);
	ret = add_vcpus(vm, cfg->cpus, err);
	if (ret)
		return ret;
	ret = pc_build(vm, cfg, err);
	if (ret || tsc_khz)
		return ret;
	ret = acpi_build(&vm->mem, cfg->cpus, &rsdp);
	if (ret)
		return error_errno(err, ret, "ACPI tables");
	return firmware_load(vm, cfg, rsdp, err);
}

/* NULL: no memory. */
static char *absolute_json(const struct vm_config *cfg)
{
	char *json = vm_config_to_json(cfg, NULL), *dir = getcwd(NULL, 0);
	struct vm_config *absolute = NULL;
	struct husk_error ignored = { 0 };

	/* Read as lying here, its paths become whole ones. */
	if (json && dir &&
	    !vm_config_from_json(json, strlen(json), dir, &absolute,
				 &ignored)) {
		free(json);
		json = vm_config_to_json(absolute, NULL);
		vm_config_destroy(absolute);
	}
	free(dir);
	return json;
}

/* What a save needs to know of the configuration, which may be gone then. */
static int remember(struct vm *vm, const struct vm_config *cfg)
{
	vm->json = absolute_json(cfg);
	if (!vm->json)
		return -ENOMEM;
	for (unsigned i = 0; i < cfg->ndisks; i++) {
		char *path = realpath(cfg->disk[i].path, NULL);

		/* A file of no folder, such as one in memory. */
		if (!path)
			path = strdup(cfg->disk[i].path);
		if (!path)
			return -ENOMEM;
		if (disk_config_copy(&vm->disk[i], &cfg->disk[i])) {
			free(path);
			return -ENOMEM;
		}
		free(vm->disk[i].path);
		vm->disk[i].path = path;
	}
	return 0;
}

int vm_create(const struct vm_config *cfg, struct vm **out,
	      struct husk_error *err)
{
	return machine_create(cfg, 0, NULL, out, err);
}

int machine_create(const struct vm_config *cfg, uint32_t tsc_khz,
		   struct saved_ram *ram, struct vm **out,
		   struct husk_error *err)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	pthread_condattr_t attr;
	int ret;

	*out = NULL;
	if (!vm)
		return error_set(err, -ENOMEM, "out of memory");
	pthread_mutex_init(&vm->life, NULL);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->parked_change, NULL);
	pthread_cond_init(&vm->go, NULL);
	pthread_cond_init(&vm->space, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&vm->ended, &attr);
	pthread_condattr_destroy(&attr);
	vm->log = cfg->log;
	vm->log_opaque = cfg->log_opaque;
	vm->panic = cfg->panic;
	vm->gap_ns = cfg->gap * 1000000000ull;
	vm->guest_event = cfg->guest_event;
	vm->guest_opaque = cfg->guest_opaque;
	vm->stopped = cfg->stopped;
	vm->stopped_opaque = cfg->stopped_opaque;
	vm->no_space = cfg->no_space;
	vm->no_space_opaque = cfg->no_space_opaque;
	vm->again = cfg->reboot == VM_REBOOT_AGAIN;
	vm->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->news.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->news.call = cfg->news;
	vm->news.opaque = cfg->news_opaque;
	pthread_mutex_init(&vm->news.lock, NULL);
	ret = vm->event_fd < 0 || vm->news.fd < 0
		      ? error_errno(err, -errno, "eventfd")
		      : build(vm, cfg, tsc_khz, ram, err);
	if (!ret) {
		ret = remember(vm, cfg);
		if (ret)
			error_errno(err, ret, "configuration");
	}
	if (!ret)
		ret = space_init(vm, err);
	if (ret) {
		vm_destroy(vm);
		return ret;
	}
	*out = vm;
	return 0;
}

void vm_destroy(struct vm *vm)
{
	if (!vm)
		return;
	vm_stop(vm);
	space_finish(vm);
	if (vm->serial_end)
		end_attach(vm->serial_end, NULL);
	if (vm->loop)
		loop_stop(vm->loop);
	while (vm->devs) {
		struct dev *d = vm->devs;

		vm->devs = d->next;
		dev_destroy(d);
	}
	pc_close(vm);
	for (unsigned i = 0; i < vm->ncpus; i++)
		hv_vcpu_destroy(vm->cpu[i].hv);
	hv_vm_destroy(vm->hv);
	mem_finish(&vm->mem);
	bus_destroy(vm->mmio);
	bus_destroy(vm->pio);
	loop_destroy(vm->loop);
	if (vm->event_fd >= 0)
		close(vm->event_fd);
	if (vm->news.fd >= 0)
		close(vm->news.fd);
	pthread_mutex_destroy(&vm->news.lock);
	pthread_cond_destroy(&vm->ended);
	pthread_cond_destroy(&vm->parked_change);
	pthread_cond_destroy(&vm->go);
	pthread_cond_destroy(&vm->space);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->life);
	for (unsigned i = 0; i < MAX_DISKS; i++)
		disk_config_finish(&vm->disk[i]);
	free(vm->json);
	free(vm->cpuid);
	free(vm);
}

/* -- life ----------------------------------------------------------------- */

static int start(struct vm *vm, struct husk_error *err)
{
	int ret;

	if (vm->has_started)
		return error_set(err, -EALREADY, "the machine has started");
	vm->has_started = true;
	/* Of a machine that is paused the loop starts when it goes on. */
	ret = atomic_load(&vm->paused) ? 0 : loop_start(vm->loop);
	if (ret) {
		run_failed(vm, "cannot start a thread");
		return error_errno(err, ret, "event loop");
	}
	ret = run_start(vm, err);
	if (!ret && vm->resume_at_start) {
		ret = resume_locked(vm, err);
		if (ret)
			run_failed(vm, "cannot start a thread");
	}
	return ret;
}

int vm_start(struct vm *vm, struct husk_error *err)
{
	int ret;

	pthread_mutex_lock(&vm->life);
	ret = start(vm, err);
	pthread_mutex_unlock(&vm->life);
	return ret;
}

void vm_stop(struct vm *vm)
{
	if (!vm->has_started)
		return;
	run_end(vm, VM_STOP_STOPPED, 0, NULL);
	end_cut(vm->serial_end);
	end_cut(vm->end[0]);
	run_join(vm);
}

int vm_disk_grow(struct vm *vm, unsigned disk, uint64_t size,
		 struct husk_error *err)
{
	char id[16];

	snprintf(id, sizeof(id), "disk%u", disk);
	for (struct dev *d = vm->devs; d; d = d->next)
		if (!strcmp(d->id, id))
			return virtio_blk_resize(d, size, err);
	return error_set(err, -ENOENT, "there is no disk %u", disk);
}

int vm_share_set(struct vm *vm, const char *tag, const char *dir,
		 struct husk_error *err)
{
	for (unsigned i = 0; i < vm->nshares; i++)
		if (!strcmp(vm->share_tag[i], tag))
			return virtio_fs_swap(vm->share[i], dir, err);
	return error_set(err, -ENOENT, "there is no share %s", tag);
}

int vm_get_device(const struct vm *vm, unsigned index, struct vm_device *device)
{
	unsigned n = 0;

	/* The list begins with the last. */
	for (struct dev *d = vm->devs; d; d = d->next)
		n++;
	if (index >= n)
		return -ENOENT;
	for (struct dev *d = vm->devs; d; d = d->next) {
		if (--n != index)
			continue;
		snprintf(device->id, sizeof(device->id), "%s", d->id);
		snprintf(device->kind, sizeof(device->kind), "%s",
			 d->class->name);
	}
	return 0;
}

void vm_power_button(struct vm *vm)
{
	acpi_pm_power_button(vm->pm);
}

void vm_generation_id_set(struct vm *vm, const uint8_t id[16])
{
	vmgenid_set(vm->vmgenid, id);
}

int vm_generation_id_new(struct vm *vm)
{
	uint8_t id[VMGENID_SIZE];

	if (getrandom(id, sizeof(id), 0) != sizeof(id))
		return -EIO;
	vmgenid_set(vm->vmgenid, id);
	return 0;
}

void vm_generation_id(struct vm *vm, uint8_t id[16])
{
	vmgenid_get(vm->vmgenid, id);
}

int vm_balloon_set_target(struct vm *vm, uint64_t bytes)
{
	return vm->balloon ? virtio_balloon_set_target(vm->balloon, bytes)
			   : -ENODEV;
}

int vm_balloon_stats(struct vm *vm, int timeout_ms,
		     struct vm_balloon_stats *stats)
{
	return vm->balloon
		       ? virtio_balloon_stats(vm->balloon, timeout_ms, stats)
		       : -ENODEV;
}

unsigned vm_net_count(const struct vm *vm)
{
	return vm->nnets;
}

int vm_net_set_link(struct vm *vm, unsigned index, bool up)
{
	if (index >= vm->nnets)
		return -ENODEV;
	virtio_net_set_link(vm->nic[index], up);
	return 0;
}

const char *vm_engine(const struct vm *vm)
{
	return hv_vm_engine(vm->hv);
}

const char *vm_engine_reason(const struct vm *vm)
{
	return hv_vm_reason(vm->hv);
}

int vm_event_fd(const struct vm *vm)
{
	return vm->event_fd;
}

int vm_next_event(struct vm *vm, struct vm_stopped *event)
{
	int ret;

	pthread_mutex_lock(&vm->lock);
	ret = vm->has_stopped;
	if (ret)
		*event = vm->result;
	pthread_mutex_unlock(&vm->lock);
	return ret;
}

int vm_wait(struct vm *vm, int timeout_ms, struct vm_stopped *event)
{
	struct timespec ts;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	if (timeout_ms > 0) {
		ts.tv_sec += timeout_ms / 1000;
		ts.tv_nsec += timeout_ms % 1000 * 1000000l;
		if (ts.tv_nsec >= 1000000000) {
			ts.tv_nsec -= 1000000000;
			ts.tv_sec++;
		}
	}
	pthread_mutex_lock(&vm->lock);
	while (!vm->has_stopped && !ret)
		ret = timeout_ms < 0 ? pthread_cond_wait(&vm->ended, &vm->lock)
				     : pthread_cond_timedwait(&vm->ended,
							      &vm->lock, &ts);
	if (vm->has_stopped) {
		ret = 0;
		*event = vm->result;
	}
	pthread_mutex_unlock(&vm->lock);
	return -ret;
}

void vm_console_resize(struct vm *vm, uint16_t columns, uint16_t rows)
{
	virtio_console_resize(vm->console, columns, rows);
}

size_t vm_console_write(struct vm *vm, enum vm_port port, const void *data,
			size_t len)
{
	if (port == VM_SERIAL)
		return uart_input(vm->uart, data, len);
	return vm->console ? virtio_console_input(vm->console, data, len) : 0;
}
