#include "cache/store.h"

#include "cache/buffers.h"
#include "cache/failure.h"
#include "cache/faults.h"

#include <algorithm>
#include <new>

void llama_aircache_store::get(const llama_aircache_piece & p, uint8_t * section) {
    if (llama_aircache_fault("get")) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_COMPUTE, "a backend failed to return a result");
    }
    ggml_backend_tensor_get_2d(p.t, section + p.at, p.offset, p.size, p.n, p.stride, p.at_stride);
}

void llama_aircache_store::set(const llama_aircache_piece & p, const uint8_t * section) {
    if (llama_aircache_fault("set")) {
        throw std::bad_alloc();
    }
    ggml_backend_tensor_set_2d(p.t, section + p.at, p.offset, p.size, p.n, p.stride, p.at_stride);
}

namespace {

//
// host memory
//

class llama_aircache_memory_store : public llama_aircache_store {
public:
    explicit llama_aircache_memory_store(const std::vector<section> & sections) {
        for (const auto & s : sections) {
            if (llama_aircache_fault("buffer")) {
                throw std::bad_alloc();
            }
            data.emplace_back(new uint8_t[s.bytes]); // not filled: pages come as they are written
        }
    }

    void save(size_t section, const pieces & from) override {
        for (const auto & p : from) {
            get(p, data[section].get());
        }
    }

    void load(size_t section, const pieces & to) const override {
        for (const auto & p : to) {
            set(p, data[section].get());
        }
    }

private:
    std::vector<std::unique_ptr<uint8_t[]>> data;
};

//
// devices
//

class llama_aircache_device_store : public llama_aircache_store {
public:
    explicit llama_aircache_device_store(const std::vector<section> & sections) {
        std::vector<llama_aircache_buffers::spec> specs;
        for (const auto & s : sections) {
            specs.push_back({ s.buft, GGML_TYPE_I8, (int64_t) std::max<size_t>(s.bytes, 1), 1 });
        }
        data = llama_aircache_buffers(specs);
    }

    void save(size_t section, const pieces & from) override {
        for (const auto & p : from) {
            copy(p, data[section], true);
        }
    }

    void load(size_t section, const pieces & to) const override {
        for (const auto & p : to) {
            copy(p, data[section], false);
        }
    }

private:
    // bytes of a tensor, whatever its type
    static ggml_tensor * bytes(ggml_context * ctx, ggml_tensor * t, size_t offset, size_t size) {
        ggml_tensor * res = ggml_view_1d(ctx, t, 1, offset);
        res->type  = GGML_TYPE_I8;
        res->ne[0] = size;
        res->nb[0] = 1;
        res->nb[1] = res->nb[2] = res->nb[3] = size;
        if (ggml_backend_view_init(res) != GGML_STATUS_SUCCESS) {
            throw std::bad_alloc();
        }
        return res;
    }

    static void copy(const llama_aircache_piece & p, ggml_tensor * section, bool save) {
        if (p.n > 1) { // backends copy what is in one piece only: by way of the host
            std::unique_ptr<uint8_t[]> host(new uint8_t[p.size*p.n]);
            const llama_aircache_piece own = { p.t,     p.offset, p.stride,    0, p.size, p.size, p.n };
            const llama_aircache_piece far = { section, p.at,     p.at_stride, 0, p.size, p.size, p.n };
            get(save ? own : far, host.get());
            set(save ? far : own, host.get());
            return;
        }
        if (llama_aircache_fault(save ? "get" : "set")) {
            throw std::bad_alloc();
        }
        ggml_context_ptr ctx(ggml_init({ 4*ggml_tensor_overhead(), nullptr, true }));
        if (!ctx) {
            throw std::bad_alloc();
        }
        ggml_tensor * own = bytes(ctx.get(), p.t,     p.offset, p.size);
        ggml_tensor * far = bytes(ctx.get(), section, p.at,     p.size);
        ggml_backend_tensor_copy(save ? own : far, save ? far : own);
    }

    llama_aircache_buffers data;
};

} // namespace

std::unique_ptr<llama_aircache_store> llama_aircache_store::in_memory(const std::vector<section> & sections) {
    return std::make_unique<llama_aircache_memory_store>(sections);
}

std::unique_ptr<llama_aircache_store> llama_aircache_store::on_devices(const std::vector<section> & sections) {
    return std::make_unique<llama_aircache_device_store>(sections);
}
