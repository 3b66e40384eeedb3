// What calls of the C API share. All of it throws llama_aircache_failure.
#pragma once

#include "llama-aircache.h"

#include <vector>

class llama_aircache;

// a context's cache, ready for graphs of our own
llama_aircache & llama_aircache_open(llama_context * ctx, llama_seq_id seq);

// afterwards nothing is in flight, and shifts and stream copies that waited are applied
void llama_aircache_settle(llama_context * ctx);

// null, or values outside their limits
void llama_aircache_check(const llama_aircache_method * method);

// an array that is wanted (not null) has no room for n elements
void llama_aircache_check_room(const char * name, const void * array, int64_t have, int64_t n);

// as llama_aircache_allocate, of a method that was checked
std::vector<int32_t> llama_aircache_budgets(const llama_aircache_method & method, const float * scores, const double * alive,
        int32_t n_layer, int32_t n_visual, double * strength, double * skewness);

// as llama_aircache_select, of scores that were checked
void llama_aircache_choose(const float * scores, int32_t n_layer, int32_t n_visual, const int32_t * budgets, int32_t rank,
        int32_t * kept, int64_t n_kept_max);
