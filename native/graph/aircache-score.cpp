// Importance of the visual cells: method section 1.
#include "graph/aircache-run.h"

#include "llama-context.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

// keys of some cells, in F32 whatever the cache's type: [head size, n_cells, n_head_kv]
static ggml_tensor * keys(ggml_context * ctx, ggml_tensor * k, ggml_tensor * cells, int64_t n_head_kv) {
    ggml_tensor * cur = ggml_get_rows(ctx, k, cells);
    cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head_kv, n_head_kv, cur->ne[1]);
    return ggml_permute(ctx, cur, 0, 2, 1, 3);
}

// queries of some slots: [head size, n_slots, n_head]
static ggml_tensor * queries(ggml_context * ctx, ggml_tensor * q, ggml_tensor * slots, int64_t n_head) {
    ggml_tensor * cur = ggml_get_rows(ctx, q, slots);
    cur = ggml_reshape_3d(ctx, cur, cur->ne[0]/n_head, n_head, cur->ne[1]);
    return ggml_permute(ctx, cur, 0, 2, 1, 3);
}

// mean over queries and heads of softmax(q k^T * scale + mask): [1, n_cells]
// k [d, n_cells, n_head_kv], q [d, n_q, n_head], mask [n_cells, n_q] or null
static ggml_tensor * attention_mean(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask, float scale) {
    ggml_tensor * cur = ggml_mul_mat(ctx, k, q); // [n_cells, n_q, n_head]; query heads share the keys of their group
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    cur = ggml_soft_max_ext(ctx, cur, mask, scale, 0.0f);
    cur = ggml_reshape_2d(ctx, cur, cur->ne[0], cur->ne[1]*cur->ne[2]);
    cur = ggml_cont(ctx, ggml_transpose(ctx, cur));

    return ggml_mean(ctx, cur);
}

namespace {

struct scorer {
    llama_context  * lctx;
    llama_aircache & air;

    const llama_hparams           & hparams;
    const llama_aircache_observer & obs;
    const uint32_t                  stream;

    const std::vector<uint32_t> visual; // cells, in token order
    const std::vector<uint32_t> text;   // cells, by slot
    std::vector<uint32_t>       n_before; // [n_text] visual tokens before the text token

    // att [n_layer][n_text]: attention of the prompt's last token to the text
    std::vector<std::vector<float>> last_row() {
        llama_aircache_graph graph(lctx, air, 32*air.n_layer());

        ggml_tensor * cells = graph.input_i32(text);
        ggml_tensor * slot  = graph.input_i32({ obs.n_slots - 1 });

        std::vector<ggml_tensor *> outs;
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            const uint32_t il = air.layer_il(l);
            ggml_tensor * k = keys   (graph.ctx(), air.k(l, stream), cells, hparams.n_head_kv(il));
            ggml_tensor * q = queries(graph.ctx(), obs.q[l],         slot,  hparams.n_head(il));
            outs.push_back(attention_mean(graph.ctx(), k, q, nullptr, obs.kq_scale[l]));
            graph.output(outs.back());
        }
        graph.run();

        std::vector<std::vector<float>> res;
        for (auto * t : outs) {
            res.emplace_back(text.size());
            ggml_backend_tensor_get(t, res.back().data(), 0, ggml_nbytes(t));
        }
        return res;
    }

    // slots of each layer's observing tokens, ascending
    std::vector<std::vector<uint32_t>> windows(const llama_aircache_method & method) {
        std::vector<std::vector<uint32_t>> res;

        if (method.window == LLAMA_AIRCACHE_WINDOW_ELITE) {
            for (const auto & att : last_row()) {
                const auto slots = aircache::elite(att.data(), att.size(), method.alpha);
                res.emplace_back(slots.begin(), slots.end());
            }
            return res;
        }

        const uint32_t n = method.window == LLAMA_AIRCACHE_WINDOW_TEXT ? obs.n_slots : std::min<uint32_t>(obs.n_slots, method.window_n);

        std::vector<uint32_t> slots(n);
        std::iota(slots.begin(), slots.end(), obs.n_slots - n);
        res.assign(air.n_layer(), slots);
        return res;
    }

    // [n_visual + n_slots, n_slots]: a token sees the visual tokens before it and the observing ones up to itself
    std::vector<float> causal_mask(const std::vector<uint32_t> & slots) const {
        const size_t n_v = visual.size();
        const size_t n_k = n_v + slots.size();

        std::vector<float> res(n_k*slots.size(), 0.0f);
        for (size_t e = 0; e < slots.size(); ++e) {
            float * row = res.data() + e*n_k;
            std::fill(row + n_before[slots[e]], row + n_v, -INFINITY);
            std::fill(row + n_v + e + 1,        row + n_k, -INFINITY);
        }
        return res;
    }

    void importance(const std::vector<std::vector<uint32_t>> & windows, float * scores) {
        llama_aircache_graph graph(lctx, air, 48*air.n_layer());

        // layers with the same observers share their inputs
        struct inputs { ggml_tensor * cells; ggml_tensor * slots; ggml_tensor * mask; };
        std::map<std::vector<uint32_t>, inputs> shared;

        std::vector<ggml_tensor *> outs;
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            const auto & slots = windows[l];

            auto it = shared.find(slots);
            if (it == shared.end()) {
                std::vector<uint32_t> cells = visual;
                for (const uint32_t slot : slots) {
                    cells.push_back(text[slot]);
                }
                it = shared.emplace(slots, inputs {
                    graph.input_i32(cells), graph.input_i32(slots), graph.input_f32(causal_mask(slots), cells.size(), slots.size()),
                }).first;
            }

            const uint32_t il = air.layer_il(l);
            ggml_tensor * k = keys   (graph.ctx(), air.k(l, stream), it->second.cells, hparams.n_head_kv(il));
            ggml_tensor * q = queries(graph.ctx(), obs.q[l],         it->second.slots, hparams.n_head(il));
            outs.push_back(attention_mean(graph.ctx(), k, q, it->second.mask, obs.kq_scale[l]));
            graph.output(outs.back());
        }
        graph.run();

        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            ggml_backend_tensor_get(outs[l], scores + (size_t) l*visual.size(), 0, visual.size()*sizeof(float));
        }
    }
};

} // namespace

void llama_aircache_run_score(llama_context * lctx, llama_aircache & air, llama_seq_id seq,
        const llama_aircache_method & method, float * scores, uint8_t * observers) {
    const auto & obs = *air.observer(seq);

    scorer sc = {
        lctx, air, lctx->get_model().hparams, obs, air.stream(seq), air.cells_visual(seq), air.cells_text(seq), {},
    };

    sc.n_before = air.visual_before(seq);

    const auto windows = sc.windows(method);

    sc.importance(windows, scores);

    if (observers) {
        std::fill(observers, observers + (size_t) air.n_layer()*obs.n_slots, 0);
        for (uint32_t l = 0; l < air.n_layer(); ++l) {
            for (const uint32_t slot : windows[l]) {
                observers[(size_t) l*obs.n_slots + slot] = 1;
            }
        }
    }
}
