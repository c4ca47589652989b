/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fpu.c - x87, MMX, SSE and AVX by letting the host run the instruction
 *
 * The guest's vector state is an image in memory (c->fpu).  The first time an
 * instruction is executed a thunk is generated for it:
 *
 *	load the vector registers it names	(x87, MMX: fxrstor64)
 *	load rax, rdx, flags, MXCSR		if it reads them
 *	the instruction itself
 *	store flags, rax, rcx, MXCSR to the context
 *	return if it raised an unmasked exception
 *	store the vector registers it wrote	(x87, MMX: fxsave64)
 *
 * The instruction is re-encoded: its memory operand becomes [rdi], a buffer
 * in the context; its general register becomes rax; vector registers keep
 * their numbers.  Legacy SSE thunks load and store the low 128 bits only, so
 * the upper halves in the image stay; VEX thunks move all 256 bits.
 *
 * Floating-point exceptions are masked while a thunk runs; the flags it left
 * are compared with the guest's masks afterwards and nothing is committed if
 * the guest must take #XM.  x87 exceptions show at the next waiting
 * instruction, which is checked for here and never reached on the host:
 * FXSAVE does not wait.
 *
 * A thunk depends on its bytes only (not on the guest's address or general
 * registers), so equal ones are shared.  When there are too many, what comes
 * next runs by one thunk that is made anew each time, until the run loop has
 * dropped all of them and the decoded instructions that know them.  Code
 * pages are mapped twice, writable and executable, never both in one mapping.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hv/soft/x86/fpu.h"

enum {
	CHUNK = 4 << 20,
	MAX_CHUNKS = 4,
	THUNK_MAX = 512,
	MAX_THUNKS = 1 << 16,
	KEY = 20
};

/* Offsets are known to the generated code. */
struct fpu_ctx {
	uint8_t buf[128]; /* [rdi] */
	uint64_t rax, rdx, rcx, flags;
	uint32_t mx_in, mx_out, mx_unmasked, mx_host;
	uint8_t pad[16];
	uint8_t img[512];
} __attribute__((aligned(64)));

enum { UNTOUCHED = 0xa5 };
enum { X_PLAIN, X_CONTROL, X_INIT, X_STENV, X_SAVE, X_LDENV };

struct thunk {
	struct thunk *next;
	uint8_t key[KEY];
	void (*code)(struct fpu_ctx *x, void *image);
	insn_fn *fn;
	uint16_t mnemonic;
	uint16_t opcode; /* x87: FOP */
	uint8_t msize, align;
	bool mread, mwrite;
	bool gpr, gread, gwrite; /* explicit general register */
	bool implicit, rcx;	 /* reads eax edx; writes ecx */
	bool flags_in, flags_out;
	bool vex, mmx, sse, mx;
	bool waits;
	uint8_t x87;		   /* X_* */
	uint8_t reg, rm, vvvv, vl; /* vector registers, vector bytes */
	uint8_t es, is;		   /* element, index element bytes */
	uint8_t scale, seg, adsize;
	bool store;
};

struct fpu_cache {
	struct fpu_ctx ctx;
	struct thunk *hash[4096];
	uint8_t *rw[MAX_CHUNKS], *rx[MAX_CHUNKS];
	unsigned nchunks, nthunks;
	size_t used;	    /* of the last chunk */
	struct thunk spare; /* the last chunk ends with room for its code */
};

static struct fpu_cache *fpu_cache(struct cpu *c)
{
	struct fpu_cache *f = c->fpu_cache;

	if (likely(f != NULL))
		return f;
	f = aligned_alloc(64, ALIGN_UP(sizeof(*f), 64));
	if (!f)
		cpu_error(c, "out of memory for vector instructions");
	memset(f, 0, sizeof(*f));
	f->ctx.mx_host = MXCSR_INIT;
	c->fpu_cache = f;
	return f;
}

void fpu_finish(struct cpu *c)
{
	struct fpu_cache *f = c->fpu_cache;
	struct thunk *t;

	if (!f)
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(f->hash); i++) {
		while ((t = f->hash[i])) {
			f->hash[i] = t->next;
			free(t);
		}
	}
	for (unsigned i = 0; i < f->nchunks; i++) {
		munmap(f->rw[i], CHUNK);
		munmap(f->rx[i], CHUNK);
	}
	free(f);
	c->fpu_cache = NULL;
}

/* -- availability --------------------------------------------------------- */

static void check_sse(struct cpu *c)
{
	if (c->cr0 & CR0_EM || !(c->cr4 & CR4_OSFXSR))
		x86_ud(c);
	if (c->cr0 & CR0_TS)
		x86_nm(c);
}

static void check_avx(struct cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & 6) != 6)
		x86_ud(c);
	if (c->mode == MODE_REAL || c->mode == MODE_VM86)
		x86_ud(c);
	if (c->cr0 & CR0_TS)
		x86_nm(c);
}

static void check_pending(struct cpu *c)
{
	if (fx16(c->fpu, FX_FSW) & FSW_ES && c->cr0 & CR0_NE)
		x86_fault_noerr(c, VEC_MF);
}

static void check_mmx(struct cpu *c, bool sse)
{
	if (c->cr0 & CR0_EM || (sse && !(c->cr4 & CR4_OSFXSR)))
		x86_ud(c);
	if (c->cr0 & CR0_TS)
		x86_nm(c);
	check_pending(c);
}

static void check_vec(struct cpu *c, const struct thunk *t)
{
	if (t->vex)
		check_avx(c);
	else
		check_sse(c);
}

/* What __builtin_cpu_supports() has no name for in every compiler. */
static bool host_leaf7(unsigned sub, unsigned reg, unsigned bit)
{
	unsigned r[4] = { 0 };

	if (!__get_cpuid_count(7, sub, &r[0], &r[1], &r[2], &r[3]))
		return false;
	return r[reg] >> bit & 1;
}

static bool host_f16c(void)
{
	unsigned a, b, c, d;

	return __builtin_cpu_supports("avx") &&
	       __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
}

