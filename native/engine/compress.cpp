// Score, allocate, select, evict: the calls of llama-aircache.h with the engine's bookkeeping.
#include "engine.h"

#include <cstddef>
#include <cstring>
#include <numeric>
#include <type_traits>

// The two structs are the same, declared twice because pyaircache.h shows no llama.cpp type.
static_assert(sizeof(pac_method) == sizeof(llama_aircache_method), "pac_method must follow llama_aircache_method");
#define SAME(field) static_assert(offsetof(pac_method, field) == offsetof(llama_aircache_method, field) && \
    std::is_same<decltype(pac_method::field), decltype(llama_aircache_method::field)>::value, #field " differs")
SAME(keep);
SAME(min_keep);
SAME(window);
SAME(window_n);
SAME(alpha);
SAME(elite_content);
SAME(elite_last);
SAME(score);
SAME(keys);
SAME(seed);
SAME(text_weights);
SAME(pool);
SAME(pool_size);
SAME(pool_2d);
SAME(last_term);
SAME(value_norm);
SAME(diversity);
SAME(allocation);
SAME(uniform_share);
SAME(rank);
SAME(merge);
#undef SAME

llama_aircache_method pac_to_llama(const pac_method & m) {
    llama_aircache_method res;
    memcpy(&res, &m, sizeof(res));
    return res;
}

pac_method pac_from_llama(const llama_aircache_method & m) {
    pac_method res;
    memcpy(&res, &m, sizeof(res));
    return res;
}

static llama_aircache_seq_stats seq_stats(llama_context * ctx) {
    llama_aircache_seq_stats res = {};
    pac_check(llama_aircache_stats(ctx, 0, &res));
    return res;
}

void pac_engine::score(const pac_method & method, pac_scores & out) {
    if (!observed) {
        throw pac_error(PAC_ERR_STATE, "nothing to score: the last prompt held no image, was not observed, or was compressed already");
    }

    const int64_t t_start = llama_time_us();

    int32_t n_layer;
    int32_t n_text;
    pac_check(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, &n_text));

    const auto m = pac_to_llama(method);

    std::vector<uint8_t> observers((size_t) n_layer*n_text);
    scores.resize((size_t) n_layer*n_visual);
    alive.resize(m.allocation == LLAMA_AIRCACHE_ALLOC_VL ? n_layer : 0);
    pac_check(llama_aircache_score(ctx.get(), 0, &m, scores.data(), observers.data(), alive.empty() ? nullptr : alive.data()));

    n_elite.assign(n_layer, 0);
    elite.clear();
    for (int32_t l = 0; l < n_layer; ++l) {
        for (int32_t j = 0; j < n_text; ++j) {
            if (observers[(size_t) l*n_text + j]) {
                elite.push_back(text_tokens.at(j));
                n_elite[l]++;
            }
        }
    }

    out = { n_layer, n_visual, scores.data(), n_elite.data(), elite.data(), alive.empty() ? nullptr : alive.data(), (llama_time_us() - t_start)/1000.0 };
}

void pac_engine::evict(const int32_t * new_budgets, const int32_t * new_kept, double merge, bool mask_only, pac_compression & out) {
    if (!observed) {
        throw pac_error(PAC_ERR_STATE, "nothing to evict: the last prompt held no image, was not observed, or was compressed already");
    }

    const int64_t t_start = llama_time_us();
    const auto    before  = seq_stats(ctx.get());

    int32_t n_layer;
    pac_check(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, nullptr));

    const int32_t status = llama_aircache_evict(ctx.get(), 0, new_budgets, new_kept, merge, mask_only);
    if (status == LLAMA_AIRCACHE_COMPUTE) {
        const std::string message = llama_aircache_error();
        reset(); // a backend failed while rows were moved: the sequence is gone
        throw pac_error(PAC_ERR_COMPUTE, message + "; the conversation was reset");
    }
    pac_check(status);
    observed = false;

    const auto after = seq_stats(ctx.get());
    n_cells = after.n_cells;

    budgets.assign(new_budgets, new_budgets + n_layer);
    kept   .assign(new_kept,    new_kept + std::accumulate(budgets.begin(), budgets.end(), (size_t) 0));

    out = {};
    out.n_layers      = n_layer;
    out.n_visual      = n_visual;
    out.budgets       = budgets.data();
    out.kept          = kept.data();
    out.kv_bytes_full = before.kv_bytes;
    out.kv_bytes      = after.kv_bytes;
    out.ms_evict      = (llama_time_us() - t_start)/1000.0;
}

void pac_engine::compress(const pac_method & method, bool mask_only, pac_scores * scores_out, pac_compression & out) {
    pac_scores sc = {};
    score(method, sc);

    const int64_t t_start = llama_time_us();

    const auto m = pac_to_llama(method);

    std::vector<int32_t> new_budgets(sc.n_layers);
    strength.resize(sc.n_layers);
    skewness.resize(sc.n_layers);
    pac_check(llama_aircache_allocate(&m, sc.scores, sc.alive, sc.n_layers, sc.n_visual, new_budgets.data(), strength.data(), skewness.data()));

    std::vector<int32_t> new_kept(std::accumulate(new_budgets.begin(), new_budgets.end(), (size_t) 0));
    pac_check(llama_aircache_select(sc.scores, sc.n_layers, sc.n_visual, new_budgets.data(), m.rank, new_kept.data()));

    const double ms_select = (llama_time_us() - t_start)/1000.0;

    evict(new_budgets.data(), new_kept.data(), method.merge, mask_only, out);

    out.strength = strength.data();
    out.skewness = skewness.data();
    out.ms_score = sc.ms + ms_select;
    if (scores_out) {
        *scores_out = sc;
    }
}
