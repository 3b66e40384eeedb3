// The one class that looks into a llama_kv_cache, whose friend it is: cells, tensors and geometry, for the rest of native/.
#pragma once

#include "llama-kv-cache.h"

#include <string>
#include <utility>
#include <vector>

class llama_aircache_kv {
public:
    explicit llama_aircache_kv(llama_kv_cache & kv) : kv(kv) {}

    // the context's cache, if it is of the kind that can be compressed, else null
    static llama_kv_cache * find(llama_context * lctx);

    // KV layers of a memory of that kind, else 0
    static uint32_t count_layers(const llama_memory_i * memory);

    // why a context's cache cannot be compressed, whatever its devices; "" if it can
    static std::string unsupported(llama_context * lctx);

    //
    // layers
    //

    uint32_t n_layer() const { return kv.layers.size(); }
    uint32_t layer_il(uint32_t ikv) const { return kv.layers[ikv].il; }
    int32_t  layer_ikv(int32_t il) const { return kv.map_layer_ids.at(il); }

    // all streams of a layer
    ggml_tensor * k(uint32_t ikv) const { return kv.layers[ikv].k; }
    ggml_tensor * v(uint32_t ikv) const { return kv.layers[ikv].v; }

    // one of them: [n_embd, n_cells]
    ggml_tensor * k(uint32_t ikv, uint32_t stream) const { return kv.layers[ikv].k_stream[stream]; }
    ggml_tensor * v(uint32_t ikv, uint32_t stream) const { return kv.layers[ikv].v_stream[stream]; }

    // without flash attention V is stored by channel: [n_cells, n_embd] in memory
    bool v_trans() const { return kv.v_trans; }

    // bytes of a cell, K and V
    int64_t row_bytes(uint32_t ikv) const { return kv.layers[ikv].k->nb[1] + kv.layers[ikv].v->nb[1]; }

    // that owns the cache; null inside of other memories
    llama_context * context() const { return kv.air_ctx; }

    const llama_hparams & hparams() const { return kv.hparams; }

    //
    // streams, sequences, cells
    //

    uint32_t n_stream()  const { return kv.n_stream; }
    uint32_t n_cells()   const { return kv.air_cells ? kv.air_cells : kv.get_size(); } // of a stream, at most
    uint32_t n_rows()    const { return kv.get_size(); }                               // that there are buffers for by now
    uint32_t n_seq_max() const { return kv.n_seq_max; }

    uint32_t stream(llama_seq_id seq) const { return kv.seq_to_stream[seq]; }
    bool     seq_valid(llama_seq_id seq) const { return seq >= 0 && (uint32_t) seq < kv.n_seq_max; }

    const llama_kv_cells & cells(uint32_t stream) const { return kv.v_cells[stream]; }

    // another table for a stream; head: where the search for free cells goes on
    void set_cells(uint32_t stream, llama_kv_cells && table, uint32_t head) const noexcept;

    //
    // memory (pages.h)
    //

    // gives the pages of a layer's rows [i0, i1) of one stream back to the system
    void release(uint32_t ikv, uint32_t stream, uint32_t i0, uint32_t i1) const noexcept;

    // those behind the stream's last cell
    void release_tail(uint32_t ikv, uint32_t stream) const noexcept;

    // all pages of a stream that holds nothing
    void release(uint32_t stream) const noexcept;

    // do pages come and go by themselves? Else buffers are all there, and can only be made anew.
    bool is_mapped() const;

    // bytes of K and V of all cells that a stream may have
    int64_t reserved_bytes() const;

    // of what was taken for a stream: pages of mapped buffers, and others whole
    int64_t allocated_bytes(uint32_t stream) const;

    // Other buffers, with room for n_rows cells a stream, as yet without data; and in place of those at hand, with tables to
    // match. make() throws std::bad_alloc.
    struct storage {
        std::vector<llama_kv_cache::kv_layer> layers;
        std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;
    };
    storage make(uint32_t n_rows) const;
    void    put(storage && with, llama_kv_cells_vec && tables) const noexcept;

    const llama_kv_cells_vec & tables() const { return kv.v_cells; }

    void remove(llama_seq_id seq) const { kv.seq_rm(seq, -1, -1); }

    // does a copy of the stream wait, so that what it held is needed yet?
    bool copy_waits(uint32_t stream) const;

private:
    llama_kv_cache & kv;
};

// rows [i0, i0 + n) of K or V as 32-bit words, so that they are moved as they are, whatever the cache's type
ggml_tensor * llama_aircache_words(ggml_context * ctx, ggml_tensor * t, uint32_t i0, uint32_t n);

// cells [i0, i0 + n) of a transposed V: [n, n_embd]
ggml_tensor * llama_aircache_columns(ggml_context * ctx, ggml_tensor * v, uint32_t i0, uint32_t n);
