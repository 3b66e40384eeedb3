// The C API of llama-aircache.h: checks, error codes, no exception across the border.
#include "llama-aircache.h"

#include "cache/aircache.h"
#include "graph/aircache-run.h"
#include "llama-context.h"
#include "policy/policy.h"

#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <new>
#include <stdexcept>

static thread_local std::string last_error;

__attribute__((format(printf, 2, 3)))
static int32_t fail(int32_t status, const char * fmt, ...) {
    char buf[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(buf, sizeof(buf), fmt, args);
    va_end(args);
    last_error = buf;
    return status;
}

template <typename F>
static int32_t guarded(F && f) {
    try {
        return f();
    } catch (const std::bad_alloc &) {
        return fail(LLAMA_AIRCACHE_MEMORY, "out of memory on the device or host");
    } catch (const std::exception & e) {
        return fail(LLAMA_AIRCACHE_COMPUTE, "%s", e.what());
    } catch (...) {
        return fail(LLAMA_AIRCACHE_COMPUTE, "unknown error");
    }
}

const char * llama_aircache_error(void) {
    return last_error.c_str();
}

llama_aircache_method llama_aircache_method_default(void) {
    return { 0.1, 0.9, LLAMA_AIRCACHE_WINDOW_ELITE, 32, LLAMA_AIRCACHE_ALLOC_AIRCACHE, 1 };
}

static int32_t check(const llama_aircache_method * m) {
    if (!m) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "method is null");
    }
    if (!(m->keep > 0.0 && m->keep <= 1.0)) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "keep is %g: it must be in (0, 1]", m->keep);
    }
    if (!(m->alpha > 0.0 && m->alpha <= 1.0)) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "alpha is %g: it must be in (0, 1]", m->alpha);
    }
    if (m->window < LLAMA_AIRCACHE_WINDOW_ELITE || m->window > LLAMA_AIRCACHE_WINDOW_TEXT) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "window is %d: known are 0 (elite), 1 (last), 2 (text)", m->window);
    }
    if (m->window == LLAMA_AIRCACHE_WINDOW_LAST && m->window_n < 1) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "window_n is %d: it must be at least 1", m->window_n);
    }
    if (m->allocation < LLAMA_AIRCACHE_ALLOC_AIRCACHE || m->allocation > LLAMA_AIRCACHE_ALLOC_PREFIX) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "allocation is %d: known are 0 to %d", m->allocation, LLAMA_AIRCACHE_ALLOC_PREFIX);
    }
    if (m->min_keep < 1) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "min_keep is %d: it must be at least 1", m->min_keep);
    }
    return LLAMA_AIRCACHE_OK;
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
        status = fail(LLAMA_AIRCACHE_UNSUPPORTED, "the KV cache cannot be compressed: %s", reason.c_str());
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
        // nothing may be in flight, and shifts and stream copies that wait are applied first
        ctx->synchronize();
        ctx->memory_update(false);

        n_visual = air->cells_visual(seq).size();
        if (n_visual == 0) {
            status = fail(LLAMA_AIRCACHE_STATE, "no visual cells at the observed spans: decode the images first");
            return nullptr;
        }
    }
    return air;
}

int32_t llama_aircache_supported(llama_context * ctx) {
    return guarded([&] {
        int32_t status;
        open(ctx, 0, status);
        return status;
    });
}

int32_t llama_aircache_observe(llama_context * ctx, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end) {
    return guarded([&] {
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
        if (pos_end <= spans[n_spans - 1].p1) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "the prompt ends at %d, within or right behind its last image: it must end in text", pos_end);
        }

        ctx->synchronize();
        air->observe(seq, spans, n_spans, pos_end);
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
        if (n_visual) { *n_visual = obs ? air->cells_visual(seq).size() : 0; }
        if (n_text)   { *n_text   = obs ? obs->n_slots : 0; }
        return status;
    });
}

