#include "cache/zones.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <type_traits>

llama_aircache_zones::llama_aircache_zones(llama_kv_cache & cache) : kv(cache), zones(kv.n_stream()) {
    for (uint32_t l = 0; l < kv.n_layer(); ++l) {
        // Device kernels are fast for K lengths that are multiples of 256, so their views start at such a cell and the
        // mask hides the rest. On the CPU every row that is left out is time saved.
        pad.push_back(ggml_backend_buffer_is_host(kv.k(l)->buffer) ? 1 : 256);
    }
}

void llama_aircache_zones::attach(llama_context * lctx) {
    // not the caches inside of other memories: theirs stay without a context
    if (auto * cache = llama_aircache_kv::find(lctx)) {
        cache->air_ctx   = lctx;
        cache->air_cells = cache->get_size();
    }
}

//
// hooks of llama_kv_cache
//

void llama_aircache_zones::sync(llama_seq_id seq) {
    tidy();
    for (uint32_t s = 0; s < zones.size(); ++s) {
        if (seq >= 0 && kv.stream(seq) != s) {
            continue;
        }
        if (!zones[s].empty() && kv.cells(s).is_empty(zones[s].cell)) {
            zones[s] = {};
            zones_version++;
        }
        if (kv.copy_waits(s)) {
            continue; // copied() gives back what is left
        }
        if (kv.cells(s).get_used() == 0) {
            kv.release(s); // nothing is left of a conversation: its memory goes, too
        } else if (!kv.v_trans()) { // V by channel takes too many calls for what may be a token
            for (uint32_t l = 0; l < kv.n_layer(); ++l) {
                kv.release_tail(l, s);
            }
        }
    }
}

void llama_aircache_zones::tidy() const {
    for (uint32_t s = 0; untidy && s < zones.size(); ++s) {
        for (uint32_t l = 0; !zones[s].empty() && l < kv.n_layer(); ++l) {
            kv.release(l, s, 0, zones[s].start[l]);
        }
    }
    untidy = false;
}

void llama_aircache_zones::copied(llama_kv_cache & cache, uint32_t ikv, uint32_t stream) {
    const llama_aircache_kv kv(cache);
    if (cache.air && !cache.air->zone(stream).empty()) {
        kv.release(ikv, stream, 0, cache.air->zone(stream).start[ikv]);
    }
    kv.release_tail(ikv, stream);
}

const llama_aircache_zone * llama_aircache_zones::zone_of(uint32_t stream, llama_seq_id seq) const {
    const auto & zone  = zones[stream];
    const auto & cells = kv.cells(stream);

    const bool holds = !zone.empty() && !cells.is_empty(zone.cell) && (seq < 0 || cells.seq_has(zone.cell, seq));

    return holds ? &zone : nullptr;
}

bool llama_aircache_zones::can_rm(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    for (uint32_t s = 0; s < zones.size(); ++s) {
        const auto * zone = seq < 0 || kv.stream(seq) == s ? zone_of(s, seq) : nullptr;

        if (!zone || p0 >= p1 || p0 >= zone->p1) {
            continue;
        }

        for (llama_seq_id cur = 0; cur < (llama_seq_id) kv.n_seq_max(); ++cur) {
            if ((seq >= 0 && cur != seq) || !zone_of(s, cur)) {
                continue;
            }
            // not the first cell's position alone: where the prompt begins with the image, that is the region's last one
            const llama_pos first = std::min(zone->p0, kv.cells(s).seq_pos_min(cur));
            if (p1 > first && (p0 > first || p1 < zone->p1)) {
                return false;
            }
        }
    }

    return true;
}

bool llama_aircache_zones::can_cp(llama_seq_id seq, llama_pos p0, llama_pos p1) const {
    const uint32_t s = kv.stream(seq);

    const auto * zone = zone_of(s, seq);
    if (!zone || p0 >= p1 || p0 >= zone->p1 || p1 <= zone->p0) {
        return true;
    }
    if (p0 > std::min(zone->p0, kv.cells(s).seq_pos_min(seq)) || p1 < zone->p1) {
        LLAMA_LOG_ERROR("%s: the range cuts a compressed image, or leaves out the text before it: nothing copied\n", __func__);
        return false;
    }

    return true;
}

