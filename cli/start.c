/* SPDX-License-Identifier: Apache-2.0 */
/*
 * start.c - husk start: runs a named machine, here or in the background
 */
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "boot.h"
#include "control.h"
#include "options.h"

static const char help[] =
	"usage: husk start NAME [OPTION...]\n"
	"\n"
	"  --foreground          keep the terminal as the guest's console\n"
	"  --console             start in the background, then attach the console\n"
	"  --restful-uri URI     serve /vm/state and /vm/inspect, as vfkit does, at\n"
	"                        tcp://HOST:PORT or unix:///PATH\n"
	"  --stats               count what the vCPUs did, when it ends\n"
	"  --help                print the options\n"
	"\n"
	"Without an option the machine runs in the background and husk returns.\n";

enum { MAX_LOG = 1 << 20 };

/* The guest's sockets, unless the definition has them at a place of its own. */
static int add_vsock(const struct place *p, struct vm_config *cfg,
		     bool restored)
{
	struct husk_error err = { 0 };
	char path[PATH_SIZE + 8], dir[PATH_SIZE];
	const char *given = vm_config_vsock_path(cfg);
	int ret = run_dir(dir, sizeof(dir));

	if (ret)
		return ret;
	/* A clone's definition has that of the original, as it ran. */
	if (given && !restored &&
	    (strncmp(given, dir, strlen(dir)) != 0 ||
	     given[strlen(dir)] != '/'))
		return 0;
	snprintf(path, sizeof(path), "%s/vsock", p->run);
	/* One of before, whose machine is gone: we have the lock. */
	unlink(path);
	/* It may have been another machine's when that was saved. */
	if (vm_config_vsock_path(cfg))
		return vm_config_set_vsock_path(cfg, path) ? EXIT_FAULT : 0;
	if (!vm_config_add_vsock(cfg, path, &err))
		return 0;
	complain("%s", err.text);
	return EXIT_USAGE;
}

int start_move_disk(const struct place *p, unsigned disk, const char *path)
{
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	char file[PATH_SIZE];
	int ret = place_load(p, &cfg);

	if (ret)
		return ret;
	ret = place_file(p, "vm.json", file);
	if (!ret && vm_config_set_disk_path(cfg, disk, path, "qcow2"))
		ret = EXIT_FAULT;
	if (!ret && vm_config_save(cfg, file, &err)) {
		complain("%s", err.text);
		ret = EXIT_FAULT;
	}
	vm_config_destroy(cfg);
	return ret;
}

int start_keep_disks(const struct session *s)
{
	for (unsigned i = 0; i < vm_config_disk_count(s->cfg); i++) {
		const char *format = vm_config_disk_format(s->cfg, i);
		int ret;

		if (!format || strcmp(format, "qcow2") != 0)
			continue;
		ret = start_move_disk(s->place, i,
				      vm_config_disk_path(s->cfg, i));
		if (ret)
			return ret;
	}
	return 0;
}

/* The lock is held. */
static int run_locked(struct place *p, struct vm_config *cfg, struct session *s,
		      const char *console_log)
{
	struct control control = { .listener = -1 };
	int ret = place_announce(p);

	if (!ret) {
		/* What is restored does not boot. */
		if (!s->saved)
			boot_refresh(p, cfg);
		ret = add_vsock(p, cfg, s->saved);
	}
	if (!ret)
		ret = control_open(&control, s, p->run, console_log);
	if (!ret) {
		s->cfg = cfg;
		s->name = p->name;
		s->place = p;
		s->control = &control;
		ret = session_run(s);
		control_flush(&control);
		s->control = NULL;
	}
	control_close(&control);
	place_release(p);
	return ret;
}

int start_foreground(struct place *p, struct vm_config *cfg, struct session *s)
{
	int ret = place_lock(p);

	return ret ? ret : run_locked(p, cfg, s, NULL);
}

/* -- the background ------------------------------------------------------- */

/* What is written to standard error later, of the process in background. */
static int open_log(const struct place *p)
{
	char path[PATH_SIZE], old[PATH_SIZE + 8];
	struct stat st;
	int fd;

	if (place_file(p, "log", path))
		return -1;
	snprintf(old, sizeof(old), "%s.old", path);
	if (!stat(path, &st) && st.st_size > MAX_LOG && rename(path, old))
		errno = 0;
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	if (fd < 0)
		complain("%s: %s", path, strerror(errno));
	return fd;
}

