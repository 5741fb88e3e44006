// Attention of up to sixteen queries that share keys and values, on the matrix unit (see tiles.h), in bfloat16 with
// float32 sums: the heads of a group, of one token or of a few neighbours.
#pragma once
#include "attention.h"
#include "tiles.h"

enum { QUERIES = 16, KEYS = 32 };  // keys that one product of weights and values takes

struct Queries {
    const float* at[QUERIES];  // d_head numbers each
    int64_t keys[QUERIES];     // how many keys of both spans each sees
    int64_t positions[QUERIES];
    int64_t n;
};

static inline int64_t whole_keys(int64_t n) { return (n + KEYS - 1) / KEYS * KEYS; }

// Bytes that attend_tiles works in.
static inline int64_t tile_attention_memory(int64_t n_keys, int64_t d) {
    const int64_t scores_and_weights = QUERIES * (n_keys + 4 * KEYS) * 6, operands = (QUERIES + KEYS) * d * 2;
    return scores_and_weights + operands + QUERIES * LANES * 4 + QUERIES * d * 4 + 512;
}

#if HAS_TILES
// Queries as the second operand: for each 32 numbers a tile of (pairs of numbers, query).
static void turn_queries(const Queries& queries, int64_t d, uint16_t* turned) {
    uint16_t half[512];
    for (int64_t g = 0; g < queries.n; ++g) {
        for (int64_t k = 0; k < d; k += LANES) store(half + k, load(queries.at[g] + k));
        for (int64_t pair = 0; pair < d / 2; ++pair) memcpy(turned + (pair * QUERIES + g) * 2, half + 2 * pair, 4);
    }
}

// Scaled scores of every query with the keys of one span, (query, n_scores) from `at` on; block is room for 16 keys.
static void score_tiles(
    const AttentionShape& s, const Queries& queries, const Span& span, const uint16_t* turned, uint16_t* block,
    float* found, float* scores, int64_t n_scores, int64_t at
) {
    const int64_t d = s.d_head;
    const __m512i column = (__m512i)(vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * (int32_t)QUERIES);
    for (int64_t start = 0; start < span.n; start += LANES) {
        const int64_t n = span.n - start < LANES ? span.n - start : (int64_t)LANES;
        const uint16_t* keys = (const uint16_t*)span.keys + start * d;
        if (span.next) ask_for((const uint16_t*)span.values + start * d, n * d * 2);
        if (n < LANES) {
            memset(block, 0, LANES * d * 2);
            memcpy(block, keys, n * d * 2);
            keys = block;
        }
        settle_memory(keys);
        _tile_zero(0);
        for (int64_t k = 0; k < d; k += 32) {
            _tile_loadd(4, keys + k, d * 2);
            _tile_loadd(5, turned + k * QUERIES, 64);
            _tile_dpbf16ps(0, 4, 5);
        }
        _tile_stored(0, found, QUERIES * 4);
        for (int64_t g = 0; g < queries.n; ++g) {
            vf dots = (vf)_mm512_i32gather_ps(column, found + g, 4) * s.scale;
            if (s.softcap > 0) dots = s.softcap * tangent(dots / s.softcap);
            if (span.positions) {
                AttentionShape own = s;
                own.position = queries.positions[g];
                dots = hide(own, span, start, n, dots);
            }
            store(scores + g * n_scores + at + start, dots);
        }
    }
}

// Softmax of a query's scores with far keys in front and near ones from near_at on: weights in bfloat16, zero beyond
// what it sees; returns the inverse of their sum.
static float weigh(float* scores, uint16_t* weights, int64_t far, int64_t near_at, int64_t near, int64_t n) {
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const vf nothing = spread(-INFINITY);
    vf most = nothing;
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t left = i < near_at ? far - i : near_at + near - i;
        vf scored = left > 0 ? load(scores + i) : nothing;
        if (left < LANES) scored = pick(lanes < (int32_t)(left > 0 ? left : 0), scored, nothing);
        store(scores + i, scored);
        most = larger(most, scored);
    }
    const float top = largest(most);
    vf total = {};
    for (int64_t i = 0; i < n; i += LANES) {
        vf scored = load(scores + i);
        vf weight = pick(scored == nothing, vf{}, exponential(scored - top));
        store(weights + i, weight);
        total += weight;
    }
    return top == -INFINITY ? 0 : 1.0f / sum(total);
}

