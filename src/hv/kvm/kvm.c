/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvm.c - the engine that runs guest code with /dev/kvm
 *
 * The local APICs are KVM's (a split irqchip), I/O APIC and PIC are the
 * caller's: interrupts arrive as MSIs, ends of level-triggered ones are
 * learned from the routing table, ExtINT goes in by KVM_INTERRUPT.
 *
 * Getting a vCPU out of KVM_RUN takes a signal.  The engine uses one real-time
 * signal of the process whose disposition is the default one, and gives it a
 * handler that does nothing (SA_RESTART); a second VM finds that handler and
 * shares it.  It is sent to a thread only while that thread is in KVM_RUN.
 * run->immediate_exit is set before it is sent, so a signal that comes just
 * before KVM_RUN is not lost and nothing needs to be blocked.  In a thread
 * that blocks the signal, KVM_SET_SIGNAL_MASK opens it for KVM_RUN only, and
 * what stays pending is taken by sigtimedwait().
 */
#include "hv/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Below the local APICs' end, in no PC's memory map; for hosts whose VMX
 * cannot run real mode by itself. */
enum { IDENTITY_ADDR = 0xfeffc000, TSS_ADDR = 0xfeffd000 };

#define load(p)	    __atomic_load_n(p, __ATOMIC_SEQ_CST)
#define store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define count(p, v) __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

/* -- small things --------------------------------------------------------- */

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int n = ioctl(fd, request, arg);

	return n < 0 ? -errno : n;
}

int kvm_ioctl_n(int fd, unsigned long request, unsigned long arg)
{
	int n = ioctl(fd, request, arg);

	return n < 0 ? -errno : n;
}

int kvm_fail(struct husk_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (err) {
		err->code = code;
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
	}
	return code;
}

static bool has_cap(int fd, unsigned cap)
{
	return kvm_ioctl_n(fd, KVM_CHECK_EXTENSION, cap) > 0;
}

int kvm_open(struct husk_error *err)
{
	static const struct {
		unsigned cap;
		const char *name;
	} needed[] = {
		{ KVM_CAP_USER_MEMORY, "user memory" },
		{ KVM_CAP_IMMEDIATE_EXIT, "immediate exit" },
		{ KVM_CAP_SPLIT_IRQCHIP, "split irqchip" },
		{ KVM_CAP_SIGNAL_MSI, "MSIs" },
		{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
		{ KVM_CAP_READONLY_MEM, "read-only memory" },
		{ KVM_CAP_EXT_CPUID, "CPUID" },
		{ KVM_CAP_XSAVE, "XSAVE state" },
	};
	int dev = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

	if (dev < 0) {
		int code = errno == EPERM		       ? -EACCES
			   : errno == ENODEV || errno == ENXIO ? -ENOENT
							       : -errno;

		if (code == -EACCES)
			return kvm_fail(err, code,
					"/dev/kvm: no permission: join the "
					"group that owns it (kvm), or use "
					"engine soft");
		if (code == -ENOENT)
			return kvm_fail(err, code,
					"/dev/kvm: not there: no hardware "
					"virtualization, or kvm_intel or "
					"kvm_amd is not loaded");
		return kvm_fail(err, code, "/dev/kvm: %s", strerror(-code));
	}
	version = kvm_ioctl_n(dev, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION) {
		close(dev);
		return kvm_fail(err, -ENOTSUP, "/dev/kvm: API version %d",
				version);
	}
	for (unsigned i = 0; i < sizeof(needed) / sizeof(*needed); i++)
		if (!has_cap(dev, needed[i].cap)) {
			close(dev);
			return kvm_fail(err, -ENOTSUP,
					"/dev/kvm: no support for %s",
					needed[i].name);
		}
	return dev;
}

static void no_op(int sig)
{
}

/* -errno when there is no signal left; the number else. */
static int take_signal(void)
{
	for (int sig = SIGRTMAX - 1; sig > SIGRTMIN; sig--) {
		struct sigaction sa;

		if (sigaction(sig, NULL, &sa))
			continue;
		if (!(sa.sa_flags & SA_SIGINFO) && sa.sa_handler == no_op)
			return sig;
		if ((sa.sa_flags & SA_SIGINFO) || sa.sa_handler != SIG_DFL)
			continue;
		memset(&sa, 0, sizeof(sa));
		sa.sa_handler = no_op;
		sa.sa_flags = SA_RESTART;
		if (!sigaction(sig, &sa, NULL))
			return sig;
	}
	return -EAGAIN;
}

int kvm_set_mask(int cpu, const sigset_t *set)
{
	struct {
		struct kvm_signal_mask head;
		uint8_t set[8]; /* the kernel's sigset_t */
	} __attribute__((packed)) mask = { .head.len = 8 };

	memcpy(mask.set, set, sizeof(mask.set));
	return kvm_ioctl(cpu, KVM_SET_SIGNAL_MASK, &mask);
}

int kvm_get_supported(int dev, struct kvm_cpuids *out)
{
	out->nent = KVM_CPUID_MAX;
	out->padding = 0;
	return kvm_ioctl(dev, KVM_GET_SUPPORTED_CPUID, out);
}

static const struct kvm_cpuid_entry2 *find_cpuid(const struct kvm_cpuids *c,
						 uint32_t leaf, uint32_t sub)
{
	for (uint32_t i = 0; i < c->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &c->entry[i];

		if (e->function == leaf &&
		    (e->index == sub ||
		     !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return e;
	}
	return NULL;
}

void kvm_fill_caps(int dev, const struct kvm_cpuids *supported,
		   struct hv_caps *caps)
{
	const struct kvm_cpuid_entry2 *e;
	int n = kvm_ioctl_n(dev, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);

	memset(caps, 0, sizeof(*caps));
	if (n <= 0)
		n = 4; /* what api.rst says */
	caps->max_vcpus = n < HV_MAX_VCPUS ? n : HV_MAX_VCPUS;
	e = find_cpuid(supported, 0x80000008, 0);
	caps->phys_bits = e && (e->eax & 0xff) ? e->eax & 0xff : 36;
	e = find_cpuid(supported, 7, 0);
	caps->linear_bits = e && (e->ecx & 1u << 16) ? 57 : 48;
	caps->dirty_log = true;
	caps->doorbell = has_cap(dev, KVM_CAP_IOEVENTFD);
	caps->irqfd = has_cap(dev, KVM_CAP_IRQFD);
	caps->debug = has_cap(dev, KVM_CAP_SET_GUEST_DEBUG);
	caps->needs_dev_kvm = true;
}

/* -- VMs ------------------------------------------------------------------ */

/* The frequency is a vCPU's; the VM tells it only since Linux 5.16. */
static uint32_t find_tsc_khz(struct kvm_vm *vm)
{
	int khz = kvm_ioctl_n(vm->fd, KVM_GET_TSC_KHZ, 0), fd, cpu;

	if (khz > 0)
		return khz;
	fd = kvm_ioctl_n(vm->dev, KVM_CREATE_VM, 0);
	if (fd < 0)
		return 0;
	cpu = kvm_ioctl_n(fd, KVM_CREATE_VCPU, 0);
	if (cpu >= 0) {
		khz = kvm_ioctl_n(cpu, KVM_GET_TSC_KHZ, 0);
		close(cpu);
	}
	close(fd);
	return khz > 0 ? khz : 0;
}

static int set_irqchip(struct kvm_vm *vm, struct husk_error *err)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP };
	int r;

	cap.args[0] = KVM_IOAPIC_PINS;
	r = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
	if (r < 0)
		return kvm_fail(err, r, "kvm: split irqchip: %s", strerror(-r));
	/* Without it destinations above 254 and the x2APIC id format are
	 * the old ones: not needed for HV_MAX_VCPUS, hence optional. */
	memset(&cap, 0, sizeof(cap));
	cap.cap = KVM_CAP_X2APIC_API;
	cap.args[0] = KVM_X2APIC_API_USE_32BIT_IDS |
		      KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
	if (has_cap(vm->fd, KVM_CAP_X2APIC_API))
		kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
	return 0;
}

/* Since Linux 5.10; before, an unknown MSR is #GP. */
static void ask_for_msrs(struct kvm_vm *vm)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR };

	cap.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN;
	if (has_cap(vm->fd, KVM_CAP_X86_USER_SPACE_MSR))
		kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

