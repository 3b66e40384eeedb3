#include "cache/aircache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"
#include "policy/policy.h"

#include <algorithm>
#include <stdexcept>
#include <typeinfo>

//
// zone
//

void llama_aircache_zone::write(llama_io_write_i & io, uint32_t n_layer) const {
    if (!hidden.empty()) {
        throw std::runtime_error("a mask-only compression cannot be saved");
    }

    const uint32_t n = empty() ? 0 : n_layer;

    io.write(&n, sizeof(n));
    if (n > 0) {
        io.write(start.data(), n*sizeof(start[0]));
        io.write(&end, sizeof(end));
        io.write(&p0,  sizeof(p0));
        io.write(&p1,  sizeof(p1));
    }
}

void llama_aircache_zone::read(llama_io_read_i & io, uint32_t n_layer) {
    *this = {};

    uint32_t n = 0;
    io.read(&n, sizeof(n));
    if (n == 0) {
        return;
    }
    if (n != n_layer) {
        throw std::runtime_error("compressed state of another number of layers");
    }

    start.resize(n);
    io.read(start.data(), n*sizeof(start[0]));
    io.read(&end, sizeof(end));
    io.read(&p0,  sizeof(p0));
    io.read(&p1,  sizeof(p1));
}

bool llama_aircache::restore(llama_kv_cache & kv, const llama_kv_cache::slot_info & sinfo, const llama_aircache_zone & zone) {
    // the survivors' rows are only right at the cells they were saved from
    const auto & idxs = sinfo.idxs[0];
    for (uint32_t i = 0; i < zone.end; ++i) {
        if (i >= idxs.size() || idxs[i] != i) {
            LLAMA_LOG_ERROR("%s: a compressed sequence can only be restored into an empty stream\n", __func__);
            return false;
        }
    }
    if (std::any_of(zone.start.begin(), zone.start.end(), [&](uint32_t s) { return s > zone.end; })) {
        LLAMA_LOG_ERROR("%s: corrupt compressed state\n", __func__);
        return false;
    }

    if (!kv.air) {
        kv.air = std::make_shared<llama_aircache>(kv);
    }

    kv.air->zones[sinfo.strm[0]] = zone;
    kv.air->version++;

    return true;
}

//
// llama_aircache
//

