/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iov.c - parts of scattered buffers
 */
#include "vm/block/store.h"

#include <string.h>

#include "base/bits.h"

void iov_skip(const struct iovec **iov, int *count, size_t *off, size_t n)
{
	*off += n;
	while (*count && *off >= (*iov)->iov_len) {
		*off -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
}

int iov_part(struct iovec *dst, int max, const struct iovec *src, int count,
	     uint64_t offset, uint64_t *len)
{
	uint64_t left = *len;
	size_t off = 0;
	int n = 0;

	iov_skip(&src, &count, &off, offset);
	while (left && count && n < max) {
		dst[n].iov_base = (char *)src->iov_base + off;
		dst[n].iov_len = MIN(left, (uint64_t)src->iov_len - off);
		left -= dst[n].iov_len;
		if (dst[n].iov_len)
			n++;
		off = 0;
		src++;
		count--;
	}
	*len -= left;
	return n;
}

enum how { FROM, TO, ZERO };

static void copy(const struct iovec *iov, int count, uint64_t offset, char *buf,
		 size_t len, enum how how)
{
	size_t off = 0;

	iov_skip(&iov, &count, &off, offset);
	for (; len && count; iov++, count--, off = 0) {
		size_t n = MIN(len, iov->iov_len - off);
		char *p = (char *)iov->iov_base + off;

		if (how == FROM)
			memcpy(p, buf, n);
		else if (how == TO)
			memcpy(buf, p, n);
		else
			memset(p, 0, n);
		if (buf)
			buf += n;
		len -= n;
	}
}

void iov_from(const struct iovec *iov, int count, uint64_t offset,
	      const void *buf, size_t len)
{
	copy(iov, count, offset, (char *)buf, len, FROM);
}

void iov_to(const struct iovec *iov, int count, uint64_t offset, void *buf,
	    size_t len)
{
	copy(iov, count, offset, buf, len, TO);
}

void iov_zero(const struct iovec *iov, int count, uint64_t offset, size_t len)
{
	copy(iov, count, offset, NULL, len, ZERO);
}
