/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_json.c - a configuration as a JSON document, in both directions
 *
 * docs/vm.json.md describes the document.  A list has strings, in the words of
 * the command's options, or objects with the same words as keys.  A new kind
 * of device needs a row in lists[], and remembers its text.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "vm/machine.h"

enum { MAX_DOCUMENT = 1 << 20, MAX_DEPTH = 8, DOCUMENT_VERSION = 1 };

/* -- texts that were given ------------------------------------------------ */

int config_remember(struct vm_config *cfg, const char *list, const char *text)
{
	struct config_word *more;

	more = realloc(cfg->word, (cfg->nwords + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	cfg->word = more;
	more[cfg->nwords].list = list;
	more[cfg->nwords].text = strdup(text);
	if (!more[cfg->nwords].text)
		return -ENOMEM;
	cfg->nwords++;
	return 0;
}

void config_json_finish(struct vm_config *cfg)
{
	for (unsigned i = 0; i < cfg->nwords; i++)
		free(cfg->word[i].text);
	free(cfg->word);
	json_object_put(cfg->notes);
}

int vm_config_set_note(struct vm_config *cfg, const char *key,
		       const char *value)
{
	json_object *text;

	if (!cfg->notes)
		cfg->notes = json_object_new_object();
	if (!cfg->notes)
		return -ENOMEM;
	if (!value) {
		json_object_object_del(cfg->notes, key);
		return 0;
	}
	text = json_object_new_string(value);
	if (text && !json_object_object_add(cfg->notes, key, text))
		return 0;
	json_object_put(text);
	return -ENOMEM;
}

const char *vm_config_note(const struct vm_config *cfg, const char *key)
{
	json_object *v;

	if (!cfg->notes || !json_object_object_get_ex(cfg->notes, key, &v))
		return NULL;
	return json_object_get_string(v);
}

/* -- reading -------------------------------------------------------------- */

struct reader {
	struct vm_config *cfg;
	const char *dir; /* of relative paths, or NULL */
	struct husk_error *err;
};

static int oom(struct reader *r)
{
	return error_set(r->err, -ENOMEM, "out of memory");
}

/* NULL: not a string that C can hold. */
static const char *text_of(json_object *v)
{
	const char *s;

	if (!json_object_is_type(v, json_type_string))
		return NULL;
	s = json_object_get_string(v);
	return strlen(s) == (size_t)json_object_get_string_len(v) ? s : NULL;
}

static int want_text(struct reader *r, const char *key, json_object *v,
		     const char **out)
{
	*out = text_of(v);
	return *out ? 0
		    : error_set(r->err, -EINVAL, "\"%s\": a string is needed",
				key);
}

static int want_number(struct reader *r, const char *key, json_object *v,
		       uint64_t max, uint64_t *out)
{
	int64_t n = json_object_get_int64(v);

	if (!json_object_is_type(v, json_type_int) || n < 0 ||
	    (uint64_t)n > max)
		return error_set(r->err, -EINVAL,
				 "\"%s\": a number from 0 to %" PRIu64
				 " is needed",
				 key, max);
	*out = (uint64_t)n;
	return 0;
}

/* To be freed; NULL: no memory. */
static char *full_path(const struct reader *r, const char *path)
{
	char *full;

	if (!r->dir || *path == '/' || !*path)
		return strdup(path);
	return asprintf(&full, "%s/%s", r->dir, path) < 0 ? NULL : full;
}

static int read_path(struct reader *r, const char *key, json_object *v,
		     int (*set)(struct vm_config *cfg, const char *path))
{
	const char *path;
	char *full;
	int ret;

	if (want_text(r, key, v, &path))
		return -EINVAL;
	full = full_path(r, path);
	ret = full ? set(r->cfg, full) : -ENOMEM;
	free(full);
	return ret ? oom(r) : 0;
}

static int read_kernel(struct reader *r, const char *key, json_object *v)
{
	return read_path(r, key, v, vm_config_set_kernel);
}

static int read_initrd(struct reader *r, const char *key, json_object *v)
{
	return read_path(r, key, v, vm_config_set_initrd);
}

static int read_cmdline(struct reader *r, const char *key, json_object *v)
{
	const char *text;

	if (want_text(r, key, v, &text))
		return -EINVAL;
	return vm_config_set_cmdline(r->cfg, text) ? oom(r) : 0;
}

static int read_engine(struct reader *r, const char *key, json_object *v)
{
	const char *text;

	if (want_text(r, key, v, &text))
		return -EINVAL;
	return vm_config_set_engine(r->cfg, text) ? oom(r) : 0;
}

static int read_version(struct reader *r, const char *key, json_object *v)
{
	uint64_t n = 0;

	if (want_number(r, key, v, INT_MAX, &n))
		return -EINVAL;
	if (n != DOCUMENT_VERSION)
		return error_set(r->err, -EINVAL,
				 "\"version\": %" PRIu64 " is not known; this "
				 "Husk reads version %d",
				 n, DOCUMENT_VERSION);
	return 0;
}

static int read_cpus(struct reader *r, const char *key, json_object *v)
{
	uint64_t n = 0;

	if (want_number(r, key, v, INT_MAX, &n))
		return -EINVAL;
	vm_config_set_cpus(r->cfg, (unsigned)n);
	return 0;
}

static int parse_size(const char *text, uint64_t *out)
{
	static const char units[] = "KMGT";
	const char *unit;
	unsigned shift = 0;
	char *end;
	uint64_t n;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return -EINVAL;
		shift = 10 * (unsigned)(unit - units + 1);
	}
	if (n > UINT64_MAX >> shift)
		return -ERANGE;
	*out = n << shift;
	return 0;
}

static int read_memory(struct reader *r, const char *key, json_object *v)
{
	const char *text = text_of(v);
	uint64_t n = 0;

	if (text) {
		if (parse_size(text, &n))
			return error_set(r->err, -EINVAL,
					 "\"memory\": %.80s is not a size such "
					 "as 512M",
					 text);
	} else if (want_number(r, key, v, INT64_MAX, &n)) {
		return -EINVAL;
	}
	vm_config_set_memory(r->cfg, n);
	return 0;
}

static int read_reboot(struct reader *r, const char *key, json_object *v)
{
	const char *text = text_of(v);

	if (text && !strcmp(text, "again"))
		vm_config_set_reboot(r->cfg, VM_REBOOT_AGAIN);
	else if (text && !strcmp(text, "exit"))
		vm_config_set_reboot(r->cfg, VM_REBOOT_EXIT);
	else
		return error_set(r->err, -EINVAL,
				 "\"reboot\": is \"exit\" or \"again\"");
	return 0;
}

static int read_panic(struct reader *r, const char *key, json_object *v)
{
	const char *text = text_of(v);

	if (text && !strcmp(text, "go-on"))
		vm_config_set_panic(r->cfg, VM_PANIC_GO_ON);
	else if (text && !strcmp(text, "stop"))
		vm_config_set_panic(r->cfg, VM_PANIC_STOP);
	else
		return error_set(r->err, -EINVAL,
				 "\"panic\": is \"stop\" or \"go-on\"");
	return 0;
}

static int read_gap(struct reader *r, const char *key, json_object *v)
{
	uint64_t n = 0;

	if (want_number(r, key, v, VM_MAX_GAP, &n))
		return -EINVAL;
	return vm_config_set_gap(r->cfg, (unsigned)n);
}

static int read_generation(struct reader *r, const char *key, json_object *v)
{
	const char *text = text_of(v);
	uint8_t id[16];
	unsigned n = 0;

	if (text && strlen(text) == 32)
		for (; n < 16 && isxdigit((unsigned char)text[2 * n]) &&
		       isxdigit((unsigned char)text[2 * n + 1]);
		     n++) {
			char hex[3] = { text[2 * n], text[2 * n + 1], 0 };

			id[n] = (uint8_t)strtoul(hex, NULL, 16);
		}
	if (n != 16)
		return error_set(r->err, -EINVAL,
				 "\"generation\": 32 hexadecimal digits are "
				 "needed");
	vm_config_set_generation_id(r->cfg, id);
	return 0;
}

static int read_notes(struct reader *r, const char *key, json_object *v)
{
	if (!json_object_is_type(v, json_type_object))
		return error_set(r->err, -EINVAL, "\"%s\": an object is needed",
				 key);
	json_object_object_foreach(v, name, value)
	{
		if (!text_of(value))
			return error_set(r->err, -EINVAL,
					 "\"notes\": \"%.60s\" is not a string",
					 name);
		if (vm_config_set_note(r->cfg, name, text_of(value)))
			return oom(r);
	}
	return 0;
}

/* -- objects in lists ----------------------------------------------------- */

/*
 * The value of an option in words: a string, a number, or "" for true.  NULL:
 * false, which is as if it was not there.  -EINVAL: something else.
 */
static int option_text(json_object *v, char *number, size_t room,
		       const char **out)
{
	switch (json_object_get_type(v)) {
	case json_type_boolean:
		*out = json_object_get_boolean(v) ? "" : NULL;
		return 0;
	case json_type_int:
		snprintf(number, room, "%" PRId64, json_object_get_int64(v));
		*out = number;
		return 0;
	default: *out = text_of(v); return *out ? 0 : -EINVAL;
	}
}

static bool is_path(const char *key)
{
	return !strcmp(key, "path") || !strcmp(key, "base");
}

static int bad_option(struct reader *r, const char *list, const char *key,
		      int why)
{
	if (why == -ENOMEM)
		return oom(r);
	if (why == -ENOENT)
		return error_set(r->err, -EINVAL,
				 "\"%s\": there is no \"%.60s\"", list, key);
	return error_set(r->err, -EINVAL,
			 "\"%s\": \"%.60s\" cannot have this value", list, key);
}

static int read_disk(struct reader *r, json_object *o)
{
	struct disk_config d = { 0 };
	int ret = 0;

	json_object_object_foreach(o, key, v)
	{
		char number[32], *full = NULL;
		const char *text = NULL;

		ret = option_text(v, number, sizeof(number), &text);
		if (!ret && text && is_path(key)) {
			text = full = full_path(r, text);
			ret = full ? 0 : -ENOMEM;
		}
		if (!ret && text)
			ret = disk_config_set(&d, key, text);
		free(full);
		if (ret) {
			ret = bad_option(r, "disks", key, ret);
			break;
		}
	}
	if (!ret && (!d.path || !*d.path))
		ret = error_set(r->err, -EINVAL,
				"\"disks\": one has no \"path\"");
	if (!ret)
		ret = config_take_disk(r->cfg, &d, r->err);
	disk_config_finish(&d);
	return ret;
}

/* "kind" and what it leads to: the first word of --net. */
static int read_net_kind(struct reader *r, struct net_config *n, json_object *o)
{
	static const char *const where[] = { "path", "name", "fd" };
	const char *kind, *text = NULL;
	char number[32], *full = NULL, *word;
	json_object *v = NULL;
	int ret;

	if (!json_object_object_get_ex(o, "kind", &v) || !text_of(v))
		return error_set(r->err, -EINVAL,
				 "\"networks\": one has no \"kind\"");
	kind = text_of(v);
	for (unsigned i = 0; i < ARRAY_SIZE(where); i++) {
		if (!json_object_object_get_ex(o, where[i], &v))
			continue;
		if (text || option_text(v, number, sizeof(number), &text) ||
		    !text) {
			free(full);
			return bad_option(r, "networks", where[i], -EINVAL);
		}
		if (i == 0) {
			text = full = full_path(r, text);
			if (!full)
				return oom(r);
		}
	}
	ret = asprintf(&word, "%s%s%s%s", kind, text ? "=" : "",
		       text == number && !strcmp(kind, "tap") ? "fd:" : "",
		       text ? text : "");
	free(full);
	if (ret < 0)
		return oom(r);
	ret = net_config_kind(n, word);
	free(word);
	return ret ? error_set(r->err, -EINVAL,
			       "\"networks\": there is no \"kind\" \"%.40s\", "
			       "or it needs a \"path\", \"name\" or \"fd\"",
			       kind)
		   : 0;
}

static int read_forwards(struct reader *r, struct net_config *n, json_object *v)
{
	size_t count;

	if (!json_object_is_type(v, json_type_array) || !n->kind ||
	    strcmp(n->kind, "shared") != 0)
		return error_set(r->err, -EINVAL,
				 "\"forwards\": a list of strings, in a shared "
				 "network");
	count = json_object_array_length(v);
	for (size_t i = 0; i < count; i++) {
		const char *text = text_of(json_object_array_get_idx(v, i));
		int ret;

		if (!text)
			return bad_option(r, "networks", "forwards", -EINVAL);
		ret = net_config_forward(n, text, r->err);
		if (ret)
			return ret;
	}
	return 0;
}

static bool is_where(const char *key)
{
	return !strcmp(key, "kind") || !strcmp(key, "path") ||
	       !strcmp(key, "name") || !strcmp(key, "fd");
}

static int read_net_option(struct reader *r, struct net_config *n,
			   const char *key, json_object *v)
{
	char number[32], *word;
	const char *text;
	int ret;

	if (!strcmp(key, "forwards"))
		return read_forwards(r, n, v);
	if (option_text(v, number, sizeof(number), &text))
		return bad_option(r, "networks", key, -EINVAL);
	if (!text)
		return 0;
	if (asprintf(&word, "%s%s%s", key, *text ? "=" : "", text) < 0)
		return oom(r);
	ret = net_config_option(n, word);
	free(word);
	return ret ? bad_option(r, "networks", key, ret) : 0;
}

static int read_net(struct reader *r, json_object *o)
{
	struct net_config n = { 0 };
	int ret = read_net_kind(r, &n, o);

	json_object_object_foreach(o, key, v)
	{
		if (ret)
			break;
		if (!is_where(key))
			ret = read_net_option(r, &n, key, v);
	}
	if (!ret)
		ret = config_take_net(r->cfg, &n, r->err);
	net_config_finish(&n);
	return ret;
}

/* -- the document --------------------------------------------------------- */

static const struct list {
	const char *key;
	/* In the words of the command's option of that kind. */
	int (*add)(struct vm_config *cfg, const char *text,
		   struct husk_error *err);
	int (*read)(struct reader *r, json_object *o); /* NULL: strings only */
} lists[] = {
	{ "disks", vm_config_add_disk_spec, read_disk },
	{ "networks", vm_config_add_net, read_net },
	{ "shares", vm_config_add_share, NULL },
	{ "devices", vm_config_add_device, NULL },
	{ "vsock", vm_config_add_vsock, NULL },
};

static const struct value {
	const char *key;
	int (*read)(struct reader *r, const char *key, json_object *v);
} values[] = {
	{ "version", read_version }, { "cpus", read_cpus },
	{ "memory", read_memory },   { "engine", read_engine },
	{ "kernel", read_kernel },   { "initrd", read_initrd },
	{ "cmdline", read_cmdline }, { "reboot", read_reboot },
	{ "panic", read_panic },     { "generation", read_generation },
	{ "notes", read_notes },     { "gap", read_gap },
};

static int read_list(struct reader *r, const struct list *list, json_object *v)
{
	size_t count;
	int ret = 0;

	if (!json_object_is_type(v, json_type_array))
		return error_set(r->err, -EINVAL, "\"%s\": a list is needed",
				 list->key);
	count = json_object_array_length(v);
	for (size_t i = 0; i < count && !ret; i++) {
		json_object *item = json_object_array_get_idx(v, i);

		if (text_of(item))
			ret = list->add(r->cfg, text_of(item), r->err);
		else if (list->read &&
			 json_object_is_type(item, json_type_object))
			ret = list->read(r, item);
		else
			ret = error_set(r->err, -EINVAL,
					"\"%s\": a list of strings%s is needed",
					list->key,
					list->read ? " or objects" : "");
	}
	return ret;
}

static int read_member(struct reader *r, const char *key, json_object *v)
{
	for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
		if (!strcmp(key, values[i].key))
			return values[i].read(r, key, v);
	for (unsigned i = 0; i < ARRAY_SIZE(lists); i++)
		if (!strcmp(key, lists[i].key))
			return read_list(r, &lists[i], v);
	return error_set(r->err, -EINVAL, "there is no \"%.60s\"", key);
}

static int read_document(struct reader *r, json_object *doc)
{
	int ret = 0;

	if (!json_object_is_type(doc, json_type_object))
		return error_set(r->err, -EINVAL,
				 "a configuration is one JSON object");
	json_object_object_foreach(doc, key, v)
	{
		ret = read_member(r, key, v);
		if (ret)
			break;
	}
	return ret;
}

static int parse_error(struct husk_error *err, const char *text, size_t end,
		       const char *what)
{
	unsigned line = 1;

	for (size_t i = 0; i < end; i++)
		line += text[i] == '\n';
	return error_set(err, -EINVAL, "line %u: %s", line, what);
}

static int parse_text(const char *text, size_t len, json_object **doc,
		      struct husk_error *err)
{
	struct json_tokener *tok;
	size_t end;
	int ret = 0;

	*doc = NULL;
	if (len > MAX_DOCUMENT)
		return error_set(err, -E2BIG, "more than 1 MiB");
	tok = json_tokener_new_ex(MAX_DEPTH);
	if (!tok)
		return error_set(err, -ENOMEM, "out of memory");
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT |
					    JSON_TOKENER_VALIDATE_UTF8);
	*doc = json_tokener_parse_ex(tok, text, (int)len);
	end = json_tokener_get_parse_end(tok);
	if (!*doc) {
		enum json_tokener_error e = json_tokener_get_error(tok);

		ret = parse_error(err, text, end,
				  e == json_tokener_continue ||
						  e == json_tokener_success
					  ? "the document ends too early"
					  : json_tokener_error_desc(e));
	}
	while (!ret && end < len && strchr(" \t\r\n", text[end]) && text[end])
		end++;
	if (!ret && end < len)
		ret = parse_error(err, text, end, "text after the document");
	json_tokener_free(tok);
	if (ret) {
		json_object_put(*doc);
		*doc = NULL;
	}
	return ret;
}

