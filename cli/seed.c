/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seed.c - a small disk of texts that a guest reads at its first boot
 *
 * The image, in sectors of 2048 bytes (ECMA-119):
 *
 *	0-15	nothing
 *	16	primary volume descriptor
 *	17	the end of the descriptors
 *	18, 19	path tables, little and big endian
 *	20	the root directory
 *	21-	the files
 *
 * Names are written as "USER-DATA.;1", which Linux and others show in lower
 * case and without the end: no extension of the format is needed.
 */
#include "seed.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	SECTOR = 2048,
	VOLUME = 16,
	TERMINATOR = 17,
	PATHS_LITTLE = 18,
	PATHS_BIG = 19,
	ROOT = 20,
	FILES = 21,
	PATHS_LEN = 10,
};

int seed_add(struct seed *s, const char *name, const void *data, size_t len)
{
	char *copy;

	if (s->n == SEED_FILES || strlen(name) > 30 || len > 16 << 20)
		return -E2BIG;
	copy = malloc(len ? len : 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	snprintf(s->file[s->n].name, sizeof(s->file[s->n].name), "%s", name);
	s->file[s->n].data = copy;
	s->file[s->n++].len = len;
	return 0;
}

void seed_finish(struct seed *s)
{
	for (unsigned i = 0; i < s->n; i++)
		free(s->file[i].data);
	s->n = 0;
}

/* -- fields --------------------------------------------------------------- */

static void little(uint8_t *p, uint32_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static void big(uint8_t *p, uint32_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
}

static void both(uint8_t *p, uint32_t v, unsigned bytes)
{
	little(p, v, bytes);
	big(p + bytes, v, bytes);
}

static void text(uint8_t *p, size_t len, const char *s)
{
	memset(p, ' ', len);
	memcpy(p, s, strlen(s));
}

/* 9.1; returns its length. */
static unsigned record(uint8_t *p, uint32_t sector, size_t len, bool dir,
		       const char *name, size_t name_len)
{
	unsigned size = (unsigned)(33 + name_len + (name_len % 2 ? 0 : 1));

	p[0] = (uint8_t)size;
	both(p + 2, sector, 4);
	both(p + 10, (uint32_t)len, 4);
	/* 1980-01-01: a date has to be there, and says nothing. */
	p[18] = 80;
	p[19] = p[20] = 1;
	p[25] = dir ? 2 : 0;
	both(p + 28, 1, 2);
	p[32] = (uint8_t)name_len;
	memcpy(p + 33, name, name_len);
	return size;
}

/* 8.4 */
static void volume(uint8_t *p, uint32_t sectors)
{
	p[0] = 1;
	text(p + 1, 5, "CD001");
	p[6] = 1;
	text(p + 8, 32, "LINUX");
	text(p + 40, 32, "CIDATA");
	both(p + 80, sectors, 4);
	both(p + 120, 1, 2);
	both(p + 124, 1, 2);
	both(p + 128, SECTOR, 2);
	both(p + 132, PATHS_LEN, 4);
	little(p + 140, PATHS_LITTLE, 4);
	big(p + 148, PATHS_BIG, 4);
	record(p + 156, ROOT, SECTOR, true, "", 1);
	text(p + 190, 128, "");
	text(p + 318, 128, "");
	text(p + 446, 128, "HUSK");
	text(p + 574, 128, "HUSK");
	text(p + 702, 37, "");
	text(p + 739, 37, "");
	text(p + 776, 37, "");
	/* Four dates of 17 bytes: not specified. */
	for (unsigned i = 0; i < 4; i++)
		memset(p + 813 + 17 * i, '0', 16);
	p[881] = 1;
}

/* 9.4, of the root alone */
static void path_table(uint8_t *p,
		       void (*number)(uint8_t *, uint32_t, unsigned))
{
	p[0] = 1;
	number(p + 2, ROOT, 4);
	number(p + 6, 1, 2);
}

/* -- the image ------------------------------------------------------------ */

static uint32_t sectors_of(size_t len)
{
	return (uint32_t)((len + SECTOR - 1) / SECTOR);
}

/* The name is a file's first member. */
static int by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

static void fill(const struct seed *s, uint8_t *image, uint32_t sectors)
{
	uint8_t *dir = image + ROOT * SECTOR, *p = dir;
	uint32_t at = FILES;

	volume(image + VOLUME * SECTOR, sectors);
	image[TERMINATOR * SECTOR] = 255;
	text(image + TERMINATOR * SECTOR + 1, 5, "CD001");
	image[TERMINATOR * SECTOR + 6] = 1;
	path_table(image + PATHS_LITTLE * SECTOR, little);
	path_table(image + PATHS_BIG * SECTOR, big);
	p += record(p, ROOT, SECTOR, true, "", 1);
	p += record(p, ROOT, SECTOR, true, "\1", 1);
	for (unsigned i = 0; i < s->n; i++) {
		char name[40];

		snprintf(name, sizeof(name), "%s.;1", s->file[i].name);
		for (char *c = name; *c; c++)
			*c = (char)toupper((unsigned char)*c);
		p += record(p, at, s->file[i].len, false, name, strlen(name));
		memcpy(image + (size_t)at * SECTOR, s->file[i].data,
		       s->file[i].len);
		at += sectors_of(s->file[i].len);
	}
}

int seed_write(const struct seed *s, const char *path)
{
	struct seed sorted = *s;
	uint32_t sectors = FILES;
	size_t size, done = 0;
	uint8_t *image;
	int fd, ret = 0;

	/* The records of a directory are in the order of their names. */
	qsort(sorted.file, sorted.n, sizeof(sorted.file[0]), by_name);
	for (unsigned i = 0; i < s->n; i++)
		sectors += sectors_of(s->file[i].len);
	size = (size_t)sectors * SECTOR;
	image = calloc(1, size);
	if (!image)
		return -ENOMEM;
	fill(&sorted, image, sectors);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		ret = -errno;
	while (!ret && done < size) {
		ssize_t n = write(fd, image + done, size - done);

		if (n < 0 && errno != EINTR)
			ret = -errno;
		if (n > 0)
			done += (size_t)n;
	}
	if (fd >= 0 && close(fd) && !ret)
		ret = -errno;
	free(image);
	return ret;
}
