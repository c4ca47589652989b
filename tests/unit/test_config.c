/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_config.c - a configuration as a JSON document, and what is wrong in one
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <errno.h>

#include "vm/machine.h"

static struct vm_config *read_text(const char *text, struct husk_error *err)
{
	struct vm_config *cfg;

	memset(err, 0, sizeof(*err));
	vm_config_from_json(text, strlen(text), "/d", &cfg, err);
	return cfg;
}

static void test_reads(void **state)
{
	struct husk_error err;
	struct vm_config *cfg = read_text(
		"{\"version\": 1, \"cpus\": 3, \"memory\": \"1G\","
		" \"kernel\": \"vmlinuz\", \"initrd\": \"/abs\","
		" \"reboot\": \"again\", \"gap\": 0,"
		" \"disks\": [{\"path\": \"a,b.qcow2\", \"readonly\": true,"
		"  \"sync\": \"none\", \"queues\": 2}, \"/x.raw,sector=4096\"],"
		" \"networks\": [{\"kind\": \"unix\", \"path\": \"s,ock\","
		"  \"listen\": true}, {\"kind\": \"shared\", \"mac\":"
		"  \"52:54:00:12:34:56\", \"forwards\": [\"2222:22\"]}],"
		" \"shares\": [\"/tmp:t:ag,ro,idmap=5:6,cache=none\", \"/usr\"],"
		" \"devices\": [\"virtio-rng\","
		"  \"virtio-vsock,port=5,socketURL=/s,connect\"],"
		" \"vsock\": [\"/v,cid=9\"], \"notes\": {\"a\": \"b\"}}",
		&err);

	assert_non_null(cfg);
	assert_int_equal(cfg->cpus, 3);
	assert_int_equal(cfg->memory, 1 << 30);
	assert_string_equal(cfg->kernel, "/d/vmlinuz");
	assert_string_equal(cfg->initrd, "/abs");
	assert_int_equal(cfg->reboot, VM_REBOOT_AGAIN);
	assert_int_equal(cfg->gap, 0);
	assert_int_equal(cfg->ndisks, 2);
	assert_string_equal(cfg->disk[0].path, "/d/a,b.qcow2");
	assert_true(cfg->disk[0].readonly);
	assert_int_equal(cfg->disk[0].sync, BLOCK_SYNC_NONE);
	assert_int_equal(cfg->disk[1].sector, 4096);
	assert_int_equal(cfg->nnets, 2);
	assert_string_equal(cfg->net[0].where, "/d/s,ock");
	assert_true(cfg->net[0].listen);
	assert_int_equal(cfg->net[1].nforwards, 1);
	assert_int_equal(cfg->net[1].mac[5], 0x56);
	assert_int_equal(cfg->nrngs, 1);
	assert_true(cfg->vsock.on);
	assert_int_equal(cfg->vsock.cid, 9);
	assert_string_equal(cfg->vsock.path, "/v");
	assert_int_equal(cfg->vsock.nports, 1);
	assert_int_equal(cfg->vsock.port[0].port, 5);
	assert_true(cfg->vsock.port[0].to_guest);
	assert_int_equal(cfg->nshares, 2);
	assert_string_equal(cfg->share[0].dir, "/tmp:t");
	assert_string_equal(cfg->share[0].tag, "ag");
	assert_true(cfg->share[0].readonly);
	assert_int_equal(cfg->share[0].uid, 5);
	assert_int_equal(cfg->share[0].gid, 6);
	assert_int_equal(cfg->share[0].owner, FS_OWNER_HOST);
	assert_int_equal(cfg->share[0].cache, FS_CACHE_NONE);
	assert_string_equal(cfg->share[1].tag, "share1");
	assert_string_equal(vm_config_note(cfg, "a"), "b");
	assert_null(vm_config_note(cfg, "b"));
	vm_config_destroy(cfg);
}

