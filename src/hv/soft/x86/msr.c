/* SPDX-License-Identifier: Apache-2.0 */
/*
 * msr.c - model-specific registers, the TSC and CPUID as the guest reads it
 */
#include "hv/soft/x86/lapic.h"

#include <errno.h>
#include <time.h>
#include <x86intrin.h>

#include "base/loop.h"

#define MISC_ENABLE_FIXED (BIT(11) | BIT(12)) /* no BTS, no PEBS */
#define MISC_ENABLE_WRITABLE \
	(BIT(0) | BIT(3) | BIT(16) | BIT(18) | BIT(22) | BIT(23) | BIT(34))

#define ARCH_CAP_VALUE \
	(BIT(0) /* RDCL_NO */ | BIT(1) /* IBRS_ALL */ | \
	 BIT(3) /* SKIP_L1DFL */ | BIT(5) /* MDS_NO */ | \
	 BIT(6) /* PSCHANGE_MC_NO */ | BIT(8) /* TAA_NO */ | \
	 BIT(13) /* SBDR_SSDP_NO */ | BIT(14) /* FBSDP_NO */ | \
	 BIT(15) /* PSDP_NO */ | BIT(20) /* BHI_NO */ | BIT(26) /* GDS_NO */ | \
	 BIT(27) /* RFDS_NO */)

enum { MC_BANKS = 10 };

/* -- time ----------------------------------------------------------------- */

static uint32_t tsc_khz(const struct soft_vm *vm)
{
	return vm->vm.tsc_khz ? vm->vm.tsc_khz : 1000000;
}

static uint64_t ns_to_tsc(struct soft_vm *vm, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * tsc_khz(vm) / 1000000);
}

/* What all vCPUs count from: they differ by their offsets only. */
static uint64_t base_tsc(struct soft_vm *vm)
{
	if (unlikely(vm->stopped.on))
		return vm->stopped.tsc;
	return vm->host_tsc ? __rdtsc() : ns_to_tsc(vm, loop_now());
}

uint64_t soft_tsc0(struct soft_vm *vm)
{
	return vm->host_tsc ? vm->host_tsc0 : ns_to_tsc(vm, vm->ns0);
}

/* The clock by the TSC of the same moment. */
static uint64_t clock_at(struct soft_vm *vm, uint64_t tsc)
{
	uint64_t since = tsc - soft_tsc0(vm);

	return vm->ns0 +
	       (uint64_t)((unsigned __int128)since * 1000000 / tsc_khz(vm));
}

uint64_t soft_clock_ns(struct soft_vm *vm)
{
	return clock_at(vm, base_tsc(vm));
}

uint64_t cpu_tsc(struct cpu *c)
{
	return base_tsc(c->vm) + c->tsc_offset;
}

uint64_t soft_tsc_to_ns(struct cpu *c, uint64_t tsc)
{
	uint64_t now = cpu_tsc(c), ns;
	uint32_t khz = tsc_khz(c->vm);
	unsigned __int128 left;

	if (tsc <= now)
		return 0;
	left = ((unsigned __int128)(tsc - now) * 1000000 + khz - 1) / khz;
	ns = loop_now();
	return left < UINT64_MAX - 1 - ns ? ns + (uint64_t)left
					  : UINT64_MAX - 1;
}

void soft_set_tsc(struct cpu *c, uint64_t value)
{
	uint64_t near = (uint64_t)tsc_khz(c->vm) * 1000;
	uint64_t offset = value - (cpu_tsc(c) - c->tsc_offset);
	unsigned n = c->vm->stopped.on ? 0 : c->vcpu.id;

	/*
	 * Where time goes on, vCPUs are saved one after the other: a second is
	 * no difference.
	 */
	for (unsigned i = 0; i < n && i < HV_MAX_VCPUS; i++) {
		struct cpu *o =
			__atomic_load_n(&c->vm->cpu[i], __ATOMIC_ACQUIRE);

		if (o && o->tsc_offset - offset + near < 2 * near) {
			offset = o->tsc_offset;
			break;
		}
	}
	c->tsc_offset = offset;
}

int soft_time_stop(struct hv_vm *hv)
{
	struct soft_vm *vm = (struct soft_vm *)hv;

	if (vm->stopped.on)
		return 0;
	vm->stopped.tsc = base_tsc(vm);
	vm->stopped.ns = loop_now();
	vm->stopped.on = true;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++)
		if (vm->cpu[i])
			lapic_stop_time(vm->cpu[i], vm->stopped.ns);
	return 0;
}

