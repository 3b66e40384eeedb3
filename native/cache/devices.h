// Does a device have the operations that AirCache needs on tensors in the cache's own buffers? They can be computed nowhere
// else: the scheduler would abort, or copy K and V.
#pragma once

#include "cache/kv.h"

#include <functional>
#include <string>

// Which operation for observation, scores and moves, or for those of merging, a layer's device lacks, as words; "" if none
std::string llama_aircache_missing_op(const llama_aircache_kv & kv, bool merging);

// the same of one layer's tensors, and whatever supports() says
struct llama_aircache_layer_tensors { ggml_tensor * q; ggml_tensor * k; ggml_tensor * v; bool v_trans; };

using llama_aircache_supports = std::function<bool(const ggml_tensor * op)>;

std::string llama_aircache_missing_op(const llama_aircache_layer_tensors & t, bool merging, const llama_aircache_supports & supports);
