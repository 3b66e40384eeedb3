// LLaVA-OneVision in mtmd: what patches/0004 calls.
//
// A picture that is alone in its prompt is read twice: squeezed into one tile (the base), and fitted, padded in black,
// into a grid of tiles. The grid's tokens are put together to one picture, rid of the padding, reduced when they are
// many, and get a newline embedding behind every row. Of several pictures each is one square tile and one newline; the
// frames of a video are one tile each, of a quarter of the tokens, with one newline behind the last.
//
// LLaVA-NeXT is the same with CLIP's tower instead of SigLIP's; each of several pictures has tiles, and no tokens are reduced.
#pragma once

#include "clip-graph.h"
#include "mtmd-image.h"
#include "mtmd-internal.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

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

// The pictures of the prompt that mtmd_tokenize reads: a video is one chunk, and a picture is read otherwise when it is not
// alone in the prompt. Templates, because mtmd.cpp alone knows what a bitmap is. Other models: nothing is done.
struct onevision_prompt {
    const clip_ctx * ctx = nullptr; // null: it is another model

    // Before the parts are read. Of a video's frames the first stays.
    template <class Parts>
    void read(const clip_ctx * vision, projector_type type, Parts & parts) {
        if (type != PROJECTOR_TYPE_LLAVA_ONEVISION && type != PROJECTOR_TYPE_LLAVA_NEXT) {
            return;
        }
        always_tiled = type == PROJECTOR_TYPE_LLAVA_NEXT;
        ctx = vision;
        onevision_separate_text(parts);
        for (size_t i = 0; i < parts.size(); ++i) {
            const auto * bitmap = parts[i].bitmap;
            if (!bitmap) {
                continue;
            }
            n_pictures += !bitmap->is_audio && !bitmap->mergeable;
            auto & frames = videos[bitmap];
            frames.assign(1, bitmap);
            while (i + 1 < parts.size() && parts[i + 1].bitmap && bitmap->can_merge_with(*parts[i + 1].bitmap)) {
                frames.push_back(parts[i + 1].bitmap);
                parts.erase(parts.begin() + i + 1);
            }
        }
    }

    // One of the parts follows: all frames of it.
    void begin(std::vector<const mtmd_bitmap *> & bitmaps) {
        if (ctx) {
            bitmaps  = videos.at(bitmaps[0]);
            n_frames = bitmaps.size();
        }
    }

    // each of the bitmaps in turn; the entries of a video come with its last frame
    template <class Bitmap>
    mtmd_image_preproc_out preprocess(const clip_image_u8 & img, const Bitmap & bitmap) {
        const auto & hparams = *clip_get_hparams(ctx);
        if (!bitmap.mergeable) {
            return onevision_preprocess(hparams, img, n_pictures > 1 && !always_tiled ? ONEVISION_SEVERAL : ONEVISION_SINGLE);
        }
        auto frame = onevision_preprocess(hparams, img, ONEVISION_FRAME);
        video.entries.push_back(std::move(frame.entries[0]));
        if (video.entries.size() < n_frames) {
            return {};
        }
        onevision_join_frames(video);
        return std::exchange(video, {});
    }

private:
    std::map<const mtmd_bitmap *, std::vector<const mtmd_bitmap *>> videos; // by the first frame; a picture is one frame
    mtmd_image_preproc_out video; // its frames so far
    bool   always_tiled = false;
    size_t n_frames   = 0;
    size_t n_pictures = 0; // that are no frames
};

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
