// One thread's share of the products of a pass.
#pragma once
#include "barrier.h"
#include "memory.h"
#include "code_tiles.h"

struct Share {
    int64_t id, n;
    Barrier& barrier;
    char *panels, *pieces, *group_sums, *scores;

    Share(const Memory& at, Barrier& barrier, int64_t id, int64_t n) : id(id), n(n), barrier(barrier) {
        panels = at.own + id * at.n_own;
        pieces = panels + at.n_panels;
        group_sums = pieces + at.n_pieces;
        scores = group_sums + at.n_group_sums;
    }
    int64_t from(int64_t units) const { return units * id / n; }
    int64_t to(int64_t units) const { return units * (id + 1) / n; }

    // Calls work(row, rows, unit) for this thread's part of `units` units of each block of rows. With few rows weights
    // come from memory, in long stretches for each thread; with many the threads take units as they get done.
    template <typename Do>
    void each(int64_t tokens, int64_t units, Do work) const {
        const int64_t row_blocks = (tokens + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
        auto go = [&](int64_t all) {
            const int64_t row = all / units * ROWS_AT_ONCE;
            work(row, tokens - row < ROWS_AT_ONCE ? tokens - row : (int64_t)ROWS_AT_ONCE, all % units);
        };
        if (tokens <= ROWS_AT_ONCE / 4)
            for (int64_t unit = from(units); unit < to(units); ++unit) go(unit);
        else
            for (int64_t all = barrier.taken++; all < row_blocks * units; all = barrier.taken++) go(all);
    }
};

// Products of the same rows with several matrices, block by block.
struct Product {
    const Share& share;
    const Matrix* parts;
    int n_parts;
    Rows x;
    int64_t row, rows;  // of x, those now in hand

    // The part that block b of all belongs to; b becomes its number there, at the part's first output of all.
    const Matrix& find(int64_t& b, int64_t& at) const {
        int i = 0;
        for (at = 0; b >= parts[i].blocks(); ++i) b -= parts[i].blocks(), at += parts[i].blocks() * LANES;
        return parts[i];
    }

    void add_bias(const Matrix& w, int64_t b, float* y, int64_t n_y) const {
        if (!w.bias) return;
        const vf bias = load(w.bias + b * LANES);
        for (int64_t m = 0; m < rows; ++m) store(y + m * n_y, load(y + m * n_y) + bias);
    }

    // The sums of groups that parts with offsets want; equal ones are made once.
    void sum_groups_of(const Matrix& w, int64_t& made) const {
        if (!w.offsets || made == w.group) return;
        if (x.half) sum_groups(w, x.half + row * x.stride, x.stride, rows, (float*)share.group_sums);
        else sum_groups(w, x.wide + row * x.stride, x.stride, rows, (float*)share.group_sums);
        made = w.group;
    }

    void one_by_groups(const Matrix& w, int64_t b, float* y, int64_t n_y, int64_t& made) const {
        sum_groups_of(w, made);
        const float* sums = (const float*)share.group_sums;
        float* part = (float*)(share.panels + x.stride * 32);
        rows_times_codes(w, b, x.half + row * x.stride, x.stride, rows, sums, share.panels, part, y, n_y);
    }

    // Blocks b0 of w0 and (where w1 is not null) b1 of w1, to y0 and y1.
    void two(
        const Matrix& w0, int64_t b0, float* y0, const Matrix* w1, int64_t b1, float* y1, int64_t n_y, int64_t& made
    ) const {
        if (x.half && by_groups(w0, rows) && (!w1 || by_groups(*w1, rows))) {
            one_by_groups(w0, b0, y0, n_y, made);
            if (w1) one_by_groups(*w1, b1, y1, n_y, made);
        } else if (x.half) {
            const char* panel0 = panel_of(w0, b0, share.panels);
            const char* panel1 = w1 ? panel_of(*w1, b1, share.panels + x.stride * 32) : nullptr;
            rows_times_panels(x.half + row * x.stride, x.stride, rows, panel0, panel1, x.stride / 32, y0, y1, n_y);
        } else {
            const float* wide = x.wide + row * x.stride;
            const float* sums = (const float*)share.group_sums;
            sum_groups_of(w0, made);
            rows_times_block(w0, wide, x.stride, rows, sums, y0, n_y, b0);
            if (w1) {
                sum_groups_of(*w1, made);
                rows_times_block(*w1, wide, x.stride, rows, sums, y1, n_y, b1);
            }
        }
        add_bias(w0, b0, y0, n_y);
        if (w1) add_bias(*w1, b1, y1, n_y);
    }

    int64_t blocks() const {
        int64_t total = 0;
        for (int i = 0; i < n_parts; ++i) total += parts[i].blocks();
        return total;
    }

    // Blocks from `from` up to `to` of all parts, to y, where the parts' outputs stand side by side.
    void range(int64_t from, int64_t to, float* y, int64_t n_y, int64_t& made) const {
        for (int64_t block = from; block < to; block += 2) {
            int64_t b0 = block, b1 = block + 1, at0, at1 = 0;
            const Matrix& w0 = find(b0, at0);
            const Matrix* w1 = block + 1 < to ? &find(b1, at1) : nullptr;
            two(w0, b0, y + at0 + b0 * LANES, w1, b1, y + at1 + b1 * LANES, n_y, made);
        }
    }
};

static void multiply(
    const Share& share, const Matrix* parts, int n_parts, Rows x, int64_t tokens, float* y, int64_t n_y
) {
    Product product = {share, parts, n_parts, x, -1, 0};
    const int64_t blocks = product.blocks();
    int64_t made = 0;
    share.each(tokens, (blocks + 1) / 2, [&](int64_t row, int64_t rows, int64_t pair) {
        if (row != product.row) made = 0;
        product.row = row, product.rows = rows;
        product.range(pair * 2, pair * 2 + 2 < blocks ? pair * 2 + 2 : blocks, y + row * n_y, n_y, made);
    });
}

// act(gate(x)) * up(x), or act(up(x)) where there is no gate, to inner.
static void multiply_inner(
    const Share& share, const Layer& layer, int64_t activation, bool gated, Rows x, int64_t tokens, Rows inner
) {
    const Matrix parts[2] = {layer.gate, layer.up};
    Product product = {share, parts, 2, x, -1, 0};
    float *gate = (float*)share.pieces, *up = gate + ROWS_AT_ONCE * LANES;
    int64_t made = 0;
    share.each(tokens, layer.up.blocks(), [&](int64_t row, int64_t rows, int64_t b) {
        if (row != product.row) made = 0;
        product.row = row, product.rows = rows;
        if (gated) product.two(layer.gate, b, gate, &layer.up, b, up, LANES, made);
        else product.two(layer.up, b, up, nullptr, 0, nullptr, LANES, made);
        for (int64_t m = 0; m < rows; ++m) {
            vf linear = load(up + m * LANES);
            vf out = gated ? activate(load(gate + m * LANES), activation) * linear : activate(linear, activation);
            inner.put(row + m, b * LANES, out);
        }
    });
}