int vm_config_from_json(const char *text, size_t len, const char *dir,
			struct vm_config **out, struct husk_error *err)
{
	struct reader r = { vm_config_create(), dir, err };
	json_object *doc = NULL;
	int ret;

	*out = NULL;
	ret = r.cfg ? parse_text(text, len, &doc, err) : oom(&r);
	if (!ret)
		ret = read_document(&r, doc);
	json_object_put(doc);
	if (ret)
		vm_config_destroy(r.cfg);
	else
		*out = r.cfg;
	return ret;
}

/* -- writing -------------------------------------------------------------- */

/* The first failure sticks. */
struct writer {
	const char *dir; /* paths below it are written without it */
	bool failed;
};

static void add(struct writer *w, json_object *to, const char *key,
		json_object *v)
{
	if (v && !json_object_object_add(to, key, v))
		return;
	json_object_put(v);
	w->failed = true;
}

static void add_text(struct writer *w, json_object *to, const char *key,
		     const char *text)
{
	if (text)
		add(w, to, key, json_object_new_string(text));
}

/* In a document with a folder, a relative path is not that of this process. */
static void add_path(struct writer *w, json_object *to, const char *key,
		     const char *path)
{
	size_t n = w->dir ? strlen(w->dir) : 0;
	char *here, *full = NULL;

	if (n && path && *path && *path != '/') {
		here = realpath(".", NULL);
		if (here && asprintf(&full, "%s/%s", here, path) < 0)
			full = NULL;
		free(here);
		w->failed |= !full;
		path = full;
	}

	if (path && n && !strncmp(path, w->dir, n) && path[n] == '/' &&
	    path[n + 1] && path[n + 1] != '/')
		path += n + 1;
	add_text(w, to, key, path);
	free(full);
}

