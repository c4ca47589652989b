/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_patterns.c - past vulnerabilities of others, by number
 *
 * docs/vulnerabilities.md says what the numbers are and where the rest is
 * tested.  Each is tried on every kind of device that can be made here.
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
#include <pthread.h>
#include <stdatomic.h>

#include "husk/vm.h"
#include "mock/virtq_driver.h"
#include "net/link.h"
#include "vm/block.h"
#include "vm/fs/fs.h"

/* Rings are away from what is requested. */
enum { BUF = MOCK_DATA, SIZE = 8 };
enum {
	C_DRIVER_FEATURE = 12,
	C_STATUS = 20,
	C_QUEUE_SELECT = 22,
	C_QUEUE_SIZE = 24,
	C_QUEUE_ENABLE = 28
};

static struct mock m;
static struct block *block;

static const struct virtio_class *const classes[] = {
	&virtio_rng_class,
	&virtio_blk_class,
	&virtio_console_class,
	&virtio_balloon_class,
};
enum { CLASSES = 4, RNG = 0, BLK = 1 };

static void create(unsigned i)
{
	struct virtio_blk_arg blk = { .queues = 2 };
	struct virtio_balloon_arg balloon = { .memory = MOCK_MEM,
					      .target = MOCK_MEM,
					      .reporting = true,
					      .hinting = true };
	const void *arg[CLASSES] = { NULL, &blk, NULL, &balloon };

	block = block_open_null(1 << 20, NULL);
	assert_non_null(block);
	blk.block = block;
	assert_true(mock_create(&m, classes[i], arg[i]));
}

static void destroy(void)
{
	mock_destroy(&m);
	block_close(block);
}

static uint64_t all_features(void)
{
	/* Ports of a console wait for the guest to open them. */
	return m.v->offered &
	       (m.v->class == &virtio_console_class ? ~BIT(1) : ~0ull);
}

/* The device does what it is for; only the first two are asked. */
static void expect_works(unsigned i)
{
	uint16_t used;

	assert_false(mock_status(&m) & STATUS_NEEDS_RESET);
	if (i > BLK)
		return;
	used = mock_used(&m, 0);
	memset(m.mem.bytes + BUF, 0, 64);
	if (i == BLK) { /* read a sector */
		mock_desc(&m, 0, 0, BUF, 16, DESC_NEXT, 1);
		mock_desc(&m, 0, 1, BUF + 512, 512, DESC_WRITE | DESC_NEXT, 2);
		mock_desc(&m, 0, 2, BUF + 16, 1, DESC_WRITE, 0);
	} else {
		mock_desc(&m, 0, 0, BUF, 16, DESC_WRITE, 0);
	}
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, used + 1));
}

/* What was posted breaks the device, with one line, and a reset mends it. */
static void expect_broken(unsigned i, unsigned q)
{
	uint16_t used = mock_used(&m, q);

	m.logs = m.nnews = 0;
	mock_post(&m, q, 0);
	assert_false(mock_wait(&m, q, used + 1));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	assert_int_equal(m.nnews, 1);
	assert_int_equal(m.news, VM_NEWS_BROKEN);
	for (unsigned k = 0; k < 5; k++)
		mock_post(&m, q, 0);
	usleep(2000);
	assert_true(m.logs <= 1); /* their rate is limited */
	mock_start(&m, all_features());
	expect_works(i);
}

/* -- 1: registers after DRIVER_OK ------------------------------------------ */

struct shape {
	uint16_t size;
	bool enabled;
	uint64_t desc, avail, used;
};

static struct shape shape_of(const struct virtq *q)
{
	return (struct shape){ q->size, q->enabled, q->desc, q->avail,
			       q->used };
}

static void write_everything(void)
{
	static const uint64_t values[] = {
		0, 1, 3, 0x7fff, 0x8000, 0xffff, UINT64_MAX, 0x123456789abcdef0
	};

	for (unsigned q = 0; q <= m.v->class->nqueues; q++)
		for (unsigned off = 0; off < 64; off++)
			for (unsigned k = 0; k < ARRAY_SIZE(values); k++)
				for (unsigned size = 1; size <= 8; size *= 2) {
					if (off == C_STATUS &&
					    !(uint8_t)values[k])
						continue; /* a reset */
					mock_common(&m, C_QUEUE_SELECT, q, 2);
					mock_common(&m, off, values[k], size);
				}
}

