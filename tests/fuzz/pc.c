/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pc.c - a whole machine that never runs, for fuzz targets to poke
 */
#include "fuzz/pc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vm/chips.h"

/* The smallest Multiboot kernel: an ELF header, one segment and the magic. */
static int stub_kernel(void)
{
	uint8_t k[512] = { 0x7f, 'E', 'L', 'F', 1, 1, 1 };
	static const uint32_t multiboot[] = { 0x1badb002, 0, -0x1badb002u };
	int fd = memfd_create("stub", 0);

	k[16] = 2;    /* executable */
	k[18] = 3;    /* i386 */
	k[20] = 1;    /* version */
	k[26] = 0x10; /* entry 0x100000 */
	k[28] = 52;   /* program headers */
	k[40] = 52;   /* size of this header */
	k[42] = 32;
	k[44] = 1;
	k[52] = 1;	   /* PT_LOAD */
	k[52 + 10] = 0x10; /* vaddr */
	k[52 + 14] = 0x10; /* paddr */
	k[52 + 17] = 2;	   /* file size 512 */
	k[52 + 21] = 2;	   /* memory size 512 */
	memcpy(k + 128, multiboot, sizeof(multiboot));
	if (fd < 0 || write(fd, k, sizeof(k)) != sizeof(k))
		abort();
	return fd;
}

struct vm *pc_create(void)
{
	static struct vm_config *cfg;
	struct husk_error err = { 0 };
	struct vm *vm;

	if (!cfg) {
		char path[64];
		int disk = memfd_create("disk", 0);

		cfg = vm_config_create();
		if (!cfg || disk < 0 || ftruncate(disk, 65536))
			abort();
		snprintf(path, sizeof(path), "/proc/self/fd/%d", stub_kernel());
		vm_config_set_kernel(cfg, path);
		vm_config_set_engine(cfg, "soft");
		vm_config_set_memory(cfg, 4 << 20);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", disk);
		if (vm_config_add_disk(cfg, path, false) ||
		    vm_config_add_device(cfg, "pc-testdev", &err) ||
		    vm_config_add_device(cfg, "virtio-vsock", &err) ||
		    vm_config_add_device(cfg, "debug-exit", &err) ||
		    vm_config_add_net(cfg, "null,queues=4", &err))
			abort();
	}
	if (vm_create(cfg, &vm, &err)) {
		fprintf(stderr, "pc_create: %s\n", err.text);
		abort();
	}
	return vm;
}

void pc_access(struct vm *vm, struct input *in)
{
	static const uint16_t ports[] = {
		0x20,  0x40,  0x60,  0x70,  0x92,   0xa0,  0xf4,
		0x3f8, 0x4d0, 0x505, 0x510, 0x514,  0x600, 0x604,
		0x608, 0xcf8, 0xcfc, 0xe0,  0x2000,
	};
	static const uint64_t bases[] = {
		(uint32_t)IOAPIC_BASE,		(uint32_t)HPET_BASE,
		(uint32_t)HPET_BASE + 0x100,	(uint32_t)ECAM_BASE,
		(uint32_t)ECAM_BASE + 0x8000,	(uint32_t)ECAM_BASE + 0x10000,
		(uint32_t)ECAM_BASE + 0x18000,	(uint32_t)MMIO32_BASE,
		(uint32_t)MMIO32_BASE + 0x4000, (uint32_t)MMIO32_BASE + 0x8000,
		(uint32_t)MMIO32_BASE + 0xc000, BIT(32),
	};
	uint8_t op = (uint8_t)take(in, 1), where = (uint8_t)take(in, 1);
	unsigned size = 1u << (op >> 1 & 3);
	uint64_t value = 0, addr;

	switch (op >> 3 & 3) {
	case 0: /* near a known port */
		addr = ports[where % (sizeof(ports) / sizeof(ports[0]))];
		addr = (addr + take(in, 1) % 16) & 0xffff;
		break;
	case 1: addr = take(in, 2); break;
	case 2: /* near a known register bank */
		addr = bases[where % (sizeof(bases) / sizeof(bases[0]))];
		addr += take(in, 2) % 0x4000;
		break;
	default: addr = take(in, 5); break;
	}
	if ((op >> 3 & 3) < 2) {
		size = size == 8 ? 4 : size;
		if (op & 1)
			bus_write(vm->pio, addr, size, take(in, size));
		else
			bus_read(vm->pio, addr, size, &value);
	} else if (op & 1) {
		bus_write(vm->mmio, addr, size, take(in, size));
	} else {
		bus_read(vm->mmio, addr, size, &value);
	}
}
