/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_json.c - a configuration from a JSON document: what is read is written
 * and read again, and says the same
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
	struct husk_error err = { 0 };
	struct vm_config *cfg, *again;
	char *first, *second;

	if (vm_config_from_json((const char *)data, size, "/nowhere", &cfg,
				&err)) {
		if (!*err.text || cfg)
			abort();
		return 0;
	}
	vm_config_validate(cfg, problem, NULL);
	first = vm_config_to_json(cfg, "/nowhere");
	if (!first ||
	    vm_config_from_json(first, strlen(first), "/nowhere", &again, &err))
		abort();
	second = vm_config_to_json(again, "/nowhere");
	if (!second || strcmp(first, second) != 0)
		abort();
	free(first);
	free(second);
	vm_config_destroy(cfg);
	vm_config_destroy(again);
	return 0;
}
