/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hv.h - virtual CPUs and guest-physical memory
 *
 * libhusk-hv runs x86-64 guest code on one of two engines: "kvm" uses
 * /dev/kvm, "soft" needs no hardware virtualization and no privilege at all.
 * Both give the same exits, the same architectural state and the same
 * interrupt interface.
 *
 * A VM is an address space (slots of the caller's memory at guest-physical
 * addresses) and vCPUs, each with a local APIC that belongs to the engine.
 * I/O APIC, PIC and timers are the caller's: it sends MSIs, injects vectors
 * and is told of the end of a level-triggered interrupt.
 *
 * Errors: functions return 0 or a negative errno value unless they say
 * otherwise.  Nothing here prints, exits or keeps process-wide state (but for
 * the signal below), and any number of VMs may live in one process.
 *
 * Threads: a vCPU is run, read and written by one thread at a time; which
 * thread may change between calls.  What may be called from any thread at any
 * time says so.
 *
 * Signals: the soft engine uses none.  The kvm engine needs one to take a
 * thread out of its ioctl: the first VM gives a real-time signal that has the
 * default action a handler that does nothing (SA_RESTART), all VMs share it,
 * and it stays.  It is sent to a thread inside hv_vcpu_run() only, blocked
 * there or not; programs that use real-time signals install their own
 * handlers first.
 */
#ifndef HUSK_HV_H
#define HUSK_HV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "husk/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_vm;
struct hv_vcpu;

/* -- engines -------------------------------------------------------------- */

/* What an engine can do on this host.  Constant once an engine is probed. */
struct hv_caps {
	uint32_t max_vcpus;
	uint8_t phys_bits;   /* width of guest-physical addresses */
	uint8_t linear_bits; /* 48, or 57 with 5-level paging */
	bool dirty_log;
	bool doorbell;
	bool irqfd;
	bool debug; /* hv_vcpu_debug() works */
	bool needs_dev_kvm;
};

/*
 * Can this host run the engine?  name is "kvm" or "soft".  For kvm this runs
 * guest code that a stock kernel depends on (an interrupt through the IDT,
 * popf, iretq, syscall, CPUID, MSRs) under a deadline of a second at most: a
 * /dev/kvm that exists but cannot run such a guest is -ENOTSUP, with the
 * first thing that failed as the sentence.  -ENOENT: no such engine or no
 * /dev/kvm.  -EACCES: no permission.  No lasting effect.
 */
int hv_probe(const char *name, struct hv_caps *caps, struct husk_error *err);

/* -- VMs ------------------------------------------------------------------ */

enum hv_log_level { HV_LOG_ERROR, HV_LOG_WARN, HV_LOG_INFO, HV_LOG_DEBUG };

struct hv_config {
	/*
	 * "auto", "kvm" or "soft".  For tests: "soft,interp" (nothing is
	 * translated), "soft,eager" (all that can be is, at first sight).
	 * NULL is "auto": kvm where hv_probe() accepts it, else soft.
	 */
	const char *engine;
	/* A named CPU model, see hv_cpu_models(); NULL is "x86-64-v3". */
	const char *cpu;
	uint32_t max_vcpus; /* 0: one */
	/*
	 * What a guest that was saved takes for its TSC frequency; 0: the
	 * host's.  kvm cannot count at another one (-EINVAL); soft can, at the
	 * price of a slower RDTSC.
	 */
	uint32_t tsc_khz;
	/* May be NULL.  Called on any thread of the VM; must not block. */
	void (*log)(void *opaque, enum hv_log_level level, const char *text);
	void *log_opaque;
};

int hv_vm_create(const struct hv_config *cfg, struct hv_vm **vm,
		 struct husk_error *err);
/* All vCPUs are destroyed first (-EBUSY is not possible: they are ended). */
void hv_vm_destroy(struct hv_vm *vm); /* NULL is fine */

const char *hv_vm_engine(const struct hv_vm *vm); /* "kvm" or "soft" */
/* Why "auto" chose this engine: one line, or "" when it was asked for. */
const char *hv_vm_reason(const struct hv_vm *vm);
const struct hv_caps *hv_vm_caps(const struct hv_vm *vm);

/* -- memory --------------------------------------------------------------- */

enum hv_mem_flags {
	HV_MEM_READ = 1 << 0,  /* always implied */
	HV_MEM_WRITE = 1 << 1, /* without it guest writes are MMIO exits */
	HV_MEM_LOG = 1 << 2,   /* keep a dirty log */
};

/*
 * Map host memory into the guest.  gpa, size and host are multiples of 4096;
 * the range may not overlap a mapped one (-EEXIST) or exceed phys_bits
 * (-ERANGE).  The memory stays the caller's and must outlive the mapping.
 * Any thread; vCPUs may be running.
 */
