/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bootstep.c - a kernel boots on two engines, compared at every exit
 *
 * bootstep [--a ENGINE] [--b ENGINE] [--memory MIB] [--cmdline TEXT]
 *          [--exits N] [--until TEXT] [--every N] [--from N] [--quiet 1]
 *          KERNEL INITRD
 *
 * Two whole machines of one vCPU, without their threads: this program runs
 * the vCPUs in turn from exit to exit.  Time is made up: it goes on by a step
 * at each exit and at each RDTSC, to the timer's moment when a vCPU halts, and
 * else stands still.  An APIC timer fires on the way into a run and in HLT
 * only.  So both machines do the same, however fast they are, until an engine
 * makes a mistake; random numbers come from a seed.
 *
 * At each exit the vCPUs' states must be equal, after every 256 (--every) the
 * pages that were written.  Where they are not, the boot is repeated and all
 * is compared at each exit from there on (--from).
 *
 * Flags that nothing reads may differ in the frame of a fault, and so may those
 * that an instruction leaves undefined.  Words that look like RFLAGS and differ
 * in CF to OF alone are counted and made equal.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "made_up.h"
#include "same.h"
#include "vm/machine.h"
#include "vm/virtio/virtq.h"

enum { SHOWN = 12 }; /* differences of memory */

#define ARITH 0x8d5ull

struct side {
	const char *engine;
	struct vm *vm;
	struct made_up made_up;
	bool over;
	uint64_t *dirty;
	struct hv_state s;
	struct hv_exit exit;
	uint64_t output; /* characters */
	char said[512];	 /* the last ones */
	bool seen;	 /* --until */
	uint8_t lcr;	 /* of the serial port */
};

static struct side a = { .engine = "soft,eager" };
static struct side b = { .engine = "soft,interp" };
static const char *kernel, *initrd, *until;
static const char *cmdline = "console=ttyS0 notscdeadline";
static uint64_t memory = 256 << 20, every = 256, from, last = UINT64_MAX;
static uint64_t flag_words;
static bool quiet;

/* -- one side ------------------------------------------------------------- */

static void __attribute__((noreturn)) die(const char *what, const char *why)
{
	printf("Bail out! %s: %s\n", what, why);
	exit(1);
}

/*
 * What the guest sends to its serial port, taken from the exit: who is told by
 * the machine is told on a thread, at no time that both sides share.
 */
static void listen(struct side *s, const struct hv_exit *e)
{
	enum { PORT = 0x3f8, LCR = PORT + 3, LCR_DLAB = 0x80 };
	char byte = (char)e->pio.value;

	if (e->reason != HV_EXIT_PIO || !e->pio.write)
		return;
	if (e->pio.port == LCR)
		s->lcr = (uint8_t)e->pio.value;
	if (e->pio.port != PORT || s->lcr & LCR_DLAB)
		return;
	/* The last byte stays 0. */
	memmove(s->said, s->said + 1, sizeof(s->said) - 2);
	s->said[sizeof(s->said) - 2] = byte;
	if (until && byte == until[strlen(until) - 1] &&
	    memmem(s->said, sizeof(s->said), until, strlen(until)))
		s->seen = true;
	s->output++;
	if (s == &b && !quiet)
		putchar(byte);
}

static void on_log(void *opaque, const char *text)
{
	printf("# %s: %s\n", ((struct side *)opaque)->engine, text);
}

static void side_start(struct side *s)
{
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };

	if (!cfg)
		die("configuration", strerror(ENOMEM));
	vm_config_set_kernel(cfg, kernel);
	vm_config_set_initrd(cfg, initrd);
	vm_config_set_cmdline(cfg, cmdline);
	vm_config_set_engine(cfg, s->engine);
	vm_config_set_cpus(cfg, 1);
	vm_config_set_memory(cfg, memory);
	vm_config_set_log(cfg, on_log, s);
	s->over = s->seen = false;
	memset(s->said, 0, sizeof(s->said));
	s->output = s->lcr = 0;
	if (vm_create(cfg, &s->vm, &err) || !s->vm)
		die("machine", err.text);
	vm_config_destroy(cfg);
	/* Doorbells are exits, so that devices answer at the same moment. */
	s->vm->env.doorbell.set = NULL;
	made_up_start(&s->made_up, s->vm->hv, s->vm->cpu[0].hv);
	s->dirty = calloc(memory / 4096 / 64 + 1, 8);
	if (!s->dirty)
		die("memory", strerror(ENOMEM));
	if (hv_mem_protect(s->vm->hv, 0, memory,
			   HV_MEM_READ | HV_MEM_WRITE | HV_MEM_LOG))
		die("hv_mem_protect", "failed");
}

static void side_stop(struct side *s)
{
	vm_destroy(s->vm);
	free(s->dirty);
}

static bool rung(int fd)
{
	uint64_t n;

	return read(fd, &n, sizeof(n)) == sizeof(n);
}

