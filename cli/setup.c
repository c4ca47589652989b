/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setup.c - what a guest is told at its first boot: user, keys, host name
 */
#include "setup.h"

#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "cli.h"
#include "seed.h"

enum { MAX_FILE = 1 << 20, MAX_USER = 31 };

/* As useradd(8) takes it. */
static bool is_user(const char *name)
{
	if (!islower((unsigned char)*name) && *name != '_')
		return false;
	for (const char *c = name; *c; c++)
		if (!islower((unsigned char)*c) &&
		    !isdigit((unsigned char)*c) && *c != '_' && *c != '-')
			return false;
	return strlen(name) <= MAX_USER;
}

void setup_default_user(char *to, size_t room)
{
	struct passwd *pw = getuid() ? getpwuid(getuid()) : NULL;

	snprintf(to, room, "%s",
		 pw && is_user(pw->pw_name) ? pw->pw_name : "debian");
}

/* -- reading -------------------------------------------------------------- */

/* 0, -ENOENT without a word, or another error, told.  *data to be freed. */
static int read_file(const char *path, char **data, size_t *len)
{
	FILE *f = fopen(path, "re");
	int ret = 0;

	*data = NULL;
	if (!f && errno == ENOENT)
		return -ENOENT;
	*len = 0;
	if (f)
		*data = malloc(MAX_FILE + 1);
	if (f && *data)
		*len = fread(*data, 1, MAX_FILE, f);
	if (!f || !*data || ferror(f)) {
		ret = errno ? -errno : -EIO;
		complain("%s: %s", path, strerror(errno));
	} else if (*len == MAX_FILE) {
		ret = -EFBIG;
		complain("%s: is larger than 1 MiB", path);
	} else {
		(*data)[*len] = 0;
	}
	if (f)
		fclose(f);
	if (!ret)
		return 0;
	free(*data);
	*data = NULL;
	return ret;
}

static bool is_key(const char *line)
{
	static const char *const kinds[] = { "ssh-", "ecdsa-", "sk-" };

	for (unsigned i = 0; i < 3; i++)
		if (!strncmp(line, kinds[i], strlen(kinds[i])))
			return true;
	return false;
}

/* The keys of a file, as an array of strings. */
static int read_keys(const char *path, json_object **keys)
{
	char *data, *line, *save;
	size_t len;
	int ret = read_file(path, &data, &len);

	*keys = json_object_new_array();
	if (ret == -ENOENT)
		complain("--ssh-key %s: %s", path, strerror(ENOENT));
	if (ret || !data)
		return EXIT_USAGE;
	if (strstr(data, "PRIVATE KEY")) {
		complain("--ssh-key %s: is a private key; the public one is in "
			 "%s.pub",
			 path, path);
		free(data);
		return EXIT_USAGE;
	}
	for (line = strtok_r(data, "\r\n", &save); line;
	     line = strtok_r(NULL, "\r\n", &save))
		if (is_key(line))
			json_object_array_add(*keys,
					      json_object_new_string(line));
	free(data);
	if (json_object_array_length(*keys))
		return 0;
	complain("--ssh-key %s: there is no public key in it", path);
	return EXIT_USAGE;
}

/* -- the files of the seed ------------------------------------------------ */

struct text {
	char *data;
	size_t len, room;
};

static void __attribute__((format(printf, 2, 3)))
append(struct text *t, const char *fmt, ...)
{
	va_list ap;
	char *more;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&more, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if (t->len + (size_t)n + 1 > t->room) {
		size_t room = 2 * (t->len + (size_t)n) + 256;
		char *p = realloc(t->data, room);

		if (!p) {
			free(more);
			return;
		}
		t->data = p;
		t->room = room;
	}
	memcpy(t->data + t->len, more, (size_t)n + 1);
	t->len += (size_t)n;
	free(more);
}

static int add_text(struct seed *s, const char *name, struct text *t)
{
	int ret = seed_add(s, name, t->data ? t->data : "", t->len);

	free(t->data);
	return ret;
}

/* For our own first boot. */
static int add_husk(struct seed *s, const struct setup *u, const char *host,
		    json_object *keys)
{
	struct text t = { 0 };

	append(&t, "hostname %s\n", host);
	if (u->user)
		append(&t, "user %s\n", u->user);
	for (size_t i = 0; keys && i < json_object_array_length(keys); i++)
		append(&t, "key %s\n",
		       json_object_get_string(
			       json_object_array_get_idx(keys, i)));
	return add_text(s, "husk", &t);
}

