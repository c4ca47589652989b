/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_console.c - the console's ports, and the host's ends of them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "mock/virtq_driver.h"
#include "vm/console/end.h"

enum { TO_GUEST = 2, FROM_GUEST = 3 };
enum { DEVICE_READY, ADD, REMOVE, READY, CONSOLE, RESIZE, OPEN, NAME };
enum { F_SIZE = 1, F_MULTIPORT = 2 };
enum { BUFS = MOCK_DATA + 0x10000 }; /* for control messages, 64 bytes each */

static struct mock m;
static struct loop *loop;

/* -- a program that reads slowly ------------------------------------------ */

static pthread_mutex_t ears = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t listen_now = PTHREAD_COND_INITIALIZER;
static char heard[1 << 20];
static size_t heard_len;
static bool deaf;

static void hear(void *opaque, const void *data, size_t len)
{
	pthread_mutex_lock(&ears);
	while (deaf)
		pthread_cond_wait(&listen_now, &ears);
	memcpy(heard + heard_len, data, len);
	heard_len += len;
	pthread_mutex_unlock(&ears);
}

static void set_deaf(bool on)
{
	pthread_mutex_lock(&ears);
	deaf = on;
	pthread_cond_broadcast(&listen_now);
	pthread_mutex_unlock(&ears);
}

static void wait_heard(size_t n)
{
	size_t have;

	do {
		usleep(1000);
		pthread_mutex_lock(&ears);
		have = heard_len;
		pthread_mutex_unlock(&ears);
	} while (have < n);
	assert_int_equal(have, n);
}

static struct end *open_end(enum end_kind kind, const char *path)
{
	struct end_config cfg = {
		.kind = kind, .path = path, .output = hear, .loop = loop
	};
	struct end *e = end_open(&cfg, NULL);

	assert_non_null(e);
	return e;
}

static int setup(void **state)
{
	heard_len = 0;
	deaf = false;
	return loop_create(&loop) || loop_start(loop);
}

static int teardown(void **state)
{
	loop_destroy(loop);
	return 0;
}

/* -- a driver with ports -------------------------------------------------- */

struct message {
	uint32_t port;
	uint16_t event, value;
	char rest[56];
};

static unsigned seen; /* of the device's messages */

static void give_buffers(void)
{
	for (unsigned i = 0; i < MOCK_QSIZE; i++) {
		mock_desc(&m, TO_GUEST, i, BUFS + 64 * i, 64, DESC_WRITE, 0);
		mock_post(&m, TO_GUEST, (uint16_t)i);
	}
	seen = 0;
}

/* The next message of the device; its buffer is given again. */
static struct message next(void)
{
	const uint8_t *used =
		m.mem.bytes + MOCK_USED + (size_t)TO_GUEST * MOCK_STEP + 4;
	struct message msg = { 0 };
	uint32_t elem[2];

	while (mock_used(&m, TO_GUEST) == (uint16_t)seen)
		usleep(1000);
	memcpy(elem, used + 8ul * (seen % MOCK_QSIZE), 8);
	seen++;
	assert_true(elem[1] <= 64);
	memcpy(&msg, m.mem.bytes + BUFS + 64 * elem[0], elem[1]);
	mock_post(&m, TO_GUEST, (uint16_t)elem[0]);
	return msg;
}

static void expect(uint32_t port, uint16_t event, uint16_t value)
{
	struct message msg = next();

	assert_int_equal(msg.port, port);
	assert_int_equal(msg.event, event);
	assert_int_equal(msg.value, value);
}

static void tell(uint32_t port, uint16_t event, uint16_t value)
{
	struct message msg = { port, event, value, "" };
	uint16_t before = mock_used(&m, FROM_GUEST);

	memcpy(m.mem.bytes + MOCK_DATA, &msg, 8);
	mock_desc(&m, FROM_GUEST, 0, MOCK_DATA, 8, 0, 0);
	mock_post(&m, FROM_GUEST, 0);
	assert_true(mock_wait(&m, FROM_GUEST, before + 1));
}

static void post_output(unsigned q, const char *text, size_t len)
{
	memcpy(m.mem.bytes + MOCK_DATA + 0x1000, text, len);
	mock_desc(&m, q, 0, MOCK_DATA + 0x1000, (uint32_t)len, 0, 0);
	mock_post(&m, q, 0);
}

