/* SPDX-License-Identifier: Apache-2.0 */
/*
 * board.h - which parts a machine has and how firmware describes them
 */
#ifndef VM_BOARD_H
#define VM_BOARD_H

#include "vm/machine.h"

/* pc.c: create and wire every part; what was created is on vm->devs also
 * after a failure. */
int pc_build(struct vm *vm, const struct vm_config *cfg,
	     struct husk_error *err);
/* After the devices are destroyed: their back ends. */
void pc_close(struct vm *vm);

/* acpi.c: write the tables for ncpus vCPUs; *rsdp is where they start. */
int acpi_build(struct guest_mem *mem, unsigned ncpus, uint64_t *rsdp);

#endif /* VM_BOARD_H */
