/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_balloon.c - the memory balloon of a configuration
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static int parse_bytes(const char *text, uint64_t *out)
{
	static const char units[] = "KMGT";
	const char *unit;
	unsigned shift = 0;
	char *end;
	uint64_t v;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 10);
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	if (errno || *end || v > UINT64_MAX >> shift)
		return -EINVAL;
	*out = v << shift;
	return 0;
}

static int parse_switch(const char *text, bool *out)
{
	if (strcmp(text, "on") && strcmp(text, "off"))
		return -EINVAL;
	*out = !strcmp(text, "on");
	return 0;
}

static int parse_option(struct balloon_config *b, const char *o)
{
	if (!strcmp(o, "off"))
		b->off = true;
	else if (!strncmp(o, "target=", 7))
		return parse_bytes(o + 7, &b->target);
	else if (!strncmp(o, "reporting=", 10))
		return parse_switch(o + 10, &b->reporting);
	else if (!strncmp(o, "hinting=", 8))
		return parse_switch(o + 8, &b->hinting);
	else if (!strncmp(o, "deflate-on-oom=", 15))
		return parse_switch(o + 15, &b->oom);
	else
		return -ENOENT;
	return 0;
}

int config_add_virtio_balloon(struct vm_config *cfg, char *options,
			      const char *spec, struct husk_error *err)
{
	struct balloon_config b = cfg->balloon;
	char *save, *o;

	b.off = false;
	for (o = strtok_r(options, ",", &save); o;
	     o = strtok_r(NULL, ",", &save)) {
		int ret = parse_option(&b, o);

		if (ret == -ENOENT)
			return error_set(err, -EINVAL,
					 "device %s: there are off, "
					 "target=SIZE, reporting=on|off, "
					 "hinting=on|off and "
					 "deflate-on-oom=on|off",
					 spec);
		if (ret)
			return error_set(err, -EINVAL,
					 "device %s: \"%s\" is not possible",
					 spec, o);
	}
	cfg->balloon = b;
	return 0;
}
