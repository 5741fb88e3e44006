// A weight in blocks of sixteen outputs, and its product with float32 rows.
// The arithmetic of a row does not depend on how many rows there are.
#pragma once
#include "vector.h"

enum { CODES4 = 0, CODES8 = 1, PAIRS = 2, FLOATS = 3 };

// Codes: layout of quant/layout.py. PAIRS: bfloat16, (block, input / 2, 16 outputs, 2 inputs), inputs filled up with
// zeros to a multiple of 32. FLOATS: float32, (block, input, 16 outputs).
struct Matrix {
    const void* data;
    const void* scales;
    const void* offsets;
    const float* table;
    const float* bias;
    const Matrix* a;  // of an adapter beside it, null: none; its outputs are the inputs of b
    const Matrix* b;  // (n_out, a's outputs in whole blocks); PAIRS: twice, see Product::narrow
    int64_t n_out, n_in, group, scale_kind, kind;

    int64_t blocks() const { return (n_out + LANES - 1) / LANES; }
};

template <int BITS>
static inline vf value(vi word, int i, vf table, const float* list) {
    if (BITS == 8) return __builtin_convertvector((word << (24 - 8 * i)) >> 24, vf);
#if defined(__AVX512F__)
    (void)list;
    return (vf)_mm512_permutexvar_ps((__m512i)(word >> (4 * i)), (__m512)table);  // reads the lowest four bits
#else
    vf out;
    for (int lane = 0; lane < LANES; ++lane) out[lane] = list[(word[lane] >> (4 * i)) & 15];
    return out;
#endif
}

// M rows of x (leading dimension n_x) times block b; sums are those of x's groups, (row, group).
template <int BITS, int M>
static void code_block(
    const Matrix& w, const float* x, int64_t n_x, const float* sums, float* y, int64_t n_y, int64_t b
) {
    const int per_word = 32 / BITS;
    const int64_t words = w.n_in / per_word, groups = w.n_in / w.group, step = w.group / per_word;
    const int32_t* codes = (const int32_t*)w.data + b * words * LANES;
    vf table = {};
    if (BITS == 4) table = load(w.table);
    vf total[M] = {};
    for (int64_t g = 0; g < groups; ++g) {
        vf part[M][2] = {};  // two sums, because one addition waits for the last
        for (int64_t i = g * step; i < (g + 1) * step; ++i) {
            vi word;
            memcpy(&word, codes + i * LANES, 64);
            __builtin_prefetch(codes + i * LANES + 1024);
            for (int k = 0; k < per_word; ++k) {
                vf v = value<BITS>(word, k, table, w.table);
                for (int m = 0; m < M; ++m) part[m][k & 1] += v * x[m * n_x + i * per_word + k];
            }
        }
        vf scale = numbers(w.scales, w.scale_kind, (b * groups + g) * LANES);
        for (int m = 0; m < M; ++m) total[m] += scale * (part[m][0] + part[m][1]);
        if (w.offsets) {
            vf offset = numbers(w.offsets, w.scale_kind, (b * groups + g) * LANES);
            for (int m = 0; m < M; ++m) total[m] += offset * sums[m * groups + g];
        }
    }
    for (int m = 0; m < M; ++m) store(y + m * n_y, total[m]);
}

template <int KIND, int M>
static void plain_block(const Matrix& w, const float* x, int64_t n_x, float* y, int64_t n_y, int64_t b) {
    vf part[M][2] = {};
    if (KIND == PAIRS) {
        const uint32_t* words = (const uint32_t*)w.data + b * ((w.n_in + 31) / 32 * 16) * LANES;
        for (int64_t i = 0; i < w.n_in / 2; ++i) {
            vu word;
            memcpy(&word, words + i * LANES, 64);
            __builtin_prefetch(words + i * LANES + 1024);
            vf even = (vf)(word << 16), odd = (vf)(word & 0xffff0000u);
            for (int m = 0; m < M; ++m) part[m][0] += even * x[m * n_x + 2 * i];
            for (int m = 0; m < M; ++m) part[m][1] += odd * x[m * n_x + 2 * i + 1];
        }
    } else {
        const float* values = (const float*)w.data + b * w.n_in * LANES;
        for (int64_t i = 0; i < w.n_in; i += 2) {
            vf even = load(values + i * LANES), odd = load(values + (i + 1) * LANES);
            __builtin_prefetch(values + i * LANES + 1024);
            __builtin_prefetch(values + i * LANES + 1040);
            for (int m = 0; m < M; ++m) part[m][0] += even * x[m * n_x + i];
            for (int m = 0; m < M; ++m) part[m][1] += odd * x[m * n_x + i + 1];
        }
    }
    for (int m = 0; m < M; ++m) store(y + m * n_y, part[m][0] + part[m][1]);
}

template <int M>
static void some_rows(
    const Matrix& w, const float* x, int64_t n_x, const float* sums, float* y, int64_t n_y, int64_t b
) {
    if (w.kind == CODES4) code_block<4, M>(w, x, n_x, sums, y, n_y, b);
    else if (w.kind == CODES8) code_block<8, M>(w, x, n_x, sums, y, n_y, b);
    else if (w.kind == PAIRS) plain_block<PAIRS, M>(w, x, n_x, y, n_y, b);
    else plain_block<FLOATS, M>(w, x, n_x, y, n_y, b);
}

// Sixteen outputs of every row, in float32, without the bias.
static void rows_times_block(
    const Matrix& w, const float* x, int64_t n_x, int64_t rows, const float* sums, float* y, int64_t n_y, int64_t b
) {
    const int64_t groups = w.offsets ? w.n_in / w.group : 0;
    int64_t m = 0;
    for (; m + 8 <= rows; m += 8) some_rows<8>(w, x + m * n_x, n_x, sums + m * groups, y + m * n_y, n_y, b);
    if (rows - m >= 4) {
        some_rows<4>(w, x + m * n_x, n_x, sums + m * groups, y + m * n_y, n_y, b);
        m += 4;
    }
    if (rows - m >= 2) {
        some_rows<2>(w, x + m * n_x, n_x, sums + m * groups, y + m * n_y, n_y, b);
        m += 2;
    }
    if (rows - m) some_rows<1>(w, x + m * n_x, n_x, sums + m * groups, y + m * n_y, n_y, b);
}

// Sums of x's groups, which meet the offsets.
template <typename T>
static void sum_groups(const Matrix& w, const T* x, int64_t n_x, int64_t rows, float* sums) {
    const int64_t groups = w.n_in / w.group, whole = w.group / LANES * LANES;
    for (int64_t m = 0; m < rows; ++m)
        for (int64_t g = 0; g < groups; ++g) {
            const T* numbers = x + m * n_x + g * w.group;
            vf parts = {};
            for (int64_t k = 0; k < whole; k += LANES) parts += load(numbers + k);
            float total = sum(parts);
            for (int64_t k = whole; k < w.group; ++k) total += (float)numbers[k];
            sums[m * groups + g] = total;
        }
}
