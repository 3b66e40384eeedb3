// The C API of llama-aircache.h: checks, error codes, no exception across the border.
#include "llama-aircache.h"

#include "cache/aircache.h"
#include "cache/faults.h"
#include "graph/aircache-run.h"
#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <new>
#include <stdexcept>

// no std::string: to report that memory is out must not take any
static thread_local char last_error[512];

__attribute__((format(printf, 2, 3)))
static int32_t fail(int32_t status, const char * fmt, ...) noexcept {
    va_list args;
    va_start(args, fmt);
    vsnprintf(last_error, sizeof(last_error), fmt, args);
    va_end(args);
    return status;
}

template <typename F>
static int32_t guarded(F && f) noexcept {
    try {
        return f();
    } catch (const llama_aircache_failure & e) {
        return fail(e.status, "%s", e.what());
    } catch (const std::invalid_argument & e) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "%s", e.what());
    } catch (const std::bad_alloc &) {
        return fail(LLAMA_AIRCACHE_MEMORY, "out of memory on the device or host");
    } catch (const std::exception & e) {
        return fail(LLAMA_AIRCACHE_COMPUTE, "%s", e.what());
    } catch (...) {
        return fail(LLAMA_AIRCACHE_COMPUTE, "unknown error");
    }
}

const char * llama_aircache_error(void) {
    return last_error;
}

// value in [lo, hi], and where open_lo not lo itself
static void check_range(const char * name, double value, double lo, double hi, bool open_lo = false) {
    if (!(value >= lo && value <= hi && !(open_lo && value == lo))) {
        char buf[160];
        snprintf(buf, sizeof(buf), "%s is %g: it must be in %c%g, %g]", name, value, open_lo ? '(' : '[', lo, hi);
        throw std::invalid_argument(buf);
    }
}

static void check(const llama_aircache_method * m) {
    if (!m) {
        throw std::invalid_argument("method is null");
    }
    check_range("keep",          m->keep,          0, 1, true);
    check_range("alpha",         m->alpha,         0, 1, true);
    check_range("min_keep",      m->min_keep,      1, INT32_MAX);
    check_range("window",        m->window,        LLAMA_AIRCACHE_WINDOW_ELITE,    LLAMA_AIRCACHE_WINDOW_ALL);
    check_range("score",         m->score,         LLAMA_AIRCACHE_SCORE_ATTENTION, LLAMA_AIRCACHE_SCORE_STRIDE);
    check_range("keys",          m->keys,          LLAMA_AIRCACHE_KEYS_WINDOW,     LLAMA_AIRCACHE_KEYS_CAUSAL);
    check_range("pool",          m->pool,          LLAMA_AIRCACHE_POOL_NONE,       LLAMA_AIRCACHE_POOL_MAX);
    check_range("allocation",    m->allocation,    LLAMA_AIRCACHE_ALLOC_AIRCACHE,  LLAMA_AIRCACHE_ALLOC_VL);
    check_range("last_term",     m->last_term,     0, 1e6);
    check_range("uniform_share", m->uniform_share, 0, 1);
    check_range("rank",          m->rank,          0, INT32_MAX);
    check_range("merge",         m->merge,         0, 1);
    if (m->window == LLAMA_AIRCACHE_WINDOW_LAST || m->window == LLAMA_AIRCACHE_WINDOW_VISUAL) {
        check_range("window_n", m->window_n, 1, 65536);
    }
    if (m->pool != LLAMA_AIRCACHE_POOL_NONE) {
        check_range("pool_size", m->pool_size, 1, 65535);
        if (m->pool_size % 2 == 0) {
            throw std::invalid_argument("pool_size must be odd");
        }
    }
    if (m->uniform_share > 0 && m->allocation == LLAMA_AIRCACHE_ALLOC_PREFIX) {
        throw std::invalid_argument("uniform_share does not go with allocation prefix, which has no weights to blend");
    }
    if (m->text_weights && m->window != LLAMA_AIRCACHE_WINDOW_TEXT) {
        throw std::invalid_argument("text_weights go with the window of all text tokens");
    }
}

