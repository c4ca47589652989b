/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place.h - where named machines live, and which of them run
 *
 * A machine is a folder below $XDG_DATA_HOME/husk with its definition
 * (vm.json), its disks and its logs.  It runs while a process holds the lock
 * of the file "lock" in it; the kernel gives that up however the process ends,
 * so nothing stale is ever taken for a machine that runs.
 */
#ifndef CLI_PLACE_H
#define CLI_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct vm_config;

enum { NAME_SIZE = 64, PATH_SIZE = 1024 };

struct place {
	char name[NAME_SIZE];
	char dir[PATH_SIZE]; /* the machine's folder */
	char run[PATH_SIZE]; /* of its sockets, while it runs */
	int lock;	     /* that we hold, or -1 */
};

/* What fails in here has complained; an exit status, or 0. */

/* Below $XDG_DATA_HOME or $XDG_CACHE_HOME; made when they are missing. */
int data_dir(char *to, size_t room);
int cache_dir(char *to, size_t room);

/* Of sockets, our user's alone: below $XDG_RUNTIME_DIR or in /tmp. */
int run_dir(char *to, size_t room);

/* A file, or a folder with all that is in it. */
void remove_tree(const char *path);

/* Letters, digits, ".", "_", "-"; begins with a letter or digit. */
int check_name(const char *name);
/* The machine of this name exists. */
int place_find(struct place *p, const char *name);
bool place_exists(const char *name);
/* PATH_SIZE bytes: a file in the folder. */
int place_file(const struct place *p, const char *file, char *path);
int place_load(const struct place *p, struct vm_config **cfg);

/*
 * The process that holds the lock, 0: nobody.  -1: somebody who has not said
 * more yet.  Sets p->run to what that process said.
 */
pid_t place_owner(struct place *p);
/* Become the owner, or complain that there is one. */
int place_lock(struct place *p);
/* Make p->run and say in the lock's file who and where we are. */
int place_announce(struct place *p);
/* Takes p->run away and gives the lock up. */
void place_release(struct place *p);

/* An owner's: takes the folder away, at once for everybody else. */
int place_delete(struct place *p);
/* A folder to be filled, ours by its lock; gone unless it is published. */
int place_begin(struct place *p, const char *name);
int place_publish(struct place *p);
void place_abandon(struct place *p);
/*
 * A new machine of this definition, not locked.  What that names in the folder
 * of another machine is the new one's, too, so that it can start without the
 * other.  0 or an exit status.
 */
int place_make(struct place *p, const char *name, struct vm_config *cfg);

/* -- saves.c -------------------------------------------------------------- */

/* The machine was saved to this file.  0 or a negative errno. */
int saves_note(const struct place *p, const char *file);
/* Such a file is there and needs the folder; has complained. */
bool saves_need(const struct place *p);

/* -- all of them ---------------------------------------------------------- */

/* Calls f for each machine, in the order of their names. */
int place_each(int (*f)(void *opaque, struct place *p), void *opaque);

#endif /* CLI_PLACE_H */
