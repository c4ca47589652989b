/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_fs.c - a shared directory and its device
 *
 * Numbers in the names are those of known vulnerabilities of others: 29 are
 * device nodes that a guest opens, file descriptors it uses up, and
 * set-group-ID it is given.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "mock/fuse_client.h"
#include "mock/virtq_driver.h"
#include "vm/fs/fs.h"

enum { ROOT = 1 };

/* -- a directory and who asks for it -------------------------------------- */

struct share {
	char dir[64];
	struct client c;
};

static void path_in(const struct share *s, const char *name, char *path)
{
	snprintf(path, 256, "%s/%s", s->dir, name);
}

static void put_file(const struct share *s, const char *name, const char *text,
		     mode_t mode)
{
	char path[256];
	FILE *f;

	path_in(s, name, path);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	chmod(path, mode);
}

static void put_dir(const struct share *s, const char *name)
{
	char path[256];

	path_in(s, name, path);
	assert_int_equal(mkdir(path, 0755), 0);
}

static struct stat stat_of(const struct share *s, const char *name)
{
	struct stat st;
	char path[256];

	path_in(s, name, path);
	assert_int_equal(lstat(path, &st), 0);
	return st;
}

static bool is_there(const struct share *s, const char *name)
{
	char path[256];

	path_in(s, name, path);
	return !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
}

