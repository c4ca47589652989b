/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storm.c - a guest that writes and reads garbage everywhere
 *
 * storm [--seed S] [--count N] [--seconds T] [--engine E] [--cpus N]
 *
 * The guest sits in the whole machine with every device and accesses ports,
 * device registers, BARs, holes and PCI configuration space (both ways) with
 * random sizes and values.  It may well reset itself, power off, die or hang:
 * then the next machine goes on with the next seed.  Husk must neither crash
 * nor hang, and vm_stop() must always come back.
 */
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"
#include "vm/machine.h"

enum {
	IMAGE = 0x200000, /* guest-physical; the code knows it */
	IMAGE_SIZE = 0x6000,
	IMAGE_MEMORY = 0x10000,
	OFF_CODE = 0x1000,
	OFF_IDT = 0x2000,
	OFF_TABLE = 0x3000, /* 32 ranges of ports, 32 of memory */
	OFF_IDTR = 0x3ff0,
	OFF_SEED = 0x4000,
	OFF_LEFT = 0x4008,
	OFF_FAULTS = 0x4010,
	OFF_INTERRUPTS = 0x4018,
	OFF_SETUP =
		0x4100, /* address (0 ends), value, size: what comes first */
	QUEUES = 8,	/* in memory at RINGS, a page each */
	RINGS = 0x10000,
	RING_AVAIL = 0x400,
	RING_USED = 0x800,
	BUFFERS = 0x20000,
	RANGES = 32,
	HEADERS = 0x1000,
	PER_MACHINE = 20000,
};

/*
 * r15 random state, r14 accesses left, rbx the choice: bits 0-2 what, 3-4
 * size, 5 write, 20-22 kind of value, 24-29 zero: let interrupts in, 32 on
 * the address.  rsi is the value.
 */
