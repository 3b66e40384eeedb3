// AirCache on a llama_context: observe, score, allocate, evict, stats, clear.
//
// Per-layer eviction of visual KV cells after a multimodal prefill (AirCache, ICCV 2025, arXiv 2503.23956). Usage:
//
//   llama_aircache_observe (ctx, seq, spans, n_spans, pos_end, &method, NULL);  // before the first image is decoded
//   llama_decode(...)                                                           // the prompt, in any batches
//   llama_aircache_score   (ctx, seq, &method, scores, NULL, NULL);
//   llama_aircache_allocate(&method, scores, NULL, n_layer, n_visual, budgets, NULL, NULL);
//   llama_aircache_select  (scores, n_layer, n_visual, budgets, 0, kept);
//   llama_aircache_evict   (ctx, seq, budgets, kept, 0.0, false);
//   ...                                    // sample the first token from the full cache's logits
//
// C-compatible. Nothing throws or aborts across this border: every function returns LLAMA_AIRCACHE_OK or a negative
// status and leaves a message for llama_aircache_error(). After a failure the context is as it was before the call, but for
// one: when a backend fails while it computes llama_aircache_evict's moves (COMPUTE), the sequence is removed. What cannot be
// caught is a host that has no memory left for ggml's own bookkeeping.
// Unused, it costs nothing: same graphs, same bytes as an unpatched llama.cpp.

#ifndef LLAMA_AIRCACHE_H
#define LLAMA_AIRCACHE_H

#include "llama.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum llama_aircache_status {
    LLAMA_AIRCACHE_OK          =  0,
    LLAMA_AIRCACHE_ARGUMENT    = -1, // a value outside its limits
    LLAMA_AIRCACHE_UNSUPPORTED = -2, // this cache or model cannot be compressed: the message says why
    LLAMA_AIRCACHE_STATE       = -3, // called in the wrong order, or the prompt was not decoded completely
    LLAMA_AIRCACHE_MEMORY      = -4,
    LLAMA_AIRCACHE_COMPUTE     = -5,
};

// One run of visual tokens: the positions [p0, p1) of a sequence. With M-RoPE all of an image's tokens stand at p0 and
// the next text token at p1; otherwise p1 - p0 is the number of tokens.
struct llama_aircache_span {
    llama_pos p0;
    llama_pos p1;
    int32_t   nx; // columns of the token grid, for 2-D pooling; 0: no grid
};

//
// A method: one point of the grid window x score x allocation x drop or merge (docs/methods.md)
//

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

// keep 0.1, alpha 0.9, elite window, strength + skewness, drop, min_keep 1
LLAMA_API struct llama_aircache_method llama_aircache_method_default(void);

// A named method, with keep 0.1: index 0, 1, ... until NULL is returned.
LLAMA_API const char * llama_aircache_method_name(int32_t index);
LLAMA_API int32_t      llama_aircache_method_by_name(const char * name, struct llama_aircache_method * out);

// Message of the last failed call of this thread.
LLAMA_API const char * llama_aircache_error(void);

// OK, or UNSUPPORTED with the reason in the message.
LLAMA_API int32_t llama_aircache_supported(struct llama_context * ctx);

// From now on remember what the method needs of seq: the queries of its text tokens at the positions
// [spans[0].p1, pos_end) outside of the spans (T of docs/method.md, section 1), those of the last visual tokens
// (WINDOW_VISUAL), or the attention of every token summed up (WINDOW_ALL). pos_end: one past the prompt's last
// token. method: NULL for the default. is_template [|T|]: 1 for text tokens that elite_content leaves out, or NULL.
// Costs |T| * n_head * head size * 2 bytes in every layer until evict or clear (4 beside an F32 or BF16 cache; fewer queries
// where the method needs fewer). Replaces an earlier observation of seq. STATE: another sequence of the cache is observed
// with WINDOW_ALL already.
// Spans before the end of an image that is compressed already are refused: remove the sequence first.
LLAMA_API int32_t llama_aircache_observe(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        const struct llama_aircache_method * method, const uint8_t * is_template);

// Sizes of the observation: KV layers, visual tokens N_v (0 while the prompt is not decoded), text tokens |T|.
LLAMA_API int32_t llama_aircache_dims(struct llama_context * ctx, llama_seq_id seq,
        int32_t * n_layer, int32_t * n_visual, int32_t * n_text);

// Importance I (docs/method.md, section 1): scores [n_layer, n_visual]; observers [n_layer, n_text]: 1 where the text
// token belongs to the layer's window; alive [n_layer]: attention entries of at least 1 % of their row's maximum with
// ALLOC_VL, 0 otherwise. observers, alive: NULL when not wanted. STATE: the method needs more than the
// observed one did.
LLAMA_API int32_t llama_aircache_score(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_method * method, float * scores, uint8_t * observers, double * alive);

// Layer budgets (docs/method.md, section 2). Pure. alive [n_layer]: of llama_aircache_score, needed by ALLOC_VL alone.
// budgets [n_layer]; strength, skewness: [n_layer] as measured, or NULL.
LLAMA_API int32_t llama_aircache_allocate(const struct llama_aircache_method * method,
        const float * scores, const double * alive, int32_t n_layer, int32_t n_visual,
        int32_t * budgets, double * strength, double * skewness);

// The budgets[l] highest scores of each layer, ties to the lower index (docs/method.md, section 3). Pure.
// rank: 0, or r: the r-th highest alone (budgets must be 1). kept [sum of budgets]: layer after layer, ascending.
LLAMA_API int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual,
        const int32_t * budgets, int32_t rank, int32_t * kept);

// Keeps only the given visual tokens of the observed spans in every layer and closes up the cache; ends the observation.
// merge: share of the dropped tokens, nearest first, that is averaged into the nearest kept one of its layer.
// mask_only: nothing is moved or freed, the others are hidden by masks (the oracle for tests); merge must be 0.
LLAMA_API int32_t llama_aircache_evict(struct llama_context * ctx, llama_seq_id seq,
        const int32_t * budgets, const int32_t * kept, double merge, bool mask_only);

struct llama_aircache_seq_stats {
    int32_t n_cells;    // cells of the sequence's stream in use (all layers share the table)
    int32_t n_free;     // cells still free in it
    int32_t n_zone;     // length of the visual zone, 0 when nothing is compressed
    int64_t kv_bytes;   // bytes that attention reads: sum over layers of (n_cells - start[l]) * row bytes
    int64_t kv_bytes_cell; // row bytes of one cell in all layers, K and V
};
LLAMA_API int32_t llama_aircache_stats(struct llama_context * ctx, llama_seq_id seq, struct llama_aircache_seq_stats * out);

// Ends an observation and frees its memory. What is compressed stays so (llama_memory_seq_rm removes it).
LLAMA_API int32_t llama_aircache_clear(struct llama_context * ctx, llama_seq_id seq);

#ifdef __cplusplus
}
#endif

#endif // LLAMA_AIRCACHE_H
