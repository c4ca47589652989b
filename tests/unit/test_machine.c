/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_machine.c - a machine that cannot start says so to who waits for it,
 * and one that starts does so by its kernel's protocol
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <unistd.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>

#include "husk/vm.h"
#include "vm/machine.h"

/* Linked with --wrap: the call of this number fails; 0: none. */
static unsigned fail_at, calls;

/* The names are the linker's.  NOLINTBEGIN(bugprone-reserved-identifier) */
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr,
			  void *(*f)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr,
			  void *(*f)(void *), void *arg);
/* NOLINTEND(bugprone-reserved-identifier) */

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr,
			  void *(*f)(void *), void *arg)
{
	if (++calls == fail_at)
		return EAGAIN;
	return __real_pthread_create(t, attr, f, arg);
}

/* A Multiboot kernel: hlt, and again. */
static void write_kernel(char *path)
{
	const uint32_t k[9] = {
		0x1badb002, 0x10000,  -(0x1badb002u + 0x10000),
		0x100000,   0x100000, 0,
		0,	    0x100020, 0xfffdebf4,
	};
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, k, sizeof(k)), sizeof(k));
	close(fd);
}

/* Calls by vm_start(): the event loop, then one for each of two vCPUs. */
static void test_no_thread(void **state)
{
	char path[] = "/tmp/husk-test-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	struct vm_stopped st;
	struct vm *vm;

	write_kernel(path);
	vm_config_set_kernel(cfg, path);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_cpus(cfg, 2);
	vm_config_set_memory(cfg, 8 << 20);
	for (unsigned n = 1; n <= 4; n++) {
		assert_int_equal(vm_create(cfg, &vm, &err), 0);
		assert_int_equal(vm_next_event(vm, &st), 0);
		calls = 0;
		fail_at = n;
		if (n <= 3) {
			assert_int_equal(vm_start(vm, &err), -EAGAIN);
			assert_int_equal(vm_wait(vm, 0, &st), 0);
			assert_int_equal(st.reason, VM_STOP_ERROR);
		} else {
			assert_int_equal(vm_start(vm, &err), 0);
			assert_int_equal(vm_next_event(vm, &st), 0);
			vm_stop(vm);
			assert_int_equal(vm_wait(vm, 0, &st), 0);
			assert_int_equal(st.reason, VM_STOP_STOPPED);
		}
		fail_at = 0;
		vm_destroy(vm);
	}
	vm_config_destroy(cfg);
	unlink(path);
}

/* A second machine does not get an image, and a disk grows in use. */
static void disk_is_locked_and_grows(void **state)
{
	char kernel[] = "/tmp/husk-test-XXXXXX", disk[] = "/tmp/husk-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	struct vm *vm, *other;
	char spec[64];

	write_kernel(kernel);
	close(mkstemp(disk));
	assert_int_equal(truncate(disk, 1 << 20), 0);
	vm_config_set_kernel(cfg, kernel);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_memory(cfg, 8 << 20);
	snprintf(spec, sizeof(spec), "%s,cache=nothing", disk);
	assert_int_not_equal(vm_config_add_disk_spec(cfg, spec, &err), 0);
	assert_non_null(strstr(err.text, "cannot be \"nothing\""));
	snprintf(spec, sizeof(spec), "%s,cahce=direct", disk);
	assert_int_not_equal(vm_config_add_disk_spec(cfg, spec, &err), 0);
	assert_non_null(strstr(err.text, "no option \"cahce=direct\""));
	snprintf(spec, sizeof(spec), "%s,serial=A,queues=2", disk);
	assert_int_equal(vm_config_add_disk_spec(cfg, spec, &err), 0);
	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	assert_int_not_equal(vm_create(cfg, &other, &err), 0);
	assert_non_null(strstr(err.text, "in use by another machine"));
	assert_int_equal(vm_start(vm, &err), 0);
	assert_int_equal(vm_disk_grow(vm, 0, 2 << 20, &err), 0);
	assert_int_not_equal(vm_disk_grow(vm, 0, 1 << 20, &err), 0);
	assert_int_equal(vm_disk_grow(vm, 1, 2 << 20, &err), -ENOENT);
	vm_stop(vm);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	unlink(disk);
	unlink(kernel);
}

/*
 * A bzImage of 32 bits: with its boot_params at ESI and flat segments it ends
 * the machine with the status 9, else it halts.
 */
