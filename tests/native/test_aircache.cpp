// Tests of llama-aircache.h on a real model: what is kept, moved, masked, observed.
#include "harness.h"

//
// cases
//

static void moved_equals_masked() {
    for (const double keep : { 0.05, 0.3, 0.9 }) {
        auto a = context();
        auto b = context();
        const auto la = prefill(a.get(), 0);
        const auto lb = prefill(b.get(), 0);
        CHECK(max_diff(la, lb) == 0.0f);
        const auto ra = compress(a.get(), 0, keep, false);
        const auto rb = compress(b.get(), 0, keep, true);
        CHECK(ra.kept == rb.kept);
        check_same(generate(a.get(), 0, N_PROMPT, argmax(la), 24), generate(b.get(), 0, N_PROMPT, argmax(lb), 24));
        // a longer text afterwards spans several graphs
        check_same({ decode(a.get(), 0, N_PROMPT + 24, random_tokens(150, 7)) }, { decode(b.get(), 0, N_PROMPT + 24, random_tokens(150, 7)) });
    }
}

// budgets so different that device views start at another multiple of 256 than 0
static void rounded_views() {
    const llama_aircache_span span = { 11, 711, 0 };
    std::vector<std::vector<std::vector<float>>> runs;
    for (const bool mask_only : { false, true }) {
        auto ctx = context(1, false, 2048);
        CHECK(llama_aircache_observe(ctx.get(), 0, &span, 1, 750, nullptr, nullptr) == 0);
        const tokens all = random_tokens(750, 1);
        std::vector<float> l;
        for (int i = 0; i < 750; i += 250) {
            l = decode(ctx.get(), 0, i, tokens(all.begin() + i, all.begin() + i + 250));
        }

        int32_t n_layer;
        CHECK(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, nullptr) == 0);
        std::vector<int32_t> budgets, kept;
        for (int l = 0; l < n_layer; ++l) {
            budgets.push_back(l == 0 ? 650 : 300 - 250*(l % 2));
            for (int i = 0; i < budgets[l]; ++i) {
                kept.push_back(i*700/budgets[l]);
            }
        }
        CHECK(llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, mask_only) == 0);

        auto g = generate(ctx.get(), 0, 750, argmax(l), 8);
        g.push_back(decode(ctx.get(), 0, 758, random_tokens(100, 2)));
        runs.push_back(g);
    }
    check_same(runs[0], runs[1]);
}

static void evicted_cells_are_not_seen() {
    auto a = context();
    auto b = context();
    const auto la = prefill(a.get(), 0);
    prefill(b.get(), 0);
    compress(b.get(), 0, 0.05, false);
    // not the same as the full cache, or the masks would do nothing
    CHECK(max_diff(decode(a.get(), 0, N_PROMPT, { argmax(la) }), decode(b.get(), 0, N_PROMPT, { argmax(la) })) > 1e-3f);
}

static void keep_one_is_exact() {
    auto a = context();
    auto b = context();
    const auto la = decode(a.get(), 0, 0, prompt());
    const auto lb = prefill(b.get(), 0);
    CHECK(max_diff(la, lb) == 0.0f);
    compress(b.get(), 0, 1.0, false);
    const auto ga = generate(a.get(), 0, N_PROMPT, argmax(la), 16);
    const auto gb = generate(b.get(), 0, N_PROMPT, argmax(lb), 16);
    for (size_t i = 0; i < ga.size(); ++i) {
        CHECK(max_diff(ga[i], gb[i]) == 0.0f);
    }
}

