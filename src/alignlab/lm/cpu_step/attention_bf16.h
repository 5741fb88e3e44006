// The two products of attention with bfloat16 keys and values, by instructions that multiply pairs of them.
#pragma once
#include "vector.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_PAIR_PRODUCTS 1

static inline __m512bh pair_load(const uint16_t* from) {
    __m512bh out;
    memcpy(&out, from, 64);
    return out;
}

// parts[g][i] are sixteen partial sums of query g with key i; d a multiple of 32, queries (G, d) in bfloat16.
template <int G>
static inline void pair_dots(const uint16_t* key, const uint16_t* queries, int64_t d, int64_t i, vf (*parts)[LANES]) {
    __m512 part[G];
    for (int g = 0; g < G; ++g) part[g] = _mm512_setzero_ps();
    for (int64_t k = 0; k < d; k += 32) {
        const __m512bh numbers = pair_load(key + k);
        for (int g = 0; g < G; ++g) part[g] = _mm512_dpbf16_ps(part[g], numbers, pair_load(queries + g * d + k));
    }
    for (int g = 0; g < G; ++g) parts[g][i] = (vf)part[g];
}

// Numbers of two vectors by turns.
alignas(64) static const uint16_t ALTERNATING[64] = {
    0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,  //
    8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,  //
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,  //
    24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63,
};

// Adds n values (stride d), 32 numbers of each from k on, to out (G, d); weights (G, n_weights) in bfloat16.
template <int G>
static void pair_values(
    const uint16_t* values, int64_t n, int64_t d, const uint16_t* weights, int64_t n_weights, float* out, int64_t k
) {
    const __m512i low = _mm512_loadu_si512(ALTERNATING), high = _mm512_loadu_si512(ALTERNATING + 32);
    __m512 total[G][2];
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < 2; ++j) total[g][j] = _mm512_loadu_ps(out + g * d + k + j * LANES);
    const uint16_t* value = values + k;
    for (int64_t i = 0; i < n; i += 2, value += 2 * d) {
        const __m512i even = _mm512_loadu_si512(value);
        const __m512i odd = i + 1 < n ? _mm512_loadu_si512(value + d) : _mm512_setzero_si512();
        const __m512bh first = (__m512bh)_mm512_permutex2var_epi16(even, low, odd);
        const __m512bh second = (__m512bh)_mm512_permutex2var_epi16(even, high, odd);
        for (int g = 0; g < G; ++g) {
            int32_t both;
            memcpy(&both, weights + g * n_weights + i, 4);
            const __m512bh weight = (__m512bh)_mm512_set1_epi32(both);
            total[g][0] = _mm512_dpbf16_ps(total[g][0], first, weight);
            total[g][1] = _mm512_dpbf16_ps(total[g][1], second, weight);
        }
    }
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < 2; ++j) _mm512_storeu_ps(out + g * d + k + j * LANES, total[g][j]);
}
#else
#define HAS_PAIR_PRODUCTS 0
template <int G>
static inline void pair_dots(const uint16_t*, const uint16_t*, int64_t, int64_t, vf (*)[LANES]) {}
template <int G>
static void pair_values(const uint16_t*, int64_t, int64_t, const uint16_t*, int64_t, float*, int64_t) {}
#endif
