// Which visual tokens a layer keeps, and where the others go (docs/method.md, section 3).
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace aircache {

//
// top n, or the n-th alone
//

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

//
// merge instead of drop (the paper's table 12; Elastic Cache's map): a share of the dropped tokens, nearest first, goes into
// the nearest kept token. Distance: in visual token indices; ties to the lower index
//

std::vector<merge_pair> merge_pairs(const int32_t * kept, int32_t n_kept, int32_t n_visual, double share) {
    std::vector<merge_pair> res;

    for (int32_t v = 0, next = 0; v < n_visual; ++v) {
        while (next < n_kept && kept[next] < v) {
            next++;
        }
        if (next < n_kept && kept[next] == v) {
            continue;
        }
        const bool before = next > 0 && (next == n_kept || v - kept[next - 1] <= kept[next] - v);
        res.push_back({ v, before ? next - 1 : next });
    }

    const auto distance = [&](const merge_pair & p) { return std::abs(p.dropped - kept[p.kept]); };
    std::stable_sort(res.begin(), res.end(), [&](const auto & a, const auto & b) { return distance(a) < distance(b); });

    res.resize((size_t) std::floor(share*res.size() + 0.5));
    return res;
}

} // namespace aircache
