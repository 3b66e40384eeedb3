// A floor: tokens spread evenly over the prompt's visual tokens, whatever the budget: the order of the van der Corput
// sequence, in which every beginning is spread evenly (0, 1/2, 1/4, 3/4, 1/8, ...).
#include "policy/policy.h"

namespace aircache {

void stride_scores(float * scores, int32_t n_layer, int32_t n_visual) {
    std::vector<uint8_t> taken(n_visual, 0);

    int32_t n = 0;
    for (uint32_t i = 0; n < n_visual; ++i) {
        double x = 0.0;
        double step = 0.5;
        for (uint32_t bits = i; bits; bits >>= 1, step /= 2) {
            x += (bits & 1)*step;
        }
        const int32_t v = (int32_t) (x*n_visual);
        if (!taken[v]) {
            taken[v] = 1;
            scores[v] = 1.0f - (float) n++/n_visual;
        }
    }

    for (size_t j = n_visual; j < (size_t) n_layer*n_visual; ++j) {
        scores[j] = scores[j % n_visual];
    }
}

} // namespace aircache
