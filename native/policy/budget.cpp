// What all allocations share: limits and rounding (docs/method.md, section 2).
#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace aircache {

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

} // namespace aircache
