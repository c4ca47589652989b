/* SPDX-License-Identifier: Apache-2.0 */
/*
 * debug_exit.c - port f4: a test in the guest ends the machine with a code
 */
#include "vm/chips.h"

#include <errno.h>

#include "base/error.h"
#include "vm/devices/timer.h"

struct debug_exit {
	struct dev dev;
	struct region region;
};

static void exit_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	if (off == 0)
		chip_request(dev, REQUEST_EXIT,
			     (int)((v & 0x3fffffff) << 1 | 1));
}

static uint64_t exit_read(struct dev *dev, uint64_t off, unsigned size)
{
	return 0;
}

static const struct region_ops exit_ops = { exit_read, exit_write, 1, 4 };

static int exit_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct debug_exit *d = container_of(dev, struct debug_exit, dev);

	if (chip_region(dev, &d->region, &exit_ops, dev->env->pio, 0xf4, 4))
		return error_set(err, -EBUSY, "%s: port taken", dev->id);
	return 0;
}

static void exit_finish(struct dev *dev)
{
	struct debug_exit *d = container_of(dev, struct debug_exit, dev);

	bus_del(dev->env->pio, &d->region);
}

static void exit_reset(struct dev *dev)
{
}

static void exit_state(struct dev *dev, struct state *s)
{
}

static int exit_check(struct dev *dev)
{
	return 0;
}

const struct dev_class debug_exit_class = {
	.name = "debug-exit",
	.size = sizeof(struct debug_exit),
	.version = 1,
	.init = exit_init,
	.finish = exit_finish,
	.reset = exit_reset,
	.state = exit_state,
	.check = exit_check,
};
