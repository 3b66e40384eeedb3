#include "idefics3.h"

#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

static constexpr int MAX_EDGE = 4096; // of transformers: more pixels are never made

// The longer side as given, the other by the picture's shape, cut off as in Python. Widths over heights always: the
// rounding of the quotient decides about the last pixel.
static clip_image_size scaled(const clip_image_size & size, int longer) {
    const double ratio = (double) size.width/size.height;
    if (size.width >= size.height) {
        return { longer, (int) (longer/ratio) };
    }
    return { (int) (longer*ratio), longer };
}

static int longest(const clip_image_size & size) {
    return std::max(size.width, size.height);
}

idefics3_plan idefics3_get_plan(const clip_image_size & picture, int tile, int longest_edge) {
    const auto up = [tile](int n) { return std::max(1, (n + tile - 1)/tile)*tile; };

    idefics3_plan res;
    res.first = scaled(picture, longest_edge);
    int & shorter = picture.width >= picture.height ? res.first.height : res.first.width;
    shorter = std::max(1, shorter + shorter % 2); // which may make it the longer one
    if (longest(res.first) > MAX_EDGE) {
        res.first = scaled(res.first, MAX_EDGE);
        res.first = { std::max(1, res.first.width), std::max(1, res.first.height) };
    }

    res.refined = scaled(res.first, up(longest(res.first)));
    res.refined = { up(res.refined.width), up(res.refined.height) };
    res.nx = res.refined.width /tile;
    res.ny = res.refined.height/tile;
    return res;
}

static clip_image_u8 stretch(const clip_image_u8 & src, const clip_image_size & size, resize_algo algo) {
    clip_image_u8 res;
    if (!aircache_resize(src, res, size, algo)) {
        throw std::runtime_error(string_format("idefics3: a picture cannot be resized to %d x %d pixels", size.width, size.height));
    }
    return res;
}

static clip_image_u8 cut(const clip_image_u8 & src, int x0, int y0, int tile) {
    clip_image_u8 res;
    res.set_size({ tile, tile }, src.is_placeholder());
    if (!src.is_placeholder()) {
        const auto & from = src.get_ro_buf();
        std::vector<uint8_t> to;
        to.reserve((size_t) tile*tile*3);
        for (int y = y0; y < y0 + tile; ++y) {
            const auto row = from.begin() + ((size_t) y*src.get_size().width + x0)*3;
            to.insert(to.end(), row, row + (size_t) tile*3);
        }
        res.cpy_buf(to);
    }
    return res;
}

mtmd_image_preproc_out aircache_preprocessor_idefics3::preprocess(const clip_image_u8 & img) const {
    // old files do not say how long the longer side becomes; limits of tokens have no counterpart in Python
    if (hparams.image_longest_edge <= 0 || hparams.image_min_pixels > 0 || hparams.image_max_pixels > 0) {
        return mtmd_image_preprocessor_idefics3::preprocess(img);
    }

    const int  tile = hparams.image_size;
    const auto algo = hparams.image_resize_algo;
    const auto plan = idefics3_get_plan(img.get_size(), tile, hparams.image_longest_edge);
    const auto refined = stretch(stretch(img, plan.first, algo), plan.refined, algo);

    mtmd_image_preproc_out res;
    res.append_overview(hparams, stretch(refined, { tile, tile }, algo), true);
    if (plan.nx*plan.ny > 1) {
        for (int i = 0; i < plan.nx*plan.ny; ++i) {
            res.append(hparams, cut(refined, i%plan.nx*tile, i/plan.nx*tile, tile), true);
        }
        res.grid_x = plan.nx;
        res.grid_y = plan.ny;
    }
    return res;
}

std::vector<llama_token> idefics3_tokens(const llama_vocab * vocab, const std::string & markers) {
    if (!vocab) {
        return {};
    }
    std::vector<llama_token> res(markers.size());
    res.resize(std::max(0, llama_tokenize(vocab, markers.data(), markers.size(), res.data(), res.size(), false, true)));
    return res;
}
