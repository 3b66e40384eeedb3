// Observation and scores: many sequences at once, windows, bounded memory.
#include "harness.h"

#include "graph/runner.h"
#include "llama-context.h"
#include "policy/policy.h"

static llama_context_ptr context_of(uint32_t n_seq, uint32_t n_ctx_seq, uint32_t n_ubatch, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = n_ctx_seq*n_seq;
    params.n_batch         = n_ctx_seq*n_seq;
    params.n_ubatch        = n_ubatch;
    params.n_seq_max       = n_seq;
    params.n_threads       = threads;
    params.n_threads_batch = threads;
    params.type_k          = type_kv;
    params.type_v          = type_kv;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context_ptr res(llama_init_from_model(model, params));
    CHECK(res);
    return res;
}

static llama_aircache & cache_of(const llama_context_ptr & ctx) {
    CHECK(llama_aircache_supported(ctx.get()) == 0);
    return llama_aircache::get(ctx.get());
}

// rows of the query buffers
static int64_t n_rows(const llama_context_ptr & ctx) {
    const ggml_tensor * q = cache_of(ctx).observers.queries(0);
    return q ? q->ne[1] : 0;
}

static llama_aircache_method window(int32_t kind, int32_t n) {
    auto res = llama_aircache_method_default();
    res.window     = kind;
    res.window_n   = n;
    res.keep       = 0.25;
    res.allocation = LLAMA_AIRCACHE_ALLOC_UNIFORM;
    return res;
}

static std::vector<float> scores_of(llama_context * ctx, llama_seq_id seq, const llama_aircache_method & method, std::vector<double> * alive = nullptr) {
    int32_t n_layer, n_visual;
    CHECK(llama_aircache_dims(ctx, seq, &n_layer, &n_visual, nullptr) == 0);
    std::vector<float>  res(n_layer*n_visual);
    std::vector<double> counts(n_layer);
    CHECK(llama_aircache_score(ctx, seq, &method, res.data(), res.size(), nullptr, 0, counts.data(), counts.size()) == 0);
    if (alive) {
        *alive = counts;
    }
    return res;
}

static float sum_of(const std::vector<float> & x) {
    return std::accumulate(x.begin(), x.end(), 0.0f);
}

// 128 sequences observed in the same ubatches, compressed differently, and decoded together: as each by itself
static void many_sequences() {
    const int n_seq = 128, n_prompt = 30;
    const llama_aircache_span span = { 3, 23, 5 };
    const auto prompt_of = [&](int s) { return random_tokens(n_prompt, s % 5); };
    const auto keep_of   = [](int s) { return 0.1 + 0.2*(s % 4); };

    for (const auto & base : { window(LLAMA_AIRCACHE_WINDOW_ELITE, 1), window(LLAMA_AIRCACHE_WINDOW_VISUAL, 6) }) {
        auto method = base;
        method.allocation = LLAMA_AIRCACHE_ALLOC_AIRCACHE; // every layer starts elsewhere

        auto many = context_of(n_seq, 64, 512, n_threads);
        std::vector<part> parts;
        for (int s = 0; s < n_seq; ++s) {
            CHECK(llama_aircache_observe(many.get(), s, &span, 1, n_prompt, &method, nullptr) == 0);
            parts.push_back({ s, 0, prompt_of(s) });
        }
        decode(many.get(), parts);

        std::vector<result> results;
        for (int s = 0; s < n_seq; ++s) {
            method.keep = keep_of(s);
            results.push_back(compress(many.get(), s, method, false));
        }
        CHECK(n_rows(many) == 0);

        std::vector<std::vector<std::vector<float>>> steps;
        for (int i = 0; i < 3; ++i) { // one token of each: masks filled on the host
            parts.clear();
            for (int s = 0; s < n_seq; ++s) {
                parts.push_back({ s, n_prompt + i, { 7 + i } });
            }
            steps.push_back(decode(many.get(), parts));
        }
        parts.clear();
        for (int s = 0; s < n_seq; ++s) { // four of each: masks made on the device
            parts.push_back({ s, n_prompt + 3, random_tokens(4, 99) });
        }
        steps.push_back(decode(many.get(), parts));

        for (int s : { 0, 1, 2, 3, 19, 64, 127 }) {
            auto one = context_of(1, 64, 512, n_threads);
            CHECK(llama_aircache_observe(one.get(), 0, &span, 1, n_prompt, &method, nullptr) == 0);
            decode(one.get(), 0, 0, prompt_of(s));
            method.keep = keep_of(s);
            const auto r = compress(one.get(), 0, method, false);
            CHECK(max_diff(r.scores, results[s].scores) <= 1e-2f*sum_of(r.scores)/r.scores.size() + 1e-4f);
            std::vector<std::vector<float>> alone, together;
            for (int i = 0; i < 3; ++i) {
                alone.push_back(decode(one.get(), 0, n_prompt + i, { 7 + i }));
            }
            alone.push_back(decode(one.get(), 0, n_prompt + 3, random_tokens(4, 99)));
            for (const auto & step : steps) {
                together.push_back(step[s]);
            }
            if (r.kept == results[s].kept) { // but for a tie of scores
                check_same(alone, together);
            }
        }
    }
}

