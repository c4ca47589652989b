/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvm.h - what the files of the kvm engine share
 */
#ifndef HV_KVM_KVM_H
#define HV_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/types.h>

#include "hv/engine.h"

enum { KVM_GSIS = 1024, KVM_IOAPIC_PINS = 24, KVM_CPUID_MAX = 128 };

struct kvm_slot {
	uint32_t id;
	uint64_t gpa, size;
	uint8_t *host;
	unsigned flags; /* enum hv_mem_flags */
	uint64_t *own;	/* with HV_MEM_LOG: pages known to be dirty */
};

struct kvm_cpuids { /* struct kvm_cpuid2 with room */
	uint32_t nent, padding;
	struct kvm_cpuid_entry2 entry[KVM_CPUID_MAX];
};

struct kvm_vcpu;

struct kvm_vm {
	struct hv_vm hv;
	int dev, fd;
	int sig; /* what ends KVM_RUN */
	size_t run_size;
	size_t xsave_size; /* of KVM_GET_XSAVE2; 0: KVM_GET_XSAVE */
	bool has_xcrs;
	struct kvm_cpuids supported;

	pthread_mutex_t lock; /* slots, routes, irqfds, cpus */
	struct kvm_slot *slots;
	unsigned nslots, max_slots, slots_room;
	unsigned nlogs; /* atomic: slots with a dirty log */
	struct {
		uint64_t addr;
		uint32_t data;
	} route[KVM_GSIS];
	int irqfd[KVM_GSIS]; /* own duplicates, -1 */
	struct kvm_vcpu *cpus[HV_MAX_VCPUS];

	/* Time stands still: changed while no vCPU runs. */
	struct {
		bool on;
		uint64_t tsc; /* of the host */
		uint64_t clock;
	} stopped;

	/* While slots are split no vCPU may see the hole: see hold_vcpus(). */
	unsigned held; /* atomic, pairs with kvm_vcpu.tid */
	pthread_mutex_t held_lock;
	pthread_cond_t held_end;
};

/* What the last exit left undone. */
enum kvm_half {
	HALF_NONE,
	HALF_WRITE, /* nothing to give back, KVM_RUN finishes it */
	HALF_MMIO_READ,
	HALF_PIO, /* elements of a string may follow */
	HALF_MSR,
};

struct kvm_vcpu {
	struct hv_vcpu hv;
	int fd;
	struct kvm_run *run;
	pid_t tid;	/* atomic: thread inside KVM_RUN, 0 none */
	bool kicked;	/* atomic, sticky */
	bool nudged;	/* atomic: look at want, nmi and held again */
	bool want;	/* atomic: interrupt window asked for */
	bool nmi;	/* atomic: to be given to KVM */
	int ext_vector; /* ExtINT for the next entry, -1 */

	pid_t mask_tid;	  /* whose signal mask KVM was told */
	bool sig_blocked; /* that thread blocks the signal */

	enum kvm_half half;
	uint32_t pio_next; /* element that is with the caller */
	bool stashed;	   /* stash is the next exit */
	struct hv_exit stash;

	/* While time stands still: the TSC's distance from the host's, if
	 * this KVM tells it, and what was put off. */
	bool has_offset;
	uint64_t offset, deadline;

	unsigned debug;
	uint32_t nmsrs;
	uint32_t msr[HV_MAX_MSRS];
	struct hv_stats stats; /* relaxed atomics */
};

static inline struct kvm_vm *to_kvm_vm(struct hv_vm *vm)
{
	return (struct kvm_vm *)vm;
}

static inline struct kvm_vcpu *to_kvm_vcpu(struct hv_vcpu *cpu)
{
	return (struct kvm_vcpu *)cpu;
}

/* ioctl() that gives -errno */
int kvm_ioctl(int fd, unsigned long request, void *arg);
int kvm_ioctl_n(int fd, unsigned long request, unsigned long arg);
int kvm_fail(struct husk_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* A descriptor of /dev/kvm with what this engine cannot do without. */
int kvm_open(struct husk_error *err);
/* The signal mask of the thread while it is in the vCPU's KVM_RUN. */
int kvm_set_mask(int cpu, const sigset_t *mask);
void kvm_fill_caps(int dev, const struct kvm_cpuids *supported,
		   struct hv_caps *caps);
int kvm_get_supported(int dev, struct kvm_cpuids *out);

/*
 * Finish what needs no answer of the caller: -EBUSY when an answer is missing.
 */
int kvm_settle(struct kvm_vcpu *cpu);
int kvm_flush_nmi(struct kvm_vcpu *cpu);

/* state.c */
int kvm_state_init(struct kvm_vcpu *cpu);
int kvm_state_get(struct hv_vcpu *cpu, unsigned groups, struct hv_state *s);
int kvm_state_set(struct hv_vcpu *cpu, unsigned groups,
		  const struct hv_state *s);
int kvm_state_debug(struct hv_vcpu *cpu, unsigned flags);
int kvm_clock_get(struct hv_vm *vm, uint64_t *ns);
int kvm_clock_set(struct hv_vm *vm, uint64_t ns);
int kvm_time_stop(struct hv_vm *vm);
int kvm_time_start(struct hv_vm *vm);
int kvm_time_skip(struct hv_vm *vm, uint64_t ns);

/* probe.c */
int kvm_probe(struct hv_caps *caps, struct husk_error *err);

#endif /* HV_KVM_KVM_H */
