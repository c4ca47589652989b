/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_config.c - what a person may write after --device and --disk
 *
 * One argument a line: "d" and a disk, "e" and an engine, else a device.
 */
#include <stdlib.h>
#include <string.h>

#include "husk/vm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void problem(void *opaque, const char *text)
{
	if (!*text)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vm_config *cfg = vm_config_create();
	char *text = malloc(size + 1), *line, *next;
	struct husk_error err = { 0 };

	if (!cfg || !text)
		abort();
	if (size)
		memcpy(text, data, size);
	text[size] = 0;
	for (line = text; line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		if (*line == 'd')
			vm_config_add_disk(cfg, line + 1, size & 1);
		else if (*line == 'e')
			vm_config_set_engine(cfg, line + 1);
		else if (vm_config_add_device(cfg, line, &err) && !err.text[0])
			abort(); /* an error without a sentence */
	}
	vm_config_validate(cfg, problem, NULL);
	vm_config_destroy(cfg);
	free(text);
	return 0;
}
