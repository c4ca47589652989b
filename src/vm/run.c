/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c - the threads of the vCPUs and how a machine comes to its end
 *
 * Whoever finds a reason to stop calls run_end(): the first reason is kept,
 * every vCPU is kicked, and the last one to leave its loop announces the end.
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/thread.h"
#include "vm/chips.h"
#include "vm/virtio.h"

/* For readers of the guest's last words, who may be slow or asleep. */
#define DRAIN_NS 500000000ull

/* -- the end -------------------------------------------------------------- */

/* Nothing runs any more, or ever did. */
static void announce(struct vm *vm)
{
	uint64_t one = 1;
	bool was;

	pthread_mutex_lock(&vm->lock);
	was = vm->has_stopped;
	vm->has_stopped = true;
	pthread_mutex_unlock(&vm->lock);
	if (was)
		return;
	machine_news(vm, NULL, VM_NEWS_STOPPED, 0);
	if (vm->stopped)
		vm->stopped(vm->stopped_opaque);
	/* Cannot fail: the counter of the eventfd is zero. */
	if (write(vm->event_fd, &one, sizeof(one)) < 0)
		errno = 0;
	pthread_mutex_lock(&vm->lock);
	pthread_cond_broadcast(&vm->ended);
	pthread_mutex_unlock(&vm->lock);
}

void run_end(struct vm *vm, enum vm_stop_reason reason, int code,
	     const char *text)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->result.reason == VM_STOP_NONE) {
		vm->result.reason = reason;
		vm->result.code = code;
		vm->result.again = reason == VM_STOP_RESET && vm->again;
		snprintf(vm->result.text, sizeof(vm->result.text), "%s",
			 text ? text : "");
	}
	atomic_store(&vm->stopping, true);
	pthread_cond_broadcast(&vm->go);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned i = 0; i < vm->ncpus; i++)
		hv_vcpu_kick(vm->cpu[i].hv);
}

struct text {
	char buf[2048];
	size_t len;
};

static void __attribute__((format(printf, 2, 3)))
add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->len, sizeof(t->buf) - t->len, fmt, ap);
	va_end(ap);
	if (n > 0)
		t->len = MIN(t->len + n, sizeof(t->buf) - 1);
}

static void add_registers(struct text *t, struct vcpu *cpu)
{
	static const char *const name[16] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
	};
	static const char *const seg[8] = {
		"es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr",
	};
	struct hv_state s;

	if (hv_vcpu_get(cpu->hv, HV_STATE_GENERAL | HV_STATE_SYSTEM, &s))
		return;
	for (unsigned i = 0; i < 16; i++)
		add(t, "%-3s %016llx%s", name[i], (unsigned long long)s.gpr[i],
		    i % 4 == 3 ? "\n" : "  ");
	add(t, "rip %016llx  rflags %llx\n", (unsigned long long)s.rip,
	    (unsigned long long)s.rflags);
	add(t, "cr0 %llx  cr2 %llx  cr3 %llx  cr4 %llx  efer %llx\n",
	    (unsigned long long)s.cr0, (unsigned long long)s.cr2,
	    (unsigned long long)s.cr3, (unsigned long long)s.cr4,
	    (unsigned long long)s.efer);
	for (unsigned i = 0; i < 8; i++)
		add(t, "%-3s %04x base %llx limit %x access %x\n", seg[i],
		    s.seg[i].selector, (unsigned long long)s.seg[i].base,
		    s.seg[i].limit, s.seg[i].access);
	add(t, "gdt %llx limit %x  idt %llx limit %x\n",
	    (unsigned long long)s.gdtr.base, s.gdtr.limit,
	    (unsigned long long)s.idtr.base, s.idtr.limit);
}

