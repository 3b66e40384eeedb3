// The C API as a machine: observe, decode, score, evict, remove, copy, shift, save in any order and with any values.
//
// Whatever is called, the statistics fit together, text is never dropped, a refused call changes nothing, and the next
// decode works. Input: the context's kind (1 byte), then calls.
#include "fuzz.h"

#include "llama-aircache.h"
#include "llama-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

static const int N_SEQ = 3;
static const int N_CTX = 256; // of a stream

// what a sequence must hold; known in streams of their own only
struct expectation {
    bool known = true;
    std::vector<llama_pos> loose; // positions of cells outside the zone
    llama_pos zone_p0 = -1;
    llama_pos zone_p1 = -1;

    void drop(llama_pos p0, llama_pos p1) {
        loose.erase(std::remove_if(loose.begin(), loose.end(), [&](llama_pos p) { return p >= p0 && p < p1; }), loose.end());
    }
};

struct observation {
    llama_aircache_span span = {};
    bool any = false;
};

struct machine {
    llama_context * ctx;
    llama_memory_t  mem;
    bool unified;
    bool quantized;
    int  n_layer;
    expectation seqs[N_SEQ];
    observation seen[N_SEQ];

    llama_aircache_seq_stats stats(llama_seq_id seq) const {
        auto res = llama_aircache_stats_empty();
        REQUIRE(llama_aircache_stats(ctx, seq, &res) == LLAMA_AIRCACHE_OK, "%s", llama_aircache_error());
        return res;
    }

    void check(const char * call) const {
        for (llama_seq_id seq = 0; seq < N_SEQ; ++seq) {
            const auto s = stats(seq);
            const int32_t n_ctx = unified ? N_CTX*N_SEQ : N_CTX;
            REQUIRE(s.n_cells >= 0 && s.n_free >= 0 && s.n_cells + s.n_free == n_ctx, "%s: %d cells in use, %d free of %d", call, s.n_cells, s.n_free, n_ctx);
            REQUIRE(s.n_zone >= 0 && s.n_zone <= s.n_cells, "%s: a zone of %d in %d cells", call, s.n_zone, s.n_cells);
            REQUIRE(s.kv_bytes >= 0 && s.kv_bytes <= s.n_cells*s.kv_bytes_cell, "%s: %lld bytes in %d cells", call, (long long) s.kv_bytes, s.n_cells);
            if (!unified && seqs[seq].known) {
                REQUIRE(s.n_cells == (int32_t) seqs[seq].loose.size() + s.n_zone, "%s: sequence %d has %d cells, expected %zu and a zone of %d",
                        call, seq, s.n_cells, seqs[seq].loose.size(), s.n_zone);
            }
        }
    }

