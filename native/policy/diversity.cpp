// MixKV (arXiv 2510.20707): the more redundant a layer's visual keys are, the more its ranking prefers unusual ones.
#include "policy/policy.h"

#include <algorithm>
#include <numeric>

namespace aircache {

void mix_diversity(float * scores, const float * cosine, const row & redundancy, int32_t n_layer, int32_t n_visual) {
    for (int32_t l = 0; l < n_layer; ++l) {
        float       * s = scores + (size_t) l*n_visual;
        const float * c = cosine + (size_t) l*n_visual;

        const double mean  = std::accumulate(s, s + n_visual, 0.0)/n_visual;
        const double c_min = *std::min_element(c, c + n_visual);
        const double c_max = *std::max_element(c, c + n_visual);
        if (!(c_max > c_min)) {
            continue;
        }

        // min-max to [0, 1], then to the mean of the importance
        double sum = 0.0;
        for (int32_t v = 0; v < n_visual; ++v) {
            sum += (c_max - c[v])/(c_max - c_min);
        }
        const double scale = mean*n_visual/sum;
        const double r     = std::min(1.0, std::max(0.0, redundancy[l]));

        for (int32_t v = 0; v < n_visual; ++v) {
            s[v] = r*scale*(c_max - c[v])/(c_max - c_min) + (1.0 - r)*s[v];
        }
    }
}

} // namespace aircache
