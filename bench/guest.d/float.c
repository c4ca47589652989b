/* SPDX-License-Identifier: Apache-2.0 */
/*
 * float.c - floating point and vector workloads
 *
 * Values that may differ in the last bit between variants of a C library's
 * function are rounded before they are compared.
 */
#include "bench.h"

#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t rounded(double v)
{
	char text[40];

	return hash(0, text, (size_t)snprintf(text, sizeof(text), "%.9g", v));
}

/* -- scalar SSE2 ---------------------------------------------------------- */

struct body {
	double p[3], v[3], mass;
};

static uint64_t nbody(uint64_t n)
{
	struct body b[5];
	double sum = 0;

	for (int i = 0; i < 5; i++)
		b[i] = (struct body){ { i * 4.1, 1.3 * i * i, 0.4 - i },
				      { 0.1 * i, 2.8 - i, 0.3 * i },
				      i ? 0.04 / i : 39.5 };
	while (n--) {
		for (int i = 0; i < 5; i++) {
			for (int j = i + 1; j < 5; j++) {
				double d[3], d2 = 0, m;

				for (int k = 0; k < 3; k++) {
					d[k] = b[i].p[k] - b[j].p[k];
					d2 += d[k] * d[k];
				}
				m = 0.001 / (d2 * sqrt(d2));
				for (int k = 0; k < 3; k++) {
					b[i].v[k] -= d[k] * b[j].mass * m;
					b[j].v[k] += d[k] * b[i].mass * m;
				}
			}
		}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++)
				b[i].p[k] += 0.001 * b[i].v[k];
	}
	for (int i = 0; i < 5; i++)
		sum += b[i].p[0] + b[i].p[1] * 2 + b[i].p[2] * 3;
	return rounded(sum);
}

static uint64_t libm(uint64_t n)
{
	double sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		double x = 0.001 * (double)(i % 5000) + 0.1;

		sum += sin(x) * exp(-x) + log(x) + pow(x, 1.3) + atan(x);
	}
	return rounded(sum);
}

/* Numbers to text and back: the C library's big integers and conversions. */
static uint64_t format(uint64_t n)
{
	uint64_t h = 0, seed = 7;
	char text[64];

	while (n--) {
		double x = (double)next_random(&seed) / 65536.0;
		int len = snprintf(text, sizeof(text), "%.15g %.6f", x, 1 / x);

		h = hash(h, text, (size_t)len);
		if (fabs(strtod(text, NULL) - x) > x * 1e-14)
			fail("a number changed on its way through text");
	}
	return h;
}

/* -- vectors -------------------------------------------------------------- */

enum { DIM = 128 };
static float *ma, *mb, *mc;

static void setup_matmul(uint64_t n)
{
	ma = get_memory(DIM * DIM * sizeof(float));
	mb = get_memory(DIM * DIM * sizeof(float));
	mc = get_memory(DIM * DIM * sizeof(float));
	for (int i = 0; i < DIM * DIM; i++) {
		ma[i] = (float)(i % 17) * 0.25f;
		mb[i] = (float)(i % 23) * 0.5f;
	}
}

__attribute__((target("avx2,fma"))) static uint64_t matmul_avx2(uint64_t n)
{
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
		fail("this processor has no AVX2 or no FMA");
	for (uint64_t r = 0; r < n; r++) {
		for (int i = 0; i < DIM; i++) {
			for (int j = 0; j < DIM; j += 16) {
				__m256 s = _mm256_setzero_ps(), t = s;

				for (int k = 0; k < DIM; k++) {
					__m256 a = _mm256_broadcast_ss(
						&ma[i * DIM + k]);
					float *b = &mb[k * DIM + j];

					s = _mm256_fmadd_ps(
						a, _mm256_load_ps(b), s);
					t = _mm256_fmadd_ps(
						a, _mm256_load_ps(b + 8), t);
				}
				_mm256_store_ps(&mc[i * DIM + j], s);
				_mm256_store_ps(&mc[i * DIM + j + 8], t);
			}
		}
		ma[r % (DIM * DIM)] += 0.25f;
	}
	return hash(0, mc, DIM * DIM * sizeof(float));
}

static uint64_t matmul_sse2(uint64_t n)
{
	for (uint64_t r = 0; r < n; r++) {
		for (int i = 0; i < DIM; i++) {
			for (int j = 0; j < DIM; j += 8) {
				__m128 s = _mm_setzero_ps(), t = s;

				for (int k = 0; k < DIM; k++) {
					__m128 a = _mm_set1_ps(ma[i * DIM + k]);
					float *b = &mb[k * DIM + j];

					s = _mm_add_ps(
						s,
						_mm_mul_ps(a, _mm_load_ps(b)));
					t = _mm_add_ps(
						t,
						_mm_mul_ps(a,
							   _mm_load_ps(b + 4)));
				}
				_mm_store_ps(&mc[i * DIM + j], s);
				_mm_store_ps(&mc[i * DIM + j + 4], t);
			}
		}
		ma[r % (DIM * DIM)] += 0.25f;
	}
	return hash(0, mc, DIM * DIM * sizeof(float));
}

enum { FRAME = 64 << 10 };
static uint8_t *frame;

static void setup_sad(uint64_t n)
{
	frame = get_memory(2 * FRAME);
	for (int i = 0; i < 2 * FRAME; i++)
		frame[i] = (uint8_t)(i * 31 + (i >> 7));
}

/* Sums of absolute differences, as video encoders search for motion. */
static uint64_t sad(uint64_t n)
{
	__m128i sum = _mm_setzero_si128();

	while (n--) {
		const uint8_t *other = frame + n % 64;

		for (int i = 0; i < FRAME; i += 16) {
			__m128i a = _mm_load_si128((void *)(frame + i));
			__m128i b = _mm_loadu_si128((void *)(other + i));

			sum = _mm_add_epi64(sum, _mm_sad_epu8(a, b));
		}
	}
	return (uint64_t)_mm_cvtsi128_si64(
		_mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum)));
}

/* -- x87 ------------------------------------------------------------------ */

static uint64_t x87(uint64_t n)
{
	long double x = 0.5L, sum = 0;

	for (uint64_t i = 1; i <= n; i++) {
		x = 3.9L * x * (1.0L - x);
		sum += sqrtl(x) / (long double)i + fabsl(x - 0.5L);
	}
	return rounded((double)sum);
}

const struct workload float_group[] = {
	{ "fp.nbody", 1000000, NULL, nbody },
	{ "fp.libm", 2000000, NULL, libm },
	{ "fp.format", 150000, NULL, format },
	{ "fp.matmul_avx2", 1000, setup_matmul, matmul_avx2 },
	{ "fp.matmul_sse2", 400, setup_matmul, matmul_sse2 },
	{ "fp.sad_sse2", 20000, setup_sad, sad },
	{ "fp.x87", 10000000, NULL, x87 },
	{ 0 },
};
