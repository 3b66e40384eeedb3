// Layer budgets of a method: weights of its allocation, limits, rounding (docs/method.md, section 2).
#include "policy/policy.h"

#include <algorithm>
#include <cmath>

namespace aircache {

std::vector<int32_t> allocate(const llama_aircache_method & method, const float * scores, const row & strength, const row & skewness,
        const double * alive, int32_t n_layer, int32_t n_visual) {
    if (method.rank > 0) {
        return std::vector<int32_t>(n_layer, 1);
    }

    double        lo    = std::min(method.min_keep, n_visual);
    const double  cells = method.keep*n_layer*n_visual;
    const double  exact = std::max(cells, lo*n_layer);
    const int64_t total = std::max<int64_t>(std::floor(cells + 0.5), lo*n_layer);

    row weights;
    switch (method.allocation) {
        case LLAMA_AIRCACHE_ALLOC_PREFIX:   return prefix_budgets(scores, n_layer, n_visual, total, lo);
        case LLAMA_AIRCACHE_ALLOC_UNIFORM:  weights = uniform_weights(n_layer); break;
        case LLAMA_AIRCACHE_ALLOC_PYRAMID:  weights = pyramid_weights(n_layer, method.keep*n_visual, n_visual); break;
        case LLAMA_AIRCACHE_ALLOC_STRENGTH: weights = mean_one(strength); break;
        case LLAMA_AIRCACHE_ALLOC_SKEWNESS: weights = mean_one(skewness); break;
        case LLAMA_AIRCACHE_ALLOC_VL:
            weights = mean_one(row(alive, alive + n_layer));
            lo = std::max(lo, std::min(0.01, method.keep)*n_visual); // VL-Cache's floor of 1 % a layer
            break;
        default: weights = blend(mean_one(strength), mean_one(skewness), 0.5);
    }
    if (method.uniform_share > 0.0) {
        weights = blend(mean_one(weights), uniform_weights(n_layer), method.uniform_share);
    }

    return round_to_total(spread(weights, exact, lo, n_visual), total, n_visual);
}

} // namespace aircache
