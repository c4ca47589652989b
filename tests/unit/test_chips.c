/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_chips.c - the chips of the board on a bench without a machine
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vm/chips.h"
#include "vm/pci.h"

static struct bench {
	struct dev_env env;
	uint64_t msi_addr;
	uint32_t msi_data;
	unsigned msis, requests, edges;
	enum machine_request what;
	int arg;
	bool level;
	char out[64];
	size_t out_len;
	struct dev *last;
} b;

/* The page of the generation ID is all the memory there is. */
static uint8_t memory[VMGENID_SIZE];

int mem_copy_in(struct guest_mem *m, uint64_t gpa, const void *src,
		uint64_t len)
{
	if (gpa != VMGENID_ADDR || len != sizeof(memory))
		return -14;
	memcpy(memory, src, len);
	return 0;
}

int mem_copy_out(struct guest_mem *m, uint64_t gpa, void *dst, uint64_t len)
{
	return -14;
}

static void on_msi(void *sink, uint64_t addr, uint32_t data)
{
	b.msi_addr = addr;
	b.msi_data = data;
	b.msis++;
}

static void on_request(void *sink, enum machine_request what, int arg)
{
	b.what = what;
	b.arg = arg;
	b.requests++;
}

static void on_wire(void *sink, unsigned line, bool level)
{
	b.edges += level && !b.level;
	b.level = level;
}

static bool reader_is_slow;

static bool on_output(void *sink, const void *data, size_t len)
{
	for (size_t i = 0; i < len && b.out_len < sizeof(b.out); i++)
		b.out[b.out_len++] = ((const char *)data)[i];
	return !reader_is_slow;
}

static int setup(void **state)
{
	memset(&b, 0, sizeof(b));
	b.env.mmio = bus_create("mmio");
	b.env.pio = bus_create("pio");
	b.env.msi.send = on_msi;
	b.env.request = on_request;
	return loop_create(&b.env.loop) || loop_start(b.env.loop);
}

static int teardown(void **state)
{
	dev_destroy(b.last);
	bus_destroy(b.env.mmio);
	bus_destroy(b.env.pio);
	loop_destroy(b.env.loop);
	return 0;
}

static const struct irq wire = { on_wire, NULL, 0 };
static const struct uart_arg uart_arg = {
	{ on_wire, NULL, 0 }, 0x3f8, on_output, NULL
};

static const struct hpet_arg hpet_arg = { .irq = { { on_wire, NULL, 0 } } };

static struct dev *make(const struct dev_class *class, const void *arg)
{
	dev_destroy(b.last);
	b.last = dev_create(class, class->name, &b.env, arg, NULL);
	assert_non_null(b.last);
	return b.last;
}

static void out(uint16_t port, uint32_t v, unsigned size)
{
	bus_write(b.env.pio, port, size, v);
}

static uint32_t in(uint16_t port, unsigned size)
{
	uint64_t v;

	bus_read(b.env.pio, port, size, &v);
	return v;
}

static void poke(uint64_t a, uint64_t v, unsigned size)
{
	bus_write(b.env.mmio, a, size, v);
}

static uint64_t peek(uint64_t a, unsigned size)
{
	uint64_t v;

	bus_read(b.env.mmio, a, size, &v);
	return v;
}

static void test_pic(void **state)
{
	struct dev *d = make(&i8259_class, NULL);
	struct irq w = pic_irq(d, 12), w4 = pic_irq(d, 4);

	out(0x20, 0x11, 1);
	out(0x21, 0x30, 1);
	out(0x21, 4, 1);
	out(0x21, 1, 1);
	out(0xa0, 0x11, 1);
	out(0xa1, 0x38, 1);
	out(0xa1, 2, 1);
	out(0xa1, 1, 1);
	out(0x21, 0, 1);
	out(0xa1, 0, 1);
	irq_set(&w, true);
	assert_true(pic_output(d));
	assert_int_equal(pic_acknowledge(d), 0x3c);
	assert_false(pic_output(d));
	irq_set(&w4, true); /* lower than the cascade in service */
	assert_false(pic_output(d));
	out(0xa0, 0x20, 1);
	out(0x20, 0x20, 1);
	assert_int_equal(pic_acknowledge(d), 0x34);
	out(0x20, 0x20, 1);
	assert_int_equal(pic_acknowledge(d), 0x37); /* spurious */
}

