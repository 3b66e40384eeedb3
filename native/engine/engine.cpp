// A conversation on a model: its context, and what is asked of it between prompts.
#include "engine.h"

#include <algorithm>
#include <cstring>

ggml_type pac_cache_type(const char * name) {
    name = name ? name : "f16";
    static const ggml_type known[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

    for (const ggml_type type : known) {
        if (strcmp(ggml_type_name(type), name) == 0) {
            return type;
        }
    }
    throw pac_error(PAC_ERR_ARGUMENT, pac_format("cache type \"%s\" is not one of f32, f16, bf16, q8_0, q4_0", name));
}

static constexpr int32_t MAX_CELLS = 1 << 24;

static int32_t pick_n_ctx(const pac_engine_params & params, const pac_model & model) {
    return params.n_ctx > 0 ? params.n_ctx : std::min(32768, llama_model_n_ctx_train(model.weights.get()));
}

void pac_engine::check(const pac_engine_params & params) {
    pac_check_range("n_ctx",     params.n_ctx,     0, MAX_CELLS);
    pac_check_range("n_batch",   params.n_batch,   0, MAX_CELLS);
    pac_check_range("n_ubatch",  params.n_ubatch,  0, MAX_CELLS);
    pac_check_range("n_threads", params.n_threads, 0, GGML_MAX_N_THREADS);
    if (params.flash_attn < -1 || params.flash_attn > 1) {
        throw pac_error(PAC_ERR_ARGUMENT, "flash_attn must be -1 (auto), 0 (off) or 1 (on)");
    }
    pac_cache_type(params.cache_type_k);
    pac_cache_type(params.cache_type_v);
}

static llama_context * make_context(const pac_engine_params & params, const pac_model & model, pac_engine * engine) {
    pac_engine::check(params);

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = pick_n_ctx(params, model);
    cparams.n_batch         = params.n_batch  > 0 ? params.n_batch  : 2048;
    cparams.n_ubatch        = params.n_ubatch > 0 ? params.n_ubatch : 512;
    cparams.n_seq_max       = 1;
    cparams.n_outputs_max   = 1; // only the last token's logits are ever read
    cparams.n_threads       = pac_pick_threads(params.n_threads);
    cparams.n_threads_batch = cparams.n_threads;
    cparams.flash_attn_type = (llama_flash_attn_type) params.flash_attn;
    cparams.type_k          = pac_cache_type(params.cache_type_k);
    cparams.type_v          = pac_cache_type(params.cache_type_v);
    cparams.no_perf         = false; // counts graph reuse
    cparams.abort_callback_data = engine;
    cparams.abort_callback      = [](void * user_data) { return ((const pac_engine *) user_data)->must_stop(); };

    const auto lock = pac_lock_devices();
    pac_take_logged_error();
    llama_context * res = llama_init_from_model(model.weights.get(), cparams);
    if (!res) {
        throw pac_error(PAC_ERR_MEMORY, pac_format("cannot create a context of %u cells (%s K, %s V): %s", cparams.n_ctx,
                ggml_type_name(cparams.type_k), ggml_type_name(cparams.type_v), pac_take_logged_error().c_str()));
    }
    return res;
}

pac_engine::pac_engine(std::shared_ptr<pac_model> model_, const pac_engine_params & params) :
        model(std::move(model_)), ctx(make_context(params, *model, this)), sampler(model->vocab(), llama_n_ctx(ctx.get())),
        keep_embeddings(params.keep_embeddings) {
    if (llama_aircache_supported(ctx.get()) != LLAMA_AIRCACHE_OK) {
        why_not = llama_aircache_error();
    }
    model->n_engines++;
}

pac_engine::~pac_engine() {
    model->n_engines--;
}

pac_info pac_engine::info() const {
    const auto base = model->info();

    pac_info res = {};
    res.description  = base.description;
    res.architecture = base.architecture;
    res.projector    = base.projector;
    res.n_layers     = base.n_layers;
    res.n_embd       = base.n_embd;
    res.n_heads      = base.n_heads;
    res.n_heads_kv   = base.n_heads_kv;
    res.n_vocab      = base.n_vocab;
    res.n_ctx        = llama_n_ctx(ctx.get());
    res.n_ctx_train  = base.n_ctx_train;
    res.n_params     = base.n_params;
    res.model_bytes  = base.model_bytes;
    res.vision       = base.vision;
    res.can_compress = why_not.empty();
    res.why_not      = why_not.c_str();

    auto stats = llama_aircache_stats_empty();
    if (res.can_compress && llama_aircache_stats(ctx.get(), 0, &stats) == LLAMA_AIRCACHE_OK) {
        res.kv_bytes_per_token = stats.kv_bytes_cell;
    }
    return res;
}

const float * pac_engine::logits() const {
    const float * res = has_logits ? llama_get_logits_ith(ctx.get(), -1) : nullptr;
    if (!res) {
        throw pac_error(PAC_ERR_STATE, "no logits: nothing was evaluated yet");
    }
    return res;
}

int32_t pac_engine::sample() {
    return sampler.sample(logits());
}

void pac_engine::reset() {
    llama_aircache_clear(ctx.get(), 0);
    llama_memory_clear(llama_get_memory(ctx.get()), false);
    n_pos      = 0;
    n_cells    = 0;
    has_logits = false;
    observed   = false;
    n_visual   = 0;
    spans.clear();
    prompt_tokens.clear();
    text_tokens.clear();
    sampler.clear();
    embeddings.clear();
}

pac_stats pac_engine::stats() const {
    pac_stats res = {};
    res.n_ctx           = llama_n_ctx(ctx.get());
    res.n_past          = n_cells;
    res.n_free          = res.n_ctx - n_cells;
    res.n_decodes       = n_decodes;
    res.n_graphs_reused = llama_perf_context(ctx.get()).n_reused - n_reused_start;

    auto air = llama_aircache_stats_empty();
    if (why_not.empty()) {
        pac_check(llama_aircache_stats(ctx.get(), 0, &air));
        res.n_past = air.n_cells;
        res.n_free = air.n_free;
        res.kv_bytes = air.kv_bytes;
        res.kv_bytes_allocated = (int64_t) (air.n_cells + air.n_free)*air.kv_bytes_cell;
        pac_check(llama_aircache_resident(ctx.get(), &res.kv_bytes_resident));
    }
    return res;
}
