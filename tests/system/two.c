/* SPDX-License-Identifier: Apache-2.0 */
/*
 * two.c - two machines with all devices in one process, at the same time
 *
 * two DEMO TOOLS
 *
 * Each guest reads its own raw disk, qcow2 disk and shared directory, writes
 * what it makes of them to all places it has, and has its own balloon,
 * generation ID, networks, sockets and named port.  Nothing may be the other's.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api.h"

enum { DISK = 1 << 20 };

struct guest {
	char dir[64];
	struct vm_config *cfg;
	struct vm *vm;
	pid_t server; /* of the guest's connections */
	pthread_mutex_t lock;
	char said[1 << 15];
	size_t len;
};

static struct guest guests[2];

static void output(void *opaque, const void *data, size_t len)
{
	struct guest *g = opaque;

	pthread_mutex_lock(&g->lock);
	if (len > sizeof(g->said) - 1 - g->len)
		len = sizeof(g->said) - 1 - g->len;
	memcpy(g->said + g->len, data, len);
	g->len += len;
	pthread_mutex_unlock(&g->lock);
}

static void write_file(const struct guest *g, const char *name, char c,
		       size_t len)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%.60s/%.30s", g->dir, name);
	f = fopen(path, "w");
	if (!f)
		fail(path);
	for (size_t i = 0; i < len; i++)
		fputc(c + (int)(i * 31 % 17), f);
	fclose(f);
}

static bool file_has(const struct guest *g, const char *name, const char *text)
{
	char path[128], buf[4096] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%.60s/%.30s", g->dir, name);
	f = fopen(path, "r");
	if (!f)
		return false;
	if (!fread(buf, 1, sizeof(buf) - 1, f))
		buf[0] = 0;
	fclose(f);
	return strstr(buf, text);
}

/* The sum that the guest is to find, by the host's own program. */
static void sum_of(const struct guest *g, char *sum)
{
	char command[512];
	FILE *p;

	snprintf(command, sizeof(command),
		 "cat %.60s/share/in %.60s/raw | md5sum", g->dir, g->dir);
	p = popen(command, "r");
	if (!p || fscanf(p, "%32s", sum) != 1)
		fail("md5sum");
	pclose(p);
}

static void run(const char *command)
{
	if (system(command)) /* NOLINT(cert-env33-c) */
		fail(command);
}

/* Who answers this guest's connections to port 77. */
static void serve(struct guest *g, const char *tools)
{
	char program[512], where[128];

	snprintf(program, sizeof(program), "cp %.400s/sock %.60s/share/sock",
		 tools, g->dir);
	run(program);
	snprintf(program, sizeof(program), "%.400s/sock", tools);
	snprintf(where, sizeof(where), "unix:%.60s/vsock_77", g->dir);
	fflush(stdout);
	g->server = fork();
	if (g->server)
		return;
	if (freopen("/dev/null", "w", stdout))
		execl(program, "sock", where, "serve", NULL);
	_exit(1);
}

/* All kinds of devices there are, so that none is forgotten here. */
static void has_all(struct vm *vm)
{
	static const char *const kinds[] = {
		"virtio-blk", "virtio-net",	"virtio-console",
		"virtio-rng", "virtio-balloon", "virtio-vsock",
		"virtio-fs",  "vmgenid",	"pvpanic",
		"debug-exit", "uart16550",
	};
	struct vm_device d;

	for (unsigned k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		unsigned i = 0;

		while (!vm_get_device(vm, i, &d) && strcmp(d.kind, kinds[k]))
			i++;
		if (vm_get_device(vm, i, &d))
			fail(kinds[k]);
	}
}

static void must(int ret, const struct husk_error *err)
{
	if (ret)
		fail(err->text);
}

