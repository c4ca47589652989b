/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_net.c - network devices of a configuration and their text form
 */
#include "vm/machine.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/bits.h"
#include "base/error.h"
#include "husk/vmnet.h"
#include "vm/virtio.h"

void net_config_finish(struct net_config *n)
{
	free(n->where);
	for (unsigned i = 0; i < n->nforwards; i++)
		free(n->forward[i]);
	memset(n, 0, sizeof(*n));
}

static int parse_number(const char *text, unsigned min, unsigned max,
			unsigned *out)
{
	char *end;
	unsigned long v;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	v = strtoul(text, &end, 10);
	if (*end || v < min || v > max)
		return -EINVAL;
	*out = (unsigned)v;
	return 0;
}

static int parse_mac(const char *text, uint8_t *mac)
{
	if (strlen(text) != 17)
		return -EINVAL;
	for (unsigned i = 0; i < 6; i++, text += 3) {
		if (!isxdigit((unsigned char)text[0]) ||
		    !isxdigit((unsigned char)text[1]) ||
		    text[2] != (i < 5 ? ':' : 0))
			return -EINVAL;
		mac[i] = (uint8_t)strtoul(text, NULL, 16);
	}
	/* Not a group's. */
	return mac[0] & 1 ? -EINVAL : 0;
}

static int random_mac(uint8_t *mac)
{
	if (getrandom(mac, 6, 0) != 6)
		return -EIO;
	/* One guest's alone: not a group, not a maker's. */
	mac[0] = (uint8_t)((mac[0] & 0xfc) | 2);
	return 0;
}

static int set_where(struct net_config *n, const char *kind, const char *where)
{
	char *copy = strdup(where);

	if (!copy)
		return -ENOMEM;
	free(n->where);
	n->where = copy;
	n->kind = kind;
	return 0;
}

int net_config_kind(struct net_config *n, const char *word)
{
	unsigned fd;

	if (!strcmp(word, "shared") || !strcmp(word, "nat"))
		n->kind = "shared";
	else if (!strcmp(word, "null"))
		n->kind = "null";
	else if (!strncmp(word, "unix=", 5) && word[5])
		return set_where(n, "unix", word + 5);
	else if (!strncmp(word, "unixgram=", 9) && word[9])
		return set_where(n, "unixgram", word + 9);
	else if (!strncmp(word, "tap=fd:", 7) &&
		 !parse_number(word + 7, 0, INT32_MAX, &fd))
		n->kind = "tap";
	else if (!strncmp(word, "tap=", 4) && word[4] &&
		 strncmp(word, "tap=fd:", 7))
		return set_where(n, "tap", word + 4);
	else if (!strncmp(word, "fd=", 3) &&
		 !parse_number(word + 3, 0, INT32_MAX, &fd))
		n->kind = "fd";
	else
		return -ENOENT;
	if (!strcmp(n->kind, "tap") || !strcmp(n->kind, "fd"))
		n->fd = (int)fd;
	return 0;
}

int net_config_option(struct net_config *n, const char *o)
{
	bool shared = n->kind && !strcmp(n->kind, "shared");

	if (!strncmp(o, "mac=", 4)) {
		n->has_mac = true;
		return parse_mac(o + 4, n->mac);
	}
	if (!strncmp(o, "mtu=", 4))
		return parse_number(o + 4, VMNET_MTU_MIN, VMNET_MTU_MAX,
				    &n->mtu);
	if (!strncmp(o, "queues=", 7))
		return parse_number(o + 7, 1, VIRTIO_NET_PAIRS, &n->pairs);
	if (!strcmp(o, "isolated") && shared)
		n->isolated = true;
	else if (!strcmp(o, "noloopback") && shared)
		n->no_loopback = true;
	else if (!strcmp(o, "listen") && n->kind && !strcmp(n->kind, "unix"))
		n->listen = true;
	else if (!strcmp(o, "vfkit") && n->kind && !strcmp(n->kind, "unixgram"))
		n->vfkit = true;
	else
		return -ENOENT;
	return 0;
}

int net_config_forward(struct net_config *n, const char *spec,
		       struct husk_error *err)
{
	int ret = vmnet_forward_check(spec, err);
	char *copy;

	if (ret)
		return ret;
	if (n->nforwards == MAX_FORWARDS)
		return error_set(err, -E2BIG, "forward %s: too many", spec);
	copy = strdup(spec);
	if (!copy)
		return error_errno(err, -ENOMEM, "forward %s", spec);
	n->forward[n->nforwards++] = copy;
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): net_config_finish() */
	return 0;
}

static int parse(struct net_config *n, char *text, const char *spec,
		 struct husk_error *err)
{
	char *save, *o = strtok_r(text, ",", &save);
	int ret = o ? net_config_kind(n, o) : -ENOENT;

