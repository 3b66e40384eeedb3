// Which tokens observe (method section 1) and which are kept (section 3).
#include "policy/policy.h"

#include <algorithm>
#include <numeric>

namespace aircache {

void top_n(const float * scores, int32_t n_visual, int32_t n, int32_t * out) {
    std::vector<int32_t> idx(n_visual);
    std::iota(idx.begin(), idx.end(), 0);

    const auto better = [&](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };

    std::nth_element(idx.begin(), idx.begin() + std::min(n, n_visual - 1), idx.end(), better);
    std::copy(idx.begin(), idx.begin() + n, out);
    std::sort(out, out + n);
}

std::vector<int32_t> elite(const float * att, int32_t n_text, double alpha) {
    const double limit = alpha * *std::max_element(att, att + n_text);

    std::vector<int32_t> res;
    for (int32_t j = 0; j < n_text; ++j) {
        if (att[j] >= limit) {
            res.push_back(j);
        }
    }
    return res;
}

} // namespace aircache
