/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.h - filling the sentence of a struct husk_error
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "husk/error.h"

/*
 * Set code and sentence; returns code, so that a failing function can end
 * with "return error_set(err, -EINVAL, ...)".  err may be NULL.  errno kept.
 */
int error_set(struct husk_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As error_set() with ": " and the text of the code appended. */
int error_errno(struct husk_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif /* BASE_ERROR_H */
