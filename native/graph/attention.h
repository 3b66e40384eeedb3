// Attention of a prompt's observed queries to its cells, computed once more, on the device, in tiles: what methods score with.
#pragma once

#include "graph/runner.h"

#include <map>
#include <tuple>
#include <vector>

struct llama_hparams;

class llama_aircache_attention {
public:
    // numbers of observed queries (cache/observers.h), in the order of the prompt
    using window = std::vector<uint32_t>;

    // a run of a layer's window
    struct tile { uint32_t l; size_t first; size_t n; };

    // keys: enum llama_aircache_keys
    llama_aircache_attention(llama_aircache_runner & runner, llama_seq_id seq, int32_t keys);

    uint32_t n_layer()  const { return air.kv.n_layer(); }
    uint32_t n_visual() const { return prompt.visual.size(); }

    // the last n text tokens
    window last_text(uint32_t n) const;

    // the last n visual tokens; throws llama_aircache_failure when the ring does not hold them
    window last_visual(uint32_t n);

    // attention of the last token to the text alone (docs/method.md, section 1): [n_layer][n_text]
    std::vector<std::vector<float>> last_row() const;

    // For every tile of each layer's window: build(graph, tile, attention) -> output tensor, and take(tile, its data), tiles
    // of a layer in order. attention [n_keys, n, n_head]: keys are the visual tokens, then the text. Each graph computes as
    // many tiles as its limit allows: of masks, and of outputs, which have n_out values a query.
    template <typename F, typename G>
    void for_tiles(const std::vector<window> & windows, size_t n_out, F && build, G && take) const;

    // keys [i0, i0 + n) of an attention
    static ggml_tensor * key_range(ggml_context * ctx, ggml_tensor * att, int64_t i0, int64_t n);

    // sum over queries of weight * mean over heads: [1, n_keys]
    static ggml_tensor * weighted(ggml_context * ctx, ggml_tensor * att, ggml_tensor * weight);

    llama_aircache_runner         & runner;
    llama_aircache                & air;
    const llama_hparams           & hparams;
    const llama_aircache_observer & obs;
    const llama_aircache_zone     & zone;
    const uint32_t                  stream;
    const llama_aircache_prompt     prompt;

private:
    struct inputs { ggml_tensor * keys; ggml_tensor * rows; ggml_tensor * mask; };

    // k [d, n_keys, n_head_kv], q [d, n_queries, n_head], attention [n_keys, n_queries, n_head]
    ggml_tensor * keys     (ggml_context * ctx, uint32_t l, ggml_tensor * idx)  const;
    ggml_tensor * queries  (ggml_context * ctx, uint32_t l, ggml_tensor * rows) const;
    ggml_tensor * attention(ggml_context * ctx, uint32_t l, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask) const;

    llama_aircache_cell query_cell(uint32_t query) const;

    // what a layer's queries attend to: visual cells, then text
    std::vector<llama_aircache_cell> key_cells(const window & win, uint32_t l) const;

    // first cell of the layer's survivors of earlier images
    uint32_t first_old(uint32_t l) const { return zone.empty() ? 0 : zone.start[l]; }

    // runs of each layer's window whose attention [n_keys, n, n_head], there twice while it is summed up, has its limit
    std::vector<tile> tiles(const std::vector<window> & windows) const;

    inputs make_inputs(llama_aircache_graph & graph, const std::vector<llama_aircache_cell> & key, const window & win, const tile & t) const;

    const bool causal;

    std::map<uint32_t, uint32_t> ring_visual; // visual token of a query in the ring
};

template <typename F, typename G>
void llama_aircache_attention::for_tiles(const std::vector<window> & windows, size_t n_out, F && build, G && take) const {
    const auto all = tiles(windows);

    for (size_t i = 0, end; i < all.size(); i = end) {
        llama_aircache_graph graph(runner, 64*n_layer());

        // layers with the same observers share their inputs
        std::map<std::tuple<window, uint32_t, size_t, size_t>, inputs> shared;

        std::vector<ggml_tensor *> outs;

        size_t bytes = 0;
        for (end = i; end < all.size() && end - i < n_layer(); ++end) {
            const auto & t   = all[end];
            const auto & win = windows[t.l];

            const auto id  = std::make_tuple(win, first_old(t.l), t.first, t.n);
            const bool own = !shared.count(id);
            const auto key = own ? key_cells(win, t.l) : std::vector<llama_aircache_cell>();

            bytes += (own*2*key.size() + n_out)*t.n*sizeof(float); // masks stand on the host, too
            if (end > i && bytes > air.tile_bytes) {
                break;
            }
            if (own) {
                shared[id] = make_inputs(graph, key, win, t);
            }

            const auto & in = shared[id];
            auto * ctx = graph.ctx();
            outs.push_back(build(graph, t, attention(ctx, t.l, keys(ctx, t.l, in.keys), queries(ctx, t.l, in.rows), in.mask)));
            graph.output(outs.back());
        }
        graph.run();

        const auto data = graph.read(outs);
        for (size_t j = 0; j < data.size(); ++j) {
            take(all[i + j], data[j]);
        }
    }
}