static int add_meta_data(struct seed *s, const char *host)
{
	struct text t = { 0 };
	uint64_t id = 0;

	/* cloud-init does its work again when the id is another one. */
	if (getrandom(&id, sizeof(id), 0) != sizeof(id))
		id = (uint64_t)now_ms();
	append(&t, "instance-id: husk-%016llx\nlocal-hostname: %s\n",
	       (unsigned long long)id, host);
	return add_text(s, "meta-data", &t);
}

/* JSON is YAML. */
static int add_user_data(struct seed *s, const struct setup *u,
			 json_object *keys)
{
	json_object *doc = json_object_new_object();
	json_object *users = json_object_new_array();
	json_object *user = json_object_new_object();
	struct text t = { 0 };
	int ret;

	if (u->user) {
		json_object_object_add(user, "name",
				       json_object_new_string(u->user));
		json_object_object_add(
			user, "sudo",
			json_object_new_string("ALL=(ALL) NOPASSWD:ALL"));
		json_object_object_add(user, "shell",
				       json_object_new_string("/bin/bash"));
		json_object_object_add(user, "lock_passwd",
				       json_object_new_boolean(false));
		json_object_object_add(user, "passwd",
				       json_object_new_string(""));
		if (keys)
			json_object_object_add(user, "ssh_authorized_keys",
					       json_object_get(keys));
		json_object_array_add(users, json_object_get(user));
		json_object_object_add(doc, "users", json_object_get(users));
	}
	json_object_put(user);
	json_object_put(users);
	append(&t, "#cloud-config\n%s\n",
	       json_object_to_json_string_ext(
		       doc, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
				    JSON_C_TO_STRING_NOSLASHESCAPE));
	ret = add_text(s, "user-data", &t);
	json_object_put(doc);
	return ret;
}

/* What is in the folder of --cloud-init.  has: which of them were there. */
static int add_folder(struct seed *s, const char *dir, bool *has)
{
	static const char *const files[] = { "user-data", "meta-data",
					     "network-config", "vendor-data" };
	char path[1024], *data;
	size_t len;

	for (unsigned i = 0; i < 4; i++) {
		int ret;

		snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
		ret = read_file(path, &data, &len);
		has[i] = !ret;
		if (ret == -ENOENT)
			continue;
		if (!ret)
			ret = seed_add(s, files[i], data, len);
		free(data);
		if (ret)
			return ret;
	}
	if (has[0])
		return 0;
	complain("--cloud-init %s: there is no user-data in it", dir);
	return -ENOENT;
}

/* A host name has neither "." nor "_". */
static void host_name(char *to, size_t room, const char *name)
{
	snprintf(to, room, "%s", name);
	for (char *c = to; *c; c++)
		if (*c == '_' || *c == '.')
			*c = '-';
}

static int fill(struct seed *s, const struct setup *u, json_object *keys)
{
	bool has[4] = { false };
	char host[64];
	int ret = 0;

	host_name(host, sizeof(host), u->hostname);
	if (u->cloud_init)
		ret = add_folder(s, u->cloud_init, has);
	if (!ret)
		ret = add_husk(s, u, host, keys);
	if (!ret && !has[0])
		ret = add_user_data(s, u, keys);
	if (!ret && !has[1])
		ret = add_meta_data(s, host);
	return ret;
}

int setup_write(const struct setup *u, const char *path)
{
	struct seed seed = { .n = 0 };
	json_object *keys = NULL;
	int ret = 0;

	if (u->user && !is_user(u->user)) {
		complain("--user %s: not a name of a user; small letters, "
			 "digits, \"_\" and \"-\" are possible",
			 u->user);
		return EXIT_USAGE;
	}
	if (u->ssh_key)
		ret = read_keys(u->ssh_key, &keys);
	if (!ret && fill(&seed, u, keys))
		ret = EXIT_USAGE;
	if (!ret && seed_write(&seed, path)) {
		complain("%s: %s", path, strerror(errno));
		ret = EXIT_FAULT;
	}
	seed_finish(&seed);
	json_object_put(keys);
	return ret;
}
