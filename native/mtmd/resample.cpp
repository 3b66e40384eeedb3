#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

static constexpr int PRECISION = 22; // bits behind the point of a weight
static constexpr int MAX_SIDE  = 65536;

static uint8_t rounded(int32_t sum) {
    return std::clamp(sum >> PRECISION, 0, 255);
}

namespace {

// A picture in the middle of a larger area of one colour, without that area being made.
struct canvas {
    clip_image_size size;
    int x; // of the picture's corner
    int y;
    std::array<uint8_t, 3> colour;
};

// One direction: output i is the sum of weights[i*ksize + k]*input[first[i] + k], k < count[i].
struct taps {
    int ksize;
    std::vector<int>     first;
    std::vector<int>     count;
    std::vector<int32_t> weights;

    // `support`: half the width of the filter's kernel, which shrinking widens
    template <class Filter>
    taps(int from, int to, double support, Filter filter) : first(to), count(to) {
        const double scale = (double) from/to;
        const double wide  = std::max(scale, 1.0);
        support *= wide;
        ksize = from == to ? 1 : 2*(int) std::ceil(support) + 1;
        weights.resize((size_t) to*ksize);

        std::vector<double> row(ksize);
        for (int i = 0; i < to; ++i) {
            int32_t * out = &weights[(size_t) i*ksize];
            if (from == to) { // no pass: every value as it is
                first[i] = i;
                count[i] = 1;
                out[0]   = 1 << PRECISION;
                continue;
            }
            const double centre = (i + 0.5)*scale;
            const int    lo     = std::max((int) (centre - support + 0.5), 0);
            const int    hi     = std::min((int) (centre + support + 0.5), from);
            double sum = 0;
            for (int k = 0; k < hi - lo; ++k) {
                row[k] = filter(std::abs((k + lo - centre + 0.5)*(1.0/wide)));
                sum   += row[k];
            }
            for (int k = 0; k < hi - lo; ++k) {
                const double w = (sum != 0 ? row[k]/sum : row[k])*(1 << PRECISION);
                out[k] = (int32_t) (w + (w < 0 ? -0.5 : 0.5)); // away from zero, as Pillow rounds
            }
            first[i] = lo;
            count[i] = hi - lo;
        }
    }
};

taps make_taps(int from, int to, resize_algo algo) {
    if (algo == RESIZE_ALGO_BILINEAR) {
        return taps(from, to, 1, [](double x) { return std::max(1.0 - x, 0.0); });
    }
    if (algo == RESIZE_ALGO_LANCZOS) {
        const auto sinc = [](double x) {
            x *= 3.14159265358979323846;
            return x == 0 ? 1.0 : std::sin(x)/x;
        };
        return taps(from, to, 3, [sinc](double x) { return x < 3 ? sinc(x)*sinc(x/3) : 0.0; });
    }
    constexpr double a = -0.5; // Pillow's bicubic; others take -0.75
    return taps(from, to, 2, [](double x) {
        return x < 1 ? ((a + 2)*x - (a + 3))*x*x + 1 :
               x < 2 ? (((x - 5)*x + 8)*x - 4)*a : 0.0;
    });
}

// what of the inputs [first, first + n) lies in the picture, which begins at `at` and is `length` long
struct overlap {
    int lo;
    int hi;
    overlap(int first, int n, int at, int length) : lo(std::clamp(at, first, first + n)), hi(std::clamp(at + length, first, first + n)) {}
};

// resizes single rows: what lies outside of the picture is one product per output
struct row_resizer {
    const clip_image_size & picture;
    const canvas          & around;
    const taps            & horizontal;
    const int               width;
    std::vector<int32_t>    outside; // [width]: sum of the weights there

