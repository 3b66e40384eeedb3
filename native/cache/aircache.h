// The two-zone cache: what llama_kv_cache must know once visual cells were evicted per layer.
//
//   cell    0 ....... start[l] ....... end ............ n
//   layer l |  unused  | its survivors | text, later tokens (the same cell in all layers)
//
// One table of cells serves all layers. The table's cells [0, end) stand for the survivors: all carry the position of the
// last visual token, so that later queries see them and ranges behind the images remove none of them.
// See docs/cache.md.
#pragma once

#include "cache/observer.h"
#include "llama-aircache.h"
#include "llama-kv-cache.h"

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

class llama_io_read_i;
class llama_io_write_i;

// flag in the stream count of a saved state: zones follow (llama_kv_cache::state_write)
#define LLAMA_AIRCACHE_STATE_FLAG 0x80000000u

// can a cell restored from a saved state stand there? Others would be taken for empty, or end in an overflow.
inline bool llama_aircache_pos_valid(llama_pos pos) {
    return pos >= 0 && pos < INT32_MAX/2;
}

// why a call is refused; carries an enum llama_aircache_status to the C border
struct llama_aircache_failure : std::runtime_error {
    int32_t status;
    llama_aircache_failure(int32_t status, const char * message) : std::runtime_error(message), status(status) {}
};

// the compressed region of one stream; atomic: its cells are removed, copied and shifted together
struct llama_aircache_zone {
    std::vector<uint32_t> start; // [n_layer] first row in use; empty: nothing is compressed
    uint32_t end = 0;            // one past the visual zone, the same for all layers

    // positions from the first to one past the last compressed visual token
    llama_pos p0 = -1;
    llama_pos p1 = -1;

    // mask-only mode (the oracle): per layer the hidden cells; start is all 0 and nothing was moved
    std::vector<std::vector<uint32_t>> hidden;

    uint32_t cell = 0; // some cell of the region: the region is gone when it is empty

    bool empty() const { return start.empty(); }

    // one record of a saved state; an empty zone is written and read as such (native/cache/zone.cpp)
    void write(llama_io_write_i & io) const;
    void read (llama_io_read_i  & io, uint32_t n_layer);
};

class llama_aircache {
public:
    explicit llama_aircache(llama_kv_cache & kv);

    // why this cache cannot be compressed; "" if it can
    static std::string unsupported(llama_context * lctx);

    // lets the context's cache know its context, if it is of the kind that can be compressed; others refuse saved zones
    static void attach(llama_context * lctx);

    // the cache's instance, made at first use; null (and reason set) when unsupported
    static llama_aircache * get(llama_context * lctx, std::string & reason);

    //
    // hooks of llama_kv_cache
    //

    // drop zones whose cells are gone
    void sync();

    // false: the range would cut a compressed region or leave it without the text before it. seq: -1 for all sequences.
    // All but can_rm log the reason, as their callers have no way to report it.
    bool can_rm (llama_seq_id seq, llama_pos p0, llama_pos p1) const;
    bool can_cp (llama_seq_id seq, llama_pos p0, llama_pos p1) const;
    bool can_div(llama_seq_id seq, llama_pos p0, llama_pos p1, int d) const;
    bool can_add(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift); // moves the region's limits along

    void copy_stream(uint32_t s0, uint32_t s1);

    // first row of layer ikv's view for the streams of sinfo, rounded down to pad(ikv)
    uint32_t view_start(int32_t ikv, const llama_kv_cache::slot_info & sinfo) const;

    bool any() const;

    const llama_aircache_zone & zone(uint32_t stream) const { return zones[stream]; }

    // the compressed region that the sequence holds (-1: that any holds); null: none
    const llama_aircache_zone * zone_of(uint32_t stream, llama_seq_id seq) const;

    // will a state of the sequence (-1: of all) hold a zone?
    bool saves(llama_seq_id seq) const;

    // of a stream's part of such a state; read_zone throws when the cache cannot be compressed
    void write_zone(llama_io_write_i & io, uint32_t stream, llama_seq_id seq) const;

    static llama_aircache_zone read_zone(llama_kv_cache & kv, llama_io_read_i & io);

    // takes over a zone, if there is one, whose cells were just restored; throws when it does not fit them
    static void restore(llama_kv_cache & kv, const llama_kv_cache::slot_info & sinfo, llama_aircache_zone zone);

    //
    // observation
    //

    void observe(llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
            const llama_aircache_method & method, const uint8_t * is_template);
    void forget (llama_seq_id seq);

