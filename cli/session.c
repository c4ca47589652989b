/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c - a machine from its start to its end, and who uses it meanwhile
 *
 * One loop waits for the machine, for signals, for the terminal and for the
 * requests that come through the control socket.
 */
#include "cli.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "agent.h"
#include "control.h"
#include "rest.h"
#include "start.h"

static void log_line(void *opaque, const char *text)
{
	complain("%s", text);
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

static void tell_size(const struct session *s, struct vm *vm)
{
	struct winsize w;

	if (s->serial.terminal && s->serial.port == VM_CONSOLE &&
	    !ioctl(0, TIOCGWINSZ, &w) && w.ws_col && w.ws_row)
		vm_console_resize(vm, w.ws_col, w.ws_row);
}

static bool waits_for_space(const struct session *s, const struct vm *vm)
{
	unsigned disks = vm_config_disk_count(s->cfg), i = 0;

	while (i < disks && !vm_disk_waits(vm, i))
		i++;
	return i < disks;
}

/* On a thread of the machine. */
static void no_space(void *opaque, unsigned disk, const char *path)
{
	const struct session *s = opaque;
	const char *given = vm_config_disk_path(s->cfg, disk);

	if (s->name)
		complain("%s: no space: paused; make space and run husk resume "
			 "%s",
			 given ? given : path, s->name);
	else
		complain("%s: no space: paused; make space and run kill -CONT "
			 "%d",
			 given ? given : path, (int)getpid());
}

static void go_on(struct session *s, struct vm *vm)
{
	struct husk_error err = { 0 };

	if (!vm_is_paused(vm) || !waits_for_space(s, vm))
		return;
	if (vm_resume(vm, &err))
		complain("%s", err.text);
	else
		session_step_clock(s);
}

/* 0: the machine goes on. */
static int take_signal(struct session *s, struct vm *vm, int sigs)
{
	struct signalfd_siginfo info;

	if (read(sigs, &info, sizeof(info)) != sizeof(info))
		return 0;
	/* A host that shuts down gives a machine in the background time. */
	if (info.ssi_signo == SIGTERM && s->name && !s->asked) {
		s->asked = true;
		complain("SIGTERM: the guest is asked to shut down");
		vm_power_button(vm);
		return 0;
	}
	if (info.ssi_signo == SIGWINCH) {
		tell_size(s, vm);
		return 0;
	}
	if (info.ssi_signo != SIGCONT)
		return ended_by(s, vm, (int)info.ssi_signo);
	/* The shell has had the terminal meanwhile. */
	if (s->serial.terminal)
		terminal_raw();
	if (!s->name)
		go_on(s, vm);
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

	tell_size(s, vm);
	for (;;) {
		struct pollfd f[4 + REST_POLLS + CONTROL_POLLS] = {
			{ .fd = vm_event_fd(vm), .events = POLLIN },
			{ .fd = sigs, .events = POLLIN },
			{ .fd = serial->wake, .events = POLLIN },
			{ .fd = serial_in(serial), .events = POLLIN },
		};
		unsigned n = 0, first = 4;
		long left = end < 0 ? -1 : end - now_ms();
		long quiet = serial_wait(serial);

		if (end >= 0 && left <= 0) {
			cut_off(s, vm, 0);
			complain("timeout after %ld s", s->timeout_ms / 1000);
			return EXIT_TIMEOUT;
		}
		if (quiet >= 0 && (left < 0 || left > quiet))
			left = quiet;
		if (s->rest) {
			rest_polls(s->rest, f + first);
			first += REST_POLLS;
		}
		if (s->control)
			n = control_polls(s->control, f + first);
		if (poll(f, first + n, (int)left) < 0) {
			if (errno != EINTR)
				return cut_off(s, vm, EXIT_FAULT);
			continue;
		}
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
		if (s->rest)
			rest_handle(s->rest, f + 4, vm);
		if (s->control)
			control_handle(s->control, f + first, n, vm);
		if (serial->escape.quit || s->killed)
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
	case VM_STOP_PANICKED:
		complain("the guest died: %s", st.text);
		return EXIT_DIED;
	default: complain("%s", st.text); return EXIT_FAULT;
	}
}

/* -- the guest's clock ---------------------------------------------------- */

enum { AGENT_MS = 10000 };

struct news {
	char *path;
	struct identity identity;
};

static void *tell_guest(void *arg)
{
	struct husk_error ignored = { 0 };
	struct news *n = arg;
	const struct identity *id = &n->identity;
	int fd = agent_open(n->path, AGENT_MS, &ignored);

	if (fd >= 0) {
		agent_sync_time(fd, 1, NULL, &ignored);
		if (*id->name)
			agent_set_hostname(fd, id->name, &ignored);
		for (unsigned i = 0; i < id->nmacs; i++)
			agent_set_mac(fd, id->mac[i].from, id->mac[i].to,
				      &ignored);
		close(fd);
	}
	free(n->path);
	free(n);
	return NULL;
}

void session_step_clock(struct session *s)
{
	const char *path = vm_config_vsock_path(s->cfg);
	struct news *n = path ? calloc(1, sizeof(*n)) : NULL;
	pthread_attr_t attr;
	pthread_t thread;

	if (!n)
		return;
	n->path = strdup(path);
	n->identity = s->identity;
	/* Later it is the guest's own affair. */
	s->identity = (struct identity){ 0 };
	/* It waits for the guest, and nobody waits for it. */
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (!n->path || pthread_create(&thread, &attr, tell_guest, n)) {
		free(n->path);
		free(n);
	}
	pthread_attr_destroy(&attr);
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
		fprintf(stderr, "cpu%u: %.3f s, first at %.6f s, exits:", n,
			(double)st.exec_ns / 1e9, (double)st.first_ns / 1e9);
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

	ret = first && s->saved
		      ? vm_restore(s->saved, s->cfg, &s->restore, &vm, &err)
		      : vm_create(s->cfg, &vm, &err);
	/* It may have got new images for its disks. */
	if (!ret && first && s->saved && s->place && start_keep_disks(s)) {
		vm_destroy(vm);
		return EXIT_FAULT;
	}
	if (!ret && first && s->paused && vm_pause(vm, &err)) {
		vm_destroy(vm);
		ret = err.code;
	}
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
		if (first && s->saved && !s->paused)
			session_step_clock(s);
		if (first && s->ready)
			s->ready(s);
		ret = live(s, vm, sigs);
	}
	terminal_restore();
	if (s->control)
		control_end(s->control);
	if (s->stats)
		print_stats(vm);
	/* The last output may wait for its reader: let a signal end that. */
	sigprocmask(SIG_UNBLOCK, set, NULL);
	vm_destroy(vm);
	sigprocmask(SIG_BLOCK, set, NULL);
	return ret;
}

