// Scores that need no attention, and what changes those of attention. All of them [n_layer, n_visual], in place.
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace aircache {

//
// random, a floor: visual tokens in a seeded random order, another one in every layer
//

void random_scores(float * scores, int32_t n_layer, int32_t n_visual, uint32_t seed) {
    std::mt19937 rng(seed); // its sequence is fixed by the standard, unlike that of the distributions
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        scores[i] = (rng() >> 8)*(1.0f/(1 << 24));
    }
}

//
// stride, a floor: tokens spread evenly over the prompt's visual tokens, whatever the budget: the order of the van der Corput
// sequence, in which every beginning is spread evenly (0, 1/2, 1/4, 3/4, 1/8, ...)
//

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

//
// pool: average or maximum over neighbours (SnapKV), never across images
//

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

//
// last term: a last-query term, trusted where it is coherent, with its neighbours in the layer and with the layer before (the
// idea of BACON, arXiv 2606.14782, whose formula is not public; this one is ours)
//

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

//
// value norm: importance times the length of the value (as in PureKV, arXiv 2510.25600), as attention to a short value
// changes little
//

void times_value_norm(float * scores, const float * norms, int32_t n_layer, int32_t n_visual) {
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        scores[i] *= norms[i];
    }
}

//
// diversity: MixKV (arXiv 2510.20707); the more redundant a layer's visual keys are, the more its ranking prefers unusual ones
//

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
