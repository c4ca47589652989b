/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ram.c - the memory of a saved machine, out and in
 *
 * Each page lies at its own place in the file, behind the sections, so that
 * the file can be mapped; pages of zeros are holes.  A table says of each unit
 * of 2 MiB whether there is anything in it: the rest is not mapped from the
 * file but left anonymous.  With zstd a unit is a frame, one behind the other.
 */
#define ZSTD_STATIC_LINKING_ONLY
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/saved/saved.h"

enum { LEVEL = 1, UNIT_PAGES = SAVED_UNIT / SAVED_PAGE };

/* -- out ------------------------------------------------------------------ */

int ram_job_init(struct ram_job *job, bool compress)
{
	uint64_t table = ram_units(job->size) * sizeof(*job->unit);

	/* Shared: filled by another process. */
	job->shared = mmap(NULL, sizeof(*job->shared), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	job->unit = mmap(NULL, table, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (job->shared == MAP_FAILED)
		job->shared = NULL;
	if (job->unit == MAP_FAILED)
		job->unit = NULL;
	if (compress) {
		size_t work = ZSTD_estimateCCtxSize(LEVEL);

		/* In one piece, the context first: nothing allocates later. */
		job->out_room = ZSTD_compressBound(SAVED_UNIT);
		job->out = aligned_alloc(
			64, ALIGN_UP(work, 64) + ALIGN_UP(job->out_room, 64));
		if (job->out)
			job->zstd = ZSTD_initStaticCCtx(job->out, work);
		if (job->zstd)
			job->out += ALIGN_UP(work, 64);
	}
	if (job->shared && job->unit && (!compress || job->zstd))
		return 0;
	ram_job_finish(job);
	return -ENOMEM;
}

void ram_job_finish(struct ram_job *job)
{
	if (job->shared)
		munmap(job->shared, sizeof(*job->shared));
	if (job->unit)
		munmap(job->unit, ram_units(job->size) * sizeof(*job->unit));
	/* The context is where the piece begins. */
	free(job->zstd ? (void *)job->zstd : job->out);
	job->shared = NULL;
	job->unit = NULL;
	job->zstd = NULL;
	job->out = NULL;
}

static bool is_zero(const uint8_t *p, size_t len)
{
	const uint64_t *w = (const void *)p;

	for (size_t i = 0; i < len / 8; i += 8)
		if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] |
		    w[i + 5] | w[i + 6] | w[i + 7])
			return false;
	return true;
}

static int write_at(int fd, const uint8_t *p, uint64_t len, uint64_t at)
{
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		p += n;
		at += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/*
 * Which pages of the unit there can be anything in: a bit for each.  Without
 * this every untouched page would be touched by reading it.
 */
static void find_touched(const struct ram_job *job, int pagemap, uint64_t i,
			 bool *touched)
{
	uint64_t entry[UNIT_PAGES], full = ram_unit_size(job->size, i);
	uint64_t n = full / SAVED_PAGE;
	uint64_t page = (uintptr_t)(job->host + i * SAVED_UNIT) / SAVED_PAGE;
	bool known = pagemap >= 0 &&
		     !(job->from_file && job->from_file[i / 8] & BIT(i % 8)) &&
		     pread(pagemap, entry, n * 8, (off_t)(page * 8)) ==
			     (ssize_t)(n * 8);

	for (uint64_t k = 0; k < n; k++) /* present or swapped */
		touched[k] = !known || entry[k] >> 62;
}

/* Pages that are not zero, in as few writes as they form stretches. */
static int write_plain(struct ram_job *job, uint64_t i, const bool *data)
{
	uint64_t n = ram_unit_size(job->size, i) / SAVED_PAGE, first, count;
	const uint8_t *p = job->host + i * SAVED_UNIT;

	for (first = 0; first < n; first += count) {
		uint64_t at = first * SAVED_PAGE;
		int ret;

		for (count = 1;
		     first + count < n && data[first + count] == data[first];)
			count++;
		if (!data[first])
			continue;
		ret = write_at(job->fd, p + at, count * SAVED_PAGE,
			       job->unit[i].at + at);
		if (ret)
			return ret;
		job->shared->written += count * SAVED_PAGE;
	}
	return 0;
}

static int write_packed(struct ram_job *job, uint64_t i, uint64_t *end)
{
	size_t n = ZSTD_compressCCtx(job->zstd, job->out, job->out_room,
				     job->host + i * SAVED_UNIT,
				     ram_unit_size(job->size, i), LEVEL);
	int ret;

	if (ZSTD_isError(n))
		return -EIO;
	job->unit[i].at = *end;
	job->unit[i].size = (uint32_t)n;
	ret = write_at(job->fd, job->out, n, *end);
	*end += n;
	job->shared->written += n;
	return ret;
}

static int write_unit(struct ram_job *job, int pagemap, uint64_t i,
		      uint64_t *end)
{
	static const uint8_t zero_page[SAVED_PAGE];
	uint64_t full = ram_unit_size(job->size, i);
	const uint8_t *p = job->host + i * SAVED_UNIT;
	struct saved_unit *u = &job->unit[i];
	bool data[UNIT_PAGES], any = false;
	uint32_t crc = 0;

	find_touched(job, pagemap, i, data);
	for (uint64_t k = 0; k < full / SAVED_PAGE; k++) {
		const uint8_t *page = p + k * SAVED_PAGE;

		data[k] = data[k] && !is_zero(page, SAVED_PAGE);
		any |= data[k];
	}
	*u = (struct saved_unit){ 0 };
	if (!any)
		return 0;
	if (job->zstd) {
		u->crc = crc32c(0, p, full);
		return write_packed(job, i, end);
	}
	for (uint64_t k = 0; k < full / SAVED_PAGE; k++)
		crc = crc32c(crc, data[k] ? p + k * SAVED_PAGE : zero_page,
			     SAVED_PAGE);
	*u = (struct saved_unit){ .at = job->at + i * SAVED_UNIT,
				  .size = (uint32_t)full,
				  .crc = crc };
	return write_plain(job, i, data);
}

void ram_write(struct ram_job *job)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t end = job->at, n = ram_units(job->size);
	int ret = 0;

	for (uint64_t i = 0; i < n && !ret; i++) {
		ret = write_unit(job, pagemap, i, &end);
		job->shared->done += ram_unit_size(job->size, i);
		if (!ret && atomic_load(&job->shared->cancel))
			ret = -ECANCELED;
	}
	if (pagemap >= 0)
		close(pagemap);
	atomic_store(&job->shared->end, job->zstd ? end : job->at + job->size);
	atomic_store(&job->shared->error, ret);
}

