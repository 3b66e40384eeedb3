// A prompt that nobody decoded: its cells hold made-up numbers. For measuring what comes after a prefill without paying for it.
#pragma once

#include "cache/aircache.h"

// where the tokens stand; of an image with M-RoPE: nx columns and p1 - p0 rows
struct llama_aircache_synthetic_prompt {
    const llama_aircache_span * spans;
    int32_t   n_spans;
    llama_pos pos_end;
};

// cells that it takes
int64_t llama_aircache_synthetic_cells(const llama_aircache & air, const llama_aircache_synthetic_prompt & prompt);

// Fills the stream of a sequence, which must be empty, and observes it: with made-up queries where method needs any. Throws
// std::bad_alloc, with all as it was.
void llama_aircache_synthesise(llama_aircache & air, llama_seq_id seq, const llama_aircache_synthetic_prompt & prompt, uint32_t seed,
        const llama_aircache_method & method);
