/* SPDX-License-Identifier: Apache-2.0 */
/*
 * i8259.c - the two interrupt controllers of the PC
 *
 * A lock of its own guards the chips, not dev->lock: wires are set from the
 * threads of other devices and acknowledged by vCPUs.
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

struct chip {
	uint8_t irr, imr, isr, level, elcr;
	uint8_t base;	/* vector of input 0 */
	uint8_t lowest; /* input of lowest priority */
	uint8_t init;	/* 0, or the ICW expected next: 2-4 */
	bool icw4, single, read_isr, poll, special_mask, auto_eoi;
	bool rotate_aeoi, nested;
};

struct pic {
	struct dev dev;
	pthread_mutex_t lock;
	struct chip chip[2];
	struct region master, slave, elcr;
	bool output, told, telling;
	void (*f)(void *sink, bool level);
	void *sink;
};

static void chip_reset(struct chip *c)
{
	uint8_t level = c->level, elcr = c->elcr;

	*c = (struct chip){ .level = level, .elcr = elcr, .lowest = 7 };
}

/* Highest priority input in bits, or 8; priorities rotate. */
static unsigned first(const struct chip *c, uint8_t bits)
{
	for (unsigned i = 1; i <= 8; i++)
		if (bits & 1 << ((c->lowest + i) & 7))
			return i - 1;
	return 8;
}

/* The input to deliver, or -1. */
static int pending(const struct chip *c, bool master)
{
	uint8_t in_service = c->isr;
	unsigned irq, cur;

	irq = first(c, c->irr & ~c->imr);
	if (irq == 8)
		return -1;
	if (c->special_mask)
		in_service &= ~c->imr;
	if (master && c->nested)
		in_service &= ~(1 << 2);
	cur = first(c, in_service);
	if (irq >= cur)
		return -1;
	return (c->lowest + 1 + irq) & 7;
}

static void input(struct chip *c, unsigned n, bool on)
{
	uint8_t m = 1 << n;

	if (c->elcr & m) {
		if (on)
			c->irr |= m;
		else
			c->irr &= ~m;
	} else if (on && !(c->level & m)) {
		c->irr |= m;
	} else if (!on && n == 2) {
		c->irr &= ~m; /* the cascade takes its request back */
	}
	if (on)
		c->level |= m;
	else
		c->level &= ~m;
}

static void update(struct pic *p)
{
	bool slave = pending(&p->chip[1], false) >= 0;

	/* The cascade acts as a level, whatever the mode. */
	input(&p->chip[0], 2, slave);
	if (slave && !(p->chip[0].isr & 4))
		p->chip[0].irr |= 4;
	p->output = pending(&p->chip[0], true) >= 0;
}

/* Drop the lock and tell the CPU; one thread tells, in order. */
static void unlock_and_tell(struct pic *p)
{
	void (*f)(void *sink, bool level) = p->f;
	bool level;

	if (!f || p->telling) {
		pthread_mutex_unlock(&p->lock);
		return;
	}
	p->telling = true;
	while (p->told != p->output) {
		level = p->told = p->output;
		pthread_mutex_unlock(&p->lock);
		f(p->sink, level);
		pthread_mutex_lock(&p->lock);
	}
	p->telling = false;
	pthread_mutex_unlock(&p->lock);
}

static void pic_set(void *sink, unsigned line, bool level)
{
	struct pic *p = sink;

	pthread_mutex_lock(&p->lock);
	if (line < 16 && line != 2) {
		input(&p->chip[line / 8], line & 7, level);
		update(p);
	}
	unlock_and_tell(p);
}

struct irq pic_irq(struct dev *dev, unsigned line)
{
	return (struct irq){ pic_set, dev, line };
}

