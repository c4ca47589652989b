/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boot.c - boots a Linux kernel, its console on standard output
 *
 * boot KERNEL [INITRD [SECONDS]]
 */
#include <stdio.h>
#include <stdlib.h>

#include "husk/vm.h"

/* On a thread of the machine. */
static void output(void *opaque, const void *data, size_t len)
{
	fwrite(data, 1, len, stdout);
	fflush(stdout);
}

static void problem(void *opaque, const char *text)
{
	fprintf(stderr, "boot: %s\n", text);
}

static int run(const struct vm_config *cfg, int timeout_ms)
{
	struct vm_stopped end = { 0 };
	struct husk_error err = { 0 };
	struct vm *vm;
	int ret;

	if (vm_create(cfg, &vm, &err)) {
		problem(NULL, err.text);
		return 1;
	}
	fprintf(stderr, "boot: engine %s\n", vm_engine(vm));
	ret = vm_start(vm, &err);
	if (ret)
		problem(NULL, err.text);
	else
		ret = vm_wait(vm, timeout_ms, &end);
	vm_destroy(vm);
	if (!ret && end.reason != VM_STOP_POWEROFF)
		problem(NULL, *end.text ? end.text : "ended without poweroff");
	return ret || end.reason != VM_STOP_POWEROFF;
}

int main(int argc, char **argv)
{
	struct vm_config *cfg = vm_config_create();
	int ret;

	if (!cfg || argc < 2) {
		fputs("usage: boot KERNEL [INITRD [SECONDS]]\n", stderr);
		return 2;
	}
	vm_config_set_kernel(cfg, argv[1]);
	if (argc > 2)
		vm_config_set_initrd(cfg, argv[2]);
	/* The demo guest does what husk.run says and powers off. */
	vm_config_set_cmdline(cfg, "console=ttyS0 quiet husk.run=\"uname -a\"");
	vm_config_set_memory(cfg, 256 << 20);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	if (vm_config_validate(cfg, problem, NULL))
		ret = 2;
	else
		ret = run(cfg, argc > 3 ? (int)strtol(argv[3], NULL, 10) * 1000
					: -1);
	vm_config_destroy(cfg);
	return ret;
}
