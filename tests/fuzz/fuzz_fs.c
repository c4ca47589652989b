/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_fs.c - a share and a hostile guest
 *
 * Byte 0: how the share is made; then records of an opcode, a node, sizes and
 * bytes.  Small node and handle numbers stand for those that were given, so
 * that a request finds something.  A secret lies beside the directory; no
 * answer may have it, and it may not change.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vm/fs/fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { KNOWN = 32 };
static const char secret[] = "SECRET-OF-THE-HOST";
static char top[64];

static uint64_t nodes[KNOWN], handles[KNOWN];
static unsigned nnodes, nhandles;
static uint8_t out[20000];

static bool put_file(const char *dir, const char *name, const char *text)
{
	ssize_t n = -1;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK,
		  0644);
	if (fd >= 0) {
		n = write(fd, text, strlen(text));
		close(fd);
	}
	return n > 0;
}

static void clean(void)
{
	char command[256];

	snprintf(command, sizeof(command),
		 "chmod -R u+rwx %s/share 2>/dev/null; rm -rf %s", top, top);
	if (system(command))
		abort();
}

static void setup(void)
{
	char path[128];

	if (!*top) {
		const char *tmp = getenv("TMPDIR");

		snprintf(top, sizeof(top), "%.30s/husk-fuzz-fs-XXXXXX",
			 tmp ? tmp : "/tmp");
		if (!mkdtemp(top))
			abort();
		atexit(clean);
		if (!put_file(top, "secret", secret))
			abort();
		snprintf(path, sizeof(path), "%s/share", top);
		if (mkdir(path, 0755))
			abort();
	}
}

/* Emptied only when there is much in it: that is what takes time. */
static void fill(bool empty)
{
	char dir[80], path[320];

	snprintf(dir, sizeof(dir), "%s/share", top);
	if (empty) {
		snprintf(path, sizeof(path),
			 "chmod -R u+rwx %s; rm -rf %s; mkdir %s", dir, dir,
			 dir);
		if (system(path))
			abort();
	}
	snprintf(path, sizeof(path), "%s/d", dir);
	(void)!mkdir(path, 0755);
	if ((!put_file(dir, "a", "text of a") ||
	     !put_file(dir, "d/f", "text of f")) &&
	    !empty) {
		fill(true);
		return;
	}
	snprintf(path, sizeof(path), "%s/l", dir);
	(void)!symlink("../secret", path);
	snprintf(path, sizeof(path), "%s/u", dir);
	(void)!symlink("..", path);
	snprintf(path, sizeof(path), "%s/p", dir);
	(void)!mkfifo(path, 0644);
}

static void check_secret(ssize_t len)
{
	char path[80], text[32] = "";
	struct stat st;
	int fd;

	for (ssize_t i = 0; i + (ssize_t)sizeof(secret) - 1 <= len; i++)
		if (!memcmp(out + i, secret, sizeof(secret) - 1))
			abort();
	snprintf(path, sizeof(path), "%s/secret", top);
	fd = open(path, O_RDONLY | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) || st.st_nlink != 1 ||
	    (st.st_mode & 0777) != 0644 ||
	    read(fd, text, sizeof(text)) != sizeof(secret) - 1 ||
	    memcmp(text, secret, sizeof(secret) - 1))
		abort();
	close(fd);
}

static void learn(uint32_t opcode, ssize_t len)
{
	struct fuse_out_header h;
	struct fuse_entry_out e;
	struct fuse_open_out o;
	size_t body = (size_t)len - sizeof(h);

	memcpy(&h, out, sizeof(h));
	if ((size_t)len != h.len || (h.error && h.len != sizeof(h)) ||
	    h.error > 0 || h.error < -4095)
		abort();
	if (h.error)
		return;
	if (body == sizeof(e) || body == sizeof(e) + sizeof(o)) {
		memcpy(&e, out + sizeof(h), sizeof(e));
		nodes[nnodes++ % KNOWN] = e.nodeid;
	}
	if (opcode == FUSE_OPEN || opcode == FUSE_OPENDIR ||
	    opcode == FUSE_CREATE || opcode == FUSE_TMPFILE) {
		memcpy(&o, out + len - sizeof(o), sizeof(o));
		handles[nhandles++ % KNOWN] = o.fh;
	}
}