static void region_is_atomic() {
    auto ctx = context();
    auto * mem = llama_get_memory(ctx.get());
    const auto l = prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);

    const auto g1 = generate(ctx.get(), 0, N_PROMPT, argmax(l), 8);

    CHECK(!llama_memory_seq_rm(mem, 0, 50, -1));          // cuts it
    CHECK(!llama_memory_seq_rm(mem, 0, 0, 5));            // the text before it
    CHECK(!llama_memory_seq_rm(mem, 0, 0, 60));
    CHECK(llama_memory_seq_pos_max(mem, 0) == N_PROMPT + 7);
    CHECK(llama_memory_seq_rm(mem, 0, N_PROMPT, -1));     // the tail
    CHECK(llama_memory_seq_pos_max(mem, 0) == N_PROMPT - 1);

    check_same(generate(ctx.get(), 0, N_PROMPT, argmax(l), 8), g1);

    CHECK(llama_memory_seq_rm(mem, 0, SPAN.p1, -1));      // back to the end of the image
    decode(ctx.get(), 0, SPAN.p1, random_tokens(20, 5));

    // all of it: the cache is as new
    CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
    CHECK(stats.n_cells == 0 && stats.n_zone == 0);
    auto fresh = context();
    CHECK(max_diff(decode(ctx.get(), 0, 0, prompt(4)), decode(fresh.get(), 0, 0, prompt(4))) == 0.0f);

    // and after clear()
    llama_memory_clear(mem, false);
    prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);
    llama_memory_clear(mem, true);
    auto fresh2 = context();
    CHECK(max_diff(decode(ctx.get(), 0, 0, prompt(4)), decode(fresh2.get(), 0, 0, prompt(4))) == 0.0f);
}

static void second_image() {
    // a later turn brings another image: survivors of the first stay, both zones are one
    const int p = N_PROMPT + 10;
    const llama_aircache_span span2 = { p + 5, p + 65, 0 };
    std::vector<std::vector<std::vector<float>>> runs;
    for (const bool mask_only : { false, true }) {
        auto ctx = context();
        const auto l = prefill(ctx.get(), 0);
        const auto r1 = compress(ctx.get(), 0, 0.2, mask_only);
        generate(ctx.get(), 0, N_PROMPT, argmax(l), 10);
        CHECK(llama_aircache_observe(ctx.get(), 0, &span2, 1, p + 85, nullptr, nullptr) == 0);
        const auto l2 = decode(ctx.get(), 0, p, random_tokens(85, 9));
        const auto r2 = compress(ctx.get(), 0, 0.3, mask_only);
        if (!mask_only) {
            auto stats = llama_aircache_stats_empty();
            CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
            int n_zone = 0;
            for (size_t i = 0; i < r1.budgets.size(); ++i) {
                n_zone = std::max(n_zone, r1.budgets[i] + r2.budgets[i]);
            }
            CHECK(stats.n_zone == n_zone);
        }
        auto g = generate(ctx.get(), 0, p + 85, argmax(l2), 12);
        g.insert(g.begin(), l2);
        runs.push_back(g);
    }
    check_same(runs[0], runs[1]);
}

