#include "pool.h"

#include <algorithm>
#include <set>

static pac_engine_params without_texts(pac_engine_params params) {
    params.cache_type_k = nullptr; // the caller's
    params.cache_type_v = nullptr;
    return params;
}

void pac_pool::check(const pac_engine_params & params, int32_t n_engines) {
    pac_check_range("n_engines", n_engines, 1, llama_max_parallel_sequences());
    pac_context::check(params);
    pac_require(params.archive != PAC_ARCHIVE_FILE, "the engines of a pool cannot share an archive file: use another kind of archive");
    pac_check_range("n_engines * n_ctx", (int64_t) n_engines*params.n_ctx, 0, 1 << 30);
}

pac_pool::pac_pool(std::shared_ptr<pac_model> model_, const pac_engine_params & params, int32_t n_engines) :
        model(std::move(model_)), context(std::make_shared<pac_context>(*model, params, n_engines)), params(without_texts(params)) {}

pac_engine * pac_pool::make() const {
    const llama_seq_id seq = context->take_seq();
    try {
        return new pac_engine(model, context, seq, params);
    } catch (...) {
        context->give_seq(seq);
        throw;
    }
}

// runs f for a step, which keeps what it throws
template <typename F>
static void guarded(pac_step & step, F && f) {
    step.status = pac_guarded(f);
    if (step.status != PAC_OK) {
        step.engine->step_error = pac_last_error();
    }
    step.message = step.status == PAC_OK ? "" : step.engine->step_error.c_str();
}

void pac_pool::check_steps(pac_step * steps, int32_t n) const {
    std::set<const pac_engine *> seen;
    for (int32_t i = 0; i < n; ++i) {
        const auto * engine = steps[i].engine;
        pac_require(engine, "a step has no engine");
        pac_require(engine->context == context, "a step's engine is not of this pool");
        pac_require(seen.insert(engine).second, "an engine has two steps");
    }
}

void pac_pool::decode(pac_step * steps, int32_t n) const {
    check_steps(steps, n);

    std::vector<pac_step *> valid;
    for (int32_t i = 0; i < n; ++i) {
        auto & step = steps[i];
        guarded(step, [&] { step.engine->check_step(step.token); });
        if (step.status == PAC_OK) {
            valid.push_back(&step);
        }
    }
    // llama.cpp puts streams into one graph that follow one another
    std::sort(valid.begin(), valid.end(), [](const pac_step * a, const pac_step * b) { return a->engine->seq < b->engine->seq; });

    if (valid.size() > 1 && decode_together(valid)) {
        return;
    }
    for (auto * step : valid) { // alone, so that each has its own error
        if (step->status == PAC_OK) {
            guarded(*step, [&] { step->engine->decode(step->token); });
        }
    }
}

// false: it failed, and all engines are as they were, but those that were cancelled have had their answer
bool pac_pool::decode_together(const std::vector<pac_step *> & steps) const {
    std::vector<pac_engine *> engines;
    for (const auto * step : steps) {
        engines.push_back(step->engine);
    }
    const pac_cancel_scope scope(engines);
    const pac_turn turn(*context, { engines.begin(), engines.end() });

    bool ok = false;
    try {
        pac_batch batch(engines.size());
        for (const auto * step : steps) {
            batch.add(step->token, step->engine->n_pos, step->engine->seq, true);
        }
        ok = llama_decode(context->ctx.get(), batch.get()) == 0;
        if (ok) {
            llama_synchronize(context->ctx.get());
        }
    } catch (const std::exception &) {
        // said by those that fail alone
    }

    for (size_t i = 0; i < steps.size(); ++i) {
        auto & step = *steps[i];
        guarded(step, [&] { step.engine->end_step(step.token, i, ok); });
    }
    return ok;
}