static void configure(struct guest *g, unsigned n, char **argv)
{
	struct vm_disk_create image = { .size = DISK };
	struct husk_error err = { 0 };
	char text[512];

	snprintf(g->dir, sizeof(g->dir), "/tmp/husk-two-XXXXXX");
	if (!mkdtemp(g->dir))
		fail(g->dir);
	pthread_mutex_init(&g->lock, NULL);
	snprintf(text, sizeof(text), "%.60s/share", g->dir);
	mkdir(text, 0755);
	write_file(g, "share/in", (char)('a' + n), 70000);
	write_file(g, "raw", (char)('A' + n), DISK);
	g->cfg = vm_config_create();
	serve(g, argv[2]);
	setup(g->cfg, argv[1]);
	vm_config_set_output(g->cfg, VM_SERIAL, output, g);
	vm_config_set_cpus(g->cfg, 1 + n);
	snprintf(text, sizeof(text), "%.60s/image.qcow2", g->dir);
	must(vm_disk_create(text, &image, &err), &err);
	must(vm_config_add_disk_spec(g->cfg, text, &err), &err);
	snprintf(text, sizeof(text), "%.60s/raw,readonly", g->dir);
	must(vm_config_add_disk_spec(g->cfg, text, &err), &err);
	snprintf(text, sizeof(text), "shared,mac=52:54:00:00:00:0%u", n + 1);
	must(vm_config_add_net(g->cfg, text, &err), &err);
	must(vm_config_add_net(g->cfg, "null", &err), &err);
	snprintf(text, sizeof(text), "unix=%.60s/cable,listen", g->dir);
	must(vm_config_add_net(g->cfg, text, &err), &err);
	snprintf(text, sizeof(text), "%.60s/share:share", g->dir);
	must(vm_config_add_share(g->cfg, text, &err), &err);
	snprintf(text, sizeof(text), "%.60s/vsock", g->dir);
	must(vm_config_add_vsock(g->cfg, text, &err), &err);
	snprintf(text, sizeof(text),
		 "virtio-serial,name=port,logFilePath=%.60s/port", g->dir);
	must(vm_config_add_device(g->cfg, text, &err), &err);
	must(vm_config_add_device(g->cfg, "virtio-serial,pty", &err), &err);
	must(vm_config_add_device(g->cfg, "virtio-rng", &err), &err);
	must(vm_config_add_device(g->cfg, "debug-exit", &err), &err);
	snprintf(text, sizeof(text), "virtio-balloon,target=%uM", 200 + 20 * n);
	must(vm_config_add_device(g->cfg, text, &err), &err);
	vm_config_set_cmdline(
		g->cfg,
		"console=ttyS0 quiet husk.run=\""
		"mkdir /s; mount -t virtiofs share /s || echo OLD;"
		"sum=$(cat /s/in /dev/vdb | md5sum | cut -c1-32);"
		"for i in 1 2 3 4 5 6 7 8 9; do "
		"[ -e /dev/vport0p1 -a -e /sys/class/net/eth0 ] || sleep 1; done;"
		"echo SUM $sum; echo $sum >/s/out; echo $sum >/dev/vport0p1;"
		"echo $sum >/dev/vda; sync; head -c 32 /dev/vda >/s/again;"
		"cat /sys/class/net/eth0/address; nproc;"
		"for m in vsock vmw_vsock_virtio_transport_common "
		"vmw_vsock_virtio_transport; do insmod /m/$m.ko; done;"
		"/s/sock vsock:2:77 up 2; ls /sys/class/net | wc -l;"
		"head -c 100000 /dev/hwrng | md5sum;"
		"read a; echo END $sum; poweroff -f\"");
}

static void check(struct guest *g, unsigned n)
{
	char sum[64], line[128];

	sum_of(g, sum);
	snprintf(line, sizeof(line), "SUM %s", sum);
	if (!strstr(g->said, line))
		fail(g->said);
	snprintf(line, sizeof(line), "52:54:00:00:00:0%u\r\n%u\r\n", n + 1,
		 n + 1);
	if (!strstr(g->said, line))
		fail(g->said);
	if (!file_has(g, "share/out", sum) || !file_has(g, "share/again", sum))
		fail("the share or the qcow2 disk");
	if (!strstr(g->said, "up 2 MiB sum") || !strstr(g->said, "\r\n4\r\n"))
		fail(g->said);
	if (!file_has(g, "port", sum))
		fail("the named port");
}

static bool saw(struct guest *g, const char *text)
{
	bool found;

	pthread_mutex_lock(&g->lock);
	found = strstr(g->said, text);
	pthread_mutex_unlock(&g->lock);
	return found;
}

static void wait_sum(struct guest *g)
{
	double end = now() + TIMEOUT;

	while (!saw(g, "  -\r\n")) { /* the last line, of the random bytes */
		if (now() > end)
			fail(g->said);
		usleep(20000);
	}
	if (saw(g, "OLD"))
		skip("an old demo guest: tools/make-demo");
}

int main(int argc, char **argv)
{
	struct vm_balloon_stats stats;
	uint8_t id[2][16];

	if (argc < 3)
		return 2;
	for (unsigned n = 0; n < 2; n++)
		configure(&guests[n], n, argv);
	for (unsigned n = 0; n < 2; n++) {
		guests[n].vm = start(guests[n].cfg);
		has_all(guests[n].vm);
	}
	for (unsigned n = 0; n < 2; n++) {
		double end = now() + TIMEOUT;

		wait_sum(&guests[n]);
		check(&guests[n], n);
		vm_generation_id(guests[n].vm, id[n]);
		do {
			if (now() > end ||
			    vm_balloon_stats(guests[n].vm, TIMEOUT * 1000,
					     &stats))
				fail("the balloon");
			usleep(20000);
		} while (stats.actual != (200ull + 20 * n) << 20);
	}
	if (!memcmp(id[0], id[1], 16))
		fail("one generation ID for two machines");
	/* The end of one is nothing to the other. */
	for (unsigned n = 0; n < 2; n++) {
		char command[128];

		type(guests[n].vm, "\n");
		if (wait_end(guests[n].vm) != VM_STOP_POWEROFF ||
		    !saw(&guests[n], "END "))
			fail(guests[n].said);
		vm_destroy(guests[n].vm);
		vm_config_destroy(guests[n].cfg);
		kill(guests[n].server, SIGKILL);
		waitpid(guests[n].server, NULL, 0);
		snprintf(command, sizeof(command), "rm -rf %.60s",
			 guests[n].dir);
		run(command);
	}
	puts("ok: two machines, each with its own");
	return 0;
}
