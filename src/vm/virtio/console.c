/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.c - virtio console: ports of characters, with names if they have some
 *
 * Port 0 has queues 0 and 1, a pair of control queues follows, then pairs for
 * the other ports (virtio 1.2, 5.3).  A driver without F_MULTIPORT knows port
 * 0 only.  What the host is to say on the control queue is a bit per port and
 * message, so a driver that gives no buffers makes nothing grow.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "vm/console/end.h"
#include "vm/virtio/virtq.h"

#define F_SIZE	    BIT(0)
#define F_MULTIPORT BIT(1)

enum { CONTROL_TO_GUEST = 2, CONTROL_FROM_GUEST = 3 };
enum { QUEUES = 2 + 2 * VIRTIO_CONSOLE_PORTS };
enum { INPUT_SIZE = 4096 }; /* bytes; a pasted screen or two */

enum { /* control messages */
       M_DEVICE_READY,
       M_ADD,
       M_REMOVE,
       M_READY,
       M_CONSOLE,
       M_RESIZE,
       M_OPEN,
       M_NAME,
};

struct message {
	uint32_t port;
	uint16_t event, value;
};

/* (i) set in init   (n) under in_lock   (v) under dev->lock */
struct port {
	struct console *c; /* (i) */
	struct end *end;   /* (i) or NULL */
	char name[32];	   /* (i) or "" */
	bool console;	   /* (i) */

	uint8_t input[INPUT_SIZE]; /* (n) a ring */
	uint32_t in_head, in_len;  /* (n) */
	bool full;		   /* (n) somebody was refused */
	bool changed;		   /* (n) the end has come or gone */

	bool ready, open;     /* (v) in the guest */
	bool blocked;	      /* (v) end_write() took less */
	uint8_t pending;      /* (v) messages to send, a bit each */
	uint32_t transmitted; /* (v) bytes of the first request of tx */
};

struct console {
	struct virtio v;
	unsigned nports; /* (i) */
	/* Its own lock, so that an end may call from anywhere. */
	pthread_mutex_t in_lock;
	struct port port[VIRTIO_CONSOLE_PORTS];
	void (*on_room)(void *sink); /* (n) of port 0 */
	void *room_sink;	     /* (n) */
	uint16_t cols, rows;	     /* (v) */
};

static struct console *to_console(struct dev *dev)
{
	return container_of(dev, struct console, v.dev);
}

static bool multiport(const struct console *c)
{
	return c->v.accepted & F_MULTIPORT;
}

static struct virtq *queue_of(struct port *p, bool from_guest)
{
	unsigned n = (unsigned)(p - p->c->port);

	return p->c->v.queue[(n ? 2 * n + 2 : 0) + from_guest];
}

/* -- to the guest --------------------------------------------------------- */

static size_t port_input(struct port *p, const uint8_t *data, size_t len)
{
	struct console *c = p->c;
	size_t n;

	pthread_mutex_lock(&c->in_lock);
	n = MIN(len, (size_t)(INPUT_SIZE - p->in_len));
	for (size_t i = 0; i < n; i++)
		p->input[(p->in_head + p->in_len++) % INPUT_SIZE] = data[i];
	if (n < len)
		p->full = true;
	pthread_mutex_unlock(&c->in_lock);
	if (n)
		virtio_wake(&c->v);
	return n;
}

size_t virtio_console_input(struct dev *dev, const void *data, size_t len)
{
	return port_input(&to_console(dev)->port[0], data, len);
}

void virtio_console_on_room(struct dev *dev, void (*f)(void *sink), void *sink)
{
	struct console *c = to_console(dev);

	pthread_mutex_lock(&c->in_lock);
	c->on_room = f;
	c->room_sink = sink;
	pthread_mutex_unlock(&c->in_lock);
}

