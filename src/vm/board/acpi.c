/* SPDX-License-Identifier: Apache-2.0 */
/*
 * acpi.c - the ACPI tables of the board
 */
#include "vm/board/board.h"

#include <errno.h>
#include <string.h>

#include "vm/chips.h"

enum {
	TABLES = 0xe0000, /* where systems look for the RSDP */
	ROOM = 0x4000,	  /* far more than VM_MAX_CPUS need */
	FACS = 0x40,
	FACS_END = 0x80,
	HEADER = 36,
	LAPIC_BASE = 0xfee00000u,
	RESET_PORT = 0xcf9,
	RESET_VALUE = 6,
	SLP_TYP_S5 = 5, /* what acpi_pm.c takes for off */
	GAS_MEMORY = 0,
	GAS_IO = 1,
};

/* FADT flags */
enum {
	WBINVD = 1 << 0,
	PROC_C1 = 1 << 2,
	SLP_BUTTON = 1 << 5, /* set: no fixed sleep button */
	TMR_VAL_EXT = 1 << 8,
	RESET_REG_SUP = 1 << 10,
};

enum { ARCH_LEGACY = 1 << 0, ARCH_8042 = 1 << 1 };

/* AML opcodes */
enum {
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_STRING = 0x0d,
	OP_DWORD = 0x0c,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_METHOD = 0x14,
	OP_DUAL = 0x2e, /* a name of two parts */
	OP_NOTIFY = 0x86,
	OP_PACKAGE = 0x12,
	OP_EXT = 0x5b,
	OP_DEVICE = 0x82,
};

/* Everything is appended to one image of the area at TABLES. */
struct image {
	uint8_t b[ROOM];
	size_t len;
	bool overflow;
};

static void put(struct image *m, uint64_t v, unsigned size)
{
	if (m->len + size > ROOM) {
		m->overflow = true;
		return;
	}
	while (size--) {
		m->b[m->len++] = v;
		v >>= 8;
	}
}

static void put_text(struct image *m, const char *s)
{
	while (*s)
		put(m, (uint8_t)*s++, 1);
}

static void put_zeroes(struct image *m, size_t n)
{
	while (n--)
		put(m, 0, 1);
}

static void set(struct image *m, size_t at, uint64_t v, unsigned size)
{
	/* What lies outside was not appended either: overflow is set. */
	for (unsigned i = 0; i < size; i++, v >>= 8) {
		if (at + i < ROOM)
			m->b[at + i] = v;
	}
}

static void set_gas(struct image *m, size_t at, unsigned space, unsigned bits,
		    unsigned access, uint64_t addr)
{
	set(m, at, space, 1);
	set(m, at + 1, bits, 1);
	set(m, at + 2, 0, 1);
	set(m, at + 3, access, 1);
	set(m, at + 4, addr, 8);
}

static uint8_t checksum(const struct image *m, size_t at, size_t len)
{
	uint8_t sum = 0;

	for (size_t i = at; i < at + len && i < ROOM; i++)
		sum += m->b[i];
	return -sum;
}

/* -- tables --------------------------------------------------------------- */

static size_t table_begin(struct image *m, const char *sig, unsigned rev)
{
	size_t at;

	put_zeroes(m, -m->len & 15);
	at = m->len;
	put_text(m, sig);
	put(m, 0, 4); /* length */
	put(m, rev, 1);
	put(m, 0, 1); /* checksum */
	put_text(m, "HUSK  ");
	put_text(m, "HUSKPC  ");
	put(m, 1, 4);
	put_text(m, "HUSK");
	put(m, 1, 4);
	return at;
}

static void table_end(struct image *m, size_t at)
{
	set(m, at + 4, m->len - at, 4);
	set(m, at + 9, checksum(m, at, m->len - at), 1);
}

/* -- AML ------------------------------------------------------------------ */

/* A package length is always written in three bytes, so it can be filled in
 * afterwards. */
static size_t pkg_begin(struct image *m)
{
	put(m, 0, 3);
	return m->len - 3;
}

static void pkg_end(struct image *m, size_t at)
{
	size_t len = m->len - at;

	set(m, at, 0x80 | (len & 15), 1);
	set(m, at + 1, len >> 4, 2);
}

static size_t device_begin(struct image *m, const char *name)
{
	size_t at;

	put(m, OP_EXT, 1);
	put(m, OP_DEVICE, 1);
	at = pkg_begin(m);
	put_text(m, name);
	return at;
}

