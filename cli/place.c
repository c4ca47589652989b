/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place.c - where named machines live, and which of them run
 */
#include "place.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

/* -- folders -------------------------------------------------------------- */

static int __attribute__((format(printf, 3, 4)))
print_path(char *to, size_t room, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(to, room, fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < room)
		return 0;
	complain("%s...: the path is too long", to);
	return EXIT_USAGE;
}

static int make_dirs(char *path)
{
	for (char *p = strchr(path + 1, '/');; p = strchr(p + 1, '/')) {
		int ret;

		if (p)
			*p = 0;
		ret = mkdir(path, 0700);
		if (ret && errno != EEXIST) {
			complain("%s: %s", path, strerror(errno));
			return EXIT_FAULT;
		}
		if (!p)
			return 0;
		*p = '/';
	}
}

/* As the XDG base directory specification says: relative ones do not count. */
static int xdg_dir(char *to, size_t room, const char *variable,
		   const char *below_home)
{
	const char *xdg = getenv(variable), *home = getenv("HOME");
	struct passwd *pw;
	int ret;

	if (!home || *home != '/') {
		pw = getpwuid(getuid());
		home = pw ? pw->pw_dir : "/";
	}
	if (xdg && *xdg == '/')
		ret = print_path(to, room, "%s/husk", xdg);
	else
		ret = print_path(to, room, "%s/%s/husk", home, below_home);
	return ret ? ret : make_dirs(to);
}

int data_dir(char *to, size_t room)
{
	return xdg_dir(to, room, "XDG_DATA_HOME", ".local/share");
}

int cache_dir(char *to, size_t room)
{
	return xdg_dir(to, room, "XDG_CACHE_HOME", ".cache");
}

/* Ours alone: who can write there could put sockets in our place. */
static int private_dir(const char *path)
{
	struct stat st;

	if (mkdir(path, 0700) && errno != EEXIST) {
		complain("%s: %s", path, strerror(errno));
		return EXIT_FAULT;
	}
	if (lstat(path, &st) || !S_ISDIR(st.st_mode) ||
	    st.st_uid != geteuid() || (st.st_mode & 077)) {
		complain("%s: is not a folder of yours alone (mode 0700); "
			 "take it away",
			 path);
		return EXIT_FAULT;
	}
	return 0;
}

int run_dir(char *to, size_t room)
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	int ret;

	if (xdg && *xdg == '/')
		ret = print_path(to, room, "%s/husk", xdg);
	else
		ret = print_path(to, room, "/tmp/husk-%u", (unsigned)geteuid());
	return ret ? ret : private_dir(to);
}

static int make_run_dir(struct place *p)
{
	char top[PATH_SIZE - NAME_SIZE - 8];
	int ret = run_dir(top, sizeof(top));

	if (!ret)
		ret = print_path(p->run, sizeof(p->run), "%s/%s", top, p->name);
	return ret ? ret : private_dir(p->run);
}

/* -- names ---------------------------------------------------------------- */

static bool name_is_valid(const char *name)
{
	if (!isalnum((unsigned char)*name) || strlen(name) >= NAME_SIZE)
		return false;
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
			return false;
	return true;
}

int check_name(const char *name)
{
	if (name_is_valid(name))
		return 0;
	complain("%s: not a name; letters, digits, \".\", \"_\" and \"-\" are "
		 "possible, %d at most, and the first is a letter or digit",
		 name, NAME_SIZE - 1);
	return EXIT_USAGE;
}

static int set_place(struct place *p, const char *name)
{
	char data[PATH_SIZE - NAME_SIZE - 32];
	int ret = check_name(name);

	*p = (struct place){ .lock = -1 };
	if (!ret)
		ret = data_dir(data, sizeof(data));
	if (ret)
		return ret;
	snprintf(p->name, sizeof(p->name), "%s", name);
	return print_path(p->dir, sizeof(p->dir), "%s/%s", data, name);
}

int place_file(const struct place *p, const char *file, char *path)
{
	return print_path(path, PATH_SIZE, "%s/%s", p->dir, file);
}

static bool is_there(const struct place *p)
{
	char path[PATH_SIZE];

	return !place_file(p, "vm.json", path) && !access(path, F_OK);
}

bool place_exists(const char *name)
{
	struct place p;

	return name_is_valid(name) && !set_place(&p, name) && is_there(&p);
}

int place_find(struct place *p, const char *name)
{
	int ret = set_place(p, name);

	if (ret)
		return ret;
	if (is_there(p))
		return 0;
	complain("%s: there is no such machine; husk list shows them", name);
	return EXIT_USAGE;
}

int place_load(const struct place *p, struct vm_config **cfg)
{
	struct husk_error err = { 0 };
	char path[PATH_SIZE];
	int ret = place_file(p, "vm.json", path);

	if (ret)
		return ret;
	if (!vm_config_load(path, cfg, &err))
		return 0;
	complain("%s", err.text);
	return EXIT_USAGE;
}

/* -- the lock ------------------------------------------------------------- */

