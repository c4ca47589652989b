/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pci.c - the PCI Express root bus and its host bridge, BARs and MSI-X
 *
 * The lock of the host bridge guards the bus and the mapping of BARs.  The
 * lock of a function guards its config space.  Order: bridge, function; and
 * bus_del() is called with the bridge's only, because it waits for vCPUs
 * that may want the function's.
 */
#include "vm/pci.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "vm/chips.h"

enum {
	COMMAND = 4,
	STATUS = 6,
	BAR0 = 0x10,
	CAP_PTR = 0x34,
	CMD_IO = 1,
	CMD_MEM = 2,
	STATUS_CAPS = 0x10,
	CAP_MSIX = 0x11,
	SLOTS = 32,
};

/* A region knows its device only; this one knows the BAR too. */
struct window {
	struct dev dev;
	struct pci_func *f;
	unsigned bar;
};

struct pci_bus {
	struct dev *host;
	struct pci_func *func[SLOTS];
	struct window window[SLOTS][PCI_MAX_BARS];
};

struct pci_host {
	struct dev dev;
	struct pci_bus bus;
	struct pci_func self;
	struct region address, data, ecam;
	uint32_t select;
};

static uint64_t get(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static void put(uint8_t *p, uint64_t v, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		p[i] = v >> (8 * i);
}

/* -- BARs ----------------------------------------------------------------- */

static uint64_t window_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct window *w = container_of(dev, struct window, dev);
	struct pci_func *f = w->f;
	uint64_t v = ~0ull;

	pthread_mutex_lock(&f->dev->lock);
	if (!msix_access(f, w->bar, off, size, &v, false) && f->ops &&
	    f->ops->bar_read)
		v = f->ops->bar_read(f, w->bar, off, size);
	pthread_mutex_unlock(&f->dev->lock);
	return v;
}

static void window_write(struct dev *dev, uint64_t off, uint64_t v,
			 unsigned size)
{
	struct window *w = container_of(dev, struct window, dev);
	struct pci_func *f = w->f;

	pthread_mutex_lock(&f->dev->lock);
	if (!msix_access(f, w->bar, off, size, &v, true) && f->ops &&
	    f->ops->bar_write)
		f->ops->bar_write(f, w->bar, off, v, size);
	pthread_mutex_unlock(&f->dev->lock);
}

static const struct region_ops window_ops = {
	.read = window_read,
	.write = window_write,
};

/* Where the guest wants the BAR; 0: nowhere. */
static uint64_t bar_target(const struct pci_func *f, unsigned n)
{
	const struct pci_bar *b = &f->bar[n];
	const uint8_t *p = &f->config[BAR0 + 4 * n];
	uint64_t base;

	if (!b->size || !(f->config[COMMAND] & (b->io ? CMD_IO : CMD_MEM)))
		return 0;
	base = get(p, b->mem64 ? 8 : 4) & ~(b->size - 1);
	if (b->io)
		return base > 0xffff ? 0 : base;
	/* All ones is a question for the size, not an address. */
	if (base + b->size < base || base + b->size > BIT(52) ||
	    (!b->mem64 && base + b->size > 0xfffff000))
		return 0;
	return base & ~0xfull;
}

/* With the bridge's lock and not the function's. */
static void remap(struct pci_func *f, bool off)
{
	const struct dev_env *env = f->bus->host->env;
	uint64_t want;
	unsigned n;

	for (n = 0; n < PCI_MAX_BARS; n++) {
		struct pci_bar *b = &f->bar[n];

		want = off ? 0 : bar_target(f, n);
		if (!b->region.added || b->region.base == want)
			continue;
		bus_del(b->io ? env->pio : env->mmio, &b->region);
		if (f->ops && f->ops->bar_moved)
			f->ops->bar_moved(f, n, 0);
	}
	for (n = 0; n < PCI_MAX_BARS && !off; n++) {
		struct pci_bar *b = &f->bar[n];

		want = bar_target(f, n);
		if (!want || b->region.added)
			continue;
		if (bus_add(b->io ? env->pio : env->mmio, &b->region, want)) {
			dev_log(f->dev, "BAR %u: no place at %llx", n,
				(unsigned long long)want);
			continue;
		}
		if (f->ops && f->ops->bar_moved)
			f->ops->bar_moved(f, n, want);
	}
}

