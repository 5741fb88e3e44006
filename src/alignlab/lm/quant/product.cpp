// Products of a few rows with a matrix of 4- or 8-bit codes, in float32, sixteen outputs side by side.
// The layout is that of layout.py. The arithmetic of a row does not depend on how many rows there are.
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
enum { ROWS = 4 };  // rows of x that meet a loaded word

static inline vf numbers(const void* source, int kind, int64_t at) {
    if (kind == F32) {
        vf out;
        memcpy(&out, (const float*)source + at, 64);
        return out;
    }
    vh half;
    memcpy(&half, (const uint16_t*)source + at, 32);
    vu bits = __builtin_convertvector(half, vu);
    if (kind == BF16) return (vf)(bits << 16);
    // Exponent and fraction in float32's place, scaled by the difference of the exponents' offsets (2^112).
    vf magnitude = (vf)((bits & 0x7fff) << 13) * 5.192296858534828e33f;
    return (vf)((vu)magnitude | ((bits & 0x8000) << 16));
}

template <int BITS>
static inline vf value(vi word, int i, vf table, const float* list) {
    if (BITS == 8) return __builtin_convertvector((word << (24 - 8 * i)) >> 24, vf);
#if defined(__AVX512F__)
    (void)list;
    return (vf)_mm512_permutexvar_ps((__m512i)(word >> (4 * i)), (__m512)table);  // reads the lowest four bits
#else
    vf out;
    for (int lane = 0; lane < 16; ++lane) out[lane] = list[(word[lane] >> (4 * i)) & 15];
    return out;
#endif
}

struct Matrix {
    const int32_t* codes;
    const void* scales;
    const void* offsets;
    const float* table;
    int64_t n_out, n_in, group;
    int kind;
};

template <int BITS, int M>
static void block(const Matrix& w, const float* x, const float* sums, float* y, int64_t b) {
    const int per_word = 32 / BITS;
    const int64_t words = w.n_in / per_word, groups = w.n_in / w.group, step = w.group / per_word;
    const int32_t* codes = w.codes + b * words * 16;
    vf table = {};
    if (BITS == 4) memcpy(&table, w.table, 64);
    vf total[M] = {};
    for (int64_t g = 0; g < groups; ++g) {
        vf part[M][2] = {};  // two sums, because one addition waits for the last
        for (int64_t i = g * step; i < (g + 1) * step; ++i) {
            vi word;
            memcpy(&word, codes + i * 16, 64);
            for (int k = 0; k < per_word; ++k) {
                vf v = value<BITS>(word, k, table, w.table);
                for (int m = 0; m < M; ++m) part[m][k & 1] += v * x[m * w.n_in + i * per_word + k];
            }
        }
        vf scale = numbers(w.scales, w.kind, (b * groups + g) * 16);
        for (int m = 0; m < M; ++m) total[m] += scale * (part[m][0] + part[m][1]);
        if (w.offsets) {
            vf offset = numbers(w.offsets, w.kind, (b * groups + g) * 16);
            for (int m = 0; m < M; ++m) total[m] += offset * sums[m * groups + g];
        }
    }
    int64_t kept = w.n_out - b * 16 < 16 ? w.n_out - b * 16 : 16;
    for (int m = 0; m < M; ++m) memcpy(y + m * w.n_out + b * 16, &total[m], kept * sizeof(float));
}

template <int BITS>
static void blocks(const Matrix& w, const float* x, const float* sums, float* y, int64_t n_rows, int64_t b) {
    int64_t groups = w.n_in / w.group, m = 0;
    for (; m + ROWS <= n_rows; m += ROWS) block<BITS, ROWS>(w, x + m * w.n_in, sums + m * groups, y + m * w.n_out, b);
    for (; m < n_rows; ++m) block<BITS, 1>(w, x + m * w.n_in, sums + m * groups, y + m * w.n_out, b);
}

extern "C" void alignlab_product(
    const float* x, float* sums, float* y, int64_t n_rows, const int32_t* codes, const void* scales,
    const void* offsets, const float* table, int64_t n_out, int64_t n_in, int64_t group, int kind, int bits, int threads
) {
    Matrix w = {codes, scales, offsets, table, n_out, n_in, group, kind};
    if (offsets)
        for (int64_t i = 0; i < n_rows * (n_in / group); ++i) {
            float sum = 0;
            for (int64_t k = 0; k < group; ++k) sum += x[i * group + k];
            sums[i] = sum;
        }
    int64_t n_blocks = (n_out + 15) / 16;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < n_blocks; ++b) {
        if (bits == 4) blocks<4>(w, x, sums, y, n_rows, b);
        else blocks<8>(w, x, sums, y, n_rows, b);
    }
}
