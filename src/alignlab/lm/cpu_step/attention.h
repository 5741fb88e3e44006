// Attention of one token to the keys before it, for the heads of a group, which share keys and values.
#pragma once
#include "vector.h"

// Keys and values that lie evenly, (key, d_head), in bfloat16 or float32.
struct Span {
    const void* keys;
    const void* values;
    int64_t n;                 // number of keys
    const int64_t* positions;  // of each key where some are not to be seen, else null
};

struct AttentionShape {
    int64_t d_head, position, window;  // window 0: none
    float scale, softcap;              // softcap 0: none
};

// Scores of G queries (stride d_head) with the keys of a span, (G, n_scores); those not to be seen are -inf.
template <typename T, int G>
static void score(const AttentionShape& s, const Span& span, const float* q, float* scores, int64_t n_scores) {
    const int64_t d = s.d_head;
    for (int64_t start = 0; start < span.n; start += LANES) {
        const int64_t n = span.n - start < LANES ? span.n - start : LANES;
        vf parts[G][LANES] = {};
        const T* key = (const T*)span.keys + start * d;
        for (int64_t i = 0; i < n; ++i, key += d) {
            vf part[G] = {};
            for (int64_t k = 0; k < d; k += LANES) {
                vf numbers = load(key + k);
                for (int g = 0; g < G; ++g) part[g] += numbers * load(q + g * d + k);
            }
            for (int g = 0; g < G; ++g) parts[g][i] = part[g];
        }
        for (int g = 0; g < G; ++g) {
            vf dots = sums_of(parts[g]) * s.scale;
            if (s.softcap > 0) dots = s.softcap * tangent(dots / s.softcap);
            for (int64_t i = 0; i < LANES; ++i) {
                bool seen = i < n;
                if (seen && span.positions) {
                    const int64_t at = span.positions[start + i];
                    seen = at >= 0 && (!s.window || at > s.position - s.window);
                }
                if (!seen) dots[i] = -INFINITY;
            }
            store(scores + g * n_scores + start, dots);
        }
    }
}

// Adds the span's values, weighted, to out (G, d_head): N vectors of each value at a time.
template <typename T, int G, int N>
static void add_values(const AttentionShape& s, const Span& span, const float* weights, int64_t n_weights, float* out, int64_t k) {
    const int64_t d = s.d_head;
    vf total[G][N];
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < N; ++j) total[g][j] = load(out + g * d + k + j * LANES);
    const T* value = (const T*)span.values + k;
    for (int64_t i = 0; i < span.n; ++i, value += d)
        for (int j = 0; j < N; ++j) {
            vf numbers = load(value + j * LANES);
            for (int g = 0; g < G; ++g) total[g][j] += numbers * weights[g * n_weights + i];
        }
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < N; ++j) store(out + g * d + k + j * LANES, total[g][j]);
}

static inline int64_t whole_lanes(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// What G queries (float32, d_head each) see in up to two spans, into out (G, d_head); zeros where there is nothing.
// scores holds G * (n + 32) numbers.
template <typename T, int G>
static void attend(const AttentionShape& s, const Span* spans, const float* q, float* scores, float* out) {
    const int64_t near_at = whole_lanes(spans[0].n), n = near_at + whole_lanes(spans[1].n);
    memset(out, 0, G * s.d_head * sizeof(float));
    if (!n) return;
    score<T, G>(s, spans[0], q, scores, n);
    score<T, G>(s, spans[1], q, scores + near_at, n);
    float inverse[G];
    for (int g = 0; g < G; ++g) {
        float* row = scores + g * n;
        vf most = load(row);
        for (int64_t i = LANES; i < n; i += LANES) most = larger(most, load(row + i));
        const float top = largest(most);
        vf total = {};
        for (int64_t i = 0; i < n; i += LANES) {
            vf scored = load(row + i);
            vf weight = pick(scored == spread(-INFINITY), vf{}, exponential(scored - top));
            store(row + i, weight);
            total += weight;
        }
        inverse[g] = top == -INFINITY ? 0 : 1.0f / sum(total);
    }
    for (int j = 0; j < 2; ++j) {
        int64_t k = 0;
        const float* weights = scores + j * near_at;
        for (; k + 4 * LANES <= s.d_head; k += 4 * LANES) add_values<T, G, 4>(s, spans[j], weights, n, out, k);
        for (; k < s.d_head; k += LANES) add_values<T, G, 1>(s, spans[j], weights, n, out, k);
    }
    for (int g = 0; g < G; ++g)
        for (int64_t k = 0; k < s.d_head; k += LANES) store(out + g * s.d_head + k, load(out + g * s.d_head + k) * inverse[g]);
}

template <typename T>
static void attend_heads(const AttentionShape& s, const Span* spans, const float* q, int64_t heads, float* scores, float* out) {
    for (; heads >= 4; heads -= 4, q += 4 * s.d_head, out += 4 * s.d_head) attend<T, 4>(s, spans, q, scores, out);
    if (heads == 3) attend<T, 3>(s, spans, q, scores, out);
    else if (heads == 2) attend<T, 2>(s, spans, q, scores, out);
    else if (heads == 1) attend<T, 1>(s, spans, q, scores, out);
}
