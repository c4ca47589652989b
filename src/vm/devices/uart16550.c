/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uart16550.c - a 16550A serial port
 *
 * Sent bytes leave in batches: when a line or the buffer is full, or one
 * millisecond after the first byte.
 *
 * When their reader is slow the transmitter is busy: THRE is off.
 *
 * The far end keeps to RTS: its bytes wait until the guest listens, so that
 * what is typed ahead survives the probing and FIFO resets of a driver.
 */
#include "vm/chips.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum {
	FIFO = 16,
	IER_RX = 1,
	IER_THRE = 2,
	IER_LINE = 4,
	IER_MODEM = 8,
	LCR_DLAB = 0x80,
	MCR_RTS = 2,
	MCR_LOOP = 0x10,
	MCR_OUT2 = 8,
	LSR_DR = 1,
	LSR_OE = 2,
	LSR_THRE = 0x20,
	LSR_TEMT = 0x40,
	FCR_ON = 1,
	/* So many reads of LSR in a row: a reader that polls, without RTS. */
	POLLS = 16,
};

struct uart {
	struct dev dev;
	struct region region;
	struct uart_arg arg;
	struct chip_timer timer;
	void (*room)(void *sink);
	void *room_sink;
	uint8_t ier, lcr, mcr, scr, fcr, dll, dlm, msr;
	bool thre, overrun; /* THRE interrupt pends; LSR.OE */
	bool refused;	    /* the far end has more */
	bool busy;	    /* who reads the output is slow */
	uint8_t polls;	    /* of LSR since another register, to POLLS */
	uint8_t rx[FIFO], rx_count;
	uint8_t out[512];
	unsigned out_count;
};

static void flush(struct uart *u)
{
	unsigned n = u->out_count;

	u->out_count = 0;
	if (!n || !u->arg.output)
		return;
	/* It keeps what it gets; a driver that looks at THRE sends no more. */
	if (!u->arg.output(u->arg.sink, u->out, n))
		u->busy = true;
}

static void uart_fire(struct dev *dev)
{
	flush(container_of(dev, struct uart, dev));
}

static uint8_t trigger(const struct uart *u)
{
	static const uint8_t level[4] = { 1, 4, 8, 14 };

	return u->fcr & FCR_ON ? level[u->fcr >> 6] : 1;
}

static uint8_t cause(const struct uart *u)
{
	if ((u->ier & IER_LINE) && u->overrun)
		return 6;
	if ((u->ier & IER_RX) && u->rx_count)
		/* Below the trigger: the time-out, without the wait. */
		return u->rx_count >= trigger(u) ? 4 : 0xc;
	if ((u->ier & IER_THRE) && u->thre && !u->busy)
		return 2;
	if ((u->ier & IER_MODEM) && (u->msr & 0xf))
		return 0;
	return 1;
}

static void update(struct uart *u)
{
	irq_set(&u->arg.irq, cause(u) != 1);
}

static void modem(struct uart *u)
{
	uint8_t old = u->msr, new = 0xb0; /* DCD, DSR, CTS */

	if (u->mcr & MCR_LOOP)
		new = (u->mcr & 2) << 3 | (u->mcr & 1) << 5 |
		      (u->mcr & 0xc) << 4;
	new |= old & 0xf;
	new |= ((old ^ new) & 0xb0) >> 4;
	if ((old & 0x40) && !(new & 0x40))
		new |= 4; /* trailing edge of RI */
	u->msr = new;
}

static bool listens(const struct uart *u)
{
	if (u->mcr & MCR_LOOP)
		return false;
	/* A driver that comes up still clears the FIFO; RTS is its last word. */
	return u->mcr & MCR_RTS || u->polls >= POLLS ||
	       (u->ier & IER_RX && u->mcr & MCR_OUT2 && u->fcr & FCR_ON);
}

static bool receive(struct uart *u, uint8_t byte)
{
	unsigned size = u->fcr & FCR_ON ? FIFO : 1;

	if (u->rx_count >= size)
		return false;
	u->rx[u->rx_count++] = byte;
	return true;
}

static void send(struct uart *u, uint8_t byte)
{
	u->thre = true;
	if (u->mcr & MCR_LOOP) {
		if (!receive(u, byte))
			u->overrun = true;
		return;
	}
	u->out[u->out_count++] = byte;
	if (byte == '\n' || u->out_count == sizeof(u->out))
		flush(u);
	else if (u->out_count == 1)
		chip_timer_set(&u->timer, dev_now(&u->dev) + 1000000);
}

static uint8_t take(struct uart *u)
{
	uint8_t byte = u->rx[0];

	if (!u->rx_count)
		return 0;
	memmove(u->rx, u->rx + 1, --u->rx_count);
	return byte;
}

static uint8_t reg_read(struct uart *u, unsigned reg)
{
	uint8_t v = 0;

	switch (reg) {
	case 0: return u->lcr & LCR_DLAB ? u->dll : take(u);
	case 1: return u->lcr & LCR_DLAB ? u->dlm : u->ier;
	case 2:
		v = cause(u);
		if (v == 2)
			u->thre = false;
		return v | (u->fcr & FCR_ON ? 0xc0 : 0);
	case 3: return u->lcr;
	case 4: return u->mcr;
	case 5:
		v = u->busy ? 0 : LSR_THRE | LSR_TEMT;
		if (u->rx_count)
			v |= LSR_DR;
		if (u->overrun)
			v |= LSR_OE;
		u->overrun = false;
		return v;
	case 6:
		v = u->msr;
		u->msr &= 0xf0;
		return v;
	default: return u->scr;
	}
}

