/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nic.c - what a guest's driver asks of its network device, seen on the cable
 *
 * nic DEMO DIR
 *
 * The other end of the cable is here: it sends frames that the device is to
 * let through or to keep out, and reads what the guest answers.  The guest
 * obeys lines that come by its serial port.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "api.h"
#include "husk/saved.h"

enum { ARP_REQUEST = 1, ARP_REPLY = 2, MAX_FRAME = 2048, MANY = 10 };

static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
static const uint8_t ours[6] = { 2, 0, 0, 0, 0, 1 };
static const uint8_t nobody[6] = { 2, 0, 0, 0, 0, 0x99 };
static const uint8_t first[6] = { 0x52, 0x54, 0, 1, 2, 3 };
static const uint8_t second[6] = { 0x52, 0x54, 0, 1, 2, 0x77 };

/* -- the guest's words ---------------------------------------------------- */

static char text[1 << 18];
static size_t text_len;
static pthread_mutex_t text_lock = PTHREAD_MUTEX_INITIALIZER;
static struct vm *vm;

static void output(void *opaque, const void *data, size_t len)
{
	pthread_mutex_lock(&text_lock);
	if (len > sizeof(text) - 1 - text_len)
		len = sizeof(text) - 1 - text_len;
	memcpy(text + text_len, data, len);
	text_len += len;
	pthread_mutex_unlock(&text_lock);
}

static void bad(const char *what)
{
	fputs(text, stdout);
	fail(what);
}

/* What comes before this word and behind from, which moves on. */
static char *await(size_t *from, const char *word)
{
	double end = now() + TIMEOUT;
	char *at, *copy = NULL;

	while (!copy) {
		if (now() > end)
			bad(word);
		pthread_mutex_lock(&text_lock);
		at = strstr(text + *from, word);
		if (at) {
			copy = strndup(text + *from,
				       (size_t)(at - text) - *from);
			*from = (size_t)(at - text) + strlen(word);
		}
		pthread_mutex_unlock(&text_lock);
		usleep(2000);
	}
	return copy;
}

/* The command's output, to be freed. */
static char *ask(const char *command)
{
	static unsigned number;
	char line[512], mark[32], *said, *c;
	size_t from;

	pthread_mutex_lock(&text_lock);
	from = text_len;
	pthread_mutex_unlock(&text_lock);
	snprintf(line, sizeof(line), "%s; echo @%u=\n", command, ++number);
	snprintf(mark, sizeof(mark), "@%u=", number);
	type(vm, line);
	said = await(&from, mark);
	for (c = said + strlen(said); c > said && c[-1] <= ' '; c--)
		c[-1] = 0;
	return said;
}

static void says(const char *command, const char *what)
{
	char *said = ask(command);

	if (strcmp(said, what) != 0) {
		printf("%s: \"%s\", not \"%s\"\n", command, said, what);
		bad("the guest says something else");
	}
	free(said);
}

static long packets(void)
{
	char *said = ask("cat /sys/class/net/eth0/statistics/rx_packets");
	long n = strtol(said, NULL, 10);

	free(said);
	return n;
}

static void until(const char *command, const char *what)
{
	double end = now() + TIMEOUT;
	bool yes = false;

	while (!yes) {
		char *said = ask(command);

		yes = !strcmp(said, what);
		free(said);
		if (now() > end)
			bad(command);
	}
}

/* -- the other end of the cable ------------------------------------------- */

static int cable = -1;
static char path[100];

static void plug_in(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	double end = now() + TIMEOUT;

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	cable = socket(AF_UNIX, SOCK_STREAM, 0);
	while (connect(cable, (void *)&a, sizeof(a))) {
		if (now() > end)
			bad("nobody listens");
		usleep(10000);
	}
}

static void put(const void *data, size_t len)
{
	if (send(cable, data, len, MSG_NOSIGNAL) != (ssize_t)len)
		bad("the cable is gone");
}

static bool get(void *data, size_t len, int timeout_ms)
{
	struct pollfd p = { .fd = cable, .events = POLLIN };

	for (size_t done = 0; done < len;) {
		ssize_t n;

		if (poll(&p, 1, done ? TIMEOUT * 1000 : timeout_ms) <= 0)
			return false;
		n = read(cable, (char *)data + done, len - done);
		if (n <= 0)
			bad("the cable is gone");
		done += (size_t)n;
	}
	return true;
}

