// Tests of saved states: with a compressed image, beside one, damaged, made up.
#include "harness.h"

#include <random>

#include <unistd.h>

using bytes = std::vector<uint8_t>;

static bytes save(llama_context * ctx, llama_seq_id seq) { // -1: all
    bytes res(seq < 0 ? llama_state_get_size(ctx) : llama_state_seq_get_size(ctx, seq));
    CHECK(!res.empty());
    const size_t n = seq < 0 ? llama_state_get_data(ctx, res.data(), res.size()) : llama_state_seq_get_data(ctx, res.data(), res.size(), seq);
    CHECK(n == res.size());
    return res;
}

static bool restore(llama_context * ctx, llama_seq_id seq, const bytes & data) {
    return (seq < 0 ? llama_state_set_data(ctx, data.data(), data.size()) : llama_state_seq_set_data(ctx, data.data(), data.size(), seq)) > 0;
}

static llama_aircache_seq_stats stats(llama_context * ctx, llama_seq_id seq) {
    auto res = llama_aircache_stats_empty();
    CHECK(llama_aircache_stats(ctx, seq, &res) == 0);
    return res;
}

// Where things stand in a state: magic and sequence, or the architecture's name; then the stream count, and the first
// stream's cell count and, behind the flag, its zone.
struct offsets {
    size_t n_stream, n_cells, record, n_layer, start, end, p0, p1, cells;
    size_t cell_size; // position, number of sequences, under M-RoPE three more numbers, sequence

    offsets(const bytes & state, bool whole) {
        n_stream = 8;
        if (whole) {
            uint32_t n;
            memcpy(&n, state.data(), sizeof(n));
            n_stream = 4 + n;
        }
        n_cells = n_stream + 4;
        record  = n_cells  + 4;
        n_layer = record   + 4;
        start   = n_layer  + 4;
        end     = start    + 4*llama_model_n_layer(model);
        p0      = end      + 4;
        p1      = p0       + 4;
        cells   = p1       + 4;

        const auto rope = llama_model_rope_type(model);
        cell_size = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 24 : 12;
    }

    size_t cell(uint32_t i) const { return cells + cell_size*i; }
};

template <typename T>
static void put(bytes & state, size_t at, T value) { memcpy(state.data() + at, &value, sizeof(value)); }

static uint32_t get(const bytes & state, size_t at) {
    uint32_t res;
    memcpy(&res, state.data() + at, sizeof(res));
    return res;
}

static const uint32_t FLAG = 0x80000000u;

static void state_beside_a_compressed_one() {
    for (const bool unified : { true, false }) {
        auto ctx = context(2, unified);
        auto * mem = llama_get_memory(ctx.get());
        const auto l = prefill(ctx.get(), 0);
        compress(ctx.get(), 0, 0.2, false);
        decode(ctx.get(), 1, 0, random_tokens(40, 1));

        const bytes ordinary   = save(ctx.get(), 1);
        const bytes compressed = save(ctx.get(), 0);
        const bytes whole      = save(ctx.get(), -1);
        CHECK(get(ordinary,   offsets(ordinary, false).n_stream) == (unified ? 1 : 2));
        CHECK(get(compressed, offsets(compressed, false).n_stream) == ((unified ? 1 : 2) | FLAG));
        CHECK(get(whole,      offsets(whole, true).n_stream) == ((unified ? 1 : 2) | FLAG));

        const auto want_ordinary   = decode(ctx.get(), 1, 40, { 5 });
        const auto want_compressed = decode(ctx.get(), 0, N_PROMPT, { argmax(l) });

        // each alone, and both, in a context that knows nothing
        auto fresh = context(2, unified);
        CHECK(restore(fresh.get(), 1, ordinary));
        CHECK(stats(fresh.get(), 1).n_zone == 0 && stats(fresh.get(), 1).n_cells == 40);
        CHECK(max_diff(decode(fresh.get(), 1, 40, { 5 }), want_ordinary) <= tolerance());

        auto fresh2 = context(2, unified);
        CHECK(restore(fresh2.get(), 0, compressed));
        CHECK(max_diff(decode(fresh2.get(), 0, N_PROMPT, { argmax(l) }), want_compressed) <= tolerance());
        CHECK(restore(fresh2.get(), 1, ordinary)); // and beside it
        CHECK(max_diff(decode(fresh2.get(), 1, 40, { 5 }), want_ordinary) <= tolerance());

        auto fresh3 = context(2, unified);
        CHECK(restore(fresh3.get(), -1, whole));
        CHECK(max_diff(decode(fresh3.get(), 0, N_PROMPT, { argmax(l) }), want_compressed) <= tolerance());
        CHECK(max_diff(decode(fresh3.get(), 1, 40, { 5 }), want_ordinary) <= tolerance());

        // the same bytes as those of a cache in which nothing is compressed, which are stock's
        CHECK(llama_memory_seq_rm(mem, 1, 40, -1));
        CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
        CHECK(save(ctx.get(), 1) == ordinary);
        CHECK((get(save(ctx.get(), -1), offsets(whole, true).n_stream) & FLAG) == 0);
    }
}

