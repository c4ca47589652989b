/* SPDX-License-Identifier: Apache-2.0 */
/*
 * saved.h - machines in files: save, look, restore
 *
 * A saved machine is one file (docs/saved-state.md) that either engine can
 * restore, any number of times, also several at once: they share the clean
 * pages of its memory.  Errors are as in husk/vm.h.
 */
#ifndef HUSK_SAVED_H
#define HUSK_SAVED_H

#include <sys/types.h>

#include "husk/vm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* -- save ----------------------------------------------------------------- */

struct vm_save_options {
	/*
	 * The machine stays paused.  Its disks are recorded as they are: the
	 * restored machine goes on with them.  Else each disk that the guest
	 * writes is frozen for the saved machine, and the running one goes on
	 * with a new image on top of it.
	 */
	bool stop;
	bool compress; /* with zstd; such a file is not mapped but read */
	bool scratch; /* may be lost with the host: not waited for the medium */
	/*
	 * May be NULL.  Without stop, while the machine is paused: the disk of
	 * this number is the image at path from now on.  Not 0 ends the save
	 * with that error, and the machine goes on with its new images.
	 */
	int (*disk_moved)(void *opaque, unsigned disk, const char *path);
	void *opaque;
};

struct vm_save_result {
	uint64_t stop_ns; /* how long the guest stood still */
	uint64_t bytes;	  /* of memory that were written */
};

/* Memory written so far; false ends the save with -ECANCELED. */
typedef bool vm_save_progress(void *opaque, uint64_t done, uint64_t total);

/*
 * The file appears at path when it is whole and on the medium; when it cannot
 * be, or progress() (may be NULL) says so, there is none, an older one at path
 * stays as it was, and the machine goes on.  A machine that runs is copied
 * while it goes on, by a process that shares its memory copy-on-write; that
 * process gives no SIGCHLD.  options and result may be NULL.  Any thread but
 * those of the machine.
 */
int vm_save(struct vm *vm, const char *path,
	    const struct vm_save_options *options, vm_save_progress *progress,
	    void *opaque, struct vm_save_result *result,
	    struct husk_error *err);
/*
 * Calls problem (may be NULL) with a sentence for each thing that stands in
 * the way of vm_save(); returns how many.
 */
unsigned vm_validate_save(struct vm *vm, const struct vm_save_options *options,
			  void (*problem)(void *opaque, const char *text),
			  void *opaque);

/* -- look ----------------------------------------------------------------- */

struct vm_saved;

/*
 * Reads everything but the memory, and checks it: -EBADMSG not a whole saved
 * machine, -ENOTSUP of a newer Husk.
 */
int vm_saved_open(const char *path, struct vm_saved **saved,
		  struct husk_error *err);
void vm_saved_close(struct vm_saved *saved); /* NULL is fine */

struct vm_saved_info {
	unsigned version; /* of the format */
	char engine[16];  /* that it ran on */
	char cpu_model[32];
	unsigned cpus, tsc_khz;
	uint64_t memory;      /* bytes */
	uint64_t memory_used; /* of them, that are not known to be zero */
	uint64_t file;	      /* length of the file, with its holes */
	uint64_t saved_at;    /* ns since 1970, when its time stood still */
	uint64_t uptime;      /* ns that the guest had run */
	bool compressed;
	char id[33]; /* of this save */
	unsigned sections, disks;
};
void vm_saved_info(const struct vm_saved *saved, struct vm_saved_info *info);

struct vm_saved_section {
	char name[32], kind[24];
	unsigned version;
	uint64_t size; /* bytes */
};
/* 0, or -ENOENT: there is no section of this number. */
int vm_saved_section(const struct vm_saved *saved, unsigned number,
		     struct vm_saved_section *section);

struct vm_saved_disk {
	char name[32]; /* of its device */
	char path[4096], format[16];
	bool frozen;	/* made read-only by the save: may be restored again */
	bool readonly;	/* for the guest */
	bool as_it_was; /* the file has not changed since */
};
int vm_saved_disk(const struct vm_saved *saved, unsigned number,
		  struct vm_saved_disk *disk);

/* The configuration of the machine, with absolute paths; the caller's. */
int vm_saved_config(const struct vm_saved *saved, struct vm_config **cfg,
		    struct husk_error *err);
/* Reads the memory and checks it, too: 0 or -EBADMSG. */
int vm_saved_check(const struct vm_saved *saved, vm_save_progress *progress,
		   void *opaque, struct husk_error *err);

/* -- restore -------------------------------------------------------------- */

struct vm_restore_options {
	bool preload; /* read all memory now rather than when it is touched */
	bool force;   /* also with disks that have changed */
	/*
	 * Where new images go, on top of those that were frozen by the save;
	 * NULL: beside them.
	 */
	const char *disks;
};

/*
 * cfg is what vm_saved_config() gave, with outputs and perhaps another engine:
 * cpus, memory and devices have to be those of the saved machine; where its disks
 * are is changed when they get new images.  The machine goes on with vm_start(), or stays paused when vm_pause() comes before.  A
 * failed restore leaves nothing.  saved may go after.  options may be NULL.
 */
int vm_restore(const struct vm_saved *saved, struct vm_config *cfg,
	       const struct vm_restore_options *options, struct vm **vm,
	       struct husk_error *err);

/* -- a machine in two processes ------------------------------------------- */

/*
 * fork() at a moment at which the machine stands still, with vm_save_options'
 * disk_moved.  In the caller's process the machine goes on and the pid of the
 * other is returned, which the caller waits for as for any child; or a
 * negative errno and err, and there is none.
 *
 * 0 in the new process, with the machine as *image, its own: vm_saved_config()
 * and vm_restore() make a machine of it that shares the memory copy-on-write
 * until either changes it, so nothing is copied now, and neither can write the
 * other's.  One machine can have the memory in a process; for more of them it
 * calls fork() in between.
 *
 * There, as after fork() in any program with threads, nobody holds what
 * another thread has locked: of the libraries of this program only what is
 * made anew may be used, and of the original machine nothing, not even
 * vm_destroy().  All descriptors are closed but 0 to 2 and keep (-1: none).
 *
 * options and result (bytes is 0) may be NULL.  Any thread but those of the
 * machine.
 */
pid_t vm_fork(struct vm *vm, const struct vm_save_options *options, int keep,
	      struct vm_saved **image, struct vm_save_result *result,
	      struct husk_error *err);

#ifdef __cplusplus
}
#endif

#endif /* HUSK_SAVED_H */
