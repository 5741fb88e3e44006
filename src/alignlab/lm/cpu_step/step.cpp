// One pass of a decoder-only transformer over the new tokens of each row: one parallel region with a barrier between
// phases; sums, norms and the residual stream are in float32.
#include "attention_tiles.h"
#include "products.h"
#include "rows.h"
#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

struct Worker {
    const Model& m;
    const Pass& p;
    const Memory& at;
    Barrier& barrier;
    Share share;
    int64_t tokens;

    Worker(const Model& m, const Pass& p, const Memory& at, Barrier& barrier)
        : m(m), p(p), at(at), barrier(barrier), share(at, barrier, omp_get_thread_num(), omp_get_num_threads()),
          tokens(p.batch * p.width) {}

    void wait_for_all() { barrier.wait(share.n); }

    void start() {
        at.mixed.clear_ends(share.from(tokens), share.to(tokens));
        at.inner.clear_ends(share.from(tokens), share.to(tokens));
        for (int64_t b = share.from(p.batch); b < share.to(p.batch); ++b) {
            const int64_t* positions = p.positions + b * p.columns;
            int64_t c = 0;
            while (c < p.end && positions[c] < 0) ++c;
            at.first[b] = c;
            while (c < p.end && positions[c] >= 0) ++c;
            at.dense[b] = c == p.end;
        }
    }

    void norm_to(const Norm& norm, const float* x, Rows to, int64_t row) {
        normalise(norm, x, m.d_model, m.centred, m.eps, [&](int64_t k, vf out) { to.put(row, k, out); });
        to.clear_ends(row, row + 1);
    }

    // What a sub-layer gave joins the stream, through its own norm where it has one.
    void join(const Norm& norm, int64_t row) {
        float *x = p.x + row * m.d_model, *added = at.added + row * m.d_model;
        if (norm.weight)
            normalise(norm, added, m.d_model, m.centred, m.eps, [&](int64_t k, vf out) { store(added + k, out); });
        add_to(x, added, m.d_model);
    }

    void before_attention(int64_t l) {
        for (int64_t row = share.from(tokens); row < share.to(tokens); ++row) {
            if (l) join(m.layers[l - 1].post_mlp, row);
            norm_to(m.layers[l].norm1, p.x + row * m.d_model, at.read, row);
        }
    }

    void before_mlp(const Layer& layer) {
        for (int64_t row = share.from(tokens); row < share.to(tokens); ++row) {
            if (!m.parallel) join(layer.post_attn, row);
            norm_to(layer.norm2, p.x + row * m.d_model, at.read, row);
            if (m.parallel) join(layer.post_attn, row);
        }
    }

    int64_t column_of(int64_t token) const { return p.end - p.width + token % p.width; }

    // Norms and rotation of queries and keys; keys and values go to the cache.
    void place_heads(int64_t l) {
        const Layer& layer = m.layers[l];
        const int64_t d = m.d_head;
        for (int64_t token = share.from(tokens); token < share.to(tokens); ++token) {
            const int64_t b = token / p.width, column = column_of(token);
            const int64_t position = p.positions[b * p.columns + column];
            float* q = at.qkv + token * at.n_qkv;
            const float *cos = p.cos[layer.table], *sin = p.sin[layer.table];
            for (int64_t h = 0; h < m.n_heads + m.n_kv_heads; ++h) {
                const Norm& norm = h < m.n_heads ? layer.q_norm : layer.k_norm;
                float* x = q + h * d;
                if (norm.weight) normalise(norm, x, d, m.centred, m.eps, [&](int64_t k, vf out) { store(x + k, out); });
                const int64_t line = (position < 0 ? 0 : position) * m.rotary_dim;
                if (cos) rotate(x, cos + line, sin + line, m.rotary_dim);
            }
            for (int64_t h = 0; h < m.n_kv_heads; ++h) {
                const int64_t line = (((l * p.batch + b) * m.n_kv_heads + h) * p.capacity + column - p.shared) * d;
                keep(q + (m.n_heads + h) * d, p.keys, line);
                keep(q + (m.n_heads + m.n_kv_heads + h) * d, p.values, line);
            }
        }
    }