static void post_input(unsigned q)
{
	mock_desc(&m, q, 0, MOCK_DATA + 0x8000, 64, DESC_WRITE, 0);
	mock_post(&m, q, 0);
}

static void one_port_talks(void **state)
{
	struct virtio_console_arg arg = {
		.port = { { .end = open_end(END_CALL, NULL) } }, .nports = 1
	};

	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, F_SIZE);
	post_output(1, "hello", 5);
	assert_true(mock_wait(&m, 1, 1));
	wait_heard(5);
	assert_memory_equal(heard, "hello", 5);
	post_input(0);
	assert_int_equal(virtio_console_input(m.dev, "abc", 3), 3);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(mock_used_len(&m, 0, 0), 3);
	assert_memory_equal(m.mem.bytes + MOCK_DATA + 0x8000, "abc", 3);
	virtio_console_resize(m.dev, 132, 43);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE, 4), 43 << 16 | 132);
	mock_destroy(&m);
	end_close(arg.port[0].end);
}

static int connect_to(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (void *)&a, sizeof(a)), 0);
	return fd;
}

static char dir[] = "/tmp/test_console.XXXXXX", path[64];

static void ports_have_names(void **state)
{
	struct virtio_console_arg arg = { .nports = 3 };
	struct message msg;
	char buf[16];
	int fd;

	arg.port[0].end = open_end(END_CALL, NULL);
	arg.port[0].console = true;
	arg.port[1].end = open_end(END_LISTEN, path);
	arg.port[1].name = "org.example.one";
	arg.port[2].end = open_end(END_NULL, NULL);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 4, 4), 3);
	mock_start(&m, F_SIZE | F_MULTIPORT);
	give_buffers();
	tell(0, DEVICE_READY, 1);
	for (unsigned i = 0; i < 3; i++)
		expect(i, ADD, 1);
	tell(0, READY, 1);
	expect(0, CONSOLE, 1);
	msg = next();
	assert_int_equal(msg.event, RESIZE);
	assert_memory_equal(msg.rest, "\x50\0\x19\0", 4); /* 80, 25 */
	expect(0, OPEN, 1);
	tell(1, READY, 1);
	msg = next();
	assert_int_equal(msg.event, NAME);
	assert_string_equal(msg.rest, "org.example.one");
	expect(1, OPEN, 0);
	tell(2, READY, 1);
	expect(2, OPEN, 1);
	/* Strange ones. */
	tell(3, READY, 1);
	tell(UINT32_MAX, OPEN, 1);
	tell(1, 77, 1);
	tell(1, READY, 0);
	/* Somebody comes; what he says waits until the port is open. */
	fd = connect_to(path);
	expect(1, OPEN, 1);
	assert_int_equal(write(fd, "question", 8), 8);
	post_input(4);
	usleep(20000);
	assert_int_equal(mock_used(&m, 4), 0);
	tell(1, OPEN, 1);
	assert_true(mock_wait(&m, 4, 1));
	assert_memory_equal(m.mem.bytes + MOCK_DATA + 0x8000, "question", 8);
	post_output(5, "answer", 6);
	assert_int_equal(read(fd, buf, sizeof(buf)), 6);
	assert_memory_equal(buf, "answer", 6);
	close(fd);
	expect(1, OPEN, 0);
	/* What nobody hears is lost. */
	post_output(5, "hello?", 6);
	assert_true(mock_wait(&m, 5, 2));
	virtio_console_resize(m.dev, 100, 30);
	expect(0, RESIZE, 1);
	mock_destroy(&m);
	for (unsigned i = 0; i < 3; i++)
		end_close(arg.port[i].end);
	assert_int_equal(access(path, F_OK), -1);
}