int hv_mem_map(struct hv_vm *vm, uint64_t gpa, uint64_t size, void *host,
	       unsigned flags);
/* Exact ranges or sub-ranges of mapped memory; -ENOENT when not mapped. */
int hv_mem_unmap(struct hv_vm *vm, uint64_t gpa, uint64_t size);
int hv_mem_protect(struct hv_vm *vm, uint64_t gpa, uint64_t size,
		   unsigned flags);
/*
 * Copy out and clear the dirty bits of [gpa, gpa + size), one bit per 4 KiB
 * page, least significant first, ceil(size / 4096 / 64) words.  The range
 * must be mapped with HV_MEM_LOG.
 */
int hv_mem_fetch_dirty(struct hv_vm *vm, uint64_t gpa, uint64_t size,
		       uint64_t *bits);
/*
 * The caller (a device, a loader) has written guest memory by itself: mark
 * it dirty and forget code translated from it.  Any thread, any time.
 */
void hv_mem_written(struct hv_vm *vm, uint64_t gpa, uint64_t size);

/* -- vCPUs ---------------------------------------------------------------- */

/*
 * id is the APIC id, below max_vcpus.  The vCPU is in the state of a reset
 * (SDM 3A 10.1.1): id 0 runs from F000:FFF0, the others wait for INIT/SIPI.
 */
int hv_vcpu_create(struct hv_vm *vm, uint32_t id, struct hv_vcpu **cpu,
		   struct husk_error *err);
void hv_vcpu_destroy(struct hv_vcpu *cpu); /* NULL is fine; not running */
uint32_t hv_vcpu_id(const struct hv_vcpu *cpu);

enum hv_exit_reason {
	HV_EXIT_NONE,
	HV_EXIT_MMIO, /* access to guest-physical space without memory */
	HV_EXIT_PIO,
	HV_EXIT_MSR,	    /* an MSR that the engine does not know */
	HV_EXIT_EOI,	    /* end of a level-triggered interrupt */
	HV_EXIT_IRQ_WINDOW, /* asked for, and the guest can take one now */
	HV_EXIT_DEBUG,	    /* see hv_vcpu_debug() */
	HV_EXIT_SHUTDOWN,   /* triple fault */
	HV_EXIT_KICKED,	    /* hv_vcpu_kick() or a signal: just run again */
	HV_EXIT_ERROR,	    /* the engine cannot go on: text says why */
	HV_EXIT_COUNT,
};

/*
 * To finish a read (MMIO, PIO in, RDMSR) the caller stores the value and runs
 * the vCPU again with the same struct; until then the instruction is half
 * done and hv_vcpu_get() is -EBUSY (hv_vcpu_complete() ends that).
 */
struct hv_exit {
	enum hv_exit_reason reason;
	union {
		struct {
			uint64_t gpa, value;
			uint8_t size; /* 1 to 8 */
			bool write;
		} mmio;
		struct {
			uint16_t port;
			uint8_t size; /* 1, 2 or 4 */
			bool write;
			uint32_t value;
		} pio; /* REP INS/OUTS: one exit per element */
		struct {
			uint32_t index;
			bool write;
			bool fault; /* caller sets it to ask for #GP */
			uint64_t value;
		} msr;
		struct {
			uint8_t vector;
		} eoi;
		struct {
			uint64_t rip;	/* linear address */
			uint64_t dr6;	/* which condition, SDM 3B 18.2.3 */
			uint8_t vector; /* 1 #DB or 3 #BP */
		} debug;
		struct {
			char text[160];
		} error;
	};
};

/*
 * Run guest code until something is for the caller.  HLT, the local APIC, its
 * timer and IPIs are handled inside; an idle guest sleeps in here.
 */
int hv_vcpu_run(struct hv_vcpu *cpu, struct hv_exit *exit);
/*
 * Make hv_vcpu_run() return HV_EXIT_KICKED soon.  Sticky: when the vCPU is
 * not running, its next run returns at once (after completing a half-done
 * instruction).  Any thread; safe in a signal handler.
 */
void hv_vcpu_kick(struct hv_vcpu *cpu);
/*
 * Complete a half-done instruction with the value in exit, without running
 * the next one.  Returns 0 also when nothing was half done.  When the
 * instruction goes on to a further access, exit describes it and the result
 * is 1: answer and call again.
 */
int hv_vcpu_complete(struct hv_vcpu *cpu, struct hv_exit *exit);

/* -- interrupts ----------------------------------------------------------- */

/*
 * Deliver a message-signalled interrupt: addr FEExxxxx and data as in SDM 3A
 * 11.11.  Level-triggered messages (data bit 15) give HV_EXIT_EOI on the vCPU
 * that ends them.  Any thread.
 */
