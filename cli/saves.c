/* SPDX-License-Identifier: Apache-2.0 */
/*
 * saves.c - which files a named machine was saved to
 *
 * Such a file has the memory and names the disks, which are in the machine's
 * folder: with that it would lose them.  The folder's file "saves" has a path
 * in each line.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "place.h"

static bool is_below(const struct place *p, const char *path)
{
	size_t n = strlen(p->dir);

	return path && !strncmp(path, p->dir, n) && path[n] == '/';
}

static bool config_needs(const struct place *p, const struct vm_saved *saved)
{
	struct husk_error ignored = { 0 };
	struct vm_config *cfg;
	bool needs;

	if (vm_saved_config(saved, &cfg, &ignored))
		return false;
	needs = is_below(p, vm_config_kernel(cfg));
	for (unsigned i = 0; !needs && i < vm_config_disk_count(cfg); i++)
		needs = is_below(p, vm_config_disk_path(cfg, i));
	vm_config_destroy(cfg);
	return needs;
}

/* It may be gone, or another's by now. */
static bool file_needs(const struct place *p, const char *file)
{
	struct husk_error ignored = { 0 };
	struct vm_saved *saved;
	bool needs;

	if (vm_saved_open(file, &saved, &ignored))
		return false;
	needs = config_needs(p, saved);
	vm_saved_close(saved);
	return needs;
}

/* Calls f for each until it says true, which is the answer. */
static bool any_save(const struct place *p,
		     bool (*f)(const struct place *p, const char *file,
			       const void *opaque),
		     const void *opaque)
{
	char path[PATH_SIZE], *line = NULL;
	size_t room = 0;
	bool found = false;
	FILE *list;

	if (place_file(p, "saves", path))
		return false;
	list = fopen(path, "re");
	if (!list)
		return false;
	while (!found && getline(&line, &room, list) > 0) {
		line[strcspn(line, "\n")] = 0;
		found = f(p, line, opaque);
	}
	free(line);
	fclose(list);
	return found;
}

static bool is_same(const struct place *p, const char *file, const void *opaque)
{
	return !strcmp(file, opaque);
}

static bool complain_needed(const struct place *p, const char *file,
			    const void *opaque)
{
	if (!file_needs(p, file))
		return false;
	complain("%s: %s goes on from its disks; delete that file first, or "
		 "use --force",
		 p->name, file);
	return true;
}

int saves_note(const struct place *p, const char *file)
{
	char path[PATH_SIZE];
	FILE *list;
	int ret;

	/* Nobody would find a name of two lines. */
	if (strchr(file, '\n') || any_save(p, is_same, file))
		return 0;
	if (place_file(p, "saves", path))
		return -ENAMETOOLONG;
	list = fopen(path, "ae");
	if (!list)
		return -errno;
	ret = fprintf(list, "%s\n", file) < 0;
	return fclose(list) || ret ? -EIO : 0;
}

bool saves_need(const struct place *p)
{
	return any_save(p, complain_needed, NULL);
}
