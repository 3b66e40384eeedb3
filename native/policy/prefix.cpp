// PrefixKV (arXiv 2412.03409): every layer keeps the same share of its importance.
#include "policy/policy.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace aircache {

std::vector<int32_t> prefix_budgets(const float * scores, int32_t n_layer, int32_t n_visual, int64_t total, int32_t lo) {
    // A layer needs 1 + #{k: c[k] < p} cells to hold the share p, c being its cumulated descending scores. So raising p
    // adds a cell whenever it passes a c of some layer: the answer is the first ones of all these c.
    std::vector<std::pair<double, int32_t>> steps;

    for (int32_t l = 0; l < n_layer; ++l) {
        row c(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual);
        std::sort(c.begin(), c.end(), std::greater<double>());
        if (!(c.front() > 0.0)) {
            std::fill(c.begin(), c.end(), 1.0); // no importance at all: flat
        }
        const double sum = std::accumulate(c.begin(), c.end(), 0.0);
        for (double & x : c) {
            x /= sum;
        }
        std::partial_sum(c.begin(), c.end(), c.begin());
        for (int32_t k = lo - 1; k < n_visual - 1; ++k) {
            steps.emplace_back(c[k], l);
        }
    }

    std::stable_sort(steps.begin(), steps.end(), [](const auto & a, const auto & b) { return a.first < b.first; });

    std::vector<int32_t> res(n_layer, lo);
    for (int64_t i = 0; i < total - (int64_t) n_layer*lo; ++i) {
        res[steps[i].second]++;
    }
    return res;
}

} // namespace aircache
