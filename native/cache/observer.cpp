#include "cache/observer.h"

#include <algorithm>

int32_t llama_aircache_observer::text_slot(llama_pos pos) const {
    if (pos < spans[0].p1 || pos >= pos_end) {
        return -1;
    }

    // text advances by one position a token; the images between are left out
    int32_t res = pos - spans[0].p1;
    for (size_t i = 1; i < spans.size(); ++i) {
        if (pos >= spans[i].p1) {
            res -= spans[i].p1 - spans[i].p0;
        } else if (pos >= spans[i].p0) {
            return -1;
        }
    }

    return res;
}

bool llama_aircache_observer::is_visual(llama_pos pos) const {
    return std::any_of(spans.begin(), spans.end(), [&](const auto & span) { return pos >= span.p0 && pos < span.p1; });
}

bool llama_aircache_observer::covers(llama_pos pos) const {
    if (sum) {
        return pos >= spans[0].p0 && pos < pos_end;
    }
    return text_slot(pos) >= 0 || (n_last > 0 && is_visual(pos));
}