static void registers_stay(unsigned i)
{
	struct shape before[VIRTIO_MAX_QUEUES] = { 0 }, after;
	uint64_t accepted = m.v->accepted;

	for (unsigned q = 0; q < m.v->class->nqueues; q++)
		before[q] = shape_of(m.v->queue[q]);
	write_everything();
	for (unsigned q = 0; q < m.v->class->nqueues; q++) {
		after = shape_of(m.v->queue[q]);
		assert_int_equal(after.size, before[q].size);
		assert_int_equal(after.enabled, before[q].enabled);
		assert_int_equal(after.desc, before[q].desc);
		assert_int_equal(after.avail, before[q].avail);
		assert_int_equal(after.used, before[q].used);
	}
	assert_int_equal(m.v->accepted, accepted);
	expect_works(i);
}

static void pattern_01_registers_after_driver_ok(void **state)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		struct state *w, *r;
		const void *data;
		size_t len;

		create(i);
		mock_start(&m, all_features());
		registers_stay(i);
		/* After a reset that was none, too, and after a restore. */
		mock_common(&m, C_STATUS, 0x100, 2);
		mock_start(&m, all_features());
		registers_stay(i);
		m.dev->class->pause(m.dev);
		w = state_writer(m.dev->class->version);
		m.dev->class->state(m.dev, w);
		assert_int_equal(state_finish(w), 0);
		data = state_data(w, &len);
		m.dev->class->reset(m.dev);
		r = state_reader(data, len, m.dev->class->version);
		m.dev->class->state(m.dev, r);
		assert_int_equal(state_finish(r), 0);
		assert_int_equal(m.dev->class->check(m.dev), 0);
		registers_stay(RNG + CLASSES); /* while paused */
		m.dev->class->resume(m.dev);
		registers_stay(i);
		state_free(w);
		state_free(r);
		destroy();
	}
}

/* Before DRIVER_OK: sizes that are none, rings that are nowhere. */
static void pattern_01_bad_queues(void **state)
{
	static const uint64_t rings[] = { MOCK_MEM,   MOCK_MEM - 16,
					  UINT64_MAX, UINT64_MAX - 15,
					  1,	      0xfee00000 };

	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		for (unsigned n = 0; n < 0x10000; n += 37) {
			mock_common(&m, C_QUEUE_SIZE, n, 2);
			assert_true(m.v->queue[0]->size &&
				    m.v->queue[0]->size <= 1024);
		}
		for (unsigned k = 0; k < 3 * ARRAY_SIZE(rings); k++) {
			mock_common(&m, C_STATUS, 0, 1);
			mock_common(&m, C_STATUS, 3, 1);
			mock_common(&m, 8, 1, 4);
			mock_common(&m, C_DRIVER_FEATURE, 1, 4);
			mock_common(&m, C_STATUS, 11, 1);
			mock_common(&m, 32 + 8 * (k % 3), rings[k / 3], 8);
			mock_common(&m, C_QUEUE_ENABLE, 1, 2);
			mock_common(&m, C_STATUS, 15, 1);
			assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
		}
		mock_start(&m, all_features());
		expect_works(i);
		destroy();
	}
}

/* -- 2: bounds of descriptors ---------------------------------------------- */