struct background {
	int log;
	void (*ready)(void *opaque);
	void *opaque;
};

/* It runs: from now on nobody reads our standard error. */
static void tell(struct session *s)
{
	struct background *b = s->opaque;

	dup2(b->log, 2);
	b->ready(b->opaque);
}

static int detach(struct place *p, struct vm_config *cfg, struct session *s,
		  struct background *b)
{
	char console[PATH_SIZE];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int ret;

	setsid();
	dup2(null, 0);
	dup2(b->log, 1);
	s->where = "none";
	s->ready = tell;
	s->opaque = b;
	ret = place_file(p, "console.log", console);
	if (!ret && chdir("/"))
		ret = EXIT_FAULT;
	if (!ret)
		ret = run_locked(p, cfg, s, console);
	else
		place_release(p);
	return ret;
}

int start_detached(struct place *p, struct vm_config *cfg, struct session *s,
		   void (*ready)(void *opaque), void *opaque)
{
	struct background b = { .ready = ready, .opaque = opaque };
	int ret = place_lock(p);

	if (ret)
		return ret;
	b.log = open_log(p);
	if (b.log < 0) {
		place_release(p);
		return EXIT_FAULT;
	}
	return detach(p, cfg, s, &b);
}

static void tell_parent(void *opaque)
{
	int pipe = *(int *)opaque;

	if (write(pipe, "", 1) != 1)
		complain("nobody waited for the start");
	close(pipe);
}

/* 0 when it said that it runs; else what it ended with. */
static int wait_ready(int fd, pid_t pid)
{
	int status;
	ssize_t n;
	char c;

	do
		n = read(fd, &c, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1)
		return 0;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	/* It may run and end in a moment. */
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAULT;
}

int start_background(struct place *p, struct vm_config *cfg, struct session *s)
{
	struct background b = { .ready = tell_parent };
	int fds[2], ret = place_lock(p);
	pid_t pid;

	if (ret)
		return ret;
	b.log = open_log(p);
	if (b.log < 0 || pipe2(fds, O_CLOEXEC)) {
		place_release(p);
		return EXIT_FAULT;
	}
	b.opaque = &fds[1];
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		close(fds[0]);
		exit(detach(p, cfg, s, &b));
	}
	/* The lock is the child's now. */
	close(p->lock);
	p->lock = -1;
	close(b.log);
	close(fds[1]);
	if (pid < 0) {
		complain("fork: %s", strerror(errno));
		ret = EXIT_FAULT;
	} else {
		ret = wait_ready(fds[0], pid);
	}
	close(fds[0]);
	return ret;
}

/* -- the command ---------------------------------------------------------- */

static int start(const char *name, struct session *s, bool foreground,
		 bool console)
{
	struct vm_config *cfg = NULL;
	struct place p;
	int ret = place_find(&p, name);

	if (!ret)
		ret = place_load(&p, &cfg);
	if (!ret)
		ret = foreground ? start_foreground(&p, cfg, s)
				 : start_background(&p, cfg, s);
	vm_config_destroy(cfg);
	if (!ret && console)
		ret = attach_console(&p);
	return ret;
}

int cmd_start(int argc, char **argv)
{
	static const struct option options[] = {
		{ "foreground", 0, NULL, 'f' },	 { "console", 0, NULL, 'c' },
		{ "restful-uri", 1, NULL, 'R' }, { "stats", 0, NULL, 'S' },
		{ "help", 0, NULL, 'h' },	 { 0 },
	};
	bool foreground = false, console = false;
	struct session s;
	int c;

	session_init(&s);
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'f': foreground = true; break;
		case 'c': console = true; break;
		case 'R': s.restful_uri = optarg; break;
		case 'S': s.stats = true; break;
		case 'h': fputs(help, stdout); return 0;
		default: return bad_option("start", c, argv);
		}
	}
	if (argc - optind != 1) {
		complain("start: the name of one machine is needed");
		return EXIT_USAGE;
	}
	if (foreground && console) {
		complain("start: --foreground or --console, not both");
		return EXIT_USAGE;
	}
	return start(argv[optind], &s, foreground, console);
}