int soft_time_start(struct hv_vm *hv)
{
	struct soft_vm *vm = (struct soft_vm *)hv;
	uint64_t tsc, ns, was = vm->stopped.tsc;

	if (!vm->stopped.on)
		return 0;
	vm->stopped.on = false;
	tsc = base_tsc(vm);
	ns = loop_now();
	/* The pages of the clocks follow at the next entry, kvmpv_enter(). */
	vm->clock_offset -= (int64_t)(clock_at(vm, tsc) - clock_at(vm, was));
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct cpu *c = vm->cpu[i];

		if (!c)
			continue;
		c->tsc_offset -= tsc - was;
		lapic_start_time(c, ns);
	}
	return 0;
}

int soft_time_skip(struct hv_vm *hv, uint64_t ns)
{
	struct soft_vm *vm = (struct soft_vm *)hv;

	if (!vm->stopped.on)
		return -EINVAL;
	vm->clock_offset += (int64_t)ns;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct cpu *c = vm->cpu[i];

		if (!c)
			continue;
		c->tsc_offset += ns_to_tsc(vm, ns);
		lapic_skip_time(c, ns);
		if (ns >= HV_TOLD_NS)
			c->lapic->pv_tell_stop = true;
	}
	return 0;
}

/* -- checks --------------------------------------------------------------- */

static bool pat_valid(uint64_t v)
{
	for (unsigned i = 0; i < 8; i++) {
		unsigned t = v >> (i * 8) & 0xff;

		if (t > 7 || t == 2 || t == 3)
			return false;
	}
	return true;
}

static bool mtrr_type_valid(unsigned t)
{
	return t < 7 && t != 2 && t != 3;
}

static bool mtrr_fixed_valid(uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		if (!mtrr_type_valid(v >> (i * 8) & 0xff))
			return false;
	return true;
}

static int mtrr_fixed_index(uint32_t index)
{
	switch (index) {
	case 0x250: return 0;
	case 0x258: return 1;
	case 0x259: return 2;
	case 0x268 ... 0x26f: return (int)(index - 0x268 + 3);
	default: return -1;
	}
}

static bool write_efer(struct cpu *c, uint64_t v)
{
	uint64_t known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AIBRS;
	uint64_t was = c->efer;

	if (v & ~known)
		return false;
	v = (v & ~EFER_LMA) | (was & EFER_LMA);
	if (((v ^ was) & EFER_LME) && (c->cr0 & CR0_PG))
		return false;
	c->efer = v;
	if ((v ^ was) & EFER_NXE)
		tlb_flush(c, true);
	cpu_update_mode(c);
	return true;
}

static bool write_mtrr(struct cpu *c, uint32_t index, uint64_t v)
{
	uint64_t phys = BIT(c->vm->vm.caps.phys_bits) - 1;
	int fixed = mtrr_fixed_index(index);

	if (fixed >= 0) {
		if (!mtrr_fixed_valid(v))
			return false;
		c->msr.mtrr_fixed[fixed] = v;
	} else if (index == 0x2ff) {
		if (v & ~0xcffull || !mtrr_type_valid(v & 0xff))
			return false;
		c->msr.mtrr_def = v;
	} else if (index & 1) {
		if (v & ~((phys & ~0xfffull) | BIT(11)))
			return false;
		c->msr.mtrr_mask[(index - 0x200) / 2] = v;
	} else {
		if (v & ~((phys & ~0xfffull) | 0xff) ||
		    !mtrr_type_valid(v & 0xff))
			return false;
		c->msr.mtrr_base[(index - 0x200) / 2] = v;
	}
	return true;
}

static bool write_mc(struct cpu *c, uint32_t index, uint64_t v)
{
	switch (index & 3) {
	case 0: /* systems write all ones; AMD's erratum keeps bit 10 clear */
		if (v && (v | BIT(10)) != ~0ull)
			return false;
		break;
	case 1: /* a status can only be cleared */
		if (v)
			return false;
		break;
	}
	c->msr.mc[index - 0x400] = v;
	return true;
}

/*
 * Where registers are that are plain 64-bit storage, and whether what is
 * written must be an address; false for all others.
 */
static bool plain(struct cpu *c, uint32_t index, uint64_t **p, bool *is_address)
{
	*is_address = true;
	switch (index) {
	case 0x174:
		*p = &c->msr.sysenter_cs;
		*is_address = false;
		return true;
	case 0xc0000081:
		*p = &c->msr.star;
		*is_address = false;
		return true;
	case 0xc0000084:
		*p = &c->msr.sfmask;
		*is_address = false;
		return true;
	case 0x175: *p = &c->msr.sysenter_esp; return true;
	case 0x176: *p = &c->msr.sysenter_eip; return true;
	case 0xc0000082: *p = &c->msr.lstar; return true;
	case 0xc0000083: *p = &c->msr.cstar; return true;
	case 0xc0000100: *p = &c->seg[SEG_FS].base; return true;
	case 0xc0000101: *p = &c->seg[SEG_GS].base; return true;
	case 0xc0000102: *p = &c->msr.kernel_gs; return true;
	}
	return false;
}