/* Who has 10.NET.0.2?  With a tag unless vlan is 0. */
static void who_has(const uint8_t *to, unsigned vlan, unsigned net)
{
	static const uint8_t head[8] = { 0, 1, 8, 0, 6, 4, 0, ARP_REQUEST };
	uint8_t f[64] = { 0 }, *p = f + 4;
	uint32_t len = 60;

	memcpy(p, to, 6);
	memcpy(p + 6, ours, 6);
	p += 12;
	if (vlan) {
		p[0] = 0x81;
		p[2] = (uint8_t)(vlan >> 8);
		p[3] = (uint8_t)vlan;
		p += 4;
	}
	p[0] = 0x08;
	p[1] = 0x06;
	memcpy(p + 2, head, 8);
	memcpy(p + 10, ours, 6);
	memcpy(p + 16, (uint8_t[]){ 10, (uint8_t)net, 0, 1 }, 4);
	memcpy(p + 26, (uint8_t[]){ 10, (uint8_t)net, 0, 2 }, 4);
	len = htonl(len);
	memcpy(f, &len, 4);
	put(f, 64);
}

/* The next frame, its length; 0: none in this time. */
static size_t frame(uint8_t *f, int timeout_ms)
{
	uint32_t len;

	if (!get(&len, 4, timeout_ms))
		return 0;
	len = ntohl(len);
	if (!len || len > MAX_FRAME || !get(f, len, TIMEOUT * 1000))
		bad("a bad frame");
	return len;
}

/* ARP of this kind from the guest's address in that network and VLAN. */
static bool is_arp(const uint8_t *f, size_t len, uint8_t op, unsigned vlan,
		   unsigned net, const uint8_t *mac)
{
	const uint8_t *p = f + 12;

	if (vlan) {
		if (len < 46 || p[0] != 0x81 || p[1] != 0 ||
		    ((p[2] & 15u) << 8 | p[3]) != vlan)
			return false;
		p += 4;
	}
	return len >= 42 && p[0] == 8 && p[1] == 6 && p[9] == op &&
	       !memcmp(p + 10, mac, 6) && !memcmp(f + 6, mac, 6) &&
	       p[16] == 10 && p[17] == net && p[19] == 2;
}

static bool answers(int timeout_ms, unsigned vlan, unsigned net,
		    const uint8_t *mac)
{
	double end = now() + timeout_ms / 1000.0;
	uint8_t f[MAX_FRAME];

	while (now() < end) {
		size_t len = frame(f, 100);

		if (len && is_arp(f, len, ARP_REPLY, vlan, net, mac))
			return true;
	}
	return false;
}

static void reaches(const uint8_t *to, unsigned vlan, unsigned net,
		    const uint8_t *mac, const char *what)
{
	who_has(to, vlan, net);
	if (!answers(TIMEOUT * 1000, vlan, net, mac))
		bad(what);
}

/* How many frames the guest has seen of MANY like this, and one for all. */
static long seen(const uint8_t *to, unsigned vlan, const uint8_t *mac)
{
	long before = packets();

	for (unsigned i = 0; i < MANY; i++)
		who_has(to, vlan, 5);
	/* Behind them, so they are through. */
	reaches(all, 0, 5, mac, "no answer");
	return packets() - before;
}

static void count(long n, long want, const char *what)
{
	if (n == want)
		return;
	printf("%ld frames, not %ld\n", n, want);
	bad(what);
}

/* -- the tests ------------------------------------------------------------ */

static void filters(void)
{
	says("cat /sys/class/net/eth0/address", "52:54:00:01:02:03");
	says("cat /sys/class/net/eth0/mtu", "1400");
	says("ip link set eth0 mtu 1401 2>/dev/null || echo no", "no");
	says("ip link set eth0 mtu 1300 && cat /sys/class/net/eth0/mtu",
	     "1300");
	reaches(all, 0, 5, first, "no answer to a broadcast");
	reaches(first, 0, 5, first, "no answer");
	count(seen(nobody, 0, first), 1, "others' frames come through");
	says("ip link set eth0 promisc on", "");
	count(seen(nobody, 0, first), MANY + 1, "promiscuous mode does not");
	says("ip link set eth0 promisc off", "");
	count(seen(nobody, 0, first), 1, "promiscuous mode has no end");
	puts("ok: MAC, MTU, promiscuous mode");
	says("ip link set eth0 address 52:54:00:01:02:77", "");
	reaches(second, 0, 5, second, "no answer from another MAC");
	count(seen(first, 0, second), 1, "the MAC of before comes through");
	puts("ok: another MAC");
}

