/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create.c - husk create: makes a named machine from an image
 */
#include "create.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "boot.h"
#include "cli.h"
#include "image.h"
#include "setup.h"

static const char help[] =
	"usage: husk create NAME --from debian|FILE [OPTION...]\n"
	"\n"
	"  --from debian         Debian 12, made of its packages and kept in the cache\n"
	"  --from FILE           a disk image, raw or .qcow2, which is copied\n"
	"  --overlay             keep what differs from FILE, which must stay\n"
	"  --disk-size SIZE      of the disk, with M, G or T (debian: 20G)\n"
	"  --user NAME           a user who needs no password at the console\n"
	"                        (debian: your own name)\n"
	"  --ssh-key FILE        public keys of that user; starts the ssh server\n"
	"  --cloud-init DIR      user-data and meta-data for cloud-init\n";

static const char more_help[] =
	"                        (debian: 1G of memory and 2 vCPUs)\n"
	"  --help                print the options\n"
	"\n"
	"The machine's definition is vm.json in its folder, which husk info names.\n";

/* Of machines from an image of ours. */
#define IMAGE_DISK (20ull << 30)
enum { IMAGE_MEMORY = 1 << 30, IMAGE_CPUS = 2 };

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static bool stop(void)
{
	return interrupted;
}

static bool go_on(void)
{
	return !interrupted;
}

/* -- the disk ------------------------------------------------------------- */

static int failed(const struct husk_error *err)
{
	complain("%s", err->text);
	return EXIT_FAULT;
}

static const char *format_of(const char *path)
{
	size_t n = strlen(path);

	return n > 6 && !strcmp(path + n - 6, ".qcow2") ? "qcow2" : "raw";
}

static int stand_on(const char *file, const char *path, uint64_t size)
{
	struct vm_disk_create how = { .format = "qcow2", .size = size };
	struct husk_error err = { 0 };
	char *full = realpath(file, NULL);
	int ret;

	if (!full) {
		complain("%s: %s", file, strerror(errno));
		return EXIT_USAGE;
	}
	how.base = full;
	how.base_format = format_of(file);
	ret = vm_disk_create(path, &how, &err) ? failed(&err) : 0;
	free(full);
	return ret;
}

static int copy(const char *file, const char *path, uint64_t size)
{
	struct vm_disk_convert how = { .from_format = format_of(file),
				       .format = "qcow2" };
	struct bar bar = { .what = "copying", .go_on = go_on };
	struct husk_error err = { 0 };
	struct vm_disk_info info = { .size = 0 };
	int ret = vm_disk_convert(file, path, &how, bar_progress, &bar, &err);

	bar_end(&bar);
	if (!ret && size)
		ret = vm_disk_info(path, "qcow2", &info, &err);
	if (!ret && size > info.size)
		ret = vm_disk_resize(path, "qcow2", size, false, &err);
	else if (!ret && size && size < info.size)
		complain("--disk-size: the image is larger, and stays so");
	return ret ? failed(&err) : 0;
}

static int from_file(struct place *p, const struct create *c,
		     struct vm_config *cfg)
{
	char path[PATH_SIZE];
	int ret = place_file(p, "disk.qcow2", path);

	if (!ret)
		ret = c->overlay ? stand_on(c->from, path, c->disk_size)
				 : copy(c->from, path, c->disk_size);
	if (!ret && (vm_config_add_disk(cfg, path, false) ||
		     vm_config_set_note(cfg, "image", c->from)))
		ret = EXIT_FAULT;
	return ret;
}

/* -- an image of ours ------------------------------------------------------ */

/* The file at to is the one at from: it stays when the cache is emptied. */
static int link_file(const char *from, const char *to)
{
	char buf[1 << 16];
	int in, out, ret = 0;
	ssize_t n;

	if (!link(from, to))
		return 0;
	/* On another file system: a copy, by reference where that works. */
	in = open(from, O_RDONLY | O_CLOEXEC);
	out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
	if (in < 0 || out < 0)
		ret = -errno;
	if (!ret && ioctl(out, FICLONE, in)) {
		while ((n = read(in, buf, sizeof(buf))) > 0 && !interrupted) {
			/* Zeros become holes. */
			bool zero =
				!*buf && !memcmp(buf, buf + 1, (size_t)n - 1);

			if (zero ? lseek(out, n, SEEK_CUR) < 0
				 : write(out, buf, (size_t)n) != n)
				break;
		}
		if (n)
			ret = errno ? -errno : -EIO;
		else if (ftruncate(out, lseek(out, 0, SEEK_CUR)))
			ret = -errno;
	}
	if (in >= 0)
		close(in);
	if (out >= 0)
		close(out);
	return ret;
}