static void vm_finish(struct hv_vm *hv)
{
	struct kvm_vm *vm = to_kvm_vm(hv);

	for (unsigned i = 0; i < KVM_GSIS; i++)
		if (vm->irqfd[i] >= 0)
			close(vm->irqfd[i]);
	for (unsigned i = 0; i < vm->nslots; i++)
		free(vm->slots[i].own);
	free(vm->slots);
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->dev >= 0)
		close(vm->dev);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->held_lock);
	pthread_cond_destroy(&vm->held_end);
}

static int vm_set_up(struct kvm_vm *vm, struct husk_error *err)
{
	uint64_t identity = IDENTITY_ADDR;
	uint32_t khz;
	int n;

	vm->dev = kvm_open(err);
	if (vm->dev < 0)
		return vm->dev;
	vm->sig = take_signal();
	if (vm->sig < 0)
		return kvm_fail(err, -EBUSY,
				"kvm: every real-time signal of "
				"this process is in use");
	do {
		vm->fd = kvm_ioctl_n(vm->dev, KVM_CREATE_VM, 0);
	} while (vm->fd == -EINTR);
	if (vm->fd < 0)
		return kvm_fail(err, vm->fd, "kvm: cannot create a VM: %s",
				strerror(-vm->fd));
	n = kvm_get_supported(vm->dev, &vm->supported);
	if (n < 0)
		return kvm_fail(err, n, "kvm: supported CPUID: %s",
				strerror(-n));
	kvm_fill_caps(vm->dev, &vm->supported, &vm->hv.caps);

	n = kvm_ioctl_n(vm->dev, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (n < (int)sizeof(struct kvm_run))
		return kvm_fail(err, -ENOTSUP, "kvm: size of a vCPU: %d", n);
	vm->run_size = n;
	n = kvm_ioctl_n(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	vm->max_slots = n > 0 ? n : 32;
	n = kvm_ioctl_n(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->xsave_size = n > 0 ? n : 0;
	vm->has_xcrs = has_cap(vm->fd, KVM_CAP_XCRS);

	/* Only older VMX hosts use these; others ignore or refuse them. */
	kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	kvm_ioctl_n(vm->fd, KVM_SET_TSS_ADDR, TSS_ADDR);

	n = set_irqchip(vm, err);
	if (n < 0)
		return n;
	ask_for_msrs(vm);
	khz = find_tsc_khz(vm);
	if (!khz)
		return kvm_fail(err, -ENOTSUP, "kvm: TSC frequency unknown");
	if (vm->hv.tsc_khz && !tsc_khz_same(vm->hv.tsc_khz, khz))
		return kvm_fail(err, -EINVAL,
				"kvm: the guest knows a TSC of %u kHz, and "
				"this host's has %u: use engine soft",
				vm->hv.tsc_khz, khz);
	if (!vm->hv.tsc_khz)
		vm->hv.tsc_khz = khz;
	return 0;
}

static int vm_init(struct hv_vm *hv, struct husk_error *err)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	int r;

	vm->dev = vm->fd = -1;
	for (unsigned i = 0; i < KVM_GSIS; i++)
		vm->irqfd[i] = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->held_lock, NULL);
	pthread_cond_init(&vm->held_end, NULL);
	r = vm_set_up(vm, err);
	if (r < 0)
		vm_finish(hv);
	return r < 0 ? r : 0;
}

/* -- entering the guest --------------------------------------------------- */

static void nudge(struct kvm_vcpu *cpu)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	pid_t tid;

	store(&cpu->run->immediate_exit, 1);
	tid = load(&cpu->tid);
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, vm->sig);
}

/*
 * KVM has no call that splits a slot, so for a moment there is none.  All
 * vCPUs stay out of KVM_RUN for that long.  A vCPU sets tid, then looks at
 * held; this sets held, then looks at tid.
 */
static void hold_vcpus(struct kvm_vm *vm)
{
	store(&vm->held, 1);
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct kvm_vcpu *cpu = vm->cpus[i];

		while (cpu && load(&cpu->tid)) {
			store(&cpu->nudged, true);
			nudge(cpu);
			usleep(20);
		}
	}
}

