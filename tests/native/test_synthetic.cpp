// Prompts that nobody decoded: cells as of a decoded one, eviction and decoding behind them, what is refused.
#include "harness.h"

#include "cache/aircache.h"
#include "llama-context.h"
#include "llama-kv-cells.h"

// text, an image of 9 x 10 tokens, text, one of 4 x 4, text; the model has M-RoPE
static const llama_aircache_span IMAGES[] = { { 11, 21, 9 }, { 25, 29, 4 } };
static const llama_pos END      = 60;
static const int       N_VISUAL = 90 + 16;
static const int       N_CELLS  = N_VISUAL + 60 - 14;

static int32_t make(llama_context * ctx, llama_seq_id seq, uint32_t seed, const llama_aircache_method * method = nullptr) {
    return llama_aircache_synthetic(ctx, seq, IMAGES, 2, END, seed, method);
}

static const llama_kv_cells & table_of(llama_context * ctx, llama_seq_id seq) {
    CHECK(llama_aircache_supported(ctx) == 0);
    const auto & kv = llama_aircache::get(ctx).kv;
    return kv.cells(kv.stream(seq));
}

static void synthetic_cells() {
    auto ctx = context(2), other = context(2);
    CHECK(make(ctx.get(), 1, 0) == 0);

    const auto & cells = table_of(ctx.get(), 1);
    CHECK(cells.get_used() == (uint32_t) N_CELLS && cells.used_max_p1() == (uint32_t) N_CELLS);
    CHECK(table_of(ctx.get(), 0).get_used() == 0);
    CHECK(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 1) == END - 1);

    // text as of a decoded prompt
    decode(other.get(), 1, 0, random_tokens(11, 0));
    const auto & text = table_of(other.get(), 1);
    for (uint32_t i = 0; i < 11; ++i) {
        CHECK(cells.pos_get(i) == text.pos_get(i) && cells.ext_get(i).x == text.ext_get(i).x && cells.ext_get(i).y == text.ext_get(i).y);
        CHECK(cells.seq_has(i, 1) && cells.seq_count(i) == 1 && cells.ext_get(i).tok != LLAMA_TOKEN_NULL);
    }
    // an image row by row, at one position
    for (int i = 0; i < 90; ++i) {
        const auto & ext = cells.ext_get(11 + i);
        CHECK(cells.pos_get(11 + i) == 11 && ext.x == 11 + i % 9 && ext.y == 11 + i/9 && ext.tok == LLAMA_TOKEN_NULL);
    }
    CHECK(cells.pos_get(101) == 21 && cells.pos_get(105) == 25 && cells.pos_get(121) == 29);

    int32_t n_layer, n_visual, n_text;
    CHECK(llama_aircache_dims(ctx.get(), 1, &n_layer, &n_visual, &n_text) == 0);
    CHECK(n_visual == N_VISUAL && n_text == 60 - 21 - 4);
}

// kept sets of other sizes in every layer
static void some_kept(int n_layer, std::vector<int32_t> & budgets, std::vector<int32_t> & kept) {
    for (int l = 0; l < n_layer; ++l) {
        budgets.push_back(10 + 3*l);
        for (int i = 0; i < budgets.back(); ++i) {
            kept.push_back(2*i + l);
        }
    }
}

// decoding behind it: the seed decides, and an eviction is the hiding of the same cells
static void synthetic_is_evicted() {
    std::vector<std::vector<std::vector<float>>> steps;
    for (int i = 0; i < 4; ++i) {
        auto ctx = context(2);
        CHECK(make(ctx.get(), 0, i == 3 ? 8 : 7) == 0);
        CHECK(make(ctx.get(), 1, 9) == 0);

        int32_t n_layer;
        CHECK(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, nullptr) == 0);
        std::vector<int32_t> budgets, kept;
        some_kept(n_layer, budgets, kept);
        if (i < 2) {
            CHECK(llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, i == 1) == 0);
        }
        auto stats = llama_aircache_stats_empty();
        CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
        CHECK(i == 0 ? stats.n_zone == budgets.back() : stats.n_cells == N_CELLS);

        steps.push_back(generate(ctx.get(), 0, END, 5, 3));
        for (const float x : steps.back()[0]) {
            CHECK(std::isfinite(x));
        }
    }
    check_same(steps[0], steps[1]);
    CHECK(max_diff(steps[2][0], steps[3][0]) > tolerance());
    CHECK(max_diff(steps[0][0], steps[2][0]) > 0);
}

