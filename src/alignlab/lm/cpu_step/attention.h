// Attention of one token to the keys before it, for the heads of a group, which share keys and values.
#pragma once
#include "attention_bf16.h"

// Whether keys and values of type T are multiplied in pairs.
template <typename T>
static constexpr bool in_pairs(int64_t d) {
    return HAS_PAIR_PRODUCTS && sizeof(T) == 2 && d % 32 == 0;
}

// Keys and values that lie evenly, (key, d_head), in bfloat16 or float32.
struct Span {
    const void* keys;
    const void* values;
    int64_t n;                 // number of keys
    const int64_t* positions;  // of each key where some are not to be seen, else null
    const void* next;          // keys that will be wanted after this, or null
};

// Asks for the n bytes at `from`.
static inline void ask_for(const void* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char*)from + i);
}

struct AttentionShape {
    int64_t d_head, position, window;  // window 0: none
    float scale, softcap;              // softcap 0: none
};

// Scores with keys from start on, -inf where the key is padding or outside the window.
static vf hide(const AttentionShape& s, const Span& span, int64_t start, int64_t n, vf scores) {
    float rows[LANES];
    store(rows, scores);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t at = span.positions[start + i];
        if (at < 0 || (s.window && at <= s.position - s.window)) rows[i] = -INFINITY;
    }
    return load(rows);
}

// Scores of G queries (stride d_head; halves are the same in bfloat16) with the keys of a span, (G, n_scores); those
// not to be seen are -inf.
template <typename T, int G>
static void score(
    const AttentionShape& s, const Span& span, const float* q, const uint16_t* halves, float* scores, int64_t n_scores
) {
    const int64_t d = s.d_head;
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t start = 0; start < span.n; start += LANES) {
        const int64_t n = span.n - start < LANES ? span.n - start : LANES;
        vf parts[G][LANES] = {};
        const T* key = (const T*)span.keys + start * d;
        if (span.next) ask_for((const T*)span.values + start * d, n * d * sizeof(T));
        for (int64_t i = 0; i < n; ++i, key += d) {
            if (in_pairs<T>(d)) {
                pair_dots<G>((const uint16_t*)key, halves, d, i, parts);
                continue;
            }
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
            if (n < LANES) dots = pick(lanes < (int32_t)n, dots, spread(-INFINITY));
            if (span.positions) dots = hide(s, span, start, n, dots);
            store(scores + g * n_scores + start, dots);
        }
    }
}

// Adds the span's values, weighted, to out (G, d_head): N vectors of each value at a time.
template <typename T, int G, int N>
static void add_values(
    const AttentionShape& s, const Span& span, const float* weights, int64_t n_weights, float* out, int64_t k
) {
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
// scores holds G * (2 * n + 64 + d_head) numbers.
template <typename T, int G>
static void attend(const AttentionShape& s, const Span* spans, const float* q, float* scores, float* out) {
    const int64_t near_at = whole_lanes(spans[0].n), n = near_at + whole_lanes(spans[1].n);
    memset(out, 0, G * s.d_head * sizeof(float));
    if (!n) return;
    uint16_t *halves = (uint16_t*)(scores + G * n), *weights = halves + G * s.d_head;
    if (in_pairs<T>(s.d_head))
        for (int64_t k = 0; k < G * s.d_head; k += LANES) store(halves + k, load(q + k));
    score<T, G>(s, spans[0], q, halves, scores, n);
    score<T, G>(s, spans[1], q, halves, scores + near_at, n);
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
            if (in_pairs<T>(s.d_head)) store(weights + g * n + i, weight);
            else store(row + i, weight);
            total += weight;
        }
        inverse[g] = top == -INFINITY ? 0 : 1.0f / sum(total);
    }
    for (int j = 0; j < 2; ++j) {
        int64_t k = 0;
        const int64_t at = j * near_at;
        if (spans[j].next) ask_for(spans[j].next, spans[j].n * s.d_head * sizeof(T));
        if (in_pairs<T>(s.d_head))
            for (; k < s.d_head; k += 32)
                pair_values<G>((const uint16_t*)spans[j].values, spans[j].n, s.d_head, weights + at, n, out, k);
        for (; k + 4 * LANES <= s.d_head; k += 4 * LANES) add_values<T, G, 4>(s, spans[j], scores + at, n, out, k);
        for (; k < s.d_head; k += LANES) add_values<T, G, 1>(s, spans[j], scores + at, n, out, k);
    }
    for (int g = 0; g < G; ++g)
        for (int64_t k = g * s.d_head; k < (g + 1) * s.d_head; k += LANES) store(out + k, load(out + k) * inverse[g]);
}

template <typename T>
static void attend_heads(
    const AttentionShape& s, const Span* spans, const float* q, int64_t heads, float* scores, float* out
) {
    for (; heads >= 4; heads -= 4, q += 4 * s.d_head, out += 4 * s.d_head) attend<T, 4>(s, spans, q, scores, out);
    if (heads == 3) attend<T, 3>(s, spans, q, scores, out);
    else if (heads == 2) attend<T, 2>(s, spans, q, scores, out);
    else if (heads == 1) attend<T, 1>(s, spans, q, scores, out);
}