static void name(struct image *m, const char *s)
{
	put(m, OP_NAME, 1);
	put_text(m, s);
}

static void name_byte(struct image *m, const char *s, uint8_t v)
{
	name(m, s);
	put(m, OP_BYTE, 1);
	put(m, v, 1);
}

/* An id of "PNP" and four hexadecimal digits, compressed. */
static void name_pnp(struct image *m, const char *s, uint16_t id)
{
	name(m, s);
	put(m, OP_DWORD, 1);
	put(m, 0xd041, 2);
	put(m, id >> 8, 1);
	put(m, id & 0xff, 1);
}

struct crs {
	size_t pkg, start;
};

static struct crs crs_begin(struct image *m)
{
	struct crs c;

	name(m, "_CRS");
	put(m, OP_BUFFER, 1);
	c.pkg = pkg_begin(m);
	put(m, OP_WORD, 1);
	put(m, 0, 2);
	c.start = m->len;
	return c;
}

static void crs_end(struct image *m, struct crs c)
{
	put(m, 0x0079, 2); /* end tag, no checksum */
	set(m, c.start - 2, m->len - c.start, 2);
	pkg_end(m, c.pkg);
}

static void res_io(struct image *m, uint16_t port, uint8_t len)
{
	put(m, 0x47, 1);
	put(m, 1, 1); /* 16 bits decoded */
	put(m, port, 2);
	put(m, port, 2);
	put(m, 1, 1);
	put(m, len, 1);
}

static void res_irq(struct image *m, unsigned irq)
{
	put(m, 0x22, 1);
	put(m, 1u << irq, 2);
}

static void res_mem(struct image *m, uint32_t base, uint32_t len)
{
	put(m, 0x86, 1);
	put(m, 9, 2);
	put(m, 1, 1); /* writable */
	put(m, base, 4);
	put(m, len, 4);
}

/* What a bridge passes on: size is 2 (word) or 4 (dword). */
static void res_window(struct image *m, unsigned size, unsigned type,
		       unsigned flags, uint32_t min, uint32_t max)
{
	put(m, size == 2 ? 0x88 : 0x87, 1);
	put(m, 3 + 5 * size, 2);
	put(m, type, 1);
	put(m, 0x0c, 1); /* both ends fixed */
	put(m, flags, 1);
	put(m, 0, size);
	put(m, min, size);
	put(m, max, size);
	put(m, 0, size);
	put(m, max - min + 1, size);
}

static void pci_host(struct image *m)
{
	enum { MEMORY, IO, BUS };
	size_t dev = device_begin(m, "PCI0");
	struct crs c;

	name_pnp(m, "_HID", 0x0a08);
	name_pnp(m, "_CID", 0x0a03);
	name_byte(m, "_UID", 0);
	name_byte(m, "_BBN", 0);
	name_byte(m, "_SEG", 0);
	c = crs_begin(m);
	res_window(m, 2, BUS, 0, 0, 255);
	res_io(m, 0xcf8, 8);
	res_window(m, 2, IO, 3, 0, 0xcf7);
	res_window(m, 2, IO, 3, 0xd00, 0xffff);
	res_window(m, 4, MEMORY, 1, MMIO32_BASE, (uint32_t)MMIO32_END - 1);
	crs_end(m, c);
	pkg_end(m, dev);
}

static void motherboard(struct image *m)
{
	size_t dev = device_begin(m, "MBRD");
	struct crs c;

	/* Linux uses the ECAM only if something reserves it. */
	name_pnp(m, "_HID", 0x0c02);
	name_byte(m, "_UID", 0);
	c = crs_begin(m);
	res_mem(m, ECAM_BASE, 256u << 20);
	crs_end(m, c);
	pkg_end(m, dev);
}

static void isa_device(struct image *m, const char *s, uint16_t id,
		       uint16_t port, unsigned nports, unsigned irq)
{
	size_t dev = device_begin(m, s);
	struct crs c;

	name_pnp(m, "_HID", id);
	name_byte(m, "_UID", 0);
	c = crs_begin(m);
	res_io(m, port, nports);
	res_irq(m, irq);
	crs_end(m, c);
	pkg_end(m, dev);
}

static void name_string(struct image *m, const char *s, const char *value)
{
	name(m, s);
	put(m, OP_STRING, 1);
	put_text(m, value);
	put(m, 0, 1);
}