static uint32_t take_input(struct port *p, const struct virtq_chain *chain)
{
	uint32_t done = 0;

	for (unsigned i = 0; i < chain->nwritable; i++) {
		uint8_t *to = chain->writable[i].iov_base;

		for (size_t k = 0; k < chain->writable[i].iov_len; k++) {
			if (!p->in_len)
				return done;
			to[k] = p->input[p->in_head];
			p->in_head = (p->in_head + 1) % INPUT_SIZE;
			p->in_len--;
			done++;
		}
	}
	return done;
}

static void tell_room(struct port *p)
{
	struct console *c = p->c;
	void (*on_room)(void *) = NULL;
	void *sink;

	pthread_mutex_lock(&c->in_lock);
	sink = c->room_sink;
	if (p == c->port)
		on_room = c->on_room;
	pthread_mutex_unlock(&c->in_lock);
	if (on_room)
		on_room(sink);
	if (p->end)
		end_more(p->end);
}

static void receive(struct port *p)
{
	struct virtq *q = queue_of(p, false);
	struct console *c = p->c;
	struct virtq_chain chain;
	bool room;

	/* Linux throws away what comes while nobody has the port open. */
	if (multiport(c) && !p->open)
		return;
	pthread_mutex_lock(&c->in_lock);
	while (p->in_len && virtq_pop(q, &chain) > 0)
		virtq_push(q, &chain, take_input(p, &chain));
	room = p->full && p->in_len < INPUT_SIZE;
	if (room)
		p->full = false;
	pthread_mutex_unlock(&c->in_lock);
	virtq_flush(q);
	if (room)
		tell_room(p);
}

/* -- from the guest ------------------------------------------------------- */

/* Whether all of the chain has gone; the rest waits for room. */
static bool put_chain(struct port *p, const struct virtq_chain *chain)
{
	size_t skip = p->transmitted;

	for (unsigned i = 0; i < chain->nreadable; i++) {
		const uint8_t *from = chain->readable[i].iov_base;
		size_t len = chain->readable[i].iov_len, n;

		if (skip >= len) {
			skip -= len;
			continue;
		}
		n = p->end ? end_write(p->end, from + skip, len - skip)
			   : len - skip;
		p->transmitted += (uint32_t)n;
		if (n < len - skip) {
			p->blocked = true;
			return false;
		}
		skip = 0;
	}
	p->transmitted = 0;
	return true;
}

static void transmit(struct port *p)
{
	struct virtq *q = queue_of(p, true);
	struct virtq_chain chain;
	unsigned n = 0;

	while (n++ < VIRTQ_MAX_SIZE && virtq_pop(q, &chain) > 0) {
		if (!put_chain(p, &chain)) {
			virtq_unpop(q, 1);
			break;
		}
		virtq_push(q, &chain, 0);
	}
	virtq_flush(q);
	if (n > VIRTQ_MAX_SIZE)
		virtq_ring(q);
}

/* -- control -------------------------------------------------------------- */

/* The message and what follows it; how long it is. */
static size_t compose(struct port *p, unsigned event, uint8_t *buf)
{
	struct message m = { (uint32_t)(p - p->c->port), (uint16_t)event, 1 };
	/* As in 5.3.6.2; Linux before 2025 took the rows first. */
	const uint16_t size[2] = { p->c->cols, p->c->rows };
	size_t len = sizeof(m);

	if (event == M_OPEN)
		m.value = !p->end || end_connected(p->end);
	if (event == M_RESIZE) {
		memcpy(buf + len, size, sizeof(size));
		len += sizeof(size);
	}
	if (event == M_NAME) {
		memcpy(buf + len, p->name, strlen(p->name));
		len += strlen(p->name);
	}
	memcpy(buf, &m, sizeof(m));
	return len;
}

