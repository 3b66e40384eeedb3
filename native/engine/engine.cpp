// A conversation on a model: what is asked of it between prompts.
#include "engine.h"

pac_engine::pac_engine(std::shared_ptr<pac_model> model_, const pac_engine_params & params) :
        pac_engine(model_, std::make_shared<pac_context>(*model_, params, 1), 0, params) {}

pac_engine::pac_engine(std::shared_ptr<pac_model> model_, std::shared_ptr<pac_context> context_, llama_seq_id seq, const pac_engine_params & params) :
        model(std::move(model_)), context(std::move(context_)), ctx(context->ctx.get()), seq(seq), sampler(model->vocab(), n_ctx()),
        archive(params), keep_embeddings(params.keep_embeddings) {
    model->n_engines++;
}

pac_engine::~pac_engine() {
    if (context->shared()) {
        reset(); // the context stays
        context->give_seq(seq);
    }
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
    res.n_ctx        = n_ctx();
    res.n_ctx_train  = base.n_ctx_train;
    res.n_params     = base.n_params;
    res.model_bytes  = base.model_bytes;
    res.vision       = base.vision;
    res.can_compress = context->why_not.empty();
    res.why_not      = context->why_not.c_str();

    const auto mine = turn();

    auto stats = llama_aircache_stats_empty();
    if (res.can_compress && llama_aircache_stats(ctx, seq, &stats) == LLAMA_AIRCACHE_OK) {
        res.kv_bytes_per_token = stats.kv_bytes_cell;
    }
    return res;
}

const float * pac_engine::logits() const {
    const float * res = !has_logits ? nullptr : context->shared() ? kept_logits.data() : llama_get_logits_ith(ctx, -1);
    if (!res) {
        throw pac_error(PAC_ERR_STATE, "no logits: nothing was evaluated yet");
    }
    return res;
}

int32_t pac_engine::sample() {
    return sampler.sample(logits());
}

void pac_engine::reset() {
    const auto mine = turn();
    forget();
    archive.forget();
}

void pac_engine::forget() {
    llama_aircache_clear(ctx, seq);
    llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
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
    const auto mine = turn();

    pac_stats res = {};
    res.n_ctx           = n_ctx();
    res.n_past          = n_cells;
    res.n_free          = res.n_ctx - n_cells;
    res.n_decodes       = n_decodes;
    res.n_graphs_reused = llama_perf_context(ctx).n_reused - n_reused_start;

    auto air = llama_aircache_stats_empty();
    if (context->why_not.empty()) {
        pac_check(llama_aircache_stats(ctx, seq, &air));
        res.n_past = air.n_cells;
        res.n_free = air.n_free;
        res.kv_bytes = air.kv_bytes;

        auto bytes = llama_aircache_bytes_empty();
        pac_check(llama_aircache_memory(ctx, seq, &bytes));
        res.kv_bytes_reserved  = bytes.reserved;
        res.kv_bytes_allocated = bytes.allocated;
    }
    return res;
}
