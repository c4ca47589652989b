/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_state.c - saved device state that is damaged or made to hurt
 *
 * Byte 0 chooses the device; bit 7: the rest is the stream itself, else it
 * is bytes to change in what the device has saved, then accesses.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/pc.h"
#include "husk/vm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct dev *nth(struct vm *vm, unsigned n)
{
	struct dev *d = vm->devs;

	while (n-- && d)
		d = d->next ? d->next : vm->devs;
	return d;
}

/* What the device says of itself, with the input's changes. */
static uint8_t *saved(struct dev *d, struct input *in, size_t *len)
{
	struct state *s = state_writer(d->class->version);
	unsigned changes = (unsigned)take(in, 1) % 16;
	const void *data;
	uint8_t *copy;

	if (!s)
		abort();
	pthread_mutex_lock(&d->lock);
	d->class->state(d, s);
	pthread_mutex_unlock(&d->lock);
	data = state_data(s, len);
	copy = malloc(*len + 1);
	if (state_finish(s) || !copy)
		abort();
	if (*len)
		memcpy(copy, data, *len);
	state_free(s);
	while (changes-- && *len) {
		size_t at = (size_t)take(in, 2) % *len;

		copy[at] = (uint8_t)take(in, 1);
	}
	return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t *stream, which;
	struct state *s;
	struct dev *d;
	struct vm *vm;
	size_t len;

	if (!size)
		return 0;
	vm = pc_create();
	which = (uint8_t)take(&in, 1);
	d = nth(vm, which & 0x7f);
	if (!d->class->state)
		goto out;
	if (which & 0x80) {
		len = in.left;
		stream = malloc(len + 1);
		if (!stream)
			abort();
		if (len)
			memcpy(stream, in.p, len);
	} else {
		stream = saved(d, &in, &len);
	}
	s = state_reader(stream, len, d->class->version);
	if (!s)
		abort();
	if (d->class->pause)
		d->class->pause(d);
	pthread_mutex_lock(&d->lock);
	d->class->state(d, s);
	/* What a machine does with a device that cannot be restored. */
	if (state_finish(s) || (d->class->check && d->class->check(d)))
		d->class->reset(d);
	pthread_mutex_unlock(&d->lock);
	if (d->class->resume)
		d->class->resume(d);
	state_free(s);
	free(stream);
	for (unsigned n = 0; in.left && n < 50; n++)
		pc_access(vm, &in);
out:
	vm_destroy(vm);
	return 0;
}
