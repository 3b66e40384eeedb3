// Saved states: whatever llama_state_seq_set_data is given, it takes it or refuses it, and decoding goes on.
//
// Input: how the real state is made (1 byte), then edits of its bytes.
#include "fuzz.h"

#include "llama-aircache.h"
#include "llama-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

static const llama_aircache_span PICTURE = { 3, 23, 5 };
static const int N_PROMPT = 30;
static const int N_OTHER  = 8;

struct shape {
    bool unified;
    bool sliding;
    bool compressed;   // sequence 0
    bool save_other;   // the state of sequence 1, which has only text
    bool beside_other; // restored beside sequence 1's cells

    bool operator<(const shape & o) const { return key() < o.key(); }
    int key() const { return unified | sliding << 1 | compressed << 2 | save_other << 3 | beside_other << 4; }
};

static llama_context * context(bool unified, bool sliding) {
    static llama_context * known[2][2];
    auto *& res = known[unified][sliding];
    if (!res) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx           = 512;
        params.n_batch         = 64;
        params.n_ubatch        = 64;
        params.n_seq_max       = 2;
        params.kv_unified      = unified;
        params.n_threads       = 1;
        params.n_threads_batch = 1;
        res = llama_init_from_model(fuzz_model(sliding), params);
        REQUIRE(res, "no context");
    }
    return res;
}

// returns llama_decode's status
static int32_t decode(llama_context * ctx, llama_seq_id seq, llama_pos pos, int n) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; ++i) {
        batch.token[i]     = 3 + ((int64_t) pos + i)*7 % 250;
        batch.pos[i]       = pos + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i]    = i + 1 == n;
    }
    batch.n_tokens = n;
    const int32_t res = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return res;
}

static std::vector<float> logits(llama_context * ctx) {
    const float * l = llama_get_logits_ith(ctx, -1);
    REQUIRE(l, "no logits");
    return { l, l + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))) };
}

static void compress(llama_context * ctx) {
    int32_t n_layer;
    int32_t n_visual;
    REQUIRE(llama_aircache_dims(ctx, 0, &n_layer, &n_visual, nullptr) == LLAMA_AIRCACHE_OK, "%s", llama_aircache_error());
    std::vector<int32_t> budgets(n_layer);
    std::vector<int32_t> kept;
    for (int32_t l = 0; l < n_layer; ++l) { // layers differ
        budgets[l] = 4 + 3*l;
        kept.resize(kept.size() + budgets[l]);
        std::iota(kept.end() - budgets[l], kept.end(), l);
    }
    REQUIRE(llama_aircache_evict(ctx, 0, budgets.data(), kept.data(), 0.0, false) == LLAMA_AIRCACHE_OK, "%s", llama_aircache_error());
}

static std::vector<uint8_t> make_state(const shape & s) {
    llama_context * ctx = context(s.unified, s.sliding);
    llama_memory_clear(llama_get_memory(ctx), true);

    if (s.compressed) {
        REQUIRE(llama_aircache_observe(ctx, 0, &PICTURE, 1, N_PROMPT, nullptr, nullptr) == LLAMA_AIRCACHE_OK, "%s", llama_aircache_error());
    }
    REQUIRE(decode(ctx, 0, 0, N_PROMPT) == 0, "prompt");
    if (s.compressed) {
        compress(ctx);
    }
    REQUIRE(decode(ctx, 1, 0, N_OTHER) == 0, "other prompt");

    const llama_seq_id seq = s.save_other;
    std::vector<uint8_t> res(llama_state_seq_get_size(ctx, seq));
    REQUIRE(llama_state_seq_get_data(ctx, res.data(), res.size(), seq) == res.size(), "saving");
    return res;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_input in = { data, size };

    const uint8_t bits = in.byte();
    shape s = { (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, (bits & 16) != 0 };
    s.compressed &= !s.sliding; // refused there

    static std::map<shape, std::vector<uint8_t>> real;
    auto & found = real[s];
    if (found.empty()) {
        found = make_state(s);
    }
    std::vector<uint8_t> state = found;
    if (s.sliding && bits & 4) { // a zone where none can be
        shape other = s;
        other.sliding    = false;
        other.compressed = true;
        auto & zoned = real[other];
        if (zoned.empty()) {
            zoned = make_state(other);
        }
        state = zoned;
    }
    fuzz_edit(state, in);

    llama_context * ctx = context(s.unified, s.sliding);
    auto * mem = llama_get_memory(ctx);

    // what sequence 1 answers when nothing is restored
    std::vector<float> expected;
    for (const bool restored : { false, true }) {
        llama_memory_clear(mem, true);
        if (s.beside_other) {
            REQUIRE(decode(ctx, 1, 0, N_OTHER) == 0, "other prompt");
        }
        if (restored) {
            const size_t taken = llama_state_seq_set_data(ctx, state.data(), state.size(), 0);
            const llama_pos last = llama_memory_seq_pos_max(mem, 0);
            if (taken == 0) {
                REQUIRE(last == -1, "a refused state left cells up to position %d", last);
            } else if (last >= 0 && last < 1 << 30) {
                decode(ctx, 0, last + 1, 1); // may be refused: positions can have gaps

                std::vector<uint8_t> again(llama_state_seq_get_size(ctx, 0));
                const size_t saved = llama_state_seq_get_data(ctx, again.data(), again.size(), 0);
                REQUIRE(saved == again.size(), "a restored sequence cannot be saved: %zu of %zu bytes", saved, again.size());
            }
        }
        if (s.beside_other) {
            const int32_t status = decode(ctx, 1, N_OTHER, 1);
            REQUIRE(status == 0 || status == 1, "the other sequence does not go on: %d", status);
            if (!restored) {
                expected = logits(ctx);
            } else if (status == 0) {
                const auto got = logits(ctx);
                for (size_t i = 0; i < got.size(); ++i) {
                    REQUIRE(std::fabs(got[i] - expected[i]) < 1e-2f, "the other sequence's logit %zu is %g, was %g", i, got[i], expected[i]);
                }
            }
        }
    }

    llama_memory_clear(mem, true);
    REQUIRE(decode(ctx, 0, 0, 4) == 0, "an emptied context does not decode");
    for (const float l : logits(ctx)) {
        REQUIRE(std::isfinite(l), "an emptied context's logits are %g", l);
    }
    return 0;
}
