// What an eviction frees: cells, pages that come and go on the CPU, buffers that are made anew on devices; and that graphs go on
// as they are.
#include "harness.h"

#include "cache/faults.h"
#include "cache/mapping.h"

#include "ggml-cpp.h"

#include <fstream>

static int64_t allocated(const llama_context_ptr & ctx) {
    auto bytes = llama_aircache_bytes_empty();
    CHECK(llama_aircache_memory(ctx.get(), -1, &bytes) == 0);
    CHECK(bytes.allocated <= bytes.reserved);
    return bytes.allocated;
}

static llama_aircache_seq_stats stats_of(const llama_context_ptr & ctx, llama_seq_id seq = 0) {
    auto res = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx.get(), seq, &res) == 0);
    return res;
}

// do pages of K and V come and go by themselves?
static bool mapped() {
#if defined(__linux__)
    return !on_device;
#else
    return false;
#endif
}

// 11 tokens, 1,900 visual ones, 39 of text
static const int N_LONG = 1950;

static std::vector<float> prefill_long(llama_context * ctx, llama_seq_id seq = 0) {
    const llama_aircache_span span = { 11, 1911, 0 };
    CHECK(llama_aircache_observe(ctx, seq, &span, 1, N_LONG, nullptr, nullptr) == 0);
    const tokens toks = random_tokens(N_LONG, 1);
    std::vector<float> res;
    for (int i = 0; i < N_LONG; i += 195) {
        res = decode(ctx, seq, i, tokens(toks.begin() + i, toks.begin() + i + 195));
    }
    return res;
}

// Untouched cells take no memory, evicted ones give theirs back; what is computed stays the same (moved_equals_masked).
static void memory_follows() {
    auto ctx = context(1, false, 4096);

    const int64_t row = stats_of(ctx).kv_bytes_cell;
    const int64_t all = 4096*row;
    if (!mapped()) {
        CHECK(allocated(ctx) == all);
        return;
    }
    CHECK(allocated(ctx) < all/20);

    prefill_long(ctx.get());
    const int64_t full = allocated(ctx);
    CHECK(full >= N_LONG*row && full < all);

    compress(ctx.get(), 0, 0.1, false);

    const auto stats = stats_of(ctx);
    if (flash) { // else V lies by channel, and a channel's cells are less than a page or two
        CHECK(full - allocated(ctx) >= (N_LONG*row - stats.kv_bytes)*8/10);
    }
    CHECK(allocated(ctx) >= stats.kv_bytes);

    auto * mem = llama_get_memory(ctx.get());
    llama_memory_seq_rm(mem, 0, -1, -1);
    CHECK(allocated(ctx) < all/20);

    // whatever empties it
    prefill_long(ctx.get());
    llama_memory_clear(mem, true);
    CHECK(allocated(ctx) < all/20);
}

// what is rolled back takes no memory either
static void tails_are_given_back() {
    auto ctx = context(1, false, 4096);
    if (!mapped() || !flash) {
        return;
    }
    prefill_long(ctx.get());
    const int64_t full = allocated(ctx);
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 200, -1));
    CHECK(allocated(ctx) < full/4);
}

// a copied stream takes what it holds, not its whole window
static void copies_take_what_they_hold() {
    auto ctx = context(2, false, 4096);
    if (!mapped() || !flash) {
        return;
    }
    prefill_long(ctx.get());
    compress(ctx.get(), 0, 0.1, false);
    const int64_t one = allocated(ctx);

    llama_memory_seq_cp(llama_get_memory(ctx.get()), 0, 1, -1, -1);
    const auto l = decode(ctx.get(), { { 0, N_LONG, { 7 } }, { 1, N_LONG, { 7 } } });
    CHECK(max_diff(l[0], l[1]) <= tolerance());
    CHECK(allocated(ctx) < one*5/2);
}

// a copy waits until something is decoded: what is removed meanwhile is copied all the same
static void copies_of_what_is_removed() {
    auto ctx = context(2);
    const auto l = prefill(ctx.get(), 0);
    CHECK(allocated(ctx) > 0);
    auto * mem = llama_get_memory(ctx.get());
    const auto want = generate(ctx.get(), 0, N_PROMPT, argmax(l), 4);
    CHECK(llama_memory_seq_rm(mem, 0, N_PROMPT, -1));

    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
    check_same(generate(ctx.get(), 1, N_PROMPT, argmax(l), 4), want);
}

