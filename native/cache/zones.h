// The two zones: all that llama_kv_cache must know once visual cells were evicted per layer.
//
//   cell    0 ....... start[l] ....... end ............ n
//   layer l |  unused  | its survivors | text, later tokens (the same cell in all layers)
//
// One table of cells serves all layers. The table's cells [0, end) stand for the survivors: all carry the position of the
// last visual token, so that later queries see them and ranges behind the images remove none of them.
// See docs/cache.md.
#pragma once

#include "cache/kv.h"

#include <vector>

class llama_io_read_i;
class llama_io_write_i;

// can a cell restored from a saved state stand there? Others would be taken for empty, or end in an overflow.
inline bool llama_aircache_pos_valid(llama_pos pos) {
    return pos >= 0 && pos < INT32_MAX/2;
}

// the compressed region of one stream; atomic: its cells are removed, copied and shifted together
struct llama_aircache_zone {
    std::vector<uint32_t> start; // [n_layer] first row in use; empty: nothing is compressed
    uint32_t end = 0;            // one past the visual zone, the same for all layers

    // positions from the first to one past the last compressed visual token
    llama_pos p0 = -1;
    llama_pos p1 = -1;

    // mask-only mode (the oracle, in builds for tests alone): per layer the hidden cells; start is all 0, nothing was moved
    std::vector<std::vector<uint32_t>> hidden;

    uint32_t cell = 0; // some cell of the region: the region is gone when it is empty

    bool empty() const { return start.empty(); }

    // one record of a saved state; an empty zone is written and read as such (states.cpp)
    void write(llama_io_write_i & io) const;
    void read (llama_io_read_i  & io, uint32_t n_layer);
};

// Part of a llama_aircache (aircache.h): made with it, never alone.
class llama_aircache_zones {
public:
    //
    // hooks of llama_kv_cache (patches/0001)
    //

    // lets the context's cache know its context, if it is of the kind that can be compressed; others refuse saved zones
    static void attach(llama_context * lctx);

    // Drops zones whose cells are gone, and gives back the memory behind the last cell: of the sequence's stream, or of all.
    void sync(llama_seq_id seq = -1);

    // A state is saved and restored with the rows below a layer's survivors, whose pages are taken by that: gives them back.
    void tidy() const;

    // false: the range would cut a compressed region or leave it without the text before it. seq: -1 for all sequences.
    // All but can_rm log the reason, as their callers have no way to report it.
    bool can_rm (llama_seq_id seq, llama_pos p0, llama_pos p1) const;
    bool can_cp (llama_seq_id seq, llama_pos p0, llama_pos p1) const;
    bool can_div(llama_seq_id seq, llama_pos p0, llama_pos p1, int d) const;
    bool can_add(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift); // moves the region's limits along

    void copy_stream(uint32_t s0, uint32_t s1);

    // Rows were copied, used or not: gives back those that are not. ikv: a layer.
    static void copied(llama_kv_cache & cache, uint32_t ikv, uint32_t stream);

    // Where buffers were made smaller than the context (graph/resize.cpp): makes them larger if they have no room for what is
    // about to be decoded, or for n cells more. False, and nothing has changed: there is no memory for it; logged.
    bool make_room(const std::vector<llama_ubatch> & ubatches);
    bool make_room(uint32_t stream, uint32_t n);

    // what get_k and get_v return: the rows from view_start on
    ggml_tensor * view_k(ggml_context * ctx, int32_t il, uint32_t n_kv, const llama_kv_cache::slot_info & sinfo) const;
    ggml_tensor * view_v(ggml_context * ctx, int32_t il, uint32_t n_kv, const llama_kv_cache::slot_info & sinfo) const;

    // The number of streams as a state of the sequence (-1: of all) begins with it: marked where zones follow, so that a
    // state without has stock's bytes. zones: possibly null.
    static uint32_t mark(const llama_aircache_zones * zones, uint32_t n_stream, llama_seq_id seq);

    // takes the mark off: do zones follow?
    static bool unmark(uint32_t & n_stream);

    // of a stream's part of a state; nothing when the state is not marked
    void write_zone(llama_io_write_i & io, uint32_t stream, llama_seq_id seq) const;

    // likewise; throws when the cache cannot be compressed
    static llama_aircache_zone read_zone(llama_kv_cache & kv, llama_io_read_i & io, bool marked);

    // takes over a zone, if there is one, whose cells were just restored; throws when it does not fit them
    static void restore(llama_kv_cache & kv, const llama_kv_cache::slot_info & sinfo, llama_aircache_zone zone);

    //
    // for the graphs, the planner and the C API
    //

    // first row of layer ikv's view for the streams of sinfo, rounded down to pad(ikv)
    uint32_t view_start(int32_t ikv, const llama_kv_cache::slot_info & sinfo) const;

    bool any() const;

    const llama_aircache_zone & zone(uint32_t stream) const { return zones[stream]; }

    // other buffers were put in place
    void set_resized() noexcept { zones_version++; resized = true; }
    bool was_resized() const { return resized; }

    // puts another zone in place
    void set_zone(uint32_t stream, llama_aircache_zone && zone) noexcept;

    // the compressed region that the sequence holds (-1: that any holds); null: none
    const llama_aircache_zone * zone_of(uint32_t stream, llama_seq_id seq) const;

    const llama_aircache_kv kv;

protected:
    explicit llama_aircache_zones(llama_kv_cache & cache);

    uint64_t zones_version = 0; // incremented whenever a graph built before would be wrong

    bool resized = false; // graphs must be told apart by the version from then on

private:
    // will a state of the sequence (-1: of all) hold a zone?
    bool saves(llama_seq_id seq) const;

    // would the text stay on its side of the stream's region if the cells of seq at [p0, p1) went to the positions to(pos)?
    template <typename F>
    bool keeps_sides(llama_seq_id seq, llama_pos p0, llama_pos p1, F && to) const;

    std::vector<llama_aircache_zone> zones; // [n_stream]

    mutable bool untidy = false; // since a state with zones was saved or restored

    std::vector<uint32_t> pad; // [n_layer] granularity of view starts
};
