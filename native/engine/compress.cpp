// The calls of llama-aircache.h that score and evict, with the engine's bookkeeping.
#include "engine.h"

#include <numeric>
#include <type_traits>

// pyaircache.h shows no type of llama.cpp, so that the method is declared twice; each field by its name.
#define METHOD_FIELDS(X) \
    X(keep) X(min_keep) X(window) X(window_n) X(alpha) X(elite_content) X(elite_last) X(score) X(keys) X(seed) X(text_weights) \
    X(pool) X(pool_size) X(pool_2d) X(last_term) X(value_norm) X(diversity) X(allocation) X(uniform_share) X(rank) X(merge)

#define SAME_TYPE(field) \
    static_assert(std::is_same<decltype(pac_method::field), decltype(llama_aircache_method::field)>::value, #field " differs");
METHOD_FIELDS(SAME_TYPE)

llama_aircache_method pac_to_llama(const pac_method & m) {
    auto res = llama_aircache_method_default();
#define COPY(field) res.field = m.field;
    METHOD_FIELDS(COPY)
    return res;
}

pac_method pac_from_llama(const llama_aircache_method & m) {
    pac_method res = {};
    METHOD_FIELDS(COPY)
    return res;
}

static llama_aircache_seq_stats seq_stats(const pac_engine & engine) {
    auto res = llama_aircache_stats_empty();
    pac_check(llama_aircache_stats(engine.ctx, engine.seq, &res));
    return res;
}

static const char NOTHING[] = "the last prompt held no image, was not observed, or was compressed already";

// prompt token indices of each layer's observing text tokens; observers: [n_layer, n_text]
void pac_engine::list_elite(const std::vector<uint8_t> & observers, int32_t n_layer) {
    const size_t n_text = observers.size()/n_layer;

    n_elite.assign(n_layer, 0);
    elite.clear();
    for (int32_t l = 0; l < n_layer; ++l) {
        for (size_t j = 0; j < n_text; ++j) {
            if (observers[l*n_text + j]) {
                elite.push_back(text_tokens.at(j));
                n_elite[l]++;
            }
        }
    }
}

// after an eviction; throws when it failed
void pac_engine::evicted(int32_t status) {
    if (status == LLAMA_AIRCACHE_COMPUTE && llama_memory_seq_pos_max(llama_get_memory(ctx), seq) < 0) {
        const std::string message = llama_aircache_error();
        forget(); // a backend failed while rows were moved: the sequence is gone
        throw pac_error(PAC_ERR_COMPUTE, message + "; the conversation was reset");
    }
    pac_check(status);
    observed = false;
}

void pac_engine::score(const pac_method & method, pac_scores & out) {
    const auto mine = turn();

    if (!observed) {
        throw pac_error(PAC_ERR_STATE, std::string("nothing to score: ") + NOTHING);
    }

    const int64_t t_start = llama_time_us();

    int32_t n_layer;
    int32_t n_text;
    pac_check(llama_aircache_dims(ctx, seq, &n_layer, nullptr, &n_text));

    const auto m = pac_to_llama(method);

    std::vector<uint8_t> observers((size_t) n_layer*n_text);
    scores.resize((size_t) n_layer*n_visual);
    alive.resize(m.allocation == LLAMA_AIRCACHE_ALLOC_VL ? n_layer : 0);
    pac_check(llama_aircache_score(ctx, seq, &m, scores.data(), scores.size(), observers.data(), observers.size(),
            alive.empty() ? nullptr : alive.data(), alive.size()));

    list_elite(observers, n_layer);
    out = { n_layer, n_visual, scores.data(), n_elite.data(), elite.data(), alive.empty() ? nullptr : alive.data(), (llama_time_us() - t_start)/1000.0 };
}

void pac_engine::evict(const int32_t * new_budgets, const int32_t * new_kept, double merge, bool mask_only, pac_compression & out) {
    const auto mine = turn();

    if (!observed) {
        throw pac_error(PAC_ERR_STATE, std::string("nothing to evict: ") + NOTHING);
    }

    const int64_t t_start = llama_time_us();
    const auto    before  = seq_stats(*this);

    int32_t n_layer;
    pac_check(llama_aircache_dims(ctx, seq, &n_layer, nullptr, nullptr));

    evicted(llama_aircache_evict(ctx, seq, new_budgets, new_kept, merge, mask_only));

    const auto after = seq_stats(*this);
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
    if (after.n_cells < before.n_cells) {
        context->shrink();
    }
    out.ms_evict      = (llama_time_us() - t_start)/1000.0;
}

void pac_engine::compress(const pac_method & method, bool mask_only, pac_scores * scores_out, pac_compression & out) {
    const auto mine = turn();

    if (!observed) {
        throw pac_error(PAC_ERR_STATE, std::string("nothing to score: ") + NOTHING);
    }

    const auto m      = pac_to_llama(method);
    const auto before = seq_stats(*this);

    int32_t n_layer;
    int32_t n_text;
    pac_check(llama_aircache_dims(ctx, seq, &n_layer, nullptr, &n_text));

    auto res = llama_aircache_compression_empty();

    const auto room = [](auto & data, size_t n, auto *& array, int64_t & n_max) {
        data.resize(n);
        array = data.data();
        n_max = n;
    };
    std::vector<uint8_t> observers;
    room(observers, (size_t) n_layer*n_text,   res.observers, res.n_observers);
    room(scores,    (size_t) n_layer*n_visual, res.scores,    res.n_scores);
    room(kept,      (size_t) n_layer*n_visual, res.kept,      res.n_kept_max);
    room(budgets,   n_layer, res.budgets,  res.n_budgets);
    room(strength,  n_layer, res.strength, res.n_strength);
    room(skewness,  n_layer, res.skewness, res.n_skewness);
    if (m.allocation == LLAMA_AIRCACHE_ALLOC_VL) {
        room(alive, n_layer, res.alive, res.n_alive);
    }

    evicted(llama_aircache_compress(ctx, seq, &m, mask_only, &res));

    const auto after = seq_stats(*this);
    n_cells = after.n_cells;

    list_elite(observers, n_layer);
    if (scores_out) {
        *scores_out = { n_layer, n_visual, res.scores, n_elite.data(), elite.data(), res.alive, res.ms_score };
    }

    out = {};
    out.n_layers      = n_layer;
    out.n_visual      = n_visual;
    out.budgets       = res.budgets;
    out.kept          = res.kept;
    out.strength      = res.strength;
    out.skewness      = res.skewness;
    out.kv_bytes_full = before.kv_bytes;
    out.kv_bytes      = after.kv_bytes;
    out.ms_score      = res.ms_score;
    out.ms_evict      = res.ms_evict + (after.n_cells < before.n_cells ? context->shrink() : 0);
}