static void pattern_02_descriptor_bounds(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{ MOCK_MEM - 8, 16 },	{ MOCK_MEM, 1 },
		{ MOCK_MEM - 1, 2 },	{ UINT64_MAX, 1 },
		{ UINT64_MAX - 7, 16 }, { BUF, UINT32_MAX },
		{ BUF, MOCK_MEM },	{ UINT64_MAX - 0xfff, 0x2000 },
	};

	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		mock_start(&m, all_features());
		for (unsigned k = 0; k < 2 * ARRAY_SIZE(bad); k++) {
			mock_desc(&m, 0, 0, bad[k / 2].addr, bad[k / 2].len,
				  k & 1 ? DESC_WRITE : 0, 0);
			/* Without input a console takes no buffer. */
			if (classes[i] == &virtio_console_class)
				virtio_console_input(m.dev, "x", 1);
			expect_broken(i, 0);
		}
		destroy();
	}
	/* A header that is too short, and one in pieces, which is fine. */
	create(BLK);
	mock_start(&m, 0);
	for (unsigned n = 0; n < 16; n++) {
		uint16_t used = mock_used(&m, 0);

		mock_desc(&m, 0, 0, BUF, n, DESC_NEXT, 1);
		mock_desc(&m, 0, 1, BUF + 64, 1, DESC_WRITE, 0);
		mock_post(&m, 0, 0);
		if (!mock_wait(&m, 0, used + 1))
			mock_start(&m, 0);
	}
	mock_start(&m, 0);
	memset(m.mem.bytes + BUF, 0, 16);
	m.mem.bytes[BUF + 64] = 9;
	mock_desc(&m, 0, 0, BUF, 7, DESC_NEXT, 1);
	mock_desc(&m, 0, 1, BUF + 7, 9, DESC_NEXT, 2);
	mock_desc(&m, 0, 2, BUF + 512, 512, DESC_WRITE | DESC_NEXT, 3);
	mock_desc(&m, 0, 3, BUF + 64, 1, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(m.mem.bytes[BUF + 64], 0);
	destroy();
}

/* -- 3: queue numbers ------------------------------------------------------- */

static void pattern_03_queue_numbers(void **state)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		unsigned n;

		create(i);
		mock_start(&m, all_features());
		n = m.v->class->nqueues;
		for (unsigned q = 0; q < 0x10000; q++) {
			mock_common(&m, C_QUEUE_SELECT, q, 2);
			if (q < n)
				continue;
			assert_int_equal(
				virtio_pci_read(m.v, VPCI_COMMON + C_QUEUE_SIZE,
						2),
				0);
			mock_common(&m, C_QUEUE_SIZE, 8, 2);
			mock_common(&m, C_QUEUE_ENABLE, 1, 2);
		}
		for (unsigned off = 0; off < 0x1000; off++) {
			virtio_pci_write(m.v, VPCI_NOTIFY + off, UINT64_MAX, 2);
			virtio_pci_write(m.v, VPCI_NOTIFY + off, off, 8);
		}
		expect_works(i);
		destroy();
	}
}

/* -- 4: work without an end -------------------------------------------------- */

static void indirect(uint64_t at, unsigned i, uint64_t addr, uint32_t len,
		     uint16_t flags, uint16_t next)
{
	struct virtq_desc d = { addr, len, flags, next };

	memcpy(m.mem.bytes + at + 16ul * i, &d, 16);
}

static void pattern_04_chains_without_end(void **state)
{
	const uint64_t table = BUF + 0x10000;

	for (unsigned i = 0; i < 2; i++) {
		create(i);
		mock_start(&m, all_features());
		/* Loops of one and of all descriptors. */
		mock_desc(&m, 0, 0, BUF, 1, DESC_NEXT, 0);
		expect_broken(i, 0);
		for (unsigned k = 0; k < SIZE; k++)
			mock_desc(&m, 0, k, BUF, 1, DESC_NEXT, (k + 1) % SIZE);
		expect_broken(i, 0);
		/* A next that is not in the table. */
		mock_desc(&m, 0, 0, BUF, 1, DESC_NEXT, SIZE);
		expect_broken(i, 0);
		mock_desc(&m, 0, 0, BUF, 1, DESC_NEXT, 0xffff);
		expect_broken(i, 0);
		/* Indirect in indirect, to itself, with a loop, too long. */
		indirect(table, 0, table, 16, DESC_INDIRECT, 0);
		mock_desc(&m, 0, 0, table, 16, DESC_INDIRECT, 0);
		expect_broken(i, 0);
		indirect(table, 0, BUF, 1, DESC_NEXT, 0);
		mock_desc(&m, 0, 0, table, 16, DESC_INDIRECT, 0);
		expect_broken(i, 0);
		for (unsigned k = 0; k < 2000; k++)
			indirect(table, k, BUF, 1, DESC_NEXT,
				 (uint16_t)(k + 1));
		mock_desc(&m, 0, 0, table, 2000 * 16, DESC_INDIRECT, 0);
		expect_broken(i, 0);
		for (unsigned k = 0; k < 3; k++) { /* sizes that are none */
			static const uint32_t sizes[] = { 0, 15, 24 };

			mock_desc(&m, 0, 0, table, sizes[k], DESC_INDIRECT, 0);
			expect_broken(i, 0);
		}
		mock_desc(&m, 0, 0, table, 16, DESC_INDIRECT | DESC_NEXT, 1);
		expect_broken(i, 0);
		mock_desc(&m, 0, 0, MOCK_MEM - 16, 32, DESC_INDIRECT, 0);
		expect_broken(i, 0);
		destroy();
	}
}

