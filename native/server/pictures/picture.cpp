#include "impl.h"

#include <algorithm>
#include <cstring>

namespace aircache_pictures {

[[noreturn]] void refuse(const char * format, const std::string & why) {
    throw std::invalid_argument("the " + std::string(format) + " file " + why);
}

void check_size(const char * format, int64_t nx, int64_t ny) {
    if (nx < 1 || ny < 1) {
        refuse(format, "has no pixels: " + std::to_string(nx) + " x " + std::to_string(ny));
    }
    if (ny > AIRCACHE_PICTURE_MAX_PIXELS/nx) {
        refuse(format, "has " + std::to_string(nx) + " x " + std::to_string(ny) + " pixels, allowed are " +
            std::to_string(AIRCACHE_PICTURE_MAX_PIXELS) + " in all: send it smaller");
    }
}

aircache_picture make(const char * format, int64_t nx, int64_t ny) {
    check_size(format, nx, ny);
    aircache_picture res;
    res.nx = nx;
    res.ny = ny;
    res.rgb.assign((size_t) nx*ny*3, 255);
    return res;
}

//
// orientation
//

// The TIFF tag in the file's first directory. found: it has one; false is returned when the data is damaged.
static bool tiff_orientation(std::string_view exif, int & found) {
    for (int i = 0; i < 2 && exif.substr(0, 6) == std::string_view("Exif\0\0", 6); ++i) {
        exif.remove_prefix(6);
    }
    if (exif.empty()) {
        return true;
    }
    try {
        reader in("EXIF", exif);
        const auto order  = in.take(4);
        const bool little = order[0] == 'I';
        if (order != std::string_view("II*\0", 4) && order != std::string_view("MM\0*", 4) &&
            order != std::string_view("II\0*", 4) && order != std::string_view("MM*\0", 4)) {
            return false;
        }
        const auto u16 = [&] { return little ? in.le16() : in.be16(); };
        const auto u32 = [&] { return little ? in.le32() : in.be32(); };

        in.pos = std::min<size_t>(u32(), exif.size());
        try {
            for (int n = u16(); n > 0; --n) {
                const int      tag   = u16();
                const int      type  = u16();
                const uint32_t count = u32();
                in.take(4); // whole, or it does not count
                if (tag == 0x0112 && count == 1 && (type == 3 || type == 4)) {
                    in.pos -= 4;
                    found = type == 3 ? u16() : u32();
                    in.pos += type == 3 ? 2 : 0;
                }
            }
        } catch (const std::invalid_argument &) {
            // cut: what stands before the cut counts
        }
        return true;
    } catch (const std::invalid_argument &) {
        return false;
    }
}

int metadata::orientation() const {
    int found = 0;
    if (!tiff_orientation(exif, found)) {
        return 1;
    }
    for (size_t i = 0; found == 0 && (i = xmp.find("tiff:Orientation", i)) != std::string::npos; ) {
        i += strlen("tiff:Orientation");
        const size_t skip = xmp.compare(i, 2, "=\"") == 0 ? 2 : xmp.compare(i, 1, ">") == 0 ? 1 : 0;
        if (skip && i + skip < xmp.size() && xmp[i + skip] >= '0' && xmp[i + skip] <= '9') {
            found = xmp[i + skip] - '0';
            break;
        }
    }
    return found >= 2 && found <= 8 ? found : 1;
}

aircache_picture turn(aircache_picture && in, int orientation) {
    if (orientation == 1) {
        return std::move(in);
    }
    const bool swap = orientation >= 5;
    const bool fx   = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8; // from the right
    const bool fy   = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7; // from below

    aircache_picture out;
    out.nx = swap ? in.ny : in.nx;
    out.ny = swap ? in.nx : in.ny;
    out.rgb.resize(in.rgb.size());
    uint8_t * to = out.rgb.data();
    for (int64_t y = 0; y < out.ny; ++y) {
        for (int64_t x = 0; x < out.nx; ++x, to += 3) {
            int64_t ix = swap ? y : x;
            int64_t iy = swap ? x : y;
            ix = fx ? in.nx - 1 - ix : ix;
            iy = fy ? in.ny - 1 - iy : iy;
            memcpy(to, &in.rgb[(iy*in.nx + ix)*3], 3);
        }
    }
    return out;
}

} // namespace aircache_pictures

//
// formats
//

using namespace aircache_pictures;

static bool begins(std::string_view file, std::string_view with, size_t at = 0) {
    return file.size() > at && file.substr(at, with.size()) == with;
}

// formats by how their files begin; decode: null where they are recognised in order to be refused
static const struct {
    const char *     name;
    std::string_view magic;
    size_t           at;
    aircache_picture (*decode)(std::string_view);
} FORMATS[] = {
    { "PNG",       std::string_view("\x89PNG\r\n\x1a\n", 8), 0, decode_png  },
    { "JPEG",      "\xff\xd8\xff",                           0, decode_jpeg },
    { "GIF",       "GIF87a",                                 0, decode_gif  },
    { "GIF",       "GIF89a",                                 0, decode_gif  },
    { "WebP",      "WEBP",                                   8, decode_webp },
    { "BMP",       "BM",                                     0, decode_bmp  },
    { "AVIF",      "ftypavi",                                4, nullptr },
    { "HEIF",      "ftyphei",                                4, nullptr },
    { "HEIF",      "ftyphev",                                4, nullptr },
    { "HEIF",      "ftypmif1",                               4, nullptr },
    { "TIFF",      std::string_view("II*\0", 4),             0, nullptr },
    { "TIFF",      std::string_view("MM\0*", 4),             0, nullptr },
    { "TIFF",      std::string_view("II+\0", 4),             0, nullptr },
    { "TIFF",      std::string_view("MM\0+", 4),             0, nullptr },
    { "JPEG 2000", std::string_view("\0\0\0\x0cjP  ", 8),    0, nullptr },
    { "JPEG 2000", "\xff\x4f\xff\x51",                       0, nullptr },
    { "JPEG XL",   "\xff\x0a",                               0, nullptr },
    { "JPEG XL",   std::string_view("\0\0\0\x0cJXL ", 8),    0, nullptr },
    { "Photoshop", "8BPS",                                   0, nullptr },
    { "ICO",       std::string_view("\0\0\1\0", 4),          0, nullptr },
    { "HDR",       "#?",                                     0, nullptr },
    { "DDS",       "DDS ",                                   0, nullptr },
    { "QOI",       "qoif",                                   0, nullptr },
    { "PNM",       "P1",                                     0, nullptr },
    { "PNM",       "P2",                                     0, nullptr },
    { "PNM",       "P3",                                     0, nullptr },
    { "PNM",       "P4",                                     0, nullptr },
    { "PNM",       "P5",                                     0, nullptr },
    { "PNM",       "P6",                                     0, nullptr },
    { "SVG",       "<svg",                                   0, nullptr },
    { "XML",       "<?xml",                                  0, nullptr },
    { "PDF",       "%PDF",                                   0, nullptr },
};

bool aircache_picture_is(std::string_view file) {
    return std::any_of(std::begin(FORMATS), std::end(FORMATS), [&](const auto & f) {
        return begins(file, f.magic, f.at);
    });
}

aircache_picture aircache_picture_decode(std::string_view file) {
    for (const auto & f : FORMATS) {
        if (begins(file, f.magic, f.at)) {
            if (!f.decode) {
                throw std::invalid_argument(std::string(f.name) + " files cannot be read, send PNG or JPEG");
            }
            return f.decode(file);
        }
    }
    throw std::invalid_argument("the image is in no known format, send PNG or JPEG");
}
