// What the native tests share: contexts of one model, prompts, decoding, comparing. Any run of tokens can be declared visual.
#pragma once

#include "llama-aircache.h"

#include "llama-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: %s failed (%s)\n", __FILE__, __LINE__, #cond, llama_aircache_error()); exit(1); } } while (0)

inline llama_model * model     = nullptr;
inline ggml_type     type_kv   = GGML_TYPE_F16;
inline bool          flash     = true;
inline bool          on_device = false; // the cache lies elsewhere: on an RPC server
inline int           n_threads = 1; // the model is tiny: more threads mostly wait for each other

using cases = std::map<std::string, std::function<void()>>;

using tokens = std::vector<llama_token>;

inline llama_context_ptr context(uint32_t n_seq = 1, bool unified = false, uint32_t n_ctx = 1024) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = n_ctx*n_seq;
    params.n_batch         = 256;
    params.n_ubatch        = 64; // prompts span several graphs
    params.n_seq_max       = n_seq;
    params.kv_unified      = unified;
    params.n_threads       = n_threads;
    params.n_threads_batch = n_threads;
    params.type_k          = type_kv;
    params.type_v          = type_kv;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context_ptr res(llama_init_from_model(model, params));
    CHECK(res);
    return res;
}

inline tokens random_tokens(int n, int seed) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    tokens res(n);
    uint32_t x = 12345 + seed;
    for (auto & t : res) {
        x = x*1664525 + 1013904223;
        t = (x >> 8) % std::min(n_vocab, 250);
    }
    return res;
}

struct part { llama_seq_id seq; llama_pos pos; tokens toks; };

// decodes parts of several sequences in one batch; logits of each part's last token
inline std::vector<std::vector<float>> decode(llama_context * ctx, const std::vector<part> & parts) {
    size_t n = 0;
    for (const auto & p : parts) {
        n += p.toks.size();
    }
    llama_batch batch = llama_batch_init(n, 0, 1);
    std::vector<int> outs;
    for (const auto & p : parts) {
        for (size_t i = 0; i < p.toks.size(); ++i) {
            const int j = batch.n_tokens++;
            batch.token[j] = p.toks[i];
            batch.pos[j] = p.pos + i;
            batch.n_seq_id[j] = 1;
            batch.seq_id[j][0] = p.seq;
            batch.logits[j] = i + 1 == p.toks.size();
        }
        outs.push_back(batch.n_tokens - 1);
    }
    CHECK(llama_decode(ctx, batch) == 0);
    llama_batch_free(batch);

    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<std::vector<float>> res;
    for (const int i : outs) {
        const float * l = llama_get_logits_ith(ctx, i);
        res.emplace_back(l, l + n_vocab);
    }
    return res;
}

inline std::vector<float> decode(llama_context * ctx, llama_seq_id seq, llama_pos pos, const tokens & toks) {
    return decode(ctx, { { seq, pos, toks } })[0];
}

inline llama_token argmax(const std::vector<float> & l) {
    return std::max_element(l.begin(), l.end()) - l.begin();
}

inline float max_diff(const std::vector<float> & a, const std::vector<float> & b) {
    float res = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// The rows are the same, but summed in another order: F16 sums in llama.cpp's flash attention on the CPU, and what later
// tokens write to the cache is rounded to its type. The bounds are those of tests/engine/test_modes.py, with the same model.
inline float tolerance() {
    if (ggml_is_quantized(type_kv)) {
        return 0.3f;
    }
    if (flash || type_kv == GGML_TYPE_BF16) {
        return 5e-2f;
    }
    return type_kv == GGML_TYPE_F32 ? 1e-4f : 1e-2f;
}

// prefix text, 90 "visual" tokens, question
inline const llama_aircache_span SPAN = { 11, 101, 10 };
inline const int N_PROMPT = 131;

inline tokens prompt(int seed = 0) { return random_tokens(N_PROMPT, seed); }

struct result { std::vector<float> scores; std::vector<int32_t> budgets; std::vector<int32_t> kept; };

inline llama_aircache_method method_named(const char * name, double keep) {
    llama_aircache_method res;
    CHECK(llama_aircache_method_by_name(name, &res) == 0);
    res.keep = keep;
    return res;
}

inline result compress(llama_context * ctx, llama_seq_id seq, const llama_aircache_method & method, bool mask_only) {
    int32_t n_layer, n_visual, n_text;
    CHECK(llama_aircache_dims(ctx, seq, &n_layer, &n_visual, &n_text) == 0);

    result res;
    res.scores.resize(n_layer*n_visual);
    res.budgets.resize(n_layer);
    res.kept.resize(n_layer*n_visual);

    auto out = llama_aircache_compression_empty();
    out.scores  = res.scores.data();
    out.budgets = res.budgets.data();
    out.kept    = res.kept.data();
    out.n_scores   = res.scores.size();
    out.n_budgets  = res.budgets.size();
    out.n_kept_max = res.kept.size();
    CHECK(llama_aircache_compress(ctx, seq, &method, mask_only, &out) == 0);
    CHECK(out.n_layer == n_layer && out.n_visual == n_visual && out.n_text == n_text);

    res.kept.resize(out.n_kept);
    return res;
}

inline result compress(llama_context * ctx, llama_seq_id seq, double keep, bool mask_only) {
    return compress(ctx, seq, method_named("aircache", keep), mask_only);
}

inline std::vector<float> prefill(llama_context * ctx, llama_seq_id seq, int seed = 0, const llama_aircache_method * method = nullptr) {
    CHECK(llama_aircache_observe(ctx, seq, &SPAN, 1, N_PROMPT, method, nullptr) == 0);
    return decode(ctx, seq, 0, prompt(seed));
}

// greedy tokens from pos on, and the logits of each step
inline std::vector<std::vector<float>> generate(llama_context * ctx, llama_seq_id seq, llama_pos pos, llama_token first, int n) {
    std::vector<std::vector<float>> res;
    llama_token cur = first;
    for (int i = 0; i < n; ++i) {
        res.push_back(decode(ctx, seq, pos + i, { cur }));
        cur = argmax(res.back());
    }
    return res;
}

inline void check_same(const std::vector<std::vector<float>> & a, const std::vector<std::vector<float>> & b) {
    CHECK(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        if (max_diff(a[i], b[i]) > tolerance()) {
            fprintf(stderr, "step %zu: logits differ by %g\n", i, max_diff(a[i], b[i]));
            exit(1);
        }
        // the same token, but for a tie within the tolerance
        CHECK(argmax(a[i]) == argmax(b[i]) || a[i][argmax(a[i])] - a[i][argmax(b[i])] <= tolerance());
    }
}
