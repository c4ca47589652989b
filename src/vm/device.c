/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c - birth and death of devices, and their log
 */
#include "vm/device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* In front of every device: what only this file needs. */
struct box {
	_Alignas(64) uint64_t second; /* of the rate limit */
	unsigned lines;		      /* said in it */
};

static struct box *box_of(struct dev *dev)
{
	return (struct box *)(void *)dev - 1;
}

struct dev *dev_create(const struct dev_class *class, const char *id,
		       const struct dev_env *env, const void *arg,
		       struct husk_error *err)
{
	size_t size = ALIGN_UP(sizeof(struct box) + class->size, 64);
	pthread_mutexattr_t attr;
	struct box *box;
	struct dev *dev;

	box = aligned_alloc(64, size);
	if (!box) {
		error_set(err, -ENOMEM, "%s: out of memory", id);
		return NULL;
	}
	memset(box, 0, size);
	dev = (struct dev *)(void *)(box + 1);
	dev->class = class;
	dev->env = env;
	snprintf(dev->id, sizeof(dev->id), "%s", id);
	/* Recursive: a callback out of a device may call back into it. */
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&dev->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	if (class->init && class->init(dev, arg, err)) {
		pthread_mutex_destroy(&dev->lock);
		free(box);
		return NULL;
	}
	/* cppcheck-suppress memleak ; dev is inside box */
	return dev;
}

void dev_destroy(struct dev *dev)
{
	if (!dev)
		return;
	if (dev->class->finish)
		dev->class->finish(dev);
	pthread_mutex_destroy(&dev->lock);
	free(box_of(dev));
}

void dev_log(struct dev *dev, const char *fmt, ...)
{
	struct box *box = box_of(dev);
	uint64_t second = loop_now() / 1000000000;
	char text[256];
	va_list ap;

	if (!dev->env->log)
		return;
	if (__atomic_exchange_n(&box->second, second, __ATOMIC_RELAXED) !=
	    second)
		__atomic_store_n(&box->lines, 0, __ATOMIC_RELAXED);
	if (__atomic_fetch_add(&box->lines, 1, __ATOMIC_RELAXED) >= 10)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	dev->env->log(dev->env->sink, dev->id, text);
}
