/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.c - does a stock kernel have a chance on this /dev/kvm?
 *
 * Some hosts offer a /dev/kvm that runs CPL 0 in an instruction emulator with
 * gaps, or enters a system call at the wrong privilege level.  So a scratch VM
 * runs 0.2 KiB of long mode code that does what every kernel does, cheapest
 * and most telling first, and keeps the number of the step it is in.
 */
#include "hv/kvm/kvm.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	PML4 = 0x1000,
	PDPT = 0x2000,
	PD = 0x3000,
	IDT = 0x4000,
	GDT = 0x5000,
	TSS = 0x6000,
	STACK = 0x7000,
	USER_STACK = 0x7800,
	CODE = 0x8000,
	SYSCALL_CODE = 0x8200,
	BP_CODE = 0x8240,
	IRQ_CODE = 0x8250,
	OTHER_CODE = 0x8260,
	STEP = 0x9000, /* 0x9001 counts int3, 0x9002 interrupts */
	MEMORY = 0x10000,
	VECTOR = 0x41,
	PORT_GOOD = 0xf4,
	PORT_BAD = 0xf5,
	MARK = 0x6b737548, /* what CPUID shall give */
	DEADLINE_MS = 300,
};

/* By the value at STEP. */
static const char *const steps[] = {
	"nothing",
	"int3 through the IDT at CPL 0",
	"POPCNT at CPL 0",
	"RDMSR and WRMSR of EFER, STAR, LSTAR and SFMASK",
	"POPF that lets a pending interrupt in",
	"IRETQ to CPL 3",
	"CPUID as configured, at CPL 3",
	"SYSCALL from CPL 3 to CPL 0",
	"OUT after a system call",
};

/* AT&T syntax; AL is of no interest to OUT. */
static const uint8_t main_code[] = {
	0xcc, /* int3 */
	/* cmpb $0x1,0x9001 */
	0x80, 0x3c, 0x25, 0x01, 0x90, 0x00, 0x00, 0x01,
	/* jne fail */
	0x0f, 0x85, 0xbb, 0x00, 0x00, 0x00,
	/* movb $0x2,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x02,
	/* mov $0xf0f1,%eax */
	0xb8, 0xf1, 0xf0, 0x00, 0x00, 0xf3, 0x0f, 0xb8,
	0xd8,		  /* popcnt %eax,%ebx */
	0x83, 0xfb, 0x09, /* cmp $0x9,%ebx */
	/* jne fail */
	0x0f, 0x85, 0xa1, 0x00, 0x00, 0x00,
	/* movb $0x3,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x03,
	/* mov $0xc0000080,%ecx */
	0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, /* rdmsr */
	0x83, 0xc8, 0x01,			  /* or $0x1,%eax */
	0x0f, 0x30,				  /* wrmsr */
	/* mov $0xc0000081,%ecx */
	0xb9, 0x81, 0x00, 0x00, 0xc0, 0x31, 0xc0, /* xor %eax,%eax */
	/* mov $0x130008,%edx */
	0xba, 0x08, 0x00, 0x13, 0x00, 0x0f, 0x30, /* wrmsr */
	/* mov $0xc0000084,%ecx */
	0xb9, 0x84, 0x00, 0x00, 0xc0,
	/* mov $0x200,%eax */
	0xb8, 0x00, 0x02, 0x00, 0x00, 0x31, 0xd2, /* xor %edx,%edx */
	0x0f, 0x30,				  /* wrmsr */
	/* mov $0xc0000082,%ecx */
	0xb9, 0x82, 0x00, 0x00, 0xc0,
	/* mov $0x8200,%eax */
	0xb8, 0x00, 0x82, 0x00, 0x00, 0x0f, 0x30, /* wrmsr */
	0x0f, 0x32,				  /* rdmsr */
	/* cmp $0x8200,%eax */
	0x3d, 0x00, 0x82, 0x00, 0x00, 0x75, 0x5c, /* jne fail */
	/* movb $0x4,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x04,
	/* push $0x202 */
	0x68, 0x02, 0x02, 0x00, 0x00, 0x9d, /* popf */
	0x90,				    /* nop */
	0xfa,				    /* cli */
	/* cmpb $0x1,0x9002 */
	0x80, 0x3c, 0x25, 0x02, 0x90, 0x00, 0x00, 0x01, 0x75,
	0x42, /* jne fail */
	/* movb $0x5,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x05, 0x6a,
	0x1b, /* push $0x1b */
	/* push $0x7800 */
	0x68, 0x00, 0x78, 0x00, 0x00, 0x6a, 0x02, /* push $0x2 */
	0x6a, 0x23,				  /* push $0x23 */
	/* push $0x80a2 */
	0x68, 0xa2, 0x80, 0x00, 0x00, 0x48, 0xcf, /* iretq */
	/* user: */
	0x8c, 0xc8,	  /* mov %cs,%eax */
	0x83, 0xf8, 0x23, /* cmp $0x23,%eax */
	0x75, 0x21,	  /* jne fail */
	/* movb $0x6,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x06,
	/* mov $0x40000000,%eax */
	0xb8, 0x00, 0x00, 0x00, 0x40, 0x0f, 0xa2, /* cpuid */
	/* cmp $0x6b737548,%ebx */
	0x81, 0xfb, 0x48, 0x75, 0x73, 0x6b, 0x75, 0x0a, /* jne fail */
	/* movb $0x7,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x07, 0x0f,
	0x05, /* syscall */
	/* fail: */
	0x0f, 0x0b, /* ud2 */
};