	if (ret == -ENOENT)
		return error_set(err, -EINVAL,
				 "network %s: there are none, shared, "
				 "tap=NAME, tap=fd:N, unix=PATH, unixgram=PATH "
				 "and fd=N",
				 spec);
	while (!ret && (o = strtok_r(NULL, ",", &save))) {
		if (!strncmp(o, "forward=", 8) && !strcmp(n->kind, "shared")) {
			ret = net_config_forward(n, o + 8, err);
			if (ret)
				return ret;
			continue;
		}
		ret = net_config_option(n, o);
		if (ret == -ENOENT)
			return error_set(err, -EINVAL,
					 "network %s: %s has no option \"%s\"",
					 spec, n->kind, o);
		if (ret)
			return error_set(err, -EINVAL,
					 "network %s: \"%s\" is not possible",
					 spec, o);
	}
	return ret ? error_errno(err, ret, "network %s", spec) : 0;
}

int config_take_net(struct vm_config *cfg, struct net_config *n,
		    struct husk_error *err)
{
	if (cfg->nnets == MAX_NETS)
		return error_set(err, -E2BIG, "network %s: at most %d", n->kind,
				 MAX_NETS);
	if (!n->has_mac && random_mac(n->mac))
		return error_set(err, -EIO, "network %s: no random numbers",
				 n->kind);
	cfg->net[cfg->nnets++] = *n;
	memset(n, 0, sizeof(*n));
	return 0;
}

int vm_config_add_net(struct vm_config *cfg, const char *spec,
		      struct husk_error *err)
{
	struct net_config n = { 0 };
	char *text;
	int ret;

	if (!strcmp(spec, "none"))
		return 0;
	text = strdup(spec);
	ret = text ? parse(&n, text, spec, err)
		   : error_errno(err, -ENOMEM, "network %s", spec);
	free(text);
	if (!ret)
		ret = config_take_net(cfg, &n, err);
	net_config_finish(&n);
	return ret;
}

int vm_config_add_forward(struct vm_config *cfg, const char *spec,
			  struct husk_error *err)
{
	for (unsigned i = 0; i < cfg->nnets; i++)
		if (!strcmp(cfg->net[i].kind, "shared"))
			return net_config_forward(&cfg->net[i], spec, err);
	return error_set(err, -EINVAL,
			 "forward %s: needs a network of kind shared", spec);
}

int vm_config_make_distinct(struct vm_config *cfg)
{
	int forwards = 0;

	for (unsigned i = 0; i < cfg->nnets; i++) {
		struct net_config *n = &cfg->net[i];

		if (random_mac(n->mac))
			return -EIO;
		n->has_mac = true;
		for (; n->nforwards; n->nforwards--, forwards++) {
			free(n->forward[n->nforwards - 1]);
			n->forward[n->nforwards - 1] = NULL;
		}
	}
	return forwards;
}

int vm_config_net_mac(const struct vm_config *cfg, unsigned number,
		      uint8_t mac[6])
{
	if (number >= cfg->nnets)
		return -ENOENT;
	memcpy(mac, cfg->net[number].mac, 6);
	return 0;
}

/* -- the form that vfkit and krunkit share -------------------------------- */

/* "nat", "fd=N", "unixSocketPath=P", "type=unix{stream,gram},path=P", "mac=M" */
int config_add_virtio_net(struct vm_config *cfg, char *options,
			  const char *spec, struct husk_error *err)
{
	char text[512] = "", rest[256] = "", *save, *o;
	bool magic = false;
	const char *path = NULL, *kind = "unix";
	size_t used = 0;

	for (o = strtok_r(options, ",", &save); o;
	     o = strtok_r(NULL, ",", &save)) {
		if (!strncmp(o, "path=", 5))
			path = o + 5;
		else if (!strncmp(o, "unixSocketPath=", 15))
			path = o + 15, kind = "unixgram", magic = true;
		else if (!strcmp(o, "type=unixgram"))
			kind = "unixgram";
		else if (!strcmp(o, "vfkitMagic=on"))
			magic = true;
		else if (!strcmp(o, "vfkitMagic=off"))
			magic = false;
		else if (!strcmp(o, "nat") || !strncmp(o, "fd=", 3))
			snprintf(text, sizeof(text), "%s", o);
		else if (strcmp(o, "type=unixstream"))
			used += (size_t)snprintf(
				rest + MIN(used, sizeof(rest)),
				sizeof(rest) - MIN(used, sizeof(rest)), ",%s",
				o);
	}
	if (path)
		snprintf(text, sizeof(text), "%s=%s%s", kind, path,
			 magic ? ",vfkit" : "");
	if (!*text || used >= sizeof(rest) ||
	    strlen(text) + used >= sizeof(text))
		return error_set(err, -EINVAL,
				 "device %s: nat, fd=N or "
				 "type=unixstream,path=PATH is missing",
				 spec);
	memcpy(text + strlen(text), rest, used + 1);
	return vm_config_add_net(cfg, text, err);
}
