// AirCache on a llama_context: observe, compress, stats, clear.
//
// Per-layer eviction of visual KV cells after a multimodal prefill (AirCache, ICCV 2025, arXiv 2503.23956). Usage:
//
//   llama_aircache_observe (ctx, seq, spans, n_spans, pos_end, &method, NULL);  // before the first image is decoded
//   llama_decode(...)                                                           // the prompt, in any batches
//   llama_aircache_compress(ctx, seq, &method, false, &result);                 // scores, budgets, kept sets, eviction
//   ...                                    // sample the first token from the full cache's logits
//
// llama_aircache_compress is four calls in one, which serve by themselves where the choice is somebody else's:
// llama_aircache_score, llama_aircache_allocate, llama_aircache_select, llama_aircache_evict.
//
// C-compatible. Structs that may grow begin with their size, which tells a library and a program of different versions apart:
// llama_aircache_method_default, llama_aircache_stats_empty and llama_aircache_compression_empty set it.
//
// Nothing throws or aborts across this border: every function returns LLAMA_AIRCACHE_OK or a negative status and leaves a
// message for llama_aircache_error(). After a failure the context is as it was before the call, but for
// one: when a backend fails while it computes an eviction's moves (COMPUTE), the sequence is removed. What cannot be
// caught is a host that has no memory left for ggml's own bookkeeping.
// Unused, it costs nothing: same graphs, same bytes as an unpatched llama.cpp.

#ifndef LLAMA_AIRCACHE_H
#define LLAMA_AIRCACHE_H

#include "aircache-method.h"
#include "llama.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

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
    LLAMA_AIRCACHE_FILE        = -6, // of an archive: it cannot be written, or is not what was written
};

// One run of visual tokens: the positions [p0, p1) of a sequence. With M-RoPE all of an image's tokens stand at p0 and
// the next text token at p1; otherwise p1 - p0 is the number of tokens.
struct llama_aircache_span {
    llama_pos p0;
    llama_pos p1;
    int32_t   nx; // columns of the token grid, for 2-D pooling; 0: no grid
};

// keep 0.1, alpha 0.9, elite window, strength + skewness, drop, min_keep 1
LLAMA_API struct llama_aircache_method llama_aircache_method_default(void);

// A named method, with keep 0.1: index 0, 1, ... until NULL is returned.
LLAMA_API const char * llama_aircache_method_name(int32_t index);
LLAMA_API int32_t      llama_aircache_method_by_name(const char * name, struct llama_aircache_method * out);

// Message of the last failed call of this thread. Valid until the next one.
LLAMA_API const char * llama_aircache_error(void);

// OK, or UNSUPPORTED with the reason in the message.
LLAMA_API int32_t llama_aircache_supported(struct llama_context * ctx);

// From now on remember what the method needs of seq: the queries of its text tokens at the positions
// [spans[0].p1, pos_end) outside of the spans (T of docs/method.md, section 1), those of the last visual tokens (WINDOW_VISUAL), or
// the attention of every token summed up (WINDOW_ALL). pos_end: one past the prompt's last token. method: NULL for the
// default. is_template [|T|]: 1 for text tokens that elite_content leaves out, or NULL.
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

// Importance I (docs/method.md, section 1): scores [n_layer, n_visual]; observers [n_layer, n_text]: 1 where the text token
// belongs to the layer's window; alive [n_layer]: attention entries of at least 1 % of their row's maximum with ALLOC_VL,
// 0 otherwise. observers, alive: NULL when not wanted. n_...: elements that the array beside has room for; ARGUMENT, before
// anything is computed, where that is too little. STATE: the method needs more than the observed one did.
LLAMA_API int32_t llama_aircache_score(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_method * method, float * scores, int64_t n_scores, uint8_t * observers, int64_t n_observers,
        double * alive, int64_t n_alive);

// Layer budgets (docs/method.md, section 2). Pure. alive [n_layer]: of llama_aircache_score, needed by ALLOC_VL alone.
// budgets [n_layer]; strength, skewness: [n_layer] as measured, or NULL.
LLAMA_API int32_t llama_aircache_allocate(const struct llama_aircache_method * method,
        const float * scores, const double * alive, int32_t n_layer, int32_t n_visual,
        int32_t * budgets, double * strength, double * skewness);

