/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region.c - address buses: which device answers at an address
 *
 * A region may lie inside a larger one; the smallest that holds the address
 * answers (port cf9 lies in the middle of the PCI address register).
 *
 * The lock is not held while a device works, because a device may move
 * regions then (a BAR moved through ECAM).  Instead every visitor is counted
 * in the region's slot, and bus_del() waits for the visitors of others.
 */
#include "vm/device.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

struct slot {
	struct region *region;
	const struct region_ops *ops;
	struct dev *dev;
	uint64_t base, size;
	unsigned users; /* atomic */
	bool orphan;	/* deleted by its own visitor */
};

struct bus {
	pthread_rwlock_t lock;
	struct slot **slot; /* by base */
	unsigned count, room;
	char name[16];
};

/* The slots this thread is inside of. */
struct visit {
	struct slot *slot;
	struct visit *outer;
};

static __thread struct visit *visits;

struct bus *bus_create(const char *name)
{
	struct bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return NULL;
	pthread_rwlock_init(&bus->lock, NULL);
	strncpy(bus->name, name, sizeof(bus->name) - 1);
	return bus;
}

void bus_destroy(struct bus *bus)
{
	if (!bus)
		return;
	for (unsigned i = 0; i < bus->count; i++) {
		bus->slot[i]->region->added = false;
		free(bus->slot[i]);
	}
	pthread_rwlock_destroy(&bus->lock);
	free(bus->slot);
	free(bus);
}

static bool clash(const struct slot *a, const struct slot *b)
{
	uint64_t a_last = a->base + (a->size - 1);
	uint64_t b_last = b->base + (b->size - 1);

	if (a_last < b->base || b_last < a->base)
		return false;
	if (a->size == b->size)
		return true;
	if (a->size > b->size)
		return b->base < a->base || b_last > a_last;
	return a->base < b->base || a_last > b_last;
}

static int insert(struct bus *bus, struct slot *new)
{
	struct slot **p;
	unsigned i;

	for (i = 0; i < bus->count; i++)
		if (clash(bus->slot[i], new))
			return -EBUSY;
	if (bus->count == bus->room) {
		p = realloc(bus->slot, (bus->room + 16) * sizeof(*p));
		if (!p)
			return -ENOMEM;
		bus->slot = p;
		bus->room += 16;
	}
	for (i = bus->count; i > 0 && bus->slot[i - 1]->base > new->base; i--)
		bus->slot[i] = bus->slot[i - 1];
	bus->slot[i] = new;
	bus->count++;
	return 0;
}

int bus_add(struct bus *bus, struct region *region, uint64_t base)
{
	struct slot *new;
	int ret;

	if (!region->size || base + (region->size - 1) < base || region->added)
		return -EINVAL;
	new = calloc(1, sizeof(*new));
	if (!new)
		return -ENOMEM;
	new->region = region;
	new->ops = region->ops;
	new->dev = region->dev;
	new->base = base;
	new->size = region->size;
	pthread_rwlock_wrlock(&bus->lock);
	ret = insert(bus, new);
	if (!ret) {
		region->base = base;
		region->added = true;
	}
	pthread_rwlock_unlock(&bus->lock);
	if (ret)
		free(new);
	return ret;
}

void bus_del(struct bus *bus, struct region *region)
{
	struct slot *old = NULL;
	struct visit *v;
	unsigned i, own = 0;

	pthread_rwlock_wrlock(&bus->lock);
	for (i = 0; i < bus->count; i++) {
		if (bus->slot[i]->region != region)
			continue;
		old = bus->slot[i];
		bus->count--;
		memmove(&bus->slot[i], &bus->slot[i + 1],
			(bus->count - i) * sizeof(*bus->slot));
		break;
	}
	region->added = false;
	pthread_rwlock_unlock(&bus->lock);
	if (!old)
		return;
	for (v = visits; v; v = v->outer)
		own += v->slot == old;
	/* Rare and short: nobody enters any more. */
	while (__atomic_load_n(&old->users, __ATOMIC_ACQUIRE) > own)
		sched_yield();
	if (own)
		old->orphan = true;
	else
		free(old);
}

static struct slot *enter(struct bus *bus, uint64_t addr, struct visit *v)
{
	struct slot *s, *best = NULL;

	pthread_rwlock_rdlock(&bus->lock);
	for (unsigned i = 0; i < bus->count; i++) {
		s = bus->slot[i];
		if (s->base > addr)
			break;
		if (addr - s->base < s->size && (!best || s->size < best->size))
			best = s;
	}
	if (best)
		__atomic_fetch_add(&best->users, 1, __ATOMIC_RELAXED);
	pthread_rwlock_unlock(&bus->lock);
	if (!best)
		return NULL;
	v->slot = best;
	v->outer = visits;
	visits = v;
	pthread_mutex_lock(&best->dev->lock);
	return best;
}

