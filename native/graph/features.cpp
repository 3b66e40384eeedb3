#include "graph/features.h"

#include "llama-hparams.h"
#include "policy/policy.h"

#include <algorithm>
#include <cmath>

// rows of V, F32 [n_embd, n]; n_cells: none of them lies behind
static ggml_tensor * values(ggml_context * ctx, const llama_aircache_kv & kv, uint32_t l, uint32_t stream, ggml_tensor * idx, uint32_t n_cells) {
    ggml_tensor * v = kv.v(l, stream);
    if (kv.v_trans()) {
        v = ggml_cont(ctx, ggml_transpose(ctx, llama_aircache_columns(ctx, v, 0, n_cells)));
    }
    return ggml_get_rows(ctx, v, idx);
}

void llama_aircache_features(llama_aircache_runner & runner, uint32_t stream, const std::vector<llama_aircache_cell> & visual,
        const llama_aircache_method & method, float * scores) {
    const auto & kv      = runner.air.kv;
    const auto & hparams = kv.hparams();

    const int32_t n_l = kv.n_layer();
    const int32_t n_v = visual.size();

    llama_aircache_graph graph(runner, 32*n_l);
    auto * ctx = graph.ctx();

    std::vector<uint32_t> cells;
    for (const auto & c : visual) {
        cells.push_back(c.i);
    }
    ggml_tensor * idx = graph.input_i32(cells);
    const uint32_t n_cells = *std::max_element(cells.begin(), cells.end()) + 1;

    std::vector<ggml_tensor *> norms; // [1, n_v]: squared lengths
    std::vector<ggml_tensor *> means; // [d, n_head_kv]: mean of the normalised keys
    std::vector<ggml_tensor *> dots;  // [n_v, n_head_kv]: normalised key times that mean

    for (int32_t l = 0; l < n_l; ++l) {
        if (method.value_norm) {
            norms.push_back(ggml_sum_rows(ctx, ggml_sqr(ctx, values(ctx, kv, l, stream, idx, n_cells))));
            graph.output(norms.back());
        }
        if (method.diversity) {
            const int64_t n_head = hparams.n_head_kv(kv.layer_il(l));

            ggml_tensor * k = ggml_get_rows(ctx, kv.k(l, stream), idx);
            const int64_t d = k->ne[0]/n_head;

            k = ggml_l2_norm(ctx, ggml_reshape_3d(ctx, k, d, n_head, n_v), 1e-12f);
            ggml_tensor * mean = ggml_mean(ctx, ggml_cont(ctx, ggml_permute(ctx, k, 1, 2, 0, 3)));  // [1, d, n_head]
            mean = ggml_reshape_3d(ctx, mean, d, 1, n_head);
            ggml_tensor * dot = ggml_mul_mat(ctx, ggml_permute(ctx, k, 0, 2, 1, 3), mean);          // [n_v, 1, n_head]
            ggml_prec_set_acc(dot, GGML_PREC_F32);

            means.push_back(mean);
            dots.push_back(dot);
            graph.output(mean);
            graph.output(dot);
        }
    }
    graph.run();

    if (method.value_norm) {
        std::vector<float> all;
        for (const auto & row : graph.read(norms)) {
            std::transform(row.begin(), row.end(), std::back_inserter(all), [](float x) { return std::sqrt(x); });
        }
        aircache::times_value_norm(scores, all.data(), n_l, n_v);
    }

    if (method.diversity) {
        const auto mean = graph.read(means);
        const auto dot  = graph.read(dots);

        std::vector<float> cosine((size_t) n_l*n_v, 0.0f);
        aircache::row      redundancy(n_l, 0.0);

        for (int32_t l = 0; l < n_l; ++l) {
            const size_t n_head = dot[l].size()/n_v;
            const size_t d      = mean[l].size()/n_head;

            for (size_t h = 0; h < n_head; ++h) {
                double sq = 0.0;
                for (size_t i = 0; i < d; ++i) {
                    sq += (double) mean[l][h*d + i]*mean[l][h*d + i];
                }
                for (int32_t v = 0; v < n_v; ++v) {
                    cosine[(size_t) l*n_v + v] += sq > 0.0 ? dot[l][h*n_v + v]/std::sqrt(sq)/n_head : 0.0;
                }
                redundancy[l] += n_v > 1 ? (n_v*sq - 1.0)/(n_v - 1.0)/n_head : 0.0; // mean pairwise cosine
            }
        }
        aircache::mix_diversity(scores, cosine.data(), redundancy, n_l, n_v);
    }
}
