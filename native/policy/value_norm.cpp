// Importance times the length of the value (as in PureKV, arXiv 2510.25600): attention to a short value changes little.
#include "policy/policy.h"

namespace aircache {

void times_value_norm(float * scores, const float * norms, int32_t n_layer, int32_t n_visual) {
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        scores[i] *= norms[i];
    }
}

} // namespace aircache
