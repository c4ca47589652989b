/* SPDX-License-Identifier: Apache-2.0 */
/*
 * golden.c - the host code of each form of instruction is what it was
 *
 * golden [--write] FILE
 *
 * Each form of forms.S is translated as the beginning of a block that goes on
 * by a jump, and its code is compared with FILE: a translation that became
 * longer is seen by whoever changed it.  --write makes FILE anew; its
 * difference is what a change of the translator is read by.
 *
 * Shown is what lies between the block's head and its cold stubs, of which
 * only the number is; "far" is what is written in the far area.  What depends on the layout of struct cpu is shown by
 * name, and distances to stubs and addresses of the host as dots.
 */
#include <Zydis/Zydis.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bare.h"
#include "hv/soft/trans/trans.h"

enum mode { USER64, KERNEL64, CODE32, MODES };
static const char *const mode_names[] = { "user64", "kernel64", "code32" };

/* In the page of the code: what goes on behind a form. */
enum { AT = 0x100, DEAD = 0xe00, LIVE = 0xe40 };
/* mov gs:[site], imm32; jmp */
enum { STUB = 10 };

extern const uint8_t golden_forms[];

struct form {
	unsigned mode;
	bool live;
	unsigned size;
	const uint8_t *code;
	const char *text;
};

static struct bare guest[MODES];

/* -- text ----------------------------------------------------------------- */

struct text {
	char s[1 << 15];
	size_t n;
};

static void __attribute__((format(printf, 2, 3)))
say(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->s + t->n, sizeof(t->s) - t->n, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof(t->s) - t->n)
		bare_die("a form with that much code", -1);
	t->n += (size_t)n;
}

static void say_hex(struct text *t, const uint8_t *p, size_t n)
{
	while (n--)
		say(t, "%02x", *p++);
}

/* -- names of the vCPU's state -------------------------------------------- */

static const struct {
	const char *name;
	uint32_t off, size;
} fields[] = {
#define FIELD(member) \
	{ \
#member, offsetof(struct cpu, member), \
			sizeof(((struct cpu *)0)->member) \
	}
	FIELD(rip),	      FIELD(rflags),	    FIELD(cr0),
	FIELD(cr2),	      FIELD(cr3),	    FIELD(cr4),
	FIELD(request),	      FIELD(irq_check),	    FIELD(mmu),
	FIELD(fpu),	      FIELD(msr.kernel_gs), FIELD(msr.tsc_aux),
	FIELD(tsc_offset),    FIELD(tr.flags),	    FIELD(tr.temp),
	FIELD(tr.target),     FIELD(tr.resume),	    FIELD(tr.site),
	FIELD(tr.host_mxcsr), FIELD(tr.vector),	    FIELD(tr.vec_loaded),
	FIELD(tr.x87_loaded),
#undef FIELD
};

static void say_field(struct text *t, uint32_t off)
{
	const uint32_t gpr = offsetof(struct cpu, gpr);
	const uint32_t group = offsetof(struct cpu, tr.group);
	const uint32_t seg = offsetof(struct cpu, seg);
	const uint32_t itab = offsetof(struct cpu, itab);
	const uint32_t tlb = offsetof(struct cpu, tlb);
	const struct cpu *c;

	if (off - gpr < sizeof(c->gpr))
		say(t, "{r%u}", (off - gpr) / 8);
	else if (off - group < sizeof(c->tr.group))
		say(t, "{group%u}", (off - group) / 8);
	else if (off - seg < sizeof(c->seg))
		say(t, "{seg%u.%s}",
		    (unsigned)((off - seg) / sizeof(struct segreg)),
		    (off - seg) % sizeof(struct segreg) ==
				    offsetof(struct segreg, base)
			    ? "base"
			    : "sel");
	else if (off - itab < sizeof(c->itab))
		say(t, "{itab%s}",
		    (off - itab) % sizeof(struct itab_entry) ? ".code" : "");
	else if (off - tlb < sizeof(c->tlb))
		say(t, "{%s%u%s}",
		    (off - tlb) % sizeof(struct tlb) >=
				    sizeof(struct tlb_entry[TLB_SIZE])
			    ? "write"
			    : "read",
		    (unsigned)((off - tlb) / sizeof(struct tlb)),
		    (off - tlb) % sizeof(struct tlb_entry) ? ".host" : "");
	else
		for (unsigned n = 0; n <= ARRAY_SIZE(fields); n++) {
			if (n == ARRAY_SIZE(fields)) {
				say(t, "{cpu}");
				break;
			}
			if (off - fields[n].off >= fields[n].size)
				continue;
			say(t, "{%s", fields[n].name);
			if (off != fields[n].off)
				say(t, "+%u", off - fields[n].off);
			say(t, "}");
			break;
		}
}

