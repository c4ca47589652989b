/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio.c - negotiation, life, thread and saved state of virtio devices
 *
 * Each device has one thread.  A doorbell is an eventfd per queue that the
 * engine signals or, without its help, the MMIO write itself; the thread
 * waits for all of them and works with dev->lock held.  So whoever holds the
 * lock and has called stop() knows that nothing touches guest memory: that
 * is how reset and pause keep their promise.
 */
#include "vm/virtio/virtq.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/thread.h"
#include "husk/vm.h"

/* -- the device's thread -------------------------------------------------- */

static void ring(int fd)
{
	uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof(one));

	(void)n; /* EAGAIN: it is signalled as much as can be */
}

void virtq_ring(struct virtq *q)
{
	ring(q->kick_fd);
}

void virtio_wake(struct virtio *v)
{
	ring(v->wake_fd);
}

static bool working(const struct virtio *v)
{
	return v->started && !(v->status & STATUS_NEEDS_RESET);
}

void virtio_turn_locked(struct virtio *v, bool work, uint32_t queues)
{
	if (work && working(v) && v->class->work)
		v->class->work(v);
	for (unsigned i = 0; i < v->class->nqueues; i++)
		if (queues & BIT(i) && working(v) && v->queue[i]->enabled)
			v->class->kick(v, v->queue[i]);
}

static bool take(struct pollfd *p)
{
	uint64_t count;

	return p->revents & POLLIN &&
	       read(p->fd, &count, sizeof(count)) == sizeof(count);
}

static void *device_thread(void *arg)
{
	struct virtio *v = arg;
	struct pollfd fds[VIRTIO_MAX_QUEUES + 2];
	unsigned n = v->class->nqueues;
	bool quit = false;

	for (unsigned i = 0; i < n; i++)
		fds[i] = (struct pollfd){ v->queue[i]->kick_fd, POLLIN, 0 };
	fds[n] = (struct pollfd){ v->wake_fd, POLLIN, 0 };
	fds[n + 1] = (struct pollfd){ -1, POLLIN, 0 };
	while (!quit) {
		uint32_t queues = 0;
		bool work;

		if (poll(fds, n + 2, -1) < 0)
			continue;
		/* Rings taken while stopped are made up for by start. */
		pthread_mutex_lock(&v->dev.lock);
		for (unsigned i = 0; i < n; i++)
			if (take(&fds[i]))
				queues |= BIT(i);
		work = take(&fds[n]);
		work |= fds[n + 1].revents != 0;
		virtio_turn_locked(v, work, queues);
		/* A start wakes us, so it is found again. */
		fds[n + 1].fd = v->class->polls && working(v) ? v->poll_fd : -1;
		quit = v->quit;
		pthread_mutex_unlock(&v->dev.lock);
	}
	return NULL;
}

/* -- starting and stopping ------------------------------------------------ */

int virtio_broken(struct virtio *v, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	if (v->status & STATUS_NEEDS_RESET)
		return -EPROTO;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	dev_log(&v->dev, "stopped, the driver must reset it: %s", text);
	dev_news(&v->dev, VM_NEWS_BROKEN, 0);
	v->status |= STATUS_NEEDS_RESET;
	v->generation++;
	virtio_pci_notify_locked(v, v->config_vector, 2);
	return -EPROTO;
}

static void start_locked(struct virtio *v)
{
	for (unsigned i = 0; i < v->class->nqueues; i++) {
		struct virtq *q = v->queue[i];

		if (q->enabled && virtq_map(q)) {
			virtio_broken(v, "queue %u: rings are not in memory",
				      i);
			return;
		}
	}
	if (v->class->start && v->class->start(v)) {
		virtio_broken(v, "could not be started");
		return;
	}
	v->started = true;
	for (unsigned i = 0; i < v->class->nqueues; i++)
		virtq_ring(v->queue[i]);
	virtio_wake(v);
}

static void stop_locked(struct virtio *v)
{
	if (v->started && v->class->stop)
		v->class->stop(v);
	v->started = false;
}

