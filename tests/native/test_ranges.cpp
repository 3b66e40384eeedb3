// Tests of what llama_memory_seq_* may do to a sequence with a compressed image: never cut it.
#include "harness.h"

#include <random>
#include <set>

static int32_t n_cells(llama_context * ctx, llama_seq_id seq) {
    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx, seq, &stats) == 0);
    return stats.n_cells;
}

static int32_t n_zone(llama_context * ctx, llama_seq_id seq) {
    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx, seq, &stats) == 0);
    return stats.n_zone;
}

// the prompt with a span of its own; compressed to a fifth
static std::vector<float> prefill_span(llama_context * ctx, llama_seq_id seq, const llama_aircache_span & span) {
    CHECK(llama_aircache_observe(ctx, seq, &span, 1, N_PROMPT, nullptr, nullptr) == 0);
    auto res = decode(ctx, seq, 0, prompt());
    compress(ctx, seq, 0.2, false);
    return res;
}

// A sequence as a caller sees it: the positions of text, before and behind one compressed image at [z0, z1).
struct simple_model {
    std::set<llama_pos> text;
    llama_pos z0, z1;

    bool covers_before(llama_pos p0, llama_pos p1) const {
        return std::all_of(text.begin(), text.end(), [&](llama_pos p) { return p >= z0 || (p >= p0 && p < p1); });
    }
    bool touches_before(llama_pos p0, llama_pos p1) const {
        return std::any_of(text.begin(), text.end(), [&](llama_pos p) { return p < z0 && p >= p0 && p < p1; });
    }
    bool touches_image(llama_pos p0, llama_pos p1) const { return p0 < p1 && p0 < z1 && p1 > z0; }
    bool covers_image (llama_pos p0, llama_pos p1) const { return p0 <= z0 && p1 >= z1; }

    bool can_rm(llama_pos p0, llama_pos p1) const {
        return (covers_image(p0, p1) && covers_before(p0, p1)) || (!touches_image(p0, p1) && !touches_before(p0, p1));
    }
    bool can_cp(llama_pos p0, llama_pos p1) const {
        return (covers_image(p0, p1) && covers_before(p0, p1)) || !touches_image(p0, p1);
    }
};

// text before the image, and prompts that begin with it; in a stream of their own, or beside another sequence
static const llama_aircache_span SPANS[] = { SPAN, { 0, 60, 0 } };

static void ranges_are_removed_whole() {
    std::mt19937 rng(1);

    for (const auto & span : SPANS) {
        for (const bool unified : { false, true }) {
            auto ctx = context(2, unified, 256);
            auto * mem = llama_get_memory(ctx.get());
            prefill_span(ctx.get(), 0, span);
            const int zone = n_zone(ctx.get(), 0);
            decode(ctx.get(), 1, 0, random_tokens(20, 1));
            const int others = unified ? 20 : 0;

            simple_model m = { {}, span.p0, span.p1 };
            for (llama_pos p = 0; p < N_PROMPT; ++p) {
                if (p < span.p0 || p >= span.p1) {
                    m.text.insert(p);
                }
            }

            std::vector<uint8_t> saved(llama_state_seq_get_size(ctx.get(), 0));
            CHECK(llama_state_seq_get_data(ctx.get(), saved.data(), saved.size(), 0) == saved.size());

            int n_done = 0;
            for (int i = 0; i < 600; ++i) {
                // limits at, before and behind every border, and anywhere
                const llama_pos marks[] = { -1, 0, 1, span.p0, span.p0 + 1, span.p1 - 1, span.p1, span.p1 + 1, N_PROMPT, N_PROMPT + 5 };
                const auto pick = [&] { return rng() % 3 ? marks[rng() % 10] : (llama_pos) (rng() % (N_PROMPT + 4)); };
                const llama_pos p0 = pick();
                const llama_pos p1 = pick();
                const llama_pos q0 = p0 < 0 ? 0 : p0;
                const llama_pos q1 = p1 < 0 ? INT32_MAX : p1;

                const bool want = m.can_rm(q0, q1);
                const bool got  = llama_memory_seq_rm(mem, 0, p0, p1);
                if (got != want) {
                    fprintf(stderr, "seq_rm [%d, %d) gave %d, image [%d, %d)\n", p0, p1, got, span.p0, span.p1);
                    exit(1);
                }

                std::set<llama_pos> left;
                for (const llama_pos p : m.text) {
                    if (!want || p < q0 || p >= q1) {
                        left.insert(p);
                    }
                }
                const bool image = !want || !m.covers_image(q0, q1);
                CHECK(n_cells(ctx.get(), 0) == (int) left.size() + (image ? zone : 0) + others);
                CHECK(n_zone(ctx.get(), 0) == (image ? zone : 0));
                if (image) {
                    CHECK(llama_memory_seq_pos_max(mem, 0) == std::max(left.empty() ? -1 : *left.rbegin(), span.p1 - 1));
                }

                if (want && q0 < q1) {
                    n_done++;
                    CHECK(llama_state_seq_set_data(ctx.get(), saved.data(), saved.size(), 0) == saved.size());
                }
            }
            CHECK(n_done > 60 && n_done < 540); // ranges of both kinds were tried
            CHECK(llama_memory_seq_pos_max(mem, 1) == 19);
        }
    }
}

