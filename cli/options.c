/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options.c - the options that say what a machine is
 */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

const char machine_help[] =
	"  --kernel FILE         bzImage, ELF vmlinux or Multiboot kernel\n"
	"  --initrd FILE         initial RAM disk\n"
	"  --cmdline TEXT        kernel command line (default: console=ttyS0)\n"
	"  --cpus N              vCPUs, 1 to 64 (default 1)\n"
	"  --memory SIZE         RAM, with K, M or G (default 512M)\n"
	"  --engine NAME         auto, kvm, soft or soft,interp (default auto)\n"
	"  --disk FILE[,readonly][,format=raw|qcow2][,cache=cached|direct]\n"
	"       [,sync=full|data|none][,serial=TEXT][,on-enospc=error|pause]\n"
	"       [,KEY=VALUE...]\n"
	"                        a disk image or block device; may be repeated\n"
	"  --on-enospc error|pause  of all disks: the host has no space\n"
	"  --device KIND,...     debug-exit, pc-testdev, virtio-rng, virtio-blk,\n"
	"                        virtio-fs, virtio-net, virtio-vsock,\n"
	"                        virtio-balloon[,off]\n"
	"  --net shared|tap=NAME|unix=PATH|fd=N|none[,...]\n"
	"                        a network device (default shared: a NAT)\n"
	"  --forward HOST:GUEST  a port of the host leads to one of the guest\n"
	"  --share DIR[:TAG][,ro][,owner=host|guest][,KEY=VALUE...]\n"
	"                        a directory for the guest; may be repeated\n"
	"                        (mount -t virtiofs TAG /mnt; TAG: share)\n"
	"  --vsock PATH[,cid=N]  sockets of the guest as Unix sockets at PATH\n"
	"  --reboot exit|again   what a guest's reset does (default exit)\n"
	"  --panic stop|go-on    what a guest's panic does (default stop)\n"
	"  --gap SECONDS         the longest stop that the guest's clocks count, to\n"
	"                        300 (default 10)\n"
	"  --console WHERE       the console hvc0: stdio in place of the serial port,\n"
	"                        a file, pty, unix=PATH[,listen] or none (default)\n";

bool machine_option(struct machine_options *m, int c, const char *arg)
{
	static const struct option mine[] = { MACHINE_OPTIONS, { 0 } };

	for (const struct option *o = mine; o->name; o++) {
		if (o->val != c)
			continue;
		if (m->n == MAX_MACHINE_OPTIONS) {
			complain("too many options; the rest is not used");
			return true;
		}
		m->list[m->n].c = c;
		m->list[m->n++].arg = arg;
		return true;
	}
	return false;
}

bool machine_option_given(const struct machine_options *m, int c)
{
	for (unsigned i = 0; i < m->n; i++)
		if (m->list[i].c == c)
			return true;
	return false;
}

static int set_cpus(struct vm_config *cfg, const char *arg)
{
	char *end;
	long v = strtol(arg, &end, 10);

	if (*end || end == arg || v < 1 || v > VM_MAX_CPUS) {
		complain("--cpus %s: not a number from 1 to %d", arg,
			 VM_MAX_CPUS);
		return EXIT_USAGE;
	}
	vm_config_set_cpus(cfg, (unsigned)v);
	return 0;
}

static int set_memory(struct vm_config *cfg, const char *arg)
{
	uint64_t size;

	if (parse_size(arg, &size)) {
		complain("--memory %s: not a size such as 512M", arg);
		return EXIT_USAGE;
	}
	vm_config_set_memory(cfg, size);
	return 0;
}

static int set_reboot(struct vm_config *cfg, const char *arg)
{
	if (strcmp(arg, "exit") && strcmp(arg, "again")) {
		complain("--reboot %s: exit or again", arg);
		return EXIT_USAGE;
	}
	vm_config_set_reboot(cfg,
			     *arg == 'a' ? VM_REBOOT_AGAIN : VM_REBOOT_EXIT);
	return 0;
}

static int set_panic(struct vm_config *cfg, const char *arg)
{
	if (strcmp(arg, "stop") && strcmp(arg, "go-on")) {
		complain("--panic %s: stop or go-on", arg);
		return EXIT_USAGE;
	}
	vm_config_set_panic(cfg, *arg == 's' ? VM_PANIC_STOP : VM_PANIC_GO_ON);
	return 0;
}

