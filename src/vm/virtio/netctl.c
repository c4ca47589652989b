/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netctl.c - the control queue of a network device, and what it filters
 */
#include "vm/virtio/net.h"

#include <string.h>

enum { CTL_RX = 0, CTL_MAC, CTL_VLAN, CTL_ANNOUNCE, CTL_MQ, CTL_OFFLOADS };
enum { RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST };
enum { MAC_TABLE, MAC_ADDR };
enum { VLAN_ADD, VLAN_DEL };
enum { ACK_OK = 0, ACK_ERR = 1 };

/* What is left of a command. */
struct cmd {
	const uint8_t *p;
	size_t left;
};

static bool take(struct cmd *c, void *to, size_t len)
{
	if (c->left < len)
		return false;
	memcpy(to, c->p, len);
	c->p += len;
	c->left -= len;
	return true;
}

void net_ctl_reset(struct net *n)
{
	/* As if nobody filtered, until a driver that can says otherwise. */
	n->promisc = true;
	n->allmulti = n->alluni = n->nomulti = n->nouni = n->nobcast = false;
	n->uni.n = n->multi.n = 0;
	n->uni.overflow = n->multi.overflow = false;
	memset(n->vlan, 0, sizeof(n->vlan));
	n->in_use = 1;
}

/* -- the filter ----------------------------------------------------------- */

static bool in_table(const struct net_macs *t, const uint8_t *mac)
{
	if (t->overflow)
		return true;
	for (unsigned i = 0; i < t->n; i++)
		if (!memcmp(t->mac[i], mac, 6))
			return true;
	return false;
}

static bool vlan_passes(const struct net *n, const uint8_t *f, size_t len)
{
	unsigned id;

	if (!(n->v.accepted & NET_F_CTRL_VLAN) || len < 16 || f[12] != 0x81 ||
	    f[13] != 0x00)
		return true;
	id = (f[14] & 15u) << 8 | f[15];
	return n->vlan[id / 8] & BIT(id % 8);
}

bool net_ctl_passes(const struct net *n, const uint8_t *f, size_t len)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };

	if (len < 14 || !vlan_passes(n, f, len))
		return false;
	if (n->promisc)
		return true;
	if (!memcmp(f, all, 6))
		return !n->nobcast;
	if (f[0] & 1)
		return !n->nomulti && (n->allmulti || in_table(&n->multi, f));
	return !n->nouni && (n->alluni || in_table(&n->uni, f) ||
			     !memcmp(f, n->v.config + NET_C_MAC, 6));
}

/* -- commands ------------------------------------------------------------- */

static bool rx_mode(struct net *n, uint8_t cmd, struct cmd *c)
{
	bool *const modes[] = {
		[RX_PROMISC] = &n->promisc, [RX_ALLMULTI] = &n->allmulti,
		[RX_ALLUNI] = &n->alluni,   [RX_NOMULTI] = &n->nomulti,
		[RX_NOUNI] = &n->nouni,	    [RX_NOBCAST] = &n->nobcast,
	};
	uint64_t need =
		cmd <= RX_ALLMULTI ? NET_F_CTRL_RX : NET_F_CTRL_RX_EXTRA;
	uint8_t on;

	if (cmd >= ARRAY_SIZE(modes) || !(n->v.accepted & need) ||
	    !take(c, &on, 1))
		return false;
	*modes[cmd] = on;
	return true;
}

static bool read_table(struct net_macs *t, struct cmd *c)
{
	uint32_t entries;

	if (!take(c, &entries, 4) || entries > c->left / 6)
		return false;
	t->overflow = entries > NET_MACS;
	t->n = t->overflow ? 0 : (uint8_t)entries;
	if (!t->overflow)
		return take(c, t->mac, 6ull * entries);
	c->p += 6ull * entries;
	c->left -= 6ull * entries;
	return true;
}

static bool mac_tables(struct net *n, struct cmd *c)
{
	struct net_macs uni, multi;

	/* Both or none. */
	if (!read_table(&uni, c) || !read_table(&multi, c))
		return false;
	n->uni = uni;
	n->multi = multi;
	return true;
}

static bool mac_cmd(struct net *n, uint8_t cmd, struct cmd *c)
{
	if (cmd == MAC_TABLE && n->v.accepted & NET_F_CTRL_RX)
		return mac_tables(n, c);
	return cmd == MAC_ADDR && n->v.accepted & NET_F_CTRL_MAC_ADDR &&
	       take(c, n->v.config + NET_C_MAC, 6);
}

static bool vlan_cmd(struct net *n, uint8_t cmd, struct cmd *c)
{
	uint16_t id;

	if (!(n->v.accepted & NET_F_CTRL_VLAN) || cmd > VLAN_DEL ||
	    !take(c, &id, 2) || id >= 4096)
		return false;
	if (cmd == VLAN_ADD)
		n->vlan[id / 8] |= (uint8_t)BIT(id % 8);
	else
		n->vlan[id / 8] &= (uint8_t)~BIT(id % 8);
	return true;
}

static bool pairs_cmd(struct net *n, uint8_t cmd, struct cmd *c)
{
	uint16_t pairs;

	if (!(n->v.accepted & NET_F_MQ) || cmd || !take(c, &pairs, 2) ||
	    !pairs || pairs > n->pairs)
		return false;
	n->in_use = pairs;
	return true;
}

static bool offloads_cmd(struct net *n, uint8_t cmd, struct cmd *c)
{
	uint64_t on;

	if (!(n->v.accepted & NET_F_CTRL_GUEST_OFFLOADS) || cmd ||
	    !take(c, &on, 8) || on & ~(n->v.accepted & NET_GUEST_OFFLOADS))
		return false;
	n->offloads = on;
	net_apply_offloads(n);
	return true;
}

static bool obey(struct net *n, struct cmd *c)
{
	uint8_t head[2];

	if (!take(c, head, 2))
		return false;
	switch (head[0]) {
	case CTL_RX: return rx_mode(n, head[1], c);
	case CTL_MAC: return mac_cmd(n, head[1], c);
	case CTL_VLAN: return vlan_cmd(n, head[1], c);
	case CTL_MQ: return pairs_cmd(n, head[1], c);
	case CTL_OFFLOADS: return offloads_cmd(n, head[1], c);
	case CTL_ANNOUNCE:
		if (head[1] || !(n->v.accepted & NET_F_GUEST_ANNOUNCE))
			return false;
		n->v.config[NET_C_STATUS] &= (uint8_t)~NET_S_ANNOUNCE;
		return true;
	default: return false;
	}
}

void net_ctl_kick(struct net *n, struct virtq *q)
{
	/* Longer ones are only tables of addresses far beyond ours. */
	uint8_t text[16384];
	struct virtq_chain chain;

	while (virtq_pop(q, &chain) > 0) {
		struct cmd c = { text, 0 };
		uint8_t ack;

		if (!chain.nwritable) {
			virtio_broken(&n->v, "a command without room for its "
					     "answer");
			break;
		}
		c.left = link_copy_out(text, chain.readable,
				       (int)chain.nreadable, sizeof(text));
		ack = obey(n, &c) ? ACK_OK : ACK_ERR;
		memcpy(chain.writable[0].iov_base, &ack, 1);
		virtq_push(q, &chain, 1);
	}
	virtq_flush(q);
}
