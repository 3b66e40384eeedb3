// The C API of llama-aircache.h on a context.
#include "api/border.h"
#include "api/checks.h"

#include "cache/devices.h"
#include "cache/faults.h"
#include "cache/planner.h"
#include "cache/synthetic.h"
#include "graph/runner.h"
#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <numeric>

using failure = llama_aircache_failure;

llama_aircache & llama_aircache_open(llama_context * ctx, llama_seq_id seq) {
    LLAMA_AIRCACHE_REQUIRE(ctx, "context is null");

    const auto reason = llama_aircache::unsupported(ctx);
    if (!reason.empty()) {
        throw failure(LLAMA_AIRCACHE_UNSUPPORTED, "the KV cache of a %s model cannot be compressed: %s",
                llm_arch_name(ctx->get_model().arch), reason.c_str());
    }

    auto & air = llama_aircache::get(ctx);
    LLAMA_AIRCACHE_REQUIRE(air.kv.seq_valid(seq), "sequence %d does not exist", seq);
    return air;
}

void llama_aircache_settle(llama_context * ctx) {
    const llama_aircache_fault_pause others;

    ctx->synchronize();
    ctx->memory_update(false);
}

namespace {

// an observed and decoded prompt
struct observed {
    llama_context  * ctx;
    llama_seq_id     seq;
    llama_aircache & air;

    int32_t n_layer;
    int32_t n_visual;
    int32_t n_text;

    observed(llama_context * ctx, llama_seq_id seq) : ctx(ctx), seq(seq), air(llama_aircache_open(ctx, seq)) {
        const auto * obs = air.observers.find(seq);
        if (!obs) {
            throw failure(LLAMA_AIRCACHE_STATE, "sequence %d is not observed: call llama_aircache_observe before its prompt is decoded", seq);
        }
        llama_aircache_settle(ctx);

        n_layer  = air.kv.n_layer();
        n_visual = llama_aircache_prompt(air, seq).visual.size();
        n_text   = obs->n_text;
        if (n_visual == 0) {
            throw failure(LLAMA_AIRCACHE_STATE, "no visual cells at the observed spans: decode the images first");
        }
    }

    void score(const llama_aircache_method & method, float * scores, uint8_t * observers, double * alive) const {
        llama_aircache_runner::get(ctx, air).score(seq, method, scores, observers, alive);
    }