/* What was made by calls is the same after a file. */
static void test_round_trip(void **state)
{
	char dir[] = "/tmp/husk-test-XXXXXX", path[64];
	struct vm_config *cfg = vm_config_create(), *again;
	struct husk_error err = { 0 };
	char *first, *second;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/disk.qcow2", dir);
	vm_config_set_cpus(cfg, 2);
	vm_config_set_memory(cfg, 300 << 20);
	vm_config_set_cmdline(cfg, "a \"b\" /c");
	assert_int_equal(vm_config_add_disk(cfg, path, true), 0);
	assert_int_equal(vm_config_add_net(cfg, "shared,forward=1:2", &err), 0);
	assert_int_equal(vm_config_add_net(cfg, "tap=fd:9,queues=2", &err), 0);
	assert_int_equal(vm_config_add_device(cfg, "virtio-rng", &err), 0);
	assert_int_equal(vm_config_add_vsock(cfg, "/v/s,cid=9", &err), 0);
	assert_int_equal(vm_config_set_note(cfg, "who", "me"), 0);
	assert_int_equal(vm_config_set_note(cfg, "no", "x"), 0);
	assert_int_equal(vm_config_set_note(cfg, "no", NULL), 0);
	snprintf(path, sizeof(path), "%s/vm.json", dir);
	assert_int_equal(vm_config_save(cfg, path, &err), 0);
	assert_int_equal(vm_config_save(cfg, path, &err), 0);
	assert_int_equal(vm_config_load(path, &again, &err), 0);
	first = vm_config_to_json(cfg, dir);
	second = vm_config_to_json(again, dir);
	assert_string_equal(first, second);
	assert_non_null(strstr(first, "\"path\": \"disk.qcow2\""));
	assert_non_null(strstr(first, "\"memory\": \"300M\""));
	assert_string_equal(cfg->vsock.path, again->vsock.path);
	assert_memory_equal(cfg->net[0].mac, again->net[0].mac, 6);
	assert_string_equal(cfg->disk[0].path, again->disk[0].path);
	free(first);
	free(second);
	vm_config_destroy(cfg);
	vm_config_destroy(again);
	unlink(path);
	assert_int_equal(rmdir(dir), 0); /* nothing else was left */
}

/* The words of --device that vfkit and krunkit have, too. */
static void test_shared_grammar(void **state)
{
	static const char *const specs[] = {
		"virtio-blk,path=/d/a.raw,deviceId=vol1",
		"virtio-net,nat,mac=52:54:00:12:34:56",
		"virtio-net,unixSocketPath=/d/sock,mac=52:54:00:12:34:57",
		"virtio-net,type=unixstream,path=/d/passt",
		"virtio-rng",
		"virtio-fs,sharedDir=/tmp,mountTag=tag",
		"virtio-vsock,port=5,socketURL=/d/five,listen",
		"virtio-vsock,port=6,socketURL=/d/six,connect",
		"virtio-balloon",
	};
	struct vm_config *cfg = vm_config_create(), *again;
	struct husk_error err = { 0 };
	char *first, *second;

	for (unsigned i = 0; i < sizeof(specs) / sizeof(specs[0]); i++)
		if (vm_config_add_device(cfg, specs[i], &err))
			fail_msg("%s: %s", specs[i], err.text);
	assert_string_equal(cfg->disk[0].serial, "vol1");
	assert_int_equal(cfg->nnets, 3);
	first = vm_config_to_json(cfg, "/d");
	if (vm_config_from_json(first, strlen(first), "/d", &again, &err))
		fail_msg("%s in %s", err.text, first);
	second = vm_config_to_json(again, "/d");
	assert_string_equal(first, second);
	free(first);
	free(second);
	vm_config_destroy(cfg);
	vm_config_destroy(again);
}

/* -- every option ---------------------------------------------------------- */

