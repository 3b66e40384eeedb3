// LLaVA-OneVision: from a picture to tiles, and how many tokens they make.
//
// Sizes are computed in double precision and rounded as the model's Python processor does it: one pixel or token more
// or less would be another prompt.
#include "onevision.h"
#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

void onevision_check(const clip_model & model) {
    const auto & hparams = model.hparams;

    const bool next = model.proj_type == PROJECTOR_TYPE_LLAVA_NEXT;

    const auto require = [next](bool ok, const char * what) {
        if (!ok) {
            throw std::runtime_error(string_format("%s: %s", next ? "llava_next" : "llava_onevision", what));
        }
    };

    require(hparams.image_size >= hparams.patch_size && hparams.patch_size > 0, "the tile must have at least one patch");
    require(next || hparams.ffn_op == FFN_GELU, "clip.use_gelu must be set");
    require(!next || hparams.ffn_op == FFN_GELU_QUICK, "clip.use_gelu and clip.use_silu must not be set");
    require(hparams.anyres_max_tiles >= 1, "clip.vision.anyres_max_tiles must be at least 1");
    require(!hparams.image_res_candidates.empty(), "clip.vision.image_grid_pinpoints is missing");
    for (const auto & size : hparams.image_res_candidates) {
        require(size.width > 0 && size.height > 0 && size.width % hparams.image_size == 0 && size.height % hparams.image_size == 0,
                "clip.vision.image_grid_pinpoints must be multiples of the tile's size");
        require((int64_t) (size.width/hparams.image_size)*(size.height/hparams.image_size) <= 1024, "a grid has more than 1024 tiles");
    }

    const int side = hparams.image_size/hparams.patch_size;
    require(model.patch_embeddings_0 && model.position_embeddings, "the patch or position embeddings are missing");
    require(next || (!model.class_embedding && !model.pre_ln_w), "class tokens and norms before the first block are not supported");
    require(!next || (model.class_embedding && model.pre_ln_w), "the class token or the norm before the first block is missing");
    for (const auto & layer : model.layers) {
        require(layer.q_w && layer.k_w && layer.v_w && layer.o_w && layer.ff_up_w && layer.ff_down_w && layer.ln_1_w && layer.ln_2_w,
                "a matrix or a norm of a block is missing");
    }
    require(model.position_embeddings->ne[1] == side*side + next, "there must be one position embedding for every patch of a tile, and for its class token");
    require(model.mm_2_w->ne[0] == model.mm_0_w->ne[1] && model.mm_0_w->ne[0] == hparams.n_embd, "the projector's matrices do not fit");
    require(model.image_newline->type == GGML_TYPE_F32, "v.image_newline must be F32");
    require(ggml_nelements(model.image_newline) == model.mm_2_w->ne[1], "the newline is not as wide as the projector's output");
}

static void stretch(const clip_image_u8 & src, clip_image_u8 & dst, const clip_image_size & size) {
    if (!aircache_resize(src, dst, size, RESIZE_ALGO_BICUBIC)) {
        throw std::runtime_error(string_format("llava_onevision: a picture cannot be resized to %d x %d pixels", size.width, size.height));
    }
}

// Pillow rounds to 8 bits between its two passes, so their order shows. mtmd always takes the width first; Pillow 13
// takes the height first where it shrinks and, by its measure, by more than the width does.
static void resize(const clip_image_u8 & src, clip_image_u8 & dst, const clip_image_size & size) {
    const auto from = src.get_size();
    if (from.height > size.height && from.height - size.height > 2*(from.width - size.width)) {
        clip_image_u8 lower;
        stretch(src, lower, { from.width, size.height });
        stretch(lower, dst, size);
    } else {
        stretch(src, dst, size);
    }
}

// the grid that shows most of the picture's pixels, and of these the smallest
static clip_image_size select_grid(const clip_hparams & hparams, const clip_image_size & img) {
    clip_image_size best = hparams.image_res_candidates.front();
    int64_t best_shown  = 0;
    int64_t best_wasted = INT64_MAX;
    for (const auto & grid : hparams.image_res_candidates) {
        const double  scale  = std::min((double) grid.width/img.width, (double) grid.height/img.height);
        const int64_t shown  = std::min((int64_t) (img.width*scale)*(int64_t) (img.height*scale), (int64_t) img.width*img.height);
        const int64_t wasted = (int64_t) grid.width*grid.height - shown;
        if (shown > best_shown || (shown == best_shown && wasted < best_wasted)) {
            best        = grid;
            best_shown  = shown;
            best_wasted = wasted;
        }
    }
    return best;
}

static void paste(clip_image_u8 & dst, const clip_image_u8 & src, int x0, int y0) {
    for (int y = 0; y < src.get_size().height; ++y) {
        for (int x = 0; x < src.get_size().width; ++x) {
            dst.set_pixel(x0 + x, y0 + y, src.get_pixel(x, y));
        }
    }
}

// the picture as large as fits, in the middle of a black canvas
static clip_image_u8 fit(const clip_image_u8 & img, const clip_image_size & canvas) {
    const auto size = img.get_size();

    const double scale_w = (double) canvas.width /size.width;
    const double scale_h = (double) canvas.height/size.height;

    clip_image_size inner = canvas;
    if (scale_w < scale_h) {
        inner.height = std::min((int) std::ceil(size.height*scale_w), canvas.height);
    } else {
        inner.width  = std::min((int) std::ceil(size.width *scale_h), canvas.width);
    }

    clip_image_u8 resized;
    resize(img, resized, inner);

    clip_image_u8 res;
    res.set_size(canvas, img.is_placeholder()); // zeros: black
    paste(res, resized, (canvas.width - inner.width)/2, (canvas.height - inner.height)/2);
    return res;
}

