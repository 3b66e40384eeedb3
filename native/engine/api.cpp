// The C border: arguments are checked, exceptions become codes with a message.
#include "border.h"
#include "engine.h"

#include <algorithm>
#include <condition_variable>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

// fixed sizes: to keep a message must not fail for want of memory
static thread_local char last_error[4096];
static thread_local char logged_error[1024];

// as much of the text as fits, cut between two characters
template <size_t N>
static void keep(char (&buf)[N], const char * text) {
    size_t n = strnlen(text, N);
    if (n == N) {
        n--;
        while (n > 0 && ((unsigned char) text[n] & 0xc0) == 0x80) {
            n--;
        }
    }
    memcpy(buf, text, n);
    buf[n] = 0;
}

std::string pac_format(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(nullptr, 0, fmt, args);
    va_end(args);

    std::string res(std::max(n, 0) + 1, 0);
    vsnprintf(&res[0], res.size(), fmt, again);
    va_end(again);
    res.pop_back();
    return res;
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
    logged_error[0] = 0;
    try {
        f();
        return PAC_OK;
    } catch (const pac_error & e) {
        keep(last_error, e.what());
        return e.status;
    } catch (const std::bad_alloc &) {
        keep(last_error, "out of memory");
        return PAC_ERR_MEMORY;
    } catch (const std::exception & e) {
        keep(last_error, e.what());
        return PAC_ERR_INTERNAL;
    } catch (...) {
        keep(last_error, "unknown error");
        return PAC_ERR_INTERNAL;
    }
}

int32_t pac_guarded(const std::function<void()> & f) {
    return guarded(f);
}

static void require(bool ok, const char * message) {
    if (!ok) {
        throw pac_error(PAC_ERR_ARGUMENT, message);
    }
}

//
// log: passed on, and the last error is kept for our own messages
//

namespace {

struct log_sink {
    pac_log_callback callback  = nullptr;
    void           * user_data = nullptr;
    int32_t          n_running = 0; // calls under way
};

} // namespace

static std::mutex                log_mutex; // of what follows; never held while a callback runs
static std::condition_variable   log_returned;
static std::shared_ptr<log_sink> log_current;
static thread_local bool         log_inside; // this thread is in a callback

static void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    // the first says what is wrong, those behind it what fails in consequence
    if (level == GGML_LOG_LEVEL_ERROR && logged_error[0] == 0) {
        keep(logged_error, text);
        for (size_t n = strlen(logged_error); n > 0 && (logged_error[n - 1] == '\n' || logged_error[n - 1] == ' '); --n) {
            logged_error[n - 1] = 0;
        }
    }

    std::shared_ptr<log_sink> sink;
    {
        const std::lock_guard<std::mutex> lock(log_mutex);
        sink = log_current;
        if (!sink || !sink->callback) {
            return;
        }
        sink->n_running++;
    }

    const bool nested = log_inside;
    log_inside = true;
    sink->callback(level, text, sink->user_data);
    log_inside = nested;

    const std::lock_guard<std::mutex> lock(log_mutex);
    if (--sink->n_running == 0) {
        log_returned.notify_all();
    }
}

// of this thread: others may load something at the same time
std::string pac_take_logged_error() {
    std::string res = logged_error;
    logged_error[0] = 0;
    return res;
}

static void route_log() {
    llama_log_set(on_log, nullptr);
    mtmd_helper_log_set(on_log, nullptr);
}

void pac_log_set(pac_log_callback callback, void * user_data) {
    guarded([&] {
        auto sink = std::make_shared<log_sink>();
        sink->callback  = callback;
        sink->user_data = user_data;
        {
            std::unique_lock<std::mutex> lock(log_mutex);
            log_current.swap(sink);
            // from within a callback there would be no end to it
            if (sink && !log_inside) {
                log_returned.wait(lock, [&] { return sink->n_running == 0; });
            }
        }
        route_log();
    });
}

//
// engine
//

const char * pac_last_error(void) {
    return last_error;
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

const char * pac_marker(const pac_engine * /*engine*/) {
    const char * res = "";
    guarded([&] { res = pac_media_marker().c_str(); });
    return res;
}

int32_t pac_apply_template(const pac_engine * engine, const struct pac_message * messages, int32_t n_messages,
        bool add_generation_prompt, char ** out) {
    return guarded([&] {
        require(engine && messages && n_messages > 0 && out, "engine, messages or out is null, or there are no messages");
        for (int32_t i = 0; i < n_messages; ++i) {
            require(messages[i].role && messages[i].content, "a message has no role or no content");
        }
        *out = nullptr;
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
        *n_cells = engine->count_tokens(text, images, n_images);
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
        if (n < 0) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d has %d bytes, the buffer %d", token, -n, size));
        }
    });
    return status == PAC_OK ? n : status;
}

int32_t pac_decode(pac_engine * engine, int32_t token) {
    return guarded([&] {
        require(engine, "engine is null");
        engine->decode(token);
    });
}

int32_t pac_cancel(pac_engine * engine) {
    return guarded([&] {
        require(engine, "engine is null");
        engine->cancelled = true;
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
        *n_embd   = llama_model_n_embd_inp(engine->model.get());
        *n_tokens = engine->embeddings.size() / *n_embd;
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