PAYLOAD(storm_code, 64,
	"lidt 0x203ff0\n mov 0x204000, %r15\n mov 0x204008, %r14\n"
	"mov $0x203000, %r13d\n"
	"mov $0x204100, %esi\n"
	"1: mov (%rsi), %rdi\n test %rdi, %rdi\n jz storm_next\n"
	"mov 8(%rsi), %eax\n mov 12(%rsi), %ecx\n add $16, %rsi\n"
	"cmp $1, %ecx\n je 2f\n cmp $2, %ecx\n je 3f\n"
	"mov %eax, (%rdi)\n jmp 1b\n 2: mov %al, (%rdi)\n jmp 1b\n"
	"3: mov %ax, (%rdi)\n jmp 1b\n"
	".global storm_next\n storm_next:\n"
	"mov $0x20f000, %esp\n mov %r14, 0x204008\n"
	"sub $1, %r14\n jb 9f\n"
	"call 8f\n mov %rax, %rbx\n call 8f\n mov %rax, %rsi\n"
	"bt $20, %rbx\n jnc 1f\n movzbl %sil, %esi\n"
	"1: bt $21, %rbx\n jnc 1f\n and $0x1fff0, %esi\n"
	"1: bt $22, %rbx\n jnc 1f\n and $15, %esi\n"
	"1: test $0x3f000000, %ebx\n jnz 1f\n sti\n nop\n nop\n cli\n"
	"1: mov %rbx, %rdi\n shr $32, %rdi\n mov %ebx, %ecx\n"
	"and $7, %ecx\n cmp $1, %ecx\n jbe 3f\n cmp $2, %ecx\n je 2f\n"
	"cmp $4, %ecx\n jbe 5f\n cmp $5, %ecx\n je 4f\n"
	"cmp $6, %ecx\n je 6f\n"
	/* 7: anywhere above the RAM */
	"mov %edi, %edi\n or $0xc0000000, %edi\n jmp 7f\n"
	/* a known port */
	"2: mov %edi, %ecx\n and $31, %ecx\n shl $4, %ecx\n shr $8, %rdi\n"
	"and 8(%r13,%rcx), %rdi\n add (%r13,%rcx), %rdi\n"
	"3: mov %edi, %edx\n mov %esi, %eax\n"
	/* size and direction of a port access */
	"10: bt $5, %rbx\n jc 11f\n"
	"bt $4, %rbx\n jc 12f\n bt $3, %rbx\n jc 13f\n"
	"in %dx, %al\n jmp storm_next\n 13: in %dx, %ax\n jmp storm_next\n"
	"12: in %dx, %eax\n jmp storm_next\n"
	"11: bt $4, %rbx\n jc 12f\n bt $3, %rbx\n jc 13f\n"
	"out %al, %dx\n jmp storm_next\n 13: out %ax, %dx\n jmp storm_next\n"
	"12: out %eax, %dx\n jmp storm_next\n"
	/* configuration by ports: 16 slots, the first 256 bytes */
	"4: mov %edi, %eax\n and $0x7fff, %eax\n or $0x80000000, %eax\n"
	"mov $0xcf8, %edx\n out %eax, %dx\n mov %edi, %edx\n shr $20, %edx\n"
	"and $3, %edx\n or $0xcfc, %edx\n mov %esi, %eax\n jmp 10b\n"
	/* a known range of memory */
	"5: mov %edi, %ecx\n and $31, %ecx\n shl $4, %ecx\n shr $5, %rdi\n"
	"and 0x208(%r13,%rcx), %rdi\n add 0x200(%r13,%rcx), %rdi\n jmp 7f\n"
	/* configuration by ECAM: functions of the first 16 slots */
	"6: mov %edi, %edi\n and $0x7ffff, %edi\n or $0xe0000000, %edi\n"
	"7: bt $5, %rbx\n jc 11f\n"
	"bt $4, %rbx\n jc 12f\n bt $3, %rbx\n jc 13f\n"
	"mov (%rdi), %al\n jmp storm_next\n 13: mov (%rdi), %ax\n"
	"jmp storm_next\n 12: bt $3, %rbx\n jc 13f\n mov (%rdi), %eax\n"
	"jmp storm_next\n 13: mov (%rdi), %rax\n jmp storm_next\n"
	"11: bt $4, %rbx\n jc 12f\n bt $3, %rbx\n jc 13f\n"
	"mov %sil, (%rdi)\n jmp storm_next\n 13: mov %si, (%rdi)\n"
	"jmp storm_next\n 12: bt $3, %rbx\n jc 13f\n mov %esi, (%rdi)\n"
	"jmp storm_next\n 13: mov %rsi, (%rdi)\n jmp storm_next\n"
	"8: mov %r15, %rax\n shl $13, %rax\n xor %rax, %r15\n"
	"mov %r15, %rax\n shr $7, %rax\n xor %rax, %r15\n"
	"mov %r15, %rax\n shl $17, %rax\n xor %rax, %r15\n"
	"mov %r15, %rax\n ret\n"
	"9: mov $0xf4, %edx\n mov $0x10, %eax\n out %eax, %dx\n jmp 9b\n"
	".global storm_fault\n storm_fault: incq 0x204010\n jmp storm_next\n"
	".global storm_interrupt\n storm_interrupt: push %rax\n"
	"mov $0xfee000b0, %eax\n movl $0, (%rax)\n incq 0x204018\n"
	"pop %rax\n iretq\n");
extern const uint8_t storm_fault[], storm_interrupt[];

