#include "cache/mapping.h"

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"

#include <cstring>

#if defined(__linux__)

#    include <sys/mman.h>

static void unmap(ggml_backend_buffer_t buffer) {
    munmap(buffer->context, buffer->size);
}

static void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    // pages that are given back read as zeros when they come again; refused for locked memory
    if (value != 0 || madvise(buffer->context, buffer->size, MADV_DONTNEED) != 0) {
        memset(buffer->context, value, buffer->size);
    }
}

static ggml_backend_buffer_t map(size_t size) {
    void * data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        return nullptr;
    }
    madvise(data, size, MADV_NOHUGEPAGE); // an error where the kernel has no huge pages

    // a plain CPU buffer in all but how its memory comes and goes
    ggml_backend_buffer_t res = ggml_backend_cpu_buffer_from_ptr(data, size);
    if (!res) {
        munmap(data, size);
        return nullptr;
    }
    res->buft              = ggml_backend_cpu_buffer_type();
    res->iface.free_buffer = unmap;
    res->iface.clear       = clear;
    return res;
}

static bool place(ggml_context * ctx, ggml_backend_buffer_t buffer) {
    auto next = ggml_tallocr_new(buffer);
    for (auto * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if ((t->view_src ? ggml_backend_view_init(t) : ggml_tallocr_alloc(&next, t)) != GGML_STATUS_SUCCESS) {
            return false;
        }
    }
    return true;
}

ggml_backend_buffer_t llama_aircache_alloc(ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    if (buft == ggml_backend_cpu_buffer_type()) {
        ggml_backend_buffer_t res = map(ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft));
        if (res && place(ctx, res)) {
            return res;
        }
        ggml_backend_buffer_free(res);
        return nullptr;
    }
    return ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
}

bool llama_aircache_is_mapped(const ggml_tensor * t) {
    const auto buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && buffer && buffer->iface.free_buffer == unmap;
}

#else

ggml_backend_buffer_t llama_aircache_alloc(ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    return ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
}

bool llama_aircache_is_mapped(const ggml_tensor *) {
    return false;
}

#endif