static void same_text(const char *a, const char *b)
{
	if (!a || !b)
		assert_ptr_equal(a, b);
	else
		assert_string_equal(a, b);
}

static void same_disk(const struct disk_config *a, const struct disk_config *b)
{
	same_text(a->path, b->path);
	same_text(a->serial, b->serial);
	same_text(a->format, b->format);
	same_text(a->base, b->base);
	same_text(a->snapshot, b->snapshot);
	same_text(a->fault, b->fault);
	assert_int_equal(a->readonly, b->readonly);
	assert_int_equal(a->cache, b->cache);
	assert_int_equal(a->sync, b->sync);
	assert_int_equal(a->aio, b->aio);
	assert_int_equal(a->pause_if_full, b->pause_if_full);
	assert_int_equal(a->sector, b->sector);
	assert_int_equal(a->queues, b->queues);
}

static void same_net(const struct net_config *a, const struct net_config *b)
{
	same_text(a->kind, b->kind);
	same_text(a->where, b->where);
	assert_int_equal(a->fd, b->fd);
	assert_int_equal(a->listen, b->listen);
	assert_int_equal(a->vfkit, b->vfkit);
	assert_int_equal(a->isolated, b->isolated);
	assert_int_equal(a->no_loopback, b->no_loopback);
	assert_int_equal(a->mtu, b->mtu);
	assert_int_equal(a->pairs, b->pairs);
	assert_memory_equal(a->mac, b->mac, 6);
	assert_int_equal(a->nforwards, b->nforwards);
	for (unsigned i = 0; i < a->nforwards; i++)
		same_text(a->forward[i], b->forward[i]);
}

static void same_share(const struct share_config *a,
		       const struct share_config *b)
{
	same_text(a->dir, b->dir);
	same_text(a->tag, b->tag);
	assert_int_equal(a->readonly, b->readonly);
	assert_int_equal(a->guest_locks, b->guest_locks);
	assert_int_equal(a->owner, b->owner);
	assert_int_equal(a->cache, b->cache);
	assert_int_equal(a->uid, b->uid);
	assert_int_equal(a->gid, b->gid);
}

static void same_rest(const struct vm_config *a, const struct vm_config *b)
{
	same_text(a->kernel, b->kernel);
	same_text(a->initrd, b->initrd);
	same_text(a->cmdline, b->cmdline);
	same_text(a->engine, b->engine);
	assert_int_equal(a->cpus, b->cpus);
	assert_int_equal(a->memory, b->memory);
	assert_int_equal(a->reboot, b->reboot);
	assert_int_equal(a->gap, b->gap);
	assert_int_equal(a->panic, b->panic);
	assert_int_equal(a->nrngs, b->nrngs);
	assert_int_equal(a->debug_exit, b->debug_exit);
	assert_int_equal(a->testdev, b->testdev);
	assert_memory_equal(a->generation, b->generation, 16);
	assert_memory_equal(&a->balloon, &b->balloon, sizeof(a->balloon));
	assert_int_equal(a->vsock.on, b->vsock.on);
	assert_int_equal(a->vsock.cid, b->vsock.cid);
	same_text(a->vsock.path, b->vsock.path);
	assert_int_equal(a->vsock.nports, b->vsock.nports);
	for (unsigned i = 0; i < a->vsock.nports; i++) {
		assert_int_equal(a->vsock.port[i].port, b->vsock.port[i].port);
		assert_int_equal(a->vsock.port[i].to_guest,
				 b->vsock.port[i].to_guest);
		same_text(a->vsock.port[i].path, b->vsock.port[i].path);
	}
	assert_int_equal(a->nserials, b->nserials);
	for (unsigned i = 0; i < a->nserials; i++) {
		assert_int_equal(a->serial[i].kind, b->serial[i].kind);
		same_text(a->serial[i].path, b->serial[i].path);
		same_text(a->serial[i].name, b->serial[i].name);
	}
}

