/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpuid.c - the named CPU models
 *
 * A model is the same on every host and engine, so that a guest can move.
 * Only the vendor is the host's: guests choose instructions (VMCALL or
 * VMMCALL) and mitigations by it.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/error.h"
#include "hv/engine.h"

static const char *const models[] = { "x86-64-v3", "host", NULL };

const char *const *hv_cpu_models(void)
{
	return models;
}

struct build {
	struct hv_cpuid *out;
	unsigned n, max;
	bool amd;
	uint32_t id, cpus, core_bits;
};

static void add(struct build *b, uint32_t leaf, uint32_t sub, uint32_t eax,
		uint32_t ebx, uint32_t ecx, uint32_t edx)
{
	if (b->n < b->max)
		b->out[b->n] =
			(struct hv_cpuid){ leaf, sub, eax, ebx, ecx, edx };
	b->n++;
}

static uint32_t word(const char *s)
{
	uint32_t v;

	memcpy(&v, s, 4);
	return v;
}

static void add_vendor(struct build *b, uint32_t leaf, uint32_t max)
{
	const char *v = b->amd ? "AuthenticAMD" : "GenuineIntel";

	add(b, leaf, 0, max, word(v), word(v + 8), word(v + 4));
}

static bool host_is_intel(void)
{
	uint32_t a, b = 0, c = 0, d = 0;

	return __get_cpuid(0, &a, &b, &c, &d) && b == word("Genu") &&
	       d == word("ineI") && c == word("ntel");
}

/*
 * Family, model and stepping that are on nobody's list of errata: family 1Ah
 * model 0 for AMD, family 6 model F0h for Intel.
 */
static uint32_t signature(const struct build *b)
{
	return b->amd ? 0x00b00f00 : 0x000f0600;
}

#define EDX1_BOTH \
	(BIT(0) /* FPU */ | BIT(1) /* VME */ | BIT(2) /* DE */ | \
	 BIT(3) /* PSE */ | BIT(4) /* TSC */ | BIT(5) /* MSR */ | \
	 BIT(6) /* PAE */ | BIT(7) /* MCE */ | BIT(8) /* CX8 */ | \
	 BIT(9) /* APIC */ | BIT(12) /* MTRR */ | BIT(13) /* PGE */ | \
	 BIT(14) /* MCA */ | BIT(15) /* CMOV */ | BIT(16) /* PAT */ | \
	 BIT(17) /* PSE36 */ | BIT(23) /* MMX */ | BIT(24) /* FXSR */)
#define EDX1_MORE \
	(BIT(11) /* SEP */ | BIT(19) /* CLFSH */ | BIT(25) /* SSE */ | \
	 BIT(26) /* SSE2 */)
#define ECX1 \
	(BIT(0) /* SSE3 */ | BIT(1) /* PCLMULQDQ */ | BIT(9) /* SSSE3 */ | \
	 BIT(12) /* FMA */ | BIT(13) /* CX16 */ | BIT(17) /* PCID */ | \
	 BIT(19) /* SSE4.1 */ | BIT(20) /* SSE4.2 */ | BIT(21) /* x2APIC */ | \
	 BIT(22) /* MOVBE */ | BIT(23) /* POPCNT */ | \
	 BIT(24) /* TSC deadline */ | BIT(25) /* AES */ | \
	 BIT(26) /* XSAVE */ | BIT(28) /* AVX */ | BIT(29) /* F16C */ | \
	 BIT(30) /* RDRAND */ | BIT(31) /* hypervisor */)
#define EBX7 \
	(BIT(0) /* FSGSBASE */ | BIT(1) /* TSC_ADJUST */ | BIT(3) /* BMI1 */ | \
	 BIT(5) /* AVX2 */ | BIT(7) /* SMEP */ | BIT(8) /* BMI2 */ | \
	 BIT(9) /* ERMS */ | BIT(10) /* INVPCID */ | BIT(18) /* RDSEED */ | \
	 BIT(19) /* ADX */ | BIT(20) /* SMAP */ | BIT(23) /* CLFLUSHOPT */ | \
	 BIT(29) /* SHA */)