/* Changes the first eight bytes when they are the number of a handle. */
static void put_handle(uint8_t *args, size_t len)
{
	uint64_t fh;

	if (len < 8)
		return;
	memcpy(&fh, args, 8);
	if (fh < KNOWN && nhandles)
		memcpy(args, &handles[fh % nhandles % KNOWN], 8);
}

static void request(struct fs *fs, const uint8_t *d, size_t len)
{
	static uint8_t args[4096];
	struct fuse_in_header h = { .opcode = d[0], .unique = 1 };
	size_t n = len < sizeof(args) ? len : sizeof(args);
	struct iovec in[3], to[2];
	struct fs_message m = { .in = in, .out = to, .nin = 3, .nout = 2 };
	ssize_t ret;

	memcpy(args, d + 4, n - 4);
	n -= 4;
	h.nodeid = d[1] < KNOWN && nnodes ? nodes[d[1] % nnodes % KNOWN] : d[1];
	h.uid = h.gid = d[2] & 1;
	h.len = (uint32_t)(sizeof(h) + n) + (d[2] >> 1 == 77 ? d[3] : 0);
	if (d[2] & 2)
		put_handle(args, n);
	in[0] = (struct iovec){ &h, sizeof(h) };
	in[1] = (struct iovec){ args, n / 2 };
	in[2] = (struct iovec){ args + n / 2, n - n / 2 };
	to[0] = (struct iovec){ out, d[3] & 1 ? 7 : 16 };
	to[1] = (struct iovec){ out + to[0].iov_len,
				d[3] & 2 ? d[3] : sizeof(out) - 16 };
	memset(out, 0, sizeof(out));
	m.quick = d[3] & 4;
	ret = fs_serve(fs, &m);
	if (ret > (ssize_t)(to[0].iov_len + to[1].iov_len))
		abort();
	if (ret >= (ssize_t)sizeof(struct fuse_out_header))
		learn(h.opcode, ret);
	check_secret(ret);
}

/* What was saved is read back, as it is and with a byte changed. */
static void save_and_load(struct fs *fs, const uint8_t *d)
{
	struct state *w = state_writer(1), *r;
	const void *data;
	uint8_t *copy;
	size_t len;

	fs_state(fs, w);
	data = state_data(w, &len);
	copy = malloc(len);
	if (state_finish(w) || !copy)
		abort();
	memcpy(copy, data, len);
	if (d[1])
		copy[(d[2] << 8 | d[3]) % len] ^= d[1];
	r = state_reader(copy, len, 1);
	fs_state(fs, r);
	if (state_finish(r) && !d[1])
		abort();
	state_free(r);
	state_free(w);
	free(copy);
}

static void init(struct fs *fs)
{
	struct fuse_init_in i = { .major = 7, .minor = 38, .flags = ~0u };
	struct fuse_in_header h = { .len = sizeof(h) + sizeof(i),
				    .opcode = FUSE_INIT };
	struct iovec in[2] = { { &h, sizeof(h) }, { &i, sizeof(i) } };
	struct iovec to = { out, sizeof(out) };
	struct fs_message m = { .in = in, .out = &to, .nin = 2, .nout = 1 };

	if (fs_serve(fs, &m) <= 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static unsigned runs;
	char dir[80];
	struct fs_config cfg = { .path = dir, .max_fds = 8 };
	struct fs *fs;

	if (size < 2)
		return 0;
	setup();
	fill(runs++ % 16 == 0);
	snprintf(dir, sizeof(dir), "%s/share", top);
	cfg.owner = data[0] & 1 ? FS_OWNER_HOST : FS_OWNER_AUTO;
	cfg.readonly = data[0] & 2;
	cfg.guest_locks = data[0] & 4;
	cfg.uid = data[0] & 8 ? 1000 : 0;
	if (fs_open(&cfg, &fs, NULL))
		abort();
	init(fs);
	nodes[0] = 1;
	nnodes = 1;
	nhandles = 0;
	data++;
	size--;
	for (unsigned i = 0; size > 5 && i < 64; i++) {
		size_t len = data[0] + 4u;

		if (len > size - 1)
			len = size - 1;
		if (data[1] == 200)
			save_and_load(fs, data + 1);
		else if (data[1] == FUSE_FALLOCATE)
			; /* fills the host's disk */
		else
			request(fs, data + 1, len);
		data += 1 + len;
		size -= 1 + len;
	}
	fs_close(fs);
	return 0;
}
