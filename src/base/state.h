/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.h - named fields, written to a buffer or read back from one
 *
 * One function of a device visits its fields in both directions.  The first
 * error sticks: later calls do nothing.  Format of a field: u8 length of the
 * name, name, u32 length of the value, value; little endian throughout.
 */
#ifndef BASE_STATE_H
#define BASE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct state;

struct state *state_writer(uint32_t version);
/* data must outlive the reader. */
struct state *state_reader(const void *data, size_t len, uint32_t version);
void state_free(struct state *s);
bool state_loading(const struct state *s);
/* 0, or the first error: -ENOMEM, -EBADMSG (damaged), -EINVAL (rejected). */
int state_finish(struct state *s); /* reader: also all bytes are consumed */
const void *state_data(const struct state *s, size_t *len);
const char *state_why(const struct state *s);

void state_bool(struct state *s, const char *name, bool *v);
void state_u8(struct state *s, const char *name, uint8_t *v);
void state_u16(struct state *s, const char *name, uint16_t *v);
void state_u32(struct state *s, const char *name, uint32_t *v);
void state_u64(struct state *s, const char *name, uint64_t *v);
void state_bytes(struct state *s, const char *name, void *v, size_t len);
uint32_t state_version(const struct state *s);
void state_reject(struct state *s, const char *why);

#endif /* BASE_STATE_H */
