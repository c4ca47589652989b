/* SPDX-License-Identifier: Apache-2.0 */
/*
 * image.c - systems that are made once and kept for all machines
 *
 * They are in $XDG_CACHE_HOME/husk/images, in a folder named after what they
 * are made by: another script or agent makes another image.  A folder is filled
 * under another name and appears when it is complete.
 */
#include "image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "place.h"

enum { KEY_SIZE = 64, LOOK_MS = 500, KEPT_S = 7 * 86400 };

/* agent and service "": none */
struct image {
	bool cloud_init;
	bool (*stop)(void);
	char script[PATH_SIZE], agent[PATH_SIZE], service[PATH_SIZE];
	char top[PATH_SIZE - 2 * KEY_SIZE - 16]; /* of all images */
	char key[KEY_SIZE];
	char work[PATH_SIZE]; /* where it is made */
	char log[PATH_SIZE];
};

bool image_is_known(const char *name)
{
	return !strcmp(name, "debian");
}

/* -- what it is made by --------------------------------------------------- */

/* A file beside the command, in the build or installed. */
static bool beside(char *path, size_t room, const char *const *where)
{
	char self[PATH_SIZE], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return false;
	self[n] = 0;
	slash = strrchr(self, '/');
	if (slash)
		*slash = 0;
	for (; *where; where++) {
		int len = snprintf(path, room, "%s/%s", self, *where);

		if (len > 0 && (size_t)len < room && !access(path, R_OK))
			return true;
	}
	*path = 0;
	return false;
}

/* FNV-1a: to tell versions from each other, nothing more. */
static uint64_t add_bytes(uint64_t sum, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < len; i++)
		sum = (sum ^ p[i]) * 0x100000001b3;
	return sum;
}

static uint64_t add_file(uint64_t sum, const char *path)
{
	FILE *f = *path ? fopen(path, "rbe") : NULL;
	char buf[4096];
	size_t n;

	while (f && (n = fread(buf, 1, sizeof(buf), f)))
		sum = add_bytes(sum, buf, n);
	if (f)
		fclose(f);
	return sum;
}

static int find_parts(struct image *m)
{
	static const char *const scripts[] = { "image-debian",
					       "../libexec/husk/image-debian",
					       NULL };
	static const char *const agents[] = { "../agent/husk-agent",
					      "../libexec/husk/husk-agent",
					      NULL };
	static const char *const services[] = {
		"husk-agent.service", "../share/husk/husk-agent.service", NULL
	};
	const char *mirror = getenv("HUSK_DEBIAN_MIRROR");
	uint64_t sum = 0xcbf29ce484222325;
	char cache[sizeof(m->top) - 16];
	int ret;

	if (!beside(m->script, sizeof(m->script), scripts)) {
		complain("image-debian is not installed beside this command");
		return EXIT_FAULT;
	}
	if (!beside(m->agent, sizeof(m->agent), agents) ||
	    !beside(m->service, sizeof(m->service), services))
		*m->agent = 0;
	sum = add_file(sum, m->script);
	if (*m->agent) {
		sum = add_file(sum, m->agent);
		sum = add_file(sum, m->service);
	}
	if (mirror)
		sum = add_bytes(sum, mirror, strlen(mirror));
	snprintf(m->key, sizeof(m->key), "debian-12%s-%016" PRIx64,
		 m->cloud_init ? "-cloud-init" : "", sum);
	ret = cache_dir(cache, sizeof(cache));
	if (ret)
		return ret;
	snprintf(m->top, sizeof(m->top), "%s/images", cache);
	if (mkdir(m->top, 0700) && errno != EEXIST) {
		complain("%s: %s", m->top, strerror(errno));
		return EXIT_FAULT;
	}
	return 0;
}

/* -- locks and folders ---------------------------------------------------- */