/* Base and mask of the offset inside.  MMIO names come after the ports. */
static const struct {
	uint64_t base, mask;
} ranges[2 * RANGES] = {
	{ 0x20, 1 },
	{ 0xa0, 1 },
	{ 0x4d0, 1 },
	{ 0x40, 3 },
	{ 0x61, 0 },
	{ 0x60, 7 },
	{ 0x70, 3 },
	{ 0x3f8, 7 },
	{ 0x3f8, 7 },
	{ 0x2f8, 7 },
	{ 0x80, 0xf },
	{ 0xcfc, 3 },
	{ 0x510, 7 },
	{ 0x510, 15 },
	{ 0x600, 15 },
	{ 0x600, 63 },
	{ 0xb0, 7 },
	{ 0x93, 0 },
	{ 0xe0, 15 },
	{ 0xe8, 7 },
	{ 0xf5, 3 },
	{ 0x2000, 31 },
	{ 0x1f0, 7 },
	{ 0x3b0, 63 },
	{ 0x170, 7 },
	{ 0x376, 3 },
	{ 0x0, 15 },
	{ 0xc0, 31 },
	{ 0x378, 7 },
	{ 0x3f0, 7 },
	{ 0x5658, 3 },
	{ 0x700, 255 },
	/* memory */
	[RANGES] = { 0xfec00000, 0x1f },
	{ 0xfec00000, 0xfff },
	{ 0xfed00000, 0x3ff },
	{ 0xfed00000, 0x1ff },
	{ 0xfee00000, 0xfff },
	{ 0xfee00000, 0xfffff },
	{ 0xc0000000, 0x3ff }, /* BARs: the loader gives them from here on */
	{ 0xc0000000, 0xffff },
	{ 0xc0000000, 0x1ffff },
	{ 0xc0000000, 0x3ffff },
	{ 0xc0000000, 0x3803f }, /* common configuration of each */
	{ 0xc0002000, 0x3803f }, /* their own */
	{ 0xc0003000, 0x3800f }, /* doorbells */
	{ 0xc0003000, 0x38007 },
	{ 0xc0000014, 0x3800c }, /* status, queue address */
	{ 0xc0002000, 0x1fff },
	{ 0xc0000000, 0x3f },
	{ 0xc0004000, 0x383ff },	    /* MSI-X */
	{ RINGS + 2, 0x7ff0 },		    /* somewhere in queues */
	{ RINGS + RING_AVAIL + 2, 0x7000 }, /* how far they are filled */
	{ 0xe0000004, 0x78001 },	    /* command, of each slot */
	{ 0xe0000040, 0x780ff },	    /* capabilities */
	{ 0xa0000, 0x1ffff },
	{ 0xff000000, 0xffffff },
	{ 0x01ffff00, 0x1ff }, /* over the end of RAM */
	{ 0xbffffff0, 0x1f },
	{ 0xdffffff0, 0x1f },
	{ 0xeffffff0, 0x1f },
	{ 0xfec00ff0, 0x1f },
	{ 0xfed003f0, 0x1f },
	{ 0x10000, 0xffff }, /* RAM where queues may be put */
	{ 0x10000, 0x1ff },
};

static uint64_t clock_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* -- the kernel file ------------------------------------------------------ */

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

static void make_image(uint8_t *p, uint64_t seed, uint64_t count)
{
	uint64_t code = IMAGE + OFF_CODE;
	uint16_t limit = 4095;

	memset(p, 0, IMAGE_SIZE);
	memcpy(p + OFF_CODE, storm_code,
	       bare_bytes(storm_code, storm_code_end));
	for (unsigned v = 0; v < 256; v++) {
		const uint8_t *h =
			v == 2 || v >= 32 ? storm_interrupt : storm_fault;
		uint64_t at = code + bare_bytes(storm_code, h);

		put64(p + OFF_IDT + v * 16, (at & 0xffff) | 0x10 << 16 |
						    0x8e00ull << 32 |
						    at >> 16 << 48);
	}
	for (unsigned k = 0; k < 2 * RANGES; k++) {
		put64(p + OFF_TABLE + k * 16, ranges[k].base);
		put64(p + OFF_TABLE + k * 16 + 8, ranges[k].mask);
	}
	memcpy(p + OFF_IDTR, &limit, 2);
	put64(p + OFF_IDTR + 2, IMAGE + OFF_IDT);
	put64(p + OFF_SEED, seed * 0x9e3779b97f4a7c15 + 1);
	put64(p + OFF_LEFT, count);
}