// the picture in the middle of a square of the mean colour, in one tile
static void resize_square(const clip_hparams & hparams, const clip_image_u8 & img, clip_image_u8 & dst) {
    // the mean comes in single precision: 0.2 must stay 51
    std::array<uint8_t, 3> colour;
    for (int c = 0; c < 3; ++c) {
        colour[c] = std::min(std::max((int) (hparams.image_mean[c]*255.0 + 1e-4), 0), 255);
    }
    aircache_resize_square(img, dst, hparams.image_size, RESIZE_ALGO_BICUBIC, colour);
}

mtmd_image_preproc_out onevision_preprocess(const clip_hparams & hparams, const clip_image_u8 & img, onevision_kind kind) {
    const int tile = hparams.image_size;

    clip_image_u8 base;
    if (kind == ONEVISION_SEVERAL) {
        resize_square(hparams, img, base);
    } else {
        resize(img, base, { tile, tile });
    }

    mtmd_image_preproc_out res;
    if (kind != ONEVISION_SINGLE) {
        res.append(hparams, base);
        res.entries.back().anyres.n_frames = kind == ONEVISION_FRAME;
        return res;
    }

    const auto grid = select_grid(hparams, img.get_size());
    const int  nx   = grid.width/tile;
    const int  ny   = grid.height/tile;

    // all tiles below each other, so that they go through one graph: base, then the grid's in reading order
    clip_image_u8 stack;
    stack.set_size({ tile, tile*(1 + nx*ny) }, img.is_placeholder());
    if (!img.is_placeholder()) {
        paste(stack, base, 0, 0);
        const auto refined = fit(img, grid);
        for (int i = 0; i < nx*ny; ++i) {
            for (int y = 0; y < tile; ++y) {
                for (int x = 0; x < tile; ++x) {
                    stack.set_pixel(x, (1 + i)*tile + y, refined.get_pixel(i%nx*tile + x, i/nx*tile + y));
                }
            }
        }
    }
    res.append(hparams, stack);
    auto & info = res.entries.back().anyres;
    info.grid_x  = nx;
    info.grid_y  = ny;
    info.orig_nx = img.get_size().width;
    info.orig_ny = img.get_size().height;
    return res;
}

void onevision_join_frames(mtmd_image_preproc_out & out) {
    GGML_ASSERT(!out.entries.empty());
    const int  tile        = out.entries[0].nx();
    const int  n_frames    = out.entries.size();
    const bool placeholder = out.entries[0].is_placeholder();

    clip_image_f32 video;
    video.set_size({ tile, tile*n_frames }, placeholder, false);
    if (!placeholder) {
        std::vector<float> pixels;
        for (const auto & frame : out.entries) {
            const auto & cur = frame.get_ro_buf();
            pixels.insert(pixels.end(), cur.begin(), cur.end());
        }
        video.cpy_buf(pixels);
    }
    video.anyres.n_frames = n_frames;

    out.entries.clear();
    out.entries.push_back(std::move(video));
}

void onevision_separate_text(std::vector<mtmd_internal_part> & parts) {
    for (size_t i = 1; i < parts.size(); ++i) {
        auto & text = parts[i].text;
        if (!parts[i].bitmap && parts[i - 1].bitmap && !text.empty() && !strchr(" \t\r\n", text[0])) {
            text.insert(0, "\n");
        }
    }
}

// Python's a // b of positive floats, which is not always floor(a/b)
static int floor_div(double a, double b) {
    const double quotient = (a - std::fmod(a, b))/b;
    const double floored  = std::floor(quotient);
    return floored + (quotient - floored > 0.5);
}

onevision_grid onevision_get_grid(const clip_hparams & hparams, const clip_image_f32::anyres_info & info, int side) {
    onevision_grid res = { 0, 0, info.grid_x*side, info.grid_y*side, 0, 0 };

    // the scale is rounded first and its product cut to 7 digits, as in Python
    const auto scaled = [](int n, int to, int from) {
        return (int) std::floor(n*((double) to/from) + 5e-8);
    };
    if ((double) info.orig_nx/info.orig_ny > (double) res.w/res.h) {
        res.y  = (res.h - scaled(info.orig_ny, res.w, info.orig_nx))/2;
        res.h -= 2*res.y;
    } else {
        res.x  = (res.w - scaled(info.orig_nx, res.h, info.orig_ny))/2;
        res.w -= 2*res.x;
    }

    res.rows = res.h;
    res.cols = res.w;

    const double ratio = std::sqrt((double) ((int64_t) res.h*res.w)/((int64_t) hparams.anyres_max_tiles*side*side));
    if (ratio > 1.1) {
        res.rows = std::max(1, floor_div(res.h, ratio));
        res.cols = std::max(1, floor_div(res.w, ratio));
    }
    return res;
}

int onevision_n_tokens(const clip_hparams & hparams, const clip_image_f32 & img) {
    const int side = img.nx()/hparams.patch_size;
    const int half = (side + 1)/2;

    if (img.anyres.n_frames > 0) {
        return img.anyres.n_frames*half*half + 1;
    }
    return side*side + (img.anyres.is_tiled() ? onevision_get_grid(hparams, img.anyres, side).n_tokens() : 1);
}
