/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.c - the guest's time, and how it stands still
 *
 * KVM's TSC goes on whoever runs.  While time is stopped its distance from the
 * host's TSC is kept here, the deadlines that are compared with it are put
 * off, and the start moves the distance by what the host has counted since.
 */
#include "hv/kvm/kvm.h"

#include <errno.h>
#include <x86intrin.h>

enum { MSR_TSC_DEADLINE = 0x6e0 };

int kvm_clock_get(struct hv_vm *hv, uint64_t *ns)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	struct kvm_clock_data c = { 0 };
	int r;

	if (vm->stopped.on) {
		*ns = vm->stopped.clock;
		return 0;
	}
	r = kvm_ioctl(vm->fd, KVM_GET_CLOCK, &c);
	*ns = c.clock;
	return r < 0 ? r : 0;
}

int kvm_clock_set(struct hv_vm *hv, uint64_t ns)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	struct kvm_clock_data c = { .clock = ns };
	int r;

	if (vm->stopped.on) {
		vm->stopped.clock = ns;
		return 0;
	}
	r = kvm_ioctl(vm->fd, KVM_SET_CLOCK, &c);
	return r < 0 ? r : 0;
}

/* The TSC's distance from the host's, out or in. */
static int offset(struct kvm_vcpu *cpu, unsigned long request, uint64_t *value)
{
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)value,
	};

	return kvm_ioctl(cpu->fd, request, &a);
}

static int deadline(struct kvm_vcpu *cpu, unsigned long request,
		    uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} b = { .head.nmsrs = 1,
		.entry = { .index = MSR_TSC_DEADLINE, .data = *value } };
	int r = kvm_ioctl(cpu->fd, request, &b);

	*value = r == 1 ? b.entry.data : 0;
	return r < 0 ? r : 0;
}

int kvm_time_stop(struct hv_vm *hv)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t clock, none;
	int r;

	if (vm->stopped.on)
		return 0;
	r = kvm_clock_get(hv, &clock);
	if (r)
		return r;
	vm->stopped.tsc = __rdtsc();
	vm->stopped.clock = clock;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct kvm_vcpu *cpu = vm->cpus[i];

		if (!cpu)
			continue;
		cpu->has_offset =
			offset(cpu, KVM_GET_DEVICE_ATTR, &cpu->offset) >= 0;
		cpu->deadline = none = 0;
		deadline(cpu, KVM_GET_MSRS, &cpu->deadline);
		deadline(cpu, KVM_SET_MSRS, &none);
	}
	vm->stopped.on = true;
	return 0;
}

int kvm_time_start(struct hv_vm *hv)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t since;
	int r, ret;

	if (!vm->stopped.on)
		return 0;
	since = __rdtsc() - vm->stopped.tsc;
	vm->stopped.on = false;
	ret = kvm_clock_set(hv, vm->stopped.clock);
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct kvm_vcpu *cpu = vm->cpus[i];

		if (!cpu)
			continue;
		cpu->offset -= since;
		if (cpu->has_offset) {
			r = offset(cpu, KVM_SET_DEVICE_ATTR, &cpu->offset);
			ret = r < 0 && !ret ? r : ret;
		}
		/* 0 arms nothing; and the mode may not be that of deadlines. */
		if (cpu->deadline)
			deadline(cpu, KVM_SET_MSRS, &cpu->deadline);
	}
	return ret < 0 ? ret : 0;
}

int kvm_time_skip(struct hv_vm *hv, uint64_t ns)
{
	struct kvm_vm *vm = to_kvm_vm(hv);
	uint64_t ticks =
		(uint64_t)((unsigned __int128)ns * hv->tsc_khz / 1000000);

	if (!vm->stopped.on)
		return -EINVAL;
	vm->stopped.clock += ns;
	for (unsigned i = 0; i < HV_MAX_VCPUS; i++) {
		struct kvm_vcpu *cpu = vm->cpus[i];

		if (!cpu)
			continue;
		cpu->offset += ticks;
		/* Refused where the guest has no kvm-clock. */
		if (ns >= HV_TOLD_NS)
			kvm_ioctl(cpu->fd, KVM_KVMCLOCK_CTRL, NULL);
	}
	return 0;
}
