/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtio.c - queues, negotiation, rng, disks, saved state
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "husk/vm.h"
#include "mock/virtq_driver.h"
#include "vm/block.h"

static struct mock m;

static void rng_fills(void **state)
{
	assert_true(mock_create(&m, &virtio_rng_class, NULL));
	mock_start(&m, 0);
	assert_int_equal(mock_status(&m), 15);
	mock_desc(&m, 0, 0, MOCK_DATA, 64, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(mock_used_len(&m, 0, 0), 64);
	mock_destroy(&m);
}

static void rejects_unknown_feature(void **state)
{
	assert_true(mock_create(&m, &virtio_rng_class, NULL));
	mock_start(&m, BIT(3));
	assert_false(mock_status(&m) & (STATUS_FEATURES_OK | STATUS_DRIVER_OK));
	mock_common(&m, 20, 0, 1);
	assert_int_equal(mock_status(&m), 0);
	mock_destroy(&m);
}

static void expect_broken(void)
{
	mock_post(&m, 0, 0);
	assert_false(mock_wait(&m, 0, 1));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	assert_int_equal(m.logs, 1);
	m.logs = 0;
}

static void rejects_bad_chains(void **state)
{
	assert_true(mock_create(&m, &virtio_rng_class, NULL));
	mock_start(&m, 0); /* a loop */
	mock_desc(&m, 0, 0, MOCK_DATA, 4, DESC_WRITE | DESC_NEXT, 0);
	expect_broken();
	mock_start(&m, 0); /* not in memory */
	mock_desc(&m, 0, 0, MOCK_MEM - 2, 4, DESC_WRITE, 0);
	expect_broken();
	mock_start(&m, 0); /* readable after writable */
	mock_desc(&m, 0, 0, MOCK_DATA, 4, DESC_WRITE | DESC_NEXT, 1);
	mock_desc(&m, 0, 1, MOCK_DATA, 4, 0, 0);
	expect_broken();
	mock_start(&m, 0); /* indirect, not negotiated */
	mock_desc(&m, 0, 0, MOCK_DATA, 16, DESC_INDIRECT, 0);
	expect_broken();
	mock_start(&m, 0); /* alive again after reset */
	mock_desc(&m, 0, 0, MOCK_DATA, 4, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 1));
	mock_destroy(&m);
}

static void indirect_and_event_idx(void **state)
{
	struct virtq_desc d = { MOCK_DATA + 64, 8, DESC_WRITE, 0 };
	uint16_t event;

	assert_true(mock_create(&m, &virtio_rng_class, NULL));
	mock_start(&m, VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
	memcpy(m.mem.bytes + MOCK_DATA, &d, sizeof(d));
	mock_desc(&m, 0, 0, MOCK_DATA, 16, DESC_INDIRECT, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(mock_used_len(&m, 0, 0), 8);
	virtio_pause(m.dev);
	memcpy(&event, m.mem.bytes + MOCK_USED + 4 + 8 * MOCK_QSIZE, 2);
	assert_int_equal(event, 1);
	virtio_resume(m.dev);
	mock_destroy(&m);
}

/* Header, 512 or len bytes, status; the status. */
static uint8_t request(uint32_t type, uint64_t sector, uint32_t len, bool in)
{
	uint8_t *p = m.mem.bytes + MOCK_DATA;
	uint16_t before = mock_used(&m, 0);

	memcpy(p, &type, 4);
	memset(p + 4, 0, 4);
	memcpy(p + 8, &sector, 8);
	p[16] = 0xee;
	mock_desc(&m, 0, 0, MOCK_DATA, 16, DESC_NEXT, 1);
	mock_desc(&m, 0, 1, MOCK_DATA + 512, len,
		  DESC_NEXT | (in ? DESC_WRITE : 0), 2);
	mock_desc(&m, 0, 2, MOCK_DATA + 16, 1, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, before + 1));
	return p[16];
}

static void disk_works(void **state)
{
	char path[] = "/tmp/test_virtio.XXXXXX";
	struct virtio_blk_arg arg = { .serial = "SN1" };
	uint8_t *data = m.mem.bytes + MOCK_DATA + 512;
	struct husk_error err;
	int fd = mkstemp(path);
	uint32_t range[4] = { 1, 0, 1, 0 };

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1000), 0);
	assert_null(block_open(path, false, &err));
	assert_non_null(strstr(err.text, "multiple of 512"));
	assert_null(block_open("/tmp", false, &err));
	assert_string_equal(err.text, "/tmp: is a directory");
	assert_int_equal(ftruncate(fd, 65536), 0);
	arg.block = block_open(path, false, &err);
	assert_non_null(arg.block);
	assert_null(block_open(path, false, &err)); /* locked */
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	mock_start(&m, BIT(9) | BIT(13) | BIT(14));
	memset(data, 0x5a, 512);
	assert_int_equal(request(1, 1, 512, false), 0);
	memset(data, 0, 512);
	assert_int_equal(request(0, 1, 512, true), 0);
	assert_int_equal(data[0] + data[511], 2 * 0x5a);
	assert_int_equal(request(4, 0, 0, false), 0);
	assert_int_equal(request(0, 128, 512, true), 1);
	assert_int_equal(request(0, UINT64_MAX / 512 + 1, 512, true), 1);
	assert_int_equal(request(0, 0, 100, true), 1);
	assert_int_equal(request(99, 0, 512, true), 2);
	assert_int_equal(request(8, 0, 20, true), 0);
	assert_memory_equal(data, "SN1", 4);
	memcpy(data, range, 16);
	assert_int_equal(request(13, 0, 16, false), 0);
	assert_int_equal(request(0, 1, 512, true), 0);
	assert_int_equal(data[0] + data[511], 0);
	memcpy(data, range, 16);
	assert_int_equal(request(11, 0, 16, false), 0);
	mock_start(&m, 0); /* writes are flushed without FLUSH */
	assert_int_equal(request(1, 1, 512, false), 0);
	mock_destroy(&m);
	block_close(arg.block);
	close(fd);
	unlink(path);
}

