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

std::vector<double> layer_weights(int32_t allocation, const std::vector<double> & strength, const std::vector<double> & skewness) {
    const size_t n = strength.size();

    std::vector<double> res(n, 1.0);

    switch (allocation) {
        case LLAMA_AIRCACHE_ALLOC_STRENGTH: return mean_one(strength);
        case LLAMA_AIRCACHE_ALLOC_SKEWNESS: return mean_one(skewness);
        case LLAMA_AIRCACHE_ALLOC_PYRAMID:
            // from 2 - 1/20 in the first layer down to 1/20 in the last (PyramidKV's beta = 20)
            for (size_t l = 0; n > 1 && l < n; ++l) {
                const double lo = 1.0/20;
                res[l] = (2.0 - lo) - (2.0 - 2.0*lo)*l/(n - 1.0);
            }
            return res;
        case LLAMA_AIRCACHE_ALLOC_AIRCACHE:
            {
                const auto st = mean_one(strength);
                const auto sk = mean_one(skewness);
                for (size_t l = 0; l < n; ++l) {
                    res[l] = (st[l] + sk[l])/2;
                }
                return res;
            }
        default: return res;
    }
}

std::vector<double> prefix_weights(const float * scores, int32_t n_layer, int32_t n_visual, double keep) {
    // cumulated shares of the descending scores of each layer
    std::vector<std::vector<double>> cum(n_layer);
    for (int32_t l = 0; l < n_layer; ++l) {
        std::vector<double> s(scores + (size_t) l*n_visual, scores + (size_t) (l + 1)*n_visual);
        std::sort(s.begin(), s.end(), std::greater<double>());
        std::partial_sum(s.begin(), s.end(), s.begin());
        const double sum = s.back();
        for (int32_t k = 0; k < n_visual; ++k) {
            s[k] = sum > 0.0 ? s[k]/sum : (k + 1.0)/n_visual;
        }
        cum[l] = std::move(s);
    }

    const double total = keep*n_layer*n_visual;

    std::vector<double> res(n_layer, 1.0);

    double lo = 0.0;
    double hi = 1.0;
    for (int it = 0; it < 40; ++it) {
        const double p = (lo + hi)/2;
        double sum = 0.0;
        for (int32_t l = 0; l < n_layer; ++l) {
            const auto n_below = std::lower_bound(cum[l].begin(), cum[l].end(), p) - cum[l].begin();
            res[l] = std::min<double>(n_visual, 1.0 + n_below);
            sum += res[l];
        }
        (sum > total ? hi : lo) = p;
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
