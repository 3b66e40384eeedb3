// The oracle of tests: nothing is moved, what would be evicted is hidden by masks. See also graph/input.cpp.
#include "cache/planner.h"

#include "cache/failure.h"
#include "cache/prompt.h"

#ifdef PAC_ORACLE

void llama_aircache_planner::check_oracle() {}

void llama_aircache_planner::hide(const llama_aircache_kept & kept) {
    auto zone = air.zone(stream);

    if (!zone.empty() && zone.hidden.empty()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the sequence was compressed by moving before: mask-only cannot follow");
    }
    if (!zone.empty() && !air.zone_of(stream, seq)) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED, "another sequence of this cache stream is compressed");
    }

    const auto & obs    = *air.observers.find(seq);
    const auto   visual = llama_aircache_prompt(air, seq).visual;

    zone.p0   = zone.empty() ? obs.spans.front().p0 : zone.p0;
    zone.p1   = obs.spans.back().p1;
    zone.end  = 0;
    zone.cell = visual.front().i;
    zone.start.assign(air.kv.n_layer(), 0);
    zone.hidden.resize(air.kv.n_layer());

    const int32_t * cur = kept.indices;
    for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
        const int32_t * end = cur + kept.budgets[l];
        for (int32_t i = 0; i < (int32_t) visual.size(); ++i) {
            if (cur != end && *cur == i) {
                ++cur;
            } else {
                zone.hidden[l].push_back(visual[i].i);
            }
        }
    }

    air.set_zone(stream, std::move(zone));
    air.observers.forget(seq);
}

#else

void llama_aircache_planner::check_oracle() {
    throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED,
            "mask-only compression is the oracle of tests and not in this build: build with PYAIRCACHE_TESTS=ON");
}

void llama_aircache_planner::hide(const llama_aircache_kept &) {
    check_oracle();
}

#endif
