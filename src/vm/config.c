/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.c - what a machine shall be: plain data and its checks
 */
#include "vm/machine.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

enum { MIN_MEMORY = 2 << 20 };
#define MAX_MEMORY (1ull << 40)

struct vm_config *vm_config_create(void)
{
	struct vm_config *cfg = calloc(1, sizeof(*cfg));

	if (!cfg)
		return NULL;
	cfg->cpus = 1;
	cfg->memory = 256ull << 20;
	cfg->gap = VM_GAP;
	/* Without random numbers there are no copies to tell apart either. */
	if (getrandom(cfg->generation, sizeof(cfg->generation), 0) < 0)
		memset(cfg->generation, 0, sizeof(cfg->generation));
	cfg->balloon = (struct balloon_config){
		.reporting = true,
		.hinting = true,
		.oom = true,
	};
	return cfg;
}

void vm_config_destroy(struct vm_config *cfg)
{
	if (!cfg)
		return;
	for (unsigned i = 0; i < cfg->ndisks; i++)
		disk_config_finish(&cfg->disk[i]);
	for (unsigned i = 0; i < cfg->nnets; i++)
		net_config_finish(&cfg->net[i]);
	for (unsigned i = 0; i < cfg->nserials; i++)
		serial_config_finish(&cfg->serial[i]);
	for (unsigned i = 0; i < cfg->nshares; i++)
		share_config_finish(&cfg->share[i]);
	vsock_config_finish(&cfg->vsock);
	config_json_finish(cfg);
	free(cfg->kernel);
	free(cfg->initrd);
	free(cfg->cmdline);
	free(cfg->engine);
	free(cfg);
}

static int set_string(char **to, const char *value)
{
	char *copy = NULL;

	if (value) {
		copy = strdup(value);
		if (!copy)
			return -ENOMEM;
	}
	free(*to);
	*to = copy;
	return 0;
}

int vm_config_set_kernel(struct vm_config *cfg, const char *path)
{
	return set_string(&cfg->kernel, path);
}

int vm_config_set_initrd(struct vm_config *cfg, const char *path)
{
	return set_string(&cfg->initrd, path);
}

int vm_config_set_cmdline(struct vm_config *cfg, const char *cmdline)
{
	return set_string(&cfg->cmdline, cmdline);
}

int vm_config_set_engine(struct vm_config *cfg, const char *engine)
{
	return set_string(&cfg->engine, engine);
}

void vm_config_set_cpus(struct vm_config *cfg, unsigned cpus)
{
	cfg->cpus = cpus;
}

void vm_config_set_memory(struct vm_config *cfg, uint64_t bytes)
{
	cfg->memory = bytes;
}

const char *vm_config_kernel(const struct vm_config *cfg)
{
	return cfg->kernel;
}

const char *vm_config_initrd(const struct vm_config *cfg)
{
	return cfg->initrd;
}

const char *vm_config_cmdline(const struct vm_config *cfg)
{
	return cfg->cmdline;
}

const char *vm_config_engine(const struct vm_config *cfg)
{
	return cfg->engine ? cfg->engine : "auto";
}

unsigned vm_config_cpus(const struct vm_config *cfg)
{
	return cfg->cpus;
}

uint64_t vm_config_memory(const struct vm_config *cfg)
{
	return cfg->memory;
}

void vm_get_limits(struct vm_limits *limits)
{
	*limits = (struct vm_limits){
		.cpus = VM_MAX_CPUS,
		.disks = MAX_DISKS,
		.networks = MAX_NETS,
		.forwards = MAX_FORWARDS,
		.memory_min = MIN_MEMORY,
		.memory_max = MAX_MEMORY,
	};
}

void vm_config_set_reboot(struct vm_config *cfg, enum vm_reboot reboot)
{
	cfg->reboot = reboot;
}

void vm_config_set_panic(struct vm_config *cfg, enum vm_panic panic)
{
	cfg->panic = panic;
}

int vm_config_set_gap(struct vm_config *cfg, unsigned seconds)
{
	if (seconds > VM_MAX_GAP)
		return -ERANGE;
	cfg->gap = seconds;
	return 0;
}

