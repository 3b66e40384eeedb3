// The same budget in every layer.
#include "policy/policy.h"

namespace aircache {

row uniform_weights(int32_t n_layer) {
    return row(n_layer, 1.0);
}

} // namespace aircache
