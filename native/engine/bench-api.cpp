// The functions of pyaircache-bench.h.
#include "bench.h"
#include "engine.h"

#include "ggml-cpp.h"
#include "../src/llama-ext.h"

#include <algorithm>
#include <ctime>

struct pac_bench_params pac_bench_default_params(void) {
    pac_bench_params res = {};
    res.size         = sizeof(res);
    res.n_seqs       = 1;
    res.n_prompt     = 2048;
    res.n_decode     = 64;
    res.cache_type_k = "f16";
    res.cache_type_v = "f16";
    res.flash_attn   = -1;
    return res;
}

int32_t pac_bench_new(pac_model * model, const struct pac_bench_params * params, pac_bench ** out) {
    return pac_guarded([&] {
        pac_require(model && out, "model or out is null");
        *out = nullptr;
        pac_require(model->self != nullptr, "the model was freed");
        const auto defaults = pac_bench_default_params();
        *out = new pac_bench(model->self, params ? pac_read(params, defaults, "pac_bench_params", sizeof(defaults)) : defaults);
    });
}

void pac_bench_free(pac_bench * bench) {
    pac_guarded([&] { delete bench; });
}

int32_t pac_bench_info(const pac_bench * bench, struct pac_bench_info * out) {
    return pac_guarded([&] {
        pac_require(bench && out, "bench or out is null");
        *out = bench->info();
    });
}

int32_t pac_bench_fill(pac_bench * bench, int32_t seq, bool computed, const struct pac_method * observe, uint32_t seed,
        pac_progress_callback progress, void * user_data, double * ms) {
    return pac_guarded([&] {
        pac_require(bench && ms, "bench or ms is null");
        *ms = bench->fill(seq, computed, observe, seed, progress, user_data);
    });
}

int32_t pac_bench_evict(pac_bench * bench, int32_t seq, const struct pac_method * method, uint32_t seed, double * ms_score, double * ms_evict) {
    return pac_guarded([&] {
        pac_require(bench && method && ms_score && ms_evict, "bench, method, ms_score or ms_evict is null");
        bench->evict(seq, *method, seed, *ms_score, *ms_evict);
    });
}

int32_t pac_bench_step(pac_bench * bench, double * ms) {
    return pac_guarded([&] {
        pac_require(bench && ms, "bench or ms is null");
        *ms = bench->step();
    });
}

int32_t pac_bench_stats(const pac_bench * bench, struct pac_bench_stats * out) {
    return pac_guarded([&] {
        pac_require(bench && out, "bench or out is null");
        *out = bench->stats();
    });
}

int32_t pac_bench_clear(pac_bench * bench) {
    return pac_guarded([&] {
        pac_require(bench, "bench is null");
        bench->clear();
    });
}

int32_t pac_bench_cancel(pac_bench * bench) {
    return pac_guarded([&] {
        pac_require(bench, "bench is null");
        bench->cancelled = true;
    });
}

// Seconds that a graph takes. alone: on one thread of the CPU, where the process's own time is that of an idle machine.
static double copy_once(ggml_backend_t backend, ggml_cgraph * gf, bool alone) {
    const int64_t t_start = ggml_time_us();
    const clock_t c_start = clock();
    if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
        throw pac_error(PAC_ERR_COMPUTE, "a copy failed");
    }
    ggml_backend_synchronize(backend);
    const double used = (clock() - c_start)/(double) CLOCKS_PER_SEC;
    return alone && used > 0 ? used : (ggml_time_us() - t_start)/1e6;
}

static double copy_bandwidth(const pac_model & model, int64_t bytes, int32_t n_threads) {
    constexpr int N_RUNS = 8;

    const auto lock = pac_lock_devices();

    const int32_t n_devices = llama_model_n_devices(model.weights.get());
    ggml_backend_dev_t dev = n_devices > 0 ? llama_model_get_device(model.weights.get(), n_devices - 1) : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!dev) {
        throw pac_error(PAC_ERR_UNSUPPORTED, "ggml has no CPU backend");
    }
    ggml_backend_ptr backend(ggml_backend_dev_init(dev, nullptr));
    if (!backend) {
        throw pac_error(PAC_ERR_MEMORY, pac_format("the device %s cannot be used", ggml_backend_dev_name(dev)));
    }
    auto * set_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    if (set_threads) {
        set_threads(backend.get(), pac_pick_threads(n_threads));
    }

    ggml_context_ptr ctx(ggml_init({ 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    if (!ctx) {
        throw std::bad_alloc();
    }
    constexpr int64_t ROW = 4096; // floats: work is shared out by rows
    const int64_t n_rows = bytes/(ROW*sizeof(float));
    ggml_tensor * from = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ROW, n_rows);
    ggml_tensor * to   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ROW, n_rows);
    ggml_cgraph * gf   = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, ggml_cpy(ctx.get(), from, to));
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    if (!buffer) {
        throw pac_error(PAC_ERR_MEMORY, pac_format("two buffers of %lld bytes do not fit into memory", (long long) bytes));
    }
    ggml_backend_buffer_clear(buffer.get(), 0);

    const bool alone = ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU && pac_pick_threads(n_threads) == 1;
    double best = copy_once(backend.get(), gf, alone);
    for (int i = 1; i < N_RUNS; ++i) {
        best = std::min(best, copy_once(backend.get(), gf, alone));
    }
    return 2.0*ggml_nbytes(from)/best;
}

int32_t pac_bench_copy(pac_model * model, int64_t bytes, int32_t n_threads, double * bytes_per_second) {
    return pac_guarded([&] {
        pac_require(model && bytes_per_second, "model or bytes_per_second is null");
        pac_check_range("bytes",     bytes,     1 << 16, 1ll << 36);
        pac_check_range("n_threads", n_threads, 0, GGML_MAX_N_THREADS);
        *bytes_per_second = copy_bandwidth(*model, bytes, n_threads);
    });
}