static bool is_complete(const struct image *m)
{
	static const char *const files[] = { "disk.raw", "vmlinuz", "initrd" };
	char path[PATH_SIZE];

	for (unsigned i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s/%s", m->top, m->key,
			 files[i]);
		if (access(path, R_OK))
			return false;
	}
	return true;
}

static int open_lock(const struct image *m)
{
	char path[PATH_SIZE];

	snprintf(path, sizeof(path), "%s/%s.lock", m->top, m->key);
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static int try_lock(const struct image *m)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = open_lock(m);

	if (fd < 0 || !fcntl(fd, F_OFD_SETLK, &all))
		return fd;
	close(fd);
	return -1;
}

/* One process makes an image; the others wait for it. */
static int lock(const struct image *m)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = try_lock(m);

	if (fd >= 0)
		return fd;
	fd = open_lock(m);
	if (fd >= 0) {
		complain("another husk is making this image; waiting for it");
		if (!fcntl(fd, F_OFD_SETLKW, &all))
			return fd;
		close(fd);
	}
	if (!m->stop())
		complain("%s/%s.lock: %s", m->top, m->key, strerror(errno));
	return -1;
}

/* With the lock: what is there with our key was left by one that is gone. */
static void sweep(const struct image *m)
{
	DIR *dir = opendir(m->top);
	size_t n = strlen(m->key);
	char path[PATH_SIZE + 256];
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] != '.' || strncmp(e->d_name + 1, m->key, n) ||
		    e->d_name[n + 1] != '-')
			continue;
		snprintf(path, sizeof(path), "%s/%s", m->top, e->d_name);
		remove_tree(path);
	}
	if (dir)
		closedir(dir);
}

/* debian-12-0123456789abcdef: another one of our kind? */
static bool is_other(const struct image *m, const char *name)
{
	size_t n = strlen(m->key) - 16;

	return !strncmp(name, m->key, n) && strlen(name) == n + 16 &&
	       strspn(name + n, "0123456789abcdef") == 16 &&
	       strcmp(name, m->key) != 0;
}

/* What machines were made of stays theirs: they have it by hard links. */
static void drop_one(const struct image *m, const char *name)
{
	struct image other = *m;
	char path[PATH_SIZE + 256];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", m->top, name);
	if (stat(path, &st) || time(NULL) - st.st_mtime < KEPT_S)
		return;
	snprintf(other.key, sizeof(other.key), "%s", name);
	fd = try_lock(&other);
	if (fd < 0)
		return;
	remove_tree(path);
	snprintf(path, sizeof(path), "%s/%s.log", m->top, name);
	unlink(path);
	/* Its lock is 0 bytes, and somebody may wait for it. */
	close(fd);
}

/* A new version of us or of the agent has a new image, half a GB each. */
static void drop_old(const struct image *m)
{
	DIR *dir = opendir(m->top);
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (is_other(m, e->d_name))
			drop_one(m, e->d_name);
	if (dir)
		closedir(dir);
}

/* -- running the script --------------------------------------------------- */

