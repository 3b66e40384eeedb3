// Pooling of scores over neighbours (SnapKV), never across images.
#include "policy/policy.h"

#include <algorithm>
#include <cmath>

namespace aircache {

// One dimension of a run: n values, stride apart; the average divides by size at the borders too, as SnapKV's does.
// The line is cut into blocks as long as the window, so that every window is the end of one block and the beginning of the
// next: linear, whatever the size, and unlike differences of running sums as exact as adding up.
static void pool_line(float * x, int32_t n, int32_t stride, bool max, int32_t size) {
    const int32_t half   = std::min(size/2, n); // a window that is wider than the line sees no more
    const int32_t w      = 2*half + 1;
    const int32_t padded = (n + 2*half + w - 1)/w*w;

    const auto join = [max](double a, double b) { return max ? std::max(a, b) : a + b; };

    std::vector<double> in(padded, max ? -INFINITY : 0.0);
    for (int32_t i = 0; i < n; ++i) {
        in[half + i] = max ? x[(size_t) i*stride] : x[(size_t) i*stride]/size;
    }

    std::vector<double> from = in; // from the block's beginning to here
    std::vector<double> to   = in; // from here to the block's end
    for (int32_t i = 1; i < padded; ++i) {
        const int32_t j = padded - 1 - i;
        from[i] = i % w == 0       ? in[i] : join(from[i - 1], in[i]);
        to[j]   = (j + 1) % w == 0 ? in[j] : join(in[j], to[j + 1]);
    }

    for (int32_t i = 0; i < n; ++i) {
        x[(size_t) i*stride] = (float) (i % w == 0 ? to[i] : join(to[i], from[i + w - 1]));
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