static void share_make(struct share *s, struct fs_config *cfg)
{
	struct husk_error err = { 0 };

	memset(s, 0, sizeof(*s));
	strcpy(s->dir, "/tmp/husk-fs-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	cfg->path = s->dir;
	assert_int_equal(fs_open(cfg, &s->c.fs, &err), 0);
	fs_thread_init(s->c.fs);
	assert_int_equal(ask_init(&s->c), 0);
}

static void remove_tree(const char *dir)
{
	char command[256];

	snprintf(command, sizeof(command), "chmod -R u+rwx %s; rm -rf %s", dir,
		 dir);
	assert_int_equal(system(command), 0);
}

static void share_end(struct share *s)
{
	fs_close(s->c.fs);
	remove_tree(s->dir);
}

static struct share plain(void)
{
	struct fs_config cfg = { 0 };
	struct share s;

	share_make(&s, &cfg);
	return s;
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int getattr(struct client *c, uint64_t node)
{
	struct fuse_getattr_in in = { 0 };

	return ask(c, FUSE_GETATTR, node, &in, sizeof(in));
}

static int setattr(struct client *c, uint64_t node, uint32_t valid,
		   uint32_t value)
{
	struct fuse_setattr_in in = {
		.valid = valid,
		.mode = value,
		.uid = value,
		.gid = value,
		.size = value,
		.atime = value,
		.mtime = value,
	};

	return ask(c, FUSE_SETATTR, node, &in, sizeof(in));
}

static int forget(struct client *c, uint64_t node, uint64_t n)
{
	struct fuse_forget_in in = { n };

	return ask(c, FUSE_FORGET, node, &in, sizeof(in));
}

static int mknod_in(struct client *c, uint64_t dir, const char *name,
		    uint32_t mode, uint32_t rdev)
{
	struct fuse_mknod_in in = { .mode = mode, .rdev = rdev };

	return ask_names(c, FUSE_MKNOD, dir, &in, sizeof(in), name, NULL);
}

static int mkdir_in(struct client *c, uint64_t dir, const char *name,
		    uint32_t mode)
{
	struct fuse_mkdir_in in = { .mode = mode };

	return ask_names(c, FUSE_MKDIR, dir, &in, sizeof(in), name, NULL);
}

static int rename_in(struct client *c, uint64_t dir, const char *name,
		     uint64_t to, const char *name2, uint32_t flags)
{
	struct fuse_rename2_in in = { .newdir = to, .flags = flags };

	return ask_names(c, FUSE_RENAME2, dir, &in, sizeof(in), name, name2);
}

/* -- the session ---------------------------------------------------------- */

static void test_init(void **state)
{
	struct fs_config cfg = { .path = "/tmp" };
	struct fuse_init_in in = { .major = 7, .minor = 20 };
	struct client c = { 0 };

	assert_int_equal(fs_open(&cfg, &c.fs, NULL), 0);
	assert_int_equal(getattr(&c, ROOT), -EIO); /* not before INIT */
	assert_int_equal(ask(&c, FUSE_INIT, 0, &in, 16), -EPROTO);
	assert_int_equal(ask(&c, FUSE_INIT, 0, &in, 8), -EINVAL);
	in.major = 8;
	assert_int_equal(ask(&c, FUSE_INIT, 0, &in, 16), 0);
	assert_int_equal(c.out.init.major, 7);
	assert_int_equal(getattr(&c, ROOT), -EIO);
	assert_int_equal(ask_init(&c), 0);
	assert_int_equal(c.out.init.major, 7);
	assert_true(c.out.init.flags & FUSE_MAX_PAGES);
	assert_true(c.out.init.flags & FUSE_DO_READDIRPLUS);
	assert_false(c.out.init.flags & FUSE_WRITEBACK_CACHE);
	assert_int_equal(c.out.init.max_write, 1 << 20);
	assert_int_equal(c.out.init.max_pages, 256);
	assert_int_equal(getattr(&c, ROOT), 0);
	assert_int_equal(ask(&c, 4095, ROOT, NULL, 0), -ENOSYS);
	assert_int_equal(ask(&c, 0xffffffff, ROOT, NULL, 0), -ENOSYS);
	assert_int_equal(ask(&c, FUSE_DESTROY, 0, NULL, 0), 0);
	assert_int_equal(getattr(&c, ROOT), -EIO);
	fs_close(c.fs);
	cfg.path = "/nonexistent/husk";
	assert_int_equal(fs_open(&cfg, &c.fs, NULL), -ENOENT);
	cfg.path = "/etc/passwd";
	assert_int_equal(fs_open(&cfg, &c.fs, NULL), -ENOTDIR);
}

static void test_shapes(void **state)
{
	struct share s = plain();
	struct fuse_in_header h = { .len = 40,
				    .opcode = FUSE_GETATTR,
				    .nodeid = 1 };
	uint8_t out[16];
	struct iovec in = { &h, 40 }, to = { out, 16 };
	struct fs_message m = { .in = &in, .out = &to, .nin = 1, .nout = 1 };
	static uint8_t large[80 << 10];

	assert_int_equal(fs_serve(s.c.fs, &m), 16); /* an error: no args */
	in.iov_len = 39;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	in.iov_len = 40;
	h.len = 41;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	h.len = 12;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	h.len = 40;
	to.iov_len = 15;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	m.nout = 0;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	h.opcode = FUSE_FORGET; /* has no answer; too short is no matter */
	assert_int_equal(fs_serve(s.c.fs, &m), 0);
	m.nin = 0;
	assert_int_equal(fs_serve(s.c.fs, &m), -EPROTO);
	assert_int_equal(ask(&s.c, FUSE_GETATTR, ROOT, large, sizeof(large)),
			 -E2BIG);
	/* No room for the answer. */
	s.c.room = 8;
	assert_int_equal(getattr(&s.c, ROOT), -ERANGE);
	assert_int_equal(mkdir_in(&s.c, ROOT, "d", 0755), -ERANGE);
	s.c.room = 0;
	share_end(&s);
}

static void test_names(void **state)
{
	struct share s = plain();
	char name[300];
	int err;

	put_file(&s, "a", "text", 0644);
	put_dir(&s, "d");
	ask_lookup(&s.c, ROOT, "..", &err);
	assert_int_equal(err, -EINVAL);
	ask_lookup(&s.c, ROOT, ".", &err);
	assert_int_equal(err, -EINVAL);
	ask_lookup(&s.c, ROOT, "", &err);
	assert_int_equal(err, -EINVAL);
	ask_lookup(&s.c, ROOT, "d/../../etc", &err);
	assert_int_equal(err, -EINVAL);
	ask_lookup(&s.c, ROOT, "/etc", &err);
	assert_int_equal(err, -EINVAL);
	assert_int_equal(ask(&s.c, FUSE_LOOKUP, ROOT, "a", 1), -EINVAL);
	memset(name, 'n', sizeof(name));
	name[256] = 0;
	ask_lookup(&s.c, ROOT, name, &err);
	assert_int_equal(err, -ENAMETOOLONG);
	assert_int_equal(mkdir_in(&s.c, ROOT, "../x", 0755), -EINVAL);
	assert_int_equal(rename_in(&s.c, ROOT, "a", ROOT, "../a", 0), -EINVAL);
	assert_int_equal(rename_in(&s.c, ROOT, "..", ROOT, "b", 0), -EINVAL);
	assert_int_equal(ask_names(&s.c, FUSE_UNLINK, ROOT, NULL, 0, "d/..",
				   NULL),
			 -EINVAL);
	assert_int_equal(ask_names(&s.c, FUSE_SYMLINK, ROOT, NULL, 0, "a/b",
				   "x"),
			 -EINVAL);
	assert_true(is_there(&s, "a"));
	share_end(&s);
}

/* -- files ---------------------------------------------------------------- */

static void test_lookup_counts(void **state)
{
	struct share s = plain();
	unsigned before = open_fds();
	uint64_t a, b;

	put_file(&s, "a", "text", 0644);
	a = ask_lookup(&s.c, ROOT, "a", NULL);
	b = ask_lookup(&s.c, ROOT, "a", NULL);
	assert_true(a && a == b);
	assert_int_equal(forget(&s.c, a, 1), 0);
	assert_int_equal(getattr(&s.c, a), 0);
	assert_int_equal(forget(&s.c, a, 1), 0);
	assert_int_equal(getattr(&s.c, a), -ESTALE);
	assert_int_equal(open_fds(), before);
	/* More than there are, of what is not there, of the root. */
	forget(&s.c, a, 5);
	forget(&s.c, 0, 1);
	forget(&s.c, UINT64_MAX, UINT64_MAX);
	forget(&s.c, ROOT, UINT64_MAX);
	assert_int_equal(getattr(&s.c, ROOT), 0);
	b = ask_lookup(&s.c, ROOT, "a", NULL);
	assert_true(b && b != a); /* numbers are not given again */
	forget(&s.c, b, UINT64_MAX);
	assert_int_equal(open_fds(), before);
	share_end(&s);
}

static void test_batch_forget(void **state)
{
	struct share s = plain();
	struct {
		struct fuse_batch_forget_in h;
		struct fuse_forget_one one[2];
	} in = { { 2, 0 }, { { 0 } } };

	put_file(&s, "a", "text", 0644);
	put_file(&s, "b", "text", 0644);
	in.one[0].nodeid = ask_lookup(&s.c, ROOT, "a", NULL);
	in.one[1].nodeid = ask_lookup(&s.c, ROOT, "b", NULL);
	in.one[0].nlookup = in.one[1].nlookup = 1;
	in.h.count = UINT32_MAX; /* more than are there */
	assert_int_equal(ask(&s.c, FUSE_BATCH_FORGET, 0, &in, sizeof(in)), 0);
	assert_int_equal(getattr(&s.c, in.one[0].nodeid), -ESTALE);
	assert_int_equal(getattr(&s.c, in.one[1].nodeid), -ESTALE);
	share_end(&s);
}

static void test_data(void **state)
{
	struct share s = plain();
	uint64_t node = 0, fh;
	struct stat st;
	char path[256];

	fh = ask_create(&s.c, ROOT, "f", O_RDWR | O_EXCL, 0640, &node, NULL);
	assert_true(fh && node);
	assert_int_equal(ask_write(&s.c, fh, "hello world", 11, 0, 0), 11);
	assert_int_equal(ask_write(&s.c, fh, "W", 1, 6, 0), 1);
	assert_int_equal(ask_read(&s.c, fh, 100, 0), 11);
	assert_memory_equal(s.c.out.bytes, "hello World", 11);
	assert_int_equal(ask_read(&s.c, fh, 5, 6), 5);
	assert_memory_equal(s.c.out.bytes, "World", 5);
	assert_int_equal(ask_read(&s.c, fh, 5, 600), 0);
	assert_int_equal(ask_read(&s.c, fh, 5, UINT64_MAX), -EINVAL);
	assert_int_equal(ask_write(&s.c, fh, "x", 1, UINT64_MAX, 0), -EINVAL);
	assert_int_equal(ask_read(&s.c, fh + 1, 5, 0), -EBADF);
	assert_int_equal(ask_read(&s.c, fh | 1ull << 40, 5, 0), -EBADF);
	assert_int_equal(getattr(&s.c, node), 0);
	st = stat_of(&s, "f");
	assert_int_equal(s.c.out.attr.attr.ino, st.st_ino);
	assert_int_equal(s.c.out.attr.attr.size, 11);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 0640);
	assert_int_equal(s.c.out.attr.attr.mtime, st.st_mtim.tv_sec);
	assert_int_equal(s.c.out.attr.attr.mtimensec, st.st_mtim.tv_nsec);
	assert_int_equal(s.c.out.attr.attr.blocks, st.st_blocks);
	assert_int_equal(setattr(&s.c, node, FATTR_SIZE, 4), 0);
	assert_int_equal(stat_of(&s, "f").st_size, 4);
	assert_int_equal(setattr(&s.c, node, FATTR_MTIME, 1000), 0);
	assert_int_equal(stat_of(&s, "f").st_mtim.tv_sec, 1000);
	assert_int_equal(setattr(&s.c, node, FATTR_MODE, 0600), 0);
	assert_int_equal(stat_of(&s, "f").st_mode & 07777, 0600);
	/* Deleted and still open. */
	assert_int_equal(ask_names(&s.c, FUSE_UNLINK, ROOT, NULL, 0, "f", NULL),
			 0);
	assert_int_equal(ask_read(&s.c, fh, 100, 0), 4);
	assert_int_equal(getattr(&s.c, node), 0);
	assert_int_equal(s.c.out.attr.attr.nlink, 0);
	assert_int_equal(ask_release(&s.c, fh, false), 0);
	assert_int_equal(ask_release(&s.c, fh, false), -EBADF);
	assert_int_equal(ask_read(&s.c, fh, 5, 0), -EBADF);
	/* A write that lies about its length. */
	fh = ask_create(&s.c, ROOT, "g", O_RDWR, 0644, &node, NULL);
	{
		struct fuse_write_in in = { .fh = fh, .size = 1 << 20 };

		assert_int_equal(ask(&s.c, FUSE_WRITE, node, &in, sizeof(in)),
				 -EINVAL);
	}
	/* Appended to what the host has made longer. */
	ask_release(&s.c, fh, false);
	fh = ask_open(&s.c, node, O_WRONLY | O_APPEND, NULL);
	put_file(&s, "g", "12345", 0644);
	assert_int_equal(ask_write(&s.c, fh, "6", 1, 0, 0), 1);
	assert_int_equal(stat_of(&s, "g").st_size, 6);
	/* But a page of a mapping knows its place. */
	assert_int_equal(ask_write(&s.c, fh, "x", 1, 0, FUSE_WRITE_CACHE), 1);
	assert_int_equal(stat_of(&s, "g").st_size, 6);
	path_in(&s, "g", path);
	share_end(&s);
}

static void test_holes_and_copies(void **state)
{
	struct share s = plain();
	uint64_t node = 0, a, b;
	struct fuse_fallocate_in f = { .length = 1 << 20 };
	struct fuse_lseek_in l = { .whence = SEEK_DATA };
	struct fuse_copy_file_range_in c = { .len = 4 };

	a = ask_create(&s.c, ROOT, "a", O_RDWR, 0644, &node, NULL);
	f.fh = l.fh = a;
	assert_int_equal(ask(&s.c, FUSE_FALLOCATE, node, &f, sizeof(f)), 0);
	assert_int_equal(stat_of(&s, "a").st_size, 1 << 20);
	f.mode = 3; /* a hole, the size is kept */
	assert_int_equal(ask(&s.c, FUSE_FALLOCATE, node, &f, sizeof(f)), 0);
	assert_int_equal(stat_of(&s, "a").st_blocks, 0);
	f.mode = 0x40;
	assert_int_equal(ask(&s.c, FUSE_FALLOCATE, node, &f, sizeof(f)),
			 -EOPNOTSUPP);
	assert_int_equal(ask_write(&s.c, a, "data", 4, 65536, 0), 4);
	assert_int_equal(ask(&s.c, FUSE_LSEEK, node, &l, sizeof(l)), 0);
	assert_int_equal(s.c.out.lseek.offset, 65536);
	l.whence = SEEK_SET;
	assert_int_equal(ask(&s.c, FUSE_LSEEK, node, &l, sizeof(l)), -EINVAL);
	b = ask_create(&s.c, ROOT, "b", O_RDWR, 0644, &node, NULL);
	c.fh_in = a;
	c.fh_out = b;
	c.off_in = 65536;
	assert_int_equal(ask(&s.c, FUSE_COPY_FILE_RANGE, 0, &c, sizeof(c)), 0);
	assert_int_equal(s.c.out.write.size, 4);
	assert_int_equal(ask_read(&s.c, b, 10, 0), 4);
	assert_memory_equal(s.c.out.bytes, "data", 4);
	share_end(&s);
}

static void test_tree(void **state)
{
	struct share s = plain();
	struct fuse_link_in l;
	uint64_t d, f, e;
	int err;

	put_file(&s, "f", "text", 0644);
	assert_int_equal(mkdir_in(&s.c, ROOT, "d", 0750), 0);
	d = s.c.out.entry.nodeid;
	assert_int_equal(stat_of(&s, "d").st_mode & 07777, 0750);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	l.oldnodeid = f;
	assert_int_equal(
		ask_names(&s.c, FUSE_LINK, d, &l, sizeof(l), "g", NULL), 0);
	assert_int_equal(s.c.out.entry.nodeid, f);
	assert_int_equal(s.c.out.entry.attr.nlink, 2);
	assert_int_equal(rename_in(&s.c, ROOT, "f", d, "g", RENAME_NOREPLACE),
			 -EEXIST);
	assert_int_equal(rename_in(&s.c, ROOT, "f", d, "h", 0), 0);
	assert_true(is_there(&s, "d/h"));
	put_file(&s, "e", "other", 0644);
	e = ask_lookup(&s.c, ROOT, "e", NULL);
	assert_int_equal(rename_in(&s.c, ROOT, "e", d, "h", RENAME_EXCHANGE),
			 0);
	assert_int_equal(ask_lookup(&s.c, d, "h", NULL), e);
	assert_int_equal(ask_lookup(&s.c, ROOT, "e", NULL), f);
	assert_int_equal(rename_in(&s.c, ROOT, "e", d, "h", RENAME_WHITEOUT),
			 -EINVAL);
	assert_int_equal(ask_names(&s.c, FUSE_RMDIR, ROOT, NULL, 0, "d", NULL),
			 -ENOTEMPTY);
	assert_int_equal(ask_names(&s.c, FUSE_UNLINK, ROOT, NULL, 0, "d", NULL),
			 -EISDIR);
	ask_names(&s.c, FUSE_UNLINK, d, NULL, 0, "g", NULL);
	ask_names(&s.c, FUSE_UNLINK, d, NULL, 0, "h", NULL);
	assert_int_equal(ask_names(&s.c, FUSE_RMDIR, ROOT, NULL, 0, "d", NULL),
			 0);
	assert_int_equal(mkdir_in(&s.c, d, "x", 0755), -ENOENT);
	ask_lookup(&s.c, d, "x", &err);
	assert_int_equal(err, -ENOENT);
	/* A link is text. */
	assert_int_equal(ask_names(&s.c, FUSE_SYMLINK, ROOT, NULL, 0, "l",
				   "/etc/../passwd"),
			 0);
	assert_int_equal(
		ask(&s.c, FUSE_READLINK, s.c.out.entry.nodeid, NULL, 0), 0);
	assert_int_equal(s.c.len, 14);
	assert_memory_equal(s.c.out.bytes, "/etc/../passwd", 14);
	assert_int_equal(ask(&s.c, FUSE_READLINK, ROOT, NULL, 0), -EINVAL);
	share_end(&s);
}

static void test_tmpfile(void **state)
{
	struct share s = plain();
	struct fuse_create_in in = { .flags = O_RDWR, .mode = 0600 };
	struct fuse_link_in l;
	uint64_t fh;

	assert_int_equal(ask_names(&s.c, FUSE_TMPFILE, ROOT, &in, sizeof(in),
				   "#1", NULL),
			 0);
	fh = s.c.out.created.open.fh;
	l.oldnodeid = s.c.out.created.entry.nodeid;
	assert_int_equal(ask_write(&s.c, fh, "tmp", 3, 0, 0), 3);
	assert_int_equal(ask_names(&s.c, FUSE_LINK, ROOT, &l, sizeof(l), "now",
				   NULL),
			 0);
	assert_int_equal(stat_of(&s, "now").st_size, 3);
	share_end(&s);
}

/* Names in the listing at all; how many different ones. */
static unsigned list_all(struct client *c, uint64_t fh, uint32_t size,
			 bool plus, uint64_t *nodes)
{
	struct fuse_read_in in = { .fh = fh, .size = size };
	size_t head = plus ? sizeof(struct fuse_entry_out) : 0;
	unsigned n = 0;

	for (;;) {
		size_t at = 0, len;
		uint8_t *copy;

		assert_int_equal(ask(c, plus ? FUSE_READDIRPLUS : FUSE_READDIR,
				     0, &in, sizeof(in)),
				 0);
		len = c->len;
		if (!len)
			return n;
		assert_true(len <= size);
		copy = malloc(len);
		assert_non_null(copy);
		memcpy(copy, c->out.bytes, len);
		while (at < len) {
			struct fuse_entry_out e;
			struct fuse_dirent d;

			memcpy(&e, copy + at, head);
			memcpy(&d, copy + at + head, FUSE_NAME_OFFSET);
			if (plus && nodes && e.nodeid)
				nodes[n] = e.nodeid;
			in.offset = d.off;
			at += head +
			      FUSE_REC_ALIGN(FUSE_NAME_OFFSET + d.namelen);
			n++;
		}
		free(copy);
	}
}

static void test_readdir(void **state)
{
	struct share s = plain();
	uint64_t fh, nodes[600] = { 0 };
	unsigned before;
	char name[40];
	struct fuse_read_in in = { .size = 20 };

	for (unsigned i = 0; i < 500; i++) {
		snprintf(name, sizeof(name), "file-with-a-name-%u", i);
		put_file(&s, name, "", 0644);
	}
	before = open_fds();
	fh = ask_open(&s.c, ROOT, O_DIRECTORY, NULL);
	assert_true(fh);
	assert_int_equal(list_all(&s.c, fh, 4096, false, NULL), 502);
	assert_int_equal(list_all(&s.c, fh, 100, false, NULL), 502);
	assert_int_equal(list_all(&s.c, fh, 65536, false, NULL), 502);
	assert_int_equal(list_all(&s.c, fh, 4096, true, nodes), 502);
	in.fh = fh;
	assert_int_equal(ask(&s.c, FUSE_READDIR, 0, &in, sizeof(in)), -EINVAL);
	/* Each counted once, however often the buffer was full. */
	for (unsigned i = 0; i < 502; i++)
		if (nodes[i]) {
			assert_int_equal(getattr(&s.c, nodes[i]), 0);
			forget(&s.c, nodes[i], 1);
			assert_int_equal(getattr(&s.c, nodes[i]), -ESTALE);
		}
	assert_int_equal(ask_read(&s.c, fh, 10, 0), -EBADF);
	ask_release(&s.c, fh, true);
	assert_int_equal(open_fds(), before);
	share_end(&s);
}

/* -- out of the share ----------------------------------------------------- */

static void test_links_are_not_followed(void **state)
{
	struct share s = plain();
	char path[256];
	uint64_t l, node;
	int err;

	path_in(&s, "link", path);
	assert_int_equal(symlink("/etc", path), 0);
	path_in(&s, "file", path);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	l = ask_lookup(&s.c, ROOT, "link", NULL);
	assert_true(S_ISLNK(s.c.out.entry.attr.mode));
	ask_lookup(&s.c, l, "passwd", &err);
	assert_int_equal(err, -ENOTDIR);
	ask_open(&s.c, l, O_RDONLY, &err);
	assert_int_equal(err, -ELOOP);
	ask_open(&s.c, l, O_DIRECTORY, &err);
	assert_int_equal(err, -ELOOP);
	l = ask_lookup(&s.c, ROOT, "file", NULL);
	ask_open(&s.c, l, O_RDONLY, &err);
	assert_int_equal(err, -ELOOP);
	assert_int_equal(setattr(&s.c, l, FATTR_SIZE, 0), -ELOOP);
	assert_int_equal(setattr(&s.c, l, FATTR_MODE, 0), -EOPNOTSUPP);
	ask_create(&s.c, ROOT, "file", O_RDWR, 0644, &node, &err);
	assert_int_equal(err, -ELOOP);
	ask_create(&s.c, l, "x", O_RDWR, 0644, &node, &err);
	assert_int_equal(err, -ENOTDIR);
	share_end(&s);
}

static void test_29_special_files(void **state)
{
	struct share s = plain();
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	char path[256];
	uint64_t n;
	int err, fd;

	path_in(&s, "fifo", path);
	assert_int_equal(mkfifo(path, 0666), 0);
	n = ask_lookup(&s.c, ROOT, "fifo", NULL);
	assert_true(S_ISFIFO(s.c.out.entry.attr.mode));
	ask_open(&s.c, n, O_RDONLY, &err); /* and does not hang */
	assert_int_equal(err, -ENXIO);
	ask_create(&s.c, ROOT, "fifo", O_WRONLY, 0644, &n, &err);
	assert_int_equal(err, -ENXIO);
	path_in(&s, "sock", un.sun_path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (void *)&un, sizeof(un)), 0);
	n = ask_lookup(&s.c, ROOT, "sock", NULL);
	ask_open(&s.c, n, O_RDWR, &err);
	assert_int_equal(err, -ENXIO);
	close(fd);
	path_in(&s, "null", path);
	if (!mknod(path, S_IFCHR | 0666, makedev(1, 3))) {
		n = ask_lookup(&s.c, ROOT, "null", NULL);
		assert_true(S_ISCHR(s.c.out.entry.attr.mode));
		assert_int_equal(s.c.out.entry.attr.rdev, 1 << 8 | 3);
		ask_open(&s.c, n, O_RDWR, &err);
		assert_int_equal(err, -ENXIO);
		assert_int_equal(setattr(&s.c, n, FATTR_SIZE, 0), -ENXIO);
	}
	/* The guest's own devices are none of the host's. */
	assert_int_equal(mknod_in(&s.c, ROOT, "disk", S_IFBLK | 0660,
				  8 << 8 | 17 | 0x100000),
			 0);
	n = s.c.out.entry.nodeid;
	assert_int_equal(s.c.out.entry.attr.mode, S_IFBLK | 0660);
	assert_int_equal(s.c.out.entry.attr.rdev, 8 << 8 | 17 | 0x100000);
	assert_true(S_ISREG(stat_of(&s, "disk").st_mode));
	assert_int_equal(setattr(&s.c, n, FATTR_MODE, 0600), 0);
	assert_int_equal(setattr(&s.c, n, FATTR_UID, 5), 0);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFBLK | 0600);
	assert_int_equal(s.c.out.attr.attr.uid, 5);
	assert_int_equal(s.c.out.attr.attr.rdev, 8 << 8 | 17 | 0x100000);
	assert_int_equal(mknod_in(&s.c, ROOT, "pipe", S_IFIFO | 0644, 0), 0);
	assert_true(S_ISFIFO(s.c.out.entry.attr.mode));
	n = s.c.out.entry.nodeid;
	assert_int_equal(setattr(&s.c, n, FATTR_UID, 5), 0);
	assert_int_equal(s.c.out.attr.attr.uid, 5);
	assert_true(S_ISFIFO(s.c.out.attr.attr.mode));
	share_end(&s);
}

