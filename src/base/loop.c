/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.c - one thread that waits for file descriptors and timers
 *
 * Timers are a list sorted by time in front of one timerfd; a machine has a
 * handful of them.  Callbacks run without the lock; "running" names the one
 * that runs, so that del and cancel can wait for it.
 */
#include "base/loop.h"
#include "base/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct loop {
	pthread_mutex_t lock;
	pthread_cond_t idle; /* running became NULL */
	int epoll, timer, wake;
	struct loop_timer *timers;
	struct loop_fd **fds;
	unsigned nfds, room;
	void *running;
	pthread_t thread;
	bool started, stop;
};

uint64_t loop_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* With the lock held. */
static void program(struct loop *l)
{
	struct itimerspec its = { 0 };
	uint64_t when;

	if (l->timers) {
		when = l->timers->when_ns;
		if (when > INT64_MAX / 2)
			when = INT64_MAX / 2;
		if (when == 0)
			when = 1;
		its.it_value.tv_sec = when / 1000000000;
		its.it_value.tv_nsec = when % 1000000000;
	}
	timerfd_settime(l->timer, TFD_TIMER_ABSTIME, &its, NULL);
}

static bool unlink_timer(struct loop *l, struct loop_timer *t)
{
	struct loop_timer **p;

	if (!t->armed)
		return false;
	for (p = &l->timers; *p && *p != t; p = &(*p)->next)
		;
	if (*p)
		*p = t->next;
	t->armed = false;
	t->next = NULL;
	return true;
}

static bool on_thread(struct loop *l)
{
	return l->started && pthread_equal(pthread_self(), l->thread);
}

static void wait_for(struct loop *l, void *who)
{
	if (on_thread(l))
		return;
	while (l->running == who)
		pthread_cond_wait(&l->idle, &l->lock);
}

static void done(struct loop *l)
{
	l->running = NULL;
	pthread_cond_broadcast(&l->idle);
}

/* With the lock held. */
static void run_timers(struct loop *l)
{
	struct loop_timer *t;
	uint64_t now = loop_now();

	while (!l->stop && l->timers && l->timers->when_ns <= now) {
		t = l->timers;
		unlink_timer(l, t);
		l->running = t;
		pthread_mutex_unlock(&l->lock);
		t->fire(t);
		pthread_mutex_lock(&l->lock);
		done(l);
	}
	program(l);
}

static void run_fd(struct loop *l, struct loop_fd *f, uint32_t events)
{
	unsigned i;

	/* It may have been deleted since epoll_wait() named it. */
	for (i = 0; i < l->nfds && l->fds[i] != f; i++)
		;
	if (i == l->nfds)
		return;
	l->running = f;
	pthread_mutex_unlock(&l->lock);
	f->ready(f, events);
	pthread_mutex_lock(&l->lock);
	done(l);
}

static void *loop_main(void *arg)
{
	struct loop *l = arg;
	struct epoll_event ev;
	uint64_t n;

	pthread_mutex_lock(&l->lock);
	while (!l->stop) {
		pthread_mutex_unlock(&l->lock);
		/* One at a time: no event outlives a loop_del() for long. */
		int got = epoll_wait(l->epoll, &ev, 1, -1);

		pthread_mutex_lock(&l->lock);
		if (got <= 0 || l->stop)
			continue;
		if (ev.data.ptr == &l->timer) {
			if (read(l->timer, &n, sizeof(n)) < 0)
				n = 0;
			run_timers(l);
		} else if (ev.data.ptr == &l->wake) {
			if (read(l->wake, &n, sizeof(n)) < 0)
				n = 0;
		} else {
			run_fd(l, ev.data.ptr, ev.events);
		}
	}
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

static int watch(struct loop *l, int op, int fd, uint32_t events, void *ptr)
{
	struct epoll_event ev = { .events = events, .data.ptr = ptr };

	return epoll_ctl(l->epoll, op, fd, &ev) < 0 ? -errno : 0;
}

int loop_create(struct loop **loop)
{
	struct loop *l = calloc(1, sizeof(*l));
	int ret;

	if (!l)
		return -ENOMEM;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->idle, NULL);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = -errno;
	if (l->epoll >= 0 && l->timer >= 0 && l->wake >= 0) {
		ret = watch(l, EPOLL_CTL_ADD, l->timer, EPOLLIN, &l->timer);
		if (!ret)
			ret = watch(l, EPOLL_CTL_ADD, l->wake, EPOLLIN,
				    &l->wake);
	}
	if (ret) {
		loop_destroy(l);
		return ret;
	}
	*loop = l;
	return 0;
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	loop_stop(l);
	if (l->epoll >= 0)
		close(l->epoll);
	if (l->timer >= 0)
		close(l->timer);
	if (l->wake >= 0)
		close(l->wake);
	pthread_cond_destroy(&l->idle);
	pthread_mutex_destroy(&l->lock);
	free(l->fds);
	free(l);
}

