/* SPDX-License-Identifier: Apache-2.0 */
/*
 * news.c - what happens to a machine, until its program asks
 */
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vm/machine.h"

/* The fd is readable while there is something: only its change is a call. */
static void set_readable(struct news *n, bool on)
{
	eventfd_t count;

	if (on)
		eventfd_write(n->fd, 1);
	else
		eventfd_read(n->fd, &count);
}

void machine_news(void *sink, const char *device, int kind, int code)
{
	struct vm *vm = sink;
	struct news *n = &vm->news;
	struct vm_news *one;

	pthread_mutex_lock(&n->lock);
	if (n->len == NEWS_MAX) {
		n->first = (n->first + 1) % NEWS_MAX;
		n->len--;
		n->lost++;
	}
	if (!n->len)
		set_readable(n, true);
	one = &n->ring[(n->first + n->len++) % NEWS_MAX];
	*one = (struct vm_news){ .kind = (enum vm_news_kind)kind,
				 .code = code };
	snprintf(one->device, sizeof(one->device), "%s", device ? device : "");
	pthread_mutex_unlock(&n->lock);
	if (n->call)
		n->call(n->opaque);
}

int vm_news_fd(const struct vm *vm)
{
	return vm->news.fd;
}

int vm_next_news(struct vm *vm, struct vm_news *news)
{
	struct news *n = &vm->news;
	int ret = 0;

	pthread_mutex_lock(&n->lock);
	if (n->len) {
		*news = n->ring[n->first];
		news->lost = n->lost;
		n->lost = 0;
		n->first = (n->first + 1) % NEWS_MAX;
		if (!--n->len)
			set_readable(n, false);
		ret = 1;
	}
	pthread_mutex_unlock(&n->lock);
	return ret;
}