static void leave(struct visit *v)
{
	struct slot *s = v->slot;
	bool orphan;

	pthread_mutex_unlock(&s->dev->lock);
	visits = v->outer;
	/* Only this thread can have set it, and then nobody else is inside. */
	orphan = s->orphan;
	if (__atomic_sub_fetch(&s->users, 1, __ATOMIC_RELEASE) == 0 && orphan)
		free(s);
}

static uint64_t mask(unsigned size)
{
	return size >= 8 ? ~0ull : BIT(size * 8) - 1;
}

/* The next piece of [off, off + left) that the device accepts. */
static unsigned piece(uint64_t off, unsigned left, unsigned max)
{
	unsigned n = 8;

	while (n > 1 && (n > left || n > max || (off & (n - 1))))
		n /= 2;
	return n;
}

static uint64_t slot_read(struct slot *s, uint64_t off, unsigned size)
{
	unsigned min = s->ops->min_size ? s->ops->min_size : 1;
	unsigned max = s->ops->max_size ? s->ops->max_size : 8;
	unsigned n, done = 0;
	uint64_t value = 0, part, at;

	if (!s->ops->read)
		return mask(size);
	if (size >= min && size <= max && (min == 1 || !(off & (size - 1))))
		return s->ops->read(s->dev, off, size) & mask(size);
	for (; done < size; done += n) {
		n = piece(off + done, size - done, max);
		if (n >= min) {
			part = s->ops->read(s->dev, off + done, n);
		} else {
			at = ALIGN_DOWN(off + done, min);
			part = ~0ull;
			if (at + min <= s->size)
				part = s->ops->read(s->dev, at, min) >>
				       (8 * (off + done - at));
		}
		value |= (part & mask(n)) << (8 * done);
	}
	return value;
}

static void slot_write(struct slot *s, uint64_t off, unsigned size,
		       uint64_t value)
{
	unsigned min = s->ops->min_size ? s->ops->min_size : 1;
	unsigned max = s->ops->max_size ? s->ops->max_size : 8;
	unsigned n, shift, done = 0;
	uint64_t part, at, old;

	if (!s->ops->write)
		return;
	if (size >= min && size <= max && (min == 1 || !(off & (size - 1)))) {
		s->ops->write(s->dev, off, value & mask(size), size);
		return;
	}
	for (; done < size; done += n) {
		n = piece(off + done, size - done, max);
		part = (value >> (8 * done)) & mask(n);
		if (n >= min) {
			s->ops->write(s->dev, off + done, part, n);
			continue;
		}
		at = ALIGN_DOWN(off + done, min);
		shift = 8 * (off + done - at);
		if (at + min > s->size)
			continue;
		old = s->ops->read ? s->ops->read(s->dev, at, min) : 0;
		old &= ~(mask(n) << shift);
		s->ops->write(s->dev, at, (old | part << shift) & mask(min),
			      min);
	}
}

bool bus_read(struct bus *bus, uint64_t addr, unsigned size, uint64_t *value)
{
	struct visit v;
	struct slot *s;
	uint64_t byte;
	bool any = true;

	*value = ~0ull;
	if (!size || size > 8)
		return false;
	*value = mask(size);
	s = enter(bus, addr, &v);
	if (s && s->size - (addr - s->base) >= size) {
		*value = slot_read(s, addr - s->base, size);
		leave(&v);
		return true;
	}
	if (!s)
		return false;
	/* Across the end of a region: every byte finds its own. */
	leave(&v);
	for (unsigned i = 0; i < size; i++) {
		any |= bus_read(bus, addr + i, 1, &byte);
		*value &= ~(0xffull << (8 * i));
		*value |= byte << (8 * i);
	}
	return any;
}

bool bus_write(struct bus *bus, uint64_t addr, unsigned size, uint64_t value)
{
	struct visit v;
	struct slot *s;

	if (!size || size > 8)
		return false;
	s = enter(bus, addr, &v);
	if (s && s->size - (addr - s->base) >= size) {
		slot_write(s, addr - s->base, size, value);
		leave(&v);
		return true;
	}
	if (!s)
		return false;
	leave(&v);
	for (unsigned i = 0; i < size; i++)
		bus_write(bus, addr + i, 1, (value >> (8 * i)) & 0xff);
	return true;
}