static void streams() {
    // two sequences with streams of their own, compressed differently, decoded in one batch
    auto ctx = context(3);
    std::vector<std::vector<std::vector<float>>> alone(3);
    std::vector<llama_token> first(3);
    const double keep[3] = { 0.1, 0.5, 1.0 };

    for (int s = 0; s < 3; ++s) {
        auto one = context();
        const auto l = prefill(one.get(), 0, s);
        compress(one.get(), 0, keep[s], false);
        first[s] = argmax(l);
        alone[s] = generate(one.get(), 0, N_PROMPT, first[s], 8);
    }

    for (int s = 0; s < 3; ++s) {
        CHECK(llama_aircache_observe(ctx.get(), s, &SPAN, 1, N_PROMPT, nullptr, nullptr) == 0);
    }
    // all three prompts in one batch each for prefix and rest, so that their text is observed together
    decode(ctx.get(), { { 0, 0, prompt(0) } });
    for (int s = 1; s < 3; ++s) {
        tokens t = prompt(s);
        decode(ctx.get(), { { s, 0, tokens(t.begin(), t.begin() + 100) } });
    }
    {
        tokens t1 = prompt(1), t2 = prompt(2);
        decode(ctx.get(), { { 1, 100, tokens(t1.begin() + 100, t1.end()) }, { 2, 100, tokens(t2.begin() + 100, t2.end()) } });
    }
    for (int s = 0; s < 3; ++s) {
        compress(ctx.get(), s, keep[s], false);
    }

    std::vector<llama_token> cur = first;
    for (int i = 0; i < 8; ++i) {
        std::vector<part> parts;
        for (int s = 0; s < 3; ++s) {
            parts.push_back({ s, N_PROMPT + i, { cur[s] } });
        }
        const auto l = decode(ctx.get(), parts);
        for (int s = 0; s < 3; ++s) {
            if (max_diff(l[s], alone[s][i]) > tolerance()) {
                fprintf(stderr, "stream %d step %d: %g\n", s, i, max_diff(l[s], alone[s][i]));
                exit(1);
            }
            cur[s] = argmax(alone[s][i]);
        }
    }

    // a copy carries the zone
    auto * mem = llama_get_memory(ctx.get());
    llama_memory_seq_rm(mem, 2, -1, -1);
    llama_memory_seq_cp(mem, 0, 2, -1, -1);
    const auto l = decode(ctx.get(), { { 0, N_PROMPT + 8, { 5 } }, { 2, N_PROMPT + 8, { 5 } } });
    CHECK(max_diff(l[0], l[1]) < 1e-5f);
}

static void state_round_trip() {
    auto a = context();
    const auto l = prefill(a.get(), 0);
    compress(a.get(), 0, 0.2, false);

    std::vector<uint8_t> data(llama_state_seq_get_size(a.get(), 0));
    CHECK(llama_state_seq_get_data(a.get(), data.data(), data.size(), 0) == data.size());
    std::vector<uint8_t> whole(llama_state_get_size(a.get()));
    CHECK(llama_state_get_data(a.get(), whole.data(), whole.size()) == whole.size());

    const auto want = generate(a.get(), 0, N_PROMPT, argmax(l), 8);

    auto b = context();
    CHECK(llama_state_seq_set_data(b.get(), data.data(), data.size(), 0) == data.size());
    check_same(generate(b.get(), 0, N_PROMPT, argmax(l), 8), want);

    auto c = context();
    CHECK(llama_state_set_data(c.get(), whole.data(), whole.size()) == whole.size());
    check_same(generate(c.get(), 0, N_PROMPT, argmax(l), 8), want);
}

