// Metadata of a LLaVA-OneVision projector: whatever the file says, it loads and encodes a picture, or is refused.
//
// Input: changes of a valid file's keys and tensors, then of its bytes; last the picture's size.
#include "fuzz.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <string>

// a tile of 2 x 2 patches of 4 pixels, one block
static const int N_EMBD = 16;
static const int N_FF   = 32;
static const int PATCH  = 4;
static const int TILE   = 8;
static const int N_OUT  = 64; // the text model's

static gguf_context * make_metadata() {
    gguf_context * res = gguf_init_empty();
    const float mean[] = { 0.5f, 0.4f, 0.3f };
    const int32_t grids[] = { TILE, 2*TILE, 2*TILE, TILE, 2*TILE, 2*TILE, 3*TILE, TILE };
    gguf_set_val_str (res, "general.architecture", "clip");
    gguf_set_val_bool(res, "clip.has_vision_encoder", true);
    gguf_set_val_str (res, "clip.projector_type", "llava_onevision");
    gguf_set_val_bool(res, "clip.use_gelu", true);
    gguf_set_val_u32 (res, "clip.vision.embedding_length", N_EMBD);
    gguf_set_val_u32 (res, "clip.vision.feed_forward_length", N_FF);
    gguf_set_val_u32 (res, "clip.vision.block_count", 1);
    gguf_set_val_u32 (res, "clip.vision.projection_dim", N_OUT);
    gguf_set_val_u32 (res, "clip.vision.attention.head_count", 2);
    gguf_set_val_f32 (res, "clip.vision.attention.layer_norm_epsilon", 1e-6f);
    gguf_set_val_u32 (res, "clip.vision.image_size", TILE);
    gguf_set_val_u32 (res, "clip.vision.patch_size", PATCH);
    gguf_set_val_u32 (res, "clip.vision.anyres_max_tiles", 4);
    gguf_set_arr_data(res, "clip.vision.image_mean", GGUF_TYPE_FLOAT32, mean, 3);
    gguf_set_arr_data(res, "clip.vision.image_std",  GGUF_TYPE_FLOAT32, mean, 3);
    gguf_set_arr_data(res, "clip.vision.image_grid_pinpoints", GGUF_TYPE_INT32, grids, 8);
    return res;
}

struct tensor_info { const char * name; int64_t ne[4]; };

