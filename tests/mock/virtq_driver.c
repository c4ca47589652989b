/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq_driver.c - the driver side of a virtio device, over plain memory
 */
#include "mock/virtq_driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void *mem_at(struct guest_mem *mem, uint64_t gpa, uint64_t len)
{
	return gpa < MOCK_MEM && len <= MOCK_MEM - gpa ? mem->bytes + gpa
						       : NULL;
}

void mem_written(struct guest_mem *mem, uint64_t gpa, uint64_t len)
{
}

int mem_copy_in(struct guest_mem *mem, uint64_t gpa, const void *src,
		uint64_t len)
{
	void *p = mem_at(mem, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(p, src, len);
	return 0;
}

int mem_copy_out(struct guest_mem *mem, uint64_t gpa, void *dst, uint64_t len)
{
	void *p = mem_at(mem, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(dst, p, len);
	return 0;
}

struct mock_discard mock_discards[64];
unsigned mock_ndiscards;

int mem_discard(struct guest_mem *mem, uint64_t gpa, uint64_t len,
		uint64_t *freed)
{
	void *p = mem_at(mem, gpa, len);

	*freed = 0;
	if (!p || gpa % 4096 || len % 4096)
		return -EFAULT;
	memset(p, 0, len);
	*freed = len;
	if (mock_ndiscards < 64)
		mock_discards[mock_ndiscards] =
			(struct mock_discard){ gpa, len };
	__atomic_fetch_add(&mock_ndiscards, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static void on_msi(void *sink, uint64_t addr, uint32_t data)
{
	__atomic_fetch_add(&((struct mock *)sink)->messages, 1,
			   __ATOMIC_SEQ_CST);
}

static void on_news(void *sink, const char *id, int kind, int code)
{
	struct mock *m = sink;

	m->news = kind;
	m->news_code = code;
	__atomic_fetch_add(&m->nnews, 1, __ATOMIC_SEQ_CST);
}

static void on_log(void *sink, const char *id, const char *text)
{
	struct mock *m = sink;

	snprintf(m->said, sizeof(m->said), "%s", text);
	__atomic_fetch_add(&m->logs, 1, __ATOMIC_SEQ_CST);
}

bool mock_create(struct mock *m, const struct virtio_class *class,
		 const void *arg)
{
	memset(m, 0, sizeof(*m));
	m->mmio = bus_create("mmio");
	m->pio = bus_create("pio");
	m->env = (struct dev_env){
		.mmio = m->mmio,
		.pio = m->pio,
		.mem = &m->mem,
		.msi = { on_msi, m },
		.log = on_log,
		.news = on_news,
		.sink = m,
	};
	m->host = dev_create(&pci_host_class, "host", &m->env, NULL, NULL);
	if (!m->host)
		return false;
	m->env.pci = pci_host_bus(m->host);
	m->dev = dev_create(&class->dev, "dev0", &m->env, arg, NULL);
	if (!m->dev)
		return false;
	m->v = to_virtio(m->dev);
	return true;
}

void mock_destroy(struct mock *m)
{
	dev_destroy(m->dev);
	dev_destroy(m->host);
	bus_destroy(m->mmio);
	bus_destroy(m->pio);
}

void mock_common(struct mock *m, unsigned off, uint64_t value, unsigned size)
{
	virtio_pci_write(m->v, VPCI_COMMON + off, value, size);
}

uint8_t mock_status(struct mock *m)
{
	return virtio_pci_read(m->v, VPCI_COMMON + 20, 1);
}

void mock_start(struct mock *m, uint64_t features)
{
	features |= VIRTIO_F_VERSION_1;
	mock_common(m, 20, 0, 1);
	mock_common(m, 20, 3, 1);
	mock_common(m, 8, 0, 4);
	mock_common(m, 12, (uint32_t)features, 4);
	mock_common(m, 8, 1, 4);
	mock_common(m, 12, features >> 32, 4);
	mock_common(m, 20, 11, 1);
	for (unsigned q = 0; q < m->v->class->nqueues; q++) {
		uint64_t base = (uint64_t)q * MOCK_STEP;

		memset(m->mem.bytes + MOCK_DESC + base, 0, 0x3000);
		mock_common(m, 22, q, 2);
		mock_common(m, 24, MOCK_QSIZE, 2);
		mock_common(m, 26, q, 2);
		mock_common(m, 32, MOCK_DESC + base, 4);
		mock_common(m, 36, 0, 4);
		mock_common(m, 40, MOCK_AVAIL + base, 8);
		mock_common(m, 48, MOCK_USED + base, 8);
		mock_common(m, 28, 1, 2);
	}
	mock_common(m, 20, 15, 1);
}

void mock_desc(struct mock *m, unsigned q, unsigned i, uint64_t addr,
	       uint32_t len, uint16_t flags, uint16_t next)
{
	struct virtq_desc d = { addr, len, flags, next };

	memcpy(m->mem.bytes + MOCK_DESC + q * MOCK_STEP + 16 * i, &d, 16);
}

void mock_offer(struct mock *m, unsigned q, uint16_t head)
{
	uint16_t *avail =
		(uint16_t *)(void *)(m->mem.bytes + MOCK_AVAIL + q * MOCK_STEP);

	avail[2 + avail[1] % MOCK_QSIZE] = head;
	__atomic_store_n(&avail[1], avail[1] + 1, __ATOMIC_SEQ_CST);
}

void mock_post(struct mock *m, unsigned q, uint16_t head)
{
	mock_offer(m, q, head);
	virtio_pci_write(m->v, VPCI_NOTIFY + 4 * q, q, 2);
}

void mock_turn(struct mock *m, bool work, uint32_t queues)
{
	pthread_mutex_lock(&m->dev->lock);
	virtio_turn_locked(m->v, work, queues);
	pthread_mutex_unlock(&m->dev->lock);
}

uint16_t mock_used(struct mock *m, unsigned q)
{
	uint16_t *used =
		(uint16_t *)(void *)(m->mem.bytes + MOCK_USED + q * MOCK_STEP);

	return __atomic_load_n(&used[1], __ATOMIC_ACQUIRE);
}

uint32_t mock_used_len(struct mock *m, unsigned q, unsigned i)
{
	uint32_t len;

	memcpy(&len, m->mem.bytes + MOCK_USED + q * MOCK_STEP + 8 + 8 * i, 4);
	return len;
}

bool mock_wait(struct mock *m, unsigned q, uint16_t n)
{
	for (unsigned i = 0; i < 2000; i++) {
		if (mock_used(m, q) == n)
			return true;
		if (mock_status(m) & STATUS_NEEDS_RESET)
			return false;
		usleep(1000);
	}
	return false;
}

void mock_play(const uint8_t *data, size_t size,
	       void (*play)(const struct mock_record *r))
{
	for (unsigned i = 0; size > 4 && i < 64; i++) {
		struct mock_record r = { data[0], data[1], data[2], data[3],
					 data + 4 };

		r.len = (uint8_t)(r.len < size - 4 ? r.len : size - 4);
		play(&r);
		data += 4 + r.len;
		size -= 4u + r.len;
	}
}
