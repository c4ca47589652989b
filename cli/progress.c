/* SPDX-License-Identifier: Apache-2.0 */
/*
 * progress.c - sizes for people, and how far long work is
 */
#include "cli.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

void show_size(char *to, size_t room, uint64_t bytes)
{
	static const char units[] = "KMGTPE";
	double v = (double)bytes / 1024;
	unsigned u = 0;

	if (bytes < 1024) {
		snprintf(to, room, "%u B", (unsigned)bytes);
		return;
	}
	for (; v >= 1024 && units[u + 1]; u++)
		v /= 1024;
	snprintf(to, room,
		 v < 10 && v != (double)(int)v ? "%.1f %ciB" : "%.0f %ciB", v,
		 units[u]);
}

long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* On a terminal only, and not more often than it can be read. */
bool bar_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct bar *bar = opaque;
	unsigned n = total ? (unsigned)(done * 30 / total) : 30;
	char a[32], b[32];

	if (bar->go_on && !bar->go_on())
		return false;
	if (!isatty(2) || (now_ms() < bar->next_ms && done < total))
		return true;
	bar->next_ms = now_ms() + 100;
	bar->shown = true;
	show_size(a, sizeof(a), done);
	show_size(b, sizeof(b), total);
	fprintf(stderr, "\r%s [%.*s%*s] %3u%%  %s of %s \033[K", bar->what,
		(int)n, "##############################", (int)(30 - n), "",
		total ? (unsigned)(done * 100 / total) : 100, a, b);
	return true;
}

void bar_end(const struct bar *bar)
{
	if (bar->shown)
		fputs("\r\033[K", stderr);
}
