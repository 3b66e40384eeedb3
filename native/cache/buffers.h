// Tensors that outlive a graph, one a layer, each on the device of the layer's K.
#pragma once

#include "ggml-cpp.h"

#include <vector>

class llama_aircache_buffers {
public:
    struct spec { ggml_backend_buffer_type_t buft; ggml_type type; int64_t ne0; int64_t ne1; };

    llama_aircache_buffers() = default;

    // filled with zeros; throws std::bad_alloc
    explicit llama_aircache_buffers(const std::vector<spec> & specs);

    bool empty() const { return tensors.empty(); }

    ggml_tensor * operator[](size_t i) const { return tensors[i]; }

private:
    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
    std::vector<ggml_tensor *>           tensors;
};