static void test_29_file_descriptors(void **state)
{
	struct fs_config cfg = { .max_fds = 32 };
	struct share s;
	uint64_t nodes[1000], d;
	char name[40];
	unsigned before;

	share_make(&s, &cfg);
	put_dir(&s, "d");
	put_dir(&s, "d/e");
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "d/e/%u", i);
		put_file(&s, name, "", 0644);
	}
	before = open_fds();
	d = ask_lookup(&s.c, ask_lookup(&s.c, ROOT, "d", NULL), "e", NULL);
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		nodes[i] = ask_lookup(&s.c, d, name, NULL);
		assert_true(nodes[i]);
	}
	assert_true(open_fds() < before + 64);
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "d/e/%u", i);
		assert_int_equal(getattr(&s.c, nodes[i]), 0);
		assert_int_equal(s.c.out.attr.attr.ino,
				 stat_of(&s, name).st_ino);
	}
	assert_true(open_fds() < before + 64);
	/* Renamed by the guest, above and at the file, while not open. */
	assert_int_equal(rename_in(&s.c, ROOT, "d", ROOT, "D", 0), 0);
	assert_int_equal(rename_in(&s.c, d, "3", ROOT, "three", 0), 0);
	assert_int_equal(getattr(&s.c, nodes[3]), 0);
	assert_int_equal(s.c.out.attr.attr.ino, stat_of(&s, "three").st_ino);
	assert_int_equal(getattr(&s.c, nodes[5]), 0);
	assert_int_equal(s.c.out.attr.attr.ino, stat_of(&s, "D/e/5").st_ino);
	share_end(&s);
}

