/* SPDX-License-Identifier: Apache-2.0 */
/*
 * acpi_pm.c - ACPI fixed hardware: power button, sleep, timer, reset
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum {
	PM1_STS = 0,
	PM1_EN = 2,
	PM1_CNT = 4,
	PM_TMR = 8,
	GPE_STS = 12,
	GPE_EN = 14,
	PWRBTN = 0x100,
	SCI_EN = 1,
	SLP_EN = 0x2000,
	EVENTS = 0x0721,
};

struct pm {
	struct dev dev;
	struct region ports, reset;
	struct irq sci;
	uint16_t sts, en, cnt, gpe_sts, gpe_en;
	uint8_t reset_reg;
};

static struct pm *pm_of(struct dev *dev)
{
	return container_of(dev, struct pm, dev);
}

static void update(struct pm *p)
{
	irq_set(&p->sci, (p->sts & p->en & EVENTS) || (p->gpe_sts & p->gpe_en));
}

static uint64_t word(struct pm *p, unsigned off)
{
	switch (off) {
	case PM1_STS: return p->sts;
	case PM1_EN: return p->en;
	case PM1_CNT: return p->cnt | SCI_EN;
	case PM_TMR:
	case PM_TMR + 2:
		return (uint32_t)((unsigned __int128)dev_now(&p->dev) *
				  3579545 / 1000000000) >>
		       (off & 2) * 8;
	case GPE_STS: return p->gpe_sts;
	case GPE_EN: return p->gpe_en;
	default: return 0;
	}
}

static uint64_t pm_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct pm *p = pm_of(dev);

	/* The bus lets misaligned ones through; nobody needs them. */
	if (off & (size - 1))
		return ~0ull;
	if (off == PM_TMR && size == 4)
		return (uint32_t)((unsigned __int128)dev_now(dev) * 3579545 /
				  1000000000);
	if (size == 4)
		return (word(p, off) & 0xffff) | word(p, off + 2) << 16;
	return (word(p, off & ~1ull) & 0xffff) >> (off & 1) * 8;
}

/* A write of bytes [off & 1, ...) of a word: mask says which bits. */
static void write_word(struct pm *p, unsigned off, uint16_t v, uint16_t mask)
{
	switch (off) {
	case PM1_STS: p->sts &= ~(v & mask); break;
	case PM1_EN: p->en = (p->en & ~mask) | (v & mask & EVENTS); break;
	case PM1_CNT:
		p->cnt = (p->cnt & ~mask) | (v & mask & 0x1c02);
		if ((v & mask & SLP_EN) && ((p->cnt >> 10) & 7) == 5)
			chip_request(&p->dev, REQUEST_POWEROFF, 0);
		break;
	case GPE_STS: p->gpe_sts &= ~(v & mask); break;
	case GPE_EN: p->gpe_en = (p->gpe_en & ~mask) | (v & mask); break;
	}
	update(p);
}

static void pm_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct pm *p = pm_of(dev);

	if (off & (size - 1))
		return;
	if (size == 1) {
		write_word(p, off & ~1ull, v << (off & 1) * 8,
			   0xff << (off & 1) * 8);
		return;
	}
	write_word(p, off, v, 0xffff);
	if (size == 4)
		write_word(p, off + 2, v >> 16, 0xffff);
}

static uint64_t reset_read(struct dev *dev, uint64_t off, unsigned size)
{
	return pm_of(dev)->reset_reg;
}

static void reset_write(struct dev *dev, uint64_t off, uint64_t v,
			unsigned size)
{
	pm_of(dev)->reset_reg = v & 0xa;
	if (v & 4)
		chip_request(dev, REQUEST_RESET, 0);
}

static const struct region_ops pm_ops = { pm_read, pm_write, 1, 4 };
static const struct region_ops reset_ops = { reset_read, reset_write, 1, 1 };

void acpi_pm_power_button(struct dev *dev)
{
	struct pm *p = pm_of(dev);

	pthread_mutex_lock(&dev->lock);
	p->sts |= PWRBTN;
	update(p);
	pthread_mutex_unlock(&dev->lock);
}

static void set_gpe(void *sink, unsigned gpe, bool level)
{
	struct pm *p = sink;

	if (!level)
		return;
	pthread_mutex_lock(&p->dev.lock);
	p->gpe_sts |= (uint16_t)BIT(gpe);
	update(p);
	pthread_mutex_unlock(&p->dev.lock);
}

struct irq acpi_pm_gpe(struct dev *dev, unsigned gpe)
{
	return (struct irq){ set_gpe, pm_of(dev), gpe };
}

static void pm_reset(struct dev *dev)
{
	struct pm *p = pm_of(dev);

	p->sts = p->en = p->cnt = p->gpe_sts = p->gpe_en = 0;
	p->reset_reg = 0;
	update(p);
}

static void pm_finish(struct dev *dev)
{
	bus_del(dev->env->pio, &pm_of(dev)->ports);
	bus_del(dev->env->pio, &pm_of(dev)->reset);
}

static int pm_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct pm *p = pm_of(dev);

	if (arg)
		p->sci = *(const struct irq *)arg;
	if (chip_region(dev, &p->ports, &pm_ops, dev->env->pio, ACPI_PM_BASE,
			16) ||
	    chip_region(dev, &p->reset, &reset_ops, dev->env->pio, 0xcf9, 1)) {
		pm_finish(dev);
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	}
	return 0;
}

static void pm_state(struct dev *dev, struct state *s)
{
	struct pm *p = pm_of(dev);

	state_u16(s, "sts", &p->sts);
	state_u16(s, "en", &p->en);
	state_u16(s, "cnt", &p->cnt);
	state_u16(s, "gpe_sts", &p->gpe_sts);
	state_u16(s, "gpe_en", &p->gpe_en);
	state_u8(s, "reset_reg", &p->reset_reg);
}

static int pm_check(struct dev *dev)
{
	update(pm_of(dev));
	return 0;
}

const struct dev_class acpi_pm_class = {
	.name = "acpi-pm",
	.size = sizeof(struct pm),
	.version = 1,
	.init = pm_init,
	.finish = pm_finish,
	.reset = pm_reset,
	.state = pm_state,
	.check = pm_check,
};
