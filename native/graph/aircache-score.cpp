// Importance of the visual cells: docs/method.md, section 1, and the other windows and key sets of docs/methods.md.
#include "graph/aircache-run.h"

#include "cache/faults.h"
#include "llama-context.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>
#include <unordered_map>

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

    std::unordered_map<uint32_t, uint32_t> ring_visual; // visual token of a slot in the ring

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

    ggml_tensor * queries(ggml_context * ctx, uint32_t l, ggml_tensor * rows) const {
        const int64_t n_head = hparams.n_head(air.layer_il(l));
        ggml_tensor * cur = ggml_get_rows(ctx, air.queries(l), rows); // F32 likewise
        cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
        return ggml_permute(ctx, cur, 0, 2, 1, 3);
    }

    // query heads share the keys of their group
    ggml_tensor * attention(ggml_context * ctx, uint32_t l, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask) const {
        ggml_tensor * cur = ggml_mul_mat(ctx, k, q);
        ggml_prec_set_acc(cur, GGML_PREC_F32);
        return ggml_soft_max_ext(ctx, cur, mask, air.kq_scale[l], 0.0f);
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

    using cell = llama_aircache::cell;

    cell slot_cell(uint32_t slot) const {
        return slot < obs.n_text ? cells.text[slot] : cells.visual[ring_visual.at(slot)];
    }

    // cells: visual, then text
    std::vector<cell> key_cells(const slots_t & window, uint32_t l) const {
        std::vector<cell> res = cells.visual;

        if (method.keys == LLAMA_AIRCACHE_KEYS_CAUSAL) {
            res.insert(res.end(), cells.text.begin(),  cells.text.end());
            res.insert(res.end(), cells.other.begin(), cells.other.end());
            for (uint32_t i = first_old(l); i < zone.end; ++i) {
                res.push_back({ -1, 0, 0, i }); // earlier images: before all of this prompt
            }
        } else {
            for (const uint32_t slot : window) {
                if (slot < obs.n_text) {
                    res.push_back(cells.text[slot]);
                }
            }
        }
        return res;
    }

    // first cell of the layer's survivors of earlier images
    uint32_t first_old(uint32_t l) const { return zone.empty() ? 0 : zone.start[l]; }

    // A run of a layer's window.
    struct tile { uint32_t l; size_t first; size_t n; };

    // Runs of each layer's window whose attention [n_keys, n, n_head], there twice while it is summed up, has its limit.
    std::vector<tile> tiles(const std::vector<slots_t> & windows) const {
        std::vector<tile> res;
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            const size_t n_keys = key_cells(windows[l], l).size();
            const size_t n_max  = air.tile_bytes/(n_keys*2*hparams.n_head(air.layer_il(l))*sizeof(float));
            for (size_t i = 0, n; i < windows[l].size(); i += n) {
                n = std::min(windows[l].size() - i, std::max<size_t>(1, n_max));
                res.push_back({ l, i, n });
            }
        }
        return res;
    }

    //
    // passes over all layers
    //

    // For every tile: build(graph, tile, attention) -> output tensor, and take(tile, its data), tiles of a layer in order.
    // Each graph computes as many tiles as its limit allows: of masks, and of outputs, which have n_out values a query.
    template <typename F, typename G>
    void for_tiles(const std::vector<slots_t> & windows, size_t n_out, F && build, G && take) const {
        struct inputs { ggml_tensor * keys; ggml_tensor * rows; ggml_tensor * mask; };

        const auto all = tiles(windows);

        for (size_t i = 0, end; i < all.size(); i = end) {
            llama_aircache_graph graph(lctx, air, 64*air.n_layer());

            // layers with the same observers share their inputs
            std::map<std::tuple<slots_t, uint32_t, size_t, size_t>, inputs> shared;

            std::vector<ggml_tensor *> outs;

            size_t bytes = 0;
            for (end = i; end < all.size() && end - i < air.n_layer(); ++end) {
                const auto & t   = all[end];
                const auto & win = windows[t.l];

                const auto id  = std::make_tuple(win, first_old(t.l), t.first, t.n);
                const bool own = !shared.count(id);
                const auto key = own ? key_cells(win, t.l) : std::vector<cell>();

                bytes += (own*2*key.size() + n_out)*t.n*sizeof(float); // masks stand on the host, too
                if (end > i && bytes > air.tile_bytes) {
                    break;
                }
                if (own) {
                    shared[id] = make_inputs<inputs>(graph, key, win, t);
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

    template <typename T>
    T make_inputs(llama_aircache_graph & graph, const std::vector<cell> & key, const slots_t & win, const tile & t) const {
        std::vector<uint32_t> ids;
        for (const auto & c : key) {
            ids.push_back(c.i);
        }

        std::vector<uint32_t> rows;
        std::vector<float>    mask; // [n_keys, n]
        mask.reserve(key.size()*t.n);
        for (size_t i = t.first; i < t.first + t.n; ++i) {
            const auto query = slot_cell(win[i]);
            for (const auto & c : key) {
                mask.push_back(c <= query ? 0.0f : -INFINITY);
            }
            rows.push_back(obs.row(win[i]));
        }

        return { graph.input_i32(ids), graph.input_i32(rows), graph.input_f32(mask, key.size(), t.n) };
    }

    // attention of the last token to the text alone (docs/method.md, section 1): [n_layer][n_text]
    std::vector<std::vector<float>> last_row() const {
        llama_aircache_graph graph(lctx, air, 32*air.n_layer());

        std::vector<uint32_t> text;
        for (const auto & c : cells.text) {
            text.push_back(c.i);
        }
        ggml_tensor * idx  = graph.input_i32(text);
        ggml_tensor * slot = graph.input_i32({ obs.row(obs.n_text - 1) });
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

    slots_t last_visual() {
        // the newest entry of a cell counts
        std::unordered_map<uint32_t, uint32_t> slots; // of cells
        for (uint32_t i = obs.n_ring; i-- > 0 && obs.n_ring - i <= obs.n_last;) {
            slots.emplace(obs.last_cell[i % obs.n_last], obs.n_text + i % obs.n_last);
        }

        slots_t res;
        for (uint32_t v = n_visual() - std::min<uint32_t>(method.window_n, n_visual()); v < n_visual(); ++v) {
            const auto at = slots.find(cells.visual[v].i);
            if (at == slots.end()) {
                throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the observed prompt's images were not decoded completely, or twice");
            }
            ring_visual[at->second] = v;
            res.push_back(at->second);
        }
        return res;
    }

    // slots of each layer's observing tokens, ascending; empty: summed up already
    std::vector<slots_t> windows() {
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

    // I [n_layer, n_visual]: mean over the window's queries, or weighted by the attention they receive (TGV-KV)
    void importance(const std::vector<slots_t> & win, bool text_weights, float * scores) const {
        const size_t n_l = air.n_layer();

        std::vector<std::vector<float>> weights(n_l);
        if (text_weights) {
            std::vector<aircache::row> sums(n_l, aircache::row(obs.n_text, 0.0));

            // head mean of the text's own attention: [n_text, n], keys first
            for_tiles(win, obs.n_text, [&](llama_aircache_graph & graph, const tile &, ggml_tensor * att) {
                auto * ctx = graph.ctx();
                ggml_tensor * cur = key_range(ctx, att, n_visual(), obs.n_text);
                return ggml_mean(ctx, ggml_cont(ctx, ggml_permute(ctx, cur, 1, 2, 0, 3)));
            }, [&](const tile & t, const std::vector<float> & att) {
                aircache::add_text_attention(sums[t.l], att.data(), obs.n_text, t.first, t.n);
            });
            for (size_t l = 0; l < n_l; ++l) {
                weights[l] = aircache::text_weights(sums[l]);
            }
        } else {
            for (size_t l = 0; l < n_l; ++l) {
                weights[l].assign(win[l].size(), 1.0f/win[l].size());
            }
        }

        aircache::row sums(n_l*n_visual(), 0.0);

        for_tiles(win, 0, [&](llama_aircache_graph & graph, const tile & t, ggml_tensor * att) {
            const auto w = weights[t.l].begin() + t.first;
            return weighted(graph.ctx(), key_range(graph.ctx(), att, 0, n_visual()), graph.input_f32({ w, w + t.n }, t.n, 1));
        }, [&](const tile & t, const std::vector<float> & part) {
            for (uint32_t v = 0; v < n_visual(); ++v) {
                sums[t.l*n_visual() + v] += part[v];
            }
        });

        std::copy(sums.begin(), sums.end(), scores);
    }

    // WINDOW_ALL: the sums that the prefill left behind
    void summed(float * scores) const {
        std::vector<float> sums(air.n_cells());
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

        std::fill(alive, alive + air.n_layer(), 0.0);

        for_tiles(win, hparams.n_head(air.layer_il(0)), [&](llama_aircache_graph & graph, const tile &, ggml_tensor * att) {
            auto * ctx = graph.ctx();
            ggml_tensor * cur = ggml_cont(ctx, key_range(ctx, att, 0, n_visual()));
            cur = ggml_reshape_2d(ctx, cur, cur->ne[0], cur->ne[1]*cur->ne[2]);
            ggml_tensor * max = ggml_pool_2d(ctx, cur, GGML_OP_POOL_MAX, n_visual(), 1, n_visual(), 1, 0, 0); // [1, n_rows]
            cur = ggml_step(ctx, ggml_scale_bias(ctx, ggml_div(ctx, cur, max), 1.0f, -0.01f));
            return ggml_sum_rows(ctx, cur);
        }, [&](const tile & t, const std::vector<float> & rows) {
            alive[t.l] += std::accumulate(rows.begin(), rows.end(), 0.0); // whole numbers
        });

        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            alive[l] /= hparams.n_head(air.layer_il(l));
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
        if (alive && method.allocation == LLAMA_AIRCACHE_ALLOC_VL) {
            count_alive(alive);
        } else if (alive) {
            std::fill(alive, alive + n_l, 0.0);
        }
        if (method.score == LLAMA_AIRCACHE_SCORE_RANDOM) {
            return aircache::random_scores(scores, n_l, n_v, method.seed);
        }
        if (method.score == LLAMA_AIRCACHE_SCORE_STRIDE) {
            return aircache::stride_scores(scores, n_l, n_v);
        }

        if (method.window == LLAMA_AIRCACHE_WINDOW_ALL) {
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
    air.check_needs(seq, method);

    const llama_aircache_scratch scratch = { air };

    scorer sc = {
        lctx, air, lctx->get_model().hparams, *air.observer(seq), air.zone(air.stream(seq)), air.stream(seq), method, air.cells(seq), {},
    };
    sc.run(scores, observers, alive);
}
