// Logits, and on the way each row's largest one and the sum of their exponentials, while they are in the cache.
#pragma once

enum { BLOCKS_AT_ONCE = 16 };

void Worker::unembed() {
    const int64_t blocks = m.head.blocks(), n_y = blocks * LANES, from = share.from(blocks), to = share.to(blocks);
    float *most = at.most + share.id * tokens, *sums = at.sums + share.id * tokens;
    int64_t* place = at.place + share.id * tokens;
    for (int64_t row = 0; row < tokens; ++row) most[row] = -INFINITY, sums[row] = 0, place[row] = 0;
    for (int64_t block = from; block < to; block += BLOCKS_AT_ONCE) {
        const int64_t end = block + BLOCKS_AT_ONCE < to ? block + BLOCKS_AT_ONCE : to;
        for (int64_t row = 0; row < tokens; row += ROWS_AT_ONCE) {
            const int64_t rows = tokens - row < ROWS_AT_ONCE ? tokens - row : ROWS_AT_ONCE;
            Product product = {share, &m.head, 1, at.read, row, rows};
            product.range(block, end, p.logits + row * n_y, n_y);
        }
        for (int64_t row = 0; row < tokens; ++row) {
            float* y = p.logits + row * n_y + block * LANES;
            const int64_t n = end * LANES;
            for (int64_t i = m.head.n_out; i < n; ++i) y[i - block * LANES] = -INFINITY;
            const int64_t width = n - block * LANES;
            vf top = load(y);
            for (int64_t i = LANES; i < width; i += LANES) top = larger(top, load(y + i));
            const float high = largest(top);
            if (high > most[row]) {
                sums[row] *= expf(most[row] - high);
                most[row] = high;
                place[row] = block * LANES;
            }
            vf total = {};
            for (int64_t i = 0; i < width; i += LANES) total += exponential(load(y + i) - most[row]);
            sums[row] += sum(total);
        }
    }
    wait_for_all();
    for (int64_t row = share.from(tokens); row < share.to(tokens); ++row) {
        int64_t winner = 0;
        for (int64_t i = 1; i < share.n; ++i)
            if (at.most[i * tokens + row] > at.most[winner * tokens + row]) winner = i;
        const float high = at.most[winner * tokens + row];
        float total = 0;
        for (int64_t i = row; i < share.n * tokens; i += tokens) total += at.sums[i] * expf(at.most[i] - high);
        const float* y = p.logits + row * n_y;
        int64_t best = at.place[winner * tokens + row];
        while (best + 1 < m.head.n_out && !(y[best] >= high)) ++best;
        p.best[row] = best;
        // Not finite logits leave a total that is not: infinity less infinity, or NaN.
        p.total[row] = high - high + high + logf(total);
    }
}
