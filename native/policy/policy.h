// Host policies: pure functions over [n_layer, n_visual] scores. No llama.cpp type, no state.
#pragma once

#include <cstdint>
#include <vector>

namespace aircache {

// sum of a layer's importances (method section 2)
double strength(const float * scores, int32_t n_visual);

// sample skewness of a layer's importances; 0 where negative or undefined
double skewness(const float * scores, int32_t n_visual);

// what each layer's budget is proportional to, for one of enum llama_aircache_allocation (all but prefix)
// cells: mean budget, keep * n_visual
std::vector<double> layer_weights(int32_t allocation, double cells, int32_t n_visual,
        const std::vector<double> & strength, const std::vector<double> & skewness);

// PrefixKV: every layer keeps the same share of its importance; budgets of at least lo that add up to total
std::vector<int32_t> prefix_budgets(const float * scores, int32_t n_layer, int32_t n_visual, int64_t total, int32_t lo);

// real budgets clamp(c * weight, lo, hi) with one c such that they add up to total
std::vector<double> spread(const std::vector<double> & weights, double total, double lo, double hi);

// integers by largest remainder that add up to total; ties to the lower layer
std::vector<int32_t> round_to_total(const std::vector<double> & values, int64_t total, int32_t hi);

// indices of the n highest scores, ties to the lower index, ascending
void top_n(const float * scores, int32_t n_visual, int32_t n, int32_t * out);

// indices j with att[j] >= alpha * max(att); never empty
std::vector<int32_t> elite(const float * att, int32_t n_text, double alpha);

} // namespace aircache
