// A last-query term, trusted where it is coherent: with its neighbours in the layer and with the layer before (the idea of
// BACON, arXiv 2606.14782, whose formula is not public; this one is ours).
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

void add_last_term(float * scores, const float * last, int32_t n_layer, int32_t n_visual, const std::vector<run> & runs, double lambda) {
    std::vector<float> local(last, last + (size_t) n_layer*n_visual);
    pool(local.data(), n_layer, n_visual, runs, false, 3, false);

    for (int32_t l = 0; l < n_layer; ++l) {
        const float * cur  = last + (size_t) l*n_visual;
        const float * prev = last + (size_t) std::max(0, l - 1)*n_visual;
        const float * mean = local.data() + (size_t) l*n_visual;

        const double max_mean = *std::max_element(mean, mean + n_visual);
        double max_both = 0.0;
        for (int32_t v = 0; v < n_visual; ++v) {
            max_both = std::max<double>(max_both, std::min(cur[v], prev[v]));
        }
        if (!(max_mean > 0.0) || !(max_both > 0.0)) {
            continue;
        }

        for (int32_t v = 0; v < n_visual; ++v) {
            scores[(size_t) l*n_visual + v] += lambda*cur[v]*(mean[v]/max_mean)*(std::min(cur[v], prev[v])/max_both);
        }
    }
}

} // namespace aircache