// A state holds the rows below a layer's survivors, too: neither saving nor restoring them takes memory for good.
static void states_take_what_they_hold() {
    auto ctx = context(2, false, 4096);
    if (!mapped() || !flash) {
        return;
    }
    prefill_long(ctx.get());
    compress(ctx.get(), 0, method_named("pyramidkv", 0.3), false); // budgets that differ
    const int64_t before = allocated(ctx);

    std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0) == state.size());
    CHECK(allocated(ctx) == before);

    CHECK(llama_state_seq_set_data(ctx.get(), state.data(), state.size(), 1) == state.size());
    CHECK(allocated(ctx) <= before*21/10);
}

// addresses are not memory: a window of twice the machine's
static void windows_beyond_ram() {
#if defined(__linux__)
    int mode = 0;
    std::ifstream("/proc/sys/vm/overcommit_memory") >> mode;
    if (mode == 2) {
        return; // then addresses are counted as memory
    }
    std::string name;
    int64_t kib = 0;
    std::ifstream("/proc/meminfo") >> name >> kib;
    CHECK(name == "MemTotal:" && kib > 0);

    ggml_context_ptr ctx(ggml_init({ 4*ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor * t = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, 2*1024*kib);
    ggml_tensor * v = ggml_view_1d(ctx.get(), t, 4, ggml_nbytes(t) - 4);
    ggml_backend_buffer_ptr buf(llama_aircache_alloc(ctx.get(), ggml_backend_cpu_buffer_type()));
    CHECK(buf && llama_aircache_is_mapped(t) && llama_aircache_is_mapped(v));

    int32_t word = 0x01020304;
    ggml_backend_tensor_set(v, &word, 0, 4);
    ggml_backend_tensor_get(t, &word, ggml_nbytes(t) - 4, 4);
    CHECK(word == 0x01020304);
    ggml_backend_buffer_clear(buf.get(), 0);
    ggml_backend_tensor_get(v, &word, 0, 4);
    CHECK(word == 0);
#endif
}

// Buffers of another size hold the same, bit by bit: after a compression, without one, and while they grow again.
static void resized_is_the_same() {
    for (const double keep : { 0.1, 1.0 }) {
        std::vector<std::vector<std::vector<float>>> runs;
        for (const bool resize : { false, true }) {
            auto ctx = context(1, false, 2304);
            const auto maybe = [&](int n) {
                if (resize) {
                    CHECK(llama_aircache_resize(ctx.get(), n) == 0);
                }
            };
            const int64_t row = stats_of(ctx).kv_bytes_cell;
            maybe(0);
            maybe(2000); // at once, not with every batch
            const auto first = prefill_long(ctx.get());
            compress(ctx.get(), 0, keep, false);
            maybe(0);

            const auto stats = stats_of(ctx);
            CHECK(stats.n_free == 2304 - stats.n_cells);
            if (resize && !mapped()) {
                CHECK(allocated(ctx) == GGML_PAD(stats.n_cells, 256)*row);
            }

            auto run = generate(ctx.get(), 0, N_LONG, argmax(first), 8);
            run.push_back(decode(ctx.get(), 0, N_LONG + 8, random_tokens(250, 9))); // over a multiple of 256
            maybe(0);
            run.push_back(decode(ctx.get(), 0, N_LONG + 258, { 5 }));
            runs.push_back(run);

            // a window that is full is full
            const int n_free = stats_of(ctx).n_free;
            decode(ctx.get(), 0, N_LONG + 259, random_tokens(std::min(n_free, 250), 3));
            if (n_free <= 250) {
                CHECK(stats_of(ctx).n_free == 0);
            }
        }
        for (size_t i = 0; i < runs[0].size(); ++i) {
            CHECK(max_diff(runs[0][i], runs[1][i]) == 0.0f);
        }
    }
}

// sequences of their own streams share the size of the largest
static void resized_streams() {
    std::vector<std::vector<std::vector<float>>> runs;
    for (const bool resize : { false, true }) {
        auto ctx = context(2, false, 2304);
        const auto a = prefill_long(ctx.get(), 0);
        compress(ctx.get(), 0, 0.1, false);
        if (resize) {
            CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
        }
        const auto b = prefill(ctx.get(), 1);
        compress(ctx.get(), 1, 0.3, false);
        if (resize) {
            CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
            CHECK(mapped() || allocated(ctx) < 2*1024*stats_of(ctx).kv_bytes_cell);
        }
        std::vector<std::vector<float>> run;
        for (int i = 0; i < 4; ++i) {
            for (auto & l : decode(ctx.get(), { { 0, N_LONG + i, { argmax(a) } }, { 1, N_PROMPT + i, { argmax(b) } } })) {
                run.push_back(std::move(l));
            }
        }
        llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1);
        run.push_back(prefill_long(ctx.get(), 0)); // grows batch by batch
        runs.push_back(run);
    }
    for (size_t i = 0; i < runs[0].size(); ++i) {
        CHECK(max_diff(runs[0][i], runs[1][i]) == 0.0f);
    }
}

static std::vector<uint8_t> save(const llama_context_ptr & ctx) {
    std::vector<uint8_t> res(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), res.data(), res.size(), 0) == res.size());
    return res;
}

