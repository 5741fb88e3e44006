// One thread's share of the products of a pass.
#pragma once
#include "barrier.h"
#include "memory.h"
#include "code_tiles.h"

struct Share {
    int64_t id, n;
    Barrier& barrier;
    char *panels, *pieces, *narrow, *group_sums, *scores;

    Share(const Memory& at, Barrier& barrier, int64_t id, int64_t n) : id(id), n(n), barrier(barrier) {
        panels = at.own + id * at.n_own;
        pieces = panels + at.n_panels;
        narrow = pieces + at.n_pieces;
        group_sums = narrow + at.n_narrow;
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
    // What is made of these rows: sums of groups of so many, and the adapters' a x of so many parts, by their a.
    int64_t made = 0;
    int n_narrow = 0;
    const Matrix* narrow_of[PARTS_AT_ONCE] = {};
    char *narrow_at[PARTS_AT_ONCE] = {}, *narrow_end = nullptr;

    void take(int64_t from, int64_t n) {
        if (from != row) made = 0, n_narrow = 0;
        row = from, rows = n;
    }

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
    void sum_groups_of(const Matrix& w) {
        if (!w.offsets || made == w.group) return;
        if (x.half) sum_groups(w, x.half + row * x.stride, x.stride, rows, (float*)share.group_sums);
        else sum_groups(w, x.wide + row * x.stride, x.stride, rows, (float*)share.group_sums);
        made = w.group;
    }

    void one_by_groups(const Matrix& w, int64_t b, float* y, int64_t n_y) {
        sum_groups_of(w);
        const float* sums = (const float*)share.group_sums;
        float* part = (float*)(share.panels + x.stride * 32);
        rows_times_codes(w, b, x.half + row * x.stride, x.stride, rows, sums, share.panels, part, y, n_y);
    }

    // An adapter's a x of the rows in hand, made once. On the matrix unit each number takes two of bfloat16, itself
    // rounded and what it then lacks, in two halves of a row that meet the same b: as good as float32.
    const char* narrow(const Matrix& w) {
        int i = 0;
        while (i < n_narrow && narrow_of[i] != w.a) ++i;
        if (i < n_narrow) return narrow_at[i];
        const int64_t blocks = w.a->blocks(), width = blocks * LANES, stride = w.b->n_in;
        float* sums = (float*)share.narrow;
        char* to = n_narrow ? narrow_end : share.narrow + ROWS_AT_ONCE * width * 4;
        narrow_of[n_narrow] = w.a, narrow_at[n_narrow++] = to;
        narrow_end = to + ROWS_AT_ONCE * stride * 4;
        for (int64_t b = 0; b < blocks; ++b) {
            float* y = sums + b * LANES;
            if (x.half) {
                const char* panel = panel_of(*w.a, b, nullptr);
                const uint16_t* half = x.half + row * x.stride;
                rows_times_panels(half, x.stride, rows, panel, nullptr, x.stride / 32, y, nullptr, width);
            } else {
                rows_times_block(*w.a, x.wide + row * x.stride, x.stride, rows, nullptr, y, width, b);
            }
        }
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t k = 0; k < width; k += LANES) {
                const vf number = load(sums + m * width + k);
                if (x.half) {
                    uint16_t* line = (uint16_t*)to + m * stride + k;
                    store(line, number);
                    store(line + width, number - load(line));
                } else {
                    float* line = (float*)to + m * stride + k;
                    store(line, number);
                    if (stride > width) store(line + width, vf{});
                }
            }
        return to;
    }

    // y + b (a x), where there is an adapter.
    void add_adapter(const Matrix& w, int64_t b, float* y, int64_t n_y) {
        if (!w.a) return;
        const char* from = narrow(w);
        const int64_t stride = w.b->n_in;
        if (x.half) {
            add_rows_times_panel((const uint16_t*)from, stride, rows, panel_of(*w.b, b, nullptr), stride / 32, y, n_y);
            return;
        }
        float* part = (float*)share.narrow;
        rows_times_block(*w.b, (const float*)from, stride, rows, nullptr, part, LANES, b);
        for (int64_t m = 0; m < rows; ++m) store(y + m * n_y, load(y + m * n_y) + load(part + m * LANES));
    }

