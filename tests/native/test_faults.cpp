// Every backend call of observe, score and evict fails once, and every allocation (by default a part of them; all with
// PYAIRCACHE_ALL_FAULTS=1); afterwards all is as docs/cache.md says.
#include "harness.h"

#include "cache/faults.h"

static llama_aircache_method method_of(const std::string & name) {
    auto res = method_named(name == "merge" || name == "features" ? "aircache" : name.c_str(), 0.3);
    if (name == "merge") {
        res.merge = 0.5;
    }
    if (name == "features") {
        res.value_norm = res.diversity = true;
        res.pool = LLAMA_AIRCACHE_POOL_MAX;
        res.last_term = 1.0;
    }
    return res;
}

// AddressSanitizer's operator new goes before the library's, so that no allocation fails on purpose.
#if defined(__has_feature)
#    if __has_feature(address_sanitizer)
#        define OTHER_NEW 1
#    endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#    define OTHER_NEW 1
#endif
#ifdef OTHER_NEW
static constexpr bool ALLOCATIONS_FAIL = false;
#else
static constexpr bool ALLOCATIONS_FAIL = true;
#endif

// one question: its prompt's logits, and those of what follows
using answer = std::vector<std::vector<float>>;

// Asks; what fails is called once more, with nothing armed, as it must have left everything as it was. But for an
// eviction that failed amid its moves: then the sequence is gone. Returns the failed calls' status, or OK.
static int32_t ask(llama_context * ctx, const llama_aircache_method & method, answer & out) {
    auto * mem = llama_get_memory(ctx);
    int32_t res = LLAMA_AIRCACHE_OK;

    const auto attempt = [&](auto && call) {
        const int32_t status = call();
        if (status != LLAMA_AIRCACHE_OK) {
            CHECK(res == LLAMA_AIRCACHE_OK); // at most once
            CHECK(strlen(llama_aircache_error()) > 0);
            res = status;
        }
        return status;
    };
    const auto insist = [&](auto && call) {
        if (attempt(call) != LLAMA_AIRCACHE_OK) {
            CHECK(call() == LLAMA_AIRCACHE_OK);
        }
    };

    insist([&] { return llama_aircache_observe(ctx, 0, &SPAN, 1, N_PROMPT, &method, nullptr); });
    out = { decode(ctx, 0, 0, prompt()) };

    int32_t n_layer, n_visual;
    CHECK(llama_aircache_dims(ctx, 0, &n_layer, &n_visual, nullptr) == 0);
    std::vector<float>   scores(n_layer*n_visual);
    std::vector<double>  alive(n_layer);
    std::vector<int32_t> budgets(n_layer);
    insist([&] { return llama_aircache_score(ctx, 0, &method, scores.data(), scores.size(), nullptr, 0, alive.data(), alive.size()); });
    CHECK(llama_aircache_allocate(&method, scores.data(), alive.data(), n_layer, n_visual, budgets.data(), nullptr, nullptr) == 0);
    std::vector<int32_t> kept(std::accumulate(budgets.begin(), budgets.end(), 0));
    CHECK(llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), 0, kept.data(), kept.size()) == 0);

    const auto evict  = [&] { return llama_aircache_evict(ctx, 0, budgets.data(), kept.data(), method.merge, false); };
    const auto status = attempt(evict);
    if (status == LLAMA_AIRCACHE_COMPUTE) {
        auto stats = llama_aircache_stats_empty();
        CHECK(llama_aircache_stats(ctx, 0, &stats) == 0);
        CHECK(stats.n_cells == 0 && stats.n_zone == 0 && llama_memory_seq_pos_max(mem, 0) == -1);
        return res;
    }
    if (status != LLAMA_AIRCACHE_OK) {
        CHECK(evict() == LLAMA_AIRCACHE_OK);
    }
    for (auto & l : generate(ctx, 0, N_PROMPT, argmax(out[0]), 1)) {
        out.push_back(std::move(l));
    }
    CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
    return res;
}