static bool host_has(ZydisISAExt ext, ZydisISASet set)
{
	enum { EAX, EBX, ECX };

	switch (ext) {
	case ZYDIS_ISA_EXT_ADOX_ADCX: return host_leaf7(0, EBX, 19);
	case ZYDIS_ISA_EXT_SSE3: return __builtin_cpu_supports("sse3");
	case ZYDIS_ISA_EXT_SSSE3: return __builtin_cpu_supports("ssse3");
	case ZYDIS_ISA_EXT_SSE4: return __builtin_cpu_supports("sse4.2");
	case ZYDIS_ISA_EXT_SSE4A: return __builtin_cpu_supports("sse4a");
	case ZYDIS_ISA_EXT_AES: return __builtin_cpu_supports("aes");
	case ZYDIS_ISA_EXT_PCLMULQDQ: return __builtin_cpu_supports("pclmul");
	case ZYDIS_ISA_EXT_SHA: return host_leaf7(0, EBX, 29);
	case ZYDIS_ISA_EXT_GFNI:
		return __builtin_cpu_supports("gfni") &&
		       (set == ZYDIS_ISA_SET_GFNI ||
			__builtin_cpu_supports("avx"));
	case ZYDIS_ISA_EXT_AVX: return __builtin_cpu_supports("avx");
	case ZYDIS_ISA_EXT_AVXAES:
		return __builtin_cpu_supports("avx") &&
		       __builtin_cpu_supports("aes");
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER: return __builtin_cpu_supports("avx2");
	case ZYDIS_ISA_EXT_FMA: return __builtin_cpu_supports("fma");
	case ZYDIS_ISA_EXT_F16C: return host_f16c();
	case ZYDIS_ISA_EXT_VAES:
		return __builtin_cpu_supports("avx2") && host_leaf7(0, ECX, 9);
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
		return __builtin_cpu_supports("avx2") && host_leaf7(0, ECX, 10);
	case ZYDIS_ISA_EXT_AVX_VNNI:
		return __builtin_cpu_supports("avx2") && host_leaf7(1, EAX, 4);
	default: return true;
	}
}

bool fpu_host_has(const struct decoded *d)
{
	return host_has(d->i.meta.isa_ext, d->i.meta.isa_set);
}

/* -- generating ----------------------------------------------------------- */

struct emit {
	uint8_t *p;
	uint8_t *end;
};

static void e1(struct emit *e, uint8_t b)
{
	if (e->p < e->end)
		*e->p = b;
	e->p++;
}

static void e_bytes(struct emit *e, const void *b, size_t n)
{
	for (const uint8_t *s = b; n--; s++)
		e1(e, *s);
}

static void e4(struct emit *e, uint32_t v)
{
	e_bytes(e, &v, 4);
}

/* op (up to 3 bytes, first in the high byte) with [rdi + context field] */
#define E_CTX(e, field, ...) \
	do { \
		const uint8_t b_[] = { __VA_ARGS__ }; \
		e_bytes(e, b_, sizeof(b_)); \
		e4(e, offsetof(struct fpu_ctx, field)); \
	} while (0)

/* movups xmm, [rsi + n] and back */
static void e_movups(struct emit *e, unsigned n, bool store)
{
	if (n & 8)
		e1(e, 0x44);
	e1(e, 0x0f);
	e1(e, store ? 0x11 : 0x10);
	e1(e, (uint8_t)(0x86 | (n & 7) << 3));
	e4(e, FX_XMM + 16 * n);
}

static void e_vex(struct emit *e, unsigned n, unsigned map, unsigned b2,
		  unsigned op, uint32_t disp)
{
	e1(e, 0xc4);
	e1(e, (uint8_t)((n & 8 ? 0 : 0x80) | 0x60 | map));
	e1(e, (uint8_t)b2);
	e1(e, (uint8_t)op);
	e1(e, (uint8_t)(0x86 | (n & 7) << 3));
	e4(e, disp);
}

static void e_ymm(struct emit *e, unsigned n, bool store)
{
	e_vex(e, n, 1, 0x78, store ? 0x11 : 0x10, FX_XMM + 16 * n);
	if (store) /* vextractf128 [rsi + n], ymm, 1 */
		e_vex(e, n, 3, 0x7d, 0x19, FX_YMM + 16 * n);
	else /* vinsertf128 ymm, ymm, [rsi + n], 1 */
		e_vex(e, n, 3, 0x05 | (~n & 15) << 3, 0x18, FX_YMM + 16 * n);
	e1(e, 1);
}

static ZydisRegisterClass vec_class(const struct operand *op)
{
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return ZYDIS_REGCLASS_INVALID;
	return ZydisRegisterGetClass(op->reg.value);
}

static bool in_modrm(const struct operand *op, ZydisOperandEncoding enc)
{
	return op->encoding == enc;
}

/* FISTTP came with SSE3. */
static bool is_x87(const struct decoded *d)
{
	return d->i.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
	       d->i.mnemonic == ZYDIS_MNEMONIC_FISTTP;
}

/* In 32-bit code W does not widen general registers, here it would. */
static bool drops_w(const struct decoded *d)
{
	if (d->mode == MODE_64)
		return false;
	if (d->i.opcode_map == ZYDIS_OPCODE_MAP_0F)
		return d->i.opcode == 0x6e || d->i.opcode == 0x7e ||
		       d->i.opcode == 0x2a || d->i.opcode == 0x2c ||
		       d->i.opcode == 0x2d;
	return d->i.opcode_map == ZYDIS_OPCODE_MAP_0F3A &&
	       (d->i.opcode == 0x16 || d->i.opcode == 0x22 ||
		d->i.opcode == 0x60 || d->i.opcode == 0x61);
}

/*
 * The instruction for 64-bit mode with [rdi] and rax.  Returns its length.
 * Fills the register numbers of t; *gpr is the guest's general register.
 */
static unsigned reencode(const struct decoded *d, const uint8_t *b,
			 struct thunk *t, uint8_t *out, uint8_t *gpr)
{
	const struct instruction *i = &d->i;
	unsigned w = 0; /* REX.W */
	bool reg_gpr = false, rm_gpr = false, has_mem = false;
	bool wide = d->mode == MODE_64, is4 = false;
	bool x87 = is_x87(d);
	unsigned r = 0, x_b = 0, n = 0, at = 0, vvvv = 15;
	uint8_t modrm = 0, imm;

	*gpr = 0;
	for (unsigned k = 0; k < i->operand_count; k++) {
		const struct operand *op = &d->op[k];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			has_mem = true;
		if (in_modrm(op, ZYDIS_OPERAND_ENCODING_IS4))
			is4 = true;
		if (!is_gpr_op(op))
			continue;
		reg_gpr |= in_modrm(op, ZYDIS_OPERAND_ENCODING_MODRM_REG);
		rm_gpr |= in_modrm(op, ZYDIS_OPERAND_ENCODING_MODRM_RM);
	}
	if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		unsigned o = i->raw.vex.offset;
		unsigned b1 = b[o + 1], b2 = b[o + 1];