// the last visual tokens are the same whatever the threads and however the prompt is cut into ubatches
static void visual_windows() {
    const auto method = window(LLAMA_AIRCACHE_WINDOW_VISUAL, 32);

    std::vector<std::vector<float>> all;
    for (const uint32_t n_ubatch : { 512, 64, 32 }) {
        for (const int threads : { 1, 2, 2 }) {
            auto ctx = context_of(1, 512, n_ubatch, threads);
            CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &method, nullptr) == 0);
            CHECK(n_rows(ctx) == 32);
            decode(ctx.get(), 0, 0, prompt());
            all.push_back(scores_of(ctx.get(), 0, method));
        }
    }
    // Of the same ubatches bit for bit. Of others, flash attention on the CPU takes another kernel, which sums in F16, and a
    // cache may round to the next step; another window is another by far more.
    const float other = ggml_is_quantized(type_kv) ? 0.2f : flash ? 0.05f : 1e-3f;
    for (size_t i = 1; i < all.size(); ++i) {
        const float mean = sum_of(all[0])/all[0].size();
        CHECK(max_diff(all[i - i % 3], all[i]) == 0.0f);
        CHECK(max_diff(all[0], all[i]) <= other*mean);
    }

    // a prompt in pieces: the ring takes in what it keeps, and no more
    auto ctx = context_of(1, 512, 32, 1);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &method, nullptr) == 0);
    const auto t = prompt();
    for (int i = 0, n = 1; i < N_PROMPT; i += n, n = std::min(n + 3, N_PROMPT - i)) {
        decode(ctx.get(), 0, i, tokens(t.begin() + i, t.begin() + i + n));
    }
    CHECK(max_diff(scores_of(ctx.get(), 0, method), all[0]) <= other*sum_of(all[0])/all[0].size());
}

// memory follows what the method needs and what the spans can hold, and goes with the observers
static void query_rows() {
    auto ctx = context_of(8, 512, 64, 1);

    const int n_text = N_PROMPT - SPAN.p1;
    const auto rows = [&](llama_aircache_method method) {
        CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &method, nullptr) == 0);
        const int64_t res = n_rows(ctx);
        CHECK(llama_aircache_clear(ctx.get(), 0) == 0);
        CHECK(n_rows(ctx) == 0);
        return res;
    };
    const bool mrope = llama_model_rope_type(model) == LLAMA_ROPE_TYPE_MROPE;

    CHECK(rows(window(LLAMA_AIRCACHE_WINDOW_ELITE,  1))     == n_text);
    CHECK(rows(window(LLAMA_AIRCACHE_WINDOW_TEXT,   1))     == n_text);
    CHECK(rows(window(LLAMA_AIRCACHE_WINDOW_LAST,   4))     == 4);
    CHECK(rows(window(LLAMA_AIRCACHE_WINDOW_LAST,   65536)) == n_text);
    CHECK(rows(window(LLAMA_AIRCACHE_WINDOW_VISUAL, 65536)) == (mrope ? 512 : SPAN.p1 - SPAN.p0));
    CHECK(rows(method_named("random", 0.5)) == 0);
    auto gated = window(LLAMA_AIRCACHE_WINDOW_VISUAL, 8);
    gated.last_term = 1.0;
    CHECK(rows(gated) == 9);
    gated.allocation = LLAMA_AIRCACHE_ALLOC_VL;
    CHECK(rows(gated) == 8 + n_text);

    // no more than what half as many would take on top, whatever comes and goes; the others' queries stay
    const auto elite = window(LLAMA_AIRCACHE_WINDOW_ELITE, 1);
    CHECK(llama_aircache_observe(ctx.get(), 3, &SPAN, 1, N_PROMPT, &elite, nullptr) == 0);
    decode(ctx.get(), 3, 0, prompt(3));
    const auto want = scores_of(ctx.get(), 3, elite);
    for (const int s : { 0, 1, 2, 4, 5, 6, 7 }) {
        CHECK(llama_aircache_observe(ctx.get(), s, &SPAN, 1, N_PROMPT, &elite, nullptr) == 0);
        decode(ctx.get(), s, 0, prompt(s));
        CHECK(max_diff(scores_of(ctx.get(), 3, elite), want) == 0.0f);
    }
    CHECK(n_rows(ctx) >= 8*n_text && n_rows(ctx) <= 12*n_text);
    const int64_t most = n_rows(ctx);
    for (const int s : { 5, 0, 7, 2 }) {
        compress(ctx.get(), s, elite, false);
    }
    llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &elite, nullptr) == 0); // into a gap
    CHECK(n_rows(ctx) == most);
    for (const int s : { 0, 1, 4, 6 }) {
        CHECK(llama_aircache_clear(ctx.get(), s) == 0);
        CHECK(max_diff(scores_of(ctx.get(), 3, elite), want) == 0.0f);
    }
    CHECK(n_rows(ctx) < most/2);
    CHECK(llama_aircache_clear(ctx.get(), 3) == 0);
    CHECK(n_rows(ctx) == 0);
}