static uint64_t capacity(void)
{
	return virtio_pci_read(m.v, VPCI_DEVICE, 8);
}

/* Requests on the last queue are answered there; the disk grows in use. */
/* The guest's error is news for the program. */
static void disk_errors_are_told(void **state)
{
	char path[] = "/tmp/test_virtio.XXXXXX";
	struct block_config cfg = { .path = path, .fault = "error=1" };
	struct virtio_blk_arg arg = { .serial = "SN1" };
	struct husk_error err;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 65536), 0);
	arg.block = block_open_config(&cfg, &err);
	assert_non_null(arg.block);
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	mock_start(&m, BIT(9));
	m.nnews = 0;
	assert_int_equal(request(0, 1, 512, true), 0);
	assert_int_equal(m.nnews, 0);
	assert_int_equal(request(1, 1, 512, false), 1);
	assert_int_equal(m.nnews, 1);
	assert_int_equal(m.news, VM_NEWS_DISK_ERROR);
	assert_int_equal(m.news_code, EIO);
	mock_destroy(&m);
	block_close(arg.block);
	close(fd);
	unlink(path);
}

static void disk_has_queues_and_grows(void **state)
{
	char path[] = "/tmp/test_virtio.XXXXXX";
	struct virtio_blk_arg arg = { .queues = 8 };
	struct block_config cfg = { .path = path, .sector = 4096 };
	struct husk_error err;
	int fd = mkstemp(path);
	uint8_t *p = m.mem.bytes + MOCK_DATA;
	uint64_t sector = 8;
	unsigned before;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 65536 + 512), 0);
	assert_null(block_open_config(&cfg, &err));
	assert_non_null(strstr(err.text, "multiple of 4096"));
	assert_int_equal(ftruncate(fd, 65536), 0);
	arg.block = block_open_config(&cfg, &err);
	assert_non_null(arg.block);
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 34, 2), 8);
	assert_int_equal(virtio_pci_read(m.v, VPCI_DEVICE + 20, 4), 4096);
	mock_start(&m, BIT(9) | BIT(12));
	memset(p, 0, 16);
	p[0] = 1;
	memcpy(p + 8, &sector, 8);
	mock_desc(&m, 7, 0, MOCK_DATA, 16, DESC_NEXT, 1);
	mock_desc(&m, 7, 1, MOCK_DATA + 4096, 4096, DESC_NEXT, 2);
	mock_desc(&m, 7, 2, MOCK_DATA + 16, 1, DESC_WRITE, 0);
	memset(p + 4096, 0x77, 4096);
	p[16] = 0xee;
	mock_post(&m, 7, 0);
	assert_true(mock_wait(&m, 7, 1));
	assert_int_equal(p[16], 0);
	assert_int_equal(mock_used(&m, 0), 0);
	assert_int_equal(request(0, 8, 4096, true), 0);
	assert_int_equal(request(0, 1, 4096, true), 1); /* not aligned */
	assert_int_equal(request(0, 128, 4096, true), 1);
	assert_int_equal(capacity(), 128);
	before = virtio_pci_read(m.v, VPCI_COMMON + 21, 1);
	assert_int_not_equal(virtio_blk_resize(m.dev, 4096, &err), 0);
	assert_int_not_equal(virtio_blk_resize(m.dev, 65536 + 512, &err), 0);
	assert_int_equal(virtio_blk_resize(m.dev, 1 << 20, &err), 0);
	assert_int_equal(capacity(), 2048);
	assert_int_not_equal(virtio_pci_read(m.v, VPCI_COMMON + 21, 1), before);
	assert_int_equal(request(0, 128, 4096, true), 0);
	mock_destroy(&m);
	block_close(arg.block);
	close(fd);
	unlink(path);
}

/* -- a host without space ------------------------------------------------- */

static _Atomic bool full;
static _Atomic unsigned asked;

static int full_perform(struct block *b, const struct block_req *req)
{
	return req->op == BLOCK_WRITE && full ? -ENOSPC : 0;
}

