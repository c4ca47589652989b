/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pc.c - the board: which parts it has, at which address, on which wire
 *
 * Interrupt line n of the ISA side goes to input n of the PICs and to pin n
 * of the IOAPIC, except line 0 (PIT), whose pin is 2.
 */
#include "vm/board/board.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "net/link.h"
#include "vm/block.h"
#include "vm/chips.h"
#include "vm/fs/fs.h"
#include "vm/pci.h"
#include "vm/virtio.h"

static void isa_set(void *sink, unsigned line, bool level)
{
	struct vm *vm = sink;
	struct irq pic = pic_irq(vm->pic, line);
	struct irq ioapic = ioapic_irq(vm->ioapic, line ? line : 2);

	irq_set(&pic, level);
	irq_set(&ioapic, level);
}

static struct irq isa(struct vm *vm, unsigned line)
{
	return (struct irq){ isa_set, vm, line };
}

static void route(void *sink, unsigned pin, uint64_t addr, uint32_t data)
{
	struct vm *vm = sink;

	hv_route(vm->hv, pin, addr, data);
}

static bool serial_output(void *sink, const void *data, size_t len)
{
	struct vm *vm = sink;

	return end_force(vm->serial_end, data, len);
}

static void serial_room(void *sink)
{
	struct vm *vm = sink;

	uart_ready(vm->uart);
}

static struct dev *add(struct vm *vm, const struct dev_class *class,
		       const char *id, const void *arg, struct husk_error *err)
{
	struct dev *d = dev_create(class, id, &vm->env, arg, err);

	if (d) {
		d->next = vm->devs;
		vm->devs = d;
	}
	return d;
}

/* After add() has failed. */
static int add_failed(const struct husk_error *err)
{
	return err && err->code ? err->code : -ENOMEM;
}

static int add_disks(struct vm *vm, const struct vm_config *cfg,
		     struct husk_error *err)
{
	for (unsigned i = 0; i < cfg->ndisks; i++) {
		const struct disk_config *d = &cfg->disk[i];
		struct block_config block = disk_block_config(d);
		struct virtio_blk_arg arg = {
			.serial = d->serial,
			.queues = d->queues ? d->queues : MIN(cfg->cpus, 8),
			.hold_full = d->pause_if_full,
		};
		char id[16];

		arg.block = block_open_config(&block, err);
		if (!arg.block)
			return err && err->code ? err->code : -EIO;
		vm->block[vm->nblocks++] = arg.block;
		snprintf(id, sizeof(id), "disk%u", i);
		if (!add(vm, &virtio_blk_class.dev, id, &arg, err))
			return add_failed(err);
	}
	return 0;
}

static void link_log(void *sink, const char *text)
{
	struct vm *vm = sink;

	if (vm->log)
		vm->log(vm->log_opaque, text);
}

static int add_nets(struct vm *vm, const struct vm_config *cfg,
		    struct husk_error *err)
{
	for (unsigned i = 0; i < cfg->nnets; i++) {
		const struct net_config *n = &cfg->net[i];
		struct link_config link = {
			.kind = n->kind,
			.where = n->where,
			.fd = n->fd,
			.listen = n->listen,
			.vfkit = n->vfkit,
			.isolated = n->isolated,
			.no_loopback = n->no_loopback,
			.mtu = n->mtu,
			.forwards = (const char *const *)n->forward,
			.nforwards = n->nforwards,
			.loop = vm->loop,
			.log = link_log,
			.sink = vm,
		};
		struct virtio_net_arg arg = { .pairs = n->pairs };
		char id[16];
		int ret = link_open(&link, &vm->link[i], err);

		if (ret)
			return ret;
		vm->nnets++;
		arg.link = vm->link[i];
		memcpy(arg.mac, n->mac, 6);
		snprintf(id, sizeof(id), "net%u", i);
		vm->nic[i] = add(vm, &virtio_net_class.dev, id, &arg, err);
		if (!vm->nic[i])
			return add_failed(err);
	}
	return 0;
}