/* Its _CID is what systems look for. */
static void generation_id(struct image *m)
{
	size_t dev = device_begin(m, "VGEN"), pkg;

	name_string(m, "_HID", "HUSKVGID");
	name_string(m, "_CID", "VM_Gen_Counter");
	name_string(m, "_DDN", "VM_Gen_Counter");
	name(m, "ADDR");
	put(m, OP_PACKAGE, 1);
	pkg = pkg_begin(m);
	put(m, 2, 1);
	put(m, OP_DWORD, 1);
	put(m, VMGENID_ADDR, 4);
	put(m, OP_DWORD, 1);
	put(m, 0, 4);
	pkg_end(m, pkg);
	pkg_end(m, dev);
}

static void panic_port(struct image *m)
{
	size_t dev = device_begin(m, "PEVT");
	struct crs c;

	name_string(m, "_HID", "QEMU0001");
	c = crs_begin(m);
	res_io(m, PVPANIC_PORT, 1);
	crs_end(m, c);
	name_byte(m, "_STA", 0xf);
	pkg_end(m, dev);
}

/* What general purpose events, all edges, are about. */
static void events(struct image *m)
{
	size_t scope, method;

	put(m, OP_SCOPE, 1);
	scope = pkg_begin(m);
	put_text(m, "\\_GPE");
	put(m, OP_METHOD, 1);
	method = pkg_begin(m);
	put_text(m, "_E05"); /* VMGENID_GPE */
	put(m, 0, 1);	     /* no arguments */
	put(m, OP_NOTIFY, 1);
	put(m, '\\', 1);
	put(m, OP_DUAL, 1);
	put_text(m, "_SB_VGEN");
	put(m, OP_BYTE, 1);
	put(m, 0x80, 1);
	pkg_end(m, method);
	pkg_end(m, scope);
}

static void processor(struct image *m, unsigned i)
{
	static const char hex[] = "0123456789ABCDEF";
	char s[5] = { 'C', 'P', hex[i >> 4 & 15], hex[i & 15], 0 };
	size_t dev = device_begin(m, s);

	name_string(m, "_HID", "ACPI0007");
	name_byte(m, "_UID", i);
	pkg_end(m, dev);
}

static size_t dsdt(struct image *m, unsigned ncpus)
{
	size_t at = table_begin(m, "DSDT", 2), pkg;

	name(m, "_S5_");
	put(m, OP_PACKAGE, 1);
	pkg = pkg_begin(m);
	put(m, 4, 1);
	for (unsigned i = 0; i < 4; i++) {
		put(m, OP_BYTE, 1);
		put(m, i < 2 ? SLP_TYP_S5 : 0, 1);
	}
	pkg_end(m, pkg);

	put(m, OP_SCOPE, 1);
	pkg = pkg_begin(m);
	put_text(m, "\\_SB_");
	pci_host(m);
	motherboard(m);
	isa_device(m, "COM1", 0x0501, 0x3f8, 8, 4);
	isa_device(m, "RTC_", 0x0b00, 0x70, 2, 8);
	generation_id(m);
	panic_port(m);
	for (unsigned i = 0; i < ncpus; i++)
		processor(m, i);
	pkg_end(m, pkg);
	events(m);
	table_end(m, at);
	return at;
}

/* -- the others ----------------------------------------------------------- */

static size_t fadt(struct image *m, size_t dsdt_at)
{
	size_t at = table_begin(m, "FACP", 6);

	put_zeroes(m, 276 - HEADER);
	set(m, at + 36, TABLES + FACS, 4);
	set(m, at + 40, TABLES + dsdt_at, 4);
	set(m, at + 46, ACPI_SCI, 2);
	/* No SMI_CMD (48): ACPI mode is always on. */
	set(m, at + 56, ACPI_PM_BASE, 4);
	set(m, at + 64, ACPI_PM_BASE + 4, 4);
	set(m, at + 76, ACPI_PM_BASE + 8, 4);
	set(m, at + 80, ACPI_PM_BASE + 12, 4);
	set(m, at + 88, 4, 1);
	set(m, at + 89, 2, 1);
	set(m, at + 91, 4, 1);
	set(m, at + 92, 4, 1);
	set(m, at + 96, 0xffff, 2); /* neither C2 */
	set(m, at + 98, 0xffff, 2); /* nor C3 */
	set(m, at + 109, ARCH_LEGACY | ARCH_8042, 2);
	set(m, at + 112,
	    WBINVD | PROC_C1 | SLP_BUTTON | TMR_VAL_EXT | RESET_REG_SUP, 4);
	set_gas(m, at + 116, GAS_IO, 8, 1, RESET_PORT);
	set(m, at + 128, RESET_VALUE, 1);
	/* X_FIRMWARE_CTRL (132) stays 0: only one of the two may be used. */
	set(m, at + 140, TABLES + dsdt_at, 8);
	set_gas(m, at + 148, GAS_IO, 32, 2, ACPI_PM_BASE);
	set_gas(m, at + 172, GAS_IO, 16, 2, ACPI_PM_BASE + 4);
	set_gas(m, at + 208, GAS_IO, 32, 3, ACPI_PM_BASE + 8);
	set_gas(m, at + 220, GAS_IO, 32, 1, ACPI_PM_BASE + 12);
	table_end(m, at);
	return at;
}

