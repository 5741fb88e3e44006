// Sixteen float32 numbers at a time, in the compiler's vector types: whatever the processor has carries them out.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

enum { BF16 = 0, F16 = 1, F32 = 2 };
enum { LANES = 16 };

static inline vf load(const float* from) {
    vf out;
    memcpy(&out, from, 64);
    return out;
}

static inline void store(float* to, vf x) { memcpy(to, &x, 64); }

static inline vf spread(float x) { return vf{} + x; }

static inline vf load(const uint16_t* bf16) {
    vh half;
    memcpy(&half, bf16, 32);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

// To bfloat16, to the nearest, ties to even.
static inline void store(uint16_t* to, vf x) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &half, 32);
#else
    vu bits = (vu)x;
    vh half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
    memcpy(to, &half, 32);
#endif
}

static inline vf numbers(const void* source, int kind, int64_t at) {
    if (kind == F32) return load((const float*)source + at);
    if (kind == BF16) return load((const uint16_t*)source + at);
    vh half;
    memcpy(&half, (const uint16_t*)source + at, 32);
    vu bits = __builtin_convertvector(half, vu);
    // Exponent and fraction in float32's place, scaled by the difference of the exponents' offsets (2^112).
    vf magnitude = (vf)((bits & 0x7fff) << 13) * 5.192296858534828e33f;
    return (vf)((vu)magnitude | ((bits & 0x8000) << 16));
}

static inline vf pick(vi where, vf a, vf b) { return (vf)((where & (vi)a) | (~where & (vi)b)); }

static inline vf larger(vf a, vf b) { return pick(a > b, a, b); }

static inline float sum(vf x) {
    float parts[LANES];
    memcpy(parts, &x, 64);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
    return parts[0];
}

static inline float largest(vf x) {
    float most = x[0];
    for (int i = 1; i < LANES; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

// e^x to about 2e-7 of it (the polynomial of Cephes' expf); the smallest number below -87, NaN stays NaN.
static inline vf exponential(vf x) {
    x = pick(x < spread(-87.3f), spread(-87.3f), x);
    x = pick(x > spread(88.3f), spread(88.3f), x);
    vf shifted = x * 1.44269504088896341f + 12582912.0f;  // whole numbers stand in the lowest bits
    vi whole = (vi)shifted - 0x4b400000;
    vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (vf)((whole + 127) << 23);
}

static inline vf tangent(vf x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// Abramowitz and Stegun 7.1.26, to 1.5e-7.
static inline vf error_function(vf x) {
    vf size = (vf)((vi)x & 0x7fffffff);
    vf t = 1.0f / (1.0f + 0.3275911f * size);
    vf p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf out = 1.0f - p * t * exponential(-size * size);
    return (vf)((vi)out | ((vi)x & (int32_t)0x80000000));
}

enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

static inline vf activate(vf x, int64_t kind) {
    if (kind == SILU) return x / (1.0f + exponential(-x));
    if (kind == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
    if (kind == GELU_TANH) return 0.5f * x * (1.0f + tangent(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    vf kept = pick(x < spread(0.0f), spread(0.0f), x);
    return kind == RELU ? kept : kept * kept;
}

// Numbers of a and b by turns, each sum that of neighbours: the first of four steps that halve what is left to add.
#define NEIGHBOURS(a, b)                                                                            \
    (__builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +     \
     __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#define NEIGHBOURING_TWOS(a, b)                                                                     \
    (__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +      \
     __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define NEIGHBOURING_FOURS(a, b)                                                                    \
    (__builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +      \
     __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define HALVES(a, b)                                                                                \
    (__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +        \
     __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))

// out[i] = sum of p[i], for sixteen vectors at once.
static inline vf sums_of(const vf* p) {
    vf a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) a[i] = NEIGHBOURS(p[2 * i], p[2 * i + 1]);
    for (int i = 0; i < 4; ++i) b[i] = NEIGHBOURING_TWOS(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 2; ++i) c[i] = NEIGHBOURING_FOURS(b[2 * i], b[2 * i + 1]);
    return HALVES(c[0], c[1]);
}
