/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor.c - husk doctor: which engines this host can run, and why
 */
#include "cli.h"

#include <stdio.h>
#include <string.h>

#include "husk/hv.h"

static void json_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			putchar('\\');
		if ((unsigned char)*s >= 0x20)
			putchar(*s);
	}
	putchar('"');
}

int cmd_doctor(int argc, char **argv)
{
	static const char *const names[] = { "kvm", "soft" };
	bool json = argc > 1 && !strcmp(argv[1], "--json"), any = false;

	if (argc > 1 && !strcmp(argv[1], "--help")) {
		puts("usage: husk doctor [--json]\n\n"
		     "Says which engines this host can run and why not.");
		return 0;
	}
	if (argc > 1 && !json) {
		complain("doctor: unknown option %s", argv[1]);
		return EXIT_USAGE;
	}
	if (json)
		fputs("{\"engines\":[", stdout);
	for (int i = 0; i < 2; i++) {
		struct husk_error err = { 0 };
		struct hv_caps caps;
		int ret = hv_probe(names[i], &caps, &err);

		any |= !ret;
		if (json) {
			printf("%s{\"name\":\"%s\",\"usable\":%s,\"reason\":",
			       i ? "," : "", names[i], ret ? "false" : "true");
			json_string(ret ? err.text : "");
			putchar('}');
		} else {
			printf("%-6s %s%s\n", names[i], ret ? "no:  " : "yes",
			       ret ? err.text : "");
		}
	}
	if (json)
		puts("]}");
	return any ? 0 : EXIT_FAULT;
}