int32_t llama_aircache_score(llama_context * ctx, llama_seq_id seq, const llama_aircache_method * method, float * scores, uint8_t * observers) {
    return guarded([&] {
        int32_t n_visual;
        int32_t status = check(method);
        auto * air = status ? nullptr : open_observed(ctx, seq, n_visual, status);
        if (!air) {
            return status;
        }
        if (!scores) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "scores is null");
        }
        llama_aircache_run_score(ctx, *air, seq, *method, scores, observers);
        return status;
    });
}

static int32_t check_scores(const float * scores, int32_t n_layer, int32_t n_visual) {
    if (!scores || n_layer < 1 || n_visual < 1) {
        return fail(LLAMA_AIRCACHE_ARGUMENT, "scores must be [n_layer >= 1, n_visual >= 1], got [%d, %d]", n_layer, n_visual);
    }
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        if (!(scores[i] >= 0.0f && std::isfinite(scores[i]))) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "score %zu is %g: scores must be finite and not negative", i, scores[i]);
        }
    }
    return LLAMA_AIRCACHE_OK;
}

int32_t llama_aircache_allocate(const llama_aircache_method * method, const float * scores, int32_t n_layer, int32_t n_visual,
        int32_t * budgets, double * strength, double * skewness) {
    return guarded([&] {
        int32_t status = check(method);
        status = status ? status : check_scores(scores, n_layer, n_visual);
        if (status) {
            return status;
        }
        if (!budgets) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "budgets is null");
        }

        std::vector<double> st(n_layer);
        std::vector<double> sk(n_layer);
        for (int32_t l = 0; l < n_layer; ++l) {
            st[l] = aircache::strength(scores + (size_t) l*n_visual, n_visual);
            sk[l] = aircache::skewness(scores + (size_t) l*n_visual, n_visual);
            if (strength) { strength[l] = st[l]; }
            if (skewness) { skewness[l] = sk[l]; }
        }

        const int32_t lo    = std::min(method->min_keep, n_visual);
        const double  exact = method->keep*n_layer*n_visual;
        const int64_t total = std::max<int64_t>(std::floor(exact + 0.5), (int64_t) lo*n_layer);

        std::vector<int32_t> res;
        if (method->allocation == LLAMA_AIRCACHE_ALLOC_PREFIX) {
            res = aircache::prefix_budgets(scores, n_layer, n_visual, total, lo);
        } else {
            const auto weights = aircache::layer_weights(method->allocation, method->keep*n_visual, n_visual, st, sk);
            const auto real    = aircache::spread(weights, std::max(exact, (double) lo*n_layer), lo, n_visual);
            res = aircache::round_to_total(real, total, n_visual);
        }

        std::copy(res.begin(), res.end(), budgets);
        return status;
    });
}

int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual, const int32_t * budgets, int32_t * kept) {
    return guarded([&] {
        const int32_t status = check_scores(scores, n_layer, n_visual);
        if (status) {
            return status;
        }
        if (!budgets || !kept) {
            return fail(LLAMA_AIRCACHE_ARGUMENT, "budgets or kept is null");
        }
        for (int32_t l = 0; l < n_layer; ++l) {
            if (budgets[l] < 0 || budgets[l] > n_visual) {
                return fail(LLAMA_AIRCACHE_ARGUMENT, "budget %d of layer %d is outside of [0, %d]", budgets[l], l, n_visual);
            }
            aircache::top_n(scores + (size_t) l*n_visual, n_visual, budgets[l], kept);
            kept += budgets[l];
        }
        return status;
    });
}

int32_t llama_aircache_evict(llama_context * ctx, llama_seq_id seq, const int32_t * budgets, const int32_t * kept, bool mask_only) {
    return guarded([&] {
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

        if (cur - kept == (ptrdiff_t) air->n_layer()*n_visual) {
            // everything is kept: leave the cache, and with it every bit of what follows, as it is
        } else if (mask_only) {
            air->hide(seq, budgets, kept);
        } else {
            const auto lay = air->plan(seq, budgets, kept);
            llama_aircache_run_evict(ctx, *air, seq, lay);
            air->commit(seq, lay);
        }
        air->forget(seq);
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
