/* SPDX-License-Identifier: Apache-2.0 */
/*
 * elf.c - ELF kernels: by PVH, by Multiboot 1, or like a bzImage's 64-bit
 * entry with boot_params
 */
#include "vm/firmware/firmware.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"

enum { PVH_NOTE = 18, PVH_MAGIC = 0x336ec578, MB_MAGIC = 0x1badb002 };

/* One program header of either width. */
struct segment {
	uint32_t type;
	uint64_t offset, paddr, vaddr, filesz, memsz;
};

struct elf {
	bool is64;
	uint64_t entry;
	uint64_t end; /* behind the highest loaded byte */
	uint64_t pvh; /* entry of the PVH note, or 0 */
	bool low;     /* may lie in what FW_MB_LOW leaves below 1 MiB */
};

bool elf_probe(const struct blob *k)
{
	return k->size >= 4 && !memcmp(k->data, ELFMAG, 4);
}

static int get_segment(struct load *l, bool is64, uint64_t at,
		       struct segment *s)
{
	const uint8_t *p = l->kernel.data + at;

	if (is64) {
		s->type = le32(p);
		s->offset = le64(p + 8);
		s->vaddr = le64(p + 16);
		s->paddr = le64(p + 24);
		s->filesz = le64(p + 32);
		s->memsz = le64(p + 40);
	} else {
		s->type = le32(p);
		s->offset = le32(p + 4);
		s->vaddr = le32(p + 8);
		s->paddr = le32(p + 12);
		s->filesz = le32(p + 16);
		s->memsz = le32(p + 20);
	}
	if (s->type != PT_LOAD && s->type != PT_NOTE)
		return 0;
	if (s->offset > l->kernel.size ||
	    s->filesz > l->kernel.size - s->offset)
		return load_not_a_kernel(l, "the file is truncated");
	if (s->type == PT_LOAD && s->filesz > s->memsz)
		return load_not_a_kernel(l, "a segment is damaged");
	return 0;
}

static void find_pvh(const struct load *l, const struct segment *s,
		     struct elf *e)
{
	const uint8_t *p = l->kernel.data + s->offset;
	uint64_t left = s->filesz, name, desc;

	while (left >= 12) {
		name = ALIGN_UP((uint64_t)le32(p), 4);
		desc = ALIGN_UP((uint64_t)le32(p + 4), 4);
		if (name + desc > left - 12)
			return;
		if (le32(p + 8) == PVH_NOTE && le32(p) == 4 &&
		    !memcmp(p + 12, "Xen", 4) && desc >= 4)
			e->pvh = le32(p + 12 + name);
		p += 12 + name + desc;
		left -= 12 + name + desc;
	}
}

static int load_segment(struct load *l, const struct segment *s, struct elf *e)
{
	uint8_t *to;

	if (!s->memsz)
		return 0;
	if (s->paddr < FW_HIGH_START &&
	    !(e->low && s->paddr >= FW_MB_LOW && s->memsz <= FW_CMDLINE &&
	      s->paddr + s->memsz <= FW_CMDLINE))
		return load_not_a_kernel(l, "a segment lies below 1 MiB");
	if (s->paddr > BIT(40) || s->memsz > BIT(40))
		return load_not_a_kernel(l, "a segment lies out of reach");
	to = mem_at(l->mem, s->paddr, s->memsz);
	if (!to)
		return load_too_small(l, s->paddr + s->memsz);
	memcpy(to, l->kernel.data + s->offset, s->filesz);
	memset(to + s->filesz, 0, s->memsz - s->filesz);
	mem_written(l->mem, s->paddr, s->memsz);
	if (s->paddr + s->memsz > e->end)
		e->end = s->paddr + s->memsz;
	/* The entry may be given as the virtual address of the segment. */
	if (e->entry >= s->vaddr && e->entry - s->vaddr < s->memsz &&
	    s->vaddr != s->paddr && e->entry >= BIT(32))
		e->entry = e->entry - s->vaddr + s->paddr;
	return 0;
}