static _Noreturn void run_script(const struct image *m, int steps)
{
	const char *words[] = { "sh", m->script, m->work,
				m->cloud_init ? "cloud-init" : NULL, NULL };
	int null = open("/dev/null", O_RDWR);
	int log = open(m->log, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
	sigset_t none;

	/* Signals of the terminal come to us, and we tell the group. */
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (steps == 3)
		fcntl(steps, F_SETFD, 0);
	else
		dup2(steps, 3);
	dup2(null, 0);
	dup2(log, 1);
	dup2(log, 2);
	/* mmdebstrap runs sh with its own, which may have one digit only. */
	close_range(4, ~0u, 0);
	if (*m->agent) {
		setenv("HUSK_AGENT", m->agent, 1);
		setenv("HUSK_AGENT_SERVICE", m->service, 1);
	}
	execv("/bin/sh", (char *const *)words);
	_exit(127);
}

struct progress {
	char step[128];
	size_t len;
	long begin_ms;
	bool shown;
};

static void show(struct progress *p)
{
	if (!isatty(2))
		return;
	fprintf(stderr, "\r%s, %ld s\033[K", p->step,
		(now_ms() - p->begin_ms) / 1000);
	p->shown = true;
}

static void take_step(struct progress *p, const char *text, ssize_t n)
{
	for (ssize_t i = 0; i < n; i++) {
		if (text[i] != '\n') {
			if (p->len + 1 < sizeof(p->step))
				p->step[p->len++] = text[i];
			continue;
		}
		p->step[p->len] = 0;
		p->len = 0;
		if (!isatty(2))
			complain("%s", p->step);
	}
}

/* Until the script has closed its end, which its own end does. */
static void follow(const struct image *m, pid_t pid, int steps)
{
	struct progress p = { .begin_ms = now_ms() };
	bool told = false;
	char buf[256];
	ssize_t n;

	for (;;) {
		struct pollfd f = { .fd = steps, .events = POLLIN };
		int ret = poll(&f, 1, LOOK_MS);

		if (m->stop() && !told) {
			kill(-pid, SIGTERM);
			told = true;
		}
		if (ret > 0) {
			n = read(steps, buf, sizeof(buf));
			if (n == 0)
				break;
			take_step(&p, buf, n);
		}
		show(&p);
	}
	if (p.shown)
		fputs("\r\033[K", stderr);
}

static void say_why(const struct image *m)
{
	char line[512], last[512] = "it said nothing";
	FILE *f = fopen(m->log, "re");

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		if (*line)
			memcpy(last, line, sizeof(last));
	}
	if (f)
		fclose(f);
	complain("the image was not made: %s (all of it: %s)", last, m->log);
}

static int make(const struct image *m)
{
	int fds[2], status = 0;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC)) {
		complain("pipe: %s", strerror(errno));
		return EXIT_FAULT;
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		run_script(m, fds[1]);
	close(fds[1]);
	if (pid > 0)
		follow(m, pid, fds[0]);
	close(fds[0]);
	if (pid < 0) {
		complain("fork: %s", strerror(errno));
		return EXIT_FAULT;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (m->stop())
		return EXIT_FAULT;
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		say_why(m);
		return EXIT_FAULT;
	}
	return 0;
}

static int make_and_publish(struct image *m)
{
	char final[PATH_SIZE];
	int ret;

	sweep(m);
	snprintf(final, sizeof(final), "%s/%s", m->top, m->key);
	snprintf(m->work, sizeof(m->work), "%s/.%s-XXXXXX", m->top, m->key);
	snprintf(m->log, sizeof(m->log), "%s/%s.log", m->top, m->key);
	if (!mkdtemp(m->work)) {
		complain("%s: %s", m->work, strerror(errno));
		return EXIT_FAULT;
	}
	complain("making a Debian 12 image from its packages, once; this takes "
		 "minutes");
	ret = make(m);
	if (!ret) {
		/* A part of one, if anything. */
		remove_tree(final);
		if (rename(m->work, final)) {
			complain("%s: %s", final, strerror(errno));
			ret = EXIT_FAULT;
		}
	}
	if (ret)
		remove_tree(m->work);
	else
		drop_old(m);
	return ret;
}

int image_get(const char *name, bool cloud_init, bool (*stop)(void), char *dir,
	      size_t room)
{
	struct image m = { .cloud_init = cloud_init, .stop = stop };
	int ret = find_parts(&m), fd;

	if (ret)
		return ret;
	snprintf(dir, room, "%s/%s", m.top, m.key);
	if (is_complete(&m)) {
		/* It is still of use: drop_old(). */
		utimensat(AT_FDCWD, dir, NULL, 0);
		return 0;
	}
	fd = lock(&m);
	if (fd < 0)
		return EXIT_FAULT;
	if (!is_complete(&m))
		ret = make_and_publish(&m);
	close(fd);
	return ret;
}