    void decode(llama_seq_id seq, int n) {
        const llama_pos pos  = llama_memory_seq_pos_max(mem, seq) + 1;
        const int32_t   room = stats(seq).n_free;

        llama_batch batch = llama_batch_init(n, 0, 1);
        for (int i = 0; i < n; ++i) {
            batch.token[i]     = 3 + ((int64_t) pos + i)*7 % 250;
            batch.pos[i]       = pos + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = seq;
            batch.logits[i]    = i + 1 == n;
        }
        batch.n_tokens = n;
        const int32_t status = llama_decode(ctx, batch);
        llama_batch_free(batch);

        REQUIRE(status == (room >= n ? 0 : 1), "decoding %d tokens at %d with room for %d: %d", n, pos, room, status);
        if (status == 0) {
            const float * l = llama_get_logits_ith(ctx, -1);
            for (int i = 0; i < llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))); ++i) {
                REQUIRE(std::isfinite(l[i]), "logit %d is %g", i, l[i]);
            }
            for (int i = 0; i < n; ++i) {
                seqs[seq].loose.push_back(pos + i);
            }
        }
    }

    // returns the status; refused: nothing has changed
    template <typename F>
    int32_t refusable(llama_seq_id seq, F && call) const {
        const auto before = stats(seq);
        const llama_pos last = llama_memory_seq_pos_max(mem, seq);
        const int32_t status = call();
        if (status != LLAMA_AIRCACHE_OK) {
            REQUIRE(*llama_aircache_error() && strlen(llama_aircache_error()) < 1000, "no message");
            const auto after = stats(seq);
            REQUIRE(memcmp(&before, &after, sizeof(before)) == 0 && last == llama_memory_seq_pos_max(mem, seq), "a refused call changed the sequence: %s", llama_aircache_error());
        }
        return status;
    }

    bool observe(llama_seq_id seq, const llama_aircache_span & span, llama_pos end, const llama_aircache_method & method) {
        std::vector<llama_aircache_span> spans = { span }; // on the heap, so that ASan sees what is read behind
        const bool ok = refusable(seq, [&] { return llama_aircache_observe(ctx, seq, spans.data(), 1, end, &method, nullptr); }) == LLAMA_AIRCACHE_OK;
        if (ok) {
            seen[seq] = { span, true };
        }
        return ok;
    }

    // what to keep: by scores, or as the input says
    bool choose(llama_seq_id seq, const llama_aircache_method & method, std::vector<int32_t> & budgets, std::vector<int32_t> & kept) const {
        int32_t n_visual = 0;
        int32_t n_text   = 0;
        if (llama_aircache_dims(ctx, seq, nullptr, &n_visual, &n_text) != LLAMA_AIRCACHE_OK) {
            return false;
        }
        std::vector<float>   scores((size_t) n_layer*n_visual);
        std::vector<uint8_t> observers((size_t) n_layer*n_text);
        std::vector<double>  alive(n_layer);
        if (refusable(seq, [&] { return llama_aircache_score(ctx, seq, &method, scores.data(), scores.size(), observers.data(), observers.size(), alive.data(), alive.size()); }) != LLAMA_AIRCACHE_OK) {
            return false;
        }
        budgets.resize(n_layer);
        if (llama_aircache_allocate(&method, scores.data(), alive.data(), n_layer, n_visual, budgets.data(), nullptr, nullptr) != LLAMA_AIRCACHE_OK) {
            return false;
        }
        for (const int32_t b : budgets) {
            REQUIRE(b >= 1 && b <= n_visual, "budget %d of %d", b, n_visual);
        }
        kept.resize(std::accumulate(budgets.begin(), budgets.end(), 0));
        const int32_t status = llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), method.rank, kept.data(), kept.size());
        REQUIRE(status == LLAMA_AIRCACHE_OK || method.rank > n_visual, "what was allocated is not selected: %s", llama_aircache_error());
        return status == LLAMA_AIRCACHE_OK;
    }

    void evict(llama_seq_id seq, const std::vector<int32_t> & budgets, const std::vector<int32_t> & kept, double merge, bool mask_only) {
        const auto before = stats(seq);
        int32_t n_visual = 0;
        llama_aircache_dims(ctx, seq, nullptr, &n_visual, nullptr);
        if (refusable(seq, [&] { return llama_aircache_evict(ctx, seq, budgets.data(), kept.data(), merge, mask_only); }) != LLAMA_AIRCACHE_OK) {
            return;
        }
        const auto after = stats(seq);
        const int64_t row     = before.kv_bytes_cell/n_layer; // the tiny model's layers are alike
        const int64_t dropped = (int64_t) n_layer*n_visual - std::accumulate(budgets.begin(), budgets.end(), (int64_t) 0);
        if (dropped == 0) {
            REQUIRE(memcmp(&before, &after, sizeof(before)) == 0, "all was kept, and something changed");
        } else if (!mask_only) {
            REQUIRE(after.kv_bytes == before.kv_bytes - dropped*row, "%lld rows dropped: %lld bytes became %lld, %lld a row",
                    (long long) dropped, (long long) before.kv_bytes, (long long) after.kv_bytes, (long long) row);
            auto & e = seqs[seq];
            const auto & span = seen[seq].span;
            e.drop(span.p0, span.p1);
            e.zone_p0 = e.zone_p1 < 0 ? span.p0 : e.zone_p0;
            e.zone_p1 = span.p1;
        }
        seen[seq] = {};
    }

    void remove(llama_seq_id seq, llama_pos p0, llama_pos p1) {
        const auto before = stats(seq);
        const llama_pos last = llama_memory_seq_pos_max(mem, seq);
        const bool ok = llama_memory_seq_rm(mem, seq, p0, p1);

        p0 = p0 < 0 ? 0 : p0;
        p1 = p1 < 0 ? INT32_MAX : p1;
        const auto after = stats(seq);
        auto & e = seqs[seq];
        if (!ok) {
            REQUIRE(memcmp(&before, &after, sizeof(before)) == 0 && last == llama_memory_seq_pos_max(mem, seq), "a refused removal changed the sequence");
            return;
        }
        e.drop(p0, p1);
        if (before.n_zone > 0 && after.n_zone == 0) {
            REQUIRE(unified || !e.known || (p0 <= e.zone_p0 && p1 >= e.zone_p1), "removing [%d, %d) took the zone of [%d, %d)", p0, p1, e.zone_p0, e.zone_p1);
            e.zone_p0 = e.zone_p1 = -1;
        } else {
            REQUIRE(unified || before.n_zone == after.n_zone, "removing [%d, %d) left %d of the zone's %d cells", p0, p1, after.n_zone, before.n_zone);
        }
    }
};

