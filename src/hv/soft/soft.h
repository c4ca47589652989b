/* SPDX-License-Identifier: Apache-2.0 */
/*
 * soft.h - VM and vCPU of the soft engine, and the seams between its parts
 *
 * Who owns what:
 *   soft.c       engine entry points, run loop around the interpreter
 *   mem.c fill.c guest-physical slots, page metadata, software TLB, slow paths
 *   route.c      eventfds into the guest and out of it; timer.c: its APIC timers
 *   cache.c      decoded blocks
 *   x86/decode.c bytes -> struct insn (Zydis), asks the binders for a handler
 *   x86/form.c   what was decoded before, for the next of its kind
 *   x86/int.c    integer instructions          bind_int()
 *   x86/sys.c    segments, far transfers, CRs  bind_sys()
 *   x86/fpu.c    x87, MMX, SSE, AVX            bind_fpu()
 *   x86/event.c  delivery of exceptions and interrupts, task switch
 *   x86/paging.c the page walk
 *   x86/lapic.c  local APIC; x86/msr.c MSRs; x86/kvmpv.c paravirtual clock
 *
 * How an instruction runs: the loop sets c->gpr[R_NEXT] to the address of the
 * next instruction and calls insn->fn(c, insn).  A handler that branches
 * stores to c->gpr[R_NEXT].  c->rip stays the address of the current one
 * until the handler returns.  A handler that cannot finish (fault, exit to
 * the caller) leaves by longjmp through x86_fault() or the memory functions,
 * so it must not change architectural state before its last access that may
 * fail.  (Exception: a string iteration commits its registers before the
 * next.)  Half-done instructions with MMIO or port access are run again from
 * the start; accesses already answered are replayed from c->replay.
 */
#ifndef SOFT_SOFT_H
#define SOFT_SOFT_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bits.h"
#include "hv/engine.h"

struct cpu;
struct insn;
struct code_page;
typedef void insn_fn(struct cpu *c, const struct insn *in);

enum {
	R_RAX,
	R_RCX,
	R_RDX,
	R_RBX,
	R_RSP,
	R_RBP,
	R_RSI,
	R_RDI,
	R_ZERO = 16, /* always 0: "no base", "no index" */
	R_NEXT = 17, /* next rip: base of RIP-relative operands */
	R_COUNT = 18
};

enum {
	SEG_ES,
	SEG_CS,
	SEG_SS,
	SEG_DS,
	SEG_FS,
	SEG_GS,
	SEG_LDT,
	SEG_TR,
	SEG_COUNT,
	SEG_SYS /* implicit supervisor access, no segment */
};

enum {
	FL_CF = 1,
	FL_PF = 4,
	FL_AF = 0x10,
	FL_ZF = 0x40,
	FL_SF = 0x80,
	FL_TF = 0x100,
	FL_IF = 0x200,
	FL_DF = 0x400,
	FL_OF = 0x800,
	FL_IOPL = 0x3000,
	FL_NT = 0x4000,
	FL_RF = 0x10000,
	FL_VM = 0x20000,
	FL_AC = 0x40000,
	FL_VIF = 0x80000,
	FL_VIP = 0x100000,
	FL_ID = 0x200000,
	FL_ARITH = 0x8d5
};

enum {
	VEC_DE,
	VEC_DB,
	VEC_NMI,
	VEC_BP,
	VEC_OF,
	VEC_BR,
	VEC_UD,
	VEC_NM,
	VEC_DF,
	VEC_TS = 10,
	VEC_NP,
	VEC_SS,
	VEC_GP,
	VEC_PF,
	VEC_MF = 16,
	VEC_AC,
	VEC_MC,
	VEC_XM
};

