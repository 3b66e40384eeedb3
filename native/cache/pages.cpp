#include "cache/pages.h"

#include "ggml-backend.h"

#include <vector>

#if defined(__linux__)
#    include <sys/mman.h>
#    include <unistd.h>
#endif

bool llama_aircache_pages_supported(const ggml_tensor * t) {
#if defined(__linux__)
    if (!t) {
        return false; // MLA caches have no V
    }
    // not pinned memory of a device, which is host memory, too
    const auto buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && buffer && ggml_backend_buffer_get_type(buffer) == ggml_backend_cpu_buffer_type();
#else
    GGML_UNUSED(t);
    return false;
#endif
}

#if defined(__linux__)

// the whole pages inside of [begin, end)
struct pages {
    uintptr_t begin;
    uintptr_t end;

    pages(const void * data, size_t from, size_t to) {
        static const uintptr_t size = sysconf(_SC_PAGESIZE);
        begin = ((uintptr_t) data + from + size - 1)/size*size;
        end   = ((uintptr_t) data + to)/size*size;
    }

    bool empty() const { return begin >= end; }
};

static void release(void * data, size_t from, size_t to) {
    const pages p(data, from, to);
    if (!p.empty()) {
        madvise((void *) p.begin, p.end - p.begin, MADV_DONTNEED); // refused for locked memory: then it stays
    }
}

void llama_aircache_pages_release(ggml_tensor * t, bool transposed, uint32_t i0, uint32_t i1) noexcept {
    if (i0 >= i1 || !llama_aircache_pages_supported(t)) {
        return;
    }
    if (!transposed) {
        release(t->data, i0*t->nb[1], i1*t->nb[1]);
        return;
    }
    // t->ne[1] cells of each of the t->ne[0] channels
    const size_t channel = ggml_row_size(t->type, t->ne[1]);
    for (int64_t c = 0; c < t->ne[0]; ++c) {
        release(t->data, c*channel + ggml_row_size(t->type, i0), c*channel + ggml_row_size(t->type, i1));
    }
}

void llama_aircache_pages_release(ggml_tensor * t) noexcept {
    if (llama_aircache_pages_supported(t)) {
        release(t->data, 0, ggml_nbytes(t));
    }
}

size_t llama_aircache_pages_resident(const ggml_tensor * t) {
    const size_t size = t ? ggml_nbytes(t) : 0;
    if (!llama_aircache_pages_supported(t)) {
        return size;
    }
    const pages p(t->data, 0, size);
    if (p.empty()) {
        return size;
    }
    const size_t page = sysconf(_SC_PAGESIZE);

    std::vector<unsigned char> in_ram((p.end - p.begin)/page);
    if (mincore((void *) p.begin, p.end - p.begin, in_ram.data()) != 0) {
        return size;
    }
    size_t res = size - (p.end - p.begin); // the ends, which share their pages with others
    for (const unsigned char one : in_ram) {
        res += one & 1 ? page : 0;
    }
    return res;
}

#else

void llama_aircache_pages_release(ggml_tensor *, bool, uint32_t, uint32_t) noexcept {}

void llama_aircache_pages_release(ggml_tensor *) noexcept {}

size_t llama_aircache_pages_resident(const ggml_tensor * t) {
    return t ? ggml_nbytes(t) : 0;
}

#endif
