/* SPDX-License-Identifier: Apache-2.0 */
/*
 * noexec.c - engine soft where executable memory is restricted
 *
 * PR_SET_MDWE forbids memory that is or was writable to become executable:
 * translation works.  A filter that forbids executable memory altogether: a
 * vCPU is refused, with a sentence.  Each in a process of its own, as neither
 * can be taken back.  TAP on standard output.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bare.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif
enum { MDWE_REFUSE_EXEC_GAIN = 1, SKIP = 77, DONE = 0x510 };

/* Counts to 100,000, often enough to be translated. */
PAYLOAD(code_count, 64,
	"mov $100000, %ecx\n xor %eax, %eax\n"
	"1: add $3, %eax\n dec %ecx\n jnz 1b\n"
	"mov $0x510, %edx\n out %eax, %dx\n");

static int run_with_mdwe(void)
{
	struct hv_stats st;
	struct bare g;
	bool ok;

	if (prctl(PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN, 0, 0, 0))
		return SKIP;
	bare_start(&g, "soft", BARE_LONG, code_count, code_count_end);
	ok = bare_run(&g) == HV_EXIT_PIO && g.exit.pio.port == DONE &&
	     g.exit.pio.value == 300000 && !hv_vcpu_stats(g.cpu, &st) &&
	     st.translations;
	bare_stop(&g);
	return !ok;
}

static int forbid_exec(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(code[0]), code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0);
}

static int run_without(void)
{
	struct hv_config cfg = { .engine = "soft", .max_vcpus = 1 };
	struct husk_error err = { 0 };
	struct hv_vcpu *cpu = NULL;
	struct hv_vm *vm = NULL;
	int ret;

	if (forbid_exec())
		return SKIP;
	ret = hv_vm_create(&cfg, &vm, &err);
	if (!ret)
		ret = hv_vcpu_create(vm, 0, &cpu, &err);
	if (vm)
		hv_vm_destroy(vm);
	printf("# %s\n", err.text);
	fflush(stdout);
	return ret != -EACCES || !strstr(err.text, "executable memory");
}

static int in_child(const char *name, unsigned n, int (*run)(void))
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child)
		_exit(run());
	if (child < 0 || waitpid(child, &status, 0) != child)
		bare_die("fork", -errno);
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP) {
		printf("ok %u - %s # SKIP this kernel cannot\n", n, name);
		return 0;
	}
	printf("%sok %u - %s\n", status ? "not " : "", n, name);
	return status != 0;
}

int main(void)
{
	int bad = in_child("no writable memory becomes executable", 1,
			   run_with_mdwe);

	bad |= in_child("no executable memory", 2, run_without);
	puts("1..2");
	return bad;
}