static void release_vcpus(struct kvm_vm *vm)
{
	pthread_mutex_lock(&vm->held_lock);
	store(&vm->held, 0);
	pthread_cond_broadcast(&vm->held_end);
	pthread_mutex_unlock(&vm->held_lock);
}

static void wait_released(struct kvm_vm *vm)
{
	pthread_mutex_lock(&vm->held_lock);
	while (load(&vm->held))
		pthread_cond_wait(&vm->held_end, &vm->held_lock);
	pthread_mutex_unlock(&vm->held_lock);
}

/* See the head of this file. */
static void tell_mask(struct kvm_vcpu *cpu, pid_t tid)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	sigset_t now;

	cpu->mask_tid = tid;
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	if (!sigismember(&now, vm->sig)) {
		if (cpu->sig_blocked)
			kvm_ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, NULL);
		cpu->sig_blocked = false;
		return;
	}
	cpu->sig_blocked = true;
	sigdelset(&now, vm->sig);
	kvm_set_mask(cpu->fd, &now);
}

static void take_pending(struct kvm_vcpu *cpu)
{
	struct timespec none = { 0, 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, to_kvm_vm(cpu->hv.vm)->sig);
	while (sigtimedwait(&set, NULL, &none) > 0)
		;
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	/* CPU time, as a halted vCPU sleeps inside KVM_RUN. */
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* One KVM_RUN; with finish it ends before the next instruction. */
static int enter(struct kvm_vcpu *cpu, bool finish)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	struct kvm_run *run = cpu->run;
	pid_t tid = gettid();
	uint64_t start;
	int r;

	if (cpu->mask_tid != tid)
		tell_mask(cpu, tid);
	for (;;) {
		store(&run->immediate_exit, 0);
		store(&cpu->tid, tid);
		if (!load(&vm->held))
			break;
		store(&cpu->tid, 0);
		wait_released(vm);
	}
	if (finish || load(&cpu->kicked) || load(&cpu->nudged))
		store(&run->immediate_exit, 1);
	run->request_interrupt_window = load(&cpu->want);
	start = cpu_ns();
	r = kvm_ioctl_n(cpu->fd, KVM_RUN, 0);
	store(&cpu->tid, 0);
	count(&cpu->stats.exec_ns, cpu_ns() - start);
	if (r == -EINTR && cpu->sig_blocked)
		take_pending(cpu);
	return r;
}

/* -- decoding exits ------------------------------------------------------- */

static void fill_error(struct kvm_vcpu *cpu, struct hv_exit *exit,
		       const char *what, uint64_t code)
{
	struct kvm_run *run = cpu->run;
	char *text = exit->error.text;
	size_t room = sizeof(exit->error.text), n;
	struct kvm_regs regs;

	exit->reason = HV_EXIT_ERROR;
	snprintf(text, room, "kvm: %s %" PRIu64, what, code);
	if (!kvm_ioctl(cpu->fd, KVM_GET_REGS, &regs)) {
		n = strlen(text);
		snprintf(text + n, room - n, " at rip %#" PRIx64,
			 (uint64_t)regs.rip);
	}
	if (run->exit_reason != KVM_EXIT_INTERNAL_ERROR ||
	    run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION ||
	    run->emulation_failure.ndata < 1 ||
	    !(run->emulation_failure.flags &
	      KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
		return;
	for (unsigned i = 0; i < run->emulation_failure.insn_size && i < 15;
	     i++) {
		n = strlen(text);
		snprintf(text + n, room - n, "%s%02x", i ? " " : ": ",
			 run->emulation_failure.insn_bytes[i]);
	}
}

static uint8_t *pio_data(struct kvm_run *run, uint32_t element)
{
	return (uint8_t *)run + run->io.data_offset +
	       (size_t)element * run->io.size;
}

static void fill_pio(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	exit->reason = HV_EXIT_PIO;
	exit->pio.port = run->io.port;
	exit->pio.size = run->io.size;
	exit->pio.write = run->io.direction == KVM_EXIT_IO_OUT;
	exit->pio.value = 0;
	if (exit->pio.write)
		memcpy(&exit->pio.value, pio_data(run, cpu->pio_next),
		       run->io.size);
}

static void fill_mmio(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	exit->reason = HV_EXIT_MMIO;
	exit->mmio.gpa = run->mmio.phys_addr;
	exit->mmio.size = run->mmio.len;
	exit->mmio.write = run->mmio.is_write;
	exit->mmio.value = 0;
	if (run->mmio.is_write)
		memcpy(&exit->mmio.value, run->mmio.data, run->mmio.len);
	cpu->half = run->mmio.is_write ? HALF_WRITE : HALF_MMIO_READ;
}

static void fill_msr(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	exit->reason = HV_EXIT_MSR;
	exit->msr.index = run->msr.index;
	exit->msr.write = run->exit_reason == KVM_EXIT_X86_WRMSR;
	exit->msr.fault = false;
	exit->msr.value = exit->msr.write ? run->msr.data : 0;
	cpu->half = HALF_MSR;
}

static void fill_debug(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	exit->reason = HV_EXIT_DEBUG;
	exit->debug.rip = run->debug.arch.pc;
	exit->debug.dr6 = run->debug.arch.dr6;
	exit->debug.vector = run->debug.arch.exception;
}

/* false: nothing for the caller */
static bool decode(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	memset(exit, 0, sizeof(*exit));
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		cpu->half = HALF_PIO;
		cpu->pio_next = 0;
		fill_pio(cpu, exit);
		return true;
	case KVM_EXIT_MMIO: fill_mmio(cpu, exit); return true;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR: fill_msr(cpu, exit); return true;
	case KVM_EXIT_IOAPIC_EOI:
		exit->reason = HV_EXIT_EOI;
		exit->eoi.vector = run->eoi.vector;
		return true;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		if (!load(&cpu->want))
			return false;
		exit->reason = HV_EXIT_IRQ_WINDOW;
		return true;
	case KVM_EXIT_DEBUG: fill_debug(cpu, exit); return true;
	case KVM_EXIT_SHUTDOWN: exit->reason = HV_EXIT_SHUTDOWN; return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_SET_TPR: return false;
	case KVM_EXIT_INTERNAL_ERROR:
		fill_error(cpu, exit,
			   run->internal.suberror ==
					   KVM_INTERNAL_ERROR_EMULATION
				   ? "instruction not emulated, suberror"
				   : "internal error, suberror",
			   run->internal.suberror);
		return true;
	case KVM_EXIT_FAIL_ENTRY:
		fill_error(cpu, exit, "entry failed, hardware reason",
			   run->fail_entry.hardware_entry_failure_reason);
		return true;
	default:
		fill_error(cpu, exit, "unexpected exit", run->exit_reason);
		return true;
	}
}

/*
 * Take the caller's answer.  True when the same instruction has a further
 * element for the caller, which exit then describes.
 */
static bool answer(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	struct kvm_run *run = cpu->run;

	switch (cpu->half) {
	case HALF_MMIO_READ:
		memcpy(run->mmio.data, &exit->mmio.value, run->mmio.len);
		break;
	case HALF_PIO:
		if (run->io.direction == KVM_EXIT_IO_IN)
			memcpy(pio_data(run, cpu->pio_next), &exit->pio.value,
			       run->io.size);
		if (++cpu->pio_next < run->io.count) {
			memset(exit, 0, sizeof(*exit));
			fill_pio(cpu, exit);
			return true;
		}
		break;
	case HALF_MSR:
		run->msr.error = exit->msr.fault;
		if (!exit->msr.write)
			run->msr.data = exit->msr.value;
		break;
	default: break;
	}
	cpu->half = HALF_WRITE;
	return false;
}

/* Let KVM finish the instruction.  1: exit describes what came of it. */
static int finish(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	int r;

	cpu->half = HALF_NONE;
	r = enter(cpu, true);
	if (r == -EINTR || r == -EAGAIN)
		return 0;
	if (r < 0)
		return r;
	return decode(cpu, exit);
}

static int complete(struct hv_vcpu *hv, struct hv_exit *exit)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	struct hv_exit next;
	int r;

	if (!cpu->stashed) {
		if (cpu->half == HALF_NONE)
			return 0;
		if (answer(cpu, exit)) {
			count(&cpu->stats.exits[exit->reason], 1);
			return 1;
		}
		r = finish(cpu, &next);
		if (r <= 0)
			return r;
		cpu->stash = next;
		cpu->stashed = true;
	}
	/* What is no access waits for the next run. */
	if (cpu->half == HALF_NONE)
		return 0;
	*exit = cpu->stash;
	cpu->stashed = false;
	count(&cpu->stats.exits[exit->reason], 1);
	return 1;
}