// one call gives what its four parts give, and writes no further than there is room
static void compress_at_once() {
    for (const char * name : { "aircache", "vlcache" }) {
        const auto method = method_named(name, 0.25);
        auto a = context();
        auto b = context();
        prefill(a.get(), 0, 0, &method);
        const auto last = prefill(b.get(), 0, 0, &method);

        int32_t n_layer, n_visual, n_text;
        CHECK(llama_aircache_dims(a.get(), 0, &n_layer, &n_visual, &n_text) == 0);
        std::vector<float>   scores(n_layer*n_visual);
        std::vector<uint8_t> observers(n_layer*n_text);
        std::vector<double>  alive(n_layer), strength(n_layer), skewness(n_layer);
        std::vector<int32_t> budgets(n_layer);

        // no room: refused, and nothing is written
        const auto score = [&](int64_t n_scores, int64_t n_observers, int64_t n_alive) {
            return llama_aircache_score(a.get(), 0, &method, scores.data(), n_scores, observers.data(), n_observers, alive.data(), n_alive);
        };
        for (const auto * wanted : { "scores", "observers", "alive" }) {
            CHECK(score(scores.size() - (wanted[0] == 's'), observers.size() - (wanted[0] == 'o'), n_layer - (wanted[0] == 'a')) == LLAMA_AIRCACHE_ARGUMENT);
            CHECK(strstr(llama_aircache_error(), (wanted + std::string(" has room for")).c_str()));
        }
        CHECK(score(scores.size(), observers.size(), n_layer) == 0);
        CHECK(llama_aircache_allocate(&method, scores.data(), alive.data(), n_layer, n_visual, budgets.data(), strength.data(), skewness.data()) == 0);
        std::vector<int32_t> kept(std::accumulate(budgets.begin(), budgets.end(), 0));
        CHECK(llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), 0, kept.data(), kept.size() - 1) == LLAMA_AIRCACHE_ARGUMENT);
        CHECK(strstr(llama_aircache_error(), "kept has room for") && std::count(kept.begin(), kept.end(), 0) == (int64_t) kept.size());
        CHECK(llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), 0, kept.data(), kept.size()) == 0);
        CHECK(llama_aircache_evict(a.get(), 0, budgets.data(), kept.data(), 0.0, false) == 0);

        result got;
        std::vector<uint8_t> got_observers(observers.size());
        std::vector<double>  got_alive(n_layer), got_strength(n_layer), got_skewness(n_layer);
        got.scores.resize(scores.size());
        got.budgets.resize(n_layer);
        got.kept.resize(kept.size() + 1, -7);

        auto out = llama_aircache_compression_empty();
        out.scores    = got.scores.data();    out.n_scores    = got.scores.size();
        out.observers = got_observers.data(); out.n_observers = got_observers.size();
        out.alive     = got_alive.data();     out.n_alive     = n_layer;
        out.strength  = got_strength.data();  out.n_strength  = n_layer;
        out.skewness  = got_skewness.data();  out.n_skewness  = n_layer;
        out.budgets   = got.budgets.data();
        out.kept      = got.kept.data();

        // no room: refused, and nothing has happened
        out.n_budgets  = n_layer - 1;
        out.n_kept_max = kept.size();
        CHECK(llama_aircache_compress(b.get(), 0, &method, false, &out) == LLAMA_AIRCACHE_ARGUMENT);
        CHECK(strstr(llama_aircache_error(), "budgets has room for"));
        out.n_budgets  = n_layer;
        out.n_kept_max = kept.size() - 1;
        CHECK(llama_aircache_compress(b.get(), 0, &method, false, &out) == LLAMA_AIRCACHE_ARGUMENT);
        CHECK(strstr(llama_aircache_error(), "kept has room for") && got.kept[0] == -7);

        out.n_kept_max = kept.size();
        CHECK(llama_aircache_compress(b.get(), 0, &method, false, &out) == 0);
        CHECK(out.n_layer == n_layer && out.n_visual == n_visual && out.n_text == n_text && out.n_kept == (int64_t) kept.size());
        CHECK(got.kept.back() == -7);
        got.kept.pop_back();
        CHECK(got.scores == scores && got_observers == observers && got_alive == alive && got_strength == strength && got_skewness == skewness);
        CHECK(got.budgets == budgets && got.kept == kept);
        CHECK(generate(a.get(), 0, N_PROMPT, argmax(last), 3) == generate(b.get(), 0, N_PROMPT, argmax(last), 3));
    }

    // nothing is wanted but the eviction
    auto ctx = context();
    const auto method = method_named("snapkv", 0.5);
    prefill(ctx.get(), 0, 0, &method);
    CHECK(llama_aircache_compress(ctx.get(), 0, &method, false, nullptr) == 0);
    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0 && stats.n_zone == 45);
}