// both sequences of a unified stream hold the region: a state of each carries it
static void state_of_a_shared_region() {
    auto ctx = context(2, true);
    const auto l = prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);
    llama_memory_seq_cp(llama_get_memory(ctx.get()), 0, 1, -1, -1);
    const bytes one   = save(ctx.get(), 1);
    const bytes whole = save(ctx.get(), -1);
    const auto  want  = decode(ctx.get(), 1, N_PROMPT, { argmax(l) });

    auto fresh = context(2, true);
    CHECK(restore(fresh.get(), 0, one));
    CHECK(max_diff(decode(fresh.get(), 0, N_PROMPT, { argmax(l) }), want) <= tolerance());
    CHECK(restore(fresh.get(), -1, whole));
    CHECK(max_diff(decode(fresh.get(), 1, N_PROMPT, { argmax(l) }), want) <= tolerance());
}

// the state is refused, nothing of it stays, and the context works as a new one
static void check_refused(llama_context * ctx, llama_seq_id seq, const bytes & state, const char * what) {
    if (restore(ctx, seq, state)) {
        fprintf(stderr, "accepted: %s\n", what);
        exit(1);
    }
    CHECK(llama_memory_seq_pos_max(llama_get_memory(ctx), 0) == -1);
    CHECK(stats(ctx, 0).n_cells == 0 && stats(ctx, 0).n_zone == 0);
}

