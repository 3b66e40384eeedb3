// The C border: arguments are checked, exceptions become codes with a message.
#include "engine.h"

#include <cstdarg>
#include <cstring>
#include <mutex>
#include <new>

static thread_local std::string last_error;

std::string pac_format(const char * fmt, ...) {
    char buf[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(buf, sizeof(buf), fmt, args);
    va_end(args);
    return buf;
}

void pac_check(int32_t status) {
    switch (status) {
        case LLAMA_AIRCACHE_OK:          return;
        case LLAMA_AIRCACHE_ARGUMENT:    throw pac_error(PAC_ERR_ARGUMENT,    llama_aircache_error());
        case LLAMA_AIRCACHE_UNSUPPORTED: throw pac_error(PAC_ERR_UNSUPPORTED, llama_aircache_error());
        case LLAMA_AIRCACHE_STATE:       throw pac_error(PAC_ERR_STATE,       llama_aircache_error());
        case LLAMA_AIRCACHE_MEMORY:      throw pac_error(PAC_ERR_MEMORY,      llama_aircache_error());
        default:                         throw pac_error(PAC_ERR_COMPUTE,     llama_aircache_error());
    }
}

template <typename F>
static int32_t guarded(F && f) {
    try {
        f();
        return PAC_OK;
    } catch (const pac_error & e) {
        last_error = e.what();
        return e.status;
    } catch (const std::bad_alloc &) {
        last_error = "out of memory";
        return PAC_ERR_MEMORY;
    } catch (const std::exception & e) {
        last_error = e.what();
        return PAC_ERR_INTERNAL;
    } catch (...) {
        last_error = "unknown error";
        return PAC_ERR_INTERNAL;
    }
}

static void require(bool ok, const char * message) {
    if (!ok) {
        throw pac_error(PAC_ERR_ARGUMENT, message);
    }
}

//
// log: passed on, and the last error is kept for our own messages
//

static std::mutex       log_mutex;
static pac_log_callback log_callback;
static void           * log_user_data;
static std::string      log_error;

static void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    const std::lock_guard<std::mutex> lock(log_mutex);
    if (level == GGML_LOG_LEVEL_ERROR) {
        log_error = text;
        while (!log_error.empty() && (log_error.back() == '\n' || log_error.back() == ' ')) {
            log_error.pop_back();
        }
    }
    if (log_callback) {
        log_callback(level, text, log_user_data);
    }
}

std::string pac_take_logged_error() {
    const std::lock_guard<std::mutex> lock(log_mutex);
    std::string res;
    res.swap(log_error);
    return res;
}

static void route_log() {
    llama_log_set(on_log, nullptr);
    mtmd_helper_log_set(on_log, nullptr);
}

void pac_log_set(pac_log_callback callback, void * user_data) {
    {
        const std::lock_guard<std::mutex> lock(log_mutex);
        log_callback  = callback;
        log_user_data = user_data;
    }
    route_log();
}

//
// engine
//

const char * pac_last_error(void) {
    return last_error.c_str();
}

const char * pac_version(void) {
    return PAC_VERSION " (llama.cpp " PAC_LLAMA_COMMIT ")";
}

struct pac_engine_params pac_engine_default_params(void) {
    pac_engine_params res = {};
    res.n_gpu_layers = -1;
    res.cache_type_k = "f16";
    res.cache_type_v = "f16";
    res.flash_attn   = -1;
    return res;
}

int32_t pac_engine_new(const struct pac_engine_params * params, pac_engine ** out) {
    return guarded([&] {
        require(params && out, "params or out is null");
        *out = nullptr;
        route_log();
        *out = new pac_engine(*params);
    });
}

void pac_engine_free(pac_engine * engine) {
    guarded([&] { delete engine; });
}

int32_t pac_engine_info(const pac_engine * engine, struct pac_info * out) {
    return guarded([&] {
        require(engine && out, "engine or out is null");
        *out = engine->info();
    });
}

const char * pac_marker(const pac_engine * engine) {
    return engine && engine->vision ? mtmd_get_marker(engine->vision.get()) : mtmd_default_marker();
}

int32_t pac_apply_template(const pac_engine * engine, const struct pac_message * messages, int32_t n_messages,
        bool add_generation_prompt, char ** out) {
    return guarded([&] {
        require(engine && messages && n_messages > 0 && out, "engine, messages or out is null, or there are no messages");
        for (int32_t i = 0; i < n_messages; ++i) {
            require(messages[i].role && messages[i].content, "a message has no role or no content");
        }
        const std::string res = engine->apply_template(messages, n_messages, add_generation_prompt);
        *out = strdup(res.c_str());
        if (!*out) {
            throw std::bad_alloc();
        }
    });
}

void pac_string_free(char * string) {
    free(string);
}

int32_t pac_count_tokens(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images, int32_t * n_cells) {
    return guarded([&] {
        require(engine && text && n_cells && (images || n_images == 0) && n_images >= 0, "engine, text, images or n_cells is null");
        require(engine->vision != nullptr, "the model was loaded without a projector (mmproj)");
        const auto chunks = engine->tokenize(text, images, n_images);
        *n_cells = mtmd_helper_get_n_tokens(chunks.get());
    });
}

