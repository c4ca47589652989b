/* SPDX-License-Identifier: Apache-2.0 */
/*
 * truth.c - a program whose output must be the same in a guest and natively
 *
 * Built static for x86-64-v3 with -O3.  What it prints depends on the
 * arithmetic of the processor and on nothing else: no times, no addresses,
 * no numbers of threads that happened to be first.
 */
#include <errno.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t random64(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* -- SHA-256, FIPS 180-4 -------------------------------------------------- */

static uint32_t k256[64], h256[8];

static uint32_t ror(uint32_t x, unsigned n)
{
	return x >> n | x << (32 - n);
}

/* The constants are fractions of roots of primes: integer arithmetic. */
static uint32_t root_fraction(unsigned prime, unsigned degree)
{
	unsigned __int128 lo = 0, hi = (unsigned __int128)1 << 42;
	unsigned __int128 want = (unsigned __int128)prime << (32 * degree);

	while (hi - lo > 1) {
		unsigned __int128 mid = (lo + hi) / 2, v = mid * mid;

		if (degree == 3)
			v = mid > (unsigned __int128)1 << 40 ? want + 1
							     : v * mid;
		if (v <= want)
			lo = mid;
		else
			hi = mid;
	}
	return (uint32_t)lo;
}

static void sha_init(void)
{
	unsigned n = 0;

	for (unsigned p = 2; n < 64; p++) {
		bool prime = true;

		for (unsigned d = 2; d * d <= p; d++)
			prime &= p % d != 0;
		if (!prime)
			continue;
		if (n < 8)
			h256[n] = root_fraction(p, 2);
		k256[n++] = root_fraction(p, 3);
	}
}

static void sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], v[8], t1, t2;

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 |
		       p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		       (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^
			w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof(v));
	for (int i = 0; i < 64; i++) {
		t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) +
		     ((v[4] & v[5]) ^ (~v[4] & v[6])) + k256[i] + w[i];
		t2 = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) +
		     ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
		memmove(v + 1, v, 7 * sizeof(v[0]));
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}

static void sha256(const void *data, size_t len, char hex[65])
{
	const uint8_t *p = data;
	uint8_t last[128] = { 0 };
	size_t left = len % 64, n = left < 56 ? 64 : 128;
	uint32_t h[8];

	memcpy(h, h256, sizeof(h));
	for (size_t i = 0; i + 64 <= len; i += 64)
		sha_block(h, p + i);
	memcpy(last, p + len - left, left);
	last[left] = 0x80;
	for (int i = 0; i < 8; i++)
		last[n - 1 - i] = (uint64_t)len * 8 >> (8 * i);
	for (size_t i = 0; i < n; i += 64)
		sha_block(h, last + i);
	for (int i = 0; i < 8; i++)
		sprintf(hex + 8 * i, "%08x", h[i]);
}

static void digest(const char *what, const void *data, size_t len)
{
	char hex[65];

	sha256(data, len, hex);
	printf("%-12s %s\n", what, hex);
}

/* -- the parts ------------------------------------------------------------ */

enum { N = 96 };

static void matrix(void)
{
	static double a[N][N], b[N][N], c[N][N];
	static float f[N][N];
	static int32_t g[N][N];

	for (int i = 0; i < N * N; i++) {
		(&a[0][0])[i] = (double)(int64_t)random64() / 1e15;
		(&b[0][0])[i] = (double)(int64_t)random64() / 3e17;
	}
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			for (int k = 0; k < N; k++) {
				c[i][j] += a[i][k] * b[k][j];
				f[i][j] += (float)a[i][k] * (float)b[k][j];
				g[i][j] += (int32_t)a[i][k] * (int32_t)b[k][j];
			}
	printf("matrix %.17g %a %.9g\n", c[3][5], c[N - 1][7],
	       (double)f[11][13]);
	digest("double", c, sizeof(c));
	digest("float", f, sizeof(f));
	digest("int", g, sizeof(g));
}

