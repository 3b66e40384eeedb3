// A floor: visual tokens in a seeded random order, another one in every layer.
#include "policy/policy.h"

#include <random>

namespace aircache {

void random_scores(float * scores, int32_t n_layer, int32_t n_visual, uint32_t seed) {
    std::mt19937 rng(seed); // its sequence is fixed by the standard, unlike that of the distributions
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        scores[i] = (rng() >> 8)*(1.0f/(1 << 24));
    }
}

} // namespace aircache
