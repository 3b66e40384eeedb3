// TGV-KV's text-guided weights (arXiv 2606.03075): a soft version of the elite window.
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

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
