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
		" \"reboot\": \"again\","
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
		cmocka_unit_test(test_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