static const uint8_t syscall_code[] = {
	0x8c, 0xc8,	  /* mov %cs,%eax */
	0x83, 0xf8, 0x08, /* cmp $0x8,%eax */
	/* jne fail */
	0x0f, 0x85, 0xbf, 0xfe, 0xff, 0xff,
	/* movb $0x8,0x9000 */
	0xc6, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x08, 0xe6,
	0xf4, /* out %al,$0xf4 */
};

static const uint8_t bp_code[] = {
	/* incb 0x9001 */
	0xfe, 0x04, 0x25, 0x01, 0x90, 0x00, 0x00, 0x48, 0xcf, /* iretq */
};

static const uint8_t irq_code[] = {
	/* incb 0x9002 */
	0xfe, 0x04, 0x25, 0x02, 0x90, 0x00, 0x00, 0x48, 0xcf, /* iretq */
};

static const uint8_t other_code[] = {
	0xe6, 0xf5, /* out %al,$0xf5 */
	0xeb, 0xfc, /* jmp other */
};

struct probe {
	int dev, vm, cpu;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *mem;

	/* the thread that ends the run at the deadline */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done, late;
	pid_t runner;
};

static void put64(struct probe *p, uint64_t at, uint64_t value)
{
	memcpy(p->mem + at, &value, 8);
}

static void put_gate(struct probe *p, unsigned vector, uint64_t entry,
		     unsigned dpl)
{
	put64(p, IDT + vector * 16,
	      (entry & 0xffff) | 8 << 16 | (0x8e00ull | dpl << 13) << 32 |
		      (entry >> 16 & 0xffff) << 48);
}

static void fill_memory(struct probe *p)
{
	put64(p, PML4, PDPT | 7);
	put64(p, PDPT, PD | 7);
	put64(p, PD, 0x87);			  /* 2 MiB at 0, for all */
	put64(p, GDT + 0x08, 0x00af9b000000ffff); /* code, CPL 0 */
	put64(p, GDT + 0x10, 0x00cf93000000ffff); /* data, CPL 0 */
	put64(p, GDT + 0x18, 0x00cff3000000ffff); /* data, CPL 3 */
	put64(p, GDT + 0x20, 0x00affb000000ffff); /* code, CPL 3 */
	put64(p, GDT + 0x28, 0x00008b0000000067 | (uint64_t)TSS << 16);
	put64(p, TSS + 4, STACK);	      /* RSP0 */
	memset(p->mem + TSS + 0x66, 0xff, 2); /* no I/O bitmap */
	for (unsigned i = 0; i <= VECTOR; i++)
		put_gate(p, i, OTHER_CODE, 0);
	put_gate(p, 3, BP_CODE, 3);
	put_gate(p, VECTOR, IRQ_CODE, 0);
	memcpy(p->mem + CODE, main_code, sizeof(main_code));
	memcpy(p->mem + SYSCALL_CODE, syscall_code, sizeof(syscall_code));
	memcpy(p->mem + BP_CODE, bp_code, sizeof(bp_code));
	memcpy(p->mem + IRQ_CODE, irq_code, sizeof(irq_code));
	memcpy(p->mem + OTHER_CODE, other_code, sizeof(other_code));
	p->mem[STEP] = 1;
}

