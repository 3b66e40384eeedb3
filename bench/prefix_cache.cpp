// llama.cpp's own way to ask again, for bench/again.py: a full cache, to which a second question is appended. It is built against
// the unpatched library by the script. Tokens stand for an image's embeddings, which cost the same behind the encoder.
//
//   prefix_cache MODEL.gguf N_PROMPT N_ANSWER N_QUESTION N_THREADS  ->  two lines: ms and CPU ms to the first token
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

static double cpu_ms() { return 1000.0*clock()/CLOCKS_PER_SEC; }

int main(int argc, char ** argv) {
    if (argc != 6) {
        return 2;
    }
    const int n_prompt = atoi(argv[2]), n_answer = atoi(argv[3]), n_question = atoi(argv[4]), n_threads = atoi(argv[5]);

    llama_backend_init();
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    auto params = llama_context_default_params();
    params.n_ctx     = n_prompt + n_answer + n_question + 64;
    params.n_threads = params.n_threads_batch = n_threads;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        return 1;
    }

    int pos = 0;
    const auto decode = [&](int n) {
        for (int i = 0; i < n; ) {
            const int m = n - i < 2048 ? n - i : 2048;
            std::vector<llama_token> tokens(m, 100 + pos % 50);
            if (llama_decode(ctx, llama_batch_get_one(tokens.data(), m)) != 0) {
                exit(1);
            }
            i   += m;
            pos += m;
        }
        llama_synchronize(ctx);
    };
    const auto timed = [&](int n) {
        const auto   start = std::chrono::steady_clock::now();
        const double cpu   = cpu_ms();
        decode(n);
        printf("%.1f %.1f\n", std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count(), cpu_ms() - cpu);
    };

    timed(n_prompt);
    for (int i = 0; i < n_answer; ++i) {
        decode(1);
    }
    timed(n_question);
    llama_free(ctx);
    llama_model_free(model);
}