// a method must not need more than was observed, and what it needs is as if all had been
static void needs() {
    auto all  = context();
    auto some = context();

    const auto last4 = window(LLAMA_AIRCACHE_WINDOW_LAST, 4);
    prefill(all.get(),  0);
    prefill(some.get(), 0, 0, &last4);
    CHECK(scores_of(all.get(), 0, last4) == scores_of(some.get(), 0, last4));
    const auto last2 = window(LLAMA_AIRCACHE_WINDOW_LAST, 2);
    CHECK(scores_of(all.get(), 0, last2) == scores_of(some.get(), 0, last2));

    std::vector<llama_aircache_method> more = {
        window(LLAMA_AIRCACHE_WINDOW_ELITE, 1), window(LLAMA_AIRCACHE_WINDOW_TEXT, 1), window(LLAMA_AIRCACHE_WINDOW_LAST, 5),
        window(LLAMA_AIRCACHE_WINDOW_VISUAL, 1), window(LLAMA_AIRCACHE_WINDOW_ALL, 1), last4,
    };
    more.back().allocation = LLAMA_AIRCACHE_ALLOC_VL;
    std::vector<float> scores(90*llama_model_n_layer(model));
    for (const auto & m : more) {
        CHECK(llama_aircache_score(some.get(), 0, &m, scores.data(), scores.size(), nullptr, 0, nullptr, 0) == LLAMA_AIRCACHE_STATE);
        CHECK(strstr(llama_aircache_error(), "llama_aircache_observe"));
    }
    compress(some.get(), 0, last4, false); // still usable
}

// sums of all tokens' attention cost a graph as much again: one at a time
static void one_sums_up() {
    const auto all = method_named("h2o", 0.25);
    auto ctx = context(3, true);
    CHECK(llama_aircache_observe(ctx.get(), 1, &SPAN, 1, N_PROMPT, &all, nullptr) == 0);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &all, nullptr) == LLAMA_AIRCACHE_STATE);
    CHECK(strstr(llama_aircache_error(), "sequence 1"));
    CHECK(llama_aircache_observe(ctx.get(), 1, &SPAN, 1, N_PROMPT, &all, nullptr) == 0); // in its own place
    CHECK(llama_aircache_observe(ctx.get(), 2, &SPAN, 1, N_PROMPT, nullptr, nullptr) == 0); // another window
    CHECK(llama_aircache_clear(ctx.get(), 1) == 0);
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, &all, nullptr) == 0);
    CHECK(llama_aircache_clear(ctx.get(), 2) == 0);
    decode(ctx.get(), 0, 0, prompt());
    compress(ctx.get(), 0, all, false);

    auto streams = context(2);
    CHECK(llama_aircache_observe(streams.get(), 0, &SPAN, 1, N_PROMPT, &all, nullptr) == 0);
    CHECK(llama_aircache_observe(streams.get(), 1, &SPAN, 1, N_PROMPT, &all, nullptr) == LLAMA_AIRCACHE_STATE); // one graph sums up one
    CHECK(strstr(llama_aircache_error(), "sequence 0"));
    CHECK(llama_aircache_clear(streams.get(), 0) == 0);
}

