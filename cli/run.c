/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c - husk run: boots a kernel and lends it the terminal
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
	"usage: husk run [OPTION...]\n"
	"\n"
	"  --kernel FILE         bzImage, ELF vmlinux or Multiboot kernel\n"
	"  --initrd FILE         initial RAM disk\n"
	"  --cmdline TEXT        kernel command line (default: console=ttyS0)\n"
	"  --cpus N              vCPUs, 1 to 64 (default 1)\n"
	"  --memory SIZE         RAM, with K, M or G (default 512M)\n"
	"  --engine NAME         auto, kvm, soft or soft,interp (default auto)\n"
	"  --disk FILE[,readonly][,format=raw|qcow2][,cache=cached|direct]\n"
	"       [,sync=full|data|none][,serial=TEXT][,KEY=VALUE...]\n"
	"                        a disk image or block device; may be repeated\n"
	"  --device KIND,...     debug-exit, pc-testdev, virtio-rng, virtio-blk,\n"
	"                        virtio-net\n"
	"  --net shared|tap=NAME|unix=PATH|fd=N|none[,...]\n"
	"                        a network device (default shared: a NAT)\n"
	"  --forward HOST:GUEST  a port of the host leads to one of the guest\n"
	"  --serial WHERE        stdio, a file, pty or none (default stdio)\n"
	"  --reboot exit|again   what a guest's reset does (default exit)\n"
	"  --stats               count what the vCPUs did, on standard error\n"
	"  --timeout SECONDS     end the machine after this time\n"
	"\n"
	"Without --kernel the demo guest is booted, where it was built.\n"
	"Ctrl-A x ends the machine.  Exit status: 0 powered off, 1 a fault of Husk,\n"
	"2 usage, 3 the guest died, 124 timeout, else what a debug-exit device said.\n";

enum { MAX_FORWARDS = 64 };

struct session {
	struct vm_config *cfg;
	const char *where; /* --serial */
	struct serial serial;
	bool stats;
	long timeout_ms; /* -1: none */
	int signal;	 /* that ended us, or 0 */
};

static void log_line(void *opaque, const char *text)
{
	complain("%s", text);
}

/* What --net left to us, and the forwards, which may stand before it. */
static int add_nets(struct vm_config *cfg, bool has_net,
		    const char *const *forward, unsigned n)
{
	struct husk_error err = { 0 };
	int ret = has_net ? 0 : vm_config_add_net(cfg, "shared", &err);

	for (unsigned i = 0; !ret && i < n; i++)
		ret = vm_config_add_forward(cfg, forward[i], &err);
	if (ret)
		complain("%s", err.text);
	return ret;
}

/* The demo guest beside the build's command. */
static int use_demo(struct vm_config *cfg)
{
	char self[4096], path[4200], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	static const char *const dirs[] = { "demo", "../demo",
					    "../share/husk/demo" };

	if (n < 0)
		return -errno;
	self[n] = 0;
	slash = strrchr(self, '/');
	if (slash)
		*slash = 0;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s/vmlinuz", self, dirs[i]);
		if (access(path, R_OK))
			continue;
		vm_config_set_kernel(cfg, path);
		snprintf(path, sizeof(path), "%s/%s/initrd", self, dirs[i]);
		return vm_config_set_initrd(cfg, path);
	}
	return -ENOENT;
}

