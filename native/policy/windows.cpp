// Which text tokens observe, and with what weight.
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

//
// elite: AirCache's observation window (docs/method.md, section 1)
//

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

//
// text weights: TGV-KV (arXiv 2606.03075), a soft version of the elite window
//

void add_text_attention(row & sums, const float * att, int32_t n_text, int32_t first, int32_t n) {
    for (int32_t i = 0; i < n; ++i, att += n_text) {
        std::transform(att, att + first + i + 1, sums.begin(), sums.begin(), [](double a, double sum) { return sum + a; });
    }
}

std::vector<float> text_weights(const row & sums) {
    const size_t n_text = sums.size();

    std::vector<float> res(n_text);
    for (size_t j = 0; j < n_text; ++j) {
        res[j] = sums[j]/(n_text - j);
    }
    return res;
}

} // namespace aircache