/* An ELF file with one segment. */
static int write_kernel(const char *path, uint64_t seed, uint64_t count)
{
	static uint8_t file[HEADERS + IMAGE_SIZE];
	Elf64_Ehdr eh = {
		.e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB,
			     EV_CURRENT },
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_entry = IMAGE + OFF_CODE,
		.e_phoff = sizeof(eh),
		.e_ehsize = sizeof(eh),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1,
	};
	Elf64_Phdr ph = {
		.p_type = PT_LOAD,
		.p_flags = PF_R | PF_W | PF_X,
		.p_offset = HEADERS,
		.p_vaddr = IMAGE,
		.p_paddr = IMAGE,
		.p_filesz = IMAGE_SIZE,
		.p_memsz = IMAGE_MEMORY,
		.p_align = 4096,
	};
	FILE *f = fopen(path, "wb");
	bool ok;

	if (!f)
		return -errno;
	memset(file, 0, sizeof(file));
	memcpy(file, &eh, sizeof(eh));
	memcpy(file + sizeof(eh), &ph, sizeof(ph));
	make_image(file + HEADERS, seed, count);
	ok = fwrite(file, sizeof(file), 1, f) == 1;
	return fclose(f) || !ok ? -EIO : 0;
}

static int write_disk(const char *path)
{
	FILE *f = fopen(path, "wb");

	if (!f)
		return -errno;
	if (ftruncate(fileno(f), 1 << 20) < 0) {
		fclose(f);
		return -errno;
	}
	return fclose(f) ? -EIO : 0;
}

/* -- machines ------------------------------------------------------------- */

struct storm {
	const char *engine;
	unsigned cpus;
	char dir[64], kernel[96], disk[96], disk2[96];
	uint64_t accesses, faults, interrupts, exits;
	unsigned machines, ended[VM_STOP_STOPPED + 1], timeouts;
	atomic_ullong output, log_lines;
};

static void on_output(void *opaque, const void *data, size_t len)
{
	struct storm *s = opaque;

	atomic_fetch_add(&s->output, len);
}

static void on_log(void *opaque, const char *text)
{
	struct storm *s = opaque;

	atomic_fetch_add(&s->log_lines, 1);
}

static void die(struct storm *s, const char *what, const char *why)
{
	printf("Bail out! %s: %s\n", what, why);
	unlink(s->kernel);
	unlink(s->disk);
	unlink(s->disk2);
	rmdir(s->dir);
	exit(1);
}

static struct vm_config *make_config(struct storm *s, struct husk_error *err)
{
	static const char *const devices[] = { "debug-exit", "pc-testdev",
					       "virtio-rng", "virtio-rng",
					       "virtio-vsock" };
	struct vm_config *cfg = vm_config_create();

	if (!cfg)
		die(s, "configuration", strerror(ENOMEM));
	vm_config_set_kernel(cfg, s->kernel);
	vm_config_set_engine(cfg, s->engine);
	vm_config_set_cpus(cfg, s->cpus);
	vm_config_set_memory(cfg, 32 << 20);
	vm_config_add_disk(cfg, s->disk, false);
	vm_config_add_disk(cfg, s->disk2, true);
	for (unsigned k = 0; k < sizeof(devices) / sizeof(devices[0]); k++)
		if (vm_config_add_device(cfg, devices[k], err))
			die(s, devices[k], err->text);
	if (vm_config_add_net(cfg, "shared,queues=4", err))
		die(s, "network", err->text);
	vm_config_set_output(cfg, VM_SERIAL, on_output, s);
	vm_config_set_output(cfg, VM_CONSOLE, on_output, s);
	vm_config_set_log(cfg, on_log, s);
	return cfg;
}

static uint64_t peek(struct vm *vm, unsigned off)
{
	uint64_t v = 0;

	mem_copy_out(&vm->mem, IMAGE + off, &v, 8);
	return v;
}

/* -- virtio devices that are set up well, with queues full of garbage ------ */

struct setup {
	struct vm *vm;
	unsigned n;
};

static void set_up(struct setup *u, uint64_t addr, uint32_t value,
		   uint32_t size)
{
	uint32_t e[4] = { (uint32_t)addr, 0, value, size };

	if (OFF_SETUP + (u->n + 2) * 16 > IMAGE_SIZE)
		return;
	mem_copy_in(&u->vm->mem, IMAGE + OFF_SETUP + u->n++ * 16, e, 16);
}

static uint32_t config(struct vm *vm, unsigned slot, unsigned off)
{
	uint64_t v = 0;

	bus_read(vm->mmio, 0xe0000000 + (slot << 15) + off, 4, &v);
	return (uint32_t)v;
}

