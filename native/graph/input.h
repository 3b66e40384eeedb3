// What AirCache adds to a model's graph: per-layer masks once a cache is compressed, and the recording of queries while a
// prompt is observed. Owned by llm_graph_input_attn_kv; absent (null) when neither is the case.
#pragma once

#include "llama-graph.h"
#include "llama-kv-cache.h"

#include <memory>
#include <vector>

class llama_aircache;
struct llama_aircache_observer;

class llm_graph_input_aircache {
public:
    static std::shared_ptr<llm_graph_input_aircache> build(
            ggml_context * ctx, ggml_cgraph * gf, const llama_ubatch & ubatch,
            const llama_kv_cache_context * mctx, ggml_tensor * kq_mask);

    // The most nodes and leaves that build() and observe() add to a graph, whatever the ubatch: a context's graphs and its
    // scheduler are made for a fixed number of them. memory: the context's, possibly null.
    static uint32_t max_nodes(const llama_memory_i * memory);

    // would build() give the same nodes again? self: what it gave for the graph at hand, possibly null
    static bool can_reuse(const llm_graph_input_aircache * self, const llama_kv_cache_context * mctx, const llama_ubatch & ubatch);

    // kq_mask: the common mask, filled already
    void set_input(const llama_ubatch * ubatch, const llama_kv_cache_context * mctx, const ggml_tensor * kq_mask);

    // layer il's mask: a part of the common one, less what the layer does not hold
    ggml_tensor * kq_mask(ggml_tensor * kq_mask, int il) const;

    // store q of the observed tokens, or sum up their attention
    // q [head size, n_head, n_tokens], k [head size, n_head_kv, n_kv - i0, 1] as they meet, mask: of the layer
    void observe(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * q, ggml_tensor * k, ggml_tensor * mask, float kq_scale, int il);

private:
    // layers with the same unused cells share a mask
    struct group {
        std::vector<uint32_t> start;  // [n_stream of the ubatch]
        int32_t               hidden; // layer whose hidden cells count (mask-only mode), or -1
        uint32_t              i0;     // first cell of the view
        ggml_tensor         * mask;   // [n_kv - i0, n_tokens/n_stream, 1, n_stream]

        int64_t       offset = 0;       // filled on the host: the group's mask in masks, in elements
        ggml_tensor * bias   = nullptr; // made on the device: [n_kv - i0, 1, 1, n_stream], -inf for [i0, start); null: none
    };

    void build_masks       (ggml_context * ctx, ggml_cgraph * gf, const llama_kv_cache_context * mctx, ggml_tensor * kq_mask);
    void build_host_masks  (ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * kq_mask);
    void build_device_masks(ggml_context * ctx, ggml_tensor * kq_mask);

    template <typename T>
    void fill_biases(T drop);

    template <typename T>
    void fill_masks(const llama_kv_cache_context * mctx, const ggml_tensor * kq_mask, T drop);

    llama_aircache * air     = nullptr;
    uint64_t         version = 0;

    std::vector<group>   groups;      // at most one a layer
    std::vector<int32_t> layer_group; // [n_layer]

    ggml_tensor * masks = nullptr; // host-filled groups' masks, one after the other (one upload for all layers)

    // null: no query of this ubatch is wanted
    ggml_tensor * tokens = nullptr; // I32 [n_queries] tokens of the ubatch
    ggml_tensor * rows   = nullptr; // I64 [n_queries] rows of the query buffers, each once

    // null: no attention of this ubatch is summed up
    ggml_tensor * weights = nullptr; // F32 [n_tokens] 1 where it counts

    llama_aircache_observer * sum = nullptr; // whose; with another one the version is another
    int64_t n_stream   = 1; // of the ubatch, each with equally many tokens
    int64_t sum_stream = 0; // which of them is the observer's
};
