// Archives: a question that begins again from one is answered as after a fresh prefill of the whole conversation.
#include "harness.h"

#include "llama-context.h"

#include <filesystem>
#include <fstream>
#include <random>

namespace fs = std::filesystem;

using archive_ptr = std::unique_ptr<llama_aircache_archive, decltype(&llama_aircache_archive_free)>;

enum kind { MEMORY, DEVICE, IN_FILE };

// text, two images with text between them, text
static const llama_aircache_span SPANS[] = { { 11, 61, 10 }, { 75, 101, 13 } };
static const llama_pos P1 = 101;

static std::string temporary(const char * name) {
    return (fs::temp_directory_path() / (std::string("aircache-") + name + "-" + std::to_string((uintptr_t) &name) + "-" +
            std::to_string(std::random_device()()))).string();
}

static archive_ptr make(llama_context * ctx, kind where, const char * path, llama_pos p1 = P1) {
    llama_aircache_archive * res = nullptr;
    if (where == DEVICE) {
        CHECK(llama_aircache_archive_make_on_device(ctx, 0, p1, &res) == 0);
    } else {
        CHECK(llama_aircache_archive_make(ctx, 0, p1, where == IN_FILE ? path : nullptr, &res) == 0);
    }
    CHECK(res && llama_aircache_archive_bytes(res) > 0);
    return { res, llama_aircache_archive_free };
}

// of a sequence that begins anew
static void observe(llama_context * ctx, llama_pos pos_end, const llama_aircache_method & method) {
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx), 0, -1, -1));
    CHECK(llama_aircache_observe(ctx, 0, SPANS, 2, pos_end, &method, nullptr) == 0);
}

struct answer { std::vector<float> logits; result compressed; std::vector<std::vector<float>> steps; };

static const int N_STEPS = 4;

// compresses and answers; the tokens go to the conversation
static answer answered(llama_context * ctx, std::vector<float> logits, const llama_aircache_method & method, tokens & conversation) {
    answer res;
    res.logits     = std::move(logits);
    res.compressed = compress(ctx, 0, method, false);
    llama_token cur = argmax(res.logits);
    for (int i = 0; i < N_STEPS; ++i) {
        res.steps.push_back(decode(ctx, 0, conversation.size(), { cur }));
        conversation.push_back(cur);
        cur = argmax(res.steps.back());
    }
    return res;
}

static void check_equal(const answer & a, const answer & b) {
    CHECK(a.logits            == b.logits);
    CHECK(a.compressed.scores == b.compressed.scores);
    CHECK(a.compressed.kept   == b.compressed.kept);
    CHECK(a.steps             == b.steps);
}

// decodes in the steps of a prefill: up to the last image's end, then what follows, in batches
static std::vector<float> decode_from(llama_context * ctx, const tokens & all, llama_pos from) {
    const llama_pos end = all.size();
    std::vector<float> res;
    for (llama_pos to; from < end; from = to) {
        to  = std::min({ from < P1 ? P1 : end, end, from + 200 });
        res = decode(ctx, 0, from, { all.begin() + from, all.begin() + to });
    }
    return res;
}

// ten questions in a row, each with everything before it, against a context that begins anew each time
static void asked_again(const llama_aircache_method & method, kind where) {
    const std::string path = temporary("again");

    auto fresh = context();
    auto again = context();

    tokens all = random_tokens(P1, 0);
    archive_ptr kept(nullptr, llama_aircache_archive_free);

    for (int q = 0; q < 10; ++q) {
        const auto question = random_tokens(20 + q, 100 + q);
        all.insert(all.end(), question.begin(), question.end());

        observe(fresh.get(), all.size(), method);
        tokens copy = all;
        const auto expected = answered(fresh.get(), decode_from(fresh.get(), all, 0), method, copy);

        observe(again.get(), all.size(), method);
        if (kept) {
            CHECK(llama_aircache_archive_restore(again.get(), 0, kept.get()) == 0);
        } else {
            decode(again.get(), 0, 0, { all.begin(), all.begin() + P1 });
            kept = make(again.get(), where, path.c_str());
        }
        check_equal(answered(again.get(), decode_from(again.get(), all, P1), method, all), expected);
    }

    CHECK(fs::exists(path) == (where == IN_FILE));
    kept.reset();
    CHECK(!fs::exists(path));
}

static llama_aircache_method windowed(int32_t window, int32_t n = 8) {
    auto res = method_named("aircache", 0.2);
    res.window   = window;
    res.window_n = n;
    return res;
}

static void asked_again_from_memory() { asked_again(method_named("aircache", 0.1), MEMORY); }
static void asked_again_from_device() { asked_again(method_named("aircache", 0.1), DEVICE); }
static void asked_again_from_file()   { asked_again(method_named("aircache", 0.1), IN_FILE); }

