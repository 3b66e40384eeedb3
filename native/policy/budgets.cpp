// Layer budgets: what each allocation makes them proportional to, limits, rounding (docs/method.md, section 2).
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

namespace aircache {

//
// strength of a layer: the sum of its importances
//

row strength(const float * scores, int32_t n_layer, int32_t n_visual) {
    row res(n_layer);
    for (int32_t l = 0; l < n_layer; ++l) {
        res[l] = std::accumulate(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual, 0.0);
    }
    return res;
}

//
// skewness of a layer's importances; 0 where negative or undefined
//

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

//
// uniform: the same budget in every layer
//

row uniform_weights(int32_t n_layer) {
    return row(n_layer, 1.0);
}

//
// pyramid: PyramidKV (arXiv 2406.02069), budgets that decrease linearly with depth
//

row pyramid_weights(int32_t n_layer, double cells, int32_t n_visual) {
    // the last layer gets 1/20 of the mean (beta = 20) unless the first is full before
    const double first = std::min(2*cells - cells/20, (double) n_visual);
    const double last  = 2*cells - first;

    row res(n_layer, cells);
    for (int32_t l = 0; n_layer > 1 && l < n_layer; ++l) {
        res[l] = first + (last - first)*l/(n_layer - 1.0);
    }
    return res;
}

//
// prefix: PrefixKV (arXiv 2412.03409), every layer keeps the same share of its importance
//

std::vector<int32_t> prefix_budgets(const float * scores, int32_t n_layer, int32_t n_visual, int64_t total, int32_t lo) {
    // A layer needs 1 + #{k: c[k] < p} cells to hold the share p, c being its cumulated descending scores. So raising p
    // adds a cell whenever it passes a c of some layer: the answer is the first ones of all these c.
    std::vector<std::pair<double, int32_t>> steps;

    for (int32_t l = 0; l < n_layer; ++l) {
        row c(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual);
        std::sort(c.begin(), c.end(), std::greater<double>());
        if (!(c.front() > 0.0)) {
            std::fill(c.begin(), c.end(), 1.0); // no importance at all: flat
        }
        const double sum = std::accumulate(c.begin(), c.end(), 0.0);
        for (double & x : c) {
            x /= sum;
        }
        std::partial_sum(c.begin(), c.end(), c.begin());
        for (int32_t k = lo - 1; k < n_visual - 1; ++k) {
            steps.emplace_back(c[k], l);
        }
    }

    std::stable_sort(steps.begin(), steps.end(), [](const auto & a, const auto & b) { return a.first < b.first; });

    std::vector<int32_t> res(n_layer, lo);
    for (int64_t i = 0; i < total - (int64_t) n_layer*lo; ++i) {
        res[steps[i].second]++;
    }
    return res;
}

//
// what all allocations share: limits and rounding
//

row mean_one(row v) {
    const double mean = std::accumulate(v.begin(), v.end(), 0.0)/v.size();
    for (double & x : v) {
        x = mean > 0.0 ? x/mean : 1.0;
    }
    return v;
}

row blend(const row & a, const row & b, double share_b) {
    row res(a.size());
    for (size_t l = 0; l < a.size(); ++l) {
        res[l] = (1.0 - share_b)*a[l] + share_b*b[l];
    }
    return res;
}

row spread(const row & weights, double total, double lo, double hi) {
    const size_t n = weights.size();

    row res(n);
    std::vector<bool> fixed(n, false);

    // Scale the free layers to what is left; fix those beyond a limit, on the side that takes or gives more, so that
    // what it frees still reaches the others. Ends with one common factor for all that are not at a limit.
    while (true) {
        double left   = total;
        double w_sum  = 0.0;
        size_t n_free = 0;
        for (size_t l = 0; l < n; ++l) {
            if (fixed[l]) {
                left -= res[l];
            } else {
                w_sum += weights[l];
                n_free++;
            }
        }
        if (n_free == 0) {
            return res;
        }

        double too_low  = 0.0;
        double too_high = 0.0;
        for (size_t l = 0; l < n; ++l) {
            if (!fixed[l]) {
                res[l] = w_sum > 0.0 ? left*weights[l]/w_sum : left/n_free;
                too_low  += std::max(0.0, lo - res[l]);
                too_high += std::max(0.0, res[l] - hi);
            }
        }
        if (too_low == 0.0 && too_high == 0.0) {
            return res;
        }
        for (size_t l = 0; l < n; ++l) {
            if (fixed[l]) {
                continue;
            }
            if (too_low >= too_high && res[l] < lo) {
                res[l]   = lo;
                fixed[l] = true;
            } else if (too_high >= too_low && res[l] > hi) {
                res[l]   = hi;
                fixed[l] = true;
            }
        }
    }
}

std::vector<int32_t> round_to_total(const row & values, int64_t total, int32_t hi) {
    const size_t n = values.size();

    std::vector<int32_t> res(n);
    std::vector<size_t>  order(n);
    std::vector<int64_t> rest(n); // in units of 1e-9: remainders that differ by rounding noise are ties

    int64_t missing = total;
    for (size_t l = 0; l < n; ++l) {
        const int64_t units = std::llround(values[l]*1e9);
        res[l]   = (int32_t) (units/1000000000);
        rest[l]  = units%1000000000;
        order[l] = l;
        missing -= res[l];
    }

    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rest[a] > rest[b]; });

    // at most one pass hands out; more passes only when layers are full
    while (missing > 0) {
        const int64_t before = missing;
        for (size_t i = 0; i < n && missing > 0; ++i) {
            if (res[order[i]] < hi) {
                res[order[i]]++;
                missing--;
            }
        }
        if (missing == before) {
            break;
        }
    }

    return res;
}

//
// a method's budgets
//

std::vector<int32_t> allocate(const llama_aircache_method & method, const float * scores, const row & strength, const row & skewness,
        const double * alive, int32_t n_layer, int32_t n_visual) {
    if (method.rank > 0) {
        return std::vector<int32_t>(n_layer, 1);
    }

    double        lo    = std::min(method.min_keep, n_visual);
    const double  cells = method.keep*n_layer*n_visual;
    const double  exact = std::max(cells, lo*n_layer);
    const int64_t total = std::max<int64_t>(std::floor(cells + 0.5), lo*n_layer);

    row weights;
    switch (method.allocation) {
        case LLAMA_AIRCACHE_ALLOC_PREFIX:   return prefix_budgets(scores, n_layer, n_visual, total, lo);
        case LLAMA_AIRCACHE_ALLOC_UNIFORM:  weights = uniform_weights(n_layer); break;
        case LLAMA_AIRCACHE_ALLOC_PYRAMID:  weights = pyramid_weights(n_layer, method.keep*n_visual, n_visual); break;
        case LLAMA_AIRCACHE_ALLOC_STRENGTH: weights = mean_one(strength); break;
        case LLAMA_AIRCACHE_ALLOC_SKEWNESS: weights = mean_one(skewness); break;
        case LLAMA_AIRCACHE_ALLOC_VL:
            weights = mean_one(row(alive, alive + n_layer));
            lo = std::max(lo, std::min(0.01, method.keep)*n_visual); // VL-Cache's floor of 1 % a layer
            break;
        default: weights = blend(mean_one(strength), mean_one(skewness), 0.5);
    }
    if (method.uniform_share > 0.0) {
        weights = blend(mean_one(weights), uniform_weights(n_layer), method.uniform_share);
    }

    return round_to_total(spread(weights, exact, lo, n_visual), total, n_visual);
}

} // namespace aircache