llama_aircache::llama_aircache(llama_kv_cache & kv) : kv(kv), zones(kv.n_stream) {
    for (const auto & layer : kv.layers) {
        // Device kernels are fast for K lengths that are multiples of 256, so their views start at such a cell and the
        // mask hides the rest. On the CPU every row that is left out is time saved.
        pad.push_back(ggml_backend_buffer_is_host(layer.k->buffer) ? 1 : 256);
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
    if (dynamic_cast<llama_memory_hybrid *>(mem) || dynamic_cast<llama_memory_recurrent *>(mem)) {
        return "recurrent and hybrid memories are not supported";
    }

    auto * kv = dynamic_cast<llama_kv_cache *>(mem);
    if (!kv) {
        return "this model's kind of memory is not supported";
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
        auto * buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
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

//
// cells
//

llama_aircache::cell_list llama_aircache::cells(llama_seq_id seq) const {
    const uint32_t s = kv.seq_to_stream[seq];

    const auto & cells = kv.v_cells[s];
    const auto & obs   = *observers.at(seq);

    cell_list res;
    res.text.resize(obs.n_text);
    res.n_visual.resize(obs.spans.size());

    for (const auto & [pos, i] : cells.seq_pos_get(seq)) { // ascending positions
        const auto & ext = cells.ext_get(i);
        const cell   cur = { pos, ext.y, ext.x, i };
        const auto   span = std::find_if(obs.spans.begin(), obs.spans.end(), [p = pos](const auto & sp) { return p >= sp.p0 && p < sp.p1; });
        const int32_t slot = obs.text_slot(pos);

        if (span != obs.spans.end()) {
            res.visual.push_back(cur);
            res.n_visual[span - obs.spans.begin()]++;
        } else if (slot >= 0) {
            res.text[slot] = { pos, 0, 0, i };
        } else if (i >= zones[s].end && pos < obs.pos_end) {
            res.other.push_back({ pos, 0, 0, i });
        }
    }

    std::sort(res.visual.begin(), res.visual.end(), [](const cell & a, const cell & b) { return !(b <= a); });

    return res;
}

void llama_aircache::check_complete(llama_seq_id seq) const {
    const auto & cells = kv.v_cells[kv.seq_to_stream[seq]];
    const auto & obs   = *observers.at(seq);

    std::vector<uint8_t> have(obs.n_text, 0);
    for (const auto & [pos, i] : cells.seq_pos_get(seq)) {
        const int32_t slot = obs.text_slot(pos);
        if (slot >= 0) {
            have[slot] = obs.seen[slot];
        }
    }

    if (std::find(have.begin(), have.end(), 0) != have.end()) {
        throw std::runtime_error("the observed prompt was not decoded completely");
    }
}

//
// eviction
//

llama_aircache::layout llama_aircache::plan(llama_seq_id seq, const int32_t * budgets, const int32_t * kept, double merge_share) const {
    const uint32_t s = kv.seq_to_stream[seq];

    const auto & table  = kv.v_cells[s];
    const auto & zone   = zones[s];
    const auto   visual = cells(seq).visual;

    if (!zone.hidden.empty()) {
        throw std::runtime_error("the sequence holds a mask-only compression");
    }

    std::vector<uint8_t> drop(table.size(), 0);
    for (const auto & c : visual) {
        drop[c.i] = 1;
    }

    layout res;

    for (uint32_t i = 0; i < table.used_max_p1(); ++i) {
        if (table.is_empty(i)) {
            continue;
        }
        if (!table.seq_has(i, seq) || table.seq_count(i) != 1) {
            throw std::runtime_error("several sequences share this cache stream: use one stream per sequence (kv_unified = false)");
        }
        if (i >= zone.end && !drop[i]) {
            res.common.push_back(i);
        }
    }

    for (uint32_t l = 0; l < n_layer(); ++l) {
        const uint32_t n_old = zone.empty() ? 0 : zone.end - zone.start[l];
        res.end = std::max(res.end, n_old + budgets[l]);
    }

    for (uint32_t l = 0; l < n_layer(); ++l) {
        std::vector<uint32_t> rows;
        for (uint32_t i = zone.empty() ? 0 : zone.start[l]; i < zone.end; ++i) {
            rows.push_back(i); // survivors of earlier turns stay, in front
        }
        for (int32_t i = 0; i < budgets[l]; ++i) {
            rows.push_back(visual[kept[i]].i);
        }
        res.start.push_back(res.end - rows.size());

        merge mg;
        std::map<int32_t, std::vector<uint32_t>> groups; // kept -> dropped cells
        for (const auto & pair : aircache::merge_pairs(kept, budgets[l], visual.size(), merge_share)) {
            groups[pair.kept].push_back(visual[pair.dropped].i);
        }
        for (const auto & [k, dropped] : groups) {
            const uint32_t g = mg.target.size();
            mg.target.push_back(res.end - budgets[l] + k);
            mg.scale.push_back(1.0f/(1 + dropped.size()));
            mg.cells.push_back(visual[kept[k]].i);
            mg.cells.insert(mg.cells.end(), dropped.begin(), dropped.end());
            mg.group.insert(mg.group.end(), 1 + dropped.size(), g);
        }
        res.merges.push_back(std::move(mg));

        rows.insert(rows.end(), res.common.begin(), res.common.end());
        res.rows.push_back(std::move(rows));

        kept += budgets[l];
    }

    return res;
}

void llama_aircache::commit(llama_seq_id seq, const layout & lay) {
    const uint32_t s = kv.seq_to_stream[seq];

    auto & table = kv.v_cells[s];

    const auto & obs  = *observers.at(seq);
    const auto   last = cells(seq).visual.back().i;

    llama_kv_cells fresh;
    fresh.resize(table.size());

    const auto put = [&](uint32_t dst, uint32_t src) {
        fresh.pos_set(dst, table.pos_get(src));
        fresh.ext_set(dst, table.ext_get(src));
        fresh.seq_add(dst, seq);
    };

    for (uint32_t i = 0; i < lay.end; ++i) {
        put(i, last);
    }
    for (uint32_t i = 0; i < lay.common.size(); ++i) {
        put(lay.end + i, lay.common[i]);
    }

    auto & zone = zones[s];

    zone.p0    = zone.empty() ? obs.spans.front().p0 : zone.p0;
    zone.p1    = obs.spans.back().p1;
    zone.start = lay.start;
    zone.end   = lay.end;
    zone.cell  = 0;

    table = std::move(fresh);
    kv.v_heads[s] = lay.end + lay.common.size();

    version++;
}

void llama_aircache::hide(llama_seq_id seq, const int32_t * budgets, const int32_t * kept) {
    auto & zone = zones[kv.seq_to_stream[seq]];

    if (!zone.empty() && zone.hidden.empty()) {
        throw std::runtime_error("the sequence was compressed by moving before: mask-only cannot follow");
    }

    const auto & obs    = *observers.at(seq);
    const auto   visual = cells(seq).visual;

    zone.p0   = zone.empty() ? obs.spans.front().p0 : zone.p0;
    zone.p1   = obs.spans.back().p1;
    zone.end  = 0;
    zone.cell = visual.front().i;
    zone.start.assign(n_layer(), 0);
    zone.hidden.resize(n_layer());

    for (uint32_t l = 0; l < n_layer(); ++l) {
        const int32_t * end = kept + budgets[l];
        for (int32_t i = 0; i < (int32_t) visual.size(); ++i) {
            if (kept != end && *kept == i) {
                ++kept;
            } else {
                zone.hidden[l].push_back(visual[i].i);
            }
        }
    }

    version++;
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
