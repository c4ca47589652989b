/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fields.c - the sections of a saved machine that are not a device's
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/saved/saved.h"

/* -- text ----------------------------------------------------------------- */

static void text(struct state *s, const char *name, char *v, size_t room)
{
	uint32_t len = (uint32_t)strlen(v);
	char field[40];

	snprintf(field, sizeof(field), "%s.length", name);
	state_u32(s, field, &len);
	if (len >= room) {
		state_reject(s, "a text is too long");
		return;
	}
	state_bytes(s, name, v, len);
	if (!state_loading(s))
		return;
	v[len] = 0;
	if (strlen(v) != len)
		state_reject(s, "a text has a zero in it");
}

/* -- machine -------------------------------------------------------------- */

void machine_fields(struct state *s, struct saved_machine *m)
{
	text(s, "engine", m->engine, sizeof(m->engine));
	text(s, "cpu_model", m->cpu_model, sizeof(m->cpu_model));
	state_u32(s, "cpus", &m->cpus);
	state_u32(s, "tsc_khz", &m->tsc_khz);
	state_u64(s, "memory", &m->memory);
	state_u64(s, "now", &m->now);
	state_u64(s, "clock", &m->clock);
	state_u64(s, "saved_at", &m->saved_at);
	state_bytes(s, "id", m->id, sizeof(m->id));
	if (!state_loading(s))
		return;
	if (!m->cpus || m->cpus > VM_MAX_CPUS)
		state_reject(s, "number of CPUs");
	if (!m->memory || m->memory % SAVED_PAGE || m->memory >> 46)
		state_reject(s, "size of memory");
	/* Times of a century, so that sums of them are times. */
	if (m->now >> 62 || m->clock >> 62)
		state_reject(s, "clock");
	if (m->tsc_khz < 1000 || m->tsc_khz > 20000000)
		state_reject(s, "TSC frequency");
}

/* -- vCPUs ---------------------------------------------------------------- */

static void array(struct state *s, const char *name, uint64_t *v, unsigned n)
{
	char field[40];

	for (unsigned i = 0; i < n; i++) {
		snprintf(field, sizeof(field), "%s%u", name, i);
		state_u64(s, field, &v[i]);
	}
}

static void system_fields(struct state *s, struct hv_state *h)
{
	static const char *const names[8] = { "es", "cs", "ss",	 "ds",
					      "fs", "gs", "ldt", "tr" };
	char field[40];

	for (unsigned i = 0; i < 8; i++) {
		snprintf(field, sizeof(field), "%s.selector", names[i]);
		state_u16(s, field, &h->seg[i].selector);
		snprintf(field, sizeof(field), "%s.limit", names[i]);
		state_u32(s, field, &h->seg[i].limit);
		snprintf(field, sizeof(field), "%s.access", names[i]);
		state_u32(s, field, &h->seg[i].access);
		snprintf(field, sizeof(field), "%s.base", names[i]);
		state_u64(s, field, &h->seg[i].base);
	}
	state_u64(s, "gdt.base", &h->gdtr.base);
	state_u16(s, "gdt.limit", &h->gdtr.limit);
	state_u64(s, "idt.base", &h->idtr.base);
	state_u16(s, "idt.limit", &h->idtr.limit);
	state_u64(s, "cr0", &h->cr0);
	state_u64(s, "cr2", &h->cr2);
	state_u64(s, "cr3", &h->cr3);
	state_u64(s, "cr4", &h->cr4);
	state_u64(s, "cr8", &h->cr8);
	state_u64(s, "efer", &h->efer);
	state_u64(s, "xcr0", &h->xcr0);
	state_u64(s, "apic_base", &h->apic_base);
}

static void msr_fields(struct state *s, struct hv_state *h)
{
	char field[40];

	state_u32(s, "msrs", &h->nmsrs);
	if (h->nmsrs > HV_MAX_MSRS) {
		state_reject(s, "too many MSRs");
		h->nmsrs = 0;
		return;
	}
	for (unsigned i = 0; i < h->nmsrs; i++) {
		snprintf(field, sizeof(field), "msr%u", i);
		state_u32(s, field, &h->msr[i].index);
		state_u64(s, "value", &h->msr[i].value);
	}
}