static int add_shares(struct vm *vm, const struct vm_config *cfg,
		      struct husk_error *err)
{
	for (unsigned i = 0; i < cfg->nshares; i++) {
		const struct share_config *sh = &cfg->share[i];
		struct fs_config fs = {
			.path = sh->dir,
			.readonly = sh->readonly,
			.owner = sh->owner,
			.uid = sh->uid,
			.gid = sh->gid,
			.cache = sh->cache,
			.guest_locks = sh->guest_locks,
		};
		struct virtio_fs_arg arg = {
			.tag = sh->tag,
			.config = &fs,
			.queues = cfg->cpus,
		};
		char id[16];

		snprintf(id, sizeof(id), "fs%u", i);
		vm->share[i] = add(vm, &virtio_fs_class.dev, id, &arg, err);
		if (!vm->share[i])
			return add_failed(err);
		snprintf(vm->share_tag[i], sizeof(vm->share_tag[i]), "%s",
			 sh->tag);
		vm->nshares++;
	}
	return 0;
}

static int add_vsock(struct vm *vm, const struct vsock_config *v,
		     struct husk_error *err)
{
	struct virtio_vsock_port ports[MAX_VSOCK_PORTS];
	struct virtio_vsock_arg arg = {
		.cid = v->cid,
		.path = v->path,
		.ports = ports,
		.nports = v->nports,
	};

	for (unsigned i = 0; i < v->nports; i++)
		ports[i] = (struct virtio_vsock_port){ v->port[i].port,
						       v->port[i].path,
						       v->port[i].to_guest };
	vm->vsock = add(vm, &virtio_vsock_class.dev, "vsock0", &arg, err);
	return vm->vsock ? 0 : add_failed(err);
}

static int add_balloon(struct vm *vm, const struct vm_config *cfg,
		       struct husk_error *err)
{
	const struct balloon_config *b = &cfg->balloon;
	struct virtio_balloon_arg arg = {
		.memory = vm->mem.size,
		.target = b->target ? b->target : vm->mem.size,
		.reporting = b->reporting,
		.hinting = b->hinting,
		.oom = b->oom,
	};

	vm->balloon = add(vm, &virtio_balloon_class.dev, "balloon0", &arg, err);
	return vm->balloon ? 0 : add_failed(err);
}

static void end_log(void *sink, const char *text)
{
	struct vm *vm = sink;

	if (vm->log)
		vm->log(vm->log_opaque, text);
}

static struct end *open_end(struct vm *vm, const struct vm_config *cfg,
			    const struct serial_config *s, enum vm_port port,
			    struct husk_error *err)
{
	struct end_config c = {
		.kind = s ? s->kind : END_CALL,
		.path = s ? s->path : NULL,
		.output = cfg->port[port].output,
		.opaque = cfg->port[port].opaque,
		.loop = vm->loop,
		.log = end_log,
		.sink = vm,
	};

	return end_open(&c, err);
}

/*
 * Port 0 is hvc0: the first one without a name that is given, or the
 * program's.
 */
static int add_console(struct vm *vm, const struct vm_config *cfg,
		       struct husk_error *err)
{
	const struct serial_config *list[MAX_SERIALS + 1] = { NULL };
	struct virtio_console_arg arg = { .nports = 1 };

	for (unsigned i = 0; i < cfg->nserials; i++) {
		const struct serial_config *s = &cfg->serial[i];

		if (!s->name && !list[0])
			list[0] = s;
		else
			list[arg.nports++] = s;
	}
	for (unsigned i = 0; i < arg.nports; i++) {
		vm->end[i] = open_end(vm, cfg, list[i], VM_CONSOLE, err);
		if (!vm->end[i])
			return add_failed(err);
		vm->nends++;
		arg.port[i].end = vm->end[i];
		arg.port[i].name = list[i] ? list[i]->name : NULL;
		arg.port[i].console = !arg.port[i].name;
	}
	vm->console = add(vm, &virtio_console_class.dev, "console0", &arg, err);
	if (!vm->console)
		return add_failed(err);
	virtio_console_on_room(vm->console, cfg->port[VM_CONSOLE].room,
			       cfg->port[VM_CONSOLE].room_opaque);
	return 0;
}

static int add_virtio(struct vm *vm, const struct vm_config *cfg,
		      struct husk_error *err)
{
	char id[16];
	int ret;