/* The host puts a link where the guest knows a directory. */
static void test_29_swapped_for_a_link(void **state)
{
	struct fs_config cfg = { .max_fds = 4 };
	struct share s;
	uint64_t d, f, other;
	char path[256], to[256], name[16];
	int err;

	share_make(&s, &cfg);
	put_dir(&s, "d");
	put_file(&s, "d/passwd", "mine", 0644);
	for (unsigned i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "%u", i);
		put_file(&s, name, "", 0644);
	}
	d = ask_lookup(&s.c, ROOT, "d", NULL);
	f = ask_lookup(&s.c, d, "passwd", NULL);
	for (unsigned i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "%u", i);
		assert_true(ask_lookup(&s.c, ROOT, name, NULL));
	}
	path_in(&s, "d", path);
	path_in(&s, "moved", to);
	assert_int_equal(rename(path, to), 0);
	assert_int_equal(symlink("/etc", path), 0);
	assert_int_equal(getattr(&s.c, f), -ESTALE);
	ask_open(&s.c, f, O_RDONLY, &err);
	assert_int_equal(err, -ESTALE);
	ask_lookup(&s.c, d, "shadow", &err);
	assert_int_equal(err, -ESTALE);
	/* And another file where one was. */
	other = ask_lookup(&s.c, ROOT, "7", NULL);
	for (unsigned i = 8; i < 40; i++) {
		snprintf(name, sizeof(name), "%u", i);
		ask_lookup(&s.c, ROOT, name, NULL);
	}
	path_in(&s, "7", path);
	unlink(path);
	put_file(&s, "7", "another", 0644);
	assert_int_equal(getattr(&s.c, other), -ESTALE);
	/* Back again, it is found again. */
	path_in(&s, "d", path);
	unlink(path);
	rename(to, path);
	assert_int_equal(getattr(&s.c, f), 0);
	share_end(&s);
}

