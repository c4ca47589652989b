/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fsx.c - random operations on one file, compared with a copy in memory
 *
 * fsx FILE [SECONDS [SEED]] - static, runs in a guest.  Reads, writes and
 * maps; cuts, holes, zeros and copies; closes and opens again.  A difference
 * comes with the operations that led to it.
 *
 * fsx lock FILE [MADE UNTIL] - takes both kinds of locks on FILE, makes MADE
 * and waits until there is UNTIL; fails when somebody else has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 384 << 10, HISTORY = 60 };

static uint8_t model[MAX], buf[MAX];
static size_t size;
static int fd;
static const char *path;
static uint64_t seed, count;
static char history[HISTORY][80];
static unsigned skipped; /* bits of operations that are not there */

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(history[count % HISTORY], sizeof(history[0]), fmt, ap);
	va_end(ap);
	count++;
}

static void die(const char *what, size_t at)
{
	uint64_t from = count > HISTORY ? count - HISTORY : 0;

	printf("fsx: %s at %zu (size %zu, errno %d)\n", what, at, size, errno);
	for (uint64_t i = from; i < count; i++)
		printf("  %llu %s\n", (unsigned long long)i,
		       history[i % HISTORY]);
	exit(1);
}

static void compare(const uint8_t *got, size_t off, size_t len,
		    const char *what)
{
	for (size_t i = 0; i < len; i++)
		if (got[i] != model[off + i]) {
			printf("fsx: has %02x for %02x\n", got[i],
			       model[off + i]);
			die(what, off + i);
		}
}

static void fill(size_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(rnd() >> 11);
	if (off > size)
		memset(model + size, 0, off - size);
	memcpy(model + off, buf, len);
	if (off + len > size)
		size = off + len;
}

static void do_write(size_t off, size_t len)
{
	note("write %zu+%zu", off, len);
	fill(off, len);
	if (pwrite(fd, buf, len, (off_t)off) != (ssize_t)len)
		die("write fails", off);
}

static void do_append(size_t len)
{
	size_t at = size;
	int a;

	if (size + len > MAX)
		return;
	a = open(path, O_WRONLY | O_APPEND);
	note("append %zu", len);
	fill(at, len);
	if (a < 0 || write(a, buf, len) != (ssize_t)len)
		die("append fails", at);
	close(a);
}

static void do_read(size_t off, size_t len)
{
	size_t want = off >= size ? 0 : off + len > size ? size - off : len;
	ssize_t n;

	note("read %zu+%zu", off, len);
	n = pread(fd, buf, len, (off_t)off);
	if (n != (ssize_t)want)
		die("read is short", off);
	compare(buf, off, want, "read differs");
}

static void do_truncate(size_t to)
{
	note("truncate %zu", to);
	if (rnd() & 1 ? ftruncate(fd, (off_t)to) : truncate(path, (off_t)to))
		die("truncate fails", to);
	if (to > size)
		memset(model + size, 0, to - size);
	size = to;
}

static void do_map(size_t off, size_t len, int write)
{
	size_t first = off & ~4095ul, span;
	uint8_t *p;

	if (off >= size)
		return;
	if (off + len > size)
		len = size - off;
	span = off + len - first;
	note("map%s %zu+%zu", write ? " and write" : "", off, len);
	p = mmap(NULL, span, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED,
		 fd, (off_t)first);
	if (p == MAP_FAILED)
		die("mmap fails", off);
	if (write) {
		fill(off, len);
		memcpy(p + (off - first), buf, len);
		if (rnd() & 1 && msync(p, span, MS_SYNC))
			die("msync fails", off);
	}
	compare(p + (off - first), off, len, "mapping differs");
	munmap(p, span);
}

static void do_fallocate(size_t off, size_t len, int mode, unsigned bit)
{
	size_t end = off + len;

	if (skipped & bit)
		return;
	note("fallocate %d %zu+%zu", mode, off, len);
	if (fallocate(fd, mode, (off_t)off, (off_t)len)) {
		if (errno != EOPNOTSUPP)
			die("fallocate fails", off);
		skipped |= bit;
		return;
	}
	if (end > size && !(mode & FALLOC_FL_KEEP_SIZE)) {
		memset(model + size, 0, end - size);
		size = end;
	}
	if (mode & ~FALLOC_FL_KEEP_SIZE && off < size)
		memset(model + off, 0, (end < size ? end : size) - off);
}