/* -- in ------------------------------------------------------------------- */

static int read_packed(const struct vm_saved *saved, const struct saved_unit *u,
		       void *buf, uint64_t full)
{
	void *in = malloc(u->size);
	int ret = 0;
	size_t n;

	if (!in)
		return -ENOMEM;
	if (pread(saved->fd, in, u->size, (off_t)u->at) != (ssize_t)u->size) {
		ret = -EBADMSG;
	} else {
		n = ZSTD_decompress(buf, full, in, u->size);
		ret = ZSTD_isError(n) || n != full ? -EBADMSG : 0;
	}
	free(in);
	return ret;
}

int ram_read_unit(const struct vm_saved *saved, uint64_t i, void *buf)
{
	const struct saved_unit *u = &saved->unit[i];
	uint64_t full = ram_unit_size(saved->h.ram_size, i);
	int ret = 0;

	if (saved->h.flags & SAVED_COMPRESSED)
		ret = read_packed(saved, u, buf, full);
	else if (pread(saved->fd, buf, full, (off_t)u->at) != (ssize_t)full)
		ret = -EBADMSG;
	if (!ret && crc32c(0, buf, full) != u->crc)
		ret = -EBADMSG;
	return ret;
}

static int unpack_all(const struct vm_saved *saved, struct guest_mem *mem,
		      struct husk_error *err)
{
	/* All of it is touched now. */
	mem_use_large(mem);
	for (uint64_t i = 0; i < saved->nunits; i++) {
		int ret = 0;

		if (saved->unit[i].size)
			ret = ram_read_unit(saved, i,
					    mem->host + i * SAVED_UNIT);
		if (ret)
			return saved_bad(err, "ram", "a part of it is damaged");
	}
	return 0;
}

/* Units first to first + n, all of which hold something. */
static int map_run(const struct vm_saved *saved, struct guest_mem *mem,
		   uint64_t first, uint64_t n, bool preload)
{
	uint64_t from = first * SAVED_UNIT;
	uint64_t len = MIN(n * SAVED_UNIT, mem->size - from);
	void *p = mmap(mem->host + from, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, saved->fd,
		       (off_t)(saved->h.ram_at + from));

	if (p == MAP_FAILED)
		return -errno;
	if (preload)
		madvise(p, len, MADV_POPULATE_READ);
	return 0;
}

int ram_map(const struct vm_saved *saved, struct guest_mem *mem, bool preload,
	    struct husk_error *err)
{
	uint64_t n;

	if (saved->h.flags & SAVED_COMPRESSED)
		return unpack_all(saved, mem, err);
	mem->from_file = calloc(1, saved->nunits / 8 + 1);
	if (!mem->from_file)
		return error_errno(err, -ENOMEM, "memory of a saved machine");
	for (uint64_t i = 0; i < saved->nunits; i += n) {
		bool used = saved->unit[i].size;
		int ret = 0;

		for (n = 0;
		     i + n < saved->nunits && !!saved->unit[i + n].size == used;
		     n++)
			if (used)
				mem->from_file[(i + n) / 8] |=
					(uint8_t)BIT((i + n) % 8);
		if (used)
			ret = map_run(saved, mem, i, n, preload);
		if (ret)
			return error_errno(err, ret,
					   "mapping the memory of a saved "
					   "machine");
	}
	return 0;
}
