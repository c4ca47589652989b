/* SPDX-License-Identifier: Apache-2.0 */
/*
 * app.c - programs as Debian ships them
 *
 * The guest's copies are the host's own files at the same paths.  Inputs are
 * made here, before the clock starts, the same everywhere.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs one program with its output in the file out; hashes what it wrote. */
static uint64_t program(const char *path, ...)
{
	char *argv[24] = { (char *)path };
	uint64_t h = 0;
	char block[4096];
	int status, fd, n = 1;
	ssize_t got;
	pid_t pid;
	va_list ap;

	va_start(ap, path);
	while (n < 23 && (argv[n] = va_arg(ap, char *)))
		n++;
	va_end(ap);
	pid = fork();
	if (pid < 0)
		fail("fork failed");
	if (!pid) {
		fd = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0600);
		dup2(fd, 1);
		execv(path, argv);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid)
		fail("the program's end was not seen");
	if (WIFSIGNALED(status))
		fail("the program died by a signal");
	if (WEXITSTATUS(status) == 127)
		fail("the program is not installed");
	if (WEXITSTATUS(status))
		fail("the program failed");
	fd = open("out", O_RDONLY);
	while ((got = read(fd, block, sizeof(block))) > 0)
		h = hash(h, block, (size_t)got);
	close(fd);
	return h;
}

static const char *number(uint64_t n)
{
	static char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)n);
	return text;
}

/* Where the harness's own files are: /bench in a guest. */
static const char *own(const char *name)
{
	static char path[4096];
	const char *dir = getenv("BENCH");

	snprintf(path, sizeof(path), "%s/%s", dir ? dir : "/bench", name);
	return path;
}

/* Lines of words, a few of them frequent, with numbers between. */
static void setup_text(uint64_t n)
{
	static const char syllables[16][4] = { "ta", "re",  "mon", "si",
					       "lo", "ver", "a",   "ku",
					       "en", "dis", "pa",  "tor",
					       "i",  "ghe", "un",  "ly" };
	FILE *f = fopen("text", "w");
	uint64_t seed = 2463534242u;
	long bytes = 0;

	while (f && bytes < (long)n) {
		uint64_t r = next_random(&seed), word = r % 4096;
		int syl = 1 + (int)(r >> 20) % 4;

		/* The square makes small words frequent. */
		word = word * word / 4096;
		if ((r >> 30) % 12 == 0)
			bytes += fprintf(f, "%u", (unsigned)(r >> 40) % 100000);
		else
			for (int i = 0; i < syl; i++, word /= 5)
				bytes += fprintf(f, "%s", syllables[word % 16]);
		bytes += fprintf(f, (r >> 50) % 11 ? " " : ".\n");
	}
	if (!f || fclose(f))
		fail("cannot write the input");
}

/* n copies of the functions in unit.in, each with names of its own. */
static void setup_source(uint64_t n)
{
	static char unit[1 << 16];
	FILE *in = fopen(own("unit.in"), "r"), *out = fopen("source.c", "w");
	size_t len = in ? fread(unit, 1, sizeof(unit), in) : 0;

	if (!len || !out)
		fail("cannot read unit.in or write source.c");
	for (uint64_t i = 0; i < n; i++) {
		for (size_t k = 0; k < len; k++) {
			if (unit[k] == '@')
				fprintf(out, "%u", (unsigned)i);
			else
				fputc(unit[k], out);
		}
	}
	fclose(in);
	if (fclose(out))
		fail("cannot write source.c");
}

static uint64_t gzip(uint64_t n)
{
	return program("/usr/bin/gzip", "-9cn", "text", NULL);
}

static uint64_t xz(uint64_t n)
{
	return program("/usr/bin/xz", "-6cT1", "text", NULL);
}

static uint64_t zstd(uint64_t n)
{
	return program("/usr/bin/zstd", "-qc9", "--single-thread", "text",
		       NULL);
}

static uint64_t sha256sum(uint64_t n)
{
	return program("/usr/bin/sha256sum", "text", NULL);
}

static uint64_t sort(uint64_t n)
{
	return program("/usr/bin/sort", "text", NULL);
}

