/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boot.c - the kernel of a machine is the one on its disk
 *
 * There is no firmware yet, so we do what a boot loader does: Debian's links
 * /vmlinuz and /initrd.img lead to the newest kernel, whoever installed it.
 */
#include "boot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

/* The first of two places; a link's target is where it leads to. */
static int extract(const struct place *p, const struct vm_config *cfg,
		   const char *const *places, const char *to,
		   unsigned *partition, struct husk_error *err)
{
	char path[PATH_SIZE];
	int ret = -ENOENT;

	if (place_file(p, to, path))
		return -ENAMETOOLONG;
	for (int i = 0; i < 2 && ret == -ENOENT; i++)
		ret = vm_disk_extract(vm_config_disk_path(cfg, 0),
				      vm_config_disk_format(cfg, 0), places[i],
				      path, partition, err);
	return ret;
}

static int publish(const struct place *p, const char *from, const char *to)
{
	char old[PATH_SIZE], new[PATH_SIZE];

	if (place_file(p, from, old) || place_file(p, to, new))
		return -ENAMETOOLONG;
	return rename(old, new) ? -errno : 0;
}

int boot_from_disk(const struct place *p, const struct vm_config *cfg,
		   unsigned *partition, struct husk_error *err)
{
	static const char *const kernels[] = { "/vmlinuz", "/boot/vmlinuz" };
	static const char *const initrds[] = { "/initrd.img",
					       "/boot/initrd.img" };
	int ret;

	if (!vm_config_disk_count(cfg))
		return -ENOENT;
	/* Both or none: they belong together. */
	ret = extract(p, cfg, kernels, ".vmlinuz", partition, err);
	if (!ret)
		ret = extract(p, cfg, initrds, ".initrd", NULL, err);
	if (!ret)
		ret = publish(p, ".vmlinuz", "vmlinuz");
	return ret ? ret : publish(p, ".initrd", "initrd");
}

void boot_refresh(const struct place *p, const struct vm_config *cfg)
{
	const char *boot = vm_config_note(cfg, "boot");
	struct husk_error err = { 0 };
	int ret;

	if (!boot || strcmp(boot, "disk") != 0)
		return;
	ret = boot_from_disk(p, cfg, NULL, &err);
	/* Its journal would have to be replayed; the guest will do that. */
	if (ret && ret != -EUCLEAN)
		complain("the kernel is that of the last start: %s", err.text);
}
