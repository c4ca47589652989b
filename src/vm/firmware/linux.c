/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linux.c - a bzImage, entered by the 64-bit boot protocol, where it has none
 * (32-bit kernels, and those older than 3.8) by the 32-bit one
 *
 * Authority: Documentation/arch/x86/boot.rst and zero-page.rst of Linux.
 */
#include "vm/firmware/firmware.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

enum {
	/* boot_params */
	BP_RSDP = 0x70,
	BP_ALT_MEM_K = 0x1e0,
	BP_E820_COUNT = 0x1e8,
	BP_HEADER = 0x1f1,
	BP_E820 = 0x2d0,
	BP_SIZE = 4096,
	/* setup header */
	H_SETUP_SECTS = 0x1f1,
	H_BOOT_FLAG = 0x1fe,
	H_JUMP = 0x201,
	H_MAGIC = 0x202,
	H_VERSION = 0x206,
	H_LOADER = 0x210,
	H_LOADFLAGS = 0x211,
	H_CODE32 = 0x214,
	H_RAMDISK = 0x218,
	H_RAMDISK_SIZE = 0x21c,
	H_CMDLINE = 0x228,
	H_INITRD_MAX = 0x22c,
	H_XLOADFLAGS = 0x236,
	H_CMDLINE_SIZE = 0x238,
	H_SETUP_DATA = 0x250,
	H_PREF = 0x258,
	H_INIT_SIZE = 0x260,
	H_END = 0x268,
};

bool linux_probe(const struct blob *k)
{
	return k->size >= H_END && le16(k->data + H_BOOT_FLAG) == 0xaa55 &&
	       !memcmp(k->data + H_MAGIC, "HdrS", 4);
}

int linux_params(struct load *l, uint8_t *p, uint64_t initrd)
{
	put64(p + BP_RSDP, l->rsdp);
	put32(p + BP_ALT_MEM_K, (l->mem->low - FW_HIGH_START) >> 10);
	p[BP_E820_COUNT] = l->nmap;
	for (unsigned i = 0; i < l->nmap; i++) {
		put64(p + BP_E820 + 20 * i, l->map[i].base);
		put64(p + BP_E820 + 20 * i + 8, l->map[i].size);
		put32(p + BP_E820 + 20 * i + 16, l->map[i].type);
	}
	put16(p + H_BOOT_FLAG, 0xaa55);
	put32(p + H_MAGIC, 0x53726448); /* "HdrS" */
	p[H_LOADER] = 0xff;		/* a loader without a number */
	p[H_LOADFLAGS] = (p[H_LOADFLAGS] & ~0x80) | 1; /* loaded high */
	put32(p + H_CMDLINE, FW_CMDLINE);
	put64(p + H_SETUP_DATA, 0);
	if (l->initrd.data) {
		put32(p + H_RAMDISK, initrd);
		put32(p + H_RAMDISK_SIZE, l->initrd.size);
	}
	return mem_copy_in(l->mem, FW_PARAMS, p, BP_SIZE);
}

/* Where the kernel goes; init_size bytes from there are its own. */
static int place(struct load *l, uint64_t *at, uint64_t *room)
{
	const uint8_t *k = l->kernel.data;
	uint64_t pref = le64(k + H_PREF), size = le32(k + H_INIT_SIZE);

	if (pref < FW_HIGH_START || pref > BIT(32) || size > BIT(32))
		return load_not_a_kernel(l, "its setup header is damaged");
	/* Put lower, even a relocatable kernel moves itself up to there. */
	*at = pref;
	*room = size;
	return pref + size > l->mem->low ? load_too_small(l, pref + size) : 0;
}

int linux_load(struct load *l)
{
	const uint8_t *k = l->kernel.data;
	uint8_t params[BP_SIZE] = { 0 };
	uint64_t setup, size, at = 0, room = 0, initrd, limit, header;
	bool wide;
	int ret;

	if (le16(k + H_VERSION) < 0x20a)
		return load_not_a_kernel(l, "a Linux older than 2.6.31");
	wide = le16(k + H_VERSION) >= 0x20c && k[H_XLOADFLAGS] & 1;
	setup = ((k[H_SETUP_SECTS] ? k[H_SETUP_SECTS] : 4) + 1) * 512;
	if (l->kernel.size < setup + 0x400)
		return load_not_a_kernel(l, "the file is truncated");
	size = l->kernel.size - setup;
	/* syssize is in units of 16 bytes and may count the padding */
	if (size + 16 < (uint64_t)le32(k + 0x1f4) * 16)
		return load_not_a_kernel(l, "the file is truncated");
	ret = place(l, &at, &room);
	if (ret)
		return ret;
	if (room < size)
		room = size;
	if (!mem_at(l->mem, at, room))
		return load_too_small(l, at + room);
	mem_copy_in(l->mem, at, k + setup, size);

	limit = (uint64_t)le32(k + H_INITRD_MAX) + 1;
	ret = load_initrd(l, at + room, limit, &initrd);
	if (!ret)
		ret = load_cmdline(l, le32(k + H_CMDLINE_SIZE));
	if (ret)
		return ret;

	header = MIN((uint64_t)H_MAGIC + k[H_JUMP], (uint64_t)0x290);
	if (header > BP_HEADER)
		memcpy(params + BP_HEADER, k + BP_HEADER,
		       MIN(header, l->kernel.size) - BP_HEADER);
	put32(params + H_CODE32, at);
	ret = linux_params(l, params, initrd);
	if (ret)
		return ret;
	if (!wide)
		return load_enter(l, ENTRY_32, at, 0, 0, FW_PARAMS);
	return load_enter(l, ENTRY_64, at + 0x200, 0, 0, FW_PARAMS);
}
