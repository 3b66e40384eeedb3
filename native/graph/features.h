// What the scores beyond the paper need of K and V themselves: lengths of values, diversity of keys.
#pragma once

#include "graph/runner.h"

// Applies value norms and key diversity, as the method says, to scores [n_layer, n_visual].
void llama_aircache_features(llama_aircache_runner & runner, uint32_t stream, const std::vector<llama_aircache_cell> & visual,
        const llama_aircache_method & method, float * scores);
