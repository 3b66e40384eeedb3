// LLaVA-OneVision in mtmd: what the hooks of patches/0004 call.
//
// A picture that is alone in its prompt is read twice: squeezed into one tile (the base), and fitted, padded in black,
// into a grid of tiles. The grid's tokens are put together to one picture, rid of the padding, reduced when they are
// many, and get a newline embedding behind every row. Of several pictures each is one square tile and one newline; the
// frames of a video are one tile each, of a quarter of the tokens, with one newline behind the last.
#pragma once

#include "clip-graph.h"
#include "mtmd-image.h"
#include "mtmd-internal.h"

#include <climits>
#include <memory>
#include <vector>

// n_merge of mtmd_group_mergeable_bitmaps
constexpr int ONEVISION_MERGE_ALL = INT_MAX;

enum onevision_kind {
    ONEVISION_SINGLE,  // the prompt's only picture
    ONEVISION_SEVERAL, // one of several
    ONEVISION_FRAME,   // of a video
};

// throws when the file's numbers or tensors do not fit together
void onevision_check(const clip_model & model);

mtmd_image_preproc_out onevision_preprocess(const clip_hparams & hparams, const clip_image_u8 & img, onevision_kind kind);

// makes one entry of a video's frames
void onevision_join_frames(mtmd_image_preproc_out & out);

struct onevision_preprocessor : mtmd_image_preprocessor {
    using mtmd_image_preprocessor::mtmd_image_preprocessor;

    mtmd_image_preproc_out preprocess(const clip_image_u8 & img) const override {
        return onevision_preprocess(hparams, img, ONEVISION_SINGLE);
    }
};

// Puts a newline between a picture and text that touches it, as the model's chat template does. llama.cpp joins a
// message's pictures and text without anything between them; a prompt that has white space there stays as it is.
void onevision_separate_text(std::vector<mtmd_internal_part> & parts);

// in mtmd-image.cpp: bicubic, as Pillow does it
void onevision_resize(const clip_image_u8 & src, clip_image_u8 & dst, const clip_image_size & size);

// The tokens of a grid of tiles, [rows, cols] in the end.
struct onevision_grid {
    int x, y, w, h; // the picture without its padding
    int rows, cols; // after the reduction

    bool reduced() const {
        return rows != h || cols != w;
    }
    int n_tokens() const {
        return rows*(cols + 1);
    }
};
onevision_grid onevision_get_grid(const clip_hparams & hparams, const clip_image_f32::anyres_info & info, int side);

int onevision_n_tokens(const clip_hparams & hparams, const clip_image_f32 & img);

std::unique_ptr<clip_graph> onevision_graph(clip_ctx * ctx, const clip_image_f32 & img);
