/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timer.h - a timer of a chip, in the machine's time
 *
 * Machine time (dev_now()) stands still while the machine is paused; the
 * loop's does not.  So a timer that fires early waits again.  All calls but
 * finish need the device's lock; fire() is called with it.
 */
#ifndef VM_DEVICES_TIMER_H
#define VM_DEVICES_TIMER_H

#include "vm/device.h"

#define CHIP_TIMER_OFF UINT64_MAX

struct chip_timer {
	struct loop_timer timer;
	struct dev *dev;
	void (*fire)(struct dev *dev);
	uint64_t when; /* machine time */
};

/* Turning off is not cancelling: that would wait for fire() with the lock. */
static inline void chip_timer_set(struct chip_timer *t, uint64_t when)
{
	uint64_t now = dev_now(t->dev), real = loop_now();

	t->when = when;
	if (when == CHIP_TIMER_OFF) {
		if (t->timer.armed)
			loop_timer_set(&t->timer, UINT64_MAX);
		return;
	}
	if (when > now)
		real += MIN(when - now, (uint64_t)INT64_MAX / 4);
	loop_timer_set(&t->timer, real);
}

static inline void chip_timer_fire(struct loop_timer *lt)
{
	struct chip_timer *t = container_of(lt, struct chip_timer, timer);
	uint64_t now;

	pthread_mutex_lock(&t->dev->lock);
	now = dev_now(t->dev);
	if (t->when == CHIP_TIMER_OFF) {
		;
	} else if (t->when > now) {
		/* Paused, probably: do not come back too often. */
		loop_timer_set(lt, loop_now() +
					   MAX(MIN(t->when - now, 100000000ull),
					       20000ull));
	} else {
		t->when = CHIP_TIMER_OFF;
		t->fire(t->dev);
	}
	pthread_mutex_unlock(&t->dev->lock);
}

static inline void chip_timer_init(struct chip_timer *t, struct dev *dev,
				   void (*fire)(struct dev *dev))
{
	loop_timer_init(dev->env->loop, &t->timer, chip_timer_fire);
	t->dev = dev;
	t->fire = fire;
	t->when = CHIP_TIMER_OFF;
}

static inline void chip_timer_finish(struct chip_timer *t)
{
	loop_timer_cancel(&t->timer);
}

static inline void chip_request(struct dev *dev, enum machine_request what,
				int arg)
{
	if (dev->env->request)
		dev->env->request(dev->env->sink, what, arg);
}

static inline int chip_region(struct dev *dev, struct region *r,
			      const struct region_ops *ops, struct bus *bus,
			      uint64_t base, uint64_t size)
{
	*r = (struct region){
		.name = dev->class->name, .ops = ops, .dev = dev, .size = size
	};
	return bus_add(bus, r, base);
}

#endif /* VM_DEVICES_TIMER_H */