#define CR0_PE	       BIT(0)
#define CR0_MP	       BIT(1)
#define CR0_EM	       BIT(2)
#define CR0_TS	       BIT(3)
#define CR0_ET	       BIT(4)
#define CR0_NE	       BIT(5)
#define CR0_WP	       BIT(16)
#define CR0_AM	       BIT(18)
#define CR0_NW	       BIT(29)
#define CR0_CD	       BIT(30)
#define CR0_PG	       BIT(31)
#define CR4_VME	       BIT(0)
#define CR4_PVI	       BIT(1)
#define CR4_TSD	       BIT(2)
#define CR4_DE	       BIT(3)
#define CR4_PSE	       BIT(4)
#define CR4_PAE	       BIT(5)
#define CR4_MCE	       BIT(6)
#define CR4_PGE	       BIT(7)
#define CR4_PCE	       BIT(8)
#define CR4_OSFXSR     BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP       BIT(11)
#define CR4_FSGSBASE   BIT(16)
#define CR4_PCIDE      BIT(17)
#define CR4_OSXSAVE    BIT(18)
#define CR4_SMEP       BIT(20)
#define CR4_SMAP       BIT(21)
#define EFER_SCE       BIT(0)
#define EFER_LME       BIT(8)
#define EFER_LMA       BIT(10)
#define EFER_NXE       BIT(11)
#define EFER_FFXSR     BIT(14)
#define EFER_AIBRS     BIT(21)

/* -- decoded instructions ------------------------------------------------- */

enum {
	IN_LOCK = 1,
	IN_REP = 2,
	IN_REPNE = 4,
	IN_MEM = 8,
	IN_ENDS = 16,
	IN_STI = 32 /* block interrupts for one instruction after this */
};

/*
 * 8-bit register numbers: 0-15 the low byte, 16-19 AH CH DH BH (see r8()).
 * mem operand: address = base + (index << scale) + disp, cut to adsize, in
 * segment seg.  Handlers get in->imm sign-extended to 64 bits as Zydis gives
 * it (immediates that are unsigned by the architecture, such as ENTER's and
 * RET's, are zero-extended).
 */
struct insn {
	insn_fn *fn;
	uint64_t imm;
	int64_t disp;
	const void *aux;   /* the binder's: a thunk, a table entry */
	uint16_t mnemonic; /* ZydisMnemonic */
	uint8_t len;
	uint8_t opsize;	 /* 1 2 4 8: operand size in bytes */
	uint8_t adsize;	 /* 2 4 8 */
	uint8_t flags;	 /* IN_* */
	uint8_t reg, rm; /* register operands: first, second or r/m */
	uint8_t base, index, scale, seg;
	uint8_t imm2;	   /* second immediate; or VEX.vvvv register */
	uint8_t memsize;   /* bytes of the memory operand, 0 unknown */
	uint8_t nops;	   /* explicit operands */
	uint8_t cpu_mode;  /* enum cpu_mode at decode time */
	uint8_t bytes[15]; /* the instruction itself */
};

/* Zydis' view, handed to the binders only (not kept). */
struct decoded; /* x86/decode.h */

/* -- physical memory ------------------------------------------------------ */

/* One per 4 KiB page of a slot. */
struct soft_page {
	_Atomic uint32_t gen;	   /* +1 when code in the page changes */
	_Atomic uint32_t state;	   /* PAGE_* */
	_Atomic uint64_t granules; /* 64-byte pieces that hold decoded code */
	/* Where TLBs may hold it writable: four of slot + 1, or all bits. */
	_Atomic uint64_t slots;
};

enum {
	PAGE_CODE = 1,
	PAGE_WMAP = 2, /* some TLB may hold it writable */
	/* From here up: stores seen since the last code of the page went. */
	PAGE_STORE = 0x100
};

struct soft_slot {
	uint64_t gpa, size;
	uint8_t *host;
	unsigned flags; /* HV_MEM_* */
	struct soft_page *pages;
	_Atomic uint64_t *dirty; /* NULL without HV_MEM_LOG */
};

enum { SOFT_MAX_SLOTS = 256 };

struct soft_vm {
	struct hv_vm vm;
	pthread_mutex_t lock;		       /* routes, timer */
	struct soft_slot slot[SOFT_MAX_SLOTS]; /* changed in a stopped world */
	unsigned nslots;
	struct hv_doorbell *doorbells; /* under slots */
	int *doorbell_fds;
	unsigned ndoorbells;
	struct soft_routes *routes; /* route.c, from the first one on */
	struct timer *timer;	    /* timer.c, from the first deadline on */
	/*
	 * The guest's TSC is the host's plus tsc_offset where that counts
	 * evenly, else CLOCK_MONOTONIC in its units.  At host_tsc0 the clock
	 * stood at ns0: the kvm-clock is counted from there by the TSC alone.
	 */
	bool host_tsc;
	bool goes_on; /* a saved guest, whose rate was given */
	uint64_t host_tsc0, ns0;
	int64_t clock_offset; /* kvm-clock ns = soft_clock_ns() + it */
	/* Since when time stands still; changed while no vCPU runs. */
	struct {
		bool on;
		uint64_t tsc, ns;
	} stopped;
	struct cpu *cpu[HV_MAX_VCPUS]; /* by id, set atomically */
	atomic_bool has_run;	       /* some vCPU: code may be decoded */
	/*
	 * Lock order: world, slots, code.  Who waits for world is parked, so
	 * its holder never waits for somebody who waits for it.
	 */
	pthread_mutex_t world;	/* held while the world is stopped */
	pthread_rwlock_t slots; /* slot table, for threads that are not vCPUs */
	pthread_mutex_t code;	/* decoding, and forgetting decoded code */
};

