#include "cache/pages.h"

#include "cache/mapping.h"

#include <vector>

#if defined(__linux__)
#    include <sys/mman.h>
#    include <unistd.h>
#endif

static bool supported(const ggml_tensor * t) {
    return t && llama_aircache_is_mapped(t); // MLA caches have no V
}

#if defined(__linux__)

static size_t page_size() {
    static const size_t res = sysconf(_SC_PAGESIZE);
    return res;
}

// the whole pages inside of [begin, end)
struct pages {
    uintptr_t begin;
    uintptr_t end;

    pages(const void * data, size_t from, size_t to) {
        const uintptr_t size = page_size();
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
    if (i0 >= i1 || !supported(t)) {
        return;
    }
    if (!transposed) {
        release(t->data, i0*t->nb[1], i1*t->nb[1]);
        return;
    }
    // t->ne[1] cells of each of the t->ne[0] channels: a call each, where they fill a page
    const size_t channel = ggml_row_size(t->type, t->ne[1]);
    if (ggml_row_size(t->type, i1 - i0) < page_size()) {
        return;
    }
    for (int64_t c = 0; c < t->ne[0]; ++c) {
        release(t->data, c*channel + ggml_row_size(t->type, i0), c*channel + ggml_row_size(t->type, i1));
    }
}

void llama_aircache_pages_release(ggml_tensor * t) noexcept {
    if (supported(t)) {
        release(t->data, 0, ggml_nbytes(t));
    }
}

size_t llama_aircache_pages_resident(const ggml_tensor * t) {
    const size_t size = t ? ggml_nbytes(t) : 0;
    if (!supported(t)) {
        return size;
    }
    const pages p(t->data, 0, size);
    if (p.empty()) {
        return size;
    }
    const size_t page = page_size();

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
