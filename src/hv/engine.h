/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h - what an execution engine must provide
 *
 * Included by src/hv only.  hv.c checks arguments; an engine assumes valid
 * ones.  Contracts of the functions are those of include/husk/hv.h.
 */
#ifndef HV_ENGINE_H
#define HV_ENGINE_H

#include <stdarg.h>
#include <stdatomic.h>

#include "husk/hv.h"

enum { HV_MAX_VCPUS = 64 };

/* For a list of MSRs: MTRR_DEF_TYPE, then the variable and the fixed ones. */
#define MTRR_MSRS \
	0x2ff, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, \
		0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, 0x250, 0x258, \
		0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f

struct hv_engine {
	const char *name;
	size_t vm_size, vcpu_size; /* structs that begin with hv_vm, hv_vcpu */

	int (*probe)(struct hv_caps *caps, struct husk_error *err);

	/* The memory is zeroed, allocated and freed by the caller. */
	int (*vm_init)(struct hv_vm *vm, struct husk_error *err);
	void (*vm_finish)(struct hv_vm *vm);
	int (*vcpu_init)(struct hv_vcpu *cpu, struct husk_error *err);
	void (*vcpu_finish)(struct hv_vcpu *cpu);

	/* hv.c has checked alignment, overlap and presence. */
	int (*mem_map)(struct hv_vm *vm, uint64_t gpa, uint64_t size,
		       void *host, unsigned flags);
	int (*mem_unmap)(struct hv_vm *vm, uint64_t gpa, uint64_t size);
	int (*mem_protect)(struct hv_vm *vm, uint64_t gpa, uint64_t size,
			   unsigned flags);
	int (*mem_fetch_dirty)(struct hv_vm *vm, uint64_t gpa, uint64_t size,
			       uint64_t *bits);
	void (*mem_written)(struct hv_vm *vm, uint64_t gpa, uint64_t size);

	int (*run)(struct hv_vcpu *cpu, struct hv_exit *exit);
	int (*complete)(struct hv_vcpu *cpu, struct hv_exit *exit);
	void (*kick)(struct hv_vcpu *cpu);
	int (*get)(struct hv_vcpu *cpu, unsigned groups, struct hv_state *s);
	int (*set)(struct hv_vcpu *cpu, unsigned groups,
		   const struct hv_state *s);

	int (*msi)(struct hv_vm *vm, uint64_t addr, uint32_t data);
	int (*route)(struct hv_vm *vm, uint32_t gsi, uint64_t addr,
		     uint32_t data);
	int (*irqfd)(struct hv_vm *vm, uint32_t gsi, int fd);
	int (*inject)(struct hv_vcpu *cpu, uint8_t vector);
	bool (*ready)(struct hv_vcpu *cpu);
	void (*want_window)(struct hv_vcpu *cpu, bool want);
	int (*nmi)(struct hv_vcpu *cpu);
	int (*doorbell)(struct hv_vm *vm, const struct hv_doorbell *db, int fd,
			bool add);
	int (*cpuid)(struct hv_vcpu *cpu, uint32_t leaf, uint32_t subleaf,
		     struct hv_cpuid *out);
	int (*clock_get)(struct hv_vm *vm, uint64_t *ns);
	int (*clock_set)(struct hv_vm *vm, uint64_t ns);
	int (*time_stop)(struct hv_vm *vm);
	int (*time_start)(struct hv_vm *vm);
	int (*time_skip)(struct hv_vm *vm, uint64_t ns);
	int (*debug)(struct hv_vcpu *cpu, unsigned flags);
	int (*stats)(struct hv_vcpu *cpu, struct hv_stats *stats);
};

enum { HV_TOLD_NS = 1000000000 }; /* of hv_time_skip(): the guest is told */

/* (i) set by hv.c before vm_init, then constant */
struct hv_vm {
	const struct hv_engine *engine; /* (i) */
	struct hv_caps caps;		/* (i) */
	char options[32];		/* (i) after the comma: "interp" */
	char reason[160];		/* (i) */
	char cpu_model[32];		/* (i) */
	uint32_t max_vcpus;		/* (i) */
	uint32_t tsc_khz; /* (i) what is asked for, 0: any; set by vm_init */
	void (*log)(void *opaque, enum hv_log_level level, const char *text);
	void *log_opaque;		    /* (i) */
	struct hv_vcpu *vcpu[HV_MAX_VCPUS]; /* hv.c's lock */
	struct hv_map *maps;		    /* hv.c's list of mappings */
	void *lock;			    /* hv.c's */
};

struct hv_vcpu {
	struct hv_vm *vm;
	uint32_t id;
	_Atomic uint64_t first_ns; /* when it ran first, 0: never */
};

/* What two measurements of one clock may differ by, and no guest notices. */
static inline bool tsc_khz_same(uint32_t a, uint32_t b)
{
	uint32_t d = a > b ? a - b : b - a;

	return d <= b / 10000;
}

void hv_log(struct hv_vm *vm, enum hv_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* cpuid.c: the leaves of a named model, for a VM with n vCPUs, on vCPU id.
 * Fills at most max entries, returns how many, or -errno. */
int cpuid_model(const char *model, uint32_t id, uint32_t n, uint32_t tsc_khz,
		uint8_t phys_bits, struct hv_cpuid *out, unsigned max,
		struct husk_error *err);

extern const struct hv_engine hv_engine_kvm;
extern const struct hv_engine hv_engine_soft;

#endif /* HV_ENGINE_H */