static void test_29_setgid(void **state)
{
	struct fs_config cfg = { .owner = FS_OWNER_GUEST };
	struct share s;
	uint64_t d, node;
	char path[256];

	if (geteuid())
		skip();
	for (unsigned mapped = 0; mapped < 2; mapped++) {
		cfg.owner = mapped ? FS_OWNER_HOST : FS_OWNER_GUEST;
		share_make(&s, &cfg);
		assert_int_equal(mkdir_in(&s.c, ROOT, "d", 02777), 0);
		d = s.c.out.entry.nodeid;
		assert_int_equal(setattr(&s.c, d, FATTR_GID, 50), 0);
		assert_int_equal(setattr(&s.c, d, FATTR_MODE, 02777), 0);
		assert_int_equal(s.c.out.attr.attr.mode, S_IFDIR | 02777);
		s.c.uid = s.c.gid = 1000;
		assert_true(
			ask_create(&s.c, d, "f", O_RDWR, 02755, &node, NULL));
		assert_int_equal(s.c.out.created.entry.attr.mode,
				 S_IFREG | 0755);
		assert_int_equal(s.c.out.created.entry.attr.gid, 50);
		assert_int_equal(s.c.out.created.entry.attr.uid, 1000);
		assert_int_equal(mkdir_in(&s.c, d, "e", 0755), 0);
		assert_int_equal(s.c.out.entry.attr.mode, S_IFDIR | 02755);
		assert_int_equal(s.c.out.entry.attr.gid, 50);
		path_in(&s, "d/f", path);
		assert_int_equal(stat_of(&s, "d/f").st_uid, mapped ? 0 : 1000);
		share_end(&s);
	}
}

/* -- owners, modes, attributes -------------------------------------------- */

static void test_owner_host(void **state)
{
	struct fs_config cfg = { .owner = FS_OWNER_HOST };
	struct share s;
	uint64_t f, fh, d;
	struct stat st;
	int err;

	share_make(&s, &cfg);
	put_file(&s, "old", "text", 0644);
	f = ask_lookup(&s.c, ROOT, "old", NULL);
	assert_int_equal(s.c.out.entry.attr.uid, 0);
	assert_int_equal(setattr(&s.c, f, FATTR_UID, 33), 0);
	assert_int_equal(s.c.out.attr.attr.uid, 33);
	assert_int_equal(s.c.out.attr.attr.gid, 0);
	assert_int_equal(setattr(&s.c, f, FATTR_MODE, 04000 | 0111), 0);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 04111);
	st = stat_of(&s, "old");
	assert_int_equal(st.st_uid, geteuid());
	assert_int_equal(st.st_mode & 07777, 0711); /* ours to read, no suid */
	assert_true(ask_open(&s.c, f, O_RDWR, &err));
	/* As the kernel does: who changes the owner loses set-user-ID. */
	assert_int_equal(setattr(&s.c, f, FATTR_GID, 33), 0);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 0111);
	/* Back to what the host has: the attribute goes. */
	setattr(&s.c, f, FATTR_UID, 0);
	setattr(&s.c, f, FATTR_GID, 0);
	assert_int_equal(setattr(&s.c, f, FATTR_MODE, 0600), 0);
	{
		char path[256];

		path_in(&s, "old", path);
		assert_int_equal(getxattr(path, "user.husk.stat", NULL, 0), -1);
	}
	/* Made by others in the guest. */
	s.c.uid = 1000;
	s.c.gid = 100;
	fh = ask_create(&s.c, ROOT, "new", O_RDWR, 0, &f, NULL);
	assert_true(fh);
	assert_int_equal(s.c.out.created.entry.attr.uid, 1000);
	assert_int_equal(s.c.out.created.entry.attr.gid, 100);
	assert_int_equal(s.c.out.created.entry.attr.mode, S_IFREG);
	assert_int_equal(stat_of(&s, "new").st_mode & 07777, 0600);
	assert_int_equal(mkdir_in(&s.c, ROOT, "d", 01555), 0);
	d = s.c.out.entry.nodeid;
	assert_int_equal(s.c.out.entry.attr.mode, S_IFDIR | 01555);
	assert_int_equal(mkdir_in(&s.c, d, "e", 0700), 0);
	assert_int_equal(ask_names(&s.c, FUSE_SYMLINK, d, NULL, 0, "l", "x"),
			 0);
	assert_int_equal(setattr(&s.c, s.c.out.entry.nodeid, FATTR_UID, 7), 0);
	/* Somebody has written nonsense there. */
	{
		static const char *const bad[] = {
			"",
			"x",
			"1:2:3",
			"1:2:100644:0:0x",
			"1:2:040755:0:0",
			"1:2:060660:8:0",
		};
		char path[256];

		path_in(&s, "new", path);
		for (unsigned i = 0; i < 6; i++) {
			assert_int_equal(setxattr(path, "user.husk.stat",
						  bad[i], strlen(bad[i]), 0),
					 0);
			assert_int_equal(getattr(&s.c, f), 0);
			assert_int_equal(s.c.out.attr.attr.mode,
					 S_IFREG | 0600);
			assert_int_equal(s.c.out.attr.attr.uid, 0);
		}
	}
	share_end(&s);
}

static void test_idmap(void **state)
{
	struct fs_config cfg = { .owner = FS_OWNER_HOST,
				 .uid = 1000,
				 .gid = 1001 };
	struct share s;
	uint64_t node;
	char path[256];

	share_make(&s, &cfg);
	s.c.uid = 1000;
	s.c.gid = 1001;
	assert_true(ask_create(&s.c, ROOT, "f", O_RDWR, 0644, &node, NULL));
	assert_int_equal(s.c.out.created.entry.attr.uid, 1000);
	assert_int_equal(s.c.out.created.entry.attr.gid, 1001);
	path_in(&s, "f", path);
	assert_int_equal(getxattr(path, "user.husk.stat", NULL, 0), -1);
	s.c.uid = s.c.gid = 0;
	assert_true(ask_create(&s.c, ROOT, "g", O_RDWR, 0644, &node, NULL));
	assert_int_equal(s.c.out.created.entry.attr.uid, 0);
	path_in(&s, "g", path);
	assert_true(getxattr(path, "user.husk.stat", NULL, 0) > 0);
	if (!geteuid() && !chown(path, 12345, 12345)) {
		assert_int_equal(getattr(&s.c, node), 0);
		assert_int_equal(s.c.out.attr.attr.uid, 65534);
		assert_int_equal(setattr(&s.c, node, FATTR_UID, 0), -EPERM);
	}
	share_end(&s);
}

static int set_xattr(struct client *c, uint64_t node, const char *name,
		     const char *value)
{
	struct fuse_setxattr_in in = { .size = (uint32_t)strlen(value) };

	/* The short form of the struct, as negotiated. */
	return ask_names(c, FUSE_SETXATTR, node, &in, 8, name, value);
}

static int get_xattr(struct client *c, uint64_t node, const char *name,
		     uint32_t size)
{
	struct fuse_getxattr_in in = { .size = size };

	return ask_names(c, FUSE_GETXATTR, node, &in, sizeof(in), name, NULL);
}

static void test_xattr(void **state)
{
	struct share s = plain();
	struct fuse_getxattr_in in = { .size = 1000 };
	struct fuse_setxattr_in big = { .size = 1 << 17 };
	uint64_t f;
	char path[256];

	put_file(&s, "f", "text", 0644);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	assert_int_equal(set_xattr(&s.c, f, "user.a", "value"), 0);
	assert_int_equal(set_xattr(&s.c, f, "security.capability", "cap"), 0);
	assert_int_equal(set_xattr(&s.c, f, "trusted.t", "t"), 0);
	assert_int_equal(set_xattr(&s.c, f, "user.husk.stat", "0:0:0:0:0"),
			 -EPERM);
	assert_int_equal(set_xattr(&s.c, f, "user.husk.x.security.capability",
				   "x"),
			 -EPERM);
	assert_int_equal(set_xattr(&s.c, f, "system.posix_acl_access", "x"),
			 -EOPNOTSUPP);
	assert_int_equal(set_xattr(&s.c, f, "user.", "x"), -EOPNOTSUPP);
	assert_int_equal(get_xattr(&s.c, f, "user.a", 100), 0);
	assert_int_equal(s.c.len, 5);
	assert_memory_equal(s.c.out.bytes, "value", 5);
	assert_int_equal(get_xattr(&s.c, f, "user.a", 0), 0);
	assert_int_equal(s.c.out.xattr.size, 5);
	assert_int_equal(get_xattr(&s.c, f, "user.a", 3), -ERANGE);
	assert_int_equal(get_xattr(&s.c, f, "user.none", 3), -ENODATA);
	assert_int_equal(get_xattr(&s.c, f, "security.capability", 10), 0);
	assert_int_equal(ask(&s.c, FUSE_LISTXATTR, f, &in, sizeof(in)), 0);
	assert_int_equal(s.c.len, strlen("user.a") + strlen("trusted.t") +
					  strlen("security.capability") + 3);
	/* To the host it is nothing but text. */
	path_in(&s, "f", path);
	assert_int_equal(getxattr(path, "security.capability", NULL, 0), -1);
	assert_int_equal(ask_names(&s.c, FUSE_SETXATTR, f, &big, 8, "user.b",
				   "x"),
			 -E2BIG);
	big.size = 100; /* more than follows */
	assert_int_equal(ask_names(&s.c, FUSE_SETXATTR, f, &big, 8, "user.b",
				   "x"),
			 -EINVAL);
	assert_int_equal(ask_names(&s.c, FUSE_REMOVEXATTR, f, NULL, 0, "user.a",
				   NULL),
			 0);
	assert_int_equal(get_xattr(&s.c, f, "user.a", 0), -ENODATA);
	share_end(&s);
}

