// What an eviction frees: cells, their bytes, pages of RAM; and that graphs go on as they are.
#include "harness.h"

// Pages of untouched cells are not in RAM, those of evicted ones no longer; what is computed stays the same (moved_equals_masked).
static void memory_follows() {
    const auto resident = [](const llama_context_ptr & ctx) {
        int64_t res;
        CHECK(llama_aircache_resident(ctx.get(), &res) == 0);
        return res;
    };
    const auto row_bytes = [](const llama_context_ptr & ctx) {
        auto stats = llama_aircache_stats_empty();
        CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
        return stats.kv_bytes_cell;
    };

    const llama_aircache_span span = { 11, 1911, 0 };
    auto ctx = context(1, false, 4096);

    const int64_t all = 4096*row_bytes(ctx);
#if defined(__linux__)
    const bool follows = !on_device;
#else
    const bool follows = false;
#endif
    if (!follows) {
        CHECK(resident(ctx) == all);
        return;
    }
    CHECK(resident(ctx) < all/20);

    CHECK(llama_aircache_observe(ctx.get(), 0, &span, 1, 1950, nullptr, nullptr) == 0);
    const tokens toks = random_tokens(1950, 1);
    for (int i = 0; i < 1950; i += 195) {
        decode(ctx.get(), 0, i, tokens(toks.begin() + i, toks.begin() + i + 195));
    }
    const int64_t full = resident(ctx);
    CHECK(full >= 1950*row_bytes(ctx) && full < all);

    compress(ctx.get(), 0, 0.1, false);

    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
    const int64_t freed = 1950*stats.kv_bytes_cell - stats.kv_bytes;
    if (flash) { // else V lies by channel, and a channel's cells are less than a page or two
        CHECK(full - resident(ctx) >= freed*8/10);
    }
    CHECK(resident(ctx) >= stats.kv_bytes);

    llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1);
    CHECK(resident(ctx) < all/20);
}

static void cells_are_freed() {
    auto ctx = context(1, false, 256);
    prefill(ctx.get(), 0);

    auto before = llama_aircache_stats_empty(), after = before;
    CHECK(llama_aircache_stats(ctx.get(), 0, &before) == 0);
    CHECK(before.n_cells == N_PROMPT);
    CHECK(before.kv_bytes == (int64_t) N_PROMPT*before.kv_bytes_cell);

    const auto r = compress(ctx.get(), 0, 0.1, false);
    CHECK(llama_aircache_stats(ctx.get(), 0, &after) == 0);

    const int n_text = N_PROMPT - (SPAN.p1 - SPAN.p0);
    const int n_zone = *std::max_element(r.budgets.begin(), r.budgets.end());
    const int n_kept = std::accumulate(r.budgets.begin(), r.budgets.end(), 0);
    CHECK(after.n_zone  == n_zone);
    CHECK(after.n_cells == n_zone + n_text);
    CHECK(after.n_free  == 256 - after.n_cells);
    CHECK(after.kv_bytes == (before.kv_bytes_cell/(int64_t) r.budgets.size())*((int64_t) n_kept + n_text*(int64_t) r.budgets.size()));

    // the room is really there: more tokens than would have fitted into the full cache
    const int n_more = after.n_free;
    CHECK(N_PROMPT + n_more > 256);
    decode(ctx.get(), 0, N_PROMPT, random_tokens(n_more, 3));
    CHECK(llama_aircache_stats(ctx.get(), 0, &after) == 0);
    CHECK(after.n_free == 0);
}

static void graphs_are_reused() {
    auto ctx = context();
    const auto l = prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);
    const int before = llama_perf_context(ctx.get()).n_reused;
    generate(ctx.get(), 0, N_PROMPT, argmax(l), 64);
    CHECK(llama_perf_context(ctx.get()).n_reused - before >= 62); // one new graph after the eviction, one at a 256 border
}

cases cases_of_memory = {
    { "cells_are_freed", cells_are_freed },
    { "memory_follows", memory_follows },
    { "graphs_are_reused", graphs_are_reused },
};