/* What the device's thread would do at some time of its own. */
static void device_turn(struct virtio *v)
{
	uint32_t queues = 0;

	pthread_mutex_lock(&v->dev.lock);
	for (unsigned i = 0; i < v->class->nqueues; i++)
		if (rung(v->queue[i]->kick_fd))
			queues |= BIT(i);
	virtio_turn_locked(v, rung(v->wake_fd), queues);
	pthread_mutex_unlock(&v->dev.lock);
}

static void devices_turn(struct side *s)
{
	for (struct dev *d = s->vm->devs; d; d = d->next)
		if (!strncmp(d->class->name, "virtio-", 7))
			device_turn(container_of(d, struct virtio, dev));
}

/* To the next exit and through it. */
static void side_run(struct side *s)
{
	struct vcpu *cpu = &s->vm->cpu[0];
	int r;

	made_up_enter(&s->made_up);
	r = hv_vcpu_run(cpu->hv, &cpu->exit);
	if (r < 0)
		die("hv_vcpu_run", strerror(-r));
	s->exit = cpu->exit;
	made_up_step(&s->made_up);
	listen(s, &s->exit);
	do
		if (!run_exit(cpu))
			s->over = true;
	while ((r = hv_vcpu_complete(cpu->hv, &cpu->exit)) == 1);
	if (r < 0)
		die("hv_vcpu_complete", strerror(-r));
	devices_turn(s);
	if (hv_vcpu_get(cpu->hv, HV_STATE_ALL, &s->s))
		die("hv_vcpu_get", "failed");
	s->over |= s->seen || s->made_up.idle || atomic_load(&s->vm->stopping);
	made_up_leave();
}

/* -- comparing ------------------------------------------------------------ */

static bool same_exit(const struct hv_exit *x, const struct hv_exit *y)
{
	if (x->reason != y->reason)
		return false;
	switch (x->reason) {
	case HV_EXIT_MMIO:
		return x->mmio.gpa == y->mmio.gpa &&
		       x->mmio.size == y->mmio.size &&
		       x->mmio.write == y->mmio.write &&
		       (!x->mmio.write || x->mmio.value == y->mmio.value);
	case HV_EXIT_PIO:
		return x->pio.port == y->pio.port &&
		       x->pio.size == y->pio.size &&
		       x->pio.write == y->pio.write &&
		       (!x->pio.write || x->pio.value == y->pio.value);
	case HV_EXIT_MSR:
		return x->msr.index == y->msr.index &&
		       x->msr.write == y->msr.write;
	case HV_EXIT_EOI: return x->eoi.vector == y->eoi.vector;
	default: return true;
	}
}

static void show_exit(const struct side *s)
{
	const struct hv_exit *e = &s->exit;

	printf("#   %s: reason %d", s->engine, e->reason);
	if (e->reason == HV_EXIT_MMIO)
		printf(" %s %#" PRIx64 " value %#" PRIx64,
		       e->mmio.write ? "write" : "read", e->mmio.gpa,
		       e->mmio.value);
	else if (e->reason == HV_EXIT_PIO)
		printf(" %s port %#x value %#x", e->pio.write ? "out" : "in",
		       e->pio.port, e->pio.value);
	else if (e->reason == HV_EXIT_MSR)
		printf(" MSR %#x", e->msr.index);
	printf(", rip %#" PRIx64 ", time %" PRIu64 "\n", s->s.rip,
	       s->made_up.now);
}

/*
 * Words that came from PUSHF or a frame: DIV leaves flags that nobody defines,
 * and what nothing reads is not kept.
 */
static bool are_flags(uint64_t x, uint64_t y)
{
	return !((x ^ y) & ~ARITH) && x & 2 && x < 0x400000;
}

/* What differs for that reason does so no longer. */
static void settle_registers(void)
{
	bool any = false;

	for (unsigned k = 0; k < 16; k++) {
		if (a.s.gpr[k] == b.s.gpr[k] ||
		    !are_flags(a.s.gpr[k], b.s.gpr[k]))
			continue;
		b.s.gpr[k] = a.s.gpr[k];
		flag_words++;
		any = true;
	}
	if (any && hv_vcpu_set(b.vm->cpu[0].hv, HV_STATE_GENERAL, &b.s))
		die("hv_vcpu_set", "failed");
}

/* Port and MSR accesses show their flags, all else only what is read. */
static bool same_vcpu(bool show)
{
	bool flags =
		a.exit.reason == HV_EXIT_PIO || a.exit.reason == HV_EXIT_MSR;
	bool ok = same_exit(&a.exit, &b.exit) && a.over == b.over &&
		  a.made_up.now == b.made_up.now && a.output == b.output;

	if (!ok && show)
		printf("# the exits differ\n");
	if (show) {
		show_exit(&a);
		show_exit(&b);
		printf("#   %-10s %-16s  %s\n", "", a.engine, b.engine);
	}
	if (ok)
		settle_registers();
	return same_state(&a.s, &b.s, flags ? ~0ull : ~ARITH, show) && ok;
}