/* Status, features, up to two queues, as virtio 1.2, 3.1.1 has it. */
static void set_up_device(struct setup *u, unsigned slot, unsigned queue)
{
	uint64_t bar = config(u->vm, slot, 0x10) & ~0xfu;

	set_up(u, 0xe0000004 + (slot << 15), 6, 2);
	set_up(u, bar + 0x14, 0, 1);
	set_up(u, bar + 0x14, 3, 1);
	set_up(u, bar + 0x08, 1, 4);
	set_up(u, bar + 0x0c, 1, 4);
	set_up(u, bar + 0x14, 11, 1);
	for (unsigned k = 0; k < 2; k++) {
		uint32_t at = RINGS + ((queue + k) % QUEUES) * 4096;

		set_up(u, bar + 0x16, k, 2);
		set_up(u, bar + 0x18, 32, 2);
		set_up(u, bar + 0x20, at, 4);
		set_up(u, bar + 0x28, at + RING_AVAIL, 4);
		set_up(u, bar + 0x30, at + RING_USED, 4);
		set_up(u, bar + 0x1c, 1, 2);
	}
	set_up(u, bar + 0x14, 15, 1);
}

static void fill_queue(struct vm *vm, uint64_t at, unsigned *x)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} desc[32];
	uint16_t avail[2 + 32];

	for (unsigned k = 0; k < 32; k++) {
		desc[k].addr = BUFFERS + (rand_r(x) & 0x3ffff);
		desc[k].len = rand_r(x) % 8 ? rand_r(x) & 0x3ff : rand_r(x);
		desc[k].flags = rand_r(x) & (rand_r(x) % 8 ? 3 : 7);
		desc[k].next = rand_r(x) & (rand_r(x) % 8 ? 31 : 0xffff);
	}
	for (unsigned k = 2; k < 34; k++)
		avail[k] = rand_r(x) & (rand_r(x) % 8 ? 31 : 0xffff);
	avail[0] = 0;
	avail[1] = rand_r(x) & 31;
	mem_copy_in(&vm->mem, at, desc, sizeof(desc));
	mem_copy_in(&vm->mem, at + RING_AVAIL, avail, sizeof(avail));
}

static void set_up_virtio(struct vm *vm, uint64_t seed)
{
	struct setup u = { .vm = vm };
	unsigned queue = 0, x = (unsigned)seed;

	for (unsigned k = 0; k < QUEUES; k++)
		fill_queue(vm, RINGS + k * 4096, &x);
	for (unsigned slot = 0; slot < 32; slot++)
		if ((config(vm, slot, 0) & 0xffff) == 0x1af4) {
			set_up_device(&u, slot, queue);
			queue += 2;
		}
}

static void run_machine(struct storm *s, uint64_t seed, uint64_t count,
			int timeout_ms)
{
	struct vm_stopped end = { 0 };
	struct hv_stats stats;
	struct husk_error err = { 0 };
	struct vm_config *cfg;
	uint64_t left;
	struct vm *vm;
	int r = write_kernel(s->kernel, seed, count);

	if (r)
		die(s, s->kernel, strerror(-r));
	cfg = make_config(s, &err);
	r = vm_create(cfg, &vm, &err);
	vm_config_destroy(cfg);
	if (r)
		die(s, "machine", err.text);
	if (seed % 4)
		set_up_virtio(vm, seed);
	if (vm_start(vm, &err))
		die(s, "machine", err.text);
	/* The second CPU waits for a message, which the guest may send. */
	for (unsigned k = 0; vm_wait(vm, 20, &end) == -ETIMEDOUT; k++) {
		static const char keys[] = "storm\r";

		vm_console_write(vm, k & 1 ? VM_SERIAL : VM_CONSOLE, keys, 6);
		if ((int)k * 20 >= timeout_ms)
			break;
	}
	vm_stop(vm);
	hv_vcpu_stats(vm->cpu[0].hv, &stats);
	s->exits += stats.exits[HV_EXIT_PIO] + stats.exits[HV_EXIT_MMIO];
	if (vm_wait(vm, 0, &end))
		die(s, "vm_stop()", "the machine still runs");
	left = peek(vm, OFF_LEFT);
	/* Devices may have written over the counters. */
	if (left <= count) {
		s->accesses += count - left;
		if (peek(vm, OFF_FAULTS) <= count)
			s->faults += peek(vm, OFF_FAULTS);
		if (peek(vm, OFF_INTERRUPTS) <= count)
			s->interrupts += peek(vm, OFF_INTERRUPTS);
	}
	s->timeouts += end.reason == VM_STOP_STOPPED;
	s->ended[end.reason]++;
	s->machines++;
	if (end.reason == VM_STOP_ERROR)
		printf("# seed %" PRIu64 " stopped: %.*s\n", seed,
		       (int)strcspn(end.text, "\n"), end.text);
	vm_destroy(vm);
}