static int set_gap(struct vm_config *cfg, const char *arg)
{
	char *end;
	unsigned long n = strtoul(arg, &end, 10);

	if (*arg < '0' || *arg > '9' || *end || n > VM_MAX_GAP) {
		complain("--gap %s: not a number of seconds from 0 to %d", arg,
			 VM_MAX_GAP);
		return EXIT_USAGE;
	}
	vm_config_set_gap(cfg, (unsigned)n);
	return 0;
}

static int set_on_enospc(struct vm_config *cfg, const char *arg)
{
	if (strcmp(arg, "error") && strcmp(arg, "pause")) {
		complain("--on-enospc %s: error or pause", arg);
		return EXIT_USAGE;
	}
	vm_config_set_on_enospc(cfg, *arg == 'p' ? VM_ON_ENOSPC_PAUSE
						 : VM_ON_ENOSPC_ERROR);
	return 0;
}

static int set_console(struct vm_config *cfg, const char *arg)
{
	struct husk_error err = { 0 };
	char spec[4200];

	if (!strcmp(arg, "none"))
		return 0;
	snprintf(spec, sizeof(spec), "virtio-serial,%s%s",
		 !strcmp(arg, "stdio") || !strcmp(arg, "pty") ? ""
		 : !strncmp(arg, "unix=", 5)		      ? "socket="
							      : "logFilePath=",
		 !strncmp(arg, "unix=", 5) ? arg + 5 : arg);
	if (!vm_config_add_device(cfg, spec, &err))
		return 0;
	complain("--console %s: %s", arg, err.text);
	return EXIT_USAGE;
}

static int apply(struct vm_config *cfg, int c, const char *arg)
{
	struct husk_error err = { 0 };
	int ret = 0;

	switch (c) {
	case 'k': ret = vm_config_set_kernel(cfg, arg); break;
	case 'i': ret = vm_config_set_initrd(cfg, arg); break;
	case 'c': ret = vm_config_set_cmdline(cfg, arg); break;
	case 'e': ret = vm_config_set_engine(cfg, arg); break;
	case 'n': return set_cpus(cfg, arg);
	case 'm': return set_memory(cfg, arg);
	case 'r': return set_reboot(cfg, arg);
	case 'P': return set_panic(cfg, arg);
	case 'G': return set_gap(cfg, arg);
	case 'O': return set_console(cfg, arg);
	case 'E': return set_on_enospc(cfg, arg);
	case 'd': ret = vm_config_add_disk_spec(cfg, arg, &err); break;
	case 'D': ret = vm_config_add_device(cfg, arg, &err); break;
	case 'N': ret = vm_config_add_net(cfg, arg, &err); break;
	case 'F': ret = vm_config_add_forward(cfg, arg, &err); break;
	case 'H': ret = vm_config_add_share(cfg, arg, &err); break;
	case 'V': ret = vm_config_add_vsock(cfg, arg, &err); break;
	}
	if (!ret)
		return 0;
	complain("%s", *err.text ? err.text : "out of memory");
	return EXIT_USAGE;
}

static bool speaks_of_nets(const struct machine_options *m)
{
	for (unsigned i = 0; i < m->n; i++)
		if (m->list[i].c == 'N' ||
		    (m->list[i].c == 'D' &&
		     !strncmp(m->list[i].arg, "virtio-net", 10)))
			return true;
	return false;
}

int machine_options_apply(const struct machine_options *m,
			  struct vm_config *cfg, bool default_net)
{
	int ret = 0;

	/* Some may stand before the network or the disk that they are of. */
	for (unsigned i = 0; i < m->n && !ret; i++)
		if (m->list[i].c != 'F' && m->list[i].c != 'E')
			ret = apply(cfg, m->list[i].c, m->list[i].arg);
	if (!ret && default_net && !speaks_of_nets(m))
		ret = apply(cfg, 'N', "shared");
	for (unsigned i = 0; i < m->n && !ret; i++)
		if (m->list[i].c == 'F' || m->list[i].c == 'E')
			ret = apply(cfg, m->list[i].c, m->list[i].arg);
	return ret;
}

int bad_option(const char *command, int c, char **argv)
{
	if (c == ':')
		complain("%s: a value is missing; husk %s --help lists the "
			 "options",
			 argv[optind - 1], command);
	else
		complain("%s: no such option; husk %s --help lists them",
			 argv[optind - 1], command);
	return EXIT_USAGE;
}