static void vlans(void)
{
	says("for m in /v/*.ko; do insmod $m; done", "");
	/* Until one is wanted, none is. */
	count(seen(all, 5, second), 1, "tagged frames come through");
	says("vconfig add eth0 5 >/dev/null 2>&1; "
	     "ip addr add 10.6.0.2/24 dev eth0.5; ip link set eth0.5 up",
	     "");
	reaches(all, 5, 6, second, "no answer in the VLAN");
	count(seen(all, 6, second), 1, "another VLAN comes through");
	says("vconfig rem eth0.5 >/dev/null 2>&1", "");
	count(seen(all, 5, second), 1, "the VLAN of before comes through");
	puts("ok: VLANs");
}

/* What the machine tells its program next. */
static void news(enum vm_news_kind kind, int code, const char *device)
{
	struct pollfd p = { .fd = vm_news_fd(vm), .events = POLLIN };
	struct vm_news n;

	if (poll(&p, 1, TIMEOUT * 1000) <= 0 || vm_next_news(vm, &n) != 1)
		bad("no news");
	if (n.kind != kind || n.code != code || strcmp(n.device, device) != 0) {
		printf("%d, %d, \"%s\"\n", (int)n.kind, n.code, n.device);
		bad("other news");
	}
}

static void links(void)
{
	static const char carrier[] = "cat /sys/class/net/eth0/carrier";
	struct husk_error err;
	struct vm_news last;

	while (vm_next_news(vm, &last))
		;
	says(carrier, "1");
	vm_net_set_link(vm, 0, false);
	until(carrier, "0");
	news(VM_NEWS_LINK, 0, "net0");
	vm_net_set_link(vm, 0, true);
	until(carrier, "1");
	news(VM_NEWS_LINK, 1, "net0");
	if (vm_pause(vm, &err) || vm_resume(vm, &err))
		bad(err.text);
	news(VM_NEWS_PAUSED, 0, "");
	news(VM_NEWS_RESUMED, 0, "");
	reaches(all, 0, 5, second, "no answer after the cable was out");
	close(cable);
	until(carrier, "0");
	plug_in();
	until(carrier, "1");
	reaches(all, 0, 5, second, "no answer on a new cable");
	news(VM_NEWS_LINK, 0, "net0");
	news(VM_NEWS_LINK, 1, "net0");
	puts("ok: the cable pulled on either end, and the program told");
}

/* The switches of another host learn where it is. */
static void announces(void)
{
	double end = now() + TIMEOUT;
	uint8_t f[MAX_FRAME];
	size_t len;

	do {
		if (now() > end)
			bad("no announcement after the restore");
		len = frame(f, 100);
	} while (!len || !is_arp(f, len, ARP_REQUEST, 0, 5, second) ||
		 memcmp(f + 28, f + 38, 4) != 0);
	puts("ok: it announces itself after a restore");
}

static void restore(const char *dir)
{
	struct vm_save_options how = { .stop = true };
	struct husk_error err = { 0 };
	struct vm_config *cfg = NULL;
	struct vm_saved *saved;
	char file[200];

	snprintf(file, sizeof(file), "%.180s/saved", dir);
	if (vm_save(vm, file, &how, NULL, NULL, NULL, &err))
		bad(err.text);
	vm_destroy(vm);
	close(cable);
	if (vm_saved_open(file, &saved, &err) ||
	    vm_saved_config(saved, &cfg, &err))
		bad(err.text);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	if (vm_restore(saved, cfg, NULL, &vm, &err) || vm_start(vm, &err))
		bad(err.text);
	plug_in();
	announces();
	/* What the driver has set is still so. */
	count(seen(nobody, 0, second), 1, "the filter is gone");
	count(seen(first, 0, second), 1, "the MAC is the first one again");
	puts("ok: its filters are as before");
	vm_config_destroy(cfg);
	vm_saved_close(saved);
}

int main(int argc, char **argv)
{
	struct vm_config *cfg = vm_config_create();
	struct husk_error err = { 0 };
	char spec[200];
	size_t from = 0;

	if (!cfg || argc < 3)
		return 2;
	setup(cfg, argv[1]);
	snprintf(path, sizeof(path), "%.90s/cable", argv[2]);
	snprintf(spec, sizeof(spec),
		 "unix=%s,listen,mac=52:54:00:01:02:03,mtu=1400", path);
	if (vm_config_add_net(cfg, spec, &err))
		bad(err.text);
	vm_config_set_output(cfg, VM_SERIAL, output, NULL);
	vm_config_set_cmdline(cfg,
			      "console=ttyS0 quiet husk.run=\"sh /run.sh\"");
	vm = start(cfg);
	plug_in();
	free(await(&from, "READY"));
	filters();
	vlans();
	links();
	restore(argv[2]);
	type(vm, "exit\n");
	if (wait_end(vm) != VM_STOP_POWEROFF)
		bad("the guest does not end well");
	vm_destroy(vm);
	vm_config_destroy(cfg);
	return 0;
}