static void write_linux32(char *path)
{
	static const uint8_t code[] = {
		0x81, 0xbe, 0x02, 0x02, 0, 0, /* cmpl $"HdrS", */
		0x48, 0x64, 0x72, 0x53,	      /*   0x202(%esi) */
		0x75, 0x0c,		      /* jne 1f */
		0x8c, 0xc8,		      /* mov %cs, %eax */
		0x83, 0xe8, 0x0b,	      /* sub $11, %eax */
		0x48,			      /* dec %eax, or REX */
		0x66, 0xba, 0xf4, 0,	      /* mov $0xf4, %dx */
		0xef,			      /* out %eax, %dx */
		0x90, 0xf4, 0xeb, 0xfd,	      /* 1: hlt; jmp 1b */
	};
	uint8_t k[2048] = { 0 };
	const uint32_t init_size = 0x10000, pref = 0x100000, top = 0x37ffffff;
	const uint16_t version = 0x20c;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	k[0x1f1] = 1; /* a sector of set-up code */
	k[0x1fe] = 0x55;
	k[0x1ff] = 0xaa;
	k[0x200] = 0xeb;
	k[0x201] = 0x66;
	memcpy(k + 0x202, "HdrS", 4);
	memcpy(k + 0x206, &version, 2);
	memcpy(k + 0x22c, &top, 4);
	memcpy(k + 0x258, &pref, 4);
	memcpy(k + 0x260, &init_size, 4);
	memcpy(k + 1024, code, sizeof(code));
	assert_int_equal(write(fd, k, sizeof(k)), sizeof(k));
	close(fd);
}

static void test_linux32(void **state)
{
	char path[] = "/tmp/husk-test-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	struct vm_stopped st;
	struct vm *vm;

	write_linux32(path);
	vm_config_set_kernel(cfg, path);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_memory(cfg, 8 << 20);
	assert_int_equal(vm_config_add_device(cfg, "debug-exit", &err), 0);
	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	assert_int_equal(vm_start(vm, &err), 0);
	assert_int_equal(vm_wait(vm, 20000, &st), 0);
	assert_int_equal(st.reason, VM_STOP_EXIT);
	assert_int_equal(st.code, 4 << 1 | 1);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	unlink(path);
}

/* Shares of a machine lead elsewhere, or nowhere, at any time. */
static void test_share_set(void **state)
{
	char path[] = "/tmp/husk-test-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	struct vm *vm;

	write_linux32(path);
	vm_config_set_kernel(cfg, path);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_memory(cfg, 8 << 20);
	assert_int_equal(vm_config_add_share(cfg, "/tmp", &err), 0);
	assert_int_equal(vm_config_add_share(cfg, "/usr,ro", &err), 0);
	assert_int_equal(vm_create(cfg, &vm, &err), 0);
	assert_int_equal(vm_share_set(vm, "share", "/usr", &err), 0);
	assert_int_equal(vm_share_set(vm, "share1", NULL, &err), 0);
	assert_int_equal(vm_share_set(vm, "share1", "/tmp", &err), 0);
	assert_int_equal(vm_share_set(vm, "share2", "/usr", &err), -ENOENT);
	assert_non_null(strstr(err.text, "share2"));
	assert_int_equal(vm_share_set(vm, "share", "/etc/passwd", &err),
			 -ENOTDIR);
	vm_destroy(vm);
	vm_config_destroy(cfg);
	unlink(path);
}

static void count_to(const uint32_t *counter, uint32_t n)
{
	while (__atomic_load_n(counter, __ATOMIC_RELAXED) < n)
		usleep(1000);
}

/*
 * Code in a page of its own counts at 300000.  When the page is given back to
 * the host, what is there is zeroes, and they run: nothing decoded or
 * translated may be left of it.  They lead to code that counts at 300004.
 */