static void add_number(struct writer *w, json_object *to, const char *key,
		       uint64_t n)
{
	if (n)
		add(w, to, key, json_object_new_int64((int64_t)n));
}

static void add_flag(struct writer *w, json_object *to, const char *key,
		     bool on)
{
	if (on)
		add(w, to, key, json_object_new_boolean(true));
}

static void add_size(struct writer *w, json_object *to, const char *key,
		     uint64_t size)
{
	static const char units[] = "KMGT";
	unsigned u = 0;
	char text[32];

	if (!size || size & 1023) {
		add(w, to, key, json_object_new_int64((int64_t)size));
		return;
	}
	for (size >>= 10; !(size & 1023) && units[u + 1]; size >>= 10)
		u++;
	snprintf(text, sizeof(text), "%" PRIu64 "%c", size, units[u]);
	add_text(w, to, key, text);
}

static void add_item(struct writer *w, json_object *list, json_object *item)
{
	if (item && !json_object_array_add(list, item))
		return;
	json_object_put(item);
	w->failed = true;
}

static json_object *write_disk(struct writer *w, const struct disk_config *d)
{
	static const char *const cache[] = { NULL, "direct" };
	static const char *const sync[] = { NULL, "data", "none" };
	static const char *const aio[] = { NULL, "uring", "threads" };
	json_object *o = json_object_new_object();

	if (!o)
		return NULL;
	add_path(w, o, "path", d->path);
	add_text(w, o, "format", d->format);
	add_flag(w, o, "readonly", d->readonly);
	add_path(w, o, "base", d->base);
	add_text(w, o, "snapshot", d->snapshot);
	add_text(w, o, "serial", d->serial);
	add_text(w, o, "cache", cache[d->cache]);
	add_text(w, o, "sync", sync[d->sync]);
	add_text(w, o, "aio", aio[d->aio]);
	add_number(w, o, "sector", d->sector);
	add_number(w, o, "queues", d->queues);
	add_text(w, o, "on-enospc", d->pause_if_full ? "pause" : NULL);
	add_text(w, o, "fault", d->fault);
	return o;
}

