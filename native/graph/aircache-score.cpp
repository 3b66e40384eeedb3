// Importance of the visual cells: method section 1, and the other windows and key sets of docs/methods.md.
#include "graph/aircache-run.h"

#include "cache/faults.h"
#include "llama-context.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

namespace {

using slots_t = std::vector<uint32_t>; // slots of observed queries

struct scorer {
    llama_context  * lctx;
    llama_aircache & air;

    const llama_hparams             & hparams;
    const llama_aircache_observer   & obs;
    const llama_aircache_zone       & zone;
    const uint32_t                    stream;
    const llama_aircache_method     & method;
    const llama_aircache::cell_list   cells;

    uint32_t n_visual() const { return cells.visual.size(); }

    //
    // graph pieces; k [d, n_keys, n_head_kv], q [d, n_queries, n_head], attention [n_keys, n_queries, n_head]
    //

    ggml_tensor * keys(ggml_context * ctx, uint32_t l, ggml_tensor * idx) const {
        const int64_t n_head = hparams.n_head_kv(air.layer_il(l));
        ggml_tensor * cur = ggml_get_rows(ctx, air.k(l, stream), idx); // F32 whatever the cache's type
        cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
        return ggml_permute(ctx, cur, 0, 2, 1, 3);
    }

    ggml_tensor * queries(ggml_context * ctx, uint32_t l, ggml_tensor * slots) const {
        const int64_t n_head = hparams.n_head(air.layer_il(l));
        ggml_tensor * cur = ggml_get_rows(ctx, obs.q[l], slots);
        cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
        return ggml_permute(ctx, cur, 0, 2, 1, 3);
    }

    // query heads share the keys of their group
    ggml_tensor * attention(ggml_context * ctx, uint32_t l, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask) const {
        ggml_tensor * cur = ggml_mul_mat(ctx, k, q);
        ggml_prec_set_acc(cur, GGML_PREC_F32);
        return ggml_soft_max_ext(ctx, cur, mask, obs.kq_scale[l], 0.0f);
    }

    static ggml_tensor * key_range(ggml_context * ctx, ggml_tensor * att, int64_t i0, int64_t n) {
        return ggml_view_3d(ctx, att, n, att->ne[1], att->ne[2], att->nb[1], att->nb[2], i0*att->nb[0]);
    }

    // sum over queries of weight * mean over heads: [1, n_keys]
    static ggml_tensor * weighted(ggml_context * ctx, ggml_tensor * att, ggml_tensor * weight) {
        const int64_t n_keys = att->ne[0];
        const int64_t n_head = att->ne[2];

        ggml_tensor * cur = ggml_cont(ctx, ggml_permute(ctx, att, 1, 0, 2, 3));
        cur = ggml_mul_mat(ctx, ggml_reshape_2d(ctx, cur, cur->ne[0], n_keys*n_head), weight);
        ggml_prec_set_acc(cur, GGML_PREC_F32);
        cur = ggml_cont(ctx, ggml_transpose(ctx, ggml_reshape_2d(ctx, cur, n_keys, n_head)));
        return ggml_mean(ctx, cur);
    }

    //
    // what a layer's queries attend to
    //

    struct problem {
        std::vector<uint32_t> keys; // cells: visual, then text
        std::vector<float>    mask; // [n_keys, n_queries]
    };

    llama_aircache::cell slot_cell(uint32_t slot) const {
        if (slot < obs.n_text) {
            return cells.text[slot];
        }
        const uint32_t i = obs.last_cell[slot - obs.n_text];
        return *std::find_if(cells.visual.begin(), cells.visual.end(), [i](const auto & c) { return c.i == i; });
    }

    problem make_problem(const slots_t & slots, uint32_t l) const {
        std::vector<llama_aircache::cell> key = cells.visual;

        if (method.keys == LLAMA_AIRCACHE_KEYS_CAUSAL) {
            key.insert(key.end(), cells.text.begin(),  cells.text.end());
            key.insert(key.end(), cells.other.begin(), cells.other.end());
            for (uint32_t i = zone.empty() ? 0 : zone.start[l]; i < zone.end; ++i) {
                key.push_back({ -1, 0, 0, i }); // earlier images: before all of this prompt
            }
        } else {
            for (const uint32_t slot : slots) {
                if (slot < obs.n_text) {
                    key.push_back(cells.text[slot]);
                }
            }
        }

        problem res;
        for (const auto & c : key) {
            res.keys.push_back(c.i);
        }
        res.mask.reserve(key.size()*slots.size());
        for (const uint32_t slot : slots) {
            const auto query = slot_cell(slot);
            for (const auto & c : key) {
                res.mask.push_back(c <= query ? 0.0f : -INFINITY);
            }
        }
        return res;
    }

    //
    // passes over all layers
    //

    // build(graph, l, inputs) -> output tensor of layer l
    struct inputs { ggml_tensor * keys; ggml_tensor * slots; ggml_tensor * mask; };

