/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - threads that perform block requests
 */
#include "base/thread.h"
#include "vm/block/store.h"

static void *pool_thread(void *arg)
{
	struct pool *p = arg;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct block_req *req = p->first;
		int ret;

		if (!req) {
			if (p->quit)
				break;
			pthread_cond_wait(&p->work, &p->lock);
			continue;
		}
		p->first = req->back;
		if (!p->first)
			p->last = &p->first;
		pthread_mutex_unlock(&p->lock);
		ret = p->perform(p->arg, req);
		req->done(req, ret);
		pthread_mutex_lock(&p->lock);
		if (!--p->inflight)
			pthread_cond_broadcast(&p->idle);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

void pool_stop(struct pool *p)
{
	if (!p->last)
		return;
	pthread_mutex_lock(&p->lock);
	p->quit = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nthreads; i++)
		pthread_join(p->thread[i], NULL);
	pthread_cond_destroy(&p->idle);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->lock);
	p->last = NULL;
}

void pool_start(struct pool *p,
		int (*perform)(void *arg, const struct block_req *req),
		void *arg)
{
	p->perform = perform;
	p->arg = arg;
	p->last = &p->first;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->idle, NULL);
}

/* Threads come as there is work for them: many images see none. */
static void add_thread_locked(struct pool *p)
{
	if (p->nthreads < POOL_THREADS && p->inflight >= p->nthreads &&
	    !thread_start(&p->thread[p->nthreads], "husk-disk", pool_thread, p))
		p->nthreads++;
}

static void append_locked(struct pool *p, struct block_req *req)
{
	req->back = NULL;
	/* ->back is the link: a list of void pointers to requests. */
	*p->last = req;
	p->last = (struct block_req **)&req->back;
	p->inflight++;
	pthread_cond_signal(&p->work);
}

void pool_submit(struct pool *p, struct block_req *req)
{
	bool queued;

	pthread_mutex_lock(&p->lock);
	add_thread_locked(p);
	queued = p->nthreads;
	if (queued)
		append_locked(p, req);
	pthread_mutex_unlock(&p->lock);
	if (!queued)
		req->done(req, p->perform(p->arg, req));
}

bool pool_offer(struct pool *p, struct block_req *req, unsigned most)
{
	bool taken;

	pthread_mutex_lock(&p->lock);
	if (!p->nthreads)
		add_thread_locked(p);
	taken = p->nthreads && p->inflight <= most;
	if (taken)
		append_locked(p, req);
	pthread_mutex_unlock(&p->lock);
	return taken;
}

void pool_drain(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	while (p->inflight)
		pthread_cond_wait(&p->idle, &p->lock);
	pthread_mutex_unlock(&p->lock);
}