/* Words of a page that differ; prints the first, up to *shown in all. */
static unsigned differing(uint64_t gpa, unsigned *shown)
{
	const uint8_t *p = a.vm->mem.host + gpa, *q = b.vm->mem.host + gpa;
	unsigned n = 0;

	for (unsigned k = 0; k < 4096; k += 8) {
		uint64_t x, y;

		memcpy(&x, p + k, 8);
		memcpy(&y, q + k, 8);
		if (x == y)
			continue;
		if (are_flags(x, y)) {
			memcpy(b.vm->mem.host + gpa + k, &x, 8);
			hv_mem_written(b.vm->hv, gpa + k, 8);
			flag_words++;
			continue;
		}
		n++;
		if (*shown && (*shown)--)
			printf("#   memory %#" PRIx64 ": %016" PRIx64
			       "  %016" PRIx64 "\n",
			       gpa + k, x, y);
	}
	return n;
}

static void fetch(struct side *s)
{
	if (hv_mem_fetch_dirty(s->vm->hv, 0, memory, s->dirty))
		die("hv_mem_fetch_dirty", "failed");
}

static bool same_memory(bool all, bool show)
{
	unsigned shown = show ? SHOWN : 0, n = 0;

	fetch(&a);
	fetch(&b);
	for (uint64_t p = 0; p < memory / 4096; p++) {
		uint64_t bit = 1ull << p % 64, gpa = p * 4096;

		if (!all && !((a.dirty[p / 64] | b.dirty[p / 64]) & bit))
			continue;
		if (memcmp(a.vm->mem.host + gpa, b.vm->mem.host + gpa, 4096))
			n += differing(gpa, &shown);
	}
	if (n && show)
		printf("#   %u words of memory differ\n", n);
	return !n;
}

static void show_code(void)
{
	ZydisDisassembledInstruction i;
	uint64_t at = a.s.rip, gpa;

	/* Linux maps its memory here, without KASLR. */
	gpa = at >> 47 ? at - 0xffffffff80000000 : at;
	if (gpa < memory - 16 &&
	    ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at,
					       a.vm->mem.host + gpa, 15, &i)))
		printf("#   %#" PRIx64 ": %s\n", at, i.text);
}

/*
 * Boots both.  From exit `from' on memory is compared after every `each'.
 * The exit at which a difference was seen, or 0.
 */
static uint64_t boot(uint64_t begin, uint64_t each, bool show)
{
	uint64_t n = 0, bad = 0;
	bool ok;

	flag_words = 0;
	side_start(&a);
	side_start(&b);
	ok = same_memory(true, true);
	if (!ok)
		printf("# the machines differ at their start\n");
	while (ok && !a.over && !b.over && n < last) {
		side_run(&a);
		side_run(&b);
		n++;
		ok = same_vcpu(false);
		if (ok && n >= begin && n % each == 0)
			ok = same_memory(false, show);
		if (ok)
			continue;
		bad = n;
		printf("# exit %" PRIu64 " differs\n", n);
		if (show) {
			same_vcpu(true);
			same_memory(false, true);
			show_code();
		}
	}
	if (ok && !same_memory(true, true))
		bad = n;
	printf("# %" PRIu64 " exits, %" PRIu64
	       " s of the guest's time, %" PRIu64 " words of flags, %s\n",
	       n, a.made_up.now / 1000000000, flag_words,
	       a.made_up.idle		      ? "idle for ever"
	       : atomic_load(&a.vm->stopping) ? "powered off"
					      : "stopped");
	ok = !bad && n && (a.over || n == last);
	side_stop(&a);
	side_stop(&b);
	return ok ? 0 : bad ? bad : 1;
}

static uint64_t number_arg(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	if (*end || !*s) {
		fprintf(stderr, "bootstep: %s is not a number\n", s);
		exit(2);
	}
	return v;
}

static void option(const char *o, const char *v)
{
	if (!strcmp(o, "--a"))
		a.engine = v;
	else if (!strcmp(o, "--b"))
		b.engine = v;
	else if (!strcmp(o, "--cmdline"))
		cmdline = v;
	else if (!strcmp(o, "--memory"))
		memory = number_arg(v) << 20;
	else if (!strcmp(o, "--exits"))
		last = number_arg(v);
	else if (!strcmp(o, "--until"))
		until = v;
	else if (!strcmp(o, "--every"))
		every = number_arg(v);
	else if (!strcmp(o, "--from"))
		from = number_arg(v);
	else if (!strcmp(o, "--quiet"))
		quiet = number_arg(v);
	else {
		fprintf(stderr, "bootstep: what is %s?\n", o);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	uint64_t bad;
	int i = 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2)
		option(argv[i], argv[i + 1]);
	if (argc - i != 2 || !every) {
		fprintf(stderr, "usage: bootstep [OPTION VALUE]... KERNEL "
				"INITRD\n");
		return 2;
	}
	kernel = argv[i];
	initrd = argv[i + 1];
	bad = boot(from, from ? 1 : every, from);
	if (bad && !from) {
		printf("# again, with every exit of the last %" PRIu64 "\n",
		       every);
		quiet = true;
		boot(bad > every ? bad - every : 1, 1, true);
	}
	printf("%sok 1 - %s and %s boot alike\n1..1\n", bad ? "not " : "",
	       a.engine, b.engine);
	return !!bad;
}
