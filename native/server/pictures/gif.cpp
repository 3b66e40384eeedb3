#include "impl.h"

#include <array>

namespace aircache_pictures {

static constexpr const char * GIF = "GIF";

// the contents of the sub-blocks that follow
static std::string read_blocks(reader & in) {
    std::string res;
    while (const size_t n = in.u8()) {
        res += in.take(n);
    }
    return res;
}

// LZW; exactly n indices must come out. The result grows with what comes out: n is only what the header says.
static std::vector<uint8_t> unpack(const std::string & packed, int bits, size_t n) {
    const int clear = 1 << bits;
    std::array<uint16_t, 4096> prefix;
    std::array<uint8_t,  4096> last;
    std::vector<uint8_t> res;

    int size = bits + 1;
    int next = clear + 2;
    int previous = -1;
    uint32_t held = 0;
    int      n_held = 0;
    uint8_t  first = 0; // of the previous string
    std::vector<uint8_t> text; // backwards
    for (const uint8_t b : packed) {
        if (res.size() >= n) {
            break; // what follows the last pixel is not looked at
        }
        held |= (uint32_t) b << n_held;
        n_held += 8;
        while (n_held >= size && res.size() < n) {
            const int code = held & ((1 << size) - 1);
            held >>= size;
            n_held -= size;
            if (code == clear) {
                size = bits + 1;
                next = clear + 2;
                previous = -1;
                continue;
            }
            if (code == clear + 1 || code > next || (code == next && previous < 0) || (previous < 0 && code > clear)) {
                refuse(GIF, "is cut or damaged: parts of its pixels are missing");
            }
            text.clear();
            int at = code;
            if (code == next) { // a string that the encoder made just now: the previous one and its own first
                text.push_back(first);
                at = previous;
            }
            for (; at >= clear; at = prefix[at]) {
                text.push_back(last[at]);
            }
            text.push_back(first = at);
            res.insert(res.end(), text.rbegin(), text.rend());
            if (previous >= 0 && next < 4096) {
                prefix[next] = previous;
                last[next]   = first;
                ++next;
                size += next == 1 << size && size < 12;
            }
            previous = code;
        }
    }
    if (res.size() < n) {
        refuse(GIF, "is cut or damaged: parts of its pixels are missing");
    }
    return res;
}

aircache_picture decode_gif(std::string_view file) {
    reader in(GIF, file);
    in.take(6);
    const int nx = in.le16();
    const int ny = in.le16();
    const int screen = in.u8();
    in.take(2);
    std::string_view palette = screen & 128 ? in.take(3 << ((screen & 7) + 1)) : std::string_view();

    int clear = -1; // index of the transparent colour
    while (true) {
        const int what = in.u8();
        if (what == 0x21) {
            const int kind = in.u8();
            const auto data = read_blocks(in);
            if (kind == 0xf9 && data.size() >= 4) {
                clear = data[0] & 1 ? (uint8_t) data[3] : -1;
            }
        } else if (what == 0x2c) {
            break;
        } else {
            refuse(GIF, "is damaged or holds no picture");
        }
    }
    const int x0 = in.le16();
    const int y0 = in.le16();
    const int w  = in.le16();
    const int h  = in.le16();
    if (x0 || y0 || w != nx || h != ny) {
        refuse(GIF, "has a first frame of another size than the picture, send PNG or JPEG");
    }
    const int frame = in.u8();
    if (frame & 128) {
        palette = in.take(3 << ((frame & 7) + 1));
    }
    const int bits = in.u8();
    if (palette.empty() || bits < 1 || bits > 8) {
        refuse(GIF, "is damaged: it has no colours");
    }

    check_size(GIF, nx, ny);
    const auto indices = unpack(read_blocks(in), bits, (size_t) nx*ny);
    auto res = make(GIF, nx, ny);
    static const int LACED[4][2] = { { 0, 8 }, { 4, 8 }, { 2, 4 }, { 1, 2 } };
    const bool laced = frame & 64;
    size_t i = 0;
    for (int p = 0; p < (laced ? 4 : 1); ++p) {
        for (int64_t y = laced ? LACED[p][0] : 0; y < ny; y += laced ? LACED[p][1] : 1) {
            for (int64_t x = 0; x < nx; ++x, ++i) {
                if (3*indices[i] + 2u >= palette.size()) {
                    refuse(GIF, "is damaged: a pixel has a colour that is not in the palette");
                }
                put(&res.rgb[(y*nx + x)*3], (const uint8_t *) &palette[3*indices[i]], indices[i] == clear ? 0 : 255);
            }
        }
    }
    return res;
}

} // namespace aircache_pictures