#define ECX7 BIT(2) /* UMIP */
#define EDX7 (BIT(4) /* FSRM */ | BIT(29) /* ARCH_CAPABILITIES */)
#define EDX8_1 \
	(BIT(11) /* SYSCALL */ | BIT(20) /* NX */ | BIT(26) /* 1 GiB */ | \
	 BIT(27) /* RDTSCP */ | BIT(29) /* LM */)
#define ECX8_1 (BIT(0) /* LAHF */ | BIT(5) /* LZCNT */ | BIT(8) /* PREFETCHW */)

/* Features of 0x40000001, Documentation/virt/kvm/x86/cpuid.rst. */
#define KVM_FEATURES \
	(BIT(0) /* CLOCKSOURCE */ | BIT(1) /* NOP_IO_DELAY */ | \
	 BIT(3) /* CLOCKSOURCE2 */ | BIT(5) /* STEAL_TIME */ | \
	 BIT(6) /* PV_EOI */ | BIT(7) /* PV_UNHALT */ | \
	 BIT(9) /* PV_TLB_FLUSH */ | BIT(11) /* PV_SEND_IPI */ | \
	 BIT(12) /* POLL_CONTROL */ | BIT(13) /* PV_SCHED_YIELD */ | \
	 BIT(24) /* CLOCKSOURCE_STABLE */)

/* -- caches: 32 KiB L1, 512 KiB L2, 16 MiB L3 of all vCPUs ---------------- */

static void add_caches(struct build *b, uint32_t leaf)
{
	static const struct {
		uint8_t type, level, ways;
		uint32_t sets;
	} t[] = {
		{ 1, 1, 8, 64 },
		{ 2, 1, 8, 64 },
		{ 3, 2, 8, 1024 },
		{ 3, 3, 16, 16384 },
	};
	uint32_t cores = (1u << b->core_bits) - 1;

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		uint32_t eax = t[i].type | t[i].level << 5 | 1 << 8;

		if (t[i].level == 3)
			eax |= cores << 14;
		if (leaf == 4)
			eax |= MIN(cores, 63u) << 26;
		add(b, leaf, i, eax, 63 | (t[i].ways - 1u) << 22, t[i].sets - 1,
		    0);
	}
	add(b, leaf, ARRAY_SIZE(t), 0, 0, 0, 0);
}

/* -- leaves --------------------------------------------------------------- */

static void add_tsc(struct build *b, uint32_t khz)
{
	uint32_t num = khz, den = 1000000, x = khz, y = den;

	while (y) {
		uint32_t r = x % y;

		x = y;
		y = r;
	}
	num /= x;
	den /= x;
	/*
	 * The crystal is the APIC timer's 1 GHz if a guest that multiplies in
	 * 32 bits (in kHz) gets it right, else one that is exact.
	 */
	if (num <= UINT32_MAX / 1000000)
		add(b, 0x15, 0, den, num, 1000000000, 0);
	else
		add(b, 0x15, 0, 1000, khz, 1000000, 0);
	add(b, 0x16, 0, khz / 1000 & 0xffff, khz / 1000 & 0xffff, 100, 0);
}

static void add_basic(struct build *b, uint32_t khz)
{
	uint32_t edx1 = EDX1_BOTH | EDX1_MORE, edx7 = EDX7;

	if (b->cpus > 1)
		edx1 |= BIT(28); /* HTT: more than one APIC id */
	if (!b->amd)
		edx7 |= BIT(26); /* SPEC_CTRL: IBRS_ALL depends on it */
	add_vendor(b, 0, 0x16);
	add(b, 1, 0, signature(b), 8 << 8 | b->cpus << 16 | b->id << 24, ECX1,
	    edx1);
	if (!b->amd) {
		add(b, 2, 0, 0x00feff01, 0, 0, 0);
		add_caches(b, 4);
	}
	add(b, 6, 0, 4 /* ARAT */, 0, 0, 0);
	add(b, 7, 0, 0, EBX7, ECX7, edx7);
	add(b, 0xb, 0, 0, 1, 0 | 1 << 8, b->id);
	add(b, 0xb, 1, b->core_bits, b->cpus, 1 | 2 << 8, b->id);
	add(b, 0xd, 0, 7, 832, 832, 0);
	add(b, 0xd, 1, 7 /* XSAVEOPT, XSAVEC, XGETBV1 */, 832, 0, 0);
	add(b, 0xd, 2, 256, 576, 0, 0);
	add_tsc(b, khz);
}