static void reg_write(struct uart *u, unsigned reg, uint8_t v)
{
	switch (reg) {
	case 0:
		if (u->lcr & LCR_DLAB)
			u->dll = v;
		else
			send(u, v);
		break;
	case 1:
		if (u->lcr & LCR_DLAB) {
			u->dlm = v;
			break;
		}
		/* Asking anew while the register is empty interrupts. */
		if ((v & IER_THRE) && !(u->ier & IER_THRE))
			u->thre = true;
		u->ier = v & 0xf;
		break;
	case 2:
		if (((v ^ u->fcr) & FCR_ON) || (v & 2))
			u->rx_count = 0;
		u->fcr = v & FCR_ON ? v & 0xc9 : 0;
		break;
	case 3: u->lcr = v; break;
	case 4:
		u->mcr = v & 0x1f;
		modem(u);
		break;
	case 7: u->scr = v; break;
	}
}

/* Once, when the FIFO is empty again. */
static void tell_room(struct uart *u)
{
	if (!u->refused || u->rx_count || !listens(u))
		return;
	u->refused = false;
	if (u->room)
		u->room(u->room_sink);
}

static void count_poll(struct uart *u, bool poll)
{
	if (!poll)
		u->polls = 0;
	else if (u->polls < POLLS)
		u->polls++;
}

static uint64_t uart_read(struct dev *dev, uint64_t off, unsigned size)
{
	struct uart *u = container_of(dev, struct uart, dev);
	uint8_t v = reg_read(u, off & 7);

	count_poll(u, (off & 7) == 5);
	update(u);
	tell_room(u);
	return v;
}

static void uart_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	struct uart *u = container_of(dev, struct uart, dev);

	count_poll(u, false);
	reg_write(u, off & 7, v);
	update(u);
	tell_room(u);
}

static const struct region_ops uart_ops = { uart_read, uart_write, 1, 1 };

size_t uart_input(struct dev *dev, const void *data, size_t len)
{
	struct uart *u = container_of(dev, struct uart, dev);
	const uint8_t *p = data;
	size_t n = 0;

	pthread_mutex_lock(&dev->lock);
	while (n < len && listens(u) && receive(u, p[n]))
		n++;
	u->refused = n < len;
	update(u);
	pthread_mutex_unlock(&dev->lock);
	return n;
}

void uart_ready(struct dev *dev)
{
	struct uart *u = container_of(dev, struct uart, dev);

	pthread_mutex_lock(&dev->lock);
	if (u->busy) {
		u->busy = false;
		u->thre = true;
		update(u);
	}
	pthread_mutex_unlock(&dev->lock);
}

void uart_flush(struct dev *dev)
{
	pthread_mutex_lock(&dev->lock);
	flush(container_of(dev, struct uart, dev));
	pthread_mutex_unlock(&dev->lock);
}

void uart_on_room(struct dev *dev, void (*f)(void *sink), void *sink)
{
	struct uart *u = container_of(dev, struct uart, dev);

	pthread_mutex_lock(&dev->lock);
	u->room = f;
	u->room_sink = sink;
	pthread_mutex_unlock(&dev->lock);
}

static void uart_reset(struct dev *dev)
{
	struct uart *u = container_of(dev, struct uart, dev);

	flush(u);
	u->ier = u->lcr = u->mcr = u->scr = u->fcr = u->dlm = 0;
	u->dll = 12;
	u->msr = 0xb0;
	u->thre = u->overrun = false;
	u->rx_count = u->polls = 0;
	update(u);
}

static int uart_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct uart *u = container_of(dev, struct uart, dev);

	u->arg = *(const struct uart_arg *)arg;
	chip_timer_init(&u->timer, dev, uart_fire);
	if (chip_region(dev, &u->region, &uart_ops, dev->env->pio, u->arg.port,
			8))
		return error_set(err, -EBUSY, "%s: port %x taken", dev->id,
				 u->arg.port);
	uart_reset(dev);
	return 0;
}

static void uart_finish(struct dev *dev)
{
	struct uart *u = container_of(dev, struct uart, dev);

	bus_del(dev->env->pio, &u->region);
	chip_timer_finish(&u->timer);
	flush(u);
}

static void uart_state(struct dev *dev, struct state *s)
{
	struct uart *u = container_of(dev, struct uart, dev);

	/* What was sent is outside, not in the saved machine. */
	flush(u);
	state_u8(s, "ier", &u->ier);
	state_u8(s, "lcr", &u->lcr);
	state_u8(s, "mcr", &u->mcr);
	state_u8(s, "scr", &u->scr);
	state_u8(s, "fcr", &u->fcr);
	state_u8(s, "dll", &u->dll);
	state_u8(s, "dlm", &u->dlm);
	state_u8(s, "msr", &u->msr);
	state_bool(s, "thre", &u->thre);
	state_bool(s, "overrun", &u->overrun);
	state_bytes(s, "rx", u->rx, sizeof(u->rx));
	state_u8(s, "rx_count", &u->rx_count);
}

static int uart_check(struct dev *dev)
{
	struct uart *u = container_of(dev, struct uart, dev);

	if (u->rx_count > FIFO || u->ier > 15 || u->mcr > 0x1f)
		return -EINVAL;
	update(u);
	return 0;
}

const struct dev_class uart16550_class = {
	.name = "uart16550",
	.size = sizeof(struct uart),
	.version = 1,
	.init = uart_init,
	.finish = uart_finish,
	.reset = uart_reset,
	.state = uart_state,
	.check = uart_check,
};