int kvm_settle(struct kvm_vcpu *cpu)
{
	int r;

	if (cpu->half == HALF_NONE)
		return 0;
	if (cpu->stashed)
		return -EBUSY;
	if (cpu->half == HALF_PIO &&
	    (cpu->run->io.direction == KVM_EXIT_IO_IN ||
	     cpu->pio_next + 1 < cpu->run->io.count))
		return -EBUSY;
	if (cpu->half == HALF_MMIO_READ || cpu->half == HALF_MSR)
		return -EBUSY;
	r = finish(cpu, &cpu->stash);
	if (r > 0)
		cpu->stashed = true;
	if (r < 0)
		return r;
	return cpu->half == HALF_NONE ? 0 : -EBUSY;
}

/* -- the loop ------------------------------------------------------------- */

int kvm_flush_nmi(struct kvm_vcpu *cpu)
{
	if (!__atomic_exchange_n(&cpu->nmi, false, __ATOMIC_SEQ_CST))
		return 0;
	return kvm_ioctl_n(cpu->fd, KVM_NMI, 0);
}

static void flush_vector(struct kvm_vcpu *cpu)
{
	struct kvm_interrupt irq = { .irq = cpu->ext_vector };

	if (cpu->ext_vector < 0)
		return;
	cpu->ext_vector = -1;
	kvm_ioctl(cpu->fd, KVM_INTERRUPT, &irq);
}

static bool can_inject(struct kvm_vcpu *cpu)
{
	return cpu->half == HALF_NONE && cpu->ext_vector < 0 &&
	       cpu->run->ready_for_interrupt_injection;
}

/* KVM_RUN gave an error: true when it is for the caller. */
static bool run_failed(struct kvm_vcpu *cpu, int r, bool nudged,
		       struct hv_exit *exit)
{
	memset(exit, 0, sizeof(*exit));
	if (r == -EAGAIN) /* INIT or SIPI has been taken */
		return false;
	if (r != -EINTR) {
		exit->reason = HV_EXIT_ERROR;
		snprintf(exit->error.text, sizeof(exit->error.text),
			 "kvm: KVM_RUN: %s", strerror(-r));
		return true;
	}
	if (!__atomic_exchange_n(&cpu->kicked, false, __ATOMIC_SEQ_CST) &&
	    (nudged || load(&cpu->nudged)))
		return false;
	exit->reason = HV_EXIT_KICKED; /* or a signal of somebody else */
	return true;
}

static void run_loop(struct kvm_vcpu *cpu, struct hv_exit *exit)
{
	for (;;) {
		bool whole = cpu->half == HALF_NONE, nudged;
		int r;

		nudged = __atomic_exchange_n(&cpu->nudged, false,
					     __ATOMIC_SEQ_CST);
		if (whole && __atomic_exchange_n(&cpu->kicked, false,
						 __ATOMIC_SEQ_CST)) {
			memset(exit, 0, sizeof(*exit));
			exit->reason = HV_EXIT_KICKED;
			return;
		}
		if (load(&cpu->want) && can_inject(cpu)) {
			memset(exit, 0, sizeof(*exit));
			exit->reason = HV_EXIT_IRQ_WINDOW;
			return;
		}
		kvm_flush_nmi(cpu);
		if (whole)
			flush_vector(cpu);
		cpu->half = HALF_NONE;
		r = enter(cpu, false);
		if (r < 0 ? run_failed(cpu, r, nudged, exit)
			  : decode(cpu, exit))
			return;
	}
}

static int run(struct hv_vcpu *hv, struct hv_exit *exit)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);

	if (cpu->stashed) {
		*exit = cpu->stash;
		cpu->stashed = false;
	} else if (cpu->half == HALF_NONE || !answer(cpu, exit)) {
		run_loop(cpu, exit);
	}
	count(&cpu->stats.exits[exit->reason], 1);
	return 0;
}