static void reset_locked(struct virtio *v)
{
	stop_locked(v);
	v->accepted = 0;
	v->status = v->isr = 0;
	v->device_select = v->driver_select = 0;
	v->queue_select = 0;
	v->config_vector = VIRTIO_NO_VECTOR;
	for (unsigned i = 0; i < v->class->nqueues; i++)
		virtq_reset(v->queue[i]);
	if (v->class->forget)
		v->class->forget(v);
	irq_set(&v->pci.intx, false);
}

void virtio_set_features_locked(struct virtio *v, uint32_t value)
{
	unsigned shift = v->driver_select * 32;

	if (v->driver_select > 1 || v->status & STATUS_FEATURES_OK)
		return;
	v->accepted &= ~((uint64_t)UINT32_MAX << shift);
	v->accepted |= (uint64_t)value << shift;
}

void virtio_set_status_locked(struct virtio *v, uint8_t status)
{
	uint8_t added = status & ~v->status;

	if (!status) {
		reset_locked(v);
		return;
	}
	/* Only the device sets NEEDS_RESET; only reset clears bits. */
	added &= ~STATUS_NEEDS_RESET;
	if (added & STATUS_FEATURES_OK &&
	    (v->accepted & ~v->offered || !(v->accepted & VIRTIO_F_VERSION_1)))
		added &= ~STATUS_FEATURES_OK;
	if (!((v->status | added) & STATUS_FEATURES_OK))
		added &= ~STATUS_DRIVER_OK;
	v->status |= added;
	if (added & STATUS_DRIVER_OK && !v->paused &&
	    !(v->status & STATUS_NEEDS_RESET))
		start_locked(v);
}

void virtio_config_changed_locked(struct virtio *v)
{
	v->generation++;
	if (v->status & STATUS_DRIVER_OK)
		virtio_pci_notify_locked(v, v->config_vector, 2);
}

void virtio_config_changed(struct virtio *v)
{
	pthread_mutex_lock(&v->dev.lock);
	virtio_config_changed_locked(v);
	pthread_mutex_unlock(&v->dev.lock);
}

void virtio_reset(struct dev *dev)
{
	struct virtio *v = to_virtio(dev);

	pthread_mutex_lock(&v->dev.lock);
	reset_locked(v);
	pthread_mutex_unlock(&v->dev.lock);
	pci_func_reset(&v->pci);
}

void virtio_pause(struct dev *dev)
{
	struct virtio *v = to_virtio(dev);

	pthread_mutex_lock(&v->dev.lock);
	stop_locked(v);
	v->paused = true;
	pthread_mutex_unlock(&v->dev.lock);
}

void virtio_resume(struct dev *dev)
{
	struct virtio *v = to_virtio(dev);

	pthread_mutex_lock(&v->dev.lock);
	v->paused = false;
	if (!v->started && v->status & STATUS_DRIVER_OK &&
	    !(v->status & STATUS_NEEDS_RESET))
		start_locked(v);
	pthread_mutex_unlock(&v->dev.lock);
}

/* -- birth and death ------------------------------------------------------ */

static void free_parts(struct virtio *v)
{
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		if (v->queue[i] && v->queue[i]->kick_fd >= 0)
			close(v->queue[i]->kick_fd);
		free(v->queue[i]);
		v->queue[i] = NULL;
	}
	if (v->wake_fd >= 0)
		close(v->wake_fd);
	free(v->config);
	v->config = NULL;
}

static int make_queue(struct virtio *v, unsigned index)
{
	struct virtq *q = malloc(sizeof(*q));

	if (!q)
		return -ENOMEM;
	memset(q, 0, offsetof(struct virtq, iov));
	v->queue[index] = q;
	q->v = v;
	q->index = index;
	q->max_size = v->class->queue_size ? v->class->queue_size : 256;
	virtq_reset(q);
	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return q->kick_fd < 0 ? -errno : 0;
}

