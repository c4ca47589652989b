/* SPDX-License-Identifier: Apache-2.0 */
/*
 * events.c - a program with a loop of its own runs a machine in it
 *
 * events CONFIG.json [SECONDS]
 *
 * Typed lines go to the guest's serial port; after SECONDS its power button is
 * pressed, and five later its power is cut.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "husk/vm.h"

/* On a thread of the machine. */
static void output(void *opaque, const void *data, size_t len)
{
	if (write(1, data, len) < 0)
		perror("events");
}

static void say(void *opaque, const char *text)
{
	fprintf(stderr, "events: %s\n", text);
}

/* A machine may take less than it is given: here the rest is lost. */
static int type(struct vm *vm)
{
	char line[256];
	ssize_t n = read(0, line, sizeof(line));

	if (n > 0)
		vm_console_write(vm, VM_SERIAL, line, (size_t)n);
	return n > 0;
}

static int loop(struct vm *vm, int seconds)
{
	struct pollfd f[] = {
		{ .fd = vm_event_fd(vm), .events = POLLIN },
		{ .fd = 0, .events = POLLIN },
	};
	struct vm_stopped end;
	int pressed = 0;

	while (!vm_next_event(vm, &end)) {
		int n = poll(f, 2, pressed ? 5000 : seconds * 1000);

		if (n < 0)
			return 1;
		if (n == 0 && pressed)
			vm_stop(vm);
		else if (n == 0)
			vm_power_button(vm), pressed = 1;
		else if (f[1].revents && !type(vm))
			f[1].fd = -1;
	}
	if (*end.text)
		say(NULL, end.text);
	return end.reason != VM_STOP_POWEROFF;
}

int main(int argc, char **argv)
{
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	struct vm_device d;
	struct vm *vm = NULL;
	int ret;

	if (argc < 2) {
		fputs("usage: events CONFIG.json [SECONDS]\n", stderr);
		return 2;
	}
	ret = vm_config_load(argv[1], &cfg, &err);
	if (!ret) {
		vm_config_set_output(cfg, VM_SERIAL, output, NULL);
		vm_config_set_log(cfg, say, NULL);
		ret = vm_create(cfg, &vm, &err);
	}
	for (unsigned i = 0; vm && !vm_get_device(vm, i, &d); i++)
		fprintf(stderr, "%s%s (%s)", i ? ", " : "devices: ", d.id,
			d.kind);
	if (!ret)
		ret = vm_start(vm, &err);
	if (ret)
		say(NULL, err.text);
	else
		ret = loop(vm, argc > 2 ? (int)strtol(argv[2], NULL, 10) : -1);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	return ret ? 1 : 0;
}