void pic_on_output(struct dev *dev, void (*f)(void *sink, bool level),
		   void *sink)
{
	struct pic *p = container_of(dev, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	p->f = f;
	p->sink = sink;
	pthread_mutex_unlock(&p->lock);
}

bool pic_output(struct dev *dev)
{
	struct pic *p = container_of(dev, struct pic, dev);
	bool out;

	pthread_mutex_lock(&p->lock);
	out = p->output;
	pthread_mutex_unlock(&p->lock);
	return out;
}

static void take(struct chip *c, unsigned n)
{
	if (!(c->elcr & 1 << n))
		c->irr &= ~(1 << n);
	if (!c->auto_eoi)
		c->isr |= 1 << n;
	else if (c->rotate_aeoi)
		c->lowest = n;
}

uint8_t pic_acknowledge(struct dev *dev)
{
	struct pic *p = container_of(dev, struct pic, dev);
	uint8_t vector;
	int n, m;

	pthread_mutex_lock(&p->lock);
	n = pending(&p->chip[0], true);
	if (n < 0) {
		vector = p->chip[0].base + 7;
	} else {
		vector = p->chip[0].base + n;
		take(&p->chip[0], n);
		if (n == 2) {
			m = pending(&p->chip[1], false);
			if (m >= 0)
				take(&p->chip[1], m);
			vector = p->chip[1].base + (m >= 0 ? m : 7);
		}
	}
	update(p);
	unlock_and_tell(p);
	return vector;
}

static void eoi(struct chip *c, uint8_t v)
{
	unsigned n = v & 7;

	switch (v >> 5) {
	case 0:
	case 4: c->rotate_aeoi = v >> 7; break;
	case 1:
	case 5:
		n = first(c, c->isr);
		if (n == 8)
			break;
		n = (c->lowest + 1 + n) & 7;
		c->isr &= ~(1 << n);
		if (v & 0x80)
			c->lowest = n;
		break;
	case 3:
	case 7:
		c->isr &= ~(1 << n);
		if (v & 0x80)
			c->lowest = n;
		break;
	case 6: c->lowest = n; break;
	}
}

static void command(struct chip *c, uint8_t v)
{
	if (v & 0x10) {
		chip_reset(c);
		/* An edge is asked for anew; levels are still there. */
		c->irr = c->level & c->elcr;
		c->init = 2;
		c->icw4 = v & 1;
		c->single = v & 2;
	} else if (v & 0x08) {
		if (v & 4)
			c->poll = true;
		if (v & 2)
			c->read_isr = v & 1;
		if (v & 0x40)
			c->special_mask = v & 0x20;
	} else {
		eoi(c, v);
	}
}

static void data(struct chip *c, uint8_t v)
{
	switch (c->init) {
	case 0: c->imr = v; break;
	case 2:
		c->base = v & 0xf8;
		c->init = c->single ? (c->icw4 ? 4 : 0) : 3;
		break;
	case 3: c->init = c->icw4 ? 4 : 0; break;
	default:
		c->nested = v & 0x10;
		c->auto_eoi = v & 2;
		c->init = 0;
		break;
	}
}

static uint8_t chip_read(struct pic *p, unsigned which, unsigned off)
{
	struct chip *c = &p->chip[which];
	int n;

	if (c->poll) {
		c->poll = false;
		n = pending(c, which == 0);
		if (n < 0)
			return 0;
		take(c, n);
		return 0x80 | n;
	}
	if (off)
		return c->imr;
	return c->read_isr ? c->isr : c->irr;
}

static uint64_t port_read(struct dev *dev, unsigned which, uint64_t off)
{
	struct pic *p = container_of(dev, struct pic, dev);
	uint8_t v;

	pthread_mutex_lock(&p->lock);
	v = chip_read(p, which, off);
	update(p);
	unlock_and_tell(p);
	return v;
}

static void port_write(struct dev *dev, unsigned which, uint64_t off, uint8_t v)
{
	struct pic *p = container_of(dev, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	if (off)
		data(&p->chip[which], v);
	else
		command(&p->chip[which], v);
	update(p);
	unlock_and_tell(p);
}

static uint64_t master_read(struct dev *dev, uint64_t off, unsigned size)
{
	return port_read(dev, 0, off);
}

static void master_write(struct dev *dev, uint64_t off, uint64_t v,
			 unsigned size)
{
	port_write(dev, 0, off, v);
}

static uint64_t slave_read(struct dev *dev, uint64_t off, unsigned size)
{
	return port_read(dev, 1, off);
}

static void slave_write(struct dev *dev, uint64_t off, uint64_t v,
			unsigned size)
{
	port_write(dev, 1, off, v);
}

static uint64_t elcr_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct pic *p = container_of(dev, struct pic, dev);

	return p->chip[off & 1].elcr;
}

static void elcr_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct pic *p = container_of(dev, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	/* Timer, keyboard, cascade, clock and FPU are edges for good. */
	p->chip[off & 1].elcr = v & (off & 1 ? 0xde : 0xf8);
	update(p);
	unlock_and_tell(p);
}

static const struct region_ops master_ops = { master_read, master_write, 1, 1 };
static const struct region_ops slave_ops = { slave_read, slave_write, 1, 1 };
static const struct region_ops elcr_ops = { elcr_read, elcr_write, 1, 1 };

static void pic_reset(struct dev *dev)
{
	struct pic *p = container_of(dev, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	for (int i = 0; i < 2; i++) {
		p->chip[i].elcr = 0;
		chip_reset(&p->chip[i]);
	}
	update(p);
	unlock_and_tell(p);
}

static void pic_finish(struct dev *dev)
{
	struct pic *p = container_of(dev, struct pic, dev);

	bus_del(dev->env->pio, &p->master);
	bus_del(dev->env->pio, &p->slave);
	bus_del(dev->env->pio, &p->elcr);
	pthread_mutex_destroy(&p->lock);
}

static int pic_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct pic *p = container_of(dev, struct pic, dev);
	struct bus *pio = dev->env->pio;

	pthread_mutex_init(&p->lock, NULL);
	if (chip_region(dev, &p->master, &master_ops, pio, 0x20, 2) ||
	    chip_region(dev, &p->slave, &slave_ops, pio, 0xa0, 2) ||
	    chip_region(dev, &p->elcr, &elcr_ops, pio, 0x4d0, 2)) {
		pic_finish(dev);
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	}
	pic_reset(dev);
	return 0;
}

static void pic_state(struct dev *dev, struct state *s)
{
	struct pic *p = container_of(dev, struct pic, dev);

	for (int i = 0; i < 2; i++) {
		struct chip *c = &p->chip[i];

		state_u8(s, "irr", &c->irr);
		state_u8(s, "imr", &c->imr);
		state_u8(s, "isr", &c->isr);
		state_u8(s, "level", &c->level);
		state_u8(s, "elcr", &c->elcr);
		state_u8(s, "base", &c->base);
		state_u8(s, "lowest", &c->lowest);
		state_u8(s, "init", &c->init);
		state_bool(s, "icw4", &c->icw4);
		state_bool(s, "single", &c->single);
		state_bool(s, "read_isr", &c->read_isr);
		state_bool(s, "poll", &c->poll);
		state_bool(s, "special_mask", &c->special_mask);
		state_bool(s, "auto_eoi", &c->auto_eoi);
		state_bool(s, "rotate_aeoi", &c->rotate_aeoi);
		state_bool(s, "nested", &c->nested);
	}
}

static int pic_check(struct dev *dev)
{
	struct pic *p = container_of(dev, struct pic, dev);

	for (int i = 0; i < 2; i++)
		if (p->chip[i].lowest > 7 || p->chip[i].init > 4 ||
		    p->chip[i].init == 1)
			return -EINVAL;
	pthread_mutex_lock(&p->lock);
	update(p);
	unlock_and_tell(p);
	return 0;
}

const struct dev_class i8259_class = {
	.name = "i8259",
	.size = sizeof(struct pic),
	.version = 1,
	.init = pic_init,
	.finish = pic_finish,
	.reset = pic_reset,
	.state = pic_state,
	.check = pic_check,
};
