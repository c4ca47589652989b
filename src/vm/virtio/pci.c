/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pci.c - virtio over PCI, modern only (virtio 1.2, 4.1)
 *
 * BAR 0 holds everything, a page each: common config, ISR, device config,
 * doorbells, MSI-X table and pending bits.  The doorbell of queue n lies at
 * n * 4, so each can be an eventfd of its own.
 */
#include "vm/virtio/virtq.h"

#include <string.h>

enum { CAP_VENDOR = 9 };
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_WINDOW };

enum { /* the common configuration */
       C_DEVICE_SELECT = 0,
       C_DEVICE_FEATURE = 4,
       C_DRIVER_SELECT = 8,
       C_DRIVER_FEATURE = 12,
       C_CONFIG_VECTOR = 16,
       C_NUM_QUEUES = 18,
       C_STATUS = 20,
       C_GENERATION = 21,
       C_QUEUE_SELECT = 22,
       C_QUEUE_SIZE = 24,
       C_QUEUE_VECTOR = 26,
       C_QUEUE_ENABLE = 28,
       C_NOTIFY_OFF = 30,
       C_DESC = 32,
       C_AVAIL = 40,
       C_USED = 48,
       C_SIZE = 64, /* with notify data and queue reset */
};

void virtio_pci_notify_locked(struct virtio *v, uint16_t vector, uint8_t isr)
{
	if (msix_enabled(&v->pci)) {
		if (vector != VIRTIO_NO_VECTOR)
			msix_send(&v->pci, vector);
		return;
	}
	v->isr |= isr;
	irq_set(&v->pci.intx, true);
}

/* -- common configuration ------------------------------------------------- */

static struct virtq *selected(struct virtio *v)
{
	return v->queue_select < v->class->nqueues ? v->queue[v->queue_select]
						   : NULL;
}

static void put(uint8_t *image, unsigned off, uint64_t value, unsigned size)
{
	memcpy(image + off, &value, size);
}

/* All fields at once: reads of any size and place then are one memcpy. */
static uint64_t common_read(struct virtio *v, unsigned off, unsigned size)
{
	struct virtq *q = selected(v);
	uint8_t image[C_SIZE + 8] = { 0 };
	uint64_t value = 0;

	if (off >= C_SIZE)
		return 0;
	put(image, C_DEVICE_SELECT, v->device_select, 4);
	if (v->device_select < 2)
		put(image, C_DEVICE_FEATURE,
		    v->offered >> (32 * v->device_select), 4);
	put(image, C_DRIVER_SELECT, v->driver_select, 4);
	if (v->driver_select < 2)
		put(image, C_DRIVER_FEATURE,
		    v->accepted >> (32 * v->driver_select), 4);
	put(image, C_CONFIG_VECTOR, v->config_vector, 2);
	put(image, C_NUM_QUEUES, v->class->nqueues, 2);
	put(image, C_STATUS, v->status, 1);
	put(image, C_GENERATION, v->generation, 1);
	put(image, C_QUEUE_SELECT, v->queue_select, 2);
	put(image, C_QUEUE_VECTOR, VIRTIO_NO_VECTOR, 2);
	if (q) {
		put(image, C_QUEUE_SIZE, q->size, 2);
		put(image, C_QUEUE_VECTOR, q->vector, 2);
		put(image, C_QUEUE_ENABLE, q->enabled, 2);
		put(image, C_NOTIFY_OFF, q->index, 2);
		put(image, C_DESC, q->desc, 8);
		put(image, C_AVAIL, q->avail, 8);
		put(image, C_USED, q->used, 8);
	}
	memcpy(&value, image + off, size);
	return value;
}

static uint16_t check_vector(struct virtio *v, uint16_t vector)
{
	return vector < v->pci.msix.count ? vector : VIRTIO_NO_VECTOR;
}

/* 64-bit fields are written whole or in halves (virtio 1.2, 4.1.3.1). */
static void write_half(uint64_t *field, unsigned off, uint64_t value,
		       unsigned size)
{
	if ((off & 7) + size <= 8)
		memcpy((uint8_t *)field + (off & 7), &value, size);
}

static void queue_write(struct virtio *v, struct virtq *q, unsigned off,
			uint64_t value, unsigned size)
{
	if (off == C_QUEUE_VECTOR) {
		q->vector = check_vector(v, value);
		return;
	}
	/* What the device works on does not change under it. */
	if (q->enabled || v->status & STATUS_DRIVER_OK)
		return;
	if (off == C_QUEUE_SIZE) {
		uint16_t n = value;

		if (n && n <= q->max_size && !(n & (n - 1)))
			q->size = n;
	} else if (off == C_QUEUE_ENABLE) {
		q->enabled = value == 1;
	} else if (off >= C_DESC && off < C_AVAIL) {
		write_half(&q->desc, off, value, size);
	} else if (off >= C_AVAIL && off < C_USED) {
		write_half(&q->avail, off, value, size);
	} else if (off >= C_USED && off < C_USED + 8) {
		write_half(&q->used, off, value, size);
	}
}