static void damaged_states() {
    for (const bool whole : { false, true }) {
        const llama_seq_id seq = whole ? -1 : 0;

        auto ctx = context(1, false, 512);
        const auto l = prefill(ctx.get(), 0);
        compress(ctx.get(), 0, 0.2, false);
        const bytes   good = save(ctx.get(), seq);
        const offsets at(good, whole);
        const auto    want = decode(ctx.get(), 0, N_PROMPT, { argmax(l) });

        const uint32_t n_cells = get(good, at.n_cells);
        const uint32_t n_zone  = get(good, at.end);
        const uint32_t n_layer = llama_model_n_layer(model);
        CHECK(n_cells == n_zone + N_PROMPT - 90 && get(good, at.n_layer) == n_layer);
        CHECK(get(good, at.p0) == (uint32_t) SPAN.p0 && get(good, at.p1) == (uint32_t) SPAN.p1);
        CHECK(get(good, at.cells) == (uint32_t) SPAN.p1 - 1);

        const auto cell = [&](uint32_t i) { return at.cell(i); };

        const std::vector<std::pair<const char *, std::function<void(bytes &)>>> damages = {
            { "another format",             [&](bytes & s) { put(s, at.record, get(s, at.record) + 1); } },
            { "no format",                  [&](bytes & s) { put(s, at.record, n_layer); } },
            { "more layers",                [&](bytes & s) { put(s, at.n_layer, n_layer + 1); } },
            { "2^32 - 1 layers",            [&](bytes & s) { put(s, at.n_layer, UINT32_MAX); } },
            { "no end",                     [&](bytes & s) { put(s, at.end, 0); } },
            { "a later end",                [&](bytes & s) { put(s, at.end, n_zone + 1); } },
            { "an earlier end",             [&](bytes & s) { put(s, at.end, n_zone - 1); } },
            { "an end behind the cells",    [&](bytes & s) { put(s, at.end, n_cells + 1); } },
            { "2^32 - 1 cells",             [&](bytes & s) { put(s, at.end, UINT32_MAX); } },
            { "a layer that keeps nothing", [&](bytes & s) { put(s, at.start, n_zone); } },
            { "a start behind the end",     [&](bytes & s) { put(s, at.start + 4*(n_layer - 1), n_zone + 1); } },
            { "no layer that keeps all",    [&](bytes & s) { for (uint32_t i = 0; i < n_layer; ++i) { put(s, at.start + 4*i, 1); } } },
            { "start = end = cells, p1 far below", [&](bytes & s) {
                for (uint32_t i = 0; i < n_layer; ++i) { put(s, at.start + 4*i, n_cells); }
                put(s, at.end, n_cells); put(s, at.p1, -1000000); } },
            { "a negative p0",              [&](bytes & s) { put(s, at.p0, -1); } },
            { "p0 behind p1",               [&](bytes & s) { put(s, at.p0, SPAN.p1); } },
            { "p0 behind the survivors",    [&](bytes & s) { put(s, at.p0, SPAN.p1 + 1); put(s, at.p1, SPAN.p1 + 2); } },
            { "a negative p1",              [&](bytes & s) { put(s, at.p1, -1000000); } },
            { "p1 before the survivors",    [&](bytes & s) { put(s, at.p1, SPAN.p1 - 1); } },
            { "p1 in the text",             [&](bytes & s) { put(s, at.p1, SPAN.p1 + 1); } },
            { "p1 = 2^31 - 1",              [&](bytes & s) { put(s, at.p1, INT32_MAX); } },
            { "a survivor elsewhere",       [&](bytes & s) { put(s, cell(n_zone - 1), SPAN.p1 - 2); } },
            { "a survivor at -1",           [&](bytes & s) { put(s, cell(0), -1); } },
            { "a position of -1000000",     [&](bytes & s) { put(s, cell(n_cells - 1), -1000000); } },
            { "a position of 2^31 - 1",     [&](bytes & s) { put(s, cell(n_cells - 1), INT32_MAX); } },
            { "text in the image",          [&](bytes & s) { put(s, cell(n_cells - 1), SPAN.p1 - 1); } },
            { "a cell of no sequence",      [&](bytes & s) { put(s, cell(n_zone) + 4, 0); } },
            { "a cell of many sequences",   [&](bytes & s) { put(s, cell(n_zone) + 4, UINT32_MAX); } },
            { "no cells",                   [&](bytes & s) { put(s, at.n_cells, 1); } },
            { "too many cells",             [&](bytes & s) { put(s, at.n_cells, 513); } },
            { "2^32 - 1 cells in all",      [&](bytes & s) { put(s, at.n_cells, UINT32_MAX); } },
            { "another stream count",       [&](bytes & s) { put(s, at.n_stream, 2 | FLAG); } },
            { "no stream",                  [&](bytes & s) { put(s, at.n_stream, 0 | FLAG); } },
            { "no flag",                    [&](bytes & s) { put(s, at.n_stream, 1); } },
            { "a flag alone",               [&](bytes & s) { s.resize(at.n_stream + 4); } },
            { "half a record",              [&](bytes & s) { s.resize(at.end); } },
            { "half its cells",             [&](bytes & s) { s.resize(cell(n_cells/2)); } },
            { "no rows",                    [&](bytes & s) { s.resize(cell(n_cells)); } },
            { "half its rows",              [&](bytes & s) { s.resize(s.size()/2); } },
            { "all but the last byte",      [&](bytes & s) { s.resize(s.size() - 1); } },
        };

        for (const auto & [what, damage] : damages) {
            bytes state = good;
            damage(state);
            CHECK(state != good);
            // over the sequence as it was, and into an empty stream
            CHECK(restore(ctx.get(), seq, good));
            check_refused(ctx.get(), seq, state, what);
            check_refused(ctx.get(), seq, state, what);
        }

        CHECK(restore(ctx.get(), seq, good));
        CHECK(max_diff(decode(ctx.get(), 0, N_PROMPT, { argmax(l) }), want) == 0.0f);
    }
}