static double some_double(void)
{
	uint64_t bits = random64();
	double d;

	/* Mostly of a size that functions like, sometimes anything. */
	if (random64() % 4)
		return (double)(int64_t)bits / 1e17;
	memcpy(&d, &bits, sizeof(d));
	return d;
}

static void floats(void)
{
	static double (*const fn[])(double) = {
		sin,   cos,   tan,   asin, acos,  atan,	  sinh,
		cosh,  tanh,  exp,   exp2, expm1, log,	  log2,
		log10, log1p, sqrt,  cbrt, erf,	  tgamma, lgamma,
		floor, ceil,  trunc, rint, round, j0,	  y1,
	};
	static float (*const ff[])(float) = { sinf, cosf, expf, logf, sqrtf };
	static const double edge[] = {
		0.0,	   -0.0,
		1.0,	   0x1p-1074,
		0x1p-1022, 0x1.fffffffffffffp1023,
		0.1,	   1e22,
		1e23,	   123456789012345678.0,
		INFINITY,
	};
	enum { LINE = 128, COUNT = 600 };
	size_t functions = sizeof(fn) / sizeof(fn[0]);
	char *text = malloc((size_t)LINE * COUNT * 40), *p = text;

	if (!text)
		exit(1);
	for (size_t i = 0; i < sizeof(edge) / sizeof(edge[0]); i++)
		printf("%a %.17g %e %Lg\n", edge[i], edge[i], edge[i],
		       (long double)edge[i] * 3.0L);
	for (int i = 0; i < COUNT; i++) {
		double x = some_double(), y = some_double();
		long double l = (long double)x / 7.0L;

		/* The sign of a NaN is nobody's promise. */
		if (isnan(x) || isnan(y))
			continue;
		p += sprintf(p, "%a %.17g %La %.21Lg\n", x, x, l,
			     sqrtl(fabsl(l)) + 1.0L);
		p += sprintf(p, "%.17g %.17g %.17g %.17g\n", fabs(fmod(x, y)),
			     fabs(pow(fabs(x), y)), atan2(x, y), hypot(x, y));
		p += sprintf(p, "%d %lld %a\n", (int)(float)fmod(x, 1e9),
			     llrint(fmod(x, 1e15)), strtod(p - 60, NULL));
		for (size_t k = 0; k < functions; k++) {
			double r = fn[k](x);

			if (isnan(r))
				p += sprintf(p, "nan ");
			else
				p += sprintf(p, "%.17g ", r);
		}
		for (size_t k = 0; k < 5; k++)
			p += sprintf(p, "%a ",
				     (double)fabsf(ff[k](fabsf((float)x))));
		*p++ = '\n';
	}
	printf("%.*s", 900, text);
	putchar('\n');
	digest("libm", text, (size_t)(p - text));
	free(text);
}

static void wide(void)
{
	unsigned __int128 a = random64(), b, sum = 0;
	uint64_t out[2];

	for (int i = 0; i < 20000; i++) {
		a = a << 64 ^ a * random64() ^ random64();
		b = (unsigned __int128)random64() << (random64() % 60) | 1;
		sum += a / b ^ a % b ^ (unsigned __int128)((__int128)a >> 17);
		sum ^= (unsigned __int128)__builtin_popcountll((uint64_t)a)
		       << 64;
		sum += __builtin_bswap64((uint64_t)b);
		sum += (unsigned)__builtin_clzll((uint64_t)a | 1) +
		       (unsigned)__builtin_ctzll((uint64_t)b);
	}
	out[0] = (uint64_t)sum;
	out[1] = (uint64_t)(sum >> 64);
	printf("wide %016llx%016llx\n", (unsigned long long)out[1],
	       (unsigned long long)out[0]);
}

