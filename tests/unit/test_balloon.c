/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_balloon.c - the memory balloon: pages, reports, hints, statistics
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>

#include "husk/vm.h"
#include "mock/virtq_driver.h"

enum { INFLATE, DEFLATE, STATS, HINT, REPORT };
enum { F_STATS = 2, F_HINT = 8, F_POISON = 16, F_REPORT = 32, F_ALL = 62 };
enum { C_PAGES = 0, C_ACTUAL = 4, C_ID = 8, C_POISON = 12 };
enum { PAGES = MOCK_MEM / 4096 };

static struct mock m;

static void create(bool hinting)
{
	struct virtio_balloon_arg arg = {
		.memory = MOCK_MEM,
		.target = MOCK_MEM,
		.reporting = true,
		.hinting = hinting,
		.oom = true,
	};

	assert_true(mock_create(&m, &virtio_balloon_class, &arg));
	mock_ndiscards = 0;
}

static uint32_t config(unsigned off)
{
	return (uint32_t)virtio_pci_read(m.v, VPCI_DEVICE + off, 4);
}

static struct vm_balloon_stats stats(void)
{
	struct vm_balloon_stats s;

	assert_int_equal(virtio_balloon_stats(m.dev, 0, &s), 0);
	return s;
}

/* One request to a queue, done. */
static void post(unsigned q, uint64_t gpa, uint32_t len, uint16_t flags)
{
	uint16_t before = mock_used(&m, q);

	mock_desc(&m, q, 0, gpa, len, flags, 0);
	mock_post(&m, q, 0);
	assert_true(mock_wait(&m, q, before + 1));
}

static void put_pfns(const uint32_t *pfn, unsigned n)
{
	memcpy(m.mem.bytes + MOCK_DATA, pfn, 4ul * n);
}

static void inflates_and_deflates(void **state)
{
	const uint32_t pfn[] = { 200, 201, 202, 190, 189, 188, 60 };
	uint8_t *p = m.mem.bytes;

	create(true);
	mock_start(&m, F_ALL);
	assert_int_equal(mock_status(&m), 15);
	assert_int_equal(config(C_PAGES), 0);
	assert_int_equal(virtio_balloon_set_target(m.dev, MOCK_MEM + 1),
			 -EINVAL);
	assert_int_equal(virtio_balloon_set_target(m.dev, MOCK_MEM - 7 * 4096),
			 0);
	assert_int_equal(config(C_PAGES), 7);
	memset(p + 60 * 4096, 7, 4096);
	memset(p + 187 * 4096, 7, 20 * 4096);
	put_pfns(pfn, 7);
	post(INFLATE, MOCK_DATA, 28, 0);
	/* Runs in both directions are one discard each. */
	assert_int_equal(mock_ndiscards, 3);
	assert_int_equal(mock_discards[0].gpa, 200 * 4096);
	assert_int_equal(mock_discards[0].len, 3 * 4096);
	assert_int_equal(mock_discards[1].gpa, 188 * 4096);
	assert_int_equal(mock_discards[1].len, 3 * 4096);
	assert_int_equal(p[187 * 4096 + 4095], 7);
	assert_int_equal(p[188 * 4096], 0);
	assert_int_equal(p[203 * 4096], 7);
	assert_int_equal(p[60 * 4096], 0);
	virtio_pci_write(m.v, VPCI_DEVICE + C_ACTUAL, 7, 4);
	assert_int_equal(stats().actual, MOCK_MEM - 7 * 4096);
	assert_int_equal(stats().target, MOCK_MEM - 7 * 4096);
	assert_int_equal(stats().inflated, 7 * 4096);
	post(DEFLATE, MOCK_DATA, 28, 0);
	assert_int_equal(mock_ndiscards, 3);
	/* The target and the command are ours; actual is the driver's word. */
	virtio_pci_write(m.v, VPCI_DEVICE + C_PAGES, 0x55, 4);
	virtio_pci_write(m.v, VPCI_DEVICE + C_ID, 0x55, 4);
	virtio_pci_write(m.v, VPCI_DEVICE + C_ACTUAL, UINT32_MAX, 4);
	assert_int_equal(config(C_PAGES), 7);
	assert_int_equal(config(C_ID), 0);
	assert_int_equal(stats().actual, 0);
	mock_destroy(&m);
}