    void evict(const int32_t * budgets, const int32_t * kept, double merge, bool mask_only) const;
};

// budgets in [1, n_visual], indices ascending; returns how many are kept
int64_t check_kept(const observed & prompt, const int32_t * budgets, const int32_t * kept) {
    const int32_t * cur = kept;
    for (int32_t l = 0; l < prompt.n_layer; ++l) {
        LLAMA_AIRCACHE_REQUIRE(budgets[l] >= 1 && budgets[l] <= prompt.n_visual, "budget %d of layer %d is outside of [1, %d]", budgets[l], l, prompt.n_visual);
        for (int32_t i = 0; i < budgets[l]; ++i, ++cur) {
            LLAMA_AIRCACHE_REQUIRE(*cur >= (i > 0 ? cur[-1] + 1 : 0) && *cur < prompt.n_visual,
                    "kept index %d of layer %d: indices must ascend within [0, %d)", *cur, l, prompt.n_visual);
        }
    }
    return cur - kept;
}

void check_merging(const llama_aircache & air) {
    const auto reason = llama_aircache_missing_op(air.kv, true);
    if (!reason.empty()) {
        throw failure(LLAMA_AIRCACHE_UNSUPPORTED, "tokens cannot be merged: %s", reason.c_str());
    }
}

// [n_layer] what is averaged into what; empty: nothing
std::vector<std::vector<llama_aircache_merged>> merged(const observed & prompt, const int32_t * budgets, const int32_t * kept, double share) {
    std::vector<std::vector<llama_aircache_merged>> res;
    for (int32_t l = 0; share > 0 && l < prompt.n_layer; ++l) {
        res.emplace_back();
        for (const auto & pair : aircache::merge_pairs(kept, budgets[l], prompt.n_visual, share)) {
            res.back().push_back({ pair.dropped, pair.kept });
        }
        kept += budgets[l];
    }
    return res;
}

void observed::evict(const int32_t * budgets, const int32_t * kept, double merge, bool mask_only) const {
    LLAMA_AIRCACHE_REQUIRE(merge >= 0 && merge <= (mask_only ? 0 : 1), "merge is %g: it must be in [0, %d]", merge, mask_only ? 0 : 1);
    LLAMA_AIRCACHE_REQUIRE(budgets && kept, "budgets or kept is null");
    if (mask_only) {
        llama_aircache_planner::check_oracle();
    }

    const int64_t n_kept = check_kept(*this, budgets, kept);

    llama_aircache_check_complete(air, seq);
    if (merge > 0) {
        check_merging(air);
    }
    if (n_kept == (int64_t) n_layer*n_visual) {
        return air.observers.forget(seq); // everything is kept: leave the cache, and with it every bit of what follows, as it is
    }

    llama_aircache_planner planner(air, seq);
    if (mask_only) {
        return planner.hide({ budgets, kept, {} });
    }

    auto lay = planner.plan({ budgets, kept, merged(*this, budgets, kept, merge) });
    try {
        llama_aircache_runner::get(ctx, air).move(seq, lay);
    } catch (const failure & e) {
        if (e.status == LLAMA_AIRCACHE_COMPUTE) {
            planner.drop(); // some rows may have moved; whatever else is thrown, none has
        }
        throw;
    }
    planner.commit(std::move(lay));
}

// a prompt's images, and its end
void check_spans(const llama_aircache & air, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end) {
    LLAMA_AIRCACHE_REQUIRE(spans && n_spans >= 1, "no spans given");
    for (int32_t i = 0; i < n_spans; ++i) {
        const llama_pos before = i > 0 ? spans[i - 1].p1 : 0;
        LLAMA_AIRCACHE_REQUIRE(spans[i].p0 >= before && spans[i].p1 > spans[i].p0,
                "span %d is [%d, %d): spans must be ascending and not empty", i, spans[i].p0, spans[i].p1);
    }
    if (const auto * zone = air.zone_of(air.kv.stream(seq), seq)) {
        LLAMA_AIRCACHE_REQUIRE(spans[0].p0 >= zone->p1, "span 0 is [%d, %d), but the positions before %d belong to an image that is compressed "
                "already, or to the text before it: remove the sequence first", spans[0].p0, spans[0].p1, zone->p1);
    }
    LLAMA_AIRCACHE_REQUIRE(pos_end > spans[n_spans - 1].p1, "the prompt ends at %d, within or right behind its last image: it must end in text", pos_end);

    int64_t n_text = (int64_t) pos_end - spans[0].p1;
    for (int32_t i = 1; i < n_spans; ++i) {
        n_text -= spans[i].p1 - spans[i].p0;
    }
    LLAMA_AIRCACHE_REQUIRE(n_text <= air.kv.n_cells(), "%" PRId64 " text tokens behind the first image are more than the cache's %u cells", n_text, air.kv.n_cells());
}

template <typename T>
void copy(const std::vector<T> & from, T * to) {
    if (to) {
        std::copy(from.begin(), from.end(), to);
    }
}

} // namespace

int32_t llama_aircache_supported(llama_context * ctx) {
    return llama_aircache_guarded([&] { llama_aircache_open(ctx, 0); });
}

int32_t llama_aircache_observe(llama_context * ctx, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        const llama_aircache_method * method, const uint8_t * is_template) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        const auto m = method ? *method : llama_aircache_method_default();
        llama_aircache_check(&m);

        auto & air = llama_aircache_open(ctx, seq);

        check_spans(air, seq, spans, n_spans, pos_end);

        if (m.window == LLAMA_AIRCACHE_WINDOW_ALL && m.score == LLAMA_AIRCACHE_SCORE_ATTENTION) {
            // it takes the whole attention a second time, and a graph sums up that of one sequence
            for (uint32_t s = 0; s < air.kv.n_stream(); ++s) {
                const auto * other = air.observers.summing(s);
                if (other && other->seq != seq) {
                    throw failure(LLAMA_AIRCACHE_STATE, "sequence %d of the same cache is observed with the window of all tokens already: "
                            "evict or clear it first", other->seq);
                }
            }
        }
        if (m.merge > 0) {
            check_merging(air);
        }

        ctx->synchronize();
        air.observers.observe(seq, spans, n_spans, pos_end, m, is_template);
    });
}

