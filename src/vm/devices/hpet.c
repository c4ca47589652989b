/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hpet.c - the high precision event timer: 100 MHz, three comparators
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum { TIMERS = 3, TICK_NS = 10 };

#define CAPS   (10000000ull << 32 | 0x8086a000 | (TIMERS - 1) << 8 | 1)
#define ROUTES 0x00f00004u /* pins 2 and 20-23 */

enum {
	T_LEVEL = 2,
	T_ENABLE = 4,
	T_PERIODIC = 8,
	T_SETVAL = 0x40,
	T_32BIT = 0x100,
	T_WRITABLE = 0x3f0e | 0x40 | 0x100,
	T_CAPS = 0x30,
	ENABLE = 1,
	LEGACY = 2,
};

struct comparator {
	uint64_t config, cmp, period;
	uint64_t due; /* counter, extended to 64 bits */
	bool armed;
	bool asleep; /* periodic, and nobody is told: cmp is behind */
	struct chip_timer timer;
};

struct hpet {
	struct dev dev;
	struct region region;
	struct hpet_arg arg;
	uint64_t config, isr, offset; /* counter = ticks + offset */
	uint64_t stopped;	      /* the counter while not enabled */
	struct comparator t[TIMERS];
};

static struct hpet *hpet_of(struct dev *dev)
{
	return container_of(dev, struct hpet, dev);
}

static uint64_t counter(struct hpet *h)
{
	if (!(h->config & ENABLE))
		return h->stopped;
	return dev_now(&h->dev) / TICK_NS + h->offset;
}

static void wire(struct hpet *h, unsigned n, bool on)
{
	unsigned pin = (h->t[n].config >> 9) & 31;

	if ((h->config & LEGACY) && n < 2)
		irq_set(n ? &h->arg.legacy8 : &h->arg.legacy0, on);
	else if (pin < 24)
		irq_set(&h->arg.irq[pin], on);
}

/* With the periods from due to now, nobody having been told of them. */
static void catch_up(struct hpet *h, struct comparator *t)
{
	uint64_t now = counter(h), periods;

	if (!t->asleep || now < t->due || !t->period)
		return;
	periods = (now - t->due) / t->period + 1;
	t->due += periods * t->period;
	t->cmp += periods * t->period;
	if (t->config & T_32BIT)
		t->cmp = (uint32_t)t->cmp;
}

static void schedule(struct hpet *h, unsigned n)
{
	struct comparator *t = &h->t[n];
	uint64_t now = counter(h), delta;

	t->armed = t->asleep = false;
	if (!(h->config & ENABLE)) {
		chip_timer_set(&t->timer, CHIP_TIMER_OFF);
		return;
	}
	if (t->config & T_32BIT)
		delta = (uint32_t)(t->cmp - now);
	else
		delta = t->cmp - now;
	t->due = now + delta;
	/* A comparator of the past comes round in 5000 years. */
	if (delta > INT64_MAX / 16) {
		chip_timer_set(&t->timer, CHIP_TIMER_OFF);
		return;
	}
	/*
	 * A guest that has a better timer masks this one and leaves it: the
	 * host need not wake up for it.  ISR does not depend on the mask.
	 */
	if ((t->config & T_PERIODIC) && !(t->config & (T_ENABLE | T_LEVEL))) {
		t->asleep = true;
		chip_timer_set(&t->timer, CHIP_TIMER_OFF);
		return;
	}
	t->armed = true;
	chip_timer_set(&t->timer, dev_now(&h->dev) + delta * TICK_NS);
}

static void fire(struct hpet *h, unsigned n)
{
	struct comparator *t = &h->t[n];
	uint64_t now = counter(h), behind;

	if (!(h->config & ENABLE) || !t->armed)
		return;
	t->armed = false;
	if (t->config & T_LEVEL)
		h->isr |= BIT(n);
	if (t->config & T_ENABLE) {
		if (!(t->config & T_LEVEL))
			wire(h, n, false);
		wire(h, n, true);
		if (!(t->config & T_LEVEL))
			wire(h, n, false);
	}
	if ((t->config & T_PERIODIC) && t->period) {
		/* Periods nobody had time for are left out. */
		behind = now > t->due ? (now - t->due) / t->period : 0;
		t->cmp += (behind + 1) * t->period;
		if (t->config & T_32BIT)
			t->cmp = (uint32_t)t->cmp;
		schedule(h, n);
	} else if (t->config & T_32BIT) {
		/* One shot in 32 bits: again when the counter comes round. */
		t->due += BIT(32);
		t->armed = true;
		chip_timer_set(&t->timer,
			       dev_now(&h->dev) + (t->due - now) * TICK_NS);
	}
}