/* -- config space --------------------------------------------------------- */

static uint64_t config_read(struct pci_bus *bus, unsigned bdf, unsigned off,
			    unsigned size)
{
	struct pci_func *f = NULL;
	uint64_t v;

	if (bdf < 256 && !(bdf & 7))
		f = bus->func[bdf >> 3];
	if (!f || off + size > PCI_CONFIG_SIZE)
		return ~0ull;
	pthread_mutex_lock(&f->dev->lock);
	if (f->ops && f->ops->config_read)
		f->ops->config_read(f, off, size);
	v = get(&f->config[off], size);
	pthread_mutex_unlock(&f->dev->lock);
	return v;
}

static void msix_flush(struct pci_func *f);

static void config_write(struct pci_bus *bus, unsigned bdf, unsigned off,
			 unsigned size, uint64_t v)
{
	struct pci_func *f = NULL;
	uint8_t byte, w;

	if (bdf < 256 && !(bdf & 7))
		f = bus->func[bdf >> 3];
	if (!f || off + size > PCI_CONFIG_SIZE)
		return;
	pthread_mutex_lock(&f->dev->lock);
	for (unsigned i = 0; i < size; i++) {
		byte = v >> (8 * i);
		w = f->writable[off + i];
		f->config[off + i] = (f->config[off + i] & ~w) | (byte & w);
	}
	msix_flush(f);
	if (f->ops && f->ops->config_written)
		f->ops->config_written(f, off, size);
	pthread_mutex_unlock(&f->dev->lock);
	if (off < BAR0 + 4 * PCI_MAX_BARS)
		remap(f, false);
}

static struct pci_host *host_of(struct dev *dev)
{
	return container_of(dev, struct pci_host, dev);
}

static uint64_t address_read(struct dev *dev, uint64_t off, unsigned size)
{
	return host_of(dev)->select >> (8 * off);
}

static void address_write(struct dev *dev, uint64_t off, uint64_t v,
			  unsigned size)
{
	/* Smaller ones are for other registers that share the ports. */
	if (off == 0 && size == 4)
		host_of(dev)->select = v;
}

static uint64_t data_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct pci_host *h = host_of(dev);

	if (!(h->select & BIT(31)))
		return ~0ull;
	return config_read(&h->bus, (h->select >> 8) & 0xffff,
			   (h->select & 0xfc) + off, size);
}

static void data_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct pci_host *h = host_of(dev);

	if (h->select & BIT(31))
		config_write(&h->bus, (h->select >> 8) & 0xffff,
			     (h->select & 0xfc) + off, size, v);
}

static uint64_t ecam_read(struct dev *dev, uint64_t off, unsigned size)
{
	return config_read(&host_of(dev)->bus, off >> 12, off & 0xfff, size);
}

static void ecam_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	config_write(&host_of(dev)->bus, off >> 12, off & 0xfff, size, v);
}

static const struct region_ops address_ops = { address_read, address_write, 1,
					       4 };
static const struct region_ops data_ops = { data_read, data_write, 1, 4 };
static const struct region_ops ecam_ops = { ecam_read, ecam_write, 1, 4 };

/* -- functions ------------------------------------------------------------ */

void pci_func_init(struct pci_func *f, struct dev *dev,
		   const struct pci_func_ops *ops, uint16_t vendor,
		   uint16_t device, uint32_t class_code, uint8_t revision,
		   uint16_t subvendor, uint16_t subdevice)
{
	memset(f, 0, sizeof(*f));
	f->dev = dev;
	f->ops = ops;
	put(&f->config[0], vendor, 2);
	put(&f->config[2], device, 2);
	f->config[8] = revision;
	put(&f->config[9], class_code, 3);
	put(&f->config[0x2c], subvendor, 2);
	put(&f->config[0x2e], subdevice, 2);
	/* I/O, memory, master, INTx off; cache line; interrupt line. */
	f->writable[COMMAND] = 7;
	f->writable[COMMAND + 1] = 4;
	f->writable[0x0c] = 0xff;
	f->writable[0x3c] = 0xff;
	f->cap_end = 0x40;
}