/* Pages that are no memory, and lists that never end. */
static void refuses_bad_pages(void **state)
{
	const uint32_t bad[] = { PAGES, UINT32_MAX, 0xfee00, 0x100000 };
	const uint32_t over[] = { PAGES - 1, PAGES };

	create(true);
	for (unsigned i = 0; i < 5; i++) {
		m.logs = mock_ndiscards = 0;
		mock_start(&m, F_ALL);
		put_pfns(i < 4 ? &bad[i] : over, i < 4 ? 1 : 2);
		mock_desc(&m, INFLATE, 0, MOCK_DATA, i < 4 ? 4 : 8, 0, 0);
		mock_post(&m, INFLATE, 0);
		assert_false(mock_wait(&m, INFLATE, 1));
		assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
		assert_int_equal(m.logs, 1);
		assert_int_equal(mock_ndiscards, 0);
	}
	mock_start(&m, F_ALL); /* 2 MiB of numbers in eight pieces */
	memset(m.mem.bytes + MOCK_DATA, 0, 0x40000);
	for (unsigned i = 0; i < MOCK_QSIZE; i++)
		mock_desc(&m, INFLATE, i, MOCK_DATA, 0x40000,
			  i < MOCK_QSIZE - 1 ? DESC_NEXT : 0,
			  (uint16_t)(i + 1));
	mock_post(&m, INFLATE, 0);
	assert_false(mock_wait(&m, INFLATE, 1));
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	mock_start(&m, F_ALL); /* half a number is none */
	put_pfns((const uint32_t[]){ UINT32_MAX }, 1);
	mock_ndiscards = 0;
	post(INFLATE, MOCK_DATA, 3, 0);
	assert_int_equal(mock_ndiscards, 0);
	mock_destroy(&m);
}

static void reports_whole_pages(void **state)
{
	create(false);
	mock_start(&m, F_ALL);
	post(REPORT, 0x80000, 0x20000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 1);
	assert_int_equal(stats().reported, 0x20000);
	/* What is covered in part stays. */
	memset(m.mem.bytes + 0x80000, 9, 0x3000);
	post(REPORT, 0x80001, 0x2000, DESC_WRITE);
	assert_int_equal(mock_discards[1].gpa, 0x81000);
	assert_int_equal(mock_discards[1].len, 0x1000);
	post(REPORT, 0x80001, 0x0fff, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 2);
	post(REPORT, 0x80000, 0x1000, 0); /* not for us to write to */
	assert_int_equal(mock_ndiscards, 2);
	mock_destroy(&m);
}

/* Pages that must hold a pattern when they are free stay as they are. */
static void keeps_poison(void **state)
{
	create(true);
	mock_start(&m, F_ALL);
	virtio_pci_write(m.v, VPCI_DEVICE + C_POISON, 0xaaaaaaaa, 4);
	memset(m.mem.bytes + 0x80000, 0xaa, 0x1000);
	post(REPORT, 0x80000, 0x1000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 0);
	assert_int_equal(m.mem.bytes[0x80000], 0xaa);
	virtio_pci_write(m.v, VPCI_DEVICE + C_POISON, 0, 4);
	post(REPORT, 0x80000, 0x1000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 1);
	/* A driver without the feature does not look. */
	mock_start(&m, F_ALL & ~F_POISON);
	assert_int_equal(config(C_POISON), 0);
	virtio_pci_write(m.v, VPCI_DEVICE + C_POISON, 0xaaaaaaaa, 4);
	post(REPORT, 0x80000, 0x1000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 2);
	mock_destroy(&m);
}