static int parse(struct session *s, int argc, char **argv)
{
	static const struct option options[] = {
		{ "kernel", 1, NULL, 'k' },  { "initrd", 1, NULL, 'i' },
		{ "cmdline", 1, NULL, 'c' }, { "cpus", 1, NULL, 'n' },
		{ "memory", 1, NULL, 'm' },  { "engine", 1, NULL, 'e' },
		{ "disk", 1, NULL, 'd' },    { "device", 1, NULL, 'D' },
		{ "net", 1, NULL, 'N' },     { "forward", 1, NULL, 'F' },
		{ "serial", 1, NULL, 's' },  { "reboot", 1, NULL, 'r' },
		{ "stats", 0, NULL, 'S' },   { "timeout", 1, NULL, 't' },
		{ "help", 0, NULL, 'h' },    { 0 },
	};
	const char *engine = NULL, *cmdline = NULL;
	const char *forward[MAX_FORWARDS];
	unsigned nforwards = 0;
	bool has_net = false;
	struct husk_error err = { 0 };
	uint64_t size = 512u << 20;
	char *end;
	long v;
	int c;

	vm_config_set_memory(s->cfg, size);
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (c) {
		case 'k': vm_config_set_kernel(s->cfg, optarg); break;
		case 'i': vm_config_set_initrd(s->cfg, optarg); break;
		case 'c': cmdline = optarg; break;
		case 'e': engine = optarg; break;
		case 's': s->where = optarg; break;
		case 'n':
			v = strtol(optarg, &end, 10);
			if (*end || end == optarg || v < 1 || v > VM_MAX_CPUS) {
				complain("--cpus %s: not a number from 1 to %d",
					 optarg, VM_MAX_CPUS);
				return EXIT_USAGE;
			}
			vm_config_set_cpus(s->cfg, (unsigned)v);
			break;
		case 'm':
			if (parse_size(optarg, &size)) {
				complain("--memory %s: not a size such as 512M",
					 optarg);
				return EXIT_USAGE;
			}
			vm_config_set_memory(s->cfg, size);
			break;
		case 'd':
			if (vm_config_add_disk_spec(s->cfg, optarg, &err)) {
				complain("%s", err.text);
				return EXIT_USAGE;
			}
			break;
		case 'N':
			has_net = true;
			if (vm_config_add_net(s->cfg, optarg, &err)) {
				complain("%s", err.text);
				return EXIT_USAGE;
			}
			break;
		case 'F':
			if (nforwards == MAX_FORWARDS) {
				complain("--forward %s: too many", optarg);
				return EXIT_USAGE;
			}
			forward[nforwards++] = optarg;
			break;
		case 'D':
			has_net |= !strncmp(optarg, "virtio-net", 10);
			if (vm_config_add_device(s->cfg, optarg, &err)) {
				complain("%s", err.text);
				return EXIT_USAGE;
			}
			break;
		case 'r':
			if (strcmp(optarg, "exit") && strcmp(optarg, "again")) {
				complain("--reboot %s: exit or again", optarg);
				return EXIT_USAGE;
			}
			vm_config_set_reboot(s->cfg, *optarg == 'a'
							     ? VM_REBOOT_AGAIN
							     : VM_REBOOT_EXIT);
			break;
		case 't':
			v = strtol(optarg, &end, 10);
			if (*end || end == optarg || v < 1 || v > 1000000) {
				complain(
					"--timeout %s: not a number of seconds",
					optarg);
				return EXIT_USAGE;
			}
			s->timeout_ms = v * 1000;
			break;
		case 'S': s->stats = true; break;
		case 'h': fputs(help, stdout); return -1;
		case ':':
			complain("%s: a value is missing; "
				 "husk run --help lists the options",
				 argv[optind - 1]);
			return EXIT_USAGE;
		default:
			complain("%s: no such option; "
				 "husk run --help lists them",
				 argv[optind - 1]);
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		complain("%s: not an option; husk run --help lists them",
			 argv[optind]);
		return EXIT_USAGE;
	}
	if (add_nets(s->cfg, has_net, forward, nforwards))
		return EXIT_USAGE;
	if (engine)
		vm_config_set_engine(s->cfg, engine);
	if (!vm_config_kernel(s->cfg)) {
		if (use_demo(s->cfg)) {
			complain("no --kernel, and no demo guest: "
				 "./dev run makes one");
			return EXIT_USAGE;
		}
		if (!cmdline)
			cmdline = "console=ttyS0 quiet";
	}
	vm_config_set_cmdline(s->cfg, cmdline ? cmdline : "console=ttyS0");
	return 0;
}

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void problem(void *opaque, const char *text)
{
	complain("%s", text);
}

/* Without waiting for the guest or for who reads its output. */
static int cut_off(struct session *s, struct vm *vm, int status)
{
	serial_cut(&s->serial);
	vm_stop(vm);
	terminal_restore();
	return status;
}