static void event_fields(struct state *s, struct hv_state *h)
{
	uint8_t mp = (uint8_t)h->event.mp;

	state_u8(s, "mp", &mp);
	if (mp > HV_MP_INIT_RECEIVED)
		state_reject(s, "unknown state of a CPU");
	else
		h->event.mp = (enum hv_mp_state)mp;
	state_bool(s, "exception", &h->event.exception);
	state_bool(s, "exception.has_error", &h->event.has_error);
	state_u8(s, "exception.vector", &h->event.vector);
	state_u32(s, "exception.error", &h->event.error);
	state_bool(s, "interrupt", &h->event.interrupt);
	state_u8(s, "interrupt.vector", &h->event.interrupt_vector);
	state_bool(s, "nmi_pending", &h->event.nmi_pending);
	state_bool(s, "nmi_masked", &h->event.nmi_masked);
	state_bool(s, "sti_shadow", &h->event.sti_shadow);
	state_bool(s, "movss_shadow", &h->event.movss_shadow);
	state_u32(s, "sipi_vector", &h->event.sipi_vector);
	array(s, "eoi_pending", h->event.eoi_pending, 4);
}

void cpu_fields(struct state *s, struct hv_state *h)
{
	array(s, "gpr", h->gpr, 16);
	state_u64(s, "rip", &h->rip);
	state_u64(s, "rflags", &h->rflags);
	system_fields(s, h);
	array(s, "dr", h->dr, 4);
	state_u64(s, "dr6", &h->dr6);
	state_u64(s, "dr7", &h->dr7);
	state_bytes(s, "xsave", h->fpu, sizeof(h->fpu));
	msr_fields(s, h);
	state_bytes(s, "apic", h->apic, sizeof(h->apic));
	event_fields(s, h);
}

/* -- CPUID ---------------------------------------------------------------- */

/* What to compare in each register. */
enum what { NOTHING, SAME, BITS };

static const struct {
	uint32_t leaf, subleaf;
	enum what reg[4]; /* EAX, EBX, ECX, EDX */
} leaves[SAVED_CPUIDS] = {
	{ 0, 0, { NOTHING, SAME, SAME, SAME } }, /* the vendor */
	{ 1, 0, { NOTHING, NOTHING, BITS, BITS } },
	{ 7, 0, { NOTHING, BITS, BITS, BITS } },
	{ 7, 1, { BITS, NOTHING, NOTHING, NOTHING } },
	{ 0xd, 0, { BITS, NOTHING, NOTHING, BITS } },
	{ 0xd, 1, { BITS, NOTHING, NOTHING, NOTHING } },
	{ 0x40000001, 0, { BITS, NOTHING, NOTHING, NOTHING } },
	{ 0x80000001, 0, { NOTHING, NOTHING, BITS, BITS } },
	{ 0x80000008, 0, { NOTHING, BITS, NOTHING, NOTHING } },
};

/* CPUID.1:ECX.OSXSAVE and 7:ECX.OSPKE say what the guest has switched on. */
static uint32_t ignored(unsigned i, unsigned reg)
{
	if (leaves[i].leaf == 1 && reg == 2)
		return (uint32_t)BIT(27);
	return leaves[i].leaf == 7 && reg == 2 ? (uint32_t)BIT(4) : 0;
}

void cpuid_fields(struct state *s, struct saved_cpuid *c)
{
	static const char reg[4][4] = { "eax", "ebx", "ecx", "edx" };
	char field[40];

	for (unsigned i = 0; i < SAVED_CPUIDS; i++)
		for (unsigned r = 0; r < 4; r++) {
			snprintf(field, sizeof(field), "%x.%x.%s",
				 leaves[i].leaf, leaves[i].subleaf, reg[r]);
			state_u32(s, field, &c->reg[i][r]);
		}
}

void cpuid_take(struct hv_vcpu *cpu, struct saved_cpuid *c)
{
	struct hv_cpuid v;

	memset(c, 0, sizeof(*c));
	for (unsigned i = 0; i < SAVED_CPUIDS; i++) {
		if (hv_vcpu_cpuid(cpu, leaves[i].leaf, leaves[i].subleaf, &v))
			continue;
		c->reg[i][0] = v.eax;
		c->reg[i][1] = v.ebx;
		c->reg[i][2] = v.ecx;
		c->reg[i][3] = v.edx;
		for (unsigned r = 0; r < 4; r++)
			c->reg[i][r] &= ~ignored(i, r);
	}
}