void pci_bar(struct pci_func *f, unsigned bar, uint64_t size, bool mem64)
{
	struct pci_bar *b;

	if (bar >= PCI_MAX_BARS || (mem64 && bar == PCI_MAX_BARS - 1) ||
	    (size & (size - 1)))
		return;
	b = &f->bar[bar];
	b->size = MAX(size, 16ull);
	b->mem64 = mem64;
	put(&f->writable[BAR0 + 4 * bar], ~(b->size - 1), mem64 ? 8 : 4);
	f->config[BAR0 + 4 * bar] = mem64 ? 4 : 0;
}

uint8_t pci_add_cap(struct pci_func *f, uint8_t id, uint8_t len)
{
	unsigned off = ALIGN_UP(f->cap_end, 4);

	if (off < 0x40 || off + len > 0x100)
		return 0;
	f->config[off] = id;
	f->config[off + 1] = f->config[CAP_PTR];
	f->config[CAP_PTR] = off;
	f->config[STATUS] |= STATUS_CAPS;
	/* 256 becomes 0, which says full. */
	f->cap_end = ALIGN_UP(off + len, 4);
	return off;
}

int pci_add_msix(struct pci_func *f, unsigned count, uint8_t bar,
		 uint32_t table_off, uint32_t pba_off)
{
	uint8_t *c;

	if (!count || count > MSIX_MAX || bar >= PCI_MAX_BARS ||
	    (table_off | pba_off) & 7)
		return -EINVAL;
	f->msix.cap = pci_add_cap(f, CAP_MSIX, 12);
	if (!f->msix.cap)
		return -ENOSPC;
	f->msix.count = count;
	f->msix.bar = bar;
	f->msix.table = table_off;
	f->msix.pba = pba_off;
	c = &f->config[f->msix.cap];
	put(c + 2, count - 1, 2);
	put(c + 4, table_off | bar, 4);
	put(c + 8, pba_off | bar, 4);
	f->writable[f->msix.cap + 3] = 0xc0;
	for (unsigned i = 0; i < count; i++)
		f->msix.entry[i].control = 1;
	return 0;
}

static int place_bars(struct pci_bus *bus, struct pci_func *f)
{
	uint64_t at, end;
	unsigned n, s, m;
	bool moved;

	for (n = 0; n < PCI_MAX_BARS; n++) {
		struct pci_bar *b = &f->bar[n];

		if (!b->size || b->io)
			continue;
		at = ALIGN_UP((uint64_t)MMIO32_BASE, MAX(b->size, 4096ull));
		do {
			moved = false;
			for (s = 0; s < SLOTS * PCI_MAX_BARS; s++) {
				struct pci_func *o = bus->func[s / 6];
				uint64_t base;

				m = s % 6;
				if (!o || !o->bar[m].size || o->bar[m].io ||
				    (o == f && m >= n))
					continue;
				base = get(&o->config[BAR0 + 4 * m],
					   o->bar[m].mem64 ? 8 : 4) &
				       ~0xfull;
				end = base + MAX(o->bar[m].size, 4096ull);
				if (at >= end || at + b->size <= base)
					continue;
				at = ALIGN_UP(end, MAX(b->size, 4096ull));
				moved = true;
			}
		} while (moved);
		if (at + b->size > MMIO32_END)
			return -ENOSPC;
		put(&f->config[BAR0 + 4 * n], at | (b->mem64 ? 4 : 0),
		    b->mem64 ? 8 : 4);
	}
	return 0;
}

static void set_windows(struct pci_bus *bus, struct pci_func *f, unsigned slot)
{
	for (unsigned n = 0; n < PCI_MAX_BARS; n++) {
		struct window *w = &bus->window[slot][n];

		w->f = f;
		w->bar = n;
		f->bar[n].region = (struct region){
			.name = f->dev->id,
			.ops = &window_ops,
			.dev = &w->dev,
			.size = f->bar[n].size,
		};
	}
}

