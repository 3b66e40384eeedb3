#include "cache/aircache.h"
#include "cache/faults.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <new>

llama_aircache::llama_aircache(llama_kv_cache & kv) : kv(kv), zones(kv.n_stream) {
    for (const auto & layer : kv.layers) {
        // Device kernels are fast for K lengths that are multiples of 256, so their views start at such a cell and the
        // mask hides the rest. On the CPU every row that is left out is time saved.
        pad.push_back(ggml_backend_buffer_is_host(layer.k->buffer) ? 1 : 256);
    }
}

void llama_aircache::attach(llama_context * lctx) {
    // not the caches inside of other memories: theirs stay without a context
    if (auto * kv = dynamic_cast<llama_kv_cache *>(lctx->get_memory())) {
        kv->air_ctx = lctx;
    }
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
        kv->air = std::make_shared<llama_aircache>(*kv);
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

const llama_aircache_zone * llama_aircache::zone_of(uint32_t stream, llama_seq_id seq) const {
    const auto & zone  = zones[stream];
    const auto & cells = kv.v_cells[stream];

    const bool holds = !zone.empty() && !cells.is_empty(zone.cell) && (seq < 0 || cells.seq_has(zone.cell, seq));

    return holds ? &zone : nullptr;
}

bool llama_aircache::can_rm(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    for (uint32_t s = 0; s < zones.size(); ++s) {
        const auto * zone = seq < 0 || kv.seq_to_stream[seq] == s ? zone_of(s, seq) : nullptr;

        if (!zone || p0 >= p1 || p0 >= zone->p1) {
            continue;
        }

        for (llama_seq_id cur = 0; cur < (llama_seq_id) kv.n_seq_max; ++cur) {
            if ((seq >= 0 && cur != seq) || !zone_of(s, cur)) {
                continue;
            }
            // not the first cell's position alone: where the prompt begins with the image, that is the region's last one
            const llama_pos first = std::min(zone->p0, kv.v_cells[s].seq_pos_min(cur));
            if (p1 > first && (p0 > first || p1 < zone->p1)) {
                return false;
            }
        }
    }

    return true;
}

bool llama_aircache::can_cp(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    const uint32_t s = kv.seq_to_stream[seq];

    const auto * zone = zone_of(s, seq);
    if (!zone || p0 >= p1 || p0 >= zone->p1 || p1 <= zone->p0) {
        return true;
    }
    if (p0 > std::min(zone->p0, kv.v_cells[s].seq_pos_min(seq)) || p1 < zone->p1) {
        LLAMA_LOG_ERROR("%s: the range cuts a compressed image, or leaves out the text before it: nothing copied\n", __func__);
        return false;
    }

    return true;
}

template <typename F>
bool llama_aircache::keeps_sides(llama_seq_id seq, llama_pos p0, llama_pos p1, F && to) const {
    const uint32_t s = kv.seq_to_stream[seq];

    const auto & zone  = zones[s];
    const auto & cells = kv.v_cells[s];

    const bool moves = zone_of(s, seq) && p0 <= zone.p0 && p1 >= zone.p1;

    const int64_t z0 = moves ? to(zone.p0) : zone.p0;
    const int64_t z1 = moves ? z0 + (zone.p1 - zone.p0) : zone.p1;

    const auto side = [](int64_t pos, int64_t z0, int64_t z1) { return pos < z0 ? -1 : pos >= z1; };

    // cells may be shared, so that a change of seq moves those of the sequences that hold the region, too
    for (llama_seq_id cur = 0; cur < (llama_seq_id) kv.n_seq_max; ++cur) {
        if (!zone_of(s, cur)) {
            continue;
        }
        for (const auto & [pos, i] : cells.seq_pos_get(cur)) {
            const int64_t after = pos >= p0 && pos < p1 && cells.seq_has(i, seq) ? to(pos) : pos;
            if (side(pos, zone.p0, zone.p1) != side(after, z0, z1)) {
                LLAMA_LOG_ERROR("%s: text would get in among a compressed image, or to its other side: nothing done\n", __func__);
                return false;
            }
        }
    }

    return true;
}

bool llama_aircache::can_div(llama_seq_id seq, llama_pos p0, llama_pos p1, int d) const {
    const auto * zone = zone_of(kv.seq_to_stream[seq], seq);

    if (zone && p0 < zone->p1 && p1 > zone->p0) {
        LLAMA_LOG_ERROR("%s: positions of a compressed image cannot be divided: nothing done\n", __func__);
        return false;
    }

    return d == 0 || keeps_sides(seq, p0, p1, [d](llama_pos pos) { return (int64_t) pos/d; });
}

bool llama_aircache::can_add(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift) {
    const uint32_t s = kv.seq_to_stream[seq];

    if (!zone_of(s, -1) || p0 >= p1) {
        return true;
    }

    auto & zone = zones[s];

    const bool overlaps = zone_of(s, seq) && p0 < zone.p1 && p1 > zone.p0;

    if (overlaps) {
        // the region's cells share one shift: all of them or none
        if (p0 > zone.p0 || p1 < zone.p1 || !zone.hidden.empty()) {
            LLAMA_LOG_ERROR("%s: the range cuts a compressed image: nothing done\n", __func__);
            return false;
        }
        if ((int64_t) zone.p0 + shift < 0 || (int64_t) zone.p1 + shift > INT32_MAX) {
            LLAMA_LOG_ERROR("%s: a compressed image would leave the valid positions: nothing done\n", __func__);
            return false;
        }
    }
    if (!keeps_sides(seq, p0, p1, [shift](llama_pos pos) { return (int64_t) pos + shift; })) {
        return false;
    }
    if (overlaps) {
        zone.p0 += shift;
        zone.p1 += shift;
    }

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

//
// observation
//

void llama_aircache::observe(llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        const llama_aircache_method & method, const uint8_t * is_template) {
    auto obs = std::make_unique<llama_aircache_observer>();

    obs->spans.assign(spans, spans + n_spans);
    obs->pos_end = pos_end;
    obs->n_text  = pos_end - spans[0].p1;
    for (int32_t i = 1; i < n_spans; ++i) {
        obs->n_text -= spans[i].p1 - spans[i].p0;
    }
    obs->n_last = method.window == LLAMA_AIRCACHE_WINDOW_VISUAL ? method.window_n : 0;
    obs->sum    = method.window == LLAMA_AIRCACHE_WINDOW_ALL;
    obs->seen.resize(obs->n_text, 0);
    obs->last_cell.resize(obs->n_last, UINT32_MAX);
    obs->kq_scale.resize(n_layer(), 0.0f);
    if (is_template) {
        obs->is_template.assign(is_template, is_template + obs->n_text);
    }

    // everything stays on the device of the layer's K
    const ggml_init_params params = { 2*(n_layer() + 1)*ggml_tensor_overhead(), nullptr, true };
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> ctxs;

    for (const auto & layer : kv.layers) {
        auto & ctx = ctxs[ggml_backend_buffer_get_type(layer.k->buffer)];
        if (!ctx) {
            ctx.reset(ggml_init(params));
        }

        const int64_t n = (int64_t) kv.hparams.n_embd_head_k(layer.il)*kv.hparams.n_head(layer.il);

        obs->q.push_back(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, obs->n_slots() + 1));
        if (obs->sum) {
            obs->sums.push_back(ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, kv.get_size()));
        }
    }

    for (auto & [buft, ctx] : ctxs) {
        const llama_aircache_fault_pause others;

        auto * buf = llama_aircache_fault("buffer") ? nullptr : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
        if (!buf) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_clear(buf, 0);
        obs->bufs.emplace_back(buf);
        obs->ctxs.push_back(std::move(ctx));
    }

    observers[seq] = std::move(obs);
    version++;
}

void llama_aircache::forget(llama_seq_id seq) {
    if (observers.erase(seq)) {
        version++;
    }
}

llama_aircache_observer * llama_aircache::observer(llama_seq_id seq) {
    const auto it = observers.find(seq);
    return it == observers.end() ? nullptr : it->second.get();
}

std::vector<llama_seq_id> llama_aircache::observed(const llama_ubatch & ubatch) const {
    std::vector<llama_seq_id> res;

    for (const auto & [seq, obs] : observers) {
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            // a graph that is only reserved has no sequences
            if (ubatch.seq_id[i] && ubatch.seq_id[i][0] == seq && obs->covers(ubatch.pos[i])) {
                res.push_back(seq);
                break;
            }
        }
    }

    return res;
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
