#include "cache/kv.h"

#include "cache/faults.h"
#include "cache/mapping.h"
#include "cache/pages.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <new>
#include <type_traits>

llama_kv_cache * llama_aircache_kv::find(llama_context * lctx) {
    return dynamic_cast<llama_kv_cache *>(lctx->get_memory());
}

uint32_t llama_aircache_kv::count_layers(const llama_memory_i * memory) {
    const auto * kv = dynamic_cast<const llama_kv_cache *>(memory);
    return kv ? kv->layers.size() : 0;
}

std::string llama_aircache_kv::unsupported(llama_context * lctx) {
    auto * mem = lctx->get_memory();

    if (!mem) {
        return "the model has no KV cache";
    }
    if (dynamic_cast<llama_kv_cache_iswa *>(mem)) {
        return "sliding-window caches are not supported";
    }
    if (dynamic_cast<llama_memory_hybrid *>(mem) || dynamic_cast<llama_memory_hybrid_iswa *>(mem)) {
        return "hybrid memories (attention and recurrent layers) are not supported";
    }
    if (dynamic_cast<llama_memory_recurrent *>(mem)) {
        return "recurrent memories are not supported: they have no cells to evict";
    }

    auto * kv = dynamic_cast<llama_kv_cache *>(mem);
    if (!kv) {
        return "caches of sparse attention are not supported"; // those with an index beside K and V
    }

    const auto & hparams = lctx->get_model().hparams;

    if (kv->other) {
        return "caches that share their cells with another context are not supported";
    }
    if (kv->swa_type != LLAMA_SWA_TYPE_NONE) {
        return "sliding-window caches are not supported";
    }
    if (hparams.is_mla()) {
        return "MLA caches (no V) are not supported";
    }
    if (kv->map_layer_ids.size() != kv->layers.size()) {
        return "caches whose layers share K and V are not supported";
    }
    if (hparams.use_alibi) {
        return "ALiBi is not supported: it needs the distances of evicted cells";
    }
    if (hparams.attn_soft_cap) {
        return "attention logit soft-capping is not supported";
    }
    if (lctx->get_model().split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "tensor-parallel caches (split mode tensor) are not supported";
    }

    for (const auto & layer : kv->layers) {
        // scores would leave out what the sinks or the bias take, and a bias counts cells
        if (lctx->get_model().layers[layer.il].attn_sinks) {
            return "attention sinks are not supported: scores do not count what they take";
        }
        if (lctx->get_model().layers[layer.il].attn_rel_b) {
            return "a bias of attention by distance (T5) is not supported: it needs the distances of evicted cells";
        }
        // rows are moved as 32-bit words
        if (layer.k->nb[1] % 4 != 0 || (!kv->v_trans && layer.v->nb[1] % 4 != 0)) {
            return std::string("rows of a ") + ggml_type_name(layer.k->type) + " cache of this width are no multiple of 4 bytes: use f16";
        }
    }

    return "";
}

void llama_aircache_kv::set_cells(uint32_t stream, llama_kv_cells && table, uint32_t head) const noexcept {
    static_assert(std::is_nothrow_move_assignable_v<llama_kv_cells>);

    kv.v_cells[stream] = std::move(table);
    kv.v_heads[stream] = head;
}

bool llama_aircache_kv::copy_waits(uint32_t stream) const {
    const auto & from = kv.sc_info.ssrc;
    return std::find(from.begin(), from.end(), stream) != from.end();
}

//
// views
//

ggml_tensor * llama_aircache_words(ggml_context * ctx, ggml_tensor * t, uint32_t i0, uint32_t n) {
    ggml_tensor * res = ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], i0*t->nb[1]);

    res->type  = GGML_TYPE_I32;
    res->ne[0] = t->nb[1]/sizeof(int32_t);
    res->nb[0] = sizeof(int32_t);
    res->nb[1] = t->nb[1];
    res->nb[2] = res->nb[1]*n;
    res->nb[3] = res->nb[2];

    return res;
}

