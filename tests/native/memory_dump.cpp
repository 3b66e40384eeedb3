// What a context costs its process, through llama.cpp's public API alone: runs on a patched and an unpatched build.
//
//   memory-dump MODEL.gguf N_SEQ N_CELLS CACHE_TYPE
//
// Makes a context of N_SEQ sequences of N_CELLS each, decodes a token of every one, and prints the library that was really loaded and, in
// bytes, what the process holds in RAM before the context, after it was made, and at the end. Linux. Driven by bench/memory.py.

#include "llama-cpp.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #cond); exit(1); } } while (0)

static void print_memory(const char * when) {
    std::ifstream in("/proc/self/status");
    for (std::string line; std::getline(in, line); ) {
        if (line.rfind("VmRSS:", 0) == 0) {
            printf("%s %lld\n", when, 1024*atoll(line.c_str() + 6));
        }
    }
}

int main(int argc, char ** argv) {
    CHECK(argc == 5);

    ggml_backend_load_all();
    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) { fputs(text, stderr); } }, nullptr);

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = 0;
    llama_model_ptr model(llama_model_load_from_file(argv[1], mparams));
    CHECK(model);

    const int n_seq = atoi(argv[2]);

    llama_context_params params = llama_context_default_params();
    params.n_ctx           = n_seq*atoi(argv[3]);
    params.n_seq_max       = n_seq;
    params.n_batch         = params.n_ubatch = 64;
    params.n_threads       = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        if (strcmp(argv[4], ggml_type_name(type)) == 0) {
            params.type_k = params.type_v = type;
        }
    }

    Dl_info info;
    CHECK(dladdr(reinterpret_cast<const void *>(&llama_decode), &info));
    printf("library %s\n", info.dli_fname);

    print_memory("model");
    llama_context_ptr ctx(llama_init_from_model(model.get(), params));
    CHECK(ctx);
    print_memory("context");

    llama_batch batch = llama_batch_init(n_seq, 0, 1);
    for (int i = 0; i < n_seq; ++i) {
        batch.token[i]     = 1;
        batch.pos[i]       = 0;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = i;
        batch.logits[i]    = i + 1 == n_seq;
    }
    batch.n_tokens = n_seq;
    CHECK(llama_decode(ctx.get(), batch) == 0);
    llama_batch_free(batch);
    print_memory("end");
}
