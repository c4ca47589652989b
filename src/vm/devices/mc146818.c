/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mc146818.c - the real-time clock (UTC of the host) and its memory
 */
#include "vm/chips.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "vm/devices/timer.h"

enum {
	REG_A = 10,
	REG_B = 11,
	REG_C = 12,
	REG_D = 13,
	CENTURY = 0x32,
	UIP = 0x80,
	B_SET = 0x80,
	B_BIN = 4,
	B_24H = 2,
	PF = 0x40,
	AF = 0x20,
	UF = 0x10,
	IRQF = 0x80,
};

#define SECOND 1000000000ull

struct rtc {
	struct dev dev;
	struct region region;
	struct rtc_arg arg;
	struct chip_timer timer;
	uint8_t index, mem[128];
	int64_t offset;	      /* guest's clock minus the host's, s */
	uint64_t next_period; /* machine time, 0: off */
	int64_t last_second;  /* update was noticed for */
};

static struct rtc *rtc_of(struct dev *dev)
{
	return container_of(dev, struct rtc, dev);
}

static int64_t host_time(uint64_t *ns)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	if (ns)
		*ns = t.tv_nsec;
	return t.tv_sec;
}

static uint8_t encode(const struct rtc *r, unsigned v)
{
	return r->mem[REG_B] & B_BIN ? v : (v / 10 << 4) | v % 10;
}

static unsigned decode(const struct rtc *r, uint8_t v)
{
	return r->mem[REG_B] & B_BIN ? v : (v >> 4) * 10 + (v & 15);
}