/* -- host code ------------------------------------------------------------ */

struct span {
	const uint8_t *p, *end;
};

/* Where the process lies, which no constant of a form is near. */
static bool host_address(uint64_t v)
{
	return v >> 32 && !(v >> 47);
}

static void say_part(struct text *t, const uint8_t *p, unsigned bytes,
		     bool hide)
{
	if (hide)
		say(t, "%.*s", (int)bytes * 2, "................");
	else
		say_hex(t, p, bytes);
}

/* One instruction; its length. */
static unsigned say_insn(struct text *t, const struct span *body,
			 const uint8_t *p)
{
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction i;
	ZydisDecoder z;
	unsigned at = 0;
	bool site;

	ZydisDecoderInit(&z, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&z, p, (size_t)(body->end - p),
						 &i, op))) {
		say(t, " ?%02x", *p);
		return 1;
	}
	say(t, " ");
	if (i.raw.disp.size == 32 &&
	    i.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS) {
		say_hex(t, p, i.raw.disp.offset);
		say_field(t, (uint32_t)i.raw.disp.value);
		at = i.raw.disp.offset + 4u;
	}
	site = i.mnemonic == ZYDIS_MNEMONIC_PUSH;
	if (i.raw.imm[0].size >= 32) {
		uint64_t v = i.raw.imm[0].value.u;
		const uint8_t *to = p + i.length + i.raw.imm[0].value.s;
		bool hide = site || host_address(v);

		if (i.raw.imm[0].is_relative)
			hide = to < body->p || to >= body->end;
		say_hex(t, p + at, i.raw.imm[0].offset - at);
		at = i.raw.imm[0].offset;
		say_part(t, p + at, i.raw.imm[0].size / 8u, hide);
		at += i.raw.imm[0].size / 8u;
	}
	say_hex(t, p + at, i.length - at);
	return i.length;
}

/* Behind the head; NULL: the head is not what this program knows. */
static const uint8_t *behind_head(const struct tblock *tb, const uint8_t *end)
{
	const uint32_t request = offsetof(struct cpu, request);
	const uint8_t *p = tb->entry;
	uint8_t look[9] = { 0x65, 0x83, 0x3c, 0x25 };

	/* cmp dword gs:[request], 0; jne */
	memcpy(look + 4, &request, 4);
	for (; p + 15 < end; p++)
		if (!memcmp(p, look, sizeof(look)) && p[9] == 0x0f)
			return p + 15;
	return NULL;
}

/* The first cold stub: of the check before the entry, a jne. */
static const uint8_t *first_stub(const struct tblock *tb)
{
	int32_t rel;

	memcpy(&rel, tb->entry - 4, 4);
	return tb->entry + rel;
}

static unsigned say_span(struct text *t, const struct span *s)
{
	unsigned insns = 0;

	for (const uint8_t *p = s->p; p < s->end; insns++)
		p += say_insn(t, s, p);
	return insns;
}

/* The first version, and in the far area what is before the stubs. */
static void say_code(struct text *t, const struct trans *tr,
		     const struct tblock *tb)
{
	const uint8_t *end = tr->far.used;
	struct span near = { .end = tr->near.used };
	struct span far = { tb->miss + STUB, first_stub(tb) };
	unsigned insns;
	static struct text code;

	near.p = behind_head(tb, near.end);
	if (!near.p || far.end < far.p || far.end > end) {
		say(t, "\tits head is unknown: see behind_head()\n");
		return;
	}
	code.n = 0;
	insns = say_span(&code, &near);
	if (far.p < far.end)
		say(&code, " far:");
	insns += say_span(&code, &far);
	say(t, "\t%u in %u, %u cold:%s\n", insns,
	    (unsigned)(near.end - near.p) + (unsigned)(far.end - far.p),
	    (unsigned)(end - far.end) / STUB, code.s);
}

/* -- translating ---------------------------------------------------------- */

/* A vCPU at the code, at CPL 3 or 0, with all that may be enabled. */
static void start(struct bare *g, enum mode mode)
{
	static const uint8_t none[1];
	static struct hv_state s;
	int r;

	bare_start(g, "soft,eager", mode == CODE32 ? BARE_PROTECTED : BARE_LONG,
		   none, none);
	bare_get(g, HV_STATE_ALL, &s);
	s.cr4 |= 0x50600; /* OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE */
	s.xcr0 = 7;
	for (int i = HV_ES; i <= HV_GS && mode == USER64; i++)
		s.seg[i].access |= 0x60;
	r = hv_vcpu_set(g->cpu, HV_STATE_ALL, &s);
	if (r)
		bare_die("hv_vcpu_set", r);
}

