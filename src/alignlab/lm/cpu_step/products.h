// One thread's share of the products of a pass.
#pragma once
#include "memory.h"
#include "tiles.h"

struct Share {
    int64_t id, n;
    char *panels, *pieces, *group_sums, *scores;

    Share(const Memory& at, int64_t id, int64_t n) : id(id), n(n) {
        panels = at.own + id * at.n_own;
        pieces = panels + at.n_panels;
        group_sums = pieces + at.n_pieces;
        scores = group_sums + at.n_group_sums;
    }
    int64_t from(int64_t units) const { return units * id / n; }
    int64_t to(int64_t units) const { return units * (id + 1) / n; }
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
        if (x.half || !w.offsets || made == w.group) return;
        sum_groups(w, x.wide + row * x.stride, x.stride, rows, (float*)share.group_sums);
        made = w.group;
    }

    // Blocks b0 of w0 and (where w1 is not null) b1 of w1, to y0 and y1.
    void two(const Matrix& w0, int64_t b0, float* y0, const Matrix* w1, int64_t b1, float* y1, int64_t n_y, int64_t& made) const {
        if (x.half) {
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

static void multiply(const Share& share, const Matrix* parts, int n_parts, Rows x, int64_t tokens, float* y, int64_t n_y) {
    for (int64_t row = 0; row < tokens; row += ROWS_AT_ONCE) {
        const int64_t rows = tokens - row < ROWS_AT_ONCE ? tokens - row : ROWS_AT_ONCE;
        Product product = {share, parts, n_parts, x, row, rows};
        const int64_t blocks = product.blocks(), pairs = (blocks + 1) / 2;
        const int64_t end = share.to(pairs) * 2;
        int64_t made = 0;
        product.range(share.from(pairs) * 2, end < blocks ? end : blocks, y + row * n_y, n_y, made);
    }
}

// act(gate(x)) * up(x), or act(up(x)) where there is no gate, to inner.
static void multiply_inner(const Share& share, const Layer& layer, int64_t activation, bool gated, Rows x, int64_t tokens, Rows inner) {
    const Matrix parts[2] = {layer.gate, layer.up};
    float *gate = (float*)share.pieces, *up = gate + ROWS_AT_ONCE * LANES;
    for (int64_t row = 0; row < tokens; row += ROWS_AT_ONCE) {
        const int64_t rows = tokens - row < ROWS_AT_ONCE ? tokens - row : ROWS_AT_ONCE, blocks = layer.up.blocks();
        Product product = {share, parts, 2, x, row, rows};
        int64_t made = 0;
        for (int64_t b = share.from(blocks); b < share.to(blocks); ++b) {
            if (gated) product.two(layer.gate, b, gate, &layer.up, b, up, LANES, made);
            else product.two(layer.up, b, up, nullptr, 0, nullptr, LANES, made);
            for (int64_t m = 0; m < rows; ++m) {
                vf linear = load(up + m * LANES);
                vf out = gated ? activate(load(gate + m * LANES), activation) * linear : activate(linear, activation);
                inner.put(row + m, b * LANES, out);
            }
        }
    }
}
