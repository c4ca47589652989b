/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bare.h - guests without an operating system, on the API of libhusk-hv
 *
 * A guest has 2 MiB of RAM at 0 and one vCPU.  In long mode the first 2 MiB
 * are mapped one to one, and 2 MiB at BARE_HOLE have no memory behind them.
 * Payloads keep to instructions that /dev/kvm also has where it emulates
 * CPL 0; code for USER runs at CPL 3 and ends by ud2.
 */
#ifndef GUEST_BARE_H
#define GUEST_BARE_H

#include <stdbool.h>
#include <stdint.h>

#include "husk/hv.h"

enum {
	BARE_PML4 = 0x1000,
	BARE_PDPT = 0x2000,
	BARE_PD0 = 0x3000,
	BARE_PD1 = 0x4000,
	BARE_IDT = 0x5000,
	BARE_GDT = 0x6000,
	BARE_TSS = 0x6100,
	BARE_STACK = 0x7ff0, /* CPL 0; 16-bit code reaches it too */
	BARE_CODE = 0x8000,
	BARE_HANDLER = 0x8800, /* vector 0x41: incl 0x10000; iretq */
	BARE_ENTER = 0x8900,   /* to CPL 3 at BARE_CODE */
	BARE_FAULTS = 0x9000,  /* vectors 0 to 31: 4 bytes each */
	BARE_USER_STACK = 0xfff0,
	BARE_DATA = 0x10000,
	BARE_MEMORY = 0x200000,
	BARE_HOLE = 0x40000000,
	BARE_VECTOR = 0x41,
	BARE_FAULT_PORT = 0x40, /* + vector: their handlers write there */
};

/* Guest code as text; name and name_end bound it. */
#define PAYLOAD(name, bits, text) \
	extern const uint8_t name[], name##_end[]; \
	__asm__(".pushsection .rodata\n.global " #name ", " #name "_end\n" \
		".code" #bits "\n" #name ":\n" text #name \
		"_end:\n.code64\n.popsection\n")

/* From one label of a payload to another: those are separate objects to C. */
static inline unsigned bare_bytes(const uint8_t *from, const uint8_t *to)
{
	return (unsigned)(to - from);
}

enum bare_mode { BARE_REAL, BARE_PROTECTED, BARE_LONG, BARE_USER };

struct bare {
	struct hv_vm *vm;
	struct hv_vcpu *cpu;
	struct hv_exit exit;
	uint8_t *mem;
};

/* Prints "Bail out!" and ends the program: for failures of the set-up. */
void bare_die(const char *what, int code) __attribute__((noreturn));

/* Both engines are there, but only soft is sure to run anything. */
bool bare_has_engine(const char *engine);

/* mem is zeroed and mapped; code is copied to BARE_CODE. */
void bare_start(struct bare *g, const char *engine, enum bare_mode mode,
		const uint8_t *code, const uint8_t *end);
void bare_stop(struct bare *g);
/* Registers of a program's start in that mode. */
void bare_set_mode(struct bare *g, enum bare_mode mode);
/* Runs to the next exit; HV_EXIT_ERROR's text goes to standard output. */
enum hv_exit_reason bare_run(struct bare *g);
/* A vCPU's whole state; fails the program. */
void bare_get(struct bare *g, unsigned groups, struct hv_state *s);

/* -- programs ------------------------------------------------------------- */

struct bare_program {
	const char *name; /* NULL ends the table */
	enum bare_mode mode;
	const uint8_t *code, *end;
};

extern const struct bare_program bare_programs[];

/* User code reads BARE_OUTPUT bytes at BARE_DATA and writes after them. */
enum { BARE_OUTPUT = 0x800 };
void bare_fill_input(uint8_t *data);
/* As bare_start(), with input and end for user code. */
void bare_start_program(struct bare *g, const char *engine,
			const struct bare_program *p);

/* -- exit logs ------------------------------------------------------------ */

enum { BARE_LOG_MAX = 512 };

/* Padding is always zero: logs compare with memcmp(). */
struct bare_entry {
	uint64_t addr, value;
	uint32_t reason; /* enum hv_exit_reason */
	uint8_t size, write, answered, zero;
};

struct bare_log {
	unsigned n;
	struct bare_entry e[BARE_LOG_MAX];
};

/* What the log says of an exit. */
struct bare_entry bare_entry(const struct hv_exit *e);
/*
 * Runs to an exit, answers reads with a value made from the address and the
 * number of the exit, and appends it.  False: the program is over: it or a
 * fault's handler wrote the last port, an exit is of no use, or the log is
 * full.
 */
enum { BARE_END = 0x5ff };
bool bare_log_step(struct bare *g, struct bare_log *log);
/* The same for an exit that is there already, in g->exit. */
bool bare_log_exit(struct bare *g, struct bare_log *log);
/* Index of the first difference, or -1. */
int bare_log_diff(const struct bare_log *a, const struct bare_log *b);
void bare_log_print(const char *name, const struct bare_entry *e);

#endif /* GUEST_BARE_H */