int32_t llama_aircache_dims(llama_context * ctx, llama_seq_id seq, int32_t * n_layer, int32_t * n_visual, int32_t * n_text) {
    return llama_aircache_guarded([&] {
        const auto & air = llama_aircache_open(ctx, seq);
        const auto * obs = air.observers.find(seq);
        if (n_layer)  { *n_layer  = air.kv.n_layer(); }
        if (n_visual) { *n_visual = obs ? llama_aircache_prompt(air, seq).visual.size() : 0; }
        if (n_text)   { *n_text   = obs ? obs->n_text : 0; }
    });
}

int32_t llama_aircache_score(llama_context * ctx, llama_seq_id seq, const llama_aircache_method * method,
        float * scores, int64_t n_scores, uint8_t * observers, int64_t n_observers, double * alive, int64_t n_alive) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        llama_aircache_check(method);
        const observed prompt(ctx, seq);
        LLAMA_AIRCACHE_REQUIRE(scores, "scores is null");
        llama_aircache_check_room("scores",    scores,    n_scores,    (int64_t) prompt.n_layer*prompt.n_visual);
        llama_aircache_check_room("observers", observers, n_observers, (int64_t) prompt.n_layer*prompt.n_text);
        llama_aircache_check_room("alive",     alive,     n_alive,     prompt.n_layer);
        prompt.score(*method, scores, observers, alive);
    });
}

int32_t llama_aircache_evict(llama_context * ctx, llama_seq_id seq, const int32_t * budgets, const int32_t * kept, double merge, bool mask_only) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        observed(ctx, seq).evict(budgets, kept, merge, mask_only);
    });
}

int32_t llama_aircache_compress(llama_context * ctx, llama_seq_id seq, const llama_aircache_method * method, bool mask_only,
        llama_aircache_compression * out) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        auto none = llama_aircache_compression_empty();
        auto & to = out ? *out : none;
        LLAMA_AIRCACHE_REQUIRE(to.size == sizeof(to), "the compression's size is %u, and this library's %zu: begin with "
                "llama_aircache_compression_empty(), or build with this library's header", to.size, sizeof(to));
        llama_aircache_check(method);

        const observed prompt(ctx, seq);
        const int32_t n_layer  = to.n_layer  = prompt.n_layer;
        const int32_t n_visual = to.n_visual = prompt.n_visual;
        to.n_text = prompt.n_text;

        llama_aircache_check_room("scores",    to.scores,    to.n_scores,    (int64_t) n_layer*n_visual);
        llama_aircache_check_room("observers", to.observers, to.n_observers, (int64_t) n_layer*prompt.n_text);
        llama_aircache_check_room("alive",     to.alive,     to.n_alive,     n_layer);
        llama_aircache_check_room("budgets",   to.budgets,   to.n_budgets,   n_layer);
        llama_aircache_check_room("strength",  to.strength,  to.n_strength,  n_layer);
        llama_aircache_check_room("skewness",  to.skewness,  to.n_skewness,  n_layer);

        const int64_t t_start = llama_time_us();

        std::vector<float>  scores(to.scores ? 0 : (size_t) n_layer*n_visual);
        std::vector<double> alive (to.alive  ? 0 : n_layer);

        float  * const sc = to.scores ? to.scores : scores.data();
        double * const al = to.alive  ? to.alive  : method->allocation == LLAMA_AIRCACHE_ALLOC_VL ? alive.data() : nullptr;

        prompt.score(*method, sc, to.observers, al);

        const auto budgets = llama_aircache_budgets(*method, sc, al, n_layer, n_visual, to.strength, to.skewness);
        copy(budgets, to.budgets);

        to.n_kept = std::accumulate(budgets.begin(), budgets.end(), (int64_t) 0);
        llama_aircache_check_room("kept", to.kept, to.n_kept_max, to.n_kept);

        std::vector<int32_t> kept(to.n_kept);
        llama_aircache_choose(sc, n_layer, n_visual, budgets.data(), method->rank, kept.data(), kept.size());
        copy(kept, to.kept);

        const int64_t t_chosen = llama_time_us();

        prompt.evict(budgets.data(), kept.data(), method->merge, mask_only);

        to.ms_score = (t_chosen - t_start)/1000.0;
        to.ms_evict = (llama_time_us() - t_chosen)/1000.0;
    });
}

int32_t llama_aircache_stats(llama_context * ctx, llama_seq_id seq, llama_aircache_seq_stats * out) {
    return llama_aircache_guarded([&] {
        const auto & air = llama_aircache_open(ctx, seq);
        LLAMA_AIRCACHE_REQUIRE(out, "out is null");
        LLAMA_AIRCACHE_REQUIRE(out->size == sizeof(*out), "the stats' size is %u, and this library's %zu: begin with "
                "llama_aircache_stats_empty(), or build with this library's header", out->size, sizeof(*out));
        air.stats(seq, *out);
    });
}