static void fire0(struct dev *dev)
{
	fire(hpet_of(dev), 0);
}

static void fire1(struct dev *dev)
{
	fire(hpet_of(dev), 1);
}

static void fire2(struct dev *dev)
{
	fire(hpet_of(dev), 2);
}

static uint64_t reg_read(struct hpet *h, unsigned reg)
{
	unsigned n = (reg - 0x100) / 0x20;

	switch (reg) {
	case 0: return CAPS;
	case 0x10: return h->config;
	case 0x20: return h->isr;
	case 0xf0: return counter(h);
	}
	if (reg < 0x100 || n >= TIMERS)
		return 0;
	switch (reg & 0x18) {
	case 0: return (uint64_t)ROUTES << 32 | T_CAPS | h->t[n].config;
	case 8: catch_up(h, &h->t[n]); return h->t[n].cmp;
	default: return 0;
	}
}

static void write_config(struct hpet *h, uint64_t v)
{
	uint64_t old = h->config, now = counter(h);

	if (!((old ^ v) & (ENABLE | LEGACY)))
		return;
	for (unsigned n = 0; n < TIMERS; n++)
		wire(h, n, false);
	for (unsigned n = 0; n < TIMERS; n++)
		catch_up(h, &h->t[n]);
	h->config = v & (ENABLE | LEGACY);
	if (!(old & ENABLE) && (v & ENABLE))
		h->offset = h->stopped - dev_now(&h->dev) / TICK_NS;
	else if ((old & ENABLE) && !(v & ENABLE))
		h->stopped = now;
	for (unsigned n = 0; n < TIMERS; n++)
		schedule(h, n);
}

static void write_timer(struct hpet *h, unsigned n, unsigned reg, uint64_t v)
{
	struct comparator *t = &h->t[n];
	unsigned pin;

	catch_up(h, t);
	if (reg == 0) {
		if ((t->config & T_LEVEL) && (h->isr & BIT(n)))
			wire(h, n, false);
		v &= T_WRITABLE;
		pin = (v >> 9) & 31;
		if (!(BIT(pin) & ROUTES))
			v = (v & ~0x3e00ull) | (t->config & 0x3e00);
		t->config = v;
		if (!(v & T_LEVEL))
			h->isr &= ~BIT(n);
		if (v & T_32BIT) {
			t->cmp = (uint32_t)t->cmp;
			t->period = (uint32_t)t->period;
		}
		if ((h->isr & BIT(n)) && (v & T_ENABLE))
			wire(h, n, true);
	} else if (reg == 8) {
		if (t->config & T_32BIT)
			v = (uint32_t)v;
		if (!(t->config & T_PERIODIC) || (t->config & T_SETVAL))
			t->cmp = v;
		if (t->config & T_PERIODIC)
			/* Under 10 us a host cannot keep up. */
			t->period = v ? MAX(v, 1000ull) : 0;
		t->config &= ~(uint64_t)T_SETVAL;
	} else {
		return;
	}
	schedule(h, n);
}

static void reg_write(struct hpet *h, unsigned reg, uint64_t v)
{
	unsigned n = (reg - 0x100) / 0x20;

	if (reg == 0x10) {
		write_config(h, v);
	} else if (reg == 0x20) {
		for (n = 0; n < TIMERS; n++)
			if (v & h->isr & BIT(n)) {
				h->isr &= ~BIT(n);
				wire(h, n, false);
			}
	} else if (reg == 0xf0) {
		if (!(h->config & ENABLE))
			h->stopped = v;
	} else if (reg >= 0x100 && n < TIMERS) {
		write_timer(h, n, reg & 0x18, v);
	}
}

