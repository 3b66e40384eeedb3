#include "graph/attention.h"

#include "cache/failure.h"
#include "llama-hparams.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

llama_aircache_attention::llama_aircache_attention(llama_aircache_runner & runner, llama_seq_id seq, int32_t keys) :
    runner(runner), air(runner.air), hparams(air.kv.hparams()), obs(*air.observers.find(seq)), zone(air.zone(air.kv.stream(seq))),
    stream(air.kv.stream(seq)), prompt(air, seq), causal(keys == LLAMA_AIRCACHE_KEYS_CAUSAL) {
}

//
// windows
//

llama_aircache_attention::window llama_aircache_attention::last_text(uint32_t n) const {
    window res(std::min(n, obs.n_text));
    std::iota(res.begin(), res.end(), obs.n_text - res.size());
    return res;
}

llama_aircache_attention::window llama_aircache_attention::last_visual(uint32_t n) {
    // the newest entry of a cell counts
    std::unordered_map<uint32_t, uint32_t> queries; // of cells
    for (uint32_t i = obs.n_ring; i-- > 0 && obs.n_ring - i <= obs.n_last;) {
        queries.emplace(obs.last_cell[i % obs.n_last], obs.n_text + i % obs.n_last);
    }

    window res;
    for (uint32_t v = n_visual() - std::min(n, n_visual()); v < n_visual(); ++v) {
        const auto at = queries.find(prompt.visual[v].i);
        if (at == queries.end()) {
            throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the observed prompt's images were not decoded completely, or twice");
        }
        ring_visual[at->second] = v;
        res.push_back(at->second);
    }
    return res;
}

llama_aircache_cell llama_aircache_attention::query_cell(uint32_t query) const {
    return query < obs.n_text ? prompt.text[query] : prompt.visual[ring_visual.at(query)];
}

std::vector<llama_aircache_cell> llama_aircache_attention::key_cells(const window & win, uint32_t l) const {
    std::vector<llama_aircache_cell> res = prompt.visual;

    if (causal) {
        res.insert(res.end(), prompt.text.begin(),  prompt.text.end());
        res.insert(res.end(), prompt.other.begin(), prompt.other.end());
        for (uint32_t i = first_old(l); i < zone.end; ++i) {
            res.push_back({ -1, 0, 0, i }); // earlier images: before all of this prompt
        }
    } else {
        for (const uint32_t query : win) {
            if (query < obs.n_text) {
                res.push_back(prompt.text[query]);
            }
        }
    }
    return res;
}

std::vector<llama_aircache_attention::tile> llama_aircache_attention::tiles(const std::vector<window> & windows) const {
    std::vector<tile> res;
    for (uint32_t l = 0; l < n_layer(); ++l) {
        const size_t n_keys = key_cells(windows[l], l).size();
        const size_t n_max  = air.tile_bytes/(n_keys*2*hparams.n_head(air.kv.layer_il(l))*sizeof(float));
        for (size_t i = 0, n; i < windows[l].size(); i += n) {
            n = std::min(windows[l].size() - i, std::max<size_t>(1, n_max));
            res.push_back({ l, i, n });
        }
    }
    return res;
}

//
// graph pieces
//

ggml_tensor * llama_aircache_attention::keys(ggml_context * ctx, uint32_t l, ggml_tensor * idx) const {
    const int64_t n_head = hparams.n_head_kv(air.kv.layer_il(l));
    ggml_tensor * cur = ggml_get_rows(ctx, air.kv.k(l, stream), idx); // F32 whatever the cache's type
    cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
    return ggml_permute(ctx, cur, 0, 2, 1, 3);
}

ggml_tensor * llama_aircache_attention::queries(ggml_context * ctx, uint32_t l, ggml_tensor * rows) const {
    const int64_t n_head = hparams.n_head(air.kv.layer_il(l));
    ggml_tensor * cur = ggml_get_rows(ctx, air.observers.queries(l), rows); // F32 likewise
    cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
    return ggml_permute(ctx, cur, 0, 2, 1, 3);
}

// query heads share the keys of their group
ggml_tensor * llama_aircache_attention::attention(ggml_context * ctx, uint32_t l, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask) const {
    ggml_tensor * cur = ggml_mul_mat(ctx, k, q);
    ggml_prec_set_acc(cur, GGML_PREC_F32);
    return ggml_soft_max_ext(ctx, cur, mask, air.observers.kq_scale[l], 0.0f);
}

ggml_tensor * llama_aircache_attention::key_range(ggml_context * ctx, ggml_tensor * att, int64_t i0, int64_t n) {
    return ggml_view_3d(ctx, att, n, att->ne[1], att->ne[2], att->nb[1], att->nb[2], i0*att->nb[0]);
}

ggml_tensor * llama_aircache_attention::weighted(ggml_context * ctx, ggml_tensor * att, ggml_tensor * weight) {
    const int64_t n_keys = att->ne[0];
    const int64_t n_head = att->ne[2];

    ggml_tensor * cur = ggml_cont(ctx, ggml_permute(ctx, att, 1, 0, 2, 3));
    cur = ggml_mul_mat(ctx, ggml_reshape_2d(ctx, cur, cur->ne[0], n_keys*n_head), weight);
    ggml_prec_set_acc(cur, GGML_PREC_F32);
    cur = ggml_cont(ctx, ggml_transpose(ctx, ggml_reshape_2d(ctx, cur, n_keys, n_head)));
    return ggml_mean(ctx, cur);
}

llama_aircache_attention::inputs llama_aircache_attention::make_inputs(llama_aircache_graph & graph,
        const std::vector<llama_aircache_cell> & key, const window & win, const tile & t) const {
    std::vector<uint32_t> ids;
    for (const auto & c : key) {
        ids.push_back(c.i);
    }

    std::vector<uint32_t> rows;
    std::vector<float>    mask; // [n_keys, n]
    mask.reserve(key.size()*t.n);
    for (size_t i = t.first; i < t.first + t.n; ++i) {
        const auto query = query_cell(win[i]);
        for (const auto & c : key) {
            mask.push_back(c <= query ? 0.0f : -INFINITY);
        }
        rows.push_back(obs.row(win[i]));
    }

    return { graph.input_i32(ids), graph.input_i32(rows), graph.input_f32(mask, key.size(), t.n) };
}

std::vector<std::vector<float>> llama_aircache_attention::last_row() const {
    llama_aircache_graph graph(runner, 32*n_layer());

    std::vector<uint32_t> text;
    for (const auto & c : prompt.text) {
        text.push_back(c.i);
    }
    ggml_tensor * idx = graph.input_i32(text);
    ggml_tensor * row = graph.input_i32({ obs.row(obs.n_text - 1) });
    ggml_tensor * one = graph.input_f32({ 1.0f }, 1, 1);

    std::vector<ggml_tensor *> outs;
    for (uint32_t l = 0; l < n_layer(); ++l) {
        auto * ctx = graph.ctx();
        outs.push_back(weighted(ctx, attention(ctx, l, keys(ctx, l, idx), queries(ctx, l, row), nullptr), one));
        graph.output(outs.back());
    }
    graph.run();

    return graph.read(outs);
}