// the context's cache, ready for graphs of our own; null after fail()
static llama_aircache * open(llama_context * ctx, llama_seq_id seq, int32_t & status) {
    if (!ctx) {
        status = fail(LLAMA_AIRCACHE_ARGUMENT, "context is null");
        return nullptr;
    }

    std::string reason;
    auto * air = llama_aircache::get(ctx, reason);
    if (!air) {
        status = fail(LLAMA_AIRCACHE_UNSUPPORTED, "the KV cache of a %s model cannot be compressed: %s",
                llm_arch_name(ctx->get_model().arch), reason.c_str());
        return nullptr;
    }
    if (!air->seq_valid(seq)) {
        status = fail(LLAMA_AIRCACHE_ARGUMENT, "sequence %d does not exist", seq);
        return nullptr;
    }

    status = LLAMA_AIRCACHE_OK;
    return air;
}

// as open(), and the prompt must have been observed; n_visual: its visual tokens
static llama_aircache * open_observed(llama_context * ctx, llama_seq_id seq, int32_t & n_visual, int32_t & status) {
    auto * air = open(ctx, seq, status);
    if (air && !air->observer(seq)) {
        status = fail(LLAMA_AIRCACHE_STATE, "sequence %d is not observed: call llama_aircache_observe before its prompt is decoded", seq);
        return nullptr;
    }
    if (air) {
        {
            const llama_aircache_fault_pause others;

            // nothing may be in flight, and shifts and stream copies that wait are applied first
            ctx->synchronize();
            ctx->memory_update(false);
        }

        n_visual = air->cells(seq).visual.size();
        if (n_visual == 0) {
            status = fail(LLAMA_AIRCACHE_STATE, "no visual cells at the observed spans: decode the images first");
            return nullptr;
        }
    }
    return air;
}

int32_t llama_aircache_method_by_name(const char * name, llama_aircache_method * out) {
    if (!name || !out) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "name or out is null");
    }
    const auto * method = aircache::named(name);
    if (!method) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "there is no method named \"%.64s\"", name);
    }
    *out = *method;
    return LLAMA_AIRCACHE_OK;
}

int32_t llama_aircache_supported(llama_context * ctx) {
    return guarded([&] {
        int32_t status;
        open(ctx, 0, status);
        return status;
    });
}

int32_t llama_aircache_observe(llama_context * ctx, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        const llama_aircache_method * method, const uint8_t * is_template) {
    return guarded([&] {
        const llama_aircache_fault_scope faults;

        const auto m = method ? *method : llama_aircache_method_default();
        check(&m);

        int32_t status;
        auto * air = open(ctx, seq, status);
        if (!air) {
            return status;
        }
        if (!spans || n_spans < 1) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "no spans given");
        }
        for (int32_t i = 0; i < n_spans; ++i) {
            const llama_pos before = i > 0 ? spans[i - 1].p1 : 0;
            if (spans[i].p0 < before || spans[i].p1 <= spans[i].p0) {
                return fail(LLAMA_AIRCACHE_ARGUMENT, "span %d is [%d, %d): spans must be ascending and not empty", i, spans[i].p0, spans[i].p1);
            }
        }
        if (const auto * zone = air->zone_of(air->stream(seq), seq); zone && spans[0].p0 < zone->p1) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "span 0 is [%d, %d), but the positions before %d belong to an image that is compressed "
                    "already, or to the text before it: remove the sequence first", spans[0].p0, spans[0].p1, zone->p1);
        }
        if (pos_end <= spans[n_spans - 1].p1) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "the prompt ends at %d, within or right behind its last image: it must end in text", pos_end);
        }
        int64_t n_text = (int64_t) pos_end - spans[0].p1;
        for (int32_t i = 1; i < n_spans; ++i) {
            n_text -= spans[i].p1 - spans[i].p0;
        }
        if (n_text > air->n_cells()) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "%" PRId64 " text tokens behind the first image are more than the cache's %u cells", n_text, air->n_cells());
        }
        if (m.window == LLAMA_AIRCACHE_WINDOW_ALL && air->n_stream() > 1) {
            return fail(LLAMA_AIRCACHE_UNSUPPORTED, "the window of all tokens needs a cache of one stream, this one has %u", air->n_stream());
        }
        if (m.window == LLAMA_AIRCACHE_WINDOW_ALL && m.score == LLAMA_AIRCACHE_SCORE_ATTENTION) {
            // it takes the whole attention a second time, and of sequences that share a stream only one can be compressed
            const auto * other = air->summing(air->stream(seq));
            if (other && other->seq != seq) {
                return fail(LLAMA_AIRCACHE_STATE, "sequence %d of the same cache stream is observed with the window of all tokens already: "
                        "evict or clear it first", other->seq);
            }
        }
        if (m.merge > 0) {
            const auto reason = air->missing_op(true);
            if (!reason.empty()) {
                return fail(LLAMA_AIRCACHE_UNSUPPORTED, "tokens cannot be merged: %s", reason.c_str());
            }
        }

        ctx->synchronize();
        air->observe(seq, spans, n_spans, pos_end, m, is_template);
        return (int32_t) LLAMA_AIRCACHE_OK;
    });
}