int hv_msi(struct hv_vm *vm, uint64_t addr, uint32_t data);

/*
 * Tell the engine which message global interrupt gsi (0 to 1023) sends, so
 * that an eventfd can raise it and, for gsi 0 to 23, that the vector of a
 * level-triggered message is known to need HV_EXIT_EOI.  addr 0 clears it.
 * A level-triggered message must be routed before it is sent.  Any thread.
 */
int hv_route(struct hv_vm *vm, uint32_t gsi, uint64_t addr, uint32_t data);
/* Writes to the eventfd fd send gsi's message.  fd -1 removes.  Any thread. */
int hv_irqfd(struct hv_vm *vm, uint32_t gsi, int fd);

/*
 * The PIC's way in (ExtINT).  Inject vector now: only after
 * HV_EXIT_IRQ_WINDOW, or when hv_vcpu_ready() is true; else -EBUSY.  On the
 * vCPU's thread, between runs.
 */
int hv_vcpu_inject(struct hv_vcpu *cpu, uint8_t vector);
bool hv_vcpu_ready(struct hv_vcpu *cpu);
/*
 * Ask for HV_EXIT_IRQ_WINDOW, or no longer.  Any thread: a running or halted
 * vCPU notices (a halted one wakes up when it could take the interrupt).
 */
void hv_vcpu_want_window(struct hv_vcpu *cpu, bool want);
int hv_vcpu_nmi(struct hv_vcpu *cpu); /* any thread */

/* -- doorbells ------------------------------------------------------------ */

enum hv_space { HV_SPACE_MMIO, HV_SPACE_PIO };

struct hv_doorbell {
	enum hv_space space;
	uint64_t addr;
	uint8_t size; /* 1, 2, 4, 8; 0: any */
	bool match;   /* only writes of value */
	uint64_t value;
};

/*
 * A guest write that fits db adds 1 to the eventfd fd and causes no exit.
 * -EEXIST: that doorbell exists.  Any thread.
 */
int hv_doorbell_add(struct hv_vm *vm, const struct hv_doorbell *db, int fd);
int hv_doorbell_del(struct hv_vm *vm, const struct hv_doorbell *db, int fd);

/* -- architectural state -------------------------------------------------- */

enum hv_state_group {
	HV_STATE_GENERAL = 1 << 0,
	HV_STATE_SYSTEM = 1 << 1,
	HV_STATE_DEBUG = 1 << 2,
	HV_STATE_FPU = 1 << 3,
	HV_STATE_MSR = 1 << 4,
	HV_STATE_APIC = 1 << 5,
	HV_STATE_EVENT = 1 << 6,
	HV_STATE_ALL = (1 << 7) - 1,
};

enum hv_gpr { /* index into hv_state.gpr, encoding order */
	      HV_RAX,
	      HV_RCX,
	      HV_RDX,
	      HV_RBX,
	      HV_RSP,
	      HV_RBP,
	      HV_RSI,
	      HV_RDI,
	      HV_R8,
	      HV_R9,
	      HV_R10,
	      HV_R11,
	      HV_R12,
	      HV_R13,
	      HV_R14,
	      HV_R15,
};

enum hv_seg { HV_ES, HV_CS, HV_SS, HV_DS, HV_FS, HV_GS, HV_LDTR, HV_TR };

/* Access rights as in the VMCS: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13,
 * D/B 14, G 15, unusable 16 (SDM 3C 25.4.1). */
struct hv_segment {
	uint16_t selector;
	uint32_t limit; /* in bytes, granularity applied */
	uint32_t access;
	uint64_t base;
};

struct hv_msr_value {
	uint32_t index;
	uint64_t value;
};

enum { HV_MAX_MSRS = 96, HV_FPU_SIZE = 4096, HV_APIC_SIZE = 1024 };

/* Fields of groups that were not asked for are neither read nor written. */
struct hv_state {
	/* HV_STATE_GENERAL */
	uint64_t gpr[16], rip, rflags;

	/* HV_STATE_SYSTEM */
	struct hv_segment seg[8]; /* by enum hv_seg */
	struct {
		uint64_t base;
		uint16_t limit;
	} gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0, apic_base;

	/* HV_STATE_DEBUG */
	uint64_t dr[4], dr6, dr7;

	/* HV_STATE_FPU: XSAVE area, standard (not compacted) format */
	uint8_t fpu[HV_FPU_SIZE] __attribute__((aligned(64)));

	/*
	 * HV_STATE_MSR: get gives every MSR the engine keeps (not those in
	 * other fields); set takes nmsrs of them in order.
	 */
	uint32_t nmsrs;
	struct hv_msr_value msr[HV_MAX_MSRS];

