// All that AirCache keeps beside one llama_kv_cache, which owns it and sees its zones alone. Null until first used.
#pragma once

#include "cache/observers.h"
#include "cache/zones.h"
#include "llama-aircache.h"

#include <memory>
#include <string>

class llama_aircache_runner; // graph/runner.h

class llama_aircache : public llama_aircache_zones {
public:
    explicit llama_aircache(llama_kv_cache & cache) : llama_aircache_zones(cache), observers(kv) {}

    // why this cache cannot be compressed; "" if it can
    static std::string unsupported(llama_context * lctx);

    // the context's instance, made at first use; the cache must be of the kind that can be compressed
    static llama_aircache & get(llama_context * lctx);

    // of the zones that a cache holds: nobody else makes any
    static llama_aircache * of(llama_aircache_zones * zones) { return static_cast<llama_aircache *>(zones); }

    // another one whenever a graph built before would be wrong
    uint64_t version() const { return zones_version + observers.version; }

    void stats(llama_seq_id seq, llama_aircache_seq_stats & out) const;

    llama_aircache_observers observers;

    std::shared_ptr<llama_aircache_runner> runner; // made by the first graph of ours

    // Scratch memory of a score graph: the attention of a layer's queries, and the masks of all its queries, take no more
    // each. Both are quadratic in the prompt, so that queries are taken in tiles. (Attention that is summed up inside of the
    // model's own graph comes in a few tiles only.)
    size_t tile_bytes = 16u << 20;
};