static int set_registers(struct probe *p)
{
	struct kvm_regs regs = { .rip = CODE, .rsp = STACK, .rflags = 2 };
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1,
		.s = 1, .l = 1, .g = 1,
	}, data = {
		.limit = 0xffffffff, .selector = 0x10, .type = 3,
		.present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct kvm_sregs s;
	int r = kvm_ioctl(p->cpu, KVM_GET_SREGS, &s);

	if (r < 0)
		return r;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	memset(&s.tr, 0, sizeof(s.tr));
	s.tr.base = TSS;
	s.tr.limit = 0x67;
	s.tr.selector = 0x28;
	s.tr.type = 11;
	s.tr.present = 1;
	s.gdt.base = GDT;
	s.gdt.limit = 0x37;
	s.idt.base = IDT;
	s.idt.limit = (VECTOR + 1) * 16 - 1;
	s.cr0 = 0x80010033; /* PG WP NE ET MP PE */
	s.cr3 = PML4;
	s.cr4 = 0x620;	/* OSXMMEXCPT OSFXSR PAE */
	s.efer = 0x500; /* LMA LME */
	r = kvm_ioctl(p->cpu, KVM_SET_SREGS, &s);
	return r < 0 ? r : kvm_ioctl(p->cpu, KVM_SET_REGS, &regs);
}

/* Enabled local APIC with VECTOR pending until IF is set. */
static int pend_interrupt(struct probe *p)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = VECTOR };
	struct kvm_lapic_state apic;
	uint32_t spurious = 0x1ff;
	int r = kvm_ioctl(p->cpu, KVM_GET_LAPIC, &apic);

	if (r < 0)
		return r;
	memcpy(apic.regs + 0xf0, &spurious, 4);
	r = kvm_ioctl(p->cpu, KVM_SET_LAPIC, &apic);
	return r < 0 ? r : kvm_ioctl(p->vm, KVM_SIGNAL_MSI, &msi);
}

static int set_mark(struct probe *p, struct kvm_cpuids *c)
{
	for (uint32_t i = 0; i < c->nent; i++)
		if (c->entry[i].function == 0x40000000)
			c->entry[i].ebx = MARK;
	return kvm_ioctl(p->cpu, KVM_SET_CPUID2, c);
}

static int set_up(struct probe *p, struct kvm_cpuids *c, struct husk_error *err)
{
	struct kvm_userspace_memory_region slot = { .memory_size = MEMORY };
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP };
	void *m;
	int r;

	p->vm = kvm_ioctl_n(p->dev, KVM_CREATE_VM, 0);
	if (p->vm < 0)
		return kvm_fail(err, p->vm, "kvm: cannot create a VM: %s",
				strerror(-p->vm));
	cap.args[0] = KVM_IOAPIC_PINS;
	r = kvm_ioctl(p->vm, KVM_ENABLE_CAP, &cap);
	if (r < 0)
		return kvm_fail(err, r, "kvm: split irqchip: %s", strerror(-r));
	kvm_ioctl_n(p->vm, KVM_SET_TSS_ADDR, 0xfeffd000);
	m = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED)
		return kvm_fail(err, -ENOMEM, "kvm: no memory");
	p->mem = m;
	fill_memory(p);
	slot.userspace_addr = (uintptr_t)p->mem;
	r = kvm_ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &slot);
	if (r < 0)
		return kvm_fail(err, r, "kvm: cannot map memory: %s",
				strerror(-r));
	p->cpu = kvm_ioctl_n(p->vm, KVM_CREATE_VCPU, 0);
	if (p->cpu < 0)
		return kvm_fail(err, p->cpu, "kvm: cannot create a vCPU: %s",
				strerror(-p->cpu));
	r = kvm_ioctl_n(p->dev, KVM_GET_VCPU_MMAP_SIZE, 0);
	p->run_size = r > 0 ? r : 4096;
	m = mmap(NULL, p->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->cpu,
		 0);
	if (m == MAP_FAILED)
		return kvm_fail(err, -errno, "kvm: mmap of a vCPU: %s",
				strerror(errno));
	p->run = m;
	r = set_mark(p, c);
	if (r >= 0)
		r = set_registers(p);
	if (r >= 0)
		r = pend_interrupt(p);
	if (r < 0)
		return kvm_fail(err, -ENOTSUP,
				"kvm: cannot set up long mode: "
				"%s",
				strerror(-r));
	return 0;
}

/*
 * What ends KVM_RUN at the deadline.  It is blocked but for KVM_RUN, so it
 * needs no handler, and taken back if it was sent: nothing of it remains.
 */
static int probe_signal(void)
{
	return SIGRTMAX;
}