    row_resizer(const clip_image_size & picture, const canvas & around, const taps & horizontal)
            : picture(picture), around(around), horizontal(horizontal), width(horizontal.first.size()), outside(width) {
        for (int i = 0; i < width; ++i) {
            const int       first = horizontal.first[i];
            const int       n     = horizontal.count[i];
            const int32_t * w     = &horizontal.weights[(size_t) i*horizontal.ksize];
            const overlap   in(first, n, around.x, picture.width);
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
            const int       first = horizontal.first[i];
            const int       n     = horizontal.count[i];
            const int32_t * w     = &horizontal.weights[(size_t) i*horizontal.ksize];
            const overlap   in(first, n, around.x, picture.width);

            int32_t beside = outside[i];
            if (!row) {
                for (int x = in.lo; x < in.hi; ++x) {
                    beside += w[x - first];
                }
            }

            int32_t sum[3];
            for (int c = 0; c < 3; ++c) {
                sum[c] = (1 << (PRECISION - 1)) + beside*around.colour[c];
            }
            if (row) {
                const uint8_t * p = row + (size_t) (in.lo - around.x)*3;
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

// [height, width, 3] of the resized canvas. As Pillow does it, every row is resized and rounded to 8 bits before the
// columns are.
std::vector<uint8_t> resample(const clip_image_u8 & src, const canvas & around, const clip_image_size & target, resize_algo algo) {
    const clip_image_size picture = src.get_size();
    const uint8_t *       rgb     = src.get_ro_buf().data();

    const taps        horizontal = make_taps(around.size.width,  target.width,  algo);
    const taps        vertical   = make_taps(around.size.height, target.height, algo);
    const row_resizer rows(picture, around, horizontal);

    const size_t n = (size_t) target.width*3;

    std::vector<uint8_t> beyond(n); // a row above or below the picture
    rows.resize(nullptr, beyond.data());

    // The last rows of the picture, resized: row y in slot y % ksize. The windows move down only.
    std::vector<uint8_t> held(n*std::min(vertical.ksize, picture.height));
    const int n_held = held.size()/n;
    int       n_done = 0;

    std::vector<uint8_t> res(n*target.height);
    std::vector<int32_t> sum(n);
    for (int i = 0; i < target.height; ++i) {
        const int       first = vertical.first[i];
        const int       count = vertical.count[i];
        const int32_t * w     = &vertical.weights[(size_t) i*vertical.ksize];
        const overlap   in(first, count, around.y, picture.height);

        int32_t outside = 0;
        for (int y = first; y < first + count; ++y) {
            if (y < in.lo || y >= in.hi) {
                outside += w[y - first];
            }
        }
        for (size_t k = 0; k < n; ++k) {
            sum[k] = (1 << (PRECISION - 1)) + outside*beyond[k];
        }

        for (int y = in.lo; y < in.hi; ++y) {
            const int own = y - around.y;
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

bool can_resize(const clip_image_size & from, const clip_image_size & to, resize_algo algo) {
    return (algo == RESIZE_ALGO_BILINEAR || algo == RESIZE_ALGO_BICUBIC || algo == RESIZE_ALGO_LANCZOS) && from.width > 0 && from.height > 0 &&
        to.width > 0 && to.height > 0 && to.width <= MAX_SIDE && to.height <= MAX_SIDE;
}

} // namespace

bool aircache_resize(const clip_image_u8 & src, clip_image_u8 & dst, const clip_image_size & size, resize_algo algo) {
    const auto from = src.get_size();
    if (!can_resize(from, size, algo)) {
        return false;
    }
    dst.set_size(size, src.is_placeholder());
    if (!src.is_placeholder()) {
        dst.cpy_buf(resample(src, { from, 0, 0, {} }, size, algo));
    }
    return true;
}

void aircache_resize_square(const clip_image_u8 & src, clip_image_u8 & dst, int size, resize_algo algo, const std::array<uint8_t, 3> & colour) {
    const auto   from = src.get_size();
    const int    side = std::max(from.width, from.height);
    const canvas square = { { side, side }, (side - from.width)/2, (side - from.height)/2, colour };
    if (!can_resize(from, { size, size }, algo)) {
        throw std::runtime_error("a picture cannot be resized to " + std::to_string(size) + " x " + std::to_string(size) + " pixels");
    }
    dst.set_size({ size, size }, src.is_placeholder());
    if (!src.is_placeholder()) {
        dst.cpy_buf(resample(src, square, { size, size }, algo));
    }
}

bool aircache_resize_llava(const clip_hparams & hparams, const clip_image_u8 & src, clip_image_u8 & dst) {
    if (!hparams.has_llava_projector) {
        return false;
    }
    aircache_resize_square(src, dst, hparams.image_size, hparams.image_resize_algo, hparams.image_pad_color);
    return true;
}

void aircache_set_resizing(projector_type type, clip_hparams & hparams) {
    switch (type) {
        case PROJECTOR_TYPE_QWEN2VL:
        case PROJECTOR_TYPE_QWEN25VL:
        case PROJECTOR_TYPE_QWEN3VL:
        case PROJECTOR_TYPE_LING3VL:
            hparams.image_resize_pad = PAD_NONE; // stretched to the grid
            break;
        case PROJECTOR_TYPE_INTERNVL:
            hparams.image_pad_rf = PAD_NONE; // stretched to the tiles
            break;
        default:
            break;
    }
}

clip_image_size aircache_aligned_size(const clip_image_size & picture, int align, int min_pixels, int max_pixels, int longest_edge) {
    const int width  = picture.width;
    const int height = picture.height;

    // in double and with halves to even, as Python does
    const auto down  = [align](double x) { return (int) std::floor(x/align)*align; };
    const auto up    = [align](double x) { return (int) std::ceil(x/align)*align; };
    const auto round = [align](double x) { return (int) std::nearbyint(x/align)*align; };

    clip_image_size res;
    if (longest_edge > 0) {
        const float scale = std::min((float) longest_edge/width, (float) longest_edge/height);
        res = { up(width*scale), up(height*scale) };
    } else {
        res = { std::max(align, round(width)), std::max(align, round(height)) };
    }

    if (max_pixels > 0 && res.width*res.height > max_pixels) {
        const double beta = std::sqrt((double) height*width/max_pixels);
        res = { std::max(align, down(width/beta)), std::max(align, down(height/beta)) };
    } else if (min_pixels > 0 && res.width*res.height < min_pixels) {
        const double beta = std::sqrt((double) min_pixels/((double) height*width));
        res = { up(width*beta), up(height*beta) };
    }
    return res;
}
