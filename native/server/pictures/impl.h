// What the decoders of the formats share.
#pragma once

#include "picture.h"

#include <algorithm>
#include <stdexcept>

namespace aircache_pictures {

[[noreturn]] void refuse(const char * format, const std::string & why); // "the JPEG file " why

// A file of which no byte beyond the end is ever read: it is cut, then.
class reader {
public:
    reader(const char * format, std::string_view data) : format(format), data(data) {}

    size_t pos = 0;

    size_t   left() const { return data.size() - std::min(pos, data.size()); }
    uint8_t  u8()   { return take(1)[0]; }
    uint16_t be16() { const uint16_t hi = u8(); return hi << 8 | u8(); }
    uint32_t be32() { const uint32_t hi = be16(); return hi << 16 | be16(); }
    uint16_t le16() { const uint16_t lo = u8(); return lo | u8() << 8; }
    uint32_t le32() { const uint32_t lo = le16(); return lo | (uint32_t) le16() << 16; }

    std::string_view take(size_t n) {
        if (pos > data.size() || n > left()) {
            refuse(format, "is cut: it ends before the picture does");
        }
        pos += n;
        return data.substr(pos - n, n);
    }

private:
    const char * format;
    std::string_view data;
};

// A header is not believed: nothing of the picture's size is allocated before the file is known to be long enough for it.
void check_size(const char * format, int64_t nx, int64_t ny);

aircache_picture make(const char * format, int64_t nx, int64_t ny); // of this size, which is checked; white

// src with this alpha on white
inline uint8_t on_white(uint8_t src, uint8_t alpha) {
    const uint32_t v = src*alpha + 255u*(255u - alpha) + 128u;
    return (v + (v >> 8)) >> 8;
}

inline void put(uint8_t * to, const uint8_t * rgb, uint8_t alpha = 255) {
    for (int c = 0; c < 3; ++c) {
        to[c] = on_white(rgb[c], alpha);
    }
}

// How the picture is to be turned, 1 to 8, as Pillow finds it. exif: with or without "Exif\0\0"; xmp: XML.
struct metadata {
    std::string exif;
    std::string xmp;

    int orientation() const;
};

aircache_picture turn(aircache_picture && in, int orientation);

// zlib data that unpacks to n bytes at most; empty: it is damaged, or holds more. Takes no more memory than so much packed
// data can fill, whatever n is.
std::vector<uint8_t> inflate(std::string_view packed, size_t n);

aircache_picture stb_jpeg(std::string_view file); // of files that decode_jpeg has looked through

aircache_picture decode_png (std::string_view file);
aircache_picture decode_jpeg(std::string_view file);
aircache_picture decode_gif (std::string_view file);
aircache_picture decode_bmp (std::string_view file);
aircache_picture decode_webp(std::string_view file);

} // namespace aircache_pictures
