/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cutter.c - writes files that must outlive a power cut, and looks for them
 *
 * cutter write DIR N    does N things and says after each what is durable
 *                       now, while a child changes other files and syncs none
 * cutter check DIR      reads what was said and looks if it is there
 *
 * What a file holds follows from its number, so a line is all it takes:
 *   f I     the file fI is whole, and stays
 *   log K   records 1 to K of an appended file
 *   r K     a file that is replaced by rename: version K, or the next
 *   db B    block B, written in place, of a file
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX = 48 << 10, BLOCK = 4096, BLOCKS = 256 };
enum { FILES = 0, RECORDS = 10000, VERSIONS = 20000, DB = 30000 };

static unsigned char data[MAX], have[MAX + 1];

/* The bytes of a thing and how many they are. */
static size_t fill(unsigned thing)
{
	uint64_t x = (thing + 1) * 0x9e3779b97f4a7c15u;
	size_t len = thing >= DB			    ? BLOCK
		     : thing >= RECORDS && thing < VERSIONS ? 100 + x % 3000
							    : 1 + x % MAX;

	for (size_t i = 0; i < len; i++) {
		x ^= x >> 12;
		x ^= x << 25;
		x ^= x >> 27;
		data[i] = (unsigned char)(x * 0x2545f4914f6cdd1du >> 56);
	}
	return len;
}

static void die(const char *what)
{
	printf("END %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(int fd, size_t len)
{
	if (write(fd, data, len) != (ssize_t)len)
		die("write");
}

static void put_file(const char *name, unsigned thing)
{
	int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	if (fd < 0)
		die(name);
	put(fd, fill(thing));
	if (fsync(fd) || close(fd))
		die("fsync");
}

static void sync_dir(void)
{
	int fd = open(".", O_RDONLY | O_DIRECTORY);

	if (fd < 0 || fsync(fd) || close(fd))
		die("fsync of the directory");
}

/* Nobody waits for any of this to reach the disk. */
static void make_noise(void)
{
	char name[32];

	srand(7);
	for (;;) {
		int fd, k = rand() % 12;

		snprintf(name, sizeof(name), "noise%d", k);
		switch (rand() % 6) {
		case 0: unlink(name); break;
		case 1: mkdir("noised", 0755); break;
		case 2: rmdir("noised"); break;
		case 3:
			if (truncate(name, rand() % 30000))
				unlink(name);
			break;
		default:
			fd = open(name, O_CREAT | O_WRONLY | O_APPEND, 0644);
			if (fd < 0)
				break;
			if (write(fd, have, 1000 + rand() % 9000) < 0)
				unlink(name);
			close(fd);
		}
		usleep(2000);
	}
}

static int do_write(unsigned n)
{
	int log = open("log", O_CREAT | O_WRONLY | O_APPEND, 0644);
	int db = open("db", O_CREAT | O_RDWR, 0644);
	pid_t noise;

	memset(data, 0, BLOCK);
	for (unsigned b = 0; b < BLOCKS; b++)
		if (db < 0 || write(db, data, BLOCK) != BLOCK)
			die("db");
	if (log < 0 || fsync(log) || fsync(db))
		die("log");
	sync_dir();
	noise = fork();
	if (noise == 0)
		make_noise();
	for (unsigned i = 1; i <= n; i++) {
		unsigned k = (i + 3) / 4;
		char name[32];

		switch (i % 4) {
		case 1:
			snprintf(name, sizeof(name), "f%u", k);
			put_file(name, FILES + k);
			sync_dir();
			printf("durable f %u\n", k);
			break;
		case 2:
			put(log, fill(RECORDS + k));
			if (fdatasync(log))
				die("fdatasync");
			printf("durable log %u\n", k);
			break;
		case 3:
			put_file("r.tmp", VERSIONS + k);
			if (rename("r.tmp", "r"))
				die("rename");
			sync_dir();
			printf("durable r %u\n", k);
			break;
		default:
			k %= BLOCKS;
			if (pwrite(db, data, fill(DB + k), k * BLOCK) !=
				    BLOCK ||
			    fdatasync(db))
				die("db");
			printf("durable db %u\n", k);
		}
		fflush(stdout);
	}
	kill(noise, SIGKILL);
	puts("END well");
	return 0;
}

/* -- looking -------------------------------------------------------------- */

/* What name has from offset on is this thing, and if whole nothing more. */
static int has(const char *name, off_t offset, unsigned thing, int whole)
{
	size_t len = fill(thing);
	int fd = open(name, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = pread(fd, have, len + 1, offset);
	close(fd);
	return n >= (ssize_t)len && (!whole || n == (ssize_t)len) &&
	       !memcmp(have, data, len);
}

static int has_log(unsigned n)
{
	off_t offset = 0;

	for (unsigned k = 1; k <= n; k++) {
		if (!has("log", offset, RECORDS + k, 0))
			return 0;
		offset += (off_t)fill(RECORDS + k);
	}
	return 1;
}

static int do_check(void)
{
	unsigned k, n = 0, bad = 0;
	char line[32], kind[8], name[32];

	while (fgets(line, sizeof(line), stdin)) {
		char *number = strchr(line, ' ');
		int there;

		if (!number)
			continue;
		k = (unsigned)strtoul(number, NULL, 10);
		snprintf(kind, sizeof(kind), "%.*s", (int)(number - line),
			 line);
		snprintf(name, sizeof(name), "f%u", k);
		if (!strcmp(kind, "f"))
			there = has(name, 0, FILES + k, 1);
		else if (!strcmp(kind, "log"))
			there = has_log(k);
		else if (!strcmp(kind, "r"))
			there = has("r", 0, VERSIONS + k, 1) ||
				has("r", 0, VERSIONS + k + 1, 1);
		else
			there = has("db", (off_t)k * BLOCK, DB + k, 0);
		if (!there)
			printf("lost %s %u\n", kind, k);
		bad += !there;
		n++;
	}
	printf("whole %u of %u\n", n - bad, n);
	return bad != 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "write") && !chdir(argv[2]))
		return do_write((unsigned)strtoul(argv[3], NULL, 10));
	if (argc == 3 && !strcmp(argv[1], "check") && !chdir(argv[2]))
		return do_check();
	fprintf(stderr, "use: cutter write DIR N, or cutter check DIR\n");
	return 2;
}
