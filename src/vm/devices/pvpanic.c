/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pvpanic.c - port 505: the guest's kernel says that it has panicked
 *
 * Reads give the events that there are, a write tells one.
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum {
	PANICKED = 1 << 0,
	CRASH_LOADED = 1 << 1, /* another kernel saves what is left */
	EVENTS = PANICKED | CRASH_LOADED,
};

struct pvpanic {
	struct dev dev;
	struct region region;
};

static uint64_t pvpanic_read(struct dev *dev, uint64_t off, unsigned size)
{
	return EVENTS;
}

static void pvpanic_write(struct dev *dev, uint64_t off, uint64_t v,
			  unsigned size)
{
	if (v & PANICKED)
		chip_request(dev, REQUEST_PANIC, GUEST_PANICKED);
	else if (v & CRASH_LOADED)
		chip_request(dev, REQUEST_PANIC, GUEST_CRASH_LOADED);
}

static const struct region_ops pvpanic_ops = { pvpanic_read, pvpanic_write, 1,
					       1 };

static int pvpanic_init(struct dev *dev, const void *arg,
			struct husk_error *err)
{
	struct pvpanic *p = container_of(dev, struct pvpanic, dev);

	if (chip_region(dev, &p->region, &pvpanic_ops, dev->env->pio,
			PVPANIC_PORT, 1))
		return error_set(err, -EBUSY, "%s: port taken", dev->id);
	return 0;
}

static void pvpanic_finish(struct dev *dev)
{
	struct pvpanic *p = container_of(dev, struct pvpanic, dev);

	bus_del(dev->env->pio, &p->region);
}

/* Nothing is kept: the other members have nothing to do. */
static void pvpanic_reset(struct dev *dev)
{
}

static void pvpanic_state(struct dev *dev, struct state *s)
{
}

static int pvpanic_check(struct dev *dev)
{
	return 0;
}

const struct dev_class pvpanic_class = {
	.name = "pvpanic",
	.size = sizeof(struct pvpanic),
	.version = 1,
	.init = pvpanic_init,
	.finish = pvpanic_finish,
	.reset = pvpanic_reset,
	.state = pvpanic_state,
	.check = pvpanic_check,
};
