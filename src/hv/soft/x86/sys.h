/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sys.h - descriptors and stacks, shared by sys.c, event.c and task.c
 */
#ifndef SOFT_SYS_H
#define SOFT_SYS_H

#include "hv/soft/x86/decode.h"

enum { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };

/* A stack being written or read; nothing is committed to the CPU. */
struct stk {
	struct segreg ss;
	uint64_t sp, mask;
	unsigned acc; /* SEG_SS, or SEG_SYS for an inner ring */
	uint32_t err; /* error code of its #SS */
	bool wide;    /* 64-bit: flat, canonical check only */
};

static inline bool null_sel(uint16_t sel)
{
	return !(sel & ~3);
}

static inline bool is_protected(struct cpu *c)
{
	return c->mode != MODE_REAL && c->mode != MODE_VM86;
}

static inline unsigned seg_dpl(const struct segreg *s)
{
	return s->access >> 5 & 3;
}

/* Code with L set, as seen with LMA. */
static inline bool is_code64(struct cpu *c, const struct segreg *cs)
{
	return (c->efer & EFER_LMA) && (cs->access & SEG_A_L);
}

bool seg_limit_ok(const struct segreg *s, uint64_t off, unsigned size);
void io_check(struct cpu *c, uint16_t port, unsigned size);

/* Descriptor of sel in the GDT or LDT; false: outside the table. */
bool desc_read(struct cpu *c, uint16_t sel, uint64_t *d, uint64_t *lin);
/* The same, or fault vec(sel, EXT). */
uint64_t desc_need(struct cpu *c, uint16_t sel, unsigned vec, unsigned ext,
		   uint64_t *lin);
struct segreg desc_seg(uint16_t sel, uint64_t d);
/* Set bits in the access byte of the descriptor at lin. */
void desc_mark(struct cpu *c, uint64_t lin, uint8_t set, uint8_t clear);
void desc_accessed(struct cpu *c, uint64_t lin, struct segreg *s);

struct segreg seg_real(struct cpu *c, unsigned seg, uint16_t sel);
struct segreg seg_null(uint16_t sel, unsigned dpl);
struct segreg load_data(struct cpu *c, unsigned seg, uint16_t sel);
struct segreg load_ss(struct cpu *c, uint16_t sel, unsigned cpl, unsigned vec,
		      unsigned ext);
/* Inner stack of ring dpl from the current TSS; ist 0: none. */
void tss_stack(struct cpu *c, unsigned dpl, unsigned ist, unsigned ext,
	       struct stk *s);

void stk_current(struct cpu *c, struct stk *s);
void stk_push(struct cpu *c, struct stk *s, unsigned size, uint64_t v);
uint64_t stk_pop(struct cpu *c, struct stk *s, unsigned size);
void stk_commit_sp(struct cpu *c, const struct stk *s);

/* Continue at rip: what the loop takes over after the handler. */
static inline void set_rip(struct cpu *c, uint64_t rip)
{
	c->gpr[R_NEXT] = rip;
}

bool pdpte_load(struct cpu *c, uint64_t cr3);
void x86_task_switch(struct cpu *c, uint16_t sel, int reason, bool has_error,
		     uint32_t error);
int x86_combine(unsigned first, unsigned second);

#endif /* SOFT_SYS_H */
