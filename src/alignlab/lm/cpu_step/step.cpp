// One pass of a decoder-only transformer over the new tokens of each row: one parallel region with a barrier between
// phases; sums, norms and the residual stream are in float32.
#include "attention.h"
#include "products.h"
#include "rows.h"
#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

static void wait_for_all() {
#pragma omp barrier
}

struct Worker {
    const Model& m;
    const Pass& p;
    const Memory& at;
    Share share;
    int64_t tokens;

    Worker(const Model& m, const Pass& p, const Memory& at)
        : m(m), p(p), at(at), share(at, omp_get_thread_num(), omp_get_num_threads()), tokens(p.batch * p.width) {}

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
        if (norm.weight) normalise(norm, added, m.d_model, m.centred, m.eps, [&](int64_t k, vf out) { store(added + k, out); });
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
            const int64_t b = token / p.width, column = column_of(token), position = p.positions[b * p.columns + column];
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

    void attention(int64_t l) {
        // With few tokens the heads of a group part company, so that every thread gets some.
        const int64_t group = m.n_heads / m.n_kv_heads;
        const int64_t heads = tokens * m.n_kv_heads < 4 * share.n ? 1 : group, units = tokens * m.n_heads / heads;
        for (int64_t unit = share.id; unit < units; unit += share.n) {
            const int64_t token = unit / (m.n_heads / heads), head = unit % (m.n_heads / heads) * heads;
            if (m.half) attend_unit<uint16_t>(l, token, head, heads);
            else attend_unit<float>(l, token, head, heads);
        }
    }

    template <typename T>
    void attend_unit(int64_t l, int64_t token, int64_t head, int64_t heads) {
        const int64_t d = m.d_head, b = token / p.width, h = head * m.n_kv_heads / m.n_heads, to = column_of(token) + 1;
        const int64_t* positions = p.positions + b * p.columns;
        const AttentionShape shape = {d, positions[to - 1], m.layers[l].window, m.scale, m.softcap};
        int64_t from = at.first[b];
        if (at.dense[b] && shape.window && to - shape.window > from) from = to - shape.window;
        const int64_t near = from > p.shared ? from : p.shared;
        const T* far_keys = (const T*)p.far_keys + ((l * m.n_kv_heads + h) * p.shared + from) * d;
        const T* far_values = (const T*)p.far_values + ((l * m.n_kv_heads + h) * p.shared + from) * d;
        const int64_t line = (((l * p.batch + b) * m.n_kv_heads + h) * p.capacity + near - p.shared) * d;
        const Span spans[2] = {
            {far_keys, far_values, from < p.shared ? p.shared - from : 0, at.dense[b] ? nullptr : positions + from},
            {(const T*)p.keys + line, (const T*)p.values + line, near < to ? to - near : 0, at.dense[b] ? nullptr : positions + near},
        };
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

extern "C" int alignlab_step_tiles() { return tiles_allowed(); }

extern "C" void alignlab_step(const Model* m, const Pass* p) {
    const Memory at(*m, *p);
#pragma omp parallel num_threads(p->threads)
    Worker(*m, *p, at).run();
}

extern "C" void alignlab_unembed(const Model* m, const Pass* p) {
    const Memory at(*m, *p);
#pragma omp parallel num_threads(p->threads)
    Worker(*m, *p, at).run_unembed();
}
