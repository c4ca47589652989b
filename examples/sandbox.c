/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox.c - boots once, then runs each command in a machine of its own
 *
 * sandbox KERNEL INITRD COMMAND...
 *
 * The guest is saved when it waits for a command; every command gets a machine
 * that goes on from there, all of them at once and in this process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "husk/saved.h"

struct job {
	const char *command;
	struct vm *vm;
	FILE *said;
	char *text;
	size_t len;
};

static void hear(void *opaque, const void *data, size_t len)
{
	fwrite(data, 1, len, ((struct job *)opaque)->said);
}

static void hear_pipe(void *opaque, const void *data, size_t len)
{
	if (write(*(int *)opaque, data, len) < 0)
		perror("sandbox");
}

/* Until the guest says that it waits: its state in the file. */
static int prepare(const char *kernel, const char *initrd, const char *file,
		   struct husk_error *err)
{
	static const struct vm_save_options last = { .stop = true,
						     .scratch = true };
	struct vm_config *cfg = vm_config_create();
	char line[256] = "";
	struct vm *vm = NULL;
	FILE *in = NULL;
	int fds[2], ret = -1;

	if (cfg && !pipe(fds) && (in = fdopen(fds[0], "r"))) {
		vm_config_set_kernel(cfg, kernel);
		vm_config_set_initrd(cfg, initrd);
		vm_config_set_memory(cfg, 256 << 20);
		vm_config_set_cmdline(cfg, "console=ttyS0 quiet husk.run=\"echo"
					   " ready; read -r c; eval $c\"");
		vm_config_set_output(cfg, VM_SERIAL, hear_pipe, &fds[1]);
		ret = vm_create(cfg, &vm, err);
	}
	if (!ret)
		ret = vm_start(vm, err);
	while (!ret && strncmp(line, "ready", 5) != 0 &&
	       fgets(line, sizeof(line), in))
		;
	if (!ret)
		ret = vm_save(vm, file, &last, NULL, NULL, NULL, err);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	return ret;
}

/* A serial port takes no more at a time than its guest has read. */
static void type(struct vm *vm, const char *text)
{
	struct vm_stopped end;

	while (*text && !vm_next_event(vm, &end)) {
		text += vm_console_write(vm, VM_SERIAL, text, strlen(text));
		usleep(1000);
	}
}

static int start(struct job *j, const struct vm_saved *saved,
		 struct husk_error *err)
{
	struct vm_config *cfg;
	int ret = vm_saved_config(saved, &cfg, err);

	if (ret)
		return ret;
	j->said = open_memstream(&j->text, &j->len);
	vm_config_set_output(cfg, VM_SERIAL, hear, j);
	ret = vm_restore(saved, cfg, NULL, &j->vm, err);
	vm_config_destroy(cfg);
	if (!ret)
		ret = vm_start(j->vm, err);
	if (!ret) {
		type(j->vm, j->command);
		type(j->vm, "\n");
	}
	return ret;
}

int main(int argc, char **argv)
{
	char file[] = "/tmp/sandbox-XXXXXX";
	struct husk_error err = { 0 };
	struct vm_saved *saved = NULL;
	struct job *jobs;
	int fd, ret;

	if (argc < 4 || (fd = mkstemp(file)) < 0) {
		fputs("usage: sandbox KERNEL INITRD COMMAND...\n", stderr);
		return 2;
	}
	close(fd);
	jobs = calloc((size_t)argc, sizeof(*jobs));
	if (!jobs)
		return 1;
	ret = prepare(argv[1], argv[2], file, &err);
	if (!ret)
		ret = vm_saved_open(file, &saved, &err);
	for (int i = 3; !ret && i < argc; i++) {
		jobs[i].command = argv[i];
		ret = start(&jobs[i], saved, &err);
	}
	vm_saved_close(saved);
	unlink(file);
	if (ret)
		fprintf(stderr, "sandbox: %s\n", err.text);
	for (int i = 3; i < argc; i++) {
		if (jobs[i].vm && !ret)
			vm_wait(jobs[i].vm, 60000, &(struct vm_stopped){ 0 });
		vm_destroy(jobs[i].vm);
		if (jobs[i].said && !fclose(jobs[i].said))
			printf("%s:\n%s", jobs[i].command, jobs[i].text);
		free(jobs[i].text);
	}
	free(jobs);
	return ret ? 1 : 0;
}