static void kick(struct hv_vcpu *hv)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	int saved = errno;

	store(&cpu->kicked, true);
	nudge(cpu);
	errno = saved;
}

static void want_window(struct hv_vcpu *hv, bool want)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);

	if (__atomic_exchange_n(&cpu->want, want, __ATOMIC_SEQ_CST) == want ||
	    !want)
		return;
	store(&cpu->nudged, true);
	nudge(cpu);
}

/* KVM_NMI would wait for the end of KVM_RUN. */
static int nmi(struct hv_vcpu *hv)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);

	store(&cpu->nmi, true);
	store(&cpu->nudged, true);
	nudge(cpu);
	return 0;
}

static bool ready(struct hv_vcpu *hv)
{
	return can_inject(to_kvm_vcpu(hv));
}

/* KVM does not tell of a vector it was given but has not begun to deliver, so
 * it gets it as late as possible. */
static int inject(struct hv_vcpu *hv, uint8_t vector)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);

	if (!can_inject(cpu))
		return -EBUSY;
	cpu->ext_vector = vector;
	return 0;
}

/* -- vCPUs ---------------------------------------------------------------- */

static void mask_basic(struct kvm_vm *vm, struct kvm_cpuid_entry2 *e,
		       const struct kvm_cpuid_entry2 *h)
{
	uint32_t keep = 1u << 27; /* OSXSAVE follows CR4 */

	if (has_cap(vm->fd, KVM_CAP_TSC_DEADLINE_TIMER))
		keep |= 1u << 24;
	e->ecx &= (h ? h->ecx : 0) | keep | 1u << 31;
	e->edx &= (h ? h->edx : 0) | 1u << 28; /* HTT: topology */
}

/* Offsets are the processor's; sizes follow from what is kept. */
static void mask_xsave(struct kvm_vm *vm, struct kvm_cpuid_entry2 *e,
		       const struct kvm_cpuid_entry2 *h)
{
	const struct kvm_cpuid_entry2 *main_h =
		find_cpuid(&vm->supported, 0xd, 0);

	if (e->index == 0) {
		uint32_t size = 576;

		e->eax &= h ? h->eax : 3;
		e->edx &= h ? h->edx : 0;
		for (unsigned i = 2; i < 32; i++) {
			const struct kvm_cpuid_entry2 *c =
				find_cpuid(&vm->supported, 0xd, i);

			if ((e->eax & 1u << i) && c && c->ebx + c->eax > size)
				size = c->ebx + c->eax;
		}
		e->ebx = e->ecx = size;
	} else if (e->index == 1) {
		e->eax &= h ? h->eax : 0;
		e->ecx &= h ? h->ecx : 0;
		e->edx &= h ? h->edx : 0;
	} else if (!h || !main_h ||
		   (e->index < 32 &&
		    !((main_h->eax | e->ecx) & 1u << e->index))) {
		e->eax = e->ebx = e->ecx = e->edx = 0;
	} else {
		e->eax = h->eax;
		e->ebx = h->ebx;
		e->ecx = h->ecx;
	}
}

static void mask_leaf(struct kvm_vm *vm, struct kvm_cpuid_entry2 *e)
{
	const struct kvm_cpuid_entry2 *h =
		find_cpuid(&vm->supported, e->function, e->index);
	static const struct kvm_cpuid_entry2 none;

	switch (e->function) {
	case 1: mask_basic(vm, e, h); break;
	case 7:
		h = h ? h : &none;
		if (e->index)
			e->eax &= h->eax;
		e->ebx &= h->ebx;
		e->ecx &= h->ecx;
		e->edx &= h->edx;
		break;
	case 0xd: mask_xsave(vm, e, h); break;
	case 0x40000001: e->eax &= h ? h->eax : 0; break;
	case 0x80000001:
		h = h ? h : &none;
		e->ecx &= h->ecx | 1u << 1; /* CmpLegacy: topology */
		e->edx &= h->edx;
		break;
	case 0x80000007: e->edx &= h ? h->edx : 0; break;
	case 0x80000008: e->ebx &= h ? h->ebx : 0; break;
	case 0x80000021: e->eax &= h ? h->eax : 0; break;
	}
}

static bool has_subleaves(uint32_t leaf)
{
	switch (leaf) {
	case 4:
	case 7:
	case 0xb:
	case 0xd:
	case 0xf:
	case 0x10:
	case 0x12:
	case 0x14:
	case 0x17:
	case 0x18:
	case 0x1d:
	case 0x1e:
	case 0x1f:
	case 0x24:
	case 0x8000001d:
	case 0x80000026: return true;
	}
	return false;
}

static int set_cpuid(struct kvm_vcpu *cpu, struct husk_error *err)
{
	struct kvm_vm *vm = to_kvm_vm(cpu->hv.vm);
	struct hv_cpuid model[KVM_CPUID_MAX];
	struct kvm_cpuids c;
	struct kvm_regs regs;
	int n, r;

	n = cpuid_model(vm->hv.cpu_model, cpu->hv.id, vm->hv.max_vcpus,
			vm->hv.tsc_khz, vm->hv.caps.phys_bits, model,
			KVM_CPUID_MAX, err);
	if (n < 0)
		return n;
	memset(&c, 0, sizeof(c));
	for (int i = 0; i < n && i < KVM_CPUID_MAX; i++) {
		struct kvm_cpuid_entry2 *e = &c.entry[c.nent++];

		e->function = model[i].leaf;
		e->index = model[i].subleaf;
		e->eax = model[i].eax;
		e->ebx = model[i].ebx;
		e->ecx = model[i].ecx;
		e->edx = model[i].edx;
		if (has_subleaves(e->function))
			e->flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		mask_leaf(vm, e);
	}
	r = kvm_ioctl(cpu->fd, KVM_SET_CPUID2, &c);
	if (r < 0)
		return kvm_fail(err, r, "kvm: CPUID of model %s: %s",
				vm->hv.cpu_model, strerror(-r));
	/* A reset leaves the signature in EDX. */
	for (unsigned i = 0; i < c.nent; i++)
		if (c.entry[i].function == 1 &&
		    !kvm_ioctl(cpu->fd, KVM_GET_REGS, &regs)) {
			regs.rdx = c.entry[i].eax;
			kvm_ioctl(cpu->fd, KVM_SET_REGS, &regs);
		}
	return 0;
}

