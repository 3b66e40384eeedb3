// Host policies: pure functions over [n_layer, n_visual] scores. No context, no state, nothing of llama.cpp; a chapter a file.
#pragma once

#include "aircache-method.h"

#include <cstdint>
#include <string>
#include <vector>

namespace aircache {

using row = std::vector<double>; // one value a layer

//
// methods.cpp: the grid
//

// keep 0.1, alpha 0.9, elite window, strength + skewness, drop, min_keep 1
llama_aircache_method default_method();

// null if there is none of this name
const llama_aircache_method * named(const char * name);

// name of the index-th method; null behind the last one
const char * name_of(int32_t index);

// what is wrong with a method's values, "" if nothing is
std::string invalid(const llama_aircache_method & method);

//
// windows.cpp: which text tokens observe, and with what weight
//

// indices j with att[j] >= alpha * max(att) among the candidates (null: all); never empty
std::vector<uint32_t> elite(const float * att, int32_t n_text, double alpha, const uint8_t * excluded, bool hold_last);

// (TGV-KV, arXiv 2606.03075): weight of text token i = mean attention that it receives from itself and
// the later ones. sums [n_text]: that of queries [first, first + n) is added in the order of the text;
// att [n, n_text]: att[i*n_text + j] from query first + i to key j
void add_text_attention(row & sums, const float * att, int32_t n_text, int32_t first, int32_t n);

std::vector<float> text_weights(const row & sums);

//
// scores.cpp: [n_layer, n_visual], in place
//

// scores that depend on no attention
void random_scores(float * scores, int32_t n_layer, int32_t n_visual, uint32_t seed);
void stride_scores(float * scores, int32_t n_layer, int32_t n_visual);

// an image's run of visual tokens; nx: columns of its grid, 0 if none
struct run { int32_t first; int32_t n; int32_t nx; };

// average or maximum over a window of odd size inside each run, along it or on its grid
void pool(float * scores, int32_t n_layer, int32_t n_visual, const std::vector<run> & runs, bool max, int32_t size, bool on_grid);

// s += lambda * last * local mean(last)/max * min(last, last of the layer before)/max
void add_last_term(float * scores, const float * last, int32_t n_layer, int32_t n_visual, const std::vector<run> & runs, double lambda);

// s *= |V|
void times_value_norm(float * scores, const float * norms, int32_t n_layer, int32_t n_visual);

// (MixKV, arXiv 2510.20707): s = r * diversity + (1 - r) * s. cosine [n_layer, n_visual]: of each key to the
// layer's mean key; redundancy r [n_layer]: mean cosine of its keys
void mix_diversity(float * scores, const float * cosine, const row & redundancy, int32_t n_layer, int32_t n_visual);

//
// budgets.cpp: what each layer's cells are proportional to, limits, rounding
//

row uniform_weights(int32_t n_layer);
row pyramid_weights(int32_t n_layer, double cells, int32_t n_visual);     // cells: mean budget
row strength       (const float * scores, int32_t n_layer, int32_t n_visual);
row skewness       (const float * scores, int32_t n_layer, int32_t n_visual);

// PrefixKV: budgets of at least lo that add up to total, the same share of importance in every layer
std::vector<int32_t> prefix_budgets(const float * scores, int32_t n_layer, int32_t n_visual, int64_t total, int32_t lo);

row mean_one(row v);                          // scaled to mean 1; all 1 where the mean is 0
row blend(const row & a, const row & b, double share_b);

// real budgets clamp(c * weight, lo, hi) with one c such that they add up to total
row spread(const row & weights, double total, double lo, double hi);

// integers by largest remainder that add up to total; ties to the lower layer
std::vector<int32_t> round_to_total(const row & values, int64_t total, int32_t hi);

// a method's budgets; alive [n_layer]: for ALLOC_VL alone, else null
std::vector<int32_t> allocate(const llama_aircache_method & method, const float * scores, const row & strength, const row & skewness,
        const double * alive, int32_t n_layer, int32_t n_visual);

//
// select.cpp: which ones stay, and where the others go
//

// indices of the n highest scores, ties to the lower index, ascending; or the rank-th highest alone
void top_n   (const float * scores, int32_t n_visual, int32_t n, int32_t * out);
void only_nth(const float * scores, int32_t n_visual, int32_t rank, int32_t * out);

// for a share of the dropped tokens, nearest first: the kept token (index into kept) each is averaged into
struct merge_pair { int32_t dropped; int32_t kept; };
std::vector<merge_pair> merge_pairs(const int32_t * kept, int32_t n_kept, int32_t n_visual, double share);

} // namespace aircache
