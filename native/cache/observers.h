// What is remembered of sequences while their prompts are decoded: queries, or summed attention.
#pragma once

#include "cache/buffers.h"
#include "cache/kv.h"
#include "llama-aircache.h"
#include "llama-batch.h"

#include <map>
#include <memory>
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

    // The prompt's queries are numbered: |T| text tokens by position, then the last visual tokens as a ring. Those of the
    // text tokens before first_query are not kept: nobody asks for them.
    uint32_t n_text      = 0;
    uint32_t first_query = 0;
    uint32_t n_last      = 0;

    std::vector<uint8_t> is_template; // [n_text] or empty

    // rows of the query buffers that are this observer's
    uint32_t row0 = 0;

    llama_aircache_buffers sums; // [n_layer] F32 [n_cells]; none: nothing is summed up

    std::vector<uint8_t>  seen;      // [n_text] the text token was decoded
    std::vector<uint32_t> last_cell; // [n_last] the ring's cells
    uint32_t              n_ring = 0; // visual tokens that the ring took in so far

    bool synthetic = false; // nothing was decoded: synthetic.h

    bool sum() const { return !sums.empty(); }

    uint32_t n_rows() const { return n_text - first_query + n_last; }

    // row of the query buffers, of a query that is kept
    uint32_t row(uint32_t query) const { return row0 + query - first_query; }

    // query of the next visual token, which stands in this cell
    uint32_t next_query(uint32_t cell);

    // query of the text token at a position, -1 if it is not observed
    int32_t text_query(llama_pos pos) const;

    bool is_visual(llama_pos pos) const;

    // must the text token have been decoded while it was observed?
    bool needs(uint32_t query) const { return sum() || query >= first_query; }
};

// what a ubatch's graph has to remember; how much of it depends on the ubatch and the set of observers alone
struct llama_aircache_observed {
    struct query {
        uint32_t token; // of the ubatch
        int32_t  query; // of a text token; -1: a visual one, for the ring
        llama_aircache_observer * obs;
    };

    std::vector<query> queries;

    llama_aircache_observer * sum = nullptr; // whose attention is summed up
    std::vector<uint32_t>     summed;        // tokens that count

    bool empty() const { return queries.empty() && summed.empty(); }
};

// the observers of one cache, and the query buffers that they share
class llama_aircache_observers {
public:
    explicit llama_aircache_observers(const llama_aircache_kv & kv) : kq_scale(kv.n_layer(), 0.0f), kv(kv) {}

    // the query buffer of a layer
    static llama_aircache_buffers::spec query_spec(const llama_aircache_kv & kv, uint32_t ikv, uint32_t n);

    void observe(llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
            const llama_aircache_method & method, const uint8_t * is_template);
    void forget (llama_seq_id seq);

    // null: none
    llama_aircache_observer       * find(llama_seq_id seq);
    const llama_aircache_observer * find(llama_seq_id seq) const;

    // the stream's observer that sums up attention; null: none
    const llama_aircache_observer * summing(uint32_t stream) const;

    // what they take from the ubatch
    llama_aircache_observed observed(const llama_ubatch & ubatch);

    // layer ikv's queries of all observers: [head size * n_head, n_rows]; null while there are none
    ggml_tensor * queries(uint32_t ikv) const { return query_rows.empty() ? nullptr : query_rows[ikv]; }

    std::vector<float> kq_scale; // [n_layer] as the model's graph uses it

    uint64_t version = 0; // incremented whenever a graph built before would be wrong

private:
    // those that have queries, in the order of their rows
    std::vector<llama_aircache_observer *> by_row() const;

    // first of n rows that nobody has; makes the buffers larger when there is no such run
    uint32_t take_rows(uint32_t n);

    // moves the observers' rows to new buffers, without gaps; throws std::bad_alloc and leaves all as it was
    void resize_rows(uint32_t n);

    const llama_aircache_kv & kv;

    std::map<llama_seq_id, std::unique_ptr<llama_aircache_observer>> observers;

    // One buffer a layer for all observers, so that a graph writes the queries of any number of sequences at once. As
    // large as the observers' rows need; nothing while there are none.
    llama_aircache_buffers query_rows;
    uint32_t               n_rows = 0;
};