static void discarded_code_is_gone(void **state)
{
	static const uint8_t kernel[] = {
		0x31, 0xc0, 0xe9, 0xd9, 0xff, 0x0f, 0
	};
	static const uint8_t one[] = { 0xff, 0x05, 0, 0, 0x30, 0, 0xeb, 0xf8 };
	static const uint8_t two[] = { 0xff, 0x05, 4, 0, 0x30, 0, 0xeb, 0xf8 };
	static const char *const engines[] = { "soft", "soft,interp",
					       "soft,eager" };
	char path[] = "/tmp/husk-test-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };

	write_kernel(path);
	vm_config_set_kernel(cfg, path);
	vm_config_set_memory(cfg, 8 << 20);
	for (unsigned i = 0; i < 3; i++) {
		uint32_t *counter, before;
		uint64_t freed;
		struct vm *vm;

		vm_config_set_engine(cfg, engines[i]);
		assert_int_equal(vm_create(cfg, &vm, &err), 0);
		mem_copy_in(&vm->mem, 0x100020, kernel, sizeof(kernel));
		mem_copy_in(&vm->mem, 0x200000, one, sizeof(one));
		mem_copy_in(&vm->mem, 0x201000, two, sizeof(two));
		counter = mem_at(&vm->mem, 0x300000, 8);
		assert_int_equal(vm_start(vm, &err), 0);
		count_to(counter, 100000);
		assert_int_equal(mem_discard(&vm->mem, 0x200800, 0x1000,
					     &freed),
				 -EFAULT);
		assert_int_equal(mem_discard(&vm->mem, 0x7ff000, 0x2000,
					     &freed),
				 -EFAULT);
		assert_int_equal(
			mem_discard(&vm->mem, 0x200000, 0x1000, &freed), 0);
		assert_int_equal(freed, 0x1000);
		count_to(counter + 1, 1000);
		before = *counter;
		count_to(counter + 1, 100000);
		assert_int_equal(*counter, before);
		vm_destroy(vm);
	}
	vm_config_destroy(cfg);
	unlink(path);
}

static void count_stop(void *opaque)
{
	__atomic_add_fetch((unsigned *)opaque, 1, __ATOMIC_SEQ_CST);
}

static bool has_device(struct vm *vm, const char *id, const char *kind)
{
	struct vm_device d;

	for (unsigned i = 0; !vm_get_device(vm, i, &d); i++)
		if (!strcmp(d.id, id))
			return !strcmp(d.kind, kind);
	return false;
}

/* One of each kind, with paths of its own. */
static struct vm_config *full_config(const char *kernel, const char *dir,
				     unsigned n, unsigned *stops)
{
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	char text[128];
	int fd;

	vm_config_set_kernel(cfg, kernel);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_cpus(cfg, 2);
	vm_config_set_memory(cfg, 16 << 20);
	vm_config_set_stopped(cfg, count_stop, stops);
	snprintf(text, sizeof(text), "%s/disk%u", dir, n);
	fd = open(text, O_CREAT | O_RDWR, 0600);
	assert_true(fd >= 0 && !ftruncate(fd, 1 << 20));
	close(fd);
	assert_int_equal(vm_config_add_disk(cfg, text, false), 0);
	assert_int_equal(vm_config_add_net(cfg, "shared", &err), 0);
	assert_int_equal(vm_config_add_net(cfg, "null", &err), 0);
	assert_int_equal(vm_config_add_device(cfg, "virtio-rng", &err), 0);
	assert_int_equal(vm_config_add_device(cfg, "debug-exit", &err), 0);
	assert_int_equal(vm_config_add_device(cfg, "pc-testdev", &err), 0);
	assert_int_equal(
		vm_config_add_device(cfg, "virtio-balloon,target=8M", &err), 0);
	snprintf(text, sizeof(text), "%s:data", dir);
	assert_int_equal(vm_config_add_share(cfg, text, &err), 0);
	snprintf(text, sizeof(text), "%s/vsock%u", dir, n);
	assert_int_equal(vm_config_add_vsock(cfg, text, &err), 0);
	return cfg;
}

/* Two machines with all devices in one process, by the same JSON document. */
static void two_full_machines(void **state)
{
	char kernel[] = "/tmp/husk-test-XXXXXX", dir[] = "/tmp/husk-XXXXXX";
	struct husk_error err = { 0 };
	struct vm_stopped st;
	unsigned stops = 0;
	struct vm *vm[2];
	char path[64];

	write_kernel(kernel);
	assert_non_null(mkdtemp(dir));
	for (unsigned n = 0; n < 2; n++) {
		struct vm_config *cfg = full_config(kernel, dir, n, &stops);
		struct vm_config *again;
		char *text = vm_config_to_json(cfg, dir);

		assert_int_equal(vm_config_from_json(text, strlen(text), dir,
						     &again, &err),
				 0);
		vm_config_set_stopped(again, count_stop, &stops);
		assert_int_equal(vm_config_validate(again, NULL, NULL), 0);
		if (vm_create(again, &vm[n], &err))
			fail_msg("%s", err.text);
		free(text);
		vm_config_destroy(cfg);
		vm_config_destroy(again);
	}
	for (unsigned n = 0; n < 2; n++) {
		assert_int_equal(vm_start(vm[n], &err), 0);
		assert_true(has_device(vm[n], "disk0", "virtio-blk"));
		assert_true(has_device(vm[n], "net1", "virtio-net"));
		assert_int_equal(vm_net_count(vm[n]), 2);
		assert_int_equal(vm_net_set_link(vm[n], 1, false), 0);
		assert_int_equal(vm_disk_grow(vm[n], 0, 2 << 20, &err), 0);
		assert_int_equal(vm_share_set(vm[n], "data", "/tmp", &err), 0);
		assert_int_equal(vm_balloon_set_target(vm[n], 4 << 20), 0);
	}
	usleep(100000);
	vm_stop(vm[0]);
	assert_int_equal(__atomic_load_n(&stops, __ATOMIC_SEQ_CST), 1);
	assert_int_equal(vm_next_event(vm[0], &st), 1);
	assert_int_equal(vm_next_event(vm[1], &st), 0);
	vm_destroy(vm[0]);
	vm_destroy(vm[1]);
	assert_int_equal(__atomic_load_n(&stops, __ATOMIC_SEQ_CST), 2);
	for (unsigned n = 0; n < 2; n++) {
		snprintf(path, sizeof(path), "%s/disk%u", dir, n);
		unlink(path);
	}
	assert_int_equal(rmdir(dir), 0); /* no socket is left */
	unlink(kernel);
}

