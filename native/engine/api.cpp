// The functions of pyaircache.h.
#include "engine.h"
#include "pool.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

const char * pac_version(void) {
    return PAC_VERSION " (llama.cpp " PAC_LLAMA_COMMIT ")";
}

//
// model
//

struct pac_model_params pac_model_default_params(void) {
    pac_model_params res = {};
    res.size              = sizeof(res);
    res.n_gpu_layers      = -1;
    res.flash_attn        = -1;
    res.image_cache_bytes = 256ll*1024*1024;
    return res;
}

static std::shared_ptr<pac_model> open_model(const pac_model_params & params) {
    pac_route_log();
    return std::make_shared<pac_model>(pac_read(&params, pac_model_default_params(), "pac_model_params", sizeof(params)));
}

int32_t pac_model_new(const struct pac_model_params * params, pac_model ** out) {
    return pac_guarded([&] {
        pac_require(params && out, "params or out is null");
        *out = nullptr;
        auto model = open_model(*params);
        *out = model.get();
        (*out)->self = std::move(model);
    });
}

void pac_model_free(pac_model * model) {
    pac_guarded([&] {
        if (model) {
            const auto last = std::move(model->self); // goes when this ends, unless an engine holds it
        }
    });
}

int32_t pac_model_info(pac_model * model, struct pac_model_info * out) {
    return pac_guarded([&] {
        pac_require(model && out, "model or out is null");
        *out = model->info();
    });
}

int32_t pac_model_forget_images(pac_model * model) {
    return pac_guarded([&] {
        pac_require(model, "model is null");
        model->images.clear();
    });
}

//
// engine
//

struct pac_engine_params pac_engine_default_params(void) {
    pac_engine_params res = {};
    res.size         = sizeof(res);
    res.cache_type_k = "f16";
    res.cache_type_v = "f16";
    res.flash_attn   = -1;
    res.resize_kv    = true;
    return res;
}

static pac_engine_params read_params(const pac_engine_params * params) {
    const auto defaults = pac_engine_default_params();
    return params ? pac_read(params, defaults, "pac_engine_params", offsetof(pac_engine_params, archive)) : defaults;
}

int32_t pac_engine_new(pac_model * model, const struct pac_engine_params * params, pac_engine ** out) {
    return pac_guarded([&] {
        pac_require(model && out, "model or out is null");
        *out = nullptr;
        pac_require(model->self != nullptr, "the model was freed");
        *out = new pac_engine(model->self, read_params(params));
    });
}

int32_t pac_engine_open(const struct pac_model_params * model, const struct pac_engine_params * params, pac_engine ** out) {
    return pac_guarded([&] {
        pac_require(model && out, "model or out is null");
        *out = nullptr;
        const auto read = read_params(params);
        pac_context::check(read); // before the model is loaded
        *out = new pac_engine(open_model(*model), read);
    });
}

void pac_engine_free(pac_engine * engine) {
    pac_guarded([&] { delete engine; });
}

int32_t pac_engine_info(const pac_engine * engine, struct pac_info * out) {
    return pac_guarded([&] {
        pac_require(engine && out, "engine or out is null");
        *out = engine->info();
    });
}

const char * pac_marker(const pac_engine * /*engine*/) {
    const char * res = "";
    pac_guarded([&] { res = pac_media_marker().c_str(); });
    return res;
}

