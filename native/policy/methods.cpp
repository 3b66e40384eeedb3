// The grid of methods (docs/methods.md): its limits, and the named points, as the paper runs them: visual tokens only, one set a
// layer.
#include "policy/policy.h"

#include <cstdio>
#include <cstring>

namespace aircache {

llama_aircache_method default_method() {
    llama_aircache_method res = {};
    res.size       = sizeof(res);
    res.keep       = 0.1;
    res.min_keep   = 1;
    res.window     = LLAMA_AIRCACHE_WINDOW_ELITE;
    res.window_n   = 32;
    res.alpha      = 0.9;
    res.score      = LLAMA_AIRCACHE_SCORE_ATTENTION;
    res.keys       = LLAMA_AIRCACHE_KEYS_WINDOW;
    res.pool_size  = 5;
    res.allocation = LLAMA_AIRCACHE_ALLOC_AIRCACHE;
    return res;
}

static llama_aircache_method baseline(llama_aircache_window window, int32_t window_n, llama_aircache_allocation allocation) {
    llama_aircache_method res = default_method();
    res.window     = window;
    res.window_n   = window_n;
    res.keys       = LLAMA_AIRCACHE_KEYS_CAUSAL;
    res.allocation = allocation;
    return res;
}

static llama_aircache_method averaged(llama_aircache_method m) {
    m.pool = LLAMA_AIRCACHE_POOL_AVG;
    return m;
}

static llama_aircache_method unobserved(llama_aircache_score_kind score) {
    llama_aircache_method res = default_method();
    res.score      = score;
    res.allocation = LLAMA_AIRCACHE_ALLOC_UNIFORM;
    return res;
}

static llama_aircache_method full() {
    llama_aircache_method res = default_method();
    res.keep = 1.0;
    return res;
}

// In visual tokens and with one set a layer, H2O and Elastic Cache (without its merge) are the same point.
static const struct { const char * name; llama_aircache_method method; } METHODS[] = {
    { "aircache",  default_method() },
    { "snapkv",    averaged(baseline(LLAMA_AIRCACHE_WINDOW_LAST, 32, LLAMA_AIRCACHE_ALLOC_UNIFORM)) },
    { "h2o",       baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "elastic",   baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "prefixkv",  baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_PREFIX) },
    { "pyramidkv", averaged(baseline(LLAMA_AIRCACHE_WINDOW_LAST, 32, LLAMA_AIRCACHE_ALLOC_PYRAMID)) },
    { "vlcache",   baseline(LLAMA_AIRCACHE_WINDOW_TEXT,  1, LLAMA_AIRCACHE_ALLOC_VL) },
    { "last",      baseline(LLAMA_AIRCACHE_WINDOW_LAST,  1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "random",    unobserved(LLAMA_AIRCACHE_SCORE_RANDOM) },
    { "stride",    unobserved(LLAMA_AIRCACHE_SCORE_STRIDE) },
    { "full",      full() },
};

const char * name_of(int32_t index) {
    return index >= 0 && (size_t) index < sizeof(METHODS)/sizeof(METHODS[0]) ? METHODS[index].name : nullptr;
}

const llama_aircache_method * named(const char * name) {
    for (const auto & m : METHODS) {
        if (strcmp(m.name, name) == 0) {
            return &m.method;
        }
    }
    return nullptr;
}

//
// limits
//

// value in [lo, hi], and where open_lo not lo itself
static std::string outside(const char * name, double value, double lo, double hi, bool open_lo = false) {
    if (value >= lo && value <= hi && !(open_lo && value == lo)) {
        return "";
    }
    char buf[160];
    snprintf(buf, sizeof(buf), "%s is %g: it must be in %c%g, %g]", name, value, open_lo ? '(' : '[', lo, hi);
    return buf;
}

std::string invalid(const llama_aircache_method & m) {
    if (m.size != sizeof(m)) {
        return "the method's size is " + std::to_string(m.size) + ", and this library's " + std::to_string(sizeof(m)) +
            ": begin with llama_aircache_method_default(), or build with this library's header";
    }

    const bool counted = m.window == LLAMA_AIRCACHE_WINDOW_LAST || m.window == LLAMA_AIRCACHE_WINDOW_VISUAL;
    const bool pooled  = m.pool != LLAMA_AIRCACHE_POOL_NONE;

    const std::string found[] = {
        outside("keep",          m.keep,          0, 1, true),
        outside("alpha",         m.alpha,         0, 1, true),
        outside("min_keep",      m.min_keep,      1, INT32_MAX),
        outside("window",        m.window,        LLAMA_AIRCACHE_WINDOW_ELITE,    LLAMA_AIRCACHE_WINDOW_ALL),
        outside("score",         m.score,         LLAMA_AIRCACHE_SCORE_ATTENTION, LLAMA_AIRCACHE_SCORE_STRIDE),
        outside("keys",          m.keys,          LLAMA_AIRCACHE_KEYS_WINDOW,     LLAMA_AIRCACHE_KEYS_CAUSAL),
        outside("pool",          m.pool,          LLAMA_AIRCACHE_POOL_NONE,       LLAMA_AIRCACHE_POOL_MAX),
        outside("allocation",    m.allocation,    LLAMA_AIRCACHE_ALLOC_AIRCACHE,  LLAMA_AIRCACHE_ALLOC_VL),
        outside("last_term",     m.last_term,     0, 1e6),
        outside("uniform_share", m.uniform_share, 0, 1),
        outside("rank",          m.rank,          0, INT32_MAX),
        outside("merge",         m.merge,         0, 1),
        counted ? outside("window_n",  m.window_n,  1, 65536) : "",
        pooled  ? outside("pool_size", m.pool_size, 1, 65535) : "",
    };
    for (const auto & text : found) {
        if (!text.empty()) {
            return text;
        }
    }

    if (pooled && m.pool_size % 2 == 0) {
        return "pool_size must be odd";
    }
    if (m.uniform_share > 0 && m.allocation == LLAMA_AIRCACHE_ALLOC_PREFIX) {
        return "uniform_share does not go with allocation prefix, which has no weights to blend";
    }
    if (m.text_weights && m.window != LLAMA_AIRCACHE_WINDOW_TEXT) {
        return "text_weights go with the window of all text tokens";
    }
    return "";
}

} // namespace aircache