    // Blocks b0 of w0 and (where w1 is not null) b1 of w1, to y0 and y1.
    void two(
        const Matrix& w0, int64_t b0, float* y0, const Matrix* w1, int64_t b1, float* y1, int64_t n_y
    ) {
        if (x.half && by_groups(w0, rows) && (!w1 || by_groups(*w1, rows))) {
            one_by_groups(w0, b0, y0, n_y);
            if (w1) one_by_groups(*w1, b1, y1, n_y);
        } else if (x.half) {
            const char* panel0 = panel_of(w0, b0, share.panels);
            const char* panel1 = w1 ? panel_of(*w1, b1, share.panels + x.stride * 32) : nullptr;
            rows_times_panels(x.half + row * x.stride, x.stride, rows, panel0, panel1, x.stride / 32, y0, y1, n_y);
        } else {
            const float* wide = x.wide + row * x.stride;
            const float* sums = (const float*)share.group_sums;
            sum_groups_of(w0);
            rows_times_block(w0, wide, x.stride, rows, sums, y0, n_y, b0);
            if (w1) {
                sum_groups_of(*w1);
                rows_times_block(*w1, wide, x.stride, rows, sums, y1, n_y, b1);
            }
        }
        add_adapter(w0, b0, y0, n_y);
        if (w1) add_adapter(*w1, b1, y1, n_y);
        add_bias(w0, b0, y0, n_y);
        if (w1) add_bias(*w1, b1, y1, n_y);
    }

    int64_t blocks() const {
        int64_t total = 0;
        for (int i = 0; i < n_parts; ++i) total += parts[i].blocks();
        return total;
    }

    // Blocks from `from` up to `to` of all parts, to y, where the parts' outputs stand side by side.
    void range(int64_t from, int64_t to, float* y, int64_t n_y) {
        for (int64_t block = from; block < to; block += 2) {
            int64_t b0 = block, b1 = block + 1, at0, at1 = 0;
            const Matrix& w0 = find(b0, at0);
            const Matrix* w1 = block + 1 < to ? &find(b1, at1) : nullptr;
            two(w0, b0, y + at0 + b0 * LANES, w1, b1, y + at1 + b1 * LANES, n_y);
        }
    }
};

static void multiply(
    const Share& share, const Matrix* parts, int n_parts, Rows x, int64_t tokens, float* y, int64_t n_y
) {
    Product product = {share, parts, n_parts, x, -1, 0};
    const int64_t blocks = product.blocks();
    share.each(tokens, (blocks + 1) / 2, [&](int64_t row, int64_t rows, int64_t pair) {
        product.take(row, rows);
        product.range(pair * 2, pair * 2 + 2 < blocks ? pair * 2 + 2 : blocks, y + row * n_y, n_y);
    });
}

// act(gate(x)) * up(x), or act(up(x)) where there is no gate, to inner.
static void multiply_inner(
    const Share& share, const Layer& layer, int64_t activation, bool gated, Rows x, int64_t tokens, Rows inner
) {
    const Matrix parts[2] = {layer.gate, layer.up};
    Product product = {share, parts, 2, x, -1, 0};
    float *gate = (float*)share.pieces, *up = gate + ROWS_AT_ONCE * LANES;
    share.each(tokens, layer.up.blocks(), [&](int64_t row, int64_t rows, int64_t b) {
        product.take(row, rows);
        if (gated) product.two(layer.gate, b, gate, &layer.up, b, up, LANES);
        else product.two(layer.up, b, up, nullptr, 0, nullptr, LANES);
        for (int64_t m = 0; m < rows; ++m) {
            vf linear = load(up + m * LANES);
            vf out = gated ? activate(load(gate + m * LANES), activation) * linear : activate(linear, activation);
            inner.put(row + m, b * LANES, out);
        }
    });
}