int32_t llama_aircache_memory(llama_context * ctx, llama_seq_id seq, llama_aircache_bytes * out) {
    return llama_aircache_guarded([&] {
        const auto & air = llama_aircache_open(ctx, std::max(seq, 0));
        LLAMA_AIRCACHE_REQUIRE(seq >= -1, "sequence %d does not exist", seq);
        LLAMA_AIRCACHE_REQUIRE(out, "out is null");
        LLAMA_AIRCACHE_REQUIRE(out->size == sizeof(*out), "the size is %u, and this library's %zu: begin with "
                "llama_aircache_bytes_empty(), or build with this library's header", out->size, sizeof(*out));
        air.tidy();
        out->reserved = out->allocated = 0;
        for (uint32_t s = 0; s < air.kv.n_stream(); ++s) {
            if (seq < 0 || air.kv.stream(seq) == s) {
                out->reserved  += air.kv.reserved_bytes();
                out->allocated += air.kv.allocated_bytes(s);
            }
        }
    });
}

int32_t llama_aircache_resize(llama_context * ctx, int32_t n_cells) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        auto & air = llama_aircache_open(ctx, 0);
        LLAMA_AIRCACHE_REQUIRE(n_cells >= 0 && (uint32_t) n_cells <= air.kv.n_cells(), "n_cells is %d: it must be in [0, %u], the cells of a sequence",
                n_cells, air.kv.n_cells());
        {
            const llama_aircache_fault_pause others;

            ctx->synchronize();
            ctx->memory_update(false);
        }
        llama_aircache_runner::get(ctx, air).resize(n_cells);
    });
}

int32_t llama_aircache_synthetic(llama_context * ctx, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        uint32_t seed, const llama_aircache_method * method) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        // by default one that needs no query
        auto m = llama_aircache_method_default();
        m.score      = LLAMA_AIRCACHE_SCORE_STRIDE;
        m.allocation = LLAMA_AIRCACHE_ALLOC_UNIFORM;
        if (method) {
            llama_aircache_check(method);
            m = *method;
        }

        auto & air = llama_aircache_open(ctx, seq);
        if (m.window == LLAMA_AIRCACHE_WINDOW_ALL && m.score == LLAMA_AIRCACHE_SCORE_ATTENTION) {
            throw failure(LLAMA_AIRCACHE_UNSUPPORTED, "a synthetic prompt has no sums of attention: the window of all tokens is not supported");
        }

        check_spans(air, seq, spans, n_spans, pos_end);
        for (int32_t i = 0; i < n_spans && air.kv.hparams().n_pos_per_embd() > 1; ++i) {
            LLAMA_AIRCACHE_REQUIRE(spans[i].nx >= 1 && spans[i].nx <= spans[i].p1 - spans[i].p0,
                    "span %d of %d rows has %d columns: with M-RoPE they must be in [1, rows]", i, spans[i].p1 - spans[i].p0, spans[i].nx);
        }
        LLAMA_AIRCACHE_REQUIRE(llama_aircache_pos_valid(pos_end), "the prompt ends at %d, beyond what positions may be", pos_end);
        const llama_aircache_synthetic_prompt prompt = { spans, n_spans, pos_end };
        const int64_t n = llama_aircache_synthetic_cells(air, prompt);
        LLAMA_AIRCACHE_REQUIRE(n <= air.kv.n_cells(), "the prompt takes %" PRId64 " cells, more than the cache's %u", n, air.kv.n_cells());

        {
            const llama_aircache_fault_pause others;
            ctx->synchronize();
            ctx->memory_update(false); // a copy that waits would overwrite it
        }
        const uint32_t n_used = air.kv.cells(air.kv.stream(seq)).get_used();
        if (n_used > 0) {
            throw failure(LLAMA_AIRCACHE_STATE, "the stream of sequence %d holds %u cells: a synthetic prompt goes into an empty one", seq, n_used);
        }
        llama_aircache_synthesise(air, seq, prompt, seed, m);
    });
}

int32_t llama_aircache_clear(llama_context * ctx, llama_seq_id seq) {
    return llama_aircache_guarded([&] {
        auto & air = llama_aircache_open(ctx, seq);
        ctx->synchronize();
        air.observers.forget(seq);
    });
}
