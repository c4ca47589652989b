/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.c - filling the sentence of a struct husk_error
 */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(struct husk_error *err, int code, const char *fmt, va_list ap)
{
	err->code = code;
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
}

int error_set(struct husk_error *err, int code, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	if (err) {
		va_start(ap, fmt);
		fill(err, code, fmt, ap);
		va_end(ap);
	}
	errno = saved;
	return code;
}

int error_errno(struct husk_error *err, int code, const char *fmt, ...)
{
	int saved = errno;
	char why[64];
	size_t len;
	va_list ap;

	if (err) {
		va_start(ap, fmt);
		fill(err, code, fmt, ap);
		va_end(ap);
		len = strlen(err->text);
		/* GNU's, which may leave the buffer alone. */
		snprintf(err->text + len, sizeof(err->text) - len, ": %s",
			 strerror_r(-code, why, sizeof(why)));
	}
	errno = saved;
	return code;
}
