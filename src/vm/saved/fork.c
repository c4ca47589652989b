/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork.c - a machine goes on in two processes
 *
 * fork() while the machine stands still: the new process has its memory
 * copy-on-write, whatever kind that is and without a copy at the moment, and
 * all else as sections, as a file would have them.  What the original has
 * outside the heap is not there (MADV_DONTFORK): its code, rings and vCPUs.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/saved/saved.h"

struct forker {
	struct vm *vm;
	struct sections sections;
	struct disk_overlays overlays;
	struct vm_saved *image;
};

/* As if read from a file, and checked like one. */
static int make_image(struct forker *f, struct husk_error *err)
{
	struct guest_mem *mem = &f->vm->mem;
	struct vm_saved *image = calloc(1, sizeof(*image));

	f->image = image;
	if (!image)
		return error_errno(err, -ENOMEM, "machine");
	image->fd = -1;
	image->ram = calloc(1, sizeof(*image->ram));
	image->h.file_size = sections_end(&f->sections) + mem->size;
	image->meta = sections_join(&f->sections, &image->h);
	if (!image->ram || !image->meta)
		return error_errno(err, -ENOMEM, "machine");
	*image->ram = (struct saved_ram){ .host = mem->host,
					  .size = mem->size,
					  .from_file = mem->from_file };
	return saved_check(image, err);
}

/* Nothing of the original's may stay open because of us. */
static void close_others(int keep)
{
	unsigned k = keep > 2 ? (unsigned)keep : 2;

	if (k > 3)
		syscall(SYS_close_range, 3, k - 1, 0);
	syscall(SYS_close_range, k + 1, ~0u, 0);
}

/* Paused.  A pid, 0 or -errno. */
static pid_t split(struct forker *f, const struct vm_save_options *o, int keep,
		   struct husk_error *err)
{
	struct vm *vm = f->vm;
	pid_t pid;
	int ret;

	sections_name_disks(&f->sections, true);
	ret = disks_flush(vm);
	if (ret)
		return error_errno(err, ret, "writing to the disks");
	ret = disks_freeze(vm, &f->overlays, f->sections.disk, o, err);
	if (ret)
		return ret;
	ret = sections_collect(&f->sections);
	if (ret)
		return error_errno(err, ret, "machine");
	ret = make_image(f, err);
	if (ret)
		return ret;
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "fork");
	if (!pid) {
		close_others(keep);
		f->image->ram->own = true;
	}
	return pid;
}

/* It would have what the original could not give up. */
static void take_back(pid_t pid)
{
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

static pid_t stop_and_split(struct forker *f, const struct vm_save_options *o,
			    int keep, struct husk_error *err)
{
	struct husk_error ignored = { 0 };
	bool was_paused = atomic_load(&f->vm->paused);
	pid_t pid = pause_locked(f->vm, err);
	int ret;

	if (pid)
		return pid;
	pid = split(f, o, keep, err);
	if (!pid || was_paused)
		return pid;
	ret = resume_locked(f->vm, pid < 0 ? &ignored : err);
	if (!ret || pid < 0)
		return pid;
	take_back(pid);
	return ret;
}

pid_t vm_fork(struct vm *vm, const struct vm_save_options *options, int keep,
	      struct vm_saved **image, struct vm_save_result *result,
	      struct husk_error *err)
{
	static const struct vm_save_options defaults;
	struct forker *f = calloc(1, sizeof(*f));
	struct husk_error own = { 0 };
	uint64_t began;
	pid_t pid;

	*image = NULL;
	if (!err)
		err = &own;
	*err = (struct husk_error){ 0 };
	if (!f)
		return error_errno(err, -ENOMEM, "machine");
	if (!options)
		options = &defaults;
	f->vm = f->sections.vm = vm;
	pthread_mutex_lock(&vm->life);
	pid = save_allowed(vm, NULL, err);
	if (!pid)
		pid = disks_prepare(vm, &f->overlays, err);
	began = loop_now();
	if (!pid)
		pid = stop_and_split(f, options, keep, err);
	if (!pid) {
		*image = f->image;
		return 0;
	}
	if (result)
		*result = (struct vm_save_result){ .stop_ns =
							   loop_now() - began };
	pthread_mutex_unlock(&vm->life);
	if (pid > 0)
		disks_keep(&f->overlays);
	vm_saved_close(f->image);
	disks_discard(&f->overlays);
	sections_finish(&f->sections);
	free(f);
	return pid;
}