int32_t llama_aircache_dims(llama_context * ctx, llama_seq_id seq, int32_t * n_layer, int32_t * n_visual, int32_t * n_text) {
    return guarded([&] {
        int32_t status;
        auto * air = open(ctx, seq, status);
        if (!air) {
            return status;
        }
        const auto * obs = air->observer(seq);
        if (n_layer)  { *n_layer  = air->n_layer(); }
        if (n_visual) { *n_visual = obs ? air->cells(seq).visual.size() : 0; }
        if (n_text)   { *n_text   = obs ? obs->n_text : 0; }
        return status;
    });
}

int32_t llama_aircache_score(llama_context * ctx, llama_seq_id seq, const llama_aircache_method * method,
        float * scores, uint8_t * observers, double * alive) {
    return guarded([&] {
        const llama_aircache_fault_scope faults;

        check(method);

        int32_t n_visual;
        int32_t status;
        auto * air = open_observed(ctx, seq, n_visual, status);
        if (!air) {
            return status;
        }
        if (!scores) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "scores is null");
        }
        llama_aircache_run_score(ctx, *air, seq, *method, scores, observers, alive);
        return status;
    });
}

static int32_t check_scores(const float * scores, int32_t n_layer, int32_t n_visual) {
    if (!scores || n_layer < 1 || n_visual < 1) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "scores must be [n_layer >= 1, n_visual >= 1], got [%d, %d]", n_layer, n_visual);
    }
    if ((int64_t) n_layer*n_visual > INT32_MAX) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "scores [%d, %d] are more than %d", n_layer, n_visual, INT32_MAX);
    }
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        if (!(scores[i] >= 0.0f && std::isfinite(scores[i]))) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "score %zu is %g: scores must be finite and not negative", i, scores[i]);
        }
    }
    return LLAMA_AIRCACHE_OK;
}

int32_t llama_aircache_allocate(const llama_aircache_method * method, const float * scores, const double * alive,
        int32_t n_layer, int32_t n_visual, int32_t * budgets, double * strength, double * skewness) {
    return guarded([&] {
        check(method);

        const int32_t status = check_scores(scores, n_layer, n_visual);
        if (status) {
            return status;
        }
        if (!budgets) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "budgets is null");
        }
        if (method->allocation == LLAMA_AIRCACHE_ALLOC_VL && !alive) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "allocation vl needs the layers' counts of living entries");
        }
        for (int32_t l = 0; method->allocation == LLAMA_AIRCACHE_ALLOC_VL && l < n_layer; ++l) {
            if (!(alive[l] >= 0.0 && std::isfinite(alive[l]))) {
                return fail(LLAMA_AIRCACHE_ARGUMENT, "alive[%d] is %g: counts must be finite and not negative", l, alive[l]);
            }
        }

        const auto st = aircache::strength(scores, n_layer, n_visual);
        const auto sk = aircache::skewness(scores, n_layer, n_visual);
        if (strength) { std::copy(st.begin(), st.end(), strength); }
        if (skewness) { std::copy(sk.begin(), sk.end(), skewness); }

        const auto res = aircache::allocate(*method, scores, st, sk, alive, n_layer, n_visual);
        std::copy(res.begin(), res.end(), budgets);
        return status;
    });
}

