// A file's bytes through the decoders of llama-server's pictures: pixels of the said size, or a refusal that a user can read.
#include "fuzz.h"

#include "pictures/picture.h"

#include <cstring>
#include <stdexcept>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::vector<char> file(data, data + size); // exactly as large as the file, so that ASan sees every byte read behind it
    try {
        const auto picture = aircache_picture_decode({ file.data(), file.size() });
        REQUIRE(picture.nx > 0 && picture.ny > 0 && picture.rgb.size() == (size_t) picture.nx*picture.ny*3,
                "%d x %d pixels in %zu bytes", picture.nx, picture.ny, picture.rgb.size());
    } catch (const std::invalid_argument & e) {
        REQUIRE(strlen(e.what()) > 10 && strlen(e.what()) < 600, "message \"%s\"", e.what());
    }
    return 0;
}