/* false: the driver has to give buffers first. */
static bool send_message(struct port *p, unsigned event)
{
	struct virtq *q = p->c->v.queue[CONTROL_TO_GUEST];
	uint8_t buf[sizeof(struct message) + sizeof(p->name)];
	size_t len, done = 0;
	struct virtq_chain chain;

	if (virtq_pop(q, &chain) <= 0)
		return false;
	len = compose(p, event, buf);
	for (unsigned i = 0; i < chain.nwritable && done < len; i++) {
		size_t n = MIN(chain.writable[i].iov_len, len - done);

		memcpy(chain.writable[i].iov_base, buf + done, n);
		done += n;
	}
	virtq_push(q, &chain, (uint32_t)done);
	return true;
}

static void send_messages(struct console *c)
{
	/* The driver wants to know what a port is before it is opened. */
	static const uint8_t order[] = { M_ADD, M_CONSOLE, M_NAME, M_RESIZE,
					 M_OPEN };

	if (!multiport(c))
		return;
	for (unsigned i = 0; i < c->nports; i++) {
		struct port *p = &c->port[i];

		for (unsigned k = 0; p->pending && k < ARRAY_SIZE(order); k++) {
			if (!(p->pending & BIT(order[k])))
				continue;
			if (!send_message(p, order[k]))
				goto out;
			p->pending &= (uint8_t)~BIT(order[k]);
		}
	}
out:
	virtq_flush(c->v.queue[CONTROL_TO_GUEST]);
}

static void port_ready(struct port *p)
{
	p->ready = true;
	p->pending |= BIT(M_OPEN);
	if (p->console)
		p->pending |= BIT(M_CONSOLE) | BIT(M_RESIZE);
	if (*p->name)
		p->pending |= BIT(M_NAME);
}

static void take_message(struct console *c, const struct message *m)
{
	struct port *p = m->port < c->nports ? &c->port[m->port] : NULL;

	if (m->event == M_DEVICE_READY && m->value) {
		for (unsigned i = 0; i < c->nports; i++)
			c->port[i].pending |= BIT(M_ADD);
	} else if (m->event == M_READY && p && m->value) {
		port_ready(p);
	} else if (m->event == M_OPEN && p) {
		p->open = m->value;
		if (p->open)
			receive(p);
	}
}

static void control(struct console *c)
{
	struct virtq *q = c->v.queue[CONTROL_FROM_GUEST];
	struct virtq_chain chain;
	unsigned n = 0;

	while (n++ < VIRTQ_MAX_SIZE && virtq_pop(q, &chain) > 0) {
		struct message m = { 0 };
		size_t len = 0;

		for (unsigned i = 0; i < chain.nreadable && len < sizeof(m);
		     i++) {
			size_t part =
				MIN(chain.readable[i].iov_len, sizeof(m) - len);

			memcpy((uint8_t *)&m + len, chain.readable[i].iov_base,
			       part);
			len += part;
		}
		if (len == sizeof(m) && multiport(c))
			take_message(c, &m);
		virtq_push(q, &chain, 0);
	}
	virtq_flush(q);
	if (n > VIRTQ_MAX_SIZE)
		virtq_ring(q);
	send_messages(c);
}

/* -- the device ----------------------------------------------------------- */

static void console_kick(struct virtio *v, struct virtq *q)
{
	struct console *c = to_console(&v->dev);

	if (q->index == CONTROL_TO_GUEST || q->index == CONTROL_FROM_GUEST) {
		control(c);
		return;
	}
	for (unsigned i = 0; i < c->nports; i++) {
		if (q == queue_of(&c->port[i], false))
			receive(&c->port[i]);
		else if (q == queue_of(&c->port[i], true))
			transmit(&c->port[i]);
	}
}

static void console_work(struct virtio *v)
{
	struct console *c = to_console(&v->dev);
	unsigned n = multiport(c) ? c->nports : 1;

	for (unsigned i = 0; i < n; i++) {
		struct port *p = &c->port[i];
		bool changed;

		pthread_mutex_lock(&c->in_lock);
		changed = p->changed;
		p->changed = false;
		pthread_mutex_unlock(&c->in_lock);
		if (changed && p->ready)
			p->pending |= BIT(M_OPEN);
		receive(p);
		if (p->blocked || changed) {
			p->blocked = false;
			transmit(p);
		}
	}
	send_messages(c);
}

