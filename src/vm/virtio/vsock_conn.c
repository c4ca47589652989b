/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock_conn.c - the connections of a socket device
 *
 * The table finds them by their two ports.  A connection that has something
 * for the guest is in the ready list, which is served one packet each in
 * turn; one that waits for an answer is in the list of deadlines.
 */
#include "vm/virtio/vsock.h"

#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>

/* -- the table ------------------------------------------------------------ */

/* The guest chooses ports; the seed keeps it from choosing one bucket. */
static unsigned bucket_of(const struct vsock *s, uint32_t a, uint32_t b)
{
	uint64_t x = ((uint64_t)a << 32 | b) ^ s->seed;

	x *= 0x9e3779b97f4a7c15ull;
	x ^= x >> 29;
	x *= s->seed | 1;
	return (unsigned)(x >> 40) % VSOCK_BUCKETS;
}

struct conn *conn_find(struct vsock *s, uint32_t host_port, uint32_t guest_port)
{
	struct conn *c;

	LIST_FOREACH(c, &s->table[bucket_of(s, host_port, guest_port)], bucket)
	if (c->host_port == host_port && c->guest_port == guest_port)
		return c;
	return NULL;
}

void conn_enter(struct vsock *s, struct conn *c, uint32_t host_port,
		uint32_t guest_port)
{
	c->host_port = host_port;
	c->guest_port = guest_port;
	c->in_table = true;
	LIST_INSERT_HEAD(&s->table[bucket_of(s, host_port, guest_port)], c,
			 bucket);
}

void conn_leave(struct vsock *s, struct conn *c)
{
	if (c->in_table)
		LIST_REMOVE(c, bucket);
	c->in_table = false;
}

enum { FIRST_PORT = 1 << 30, PORTS = 1 << 30 };

/* Above what services use, as Firecracker does. */
uint32_t conn_new_port(struct vsock *s, uint32_t guest_port)
{
	uint32_t port;

	do
		port = FIRST_PORT + s->next_port++ % PORTS;
	while (conn_find(s, port, guest_port));
	return port;
}

/* -- birth and death ------------------------------------------------------ */

struct conn *conn_create(struct vsock *s, int fd, enum conn_state state)
{
	struct conn *c;

	if (s->nconns >= s->max)
		return NULL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->watch = WATCH_CONN;
	c->state = state;
	c->fd = fd;
	c->buf_alloc = s->nconns < VSOCK_FEW ? VSOCK_BUF_FEW : VSOCK_BUF_MANY;
	LIST_INSERT_HEAD(&s->conns, c, all);
	s->nconns++;
	if (state != CONN_OPEN)
		conn_set_deadline(s, c);
	return c;
}

static void set_waiting(struct vsock *s, struct conn *c, enum conn_state state)
{
	if (c->state == CONN_CONNECTING)
		s->nwaiting--;
	c->state = state;
}

static void let_go(struct vsock *s, struct conn *c)
{
	host_drop(s, c);
	free(c->buf);
	c->buf = NULL;
	c->len = 0;
	conn_no_deadline(s, c);
}

void conn_free(struct vsock *s, struct conn *c)
{
	if (c->state == CONN_FREE)
		return;
	let_go(s, c);
	set_waiting(s, c, CONN_FREE);
	conn_leave(s, c);
	if (c->ready)
		TAILQ_REMOVE(&s->ready, c, ready_link);
	c->ready = false;
	LIST_REMOVE(c, all);
	/* An event that epoll has given us already may still name it. */
	LIST_INSERT_HEAD(&s->dead, c, all);
	s->nconns--;
}

void conn_bury(struct vsock *s)
{
	struct conn *c;

	while ((c = LIST_FIRST(&s->dead))) {
		LIST_REMOVE(c, all);
		free(c);
	}
}

void conn_free_all(struct vsock *s)
{
	while (!LIST_EMPTY(&s->conns))
		conn_free(s, LIST_FIRST(&s->conns));
	conn_bury(s);
}

void conn_reset(struct vsock *s, struct conn *c)
{
	if (!c->in_table) {
		conn_free(s, c);
		return;
	}
	let_go(s, c);
	set_waiting(s, c, CONN_RESET);
	c->want = 0;
	conn_check(s, c);
}

/* -- what is to be done --------------------------------------------------- */

uint32_t conn_credit(const struct conn *c)
{
	uint32_t used = c->tx_cnt - c->peer_fwd;

	/* A driver may take back what it has promised. */
	return used < c->peer_alloc ? c->peer_alloc - used : 0;
}

bool conn_may_read(const struct conn *c)
{
	return c->state == CONN_OPEN && c->readable && !c->eof &&
	       conn_credit(c);
}

void conn_check(struct vsock *s, struct conn *c)
{
	bool ready = c->state == CONN_RESET || (c->in_table && c->want) ||
		     conn_may_read(c);

	if (ready == c->ready)
		return;
	c->ready = ready;
	if (ready)
		TAILQ_INSERT_TAIL(&s->ready, c, ready_link);
	else
		TAILQ_REMOVE(&s->ready, c, ready_link);
}

void conn_want(struct vsock *s, struct conn *c, uint8_t want)
{
	if (c->state == CONN_RESET || !c->in_table)
		return;
	c->want |= want;
	conn_check(s, c);
}

/* -- deadlines ------------------------------------------------------------ */

void conn_no_deadline(struct vsock *s, struct conn *c)
{
	if (c->timed)
		TAILQ_REMOVE(&s->timed, c, timed_link);
	c->timed = false;
}

/* All wait equally long, so the list stays sorted. */
void conn_set_deadline(struct vsock *s, struct conn *c)
{
	conn_no_deadline(s, c);
	c->deadline = loop_now() + s->timeout;
	c->timed = true;
	TAILQ_INSERT_TAIL(&s->timed, c, timed_link);
}

#define TICK_NS 10000000ull /* what can only be tried again */

void vsock_program(struct vsock *s)
{
	const struct conn *first = TAILQ_FIRST(&s->timed);
	struct itimerspec its = { 0 };
	uint64_t next = first ? first->deadline : UINT64_MAX;

	if (s->nwaiting || s->gated || s->full)
		next = MIN(next, loop_now() + TICK_NS);
	/* Too early does no harm. */
	if (next == UINT64_MAX || (s->timer_at && s->timer_at <= next))
		return;
	s->timer_at = next;
	its.it_value.tv_sec = (time_t)(next / 1000000000);
	its.it_value.tv_nsec = (long)(next % 1000000000);
	timerfd_settime(s->timer, TFD_TIMER_ABSTIME, &its, NULL);
}