static void vcpu_finish(struct hv_vcpu *hv)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	struct kvm_vm *vm = to_kvm_vm(hv->vm);

	pthread_mutex_lock(&vm->lock);
	if (vm->cpus[hv->id] == cpu)
		vm->cpus[hv->id] = NULL;
	pthread_mutex_unlock(&vm->lock);
	if (cpu->run)
		munmap(cpu->run, vm->run_size);
	if (cpu->fd >= 0)
		close(cpu->fd);
}

static int vcpu_init(struct hv_vcpu *hv, struct husk_error *err)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	struct kvm_vm *vm = to_kvm_vm(hv->vm);
	struct kvm_lapic_state apic;
	void *run_page;
	int r;

	cpu->ext_vector = -1;
	cpu->fd = kvm_ioctl_n(vm->fd, KVM_CREATE_VCPU, hv->id);
	if (cpu->fd < 0)
		return kvm_fail(err, cpu->fd, "kvm: vCPU %u: %s", hv->id,
				strerror(-cpu->fd));
	run_page = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			cpu->fd, 0);
	if (run_page == MAP_FAILED) {
		r = kvm_fail(err, -errno, "kvm: vCPU %u: mmap: %s", hv->id,
			     strerror(errno));
		close(cpu->fd);
		return r;
	}
	/* Another process with it would keep this VM from its end. */
	madvise(run_page, vm->run_size, MADV_DONTFORK);
	cpu->run = run_page;
	r = set_cpuid(cpu, err);
	if (!r)
		r = kvm_state_init(cpu);
	/* KVM maps APIC ids before it lists the new vCPU; setting its APIC
	 * makes it look again, else INIT does not arrive. */
	if (!r)
		r = kvm_ioctl(cpu->fd, KVM_GET_LAPIC, &apic);
	if (r >= 0)
		r = kvm_ioctl(cpu->fd, KVM_SET_LAPIC, &apic);
	if (r < 0) {
		vcpu_finish(hv);
		return r;
	}
	pthread_mutex_lock(&vm->lock);
	vm->cpus[hv->id] = cpu;
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

static int vcpu_cpuid(struct hv_vcpu *hv, uint32_t leaf, uint32_t subleaf,
		      struct hv_cpuid *out)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);
	const struct kvm_cpuid_entry2 *e;
	struct kvm_cpuids c = { .nent = KVM_CPUID_MAX };
	int r = kvm_ioctl(cpu->fd, KVM_GET_CPUID2, &c);

	if (r < 0)
		return r;
	memset(out, 0, sizeof(*out));
	out->leaf = leaf;
	out->subleaf = subleaf;
	e = find_cpuid(&c, leaf, subleaf);
	if (e) {
		out->eax = e->eax;
		out->ebx = e->ebx;
		out->ecx = e->ecx;
		out->edx = e->edx;
	} else if (leaf == 0xb || leaf == 0x1f) {
		/* Beyond the last level the id stays (SDM 2A, CPUID). */
		out->ecx = subleaf & 0xff;
		e = find_cpuid(&c, leaf, 0);
		out->edx = e ? e->edx : 0;
	}
	return 0;
}

static int vcpu_stats(struct hv_vcpu *hv, struct hv_stats *out)
{
	struct kvm_vcpu *cpu = to_kvm_vcpu(hv);

	memset(out, 0, sizeof(*out));
	out->exec_ns = __atomic_load_n(&cpu->stats.exec_ns, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < HV_EXIT_COUNT; i++)
		out->exits[i] =
			__atomic_load_n(&cpu->stats.exits[i], __ATOMIC_RELAXED);
	return 0;
}

/* -- memory --------------------------------------------------------------- */

static int set_slot(struct kvm_vm *vm, const struct kvm_slot *s, bool remove)
{
	struct kvm_userspace_memory_region r = {
		.slot = s->id,
		.guest_phys_addr = s->gpa,
		.memory_size = remove ? 0 : s->size,
		.userspace_addr = (uintptr_t)s->host,
	};

	if (!(s->flags & HV_MEM_WRITE))
		r.flags |= KVM_MEM_READONLY;
	if (s->flags & HV_MEM_LOG)
		r.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	if (remove)
		r.flags = 0;
	return kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r);
}

static size_t log_words(uint64_t size)
{
	return (size / 4096 + 63) / 64;
}

static int free_slot_id(struct kvm_vm *vm)
{
	for (unsigned id = 0; id < vm->max_slots; id++) {
		unsigned i = 0;

		while (i < vm->nslots && vm->slots[i].id != id)
			i++;
		if (i == vm->nslots)
			return id;
	}
	return -ENOSPC;
}

