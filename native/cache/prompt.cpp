#include "cache/prompt.h"

#include "cache/failure.h"

#include <algorithm>

llama_aircache_prompt::llama_aircache_prompt(const llama_aircache & air, llama_seq_id seq) {
    const uint32_t s = air.kv.stream(seq);

    const auto & cells = air.kv.cells(s);
    const auto & obs   = *air.observers.find(seq);

    text.resize(obs.n_text);
    n_visual.resize(obs.spans.size());

    for (const auto & [pos, i] : cells.seq_pos_get(seq)) { // ascending positions
        const auto & ext = cells.ext_get(i);
        const llama_aircache_cell cur = { pos, ext.y, ext.x, i };
        const auto   span = std::find_if(obs.spans.begin(), obs.spans.end(), [p = pos](const auto & sp) { return p >= sp.p0 && p < sp.p1; });
        const int32_t query = obs.text_query(pos);

        if (span != obs.spans.end()) {
            visual.push_back(cur);
            n_visual[span - obs.spans.begin()]++;
        } else if (query >= 0) {
            text[query] = { pos, 0, 0, i };
        } else if (i >= air.zone(s).end && pos < obs.pos_end) {
            other.push_back({ pos, 0, 0, i });
        }
    }

    std::sort(visual.begin(), visual.end(), [](const auto & a, const auto & b) { return !(b <= a); });
}

void llama_aircache_check_complete(const llama_aircache & air, llama_seq_id seq) {
    const auto & cells = air.kv.cells(air.kv.stream(seq));
    const auto & obs   = *air.observers.find(seq);

    std::vector<uint8_t> have(obs.n_text, 0);
    for (const auto & [pos, i] : cells.seq_pos_get(seq)) {
        const int32_t query = obs.text_query(pos);
        if (query >= 0) {
            have[query] = obs.seen[query] || !obs.needs(query);
        }
    }

    if (std::find(have.begin(), have.end(), 0) != have.end()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the observed prompt was not decoded completely");
    }
}

void llama_aircache_check_needs(const llama_aircache & air, llama_seq_id seq, const llama_aircache_method & method) {
    const auto & obs = *air.observers.find(seq);

    const llama_aircache_needs needs(method, obs.n_text);

    const uint32_t n_text = obs.n_text - obs.first_query;
    const uint32_t n_last = std::min<uint32_t>(needs.n_last, llama_aircache_prompt(air, seq).visual.size());

    std::string missing;
    if (needs.n_text > n_text) {
        missing = "the last " + std::to_string(needs.n_text) + " text tokens, and " + std::to_string(n_text) + " were";
    } else if (n_last > obs.n_last) {
        missing = "the last " + std::to_string(n_last) + " visual tokens, and " + std::to_string(obs.n_last) + " were";
    } else if (needs.sum && !obs.sum()) {
        missing = "all tokens summed up, which was not";
    }
    if (!missing.empty() && obs.synthetic) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the prompt is synthetic: the method needs the attention of %s made up: "
                "give this method to llama_aircache_synthetic", missing.c_str());
    }
    if (!missing.empty()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE,
                "the method needs the attention of %s observed: give this method to llama_aircache_observe", missing.c_str());
    }
}