int pci_add(struct pci_bus *bus, struct pci_func *f, struct husk_error *err)
{
	unsigned slot;
	int ret = 0;

	pthread_mutex_lock(&bus->host->lock);
	for (slot = 0; slot < SLOTS && bus->func[slot]; slot++)
		;
	if (slot == SLOTS) {
		ret = error_set(err, -ENOSPC, "%s: no free PCI slot",
				f->dev->id);
	} else {
		f->bus = bus;
		f->devfn = slot << 3;
		bus->func[slot] = f;
		set_windows(bus, f, slot);
		ret = place_bars(bus, f);
		if (ret) {
			bus->func[slot] = NULL;
			f->bus = NULL;
			error_set(err, ret, "%s: no room for its BARs",
				  f->dev->id);
		}
	}
	pthread_mutex_unlock(&bus->host->lock);
	return ret;
}

void pci_del(struct pci_func *f)
{
	struct pci_bus *bus = f->bus;

	if (!bus)
		return;
	pthread_mutex_lock(&bus->host->lock);
	remap(f, true);
	bus->func[f->devfn >> 3] = NULL;
	f->bus = NULL;
	pthread_mutex_unlock(&bus->host->lock);
}

/* BARs keep their addresses, as if firmware had run again. */
void pci_func_reset(struct pci_func *f)
{
	f->config[COMMAND] &= ~7;
	f->config[COMMAND + 1] &= ~4;
	f->config[0x3c] = 0;
	f->msix.pending = 0;
	for (unsigned i = 0; i < f->msix.count; i++)
		f->msix.entry[i] = (struct msix_entry){ .control = 1 };
	if (f->msix.count)
		f->config[f->msix.cap + 3] &= ~0xc0;
	if (f->bus)
		remap(f, false);
}

void pci_func_state(struct pci_func *f, struct state *s)
{
	uint8_t c[PCI_CONFIG_SIZE];

	memcpy(c, f->config, sizeof(c));
	state_bytes(s, "config", c, sizeof(c));
	/* What the guest could not have written comes from the device. */
	for (unsigned i = 0; i < sizeof(c) && state_loading(s); i++)
		f->config[i] = (c[i] & f->writable[i]) |
			       (f->config[i] & ~f->writable[i]);
	for (unsigned i = 0; i < f->msix.count; i++) {
		state_u64(s, "msix_addr", &f->msix.entry[i].addr);
		state_u32(s, "msix_data", &f->msix.entry[i].data);
		state_u32(s, "msix_control", &f->msix.entry[i].control);
	}
	state_u64(s, "msix_pending", &f->msix.pending);
}

int pci_func_check(struct pci_func *f)
{
	if (f->msix.count < 64 && f->msix.pending >> f->msix.count)
		return -EINVAL;
	for (unsigned i = 0; i < f->msix.count; i++)
		if (f->msix.entry[i].control > 1)
			return -EINVAL;
	if (f->bus)
		remap(f, false);
	return 0;
}

/* -- MSI-X ---------------------------------------------------------------- */

bool msix_enabled(const struct pci_func *f)
{
	return f->msix.count && (f->config[f->msix.cap + 3] & 0x80);
}

static bool msix_masked(const struct pci_func *f, unsigned n)
{
	return (f->config[f->msix.cap + 3] & 0x40) ||
	       (f->msix.entry[n].control & 1);
}

void msix_send(struct pci_func *f, unsigned n)
{
	const struct msi *msi = &f->dev->env->msi;
	struct msix_entry e;

	pthread_mutex_lock(&f->dev->lock);
	if (n >= f->msix.count || !msix_enabled(f)) {
		pthread_mutex_unlock(&f->dev->lock);
		return;
	}
	if (msix_masked(f, n)) {
		f->msix.pending |= BIT(n);
		pthread_mutex_unlock(&f->dev->lock);
		return;
	}
	f->msix.pending &= ~BIT(n);
	e = f->msix.entry[n];
	pthread_mutex_unlock(&f->dev->lock);
	if (msi->send)
		msi->send(msi->sink, e.addr, e.data);
}

static void msix_flush(struct pci_func *f)
{
	if (!f->msix.pending || !msix_enabled(f))
		return;
	for (unsigned n = 0; n < f->msix.count; n++)
		if ((f->msix.pending & BIT(n)) && !msix_masked(f, n))
			msix_send(f, n);
}

static void table_write(struct pci_func *f, uint64_t off, uint32_t v)
{
	struct msix_entry *e = &f->msix.entry[off / 16];

	switch (off % 16) {
	case 0: e->addr = (e->addr & ~0xffffffffull) | (v & ~3u); break;
	case 4: e->addr = (e->addr & 0xffffffff) | (uint64_t)v << 32; break;
	case 8: e->data = v; break;
	default:
		e->control = v & 1;
		msix_flush(f);
		break;
	}
}

