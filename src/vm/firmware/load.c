/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - what all kernel formats share: files, memory map, first registers
 */
#include "vm/firmware/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/chips.h"

/* Pages of the host. */
#define LARGE ((uint64_t)2 << 20)

static int read_all(int fd, struct blob *b, struct husk_error *err)
{
	uint64_t done = 0;

	while (done < b->size) {
		ssize_t n = read(fd, b->data + done, b->size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, -errno, "%s", b->path);
		if (n == 0)
			return error_set(err, -EIO,
					 "%s: became shorter while "
					 "it was read",
					 b->path);
		done += n;
	}
	return 0;
}

/* Room for a file.  A kernel is large, and small pages take their time. */
static void *blob_room(uint64_t size)
{
	void *p;

	if (size < 2 * LARGE)
		return malloc(size);
	p = aligned_alloc(LARGE, ALIGN_UP(size, LARGE));
	if (p)
		madvise(p, size & ~(LARGE - 1), MADV_HUGEPAGE);
	return p;
}

static int blob_read(struct blob *b, const char *path, uint64_t max,
		     struct husk_error *err)
{
	struct stat st;
	int fd, ret;

	b->path = path;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "%s", path);
	if (fstat(fd, &st) < 0)
		ret = error_errno(err, -errno, "%s", path);
	else if (S_ISDIR(st.st_mode))
		ret = error_set(err, -EISDIR, "%s: is a directory", path);
	else if (!S_ISREG(st.st_mode))
		ret = error_set(err, -EINVAL, "%s: is not a regular file",
				path);
	else if (st.st_size == 0)
		ret = error_set(err, -EINVAL, "%s: is empty", path);
	else if ((uint64_t)st.st_size > max)
		ret = error_set(err, -EFBIG,
				"%s: has %llu MiB; more memory "
				"is needed",
				path, (unsigned long long)st.st_size >> 20);
	else {
		b->size = st.st_size;
		b->data = blob_room(b->size);
		ret = b->data ? read_all(fd, b, err)
			      : error_errno(err, -ENOMEM, "%s", path);
	}
	close(fd);
	return ret;
}

static void add_map(struct load *l, uint64_t base, uint64_t end, uint32_t type)
{
	if (end <= base)
		return;
	l->map[l->nmap].base = base;
	l->map[l->nmap].size = end - base;
	l->map[l->nmap++].type = type;
}

static void make_map(struct load *l)
{
	add_map(l, 0, FW_LOW_END, MAP_RAM);
	add_map(l, FW_LOW_END, 0xa0000, MAP_RESERVED);
	add_map(l, 0xe0000, FW_HIGH_START, MAP_RESERVED);
	add_map(l, FW_HIGH_START, l->mem->low, MAP_RAM);
	add_map(l, (uint32_t)ECAM_BASE, 0xf0000000, MAP_RESERVED);
	if (l->mem->size > l->mem->low)
		add_map(l, BIT(32), BIT(32) + l->mem->size - l->mem->low,
			MAP_RAM);
}

int load_not_a_kernel(struct load *l, const char *why)
{
	return error_set(l->err, -ENOEXEC, "%s: not a kernel: %s",
			 l->kernel.path, why);
}

int load_too_small(struct load *l, uint64_t need)
{
	return error_set(l->err, -E2BIG,
			 "%s: needs %llu MiB of memory, "
			 "the machine has %llu",
			 l->kernel.path,
			 (unsigned long long)((need + 0xfffff) >> 20),
			 (unsigned long long)(l->mem->size >> 20));
}

int load_cmdline(struct load *l, uint64_t max)
{
	size_t len = strlen(l->cmdline);

	if (!max || max > FW_CMDLINE_MAX - 1)
		max = FW_CMDLINE_MAX - 1;
	if (len > max)
		return error_set(l->err, -E2BIG,
				 "the command line has %zu "
				 "bytes, the kernel takes %llu",
				 len, (unsigned long long)max);
	return mem_copy_in(l->mem, FW_CMDLINE, l->cmdline, len + 1);
}