static void override(struct image *m, unsigned irq, unsigned gsi,
		     unsigned flags)
{
	put(m, 0x0a02, 2);
	put(m, 0, 1);
	put(m, irq, 1);
	put(m, gsi, 4);
	put(m, flags, 2);
}

static size_t madt(struct image *m, unsigned ncpus)
{
	size_t at = table_begin(m, "APIC", 4);

	put(m, LAPIC_BASE, 4);
	put(m, 1, 4); /* there are 8259s as well */
	for (unsigned i = 0; i < ncpus; i++) {
		put(m, 0x0800, 2);
		put(m, i, 1);
		put(m, i, 1);
		put(m, 1, 4);
	}
	put(m, 0x0c01, 2);
	put(m, 0, 2);
	put(m, IOAPIC_BASE, 4);
	put(m, 0, 4);
	override(m, 0, 2, 0);
	override(m, ACPI_SCI, ACPI_SCI, 0x0d); /* level, active high */
	put(m, 0x0604, 2);		       /* NMI: every CPU, LINT1 */
	put(m, 0xff, 1);
	put(m, 0, 2);
	put(m, 1, 1);
	table_end(m, at);
	return at;
}

static size_t hpet(struct image *m)
{
	size_t at = table_begin(m, "HPET", 1);

	put(m, 0x8086a201, 4);
	put_zeroes(m, 16);
	set_gas(m, at + 40, GAS_MEMORY, 64, 0, HPET_BASE);
	table_end(m, at);
	return at;
}

static size_t mcfg(struct image *m)
{
	size_t at = table_begin(m, "MCFG", 1);

	put_zeroes(m, 8);
	put(m, ECAM_BASE, 8);
	put(m, 0, 2);
	put(m, 0, 1);
	put(m, 255, 1);
	put(m, 0, 4);
	table_end(m, at);
	return at;
}

static size_t root(struct image *m, const size_t *table, unsigned n, bool wide)
{
	size_t at = table_begin(m, wide ? "XSDT" : "RSDT", 1);

	for (unsigned i = 0; i < n; i++)
		put(m, TABLES + table[i], wide ? 8 : 4);
	table_end(m, at);
	return at;
}

/* The id has a page of its own behind the tables. */
_Static_assert(VMGENID_ADDR >= TABLES + ROOM, "tables and generation ID");

int acpi_build(struct guest_mem *mem, unsigned ncpus, uint64_t *rsdp)
{
	struct image m = { .len = 0 };
	size_t table[4], rsdt, xsdt;

	if (!ncpus || ncpus > VM_MAX_CPUS)
		return -EINVAL;

	/* The RSDP is filled in last; the FACS has no checksum. */
	put_zeroes(&m, FACS);
	put_text(&m, "FACS");
	put(&m, 64, 4);
	put_zeroes(&m, FACS_END - m.len);
	set(&m, FACS + 32, 2, 1);

	table[0] = fadt(&m, dsdt(&m, ncpus));
	table[1] = madt(&m, ncpus);
	table[2] = hpet(&m);
	table[3] = mcfg(&m);
	rsdt = root(&m, table, 4, false);
	xsdt = root(&m, table, 4, true);

	memcpy(m.b, "RSD PTR ", 8);
	memcpy(m.b + 9, "HUSK  ", 6);
	set(&m, 15, 2, 1);
	set(&m, 16, TABLES + rsdt, 4);
	set(&m, 20, 36, 4);
	set(&m, 24, TABLES + xsdt, 8);
	set(&m, 8, checksum(&m, 0, 20), 1);
	set(&m, 32, checksum(&m, 0, 36), 1);
	if (m.overflow)
		return -ENOSPC;
	*rsdp = TABLES;
	return mem_copy_in(mem, TABLES, m.b, m.len);
}
