/* SPDX-License-Identifier: Apache-2.0 */
/*
 * i8254.c - the interval timer and port 61
 *
 * Counters do not count: their values follow from when they were loaded.
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum { HZ = 1193182 };

struct counter {
	uint8_t mode, rw; /* rw: 1 low, 2 high, 3 both */
	bool bcd, gate, loaded, write_high, read_high;
	uint8_t write_low;
	uint32_t reload;  /* 1-65536 */
	uint64_t start;	  /* machine time of the load */
	uint64_t stopped; /* ticks gone when the gate closed */
	uint8_t latched;  /* bytes left of the latch */
	uint16_t latch;
	bool status_latched;
	uint8_t status;
};

struct pit {
	struct dev dev;
	struct region ports, port61;
	struct irq irq;
	struct chip_timer timer;
	struct counter c[3];
	uint8_t speaker; /* port 61 bits 0-1 */
};

static uint64_t ticks_of(uint64_t ns)
{
	return (unsigned __int128)ns * HZ / 1000000000;
}

/* Rounded up, so that the tick has come at that time. */
static uint64_t ns_of(uint64_t ticks)
{
	return ((unsigned __int128)ticks * 1000000000 + HZ - 1) / HZ;
}

static uint64_t elapsed(struct pit *p, const struct counter *c)
{
	uint64_t now = dev_now(&p->dev);

	if (!c->gate && c->mode != 1 && c->mode != 5)
		return c->stopped;
	return now > c->start ? ticks_of(now - c->start) : 0;
}

static uint16_t value(struct pit *p, const struct counter *c)
{
	uint64_t d = elapsed(p, c);
	uint32_t wrap = c->bcd ? 10000 : 65536, v;

	if (c->mode == 2)
		v = c->reload - d % c->reload;
	else if (c->mode == 3)
		v = c->reload - 2 * d % c->reload;
	else
		v = (c->reload + wrap - d % wrap) % wrap;
	if (c->mode == 3)
		v &= ~1u;
	if (c->bcd)
		v = v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 |
		    v % 10;
	return v;
}

static bool output(struct pit *p, const struct counter *c)
{
	uint64_t d = elapsed(p, c);

	if (!c->loaded)
		return c->mode != 0;
	switch (c->mode) {
	case 0:
	case 1: return d >= c->reload;
	case 2: return d % c->reload != c->reload - 1;
	case 3: return d % c->reload < (c->reload + 1) / 2;
	default: return d != c->reload;
	}
}

/* Arm the timer for the next interrupt of counter 0. */
static void schedule(struct pit *p)
{
	struct counter *c = &p->c[0];
	uint64_t d, next = CHIP_TIMER_OFF;

	if (c->loaded) {
		d = elapsed(p, c);
		if (c->mode == 2 || c->mode == 3)
			next = c->start +
			       ns_of((d / c->reload + 1) * c->reload);
		else if (d < c->reload)
			next = c->start + ns_of(c->reload);
	}
	chip_timer_set(&p->timer, next);
}

static void pit_fire(struct dev *dev)
{
	struct pit *p = container_of(dev, struct pit, dev);

	/* Modes 2 and 3 rise again after their low part. */
	irq_set(&p->irq, false);
	irq_set(&p->irq, true);
	schedule(p);
}

static void load(struct pit *p, struct counter *c, uint32_t v)
{
	if (c->bcd)
		v = (v >> 12) * 1000 + (v >> 8 & 15) * 100 +
		    (v >> 4 & 15) * 10 + (v & 15);
	if (!v)
		v = c->bcd ? 10000 : 65536;
	if (v == 1 && (c->mode == 2 || c->mode == 3))
		v = 2;
	c->reload = v;
	c->loaded = true;
	c->start = dev_now(&p->dev);
	c->stopped = 0;
	if (c == &p->c[0]) {
		irq_set(&p->irq, output(p, c));
		schedule(p);
	}
}

static void set_gate(struct pit *p, struct counter *c, bool on)
{
	uint64_t now = dev_now(&p->dev);

	if (on == c->gate)
		return;
	if (!on) {
		c->stopped = elapsed(p, c);
		c->gate = false;
		return;
	}
	c->gate = true;
	if (c->mode == 0 || c->mode == 4)
		c->start = now - MIN(ns_of(c->stopped), now);
	else
		c->start = now;
}

static void latch(struct pit *p, struct counter *c)
{
	if (c->latched)
		return;
	c->latch = value(p, c);
	c->latched = c->rw == 3 ? 2 : 1;
	if (c->rw == 2)
		c->latch >>= 8;
}

static void control(struct pit *p, uint8_t v)
{
	struct counter *c;
	unsigned i;

	if (v >> 6 == 3) {
		for (i = 0; i < 3; i++) {
			c = &p->c[i];
			if (!(v & 2 << i))
				continue;
			if (!(v & 0x20))
				latch(p, c);
			if (!(v & 0x10) && !c->status_latched) {
				c->status_latched = true;
				c->status = output(p, c) << 7 |
					    !c->loaded << 6 | c->rw << 4 |
					    c->mode << 1 | c->bcd;
			}
		}
		return;
	}
	c = &p->c[v >> 6];
	if (!(v & 0x30)) {
		latch(p, c);
		return;
	}
	c->rw = (v >> 4) & 3;
	c->mode = (v >> 1) & 7;
	if (c->mode > 5)
		c->mode &= 3;
	c->bcd = v & 1;
	c->loaded = c->write_high = c->read_high = false;
	c->latched = 0;
	c->status_latched = false;
	if (c == &p->c[0]) {
		irq_set(&p->irq, c->mode != 0);
		schedule(p);
	}
}