static const struct hv_cpuid *find(const struct cpu *c, uint32_t leaf,
				   uint32_t sub);

/* IA32_PRED_CMD: what Intel has in one bit, AMD has in two. */
static bool has_spec_ctrl(const struct cpu *c)
{
	const struct hv_cpuid *f = find(c, 7, 0), *x = find(c, 0x80000008, 0);

	return (f && f->edx & BIT(26)) || (x && x->ebx & BIT(12));
}

/* -- RDMSR, WRMSR --------------------------------------------------------- */

bool msr_read(struct cpu *c, uint32_t index, uint64_t *value)
{
	bool is_address;
	uint64_t *p;

	if (plain(c, index, &p, &is_address)) {
		*value = *p;
		return true;
	}
	switch (index) {
	case 0x10: *value = cpu_tsc(c); return true;
	case 0x3b: *value = c->msr.tsc_adjust; return true;
	case 0x1b: *value = c->apic_base; return true;
	case 0xc0000080: *value = c->efer; return true;
	case 0xc0000103: *value = c->msr.tsc_aux; return true;
	case 0x277: *value = c->msr.pat; return true;
	case 0xfe: *value = 0x508; return true;
	case 0x2ff: *value = c->msr.mtrr_def; return true;
	case 0x200 ... 0x20f:
		*value = index & 1 ? c->msr.mtrr_mask[(index - 0x200) / 2]
				   : c->msr.mtrr_base[(index - 0x200) / 2];
		return true;
	case 0x250:
	case 0x258:
	case 0x259:
	case 0x268 ... 0x26f:
		*value = c->msr.mtrr_fixed[mtrr_fixed_index(index)];
		return true;
	case 0x1a0:
		*value = c->msr.misc_enable | MISC_ENABLE_FIXED;
		return true;
	case 0x48: *value = c->msr.spec_ctrl; return true;
	case 0x10a: *value = ARCH_CAP_VALUE; return true;
	case 0x179: *value = MC_BANKS; return true;
	case 0x17a: *value = c->msr.mcg_status; return true;
	case 0x400 ... 0x400 + 4 * MC_BANKS - 1:
		*value = c->msr.mc[index - 0x400];
		return true;
	case 0x8b:
		/* Intel has the revision in the upper half; high is newest. */
		*value = 0x100000000 | 0x1000000;
		return true;
	case 0x3a:
		*value = 1; /* locked, nothing enabled */
		return true;
	case 0xc0010015:
		*value = BIT(24); /* the TSC counts at the P0 frequency */
		return true;
	case 0xc0011029:
		*value = BIT(1); /* LFENCE serializes */
		return true;
	case 0x00:
	case 0x01:
	case 0x17:
	case 0x2a:
	case 0x34:
	case 0xce:
	case 0x17b:
	case 0x1d9:
	case 0x1db:
	case 0x1dc:
	case 0x1dd:
	case 0x1de:
	case 0xc1 ... 0xc8:
	case 0x186 ... 0x18d:
	case 0xcd:
	case 0x38d ... 0x390:
	case 0x309 ... 0x30b:
	case 0x1fc:
	case 0x198:
	case 0x199:
	case 0x19a:
	case 0x19b:
	case 0x19c:
	case 0x140:
	case 0x33:
	case 0xda0:
	case 0xd90:
	case 0xc0010000 ... 0xc0010007:
	case 0xc0010010:
	case 0xc001001a:
	case 0xc001001d:
	case 0xc001001f:
	case 0xc0010055:
	case 0xc0010058:
	case 0xc0010114:
	case 0xc0010117:
	case 0xc0010140:
	case 0xc0010141:
	case 0xc0010200 ... 0xc001020b:
	case 0xc0011020 ... 0xc0011023:
	case 0xc001102a:
	case 0xc001102c: *value = 0; return true;
	case 0x6e0:
	case 0x800 ... 0x8ff: return lapic_msr_read(c, index, value);
	case 0x11:
	case 0x12:
	case 0x4b564d00 ... 0x4b564d07: return kvmpv_msr_read(c, index, value);
	}
	c->msr_unknown = true;
	return false;
}

