// Products of some rows with a matrix of 4- or 8-bit codes, in float32, sixteen outputs side by side.
#include "matrix.h"

extern "C" void alignlab_product(
    const float* x, float* sums, float* y, int64_t n_rows, const int32_t* codes, const void* scales,
    const void* offsets, const float* table, int64_t n_out, int64_t n_in, int64_t group, int kind, int bits, int threads
) {
    const Matrix w = {
        codes, scales, offsets, table, nullptr, nullptr, nullptr, n_out, n_in, group, kind, bits == 4 ? CODES4 : CODES8
    };
    if (offsets) sum_groups(w, x, n_in, n_rows, sums);
    const int64_t whole = n_out / LANES * LANES, blocks = w.blocks();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        if (b * LANES < whole) {
            rows_times_block(w, x, n_in, n_rows, sums, y + b * LANES, n_out, b);
            continue;
        }
        // The last outputs do not fill a block.
        for (int64_t m = 0; m < n_rows; ++m) {
            float last[LANES];
            rows_times_block(w, x + m * n_in, n_in, 1, sums + (sums ? m * (n_in / group) : 0), last, LANES, b);
            memcpy(y + m * n_out + whole, last, (n_out - whole) * sizeof(float));
        }
    }
}
