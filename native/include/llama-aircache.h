// AirCache on a llama_context: observe, score, allocate, evict, stats, clear.
//
// Per-layer eviction of visual KV cells after a multimodal prefill (AirCache, ICCV 2025, arXiv 2503.23956). Usage:
//
//   llama_aircache_observe (ctx, seq, spans, n_spans, pos_end);  // before the text behind the first image is decoded
//   llama_decode(...)                                            // the prompt, in any batches
//   llama_aircache_score   (ctx, seq, &method, scores, observers);
//   llama_aircache_allocate(&method, scores, n_layer, n_visual, budgets, NULL, NULL);
//   llama_aircache_select  (scores, n_layer, n_visual, budgets, kept);
//   llama_aircache_evict   (ctx, seq, budgets, kept, false);     // then sample the first token, from the full cache's logits
//
// C-compatible. Nothing throws or aborts across this border: every function returns LLAMA_AIRCACHE_OK or a negative
// status and leaves a message for llama_aircache_error(). After a failure the context is as it was before the call.
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
};

enum llama_aircache_window {
    LLAMA_AIRCACHE_WINDOW_ELITE = 0, // text tokens whose attention from the last token is >= alpha * the maximum
    LLAMA_AIRCACHE_WINDOW_LAST  = 1, // the last window_n text tokens
    LLAMA_AIRCACHE_WINDOW_TEXT  = 2, // all text tokens behind the first image
};

enum llama_aircache_allocation {
    LLAMA_AIRCACHE_ALLOC_AIRCACHE = 0, // (strength + skewness) / 2
    LLAMA_AIRCACHE_ALLOC_UNIFORM  = 1,
    LLAMA_AIRCACHE_ALLOC_PYRAMID  = 2, // PyramidKV: linear, decreasing with depth
    LLAMA_AIRCACHE_ALLOC_STRENGTH = 3,
    LLAMA_AIRCACHE_ALLOC_SKEWNESS = 4,
    LLAMA_AIRCACHE_ALLOC_PREFIX   = 5, // PrefixKV: the same share of the layer's cumulated importance
};

struct llama_aircache_method {
    double  keep;       // kept share of the visual cells over all layers, (0, 1]
    double  alpha;      // threshold of the elite window, (0, 1]
    int32_t window;     // enum llama_aircache_window
    int32_t window_n;   // of WINDOW_LAST, >= 1
    int32_t allocation; // enum llama_aircache_allocation
    int32_t min_keep;   // every layer keeps at least this many, >= 1
};

// keep 0.1, alpha 0.9, elite window, strength + skewness, min_keep 1
LLAMA_API struct llama_aircache_method llama_aircache_method_default(void);

// Message of the last failed call of this thread.
LLAMA_API const char * llama_aircache_error(void);

// OK, or UNSUPPORTED with the reason in the message.
LLAMA_API int32_t llama_aircache_supported(struct llama_context * ctx);

// From now on remember the queries of seq's text tokens at the positions [spans[0].p1, pos_end) outside of the spans
// (T of method section 1). pos_end: one past the prompt's last token. Costs n_text * n_head * head size * 4 bytes in
// every layer until evict or clear. Replaces an earlier observation of seq.
LLAMA_API int32_t llama_aircache_observe(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end);

// Sizes of the observation: KV layers, visual tokens N_v (0 while the prompt is not decoded), text tokens |T|.
LLAMA_API int32_t llama_aircache_dims(struct llama_context * ctx, llama_seq_id seq,
        int32_t * n_layer, int32_t * n_visual, int32_t * n_text);

// Importance I (method section 1): scores [n_layer, n_visual]; observers [n_layer, n_text]: 1 where the text token
// belongs to the layer's window (NULL: not wanted).
LLAMA_API int32_t llama_aircache_score(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_method * method, float * scores, uint8_t * observers);

// Layer budgets (method section 2). Pure. budgets [n_layer]; strength, skewness: [n_layer] as measured, or NULL.
LLAMA_API int32_t llama_aircache_allocate(const struct llama_aircache_method * method,
        const float * scores, int32_t n_layer, int32_t n_visual, int32_t * budgets, double * strength, double * skewness);

// The budgets[l] highest scores of each layer, ties to the lower index (method section 3). Pure.
// kept [sum of budgets]: layer after layer, ascending.
LLAMA_API int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual,
        const int32_t * budgets, int32_t * kept);

// Keeps only the given visual tokens of the observed spans in every layer and closes up the cache; ends the observation.
// mask_only: nothing is moved or freed, the others are hidden by masks (the oracle for tests).
LLAMA_API int32_t llama_aircache_evict(struct llama_context * ctx, llama_seq_id seq,
        const int32_t * budgets, const int32_t * kept, bool mask_only);

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