/* -- TLB ------------------------------------------------------------------ */

enum { TLB_BITS = 14, TLB_SIZE = 1 << TLB_BITS };
/* MMU_USER_AC: user with alignment checks, which need the slow path. */
enum { MMU_USER, MMU_KERNEL, MMU_KERNEL_AC, MMU_USER_AC, MMU_COUNT };

/*
 * t = va ^ tag; t <= 0x1000 - size: a hit, at t in the host's page.  Reads and
 * writes have tables of their own, so that copies between places that are a
 * multiple of the TLB's reach apart do not push each other out.
 */
struct tlb_entry {
	uint64_t tag, host;
};

enum { TLB_READ, TLB_WRITE, TLB_EXEC };

struct tlb {
	struct tlb_entry e[2][TLB_SIZE];
};

/*
 * Which entries of a table are filled, 64 to a word, and which words are not
 * 0: local ones belong to the current PCID, the others to all.
 */
enum { MARK_WORDS = TLB_SIZE / 64, MARK_TOPS = MARK_WORDS / 64 };

struct tlb_marks {
	uint64_t words[MARK_TOPS], local_words[MARK_TOPS];
	uint64_t used[MARK_WORDS], local[MARK_WORDS];
};

/* Linear addresses of large pages in the TLB. */
struct large_range {
	uint64_t lo, hi; /* hi 0: none */
	bool giant;	 /* some are larger than 2 MiB */
};

/*
 * Local entries of a PCID that is not the current one.  They come back when
 * CR3 is loaded with it and without a flush.
 */
enum { PARKS = 8, PARK_MAX = 240 };

struct park {
	bool valid;
	uint16_t pcid;
	uint16_t n;
	struct large_range large[2];
	struct {
		uint16_t slot;
		uint8_t mmu, table; /* TLB_READ, TLB_WRITE, TLB_EXEC */
		struct tlb_entry e; /* TLB_EXEC: tag is of the xtab */
	} saved[PARK_MAX];
};

/*
 * What translated code checks when it comes to another page: the identity of
 * (linear page, guest-physical page) that may be executed there now.  Page 0
 * at address 0 has one too, so 0 is no identity; guest-physical addresses of
 * XTAB_GPA_BITS fit.
 */
enum {
	XTAB_SIZE = 1 << 12, /* not more than TLB_SIZE: see tlb_marks */
	XTAB_GPA_BITS = 39,
	ITAB_BITS = 16,
	ITAB_SIZE = 1 << ITAB_BITS,
	ITAB_SHIFT = 2,
	MAX_STALE = 64
};

static inline uint64_t xtab_id(uint64_t lin, uint64_t gpa)
{
	return (lin >> 12) << 28 | BIT(27) | gpa >> 12;
}

static inline bool xtab_same_lin(uint64_t id, uint64_t lin)
{
	return id && (int64_t)id >> 28 == (int64_t)lin >> 12;
}

static inline uint64_t xtab_gpa(uint64_t id)
{
	return (id & (BIT(27) - 1)) << 12;
}

static inline unsigned xtab_slot(uint64_t lin)
{
	return ((lin >> 12) ^ (lin >> 30)) & (XTAB_SIZE - 1);
}

/*
 * Targets of indirect branches.  Those that are near each other, as the ends
 * of calls in a row, share a line of the cache.
 */
struct itab_entry {
	uint64_t rip, code;
};

static inline unsigned itab_slot(uint64_t rip)
{
	return ((rip ^ (rip >> ITAB_BITS)) >> ITAB_SHIFT) & (ITAB_SIZE - 1);
}

