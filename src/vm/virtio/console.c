/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.c - virtio console with one port
 */
#include <errno.h>
#include <string.h>

#include "vm/virtio.h"

#define F_SIZE BIT(0)

enum { RX, TX };
enum { INPUT_SIZE = 4096 }; /* bytes; a pasted screen or two */

/* (i) set in init   (n) under in_lock   (v) under dev->lock */
struct console {
	struct virtio v;
	struct virtio_console_arg arg; /* (i) */
	/* Its own lock, so that output() may call virtio_console_input(). */
	pthread_mutex_t in_lock;
	uint8_t input[INPUT_SIZE];   /* (n) a ring */
	uint32_t in_head, in_len;    /* (n) */
	bool full;		     /* (n) somebody was refused */
	void (*on_room)(void *sink); /* (n) */
	void *room_sink;	     /* (n) */
};

static struct console *to_console(struct dev *dev)
{
	return container_of(dev, struct console, v.dev);
}

size_t virtio_console_input(struct dev *dev, const void *data, size_t len)
{
	struct console *c = to_console(dev);
	const uint8_t *p = data;
	size_t n;

	pthread_mutex_lock(&c->in_lock);
	n = MIN(len, (size_t)(INPUT_SIZE - c->in_len));
	for (size_t i = 0; i < n; i++)
		c->input[(c->in_head + c->in_len++) % INPUT_SIZE] = p[i];
	if (n < len)
		c->full = true;
	pthread_mutex_unlock(&c->in_lock);
	if (n)
		virtio_wake(&c->v);
	return n;
}

void virtio_console_on_room(struct dev *dev, void (*f)(void *sink), void *sink)
{
	struct console *c = to_console(dev);

	pthread_mutex_lock(&c->in_lock);
	c->on_room = f;
	c->room_sink = sink;
	pthread_mutex_unlock(&c->in_lock);
}

static uint32_t take_input(struct console *c, const struct virtq_chain *chain)
{
	uint32_t done = 0;

	for (unsigned i = 0; i < chain->nwritable; i++) {
		uint8_t *p = chain->writable[i].iov_base;

		for (size_t k = 0; k < chain->writable[i].iov_len; k++) {
			if (!c->in_len)
				return done;
			p[k] = c->input[c->in_head];
			c->in_head = (c->in_head + 1) % INPUT_SIZE;
			c->in_len--;
			done++;
		}
	}
	return done;
}

static void receive(struct virtio *v)
{
	struct console *c = to_console(&v->dev);
	void (*on_room)(void *) = NULL;
	struct virtq_chain chain;
	void *sink = NULL;

	pthread_mutex_lock(&c->in_lock);
	while (c->in_len && virtq_pop(v->queue[RX], &chain) > 0)
		virtq_push(v->queue[RX], &chain, take_input(c, &chain));
	if (c->full && c->in_len < INPUT_SIZE) {
		c->full = false;
		on_room = c->on_room;
		sink = c->room_sink;
	}
	pthread_mutex_unlock(&c->in_lock);
	virtq_flush(v->queue[RX]);
	if (on_room)
		on_room(sink);
}

static void transmit(struct virtio *v)
{
	struct console *c = to_console(&v->dev);
	struct virtq_chain chain;

	while (virtq_pop(v->queue[TX], &chain) > 0) {
		for (unsigned i = 0; i < chain.nreadable; i++)
			if (c->arg.output)
				c->arg.output(c->arg.sink,
					      chain.readable[i].iov_base,
					      chain.readable[i].iov_len);
		virtq_push(v->queue[TX], &chain, 0);
	}
	virtq_flush(v->queue[TX]);
}

static void console_kick(struct virtio *v, struct virtq *q)
{
	if (q == v->queue[RX])
		receive(v);
	else
		transmit(v);
}

static void set_size(struct console *c, uint16_t cols, uint16_t rows)
{
	memcpy(c->v.config, &cols, 2);
	memcpy(c->v.config + 2, &rows, 2);
}

void virtio_console_resize(struct dev *dev, uint16_t cols, uint16_t rows)
{
	struct console *c = to_console(dev);

	pthread_mutex_lock(&c->v.dev.lock);
	set_size(c, cols, rows);
	pthread_mutex_unlock(&c->v.dev.lock);
	virtio_config_changed(&c->v);
}

static int console_init(struct dev *dev, const void *arg,
			struct husk_error *err)
{
	struct console *c = to_console(dev);
	int ret;

	if (arg)
		c->arg = *(const struct virtio_console_arg *)arg;
	c->v.offered = F_SIZE;
	pthread_mutex_init(&c->in_lock, NULL);
	ret = virtio_init(&c->v, err);
	if (ret) {
		pthread_mutex_destroy(&c->in_lock);
		return ret;
	}
	set_size(c, 80, 25);
	return 0;
}

static void console_finish(struct dev *dev)
{
	struct console *c = to_console(dev);

	virtio_finish(&c->v);
	pthread_mutex_destroy(&c->in_lock);
}

static void console_state(struct dev *dev, struct state *s)
{
	struct console *c = to_console(dev);

	virtio_state(dev, s);
	pthread_mutex_lock(&c->in_lock);
	state_u32(s, "in_head", &c->in_head);
	state_u32(s, "in_len", &c->in_len);
	state_bytes(s, "input", c->input, sizeof(c->input));
	pthread_mutex_unlock(&c->in_lock);
}

static int console_check(struct dev *dev)
{
	struct console *c = to_console(dev);

	if (c->in_head >= INPUT_SIZE || c->in_len > INPUT_SIZE) {
		c->in_head = c->in_len = 0;
		return -EINVAL;
	}
	return virtio_check(dev);
}

const struct virtio_class virtio_console_class = {
	.dev = {
		.name	= "virtio-console",
		.size	= sizeof(struct console),
		.version = 1,
		.init	= console_init,
		.finish	= console_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= console_state,
		.check	= console_check,
	},
	.id	= VIRTIO_ID_CONSOLE,
	.nqueues = 2,
	.config_size = 12,
	.pci_class = 0x078000,
	.kick	= console_kick,
	.work	= receive,
};