static int console_start(struct virtio *v)
{
	struct console *c = to_console(&v->dev);

	/* Ends may have come and gone while the machine was saved. */
	for (unsigned i = 0; i < c->nports; i++)
		if (c->port[i].ready && multiport(c))
			c->port[i].pending |= BIT(M_OPEN);
	return 0;
}

static void console_forget(struct virtio *v)
{
	struct console *c = to_console(&v->dev);

	for (unsigned i = 0; i < c->nports; i++) {
		struct port *p = &c->port[i];

		p->ready = p->open = false;
		p->pending = 0;
		p->transmitted = 0;
	}
}

static void set_size(struct console *c, uint16_t cols, uint16_t rows)
{
	c->cols = cols;
	c->rows = rows;
	memcpy(c->v.config, &cols, 2);
	memcpy(c->v.config + 2, &rows, 2);
}

void virtio_console_resize(struct dev *dev, uint16_t cols, uint16_t rows)
{
	struct console *c = to_console(dev);

	pthread_mutex_lock(&c->v.dev.lock);
	set_size(c, cols, rows);
	for (unsigned i = 0; i < c->nports; i++)
		if (c->port[i].console && c->port[i].ready)
			c->port[i].pending |= BIT(M_RESIZE);
	virtio_config_changed_locked(&c->v);
	pthread_mutex_unlock(&c->v.dev.lock);
	virtio_wake(&c->v);
}

/* What the driver has queued goes to its end.  Whether some of it did not. */
static bool send_queued(struct console *c)
{
	unsigned n = multiport(c) ? c->nports : 1;
	bool left = false;

	for (unsigned i = 0; i < n; i++) {
		struct port *p = &c->port[i];

		if (!queue_of(p, true)->enabled)
			continue;
		p->blocked = false;
		transmit(p);
		left |= p->blocked;
	}
	return left;
}

void virtio_console_drain(struct dev *dev, uint64_t limit_ns)
{
	const struct timespec pause = { .tv_nsec = 5000000 };
	struct console *c = to_console(dev);
	uint64_t end = loop_now() + limit_ns;
	bool left;

	for (;;) {
		pthread_mutex_lock(&dev->lock);
		left = c->v.started && !(c->v.status & STATUS_NEEDS_RESET) &&
		       send_queued(c);
		pthread_mutex_unlock(&dev->lock);
		if (!left)
			break;
		if (loop_now() >= end)
			return;
		nanosleep(&pause, NULL);
	}
	for (unsigned i = 0; i < c->nports; i++)
		while (c->port[i].end && !end_is_read(c->port[i].end) &&
		       loop_now() < end)
			nanosleep(&pause, NULL);
}

/* -- what ends call ------------------------------------------------------- */

static size_t end_input(void *sink, const void *data, size_t len)
{
	return port_input(sink, data, len);
}

static void end_room(void *sink)
{
	struct port *p = sink;

	virtio_wake(&p->c->v);
}

static void end_changed(void *sink, bool on)
{
	struct port *p = sink;

	pthread_mutex_lock(&p->c->in_lock);
	p->changed = true;
	pthread_mutex_unlock(&p->c->in_lock);
	virtio_wake(&p->c->v);
}

/* -- birth and death ------------------------------------------------------ */