    void keep(const float* x, void* cache, int64_t line) {
        for (int64_t k = 0; k < m.d_head; k += LANES) {
            if (m.half) store((uint16_t*)cache + line + k, load(x + k));
            else store((float*)cache + line + k, load(x + k));
        }
    }

    // First column that a token in column to - 1 looks at.
    int64_t first_seen(const Layer& layer, int64_t b, int64_t to) const {
        const int64_t from = at.first[b];
        return at.dense[b] && layer.window && to - layer.window > from ? to - layer.window : from;
    }

    // Keys and values of columns from up to to: those that all rows share, and the row's own.
    template <typename T>
    void find_spans(int64_t l, int64_t b, int64_t h, int64_t from, int64_t to, Span* spans) const {
        const int64_t d = m.d_head, near = from > p.shared ? from : p.shared;
        const int64_t far_line = ((l * m.n_kv_heads + h) * p.shared + from) * d;
        const int64_t line = (((l * p.batch + b) * m.n_kv_heads + h) * p.capacity + near - p.shared) * d;
        const int64_t* positions = at.dense[b] ? nullptr : p.positions + b * p.columns;
        const T *keys = (const T*)p.keys + line, *values = (const T*)p.values + line;
        const T* next = p.width == 1 ? keys + p.capacity * d : nullptr;
        spans[0] = {nullptr, nullptr, 0, nullptr, nullptr};
        spans[1] = {keys, values, near < to ? to - near : 0, positions ? positions + near : nullptr, next};
        if (from < p.shared) {
            const T *far_keys = (const T*)p.far_keys + far_line, *far_values = (const T*)p.far_values + far_line;
            spans[0] = {far_keys, far_values, p.shared - from, positions ? positions + from : nullptr, nullptr};
        }
    }

    void attention(int64_t l) {
        const int64_t group = m.n_heads / m.n_kv_heads;
        if (HAS_TILES && at.read.half && m.d_head % 32 == 0 && m.d_head <= 512 && group <= QUERIES) {
            open_tiles(16);
            // Neighbours share a look at the keys where all of them start with the same one.
            const int64_t together = m.layers[l].window ? 1 : QUERIES / group;
            const int64_t pieces = (p.width + together - 1) / together;
            each_unit(p.batch * pieces * m.n_kv_heads, [&](int64_t unit) {
                const int64_t h = unit % m.n_kv_heads, piece = unit / m.n_kv_heads % pieces, start = piece * together;
                const int64_t b = unit / m.n_kv_heads / pieces, last = start + together;
                const int64_t end = last < p.width ? last : p.width;
                attend_neighbours(l, b, h, b * p.width + start, b * p.width + end);
            });
            open_tiles(tokens);
            return;
        }
        // With few tokens the heads of a group part company, so that every thread gets some.
        const int64_t heads = tokens * m.n_kv_heads < 4 * share.n ? 1 : group, parts = m.n_heads / heads;
        each_unit(tokens * parts, [&](int64_t unit) {
            if (m.half) attend_heads_of<uint16_t>(l, unit / parts, unit % parts * heads, heads);
            else attend_heads_of<float>(l, unit / parts, unit % parts * heads, heads);
        });
    }

    // This thread's units; of a prompt's tokens the later ones take longer, so they are dealt out by turns.
    template <typename Do>
    void each_unit(int64_t units, Do work) {
        if (p.width > 1)
            for (int64_t unit = share.id; unit < units; unit += share.n) work(unit);
        else
            for (int64_t unit = share.from(units); unit < share.to(units); ++unit) work(unit);
    }

    void attend_neighbours(int64_t l, int64_t b, int64_t h, int64_t token, int64_t end) {
        const int64_t d = m.d_head, group = m.n_heads / m.n_kv_heads, to = column_of(end - 1) + 1;
        const int64_t from = first_seen(m.layers[l], b, to);
        Span spans[2];
        find_spans<uint16_t>(l, b, h, from, to, spans);
        Queries queries;
        queries.n = 0;
        for (int64_t t = token; t < end; ++t)
            for (int64_t g = 0; g < group; ++g, ++queries.n) {
                const int64_t column = column_of(t), seen = column + 1 - from;
                queries.at[queries.n] = at.qkv + t * at.n_qkv + (h * group + g) * d;
                queries.keys[queries.n] = seen > 0 ? seen : 0;
                queries.positions[queries.n] = p.positions[b * p.columns + column];
            }
        const AttentionShape shape = {d, 0, m.layers[l].window, m.scale, m.softcap};
        const float* out = attend_tiles(shape, queries, spans, share.scores);
        for (int64_t i = 0; i < queries.n; ++i)
            for (int64_t k = 0; k < d; k += LANES)
                at.mixed.put(token + i / group, (h * group + i % group) * d + k, load(out + i * d + k));
    }