// seq_rm of all sequences at once
static void ranges_of_all_sequences() {
    for (const auto & span : SPANS) {
        auto ctx = context(2, true, 256);
        auto * mem = llama_get_memory(ctx.get());
        prefill_span(ctx.get(), 0, span);
        decode(ctx.get(), 1, 0, random_tokens(20, 1));
        const int before = n_cells(ctx.get(), 0);

        CHECK(!llama_memory_seq_rm(mem, -1, span.p1 - 1, -1));
        CHECK(!llama_memory_seq_rm(mem, -1, 1, span.p0 + 2));
        CHECK(n_cells(ctx.get(), 0) == before);
        CHECK(llama_memory_seq_rm(mem, -1, span.p1, -1));
        CHECK(llama_memory_seq_rm(mem, -1, -1, -1));
        CHECK(n_cells(ctx.get(), 0) == 0 && n_zone(ctx.get(), 0) == 0);
    }
}

static void ranges_are_copied_whole() {
    std::mt19937 rng(2);

    for (const auto & span : SPANS) {
        auto ctx = context(2, true, 256);
        auto * mem = llama_get_memory(ctx.get());
        prefill_span(ctx.get(), 0, span);

        simple_model m = { {}, span.p0, span.p1 };
        for (llama_pos p = 0; p < N_PROMPT; ++p) {
            if (p < span.p0 || p >= span.p1) {
                m.text.insert(p);
            }
        }

        for (int i = 0; i < 200; ++i) {
            const llama_pos marks[] = { 0, 1, span.p0, span.p0 + 1, span.p1 - 1, span.p1, span.p1 + 1, N_PROMPT };
            const llama_pos p0 = marks[rng() % 8];
            const llama_pos p1 = rng() % 4 ? marks[rng() % 8] : -1;
            const llama_pos q1 = p1 < 0 ? INT32_MAX : p1;

            llama_memory_seq_cp(mem, 0, 1, p0, p1);

            // with none of the region's cells it can be removed in any part
            const bool want   = p0 < q1 && m.can_cp(p0, q1);
            const bool image  = want && m.covers_image(p0, q1);
            llama_pos  lowest = image ? span.p1 - 1 : INT32_MAX;
            for (const llama_pos p : m.text) {
                if (want && p >= p0 && p < q1) {
                    lowest = std::min(lowest, p);
                }
            }
            CHECK(llama_memory_seq_pos_min(mem, 1) == (lowest == INT32_MAX ? -1 : lowest));
            if (image) {
                CHECK(!llama_memory_seq_rm(mem, 1, span.p1 - 1, -1));
            }
            CHECK(llama_memory_seq_rm(mem, 1, -1, -1));
        }

        // a whole copy is the same sequence, and keeps the region alive when the first one goes
        llama_memory_seq_cp(mem, 0, 1, -1, -1);
        const auto l = decode(ctx.get(), 0, N_PROMPT, { 5 });
        CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
        CHECK(n_zone(ctx.get(), 1) > 0);
        CHECK(max_diff(decode(ctx.get(), 1, N_PROMPT, { 5 }), l) <= tolerance());
    }
}

static void sequences_are_kept_whole() {
    for (const llama_seq_id keep : { 0, 1 }) {
        auto ctx = context(2, true, 256);
        auto * mem = llama_get_memory(ctx.get());
        const auto l = prefill_span(ctx.get(), 0, SPAN);
        decode(ctx.get(), 1, 0, random_tokens(20, 1));

        auto other = context(2, true, 256);
        prefill_span(other.get(), 0, SPAN);
        decode(other.get(), 1, 0, random_tokens(20, 1));

        llama_memory_seq_keep(mem, keep);
        CHECK((n_zone(ctx.get(), 0) > 0) == (keep == 0));
        CHECK(llama_memory_seq_pos_max(mem, 1 - keep) == -1);
        const llama_pos pos = keep == 0 ? N_PROMPT : 20;
        CHECK(max_diff(decode(ctx.get(), keep, pos, { argmax(l) }), decode(other.get(), keep, pos, { argmax(l) })) <= tolerance());
    }
}