static void asked_again_with_other_windows() {
    asked_again(windowed(LLAMA_AIRCACHE_WINDOW_VISUAL, 40), MEMORY); // reaches into the first image
    asked_again(windowed(LLAMA_AIRCACHE_WINDOW_ALL),        MEMORY);
    asked_again(windowed(LLAMA_AIRCACHE_WINDOW_LAST),       DEVICE);
}

// into another context, after the first one is gone; and into another sequence beside one that goes on
static void archives_outlive_their_context() {
    const auto method = method_named("aircache", 0.1);
    const auto all    = random_tokens(P1 + 20, 0);

    auto first = context();
    observe(first.get(), all.size(), method);
    decode(first.get(), 0, 0, { all.begin(), all.begin() + P1 });
    const auto kept = make(first.get(), MEMORY, nullptr);
    tokens copy = all;
    const auto expected = answered(first.get(), decode_from(first.get(), all, P1), method, copy);
    first.reset();

    auto other = context(2);
    CHECK(llama_aircache_observe(other.get(), 1, SPANS, 2, all.size(), &method, nullptr) == 0);
    decode(other.get(), 0, 0, random_tokens(30, 7));
    CHECK(llama_aircache_archive_restore(other.get(), 1, kept.get()) == 0);
    CHECK(decode(other.get(), 1, P1, { all.begin() + P1, all.end() }) == expected.logits);
    CHECK(compress(other.get(), 1, method, false).kept == expected.compressed.kept);
    CHECK(llama_memory_seq_pos_max(llama_get_memory(other.get()), 0) == 29);
}

// text behind the images may be there already when the archive is made, and images behind it come later
static void archives_of_a_part() {
    const auto method = method_named("aircache", 0.1);
    const auto all    = random_tokens(P1 + 20, 0);

    auto ctx = context();
    observe(ctx.get(), all.size(), method);
    decode(ctx.get(), 0, 0, { all.begin(), all.begin() + P1 });
    tokens copy = all;
    const auto logits = decode_from(ctx.get(), all, P1);
    const auto whole  = make(ctx.get(), MEMORY, nullptr);
    const auto one    = make(ctx.get(), MEMORY, nullptr, SPANS[0].p1);
    CHECK(llama_aircache_archive_bytes(one.get()) < llama_aircache_archive_bytes(whole.get()));
    const auto expected = answered(ctx.get(), logits, method, copy);

    for (const auto & [archive, from] : { std::make_pair(whole.get(), P1), std::make_pair(one.get(), SPANS[0].p1) }) {
        observe(ctx.get(), all.size(), method);
        CHECK(llama_aircache_archive_restore(ctx.get(), 0, archive) == 0);
        if (from < P1) {
            decode(ctx.get(), 0, from, { all.begin() + from, all.begin() + P1 });
        }
        copy = all;
        const auto res = answered(ctx.get(), decode_from(ctx.get(), all, P1), method, copy);
        CHECK(res.compressed.budgets == expected.compressed.budgets);
        CHECK(max_diff(res.logits, expected.logits) <= tolerance()); // other batches
    }
}

static std::string last_error() { return llama_aircache_error(); }

static bool contains(const std::string & text, const char * part) { return text.find(part) != std::string::npos; }

// each before anything changes
static void refused_archives() {
    const auto all = random_tokens(P1 + 20, 0);

    auto ctx = context();
    auto * mem = llama_get_memory(ctx.get());
    llama_aircache_archive * out = nullptr;

    CHECK(llama_aircache_archive_make(ctx.get(), 0, P1, nullptr, nullptr) == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_archive_make(ctx.get(), 1, P1, nullptr, &out)    == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_archive_make(ctx.get(), 0, 0,  nullptr, &out)    == LLAMA_AIRCACHE_ARGUMENT);
    CHECK(llama_aircache_archive_make(ctx.get(), 0, P1, nullptr, &out)    == LLAMA_AIRCACHE_STATE && contains(last_error(), "no cells"));
    CHECK(!out && llama_aircache_archive_bytes(nullptr) == 0);
    llama_aircache_archive_free(nullptr);
    CHECK(llama_aircache_archive_restore(ctx.get(), 0, nullptr) == LLAMA_AIRCACHE_ARGUMENT);

    const auto last = windowed(LLAMA_AIRCACHE_WINDOW_LAST);
    observe(ctx.get(), all.size(), last);
    decode(ctx.get(), 0, 0, all);
    const auto kept = make(ctx.get(), MEMORY, nullptr);
    compress(ctx.get(), 0, last, false);
    CHECK(llama_aircache_archive_make(ctx.get(), 0, P1, nullptr, &out) == LLAMA_AIRCACHE_STATE && contains(last_error(), "compressed"));

    // what had not been observed
    for (const auto & [method, what] : { std::make_pair(method_named("aircache", 0.1), "text between"),
            std::make_pair(windowed(LLAMA_AIRCACHE_WINDOW_VISUAL), "visual tokens"), std::make_pair(windowed(LLAMA_AIRCACHE_WINDOW_ALL), "attention of all") }) {
        auto other = context();
        observe(other.get(), all.size(), method);
        decode(other.get(), 0, 0, { 1, 2, 3 });
        CHECK(llama_aircache_archive_restore(other.get(), 0, kept.get()) == LLAMA_AIRCACHE_STATE && contains(last_error(), what));
        CHECK(llama_memory_seq_pos_max(llama_get_memory(other.get()), 0) == 2);
    }

    // a cache of another type, one that is too small, and one that is shared
    const auto usual = type_kv;
    type_kv = usual == GGML_TYPE_F32 ? GGML_TYPE_BF16 : GGML_TYPE_F32;
    auto other = context();
    type_kv = usual;
    CHECK(llama_aircache_archive_restore(other.get(), 0, kept.get()) == LLAMA_AIRCACHE_ARGUMENT && contains(last_error(), "another type"));
    decode(ctx.get(), 0, all.size(), random_tokens(1, 1));
    auto shared = context(2, true);
    decode(shared.get(), 1, 0, { 1, 2, 3 });
    CHECK(llama_aircache_archive_restore(shared.get(), 0, kept.get()) == LLAMA_AIRCACHE_UNSUPPORTED);
    CHECK(llama_memory_seq_pos_max(llama_get_memory(shared.get()), 1) == 2);

    // a unified cache is fine where nobody else is in it
    llama_memory_clear(llama_get_memory(shared.get()), false);
    CHECK(llama_aircache_archive_restore(shared.get(), 1, kept.get()) == 0);
    CHECK(llama_memory_seq_pos_max(mem, 0) == (llama_pos) all.size());
}