    template <typename T>
    void attend_heads_of(int64_t l, int64_t token, int64_t head, int64_t heads) {
        const int64_t d = m.d_head, b = token / p.width, to = column_of(token) + 1;
        Span spans[2];
        find_spans<T>(l, b, head * m.n_kv_heads / m.n_heads, first_seen(m.layers[l], b, to), to, spans);
        const AttentionShape shape = {d, p.positions[b * p.columns + to - 1], m.layers[l].window, m.scale, m.softcap};
        float *out = (float*)share.scores, *scores = out + m.n_heads * d;
        attend_heads<T>(shape, spans, at.qkv + token * at.n_qkv + head * d, heads, scores, out);
        for (int64_t k = 0; k < heads * d; k += LANES) at.mixed.put(token, head * d + k, load(out + k));
    }

    void finish() {
        for (int64_t row = share.from(tokens); row < share.to(tokens); ++row) {
            join(m.layers[m.n_layers - 1].post_mlp, row);
            float* hidden = p.hidden + row * m.d_model;
            normalise(m.final, p.x + row * m.d_model, m.d_model, m.centred, m.eps, [&](int64_t k, vf out) {
                store(hidden + k, out * m.multiplier);
                at.read.put(row, k, out * m.multiplier);
            });
            at.read.clear_ends(row, row + 1);
        }
    }

    void run() {
        if (at.read.half) open_tiles(tokens);
        start();
        for (int64_t l = 0; l < m.n_layers; ++l) {
            const Layer& layer = m.layers[l];
            before_attention(l);
            wait_for_all();
            multiply(share, &layer.q, 3, at.read, tokens, at.qkv, at.n_qkv);
            wait_for_all();
            place_heads(l);
            wait_for_all();
            attention(l);
            wait_for_all();
            multiply(share, &layer.o, 1, at.mixed, tokens, at.added, m.d_model);
            wait_for_all();
            before_mlp(layer);
            wait_for_all();
            multiply_inner(share, layer, m.activation, m.gated, at.read, tokens, at.inner);
            wait_for_all();
            // In a parallel block what attention gave has joined the stream before.
            multiply(share, &layer.down, 1, at.inner, tokens, at.added, m.d_model);
            wait_for_all();
        }
        finish();
        if (p.logits) {
            wait_for_all();
            unembed();
        }
        if (at.read.half) close_tiles();
    }

    void unembed();

    // Logits of hidden states that are there already.
    void run_unembed() {
        if (at.read.half) open_tiles(tokens);
        for (int64_t row = share.from(tokens); row < share.to(tokens); ++row) {
            for (int64_t k = 0; k < m.d_model; k += LANES) at.read.put(row, k, load(p.hidden + row * m.d_model + k));
            at.read.clear_ends(row, row + 1);
        }
        wait_for_all();
        unembed();
        if (at.read.half) close_tiles();
    }
};

#include "unembed.h"

extern "C" int64_t alignlab_step_memory(const Model* m, const Pass* p) { return Memory(*m, *p).bytes; }

extern "C" int alignlab_step_threads() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

extern "C" int alignlab_step_tiles() { return tiles_allowed(); }

extern "C" void alignlab_step(const Model* m, const Pass* p) {
    const Memory at(*m, *p);
    Barrier barrier;
#pragma omp parallel num_threads(p->threads)
    Worker(*m, *p, at, barrier).run();
}

extern "C" void alignlab_unembed(const Model* m, const Pass* p) {
    const Memory at(*m, *p);
    Barrier barrier;
#pragma omp parallel num_threads(p->threads)
    Worker(*m, *p, at, barrier).run_unembed();
}