static void add_kvm(struct build *b, uint32_t khz)
{
	add(b, 0x40000000, 0, 0x40000010, word("KVMK"), word("VMKV"),
	    word("M\0\0"));
	add(b, 0x40000001, 0, KVM_FEATURES, 0, 0, 0);
	add(b, 0x40000010, 0, khz, 1000000, 0, 0);
}

static void add_brand(struct build *b, const char *model)
{
	char s[48] = { 0 };

	snprintf(s, sizeof(s), "Husk %.30s vCPU", model);
	for (unsigned i = 0; i < 3; i++)
		add(b, 0x80000002 + i, 0, word(s + i * 16),
		    word(s + i * 16 + 4), word(s + i * 16 + 8),
		    word(s + i * 16 + 12));
}

static void add_extended(struct build *b, uint8_t phys_bits, const char *model)
{
	uint32_t ecx = ECX8_1, edx = EDX8_1, apic = 0, spec = 0;

	if (b->amd) {
		add_vendor(b, 0x80000000, 0x80000021);
		edx |= EDX1_BOTH; /* AMD repeats them */
		ecx |= BIT(22);	  /* TOPOEXT */
		if (b->cpus > 1)
			ecx |= BIT(1); /* CMP_LEGACY */
		apic = (b->cpus - 1) | b->core_bits << 12;
		ecx |= BIT(6);		 /* SSE4A */
		spec = BIT(0) | BIT(14); /* CLZERO, IBRS */
	} else {
		add(b, 0x80000000, 0, 0x80000008, 0, 0, 0);
	}
	add(b, 0x80000001, 0, b->amd ? signature(b) : 0, 0, ecx, edx);
	add_brand(b, model);
	if (b->amd)
		add(b, 0x80000005, 0, 0xff40ff40, 0xff40ff40, 0x20080140,
		    0x20080140);
	add(b, 0x80000006, 0, 0, b->amd ? 0x42004200 : 0,
	    512u << 16 | 6 << 12 | (b->amd ? 1 << 8 : 0) | 64,
	    b->amd ? 32 << 18 | 8 << 12 | 1 << 8 | 64 : 0);
	add(b, 0x80000007, 0, 0, 0, 0, BIT(8) /* invariant TSC */);
	add(b, 0x80000008, 0, phys_bits | 48 << 8, spec, apic, 0);
	if (!b->amd)
		return;
	add_caches(b, 0x8000001d);
	add(b, 0x8000001e, 0, b->id, b->id, 0, 0);
	/* LFENCE serializes, Automatic IBRS. */
	add(b, 0x80000021, 0, BIT(2) | BIT(8), 0, 0, 0);
}

int cpuid_model(const char *model, uint32_t id, uint32_t n, uint32_t tsc_khz,
		uint8_t phys_bits, struct hv_cpuid *out, unsigned max,
		struct husk_error *err)
{
	struct build b = { .out = out,
			   .max = max,
			   .amd = !host_is_intel(),
			   .id = id,
			   .cpus = n ? n : 1 };
	unsigned i = 0;

	while (models[i] && strcmp(models[i], model))
		i++;
	if (!models[i])
		return error_set(err, -EINVAL, "no CPU model \"%s\"", model);
	if (!tsc_khz)
		tsc_khz = 1000000;
	while (1u << b.core_bits < b.cpus)
		b.core_bits++;
	add_basic(&b, tsc_khz);
	add_kvm(&b, tsc_khz);
	add_extended(&b, phys_bits, model);
	if (b.n > max)
		return error_set(err, -ENOSPC, "too many CPUID leaves");
	return (int)b.n;
}
