// The named methods: points of the grid (docs/methods.md), as the paper runs them: visual tokens only, one set a layer.
#include "policy/policy.h"

#include <cstring>

llama_aircache_method llama_aircache_method_default(void) {
    llama_aircache_method res = {};
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
    llama_aircache_method res = llama_aircache_method_default();
    res.window     = window;
    res.window_n   = window_n;
    res.keys       = LLAMA_AIRCACHE_KEYS_CAUSAL;
    res.allocation = allocation;
    return res;
}

static llama_aircache_method pooled(llama_aircache_method m) {
    m.pool = LLAMA_AIRCACHE_POOL_AVG;
    return m;
}

static llama_aircache_method unobserved(llama_aircache_score_kind score) {
    llama_aircache_method res = llama_aircache_method_default();
    res.score      = score;
    res.allocation = LLAMA_AIRCACHE_ALLOC_UNIFORM;
    return res;
}

static llama_aircache_method full() {
    llama_aircache_method res = llama_aircache_method_default();
    res.keep = 1.0;
    return res;
}

// In visual tokens and with one set a layer, H2O and Elastic Cache (without its merge) are the same point.
static const struct { const char * name; llama_aircache_method method; } METHODS[] = {
    { "aircache",  llama_aircache_method_default() },
    { "snapkv",    pooled(baseline(LLAMA_AIRCACHE_WINDOW_LAST, 32, LLAMA_AIRCACHE_ALLOC_UNIFORM)) },
    { "h2o",       baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "elastic",   baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "prefixkv",  baseline(LLAMA_AIRCACHE_WINDOW_ALL,   1, LLAMA_AIRCACHE_ALLOC_PREFIX) },
    { "pyramidkv", pooled(baseline(LLAMA_AIRCACHE_WINDOW_LAST, 32, LLAMA_AIRCACHE_ALLOC_PYRAMID)) },
    { "vlcache",   baseline(LLAMA_AIRCACHE_WINDOW_TEXT,  1, LLAMA_AIRCACHE_ALLOC_VL) },
    { "last",      baseline(LLAMA_AIRCACHE_WINDOW_LAST,  1, LLAMA_AIRCACHE_ALLOC_UNIFORM) },
    { "random",    unobserved(LLAMA_AIRCACHE_SCORE_RANDOM) },
    { "stride",    unobserved(LLAMA_AIRCACHE_SCORE_STRIDE) },
    { "full",      full() },
};

const char * llama_aircache_method_name(int32_t index) {
    return index >= 0 && (size_t) index < sizeof(METHODS)/sizeof(METHODS[0]) ? METHODS[index].name : nullptr;
}

const llama_aircache_method * aircache::named(const char * name) {
    for (const auto & m : METHODS) {
        if (strcmp(m.name, name) == 0) {
            return &m.method;
        }
    }
    return nullptr;
}
