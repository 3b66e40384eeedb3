#include "internvl.h"

#include <algorithm>
#include <cmath>
#include <limits>

mtmd_image_preproc_out aircache_preprocessor_internvl::preprocess(const clip_image_u8 & img) const {
    const auto tiles  = get_slice_instructions(img.get_size());
    const auto sliced = slice_image(img, tiles);

    mtmd_image_preproc_out res;
    res.append(hparams, sliced.slices, true);
    res.append_overview(hparams, sliced.overview, true);
    res.grid_x = tiles.grid_size.width;
    res.grid_y = tiles.grid_size.height;
    return res;
}

mtmd_image_preprocessor_llava_uhd::slice_instructions aircache_preprocessor_internvl::get_slice_instructions(const clip_image_size & original_size) const {
    const int    size  = hparams.image_size;
    const int    n_min = std::max(hparams.preproc_min_tiles, 1);
    const int    n_max = hparams.preproc_max_tiles; // some dozens: aircache_check_projector
    const double ratio = (double) original_size.width / original_size.height;
    const double area  = (double) original_size.width * original_size.height;

    clip_image_size grid = {1, 1};
    double best = std::numeric_limits<double>::infinity();
    for (int n = n_min; n <= n_max; ++n) {
        for (int nx = 1; nx <= n; ++nx) {
            if (n % nx != 0) {
                continue;
            }
            const double diff = std::abs(ratio - (double) nx / (n / nx));
            if (diff < best || (diff == best && area > 0.5*size*size*n)) {
                best = diff;
                grid = {nx, n / nx};
            }
        }
    }

    slice_instructions res;
    res.overview_size = {size, size};
    res.refined_size  = {0, 0};
    res.grid_size     = {0, 0};
    if (grid.width*grid.height > 1) {
        res.refined_size = {grid.width*size, grid.height*size};
        res.grid_size    = grid;
        for (int y = 0; y < grid.height; ++y) {
            for (int x = 0; x < grid.width; ++x) {
                slice_coordinates slice;
                slice.x    = x*size;
                slice.y    = y*size;
                slice.size = {size, size};
                res.slices.push_back(slice);
            }
        }
    }
    return res;
}