static int link_image(struct place *p, const char *image)
{
	static const char *const files[][2] = {
		{ "disk.raw", "base.raw" },
		{ "vmlinuz", "vmlinuz" },
		{ "initrd", "initrd" },
	};

	for (unsigned i = 0; i < 3; i++) {
		char from[PATH_SIZE + 16], to[PATH_SIZE];
		int ret;

		snprintf(from, sizeof(from), "%s/%s", image, files[i][0]);
		ret = place_file(p, files[i][1], to);
		if (ret)
			return ret;
		ret = link_file(from, to);
		if (ret) {
			complain("%s: %s", to, strerror(-ret));
			return EXIT_FAULT;
		}
	}
	return 0;
}

static int set_boot(struct place *p, struct vm_config *cfg)
{
	char path[PATH_SIZE];
	int ret = place_file(p, "vmlinuz", path);

	if (!ret && vm_config_set_kernel(cfg, path))
		ret = EXIT_FAULT;
	if (!ret)
		ret = place_file(p, "initrd", path);
	if (!ret && vm_config_set_initrd(cfg, path))
		ret = EXIT_FAULT;
	return ret;
}

static int from_image(struct place *p, const struct create *c,
		      struct vm_config *cfg)
{
	struct vm_disk_create how = { .format = "qcow2",
				      .base = "base.raw",
				      .base_format = "raw" };
	struct husk_error err = { 0 };
	char image[PATH_SIZE], path[PATH_SIZE];
	int ret = image_get(c->from, c->cloud_init != NULL, stop, image,
			    sizeof(image));

	if (!ret)
		ret = link_image(p, image);
	if (!ret)
		ret = place_file(p, "disk.qcow2", path);
	how.size = c->disk_size ? c->disk_size : IMAGE_DISK;
	if (!ret && vm_disk_create(path, &how, &err))
		ret = failed(&err);
	if (!ret &&
	    (vm_config_add_disk(cfg, path, false) ||
	     vm_config_set_note(cfg, "image", c->from) ||
	     vm_config_set_note(cfg, "boot", "disk") ||
	     vm_config_set_cmdline(cfg, "root=/dev/vda console=ttyS0 quiet "
					"systemd.show_status=yes")))
		ret = EXIT_FAULT;
	vm_config_set_memory(cfg, IMAGE_MEMORY);
	vm_config_set_cpus(cfg, IMAGE_CPUS);
	return ret ? ret : set_boot(p, cfg);
}

/* A guest is told things only when there are some. */
static int add_seed(struct place *p, const struct create *c,
		    struct vm_config *cfg)
{
	struct setup u = { p->name, c->user, c->ssh_key, c->cloud_init };
	struct husk_error err = { 0 };
	char path[PATH_SIZE], spec[PATH_SIZE + 64], user[32];
	int ret;

	if (image_is_known(c->from) && !u.user) {
		setup_default_user(user, sizeof(user));
		u.user = user;
	} else if (!u.user && !u.ssh_key && !u.cloud_init) {
		return 0;
	}
	ret = place_file(p, "seed.iso", path);
	if (!ret)
		ret = setup_write(&u, path);
	if (ret)
		return ret;
	snprintf(spec, sizeof(spec), "%s,format=raw,readonly,serial=seed",
		 path);
	if (u.user && vm_config_set_note(cfg, "user", u.user))
		return EXIT_FAULT;
	return vm_config_add_disk_spec(cfg, spec, &err) ? failed(&err) : 0;
}

/* -- the machine ---------------------------------------------------------- */

static void problem(void *opaque, const char *text)
{
	complain("%s", text);
}

/* A kernel that was not named is the one on the disk. */
static int find_kernel(struct place *p, const struct create *c,
		       struct vm_config *cfg)
{
	struct husk_error err = { 0 };
	unsigned partition = 0;
	char cmdline[80];

