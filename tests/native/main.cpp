// test-aircache MODEL.gguf CASE [CACHE_TYPE] [fa|nofa] [threads=N] [rpc=ADDRESS]     exit code 0: passed
//
// Driven by tests/native/test_native.py, one process a case.
#include "harness.h"

// each of the file of its name
extern cases cases_of_aircache;
extern cases cases_of_archive;
extern cases cases_of_faults;
extern cases cases_of_grammars;
extern cases cases_of_memory;
extern cases cases_of_observe;
extern cases cases_of_ranges;
extern cases cases_of_refusals;
extern cases cases_of_states;
extern cases cases_of_synthetic;

static const char * value_of(const char * arg, const char * name) {
    const size_t n = strlen(name);
    return strncmp(arg, name, n) == 0 && arg[n] == '=' ? arg + n + 1 : nullptr;
}

int main(int argc, char ** argv) {
    cases all;
    for (const auto * some : {
            &cases_of_aircache,
            &cases_of_archive,
            &cases_of_faults,
            &cases_of_grammars,
            &cases_of_memory,
            &cases_of_observe,
            &cases_of_ranges,
            &cases_of_refusals,
            &cases_of_states,
            &cases_of_synthetic,
        }) {
        all.insert(some->begin(), some->end());
    }

    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (const auto & [name, fn] : all) {
            printf("%s\n", name.c_str());
        }
        return 0;
    }
    if (argc < 3 || !all.count(argv[2])) {
        fprintf(stderr, "usage: %s MODEL.gguf CASE [CACHE_TYPE] [fa|nofa] [threads=N] [rpc=ADDRESS]\n", argv[0]);
        return 2;
    }

    ggml_backend_load_all();
    llama_backend_init();
    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) { fputs(text, stderr); } }, nullptr);

    for (int i = 3; i < argc; ++i) {
        for (const ggml_type t : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
            if (strcmp(argv[i], ggml_type_name(t)) == 0) {
                type_kv = t;
            }
        }
        if (strcmp(argv[i], "nofa") == 0) {
            flash = false;
        }
        if (const char * n = value_of(argv[i], "threads")) {
            n_threads = atoi(n);
        }
        if (const char * address = value_of(argv[i], "rpc")) {
            auto * reg = ggml_backend_reg_by_name("RPC");
            CHECK(reg);
            auto * add = (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(reg, "ggml_backend_rpc_add_server");
            auto * server = add(address);
            CHECK(server);
            ggml_backend_register(server);
            on_device = true;
        }
    }

    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = -1;
    llama_model_ptr owner(llama_model_load_from_file(argv[1], params));
    CHECK(owner);
    model = owner.get();

    all.at(argv[2])();
    return 0;
}