// the same through files, which are read piece by piece
static void damaged_files() {
    auto ctx = context(1, false, 512);
    prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, false);

    const char * tmp = getenv("TMPDIR");
    std::string name = std::string(tmp ? tmp : "/tmp") + "/test-aircache-XXXXXX";
    const int fd = mkstemp(name.data());
    CHECK(fd >= 0);
    close(fd);
    const char * path = name.c_str();
    const tokens text = { 1, 2, 3 };
    const size_t n = llama_state_seq_save_file(ctx.get(), path, 0, text.data(), text.size());
    CHECK(n > 0);

    bytes file(n);
    FILE * f = fopen(path, "rb");
    CHECK(f && fread(file.data(), 1, n, f) == n);
    fclose(f);

    const size_t head = 12 + 4*text.size(); // magic, version, number of tokens, tokens; then the stream count
    const offsets at(bytes(8), false);
    for (const size_t shift : { at.end, at.p1, at.record, at.n_layer, at.n_cells }) {
        bytes bad = file;
        put(bad, head + shift - 8, UINT32_MAX - 7);
        f = fopen(path, "wb");
        CHECK(f && fwrite(bad.data(), 1, n, f) == n);
        fclose(f);
        tokens out(8);
        size_t n_out = 0;
        CHECK(llama_state_seq_load_file(ctx.get(), path, 0, out.data(), out.size(), &n_out) == 0);
        CHECK(stats(ctx.get(), 0).n_cells == 0 && stats(ctx.get(), 0).n_zone == 0);
    }

    f = fopen(path, "wb");
    CHECK(f && fwrite(file.data(), 1, n, f) == n);
    fclose(f);
    tokens out(8);
    size_t n_out = 0;
    CHECK(llama_state_seq_load_file(ctx.get(), path, 0, out.data(), out.size(), &n_out) == n);
    CHECK(n_out == 3 && stats(ctx.get(), 0).n_zone > 0);
    unlink(path);
}

// one token, wherever it may get
static void try_decode(llama_context * ctx, llama_seq_id seq, llama_pos pos) {
    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens     = 1;
    batch.token[0]     = 1;
    batch.pos[0]       = pos;
    batch.n_seq_id[0]  = 1;
    batch.seq_id[0][0] = seq;
    batch.logits[0]    = 1;
    llama_decode(ctx, batch);
    llama_batch_free(batch);
}