static uint64_t aes(uint64_t n)
{
	return program("/usr/bin/openssl", "enc", "-aes-128-cbc", "-nosalt",
		       "-K", "000102030405060708090a0b0c0d0e0f", "-iv",
		       "00000000000000000000000000000000", "-in", "text", NULL);
}

/* Modular powers, the heart of RSA: is 2^n - 1 a prime? */
static uint64_t bignum(uint64_t n)
{
	static char hex[8192];
	/* The largest Mersenne prime that is not above the work asked for. */
	static const unsigned exponents[] = { 4423, 4253, 3217, 2281, 2203,
					      1279, 607,  521,	127 };
	unsigned i = 0, p;

	while (i < 8 && exponents[i] > n)
		i++;
	p = exponents[i];
	hex[0] = (char)("0137"[p % 4]);
	memset(hex + 1, 'F', p / 4);
	return program("/usr/bin/openssl", "prime", "-hex", hex, NULL);
}

static uint64_t python(uint64_t n)
{
	setenv("PYTHONHOME", own(""), 1);
	return program("/usr/bin/python3", "-sSB", own("app.py"), number(n),
		       NULL);
}

static uint64_t sqlite(uint64_t n)
{
	char sql[2048];

	snprintf(sql, sizeof(sql),
		 "create table t(id integer primary key, k int, v text);"
		 "with recursive c(i) as (select 1 union all select i + 1 "
		 "from c where i < %llu) insert into t select i, "
		 "(i * 7919) %% 10007, 'name ' || (i * 31 %% 997) from c;"
		 "create index tk on t(k);"
		 "select count(*), sum(k), max(v) from t where k between 100 "
		 "and 5000;"
		 "select v, count(*), avg(k) from t group by v order by 2 "
		 "desc, 1 limit 20;"
		 "update t set k = k + 1 where id %% 3 = 0;"
		 "select sum(a.k * b.k) from t a join t b on b.k = a.id "
		 "where a.id < 3000;",
		 (unsigned long long)n);
	return program("/usr/bin/sqlite3", "-batch", ":memory:", sql, NULL);
}

static uint64_t cc1(const char *level)
{
	return program(own("cc1"), "-quiet", "-w", level, "-march=x86-64",
		       "-fpreprocessed", "source.c", "-o", "-", NULL);
}

static uint64_t cc1_o0(uint64_t n)
{
	return cc1("-O0");
}

static uint64_t cc1_o2(uint64_t n)
{
	return cc1("-O2");
}

/* Words, arithmetic and patterns in the shell itself. */
static uint64_t shell_loop(uint64_t n)
{
	return program("/usr/bin/dash", "-c",
		       "i=0 s=0 w=\n"
		       "step() { s=$(( (s * 31 + $1) % 65521 )); }\n"
		       "while [ $i -lt $1 ]; do i=$((i + 1)); step $i\n"
		       "case $i in *7) w=x$w ;; *99) w= ;; esac\n"
		       "v=${w#x}; done; echo $s ${#v}",
		       "sh", number(n), NULL);
}

/* What a configure script does: many small programs. */
static uint64_t shell_fork(uint64_t n)
{
	return program("/usr/bin/dash", "-c",
		       "i=0; while [ $i -lt $1 ]; do i=$((i + 1)); "
		       "/usr/bin/true; v=$(echo a$i | /usr/bin/tr a b); "
		       "done; echo $v",
		       "sh", number(n), NULL);
}

const struct workload app_group[] = {
	{ "app.gzip", 1500000, setup_text, gzip },
	{ "app.xz", 700000, setup_text, xz },
	{ "app.zstd", 3000000, setup_text, zstd },
	{ "app.sha256sum", 40000000, setup_text, sha256sum },
	{ "app.sort", 6000000, setup_text, sort },
	{ "app.aes", 40000000, setup_text, aes },
	{ "app.bignum", 1279, NULL, bignum },
	{ "app.python", 10, NULL, python },
	{ "app.sqlite", 40000, NULL, sqlite },
	{ "app.cc1_O0", 40, setup_source, cc1_o0 },
	{ "app.cc1_O2", 12, setup_source, cc1_o2 },
	{ "app.shell", 80000, NULL, shell_loop },
	{ "app.shfork", 100, NULL, shell_fork },
	{ 0 },
};