static uint8_t encode_hour(const struct rtc *r, unsigned h)
{
	if (r->mem[REG_B] & B_24H)
		return encode(r, h);
	return encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *r, uint8_t v)
{
	if (r->mem[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* The running time into the registers. */
static void fill(struct rtc *r)
{
	time_t t = host_time(NULL) + r->offset;
	struct tm tm;

	if ((r->mem[REG_B] & B_SET) || !gmtime_r(&t, &tm))
		return;
	r->mem[0] = encode(r, tm.tm_sec);
	r->mem[2] = encode(r, tm.tm_min);
	r->mem[4] = encode_hour(r, tm.tm_hour);
	r->mem[6] = encode(r, tm.tm_wday + 1);
	r->mem[7] = encode(r, tm.tm_mday);
	r->mem[8] = encode(r, tm.tm_mon + 1);
	r->mem[9] = encode(r, tm.tm_year % 100);
	r->mem[CENTURY] = encode(r, (tm.tm_year + 1900) / 100 % 100);
}

/* The registers become the time. */
static void apply(struct rtc *r)
{
	struct tm tm = {
		.tm_sec = decode(r, r->mem[0]),
		.tm_min = decode(r, r->mem[2]),
		.tm_hour = decode_hour(r, r->mem[4]),
		.tm_mday = decode(r, r->mem[7]),
		.tm_mon = (int)decode(r, r->mem[8]) - 1,
		.tm_year = (int)(decode(r, r->mem[CENTURY]) * 100 +
				 decode(r, r->mem[9])) -
			   1900,
	};

	r->offset = (int64_t)timegm(&tm) - host_time(NULL);
}

static uint64_t period(const struct rtc *r)
{
	unsigned rate = r->mem[REG_A] & 15;

	if (!rate)
		return 0;
	if (rate < 3)
		rate += 7;
	return (SECOND << (rate - 1)) / 32768;
}

static bool alarm_matches(struct rtc *r)
{
	static const uint8_t field[3] = { 0, 2, 4 };

	fill(r);
	for (int i = 0; i < 3; i++)
		if (r->mem[field[i] + 1] < 0xc0 &&
		    r->mem[field[i] + 1] != r->mem[field[i]])
			return false;
	return true;
}

/* Set the flags of what has happened since, and the wire. */
static void catch_up(struct rtc *r)
{
	int64_t second = host_time(NULL) + r->offset;
	uint64_t now = dev_now(&r->dev), p = period(r);
	uint8_t *c = &r->mem[REG_C];

	if (p && r->next_period && now >= r->next_period) {
		*c |= PF;
		r->next_period += ((now - r->next_period) / p + 1) * p;
	}
	if (second != r->last_second && !(r->mem[REG_B] & B_SET)) {
		*c |= UF;
		r->last_second = second;
		if (alarm_matches(r))
			*c |= AF;
	}
	*c &= ~IRQF;
	if (*c & r->mem[REG_B] & (PF | AF | UF))
		*c |= IRQF;
	irq_set(&r->arg.irq, *c & IRQF);
}

static void schedule(struct rtc *r)
{
	uint64_t now = dev_now(&r->dev), next = CHIP_TIMER_OFF, ns;
	uint8_t want = r->mem[REG_B];

	if ((want & (AF | UF)) && !(want & B_SET)) {
		host_time(&ns);
		next = now + (SECOND - ns) + 1000;
	}
	if ((want & PF) && r->next_period)
		next = MIN(next, r->next_period);
	chip_timer_set(&r->timer, next);
}

static void rtc_fire(struct dev *dev)
{
	catch_up(rtc_of(dev));
	schedule(rtc_of(dev));
}

static void restart_period(struct rtc *r)
{
	uint64_t p = period(r);

	r->next_period = p ? dev_now(&r->dev) + p : 0;
}

static uint8_t reg_read(struct rtc *r, unsigned i)
{
	uint64_t ns;
	uint8_t v;

	switch (i) {
	case REG_A:
		host_time(&ns);
		v = r->mem[REG_A];
		if (ns >= SECOND - 244000 && !(r->mem[REG_B] & B_SET))
			v |= UIP;
		return v;
	case REG_C:
		catch_up(r);
		v = r->mem[REG_C];
		r->mem[REG_C] = 0;
		irq_set(&r->arg.irq, false);
		return v;
	case 0:
	case 2:
	case 4:
	case 6 ... 9:
	case CENTURY:
		fill(r);
		/* fall through */
	default: return r->mem[i];
	}
}

static void reg_write(struct rtc *r, unsigned i, uint8_t v)
{
	uint8_t old = r->mem[i];

	switch (i) {
	case REG_A:
		r->mem[i] = v & 0x7f;
		if ((v ^ old) & 15)
			restart_period(r);
		break;
	case REG_B:
		if (v & B_SET)
			fill(r);
		r->mem[i] = v & B_SET ? v & ~UF : v;
		if ((old & B_SET) && !(v & B_SET))
			apply(r);
		catch_up(r);
		break;
	case REG_C:
	case REG_D: return;
	case 0:
	case 2:
	case 4:
	case 6 ... 9:
	case CENTURY:
		fill(r);
		r->mem[i] = v;
		if (!(r->mem[REG_B] & B_SET))
			apply(r);
		break;
	default: r->mem[i] = v; return;
	}
	schedule(r);
}

static uint64_t rtc_read(struct dev *dev, uint64_t off, unsigned size)
{
	if (off == 0)
		return 0xff;
	return reg_read(rtc_of(dev), rtc_of(dev)->index);
}

static void rtc_write(struct dev *dev, uint64_t off, uint64_t v, unsigned size)
{
	/* Bit 7 masks NMIs; nothing here makes one. */
	if (off == 0)
		rtc_of(dev)->index = v & 0x7f;
	else
		reg_write(rtc_of(dev), rtc_of(dev)->index, v);
}

static const struct region_ops rtc_ops = { rtc_read, rtc_write, 1, 1 };

static void memory_sizes(struct rtc *r)
{
	uint64_t low = r->arg.ram_below_4g, high = r->arg.ram_above_4g >> 16;
	uint64_t k = low > 1 << 20 ? (low - (1 << 20)) >> 10 : 0, w;
	uint8_t *m = r->mem;

	m[0x15] = 640 & 0xff;
	m[0x16] = 640 >> 8;
	w = MIN(k, 0xffffull);
	m[0x17] = m[0x30] = w;
	m[0x18] = m[0x31] = w >> 8;
	w = low > 16 << 20 ? (low - (16 << 20)) >> 16 : 0;
	w = MIN(w, 0xffffull);
	m[0x34] = w;
	m[0x35] = w >> 8;
	m[0x5b] = high;
	m[0x5c] = high >> 8;
	m[0x5d] = high >> 16;
}

/* The battery keeps the rest. */
static void rtc_reset(struct dev *dev)
{
	struct rtc *r = rtc_of(dev);

	r->mem[REG_B] &= ~(PF | AF | UF | 8);
	r->mem[REG_C] = 0;
	r->index = 0;
	irq_set(&r->arg.irq, false);
	schedule(r);
}

static int rtc_init(struct dev *dev, const void *arg, struct husk_error *err)
{
	struct rtc *r = rtc_of(dev);

	if (arg)
		r->arg = *(const struct rtc_arg *)arg;
	chip_timer_init(&r->timer, dev, rtc_fire);
	if (chip_region(dev, &r->region, &rtc_ops, dev->env->pio, 0x70, 2))
		return error_set(err, -EBUSY, "%s: ports taken", dev->id);
	r->mem[REG_A] = 0x26;
	r->mem[REG_B] = B_24H;
	r->mem[REG_D] = 0x80;
	memory_sizes(r);
	r->last_second = host_time(NULL);
	restart_period(r);
	rtc_reset(dev);
	return 0;
}

static void rtc_finish(struct dev *dev)
{
	bus_del(dev->env->pio, &rtc_of(dev)->region);
	chip_timer_finish(&rtc_of(dev)->timer);
}

static void rtc_state(struct dev *dev, struct state *s)
{
	struct rtc *r = rtc_of(dev);
	uint64_t offset = r->offset, last = r->last_second;

	state_u8(s, "index", &r->index);
	state_bytes(s, "mem", r->mem, sizeof(r->mem));
	state_u64(s, "offset", &offset);
	state_u64(s, "next_period", &r->next_period);
	state_u64(s, "last_second", &last);
	r->offset = offset;
	r->last_second = last;
}

static int rtc_check(struct dev *dev)
{
	struct rtc *r = rtc_of(dev);

	if (r->index > 127 || r->offset > INT64_MAX / 4 ||
	    r->offset < INT64_MIN / 4)
		return -EINVAL;
	schedule(r);
	return 0;
}

const struct dev_class mc146818_class = {
	.name = "mc146818",
	.size = sizeof(struct rtc),
	.version = 1,
	.init = rtc_init,
	.finish = rtc_finish,
	.reset = rtc_reset,
	.state = rtc_state,
	.check = rtc_check,
};
