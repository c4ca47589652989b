/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_share.c - shared directories of a configuration and their text form
 */
#include "vm/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum { TAG_MAX = 36 };

void share_config_finish(struct share_config *sh)
{
	free(sh->dir);
	free(sh->tag);
	memset(sh, 0, sizeof(*sh));
}

static int parse_ids(struct share_config *sh, const char *text)
{
	unsigned long long uid, gid;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	uid = strtoull(text, &end, 10);
	if (*end != ':' || end[1] < '0' || end[1] > '9')
		return -EINVAL;
	gid = strtoull(end + 1, &end, 10);
	if (*end || uid >= UINT32_MAX || gid >= UINT32_MAX)
		return -EINVAL;
	sh->uid = (uint32_t)uid;
	sh->gid = (uint32_t)gid;
	sh->owner = FS_OWNER_HOST;
	return 0;
}

static int parse_option(struct share_config *sh, const char *o)
{
	if (!strcmp(o, "ro") || !strcmp(o, "readonly"))
		sh->readonly = true;
	else if (!strcmp(o, "owner=host"))
		sh->owner = FS_OWNER_HOST;
	else if (!strcmp(o, "owner=guest"))
		sh->owner = FS_OWNER_GUEST;
	else if (!strncmp(o, "idmap=", 6))
		return parse_ids(sh, o + 6);
	else if (!strcmp(o, "cache=auto"))
		sh->cache = FS_CACHE_AUTO;
	else if (!strcmp(o, "cache=none"))
		sh->cache = FS_CACHE_NONE;
	else if (!strcmp(o, "cache=always"))
		sh->cache = FS_CACHE_ALWAYS;
	else if (!strcmp(o, "locks=host"))
		sh->guest_locks = false;
	else if (!strcmp(o, "locks=guest"))
		sh->guest_locks = true;
	else
		return -EINVAL;
	return 0;
}

/* The same in all ways of saying it, wherever it is read. */
static int remember(struct vm_config *cfg, const struct share_config *sh)
{
	static const char *const owner[] = { "", ",owner=guest",
					     ",owner=host" };
	static const char *const cache[] = { "", ",cache=none",
					     ",cache=always" };
	char *full = realpath(sh->dir, NULL), *text, ids[40] = "";
	int ret;

	if (sh->uid || sh->gid)
		snprintf(ids, sizeof(ids), ",idmap=%u:%u", sh->uid, sh->gid);
	ret = asprintf(&text, "%s:%s%s%s%s%s%s", full ? full : sh->dir, sh->tag,
		       sh->readonly ? ",ro" : "", owner[sh->owner], ids,
		       cache[sh->cache], sh->guest_locks ? ",locks=guest" : "");
	free(full);
	if (ret < 0)
		return -ENOMEM;
	ret = config_remember(cfg, "shares", text);
	free(text);
	return ret;
}

/* Takes dir and tag, which may be NULL. */
static int add_share(struct vm_config *cfg, struct share_config *sh,
		     const char *spec, struct husk_error *err)
{
	char tag[TAG_MAX] = "share";

	if (cfg->nshares == MAX_SHARES)
		return error_set(err, -E2BIG, "share %s: at most %d", spec,
				 MAX_SHARES);
	if (!sh->dir || !*sh->dir)
		return error_set(err, -EINVAL,
				 "share %s: a directory is needed", spec);
	if (!sh->tag) {
		if (cfg->nshares)
			snprintf(tag, sizeof(tag), "share%u", cfg->nshares);
		sh->tag = strdup(tag);
		if (!sh->tag)
			return error_errno(err, -ENOMEM, "share %s", spec);
	}
	if (!*sh->tag || strlen(sh->tag) > TAG_MAX)
		return error_set(err, -EINVAL,
				 "share %s: a tag has 1 to %d bytes", spec,
				 TAG_MAX);
	for (unsigned i = 0; i < cfg->nshares; i++)
		if (!strcmp(cfg->share[i].tag, sh->tag))
			return error_set(err, -EEXIST,
					 "share %s: the tag %s is taken; "
					 "say DIR:TAG",
					 spec, sh->tag);
	if (remember(cfg, sh))
		return error_errno(err, -ENOMEM, "share %s", spec);
	cfg->share[cfg->nshares++] = *sh;
	return 0;
}

static int bad_option(const char *spec, const char *o, struct husk_error *err)
{
	return error_set(err, -EINVAL,
			 "share %s: no option \"%s\"; there are ro, "
			 "owner=host|guest, idmap=UID:GID, "
			 "cache=auto|none|always and locks=host|guest",
			 spec, o);
}

static char *copy_of(const char *text, int *ret)
{
	char *copy = strdup(text);

	if (!copy)
		*ret = -ENOMEM;
	return copy;
}

int vm_config_add_share(struct vm_config *cfg, const char *spec,
			struct husk_error *err)
{
	struct share_config sh = { 0 };
	char *text = strdup(spec), *rest, *colon, *save, *o;
	int ret = 0;

	if (!text)
		return error_errno(err, -ENOMEM, "share %s", spec);
	rest = strchr(text, ',');
	if (rest)
		*rest++ = 0;
	/* A directory may well have a colon in its name. */
	colon = strrchr(text, ':');
	if (colon && !strchr(colon, '/')) {
		*colon = 0;
		sh.tag = copy_of(colon + 1, &ret);
	}
	sh.dir = copy_of(text, &ret);
	if (ret)
		error_errno(err, ret, "share %s", spec);
	for (o = rest ? strtok_r(rest, ",", &save) : NULL; o && !ret;
	     o = strtok_r(NULL, ",", &save))
		if (parse_option(&sh, o))
			ret = bad_option(spec, o, err);
	free(text);
	if (!ret)
		ret = add_share(cfg, &sh, spec, err);
	if (ret)
		share_config_finish(&sh);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): cfg has it */
	return ret;
}

/* The form that vfkit and krunkit share: "sharedDir=DIR,mountTag=TAG". */
int config_add_virtio_fs(struct vm_config *cfg, char *options, const char *spec,
			 struct husk_error *err)
{
	struct share_config sh = { 0 };
	char *save, *o;
	int ret = 0;

	for (o = strtok_r(options, ",", &save); o && !ret;
	     o = strtok_r(NULL, ",", &save)) {
		if (!strncmp(o, "sharedDir=", 10) && !sh.dir)
			sh.dir = copy_of(o + 10, &ret);
		else if (!strncmp(o, "mountTag=", 9) && !sh.tag)
			sh.tag = copy_of(o + 9, &ret);
		else if (parse_option(&sh, o))
			ret = bad_option(spec, o, err);
	}
	if (!ret && (!sh.dir || !sh.tag))
		ret = error_set(err, -EINVAL,
				"device %s: sharedDir=DIR,mountTag=TAG is "
				"missing",
				spec);
	if (!ret)
		ret = add_share(cfg, &sh, spec, err);
	if (ret)
		share_config_finish(&sh);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): cfg has it */
	return ret;
}