static int ended_by(struct session *s, struct vm *vm, int sig)
{
	s->signal = sig;
	cut_off(s, vm, 0);
	complain("ended by SIG%s", sigabbrev_np(sig));
	return EXIT_FAULT;
}

/* 0: the machine goes on. */
static int take_signal(struct session *s, struct vm *vm, int sigs)
{
	struct signalfd_siginfo info;

	if (read(sigs, &info, sizeof(info)) != sizeof(info))
		return 0;
	if (info.ssi_signo != SIGCONT)
		return ended_by(s, vm, (int)info.ssi_signo);
	/* The shell has had the terminal meanwhile. */
	if (s->serial.terminal)
		terminal_raw();
	return 0;
}

/* Output fails.  0: the machine goes on without. */
static int lost_output(struct session *s, struct vm *vm, int error)
{
	const char *what = s->serial.out == 1 ? "standard output" : s->where;

	s->serial.out = -1;
	if (error == EPIPE) {
		cut_off(s, vm, 0);
		complain("%s: nobody reads it any more", what);
		return EXIT_FAULT;
	}
	complain("%s: %s; further output is lost", what, strerror(error));
	return 0;
}

/* One machine from start to end.  -1: again, else the exit status. */
static int live(struct session *s, struct vm *vm, int sigs)
{
	long end = s->timeout_ms < 0 ? -1 : now_ms() + s->timeout_ms;
	struct serial *serial = &s->serial;
	struct vm_stopped st;
	int ret = 0;

	for (;;) {
		struct pollfd f[] = {
			{ .fd = vm_event_fd(vm), .events = POLLIN },
			{ .fd = sigs, .events = POLLIN },
			{ .fd = serial->wake, .events = POLLIN },
			{ .fd = serial_in(serial), .events = POLLIN },
		};
		long left = end < 0 ? -1 : end - now_ms();
		long quiet = serial_wait(serial);

		if (end >= 0 && left <= 0) {
			cut_off(s, vm, 0);
			complain("timeout after %ld s", s->timeout_ms / 1000);
			return EXIT_TIMEOUT;
		}
		if (quiet >= 0 && (left < 0 || left > quiet))
			left = quiet;
		if (poll(f, 4, (int)left) < 0 && errno != EINTR)
			return cut_off(s, vm, EXIT_FAULT);
		if (vm_next_event(vm, &st))
			break;
		if (f[1].revents)
			ret = take_signal(s, vm, sigs);
		if (!ret && f[2].revents && atomic_load(&serial->error) &&
		    serial->out >= 0)
			ret = lost_output(s, vm, atomic_load(&serial->error));
		if (!ret && f[3].revents && serial_read(serial))
			ret = ended_by(s, vm, SIGHUP);
		if (ret)
			return ret;
		if (serial->escape.quit)
			return cut_off(s, vm, 0);
		serial_push(serial, vm);
	}
	terminal_restore();
	switch (st.reason) {
	case VM_STOP_RESET: return st.again ? -1 : 0;
	case VM_STOP_POWEROFF:
	case VM_STOP_STOPPED: return 0;
	case VM_STOP_EXIT: return st.code & 0xff;
	case VM_STOP_DIED:
		complain("the guest died: %s", st.text);
		return EXIT_DIED;
	default: complain("%s", st.text); return EXIT_FAULT;
	}
}

/* -ENOMEM and -EIO are the host's; everything else can be asked for better. */
static int failed(int ret, const struct husk_error *err)
{
	complain("%s", err->text);
	return ret == -ENOMEM || ret == -EIO ? EXIT_FAULT : EXIT_USAGE;
}