int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual, const int32_t * budgets, int32_t rank, int32_t * kept) {
    return guarded([&] {
        const int32_t status = check_scores(scores, n_layer, n_visual);
        if (status) {
            return status;
        }
        if (!budgets || !kept) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "budgets or kept is null");
        }
        if (rank < 0 || rank > n_visual) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "rank is %d: it must be in [0, %d]", rank, n_visual);
        }
        for (int32_t l = 0; l < n_layer; ++l) {
            if (budgets[l] < 0 || budgets[l] > n_visual || (rank > 0 && budgets[l] != 1)) {
                return fail(LLAMA_AIRCACHE_ARGUMENT, "budget %d of layer %d is outside of [0, %d], or not 1 with a rank", budgets[l], l, n_visual);
            }
            if (rank > 0) {
                aircache::only_nth(scores + (size_t) l*n_visual, n_visual, rank, kept);
            } else {
                aircache::top_n(scores + (size_t) l*n_visual, n_visual, budgets[l], kept);
            }
            kept += budgets[l];
        }
        return status;
    });
}

int32_t llama_aircache_evict(llama_context * ctx, llama_seq_id seq, const int32_t * budgets, const int32_t * kept, double merge, bool mask_only) {
    return guarded([&] {
        const llama_aircache_fault_scope faults;

        check_range("merge", merge, 0, mask_only ? 0 : 1);

        int32_t n_visual;
        int32_t status;
        auto * air = open_observed(ctx, seq, n_visual, status);
        if (!air) {
            return status;
        }
        if (!budgets || !kept) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "budgets or kept is null");
        }

        const int32_t * cur = kept;
        for (uint32_t l = 0; l < air->n_layer(); ++l) {
            if (budgets[l] < 1 || budgets[l] > n_visual) {
                return fail(LLAMA_AIRCACHE_ARGUMENT, "budget %d of layer %u is outside of [1, %d]", budgets[l], l, n_visual);
            }
            for (int32_t i = 0; i < budgets[l]; ++i, ++cur) {
                if (*cur < (i > 0 ? cur[-1] + 1 : 0) || *cur >= n_visual) {
                    return fail(LLAMA_AIRCACHE_ARGUMENT, "kept index %d of layer %u: indices must ascend within [0, %d)", *cur, l, n_visual);
                }
            }
        }

        air->check_complete(seq);

        const auto reason = merge > 0 ? air->missing_op(true) : "";
        if (!reason.empty()) {
            return fail(LLAMA_AIRCACHE_UNSUPPORTED, "tokens cannot be merged: %s", reason.c_str());
        }

        if (cur - kept == (ptrdiff_t) air->n_layer()*n_visual) {
            air->forget(seq); // everything is kept: leave the cache, and with it every bit of what follows, as it is
        } else if (mask_only) {
            air->hide(seq, budgets, kept);
        } else {
            auto lay = air->plan(seq, budgets, kept, merge);
            try {
                llama_aircache_run_evict(ctx, *air, seq, lay);
            } catch (const llama_aircache_failure & e) {
                if (e.status == LLAMA_AIRCACHE_COMPUTE) {
                    air->drop(seq); // some rows may have moved; whatever else is thrown, none has
                }
                throw;
            }
            air->commit(seq, std::move(lay));
        }
        return status;
    });
}

int32_t llama_aircache_stats(llama_context * ctx, llama_seq_id seq, llama_aircache_seq_stats * out) {
    return guarded([&] {
        int32_t status;
        auto * air = open(ctx, seq, status);
        if (air && !out) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "out is null");
        }
        if (air) {
            air->stats(seq, *out);
        }
        return status;
    });
}

int32_t llama_aircache_clear(llama_context * ctx, llama_seq_id seq) {
    return guarded([&] {
        int32_t status;
        auto * air = open(ctx, seq, status);
        if (air) {
            ctx->synchronize();
            air->forget(seq);
        }
        return status;
    });
}
