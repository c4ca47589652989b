/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello.c - ten bytes of guest code, and what they say: hello [auto|kvm|soft]
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "husk/hv.h"

static const unsigned char code[] = {
	0xba, 0xf8, 0x03, /*    mov $0x3f8, %dx */
	0xb0, 0x48,	  /*    mov $'H', %al */
	0xee,		  /*    out %al, %dx */
	0xb0, 0x69,	  /*    mov $'i', %al */
	0xee,		  /*    out %al, %dx */
	0xf4,		  /*    hlt */
};

static int fail(const char *what)
{
	fprintf(stderr, "hello: %s\n", what);
	return 1;
}

int main(int argc, char **argv)
{
	struct hv_config cfg = { .engine = argc > 1 ? argv[1] : "auto" };
	static struct hv_state state;
	struct husk_error err = { 0 };
	struct hv_exit exit;
	struct hv_vcpu *cpu;
	struct hv_vm *vm;

	void *mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return fail("no memory");
	memcpy(mem, code, sizeof(code));

	if (hv_vm_create(&cfg, &vm, &err) ||
	    hv_mem_map(vm, 0, 4096, mem, HV_MEM_READ | HV_MEM_WRITE) ||
	    hv_vcpu_create(vm, 0, &cpu, &err))
		return fail(err.text);

	/* A reset vCPU is in real mode at F000:FFF0; start at 0:0 instead. */
	hv_vcpu_get(cpu, HV_STATE_SYSTEM | HV_STATE_GENERAL, &state);
	state.seg[HV_CS].selector = state.seg[HV_CS].base = state.rip = 0;
	hv_vcpu_set(cpu, HV_STATE_SYSTEM | HV_STATE_GENERAL, &state);

	printf("%s: ", hv_vm_engine(vm));
	for (int said = 0; said < 2; said++) {
		if (hv_vcpu_run(cpu, &exit) || exit.reason != HV_EXIT_PIO)
			return fail("unexpected exit");
		putchar(exit.pio.value);
	}
	putchar('\n');
	hv_vm_destroy(vm);
	return 0;
}