static int load_elf(struct load *l, struct elf *e)
{
	const uint8_t *k = l->kernel.data;
	uint64_t phoff, phsize, phnum;
	struct segment s;
	int ret;

	if (l->kernel.size < 64)
		return load_not_a_kernel(l, "the file is truncated");
	if (k[EI_DATA] != ELFDATA2LSB ||
	    (k[EI_CLASS] != ELFCLASS64 && k[EI_CLASS] != ELFCLASS32))
		return load_not_a_kernel(l, "an ELF file of another kind");
	e->is64 = k[EI_CLASS] == ELFCLASS64;
	if (le16(k + 18) != (e->is64 ? EM_X86_64 : EM_386))
		return load_not_a_kernel(l, "an ELF file for another "
					    "processor");
	if (le16(k + 16) != ET_EXEC)
		return load_not_a_kernel(l, "an ELF file, but not an "
					    "executable at fixed addresses");
	e->entry = e->is64 ? le64(k + 24) : le32(k + 24);
	phoff = e->is64 ? le64(k + 32) : le32(k + 28);
	phsize = le16(k + (e->is64 ? 54 : 42));
	phnum = le16(k + (e->is64 ? 56 : 44));
	if (phsize < (e->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) ||
	    phoff > l->kernel.size || phnum * phsize > l->kernel.size - phoff)
		return load_not_a_kernel(l, "the file is truncated");

	for (uint64_t i = 0; i < phnum; i++) {
		ret = get_segment(l, e->is64, phoff + i * phsize, &s);
		if (!ret && s.type == PT_LOAD)
			ret = load_segment(l, &s, e);
		else if (!ret && s.type == PT_NOTE)
			find_pvh(l, &s, e);
		if (ret)
			return ret;
	}
	if (!e->end)
		return load_not_a_kernel(l, "the ELF file has nothing to load");
	return 0;
}

/* -- PVH ------------------------------------------------------------------ */

static int enter_pvh(struct load *l, const struct elf *e, uint64_t initrd)
{
	uint8_t info[56] = { 0 }, mod[32] = { 0 }, map[MAP_MAX * 24] = { 0 };

	for (unsigned i = 0; i < l->nmap; i++) {
		put64(map + 24 * i, l->map[i].base);
		put64(map + 24 * i + 8, l->map[i].size);
		put32(map + 24 * i + 16, l->map[i].type);
	}
	put64(mod, initrd);
	put64(mod + 8, l->initrd.size);
	put32(info, PVH_MAGIC);
	put32(info + 4, 1); /* version with a memory map */
	put32(info + 12, l->initrd.data ? 1 : 0);
	put64(info + 16, l->initrd.data ? FW_MODULES : 0);
	put64(info + 24, FW_CMDLINE);
	put64(info + 32, l->rsdp);
	put64(info + 40, FW_MAP);
	put32(info + 48, l->nmap);
	mem_copy_in(l->mem, FW_MAP, map, sizeof(map));
	mem_copy_in(l->mem, FW_MODULES, mod, sizeof(mod));
	mem_copy_in(l->mem, FW_START_INFO, info, sizeof(info));
	return load_enter(l, ENTRY_32, e->pvh, 0, FW_START_INFO, 0);
}

int elf_load(struct load *l)
{
	uint8_t params[4096] = { 0 };
	struct elf e = { 0 };
	uint64_t initrd;
	int ret;

	ret = load_elf(l, &e);
	if (!ret)
		ret = load_cmdline(l, 0);
	if (!ret)
		ret = load_initrd(l, e.end, BIT(31), &initrd);
	if (ret)
		return ret;
	if (e.pvh)
		return enter_pvh(l, &e, initrd);
	if (!e.is64)
		return load_not_a_kernel(l, "a 32-bit ELF file with neither "
					    "Multiboot header nor PVH note");
	ret = linux_params(l, params, initrd);
	if (ret)
		return ret;
	return load_enter(l, ENTRY_64, e.entry, 0, 0, FW_PARAMS);
}

/* -- what a BIOS leaves behind -------------------------------------------- */

static void out(struct load *l, uint16_t port, uint8_t v)
{
	bus_write(l->vm->pio, port, 1, v);
}

static void bios_pic(struct load *l, uint16_t port, uint8_t base, uint8_t wire,
		     uint8_t mask)
{
	out(l, port, 0x11); /* edge, cascade, four words follow */
	out(l, port + 1, base);
	out(l, port + 1, wire);
	out(l, port + 1, 1);
	out(l, port + 1, mask);
}

/*
 * Multiboot kernels come from a boot loader that ran on a BIOS, and some go
 * back to real mode: the timer ticks at 18.2 Hz, the PICs send 8 to 15 and 70
 * to 77, and every vector has a handler, which here only ends the interrupt.
 */
