/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h - one thread that waits for file descriptors and timers
 */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;

/* Embedded in its owner; called on the loop's thread. */
struct loop_fd {
	int fd;
	void (*ready)(struct loop_fd *f, uint32_t events); /* EPOLL* */
};

/*
 * Fires once on the loop's thread at an absolute CLOCK_MONOTONIC time.  set
 * and cancel from any thread, also from fire() itself.
 */
struct loop_timer {
	void (*fire)(struct loop_timer *t);
	struct loop *loop;
	uint64_t when_ns; /* the loop's, under its lock */
	struct loop_timer *next;
	bool armed;
};

int loop_create(struct loop **loop);
void loop_destroy(struct loop *loop); /* stops; NULL is fine */
int loop_start(struct loop *loop);    /* starts the thread */
void loop_stop(struct loop *loop);    /* joins it */
int loop_add(struct loop *loop, struct loop_fd *f, uint32_t events);
int loop_mod(struct loop *loop, struct loop_fd *f, uint32_t events);
/* After loop_del() ready() does not run and will not (any thread). */
void loop_del(struct loop *loop, struct loop_fd *f);

void loop_timer_init(struct loop *loop, struct loop_timer *t,
		     void (*fire)(struct loop_timer *t));
void loop_timer_set(struct loop_timer *t, uint64_t when_ns);
/* All that are set are due that much earlier. */
void loop_timers_hasten(struct loop *loop, uint64_t ns);
void loop_timer_cancel(struct loop_timer *t); /* fire() is not running after */

uint64_t loop_now(void); /* CLOCK_MONOTONIC, ns */

#endif /* BASE_LOOP_H */