// scores do not depend on how the queries are cut into tiles, and large scratch does not stay
static void tiles() {
    const int n_prompt = 360;
    auto weighted = window(LLAMA_AIRCACHE_WINDOW_TEXT, 1);
    weighted.text_weights = true;
    auto wide = window(LLAMA_AIRCACHE_WINDOW_ELITE, 1);
    wide.alpha = 1e-6;
    wide.allocation = LLAMA_AIRCACHE_ALLOC_VL;
    auto causal = window(LLAMA_AIRCACHE_WINDOW_VISUAL, 90);
    causal.keys = LLAMA_AIRCACHE_KEYS_CAUSAL;

    for (const auto & method : { weighted, wide, causal }) {
        auto ctx = context();
        CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, n_prompt, &method, nullptr) == 0);
        const auto t = random_tokens(n_prompt, 4);
        decode(ctx.get(), 0, 0, tokens(t.begin(), t.begin() + 180));
        decode(ctx.get(), 0, 180, tokens(t.begin() + 180, t.end()));

        auto & air = cache_of(ctx);
        std::vector<double> alive, alive_tiled;
        air.tile_bytes = 1u << 30;
        const auto whole = scores_of(ctx.get(), 0, method, &alive);
        for (const size_t bytes : { 1u << 20, 100u << 10, 1u }) {
            air.tile_bytes = bytes;
            const auto tiled = scores_of(ctx.get(), 0, method, &alive_tiled);
            CHECK(max_diff(whole, tiled) <= 1e-5f*sum_of(whole)/whole.size());
            CHECK(alive == alive_tiled);
            if (bytes < 1u << 20) {
                CHECK(air.runner->warm()); // small: kept for the next prompt
            }
        }
        compress(ctx.get(), 0, method, false);
    }

    // sums that are taken while the prompt is decoded
    std::vector<std::vector<float>> sums;
    for (const size_t bytes : { 1u << 30, 200u << 10, 1u }) {
        const auto all = method_named("h2o", 0.25);
        auto ctx = context();
        cache_of(ctx).tile_bytes = bytes;
        prefill(ctx.get(), 0, 0, &all);
        sums.push_back(scores_of(ctx.get(), 0, all));
        CHECK(max_diff(sums[0], sums.back()) <= 1e-5f*sum_of(sums[0])/sums[0].size());
    }

    // attention of 650 queries to 740 keys is more than may stay
    auto ctx = context();
    CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, 750, &wide, nullptr) == 0);
    const auto t = random_tokens(750, 5);
    for (int i = 0; i < 750; i += 250) {
        decode(ctx.get(), 0, i, tokens(t.begin() + i, t.begin() + i + 250));
    }
    cache_of(ctx).tile_bytes = 1u << 30;
    scores_of(ctx.get(), 0, wide);
    CHECK(!cache_of(ctx).runner->warm());
    compress(ctx.get(), 0, wide, false);
}

// linear in the line, whatever the window, and the same as adding up
static void pooling() {
    for (const auto & [ny, nx] : std::vector<std::pair<int, int>> { { 1, 1 }, { 1, 17 }, { 7, 9 }, { 12, 5 } }) {
        const int n = ny*nx;
        std::vector<float> in(n);
        for (int i = 0; i < n; ++i) {
            in[i] = ((i*7919) % 101)/101.0f;
        }
        for (const int size : { 1, 3, 5, 9, 15, 33, 65535 }) {
            for (const bool max : { false, true }) {
                for (const bool grid : { false, true }) {
                    auto got = in;
                    aircache::pool(got.data(), 1, n, { { 0, n, nx } }, max, size, grid);

                    const int w = grid ? nx : n, h = n/w, half = size/2;
                    for (int y = 0; y < h; ++y) {
                        for (int x = 0; x < w; ++x) {
                            double want = 0.0;
                            for (int j = std::max(0, y - half); j <= std::min(h - 1, y + half); ++j) {
                                for (int i = std::max(0, x - half); i <= std::min(w - 1, x + half); ++i) {
                                    want = max ? std::max<double>(want, in[j*w + i]) : want + in[j*w + i];
                                }
                            }
                            if (!max) {
                                want /= grid ? (double) size*size : size;
                            }
                            CHECK(std::fabs(got[y*w + x] - want) <= 1e-5*want);
                        }
                    }
                }
            }
        }
    }
}

cases cases_of_observe = {
    { "many_sequences", many_sequences },
    { "visual_windows", visual_windows },
    { "query_rows", query_rows },
    { "needs", needs },
    { "one_sums_up", one_sums_up },
    { "tiles", tiles },
    { "pooling", pooling },
};
