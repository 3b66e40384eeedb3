// Files of pictures to pixels, as the Python package reads them (pyaircache/images.py): upright (EXIF, XMP), 8 bits per
// channel, transparency on white. What cannot be read in the same way is refused, above all files that are cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct aircache_picture {
    int32_t nx = 0;
    int32_t ny = 0;
    std::vector<uint8_t> rgb; // [ny][nx][3]
};

constexpr int64_t AIRCACHE_PICTURE_MAX_PIXELS = 1 << 26; // 8192 x 8192; the decoders need 6 to 9 bytes for each

// Throws std::invalid_argument with a message for the user. Reads PNG, JPEG, GIF, BMP and, where the build found libwebp,
// WebP; of moving ones the first frame.
aircache_picture aircache_picture_decode(std::string_view file);

// Does the file begin like a picture, of whatever format? (Others may be sound or a film.)
bool aircache_picture_is(std::string_view file);