unsigned vm_config_gap(const struct vm_config *cfg)
{
	return cfg->gap;
}

void vm_config_set_generation_id(struct vm_config *cfg, const uint8_t id[16])
{
	memcpy(cfg->generation, id, sizeof(cfg->generation));
	cfg->has_generation = true;
}

void vm_config_set_guest_event(struct vm_config *cfg,
			       void (*event)(void *opaque,
					     enum vm_guest_event event),
			       void *opaque)
{
	cfg->guest_event = event;
	cfg->guest_opaque = opaque;
}

void vm_config_set_on_enospc(struct vm_config *cfg, enum vm_on_enospc what)
{
	for (unsigned i = 0; i < cfg->ndisks; i++)
		cfg->disk[i].pause_if_full = what == VM_ON_ENOSPC_PAUSE;
}

void vm_config_set_no_space(struct vm_config *cfg, vm_no_space *no_space,
			    void *opaque)
{
	cfg->no_space = no_space;
	cfg->no_space_opaque = opaque;
}

void vm_config_set_output(struct vm_config *cfg, enum vm_port port,
			  vm_output *output, void *opaque)
{
	if ((unsigned)port >= VM_PORTS)
		return;
	cfg->port[port].output = output;
	cfg->port[port].opaque = opaque;
}

void vm_config_set_room(struct vm_config *cfg, enum vm_port port,
			void (*room)(void *opaque), void *opaque)
{
	if ((unsigned)port >= VM_PORTS)
		return;
	cfg->port[port].room = room;
	cfg->port[port].room_opaque = opaque;
}

void vm_config_set_log(struct vm_config *cfg,
		       void (*log)(void *opaque, const char *text),
		       void *opaque)
{
	cfg->log = log;
	cfg->log_opaque = opaque;
}

void vm_config_set_stopped(struct vm_config *cfg, void (*stopped)(void *opaque),
			   void *opaque)
{
	cfg->stopped = stopped;
	cfg->stopped_opaque = opaque;
}

void vm_config_set_news(struct vm_config *cfg, void (*news)(void *opaque),
			void *opaque)
{
	cfg->news = news;
	cfg->news_opaque = opaque;
}

/* -- devices -------------------------------------------------------------- */

/* "debug-exit" and its like have no options. */
static int add_plain(struct vm_config *cfg, const char *kind, const char *spec,
		     struct husk_error *err)
{
	if (!strcmp(kind, "debug-exit") || !strcmp(kind, "isa-debug-exit"))
		cfg->debug_exit = true;
	else if (!strcmp(kind, "pc-testdev"))
		cfg->testdev = true;
	else if (!strcmp(kind, "virtio-rng") && cfg->nrngs < MAX_DEVICES)
		cfg->nrngs++;
	else if (!strcmp(kind, "virtio-rng"))
		return error_set(err, -E2BIG, "device %s: too many", spec);
	else
		return error_set(
			err, -EINVAL,
			"device %s: unknown kind; "
			"there are debug-exit, pc-testdev, "
			"virtio-balloon, virtio-blk, virtio-fs, virtio-net, "
			"virtio-rng, virtio-serial and virtio-vsock",
			spec);
	return 0;
}

/* Those that are in a list of their own need not be remembered. */
static const struct {
	const char *kind;
	int (*add)(struct vm_config *cfg, char *options, const char *spec,
		   struct husk_error *err);
	bool listed;
} with_options[] = {
	{ "virtio-blk", config_add_virtio_blk, true },
	{ "virtio-net", config_add_virtio_net, true },
	{ "virtio-fs", config_add_virtio_fs, true },
	{ "virtio-vsock", config_add_virtio_vsock, false },
	{ "virtio-serial", config_add_virtio_serial, false },
	{ "virtio-balloon", config_add_virtio_balloon, false },
};

static int add_kind(struct vm_config *cfg, const char *kind, char *options,
		    const char *spec, bool *listed, struct husk_error *err)
{
	for (unsigned i = 0; i < ARRAY_SIZE(with_options); i++) {
		if (strcmp(kind, with_options[i].kind) != 0)
			continue;
		*listed = with_options[i].listed;
		return with_options[i].add(cfg, options, spec, err);
	}
	if (*options)
		return error_set(err, -EINVAL, "device %s: %s has no options",
				 spec, kind);
	return add_plain(cfg, kind, spec, err);
}