/* One of each kind, and a queue whose requests are looked at at once. */
static const struct one_of {
	const struct virtio_class *class;
	unsigned queue;
	uint32_t len; /* of a good request, which is below */
} each[] = {
	{ &virtio_rng_class, 0, 0 },	 { &virtio_blk_class, 0, 0 },
	{ &virtio_console_class, 1, 5 }, { &virtio_balloon_class, 0, 4 },
	{ &virtio_net_class, 1, 72 },	 { &virtio_vsock_class, 1, 44 },
	{ &virtio_fs_class, 0, 48 },
};

static struct link *cable;

static void create_one(const struct one_of *o)
{
	struct link_config null = { .kind = "null" };
	struct fs_config share = { .path = "/tmp" };
	struct virtio_blk_arg blk = { 0 };
	struct virtio_net_arg net = { 0 };
	struct virtio_vsock_arg vsock = { 0 };
	struct virtio_fs_arg fs = { .tag = "t", .config = &share };
	struct virtio_balloon_arg balloon = { .memory = MOCK_MEM,
					      .target = MOCK_MEM };
	const void *arg = NULL;

	block = block_open_null(1 << 20, NULL);
	blk.block = block;
	assert_int_equal(link_open(&null, &cable, NULL), 0);
	net.link = cable;
	if (o->class == &virtio_blk_class)
		arg = &blk;
	else if (o->class == &virtio_net_class)
		arg = &net;
	else if (o->class == &virtio_vsock_class)
		arg = &vsock;
	else if (o->class == &virtio_fs_class)
		arg = &fs;
	else if (o->class == &virtio_balloon_class)
		arg = &balloon;
	assert_true(mock_create(&m, o->class, arg));
}

static void destroy_one(void)
{
	destroy();
	link_close(cable);
}

/* After a reset the device answers as if nothing had been. */
static void one_works(const struct one_of *o)
{
	uint8_t *p = m.mem.bytes + BUF;
	const uint64_t cids[] = { 3, 2 };

	mock_start(&m, all_features());
	memset(p, 0, 512);
	if (o->class == &virtio_vsock_class) {
		memcpy(p, cids, 16);
		p[28] = 1; /* a stream */
		p[30] = 3; /* RST, to nobody */
	} else if (o->class == &virtio_fs_class) {
		p[0] = 48; /* FUSE_FORGET of nothing */
		p[4] = 2;
	}
	if (!o->len) {
		expect_works(o->class == &virtio_blk_class ? BLK : RNG);
		return;
	}
	mock_desc(&m, o->queue, 0, BUF, o->len, 0, 0);
	mock_post(&m, o->queue, 0);
	assert_true(mock_wait(&m, o->queue, 1));
	assert_false(mock_status(&m) & STATUS_NEEDS_RESET);
}