static uint32_t start_round(void)
{
	unsigned messages = m.messages;
	uint32_t id;

	for (unsigned i = 0; i < 128; i++) {
		assert_int_equal(config(C_ID) >= 2, 0);
		post(REPORT, 0x80000, 0x80000, DESC_WRITE);
	}
	id = config(C_ID);
	assert_true(id >= 2);
	assert_true(m.messages >= messages);
	mock_ndiscards = 0;
	return id;
}

static void command(uint32_t id)
{
	memcpy(m.mem.bytes + MOCK_DATA, &id, 4);
	post(HINT, MOCK_DATA, 4, 0);
}

static void asks_for_hints(void **state)
{
	struct vm_balloon_stats s;
	uint32_t id;

	create(true);
	mock_start(&m, F_ALL);
	id = start_round();
	post(HINT, 0x80000, 0x1000, DESC_WRITE); /* before the driver began */
	command(id + 1);			 /* with another round */
	post(HINT, 0x80000, 0x1000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 0);
	command(id);
	/* Discarded when the write to the doorbell returns, not later. */
	mock_desc(&m, HINT, 0, 0x90000, 0x10000, DESC_WRITE, 0);
	mock_post(&m, HINT, 0);
	assert_int_equal(mock_ndiscards, 1);
	assert_int_equal(mock_discards[0].len, 0x10000);
	command(0);
	assert_int_equal(config(C_ID), 1);
	post(HINT, 0x80000, 0x1000, DESC_WRITE); /* after the end */
	assert_int_equal(mock_ndiscards, 1);
	s = stats();
	assert_int_equal(s.hinted, 0x10000);
	assert_int_equal(s.rounds, 1);
	/* Not again at once. */
	for (unsigned i = 0; i < 130; i++)
		post(REPORT, 0x80000, 0x80000, DESC_WRITE);
	assert_int_equal(config(C_ID), 1);
	mock_start(&m, F_ALL);
	assert_int_equal(config(C_ID), 0);
	mock_destroy(&m);
}

static void refuses_bad_hints(void **state)
{
	create(true);
	mock_start(&m, F_ALL);
	mock_desc(&m, HINT, 0, MOCK_DATA, 5, 0, 0);
	mock_post(&m, HINT, 0);
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	mock_start(&m, F_ALL);
	mock_desc(&m, HINT, 0, MOCK_MEM - 4096, 8192, DESC_WRITE, 0);
	mock_post(&m, HINT, 0);
	assert_true(mock_status(&m) & STATUS_NEEDS_RESET);
	mock_destroy(&m);
}

/* -- statistics ----------------------------------------------------------- */

static unsigned put_stats(unsigned n, uint64_t base)
{
	uint8_t *p = m.mem.bytes + MOCK_DATA;

	for (unsigned i = 0; i < n; i++) {
		uint16_t tag = (uint16_t)i;
		uint64_t value = base + i;

		memcpy(p + 10ul * i, &tag, 2);
		memcpy(p + 10ul * i + 2, &value, 8);
	}
	return 10 * n;
}

static void *answer(void *arg)
{
	/* The device gives the buffer back: that is the question. */
	if (!mock_wait(&m, STATS, 1))
		return NULL;
	mock_desc(&m, STATS, 0, MOCK_DATA, put_stats(10, 2000), 0, 0);
	mock_post(&m, STATS, 0);
	return NULL;
}

