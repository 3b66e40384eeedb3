// From what shall be kept to the layout of a compressed cache, and the table that goes with it. Host only: the rows are moved
// by the caller, between plan() and commit().
#pragma once

#include "cache/aircache.h"
#include "llama-kv-cells.h"

#include <vector>

// a dropped visual token that is averaged into a kept one (index into the layer's kept ones)
struct llama_aircache_merged { int32_t dropped; int32_t kept; };

// what stays of the observed spans
struct llama_aircache_kept {
    const int32_t * budgets; // [n_layer]
    const int32_t * indices; // [sum of budgets] visual tokens, layer after layer, ascending

    std::vector<std::vector<llama_aircache_merged>> merged; // [n_layer], or empty: nothing is merged
};

// where every row of the new layout comes from
struct llama_aircache_layout {
    // dropped rows that are averaged into kept ones of a layer
    struct merge {
        std::vector<uint32_t> cells;  // source cells: the kept ones themselves and what they take in
        std::vector<uint32_t> group;  // [cells] which kept one
        std::vector<uint32_t> target; // [groups] the kept ones' new cells
        std::vector<float>    scale;  // [groups] 1 / members
    };

    std::vector<std::vector<uint32_t>> rows; // [n_layer] source cells of [start[l], n_cells)
    std::vector<merge>    merges;            // [n_layer]
    std::vector<uint32_t> start;             // [n_layer]
    std::vector<uint32_t> common;            // source cells of [end, n_cells)
    uint32_t end = 0;

    // what commit() puts in place
    llama_kv_cells      table;
    llama_aircache_zone zone;
};

class llama_aircache_planner {
public:
    // of an observed sequence
    llama_aircache_planner(llama_aircache & air, llama_seq_id seq);

    // throws llama_aircache_failure when the stream cannot be compressed
    llama_aircache_layout plan(const llama_aircache_kept & kept) const;

    // puts table and zone in place after the rows were moved; the observation ends
    void commit(llama_aircache_layout && lay) noexcept;

    // removes the sequence after its rows were moved in part: what the table says of it is no longer true
    void drop();

    // Mask-only mode: hide instead of move; the observation ends. Nothing has changed when it throws (oracle.cpp).
    void hide(const llama_aircache_kept & kept);

    // throws llama_aircache_failure in builds that have no mask-only mode: all but those for tests
    static void check_oracle();

private:
    // the table that belongs to a layout, whose survivors all stand where `last` does
    llama_kv_cells make_table(const llama_aircache_layout & lay, uint32_t last) const;

    llama_aircache   & air;
    const llama_seq_id seq;
    const uint32_t     stream;
};
