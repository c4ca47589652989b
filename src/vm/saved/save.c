/* SPDX-License-Identifier: Apache-2.0 */
/*
 * save.c - a machine is written to a file
 *
 * While it is paused its devices and vCPUs write what they are to sections;
 * its memory is copied by a process of our own that shares it copy-on-write,
 * so the machine goes on at once.  fork() is not used: the programs around us
 * need neither its handlers nor a SIGCHLD, and the child only calls ram_write()
 * and system calls.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/saved/saved.h"

struct saver {
	struct vm *vm;
	const char *path;
	char folder[4096], temporary[4200];
	int fd, folder_fd;
	bool scratch;
	bool named; /* the temporary file has its name */
	struct sections sections;
	struct ram_job ram;
	uint64_t stop_ns;
	struct disk_overlays overlays;
};

/* -- the file ------------------------------------------------------------- */

/* A file without a name goes with us, whatever ends us. */
static int open_temporary(struct saver *s, struct husk_error *err)
{
	const char *slash = strrchr(s->path, '/');
	int n = slash ? (int)(slash - s->path) : 0;

	n = snprintf(s->folder, sizeof(s->folder), "%.*s",
		     slash ? n ? n : 1 : 1, slash ? s->path : ".");
	if (n < 0 || (size_t)n >= sizeof(s->folder))
		return error_errno(err, -ENAMETOOLONG, "%s", s->path);
	s->folder_fd = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->folder_fd < 0)
		return error_errno(err, -errno, "%s", s->folder);
	snprintf(s->temporary, sizeof(s->temporary), "%s/.husk-save-%lx-%lx",
		 s->folder, (long)getpid(), (long)loop_now());
	s->fd = open(s->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (s->fd >= 0)
		return 0;
	s->fd = open(s->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	s->named = s->fd >= 0;
	return s->fd < 0 ? error_errno(err, -errno, "%s", s->path) : 0;
}

static int give_name(struct saver *s)
{
	char self[40];

	if (!s->named) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", s->fd);
		if (linkat(AT_FDCWD, self, AT_FDCWD, s->temporary,
			   AT_SYMLINK_FOLLOW))
			return -errno;
		s->named = true;
	}
	if (rename(s->temporary, s->path))
		return -errno;
	s->named = false;
	return !s->scratch && fsync(s->folder_fd) ? -errno : 0;
}

/* All in front of the memory, when that is written. */
static int write_sections(struct saver *s)
{
	struct saved_header h = {
		.flags = s->ram.zstd ? SAVED_COMPRESSED : 0,
		.file_size = s->ram.shared->end,
	};
	uint8_t *meta = sections_join(&s->sections, &h);
	ssize_t n = 0;
	int ret = 0;

	if (!meta)
		return -ENOMEM;
	for (uint64_t at = 0; !ret && at < s->ram.at; at += (uint64_t)n) {
		n = pwrite(s->fd, meta + at, s->ram.at - at, (off_t)at);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n <= 0)
			ret = n ? -errno : -EIO;
	}
	free(meta);
	return ret;
}

/* -- the memory ----------------------------------------------------------- */

static bool report(struct ram_job *r, vm_save_progress *progress, void *opaque)
{
	return !progress ||
	       progress(opaque, atomic_load(&r->shared->done), r->size);
}