static void asks_for_statistics(void **state)
{
	struct vm_balloon_stats s = { 0 };
	pthread_t thread;

	create(true);
	assert_int_equal(virtio_balloon_stats(m.dev, 1, &s), -ETIMEDOUT);
	mock_start(&m, F_ALL);
	assert_int_equal(virtio_balloon_stats(m.dev, 1, &s), -ETIMEDOUT);
	assert_false(s.has_guest);
	/* The first buffer is kept, unless somebody has asked already. */
	virtio_pause(m.dev);
	virtio_resume(m.dev);
	mock_start(&m, F_ALL);
	mock_desc(&m, STATS, 0, MOCK_DATA, put_stats(10, 1000), 0, 0);
	mock_post(&m, STATS, 0);
	while (!stats().has_guest)
		usleep(1000);
	assert_int_equal(mock_used(&m, STATS), 0);
	s = stats();
	assert_int_equal(s.swap_in, 1000);
	assert_int_equal(s.free, 1004);
	assert_int_equal(s.hugetlb_failures, 1009);
	assert_int_equal(pthread_create(&thread, NULL, answer, NULL), 0);
	assert_int_equal(virtio_balloon_stats(m.dev, 20000, &s), 0);
	pthread_join(thread, NULL);
	assert_int_equal(s.total, 2005);
	/* The buffer that is kept lives through a pause. */
	virtio_pause(m.dev);
	virtio_resume(m.dev);
	usleep(20000);
	assert_int_equal(mock_used(&m, STATS), 1);
	/* Nobody answers. */
	assert_int_equal(virtio_balloon_stats(m.dev, 1, &s), -ETIMEDOUT);
	assert_true(s.has_guest);
	mock_destroy(&m);
}

/* Odd lengths and unknown tags. */
static void statistics_are_bounded(void **state)
{
	create(true);
	mock_start(&m, F_ALL);
	memset(m.mem.bytes + MOCK_DATA, 0xff, 0x40000);
	mock_desc(&m, STATS, 0, MOCK_DATA, 0x40000, DESC_NEXT, 1);
	mock_desc(&m, STATS, 1, MOCK_DATA, 0x40000, 0, 0);
	mock_post(&m, STATS, 0);
	while (!stats().has_guest)
		usleep(1000);
	assert_int_equal(stats().free, 0);
	/* A second one in place of the first, which goes back. */
	mock_desc(&m, STATS, 2, MOCK_DATA, put_stats(1, 5) + 9, 0, 0);
	mock_post(&m, STATS, 2);
	assert_true(mock_wait(&m, STATS, 1));
	while (stats().swap_in != 5)
		usleep(1000);
	mock_destroy(&m);
}

/* -- saved state ---------------------------------------------------------- */

static void state_round_trip(void **state)
{
	struct state *w, *r;
	const void *data;
	size_t len;
	uint32_t id;

	create(true);
	mock_start(&m, F_ALL);
	assert_int_equal(virtio_balloon_set_target(m.dev, MOCK_MEM / 2), 0);
	id = start_round();
	command(id);
	virtio_pause(m.dev);
	w = state_writer(1);
	m.dev->class->state(m.dev, w);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);
	virtio_reset(m.dev);
	assert_int_equal(virtio_balloon_set_target(m.dev, MOCK_MEM), 0);
	r = state_reader(data, len, 1);
	m.dev->class->state(m.dev, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(m.dev->class->check(m.dev), 0);
	virtio_resume(m.dev);
	assert_int_equal(stats().target, MOCK_MEM / 2);
	assert_int_equal(config(C_PAGES), PAGES / 2);
	/* The round of the saved machine only comes to its end. */
	mock_ndiscards = 0;
	post(HINT, 0x80000, 0x1000, DESC_WRITE);
	assert_int_equal(mock_ndiscards, 0);
	command(0);
	assert_int_equal(config(C_ID), 1);
	/* More pages than there are. */
	virtio_pause(m.dev);
	memset(m.v->config, 0xff, 4);
	assert_int_not_equal(m.dev->class->check(m.dev), 0);
	assert_int_equal(config(C_PAGES), PAGES / 2);
	state_free(r);
	state_free(w);
	mock_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(inflates_and_deflates),
		cmocka_unit_test(refuses_bad_pages),
		cmocka_unit_test(reports_whole_pages),
		cmocka_unit_test(keeps_poison),
		cmocka_unit_test(asks_for_hints),
		cmocka_unit_test(refuses_bad_hints),
		cmocka_unit_test(asks_for_statistics),
		cmocka_unit_test(statistics_are_bounded),
		cmocka_unit_test(state_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