static uint64_t pit_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct pit *p = container_of(dev, struct pit, dev);
	struct counter *c;
	uint16_t v;

	if (off > 2)
		return 0;
	c = &p->c[off];
	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	if (c->latched) {
		v = c->latch & 0xff;
		c->latch >>= 8;
		c->latched--;
		return v;
	}
	v = value(p, c);
	if (c->rw == 1)
		return v & 0xff;
	if (c->rw == 2)
		return v >> 8;
	c->read_high = !c->read_high;
	return c->read_high ? v & 0xff : v >> 8;
}

static void pit_write(struct dev *dev, uint64_t off, uint64_t val,
		      unsigned size)
{
	struct pit *p = container_of(dev, struct pit, dev);
	struct counter *c;
	uint8_t v = val;

	if (off > 2) {
		control(p, v);
		return;
	}
	c = &p->c[off];
	if (c->rw == 1) {
		load(p, c, v);
	} else if (c->rw == 2) {
		load(p, c, v << 8);
	} else if (!c->write_high) {
		c->write_low = v;
		c->write_high = true;
	} else {
		c->write_high = false;
		load(p, c, v << 8 | c->write_low);
	}
}

static uint64_t port61_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct pit *p = container_of(dev, struct pit, dev);
	/* The refresh request toggles every 15 us. */
	unsigned refresh = dev_now(dev) / 15085 & 1;

	return p->speaker | refresh << 4 | output(p, &p->c[2]) << 5;
}

static void port61_write(struct dev *dev, uint64_t off, uint64_t v,
			 unsigned size)
{
	struct pit *p = container_of(dev, struct pit, dev);

	p->speaker = v & 3;
	set_gate(p, &p->c[2], v & 1);
}

static const struct region_ops pit_ops = { pit_read, pit_write, 1, 1 };
static const struct region_ops port61_ops = { port61_read, port61_write, 1, 1 };

static void pit_reset(struct dev *dev)
{
	struct pit *p = container_of(dev, struct pit, dev);

	p->speaker = 0;
	for (int i = 0; i < 3; i++)
		p->c[i] = (struct counter){
			.mode = 3, .rw = 3, .gate = i < 2, .reload = 65536
		};
	irq_set(&p->irq, false);
	chip_timer_set(&p->timer, CHIP_TIMER_OFF);
}

static void pit_finish(struct dev *dev)
{
	struct pit *p = container_of(dev, struct pit, dev);

	bus_del(dev->env->pio, &p->ports);
	bus_del(dev->env->pio, &p->port61);
	chip_timer_finish(&p->timer);
}

static int pit_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct pit *p = container_of(dev, struct pit, dev);

	if (arg)
		p->irq = *(const struct irq *)arg;
	chip_timer_init(&p->timer, dev, pit_fire);
	if (chip_region(dev, &p->ports, &pit_ops, dev->env->pio, 0x40, 4) ||
	    chip_region(dev, &p->port61, &port61_ops, dev->env->pio, 0x61, 1)) {
		pit_finish(dev);
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	}
	pit_reset(dev);
	return 0;
}

static void pit_state(struct dev *dev, struct state *s)
{
	struct pit *p = container_of(dev, struct pit, dev);

	for (int i = 0; i < 3; i++) {
		struct counter *c = &p->c[i];

		state_u8(s, "mode", &c->mode);
		state_u8(s, "rw", &c->rw);
		state_bool(s, "bcd", &c->bcd);
		state_bool(s, "gate", &c->gate);
		state_bool(s, "loaded", &c->loaded);
		state_bool(s, "write_high", &c->write_high);
		state_bool(s, "read_high", &c->read_high);
		state_u8(s, "write_low", &c->write_low);
		state_u32(s, "reload", &c->reload);
		state_u64(s, "start", &c->start);
		state_u64(s, "stopped", &c->stopped);
		state_u8(s, "latched", &c->latched);
		state_u16(s, "latch", &c->latch);
		state_bool(s, "status_latched", &c->status_latched);
		state_u8(s, "status", &c->status);
	}
	state_u8(s, "speaker", &p->speaker);
}

static int pit_check(struct dev *dev)
{
	struct pit *p = container_of(dev, struct pit, dev);

	for (int i = 0; i < 3; i++)
		if (p->c[i].mode > 5 || !p->c[i].rw || p->c[i].rw > 3 ||
		    !p->c[i].reload || p->c[i].reload > 65536 ||
		    p->c[i].latched > 2)
			return -EINVAL;
	if (p->speaker > 3)
		return -EINVAL;
	schedule(p);
	return 0;
}

const struct dev_class i8254_class = {
	.name = "i8254",
	.size = sizeof(struct pit),
	.version = 1,
	.init = pit_init,
	.finish = pit_finish,
	.reset = pit_reset,
	.state = pit_state,
	.check = pit_check,
};