static uint64_t hpet_read(struct dev *dev, uint64_t off, unsigned size)
{
	uint64_t v = reg_read(hpet_of(dev), off & ~7ull);

	return off & 4 ? v >> 32 : v;
}

static void hpet_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct hpet *h = hpet_of(dev);
	unsigned reg = off & ~7ull, n = (reg - 0x100) / 0x20;
	uint64_t old;

	if (size == 4) {
		old = reg_read(h, reg);
		/* Acknowledging bits must not repeat the others. */
		if (reg == 0x20)
			old = 0;
		if (off & 4)
			v = v << 32 | (uint32_t)old;
		else
			v |= old & ~0xffffffffull;
		/* The high half of a 32 bit comparator is nothing. */
		if ((off & 4) && reg >= 0x100 && n < TIMERS &&
		    ((reg & 0x18) == 0 || (h->t[n].config & T_32BIT)))
			return;
		/* SETVAL covers both halves: put it back after the low one. */
		if ((off & 4) && reg >= 0x100 && n < TIMERS) {
			h->t[n].cmp = v;
			schedule(h, n);
			return;
		}
	}
	reg_write(h, reg, v);
}

static const struct region_ops hpet_ops = { hpet_read, hpet_write, 4, 8 };

static void hpet_reset(struct dev *dev)
{
	struct hpet *h = hpet_of(dev);

	write_config(h, 0);
	h->isr = h->stopped = h->offset = 0;
	for (unsigned n = 0; n < TIMERS; n++) {
		wire(h, n, false);
		h->t[n].config = h->t[n].period = h->t[n].due = 0;
		h->t[n].cmp = ~0ull;
		schedule(h, n);
	}
}

static void hpet_finish(struct dev *dev)
{
	bus_del(dev->env->mmio, &hpet_of(dev)->region);
	for (unsigned n = 0; n < TIMERS; n++)
		chip_timer_finish(&hpet_of(dev)->t[n].timer);
}

static int hpet_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	static void (*const fires[TIMERS])(struct dev *) = {
		fire0,
		fire1,
		fire2,
	};
	struct hpet *h = hpet_of(dev);

	if (arg)
		h->arg = *(const struct hpet_arg *)arg;
	for (unsigned n = 0; n < TIMERS; n++)
		chip_timer_init(&h->t[n].timer, dev, fires[n]);
	if (chip_region(dev, &h->region, &hpet_ops, dev->env->mmio, HPET_BASE,
			0x400))
		return error_set(err, -EBUSY, "%s: address taken", dev->id);
	hpet_reset(dev);
	return 0;
}

static void hpet_state(struct dev *dev, struct state *s)
{
	struct hpet *h = hpet_of(dev);

	for (unsigned n = 0; n < TIMERS; n++)
		catch_up(h, &h->t[n]);
	state_u64(s, "config", &h->config);
	state_u64(s, "isr", &h->isr);
	state_u64(s, "offset", &h->offset);
	state_u64(s, "stopped", &h->stopped);
	for (unsigned n = 0; n < TIMERS; n++) {
		state_u64(s, "timer_config", &h->t[n].config);
		state_u64(s, "timer_cmp", &h->t[n].cmp);
		state_u64(s, "timer_period", &h->t[n].period);
	}
}

static int hpet_check(struct dev *dev)
{
	struct hpet *h = hpet_of(dev);

	if (h->config >> 2 || h->isr >> TIMERS)
		return -EINVAL;
	for (unsigned n = 0; n < TIMERS; n++) {
		if ((h->t[n].config & ~(uint64_t)T_WRITABLE) ||
		    (h->t[n].period && h->t[n].period < 1000))
			return -EINVAL;
		schedule(h, n);
	}
	return 0;
}

const struct dev_class hpet_class = {
	.name = "hpet",
	.size = sizeof(struct hpet),
	.version = 1,
	.init = hpet_init,
	.finish = hpet_finish,
	.reset = hpet_reset,
	.state = hpet_state,
	.check = hpet_check,
};
