/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sockets.c - a program that embeds a machine and speaks with its guest
 *
 * sockets KERNEL INITRD CMDLINE [ROUNDS]
 *
 * Uses vm_vsock_listen() and vm_vsock_connect(), and restores the socket
 * device under the running guest, ROUNDS times: what was open ends, and what
 * begins right after works.  The guest runs "sock" (sock.c) as server on port
 * 5000, and again and again as client of port 6000.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/state.h"
#include "vm/machine.h"
#include "vm/virtio.h"

static struct vm *vm;
static unsigned served, ended;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	_exit(1);
}

static void output(void *opaque, const void *data, size_t len)
{
	if (write(2, data, len) < 0)
		errno = 0;
}

static void log_line(void *opaque, const char *text)
{
	printf("log: %s\n", text);
}

/* -- the guest comes to us ------------------------------------------------ */

static void *echo(void *arg)
{
	int fd = (int)(intptr_t)arg;
	bool first = true;
	char buf[4096];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0) {
		size_t skip = 0;

		/* "e": that it wants an echo; "k": it has got it. */
		if (first && buf[0] == 'e')
			skip = 1;
		first = false;
		if (buf[0] == 'k')
			__atomic_fetch_add(&served, 1, __ATOMIC_SEQ_CST);
		if (send(fd, buf + skip, (size_t)n - skip, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	__atomic_fetch_add(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void on_accept(void *opaque, int fd, uint32_t guest_port)
{
	pthread_t t;

	if (pthread_create(&t, NULL, echo, (void *)(intptr_t)fd))
		die("no thread");
	pthread_detach(t);
}

static void wait_for(const unsigned *what, unsigned n, const char *name)
{
	for (unsigned i = 0; i < 60000; i++) {
		if (__atomic_load_n(what, __ATOMIC_SEQ_CST) >= n)
			return;
		usleep(1000);
	}
	die("no %s %u", name, n);
}

/* -- we go to the guest --------------------------------------------------- */

static int dial(void)
{
	struct husk_error err = { 0 };
	int fd = vm_vsock_connect(vm, 5000, 20000, &err);

	if (fd < 0)
		die("port 5000: %s", err.text);
	return fd;
}

static void try_echo(int fd, unsigned i)
{
	char text[32], got[32] = "";
	size_t len, n = 0;

	snprintf(text, sizeof(text), "eround %u", i);
	len = strlen(text);
	if (send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len)
		die("send: %s", strerror(errno));
	while (n < len - 1) {
		struct pollfd p = { fd, POLLIN, 0 };
		ssize_t m;

		if (poll(&p, 1, 20000) != 1)
			die("round %u: no answer", i);
		m = recv(fd, got + n, len - 1 - n, 0);
		if (m <= 0)
			die("round %u: the connection ended", i);
		n += (size_t)m;
	}
	if (strcmp(got, text + 1) != 0)
		die("round %u: wrong answer", i);
}

/* What a restore of the whole machine does to this device. */
static void restore(void)
{
	struct dev *d = vm->vsock;
	struct state *w, *r;
	const void *data;
	size_t len;

	d->class->pause(d);
	w = state_writer(d->class->version);
	d->class->state(d, w);
	data = state_data(w, &len);
	r = state_reader(data, len, d->class->version);
	d->class->state(d, r);
	if (state_finish(w) || state_finish(r) || d->class->check(d))
		die("the state is refused");
	state_free(w);
	state_free(r);
	d->class->resume(d);
}

static void *stream(void *arg)
{
	static const char zeroes[65536] = "u";
	int fd = *(int *)arg;

	while (send(fd, zeroes, sizeof(zeroes), MSG_NOSIGNAL) > 0)
		;
	return NULL;
}

static void round_of(unsigned i)
{
	int open = dial(), busy = dial(), fd;
	struct pollfd p = { open, POLLIN, 0 };
	pthread_t t;
	char c;

	try_echo(open, i);
	pthread_create(&t, NULL, stream, &busy);
	usleep(i * 977 % 20000);
	restore();
	fd = dial();
	try_echo(fd, i);
	close(fd);
	if (poll(&p, 1, 20000) != 1 || recv(open, &c, 1, 0) > 0)
		die("round %u: it is still open", i);
	pthread_join(t, NULL);
	close(open);
	close(busy);
}

int main(int argc, char **argv)
{
	unsigned rounds = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 10;
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	struct vm_stopped end;

	if (argc < 4 || !cfg)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	vm_config_set_kernel(cfg, argv[1]);
	vm_config_set_initrd(cfg, argv[2]);
	vm_config_set_cmdline(cfg, argv[3]);
	vm_config_set_engine(cfg, "soft");
	vm_config_set_memory(cfg, 256 << 20);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	vm_config_set_log(cfg, log_line, NULL);
	if (vm_create(cfg, &vm, &err))
		die("%s", err.text);
	/* A machine that has no such device, yet. */
	if (vm_vsock_connect(vm, 1, 0, &err) != -ENODEV ||
	    vm_vsock_listen(vm, 1, on_accept, NULL) != -ENODEV)
		die("a device that should not be");
	vm_destroy(vm);
	if (vm_config_add_vsock(cfg, "cid=77", &err) ||
	    vm_create(cfg, &vm, &err))
		die("%s", err.text);
	vm_config_destroy(cfg);
	if (vm_vsock_listen(vm, 6000, on_accept, NULL) ||
	    vm_vsock_listen(vm, 6000, on_accept, NULL) != -EADDRINUSE)
		die("listen");
	if (vm_start(vm, &err))
		die("%s", err.text);
	if (vm_vsock_connect(vm, 5000, 1000, &err) != -ENOTCONN)
		die("a driver before there can be one");
	wait_for(&served, 1, "connection of the guest");
	if (vm_vsock_connect(vm, 5001, 20000, &err) != -ECONNREFUSED)
		die("not refused");
	for (unsigned i = 0; i < rounds; i++) {
		round_of(i);
		/* The guest's own ended, too, and it has come again. */
		wait_for(&ended, i + 1, "end");
		wait_for(&served, i + 2, "connection of the guest");
	}
	printf("restored %u times\n", rounds);
	/* The last word: the guest goes when it is refused. */
	if (vm_vsock_listen(vm, 6000, NULL, NULL))
		die("listen");
	restore();
	wait_for(&ended, rounds + 1, "end");
	if (vm_wait(vm, 60000, &end) || end.reason != VM_STOP_POWEROFF)
		die("no power off: %d %s", (int)end.reason, end.text);
	vm_destroy(vm);
	puts("over");
	return 0;
}