		r = ~b1 >> 7 & 1;
		if (b[o] == 0xc4) {
			b2 = b[o + 2];
			x_b = ~b1 >> 5 & 1;
			w = b2 >> 7;
		}
		vvvv = b2 >> 3 & 15;
		if (!wide) {
			vvvv |= 8;
			r = x_b = 0;
		}
		if (drops_w(d))
			w = 0;
		t->vvvv = ~vvvv & 15;
		t->vl = b2 & 4 ? 32 : 16;
		at = i->raw.modrm.offset - 1u;
	} else {
		for (; at < i->length; at++) {
			uint8_t p = b[at];

			if (p == 0xf2 || p == 0xf3 || (p == 0x66 && !x87))
				out[n++] = p;
			else if (p != 0x66 && p != 0x67 && p != 0x2e &&
				 p != 0x36 && p != 0x3e && p != 0x26 &&
				 p != 0x64 && p != 0x65 &&
				 !(wide && (p & 0xf0) == 0x40))
				break;
		}
		t->vl = 16;
		/* Only a REX prefix right before the opcode counts. */
		if (wide && at && (b[at - 1] & 0xf0) == 0x40) {
			r = b[at - 1] >> 2 & 1;
			x_b = b[at - 1] & 1;
			w = b[at - 1] >> 3 & 1;
		}
	}
	if (i->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		modrm = b[i->raw.modrm.offset];
		t->reg = (uint8_t)((modrm >> 3 & 7) | r << 3);
		t->rm = (uint8_t)((modrm & 7) | x_b << 3);
		if (reg_gpr) {
			*gpr = t->reg;
			modrm &= 0xc7;
			r = 0;
		}
		if (modrm < 0xc0) {
			if (has_mem)
				modrm = (modrm & 0x38) | 7;
			x_b = 0;
		} else if (rm_gpr) {
			*gpr = t->rm;
			modrm &= 0xf8;
			x_b = 0;
		}
	}
	if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		out[n++] = 0xc4;
		out[n++] = (uint8_t)((r ? 0 : 0x80) | 0x40 | (x_b ? 0 : 0x20) |
				     i->raw.vex.m_mmmm);
		out[n++] = (uint8_t)(w << 7 | vvvv << 3 |
				     (t->vl == 32 ? 4 : 0) | i->raw.vex.pp);
		out[n++] = b[at];
	} else {
		unsigned end = i->attributes & ZYDIS_ATTRIB_HAS_MODRM
				       ? i->raw.modrm.offset
				       : i->length;

		if (x87) {
			if (t->msize == 14 || t->msize == 94)
				out[n++] = 0x66;
		} else if (w || r || x_b) {
			out[n++] = (uint8_t)(0x40 | w << 3 | r << 2 | x_b);
		}
		while (at < end)
			out[n++] = b[at++];
	}
	if (i->attributes & ZYDIS_ATTRIB_HAS_MODRM)
		out[n++] = modrm;
	for (unsigned k = 0; k < 2 && i->raw.imm[k].size; k++) {
		imm = b[i->raw.imm[k].offset];
		if (is4 && !wide)
			imm &= 0x7f;
		out[n++] = imm;
	}
	return n;
}

static insn_fn op_vec, op_x87, op_maskmov, op_gather, op_maskmovdqu;
static insn_fn op_vload, op_vstore, op_vcopy, op_loadz, op_storelow;

/* What the thunk must carry in and out, from the operand list. */
static void describe(const struct decoded *d, struct thunk *t, uint32_t *read,
		     uint32_t *written)
{
	const struct instruction *i = &d->i;

	*read = *written = 0;
	for (unsigned k = 0; k < i->operand_count; k++) {
		const struct operand *op = &d->op[k];
		bool rd = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
		bool wr = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
		unsigned n;

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			t->msize = (uint8_t)(op->size / 8);
			t->mread = rd;
			t->mwrite = wr;
			continue;
		}
		switch (vec_class(op)) {
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_YMM:
			n = (unsigned)ZydisRegisterGetId(op->reg.value);
			/* Also those only written: the write may be partial. */
			*read |= 1u << (n & 15);
			if (wr)
				*written |= 1u << (n & 15);
			t->sse = true;
			break;
		case ZYDIS_REGCLASS_MMX: t->mmx = true; break;
		default: break;
		}
		if (!is_gpr_op(op))
			continue;
		if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
			n = (unsigned)ZydisRegisterGetId(op->reg.value);
			t->implicit |= rd;
			t->rcx |= wr && n == R_RCX;
		} else {
			t->gpr = true;
			t->gwrite |= wr;
		}
	}
	t->flags_in = i->flags_tested;
	t->flags_out = i->flags_changed;
}

/* Legacy 16-byte operands must be aligned, and those of moves that say so. */
static uint8_t alignment(const struct decoded *d, const struct thunk *t)
{
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM: return 0;
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA: return t->msize;
	default: return !t->vex && t->msize == 16 ? 16 : 0;
	}
}

/* Integer instructions leave MXCSR alone: spare them two slow moves. */
static bool touches_mxcsr(const struct decoded *d)
{
	switch (d->i.meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE1:
	case ZYDIS_EXCEPTION_CLASS_SSE4:
	case ZYDIS_EXCEPTION_CLASS_SSE7:
	case ZYDIS_EXCEPTION_CLASS_AVX1:
	case ZYDIS_EXCEPTION_CLASS_AVX4:
	case ZYDIS_EXCEPTION_CLASS_AVX7: return false;
	default: return true;
	}
}

static void x87_kind(const struct decoded *d, struct thunk *t)
{
	t->waits = true;
	t->x87 = X_CONTROL;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT:
		t->x87 = X_INIT;
		t->waits = false;
		break;
	case ZYDIS_MNEMONIC_FNSAVE:
		t->x87 = X_SAVE;
		t->waits = false;
		break;
	case ZYDIS_MNEMONIC_FNSTENV:
		t->x87 = X_STENV;
		t->waits = false;
		break;
	/* FNENI, FNDISI and FNSETPM do nothing, without waiting. */
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FNSTCW: t->waits = false; break;
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR: t->x87 = X_LDENV; break;
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNOP: break;
	default: t->x87 = X_PLAIN;
	}
}

