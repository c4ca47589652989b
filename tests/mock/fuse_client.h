/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse_client.h - asks a share as a guest's kernel would
 */
#ifndef MOCK_FUSE_CLIENT_H
#define MOCK_FUSE_CLIENT_H

#include <linux/fuse.h>

#include "vm/fs/fs.h"

struct client {
	struct fs *fs;
	uint64_t unique;
	uint32_t uid, gid;
	bool last;
	size_t room; /* for the answer; 0: enough */
	size_t len;  /* of the last answer's body */
	union {
		struct fuse_entry_out entry;
		struct fuse_attr_out attr;
		struct fuse_write_out write;
		struct fuse_lk_out lk;
		struct fuse_init_out init;
		struct fuse_open_out open;
		struct fuse_statfs_out statfs;
		struct fuse_lseek_out lseek;
		struct fuse_getxattr_out xattr;
		struct {
			struct fuse_entry_out entry;
			struct fuse_open_out open;
		} created;
		uint8_t bytes[1 << 18];
	} out;
};

/* The error of the answer (0 or negative), FS_WAIT or -EPROTO. */
int ask(struct client *c, uint32_t opcode, uint64_t node, const void *in,
	size_t len);
/* A struct and up to two names. */
int ask_names(struct client *c, uint32_t opcode, uint64_t node, const void *in,
	      size_t len, const char *a, const char *b);
int ask_init(struct client *c);
/* The nodeid, which is 0 when there is none; *err (may be NULL): why. */
uint64_t ask_lookup(struct client *c, uint64_t dir, const char *name, int *err);
/* The handle; 0 and *err. */
uint64_t ask_open(struct client *c, uint64_t node, uint32_t flags, int *err);
/* Made and open: *node and the handle. */
uint64_t ask_create(struct client *c, uint64_t dir, const char *name,
		    uint32_t flags, uint32_t mode, uint64_t *node, int *err);
int ask_write(struct client *c, uint64_t fh, const void *data, uint32_t len,
	      uint64_t offset, uint32_t flags);
/* Bytes in c->out, or the error. */
int ask_read(struct client *c, uint64_t fh, uint32_t len, uint64_t offset);
int ask_release(struct client *c, uint64_t fh, bool dir);
int ask_lock(struct client *c, uint32_t opcode, uint64_t fh, uint64_t owner,
	     uint32_t type, uint64_t start, uint64_t end, uint32_t flags);

#endif /* MOCK_FUSE_CLIENT_H */
