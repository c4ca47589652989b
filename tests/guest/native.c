/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native.c - guest code on the bare processor, inside this process
 */
#include "native.h"

#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "bare.h"

enum {
	USER32_CS = 0x23, /* Linux', and its data segment */
	USER_DS = 0x2b,
	LEGACY = 464, /* of an XSAVE area; what follows is the kernel's */
	HEADER = 512,
};

static enum { IDLE, ENTER, RUNNING } phase;
static native_stop *on_stop;
static native_lost *on_lost;
static bool wide32;
static const struct native *input;
static mcontext_t saved;
static uint8_t saved_fpu[16384];

static const int greg[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8,	 REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

/* How much the frame of the kernel holds (struct _fpx_sw_bytes). */
static size_t frame_size(const uint8_t *f)
{
	uint32_t magic, size;

	memcpy(&magic, f + LEGACY, 4);
	memcpy(&size, f + LEGACY + 16, 4);
	if (magic != 0x46505853)
		return HEADER;
	return size < sizeof(saved_fpu) ? size : sizeof(saved_fpu);
}

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/*
 * A return into the middle of an instruction may load FS, and nothing here
 * works without it.
 */
static uint64_t fs_base;

static void fs_get(void)
{
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_base);
}

static void fs_put(void)
{
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(fs_base)
			 : "rcx", "r11", "memory");
}

static void enter(mcontext_t *m, uint8_t *f, size_t n)
{
	memcpy(&saved, m, sizeof(saved));
	memcpy(saved_fpu, f, n);
	for (unsigned k = 0; k < 16; k++)
		m->gregs[greg[k]] = (greg_t)input->gpr[k];
	m->gregs[REG_RIP] = (greg_t)input->rip;
	m->gregs[REG_EFL] = (greg_t)input->rflags;
	if (wide32)
		m->gregs[REG_CSGSFS] =
			(m->gregs[REG_CSGSFS] & ~0xffffll) | USER32_CS;
	memcpy(f, input->fpu, LEGACY);
	memcpy(f + HEADER, input->fpu + HEADER,
	       least(n, NATIVE_XSAVE) - HEADER);
	phase = RUNNING;
}

static void leave(mcontext_t *m, uint8_t *f, size_t n)
{
	memcpy(m->gregs, saved.gregs, sizeof(saved.gregs));
	m->gregs[REG_RIP] += 2; /* the ud2 */
	memcpy(f, saved_fpu, n);
	phase = IDLE;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	static struct native s;
	ucontext_t *u = context;
	mcontext_t *m = &u->uc_mcontext;
	uint8_t *f = (uint8_t *)m->fpregs;
	size_t n = frame_size(f);

	/* AC, NT and ID are the code's here; no signal resets them. */
	__builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() &
				       ~0x244000ull);
	if (phase == RUNNING)
		fs_put();
	if (phase == ENTER && sig == SIGILL) {
		enter(m, f, n);
		return;
	}
	if (phase != RUNNING) { /* ours, or the engine's */
		if (sig == SIGALRM)
			return;
		if (on_lost)
			on_lost(sig, (uint64_t)m->gregs[REG_RIP],
				info->si_addr);
		signal(sig, SIG_DFL);
		return;
	}
	for (unsigned k = 0; k < 16; k++)
		s.gpr[k] = (uint64_t)m->gregs[greg[k]];
	s.rip = (uint64_t)m->gregs[REG_RIP];
	s.rflags = (uint64_t)m->gregs[REG_EFL];
	s.vector = sig == SIGALRM ? NATIVE_TIMEOUT
				  : (uint32_t)m->gregs[REG_TRAPNO];
	s.error = (uint32_t)m->gregs[REG_ERR];
	s.cr2 = (uint64_t)m->gregs[REG_CR2];
	memset(s.fpu, 0, sizeof(s.fpu));
	memcpy(s.fpu, f, least(n, NATIVE_XSAVE));
	if (on_stop(&s))
		m->gregs[REG_RIP] = (greg_t)s.rip;
	else
		leave(m, f, n);
}

void native_start(native_stop *stop, native_lost *lost, bool mode32)
{
	static const int sigs[] = { SIGILL, SIGSEGV, SIGBUS,
				    SIGFPE, SIGTRAP, SIGALRM };
	struct sigaction sa = { .sa_sigaction = on_signal,
				.sa_flags =
					SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t st = { .ss_size = 1 << 18 };

	on_stop = stop;
	on_lost = lost;
	wide32 = mode32;
	st.ss_sp = mmap(NULL, st.ss_size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (st.ss_sp == MAP_FAILED)
		bare_die("mmap of a stack", -errno);
	fs_get();
	sigaltstack(&st, NULL);
	/* Null in 64-bit programs, where they do not count. */
	if (mode32)
		__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(USER_DS));
	for (unsigned k = 0; k < sizeof(sigs) / sizeof(sigs[0]); k++)
		sigaction(sigs[k], &sa, NULL);
}

void *native_map(uint32_t linear, size_t size)
{
	void *p = mmap((void *)(uintptr_t)linear, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		bare_die("mmap of the sandbox", -errno);
	return p;
}

void *native_map_code(uint32_t linear, size_t size)
{
	void *p = native_map(linear, size);
	void *view = mremap(p, 0, size, MREMAP_MAYMOVE);

	if (view == MAP_FAILED || mprotect(p, size, PROT_READ | PROT_EXEC))
		bare_die("mmap of the code", -errno);
	return view;
}

void native_run(const struct native *start, unsigned seconds)
{
	input = start;
	phase = ENTER;
	if (seconds)
		alarm(seconds);
	__asm__ volatile("ud2" ::: "memory");
	if (seconds)
		alarm(0);
}

/* -- comparing ------------------------------------------------------------ */

void native_complete_fpu(uint8_t *f)
{
	const uint16_t cw = 0x37f;
	uint64_t bv;

	memcpy(&bv, f + 512, 8);
	if (!(bv & 1)) {
		memset(f, 0, 24);
		memset(f + 32, 0, 128);
		memcpy(f, &cw, 2);
	}
	if (!(bv & 2))
		memset(f + 160, 0, 256);
	if (!(bv & 4))
		memset(f + 576, 0, 256);
	memset(f + 6, 0, 18);
	memset(f + 28, 0, 4); /* MXCSR's mask is constant */
	memset(f + 416, 0, 576 - 416);
	for (unsigned k = 0; k < 8; k++)
		memset(f + 32 + k * 16 + 10, 0, 6);
}