// The budgets[l] highest scores of each layer, ties to the lower index (docs/method.md, section 3). Pure.
// rank: 0, or r: the r-th highest alone (budgets must be 1). kept [sum of budgets]: layer after layer, ascending; it has room
// for n_kept_max elements (ARGUMENT, with nothing written, where that is too little).
LLAMA_API int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual,
        const int32_t * budgets, int32_t rank, int32_t * kept, int64_t n_kept_max);

// Keeps only the given visual tokens of the observed spans in every layer and closes up the cache; ends the observation.
// merge: share of the dropped tokens, nearest first, that is averaged into the nearest kept one of its layer.
// mask_only: nothing is moved or freed, the others are hidden by masks; merge must be 0. It is the oracle for tests and built
// for them alone (PYAIRCACHE_TESTS): UNSUPPORTED elsewhere.
LLAMA_API int32_t llama_aircache_evict(struct llama_context * ctx, llama_seq_id seq,
        const int32_t * budgets, const int32_t * kept, double merge, bool mask_only);

// What llama_aircache_compress gives. Arrays are the caller's: NULL where not wanted, else with room for as many elements as
// n_... beside them says.
struct llama_aircache_compression {
    uint32_t  size;        // sizeof(struct llama_aircache_compression)

    float   * scores;      // [n_layer, n_visual]
    int64_t   n_scores;
    uint8_t * observers;   // [n_layer, n_text]: as of llama_aircache_score
    int64_t   n_observers;
    double  * alive;       // [n_layer]: likewise
    int64_t   n_alive;
    int32_t * budgets;     // [n_layer]
    int64_t   n_budgets;
    double  * strength;    // [n_layer]
    int64_t   n_strength;
    double  * skewness;    // [n_layer]
    int64_t   n_skewness;
    int32_t * kept;        // [n_kept]: layer after layer, ascending; n_layer * n_visual are always enough
    int64_t   n_kept_max;

    // filled in
    int32_t   n_layer;
    int32_t   n_visual;
    int32_t   n_text;
    int64_t   n_kept;      // sum of budgets
    double    ms_score;    // scores, budgets and kept sets
    double    ms_evict;
};

// all 0 but for the size: the caller's, not the library's
static inline struct llama_aircache_compression llama_aircache_compression_empty(void) {
    struct llama_aircache_compression res;
    memset(&res, 0, sizeof(res));
    res.size = sizeof(res);
    return res;
}

// Score, allocate, select and evict in one call. ARGUMENT, before anything is computed: an array has no room for what it
// shall hold (kept: before anything is evicted). out: NULL when nothing is wanted.
LLAMA_API int32_t llama_aircache_compress(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_method * method, bool mask_only, struct llama_aircache_compression * out);

struct llama_aircache_seq_stats {
    uint32_t size;      // sizeof(struct llama_aircache_seq_stats)
    int32_t n_cells;    // cells of the sequence's stream in use (all layers share the table)
    int32_t n_free;     // cells still free in it
    int32_t n_zone;     // length of the visual zone, 0 when nothing is compressed
    int64_t kv_bytes;   // bytes that attention reads: sum over layers of (n_cells - start[l]) * row bytes
    int64_t kv_bytes_cell; // row bytes of one cell in all layers, K and V
};

// all 0 but for the size: the caller's, not the library's
static inline struct llama_aircache_seq_stats llama_aircache_stats_empty(void) {
    struct llama_aircache_seq_stats res;
    memset(&res, 0, sizeof(res));
    res.size = sizeof(res);
    return res;
}

LLAMA_API int32_t llama_aircache_stats(struct llama_context * ctx, llama_seq_id seq, struct llama_aircache_seq_stats * out);

// Bytes of K and V in all layers (docs/memory.md).
struct llama_aircache_bytes {
    uint32_t size;      // sizeof(struct llama_aircache_bytes)
    int64_t  reserved;  // cells of the context window * row bytes: addresses, and what stock llama.cpp allocates
    int64_t  allocated; // memory that was taken: on Linux and the CPU pages that hold something, elsewhere buffers
};

// all 0 but for the size: the caller's, not the library's
static inline struct llama_aircache_bytes llama_aircache_bytes_empty(void) {
    struct llama_aircache_bytes res;
    memset(&res, 0, sizeof(res));
    res.size = sizeof(res);
    return res;
}

// of a sequence's stream; seq -1: of all of them
LLAMA_API int32_t llama_aircache_memory(struct llama_context * ctx, llama_seq_id seq, struct llama_aircache_bytes * out);

