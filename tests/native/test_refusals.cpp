// What is refused: wrong arguments, calls at the wrong time, structs of another version, devices and models that cannot.
#include "harness.h"

#include "cache/devices.h"
#include "graph/runner.h"
#include "llama-context.h"
#include "llama-model.h"

static void refusals() {
    const llama_aircache_span bad[] = { { 5, 5, 0 } };
    auto ctx = context();
    CHECK(llama_aircache_supported(ctx.get()) == 0);
    CHECK(llama_aircache_supported(nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_observe(ctx.get(), 0, nullptr, 1, 10, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_observe(ctx.get(), 0, bad, 1, 10, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, SPAN.p1, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_observe(ctx.get(), 7, &SPAN, 1, N_PROMPT, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, INT32_MAX, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(strstr(llama_aircache_error(), "cells"));

    auto method = llama_aircache_method_default();
    float f = 0;
    CHECK(llama_aircache_score(ctx.get(), 0, &method, &f, 1, nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_STATE);     // not observed
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, nullptr, nullptr) == 0);
    CHECK(llama_aircache_score(ctx.get(), 0, &method, &f, 1, nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_STATE);     // not decoded
    tokens t = prompt();
    decode(ctx.get(), 0, 0, tokens(t.begin(), t.begin() + 120));
    std::vector<float> scores(90*64);
    CHECK(llama_aircache_score(ctx.get(), 0, &method, scores.data(), scores.size(), nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_STATE); // not decoded completely
    decode(ctx.get(), 0, 120, tokens(t.begin() + 120, t.end()));
    method.keep = 0;
    CHECK(llama_aircache_score(ctx.get(), 0, &method, scores.data(), scores.size(), nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_ARGUMENT);
    method = llama_aircache_method_default();
    CHECK(llama_aircache_score(ctx.get(), 0, &method, scores.data(), scores.size(), nullptr, 0, nullptr, 0) == 0);

    int32_t n_layer;
    CHECK(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, nullptr) == 0);
    std::vector<int32_t> budgets(n_layer, 2), kept;
    for (int l = 0; l < n_layer; ++l) { kept.push_back(3); kept.push_back(3); }
    CHECK(llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, false) == LLAMA_AIRCACHE_ARGUMENT);
    for (int l = 0; l < n_layer; ++l) { kept[2*l + 1] = 90; }
    CHECK(llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, false) == LLAMA_AIRCACHE_ARGUMENT);
    budgets[0] = 0;
    CHECK(llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, false) == LLAMA_AIRCACHE_ARGUMENT);
    compress(ctx.get(), 0, 0.1, false); // still usable

    auto unified = context(2, true);
    prefill(unified.get(), 0);
    decode(unified.get(), 1, 0, random_tokens(10, 1));
    std::vector<int32_t> b1(n_layer, 1), k1(n_layer, 0);
    CHECK(llama_aircache_evict(unified.get(), 0, b1.data(), k1.data(), 0.0, false) == LLAMA_AIRCACHE_UNSUPPORTED);
    CHECK(strstr(llama_aircache_error(), "several sequences"));
    CHECK(llama_aircache_clear(unified.get(), 0) == 0);
    decode(unified.get(), 0, N_PROMPT, { 1 });
}

// a program that was built with another version's header
static void sizes_of_structs() {
    auto ctx = context();
    prefill(ctx.get(), 0);

    auto method = llama_aircache_method_default();
    auto out    = llama_aircache_compression_empty();
    auto stats  = llama_aircache_stats_empty();
    method.size -= 8;
    CHECK(llama_aircache_compress(ctx.get(), 0, &method, false, &out) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(strstr(llama_aircache_error(), "size"));
    method.size += 8;
    out.size = 0;
    CHECK(llama_aircache_compress(ctx.get(), 0, &method, false, &out) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(strstr(llama_aircache_error(), "llama_aircache_compression_empty"));
    stats.size = 0;
    CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(strstr(llama_aircache_error(), "llama_aircache_stats_empty"));
}

// a device that lacks any one operation is named with it before anything is observed
static void missing_operations() {
    auto ctx = context();
    CHECK(llama_aircache_supported(ctx.get()) == 0);
    const auto & kv = llama_aircache::get(ctx.get()).kv;
    CHECK(llama_aircache_missing_op(kv, false).empty() && llama_aircache_missing_op(kv, true).empty());

    ggml_context_ptr owner(ggml_init({ 8*ggml_tensor_overhead(), nullptr, true }));
    for (const bool v_trans : { false, true }) {
        const auto tensor = [&](ggml_type type) { return ggml_new_tensor_2d(owner.get(), type, 64, 32); };
        const llama_aircache_layer_tensors layer = { tensor(GGML_TYPE_F16), tensor(GGML_TYPE_Q8_0), tensor(v_trans ? GGML_TYPE_F16 : GGML_TYPE_Q8_0), v_trans };

        std::map<ggml_op, int> asked;
        for (const bool merging : { false, true }) {
            CHECK(llama_aircache_missing_op(layer, merging, [&](const ggml_tensor * op) { return ++asked[op->op] > 0; }).empty());
        }
        CHECK(asked[GGML_OP_GET_ROWS] && asked[GGML_OP_SET_ROWS] && asked[GGML_OP_CPY]);

        // as a backend whose get_rows knows no whole numbers
        const auto no_i32 = llama_aircache_missing_op(layer, false, [](const ggml_tensor * op) {
            return op->op != GGML_OP_GET_ROWS || op->src[0]->type != GGML_TYPE_I32;
        });
        CHECK(no_i32 == "GET_ROWS of i32 to i32");
        const auto no_merge = [](const ggml_tensor * op) { return op->op != GGML_OP_SET_ROWS || op->type != GGML_TYPE_Q8_0; };
        CHECK(llama_aircache_missing_op(layer, false, no_merge).empty());
        CHECK(llama_aircache_missing_op(layer, true,  no_merge) == "SET_ROWS of f32 to q8_0");
    }
}

// attention that scores would leave out
static void sinks_and_biases() {
    auto ctx = context();
    CHECK(llama_aircache_supported(ctx.get()) == 0);

    ggml_context_ptr owner(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor * any = ggml_new_tensor_1d(owner.get(), GGML_TYPE_F32, 4);

    auto & layer = model->layers.back();
    layer.attn_sinks = any;
    CHECK(llama_aircache_supported(ctx.get()) == LLAMA_AIRCACHE_UNSUPPORTED);
    CHECK(strstr(llama_aircache_error(), "sinks"));
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, nullptr, nullptr) == LLAMA_AIRCACHE_UNSUPPORTED);
    layer.attn_sinks = nullptr;

    layer.attn_rel_b = any;
    CHECK(llama_aircache_supported(ctx.get()) == LLAMA_AIRCACHE_UNSUPPORTED);
    CHECK(strstr(llama_aircache_error(), "bias"));
    layer.attn_rel_b = nullptr;

    prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);
}

// Of a T5 model (the test gives one).
static void relative_bias() {
    auto ctx = context(1, false, 256);
    CHECK(llama_aircache_supported(ctx.get()) == LLAMA_AIRCACHE_UNSUPPORTED);
    CHECK(strstr(llama_aircache_error(), "bias"));
}

cases cases_of_refusals = {
    { "refusals", refusals },
    { "sizes_of_structs", sizes_of_structs },
    { "missing_operations", missing_operations },
    { "sinks_and_biases", sinks_and_biases },
    { "relative_bias", relative_bias },
};
