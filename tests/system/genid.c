/* SPDX-License-Identifier: Apache-2.0 */
/*
 * genid.c - does a guest notice that it has become a copy?
 *
 * genid DEMO
 */
#include <stdio.h>
#include <string.h>

#include "api.h"

/* The bytes as od(1) shows them. */
static void say_id(struct vm *vm, char *text)
{
	uint8_t id[16];

	vm_generation_id(vm, id);
	for (unsigned i = 0; i < 16; i++)
		sprintf(text + 3ul * i, " %02x", id[i]);
}

int main(int argc, char **argv)
{
	struct vm_config *cfg = vm_config_create();
	char before[64], after[64];
	struct vm *vm;

	if (!cfg || argc < 2)
		return 2;
	setup(cfg, argv[1]);
	/* The page lies below 1 MiB, where /dev/mem may always look. */
	vm_config_set_cmdline(
		cfg,
		"console=ttyS0 quiet husk.run=\""
		"id() { dd if=/dev/mem bs=4096 skip=228 count=1 2>/dev/null | "
		"head -c 16 | od -An -tx1; };"
		"events() { cut -c1-8 /sys/firmware/acpi/interrupts/gpe05; };"
		"cat /sys/bus/acpi/devices/HUSKVGID:00/hid;"
		"ls -d /sys/bus/acpi/drivers/vmgenid;"
		"id; echo EVENTS $(events); echo READY; read a;"
		"for i in 1 2 3 4 5 6 7 8 9; do [ $(events) = 0 ] && sleep 1; done;"
		"id; echo NOW $(events); dmesg | grep reseeded; poweroff -f\"");
	vm = start(cfg);
	say_id(vm, before);
	wait_for("READY");
	if (!has_said("HUSKVGID") || !has_said(before) || !has_said("EVENTS 0"))
		fail("the guest does not see its generation ID");
	if (vm_generation_id_new(vm))
		fail("no new generation ID");
	say_id(vm, after);
	if (!strcmp(before, after))
		fail("the same generation ID");
	type(vm, "go\n");
	if (wait_end(vm) != VM_STOP_POWEROFF)
		fail("the guest does not end well");
	if (!has_said(after) || !has_said("NOW 1"))
		fail("the guest has not seen that");
	puts("the id is another one, and there was an event");
	if (has_said("drivers/vmgenid\r")) {
		if (!has_said("crng reseeded due to virtual machine fork"))
			fail("no new random numbers");
		puts("the guest's random numbers are seeded anew");
	}
	vm_destroy(vm);
	vm_config_destroy(cfg);
	return 0;
}