static void add_ports(struct console *c, const struct virtio_console_arg *a)
{
	c->nports = a ? MIN(a->nports, (unsigned)VIRTIO_CONSOLE_PORTS) : 0;
	for (unsigned i = 0; i < c->nports; i++) {
		struct port *p = &c->port[i];

		p->c = c;
		p->end = a->port[i].end;
		p->console = a->port[i].console;
		if (a->port[i].name)
			snprintf(p->name, sizeof(p->name), "%s",
				 a->port[i].name);
	}
	/* There is always the first one, if only for nothing. */
	c->port[0].c = c;
	if (!c->nports) {
		c->nports = 1;
		c->port[0].console = true;
	}
}

static int console_init(struct dev *dev, const void *arg,
			struct husk_error *err)
{
	struct console *c = to_console(dev);
	uint32_t nports;
	int ret;

	c->v.offered = F_SIZE | F_MULTIPORT;
	add_ports(c, arg);
	pthread_mutex_init(&c->in_lock, NULL);
	ret = virtio_init(&c->v, err);
	if (ret) {
		pthread_mutex_destroy(&c->in_lock);
		return ret;
	}
	nports = c->nports;
	memcpy(c->v.config + 4, &nports, 4);
	set_size(c, 80, 25);
	for (unsigned i = 0; i < c->nports; i++)
		if (c->port[i].end)
			end_attach(c->port[i].end,
				   &(struct end_user){ end_input, end_room,
						       end_changed,
						       &c->port[i] });
	return 0;
}

static void console_finish(struct dev *dev)
{
	struct console *c = to_console(dev);

	for (unsigned i = 0; i < c->nports; i++)
		if (c->port[i].end)
			end_attach(c->port[i].end, NULL);
	virtio_finish(&c->v);
	pthread_mutex_destroy(&c->in_lock);
}

static void port_state(struct port *p, unsigned n, struct state *s)
{
	char name[32];

#define FIELD(kind, field) \
	do { \
		snprintf(name, sizeof(name), "p%u." #field, n); \
		state_##kind(s, name, &p->field); \
	} while (0)
	FIELD(u32, in_head);
	FIELD(u32, in_len);
	FIELD(bool, ready);
	FIELD(bool, open);
	FIELD(u8, pending);
	FIELD(u32, transmitted);
#undef FIELD
	snprintf(name, sizeof(name), "p%u.input", n);
	state_bytes(s, name, p->input, sizeof(p->input));
}

static void console_state(struct dev *dev, struct state *s)
{
	struct console *c = to_console(dev);

	virtio_state(dev, s);
	pthread_mutex_lock(&c->in_lock);
	for (unsigned i = 0; i < c->nports; i++)
		port_state(&c->port[i], i, s);
	pthread_mutex_unlock(&c->in_lock);
}

static int console_check(struct dev *dev)
{
	struct console *c = to_console(dev);
	uint32_t nports = c->nports;
	int ret = 0;

	for (unsigned i = 0; i < c->nports; i++) {
		struct port *p = &c->port[i];

		if (p->in_head >= INPUT_SIZE || p->in_len > INPUT_SIZE) {
			p->in_head = p->in_len = 0;
			ret = -EINVAL;
		}
	}
	memcpy(&c->cols, c->v.config, 2);
	memcpy(&c->rows, c->v.config + 2, 2);
	/* The driver has this many queues. */
	if (memcmp(c->v.config + 4, &nports, 4))
		ret = -EINVAL;
	memcpy(c->v.config + 4, &nports, 4);
	return ret ? ret : virtio_check(dev);
}

const struct virtio_class virtio_console_class = {
	.dev = {
		.name	= "virtio-console",
		.size	= sizeof(struct console),
		.version = 2,
		.init	= console_init,
		.finish	= console_finish,
		.reset	= virtio_reset,
		.pause	= virtio_pause,
		.resume	= virtio_resume,
		.state	= console_state,
		.check	= console_check,
	},
	.id	= VIRTIO_ID_CONSOLE,
	.nqueues = QUEUES,
	.config_size = 12,
	.pci_class = 0x078000,
	.start	= console_start,
	.forget	= console_forget,
	.kick	= console_kick,
	.work	= console_work,
};
