/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.h - a code for programs and a sentence for people
 *
 * Every function of the Husk libraries that can fail returns 0 or a negative
 * errno value.  Those that a person waits for (open, configure, restore) also
 * take a struct husk_error and fill it on failure; it may always be NULL.
 */
#ifndef HUSK_ERROR_H
#define HUSK_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

struct husk_error {
	int code;	/* negative errno; 0 when nothing failed */
	char text[252]; /* one line, no full stop, names the thing */
};

#ifdef __cplusplus
}
#endif

#endif /* HUSK_ERROR_H */