static void shifts_keep_the_order() {
    for (const bool shared : { false, true }) {
        auto ctx = context(3, true, 256);
        auto * mem = llama_get_memory(ctx.get());
        prefill_span(ctx.get(), 0, SPAN);
        decode(ctx.get(), 1, 0, random_tokens(20, 1));
        if (shared) {
            llama_memory_seq_cp(mem, 0, 2, 0, SPAN.p0); // the text before the image, without it
        }
        const auto last = [&](llama_seq_id seq) { return llama_memory_seq_pos_max(mem, seq); };

        llama_memory_seq_add(mem, 0, 50, -1, 3);               // cuts it
        llama_memory_seq_add(mem, 0, 0, 50, 3);
        llama_memory_seq_add(mem, 0, SPAN.p1, -1, -5);         // text in among it
        llama_memory_seq_add(mem, 0, 0, SPAN.p0, 100);         // or to its other side
        llama_memory_seq_add(mem, 0, SPAN.p0, SPAN.p1, 100);
        llama_memory_seq_add(mem, 0, SPAN.p0, SPAN.p1, -100);
        llama_memory_seq_add(mem, 0, 0, -1, INT32_MAX);
        llama_memory_seq_div(mem, 0, 0, -1, 2);
        llama_memory_seq_div(mem, 0, SPAN.p1, -1, 2);
        llama_memory_seq_add(mem, 2, 0, -1, 100);              // what both hold
        CHECK(last(0) == N_PROMPT - 1);
        CHECK(llama_memory_seq_pos_min(mem, 0) == 0 && last(2) == (shared ? SPAN.p0 - 1 : -1));

        CHECK(llama_memory_seq_rm(mem, 0, SPAN.p1, SPAN.p1 + 5)); // as a server that drops old text does
        llama_memory_seq_add(mem, 0, SPAN.p1 + 5, -1, -5);
        CHECK(last(0) == N_PROMPT - 6);
        llama_memory_seq_div(mem, 1, 0, -1, 2);                // others are free
        CHECK(last(1) == 9);

        if (shared) {
            CHECK(llama_memory_seq_rm(mem, 2, -1, -1));
        }
        llama_memory_seq_add(mem, 0, 0, -1, 7);                // all of it
        CHECK(last(0) == N_PROMPT + 1);
        CHECK(!llama_memory_seq_rm(mem, 0, SPAN.p1 + 6, -1));  // its limits moved along
        CHECK(llama_memory_seq_rm(mem, 0, SPAN.p1 + 7, -1));
        CHECK(last(0) == SPAN.p1 + 6);
        decode(ctx.get(), 0, SPAN.p1 + 7, { 1, 2, 3 });        // the shift is applied
    }
}

// a compressed stream that is full refuses more, and loses nothing
static void full_stream() {
    auto ctx = context(1, false, 256);
    auto * mem = llama_get_memory(ctx.get());
    prefill_span(ctx.get(), 0, SPAN);
    const int zone = n_zone(ctx.get(), 0);
    const auto want = decode(ctx.get(), 0, N_PROMPT, { 5 });

    auto stats = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx.get(), 0, &stats) == 0);
    decode(ctx.get(), 0, N_PROMPT + 1, random_tokens(stats.n_free, 3));

    for (const int n : { 1, 40 }) {
        tokens more = random_tokens(n, 4);
        llama_batch batch = llama_batch_get_one(more.data(), more.size());
        CHECK(llama_decode(ctx.get(), batch) == 1); // no slot
        CHECK(n_cells(ctx.get(), 0) == 256 && n_zone(ctx.get(), 0) == zone);
    }

    CHECK(llama_memory_seq_rm(mem, 0, N_PROMPT, -1));
    CHECK(max_diff(decode(ctx.get(), 0, N_PROMPT, { 5 }), want) <= tolerance());
}

// an image that is compressed already is not observed again
static void compressed_images_are_not_observed() {
    for (const bool mask_only : { false, true }) {
        auto ctx = context(2, true);
        prefill(ctx.get(), 0);
        compress(ctx.get(), 0, 0.2, mask_only);

        for (const llama_aircache_span & span : { SPAN, llama_aircache_span { 0, 5, 0 }, llama_aircache_span { 90, 110, 0 } }) {
            CHECK(llama_aircache_observe(ctx.get(), 0, &span, 1, 140, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
            CHECK(strstr(llama_aircache_error(), "compressed already"));
        }
        CHECK(llama_aircache_dims(ctx.get(), 0, nullptr, nullptr, nullptr) == 0);
        CHECK(llama_aircache_observe(ctx.get(), 1, &SPAN, 1, N_PROMPT, nullptr, nullptr) == 0); // another sequence
        CHECK(llama_aircache_clear(ctx.get(), 1) == 0);

        const llama_aircache_span behind = { N_PROMPT, N_PROMPT + 10, 0 };
        CHECK(llama_aircache_observe(ctx.get(), 0, &behind, 1, N_PROMPT + 20, nullptr, nullptr) == 0);
        CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1));
        CHECK(llama_aircache_observe(ctx.get(), 0, &SPAN, 1, N_PROMPT, nullptr, nullptr) == 0); // gone
    }
}

cases cases_of_ranges = {
    { "ranges_are_removed_whole", ranges_are_removed_whole },
    { "ranges_of_all_sequences", ranges_of_all_sequences },
    { "ranges_are_copied_whole", ranges_are_copied_whole },
    { "sequences_are_kept_whole", sequences_are_kept_whole },
    { "shifts_keep_the_order", shifts_keep_the_order },
    { "full_stream", full_stream },
    { "compressed_images_are_not_observed", compressed_images_are_not_observed },
};
