/* SPDX-License-Identifier: Apache-2.0 */
/*
 * i8042.c - the keyboard controller, with nothing plugged in, and port 92
 *
 * Guests use it to reset the machine.  Answers are such that a probe for a
 * keyboard or a mouse ends at once.
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

struct kbc {
	struct dev dev;
	struct region data, status, port92;
	uint8_t ctr;	      /* the command byte */
	uint8_t out, pending; /* output buffer; the open command */
	bool full, last_command;
	uint8_t ram[32];
};

static struct kbc *kbc_of(struct dev *dev)
{
	return container_of(dev, struct kbc, dev);
}

static void answer(struct kbc *k, uint8_t v)
{
	k->out = v;
	k->full = true;
}

static uint64_t data_read(struct dev *dev, uint64_t off, unsigned size)
{
	kbc_of(dev)->full = false;
	return kbc_of(dev)->out;
}

static void data_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct kbc *k = kbc_of(dev);
	uint8_t command = k->pending;

	k->pending = 0;
	k->last_command = false;
	switch (command) {
	case 0:
		answer(k, 0xfe); /* "resend": nobody there */
		break;
	case 0x60 ... 0x7f:
		k->ram[command & 31] = v;
		if (command == 0x60)
			k->ctr = v;
		break;
	case 0xd1:
		if (!(v & 1))
			chip_request(dev, REQUEST_RESET, 0);
		break;
	case 0xd2:
	case 0xd3:
		/* Echoed as from the keyboard: so there is no mouse. */
		answer(k, v);
		break;
	case 0xd4: answer(k, 0xfe); break;
	}
}

static uint64_t status_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct kbc *k = kbc_of(dev);

	/* Not locked; self test passed. */
	return 0x10 | (k->last_command ? 8 : 0) | (k->ctr & 4) | k->full;
}

static void status_write(struct dev *dev, uint64_t off, uint64_t val,
			 unsigned size)
{
	struct kbc *k = kbc_of(dev);
	uint8_t v = val;

	k->pending = 0;
	k->last_command = true;
	switch (v) {
	case 0x20: answer(k, k->ctr); break;
	case 0x21 ... 0x3f: answer(k, k->ram[v & 31]); break;
	case 0x60 ... 0x7f:
	case 0xd1 ... 0xd4: k->pending = v; break;
	case 0xa7: k->ctr |= 0x20; break;
	case 0xa8: k->ctr &= ~0x20; break;
	case 0xa9:
		answer(k, 1); /* mouse clock stuck low: absent */
		break;
	case 0xaa:
		k->ctr |= 4;
		answer(k, 0x55);
		break;
	case 0xab: answer(k, 0); break;
	case 0xad: k->ctr |= 0x10; break;
	case 0xae: k->ctr &= ~0x10; break;
	case 0xc0: answer(k, 0x80); break;
	case 0xd0:
		answer(k, 3 | k->full << 4); /* A20 on, no reset */
		break;
	case 0xf0 ... 0xff:
		/* Pulse output lines; bit 0 low is reset. */
		if (!(v & 1))
			chip_request(dev, REQUEST_RESET, 0);
		break;
	}
}

static uint64_t port92_read(struct dev *dev, uint64_t off, unsigned size)
{
	return 2; /* A20 is always on */
}

static void port92_write(struct dev *dev, uint64_t off, uint64_t v,
			 unsigned size)
{
	if (v & 1)
		chip_request(dev, REQUEST_RESET, 0);
}

static const struct region_ops data_ops = { data_read, data_write, 1, 1 };
static const struct region_ops status_ops = { status_read, status_write, 1, 1 };
static const struct region_ops port92_ops = { port92_read, port92_write, 1, 1 };

static void kbc_reset(struct dev *dev)
{
	struct kbc *k = kbc_of(dev);

	k->ctr = 0x30;
	k->out = k->pending = 0;
	k->full = k->last_command = false;
	for (unsigned i = 0; i < sizeof(k->ram); i++)
		k->ram[i] = 0;
}

static void kbc_finish(struct dev *dev)
{
	struct kbc *k = kbc_of(dev);

	bus_del(dev->env->pio, &k->data);
	bus_del(dev->env->pio, &k->status);
	bus_del(dev->env->pio, &k->port92);
}

static int kbc_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct kbc *k = kbc_of(dev);
	struct bus *pio = dev->env->pio;

	if (chip_region(dev, &k->data, &data_ops, pio, 0x60, 1) ||
	    chip_region(dev, &k->status, &status_ops, pio, 0x64, 1) ||
	    chip_region(dev, &k->port92, &port92_ops, pio, 0x92, 1)) {
		kbc_finish(dev);
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	}
	kbc_reset(dev);
	return 0;
}

static void kbc_state(struct dev *dev, struct state *s)
{
	struct kbc *k = kbc_of(dev);

	state_u8(s, "ctr", &k->ctr);
	state_u8(s, "out", &k->out);
	state_u8(s, "pending", &k->pending);
	state_bool(s, "full", &k->full);
	state_bool(s, "last_command", &k->last_command);
	state_bytes(s, "ram", k->ram, sizeof(k->ram));
}

/* Every value can be used. */
static int kbc_check(struct dev *dev)
{
	return 0;
}

const struct dev_class i8042_class = {
	.name = "i8042",
	.size = sizeof(struct kbc),
	.version = 1,
	.init = kbc_init,
	.finish = kbc_finish,
	.reset = kbc_reset,
	.state = kbc_state,
	.check = kbc_check,
};