static void same_config(const struct vm_config *a, const struct vm_config *b)
{
	same_rest(a, b);
	assert_int_equal(a->ndisks, b->ndisks);
	for (unsigned i = 0; i < a->ndisks; i++)
		same_disk(&a->disk[i], &b->disk[i]);
	assert_int_equal(a->nnets, b->nnets);
	for (unsigned i = 0; i < a->nnets; i++)
		same_net(&a->net[i], &b->net[i]);
	assert_int_equal(a->nshares, b->nshares);
	for (unsigned i = 0; i < a->nshares; i++)
		same_share(&a->share[i], &b->share[i]);
}

typedef int add_spec(struct vm_config *cfg, const char *spec,
		     struct husk_error *err);

static struct vm_config *everything(void)
{
	static const struct {
		add_spec *add;
		const char *spec;
	} all[] = {
		{ vm_config_add_disk_spec, "/d/a" },
		{ vm_config_add_disk_spec,
		  "/d/b.qcow2,format=qcow2,base=/d/base,cache=direct,sync=data,"
		  "aio=threads,sector=4096,queues=8,serial=S,"
		  "on-enospc=pause,fault=delay=5+seed=3" },
		{ vm_config_add_disk_spec,
		  "/e/c,format=raw,readonly,snapshot=one,cache=cached,"
		  "sync=none,aio=uring,sector=512,queues=1,on-enospc=error" },
		{ vm_config_add_disk_spec, "/d/d,sync=full,aio=auto" },
		{ vm_config_add_net,
		  "shared,mac=52:54:00:00:00:01,mtu=1280,queues=4,isolated,"
		  "noloopback,forward=1:2,forward=127.0.0.1:3:4/udp" },
		{ vm_config_add_net, "tap=tap9,mtu=65520" },
		{ vm_config_add_net, "tap=fd:7" },
		{ vm_config_add_net, "unix=/d/s,listen" },
		{ vm_config_add_net, "unix=/e/t" },
		{ vm_config_add_net, "unixgram=/d/u,vfkit" },
		{ vm_config_add_net, "fd=8" },
		{ vm_config_add_net, "null" },
		{ vm_config_add_share, "/d/s1" },
		{ vm_config_add_share,
		  "/e/s2:tag,ro,cache=always,locks=guest" },
		{ vm_config_add_share, "/s3,owner=host,idmap=7:8,cache=auto" },
		{ vm_config_add_share, "/s4,cache=none,locks=host" },
		{ vm_config_add_vsock, "/d/v,cid=77" },
		{ vm_config_add_device,
		  "virtio-vsock,port=5,socketURL=unix:///d/five" },
		{ vm_config_add_device,
		  "virtio-vsock,port=6,socketURL=/six,connect" },
		{ vm_config_add_device, "virtio-serial,stdio" },
		{ vm_config_add_device, "virtio-serial,pty,name=p" },
		{ vm_config_add_device, "virtio-serial,null,name=n" },
		{ vm_config_add_device, "virtio-serial,logFilePath=/d/log" },
		{ vm_config_add_device, "virtio-serial,socket=/d/x,listen" },
		{ vm_config_add_device, "virtio-serial,socket=/d/y,name=y" },
		{ vm_config_add_device,
		  "virtio-balloon,target=100M,reporting=on,hinting=off,"
		  "deflate-on-oom=off" },
		{ vm_config_add_device, "virtio-rng" },
		{ vm_config_add_device, "debug-exit" },
		{ vm_config_add_device, "pc-testdev" },
	};
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	uint8_t id[16] = "an id of its own";

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (all[i].add(cfg, all[i].spec, &err))
			fail_msg("%s: %s", all[i].spec, err.text);
	vm_config_set_cpus(cfg, 7);
	vm_config_set_memory(cfg, 3 << 20);
	vm_config_set_kernel(cfg, "/d/k");
	vm_config_set_initrd(cfg, "/i");
	vm_config_set_cmdline(cfg, "a \"b\" \\ \t \xc3\xa4");
	vm_config_set_engine(cfg, "soft,interp");
	vm_config_set_reboot(cfg, VM_REBOOT_AGAIN);
	assert_int_equal(vm_config_set_gap(cfg, 300), 0);
	vm_config_set_panic(cfg, VM_PANIC_GO_ON);
	vm_config_set_generation_id(cfg, id);
	vm_config_set_note(cfg, "who", "me");
	return cfg;
}

