/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward.c - ports of the host that lead to ports of the guest
 */
#include "vmnet/vmnet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static int parse_port(const char *text, uint16_t *port)
{
	char *end;
	long v;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	v = strtol(text, &end, 10);
	if (*end || v < 1 || v > 65535)
		return -EINVAL;
	*port = htons((uint16_t)v);
	return 0;
}

static int parse_address(char *text, uint16_t port, struct sockaddr_storage *to)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = port };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
				    .sin6_port = port };
	size_t len = strlen(text);

	if (len > 2 && text[0] == '[' && text[len - 1] == ']') {
		text[len - 1] = 0;
		if (inet_pton(AF_INET6, text + 1, &in6.sin6_addr) != 1)
			return -EINVAL;
		memcpy(to, &in6, sizeof(in6));
		return 0;
	}
	if (inet_pton(AF_INET, text, &in.sin_addr) != 1)
		return -EINVAL;
	memcpy(to, &in, sizeof(in));
	return 0;
}

/* Port of the guest at the address that DHCP gives first. */
static void to_guest(struct forward *f, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = port };

	/* A session must not change family: IPv6 of the host to IPv4. */
	in.sin_addr.s_addr = htonl(0x0a00020f);
	memcpy(&f->guest, &in, sizeof(in));
}

int forward_parse(const char *spec, struct forward *f, struct husk_error *err)
{
	char text[128], *guest, *host, *slash, local[] = "127.0.0.1";
	uint16_t hport, gport;

	memset(f, 0, sizeof(*f));
	if (strlen(spec) >= sizeof(text))
		goto bad;
	memcpy(text, spec, strlen(spec) + 1);
	slash = strchr(text, '/');
	if (slash) {
		*slash++ = 0;
		f->udp = !strcmp(slash, "udp");
		if (!f->udp && strcmp(slash, "tcp"))
			goto bad;
	}
	guest = strrchr(text, ':');
	if (!guest)
		goto bad;
	*guest++ = 0;
	host = strrchr(text, ':');
	if (host)
		*host++ = 0;
	if (parse_port(host ? host : text, &hport) ||
	    parse_port(guest, &gport) ||
	    parse_address(host ? text : local, hport, &f->host))
		goto bad;
	to_guest(f, gport);
	return 0;
bad:
	return error_set(err, -EINVAL,
			 "forward %s: not [ADDRESS:]HOST:GUEST[/udp], such "
			 "as 2222:22",
			 spec);
}

int vmnet_forward_check(const char *spec, struct husk_error *err)
{
	struct forward f;

	return forward_parse(spec, &f, err);
}

static socklen_t len_of(const struct sockaddr_storage *a)
{
	return a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
					: sizeof(struct sockaddr_in);
}

int forward_open_locked(struct vmnet *net, const struct forward *f)
{
	errno = 0;
	if (net->lib.add_hostxfwd(net->slirp, (const void *)&f->host,
				  len_of(&f->host), (const void *)&f->guest,
				  len_of(&f->guest),
				  (f->udp ? SLIRP_HOSTFWD_UDP : 0) |
					  SLIRP_HOSTFWD_V6ONLY) < 0)
		return errno ? -errno : -EIO;
	return 0;
}

void forward_close_locked(struct vmnet *net, const struct forward *f)
{
	net->lib.remove_hostxfwd(net->slirp, (const void *)&f->host,
				 len_of(&f->host),
				 f->udp ? SLIRP_HOSTFWD_UDP : 0);
}

int vmnet_forward_add(struct vmnet *net, const char *spec,
		      struct husk_error *err)
{
	struct forward *f = malloc(sizeof(*f));
	int ret;

	if (!f)
		return error_errno(err, -ENOMEM, "forward %s", spec);
	ret = forward_parse(spec, f, err);
	if (ret) {
		free(f);
		return ret;
	}
	pthread_mutex_lock(&net->lock);
	ret = forward_open_locked(net, f);
	if (!ret) {
		f->next = net->forwards;
		net->forwards = f;
		nat_wake_locked(net);
	}
	pthread_mutex_unlock(&net->lock);
	if (!ret)
		return 0;
	free(f);
	return error_errno(err, ret, "forward %s", spec);
}

int vmnet_forward_del(struct vmnet *net, const char *spec,
		      struct husk_error *err)
{
	struct forward f, *found, **at;
	int ret = forward_parse(spec, &f, err);

	if (ret)
		return ret;
	pthread_mutex_lock(&net->lock);
	for (at = &net->forwards; (found = *at); at = &found->next)
		if (found->udp == f.udp &&
		    !memcmp(&found->host, &f.host, sizeof(f.host)))
			break;
	if (found) {
		*at = found->next;
		nat_hold_locked(net);
		forward_close_locked(net, &f);
		nat_release_locked(net);
	}
	pthread_mutex_unlock(&net->lock);
	free(found);
	return found ? 0
		     : error_set(err, -ENOENT, "forward %s: there is none",
				 spec);
}
