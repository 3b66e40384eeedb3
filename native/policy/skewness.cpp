// Skewness of a layer's importances (docs/method.md, section 2); 0 where negative or undefined.
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace aircache {

static double sample_skewness(const float * x, int32_t n_values) {
    if (n_values < 3 || std::all_of(x, x + n_values, [&](float v) { return v == x[0]; })) {
        return 0.0;
    }

    const double n  = n_values;
    const double mu = std::accumulate(x, x + n_values, 0.0)/n;

    double m2 = 0.0;
    double m3 = 0.0;
    for (int32_t i = 0; i < n_values; ++i) {
        const double d = x[i] - mu;
        m2 += d*d;
        m3 += d*d*d;
    }
    const double sigma = std::sqrt(m2/(n - 1.0));

    return std::max(0.0, n/((n - 1.0)*(n - 2.0)) * m3/(sigma*sigma*sigma));
}

row skewness(const float * scores, int32_t n_layer, int32_t n_visual) {
    row res(n_layer);
    for (int32_t l = 0; l < n_layer; ++l) {
        res[l] = sample_skewness(scores + (size_t) l*n_visual, n_visual);
    }
    return res;
}

} // namespace aircache
