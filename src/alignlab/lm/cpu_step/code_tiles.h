// Codes of few bits on the matrix unit, for a few rows: what a code stands for before scaling is a whole number, which
// bfloat16 holds exactly (or a level of NF4, which is rounded to it). A group's products are summed before its scale
// comes in, so scaled weights are not rounded.
#pragma once
#include "tiles.h"

enum { CODE_ROWS = 16, GROUPS_AT_ONCE = 4 };  // with more rows scales are multiplied in first: see panel_of

#if HAS_TILES && defined(__AVX512VBMI__)
static inline bool by_groups(const Matrix& w, int64_t rows) {
    return (w.kind == CODES4 || w.kind == CODES8) && rows <= CODE_ROWS && w.group % 32 == 0;
}

// The codes of block b, or the levels that they name, as bfloat16 in the order of PAIRS.
static void unpack_codes(const Matrix& w, int64_t b, char* panel) {
    if (w.kind == CODES8) {
        const int64_t words = w.n_in / 4;
        const char* codes = (const char*)w.data + b * words * 64;
        for (int64_t i = 0; i < words; ++i) {
            vi word;
            memcpy(&word, codes + i * 64, 64);
            __builtin_prefetch(codes + i * 64 + 4096);
            store_pair(panel + i * 128, value<8>(word, 0, vf{}, nullptr), value<8>(word, 1, vf{}, nullptr));
            store_pair(panel + i * 128 + 64, value<8>(word, 2, vf{}, nullptr), value<8>(word, 3, vf{}, nullptr));
        }
        return;
    }
    uint16_t levels[32];
    store(levels, load(w.table));
    memcpy(levels + 16, levels, 32);  // the lookup reads five bits of each half
    const __m512i table = _mm512_loadu_si512(levels);
    // Of each 64 bits (two outputs): eight bits from column 2 i on, and eight from the next one on, for each output.
    __m512i from[4];
    for (int i = 0; i < 4; ++i) from[i] = _mm512_set1_epi64(0x0024002000040000LL + i * 0x0008000800080008LL);
    const int64_t words = w.n_in / 8;
    const char* codes = (const char*)w.data + b * words * 64;
    for (int64_t i = 0; i < words; ++i) {
        const __m512i word = _mm512_loadu_si512(codes + i * 64);
        __builtin_prefetch(codes + i * 64 + 4096);
        for (int k = 0; k < 4; ++k) {
            const __m512i pair = _mm512_multishift_epi64_epi8(from[k], word);
            _mm512_store_si512(panel + i * 256 + k * 64, _mm512_permutexvar_epi16(pair, table));
        }
    }
}

#define SUM_GROUP(tile, g)                                                  \
    {                                                                       \
        _tile_zero(tile);                                                   \
        for (int64_t k = (g) * steps; k < ((g) + 1) * steps; ++k) {         \
            _tile_loadd(4, x + k * 32, n_x * 2);                            \
            _tile_loadd(6, panel + k * 1024, 64);                           \
            _tile_dpbf16ps(tile, 4, 6);                                     \
        }                                                                   \
        _tile_stored(tile, part + (tile) * 256, 64);                        \
    }

// Up to M rows, one tile of them, with an unpacked block. part is room for GROUPS_AT_ONCE tiles.
template <int M>
static void tile_of_rows(
    const Matrix& w, int64_t b, const uint16_t* x, int64_t n_x, const float* sums, const char* panel, float* part,
    float* y, int64_t n_y, int64_t rows
) {
    const int64_t groups = w.n_in / w.group, steps = w.group / 32;
    vf total[M] = {};
    settle_memory(panel);
    for (int64_t g = 0; g < groups; g += GROUPS_AT_ONCE) {
        const int64_t end = g + GROUPS_AT_ONCE < groups ? g + GROUPS_AT_ONCE : groups;
        SUM_GROUP(0, g)
        if (g + 1 < end) SUM_GROUP(1, g + 1)
        if (g + 2 < end) SUM_GROUP(2, g + 2)
        if (g + 3 < end) SUM_GROUP(3, g + 3)
        for (int64_t i = g; i < end; ++i) {
            const vf scale = numbers(w.scales, w.scale_kind, (b * groups + i) * LANES);
            for (int m = 0; m < M; ++m) total[m] += scale * load(part + (i - g) * 256 + m * LANES);
            if (!w.offsets) continue;
            const vf offset = numbers(w.offsets, w.scale_kind, (b * groups + i) * LANES);
            for (int m = 0; m < M; ++m)
                if (m < rows) total[m] += offset * sums[m * groups + i];
        }
    }
    for (int m = 0; m < M; ++m)
        if (m < rows) store(y + m * n_y, total[m]);
}

static void rows_times_codes(
    const Matrix& w, int64_t b, const uint16_t* x, int64_t n_x, int64_t rows, const float* sums, char* panel,
    float* part, float* y, int64_t n_y
) {
    unpack_codes(w, b, panel);
    const int64_t groups = w.n_in / w.group;
    for (int64_t m = 0; m < rows; m += 16) {
        const int64_t left = rows - m;
        const uint16_t* from = x + m * n_x;
        if (left == 1) tile_of_rows<1>(w, b, from, n_x, sums + m * groups, panel, part, y + m * n_y, n_y, left);
        else if (left <= 4) tile_of_rows<4>(w, b, from, n_x, sums + m * groups, panel, part, y + m * n_y, n_y, left);
        else if (left <= 8) tile_of_rows<8>(w, b, from, n_x, sums + m * groups, panel, part, y + m * n_y, n_y, left);
        else tile_of_rows<16>(w, b, from, n_x, sums + m * groups, panel, part, y + m * n_y, n_y, left);
    }
}
#else
static inline bool by_groups(const Matrix&, int64_t) { return false; }
static void rows_times_codes(
    const Matrix&, int64_t, const uint16_t*, int64_t, int64_t, const float*, char*, float*, float*, int64_t
) {}
#endif
