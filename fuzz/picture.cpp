// A file's bytes through the decoder of llama-server's pictures: pixels or a refusal, in memory that the size explains.
#include "fuzz.h"

#include "mtmd-helper.h"
#include "mtmd.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const bool quiet = (mtmd_helper_log_set([](ggml_log_level, const char *, void *) {}, nullptr), true);
    (void) quiet;

    const auto res = mtmd_helper_bitmap_init_from_buf(nullptr, data, size, false, mtmd_helper_init_opt_default());
    if (res.bitmap) {
        const size_t n_bytes = mtmd_bitmap_get_n_bytes(res.bitmap);
        const uint8_t * rgb  = mtmd_bitmap_get_data(res.bitmap);
        volatile unsigned sum = 0; // ASan sees a buffer that is too short
        for (size_t i = 0; i < n_bytes; i += 61) {
            sum = sum + rgb[i];
        }
        mtmd_bitmap_free(res.bitmap);
    }
    return 0;
}
