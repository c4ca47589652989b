/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmgenid.c - VM generation ID: tells a guest that it is a copy
 *
 * 16 bytes in a page that firmware has reserved, whose address the ACPI device
 * gives, and a general purpose event when they have changed ("Virtual Machine
 * Generation ID", Microsoft 2012).  Linux then seeds its random numbers anew.
 */
#include "vm/chips.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

struct vmgenid {
	struct dev dev;
	struct irq changed; /* (i) */
	uint8_t id[VMGENID_SIZE];
};

static struct vmgenid *to_vmgenid(struct dev *dev)
{
	return container_of(dev, struct vmgenid, dev);
}

static int show(struct vmgenid *g)
{
	return mem_copy_in(g->dev.env->mem, VMGENID_ADDR, g->id, sizeof(g->id));
}

void vmgenid_set(struct dev *dev, const uint8_t *id)
{
	struct vmgenid *g = to_vmgenid(dev);

	pthread_mutex_lock(&dev->lock);
	memcpy(g->id, id, sizeof(g->id));
	show(g);
	pthread_mutex_unlock(&dev->lock);
	irq_set(&g->changed, true);
}

void vmgenid_get(struct dev *dev, uint8_t *id)
{
	pthread_mutex_lock(&dev->lock);
	memcpy(id, to_vmgenid(dev)->id, VMGENID_SIZE);
	pthread_mutex_unlock(&dev->lock);
}

static int vmgenid_init(struct dev *dev, const void *arg,
			struct husk_error *err)
{
	const struct vmgenid_arg *a = arg;
	struct vmgenid *g = to_vmgenid(dev);

	g->changed = a->changed;
	memcpy(g->id, a->id, sizeof(g->id));
	if (show(g))
		return error_set(err, -EFAULT, "%s: no memory at %x", dev->id,
				 VMGENID_ADDR);
	return 0;
}

static void vmgenid_finish(struct dev *dev)
{
}

/* The same machine, so the same id; the guest may have overwritten it. */
static void vmgenid_reset(struct dev *dev)
{
	show(to_vmgenid(dev));
}

static void vmgenid_state(struct dev *dev, struct state *s)
{
	struct vmgenid *g = to_vmgenid(dev);

	state_bytes(s, "id", g->id, sizeof(g->id));
}

static int vmgenid_check(struct dev *dev)
{
	return show(to_vmgenid(dev));
}

const struct dev_class vmgenid_class = {
	.name = "vmgenid",
	.size = sizeof(struct vmgenid),
	.version = 1,
	.init = vmgenid_init,
	.finish = vmgenid_finish,
	.reset = vmgenid_reset,
	.state = vmgenid_state,
	.check = vmgenid_check,
};
