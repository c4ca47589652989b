/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_chips.c - accesses of a hostile guest at every device of the board
 */
#include "fuzz/pc.h"
#include "husk/vm.h"
#include "vm/chips.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct vm *vm = pc_create();
	unsigned n = 0;

	while (in.left && n++ < 400) {
		if (*in.p < 0xfc) {
			pc_access(vm, &in);
			continue;
		}
		switch (take(&in, 1)) {
		case 0xfc:
			vm_console_write(vm, VM_SERIAL, "husk", 4);
			vm_console_write(vm, VM_CONSOLE, "husk", 4);
			break;
		case 0xfd: acpi_pm_power_button(vm->pm); break;
		case 0xfe: ioapic_eoi(vm->ioapic, (uint8_t)take(&in, 1)); break;
		default: pic_acknowledge(vm->pic);
		}
	}
	vm_destroy(vm);
	return 0;
}