int loop_start(struct loop *l)
{
	int ret = 0;

	pthread_mutex_lock(&l->lock);
	if (!l->started) {
		l->stop = false;
		/* The thread waits for the lock, so it sees started. */
		ret = thread_start(&l->thread, "husk-loop", loop_main, l);
		l->started = ret == 0;
	}
	pthread_mutex_unlock(&l->lock);
	return ret;
}

void loop_stop(struct loop *l)
{
	uint64_t one = 1;
	bool started;

	pthread_mutex_lock(&l->lock);
	started = l->started;
	l->stop = true;
	pthread_mutex_unlock(&l->lock);
	if (!started)
		return;
	if (write(l->wake, &one, sizeof(one)) < 0)
		return;
	pthread_join(l->thread, NULL);
	pthread_mutex_lock(&l->lock);
	l->started = false;
	program(l);
	pthread_mutex_unlock(&l->lock);
}

int loop_add(struct loop *l, struct loop_fd *f, uint32_t events)
{
	struct loop_fd **p;
	int ret = 0;

	pthread_mutex_lock(&l->lock);
	if (l->nfds == l->room) {
		p = realloc(l->fds, (l->room + 16) * sizeof(*p));
		if (!p) {
			ret = -ENOMEM;
		} else {
			l->fds = p;
			l->room += 16;
		}
	}
	if (!ret)
		ret = watch(l, EPOLL_CTL_ADD, f->fd, events, f);
	if (!ret)
		l->fds[l->nfds++] = f;
	pthread_mutex_unlock(&l->lock);
	return ret;
}

int loop_mod(struct loop *l, struct loop_fd *f, uint32_t events)
{
	return watch(l, EPOLL_CTL_MOD, f->fd, events, f);
}

void loop_del(struct loop *l, struct loop_fd *f)
{
	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->nfds; i++) {
		if (l->fds[i] != f)
			continue;
		l->fds[i] = l->fds[--l->nfds];
		watch(l, EPOLL_CTL_DEL, f->fd, 0, NULL);
		break;
	}
	wait_for(l, f);
	pthread_mutex_unlock(&l->lock);
}

void loop_timer_init(struct loop *loop, struct loop_timer *t,
		     void (*fire)(struct loop_timer *t))
{
	*t = (struct loop_timer){ .fire = fire, .loop = loop };
}

void loop_timer_set(struct loop_timer *t, uint64_t when_ns)
{
	struct loop *l = t->loop;
	struct loop_timer **p, *first;

	pthread_mutex_lock(&l->lock);
	first = l->timers;
	unlink_timer(l, t);
	for (p = &l->timers; *p && (*p)->when_ns <= when_ns; p = &(*p)->next)
		;
	t->when_ns = when_ns;
	t->next = *p;
	t->armed = true;
	*p = t;
	if (l->timers == t || first == t)
		program(l);
	pthread_mutex_unlock(&l->lock);
}

void loop_timers_hasten(struct loop *l, uint64_t ns)
{
	pthread_mutex_lock(&l->lock);
	for (struct loop_timer *t = l->timers; t; t = t->next)
		if (t->when_ns != UINT64_MAX)
			t->when_ns = t->when_ns > ns ? t->when_ns - ns : 1;
	program(l);
	pthread_mutex_unlock(&l->lock);
}

void loop_timer_cancel(struct loop_timer *t)
{
	struct loop *l = t->loop;

	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	/* fire() may arm itself again while it is waited for. */
	wait_for(l, t);
	if (unlink_timer(l, t))
		program(l);
	pthread_mutex_unlock(&l->lock);
}
