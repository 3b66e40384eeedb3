// What the engine, the server and mtmd's hooks ask of pictures.
#pragma once

#include "mtmd.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

// How many times as long as the other a picture's longer side may be. Qwen's models refuse more than 200 themselves, the
// others squeeze everything into their tiles: at 1000 nothing of the shorter side is left, and work and memory still
// follow from the picture's size.
inline int32_t aircache_max_aspect(const mtmd_context * mctx) {
    return mtmd_decode_use_mrope(mctx) ? 200 : 1000;
}

// throws when the picture is too thin
inline void aircache_check_picture(const mtmd_context * mctx, int64_t width, int64_t height) {
    const int64_t most = aircache_max_aspect(mctx);
    if (std::max(width, height) > most*std::min(width, height)) {
        throw std::runtime_error("a picture of " + std::to_string(width) + " x " + std::to_string(height) + " pixels is too thin: "
                "one side may be at most " + std::to_string(most) + " times as long as the other");
    }
}

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
