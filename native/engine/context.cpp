#include "context.h"

#include "engine.h"

#include "llama-aircache.h"

#include <algorithm>
#include <cstring>

//
// turns
//

void pac_queue::enter() {
    std::unique_lock<std::mutex> lock(mutex);
    const uint64_t mine = ++last;
    moved.wait(lock, [&] { return next == mine; });
}

void pac_queue::leave() noexcept {
    const std::lock_guard<std::mutex> lock(mutex);
    next++;
    moved.notify_all();
}

pac_turn::pac_turn(pac_context & context, std::vector<const pac_engine *> engines) : context(context), engines(std::move(engines)) {
    begin();
}

pac_turn::~pac_turn() {
    end();
}

void pac_turn::begin() {
    context.queue.enter();
    context.running.assign(engines.begin(), engines.end()); // no allocation: there is room for all
}

void pac_turn::end() noexcept {
    context.running.clear();
    context.queue.leave();
}

// an evaluation for several engines goes on while one of them wants it
bool pac_context::must_stop() const {
    return !running.empty() && std::all_of(running.begin(), running.end(), [](const pac_engine * e) { return e->must_stop(); });
}

//
// sequences
//

llama_seq_id pac_context::take_seq() {
    const std::lock_guard<std::mutex> lock(seqs);
    const auto it = std::find(taken.begin(), taken.end(), false); // the lowest: streams that follow one another share a graph
    if (it == taken.end()) {
        throw pac_error(PAC_ERR_STATE, pac_format("all %d engines of this pool are in use: free one first", n_seq));
    }
    *it = true;
    return it - taken.begin();
}

void pac_context::give_seq(llama_seq_id seq) {
    const std::lock_guard<std::mutex> lock(seqs);
    taken[seq] = false;
}

//
// memory
//

void pac_context::make_room(int32_t n_cells) {
    if (n_room > 0 && n_cells > n_room) {
        pac_check(llama_aircache_resize(ctx.get(), n_cells));
        n_room = n_cells;
    }
}

double pac_context::shrink() {
    const int64_t t_start = llama_time_us();
    if (resizes && llama_aircache_resize(ctx.get(), 0) == LLAMA_AIRCACHE_OK) {
        n_room = 1; // what is in use, rounded up
    }
    return (llama_time_us() - t_start)/1000.0; // and if it failed, the large buffers serve on
}

//
// making one
//

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

llama_context_params pac_context_params(int32_t n_seq, int32_t n_threads, int32_t flash_attn, const char * type_k, const char * type_v) {
    llama_context_params res = llama_context_default_params();
    res.n_seq_max       = n_seq;
    res.kv_unified      = false;
    res.n_outputs_max   = n_seq; // only the last token's logits are ever read
    res.n_threads       = pac_pick_threads(n_threads);
    res.n_threads_batch = res.n_threads;
    res.flash_attn_type = (llama_flash_attn_type) flash_attn;
    res.type_k          = pac_cache_type(type_k);
    res.type_v          = pac_cache_type(type_v);
    res.no_perf         = false; // counts graph reuse
    return res;
}

static constexpr int32_t MAX_CELLS = 1 << 24;

static int32_t pick_n_ctx(const pac_engine_params & params, const pac_model & model) {
    return params.n_ctx > 0 ? params.n_ctx : std::min(32768, llama_model_n_ctx_train(model.weights.get()));
}

void pac_context::check(const pac_engine_params & params) {
    pac_check_range("n_ctx",     params.n_ctx,     0, MAX_CELLS);
    pac_check_range("n_batch",   params.n_batch,   0, MAX_CELLS);
    pac_check_range("n_ubatch",  params.n_ubatch,  0, MAX_CELLS);
    pac_check_range("n_threads", params.n_threads, 0, GGML_MAX_N_THREADS);
    if (params.flash_attn < -1 || params.flash_attn > 1) {
        throw pac_error(PAC_ERR_ARGUMENT, "flash_attn must be -1 (auto), 0 (off) or 1 (on)");
    }
    pac_cache_type(params.cache_type_k);
    pac_cache_type(params.cache_type_v);
    pac_check_range("archive", params.archive, PAC_ARCHIVE_NONE, PAC_ARCHIVE_FILE);
    if ((params.archive == PAC_ARCHIVE_FILE) != (params.archive_path != nullptr)) {
        throw pac_error(PAC_ERR_ARGUMENT, "archive_path goes with an archive in a file (PAC_ARCHIVE_FILE), and that with a path");
    }
}

pac_context::pac_context(const pac_model & model, const pac_engine_params & params, int32_t n_seq) :
        n_seq(n_seq), resizes(params.resize_kv && n_seq == 1), taken(n_seq) {
    check(params);
    running.reserve(n_seq);

    llama_context_params cparams = pac_context_params(n_seq, params.n_threads, params.flash_attn, params.cache_type_k, params.cache_type_v);
    cparams.n_ctx           = GGML_PAD(pick_n_ctx(params, model), 256)*n_seq; // as llama.cpp rounds each
    cparams.n_batch         = std::max(n_seq, params.n_batch > 0 ? params.n_batch : 2048);
    cparams.n_ubatch        = params.n_ubatch > 0 ? params.n_ubatch : 512;
    cparams.abort_callback_data = this;
    cparams.abort_callback      = [](void * user_data) { return ((const pac_context *) user_data)->must_stop(); };

    const auto lock = pac_lock_devices();
    pac_take_logged_error();
    ctx.reset(llama_init_from_model(model.weights.get(), cparams));
    if (!ctx) {
        const std::string times = n_seq > 1 ? pac_format("%d x ", n_seq) : "";
        throw pac_error(PAC_ERR_MEMORY, pac_format("cannot create a context of %s%u cells (%s K, %s V): %s", times.c_str(), cparams.n_ctx/n_seq,
                ggml_type_name(cparams.type_k), ggml_type_name(cparams.type_v), pac_take_logged_error().c_str()));
    }
    if (llama_aircache_supported(ctx.get()) != LLAMA_AIRCACHE_OK) {
        why_not = llama_aircache_error();
    }
}