template <typename F>
bool llama_aircache_zones::keeps_sides(llama_seq_id seq, llama_pos p0, llama_pos p1, F && to) const {
    const uint32_t s = kv.stream(seq);

    const auto & zone  = zones[s];
    const auto & cells = kv.cells(s);

    const bool moves = zone_of(s, seq) && p0 <= zone.p0 && p1 >= zone.p1;

    const int64_t z0 = moves ? to(zone.p0) : zone.p0;
    const int64_t z1 = moves ? z0 + (zone.p1 - zone.p0) : zone.p1;

    const auto side = [](int64_t pos, int64_t z0, int64_t z1) { return pos < z0 ? -1 : pos >= z1; };

    // cells may be shared, so that a change of seq moves those of the sequences that hold the region, too
    for (llama_seq_id cur = 0; cur < (llama_seq_id) kv.n_seq_max(); ++cur) {
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

bool llama_aircache_zones::can_div(llama_seq_id seq, llama_pos p0, llama_pos p1, int d) const {
    const auto * zone = zone_of(kv.stream(seq), seq);

    if (zone && p0 < zone->p1 && p1 > zone->p0) {
        LLAMA_LOG_ERROR("%s: positions of a compressed image cannot be divided: nothing done\n", __func__);
        return false;
    }

    return d == 0 || keeps_sides(seq, p0, p1, [d](llama_pos pos) { return (int64_t) pos/d; });
}

bool llama_aircache_zones::can_add(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift) {
    const uint32_t s = kv.stream(seq);

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

void llama_aircache_zones::copy_stream(uint32_t s0, uint32_t s1) {
    if (!zones[s0].empty() || !zones[s1].empty()) {
        zones[s1] = zones[s0];
        zones_version++;
    }
}

// [head size, n_head, n_kv - i0, n_stream] of a tensor whose rows are cells, as llama_kv_cache::get_k makes it for i0 = 0
static ggml_tensor * view_rows(ggml_context * ctx, ggml_tensor * t, int64_t n_embd_head, int64_t n_head, uint32_t n_kv, uint32_t i0,
        const llama_kv_cache::slot_info & sinfo) {
    const size_t row    = ggml_row_size(t->type, t->ne[0]);
    const size_t stream = ggml_row_size(t->type, t->ne[0]*t->ne[1]);

    return ggml_view_4d(ctx, t, n_embd_head, n_head, n_kv - i0, sinfo.s1 - sinfo.s0 + 1,
            ggml_row_size(t->type, n_embd_head), row, stream, stream*sinfo.s0 + row*i0);
}

ggml_tensor * llama_aircache_zones::view_k(ggml_context * ctx, int32_t il, uint32_t n_kv, const llama_kv_cache::slot_info & sinfo) const {
    const auto & hparams = kv.hparams();
    const auto   ikv     = kv.layer_ikv(il);

    return view_rows(ctx, kv.k(ikv), hparams.n_embd_head_k(il), hparams.n_head_kv(il), n_kv, view_start(ikv, sinfo), sinfo);
}

ggml_tensor * llama_aircache_zones::view_v(ggml_context * ctx, int32_t il, uint32_t n_kv, const llama_kv_cache::slot_info & sinfo) const {
    const auto & hparams = kv.hparams();
    const auto   ikv     = kv.layer_ikv(il);

    ggml_tensor * v = kv.v(ikv);

    const uint32_t i0     = view_start(ikv, sinfo);
    const int64_t  n_head = hparams.n_head_kv(il);
    const int64_t  d      = hparams.n_embd_head_v(il);

    if (!kv.v_trans()) {
        return view_rows(ctx, v, d, n_head, n_kv, i0, sinfo);
    }

    // channels are rows: [n_kv - i0, n_head, head size, n_stream]
    const size_t channel = ggml_row_size(v->type, v->ne[1]);
    const size_t stream  = ggml_row_size(v->type, v->ne[1]*v->ne[0]);

    return ggml_view_4d(ctx, v, n_kv - i0, n_head, d, sinfo.s1 - sinfo.s0 + 1,
            ggml_row_size(v->type, v->ne[1]*d), channel, stream, stream*sinfo.s0 + ggml_row_size(v->type, i0));
}

uint32_t llama_aircache_zones::view_start(int32_t ikv, const llama_kv_cache::slot_info & sinfo) const {
    uint32_t res = UINT32_MAX;
    for (uint32_t s = sinfo.s0; s <= sinfo.s1; ++s) {
        res = std::min(res, zones[s].empty() ? 0 : zones[s].start[ikv]);
    }

    return res - res % pad[ikv];
}

bool llama_aircache_zones::any() const {
    return std::any_of(zones.begin(), zones.end(), [](const auto & zone) { return !zone.empty(); });
}

void llama_aircache_zones::set_zone(uint32_t stream, llama_aircache_zone && zone) noexcept {
    static_assert(std::is_nothrow_move_assignable_v<llama_aircache_zone>);

    zones[stream] = std::move(zone);
    zones_version++;
}