static void child(struct saver *s, int alive, pid_t parent)
{
	/* Nothing of the machine's may stay open because of us. */
	unsigned a = (unsigned)MIN(s->fd, alive);
	unsigned b = (unsigned)MAX(s->fd, alive);

	prctl(PR_SET_NAME, "husk-save");
	if (a)
		syscall(SYS_close_range, 0, a - 1, 0);
	if (b > a + 1)
		syscall(SYS_close_range, a + 1, b - 1, 0);
	syscall(SYS_close_range, b + 1, ~0u, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (syscall(SYS_getppid) == parent)
		ram_write(&s->ram);
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

/* The copy begins with what the memory is now.  A pid, or -errno. */
static int start_child(struct saver *s, int *alive)
{
	sigset_t all, old;
	int fds[2];
	long pid, parent = getpid();

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	/* A handler of the program must not run in the child. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	s->ram.shared->error = -EPIPE; /* unless it gets to its end */
	pid = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
	if (!pid)
		child(s, fds[1], (pid_t)parent);
	if (pid < 0)
		pid = -errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	close(fds[1]);
	*alive = fds[0];
	if (pid < 0)
		close(fds[0]);
	return (int)pid;
}

static int wait_for_child(struct saver *s, pid_t pid, int alive,
			  vm_save_progress *progress, void *opaque)
{
	struct pollfd f = { .fd = alive, .events = POLLIN };
	bool go_on = true;
	int status;

	/* However fast it is, somebody is asked. */
	do {
		if (go_on && !report(&s->ram, progress, opaque)) {
			atomic_store(&s->ram.shared->cancel, true);
			go_on = false;
		}
	} while (poll(&f, 1, 50) <= 0);
	close(alive);
	/* A child that gives no SIGCHLD is only found with __WALL. */
	while (waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
		;
	if (!go_on)
		return -ECANCELED;
	return atomic_load(&s->ram.shared->error);
}

/* The machine stays paused: no need for a second process. */
static void *write_here(void *arg)
{
	struct saver *s = arg;

	ram_write(&s->ram);
	atomic_store(&s->ram.shared->cancel, true); /* as a sign of the end */
	return NULL;
}

static int write_while_paused(struct saver *s, vm_save_progress *progress,
			      void *opaque)
{
	const struct timespec pause = { 0, 20000000 };
	struct ram_shared *r = s->ram.shared;
	bool go_on;
	pthread_t thread;
	int ret;

	if (!progress) {
		ram_write(&s->ram);
		return atomic_load(&r->error);
	}
	ret = pthread_create(&thread, NULL, write_here, s);
	if (ret)
		return -ret;
	while ((go_on = report(&s->ram, progress, opaque)) &&
	       atomic_load(&r->done) < s->ram.size && !atomic_load(&r->cancel))
		nanosleep(&pause, NULL);
	if (!go_on)
		atomic_store(&r->cancel, true);
	pthread_join(thread, NULL);
	return go_on ? atomic_load(&r->error) : -ECANCELED;
}

/* -- together ------------------------------------------------------------- */

static int finish_file(struct saver *s)
{
	struct section *table = &s->sections.section[s->sections.n - 1];
	int ret = 0;

	memcpy(table->data, s->ram.unit, table->e.size);
	if (ftruncate(s->fd, (off_t)atomic_load(&s->ram.shared->end)))
		ret = -errno;
	if (!ret)
		ret = write_sections(s);
	if (!ret && !s->scratch && fsync(s->fd))
		ret = -errno;
	return ret ? ret : give_name(s);
}

static int save(struct saver *s, const struct vm_save_options *o,
		vm_save_progress *progress, void *opaque,
		struct husk_error *err)
{
	struct vm *vm = s->vm;
	bool was_paused = atomic_load(&vm->paused);
	bool resume = !was_paused && !o->stop;
	uint64_t began = loop_now();
	int pid = 0, alive = -1, ret;

	ret = pause_locked(vm, err);
	if (ret)
		return ret;
	sections_name_disks(&s->sections, !o->stop);
	ret = disks_flush(vm);
	if (ret)
		error_errno(err, ret, "writing to the disks");
	if (!ret && !o->stop)
		ret = disks_freeze(vm, &s->overlays, s->sections.disk, o, err);
	if (!ret)
		ret = sections_collect(&s->sections);
	s->ram.at = sections_end(&s->sections);
	if (!ret && resume) {
		pid = start_child(s, &alive);
		ret = MIN(pid, 0);
	}
	if (resume || (ret && !was_paused)) {
		struct husk_error ignored = { 0 };
		int again = resume_locked(vm, ret ? &ignored : err);

		s->stop_ns = loop_now() - began;
		if (!ret && again)
			atomic_store(&s->ram.shared->cancel, true);
	}
	if (pid > 0) {
		ret = wait_for_child(s, pid, alive, progress, opaque);
	} else if (!ret) {
		ret = write_while_paused(s, progress, opaque);
		s->stop_ns = loop_now() - began;
	}
	if (!ret && !s->scratch)
		ret = disks_settle(&s->overlays);
	if (!ret)
		ret = finish_file(s);
	if (!ret)
		disks_keep(&s->overlays);
	if (ret && !was_paused && !resume)
		resume_locked(vm, NULL);
	if (ret && !(err && err->code))
		error_errno(err, ret, "saving to %s", s->path);
	return ret;
}

unsigned vm_validate_save(struct vm *vm, const struct vm_save_options *options,
			  void (*problem)(void *opaque, const char *text),
			  void *opaque)
{
	struct stat st;
	unsigned n = 0;
	char text[128];

	for (struct dev *d = vm->devs; d; d = d->next) {
		if (d->class->state)
			continue;
		snprintf(text, sizeof(text), "device %s cannot be saved",
			 d->id);
		if (problem)
			problem(opaque, text);
		n++;
	}
	for (unsigned i = 0; i < vm->nblocks; i++) {
		const struct disk_config *d = &vm->disk[i];
		bool file = !stat(d->path, &st) && S_ISREG(st.st_mode);

		if (vm->block[i]->readonly || (options && options->stop) ||
		    (file && !d->base && !d->fault))
			continue;
		snprintf(text, sizeof(text),
			 "no image can be put on top of disk %u, which %s: "
			 "save with stop",
			 i,
			 file ? "has an option base or fault"
			      : "is not a file");
		if (problem)
			problem(opaque, text);
		n++;
	}
	return n;
}

static void first_problem(void *opaque, const char *text)
{
	struct husk_error *err = opaque;

	if (!err->code)
		error_set(err, -ENOTSUP, "%s", text);
}

int save_allowed(struct vm *vm, const struct vm_save_options *options,
		 struct husk_error *err)
{
	return vm_validate_save(vm, options, first_problem, err) ? -ENOTSUP : 0;
}

static void finish(struct saver *s)
{
	ram_job_finish(&s->ram);
	disks_discard(&s->overlays);
	sections_finish(&s->sections);
	if (s->named)
		unlink(s->temporary);
	if (s->fd >= 0)
		close(s->fd);
	if (s->folder_fd >= 0)
		close(s->folder_fd);
	free(s);
}

int vm_save(struct vm *vm, const char *path,
	    const struct vm_save_options *options, vm_save_progress *progress,
	    void *opaque, struct vm_save_result *result, struct husk_error *err)
{
	static const struct vm_save_options defaults;
	struct saver *s = calloc(1, sizeof(*s));
	struct husk_error own = { 0 };
	int ret;

	if (!err)
		err = &own;
	*err = (struct husk_error){ 0 };
	if (!options)
		options = &defaults;
	if (!s)
		return error_errno(err, -ENOMEM, "saving to %s", path);
	s->vm = s->sections.vm = vm;
	s->path = path;
	s->fd = s->folder_fd = -1;
	s->scratch = options->scratch;
	s->ram.host = vm->mem.host;
	s->ram.size = vm->mem.size;
	s->ram.from_file = vm->mem.from_file;
	pthread_mutex_lock(&vm->life);
	ret = save_allowed(vm, options, err);
	if (!ret)
		ret = open_temporary(s, err);
	s->ram.fd = s->fd;
	if (!ret) {
		ret = ram_job_init(&s->ram, options->compress);
		if (ret)
			error_errno(err, ret, "saving to %s", path);
	}
	if (!ret && !options->stop)
		ret = disks_prepare(vm, &s->overlays, err);
	if (!ret)
		ret = save(s, options, progress, opaque, err);
	if (!ret && result)
		*result = (struct vm_save_result){
			.stop_ns = s->stop_ns,
			.bytes = s->ram.shared->written,
		};
	pthread_mutex_unlock(&vm->life);
	finish(s);
	return ret;
}
