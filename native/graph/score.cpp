// What a method says, done: importance of the visual cells by docs/method.md, section 1, and the other windows and key sets of
// docs/methods.md. The graphs are attention.cpp's and features.cpp's, the arithmetic on the host is native/policy's.
#include "graph/attention.h"
#include "graph/features.h"

#include "cache/failure.h"
#include "cache/faults.h"
#include "llama-hparams.h"
#include "policy/policy.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace {

using window = llama_aircache_attention::window;
using tile   = llama_aircache_attention::tile;

struct interpreter {
    llama_aircache_attention    & att;
    const llama_aircache_method & method;

    const llama_aircache_observer & obs      = att.obs;
    const uint32_t                  n_layer  = att.n_layer();
    const uint32_t                  n_visual = att.n_visual();

    uint32_t n_head(uint32_t l) const { return att.hparams.n_head(att.air.kv.layer_il(l)); }

    // each layer's observing queries, ascending; empty: summed up already
    std::vector<window> windows() const {
        switch (method.window) {
            case LLAMA_AIRCACHE_WINDOW_LAST:   return std::vector<window>(n_layer, att.last_text(method.window_n));
            case LLAMA_AIRCACHE_WINDOW_TEXT:   return std::vector<window>(n_layer, att.last_text(obs.n_text));
            case LLAMA_AIRCACHE_WINDOW_VISUAL: return std::vector<window>(n_layer, att.last_visual(method.window_n));
            case LLAMA_AIRCACHE_WINDOW_ALL:    return std::vector<window>(n_layer);
            default: break;
        }

        const uint8_t * excluded = method.elite_content && !obs.is_template.empty() ? obs.is_template.data() : nullptr;

        std::vector<window> res;
        for (const auto & row : att.last_row()) {
            res.push_back(aircache::elite(row.data(), row.size(), method.alpha, excluded, method.elite_last));
        }
        return res;
    }

    // TGV-KV: weights of the text by the attention that it receives, [n_layer][n_text]
    std::vector<std::vector<float>> text_weights(const std::vector<window> & win) const {
        std::vector<aircache::row> sums(n_layer, aircache::row(obs.n_text, 0.0));

        // head mean of the text's own attention: [n_text, n], keys first
        att.for_tiles(win, obs.n_text, [&](llama_aircache_graph & graph, const tile &, ggml_tensor * a) {
            auto * ctx = graph.ctx();
            ggml_tensor * cur = att.key_range(ctx, a, n_visual, obs.n_text);
            return ggml_mean(ctx, ggml_cont(ctx, ggml_permute(ctx, cur, 1, 2, 0, 3)));
        }, [&](const tile & t, const std::vector<float> & part) {
            aircache::add_text_attention(sums[t.l], part.data(), obs.n_text, t.first, t.n);
        });

        std::vector<std::vector<float>> res;
        for (const auto & sum : sums) {
            res.push_back(aircache::text_weights(sum));
        }
        return res;
    }

    // I [n_layer, n_visual]: mean over the window's queries, or weighted by the attention they receive
    void importance(const std::vector<window> & win, bool by_text, float * scores) const {
        std::vector<std::vector<float>> weights;
        if (by_text) {
            weights = text_weights(win);
        } else {
            for (const auto & w : win) {
                weights.emplace_back(w.size(), 1.0f/w.size());
            }
        }

        aircache::row sums((size_t) n_layer*n_visual, 0.0);

        att.for_tiles(win, 0, [&](llama_aircache_graph & graph, const tile & t, ggml_tensor * a) {
            const auto w = weights[t.l].begin() + t.first;
            return att.weighted(graph.ctx(), att.key_range(graph.ctx(), a, 0, n_visual), graph.input_f32({ w, w + t.n }, t.n, 1));
        }, [&](const tile & t, const std::vector<float> & part) {
            for (uint32_t v = 0; v < n_visual; ++v) {
                sums[(size_t) t.l*n_visual + v] += part[v];
            }
        });

        std::copy(sums.begin(), sums.end(), scores);
    }

    // WINDOW_ALL: the sums that the prefill left behind
    void summed(float * scores) const {
        std::vector<float> sums(att.air.kv.n_cells());
        for (uint32_t l = 0; l < n_layer; ++l) {
            if (llama_aircache_fault("get")) {
                throw std::runtime_error("a backend failed to return a result");
            }
            ggml_backend_tensor_get(obs.sums[l], sums.data(), 0, ggml_nbytes(obs.sums[l]));
            for (const auto & c : att.prompt.visual) {
                *scores++ = sums[c.i];
            }
        }
    }

