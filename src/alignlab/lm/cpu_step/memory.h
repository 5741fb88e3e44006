// Where everything of a pass lies in the scratch memory that the Python side provides.
#pragma once
#include "attention_tiles.h"
#include "code_tiles.h"
#include "model.h"

enum { ROWS_AT_ONCE = 128 };  // rows of activations that stay in the cache while weights pass by
enum { PARTS_AT_ONCE = 3 };   // matrices that the same rows are multiplied by

static inline int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static inline int64_t largest_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows that a product reads, in one of two types; what is beyond their end up to the stride is zero.
struct Rows {
    float* wide;
    uint16_t* half;
    int64_t n, stride;

    void put(int64_t row, int64_t at, vf x) const {
        if (half) store(half + row * stride + at, x);
        else store(wide + row * stride + at, x);
    }

    void clear_ends(int64_t from, int64_t to) const {
        for (int64_t row = from; row < to && n < stride; ++row) put(row, n, vf{});
    }
};

struct Memory {
    Rows read, mixed, inner;  // what q, k, v, gate and up read; what o reads; what down reads
    float *qkv, *added;       // what q, k, v give; what o or down gives
    int64_t n_qkv;
    int64_t *first, *dense;   // of each row: its first real column, and whether all from there on are real
    float *most, *sums;       // (thread, token): largest logit and sum of exponentials
    int64_t* place;           // (thread, token): where the largest logit is
    char* own;                // of each thread, in these parts:
    int64_t n_panels, n_pieces, n_narrow, n_group_sums, n_scores, n_own, bytes;

    Memory(const Model& m, const Pass& p) {
        const int64_t tokens = up_to(p.batch * p.width, 32), d_q = m.n_heads * m.d_head;
        const int64_t widest = up_to(largest_of(m.d_mlp, largest_of(d_q, m.d_model)), 32);
        bytes = 0;
        auto take = [&](int64_t size) {
            char* here = p.scratch + bytes;
            bytes += up_to(size, 128);
            return here;
        };
        auto rows = [&](int64_t width) {
            const int64_t stride = up_to(width, 32);
            char* here = take(tokens * stride * 4);
            return Rows{p.tiles ? nullptr : (float*)here, p.tiles ? (uint16_t*)here : nullptr, width, stride};
        };
        read = rows(m.d_model), mixed = rows(d_q), inner = rows(m.d_mlp);
        n_qkv = d_q + 2 * m.n_kv_heads * m.d_head;
        qkv = (float*)take(tokens * n_qkv * 4), added = (float*)take(tokens * m.d_model * 4);
        first = (int64_t*)take(p.batch * 8), dense = (int64_t*)take(p.batch * 8);
        most = (float*)take(p.threads * tokens * 4), sums = (float*)take(p.threads * tokens * 4);
        place = (int64_t*)take(p.threads * tokens * 8);
        n_panels = widest * 32 + largest_of(widest * 32, GROUPS_AT_ONCE * 1024);
        n_pieces = 2 * ROWS_AT_ONCE * LANES * 4;
        n_narrow = (2 * PARTS_AT_ONCE + 1) * ROWS_AT_ONCE * largest_of(m.rank, LANES) * 4;
        n_group_sums = ROWS_AT_ONCE * (widest / 8) * 4;
        n_scores = largest_of(4 * (2 * p.end + 128 + m.d_head) * 4 + d_q * 4, tile_attention_memory(p.end, m.d_head));
        // An odd number of lines, so that threads do not share cache sets.
        n_own = up_to(n_panels + n_pieces + n_narrow + n_group_sums + n_scores, 4096) + 192;
        own = take(p.threads * n_own);
    }
};