int virtio_init(struct virtio *v, struct husk_error *err)
{
	int ret = 0;

	v->class = container_of(v->dev.class, const struct virtio_class, dev);
	v->offered |= VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC |
		      VIRTIO_F_EVENT_IDX;
	v->config_vector = VIRTIO_NO_VECTOR;
	v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->wake_fd < 0)
		ret = -errno;
	v->config = calloc(1, v->class->config_size + 1);
	if (!v->config)
		ret = -ENOMEM;
	for (unsigned i = 0; !ret && i < v->class->nqueues; i++)
		ret = make_queue(v, i);
	if (ret) {
		error_errno(err, ret, "%s: no resources for its queues",
			    v->dev.id);
		goto err_parts;
	}
	ret = virtio_pci_init(v, err);
	if (ret)
		goto err_parts;
	ret = thread_start(&v->thread, v->dev.id, device_thread, v);
	if (ret) {
		error_errno(err, ret, "%s: no thread", v->dev.id);
		goto err_pci;
	}
	return 0;
err_pci:
	virtio_pci_finish(v);
err_parts:
	free_parts(v);
	return ret;
}

void virtio_finish(struct virtio *v)
{
	pthread_mutex_lock(&v->dev.lock);
	stop_locked(v);
	v->quit = true;
	pthread_mutex_unlock(&v->dev.lock);
	virtio_wake(v);
	pthread_join(v->thread, NULL);
	virtio_pci_finish(v);
	free_parts(v);
}

/* -- saved state ---------------------------------------------------------- */

static void queue_state(struct virtq *q, struct state *s)
{
	char name[32];

#define FIELD(bits, field) \
	do { \
		snprintf(name, sizeof(name), "q%u." #field, q->index); \
		state_##bits(s, name, &q->field); \
	} while (0)
	FIELD(u16, size);
	FIELD(u16, vector);
	FIELD(bool, enabled);
	FIELD(u64, desc);
	FIELD(u64, avail);
	FIELD(u64, used);
	FIELD(u16, last_avail);
	FIELD(u16, used_idx);
	FIELD(u16, signalled);
	FIELD(bool, signalled_valid);
#undef FIELD
}

void virtio_state(struct dev *dev, struct state *s)
{
	struct virtio *v = to_virtio(dev);

	state_u64(s, "accepted", &v->accepted);
	state_u8(s, "status", &v->status);
	state_u8(s, "generation", &v->generation);
	state_u8(s, "isr", &v->isr);
	state_u32(s, "device_select", &v->device_select);
	state_u32(s, "driver_select", &v->driver_select);
	state_u16(s, "queue_select", &v->queue_select);
	state_u16(s, "config_vector", &v->config_vector);
	for (unsigned i = 0; i < v->class->nqueues; i++)
		queue_state(v->queue[i], s);
	if (v->class->config_size)
		state_bytes(s, "config", v->config, v->class->config_size);
	pci_func_state(&v->pci, s);
}

static bool vector_ok(const struct virtio *v, uint16_t vector)
{
	return vector == VIRTIO_NO_VECTOR || vector < v->pci.msix.count;
}

static bool queue_ok(struct virtio *v, struct virtq *q)
{
	if (!q->size || q->size > q->max_size || q->size & (q->size - 1) ||
	    !vector_ok(v, q->vector))
		return false;
	/* A broken device may well have rings outside of memory. */
	return !q->enabled || !(v->status & STATUS_DRIVER_OK) ||
	       v->status & STATUS_NEEDS_RESET || !virtq_map(q);
}

int virtio_check(struct dev *dev)
{
	struct virtio *v = to_virtio(dev);

	if (v->status & STATUS_FEATURES_OK && v->accepted & ~v->offered)
		return -EINVAL;
	if (v->status & STATUS_DRIVER_OK && !(v->status & STATUS_FEATURES_OK))
		return -EINVAL;
	if (!vector_ok(v, v->config_vector))
		return -EINVAL;
	for (unsigned i = 0; i < v->class->nqueues; i++)
		if (!queue_ok(v, v->queue[i]))
			return -EINVAL;
	irq_set(&v->pci.intx, v->isr && !msix_enabled(&v->pci));
	return pci_func_check(&v->pci);
}