static void full_submit(struct block *b, struct block_req *req)
{
	req->done(req, full_perform(b, req));
}

static void full_drain(struct block *b)
{
}

static const struct block_ops full_ops = {
	.name = "full",
	.submit = full_submit,
	.perform = full_perform,
	.drain = full_drain,
};

static void request_is(void *sink, enum machine_request what, int arg)
{
	if (what == REQUEST_NO_SPACE)
		asked++;
}

/* Offers a write of sector 1; its status is not to be waited for. */
static volatile uint8_t *write_some(void)
{
	uint8_t *p = m.mem.bytes + MOCK_DATA;

	memset(p, 0, 16);
	p[0] = 1;
	p[8] = 1;
	p[16] = 0xee;
	mock_desc(&m, 0, 0, MOCK_DATA, 16, DESC_NEXT, 1);
	mock_desc(&m, 0, 1, MOCK_DATA + 512, 512, DESC_NEXT, 2);
	mock_desc(&m, 0, 2, MOCK_DATA + 16, 1, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	return p + 16;
}

static void wait_asked(unsigned n)
{
	for (unsigned i = 0; i < 2000 && asked < n; i++)
		usleep(1000);
	assert_int_equal(asked, n);
}

/* The state that m.dev has now, in a device of its own. */
static void move_blk(const struct virtio_blk_arg *arg)
{
	static uint8_t memory[MOCK_MEM];
	struct state *w = state_writer(3), *r;
	const void *data;
	size_t len;

	virtio_blk_class.dev.state(m.dev, w);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);
	memcpy(memory, m.mem.bytes, sizeof(memory));
	mock_destroy(&m);
	assert_true(mock_create(&m, &virtio_blk_class, arg));
	m.env.request = request_is;
	memcpy(m.mem.bytes, memory, sizeof(memory));
	virtio_pause(m.dev);
	r = state_reader(data, len, 3);
	virtio_blk_class.dev.state(m.dev, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(virtio_blk_class.dev.check(m.dev), 0);
	state_free(r);
	state_free(w);
}

static void disk_without_space_waits(void **state)
{
	struct block block = { .ops = &full_ops, .size = 65536, .sector = 512 };
	struct virtio_blk_arg arg = { .block = &block };
	volatile uint8_t *status;

	full = true;
	asked = 0;
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	m.env.request = request_is;
	mock_start(&m, BIT(9));
	assert_int_equal(request(1, 1, 512, false), 1); /* an error */
	mock_destroy(&m);

	arg.hold_full = true;
	assert_true(mock_create(&m, &virtio_blk_class, &arg));
	m.env.request = request_is;
	mock_start(&m, BIT(9));
	status = write_some();
	wait_asked(1);
	assert_true(virtio_blk_holds(m.dev));
	virtio_pause(m.dev);
	virtio_resume(m.dev); /* in vain */
	wait_asked(2);
	assert_int_equal(*status, 0xee);
	virtio_pause(m.dev);
	move_blk(&arg);
	status = m.mem.bytes + MOCK_DATA + 16;
	assert_true(virtio_blk_holds(m.dev));
	assert_int_equal(*status, 0xee);
	full = false;
	virtio_resume(m.dev);
	assert_true(mock_wait(&m, 0, 1));
	assert_int_equal(*status, 0);
	assert_false(virtio_blk_holds(m.dev));

	full = true; /* a reset forgets what waits */
	write_some();
	wait_asked(3);
	mock_start(&m, BIT(9));
	assert_false(virtio_blk_holds(m.dev));
	full = false;
	assert_int_equal(request(1, 1, 512, false), 0);
	assert_int_equal(asked, 3);
	mock_destroy(&m);
}

static void state_round_trip(void **state)
{
	struct state *w, *r;
	const void *data;
	size_t len;

	assert_true(mock_create(&m, &virtio_rng_class, NULL));
	mock_start(&m, 0);
	mock_desc(&m, 0, 0, MOCK_DATA, 4, DESC_WRITE, 0);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 1));
	virtio_pause(m.dev);
	w = state_writer(1);
	virtio_state(m.dev, w);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);
	virtio_reset(m.dev);
	r = state_reader(data, len, 1);
	virtio_state(m.dev, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(virtio_check(m.dev), 0);
	virtio_resume(m.dev);
	mock_post(&m, 0, 0);
	assert_true(mock_wait(&m, 0, 2));
	virtio_pause(m.dev);
	m.v->queue[0]->size = 3;
	assert_int_not_equal(virtio_check(m.dev), 0);
	state_free(r);
	state_free(w);
	mock_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rng_fills),
		cmocka_unit_test(rejects_unknown_feature),
		cmocka_unit_test(rejects_bad_chains),
		cmocka_unit_test(indirect_and_event_idx),
		cmocka_unit_test(disk_works),
		cmocka_unit_test(disk_errors_are_told),
		cmocka_unit_test(disk_has_queues_and_grows),
		cmocka_unit_test(disk_without_space_waits),
		cmocka_unit_test(state_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
