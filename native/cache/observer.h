// What is remembered of one sequence while its prompt is decoded: queries, or summed attention.
#pragma once

#include "cache/buffers.h"
#include "llama-aircache.h"
#include "llama-batch.h"

#include <vector>

// what a method has to have seen of a prompt
struct llama_aircache_needs {
    uint32_t n_text = 0;     // queries of so many of the last text tokens
    uint32_t n_last = 0;     // queries of so many of the last visual tokens, or of all if there are fewer
    bool     sum    = false; // the attention of every token from the first visual one on, summed up

    // n_text: text tokens of the prompt
    llama_aircache_needs(const llama_aircache_method & method, uint32_t n_text);
};

struct llama_aircache_observer {
    llama_seq_id seq = -1;

    std::vector<llama_aircache_span> spans;
    llama_pos pos_end = 0;

    // Slots of queries: |T| text tokens by position, then the last visual tokens as a ring. The text tokens before
    // first_slot have no query: nobody asks for them.
    uint32_t n_text     = 0;
    uint32_t first_slot = 0;
    uint32_t n_last     = 0;

    std::vector<uint8_t> is_template; // [n_text] or empty

    // rows of the query buffers that are this observer's
    uint32_t row0 = 0;

    llama_aircache_buffers sums; // [n_layer] F32 [n_cells]; none: nothing is summed up

    std::vector<uint8_t>  seen;      // [n_text] the text token was decoded
    std::vector<uint32_t> last_cell; // [n_last] the ring's cells
    uint32_t              n_ring = 0; // visual tokens that the ring took in so far

    bool sum() const { return !sums.empty(); }

    uint32_t n_rows() const { return n_text - first_slot + n_last; }

    // row of the query buffers, of a slot that has a query
    uint32_t row(uint32_t slot) const { return row0 + slot - first_slot; }

    // slot for the next visual token, which stands in this cell
    uint32_t next_slot(uint32_t cell);

    // slot of the text token at a position, -1 if it is not observed
    int32_t text_slot(llama_pos pos) const;

    bool is_visual(llama_pos pos) const;

    // must the text token have been decoded while it was observed?
    bool needs(uint32_t slot) const { return sum() || slot >= first_slot; }
};

// what a ubatch's graph has to remember; how much of it depends on the ubatch and the set of observers alone
struct llama_aircache_observed {
    struct query {
        uint32_t token; // of the ubatch
        int32_t  slot;  // of a text token; -1: a visual one, for the ring
        llama_aircache_observer * obs;
    };

    std::vector<query> queries;

    llama_aircache_observer * sum = nullptr; // whose attention is summed up
    std::vector<uint32_t>     summed;        // tokens that count

    bool empty() const { return queries.empty() && summed.empty(); }
};
