// Logits of one question about one image, through llama.cpp's public API alone: runs on a patched and an unpatched build.
//
//   logits-dump MODEL.gguf MMPROJ.gguf IMAGE.ppm PROMPT CACHE_TYPE fa|nofa N_TOKENS OUT N_THREADS
//
// OUT: 1 + N_TOKENS rows of n_vocab floats, behind the prompt and behind each greedy token. Prints the files of the
// libraries that were really loaded, a line each. Driven by tests/engine/test_bit_identity.py.

#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #cond); exit(1); } } while (0)

template <typename F>
static void print_origin(F * function) {
    Dl_info info;
    CHECK(dladdr(reinterpret_cast<const void *>(function), &info));
    printf("%s\n", info.dli_fname);
}

static mtmd_bitmap * read_ppm(const char * path) {
    FILE * file = fopen(path, "rb");
    CHECK(file);
    unsigned width, height, most;
    CHECK(fscanf(file, "P6 %u %u %u", &width, &height, &most) == 3 && most == 255);
    fgetc(file);
    std::vector<unsigned char> rgb((size_t) width*height*3);
    CHECK(fread(rgb.data(), 1, rgb.size(), file) == rgb.size());
    fclose(file);
    return mtmd_bitmap_init(width, height, rgb.data());
}

static ggml_type type_by_name(const char * name) {
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        const char * known = ggml_type_name((ggml_type) t);
        if (known && strcmp(known, name) == 0) {
            return (ggml_type) t;
        }
    }
    fprintf(stderr, "no cache type %s\n", name);
    exit(2);
}

int main(int argc, char ** argv) {
    CHECK(argc == 10);
    const ggml_type type      = type_by_name(argv[5]);
    const bool      flash     = strcmp(argv[6], "fa") == 0;
    const auto      fa        = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    const int       n_tokens  = atoi(argv[7]);
    const int       n_threads = atoi(argv[9]);

    print_origin(llama_decode);
    print_origin(mtmd_encode_chunk);
    print_origin(ggml_backend_load_all);

    const auto on_log = [](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    };
    llama_log_set(on_log, nullptr);
    mtmd_helper_log_set(on_log, nullptr);
    ggml_backend_load_all();
    llama_backend_init();

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    CHECK(model);

    // as the engine sets them (native/engine/model.cpp)
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 1024;
    params.n_batch         = 2048;
    params.n_ubatch        = 512;
    params.n_seq_max       = 1;
    params.n_outputs_max   = 1;
    params.n_threads       = n_threads;
    params.n_threads_batch = n_threads;
    params.flash_attn_type = fa;
    params.type_k          = type;
    params.type_v          = type;
    llama_context * ctx = llama_init_from_model(model, params);
    CHECK(ctx);

    mtmd_context_params vparams = mtmd_context_params_default();
    vparams.n_threads       = n_threads;
    vparams.print_timings   = false;
    vparams.warmup          = false;
    vparams.flash_attn_type = fa;
    mtmd_context * vision = mtmd_init_from_file(argv[2], model, vparams);
    CHECK(vision);

    const mtmd_bitmap * bitmap = read_ppm(argv[3]);
    const mtmd_input_text text = { argv[4], strlen(argv[4]), /*.add_special =*/ true, /*.parse_special =*/ true };
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    CHECK(mtmd_tokenize(vision, chunks, &text, &bitmap, 1) == 0);

    FILE * out = fopen(argv[8], "wb");
    CHECK(out);
    const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    llama_pos pos = 0;
    CHECK(mtmd_helper_eval_chunks(vision, ctx, chunks, 0, 0, params.n_batch, true, &pos) == 0);
    for (int i = 0; ; ++i, ++pos) {
        const float * logits = llama_get_logits_ith(ctx, -1);
        CHECK(logits && fwrite(logits, sizeof(float), n_vocab, out) == n_vocab);
        if (i == n_tokens) {
            break;
        }
        llama_token token  = std::max_element(logits, logits + n_vocab) - logits;
        llama_batch batch  = llama_batch_get_one(&token, 1);
        batch.pos          = &pos;
        CHECK(llama_decode(ctx, batch) == 0);
    }
    CHECK(fclose(out) == 0);

    mtmd_input_chunks_free(chunks);
    mtmd_bitmap_free(const_cast<mtmd_bitmap *>(bitmap));
    mtmd_free(vision);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