static void test_killpriv(void **state)
{
	struct fs_config cfg = { .owner = FS_OWNER_HOST };
	struct share s;
	uint64_t f, fh;

	share_make(&s, &cfg);
	fh = ask_create(&s.c, ROOT, "f", O_RDWR, 0755, &f, NULL);
	set_xattr(&s.c, f, "security.capability", "cap");
	setattr(&s.c, f, FATTR_MODE, 06755);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 06755);
	assert_int_equal(ask_write(&s.c, fh, "x", 1, 0, 0), 1);
	assert_int_equal(get_xattr(&s.c, f, "security.capability", 0),
			 -ENODATA);
	getattr(&s.c, f);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 06755);
	assert_int_equal(
		ask_write(&s.c, fh, "x", 1, 0, FUSE_WRITE_KILL_SUIDGID), 1);
	getattr(&s.c, f);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 0755);
	setattr(&s.c, f, FATTR_MODE, 06755);
	setattr(&s.c, f, FATTR_SIZE | FATTR_KILL_SUIDGID, 0);
	assert_int_equal(s.c.out.attr.attr.mode, S_IFREG | 0755);
	share_end(&s);
}

static void test_readonly(void **state)
{
	struct fs_config cfg = { .readonly = true };
	struct share s;
	struct fuse_fallocate_in fa = { .length = 1 };
	struct fuse_copy_file_range_in c = { .len = 1 };
	struct fuse_access_in ac = { .mask = W_OK };
	struct fuse_link_in l;
	uint64_t f, fh, node;
	struct stat before, after;
	int err;

	share_make(&s, &cfg);
	put_file(&s, "f", "text", 0666);
	before = stat_of(&s, "f");
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	ask_open(&s.c, f, O_RDWR, &err);
	assert_int_equal(err, -EROFS);
	ask_open(&s.c, f, O_RDONLY | O_TRUNC, &err);
	assert_int_equal(err, -EROFS);
	fh = ask_open(&s.c, f, O_RDONLY, &err);
	assert_true(fh);
	assert_int_equal(ask_read(&s.c, fh, 10, 0), 4);
	assert_int_equal(ask_write(&s.c, fh, "x", 1, 0, 0), -EROFS);
	fa.fh = c.fh_in = c.fh_out = fh;
	assert_int_equal(ask(&s.c, FUSE_FALLOCATE, f, &fa, sizeof(fa)), -EROFS);
	assert_int_equal(ask(&s.c, FUSE_COPY_FILE_RANGE, f, &c, sizeof(c)),
			 -EROFS);
	assert_int_equal(ask(&s.c, FUSE_ACCESS, f, &ac, sizeof(ac)), -EROFS);
	assert_int_equal(setattr(&s.c, f, FATTR_MODE, 0), -EROFS);
	assert_int_equal(setattr(&s.c, f, FATTR_SIZE, 0), -EROFS);
	assert_int_equal(mkdir_in(&s.c, ROOT, "d", 0755), -EROFS);
	assert_int_equal(mknod_in(&s.c, ROOT, "n", S_IFREG | 0644, 0), -EROFS);
	ask_create(&s.c, ROOT, "c", O_RDWR, 0644, &node, &err);
	assert_int_equal(err, -EROFS);
	ask_create(&s.c, ROOT, "f", O_RDONLY, 0644, &node, &err);
	assert_int_equal(err, -EROFS);
	assert_int_equal(rename_in(&s.c, ROOT, "f", ROOT, "g", 0), -EROFS);
	l.oldnodeid = f;
	assert_int_equal(ask_names(&s.c, FUSE_LINK, ROOT, &l, 8, "g", NULL),
			 -EROFS);
	assert_int_equal(ask_names(&s.c, FUSE_UNLINK, ROOT, NULL, 0, "f", NULL),
			 -EROFS);
	assert_int_equal(ask_names(&s.c, FUSE_SYMLINK, ROOT, NULL, 0, "l", "x"),
			 -EROFS);
	assert_int_equal(set_xattr(&s.c, f, "user.a", "b"), -EROFS);
	assert_int_equal(ask_names(&s.c, FUSE_REMOVEXATTR, f, NULL, 0, "user.a",
				   NULL),
			 -EROFS);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_RDLCK, 0, 9, 0),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_WRLCK, 0, 9, 0),
			 -EBADF);
	after = stat_of(&s, "f");
	assert_memory_equal(&before.st_ctim, &after.st_ctim,
			    sizeof(before.st_ctim));
	assert_false(is_there(&s, "c"));
	share_end(&s);
}

/* -- locks ---------------------------------------------------------------- */

static void test_locks(void **state)
{
	struct share s = plain();
	struct fuse_interrupt_in stop;
	struct flock fl = { .l_type = F_WRLCK, .l_len = 10 };
	uint64_t f, fh, fh2;
	unsigned before;
	char path[256];
	int fd;

	put_file(&s, "f", "text", 0666);
	path_in(&s, "f", path);
	fd = open(path, O_RDWR);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	fh = ask_open(&s.c, f, O_RDWR, NULL);
	fh2 = ask_open(&s.c, f, O_RDWR, NULL);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_WRLCK, 0, 9, 0),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_WRLCK, 0, 9, 0),
			 0); /* again, its own */
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh2, 2, F_RDLCK, 5, 20, 0),
			 -EAGAIN);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh2, 2, F_RDLCK, 10, 20, 0),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_GETLK, fh2, 2, F_WRLCK, 0,
				  INT64_MAX, 0),
			 0);
	assert_int_equal(s.c.out.lk.lk.type, F_WRLCK);
	assert_int_equal(s.c.out.lk.lk.start, 0);
	assert_int_equal(s.c.out.lk.lk.end, 9);
	/* The host respects it, and the other way round. */
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &fl), -1);
	fl.l_start = 100;
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &fl), 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_RDLCK, 0,
				  INT64_MAX, 0),
			 -EAGAIN);
	/* Waiting is up to the caller; interrupted, or too long. */
	assert_int_equal(ask_lock(&s.c, FUSE_SETLKW, fh2, 2, F_RDLCK, 0, 9, 0),
			 FS_WAIT);
	before = fs_unlocks(s.c.fs);
	stop.unique = s.c.unique + 2;
	ask(&s.c, FUSE_INTERRUPT, 0, &stop, sizeof(stop));
	assert_true(fs_unlocks(s.c.fs) != before);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLKW, fh2, 2, F_RDLCK, 0, 9, 0),
			 -EINTR);
	s.c.last = true;
	assert_int_equal(ask_lock(&s.c, FUSE_SETLKW, fh2, 2, F_RDLCK, 0, 9, 0),
			 -EINTR);
	s.c.last = false;
	before = fs_unlocks(s.c.fs);
	{
		struct fuse_flush_in in = { .fh = fh, .lock_owner = 1 };

		assert_int_equal(ask(&s.c, FUSE_FLUSH, f, &in, sizeof(in)), 0);
	}
	assert_true(fs_unlocks(s.c.fs) != before);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLKW, fh2, 2, F_RDLCK, 0, 9, 0),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, 7, 0, 9, 0),
			 -EINVAL);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_RDLCK, 9, 0, 0),
			 -EINVAL);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_RDLCK, UINT64_MAX,
				  UINT64_MAX, 0),
			 -EINVAL);
	/* flock() is of the handle. */
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh, 1, F_WRLCK, 0, 0,
				  FUSE_LK_FLOCK),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, fh2, 2, F_RDLCK, 0, 0,
				  FUSE_LK_FLOCK),
			 -EAGAIN);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), -1);
	ask_release(&s.c, fh, false);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), 0);
	close(fd);
	share_end(&s);
}

