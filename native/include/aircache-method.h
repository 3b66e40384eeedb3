// A method: one point of the grid window x score x allocation x drop or merge (docs/methods.md). C, and nothing of llama.cpp.

#ifndef AIRCACHE_METHOD_H
#define AIRCACHE_METHOD_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum llama_aircache_window {
    LLAMA_AIRCACHE_WINDOW_ELITE  = 0, // text tokens whose attention from the last token is >= alpha * the maximum
    LLAMA_AIRCACHE_WINDOW_LAST   = 1, // the last window_n text tokens
    LLAMA_AIRCACHE_WINDOW_TEXT   = 2, // all text tokens behind the first image
    LLAMA_AIRCACHE_WINDOW_VISUAL = 3, // the last window_n visual tokens
    LLAMA_AIRCACHE_WINDOW_ALL    = 4, // every token from the first visual one on, summed up while the prompt is decoded
};

enum llama_aircache_score_kind {
    LLAMA_AIRCACHE_SCORE_ATTENTION = 0, // of the window's queries
    LLAMA_AIRCACHE_SCORE_RANDOM    = 1, // seeded; a floor
    LLAMA_AIRCACHE_SCORE_STRIDE    = 2, // evenly spread over the visual tokens; a floor
};

enum llama_aircache_keys {
    LLAMA_AIRCACHE_KEYS_WINDOW = 0, // softmax over the visual tokens and the window (AirCache)
    LLAMA_AIRCACHE_KEYS_CAUSAL = 1, // over all tokens that the query sees (the baselines; WINDOW_ALL always)
};

enum llama_aircache_pool {
    LLAMA_AIRCACHE_POOL_NONE = 0,
    LLAMA_AIRCACHE_POOL_AVG  = 1, // zeros beyond the border count
    LLAMA_AIRCACHE_POOL_MAX  = 2,
};

enum llama_aircache_allocation {
    LLAMA_AIRCACHE_ALLOC_AIRCACHE = 0, // (strength + skewness) / 2
    LLAMA_AIRCACHE_ALLOC_UNIFORM  = 1,
    LLAMA_AIRCACHE_ALLOC_PYRAMID  = 2, // PyramidKV: linear, decreasing with depth
    LLAMA_AIRCACHE_ALLOC_STRENGTH = 3,
    LLAMA_AIRCACHE_ALLOC_SKEWNESS = 4,
    LLAMA_AIRCACHE_ALLOC_PREFIX   = 5, // PrefixKV: the same share of the layer's cumulated importance
    LLAMA_AIRCACHE_ALLOC_VL       = 6, // VL-Cache: in proportion to the attention entries that are alive
};

struct llama_aircache_method {
    uint32_t size;          // sizeof(struct llama_aircache_method), as llama_aircache_method_default() sets it: tells versions apart

    double   keep;          // kept share of the visual cells over all layers, (0, 1]
    int32_t  min_keep;      // every layer keeps at least this many, >= 1

    int32_t  window;        // enum llama_aircache_window
    int32_t  window_n;      // of LAST and VISUAL, >= 1
    double   alpha;         // threshold of ELITE, (0, 1]
    bool     elite_content; // ELITE leaves out template tokens
    bool     elite_last;    // ELITE always holds the last token

    int32_t  score;         // enum llama_aircache_score_kind
    int32_t  keys;          // enum llama_aircache_keys
    uint32_t seed;          // of RANDOM
    bool     text_weights;  // TGV-KV: observers weigh by the text attention they receive, instead of all the same
    int32_t  pool;          // enum llama_aircache_pool, inside each image
    int32_t  pool_size;     // odd, >= 1
    bool     pool_2d;       // on the token grid instead of along the run
    double   last_term;     // lambda >= 0 of the gated last-query term
    bool     value_norm;    // times |V|
    bool     diversity;     // MixKV: mixed with the keys' diversity

    int32_t  allocation;    // enum llama_aircache_allocation
    double   uniform_share; // this much of the budgets is shared out evenly, [0, 1]
    int32_t  rank;          // r >= 1: every layer keeps only its r-th most important token (the paper's figure 6); 0: off

    double   merge;         // share of the dropped tokens that is averaged into the nearest kept one, [0, 1]
};

#ifdef __cplusplus
}
#endif

#endif // AIRCACHE_METHOD_H
