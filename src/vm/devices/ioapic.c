/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ioapic.c - the I/O APIC: 24 pins that become messages
 *
 * Its own lock guards the pins, because EOIs come from vCPUs and wires from
 * anywhere; messages are collected under it and sent without it.
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum { PINS = 24 };

#define RTE_STATUS     BIT(12)
#define RTE_REMOTE_IRR BIT(14)
#define RTE_LEVEL      BIT(15)
#define RTE_MASKED     BIT(16)
#define RTE_WRITABLE   (0xffff000000000000ull | 0x1afff)

struct message {
	uint64_t addr;
	uint32_t data;
};

struct outbox {
	unsigned count;
	struct message msg[PINS];
};

struct ioapic {
	struct dev dev;
	pthread_mutex_t lock;
	struct region region;
	struct ioapic_arg arg;
	uint64_t rte[PINS];
	uint32_t level, irr; /* wires; requests not yet sent */
	uint8_t select, id;
};

static struct message message(uint64_t rte)
{
	struct message m = { 0 };

	m.addr = 0xfee00000 | (rte >> 56) << 12 | ((rte >> 11) & 1) << 2;
	/* Destinations above 255: bits 49-55, as guests of KVM know them. */
	m.addr |= ((rte >> 49) & 0x7f) << 5;
	m.data = (rte & 0x7ff) | (rte & RTE_LEVEL);
	return m;
}

static void service(struct ioapic *io, unsigned pin, struct outbox *out)
{
	uint64_t *rte = &io->rte[pin];

	if (!(io->irr & BIT(pin)) || (*rte & RTE_MASKED))
		return;
	if (*rte & RTE_LEVEL) {
		if (*rte & RTE_REMOTE_IRR)
			return;
		*rte |= RTE_REMOTE_IRR;
	} else {
		io->irr &= ~BIT(pin);
	}
	if (out->count < PINS)
		out->msg[out->count++] = message(*rte);
}

static void send_all(struct ioapic *io, const struct outbox *out)
{
	const struct msi *msi = &io->dev.env->msi;

	for (unsigned i = 0; i < out->count && msi->send; i++)
		msi->send(msi->sink, out->msg[i].addr, out->msg[i].data);
}

static void ioapic_set(void *sink, unsigned pin, bool on)
{
	struct ioapic *io = sink;
	struct outbox out = { 0 };
	uint32_t bit;

	if (pin >= PINS)
		return;
	bit = BIT(pin);
	pthread_mutex_lock(&io->lock);
	if (io->rte[pin] & RTE_LEVEL) {
		if (on)
			io->irr |= bit;
		else
			io->irr &= ~bit;
	} else if (on && !(io->level & bit)) {
		/* A masked edge is lost, as on the chip. */
		if (!(io->rte[pin] & RTE_MASKED))
			io->irr |= bit;
	}
	if (on)
		io->level |= bit;
	else
		io->level &= ~bit;
	service(io, pin, &out);
	pthread_mutex_unlock(&io->lock);
	send_all(io, &out);
}

struct irq ioapic_irq(struct dev *dev, unsigned pin)
{
	return (struct irq){ ioapic_set, dev, pin };
}

void ioapic_eoi(struct dev *dev, uint8_t vector)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);
	struct outbox out = { 0 };

	pthread_mutex_lock(&io->lock);
	for (unsigned pin = 0; pin < PINS; pin++) {
		if ((io->rte[pin] & 0xff) != vector ||
		    !(io->rte[pin] & RTE_REMOTE_IRR))
			continue;
		io->rte[pin] &= ~RTE_REMOTE_IRR;
		service(io, pin, &out);
	}
	pthread_mutex_unlock(&io->lock);
	send_all(io, &out);
}

static void tell_route(struct ioapic *io, unsigned pin)
{
	struct message m = { 0 };

	if (!(io->rte[pin] & RTE_MASKED))
		m = message(io->rte[pin]);
	if (io->arg.route)
		io->arg.route(io->arg.sink, pin, m.addr, m.data);
}

