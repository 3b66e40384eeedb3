// InternVL's tiles as its Python code chooses them. patches/0005 makes this preprocessor instead of llama.cpp's.
#pragma once

#include "mtmd-image.h"

struct aircache_preprocessor_internvl : mtmd_image_preprocessor_llava_uhd {
    using mtmd_image_preprocessor_llava_uhd::mtmd_image_preprocessor_llava_uhd;

    // the tiles, then the whole picture; a picture of one tile is its own overview
    mtmd_image_preproc_out preprocess(const clip_image_u8 & img) const override;

    // The grid of tiles whose aspect ratio is closest to the picture's; of equally close ones the largest that the
    // picture fills by half or more.
    slice_instructions get_slice_instructions(const clip_image_size & original_size) const override;
};