static llama_context * context(int kind) {
    static llama_context * known[8];
    auto *& res = known[kind];
    if (!res) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx           = N_CTX*N_SEQ;
        params.n_batch         = 128;
        params.n_ubatch        = 32; // prompts span several graphs
        params.n_seq_max       = N_SEQ;
        params.kv_unified      = kind & 1;
        params.n_threads       = 1;
        params.n_threads_batch = 1;
        params.flash_attn_type = kind & 2 ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.type_k = params.type_v = kind & 4 ? (kind & 2 ? GGML_TYPE_F32 : GGML_TYPE_Q8_0) : GGML_TYPE_F16;
        res = llama_init_from_model(fuzz_model(), params);
        REQUIRE(res, "no context");
    }
    return res;
}

static llama_aircache_method any_method(fuzz_input & in) {
    llama_aircache_method res = llama_aircache_method_default();
    if (const char * name = llama_aircache_method_name(in.number(0, 31))) {
        REQUIRE(llama_aircache_method_by_name(name, &res) == LLAMA_AIRCACHE_OK, "%s", name);
    }
    res.keep = in.byte()/255.0;
    for (int n = in.number(0, 255) - 192; n > 0; n -= 16) { // most often as it is
        switch (in.number(0, 15)) {
            case  0: res.keep          = in.any_share();     break;
            case  1: res.min_keep      = in.any_number();    break;
            case  2: res.window        = in.number(-1, 5);   break;
            case  3: res.window_n      = in.any_number();    break;
            case  4: res.alpha         = in.any_share();     break;
            case  5: res.score         = in.number(-1, 3);   break;
            case  6: res.keys          = in.number(-1, 2);   break;
            case  7: res.text_weights  = in.byte() & 1;      break;
            case  8: res.pool          = in.number(-1, 3);   break;
            case  9: res.pool_size     = in.any_number();    break;
            case 10: res.pool_2d       = in.byte() & 1;      break;
            case 11: res.last_term     = in.any_share();     break;
            case 12: res.value_norm    = in.byte() & 1; res.diversity = in.byte() & 1; break;
            case 13: res.allocation    = in.number(-1, 7);   break;
            case 14: res.uniform_share = in.any_share();     break;
            case 15: res.rank          = in.any_number();    break;
        }
    }
    return res;
}

