// A copy of a sequence's full cells before an eviction, to begin again from: docs/asking-again.md.
#pragma once

#include "cache/aircache.h"
#include "cache/store.h"

#include <functional>
#include <vector>

// What was there of positions [0, p1): rows of K and V as they are, and of what was observed there the queries of text, those
// of the last visual tokens, and sums of attention. A fresh prefill goes on behind it without knowing the difference.
struct llama_aircache_archive {
    using make_store = std::function<std::unique_ptr<llama_aircache_store>(const std::vector<llama_aircache_store::section> &, uint64_t shape)>;

    // throws; nothing has changed then
    llama_aircache_archive(const llama_aircache & air, llama_seq_id seq, llama_pos p1, const make_store & make);

    // throws a llama_aircache_failure when it cannot be restored there, with what the sequence's observer needs
    void check(const llama_aircache & air, llama_seq_id seq) const;

    // Into the first cells of the sequence's stream, which must be empty and have room. When it throws, the table is as it was, rows are not.
    void restore(llama_aircache & air, llama_seq_id seq) const;

    int64_t  bytes()   const { return n_bytes; }
    uint32_t n_cells() const { return cells.size(); }

private:
    struct cell { llama_pos pos; llama_kv_cell_ext ext; };

    // each a section, layer after layer
    enum part { K, V, QUERIES, SUMS, N_PARTS };

    size_t section(uint32_t ikv, part what) const { return (size_t) ikv*N_PARTS + what; }

    // cells [0, n) of a section are the tensor's cells: one run after the other
    static llama_aircache_store::pieces rows   (ggml_tensor * t, const std::vector<uint32_t> & index);
    static llama_aircache_store::pieces columns(ggml_tensor * t, const std::vector<uint32_t> & index);
    static llama_aircache_store::pieces values (const llama_aircache & air, uint32_t ikv, uint32_t stream, const std::vector<uint32_t> & index);

    static uint64_t shape_of(const llama_aircache & air);

    const llama_pos p1;

    std::vector<cell>      cells;
    std::vector<llama_pos> text;    // positions of observed text tokens whose queries are there, ascending
    std::vector<uint32_t>  visual;  // cells of visual tokens whose queries are there, oldest first
    bool                   sums = false;

    uint64_t shape   = 0;
    int64_t  n_bytes = 0;

    std::unique_ptr<llama_aircache_store> store;
};
