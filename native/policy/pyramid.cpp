// PyramidKV (arXiv 2406.02069): budgets decrease linearly with depth.
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

row pyramid_weights(int32_t n_layer, double cells, int32_t n_visual) {
    // the last layer gets 1/20 of the mean (beta = 20) unless the first is full before
    const double first = std::min(2*cells - cells/20, (double) n_visual);
    const double last  = 2*cells - first;

    row res(n_layer, cells);
    for (int32_t l = 0; n_layer > 1 && l < n_layer; ++l) {
        res[l] = first + (last - first)*l/(n_layer - 1.0);
    }
    return res;
}

} // namespace aircache
