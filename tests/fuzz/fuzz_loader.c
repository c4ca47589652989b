/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_loader.c - files that claim to be kernels
 *
 * Odd last byte: with an initrd.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "husk/vm.h"
#include "vm/firmware/firmware.h"
#include "vm/machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct vm *machine(void)
{
	static struct vm vm;
	struct hv_config cfg = { .engine = "soft" };

	if (vm.hv)
		return &vm;
	if (hv_vm_create(&cfg, &vm.hv, NULL) ||
	    mem_init(&vm.mem, vm.hv, 8 << 20, NULL, NULL) ||
	    hv_vcpu_create(vm.hv, 0, &vm.cpu[0].hv, NULL))
		abort();
	vm.pio = bus_create("ports"); /* Multiboot sets up the PICs */
	if (!vm.pio)
		abort();
	vm.ncpus = 1;
	return &vm;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vm_config *cfg;
	static int kernel, initrd;
	struct husk_error err;
	char path[64];

	if (!cfg) {
		cfg = vm_config_create();
		kernel = memfd_create("kernel", 0);
		initrd = memfd_create("initrd", 0);
		if (!cfg || kernel < 0 || initrd < 0 || ftruncate(initrd, 9999))
			abort();
		snprintf(path, sizeof(path), "/proc/self/fd/%d", kernel);
		vm_config_set_kernel(cfg, path);
		vm_config_set_cmdline(cfg, "console=ttyS0");
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", initrd);
	vm_config_set_initrd(cfg, size && data[size - 1] & 1 ? path : NULL);
	if (ftruncate(kernel, 0) ||
	    pwrite(kernel, data, size, 0) != (ssize_t)size)
		abort();
	if (firmware_load(machine(), cfg, 0xe0000, &err) && !err.text[0])
		abort(); /* an error without a sentence */
	return 0;
}