static int by_value(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* At all alignments, so that the vector versions show their edges. */
static void strings(void)
{
	static char heap[300][40], buf[4200], copy[4200];
	uint64_t h = 0;
	char *save, *word;

	for (int i = 0; i < 300; i++)
		snprintf(heap[i], sizeof(heap[i]), "%llx-%d",
			 (unsigned long long)random64(), i);
	qsort(heap, 300, sizeof(heap[0]), by_value);
	digest("sorted", heap, sizeof(heap));
	for (size_t at = 0; at < 70; at++) {
		for (size_t len = 0; len < 300; len += 1 + at % 7) {
			memset(buf + at, 'a' + (int)(len % 20), len);
			buf[at + len] = 0;
			h = h * 31 + strlen(buf + at);
			memmove(buf + at + 3, buf + at, len + 1);
			/* One of the functions that are tried here.
			 * NOLINTNEXTLINE(*.strcpy) */
			strcpy(copy + at / 2, buf + at);
			h = h * 31 +
			    (uint64_t)(strcmp(copy + at / 2, buf + at) == 0);
			buf[at + len / 2] = '!';
			word = strchr(buf + at, '!');
			h = h * 31 + (uint64_t)(word ? word - buf : -1);
			word = memrchr(buf, '!', sizeof(buf));
			h = h * 31 + (uint64_t)(word ? word - buf : -1);
			h = h * 31 + (uint64_t)(memcmp(buf, copy, 400) > 0);
			word = strstr(buf + at, "!a");
			h = h * 31 + (uint64_t)(word ? word - buf : -1);
			h = h * 31 + strspn(buf + at, "abcdefghij!");
		}
	}
	printf("strings %016llx\n", (unsigned long long)h);
	strcpy(buf, "the quick,brown fox;jumps");
	for (word = strtok_r(buf, " ,;", &save); word;
	     word = strtok_r(NULL, " ,;", &save))
		printf("%s/", word);
	putchar('\n');
}

/* -- threads -------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 3000 };

static atomic_int turn;
static atomic_ullong total, bits;
static _Atomic uint8_t bytes[8];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;
static uint64_t plain;

static void futex(atomic_int *at, int op, int value)
{
	syscall(SYS_futex, at, op, value, NULL, NULL, 0);
}

static void *worker(void *arg)
{
	int id = (int)(intptr_t)arg;
	unsigned long long old;

	for (int i = 0; i < ROUNDS; i++) {
		atomic_fetch_add(&total, (unsigned)(id + i));
		old = atomic_load(&bits);
		while (!atomic_compare_exchange_weak(
			&bits, &old, old * 1 + (1ull << (id * 16 % 64))))
			;
		atomic_fetch_xor(&bytes[id], (uint8_t)i);
		atomic_fetch_add(&bytes[4 + i % 4], 1);
		pthread_mutex_lock(&lock);
		plain += (uint64_t)i * (unsigned)(id + 1);
		pthread_mutex_unlock(&lock);
	}
	pthread_barrier_wait(&barrier);
	/* In turns, through the kernel. */
	for (int i = 0; i < 50; i++) {
		int now;

		while ((now = atomic_load(&turn)) % THREADS != id)
			futex(&turn, FUTEX_WAIT_PRIVATE, now);
		plain = plain * 6364136223846793005 + (unsigned)id;
		atomic_fetch_add(&turn, 1);
		futex(&turn, FUTEX_WAKE_PRIVATE, THREADS);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t t[THREADS];
	unsigned sum = 0;

	pthread_barrier_init(&barrier, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&t[i], NULL, worker, (void *)(intptr_t)i))
			exit(1);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	for (int i = 0; i < 8; i++)
		sum = sum * 257 + bytes[i];
	printf("threads %llu %016llx %u %016llx turn %d\n", total, bits, sum,
	       (unsigned long long)plain, turn);
}

int main(void)
{
	char hex[65];

	sha_init();
	sha256("abc", 3, hex);
	printf("sha256 %s %s\n", hex,
	       strcmp(hex, "ba7816bf8f01cfea414140de5dae2223"
			   "b00361a396177a9cb410ff61f20015ad")
		       ? "WRONG"
		       : "right");
	matrix();
	floats();
	wide();
	strings();
	threads();
	puts("end of truth");
	return 0;
}