static void every_fault_once() {
    std::map<int32_t, int> n_failed;

    for (const char * name : { "aircache", "snapkv", "h2o", "vlcache", "merge", "features" }) {
        const auto method = method_of(name);
        auto ctx = context(1, false, 256);

        llama_aircache_fault_arm("", 0);
        answer want, got;
        CHECK(ask(ctx.get(), method, want) == LLAMA_AIRCACHE_OK);

        for (const char * point : { "*", "alloc" }) {
            if (strcmp(point, "alloc") == 0 && !ALLOCATIONS_FAIL) {
                continue;
            }
            llama_aircache_fault_arm(point, 0);
            CHECK(ask(ctx.get(), method, got) == LLAMA_AIRCACHE_OK);
            CHECK(got == want);
            const int64_t total = llama_aircache_fault_count();
            CHECK(total > 5);

            // of the many allocations a part, from the first one on, unless all are asked for
            const bool    all  = strcmp(point, "*") == 0 || getenv("PYAIRCACHE_ALL_FAULTS");
            const int64_t step = all ? 1 : std::max<int64_t>(1, total/12);
            for (int64_t n = 1; n <= total; n += step) {
                llama_aircache_fault_arm(point, n);
                const int32_t status = ask(ctx.get(), method, got);
                CHECK(status != LLAMA_AIRCACHE_OK || strcmp(point, "alloc") == 0); // std::stable_sort does without its buffer
                n_failed[status]++;
                if (got != want) { // the sequence is gone: the next one is answered right
                    CHECK(status == LLAMA_AIRCACHE_COMPUTE);
                    CHECK(ask(ctx.get(), method, got) == LLAMA_AIRCACHE_OK);
                    CHECK(got == want);
                }
            }
        }
    }

    fprintf(stderr, "failed on purpose: %d memory, %d compute; done without: %d\n", n_failed[LLAMA_AIRCACHE_MEMORY],
            n_failed[LLAMA_AIRCACHE_COMPUTE], n_failed[LLAMA_AIRCACHE_OK]);
    CHECK(n_failed[LLAMA_AIRCACHE_MEMORY] > 0 && n_failed[LLAMA_AIRCACHE_COMPUTE] > 0);
    CHECK(n_failed[LLAMA_AIRCACHE_OK] < n_failed[LLAMA_AIRCACHE_MEMORY]/4);
    CHECK(n_failed.size() == 3 || n_failed.size() == 2);
}

// hiding instead of moving leaves everything as it was, too
static void masks_fail_whole() {
    auto ctx = context(1, false, 256);
    llama_aircache_fault_arm("", 0);
    prefill(ctx.get(), 0);

    int32_t n_layer;
    CHECK(llama_aircache_dims(ctx.get(), 0, &n_layer, nullptr, nullptr) == 0);
    std::vector<int32_t> budgets(n_layer, 3), kept;
    for (int i = 0; i < n_layer; ++i) {
        kept.insert(kept.end(), { 1, 5, 7 });
    }

    int64_t n = 1;
    for (; ; ++n) {
        CHECK(n < 100000); // else it never succeeds
        llama_aircache_fault_arm("alloc", n);
        if (llama_aircache_evict(ctx.get(), 0, budgets.data(), kept.data(), 0.0, true) == LLAMA_AIRCACHE_OK) {
            break;
        }
        llama_aircache_fault_arm("", 0);
        auto stats = llama_aircache_stats_empty();
        CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
        CHECK(stats.n_zone == 0 && stats.n_cells == N_PROMPT);
        int32_t n_visual;
        CHECK(llama_aircache_dims(ctx.get(), 0, nullptr, &n_visual, nullptr) == 0 && n_visual == 90); // still observed
    }
    CHECK(n > 10 || !ALLOCATIONS_FAIL);
    llama_aircache_fault_arm("", 0);
}

cases cases_of_faults = {
    { "every_fault_once", every_fault_once },
    { "masks_fail_whole", masks_fail_whole },
};
