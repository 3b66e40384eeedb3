#include "impl.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

namespace aircache_pictures {

static constexpr const char * PNG = "PNG";
static constexpr size_t TEXT_MAX = 1 << 20; // of a compressed text, as in Pillow

static uint32_t crc32(std::string_view data) {
    static const auto table = [] {
        std::array<uint32_t, 256> res;
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t c = i;
            for (int k = 0; k < 8; ++k) {
                c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
            }
            res[i] = c;
        }
        return res;
    }();
    uint32_t crc = ~0u;
    for (const uint8_t b : data) {
        crc = table[(crc ^ b) & 255] ^ (crc >> 8);
    }
    return ~crc;
}

static uint32_t adler32(const std::vector<uint8_t> & data) {
    uint32_t a = 1;
    uint32_t b = 0;
    for (size_t i = 0; i < data.size(); ) {
        for (const size_t end = std::min(data.size(), i + 4096); i < end; ++i) {
            a += data[i];
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

namespace {

struct image {
    int64_t nx, ny;
    int depth, color;
    bool interlaced;
    std::vector<uint8_t> palette; // RGBA
    bool has_key = false;         // one colour is transparent
    uint8_t key[3];
    std::string packed;           // IDAT
    metadata meta;

    int    channels()         const { return color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1; }
    size_t row_bytes(size_t n) const { return (n*channels()*depth + 7)/8; }
};

} // namespace

// A text chunk; only the orientation of the picture is of interest in it.
static void read_text(image & im, std::string_view type, std::string_view data) {
    const size_t end = data.find('\0');
    if (end == std::string_view::npos) {
        return;
    }
    const auto key = data.substr(0, end);
    data.remove_prefix(end + 1);
    const bool xmp = key == "XML:com.adobe.xmp";
    if (!xmp && key != "Raw profile type exif") {
        return;
    }

    bool packed = type == "zTXt";
    if (type == "iTXt") {
        packed = data.size() > 2 && data[0];
        data   = data.size() > 2 ? data.substr(2) : std::string_view();
        for (int i = 0; i < 2; ++i) { // language, translated key
            const size_t n = data.find('\0');
            if (n == std::string_view::npos) {
                return;
            }
            data.remove_prefix(n + 1);
        }
    } else if (packed) {
        data = data.substr(std::min<size_t>(1, data.size()));
    }
    std::string text(data);
    if (packed) {
        const auto plain = inflate(data, TEXT_MAX);
        text.assign(plain.begin(), plain.end());
    }
    if (xmp) {
        im.meta.xmp = text;
        return;
    }
    // ImageMagick's way of keeping EXIF: an empty line, "exif", the size, then hexadecimal lines
    size_t from = 0;
    for (int i = 0; i < 3 && from != std::string::npos; ++i) {
        from = text.find('\n', from);
        from += from != std::string::npos;
    }
    if (from == std::string::npos || !im.meta.exif.empty()) {
        return;
    }
    std::string hex;
    std::copy_if(text.begin() + from, text.end(), std::back_inserter(hex), [](unsigned char c) { return isxdigit(c); });
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        im.meta.exif += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
    }
}

static image read_chunks(std::string_view file) {
    image im = {};
    reader in(PNG, file);
    in.take(8);
    bool header   = false;
    bool idat     = false; // seen
    bool idat_end = false; // and something behind it
    while (true) {
        const size_t n = in.be32();
        if (n > INT32_MAX) {
            refuse(PNG, "is damaged: the size of a chunk is impossible");
        }
        const auto checked = in.take(n + 4);
        const auto type    = checked.substr(0, 4);
        const auto data    = checked.substr(4);
        if (in.be32() != crc32(checked)) {
            refuse(PNG, "is damaged: a checksum is wrong");
        }
        if (!header && type != "IHDR") {
            refuse(PNG, "is damaged: its header is missing");
        }
        idat_end |= idat && type != "IDAT";
        reader c(PNG, data);
        if (type == "IHDR") {
            if (header) {
                refuse(PNG, "is damaged: it has two headers");
            }
            header   = true;
            im.nx    = c.be32();
            im.ny    = c.be32();
            im.depth = c.u8();
            im.color = c.u8();
            const bool plain = c.u8() == 0 && c.u8() == 0;
            const int  lace  = c.u8();
            const bool depth = im.depth == 8 || im.depth == 16 || (im.depth > 0 && im.depth < 8 && 8 % im.depth == 0);
            const bool color = im.color == 0 || (im.color == 3 && im.depth <= 8) ||
                ((im.color == 2 || im.color == 4 || im.color == 6) && im.depth >= 8);
            if (!plain || lace > 1 || !depth || !color) {
                refuse(PNG, "is damaged: its header makes no sense");
            }
            im.interlaced = lace == 1;
            check_size(PNG, im.nx, im.ny);
        } else if (type == "PLTE" || type == "tRNS") {
            if (idat) {
                refuse(PNG, "is damaged: its colours stand behind its pixels");
            }
            if (type == "PLTE" && im.color == 3) {
                if (data.size() % 3 || data.empty() || data.size() > 3*256) {
                    refuse(PNG, "is damaged: its palette has an impossible size");
                }
                im.palette.clear();
                while (c.left()) {
                    for (int k = 0; k < 3; ++k) {
                        im.palette.push_back(c.u8());
                    }
                    im.palette.push_back(255);
                }
            } else if (type == "tRNS" && im.color == 3) {
                for (size_t i = 0; i < data.size() && 4*i + 3 < im.palette.size(); ++i) {
                    im.palette[4*i + 3] = data[i];
                }
            } else if (type == "tRNS" && (im.color == 2 || (im.color == 0 && im.depth < 16))) {
                im.has_key = true; // 16 bits in the file; Pillow takes the lower 8, unscaled
                for (int k = 0; k < 3; ++k) {
                    const int value = k == 0 || im.color == 2 ? c.be16() : 0;
                    im.key[k] = im.color == 2 ? value : k > 0 ? im.key[0] : im.depth > 1 ? value : value ? 255 : 0;
                }
            }
        } else if (type == "IDAT") {
            if (idat_end) {
                refuse(PNG, "is damaged: its pixels are not in one piece");
            }
            idat = true;
            im.packed += data;
        } else if (type == "fcTL" && !idat) {
            c.be32();
            if (c.be32() != im.nx || c.be32() != im.ny) {
                refuse(PNG, "moves, and its first frame is smaller than the picture: send a still one");
            }
        } else if (type == "eXIf") {
            im.meta.exif = data;
        } else if (type == "tEXt" || type == "zTXt" || type == "iTXt") {
            read_text(im, type, data);
        } else if (type == "IEND") {
            break;
        } else if (!(type[0] & 32) && type[0] >= 'A' && type[0] <= 'Z') {
            refuse(PNG, "has a chunk that is not known and must not be left out");
        }
    }
    if (!idat || (im.color == 3 && im.palette.empty())) {
        refuse(PNG, "is damaged: it has no pixels, or no palette");
    }
    return im;
}

// Undoes the filters of a pass, in place: rows of n_bytes, each behind the byte that names its filter.
static void unfilter(uint8_t * raw, size_t n_rows, size_t n_bytes, size_t bpp) {
    const std::vector<uint8_t> zeros(n_bytes);
    const uint8_t * up = zeros.data();
    for (size_t y = 0; y < n_rows; ++y) {
        const int filter = raw[y*(n_bytes + 1)];
        uint8_t * row    = raw + y*(n_bytes + 1) + 1;
        if (filter > 4) {
            refuse(PNG, "is damaged: a filter is unknown");
        }
        for (size_t i = 0; filter && i < n_bytes; ++i) {
            const int a = i >= bpp ? row[i - bpp] : 0;
            const int b = up[i];
            const int c = i >= bpp ? up[i - bpp] : 0;
            const int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2*c);
            row[i] += filter == 1 ? a : filter == 2 ? b : filter == 3 ? (a + b)/2 : pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
        }
        up = row;
    }
}

static void put_pixel(const image & im, const uint8_t * row, size_t x, uint8_t * to) {
    const auto sample = [&](int k) { // 8 bits of it, or the palette's index
        if (im.depth >= 8) {
            return row[(x*im.channels() + k)*im.depth/8];
        }
        const size_t  bit = x*im.depth;
        const uint8_t v   = row[bit/8] >> (8 - im.depth - bit % 8) & ((1 << im.depth) - 1);
        return (uint8_t) (im.color == 3 ? v : v*255/((1 << im.depth) - 1));
    };
    if (im.color == 3) {
        const size_t i = sample(0);
        if (4*i >= im.palette.size()) {
            refuse(PNG, "is damaged: a pixel has a colour that is not in the palette");
        }
        put(to, &im.palette[4*i], im.palette[4*i + 3]);
        return;
    }
    uint8_t rgb[3];
    if (im.color == 0 && im.depth == 16) {
        rgb[0] = rgb[1] = rgb[2] = ((row[2*x] << 8 | row[2*x + 1]) + 128)/257;
    } else {
        const bool grey = im.color == 0 || im.color == 4;
        for (int k = 0; k < 3; ++k) {
            rgb[k] = sample(grey ? 0 : k);
        }
    }
    const bool clear = im.has_key && memcmp(rgb, im.key, 3) == 0;
    put(to, rgb, clear ? 0 : im.color == 4 ? sample(1) : im.color == 6 ? sample(3) : 255);
}

aircache_picture decode_png(std::string_view file) {
    const image im = read_chunks(file);

    static const int WHOLE[1][4] = { { 0, 0, 1, 1 } };
    static const int ADAM7[7][4] = { // x0, y0, dx, dy
        { 0, 0, 8, 8 }, { 4, 0, 8, 8 }, { 0, 4, 4, 8 }, { 2, 0, 4, 4 }, { 0, 2, 2, 4 }, { 1, 0, 2, 2 }, { 0, 1, 1, 2 },
    };
    const auto * passes   = im.interlaced ? ADAM7 : WHOLE;
    const int    n_passes = im.interlaced ? 7 : 1;
    const auto   columns  = [&](int p) { return (im.nx - passes[p][0] + passes[p][2] - 1)/passes[p][2]; };
    const auto   rows     = [&](int p) { return columns(p) > 0 ? (im.ny - passes[p][1] + passes[p][3] - 1)/passes[p][3] : 0; };

    size_t n_raw = 0;
    for (int p = 0; p < n_passes; ++p) {
        n_raw += rows(p)*(im.row_bytes(columns(p)) + 1);
    }
    if (n_raw > 4*AIRCACHE_PICTURE_MAX_PIXELS) {
        refuse(PNG, "is too large with its " + std::to_string(im.depth) + " bits per channel: send it with 8, or smaller");
    }
    auto raw = inflate(im.packed, n_raw);
    if (raw.size() != n_raw || im.packed.size() < 4 || reader(PNG, im.packed.substr(im.packed.size() - 4)).be32() != adler32(raw)) {
        refuse(PNG, "is damaged or cut: its pixels cannot be unpacked");
    }

    auto res = make(PNG, im.nx, im.ny);
    uint8_t * pass = raw.data();
    for (int p = 0; p < n_passes; ++p) {
        const size_t n_bytes = im.row_bytes(columns(p));
        unfilter(pass, rows(p), n_bytes, std::max(1, im.channels()*im.depth/8));
        for (int64_t y = 0; y < rows(p); ++y, pass += n_bytes + 1) {
            for (int64_t x = 0; x < columns(p); ++x) {
                const int64_t tx = passes[p][0] + x*passes[p][2];
                const int64_t ty = passes[p][1] + y*passes[p][3];
                put_pixel(im, pass + 1, x, &res.rgb[(ty*im.nx + tx)*3]);
            }
        }
    }
    return turn(std::move(res), im.meta.orientation());
}

} // namespace aircache_pictures