// Weights (16, n) times the values of both spans, 32 numbers of each from k on, to out (16, d).
static void mix_tiles(
    const AttentionShape& s, const Span* spans, int64_t near_at, const uint16_t* weights, int64_t n, uint16_t* pairs,
    float* out, int64_t k
) {
    const __m512i low = _mm512_loadu_si512(ALTERNATING), high = _mm512_loadu_si512(ALTERNATING + 32);
    const int64_t d = s.d_head;
    _tile_zero(0);
    _tile_zero(1);
    for (int j = 0; j < 2; ++j)
        for (int64_t start = 0; start < spans[j].n; start += KEYS) {
            const uint16_t* values = (const uint16_t*)spans[j].values + start * d + k;
            const int64_t left = spans[j].n - start;
            for (int64_t i = 0; i < KEYS; i += 2) {
                const __m512i even = i < left ? _mm512_loadu_si512(values + i * d) : _mm512_setzero_si512();
                const __m512i odd = i + 1 < left ? _mm512_loadu_si512(values + (i + 1) * d) : _mm512_setzero_si512();
                _mm512_storeu_si512(pairs + i * 16, _mm512_permutex2var_epi16(even, low, odd));
                _mm512_storeu_si512(pairs + 512 + i * 16, _mm512_permutex2var_epi16(even, high, odd));
            }
            settle_memory(pairs);
            _tile_loadd(4, weights + (j ? near_at : 0) + start, n * 2);
            _tile_loadd(5, pairs, 64);
            _tile_loadd(6, pairs + 512, 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
        }
    _tile_stored(0, out + k, d * 4);
    _tile_stored(1, out + k + LANES, d * 4);
}

// What the queries see, to the returned (query, d_head), which lies in memory; tiles must be open for 16 rows. Spans
// start where the queries do; a query that sees fewer keys leaves out the last ones.
static float* attend_tiles(const AttentionShape& s, const Queries& queries, const Span* spans, char* memory) {
    const int64_t d = s.d_head, near_at = whole_keys(spans[0].n), n = near_at + whole_keys(spans[1].n);
    float *out = (float*)memory, *found = out + QUERIES * d, *scores = found + QUERIES * LANES;
    uint16_t *turned = (uint16_t*)(scores + QUERIES * n), *block = turned + QUERIES * d, *weights = block + KEYS * d;
    memset(out, 0, QUERIES * d * 4);
    if (!n) return out;
    turn_queries(queries, d, turned);
    score_tiles(s, queries, spans[0], turned, block, found, scores, n, 0);
    score_tiles(s, queries, spans[1], turned, block, found, scores, n, near_at);
    float inverse[QUERIES];
    for (int64_t g = 0; g < queries.n; ++g) {
        const int64_t keys = queries.keys[g], far = keys < spans[0].n ? keys : spans[0].n;
        inverse[g] = weigh(scores + g * n, weights + g * n, far, near_at, keys - far, n);
    }
    if (spans[1].next) ask_for(spans[1].next, spans[1].n * d * 2);
    for (int64_t k = 0; k < d; k += 32) mix_tiles(s, spans, near_at, weights, n, block, out, k);
    for (int64_t g = 0; g < queries.n; ++g)
        for (int64_t k = 0; k < d; k += LANES) store(out + g * d + k, load(out + g * d + k) * inverse[g]);
    return out;
}
#else
static float* attend_tiles(const AttentionShape&, const Queries&, const Span*, char*) { return nullptr; }
#endif