// with queries, if a method asks for them
static void synthetic_scores() {
    auto ctx = context();
    const auto method = method_named("aircache", 0.2);
    std::vector<float> scores(N_VISUAL*64);

    CHECK(make(ctx.get(), 0, 1) == 0);
    CHECK(llama_aircache_score(ctx.get(), 0, &method, scores.data(), scores.size(), nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_STATE);
    CHECK(strstr(llama_aircache_error(), "synthetic"));
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1));

    CHECK(make(ctx.get(), 0, 1, &method) == 0);
    const auto res = compress(ctx.get(), 0, method, false);
    float sum = 0;
    for (int i = 0; i < N_VISUAL; ++i) {
        CHECK(res.scores[i] > 0);
        sum += res.scores[i];
    }
    CHECK(sum > 0.99f && sum < 1.01f); // a mean of softmax rows, so that the queries were not zeros of a scale of 0
    CHECK(res.scores[0] != res.scores[1]);
    generate(ctx.get(), 0, END, 5, 2);

    CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1));
    auto visual = method_named("aircache", 0.2);
    visual.window   = LLAMA_AIRCACHE_WINDOW_VISUAL;
    visual.window_n = 5;
    CHECK(make(ctx.get(), 0, 1, &visual) == 0);
    compress(ctx.get(), 0, visual, false);
}

static void synthetic_refusals() {
    auto ctx = context(2);
    const auto refused = [&](llama_seq_id seq, const std::vector<llama_aircache_span> & spans, llama_pos end, int32_t status, const char * why) {
        CHECK(llama_aircache_synthetic(ctx.get(), seq, spans.data(), spans.size(), end, 0, nullptr) == status);
        CHECK(strstr(llama_aircache_error(), why));
    };
    CHECK(llama_aircache_synthetic(nullptr, 0, IMAGES, 2, END, 0, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    refused(7, { SPAN }, N_PROMPT, LLAMA_AIRCACHE_ARGUMENT, "does not exist");
    refused(0, {}, N_PROMPT, LLAMA_AIRCACHE_ARGUMENT, "no spans");
    refused(0, { { 5, 5, 1 } }, 9, LLAMA_AIRCACHE_ARGUMENT, "not empty");
    refused(0, { { 5, 9, 4 } }, 9, LLAMA_AIRCACHE_ARGUMENT, "end in text");
    refused(0, { { 5, 9, 5 } }, 12, LLAMA_AIRCACHE_ARGUMENT, "5 columns");
    refused(0, { { 5, 9, 0 } }, 12, LLAMA_AIRCACHE_ARGUMENT, "0 columns");
    refused(0, { { 5, 50, 45 } }, 60, LLAMA_AIRCACHE_ARGUMENT, "more than the cache's");
    refused(0, { { 5, INT32_MAX - 1, 1 } }, INT32_MAX, LLAMA_AIRCACHE_ARGUMENT, "beyond");

    auto sums = method_named("h2o", 0.1);
    CHECK(make(ctx.get(), 0, 0, &sums) == LLAMA_AIRCACHE_UNSUPPORTED);
    sums.keep = 0;
    CHECK(make(ctx.get(), 0, 0, &sums) == LLAMA_AIRCACHE_ARGUMENT);

    CHECK(table_of(ctx.get(), 0).get_used() == 0);
    CHECK(make(ctx.get(), 0, 0) == 0);
    CHECK(make(ctx.get(), 0, 0) == LLAMA_AIRCACHE_STATE);
    CHECK(strstr(llama_aircache_error(), "empty one"));

    auto unified = context(2, true);
    decode(unified.get(), 1, 0, random_tokens(10, 1));
    CHECK(make(unified.get(), 0, 0) == LLAMA_AIRCACHE_STATE);
}

extern cases cases_of_synthetic;
cases cases_of_synthetic = {
    { "synthetic_cells", synthetic_cells },
    { "synthetic_is_evicted", synthetic_is_evicted },
    { "synthetic_scores", synthetic_scores },
    { "synthetic_refusals", synthetic_refusals },
};
