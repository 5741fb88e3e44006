// What the Python side hands over: a model, and one pass. The order of the fields is that of structures.py.
#pragma once
#include "matrix.h"

struct Norm {
    const float* weight;  // null: there is no such norm
    const float* bias;
};

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    Norm norm1, norm2, post_attn, post_mlp, q_norm, k_norm;
    int64_t window;  // 0: none
    int64_t table;   // which of the pass's rotary tables
};

struct Model {
    const Layer* layers;
    Matrix head;
    Norm final;
    int64_t n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, rotary_dim;
    int64_t centred, activation, gated, parallel;
    int64_t half;  // weights, keys and values are bfloat16
    int64_t rank;  // the widest of adapters, in whole blocks; 0: there are none
    float eps, scale, softcap, multiplier;
};

struct Pass {
    float* x;                    // (tokens, d_model): embeddings; room for whole tiles of rows
    const int64_t* positions;    // (batch, columns): of every column of the cache, -1 on padding
    void* keys;                  // (layer, batch, kv_head, column - shared, d_head)
    void* values;
    const void* far_keys;        // (layer, kv_head, shared, d_head), or null
    const void* far_values;
    const float* cos[2];         // (position, rotary_dim), of full and of windowed layers
    const float* sin[2];         // with the sign of the rotation
    float* hidden;               // (tokens, d_model)
    float* logits;               // (tokens, vocabulary in whole blocks), room for whole tiles; null: not wanted
    int64_t* best;               // (tokens,): the first largest logit
    float* total;                // (tokens,): log of the sum of their exponentials
    char* scratch;
    int64_t batch, width, columns, shared, end, capacity;  // capacity: columns of keys, without the shared ones
    int64_t tiles, threads;
};