    llama_aircache_observer * observer(llama_seq_id seq);

    // observers that the ubatch holds tokens of
    std::vector<llama_seq_id> observed(const llama_ubatch & ubatch) const;

    //
    // cells of an observed prompt, in the order of its tokens
    //

    // where a token stands: a token sees those that are not greater (an image's tokens share their position)
    struct cell {
        llama_pos pos, y, x;
        uint32_t  i;
        bool operator<=(const cell & o) const { return std::tie(pos, y, x) <= std::tie(o.pos, o.y, o.x); }
    };

    struct cell_list {
        std::vector<cell>    visual;
        std::vector<int32_t> n_visual; // of each span
        std::vector<cell>    text;     // T, by slot
        std::vector<cell>    other;    // text before the first image; not the survivors of earlier turns
    };

    cell_list cells(llama_seq_id seq) const;

    // throws llama_aircache_failure when text was not decoded
    void check_complete(llama_seq_id seq) const;

    //
    // eviction: see graph/aircache-evict.cpp
    //

    // dropped rows that are averaged into kept ones of a layer
    struct merge {
        std::vector<uint32_t> cells;  // source cells: the kept ones themselves and what they take in
        std::vector<uint32_t> group;  // [cells] which kept one
        std::vector<uint32_t> target; // [groups] the kept ones' new cells
        std::vector<float>    scale;  // [groups] 1 / members
    };

    // where every row of the new layout comes from
    struct layout {
        std::vector<std::vector<uint32_t>> rows; // [n_layer] source cells of [start[l], n_cells)
        std::vector<merge>    merges;            // [n_layer]
        std::vector<uint32_t> start;             // [n_layer]
        std::vector<uint32_t> common;            // source cells of [end, n_cells)
        uint32_t end = 0;

        // what commit() puts in place
        llama_kv_cells      table;
        llama_aircache_zone zone;
    };

    // throws llama_aircache_failure when the stream cannot be compressed
    layout plan(llama_seq_id seq, const int32_t * budgets, const int32_t * kept, double merge_share) const;

    // puts table and zone in place after the rows were moved; the observation ends
    void commit(llama_seq_id seq, layout && lay) noexcept;

    // removes the sequence after its rows were moved in part: what the table says of it is no longer true
    void drop(llama_seq_id seq);

    // mask-only mode: hide instead of move; the observation ends. Nothing has changed when it throws.
    void hide(llama_seq_id seq, const int32_t * budgets, const int32_t * kept);

    //
    // geometry
    //

    uint32_t n_layer() const { return kv.layers.size(); }
    uint32_t layer_il(uint32_t ikv) const { return kv.layers[ikv].il; }
    int32_t  layer_ikv(int32_t il) const { return kv.map_layer_ids.at(il); }
    uint32_t stream(llama_seq_id seq) const { return kv.seq_to_stream[seq]; }
    bool     seq_valid(llama_seq_id seq) const { return seq >= 0 && (uint32_t) seq < kv.n_seq_max; }

    uint32_t n_stream() const { return kv.n_stream; }
    uint32_t n_cells()  const { return kv.get_size(); }

    // one stream of a layer: [n_embd, n_cells]
    ggml_tensor * k(uint32_t ikv, uint32_t stream) const { return kv.layers[ikv].k_stream[stream]; }
    ggml_tensor * v(uint32_t ikv, uint32_t stream) const { return kv.layers[ikv].v_stream[stream]; }

    // without flash attention V is stored by channel: [n_cells, n_embd] in memory
    bool v_trans() const { return kv.v_trans; }

    void stats(llama_seq_id seq, llama_aircache_seq_stats & out) const;

    // incremented whenever a graph built before would be wrong
    uint64_t version = 0;

    // scheduler of the score and evict graphs, so that the context's own graphs and buffers stay as they are
    ggml_backend_sched_ptr sched;

private:
    // would the text stay on its side of the stream's region if the cells of seq at [p0, p1) went to the positions to(pos)?
    template <typename F>
    bool keeps_sides(llama_seq_id seq, llama_pos p0, llama_pos p1, F && to) const;

    // the table that belongs to a layout, whose survivors all stand where `last` does
    llama_kv_cells make_table(llama_seq_id seq, const layout & lay, uint32_t last) const;

    llama_kv_cache & kv;

    std::vector<llama_aircache_zone> zones; // [n_stream]

    std::vector<uint32_t> pad; // [n_layer] granularity of view starts

    std::map<llama_seq_id, std::unique_ptr<llama_aircache_observer>> observers;
};
