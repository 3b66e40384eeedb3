// Strength of a layer: the sum of its importances (docs/method.md, section 2).
#include "policy/policy.h"

#include <numeric>

namespace aircache {

row strength(const float * scores, int32_t n_layer, int32_t n_visual) {
    row res(n_layer);
    for (int32_t l = 0; l < n_layer; ++l) {
        res[l] = std::accumulate(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual, 0.0);
    }
    return res;
}

} // namespace aircache
