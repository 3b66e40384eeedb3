// Layer budgets: method section 2.
#include "policy/policy.h"

#include "llama-aircache.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace aircache {

double strength(const float * scores, int32_t n_visual) {
    return std::accumulate(scores, scores + n_visual, 0.0);
}

double skewness(const float * scores, int32_t n_visual) {
    const double n = n_visual;
    if (n_visual < 3) {
        return 0.0;
    }

    const double mu = strength(scores, n_visual)/n;

    double m2 = 0.0;
    double m3 = 0.0;
    for (int32_t i = 0; i < n_visual; ++i) {
        const double d = scores[i] - mu;
        m2 += d*d;
        m3 += d*d*d;
    }

    const double sigma = std::sqrt(m2/(n - 1.0));
    if (!(sigma > 0.0)) {
        return 0.0;
    }

    return std::max(0.0, n/((n - 1.0)*(n - 2.0)) * m3/(sigma*sigma*sigma));
}

static std::vector<double> mean_one(std::vector<double> v) {
    const double mean = std::accumulate(v.begin(), v.end(), 0.0)/v.size();
    for (double & x : v) {
        x = mean > 0.0 ? x/mean : 1.0;
    }
    return v;
}

std::vector<double> layer_weights(int32_t allocation, double cells, int32_t n_visual,
        const std::vector<double> & strength, const std::vector<double> & skewness) {
    const size_t n = strength.size();

    std::vector<double> res(n, 1.0);

    switch (allocation) {
        case LLAMA_AIRCACHE_ALLOC_STRENGTH: return mean_one(strength);
        case LLAMA_AIRCACHE_ALLOC_SKEWNESS: return mean_one(skewness);
        case LLAMA_AIRCACHE_ALLOC_AIRCACHE:
            {
                const auto st = mean_one(strength);
                const auto sk = mean_one(skewness);
                for (size_t l = 0; l < n; ++l) {
                    res[l] = (st[l] + sk[l])/2;
                }
                return res;
            }
        case LLAMA_AIRCACHE_ALLOC_PYRAMID:
            {
                // linear from first to last; the last gets 1/20 of the mean (PyramidKV's beta) unless the first is full
                const double first = std::min(2*cells - cells/20, (double) n_visual);
                const double last  = 2*cells - first;
                for (size_t l = 0; n > 1 && l < n; ++l) {
                    res[l] = first + (last - first)*l/(n - 1.0);
                }
                return res;
            }
        default: return res;
    }
}

std::vector<int32_t> prefix_budgets(const float * scores, int32_t n_layer, int32_t n_visual, int64_t total, int32_t lo) {
    // A layer needs 1 + #{k: c[k] < p} cells to hold the share p, c being its cumulated descending scores. So raising p
    // adds a cell whenever it passes a c of some layer: the answer is the first ones of all these c.
    std::vector<std::pair<double, int32_t>> steps;

    for (int32_t l = 0; l < n_layer; ++l) {
        std::vector<double> c(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual);
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

std::vector<double> spread(const std::vector<double> & weights, double total, double lo, double hi) {
    const size_t n = weights.size();

    std::vector<double> res(n);
    std::vector<bool>   fixed(n, false);

    // Scale the free layers to what is left; fix those beyond a limit, on the side that takes or gives more, so that
    // what it frees still reaches the others. Ends with one common factor for all that are not at a limit.
    while (true) {
        double left  = total;
        double w_sum = 0.0;
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
            }
            if (too_high >= too_low && res[l] > hi) {
                res[l]   = hi;
                fixed[l] = true;
            }
        }
    }
}

std::vector<int32_t> round_to_total(const std::vector<double> & values, int64_t total, int32_t hi) {
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

} // namespace aircache