    template <typename F>
    std::vector<std::vector<float>> for_layers(const std::vector<slots_t> & windows, F && build) const {
        llama_aircache_graph graph(lctx, air, 64*air.n_layer());

        // layers with the same observers share their inputs
        std::map<std::pair<slots_t, uint32_t>, inputs> shared;

        std::vector<ggml_tensor *> outs;
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            const auto id = std::make_pair(windows[l], zone.empty() ? 0 : zone.start[l]);

            auto it = shared.find(id);
            if (it == shared.end()) {
                const auto p = make_problem(windows[l], l);
                it = shared.emplace(id, inputs {
                    graph.input_i32(p.keys), graph.input_i32(windows[l]), graph.input_f32(p.mask, p.keys.size(), windows[l].size()),
                }).first;
            }

            auto * ctx = graph.ctx();
            ggml_tensor * att = attention(ctx, l, keys(ctx, l, it->second.keys), queries(ctx, l, it->second.slots), it->second.mask);
            outs.push_back(build(graph, l, att));
            graph.output(outs.back());
        }
        graph.run();

        return graph.read(outs);
    }

    // attention of the last token to the text alone (method section 1): [n_layer][n_text]
    std::vector<std::vector<float>> last_row() const {
        llama_aircache_graph graph(lctx, air, 32*air.n_layer());

        std::vector<uint32_t> text;
        for (const auto & c : cells.text) {
            text.push_back(c.i);
        }
        ggml_tensor * idx  = graph.input_i32(text);
        ggml_tensor * slot = graph.input_i32({ obs.n_text - 1 });
        ggml_tensor * one  = graph.input_f32({ 1.0f }, 1, 1);

        std::vector<ggml_tensor *> outs;
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            auto * ctx = graph.ctx();
            outs.push_back(weighted(ctx, attention(ctx, l, keys(ctx, l, idx), queries(ctx, l, slot), nullptr), one));
            graph.output(outs.back());
        }
        graph.run();

