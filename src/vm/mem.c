/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c - guest RAM, and the one checked door to it
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "vm/chips.h"
#include "vm/saved/saved.h"

#define HIGH_BASE      BIT(32)
#define LARGE_AFTER_NS 1000000000ull

static bool unit_from_file(const struct guest_mem *mem, uint64_t i)
{
	return mem->from_file && mem->from_file[i / 8] & BIT(i % 8);
}

static void *get(uint64_t size)
{
	void *host = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return host == MAP_FAILED ? NULL : host;
}

int mem_init(struct guest_mem *mem, struct hv_vm *hv, uint64_t size,
	     struct saved_ram *ram, struct husk_error *err)
{
	uint64_t low = MIN(size, (uint64_t)RAM_HOLE);
	uint8_t *host = ram ? ram->host : get(size);
	int ret;

	if (!host && ram)
		return error_set(err, -EBUSY,
				 "another machine has taken this memory");
	if (!host)
		return error_errno(err, -errno, "%llu MiB of guest memory",
				   (unsigned long long)(size >> 20));
	mem->hv = hv;
	mem->host = host;
	mem->size = size;
	mem->low = low;
	if (ram) {
		mem->from_file = ram->from_file;
		ram->host = NULL;
	}
	ret = hv_mem_map(hv, 0, low, host, HV_MEM_READ | HV_MEM_WRITE);
	if (!ret && size > low)
		ret = hv_mem_map(hv, HIGH_BASE, size - low, host + low,
				 HV_MEM_READ | HV_MEM_WRITE);
	if (ret) {
		mem_finish(mem);
		return error_errno(err, ret, "mapping guest memory");
	}
	return 0;
}

/* Of what is a file's nothing is large. */
void mem_use_large(struct guest_mem *mem)
{
	uint64_t n = ram_units(mem->size), end;

	for (uint64_t i = 0; i < n; i = end + 1) {
		for (end = i; end < n && !unit_from_file(mem, end);)
			end++;
		if (end > i)
			madvise(mem->host + i * SAVED_UNIT,
				MIN(end * SAVED_UNIT, mem->size) -
					i * SAVED_UNIT,
				MADV_HUGEPAGE);
	}
}

static void enlarge(struct loop_timer *t)
{
	mem_use_large(container_of(t, struct guest_mem, enlarge));
}

void mem_start_small(struct guest_mem *mem, struct loop *loop)
{
	mem->small = !madvise(mem->host, mem->size, MADV_NOHUGEPAGE);
	loop_timer_init(loop, &mem->enlarge, enlarge);
}

void mem_goes_on(struct guest_mem *mem)
{
	if (mem->small)
		loop_timer_set(&mem->enlarge, loop_now() + LARGE_AFTER_NS);
	mem->small = false;
}

/* The address space is gone or goes now: nothing to unmap from it. */
void mem_finish(struct guest_mem *mem)
{
	if (mem->host)
		munmap(mem->host, mem->size);
	mem->host = NULL;
	free(mem->from_file);
	mem->from_file = NULL;
}

void *mem_at(struct guest_mem *mem, uint64_t gpa, uint64_t len)
{
	uint64_t high = mem->size - mem->low;

	if (gpa <= mem->low && len <= mem->low - gpa)
		return mem->host + gpa;
	if (gpa < HIGH_BASE)
		return NULL;
	gpa -= HIGH_BASE;
	if (gpa > high || len > high - gpa)
		return NULL;
	return mem->host + mem->low + gpa;
}

void mem_written(struct guest_mem *mem, uint64_t gpa, uint64_t len)
{
	if (len)
		hv_mem_written(mem->hv, gpa, len);
}

int mem_copy_in(struct guest_mem *mem, uint64_t gpa, const void *src,
		uint64_t len)
{
	void *p = mem_at(mem, gpa, len);

	if (!p)
		return -EFAULT;
	if (len)
		memcpy(p, src, len);
	mem_written(mem, gpa, len);
	return 0;
}

int mem_copy_out(struct guest_mem *mem, uint64_t gpa, void *dst, uint64_t len)
{
	const void *p = mem_at(mem, gpa, len);

	if (!p)
		return -EFAULT;
	if (len)
		memcpy(dst, p, len);
	return 0;
}

enum { PAGE = 4096, VEC = 1024, DROP_MIN = 1 << 20 };

static uint64_t resident(uint8_t *host, uint64_t len)
{
	unsigned char vec[VEC];
	uint64_t sum = 0;

	for (uint64_t at = 0; at < len; at += (uint64_t)VEC * PAGE) {
		uint64_t n = MIN(len - at, (uint64_t)VEC * PAGE);

		if (mincore(host + at, n, vec))
			return sum;
		for (uint64_t i = 0; i < n / PAGE; i++)
			sum += vec[i] & 1 ? PAGE : 0;
	}
	return sum;
}

/*
 * What is mapped from a saved machine would show the file again, so anonymous
 * memory takes its place.  Not for single pages, as the host has a limit for
 * pieces of a mapping, and those are the balloon's: nobody looks at them.
 */
static int drop(struct guest_mem *mem, void *host, uint64_t len)
{
	if (mem->from_file && len >= (uint64_t)DROP_MIN &&
	    mmap(host, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) == host) {
		madvise(host, len, MADV_HUGEPAGE);
		return 0;
	}
	return madvise(host, len, MADV_DONTNEED);
}

int mem_discard(struct guest_mem *mem, uint64_t gpa, uint64_t len,
		uint64_t *freed)
{
	uint8_t *host = mem_at(mem, gpa, len);

	*freed = 0;
	if (!host || gpa % PAGE || len % PAGE)
		return -EFAULT;
	if (!len)
		return 0;
	*freed = resident(host, len);
	/* Locked memory, for one, stays: no harm is done. */
	if (drop(mem, host, len)) {
		*freed = 0;
		return 0;
	}
	/* Not earlier: what is decoded from the old bytes goes with them. */
	mem_written(mem, gpa, len);
	return 0;
}
