/* SPDX-License-Identifier: Apache-2.0 */
/*
 * firmware.h - loading a kernel the way a boot loader would
 *
 * Low memory as the loaders leave it:
 *   00400  BIOS data area       01000  GDT
 *   06000  PVH start info       07000  boot_params / Multiboot info
 *   08000  memory map, modules  09000  page tables to 4 GiB (six pages)
 *   20000  command line         e0000  ACPI tables
 * A Multiboot kernel may lie at 08000 to 20000 itself: its memory map and
 * modules are behind the Multiboot info.
 */
#ifndef VM_FIRMWARE_H
#define VM_FIRMWARE_H

#include "vm/machine.h"

enum {
	FW_GDT = 0x1000,
	FW_START_INFO = 0x6000,
	FW_PARAMS = 0x7000,
	FW_MB_MAP = 0x7100,
	FW_MB_MODULES = 0x7200,
	FW_MB_LOW = 0x8000,
	FW_MAP = 0x8000,
	FW_MODULES = 0x8f00,
	FW_PML4 = 0x9000,
	FW_CMDLINE = 0x20000,
	FW_CMDLINE_MAX = 0x10000,
	FW_LOW_END = 0x9fc00,
	FW_BIOS = 0xff000, /* interrupt handlers, for Multiboot kernels */
	FW_HIGH_START = 0x100000,
	FW_STACK = 0x80000,
};

enum { MAP_RAM = 1, MAP_RESERVED = 2, MAP_MAX = 8 };

struct map_entry {
	uint64_t base, size;
	uint32_t type;
};

struct blob {
	const char *path;
	uint8_t *data;
	uint64_t size;
};

struct load {
	struct vm *vm;
	struct guest_mem *mem;
	struct blob kernel, initrd; /* initrd.data NULL: none */
	const char *cmdline;
	uint64_t rsdp;
	struct map_entry map[MAP_MAX];
	unsigned nmap;
	struct husk_error *err;
};

enum entry_mode { ENTRY_32, ENTRY_64 };

/* load.c */
int firmware_load(struct vm *vm, const struct vm_config *cfg, uint64_t rsdp,
		  struct husk_error *err);
int load_cmdline(struct load *l, uint64_t max);
/* At the highest page below limit and at or above floor. */
int load_initrd(struct load *l, uint64_t floor, uint64_t limit, uint64_t *at);
int load_too_small(struct load *l, uint64_t need);
int load_not_a_kernel(struct load *l, const char *why);
/* rax, rbx and rsi are the protocol's; sets vCPU 0. */
int load_enter(struct load *l, enum entry_mode mode, uint64_t rip, uint64_t rax,
	       uint64_t rbx, uint64_t rsi);

/* linux.c */
bool linux_probe(const struct blob *k);
int linux_load(struct load *l);
/* boot_params without a setup header of the file (a vmlinux). */
int linux_params(struct load *l, uint8_t *params, uint64_t initrd);

/* elf.c */
bool elf_probe(const struct blob *k);
int elf_load(struct load *l);
bool multiboot_probe(const struct blob *k);
int multiboot_load(struct load *l);

static inline uint16_t le16(const uint8_t *p)
{
	return p[0] | p[1] << 8;
}

static inline uint32_t le32(const uint8_t *p)
{
	return le16(p) | (uint32_t)le16(p + 2) << 16;
}

static inline uint64_t le64(const uint8_t *p)
{
	return le32(p) | (uint64_t)le32(p + 4) << 32;
}

static inline void put16(uint8_t *p, uint16_t v)
{
	p[0] = v;
	p[1] = v >> 8;
}

static inline void put32(uint8_t *p, uint32_t v)
{
	put16(p, v);
	put16(p + 2, v >> 16);
}

static inline void put64(uint8_t *p, uint64_t v)
{
	put32(p, v);
	put32(p + 4, v >> 32);
}

#endif /* VM_FIRMWARE_H */