static void common_write(struct virtio *v, unsigned off, uint64_t value,
			 unsigned size)
{
	struct virtq *q = selected(v);

	switch (off) {
	case C_DEVICE_SELECT: v->device_select = value; break;
	case C_DRIVER_SELECT: v->driver_select = value; break;
	case C_DRIVER_FEATURE: virtio_set_features_locked(v, value); break;
	case C_CONFIG_VECTOR: v->config_vector = check_vector(v, value); break;
	case C_STATUS: virtio_set_status_locked(v, value); break;
	case C_QUEUE_SELECT: v->queue_select = value; break;
	default:
		if (q)
			queue_write(v, q, off, value, size);
	}
}

/* -- the BAR -------------------------------------------------------------- */

static uint64_t isr_read(struct virtio *v)
{
	uint8_t isr = v->isr;

	v->isr = 0;
	irq_set(&v->pci.intx, false);
	return isr;
}

static uint64_t device_read(struct virtio *v, unsigned off, unsigned size)
{
	uint64_t value = 0;

	if (off + size <= v->class->config_size)
		memcpy(&value, v->config + off, size);
	else
		for (unsigned i = 0; i < size; i++)
			if (off + i < v->class->config_size)
				value |= (uint64_t)v->config[off + i] << 8 * i;
	return value;
}

static void device_write(struct virtio *v, unsigned off, uint64_t value,
			 unsigned size)
{
	if (!v->class->config_written || off + size > v->class->config_size)
		return;
	memcpy(v->config + off, &value, size);
	v->class->config_written(v, off, size);
}

static uint64_t read_locked(struct virtio *v, uint64_t off, unsigned size)
{
	uint64_t value = 0;

	if (!size || size > 8 || off >= VPCI_SIZE)
		return 0;
	if (off >= VPCI_MSIX) {
		msix_access(&v->pci, 0, off, size, &value, false);
		return value;
	}
	switch (off & ~0xfffull) {
	case VPCI_COMMON: return common_read(v, off, size);
	case VPCI_ISR: return off == VPCI_ISR ? isr_read(v) : 0;
	case VPCI_DEVICE: return device_read(v, off - VPCI_DEVICE, size);
	}
	return 0;
}

/* Those that are served by the vCPU that rings. */
static uint32_t inline_queues(const struct virtio *v)
{
	return v->class->inline_queues |
	       (v->dev.env->cheap_exits ? v->class->quick_queues : 0);
}

static void write_locked(struct virtio *v, uint64_t off, uint64_t value,
			 unsigned size)
{
	unsigned queue;

	if (!size || size > 8 || off >= VPCI_SIZE)
		return;
	if (off >= VPCI_MSIX) {
		msix_access(&v->pci, 0, off, size, &value, true);
		return;
	}
	switch (off & ~0xfffull) {
	case VPCI_COMMON: common_write(v, off, value, size); break;
	case VPCI_DEVICE:
		device_write(v, off - VPCI_DEVICE, value, size);
		break;
	case VPCI_NOTIFY:
		queue = (off - VPCI_NOTIFY) / VPCI_NOTIFY_STEP;
		if (queue >= v->class->nqueues)
			break;
		if (inline_queues(v) & BIT(queue))
			virtio_turn_locked(v, false, (uint32_t)BIT(queue));
		else
			virtq_ring(v->queue[queue]);
		break;
	}
}

uint64_t virtio_pci_read(struct virtio *v, uint64_t off, unsigned size)
{
	uint64_t value;

	pthread_mutex_lock(&v->dev.lock);
	value = read_locked(v, off, size);
	pthread_mutex_unlock(&v->dev.lock);
	return value;
}

void virtio_pci_write(struct virtio *v, uint64_t off, uint64_t value,
		      unsigned size)
{
	pthread_mutex_lock(&v->dev.lock);
	write_locked(v, off, value, size);
	pthread_mutex_unlock(&v->dev.lock);
}

static struct virtio *owner(struct pci_func *f)
{
	return container_of(f, struct virtio, pci);
}

static uint64_t bar_read(struct pci_func *f, unsigned bar, uint64_t off,
			 unsigned size)
{
	return bar ? 0 : virtio_pci_read(owner(f), off, size);
}

static void bar_write(struct pci_func *f, unsigned bar, uint64_t off,
		      uint64_t value, unsigned size)
{
	if (!bar)
		virtio_pci_write(owner(f), off, value, size);
}