static const tensor_info TENSORS[] = {
    { "v.patch_embd.weight",       { PATCH, PATCH, 3, N_EMBD } },
    { "v.patch_embd.bias",         { N_EMBD, 1, 1, 1 } },
    { "v.position_embd.weight",    { N_EMBD, (TILE/PATCH)*(TILE/PATCH), 1, 1 } },
    { "v.image_newline",           { N_OUT, 1, 1, 1 } },
    { "v.blk.0.attn_q.weight",     { N_EMBD, N_EMBD, 1, 1 } },
    { "v.blk.0.attn_q.bias",       { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.attn_k.weight",     { N_EMBD, N_EMBD, 1, 1 } },
    { "v.blk.0.attn_k.bias",       { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.attn_v.weight",     { N_EMBD, N_EMBD, 1, 1 } },
    { "v.blk.0.attn_v.bias",       { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.attn_out.weight",   { N_EMBD, N_EMBD, 1, 1 } },
    { "v.blk.0.attn_out.bias",     { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.ln1.weight",        { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.ln1.bias",          { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.ln2.weight",        { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.ln2.bias",          { N_EMBD, 1, 1, 1 } },
    { "v.blk.0.ffn_up.weight",     { N_EMBD, N_FF, 1, 1 } },
    { "v.blk.0.ffn_up.bias",       { N_FF, 1, 1, 1 } },
    { "v.blk.0.ffn_down.weight",   { N_FF, N_EMBD, 1, 1 } },
    { "v.blk.0.ffn_down.bias",     { N_EMBD, 1, 1, 1 } },
    { "mm.0.weight",               { N_EMBD, N_OUT, 1, 1 } },
    { "mm.0.bias",                 { N_OUT, 1, 1, 1 } },
    { "mm.2.weight",               { N_OUT, N_OUT, 1, 1 } },
    { "mm.2.bias",                 { N_OUT, 1, 1, 1 } },
};

static void change_key(gguf_context * meta, fuzz_input & in) {
    const std::string key = gguf_get_key(meta, in.byte() % gguf_get_n_kv(meta));
    switch (in.number(0, 6)) {
        case 0: gguf_set_val_u32 (meta, key.c_str(), in.byte() & 1 ? in.number(1, 64) : in.any_number()); break;
        case 1: gguf_set_val_i32 (meta, key.c_str(), in.any_number()); break;
        case 2: gguf_set_val_f32 (meta, key.c_str(), in.any_share());  break;
        case 3: gguf_set_val_bool(meta, key.c_str(), in.byte() & 1);   break;
        case 4: gguf_remove_key  (meta, key.c_str());                  break;
        case 5: gguf_set_val_str (meta, key.c_str(), in.byte() & 1 ? "" : "llava_onevision"); break;
        case 6: {
            std::vector<int32_t> values(in.number(0, 12));
            for (auto & v : values) { v = in.byte() & 1 ? TILE*in.number(0, 40) : in.any_number(); }
            gguf_set_arr_data(meta, key.c_str(), in.byte() & 1 ? GGUF_TYPE_INT32 : GGUF_TYPE_FLOAT32, values.data(), values.size());
        } break;
    }
}

// the file, tensors' data of zeros included
static std::vector<uint8_t> make_file(fuzz_input & in) {
    gguf_context * meta = make_metadata();
    for (int n = in.number(0, 3); n > 0; --n) {
        change_key(meta, in);
    }

    const int changed = in.number(0, 127); // most often the number of no tensor
    ggml_context * ctx = ggml_init({ 64*ggml_tensor_overhead(), nullptr, true });
    size_t n_bytes = 0;
    int i = 0;
    for (auto info : TENSORS) {
        ggml_type type = GGML_TYPE_F32;
        if (i++ == changed) {
            const int what = in.number(0, 5);
            if (what == 5) {
                continue; // missing
            }
            if (what == 4) {
                type = in.byte() & 1 ? GGML_TYPE_F16 : GGML_TYPE_I32;
            } else {
                info.ne[what] = in.byte() & 1 ? in.number(1, 80) : 1 << in.number(0, 7);
            }
        }
        ggml_tensor * tensor = ggml_new_tensor(ctx, type, 4, info.ne);
        ggml_set_name(tensor, info.name);
        gguf_add_tensor(meta, tensor);
        n_bytes += GGML_PAD(ggml_nbytes(tensor), 32);
    }

    std::vector<uint8_t> res(gguf_get_meta_size(meta));
    gguf_get_meta_data(meta, res.data());
    if (in.byte() & 1) {
        const uint8_t n_edits = in.number(1, 4);
        std::vector<uint8_t> bytes;
        for (int b = 0; b < 8*n_edits; ++b) {
            bytes.push_back(in.byte());
        }
        fuzz_input edits = { bytes.data(), bytes.size() };
        fuzz_edit(res, edits);
    }
    res.resize(res.size() + n_bytes);
    ggml_free(ctx);
    gguf_free(meta);
    return res;
}

static void encode(mtmd_context * vision, int width, int height) {
    const std::vector<uint8_t> rgb((size_t) width*height*3, 100);
    mtmd_bitmap * bitmap = mtmd_bitmap_init(width, height, rgb.data());
    const mtmd_bitmap * bitmaps[] = { bitmap };
    const std::string prompt = std::string("a") + mtmd_get_marker(vision) + "b";
    const mtmd_input_text text = { prompt.c_str(), prompt.size(), /*.add_special =*/ false, /*.parse_special =*/ true };

    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    if (mtmd_tokenize(vision, chunks, &text, bitmaps, 1) == 0) {
        for (size_t i = 0; i < mtmd_input_chunks_size(chunks); ++i) {
            const auto * chunk = mtmd_input_chunks_get(chunks, i);
            const size_t n = mtmd_input_chunk_get_n_tokens(chunk);
            // a picture of more tokens is a matter of time, not of safety
            if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_IMAGE && n < 4096 && mtmd_encode_chunk(vision, chunk) == 0) {
                const float * embd = mtmd_get_output_embd(vision);
                volatile float sum = 0; // ASan sees a buffer that is too short
                for (size_t j = 0; j < n*N_OUT; ++j) {
                    sum = sum + embd[j];
                }
            }
        }
    }
    mtmd_input_chunks_free(chunks);
    mtmd_bitmap_free(bitmap);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static llama_model * model = fuzz_model();
    static const bool quiet = (mtmd_helper_log_set([](ggml_log_level, const char *, void *) {}, nullptr), true);
    (void) quiet;

    fuzz_input in = { data, size };
    const auto bytes = make_file(in);

    static const int fd = memfd_create("mmproj.gguf", 0);
    REQUIRE(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, bytes.data(), bytes.size(), 0) == (ssize_t) bytes.size(), "memfd");
    const std::string path = "/proc/self/fd/" + std::to_string(fd);

    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu       = false;
    params.n_threads     = 1;
    params.print_timings = false;
    params.warmup        = false;
    mtmd_context * vision = mtmd_init_from_file(path.c_str(), model, params);
    if (vision) {
        encode(vision, in.number(1, 100), in.number(1, 100));
        mtmd_free(vision);
    }
    return 0;
}