static void on_alarm(int sig)
{
	static const char msg[] = "Bail out! Husk hangs\n";

	if (write(1, msg, sizeof(msg) - 1) < 0)
		_exit(2);
	_exit(1);
}

int main(int argc, char **argv)
{
	uint64_t seed = 1, count = 200000, seconds = 6, until, next;
	static struct storm s = { .engine = "soft", .cpus = 2 };
	const char *tmp = getenv("TMPDIR");

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i += 2) {
		const char *v = i + 1 < argc ? argv[i + 1] : NULL;

		if (v && !strcmp(argv[i], "--seed"))
			seed = strtoull(v, NULL, 0);
		else if (v && !strcmp(argv[i], "--count"))
			count = strtoull(v, NULL, 0);
		else if (v && !strcmp(argv[i], "--seconds"))
			seconds = strtoull(v, NULL, 0);
		else if (v && !strcmp(argv[i], "--engine"))
			s.engine = v;
		else if (v && !strcmp(argv[i], "--cpus"))
			s.cpus = (unsigned)strtoul(v, NULL, 0);
		else {
			fprintf(stderr, "storm: what is %s?\n", argv[i]);
			return 2;
		}
	}
	if (!bare_has_engine(s.engine)) {
		printf("1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	snprintf(s.dir, sizeof(s.dir), "%.40s/storm-XXXXXX",
		 tmp ? tmp : "/tmp");
	if (!mkdtemp(s.dir))
		die(&s, s.dir, strerror(errno));
	snprintf(s.kernel, sizeof(s.kernel), "%s/kernel", s.dir);
	snprintf(s.disk, sizeof(s.disk), "%s/disk", s.dir);
	snprintf(s.disk2, sizeof(s.disk2), "%s/disk2", s.dir);
	if (write_disk(s.disk) || write_disk(s.disk2))
		die(&s, s.disk, "cannot be written");
	signal(SIGALRM, on_alarm);
	printf("# seed %" PRIu64 ", %" PRIu64 " accesses\n", seed, count);
	until = clock_ms() + seconds * 1000;
	for (next = seed; s.accesses < count && clock_ms() < until; next++) {
		uint64_t n = count - s.accesses;

		alarm(60);
		run_machine(&s, next, n < PER_MACHINE ? n : PER_MACHINE, 500);
	}
	alarm(0);
	unlink(s.kernel);
	unlink(s.disk);
	unlink(s.disk2);
	rmdir(s.dir);
	printf("# %" PRIu64 " accesses, %" PRIu64
	       " exits, %u machines, %" PRIu64 " faults, %" PRIu64
	       " interrupts, %llu bytes out, %llu lines\n",
	       s.accesses, s.exits, s.machines, s.faults, s.interrupts,
	       s.output, s.log_lines);
	printf("# ends: %u done or exit, %u reset, %u power off, %u dead, "
	       "%u error, %u no progress\n",
	       s.ended[VM_STOP_EXIT], s.ended[VM_STOP_RESET],
	       s.ended[VM_STOP_POWEROFF], s.ended[VM_STOP_DIED],
	       s.ended[VM_STOP_ERROR], s.timeouts);
	printf("%sok 1 - survives the storm\n1..1\n", s.accesses ? "" : "not ");
	return !s.accesses;
}
