// What is remembered of one sequence while its prompt is decoded: queries, or summed attention.
#pragma once

#include "llama-aircache.h"
#include "llama-batch.h"

#include "ggml-cpp.h"

#include <vector>

struct llama_aircache_observer {
    std::vector<llama_aircache_span> spans;
    llama_pos pos_end = 0;

    // Slots of queries: |T| text tokens by position, then the last n_last visual tokens as a ring, then a spare one.
    uint32_t n_text = 0;
    uint32_t n_last = 0;
    bool     sum    = false; // sum up the attention of every token from the first visual one on

    std::vector<uint8_t> is_template; // [n_text] or empty

    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
    std::vector<ggml_tensor *> q;        // [n_layer] F32 [head size * n_head, n_slots() + 1], where the layer's K lies
    std::vector<ggml_tensor *> sums;     // [n_layer] F32 [n_cells], or empty
    std::vector<float>         kq_scale; // [n_layer] as the model's graph uses it

    std::vector<uint8_t>  seen;      // [n_text] the text token was decoded
    std::vector<uint32_t> last_cell; // [n_last] the ring's cells
    uint32_t              n_ring = 0;

    uint32_t n_slots() const { return n_text + n_last; }

    // slot of the text token at a position, -1 if it is not observed
    int32_t text_slot(llama_pos pos) const;

    bool is_visual(llama_pos pos) const;

    // does the token take part in the observation?
    bool covers(llama_pos pos) const;
};
