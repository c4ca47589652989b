/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.c - a demo guest in this process, for tests of vm.h
 */
#include "api.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char said[1 << 16];
static size_t said_len;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void output(void *opaque, const void *data, size_t len)
{
	pthread_mutex_lock(&lock);
	if (len > sizeof(said) - 1 - said_len)
		len = sizeof(said) - 1 - said_len;
	memcpy(said + said_len, data, len);
	said_len += len;
	pthread_mutex_unlock(&lock);
}

static void complain(void *opaque, const char *text)
{
}

bool has_said(const char *text)
{
	bool found;

	pthread_mutex_lock(&lock);
	found = strstr(said, text);
	pthread_mutex_unlock(&lock);
	return found;
}

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void fail(const char *what)
{
	printf("FAIL: %s\n%s\n", what, said);
	fflush(stdout);
	_exit(1);
}

void wait_for(const char *text)
{
	double end = now() + TIMEOUT;

	while (!has_said(text)) {
		if (now() > end)
			fail(text);
		usleep(20000);
	}
}

void type(struct vm *vm, const char *text)
{
	for (size_t n = strlen(text); n; usleep(10000)) {
		size_t done = vm_console_write(vm, VM_SERIAL, text, n);

		text += done;
		n -= done;
	}
}

void skip(const char *why)
{
	printf("SKIP: %s\n", why);
	fflush(stdout);
	_exit(77);
}

void setup(struct vm_config *cfg, const char *demo)
{
	char path[4096];

	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(path, sizeof(path), "%s/vmlinuz", demo);
	if (access(path, R_OK))
		skip("no demo guest: ./dev run makes one");
	vm_config_set_kernel(cfg, path);
	snprintf(path, sizeof(path), "%s/initrd", demo);
	vm_config_set_initrd(cfg, path);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	vm_config_set_log(cfg, complain, NULL);
}

struct vm *start(const struct vm_config *cfg)
{
	struct husk_error err = { 0 };
	struct vm *vm;

	if (vm_config_validate(cfg, complain, NULL) ||
	    vm_create(cfg, &vm, &err) || vm_start(vm, &err))
		fail(err.text);
	return vm;
}

enum vm_stop_reason wait_end(struct vm *vm)
{
	struct vm_stopped st;

	if (vm_wait(vm, TIMEOUT * 1000, &st))
		fail("the guest does not end");
	return st.reason;
}