int32_t pac_apply_template(const pac_engine * engine, const struct pac_message * messages, int32_t n_messages,
        bool add_generation_prompt, char ** out) {
    return pac_guarded([&] {
        pac_require(engine && messages && n_messages > 0 && out, "engine, messages or out is null, or there are no messages");
        for (int32_t i = 0; i < n_messages; ++i) {
            pac_require(messages[i].role && messages[i].content, "a message has no role or no content");
        }
        *out = nullptr;
        const std::string res = engine->model->apply_template(messages, n_messages, add_generation_prompt);
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
    return pac_guarded([&] {
        pac_require(engine && text && n_cells && (images || n_images == 0) && n_images >= 0, "engine, text, images or n_cells is null");
        pac_require(engine->model->vision != nullptr, "the model was loaded without a projector (mmproj)");
        *n_cells = engine->count_tokens(text, images, n_images);
    });
}

int32_t pac_layout(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images, struct pac_prompt_info * out) {
    return pac_guarded([&] {
        pac_require(engine && text && out && (images || n_images == 0) && n_images >= 0, "engine, text, images or out is null");
        pac_require(engine->model->vision != nullptr, "the model was loaded without a projector (mmproj)");
        engine->layout(text, images, n_images, *out);
    });
}

int32_t pac_prompt(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images,
        int32_t reserve, const struct pac_method * observe, pac_progress_callback progress, void * user_data, struct pac_prompt_info * out) {
    return pac_guarded([&] {
        pac_require(engine && text && out && (images || n_images == 0) && n_images >= 0, "engine, text, images or out is null");
        pac_require(reserve >= 0, "reserve is negative");
        engine->prompt(text, images, n_images, reserve, observe, progress, user_data, *out);
    });
}

int32_t pac_conversation(pac_engine * engine, const struct pac_part * parts, int32_t n_parts, const struct pac_image * images, int32_t n_images,
        int32_t reserve, const struct pac_method * observe, pac_progress_callback progress, void * user_data, struct pac_prompt_info * out) {
    return pac_guarded([&] {
        pac_require(engine && parts && n_parts > 0 && out && (images || n_images == 0) && n_images >= 0,
                "engine, parts, images or out is null, or there are no parts");
        pac_require(reserve >= 0, "reserve is negative");
        for (int32_t i = 0; i < n_parts; ++i) {
            pac_require(parts[i].text || (parts[i].n_tokens >= 0 && (parts[i].tokens || parts[i].n_tokens == 0)),
                    "a part has no text and no tokens, or a negative number of them");
        }
        engine->conversation({ parts, parts + n_parts }, images, n_images, reserve, observe, progress, user_data, *out);
    });
}

int32_t pac_archive_get(const pac_engine * engine, struct pac_archive_info * out) {
    return pac_guarded([&] {
        pac_require(engine && out, "engine or out is null");
        const uint32_t size = out->size;
        auto res = engine->archive.info();
        if (size != sizeof(res)) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("pac_archive_info.size is %u, and this library's %zu", size, sizeof(res)));
        }
        *out = res;
    });
}

struct pac_method pac_method_default(void) {
    return pac_from_llama(llama_aircache_method_default());
}

const char * pac_method_name(int32_t index) {
    return llama_aircache_method_name(index);
}