/* Pattern 8: what a device says it has written is bounded in the dirty log. */
static void pattern_08_dirty_log(void **state)
{
	static const struct {
		uint64_t gpa, len;
	} written[] = {
		{ 0, 0 },
		{ 0x1fffff, 0 },
		{ 0x200000, 0 },
		{ UINT64_MAX, 0 },
		{ 0x1fffff, 1 },
		{ 0x1fffff, 0x100000 },
		{ 0x200000, UINT32_MAX },
		{ 0xfee00000, 0x1000 },
		{ 0x1000, 1 },
	};
	static const char *const engines[] = { "soft", "kvm" };
	uint8_t *host = aligned_alloc(4096, 2 << 20);

	assert_non_null(host);
	for (unsigned i = 0; i < 2; i++) {
		struct hv_config cfg = { .engine = engines[i] };
		struct husk_error err = { 0 };
		uint64_t bits[8];
		struct hv_vm *vm;

		if (hv_vm_create(&cfg, &vm, &err))
			continue; /* no /dev/kvm */
		assert_int_equal(hv_mem_map(vm, 0, 2 << 20, host,
					    HV_MEM_READ | HV_MEM_WRITE |
						    HV_MEM_LOG),
				 0);
		for (unsigned k = 0; k < sizeof(written) / sizeof(*written);
		     k++)
			hv_mem_written(vm, written[k].gpa, written[k].len);
		assert_int_equal(hv_mem_fetch_dirty(vm, 0, 2 << 20, bits), 0);
		assert_int_equal(bits[0], 2);
		for (unsigned k = 1; k < 7; k++)
			assert_int_equal(bits[k], 0);
		assert_int_equal(bits[7], 1ull << 63);
		hv_vm_destroy(vm);
	}
	free(host);
}

/* Pattern 10: the door to memory does not lead to any register. */
static void pattern_10_no_register_is_memory(void **state)
{
	static const uint64_t sizes[] = { 8ull << 20, 3072ull << 20,
					  3ull << 30 | 16 << 20 };
	char path[] = "/tmp/husk-test-XXXXXX";
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };

	write_kernel(path);
	vm_config_set_kernel(cfg, path);
	vm_config_set_engine(cfg, "soft");
	for (unsigned i = 0; i < 3; i++) {
		struct vm *vm;

		vm_config_set_memory(cfg, sizes[i]);
		assert_int_equal(vm_create(cfg, &vm, &err), 0);
		for (uint64_t gpa = 0xc0000000; gpa < 1ull << 32; gpa += 4096)
			assert_null(mem_at(&vm->mem, gpa, 1));
		assert_null(
			mem_at(&vm->mem, MIN(sizes[i], 0xc0000000ull) - 1, 2));
		assert_null(mem_at(&vm->mem, (1ull << 32) - 1, 2));
		assert_null(mem_at(&vm->mem, UINT64_MAX, 2));
		assert_null(mem_at(&vm->mem, 4096, UINT64_MAX - 100));
		vm_destroy(vm);
	}
	vm_config_destroy(cfg);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(disk_is_locked_and_grows),
		cmocka_unit_test(test_no_thread),
		cmocka_unit_test(test_linux32),
		cmocka_unit_test(two_full_machines),
		cmocka_unit_test(test_share_set),
		cmocka_unit_test(discarded_code_is_gone),
		cmocka_unit_test(pattern_08_dirty_log),
		cmocka_unit_test(pattern_10_no_register_is_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
