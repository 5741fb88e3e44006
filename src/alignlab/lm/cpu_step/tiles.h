// Products of bfloat16 rows on the matrix unit of x86 processors that have one (AMX), with float32 sums.
#pragma once
#include "matrix.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1

// The operating system hands the unit out on request, once for the process.
static bool tiles_allowed() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// The compilers' tile functions do not say what memory they read: everything has to be written before.
static inline void settle_memory(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

struct alignas(64) TileShapes {
    uint8_t palette, start, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// Tiles 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 weights. With fewer than 16 rows only those are computed.
static void open_tiles(int64_t rows) {
    TileShapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    if (rows < 16) shapes.rows[0] = shapes.rows[1] = shapes.rows[2] = shapes.rows[3] = shapes.rows[4] = (uint8_t)rows;
    settle_memory(&shapes);
    _tile_loadconfig(&shapes);
}

static void close_tiles() { _tile_release(); }

enum { AHEAD = 4096 };  // bytes that weights are asked for in advance

static inline void ask_ahead(const char* at) {
    for (int i = 0; i < 16; ++i) _mm_prefetch(at + AHEAD + 64 * i, _MM_HINT_T0);
}

// One or two tiles of rows against one or two panels of weights; to what y holds already, or in its place.
template <bool TWO_ROWS, bool TWO_PANELS, bool ADD>
static void tile_product(
    const uint16_t* x, int64_t n_x, const char* w0, const char* w1, int64_t steps, float* y0, float* y1, int64_t n_y,
    bool first
) {
    settle_memory(x);
    if (ADD) _tile_loadd(0, y0, n_y * 4);
    else _tile_zero(0);
    if (ADD && TWO_ROWS) _tile_loadd(2, y0 + 16 * n_y, n_y * 4);
    else if (TWO_ROWS) _tile_zero(2);
    if (TWO_PANELS) _tile_zero(1);
    if (TWO_ROWS && TWO_PANELS) _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
        if (first) ask_ahead(w0 + k * 1024);
        _tile_loadd(6, w0 + k * 1024, 64);
        _tile_loadd(4, x + k * 32, n_x * 2);
        _tile_dpbf16ps(0, 4, 6);
        if (TWO_PANELS) {
            if (first) ask_ahead(w1 + k * 1024);
            _tile_loadd(7, w1 + k * 1024, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (TWO_ROWS) {
            _tile_loadd(5, x + 16 * n_x + k * 32, n_x * 2);
            _tile_dpbf16ps(2, 5, 6);
            if (TWO_PANELS) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, y0, n_y * 4);
    if (TWO_PANELS) _tile_stored(1, y1, n_y * 4);
    if (TWO_ROWS) _tile_stored(2, y0 + 16 * n_y, n_y * 4);
    if (TWO_ROWS && TWO_PANELS) _tile_stored(3, y1 + 16 * n_y, n_y * 4);
}

// Sixteen outputs of two neighbouring inputs, as PAIRS has them.
static inline void store_pair(char* to, vf even, vf odd) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
}

// A block of codes, scaled, as bfloat16 in the order of PAIRS.
template <int BITS>
static void unpack_block(const Matrix& w, int64_t b, char* panel) {
    const int per_word = 32 / BITS;
    const int64_t words = w.n_in / per_word, groups = w.n_in / w.group, step = w.group / per_word;
    const int32_t* codes = (const int32_t*)w.data + b * words * LANES;
    vf table = {};
    if (BITS == 4) table = load(w.table);
    for (int64_t g = 0; g < groups; ++g) {
        vf scale = numbers(w.scales, w.scale_kind, (b * groups + g) * LANES);
        vf offset = w.offsets ? numbers(w.offsets, w.scale_kind, (b * groups + g) * LANES) : vf{};
        for (int64_t i = g * step; i < (g + 1) * step; ++i) {
            vi word;
            memcpy(&word, codes + i * LANES, 64);
            for (int k = 0; k < per_word; k += 2) {
                vf even = value<BITS>(word, k, table, w.table) * scale + offset;
                vf odd = value<BITS>(word, k + 1, table, w.table) * scale + offset;
                store_pair(panel + (i * per_word + k) / 2 * 64, even, odd);
            }
        }
    }
    const int64_t pairs = (w.n_in + 31) / 32 * 16;
    memset(panel + w.n_in / 2 * 64, 0, (pairs - w.n_in / 2) * 64);
}

static const char* panel_of(const Matrix& w, int64_t b, char* scratch) {
    if (w.kind == PAIRS) return (const char*)w.data + b * ((w.n_in + 31) / 32 * 1024);
    if (w.kind == CODES4) unpack_block<4>(w, b, scratch);
    else unpack_block<8>(w, b, scratch);
    return scratch;
}

// Every row against one or two panels; whole tiles of rows are computed, so x and y must have room for them.
static void rows_times_panels(
    const uint16_t* x, int64_t n_x, int64_t rows, const char* w0, const char* w1, int64_t steps, float* y0, float* y1,
    int64_t n_y
) {
    int64_t m = 0;
    for (; m + 16 < rows; m += 32) {
        if (w1) tile_product<true, true, false>(x + m * n_x, n_x, w0, w1, steps, y0 + m * n_y, y1 + m * n_y, n_y, !m);
        else tile_product<true, false, false>(x + m * n_x, n_x, w0, w0, steps, y0 + m * n_y, y0 + m * n_y, n_y, !m);
    }
    if (m < rows) {
        if (w1) tile_product<false, true, false>(x + m * n_x, n_x, w0, w1, steps, y0 + m * n_y, y1 + m * n_y, n_y, !m);
        else tile_product<false, false, false>(x + m * n_x, n_x, w0, w0, steps, y0 + m * n_y, y0 + m * n_y, n_y, !m);
    }
}

// Adds every row's product with one panel.
static void add_rows_times_panel(
    const uint16_t* x, int64_t n_x, int64_t rows, const char* w, int64_t steps, float* y, int64_t n_y
) {
    int64_t m = 0;
    for (; m + 16 < rows; m += 32)
        tile_product<true, false, true>(x + m * n_x, n_x, w, w, steps, y + m * n_y, y + m * n_y, n_y, false);
    if (m < rows)
        tile_product<false, false, true>(x + m * n_x, n_x, w, w, steps, y + m * n_y, y + m * n_y, n_y, false);
}
#else
#define HAS_TILES 0
static bool tiles_allowed() { return false; }
static void open_tiles(int64_t) {}
static void close_tiles() {}
static const char* panel_of(const Matrix&, int64_t, char*) { return nullptr; }
static void rows_times_panels(
    const uint16_t*, int64_t, int64_t, const char*, const char*, int64_t, float*, float*, int64_t
) {}
static void add_rows_times_panel(const uint16_t*, int64_t, int64_t, const char*, int64_t, float*, int64_t) {}
#endif
