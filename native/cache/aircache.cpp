#include "cache/aircache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <new>

llama_aircache::llama_aircache(llama_kv_cache & kv) : kq_scale(kv.layers.size(), 0.0f), kv(kv), zones(kv.n_stream) {
    for (const auto & layer : kv.layers) {
        // Device kernels are fast for K lengths that are multiples of 256, so their views start at such a cell and the
        // mask hides the rest. On the CPU every row that is left out is time saved.
        pad.push_back(ggml_backend_buffer_is_host(layer.k->buffer) ? 1 : 256);
    }
}

uint32_t llama_aircache::count_layers(const llama_memory_i * memory) {
    const auto * kv = dynamic_cast<const llama_kv_cache *>(memory);
    return kv ? kv->layers.size() : 0;
}

std::string llama_aircache::unsupported(llama_context * lctx) {
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

llama_aircache * llama_aircache::get(llama_context * lctx, std::string & reason) {
    reason = unsupported(lctx);
    if (!reason.empty()) {
        return nullptr;
    }

    auto * kv = static_cast<llama_kv_cache *>(lctx->get_memory());
    if (!kv->air) {
        auto air = std::make_shared<llama_aircache>(*kv);
        reason = air->missing_op(false);
        if (!reason.empty()) {
            return nullptr;
        }
        kv->air = std::move(air);
    }

    return kv->air.get();
}

//
// hooks of llama_kv_cache
//

void llama_aircache::sync() {
    for (uint32_t s = 0; s < zones.size(); ++s) {
        if (!zones[s].empty() && kv.v_cells[s].is_empty(zones[s].cell)) {
            zones[s] = {};
            version++;
        }
    }
}

// does the stream hold a compressed region of this sequence (-1: of any)?
static bool has_zone(const llama_aircache_zone & zone, const llama_kv_cells & cells, llama_seq_id seq) {
    return !zone.empty() && !cells.is_empty(zone.cell) && (seq < 0 || cells.seq_has(zone.cell, seq));
}

bool llama_aircache::can_rm(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    for (uint32_t s = 0; s < zones.size(); ++s) {
        const auto & zone  = zones[s];
        const auto & cells = kv.v_cells[s];

        if ((seq >= 0 && kv.seq_to_stream[seq] != s) || !has_zone(zone, cells, seq) || p0 >= zone.p1) {
            continue;
        }

        const llama_pos pos_min = seq >= 0 ? cells.seq_pos_min(seq) : 0;
        if (p0 > pos_min || p1 < zone.p1) {
            return false;
        }
    }

    return true;
}

bool llama_aircache::can_div(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    const uint32_t s = kv.seq_to_stream[seq];

    if (has_zone(zones[s], kv.v_cells[s], seq) && p0 < zones[s].p1 && p1 > zones[s].p0) {
        LLAMA_LOG_ERROR("%s: positions of a compressed image cannot be divided: nothing done\n", __func__);
        return false;
    }

    return true;
}

bool llama_aircache::can_add(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift) {
    auto & zone = zones[kv.seq_to_stream[seq]];

    if (!has_zone(zone, kv.v_cells[kv.seq_to_stream[seq]], seq) || p0 >= zone.p1 || p1 <= zone.p0) {
        return true;
    }
    // the region's cells share one shift: all of them or none
    if (p0 > zone.p0 || p1 < zone.p1 || zone.p0 + shift < 0 || !zone.hidden.empty()) {
        LLAMA_LOG_ERROR("%s: the range cuts a compressed image: nothing done\n", __func__);
        return false;
    }

    zone.p0 += shift;
    zone.p1 += shift;

    return true;
}

void llama_aircache::copy_stream(uint32_t s0, uint32_t s1) {
    if (!zones[s0].empty() || !zones[s1].empty()) {
        zones[s1] = zones[s0];
        version++;
    }
}

uint32_t llama_aircache::view_start(int32_t ikv, const llama_kv_cache::slot_info & sinfo) const {
    uint32_t res = UINT32_MAX;
    for (uint32_t s = sinfo.s0; s <= sinfo.s1; ++s) {
        res = std::min(res, zones[s].empty() ? 0 : zones[s].start[ikv]);
    }

    return res - res % pad[ikv];
}

bool llama_aircache::any() const {
    return std::any_of(zones.begin(), zones.end(), [](const auto & zone) { return !zone.empty(); });
}

void llama_aircache::stats(llama_seq_id seq, llama_aircache_seq_stats & out) const {
    const uint32_t s = kv.seq_to_stream[seq];

    const auto & cells = kv.v_cells[s];

    out = {};
    out.n_cells = cells.get_used();
    out.n_free  = cells.size() - cells.get_used();
    out.n_zone  = zones[s].end;

    for (uint32_t l = 0; l < n_layer(); ++l) {
        const int64_t row = kv.layers[l].k->nb[1] + kv.layers[l].v->nb[1];
        out.kv_bytes_cell += row;
        out.kv_bytes      += row*(out.n_cells - (zones[s].empty() ? 0 : (int64_t) zones[s].start[l]));
    }
}