static json_object *write_net(struct writer *w, const struct net_config *n)
{
	json_object *o = json_object_new_object(), *forwards;
	char mac[18];

	if (!o)
		return NULL;
	add_text(w, o, "kind", n->kind);
	if (n->where && !strcmp(n->kind, "tap"))
		add_text(w, o, "name", n->where);
	else if (n->where)
		add_path(w, o, "path", n->where);
	else if (!strcmp(n->kind, "tap") || !strcmp(n->kind, "fd"))
		add(w, o, "fd", json_object_new_int64(n->fd));
	snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", n->mac[0],
		 n->mac[1], n->mac[2], n->mac[3], n->mac[4], n->mac[5]);
	add_text(w, o, "mac", mac);
	add_number(w, o, "mtu", n->mtu);
	add_number(w, o, "queues", n->pairs);
	add_flag(w, o, "listen", n->listen);
	add_flag(w, o, "vfkit", n->vfkit);
	add_flag(w, o, "isolated", n->isolated);
	add_flag(w, o, "noloopback", n->no_loopback);
	forwards = n->nforwards ? json_object_new_array() : NULL;
	for (unsigned i = 0; forwards && i < n->nforwards; i++)
		add_item(w, forwards, json_object_new_string(n->forward[i]));
	if (n->nforwards)
		add(w, o, "forwards", forwards);
	return o;
}