static void test_ioapic(void **state)
{
	struct ioapic_arg arg = { NULL, NULL };
	struct dev *d = make(&ioapic_class, &arg);
	struct irq w = ioapic_irq(d, 9);

	poke(IOAPIC_BASE, 0x23, 4);
	poke(IOAPIC_BASE + 16, 0x01000000, 4);
	poke(IOAPIC_BASE, 0x22, 4);
	poke(IOAPIC_BASE + 16, 0x8051, 4);
	irq_set(&w, true);
	assert_int_equal(b.msis, 1);
	assert_int_equal(b.msi_addr, 0xfee01000);
	assert_int_equal(b.msi_data, 0x8051);
	assert_int_equal(peek(IOAPIC_BASE + 16, 4), 0xc051);
	ioapic_eoi(d, 0x51);
	assert_int_equal(b.msis, 2);
	irq_set(&w, false);
	ioapic_eoi(d, 0x51);
	assert_int_equal(b.msis, 2);
}

static unsigned rooms;

static void count_room(void *sink)
{
	rooms++;
}

static void test_uart(void **state)
{
	struct dev *d = make(&uart16550_class, &uart_arg);

	out(0x3fa, 7, 1);
	assert_int_equal(in(0x3fa, 1), 0xc1);
	out(0x3f9, 3, 1);
	assert_true(b.level);
	assert_int_equal(in(0x3fa, 1), 0xc2);
	assert_false(b.level);
	out(0x3f8, 'h', 1);
	out(0x3f8, '\n', 1);
	assert_memory_equal(b.out, "h\n", 2);
	/* Nobody listens: the far end keeps it and is told when. */
	uart_on_room(d, count_room, NULL);
	assert_int_equal(uart_input(d, "0123456789abcdefgh", 18), 0);
	assert_int_equal(rooms, 0);
	out(0x3fc, 0x0b, 1);
	assert_int_equal(rooms, 1);
	assert_int_equal(uart_input(d, "0123456789abcdefgh", 18), 16);
	in(0x3fa, 1);
	assert_int_equal(in(0x3fd, 1), 0x61);
	assert_int_equal(in(0x3f8, 1), '0');
	for (unsigned i = 0; i < 15; i++)
		in(0x3f8, 1);
	assert_int_equal(rooms, 2);
	out(0x3fc, 0x1a, 1);
	assert_int_equal(in(0x3fe, 1) & 0xf0, 0x90);
	/* One that polls, without RTS and interrupts. */
	out(0x3f9, 0, 1);
	out(0x3fc, 0, 1);
	assert_int_equal(uart_input(d, "x", 1), 0);
	for (unsigned i = 0; i < 100 && rooms == 2; i++)
		in(0x3fd, 1);
	assert_int_equal(rooms, 3);
	assert_int_equal(uart_input(d, "x", 1), 1);
	assert_int_equal(in(0x3f8, 1), 'x');
	/* A slow reader makes the transmitter busy. */
	out(0x3f9, 2, 1);
	in(0x3fa, 1);
	reader_is_slow = true;
	out(0x3f8, '\n', 1);
	assert_int_equal(in(0x3fd, 1) & 0x60, 0);
	assert_false(b.level);
	out(0x3f8, '!', 1); /* a driver that does not look */
	out(0x3f8, '\n', 1);
	reader_is_slow = false;
	uart_ready(d);
	assert_int_equal(in(0x3fd, 1) & 0x60, 0x60);
	assert_true(b.level);
	assert_memory_equal(b.out + b.out_len - 3, "\n!\n", 3);
}

/* A timer that goes on gets there, however busy the host is. */
static void wait_for_edges(unsigned n)
{
	for (unsigned i = 0; __atomic_load_n(&b.edges, __ATOMIC_RELAXED) < n;
	     i++) {
		assert_true(i < 20000);
		usleep(1000);
	}
}

/* A masked periodic comparator goes on, in step, without a timer of ours. */
static void test_masked_hpet(void)
{
	uint64_t first, now;

	poke(HPET_BASE + 0x100, 0x48, 8); /* periodic, value follows */
	first = peek(HPET_BASE + 0xf0, 8) + 100000;
	poke(HPET_BASE + 0x108, first, 8);
	poke(HPET_BASE + 0x108, 100000, 8); /* 1 ms */
	usleep(5000);
	now = peek(HPET_BASE + 0xf0, 8);
	assert_true(peek(HPET_BASE + 0x108, 8) > now);
	assert_int_equal((peek(HPET_BASE + 0x108, 8) - first) % 100000, 0);
	b.edges = 0;
	poke(HPET_BASE + 0x100, 0xc, 8);
	wait_for_edges(6);
	poke(HPET_BASE + 0x100, 0x8, 8);
}

