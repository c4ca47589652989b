/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_machine.c - a machine that cannot start says so to who waits for it
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <pthread.h>
#include <unistd.h>
#include <cmocka.h>
#include <errno.h>

#include "husk/vm.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