static int open_lock(const struct place *p, int flags)
{
	char path[PATH_SIZE];

	if (place_file(p, "lock", path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static struct flock whole_file(void)
{
	return (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET };
}

pid_t place_owner(struct place *p)
{
	struct flock lock = whole_file();
	char text[PATH_SIZE + 32], *line;
	int fd = open_lock(p, O_RDWR);
	ssize_t n;
	long pid;

	if (fd < 0)
		return 0;
	if (fcntl(fd, F_OFD_GETLK, &lock) || lock.l_type == F_UNLCK) {
		close(fd);
		return 0;
	}
	n = pread(fd, text, sizeof(text) - 1, 0);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	pid = strtol(text, &line, 10);
	if (*line != '\n' || pid <= 0)
		return -1;
	line++;
	line[strcspn(line, "\n")] = 0;
	snprintf(p->run, sizeof(p->run), "%s", line);
	return (pid_t)pid;
}

/* The folder may have been deleted between open() and the lock. */
static bool still_there(const struct place *p, int fd)
{
	struct stat a, b;
	char path[PATH_SIZE];

	return !place_file(p, "lock", path) && !fstat(fd, &a) &&
	       !stat(path, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

int place_lock(struct place *p)
{
	struct flock lock = whole_file();
	int fd = open_lock(p, O_RDWR | O_CREAT);

	if (fd < 0) {
		complain("%s/lock: %s", p->dir, strerror(errno));
		return EXIT_FAULT;
	}
	if (fcntl(fd, F_OFD_SETLK, &lock)) {
		complain(errno == EAGAIN || errno == EACCES
				 ? "%s: is running"
				 : "%s: cannot be locked",
			 p->name);
		close(fd);
		return EXIT_FAULT;
	}
	if (!still_there(p, fd)) {
		complain("%s: was deleted", p->name);
		close(fd);
		return EXIT_FAULT;
	}
	if (ftruncate(fd, 0)) {
		complain("%s/lock: %s", p->dir, strerror(errno));
		close(fd);
		return EXIT_FAULT;
	}
	p->lock = fd;
	return 0;
}

int place_announce(struct place *p)
{
	char text[PATH_SIZE + 32];
	int n, ret = make_run_dir(p);

	if (ret)
		return ret;
	n = snprintf(text, sizeof(text), "%ld\n%s\n", (long)getpid(), p->run);
	if (pwrite(p->lock, text, (size_t)n, 0) == n)
		return 0;
	complain("%s/lock: %s", p->dir, strerror(errno));
	return EXIT_FAULT;
}

void place_release(struct place *p)
{
	if (p->lock < 0)
		return;
	/* Not empty: something else has put a file there. */
	if (*p->run && rmdir(p->run))
		errno = 0;
	close(p->lock);
	p->lock = -1;
}

/* -- making and deleting -------------------------------------------------- */

static void remove_at(int parent, const char *name)
{
	int fd = openat(parent, name,
			O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (unlinkat(fd, e->d_name, 0))
			remove_at(fd, e->d_name);
	}
	if (dir)
		closedir(dir);
	else if (fd >= 0)
		close(fd);
	if (unlinkat(parent, name, AT_REMOVEDIR))
		unlinkat(parent, name, 0);
}

void remove_tree(const char *path)
{
	remove_at(AT_FDCWD, path);
}

enum { SWEEP_S = 60 };

/*
 * What was begun and not ended by somebody who is gone.  Not at once: somebody
 * else may just have made it, and be about to lock it.
 */
static void sweep(const char *data)
{
	DIR *dir = opendir(data);
	time_t now = time(NULL);
	struct dirent *e;
	struct stat st;

	while (dir && (e = readdir(dir))) {
		struct place p = { .lock = -1 };

		if (strncmp(e->d_name, ".new-", 5) &&
		    strncmp(e->d_name, ".old-", 5))
			continue;
		snprintf(p.dir, sizeof(p.dir), "%.700s/%s", data, e->d_name);
		if (!stat(p.dir, &st) && st.st_mtime + SWEEP_S < now &&
		    !place_owner(&p))
			remove_tree(p.dir);
	}
	if (dir)
		closedir(dir);
}

int place_delete(struct place *p)
{
	char old[PATH_SIZE];
	int ret = print_path(old, sizeof(old), "%.*s/.old-%s-%ld",
			     (int)(strrchr(p->dir, '/') - p->dir), p->dir,
			     p->name, (long)getpid());

	if (ret)
		return ret;
	if (rename(p->dir, old)) {
		complain("%s: %s", p->dir, strerror(errno));
		return EXIT_FAULT;
	}
	remove_tree(old);
	return 0;
}

int place_begin(struct place *p, const char *name)
{
	char data[PATH_SIZE - NAME_SIZE - 32];
	int ret = set_place(p, name);

	if (ret)
		return ret;
	if (is_there(p)) {
		complain("%s: exists already; husk delete %s takes it away",
			 name, name);
		return EXIT_USAGE;
	}
	snprintf(data, sizeof(data), "%.*s",
		 (int)(strrchr(p->dir, '/') - p->dir), p->dir);
	ret = print_path(p->dir, sizeof(p->dir), "%s/.new-%s-XXXXXX", data,
			 name);
	if (ret)
		return ret;
	sweep(data);
	if (!mkdtemp(p->dir)) {
		complain("%s: %s", data, strerror(errno));
		return EXIT_FAULT;
	}
	ret = place_lock(p);
	if (ret)
		remove_tree(p->dir);
	return ret;
}

int place_publish(struct place *p)
{
	struct place final;
	int ret = set_place(&final, p->name);

	if (ret)
		return ret;
	if (renameat2(AT_FDCWD, p->dir, AT_FDCWD, final.dir,
		      RENAME_NOREPLACE)) {
		complain("%s: %s", final.dir,
			 errno == EEXIST ? "exists already" : strerror(errno));
		return EXIT_FAULT;
	}
	close(p->lock);
	*p = final;
	return 0;
}

void place_abandon(struct place *p)
{
	if (p->lock < 0)
		return;
	remove_tree(p->dir);
	close(p->lock);
	p->lock = -1;
}

/* What a machine's definition names in a folder of machines. */
static bool is_in(const char *folder, const char *path, const char **name)
{
	size_t n = strlen(folder);

	if (!path || strncmp(path, folder, n) != 0 || path[n] != '/')
		return false;
	*name = path + n + 1;
	return true;
}

/* What lies in another machine's folder goes with it: ours is a link to it. */
static bool link_file(const struct place *p, const char *path, char *own)
{
	const char *name;
	char dir[PATH_SIZE];

	if (data_dir(dir, sizeof(dir)) || !is_in(dir, path, &name))
		return false;
	name = strchr(name, '/');
	return name && !strchr(++name, '/') && !place_file(p, name, own) &&
	       !link(path, own);
}

/* From the folder that is filled to the one that it became. */
static bool follow_file(const struct place *p, const char *from,
			const char *path, char *own)
{
	const char *name;

	return is_in(from, path, &name) && !place_file(p, name, own);
}

struct taker {
	const struct place *p;
	const char *from; /* NULL: from wherever it is, by a link */
	char own[PATH_SIZE];
};

static const char *take(struct taker *t, const char *path)
{
	bool ok = t->from ? follow_file(t->p, t->from, path, t->own)
			  : link_file(t->p, path, t->own);

	return ok ? t->own : NULL;
}

/* Disks that are written are copied, or stacked, when the machine is made. */
static int take_files(const struct place *p, struct vm_config *cfg,
		      const char *from)
{
	struct taker t = { .p = p, .from = from };
	int ret = 0;

	if (take(&t, vm_config_kernel(cfg)))
		ret = vm_config_set_kernel(cfg, t.own);
	if (!ret && take(&t, vm_config_initrd(cfg)))
		ret = vm_config_set_initrd(cfg, t.own);
	for (unsigned i = 0; !ret && i < vm_config_disk_count(cfg); i++)
		if (vm_config_disk_readonly(cfg, i) &&
		    take(&t, vm_config_disk_path(cfg, i)))
			ret = vm_config_set_disk_path(
				cfg, i, t.own, vm_config_disk_format(cfg, i));
	return ret ? EXIT_FAULT : 0;
}

int place_make(struct place *p, const char *name, struct vm_config *cfg)
{
	struct husk_error err = { 0 };
	char path[PATH_SIZE], filled[PATH_SIZE];
	int ret = place_begin(p, name);

	if (ret)
		return ret;
	snprintf(filled, sizeof(filled), "%s", p->dir);
	ret = place_file(p, "vm.json", path);
	if (!ret)
		ret = take_files(p, cfg, NULL);
	if (!ret && vm_config_save(cfg, path, &err)) {
		complain("%s", err.text);
		ret = EXIT_FAULT;
	}
	if (!ret)
		ret = place_publish(p);
	place_abandon(p);
	if (!ret)
		ret = place_find(p, name);
	return ret ? ret : take_files(p, cfg, filled);
}

/* -- all of them ---------------------------------------------------------- */

static int is_name(const struct dirent *e)
{
	return name_is_valid(e->d_name);
}

int place_each(int (*f)(void *opaque, struct place *p), void *opaque)
{
	char data[PATH_SIZE];
	struct dirent **names;
	int n, ret = data_dir(data, sizeof(data));

	if (ret)
		return ret;
	n = scandir(data, &names, is_name, alphasort);
	if (n < 0) {
		complain("%s: %s", data, strerror(errno));
		return EXIT_FAULT;
	}
	for (int i = 0; i < n; i++) {
		struct place p;

		if (!ret && place_exists(names[i]->d_name)) {
			ret = set_place(&p, names[i]->d_name);
			if (!ret)
				ret = f(opaque, &p);
		}
		free(names[i]);
	}
	free(names);
	return ret;
}