static void test_time(void **state)
{
	uint32_t a;

	make(&i8254_class, &wire);
	out(0x43, 0x34, 1);
	out(0x40, 0xa9, 1);
	out(0x40, 0x04, 1); /* 1 kHz */
	wait_for_edges(6);
	out(0x61, 1, 1);
	out(0x43, 0xb0, 1);
	out(0x42, 0x10, 1);
	out(0x42, 0, 1);
	usleep(1000);
	assert_true(in(0x61, 1) & 0x20);
	make(&hpet_class, &hpet_arg);
	poke(HPET_BASE + 0x10, 1, 8);
	a = peek(HPET_BASE + 0xf0, 8);
	usleep(1000);
	assert_true(peek(HPET_BASE + 0xf0, 8) >= a + 100000);
	test_masked_hpet();
	make(&mc146818_class, NULL);
	out(0x70, 0x32, 1);
	assert_int_equal(in(0x71, 1), 0x20);
}

static void test_power(void **state)
{
	struct dev *d = make(&acpi_pm_class, &wire);

	out(0x602, 0x100, 2);
	acpi_pm_power_button(d);
	assert_true(b.level);
	out(0x600, 0x100, 2);
	assert_false(b.level);
	out(0x604, 0x3400, 2);
	assert_int_equal(b.requests, 1);
	assert_int_equal(b.what, REQUEST_POWEROFF);
	out(0xcf9, 6, 1);
	assert_int_equal(b.what, REQUEST_RESET);
	make(&debug_exit_class, NULL);
	out(0xf4, 3, 4);
	assert_int_equal(b.arg, 7);
	make(&i8042_class, NULL);
	out(0x64, 0xaa, 1);
	assert_int_equal(in(0x60, 1), 0x55);
}

static void test_generation_id(void **state)
{
	struct dev *pm = dev_create(&acpi_pm_class, "pm", &b.env, &wire, NULL);
	struct vmgenid_arg arg = { { 1, 2, 3 }, acpi_pm_gpe(pm, VMGENID_GPE) };
	const uint8_t other[VMGENID_SIZE] = { 9, 8, 7 };
	uint8_t id[VMGENID_SIZE];
	struct state *s, *r;
	const void *data;
	struct dev *d;
	size_t len;

	d = make(&vmgenid_class, &arg);
	assert_memory_equal(memory, arg.id, sizeof(memory));
	out(0x60c, 0xffff, 2);
	out(0x60e, 1 << VMGENID_GPE, 2);
	assert_false(b.level);
	vmgenid_set(d, other);
	assert_memory_equal(memory, other, sizeof(memory));
	assert_true(b.level);
	assert_int_equal(in(0x60c, 2), 1 << VMGENID_GPE);
	out(0x60c, 1 << VMGENID_GPE, 2);
	assert_false(b.level);
	/* Restored, it is shown; a reset does not change it. */
	s = state_writer(1);
	vmgenid_class.state(d, s);
	assert_int_equal(state_finish(s), 0);
	vmgenid_set(d, arg.id);
	data = state_data(s, &len);
	r = state_reader(data, len, 1);
	vmgenid_class.state(d, r);
	assert_int_equal(state_finish(r), 0);
	assert_int_equal(vmgenid_class.check(d), 0);
	assert_memory_equal(memory, other, sizeof(memory));
	memset(memory, 0, sizeof(memory));
	vmgenid_class.reset(d);
	assert_memory_equal(memory, other, sizeof(memory));
	vmgenid_get(d, id);
	assert_memory_equal(id, other, sizeof(id));
	state_free(s);
	state_free(r);
	dev_destroy(pm);
}

static void test_panic(void **state)
{
	make(&pvpanic_class, NULL);
	assert_int_equal(in(0x505, 1), 3);
	out(0x505, 4, 1);
	out(0x505, 0, 1);
	assert_int_equal(b.requests, 0);
	out(0x505, 2, 1);
	assert_int_equal(b.what, REQUEST_PANIC);
	assert_int_equal(b.arg, GUEST_CRASH_LOADED);
	out(0x505, 1, 1);
	assert_int_equal(b.arg, GUEST_PANICKED);
	assert_int_equal(b.requests, 2);
}

