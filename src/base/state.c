/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - named fields, written to a buffer or read back from one
 */
#include "base/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

struct state {
	bool loading;
	uint32_t version;
	int error;
	char why[96];
	uint8_t *out;	   /* writer: owned */
	const uint8_t *in; /* reader: the caller's */
	size_t len, room, pos;
};

static void fail(struct state *s, int code, const char *why, const char *name)
{
	size_t n;

	if (s->error)
		return;
	s->error = code;
	n = strlen(why);
	n = MIN(n, sizeof(s->why) - 1);
	memcpy(s->why, why, n);
	if (name && n + 2 < sizeof(s->why)) {
		s->why[n++] = ' ';
		while (*name && n < sizeof(s->why) - 1)
			s->why[n++] = *name++;
	}
	s->why[n] = 0;
}

struct state *state_writer(uint32_t version)
{
	struct state *s = calloc(1, sizeof(*s));

	if (s)
		s->version = version;
	return s;
}

struct state *state_reader(const void *data, size_t len, uint32_t version)
{
	struct state *s = state_writer(version);

	if (s) {
		s->loading = true;
		s->in = data;
		s->len = len;
	}
	return s;
}

void state_free(struct state *s)
{
	if (!s)
		return;
	free(s->out);
	free(s);
}

bool state_loading(const struct state *s)
{
	return s->loading;
}

int state_finish(struct state *s)
{
	if (s->loading && !s->error && s->pos != s->len)
		fail(s, -EBADMSG, "unknown fields at the end", NULL);
	return s->error;
}

const void *state_data(const struct state *s, size_t *len)
{
	*len = s->len;
	return s->loading ? s->in : s->out;
}

const char *state_why(const struct state *s)
{
	return s->why;
}

uint32_t state_version(const struct state *s)
{
	return s->version;
}

void state_reject(struct state *s, const char *why)
{
	fail(s, -EINVAL, why, NULL);
}

static void put(struct state *s, const char *name, const void *v, size_t len)
{
	size_t nlen = strlen(name), need, room;
	uint8_t *p;

	if (nlen > 255 || len > UINT32_MAX) {
		fail(s, -EINVAL, "field too large:", name);
		return;
	}
	need = s->len + 1 + nlen + 4 + len;
	if (need > s->room) {
		room = MAX(need, s->room * 2);
		room = MAX(room, (size_t)256);
		p = realloc(s->out, room);
		if (!p) {
			fail(s, -ENOMEM, "out of memory", NULL);
			return;
		}
		s->out = p;
		s->room = room;
	}
	p = s->out + s->len;
	*p++ = nlen;
	memcpy(p, name, nlen);
	p += nlen;
	for (int i = 0; i < 4; i++)
		*p++ = len >> (8 * i);
	if (len)
		memcpy(p, v, len);
	s->len = need;
}

static void get(struct state *s, const char *name, void *v, size_t len)
{
	size_t nlen = strlen(name), left = s->len - s->pos, vlen;
	const uint8_t *p = s->in + s->pos;

	if (left < 1 + nlen + 4 || p[0] != nlen ||
	    memcmp(p + 1, name, nlen) != 0) {
		fail(s, -EBADMSG, "missing field", name);
		return;
	}
	p += 1 + nlen;
	vlen = p[0] | p[1] << 8 | p[2] << 16 | (size_t)p[3] << 24;
	left -= 1 + nlen + 4;
	if (vlen != len || left < len) {
		fail(s, -EBADMSG, "wrong length of field", name);
		return;
	}
	if (len)
		memcpy(v, p + 4, len);
	s->pos += 1 + nlen + 4 + len;
}

void state_bytes(struct state *s, const char *name, void *v, size_t len)
{
	if (s->error)
		return;
	if (s->loading)
		get(s, name, v, len);
	else
		put(s, name, v, len);
}

static uint64_t number(struct state *s, const char *name, uint64_t v,
		       unsigned len)
{
	uint8_t b[8];
	unsigned i;

	for (i = 0; i < len; i++)
		b[i] = v >> (8 * i);
	state_bytes(s, name, b, len);
	for (v = 0, i = 0; i < len; i++)
		v |= (uint64_t)b[i] << (8 * i);
	return v;
}

void state_bool(struct state *s, const char *name, bool *v)
{
	uint64_t n = number(s, name, *v, 1);

	if (n > 1)
		fail(s, -EBADMSG, "neither true nor false:", name);
	else
		*v = n;
}

void state_u8(struct state *s, const char *name, uint8_t *v)
{
	*v = number(s, name, *v, 1);
}

void state_u16(struct state *s, const char *name, uint16_t *v)
{
	*v = number(s, name, *v, 2);
}

void state_u32(struct state *s, const char *name, uint32_t *v)
{
	*v = number(s, name, *v, 4);
}

void state_u64(struct state *s, const char *name, uint64_t *v)
{
	*v = number(s, name, *v, 8);
}
