/* SPDX-License-Identifier: Apache-2.0 */
/*
 * first.S - a guest whose first instructions say so on the serial port
 *
 * An ELF file with a PVH entry: the machine starts it in 32-bit mode without
 * paging.  It writes "F\n" and halts.
 */
	.section .note.Xen, "a", @note
	.long	4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.text
	.code32
	.globl	_start
_start:	mov	$0x3f8, %edx
	mov	$'F', %al
	out	%al, %dx
	mov	$'\n', %al
	out	%al, %dx
1:	cli
	hlt
	jmp	1b