static void do_copy(size_t from, size_t to, size_t len)
{
	off_t a = (off_t)from, b = (off_t)to;
	ssize_t n;

	if (from >= size || (from < to + len && to < from + len))
		return;
	if (from + len > size)
		len = size - from;
	note("copy %zu to %zu+%zu", from, to, len);
	n = copy_file_range(fd, &a, fd, &b, len, 0);
	if (n < 0)
		die("copy_file_range fails", from);
	if (to > size && n)
		memset(model + size, 0, to - size);
	memmove(model + to, model + from, (size_t)n);
	if (to + (size_t)n > size)
		size = to + (size_t)n;
}

static void do_seek(size_t off)
{
	off_t data, hole;

	if (off >= size)
		return;
	note("seek %zu", off);
	data = lseek(fd, (off_t)off, SEEK_DATA);
	hole = lseek(fd, (off_t)off, SEEK_HOLE);
	if (hole < (off_t)off || hole > (off_t)size)
		die("the hole is elsewhere", off);
	if (data < 0 && errno != ENXIO)
		die("SEEK_DATA fails", off);
	/* What lies before the data is zero. */
	for (size_t i = off; i < (data < 0 ? size : (size_t)data); i++)
		if (model[i])
			die("a hole with data", i);
}

static void check_all(void)
{
	struct stat st;

	note("check");
	if (fstat(fd, &st) || (size_t)st.st_size != size)
		die("the size differs", (size_t)st.st_size);
	if (pread(fd, buf, MAX, 0) != (ssize_t)size)
		die("cannot read all", 0);
	compare(buf, 0, size, "the file differs");
}

static void do_reopen(void)
{
	note("reopen");
	close(fd);
	fd = open(path, O_RDWR);
	if (fd < 0)
		die("cannot open again", 0);
	check_all();
}

static void step(void)
{
	size_t off = rnd() % MAX, len = 1 + rnd() % (rnd() & 3 ? 9000 : 70000);

	if (rnd() % 4 == 0)
		off &= ~4095ul;
	if (off + len > MAX)
		len = MAX - off;
	switch (rnd() % 22) {
	case 0:
	case 1:
	case 2:
	case 3: do_write(off, len); break;
	case 4:
	case 5:
	case 6:
	case 7: do_read(off, len); break;
	case 8:
	case 9: do_map(off, len, 1); break;
	case 10:
	case 11: do_map(off, len, 0); break;
	case 12: do_truncate(off); break;
	case 13: do_fallocate(off, len, 0, 1); break;
	case 14: do_fallocate(off, len, FALLOC_FL_KEEP_SIZE, 2); break;
	case 15:
		do_fallocate(off, len,
			     FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4);
		break;
	case 16: do_fallocate(off, len, FALLOC_FL_ZERO_RANGE, 8); break;
	case 17: do_copy(rnd() % MAX, off, len); break;
	case 18: do_append(len); break;
	case 19: do_seek(off); break;
	case 20:
		note("sync");
		if (rnd() & 1 ? fsync(fd) : fdatasync(fd))
			die("sync fails", 0);
		break;
	case 21:
		if (rnd() % 8 == 0)
			do_reopen();
		else
			check_all();
	}
}

static int lock(int argc, char **argv)
{
	struct flock fl = { .l_type = F_WRLCK };

	fd = open(argv[2], O_RDWR | O_CREAT, 0644);
	/* Not both at once: where NFS is, they are the same. */
	if (fd < 0 || fcntl(fd, F_SETLK, &fl) ||
	    (argc > 3 && flock(fd, LOCK_EX | LOCK_NB)))
		return 1;
	if (argc < 5)
		return 0;
	close(open(argv[3], O_WRONLY | O_CREAT, 0644));
	while (access(argv[4], F_OK))
		usleep(100000);
	return 0;
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 2 ? strtol(argv[2], NULL, 10) : 10);

	if (argc > 2 && !strcmp(argv[1], "lock"))
		return lock(argc, argv);
	if (argc < 2) {
		fputs("usage: fsx FILE [SECONDS [SEED]]\n", stderr);
		return 2;
	}
	path = argv[1];
	seed = (argc > 3 ? strtoull(argv[3], NULL, 0) : 1) * 0x9e3779b97f4a7c15;
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0)
		die("cannot be made", 0);
	while (time(NULL) < end)
		for (int i = 0; i < 16; i++)
			step();
	check_all();
	printf("fsx: %llu operations, no difference (left out: %x)\n",
	       (unsigned long long)count, skipped);
	return 0;
}
