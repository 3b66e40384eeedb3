// Pillow's two passes over a picture, row by row: patches/0005 calls it with llama.cpp's coefficients.
#pragma once

#include "clip-model.h"

#include <array>
#include <cstdint>
#include <vector>

// A picture in the middle of a larger area of one colour, without that area being made.
struct aircache_canvas {
    clip_image_size size;
    int x; // of the picture's corner
    int y;
    std::array<uint8_t, 3> colour;
};

// One direction's coefficients: output i is the sum of weights[i*ksize + k]*input[bounds[2*i] + k], k < bounds[2*i + 1],
// with 22 bits behind the point.
struct aircache_taps {
    int ksize;
    const std::vector<int>     & bounds;
    const std::vector<int32_t> & weights;
};

// [height, width, 3] of the resized canvas. As Pillow does it, every row is resized and rounded to 8 bits before the
// columns are; but only the rows that the next output row needs are held, so that the memory is that of the output.
std::vector<uint8_t> aircache_resample(const uint8_t * rgb, const clip_image_size & picture, const aircache_canvas & canvas,
        const clip_image_size & target, const aircache_taps & horizontal, const aircache_taps & vertical);

// in mtmd-image.cpp: to a square of this size
void aircache_resize_canvas(const clip_image_u8 & src, clip_image_u8 & dst, int size, resize_algo algo, const aircache_canvas & canvas);

// in the middle of a square of one colour, then resized
void aircache_resize_square(const clip_image_u8 & src, clip_image_u8 & dst, int size, resize_algo algo, const std::array<uint8_t, 3> & colour);

// As LLaVA does it: padded first and resized then, which blurs the edge. false: it is another model.
bool aircache_resize_llava(const clip_hparams & hparams, const clip_image_u8 & src, clip_image_u8 & dst);