/* What goes in comes out, whatever folder the document is for. */
static void test_every_option(void **state)
{
	static const char *const dirs[] = { "/d", "/", "/d/deeper", NULL };
	struct vm_config *cfg = everything(), *again;
	struct husk_error err = { 0 };

	for (unsigned i = 0; i < 4; i++) {
		char *first = vm_config_to_json(cfg, dirs[i]), *second;

		if (vm_config_from_json(first, strlen(first), dirs[i], &again,
					&err))
			fail_msg("%s in %s", err.text, first);
		same_config(cfg, again);
		same_text(vm_config_note(again, "who"), "me");
		second = vm_config_to_json(again, dirs[i]);
		assert_string_equal(first, second);
		free(first);
		free(second);
		vm_config_destroy(again);
	}
	vm_config_destroy(cfg);
}

/* -- all that is wrong at once --------------------------------------------- */

static char problems[8192];

static void take_problem(void *opaque, const char *text)
{
	size_t len = strlen(problems);

	snprintf(problems + len, sizeof(problems) - len, "%s\n", text);
}

static void test_all_problems(void **state)
{
	static const char *const says[] = {
		"engine warp: unknown",
		"99 CPUs: 1 to 64",
		"memory: must be a multiple",
		"a kernel is needed",
		"initrd /no/initrd: No such file",
		"disk /no/disk: No such file",
		"is disk /tmp/husk-test-",
		"network 1: has the MAC address of network 0",
		("forward 0.0.0.0:80:2: the host's port is that of "
		 "0.0.0.0:80:1"),
		"share /no/share: No such file",
		"virtio-serial /no/folder/log: /no/folder: No such file",
		"too long for the name of a socket",
		"vsock /no/v/sock: /no/v: No such file",
		"balloon: the target is more than the memory",
	};
	const unsigned n = sizeof(says) / sizeof(says[0]);
	char file[] = "/tmp/husk-test-XXXXXX", spec[400];
	struct vm_config *cfg = vm_config_create();
	int fd = mkstemp(file);
	unsigned found;

	assert_int_equal(ftruncate(fd, 4096), 0);
	vm_config_set_engine(cfg, "warp");
	vm_config_set_cpus(cfg, 99);
	vm_config_set_memory(cfg, (8 << 20) + 1);
	vm_config_set_initrd(cfg, "/no/initrd");
	vm_config_add_disk(cfg, "/no/disk", false);
	vm_config_add_disk(cfg, file, false);
	vm_config_add_disk(cfg, file, true);
	vm_config_add_net(
		cfg, "shared,mac=02:00:00:00:00:01,forward=0.0.0.0:80:1", NULL);
	vm_config_add_net(cfg,
			  "shared,mac=02:00:00:00:00:01,forward=0.0.0.0:80:2,"
			  "forward=0.0.0.0:80:2/udp",
			  NULL);
	vm_config_add_share(cfg, "/no/share", NULL);
	vm_config_add_device(cfg, "virtio-serial,logFilePath=/no/folder/log",
			     NULL);
	snprintf(spec, sizeof(spec), "virtio-serial,listen,socket=/tmp/%0150d",
		 1);
	vm_config_add_device(cfg, spec, NULL);
	vm_config_add_vsock(cfg, "/no/v/sock", NULL);
	vm_config_add_device(cfg, "virtio-balloon,target=1G", NULL);
	*problems = 0;
	found = vm_config_validate(cfg, take_problem, NULL);
	for (unsigned i = 0; i < n; i++)
		if (!strstr(problems, says[i]))
			fail_msg("no \"%s\" in:\n%s", says[i], problems);
	if (found != n)
		fail_msg("%u problems, not %u:\n%s", found, n, problems);
	vm_config_destroy(cfg);
	close(fd);
	unlink(file);
}