/* Room for n more, so that the steps after it cannot fail for that. */
static int reserve_slots(struct kvm_vm *vm, unsigned n)
{
	struct kvm_slot *more;

	if (vm->nslots + n > vm->max_slots)
		return -ENOSPC;
	if (vm->nslots + n <= vm->slots_room)
		return 0;
	more = realloc(vm->slots, (vm->nslots + n + 16) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	vm->slots = more;
	vm->slots_room = vm->nslots + n + 16;
	return 0;
}

static int add_slot(struct kvm_vm *vm, struct kvm_slot s)
{
	int r = reserve_slots(vm, 1);

	if (r < 0)
		return r;
	r = free_slot_id(vm);
	if (r < 0)
		return r;
	s.id = r;
	s.own = NULL;
	if (s.flags & HV_MEM_LOG) {
		s.own = calloc(log_words(s.size), 8);
		if (!s.own)
			return -ENOMEM;
	}
	r = set_slot(vm, &s, false);
	if (r < 0) {
		free(s.own);
		return r;
	}
	if (s.own)
		count(&vm->nlogs, 1);
	vm->slots[vm->nslots++] = s;
	return 0;
}

static void drop_slot(struct kvm_vm *vm, unsigned i)
{
	struct kvm_slot *s = &vm->slots[i];

	set_slot(vm, s, true);
	if (s->own)
		count(&vm->nlogs, -1u);
	free(s->own);
	*s = vm->slots[--vm->nslots];
}

/* Move what KVM has logged into the slot's own bitmap. */
static int gather_log(struct kvm_vm *vm, struct kvm_slot *s)
{
	size_t words = log_words(s->size);
	struct kvm_dirty_log log = { .slot = s->id };
	uint64_t *bits = calloc(words, 8);
	int r;

	if (!bits)
		return -ENOMEM;
	log.dirty_bitmap = bits;
	r = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
	for (size_t i = 0; r >= 0 && i < words; i++)
		s->own[i] |= bits[i];
	free(bits);
	return r < 0 ? r : 0;
}

static bool get_bit(const uint64_t *bits, uint64_t n)
{
	return bits[n / 64] >> (n % 64) & 1;
}

static void set_bit(uint64_t *bits, uint64_t n)
{
	bits[n / 64] |= 1ull << (n % 64);
}

static void carry_log(const struct kvm_slot *from, struct kvm_slot *to)
{
	uint64_t shift = (to->gpa - from->gpa) / 4096;

	if (!from->own || !to->own)
		return;
	for (uint64_t i = 0; i < to->size / 4096; i++)
		if (get_bit(from->own, i + shift))
			set_bit(to->own, i);
}

/* Replace slot i by its part [from, to) with flags, or without when none,
 * and what is left of it before and after. */
static int cut_slot(struct kvm_vm *vm, unsigned i, uint64_t from, uint64_t to,
		    const unsigned *flags)
{
	struct kvm_slot old = vm->slots[i], part[3];
	unsigned n = 0;
	int r = reserve_slots(vm, 2);

	if (r < 0)
		return r;
	if (old.gpa < from) {
		part[n] = old;
		part[n++].size = from - old.gpa;
	}
	if (flags) {
		part[n] = old;
		part[n].gpa = from;
		part[n].size = to - from;
		part[n].host += from - old.gpa;
		part[n++].flags = *flags;
	}
	if (to < old.gpa + old.size) {
		part[n] = old;
		part[n].gpa = to;
		part[n].size = old.gpa + old.size - to;
		part[n++].host += to - old.gpa;
	}
	if (old.own) {
		r = gather_log(vm, &vm->slots[i]);
		if (r < 0)
			return r;
	}
	vm->slots[i].own = NULL; /* old.own is read below */
	if (old.own)
		count(&vm->nlogs, -1u);
	drop_slot(vm, i);
	for (unsigned k = 0; k < n; k++) {
		int e = add_slot(vm, part[k]);

		if (e < 0)
			r = e;
		else
			carry_log(&old, &vm->slots[vm->nslots - 1]);
	}
	free(old.own);
	return r;
}

/* Can flags replace s's without taking the slot away? */
static bool same_kind(const struct kvm_slot *s, unsigned flags)
{
	return !((s->flags ^ flags) & HV_MEM_WRITE);
}

static int relog_slot(struct kvm_vm *vm, struct kvm_slot *s, unsigned flags)
{
	struct kvm_slot new = *s;
	int r;

	new.flags = flags;
	if ((flags & HV_MEM_LOG) && !s->own) {
		new.own = calloc(log_words(s->size), 8);
		if (!new.own)
			return -ENOMEM;
	} else if (!(flags & HV_MEM_LOG)) {
		new.own = NULL;
	}
	r = set_slot(vm, &new, false);
	if (r < 0) {
		if (new.own != s->own)
			free(new.own);
		return r;
	}
	if (new.own != s->own) {
		count(&vm->nlogs, new.own ? 1 : -1u);
		free(s->own);
	}
	*s = new;
	return 0;
}

/* Change or remove (no flags) every part of a slot within the range. */
static int change_range(struct kvm_vm *vm, uint64_t gpa, uint64_t size,
			const unsigned *flags)
{
	uint64_t end = gpa + size;
	bool holding = false;
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->nslots && !r;) {
		struct kvm_slot *s = &vm->slots[i];
		uint64_t s_end = s->gpa + s->size;
		uint64_t from = gpa > s->gpa ? gpa : s->gpa;
		uint64_t to = end < s_end ? end : s_end;
		bool whole = from == s->gpa && to == s_end;

		if (from >= to || (flags && s->flags == *flags)) {
			i++;
		} else if (whole && !flags) {
			drop_slot(vm, i);
		} else if (whole && same_kind(s, *flags)) {
			r = relog_slot(vm, s, *flags);
			i++;
		} else {
			if (!holding)
				hold_vcpus(vm);
			holding = true;
			r = cut_slot(vm, i, from, to, flags);
		}
	}
	if (holding)
		release_vcpus(vm);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int mem_map(struct hv_vm *hv, uint64_t gpa, uint64_t size, void *host,
		   unsigned flags)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	struct kvm_slot s = {
		.gpa = gpa,
		.size = size,
		.host = host,
		.flags = flags,
	};
	int r;

	s.flags |= HV_MEM_READ;
	pthread_mutex_lock(&vm->lock);
	r = add_slot(vm, s);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int mem_unmap(struct hv_vm *hv, uint64_t gpa, uint64_t size)
{
	return change_range(to_kvm_vm(hv), gpa, size, NULL);
}

static int mem_protect(struct hv_vm *hv, uint64_t gpa, uint64_t size,
		       unsigned flags)
{
	flags |= HV_MEM_READ;
	return change_range(to_kvm_vm(hv), gpa, size, &flags);
}

/* Bits of pages [from, to) of the slot, moved to bits at position. */
static void move_bits(struct kvm_slot *s, uint64_t from, uint64_t to,
		      uint64_t *bits, uint64_t position)
{
	while (from < to) {
		uint64_t word = s->own[from / 64];

		if (!word) { /* mostly clean */
			uint64_t skip = 64 - from % 64;

			from += skip;
			position += skip;
			continue;
		}
		if (word >> (from % 64) & 1) {
			s->own[from / 64] &= ~(1ull << (from % 64));
			set_bit(bits, position);
		}
		from++;
		position++;
	}
}

static int mem_fetch_dirty(struct hv_vm *hv, uint64_t gpa, uint64_t size,
			   uint64_t *bits)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t end = gpa + size;
	int r = 0;

	memset(bits, 0, log_words(size) * 8);
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->nslots && !r; i++) {
		struct kvm_slot *s = &vm->slots[i];
		uint64_t s_end = s->gpa + s->size;
		uint64_t from = gpa > s->gpa ? gpa : s->gpa;
		uint64_t to = end < s_end ? end : s_end;

		if (from >= to)
			continue;
		r = s->own ? gather_log(vm, s) : -EINVAL;
		if (!r)
			move_bits(s, (from - s->gpa) / 4096,
				  (to - s->gpa) / 4096, bits,
				  (from - gpa) / 4096);
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static void mem_written(struct hv_vm *hv, uint64_t gpa, uint64_t size)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t end = gpa + size;

	if (!load(&vm->nlogs) || !size)
		return;
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->nslots; i++) {
		struct kvm_slot *s = &vm->slots[i];
		uint64_t s_end = s->gpa + s->size;
		uint64_t from = gpa > s->gpa ? gpa : s->gpa;
		uint64_t to = end < s_end ? end : s_end;

		if (from >= to || !s->own)
			continue;
		for (uint64_t p = (from - s->gpa) / 4096;
		     p <= (to - 1 - s->gpa) / 4096; p++)
			set_bit(s->own, p);
	}
	pthread_mutex_unlock(&vm->lock);
}