// states do not depend on the size, and a restored one makes buffers grow
static void resized_states() {
    auto ctx = context(1, false, 2304);
    const auto first = prefill_long(ctx.get());
    const auto full  = save(ctx);
    compress(ctx.get(), 0, 0.1, false);
    const auto state = save(ctx);
    CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
    CHECK(save(ctx) == state);

    const auto want = generate(ctx.get(), 0, N_LONG, argmax(first), 4);
    CHECK(llama_state_seq_set_data(ctx.get(), full.data(), full.size(), 0) == full.size());
    CHECK(save(ctx) == full);
    CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
    CHECK(llama_state_seq_set_data(ctx.get(), state.data(), state.size(), 0) == state.size());
    CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
    const auto got = generate(ctx.get(), 0, N_LONG, argmax(first), 4);
    for (size_t i = 0; i < want.size(); ++i) {
        CHECK(max_diff(want[i], got[i]) == 0.0f);
    }
}

// whatever fails, the old buffers serve on
static void resizing_fails_whole() {
    auto ctx = context(1, false, 2304);
    llama_aircache_fault_arm("", 0);
    const auto first = prefill_long(ctx.get());
    compress(ctx.get(), 0, 0.1, false);
    const auto    state  = save(ctx);
    const int64_t before = allocated(ctx);

    int n_failed = 0;
    for (const char * point : { "buffer", "graph", "compute" }) {
        llama_aircache_fault_arm(point, 1);
        const int32_t status = llama_aircache_resize(ctx.get(), 0);
        if (status != 0) {
            CHECK(status == (strcmp(point, "compute") == 0 ? LLAMA_AIRCACHE_COMPUTE : LLAMA_AIRCACHE_MEMORY));
            CHECK(allocated(ctx) == before && save(ctx) == state);
            n_failed++;
        }
    }
    llama_aircache_fault_arm("", 0);
    CHECK(n_failed == (mapped() ? 0 : 3));
    CHECK(llama_aircache_resize(ctx.get(), 0) == 0);
    CHECK(save(ctx) == state);

    CHECK(llama_aircache_resize(ctx.get(), -1)   == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_resize(ctx.get(), 2305) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_memory(ctx.get(), 0, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
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
    { "copies_of_what_is_removed", copies_of_what_is_removed },
    { "copies_take_what_they_hold", copies_take_what_they_hold },
    { "graphs_are_reused", graphs_are_reused },
    { "memory_follows", memory_follows },
    { "resized_is_the_same", resized_is_the_same },
    { "resized_states", resized_states },
    { "resized_streams", resized_streams },
    { "resizing_fails_whole", resizing_fails_whole },
    { "states_take_what_they_hold", states_take_what_they_hold },
    { "tails_are_given_back", tails_are_given_back },
    { "windows_beyond_ram", windows_beyond_ram },
};