// Where memory does not come and go by pages, on devices: makes the cache's buffers anew with room for n_cells cells a
// sequence, rounded up to 256; at least those in use, at most the context's. What is kept is copied on the device. From then on buffers
// grow by themselves when a decode or a restored state needs more. Elsewhere nothing is done.
// Both buffers are there while rows are copied. MEMORY, COMPUTE: all is as it was.
LLAMA_API int32_t llama_aircache_resize(struct llama_context * ctx, int32_t n_cells);

// For measuring: fills an empty sequence as if a prompt of the positions [0, pos_end) with these spans had been decoded, with
// made-up numbers of a seed in K and V. Nothing is computed, and there are no logits; tokens are decoded behind it, from
// pos_end on, and cells are evicted as of any prompt. Its text ends it, as in llama_aircache_observe. With M-RoPE an image has nx
// columns and p1 - p0 rows; nx must be in [1, p1 - p0].
// method: what llama_aircache_score will ask for, whose queries are made up, too: then it takes the time that it takes. NULL:
// none are, and kept sets are the caller's (llama_aircache_evict). UNSUPPORTED: a method that sums up attention (WINDOW_ALL).
// STATE: the sequence, or another one of its stream, holds something. ARGUMENT: the prompt does not fit the cache.
LLAMA_API int32_t llama_aircache_synthetic(struct llama_context * ctx, llama_seq_id seq,
        const struct llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end, uint32_t seed,
        const struct llama_aircache_method * method);

//
// Asking again: the full cells of a prompt up to its last image, kept for the next question (docs/asking-again.md).
//
//   llama_aircache_archive_make(ctx, seq, p1, NULL, &archive);   // when the last image is decoded; before the eviction
//   ...                                                          // question, eviction, answer
//   llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);     // observe refuses images that are compressed
//   llama_aircache_observe(ctx, seq, spans, n_spans, pos_end, &method, NULL);   // of the whole conversation
//   llama_aircache_archive_restore(ctx, seq, archive);
//   llama_decode(...)                                            // all text from p1 on: questions, answers, the new question
//   llama_aircache_compress(...)                                 // as after a fresh prefill, bit for bit
//

// Opaque. Independent of the context once it is made: it may be restored into any sequence of any context of the same model
// with a cache of the same types, also when the one that it was made from is gone.
struct llama_aircache_archive;

// A copy of the cells of seq at the positions [0, p1), and of what is observed there at this moment: the queries of text
// between images and of the last visual tokens; with WINDOW_ALL the sums, if nothing from p1 on is decoded yet. p1: one past the
// last image. path: NULL for host memory; else a file, which is written whole or not at all, is the archive's own and is removed
// with it. STATE: seq is compressed already, or has no cells there. FILE: it cannot be written, or a file that is no archive is there.
LLAMA_API int32_t llama_aircache_archive_make(struct llama_context * ctx, llama_seq_id seq, llama_pos p1, const char * path,
        struct llama_aircache_archive ** out);

// The same on the devices of the layers.
LLAMA_API int32_t llama_aircache_archive_make_on_device(struct llama_context * ctx, llama_seq_id seq, llama_pos p1,
        struct llama_aircache_archive ** out);

// Free bytes on the devices that hold the cache: of the one with the least; -1 when it lies in host memory.
LLAMA_API int32_t llama_aircache_device_free(struct llama_context * ctx, int64_t * bytes);

// Empties seq and puts the archived cells in its place, [0, n) of its stream; gives what was observed to the observation of seq,
// which was begun with llama_aircache_observe before (without one only cells come back: enough where all observed tokens stand
// behind p1, or nothing is compressed). Text from p1 on is to be decoded next.
// Before anything changes: STATE when the archive does not hold what the observation needs (another window; several images),
// UNSUPPORTED when other sequences share the stream, ARGUMENT when it is of another model or type of cache, FILE when the file is
// damaged or gone. When it fails later, seq is empty.
LLAMA_API int32_t llama_aircache_archive_restore(struct llama_context * ctx, llama_seq_id seq, const struct llama_aircache_archive * archive);

// What its copies take; 0 for NULL.
LLAMA_API int64_t llama_aircache_archive_bytes(const struct llama_aircache_archive * archive);

// Removes its file, too. NULL: nothing.
LLAMA_API void llama_aircache_archive_free(struct llama_aircache_archive * archive);

// Ends an observation and frees its memory. What is compressed stays so (llama_memory_seq_rm removes it).
LLAMA_API int32_t llama_aircache_clear(struct llama_context * ctx, llama_seq_id seq);

#ifdef __cplusplus
}
#endif

#endif // LLAMA_AIRCACHE_H