static unsigned generate(struct emit *e, const struct thunk *t,
			 const uint8_t *code, unsigned len, uint32_t read,
			 uint32_t written)
{
	uint8_t *start = e->p, *skip = NULL;
	bool x87 = t->fn == op_x87;
	uint32_t rel;

	if (x87)
		e_bytes(e, "\x48\x0f\xae\x0e", 4); /* fxrstor64 [rsi] */
	for (unsigned n = 0; n < 16 && !x87; n++) {
		if (!(read & 1u << n))
			continue;
		if (t->vex)
			e_ymm(e, n, false);
		else
			e_movups(e, n, false);
	}
	if (t->gpr || t->implicit)
		E_CTX(e, rax, 0x48, 0x8b, 0x87);
	if (t->implicit)
		E_CTX(e, rdx, 0x48, 0x8b, 0x97);
	if (t->mx)
		E_CTX(e, mx_in, 0x0f, 0xae, 0x97); /* ldmxcsr */
	if (t->flags_in) {
		E_CTX(e, flags, 0xff, 0xb7); /* push; popfq */
		e1(e, 0x9d);
	}
	e_bytes(e, code, len);
	if (t->flags_out) {
		e1(e, 0x9c); /* pushfq; pop */
		E_CTX(e, flags, 0x8f, 0x87);
	}
	if (t->gwrite)
		E_CTX(e, rax, 0x48, 0x89, 0x87);
	if (t->rcx)
		E_CTX(e, rcx, 0x48, 0x89, 0x8f);
	if (t->mx)
		E_CTX(e, mx_out, 0x0f, 0xae, 0x9f); /* stmxcsr */
	if (x87) {
		E_CTX(e, img, 0x48, 0x0f, 0xae, 0x87); /* fxsave64 */
		e_bytes(e, "\xdb\xe3", 2);	       /* fninit */
	}
	if (t->mx || x87)
		E_CTX(e, mx_host, 0x0f, 0xae, 0x97);
	if (t->mx && !x87) {
		E_CTX(e, mx_out, 0x8b, 0x8f);	   /* mov ecx */
		E_CTX(e, mx_unmasked, 0x85, 0x8f); /* test ecx */
		e_bytes(e, "\x0f\x85", 2);	   /* jnz end */
		skip = e->p;
		e4(e, 0);
	}
	for (unsigned n = 0; n < 16 && !x87; n++) {
		if (!(written & 1u << n))
			continue;
		if (t->vex)
			e_ymm(e, n, true);
		else
			e_movups(e, n, true);
	}
	if (skip && e->p <= e->end) {
		rel = (uint32_t)(e->p - skip - 4);
		memcpy(skip, &rel, 4);
	}
	if (t->vex)
		e_bytes(e, "\xc5\xf8\x77", 3); /* vzeroupper */
	e1(e, 0xc3);
	return (unsigned)(e->p - start);
}

static int add_chunk(struct fpu_cache *f)
{
	uint8_t *rw, *rx;
	int fd;

	if (f->nchunks == MAX_CHUNKS)
		return -ENOSPC;
	fd = memfd_create("husk-fpu", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, CHUNK) < 0)
		goto err_fd;
	rw = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rw == MAP_FAILED)
		goto err_fd;
	rx = mmap(NULL, CHUNK, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (rx == MAP_FAILED)
		goto err_rw;
	close(fd);
	/* A process that is split off has no hand in this one's code. */
	madvise(rw, CHUNK, MADV_DONTFORK);
	madvise(rx, CHUNK, MADV_DONTFORK);
	f->rw[f->nchunks] = rw;
	f->rx[f->nchunks++] = rx;
	f->used = 0;
	return 0;

err_rw:
	munmap(rw, CHUNK);
err_fd:
	close(fd);
	return -ENOMEM;
}

/* -ENOSPC: the cache is full. */
static int make_room(struct fpu_cache *f)
{
	if (f->nthunks == MAX_THUNKS)
		return -ENOSPC;
	if (f->nchunks && f->used + 2 * THUNK_MAX <= CHUNK)
		return 0;
	return add_chunk(f);
}

static void build(struct fpu_cache *f, struct thunk *t, const uint8_t *code,
		  unsigned len, uint32_t read, uint32_t written)
{
	unsigned n = f->nchunks - 1;
	size_t at = t == &f->spare ? CHUNK - THUNK_MAX : f->used;
	struct emit e = { .p = f->rw[n] + at };

	e.end = e.p + THUNK_MAX;
	t->code = (void (*)(struct fpu_ctx *, void *))(f->rx[n] + at);
	at = ALIGN_UP(generate(&e, t, code, len, read, written), 16);
	if (t != &f->spare)
		f->used += at;
}

static unsigned hash_key(const uint8_t *key)
{
	uint32_t h = 2166136261u;

	for (unsigned i = 0; i < KEY; i++)
		h = (h ^ key[i]) * 16777619u;
	return (h ^ h >> 12) & 4095;
}

/* Moves are most of what is executed; in C they need no thunk. */
static insn_fn *move_handler(const struct decoded *d, struct thunk *t)
{
	t->store = in_modrm(&d->op[0], ZYDIS_OPERAND_ENCODING_MODRM_RM);
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVAPS:
	case ZYDIS_MNEMONIC_MOVAPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_VMOVUPS:
	case ZYDIS_MNEMONIC_VMOVUPD:
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQU:
	case ZYDIS_MNEMONIC_VMOVDQA:
		return t->mread ? op_vload : t->mwrite ? op_vstore : op_vcopy;
	case ZYDIS_MNEMONIC_MOVSS:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVD:
	case ZYDIS_MNEMONIC_MOVQ:
	case ZYDIS_MNEMONIC_VMOVSS:
	case ZYDIS_MNEMONIC_VMOVSD:
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VMOVQ:
		return t->mread ? op_loadz : t->mwrite ? op_storelow : NULL;
	default: return NULL;
	}
}