void session_init(struct session *s)
{
	*s = (struct session){
		.timeout_ms = -1,
		.where = "stdio",
		.serial = { .in = -1,
			    .out = -1,
			    .other = -1,
			    .wake = -1,
			    .cut = -1 },
	};
}

/* A guest may have thousands of sockets, and each is a descriptor of ours. */
static void allow_descriptors(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim))
		return;
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
}

static int run(struct session *s)
{
	static const int ends[] = { SIGINT,  SIGTERM, SIGHUP,
				    SIGQUIT, SIGCONT, SIGWINCH };
	sigset_t set;
	int ret, sigs;

	allow_descriptors();
	/* Blocked before any thread starts, so that they come to the loop. */
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		sigaddset(&set, ends[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigs = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	ret = boot(s, &set, sigs, true);
	for (; ret < 0; s->resets++)
		ret = boot(s, &set, sigs, false);
	close(sigs);
	rest_close(s->rest);
	s->rest = NULL;
	serial_close(&s->serial);
	if (s->signal && !s->name) {
		/* So that who started us sees what ended us. */
		signal(s->signal, SIG_DFL);
		raise(s->signal);
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	}
	return ret;
}

static void output(void *opaque, const void *data, size_t len)
{
	struct session *s = opaque;

	if (s->control)
		console_output(&s->control->console, data, len);
	serial_output(&s->serial, data, len);
}

int session_set_timeout(struct session *s, const char *arg)
{
	char *end;
	long v = strtol(arg, &end, 10);

	if (*end || end == arg || v < 1 || v > 1000000) {
		complain("--timeout %s: not a number of seconds", arg);
		return EXIT_USAGE;
	}
	s->timeout_ms = v * 1000;
	return 0;
}

int session_run(struct session *s)
{
	int ret;

	s->started_ms = now_ms();
	if (vm_config_console_is_stdio(s->cfg))
		s->serial.port = VM_CONSOLE;
	vm_config_set_output(s->cfg, s->serial.port, output, s);
	vm_config_set_room(s->cfg, s->serial.port, serial_room, &s->serial);
	vm_config_set_log(s->cfg, log_line, NULL);
	vm_config_set_no_space(s->cfg, no_space, s);
	if (vm_config_validate(s->cfg, problem, NULL))
		return EXIT_USAGE;
	ret = s->restful_uri ? rest_open(&s->rest, s, s->restful_uri) : 0;
	if (!ret)
		ret = run(s);
	return ret;
}