static json_object *write_list(struct writer *w, const struct vm_config *cfg,
			       const char *key)
{
	json_object *list = json_object_new_array();

	for (unsigned i = 0; list && i < cfg->ndisks; i++)
		if (!strcmp(key, "disks"))
			add_item(w, list, write_disk(w, &cfg->disk[i]));
	for (unsigned i = 0; list && i < cfg->nnets; i++)
		if (!strcmp(key, "networks"))
			add_item(w, list, write_net(w, &cfg->net[i]));
	for (unsigned i = 0; list && i < cfg->nwords; i++)
		if (!strcmp(key, cfg->word[i].list))
			add_item(w, list,
				 json_object_new_string(cfg->word[i].text));
	return list;
}

static void add_generation(struct writer *w, json_object *doc,
			   const uint8_t *id)
{
	char text[33];

	for (unsigned i = 0; i < 16; i++)
		snprintf(text + 2 * i, 3, "%02x", id[i]);
	add_text(w, doc, "generation", text);
}

char *vm_config_to_json(const struct vm_config *cfg, const char *dir)
{
	struct writer w = { .dir = dir };
	json_object *doc = json_object_new_object();
	char *text = NULL;

	if (!doc)
		return NULL;
	add(&w, doc, "version", json_object_new_int(DOCUMENT_VERSION));
	add(&w, doc, "cpus", json_object_new_int64(cfg->cpus));
	add_size(&w, doc, "memory", cfg->memory);
	add_text(&w, doc, "engine", cfg->engine);
	add_path(&w, doc, "kernel", cfg->kernel);
	add_path(&w, doc, "initrd", cfg->initrd);
	add_text(&w, doc, "cmdline", cfg->cmdline);
	add_text(&w, doc, "reboot",
		 cfg->reboot == VM_REBOOT_AGAIN ? "again" : "exit");
	if (cfg->panic == VM_PANIC_GO_ON)
		add_text(&w, doc, "panic", "go-on");
	if (cfg->gap != VM_GAP)
		add(&w, doc, "gap", json_object_new_int64(cfg->gap));
	if (cfg->has_generation)
		add_generation(&w, doc, cfg->generation);
	for (unsigned i = 0; i < ARRAY_SIZE(lists); i++) {
		json_object *list = write_list(&w, cfg, lists[i].key);

		if (list && !json_object_array_length(list))
			json_object_put(list);
		else
			add(&w, doc, lists[i].key, list);
	}
	if (cfg->notes && json_object_object_length(cfg->notes))
		add(&w, doc, "notes", json_object_get(cfg->notes));
	if (!w.failed &&
	    asprintf(&text, "%s\n",
		     json_object_to_json_string_ext(
			     doc, JSON_C_TO_STRING_PRETTY |
					  JSON_C_TO_STRING_SPACED |
					  JSON_C_TO_STRING_NOSLASHESCAPE)) < 0)
		text = NULL;
	json_object_put(doc);
	return text;
}

