// What libmtmd makes of pictures for a LLaVA-OneVision or LLaVA projector, before and without its tower.
//
//   onevision-probe MMPROJ.gguf tokens              stdin: lines "WIDTH HEIGHT"; prints a picture's tokens for each
//   onevision-probe MMPROJ.gguf single|several|frame WIDTH HEIGHT
//                                                   stdin: RGB bytes; writes the tiles, [rows, tile, 3] floats
//   onevision-probe MMPROJ.gguf fixed WIDTH HEIGHT  LLaVA's: writes [tile, tile, 3] bytes
//
// Driven by tests/engine/test_onevision.py and test_picture_sizes.py.

#include "clip.h"
#include "onevision.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #cond); exit(1); } } while (0)

static clip_image_f32 preprocess(const clip_hparams & hparams, int width, int height, const std::vector<uint8_t> & rgb, onevision_kind kind) {
    clip_image_u8 img;
    img.set_size({ width, height }, rgb.empty());
    img.cpy_buf(rgb);
    auto out = onevision_preprocess(hparams, img, kind);
    CHECK(out.entries.size() == 1);
    return std::move(out.entries[0]);
}

int main(int argc, char ** argv) {
    CHECK(argc == 3 || argc == 5);

    clip_context_params params = {};
    params.flash_attn_type = CLIP_FLASH_ATTN_TYPE_DISABLED;
    clip_ctx * ctx = clip_init(argv[1], params).ctx_v;
    CHECK(ctx);
    const clip_hparams & hparams = *clip_get_hparams(ctx);

    if (strcmp(argv[2], "tokens") == 0) {
        int width;
        int height;
        while (scanf("%d %d", &width, &height) == 2) {
            const auto img = preprocess(hparams, width, height, {}, ONEVISION_SINGLE);
            printf("%d\n", clip_n_output_tokens(ctx, &img));
        }
    } else {
        CHECK(argc == 5);
        const int width  = atoi(argv[3]);
        const int height = atoi(argv[4]);
        const auto kind = strcmp(argv[2], "several") == 0 ? ONEVISION_SEVERAL : strcmp(argv[2], "frame") == 0 ? ONEVISION_FRAME : ONEVISION_SINGLE;

        std::vector<uint8_t> rgb((size_t) width*height*3);
        CHECK(fread(rgb.data(), 1, rgb.size(), stdin) == rgb.size());

        if (strcmp(argv[2], "fixed") == 0) {
            clip_image_u8 img;
            img.set_size({ width, height }, false);
            img.cpy_buf(rgb);
            const auto out = mtmd_image_preprocessor_fixed_size(ctx).preprocess(img);
            CHECK(out.entries.size() == 1);
            const auto & pixels = out.entries[0].get_ro_buf();
            for (size_t i = 0; i < pixels.size(); ++i) {
                putchar((int) std::lround((pixels[i]*hparams.image_std[i % 3] + hparams.image_mean[i % 3])*255.0f));
            }
            clip_free(ctx);
            return 0;
        }
        CHECK(clip_get_projector_type(ctx) == PROJECTOR_TYPE_LLAVA_ONEVISION);
        const auto img = preprocess(hparams, width, height, rgb, kind);
        const auto & pixels = img.get_ro_buf();
        CHECK(fwrite(pixels.data(), sizeof(float), pixels.size(), stdout) == pixels.size());
    }
    clip_free(ctx);
    return 0;
}
