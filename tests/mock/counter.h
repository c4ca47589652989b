/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counter.h - a machine that counts, and files of it
 *
 * A Multiboot kernel that counts its memory at 2 MiB up until a byte is typed,
 * and ends then with what is at 4 MiB.  Two vCPUs, 16 MiB.
 */
#ifndef MOCK_COUNTER_H
#define MOCK_COUNTER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "vm/saved/saved.h"

/* In dir, which is made and taken away by these. */
extern char dir[], kernel[64], file[64], other[64], disk[64], sockets[64];
int make_folder(void **state);
int remove_folder(void **state);
unsigned files_in(const char *path);
void write_kernel(void);

struct vm_config *configure(bool with_disk);
/* With every kind of device that needs nothing of the host. */
struct vm_config *configure_all(void);
struct vm *start(bool with_disk);
struct vm *start_config(const struct vm_config *cfg);
/* NULL: it was refused. */
struct vm *restore(const char *path, struct husk_error *err);
uint32_t count(struct vm *vm);
/* It goes on, and knows what it knew; destroys it. */
void ends_well(struct vm *vm);

/* What load_file() has read; to be freed. */
extern uint8_t *image;
extern size_t image_len;
void load_file(const char *path);
/* To the file other. */
void put_file(const uint8_t *data, size_t len);

#endif /* MOCK_COUNTER_H */
