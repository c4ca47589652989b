/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pci.h - a PCI Express root bus: functions, BARs, capabilities, MSI-X
 *
 * Config space by CF8/CFC and ECAM.  Functions sit on bus 0; no INTx routing
 * beyond what is asked for (virtio functions use MSI-X).
 */
#ifndef VM_PCI_H
#define VM_PCI_H

#include "vm/device.h"

struct pci_bus;
struct pci_func;

enum { PCI_CONFIG_SIZE = 4096, PCI_MAX_BARS = 6, MSIX_MAX = 64 };

struct pci_func_ops {
	/* BAR access; with dev->lock of the function held. */
	uint64_t (*bar_read)(struct pci_func *f, unsigned bar, uint64_t off,
			     unsigned size);
	void (*bar_write)(struct pci_func *f, unsigned bar, uint64_t off,
			  uint64_t value, unsigned size);
	/* BAR was mapped (base) or unmapped (0).  May be NULL. */
	void (*bar_moved)(struct pci_func *f, unsigned bar, uint64_t base);
	/* Config writes after the bus has applied them.  May be NULL. */
	void (*config_written)(struct pci_func *f, unsigned off, unsigned len);
	/* Reads of device-specific capabilities (virtio's cfg window). NULL ok */
	void (*config_read)(struct pci_func *f, unsigned off, unsigned len);
};

struct pci_bar {
	uint64_t size;
	bool mem64, io;
	struct region region;
};

struct msix_entry {
	uint64_t addr;
	uint32_t data, control;
};

/* Embedded in its device (struct dev inside the owner). */
struct pci_func {
	struct dev *dev;
	const struct pci_func_ops *ops;
	struct pci_bus *bus;
	uint8_t devfn;
	uint8_t config[PCI_CONFIG_SIZE], writable[PCI_CONFIG_SIZE];
	struct pci_bar bar[PCI_MAX_BARS];
	uint8_t cap_end; /* where the next capability goes */
	struct {
		unsigned count; /* 0: no MSI-X */
		uint8_t cap, bar;
		uint32_t table, pba; /* offsets in the BAR */
		struct msix_entry entry[MSIX_MAX];
		uint64_t pending;
	} msix;
	struct irq intx; /* optional wire */
};

/* Host bridge device: claims CF8/CFC and ECAM; its struct pci_bus. */
extern const struct dev_class pci_host_class; /* arg NULL */
struct pci_bus *pci_host_bus(struct dev *host);

void pci_func_init(struct pci_func *f, struct dev *dev,
		   const struct pci_func_ops *ops, uint16_t vendor,
		   uint16_t device, uint32_t class_code, uint8_t revision,
		   uint16_t subvendor, uint16_t subdevice);
/* BARs must be declared before pci_add(). size: a power of two */
void pci_bar(struct pci_func *f, unsigned bar, uint64_t size, bool mem64);
/* Offset of the new capability in config space; its first two bytes are set. */
uint8_t pci_add_cap(struct pci_func *f, uint8_t id, uint8_t len);
int pci_add_msix(struct pci_func *f, unsigned count, uint8_t bar,
		 uint32_t table_off, uint32_t pba_off);
/* Next free slot (devfn = slot << 3), firmware-assigned BARs, on the bus. */
int pci_add(struct pci_bus *bus, struct pci_func *f, struct husk_error *err);
void pci_del(struct pci_func *f);
void pci_func_reset(struct pci_func *f);
void pci_func_state(struct pci_func *f, struct state *s);
int pci_func_check(struct pci_func *f); /* re-maps BARs */

bool msix_enabled(const struct pci_func *f);
void msix_send(struct pci_func *f, unsigned vector); /* masked: pends */
/* For BARs that hold the table and PBA: true when the access was theirs. */
bool msix_access(struct pci_func *f, unsigned bar, uint64_t off, unsigned size,
		 uint64_t *value, bool write);

#endif /* VM_PCI_H */