static void add_last_exit(struct text *t, const struct hv_exit *e)
{
	switch (e->reason) {
	case HV_EXIT_MMIO:
		add(t, "last exit: %s of %u bytes at %llx, value %llx\n",
		    e->mmio.write ? "write" : "read", e->mmio.size,
		    (unsigned long long)e->mmio.gpa,
		    (unsigned long long)e->mmio.value);
		break;
	case HV_EXIT_PIO:
		add(t, "last exit: %s of %u bytes, port %x, value %x\n",
		    e->pio.write ? "out" : "in", e->pio.size, e->pio.port,
		    e->pio.value);
		break;
	case HV_EXIT_MSR:
		add(t, "last exit: %s of MSR %x\n",
		    e->msr.write ? "write" : "read", e->msr.index);
		break;
	case HV_EXIT_EOI:
		add(t, "last exit: end of interrupt, vector %x\n",
		    e->eoi.vector);
		break;
	case HV_EXIT_IRQ_WINDOW: add(t, "last exit: interrupt window\n"); break;
	default: add(t, "last exit: none\n");
	}
}

static void died(struct vcpu *cpu)
{
	struct text t = { .len = 0 };

	add(&t, "triple fault on CPU %u\n", hv_vcpu_id(cpu->hv));
	add_registers(&t, cpu);
	add_last_exit(&t, &cpu->last);
	run_end(cpu->vm, VM_STOP_DIED, 0, t.buf);
}

static void failed(struct vcpu *cpu, const char *what)
{
	struct text t = { .len = 0 };

	add(&t, "CPU %u: %s\n", hv_vcpu_id(cpu->hv), what);
	add_registers(&t, cpu);
	add_last_exit(&t, &cpu->last);
	run_end(cpu->vm, VM_STOP_ERROR, 0, t.buf);
}

/* -- exits ---------------------------------------------------------------- */

static void do_mmio(struct vm *vm, struct hv_exit *e)
{
	if (e->mmio.write) {
		bus_write(vm->mmio, e->mmio.gpa, e->mmio.size, e->mmio.value);
		return;
	}
	e->mmio.value = ~0ull;
	if (!bus_read(vm->mmio, e->mmio.gpa, e->mmio.size, &e->mmio.value))
		e->mmio.value = ~0ull;
}

static void do_pio(struct vm *vm, struct hv_exit *e)
{
	uint64_t value = ~0ull;

	if (e->pio.write) {
		bus_write(vm->pio, e->pio.port, e->pio.size, e->pio.value);
		return;
	}
	if (!bus_read(vm->pio, e->pio.port, e->pio.size, &value))
		value = ~0ull;
	e->pio.value = value;
}

/* The PIC's output is wired to LINT0 of the first CPU only. */
void run_pic_output(void *sink, bool level)
{
	struct vm *vm = sink;

	if (vm->ncpus)
		hv_vcpu_want_window(vm->cpu[0].hv, level);
}

static void do_window(struct vcpu *cpu)
{
	struct vm *vm = cpu->vm;

	/* Any CPU: the IOAPIC can send ExtINT where it likes. */
	if (pic_output(vm->pic))
		hv_vcpu_inject(cpu->hv, pic_acknowledge(vm->pic));
	hv_vcpu_want_window(cpu->hv, cpu == &vm->cpu[0] && pic_output(vm->pic));
}

bool run_exit(struct vcpu *cpu)
{
	struct hv_exit *e = &cpu->exit;

	switch (e->reason) {
	case HV_EXIT_MMIO: do_mmio(cpu->vm, e); break;
	case HV_EXIT_PIO: do_pio(cpu->vm, e); break;
	case HV_EXIT_MSR: e->msr.fault = true; break;
	case HV_EXIT_EOI: ioapic_eoi(cpu->vm->ioapic, e->eoi.vector); break;
	case HV_EXIT_IRQ_WINDOW: do_window(cpu); break;
	case HV_EXIT_SHUTDOWN: died(cpu); return false;
	case HV_EXIT_ERROR:
		e->error.text[sizeof(e->error.text) - 1] = 0;
		failed(cpu, e->error.text);
		return false;
	default: return true;
	}
	cpu->last = *e;
	return true;
}