static void test_lock_owners_bounded(void **state)
{
	struct share s = plain();
	unsigned before = open_fds();
	uint64_t f, fh, got = 0;
	int ret = 0;

	put_file(&s, "f", "text", 0666);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	fh = ask_open(&s.c, f, O_RDWR, NULL);
	while (got < 10000 && !ret)
		ret = ask_lock(&s.c, FUSE_SETLK, fh, ++got, F_RDLCK, 0, 9, 0);
	assert_true(ret == -ENOLCK || ret == -EMFILE);
	assert_int_equal(ask(&s.c, FUSE_DESTROY, 0, NULL, 0), 0);
	assert_int_equal(open_fds(), before);
	share_end(&s);
}

/* -- saved and restored, swapped ------------------------------------------ */

static void test_state(void **state)
{
	struct share s = plain();
	struct client two = { 0 };
	struct fs_config cfg = { .path = s.dir };
	uint64_t d, f, g, fh, gone, dh, node, unlinked;
	struct husk_error err;
	char path[256];

	put_dir(&s, "d");
	put_dir(&s, "d/e");
	put_file(&s, "d/e/f", "text", 0644);
	put_file(&s, "g", "text", 0644);
	d = ask_lookup(&s.c, ask_lookup(&s.c, ROOT, "d", NULL), "e", NULL);
	f = ask_lookup(&s.c, d, "f", NULL);
	gone = ask_lookup(&s.c, ROOT, "g", NULL);
	fh = ask_open(&s.c, f, O_RDWR, NULL);
	dh = ask_open(&s.c, d, O_DIRECTORY, NULL);
	unlinked = ask_create(&s.c, ROOT, "u", O_RDWR, 0644, &node, NULL);
	ask_names(&s.c, FUSE_UNLINK, ROOT, NULL, 0, "u", NULL);
	ask_lock(&s.c, FUSE_SETLK, fh, 77, F_WRLCK, 10, 19, 0);
	ask_lock(&s.c, FUSE_SETLK, fh, 77, F_RDLCK, 30, INT64_MAX, 0);
	ask_lock(&s.c, FUSE_SETLK, fh, 77, F_WRLCK, 0, 0, FUSE_LK_FLOCK);
	path_in(&s, "g", path);
	unlink(path);

	assert_int_equal(fs_open(&cfg, &two.fs, &err), 0);
	{
		/* The locks are only free when the old one has gone. */
		struct state *w = state_writer(1), *r;
		const void *data;
		size_t len;

		fs_state(s.c.fs, w);
		assert_int_equal(state_finish(w), 0);
		data = state_data(w, &len);
		fs_close(s.c.fs);
		r = state_reader(data, len, 1);
		fs_state(two.fs, r);
		assert_int_equal(state_finish(r), 0);
		state_free(r);
		state_free(w);
	}
	s.c.fs = two.fs;
	assert_int_equal(getattr(&s.c, f), 0); /* without INIT */
	assert_int_equal(s.c.out.attr.attr.ino, stat_of(&s, "d/e/f").st_ino);
	assert_int_equal(ask_read(&s.c, fh, 10, 0), 4);
	assert_int_equal(ask_write(&s.c, fh, "T", 1, 0, 0), 1);
	assert_int_equal(list_all(&s.c, dh, 4096, false, NULL), 3);
	assert_int_equal(getattr(&s.c, gone), -ESTALE);
	assert_int_equal(ask_read(&s.c, unlinked, 10, 0), -ESTALE);
	assert_int_equal(ask_release(&s.c, unlinked, false), 0);
	assert_int_equal(ask_read(&s.c, unlinked, 10, 0), -EBADF);
	assert_int_equal(ask_lookup(&s.c, d, "f", NULL), f);
	forget(&s.c, f, 1);
	assert_int_equal(getattr(&s.c, f), 0);
	g = ask_open(&s.c, f, O_RDWR, NULL);
	assert_true(g && g != fh);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, g, 5, F_RDLCK, 19, 19, 0),
			 -EAGAIN);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, g, 5, F_WRLCK, 99, 99, 0),
			 -EAGAIN);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, g, 5, F_RDLCK, 99, 99, 0),
			 0);
	assert_int_equal(ask_lock(&s.c, FUSE_SETLK, g, 5, F_RDLCK, 0, 0,
				  FUSE_LK_FLOCK),
			 -EAGAIN);
	share_end(&s);
}

static void test_swap(void **state)
{
	struct share s = plain(), t = plain();
	uint64_t f, fh, again;
	struct husk_error err;

	put_file(&s, "f", "one", 0644);
	put_file(&t, "f", "second", 0644);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	fh = ask_open(&s.c, f, O_RDONLY, NULL);
	assert_int_equal(fs_swap(s.c.fs, "/nonexistent/x", &err), -ENOENT);
	assert_int_equal(ask_read(&s.c, fh, 10, 0), 3);
	assert_int_equal(fs_swap(s.c.fs, t.dir, &err), 0);
	assert_int_equal(ask_read(&s.c, fh, 10, 0), -EBADF);
	assert_int_equal(getattr(&s.c, f), -ESTALE);
	again = ask_lookup(&s.c, ROOT, "f", NULL);
	assert_true(again && again != f);
	assert_int_equal(s.c.out.entry.attr.size, 6);
	forget(&s.c, f, 1);
	assert_int_equal(fs_swap(s.c.fs, NULL, &err), 0);
	assert_int_equal(getattr(&s.c, ROOT), -ESTALE);
	assert_int_equal(ask_init(&s.c), 0);
	assert_int_equal(getattr(&s.c, ROOT), -ESTALE);
	assert_int_equal(fs_swap(s.c.fs, t.dir, &err), 0);
	assert_true(ask_lookup(&s.c, ROOT, "f", NULL));
	share_end(&s);
	share_end(&t);
}

static void test_removed(void **state)
{
	struct share s = plain();
	uint64_t f, fh, node;
	int err;

	put_file(&s, "f", "one", 0644);
	f = ask_lookup(&s.c, ROOT, "f", NULL);
	fh = ask_open(&s.c, f, O_RDWR, NULL);
	remove_tree(s.dir);
	assert_int_equal(ask_read(&s.c, fh, 10, 0), 3);
	ask_lookup(&s.c, ROOT, "f", &err);
	assert_int_equal(err, -ENOENT);
	ask_create(&s.c, ROOT, "g", O_RDWR, 0644, &node, &err);
	assert_int_equal(err, -ENOENT);
	fs_close(s.c.fs);
}

/* -- the device ----------------------------------------------------------- */

static void post_request(struct mock *m, unsigned q, unsigned desc,
			 uint32_t opcode, uint64_t node, const void *in,
			 uint32_t len)
{
	uint64_t at = MOCK_DATA + desc * 0x4000;
	struct fuse_in_header h = { .len = 40 + len,
				    .opcode = opcode,
				    .unique = desc + 1,
				    .nodeid = node };

	memcpy(m->mem.bytes + at, &h, sizeof(h));
	if (len)
		memcpy(m->mem.bytes + at + 40, in, len);
	memset(m->mem.bytes + at + 0x1000, 0xee, 16);
	mock_desc(m, q, desc, at, 40 + len, DESC_NEXT, (uint16_t)(desc + 1));
	mock_desc(m, q, desc + 1, at + 0x1000, 0x1000, DESC_WRITE, 0);
	mock_post(m, q, (uint16_t)desc);
}