int load_initrd(struct load *l, uint64_t floor, uint64_t limit, uint64_t *at)
{
	uint64_t size = l->initrd.size;

	*at = 0;
	if (!l->initrd.data)
		return 0;
	floor = ALIGN_UP(floor, 4096);
	if (limit > l->mem->low)
		limit = l->mem->low;
	if (limit < floor || size > limit - floor ||
	    ALIGN_DOWN(limit - size, 4096) < floor)
		return error_set(
			l->err, -E2BIG,
			"%s: kernel and initrd need "
			"%llu MiB of memory, the machine has %llu",
			l->initrd.path,
			(unsigned long long)((floor + size + 0x1fffff) >> 20),
			(unsigned long long)(l->mem->size >> 20));
	*at = ALIGN_DOWN(limit - size, 4096);
	return mem_copy_in(l->mem, *at, l->initrd.data, size);
}

/* -- the first registers -------------------------------------------------- */

static void make_page_tables(struct load *l)
{
	uint8_t *t = mem_at(l->mem, FW_PML4, 6 * 4096);

	memset(t, 0, 6 * 4096);
	put64(t, (FW_PML4 + 4096) | 3);
	for (unsigned i = 0; i < 4; i++)
		put64(t + 4096 + 8 * i, (FW_PML4 + (2 + i) * 4096) | 3);
	/* Present, writable, 2 MiB. */
	for (uint64_t i = 0; i < 4 * 512; i++)
		put64(t + 2 * 4096 + 8 * i, i << 21 | 0x83);
	mem_written(l->mem, FW_PML4, 6 * 4096);
}

static void make_gdt(struct load *l, enum entry_mode mode)
{
	uint8_t *t = mem_at(l->mem, FW_GDT, 64);

	memset(t, 0, 64);
	put64(t + 0x10,
	      mode == ENTRY_64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff);
	put64(t + 0x18, 0x00cf93000000ffff);
	put64(t + 0x20, 0x00008b0000000067); /* a busy TSS */
	mem_written(l->mem, FW_GDT, 64);
}

int load_enter(struct load *l, enum entry_mode mode, uint64_t rip, uint64_t rax,
	       uint64_t rbx, uint64_t rsi)
{
	const struct hv_segment data = { 0x18, 0xffffffff, 0xc093, 0 };
	struct hv_vcpu *cpu = l->vm->cpu[0].hv;
	const unsigned groups = HV_STATE_GENERAL | HV_STATE_SYSTEM;
	struct hv_state *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return error_errno(l->err, -ENOMEM, "the first registers");
	ret = hv_vcpu_get(cpu, groups, s);
	if (ret)
		goto out;
	make_gdt(l, mode);
	memset(s->gpr, 0, sizeof(s->gpr));
	s->gpr[HV_RAX] = rax;
	s->gpr[HV_RBX] = rbx;
	s->gpr[HV_RSI] = rsi;
	s->gpr[HV_RSP] = FW_STACK;
	s->rip = rip;
	s->rflags = 2;
	for (unsigned i = HV_ES; i <= HV_GS; i++)
		s->seg[i] = data;
	s->seg[HV_CS].selector = 0x10;
	s->seg[HV_CS].access = mode == ENTRY_64 ? 0xa09b : 0xc09b;
	s->seg[HV_LDTR] = (struct hv_segment){ 0, 0xffff, 0x10082, 0 };
	s->seg[HV_TR] = (struct hv_segment){ 0x20, 0x67, 0x8b, 0 };
	s->gdtr.base = FW_GDT;
	s->gdtr.limit = 0x27;
	s->idtr.base = 0;
	s->idtr.limit = 0;
	s->cr0 = 0x11; /* PE, ET */
	s->cr2 = s->cr3 = s->cr4 = s->cr8 = 0;
	s->efer = 0;
	if (mode == ENTRY_64) {
		make_page_tables(l);
		s->cr0 = 0x80000033; /* PG, NE, ET, MP, PE */
		s->cr3 = FW_PML4;
		s->cr4 = 0x20;	 /* PAE */
		s->efer = 0x500; /* LME, LMA */
	}
	ret = hv_vcpu_set(cpu, groups, s);
out:
	free(s);
	return ret ? error_errno(l->err, ret, "setting the first registers")
		   : 0;
}