        return graph.read(outs);
    }

    slots_t last_text(uint32_t n) const {
        slots_t res(std::min(n, obs.n_text));
        std::iota(res.begin(), res.end(), obs.n_text - res.size());
        return res;
    }

    slots_t last_visual() const {
        const uint32_t n = std::min<uint32_t>(method.window_n, n_visual());
        slots_t res;
        for (auto c = cells.visual.end() - n; c != cells.visual.end(); ++c) {
            const auto at = std::find(obs.last_cell.begin(), obs.last_cell.end(), c->i);
            if (at == obs.last_cell.end()) {
                throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the last visual tokens were not observed with this window");
            }
            res.push_back(obs.n_text + (at - obs.last_cell.begin()));
        }
        return res;
    }

    // slots of each layer's observing tokens, ascending; empty: summed up already
    std::vector<slots_t> windows() const {
        switch (method.window) {
            case LLAMA_AIRCACHE_WINDOW_LAST:   return std::vector<slots_t>(air.n_layer(), last_text(method.window_n));
            case LLAMA_AIRCACHE_WINDOW_TEXT:   return std::vector<slots_t>(air.n_layer(), last_text(obs.n_text));
            case LLAMA_AIRCACHE_WINDOW_VISUAL: return std::vector<slots_t>(air.n_layer(), last_visual());
            case LLAMA_AIRCACHE_WINDOW_ALL:    return std::vector<slots_t>(air.n_layer());
            default: break;
        }

        const uint8_t * excluded = method.elite_content && !obs.is_template.empty() ? obs.is_template.data() : nullptr;

        std::vector<slots_t> res;
        for (const auto & att : last_row()) {
            res.push_back(aircache::elite(att.data(), att.size(), method.alpha, excluded, method.elite_last));
        }
        return res;
    }

    void store(const std::vector<std::vector<float>> & values, float * scores) const {
        for (const auto & v : values) {
            scores = std::copy(v.begin(), v.begin() + n_visual(), scores);
        }
    }

    // I [n_layer, n_visual]: mean over the window's queries, or weighted by the attention they receive (TGV-KV)
    void importance(const std::vector<slots_t> & win, bool text_weights, float * scores) const {
        std::vector<std::vector<float>> weights;
        if (text_weights) {
            // head mean of the text's own attention: [n_text, n_text], keys first
            const auto att = for_layers(win, [&](llama_aircache_graph & graph, uint32_t, ggml_tensor * att) {
                auto * ctx = graph.ctx();
                ggml_tensor * cur = key_range(ctx, att, n_visual(), obs.n_text);
                return ggml_mean(ctx, ggml_cont(ctx, ggml_permute(ctx, cur, 1, 2, 0, 3)));
            });
            for (const auto & a : att) {
                weights.push_back(aircache::text_weights(a.data(), obs.n_text));
            }
        }

        store(for_layers(win, [&](llama_aircache_graph & graph, uint32_t l, ggml_tensor * att) {
            const size_t n = win[l].size();
            const auto   w = text_weights ? weights[l] : std::vector<float>(n, 1.0f/n);
            return weighted(graph.ctx(), key_range(graph.ctx(), att, 0, n_visual()), graph.input_f32(w, n, 1));
        }), scores);
    }

    // WINDOW_ALL: the sums that the prefill left behind
    void summed(float * scores) const {
        std::vector<float> sums(obs.sums[0]->ne[0]);
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            if (llama_aircache_fault("get")) {
                throw std::runtime_error("a backend failed to return a result");
            }
            ggml_backend_tensor_get(obs.sums[l], sums.data(), 0, ggml_nbytes(obs.sums[l]));
            for (const auto & c : cells.visual) {
                *scores++ = sums[c.i];
            }
        }
    }

    // VL-Cache: attention entries of the text to visual tokens that reach 1 % of their row's maximum, mean over heads
    void count_alive(double * alive) const {
        const std::vector<slots_t> win(air.n_layer(), last_text(obs.n_text));

        const auto rows = for_layers(win, [&](llama_aircache_graph & graph, uint32_t, ggml_tensor * att) {
            auto * ctx = graph.ctx();
            ggml_tensor * cur = ggml_cont(ctx, key_range(ctx, att, 0, n_visual()));
            cur = ggml_reshape_2d(ctx, cur, cur->ne[0], cur->ne[1]*cur->ne[2]);
            ggml_tensor * max = ggml_pool_2d(ctx, cur, GGML_OP_POOL_MAX, n_visual(), 1, n_visual(), 1, 0, 0); // [1, n_rows]
            cur = ggml_step(ctx, ggml_scale_bias(ctx, ggml_div(ctx, cur, max), 1.0f, -0.01f));
            return ggml_sum_rows(ctx, cur);
        });

        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            alive[l] = std::accumulate(rows[l].begin(), rows[l].end(), 0.0)/hparams.n_head(air.layer_il(l));
        }
    }

    std::vector<aircache::run> runs() const {
        std::vector<aircache::run> res;
        int32_t first = 0;
        for (size_t i = 0; i < obs.spans.size(); ++i) {
            const int32_t nx = obs.spans[i].nx;
            if (method.pool && method.pool_2d && (nx < 1 || cells.n_visual[i] % nx != 0)) {
                throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED, "2-D pooling needs images whose tokens form a grid");
            }
            res.push_back({ first, cells.n_visual[i], nx });
            first += cells.n_visual[i];
        }
        return res;
    }

    void run(float * scores, uint8_t * observers, double * alive) {
        const int32_t n_l = air.n_layer();
        const int32_t n_v = n_visual();

        if (observers) {
            std::fill(observers, observers + (size_t) n_l*obs.n_text, 0);
        }
        if (alive) {
            count_alive(alive);
        }
        if (method.score == LLAMA_AIRCACHE_SCORE_RANDOM) {
            return aircache::random_scores(scores, n_l, n_v, method.seed);
        }
        if (method.score == LLAMA_AIRCACHE_SCORE_STRIDE) {
            return aircache::stride_scores(scores, n_l, n_v);
        }

        if (method.window == LLAMA_AIRCACHE_WINDOW_ALL) {
            if (!obs.sum) {
                throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the prompt was not observed with the window of all tokens");
            }
            summed(scores);
        } else {
            const auto win = windows();
            importance(win, method.text_weights, scores);
            for (int32_t l = 0; observers && l < n_l; ++l) {
                for (const uint32_t slot : win[l]) {
                    if (slot < obs.n_text) {
                        observers[(size_t) l*obs.n_text + slot] = 1;
                    }
                }
            }
        }

        if (method.last_term > 0.0) {
            std::vector<float> last((size_t) n_l*n_v);
            importance(std::vector<slots_t>(n_l, last_text(1)), false, last.data());
            aircache::add_last_term(scores, last.data(), n_l, n_v, runs(), method.last_term);
        }
        if (method.pool != LLAMA_AIRCACHE_POOL_NONE) {
            aircache::pool(scores, n_l, n_v, runs(), method.pool == LLAMA_AIRCACHE_POOL_MAX, method.pool_size, method.pool_2d);
        }
        if (method.value_norm || method.diversity) {
            llama_aircache_run_features(lctx, air, stream, cells.visual, method, scores);
        }
    }
};

} // namespace

void llama_aircache_run_score(llama_context * lctx, llama_aircache & air, llama_seq_id seq,
        const llama_aircache_method & method, float * scores, uint8_t * observers, double * alive) {
    air.check_complete(seq);

    scorer sc = {
        lctx, air, lctx->get_model().hparams, *air.observer(seq), air.zone(air.stream(seq)), air.stream(seq), method, air.cells(seq),
    };
    sc.run(scores, observers, alive);
}
