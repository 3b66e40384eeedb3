// Sizes and resizing of pictures as the models' Python processors (Pillow, torchvision) do them: what patches/0005 calls.
#pragma once

#include "clip-impl.h"
#include "clip-model.h"

#include <array>

// How a family's pictures are brought to size, where llama.cpp's setting is not the one that the models were trained with.
void aircache_set_resizing(projector_type type, clip_hparams & hparams);

// "smart_resize" of transformers: about the picture's shape, both sides multiples of `align`, the area within min_pixels
// and max_pixels (0: no bound). With longest_edge > 0 the longer side is brought to it first, rounded up.
clip_image_size aircache_aligned_size(const clip_image_size & picture, int align, int min_pixels, int max_pixels, int longest_edge);

// Bilinear, bicubic or Lanczos, stretched to `size`; bit for bit Pillow's, width first. The rows between the passes are held only as
// long as they are needed, so that the memory is that of the output. false: not for this algorithm or size.
bool aircache_resize(const clip_image_u8 & src, clip_image_u8 & dst, const clip_image_size & size, resize_algo algo);

// in the middle of a square of one colour, then resized
void aircache_resize_square(const clip_image_u8 & src, clip_image_u8 & dst, int size, resize_algo algo, const std::array<uint8_t, 3> & colour);

// As LLaVA does it: padded first and resized then, which blurs the edge. false: it is another model.
bool aircache_resize_llava(const clip_hparams & hparams, const clip_image_u8 & src, clip_image_u8 & dst);