static void test_errors(void **state)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{ "", "line 1: the document ends too early" },
		{ "{\n\"cpus\": x}", "line 2" },
		{ "{} {}", "line 1" },
		{ "[]", "one JSON object" },
		{ "null", "line 1" },
		{ "{\"cpu\": 1}", "there is no \"cpu\"" },
		{ "{\"version\": 2}", "version 1" },
		{ "{\"cpus\": \"4\"}", "\"cpus\": a number" },
		{ "{\"cpus\": -4}", "\"cpus\": a number" },
		{ "{\"memory\": \"4X\"}", "4X is not a size" },
		{ "{\"memory\": \"99999999999T\"}", "not a size" },
		{ "{\"kernel\": 1}", "a string is needed" },
		{ "{\"kernel\": \"a\\u0000b\"}", "a string is needed" },
		{ "{\"reboot\": \"maybe\"}", "exit" },
		{ "{\"gap\": 301}", "from 0 to 300" },
		{ "{\"disks\": {}}", "a list is needed" },
		{ "{\"disks\": [{}]}", "no \"path\"" },
		{ "{\"disks\": [{\"path\": \"a\", \"size\": 1}]}",
		  "there is no \"size\"" },
		{ "{\"disks\": [{\"path\": \"a\", \"cache\": \"b\"}]}",
		  "\"cache\" cannot" },
		{ "{\"disks\": [{\"path\": \"a\", \"readonly\": []}]}",
		  "\"readonly\" cannot" },
		{ "{\"networks\": [{}]}", "no \"kind\"" },
		{ "{\"networks\": [{\"kind\": \"tap\"}]}", "\"tap\"" },
		{ "{\"networks\": [{\"kind\": \"null\", \"mac\": \"1\"}]}",
		  "\"mac\" cannot" },
		{ "{\"networks\": [{\"kind\": \"null\", \"vfkit\": true}]}",
		  "no \"vfkit\"" },
		{ "{\"networks\": [{\"kind\": \"shared\","
		  " \"forwards\": [\"x\"]}]}",
		  "x" },
		{ "{\"devices\": [{}]}", "a list of strings is needed" },
		{ "{\"devices\": [\"no-such\"]}", "unknown kind" },
		{ "{\"vsock\": [\"/a,cid=2\"]}", "cid is a number" },
		{ "{\"vsock\": [\"/a\", \"/b\"]}", "there is one already" },
		{ "{\"vsock\": [\"\"]}", "PATH is missing" },
		{ "{\"devices\": [\"virtio-vsock,port=0,socketURL=/a\"]}",
		  "port=0" },
		{ "{\"devices\": [\"virtio-vsock,port=5,socketURL=/a\","
		  " \"virtio-vsock,port=5,socketURL=/b\"]}",
		  "port 5 is in use by /a" },
		{ "{\"notes\": {\"a\": 1}}", "\"a\" is not a string" },
	};
	struct husk_error err;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_null(read_text(bad[i].text, &err));
		if (!strstr(err.text, bad[i].says))
			fail_msg("%s: \"%s\"", bad[i].text, err.text);
	}
	assert_int_equal(vm_config_load("/nowhere/vm.json",
					&(struct vm_config *){ NULL }, &err),
			 -ENOENT);
	assert_non_null(strstr(err.text, "/nowhere/vm.json"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_shared_grammar),
		cmocka_unit_test(test_every_option),
		cmocka_unit_test(test_all_problems),
		cmocka_unit_test(test_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