int32_t pac_layout(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images, struct pac_prompt_info * out) {
    return guarded([&] {
        require(engine && text && out && (images || n_images == 0) && n_images >= 0, "engine, text, images or out is null");
        require(engine->vision != nullptr, "the model was loaded without a projector (mmproj)");
        engine->layout(text, images, n_images, *out);
    });
}

int32_t pac_prompt(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images,
        int32_t reserve, const struct pac_method * observe, pac_progress_callback progress, void * user_data, struct pac_prompt_info * out) {
    return guarded([&] {
        require(engine && text && out && (images || n_images == 0) && n_images >= 0, "engine, text, images or out is null");
        require(reserve >= 0, "reserve is negative");
        engine->prompt(text, images, n_images, reserve, observe, progress, user_data, *out);
    });
}

struct pac_method pac_method_default(void) {
    return pac_from_llama(llama_aircache_method_default());
}

const char * pac_method_name(int32_t index) {
    return llama_aircache_method_name(index);
}

int32_t pac_method_by_name(const char * name, struct pac_method * out) {
    return guarded([&] {
        require(name && out, "name or out is null");
        llama_aircache_method m;
        if (llama_aircache_method_by_name(name, &m) != LLAMA_AIRCACHE_OK) {
            std::string known;
            for (int32_t i = 0; llama_aircache_method_name(i); ++i) {
                known += (i ? ", " : "") + std::string(llama_aircache_method_name(i));
            }
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("no method is named \"%s\"; known are %s", name, known.c_str()));
        }
        *out = pac_from_llama(m);
    });
}

int32_t pac_score(pac_engine * engine, const struct pac_method * method, struct pac_scores * out) {
    return guarded([&] {
        require(engine && method && out, "engine, method or out is null");
        engine->score(*method, *out);
    });
}

int32_t pac_evict(pac_engine * engine, const int32_t * budgets, const int32_t * kept, double merge, bool mask_only,
        struct pac_compression * out) {
    return guarded([&] {
        require(engine && budgets && kept && out, "engine, budgets, kept or out is null");
        engine->evict(budgets, kept, merge, mask_only, *out);
    });
}

int32_t pac_compress(pac_engine * engine, const struct pac_method * method, bool mask_only,
        struct pac_scores * scores, struct pac_compression * out) {
    return guarded([&] {
        require(engine && method && out, "engine, method or out is null");
        engine->compress(*method, mask_only, scores, *out);
    });
}

int32_t pac_allocate(const struct pac_method * method, const float * scores, const double * alive,
        int32_t n_layers, int32_t n_visual, int32_t * budgets, double * strength, double * skewness) {
    return guarded([&] {
        require(method, "method is null");
        const auto m = pac_to_llama(*method);
        pac_check(llama_aircache_allocate(&m, scores, alive, n_layers, n_visual, budgets, strength, skewness));
    });
}

int32_t pac_select(const float * scores, int32_t n_layers, int32_t n_visual, const int32_t * budgets, int32_t rank, int32_t * kept) {
    return guarded([&] {
        pac_check(llama_aircache_select(scores, n_layers, n_visual, budgets, rank, kept));
    });
}

int32_t pac_sample(pac_engine * engine, float temperature, uint32_t seed, int32_t * token, bool * end_of_answer) {
    return guarded([&] {
        require(engine && token && end_of_answer, "engine, token or end_of_answer is null");
        *token = engine->sample(temperature, seed);
        *end_of_answer = llama_vocab_is_eog(llama_model_get_vocab(engine->model.get()), *token);
    });
}

int32_t pac_token_bytes(const pac_engine * engine, int32_t token, char * buffer, int32_t size) {
    int32_t n = 0;
    const int32_t status = guarded([&] {
        require(engine && buffer && size > 0, "engine or buffer is null");
        const auto * vocab = llama_model_get_vocab(engine->model.get());
        require(token >= 0 && token < llama_vocab_n_tokens(vocab), "no such token");
        n = llama_token_to_piece(vocab, token, buffer, size, 0, false);
        require(n >= 0, "the buffer is too small for the token");
    });
    return status == PAC_OK ? n : status;
}

int32_t pac_decode(pac_engine * engine, int32_t token) {
    return guarded([&] {
        require(engine, "engine is null");
        engine->decode(token);
    });
}

int32_t pac_logits(pac_engine * engine, const float ** logits, int32_t * n_vocab) {
    return guarded([&] {
        require(engine && logits && n_vocab, "engine, logits or n_vocab is null");
        *logits  = engine->logits();
        *n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(engine->model.get()));
    });
}

int32_t pac_image_embeddings(pac_engine * engine, const float ** embd, int32_t * n_tokens, int32_t * n_embd) {
    return guarded([&] {
        require(engine && embd && n_tokens && n_embd, "engine, embd, n_tokens or n_embd is null");
        if (engine->embeddings.empty()) {
            throw pac_error(PAC_ERR_STATE, "no embeddings: the last prompt held no image, or keep_embeddings was not set");
        }
        *embd     = engine->embeddings.data();
        *n_tokens = engine->n_visual;
        *n_embd   = engine->embeddings.size()/engine->n_visual;
    });
}

int32_t pac_engine_stats(const pac_engine * engine, struct pac_stats * out) {
    return guarded([&] {
        require(engine && out, "engine or out is null");
        *out = engine->stats();
    });
}

int32_t pac_reset(pac_engine * engine) {
    return guarded([&] {
        require(engine, "engine is null");
        engine->reset();
    });
}