/* The request stays in the queue; other ports and the device go on. */
static void slow_reader_holds_one_port(void **state)
{
	struct virtio_console_arg arg = { .nports = 2 };
	enum { PART = 0x1000 };
	static char text[PART];
	unsigned n = 0;

	arg.port[0].end = open_end(END_CALL, NULL);
	arg.port[0].console = true;
	arg.port[1].end = open_end(END_NULL, NULL);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, F_MULTIPORT);
	set_deaf(true);
	for (unsigned i = 0; i < 6; i++) {
		memset(text, 'a' + (int)i, sizeof(text));
		memcpy(m.mem.bytes + MOCK_DATA + 0x1000 + (size_t)i * PART,
		       text, PART);
		mock_desc(&m, 1, i, MOCK_DATA + 0x1000 + i * PART, PART, 0, 0);
		mock_post(&m, 1, (uint16_t)i);
	}
	while (mock_used(&m, 1) < 2)
		usleep(1000);
	usleep(20000);
	assert_true(mock_used(&m, 1) < 6);
	post_output(5, "x", 1);
	assert_true(mock_wait(&m, 5, 1));
	virtio_pause(m.dev); /* at once */
	virtio_resume(m.dev);
	set_deaf(false);
	assert_true(mock_wait(&m, 1, 6));
	wait_heard(6ul * PART);
	for (unsigned i = 0; i < 6; i++)
		for (unsigned k = 0; k < PART; k++)
			n += heard[i * PART + k] == 'a' + (int)i;
	assert_int_equal(n, 6 * PART);
	mock_destroy(&m);
	end_close(arg.port[0].end);
	end_close(arg.port[1].end);
}

/* Both directions of a socket, slower than who writes. */
static void socket_waits(void **state)
{
	struct virtio_console_arg arg = { .nports = 1 };
	static char in[200000];
	size_t got = 0, sent = 0;
	unsigned posted = 1;
	int fd;

	arg.port[0].end = open_end(END_LISTEN, path);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, 0);
	fd = connect_to(path);
	while (!end_connected(arg.port[0].end))
		usleep(1000);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = (char)(i * 7 % 251);
	/* More than the port and the socket hold. */
	post_input(0);
	while (got < sizeof(in)) {
		ssize_t n = sent < sizeof(in)
				    ? write(fd, in + sent, sizeof(in) - sent)
				    : 0;

		if (n > 0)
			sent += (size_t)n;
		if (sent == sizeof(in) && fd >= 0) {
			close(fd); /* what was said before counts */
			fd = -1;
		}
		if (mock_used(&m, 0) != (uint16_t)posted) {
			usleep(100);
			continue;
		}
		n = mock_used_len(&m, 0, (posted - 1) % MOCK_QSIZE);
		assert_memory_equal(m.mem.bytes + MOCK_DATA + 0x8000, in + got,
				    n);
		got += (size_t)n;
		posted++;
		post_input(0);
	}
	/* Another one comes, and does not read. */
	fd = connect_to(path);
	while (!end_connected(arg.port[0].end))
		usleep(1000);
	memcpy(m.mem.bytes + MOCK_DATA + 0x10000, in, 0x20000);
	for (unsigned i = 0; i < 7; i++) {
		mock_desc(&m, 1, i, MOCK_DATA + 0x10000, 0x20000, 0, 0);
		mock_post(&m, 1, (uint16_t)i);
	}
	usleep(50000);
	assert_true(mock_used(&m, 1) < 7);
	for (got = 0; got < 7 * 0x20000;) {
		char buf[4096];
		ssize_t n = read(fd, buf, sizeof(buf));

		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++, got++)
			assert_int_equal(buf[i], in[got % 0x20000]);
	}
	close(fd);
	mock_destroy(&m);
	end_close(arg.port[0].end);
}

static void file_and_terminal(void **state)
{
	struct virtio_console_arg arg = { .nports = 1 };
	char file[80], buf[16] = "";
	int fd;

	snprintf(file, sizeof(file), "%s/file", dir);
	arg.port[0].end = open_end(END_FILE, file);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, 0);
	post_output(1, "log line\n", 9);
	assert_true(mock_wait(&m, 1, 1));
	fd = open(file, O_RDONLY);
	assert_int_equal(read(fd, buf, sizeof(buf)), 9);
	assert_memory_equal(buf, "log line\n", 9);
	close(fd);
	unlink(file);
	mock_destroy(&m);
	end_close(arg.port[0].end);
	/* Nobody has the other side of this one open: all of it is lost. */
	arg.port[0].end = open_end(END_PTY, NULL);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, 0);
	for (unsigned i = 0; i < 200; i++) {
		post_output(1, heard, 1000);
		assert_true(mock_wait(&m, 1, (uint16_t)(i + 1)));
	}
	mock_destroy(&m);
	end_close(arg.port[0].end);
}