/* -- interrupts and doorbells --------------------------------------------- */

static int msi(struct hv_vm *hv, uint64_t addr, uint32_t data)
{
	struct kvm_msi m = {
		.address_lo = addr,
		.address_hi = addr >> 32,
		.data = data,
	};
	int r = kvm_ioctl(to_kvm_vm(hv)->fd, KVM_SIGNAL_MSI, &m);

	/* EPERM is the -1 of "no such local APIC": such a message is lost. */
	return r < 0 && r != -EPERM ? r : 0;
}

static int set_routes_locked(struct kvm_vm *vm)
{
	struct kvm_irq_routing *t;
	int r;

	t = calloc(1, sizeof(*t) + KVM_GSIS * sizeof(t->entries[0]));
	if (!t)
		return -ENOMEM;
	for (unsigned i = 0; i < KVM_GSIS; i++) {
		struct kvm_irq_routing_entry *e = &t->entries[t->nr];

		if (!vm->route[i].addr)
			continue;
		e->gsi = i;
		e->type = KVM_IRQ_ROUTING_MSI;
		e->u.msi.address_lo = vm->route[i].addr;
		e->u.msi.address_hi = vm->route[i].addr >> 32;
		e->u.msi.data = vm->route[i].data;
		t->nr++;
	}
	r = kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, t);
	free(t);
	return r < 0 ? r : 0;
}

static int route(struct hv_vm *hv, uint32_t gsi, uint64_t addr, uint32_t data)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t old_addr;
	uint32_t old_data;
	int r = 0;

	if (gsi >= KVM_GSIS)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	old_addr = vm->route[gsi].addr;
	old_data = vm->route[gsi].data;
	if (addr != old_addr || data != old_data) {
		vm->route[gsi].addr = addr;
		vm->route[gsi].data = data;
		r = set_routes_locked(vm);
		if (r < 0) {
			vm->route[gsi].addr = old_addr;
			vm->route[gsi].data = old_data;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int set_irqfd(struct kvm_vm *vm, uint32_t gsi, int fd, unsigned flags)
{
	struct kvm_irqfd i = { .fd = fd, .gsi = gsi, .flags = flags };
	int r = kvm_ioctl(vm->fd, KVM_IRQFD, &i);

	return r < 0 ? r : 0;
}

/* A duplicate is kept: KVM wants the descriptor again to let go of it. */
static int irqfd(struct hv_vm *hv, uint32_t gsi, int fd)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	int r = 0, own = -1;

	if (gsi >= KVM_GSIS)
		return -EINVAL;
	if (fd >= 0) {
		own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (own < 0)
			return -errno;
	}
	pthread_mutex_lock(&vm->lock);
	if (vm->irqfd[gsi] >= 0) {
		set_irqfd(vm, gsi, vm->irqfd[gsi], KVM_IRQFD_FLAG_DEASSIGN);
		close(vm->irqfd[gsi]);
		vm->irqfd[gsi] = -1;
	}
	if (own >= 0)
		r = set_irqfd(vm, gsi, own, 0);
	if (r < 0)
		close(own);
	else
		vm->irqfd[gsi] = own;
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int doorbell(struct hv_vm *hv, const struct hv_doorbell *db, int fd,
		    bool add)
{
	struct kvm_ioeventfd e = {
		.datamatch = db->match ? db->value : 0,
		.addr = db->addr,
		.len = db->size,
		.fd = fd,
	};
	int r;

	if (db->space == HV_SPACE_PIO)
		e.flags |= KVM_IOEVENTFD_FLAG_PIO;
	if (db->match)
		e.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
	if (!add)
		e.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	r = kvm_ioctl(to_kvm_vm(hv)->fd, KVM_IOEVENTFD, &e);
	return r < 0 ? r : 0;
}

const struct hv_engine hv_engine_kvm = {
	.name = "kvm",
	.vm_size = sizeof(struct kvm_vm),
	.vcpu_size = sizeof(struct kvm_vcpu),
	.probe = kvm_probe,
	.vm_init = vm_init,
	.vm_finish = vm_finish,
	.vcpu_init = vcpu_init,
	.vcpu_finish = vcpu_finish,
	.mem_map = mem_map,
	.mem_unmap = mem_unmap,
	.mem_protect = mem_protect,
	.mem_fetch_dirty = mem_fetch_dirty,
	.mem_written = mem_written,
	.run = run,
	.complete = complete,
	.kick = kick,
	.get = kvm_state_get,
	.set = kvm_state_set,
	.msi = msi,
	.route = route,
	.irqfd = irqfd,
	.inject = inject,
	.ready = ready,
	.want_window = want_window,
	.nmi = nmi,
	.doorbell = doorbell,
	.cpuid = vcpu_cpuid,
	.clock_get = kvm_clock_get,
	.clock_set = kvm_clock_set,
	.time_stop = kvm_time_stop,
	.time_start = kvm_time_start,
	.time_skip = kvm_time_skip,
	.debug = kvm_state_debug,
	.stats = vcpu_stats,
};
