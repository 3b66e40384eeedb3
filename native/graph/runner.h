// The one-shot graphs of AirCache, on the backends where the layers' K and V lie.
#pragma once

#include "cache/planner.h"
#include "cache/prompt.h"

#include <vector>

// Runs them on a scheduler of its own, so that the context's graphs and buffers stay as they are. One a cache, made at first
// use and kept by it.
class llama_aircache_runner {
public:
    llama_aircache_runner(llama_context * lctx, llama_aircache & air) : lctx(lctx), air(air) {}

    static llama_aircache_runner & get(llama_context * lctx, llama_aircache & air);

    // scores [n_layer, n_visual]; observers [n_layer, n_text], alive [n_layer]: may be null (score.cpp)
    void score(llama_seq_id seq, const llama_aircache_method & method, float * scores, uint8_t * observers, double * alive);

    // moves (and merges) the rows of all layers as planned; the table is the caller's (moves.cpp)
    void move(llama_seq_id seq, const llama_aircache_layout & lay);

    // makes the cache's buffers anew, with room for so many cells a stream (resize.cpp)
    void resize(uint32_t n_rows);

    // ready for a graph of so many nodes; made when there is none
    ggml_backend_sched_t prepare(size_t n_nodes);

    // after a failure
    void reset() { sched.reset(); }

    // gives large buffers back
    void trim();

    // are there buffers from the last graph?
    bool warm() const { return sched != nullptr; }

    llama_context * const lctx;
    llama_aircache      & air; // whose it is

private:
    ggml_backend_sched_ptr sched; // kept while its buffers are small
};

// At the end of its scope, whatever happens in it, large buffers are given back.
struct llama_aircache_scratch {
    llama_aircache_runner & runner;
    ~llama_aircache_scratch() { runner.trim(); }
};

// A graph with its inputs.
class llama_aircache_graph {
public:
    llama_aircache_graph(llama_aircache_runner & runner, size_t n_nodes);

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

    llama_aircache_runner & runner;

    ggml_context_ptr ctx_ptr;
    ggml_cgraph    * cgraph;

    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> inputs;
};