static void test_pci(void **state)
{
	static struct pci_func f;
	struct dev *d = make(&pci_host_class, NULL);
	uint64_t ecam = ECAM_BASE + (1 << 15);

	pci_func_init(&f, d, NULL, 0x1af4, 0x1042, 0x010000, 1, 0x1af4, 2);
	pci_bar(&f, 0, 0x4000, true);
	assert_int_equal(pci_add_msix(&f, 3, 0, 0x2000, 0x3000), 0);
	assert_int_equal(pci_add(pci_host_bus(d), &f, NULL), 0);
	out(0xcf8, 0x80000000, 4);
	assert_int_equal(in(0xcfc, 4), 0x29c08086);
	assert_int_equal(peek(ecam, 4), 0x10421af4);
	assert_int_equal(peek(ecam + 0x10, 8), MMIO32_BASE | 4);
	poke(ecam + 0x10, 0xffffffff, 4);
	assert_int_equal(peek(ecam + 0x10, 4), 0xffffc004);
	poke(ecam + 0x10, MMIO32_BASE, 4);
	poke(ecam + 4, 6, 2);
	poke(MMIO32_BASE + 0x2010, 0xfee02000, 4);
	poke(MMIO32_BASE + 0x2018, 0x44, 4);
	poke(ecam + f.msix.cap + 2, 0x8000, 2);
	msix_send(&f, 1);
	assert_int_equal(b.msis, 0);
	assert_int_equal(peek(MMIO32_BASE + 0x3000, 8), 2);
	poke(MMIO32_BASE + 0x201c, 0, 4);
	assert_int_equal(b.msi_data, 0x44);
	poke(ecam + 4, 0, 2);
	assert_false(f.bar[0].region.added);
	pci_del(&f);
}

static const struct vmgenid_arg no_id;
static const struct {
	const struct dev_class *class;
	const void *arg;
} all[] = {
	{ &i8259_class, NULL },		 { &ioapic_class, NULL },
	{ &uart16550_class, &uart_arg }, { &i8254_class, NULL },
	{ &mc146818_class, NULL },	 { &hpet_class, NULL },
	{ &i8042_class, NULL },		 { &acpi_pm_class, NULL },
	{ &debug_exit_class, NULL },	 { &testdev_class, NULL },
	{ &fw_cfg_class, NULL },	 { &pci_host_class, NULL },
	{ &vmgenid_class, &no_id },	 { &pvpanic_class, NULL },
};

static void storm(void)
{
	static const uint64_t base[] = { IOAPIC_BASE, HPET_BASE, 0xff000000,
					 ECAM_BASE };

	for (int i = 0; i < 60000; i++) {
		unsigned size = 1 + rand() % 8;
		uint64_t v = (uint64_t)rand() << 33 ^ rand();
		uint16_t port = rand() % 0x2100;

		out(port, v, size);
		in(port, size);
		poke(base[i & 3] + rand() % 0x500, v, size);
		peek(base[i & 3] + rand() % 0x500, size);
	}
}

static void round_trip(struct dev *d)
{
	struct state *w = state_writer(1), *r, *again = state_writer(1);
	size_t len, len2;
	const void *data, *data2;

	pthread_mutex_lock(&d->lock);
	d->class->state(d, w);
	pthread_mutex_unlock(&d->lock);
	assert_int_equal(state_finish(w), 0);
	data = state_data(w, &len);
	d->class->reset(d);
	r = state_reader(data, len, 1);
	pthread_mutex_lock(&d->lock);
	d->class->state(d, r);
	assert_int_equal(state_finish(r), 0);
	d->class->state(d, again);
	assert_int_equal(d->class->check(d), 0);
	pthread_mutex_unlock(&d->lock);
	data2 = state_data(again, &len2);
	assert_int_equal(len, len2);
	if (len)
		assert_memory_equal(data, data2, len);
	state_free(w);
	state_free(r);
	state_free(again);
}

static void test_all(void **state)
{
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		struct dev *d = make(all[i].class, all[i].arg);

		storm();
		round_trip(d);
	}
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_pic),  T(test_ioapic),	     T(test_uart),
		T(test_time), T(test_power),	     T(test_pci),
		T(test_all),  T(test_generation_id), T(test_panic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
