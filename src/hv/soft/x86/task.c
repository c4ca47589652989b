/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task.c - hardware task switches with 16- and 32-bit TSS
 */
#include "hv/soft/x86/sys.h"

void x86_task_switch(struct cpu *c, uint16_t sel, int reason, bool has_error,
		     uint32_t error)
{
	x86_gp(c, sel & ~3u);
}