// every named method: moved equals masked, sums right, nothing kept twice
static void methods() {
    for (int i = 0; const char * name = llama_aircache_method_name(i); ++i) {
        const auto method = method_named(name, 0.25);
        auto a = context();
        auto b = context();
        const auto la = prefill(a.get(), 0, 0, &method);
        const auto lb = prefill(b.get(), 0, 0, &method);
        CHECK(max_diff(la, lb) == 0.0f);
        const auto ra = compress(a.get(), 0, method, false);
        const auto rb = compress(b.get(), 0, method, true);
        CHECK(ra.scores == rb.scores && ra.kept == rb.kept);
        const double n = 0.25*90*ra.budgets.size();
        CHECK(std::accumulate(ra.budgets.begin(), ra.budgets.end(), 0) == std::floor(n + 0.5));
        check_same(generate(a.get(), 0, N_PROMPT, argmax(la), 8), generate(b.get(), 0, N_PROMPT, argmax(lb), 8));
    }
    llama_aircache_method m;
    CHECK(llama_aircache_method_by_name("nonsense", &m) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(strstr(llama_aircache_error(), "\"nonsense\""));
    CHECK(llama_aircache_method_by_name(nullptr, &m) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_method_by_name("aircache", nullptr) == LLAMA_AIRCACHE_ARGUMENT);
}

// observing must not change what is computed
static void observation_is_passive() {
    const auto all = method_named("h2o", 0.25);
    auto a = context();
    auto b = context();
    const auto la = decode(a.get(), 0, 0, prompt());
    const auto lb = prefill(b.get(), 0, 0, &all);
    CHECK(max_diff(la, lb) == 0.0f);
}

// merging nothing is dropping; merging something changes the kept rows and leaves the cache consistent
static void merging() {
    auto method = method_named("aircache", 0.2);
    std::vector<std::vector<std::vector<float>>> runs;
    for (const double share : { 0.0, 0.4, 1.0 }) {
        method.merge = share;
        auto ctx = context();
        const auto l = prefill(ctx.get(), 0);
        compress(ctx.get(), 0, method, false);
        runs.push_back(generate(ctx.get(), 0, N_PROMPT, argmax(l), 4));
    }
    CHECK(max_diff(runs[0][0], runs[1][0]) > 1e-3f);
    CHECK(max_diff(runs[1][0], runs[2][0]) > 1e-3f);
    for (const float x : runs[2][3]) {
        CHECK(std::isfinite(x));
    }
}

static void budget_rules() {
    auto method = llama_aircache_method_default();
    int32_t budgets[3];
    double st[3], sk[3];
    // all zero scores: uniform
    std::vector<float> zero(3*10, 0.0f);
    method.keep = 0.25;
    CHECK(llama_aircache_allocate(&method, zero.data(), nullptr, 3, 10, budgets, st, sk) == 0);
    CHECK(budgets[0] + budgets[1] + budgets[2] == 8 && budgets[0] == 3 && budgets[1] == 3 && budgets[2] == 2);
    CHECK(st[0] == 0.0 && sk[0] == 0.0);
    std::vector<float> nan(30, NAN);
    CHECK(llama_aircache_allocate(&method, nan.data(), nullptr, 3, 10, budgets, st, sk) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_allocate(&method, zero.data(), nullptr, 1 << 20, 1 << 20, budgets, st, sk) == LLAMA_AIRCACHE_ARGUMENT);
    method.allocation = LLAMA_AIRCACHE_ALLOC_VL;
    for (const double bad : { (double) NAN, (double) INFINITY, -1.0 }) {
        const double alive[] = { 1.0, bad, 1.0 };
        CHECK(llama_aircache_allocate(&method, zero.data(), alive, 3, 10, budgets, st, sk) == LLAMA_AIRCACHE_ARGUMENT);
    }
    CHECK(llama_aircache_allocate(nullptr, zero.data(), nullptr, 3, 10, budgets, st, sk) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_allocate(&method, nullptr, nullptr, 3, 10, budgets, st, sk) == LLAMA_AIRCACHE_ARGUMENT);
}

cases cases_of_aircache = {
    { "moved_equals_masked", moved_equals_masked },
    { "evicted_cells_are_not_seen", evicted_cells_are_not_seen },
    { "keep_one_is_exact", keep_one_is_exact },
    { "region_is_atomic", region_is_atomic },
    { "second_image", second_image },
    { "streams", streams },
    { "state_round_trip", state_round_trip },
    { "compress_at_once", compress_at_once },
    { "methods", methods },
    { "rounded_views", rounded_views },
    { "merging", merging },
    { "observation_is_passive", observation_is_passive },
    { "budget_rules", budget_rules },
};
