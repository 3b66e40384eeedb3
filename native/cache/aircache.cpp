#include "cache/aircache.h"

#include "cache/devices.h"
#include "llama-context.h"

std::string llama_aircache::unsupported(llama_context * lctx) {
    const auto reason = llama_aircache_kv::unsupported(lctx);
    if (!reason.empty()) {
        return reason;
    }

    auto & kv = *llama_aircache_kv::find(lctx);
    return kv.air ? "" : llama_aircache_missing_op(llama_aircache_kv(kv), false); // once
}

llama_aircache & llama_aircache::get(llama_context * lctx) {
    auto & kv = *llama_aircache_kv::find(lctx);
    if (!kv.air) {
        kv.air = std::make_shared<llama_aircache>(kv);
    }
    return *of(kv.air.get());
}

void llama_aircache::stats(llama_seq_id seq, llama_aircache_seq_stats & out) const {
    const uint32_t s = kv.stream(seq);

    const auto & cells = kv.cells(s);

    out = llama_aircache_stats_empty();
    out.n_cells = cells.get_used();
    out.n_free  = kv.n_cells() - cells.get_used();
    out.n_zone  = zone(s).end;

    for (uint32_t l = 0; l < kv.n_layer(); ++l) {
        const int64_t row = kv.row_bytes(l);
        out.kv_bytes_cell += row;
        out.kv_bytes      += row*(out.n_cells - (zone(s).empty() ? 0 : (int64_t) zone(s).start[l]));
    }
}