/* -- doorbells ------------------------------------------------------------ */

static void set_doorbells(struct virtio *v, bool on)
{
	const struct doorbell_sink *d = &v->dev.env->doorbell;
	uint64_t gpa = v->doorbell_base + VPCI_NOTIFY;

	/* A failure costs speed only: the write then arrives by bar_write. */
	for (unsigned i = 0; d->set && i < v->class->nqueues; i++)
		if (!(inline_queues(v) & BIT(i)))
			d->set(d->sink, gpa + i * VPCI_NOTIFY_STEP, 2,
			       v->queue[i]->kick_fd, on);
}

static void bar_moved(struct pci_func *f, unsigned bar, uint64_t base)
{
	struct virtio *v = owner(f);

	if (bar || v->doorbell_base == base)
		return;
	if (v->doorbell_base)
		set_doorbells(v, false);
	v->doorbell_base = base;
	if (base)
		set_doorbells(v, true);
}

/* -- the config window (4.1.4.9): BAR access for those without a mapping -- */

struct window {
	uint32_t off, len;
	bool valid;
};

static struct window window_of(struct virtio *v, unsigned off, unsigned len)
{
	const uint8_t *cap = v->pci.config + v->window_cap;
	unsigned data = v->window_cap + 16;
	struct window w;

	memcpy(&w.off, cap + 8, 4);
	memcpy(&w.len, cap + 12, 4);
	w.valid = off < data + 4 && off + len > data && cap[4] == 0 &&
		  (w.len == 1 || w.len == 2 || w.len == 4) &&
		  !(w.off & (w.len - 1)) && w.off < VPCI_SIZE;
	return w;
}

static void config_written(struct pci_func *f, unsigned off, unsigned len)
{
	struct virtio *v = owner(f);
	struct window w = window_of(v, off, len);
	uint32_t value = 0;

	if (!w.valid)
		return;
	memcpy(&value, f->config + v->window_cap + 16, w.len);
	virtio_pci_write(v, w.off, value, w.len);
}

static void config_read(struct pci_func *f, unsigned off, unsigned len)
{
	struct virtio *v = owner(f);
	struct window w = window_of(v, off, len);
	uint32_t value;

	if (!w.valid)
		return;
	value = virtio_pci_read(v, w.off, w.len);
	memcpy(f->config + v->window_cap + 16, &value, w.len);
}

/* -- birth and death ------------------------------------------------------ */

static uint8_t add_cap(struct pci_func *f, uint8_t type, uint8_t len,
		       uint32_t off, uint32_t size)
{
	uint8_t cap = pci_add_cap(f, CAP_VENDOR, len);

	f->config[cap + 2] = len;
	f->config[cap + 3] = type;
	memcpy(f->config + cap + 8, &off, 4);
	memcpy(f->config + cap + 12, &size, 4);
	return cap;
}

static const struct pci_func_ops virtio_pci_ops = {
	.bar_read = bar_read,
	.bar_write = bar_write,
	.bar_moved = bar_moved,
	.config_written = config_written,
	.config_read = config_read,
};

int virtio_pci_init(struct virtio *v, struct husk_error *err)
{
	struct pci_func *f = &v->pci;
	uint32_t step = VPCI_NOTIFY_STEP;
	uint8_t cap;
	int ret;

	pci_func_init(f, &v->dev, &virtio_pci_ops, 0x1af4,
		      0x1040 + v->class->id, v->class->pci_class, 1, 0x1af4,
		      0x1100);
	pci_bar(f, 0, VPCI_SIZE, false);
	add_cap(f, CAP_COMMON, 16, VPCI_COMMON, C_SIZE);
	add_cap(f, CAP_ISR, 16, VPCI_ISR, 1);
	if (v->class->config_size)
		add_cap(f, CAP_DEVICE, 16, VPCI_DEVICE, v->class->config_size);
	cap = add_cap(f, CAP_NOTIFY, 20, VPCI_NOTIFY,
		      v->class->nqueues * VPCI_NOTIFY_STEP);
	memcpy(f->config + cap + 16, &step, 4);
	v->window_cap = add_cap(f, CAP_WINDOW, 20, 0, 0);
	f->writable[v->window_cap + 4] = 0xff;
	memset(f->writable + v->window_cap + 8, 0xff, 12);
	ret = pci_add_msix(f, v->class->nqueues + 1, 0, VPCI_MSIX, VPCI_PBA);
	if (ret)
		return ret;
	return pci_add(v->dev.env->pci, f, err);
}

void virtio_pci_finish(struct virtio *v)
{
	pci_del(&v->pci);
	if (v->doorbell_base)
		set_doorbells(v, false);
	v->doorbell_base = 0;
}
