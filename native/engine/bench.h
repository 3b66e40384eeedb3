// Conversations to be timed: what stands behind the pac_bench_... functions.
#pragma once

#include "border.h"
#include "model.h"

#include "llama-aircache.h"
#include "pyaircache-bench.h"
#include "llama-cpp.h"

#include <atomic>
#include <memory>
#include <vector>

struct pac_bench {
    pac_bench(std::shared_ptr<pac_model> model, const pac_bench_params & params);
    ~pac_bench();

    pac_bench(const pac_bench &) = delete;
    pac_bench & operator=(const pac_bench &) = delete;

    struct pac_bench_info  info() const;
    struct pac_bench_stats stats() const;

    double fill(int32_t seq, bool computed, const pac_method * observe, uint32_t seed, pac_progress_callback progress, void * user_data);
    void   evict(int32_t seq, const pac_method & method, uint32_t seed, double & ms_score, double & ms_evict);
    double step();
    void   clear();

    std::atomic<bool> cancelled{false};

private:
    struct conversation {
        bool        filled     = false;
        bool        compressed = false;
        llama_token next       = 0; // to be decoded
        int32_t     n_decoded  = 0;
    };

    void lay_out();
    void compute(int32_t seq, uint32_t seed, pac_progress_callback progress, void * user_data);
    void check_seq(int32_t seq) const;

    const std::shared_ptr<pac_model> model;
    const pac_bench_params params; // 0 is replaced by what it stands for
    llama_context_ptr ctx;

    // of each prompt
    std::vector<llama_aircache_span> spans;
    std::vector<int32_t> n_tokens; // of each span
    int32_t   n_visual = 0;
    llama_pos pos_end  = 0;

    std::vector<conversation> conversations; // by sequence
};

// budgets [n_layers] with a mean of keep * n_visual, evenly spread up to 1.7 times of it, in random order
std::vector<int32_t> pac_bench_budgets(double keep, int32_t n_layers, int32_t n_visual, int32_t min_keep, uint32_t seed);