static void break_one(const struct one_of *o, unsigned how)
{
	const uint64_t table = BUF + 0x10000;
	unsigned q = o->queue;
	uint16_t jump = 0x7000;

	switch (how) {
	case 0: mock_desc(&m, q, 0, MOCK_MEM - 8, 64, 0, 0); break;
	case 1: mock_desc(&m, q, 0, BUF, 1, DESC_NEXT, 0); break;
	case 2: mock_desc(&m, q, 0, BUF, 1, DESC_NEXT, 0xffff); break;
	case 3:
		indirect(table, 0, table, 16, DESC_INDIRECT, 0);
		mock_desc(&m, q, 0, table, 16, DESC_INDIRECT, 0);
		break;
	case 4: /* no such head */ mock_post(&m, q, MOCK_QSIZE); return;
	default:
		memcpy(m.mem.bytes + MOCK_AVAIL + (size_t)q * MOCK_STEP + 2,
		       &jump, 2);
		virtio_pci_write(m.v, VPCI_NOTIFY + 4ull * q, q, 2);
		return;
	}
	mock_post(&m, q, 0);
}

/* A broken driver stops its device, with one line, until it resets it. */
static void pattern_04_each_device_stops(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(each); i++) {
		create_one(&each[i]);
		for (unsigned how = 0; how < 6; how++) {
			mock_start(&m, all_features());
			m.logs = m.nnews = 0;
			break_one(&each[i], how);
			assert_false(mock_wait(&m, each[i].queue, 1));
			if (!(mock_status(&m) & STATUS_NEEDS_RESET))
				fail_msg("%s lives after %u",
					 each[i].class->dev.name, how);
			mock_post(&m, each[i].queue, 0);
			usleep(1000);
			assert_true(m.logs <= 1); /* their rate is limited */
			assert_int_equal(m.nnews, 1);
			assert_int_equal(m.news, VM_NEWS_BROKEN);
			one_works(&each[i]);
		}
		destroy_one();
	}
}

static void pattern_04_index_jumps(void **state)
{
	static const uint16_t jumps[] = { SIZE + 1, 0x7fff, 0x8000, 0xffff };

	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		for (unsigned k = 0; k < ARRAY_SIZE(jumps); k++) {
			mock_start(&m, all_features());
			memcpy(m.mem.bytes + MOCK_AVAIL + 2, &jumps[k], 2);
			if (classes[i] == &virtio_console_class)
				virtio_console_input(m.dev, "x", 1);
			virtio_pci_write(m.v, VPCI_NOTIFY, 0, 2);
			assert_false(mock_wait(&m, 0, 1));
			assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
		}
		destroy();
	}
	/* Heads that are not in the table. */
	create(RNG);
	mock_start(&m, 0);
	mock_post(&m, 0, SIZE);
	assert_false(mock_wait(&m, 0, 1));
	mock_start(&m, 0);
	mock_post(&m, 0, 0xffff);
	assert_false(mock_wait(&m, 0, 1));
	destroy();
}

/* Requests for more than there is room for, and rings that nobody reaps. */
static void pattern_04_is_not_reaped(void **state)
{
	uint16_t event = 0;

	create(RNG);
	mock_start(&m, 0);
	mock_desc(&m, 0, 0, BUF, 0x80000, DESC_WRITE, 0);
	for (unsigned n = 1; n <= 1000; n++) {
		mock_post(&m, 0, 0);
		assert_true(mock_wait(&m, 0, (uint16_t)n));
		assert_true(mock_used_len(&m, 0, (n - 1) % SIZE) <= 0x80000);
		memcpy(m.mem.bytes + MOCK_USED, &event, 2);
	}
	destroy();
}

/* -- 5, 10: not memory: registers, ROM, holes, the ring ---------------------- */

static void pattern_05_10_only_memory(void **state)
{
	static const uint64_t nowhere[] = {
		0xfee00000, /* local APIC */
		0xfec00000, /* IOAPIC */
		0xfed00000, /* HPET */
		0xe0000000, /* config space */
		0xc0000000, /* BARs; the first is the device's own */
		0xc0003000, /* its doorbells */
		0xc0004000, /* its MSI-X table */
		0xfffffff0, /* ROM */
		MOCK_MEM,   /* a hole */
	};

	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		mock_start(&m, all_features());
		for (unsigned k = 0; k < 2 * ARRAY_SIZE(nowhere); k++) {
			mock_desc(&m, 0, 0, nowhere[k / 2], 64,
				  k & 1 ? DESC_WRITE : 0, 0);
			if (classes[i] == &virtio_console_class)
				virtio_console_input(m.dev, "x", 1);
			expect_broken(i, 0);
		}
		destroy();
	}
}

