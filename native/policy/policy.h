// Host policies: pure functions over [n_layer, n_visual] scores. No llama.cpp type, no state.
#pragma once

#include <cstdint>
#include <vector>

namespace aircache {

// sum of a layer's importances (method section 2)
double strength(const float * scores, int32_t n_visual);

// sample skewness of a layer's importances; 0 where negative or undefined
double skewness(const float * scores, int32_t n_visual);

// weights with mean 1 per layer for one of enum llama_aircache_allocation (all but prefix)
std::vector<double> layer_weights(int32_t allocation, const std::vector<double> & strength, const std::vector<double> & skewness);

// PrefixKV's weights: cells each layer needs to hold the same share of its importance
std::vector<double> prefix_weights(const float * scores, int32_t n_layer, int32_t n_visual, double keep);

// real budgets clamp(c * weight, lo, hi) with one c such that they add up to total
std::vector<double> spread(const std::vector<double> & weights, double total, double lo, double hi);

// integers by largest remainder that add up to total; ties to the lower layer
std::vector<int32_t> round_to_total(const std::vector<double> & values, int64_t total, int32_t hi);

// indices of the n highest scores, ties to the lower index, ascending
void top_n(const float * scores, int32_t n_visual, int32_t n, int32_t * out);

// indices j with att[j] >= alpha * max(att); never empty
std::vector<int32_t> elite(const float * att, int32_t n_text, double alpha);

} // namespace aircache