ggml_tensor * llama_aircache_columns(ggml_context * ctx, ggml_tensor * v, uint32_t i0, uint32_t n) {
    return ggml_view_2d(ctx, v, n, v->ne[0], ggml_row_size(v->type, v->ne[1]), ggml_row_size(v->type, i0));
}

void llama_aircache_kv::release(uint32_t ikv, uint32_t stream, uint32_t i0, uint32_t i1) const noexcept {
    llama_aircache_pages_release(k(ikv, stream), false,     i0, i1);
    llama_aircache_pages_release(v(ikv, stream), v_trans(), i0, i1);
}

void llama_aircache_kv::release_tail(uint32_t ikv, uint32_t stream) const noexcept {
    release(ikv, stream, cells(stream).used_max_p1(), n_rows());
}

void llama_aircache_kv::release(uint32_t stream) const noexcept {
    for (uint32_t l = 0; l < n_layer(); ++l) {
        llama_aircache_pages_release(k(l, stream));
        llama_aircache_pages_release(v(l, stream));
    }
}

bool llama_aircache_kv::is_mapped() const {
    for (uint32_t l = 0; l < n_layer(); ++l) {
        if (!llama_aircache_is_mapped(k(l)) || !llama_aircache_is_mapped(v(l))) {
            return false;
        }
    }
    return true;
}

int64_t llama_aircache_kv::reserved_bytes() const {
    int64_t res = 0;
    for (uint32_t l = 0; l < n_layer(); ++l) {
        res += row_bytes(l)*n_cells();
    }
    return res;
}

int64_t llama_aircache_kv::allocated_bytes(uint32_t stream) const {
    int64_t res = 0;
    for (uint32_t l = 0; l < n_layer(); ++l) {
        res += llama_aircache_pages_resident(k(l, stream));
        res += llama_aircache_pages_resident(v(l, stream));
    }
    return res;
}

//
// other buffers
//

llama_aircache_kv::storage llama_aircache_kv::make(uint32_t n_rows) const {
    const llama_aircache_fault_pause others;

    storage res;

    std::map<ggml_backend_buffer_type_t, size_t> by_buft; // index into ctxs_bufs

    const ggml_init_params params = { 2*(1 + n_stream())*n_layer()*ggml_tensor_overhead(), nullptr, true };

    const auto like = [&](ggml_tensor * t, std::vector<ggml_tensor *> & streams) {
        const auto [it, is_new] = by_buft.try_emplace(ggml_backend_buffer_get_type(t->buffer), res.ctxs_bufs.size());
        if (is_new) {
            res.ctxs_bufs.emplace_back(ggml_init(params), nullptr);
        }
        auto * ctx = res.ctxs_bufs[it->second].first.get();
        if (!ctx) {
            throw std::bad_alloc();
        }
        ggml_tensor * fresh = ggml_new_tensor_3d(ctx, t->type, t->ne[0], n_rows, n_stream());
        ggml_set_name(fresh, t->name);
        for (auto & stream : streams) {
            stream = ggml_view_2d(ctx, fresh, fresh->ne[0], n_rows, fresh->nb[1], (&stream - streams.data())*fresh->nb[2]);
        }
        return fresh;
    };

    res.layers = kv.layers;
    for (auto & layer : res.layers) {
        layer.k = like(layer.k, layer.k_stream);
        layer.v = like(layer.v, layer.v_stream);
    }

    for (const auto & [buft, i] : by_buft) {
        auto & [ctx, buf] = res.ctxs_bufs[i];
        buf.reset(llama_aircache_fault("buffer") ? nullptr : llama_aircache_alloc(ctx.get(), buft));
        if (!buf) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_clear(buf.get(), 0);
    }

    return res;
}

void llama_aircache_kv::put(storage && with, llama_kv_cells_vec && tables) const noexcept {
    kv.layers    = std::move(with.layers);
    kv.ctxs_bufs = std::move(with.ctxs_bufs);
    for (uint32_t s = 0; s < n_stream(); ++s) {
        const uint32_t head = std::min(kv.v_heads[s], tables[s].size());
        set_cells(s, std::move(tables[s]), head);
    }
}