bool msr_write(struct cpu *c, uint32_t index, uint64_t value)
{
	bool is_address;
	uint64_t delta, *p;

	if (plain(c, index, &p, &is_address)) {
		if (is_address && !canonical(value))
			return false;
		if (index == 0xc0000084 || index == 0x174)
			value = (uint32_t)value;
		*p = value;
		return true;
	}
	switch (index) {
	case 0x10:
		delta = value - cpu_tsc(c);
		c->tsc_offset += delta;
		c->msr.tsc_adjust += delta;
		kvmpv_enter(c);
		return true;
	case 0x3b:
		c->tsc_offset += value - c->msr.tsc_adjust;
		c->msr.tsc_adjust = value;
		kvmpv_enter(c);
		return true;
	case 0x1b:
		/* Whether this is the boot processor cannot be changed. */
		value = (value & ~APIC_BASE_BSP) |
			(c->apic_base & APIC_BASE_BSP);
		return lapic_set_base(c, value);
	case 0xc0000080: return write_efer(c, value);
	case 0xc0000103:
		if (value >> 32)
			return false;
		c->msr.tsc_aux = value;
		return true;
	case 0x277:
		if (!pat_valid(value))
			return false;
		c->msr.pat = value;
		return true;
	case 0x200 ... 0x20f:
	case 0x2ff:
	case 0x250:
	case 0x258:
	case 0x259:
	case 0x268 ... 0x26f: return write_mtrr(c, index, value);
	case 0x1a0:
		c->msr.misc_enable = value & MISC_ENABLE_WRITABLE;
		return true;
	case 0x48:
		if (value & ~0x487ull)
			return false;
		c->msr.spec_ctrl = value;
		return true;
	case 0x49:
		if (!has_spec_ctrl(c))
			break;
		return !(value & ~0x81ull);
	case 0x17a:
		if (value & ~7ull)
			return false;
		c->msr.mcg_status = value;
		return true;
	case 0x400 ... 0x400 + 4 * MC_BANKS - 1:
		return write_mc(c, index, value);
	case 0xda0: return !value;
	/* Accepted and forgotten. */
	case 0x00:
	case 0x01:
	case 0x79:
	case 0x8b:
	case 0x17b:
	case 0x1d9:
	case 0xc1 ... 0xc8:
	case 0x186 ... 0x18d:
	case 0x38d ... 0x390:
	case 0x309 ... 0x30b:
	case 0x1fc:
	case 0x199:
	case 0x19a:
	case 0x19b:
	case 0x140:
	case 0xd90:
	case 0xc0010000 ... 0xc0010007:
	case 0xc0010010:
	case 0xc0010015:
	case 0xc001001a:
	case 0xc001001d:
	case 0xc001001f:
	case 0xc0010055:
	case 0xc0010114:
	case 0xc0010117:
	case 0xc0010140:
	case 0xc0010141:
	case 0xc0010200 ... 0xc001020b:
	case 0xc0011020 ... 0xc0011023:
	case 0xc0011029:
	case 0xc001102a:
	case 0xc001102c: return true;
	case 0x6e0:
	case 0x800 ... 0x8ff: return lapic_msr_write(c, index, value);
	case 0x11:
	case 0x12:
	case 0x4b564d00 ... 0x4b564d07: return kvmpv_msr_write(c, index, value);
	}
	c->msr_unknown = true;
	return false;
}

/* -- CPUID ---------------------------------------------------------------- */

static bool has_subleaves(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd ||
	       leaf == 0x8000001d;
}

static const struct hv_cpuid *find(const struct cpu *c, uint32_t leaf,
				   uint32_t sub)
{
	for (unsigned i = 0; i < c->ncpuid; i++) {
		const struct hv_cpuid *e = &c->cpuid[i];

		if (e->leaf == leaf &&
		    (e->subleaf == sub || !has_subleaves(leaf)))
			return e;
	}
	return NULL;
}

void cpuid_read(struct cpu *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
	const struct hv_cpuid *e = find(c, leaf, sub);
	uint32_t size = 576;

	memset(out, 0, 4 * sizeof(*out));
	if (!e) {
		if (leaf == 0xb) { /* no such level: SDM 2A, CPUID */
			out[2] = sub & 0xff;
			out[3] = c->vcpu.id;
		}
		return;
	}
	out[0] = e->eax;
	out[1] = e->ebx;
	out[2] = e->ecx;
	out[3] = e->edx;
	switch (leaf) {
	case 1:
		out[2] &= ~(uint32_t)BIT(27);
		if (c->cr4 & CR4_OSXSAVE)
			out[2] |= BIT(27);
		if (!(c->apic_base & APIC_BASE_EN))
			out[3] &= ~(uint32_t)BIT(9);
		break;
	case 0xd:
		if (c->xcr0 & 4)
			size = 832;
		if (sub < 2)
			out[1] = size;
		break;
	case 0x80000001:
		if (!(c->apic_base & APIC_BASE_EN))
			out[3] &= ~(uint32_t)BIT(9);
		break;
	}
}
