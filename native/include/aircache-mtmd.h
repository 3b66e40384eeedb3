// What the engine and the server both ask of mtmd's images.
#pragma once

#include "mtmd.h"

#include <algorithm>
#include <cstdint>
#include <utility>

// columns and rows of an image's tokens; {0, 0} when they are in no grid
inline std::pair<int32_t, int32_t> aircache_token_grid(const mtmd_context * mctx, const mtmd_input_chunk * chunk) {
    if (!mtmd_decode_use_mrope(mctx)) {
        return { 0, 0 };
    }

    const auto * image = mtmd_input_chunk_get_tokens_image(chunk);

    int32_t nx = 0;
    int32_t ny = 0;
    const int32_t n = mtmd_input_chunk_get_n_tokens(chunk);
    for (int32_t i = 0; i < n; ++i) {
        const auto pos = mtmd_image_tokens_get_decoder_pos(image, 0, i);
        nx = std::max<int32_t>(nx, pos.x + 1);
        ny = std::max<int32_t>(ny, pos.y + 1);
    }
    return nx*ny == n ? std::make_pair(nx, ny) : std::make_pair(0, 0);
}