// whatever bytes: refused or not, nothing aborts, and the context works afterwards
static void random_states() {
    std::mt19937 rng(3);

    for (const bool unified : { false, true }) {
        auto ctx = context(2, unified, 256);
        auto * mem = llama_get_memory(ctx.get());
        prefill(ctx.get(), 0);
        compress(ctx.get(), 0, 0.05, false);
        const bytes seeds[] = { save(ctx.get(), 0), save(ctx.get(), -1) };

        for (int i = 0; i < 500; ++i) {
            const bool whole = rng() % 2;
            bytes state = seeds[whole];
            const offsets at(state, whole);
            const size_t  head = at.cell(get(state, at.n_cells)) + 64;
            for (int n = 1 + rng() % 3; n > 0; --n) {
                static const uint32_t values[] = { 0, 1, 2, 10, 11, 100, 101, 255, 256, 257, 0x7fffffff, 0x80000000, 0x80000001, 0x80000002, 0xffffffff };
                // whole words where they stand; few in the first line, where nearly all are refused at once
                const size_t from = rng() % 8 ? at.record : 0;
                const size_t word = from + 4*(rng() % ((head - from)/4 - 1));
                put(state, word, rng() % 2 ? values[rng() % 15] : get(state, word) + (rng() % 5) - 2);
            }
            if (rng() % 16 == 0) {
                state.resize(rng() % state.size());
            }

            const llama_seq_id seq = whole ? -1 : (llama_seq_id) (rng() % 2);
            if (!restore(ctx.get(), seq, state)) {
                CHECK(llama_memory_seq_pos_max(mem, std::max(seq, 0)) == -1);
                CHECK(seq >= 0 || stats(ctx.get(), 0).n_cells + stats(ctx.get(), 1).n_cells == 0);
            }
            for (llama_seq_id s = 0; s < 2; ++s) {
                // accepted states may hold other text, or less of it: that is the saver's business
                try_decode(ctx.get(), s, llama_memory_seq_pos_max(mem, s) + 1);
            }
            CHECK(llama_memory_seq_rm(mem, 0, -1, -1) && llama_memory_seq_rm(mem, 1, -1, -1));
            CHECK(stats(ctx.get(), 0).n_cells == 0 && stats(ctx.get(), 1).n_cells == 0 && stats(ctx.get(), 0).n_zone == 0);
        }

        auto fresh = context(2, unified, 256);
        CHECK(max_diff(decode(ctx.get(), 0, 0, prompt(4)), decode(fresh.get(), 0, 0, prompt(4))) == 0.0f);
    }
}

// a mask-only compression is not saved, but hinders nothing beside it
static void masked_states() {
    auto ctx = context(2, true);
    prefill(ctx.get(), 0);
    compress(ctx.get(), 0, 0.2, true);
    decode(ctx.get(), 1, 0, random_tokens(10, 1));
    CHECK(llama_state_seq_get_size(ctx.get(), 0) == 0 && llama_state_get_size(ctx.get()) == 0);
    save(ctx.get(), 1);
}

// Of a model whose memory cannot be compressed (the test gives one): a flag and a zone in its state are refused.
static void uncompressible_memory() {
    auto ctx = context(1, false, 512);
    CHECK(llama_aircache_supported(ctx.get()) == LLAMA_AIRCACHE_UNSUPPORTED);
    auto * mem = llama_get_memory(ctx.get());
    decode(ctx.get(), 0, 0, prompt());
    const bytes good = save(ctx.get(), 0);

    const offsets at(good, false);
    bytes state(good.begin(), good.begin() + at.record);
    put(state, at.n_stream, get(good, at.n_stream) | FLAG);
    for (const uint32_t n_layer : { 0, 1, llama_model_n_layer(model)/2, llama_model_n_layer(model) }) {
        state.resize(at.record);
        const auto add = [&](uint32_t value) { state.resize(state.size() + 4); put(state, state.size() - 4, value); };
        add(0x41495201);
        add(n_layer);
        for (uint32_t i = 0; i < n_layer; ++i) { add(0); }
        if (n_layer > 0) { add(1); add(0); add(1); }
        state.insert(state.end(), good.begin() + at.record, good.end());
        CHECK(!restore(ctx.get(), 0, state));
        CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
    }

    CHECK(restore(ctx.get(), 0, good));
    CHECK(llama_memory_seq_pos_max(mem, 0) == N_PROMPT - 1);
}

cases cases_of_states = {
    { "state_beside_a_compressed_one", state_beside_a_compressed_one },
    { "state_of_a_shared_region", state_of_a_shared_region },
    { "damaged_states", damaged_states },
    { "damaged_files", damaged_files },
    { "random_states", random_states },
    { "masked_states", masked_states },
    { "uncompressible_memory", uncompressible_memory },
};
