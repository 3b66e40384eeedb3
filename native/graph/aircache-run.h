// The one-shot graphs of AirCache: scores and moves, on the backends where the layers' K and V lie.
#pragma once

#include "cache/aircache.h"

struct llama_context;

// A graph with its inputs, run on the scheduler that AirCache keeps beside the context's own.
class llama_aircache_graph {
public:
    llama_aircache_graph(llama_context * lctx, llama_aircache & air, size_t n_nodes);

    ggml_tensor * input_i32(const std::vector<uint32_t> & data);
    ggml_tensor * input_i64(const std::vector<uint32_t> & data);
    ggml_tensor * input_f32(const std::vector<float> & data, int64_t ne0, int64_t ne1);
    void          output(ggml_tensor * t);

    // allocates, uploads and computes; throws std::bad_alloc before it computes, and a llama_aircache_failure with
    // LLAMA_AIRCACHE_COMPUTE from then on
    void run();

    // outputs after run()
    static std::vector<std::vector<float>> read(const std::vector<ggml_tensor *> & outs);

    ggml_context * ctx() const { return ctx_ptr.get(); }
    ggml_cgraph  * gf()  const { return cgraph; }

private:
    ggml_tensor * input(ggml_tensor * t, const void * data);
    void          compute(ggml_backend_sched_t sched);

    llama_context  * lctx;
    llama_aircache & air;

    ggml_context_ptr ctx_ptr;
    ggml_cgraph    * cgraph;

    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> inputs;
};

// scores [n_layer, n_visual]; observers [n_layer, n_text], alive [n_layer]: may be null
void llama_aircache_run_score(llama_context * lctx, llama_aircache & air, llama_seq_id seq,
        const llama_aircache_method & method, float * scores, uint8_t * observers, double * alive);

// value norms and key diversity, applied to the scores
void llama_aircache_run_features(llama_context * lctx, llama_aircache & air, uint32_t stream,
        const std::vector<llama_aircache::cell> & visual, const llama_aircache_method & method, float * scores);

// moves (and merges) the rows of all layers as planned; the table is the caller's
void llama_aircache_run_evict(llama_context * lctx, llama_aircache & air, llama_seq_id seq, const llama_aircache::layout & lay);