static const char *feature(uint32_t leaf, unsigned reg, unsigned bit)
{
	static const struct {
		uint32_t leaf;
		unsigned reg, bit;
		const char *name;
	} known[] = {
		{ 1, 2, 0, "SSE3" },
		{ 1, 2, 1, "PCLMULQDQ" },
		{ 1, 2, 9, "SSSE3" },
		{ 1, 2, 12, "FMA" },
		{ 1, 2, 13, "CX16" },
		{ 1, 2, 17, "PCID" },
		{ 1, 2, 19, "SSE4.1" },
		{ 1, 2, 20, "SSE4.2" },
		{ 1, 2, 21, "x2APIC" },
		{ 1, 2, 22, "MOVBE" },
		{ 1, 2, 23, "POPCNT" },
		{ 1, 2, 24, "TSC deadline" },
		{ 1, 2, 25, "AES" },
		{ 1, 2, 26, "XSAVE" },
		{ 1, 2, 28, "AVX" },
		{ 1, 2, 29, "F16C" },
		{ 1, 2, 30, "RDRAND" },
		{ 7, 1, 0, "FSGSBASE" },
		{ 7, 1, 3, "BMI1" },
		{ 7, 1, 5, "AVX2" },
		{ 7, 1, 7, "SMEP" },
		{ 7, 1, 8, "BMI2" },
		{ 7, 1, 9, "ERMS" },
		{ 7, 1, 10, "INVPCID" },
		{ 7, 1, 18, "RDSEED" },
		{ 7, 1, 19, "ADX" },
		{ 7, 1, 20, "SMAP" },
		{ 7, 1, 29, "SHA" },
		{ 7, 1, 16, "AVX-512" },
		{ 7, 2, 2, "UMIP" },
		{ 7, 2, 3, "PKU" },
		{ 0x80000001, 2, 5, "LZCNT" },
		{ 0x80000001, 3, 26, "1 GiB pages" },
		{ 0x80000001, 3, 27, "RDTSCP" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].leaf == leaf && known[i].reg == reg &&
		    known[i].bit == bit)
			return known[i].name;
	return NULL;
}

static int lacking(uint32_t leaf, uint32_t subleaf, unsigned reg,
		   uint32_t missing, struct husk_error *err)
{
	static const char regs[4][4] = { "EAX", "EBX", "ECX", "EDX" };
	unsigned bit = (unsigned)__builtin_ctz(missing);
	const char *name = feature(leaf, reg, bit);

	if (name)
		return error_set(err, -ENOTSUP,
				 "the guest knows a processor with %s, which "
				 "this host or engine has not",
				 name);
	return error_set(err, -ENOTSUP,
			 "the guest knows a processor feature (CPUID %x.%x:%s "
			 "bit %u) that this host or engine has not",
			 leaf, subleaf, regs[reg], bit);
}

int cpuid_compare(const struct saved_cpuid *old, const struct saved_cpuid *now,
		  struct husk_error *err)
{
	for (unsigned i = 0; i < SAVED_CPUIDS; i++)
		for (unsigned r = 0; r < 4; r++) {
			uint32_t a = old->reg[i][r], b = now->reg[i][r];

			if (leaves[i].reg[r] == SAME && a != b)
				return error_set(
					err, -ENOTSUP,
					"the guest knows a processor of "
					"another vendor than this host's");
			if (leaves[i].reg[r] == BITS && a & ~b)
				return lacking(leaves[i].leaf,
					       leaves[i].subleaf, r, a & ~b,
					       err);
		}
	return 0;
}

/* -- disks ---------------------------------------------------------------- */

void disk_fields(struct state *s, struct saved_disk_fields *d)
{
	text(s, "name", d->name, sizeof(d->name));
	text(s, "path", d->path, sizeof(d->path));
	text(s, "format", d->format, sizeof(d->format));
	state_bool(s, "readonly", &d->readonly);
	state_bool(s, "frozen", &d->frozen);
	state_u64(s, "file_size", &d->file_size);
	state_u64(s, "mtime", &d->mtime_ns);
	state_u32(s, "head", &d->head_crc);
}

int disk_look(const char *path, struct saved_disk_fields *d)
{
	enum { HEAD = 64 << 10 };
	uint8_t *head;
	struct stat st = { 0 };
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	head = malloc(HEAD);
	n = head ? pread(fd, head, HEAD, 0) : -1;
	if (!head)
		ret = -ENOMEM;
	else if (n < 0 || fstat(fd, &st))
		ret = -errno;
	close(fd);
	if (!ret) {
		d->head_crc = crc32c(0, head, (size_t)n);
		d->file_size = (uint64_t)st.st_size;
		d->mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000ull +
			      (uint64_t)st.st_mtim.tv_nsec;
	}
	free(head);
	return ret;
}
