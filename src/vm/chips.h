/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chips.h - the classes of the board's chips and what they are created with
 */
#ifndef VM_CHIPS_H
#define VM_CHIPS_H

#include "vm/device.h"

/* i8259.c: both PICs, ports 20 21 a0 a1 4d0 4d1.  arg: NULL. */
extern const struct dev_class i8259_class;
struct irq pic_irq(struct dev *pic, unsigned line); /* 0-15 input */
/* The output to the CPU changed; called with no lock held. */
void pic_on_output(struct dev *pic, void (*f)(void *sink, bool level),
		   void *sink);
bool pic_output(struct dev *pic);
uint8_t pic_acknowledge(struct dev *pic); /* vector, in service */

/* ioapic.c: 24 pins at FEC00000.  arg: struct ioapic_arg */
struct ioapic_arg {
	/* The redirection entry of a pin became this message (addr 0: masked). */
	void (*route)(void *sink, unsigned pin, uint64_t addr, uint32_t data);
	void *sink;
};
extern const struct dev_class ioapic_class;
struct irq ioapic_irq(struct dev *ioapic, unsigned pin);
void ioapic_eoi(struct dev *ioapic, uint8_t vector);

/* arg of the simple ones: const struct irq * (their output) */
extern const struct dev_class i8254_class;    /* PIT, ports 40-43, 61 */
extern const struct dev_class mc146818_class; /* RTC, ports 70 71; IRQ 8 */
struct rtc_arg {
	struct irq irq;
	uint64_t ram_below_4g, ram_above_4g;
};
/* arg of mc146818 */
extern const struct dev_class i8042_class; /* 60 64, 92; arg NULL; reset */
extern const struct dev_class hpet_class;  /* FED00000; arg struct hpet_arg */
struct hpet_arg {
	struct irq irq[24];
	struct irq legacy0, legacy8;
};
extern const struct dev_class acpi_pm_class; /* ports 600-60f, SCI; cf9 reset */
void acpi_pm_power_button(struct dev *pm);
/* Raising it sets the status of a general purpose event, 0 to 15. */
struct irq acpi_pm_gpe(struct dev *pm, unsigned gpe);

/* vmgenid.c: an id in memory that firmware reserves; arg struct vmgenid_arg */
enum { VMGENID_SIZE = 16, VMGENID_ADDR = 0xe4000, VMGENID_GPE = 5 };
struct vmgenid_arg {
	uint8_t id[VMGENID_SIZE];
	struct irq changed; /* raised, never lowered */
};
extern const struct dev_class vmgenid_class;
/* The guest is told.  Any thread. */
void vmgenid_set(struct dev *dev, const uint8_t *id);
void vmgenid_get(struct dev *dev, uint8_t *id);

/* pvpanic.c: the guest's kernel panics; arg NULL */
enum { PVPANIC_PORT = 0x505 };
extern const struct dev_class pvpanic_class;

extern const struct dev_class
	debug_exit_class;		     /* f4: REQUEST_EXIT (code<<1)|1 */
extern const struct dev_class testdev_class; /* pc-testdev */
struct testdev_arg {
	struct irq irq[24];
}; /* wires raised by 2000+n */

/* uart16550.c: 8 ports at base */
struct uart_arg {
	struct irq irq;
	uint16_t port;
	/* Bytes to the outside; any thread; false: wait for uart_ready(). */
	bool (*output)(void *sink, const void *data, size_t len);
	void *sink;
};
extern const struct dev_class uart16550_class;
/*
 * Bytes from the outside; how many were taken: none before the guest listens.
 * After a refusal f of uart_on_room() is told when more fit; it has the
 * device's lock.
 */
size_t uart_input(struct dev *uart, const void *data, size_t len);
void uart_ready(struct dev *uart); /* output() is welcome again */
/* What was sent goes to output() now. */
void uart_flush(struct dev *uart);
void uart_on_room(struct dev *uart, void (*f)(void *sink), void *sink);

/* fw_cfg.c: ports 510-511 and DMA 514; arg NULL */
extern const struct dev_class fw_cfg_class;
int fw_cfg_add(struct dev *fw, uint16_t key, const void *data, size_t len);
int fw_cfg_add_file(struct dev *fw, const char *name, const void *data,
		    size_t len);

enum {
	IOAPIC_BASE = 0xfec00000,
	HPET_BASE = 0xfed00000,
	ACPI_PM_BASE = 0x600, /* PM1a event 0, control 4, timer 8, GPE0 c */
	ACPI_SCI = 9,
	ECAM_BASE = 0xe0000000, /* 256 buses */
	MMIO32_BASE = 0xc0000000,
	MMIO32_END = 0xe0000000,
	RAM_HOLE = 0xc0000000, /* RAM below ends here at the latest */
};

#endif /* VM_CHIPS_H */
