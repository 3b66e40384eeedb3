#include "resample.h"

#include <algorithm>

static constexpr int PRECISION = 22;

static uint8_t rounded(int32_t sum) {
    return std::clamp(sum >> PRECISION, 0, 255);
}

// the picture in the middle of a square
static aircache_canvas in_square(const clip_image_size & picture, const std::array<uint8_t, 3> & colour) {
    const int side = std::max(picture.width, picture.height);
    return { { side, side }, (side - picture.width)/2, (side - picture.height)/2, colour };
}

namespace {

// what of the inputs [first, first + n) lies in the picture, which begins at `at` and is `length` long
struct overlap {
    int lo;
    int hi;
    overlap(int first, int n, int at, int length) : lo(std::clamp(at, first, first + n)), hi(std::clamp(at + length, first, first + n)) {}
};

// resizes single rows: what lies outside of the picture is one product per output
struct row_resizer {
    const clip_image_size & picture;
    const aircache_canvas & canvas;
    const int               width;
    const aircache_taps   & taps;
    std::vector<int32_t>    outside; // [width]: sum of the weights there

    row_resizer(const clip_image_size & picture, const aircache_canvas & canvas, int width, const aircache_taps & taps)
            : picture(picture), canvas(canvas), width(width), taps(taps), outside(width) {
        for (int i = 0; i < width; ++i) {
            const int       first = taps.bounds[2*i];
            const int       n     = taps.bounds[2*i + 1];
            const int32_t * w     = &taps.weights[(size_t) i*taps.ksize];
            const overlap   in(first, n, canvas.x, picture.width);
            for (int k = 0; k < n; ++k) {
                if (first + k < in.lo || first + k >= in.hi) {
                    outside[i] += w[k];
                }
            }
        }
    }

    // row: of the picture, or null: of the area around it
    void resize(const uint8_t * row, uint8_t * out) const {
        for (int i = 0; i < width; ++i) {
            const int       first = taps.bounds[2*i];
            const int       n     = taps.bounds[2*i + 1];
            const int32_t * w     = &taps.weights[(size_t) i*taps.ksize];
            const overlap   in(first, n, canvas.x, picture.width);

            int32_t around = outside[i];
            if (!row) {
                for (int x = in.lo; x < in.hi; ++x) {
                    around += w[x - first];
                }
            }

            int32_t sum[3];
            for (int c = 0; c < 3; ++c) {
                sum[c] = (1 << (PRECISION - 1)) + around*canvas.colour[c];
            }
            if (row) {
                const uint8_t * p = row + (size_t) (in.lo - canvas.x)*3;
                for (int x = in.lo; x < in.hi; ++x, p += 3) {
                    const int32_t cur = w[x - first];
                    sum[0] += p[0]*cur;
                    sum[1] += p[1]*cur;
                    sum[2] += p[2]*cur;
                }
            }
            for (int c = 0; c < 3; ++c) {
                out[3*i + c] = rounded(sum[c]);
            }
        }
    }
};

} // namespace

std::vector<uint8_t> aircache_resample(const uint8_t * rgb, const clip_image_size & picture, const aircache_canvas & canvas,
        const clip_image_size & target, const aircache_taps & horizontal, const aircache_taps & vertical) {
    const row_resizer rows(picture, canvas, target.width, horizontal);

    const size_t n = (size_t) target.width*3;

    std::vector<uint8_t> around(n); // a row above or below the picture
    rows.resize(nullptr, around.data());

    // The last rows of the picture, resized: row y in slot y % ksize. The windows move down only.
    std::vector<uint8_t> held(n*std::min(vertical.ksize, picture.height));
    const int n_held = held.size()/n;
    int       n_done = 0;

    std::vector<uint8_t> res(n*target.height);
    std::vector<int32_t> sum(n);
    for (int i = 0; i < target.height; ++i) {
        const int       first = vertical.bounds[2*i];
        const int       count = vertical.bounds[2*i + 1];
        const int32_t * w     = &vertical.weights[(size_t) i*vertical.ksize];
        const overlap   in(first, count, canvas.y, picture.height);

        int32_t outside = 0;
        for (int y = first; y < first + count; ++y) {
            if (y < in.lo || y >= in.hi) {
                outside += w[y - first];
            }
        }
        for (size_t k = 0; k < n; ++k) {
            sum[k] = (1 << (PRECISION - 1)) + outside*around[k];
        }

        for (int y = in.lo; y < in.hi; ++y) {
            const int own = y - canvas.y;
            uint8_t * row = held.data() + n*(own % n_held);
            if (own >= n_done) {
                rows.resize(rgb + (size_t) own*picture.width*3, row);
                n_done = own + 1;
            }
            const int32_t cur = w[y - first];
            for (size_t k = 0; k < n; ++k) {
                sum[k] += row[k]*cur;
            }
        }

        uint8_t * out = res.data() + n*i;
        for (size_t k = 0; k < n; ++k) {
            out[k] = rounded(sum[k]);
        }
    }
    return res;
}

void aircache_resize_square(const clip_image_u8 & src, clip_image_u8 & dst, int size, resize_algo algo, const std::array<uint8_t, 3> & colour) {
    const auto            from   = src.get_size();
    const aircache_canvas square = in_square(from, colour);
    dst.set_size({ size, size }, src.is_placeholder());
    if (src.is_placeholder()) {
        return;
    }
    if (square.size.width != size) {
        aircache_resize_canvas(src, dst, size, algo, square);
        return;
    }
    for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
            const int  px     = x - square.x;
            const int  py     = y - square.y;
            const bool inside = px >= 0 && py >= 0 && px < from.width && py < from.height;
            dst.set_pixel(x, y, inside ? src.get_pixel(px, py) : colour);
        }
    }
}

bool aircache_resize_llava(const clip_hparams & hparams, const clip_image_u8 & src, clip_image_u8 & dst) {
    if (!hparams.has_llava_projector) {
        return false;
    }
    aircache_resize_square(src, dst, hparams.image_size, hparams.image_resize_algo, hparams.image_pad_color);
    return true;
}