/* The ring is memory; what becomes of it is the driver's affair only. */
static void pattern_05_over_the_ring(void **state)
{
	create(RNG);
	for (unsigned n = 0; n < 300; n++) {
		static const uint64_t at[] = { MOCK_DESC, MOCK_AVAIL, MOCK_USED,
					       0 };

		mock_start(&m, n & 4 ? all_features() : 0);
		mock_desc(&m, 0, 0, at[n % 4], 0x3000, DESC_WRITE, 0);
		mock_post(&m, 0, 0);
		usleep(500);
	}
	mock_start(&m, 0);
	expect_works(RNG);
	destroy();
}

/* -- 6: answers that do not fit ----------------------------------------------- */

static void pattern_06_small_answers(void **state)
{
	static const uint32_t types[] = { 0, 1, 4, 8, 11, 13, 99, UINT32_MAX };

	create(BLK);
	for (unsigned k = 0; k < ARRAY_SIZE(types); k++)
		for (unsigned len = 0; len < 40; len++) {
			uint8_t *p = m.mem.bytes + BUF;

			mock_start(&m, all_features());
			memset(p, 0, 0x200);
			memset(p + 0x1000, 0x77, 0x200);
			memcpy(p, &types[k], 4);
			mock_desc(&m, 0, 0, BUF, 16, DESC_NEXT, 1);
			mock_desc(&m, 0, 1, BUF + 0x1000, len, DESC_WRITE, 0);
			mock_post(&m, 0, 0);
			mock_wait(&m, 0, 1);
			for (unsigned n = len; n < 0x200; n++)
				assert_int_equal(p[0x1000 + n], 0x77);
		}
	/* No room for a status at all. */
	for (unsigned k = 0; k < ARRAY_SIZE(types); k++) {
		mock_start(&m, all_features());
		memcpy(m.mem.bytes + BUF, &types[k], 4);
		mock_desc(&m, 0, 0, BUF, 16, 0, 0);
		mock_post(&m, 0, 0);
		mock_wait(&m, 0, 1);
	}
	mock_start(&m, all_features());
	expect_works(BLK);
	destroy();
}

/* -- 7: gone while it is worked on --------------------------------------------- */

static void pattern_07_reset_in_flight(void **state)
{
	char path[] = "/tmp/test_patterns.XXXXXX";
	struct block_config cfg = { .path = path, .fault = "delay=2000" };
	struct virtio_blk_arg arg = { .queues = 2 };
	struct husk_error err = { 0 };
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	arg.block = block_open_config(&cfg, &err);
	if (!arg.block)
		print_message("%s\n", err.text);
	assert_non_null(arg.block);
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	for (unsigned n = 0; n < 60; n++) {
		mock_start(&m, all_features());
		memset(m.mem.bytes + BUF, 0, 16);
		for (unsigned q = 0; q < 2; q++) {
			mock_desc(&m, q, 0, BUF, 16, DESC_NEXT, 1);
			mock_desc(&m, q, 1, BUF + 0x1000, 0x1000,
				  DESC_WRITE | DESC_NEXT, 2);
			mock_desc(&m, q, 2, BUF + 16, 1, DESC_WRITE, 0);
			mock_post(&m, q, 0);
		}
		usleep(n * 100);
		if (n % 3 == 0) {
			virtio_pause(m.dev);
			virtio_resume(m.dev);
		} else if (n % 3 == 1) {
			virtio_reset(m.dev);
		} else {
			mock_common(&m, C_STATUS, 0, 1);
		}
		/* Nobody writes here any more: the driver uses it again. */
		if (n % 3) {
			memset(m.mem.bytes + BUF + 0x1000, 0x55, 0x1000);
			usleep(3000);
			for (unsigned k = 0; k < 0x1000; k++)
				assert_int_equal(m.mem.bytes[BUF + 0x1000 + k],
						 0x55);
		}
	}
	mock_destroy(&m);
	block_close(arg.block);
	close(fd);
	unlink(path);
}

