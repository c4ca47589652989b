/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c - husk run: boots a kernel and lends it the terminal
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "husk/vm.h"

static const char help[] =
	"usage: husk run --kernel FILE [OPTION...]\n"
	"\n"
	"  --kernel FILE         bzImage, ELF vmlinux or Multiboot kernel\n"
	"  --initrd FILE         initial RAM disk\n"
	"  --cmdline TEXT        kernel command line (default: console=ttyS0)\n"
	"  --cpus N              vCPUs, 1 to 64 (default 1)\n"
	"  --memory SIZE         RAM, with K, M or G (default 512M)\n"
	"  --engine NAME         auto, kvm, soft or soft,interp (default auto)\n"
	"  --disk FILE[,readonly]  a raw image or block device; may be repeated\n"
	"  --device KIND,...     debug-exit, pc-testdev, virtio-rng, virtio-blk\n"
	"  --serial WHERE        stdio, a file, pty or none (default stdio)\n"
	"  --reboot exit|again   what a guest's reset does (default exit)\n"
	"  --timeout SECONDS     end the machine after this time\n"
	"\n"
	"Without --kernel the demo guest is booted, where it was built.\n"
	"Ctrl-A x ends the machine.  Exit status: 0 powered off, 1 a fault of Husk,\n"
	"2 usage, 3 the guest died, 124 timeout, else what a debug-exit device said.\n";

struct session {
	struct vm_config *cfg;
	long timeout_ms; /* -1: none */
	int in, out;	 /* -1: none */
	bool ended;	 /* standard input is at its end */
	struct escape escape;
	bool escapes;
};

static void output(void *opaque, const void *data, size_t len)
{
	struct session *s = opaque;
	const char *p = data;

	while (len && s->out >= 0) {
		ssize_t n = write(s->out, p, len);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd f = { .fd = s->out, .events = POLLOUT };

			poll(&f, 1, 1000);
			continue;
		}
		if (n < 0 && errno != EINTR)
			return; /* the reader is gone */
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
}

static void log_line(void *opaque, const char *text)
{
	complain("%s", text);
}

static int parse_size(const char *text, uint64_t *out)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || end == text || *text == '-')
		return -EINVAL;
	switch (*end) {
	case 'G':
	case 'g': v <<= 10; /* fall through */
	case 'M':
	case 'm': v <<= 10; /* fall through */
	case 'K':
	case 'k': v <<= 10; end++;
	}
	if (*end && strcmp(end, "iB"))
		return -EINVAL;
	*out = v;
	return 0;
}

static int add_disk(struct vm_config *cfg, const char *arg)
{
	const char *comma = strrchr(arg, ',');
	bool readonly = comma && !strcmp(comma, ",readonly");
	char *path =
		strndup(arg, readonly ? (size_t)(comma - arg) : strlen(arg));
	int ret = path ? vm_config_add_disk(cfg, path, readonly) : -ENOMEM;

	free(path);
	return ret;
}