// allocate and select are pure: any scores and budgets
static void pure(fuzz_input & in) {
    const auto method = any_method(in);
    const int32_t n_layer  = in.number(0, 4);
    const int32_t n_visual = in.number(0, 40);
    std::vector<float>   scores((size_t) n_layer*n_visual);
    std::vector<double>  alive(n_layer);
    std::vector<int32_t> budgets(n_layer);
    for (auto & s : scores) { s = in.any_share(); }
    for (auto & a : alive)  { a = in.any_number(); }
    if (llama_aircache_allocate(&method, scores.data(), alive.data(), n_layer, n_visual, budgets.data(), nullptr, nullptr) == LLAMA_AIRCACHE_OK) {
        for (const int32_t b : budgets) {
            REQUIRE(b >= 1 && b <= n_visual, "budget %d of %d", b, n_visual);
        }
    } else {
        for (auto & b : budgets) { b = in.number(0, n_visual); }
    }
    const int64_t n_kept = std::accumulate(budgets.begin(), budgets.end(), (int64_t) 0);
    std::vector<int32_t> kept(in.number(0, n_kept)); // too small: refused, and ASan sees what is written behind
    const int32_t status = llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), in.number(0, 3), kept.data(), kept.size());
    REQUIRE(status != LLAMA_AIRCACHE_OK || (int64_t) kept.size() == n_kept, "%zu of %lld had room", kept.size(), (long long) n_kept);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_input in = { data, size };

    machine m = {};
    const int kind = in.byte() & 7;
    m.ctx       = context(kind);
    m.mem       = llama_get_memory(m.ctx);
    m.unified   = kind & 1;
    m.quantized = (kind & 6) == 4;
    for (llama_seq_id seq = 0; seq < N_SEQ; ++seq) {
        llama_aircache_clear(m.ctx, seq);
    }
    llama_memory_clear(m.mem, true);
    REQUIRE(llama_aircache_dims(m.ctx, 0, &m.n_layer, nullptr, nullptr) == LLAMA_AIRCACHE_OK, "%s", llama_aircache_error());

    for (int n_calls = 0; !in.empty() && n_calls < 24; ++n_calls) {
        const llama_seq_id seq  = in.number(0, N_SEQ - 1);
        const llama_pos    next = llama_memory_seq_pos_max(m.mem, seq) + 1;
        const char * call = "";
        switch (in.number(0, 13)) {
            case 0: case 1: { // a prompt with a picture, as it should be
                call = "prompt";
                const auto method = any_method(in);
                const llama_pos p0 = next + in.number(0, 8);
                const llama_pos p1 = p0 + in.number(1, 40);
                const int n = p1 + in.number(1, 20) - next;
                std::vector<int32_t> budgets;
                std::vector<int32_t> kept;
                const bool observed = m.observe(seq, { p0, p1, in.number(0, 8) }, next + n, method);
                m.decode(seq, n);
                if (observed && m.choose(seq, method, budgets, kept)) {
                    m.evict(seq, budgets, kept, method.merge, in.byte() == 255);
                }
            } break;
            case 2: {
                call = "observe";
                const llama_aircache_span span = { in.any_number(), in.any_number(), in.any_number() };
                m.observe(in.byte() > 250 ? in.any_number() % 1 : seq, span, in.any_number(), any_method(in));
            } break;
            case 3: {
                call = "observe from here";
                const llama_pos p0 = next + in.number(-8, 8);
                const llama_pos p1 = p0 + in.number(0, 40);
                m.observe(seq, { p0, p1, in.number(0, 8) }, p1 + in.number(0, 20), any_method(in));
            } break;
            case 4: {
                call = "decode";
                m.decode(seq, in.number(1, 64));
            } break;
            case 5: {
                call = "choose and evict";
                std::vector<int32_t> budgets;
                std::vector<int32_t> kept;
                const auto method = any_method(in);
                if (m.choose(seq, method, budgets, kept)) {
                    m.evict(seq, budgets, kept, in.any_share(), in.byte() & 1);
                }
            } break;
            case 6: {
                call = "evict";
                std::vector<int32_t> budgets(m.n_layer);
                for (auto & b : budgets) { b = in.byte() < 250 ? in.number(1, 20) : in.any_number(); }
                int64_t n = 0;
                for (const auto b : budgets) { n += std::min(std::max(b, 0), 1000); }
                std::vector<int32_t> kept(n);
                int32_t cur = 0;
                for (auto & k : kept) {
                    const uint8_t step = in.byte();
                    cur = step == 255 ? in.any_number() : step > 200 ? 0 : cur;
                    k = cur++;
                }
                m.evict(seq, budgets, kept, in.byte() > 200 ? in.any_share() : 0.0, in.byte() & 1);
            } break;
            case 7: {
                call = "clear";
                m.refusable(seq, [&] { return llama_aircache_clear(m.ctx, seq); });
                m.seen[seq] = {};
            } break;
            case 8: {
                call = "remove";
                const llama_pos p0 = in.byte() > 200 ? in.any_number() : in.number(-1, 120);
                const llama_pos p1 = in.byte() > 200 ? in.any_number() : in.number(-1, 120);
                m.remove(seq, p0, p1);
            } break;
            case 9: {
                call = "copy";
                const llama_seq_id to = in.number(0, N_SEQ - 1);
                const bool part = m.unified && (in.byte() & 1); // llama.cpp copies streams as a whole only
                const llama_pos p0 = part ? in.number(-1, 120) : -1;
                const llama_pos p1 = part ? in.number(-1, 120) : -1;
                if (to != seq) {
                    m.remove(to, -1, -1);
                    llama_memory_seq_cp(m.mem, seq, to, p0, p1);
                    m.seqs[to] = m.seqs[seq];
                }
            } break;
            case 10: {
                call = "keep"; // llama.cpp looks at the sequence's own stream alone
                llama_memory_seq_keep(m.mem, seq);
            } break;
            case 11: {
                call = "shift";
                if (m.quantized) {
                    break; // llama.cpp reads through a null pointer where heads are no multiple of 64 wide (build_rope_shift)
                }
                llama_memory_seq_add(m.mem, seq, in.number(-1, 120), in.number(-1, 120), in.number(-60, 60));
                m.seqs[seq].known = false; // what falls below 0 is gone, what would cut a zone stays
            } break;
            case 12: {
                call = "save and restore";
                const llama_seq_id to = in.number(0, N_SEQ - 1);
                std::vector<uint8_t> state(llama_state_seq_get_size(m.ctx, seq));
                const size_t n = llama_state_seq_get_data(m.ctx, state.data(), state.size(), seq);
                if (n > 0 && to != seq) {
                    m.remove(to, -1, -1);
                    llama_aircache_clear(m.ctx, to);
                    const bool ok = llama_state_seq_set_data(m.ctx, state.data(), n, to) > 0;
                    REQUIRE(m.unified || ok, "a state of one stream does not fit another, empty one");
                    m.seqs[to] = ok ? m.seqs[seq] : expectation();
                    m.seen[to] = {};
                }
            } break;
            case 13: {
                call = "pure";
                pure(in);
            } break;
        }
        m.check(call);
    }
    for (llama_seq_id seq = 0; seq < N_SEQ; ++seq) {
        m.decode(seq, 1);
    }
    m.check("end");
    return 0;
}
