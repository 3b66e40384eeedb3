#include "impl.h"

#ifdef PAC_WEBP

#include <webp/demux.h>

#include <memory>

namespace aircache_pictures {

static constexpr const char * WEBP = "WebP";

// A lossless file of one colour can have any size in some dozens of bytes, and libwebp needs 16 to 24 for each pixel. So
// many pixels are allowed whatever the file's length is, and so many for each of its bytes: photographs have less than 100.
static constexpr int64_t PIXELS_ALWAYS   = 1 << 20;
static constexpr int64_t PIXELS_PER_BYTE = 8192;

static std::string chunk(const WebPDemuxer * file, const char * name) {
    WebPChunkIterator it;
    std::string res;
    if (WebPDemuxGetChunk(file, name, 1, &it)) {
        res.assign((const char *) it.chunk.bytes, it.chunk.size);
    }
    WebPDemuxReleaseChunkIterator(&it);
    return res;
}

aircache_picture decode_webp(std::string_view file) {
    const WebPData data = { (const uint8_t *) file.data(), file.size() };
    const std::unique_ptr<WebPDemuxer, void (*)(WebPDemuxer *)> demux(WebPDemux(&data), WebPDemuxDelete);
    if (!demux) {
        refuse(WEBP, "is cut or damaged");
    }
    const int64_t nx = WebPDemuxGetI(demux.get(), WEBP_FF_CANVAS_WIDTH);
    const int64_t ny = WebPDemuxGetI(demux.get(), WEBP_FF_CANVAS_HEIGHT);
    check_size(WEBP, nx, ny);
    if (nx*ny > PIXELS_ALWAYS + PIXELS_PER_BYTE*(int64_t) file.size()) {
        refuse(WEBP, "has " + std::to_string(nx) + " x " + std::to_string(ny) + " pixels in only " + std::to_string(file.size()) +
            " bytes, send PNG or JPEG");
    }

    const std::unique_ptr<WebPAnimDecoder, void (*)(WebPAnimDecoder *)> decoder(WebPAnimDecoderNew(&data, nullptr), WebPAnimDecoderDelete);
    uint8_t * rgba = nullptr;
    int       time = 0;
    if (!decoder || !WebPAnimDecoderGetNext(decoder.get(), &rgba, &time)) {
        refuse(WEBP, "is cut or damaged");
    }
    auto res = make(WEBP, nx, ny);
    for (size_t i = 0; i < res.rgb.size()/3; ++i) {
        put(&res.rgb[3*i], rgba + 4*i, rgba[4*i + 3]);
    }
    metadata meta;
    meta.exif = chunk(demux.get(), "EXIF");
    meta.xmp  = chunk(demux.get(), "XMP ");
    return turn(std::move(res), meta.orientation());
}

} // namespace aircache_pictures

#else

namespace aircache_pictures {

aircache_picture decode_webp(std::string_view) {
    throw std::invalid_argument("WebP files are not read by this build (libwebp was not found), send PNG or JPEG");
}

} // namespace aircache_pictures

#endif
