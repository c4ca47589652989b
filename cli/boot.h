/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boot.h - the kernel of a machine is the one on its disk
 */
#ifndef CLI_BOOT_H
#define CLI_BOOT_H

#include "place.h"

struct husk_error;

/*
 * Copies kernel and initial RAM disk out of the first disk to vmlinuz and
 * initrd in the folder of a machine that does not run.  partition (may be
 * NULL): where they were, 0 for the whole disk.  0 or a negative errno value;
 * then what was in the folder is still there.
 */
int boot_from_disk(const struct place *p, const struct vm_config *cfg,
		   unsigned *partition, struct husk_error *err);
/* The same before a start, when the definition says so. */
void boot_refresh(const struct place *p, const struct vm_config *cfg);

#endif /* CLI_BOOT_H */