static std::string read_file(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(in), {} };
}

static void write_file(const std::string & path, const std::string & bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), bytes.size());
}

// a damaged file is an error before anything of it is used, and is never removed when it is not the archive's
static void damaged_archives() {
    const std::string path = temporary("damaged");
    const auto method = method_named("aircache", 0.1);
    const auto all    = random_tokens(P1 + 20, 0);

    auto ctx = context();
    observe(ctx.get(), all.size(), method);
    decode(ctx.get(), 0, 0, { all.begin(), all.begin() + P1 });

    write_file(path, "a file of somebody else's that is long enough to hold the head of an archive");
    llama_aircache_archive * out = nullptr;
    CHECK(llama_aircache_archive_make(ctx.get(), 0, P1, path.c_str(), &out) == LLAMA_AIRCACHE_FILE && contains(last_error(), "no archive"));
    CHECK(!out && fs::file_size(path) == 76);
    fs::remove(path);
    CHECK(llama_aircache_archive_make(ctx.get(), 0, P1, (path + "/none/x").c_str(), &out) == LLAMA_AIRCACHE_FILE);

    auto kept = make(ctx.get(), IN_FILE, path.c_str());
    for (const auto & other : fs::directory_iterator(fs::path(path).parent_path())) {
        CHECK(!contains(other.path().filename().string(), (fs::path(path).filename().string() + ".").c_str()));
    }
    const std::string good = read_file(path);

    uint32_t x = 1;
    for (int i = 0; i < 60; ++i) { // a bit in each field of the head, then anywhere
        x = x*1664525 + 1013904223;
        std::string bad = good;
        bad[i < 40 ? i : x % good.size()] ^= 1 << (x % 8);
        write_file(path, bad);
        decode(ctx.get(), 0, P1, { 1 });
        CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == LLAMA_AIRCACHE_FILE);
        if (llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0) < 0) { // found late: nothing of it stays
            CHECK(i >= 40);
        }
        write_file(path, good);
        observe(ctx.get(), all.size(), method);
        CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == 0);
    }
    for (const size_t n : { (size_t) 0, (size_t) 7, (size_t) 39, (size_t) 40, good.size()/2, good.size() - 1 }) {
        write_file(path, good.substr(0, n));
        CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == LLAMA_AIRCACHE_FILE);
    }
    fs::remove(path);
    CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == LLAMA_AIRCACHE_FILE && contains(last_error(), "No such file"));

    // another archive in its place stays
    write_file(path, good);
    CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == 0);
    auto other = make(ctx.get(), IN_FILE, path.c_str());
    CHECK(llama_aircache_archive_restore(ctx.get(), 0, kept.get()) == LLAMA_AIRCACHE_FILE && contains(last_error(), "in its place"));
    kept.reset();
    CHECK(llama_aircache_archive_restore(ctx.get(), 0, other.get()) == 0);
    other.reset();
    CHECK(!fs::exists(path));
}

extern cases cases_of_archive;
cases cases_of_archive = {
    { "archives_of_a_part", archives_of_a_part },
    { "archives_outlive_their_context", archives_outlive_their_context },
    { "asked_again_from_device", asked_again_from_device },
    { "asked_again_from_file", asked_again_from_file },
    { "asked_again_from_memory", asked_again_from_memory },
    { "asked_again_with_other_windows", asked_again_with_other_windows },
    { "damaged_archives", damaged_archives },
    { "refused_archives", refused_archives },
};