/* -- the door ------------------------------------------------------------- */

static void make_bios_data(struct load *l)
{
	uint8_t bda[256] = { 0 };

	put16(bda, 0x3f8);		     /* COM1 */
	put16(bda + 0x0e, FW_LOW_END >> 4);  /* EBDA */
	put16(bda + 0x13, FW_LOW_END >> 10); /* KiB of low memory */
	mem_copy_in(l->mem, 0x400, bda, sizeof(bda));
}

/*
 * The MTRRs as firmware leaves them: all is write-back, but for the adapters
 * below 1 MiB and the hole below 4 GiB.  Linux has no PAT without them.
 */
static int set_mtrrs(struct load *l)
{
	uint64_t phys = BIT(hv_vm_caps(l->vm->hv)->phys_bits) - 1;
	const uint64_t wb = 0x0606060606060606, wp = 0x0505050505050505;
	const struct hv_msr_value m[] = {
		{ 0x250, wb },
		{ 0x258, wb },
		{ 0x259, 0 },
		{ 0x268, 0 },
		{ 0x269, 0 },
		{ 0x26a, 0 },
		{ 0x26b, 0 },
		{ 0x26c, wp },
		{ 0x26d, wp },
		{ 0x26e, wp },
		{ 0x26f, wp },
		{ 0x200, MMIO32_BASE },
		{ 0x201, (phys & ~(BIT(30) - 1)) | BIT(11) },
		{ 0x2ff, BIT(11) | BIT(10) | 6 },
	};
	struct hv_state *s = calloc(1, sizeof(*s));
	int ret = 0;

	if (!s)
		return error_errno(l->err, -ENOMEM, "the MTRRs");
	memcpy(s->msr, m, sizeof(m));
	s->nmsrs = ARRAY_SIZE(m);
	for (unsigned i = 0; i < l->vm->ncpus && !ret; i++)
		ret = hv_vcpu_set(l->vm->cpu[i].hv, HV_STATE_MSR, s);
	free(s);
	return ret ? error_errno(l->err, ret, "setting the MTRRs") : 0;
}

static int load_any(struct load *l)
{
	const struct blob *k = &l->kernel;

	if (linux_probe(k))
		return linux_load(l);
	if (multiboot_probe(k))
		return multiboot_load(l);
	if (elf_probe(k))
		return elf_load(l);
	if (k->size >= 2 && k->data[0] == 0x1f && k->data[1] == 0x8b)
		return load_not_a_kernel(l, "it is gzip data");
	if (k->size < 0x268)
		return load_not_a_kernel(l, "it is too short");
	if (k->data[0] == 'M' && k->data[1] == 'Z')
		return load_not_a_kernel(l, "an EFI program without a Linux "
					    "setup header");
	return load_not_a_kernel(l, "neither bzImage, ELF nor Multiboot");
}

int firmware_load(struct vm *vm, const struct vm_config *cfg, uint64_t rsdp,
		  struct husk_error *err)
{
	struct load l = {
		.vm = vm,
		.mem = &vm->mem,
		.rsdp = rsdp,
		.err = err,
		.cmdline = cfg->cmdline ? cfg->cmdline : "",
	};
	int ret;

	ret = blob_read(&l.kernel, cfg->kernel, 1ull << 30, err);
	if (!ret && cfg->initrd)
		ret = blob_read(&l.initrd, cfg->initrd, vm->mem.size, err);
	if (!ret) {
		make_map(&l);
		make_bios_data(&l);
		ret = load_any(&l);
	}
	if (!ret)
		ret = set_mtrrs(&l);
	free(l.kernel.data);
	free(l.initrd.data);
	return ret;
}