/* An address that is looked up in entry i, and not in others. */
static inline uint64_t itab_address(unsigned i)
{
	return (uint64_t)i << ITAB_SHIFT;
}

/* -- replay of answered accesses ------------------------------------------ */

enum { REPLAY_MAX = 160 };

struct replay {
	unsigned done; /* answered accesses of this instruction */
	unsigned at;   /* how many this attempt has consumed */
	bool waiting;  /* entry [done] was handed to the caller */
	bool write;    /* and it was a write: nothing to answer */
	bool fault;    /* the caller wants #GP for its MSR */
	uint64_t value[REPLAY_MAX];
};

/* -- the vCPU ------------------------------------------------------------- */

struct segreg {
	uint16_t sel;
	uint32_t limit;	 /* bytes */
	uint32_t access; /* as struct hv_segment */
	uint64_t base;
};

#define SEG_A_UNUSABLE BIT(16)
#define SEG_A_DB       BIT(14)
#define SEG_A_L	       BIT(13)
#define SEG_A_P	       BIT(7)
#define SEG_A_S	       BIT(4)

enum cpu_mode {
	MODE_REAL,
	MODE_VM86,
	MODE_P16,
	MODE_P32,
	MODE_C16,
	MODE_C32,
	MODE_64
};

enum {
	REQ_KICK = 1,
	REQ_IRQ = 2,
	REQ_TLB = 4,
	REQ_STOP = 8,
	REQ_INIT = 16,
	REQ_SIPI = 32,
	REQ_NMI = 64,
	REQ_WINDOW = 128,
	REQ_CODE = 256, /* c->stale, c->fpu_full */
	REQ_TIMER = 512
};

/* Why the interpreter was left by longjmp. */
enum { LEAVE_FAULT = 1, LEAVE_EXIT = 2, LEAVE_RESTART = 3 };

struct cpu {
	struct hv_vcpu vcpu;
	struct soft_vm *vm;

	uint64_t gpr[R_COUNT];
	uint64_t rip, rflags;
	uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
	struct segreg seg[SEG_COUNT];
	struct {
		uint64_t base;
		uint16_t limit;
	} gdtr, idtr;
	uint64_t dr[4], dr6, dr7;
	uint64_t pdpte[4]; /* PAE without long mode */

	/* Derived, by cpu_update_mode(): */
	enum cpu_mode mode;
	uint8_t cpl;
	uint8_t mmu;	     /* MMU_* of ordinary accesses */
	bool flat;	     /* 64-bit, or DS ES SS are 0..4G */
	uint32_t mode_key;   /* all that decoding and binding depend on */
#define MODE_KEY_CPL 0x6008u /* its bits that only the ring decides */

	/* XSAVE standard format: legacy 512, header 64, YMM high at 576. */
	uint8_t fpu[1024] __attribute__((aligned(64)));

	uint64_t apic_base;
	struct lapic *lapic;
	uint64_t tsc_offset;
	struct {
		uint64_t star, lstar, cstar, sfmask, kernel_gs, tsc_aux;
		uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
		uint64_t pat, mtrr_def, misc_enable, spec_ctrl, mcg_status;
		uint64_t mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
		uint64_t mc[40]; /* CTL, STATUS, ADDR, MISC of the banks */
		uint64_t kvm_wall, kvm_system, kvm_eoi, kvm_steal, kvm_poll;
		uint64_t tsc_adjust;
	} msr;

	/* Events. */
	struct {
		bool pending, has_error;
		uint8_t kind; /* enum event_kind */
		uint8_t vector, ilen;
		uint32_t error;
		uint64_t cr2;
	} fault;	 /* set by x86_fault() before longjmp */
	bool delivering; /* inside x86_deliver() */
	uint8_t deliver_vec;
	bool inhibit;	 /* STI shadow: no interrupt after this */
	bool inhibit_ss; /* MOV SS shadow: no #DB either */
	bool nmi_masked;
	_Atomic uint32_t nmi_pending; /* sent; at most two are kept */
	bool extint;		      /* hv_vcpu_inject()ed vector waits */
	uint8_t extint_vector;
	_Atomic bool extint_msi; /* an ExtINT message asks for the PIC */
	_Atomic bool pv_kicked;	 /* a hypercall ends this or the next HLT */
	enum hv_mp_state mp;
	uint32_t sipi_vector;
	unsigned debug; /* HV_DEBUG_* */
	/* Data and port breakpoints; what is hit traps behind the insn. */
	bool watch;	  /* DR7 has data breakpoints: see watch_update() */
	uint8_t db_hit;	  /* bits of DR6, by the running instruction */
	uint8_t db_held;  /* and what MOV SS holds back */
	bool soft_event;  /* the instruction was INT n or the like */
	bool trap_now;	  /* SYSCALL or SYSRET ended with TF set */
	bool msr_unknown; /* why msr_read() or msr_write() refused */

