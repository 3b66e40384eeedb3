// Idefics 3's and SmolVLM's tiles as their Python code makes them. patches/0005 makes this preprocessor instead of
// llama.cpp's.
#pragma once

#include "llama.h"
#include "mtmd-image.h"

#include <string>
#include <vector>

// What a picture becomes: it is resized twice, then cut. A picture of one tile is its own overview.
struct idefics3_plan {
    clip_image_size first;   // the longer side as long as the model wants it
    clip_image_size refined; // both sides multiples of the tile
    int nx;                  // tiles
    int ny;
};

// as "resize" and "resize_for_vision_encoder" of transformers compute it
idefics3_plan idefics3_get_plan(const clip_image_size & picture, int tile, int longest_edge);

struct aircache_preprocessor_idefics3 : mtmd_image_preprocessor_idefics3 {
    using mtmd_image_preprocessor_idefics3::mtmd_image_preprocessor_idefics3;

    mtmd_image_preproc_out preprocess(const clip_image_u8 & img) const override;
};

// The markers around tiles as the tokenizer has them, also one without a token of its own for two line ends. Empty
// without a vocabulary, when only memory is counted.
std::vector<llama_token> idefics3_tokens(const llama_vocab * vocab, const std::string & markers);
