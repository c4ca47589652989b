/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock.c - connections between the embedding program and the guest
 */
#include "vm/machine.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/virtio.h"

/* "OK 1073741824\n", and no byte more: what follows is the guest's. */
static int read_answer(int fd, uint64_t end)
{
	for (;;) {
		struct pollfd p = { fd, POLLIN, 0 };
		uint64_t now = loop_now();
		char byte;

		if (poll(&p, 1,
			 now < end ? (int)((end - now) / 1000000) + 1 : 0) <
			    0 &&
		    errno != EINTR)
			return -errno;
		if (!p.revents && now >= end)
			return -ETIMEDOUT;
		if (!p.revents)
			continue;
		if (recv(fd, &byte, 1, 0) <= 0)
			return -ECONNREFUSED;
		if (byte == '\n')
			return 0;
	}
}

static const char *reason(int ret)
{
	switch (ret) {
	case -ENODEV: return "the machine has no virtio-vsock device";
	case -ENOTCONN: return "the guest has no driver for its sockets yet";
	case -ECONNREFUSED: return "nobody listens there";
	case -ETIMEDOUT: return "the guest does not answer";
	case -EMFILE: return "too many connections";
	default: return "no resources";
	}
}

int vm_vsock_connect(struct vm *vm, uint32_t port, int timeout_ms,
		     struct husk_error *err)
{
	/* The device ends what takes longer. */
	uint64_t wait = timeout_ms < 0 ? 60000 : (uint64_t)timeout_ms;
	int fd = -1, ret = -ENODEV;

	if (vm->vsock)
		ret = virtio_vsock_connect(vm->vsock, port, &fd);
	if (!ret) {
		ret = read_answer(fd, loop_now() + wait * 1000000);
		if (!ret)
			return fd;
		close(fd);
	}
	return error_set(err, ret, "port %u of the guest: %s", port,
			 reason(ret));
}

int vm_vsock_listen(struct vm *vm, uint32_t port, vm_vsock_accept *accept,
		    void *opaque)
{
	return vm->vsock ? virtio_vsock_listen(vm->vsock, port, accept, opaque)
			 : -ENODEV;
}
