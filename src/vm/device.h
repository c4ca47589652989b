/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.h - what every emulated device is, and what it may touch
 *
 * A device is a struct that begins with struct dev.  The machine creates it
 * from its class, resets it, pauses it, saves it and destroys it; the device
 * knows its environment (struct dev_env) and nothing else.
 */
#ifndef VM_DEVICE_H
#define VM_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bits.h"
#include "base/loop.h"
#include "base/state.h"
#include "husk/error.h"

struct dev;

/* -- wires ---------------------------------------------------------------- */

/* One end of an interrupt wire.  set() may be called from any thread. */
struct irq {
	void (*set)(void *sink, unsigned line, bool level);
	void *sink;
	unsigned line;
};

static inline void irq_set(const struct irq *irq, bool level)
{
	if (irq->set)
		irq->set(irq->sink, irq->line, level);
}

/* Where message-signalled interrupts go. */
struct msi {
	void (*send)(void *sink, uint64_t addr, uint32_t data);
	void *sink;
};

/* -- regions -------------------------------------------------------------- */

/* Called with the device's lock held; the access lies inside the region. */
struct region_ops {
	uint64_t (*read)(struct dev *dev, uint64_t offset, unsigned size);
	void (*write)(struct dev *dev, uint64_t offset, uint64_t value,
		      unsigned size);
	uint8_t min_size, max_size; /* the bus splits other sizes; 0: any */
};

/* Embedded in its device.  The bus owns the fields after the blank line. */
struct region {
	const char *name;
	const struct region_ops *ops;
	struct dev *dev;
	uint64_t size;

	uint64_t base;
	struct region *next;
	bool added;
};

struct bus;

struct bus *bus_create(const char *name);
void bus_destroy(struct bus *bus);
int bus_add(struct bus *bus, struct region *region, uint64_t base);
/* Returns when no vCPU is inside region. */
void bus_del(struct bus *bus, struct region *region);
/* false: nobody there; reads give all ones. */
bool bus_read(struct bus *bus, uint64_t addr, unsigned size, uint64_t *value);
bool bus_write(struct bus *bus, uint64_t addr, unsigned size, uint64_t value);

/* -- guest memory: the one checked door (vm/mem.c) ------------------------ */

struct guest_mem;

/* NULL unless [gpa, gpa + len) is RAM, all in one piece. */
void *mem_at(struct guest_mem *mem, uint64_t gpa, uint64_t len);
/* After writing through mem_at(): dirty log and translated code. */
void mem_written(struct guest_mem *mem, uint64_t gpa, uint64_t len);
/* 0 or -EFAULT. */
int mem_copy_in(struct guest_mem *mem, uint64_t gpa, const void *src,
		uint64_t len); /* to the guest */
int mem_copy_out(struct guest_mem *mem, uint64_t gpa, void *dst, uint64_t len);

/*
 * Give whole pages back to the host; the guest finds zeroes there, or in
 * single pages of a restored machine what the file has.  0 or -EFAULT; *freed
 * is how much the host had spent on them.
 */
int mem_discard(struct guest_mem *mem, uint64_t gpa, uint64_t len,
		uint64_t *freed);

/* -- the class ------------------------------------------------------------ */

enum machine_request {
	REQUEST_POWEROFF,
	REQUEST_RESET,
	REQUEST_EXIT,	 /* arg */
	REQUEST_PANIC,	 /* arg: GUEST_* */
	REQUEST_NO_SPACE /* a disk holds requests: pause */
};
enum { GUEST_PANICKED, GUEST_CRASH_LOADED };

/* Doorbell: writes of any value to [addr, size] add 1 to fd. Set by engine. */
struct doorbell_sink {
	int (*set)(void *sink, uint64_t gpa, unsigned size, int fd, bool on);
	void *sink;
};

/* What a device may touch.  One per machine, constant after creation. */
struct dev_env {
	struct bus *mmio, *pio;
	struct loop *loop;
	struct guest_mem *mem;
	struct msi msi;
	struct doorbell_sink doorbell;
	struct pci_bus *pci;
	bool cheap_exits; /* (i) of vCPUs: cheaper than to wake a thread */
	/* CLOCK_MONOTONIC minus the time spent paused. NULL: loop_now(). */
	uint64_t (*now)(void *sink);
	/* Asks the machine for something; any thread, never blocks. */
	void (*request)(void *sink, enum machine_request what, int arg);
	void (*log)(void *sink, const char *id, const char *text);
	/* For the program: enum vm_news_kind.  Any thread.  May be NULL. */
	void (*news)(void *sink, const char *id, int kind, int code);
	void *sink; /* of now, request, log and news */
};

struct dev_class {
	const char *name; /* on the command line and in saved machines */
	size_t size;	  /* of the struct that begins with struct dev */
	uint32_t version; /* of the fields state() visits */

	/*
	 * Claim regions and host resources.  arg is class specific (the
	 * device's header names its type).  A failed init leaves nothing.
	 */
	int (*init)(struct dev *dev, const void *arg, struct husk_error *err);
	void (*finish)(struct dev *dev);
	void (*reset)(struct dev *dev);

	/*
	 * After pause() returns no thread of the device runs and none of its
	 * requests touches guest memory.  NULL: the device has no threads.
	 */
	void (*pause)(struct dev *dev);
	void (*resume)(struct dev *dev);

	/* Only while paused.  check() distrusts what state() has read. */
	void (*state)(struct dev *dev, struct state *s);
	int (*check)(struct dev *dev);
};

/* (i) set before init, then constant */
struct dev {
	const struct dev_class *class; /* (i) */
	char id[32];		       /* (i) unique in its machine: "disk0" */
	const struct dev_env *env;     /* (i) */
	pthread_mutex_t lock;	       /* held around region ops, kick, state */
	struct dev *next;	       /* the machine's list */
};

/* device.c: allocate by class, set id and env, init the lock, call init. */
struct dev *dev_create(const struct dev_class *class, const char *id,
		       const struct dev_env *env, const void *arg,
		       struct husk_error *err);
void dev_destroy(struct dev *dev); /* NULL is fine */
/* Rate-limited log line of a device. */
void dev_log(struct dev *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static inline void dev_news(const struct dev *dev, int kind, int code)
{
	if (dev->env->news)
		dev->env->news(dev->env->sink, dev->id, kind, code);
}

static inline uint64_t dev_now(const struct dev *dev)
{
	return dev->env->now ? dev->env->now(dev->env->sink) : loop_now();
}

#endif /* VM_DEVICE_H */