static void print_stats(struct vm *vm)
{
	static const char *const exits[HV_EXIT_COUNT] = {
		[HV_EXIT_MMIO] = "mmio",
		[HV_EXIT_PIO] = "pio",
		[HV_EXIT_MSR] = "msr",
		[HV_EXIT_EOI] = "eoi",
		[HV_EXIT_IRQ_WINDOW] = "irq-window",
		[HV_EXIT_KICKED] = "kicked",
	};
	struct hv_stats st;

	for (unsigned n = 0; !vm_cpu_stats(vm, n, &st); n++) {
		fprintf(stderr, "cpu%u: %.3f s, exits:", n,
			(double)st.exec_ns / 1e9);
		for (unsigned e = 0; e < HV_EXIT_COUNT; e++)
			if (exits[e] && st.exits[e])
				fprintf(stderr, " %s %llu", exits[e],
					(unsigned long long)st.exits[e]);
		fprintf(stderr,
			"\n  interrupts %llu, TLB misses %llu, slow accesses "
			"%llu, code writes %llu\n  decoded blocks %llu, "
			"translations %llu, code flushes %llu, interpreted "
			"%llu\n",
			(unsigned long long)st.interrupts,
			(unsigned long long)st.tlb_misses,
			(unsigned long long)st.slow_accesses,
			(unsigned long long)st.code_writes,
			(unsigned long long)st.blocks_decoded,
			(unsigned long long)st.translations,
			(unsigned long long)st.code_flushes,
			(unsigned long long)st.interpreted);
		for (unsigned i = 0; i < sizeof(st.punts) / sizeof(st.punts[0]);
		     i++)
			if (*st.punts[i].name)
				fprintf(stderr, "  %s %llu\n", st.punts[i].name,
					(unsigned long long)st.punts[i].count);
	}
}

static int boot(struct session *s, const sigset_t *set, int sigs, bool first)
{
	struct husk_error err = { 0 };
	struct vm *vm;
	int ret;

	ret = vm_create(s->cfg, &vm, &err);
	if (ret)
		return failed(ret, &err);
	/* Not earlier: a file is only made for a machine that can start. */
	if (first) {
		ret = serial_open(&s->serial, s->where);
		if (ret) {
			vm_destroy(vm);
			return ret;
		}
		if (*vm_engine_reason(vm))
			complain("engine %s: %s", vm_engine(vm),
				 vm_engine_reason(vm));
	}
	if (s->serial.terminal)
		terminal_raw();
	ret = vm_start(vm, &err);
	if (ret) {
		terminal_restore();
		complain("%s", err.text);
		ret = EXIT_FAULT;
	} else {
		ret = live(s, vm, sigs);
	}
	terminal_restore();
	if (s->stats)
		print_stats(vm);
	/* The last output may wait for its reader: let a signal end that. */
	sigprocmask(SIG_UNBLOCK, set, NULL);
	vm_destroy(vm);
	sigprocmask(SIG_BLOCK, set, NULL);
	return ret;
}

static int run(struct session *s)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCONT };
	sigset_t set;
	int ret, sigs;

	/* Blocked before any thread starts, so that they come to the loop. */
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		sigaddset(&set, ends[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigs = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	ret = boot(s, &set, sigs, true);
	while (ret < 0)
		ret = boot(s, &set, sigs, false);
	close(sigs);
	serial_close(&s->serial);
	if (s->signal) {
		/* So that who started us sees what ended us. */
		signal(s->signal, SIG_DFL);
		raise(s->signal);
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	}
	return ret;
}

int cmd_run(int argc, char **argv)
{
	struct session s = {
		.timeout_ms = -1,
		.where = "stdio",
		.serial = { .in = -1,
			    .out = -1,
			    .other = -1,
			    .wake = -1,
			    .cut = -1 },
	};
	int ret;

	s.cfg = vm_config_create();
	if (!s.cfg) {
		complain("out of memory");
		return EXIT_FAULT;
	}
	ret = parse(&s, argc, argv);
	if (ret) {
		vm_config_destroy(s.cfg);
		return ret < 0 ? 0 : ret;
	}
	vm_config_set_output(s.cfg, VM_SERIAL, serial_output, &s.serial);
	vm_config_set_room(s.cfg, VM_SERIAL, serial_room, &s.serial);
	vm_config_set_log(s.cfg, log_line, NULL);
	if (vm_config_validate(s.cfg, problem, NULL))
		ret = EXIT_USAGE;
	else
		ret = run(&s);
	vm_config_destroy(s.cfg);
	return ret;
}
