// Pooling of scores over neighbours (SnapKV), never across images.
#include "policy/policy.h"

#include <algorithm>

namespace aircache {

// one dimension of a run: n values, stride apart; the average divides by size at the borders too, as SnapKV's does
static void pool_line(float * x, int32_t n, int32_t stride, bool max, int32_t size) {
    std::vector<float> in(n);
    for (int32_t i = 0; i < n; ++i) {
        in[i] = x[(size_t) i*stride];
    }

    for (int32_t i = 0; i < n; ++i) {
        const int32_t i0 = std::max(0, i - size/2);
        const int32_t i1 = std::min(n - 1, i + size/2);

        double res = max ? in[i0] : 0.0;
        for (int32_t j = i0; j <= i1; ++j) {
            res = max ? std::max<double>(res, in[j]) : res + in[j]/size;
        }
        x[(size_t) i*stride] = (float) res;
    }
}

void pool(float * scores, int32_t n_layer, int32_t n_visual, const std::vector<run> & runs, bool max, int32_t size, bool on_grid) {
    for (int32_t l = 0; l < n_layer; ++l) {
        for (const auto & r : runs) {
            float * x = scores + (size_t) l*n_visual + r.first;

            if (!on_grid) {
                pool_line(x, r.n, 1, max, size);
                continue;
            }

            // both kinds are separable: rows, then columns
            const int32_t ny = r.n/r.nx;
            for (int32_t y = 0; y < ny; ++y) {
                pool_line(x + (size_t) y*r.nx, r.nx, 1, max, size);
            }
            for (int32_t c = 0; c < r.nx; ++c) {
                pool_line(x + c, ny, r.nx, max, size);
            }
        }
    }
}

} // namespace aircache