	/* Asked for by other threads; looked at between blocks. */
	_Atomic uint32_t request;
	_Atomic bool want_window;
	_Atomic uint32_t asleep; /* futex: 1 while halted */
	_Atomic uint32_t parked; /* 1: outside the interpreter or stopped */

	jmp_buf env;
	struct hv_exit *exit; /* the caller's, valid inside run */
	struct replay replay;
	bool leave_block; /* the running block changed: end it */
	bool world_held;  /* this vCPU has stopped the others */
	bool irq_check;	  /* the APIC may have something to deliver */
	/* By half of the address space, of local entries and of the others:
	 * INVLPG inside cannot know which entries are pieces of one page. */
	struct large_range large[2][2];
	uint64_t tlb_gen; /* +1 at each flush */
	bool ready;	  /* the TLB is set up */
	struct block_cache *cache;
	struct forms *forms; /* x86/form.c; NULL: does without */
	void *fpu_cache;     /* x86/fpu.c: generated code */
	bool fpu_full;	     /* it wants to be dropped, see REQ_CODE */
	struct hv_cpuid cpuid[64];
	unsigned ncpuid;
	bool amd; /* vendor, where the two differ */
	struct hv_stats stats;
	bool interp_only;

	/* Translated code (trans/trans.h) reaches all this by offset. */
	struct trans *trans;	    /* NULL: interpreter only */
	_Atomic uint64_t timer_due; /* what timer.c was told */
	struct {
		bool valid;
		uint32_t lvt;
		uint64_t expiry_ns, tsc_deadline, tsc_offset, apic_base;
	} armed; /* and what that was made from */
	struct {
		struct cpu *self;
		uint64_t resume, target, temp;
		uint64_t group[16]; /* trans/group.c */
		uint64_t lent[2];   /* host registers: trans/insn.c */
		uint64_t site;
		uint32_t host_mxcsr;
		uint32_t itab_key[MMU_COUNT]; /* trans_key() of itab's code */
		uint16_t flags;		      /* AH of LAHF, and OF in bit 0 */
		uint8_t vector[64] __attribute__((aligned(32)));
		/* Pairs: the thunks look at both of one at once. */
		uint8_t vec_loaded, x87_loaded;
		uint8_t vec_want, x87_want;
		bool interpret;
	} tr;
	/* Pieces of pages whose code changed, under vm->code; full: all. */
	struct {
		struct soft_page *page;
		uint64_t granules;
	} stale[MAX_STALE];
	_Atomic unsigned nstale;
	struct tlb_marks marks[MMU_COUNT][3]; /* [TLB_EXEC]: of xtab */
	struct park park[PARKS];
	unsigned next_park;
	uint64_t xtab[MMU_COUNT][XTAB_SIZE];
	struct itab_entry itab[MMU_COUNT][ITAB_SIZE];
	struct tlb tlb[MMU_COUNT];
};

#define to_cpu(v)  container_of(v, struct cpu, vcpu)
#define to_soft(v) container_of(v, struct soft_vm, vm)

/* -- leaving an instruction ----------------------------------------------- */

_Noreturn void x86_fault(struct cpu *c, unsigned vector, uint32_t error);
_Noreturn void x86_fault_noerr(struct cpu *c, unsigned vector);
_Noreturn void x86_page_fault(struct cpu *c, uint64_t va, uint32_t error);
_Noreturn void cpu_leave(struct cpu *c); /* c->exit is filled */
_Noreturn void cpu_error(struct cpu *c, const char *fmt, ...);
#define x86_ud(c)    x86_fault_noerr(c, VEC_UD)
#define x86_gp(c, e) x86_fault(c, VEC_GP, e)
#define x86_nm(c)    x86_fault_noerr(c, VEC_NM)