static uint32_t table_read(const struct pci_func *f, uint64_t off)
{
	const struct msix_entry *e = &f->msix.entry[off / 16];

	switch (off % 16) {
	case 0: return e->addr;
	case 4: return e->addr >> 32;
	case 8: return e->data;
	default: return e->control;
	}
}

bool msix_access(struct pci_func *f, unsigned bar, uint64_t off, unsigned size,
		 uint64_t *value, bool write)
{
	uint64_t in_table = off - f->msix.table, in_pba = off - f->msix.pba;
	unsigned pba_size = ALIGN_UP(f->msix.count, 64) / 8;

	if (!f->msix.count || bar != f->msix.bar)
		return false;
	if (in_table < f->msix.count * 16) {
		/* Only whole, aligned double and quad words count. */
		if ((size != 4 && size != 8) || (in_table & (size - 1))) {
			if (!write)
				*value = 0;
		} else if (write) {
			table_write(f, in_table, *value);
			if (size == 8)
				table_write(f, in_table + 4, *value >> 32);
		} else {
			*value = table_read(f, in_table);
			if (size == 8)
				*value |= (uint64_t)table_read(f, in_table + 4)
					  << 32;
		}
		return true;
	}
	if (in_pba < pba_size) {
		if (!write)
			*value = f->msix.pending >> (8 * (in_pba & 7));
		return true;
	}
	return false;
}

/* -- the host bridge ------------------------------------------------------ */

struct pci_bus *pci_host_bus(struct dev *dev)
{
	return &host_of(dev)->bus;
}

static void host_finish(struct dev *dev)
{
	struct pci_host *h = host_of(dev);

	bus_del(dev->env->pio, &h->address);
	bus_del(dev->env->pio, &h->data);
	bus_del(dev->env->mmio, &h->ecam);
	for (unsigned i = 0; i < SLOTS * PCI_MAX_BARS; i++)
		pthread_mutex_destroy(&h->bus.window[i / 6][i % 6].dev.lock);
}

static int claim(struct dev *dev, struct region *r, const char *name,
		 const struct region_ops *ops, struct bus *bus, uint64_t base,
		 uint64_t size)
{
	*r = (struct region){
		.name = name, .ops = ops, .dev = dev, .size = size
	};
	return bus_add(bus, r, base);
}

static int host_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct pci_host *h = host_of(dev);
	const struct dev_env *env = dev->env;

	h->bus.host = dev;
	for (unsigned i = 0; i < SLOTS * PCI_MAX_BARS; i++)
		pthread_mutex_init(&h->bus.window[i / 6][i % 6].dev.lock, NULL);
	if (claim(dev, &h->address, "pci-addr", &address_ops, env->pio, 0xcf8,
		  4) ||
	    claim(dev, &h->data, "pci-data", &data_ops, env->pio, 0xcfc, 4) ||
	    claim(dev, &h->ecam, "ecam", &ecam_ops, env->mmio, ECAM_BASE,
		  256ull << 20)) {
		host_finish(dev);
		return error_set(err, -EBUSY, "%s: addresses taken", dev->id);
	}
	pci_func_init(&h->self, dev, NULL, 0x8086, 0x29c0, 0x060000, 0, 0, 0);
	put(&h->self.config[0x60], ECAM_BASE | 1, 4);
	return pci_add(&h->bus, &h->self, err);
}

static void host_reset(struct dev *dev)
{
	host_of(dev)->select = 0;
	pci_func_reset(&host_of(dev)->self);
}

static void host_state(struct dev *dev, struct state *s)
{
	state_u32(s, "select", &host_of(dev)->select);
	pci_func_state(&host_of(dev)->self, s);
}

static int host_check(struct dev *dev)
{
	return pci_func_check(&host_of(dev)->self);
}

const struct dev_class pci_host_class = {
	.name = "pci-host",
	.size = sizeof(struct pci_host),
	.version = 1,
	.init = host_init,
	.finish = host_finish,
	.reset = host_reset,
	.state = host_state,
	.check = host_check,
};