	/* HV_STATE_APIC: registers 0x000 to 0x3ff at their offsets, as in the
	 * xAPIC page (SDM 3A 11.4.1); id in 31:24 unless x2APIC is on. */
	uint8_t apic[HV_APIC_SIZE];

	/* HV_STATE_EVENT */
	struct {
		enum hv_mp_state {
			HV_MP_RUNNABLE,
			HV_MP_HALTED,
			HV_MP_WAIT_SIPI,
			HV_MP_INIT_RECEIVED,
		} mp;
		bool exception; /* vector (and error) wait for delivery */
		bool has_error;
		uint8_t vector;
		uint32_t error;
		bool interrupt; /* injected vector waits for delivery */
		uint8_t interrupt_vector;
		bool nmi_pending, nmi_masked;
		bool sti_shadow, movss_shadow;
		uint32_t sipi_vector;
		/* Level-triggered vectors that have ended and whose
		 * HV_EXIT_EOI is still to come; bit v % 64 of [v / 64]. */
		uint64_t eoi_pending[4];
	} event;
};

/* groups: mask of enum hv_state_group.  On the vCPU's thread or while it does
 * not run.  set checks what it is given: -EINVAL and nothing is changed. */
int hv_vcpu_get(struct hv_vcpu *cpu, unsigned groups, struct hv_state *state);
int hv_vcpu_set(struct hv_vcpu *cpu, unsigned groups,
		const struct hv_state *state);

/* The kvm-clock of the VM in nanoseconds; set while no vCPU runs. */
int hv_clock_get(struct hv_vm *vm, uint64_t *ns);
int hv_clock_set(struct hv_vm *vm, uint64_t ns);
/*
 * The guest's time (TSC, kvm-clock, APIC timers) stands still from stop to
 * start; no vCPU runs meanwhile.  What hv_vcpu_get() and hv_clock_get() give
 * then is of one moment, and what is set is exact: TSCs are not brought in
 * line with each other as those that were read one after the other are.  All
 * vCPUs exist before the stop.  A kvm of before Linux 5.16 lets the TSC run.
 */
int hv_time_stop(struct hv_vm *vm);
int hv_time_start(struct hv_vm *vm);
/*
 * While it stands still: it is ns later at the start, and what came due
 * meanwhile is due then.  A second and more the guest is told of (kvm-clock's
 * flag GUEST_STOPPED), lest its watchdogs take it for a fault of its own.
 * -EINVAL: time goes on.
 */
int hv_time_skip(struct hv_vm *vm, uint64_t ns);

/* -- CPU models ----------------------------------------------------------- */

struct hv_cpuid {
	uint32_t leaf, subleaf;
	uint32_t eax, ebx, ecx, edx;
};

/* NULL-terminated names: "x86-64-v3", "host". */
const char *const *hv_cpu_models(void);
/* What CPUID gives on cpu (as the guest would read it now). */
int hv_vcpu_cpuid(struct hv_vcpu *cpu, uint32_t leaf, uint32_t subleaf,
		  struct hv_cpuid *out);
/* The guest's TSC frequency in kHz. */
uint32_t hv_vm_tsc_khz(const struct hv_vm *vm);

/* -- debugging and counters ----------------------------------------------- */

enum hv_debug_flags {
	HV_DEBUG_STEP = 1 << 0, /* HV_EXIT_DEBUG after each instruction */
	HV_DEBUG_BP = 1 << 1,	/* int3 exits instead of raising #BP */
	HV_DEBUG_DB = 1 << 2,	/* #DB exits instead of being raised */
};

int hv_vcpu_debug(struct hv_vcpu *cpu, unsigned flags);

struct hv_stats {
	uint64_t exec_ns; /* time inside hv_vcpu_run, not halted */
	uint64_t exits[HV_EXIT_COUNT];
	uint64_t instructions; /* soft engine only, else 0 */
	uint64_t blocks_decoded, tlb_misses, code_writes, interrupts;
	/* The translator of the soft engine: blocks made, times that all were
	 * dropped, and instructions it left to the interpreter. */
	uint64_t translations, code_flushes, interpreted;
	uint64_t slow_accesses; /* of translated code: TLB misses, devices … */
	/* Instructions it always leaves to the interpreter, most frequent
	 * first; an empty name ends the list. */
	struct {
		char name[16];
		uint64_t count;
	} punts[10];
	uint64_t first_ns; /* CLOCK_MONOTONIC when it ran first, 0: never */
};

int hv_vcpu_stats(struct hv_vcpu *cpu, struct hv_stats *stats); /* any thread */

#ifdef __cplusplus
}
#endif

#endif /* HUSK_HV_H */
