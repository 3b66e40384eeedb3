#include "graph/runner.h"

#include "cache/failure.h"
#include "cache/faults.h"
#include "llama-context.h"

#include <algorithm>
#include <new>
#include <stdexcept>

llama_aircache_runner & llama_aircache_runner::get(llama_context * lctx, llama_aircache & air) {
    if (!air.runner) {
        air.runner = std::make_shared<llama_aircache_runner>(lctx, air);
    }
    return *air.runner;
}

ggml_backend_sched_t llama_aircache_runner::prepare(size_t n_nodes) {
    // the scheduler's hash sets are sized once: leave room for other prompts
    static const size_t n_min = 8192;

    if (!sched || n_nodes > n_min) {
        auto * main = lctx->get_sched();

        std::vector<ggml_backend_t>             backends;
        std::vector<ggml_backend_buffer_type_t> bufts;
        for (int i = 0; i < ggml_backend_sched_get_n_backends(main); ++i) {
            backends.push_back(ggml_backend_sched_get_backend(main, i));
            bufts.push_back(ggml_backend_sched_get_buffer_type(main, backends.back()));
        }

        sched.reset(ggml_backend_sched_new(backends.data(), bufts.data(), backends.size(), std::max(n_nodes, n_min), false, false));
    }

    ggml_backend_sched_reset(sched.get());

    return sched.get();
}

// scheduler buffers that may stay for the next prompt
static const size_t KEEP_BYTES = 8u << 20;

void llama_aircache_runner::trim() {
    size_t bytes = 0;
    for (int i = 0; sched && i < ggml_backend_sched_get_n_backends(sched.get()); ++i) {
        bytes += ggml_backend_sched_get_buffer_size(sched.get(), ggml_backend_sched_get_backend(sched.get(), i));
    }
    if (bytes > KEEP_BYTES) {
        sched.reset();
    }
}

llama_aircache_graph::llama_aircache_graph(llama_aircache_runner & runner, size_t n_nodes) : runner(runner) {
    const ggml_init_params params = {
        /*.mem_size   =*/ 2*n_nodes*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false),
        /*.mem_buffer =*/ nullptr,
        /*.no_alloc   =*/ true,
    };

    ctx_ptr.reset(ggml_init(params));
    if (!ctx_ptr) {
        throw std::bad_alloc();
    }
    cgraph = ggml_new_graph_custom(ctx(), n_nodes, false);
}

ggml_tensor * llama_aircache_graph::input(ggml_tensor * t, const void * data) {
    ggml_set_input(t);
    const auto * bytes = (const uint8_t *) data;
    inputs.emplace_back(t, std::vector<uint8_t>(bytes, bytes + ggml_nbytes(t)));
    return t;
}

ggml_tensor * llama_aircache_graph::input_i32(const std::vector<uint32_t> & data) {
    return input(ggml_new_tensor_1d(ctx(), GGML_TYPE_I32, data.size()), data.data());
}

ggml_tensor * llama_aircache_graph::input_i64(const std::vector<uint32_t> & data) {
    const std::vector<int64_t> wide(data.begin(), data.end());
    return input(ggml_new_tensor_1d(ctx(), GGML_TYPE_I64, wide.size()), wide.data());
}

ggml_tensor * llama_aircache_graph::input_f32(const std::vector<float> & data, int64_t ne0, int64_t ne1) {
    return input(ggml_new_tensor_2d(ctx(), GGML_TYPE_F32, ne0, ne1), data.data());
}

void llama_aircache_graph::output(ggml_tensor * t) {
    ggml_set_output(t);
    ggml_build_forward_expand(cgraph, t);
}

void llama_aircache_graph::run() {
    const llama_aircache_fault_pause others;

    auto * sched = runner.prepare(ggml_graph_size(cgraph));

    if (llama_aircache_fault("graph") || !ggml_backend_sched_alloc_graph(sched, cgraph)) {
        runner.reset(); // its allocator is left without buffers
        throw std::bad_alloc();
    }
    for (const auto & [t, data] : inputs) {
        if (llama_aircache_fault("set")) {
            throw std::bad_alloc();
        }
        ggml_backend_tensor_set(t, data.data(), 0, data.size());
    }
    compute(sched);
}

// whatever a backend does when it fails, the caller must be able to tell this from what fails before
void llama_aircache_graph::compute(ggml_backend_sched_t sched) {
    const char * why = "a backend failed to compute the graph";

    ggml_status status = GGML_STATUS_FAILED;
    try {
        status = ggml_backend_sched_graph_compute(sched, cgraph);
    } catch (const std::bad_alloc &) {
        why = "a backend ran out of memory while it computed the graph";
    } catch (const std::exception &) {
        // as if it had returned its status
    }
    if (status != GGML_STATUS_SUCCESS || llama_aircache_fault("compute")) {
        runner.reset();
        throw llama_aircache_failure(LLAMA_AIRCACHE_COMPUTE, why);
    }
}

std::vector<std::vector<float>> llama_aircache_graph::read(const std::vector<ggml_tensor *> & outs) {
    std::vector<std::vector<float>> res;
    for (auto * t : outs) {
        if (llama_aircache_fault("get")) {
            throw std::runtime_error("a backend failed to return a result");
        }
        res.emplace_back(ggml_nelements(t));
        ggml_backend_tensor_get(t, res.back().data(), 0, ggml_nbytes(t));
    }
    return res;
}