int32_t pac_method_by_name(const char * name, struct pac_method * out) {
    return pac_guarded([&] {
        pac_require(name && out, "name or out is null");
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
    return pac_guarded([&] {
        pac_require(engine && method && out, "engine, method or out is null");
        engine->score(*method, *out);
    });
}

int32_t pac_evict(pac_engine * engine, const int32_t * budgets, const int32_t * kept, double merge, bool mask_only,
        struct pac_compression * out) {
    return pac_guarded([&] {
        pac_require(engine && budgets && kept && out, "engine, budgets, kept or out is null");
        engine->evict(budgets, kept, merge, mask_only, *out);
    });
}

int32_t pac_compress(pac_engine * engine, const struct pac_method * method, bool mask_only,
        struct pac_scores * scores, struct pac_compression * out) {
    return pac_guarded([&] {
        pac_require(engine && method && out, "engine, method or out is null");
        engine->compress(*method, mask_only, scores, *out);
    });
}

int32_t pac_allocate(const struct pac_method * method, const float * scores, const double * alive,
        int32_t n_layers, int32_t n_visual, int32_t * budgets, double * strength, double * skewness) {
    return pac_guarded([&] {
        pac_require(method, "method is null");
        const auto m = pac_to_llama(*method);
        pac_check(llama_aircache_allocate(&m, scores, alive, n_layers, n_visual, budgets, strength, skewness));
    });
}

int32_t pac_select(const float * scores, int32_t n_layers, int32_t n_visual, const int32_t * budgets, int32_t rank,
        int32_t * kept, int64_t n_kept_max) {
    return pac_guarded([&] {
        pac_check(llama_aircache_select(scores, n_layers, n_visual, budgets, rank, kept, n_kept_max));
    });
}

int32_t pac_prompt_tokens(pac_engine * engine, const int32_t ** ids, int32_t * n_tokens) {
    return pac_guarded([&] {
        pac_require(engine && ids && n_tokens, "engine, ids or n_tokens is null");
        if (engine->prompt_tokens.empty()) {
            throw pac_error(PAC_ERR_STATE, "no tokens: there was no prompt yet");
        }
        *ids      = engine->prompt_tokens.data();
        *n_tokens = engine->prompt_tokens.size();
    });
}

//
// answer
//

struct pac_sampling pac_sampling_default(void) {
    return PAC_SAMPLING_DEFAULT;
}

int32_t pac_sampling_set(pac_engine * engine, const struct pac_sampling * sampling) {
    return pac_guarded([&] {
        pac_require(engine, "engine is null");
        engine->sampler.set(sampling ? pac_read(sampling, PAC_SAMPLING_DEFAULT, "pac_sampling", sizeof(*sampling)) : PAC_SAMPLING_DEFAULT);
    });
}

int32_t pac_sample(pac_engine * engine, int32_t * token, bool * end_of_answer) {
    return pac_guarded([&] {
        pac_require(engine && token && end_of_answer, "engine, token or end_of_answer is null");
        *token = engine->sample();
        *end_of_answer = llama_vocab_is_eog(engine->model->vocab(), *token);
    });
}

int32_t pac_logprobs(pac_engine * engine, int32_t n, int32_t * ids, double * values, int32_t token, double * value) {
    return pac_guarded([&] {
        pac_require(engine && ((ids && values) || n == 0), "engine, ids or values is null");
        const int32_t n_vocab = engine->model->n_vocab();
        pac_check_range("n", n, 0, n_vocab);
        if (value) {
            pac_check_range("token", token, 0, n_vocab - 1);
        }
        pac_rank_tokens(engine->logits(), n_vocab, n, ids, values, token, value);
    });
}

int32_t pac_tokenize(const pac_engine * engine, const char * text, bool special, int32_t * ids, int32_t capacity) {
    int32_t n = 0;
    const int32_t status = pac_guarded([&] {
        pac_require(engine && text && capacity >= 0, "engine or text is null, or capacity is negative");
        const auto tokens = pac_tokenize_text(engine->model->vocab(), text, /*add_special =*/ false, special);
        n = tokens.size();
        if (ids && n <= capacity) {
            std::copy(tokens.begin(), tokens.end(), ids);
        }
    });
    return status == PAC_OK ? n : status;
}

int32_t pac_token_bytes(const pac_engine * engine, int32_t token, bool special, char * buffer, int32_t size) {
    int32_t n = 0;
    const int32_t status = pac_guarded([&] {
        pac_require(engine && buffer && size > 0, "engine or buffer is null");
        pac_require(token >= 0 && token < engine->model->n_vocab(), "no such token");
        n = llama_token_to_piece(engine->model->vocab(), token, buffer, size, 0, special);
        if (n < 0) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d has %d bytes, the buffer %d", token, -n, size));
        }
    });
    return status == PAC_OK ? n : status;
}

int32_t pac_decode(pac_engine * engine, int32_t token) {
    return pac_guarded([&] {
        pac_require(engine, "engine is null");
        engine->decode(token);
    });
}

int32_t pac_cancel(pac_engine * engine) {
    return pac_guarded([&] {
        pac_require(engine, "engine is null");
        engine->cancelled = true;
        engine->model->wake();
    });
}

int32_t pac_logits(pac_engine * engine, const float ** logits, int32_t * n_vocab) {
    return pac_guarded([&] {
        pac_require(engine && logits && n_vocab, "engine, logits or n_vocab is null");
        *logits  = engine->logits();
        *n_vocab = engine->model->n_vocab();
    });
}

int32_t pac_image_embeddings(pac_engine * engine, const float ** embd, int32_t * n_tokens, int32_t * n_embd) {
    return pac_guarded([&] {
        pac_require(engine && embd && n_tokens && n_embd, "engine, embd, n_tokens or n_embd is null");
        if (engine->embeddings.empty()) {
            throw pac_error(PAC_ERR_STATE, "no embeddings: the last prompt held no image, or keep_embeddings was not set");
        }
        *embd     = engine->embeddings.data();
        *n_embd   = engine->model->n_embd_inp();
        *n_tokens = engine->embeddings.size() / *n_embd;
    });
}

int32_t pac_engine_stats(const pac_engine * engine, struct pac_stats * out) {
    return pac_guarded([&] {
        pac_require(engine && out, "engine or out is null");
        *out = engine->stats();
    });
}

int32_t pac_reset(pac_engine * engine) {
    return pac_guarded([&] {
        pac_require(engine, "engine is null");
        engine->reset();
    });
}

//
// pool
//

int32_t pac_pool_new(pac_model * model, const struct pac_engine_params * params, int32_t n_engines, pac_pool ** out) {
    return pac_guarded([&] {
        pac_require(model && out, "model or out is null");
        *out = nullptr;
        pac_require(model->self != nullptr, "the model was freed");
        const auto read = read_params(params);
        pac_pool::check(read, n_engines);
        *out = new pac_pool(model->self, read, n_engines);
    });
}

void pac_pool_free(pac_pool * pool) {
    pac_guarded([&] { delete pool; });
}

int32_t pac_pool_engine(pac_pool * pool, pac_engine ** out) {
    return pac_guarded([&] {
        pac_require(pool && out, "pool or out is null");
        *out = nullptr;
        *out = pool->make();
    });
}

int32_t pac_pool_decode(pac_pool * pool, struct pac_step * steps, int32_t n_steps) {
    return pac_guarded([&] {
        pac_require(pool && (steps || n_steps == 0) && n_steps >= 0, "pool or steps is null, or n_steps is negative");
        pool->decode(steps, n_steps);
    });
}