/* Nothing may be half done while others look at the vCPU.  As run_exit(). */
static bool settle(struct vcpu *cpu)
{
	int ret;

	while ((ret = hv_vcpu_complete(cpu->hv, &cpu->exit)) == 1)
		if (!run_exit(cpu))
			return false;
	if (ret < 0) {
		failed(cpu, strerror(-ret));
		return false;
	}
	/* The rest of the instruction may have been its end. */
	if (cpu->exit.reason == HV_EXIT_SHUTDOWN ||
	    cpu->exit.reason == HV_EXIT_ERROR)
		return run_exit(cpu);
	return true;
}

static bool park(struct vcpu *cpu)
{
	struct vm *vm = cpu->vm;

	if (!settle(cpu))
		return false;
	pthread_mutex_lock(&vm->lock);
	vm->parked++;
	pthread_cond_broadcast(&vm->parked_change);
	while (atomic_load(&vm->pausing) && !atomic_load(&vm->stopping))
		pthread_cond_wait(&vm->go, &vm->lock);
	vm->parked--;
	pthread_cond_broadcast(&vm->parked_change);
	pthread_mutex_unlock(&vm->lock);
	return true;
}

void run_park(struct vm *vm)
{
	atomic_store(&vm->pausing, true);
	for (unsigned i = 0; i < vm->ncpus; i++)
		hv_vcpu_kick(vm->cpu[i].hv);
	pthread_mutex_lock(&vm->lock);
	while (vm->parked < vm->running)
		pthread_cond_wait(&vm->parked_change, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

void run_go(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	atomic_store(&vm->pausing, false);
	pthread_cond_broadcast(&vm->go);
	/* Who is parked now must not be counted by the next run_park(). */
	while (vm->parked)
		pthread_cond_wait(&vm->parked_change, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *cpu = arg;
	struct vm *vm = cpu->vm;
	bool last, cut;
	int ret;

	while (!atomic_load(&vm->stopping)) {
		if (atomic_load(&vm->pausing) && !park(cpu))
			break;
		if (atomic_load(&vm->stopping))
			break;
		ret = hv_vcpu_run(cpu->hv, &cpu->exit);
		if (ret == -EINTR || ret == -EAGAIN)
			continue;
		if (ret < 0) {
			failed(cpu, strerror(-ret));
			break;
		}
		if (!run_exit(cpu))
			break;
	}

	pthread_mutex_lock(&vm->lock);
	last = --vm->running == 0;
	cut = vm->result.reason == VM_STOP_STOPPED;
	pthread_cond_broadcast(&vm->parked_change);
	pthread_mutex_unlock(&vm->lock);
	if (!last)
		return NULL;
	/* What the guest has said comes before the news of its end. */
	uart_flush(vm->uart);
	if (!cut)
		virtio_console_drain(vm->console, DRAIN_NS);
	end_drain(vm->serial_end);
	end_drain(vm->end[0]);
	announce(vm);
	return NULL;
}

/* -- start and join ------------------------------------------------------- */

int run_start(struct vm *vm, struct husk_error *err)
{
	char name[16];
	int ret = 0;

	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->ncpus && !ret; i++) {
		struct vcpu *cpu = &vm->cpu[i];

		snprintf(name, sizeof(name), "vcpu%u", i);
		ret = thread_start(&cpu->thread, name, vcpu_main, cpu);
		if (!ret) {
			cpu->started = true;
			vm->running++;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	if (!ret)
		return 0;
	run_failed(vm, "cannot start a thread");
	return error_errno(err, ret, "starting the threads of the CPUs");
}

void run_failed(struct vm *vm, const char *text)
{
	run_end(vm, VM_STOP_ERROR, 0, text);
	run_join(vm);
	/* Without a vCPU thread there is none to announce it. */
	announce(vm);
}

void run_join(struct vm *vm)
{
	for (unsigned i = 0; i < vm->ncpus; i++) {
		if (!vm->cpu[i].started)
			continue;
		pthread_join(vm->cpu[i].thread, NULL);
		vm->cpu[i].started = false;
	}
}

int vm_cpu_stats(const struct vm *vm, unsigned cpu, struct hv_stats *stats)
{
	if (cpu >= vm->ncpus || !vm->cpu[cpu].hv)
		return -ENOENT;
	return hv_vcpu_stats(vm->cpu[cpu].hv, stats);
}