/* -- memory (mem.c; fast paths inline in mem.h) --------------------------- */

/* Bits 63:47 are equal: SDM 1, 3.3.7.1. */
static inline bool canonical(uint64_t a)
{
	return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

/*
 * lin is a linear address; seg only says which fault a bad address gives
 * (#SS for SEG_SS, else #GP) and SEG_SYS makes it a supervisor access.
 */
uint8_t ld8(struct cpu *c, unsigned seg, uint64_t lin);
uint16_t ld16(struct cpu *c, unsigned seg, uint64_t lin);
uint32_t ld32(struct cpu *c, unsigned seg, uint64_t lin);
uint64_t ld64(struct cpu *c, unsigned seg, uint64_t lin);
void st8(struct cpu *c, unsigned seg, uint64_t lin, uint8_t v);
void st16(struct cpu *c, unsigned seg, uint64_t lin, uint16_t v);
void st32(struct cpu *c, unsigned seg, uint64_t lin, uint32_t v);
void st64(struct cpu *c, unsigned seg, uint64_t lin, uint64_t v);
void mem_read(struct cpu *c, unsigned seg, uint64_t lin, void *buf, size_t n);
void mem_write(struct cpu *c, unsigned seg, uint64_t lin, const void *buf,
	       size_t n);
/* Fault now if [lin, lin + n) could not be read/written later. */
void mem_check(struct cpu *c, unsigned seg, uint64_t lin, size_t n, bool write);
/*
 * Read-modify-write.  Write permission is checked first.  A host pointer when
 * the whole operand is ordinary RAM in one page without code: operate on it
 * (atomically for LOCK).  NULL: use ld/st; when locked, between
 * world_stop(c) and world_start(c).
 */
void *mem_rmw(struct cpu *c, unsigned seg, uint64_t lin, unsigned size);
/*
 * For REP MOVS/STOS: host pointer for up to *n bytes at lin (cut to the page)
 * when it is ordinary RAM, else NULL (go element by element).  When *tell is
 * not CHUNK_PLAIN, it goes to phys_written() with what has been written.
 */
#define CHUNK_PLAIN UINT64_MAX
void *mem_chunk(struct cpu *c, unsigned seg, uint64_t lin, size_t *n,
		bool write, uint64_t *tell);

/* Stop every other vCPU at a block end; world_start() lets them go. */
void world_stop(struct soft_vm *vm, struct cpu *self);
void world_start(struct soft_vm *vm, struct cpu *self);

/* Guest-physical, no exit: NULL or host pointer when all is RAM in one slot. */
void *phys_ptr(struct soft_vm *vm, uint64_t gpa, size_t n);
struct soft_slot *phys_slot(struct soft_vm *vm, uint64_t gpa);
/* After writing through phys_ptr(). */
void phys_written(struct soft_vm *vm, struct cpu *self, uint64_t gpa, size_t n);

/* After a change of DR0 to DR7: pages of data breakpoints leave the TLB. */
void watch_update(struct cpu *c);

/* All PCIDs; or only local entries of the current one. */
void tlb_flush(struct cpu *c, bool all);
void tlb_flush_page(struct cpu *c, uint64_t va);
/* Local entries of a PCID that may be the current one. */
void tlb_flush_pcid(struct cpu *c, unsigned pcid);
/* Local entries of every PCID. */
void tlb_flush_pcids(struct cpu *c);
/* c->cr3 has become another PCID; keep: what is left of it is good. */
void tlb_switch(struct cpu *c, unsigned from, unsigned to, bool keep);

/* Port access; may leave by longjmp and be run again (replay). */
uint32_t pio_in(struct cpu *c, uint16_t port, unsigned size);
void pio_out(struct cpu *c, uint16_t port, unsigned size, uint32_t value);

/* An MSR that the engine does not know: the caller's value, or its #GP. */
uint64_t msr_ask(struct cpu *c, uint32_t index, bool write, uint64_t value);

/* -- paging.c ------------------------------------------------------------- */

enum { ACC_READ, ACC_WRITE, ACC_EXEC };

struct walk {
	uint64_t gpa;
	bool writable; /* may be filled writable (D is set) */
	bool readable, executable, global;
	uint8_t page_shift; /* 12, 21, 22, 30 */
};

/* Raises #PF, or returns the translation with A (and D for writes) set. */
void page_walk(struct cpu *c, uint64_t va, int acc, unsigned mmu,
	       struct walk *out);
/* The same in long mode when nothing is raised and no entry changes, or false */
bool page_probe(struct cpu *c, uint64_t va, int acc, unsigned mmu,
		struct walk *out);

/* -- x86 parts ------------------------------------------------------------ */

insn_fn *bind_int(const struct decoded *d, struct insn *in);
insn_fn *bind_sys(const struct decoded *d, struct insn *in);
insn_fn *bind_fpu(const struct decoded *d, struct insn *in);

/* Bytes at code for mode; 0, or -1: undecodable (fn raises #UD). */
int decode_insn(struct cpu *c, const uint8_t *code, unsigned avail,
		struct insn *in);

/* event.c: deliver through the IDT.  Faults inside are the caller's loop's. */
enum event_kind {
	EVENT_FAULT,
	EVENT_INT,
	EVENT_SOFT_INT,
	EVENT_ICEBP,
	EVENT_NMI
};
void x86_deliver(struct cpu *c, enum event_kind kind, uint8_t vector,
		 bool has_error, uint32_t error);
void x86_shutdown(struct cpu *c) __attribute__((noreturn));

/* sys.c: after any change of CR0, CR4, EFER, CS, rflags.VM/AC or CPL */
void cpu_update_mode(struct cpu *c);
void cpu_reset(struct cpu *c, bool init_only);
/* event.c */
void load_seg_real(struct cpu *c, unsigned seg, uint16_t sel);

/* msr.c: false: raise #GP, or see c->msr_unknown */
bool msr_read(struct cpu *c, uint32_t index, uint64_t *value);
bool msr_write(struct cpu *c, uint32_t index, uint64_t value);
void cpuid_read(struct cpu *c, uint32_t leaf, uint32_t sub, uint32_t out[4]);
uint64_t cpu_tsc(struct cpu *c);

/* lapic.c */
int lapic_init(struct cpu *c);
void lapic_finish(struct cpu *c);
void lapic_reset(struct cpu *c, bool init_only);
bool lapic_has_irq(struct cpu *c); /* some vector above PPR */
int lapic_ack(struct cpu *c);	   /* vector now in service, or -1 */
void lapic_poll(struct cpu *c);	   /* fire the timer when due */
/* CLOCK_MONOTONIC ns of the timer's next expiry, UINT64_MAX: none */
uint64_t lapic_deadline(struct cpu *c);
uint32_t lapic_mmio_read(struct cpu *c, uint32_t off);
void lapic_mmio_write(struct cpu *c, uint32_t off, uint32_t value);
bool lapic_msr_read(struct cpu *c, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct cpu *c, uint32_t index, uint64_t value);
uint8_t lapic_cr8_get(struct cpu *c);
void lapic_cr8_set(struct cpu *c, uint8_t v);
bool lapic_set_base(struct cpu *c, uint64_t value);
int lapic_msi(struct soft_vm *vm, uint64_t addr, uint32_t data);
bool lapic_accepts_extint(struct cpu *c);
void lapic_get(struct cpu *c, uint8_t *regs);
int lapic_set(struct cpu *c, const uint8_t *regs);

/* kvmpv.c */
bool kvmpv_msr_read(struct cpu *c, uint32_t index, uint64_t *value);
bool kvmpv_msr_write(struct cpu *c, uint32_t index, uint64_t value);
void kvmpv_enter(struct cpu *c); /* start of each run: refresh the clock */
/* Around a halted vCPU's sleep: others need not send it TLB flushes. */
void kvmpv_sleep(struct cpu *c);
void kvmpv_wake(struct cpu *c);
uint64_t kvmpv_hypercall(struct cpu *c); /* vmcall: result for rax */

/* fpu.c */
void fpu_reset(struct cpu *c);
void fpu_finish(struct cpu *c);

/* soft.c: end an instruction that only waits for a write to be done. */
void cpu_settle(struct cpu *c);
void fpu_get(struct cpu *c, uint8_t *xsave);
int fpu_set(struct cpu *c, const uint8_t *xsave);
bool fpu_set_xcr0(struct cpu *c, uint64_t v);

/* Wake a vCPU: set request bits and end its sleep.  Any thread. */
void cpu_request(struct cpu *c, uint32_t bits);

#endif /* SOFT_SOFT_H */