	ret = add_console(vm, cfg, err);
	if (ret)
		return ret;
	for (unsigned i = 0; i < 1 + cfg->nrngs; i++) {
		snprintf(id, sizeof(id), "rng%u", i);
		if (!add(vm, &virtio_rng_class.dev, id, NULL, err))
			return add_failed(err);
	}
	ret = add_disks(vm, cfg, err);
	if (!ret)
		ret = add_nets(vm, cfg, err);
	if (!ret)
		ret = add_shares(vm, cfg, err);
	if (!ret && cfg->vsock.on)
		ret = add_vsock(vm, &cfg->vsock, err);
	if (!ret && !cfg->balloon.off)
		ret = add_balloon(vm, cfg, err);
	return ret;
}

/* The parts list. */
int pc_build(struct vm *vm, const struct vm_config *cfg, struct husk_error *err)
{
	struct ioapic_arg ioapic = { route, vm };
	struct irq irq0 = isa(vm, 0), sci = isa(vm, ACPI_SCI);
	struct uart_arg uart = { isa(vm, 4), 0x3f8, serial_output, vm };
	struct rtc_arg rtc = { isa(vm, 8), vm->mem.low,
			       vm->mem.size - vm->mem.low };
	struct hpet_arg hpet = { .legacy0 = isa(vm, 0), .legacy8 = isa(vm, 8) };
	struct testdev_arg testdev;
	struct vmgenid_arg genid;
	uint32_t ncpus = cfg->cpus;
	uint64_t ram = vm->mem.size;
	struct dev *host;

	vm->pic = add(vm, &i8259_class, "pic", NULL, err);
	vm->ioapic = add(vm, &ioapic_class, "ioapic", &ioapic, err);
	if (!vm->pic || !vm->ioapic)
		goto err;
	pic_on_output(vm->pic, run_pic_output, vm);
	for (unsigned n = 0; n < 24; n++)
		hpet.irq[n] = testdev.irq[n] = ioapic_irq(vm->ioapic, n);

	if (!add(vm, &i8254_class, "pit", &irq0, err) ||
	    !add(vm, &mc146818_class, "rtc", &rtc, err) ||
	    !add(vm, &hpet_class, "hpet", &hpet, err) ||
	    !add(vm, &i8042_class, "i8042", NULL, err))
		goto err;
	vm->pm = add(vm, &acpi_pm_class, "pm", &sci, err);
	vm->serial_end = open_end(vm, cfg, NULL, VM_SERIAL, err);
	if (!vm->serial_end)
		goto err;
	vm->uart = add(vm, &uart16550_class, "com1", &uart, err);
	vm->fw_cfg = add(vm, &fw_cfg_class, "fw_cfg", NULL, err);
	if (!vm->pm || !vm->uart || !vm->fw_cfg)
		goto err;
	genid.changed = acpi_pm_gpe(vm->pm, VMGENID_GPE);
	memcpy(genid.id, cfg->generation, sizeof(genid.id));
	vm->vmgenid = add(vm, &vmgenid_class, "vmgenid", &genid, err);
	if (!vm->vmgenid || !add(vm, &pvpanic_class, "pvpanic", NULL, err))
		goto err;
	end_attach(vm->serial_end,
		   &(struct end_user){ .room = serial_room, .sink = vm });
	uart_on_room(vm->uart, cfg->port[VM_SERIAL].room,
		     cfg->port[VM_SERIAL].room_opaque);
	fw_cfg_add(vm->fw_cfg, 5, &ncpus, 2);
	fw_cfg_add(vm->fw_cfg, 3, &ram, 8);
	fw_cfg_add(vm->fw_cfg, 0xf, &ncpus, 2);
	if (cfg->debug_exit &&
	    !add(vm, &debug_exit_class, "debug-exit", NULL, err))
		goto err;
	if (cfg->testdev && !add(vm, &testdev_class, "testdev", &testdev, err))
		goto err;

	host = add(vm, &pci_host_class, "pci", NULL, err);
	if (!host)
		goto err;
	vm->env.pci = pci_host_bus(host);
	return add_virtio(vm, cfg, err);
err:
	return add_failed(err);
}

void pc_close(struct vm *vm)
{
	end_close(vm->serial_end);
	while (vm->nends)
		end_close(vm->end[--vm->nends]);
	while (vm->nblocks)
		block_close(vm->block[--vm->nblocks]);
	while (vm->nnets)
		link_close(vm->link[--vm->nnets]);
}