	if (machine_option_given(&c->machine, 'k'))
		return 0;
	if (boot_from_disk(p, cfg, &partition, &err)) {
		complain("%s; a disk cannot boot by itself yet: give --kernel, "
			 "and --initrd and --cmdline where they are needed",
			 err.text);
		return EXIT_USAGE;
	}
	if (partition) {
		snprintf(cmdline, sizeof(cmdline),
			 "console=ttyS0 root=/dev/vda%u rw", partition);
		vm_config_set_cmdline(cfg, cmdline);
	}
	if (vm_config_set_note(cfg, "boot", "disk"))
		return EXIT_FAULT;
	return set_boot(p, cfg);
}

static int configure(struct place *p, const struct create *c,
		     struct vm_config *cfg)
{
	bool known = image_is_known(c->from);
	int ret;

	vm_config_set_memory(cfg, 512u << 20);
	vm_config_set_reboot(cfg, VM_REBOOT_AGAIN);
	vm_config_set_cmdline(cfg, "console=ttyS0 root=/dev/vda rw");
	ret = known ? from_image(p, c, cfg) : from_file(p, c, cfg);
	if (!ret && !known)
		ret = find_kernel(p, c, cfg);
	if (!ret)
		ret = machine_options_apply(&c->machine, cfg, true);
	if (!ret)
		ret = add_seed(p, c, cfg);
	if (!ret && vm_config_validate(cfg, problem, NULL))
		ret = EXIT_USAGE;
	return ret;
}

static int save(const struct place *p, const struct vm_config *cfg)
{
	struct husk_error err = { 0 };
	char path[PATH_SIZE];
	int ret = place_file(p, "vm.json", path);

	if (!ret && vm_config_save(cfg, path, &err))
		ret = failed(&err);
	return ret;
}

/* In a folder that nobody else sees before it is complete. */
static int create_in(struct place *p, const struct create *c)
{
	struct vm_config *cfg = vm_config_create();
	int ret = cfg ? configure(p, c, cfg) : EXIT_FAULT;

	if (!ret)
		ret = save(p, cfg);
	if (!ret && interrupted)
		ret = EXIT_FAULT;
	if (!ret)
		ret = place_publish(p);
	vm_config_destroy(cfg);
	return ret;
}

int create_machine(const char *name, const struct create *c)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal }, before[3];
	struct place p;
	int ret;

	for (int i = 0; i < 3; i++)
		sigaction(ends[i], &sa, &before[i]);
	ret = place_begin(&p, name);
	if (!ret) {
		ret = create_in(&p, c);
		place_abandon(&p);
	}
	for (int i = 0; i < 3; i++)
		sigaction(ends[i], &before[i], NULL);
	if (interrupted) {
		complain("interrupted; nothing was made");
		raise(interrupted);
	}
	return ret;
}

/* -- the command ---------------------------------------------------------- */

/* -1: all is done. */
static int parse(struct create *c, int argc, char **argv)
{
	static const struct option options[] = {
		MACHINE_OPTIONS,
		{ "from", 1, NULL, 'f' },
		{ "overlay", 0, NULL, 'o' },
		{ "disk-size", 1, NULL, 'z' },
		{ "user", 1, NULL, 'u' },
		{ "ssh-key", 1, NULL, 'K' },
		{ "cloud-init", 1, NULL, 'I' },
		{ "help", 0, NULL, 'h' },
		{ 0 },
	};
	int o;

	opterr = 0;
	while ((o = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (machine_option(&c->machine, o, optarg))
			continue;
		switch (o) {
		case 'f': c->from = optarg; break;
		case 'u': c->user = optarg; break;
		case 'K': c->ssh_key = optarg; break;
		case 'I': c->cloud_init = optarg; break;
		case 'o': c->overlay = true; break;
		case 'z':
			if (parse_size(optarg, &c->disk_size)) {
				complain("--disk-size %s: not a size such as "
					 "20G",
					 optarg);
				return EXIT_USAGE;
			}
			break;
		case 'h':
			printf("%s%s%s", help, machine_help, more_help);
			return -1;
		default: return bad_option("create", o, argv);
		}
	}
	if (argc - optind != 1) {
		complain("create: one name is needed; husk create --help");
		return EXIT_USAGE;
	}
	if (!c->from) {
		complain("create: --from says what the machine is made from; "
			 "husk create --help");
		return EXIT_USAGE;
	}
	return 0;
}

int cmd_create(int argc, char **argv)
{
	struct create c = { 0 };
	int ret = parse(&c, argc, argv);

	if (ret)
		return ret < 0 ? 0 : ret;
	return create_machine(argv[optind], &c);
}
