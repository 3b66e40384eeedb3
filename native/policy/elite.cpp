// AirCache's elite observation window (docs/method.md, section 1).
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

std::vector<uint32_t> elite(const float * att, int32_t n_text, double alpha, const uint8_t * excluded, bool hold_last) {
    // a window without any candidate would be empty: then template tokens count after all
    if (excluded && std::all_of(excluded, excluded + n_text, [](uint8_t x) { return x != 0; })) {
        excluded = nullptr;
    }

    float max = -1.0f;
    for (int32_t j = 0; j < n_text; ++j) {
        if (!excluded || !excluded[j]) {
            max = std::max(max, att[j]);
        }
    }

    std::vector<uint32_t> res;
    for (int32_t j = 0; j < n_text; ++j) {
        const bool chosen = att[j] >= alpha*max && (!excluded || !excluded[j]);
        if (chosen || (hold_last && j + 1 == n_text)) {
            res.push_back(j);
        }
    }
    return res;
}

} // namespace aircache