static void *watch(void *arg)
{
	struct probe *p = arg;
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += DEADLINE_MS * 1000000l;
	end.tv_sec += end.tv_nsec / 1000000000;
	end.tv_nsec %= 1000000000;
	pthread_mutex_lock(&p->lock);
	while (!p->done && pthread_cond_clockwait(&p->cond, &p->lock,
						  CLOCK_MONOTONIC, &end) == 0)
		;
	if (!p->done) {
		p->late = true;
		__atomic_store_n(&p->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_tgkill, getpid(), p->runner, probe_signal());
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* false: over the deadline */
static bool run_watched(struct probe *p, int *result)
{
	bool late;

	/* A foreign signal is no reason to judge the host. */
	do {
		*result = kvm_ioctl_n(p->cpu, KVM_RUN, 0);
		pthread_mutex_lock(&p->lock);
		late = p->late;
		pthread_mutex_unlock(&p->lock);
	} while ((*result == -EINTR || *result == -EAGAIN) && !late);
	return !late || *result >= 0;
}

static int judge(struct probe *p, int result, bool in_time,
		 struct husk_error *err)
{
	const char *step = p->mem[STEP] < sizeof(steps) / sizeof(*steps)
				   ? steps[p->mem[STEP]]
				   : "unknown";
	struct kvm_run *run = p->run;

	if (!in_time)
		return kvm_fail(err, -ENOTSUP,
				"/dev/kvm cannot run a stock "
				"kernel: not done in %d ms: %s",
				DEADLINE_MS, step);
	if (result < 0)
		return kvm_fail(err, -ENOTSUP,
				"/dev/kvm cannot run a stock "
				"kernel: %s: %s",
				step, strerror(-result));
	if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_GOOD)
		return 0;
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
	    run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		return kvm_fail(err, -ENOTSUP,
				"/dev/kvm cannot run a stock "
				"kernel: it does not execute %s",
				step);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		return kvm_fail(err, -ENOTSUP,
				"/dev/kvm cannot run a stock "
				"kernel: it gives up at %s (KVM's suberror "
				"%u)",
				step, run->internal.suberror);
	return kvm_fail(err, -ENOTSUP,
			"/dev/kvm cannot run a stock kernel: "
			"%s does not work",
			step);
}

/* The mask of this thread with and, for KVM_RUN, without the signal. */
static int block_signal(struct probe *p, sigset_t *old)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, probe_signal());
	pthread_sigmask(SIG_BLOCK, &mask, old);
	mask = *old;
	sigdelset(&mask, probe_signal());
	return kvm_set_mask(p->cpu, &mask);
}

static void unblock_signal(struct probe *p, const sigset_t *old)
{
	struct timespec none = { 0, 0 };
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, probe_signal());
	if (p->late)
		sigtimedwait(&mask, NULL, &none);
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

static int run_code(struct probe *p, struct husk_error *err)
{
	pthread_t watcher;
	bool in_time;
	int r, result;
	sigset_t old;

	p->runner = gettid();
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	r = block_signal(p, &old);
	if (r >= 0)
		r = -pthread_create(&watcher, NULL, watch, p);
	if (r < 0) {
		r = kvm_fail(err, r, "kvm: no deadline for the probe: %s",
			     strerror(-r));
	} else {
		in_time = run_watched(p, &result);
		pthread_mutex_lock(&p->lock);
		p->done = true;
		pthread_cond_signal(&p->cond);
		pthread_mutex_unlock(&p->lock);
		pthread_join(watcher, NULL);
		r = judge(p, result, in_time, err);
	}
	unblock_signal(p, &old);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	return r;
}

/* caps are filled in also when the host is refused. */
int kvm_probe(struct hv_caps *caps, struct husk_error *err)
{
	struct probe p = { .vm = -1, .cpu = -1 };
	struct kvm_cpuids c;
	int r;

	p.dev = kvm_open(err);
	if (p.dev < 0)
		return p.dev;
	r = kvm_get_supported(p.dev, &c);
	if (r < 0) {
		r = kvm_fail(err, -ENOTSUP, "kvm: supported CPUID: %s",
			     strerror(-r));
	} else {
		if (caps)
			kvm_fill_caps(p.dev, &c, caps);
		r = set_up(&p, &c, err);
		if (!r)
			r = run_code(&p, err);
	}
	if (p.run)
		munmap(p.run, p.run_size);
	if (p.cpu >= 0)
		close(p.cpu);
	if (p.vm >= 0)
		close(p.vm);
	if (p.mem)
		munmap(p.mem, MEMORY);
	close(p.dev);
	return r;
}
