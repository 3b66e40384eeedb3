#include "cache/planner.h"

#include "cache/failure.h"
#include "cache/prompt.h"

#include <algorithm>
#include <map>
#include <utility>

llama_aircache_planner::llama_aircache_planner(llama_aircache & air, llama_seq_id seq) :
    air(air), seq(seq), stream(air.kv.stream(seq)) {
}

llama_aircache_layout llama_aircache_planner::plan(const llama_aircache_kept & kept) const {
    const auto & table  = air.kv.cells(stream);
    const auto & zone   = air.zone(stream);
    const auto   visual = llama_aircache_prompt(air, seq).visual;

    const uint32_t  n_layer = air.kv.n_layer();
    const int32_t * budgets = kept.budgets;
    const int32_t * indices = kept.indices;

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

    llama_aircache_layout res;

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

    for (uint32_t l = 0; l < n_layer; ++l) {
        const uint32_t n_old = zone.empty() ? 0 : zone.end - zone.start[l];
        res.end = std::max(res.end, n_old + budgets[l]);
    }

    for (uint32_t l = 0; l < n_layer; ++l) {
        std::vector<uint32_t> rows;
        for (uint32_t i = zone.empty() ? 0 : zone.start[l]; i < zone.end; ++i) {
            rows.push_back(i); // survivors of earlier turns stay, in front
        }
        for (int32_t i = 0; i < budgets[l]; ++i) {
            rows.push_back(visual[indices[i]].i);
        }
        res.start.push_back(res.end - rows.size());

        llama_aircache_layout::merge mg;
        std::map<int32_t, std::vector<uint32_t>> groups; // kept -> dropped cells
        if (!kept.merged.empty()) {
            for (const auto & pair : kept.merged[l]) {
                groups[pair.kept].push_back(visual[pair.dropped].i);
            }
        }
        for (const auto & [k, dropped] : groups) {
            const uint32_t g = mg.target.size();
            mg.target.push_back(res.end - budgets[l] + k);
            mg.scale.push_back(1.0f/(1 + dropped.size()));
            mg.cells.push_back(visual[indices[k]].i);
            mg.cells.insert(mg.cells.end(), dropped.begin(), dropped.end());
            mg.group.insert(mg.group.end(), 1 + dropped.size(), g);
        }
        res.merges.push_back(std::move(mg));

        rows.insert(rows.end(), res.common.begin(), res.common.end());
        res.rows.push_back(std::move(rows));

        indices += budgets[l];
    }

    res.table = make_table(res, visual.back().i);

    const auto & obs = *air.observers.find(seq);

    res.zone.p0    = zone.empty() ? obs.spans.front().p0 : zone.p0;
    res.zone.p1    = obs.spans.back().p1;
    res.zone.start = res.start;
    res.zone.end   = res.end;
    res.zone.cell  = 0;

    return res;
}

llama_kv_cells llama_aircache_planner::make_table(const llama_aircache_layout & lay, uint32_t last) const {
    const auto & table = air.kv.cells(stream);

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

void llama_aircache_planner::commit(llama_aircache_layout && lay) noexcept {
    air.kv.set_cells(stream, std::move(lay.table), lay.end + lay.common.size());
    air.set_zone(stream, std::move(lay.zone));
    air.observers.forget(seq);

    // what no layer reads any more, below its survivors and behind the last cell, goes back to the system
    for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
        air.kv.release(l, stream, 0, air.zone(stream).start[l]);
        air.kv.release_tail(l, stream);
    }
}

void llama_aircache_planner::drop() {
    air.observers.forget(seq);
    air.kv.remove(seq);
}
