/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.h - a demo guest in this process, for tests of vm.h
 *
 * What goes wrong ends the program.
 */
#ifndef SYSTEM_API_H
#define SYSTEM_API_H

#include "husk/vm.h"

enum { TIMEOUT = 300 }; /* seconds that nothing here takes */

_Noreturn void fail(const char *what);
_Noreturn void skip(const char *why);
double now(void); /* seconds */

/* Kernel, initrd, engine soft, and the serial port to has_said(). */
void setup(struct vm_config *cfg, const char *demo);
struct vm *start(const struct vm_config *cfg);
bool has_said(const char *text);
void wait_for(const char *text);
void type(struct vm *vm, const char *text); /* on the serial port */
enum vm_stop_reason wait_end(struct vm *vm);

#endif /* SYSTEM_API_H */
