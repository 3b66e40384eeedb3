// From a prompt's cells to the layout of a compressed cache, and the table that goes with it.
#include "cache/aircache.h"

#include "policy/policy.h"

#include <algorithm>
#include <map>
#include <type_traits>

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
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the observed prompt was not decoded completely");
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
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the sequence holds a mask-only compression");
    }
    if (table.get_has_shift()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "a shift of positions waits and could not be applied");
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
            throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED,
                    "several sequences share this cache stream: use one stream per sequence (kv_unified = false)");
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

    res.table = make_table(seq, res, visual.back().i);

    const auto & obs = *observers.at(seq);

    res.zone.p0    = zone.empty() ? obs.spans.front().p0 : zone.p0;
    res.zone.p1    = obs.spans.back().p1;
    res.zone.start = res.start;
    res.zone.end   = res.end;
    res.zone.cell  = 0;

    return res;
}

llama_kv_cells llama_aircache::make_table(llama_seq_id seq, const layout & lay, uint32_t last) const {
    const auto & table = kv.v_cells[kv.seq_to_stream[seq]];

    llama_kv_cells res;
    res.resize(table.size());

    const auto put = [&](uint32_t dst, uint32_t src) {
        res.pos_set(dst, table.pos_get(src));
        res.ext_set(dst, table.ext_get(src));
        res.seq_add(dst, seq);
    };

    for (uint32_t i = 0; i < lay.end; ++i) {
        put(i, last);
    }
    for (uint32_t i = 0; i < lay.common.size(); ++i) {
        put(lay.end + i, lay.common[i]);
    }

    return res;
}

void llama_aircache::commit(llama_seq_id seq, layout && lay) noexcept {
    static_assert(std::is_nothrow_move_assignable_v<llama_kv_cells> && std::is_nothrow_move_assignable_v<llama_aircache_zone>);

    const uint32_t s = kv.seq_to_stream[seq];

    kv.v_cells[s] = std::move(lay.table);
    kv.v_heads[s] = lay.end + lay.common.size();

    zones[s] = std::move(lay.zone);

    forget(seq);
    version++;
}

void llama_aircache::drop(llama_seq_id seq) {
    forget(seq);
    kv.seq_rm(seq, -1, -1);
}

void llama_aircache::hide(llama_seq_id seq, const int32_t * budgets, const int32_t * kept) {
    const uint32_t s = kv.seq_to_stream[seq];

    if (!zones[s].empty() && zones[s].hidden.empty()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the sequence was compressed by moving before: mask-only cannot follow");
    }
    if (!zones[s].empty() && !zone_of(s, seq)) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED, "another sequence of this cache stream is compressed");
    }

    const auto & obs    = *observers.at(seq);
    const auto   visual = cells(seq).visual;

    auto zone = zones[s];

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

    zones[s] = std::move(zone);

    forget(seq);
    version++;
}
