// Which visual tokens a layer keeps (docs/method.md, section 3).
#include "policy/policy.h"

#include <algorithm>
#include <numeric>

namespace aircache {

static std::vector<int32_t> best_first(const float * scores, int32_t n_visual, int32_t n) {
    std::vector<int32_t> idx(n_visual);
    std::iota(idx.begin(), idx.end(), 0);
    std::partial_sort(idx.begin(), idx.begin() + n, idx.end(), [&](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    return idx;
}

void top_n(const float * scores, int32_t n_visual, int32_t n, int32_t * out) {
    const auto idx = best_first(scores, n_visual, n);
    std::copy(idx.begin(), idx.begin() + n, out);
    std::sort(out, out + n);
}

void only_nth(const float * scores, int32_t n_visual, int32_t rank, int32_t * out) {
    *out = best_first(scores, n_visual, rank)[rank - 1];
}

} // namespace aircache