static insn_fn *special_handler(const struct decoded *d, struct thunk *t)
{
	bool w = false;

	if (t->vex)
		w = d->i.raw.vex.W;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		t->es = d->i.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
					d->i.mnemonic ==
						ZYDIS_MNEMONIC_VPMASKMOVQ
				? 8
				: 4;
		t->store = d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
		return op_maskmov;
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERDD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
	case ZYDIS_MNEMONIC_VPGATHERQD:
	case ZYDIS_MNEMONIC_VPGATHERQQ:
		t->es = w ? 8 : 4;
		t->is = d->i.opcode & 1 ? 8 : 4;
		t->rm = (uint8_t)(ZydisRegisterGetId(d->op[1].mem.index) & 15);
		t->scale = d->i.raw.sib.scale;
		return op_gather;
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_MASKMOVQ:
		t->seg = SEG_DS;
		t->adsize = d->i.address_width / 8;
		for (unsigned k = 0; k < d->i.operand_count; k++)
			if (d->op[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
				t->seg = (uint8_t)(ZydisRegisterGetId(
					d->op[k].mem.segment));
		return op_maskmovdqu;
	default: return move_handler(d, t);
	}
}

static bool decode_again(const struct insn *in, struct decoded *d)
{
	ZydisMachineMode mm = ZYDIS_MACHINE_MODE_LONG_64;
	ZydisStackWidth sw = ZYDIS_STACK_WIDTH_64;
	ZydisDecodedInstruction i;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecoder dec;

	d->mode = in->cpu_mode;
	switch (d->mode) {
	case MODE_REAL:
	case MODE_VM86:
	case MODE_P16:
	case MODE_C16:
		mm = ZYDIS_MACHINE_MODE_LEGACY_16;
		sw = ZYDIS_STACK_WIDTH_16;
		break;
	case MODE_P32:
	case MODE_C32:
		mm = ZYDIS_MACHINE_MODE_LEGACY_32;
		sw = ZYDIS_STACK_WIDTH_32;
		break;
	case MODE_64: break;
	}
	if (!ZYAN_SUCCESS(ZydisDecoderInit(&dec, mm, sw)) ||
	    !ZYAN_SUCCESS(
		    ZydisDecoderDecodeFull(&dec, in->bytes, in->len, &i, op)))
		return false;
	view_instruction(&d->i, &i);
	view_operands(d, op);
	return true;
}

/* Room for one more, or the spare one. */
static struct thunk *thunk_new(struct cpu *c, struct fpu_cache *f)
{
	struct thunk *t;
	int ret = make_room(f);

	if (ret == -ENOSPC) {
		c->fpu_full = true;
		cpu_request(c, REQ_CODE);
		return &f->spare;
	}
	t = ret ? NULL : malloc(sizeof(*t));
	if (!t)
		cpu_error(c, "out of memory for vector instructions");
	return t;
}

static const struct thunk *thunk_get(struct cpu *c, const struct insn *in,
				     uint8_t *gpr)
{
	struct fpu_cache *f = fpu_cache(c);
	uint32_t read, written;
	struct thunk *t, tmp;
	struct decoded d;
	uint8_t code[32] = { 0 };
	unsigned len, h;

	if (!decode_again(in, &d) ||
	    !host_has(d.i.meta.isa_ext, d.i.meta.isa_set))
		x86_ud(c);
	memset(&tmp, 0, sizeof(tmp));
	tmp.mnemonic = d.i.mnemonic;
	tmp.vex = d.i.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	describe(&d, &tmp, &read, &written);
	len = reencode(&d, in->bytes, &tmp, code, gpr);
	tmp.align = alignment(&d, &tmp);
	tmp.mx = touches_mxcsr(&d);
	if (is_x87(&d)) {
		x87_kind(&d, &tmp);
		tmp.fn = op_x87;
		tmp.opcode = (uint16_t)((d.i.opcode & 7) << 8 |
					in->bytes[d.i.raw.modrm.offset]);
		tmp.mx = false;
	} else if (tmp.mmx || d.i.mnemonic == ZYDIS_MNEMONIC_EMMS) {
		tmp.mmx = true;
		/* CVTPS2PI from memory names no vector register. */
		tmp.sse |= d.i.meta.category == ZYDIS_CATEGORY_CONVERT;
		tmp.waits = true;
		tmp.x87 = X_CONTROL;
		tmp.mx = tmp.sse;
		tmp.fn = op_x87;
	} else {
		tmp.fn = op_vec;
	}
	if (tmp.fn == op_vec || d.i.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) {
		insn_fn *fn = special_handler(&d, &tmp);

		if (fn) {
			/* Of these, the guest's own bytes are the key. */
			tmp.fn = fn;
			tmp.key[0] = 2;
			tmp.key[1] = in->cpu_mode;
			memcpy(tmp.key + 2, in->bytes, in->len);
		}
	}
	/* The x87 handlers look at the guest's opcode and operand size. */
	if (!tmp.key[0]) {
		tmp.key[0] = 1;
		tmp.key[1] = (uint8_t)len;
		memcpy(tmp.key + 2, code, MIN(len, KEY - 4u));
		if (is_x87(&d))
			memcpy(tmp.key + KEY - 2, &tmp.opcode, 2);
	}
	h = hash_key(tmp.key);
	for (t = f->hash[h]; t; t = t->next)
		if (!memcmp(t->key, tmp.key, KEY))
			return t;
	t = thunk_new(c, f);
	*t = tmp;
	if (t->fn == op_vec || t->fn == op_x87)
		build(f, t, code, len, read, written);
	if (t == &f->spare)
		return t;
	f->nthunks++;
	t->next = f->hash[h];
	f->hash[h] = t;
	return t;
}

/* Blocks of decoded instructions are this vCPU's own, so in can be changed. */
static void op_first(struct cpu *c, const struct insn *in)
{
	struct insn *w = (struct insn *)in;
	const struct thunk *t;
	uint8_t gpr;

	t = thunk_get(c, in, &gpr);
	if (t == &fpu_cache(c)->spare) {
		struct insn once = *in;

		once.reg = gpr;
		once.aux = t;
		t->fn(c, &once);
		return;
	}
	w->reg = gpr;
	w->aux = t;
	w->fn = t->fn;
	t->fn(c, w);
}

/* -- SSE and AVX ---------------------------------------------------------- */

static uint64_t operand(struct cpu *c, const struct insn *in,
			const struct thunk *t)
{
	uint64_t lin = ea_linear(c, in, t->msize, t->mwrite);

	if (t->align && lin & (t->align - 1u))
		x86_gp(c, 0);
	return lin;
}

static void mx_enter(struct cpu *c, struct fpu_ctx *x)
{
	uint32_t mx = fx32(c->fpu, FX_MXCSR);

	x->mx_in = (mx & ~(uint32_t)XM_ALL) | MXCSR_INIT;
	x->mx_unmasked = ~(mx >> 7) & XM_ALL;
	/*
	 * Unmasked, underflow is raised for exact results too and FZ means
	 * nothing.  Masked, only FZ makes the processor report those.
	 */
	if (x->mx_unmasked & XM_UE)
		x->mx_in |= MXCSR_FZ;
}

/* Was the underflow inexact as well?  Run it without FZ; keep no result. */
static uint32_t underflow_flags(struct cpu *c, const struct thunk *t,
				struct fpu_ctx *x)
{
	uint8_t was[FX_END];

	memcpy(was, c->fpu, sizeof(was));
	x->mx_in &= ~(uint32_t)MXCSR_FZ;
	t->code(x, c->fpu);
	memcpy(c->fpu, was, sizeof(was));
	return (x->mx_out & XM_ALL) | XM_UE;
}

static void mx_fault(struct cpu *c, const struct thunk *t, struct fpu_ctx *x)
{
	uint32_t mx = fx32(c->fpu, FX_MXCSR), flags = x->mx_out & XM_ALL;

	if (!(flags & x->mx_unmasked))
		return;
	if (flags & x->mx_unmasked & XM_PRE)
		flags &= XM_PRE;
	else if (flags & x->mx_unmasked & XM_UE)
		flags = underflow_flags(c, t, x);
	fx_put32(c->fpu, FX_MXCSR, mx | flags);
	x86_fault_noerr(c, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
}

static void mx_commit(struct cpu *c, struct fpu_ctx *x)
{
	uint32_t mx = fx32(c->fpu, FX_MXCSR);

	fx_put32(c->fpu, FX_MXCSR, mx | (x->mx_out & XM_ALL));
}

static void regs_in(struct cpu *c, const struct insn *in, const struct thunk *t,
		    struct fpu_ctx *x)
{
	if (t->gpr)
		x->rax = c->gpr[in->reg];
	if (t->implicit) {
		x->rax = c->gpr[R_RAX];
		x->rdx = c->gpr[R_RDX];
	}
	if (t->flags_in)
		x->flags = (c->rflags & FL_ARITH) | 0x202;
}

static void regs_out(struct cpu *c, const struct insn *in,
		     const struct thunk *t, struct fpu_ctx *x)
{
	if (t->gwrite)
		c->gpr[in->reg] = x->rax;
	if (t->rcx)
		c->gpr[R_RCX] = x->rcx;
	if (t->flags_out)
		c->rflags = (c->rflags & ~(uint64_t)FL_ARITH) |
			    (x->flags & FL_ARITH);
}

static void op_vec(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	struct fpu_ctx *x = &fpu_cache(c)->ctx;
	uint64_t lin = 0;

	check_vec(c, t);
	if (t->msize) {
		lin = operand(c, in, t);
		if (t->mread)
			mem_read(c, in->seg, lin, x->buf, t->msize);
	}
	regs_in(c, in, t, x);
	if (t->mx)
		mx_enter(c, x);
	t->code(x, c->fpu);
	if (t->mx)
		mx_fault(c, t, x);
	if (t->mwrite)
		mem_write(c, in->seg, lin, x->buf, t->msize);
	if (t->mx)
		mx_commit(c, x);
	regs_out(c, in, t, x);
}

static uint8_t *xmm(struct cpu *c, unsigned n)
{
	return c->fpu + FX_XMM + 16 * n;
}

static uint8_t *ymmh(struct cpu *c, unsigned n)
{
	return c->fpu + FX_YMM + 16 * n;
}

static void vget(struct cpu *c, unsigned n, uint8_t v[32])
{
	memcpy(v, xmm(c, n), 16);
	memcpy(v + 16, ymmh(c, n), 16);
}

static void vput(struct cpu *c, unsigned n, const uint8_t v[32])
{
	memcpy(xmm(c, n), v, 16);
	memcpy(ymmh(c, n), v + 16, 16);
}

static void op_vload(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	uint8_t v[32];

	check_vec(c, t);
	mem_read(c, in->seg, operand(c, in, t), v, t->msize);
	memcpy(xmm(c, t->reg), v, 16);
	if (t->vl == 32)
		memcpy(ymmh(c, t->reg), v + 16, 16);
	else if (t->vex)
		memset(ymmh(c, t->reg), 0, 16);
}

static void op_vstore(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	uint8_t v[32];

	check_vec(c, t);
	vget(c, t->reg, v);
	mem_write(c, in->seg, operand(c, in, t), v, t->msize);
}

static void op_vcopy(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	unsigned dst = t->store ? t->rm : t->reg;
	unsigned src = t->store ? t->reg : t->rm;

	check_vec(c, t);
	memmove(xmm(c, dst), xmm(c, src), 16);
	if (t->vl == 32)
		memmove(ymmh(c, dst), ymmh(c, src), 16);
	else if (t->vex)
		memset(ymmh(c, dst), 0, 16);
}

static void op_loadz(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	uint64_t v[2] = { 0, 0 };

	check_vec(c, t);
	v[0] = ld_size(c, in->seg, operand(c, in, t), t->msize);
	memcpy(xmm(c, t->reg), v, 16);
	if (t->vex)
		memset(ymmh(c, t->reg), 0, 16);
}

static void op_storelow(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;

	check_vec(c, t);
	st_size(c, in->seg, operand(c, in, t), t->msize,
		fx64(xmm(c, t->reg), 0));
}

/* -- masked moves and gathers: a masked-out element must not fault -------- */

static bool sign(const uint8_t *v, unsigned i, unsigned es)
{
	return v[i * es + es - 1] & 0x80;
}

static void op_maskmov(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	uint8_t mask[32], v[32];
	uint64_t off = ea_offset(c, in), lin[8] = { 0 };
	unsigned n = t->vl / t->es;

	check_avx(c);
	vget(c, t->vvvv, mask);
	if (t->store)
		vget(c, t->reg, v);
	else
		memset(v, 0, sizeof(v));
	for (unsigned i = 0; i < n; i++) {
		if (!sign(mask, i, t->es))
			continue;
		lin[i] = seg_linear(c, in->seg, off + i * t->es, t->es,
				    t->store);
		if (t->store)
			mem_check(c, in->seg, lin[i], t->es, true);
		else
			mem_read(c, in->seg, lin[i], v + i * t->es, t->es);
	}
	if (!t->store) {
		vput(c, t->reg, v);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		if (sign(mask, i, t->es))
			mem_write(c, in->seg, lin[i], v + i * t->es, t->es);
}

static void op_gather(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	uint8_t mask[32], done[32], idx[32], v[32], old[32], part[32];
	unsigned n = t->vl / MAX(t->es, t->is);
	uint64_t base = c->gpr[in->base] + (uint64_t)in->disp;

	check_avx(c);
	if (t->reg == t->rm || t->reg == t->vvvv || t->rm == t->vvvv)
		x86_ud(c);
	vget(c, t->vvvv, mask);
	vget(c, t->rm, idx);
	vget(c, t->reg, v);
	memcpy(done, mask, sizeof(done));
	memcpy(old, v, sizeof(old));
	memcpy(part, v, sizeof(part));
	memset(v + n * t->es, 0, 32 - n * t->es);
	for (unsigned i = 0; i < n; i++) {
		uint64_t lin, off = t->is == 8
					    ? fx64(idx, i * 8)
					    : (uint64_t)(int64_t)(int32_t)fx32(
						      idx, i * 4);

		if (sign(mask, i, t->es)) {
			off = base + (off << t->scale);
			if (in->adsize == 4)
				off = (uint32_t)off;
			/* A fault keeps the elements before it. */
			vput(c, t->vvvv, done);
			vput(c, t->reg, part);
			lin = seg_linear(c, in->seg, off, t->es, false);
			mem_check(c, in->seg, lin, t->es, false);
			/* An exit to the caller starts again. */
			vput(c, t->vvvv, mask);
			vput(c, t->reg, old);
			mem_read(c, in->seg, lin, v + i * t->es, t->es);
			memcpy(part + i * t->es, v + i * t->es, t->es);
		}
		memset(done + i * t->es, 0, t->es);
	}
	memset(mask, 0, sizeof(mask));
	vput(c, t->vvvv, mask);
	vput(c, t->reg, v);
}

/* What the first MMX instruction after x87 code does: TOP 0, all valid. */
static void enter_mmx(struct cpu *c)
{
	uint16_t fsw = fx16(c->fpu, FX_FSW);
	unsigned top = fsw >> 11 & 7;
	uint8_t st[128];

	memcpy(st, c->fpu + FX_ST, sizeof(st));
	for (unsigned i = 0; i < 8; i++)
		memcpy(c->fpu + FX_ST + 16 * ((top + i) & 7), st + 16 * i, 16);
	fx_put16(c->fpu, FX_FSW, fsw & ~0x3800);
	c->fpu[FX_FTW] = 0xff;
}

static void op_maskmovdqu(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	bool mmx = t->mmx;
	unsigned n = mmx ? 8 : 16;
	uint64_t off = c->gpr[R_RDI];
	uint8_t v[16], mask[16];

	if (mmx) {
		unsigned top;

		check_mmx(c, false);
		top = fx16(c->fpu, FX_FSW) >> 11 & 7;
		memcpy(v, c->fpu + FX_ST + 16 * ((t->reg - top) & 7), 8);
		memcpy(mask, c->fpu + FX_ST + 16 * ((t->rm - top) & 7), 8);
	} else {
		check_vec(c, t);
		memcpy(v, xmm(c, t->reg), 16);
		memcpy(mask, xmm(c, t->rm), 16);
	}
	/* All of it can be written, or nothing is. */
	for (unsigned i = 0; i < 2 * n; i++) {
		uint64_t o = off + i % n;

		if (!(mask[i % n] & 0x80))
			continue;
		if (t->adsize != 8)
			o = t->adsize == 4 ? (uint32_t)o : (uint16_t)o;
		o = seg_linear(c, t->seg, o, 1, true);
		if (i < n)
			mem_check(c, t->seg, o, 1, true);
		else
			st8(c, t->seg, o, v[i % n]);
	}
	if (mmx)
		enter_mmx(c);
}

static void op_vzeroupper(struct cpu *c, const struct insn *in)
{
	unsigned n = c->mode == MODE_64 ? 16 : 8;

	check_avx(c);
	memset(c->fpu + FX_YMM, 0, 16 * n);
}

static void op_vzeroall(struct cpu *c, const struct insn *in)
{
	unsigned n = c->mode == MODE_64 ? 16 : 8;

	check_avx(c);
	memset(c->fpu + FX_YMM, 0, 16 * n);
	memset(c->fpu + FX_XMM, 0, 16 * n);
}

static void ldmxcsr(struct cpu *c, const struct insn *in)
{
	uint32_t v = ld32(c, in->seg, ea_linear(c, in, 4, false));

	if (v & ~MXCSR_VALID)
		x86_gp(c, 0);
	fx_put32(c->fpu, FX_MXCSR, v);
}

static void op_ldmxcsr(struct cpu *c, const struct insn *in)
{
	check_sse(c);
	ldmxcsr(c, in);
}

static void op_vldmxcsr(struct cpu *c, const struct insn *in)
{
	check_avx(c);
	ldmxcsr(c, in);
}

static void op_stmxcsr(struct cpu *c, const struct insn *in)
{
	check_sse(c);
	st32(c, in->seg, ea_linear(c, in, 4, true), fx32(c->fpu, FX_MXCSR));
}

static void op_vstmxcsr(struct cpu *c, const struct insn *in)
{
	check_avx(c);
	st32(c, in->seg, ea_linear(c, in, 4, true), fx32(c->fpu, FX_MXCSR));
}

/* Not a vector instruction: CR0 does not matter. */
static void op_movnti(struct cpu *c, const struct insn *in)
{
	unsigned size = in->imm2;

	st_size(c, in->seg, ea_linear(c, in, size, true), size,
		c->gpr[in->reg]);
}

/* -- x87 and MMX ---------------------------------------------------------- */

static void op_fwait(struct cpu *c, const struct insn *in)
{
	if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
		x86_nm(c);
	check_pending(c);
}

static bool real_format(struct cpu *c)
{
	return c->mode == MODE_REAL || c->mode == MODE_VM86;
}

/*
 * The pointers of an FNSTENV or FNSAVE image: the host's FPU may not have
 * kept the guest's, or may hold the thunk's own address.
 */
static void env_put(struct cpu *c, uint8_t *b, bool wide)
{
	uint32_t ip = fx32(c->fpu, FX_FIP), dp = fx32(c->fpu, FX_FDP);
	uint16_t cs = fx16(c->fpu, FX_FIP + 4), ds = fx16(c->fpu, FX_FDP + 4);
	uint16_t fop = fx16(c->fpu, FX_FOP) & 0x7ff;

	if (wide && real_format(c)) {
		fx_put32(b, 12, ip & 0xffff);
		fx_put32(b, 16, (ip >> 16) << 12 | fop);
		fx_put32(b, 20, dp & 0xffff);
		fx_put32(b, 24, (dp >> 16) << 12);
	} else if (wide) {
		fx_put32(b, 12, ip);
		fx_put32(b, 16, cs | (uint32_t)fop << 16);
		fx_put32(b, 20, dp);
		fx_put32(b, 24, ds);
	} else {
		bool real = real_format(c);

		fx_put16(b, 6, (uint16_t)ip);
		fx_put16(b, 8,
			 real ? (uint16_t)((ip >> 4 & 0xf000) | fop) : cs);
		fx_put16(b, 10, (uint16_t)dp);
		fx_put16(b, 12, real ? (uint16_t)(dp >> 4 & 0xf000) : ds);
	}
}

static void env_get(struct cpu *c, const uint8_t *b, bool wide, uint8_t *img)
{
	uint32_t ip, dp, cs = 0, ds = 0, fop = 0;

	if (wide && real_format(c)) {
		ip = fx16(b, 12) | (fx32(b, 16) & 0x0ffff000) << 4;
		dp = fx16(b, 20) | (fx32(b, 24) & 0x0ffff000) << 4;
		fop = fx32(b, 16);
	} else if (wide) {
		ip = fx32(b, 12);
		cs = fx16(b, 16);
		fop = fx16(b, 18);
		dp = fx32(b, 20);
		ds = fx16(b, 24);
	} else {
		bool real = real_format(c);

		ip = fx16(b, 6);
		dp = fx16(b, 10);
		if (real) {
			ip |= (fx16(b, 8) & 0xf000u) << 4;
			dp |= (fx16(b, 12) & 0xf000u) << 4;
			fop = fx16(b, 8);
		} else {
			cs = fx16(b, 8);
			ds = fx16(b, 12);
		}
	}
	fx_put16(img, FX_FOP, fop & 0x7ff);
	fx_put64(img, FX_FIP, ip | (uint64_t)cs << 32);
	fx_put64(img, FX_FDP, dp | (uint64_t)ds << 32);
}

/* As FXSAVE keeps it: a linear address, or an offset and its selector. */
static uint64_t pointer(struct cpu *c, unsigned seg, uint64_t off)
{
	if (c->mode == MODE_64)
		return off;
	if (real_format(c))
		return (uint32_t)(c->seg[seg].base + off);
	return (uint32_t)off | (uint64_t)c->seg[seg].sel << 32;
}

static void x87_pointers(struct cpu *c, const struct insn *in,
			 const struct thunk *t, struct fpu_ctx *x)
{
	bool wide = t->msize == 28 || t->msize == 108;

	memcpy(x->img + FX_FOP, c->fpu + FX_FOP, FX_MXCSR - FX_FOP);
	switch (t->x87) {
	case X_SAVE:
		env_put(c, x->buf, wide);
		memset(x->img + FX_FOP, 0, FX_MXCSR - FX_FOP);
		break;
	case X_INIT: memset(x->img + FX_FOP, 0, FX_MXCSR - FX_FOP); break;
	case X_STENV: env_put(c, x->buf, wide); break;
	case X_LDENV: env_get(c, x->buf, wide, x->img); break;
	case X_PLAIN:
		/* AMD records them for an unmasked exception only. */
		if (!(fx16(x->img, FX_FSW) & FSW_ES))
			break;
		fx_put16(x->img, FX_FOP, t->opcode);
		fx_put64(x->img, FX_FIP, pointer(c, SEG_CS, c->rip));
		fx_put64(x->img, FX_FDP,
			 t->msize ? pointer(c, in->seg, ea_offset(c, in)) : 0);
		break;
	default: break;
	}
}

/* A store that raises an unmasked exception other than #P stores nothing. */
static bool stored(const struct thunk *t, const struct fpu_ctx *x)
{
	if (t->x87 != X_PLAIN || !(fx16(x->img, FX_FSW) & FSW_ES))
		return true;
	for (unsigned i = 0; i < t->msize; i++)
		if (x->buf[i] != UNTOUCHED)
			return true;
	return false;
}

static void op_x87(struct cpu *c, const struct insn *in)
{
	const struct thunk *t = in->aux;
	struct fpu_ctx *x = &fpu_cache(c)->ctx;
	uint64_t lin = 0;
	uint16_t fsw, stuck = 0;

	if (t->mmx) {
		check_mmx(c, t->sse);
	} else {
		if (c->cr0 & (CR0_EM | CR0_TS))
			x86_nm(c);
		if (t->waits)
			check_pending(c);
	}
	if (t->msize) {
		lin = operand(c, in, t);
		if (t->mread)
			mem_read(c, in->seg, lin, x->buf, t->msize);
		else
			memset(x->buf, UNTOUCHED, t->msize);
	}
	regs_in(c, in, t, x);
	if (t->mx)
		mx_enter(c, x);
	fsw = fx16(c->fpu, FX_FSW);
	if (t->waits && fsw & FSW_ES) {
		/* CR0.NE is clear and FERR# leads nowhere: go on. */
		stuck = fsw & (0x3f | FSW_ES | FSW_B);
		fx_put16(c->fpu, FX_FSW, fsw & ~(0x3f | FSW_ES | FSW_B));
	}
	t->code(x, c->fpu);
	fx_put16(c->fpu, FX_FSW, fsw);
	if (t->mx)
		mx_fault(c, t, x);
	if (stuck && t->x87 != X_LDENV)
		fx_put16(x->img, FX_FSW, fx16(x->img, FX_FSW) | stuck);
	x87_pointers(c, in, t, x);
	if (t->mwrite && stored(t, x))
		mem_write(c, in->seg, lin, x->buf, t->msize);
	else if (t->mwrite)
		mem_check(c, in->seg, lin, t->msize, true);

	memcpy(c->fpu, x->img, FX_MXCSR);
	memcpy(c->fpu + FX_ST, x->img + FX_ST,
	       (t->sse ? FX_XMM + 256 : FX_XMM) - FX_ST);
	if (t->mx)
		mx_commit(c, x);
	regs_out(c, in, t, x);
}

/* -- binding -------------------------------------------------------------- */

static bool has_vector(const struct decoded *d)
{
	for (unsigned k = 0; k < d->i.operand_count; k++) {
		switch (vec_class(&d->op[k])) {
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_YMM:
		case ZYDIS_REGCLASS_MMX: return true;
		default: break;
		}
	}
	return false;
}

static bool is_ours(const struct decoded *d)
{
	if (is_x87(d))
		return true;
	switch (d->i.meta.isa_ext) {
	case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A:
	case ZYDIS_ISA_EXT_AES:
	case ZYDIS_ISA_EXT_PCLMULQDQ:
	case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_GFNI:
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_AVXAES:
	case ZYDIS_ISA_EXT_FMA:
	case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
	case ZYDIS_ISA_EXT_AVX_VNNI:
		/* CVTSD2SI from memory names no vector register. */
		return has_vector(d) ||
		       d->i.meta.category == ZYDIS_CATEGORY_CONVERT;
	default: return false;
	}
}

insn_fn *bind_fpu(const struct decoded *d, struct insn *in)
{
	insn_fn *fn = bind_xsave(d, in);

	if (fn)
		return fn;
	switch (d->i.mnemonic) {
	case ZYDIS_MNEMONIC_FWAIT: return op_fwait;
	case ZYDIS_MNEMONIC_LDMXCSR: return op_ldmxcsr;
	case ZYDIS_MNEMONIC_STMXCSR: return op_stmxcsr;
	case ZYDIS_MNEMONIC_VLDMXCSR: return op_vldmxcsr;
	case ZYDIS_MNEMONIC_VSTMXCSR: return op_vstmxcsr;
	case ZYDIS_MNEMONIC_VZEROUPPER: return op_vzeroupper;
	case ZYDIS_MNEMONIC_VZEROALL: return op_vzeroall;
	case ZYDIS_MNEMONIC_EMMS: return op_first;
	case ZYDIS_MNEMONIC_MOVNTI:
		in->reg = (uint8_t)ZydisRegisterGetId(d->op[1].reg.value);
		in->imm2 = (uint8_t)(d->op[1].size / 8);
		return op_movnti;
	default: break;
	}
	if (d->i.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	    d->i.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return NULL;
	return is_ours(d) ? op_first : NULL;
}