int vm_config_add_device(struct vm_config *cfg, const char *spec,
			 struct husk_error *err)
{
	char *kind = strdup(spec), *options;
	bool listed = false;
	int ret;

	if (!kind)
		return error_errno(err, -ENOMEM, "device %s", spec);
	options = kind + strcspn(kind, ",");
	if (*options)
		*options++ = 0;
	ret = add_kind(cfg, kind, options, spec, &listed, err);
	if (!ret && !listed && config_remember(cfg, "devices", spec))
		ret = error_errno(err, -ENOMEM, "device %s", spec);
	free(kind);
	return ret;
}

/* -- validation ----------------------------------------------------------- */

struct problems {
	void (*f)(void *opaque, const char *text);
	void *opaque;
	unsigned n;
};

static void problem(struct problems *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void problem(struct problems *p, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	p->n++;
	if (p->f)
		p->f(p->opaque, text);
}

static void check_file(struct problems *p, const char *what, const char *path,
		       bool disk)
{
	struct stat st;

	if (stat(path, &st) < 0) {
		problem(p, "%s %s: %s", what, path, strerror(errno));
		return;
	}
	if (S_ISDIR(st.st_mode))
		problem(p, "%s %s: is a directory; a file is needed", what,
			path);
	else if (!disk && !S_ISREG(st.st_mode))
		problem(p, "%s %s: is not a regular file", what, path);
	else if (disk && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		problem(p, "%s %s: is neither a file nor a block device", what,
			path);
	else if (S_ISREG(st.st_mode) && st.st_size == 0)
		problem(p, "%s %s: is empty%s", what, path,
			disk ? "; give it a size with truncate -s 20G" : "");
	else if (access(path, R_OK) < 0)
		problem(p, "%s %s: %s", what, path, strerror(errno));
}

static void check_disk(struct problems *p, const struct vm_config *cfg,
		       unsigned i)
{
	const struct disk_config *d = &cfg->disk[i], *o;
	struct stat st, other;

	check_file(p, "disk", d->path, true);
	if (d->base)
		check_file(p, "base", d->base, true);
	if (stat(d->path, &st))
		return;
	if (!d->readonly && !access(d->path, R_OK) && access(d->path, W_OK))
		problem(p, "disk %s: %s; give it readonly to read it only",
			d->path, strerror(errno));
	for (o = cfg->disk; o < d; o++)
		if (!(d->readonly && o->readonly) && !stat(o->path, &other) &&
		    st.st_dev == other.st_dev && st.st_ino == other.st_ino)
			problem(p, "disk %s: is disk %s once more", d->path,
				o->path);
}

/* The host's side of "[ADDRESS:]HOST:GUEST[/udp]". */
static bool same_forward(const char *a, const char *b)
{
	size_t n = (size_t)(strrchr(a, ':') - a);

	return n == (size_t)(strrchr(b, ':') - b) && !strncmp(a, b, n) &&
	       !strchr(a, '/') == !strchr(b, '/');
}

static void check_forwards(struct problems *p, const struct vm_config *cfg)
{
	const char *all[MAX_NETS * MAX_FORWARDS];
	unsigned n = 0;

	for (unsigned i = 0; i < cfg->nnets; i++)
		for (unsigned k = 0; k < cfg->net[i].nforwards; k++)
			all[n++] = cfg->net[i].forward[k];
	for (unsigned i = 1; i < n; i++)
		for (unsigned k = 0; k < i; k++)
			if (same_forward(all[i], all[k]))
				problem(p,
					"forward %s: the host's port is that "
					"of %s",
					all[i], all[k]);
}

static void check_nets(struct problems *p, const struct vm_config *cfg)
{
	for (unsigned i = 1; i < cfg->nnets; i++)
		for (unsigned k = 0; k < i; k++)
			if (!memcmp(cfg->net[i].mac, cfg->net[k].mac, 6))
				problem(p,
					"network %u: has the MAC address of "
					"network %u",
					i, k);
	check_forwards(p, cfg);
}

/* Something that will be made, a socket or a file. */
static void check_place(struct problems *p, const char *what, const char *path,
			bool socket)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];
	struct stat st;

	if (socket &&
	    strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		problem(p, "%s %s: too long for the name of a socket", what,
			path);
	if (!slash || slash == path)
		return;
	snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	if (stat(dir, &st))
		problem(p, "%s %s: %s: %s", what, path, dir, strerror(errno));
	else if (!S_ISDIR(st.st_mode))
		problem(p, "%s %s: %s is not a directory", what, path, dir);
}

static void check_ports(struct problems *p, const struct vm_config *cfg)
{
	for (unsigned i = 0; i < cfg->nserials; i++)
		if (cfg->serial[i].path)
			check_place(p, "virtio-serial", cfg->serial[i].path,
				    cfg->serial[i].kind != END_FILE);
	if (cfg->vsock.path)
		check_place(p, "vsock", cfg->vsock.path, true);
	for (unsigned i = 0; i < cfg->vsock.nports; i++)
		check_place(p, "vsock", cfg->vsock.port[i].path, true);
}

static void check_shares(struct problems *p, const struct vm_config *cfg)
{
	struct stat st;

	for (unsigned i = 0; i < cfg->nshares; i++) {
		const struct share_config *sh = &cfg->share[i];

		if (!sh->dir)
			continue;
		if (stat(sh->dir, &st) < 0)
			problem(p, "share %s: %s", sh->dir, strerror(errno));
		else if (!S_ISDIR(st.st_mode))
			problem(p, "share %s: is not a directory", sh->dir);
	}
}

/* RAM is given as it is touched, so more than there is may well work. */
enum { MAX_OVERCOMMIT = 4 };

static void check_memory(struct problems *p, uint64_t size)
{
	struct sysinfo host;
	uint64_t have;

	if (size < MIN_MEMORY)
		problem(p, "memory: at least 2 MiB are needed");
	else if (size > MAX_MEMORY)
		problem(p, "memory: at most 1 TiB is possible");
	else if (size & 0xfff)
		problem(p, "memory: must be a multiple of 4096 bytes");
	if (size < MIN_MEMORY || size > MAX_MEMORY || sysinfo(&host))
		return;
	have = ((uint64_t)host.totalram + host.totalswap) * host.mem_unit;
	if (size / MAX_OVERCOMMIT > have)
		problem(p,
			"memory: %llu MiB, and this host has %llu; give less",
			(unsigned long long)(size >> 20),
			(unsigned long long)(have >> 20));
}

unsigned vm_config_validate(const struct vm_config *cfg,
			    void (*f)(void *opaque, const char *text),
			    void *opaque)
{
	static const char *const engines[] = {
		"auto",
		"kvm",
		"soft",
		"soft,interp",
	};
	struct problems p = { f, opaque, 0 };
	bool known = !cfg->engine;

	for (unsigned i = 0; i < ARRAY_SIZE(engines) && !known; i++)
		known = !strcmp(cfg->engine, engines[i]);
	if (!known)
		problem(&p,
			"engine %s: unknown; there are auto, kvm, soft "
			"and soft,interp",
			cfg->engine);
	if (cfg->cpus < 1 || cfg->cpus > VM_MAX_CPUS)
		problem(&p, "%u CPUs: 1 to %d are possible", cfg->cpus,
			VM_MAX_CPUS);
	check_memory(&p, cfg->memory);
	if (cfg->balloon.target > cfg->memory)
		problem(&p, "balloon: the target is more than the memory");
	if (!cfg->kernel)
		problem(&p, "a kernel is needed");
	else
		check_file(&p, "kernel", cfg->kernel, false);
	if (cfg->initrd)
		check_file(&p, "initrd", cfg->initrd, false);
	for (unsigned i = 0; i < cfg->ndisks; i++)
		check_disk(&p, cfg, i);
	check_nets(&p, cfg);
	check_shares(&p, cfg);
	check_ports(&p, cfg);
	return p.n;
}