static int device_answer(struct mock *m, unsigned desc, void *body, size_t len)
{
	uint64_t at = MOCK_DATA + desc * 0x4000 + 0x1000;
	struct fuse_out_header h;

	memcpy(&h, m->mem.bytes + at, sizeof(h));
	assert_int_equal(h.unique, desc + 1);
	if (body)
		memcpy(body, m->mem.bytes + at + 16, len);
	return h.error;
}

/* Requests are served by who rings, as a vCPU of engine soft does. */
static bool on_vcpu;

static int be_vcpu(void **state)
{
	on_vcpu = true;
	return 0;
}

static int be_another(void **state)
{
	on_vcpu = false;
	return 0;
}

static void device_make(struct mock *m, struct share *s)
{
	static struct fs_config cfg;
	struct virtio_fs_arg arg = { .tag = "tag", .config = &cfg };

	*s = plain();
	cfg = (struct fs_config){ .path = s->dir };
	assert_true(mock_create(m, &virtio_fs_class, &arg));
	m->env.cheap_exits = on_vcpu;
	assert_int_equal(m->v->config[36], 1);
	assert_string_equal((char *)m->v->config, "tag");
}

static void device_init(struct mock *m)
{
	struct fuse_init_in in = { .major = 7, .minor = 37, .flags = ~0u };
	uint16_t n = mock_used(m, 1);

	post_request(m, 1, 0, FUSE_INIT, 0, &in, sizeof(in));
	assert_true(mock_wait(m, 1, (uint16_t)(n + 1)));
	assert_int_equal(device_answer(m, 0, NULL, 0), 0);
}

static void test_device(void **state)
{
	struct fuse_getattr_in in = { 0 };
	struct fuse_forget_in forget_in = { 1 };
	struct fuse_attr_out out;
	static struct mock m;
	struct share s;

	device_make(&m, &s);
	mock_start(&m, m.v->offered);
	device_init(&m);
	post_request(&m, 1, 0, FUSE_GETATTR, ROOT, &in, sizeof(in));
	assert_true(mock_wait(&m, 1, 2));
	assert_int_equal(device_answer(&m, 0, &out, sizeof(out)), 0);
	assert_true(S_ISDIR(out.attr.mode));
	assert_int_equal(mock_used_len(&m, 1, 1), 16 + sizeof(out));
	post_request(&m, 0, 2, FUSE_FORGET, 77, &forget_in, 8);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(mock_used_len(&m, 0, 0), 0);
	/* Not a request: the device stops, the process does not. */
	mock_desc(&m, 1, 0, MOCK_DATA, 20, 0, 0);
	mock_post(&m, 1, 0);
	assert_false(mock_wait(&m, 1, 3));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	assert_int_equal(m.logs, 1);
	/* A reset forgets the session. */
	mock_start(&m, m.v->offered);
	post_request(&m, 1, 0, FUSE_GETATTR, ROOT, &in, sizeof(in));
	assert_true(mock_wait(&m, 1, 1));
	assert_int_equal(device_answer(&m, 0, NULL, 0), -EIO);
	device_init(&m);
	mock_destroy(&m);
	share_end(&s);
}

/* Who waits for a lock does so over a pause, and in another machine. */
static void test_device_waiting(void **state)
{
	struct fuse_lk_in lk = { .owner = 1, .lk = { 0, 9, F_WRLCK, 0 } };
	struct fuse_create_in cr = { .flags = O_RDWR, .mode = 0644 };
	struct fuse_getattr_in ga = { 0 };
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} made;
	struct flock fl = { .l_type = F_WRLCK, .l_len = 10 };
	char name[sizeof(cr) + 2], path[256];
	static struct mock m, m2;
	struct state *w, *r;
	struct share s, s2;
	const void *data;
	size_t len;
	int fd;

	device_make(&m, &s);
	mock_start(&m, m.v->offered);
	device_init(&m);
	memcpy(name, &cr, sizeof(cr));
	memcpy(name + sizeof(cr), "f", 2);
	post_request(&m, 1, 0, FUSE_CREATE, ROOT, name, sizeof(name));
	assert_true(mock_wait(&m, 1, 2));
	assert_int_equal(device_answer(&m, 0, &made, sizeof(made)), 0);
	path_in(&s, "f", path);
	fd = open(path, O_RDWR);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &fl), 0);
	lk.fh = made.open.fh;
	post_request(&m, 1, 0, FUSE_SETLKW, made.entry.nodeid, &lk, sizeof(lk));
	/* Others are not stopped by it. */
	post_request(&m, 1, 2, FUSE_GETATTR, ROOT, &ga, sizeof(ga));
	assert_true(mock_wait(&m, 1, 3));
	assert_int_equal(device_answer(&m, 2, NULL, 0), 0);
	virtio_pause(m.dev);
	virtio_resume(m.dev);
	virtio_pause(m.dev);
	assert_int_equal(mock_used(&m, 1), 3);
	w = state_writer(1);
	m.dev->class->state(m.dev, w);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);

	device_make(&m2, &s2);
	fs_close(s2.c.fs);
	remove_tree(s2.dir);
	mock_destroy(&m2);
	{
		struct fs_config cfg = { .path = s.dir };
		struct virtio_fs_arg arg = { .tag = "tag", .config = &cfg };

		assert_true(mock_create(&m2, &virtio_fs_class, &arg));
		m2.env.cheap_exits = on_vcpu;
	}
	memcpy(&m2.mem, &m.mem, sizeof(m.mem));
	virtio_pause(m2.dev);
	r = state_reader(data, len, 1);
	m2.dev->class->state(m2.dev, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(m2.dev->class->check(m2.dev), 0);
	state_free(r);
	state_free(w);
	mock_destroy(&m);
	virtio_resume(m2.dev);
	close(fd);
	assert_true(mock_wait(&m2, 1, 4));
	assert_int_equal(device_answer(&m2, 0, NULL, 0), 0);
	mock_destroy(&m2);
	share_end(&s);
}

/* A full queue, and a reset in the middle of it. */
static void test_device_reset(void **state)
{
	struct fuse_getattr_in in = { 0 };
	static struct mock m;
	struct share s;

	device_make(&m, &s);
	for (unsigned i = 0; i < 200; i++) {
		mock_start(&m, m.v->offered);
		device_init(&m);
		for (unsigned k = 0; k < 8; k += 2)
			post_request(&m, 1, k, FUSE_GETATTR, ROOT, &in,
				     sizeof(in));
		if (i & 1)
			assert_true(mock_wait(&m, 1, 5));
		mock_common(&m, 20, 0, 1);
	}
	mock_destroy(&m);
	share_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init),
		cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_lookup_counts),
		cmocka_unit_test(test_batch_forget),
		cmocka_unit_test(test_data),
		cmocka_unit_test(test_holes_and_copies),
		cmocka_unit_test(test_tree),
		cmocka_unit_test(test_tmpfile),
		cmocka_unit_test(test_readdir),
		cmocka_unit_test(test_links_are_not_followed),
		cmocka_unit_test(test_29_special_files),
		cmocka_unit_test(test_29_file_descriptors),
		cmocka_unit_test(test_29_swapped_for_a_link),
		cmocka_unit_test(test_29_setgid),
		cmocka_unit_test(test_owner_host),
		cmocka_unit_test(test_idmap),
		cmocka_unit_test(test_xattr),
		cmocka_unit_test(test_killpriv),
		cmocka_unit_test(test_readonly),
		cmocka_unit_test(test_locks),
		cmocka_unit_test(test_lock_owners_bounded),
		cmocka_unit_test(test_state),
		cmocka_unit_test(test_swap),
		cmocka_unit_test(test_removed),
		cmocka_unit_test(test_device),
		cmocka_unit_test_setup_teardown(test_device, be_vcpu,
						be_another),
		cmocka_unit_test(test_device_waiting),
		cmocka_unit_test_setup_teardown(test_device_waiting, be_vcpu,
						be_another),
		cmocka_unit_test(test_device_reset),
		cmocka_unit_test_setup_teardown(test_device_reset, be_vcpu,
						be_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
