/* SPDX-License-Identifier: Apache-2.0 */
/*
 * testdev.c - the test device that kvm-unit-tests knows as pc-testdev
 */
#include "vm/chips.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "vm/devices/timer.h"

struct testdev {
	struct dev dev;
	struct region wires, echo, flush, mem;
	struct testdev_arg arg;
	uint8_t reg[4];
	uint8_t ram[65536];
};

static struct testdev *test_of(struct dev *dev)
{
	return container_of(dev, struct testdev, dev);
}

static void wires_write(struct dev *dev, uint64_t off, uint64_t v,
			unsigned size)
{
	if (off < 24)
		irq_set(&test_of(dev)->arg.irq[off], v != 0);
}

static uint64_t bytes_read(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, p, size);
	return v;
}

/* The bus keeps every access inside the region. */
static uint64_t echo_read(struct dev *dev, uint64_t off, unsigned size)
{
	return bytes_read(test_of(dev)->reg + off, size);
}

static void echo_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	memcpy(test_of(dev)->reg + off, &v, size);
}

static uint64_t ram_read(struct dev *dev, uint64_t off, unsigned size)
{
	return bytes_read(test_of(dev)->ram + off, size);
}

static void ram_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	memcpy(test_of(dev)->ram + off, &v, size);
}

static const struct region_ops wires_ops = { NULL, wires_write, 0, 0 };
static const struct region_ops echo_ops = { echo_read, echo_write, 1, 4 };
static const struct region_ops flush_ops = { NULL, NULL, 0, 0 };
static const struct region_ops ram_ops = { ram_read, ram_write, 1, 8 };

static void test_finish(struct dev *dev)
{
	struct testdev *t = test_of(dev);

	bus_del(dev->env->pio, &t->wires);
	bus_del(dev->env->pio, &t->echo);
	bus_del(dev->env->pio, &t->flush);
	bus_del(dev->env->mmio, &t->mem);
}

static int test_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct testdev *t = test_of(dev);
	struct bus *pio = dev->env->pio;

	if (arg)
		t->arg = *(const struct testdev_arg *)arg;
	if (chip_region(dev, &t->wires, &wires_ops, pio, 0x2000, 24) ||
	    chip_region(dev, &t->echo, &echo_ops, pio, 0xe0, 4) ||
	    chip_region(dev, &t->flush, &flush_ops, pio, 0xe4, 4) ||
	    chip_region(dev, &t->mem, &ram_ops, dev->env->mmio, 0xff000000,
			sizeof(t->ram))) {
		test_finish(dev);
		return error_set(err, -EBUSY, "%s: addresses taken", dev->id);
	}
	return 0;
}

static void test_reset(struct dev *dev)
{
	memset(test_of(dev)->reg, 0, sizeof(test_of(dev)->reg));
}

static void test_state(struct dev *dev, struct state *s)
{
	state_bytes(s, "reg", test_of(dev)->reg, sizeof(test_of(dev)->reg));
	state_bytes(s, "ram", test_of(dev)->ram, sizeof(test_of(dev)->ram));
}

static int test_check(struct dev *dev)
{
	return 0;
}

const struct dev_class testdev_class = {
	.name = "testdev",
	.size = sizeof(struct testdev),
	.version = 1,
	.init = test_init,
	.finish = test_finish,
	.reset = test_reset,
	.state = test_state,
	.check = test_check,
};
