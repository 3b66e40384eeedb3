// TGV-KV's text-guided weights (arXiv 2606.03075): a soft version of the elite window.
#include "policy/policy.h"

namespace aircache {

std::vector<float> text_weights(const float * att, int32_t n_text) {
    std::vector<float> res(n_text);
    for (int32_t j = 0; j < n_text; ++j) {
        double sum = 0.0;
        for (int32_t i = j; i < n_text; ++i) {
            sum += att[(size_t) i*n_text + j];
        }
        res[j] = sum/(n_text - j);
    }
    return res;
}

} // namespace aircache