static void bad_ends_are_sentences(void **state)
{
	struct end_config cfg = { .loop = loop };
	struct husk_error err = { 0 };
	char longer[300];

	cfg.kind = END_CONNECT;
	cfg.path = path;
	assert_null(end_open(&cfg, &err));
	assert_non_null(strstr(err.text, "No such file"));
	memset(longer, 'x', sizeof(longer));
	longer[sizeof(longer) - 1] = 0;
	cfg.path = longer;
	assert_null(end_open(&cfg, &err));
	assert_non_null(strstr(err.text, "at most"));
	cfg.kind = END_FILE;
	cfg.path = "/";
	assert_null(end_open(&cfg, &err));
}

static void state_round_trip(void **state)
{
	struct virtio_console_arg arg = { .nports = 2 };
	struct state *w, *r;
	const void *data;
	size_t len;

	arg.port[0].end = open_end(END_CALL, NULL);
	arg.port[0].console = true;
	arg.port[1].name = "two";
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, F_MULTIPORT);
	set_deaf(true);
	memset(m.mem.bytes + MOCK_DATA + 0x1000, 'z', 0x5000);
	mock_desc(&m, 1, 0, MOCK_DATA + 0x1000, 0x5000, 0, 0);
	mock_post(&m, 1, 0);
	tell(1, READY, 1);
	assert_int_equal(virtio_console_input(m.dev, "typed", 5), 5);
	usleep(20000);
	virtio_pause(m.dev);
	w = state_writer(2);
	m.dev->class->state(m.dev, w);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);
	virtio_reset(m.dev);
	r = state_reader(data, len, 2);
	m.dev->class->state(m.dev, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(m.dev->class->check(m.dev), 0);
	set_deaf(false);
	virtio_resume(m.dev);
	assert_true(mock_wait(&m, 1, 1));
	wait_heard(0x5000);
	give_buffers();
	assert_int_equal(next().event, NAME);
	expect(1, OPEN, 1);
	tell(0, OPEN, 1);
	post_input(0);
	assert_true(mock_wait(&m, 0, 1));
	assert_memory_equal(m.mem.bytes + MOCK_DATA + 0x8000, "typed", 5);
	virtio_pause(m.dev);
	m.v->config[4] = 7;
	assert_int_not_equal(m.dev->class->check(m.dev), 0);
	assert_int_equal(m.v->config[4], 2);
	state_free(r);
	state_free(w);
	mock_destroy(&m);
	end_close(arg.port[0].end);
}

/* The guest's end: its last bytes reach a slow reader, but do not wait long. */
static void last_bytes_arrive(void **state)
{
	struct virtio_console_arg arg = { .nports = 1 };
	static char data[0x8000], got[1 << 20];
	size_t have = 0;
	ssize_t n;
	int fd;

	arg.port[0].end = open_end(END_LISTEN, path);
	fd = connect_to(path);
	while (!end_connected(arg.port[0].end))
		usleep(1000);
	assert_true(mock_create(&m, &virtio_console_class, &arg));
	mock_start(&m, F_SIZE);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (char)(i * 7 >> 8);
	memcpy(m.mem.bytes + MOCK_DATA + 0x1000, data, sizeof(data));
	/* No doorbell: the machine ended before it was heard. */
	for (unsigned i = 0; i < 3; i++) {
		mock_desc(&m, 1, i, MOCK_DATA + 0x1000, sizeof(data), 0, 0);
		mock_offer(&m, 1, (uint16_t)i);
	}
	virtio_console_drain(m.dev, 20000000000);
	assert_int_equal(mock_used(&m, 1), 3);
	while (have < 3 * sizeof(data)) {
		n = read(fd, got + have, sizeof(got) - have);
		assert_true(n > 0);
		have += (size_t)n;
	}
	assert_memory_equal(got + 2 * sizeof(data), data, sizeof(data));
	/* A reader that sleeps: more than a socket holds. */
	for (unsigned i = 0; i < 40 && mock_used(&m, 1) == 3 + i; i++) {
		mock_desc(&m, 1, 0, MOCK_DATA + 0x1000, sizeof(data), 0, 0);
		mock_offer(&m, 1, 0);
		virtio_console_drain(m.dev, 1000000);
	}
	assert_true(mock_used(&m, 1) < 43);
	close(fd);
	mock_destroy(&m);
	end_close(arg.port[0].end);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(one_port_talks),    T(ports_have_names),
		T(socket_waits),      T(slow_reader_holds_one_port),
		T(file_and_terminal), T(bad_ends_are_sentences),
		T(state_round_trip),  T(last_bytes_arrive),
	};
	int ret;

	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/socket", dir);
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return ret;
}
