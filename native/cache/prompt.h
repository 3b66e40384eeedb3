// The cells of an observed prompt, and whether what was observed is enough.
#pragma once

#include "cache/aircache.h"

#include <tuple>
#include <vector>

// where a token stands: a token sees those that are not greater (an image's tokens share their position)
struct llama_aircache_cell {
    llama_pos pos, y, x;
    uint32_t  i;
    bool operator<=(const llama_aircache_cell & o) const { return std::tie(pos, y, x) <= std::tie(o.pos, o.y, o.x); }
};

// in the order of the tokens
struct llama_aircache_prompt {
    // of an observed sequence
    llama_aircache_prompt(const llama_aircache & air, llama_seq_id seq);

    std::vector<llama_aircache_cell> visual;
    std::vector<int32_t>             n_visual; // of each span
    std::vector<llama_aircache_cell> text;     // T, by query
    std::vector<llama_aircache_cell> other;    // text before the first image; not the survivors of earlier turns
};

// throws llama_aircache_failure when text was not decoded
void llama_aircache_check_complete(const llama_aircache & air, llama_seq_id seq);

// throws llama_aircache_failure when the observation did not remember what the method needs
void llama_aircache_check_needs(const llama_aircache & air, llama_seq_id seq, const llama_aircache_method & method);
