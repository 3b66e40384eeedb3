#include "cache/buffers.h"

#include "cache/faults.h"

#include <map>
#include <new>

llama_aircache_buffers::llama_aircache_buffers(const std::vector<spec> & specs) {
    const ggml_init_params params = { (specs.size() + 1)*ggml_tensor_overhead(), nullptr, true };
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> by_buft;

    for (const auto & s : specs) {
        auto & ctx = by_buft[s.buft];
        if (!ctx) {
            ctx.reset(ggml_init(params));
        }
        if (!ctx) {
            throw std::bad_alloc();
        }
        tensors.push_back(ggml_new_tensor_2d(ctx.get(), s.type, s.ne0, s.ne1));
    }

    for (auto & [buft, ctx] : by_buft) {
        const llama_aircache_fault_pause others;

        ggml_backend_buffer_ptr buf(llama_aircache_fault("buffer") ? nullptr : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        if (!buf) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_clear(buf.get(), 0);
        bufs.push_back(std::move(buf));
        ctxs.push_back(std::move(ctx));
    }
}