static struct tblock *translate(struct cpu *c, uint64_t lin)
{
	struct tblock *tb = NULL;
	struct code_page p;

	cpu_unpark(c);
	if (code_at(c, lin, &p)) {
		code_claim(c, &p);
		pthread_mutex_lock(&c->vm->code);
		tb = trans_block(c->trans, lin, trans_key(c), &p, NULL);
		pthread_mutex_unlock(&c->vm->code);
	}
	cpu_park(c);
	return tb;
}

/* The page: the form, a jump, and what it reaches. */
static void place(uint8_t *page, const struct form *f)
{
	static const uint8_t dead[] = { 0x39, 0xc0, 0x0f, 0x0b };
	static const uint8_t live[] = { 0x9c, 0x0f, 0x0b };
	uint32_t rel = (f->live ? LIVE : DEAD) - (AT + f->size + 5);

	memset(page, 0xcc, 4096);
	memcpy(page + AT, f->code, f->size);
	page[AT + f->size] = 0xe9;
	memcpy(page + AT + f->size + 1, &rel, 4);
	memcpy(page + DEAD, dead, sizeof(dead));
	memcpy(page + LIVE, live, sizeof(live));
}

static void say_form(struct text *t, const struct form *f)
{
	struct bare *g = &guest[f->mode];
	struct cpu *c = to_cpu(g->cpu);
	struct tblock *tb;

	say(t, "%s%s: %s\n\t", mode_names[f->mode], f->live ? " live" : "",
	    f->text);
	say_hex(t, f->code, f->size);
	say(t, "\n");
	place(g->mem + BARE_CODE, f);
	tb = translate(c, BARE_CODE + AT);
	if (!tb || !tb->entry)
		say(t, "\tis interpreted\n");
	else
		say_code(t, c->trans, tb);
}

static const uint8_t *next_form(const uint8_t *p, struct form *f)
{
	*f = (struct form){ .mode = p[0],
			    .live = p[1],
			    .size = p[2],
			    .code = p + 3,
			    .text = (const char *)p + 3 + p[2] };
	return (const uint8_t *)f->text + strlen(f->text) + 1;
}

/* -- the file ------------------------------------------------------------- */

static char *whole_file(const char *path)
{
	FILE *f = fopen(path, "re");
	char *s = NULL;
	size_t n = 0;

	if (!f)
		return strdup("");
	if (getdelim(&s, &n, 0, f) < 0) {
		free(s);
		s = strdup("");
	}
	fclose(f);
	return s;
}

/* From the line of that name to the next name, or NULL. */
static char *find_form(char *file, const struct text *t, size_t *n)
{
	size_t name = (size_t)(strchr(t->s, '\n') - t->s) + 1;
	char *p = file, *e;

	while (p && strncmp(p, t->s, name)) {
		p = strchr(p, '\n');
		p += p ? 1 : 0;
	}
	if (!p || !*p)
		return NULL;
	for (e = p; (e = strchr(e, '\n')) && e[1] == '\t'; e++)
		;
	*n = e ? (size_t)(e + 1 - p) : strlen(p);
	return p;
}

static unsigned compare(char *file, const struct text *t)
{
	size_t n = 0;
	const char *old = find_form(file, t, &n);

	if (old && n == t->n && !memcmp(old, t->s, n))
		return 0;
	printf("# was:\n%.*s# is:\n%s", (int)n, old ? old : "", t->s);
	return 1;
}

int main(int argc, char **argv)
{
	bool write = argc == 3 && !strcmp(argv[1], "--write");
	unsigned forms = 0, changed = 0;
	const uint8_t *p = golden_forms;
	static struct text t;
	struct form f;
	FILE *out = NULL;
	char *file;

	if (argc != 2 + write) {
		fprintf(stderr, "usage: golden [--write] FILE\n");
		return 2;
	}
	file = whole_file(argv[1 + write]);
	if (write && !(out = fopen(argv[2], "we"))) {
		perror(argv[2]);
		free(file);
		return 1;
	}
	for (unsigned m = 0; m < MODES; m++)
		start(&guest[m], m);
	while (*p != 0xff) {
		p = next_form(p, &f);
		t.n = 0;
		say_form(&t, &f);
		forms++;
		changed += compare(file, &t);
		if (out)
			fputs(t.s, out);
	}
	for (unsigned m = 0; m < MODES; m++)
		bare_stop(&guest[m]);
	free(file);
	if (out && fclose(out)) {
		perror(argv[2]);
		return 1;
	}
	if (changed && !write)
		printf("# If this is meant: golden --write %s\n", argv[1]);
	printf("%sok 1 - %u forms, %u changed\n1..1\n",
	       changed && !write ? "not " : "", forms, changed);
	return changed && !write;
}
