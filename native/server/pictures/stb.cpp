// stb_image, of which only the JPEG decoder and the unpacking of zlib data are used: what it is lenient about is refused
// by those who call it.
#include "impl.h"

#include <climits>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_SUPPORT_ZLIB
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function" // of what it can do a part is used
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
#include <stb/stb_image.h>

namespace aircache_pictures {

std::vector<uint8_t> inflate(std::string_view packed, size_t n) {
    if (packed.size() > INT_MAX || n > INT_MAX) {
        return {};
    }
    n = std::min(n, 1032*packed.size()); // 258 bytes from 2 bits are the most that deflate gives
    std::vector<uint8_t> res(n);
    const int got = stbi_zlib_decode_buffer((char *) res.data(), n, packed.data(), packed.size());
    res.resize(got < 0 ? 0 : got);
    return res;
}

aircache_picture stb_jpeg(std::string_view file) {
    int nx = 0, ny = 0, nc = 0;
    stbi_uc * data = file.size() > INT_MAX ? nullptr :
        stbi_load_from_memory((const stbi_uc *) file.data(), file.size(), &nx, &ny, &nc, 3);
    if (!data) {
        refuse("JPEG", "cannot be read (" + std::string(file.size() > INT_MAX ? "too long" : stbi_failure_reason()) + ")");
    }
    aircache_picture res;
    res.nx = nx;
    res.ny = ny;
    try {
        res.rgb.assign(data, data + (size_t) nx*ny*3);
    } catch (...) {
        stbi_image_free(data);
        throw;
    }
    stbi_image_free(data);
    return res;
}

} // namespace aircache_pictures
