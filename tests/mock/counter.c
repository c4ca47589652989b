/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counter.c - see counter.h
 */
#include "mock/counter.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char dir[] = "/tmp/husk-saved-XXXXXX";
char kernel[64], file[64], other[64], disk[64], sockets[64];
uint8_t *image;
size_t image_len;

/*
 * A Multiboot kernel that counts: its memory at 2 MiB and the TSC's lowest
 * word go to a debug-exit device when port 0x3fd (COM1's line status) says
 * that a byte was typed.
 */
void write_kernel(void)
{
	static const uint8_t code[] = {
		0xff, 0x05, 0x00, 0x00, 0x20, 0x00, /* 1: incl 0x200000 */
		0x66, 0xba, 0xfd, 0x03,		    /* mov $0x3fd, %dx */
		0xec,				    /* in %dx, %al */
		0xa8, 0x01,			    /* test $1, %al */
		0x74, 0xf1,			    /* jz 1b */
		0xa1, 0x00, 0x00, 0x40, 0x00,	    /* mov 0x400000, %eax */
		0x66, 0xba, 0xf4, 0x00,		    /* mov $0xf4, %dx */
		0xef,				    /* out %eax, %dx */
		0xf4,				    /* hlt */
	};
	uint32_t k[32] = {
		0x1badb002, 0x10000,  -(0x1badb002u + 0x10000),
		0x100000,   0x100000, 0,
		0,	    0x100020,
	};
	int fd = open(kernel, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	memcpy(&k[8], code, sizeof(code));
	assert_true(fd >= 0);
	assert_int_equal(write(fd, k, sizeof(k)), sizeof(k));
	close(fd);
}

struct vm_config *configure(bool with_disk)
{
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };

	vm_config_set_kernel(cfg, kernel);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_cpus(cfg, 2);
	vm_config_set_memory(cfg, 16 << 20);
	assert_int_equal(vm_config_add_device(cfg, "debug-exit", &err), 0);
	assert_int_equal(vm_config_add_net(cfg, "null", &err), 0);
	if (with_disk)
		assert_int_equal(vm_config_add_disk(cfg, disk, false), 0);
	return cfg;
}

/* Every kind of device that needs nothing of the host. */
struct vm_config *configure_all(void)
{
	static const char *const devices[] = { "virtio-rng", "virtio-balloon",
					       "virtio-serial,null" };
	struct vm_config *cfg = configure(true);
	struct husk_error err = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(devices); i++)
		assert_int_equal(vm_config_add_device(cfg, devices[i], &err),
				 0);
	assert_int_equal(vm_config_add_share(cfg, "/:root,ro", &err), 0);
	assert_int_equal(vm_config_add_vsock(cfg, "/tmp/husk-golden", &err), 0);
	vm_config_set_vsock_path(cfg, sockets);
	return cfg;
}

struct vm *start_config(const struct vm_config *cfg)
{
	struct husk_error err = { 0 };
	struct vm *vm;

	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	/* What it ends with. */
	*(uint32_t *)mem_at(&vm->mem, 0x400000, 4) = 21;
	assert_int_equal(vm_start(vm, &err), 0);
	usleep(20000);
	return vm;
}

struct vm *start(bool with_disk)
{
	struct vm_config *cfg = configure(with_disk);
	struct vm *vm = start_config(cfg);

	vm_config_destroy(cfg);
	return vm;
}

struct vm *restore(const char *path, struct husk_error *err)
{
	struct vm_config *cfg = NULL;
	struct vm_saved *saved;
	struct vm *vm = NULL;

	if (vm_saved_open(path, &saved, err))
		return NULL;
	if (!vm_saved_config(saved, &cfg, err))
		vm_restore(saved, cfg, NULL, &vm, err);
	vm_config_destroy(cfg);
	vm_saved_close(saved);
	return vm;
}

uint32_t count(struct vm *vm)
{
	return *(volatile uint32_t *)mem_at(&vm->mem, 0x200000, 4);
}

/* It goes on, and knows what it knew. */
void ends_well(struct vm *vm)
{
	struct vm_stopped st;

	/* Not taken before the guest has looked at the port. */
	for (unsigned i = 0; !vm_console_write(vm, VM_SERIAL, "x", 1); i++) {
		assert_true(i < 10000);
		usleep(1000);
	}
	assert_int_equal(vm_wait(vm, 20000, &st), 0);
	assert_int_equal(st.reason, VM_STOP_EXIT);
	assert_int_equal(st.code, 21 << 1 | 1);
	vm_destroy(vm);
}

unsigned files_in(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

void put_file(const uint8_t *data, size_t len)
{
	int fd = open(other, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

void load_file(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY);

	assert_true(fd >= 0);
	fstat(fd, &st);
	image_len = (size_t)st.st_size;
	image = malloc(image_len);
	assert_int_equal(read(fd, image, image_len), image_len);
	close(fd);
}

int make_folder(void **state)
{
	strcpy(strrchr(dir, '-'), "-XXXXXX"); /* a process may want another */
	if (!mkdtemp(dir))
		return -1;
	snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
	snprintf(file, sizeof(file), "%s/file", dir);
	snprintf(other, sizeof(other), "%s/other", dir);
	snprintf(disk, sizeof(disk), "%s/disk", dir);
	snprintf(sockets, sizeof(sockets), "%s/sockets", dir);
	write_kernel();
	close(open(disk, O_CREAT | O_WRONLY, 0600));
	return truncate(disk, 1 << 20);
}

int remove_folder(void **state)
{
	unlink(kernel);
	unlink(file);
	unlink(other);
	unlink(disk);
	unlink(sockets);
	return rmdir(dir);
}
