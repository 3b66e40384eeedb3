#include "impl.h"

namespace aircache_pictures {

static constexpr const char * BMP = "BMP";

aircache_picture decode_bmp(std::string_view file) {
    reader in(BMP, file);
    in.take(10);
    const size_t start  = in.le32();
    const size_t header = in.le32();
    if (header < 40 || header > 124) {
        refuse(BMP, "is of an old kind that is not read, send PNG or JPEG");
    }
    const int64_t nx = (int32_t) in.le32();
    const int64_t h  = (int32_t) in.le32();
    const int64_t ny = h < 0 ? -h : h; // below 0: from the top
    const int  planes      = in.le16();
    const int  depth       = in.le16();
    const auto compression = in.le32();
    in.take(12);
    size_t n_colors = in.le32();
    if (planes != 1 || compression != 0 || (depth != 1 && depth != 4 && depth != 8 && depth != 24 && depth != 32)) {
        refuse(BMP, "is compressed or of a rare depth, send PNG or JPEG");
    }
    check_size(BMP, nx, ny);

    std::string_view palette;
    if (depth <= 8) {
        n_colors = n_colors ? n_colors : 1 << depth;
        in.pos   = 14 + header;
        palette  = n_colors <= 256 ? in.take(4*n_colors) : std::string_view();
    }
    if (start < in.pos || start > file.size()) {
        refuse(BMP, "is cut or damaged: its pixels are missing");
    }
    in.pos = start;
    const size_t row_bytes = (nx*depth + 31)/32*4;
    if (row_bytes*ny > in.left()) {
        refuse(BMP, "is cut: it ends before the picture does");
    }
    auto res = make(BMP, nx, ny);
    for (int64_t i = 0; i < ny; ++i) {
        const int64_t y = h < 0 ? i : ny - 1 - i;
        const auto  row = in.take(row_bytes);
        uint8_t *    to = &res.rgb[y*nx*3];
        for (int64_t x = 0; x < nx; ++x, to += 3) {
            const int64_t bit = x*depth;
            std::string_view bgr;
            if (depth <= 8) {
                const size_t index = (uint8_t) row[bit/8] >> (8 - depth - bit % 8) & ((1 << depth) - 1);
                if (4*index + 4 > palette.size()) {
                    refuse(BMP, "is damaged: a pixel has a colour that is not in the palette");
                }
                bgr = palette.substr(4*index, 3);
            } else {
                bgr = row.substr(bit/8, 3);
            }
            for (int c = 0; c < 3; ++c) {
                to[c] = bgr[2 - c];
            }
        }
    }
    return res;
}

} // namespace aircache_pictures