/* -- files ---------------------------------------------------------------- */

/* The folder of path, absolute where that can be found; to be freed. */
static char *folder_of(const char *path)
{
	char *copy = strdup(path), *slash, *full;

	if (!copy)
		return NULL;
	slash = strrchr(copy, '/');
	if (slash == copy)
		slash[1] = 0;
	else if (slash)
		*slash = 0;
	full = realpath(slash ? copy : ".", NULL);
	free(copy);
	return full;
}

static int read_all(int fd, char **text, size_t *len)
{
	char *buf = malloc(MAX_DOCUMENT + 1);
	size_t n = 0;
	ssize_t got;

	if (!buf)
		return -ENOMEM;
	while ((got = read(fd, buf + n, MAX_DOCUMENT + 1 - n)) > 0)
		n += (size_t)got;
	if (got < 0) {
		free(buf);
		return -errno;
	}
	*text = buf;
	*len = n;
	return 0;
}

int vm_config_load(const char *path, struct vm_config **cfg,
		   struct husk_error *err)
{
	struct husk_error why = { 0 };
	char *text = NULL, *dir;
	size_t len = 0;
	int fd, ret;

	*cfg = NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return error_errno(err, -errno, "%s", path);
	ret = read_all(fd, &text, &len);
	close(fd);
	if (ret || !text)
		return error_errno(err, ret, "%s", path);
	dir = folder_of(path);
	ret = vm_config_from_json(text, len, dir, cfg, &why);
	free(dir);
	free(text);
	return ret ? error_set(err, ret, "%s: %s", path, why.text) : 0;
}

static int write_all(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left) {
		ssize_t n = write(fd, text, left);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			text += n;
			left -= (size_t)n;
		}
	}
	return fsync(fd) ? -errno : 0;
}

int vm_config_save(const struct vm_config *cfg, const char *path,
		   struct husk_error *err)
{
	char *dir = folder_of(path), *text = vm_config_to_json(cfg, dir);
	char *temporary = NULL;
	int fd, ret = 0;

	free(dir);
	if (!text || asprintf(&temporary, "%s.XXXXXX", path) < 0) {
		free(text);
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	}
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		ret = -errno;
	if (!ret) {
		ret = write_all(fd, text);
		close(fd);
		if (!ret && rename(temporary, path))
			ret = -errno;
		if (ret)
			unlink(temporary);
	}
	free(temporary);
	free(text);
	return ret ? error_errno(err, ret, "%s", path) : 0;
}