static void write_rte(struct ioapic *io, unsigned reg, uint32_t v)
{
	struct outbox out = { 0 };
	unsigned pin = reg / 2, shift = reg % 2 * 32;
	uint64_t old, new;

	pthread_mutex_lock(&io->lock);
	old = io->rte[pin];
	new = (old & ~(0xffffffffull << shift)) | (uint64_t)v << shift;
	new = (new &RTE_WRITABLE) | (old & ~RTE_WRITABLE);
	if (!(new &RTE_LEVEL)) {
		/* Old kernels clear a stuck remote IRR by passing edge mode. */
		new &= ~RTE_REMOTE_IRR;
		if (old & RTE_LEVEL)
			io->irr &= ~BIT(pin);
	} else if (io->level & BIT(pin)) {
		io->irr |= BIT(pin);
	} else {
		io->irr &= ~BIT(pin);
	}
	io->rte[pin] = new;
	pthread_mutex_unlock(&io->lock);
	if ((old ^ new) & ~(RTE_REMOTE_IRR | RTE_STATUS))
		tell_route(io, pin);
	pthread_mutex_lock(&io->lock);
	service(io, pin, &out);
	pthread_mutex_unlock(&io->lock);
	send_all(io, &out);
}

static uint32_t reg_read(struct ioapic *io)
{
	unsigned r = io->select;

	if (r == 0 || r == 2)
		return (uint32_t)io->id << 24;
	if (r == 1)
		return (PINS - 1) << 16 | 0x20;
	if (r >= 0x10 && r < 0x10 + PINS * 2)
		return io->rte[(r - 0x10) / 2] >> (r % 2 * 32);
	return 0;
}

static uint64_t ioapic_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);
	uint32_t v = 0;

	pthread_mutex_lock(&io->lock);
	if (off == 0)
		v = io->select;
	else if (off == 0x10)
		v = reg_read(io);
	pthread_mutex_unlock(&io->lock);
	return v;
}

static void ioapic_write(struct dev *dev, uint64_t off, uint64_t v,
			 unsigned size)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);
	unsigned r = io->select;

	if (off == 0)
		io->select = v;
	else if (off == 0x10 && r == 0)
		io->id = (v >> 24) & 0xf;
	else if (off == 0x10 && r >= 0x10 && r < 0x10 + PINS * 2)
		write_rte(io, r - 0x10, v);
	else if (off == 0x40)
		ioapic_eoi(dev, v);
}

static const struct region_ops ioapic_ops = { ioapic_read, ioapic_write, 4, 4 };

static void ioapic_reset(struct dev *dev)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);

	pthread_mutex_lock(&io->lock);
	for (unsigned i = 0; i < PINS; i++)
		io->rte[i] = RTE_MASKED;
	io->irr = 0;
	io->select = io->id = 0;
	pthread_mutex_unlock(&io->lock);
	for (unsigned i = 0; i < PINS; i++)
		tell_route(io, i);
}

static void ioapic_finish(struct dev *dev)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);

	bus_del(dev->env->mmio, &io->region);
	pthread_mutex_destroy(&io->lock);
}

static int ioapic_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);

	if (arg)
		io->arg = *(const struct ioapic_arg *)arg;
	pthread_mutex_init(&io->lock, NULL);
	if (chip_region(dev, &io->region, &ioapic_ops, dev->env->mmio,
			IOAPIC_BASE, 0x1000)) {
		ioapic_finish(dev);
		return error_set(err, -EBUSY, "%s: address taken", dev->id);
	}
	ioapic_reset(dev);
	return 0;
}

static void ioapic_state(struct dev *dev, struct state *s)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);

	for (unsigned i = 0; i < PINS; i++)
		state_u64(s, "rte", &io->rte[i]);
	state_u32(s, "level", &io->level);
	state_u32(s, "irr", &io->irr);
	state_u8(s, "select", &io->select);
	state_u8(s, "id", &io->id);
}

static int ioapic_check(struct dev *dev)
{
	struct ioapic *io = container_of(dev, struct ioapic, dev);

	if ((io->level | io->irr) >> PINS || io->id > 15)
		return -EINVAL;
	for (unsigned i = 0; i < PINS; i++)
		if (io->rte[i] & ~(RTE_WRITABLE | RTE_REMOTE_IRR))
			return -EINVAL;
	for (unsigned i = 0; i < PINS; i++)
		tell_route(io, i);
	return 0;
}

const struct dev_class ioapic_class = {
	.name = "ioapic",
	.size = sizeof(struct ioapic),
	.version = 1,
	.init = ioapic_init,
	.finish = ioapic_finish,
	.reset = ioapic_reset,
	.state = ioapic_state,
	.check = ioapic_check,
};