static int open_serial(struct session *s, const char *where)
{
	char name[128];
	int slave;

	s->in = s->out = -1;
	if (!strcmp(where, "none"))
		return 0;
	if (!strcmp(where, "stdio")) {
		s->in = 0;
		s->out = 1;
		s->escapes = isatty(0);
		return 0;
	}
	if (!strcmp(where, "pty")) {
		if (openpty(&s->in, &slave, name, NULL, NULL))
			return -errno;
		s->out = s->in;
		complain("serial port on %s", name);
		return 0;
	}
	s->out = open(where, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	return s->out < 0 ? -errno : 0;
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
		{ "kernel", 1, NULL, 'k' },
		{ "initrd", 1, NULL, 'i' },
		{ "cmdline", 1, NULL, 'c' },
		{ "cpus", 1, NULL, 'n' },
		{ "memory", 1, NULL, 'm' },
		{ "engine", 1, NULL, 'e' },
		{ "disk", 1, NULL, 'd' },
		{ "device", 1, NULL, 'D' },
		{ "serial", 1, NULL, 's' },
		{ "reboot", 1, NULL, 'r' },
		{ "timeout", 1, NULL, 't' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	const char *serial = "stdio", *engine = NULL;
	struct husk_error err = { 0 };
	uint64_t size = 512u << 20;
	char *end;
	long v;
	int c, ret;

	vm_config_set_cmdline(s->cfg, "console=ttyS0");
	vm_config_set_memory(s->cfg, size);
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'k': vm_config_set_kernel(s->cfg, optarg); break;
		case 'i': vm_config_set_initrd(s->cfg, optarg); break;
		case 'c': vm_config_set_cmdline(s->cfg, optarg); break;
		case 'e': engine = optarg; break;
		case 's': serial = optarg; break;
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
			if (add_disk(s->cfg, optarg)) {
				complain("--disk %s: too many disks", optarg);
				return EXIT_USAGE;
			}
			break;
		case 'D':
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
		case 'h': fputs(help, stdout); return -1;
		default: return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		complain("run: %s: not an option; --help lists them",
			 argv[optind]);
		return EXIT_USAGE;
	}
	if (engine)
		vm_config_set_engine(s->cfg, engine);
	if (!vm_config_kernel(s->cfg) && use_demo(s->cfg)) {
		complain("no --kernel, and no demo guest: ./dev run makes one");
		return EXIT_USAGE;
	}
	ret = open_serial(s, serial);
	if (ret) {
		complain("--serial %s: %s", serial, strerror(-ret));
		return EXIT_USAGE;
	}
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

/* All of it, or until the machine ends: a paste may be larger than its FIFO. */
static void type(struct vm *vm, const char *data, size_t len)
{
	struct vm_stopped st;

	while (len && !vm_next_event(vm, &st)) {
		size_t n = vm_console_write(vm, VM_SERIAL, data, len);

		data += n;
		len -= n;
		if (len)
			poll(NULL, 0, 2);
	}
}

/* One machine from start to end.  -1: again, else the exit status. */
static int live(struct session *s, struct vm *vm, int sigs)
{
	long end = s->timeout_ms < 0 ? -1 : now_ms() + s->timeout_ms;
	struct vm_stopped st;
	char buf[256];

	for (;;) {
		struct pollfd f[] = {
			{ .fd = vm_event_fd(vm), .events = POLLIN },
			{ .fd = sigs, .events = POLLIN },
			{ .fd = s->in, .events = POLLIN },
		};
		long left = end < 0 ? -1 : end - now_ms();

		if (end >= 0 && left <= 0) {
			vm_stop(vm);
			terminal_restore();
			complain("timeout after %ld s", s->timeout_ms / 1000);
			return EXIT_TIMEOUT;
		}
		/*
		 * End of input is an end of file for the guest's shell too;
		 * said again and again, as a shell that starts later throws
		 * away what was typed before.
		 */
		if (s->ended && (left < 0 || left > 1000))
			left = 1000;
		if (poll(f, 3, (int)left) < 0 && errno != EINTR)
			return EXIT_FAULT;
		if (s->ended && !f[0].revents)
			vm_console_write(vm, VM_SERIAL, "\004", 1);
		if (vm_next_event(vm, &st))
			break;
		if (f[1].revents) {
			vm_stop(vm);
			terminal_restore();
			complain("ended by a signal");
			return EXIT_FAULT;
		}
		if (f[2].revents) {
			ssize_t n = read(s->in, buf, sizeof(buf));
			size_t len;

			if (n <= 0) {
				s->ended = s->in == 0;
				s->in = -1;
				continue;
			}
			len = (size_t)n;
			if (s->escapes)
				len = terminal_filter(&s->escape, buf, len);
			type(vm, buf, len);
			if (s->escape.quit) {
				vm_stop(vm);
				return 0;
			}
		}
	}
	terminal_restore();
	switch (st.reason) {
	case VM_STOP_RESET: return st.again ? -1 : 0;
	case VM_STOP_POWEROFF:
	case VM_STOP_STOPPED: return 0;
	case VM_STOP_EXIT: return st.code & 0xff;
	case VM_STOP_DIED:
		complain("the guest died\n%s", st.text);
		return EXIT_DIED;
	default: complain("%s", st.text); return EXIT_FAULT;
	}
}

static int boot(struct session *s, int sigs, bool first)
{
	struct husk_error err = { 0 };
	struct vm *vm;
	int ret;

	ret = vm_create(s->cfg, &vm, &err);
	if (ret) {
		complain("%s", err.text);
		return ret == -ENOMEM || ret == -EIO ? EXIT_FAULT : EXIT_USAGE;
	}
	if (first && *vm_engine_reason(vm))
		complain("engine %s: %s", vm_engine(vm), vm_engine_reason(vm));
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
	vm_destroy(vm);
	return ret;
}

int cmd_run(int argc, char **argv)
{
	struct session s = { .timeout_ms = -1, .in = -1, .out = -1 };
	sigset_t set;
	int ret, sigs;

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
	vm_config_set_output(s.cfg, VM_SERIAL, output, &s);
	vm_config_set_log(s.cfg, log_line, NULL);
	if (vm_config_validate(s.cfg, problem, NULL)) {
		vm_config_destroy(s.cfg);
		return EXIT_USAGE;
	}
	/* Blocked before any thread starts, so that they come to the loop. */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigs = signalfd(-1, &set, SFD_CLOEXEC);
	ret = boot(&s, sigs, true);
	while (ret < 0)
		ret = boot(&s, sigs, false);
	close(sigs);
	vm_config_destroy(s.cfg);
	return ret;
}