/* -- 9: capabilities that are not there ------------------------------------------ */

static void pattern_09_no_virtual_functions(void **state)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		/* No extended capability, so no SR-IOV. */
		for (unsigned off = 0x100; off < PCI_CONFIG_SIZE; off++) {
			assert_int_equal(m.v->pci.config[off], 0);
			assert_int_equal(m.v->pci.writable[off], 0);
		}
		destroy();
	}
}

/* -- 13: looked at twice ---------------------------------------------------------- */

static atomic_bool flip;

/* The other CPU of the driver: good, bad, good... */
static void *flipper(void *arg)
{
	volatile struct virtq_desc *d = (void *)(m.mem.bytes + MOCK_DESC);
	volatile uint16_t *avail = (void *)(m.mem.bytes + MOCK_AVAIL);

	for (unsigned n = 0; atomic_load(&flip); n++) {
		d->addr = n & 1 ? BUF : MOCK_MEM - 4;
		d->len = n & 2 ? 16 : n & 4 ? UINT32_MAX : 0x80000;
		d->flags = n & 8 ? DESC_WRITE : DESC_WRITE | DESC_NEXT;
		d->next = n & 16 ? 1 : 0xffff;
		avail[2] = n & 32 ? 0 : 0x8000;
	}
	return NULL;
}

static void pattern_13_reads_once(void **state)
{
	struct bus *mmio, *pio;
	pthread_t other;

	for (unsigned i = 0; i < 2; i++) {
		create(i);
		/* What lies behind the memory. */
		mmio = m.mmio;
		pio = m.pio;
		mock_start(&m, all_features());
		atomic_store(&flip, true);
		assert_int_equal(pthread_create(&other, NULL, flipper, NULL),
				 0);
		for (unsigned n = 0; n < 3000; n++) {
			mock_post(&m, 0, 0);
			if (mock_status(&m) & STATUS_NEEDS_RESET)
				mock_start(&m, all_features());
		}
		atomic_store(&flip, false);
		pthread_join(other, NULL);
		assert_ptr_equal(m.mmio, mmio);
		assert_ptr_equal(m.pio, pio);
		mock_start(&m, all_features());
		expect_works(i);
		destroy();
	}
}

/* -- 14: every access to every register -------------------------------------------- */

static void pattern_14_every_access(void **state)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		create(i);
		mock_start(&m, all_features());
		for (unsigned off = 0; off < VPCI_SIZE + 64; off++)
			for (unsigned size = 1; size <= 9; size++) {
				virtio_pci_read(m.v, off, size);
				/* Not the doorbells: 9,000 rings each. */
				if (off < VPCI_NOTIFY || off >= VPCI_MSIX)
					virtio_pci_write(m.v, off,
							 0x0101010101010101ull *

								 (off & 0xff),
							 size);
			}
		mock_start(&m, all_features());
		expect_works(i);
		destroy();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pattern_01_registers_after_driver_ok),
		cmocka_unit_test(pattern_01_bad_queues),
		cmocka_unit_test(pattern_02_descriptor_bounds),
		cmocka_unit_test(pattern_03_queue_numbers),
		cmocka_unit_test(pattern_04_chains_without_end),
		cmocka_unit_test(pattern_04_each_device_stops),
		cmocka_unit_test(pattern_04_index_jumps),
		cmocka_unit_test(pattern_04_is_not_reaped),
		cmocka_unit_test(pattern_05_10_only_memory),
		cmocka_unit_test(pattern_05_over_the_ring),
		cmocka_unit_test(pattern_06_small_answers),
		cmocka_unit_test(pattern_07_reset_in_flight),
		cmocka_unit_test(pattern_09_no_virtual_functions),
		cmocka_unit_test(pattern_13_reads_once),
		cmocka_unit_test(pattern_14_every_access),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