    // VL-Cache: attention entries of the text to visual tokens that reach 1 % of their row's maximum, mean over heads
    void count_alive(double * alive) const {
        const std::vector<window> win(n_layer, att.last_text(obs.n_text));

        std::fill(alive, alive + n_layer, 0.0);

        att.for_tiles(win, n_head(0), [&](llama_aircache_graph & graph, const tile &, ggml_tensor * a) {
            auto * ctx = graph.ctx();
            ggml_tensor * cur = ggml_cont(ctx, att.key_range(ctx, a, 0, n_visual));
            cur = ggml_reshape_2d(ctx, cur, cur->ne[0], cur->ne[1]*cur->ne[2]);
            ggml_tensor * max = ggml_pool_2d(ctx, cur, GGML_OP_POOL_MAX, n_visual, 1, n_visual, 1, 0, 0); // [1, n_rows]
            cur = ggml_step(ctx, ggml_scale_bias(ctx, ggml_div(ctx, cur, max), 1.0f, -0.01f));
            return ggml_sum_rows(ctx, cur);
        }, [&](const tile & t, const std::vector<float> & rows) {
            alive[t.l] += std::accumulate(rows.begin(), rows.end(), 0.0); // whole numbers
        });

        for (uint32_t l = 0; l < n_layer; ++l) {
            alive[l] /= n_head(l);
        }
    }

    // the images' runs of visual tokens
    std::vector<aircache::run> runs() const {
        std::vector<aircache::run> res;
        int32_t first = 0;
        for (size_t i = 0; i < obs.spans.size(); ++i) {
            const int32_t n  = att.prompt.n_visual[i];
            const int32_t nx = obs.spans[i].nx;
            if (method.pool && method.pool_2d && (nx < 1 || n % nx != 0)) {
                throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED, "2-D pooling needs images whose tokens form a grid");
            }
            res.push_back({ first, n, nx });
            first += n;
        }
        return res;
    }

    // scores by attention, and each layer's window of text tokens
    void attended(float * scores, uint8_t * observers) const {
        if (method.window == LLAMA_AIRCACHE_WINDOW_ALL) {
            return summed(scores);
        }

        const auto win = windows();
        importance(win, method.text_weights, scores);
        for (uint32_t l = 0; observers && l < n_layer; ++l) {
            for (const uint32_t query : win[l]) {
                if (query < obs.n_text) {
                    observers[(size_t) l*obs.n_text + query] = 1;
                }
            }
        }
    }

    void run(float * scores, uint8_t * observers, double * alive) const {
        if (observers) {
            std::fill(observers, observers + (size_t) n_layer*obs.n_text, 0);
        }
        if (alive && method.allocation == LLAMA_AIRCACHE_ALLOC_VL) {
            count_alive(alive);
        } else if (alive) {
            std::fill(alive, alive + n_layer, 0.0);
        }

        switch (method.score) {
            case LLAMA_AIRCACHE_SCORE_RANDOM: return aircache::random_scores(scores, n_layer, n_visual, method.seed);
            case LLAMA_AIRCACHE_SCORE_STRIDE: return aircache::stride_scores(scores, n_layer, n_visual);
            default: attended(scores, observers);
        }

        if (method.last_term > 0.0) {
            std::vector<float> last((size_t) n_layer*n_visual);
            importance(std::vector<window>(n_layer, att.last_text(1)), false, last.data());
            aircache::add_last_term(scores, last.data(), n_layer, n_visual, runs(), method.last_term);
        }
        if (method.pool != LLAMA_AIRCACHE_POOL_NONE) {
            aircache::pool(scores, n_layer, n_visual, runs(), method.pool == LLAMA_AIRCACHE_POOL_MAX, method.pool_size, method.pool_2d);
        }
        if (method.value_norm || method.diversity) {
            llama_aircache_features(att.runner, att.stream, att.prompt.visual, method, scores);
        }
    }
};

} // namespace

void llama_aircache_runner::score(llama_seq_id seq, const llama_aircache_method & method, float * scores, uint8_t * observers, double * alive) {
    llama_aircache_check_complete(air, seq);
    llama_aircache_check_needs(air, seq, method);

    const llama_aircache_scratch scratch = { *this };

    llama_aircache_attention att(*this, seq, method.keys);
    interpreter { att, method }.run(scores, observers, alive);
}
