/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route.h - eventfds of hv.h: messages into the guest, doorbells out of it
 */
#ifndef SOFT_ROUTE_H
#define SOFT_ROUTE_H

#include "hv/soft/soft.h"

/* As hv_route(), hv_irqfd() and hv_doorbell(): the engine's operations. */
int route_set(struct hv_vm *vm, uint32_t gsi, uint64_t addr, uint32_t data);
int route_irqfd(struct hv_vm *vm, uint32_t gsi, int fd);
int route_doorbell(struct hv_vm *vm, const struct hv_doorbell *db, int fd,
		   bool add);

void route_finish(struct soft_vm *vm); /* no eventfd reaches the guest now */

#endif /* SOFT_ROUTE_H */
