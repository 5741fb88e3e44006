// What happens to one row between products: norms and rotary positions.
#pragma once
#include "memory.h"

// x / rms(x) * weight, or (x - mean) / std * weight + bias; put(at, numbers) takes the result.
template <typename Put>
static void normalise(const Norm& norm, const float* x, int64_t width, bool centred, float eps, Put put) {
    float mean = 0;
    if (centred) {
        vf total = {};
        for (int64_t k = 0; k < width; k += LANES) total += load(x + k);
        mean = sum(total) / width;
    }
    vf squares = {};
    for (int64_t k = 0; k < width; k += LANES) {
        vf centre = load(x + k) - mean;
        squares += centre * centre;
    }
    const float inverse = 1.0f / sqrtf(sum(squares) / width + eps);
    for (int64_t k = 0; k < width; k += LANES) {
        vf out = (load(x + k) - mean) * inverse * load(norm.weight + k);
        put(k, norm.bias ? out + load(norm.bias + k) : out);
    }
}

// Pairs (i, i + dim / 2) turned; the table's sines carry the sign.
static inline void rotate(float* x, const float* cos, const float* sin, int64_t dim) {
    const int64_t half = dim / 2;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const vf low = load(x + i), high = load(x + i + half);
        store(x + i, low * load(cos + i) + high * load(sin + i));
        store(x + i + half, high * load(cos + i + half) + low * load(sin + i + half));
    }
    for (; i < half; ++i) {
        const float low = x[i], high = x[i + half];
        x[i] = low * cos[i] + high * sin[i];
        x[i + half] = high * cos[i + half] + low * sin[i + half];
    }
}

static inline void add_to(float* x, const float* y, int64_t width) {
    for (int64_t k = 0; k < width; k += LANES) store(x + k, load(x + k) + load(y + k));
}