static void make_bios(struct load *l)
{
	static const uint8_t code[] = {
		0x50, 0xb0, 0x20, 0xe6, 0xa0, /* push ax; eoi to the slave */
		0xeb, 0x01,		      /* jmp to mov al */
		0x50,			      /* the master's: push ax */
		0xb0, 0x20, 0xe6, 0x20,	      /* mov al, 20; out 20, al */
		0x58, 0xcf,		      /* pop ax; iret */
	};
	enum { SLAVE = 0, MASTER = 7, IRET = 13 };
	uint8_t ivt[1024];

	for (unsigned v = 0; v < 256; v++) {
		unsigned at = (v & ~7u) == 8	  ? MASTER
			      : (v & ~7u) == 0x70 ? SLAVE
						  : IRET;

		put16(ivt + 4 * v, at);
		put16(ivt + 4 * v + 2, FW_BIOS >> 4);
	}
	mem_copy_in(l->mem, 0, ivt, sizeof(ivt));
	mem_copy_in(l->mem, FW_BIOS, code, sizeof(code));
	bios_pic(l, 0x20, 8, 4, 0xfa);
	bios_pic(l, 0xa0, 0x70, 2, 0xff);
	out(l, 0x43, 0x36); /* counter 0, both bytes, square wave */
	out(l, 0x40, 0);
	out(l, 0x40, 0);
}

/* -- Multiboot 1 ---------------------------------------------------------- */

static const uint8_t *find_header(const struct blob *k)
{
	for (uint64_t i = 0; i + 12 <= MIN(k->size, 8192ull); i += 4) {
		const uint8_t *p = k->data + i;

		if (le32(p) == MB_MAGIC &&
		    le32(p) + le32(p + 4) + le32(p + 8) == 0)
			return p;
	}
	return NULL;
}

bool multiboot_probe(const struct blob *k)
{
	const uint8_t *h = find_header(k);

	/* A 64-bit ELF file goes by its own headers unless h has addresses. */
	return h &&
	       (le32(h + 4) & BIT(16) || (elf_probe(k) && k->size > EI_CLASS &&
					  k->data[EI_CLASS] == ELFCLASS32));
}

/* The header itself says where the file goes. */
static int load_flat(struct load *l, const uint8_t *h, struct elf *e)
{
	const struct blob *k = &l->kernel;
	uint64_t at = h - k->data, header, load, load_end, bss_end, off, len;
	struct segment s = { .type = PT_LOAD };

	if (k->size - at < 32)
		return load_not_a_kernel(l, "the file is truncated");
	header = le32(h + 12);
	load = le32(h + 16);
	load_end = le32(h + 20);
	bss_end = le32(h + 24);
	if (load > header || header - load > at)
		return load_not_a_kernel(l, "its Multiboot header is damaged");
	off = at - (header - load);
	len = load_end ? load_end - load : k->size - off;
	if ((load_end && load_end < load) || len > k->size - off)
		return load_not_a_kernel(l, "the file is truncated");
	s.offset = off;
	s.paddr = s.vaddr = load;
	s.filesz = len;
	s.memsz = bss_end > load + len ? bss_end - load : len;
	e->entry = le32(h + 28);
	return load_segment(l, &s, e);
}

int multiboot_load(struct load *l)
{
	const uint8_t *h = find_header(&l->kernel);
	uint8_t info[116] = { 0 }, mod[16] = { 0 }, map[MAP_MAX * 24] = { 0 };
	struct elf e = { .low = true };
	uint64_t at, size = l->initrd.size;
	int ret;

	ret = le32(h + 4) & BIT(16) ? load_flat(l, h, &e) : load_elf(l, &e);
	if (!ret)
		ret = load_cmdline(l, 0);
	if (ret)
		return ret;
	/* Behind a kernel in low memory comes the command line. */
	at = MAX(ALIGN_UP(e.end, 4096), (uint64_t)FW_HIGH_START);
	if (l->initrd.data) {
		if (mem_copy_in(l->mem, at, l->initrd.data, size))
			return load_too_small(l, at + size);
		put32(mod, at);
		put32(mod + 4, at + size);
		put32(mod + 8, FW_CMDLINE);
	}
	for (unsigned i = 0; i < l->nmap; i++) {
		put32(map + 24 * i, 20);
		put64(map + 24 * i + 4, l->map[i].base);
		put64(map + 24 * i + 12, l->map[i].size);
		put32(map + 24 * i + 20, l->map[i].type);
	}
	/* mem, cmdline, mods, mmap */
	put32(info, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6);
	put32(info + 4, FW_LOW_END >> 10);
	put32(info + 8, (l->mem->low - FW_HIGH_START) >> 10);
	put32(info + 16, FW_CMDLINE);
	put32(info + 20, l->initrd.data ? 1 : 0);
	put32(info + 24, FW_MB_MODULES);
	put32(info + 44, 24 * l->nmap);
	put32(info + 48, FW_MB_MAP);
	mem_copy_in(l->mem, FW_MB_MAP, map, sizeof(map));
	mem_copy_in(l->mem, FW_MB_MODULES, mod, sizeof(mod));
	mem_copy_in(l->mem, FW_PARAMS, info, sizeof(info));
	make_bios(l);
	return load_enter(l, ENTRY_32, e.entry, 0x2badb002, FW_PARAMS, 0);
}
