// What `pyaircache bench` measures with (docs/bench.md): calls of the library of pyaircache.h, whose rules hold here, too.

#ifndef PYAIRCACHE_BENCH_H
#define PYAIRCACHE_BENCH_H

#include "pyaircache.h"

#ifdef __cplusplus
extern "C" {
#endif

// cffi-begin

// Conversations that decode side by side in one context, each in a stream of its own, to be timed. What they hold is made up:
// nothing is said about answers. Threads: one call at a time, but for pac_bench_cancel.
typedef struct pac_bench pac_bench;

struct pac_bench_params {
    uint32_t     size;         // sizeof(struct pac_bench_params)
    int32_t      n_seqs;       // conversations, [1, 256]
    int32_t      n_prompt;     // tokens of each one's prompt, at least 128; all but some 64 of them visual, in images of up to 4096
    int32_t      n_decode;     // tokens that can be decoded behind it, at least 1
    int32_t      n_batch;      // tokens a call of a computed prefill; 0: 512
    int32_t      n_threads;    // 0: physical cores; at most 512
    const char * cache_type_k; // as in pac_engine_params
    const char * cache_type_v;
    int32_t      flash_attn;   // -1 auto, 0 off, 1 on
};
PAC_API struct pac_bench_params pac_bench_default_params(void);

// PAC_ERR_MEMORY when the context does not fit, PAC_ERR_UNSUPPORTED when its cache cannot be compressed.
PAC_API int32_t pac_bench_new(pac_model * model, const struct pac_bench_params * params, pac_bench ** out);
PAC_API void    pac_bench_free(pac_bench * bench);

struct pac_bench_info {
    int32_t n_layers;
    int32_t n_ctx;            // cells of all streams
    int32_t n_visual;         // of each prompt
    int32_t n_text;
    int32_t n_batch;
    int32_t n_threads;
    int32_t n_devices;        // that the weights lie on; 0: the CPU
    int64_t model_bytes;      // of the weights
    int64_t step_bytes;       // of those that one step reads: an embedding matrix that is not the output's, too, is left out
    int64_t kv_bytes_per_token; // all layers, K and V
};
PAC_API int32_t pac_bench_info(const pac_bench * bench, struct pac_bench_info * out);

// Gives an empty conversation its prompt. computed: by the model, from random tokens and embeddings; else K and V themselves are
// made up, which takes no time worth telling (ms: that of making them up). observe: the method that pac_bench_evict will score
// with, or NULL: none will. The callback is told tokens (stage 2). PAC_ERR_STATE when the conversation is not empty.
PAC_API int32_t pac_bench_fill(pac_bench * bench, int32_t seq, bool computed, const struct pac_method * observe, uint32_t seed,
        pac_progress_callback progress, void * user_data, double * ms);

// Scores the visual tokens and chooses by the method, as pac_compress; then evicts all but random ones, whose layers' budgets
// differ as those of real scores do: evenly spread, the largest 1.7 times their mean keep * n_visual (or less, where that is more
// than all). ms_score: scores, budgets and kept sets.
PAC_API int32_t pac_bench_evict(pac_bench * bench, int32_t seq, const struct pac_method * method, uint32_t seed,
        double * ms_score, double * ms_evict);

// One token for every conversation, in one batch; each is the most likely one behind the one before. ms: until its logits are
// there and the next tokens are chosen. PAC_ERR_CONTEXT when there is no room, PAC_ERR_STATE when a prompt is missing.
PAC_API int32_t pac_bench_step(pac_bench * bench, double * ms);

struct pac_bench_stats {
    int64_t kv_bytes;           // that attention reads in a step: sum over conversations and layers of their cells * row bytes
    int64_t kv_bytes_reserved;  // as in pac_stats, and so the next
    int64_t kv_bytes_allocated;
    int64_t compute_bytes;      // that the graphs' buffers take
    int32_t n_graphs_reused;
};
PAC_API int32_t pac_bench_stats(const pac_bench * bench, struct pac_bench_stats * out);

// Forgets all conversations.
PAC_API int32_t pac_bench_clear(pac_bench * bench);

// Makes the pac_bench_fill that runs return PAC_ERR_CANCELLED soon, from any thread. What it had filled is gone.
PAC_API int32_t pac_bench_cancel(pac_bench * bench);

// Bytes per second that a copy of `bytes` bytes moves (read and written: twice as many), on the device that the model's last
// layer lies on, best of eight. n_threads as above; of one thread of a CPU its own time counts, whatever else runs there.
PAC_API int32_t pac_bench_copy(pac_model * model, int64_t bytes, int32_t n_threads, double * bytes_per_second);

// cffi-end

#ifdef __cplusplus
}
#endif

#endif // PYAIRCACHE_BENCH_H
